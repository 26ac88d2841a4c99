//! The BERT architecture (Devlin et al. 2019) as sentence encoders use it: texts in, one vector each out.
//!
//! Tokens of all texts of a pass are packed as rows, without padding; products and norms see rows only, attention alone
//! knows which text a row belongs to. Weights are quantised to 16 bits as they are loaded, activations as they come: with 8 bits,
//! as language models have them, vectors of very short texts end up too far (cosine 0.998) from those of others. A pass
//! goes in small units of work ([`Encoder::advance`]), so that whoever runs it may do something else in between: one
//! text of 256 tokens takes as long as several steps of a language model.

use std::ops::Range;
use std::sync::Arc;

use crate::gguf::LoadError;
use crate::kernel::encoder::{self, TextHead};
use crate::kernel::wide::{self, Rows, Wide};
use crate::kernel::{BLOCK, Kernels, vector};
use crate::safetensors::Safetensors;

/// Rows that go through the products of a layer in one unit of work. Fewer read the weights of a layer more often, more
/// make others wait: this is about half a millisecond for a width of 384.
pub const UNIT_ROWS: usize = 32;

/// Elements of a head where a file does not say: those of the small encoders (width 384, 12 heads) have 32, those of all
/// others 64.
fn head_width(width: usize) -> usize {
    if width <= 384 && width.is_multiple_of(12 * 32) { 32 } else { 64 }
}

/// Sizes of a model, read off its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dimensions {
    /// Width of the residual stream, and of what comes out.
    pub width: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Elements of a head.
    pub head_width: usize,
    /// Width inside of the feed-forward part.
    pub hidden: usize,
    /// Tokens known.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub positions: usize,
    /// Added to variances.
    pub epsilon: f32,
}

impl Dimensions {
    fn read(file: &Safetensors) -> Result<Self, LoadError> {
        let [vocabulary, width] = file.matrix_dims(WORDS)?;
        let [positions, _] = file.matrix_dims(PLACES)?;
        let [hidden, _] = file.matrix_dims(&in_layer(0, "intermediate.dense.weight"))?;
        let layers = (0..).take_while(|n| file.has(&in_layer(*n, "output.dense.weight"))).count();
        let dimensions =
            Self { width, layers, head_width: head_width(width), hidden, vocabulary, positions, epsilon: 1e-12 };
        let in_range = [width, layers, hidden, vocabulary, positions].iter().all(|&n| n > 0 && n < 1 << 24);
        if !in_range
            || [width, hidden, width / dimensions.head_width * dimensions.head_width].iter().any(|n| n % BLOCK != 0)
        {
            return Err(file.invalid(format!("its sizes make no sense or are no multiples of {BLOCK}: {dimensions:?}")));
        }
        if width % dimensions.head_width != 0 {
            let head = dimensions.head_width;
            return Err(file.invalid(format!("a width of {width} is not made of heads of {head}")));
        }
        Ok(dimensions)
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.width / self.head_width
    }
}

/// A tensor that every file of this architecture has.
const WORDS: &str = "embeddings.word_embeddings.weight";
const PLACES: &str = "embeddings.position_embeddings.weight";

fn in_layer(layer: usize, part: &str) -> String {
    format!("encoder.layer.{layer}.{part}")
}

struct Norm {
    weight: Vec<f32>,
    shift: Vec<f32>,
}

struct Layer {
    /// Queries, keys and values side by side.
    qkv: Wide,
    project: Wide,
    attention_norm: Norm,
    up: Wide,
    down: Wide,
    feed_norm: Norm,
}

/// The weights of a model of this architecture, packed for this processor.
pub struct Bert {
    dimensions: Dimensions,
    kernels: Kernels,
    /// `[token][element]`, as halves.
    words: Vec<u16>,
    /// `[position][element]`, with the embedding of the first segment added: there is no second.
    places: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Opens a safetensors file, reads and packs its weights.
    ///
    /// # Errors
    /// The file cannot be read or is no model of this architecture.
    pub fn open(path: &std::path::Path, kernels: Kernels) -> Result<Self, LoadError> {
        Self::load(&Safetensors::open(path, WORDS)?, kernels)
    }

    /// Reads and packs the weights of `file`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the others ask for.
    pub fn load(file: &Safetensors, kernels: Kernels) -> Result<Self, LoadError> {
        let d = Dimensions::read(file)?;
        let norm = |name: String| -> Result<Norm, LoadError> {
            let part = |part: &str| file.floats(&format!("{name}.LayerNorm.{part}"), &[d.width]);
            Ok(Norm { weight: part("weight")?, shift: part("bias")? })
        };
        let mut places = file.floats(PLACES, &[d.positions, d.width])?;
        let [segments, _] = file.matrix_dims("embeddings.token_type_embeddings.weight")?;
        let segments = file.floats("embeddings.token_type_embeddings.weight", &[segments, d.width])?;
        let first = segments.get(..d.width).ok_or_else(|| file.invalid("it has no segment embedding"))?;
        places.chunks_exact_mut(d.width).for_each(|place| place.iter_mut().zip(first).for_each(|(p, s)| *p += s));
        let floats = file.floats(WORDS, &[d.vocabulary, d.width])?;
        let mut words = vec![0; floats.len()];
        vector::to_halves(kernels, &floats, &mut words);
        let layer = |n: usize| -> Result<Layer, LoadError> {
            let matrix = |parts: &[&str], outputs: usize, inputs: usize| matrix(file, n, parts, outputs, inputs);
            Ok(Layer {
                qkv: matrix(&["attention.self.query", "attention.self.key", "attention.self.value"], d.width, d.width)?,
                project: matrix(&["attention.output.dense"], d.width, d.width)?,
                attention_norm: norm(in_layer(n, "attention.output"))?,
                up: matrix(&["intermediate.dense"], d.hidden, d.width)?,
                down: matrix(&["output.dense"], d.width, d.hidden)?,
                feed_norm: norm(in_layer(n, "output"))?,
            })
        };
        let layers = (0..d.layers).map(layer).collect::<Result<_, _>>()?;
        Ok(Self { dimensions: d, kernels, words, places, norm: norm("embeddings".into())?, layers })
    }

    /// Its sizes.
    pub fn dimensions(&self) -> &Dimensions {
        &self.dimensions
    }
}

/// The weights and biases of `parts` of a layer, each of `outputs` × `inputs`, one below the other.
fn matrix(file: &Safetensors, layer: usize, parts: &[&str], outputs: usize, inputs: usize) -> Result<Wide, LoadError> {
    let (mut weights, mut bias) = (Vec::new(), Vec::new());
    for part in parts {
        weights.extend(file.floats(&in_layer(layer, &format!("{part}.weight")), &[outputs, inputs])?);
        bias.extend(file.floats(&in_layer(layer, &format!("{part}.bias")), &[outputs])?);
    }
    if weights.iter().chain(&bias).any(|weight| !weight.is_finite()) {
        return Err(file.invalid(format!("{} has weights that are not finite", in_layer(layer, parts[0]))));
    }
    Wide::new(&weights, &bias, inputs).map_err(|source| LoadError::Memory { path: file.path().into(), source })
}

/// A unit of work of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Queries, keys and values of some rows from this one.
    Project { layer: usize, row: usize },
    /// One head of one text.
    Attend { layer: usize, text: usize, head: usize },
    /// What follows attention, for some rows from this one.
    Feed { layer: usize, row: usize },
    /// The texts' vectors.
    Pool,
    /// Nothing.
    Done,
}

/// Texts on their way through a model, with the scratch memory for it.
///
/// [`begin`](Self::begin) with texts, [`advance`](Self::advance) until that says so, take the
/// [`vectors`](Self::vectors).
pub struct Encoder {
    model: Arc<Bert>,
    /// The rows of each text.
    texts: Vec<Range<usize>>,
    rows: usize,
    next: Unit,
    /// `[row][element]`: the residual stream.
    residual: Vec<f32>,
    /// `[row][query, key, value]`
    qkv: Vec<f32>,
    /// `[row][element]`
    attended: Vec<f32>,
    /// `[row of a unit][element]`
    projected: Vec<f32>,
    /// `[row of a unit][element]`
    hidden: Vec<f32>,
    activations: Rows,
    head: TextHead,
    /// `[text][element]`
    vectors: Vec<f32>,
}

impl Encoder {
    /// One with nothing to do.
    pub fn new(model: Arc<Bert>) -> Self {
        let d = model.dimensions;
        Self {
            texts: Vec::new(),
            rows: 0,
            next: Unit::Done,
            residual: Vec::new(),
            qkv: Vec::new(),
            attended: Vec::new(),
            projected: vec![0.0; UNIT_ROWS * d.width],
            hidden: vec![0.0; UNIT_ROWS * d.hidden],
            activations: Rows::default(),
            head: TextHead::default(),
            vectors: Vec::new(),
            model,
        }
    }

    /// The model it runs.
    pub fn model(&self) -> &Bert {
        &self.model
    }

    /// Starts over with `texts`, each its tokens. Panics if a text is empty, longer than the model's positions, or holds
    /// a token that the model does not know: the tokenizer's reader saw to that.
    pub fn begin(&mut self, texts: &[&[u32]]) {
        let d = self.model.dimensions;
        self.texts.clear();
        self.rows = texts.iter().map(|text| text.len()).sum();
        self.residual.clear();
        self.residual.resize(self.rows * d.width, 0.0);
        self.qkv.resize(self.rows * 3 * d.width, 0.0);
        self.attended.resize(self.rows * d.width, 0.0);
        self.vectors.clear();
        self.vectors.resize(texts.len() * d.width, 0.0);
        let (mut word, mut row) = (vec![0.0; d.width], 0);
        let norm = &self.model.norm;
        for text in texts {
            assert!(!text.is_empty() && text.len() <= d.positions, "a text has 1 to {} tokens", d.positions);
            self.texts.push(row..row + text.len());
            for (&token, place) in text.iter().zip(self.model.places.chunks_exact(d.width)) {
                let (kernels, residual) = (self.model.kernels, &mut self.residual[row * d.width..][..d.width]);
                vector::to_floats(kernels, &self.model.words[token as usize * d.width..][..d.width], &mut word);
                residual.copy_from_slice(place);
                encoder::add_norm(kernels, &word, &norm.weight, &norm.shift, d.epsilon, residual);
                row += 1;
            }
        }
        self.next = if texts.is_empty() { Unit::Done } else { Unit::Project { layer: 0, row: 0 } };
    }

    /// Does one unit of work. False once there is nothing left to do.
    pub fn advance(&mut self) -> bool {
        let model = Arc::clone(&self.model);
        let d = &model.dimensions;
        self.next = match self.next {
            Unit::Done => return false,
            Unit::Project { layer, row } => {
                let rows = self.project(&model, layer, row);
                match row + rows < self.rows {
                    true => Unit::Project { layer, row: row + rows },
                    false => Unit::Attend { layer, text: 0, head: 0 },
                }
            }
            Unit::Attend { layer, text, head } => {
                self.attend(&model, text, head);
                match (head + 1 < d.heads(), text + 1 < self.texts.len()) {
                    (true, _) => Unit::Attend { layer, text, head: head + 1 },
                    (false, true) => Unit::Attend { layer, text: text + 1, head: 0 },
                    (false, false) => Unit::Feed { layer, row: 0 },
                }
            }
            Unit::Feed { layer, row } => {
                let rows = self.feed(&model, layer, row);
                match (row + rows < self.rows, layer + 1 < d.layers) {
                    (true, _) => Unit::Feed { layer, row: row + rows },
                    (false, true) => Unit::Project { layer: layer + 1, row: 0 },
                    (false, false) => Unit::Pool,
                }
            }
            Unit::Pool => {
                self.pool(d.width);
                Unit::Done
            }
        };
        self.next != Unit::Done
    }

    /// `[text][element]`: the mean over each text's tokens, of length 1. Not finite if the weights are broken.
    pub fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    fn project(&mut self, model: &Bert, layer: usize, row: usize) -> usize {
        let (width, rows) = (model.dimensions.width, UNIT_ROWS.min(self.rows - row));
        let weights = &model.layers[layer].qkv;
        self.activations.set(model.kernels, &self.residual[row * width..][..rows * width], weights);
        wide::multiply(model.kernels, weights, &self.activations, &mut self.qkv[row * 3 * width..]);
        rows
    }

    fn attend(&mut self, model: &Bert, text: usize, head: usize) {
        let (d, text) = (&model.dimensions, self.texts[text].clone());
        let stride = 3 * d.width;
        let rows = &self.qkv[text.start * stride..text.end * stride];
        let column = head * d.head_width;
        self.head.gather(rows, stride, column, d.head_width);
        self.head.attend(model.kernels, &mut self.attended[text.start * d.width..text.end * d.width], d.width, column);
    }

    fn feed(&mut self, model: &Bert, layer: usize, row: usize) -> usize {
        let (d, kernels, weights) = (&model.dimensions, model.kernels, &model.layers[layer]);
        let rows = UNIT_ROWS.min(self.rows - row);
        let range = row * d.width..(row + rows) * d.width;
        let projected = &mut self.projected[..rows * d.width];
        let (activations, residual) = (&mut self.activations, &mut self.residual[range.clone()]);
        activations.set(kernels, &self.attended[range], &weights.project);
        wide::multiply(kernels, &weights.project, activations, projected);
        add_norm(model, projected, &weights.attention_norm, residual);
        activations.set(kernels, residual, &weights.up);
        let hidden = &mut self.hidden[..rows * d.hidden];
        wide::multiply(kernels, &weights.up, activations, hidden);
        encoder::gelu(kernels, hidden);
        activations.set(kernels, hidden, &weights.down);
        wide::multiply(kernels, &weights.down, activations, projected);
        add_norm(model, projected, &weights.feed_norm, residual);
        rows
    }

    fn pool(&mut self, width: usize) {
        for (vector, text) in self.vectors.chunks_exact_mut(width).zip(&self.texts) {
            for row in self.residual[text.start * width..text.end * width].chunks_exact(width) {
                vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            // The mean and the sum point the same way.
            let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let scale = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
            vector.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

fn add_norm(model: &Bert, values: &[f32], norm: &Norm, residual: &mut [f32]) {
    let (width, epsilon) = (model.dimensions.width, model.dimensions.epsilon);
    for (values, residual) in values.chunks_exact(width).zip(residual.chunks_exact_mut(width)) {
        encoder::add_norm(model.kernels, values, &norm.weight, &norm.shift, epsilon, residual);
    }
}
