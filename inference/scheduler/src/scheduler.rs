//! The state machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::blocks::Blocks;
use crate::contract::{Config, Input, Outcome, Output, Sampled};
use crate::counters::Counters;
use crate::fair::Turns;
use crate::plan::{BlockCopy, Part, Row, Step};
use crate::sequence::{End, Outlet, Sequence, SequenceId, Stand};

mod admission;
mod prompts;

/// Tokens for which a tenant may be admitted in one turn.
const ADMISSION_QUANTUM_TOKENS: usize = 256;

/// What a tenant has here.
#[derive(Debug, Default)]
struct Tenant {
    /// Its sequences that may run and wait for a seat, by rank.
    queue: BTreeMap<(u64, u64), SequenceId>,
    /// Its sequences without a seat, those that may not run included.
    unseated: usize,
    /// Its sequences that get rows.
    active: usize,
    /// Blocks its sequences have or will have; shared ones count for each.
    blocks: usize,
}

/// Decides which tokens are computed in each step.
///
/// Contract: feed [`Scheduler::handle`] with what happens; then, again and again: [`Scheduler::plan`] a step, drain
/// [`Scheduler::poll`], compute the rows (copies first), tell [`Scheduler::complete`] the outcome of each row that wanted
/// logits, drain `poll` again. Inputs may come at any time, also between `plan` and `complete`. `now_us` is any monotonic
/// count of microseconds.
///
/// - Sequences join and leave between steps. Every sequence with memory, credit and an open outlet gets a row per token;
///   prompts share what those leave of [`Config::prefill_tokens`]. A prompt whose last row is computed draws its first
///   token in that same step.
/// - Memory is blocks. A sequence begins when all blocks it may ever need can be promised to it, so that none stops for
///   want of memory. What was computed before for an equal beginning, by whoever of the same tenant, is not computed
///   again: full blocks are shared, the beginning of a block is copied.
/// - Tenants take turns, for memory and for rows of prompts, at equal cost in tokens. Inside of a tenant order is that of
///   arrival, moved by priority; of what a tenant gets for prompts its first has half, and the shortest the rest. A tenant
///   that has less than another does not wait for that one's sequences to end: they make room (they are preempted).
/// - A sequence without credit is *parked*: it gets no row and no place in the step, but keeps its memory. Only when others
///   wait for memory do those parked longest lose it; on resume what is not found any more is computed again.
/// - A sequence that resumes is the prompt and what it had produced, computed as one prompt; from there on it is as one
///   that was never interrupted.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    sequences: BTreeMap<SequenceId, Sequence>,
    tenants: BTreeMap<u64, Tenant>,
    blocks: Blocks,
    /// Sequences that get rows, in the order in which they got their places.
    active: Vec<SequenceId>,
    /// Sequences that have memory and wait for a place.
    returning: VecDeque<SequenceId>,
    /// Tenants with sequences that wait for memory.
    admissions: Turns,
    /// Tenants with prompts to compute.
    prompts: Turns,
    /// Sequences that have to begin in time and have not begun.
    deadlines: BTreeSet<(u64, SequenceId)>,
    blocked: BTreeSet<Outlet>,
    outputs: VecDeque<Output>,
    /// What the plan being made has to copy.
    copies: Vec<BlockCopy>,
    counters: Counters,
    submitted_ever: u64,
    /// When the last plan was made.
    planned_us: u64,
    /// Smoothed time from getting memory to the end, in microseconds.
    service_us: u64,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new(config: Config) -> Self {
        config.check();
        Self {
            sequences: BTreeMap::new(),
            tenants: BTreeMap::new(),
            blocks: Blocks::new(config.blocks, config.block_tokens),
            active: Vec::new(),
            returning: VecDeque::new(),
            admissions: Turns::new(ADMISSION_QUANTUM_TOKENS),
            prompts: Turns::new(config.block_tokens.min(config.prefill_tokens)),
            deadlines: BTreeSet::new(),
            blocked: BTreeSet::new(),
            outputs: VecDeque::new(),
            copies: Vec::new(),
            counters: Counters::default(),
            submitted_ever: 0,
            planned_us: 0,
            service_us: 1_000_000,
            config,
        }
    }

    /// Takes note of something that happened.
    pub fn handle(&mut self, now_us: u64, input: Input) {
        match input {
            Input::Submit(submit) => self.submit(now_us, submit, &[]),
            Input::Resume { submit, produced } => self.submit(now_us, submit, &produced),
            Input::Credit { id, until } => {
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.credit = sequence.credit.max(until);
                    self.settle(now_us, id);
                }
            }
            Input::Cancel(id) => {
                if self.sequences.contains_key(&id) {
                    self.counters.cancelled += 1;
                    self.finish(now_us, id, End::Cancelled);
                }
            }
            Input::Block { outlet, blocked } => {
                let changed = if blocked { self.blocked.insert(outlet) } else { self.blocked.remove(&outlet) };
                if changed {
                    let of_outlet = self.sequences.values().filter(|s| s.outlet == outlet).map(|s| s.id);
                    let ids: Vec<SequenceId> = of_outlet.collect();
                    ids.into_iter().for_each(|id| self.settle(now_us, id));
                }
            }
        }
    }

    /// The next thing the caller is to do or to know.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Gives memory and places to those who wait, and plans the next step. Empty if nobody may run.
    pub fn plan(&mut self, now_us: u64) -> Step {
        self.planned_us = now_us;
        self.expire(now_us);
        self.admit(now_us);
        let (decoding, prompts): (Vec<SequenceId>, Vec<SequenceId>) =
            self.active.iter().partition(|id| self.sequences[id].is_decoding());
        let mut step = Step::default();
        decoding.iter().for_each(|&id| self.add(&mut step, id, 1));
        self.counters.decode_rows += decoding.len() as u64;
        for (id, count) in self.share(self.config.prefill_tokens - decoding.len(), &prompts) {
            let sequence = &self.sequences[&id];
            let before = sequence.computed_before.saturating_sub(sequence.computed);
            self.counters.recomputed_rows += before.min(count) as u64;
            self.counters.prefill_rows += count as u64;
            self.add(&mut step, id, count);
        }
        self.blocks.unpin();
        step.copies = std::mem::take(&mut self.copies);
        self.counters.blocks_copied += step.copies.len() as u64;
        for id in &self.active {
            self.sequences.get_mut(id).expect("who is active is held").fresh = false;
        }
        debug_assert!(!step.is_empty() || step.copies.is_empty(), "who gets a copy gets a step");
        self.account(&step);
        step
    }

    /// Takes the outcomes of the rows of `step` that wanted logits, in any order. Outcomes of sequences that were cancelled
    /// meanwhile are ignored.
    pub fn complete(&mut self, now_us: u64, step: &Step, sampled: &[Sampled]) {
        let failed = |id| sampled.iter().any(|one| one.id == id && one.outcome == Outcome::Failed);
        let mut computed = Vec::with_capacity(step.parts.len());
        for part in &step.parts {
            // One that was cancelled since the plan has no use for the rows; nor has another of its name that came since.
            let Some(sequence) = self.sequences.get_mut(&part.id).filter(|sequence| sequence.in_step) else { continue };
            sequence.in_step = false;
            computed.push(part.id);
            if failed(part.id) {
                continue;
            }
            sequence.computed += part.count;
            sequence.computed_before = sequence.computed_before.max(sequence.computed);
            let seat = sequence.seat.as_mut().expect("who has rows has memory");
            self.blocks.publish(sequence.tenant, seat, &sequence.tokens, sequence.computed);
        }
        for &Sampled { id, outcome } in sampled.iter().filter(|sampled| computed.contains(&sampled.id)) {
            if !self.sequences.contains_key(&id) {
                continue;
            }
            match outcome {
                Outcome::Token(token) => {
                    let ended = self.produce(id, token);
                    if ended { self.finish(now_us, id, End::Length) } else { self.settle(now_us, id) }
                }
                Outcome::Last(token) => {
                    self.produce(id, token);
                    self.finish(now_us, id, End::Stop);
                }
                Outcome::End => self.finish(now_us, id, End::Stop),
                Outcome::Failed => self.finish(now_us, id, End::Failed),
            }
        }
    }

    /// When a plan that is empty now may not be any more, though nothing happens: a parked sequence then loses its memory, or
    /// one that waits is given up.
    pub fn wake_at_us(&self) -> Option<u64> {
        let deadline = self.deadlines.first().map(|&(at, _)| at);
        let waits = self.tenants.values().any(|tenant| !tenant.queue.is_empty());
        let parked = self.sequences.values().filter(|_| waits).filter_map(|sequence| sequence.parked_since_us);
        let evictable = parked.map(|since| since.saturating_add(self.config.park_keep_us));
        // Those that could be evicted by the last plan and were not will not be by the next one either.
        evictable.filter(|&at| at > self.planned_us).chain(deadline).min()
    }

    /// Sequences held: waiting, running or parked.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether no sequence is held.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Counts so far, and how things stand.
    pub fn counters(&self) -> Counters {
        let count = |stand| self.sequences.values().filter(|sequence| sequence.stand == stand).count() as u64;
        Counters {
            waiting: count(Stand::Queued),
            running: count(Stand::Active) + count(Stand::Returning),
            parked: count(Stand::Parked),
            blocks_dropped: self.blocks.dropped,
            blocks_total: self.blocks.total() as u64,
            blocks_used: self.blocks.used() as u64,
            blocks_cached: self.blocks.cached() as u64,
            blocks_shared: self.blocks.shared() as u64,
            blocks_promised: self.blocks.promised() as u64,
            ..self.counters
        }
    }

    /// Puts a sequence whose readiness may have changed where it belongs.
    fn settle(&mut self, now_us: u64, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let ready = sequence.has_credit() && !self.blocked.contains(&sequence.outlet);
        if sequence.traced && sequence.told_parked == ready {
            sequence.told_parked = !ready;
            self.outputs.push_back(Output::Parked { id, parked: !ready });
        }
        let (was_parked, has_seat) = (sequence.stand == Stand::Parked, sequence.seat.is_some());
        match (was_parked, ready) {
            (true, true) => self.stand(id, if has_seat { Stand::Returning } else { Stand::Queued }),
            (false, false) => {
                if has_seat {
                    sequence.parked_since_us = Some(now_us);
                    self.counters.parks += 1;
                }
                self.stand(id, Stand::Parked);
            }
            (true, false) | (false, true) => {}
        }
    }

    /// Moves a sequence from where it stands to where it stands now.
    fn stand(&mut self, id: SequenceId, to: Stand) {
        let sequence = self.sequences.get_mut(&id).expect("checked by the caller");
        let from = std::mem::replace(&mut sequence.stand, to);
        let (number, rank) = (sequence.tenant, sequence.rank);
        if from == Stand::Parked {
            sequence.parked_since_us = None;
        }
        let tenant = self.tenants.entry(number).or_default();
        match from {
            Stand::Parked => {}
            Stand::Queued => {
                tenant.queue.remove(&rank);
                if tenant.queue.is_empty() {
                    self.admissions.leave(number);
                }
            }
            Stand::Returning => self.returning.retain(|&other| other != id),
            Stand::Active => {
                tenant.active -= 1;
                self.active.retain(|&other| other != id);
            }
        }
        match to {
            Stand::Parked => {}
            Stand::Queued => {
                tenant.queue.insert(rank, id);
                self.admissions.join(number);
            }
            Stand::Returning => self.returning.push_back(id),
            Stand::Active => {
                tenant.active += 1;
                self.active.push(id);
            }
        }
    }

    /// Adds the next `count` rows of a sequence to `step`, and the blocks they need to the sequence.
    fn add(&mut self, step: &mut Step, id: SequenceId, count: usize) {
        let sequence = self.sequences.get_mut(&id).expect("who is planned is held");
        let seat = sequence.seat.as_mut().expect("who runs has memory");
        let until = sequence.computed + count;
        self.blocks.grow(seat, until);
        let blocks = until.div_ceil(self.config.block_tokens);
        let (first, table, number) = (step.rows.len(), step.tables.len(), step.parts.len() as u32);
        step.tables.extend_from_slice(&seat.table[..blocks]);
        sequence.in_step = true;
        let wants_logits = count == sequence.pending();
        step.parts.push(Part { id, first, count, table, blocks, wants_logits, index: sequence.produced() });
        for at in sequence.computed..until {
            step.rows.push(Row {
                part: number,
                position: at as u32,
                token: sequence.tokens[at],
                wants_logits: wants_logits && at + 1 == until,
            });
        }
    }

    /// Counts a step, and looks once more whether everyone in it has credit.
    fn account(&mut self, step: &Step) {
        if step.is_empty() {
            return;
        }
        self.counters.steps += 1;
        self.counters.rows += step.rows.len() as u64;
        for part in &step.parts {
            if !self.sequences[&part.id].has_credit() {
                self.counters.rows_without_credit += part.count as u64;
            }
        }
        debug_assert_eq!(self.counters.rows_without_credit, 0, "the parked get no rows");
    }

    /// Appends a token to a sequence and says so. True if it must end by its length.
    fn produce(&mut self, id: SequenceId, token: u32) -> bool {
        let sequence = self.sequences.get_mut(&id).expect("checked by the caller");
        self.counters.tokens += 1;
        self.counters.tokens_without_credit += u64::from(!sequence.has_credit());
        self.outputs.push_back(Output::Token { id, index: sequence.produced(), token });
        sequence.tokens.push(token);
        sequence.tokens.len() >= sequence.end_len
    }

    fn finish(&mut self, now_us: u64, id: SequenceId, end: End) {
        let sequence = self.forget(id, end == End::Failed);
        if let Some(admitted) = sequence.admitted_us {
            self.service_us = (self.service_us * 7 + now_us.saturating_sub(admitted)) / 8;
        }
        self.counters.finished += 1;
        self.outputs.push_back(Output::Finished { id, end, produced: sequence.produced() });
    }

    /// Takes a sequence out. What was computed of it can be found again, unless it cannot be `trusted`.
    fn forget(&mut self, id: SequenceId, is_broken: bool) -> Sequence {
        self.unseat(id, is_broken);
        self.stand(id, Stand::Parked);
        let sequence = self.sequences.remove(&id).expect("checked by the caller");
        if let Some(at) = sequence.deadline_us {
            self.deadlines.remove(&(at, id));
        }
        let tenant = self.tenants.get_mut(&sequence.tenant).expect("a tenant of a sequence is known");
        tenant.unseated -= 1;
        if tenant.unseated + tenant.active + tenant.blocks == 0 {
            self.tenants.remove(&sequence.tenant);
        }
        if self.sequences.is_empty() {
            let leaked = self.blocks.used() + self.blocks.promised();
            debug_assert_eq!(leaked, 0, "who leaves gives everything back");
            self.counters.blocks_leaked += leaked as u64;
        }
        sequence
    }

    /// Takes a sequence's memory, if it has any. It still stands where it stood.
    fn unseat(&mut self, id: SequenceId, is_broken: bool) {
        let sequence = self.sequences.get_mut(&id).expect("checked by the caller");
        let Some(seat) = sequence.seat.take() else { return };
        let tenant = self.tenants.get_mut(&sequence.tenant).expect("a tenant of a sequence is known");
        tenant.blocks -= seat.blocks();
        tenant.unseated += 1;
        let computed = std::mem::take(&mut sequence.computed);
        sequence.parked_since_us = None;
        match is_broken {
            true => self.blocks.discard(&seat),
            false => self.blocks.release(sequence.tenant, seat, &sequence.tokens, computed),
        }
    }

    /// Panics unless everything adds up.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.blocks.check(self.sequences.values().filter_map(|sequence| sequence.seat.as_ref()));
        assert!(self.active.len() <= self.config.running);
        for sequence in self.sequences.values() {
            let tenant = &self.tenants[&sequence.tenant];
            let stands = [
                tenant.queue.get(&sequence.rank) == Some(&sequence.id),
                self.returning.contains(&sequence.id),
                self.active.contains(&sequence.id),
            ];
            let expected = [Stand::Queued, Stand::Returning, Stand::Active].map(|stand| stand == sequence.stand);
            assert_eq!(stands, expected, "{sequence:?}");
            let ready = sequence.has_credit() && !self.blocked.contains(&sequence.outlet);
            assert_eq!(ready, sequence.stand != Stand::Parked);
            assert!(sequence.seat.is_some() || matches!(sequence.stand, Stand::Parked | Stand::Queued));
        }
        for (number, tenant) in &self.tenants {
            let of = || self.sequences.values().filter(|sequence| sequence.tenant == *number);
            assert_eq!(tenant.unseated, of().filter(|sequence| sequence.seat.is_none()).count());
            assert_eq!(tenant.active, of().filter(|sequence| sequence.stand == Stand::Active).count());
            assert_eq!(tenant.blocks, of().map(Sequence::blocks).sum::<usize>());
        }
        if self.is_empty() {
            assert!(self.blocks.used() == 0 && self.blocks.promised() == 0 && self.tenants.is_empty());
        }
    }
}
