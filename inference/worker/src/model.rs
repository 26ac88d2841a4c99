//! The seams: what the stage needs of a model, and what a model needs of a matrix.
//!
//! Another device or architecture comes in as another [`Model`]; another quantisation as another [`Linear`].

use thalweg_scheduler::Row;

use crate::kernel::Activations;

/// What a model looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens it knows: logits per row.
    pub vocabulary: usize,
    /// Longest sequence, prompt and answer together, in tokens.
    pub context_tokens: usize,
    /// Bytes of keys and values per token of a sequence.
    pub kv_bytes_per_token: usize,
}

/// Weights, shared by all threads that run them.
pub trait Model: Send + Sync {
    /// What it looks like.
    fn shape(&self) -> Shape;

    /// A runner with KV memory for up to `slots` sequences and steps of up to `rows` rows.
    fn runner(self: std::sync::Arc<Self>, slots: usize, rows: usize) -> Box<dyn Runner>;
}

/// One thread's use of a model: its KV memory and its scratch memory.
pub trait Runner: Send {
    /// Gives `slot` fresh KV memory for up to `tokens` tokens. What it held before is gone.
    fn reserve(&mut self, slot: usize, tokens: usize);

    /// Gives the KV memory of `slot` back.
    fn release(&mut self, slot: usize);

    /// Runs one step. Rows of a sequence stand together, in order of positions; every earlier position of the sequence
    /// was computed before or stands before in the same step. May panic if the model cannot do it; what the slots hold of
    /// other sequences is not touched then.
    fn step(&mut self, rows: &[Row]);

    /// The logits of the last step, `vocabulary` floats for each row that wanted them, in order of the rows. They may be
    /// not finite if the weights are broken; the caller looks.
    fn logits(&self) -> &[f32];
}

/// A matrix that activations are multiplied by.
pub trait Linear: Send + Sync {
    /// Width of what goes in.
    fn inputs(&self) -> usize;

    /// Width of what comes out.
    fn outputs(&self) -> usize;

    /// `out[row][column + o] = Σ_k x[row][k] · w[o][k]`, where rows of `out` have `stride` floats.
    fn forward(&self, x: &Activations, out: &mut [f32], stride: usize, column: usize);

    /// Writes row `output` of the matrix to `row`: an embedding is looked up so.
    fn row(&self, output: usize, row: &mut [f32]);
}
