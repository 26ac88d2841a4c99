//! The kernels against each other, bit for bit, and the scalar ones against candle.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::attention::{Head, POSITIONS, Queries, attend};
use super::canvas::Arena;
use super::pack::{Format, Packed};
use super::*;

/// Numbers in -1..1, the same every time.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A matrix quantised by candle, and its raw blocks.
fn quantised(format: Format, outputs: usize, inputs: usize) -> (QTensor, Vec<u8>) {
    let kind = match format {
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q6K => GgmlDType::Q6K,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
    };
    let values = Tensor::from_vec(noise(outputs * inputs, 3), (outputs, inputs), &Device::Cpu).expect("a matrix");
    let tensor = QTensor::quantize(&values, kind).expect("candle quantises");
    let raw = tensor.data().expect("on the CPU").into_owned();
    (tensor, raw)
}

fn activations(kernels: Kernels, rows: usize, inputs: usize) -> Activations {
    let mut x = Activations::default();
    x.reset(rows, inputs);
    for row in 0..rows {
        x.set_row(kernels, row, &noise(inputs, row as u32 + 50));
    }
    x
}

/// Blocks with the extremes of every field: all-ones quants and scales, -128, negative minima.
fn extreme(format: Format, outputs: usize, inputs: usize) -> Vec<u8> {
    let half = |value: f32| half::f16::from_f32(value).to_bits().to_le_bytes();
    (0..outputs * inputs / format.unit())
        .flat_map(|n| match format {
            Format::Q4_0 => [half(-0.5).to_vec(), vec![[255, 0, 240, 15][n % 4]; 16]].concat(),
            Format::Q4_1 => [half(0.5).to_vec(), half(-3.0).to_vec(), vec![[255, 0, 240, 15][n % 4]; 16]].concat(),
            Format::Q8_0 => [half(0.5).to_vec(), vec![[128, 127, 129, 0][n % 4]; 32]].concat(),
            Format::Q4K => [half(0.5).to_vec(), half(-0.25).to_vec(), vec![[255, 0, 240, 15][n % 4]; 140]].concat(),
            Format::Q6K => {
                [vec![[255, 0, 240, 15][n % 4]; 192], vec![[128, 127][n % 2]; 16], half(0.5).to_vec()].concat()
            }
            Format::F16 => (0..BLOCK).flat_map(|k| half([60_000.0, -1e-7, 0.0, -3.5][k % 4])).collect(),
            Format::Bf16 => {
                let upper = |value: f32| half::bf16::from_f32(value).to_bits().to_le_bytes();
                (0..BLOCK).flat_map(|k| upper([1e30, -1e-30, 0.0, -3.5][k % 4])).collect()
            }
        })
        .collect()
}

fn scalar() -> Kernels {
    Kernels::new(Isa::Scalar).expect("always there")
}

#[test]
fn scalar_products_agree_with_candle() {
    let check = |format: Format, outputs: usize, inputs: usize| {
        let (tensor, raw) = quantised(format, outputs, inputs);
        let dense = tensor.dequantize(&Device::Cpu).expect("candle dequantises");
        let packed = Packed::new(format, &raw, outputs, inputs, 8).expect("memory");
        for output in 0..outputs {
            let mut row = vec![0.0; inputs];
            packed.dequantise_row(output, &mut row);
            let expected = dense.get(output).and_then(|r| r.to_vec1::<f32>()).expect("a row");
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(row.iter().zip(&expected).all(near), "row {output} of {format:?}: {row:?} and {expected:?}");
        }
        let x = activations(scalar(), 3, inputs);
        // The activations as the kernels see them, so that only the arithmetic is compared.
        // SAFETY: nobody writes them.
        let (values, quants, scales) = unsafe {
            (x.values.read(0..3 * inputs), x.quants.read(0..3 * inputs), x.scales.read(0..3 * inputs / BLOCK))
        };
        let quantised = (0..3 * inputs).map(|k| f32::from(quants[k]) * scales[k / BLOCK]).collect();
        let seen: Vec<f32> = if format.is_float() { values.to_vec() } else { quantised };
        let seen = Tensor::from_vec(seen, (3, inputs), &Device::Cpu).expect("a matrix");
        let expected =
            seen.matmul(&dense.t().expect("2d")).and_then(|t| t.flatten_all()?.to_vec1::<f32>()).expect("floats");
        let mut out = vec![0.0; 3 * outputs];
        scalar().multiply(&packed, &x, &mut out, outputs, 0);
        for (a, b) in out.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-4 * (inputs as f32).sqrt(), "{format:?} {outputs}×{inputs}: {a} and {b}");
        }
    };
    for format in Format::ALL {
        check(format, 16, format.unit() * 2);
        check(format, 37, format.unit().max(192) * 3);
    }
}

/// A kernel: weights, rows, where the products go, how far apart their rows are, and in which column they begin.
type Multiply<'a> = dyn Fn(&Packed, &Activations, &mut [f32], usize, usize) + 'a;

/// Compares a kernel with the scalar one, over tile sizes, partial groups, and columns inside of wider rows.
fn compare(name: &str, lanes: usize, multiply: &Multiply<'_>) {
    for format in Format::ALL {
        let shapes = [(8, 32), (16, 96), (37, 576), (64, 64), (72, 1536), (21, 256), (40, 768)];
        for (outputs, inputs) in shapes.into_iter().filter(|(_, inputs)| inputs % format.unit() == 0) {
            for raw in [quantised(format, outputs, inputs).1, extreme(format, outputs, inputs)] {
                let packed = Packed::new(format, &raw, outputs, inputs, lanes).expect("memory");
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 13] {
                    let x = activations(scalar(), rows, inputs);
                    let stride = outputs + 5;
                    let (mut expected, mut got) = (vec![7.0; rows * stride], vec![7.0; rows * stride]);
                    // SAFETY: the shapes agree; nobody else has any of it.
                    unsafe { scalar::multiply(&packed, &x, 0..packed.groups(), Output::new(&mut expected, stride, 2)) };
                    multiply(&packed, &x, &mut got, stride, 2);
                    let bits = |all: &[f32]| all.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
                    assert!(bits(&expected) == bits(&got), "{name} {format:?} {outputs}×{inputs}, {rows} rows");
                }
            }
        }
    }
}

#[test]
fn avx2_products_equal_scalar_ones() {
    match Kernels::new(Isa::Avx2) {
        Ok(kernels) => compare("avx2", 8, &|w, x, out, stride, column| kernels.multiply(w, x, out, stride, column)),
        Err(error) => println!("skipped: {error}"),
    }
}

#[test]
fn avx512_products_equal_scalar_ones() {
    match Kernels::new(Isa::Avx512) {
        Ok(kernels) => compare("avx512", 16, &|w, x, out, stride, column| kernels.multiply(w, x, out, stride, column)),
        Err(error) => println!("skipped: {error}"),
    }
}

/// Members' parts of a product make up the whole.
#[test]
fn groups_make_up_a_product() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let kernels = Kernels::new(isa).expect("available");
        let raw = quantised(Format::Q4_1, 100, 64).1;
        let packed = Packed::new(Format::Q4_1, &raw, 100, 64, isa.lanes()).expect("memory");
        let x = activations(scalar(), 5, 64);
        let (mut expected, mut got) = (vec![0.0; 5 * 100], vec![0.0; 5 * 100]);
        kernels.multiply(&packed, &x, &mut expected, 100, 0);
        for first in (0..packed.groups()).step_by(3) {
            let groups = first..packed.groups().min(first + 3);
            // SAFETY: nobody else has any of it.
            unsafe { kernels.multiply_groups(&packed, &x, groups, Output::new(&mut got, 100, 0)) };
        }
        assert_eq!(got, expected, "{isa}");
    }
}

/// The AVX512 kernel with its instructions spelled out in plain Rust, for processors that lack them.
#[test]
fn emulated_avx512_products_equal_scalar_ones() {
    compare("emulated avx512", 16, &avx512::multiply_emulated);
}

/// Attention spelled out in f64.
fn reference(queries: &Queries, keys: &[f32], values: &[f32], width: usize) -> Vec<f64> {
    let mut outputs = Vec::new();
    for (query, &visible) in queries.vectors.chunks_exact(width).zip(&queries.visible) {
        let row = |all: &[f32], position: usize| {
            all[position * width..][..width].iter().map(|&f| f64::from(f)).collect::<Vec<_>>()
        };
        let scores: Vec<f64> = (0..visible)
            .map(|p| row(keys, p).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>().exp())
            .collect();
        let sum: f64 = scores.iter().sum();
        outputs.extend((0..width).map(|e| (0..visible).map(|p| scores[p] / sum * row(values, p)[e]).sum::<f64>()));
    }
    outputs
}

#[test]
fn attention_agrees_with_its_definition_whatever_attends_beside() {
    let halve = |all: Vec<f32>| all.into_iter().map(|f| half::f16::from_f32(f).to_f32()).collect::<Vec<_>>();
    let check = |width: usize, visible: &[usize]| {
        let last = *visible.iter().max().expect("a query");
        let blocks = last.div_ceil(POSITIONS);
        let (keys, values) = (halve(noise(last * width, 5)), halve(noise(last * width, 6)));
        let arena = Arena::new(blocks + 3, 2, 3, width).expect("memory");
        // Blocks in any order, of a layer and a head in the middle of others.
        let table: Vec<u32> = (0..blocks as u32).rev().map(|block| block + 2).collect();
        let (layer, head) = (1, 1);
        let halves = |all: &[f32], position: usize| {
            let mut halves = vec![0; width];
            vector::to_halves(scalar(), &all[position * width..][..width], &mut halves);
            halves
        };
        // What was never written must not matter: it is poisoned.
        let poison = vec![0x7e00; width];
        for position in 0..blocks * POSITIONS {
            let (key, value) = match position < last {
                true => (halves(&keys, position), halves(&values, position)),
                false => (poison.clone(), poison.clone()),
            };
            // SAFETY: nobody else has the arena.
            unsafe { arena.put(table[position / POSITIONS], layer, head, position % POSITIONS, &key, &value) };
        }
        let run = |kernels: Kernels, picked: std::ops::Range<usize>| {
            let vectors = noise(visible.len() * width, 7)[picked.start * width..picked.end * width].to_vec();
            let mut queries = Queries::default();
            (queries.vectors, queries.visible) = (vectors, visible[picked].to_vec());
            // SAFETY: nobody else has the arena.
            unsafe { attend(kernels, Head { arena: &arena, table: &table, layer, head }, &mut queries) };
            queries
        };
        let all = run(scalar(), 0..visible.len());
        for (got, expected) in all.outputs.iter().zip(reference(&all, &keys, &values, width)) {
            assert!((f64::from(*got) - expected).abs() < 1e-5, "width {width}, {visible:?}: {got} and {expected}");
        }
        for isa in [Isa::Scalar, Isa::Avx2] {
            let Ok(kernels) = Kernels::new(isa) else { continue };
            assert_eq!(run(kernels, 0..visible.len()).outputs, all.outputs, "{isa} together");
            for n in 0..visible.len() {
                assert_eq!(run(kernels, n..n + 1).outputs, all.outputs[n * width..][..width], "{isa}, query {n} alone");
            }
        }
    };
    check(64, &[1]);
    check(64, &[63, 64, 65]);
    check(64, &[200, 200, 200, 201, 201, 201, 202, 202]);
    check(80, &[5, 70]);
    check(128, &[1, 300, 129, 128, 127]);
    // Enough queries that halves are converted first.
    check(64, &[50, 51, 52, 53, 60, 61, 62, 63, 64, 65, 66, 67, 128, 129, 130, 131]);
    check(72, &(100..113).flat_map(|seen| [seen; 4]).collect::<Vec<_>>());
}

#[test]
fn a_copied_block_is_the_same_as_far_as_it_was_copied() {
    let (width, heads, layers) = (16, 2, 3);
    let arena = Arena::new(3, layers, heads, width).expect("memory");
    let number = |layer: usize, head: usize, position: usize, n: usize| {
        (layer * 10_000 + head * 5_000 + position * 50 + n) as u16
    };
    for (layer, head, position) in
        (0..layers * heads * POSITIONS).map(|n| (n / POSITIONS / heads, n / POSITIONS % heads, n % POSITIONS))
    {
        let key: Vec<u16> = (0..width).map(|n| number(layer, head, position, n)).collect();
        let value: Vec<u16> = key.iter().map(|half| half + 1).collect();
        // SAFETY: nobody else has the arena.
        unsafe { arena.put(0, layer, head, position, &key, &value) };
    }
    let check = |to: u32, tokens: usize| {
        for layer in 0..layers {
            // SAFETY: nobody else has the arena.
            unsafe { arena.copy(0, to, layer, tokens) };
        }
        for (layer, head) in (0..layers * heads).map(|n| (n / heads, n % heads)) {
            for side in [super::canvas::Side::Keys, super::canvas::Side::Values] {
                // SAFETY: nobody else has the arena.
                let (from, got) = unsafe { (arena.read(0, layer, side, head), arena.read(to, layer, side, head)) };
                let whole = tokens / 8 * 8 * width;
                assert_eq!(got[..whole], from[..whole], "{tokens} tokens, {side:?}");
                let keys = (0..tokens).all(|p| {
                    (0..width).all(|e| {
                        let at = p / 8 * 8 * width + e * 8 + p % 8;
                        side == super::canvas::Side::Values || got[at] == from[at]
                    })
                });
                let values = side == super::canvas::Side::Keys || got[..tokens * width] == from[..tokens * width];
                assert!(keys && values, "{tokens} tokens, {side:?}");
            }
        }
    };
    check(1, POSITIONS);
    check(2, 13);
}
