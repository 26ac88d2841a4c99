//! The Qwen3 architecture. Queries and keys are normed by head, and heads may be wider than the residual stream divided by
//! their number; both are found in the file.

use crate::decoder::{Decoder, Rope, Style};
use crate::gguf::{Gguf, LoadError};
use crate::kernel::Kernels;

/// The name in `general.architecture`.
pub const ARCHITECTURE: &str = "qwen3";

/// In what it differs from the rest of its family.
pub const STYLE: Style = Style { rope: Rope::Halves };

/// Reads and packs the weights of `file`.
pub fn load(file: &Gguf, kernels: Kernels) -> Result<Decoder, LoadError> {
    Decoder::load(file, kernels, ARCHITECTURE, STYLE)
}
