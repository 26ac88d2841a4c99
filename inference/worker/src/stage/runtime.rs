//! One model on one thread: its scheduler, its runner, and the generations it has.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_protocol::generation::{Constraint, FinishReason, TokenDetail, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::limits::{KV_BLOCK_TOKENS, SEQUENCES_RUNNING_MAX, SEQUENCES_WAITING_MAX, USAGES_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_scheduler::{Config, End, Input, Outcome, Outlet, Output, Part, Sampled, Scheduler, SequenceId, Step};

use super::stats::{ModelStats, ThreadStats};
use super::thread::Ports;
use super::{Event, LoadedModel, Submit, Times};
use crate::constraint::{Follower, Lost};
use crate::drawing::Drawing;
use crate::model::Runner;
use crate::sampling::Sampler;
use crate::team::Team;
use crate::text::{Piece, Text};
use crate::tokenizer::Vocabulary;

/// A generation that is held.
struct Live {
    generation: GenerationId,
    port: usize,
    drawing: Drawing,
    text: Text,
    prompt_tokens: u32,
    /// Tokens of the prompt that had been computed before, for another.
    cached_tokens: u32,
    /// Tokens of the answer at which it ends: the most that were asked for, or what the context leaves.
    tokens_max: u32,
    /// Tokens it had produced before it was submitted here.
    resumed_after: u32,
    /// Tokens of the answer that were given out, here or before.
    produced: u32,
    submitted: Instant,
    scheduled: Option<Instant>,
    /// Text of the token drawn last, and when that was.
    drawn: (String, Instant),
    /// How likely that token was, if that was asked for.
    detail: Option<Box<TokenDetail>>,
    /// What failed.
    message: String,
    /// What is remembered of it, if it is traced.
    times: Option<Box<Times>>,
}

impl Live {
    /// Takes the text of the token at `index` in. `complete`: nothing can follow it. Gives what can be sent of it, and
    /// whether the token ends the answer.
    fn read(&mut self, token: u32, index: u32, complete: bool, vocabulary: &Vocabulary) -> (Piece, bool) {
        let is_end = vocabulary.is_end(token);
        let is_last = complete || index + 1 >= self.tokens_max;
        let piece = match (is_end, is_last) {
            (true, _) => self.text.finish(&[]),
            (false, true) => self.text.finish(vocabulary.bytes(token)),
            (false, false) => self.text.push(vocabulary.bytes(token)),
        };
        (piece, is_end)
    }

    /// Tells its core that it ended.
    fn over(mut self, reason: FinishReason, ports: &mut Ports) {
        tell_times(self.times.take(), self.port, ports);
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.produced);
        let usage = Usage { prompt_tokens, completion_tokens, cached_tokens: self.cached_tokens };
        let (generation, message) = (self.generation, self.message);
        ports.emit(self.port, Event::Finished { generation, reason, usage, message });
    }
}

/// See the module.
pub(super) struct Runtime {
    loaded: LoadedModel,
    runner: Box<dyn Runner>,
    scheduler: Scheduler,
    config: Config,
    team: Arc<Team>,
    /// The numbers of tenants, by which they share the model. A number is never given again.
    tenants: HashMap<Name, u64>,
    tenants_ever: u64,
    live: HashMap<SequenceId, Live>,
    /// How many of them are traced and have had no row.
    traced_waiting: usize,
    sampler: Sampler,
}

impl Runtime {
    /// `blocks`: of KV memory there are for it; `share`: how many models share this thread's limits.
    pub(super) fn new(loaded: LoadedModel, blocks: usize, team: Arc<Team>, share: usize) -> Self {
        let config = Config {
            running: (SEQUENCES_RUNNING_MAX / share).max(1),
            sequences: (SEQUENCES_WAITING_MAX / share).max(1),
            ..Config::new(loaded.info.context_tokens as usize, blocks)
        };
        Self {
            runner: runner(&loaded, &config, &team),
            scheduler: Scheduler::new(config),
            loaded,
            config,
            team,
            tenants: HashMap::new(),
            tenants_ever: 0,
            live: HashMap::new(),
            traced_waiting: 0,
            sampler: Sampler::default(),
        }
    }

    /// The model's name and more.
    pub(super) fn loaded(&self) -> &LoadedModel {
        &self.loaded
    }

    /// What became of the model on this thread.
    pub(super) fn stats(&self) -> ModelStats {
        let info = &self.loaded.info;
        ModelStats {
            name: info.name.clone(),
            block_bytes: (KV_BLOCK_TOKENS * info.kv_bytes_per_token) as u64,
            counters: self.scheduler.counters(),
        }
    }

    pub(super) fn wake_at_us(&self) -> Option<u64> {
        self.scheduler.wake_at_us()
    }

    pub(super) fn has(&self, generation: GenerationId) -> bool {
        self.live.contains_key(&SequenceId(generation.0))
    }

    /// Takes a generation in: templates, tokenises, queues it. Or refuses it.
    pub(super) fn submit(
        &mut self,
        now_us: u64,
        port: usize,
        submit: Submit,
        ports: &mut Ports,
        stats: &mut ThreadStats,
    ) {
        let start = Instant::now();
        let generation = submit.generation;
        let mut times = submit.traced.then(|| Times::new(generation, start));
        let invalid = |text| Reject::new(RejectCode::ParameterInvalid, text);
        let prompt = self.check_produced(&submit).and_then(|()| self.tokenise(&submit, stats)).map_err(invalid);
        let (prompt, follower) = match prompt.and_then(|prompt| Ok((prompt, self.follower(&submit)?))) {
            Ok(found) => found,
            Err(reject) => {
                tell_times(times, port, ports);
                stats.refused_invalid += 1;
                return ports.emit(port, Event::Refused { generation, reject });
            }
        };
        if let Some(times) = &mut times {
            (times.prompt_tokens, times.tokenised) = (prompt.len() as u32, Some(Instant::now()));
        }
        let id = SequenceId(generation.0);
        let prompt_tokens = prompt.len() as u32;
        let max_tokens = submit.sampling.max_tokens.max(1);
        let resumed_after = submit.produced.len() as u32;
        let mut live = Live {
            generation,
            port,
            text: Text::new(&submit.sampling.stop),
            prompt_tokens,
            cached_tokens: 0,
            tokens_max: max_tokens.min((self.config.context_tokens as u32).saturating_sub(prompt_tokens)),
            resumed_after,
            produced: resumed_after,
            submitted: submit.submitted,
            scheduled: None,
            drawn: (String::new(), start),
            detail: None,
            message: String::new(),
            times,
            drawing: Drawing::new(submit.sampling, &prompt, follower),
        };
        // A prompt that fills the context is the scheduler's to refuse.
        if live.tokens_max > 0 {
            let replayed = replay(&mut live, &submit.produced, &self.loaded.vocabulary);
            let over = replayed.unwrap_or_else(|lost| {
                live.message = lost.to_string();
                Some(FinishReason::Failed)
            });
            if let Some(reason) = over {
                stats.resumed_over += 1;
                return live.over(reason, ports);
            }
        }
        let traced = live.times.is_some();
        self.traced_waiting += usize::from(traced);
        self.live.insert(id, live);
        let outlet = Outlet(port as u16);
        let tenant = self.tenant(submit.tenant);
        let deadline = Duration::from_millis(submit.deadline_ms.into()).saturating_sub(submit.submitted.elapsed());
        let deadline_us = (submit.deadline_ms > 0).then(|| now_us + deadline.as_micros() as u64);
        let (produced, credit, priority) = (submit.produced, submit.credit, submit.priority);
        let submit =
            thalweg_scheduler::Submit { id, outlet, tenant, priority, deadline_us, prompt, max_tokens, credit, traced };
        self.scheduler.handle(
            now_us,
            match produced.is_empty() {
                true => Input::Submit(submit),
                false => Input::Resume { submit, produced },
            },
        );
        self.drain(ports, stats);
    }

    /// The number of a tenant. If there are too many they are all given new ones: what was computed for them is not found
    /// again then.
    fn tenant(&mut self, name: Name) -> u64 {
        if self.tenants.len() >= USAGES_MAX && !self.tenants.contains_key(&name) {
            self.tenants.clear();
        }
        let next = self.tenants_ever;
        let number = *self.tenants.entry(name).or_insert(next);
        self.tenants_ever += u64::from(number == next);
        number
    }

    /// Whether a generation can have produced what it is said to have.
    fn check_produced(&self, submit: &Submit) -> Result<(), String> {
        let (produced, max_tokens) = (&submit.produced, submit.sampling.max_tokens);
        if produced.len() > max_tokens as usize {
            let count = produced.len();
            return Err(format!(
                "produced has {count} tokens; max_tokens is {max_tokens}: give those of this generation"
            ));
        }
        let tokens = self.loaded.vocabulary.len();
        if let Some((at, token)) = produced.iter().enumerate().find(|(_, token)| **token as usize >= tokens) {
            let name = &self.loaded.info.name;
            return Err(format!(
                "produced[{at}] is {token}; {name} has {tokens} tokens: go on with the model that began"
            ));
        }
        Ok(())
    }

    /// What keeps an answer to its constraint, if it has one.
    fn follower(&self, submit: &Submit) -> Result<Option<Follower>, Reject> {
        match &submit.sampling.constraint {
            Constraint::None => Ok(None),
            constraint => self.loaded.vocabulary.grammars().compile(constraint).map(Some),
        }
    }

    /// The tokens of a conversation; at least one.
    fn tokenise(&self, submit: &Submit, stats: &mut ThreadStats) -> Result<Vec<u32>, String> {
        let start = Instant::now();
        let vocabulary = &*self.loaded.vocabulary;
        // The tokenizer is foreign code fed with foreign text.
        let tokens = catch_unwind(AssertUnwindSafe(|| match submit.raw {
            true => vocabulary.raw(&submit.messages),
            false => vocabulary.prompt(&submit.messages),
        }));
        stats.tokenise.record(start.elapsed());
        match tokens {
            Ok(Ok(prompt)) if !prompt.is_empty() => Ok(prompt),
            Ok(Ok(_)) => Err("the conversation has no tokens".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                stats.panics += 1;
                Err("the tokenizer failed at these messages; change them".into())
            }
        }
    }

    /// Hands an input to the scheduler.
    pub(super) fn handle(&mut self, now_us: u64, input: Input, ports: &mut Ports, stats: &mut ThreadStats) {
        self.scheduler.handle(now_us, input);
        self.drain(ports, stats);
    }

    /// Cancels the generations of one port, or of all.
    pub(super) fn cancel_all(&mut self, now_us: u64, port: Option<usize>, ports: &mut Ports, stats: &mut ThreadStats) {
        let of_port = self.live.iter().filter(|(_, live)| port.is_none_or(|port| live.port == port));
        let mut ids: Vec<SequenceId> = of_port.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            self.handle(now_us, Input::Cancel(id), ports, stats);
        }
    }

    /// Whether it has no generation.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Cancels all generations and tells them why; gives how many they were.
    pub(super) fn cancel_for(&mut self, now_us: u64, why: &str, ports: &mut Ports, stats: &mut ThreadStats) -> u64 {
        let count = self.live.len() as u64;
        self.live.values_mut().for_each(|live| live.message = why.to_owned());
        self.cancel_all(now_us, None, ports, stats);
        count
    }

    /// Fails all generations and starts anew: the state after a panic in our own code cannot be trusted.
    pub(super) fn fail_all(&mut self, message: &str, ports: &mut Ports, stats: &mut ThreadStats) {
        let mut lives: Vec<Live> = self.live.drain().map(|(_, live)| live).collect();
        lives.sort_unstable_by_key(|live| live.generation);
        for mut live in lives {
            stats.failed += 1;
            live.message = message.into();
            live.over(FinishReason::Failed, ports);
        }
        self.traced_waiting = 0;
        self.runner = runner(&self.loaded, &self.config, &self.team);
        self.scheduler = Scheduler::new(self.config);
    }

    /// Plans and runs one step. False if there was nothing to run.
    pub(super) fn step(&mut self, now: impl Fn() -> u64, ports: &mut Ports, stats: &mut ThreadStats) -> bool {
        let step = self.scheduler.plan(now());
        self.drain(ports, stats);
        if step.is_empty() {
            return false;
        }
        let start = Instant::now();
        if self.traced_waiting > 0 {
            self.note_first_rows(&step, start);
        }
        let sampled = self.compute(&step, stats);
        stats.step.record(start.elapsed());
        self.scheduler.complete(now(), &step, &sampled);
        self.drain(ports, stats);
        true
    }

    /// Remembers which sequences that are traced get their first row now.
    fn note_first_rows(&mut self, step: &Step, at: Instant) {
        for part in &step.parts {
            let times = self.live.get_mut(&part.id).and_then(|live| live.times.as_mut());
            if let Some(times) = times.filter(|times| times.first_row.is_none()) {
                times.first_row = Some(at);
                self.traced_waiting -= 1;
            }
        }
    }

    /// Forgets a generation that is held.
    fn remove(&mut self, id: SequenceId) -> Option<Live> {
        let live = self.live.remove(&id)?;
        let waits = live.times.as_ref().is_some_and(|times| times.first_row.is_none());
        self.traced_waiting -= usize::from(waits);
        Some(live)
    }

    /// Runs the rows of a step and draws a token for each part that wants one.
    fn compute(&mut self, step: &Step, stats: &mut ThreadStats) -> Vec<Sampled> {
        let Self { runner, live, sampler, loaded, .. } = self;
        let vocabulary = &*loaded.vocabulary;
        let mut sampled = Vec::with_capacity(step.parts.len());
        match catch_unwind(AssertUnwindSafe(|| runner.step(step))) {
            Ok(()) => {
                let mut rows = runner.logits().chunks_exact(vocabulary.len().max(1));
                for part in step.parts.iter().filter(|part| part.wants_logits) {
                    let live = live.get_mut(&part.id).expect("who is planned is held");
                    sampled.push(draw(live, part, rows.next(), vocabulary, sampler, stats));
                }
            }
            // Some sequence of the step makes the model panic. Each is run alone, so that only that one fails; their
            // logits are the same alone as together.
            Err(_) => {
                stats.panics += 1;
                for part in &step.parts {
                    let alone = step.alone(part);
                    let live = live.get_mut(&part.id).expect("who is planned is held");
                    match catch_unwind(AssertUnwindSafe(|| runner.step(&alone))) {
                        Ok(()) if part.wants_logits => {
                            sampled.push(draw(live, part, Some(runner.logits()), vocabulary, sampler, stats));
                        }
                        Ok(()) => {}
                        Err(_) => {
                            live.message = "the model failed at this generation; the node's log says more".into();
                            sampled.push(Sampled { id: part.id, outcome: Outcome::Failed });
                        }
                    }
                }
            }
        }
        sampled
    }

    /// Carries out what the scheduler wants.
    fn drain(&mut self, ports: &mut Ports, stats: &mut ThreadStats) {
        while let Some(output) = self.scheduler.poll() {
            match output {
                Output::Admitted { id, waited_us, cached } => {
                    if let Some(live) = self.live.get_mut(&id).filter(|_| waited_us.is_some()) {
                        let at = Instant::now();
                        stats.queue_wait.record(at.saturating_duration_since(live.submitted));
                        live.scheduled = Some(at);
                        live.cached_tokens = cached.min(live.prompt_tokens);
                        if let Some(times) = &mut live.times {
                            times.admitted = Some(at);
                        }
                        let (generation, prompt_tokens) = (live.generation, live.prompt_tokens);
                        let model = self.loaded.info.name.clone();
                        ports.emit(live.port, Event::Scheduled { generation, model, prompt_tokens, at });
                    }
                }
                Output::Token { id, index, token } => {
                    let live = self.live.get_mut(&id).expect("who produces is held");
                    live.produced = index + 1;
                    let (text, at) = (Bytes::from(std::mem::take(&mut live.drawn.0)), live.drawn.1);
                    let (generation, detail) = (live.generation, live.detail.take());
                    ports.emit(live.port, Event::Token { generation, index, id: token, text, detail, at });
                    stats.sample_to_ring.record(at.elapsed());
                }
                Output::Parked { id, parked } => {
                    if let Some(times) = self.live.get_mut(&id).and_then(|live| live.times.as_mut()) {
                        times.parked(Instant::now(), parked);
                    }
                }
                Output::Finished { id, end, produced } => self.finished(id, end, produced, ports, stats),
                Output::Busy { id, retry_after_ms } => {
                    let (held, most) = (self.scheduler.len(), self.config.waiting_tenant);
                    let text =
                        format!("{held} generations wait or run already, of a tenant at most {most} wait: try later");
                    let reject = Reject::new(RejectCode::Busy, text).retry_after_ms(retry_after_ms);
                    self.refused(id, reject, ports);
                }
                Output::Expired { id, retry_after_ms } => {
                    let text = "the generation did not begin by its deadline; give it more time, or try later";
                    self.refused(id, Reject::new(RejectCode::Busy, text).retry_after_ms(retry_after_ms), ports);
                }
                Output::TooLong { id } => {
                    let tokens = self.live.get(&id).map_or(0, |live| live.prompt_tokens);
                    let (name, context) = (&self.loaded.info.name, self.config.context_tokens);
                    let text =
                        format!("the conversation has {tokens} tokens; {name} takes fewer than {context}: shorten it");
                    self.refused(id, Reject::new(RejectCode::PromptTooLong, text), ports);
                }
            }
        }
    }

    fn refused(&mut self, id: SequenceId, reject: Reject, ports: &mut Ports) {
        if let Some(mut live) = self.remove(id) {
            tell_times(live.times.take(), live.port, ports);
            ports.emit(live.port, Event::Refused { generation: live.generation, reject });
        }
    }

    fn finished(&mut self, id: SequenceId, end: End, produced: u32, ports: &mut Ports, stats: &mut ThreadStats) {
        let mut live = self.remove(id).expect("who ends was held");
        let reason = match end {
            End::Stop => FinishReason::Stop,
            End::Length => FinishReason::Length,
            End::Cancelled => FinishReason::Cancelled,
            End::Failed => FinishReason::Failed,
        };
        stats.failed += u64::from(end == End::Failed);
        live.produced = produced;
        live.over(reason, ports);
    }
}

fn runner(loaded: &LoadedModel, config: &Config, team: &Arc<Team>) -> Box<dyn Runner> {
    Arc::clone(&loaded.model).runner(config.blocks, config.prefill_tokens, Arc::clone(team))
}

/// Gives out what is remembered of a generation that is traced, right before its end.
pub(super) fn tell_times(times: Option<Box<Times>>, port: usize, ports: &mut Ports) {
    if let Some(times) = times {
        ports.emit(port, Event::Traced(times.end()));
    }
}

/// Brings a generation's text to where it was after `produced`: as if those tokens had just been drawn, but what comes out
/// was given out then. Gives why the generation was over with one of them, if it was.
fn replay(live: &mut Live, produced: &[u32], vocabulary: &Vocabulary) -> Result<Option<FinishReason>, Lost> {
    for (index, &token) in (0..live.tokens_max).zip(produced) {
        let complete = live.drawing.replay(token)?;
        let (piece, is_end) = live.read(token, index, complete, vocabulary);
        if is_end || complete || piece.stopped {
            return Ok(Some(FinishReason::Stop));
        }
    }
    Ok((live.resumed_after >= live.tokens_max).then_some(FinishReason::Length))
}

/// Draws a sequence's next token and decides whether it is the last.
fn draw(
    live: &mut Live,
    part: &Part,
    logits: Option<&[f32]>,
    vocabulary: &Vocabulary,
    sampler: &mut Sampler,
    stats: &mut ThreadStats,
) -> Sampled {
    let id = part.id;
    let drawn = match live.drawing.draw(sampler, logits.unwrap_or(&[]), part.index, vocabulary) {
        Ok(drawn) => drawn,
        Err(error) => {
            live.message = error.to_string();
            return Sampled { id, outcome: Outcome::Failed };
        }
    };
    let at = Instant::now();
    if part.index == live.resumed_after
        && let Some(scheduled) = live.scheduled
    {
        stats.prefill.record(at.duration_since(scheduled));
        if let Some(times) = &mut live.times {
            times.first_token = Some(at);
        }
    }
    let token = drawn.token;
    let (piece, is_end) = live.read(token, part.index, drawn.complete, vocabulary);
    let outcome = match (is_end, piece.stopped || drawn.complete) {
        // Text that was held back goes out in the place of the token that ends the answer, which has no text itself.
        (true, _) if piece.text.is_empty() => Outcome::End,
        (true, _) | (_, true) => Outcome::Last(token),
        (false, false) => Outcome::Token(token),
    };
    live.drawn = (piece.text, at);
    live.detail = drawn.detail;
    Sampled { id, outcome }
}
