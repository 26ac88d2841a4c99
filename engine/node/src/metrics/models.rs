//! What is known of each model, wherever it runs, as metrics. Labels are models of the registry, so they are few.

use std::collections::BTreeMap;

use thalweg_domain::routing::{Health, Reason};
use thalweg_protocol::ids::Name;
use thalweg_shard::Routed;
use thalweg_web::Exposition;

use crate::models::Registry;
use crate::models::registry::Reading;
use crate::stats::CoreStats;

/// A number of a model: its name outside, its help, and where it stands.
type Row = (&'static str, &'static str, fn(&Reading) -> u64);

#[rustfmt::skip]
const COUNTERS: &[Row] = &[
    ("thalweg_model_requests_begun", "Requests to a model that got their first token.", |r| r.begun),
    ("thalweg_model_requests_ended", "Requests to a model that ended well, or for a reason of the client's.", |r| r.ended),
    ("thalweg_model_requests_failed", "Requests that a model, or the way to it, failed.", |r| r.failed),
    ("thalweg_model_requests_busy", "Requests that a model refused, since it has too much to do.", |r| r.busy),
    ("thalweg_model_requests_handed_on", "Requests that failed before their first token and were given to the fallback.", |r| r.fell_back),
];

/// Writes it all out.
pub(super) fn expose(registry: &Registry, cores: &[CoreStats], into: &mut Exposition) {
    let known = registry.look().0;
    let shown = |name: &Name| registry.shown(name);
    for (name, help, of) in COUNTERS {
        let mut family = into.counter(name, help);
        for model in &known {
            family.add(&[("model", model.entry.name.as_str())], of(&model.gauges.read()));
        }
    }
    let mut family =
        into.gauge("thalweg_model_requests_running", "Requests that a model was handed and that did not end.");
    for model in &known {
        family.add(&[("model", model.entry.name.as_str())], model.gauges.read().running());
    }
    let mut family = into.gauge("thalweg_model_state", "1 for the state that a model is in.");
    for model in &known {
        family.add(&[("model", model.entry.name.as_str()), ("state", model.entry.state.as_str())], 1);
    }
    let mut family = into.gauge("thalweg_model_up", "1 if a model is asked, 0 if it is left alone since it fails.");
    for model in &known {
        let up = shown(&model.entry.name).is_some_and(|shown| shown.health == Health::Up);
        family.add(&[("model", model.entry.name.as_str())], up.into());
    }
    let mut family =
        into.counter("thalweg_model_breaker_opens", "Times a model was left alone for a while, since it failed.");
    for model in &known {
        let opens = shown(&model.entry.name).map_or(0, |shown| shown.opens);
        family.add(&[("model", model.entry.name.as_str())], opens);
    }
    let mut family = into.gauge(
        "thalweg_model_first_token_estimate_seconds",
        "How long a model is expected to take to its first token, apart from the prompt.",
    );
    for model in &known {
        let ms = shown(&model.entry.name).map_or(0, |shown| shown.first_token_ms);
        family.add_fraction(&[("model", model.entry.name.as_str())], f64::from(ms) / 1e3);
    }
    let mut family = into.gauge(
        "thalweg_model_prompt_token_estimate_seconds",
        "What each token of a prompt is expected to add to that.",
    );
    for model in &known {
        let us = shown(&model.entry.name).map_or(0, |shown| shown.prompt_us);
        family.add_fraction(&[("model", model.entry.name.as_str())], f64::from(us) / 1e6);
    }
    let mut family = into.counter("thalweg_model_requests_routed", "Requests for which a model was chosen, by why.");
    for (model, counts) in routed(cores) {
        for (reason, count) in Reason::ALL.iter().zip(counts) {
            family.add(&[("model", model.as_str()), ("reason", reason.as_str())], count);
        }
    }
}

/// How often each was chosen by any core.
fn routed(cores: &[CoreStats]) -> BTreeMap<&Name, Routed> {
    let mut sums: BTreeMap<&Name, Routed> = BTreeMap::new();
    for (model, counts) in cores.iter().flat_map(|core| &core.routed) {
        let sum = sums.entry(model).or_default();
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sums
}
