//! Texts to vectors between the steps of language models: a bounded queue, taken in small units of work.
//!
//! Jobs take turns: each pass through a model holds a few texts of every job, so that one question does not wait for
//! hundreds of pages. A pass is cut into units of well under a millisecond ([`Encoder::advance`]); a thread that also runs
//! a language model does units for [`EMBED_SLICE_US`] after each of its steps, and one that does not for longer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thalweg_protocol::ids::Name;
use thalweg_protocol::limits::{EMBED_TEXTS_MAX, EMBED_VALUES_MAX, INTAKE_SLICE_US};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::stats::ThreadStats;
use super::thread::Ports;
use super::{Event, ModelInfo, ModelKind, ModelSource};
use crate::bert::Encoder;
use crate::embed::TextEncoder;
use crate::gguf::LoadError;
use crate::kernel::Kernels;

/// How long a language model's next step is held back by texts to embed, in microseconds; a unit of work that has begun
/// is done to its end. A step of a small model takes five times as long, so that its tokens come a fifth later at most.
pub const EMBED_SLICE_US: u64 = 2_000;
/// The same where no language model has anything to do: how long commands wait.
const EMBED_IDLE_SLICE_US: u64 = 2 * INTAKE_SLICE_US;
/// Requests for embeddings that wait or are computed on one thread; one more is refused with a time to retry.
pub const EMBED_JOBS_MAX: usize = 256;
/// Tokens that go through a model together. More make long waits for those who come next, fewer read the weights more
/// often.
const PASS_TOKENS: usize = 256;
/// What a waiting job is taken to cost where it is said when to try again, in milliseconds.
const JOB_MS: u32 = 10;

/// A sentence encoder in memory.
#[derive(Clone)]
pub struct LoadedEncoder {
    /// What is told about it.
    pub info: ModelInfo,
    /// Its weights and tokens.
    pub encoder: Arc<TextEncoder>,
}

impl LoadedEncoder {
    /// Reads a model's files and packs its weights for this processor.
    ///
    /// # Errors
    /// A file is missing, or no sentence encoder.
    pub fn load(source: &ModelSource) -> Result<Self, LoadError> {
        let start = Instant::now();
        let kernels = Kernels::choose()?;
        let encoder = TextEncoder::load(&source.path, kernels)?;
        let info = ModelInfo {
            name: source.name.clone(),
            kind: ModelKind::Embedding,
            context_tokens: encoder.tokens_max() as u32,
            vocabulary: encoder.bert().dimensions().vocabulary as u32,
            kv_bytes_per_token: 0,
            dimensions: encoder.dimensions() as u32,
            load_ms: start.elapsed().as_millis() as u64,
        };
        tracing::info!(model = %info.name, kernels = %kernels.isa(), load_ms = info.load_ms, "model loaded");
        Ok(Self { info, encoder: Arc::new(encoder) })
    }
}

/// Texts to embed.
#[derive(Debug)]
pub struct Embed {
    /// A number the core gives; [`Event::Embedded`] has it.
    pub job: u64,
    /// Which model; the first that makes embeddings if none is named.
    pub model: Option<Name>,
    /// At most [`EMBED_TEXTS_MAX`].
    pub texts: Vec<String>,
    /// When the request came in.
    pub submitted: Instant,
}

/// The vectors of a job's texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// The model that made them.
    pub model: Name,
    /// Numbers of each vector.
    pub dimensions: u32,
    /// `[text][element]`, each of length 1.
    pub vectors: Vec<f32>,
    /// Tokens of all texts, with the two that stand around each.
    pub tokens: u32,
}

/// A job that is not done.
struct Job {
    number: u64,
    port: usize,
    /// Its place in [`Embedder::models`].
    model: usize,
    texts: Vec<String>,
    /// Texts that were tokenised.
    tokenised: usize,
    /// Those of them that wait for a pass, by number.
    ready: VecDeque<(usize, Vec<u32>)>,
    vectors: Vec<f32>,
    /// Texts that have their vector.
    done: usize,
    tokens: u32,
    submitted: Instant,
}

/// A text of a job: port, job and index.
type TextId = (usize, u64, usize);

/// The encoders of one thread, and what they have to do.
pub(super) struct Embedder {
    models: Vec<LoadedEncoder>,
    encoders: Vec<Encoder>,
    jobs: VecDeque<Job>,
    /// The model whose pass is under way, and whose texts go through it.
    pass: Option<(usize, Vec<TextId>)>,
    /// Models that are on their way out.
    leaving: Vec<Name>,
}

impl Embedder {
    pub(super) fn new(models: Vec<LoadedEncoder>) -> Self {
        let encoders = models.iter().map(|model| Encoder::new(Arc::clone(model.encoder.bert()))).collect();
        Self { models, encoders, jobs: VecDeque::new(), pass: None, leaving: Vec::new() }
    }

    /// Serves one more.
    pub(super) fn add(&mut self, model: LoadedEncoder) {
        self.encoders.push(Encoder::new(Arc::clone(model.encoder.bert())));
        self.models.push(model);
    }

    /// A model is given no new jobs.
    pub(super) fn leave(&mut self, name: &Name) {
        if self.position(name).is_some() {
            self.leaving.push(name.clone());
        }
    }

    /// Whether a model has jobs.
    pub(super) fn works(&self, name: &Name) -> bool {
        self.position(name).is_some_and(|at| self.jobs.iter().any(|job| job.model == at))
    }

    /// Refuses the jobs of one model; gives how many they were.
    pub(super) fn refuse_of(
        &mut self,
        name: &Name,
        reject: &Reject,
        ports: &mut Ports,
        stats: &mut ThreadStats,
    ) -> u64 {
        let Some(at) = self.position(name) else { return 0 };
        let (gone, stays) = std::mem::take(&mut self.jobs).into_iter().partition(|job| job.model == at);
        self.jobs = stays;
        let gone: VecDeque<Job> = gone;
        stats.embed_refused += gone.len() as u64;
        for job in &gone {
            ports.emit(job.port, Event::Embedded { job: job.number, result: Err(reject.clone()) });
        }
        gone.len() as u64
    }

    /// Takes a model out that has no jobs.
    pub(super) fn remove(&mut self, name: &Name) -> Option<LoadedEncoder> {
        let at = self.position(name)?;
        self.leaving.retain(|other| other != name);
        // Those behind it move up.
        self.jobs.iter_mut().filter(|job| job.model > at).for_each(|job| job.model -= 1);
        self.pass = match self.pass.take() {
            Some((model, _)) if model == at => None,
            Some((model, texts)) if model > at => Some((model - 1, texts)),
            pass => pass,
        };
        self.encoders.remove(at);
        Some(self.models.remove(at))
    }

    /// The model for requests that name none.
    pub(super) fn first(&self) -> Option<&Name> {
        self.models.iter().map(|model| &model.info.name).find(|name| !self.leaving.contains(name))
    }

    fn position(&self, name: &Name) -> Option<usize> {
        self.models.iter().position(|model| model.info.name == *name)
    }

    /// Jobs that wait or are computed.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether a model of this name makes embeddings.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.models.iter().any(|model| model.info.name == *name)
    }

    /// Takes a job in, or refuses it. `others` are the models that do not make embeddings.
    pub(super) fn submit(
        &mut self,
        port: usize,
        embed: Embed,
        others: &[&Name],
        ports: &mut Ports,
        stats: &mut ThreadStats,
    ) {
        let Embed { job: number, model, texts, submitted } = embed;
        match self.check(model.as_ref(), texts.len(), others) {
            Ok(model) => {
                let (width, submitted_texts) = (self.models[model].encoder.dimensions(), texts.len());
                stats.embed_jobs += 1;
                let (ready, vectors) = (VecDeque::new(), vec![0.0; submitted_texts * width]);
                let (tokenised, done, tokens) = (0, 0, 0);
                self.jobs.push_back(Job {
                    number,
                    port,
                    model,
                    texts,
                    tokenised,
                    ready,
                    vectors,
                    done,
                    tokens,
                    submitted,
                });
            }
            Err(reject) => {
                stats.embed_refused += 1;
                ports.emit(port, Event::Embedded { job: number, result: Err(reject) });
            }
        }
    }

    /// The model for a job, or why it is refused.
    fn check(&self, model: Option<&Name>, texts: usize, others: &[&Name]) -> Result<usize, Reject> {
        let stays = |model: &&LoadedEncoder| !self.leaving.contains(&model.info.name);
        let have = || self.models.iter().filter(stays).map(|m| m.info.name.as_str()).collect::<Vec<_>>().join(", ");
        let refuse = |code, text: String| Err(Reject::new(code, text));
        let found = match model {
            None if self.first().is_none() => {
                let text = "no model of this node makes embeddings; `thalweg models pull minilm-l6` fetches one";
                return refuse(RejectCode::EmbeddingsUnsupported, text.into());
            }
            None => self.models.iter().position(|model| stays(&model)).unwrap_or(0),
            Some(name) => match self.position(name).filter(|at| stays(&&self.models[*at])) {
                Some(at) => at,
                None if others.contains(&name) => {
                    let text = format!("{name} makes no embeddings; those that do: [{}]", have());
                    return refuse(RejectCode::EmbeddingsUnsupported, text);
                }
                None => {
                    let text = format!("there is no model {name}; those that make embeddings: [{}]", have());
                    return refuse(RejectCode::ModelUnknown, text);
                }
            },
        };
        let width = self.models[found].encoder.dimensions();
        let most = EMBED_TEXTS_MAX.min(EMBED_VALUES_MAX / width);
        if texts == 0 || texts > most {
            return refuse(RejectCode::ParameterInvalid, format!("{texts} texts; give 1 to {most} at a time"));
        }
        if self.jobs.len() >= EMBED_JOBS_MAX {
            let text = format!("{EMBED_JOBS_MAX} requests for embeddings wait already; try again later");
            let retry_after_ms = EMBED_JOBS_MAX as u32 * JOB_MS;
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(retry_after_ms));
        }
        Ok(found)
    }

    /// Works for a slice of time: a short one if a language model waits. False if there was nothing to do.
    pub(super) fn work(&mut self, decoding: bool, ports: &mut Ports, stats: &mut ThreadStats) -> bool {
        if self.jobs.is_empty() && self.pass.is_none() {
            return false;
        }
        let start = Instant::now();
        let slice = Duration::from_micros(if decoding { EMBED_SLICE_US } else { EMBED_IDLE_SLICE_US });
        self.advance(|| start.elapsed() >= slice, ports, stats);
        stats.embed_slice.record(start.elapsed());
        true
    }

    /// Does units of work until there is none left or time is up, which is looked at after each.
    fn advance(&mut self, mut time_is_up: impl FnMut() -> bool, ports: &mut Ports, stats: &mut ThreadStats) {
        while self.unit(ports, stats) && !time_is_up() {}
    }

    /// One unit of work: a part of a pass, the tokens of one text, or what begins a pass. False if there is none.
    fn unit(&mut self, ports: &mut Ports, stats: &mut ThreadStats) -> bool {
        if let Some((model, _)) = &self.pass {
            if !self.encoders[*model].advance() {
                self.finish_pass(ports, stats);
            }
            return true;
        }
        let ready: usize = self.jobs.iter().flat_map(|job| &job.ready).map(|(_, tokens)| tokens.len()).sum();
        if ready < PASS_TOKENS && self.tokenise(ports, stats) {
            return true;
        }
        self.begin_pass()
    }

    /// Tokenises the next text of the first job that has one, and puts that job behind the others.
    fn tokenise(&mut self, ports: &mut Ports, stats: &mut ThreadStats) -> bool {
        let waits = |job: &Job| job.tokenised < job.texts.len();
        let Some(at) = self.jobs.iter().position(waits) else { return false };
        let Some(mut job) = self.jobs.remove(at) else { return false };
        let number = job.tokenised;
        match self.models[job.model].encoder.tokenise(&job.texts[number]) {
            Ok(tokens) => {
                job.tokenised += 1;
                job.tokens += tokens.len() as u32;
                job.texts[number] = String::new();
                job.ready.push_back((number, tokens));
                self.jobs.push_back(job);
            }
            Err(error) => {
                stats.embed_refused += 1;
                let code = match error {
                    crate::embed::TextError::TooLong => RejectCode::PromptTooLong,
                    crate::embed::TextError::Tokenizer(_) => RejectCode::ParameterInvalid,
                };
                let reject = Reject::new(code, format!("text {number}: {error}"));
                ports.emit(job.port, Event::Embedded { job: job.number, result: Err(reject) });
            }
        }
        true
    }

    /// Begins a pass with texts of all jobs of one model, one of each in turn. False if no text is ready.
    fn begin_pass(&mut self) -> bool {
        let Some(model) = self.jobs.iter().find(|job| !job.ready.is_empty()).map(|job| job.model) else { return false };
        let (mut texts, mut tokens, mut rows) = (Vec::new(), Vec::new(), 0);
        loop {
            let before = texts.len();
            for job in self.jobs.iter_mut().filter(|job| job.model == model) {
                let fits = |(_, text): &mut (usize, Vec<u32>)| rows == 0 || rows + text.len() <= PASS_TOKENS;
                if let Some((number, text)) = job.ready.pop_front_if(fits) {
                    rows += text.len();
                    texts.push((job.port, job.number, number));
                    tokens.push(text);
                }
            }
            if texts.len() == before {
                break;
            }
        }
        // Who stood first stands last the next time.
        self.jobs.rotate_left(1);
        self.encoders[model].begin(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>());
        self.pass = Some((model, texts));
        true
    }

    /// Hands the vectors of a pass to their jobs, and the jobs that have all of theirs to their cores.
    fn finish_pass(&mut self, ports: &mut Ports, stats: &mut ThreadStats) {
        let Some((model, texts)) = self.pass.take() else { return };
        let (info, width) = (&self.models[model].info, self.models[model].encoder.dimensions());
        for ((port, number, text), vector) in texts.into_iter().zip(self.encoders[model].vectors().chunks_exact(width))
        {
            // One that was refused or whose core is gone is not there any more.
            let Some(at) = self.jobs.iter().position(|job| job.port == port && job.number == number) else { continue };
            let job = &mut self.jobs[at];
            job.vectors[text * width..][..width].copy_from_slice(vector);
            job.done += 1;
            stats.embed_texts += 1;
            if job.done < job.texts.len() {
                continue;
            }
            let Some(job) = self.jobs.remove(at) else { continue };
            let result = match job.vectors.iter().all(|value| value.is_finite()) {
                true => {
                    let (model, dimensions) = (info.name.clone(), info.dimensions);
                    stats.embed_tokens += u64::from(job.tokens);
                    Ok(Embeddings { model, dimensions, vectors: job.vectors, tokens: job.tokens })
                }
                false => {
                    stats.embed_refused += 1;
                    let text = format!("{} gave numbers that are not finite; its file is damaged", info.name);
                    Err(Reject::new(RejectCode::Internal, text))
                }
            };
            stats.embed.record(job.submitted.elapsed());
            ports.emit(port, Event::Embedded { job: number, result });
        }
    }

    /// Forgets what a core that is gone had asked for.
    pub(super) fn forget(&mut self, port: usize) {
        self.jobs.retain(|job| job.port != port);
    }

    /// Refuses everything there is, after a panic or before the end.
    pub(super) fn refuse_all(&mut self, reject: &Reject, ports: &mut Ports, stats: &mut ThreadStats) {
        self.pass = None;
        for job in std::mem::take(&mut self.jobs) {
            stats.embed_refused += 1;
            ports.emit(job.port, Event::Embedded { job: job.number, result: Err(reject.clone()) });
        }
    }
}

#[cfg(test)]
mod tests;
