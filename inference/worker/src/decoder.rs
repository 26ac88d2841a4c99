//! The family of decoders: what they are made of, and their weights as a file has them, packed for this processor.
//!
//! Architectures of the family differ in their [`Style`] and in what their layers have beside; each has a file of its own
//! that says so, as [`llama`](crate::llama) does. `pass` is the forward pass of all of them.

use std::sync::Arc;

use crate::gguf::{Gguf, LoadError};
use crate::kernel::pack::Packed;
use crate::kernel::{BLOCK, Kernels};
use crate::model::{Model, Runner, Shape};
use crate::team::Team;

mod pass;

/// Sizes of a model, checked against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dimensions {
    /// Width of the residual stream.
    pub width: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_width: usize,
    /// Width inside of the feed-forward part.
    pub hidden: usize,
    /// Tokens known.
    pub vocabulary: usize,
    /// Longest sequence in tokens.
    pub context_tokens: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Positions are divided by it: 1, or more in models that were stretched to longer contexts than they were trained with.
    pub rope_stretch: f32,
    /// Added to mean squares.
    pub epsilon: f32,
}

impl Dimensions {
    /// Reads and checks the sizes in the metadata of a file, which says it is of `architecture`.
    pub fn read(file: &Gguf, architecture: &str) -> Result<Self, LoadError> {
        let found = file.text("general.architecture")?;
        if found != architecture {
            return Err(LoadError::Architecture { path: file.path().into(), architecture: found.to_owned() });
        }
        let key = |name: &str| format!("{architecture}.{name}");
        let heads = file.number(&key("attention.head_count"))?;
        let width = file.number(&key("embedding_length"))?;
        let dimensions = Self {
            width,
            layers: file.number(&key("block_count"))?,
            heads,
            kv_heads: file.number(&key("attention.head_count_kv")).unwrap_or(heads),
            head_width: file.number(&key("attention.key_length")).unwrap_or(width.checked_div(heads).unwrap_or(0)),
            hidden: file.number(&key("feed_forward_length"))?,
            vocabulary: file.list("tokenizer.ggml.tokens")?.len(),
            context_tokens: file.number(&key("context_length"))?,
            rope_base: file.float(&key("rope.freq_base")).unwrap_or(10_000.0),
            rope_stretch: stretch(file, architecture)?,
            epsilon: file.float(&key("attention.layer_norm_rms_epsilon"))?,
        };
        let Self { head_width, kv_heads, hidden, layers, context_tokens, .. } = dimensions;
        let in_range =
            [width, layers, heads, kv_heads, head_width, hidden, context_tokens].iter().all(|&n| n > 0 && n < 1 << 24);
        if !in_range || heads % kv_heads != 0 {
            return Err(file.invalid(format!("the sizes make no sense: {dimensions:?}")));
        }
        // Heads that share keys write whole blocks of activations.
        if [width, hidden, heads / kv_heads * head_width].iter().any(|n| n % BLOCK != 0) || head_width % 8 != 0 {
            let what = "widths and the heads of one key must be multiples of";
            return Err(file.invalid(format!("{what} {BLOCK}, a head of 8: {dimensions:?}")));
        }
        let of_values = file.number(&key("attention.value_length")).unwrap_or(head_width);
        if of_values != head_width {
            return Err(file.invalid(format!("heads have keys of {head_width} elements and values of {of_values}")));
        }
        let rotated = file.number(&key("rope.dimension_count")).unwrap_or(head_width);
        if rotated != head_width {
            return Err(file.invalid(format!("{rotated} of {head_width} elements of a head are rotated; all must be")));
        }
        Ok(dimensions)
    }

    /// Elements of all keys, or values, of a row.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    /// Elements of all queries of a row.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Elements of queries, keys and values of a row.
    pub(crate) fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rope {
    /// Neighbours: 0 and 1, 2 and 3.
    Pairs,
    /// One of each half: 0 and width / 2, 1 and width / 2 + 1.
    Halves,
}

/// In what architectures of this family differ. What a layer has beside (biases of queries, keys and values; norms of
/// their heads) is found in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// How positions turn queries and keys.
    pub rope: Rope,
}

struct Layer {
    attention_norm: Vec<f32>,
    query: Packed,
    key: Packed,
    value: Packed,
    /// Of queries, keys and values, one after the other.
    bias: Option<Vec<f32>>,
    /// Norms of each head's queries and keys.
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    attention_output: Packed,
    feed_norm: Vec<f32>,
    gate: Packed,
    up: Packed,
    down: Packed,
}

impl Layer {
    fn load(file: &Gguf, kernels: Kernels, d: &Dimensions, n: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("blk.{n}.{part}.weight");
        let matrix = |part: &str, outputs, inputs| packed(file, kernels, &name(part), outputs, inputs);
        let optional = |name: String, len| file.has(&name).then(|| file.floats(&name, len)).transpose();
        let widths = [("attn_q", d.query_width()), ("attn_k", d.kv_width()), ("attn_v", d.kv_width())];
        let biases = widths.map(|(part, width)| optional(format!("blk.{n}.{part}.bias"), width));
        let mut bias = Vec::new();
        for found in biases {
            bias.extend(found?.unwrap_or_default());
        }
        if !bias.is_empty() && bias.len() != d.qkv_width() {
            return Err(file.invalid(format!("layer {n} has biases for some of queries, keys and values, not for all")));
        }
        let query_norm = optional(name("attn_q_norm"), d.head_width)?;
        let key_norm = optional(name("attn_k_norm"), d.head_width)?;
        if query_norm.is_some() != key_norm.is_some() {
            return Err(file.invalid(format!("layer {n} has a norm for queries or for keys, not for both")));
        }
        Ok(Self {
            attention_norm: file.floats(&name("attn_norm"), d.width)?,
            query: matrix("attn_q", d.query_width(), d.width)?,
            key: matrix("attn_k", d.kv_width(), d.width)?,
            value: matrix("attn_v", d.kv_width(), d.width)?,
            bias: (!bias.is_empty()).then_some(bias),
            query_norm,
            key_norm,
            attention_output: matrix("attn_output", d.width, d.query_width())?,
            feed_norm: file.floats(&name("ffn_norm"), d.width)?,
            gate: matrix("ffn_gate", d.hidden, d.width)?,
            up: matrix("ffn_up", d.hidden, d.width)?,
            down: matrix("ffn_down", d.width, d.hidden)?,
        })
    }
}

/// The weights of a model of this family, packed for this processor.
pub struct Decoder {
    dimensions: Dimensions,
    style: Style,
    kernels: Kernels,
    embedding: Packed,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// None: the embedding is the output matrix too, as small models have it.
    output: Option<Packed>,
    /// Rotary frequencies, `[pair]`.
    frequencies: Vec<f32>,
}

impl Decoder {
    /// Reads and packs the weights of `file`, which must be of `architecture`.
    pub fn load(file: &Gguf, kernels: Kernels, architecture: &str, style: Style) -> Result<Self, LoadError> {
        let d = Dimensions::read(file, architecture)?;
        let frequencies = frequencies(file, &d)?;
        let matrix = |name, outputs| packed(file, kernels, name, outputs, d.width);
        let output = match file.has("output.weight") {
            true => Some(matrix("output.weight", d.vocabulary)?),
            false => None,
        };
        Ok(Self {
            dimensions: d,
            style,
            kernels,
            embedding: matrix("token_embd.weight", d.vocabulary)?,
            layers: (0..d.layers).map(|n| Layer::load(file, kernels, &d, n)).collect::<Result<_, _>>()?,
            output_norm: file.floats("output_norm.weight", d.width)?,
            output,
            frequencies,
        })
    }

    /// All that activations are multiplied by.
    fn matrices(&self) -> impl Iterator<Item = &Packed> {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let of_layers = self.layers.iter().flat_map(|layer| {
            let Layer { query, key, value, attention_output, gate, up, down, .. } = layer;
            [query, key, value, attention_output, gate, up, down]
        });
        of_layers.chain([output])
    }

    /// Its sizes.
    pub fn dimensions(&self) -> &Dimensions {
        &self.dimensions
    }
}

/// What positions are divided by.
fn stretch(file: &Gguf, architecture: &str) -> Result<f32, LoadError> {
    let kind = format!("{architecture}.rope.scaling.type");
    match file.value(&kind).map(|_| file.text(&kind)).transpose()? {
        None | Some("none") => Ok(1.0),
        Some("linear") => {
            let factor = file.float(&format!("{architecture}.rope.scaling.factor"))?;
            let makes_sense = factor.is_finite() && factor >= 1.0;
            makes_sense.then_some(factor).ok_or_else(|| file.invalid(format!("positions are divided by {factor}")))
        }
        Some(other) => Err(file.invalid(format!("positions are scaled by {other:?}; this build knows \"linear\""))),
    }
}

/// How fast each pair of elements of a head turns with the position.
pub(crate) fn frequencies(file: &Gguf, d: &Dimensions) -> Result<Vec<f32>, LoadError> {
    let pairs = d.head_width / 2;
    let turn = |n: usize| d.rope_base.powf(-(n as f32) / pairs as f32) / d.rope_stretch;
    let mut frequencies: Vec<f32> = (0..pairs).map(turn).collect();
    // Llama 3 stretches the slow ones.
    if file.has("rope_freqs.weight") {
        let factors = file.floats("rope_freqs.weight", pairs)?;
        frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    Ok(frequencies)
}

fn packed(file: &Gguf, kernels: Kernels, name: &str, outputs: usize, inputs: usize) -> Result<Packed, LoadError> {
    let (format, raw) = file.matrix(name, outputs, inputs)?;
    Packed::new(format, &raw, outputs, inputs, kernels.isa().lanes())
        .map_err(|source| LoadError::Memory { path: file.path().into(), source })
}

impl Model for Decoder {
    fn shape(&self) -> Shape {
        let d = &self.dimensions;
        Shape {
            vocabulary: d.vocabulary,
            context_tokens: d.context_tokens,
            kv_bytes_per_token: d.layers * d.kv_width() * 2 * size_of::<u16>(),
        }
    }

    fn runner(self: Arc<Self>, blocks: usize, rows: usize, team: Arc<Team>) -> Box<dyn Runner> {
        Box::new(pass::DecoderRunner::new(self, blocks, rows, team))
    }
}

#[cfg(test)]
pub(crate) mod tests;
