//! Attention of a few query vectors over the keys and values of one sequence.
//!
//! Positions are walked in blocks of [`POSITIONS`] that start at multiples of it, with a running softmax. Each query's
//! arithmetic depends on its own position only, so prefill in chunks of any size and decoding give equal bits.

use super::{Kernels, vector};

/// Positions of a block.
pub const POSITIONS: usize = 64;
/// Positions whose keys are interleaved, so that a register holds one element of eight keys.
const KEYS: usize = 8;

/// Where one head of one layer of one sequence keeps its keys and values, as halves.
///
/// Keys: `[position / 8][element][position % 8]`; values: `[position][element]`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// Elements of a key, a value and a query; a multiple of 8.
    pub width: usize,
    /// Interleaved keys, of a multiple of [`POSITIONS`] positions.
    pub keys: &'a [u16],
    /// Values of as many positions.
    pub values: &'a [u16],
}

/// A query vector in, its attended value out.
#[derive(Debug, Default)]
pub struct Queries {
    /// `[query][element]`, scaled by 1/√width already.
    pub vectors: Vec<f32>,
    /// Positions each query may see: its own and those before.
    pub visible: Vec<usize>,
    /// `[query][element]`: the result.
    pub outputs: Vec<f32>,
    scores: Vec<f32>,
    values: Vec<f32>,
    largest: Vec<f32>,
    sums: Vec<f32>,
}

/// Puts `key` (halves) at `position` of interleaved keys.
pub fn put_key(keys: &mut [u16], position: usize, key: &[u16]) {
    let block = &mut keys[position / KEYS * KEYS * key.len()..][..KEYS * key.len()];
    for (slot, &element) in block[position % KEYS..].iter_mut().step_by(KEYS).zip(key) {
        *slot = element;
    }
}

/// Attends with all `queries` over `head` and leaves the results in `queries.outputs`.
pub fn attend(kernels: Kernels, head: Head<'_>, queries: &mut Queries) {
    let Queries { vectors, visible, outputs, scores, values, largest, sums } = queries;
    let (width, count) = (head.width, visible.len());
    assert!(width.is_multiple_of(8) && vectors.len() == count * width, "queries have the width of the head");
    let last = visible.iter().copied().max().unwrap_or(0);
    let capacity = last.next_multiple_of(POSITIONS) * width;
    assert!(head.keys.len() >= capacity && head.values.len() >= capacity, "visible positions exist");
    outputs.clear();
    outputs.resize(count * width, 0.0);
    largest.clear();
    largest.resize(count, f32::NEG_INFINITY);
    sums.clear();
    sums.resize(count, 0.0);
    scores.resize(count * POSITIONS, 0.0);
    values.resize(POSITIONS * width, 0.0);
    for start in (0..last).step_by(POSITIONS) {
        score(kernels, &head.keys[start * width..][..POSITIONS * width], width, vectors, scores);
        let filled = (last - start).min(POSITIONS);
        vector::to_floats(kernels, &head.values[start * width..][..filled * width], values);
        for query in 0..count {
            let seen = visible[query].saturating_sub(start).min(POSITIONS);
            if seen == 0 {
                continue;
            }
            let weights = &mut scores[query * POSITIONS..][..seen];
            let mut rescale = 0.0;
            vector::soften(kernels, weights, &mut largest[query], &mut sums[query], &mut rescale);
            accumulate(kernels, weights, values, rescale, &mut outputs[query * width..][..width]);
        }
    }
    for (output, &sum) in outputs.chunks_exact_mut(width).zip(sums.iter()) {
        let scale = 1.0 / sum;
        output.iter_mut().for_each(|value| *value *= scale);
    }
}

/// `scores[query][position] = vectors[query] · keys[position]` for one block.
fn score(kernels: Kernels, keys: &[u16], width: usize, vectors: &[f32], scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if kernels.has_avx2() {
        let count = vectors.len() / width;
        assert!(keys.len() >= POSITIONS * width && scores.len() >= count * POSITIONS);
        let mut query = 0;
        while query < count {
            let (vectors, scores) = (&vectors[query * width..], &mut scores[query * POSITIONS..]);
            // SAFETY: `kernels` proves AVX2, FMA and F16C; the slices hold as many queries as the number says.
            query += unsafe {
                match count - query {
                    1 => wide::score::<1>(keys, width, vectors, scores),
                    2 => wide::score::<2>(keys, width, vectors, scores),
                    3 => wide::score::<3>(keys, width, vectors, scores),
                    _ => wide::score::<4>(keys, width, vectors, scores),
                }
            };
        }
        return;
    }
    for (vector, scores) in vectors.chunks_exact(width).zip(scores.chunks_exact_mut(POSITIONS)) {
        for (position, score) in scores.iter_mut().enumerate() {
            let keys = keys[position / KEYS * KEYS * width + position % KEYS..].iter().step_by(KEYS);
            *score =
                vector.iter().zip(keys).fold(0.0, |sum, (&q, &k)| q.mul_add(half::f16::from_bits(k).to_f32(), sum));
        }
    }
}

/// `output = output · rescale + Σ weights[p] · values[p]`.
fn accumulate(kernels: Kernels, weights: &[f32], values: &[f32], rescale: f32, output: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if kernels.has_avx2() {
        let width = output.len();
        assert!(values.len() >= weights.len() * width);
        let mut element = 0;
        while element < width {
            // SAFETY: `kernels` proves AVX2 and FMA; the elements lie inside of `width`.
            element += unsafe {
                if element + 64 <= width {
                    wide::accumulate::<8>(weights, values, rescale, output, element)
                } else {
                    wide::accumulate::<1>(weights, values, rescale, output, element)
                }
            };
        }
        return;
    }
    let width = output.len();
    for (element, out) in output.iter_mut().enumerate() {
        let column = values[element..].iter().step_by(width);
        *out = weights.iter().zip(column).fold(*out * rescale, |sum, (&w, &v)| w.mul_add(v, sum));
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{KEYS, POSITIONS};
    use std::arch::x86_64::*;

    /// `Q` queries; gives back `Q`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C; `vectors` and `scores` hold `Q` queries, `keys` a block.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn score<const Q: usize>(
        keys: &[u16],
        width: usize,
        vectors: &[f32],
        scores: &mut [f32],
    ) -> usize {
        assert!(keys.len() >= POSITIONS * width && vectors.len() >= Q * width && scores.len() >= Q * POSITIONS);
        for pair in 0..POSITIONS / (2 * KEYS) {
            // SAFETY: the two rows of keys, the queries and the scores lie inside of the slices, checked above.
            unsafe {
                let first = keys.as_ptr().add(pair * 2 * KEYS * width);
                let second = first.add(KEYS * width);
                let mut sums = [[_mm256_setzero_ps(); 2]; Q];
                for element in 0..width {
                    let a = _mm256_cvtph_ps(_mm_loadu_si128(first.add(element * KEYS).cast()));
                    let b = _mm256_cvtph_ps(_mm_loadu_si128(second.add(element * KEYS).cast()));
                    for (query, sums) in sums.iter_mut().enumerate() {
                        let q = _mm256_set1_ps(*vectors.as_ptr().add(query * width + element));
                        sums[0] = _mm256_fmadd_ps(q, a, sums[0]);
                        sums[1] = _mm256_fmadd_ps(q, b, sums[1]);
                    }
                }
                for (query, sums) in sums.iter().enumerate() {
                    let at = scores.as_mut_ptr().add(query * POSITIONS + pair * 2 * KEYS);
                    _mm256_storeu_ps(at, sums[0]);
                    _mm256_storeu_ps(at.add(KEYS), sums[1]);
                }
            }
        }
        Q
    }

    /// `N` registers of elements from `element`; gives back how many elements that were.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; `element + 8 N` lies inside of `output`, `values` holds a row per weight.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn accumulate<const N: usize>(
        weights: &[f32],
        values: &[f32],
        rescale: f32,
        output: &mut [f32],
        element: usize,
    ) -> usize {
        let width = output.len();
        assert!(element + 8 * N <= width && values.len() >= weights.len() * width);
        // SAFETY: all accesses lie inside of the slices, checked above.
        unsafe {
            let out = output.as_mut_ptr().add(element);
            let rescale = _mm256_set1_ps(rescale);
            let mut sums: [__m256; N] =
                std::array::from_fn(|n| _mm256_mul_ps(_mm256_loadu_ps(out.add(n * 8)), rescale));
            for (position, &weight) in weights.iter().enumerate() {
                let row = values.as_ptr().add(position * width + element);
                let weight = _mm256_set1_ps(weight);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(weight, _mm256_loadu_ps(row.add(n * 8)), *sum);
                }
            }
            for (n, &sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(out.add(n * 8), sum);
            }
        }
        8 * N
    }
}
