//! Runs models on a device: weights, tokenizers, kernels, batched forward pass.
//!
//! From below: [`kernel`] multiplies and attends; [`gguf`] reads files; [`llama`] is a forward pass over packed rows;
//! [`model`] holds the seams between those and the rest; [`tokenizer`], [`sampling`] and [`text`] turn conversations into
//! tokens and tokens into text; [`stage`] runs it all on threads of its own, joined to the cores by rings.

pub mod gguf;
pub mod kernel;
pub mod llama;
pub mod model;
pub mod sampling;
pub mod stage;
pub mod text;
pub mod tokenizer;

#[cfg(test)]
mod testing;
