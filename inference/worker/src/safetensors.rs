//! Safetensors files: opened, checked, and read tensor by tensor as floats.

use std::path::{Path, PathBuf};

use candle_core::safetensors::BufferedSafetensors;
use half::{bf16, f16};

use crate::gguf::LoadError;

/// An open file, in memory as a whole: models of this kind are small, and are packed anew at once.
pub struct Safetensors {
    path: PathBuf,
    /// Some writers put a model's name before each tensor's.
    prefix: &'static str,
    content: BufferedSafetensors,
}

impl Safetensors {
    /// Reads `path`. `probe` is a tensor the file must have, under its own name or with `bert.` before it.
    ///
    /// # Errors
    /// The file cannot be read, its header makes no sense, or it has no such tensor.
    pub fn open(path: &Path, probe: &str) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path).map_err(|source| LoadError::Open { path: path.into(), source })?;
        let len = bytes.len();
        let content = BufferedSafetensors::new(bytes).map_err(|e| LoadError::Header {
            path: path.into(),
            bytes: len,
            reason: e.to_string(),
        })?;
        let found = ["", "bert."].into_iter().find(|prefix| content.get(&format!("{prefix}{probe}")).is_ok());
        let Some(prefix) = found else {
            return Err(LoadError::Invalid { path: path.into(), what: format!("tensor {probe} is missing") });
        };
        Ok(Self { path: path.into(), prefix, content })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with this file.
    pub fn invalid(&self, what: impl Into<String>) -> LoadError {
        LoadError::Invalid { path: self.path.clone(), what: what.into() }
    }

    /// Dimensions of a tensor, outermost first.
    ///
    /// # Errors
    /// It is missing.
    pub fn dims(&self, name: &str) -> Result<Vec<usize>, LoadError> {
        let view = self.content.get(&format!("{}{name}", self.prefix));
        Ok(view.map_err(|_| self.invalid(format!("tensor {name} is missing")))?.shape().to_vec())
    }

    /// Dimensions of a matrix: outputs, inputs.
    ///
    /// # Errors
    /// It is missing or no matrix.
    pub fn matrix_dims(&self, name: &str) -> Result<[usize; 2], LoadError> {
        let dims = self.dims(name)?;
        <[usize; 2]>::try_from(dims.as_slice())
            .map_err(|_| self.invalid(format!("tensor {name} has dimensions {dims:?}; it must have two")))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.content.get(&format!("{}{name}", self.prefix)).is_ok()
    }

    /// A tensor of exactly these dimensions, as floats. F32, F16 and BF16 are read.
    ///
    /// # Errors
    /// It is missing, of another shape or of another format.
    pub fn floats(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, LoadError> {
        let view = self.content.get(&format!("{}{name}", self.prefix));
        let view = view.map_err(|_| self.invalid(format!("tensor {name} is missing")))?;
        if view.shape() != dims {
            return Err(self.invalid(format!("tensor {name} has dimensions {:?}, not {dims:?}", view.shape())));
        }
        let (data, format) = (view.data(), format!("{:?}", view.dtype()));
        let halves = || data.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
        match format.as_str() {
            "F32" => Ok(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            "F16" => Ok(halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
            "BF16" => Ok(halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
            _ => Err(self.invalid(format!("tensor {name} is {format}; F32, F16 and BF16 are read"))),
        }
    }
}
