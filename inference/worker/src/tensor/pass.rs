//! One step on a device.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ops, rotary_emb};
use thalweg_scheduler::Step;

use super::plan::{Batch, Plan};
use super::{Layer, TensorModel};
use crate::kernel::attention::POSITIONS;
use crate::model::Runner;

/// Added to the scores of positions that a row must not see: nothing is left of them after the exponential.
const UNSEEN: f64 = -1e30;
/// The largest number of F16.
const HALF_MAX: f64 = 65_504.0;

/// A leader's use of a [`TensorModel`].
pub(super) struct TensorRunner {
    model: Arc<TensorModel>,
    blocks: usize,
    /// Keys and values of each layer, `[kv head, slot, element]` each. Made by the first step, so that a runner that takes
    /// the place of another does not need memory beside it.
    cache: Vec<(Tensor, Tensor)>,
    logits: Vec<f32>,
}

impl TensorRunner {
    pub(super) fn new(model: Arc<TensorModel>, blocks: usize) -> Self {
        Self { model, blocks, cache: Vec::new(), logits: Vec::new() }
    }

    /// Panics if the step names what is not there.
    fn check(&self, step: &Step) {
        let vocabulary = self.model.dimensions.vocabulary;
        for row in &step.rows {
            assert!((row.token as usize) < vocabulary, "token {} is one of {vocabulary}", row.token);
            let blocks = step.parts[row.part as usize].blocks;
            assert!((row.position as usize) < blocks * POSITIONS, "the table reaches position {}", row.position);
        }
        let copied = step.copies.iter().flat_map(|copy| [copy.from, copy.to]);
        for block in step.tables.iter().copied().chain(copied) {
            assert!((block as usize) < self.blocks, "block {block} is one of {}", self.blocks);
        }
        assert!(step.copies.iter().all(|copy| copy.tokens as usize <= POSITIONS), "no more than a block is copied");
    }

    fn cache(&mut self) -> Result<&[(Tensor, Tensor)]> {
        let TensorModel { dimensions: d, device, dtype, .. } = &*self.model;
        if self.cache.is_empty() {
            let shape = (d.kv_heads, self.blocks * POSITIONS, d.head_width);
            let layer = || Ok((Tensor::zeros(shape, *dtype, device)?, Tensor::zeros(shape, *dtype, device)?));
            self.cache = (0..d.layers).map(|_| layer()).collect::<Result<_>>()?;
        }
        Ok(&self.cache)
    }

    fn compute(&mut self, step: &Step) -> Result<()> {
        self.logits.clear();
        let model = Arc::clone(&self.model);
        let plan = Plan::new(step, model.dimensions.heads, model.bounds);
        let cache = self.cache()?;
        model.copy(&plan, cache)?;
        if step.rows.is_empty() {
            return Ok(());
        }
        let pass = Pass::new(&model, &plan)?;
        let tokens = pass.indices(&plan.tokens)?;
        let mut residual = model.embedding.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        for (layer, cache) in model.layers.iter().zip(cache) {
            residual = pass.layer(layer, cache, &residual)?;
        }
        if !plan.wanted.is_empty() {
            let wanted = residual.index_select(&pass.indices(&plan.wanted)?, 0)?;
            let normed = pass.norm(&wanted, &model.output_norm)?;
            let logits = normed.matmul(&model.output.t()?)?.to_dtype(DType::F32)?;
            self.logits = logits.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }
}

impl Runner for TensorRunner {
    fn step(&mut self, step: &Step) {
        self.check(step);
        if let Err(error) = self.compute(step) {
            panic!("the device does not compute the step: {error}");
        }
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

impl TensorModel {
    /// Copies the slots that are to be, of every layer.
    fn copy(&self, plan: &Plan, cache: &[(Tensor, Tensor)]) -> Result<()> {
        if plan.copied_from.is_empty() {
            return Ok(());
        }
        let from = Tensor::new(plan.copied_from.as_slice(), &self.device)?;
        let to = self.spread(&plan.copied_to)?;
        for tensor in cache.iter().flat_map(|(keys, values)| [keys, values]) {
            tensor.scatter_set(&to, &tensor.index_select(&from, 1)?, 1)?;
        }
        Ok(())
    }

    /// Slots as an index of every element that goes there, `[kv head, slot, element]`.
    fn spread(&self, slots: &[u32]) -> Result<Tensor> {
        let shape = (self.dimensions.kv_heads, slots.len(), self.dimensions.head_width);
        Tensor::new(slots, &self.device)?.reshape((1, slots.len(), 1))?.broadcast_as(shape)?.contiguous()
    }
}

/// A batch with what the device needs to know of it, which is the same in all layers.
struct Attending<'a> {
    batch: &'a Batch,
    slots: Tensor,
    /// Added to scores, `[1, part, row, 1, position]`; none if all is seen.
    mask: Option<Tensor>,
}

/// What all layers of a step share.
struct Pass<'a> {
    model: &'a TensorModel,
    rows: usize,
    batches: Vec<Attending<'a>>,
    /// Where keys and values go.
    slots: Tensor,
    cosines: Tensor,
    sines: Tensor,
}

impl<'a> Pass<'a> {
    fn new(model: &'a TensorModel, plan: &'a Plan) -> Result<Self> {
        let device = &model.device;
        let positions: Vec<f32> = plan.positions.iter().map(|&position| position as f32).collect();
        let rows = positions.len();
        let angles = Tensor::from_vec(positions, (rows, 1), device)?.broadcast_mul(&model.frequencies)?;
        Ok(Self {
            model,
            rows,
            batches: plan.batches.iter().map(|batch| Attending::new(batch, device)).collect::<Result<_>>()?,
            slots: model.spread(&plan.slots)?,
            cosines: angles.cos()?,
            sines: angles.sin()?,
        })
    }

    fn indices(&self, values: &[u32]) -> Result<Tensor> {
        Tensor::new(values, &self.model.device)
    }

    /// Norms rows, ready to be multiplied.
    fn norm(&self, rows: &Tensor, weight: &Tensor) -> Result<Tensor> {
        ops::rms_norm(rows, weight, self.model.dimensions.epsilon)?.to_dtype(self.model.dtype)
    }

    /// The residual stream after a layer.
    fn layer(&self, layer: &Layer, cache: &(Tensor, Tensor), residual: &Tensor) -> Result<Tensor> {
        let normed = self.norm(residual, &layer.attention_norm)?;
        let queries = self.keep(layer, cache, &normed.matmul(&layer.qkv.t()?)?)?;
        let attended = self.batches.iter().map(|batch| self.attend(batch, cache, &queries));
        let attended = Tensor::cat(&attended.collect::<Result<Vec<_>>>()?, 0)?;
        let residual = (residual + attended.matmul(&layer.attention_output.t()?)?.to_dtype(DType::F32)?)?;
        let normed = self.norm(&residual, &layer.feed_norm)?;
        let hidden = ops::swiglu(&normed.matmul(&layer.gate_up.t()?)?.to_dtype(DType::F32)?)?;
        let hidden = match self.model.dtype {
            DType::F32 => hidden,
            // Some models go beyond, in a few elements that matter by being large.
            dtype => hidden.clamp(-HALF_MAX, HALF_MAX)?.to_dtype(dtype)?,
        };
        residual + hidden.matmul(&layer.down.t()?)?.to_dtype(DType::F32)?
    }

    /// Adds biases, norms and turns queries and keys, and puts keys and values into their slots. Gives the queries, scaled,
    /// `[row, head, element]`.
    fn keep(&self, layer: &Layer, (keys, values): &(Tensor, Tensor), qkv: &Tensor) -> Result<Tensor> {
        let (d, dtype, rows) = (&self.model.dimensions, self.model.dtype, self.rows);
        let mut qkv = qkv.to_dtype(DType::F32)?;
        if let Some(bias) = &layer.bias {
            qkv = qkv.broadcast_add(bias)?;
        }
        let turned = d.query_width() + d.kv_width();
        let heads = (rows, d.heads + d.kv_heads, d.head_width);
        let mut both = qkv.narrow(1, 0, turned)?.contiguous()?.reshape(heads)?;
        if let Some(weight) = &layer.head_norm {
            both = ops::rms_norm(&both, &self.model.ones, d.epsilon)?.broadcast_mul(weight)?;
        }
        let both = rotary_emb::rope_thd(&both.unsqueeze(0)?, &self.cosines, &self.sines)?.squeeze(0)?;
        let by_head = |tensor: Tensor| tensor.to_dtype(dtype)?.transpose(0, 1)?.contiguous();
        let key = by_head(both.narrow(1, d.heads, d.kv_heads)?)?;
        let value = qkv.narrow(1, turned, d.kv_width())?.contiguous()?;
        let value = by_head(value.reshape((rows, d.kv_heads, d.head_width))?)?;
        keys.scatter_set(&self.slots, &key, 1)?;
        values.scatter_set(&self.slots, &value, 1)?;
        let scale = 1.0 / (d.head_width as f64).sqrt();
        both.narrow(1, 0, d.heads)?.affine(scale, 0.0)?.to_dtype(dtype)
    }

    /// What the rows of a batch attend to, `[row, elements of all heads]`.
    fn attend(&self, of: &Attending<'_>, (keys, values): &(Tensor, Tensor), queries: &Tensor) -> Result<Tensor> {
        let d = &self.model.dimensions;
        let Batch { first, parts, count, length, .. } = *of.batch;
        let (shared, width) = (d.heads / d.kv_heads, d.head_width);
        // One product for each sequence and kv head: its rows' queries that share the head, by its positions.
        let products = (d.kv_heads * parts, count * shared);
        let queries = queries.narrow(0, first, parts * count)?.reshape((parts, count, d.kv_heads, shared, width))?;
        let queries = queries.permute((2, 0, 1, 3, 4))?.contiguous()?.reshape((products.0, products.1, width))?;
        let gather = |from: &Tensor| from.index_select(&of.slots, 1)?.reshape((products.0, length, width));
        let mut scores = queries.matmul(&gather(keys)?.t()?)?.to_dtype(DType::F32)?;
        if let Some(mask) = &of.mask {
            scores = scores.reshape((d.kv_heads, parts, count, shared, length))?.broadcast_add(mask)?;
            scores = scores.reshape((products.0, products.1, length))?;
        }
        let weights = ops::softmax_last_dim(&scores)?.to_dtype(self.model.dtype)?;
        let attended = weights.matmul(&gather(values)?)?.reshape((d.kv_heads, parts, count, shared, width))?;
        attended.permute((1, 2, 0, 3, 4))?.contiguous()?.reshape((parts * count, d.query_width()))
    }
}

impl<'a> Attending<'a> {
    fn new(batch: &'a Batch, device: &Device) -> Result<Self> {
        let slots = Tensor::new(batch.slots.as_slice(), device)?;
        if batch.sees_all() {
            return Ok(Self { batch, slots, mask: None });
        }
        let visible = Tensor::new(batch.visible.as_slice(), device)?.reshape((1, batch.parts, batch.count, 1, 1))?;
        let positions = Tensor::arange(0, batch.length as u32, device)?.reshape((1, 1, 1, 1, batch.length))?;
        // 1 where it is seen becomes 0, and 0 what removes it.
        let mask = positions.broadcast_lt(&visible)?.to_dtype(DType::F32)?.affine(-UNSEEN, UNSEEN)?;
        Ok(Self { batch, slots, mask: Some(mask) })
    }
}
