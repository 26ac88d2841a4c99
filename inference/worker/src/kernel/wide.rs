//! Products of 16-bit weights and 16-bit activations, for encoders: short texts, few weights, and vectors that are compared
//! with those of other programs, so that 8 bits are too few.
//!
//! `vpmaddwd` multiplies two consecutive inputs of eight outputs and adds them, at as many products per cycle as 8-bit
//! weights allow without VNNI, and twice those of floats. Sums are exact integers over the whole of a row: how large
//! activations may become is limited, per matrix, so that no sum leaves 32 bits ([`Wide::activation_max`]). So every
//! instruction set gives equal bits.

use memmap2::MmapMut;

use super::Kernels;
use super::vector::{self, both, round};

/// Outputs of a vector.
const LANES: usize = 8;
/// Bytes of a vector: two inputs of each of its outputs.
const VECTOR: usize = LANES * 4;
/// Largest weight. With more bits, activations would have to get along with fewer.
const WEIGHT_MAX: f32 = 2047.0;

/// A matrix of `outputs` × `inputs` weights of 16 bits with a scale per output, and a bias for each.
pub struct Wide {
    outputs: usize,
    inputs: usize,
    /// `[output / 8][input / 2][output % 8][input % 2]`, the last group of outputs filled up with zeros.
    quants: MmapMut,
    /// `[output]`, filled up likewise.
    scales: Vec<f32>,
    /// `[output]`, filled up likewise.
    bias: Vec<f32>,
    activation_max: f32,
}

impl Wide {
    /// Quantises and packs `weights`, `[output][input]` with an even number of inputs, and as many outputs as `bias` has.
    ///
    /// # Errors
    /// The system gives no memory.
    pub fn new(weights: &[f32], bias: &[f32], inputs: usize) -> std::io::Result<Self> {
        let outputs = bias.len();
        assert!(inputs.is_multiple_of(2) && weights.len() == outputs * inputs, "{outputs} × {inputs} is the shape");
        let padded = outputs.next_multiple_of(LANES);
        let mut quants = MmapMut::map_anon(padded * inputs * 2)?;
        #[cfg(target_os = "linux")]
        let _ = quants.advise(memmap2::Advice::HugePage);
        let (mut scales, mut all_bias) = (vec![0.0; padded], vec![0.0; padded]);
        all_bias[..outputs].copy_from_slice(bias);
        let mut largest_sum = 1.0_f64;
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let largest = row.iter().fold(0.0_f32, |max, weight| max.max(weight.abs()));
            scales[output] = largest / WEIGHT_MAX;
            let inverse = if largest > 0.0 { WEIGHT_MAX / largest } else { 0.0 };
            let panel = &mut quants[output / LANES * LANES * inputs * 2..];
            let mut sum = 0.0;
            for (input, weight) in row.iter().enumerate() {
                let quant = (weight * inverse).round() as i16;
                sum += f64::from(quant).abs();
                let at = input / 2 * VECTOR + output % LANES * 4 + input % 2 * 2;
                panel[at..at + 2].copy_from_slice(&quant.to_le_bytes());
            }
            largest_sum = largest_sum.max(sum);
        }
        let activation_max = (f64::from(i32::MAX) / largest_sum).floor().min(f64::from(i16::MAX)) as f32;
        Ok(Self { outputs, inputs, quants, scales, bias: all_bias, activation_max })
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Largest activation with which no sum of this matrix can leave 32 bits.
    pub fn activation_max(&self) -> f32 {
        self.activation_max
    }

    /// The vectors of a group of outputs.
    fn panel(&self, group: usize) -> &[u8] {
        &self.quants[group * LANES * self.inputs * 2..][..LANES * self.inputs * 2]
    }
}

/// Rows of activations of 16 bits, with a scale per row.
#[derive(Debug, Default)]
pub struct Rows {
    width: usize,
    max: f32,
    /// `[row][k]`
    quants: Vec<i16>,
    /// `[row]`
    scales: Vec<f32>,
}

impl Rows {
    /// Quantises `values`, rows of `weights.inputs` floats, as [`Wide::activation_max`] of `weights` allows.
    pub fn set(&mut self, kernels: Kernels, values: &[f32], weights: &Wide) {
        (self.width, self.max) = (weights.inputs, weights.activation_max);
        self.quants.resize(values.len(), 0);
        self.scales.resize(values.len() / self.width, 0.0);
        let rows = values.chunks_exact(self.width).zip(self.quants.chunks_exact_mut(self.width));
        for ((values, quants), scale) in rows.zip(&mut self.scales) {
            quantise(kernels, values, self.max, quants, scale);
        }
    }
}

both! {
    /// `quants · scale ≈ values`, with quants up to `max`. A value that is not finite makes the scale so.
    fn quantise(values: &[f32], max: f32, quants: &mut [i16], scale: &mut f32) {
        let mut largest = [0.0_f32; vector::LANES];
        let mut poison = [0.0_f32; vector::LANES];
        let (chunks, rest) = values.as_chunks::<{ vector::LANES }>();
        for chunk in chunks {
            for lane in 0..vector::LANES {
                let magnitude = chunk[lane].abs();
                largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
                poison[lane] += chunk[lane] * 0.0;
            }
        }
        for (lane, value) in rest.iter().enumerate() {
            largest[lane] = largest[lane].max(value.abs());
            poison[lane] += value * 0.0;
        }
        let magnitude = largest.iter().fold(0.0_f32, |a, &b| a.max(b));
        // The largest value becomes the largest quant but for a rounding, which must not carry it above.
        let inverse = if magnitude > 0.0 { max * (1.0 - f32::EPSILON) / magnitude } else { 0.0 };
        for (quant, value) in quants.iter_mut().zip(values) {
            *quant = round(value * inverse) as i16;
        }
        *scale = (if inverse > 0.0 { 1.0 / inverse } else { 0.0 }) + poison.iter().sum::<f32>();
    }
}

/// `out[row][o] = Σ_k x[row][k] · w[o][k] + bias[o]` for all rows and outputs; rows of `out` have `outputs` floats.
pub fn multiply(kernels: Kernels, weights: &Wide, x: &Rows, out: &mut [f32]) {
    let rows = x.scales.len();
    assert!(x.width == weights.inputs && x.max <= weights.activation_max, "the rows were made for these weights");
    assert!(out.len() >= rows * weights.outputs && x.quants.len() >= rows * x.width, "the output holds all rows");
    #[cfg(target_arch = "x86_64")]
    if kernels.has_avx2() {
        // SAFETY: `kernels` proves that the processor has AVX2 and FMA; the shapes were checked above.
        return unsafe { avx2::multiply(weights, x, out) };
    }
    for output in 0..weights.outputs {
        let panel = weights.panel(output / LANES);
        for row in 0..rows {
            let mut sum = 0_i32;
            for (k, quant) in x.quants[row * x.width..][..x.width].iter().enumerate() {
                let at = k / 2 * VECTOR + output % LANES * 4 + k % 2 * 2;
                sum += i32::from(i16::from_le_bytes([panel[at], panel[at + 1]])) * i32::from(*quant);
            }
            let scale = weights.scales[output] * x.scales[row];
            out[row * weights.outputs + output] = (sum as f32).mul_add(scale, weights.bias[output]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{LANES, Rows, VECTOR, Wide};

    /// See [`super::multiply`].
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; the shapes agree as the caller checks.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply(weights: &Wide, x: &Rows, out: &mut [f32]) {
        let (rows, groups) = (x.scales.len(), weights.scales.len() / LANES);
        // Weights stay in the cache while all rows pass by. Six rows by two groups are twelve sums and leave registers
        // for what they are made of.
        for group in (0..groups).step_by(2) {
            let two = group + 2 <= groups;
            let mut row = 0;
            while row < rows {
                let count = (rows - row).min(6);
                // SAFETY: rows and groups lie inside of the shapes; the features are those of this function.
                unsafe {
                    match (count, two) {
                        (6, true) => tile::<6, 2>(weights, x, group, row, out),
                        (5, true) => tile::<5, 2>(weights, x, group, row, out),
                        (4, true) => tile::<4, 2>(weights, x, group, row, out),
                        (3, true) => tile::<3, 2>(weights, x, group, row, out),
                        (2, true) => tile::<2, 2>(weights, x, group, row, out),
                        (_, true) => tile::<1, 2>(weights, x, group, row, out),
                        (6, false) => tile::<6, 1>(weights, x, group, row, out),
                        (5, false) => tile::<5, 1>(weights, x, group, row, out),
                        (4, false) => tile::<4, 1>(weights, x, group, row, out),
                        (3, false) => tile::<3, 1>(weights, x, group, row, out),
                        (2, false) => tile::<2, 1>(weights, x, group, row, out),
                        (_, false) => tile::<1, 1>(weights, x, group, row, out),
                    }
                }
                row += count;
            }
        }
    }

    /// `R` rows from `row` × `G` groups from `group`.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn tile<const R: usize, const G: usize>(w: &Wide, x: &Rows, group: usize, row: usize, out: &mut [f32]) {
        let mut sums = [[_mm256_setzero_si256(); G]; R];
        // SAFETY: a panel holds inputs / 2 vectors, `x` rows × inputs quants; group + G and row + R stay inside.
        unsafe {
            let panels: [*const u8; G] = std::array::from_fn(|g| w.panel(group + g).as_ptr());
            let quants: [*const i16; R] = std::array::from_fn(|r| x.quants.as_ptr().add((row + r) * x.width));
            for pair in 0..w.inputs / 2 {
                let vectors: [__m256i; G] =
                    std::array::from_fn(|g| _mm256_loadu_si256(panels[g].add(pair * VECTOR).cast()));
                for r in 0..R {
                    let both = _mm256_set1_epi32(quants[r].add(pair * 2).cast::<i32>().read_unaligned());
                    for g in 0..G {
                        sums[r][g] = _mm256_add_epi32(sums[r][g], _mm256_madd_epi16(vectors[g], both));
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let scale = _mm256_set1_ps(x.scales[row + r]);
            for (g, &sum) in sums.iter().enumerate() {
                let first = (group + g) * LANES;
                let mut all = [0.0_f32; LANES];
                // SAFETY: scales and biases are filled up to whole groups; `all` has room for eight floats.
                unsafe {
                    let scale = _mm256_mul_ps(_mm256_loadu_ps(w.scales[first..first + LANES].as_ptr()), scale);
                    let bias = _mm256_loadu_ps(w.bias[first..first + LANES].as_ptr());
                    _mm256_storeu_ps(all.as_mut_ptr(), _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, bias));
                }
                let count = LANES.min(w.outputs - first);
                out[(row + r) * w.outputs + first..][..count].copy_from_slice(&all[..count]);
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

    /// Shapes that fill no group of outputs, one group, two and three; every number of rows of a tile.
    #[test]
    fn products_are_near_and_equal_on_all_processors() {
        for (outputs, inputs, rows) in [(1, 2, 1), (8, 64, 2), (13, 96, 3), (16, 384, 4), (24, 32, 11), (40, 1536, 6)] {
            let (w, bias, x) = (numbers(outputs * inputs, 3), numbers(outputs, 9), numbers(rows * inputs, 5));
            let weights = Wide::new(&w, &bias, inputs).expect("memory");
            let run = |isa| {
                let kernels = Kernels::new(isa).expect("available");
                let mut activations = Rows::default();
                activations.set(kernels, &x, &weights);
                let mut out = vec![0.0; rows * outputs];
                multiply(kernels, &weights, &activations, &mut out);
                out
            };
            let expected = run(Isa::Scalar);
            for (at, got) in expected.iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let products = (0..inputs).map(|k| f64::from(x[row * inputs + k]) * f64::from(w[output * inputs + k]));
                let exact: f64 = products.sum::<f64>() + f64::from(bias[output]);
                let near = 2e-3 * (inputs as f64).sqrt() + 1e-6;
                assert!((f64::from(*got) - exact).abs() < near, "{outputs} × {inputs}: {got}, not {exact}");
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(run(isa), expected, "{isa}, {outputs} × {inputs}, {rows} rows");
            }
        }
    }

    /// The largest weights and activations there can be, all of one sign: the sum just fits.
    #[test]
    fn sums_stay_within_32_bits() {
        let inputs = 4096;
        let weights = Wide::new(&vec![3.0; inputs * 8], &[0.0; 8], inputs).expect("memory");
        let kernels = Kernels::choose().expect("kernels");
        for value in [5.0, -5.0] {
            let (mut rows, mut out) = (Rows::default(), [0.0; 8]);
            rows.set(kernels, &vec![value; inputs], &weights);
            multiply(kernels, &weights, &rows, &mut out);
            let exact = value * 3.0 * inputs as f32;
            assert!(out.iter().all(|got| (got / exact - 1.0).abs() < 0.01), "{out:?}, not {exact}");
        }
    }

    #[test]
    fn what_is_not_finite_comes_out_so() {
        let kernels = Kernels::choose().expect("kernels");
        let weights = Wide::new(&numbers(8 * 64, 1), &[0.0; 8], 64).expect("memory");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut rows, mut out, mut x) = (Rows::default(), [0.0; 16], vec![1.0; 128]);
            x[70] = bad;
            rows.set(kernels, &x, &weights);
            multiply(kernels, &weights, &rows, &mut out);
            assert!(out[..8].iter().all(|v| v.is_finite()) && out[8..].iter().all(|v| !v.is_finite()), "{out:?}");
        }
    }
}
