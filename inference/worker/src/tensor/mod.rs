//! Models over tensors of a device: what runs on a GPU.
//!
//! [`TensorModel`] computes what [`Decoder`](crate::decoder::Decoder) computes, from the same files and the same steps, with
//! operations of a tensor library instead of our own kernels. It runs on a device of the library's, which may be the
//! processor: that is how it is tested without a GPU. There it is far slower than our own pass, and is for tests only.
//!
//! Weights are dequantised as they are read, to F16 on a GPU and to F32 elsewhere; so are keys and values. The residual
//! stream, norms, rotations and the softmax are F32 everywhere: sums of large models do not fit into F16.

pub mod device;
mod pass;
mod plan;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::decoder::{Dimensions, Rope, Style, frequencies};
use crate::gguf::{Gguf, LoadError};
use crate::kernel::attention::POSITIONS;
use crate::model::{Model, Runner, Shape};
use crate::team::Team;

pub use device::{DeviceChoice, DeviceError, Gpu, Place, gpus};

use pass::TensorRunner;
use plan::Bounds;

/// How large the operations of attention become: 64 Ki positions are 128 MiB of keys of a model of 1,024 elements, and as
/// much of values; 64 Mi scores are 256 MiB.
const BOUNDS: Bounds = Bounds { gathered: 64 << 10, scores: 64 << 20 };
/// Bytes of a device's memory that KV memory leaves for the results of operations.
const SCRATCH_BYTES: u64 = 2 << 30;

struct Layer {
    attention_norm: Tensor,
    /// Queries, keys and values one after the other, `[outputs, width]`.
    qkv: Tensor,
    bias: Option<Tensor>,
    /// Norms of each head's queries and keys, `[heads + kv heads, head width]`.
    head_norm: Option<Tensor>,
    attention_output: Tensor,
    feed_norm: Tensor,
    /// Gate and up one after the other, `[2 · hidden, width]`.
    gate_up: Tensor,
    down: Tensor,
}

/// The weights of a decoder, on a device.
pub struct TensorModel {
    dimensions: Dimensions,
    device: Device,
    /// Of weights, activations that are multiplied by them, keys and values.
    dtype: DType,
    bounds: Bounds,
    embedding: Tensor,
    layers: Vec<Layer>,
    output_norm: Tensor,
    /// The embedding, if there is no other.
    output: Tensor,
    /// Rotary frequencies, `[1, pair]`.
    frequencies: Tensor,
    /// As many ones as a head has elements: the weight of a norm whose own is applied after it.
    ones: Tensor,
}

impl TensorModel {
    /// Reads the weights of `file`, which must be of `architecture`, onto a device.
    pub fn load(file: &Gguf, device: &Device, architecture: &str, style: Style) -> Result<Self, LoadError> {
        let dtype = if device.is_cpu() { DType::F32 } else { DType::F16 };
        Self::load_as(file, device, dtype, architecture, style)
    }

    /// The same in a format of the caller's.
    fn load_as(
        file: &Gguf,
        device: &Device,
        dtype: DType,
        architecture: &str,
        style: Style,
    ) -> Result<Self, LoadError> {
        let d = Dimensions::read(file, architecture)?;
        let reader = Reader { file, device, dtype, d: &d, style };
        let embedding = reader.matrix(&["token_embd.weight"], &[d.vocabulary], d.width)?;
        let output = match file.has("output.weight") {
            true => reader.matrix(&["output.weight"], &[d.vocabulary], d.width)?,
            false => embedding.clone(),
        };
        let frequencies = frequencies(file, &d)?;
        Ok(Self {
            device: device.clone(),
            dtype,
            bounds: BOUNDS,
            embedding,
            layers: (0..d.layers).map(|n| reader.layer(n)).collect::<Result<_, _>>()?,
            output_norm: reader.vector("output_norm.weight", d.width)?,
            output,
            frequencies: reader.tensor("the rotary frequencies", frequencies, &[1, d.head_width / 2], DType::F32)?,
            ones: reader.tensor("a norm", vec![1.0; d.head_width], &[d.head_width], DType::F32)?,
            dimensions: d,
        })
    }
}

impl Model for TensorModel {
    fn shape(&self) -> Shape {
        let d = &self.dimensions;
        Shape {
            vocabulary: d.vocabulary,
            context_tokens: d.context_tokens,
            kv_bytes_per_token: d.layers * d.kv_width() * 2 * self.dtype.size_in_bytes(),
        }
    }

    /// What the device has free, less some for the results of operations.
    fn blocks_free(&self) -> Option<usize> {
        let block_bytes = (self.shape().kv_bytes_per_token * POSITIONS) as u64;
        let free = device::memory_free(&self.device)?;
        usize::try_from(free.saturating_sub(SCRATCH_BYTES) / block_bytes.max(1)).ok()
    }

    /// The team is not needed: the device has threads of its own.
    fn runner(self: Arc<Self>, blocks: usize, _rows: usize, _team: Arc<Team>) -> Box<dyn Runner> {
        Box::new(TensorRunner::new(self, blocks))
    }
}

/// Reads tensors of a file onto a device.
struct Reader<'a> {
    file: &'a Gguf,
    device: &'a Device,
    dtype: DType,
    d: &'a Dimensions,
    style: Style,
}

impl Reader<'_> {
    fn layer(&self, n: usize) -> Result<Layer, LoadError> {
        let d = self.d;
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let norm = |part: &str| self.vector(&name(part), d.width);
        let matrix = |parts: &[&str], outputs: &[usize], inputs| {
            let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            self.matrix(&names, outputs, inputs)
        };
        Ok(Layer {
            attention_norm: norm("attn_norm")?,
            qkv: matrix(&["attn_q", "attn_k", "attn_v"], &[d.query_width(), d.kv_width(), d.kv_width()], d.width)?,
            bias: self.bias(n)?,
            head_norm: self.head_norm(n)?,
            attention_output: matrix(&["attn_output"], &[d.width], d.query_width())?,
            feed_norm: norm("ffn_norm")?,
            gate_up: matrix(&["ffn_gate", "ffn_up"], &[d.hidden, d.hidden], d.width)?,
            down: matrix(&["ffn_down"], &[d.width], d.hidden)?,
        })
    }

    /// Matrices of equally many inputs, one below the other.
    fn matrix(&self, names: &[&str], outputs: &[usize], inputs: usize) -> Result<Tensor, LoadError> {
        let mut values = Vec::new();
        for (name, &outputs) in names.iter().zip(outputs) {
            let mut found = self.file.dequantised(name, &[outputs, inputs])?;
            if name.contains("attn_q.") || name.contains("attn_k.") {
                found = self.in_halves(found, inputs);
            }
            // One matrix alone, the embedding for example, is not copied.
            if values.is_empty() { values = found } else { values.extend_from_slice(&found) }
        }
        self.tensor(names[0], values, &[outputs.iter().sum(), inputs], self.dtype)
    }

    fn bias(&self, n: usize) -> Result<Option<Tensor>, LoadError> {
        let d = self.d;
        let parts = [("attn_q", d.query_width()), ("attn_k", d.kv_width()), ("attn_v", d.kv_width())];
        let mut values = Vec::new();
        for (part, width) in parts {
            let name = format!("blk.{n}.{part}.bias");
            if self.file.has(&name) {
                let found = self.file.floats(&name, width)?;
                values.extend(if part == "attn_v" { found } else { self.in_halves(found, 1) });
            }
        }
        match values.len() {
            0 => Ok(None),
            len if len == d.qkv_width() => {
                self.tensor("biases of queries, keys and values", values, &[1, len], DType::F32).map(Some)
            }
            _ => Err(self
                .file
                .invalid(format!("layer {n} has biases for some of queries, keys and values, not for all"))),
        }
    }

    fn head_norm(&self, n: usize) -> Result<Option<Tensor>, LoadError> {
        let d = self.d;
        let names = ["attn_q_norm", "attn_k_norm"].map(|part| format!("blk.{n}.{part}.weight"));
        if !names.iter().any(|name| self.file.has(name)) {
            return Ok(None);
        }
        let mut values = Vec::new();
        for (name, heads) in names.iter().zip([d.heads, d.kv_heads]) {
            let found = match self.file.has(name) {
                true => self.in_halves(self.file.floats(name, d.head_width)?, 1),
                false => {
                    return Err(self.file.invalid(format!("layer {n} has a norm for queries or keys, not for both")));
                }
            };
            (0..heads).for_each(|_| values.extend_from_slice(&found));
        }
        self.tensor("norms of heads", values, &[d.heads + d.kv_heads, d.head_width], DType::F32).map(Some)
    }

    /// Puts the elements of each head that turn together half a head apart, so that there is one way to turn them. Queries
    /// and keys are only ever multiplied with each other, so nobody sees in which order their elements are.
    fn in_halves(&self, values: Vec<f32>, inputs: usize) -> Vec<f32> {
        if self.style.rope == Rope::Halves {
            return values;
        }
        let width = self.d.head_width;
        let from = |to: usize| if to < width / 2 { 2 * to } else { 2 * (to - width / 2) + 1 };
        let heads = values.chunks_exact(width * inputs);
        let rows = heads.flat_map(|head| (0..width).map(move |to| &head[from(to) * inputs..(from(to) + 1) * inputs]));
        rows.flatten().copied().collect()
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor, LoadError> {
        self.tensor(name, self.file.floats(name, len)?, &[len], DType::F32)
    }

    fn tensor(&self, name: &str, values: Vec<f32>, shape: &[usize], dtype: DType) -> Result<Tensor, LoadError> {
        // Converted here, so that half as many bytes go over.
        let host = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype));
        let put = host.and_then(|tensor| tensor.to_device(self.device));
        put.map_err(|error| LoadError::Device {
            path: self.file.path().into(),
            tensor: name.to_owned(),
            reason: error.to_string(),
        })
    }
}
