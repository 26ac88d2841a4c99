//! The inference stage: a thread that runs models, joined to the cores by rings.
//!
//! The thread leads a [team](crate::team) that shares the work of each step. It has a scheduler, KV memory and scratch
//! memory for each model. A core talks to it through its [`CoreLink`]: commands go in, events come back in order per
//! generation. Every ring is bounded. If a core does not take its events, its generations stop (their KV stays) until it
//! does: nothing is lost and nothing piles up.

mod compiling;
pub mod embed;
mod link;
mod loading;
mod runtime;
mod stats;
mod thread;
mod times;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_protocol::generation::{ChatMessage, FinishReason, Priority, Sampling, TokenDetail, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::limits::KV_BLOCK_TOKENS;
use thalweg_protocol::reject::Reject;
use thalweg_ring::{Bell, ring};

use crate::gguf::{Gguf, LoadError};
use crate::model::{self, Model};
use crate::team::{Team, pin_to};
use crate::tensor::{DeviceChoice, DeviceError, Place};
use crate::tokenizer::Vocabulary;

pub use embed::{Embed, Embeddings, LoadedEncoder};
pub use link::CoreLink;
pub use loading::{Loader, Unloaded};
pub use stats::{ModelStats, StageReport, StageStats, Summary};
pub use times::Times;

/// A model to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The name requests give.
    pub name: Name,
    /// Its GGUF file.
    pub path: PathBuf,
}

/// What a stage is made of.
#[derive(Debug, Clone, Default)]
pub struct StageConfig {
    /// Models to load; the first answers requests that name none. None: every request is refused.
    pub models: Vec<ModelSource>,
    /// Inference threads, at least 1: the size of the team that shares each step, with its leader.
    pub threads: usize,
    /// The CPU of each thread, the leader's first; threads beyond its end are not pinned.
    pub pin: Vec<usize>,
    /// Slots of each ring between a core and the leader, for example [`thalweg_protocol::limits::RING_SLOTS`].
    pub ring_slots: usize,
    /// Bytes of KV memory of each model that answers; by default [`KV_BYTES`]. It is taken from the system as it is used for
    /// the first time, and kept until the model is unloaded.
    pub kv_bytes: Option<u64>,
    /// Where chat models are computed. Models that make embeddings are computed by the processor always.
    pub device: DeviceChoice,
}

/// KV memory of a model if nobody says otherwise, in bytes.
pub const KV_BYTES: u64 = 1 << 30;

/// Why a stage does not start.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A model cannot be loaded.
    #[error("model {name}: {source}")]
    Load {
        /// Which model.
        name: Name,
        /// Why not.
        source: LoadError,
    },
    /// Models cannot be computed where they are to be.
    #[error("models cannot be computed where they are to be: {0}")]
    Device(#[from] DeviceError),
    /// The configuration makes no sense.
    #[error("the inference stage cannot start: {0}")]
    Config(String),
    /// There is a model of that name, or one is being loaded or unloaded.
    #[error("there is a model {0} already; give this one another name, or unload that one first")]
    Exists(Name),
    /// There is no model of that name.
    #[error("there is no model {0}, or it is on its way out")]
    Unknown(Name),
    /// The stage has ended.
    #[error("the inference stage has ended; the node is going away")]
    Ended,
    /// The system refuses a thread, a descriptor or a CPU.
    #[error("the inference stage cannot start: {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// It answers conversations.
    Chat,
    /// It turns texts into vectors.
    Embedding,
}

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name requests give.
    pub name: Name,
    /// What it is for.
    pub kind: ModelKind,
    /// Longest conversation and answer together, or longest text to embed, in tokens.
    pub context_tokens: u32,
    /// Tokens it knows.
    pub vocabulary: u32,
    /// Bytes of KV memory per token of a running generation.
    pub kv_bytes_per_token: usize,
    /// Numbers of a vector, of a model that makes embeddings; else 0.
    pub dimensions: u32,
    /// How long it took to load, in milliseconds.
    pub load_ms: u64,
}

/// A model in memory: what [`start_loaded`] serves.
#[derive(Clone)]
pub struct LoadedModel {
    /// What is told about it.
    pub info: ModelInfo,
    /// Its weights.
    pub model: Arc<dyn Model>,
    /// Its tokens.
    pub vocabulary: Arc<Vocabulary>,
}

impl LoadedModel {
    /// Reads a model's file and packs its weights for this processor.
    pub fn load(source: &ModelSource) -> Result<Self, LoadError> {
        Self::load_at(source, &Place::Cpu)
    }

    /// Reads a model's file and packs its weights for where it is to be computed.
    pub fn load_at(source: &ModelSource, place: &Place) -> Result<Self, LoadError> {
        let start = Instant::now();
        let file = Gguf::open(&source.path)?;
        let model = model::load_at(&file, place)?;
        let vocabulary = Vocabulary::load(&file)?;
        let shape = model.shape();
        let info = ModelInfo {
            name: source.name.clone(),
            kind: ModelKind::Chat,
            context_tokens: shape.context_tokens as u32,
            vocabulary: shape.vocabulary as u32,
            kv_bytes_per_token: shape.kv_bytes_per_token,
            dimensions: 0,
            load_ms: start.elapsed().as_millis() as u64,
        };
        tracing::info!(model = %info.name, %place, load_ms = info.load_ms, "model loaded");
        Ok(Self { info, model, vocabulary: Arc::new(vocabulary) })
    }
}

/// Models in memory: what [`start_loaded`] serves.
#[derive(Clone, Default)]
pub struct Loaded {
    /// Those that answer conversations; the first answers requests that name none.
    pub models: Vec<LoadedModel>,
    /// Those that make embeddings; likewise.
    pub encoders: Vec<LoadedEncoder>,
}

impl Loaded {
    /// Reads one more model: a sentence encoder from a file of safetensors, a language model from any other (GGUF), to be
    /// computed at `place`.
    pub fn add(&mut self, source: &ModelSource, place: &Place) -> Result<(), LoadError> {
        match source.path.extension().is_some_and(|extension| extension == "safetensors") {
            true => self.encoders.push(LoadedEncoder::load(source)?),
            false => self.models.push(LoadedModel::load_at(source, place)?),
        }
        Ok(())
    }
}

impl From<Vec<LoadedModel>> for Loaded {
    fn from(models: Vec<LoadedModel>) -> Self {
        Self { models, encoders: Vec::new() }
    }
}

/// What a core asks of the stage.
#[derive(Debug)]
pub enum Command {
    /// A new generation, or one that goes on. Answered by [`Event::Scheduled`] or [`Event::Refused`]; by
    /// [`Event::Finished`] at once if it was over with the tokens it had produced.
    Submit(Box<Submit>),
    /// Tokens with an index below `until` may be produced. Ignored for generations that ended.
    Credit {
        /// Which generation.
        generation: GenerationId,
        /// One past the last index.
        until: u32,
    },
    /// Nobody wants the rest. Answered by [`Event::Finished`] unless the generation ended already.
    Cancel {
        /// Which generation.
        generation: GenerationId,
    },
    /// Texts to embed. Answered by [`Event::Embedded`], once.
    Embed(Box<Embed>),
}

/// A new generation, or one that was interrupted and goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct Submit {
    /// Its id; not that of one that lives.
    pub generation: GenerationId,
    /// Who asks.
    pub tenant: Name,
    /// Which model; the first if none is named.
    pub model: Option<Name>,
    /// The conversation, checked by [`thalweg_protocol::generation::AskRequest::check`].
    pub messages: Vec<ChatMessage>,
    /// How tokens are drawn, checked likewise.
    pub sampling: Sampling,
    /// Ids of the tokens it had produced before it was interrupted: [`Event::Token::id`] in order of their indexes; none
    /// for one that begins. The generation goes on after them as if it had not been interrupted: equal text and reason.
    /// They are neither given out again nor counted as prompt, and they count against `sampling.max_tokens`. More of them
    /// than that, or ids this model does not have, are refused with
    /// [`ParameterInvalid`](thalweg_protocol::reject::RejectCode::ParameterInvalid).
    pub produced: Vec<u32>,
    /// The messages' contents are the prompt as it stands, one after the other, without a chat template.
    pub raw: bool,
    /// Its place among the tenant's generations.
    pub priority: Priority,
    /// It is refused if it has not begun so many milliseconds after `submitted`; 0: it waits as long as it takes.
    pub deadline_ms: u32,
    /// Tokens with an index below this may be produced; counted from the very first token.
    pub credit: u32,
    /// When the request came in.
    pub submitted: Instant,
    /// Whether [`Event::Traced`] is wanted before its end.
    pub traced: bool,
}

/// What the stage tells a core.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The generation got its place and its first step is about to run.
    Scheduled {
        /// Which generation.
        generation: GenerationId,
        /// The model that answers.
        model: Name,
        /// Tokens of the conversation as templated.
        prompt_tokens: u32,
        /// When.
        at: Instant,
    },
    /// A token.
    Token {
        /// Of which generation.
        generation: GenerationId,
        /// Its index, contiguous from the number of tokens in [`Submit::produced`].
        index: u32,
        /// The token as it was drawn: what [`Submit::produced`] takes.
        id: u32,
        /// UTF-8, whole characters only; empty while a character or a possible stop string is incomplete.
        text: Bytes,
        /// How likely it was, if [`Sampling::logprobs`] asks for that.
        detail: Option<Box<TokenDetail>>,
        /// When it was drawn.
        at: Instant,
    },
    /// When what was done about a generation that is traced. Its end follows at once.
    Traced(Box<Times>),
    /// The generation ended.
    Finished {
        /// Which generation.
        generation: GenerationId,
        /// Why.
        reason: FinishReason,
        /// What it cost, with the tokens it had produced before it was interrupted.
        usage: Usage,
        /// What failed, if something did; else empty.
        message: String,
    },
    /// Texts were embedded, or not.
    Embedded {
        /// Which job.
        job: u64,
        /// The vectors, or why there are none.
        result: Result<Embeddings, Reject>,
    },
    /// The generation was not accepted.
    Refused {
        /// Which generation.
        generation: GenerationId,
        /// Why not, and when to try again.
        reject: Reject,
    },
}

/// The running stage. Dropping it shuts it down.
pub struct Stage {
    models: Vec<ModelInfo>,
    loader: Loader,
    shared: Arc<thread::Shared>,
    leader: Option<JoinHandle<()>>,
}

/// Loads the models and starts the threads; the leader rings `bells[i]` whenever an event for core `i` was put on its ring.
/// Gives one link per core.
pub fn start(config: StageConfig, bells: &[Arc<Bell>]) -> Result<(Stage, Vec<CoreLink>), StageError> {
    let place = config.device.open()?;
    let mut loaded = Loaded::default();
    for source in &config.models {
        loaded.add(source, &place).map_err(|error| StageError::Load { name: source.name.clone(), source: error })?;
    }
    let (mut stage, links) =
        start_loaded(loaded, config.threads, &config.pin, config.ring_slots, config.kv_bytes, bells)?;
    stage.loader = stage.loader.clone().at(place);
    Ok((stage, links))
}

/// The same with models that are in memory already; see [`StageConfig`] for the numbers.
pub fn start_loaded(
    loaded: impl Into<Loaded>,
    threads: usize,
    pin: &[usize],
    ring_slots: usize,
    kv_bytes: Option<u64>,
    bells: &[Arc<Bell>],
) -> Result<(Stage, Vec<CoreLink>), StageError> {
    if threads == 0 || ring_slots == 0 {
        return Err(StageError::Config(format!("{threads} threads, {ring_slots} ring slots; give at least 1 of each")));
    }
    let Loaded { mut models, encoders } = loaded.into();
    let all: Vec<&Name> = models.iter().map(|m| &m.info.name).chain(encoders.iter().map(|e| &e.info.name)).collect();
    if let Some((_, name)) = all.iter().enumerate().find(|(n, name)| all[..*n].contains(name)) {
        return Err(StageError::Config(format!("two models are named {name}; rename one")));
    }
    let bytes = kv_bytes.unwrap_or(KV_BYTES);
    let mut infos = Vec::new();
    let mut blocks = Vec::new();
    for model in &mut models {
        blocks.push(blocks_of(&mut model.info, bytes, model.model.blocks_free())?);
        infos.push(model.info.clone());
    }
    infos.extend(encoders.iter().map(|encoder| encoder.info.clone()));
    let system = |what: &str, source| StageError::System { what: what.into(), source };
    let team = Team::new(threads, pin).map_err(|e| system("the start of the inference threads", e))?;
    let bell = Bell::new().map_err(|e| system("the bell of the inference thread", e))?;
    let shared = Arc::new(thread::Shared::new(bell, infos.iter().map(|info| info.name.clone())));
    let embeds = encoders.first().map(|encoder| encoder.info.name.clone());
    let (mut ports, mut links) = (Vec::new(), Vec::new());
    for bell in bells {
        let (commands, inbox) = ring(ring_slots);
        let (outbox, events) = ring(ring_slots);
        ports.push(thread::Port::new(inbox, outbox, Arc::clone(bell)));
        links.push(CoreLink::new(commands, events, Arc::clone(&shared), embeds.clone()));
    }
    let compiling = compiling::Compiling::start(&shared.bell);
    let compiling = compiling.map_err(|e| system("the start of the threads that compile constraints", e))?;
    let (pinned, for_leader) = (pin.first().copied(), Arc::clone(&shared));
    let (report, started) = std::sync::mpsc::sync_channel(1);
    let models = models.into_iter().zip(blocks).collect();
    let team = Arc::new(team);
    let loader = Loader::new(Arc::clone(&shared), Arc::clone(&team), bytes);
    let run = move || {
        let _ = report.send(pinned.map_or(Ok(()), pin_to));
        let embedder = embed::Embedder::new(encoders);
        thread::Thread::new(models, embedder, compiling, team, ports, for_leader).run();
    };
    let builder = std::thread::Builder::new().name("thalweg-infer".into());
    let leader = builder.spawn(run).map_err(|e| system("the start of the inference thread", e))?;
    let stage = Stage { models: infos, loader, shared, leader: Some(leader) };
    if let Ok(Err(error)) = started.recv() {
        return Err(system(&format!("pinning the inference thread to CPU {}", pinned.unwrap_or_default()), error));
    }
    Ok((stage, links))
}

/// How many blocks of KV memory `bytes` are for a model, of those that are `free` where it is computed. Its context becomes
/// what they hold, if that is less.
fn blocks_of(info: &mut ModelInfo, bytes: u64, free: Option<usize>) -> Result<usize, StageError> {
    let block_bytes = (info.kv_bytes_per_token.max(1) * KV_BLOCK_TOKENS) as u64;
    // More than every running generation could fill is of use only to find beginnings again; numbers have an end.
    let blocks = (bytes / block_bytes).min(u64::from(u32::MAX)) as usize;
    if free == Some(0) {
        return Err(StageError::Config(format!(
            "the device has no memory left for keys and values of {}; free some, or take a smaller model",
            info.name
        )));
    }
    let blocks = blocks.min(free.unwrap_or(blocks));
    if blocks == 0 {
        return Err(StageError::Config(format!(
            "{bytes} bytes of KV memory do not hold one block of {}, which has {block_bytes}; give it more",
            info.name
        )));
    }
    let tokens = blocks.saturating_mul(KV_BLOCK_TOKENS).min(u32::MAX as usize) as u32;
    if tokens < info.context_tokens {
        tracing::warn!(
            model = %info.name, context_tokens = info.context_tokens, kv_tokens = tokens,
            "KV memory holds less than the model's context: generations are shorter"
        );
        info.context_tokens = tokens;
    }
    Ok(blocks)
}

impl Stage {
    /// The models that were served when it started: those that answer first, and of each kind the default first.
    pub fn models(&self) -> &[ModelInfo] {
        &self.models
    }

    /// Loads and unloads models, for other threads.
    pub fn loader(&self) -> Loader {
        self.loader.clone()
    }

    /// As [`Loader::load`].
    ///
    /// # Errors
    /// Likewise.
    pub fn load(&self, source: &ModelSource) -> Result<ModelInfo, StageError> {
        self.loader.load(source)
    }

    /// As [`Loader::unload`].
    ///
    /// # Errors
    /// Likewise.
    pub fn unload(&self, name: &Name, grace: Duration) -> Result<Unloaded, StageError> {
        self.loader.unload(name, grace)
    }

    /// Counters and timings, at most a quarter of a second old.
    pub fn stats(&self) -> StageStats {
        self.report().stats
    }

    /// The same with what it was made from: times as histograms, counters by model.
    pub fn report(&self) -> StageReport {
        StageReport::new(&self.shared.stats.latest())
    }

    /// Ends all generations as cancelled, within one step, and waits for the threads.
    pub fn shutdown(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.bell.ring();
        if self.leader.take().is_some_and(|leader| leader.join().is_err()) {
            tracing::error!("the inference thread ended by a panic");
        }
        // Whoever waits for a change hears that nobody carries it out.
        self.shared.changes().clear();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shutdown();
    }
}
