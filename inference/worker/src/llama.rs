//! The Llama architecture: Llama, Mistral, SmolLM and what else calls itself so.

use crate::decoder::{Decoder, Rope, Style};
use crate::gguf::{Gguf, LoadError};
use crate::kernel::Kernels;

/// The name in `general.architecture`.
pub const ARCHITECTURE: &str = "llama";

/// Reads and packs the weights of `file`.
pub fn load(file: &Gguf, kernels: Kernels) -> Result<Decoder, LoadError> {
    Decoder::load(file, kernels, ARCHITECTURE, Style { rope: Rope::Pairs })
}
