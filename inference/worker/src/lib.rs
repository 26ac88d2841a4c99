//! Runs models on a device: weights, tokenizers, kernels, batched forward pass.
//!
//! From below: [`kernel`] multiplies and attends; [`team`] shares that out over threads; [`gguf`] reads files; [`decoder`] is
//! a forward pass over packed rows, [`llama`], [`qwen2`] and [`qwen3`] are architectures of it;
//! [`model`] holds the seams between those and the rest; [`tokenizer`], [`sampling`] and [`text`] turn conversations into
//! tokens and tokens into text; [`stage`] runs it all on threads of its own, joined to the cores by rings.

pub mod bert;
pub mod constraint;
pub mod decoder;
pub mod drawing;
pub mod embed;
pub mod gguf;
pub mod kernel;
pub mod llama;
pub mod model;
pub mod qwen2;
pub mod qwen3;
pub mod safetensors;
pub mod sampling;
pub mod stage;
pub mod team;
pub mod tensor;
pub mod text;
pub mod tokenizer;

#[cfg(test)]
mod testing;
