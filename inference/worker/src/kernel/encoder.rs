//! The small loops of an encoder: sums with layer norm, GELU, and attention in both directions over one short text.
//!
//! Everything is in f32. What comes out for one row depends on the rows of its own text only, and on nothing that is
//! computed beside it.

use super::Kernels;
use super::vector::{LANES, both, exp, total};

/// Queries that attend together, so that keys and values are read once for all of them.
const QUERIES: usize = 4;

both! {
    /// `residual = norm(residual + values) · weight + shift`, where `norm` takes the mean away and divides by the
    /// standard deviation, with `epsilon` added to the variance. Widths are multiples of 16.
    pub fn add_norm(values: &[f32], weight: &[f32], shift: &[f32], epsilon: f32, residual: &mut [f32]) {
        let width = residual.len() as f32;
        let mut sums = [0.0_f32; LANES];
        for (residual, values) in residual.as_chunks_mut::<LANES>().0.iter_mut().zip(values.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                residual[lane] += values[lane];
                sums[lane] += residual[lane];
            }
        }
        let mean = total(&sums) / width;
        let mut squares = [0.0_f32; LANES];
        for residual in residual.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                let off = residual[lane] - mean;
                squares[lane] = off.mul_add(off, squares[lane]);
            }
        }
        let scale = 1.0 / (total(&squares) / width + epsilon).sqrt();
        for ((value, &weight), &shift) in residual.iter_mut().zip(weight).zip(shift) {
            *value = ((*value - mean) * scale).mul_add(weight, shift);
        }
    }
}

both! {
    /// `values = gelu(values)`, with `gelu(x) = x · Φ(x)` by the error function (Hendrycks and Gimpel 2016).
    pub fn gelu(values: &mut [f32]) {
        for value in values {
            let x = *value;
            *value = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// The error function to 2e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let z = x.abs();
    let t = 1.0 / 0.327_591_1_f32.mul_add(z, 1.0);
    let mut p = 1.061_405_4_f32;
    p = p.mul_add(t, -1.453_152);
    p = p.mul_add(t, 1.421_413_8);
    p = p.mul_add(t, -0.284_496_74);
    p = p.mul_add(t, 0.254_829_6);
    let magnitude = (-p * t).mul_add(exp(-z * z), 1.0);
    magnitude.copysign(x)
}

/// One head of one text: its queries, keys and values, gathered from the rows they were computed in.
#[derive(Debug, Default)]
pub struct TextHead {
    count: usize,
    width: usize,
    /// `[query][element]`, scaled by 1/√width; as many queries as make whole groups.
    queries: Vec<f32>,
    /// `[position / 16][element][position % 16]`
    keys: Vec<f32>,
    /// `[position][element]`
    values: Vec<f32>,
    /// `[query of a group][position]`
    scores: Vec<f32>,
}

impl TextHead {
    /// Gathers from `rows`, of `stride` floats each: queries, keys and values side by side, a third of a row each. The
    /// head is the `width` elements (a multiple of 16) at `column` of each third.
    pub fn gather(&mut self, rows: &[f32], stride: usize, column: usize, width: usize) {
        assert!(width.is_multiple_of(LANES) && stride.is_multiple_of(3) && column + width <= stride / 3);
        let third = stride / 3;
        let count = rows.len() / stride;
        let padded = count.next_multiple_of(LANES);
        (self.count, self.width) = (count, width);
        self.queries.clear();
        self.queries.resize(count.next_multiple_of(QUERIES) * width, 0.0);
        self.keys.resize(padded * width, 0.0);
        self.values.resize(count * width, 0.0);
        self.scores.resize(QUERIES * padded, 0.0);
        let scale = 1.0 / (width as f32).sqrt();
        let part = |row: usize, part: usize| &rows[row * stride + part * third + column..][..width];
        for row in 0..count {
            let query = self.queries[row * width..][..width].iter_mut();
            query.zip(part(row, 0)).for_each(|(to, from)| *to = from * scale);
            let key = self.keys[row / LANES * LANES * width + row % LANES..].iter_mut().step_by(LANES);
            key.zip(part(row, 1)).for_each(|(to, from)| *to = *from);
            let value = self.values[row * width..][..width].iter_mut();
            value.zip(part(row, 2)).for_each(|(to, from)| *to = *from);
        }
    }

    /// Attends with all queries over all positions; writes the result of each to its row of `out`, of `stride` floats, at
    /// `column`.
    pub fn attend(&mut self, kernels: Kernels, out: &mut [f32], stride: usize, column: usize) {
        let padded = self.count.next_multiple_of(LANES);
        for first in (0..self.count).step_by(QUERIES) {
            let queries = &self.queries[first * self.width..][..QUERIES * self.width];
            score(kernels, queries, &self.keys, &mut self.scores);
            let rows = QUERIES.min(self.count - first);
            soften(kernels, &mut self.scores, padded, self.count);
            let out = &mut out[first * stride..];
            mix(kernels, &self.scores, padded, &self.values, self.width, rows, out, stride, column);
        }
    }
}

both! {
    /// `scores[query][position] = queries[query] · keys[position]` for a group of queries.
    fn score(queries: &[f32], keys: &[f32], scores: &mut [f32]) {
        let width = queries.len() / QUERIES;
        let padded = scores.len() / QUERIES;
        for (block, keys) in keys.chunks_exact(width * LANES).enumerate() {
            let mut sums = [[0.0_f32; LANES]; QUERIES];
            for (element, keys) in keys.as_chunks::<LANES>().0.iter().enumerate() {
                for query in 0..QUERIES {
                    let x = queries[query * width + element];
                    for lane in 0..LANES {
                        sums[query][lane] = x.mul_add(keys[lane], sums[query][lane]);
                    }
                }
            }
            for query in 0..QUERIES {
                scores[query * padded + block * LANES..][..LANES].copy_from_slice(&sums[query]);
            }
        }
    }
}

both! {
    /// The softmax of each row of `padded` scores, over its first `count`; those behind become 0.
    fn soften(scores: &mut [f32], padded: usize, count: usize) {
        for row in scores.chunks_exact_mut(padded) {
            row[count..].fill(f32::NEG_INFINITY);
            let mut maxima = [f32::NEG_INFINITY; LANES];
            for chunk in row.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
                }
            }
            let max = maxima.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let mut sums = [0.0_f32; LANES];
            for chunk in row.as_chunks_mut::<LANES>().0 {
                for lane in 0..LANES {
                    chunk[lane] = exp(chunk[lane] - max);
                    sums[lane] += chunk[lane];
                }
            }
            let scale = 1.0 / total(&sums);
            row.iter_mut().for_each(|weight| *weight *= scale);
        }
    }
}

both! {
    /// `out[query] = Σ weights[query][position] · values[position]` for the first `rows` queries of a group.
    #[allow(clippy::too_many_arguments, reason = "one loop, compiled twice; a struct would only rename its bounds")]
    fn mix(
        weights: &[f32],
        padded: usize,
        values: &[f32],
        width: usize,
        rows: usize,
        out: &mut [f32],
        stride: usize,
        column: usize,
    ) {
        for start in (0..width).step_by(LANES) {
            let mut sums = [[0.0_f32; LANES]; QUERIES];
            for (position, value) in values.chunks_exact(width).enumerate() {
                let Some(value) = value[start..].first_chunk::<LANES>() else { continue };
                for query in 0..QUERIES {
                    let weight = weights[query * padded + position];
                    for lane in 0..LANES {
                        sums[query][lane] = weight.mul_add(value[lane], sums[query][lane]);
                    }
                }
            }
            for query in 0..rows {
                out[query * stride + column + start..][..LANES].copy_from_slice(&sums[query]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Isa;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|n| (((n + seed) * 7919 % 1009) as f32 - 500.0) / 250.0).collect()
    }

    /// The error function as the sum of its series, in f64.
    fn exact(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn gelu_is_exact_enough() {
        let kernels = Kernels::choose().expect("kernels");
        for step in -500..500 {
            let x = step as f32 / 100.0;
            let mut got = [x];
            gelu(kernels, &mut got);
            let expected = 0.5 * f64::from(x) * (1.0 + exact(f64::from(x) / std::f64::consts::SQRT_2));
            assert!((f64::from(got[0]) - expected).abs() < 1e-6, "gelu({x}) = {}, not {expected}", got[0]);
        }
        let mut got = [f32::NAN, 30.0, -30.0];
        gelu(kernels, &mut got);
        assert!(got[0].is_nan() && got[1] == 30.0 && got[2] == 0.0, "{got:?}");
    }

    /// Against the definition in f64; as many positions as fill no block, exactly one, and more.
    #[test]
    fn heads_attend_to_all_of_their_text_and_nothing_else() {
        let (heads, width) = (2, 32);
        let stride = 3 * heads * width;
        let kernels = Kernels::choose().expect("kernels");
        let mut text = TextHead::default();
        for count in [1, 3, 16, 17, 50, 2] {
            let rows = numbers(count * stride, count);
            let mut out = vec![0.0; count * heads * width];
            for head in 0..heads {
                text.gather(&rows, stride, head * width, width);
                text.attend(kernels, &mut out, heads * width, head * width);
            }
            let at = |row: usize, part: usize, k: usize| f64::from(rows[row * stride + part * heads * width + k]);
            for query in 0..count {
                for k in 0..heads * width {
                    let head = k / width * width;
                    let score = |row: usize| {
                        let dot: f64 = (head..head + width).map(|e| at(query, 0, e) * at(row, 1, e)).sum();
                        (dot / (width as f64).sqrt()).exp()
                    };
                    let sum: f64 = (0..count).map(score).sum();
                    let expected: f64 = (0..count).map(|row| score(row) / sum * at(row, 2, k)).sum();
                    let got = f64::from(out[query * heads * width + k]);
                    assert!((got - expected).abs() < 1e-4, "{count} rows, query {query}, {k}: {got}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn both_builds_give_equal_bits() {
        let Ok(wide) = Kernels::new(Isa::Avx2) else {
            return println!("skipped: this processor has no AVX2");
        };
        let run = |kernels: Kernels| {
            let (stride, count) = (96, 19);
            let mut all = numbers(96, 5);
            add_norm(kernels, &numbers(96, 1), &numbers(96, 2), &numbers(96, 3), 1e-12, &mut all);
            gelu(kernels, &mut all);
            let mut text = TextHead::default();
            text.gather(&numbers(count * stride, 8), stride, 0, 32);
            let mut out = vec![0.0; count * 32];
            text.attend(kernels, &mut out, 32, 0);
            all.extend_from_slice(&out);
            all.iter().map(|f| f.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(Kernels::new(Isa::Scalar).expect("always there")), run(wide));
    }
}
