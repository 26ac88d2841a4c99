//! What keeps the house in order: [`tidy`] checks rules no compiler knows, [`codegen`] makes the code of the wire from its
//! schema, [`ci`] runs everything the build machine runs, [`cuda`] builds the binary that computes on GPUs,
//! [`fuzz`] tries the decoders with inputs that it makes up.
//!
//! It imports nothing of ours, so that it works while the rest does not compile.
#![forbid(unsafe_code)]

pub mod ci;
pub mod codegen;
pub mod cuda;
pub mod fuzz;
pub mod tidy;

use std::path::{Path, PathBuf};

/// The root of the repository: two folders above this crate.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.ancestors().nth(2).map_or_else(|| here.clone(), Path::to_path_buf)
}
