//! What the node measured and counted, as metrics: written out on a thread of the web stage from what cores handed over.

mod inference;
mod models;
mod names;
mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use hdrhistogram::Histogram;
use thalweg_protocol::reject::RejectCode;
use thalweg_web::{Buckets, Exposed, Exposition, Phase};
use thalweg_worker::stage::StageReport;

use crate::core_loop::Shared;
use crate::disk::{Directory, Place};
use crate::stats::{CoreStats, merged_stages, sizes};
use names::{CLOSED, COUNTERS, GAUGES, Of, PLACES, Row};

/// Where the files of the write-ahead log are, within the log's directory.
const WAL_DIRECTORY: &str = "wal";

/// What one collection brought together.
pub(crate) struct Scrape {
    pub(crate) cores: Vec<CoreStats>,
    pub(crate) inference: Option<Box<StageReport>>,
    pub(crate) shared: Arc<Shared>,
}

impl Exposed for Scrape {
    fn expose(mut self: Box<Self>, into: &mut Exposition) {
        // They arrive in any order; series are by number.
        self.cores.sort_by_key(|core| core.core);
        self.node(into);
        self.vitals(into);
        process::expose(into);
        self.counters(into);
        self.gauges(into);
        self.spreads(into);
        // Without models too, so that dashboards and alerts name nothing that is not there.
        inference::expose(&self.inference.take().unwrap_or_default(), into);
        models::expose(&self.shared.registry, &self.cores, into);
        self.disk(into);
    }
}

impl Scrape {
    /// The node as a whole.
    fn node(&self, into: &mut Exposition) {
        let outlook = &self.shared.outlook;
        let health = outlook.health();
        into.gauge("thalweg_build_info", "Always 1; its label says which version runs.")
            .add(&[("version", health.version)], 1);
        let started = outlook.started().duration_since(UNIX_EPOCH).unwrap_or_default();
        into.gauge("thalweg_start_time_seconds", "When the node started, in seconds since 1970.")
            .add_fraction(&[], started.as_millis() as f64 / 1e3);
        into.gauge("thalweg_epoch", "How often a node started on this data.").add(&[], health.epoch);
        into.gauge("thalweg_ready", "1 if the node takes clients, as /health says.").add(&[], health.is_ready().into());
        into.gauge("thalweg_draining", "1 if the node drains.").add(&[], (health.phase == Phase::Draining).into());
        into.gauge("thalweg_storage_full", "1 if the disk is full: writes are refused, reads go on.")
            .add(&[], health.storage_full.into());
        into.gauge("thalweg_cores", "Cores of the node.").add(&[], health.cores.into());
        let mut silence = into
            .gauge("thalweg_core_silence_seconds", "How long ago a core looked around; an idle one does each second.");
        for (core, age) in outlook.silences().into_iter().enumerate() {
            if let Some(age) = age {
                silence.add_fraction(&[("core", &core.to_string())], age.as_secs_f64());
            }
        }
        let mut stalls =
            into.counter("thalweg_core_stalls", "Turns of a core over 10 ms, by where most of the time went.");
        for core in &self.cores {
            let number = core.core.to_string();
            for place in PLACES {
                let count = core.stall_places.get(place).copied().unwrap_or_default();
                stalls.add(&[("core", &number), ("place", place)], count);
            }
        }
        let longest_us =
            self.cores.iter().filter_map(|core| core.worst_stall).map(|(_, us)| us).max().unwrap_or_default();
        into.gauge("thalweg_core_stall_longest_seconds", "The longest turn over 10 ms since the start.")
            .add_fraction(&[], longest_us as f64 / 1e6);
        let mut rejects = into.counter("thalweg_rejects", "Requests refused, by code.");
        for code in RejectCode::ALL {
            let count = self.cores.iter().filter_map(|core| core.rejects.get(code.as_str())).sum();
            rejects.add(&[("code", code.as_str())], count);
        }
    }

    /// Memory, clock, certificate, settings.
    fn vitals(&self, into: &mut Exposition) {
        let vitals = &self.shared.vitals;
        into.gauge("thalweg_memory_pressure_level", "How short of memory the node is: 0 not at all, 3 refuses writes.")
            .add(&[], vitals.memory_level().into());
        into.gauge("thalweg_memory_budget_bytes", "Memory that the node may use.").add(&[], vitals.budget_bytes());
        into.counter("thalweg_memory_level_changes", "Changes of the level of memory pressure.")
            .add(&[], vitals.memory_level_changes());
        into.counter("thalweg_clock_steps", "Steps of the wall clock.").add(&[], vitals.clock_steps());
        into.gauge("thalweg_clock_last_step_seconds", "By how much the wall clock stepped last, forwards if positive.")
            .add_fraction(&[], vitals.clock_step_us() as f64 / 1e6);
        let expires_s = vitals.certificate_expires_s();
        if expires_s != 0 {
            into.gauge(
                "thalweg_certificate_expiry_timestamp_seconds",
                "When the certificate that is shown over QUIC expires, in seconds since 1970.",
            )
            .add_fraction(&[], expires_s as f64);
        }
        let (done, refused) = vitals.reloads();
        into.counter("thalweg_config_reloads", "Reloads of the settings, by what came of them.")
            .add(&[("result", "done")], done)
            .add(&[("result", "refused")], refused);
    }

    /// What cores count.
    fn counters(&self, into: &mut Exposition) {
        for row in COUNTERS {
            let mut family = into.counter(row.name, row.help);
            self.each(
                row,
                |core| &core.counters,
                |labels, value| {
                    family.add(labels, value);
                },
            );
        }
        let mut family =
            into.counter("thalweg_quic_links_closed", "QUIC connections that ended, by who or what ended them.");
        for core in &self.cores {
            let number = core.core.to_string();
            for (key, by) in CLOSED {
                let count = core.counters.get(key).copied().unwrap_or_default();
                family.add(&[("core", &number), ("by", by)], count);
            }
        }
    }

    /// What cores have.
    fn gauges(&self, into: &mut Exposition) {
        for row in GAUGES {
            // Some numbers that go up and down stand among the counters.
            let all = |core: &CoreStats, key| core.gauges.get(key).or_else(|| core.counters.get(key)).copied();
            let mut family = into.gauge(row.name, row.help);
            let values = self.cores.iter().map(|core| (core.core, all(core, row.key)));
            give(row.of, values, |labels, value| {
                family.add(labels, value);
            });
        }
        let mut unlisted: BTreeMap<&'static str, u64> = BTreeMap::new();
        let listed = |key: &str| {
            COUNTERS.iter().chain(GAUGES).any(|row| row.key == key) || CLOSED.iter().any(|(closed, _)| *closed == key)
        };
        for (key, value) in self.cores.iter().flat_map(|core| core.counters.iter().chain(&core.gauges)) {
            if !listed(key) {
                *unlisted.entry(key).or_default() += value;
            }
        }
        let mut family = into.gauge("thalweg_unlisted", "Numbers of cores that have no name of their own yet.");
        for (key, value) in unlisted {
            family.add(&[("name", key)], value);
        }
    }

    fn each(
        &self,
        row: &Row,
        of: impl Fn(&CoreStats) -> &BTreeMap<&'static str, u64>,
        add: impl FnMut(&[(&str, &str)], u64),
    ) {
        give(row.of, self.cores.iter().map(|core| (core.core, of(core).get(row.key).copied())), add);
    }

    /// How times and sizes are spread.
    fn spreads(&self, into: &mut Exposition) {
        let stages = merged_stages(&self.cores);
        let (first_token, stages): (Vec<_>, Vec<_>) = stages.into_iter().partition(|(name, _)| *name == "first_token");
        let mut family = into
            .histogram("thalweg_stage_duration_seconds", "How long each stage took that a message or token passes.");
        for (name, histogram) in &stages {
            let (counts, sum) = spread(histogram, &Buckets::SECONDS);
            family.add_spread(&[("stage", name)], &Buckets::SECONDS, &counts, sum);
        }
        let mut family =
            into.histogram("thalweg_first_token_seconds", "From an ask's arrival until its first token was sent.");
        for (_, histogram) in &first_token {
            let (counts, sum) = spread(histogram, &Buckets::LONG_SECONDS);
            family.add_spread(&[], &Buckets::LONG_SECONDS, &counts, sum);
        }
        let merged = |of: fn(&CoreStats) -> &Histogram<u64>| {
            let mut all = sizes();
            self.cores.iter().for_each(|core| all.add(of(core)).expect("all histograms have the same bounds"));
            all
        };
        let (counts, sum) = spread(&merged(|core| &core.batch_bytes), &Buckets::BYTES);
        into.histogram("thalweg_log_batch_bytes", "Bytes of a batch of the write-ahead log.").add_spread(
            &[],
            &Buckets::BYTES,
            &counts,
            sum,
        );
        let (counts, sum) = spread(&merged(|core| &core.batch_records), &Buckets::COUNT);
        into.histogram("thalweg_log_batch_records", "Records of a batch of the write-ahead log.").add_spread(
            &[],
            &Buckets::COUNT,
            &counts,
            sum,
        );
    }

    /// What is on the disk, and what room it has.
    fn disk(&self, into: &mut Exposition) {
        let log = self.shared.outlook.log();
        if let Some(bytes) = process::directory_bytes(&log.join(WAL_DIRECTORY)) {
            into.gauge(
                "thalweg_log_wal_bytes",
                "Bytes of the files of the write-ahead log, those made ahead included.",
            )
            .add(&[], bytes);
        }
        if let Ok(bytes) = Directory(log.to_owned()).free_bytes() {
            into.gauge("thalweg_disk_free_bytes", "Bytes that may still be written where the log is.").add(&[], bytes);
        }
    }
}

/// Gives a number of each core, or of the node, with its labels.
fn give(of: Of, values: impl Iterator<Item = (u16, Option<u64>)>, mut add: impl FnMut(&[(&str, &str)], u64)) {
    match of {
        Of::Core => {
            for (core, value) in values {
                add(&[("core", &core.to_string())], value.unwrap_or_default());
            }
        }
        Of::Node => add(&[], values.filter_map(|(_, value)| value).sum()),
    }
}

/// How many of what was recorded fall into each bucket, and the sum of all. Both are as exact as the histogram, 1 %.
pub(super) fn spread(histogram: &Histogram<u64>, buckets: &Buckets) -> (Vec<u64>, f64) {
    let (mut counts, mut sum) = (buckets.zeros(), 0.0);
    for recorded in histogram.iter_recorded() {
        let value = histogram.median_equivalent(recorded.value_iterated_to());
        counts[buckets.index(value)] += recorded.count_at_value();
        sum += value as f64 * recorded.count_at_value() as f64;
    }
    (counts, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_fall_into_buckets() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 2).expect("valid");
        for us in [1, 9, 30, 700, 700, 59_000_000] {
            histogram.record(us).expect("in bounds");
        }
        let (counts, sum) = spread(&histogram, &Buckets::SECONDS);
        let at = |label: &str| Buckets::SECONDS.bounds.iter().position(|(bound, _)| *bound == label).expect("a bound");
        assert_eq!((counts[at("1e-05")], counts[at("5e-05")], counts[at("0.001")]), (2, 1, 2));
        assert_eq!((counts.last(), counts.iter().sum::<u64>()), (Some(&1), 6));
        assert!((sum / 59_001_440.0 - 1.0).abs() < 0.01, "{sum}");
    }
}
