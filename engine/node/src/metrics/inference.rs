//! What the inference stage measured, as metrics. Labels are models of the configuration, so they are few.

use thalweg_web::{Buckets, Exposition};
use thalweg_worker::stage::{ModelStats, StageReport};

use super::spread;

/// A number of a model: its name outside, its help, and where it stands.
type Row = (&'static str, &'static str, fn(&ModelStats) -> u64);

#[rustfmt::skip]
const COUNTERS: &[Row] = &[
    ("thalweg_model_steps", "Steps that a model ran.", |m| m.counters.steps),
    ("thalweg_model_tokens", "Tokens that a model drew.", |m| m.counters.tokens),
    ("thalweg_model_parks", "Times a generation ran out of credit.", |m| m.counters.parks),
    ("thalweg_model_evictions", "Times a parked generation lost its KV memory to one that waited.", |m| m.counters.evictions),
    ("thalweg_model_preemptions", "Times a generation that could run made room for a tenant that had less.", |m| m.counters.preemptions),
    ("thalweg_model_prefix_lookups", "Times the beginning of a generation was looked up among what was computed before.", |m| m.counters.prefix_lookups),
    ("thalweg_model_prefix_tokens", "Tokens those generations had to have computed, found or not.", |m| m.counters.prefix_tokens),
    ("thalweg_model_prefix_hit_tokens", "Tokens that were found and not computed again; part of the prefix tokens.", |m| m.counters.prefix_hit_tokens),
    ("thalweg_model_kv_blocks_copied", "Blocks of which the beginning was copied for a generation.", |m| m.counters.blocks_copied),
    ("thalweg_model_kv_blocks_dropped", "Blocks whose content could have been found again and made room for other.", |m| m.counters.blocks_dropped),
    ("thalweg_model_kv_blocks_leaked", "Blocks held although no generation was there: each is a defect.", |m| m.counters.blocks_leaked),
    ("thalweg_model_generations_submitted", "Generations that a model accepted.", |m| m.counters.submitted),
    ("thalweg_model_generations_resumed", "Generations accepted that go on after an interruption; part of those submitted.", |m| m.counters.resumed),
    ("thalweg_model_generations_finished", "Generations that ended.", |m| m.counters.finished),
    ("thalweg_model_generations_cancelled", "Generations that were cancelled; part of those finished.", |m| m.counters.cancelled),
];

#[rustfmt::skip]
const GAUGES: &[Row] = &[
    ("thalweg_model_kv_blocks", "Blocks of KV memory that a model has.", |m| m.counters.blocks_total),
    ("thalweg_model_kv_blocks_used", "Blocks of KV memory that generations hold.", |m| m.counters.blocks_used),
    ("thalweg_model_kv_blocks_cached", "Blocks that nobody holds and that can be found again by what lies in them.", |m| m.counters.blocks_cached),
    ("thalweg_model_kv_blocks_shared", "Blocks that several generations hold; part of those used.", |m| m.counters.blocks_shared),
    ("thalweg_model_kv_blocks_promised", "Blocks that generations do not hold yet and will get.", |m| m.counters.blocks_promised),
    ("thalweg_model_kv_used_bytes", "KV memory of a model held by generations.", |m| m.counters.blocks_used * m.block_bytes),
    ("thalweg_model_kv_total_bytes", "KV memory that a model has.", |m| m.counters.blocks_total * m.block_bytes),
];

/// Writes it all out.
pub(super) fn expose(report: &StageReport, into: &mut Exposition) {
    let stats = &report.stats;
    into.gauge("thalweg_inference_threads", "Threads that run models.").add(&[], stats.threads);
    into.gauge("thalweg_inference_commands_queued", "Commands of cores that wait on rings.")
        .add(&[], stats.commands_queued);
    into.gauge("thalweg_inference_events_held", "Events that wait, since a core's ring is full.")
        .add(&[], stats.events_held);
    into.counter("thalweg_inference_outlets_blocked", "Times a core's ring was full and its generations were stopped.")
        .add(&[], stats.outlets_blocked);
    into.counter("thalweg_inference_failures", "Generations that failed.").add(&[], stats.failed);
    into.counter("thalweg_inference_panics", "Panics that were caught: each is a defect.").add(&[], stats.panics);
    into.counter("thalweg_inference_without_credit", "Tokens computed for nobody's credit: each is a defect.")
        .add(&[], stats.rows_while_parked + stats.tokens_while_parked);
    into.counter("thalweg_inference_refused", "Generations refused, by why.")
        .add(&[("reason", "busy")], stats.refused_busy.saturating_sub(stats.refused_tenant))
        .add(&[("reason", "tenant")], stats.refused_tenant)
        .add(&[("reason", "deadline")], stats.expired)
        .add(&[("reason", "long")], stats.refused_long)
        .add(&[("reason", "model")], stats.refused_model)
        .add(&[("reason", "invalid")], stats.refused_invalid);
    into.gauge("thalweg_embeddings_waiting", "Requests for embeddings that wait or are computed.")
        .add(&[], stats.embed_waiting);
    into.counter("thalweg_embeddings_requests", "Requests for embeddings that were accepted, or not.")
        .add(&[("accepted", "yes")], stats.embed_jobs)
        .add(&[("accepted", "no")], stats.embed_refused);
    into.counter("thalweg_embeddings_texts", "Texts that were embedded.").add(&[], stats.embed_texts);
    into.counter("thalweg_embeddings_tokens", "Tokens of the texts of requests that were answered with vectors.")
        .add(&[], stats.embed_tokens);
    for (name, help, of) in COUNTERS {
        let mut family = into.counter(name, help);
        for model in &report.models {
            family.add(&[("model", model.name.as_str())], of(model));
        }
    }
    for (name, help, of) in GAUGES {
        let mut family = into.gauge(name, help);
        for model in &report.models {
            family.add(&[("model", model.name.as_str())], of(model));
        }
    }
    let mut family =
        into.counter("thalweg_model_rows", "Tokens computed: of prompts, again after an eviction, or to draw one.");
    for model in &report.models {
        let (name, counters) = (model.name.as_str(), &model.counters);
        let first = counters.prefill_rows.saturating_sub(counters.recomputed_rows);
        family.add(&[("model", name), ("kind", "prefill")], first);
        family.add(&[("model", name), ("kind", "recomputed")], counters.recomputed_rows);
        family.add(&[("model", name), ("kind", "decode")], counters.decode_rows);
    }
    let mut family = into.gauge("thalweg_model_generations", "Generations that a model has, by state.");
    for model in &report.models {
        let (name, counters) = (model.name.as_str(), &model.counters);
        family.add(&[("model", name), ("state", "waiting")], counters.waiting);
        family.add(&[("model", name), ("state", "running")], counters.running);
        family.add(&[("model", name), ("state", "parked")], counters.parked);
    }
    let mut family = into.histogram("thalweg_inference_duration_seconds", "How long each stage of a generation took.");
    for (stage, histogram) in &report.times {
        let (counts, sum) = spread(histogram, &Buckets::LONG_SECONDS);
        family.add_spread(&[("stage", stage)], &Buckets::LONG_SECONDS, &counts, sum);
    }
}
