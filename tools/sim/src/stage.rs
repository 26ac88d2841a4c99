//! The inference stage: the real scheduler, and a model that follows a script and checks what it is given.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{CoreId, GenerationId};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_scheduler::{
    Config, Counters, End, Input, Outcome, Outlet, Output, Part, Sampled, Scheduler, SequenceId, Step, Submit,
};
use thalweg_shard::{InferenceCommand, InferenceEvent};

use crate::script::{self, Said};

struct Live {
    core: CoreId,
    prompt: Vec<u32>,
    credit: u32,
    produced: u32,
}

/// The model's view of the life of the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    /// Which one.
    pub(crate) epoch: u64,
    /// Tells apart what a model says that is not repeatable.
    pub(crate) variant: u64,
}

/// One slot's memory: whose it is, and the tokens computed in it.
struct Memory {
    id: SequenceId,
    tokens: Vec<u32>,
    capacity: usize,
}

/// An inference thread under the simulation's clock.
pub(crate) struct Stage {
    scheduler: Scheduler,
    live: BTreeMap<SequenceId, Live>,
    slots: BTreeMap<u32, Memory>,
    running: Option<(Step, Vec<Sampled>)>,
    blocked: BTreeSet<Outlet>,
    life: Life,
    /// Generations that were taken up again.
    pub(crate) resumed: u64,
    /// What is to be told to shards, in order.
    pub(crate) events: Vec<(CoreId, InferenceEvent)>,
    /// Promises of the scheduler that were broken.
    pub(crate) violations: Vec<String>,
}

impl Stage {
    pub(crate) fn new(life: Life, slots: usize, sequences: usize, park_keep_us: u64) -> Self {
        let config = Config { slots, sequences, prefill_tokens: 16, context_tokens: 256, park_keep_us };
        Self {
            scheduler: Scheduler::new(config),
            live: BTreeMap::new(),
            slots: BTreeMap::new(),
            running: None,
            blocked: BTreeSet::new(),
            life,
            resumed: 0,
            events: Vec::new(),
            violations: Vec::new(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.scheduler.counters()
    }

    /// Generations that were begun and have not ended.
    pub(crate) fn unfinished(&self) -> usize {
        self.live.len()
    }

    pub(crate) fn wake_at_us(&self) -> Option<u64> {
        self.scheduler.wake_at_us()
    }

    pub(crate) fn command(&mut self, now_us: u64, core: CoreId, command: InferenceCommand, said: &mut Said) {
        let input = match command {
            InferenceCommand::Submit(submit) => {
                let id = SequenceId(submit.generation.0);
                let bytes = submit.messages.iter().flat_map(|message| message.content.bytes());
                // A token for 4 bytes, so that a channel's past usually fits.
                let mut prompt: Vec<u32> = bytes.step_by(4).map(|byte| u32::from(byte) + 40_000).collect();
                prompt.push(1);
                let (outlet, credit) = (Outlet(core.0), submit.credit);
                let produced = submit.produced;
                let live = Live { core, prompt: prompt.clone(), credit, produced: produced.len() as u32 };
                if self.live.insert(id, live).is_some() {
                    return self.violations.push(format!("{} was submitted twice", submit.generation));
                }
                if let Err(text) = said.begin(submit.generation, self.life.epoch, &prompt, &produced) {
                    self.violations.push(text);
                }
                let submit =
                    Submit { id, outlet, prompt, max_tokens: submit.sampling.max_tokens, credit, traced: false };
                self.resumed += u64::from(!produced.is_empty());
                if produced.is_empty() { Input::Submit(submit) } else { Input::Resume { submit, produced } }
            }
            InferenceCommand::Credit { generation, until } => {
                let id = SequenceId(generation.0);
                if let Some(live) = self.live.get_mut(&id) {
                    live.credit = live.credit.max(until);
                }
                Input::Credit { id, until }
            }
            InferenceCommand::Cancel { generation } => Input::Cancel(SequenceId(generation.0)),
        };
        self.scheduler.handle(now_us, input);
        self.drain(said);
    }

    pub(crate) fn block(&mut self, now_us: u64, core: CoreId, blocked: bool, said: &mut Said) {
        let outlet = Outlet(core.0);
        if blocked {
            self.blocked.insert(outlet)
        } else {
            self.blocked.remove(&outlet)
        };
        self.scheduler.handle(now_us, Input::Block { outlet, blocked });
        self.drain(said);
    }

    /// Plans a step and computes it. False if there is nothing to run.
    pub(crate) fn begin_step(&mut self, now_us: u64, said: &mut Said) -> bool {
        let step = self.scheduler.plan(now_us);
        self.drain(said);
        if step.is_empty() {
            return false;
        }
        let mut sampled = Vec::new();
        for part in &step.parts {
            self.compute(part, &step, said);
            if part.wants_logits {
                sampled.push(Sampled { id: part.id, outcome: self.draw(GenerationId(part.id.0), part.index) });
            }
        }
        self.running = Some((step, sampled));
        true
    }

    /// Ends the step that was begun.
    pub(crate) fn end_step(&mut self, now_us: u64, said: &mut Said) {
        if let Some((step, sampled)) = self.running.take() {
            self.scheduler.complete(now_us, &step, &sampled);
            self.drain(said);
        }
    }

    fn compute(&mut self, part: &Part, step: &Step, said: &mut Said) {
        let generation = GenerationId(part.id.0);
        let (Some(live), Some(memory)) = (self.live.get(&part.id), self.slots.get_mut(&part.slot)) else {
            return self.violations.push(format!("{generation} got rows without being held in slot {}", part.slot));
        };
        if memory.id != part.id {
            self.violations.push(format!("{generation} got rows in a slot of {:?}", memory.id));
        }
        if part.index >= live.credit {
            self.violations.push(format!("{generation} is parked at {} and got {} rows", live.credit, part.count));
        }
        if self.blocked.contains(&Outlet(live.core.0)) {
            self.violations.push(format!("{generation} got rows although core {} is blocked", live.core));
        }
        for row in &step.rows[part.first..part.first + part.count] {
            let at = row.position as usize;
            let known = live.prompt.get(at).copied();
            let of_answer = || said.current(generation)?.tokens.get(at - live.prompt.len()).copied();
            let expected = known.or_else(of_answer);
            if at != memory.tokens.len() || Some(row.token) != expected {
                self.violations.push(format!("{generation}: row {row:?}, expected {expected:?}"));
            }
            memory.tokens.push(row.token);
        }
        if memory.tokens.len() > memory.capacity {
            self.violations.push(format!("{generation} has {} tokens of KV", memory.tokens.len()));
        }
    }

    fn drain(&mut self, said: &mut Said) {
        while let Some(output) = self.scheduler.poll() {
            match output {
                Output::Admitted { id, slot, tokens, .. } => {
                    if self.slots.insert(slot, Memory { id, tokens: Vec::new(), capacity: tokens }).is_some() {
                        self.violations.push(format!("slot {slot} was given to two sequences"));
                    }
                }
                Output::Released { slot } => {
                    self.slots.remove(&slot);
                }
                Output::Token { id, index, token, .. } => {
                    let generation = GenerationId(id.0);
                    let Some(live) = self.live.get_mut(&id) else { continue };
                    if index != live.produced {
                        self.violations.push(format!("{generation}: token {index} follows {}", live.produced));
                    }
                    live.produced = index + 1;
                    if let Some(version) = said.current(generation) {
                        version.push(token);
                    }
                    let text = Bytes::from(script::text(token));
                    let (id, detail) = (token, None);
                    self.events.push((live.core, InferenceEvent::Token { generation, index, id, text, detail }));
                }
                // Nothing is traced here.
                Output::Parked { .. } => {}
                Output::Finished { id, end, produced } => self.finished(id, end, produced),
                Output::Busy { id, retry_after_ms } => {
                    let reject = Reject::new(RejectCode::Busy, "too much is waiting; come back later");
                    self.refuse(id, reject.retry_after_ms(retry_after_ms), said);
                }
                Output::TooLong { id } => {
                    let text = "the prompt leaves no room; shorten it";
                    self.refuse(id, Reject::new(RejectCode::PromptTooLong, text), said);
                }
            }
        }
    }

    fn finished(&mut self, id: SequenceId, end: End, produced: u32) {
        let Some(live) = self.live.remove(&id) else {
            return self.violations.push(format!("{:?} ended without having begun", GenerationId(id.0)));
        };
        if live.produced != produced {
            self.violations.push(format!("{:?} ended at {produced}, told {}", GenerationId(id.0), live.produced));
        }
        let (reason, message) = match end {
            End::Stop => (FinishReason::Stop, ""),
            End::Length => (FinishReason::Length, ""),
            End::Cancelled => (FinishReason::Cancelled, ""),
            End::Failed => (FinishReason::Failed, "the script says so"),
        };
        let prompt_tokens = live.prompt.len() as u32;
        let usage = Usage { prompt_tokens, completion_tokens: produced, cached_tokens: 0 };
        let (generation, message) = (GenerationId(id.0), message.to_owned());
        self.events.push((live.core, InferenceEvent::Finished { generation, reason, usage, message }));
    }

    fn refuse(&mut self, id: SequenceId, reject: Reject, said: &mut Said) {
        said.refuse(GenerationId(id.0));
        if let Some(live) = self.live.remove(&id) {
            self.events.push((live.core, InferenceEvent::Refused { generation: GenerationId(id.0), reject }));
        }
    }

    fn draw(&self, generation: GenerationId, index: u32) -> Outcome {
        let (tokens, close) = (script::tokens(generation), script::close(generation));
        let token = script::token(generation, index, self.life.variant);
        match close {
            script::Close::Last if index + 1 >= tokens => Outcome::Last(token),
            script::Close::End if index >= tokens => Outcome::End,
            script::Close::Failed if index >= tokens => Outcome::Failed,
            _ => Outcome::Token(token),
        }
    }
}
