//! The small loops of a forward pass. Plain Rust, compiled once for any processor and once for AVX2, FMA and F16C.
//!
//! Sums run in sixteen lanes that are added in a fixed order, so that both give equal bits.

use half::f16;

use super::{BLOCK, Kernels};

/// Lanes of a sum: two AVX registers, so that the additions of one hide the latency of the other.
pub(super) const LANES: usize = 16;

/// Makes `$name(kernels, …)`, which runs the body compiled for what the processor has.
macro_rules! both {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $visibility fn $name(kernels: Kernels, $($argument: $kind),*) {
            #[inline(always)]
            fn plain($($argument: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn wide($($argument: $kind),*) {
                plain($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            if kernels.has_avx2() {
                // SAFETY: `kernels` proves that the processor has AVX2, FMA and F16C.
                return unsafe { wide($($argument),*) };
            }
            plain($($argument),*)
        }
    };
}
pub(super) use both;

both! {
    /// Quantises a row: per block of 32, scale = max |x| / 127. A block with a value that is not finite gets a scale that
    /// is not finite either, so that the failure reaches the logits, where it is looked for.
    pub(crate) fn quantise(
        values: &[f32],
        quants: &mut [i8],
        scales: &mut [f32],
        totals: &mut [i32],
        sums: &mut [f32],
    ) {
        let outputs = quants.as_chunks_mut::<BLOCK>().0.iter_mut().zip(scales).zip(totals).zip(sums);
        for (block, (((quants, scale), total), sum)) in values.as_chunks::<BLOCK>().0.iter().zip(outputs) {
            let mut largest = [0.0_f32; 8];
            let mut poison = [0.0_f32; 8];
            for part in block.as_chunks::<8>().0 {
                for lane in 0..8 {
                    let magnitude = part[lane].abs();
                    largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
                    poison[lane] += part[lane] * 0.0;
                }
            }
            let max = largest.iter().fold(0.0_f32, |a, &b| a.max(b));
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            let mut integers = [0_i32; BLOCK];
            for k in 0..BLOCK {
                integers[k] = round(block[k] * inverse);
            }
            for k in 0..BLOCK {
                quants[k] = integers[k] as i8;
            }
            *total = integers.iter().sum();
            *scale = max / 127.0 + poison.iter().sum::<f32>();
            *sum = *scale * *total as f32;
        }
    }
}

both! {
    /// `out = values / rms(values) · weight`, with `epsilon` added to the mean square.
    pub fn rms_norm(values: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let mut squares = [0.0_f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                squares[lane] = chunk[lane].mul_add(chunk[lane], squares[lane]);
            }
        }
        for (lane, &value) in rest.iter().enumerate() {
            squares[lane] = value.mul_add(value, squares[lane]);
        }
        let scale = 1.0 / (total(&squares) / values.len() as f32 + epsilon).sqrt();
        for ((out, &value), &weight) in out.iter_mut().zip(values).zip(weight) {
            *out = value * scale * weight;
        }
    }
}

both! {
    /// `out += values`.
    pub fn add(values: &[f32], out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out += value;
        }
    }
}

both! {
    /// `out = gate / (1 + e^-gate) · up`: the SwiGLU activation.
    pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

both! {
    /// Turns consecutive pairs of `head` by the angles whose cosines and sines are given (RoPE, Su et al. 2021, in the
    /// interleaved order of GGUF files of this architecture).
    pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        for ((pair, &cos), &sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}

both! {
    /// The same for the pairs of one element of each half.
    pub fn rotate_halves(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let (first, second) = head.split_at_mut(head.len() / 2);
        for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

both! {
    /// Narrows floats to halves, to nearest even.
    pub fn to_halves(values: &[f32], out: &mut [u16]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = f16::from_f32(value).to_bits();
        }
    }
}

both! {
    /// Widens halves to floats.
    pub fn to_floats(values: &[u16], out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = f16::from_bits(value).to_f32();
        }
    }
}

both! {
    /// One block of a softmax over scores that come block by block (Milakov and Gimelshein 2018): turns `scores` into
    /// weights relative to the largest score so far, updates that and the running sum of weights, and says by how
    /// much what was accumulated before must be scaled.
    pub fn soften(scores: &mut [f32], largest: &mut f32, sum: &mut f32, rescale: &mut f32) {
        let mut maxima = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
            }
        }
        for (lane, &score) in rest.iter().enumerate() {
            maxima[lane] = if score > maxima[lane] { score } else { maxima[lane] };
        }
        let max = maxima.iter().fold(*largest, |a, &b| a.max(b));
        *rescale = exp(*largest - max);
        *largest = max;
        let mut sums = [0.0_f32; LANES];
        let (chunks, rest) = scores.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                chunk[lane] = exp(chunk[lane] - max);
                sums[lane] += chunk[lane];
            }
        }
        for (lane, score) in rest.iter_mut().enumerate() {
            *score = exp(*score - max);
            sums[lane] += *score;
        }
        *sum = sum.mul_add(*rescale, total(&sums));
    }
}

/// The sum of the lanes, halving their number each time.
#[inline(always)]
pub(super) fn total(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// 1.5 · 2^23: adding it leaves a small number's nearest integer in the low bits of the mantissa.
const ROUNDING: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of |value| < 2^22.
#[inline(always)]
pub(super) fn round(value: f32) -> i32 {
    ((value + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32)
}

/// e^x to about 2 units in the last place, 0 below -87 (after Cephes' expf). NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let n = clamped * std::f32::consts::LOG2_E + ROUNDING;
    let exponent = (n.to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
    let n = n - ROUNDING;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    let e = e * f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
    if x < -87.0 { 0.0 } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Isa;

    #[test]
    fn exp_is_exact_to_a_few_units() {
        for step in -8_700..8_800 {
            let x = step as f32 / 100.0;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / expected - 1.0).abs() < 3e-7, "exp({x}) = {got}, not {expected}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn quantised_rows_are_near_and_poison_spreads() {
        let kernels = Kernels::new(Isa::Scalar).expect("always there");
        let check = |values: [f32; BLOCK]| -> f32 {
            let (mut quants, mut scale, mut total, mut sum) = ([0_i8; BLOCK], [0.0], [0], [0.0]);
            quantise(kernels, &values, &mut quants, &mut scale, &mut total, &mut sum);
            for (&value, &quant) in values.iter().zip(&quants) {
                if scale[0].is_finite() {
                    assert!((value - scale[0] * f32::from(quant)).abs() <= scale[0] * 0.5001, "{value}");
                    assert!(quant != i8::MIN);
                }
            }
            assert!(!scale[0].is_finite() || total[0] == quants.iter().map(|&q| i32::from(q)).sum::<i32>());
            scale[0]
        };
        assert_eq!(check([0.0; BLOCK]), 0.0);
        assert_eq!(check(std::array::from_fn(|k| k as f32 * 8.0 - 127.0)), 1.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!check(std::array::from_fn(|k| if k == 7 { bad } else { 1.0 })).is_finite());
        }
    }

    /// Odd lengths, so that the rests are walked too.
    #[test]
    fn both_builds_give_equal_bits() {
        let Ok(wide) = Kernels::new(Isa::Avx2) else {
            return println!("skipped: this processor has no AVX2");
        };
        let plain = Kernels::new(Isa::Scalar).expect("always there");
        let values: Vec<f32> = (0..203).map(|n| ((n * 7919 % 1009) as f32 - 500.0) / 77.0).collect();
        let run = |kernels: Kernels| {
            let mut all = Vec::new();
            let mut out = vec![0.0; values.len()];
            rms_norm(kernels, &values, &values, 1e-5, &mut out);
            all.extend_from_slice(&out);
            swiglu(kernels, &values, &out, &mut vec![0.0; 203]);
            let (mut largest, mut sum, mut rescale) = (-3.0, 1.5, 0.0);
            soften(kernels, &mut out, &mut largest, &mut sum, &mut rescale);
            all.extend_from_slice(&out);
            all.extend([largest, sum, rescale]);
            let mut halves = vec![0; 203];
            to_halves(kernels, &values, &mut halves);
            to_floats(kernels, &halves, &mut out);
            all.extend_from_slice(&out);
            all.iter().map(|f| f.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(plain), run(wide));
    }
}
