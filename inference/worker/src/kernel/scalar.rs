//! Matrix products in plain Rust: what the vector kernels are tested against.

use super::pack::{Format, Packed};
use super::{Activations, BLOCK};

/// See [`super::Kernels::multiply`]. Works with weights packed for any width.
pub(super) fn multiply(weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
    for output in 0..weights.outputs() {
        for row in 0..x.rows() {
            out[row * stride + column + output] = dot(weights, output, x, row);
        }
    }
}

/// One output of one row. This order of operations is the definition; the vector kernels keep it.
fn dot(weights: &Packed, output: usize, x: &Activations, row: usize) -> f32 {
    let (group, lane) = (output / weights.lanes(), output % weights.lanes());
    let blocks = weights.inputs() / BLOCK;
    let mut sum = 0.0_f32;
    for block in 0..blocks {
        let mut integer = 0_i32;
        for k in block * BLOCK..(block + 1) * BLOCK {
            integer += weights.quant(group, lane, k) * i32::from(x.quants[row * weights.inputs() + k]);
        }
        let (d, m) = weights.scale(group, lane, block);
        sum = (integer as f32).mul_add(d * x.scales[row * blocks + block], sum);
        if weights.format() == Format::Q4_1 {
            sum = m.mul_add(x.sums[row * blocks + block], sum);
        }
    }
    sum
}
