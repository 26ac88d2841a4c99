//! The state machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thalweg_protocol::limits::{PARK_KEEP_US, PREFILL_CHUNK_TOKENS, SEQUENCES_RUNNING_MAX, SEQUENCES_WAITING_MAX};

use crate::counters::Counters;
use crate::plan::{Part, Row, Step, share};
use crate::sequence::{End, Outlet, Sequence, SequenceId};

/// Bounds of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Sequences that hold KV at once, at least 1.
    pub slots: usize,
    /// Sequences held at all, waiting, running or parked.
    pub sequences: usize,
    /// Prompt tokens computed in one step, at least `slots`.
    pub prefill_tokens: usize,
    /// Longest sequence, prompt and answer together, in tokens.
    pub context_tokens: usize,
    /// Time a parked sequence keeps its KV although others wait for it, in microseconds.
    pub park_keep_us: u64,
}

impl Config {
    /// The limits of this build, for a model with `context_tokens`.
    pub fn new(context_tokens: usize) -> Self {
        Self {
            slots: SEQUENCES_RUNNING_MAX,
            sequences: SEQUENCES_WAITING_MAX,
            prefill_tokens: PREFILL_CHUNK_TOKENS,
            context_tokens,
            park_keep_us: PARK_KEEP_US,
        }
    }
}

/// A new sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// Its name; not that of one that lives.
    pub id: SequenceId,
    /// Where its tokens go.
    pub outlet: Outlet,
    /// Its prompt; at least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to produce; at least 1.
    pub max_tokens: u32,
    /// Tokens with an index below this may be produced.
    pub credit: u32,
    /// Whether the caller wants to know when it is [parked](Output::Parked).
    pub traced: bool,
}

/// What happens to a scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A sequence arrives.
    Submit(Submit),
    /// A sequence arrives that was interrupted elsewhere and goes on here.
    Resume {
        /// The sequence as it was submitted at first. Its most tokens and its credit count from its very beginning.
        submit: Submit,
        /// What it had produced. It is computed after the prompt and not given out again: the next token has its length as
        /// index. If the sequence has its most tokens with it, or the context is full, it ends at once by its length.
        produced: Vec<u32>,
    },
    /// Tokens of `id` with an index below `until` may be produced. Credit never shrinks.
    Credit {
        /// Which sequence; unknown ones have ended already and are ignored.
        id: SequenceId,
        /// One past the last index.
        until: u32,
    },
    /// Nobody wants the rest of `id`.
    Cancel(SequenceId),
    /// Sequences of an outlet that is blocked get no rows.
    Block {
        /// Which outlet.
        outlet: Outlet,
        /// Whether it is blocked from now on.
        blocked: bool,
    },
}

/// What came of a row that wanted logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The next token; the sequence goes on.
    Token(u32),
    /// The next token; the sequence ends with it.
    Last(u32),
    /// The sequence ends without another token.
    End,
    /// It cannot be computed.
    Failed,
}

/// A result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    /// Of which sequence.
    pub id: SequenceId,
    /// What came of it.
    pub outcome: Outcome,
}

/// What the caller is to do or to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// `id` got `slot`: its KV memory is to be made, for at most `tokens` tokens. Comes before its first row, and again
    /// when an evicted sequence resumes.
    Admitted {
        /// Which sequence.
        id: SequenceId,
        /// Which slot.
        slot: u32,
        /// Most tokens it will hold.
        tokens: usize,
        /// How long it waited, in microseconds; none when it resumes.
        waited_us: Option<u64>,
    },
    /// The KV memory of `slot` can go.
    Released {
        /// Which slot.
        slot: u32,
    },
    /// A token was produced.
    Token {
        /// Of which sequence.
        id: SequenceId,
        /// Its index, contiguous from 0, or from the number of tokens it had produced when it resumed.
        index: u32,
        /// The token.
        token: u32,
    },
    /// `id`, which is traced, may not run, for want of credit or because its outlet is blocked; or it may again.
    Parked {
        /// Which sequence.
        id: SequenceId,
        /// Whether it is parked from now on.
        parked: bool,
    },
    /// `id` ended; it is forgotten.
    Finished {
        /// Which sequence.
        id: SequenceId,
        /// Why.
        end: End,
        /// Tokens it produced, here and before it resumed.
        produced: u32,
    },
    /// `id` was not accepted: as many sequences are held as may be.
    Busy {
        /// Which sequence.
        id: SequenceId,
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// `id` was not accepted: its prompt leaves no room for an answer.
    TooLong {
        /// Which sequence.
        id: SequenceId,
    },
}

/// Decides which tokens are computed in each step.
///
/// Contract: feed [`Scheduler::handle`] with what happens; then, again and again: [`Scheduler::plan`] a step, drain
/// [`Scheduler::poll`] (slots to make or to free), compute the rows, tell [`Scheduler::complete`] the outcome of each row
/// that wanted logits, drain `poll` again. Inputs may come at any time, also between `plan` and `complete`. `now_us` is any
/// monotonic count of microseconds.
///
/// - Sequences join and leave between steps. Every sequence with a slot, credit and an open outlet gets a row per token;
///   prompts share what [`Config::prefill_tokens`] leaves, each as much as the others. A prompt whose last row is computed
///   draws its first token in that same step.
/// - A sequence without credit is *parked*: it gets no row and no slot, but keeps the one it has, with its KV. Only when
///   others wait and no slot is free does the one parked longest lose it; on resume its tokens are computed again.
/// - A sequence that resumes is the prompt and what it had produced, computed as one prompt; from there on it is as one
///   that was never interrupted.
/// - Slots are given in the order in which sequences became ready to run, so that each gets its turn.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Who has each slot.
    slots: Vec<Option<SequenceId>>,
    /// Sequences that are ready and have no slot, by their place in the queue.
    queue: BTreeMap<u64, SequenceId>,
    queued_ever: u64,
    blocked: BTreeSet<Outlet>,
    outputs: VecDeque<Output>,
    counters: Counters,
    /// Smoothed time from getting a slot to the end, in microseconds.
    service_us: u64,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new(config: Config) -> Self {
        assert!(config.slots > 0 && config.prefill_tokens >= config.slots, "every prompt can get a row: {config:?}");
        Self {
            config,
            sequences: BTreeMap::new(),
            slots: vec![None; config.slots],
            queue: BTreeMap::new(),
            queued_ever: 0,
            blocked: BTreeSet::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            service_us: 1_000_000,
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

    /// Gives slots to those who wait, and plans the next step. Empty if nobody may run.
    pub fn plan(&mut self, now_us: u64) -> Step {
        self.admit(now_us);
        let ready = |id: &SequenceId| {
            let sequence = &self.sequences[id];
            (sequence.has_credit() && !self.blocked.contains(&sequence.outlet)).then_some(sequence)
        };
        let running: Vec<&Sequence> = self.slots.iter().flatten().filter_map(ready).collect();
        let is_decoding = |sequence: &Sequence| sequence.pending() == 1 && sequence.computed > 0;
        let prompts: Vec<usize> = running.iter().filter(|s| !is_decoding(s)).map(|s| s.pending()).collect();
        let mut shares = share(self.config.prefill_tokens, &prompts).into_iter();
        let mut step = Step::default();
        let mut recomputed = 0;
        for sequence in running {
            let decoding = is_decoding(sequence);
            let count = if decoding { 1 } else { shares.next().unwrap_or(0) };
            if count == 0 {
                continue;
            }
            if !decoding {
                recomputed += sequence.computed_before.saturating_sub(sequence.computed).min(count) as u64;
            }
            add(&mut step, sequence, count);
            if decoding {
                self.counters.decode_rows += 1;
            } else {
                self.counters.prefill_rows += count as u64;
            }
        }
        self.counters.recomputed_rows += recomputed;
        self.account(&step);
        step
    }

    /// Takes the outcomes of the rows of `step` that wanted logits, in any order. Outcomes of sequences that were cancelled
    /// meanwhile are ignored.
    pub fn complete(&mut self, now_us: u64, step: &Step, sampled: &[Sampled]) {
        for part in &step.parts {
            // A sequence that was cancelled, or lost its slot, since the plan has no use for the rows.
            if let Some(sequence) = self.sequences.get_mut(&part.id).filter(|s| s.slot == Some(part.slot)) {
                sequence.computed += part.count;
                sequence.computed_before = sequence.computed_before.max(sequence.computed);
            }
        }
        for &Sampled { id, outcome } in sampled {
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

    /// When a plan that is empty now may not be any more, though nothing happens: a parked sequence then loses its slot.
    pub fn wake_at_us(&self) -> Option<u64> {
        if self.queue.is_empty() || self.slots.iter().any(Option::is_none) {
            return None;
        }
        let since = self.slots.iter().flatten().filter_map(|id| self.sequences[id].parked_since_us);
        since.min().map(|since| since + self.config.park_keep_us)
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
        let ready = |s: &&Sequence| s.has_credit() && !self.blocked.contains(&s.outlet);
        Counters {
            waiting: self.queue.len() as u64,
            running: self.sequences.values().filter(|s| s.slot.is_some()).filter(ready).count() as u64,
            parked: self.sequences.values().filter(|s| !ready(s)).count() as u64,
            slots_used: self.slots.iter().flatten().count() as u64,
            ..self.counters
        }
    }

    /// Takes in a sequence that has `produced` behind its prompt already.
    fn submit(&mut self, now_us: u64, submit: Submit, produced: &[u32]) {
        let Submit { id, outlet, prompt, max_tokens, credit, traced } = submit;
        assert!(!self.sequences.contains_key(&id), "{id:?} lives already");
        assert!(!prompt.is_empty() && max_tokens > 0, "{id:?} has something to compute and to produce");
        if prompt.len() >= self.config.context_tokens {
            self.counters.refused_long += 1;
            return self.outputs.push_back(Output::TooLong { id });
        }
        let prompt_len = prompt.len();
        let end_len = prompt_len.saturating_add(max_tokens as usize).min(self.config.context_tokens);
        let mut tokens = prompt;
        tokens.extend_from_slice(produced);
        let over = tokens.len() >= end_len;
        if !over && self.sequences.len() >= self.config.sequences {
            self.counters.refused_busy += 1;
            return self.outputs.push_back(Output::Busy { id, retry_after_ms: self.retry_after_ms() });
        }
        self.counters.submitted += 1;
        self.counters.resumed += u64::from(!produced.is_empty());
        let sequence = Sequence {
            id,
            outlet,
            tokens,
            prompt_len,
            end_len,
            credit,
            computed: 0,
            computed_before: 0,
            slot: None,
            queued: None,
            parked_since_us: None,
            submitted_us: now_us,
            admitted_us: None,
            traced,
            told_parked: false,
        };
        self.sequences.insert(id, sequence);
        // One that was over before it resumed only passes through, however many are held.
        if over { self.finish(now_us, id, End::Length) } else { self.settle(now_us, id) }
    }

    /// When a place will be free, judging by how long sequences took and how many wait for each slot.
    fn retry_after_ms(&self) -> u32 {
        let rounds = (self.queue.len() / self.slots.len()) as u64 + 1;
        (self.service_us.saturating_mul(rounds) / 1_000).clamp(100, 30_000) as u32
    }

    /// Puts a sequence whose readiness may have changed where it belongs: into or out of the queue, parked or not.
    fn settle(&mut self, now_us: u64, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let ready = sequence.has_credit() && !self.blocked.contains(&sequence.outlet);
        if sequence.traced && sequence.told_parked == ready {
            sequence.told_parked = !ready;
            self.outputs.push_back(Output::Parked { id, parked: !ready });
        }
        match (sequence.slot.is_some(), ready) {
            (true, true) => sequence.parked_since_us = None,
            (true, false) => {
                if sequence.parked_since_us.is_none() {
                    sequence.parked_since_us = Some(now_us);
                    self.counters.parks += 1;
                }
            }
            (false, true) => {
                if sequence.queued.is_none() {
                    sequence.queued = Some(self.queued_ever);
                    self.queue.insert(self.queued_ever, id);
                    self.queued_ever += 1;
                }
            }
            (false, false) => {
                if let Some(place) = sequence.queued.take() {
                    self.queue.remove(&place);
                }
            }
        }
    }

    /// Gives free slots to those who wait longest, and takes slots for them from those parked longest.
    fn admit(&mut self, now_us: u64) {
        while let Some((&place, &id)) = self.queue.first_key_value() {
            let free = self.slots.iter().position(Option::is_none).or_else(|| self.evict(now_us));
            let Some(slot) = free else { return };
            self.queue.remove(&place);
            self.slots[slot] = Some(id);
            let sequence = self.sequences.get_mut(&id).expect("who waits is held");
            (sequence.slot, sequence.queued) = (Some(slot as u32), None);
            let waited_us = sequence.admitted_us.is_none().then(|| now_us.saturating_sub(sequence.submitted_us));
            sequence.admitted_us.get_or_insert(now_us);
            let tokens = sequence.end_len;
            self.outputs.push_back(Output::Admitted { id, slot: slot as u32, tokens, waited_us });
        }
    }

    /// Takes the slot of the sequence that has been parked longest, if any has been for long enough.
    fn evict(&mut self, now_us: u64) -> Option<usize> {
        let parked = self.slots.iter().enumerate().filter_map(|(slot, id)| {
            let id = (*id)?;
            Some((self.sequences[&id].parked_since_us?, slot, id))
        });
        let (since, slot, id) = parked.min()?;
        if now_us.saturating_sub(since) < self.config.park_keep_us {
            return None;
        }
        let sequence = self.sequences.get_mut(&id).expect("who has a slot is held");
        (sequence.slot, sequence.computed, sequence.parked_since_us) = (None, 0, None);
        self.slots[slot] = None;
        self.counters.evictions += 1;
        self.outputs.push_back(Output::Released { slot: slot as u32 });
        Some(slot)
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
        let sequence = self.sequences.remove(&id).expect("checked by the caller");
        if let Some(place) = sequence.queued {
            self.queue.remove(&place);
        }
        if let Some(slot) = sequence.slot {
            self.slots[slot as usize] = None;
            self.outputs.push_back(Output::Released { slot });
        }
        if let Some(admitted) = sequence.admitted_us {
            self.service_us = (self.service_us * 7 + now_us.saturating_sub(admitted)) / 8;
        }
        self.counters.finished += 1;
        self.outputs.push_back(Output::Finished { id, end, produced: sequence.produced() });
    }
}

/// Adds the next `count` rows of `sequence` to `step`.
fn add(step: &mut Step, sequence: &Sequence, count: usize) {
    let slot = sequence.slot.expect("who runs has a slot");
    let wants_logits = count == sequence.pending();
    let (first, index) = (step.rows.len(), sequence.produced());
    step.parts.push(Part { id: sequence.id, slot, first, count, wants_logits, index });
    for at in sequence.computed..sequence.computed + count {
        step.rows.push(Row {
            slot,
            position: at as u32,
            token: sequence.tokens[at],
            wants_logits: wants_logits && at + 1 == sequence.tokens.len(),
        });
    }
}
