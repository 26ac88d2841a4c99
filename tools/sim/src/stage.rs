//! The inference stage: the real scheduler, and a model that follows a script and checks what it is given.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{CoreId, GenerationId, Name};
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
    /// All its tokens.
    tokens: Vec<u32>,
    /// What lies in memory after each of them: keys and values depend on the tenant and on all tokens up to there.
    past: Vec<u64>,
    tenant: u64,
    cached: u32,
}

impl Live {
    fn push(&mut self, token: u32) {
        let before = self.past.last().copied().unwrap_or(self.tenant);
        self.tokens.push(token);
        self.past.push(hash(before, u64::from(token)));
    }
}

fn hash(before: u64, next: u64) -> u64 {
    (before.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ next).wrapping_add(0x94d0_49bb_1331_11eb)
}

/// The number of a tenant.
fn number(tenant: &Name) -> u64 {
    tenant.as_str().bytes().fold(1, |before, byte| hash(before, u64::from(byte)))
}

/// The model's view of the life of the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    /// Which one.
    pub(crate) epoch: u64,
    /// Tells apart what a model says that is not repeatable.
    pub(crate) variant: u64,
}

/// How much room a stage has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Sequences in a step.
    pub(crate) running: usize,
    /// Sequences held at all.
    pub(crate) sequences: usize,
    /// Tokens of a block.
    pub(crate) block_tokens: usize,
    /// Blocks beyond those of one sequence that fills the context.
    pub(crate) spare_blocks: usize,
    pub(crate) park_keep_us: u64,
}

/// Longest sequence in tokens.
const CONTEXT_TOKENS: usize = 256;

/// An inference thread under the simulation's clock.
pub(crate) struct Stage {
    scheduler: Scheduler,
    live: BTreeMap<SequenceId, Live>,
    /// What lies in each block at each offset.
    memory: Vec<Vec<u64>>,
    block_tokens: usize,
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
    pub(crate) fn new(life: Life, room: Room) -> Self {
        let Room { running, sequences, block_tokens, spare_blocks, park_keep_us } = room;
        let config = Config {
            running,
            sequences,
            waiting_tenant: sequences,
            blocks: CONTEXT_TOKENS.div_ceil(block_tokens) + spare_blocks,
            block_tokens,
            prefill_tokens: 16,
            context_tokens: CONTEXT_TOKENS,
            park_keep_us,
        };
        Self {
            scheduler: Scheduler::new(config),
            live: BTreeMap::new(),
            memory: vec![vec![0; block_tokens]; config.blocks],
            block_tokens,
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
                let tenant = number(&submit.tenant);
                let mut live = Live {
                    core,
                    prompt: prompt.clone(),
                    credit,
                    produced: produced.len() as u32,
                    tokens: Vec::new(),
                    past: Vec::new(),
                    tenant,
                    cached: 0,
                };
                prompt.iter().chain(&produced).for_each(|&token| live.push(token));
                if self.live.insert(id, live).is_some() {
                    return self.violations.push(format!("{} was submitted twice", submit.generation));
                }
                if let Err(text) = said.begin(submit.generation, self.life.epoch, &prompt, &produced) {
                    self.violations.push(text);
                }
                let (max_tokens, priority) = (submit.sampling.max_tokens, submit.priority);
                let deadline_us = (submit.deadline_ms > 0).then(|| now_us + u64::from(submit.deadline_ms) * 1_000);
                let traced = false;
                let submit = Submit { id, outlet, tenant, priority, deadline_us, prompt, max_tokens, credit, traced };
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
        self.copy(&step);
        step.parts.iter().for_each(|part| self.write(part, &step));
        // All is written before anything is read, so that a block that two write shows.
        for part in &step.parts {
            self.read(part, &step);
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

    fn copy(&mut self, step: &Step) {
        for copy in &step.copies {
            let tokens = self.memory[copy.from as usize][..copy.tokens as usize].to_vec();
            self.memory[copy.to as usize][..tokens.len()].copy_from_slice(&tokens);
        }
    }

    /// Checks the rows of a part and writes them to memory.
    fn write(&mut self, part: &Part, step: &Step) {
        let generation = GenerationId(part.id.0);
        let Some(live) = self.live.get(&part.id) else {
            return self.violations.push(format!("{generation} got rows without being held"));
        };
        if part.index >= live.credit {
            self.violations.push(format!("{generation} is parked at {} and got {} rows", live.credit, part.count));
        }
        if self.blocked.contains(&Outlet(live.core.0)) {
            self.violations.push(format!("{generation} got rows although core {} is blocked", live.core));
        }
        let (table, size) = (step.table(part), self.block_tokens);
        for row in step.rows_of(part) {
            let at = row.position as usize;
            if live.tokens.get(at) != Some(&row.token) {
                return self.violations.push(format!("{generation}: row {row:?}, expected {:?}", live.tokens.get(at)));
            }
            self.memory[table[at / size] as usize][at % size] = live.past[at];
        }
    }

    /// Looks whether memory holds what the last row of a part depends on.
    fn read(&mut self, part: &Part, step: &Step) {
        let Some(live) = self.live.get(&part.id) else { return };
        let (table, size) = (step.table(part), self.block_tokens);
        let last = (step.rows[part.first].position as usize + part.count).min(live.past.len());
        if let Some(at) = (0..last).find(|&at| self.memory[table[at / size] as usize][at % size] != live.past[at]) {
            let generation = GenerationId(part.id.0);
            self.violations.push(format!("{generation}: what is in memory for token {at} is not its own past"));
        }
    }

    fn drain(&mut self, said: &mut Said) {
        while let Some(output) = self.scheduler.poll() {
            match output {
                Output::Admitted { id, waited_us, cached } => {
                    if let Some(live) = self.live.get_mut(&id).filter(|_| waited_us.is_some()) {
                        live.cached = cached.min(live.prompt.len() as u32);
                    }
                }
                Output::Token { id, index, token, .. } => {
                    let generation = GenerationId(id.0);
                    let Some(live) = self.live.get_mut(&id) else { continue };
                    if index != live.produced {
                        self.violations.push(format!("{generation}: token {index} follows {}", live.produced));
                    }
                    live.produced = index + 1;
                    live.push(token);
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
                Output::Expired { id, retry_after_ms } => {
                    let reject = Reject::new(RejectCode::Busy, "it did not begin in time; give it more");
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
        let usage = Usage { prompt_tokens, completion_tokens: produced, cached_tokens: live.cached };
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
