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

use crate::script;

struct Live {
    core: CoreId,
    prompt: Vec<u32>,
    credit: u32,
    produced: u32,
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
    /// Tokens of the generations that ended.
    ended: BTreeMap<GenerationId, u32>,
    /// What is to be told to shards, in order.
    pub(crate) events: Vec<(CoreId, InferenceEvent)>,
    /// Promises of the scheduler that were broken.
    pub(crate) violations: Vec<String>,
}

impl Stage {
    pub(crate) fn new(slots: usize, sequences: usize, park_keep_us: u64) -> Self {
        let config = Config { slots, sequences, prefill_tokens: 16, context_tokens: 256, park_keep_us };
        Self {
            scheduler: Scheduler::new(config),
            live: BTreeMap::new(),
            slots: BTreeMap::new(),
            running: None,
            blocked: BTreeSet::new(),
            ended: BTreeMap::new(),
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

    /// Tokens of a generation that ended.
    pub(crate) fn tokens(&self, generation: GenerationId) -> Option<u32> {
        self.ended.get(&generation).copied()
    }

    pub(crate) fn wake_at_us(&self) -> Option<u64> {
        self.scheduler.wake_at_us()
    }

    pub(crate) fn command(&mut self, now_us: u64, core: CoreId, command: InferenceCommand) {
        let input = match command {
            InferenceCommand::Submit(submit) => {
                let id = SequenceId(submit.generation.0);
                let bytes = submit.messages.iter().flat_map(|message| message.content.bytes());
                // A token for 4 bytes, so that a channel's past usually fits.
                let mut prompt: Vec<u32> = bytes.step_by(4).map(|byte| u32::from(byte) + 40_000).collect();
                prompt.push(1);
                let (outlet, credit) = (Outlet(core.0), submit.credit);
                let live = Live { core, prompt: prompt.clone(), credit, produced: 0 };
                if self.live.insert(id, live).is_some() {
                    self.violations.push(format!("{} was submitted twice", submit.generation));
                }
                Input::Submit(Submit { id, outlet, prompt, max_tokens: submit.sampling.max_tokens, credit })
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
        self.drain();
    }

    pub(crate) fn block(&mut self, now_us: u64, core: CoreId, blocked: bool) {
        let outlet = Outlet(core.0);
        if blocked {
            self.blocked.insert(outlet)
        } else {
            self.blocked.remove(&outlet)
        };
        self.scheduler.handle(now_us, Input::Block { outlet, blocked });
        self.drain();
    }

    /// Plans a step and computes it. False if there is nothing to run.
    pub(crate) fn begin_step(&mut self, now_us: u64) -> bool {
        let step = self.scheduler.plan(now_us);
        self.drain();
        if step.is_empty() {
            return false;
        }
        let mut sampled = Vec::new();
        for part in &step.parts {
            self.compute(part, &step);
            if part.wants_logits {
                sampled.push(Sampled { id: part.id, outcome: draw(GenerationId(part.id.0), part.index) });
            }
        }
        self.running = Some((step, sampled));
        true
    }

    /// Ends the step that was begun.
    pub(crate) fn end_step(&mut self, now_us: u64) {
        if let Some((step, sampled)) = self.running.take() {
            self.scheduler.complete(now_us, &step, &sampled);
            self.drain();
        }
    }

    fn compute(&mut self, part: &Part, step: &Step) {
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
            let expected = known.unwrap_or_else(|| script::token(generation, (at - live.prompt.len()) as u32));
            if at != memory.tokens.len() || row.token != expected {
                self.violations.push(format!("{generation}: row {row:?}, expected {expected}"));
            }
            memory.tokens.push(row.token);
        }
        if memory.tokens.len() > memory.capacity {
            self.violations.push(format!("{generation} has {} tokens of KV", memory.tokens.len()));
        }
    }

    fn drain(&mut self) {
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
                Output::Token { id, index, .. } => {
                    let generation = GenerationId(id.0);
                    let Some(live) = self.live.get_mut(&id) else { continue };
                    live.produced = index + 1;
                    let text = Bytes::from(script::text(generation, index));
                    self.events.push((live.core, InferenceEvent::Token { generation, index, text }));
                }
                Output::Finished { id, end, produced } => self.finished(id, end, produced),
                Output::Busy { id, retry_after_ms } => {
                    let reject = Reject::new(RejectCode::Busy, "too much is waiting; come back later");
                    self.refuse(id, reject.retry_after_ms(retry_after_ms));
                }
                Output::TooLong { id } => {
                    self.refuse(id, Reject::new(RejectCode::PromptTooLong, "the prompt leaves no room; shorten it"));
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
        self.ended.insert(GenerationId(id.0), produced);
        let (reason, message) = match end {
            End::Stop => (FinishReason::Stop, ""),
            End::Length => (FinishReason::Length, ""),
            End::Cancelled => (FinishReason::Cancelled, ""),
            End::Failed => (FinishReason::Failed, "the script says so"),
        };
        let usage = Usage { prompt_tokens: live.prompt.len() as u32, completion_tokens: produced };
        let (generation, message) = (GenerationId(id.0), message.to_owned());
        self.events.push((live.core, InferenceEvent::Finished { generation, reason, usage, message }));
    }

    fn refuse(&mut self, id: SequenceId, reject: Reject) {
        if let Some(live) = self.live.remove(&id) {
            self.events.push((live.core, InferenceEvent::Refused { generation: GenerationId(id.0), reject }));
        }
    }
}

fn draw(generation: GenerationId, index: u32) -> Outcome {
    let (tokens, close) = (script::tokens(generation), script::close(generation));
    match close {
        script::Close::Last if index + 1 >= tokens => Outcome::Last(script::token(generation, index)),
        script::Close::End if index >= tokens => Outcome::End,
        script::Close::Failed if index >= tokens => Outcome::Failed,
        _ => Outcome::Token(script::token(generation, index)),
    }
}
