//! The Qwen2 architecture: Qwen2, Qwen2.5, and what was distilled into them. Queries, keys and values have biases, which
//! are found in the file.

use crate::decoder::{Decoder, Rope, Style};
use crate::gguf::{Gguf, LoadError};
use crate::kernel::Kernels;

/// The name in `general.architecture`.
pub const ARCHITECTURE: &str = "qwen2";

/// In what it differs from the rest of its family.
pub const STYLE: Style = Style { rope: Rope::Halves };

/// Reads and packs the weights of `file`.
pub fn load(file: &Gguf, kernels: Kernels) -> Result<Decoder, LoadError> {
    Decoder::load(file, kernels, ARCHITECTURE, STYLE)
}
