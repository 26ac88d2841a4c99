//! The Llama architecture: Llama, Mistral, SmolLM and what else calls itself so.

use crate::decoder::{Decoder, Rope, Style};
use crate::gguf::{Gguf, LoadError};
use crate::kernel::Kernels;

/// The name in `general.architecture`.
pub const ARCHITECTURE: &str = "llama";

/// In what it differs from the rest of its family.
pub const STYLE: Style = Style { rope: Rope::Pairs };

/// Reads and packs the weights of `file`.
pub fn load(file: &Gguf, kernels: Kernels) -> Result<Decoder, LoadError> {
    Decoder::load(file, kernels, ARCHITECTURE, STYLE)
}
