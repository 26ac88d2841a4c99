//! Matrix products with AVX2 and FMA.
//!
//! A register holds eight outputs. `vpmaddubsw` multiplies four consecutive inputs of each by the same four activations
//! and adds pairs to 16 bits. For 4-bit weights the eight products of a block fit in those 16 bits (8 · 2 · 15 · 127 =
//! 30,480), so they are widened once per block. For Q8_0 one product nearly fills them (2 · 128 · 127 = 32,512), so each is
//! widened; for Q6_K that multiplies by the scale of its half block as well.
//!
//! Many rows go by in tiles of [`ROWS`]: the weights of a group stay in the first-level cache while all rows pass, and are
//! unpacked once per tile.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::canvas::Output;
use super::pack::{Format, Packed};
use super::{Activations, BLOCK};

/// Outputs of a register.
const LANES: usize = 8;
/// Rows of a tile, if there are as many.
const ROWS: usize = 4;
/// Formats as constants: kernels are compiled for each.
const Q4_0: u8 = 0;
const Q4_1: u8 = 1;
const Q4K: u8 = 2;
const Q8_0: u8 = 3;
const Q6K: u8 = 4;
const F16: u8 = 5;
const BF16: u8 = 6;
/// Words of scales in a superblock of Q4_K and Q6_K.
const Q4K_WORDS: usize = 10 * LANES;
const Q6K_WORDS: usize = 9 * LANES;

/// Where a tile of rows reads and writes.
struct Tile<'a> {
    weights: &'a Packed,
    x: &'a Activations,
    out: Output<'a>,
}

/// See [`super::Kernels::multiply_groups`], for weights packed for eight lanes.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the shapes agree and nobody else uses these columns, as there.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(weights: &Packed, x: &Activations, groups: Range<usize>, out: Output<'_>) {
    let tile = Tile { weights, x, out };
    // SAFETY: the contract is the caller's.
    unsafe {
        match weights.format() {
            Format::Q4_0 => walk::<Q4_0>(&tile, groups),
            Format::Q4_1 => walk::<Q4_1>(&tile, groups),
            Format::Q4K => walk::<Q4K>(&tile, groups),
            Format::Q8_0 => walk::<Q8_0>(&tile, groups),
            Format::Q6K => walk::<Q6K>(&tile, groups),
            Format::F16 => walk::<F16>(&tile, groups),
            Format::Bf16 => walk::<BF16>(&tile, groups),
        }
    }
}

/// Walks the groups and, for each, the rows in tiles.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn walk<const F: u8>(tile: &Tile<'_>, groups: Range<usize>) {
    let rows = tile.x.rows();
    let mut group = groups.start;
    while group < groups.end {
        // Few rows take two groups at a time, to have enough independent work in flight.
        let two = rows <= 2 && group + 2 <= groups.end;
        let mut row = 0;
        // SAFETY: rows and groups lie inside of the shapes; the features are those of this function.
        unsafe {
            while row + ROWS <= rows {
                pick::<F, ROWS, 1>(tile, group, row);
                row += ROWS;
            }
            match (rows - row, two) {
                (1, true) => pick::<F, 1, 2>(tile, group, row),
                (2, true) => pick::<F, 2, 2>(tile, group, row),
                (1, false) => pick::<F, 1, 1>(tile, group, row),
                (2, false) => pick::<F, 2, 1>(tile, group, row),
                (3, _) => pick::<F, 3, 1>(tile, group, row),
                _ => {}
            }
        }
        group += if two { 2 } else { 1 };
    }
}

/// `R` rows from `row` × `G` groups from `group`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn pick<const F: u8, const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize) {
    // SAFETY: the contract is the caller's.
    unsafe {
        match F {
            Q4_0 | Q4_1 | Q4K => nibbles::<F, R, G>(tile, group, row),
            Q8_0 | Q6K => bytes::<F, R, G>(tile, group, row),
            _ => floats::<F, R, G>(tile, group, row),
        }
    }
}

/// Scales and minima of a block, of eight outputs.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn scales_and_minima<const F: u8>(scales: *const u16, block: usize) -> (__m256, __m256) {
    // SAFETY: the caller has as many words of scales as the format says for all blocks up to this one.
    unsafe {
        match F {
            Q4_0 => {
                let d = _mm256_cvtph_ps(_mm_loadu_si128(scales.add(block * LANES).cast()));
                (d, _mm256_mul_ps(d, _mm256_set1_ps(-8.0)))
            }
            Q4_1 => {
                let both = scales.add(block * 2 * LANES);
                (
                    _mm256_cvtph_ps(_mm_loadu_si128(both.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(both.add(LANES).cast())),
                )
            }
            _ => {
                let words = scales.add(block / 8 * Q4K_WORDS);
                let d = _mm256_cvtph_ps(_mm_loadu_si128(words.cast()));
                let dm = _mm256_cvtph_ps(_mm_loadu_si128(words.add(LANES).cast()));
                let bytes = _mm_loadu_si128(words.add((2 + block % 8) * LANES).cast());
                let s = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
                let m = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
                (_mm256_mul_ps(d, s), _mm256_xor_ps(_mm256_mul_ps(dm, m), _mm256_set1_ps(-0.0)))
            }
        }
    }
}

/// 4-bit weights.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn nibbles<const F: u8, const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize) {
    let inputs = tile.weights.inputs();
    let blocks = inputs / BLOCK;
    let mut sums = [[_mm256_setzero_ps(); R]; G];
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    // SAFETY: `Packed` holds for each group blocks × 128 bytes of quants and the format's scales, `Activations` rows ×
    // blocks × (32 quants, a scale, a sum); group + G, row + R and block stay inside, so every access below does.
    unsafe {
        let quants: [*const u8; G] = std::array::from_fn(|g| tile.weights.quants(group + g).as_ptr());
        let scales: [*const u16; G] = std::array::from_fn(|g| tile.weights.scales(group + g).as_ptr());
        let x_quants = tile.x.quants.as_ptr().add(row * inputs);
        let x_scales = tile.x.scales.as_ptr().add(row * blocks);
        let x_sums = tile.x.sums.as_ptr().add(row * blocks);
        for block in 0..blocks {
            let mut wide = [[_mm256_setzero_si256(); R]; G];
            for g in 0..G {
                for vector in 0..4 {
                    let both = _mm256_loadu_si256(quants[g].add(block * 128 + vector * 32).cast());
                    let first = _mm256_and_si256(both, low);
                    let second = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                    for r in 0..R {
                        let x = x_quants.add(r * inputs + block * BLOCK + vector * 8);
                        let a = _mm256_maddubs_epi16(first, _mm256_set1_epi32(x.cast::<i32>().read_unaligned()));
                        let b =
                            _mm256_maddubs_epi16(second, _mm256_set1_epi32(x.add(4).cast::<i32>().read_unaligned()));
                        wide[g][r] = _mm256_add_epi16(wide[g][r], _mm256_add_epi16(a, b));
                    }
                }
            }
            for g in 0..G {
                let (d, m) = scales_and_minima::<F>(scales[g], block);
                for r in 0..R {
                    let integer = _mm256_cvtepi32_ps(_mm256_madd_epi16(wide[g][r], ones));
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*x_scales.add(r * blocks + block)));
                    sums[g][r] = _mm256_fmadd_ps(integer, scale, sums[g][r]);
                    let sum = _mm256_set1_ps(*x_sums.add(r * blocks + block));
                    sums[g][r] = _mm256_fmadd_ps(m, sum, sums[g][r]);
                }
            }
        }
        store(tile, group, row, &sums);
    }
}

/// 8-bit weights.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn bytes<const F: u8, const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize) {
    let inputs = tile.weights.inputs();
    let blocks = inputs / BLOCK;
    let mut sums = [[_mm256_setzero_ps(); R]; G];
    // SAFETY: as for 4-bit weights, with 256 bytes of quants per group and block.
    unsafe {
        let quants: [*const u8; G] = std::array::from_fn(|g| tile.weights.quants(group + g).as_ptr());
        let scales: [*const u16; G] = std::array::from_fn(|g| tile.weights.scales(group + g).as_ptr());
        let x_quants = tile.x.quants.as_ptr().add(row * inputs);
        let x_scales = tile.x.scales.as_ptr().add(row * blocks);
        for block in 0..blocks {
            let mut wide = [[_mm256_setzero_si256(); R]; G];
            for g in 0..G {
                // What pairs of products are multiplied by when they are widened.
                let factors = match F {
                    Q6K => half_scales(scales[g].add(block / 8 * Q6K_WORDS + (1 + block % 8) * LANES)),
                    _ => [_mm256_set1_epi16(1); 2],
                };
                for vector in 0..8 {
                    let w = _mm256_loadu_si256(quants[g].add(block * 256 + vector * 32).cast());
                    // |w| is unsigned, as the first factor must be; its sign goes to the activation.
                    let magnitude = _mm256_abs_epi8(w);
                    for r in 0..R {
                        let x = x_quants.add(r * inputs + block * BLOCK + vector * 4);
                        let x = _mm256_sign_epi8(_mm256_set1_epi32(x.cast::<i32>().read_unaligned()), w);
                        let product = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), factors[vector / 4]);
                        wide[g][r] = _mm256_add_epi32(wide[g][r], product);
                    }
                }
            }
            for g in 0..G {
                let at = if F == Q6K { block / 8 * Q6K_WORDS } else { block * LANES };
                let d = _mm256_cvtph_ps(_mm_loadu_si128(scales[g].add(at).cast()));
                for r in 0..R {
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*x_scales.add(r * blocks + block)));
                    sums[g][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide[g][r]), scale, sums[g][r]);
                }
            }
        }
        store(tile, group, row, &sums);
    }
}

/// The scales of both halves of a block of Q6_K, each twice in 16 bits per output.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn half_scales(words: *const u16) -> [__m256i; 2] {
    // SAFETY: the caller has eight words there.
    let bytes = unsafe { _mm_loadu_si128(words.cast()) };
    [bytes, _mm_srli_si128::<8>(bytes)].map(|bytes| {
        let wide = _mm256_and_si256(_mm256_cvtepi8_epi32(bytes), _mm256_set1_epi32(0xffff));
        _mm256_or_si256(wide, _mm256_slli_epi32::<16>(wide))
    })
}

/// Weights that are floats.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn floats<const F: u8, const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize) {
    let inputs = tile.weights.inputs();
    let mut sums = [[_mm256_setzero_ps(); R]; G];
    // SAFETY: `Packed` holds for each group inputs × 16 bytes, `Activations` rows × inputs values.
    unsafe {
        let weights: [*const u8; G] = std::array::from_fn(|g| tile.weights.quants(group + g).as_ptr());
        let values = tile.x.values.as_ptr().add(row * inputs);
        for k in 0..inputs {
            for g in 0..G {
                let halves = _mm_loadu_si128(weights[g].add(k * 2 * LANES).cast());
                let w = match F {
                    F16 => _mm256_cvtph_ps(halves),
                    _ => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))),
                };
                for r in 0..R {
                    sums[g][r] = _mm256_fmadd_ps(w, _mm256_set1_ps(*values.add(r * inputs + k)), sums[g][r]);
                }
            }
        }
        store(tile, group, row, &sums);
    }
}

/// Writes the sums of a tile; the last group may be a partial one.
///
/// # Safety
/// The processor has AVX2; the tile lies inside of the output.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store<const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize, sums: &[[__m256; R]; G]) {
    for (g, sums) in sums.iter().enumerate() {
        let first = (group + g) * LANES;
        let count = LANES.min(tile.weights.outputs() - first);
        for (r, &sum) in sums.iter().enumerate() {
            // SAFETY: the place is the caller's promise; `all` has room for eight floats.
            unsafe {
                if count == LANES {
                    _mm256_storeu_ps(tile.out.at(row + r, first), sum);
                } else {
                    let mut all = [0.0_f32; LANES];
                    _mm256_storeu_ps(all.as_mut_ptr(), sum);
                    tile.out.put(row + r, first, &all[..count]);
                }
            }
        }
    }
}
