//! Matrix products with AVX512-VNNI.
//!
//! A register holds sixteen outputs; `vpdpbusd` multiplies four consecutive inputs of each, unsigned, by the same four
//! activations, signed, and adds them to 32 bits. Q8_0 weights are made unsigned by adding 128, which is taken back by
//! starting from -128 times the block's total of activations.
//!
//! The kernel is written over [`Wide`], the few operations it needs. One implementation is the intrinsics; another, for
//! the tests, spells out in plain Rust what each does, so that the layout and the arithmetic are tested on processors
//! without AVX512 too.

use super::pack::{Format, Packed};
use super::{Activations, BLOCK};

/// Outputs of a register.
const LANES: usize = 16;

/// Operations on registers of sixteen 32-bit lanes.
///
/// # Safety
/// Callers make sure that the processor has the features of the implementation, and that pointers are readable for the
/// bytes named.
trait Wide {
    /// Sixteen `f32`.
    type Floats: Copy;
    /// Sixteen `i32`, or 64 bytes.
    type Integers: Copy;
    /// Sixteen zeros.
    unsafe fn zero() -> Self::Floats;
    /// The same float in all lanes.
    unsafe fn splat(value: f32) -> Self::Floats;
    /// The same integer in all lanes.
    unsafe fn splat_i32(value: i32) -> Self::Integers;
    /// 64 bytes.
    unsafe fn load(from: *const u8) -> Self::Integers;
    /// Sixteen halves, widened.
    unsafe fn load_halves(from: *const u16) -> Self::Floats;
    /// The low four bits of every byte.
    unsafe fn low_nibbles(bytes: Self::Integers) -> Self::Integers;
    /// The high four bits of every byte, moved down.
    unsafe fn high_nibbles(bytes: Self::Integers) -> Self::Integers;
    /// Every signed byte plus 128, as unsigned.
    unsafe fn bias(bytes: Self::Integers) -> Self::Integers;
    /// `sum` plus, per lane, the four products of unsigned bytes `w` and signed bytes `x`.
    unsafe fn dot(sum: Self::Integers, w: Self::Integers, x: Self::Integers) -> Self::Integers;
    /// Integers as floats.
    unsafe fn float(integers: Self::Integers) -> Self::Floats;
    /// `a · b`.
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sixteen floats.
    unsafe fn store(floats: Self::Floats) -> [f32; LANES];
}

#[cfg(target_arch = "x86_64")]
mod intrinsics {
    use super::{LANES, Wide};
    use std::arch::x86_64::*;

    /// [`Wide`] on a processor that has AVX512 F, BW and VNNI.
    pub(super) struct Vnni;

    // SAFETY: (all methods) the caller has the features and readable pointers, by the contract of `Wide`.
    impl Wide for Vnni {
        type Floats = __m512;
        type Integers = __m512i;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn splat_i32(value: i32) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_set1_epi32(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn load_halves(from: *const u16) -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn low_nibbles(bytes: __m512i) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn high_nibbles(bytes: __m512i) -> __m512i {
            // SAFETY: see the contract of `Wide`. Bits that cross from the neighbouring byte are masked away.
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        unsafe fn bias(bytes: __m512i) -> __m512i {
            // SAFETY: see the contract of `Wide`. Adding 128 modulo 256 flips the top bit.
            unsafe { _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_dpbusd_epi32(sum, w, x) }
        }
        #[inline(always)]
        unsafe fn float(integers: __m512i) -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_cvtepi32_ps(integers) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn store(floats: __m512) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            // SAFETY: see the contract of `Wide`; `out` has room for sixteen floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), floats) };
            out
        }
    }
}

/// See [`super::Kernels::multiply`], for weights packed for sixteen lanes.
///
/// # Safety
/// The processor has AVX512 F, BW, VL and VNNI; the shapes agree as `Kernels::multiply` checks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn multiply(weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
    // SAFETY: the features are those of this function; the shapes are the caller's promise.
    unsafe { rows::<intrinsics::Vnni>(weights, x, out, stride, column) }
}

/// The same on a processor without AVX512, for the tests.
#[cfg(test)]
pub(super) fn multiply_emulated(weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
    assert!(weights.inputs() == x.width() && x.rows() * stride <= out.len() && weights.lanes() == LANES);
    // SAFETY: the emulation needs no features; the shapes were checked.
    unsafe { rows::<emulation::Plain>(weights, x, out, stride, column) }
}

/// # Safety
/// The contract of [`Wide`]; the shapes agree.
#[inline(always)]
unsafe fn rows<W: Wide>(weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
    let (rows, groups) = (x.rows(), weights.groups());
    let mut group = 0;
    while group < groups {
        // Few rows take several groups at a time, to have enough independent sums in flight.
        let together = match rows {
            1 if group + 4 <= groups => 4,
            1..=2 if group + 2 <= groups => 2,
            _ => 1,
        };
        let mut row = 0;
        while row < rows {
            let place = Place { group, row, stride, column };
            // SAFETY: rows and groups lie inside of the shapes; the rest is the caller's promise.
            row += unsafe {
                match (rows - row, together) {
                    (1, 4) => tile::<W, 1, 4>(weights, x, place, out),
                    (1, 2) => tile::<W, 1, 2>(weights, x, place, out),
                    (2, 2) => tile::<W, 2, 2>(weights, x, place, out),
                    (8.., _) => tile::<W, 8, 1>(weights, x, place, out),
                    (4.., _) => tile::<W, 4, 1>(weights, x, place, out),
                    (2.., _) => tile::<W, 2, 1>(weights, x, place, out),
                    _ => tile::<W, 1, 1>(weights, x, place, out),
                }
            };
        }
        group += together;
    }
}

#[derive(Clone, Copy)]
struct Place {
    group: usize,
    row: usize,
    stride: usize,
    column: usize,
}

/// `R` rows × `G` groups from `place`; gives back `R`.
///
/// # Safety
/// The contract of [`Wide`]; rows and groups lie inside of the shapes.
#[inline(always)]
unsafe fn tile<W: Wide, const R: usize, const G: usize>(
    weights: &Packed,
    x: &Activations,
    place: Place,
    out: &mut [f32],
) -> usize {
    let Place { group, row, stride, column } = place;
    let inputs = weights.inputs();
    let blocks = inputs / BLOCK;
    // SAFETY: `Packed` holds groups × blocks × (16·16 or 16·32 bytes of quants, 32 or 16 halves) and `Activations`
    // rows × blocks × (32 quants, a scale, a total, a sum); all indexes below stay inside.
    unsafe {
        let mut sums = [[W::zero(); R]; G];
        for block in 0..blocks {
            for g in 0..G {
                let quants = weights.quants(group + g).as_ptr();
                let scales = weights.scales(group + g).as_ptr();
                let activation = |r: usize, k: usize| {
                    let at = x.quants.as_ptr().add((row + r) * inputs + block * BLOCK + k);
                    W::splat_i32(at.cast::<i32>().read_unaligned())
                };
                let at = |r: usize| (row + r) * blocks + block;
                match weights.format() {
                    Format::Q4_1 => {
                        let mut wide = [W::splat_i32(0); R];
                        for vector in 0..4 {
                            let both = W::load(quants.add(block * 256 + vector * 64));
                            let (first, second) = (W::low_nibbles(both), W::high_nibbles(both));
                            for (r, wide) in wide.iter_mut().enumerate() {
                                *wide = W::dot(*wide, first, activation(r, vector * 8));
                                *wide = W::dot(*wide, second, activation(r, vector * 8 + 4));
                            }
                        }
                        let d = W::load_halves(scales.add(block * 2 * LANES));
                        let m = W::load_halves(scales.add(block * 2 * LANES + LANES));
                        for r in 0..R {
                            let scale = W::mul(d, W::splat(*x.scales.as_ptr().add(at(r))));
                            sums[g][r] = W::fma(W::float(wide[r]), scale, sums[g][r]);
                            sums[g][r] = W::fma(m, W::splat(*x.sums.as_ptr().add(at(r))), sums[g][r]);
                        }
                    }
                    Format::Q8_0 => {
                        let mut wide: [W::Integers; R] =
                            std::array::from_fn(|r| W::splat_i32(-128 * *x.totals.as_ptr().add(at(r))));
                        for vector in 0..8 {
                            let w = W::bias(W::load(quants.add(block * 512 + vector * 64)));
                            for (r, wide) in wide.iter_mut().enumerate() {
                                *wide = W::dot(*wide, w, activation(r, vector * 4));
                            }
                        }
                        let d = W::load_halves(scales.add(block * LANES));
                        for r in 0..R {
                            let scale = W::mul(d, W::splat(*x.scales.as_ptr().add(at(r))));
                            sums[g][r] = W::fma(W::float(wide[r]), scale, sums[g][r]);
                        }
                    }
                }
            }
        }
        for (g, sums) in sums.iter().enumerate() {
            let first = (group + g) * LANES;
            let count = LANES.min(weights.outputs() - first);
            for (r, &sum) in sums.iter().enumerate() {
                let target = &mut out[(row + r) * stride + column + first..][..count];
                target.copy_from_slice(&W::store(sum)[..count]);
            }
        }
    }
    R
}

#[cfg(test)]
mod emulation {
    use super::{LANES, Wide};
    use half::f16;

    /// [`Wide`] spelled out after the descriptions of the instructions.
    pub(super) struct Plain;

    fn bytes(integers: [i32; LANES], change: impl Fn(u8) -> u8) -> [i32; LANES] {
        integers.map(|i| i32::from_le_bytes(i.to_le_bytes().map(&change)))
    }

    impl Wide for Plain {
        type Floats = [f32; LANES];
        type Integers = [i32; LANES];
        unsafe fn zero() -> [f32; LANES] {
            [0.0; LANES]
        }
        unsafe fn splat(value: f32) -> [f32; LANES] {
            [value; LANES]
        }
        unsafe fn splat_i32(value: i32) -> [i32; LANES] {
            [value; LANES]
        }
        unsafe fn load(from: *const u8) -> [i32; LANES] {
            // SAFETY: the caller promises 64 readable bytes.
            unsafe { from.cast::<[i32; LANES]>().read_unaligned() }
        }
        unsafe fn load_halves(from: *const u16) -> [f32; LANES] {
            // SAFETY: the caller promises 16 readable halves.
            unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
        }
        unsafe fn low_nibbles(integers: [i32; LANES]) -> [i32; LANES] {
            bytes(integers, |b| b & 15)
        }
        unsafe fn high_nibbles(integers: [i32; LANES]) -> [i32; LANES] {
            bytes(integers, |b| b >> 4)
        }
        unsafe fn bias(integers: [i32; LANES]) -> [i32; LANES] {
            bytes(integers, |b| b.wrapping_add(128))
        }
        unsafe fn dot(sum: [i32; LANES], w: [i32; LANES], x: [i32; LANES]) -> [i32; LANES] {
            std::array::from_fn(|lane| {
                let (w, x) = (w[lane].to_le_bytes(), x[lane].to_le_bytes());
                (0..4).fold(sum[lane], |sum, t| sum + i32::from(w[t]) * i32::from(x[t] as i8))
            })
        }
        unsafe fn float(integers: [i32; LANES]) -> [f32; LANES] {
            integers.map(|i| i as f32)
        }
        unsafe fn mul(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
            std::array::from_fn(|lane| a[lane] * b[lane])
        }
        unsafe fn fma(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
            std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
        }
        unsafe fn store(floats: [f32; LANES]) -> [f32; LANES] {
            floats
        }
    }
}
