//! Matrix products with AVX2 and FMA.
//!
//! A register holds eight outputs. `vpmaddubsw` multiplies four consecutive inputs of each by the same four activations
//! and adds pairs to 16 bits. For Q4_1 the eight products of a block fit in those 16 bits (8 · 2 · 15 · 127 = 30,480), so
//! they are widened once per block. For Q8_0 one product nearly fills them (2 · 128 · 127 = 32,512), so each is widened.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use super::pack::Packed;
use super::{Activations, BLOCK};

/// Outputs of a register.
const LANES: usize = 8;

/// Where a tile of rows reads and writes.
struct Tile<'a> {
    weights: &'a Packed,
    x: &'a Activations,
    stride: usize,
    column: usize,
}

macro_rules! multiply {
    ($name:ident, $tile:ident, $format:literal) => {
        /// See [`super::Kernels::multiply`], for
        #[doc = $format]
        /// weights packed for eight lanes.
        ///
        /// # Safety
        /// The processor has AVX2, FMA and F16C; the shapes agree as `Kernels::multiply` checks.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn $name(weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
            let tile = Tile { weights, x, stride, column };
            let (rows, groups) = (x.rows(), weights.groups());
            let mut group = 0;
            // A group stays in the first-level cache while all rows pass by. Few rows take two groups at a time, to
            // have enough independent work in flight.
            while group < groups {
                let two = rows % 4 <= 2 && rows < 4 && group + 2 <= groups;
                let mut row = 0;
                // SAFETY: rows and groups lie inside of the shapes; the features are those of this function.
                unsafe {
                    while row + 4 <= rows {
                        $tile::<4, 1>(&tile, group, row, out);
                        row += 4;
                    }
                    match (rows - row, two) {
                        (1, true) => $tile::<1, 2>(&tile, group, row, out),
                        (2, true) => $tile::<2, 2>(&tile, group, row, out),
                        (1, false) => $tile::<1, 1>(&tile, group, row, out),
                        (2, false) => $tile::<2, 1>(&tile, group, row, out),
                        (3, _) => $tile::<3, 1>(&tile, group, row, out),
                        _ => {}
                    }
                }
                group += if two { 2 } else { 1 };
            }
        }
    };
}

multiply!(multiply_q4_1, tile_q4_1, "Q4_1");
multiply!(multiply_q8_0, tile_q8_0, "Q8_0");

/// `R` rows from `row` × `G` groups from `group`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn tile_q4_1<const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize, out: &mut [f32]) {
    let inputs = tile.weights.inputs();
    let blocks = inputs / BLOCK;
    let mut sums = [[_mm256_setzero_ps(); R]; G];
    let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    // SAFETY: `Packed` holds groups × blocks × (128 bytes of quants, 16 halves) and `Activations` rows × blocks ×
    // (32 quants, a scale, a sum); group + G, row + R and block stay inside, so every access below does.
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
                let d = _mm256_cvtph_ps(_mm_loadu_si128(scales[g].add(block * 2 * LANES).cast()));
                let m = _mm256_cvtph_ps(_mm_loadu_si128(scales[g].add(block * 2 * LANES + LANES).cast()));
                for r in 0..R {
                    let integer = _mm256_cvtepi32_ps(_mm256_madd_epi16(wide[g][r], ones));
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*x_scales.add(r * blocks + block)));
                    sums[g][r] = _mm256_fmadd_ps(integer, scale, sums[g][r]);
                    let sum = _mm256_set1_ps(*x_sums.add(r * blocks + block));
                    sums[g][r] = _mm256_fmadd_ps(m, sum, sums[g][r]);
                }
            }
        }
        store(tile, group, row, &sums, out);
    }
}

/// `R` rows from `row` × `G` groups from `group`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn tile_q8_0<const R: usize, const G: usize>(tile: &Tile<'_>, group: usize, row: usize, out: &mut [f32]) {
    let inputs = tile.weights.inputs();
    let blocks = inputs / BLOCK;
    let mut sums = [[_mm256_setzero_ps(); R]; G];
    let ones = _mm256_set1_epi16(1);
    // SAFETY: as for Q4_1, with 256 bytes of quants and 8 halves per group and block.
    unsafe {
        let quants: [*const u8; G] = std::array::from_fn(|g| tile.weights.quants(group + g).as_ptr());
        let scales: [*const u16; G] = std::array::from_fn(|g| tile.weights.scales(group + g).as_ptr());
        let x_quants = tile.x.quants.as_ptr().add(row * inputs);
        let x_scales = tile.x.scales.as_ptr().add(row * blocks);
        for block in 0..blocks {
            let mut wide = [[_mm256_setzero_si256(); R]; G];
            for vector in 0..8 {
                for g in 0..G {
                    let w = _mm256_loadu_si256(quants[g].add(block * 256 + vector * 32).cast());
                    // |w| is unsigned, as the first factor must be; its sign goes to the activation.
                    let magnitude = _mm256_abs_epi8(w);
                    for r in 0..R {
                        let x = x_quants.add(r * inputs + block * BLOCK + vector * 4);
                        let x = _mm256_sign_epi8(_mm256_set1_epi32(x.cast::<i32>().read_unaligned()), w);
                        let product = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
                        wide[g][r] = _mm256_add_epi32(wide[g][r], product);
                    }
                }
            }
            for g in 0..G {
                let d = _mm256_cvtph_ps(_mm_loadu_si128(scales[g].add(block * LANES).cast()));
                for r in 0..R {
                    let scale = _mm256_mul_ps(d, _mm256_set1_ps(*x_scales.add(r * blocks + block)));
                    sums[g][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide[g][r]), scale, sums[g][r]);
                }
            }
        }
        store(tile, group, row, &sums, out);
    }
}

/// Writes the sums of a tile; the last group may be a partial one.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store<const R: usize, const G: usize>(
    tile: &Tile<'_>,
    group: usize,
    row: usize,
    sums: &[[__m256; R]; G],
    out: &mut [f32],
) {
    for (g, sums) in sums.iter().enumerate() {
        let first = (group + g) * LANES;
        let count = LANES.min(tile.weights.outputs() - first);
        for (r, &sum) in sums.iter().enumerate() {
            let target = &mut out[(row + r) * tile.stride + tile.column + first..][..count];
            if count == LANES {
                // SAFETY: `target` has room for eight floats.
                unsafe { _mm256_storeu_ps(target.as_mut_ptr(), sum) };
            } else {
                let mut all = [0.0_f32; LANES];
                // SAFETY: `all` has room for eight floats.
                unsafe { _mm256_storeu_ps(all.as_mut_ptr(), sum) };
                target.copy_from_slice(&all[..count]);
            }
        }
    }
}
