//! The inference stage: threads that run models, joined to the cores by rings.
//!
//! Each thread has a scheduler, KV memory and scratch memory of its own for each model, over shared weights; nothing else
//! is shared. A core talks to all threads through its [`CoreLink`]: commands go to the thread that has least to do,
//! events come back in order per generation. Every ring is bounded. If a core does not take its events, its generations
//! stop (their KV stays) until it does: nothing is lost and nothing piles up.

mod link;
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
use std::time::Instant;

use bytes::Bytes;
use thalweg_protocol::generation::{ChatMessage, FinishReason, Priority, Sampling, TokenDetail, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::reject::Reject;
use thalweg_ring::{Bell, ring};

use crate::gguf::{Gguf, LoadError};
use crate::kernel::Kernels;
use crate::llama::Llama;
use crate::model::Model;
use crate::tokenizer::Vocabulary;

pub use link::CoreLink;
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
    /// Inference threads, at least 1.
    pub threads: usize,
    /// The CPU of each thread; threads beyond its end are not pinned.
    pub pin: Vec<usize>,
    /// Slots of each ring between a core and a thread, for example [`thalweg_protocol::limits::RING_SLOTS`].
    pub ring_slots: usize,
}

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
    /// The configuration makes no sense.
    #[error("the inference stage cannot start: {0}")]
    Config(String),
    /// The system refuses a thread, a descriptor or a CPU.
    #[error("the inference stage cannot start: {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A model that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name requests give.
    pub name: Name,
    /// Longest conversation and answer together, in tokens.
    pub context_tokens: u32,
    /// Tokens it knows.
    pub vocabulary: u32,
    /// Bytes of KV memory per token of a running generation.
    pub kv_bytes_per_token: usize,
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
        let start = Instant::now();
        let kernels = Kernels::choose()?;
        let file = Gguf::open(&source.path)?;
        let model = Llama::load(&file, kernels)?;
        let vocabulary = Vocabulary::load(&file)?;
        let shape = model.shape();
        let info = ModelInfo {
            name: source.name.clone(),
            context_tokens: shape.context_tokens as u32,
            vocabulary: shape.vocabulary as u32,
            kv_bytes_per_token: shape.kv_bytes_per_token,
            load_ms: start.elapsed().as_millis() as u64,
        };
        tracing::info!(model = %info.name, kernels = %kernels.isa(), load_ms = info.load_ms, "model loaded");
        Ok(Self { info, model: Arc::new(model), vocabulary: Arc::new(vocabulary) })
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
    shared: Vec<Arc<thread::Shared>>,
    threads: Vec<JoinHandle<()>>,
}

/// Loads the models and starts the threads, which ring `bells[i]` whenever an event for core `i` was put on its ring.
/// Gives one link per core.
pub fn start(config: StageConfig, bells: &[Arc<Bell>]) -> Result<(Stage, Vec<CoreLink>), StageError> {
    let load = |source: &ModelSource| {
        LoadedModel::load(source).map_err(|error| StageError::Load { name: source.name.clone(), source: error })
    };
    let models = config.models.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    start_loaded(models, config.threads, &config.pin, config.ring_slots, bells)
}

/// The same with models that are in memory already; see [`StageConfig`] for the numbers.
pub fn start_loaded(
    models: Vec<LoadedModel>,
    threads: usize,
    pin: &[usize],
    ring_slots: usize,
    bells: &[Arc<Bell>],
) -> Result<(Stage, Vec<CoreLink>), StageError> {
    if threads == 0 || ring_slots == 0 {
        return Err(StageError::Config(format!("{threads} threads, {ring_slots} ring slots; give at least 1 of each")));
    }
    for (n, model) in models.iter().enumerate() {
        if models[..n].iter().any(|other| other.info.name == model.info.name) {
            return Err(StageError::Config(format!("two models are named {}; rename one", model.info.name)));
        }
    }
    let infos = models.iter().map(|model| model.info.clone()).collect();
    let mut stage = Stage { models: infos, shared: Vec::new(), threads: Vec::new() };
    let mut ends: Vec<Vec<link::ThreadEnd>> = bells.iter().map(|_| Vec::new()).collect();
    for number in 0..threads {
        let system =
            |what: &str, source| StageError::System { what: format!("{what} of inference thread {number}"), source };
        let bell = Bell::new().map_err(|e| system("the bell", e))?;
        let shared = Arc::new(thread::Shared::new(bell));
        let mut ports = Vec::new();
        for (bell, ends) in bells.iter().zip(&mut ends) {
            let (commands, inbox) = ring(ring_slots);
            let (outbox, events) = ring(ring_slots);
            ports.push(thread::Port::new(inbox, outbox, Arc::clone(bell)));
            ends.push(link::ThreadEnd { commands, events, shared: Arc::clone(&shared) });
        }
        let (pinned, models, for_thread) = (pin.get(number).copied(), models.clone(), Arc::clone(&shared));
        let (report, started) = std::sync::mpsc::sync_channel(1);
        let run = move || {
            let _ = report.send(pinned.map_or(Ok(()), thread::pin));
            thread::Thread::new(models, ports, for_thread).run();
        };
        let builder = std::thread::Builder::new().name(format!("thalweg-infer-{number}"));
        stage.threads.push(builder.spawn(run).map_err(|e| system("the start", e))?);
        stage.shared.push(shared);
        if let Ok(Err(error)) = started.recv() {
            return Err(system(&format!("pinning to CPU {}", pinned.unwrap_or_default()), error));
        }
    }
    let links = ends.into_iter().map(CoreLink::new).collect();
    Ok((stage, links))
}

impl Stage {
    /// The models that are served, the default first.
    pub fn models(&self) -> &[ModelInfo] {
        &self.models
    }

    /// Counters and timings of all threads together, at most a quarter of a second old.
    pub fn stats(&self) -> StageStats {
        self.report().stats
    }

    /// The same with what it was made from: times as histograms, counters by model.
    pub fn report(&self) -> StageReport {
        StageReport::merge(self.shared.iter().map(|shared| shared.stats.latest()))
    }

    /// Ends all generations as cancelled, within one step, and waits for the threads.
    pub fn shutdown(&mut self) {
        for shared in &self.shared {
            shared.stop.store(true, Ordering::Release);
            shared.bell.ring();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an inference thread ended by a panic");
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shutdown();
    }
}
