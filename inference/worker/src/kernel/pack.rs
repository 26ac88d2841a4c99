//! Weights, repacked once so that the kernels read them strictly in sequence.

use half::f16;
use memmap2::MmapMut;

use super::BLOCK;

/// A quantisation of weights there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4-bit quants 0..=15 with a scale and a minimum per block: `w = d·q + m`. 20 bytes per block in a GGUF.
    Q4_1,
    /// 8-bit quants -128..=127 with a scale per block: `w = d·q`. 34 bytes per block in a GGUF.
    Q8_0,
}

impl Format {
    /// Bytes of one block of 32 weights in a GGUF.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// Halves (scale, minimum) per block.
    fn halves(self) -> usize {
        match self {
            Self::Q4_1 => 2,
            Self::Q8_0 => 1,
        }
    }

    /// Bytes of quants per block.
    fn quant_bytes(self) -> usize {
        match self {
            Self::Q4_1 => BLOCK / 2,
            Self::Q8_0 => BLOCK,
        }
    }
}

/// A matrix of `outputs` × `inputs` quantised weights, interleaved for vectors of `lanes` outputs.
///
/// Outputs are cut into groups of `lanes`; the last group is padded with zeros. For each group and block of 32 inputs:
/// - `scales`: `lanes` halves d, then for Q4_1 `lanes` halves m;
/// - `quants`: vectors of `lanes` × 4 bytes, four consecutive inputs of each output side by side, as `vpdpbusd` wants
///   them. Q8_0: vector j holds inputs 4j..4j+4. Q4_1: vector j holds inputs 8j..8j+4 in its low nibbles and
///   8j+4..8j+8 in its high ones.
pub struct Packed {
    format: Format,
    lanes: usize,
    outputs: usize,
    inputs: usize,
    scales: Box<[u16]>,
    quants: MmapMut,
}

impl Packed {
    /// Packs `raw`, the rows of a GGUF tensor of `outputs` × `inputs`, for vectors of `lanes` outputs.
    ///
    /// Panics unless `inputs` is a multiple of [`BLOCK`] and `raw` has exactly the bytes of that shape. Fails if the
    /// system gives no memory.
    pub fn new(format: Format, raw: &[u8], outputs: usize, inputs: usize, lanes: usize) -> std::io::Result<Self> {
        assert!(inputs.is_multiple_of(BLOCK) && inputs > 0 && outputs > 0, "{outputs} × {inputs} is made of blocks");
        let blocks = inputs / BLOCK;
        assert_eq!(raw.len(), outputs * blocks * format.block_bytes(), "the tensor has the bytes of its shape");
        let groups = outputs.div_ceil(lanes);
        let mut scales = vec![0_u16; groups * blocks * format.halves() * lanes].into_boxed_slice();
        // Anonymous memory of its own, so that huge pages can be asked for: a decoding step walks through all of it.
        let mut quants = MmapMut::map_anon(groups * blocks * format.quant_bytes() * lanes)?;
        #[cfg(target_os = "linux")]
        let _ = quants.advise(memmap2::Advice::HugePage);
        for group in 0..groups {
            for lane in 0..lanes.min(outputs - group * lanes) {
                let row = (group * lanes + lane) * blocks * format.block_bytes();
                for block in 0..blocks {
                    let source = &raw[row + block * format.block_bytes()..][..format.block_bytes()];
                    let at = group * blocks + block;
                    let scales = &mut scales[at * format.halves() * lanes..][..format.halves() * lanes];
                    let quants = &mut quants[at * format.quant_bytes() * lanes..][..format.quant_bytes() * lanes];
                    pack_block(format, source, lane, lanes, scales, quants);
                }
            }
        }
        Ok(Self { format, lanes, outputs, inputs, scales, quants })
    }

    /// How the weights are quantised.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Outputs per vector.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Groups of `lanes` outputs, the last padded.
    pub(crate) fn groups(&self) -> usize {
        self.outputs.div_ceil(self.lanes)
    }

    /// All scales of `group`: `[block][halves][lane]`.
    pub(crate) fn scales(&self, group: usize) -> &[u16] {
        let len = self.inputs / BLOCK * self.format.halves() * self.lanes;
        &self.scales[group * len..][..len]
    }

    /// All quants of `group`: `[block][vector][lane][4]`.
    pub(crate) fn quants(&self, group: usize) -> &[u8] {
        let len = self.inputs / BLOCK * self.format.quant_bytes() * self.lanes;
        &self.quants[group * len..][..len]
    }

    /// The integer weight of `lane` in `group` at input `k`: 0..=15 or -128..=127.
    pub(crate) fn quant(&self, group: usize, lane: usize, k: usize) -> i32 {
        let (block, within) = (k / BLOCK, k % BLOCK);
        let quants = &self.quants(group)[block * self.format.quant_bytes() * self.lanes..];
        match self.format {
            Format::Q4_1 => {
                let byte = quants[within / 8 * self.lanes * 4 + lane * 4 + within % 4];
                i32::from(if within % 8 < 4 { byte & 15 } else { byte >> 4 })
            }
            Format::Q8_0 => i32::from(quants[within / 4 * self.lanes * 4 + lane * 4 + within % 4] as i8),
        }
    }

    /// Scale and minimum of `lane` in `group` for a block of inputs.
    pub(crate) fn scale(&self, group: usize, lane: usize, block: usize) -> (f32, f32) {
        let scales = &self.scales(group)[block * self.format.halves() * self.lanes..];
        let half = |at: usize| f16::from_bits(scales[at]).to_f32();
        match self.format {
            Format::Q4_1 => (half(lane), half(self.lanes + lane)),
            Format::Q8_0 => (half(lane), 0.0),
        }
    }

    /// Writes row `output`, dequantised, to `row`.
    pub fn dequantise_row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "the row exists and has its width");
        let (group, lane) = (output / self.lanes, output % self.lanes);
        for (k, value) in row.iter_mut().enumerate() {
            let (d, m) = self.scale(group, lane, k / BLOCK);
            *value = d * self.quant(group, lane, k) as f32 + m;
        }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{} {:?}, {} lanes", self.outputs, self.inputs, self.format, self.lanes)
    }
}

fn pack_block(format: Format, source: &[u8], lane: usize, lanes: usize, scales: &mut [u16], quants: &mut [u8]) {
    let half = |at: usize| u16::from_le_bytes([source[at], source[at + 1]]);
    scales[lane] = half(0);
    match format {
        Format::Q4_1 => {
            scales[lanes + lane] = half(2);
            // The file keeps input i in the low nibble of byte i and input 16 + i in its high one.
            let quant = |k: usize| if k < 16 { source[4 + k] & 15 } else { source[4 + k - 16] >> 4 };
            for vector in 0..4 {
                for t in 0..4 {
                    quants[vector * lanes * 4 + lane * 4 + t] = quant(vector * 8 + t) | quant(vector * 8 + 4 + t) << 4;
                }
            }
        }
        Format::Q8_0 => {
            for vector in 0..8 {
                quants[vector * lanes * 4 + lane * 4..][..4].copy_from_slice(&source[2 + vector * 4..][..4]);
            }
        }
    }
}
