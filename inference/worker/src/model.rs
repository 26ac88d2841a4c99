//! The seams: what the stage needs of a model. Another device or architecture comes in as another [`Model`].

use std::sync::Arc;

use thalweg_scheduler::Step;

use crate::decoder::{Decoder, Style};
use crate::gguf::{Gguf, LoadError};
use crate::kernel::Kernels;
use crate::team::Team;
use crate::tensor::{Place, TensorModel};
use crate::{llama, qwen2, qwen3};

/// Every architecture there is a forward pass for, and in what it differs from the others.
const ARCHITECTURES: &[(&str, Style)] =
    &[(llama::ARCHITECTURE, llama::STYLE), (qwen2::ARCHITECTURE, qwen2::STYLE), (qwen3::ARCHITECTURE, qwen3::STYLE)];

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

/// Weights, shared by all that run them.
pub trait Model: Send + Sync {
    /// What it looks like.
    fn shape(&self) -> Shape;

    /// How many blocks of KV memory there is room for where the model is computed, if that is not the system's memory.
    fn blocks_free(&self) -> Option<usize> {
        None
    }

    /// A runner with `blocks` blocks of KV memory, of [`KV_BLOCK_TOKENS`](thalweg_protocol::limits::KV_BLOCK_TOKENS) tokens
    /// each, for steps of up to `rows` rows, whose work `team` shares. The thread that runs steps leads the team. Panics if
    /// the system has no addresses left for that memory; it takes room as it is written.
    fn runner(self: Arc<Self>, blocks: usize, rows: usize, team: Arc<Team>) -> Box<dyn Runner>;
}

/// One leader's use of a model: its KV memory and its scratch memory.
pub trait Runner: Send {
    /// Copies what the step wants copied, then computes its rows. May panic if the model cannot do it; blocks that the
    /// step does not write are not touched then.
    fn step(&mut self, step: &Step);

    /// The logits of the last step, `vocabulary` floats for each row that wanted them, in order of the rows. They may be
    /// not finite if the weights are broken; the caller looks.
    fn logits(&self) -> &[f32];
}

/// Reads and packs the weights of a file of any architecture there is a forward pass for, to be computed by the processor.
pub fn load(file: &Gguf, kernels: Kernels) -> Result<Arc<dyn Model>, LoadError> {
    let (architecture, style) = architecture(file)?;
    Ok(Arc::new(Decoder::load(file, kernels, architecture, style)?))
}

/// The same wherever models are to be computed.
pub fn load_at(file: &Gguf, place: &Place) -> Result<Arc<dyn Model>, LoadError> {
    match place {
        Place::Cpu => load(file, Kernels::choose()?),
        Place::Device(device) => {
            let (architecture, style) = architecture(file)?;
            Ok(Arc::new(TensorModel::load(file, device, architecture, style)?))
        }
    }
}

/// The names of all architectures there is a forward pass for.
pub(crate) fn known() -> String {
    ARCHITECTURES.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// The architecture of a file.
fn architecture(file: &Gguf) -> Result<(&'static str, Style), LoadError> {
    let found = file.text("general.architecture")?;
    let known = ARCHITECTURES.iter().find(|(name, _)| *name == found).copied();
    known.ok_or_else(|| LoadError::Architecture { path: file.path().into(), architecture: found.to_owned() })
}
