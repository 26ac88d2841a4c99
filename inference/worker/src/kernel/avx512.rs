//! Matrix products with AVX512-VNNI.
//!
//! A register holds sixteen outputs; `vpdpbusd` multiplies four consecutive inputs of each, unsigned, by the same four
//! activations, signed, and adds them to 32 bits. Q8_0 weights are made unsigned by adding 128, which is taken back by
//! starting from -128 times the block's total of activations; Q6_K weights too, for each half block.
//!
//! The kernel is written over [`Wide`], the few operations it needs. One implementation is the intrinsics; another, for
//! the tests, spells out in plain Rust what each does, so that the layout and the arithmetic are tested on processors
//! without AVX512 too.

use std::ops::Range;

use super::canvas::Output;
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
    /// Per lane, the product of integers.
    unsafe fn mul_i32(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Per lane, the sum of integers.
    unsafe fn add_i32(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Sixteen bytes, unsigned, widened.
    unsafe fn load_bytes(from: *const u8) -> Self::Integers;
    /// Sixteen bytes, signed, widened.
    unsafe fn load_signed(from: *const u8) -> Self::Integers;
    /// Sixteen upper halves of floats.
    unsafe fn load_upper(from: *const u16) -> Self::Floats;
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
        unsafe fn mul_i32(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_mullo_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn load_bytes(from: *const u8) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn load_signed(from: *const u8) -> __m512i {
            // SAFETY: see the contract of `Wide`.
            unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn load_upper(from: *const u16) -> __m512 {
            // SAFETY: see the contract of `Wide`.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
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

/// See [`super::Kernels::multiply_groups`], for weights packed for sixteen lanes.
///
/// # Safety
/// The processor has AVX512 F, BW, VL and VNNI; the shapes agree and nobody else uses these columns, as there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn multiply(weights: &Packed, x: &Activations, groups: Range<usize>, out: Output<'_>) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { walk::<intrinsics::Vnni>(weights, x, groups, out) }
}

/// The same on a processor without AVX512, for the tests.
#[cfg(test)]
pub(super) fn multiply_emulated(weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
    let out = Output::new(out, stride, column);
    assert!(weights.inputs() == x.width() && out.holds(x.rows(), weights.outputs()) && weights.lanes() == LANES);
    // SAFETY: the emulation needs no features; the shapes were checked; `out` was borrowed alone.
    unsafe { walk::<emulation::Plain>(weights, x, 0..weights.groups(), out) }
}

/// # Safety
/// The contract of [`Wide`]; the shapes agree.
#[inline(always)]
unsafe fn walk<W: Wide>(weights: &Packed, x: &Activations, groups: Range<usize>, out: Output<'_>) {
    let rows = x.rows();
    let tile = Tile { weights, x, out };
    let mut group = groups.start;
    while group < groups.end {
        // Few rows take several groups at a time, to have enough independent sums in flight.
        let together = match rows {
            1 if group + 4 <= groups.end => 4,
            1..=2 if group + 2 <= groups.end => 2,
            _ => 1,
        };
        let mut row = 0;
        while row < rows {
            // SAFETY: rows and groups lie inside of the shapes; the rest is the caller's promise.
            row += unsafe {
                match (rows - row, together) {
                    (1, 4) => tile.run::<W, 1, 4>(group, row),
                    (1, 2) => tile.run::<W, 1, 2>(group, row),
                    (2, 2) => tile.run::<W, 2, 2>(group, row),
                    (8.., _) => tile.run::<W, 8, 1>(group, row),
                    (4.., _) => tile.run::<W, 4, 1>(group, row),
                    (2.., _) => tile.run::<W, 2, 1>(group, row),
                    _ => tile.run::<W, 1, 1>(group, row),
                }
            };
        }
        group += together;
    }
}

/// Where a tile of rows reads and writes.
struct Tile<'a> {
    weights: &'a Packed,
    x: &'a Activations,
    out: Output<'a>,
}

/// The contract of all methods: that of [`Wide`]; rows and groups lie inside of the shapes.
impl Tile<'_> {
    /// `R` rows × `G` groups; gives back `R`.
    #[inline(always)]
    unsafe fn run<W: Wide, const R: usize, const G: usize>(&self, group: usize, row: usize) -> usize {
        // SAFETY: the contract is the caller's.
        unsafe {
            let mut sums = [[W::zero(); R]; G];
            for block in 0..self.weights.inputs() / BLOCK {
                for (g, sums) in sums.iter_mut().enumerate() {
                    match self.weights.format() {
                        Format::Q4_0 | Format::Q4_1 | Format::Q4K => self.nibbles::<W, R>(group + g, row, block, sums),
                        Format::Q8_0 => self.bytes::<W, R>(group + g, row, block, sums),
                        Format::Q6K => self.six_bits::<W, R>(group + g, row, block, sums),
                        Format::F16 | Format::Bf16 => self.floats::<W, R>(group + g, row, block, sums),
                    }
                }
            }
            for (g, sums) in sums.iter().enumerate() {
                let first = (group + g) * LANES;
                let count = LANES.min(self.weights.outputs() - first);
                for (r, &sum) in sums.iter().enumerate() {
                    self.out.put(row + r, first, &W::store(sum)[..count]);
                }
            }
        }
        R
    }

    /// Four activations of a row, in all lanes.
    #[inline(always)]
    unsafe fn four<W: Wide>(&self, row: usize, k: usize) -> W::Integers {
        // SAFETY: the row has quants at k..k + 4.
        unsafe {
            let at = self.x.quants.as_ptr().add(row * self.weights.inputs() + k);
            W::splat_i32(at.cast::<i32>().read_unaligned())
        }
    }

    /// Adds integers, scaled, to the sum of a row.
    #[inline(always)]
    unsafe fn scaled<W: Wide>(&self, d: W::Floats, at: usize, integers: W::Integers, sum: W::Floats) -> W::Floats {
        // SAFETY: `at` is a block of a row of the activations.
        unsafe { W::fma(W::float(integers), W::mul(d, W::splat(*self.x.scales.as_ptr().add(at))), sum) }
    }

    /// Scales and minima of a block of 4-bit weights.
    #[inline(always)]
    unsafe fn scales_and_minima<W: Wide>(&self, group: usize, block: usize) -> (W::Floats, W::Floats) {
        let scales = self.weights.scales(group).as_ptr();
        // SAFETY: the format has so many words of scales per block.
        unsafe {
            match self.weights.format() {
                Format::Q4_0 => {
                    let d = W::load_halves(scales.add(block * LANES));
                    (d, W::mul(d, W::splat(-8.0)))
                }
                Format::Q4_1 => {
                    let both = scales.add(block * 2 * LANES);
                    (W::load_halves(both), W::load_halves(both.add(LANES)))
                }
                _ => {
                    let words = scales.add(block / 8 * 10 * LANES);
                    let (d, dm) = (W::load_halves(words), W::load_halves(words.add(LANES)));
                    let bytes = words.add((2 + block % 8) * LANES).cast::<u8>();
                    let (s, m) = (W::float(W::load_bytes(bytes)), W::float(W::load_bytes(bytes.add(LANES))));
                    (W::mul(d, s), W::mul(W::mul(dm, m), W::splat(-1.0)))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn nibbles<W: Wide, const R: usize>(
        &self,
        group: usize,
        row: usize,
        block: usize,
        sums: &mut [W::Floats; R],
    ) {
        let blocks = self.weights.inputs() / BLOCK;
        // SAFETY: a group has 256 bytes of quants per block; the rest is the caller's promise.
        unsafe {
            let quants = self.weights.quants(group).as_ptr().add(block * 256);
            let mut wide = [W::splat_i32(0); R];
            for vector in 0..4 {
                let both = W::load(quants.add(vector * 64));
                let (first, second) = (W::low_nibbles(both), W::high_nibbles(both));
                for (r, wide) in wide.iter_mut().enumerate() {
                    *wide = W::dot(*wide, first, self.four::<W>(row + r, block * BLOCK + vector * 8));
                    *wide = W::dot(*wide, second, self.four::<W>(row + r, block * BLOCK + vector * 8 + 4));
                }
            }
            let (d, m) = self.scales_and_minima::<W>(group, block);
            for r in 0..R {
                let at = (row + r) * blocks + block;
                sums[r] = self.scaled::<W>(d, at, wide[r], sums[r]);
                sums[r] = W::fma(m, W::splat(*self.x.sums.as_ptr().add(at)), sums[r]);
            }
        }
    }

    #[inline(always)]
    unsafe fn bytes<W: Wide, const R: usize>(&self, group: usize, row: usize, block: usize, sums: &mut [W::Floats; R]) {
        let blocks = self.weights.inputs() / BLOCK;
        // SAFETY: a group has 512 bytes of quants and 16 scales per block; the rest is the caller's promise.
        unsafe {
            let quants = self.weights.quants(group).as_ptr().add(block * 512);
            let total = |r: usize| *self.x.totals.as_ptr().add((row + r) * blocks + block);
            let mut wide: [W::Integers; R] = std::array::from_fn(|r| W::splat_i32(-128 * total(r)));
            for vector in 0..8 {
                let w = W::bias(W::load(quants.add(vector * 64)));
                for (r, wide) in wide.iter_mut().enumerate() {
                    *wide = W::dot(*wide, w, self.four::<W>(row + r, block * BLOCK + vector * 4));
                }
            }
            let d = W::load_halves(self.weights.scales(group).as_ptr().add(block * LANES));
            for r in 0..R {
                sums[r] = self.scaled::<W>(d, (row + r) * blocks + block, wide[r], sums[r]);
            }
        }
    }

    #[inline(always)]
    unsafe fn six_bits<W: Wide, const R: usize>(
        &self,
        group: usize,
        row: usize,
        block: usize,
        sums: &mut [W::Floats; R],
    ) {
        let blocks = self.weights.inputs() / BLOCK;
        // SAFETY: a group has 512 bytes of quants per block and 9 · 16 words of scales per eight; the rest is the caller's
        // promise.
        unsafe {
            let quants = self.weights.quants(group).as_ptr().add(block * 512);
            let words = self.weights.scales(group).as_ptr().add(block / 8 * 9 * LANES);
            let bytes = words.add((1 + block % 8) * LANES).cast::<u8>();
            let mut wide = [W::splat_i32(0); R];
            for half in 0..2 {
                let scale = W::load_signed(bytes.add(half * LANES));
                let mut part = [W::splat_i32(0); R];
                let mut sum = [W::splat_i32(0); R];
                for vector in half * 4..half * 4 + 4 {
                    // The bytes are -32..=31: plus 128 they are unsigned.
                    let w = W::bias(W::load(quants.add(vector * 64)));
                    for r in 0..R {
                        let x = self.four::<W>(row + r, block * BLOCK + vector * 4);
                        part[r] = W::dot(part[r], w, x);
                        sum[r] = W::dot(sum[r], W::splat_i32(0x0101_0101), x);
                    }
                }
                for r in 0..R {
                    let unbiased = W::add_i32(part[r], W::mul_i32(sum[r], W::splat_i32(-128)));
                    wide[r] = W::add_i32(wide[r], W::mul_i32(unbiased, scale));
                }
            }
            let d = W::load_halves(words);
            for r in 0..R {
                sums[r] = self.scaled::<W>(d, (row + r) * blocks + block, wide[r], sums[r]);
            }
        }
    }

    #[inline(always)]
    unsafe fn floats<W: Wide, const R: usize>(
        &self,
        group: usize,
        row: usize,
        block: usize,
        sums: &mut [W::Floats; R],
    ) {
        let inputs = self.weights.inputs();
        // SAFETY: a group has 16 halves per input; the rest is the caller's promise.
        unsafe {
            let weights = self.weights.quants(group).as_ptr().cast::<u16>();
            for k in block * BLOCK..(block + 1) * BLOCK {
                let w = match self.weights.format() {
                    Format::F16 => W::load_halves(weights.add(k * LANES)),
                    _ => W::load_upper(weights.add(k * LANES)),
                };
                for r in 0..R {
                    let x = W::splat(*self.x.values.as_ptr().add((row + r) * inputs + k));
                    sums[r] = W::fma(w, x, sums[r]);
                }
            }
        }
    }
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
        unsafe fn mul_i32(a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
            std::array::from_fn(|lane| a[lane].wrapping_mul(b[lane]))
        }
        unsafe fn add_i32(a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
            std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
        }
        unsafe fn load_bytes(from: *const u8) -> [i32; LANES] {
            // SAFETY: the caller promises 16 readable bytes.
            unsafe { from.cast::<[u8; LANES]>().read() }.map(i32::from)
        }
        unsafe fn load_signed(from: *const u8) -> [i32; LANES] {
            // SAFETY: the caller promises 16 readable bytes.
            unsafe { from.cast::<[i8; LANES]>().read() }.map(i32::from)
        }
        unsafe fn load_upper(from: *const u16) -> [f32; LANES] {
            // SAFETY: the caller promises 16 readable halves.
            unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| half::bf16::from_bits(bits).to_f32())
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
