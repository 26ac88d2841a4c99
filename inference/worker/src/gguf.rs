//! GGUF files: opened, checked, and read tensor by tensor.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;
use memmap2::Mmap;

use crate::kernel::pack::Format;

/// Why a model cannot be loaded. Each names the file, what was wrong in it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or mapped.
    #[error("cannot read the model {path}: {source}; pull it with `thalweg models pull` or correct the path")]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It does not start as a GGUF does.
    #[error("{path} is not a GGUF file; give the path of one")]
    NotGguf {
        /// Which file.
        path: PathBuf,
    },
    /// Its header does not parse: nearly always a download that broke off.
    #[error(
        "the header of {path} ({bytes} bytes) cannot be read: {reason}; the file is cut off or damaged, pull it again"
    )]
    Header {
        /// Which file.
        path: PathBuf,
        /// How long it is.
        bytes: usize,
        /// What the parser said.
        reason: String,
    },
    /// A tensor lies beyond the end of the file.
    #[error("{path} is cut off: tensor {tensor} ends at byte {end}, the file has {bytes}; pull it again")]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Where it would end.
        end: u64,
        /// How long the file is.
        bytes: usize,
    },
    /// A model of a kind there is no forward pass for.
    #[error("{path} holds a model of architecture {architecture:?}; this build runs {}", crate::model::known())]
    Architecture {
        /// Which file.
        path: PathBuf,
        /// What it says it is.
        architecture: String,
    },
    /// A tensor in a quantisation there are no kernels for.
    #[error(
        "tensor {tensor} of {path} is {format}; no kernels take that for weights: quantise it again, to Q4_K_M or Q8_0"
    )]
    Quantisation {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        tensor: String,
        /// In which format it is.
        format: String,
    },
    /// Metadata, or a tensor, is missing or makes no sense.
    #[error("{path}: {what}; the file was not made for this architecture, or is damaged: pull it again")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// No memory for the packed weights.
    #[error("no memory for the weights of {path}: {source}; free some or take a smaller model")]
    Memory {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A device does not take the weights.
    #[error(
        "tensor {tensor} of {path} cannot be put on the device: {reason}; free its memory, take a smaller model, \
         or the device \"cpu\""
    )]
    Device {
        /// Which file.
        path: PathBuf,
        /// Which tensor.
        tensor: String,
        /// What the device said.
        reason: String,
    },
    /// No kernels for what was asked for.
    #[error(transparent)]
    Isa(#[from] crate::kernel::IsaError),
}

/// An open GGUF file whose header was read and whose tensors all lie inside of it.
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    content: Content,
}

impl Gguf {
    /// Opens and checks `path`.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let open = |source| LoadError::Open { path: path.into(), source };
        let file = File::open(path).map_err(open)?;
        if !file.metadata().map_err(open)?.is_file() {
            return Err(open(std::io::Error::other("it is not a regular file")));
        }
        // SAFETY: the mapping is read-only; a model file that someone rewrites in place while it is loaded gives wrong
        // weights, and one that is cut gives a SIGBUS, as with every program that maps its models. Weights are copied
        // out during the load, so this lasts less than a second.
        let map = unsafe { Mmap::map(&file) }.map_err(open)?;
        if !map.starts_with(b"GGUF") {
            return Err(LoadError::NotGguf { path: path.into() });
        }
        let header = |reason: String| LoadError::Header { path: path.into(), bytes: map.len(), reason };
        // The parser allocates what counts in the header say, so a count beyond the file is refused before.
        for (what, at) in [("tensors", 8), ("metadata entries", 16)] {
            let count = map.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
            if count > map.len() as u64 / 8 {
                return Err(header(format!("it claims {count} {what}")));
            }
        }
        let content = Content::read(&mut Cursor::new(&map[..])).map_err(|e| header(e.to_string()))?;
        let file = Self { path: path.into(), map, content };
        let mut names: Vec<&String> = file.content.tensor_infos.keys().collect();
        names.sort_unstable_by_key(|name| file.content.tensor_infos[*name].offset);
        for name in names {
            file.tensor(name)?;
        }
        Ok(file)
    }

    /// Which file this is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this file.
    pub fn invalid(&self, what: impl Into<String>) -> LoadError {
        LoadError::Invalid { path: self.path.clone(), what: what.into() }
    }

    /// The metadata entry `key`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// The metadata entry `key` as a number.
    pub fn number(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.value(key).and_then(|value| match value {
            Value::U8(n) => Some(usize::from(*n)),
            Value::U16(n) => Some(usize::from(*n)),
            Value::U32(n) => Some(*n as usize),
            Value::U64(n) => usize::try_from(*n).ok(),
            Value::I32(n) => usize::try_from(*n).ok(),
            Value::I64(n) => usize::try_from(*n).ok(),
            _ => None,
        });
        value.ok_or_else(|| self.invalid(format!("metadata {key} is missing or is no whole number")))
    }

    /// The metadata entry `key` as a float.
    pub fn float(&self, key: &str) -> Result<f32, LoadError> {
        let value = self.value(key).and_then(|value| value.to_f32().ok());
        value.ok_or_else(|| self.invalid(format!("metadata {key} is missing or is no float")))
    }

    /// The metadata entry `key` as text.
    pub fn text(&self, key: &str) -> Result<&str, LoadError> {
        let value = self.value(key).and_then(|value| value.to_string().ok());
        value.map(String::as_str).ok_or_else(|| self.invalid(format!("metadata {key} is missing or is no text")))
    }

    /// The metadata entry `key` as a list.
    pub fn list(&self, key: &str) -> Result<&[Value], LoadError> {
        let value = self.value(key).and_then(|value| value.to_vec().ok());
        value.map(Vec::as_slice).ok_or_else(|| self.invalid(format!("metadata {key} is missing or is no list")))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    /// Format, dimensions (outermost first) and bytes of a tensor.
    pub fn tensor(&self, name: &str) -> Result<(GgmlDType, &[usize], &[u8]), LoadError> {
        let info = self.content.tensor_infos.get(name);
        let info = info.ok_or_else(|| self.invalid(format!("tensor {name} is missing")))?;
        let dims = info.shape.dims();
        let elements = dims.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
        let bytes = elements.and_then(|n| (n / info.ggml_dtype.block_size()).checked_mul(info.ggml_dtype.type_size()));
        let start = self.content.tensor_data_offset.checked_add(info.offset);
        let range = start.zip(bytes).and_then(|(start, bytes)| Some((start, start.checked_add(bytes as u64)?)));
        let (start, end) = range.ok_or_else(|| self.invalid(format!("tensor {name} has impossible dimensions")))?;
        match self.map.get(start as usize..end as usize) {
            Some(raw) => Ok((info.ggml_dtype, dims, raw)),
            None => {
                Err(LoadError::Truncated { path: self.path.clone(), tensor: name.into(), end, bytes: self.map.len() })
            }
        }
    }

    /// The bytes of a tensor of exactly `outputs` × `inputs` in one of our formats. What comes in another format, or in one
    /// of superblocks that do not fill a row, is turned into the nearest of ours: other quantisations into Q8_0, which keeps
    /// them to a part in 127 of the largest of 32, and F32 into F16.
    pub fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<(Format, Cow<'_, [u8]>), LoadError> {
        let (kind, dims, raw) = self.tensor(name)?;
        if dims != [outputs, inputs] {
            return Err(self.invalid(format!("tensor {name} has dimensions {dims:?}, not {outputs} × {inputs}")));
        }
        let format = match kind {
            GgmlDType::Q4_0 => Format::Q4_0,
            GgmlDType::Q4_1 => Format::Q4_1,
            GgmlDType::Q8_0 => Format::Q8_0,
            GgmlDType::Q4K => Format::Q4K,
            GgmlDType::Q6K => Format::Q6K,
            GgmlDType::F16 => Format::F16,
            GgmlDType::BF16 => Format::Bf16,
            GgmlDType::F32 => {
                let halves = raw.as_chunks::<4>().0.iter().map(|bytes| f16::from_f32(f32::from_le_bytes(*bytes)));
                return Ok((Format::F16, halves.flat_map(f16::to_le_bytes).collect()));
            }
            GgmlDType::Q5_0 | GgmlDType::Q5_1 | GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q5K => {
                let requantise = || {
                    let tensor = self.content.tensor(&mut Cursor::new(&self.map[..]), name, &Device::Cpu)?;
                    let floats = tensor.dequantize(&Device::Cpu)?;
                    Ok(QTensor::quantize(&floats, GgmlDType::Q8_0)?.data()?.into_owned())
                };
                let raw = requantise().map_err(|e: candle_core::Error| self.invalid(format!("tensor {name}: {e}")))?;
                return Ok((Format::Q8_0, raw.into()));
            }
            // These are for activations; no file has weights in them.
            GgmlDType::Q8_1 | GgmlDType::Q8K => {
                let format = format!("{kind:?}");
                return Err(LoadError::Quantisation { path: self.path.clone(), tensor: name.into(), format });
            }
        };
        Ok((format, raw.into()))
    }

    /// A tensor of exactly these dimensions, outermost first, of any format, as floats.
    pub fn dequantised(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, LoadError> {
        let (_, found, _) = self.tensor(name)?;
        if found != dims {
            return Err(self.invalid(format!("tensor {name} has dimensions {found:?}, not {dims:?}")));
        }
        let tensor = self.content.tensor(&mut Cursor::new(&self.map[..]), name, &Device::Cpu);
        let floats = tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1());
        floats.map_err(|e| self.invalid(format!("tensor {name}: {e}")))
    }

    /// A tensor of exactly `len` F32.
    pub fn floats(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let (kind, dims, raw) = self.tensor(name)?;
        if kind != GgmlDType::F32 || dims != [len] {
            return Err(self.invalid(format!("tensor {name} is {kind:?} of {dims:?}, not F32 of [{len}]")));
        }
        Ok(raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Everything the header says, for callers that look for more.
    pub fn metadata(&self) -> &HashMap<String, Value> {
        &self.content.metadata
    }
}
