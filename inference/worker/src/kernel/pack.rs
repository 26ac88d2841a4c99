//! Weights, repacked once so that the kernels read them strictly in sequence.

use half::{bf16, f16};
use memmap2::MmapMut;

use super::BLOCK;

/// A kind of weights there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4-bit quants 0..=15 with a scale per block of 32: `w = d·(q − 8)`.
    Q4_0,
    /// 4-bit quants 0..=15 with a scale and a minimum per block of 32: `w = d·q + m`.
    Q4_1,
    /// 8-bit quants -128..=127 with a scale per block of 32: `w = d·q`.
    Q8_0,
    /// 4-bit quants in superblocks of 256, with 6-bit scales and minima per 32: `w = d·s·q − dm·m`.
    Q4K,
    /// 6-bit quants in superblocks of 256, with 8-bit scales per 16: `w = d·s·(q − 32)`.
    Q6K,
    /// Halves.
    F16,
    /// The upper halves of floats.
    Bf16,
}

/// Weights that share a scale of scales.
const SUPER: usize = 256;

impl Format {
    /// All there are.
    pub const ALL: [Self; 7] = [Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q4K, Self::Q6K, Self::F16, Self::Bf16];

    /// Weights of a row come in multiples of this.
    pub fn unit(self) -> usize {
        match self {
            Self::Q4K | Self::Q6K => SUPER,
            _ => BLOCK,
        }
    }

    /// Bytes of [`Self::unit`] weights in a GGUF.
    pub fn unit_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
            Self::F16 | Self::Bf16 => BLOCK * 2,
        }
    }

    /// Units of 16 bits per output that the scales of [`Self::unit`] weights take when packed.
    fn scale_words(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 1,
            Self::Q4_1 => 2,
            // d, and for Q4_K the d of minima; then two bytes for each 32 weights.
            Self::Q4K => 2 + SUPER / BLOCK,
            Self::Q6K => 1 + SUPER / BLOCK,
            Self::F16 | Self::Bf16 => 0,
        }
    }

    /// Bytes of quants per 32 weights when packed.
    fn quant_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => BLOCK / 2,
            Self::Q8_0 | Self::Q6K => BLOCK,
            Self::F16 | Self::Bf16 => BLOCK * 2,
        }
    }

    /// Whether weights are floats, which are multiplied by activations that are floats too.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }
}

/// A matrix of `outputs` × `inputs` weights, interleaved for vectors of `lanes` outputs.
///
/// Outputs are cut into groups of `lanes`; the last group is padded with zeros. For each group there are, in order of inputs:
/// - scales, in words of 16 bits. Q4_0, Q8_0: `lanes` halves d for each 32 inputs. Q4_1: the same, then `lanes` halves m.
///   Q4_K, for each 256 inputs: `lanes` halves d, `lanes` halves dm, and for each 32 of them `lanes` bytes s, `lanes` bytes m.
///   Q6_K: `lanes` halves d, and for each 32 of them `lanes` bytes s of the first 16, `lanes` bytes s of the second;
/// - quants: for each 32 inputs vectors of `lanes` × 4 bytes, four consecutive inputs of each output side by side, as
///   `vpdpbusd` wants them. Of 8 bits (Q6_K is widened): vector j holds inputs 4j..4j+4. Of 4 bits: vector j holds inputs
///   8j..8j+4 in its low nibbles and 8j+4..8j+8 in its high ones. F16 and BF16: `[input][lane]`.
pub struct Packed {
    format: Format,
    lanes: usize,
    outputs: usize,
    inputs: usize,
    scales: Box<[u16]>,
    quants: MmapMut,
}

impl Packed {
    /// Repacks the blocks of a GGUF tensor. `raw` holds `outputs` rows of `inputs / unit` units; `inputs` is a multiple of
    /// [`Format::unit`]. Fails if the system has no memory for it.
    pub fn new(format: Format, raw: &[u8], outputs: usize, inputs: usize, lanes: usize) -> std::io::Result<Self> {
        let (unit, unit_bytes) = (format.unit(), format.unit_bytes());
        assert!(inputs.is_multiple_of(unit), "{inputs} inputs are a multiple of {unit}");
        let (groups, units, blocks) = (outputs.div_ceil(lanes), inputs / unit, inputs / BLOCK);
        assert_eq!(raw.len(), outputs * units * unit_bytes, "{outputs}×{inputs} weights of {format:?}");
        let scales = vec![0_u16; groups * units * format.scale_words() * lanes].into_boxed_slice();
        // Anonymous memory of its own, so that huge pages can be asked for: a decoding step walks through all of it.
        let quants = MmapMut::map_anon((groups * blocks * format.quant_bytes() * lanes).max(1))?;
        #[cfg(target_os = "linux")]
        let _ = quants.advise(memmap2::Advice::HugePage);
        let mut packed = Self { format, lanes, outputs, inputs, scales, quants };
        for (output, row) in raw.chunks_exact(units * unit_bytes).enumerate() {
            for (n, source) in row.chunks_exact(unit_bytes).enumerate() {
                packed.pack_unit(output / lanes, output % lanes, n, source);
            }
        }
        Ok(packed)
    }

    /// Puts unit `n` of an output where it belongs.
    fn pack_unit(&mut self, group: usize, lane: usize, n: usize, source: &[u8]) {
        let (lanes, format, blocks) = (self.lanes, self.format, self.format.unit() / BLOCK);
        let words = format.scale_words() * lanes;
        let at = group * (self.inputs / format.unit()) + n;
        let scales = &mut self.scales[at * words..][..words];
        let bytes = format.quant_bytes() * lanes;
        let quants = &mut self.quants[at * blocks * bytes..][..blocks * bytes];
        let half = |at: usize| u16::from_le_bytes([source[at], source[at + 1]]);
        match format {
            Format::Q4_0 => {
                scales[lane] = half(0);
                pack_nibbles(quants, lane, lanes, |k| nibble(&source[2..], k));
            }
            Format::Q4_1 => {
                (scales[lane], scales[lanes + lane]) = (half(0), half(2));
                pack_nibbles(quants, lane, lanes, |k| nibble(&source[4..], k));
            }
            Format::Q8_0 => {
                scales[lane] = half(0);
                pack_bytes(quants, lane, lanes, |k| source[2 + k]);
            }
            Format::Q4K => {
                (scales[lane], scales[lanes + lane]) = (half(0), half(2));
                for (block, quants) in quants.chunks_exact_mut(bytes).enumerate() {
                    let (scale, min) = six_bits(&source[4..16], block);
                    let words = &mut scales[(2 + block) * lanes..][..lanes];
                    set_byte(words, lane, scale);
                    set_byte(words, lanes + lane, min);
                    // Blocks 2i and 2i + 1 share 32 bytes: one has the low nibbles, the other the high ones.
                    let shared = &source[16 + block / 2 * 32..];
                    pack_nibbles(quants, lane, lanes, |k| shared[k] >> (block % 2 * 4) & 15);
                }
            }
            Format::Q6K => {
                scales[lane] = half(208);
                for (block, quants) in quants.chunks_exact_mut(bytes).enumerate() {
                    let words = &mut scales[(1 + block) * lanes..][..lanes];
                    set_byte(words, lane, source[192 + 2 * block]);
                    set_byte(words, lanes + lane, source[192 + 2 * block + 1]);
                    pack_bytes(quants, lane, lanes, |k| six_bit_quant(source, block * BLOCK + k) as u8);
                }
            }
            Format::F16 | Format::Bf16 => {
                for k in 0..BLOCK {
                    quants[(k * lanes + lane) * 2..][..2].copy_from_slice(&source[k * 2..][..2]);
                }
            }
        }
    }

    /// How the weights are kept.
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

    /// Groups of [`Packed::lanes`] outputs, the last padded: what products are shared out by.
    pub fn groups(&self) -> usize {
        self.outputs.div_ceil(self.lanes)
    }

    /// All scales of `group`.
    pub(crate) fn scales(&self, group: usize) -> &[u16] {
        let len = self.inputs / self.format.unit() * self.format.scale_words() * self.lanes;
        &self.scales[group * len..][..len]
    }

    /// All quants of `group`.
    pub(crate) fn quants(&self, group: usize) -> &[u8] {
        let len = self.inputs / BLOCK * self.format.quant_bytes() * self.lanes;
        &self.quants[group * len..][..len]
    }

    /// The integer weight of `lane` in `group` at input `k`, before scale and minimum.
    pub(crate) fn quant(&self, group: usize, lane: usize, k: usize) -> i32 {
        let (block, within) = (k / BLOCK, k % BLOCK);
        let quants = &self.quants(group)[block * self.format.quant_bytes() * self.lanes..];
        match self.format {
            Format::Q4_0 | Format::Q4_1 | Format::Q4K => {
                let byte = quants[within / 8 * self.lanes * 4 + lane * 4 + within % 4];
                i32::from(if within % 8 < 4 { byte & 15 } else { byte >> 4 })
            }
            Format::Q8_0 | Format::Q6K => i32::from(quants[within / 4 * self.lanes * 4 + lane * 4 + within % 4] as i8),
            Format::F16 | Format::Bf16 => unreachable!("floats have no quants"),
        }
    }

    /// Scale and minimum of `lane` in `group` for a block of 32 inputs.
    pub(crate) fn scale(&self, group: usize, lane: usize, block: usize) -> (f32, f32) {
        let (lanes, blocks) = (self.lanes, self.format.unit() / BLOCK);
        let scales = &self.scales(group)[block / blocks * self.format.scale_words() * lanes..];
        let half = |at: usize| f16::from_bits(scales[at]).to_f32();
        match self.format {
            Format::Q4_0 => (half(lane), half(lane) * -8.0),
            Format::Q4_1 => (half(lane), half(lanes + lane)),
            Format::Q8_0 | Format::Q6K => (half(lane), 0.0),
            Format::Q4K => {
                let bytes = &scales[(2 + block % blocks) * lanes..][..lanes];
                let (scale, min) = (byte(bytes, lane), byte(bytes, lanes + lane));
                (half(lane) * f32::from(scale), -(half(lanes + lane) * f32::from(min)))
            }
            Format::F16 | Format::Bf16 => (1.0, 0.0),
        }
    }

    /// The integer scales of the two halves of a block: 1 but for Q6_K.
    pub(crate) fn half_scales(&self, group: usize, lane: usize, block: usize) -> [i32; 2] {
        if self.format != Format::Q6K {
            return [1; 2];
        }
        let blocks = SUPER / BLOCK;
        let scales = &self.scales(group)[block / blocks * self.format.scale_words() * self.lanes..];
        let bytes = &scales[(1 + block % blocks) * self.lanes..][..self.lanes];
        [lane, self.lanes + lane].map(|at| i32::from(byte(bytes, at) as i8))
    }

    /// The weight of `lane` in `group` at input `k`, of a matrix of floats.
    pub(crate) fn float(&self, group: usize, lane: usize, k: usize) -> f32 {
        let bytes = &self.quants(group)[(k * self.lanes + lane) * 2..][..2];
        let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
        match self.format {
            Format::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        }
    }

    /// Writes row `output`, dequantised, to `row`.
    pub fn dequantise_row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "the row exists and has its width");
        let (group, lane) = (output / self.lanes, output % self.lanes);
        for (block, values) in row.chunks_exact_mut(BLOCK).enumerate() {
            let ((d, m), halves) = (self.scale(group, lane, block), self.half_scales(group, lane, block));
            for (n, value) in values.iter_mut().enumerate() {
                let k = block * BLOCK + n;
                *value = match self.format.is_float() {
                    true => self.float(group, lane, k),
                    false => d * (halves[n / 16] * self.quant(group, lane, k)) as f32 + m,
                };
            }
        }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{} {:?}, {} lanes", self.outputs, self.inputs, self.format, self.lanes)
    }
}

/// Input `k` of a block whose file keeps input i in the low nibble of byte i and input 16 + i in its high one.
fn nibble(bytes: &[u8], k: usize) -> u8 {
    if k < 16 { bytes[k] & 15 } else { bytes[k - 16] >> 4 }
}

/// Scale and minimum of a block of Q4_K, of 6 bits each, spread over twelve bytes.
fn six_bits(bytes: &[u8], block: usize) -> (u8, u8) {
    if block < 4 {
        return (bytes[block] & 63, bytes[block + 4] & 63);
    }
    let both = bytes[block + 4];
    (both & 15 | bytes[block - 4] >> 6 << 4, both >> 4 | bytes[block] >> 6 << 4)
}

/// Weight `k` of a superblock of Q6_K, without scale: four low bits in one place, two high ones in another.
fn six_bit_quant(source: &[u8], k: usize) -> i8 {
    let (part, quarter, l) = (k / 128, k % 128 / 32, k % 32);
    let low = source[part * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
    let high = source[128 + part * 32 + l] >> (quarter * 2) & 3;
    (low | high << 4) as i8 - 32
}

fn pack_nibbles(quants: &mut [u8], lane: usize, lanes: usize, quant: impl Fn(usize) -> u8) {
    for vector in 0..4 {
        for t in 0..4 {
            quants[vector * lanes * 4 + lane * 4 + t] = quant(vector * 8 + t) | quant(vector * 8 + 4 + t) << 4;
        }
    }
}

fn pack_bytes(quants: &mut [u8], lane: usize, lanes: usize, quant: impl Fn(usize) -> u8) {
    for k in 0..BLOCK {
        quants[k / 4 * lanes * 4 + lane * 4 + k % 4] = quant(k);
    }
}

/// Sets byte `at` of words that hold two each, the first in the low half.
fn set_byte(words: &mut [u16], at: usize, value: u8) {
    let shift = at % 2 * 8;
    words[at / 2] = words[at / 2] & !(255 << shift) | u16::from(value) << shift;
}

fn byte(words: &[u16], at: usize) -> u8 {
    (words[at / 2] >> (at % 2 * 8)) as u8
}
