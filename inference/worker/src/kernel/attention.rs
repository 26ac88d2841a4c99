//! Attention of a few query vectors over the keys and values of one sequence, block by block.
//!
//! Blocks hold [`POSITIONS`] positions and are walked in order, with a running softmax. Each query's arithmetic depends on
//! its own position only, so prefill in chunks of any size and decoding give equal bits. Many queries convert the halves of
//! a block once for all of them; few convert as they read. The numbers are the same.

use super::canvas::{Arena, KEYS, Side};
use super::{Kernels, vector};

pub use super::canvas::POSITIONS;

/// Queries from which on it pays to convert a block's keys and values first.
const MANY: usize = 12;

/// Where one head of one layer of one sequence finds its keys and values.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// The KV memory.
    pub arena: &'a Arena,
    /// The sequence's blocks, in order of positions.
    pub table: &'a [u32],
    /// Which layer.
    pub layer: usize,
    /// Which of its kv heads.
    pub head: usize,
}

/// Query vectors in, their attended values out.
#[derive(Debug, Default)]
pub struct Queries {
    /// `[query][element]`, scaled by 1/√width already.
    pub vectors: Vec<f32>,
    /// Positions each query may see: its own and those before.
    pub visible: Vec<usize>,
    /// `[query][element]`: the result.
    pub outputs: Vec<f32>,
    scores: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    largest: Vec<f32>,
    sums: Vec<f32>,
    rescales: Vec<f32>,
}

/// Keys or values of a block.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    Halves(&'a [u16]),
    Floats(&'a [f32]),
}

/// Attends with all `queries` over `head` and leaves the results in `queries.outputs`.
///
/// # Safety
/// Nobody writes the visible positions of this head meanwhile. Other positions of its last block may be written: what is
/// read of them is not used.
pub unsafe fn attend(kernels: Kernels, head: Head<'_>, queries: &mut Queries) {
    let Queries { vectors, visible, outputs, scores, keys, values, largest, sums, rescales } = queries;
    let (width, count) = (head.arena.width(), visible.len());
    assert!(vectors.len() == count * width, "queries have the width of the head");
    let last = visible.iter().copied().max().unwrap_or(0);
    let table = &head.table[..last.div_ceil(POSITIONS)];
    outputs.clear();
    outputs.resize(count * width, 0.0);
    largest.clear();
    largest.resize(count, f32::NEG_INFINITY);
    sums.clear();
    sums.resize(count, 0.0);
    rescales.resize(count, 0.0);
    scores.resize(count * POSITIONS, 0.0);
    let many = kernels.has_avx2() && count >= MANY;
    if many {
        keys.resize(POSITIONS * width, 0.0);
        values.resize(POSITIONS * width, 0.0);
    }
    for (n, &block) in table.iter().enumerate() {
        let start = n * POSITIONS;
        let filled = (last - start).min(POSITIONS);
        // SAFETY: nobody writes the positions that are used, by the contract.
        let (block_keys, block_values) = unsafe {
            (
                head.arena.read(block, head.layer, Side::Keys, head.head),
                head.arena.read(block, head.layer, Side::Values, head.head),
            )
        };
        let (block_keys, block_values) = match many {
            true => {
                vector::to_floats(kernels, &block_keys[..filled.next_multiple_of(2 * KEYS) * width], keys);
                vector::to_floats(kernels, &block_values[..filled * width], values);
                (Numbers::Floats(keys), Numbers::Floats(values))
            }
            false => (Numbers::Halves(block_keys), Numbers::Halves(block_values)),
        };
        let first = visible.iter().position(|&seen| seen > start).unwrap_or(count);
        score(kernels, block_keys, width, filled, &vectors[first * width..], &mut scores[first * POSITIONS..]);
        let seen = |query: usize| visible[query].saturating_sub(start).min(POSITIONS);
        for query in (first..count).filter(|&query| seen(query) > 0) {
            let weights = &mut scores[query * POSITIONS..][..seen(query)];
            let (largest, sum) = (&mut largest[query], &mut sums[query]);
            vector::soften(kernels, weights, largest, sum, &mut rescales[query]);
        }
        let mut query = first;
        while query < count {
            // Queries that see equally much of the block go together.
            let run = (query..count).take_while(|&other| seen(other) == seen(query)).take(4).count();
            let run = if run == 4 { 2 } else { run };
            if seen(query) > 0 {
                let weights = Weights { all: &scores[query * POSITIONS..], rescales: &rescales[query..][..run] };
                accumulate(kernels, weights, seen(query), block_values, &mut outputs[query * width..][..run * width]);
            }
            query += run;
        }
    }
    for (output, &sum) in outputs.chunks_exact_mut(width).zip(sums.iter()) {
        let scale = 1.0 / sum;
        output.iter_mut().for_each(|value| *value *= scale);
    }
}

/// `scores[query][position] = vectors[query] · keys[position]` for the first `filled` positions of a block.
fn score(kernels: Kernels, keys: Numbers<'_>, width: usize, filled: usize, vectors: &[f32], scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if kernels.has_avx2() {
        let count = vectors.len() / width;
        assert!(scores.len() >= count * POSITIONS);
        let pairs = filled.div_ceil(2 * KEYS);
        let mut query = 0;
        while query < count {
            let (vectors, scores) = (&vectors[query * width..], &mut scores[query * POSITIONS..]);
            // SAFETY: `kernels` proves AVX2, FMA and F16C; the slices hold as many queries as the number says.
            query += unsafe {
                match count - query {
                    1 => wide::score::<1>(keys, width, pairs, vectors, scores),
                    2 => wide::score::<2>(keys, width, pairs, vectors, scores),
                    3 => wide::score::<3>(keys, width, pairs, vectors, scores),
                    4 => wide::score::<4>(keys, width, pairs, vectors, scores),
                    5 => wide::score::<5>(keys, width, pairs, vectors, scores),
                    _ => wide::score::<6>(keys, width, pairs, vectors, scores),
                }
            };
        }
        return;
    }
    let Numbers::Halves(keys) = keys else { unreachable!("only AVX2 converts blocks") };
    for (vector, scores) in vectors.chunks_exact(width).zip(scores.chunks_exact_mut(POSITIONS)) {
        for (position, score) in scores[..filled].iter_mut().enumerate() {
            let keys = keys[position / KEYS * KEYS * width + position % KEYS..].iter().step_by(KEYS);
            *score =
                vector.iter().zip(keys).fold(0.0, |sum, (&q, &k)| q.mul_add(half::f16::from_bits(k).to_f32(), sum));
        }
    }
}

/// Weights of a few queries over a block.
#[derive(Clone, Copy)]
struct Weights<'a> {
    /// `[query][POSITIONS]`
    all: &'a [f32],
    /// What was accumulated before is multiplied by this.
    rescales: &'a [f32],
}

/// `outputs[q] = outputs[q] · rescale[q] + Σ weights[q][p] · values[p]` over the first `seen` positions; up to 3 queries.
fn accumulate(kernels: Kernels, weights: Weights<'_>, seen: usize, values: Numbers<'_>, outputs: &mut [f32]) {
    let count = weights.rescales.len();
    let width = outputs.len() / count;
    #[cfg(target_arch = "x86_64")]
    if kernels.has_avx2() {
        let mut element = 0;
        while element < width {
            let left = width - element;
            // SAFETY: `kernels` proves AVX2, FMA and F16C; the elements lie inside of `width`, a multiple of 8.
            element += unsafe {
                match (count, left) {
                    (1, 64..) => wide::accumulate::<1, 8>(weights, seen, values, outputs, element),
                    (1, 32..) => wide::accumulate::<1, 4>(weights, seen, values, outputs, element),
                    (1, _) => wide::accumulate::<1, 1>(weights, seen, values, outputs, element),
                    (2, 32..) => wide::accumulate::<2, 4>(weights, seen, values, outputs, element),
                    (2, _) => wide::accumulate::<2, 1>(weights, seen, values, outputs, element),
                    (_, 32..) => wide::accumulate::<3, 4>(weights, seen, values, outputs, element),
                    _ => wide::accumulate::<3, 1>(weights, seen, values, outputs, element),
                }
            };
        }
        return;
    }
    let Numbers::Halves(values) = values else { unreachable!("only AVX2 converts blocks") };
    for (query, output) in outputs.chunks_exact_mut(width).enumerate() {
        let (weights, rescale) = (&weights.all[query * POSITIONS..][..seen], weights.rescales[query]);
        for (element, out) in output.iter_mut().enumerate() {
            let column = values[element..].iter().step_by(width).map(|&v| half::f16::from_bits(v).to_f32());
            *out = weights.iter().zip(column).fold(*out * rescale, |sum, (&w, v)| w.mul_add(v, sum));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{KEYS, Numbers, POSITIONS, Weights};
    use std::arch::x86_64::*;

    /// Eight numbers.
    trait Eight: Copy {
        /// # Safety
        /// The processor has AVX2 and F16C; eight numbers lie there.
        unsafe fn load(from: *const Self) -> __m256;
    }

    impl Eight for u16 {
        #[inline(always)]
        unsafe fn load(from: *const u16) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }
    }

    impl Eight for f32 {
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { _mm256_loadu_ps(from) }
        }
    }

    /// `Q` queries over `pairs` pairs of eight positions; gives back `Q`.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn score<const Q: usize>(
        keys: Numbers<'_>,
        width: usize,
        pairs: usize,
        vectors: &[f32],
        scores: &mut [f32],
    ) -> usize {
        // SAFETY: the features are those of this function.
        unsafe {
            match keys {
                Numbers::Halves(keys) => score_of::<u16, Q>(keys, width, pairs, vectors, scores),
                Numbers::Floats(keys) => score_of::<f32, Q>(keys, width, pairs, vectors, scores),
            }
        }
        Q
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn score_of<T: Eight, const Q: usize>(
        keys: &[T],
        width: usize,
        pairs: usize,
        vectors: &[f32],
        scores: &mut [f32],
    ) {
        assert!(keys.len() >= pairs * 2 * KEYS * width && pairs * 2 * KEYS <= POSITIONS, "keys of all positions");
        assert!(vectors.len() >= Q * width && scores.len() >= Q * POSITIONS, "as many queries");
        for pair in 0..pairs {
            // SAFETY: the two rows of keys, the queries and the scores lie inside of the slices, checked above.
            unsafe {
                let first = keys.as_ptr().add(pair * 2 * KEYS * width);
                let second = first.add(KEYS * width);
                let mut sums = [[_mm256_setzero_ps(); 2]; Q];
                for element in 0..width {
                    let (a, b) = (T::load(first.add(element * KEYS)), T::load(second.add(element * KEYS)));
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
    }

    /// `Q` queries, `N` registers of elements from `element`; gives back how many elements that were.
    ///
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn accumulate<const Q: usize, const N: usize>(
        weights: Weights<'_>,
        seen: usize,
        values: Numbers<'_>,
        outputs: &mut [f32],
        element: usize,
    ) -> usize {
        // SAFETY: the features are those of this function.
        unsafe {
            match values {
                Numbers::Halves(values) => accumulate_of::<u16, Q, N>(weights, seen, values, outputs, element),
                Numbers::Floats(values) => accumulate_of::<f32, Q, N>(weights, seen, values, outputs, element),
            }
        }
        8 * N
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn accumulate_of<T: Eight, const Q: usize, const N: usize>(
        weights: Weights<'_>,
        seen: usize,
        values: &[T],
        outputs: &mut [f32],
        element: usize,
    ) {
        let width = outputs.len() / Q;
        assert!(
            element + 8 * N <= width && values.len() >= seen * width && seen <= POSITIONS,
            "values of all positions"
        );
        assert!(weights.all.len() >= Q * POSITIONS && weights.rescales.len() >= Q, "as many queries");
        // SAFETY: all accesses lie inside of the slices, checked above.
        unsafe {
            let out = outputs.as_mut_ptr().add(element);
            let mut sums = [[_mm256_setzero_ps(); N]; Q];
            for (q, sums) in sums.iter_mut().enumerate() {
                let rescale = _mm256_set1_ps(*weights.rescales.as_ptr().add(q));
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_mul_ps(_mm256_loadu_ps(out.add(q * width + n * 8)), rescale);
                }
            }
            for position in 0..seen {
                let row = values.as_ptr().add(position * width + element);
                let weight: [__m256; Q] =
                    std::array::from_fn(|q| _mm256_set1_ps(*weights.all.as_ptr().add(q * POSITIONS + position)));
                for n in 0..N {
                    let value = T::load(row.add(n * 8));
                    for q in 0..Q {
                        sums[q][n] = _mm256_fmadd_ps(weight[q], value, sums[q][n]);
                    }
                }
            }
            for (q, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    _mm256_storeu_ps(out.add(q * width + n * 8), sum);
                }
            }
        }
    }
}
