//! Kernels of the CPU: quantised matrix products, attention, and the small loops around them.
//!
//! Three instruction sets, chosen at run time: plain Rust, AVX2 with FMA and F16C, and AVX512-VNNI. Every kernel does the
//! same arithmetic in the same order for each output, whatever the instruction set and whatever else is computed beside
//! it. So the three give equal bits, and a sequence gives equal logits alone and in a batch; the tests hold both.

// Lanes, rows and groups index several arrays at once; the loops say so.
#![allow(clippy::needless_range_loop)]

pub mod attention;
mod avx2;
mod avx512;
pub mod canvas;
pub mod encoder;
pub mod pack;
mod scalar;
pub mod vector;
pub mod wide;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use self::canvas::{Canvas, Output};
use self::pack::Packed;

/// Elements that share a scale, in weights and in activations.
pub const BLOCK: usize = 32;

/// Set this to `scalar`, `avx2` or `avx512` to override the choice of the instruction set.
pub const ISA_VARIABLE: &str = "THALWEG_ISA";

/// An instruction set there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust. Slow; the reference of the others.
    Scalar,
    /// AVX2, FMA and F16C: any x86-64 server or laptop since 2015.
    Avx2,
    /// AVX512 F, BW, VL and VNNI beside the former.
    Avx512,
}

/// Why a set of kernels cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The processor cannot do it.
    #[error("this processor has no {0}; unset {ISA_VARIABLE} or set it to one of: {1}")]
    Unavailable(Isa, String),
    /// Not a name of an instruction set.
    #[error("{0:?} is no instruction set; {ISA_VARIABLE} is one of scalar, avx2, avx512")]
    Unknown(String),
}

impl Isa {
    /// All there are, best last.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Outputs that one vector register holds: the width in which weights are interleaved.
    pub fn lanes(self) -> usize {
        if self == Self::Avx512 { 16 } else { 8 }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

impl FromStr for Isa {
    type Err = IsaError;
    fn from_str(text: &str) -> Result<Self, IsaError> {
        Self::ALL.into_iter().find(|isa| isa.to_string() == text).ok_or_else(|| IsaError::Unknown(text.into()))
    }
}

/// The proof that an instruction set was found on this processor; only [`Kernels::new`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    isa: Isa,
}

impl Kernels {
    /// Kernels for `isa`, if this processor has it.
    pub fn new(isa: Isa) -> Result<Self, IsaError> {
        if isa.is_available() {
            return Ok(Self { isa });
        }
        let have: Vec<String> = Isa::ALL.iter().filter(|i| i.is_available()).map(Isa::to_string).collect();
        Err(IsaError::Unavailable(isa, have.join(", ")))
    }

    /// The best this processor has, unless [`ISA_VARIABLE`] says otherwise.
    pub fn choose() -> Result<Self, IsaError> {
        if let Ok(text) = std::env::var(ISA_VARIABLE) {
            return Self::new(text.parse()?);
        }
        let best = Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar);
        Ok(Self { isa: best })
    }

    /// The instruction set these are for.
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Whether the AVX2 forms of the small loops may be called.
    pub(crate) fn has_avx2(self) -> bool {
        self.isa >= Isa::Avx2
    }

    /// `out[row][column + o] = Σ_k x[row][k] · w[o][k]` for all rows of `x` and all outputs of `weights`.
    ///
    /// `out` has rows of `stride` floats. Panics if the shapes disagree or the weights were packed for another width.
    pub fn multiply(self, weights: &Packed, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
        // SAFETY: `out` is borrowed by this call alone, and so cannot be where the activations are.
        unsafe { self.multiply_groups(weights, x, 0..weights.groups(), Output::new(out, stride, column)) }
    }

    /// The same for a range of groups of outputs ([`Packed::groups`]): a member's part of a product.
    ///
    /// # Safety
    /// Until this returns, nobody else reads or writes the columns of these groups, and nobody writes the activations.
    pub unsafe fn multiply_groups(self, weights: &Packed, x: &Activations, groups: Range<usize>, out: Output<'_>) {
        assert_eq!(weights.inputs(), x.width(), "weights and activations agree in k");
        assert!(out.holds(x.rows(), weights.outputs()), "the output holds all rows and columns");
        assert!(groups.end <= weights.groups(), "the groups exist");
        assert!(!(weights.format().is_float() && x.quants_only), "weights that are floats meet activations that are");
        assert_eq!(weights.lanes(), self.isa.lanes(), "weights are packed for this instruction set");
        // SAFETY: `self` proves that the processor has the features; the shapes were checked; the rest is the caller's
        // promise.
        unsafe {
            match self.isa {
                Isa::Scalar => scalar::multiply(weights, x, groups, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::multiply(weights, x, groups, out),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::multiply(weights, x, groups, out),
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("only the scalar kernels exist on this architecture"),
            }
        }
    }
}

/// Rows of activations, as floats and quantised to 8 bits per block of [`BLOCK`].
///
/// Element `k` of a row stands for `scale[k / 32] · quant[k]` with `quant` in -127..=127 where it meets weights that are
/// quantised, and for itself where it meets floats.
#[derive(Default)]
pub struct Activations {
    width: usize,
    rows: usize,
    /// Whether `values` are left out, because only weights that are quantised come.
    quants_only: bool,
    /// `[row][k]`
    pub(crate) values: Canvas<f32>,
    /// `[row][k]`
    pub(crate) quants: Canvas<i8>,
    /// `[row][block]`
    pub(crate) scales: Canvas<f32>,
    /// `[row][block]`: the sum of the block's quants.
    pub(crate) totals: Canvas<i32>,
    /// `[row][block]`: scale × total.
    pub(crate) sums: Canvas<f32>,
}

impl Activations {
    /// Makes room for `rows` rows of `width` elements, a multiple of [`BLOCK`]. What was there is gone.
    pub fn reset(&mut self, rows: usize, width: usize) {
        assert!(width.is_multiple_of(BLOCK), "{width} is a multiple of {BLOCK}");
        (self.rows, self.width) = (rows, width);
        let blocks = rows * width / BLOCK;
        if !self.quants_only {
            self.values.grow(rows * width);
        }
        self.quants.grow(rows * width);
        self.scales.grow(blocks);
        self.totals.grow(blocks);
        self.sums.grow(blocks);
    }

    /// Whether rows are kept quantised only, from the next reset on: not for weights that are floats.
    pub fn quants_only(&mut self, only: bool) {
        self.quants_only = only;
    }

    /// Quantises `values` into row `row`.
    pub fn set_row(&mut self, kernels: Kernels, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.width, "a row has the width it was reset to");
        // SAFETY: nobody else has it, by `&mut self`.
        unsafe { self.put(kernels, row, 0, values) }
    }

    /// Quantises `values` into blocks of row `row`, from block `first` on.
    ///
    /// # Safety
    /// Nobody else reads or writes these blocks meanwhile.
    pub unsafe fn put(&self, kernels: Kernels, row: usize, first: usize, values: &[f32]) {
        let count = values.len() / BLOCK;
        assert!(values.len().is_multiple_of(BLOCK), "whole blocks");
        assert!(row < self.rows && first + count <= self.width / BLOCK, "the blocks lie inside of the row");
        let start = row * (self.width / BLOCK) + first;
        let (blocks, elements) = (start..start + count, start * BLOCK..(start + count) * BLOCK);
        // SAFETY: the caller's promise.
        unsafe {
            if !self.quants_only {
                self.values.write(elements.clone()).copy_from_slice(values);
            }
            vector::quantise(
                kernels,
                values,
                self.quants.write(elements),
                self.scales.write(blocks.clone()),
                self.totals.write(blocks.clone()),
                self.sums.write(blocks),
            );
        }
    }

    /// Rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }
}

#[cfg(test)]
mod tests;
