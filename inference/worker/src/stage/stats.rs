//! What the stage counts and times.

use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;
use serde::Serialize;
use thalweg_protocol::ids::Name;
use thalweg_scheduler::Counters;

/// Longest time that is told apart from longer ones: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Times of one kind in microseconds, to about 1 %.
#[derive(Debug, Clone)]
pub(super) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the bounds are valid"))
    }
}

impl Times {
    pub(super) fn record(&mut self, time: std::time::Duration) {
        self.0.saturating_record((time.as_micros() as u64).clamp(1, LONGEST_US));
    }

    fn summary(&self) -> Summary {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Summary {
            count: self.0.len(),
            mean_us: self.0.mean(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: self.0.max(),
        }
    }
}

/// A distribution of times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many were measured.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Half are at most this.
    pub p50_us: u64,
    /// 90 % are at most this.
    pub p90_us: u64,
    /// 99 % are at most this.
    pub p99_us: u64,
    /// 99.9 % are at most this.
    pub p999_us: u64,
    /// 99.99 % are at most this.
    pub p9999_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// What one thread measured since it started.
#[derive(Debug, Clone, Default)]
pub(super) struct ThreadStats {
    /// Of all models together.
    pub(super) counters: Counters,
    /// Of each model.
    pub(super) models: Vec<ModelStats>,
    pub(super) refused_model: u64,
    pub(super) refused_invalid: u64,
    pub(super) failed: u64,
    pub(super) resumed_over: u64,
    pub(super) panics: u64,
    pub(super) outlets_blocked: u64,
    pub(super) commands_queued: u64,
    pub(super) events_held: u64,
    pub(super) queue_wait: Times,
    pub(super) tokenise: Times,
    pub(super) prefill: Times,
    pub(super) step: Times,
    pub(super) sample_to_ring: Times,
}

/// The newest stats of a thread. The lock is held for the exchange of a pointer only, a few times a second.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<Arc<ThreadStats>>);

impl Published {
    /// Puts newer stats in place.
    pub(super) fn publish(&self, stats: &ThreadStats) {
        let newer = Arc::new(stats.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = newer;
    }

    /// The newest.
    pub(super) fn latest(&self) -> Arc<ThreadStats> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What became of one model, over all threads.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStats {
    /// Which model.
    pub name: Name,
    /// Generations that can hold KV memory at once.
    pub slots: u64,
    /// Bytes of KV memory of one of them.
    pub slot_bytes: u64,
    /// What its schedulers counted, added up.
    pub counters: Counters,
}

/// Everything a stage measured: what [`StageStats`] sums up, and what it was summed up from.
#[derive(Debug, Clone)]
pub struct StageReport {
    /// Counters, and summaries of the times.
    pub stats: StageStats,
    /// By model, the default first.
    pub models: Vec<ModelStats>,
    /// Times in microseconds by the name they have in [`StageStats`].
    pub times: [(&'static str, Histogram<u64>); 5],
}

/// Counters and timings of a stage since its start, and how things stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StageStats {
    /// Inference threads.
    pub threads: u64,
    /// Commands on the rings from the cores.
    pub commands_queued: u64,
    /// Events that wait because a core's ring is full.
    pub events_held: u64,
    /// Times a core's ring was full and its generations were stopped.
    pub outlets_blocked: u64,
    /// Generations that wait for KV memory.
    pub waiting: u64,
    /// Generations that are being computed.
    pub running: u64,
    /// Generations whose readers give no credit, or whose core does not take its events.
    pub parked: u64,
    /// KV slots in use.
    pub slots_used: u64,
    /// Steps run.
    pub steps: u64,
    /// Tokens computed.
    pub rows: u64,
    /// Tokens computed to draw the next one.
    pub decode_rows: u64,
    /// Tokens of prompts computed.
    pub prefill_rows: u64,
    /// Tokens computed again after an eviction; part of `prefill_rows`.
    pub recomputed_rows: u64,
    /// Tokens computed for a parked generation: always 0.
    pub rows_while_parked: u64,
    /// Tokens drawn.
    pub tokens: u64,
    /// Tokens drawn beyond a generation's credit: always 0.
    pub tokens_while_parked: u64,
    /// Times a generation ran out of credit.
    pub parks: u64,
    /// Times a parked generation's KV was given to another.
    pub evictions: u64,
    /// Generations accepted.
    pub submitted: u64,
    /// Generations accepted that go on after tokens they had produced before; part of `submitted`.
    pub resumed: u64,
    /// Generations that turned out to be over with the tokens they had produced before; not part of `submitted`.
    pub resumed_over: u64,
    /// Generations that ended.
    pub finished: u64,
    /// Generations that were cancelled; part of `finished`.
    pub cancelled: u64,
    /// Generations that failed; part of `finished`.
    pub failed: u64,
    /// Panics that were caught.
    pub panics: u64,
    /// Generations refused because too many were there.
    pub refused_busy: u64,
    /// Generations refused because their prompt fills the context.
    pub refused_long: u64,
    /// Generations refused because there is no such model.
    pub refused_model: u64,
    /// Generations refused because their messages cannot be templated or tokenised, or their tokens are not
    /// ones they can have produced.
    pub refused_invalid: u64,
    /// From the request's arrival to its first step.
    pub queue_wait: Summary,
    /// Templating and tokenising one conversation.
    pub tokenise: Summary,
    /// From the first step to the first token drawn.
    pub prefill: Summary,
    /// One step of a model.
    pub step: Summary,
    /// From a token drawn to its event on the core's ring.
    pub sample_to_ring: Summary,
}

/// That of a stage without threads.
impl Default for StageReport {
    fn default() -> Self {
        Self::merge(std::iter::empty())
    }
}

impl StageReport {
    pub(super) fn merge(threads: impl Iterator<Item = Arc<ThreadStats>>) -> Self {
        let mut all = StageStats::default();
        let mut sum = ThreadStats::default();
        for one in threads {
            all.threads += 1;
            all.add(&one);
            for (into, from) in [
                (&mut sum.queue_wait, &one.queue_wait),
                (&mut sum.tokenise, &one.tokenise),
                (&mut sum.prefill, &one.prefill),
                (&mut sum.step, &one.step),
                (&mut sum.sample_to_ring, &one.sample_to_ring),
            ] {
                into.0.add(&from.0).expect("all have the same bounds");
            }
            for model in &one.models {
                match sum.models.iter_mut().find(|other| other.name == model.name) {
                    Some(other) => {
                        other.slots += model.slots;
                        super::thread::add_counters(&mut other.counters, &model.counters);
                    }
                    None => sum.models.push(model.clone()),
                }
            }
        }
        all.queue_wait = sum.queue_wait.summary();
        all.tokenise = sum.tokenise.summary();
        all.prefill = sum.prefill.summary();
        all.step = sum.step.summary();
        all.sample_to_ring = sum.sample_to_ring.summary();
        let times = [
            ("queue_wait", sum.queue_wait.0),
            ("tokenise", sum.tokenise.0),
            ("prefill", sum.prefill.0),
            ("step", sum.step.0),
            ("sample_to_ring", sum.sample_to_ring.0),
        ];
        Self { stats: all, models: sum.models, times }
    }
}

impl StageStats {
    fn add(&mut self, one: &ThreadStats) {
        let c = &one.counters;
        for (into, from) in [
            (&mut self.commands_queued, one.commands_queued),
            (&mut self.events_held, one.events_held),
            (&mut self.outlets_blocked, one.outlets_blocked),
            (&mut self.waiting, c.waiting),
            (&mut self.running, c.running),
            (&mut self.parked, c.parked),
            (&mut self.slots_used, c.slots_used),
            (&mut self.steps, c.steps),
            (&mut self.rows, c.rows),
            (&mut self.decode_rows, c.decode_rows),
            (&mut self.prefill_rows, c.prefill_rows),
            (&mut self.recomputed_rows, c.recomputed_rows),
            (&mut self.rows_while_parked, c.rows_without_credit),
            (&mut self.tokens, c.tokens),
            (&mut self.tokens_while_parked, c.tokens_without_credit),
            (&mut self.parks, c.parks),
            (&mut self.evictions, c.evictions),
            (&mut self.submitted, c.submitted),
            (&mut self.resumed, c.resumed),
            (&mut self.resumed_over, one.resumed_over),
            (&mut self.finished, c.finished),
            (&mut self.cancelled, c.cancelled),
            (&mut self.failed, one.failed),
            (&mut self.panics, one.panics),
            (&mut self.refused_busy, c.refused_busy),
            (&mut self.refused_long, c.refused_long),
            (&mut self.refused_model, one.refused_model),
            (&mut self.refused_invalid, one.refused_invalid),
        ] {
            *into += from;
        }
    }
}
