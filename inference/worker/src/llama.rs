//! The Llama architecture: one forward pass over packed rows of any sequences at any positions.
//!
//! A row is (slot, position, token). Prefill of a chunk is many rows of one sequence, decoding is one row of each of many;
//! both are the same pass. Norms, matrix products and the feed-forward part see rows only; attention alone knows that rows
//! belong to sequences.

use std::sync::Arc;

use thalweg_scheduler::Row;

use crate::gguf::{Gguf, LoadError};
use crate::kernel::attention::{self, Head, POSITIONS, Queries};
use crate::kernel::pack::Packed;
use crate::kernel::{Activations, BLOCK, Kernels, vector};
use crate::model::{Linear, Model, Runner, Shape};

/// Query vectors that attend together, so that keys and values are read once for all of them.
const QUERIES_TOGETHER: usize = 16;

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
    /// Added to mean squares.
    pub epsilon: f32,
}

impl Dimensions {
    /// Reads and checks the sizes in a file's metadata.
    pub fn read(file: &Gguf) -> Result<Self, LoadError> {
        let architecture = file.text("general.architecture")?;
        if architecture != "llama" {
            let architecture = architecture.to_owned();
            return Err(LoadError::Architecture { path: file.path().into(), architecture });
        }
        let heads = file.number("llama.attention.head_count")?;
        let width = file.number("llama.embedding_length")?;
        let dimensions = Self {
            width,
            layers: file.number("llama.block_count")?,
            heads,
            kv_heads: file.number("llama.attention.head_count_kv").unwrap_or(heads),
            head_width: file.number("llama.attention.key_length").unwrap_or(width.checked_div(heads).unwrap_or(0)),
            hidden: file.number("llama.feed_forward_length")?,
            vocabulary: file.list("tokenizer.ggml.tokens")?.len(),
            context_tokens: file.number("llama.context_length")?,
            rope_base: file.float("llama.rope.freq_base").unwrap_or(10_000.0),
            epsilon: file.float("llama.attention.layer_norm_rms_epsilon")?,
        };
        let Self { head_width, kv_heads, hidden, layers, context_tokens, .. } = dimensions;
        let in_range =
            [width, layers, heads, kv_heads, head_width, hidden, context_tokens].iter().all(|&n| n > 0 && n < 1 << 24);
        if !in_range || heads % kv_heads != 0 {
            return Err(file.invalid(format!("the sizes make no sense: {dimensions:?}")));
        }
        if [width, hidden, heads * head_width].iter().any(|n| n % BLOCK != 0) || head_width % 8 != 0 {
            return Err(file.invalid(format!("widths must be multiples of {BLOCK}, of a head 8: {dimensions:?}")));
        }
        let rotated = file.number("llama.rope.dimension_count").unwrap_or(head_width);
        if rotated != head_width {
            return Err(file.invalid(format!("{rotated} of {head_width} elements of a head are rotated; all must be")));
        }
        if file.has("rope_freqs.weight") {
            return Err(file.invalid("scaled rotary frequencies (rope_freqs.weight) are not supported by this build"));
        }
        Ok(dimensions)
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }
}

/// A packed matrix and the kernels for it.
struct Quantised {
    packed: Packed,
    kernels: Kernels,
}

impl Linear for Quantised {
    fn inputs(&self) -> usize {
        self.packed.inputs()
    }
    fn outputs(&self) -> usize {
        self.packed.outputs()
    }
    fn forward(&self, x: &Activations, out: &mut [f32], stride: usize, column: usize) {
        self.kernels.multiply(&self.packed, x, out, stride, column);
    }
    fn row(&self, output: usize, row: &mut [f32]) {
        self.packed.dequantise_row(output, row);
    }
}

struct Layer {
    attention_norm: Vec<f32>,
    query: Box<dyn Linear>,
    key: Box<dyn Linear>,
    value: Box<dyn Linear>,
    attention_output: Box<dyn Linear>,
    feed_norm: Vec<f32>,
    gate: Box<dyn Linear>,
    up: Box<dyn Linear>,
    down: Box<dyn Linear>,
}

/// The weights of a model of this architecture, packed for this processor.
pub struct Llama {
    dimensions: Dimensions,
    kernels: Kernels,
    embedding: Arc<dyn Linear>,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Arc<dyn Linear>,
    /// Rotary frequencies, `[pair]`.
    frequencies: Vec<f32>,
}

impl Llama {
    /// Reads and packs the weights of `file`.
    pub fn load(file: &Gguf, kernels: Kernels) -> Result<Self, LoadError> {
        let d = Dimensions::read(file)?;
        let linear = |name: String, outputs, inputs| -> Result<Box<dyn Linear>, LoadError> {
            Ok(Box::new(quantised(file, kernels, &name, outputs, inputs)?))
        };
        let layer = |n: usize| -> Result<Layer, LoadError> {
            let name = |part: &str| format!("blk.{n}.{part}.weight");
            Ok(Layer {
                attention_norm: file.floats(&name("attn_norm"), d.width)?,
                query: linear(name("attn_q"), d.heads * d.head_width, d.width)?,
                key: linear(name("attn_k"), d.kv_width(), d.width)?,
                value: linear(name("attn_v"), d.kv_width(), d.width)?,
                attention_output: linear(name("attn_output"), d.width, d.heads * d.head_width)?,
                feed_norm: file.floats(&name("ffn_norm"), d.width)?,
                gate: linear(name("ffn_gate"), d.hidden, d.width)?,
                up: linear(name("ffn_up"), d.hidden, d.width)?,
                down: linear(name("ffn_down"), d.width, d.hidden)?,
            })
        };
        let embedding: Arc<dyn Linear> =
            Arc::new(quantised(file, kernels, "token_embd.weight", d.vocabulary, d.width)?);
        // Small models use the embedding as the output matrix too.
        let output: Arc<dyn Linear> = match file.has("output.weight") {
            true => Arc::new(quantised(file, kernels, "output.weight", d.vocabulary, d.width)?),
            false => Arc::clone(&embedding),
        };
        let pairs = d.head_width / 2;
        Ok(Self {
            dimensions: d,
            kernels,
            embedding,
            layers: (0..d.layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: file.floats("output_norm.weight", d.width)?,
            output,
            frequencies: (0..pairs).map(|n| d.rope_base.powf(-(n as f32) / pairs as f32)).collect(),
        })
    }

    /// Its sizes.
    pub fn dimensions(&self) -> &Dimensions {
        &self.dimensions
    }
}

fn quantised(file: &Gguf, kernels: Kernels, name: &str, outputs: usize, inputs: usize) -> Result<Quantised, LoadError> {
    let (format, raw) = file.matrix(name, outputs, inputs)?;
    let packed = Packed::new(format, raw, outputs, inputs, kernels.isa().lanes());
    Ok(Quantised { packed: packed.map_err(|source| LoadError::Memory { path: file.path().into(), source })?, kernels })
}

impl Model for Llama {
    fn shape(&self) -> Shape {
        let d = &self.dimensions;
        Shape {
            vocabulary: d.vocabulary,
            context_tokens: d.context_tokens,
            kv_bytes_per_token: d.layers * d.kv_width() * 2 * size_of::<u16>(),
        }
    }

    fn runner(self: Arc<Self>, slots: usize, rows: usize) -> Box<dyn Runner> {
        let slabs = (0..slots).map(|_| Slab::default()).collect();
        let mut scratch = Scratch::default();
        scratch.reset(&self.dimensions, rows);
        Box::new(LlamaRunner {
            model: self,
            slabs,
            scratch,
            activations: Activations::default(),
            queries: Queries::default(),
        })
    }
}

/// The keys and values of one sequence, as halves.
///
/// `[layer][key or value][kv head]`, and inside as [`Head`] wants it. The memory comes zeroed from the system and is
/// touched as the sequence grows.
#[derive(Default)]
struct Slab {
    capacity: usize,
    halves: Vec<u16>,
}

impl Slab {
    /// Where keys (`part` 0) or values (`part` 1) of a head lie.
    fn range(&self, d: &Dimensions, layer: usize, part: usize, head: usize) -> std::ops::Range<usize> {
        let len = self.capacity * d.head_width;
        let start = ((layer * 2 + part) * d.kv_heads + head) * len;
        start..start + len
    }
}

/// Intermediate rows, each `[row][element]`.
#[derive(Default)]
struct Scratch {
    residual: Vec<f32>,
    normed: Vec<f32>,
    /// Queries, keys and values of a row side by side.
    qkv: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    /// Gate and up of a row side by side.
    gate_up: Vec<f32>,
    hidden: Vec<f32>,
    halves: Vec<u16>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    logits: Vec<f32>,
    logits_len: usize,
}

impl Scratch {
    fn reset(&mut self, d: &Dimensions, rows: usize) {
        let heads = d.heads * d.head_width;
        self.residual.resize(rows * d.width, 0.0);
        self.normed.resize(d.width, 0.0);
        self.qkv.resize(rows * (heads + 2 * d.kv_width()), 0.0);
        self.attended.resize(rows * heads, 0.0);
        self.projected.resize(rows * d.width, 0.0);
        self.gate_up.resize(rows * 2 * d.hidden, 0.0);
        self.hidden.resize(d.hidden, 0.0);
        self.halves.resize(d.head_width, 0);
        self.cosines.resize(rows * d.head_width / 2, 0.0);
        self.sines.resize(rows * d.head_width / 2, 0.0);
    }
}

struct LlamaRunner {
    model: Arc<Llama>,
    slabs: Vec<Slab>,
    scratch: Scratch,
    activations: Activations,
    queries: Queries,
}

impl Runner for LlamaRunner {
    fn reserve(&mut self, slot: usize, tokens: usize) {
        let d = &self.model.dimensions;
        let capacity = tokens.min(d.context_tokens).next_multiple_of(POSITIONS);
        self.slabs[slot] = Slab { capacity, halves: vec![0; d.layers * 2 * d.kv_width() * capacity] };
    }

    fn release(&mut self, slot: usize) {
        self.slabs[slot] = Slab::default();
    }

    fn step(&mut self, rows: &[Row]) {
        let model = Arc::clone(&self.model);
        self.scratch.reset(&model.dimensions, rows.len());
        self.embed(&model, rows);
        for layer in 0..model.layers.len() {
            self.attention(&model, layer, rows);
            self.feed_forward(&model, layer, rows.len());
        }
        self.draw_from(&model, rows);
    }

    fn logits(&self) -> &[f32] {
        &self.scratch.logits[..self.scratch.logits_len]
    }
}

impl LlamaRunner {
    /// Looks up the embeddings, and the angles of each row's position.
    fn embed(&mut self, model: &Llama, rows: &[Row]) {
        let d = &model.dimensions;
        let pairs = d.head_width / 2;
        for (n, row) in rows.iter().enumerate() {
            assert!((row.position as usize) < self.slabs[row.slot as usize].capacity, "the slot has room for the row");
            model.embedding.row(row.token as usize, &mut self.scratch.residual[n * d.width..][..d.width]);
            for (pair, &frequency) in model.frequencies.iter().enumerate() {
                let (sin, cos) = (row.position as f32 * frequency).sin_cos();
                self.scratch.cosines[n * pairs + pair] = cos;
                self.scratch.sines[n * pairs + pair] = sin;
            }
        }
    }

    /// Norms the residual of each row and quantises it for the products that follow.
    fn norm(&mut self, model: &Llama, weight: &[f32], rows: impl ExactSizeIterator<Item = usize>) {
        let width = model.dimensions.width;
        self.activations.reset(rows.len(), width);
        for (to, from) in rows.enumerate() {
            let residual = &self.scratch.residual[from * width..][..width];
            vector::rms_norm(model.kernels, residual, weight, model.dimensions.epsilon, &mut self.scratch.normed);
            self.activations.set_row(model.kernels, to, &self.scratch.normed);
        }
    }

    fn attention(&mut self, model: &Llama, layer: usize, rows: &[Row]) {
        let (d, kernels, weights) = (&model.dimensions, model.kernels, &model.layers[layer]);
        let heads = d.heads * d.head_width;
        let stride = heads + 2 * d.kv_width();
        self.norm(model, &weights.attention_norm, 0..rows.len());
        let qkv = &mut self.scratch.qkv;
        weights.query.forward(&self.activations, qkv, stride, 0);
        weights.key.forward(&self.activations, qkv, stride, heads);
        weights.value.forward(&self.activations, qkv, stride, heads + d.kv_width());
        for (n, row) in rows.iter().enumerate() {
            self.keep(model, layer, n, row);
        }
        let mut start = 0;
        for sequence in rows.chunk_by(|a, b| a.slot == b.slot) {
            self.attend(model, layer, start, sequence);
            start += sequence.len();
        }
        self.activations.reset(rows.len(), heads);
        for n in 0..rows.len() {
            self.activations.set_row(kernels, n, &self.scratch.attended[n * heads..][..heads]);
        }
        self.project(model, &*weights.attention_output, rows.len());
    }

    /// Rotates queries and keys of row `n`, and puts its keys and values into the sequence's slab.
    fn keep(&mut self, model: &Llama, layer: usize, n: usize, row: &Row) {
        let (d, kernels) = (&model.dimensions, model.kernels);
        let (pairs, heads) = (d.head_width / 2, d.heads * d.head_width);
        let stride = heads + 2 * d.kv_width();
        let Scratch { qkv, cosines, sines, halves, .. } = &mut self.scratch;
        let (cosines, sines) = (&cosines[n * pairs..][..pairs], &sines[n * pairs..][..pairs]);
        let (rotated, values) = qkv[n * stride..][..stride].split_at_mut(heads + d.kv_width());
        for head in rotated.chunks_exact_mut(d.head_width) {
            vector::rotate(kernels, head, cosines, sines);
        }
        let position = row.position as usize;
        let slab = &mut self.slabs[row.slot as usize];
        let both = rotated[heads..].chunks_exact(d.head_width).zip(values.chunks_exact(d.head_width));
        for (head, (key, value)) in both.enumerate() {
            let (keys_at, values_at) = (slab.range(d, layer, 0, head), slab.range(d, layer, 1, head));
            vector::to_halves(kernels, key, halves);
            attention::put_key(&mut slab.halves[keys_at], position, halves);
            let values = &mut slab.halves[values_at];
            vector::to_halves(kernels, value, &mut values[position * d.head_width..][..d.head_width]);
        }
    }

    /// Attention of consecutive rows of one sequence, the first of which is row `start` of the step.
    fn attend(&mut self, model: &Llama, layer: usize, start: usize, sequence: &[Row]) {
        let d = &model.dimensions;
        let (heads, shared) = (d.heads * d.head_width, d.heads / d.kv_heads);
        let stride = heads + 2 * d.kv_width();
        let scale = 1.0 / (d.head_width as f32).sqrt();
        let slab = &self.slabs[sequence[0].slot as usize];
        let together = (QUERIES_TOGETHER / shared).max(1);
        for kv_head in 0..d.kv_heads {
            let head = Head {
                width: d.head_width,
                keys: &slab.halves[slab.range(d, layer, 0, kv_head)],
                values: &slab.halves[slab.range(d, layer, 1, kv_head)],
            };
            let columns = kv_head * shared * d.head_width..(kv_head + 1) * shared * d.head_width;
            for (tile, rows) in sequence.chunks(together).enumerate() {
                let first = start + tile * together;
                self.queries.vectors.clear();
                self.queries.visible.clear();
                for (n, row) in rows.iter().enumerate() {
                    let query = &self.scratch.qkv[(first + n) * stride..][columns.clone()];
                    self.queries.vectors.extend(query.iter().map(|q| q * scale));
                    self.queries.visible.extend(std::iter::repeat_n(row.position as usize + 1, shared));
                }
                attention::attend(model.kernels, head, &mut self.queries);
                for (n, output) in self.queries.outputs.chunks_exact(columns.len()).enumerate() {
                    self.scratch.attended[(first + n) * heads..][columns.clone()].copy_from_slice(output);
                }
            }
        }
    }

    fn feed_forward(&mut self, model: &Llama, layer: usize, rows: usize) {
        let (d, kernels, weights) = (&model.dimensions, model.kernels, &model.layers[layer]);
        self.norm(model, &weights.feed_norm, 0..rows);
        let gate_up = &mut self.scratch.gate_up;
        weights.gate.forward(&self.activations, gate_up, 2 * d.hidden, 0);
        weights.up.forward(&self.activations, gate_up, 2 * d.hidden, d.hidden);
        self.activations.reset(rows, d.hidden);
        for row in 0..rows {
            let (gate, up) = self.scratch.gate_up[row * 2 * d.hidden..][..2 * d.hidden].split_at(d.hidden);
            vector::swiglu(kernels, gate, up, &mut self.scratch.hidden);
            self.activations.set_row(kernels, row, &self.scratch.hidden);
        }
        self.project(model, &*weights.down, rows);
    }

    /// Multiplies the activations back to the width of the residual stream and adds them to it.
    fn project(&mut self, model: &Llama, matrix: &dyn Linear, rows: usize) {
        let width = model.dimensions.width;
        matrix.forward(&self.activations, &mut self.scratch.projected, width, 0);
        let len = rows * width;
        vector::add(model.kernels, &self.scratch.projected[..len], &mut self.scratch.residual[..len]);
    }

    /// Multiplies the rows that want logits by the output matrix.
    fn draw_from(&mut self, model: &Llama, rows: &[Row]) {
        let wanted: Vec<usize> = (0..rows.len()).filter(|&n| rows[n].wants_logits).collect();
        let vocabulary = model.dimensions.vocabulary;
        self.norm(model, &model.output_norm, wanted.iter().copied());
        let logits = &mut self.scratch.logits;
        logits.resize(logits.len().max(wanted.len() * vocabulary), 0.0);
        model.output.forward(&self.activations, logits, vocabulary, 0);
        self.scratch.logits_len = wanted.len() * vocabulary;
    }
}
