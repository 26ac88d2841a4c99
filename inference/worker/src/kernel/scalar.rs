//! Matrix products in plain Rust: what the vector kernels are tested against.

use std::ops::Range;

use super::canvas::Output;
use super::pack::{Format, Packed};
use super::{Activations, BLOCK};

/// See [`super::Kernels::multiply_groups`]. Works with weights packed for any width.
///
/// # Safety
/// The groups and rows lie inside of the shapes and of `out`; nobody else uses their columns.
pub(super) unsafe fn multiply(weights: &Packed, x: &Activations, groups: Range<usize>, out: Output<'_>) {
    let outputs = groups.start * weights.lanes()..weights.outputs().min(groups.end * weights.lanes());
    for output in outputs {
        for row in 0..x.rows() {
            // SAFETY: the caller's promise.
            unsafe { out.put(row, output, &[dot(weights, output, x, row)]) };
        }
    }
}

/// One output of one row. This order of operations is the definition; the vector kernels keep it.
fn dot(weights: &Packed, output: usize, x: &Activations, row: usize) -> f32 {
    let (group, lane) = (output / weights.lanes(), output % weights.lanes());
    let (inputs, blocks) = (weights.inputs(), weights.inputs() / BLOCK);
    if weights.format().is_float() {
        // SAFETY: products are computed while nobody writes the activations, by the contract of `multiply_groups`.
        let values = unsafe { x.values.read(row * inputs..(row + 1) * inputs) };
        return values.iter().enumerate().fold(0.0, |sum, (k, &x)| weights.float(group, lane, k).mul_add(x, sum));
    }
    // SAFETY: as above.
    let (quants, scales, sums) = unsafe {
        (
            x.quants.read(row * inputs..(row + 1) * inputs),
            x.scales.read(row * blocks..(row + 1) * blocks),
            x.sums.read(row * blocks..(row + 1) * blocks),
        )
    };
    let mut sum = 0.0_f32;
    for block in 0..blocks {
        let halves = weights.half_scales(group, lane, block);
        let mut integer = 0_i32;
        for k in 0..BLOCK {
            let k_all = block * BLOCK + k;
            integer += halves[k / 16] * weights.quant(group, lane, k_all) * i32::from(quants[k_all]);
        }
        let (d, m) = weights.scale(group, lane, block);
        sum = (integer as f32).mul_add(d * scales[block], sum);
        if matches!(weights.format(), Format::Q4_0 | Format::Q4_1 | Format::Q4K) {
            sum = m.mul_add(sums[block], sum);
        }
    }
    sum
}
