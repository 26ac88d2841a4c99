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

/// What the thread measured since it started.
#[derive(Debug, Clone, Default)]
pub(super) struct ThreadStats {
    /// The size of its team.
    pub(super) threads: u64,
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
    pub(super) embed_waiting: u64,
    pub(super) embed_jobs: u64,
    pub(super) embed_texts: u64,
    pub(super) embed_tokens: u64,
    pub(super) embed_refused: u64,
    pub(super) queue_wait: Times,
    pub(super) tokenise: Times,
    pub(super) prefill: Times,
    pub(super) step: Times,
    pub(super) sample_to_ring: Times,
    pub(super) embed: Times,
    pub(super) embed_slice: Times,
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

/// What became of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStats {
    /// Which model.
    pub name: Name,
    /// Bytes of one block of KV memory.
    pub block_bytes: u64,
    /// What its scheduler counted.
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
    pub times: [(&'static str, Histogram<u64>); 7],
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
    /// Blocks of KV memory there are.
    pub blocks_total: u64,
    /// Blocks of KV memory that generations hold.
    pub blocks_used: u64,
    /// Blocks that nobody holds and that can be found again by what lies in them.
    pub blocks_cached: u64,
    /// Blocks that several generations hold; part of `blocks_used`.
    pub blocks_shared: u64,
    /// Blocks that generations do not hold yet and will get when they need them.
    pub blocks_promised: u64,
    /// Blocks of which the beginning was copied for a generation.
    pub blocks_copied: u64,
    /// Blocks whose content could have been found again and made room for other.
    pub blocks_dropped: u64,
    /// Blocks that were held although no generation was there: always 0.
    pub blocks_leaked: u64,
    /// Times the beginning of a generation was looked up among what was computed before.
    pub prefix_lookups: u64,
    /// Tokens that those generations had to have computed, found or not.
    pub prefix_tokens: u64,
    /// Tokens that were found and not computed again; part of `prefix_tokens`.
    pub prefix_hit_tokens: u64,
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
    /// Times a generation that could run made room for a tenant that had less.
    pub preemptions: u64,
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
    /// Generations refused because too many of their tenant waited; part of `refused_busy`.
    pub refused_tenant: u64,
    /// Generations refused because they had not begun by their deadline.
    pub expired: u64,
    /// Generations refused because their prompt fills the context.
    pub refused_long: u64,
    /// Generations refused because there is no such model.
    pub refused_model: u64,
    /// Generations refused because their messages cannot be templated or tokenised, or their tokens are not
    /// ones they can have produced.
    pub refused_invalid: u64,
    /// Requests for embeddings that wait or are computed.
    pub embed_waiting: u64,
    /// Requests for embeddings accepted.
    pub embed_jobs: u64,
    /// Texts embedded.
    pub embed_texts: u64,
    /// Tokens of the texts of requests that were answered.
    pub embed_tokens: u64,
    /// Requests for embeddings refused, or ended without vectors.
    pub embed_refused: u64,
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
    /// From a request for embeddings to its answer.
    pub embed: Summary,
    /// How long a step was held back by texts to embed, or what came on the rings was.
    pub embed_slice: Summary,
}

/// That of a stage that does nothing.
impl Default for StageReport {
    fn default() -> Self {
        Self::new(&ThreadStats::default())
    }
}

impl StageReport {
    pub(super) fn new(of: &ThreadStats) -> Self {
        let mut stats = StageStats::default();
        stats.set(of);
        stats.queue_wait = of.queue_wait.summary();
        stats.tokenise = of.tokenise.summary();
        stats.prefill = of.prefill.summary();
        stats.step = of.step.summary();
        stats.sample_to_ring = of.sample_to_ring.summary();
        stats.embed = of.embed.summary();
        stats.embed_slice = of.embed_slice.summary();
        let times = [
            ("queue_wait", of.queue_wait.0.clone()),
            ("tokenise", of.tokenise.0.clone()),
            ("prefill", of.prefill.0.clone()),
            ("step", of.step.0.clone()),
            ("sample_to_ring", of.sample_to_ring.0.clone()),
            ("embed", of.embed.0.clone()),
            ("embed_slice", of.embed_slice.0.clone()),
        ];
        Self { stats, models: of.models.clone(), times }
    }
}

impl StageStats {
    fn set(&mut self, one: &ThreadStats) {
        let c = &one.counters;
        for (into, from) in [
            (&mut self.threads, one.threads),
            (&mut self.commands_queued, one.commands_queued),
            (&mut self.events_held, one.events_held),
            (&mut self.outlets_blocked, one.outlets_blocked),
            (&mut self.waiting, c.waiting),
            (&mut self.running, c.running),
            (&mut self.parked, c.parked),
            (&mut self.blocks_total, c.blocks_total),
            (&mut self.blocks_used, c.blocks_used),
            (&mut self.blocks_cached, c.blocks_cached),
            (&mut self.blocks_shared, c.blocks_shared),
            (&mut self.blocks_promised, c.blocks_promised),
            (&mut self.blocks_copied, c.blocks_copied),
            (&mut self.blocks_dropped, c.blocks_dropped),
            (&mut self.blocks_leaked, c.blocks_leaked),
            (&mut self.prefix_lookups, c.prefix_lookups),
            (&mut self.prefix_tokens, c.prefix_tokens),
            (&mut self.prefix_hit_tokens, c.prefix_hit_tokens),
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
            (&mut self.preemptions, c.preemptions),
            (&mut self.submitted, c.submitted),
            (&mut self.resumed, c.resumed),
            (&mut self.resumed_over, one.resumed_over),
            (&mut self.finished, c.finished),
            (&mut self.cancelled, c.cancelled),
            (&mut self.failed, one.failed),
            (&mut self.panics, one.panics),
            (&mut self.refused_busy, c.refused_busy),
            (&mut self.refused_tenant, c.refused_tenant),
            (&mut self.expired, c.expired),
            (&mut self.refused_long, c.refused_long),
            (&mut self.refused_model, one.refused_model),
            (&mut self.refused_invalid, one.refused_invalid),
            (&mut self.embed_waiting, one.embed_waiting),
            (&mut self.embed_jobs, one.embed_jobs),
            (&mut self.embed_texts, one.embed_texts),
            (&mut self.embed_tokens, one.embed_tokens),
            (&mut self.embed_refused, one.embed_refused),
        ] {
            *into = from;
        }
    }
}
