//! Seeing inside: histograms of every stage, counters of everything that can go wrong, merged into one report.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use thalweg_protocol::ids::{CoreId, Name};
use thalweg_protocol::limits::LOG_BATCH_BYTES_MAX;
use thalweg_protocol::reject::RejectCode;
use thalweg_quic::QuicCounters;
use thalweg_shard::{Counters, Routed};
use thalweg_udp::UdpCounters;

/// Longest time a histogram tells apart, in microseconds; longer ones count as this.
const LONGEST_US: u64 = 60_000_000;

/// A stage whose duration a core measures beside those of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeStage {
    /// One turn of the core loop that had work.
    Turn,
    /// From an ask's arrival on its owner core until the scheduler took it.
    AskScheduled,
    /// From a token's sampling until the turn that sent it was over.
    TokenSent,
    /// From handing a batch of the log to the disk until it was written and synced.
    LogWrite,
    /// From an ask's arrival on its owner core until the turn that sent its first token was over.
    FirstToken,
    /// Putting together what the core measured, for those who asked.
    Scrape,
}

impl NodeStage {
    /// The stages' names, in order.
    const NAMES: [&'static str; 6] = ["turn", "ask_scheduled", "token_sent", "log_write", "first_token", "scrape"];
}

/// What one core measured and counted.
#[derive(Debug, Clone)]
pub(crate) struct CoreStats {
    /// Whose they are.
    pub(crate) core: u16,
    shard_stages: Vec<(&'static str, Histogram<u64>)>,
    node_stages: Vec<(&'static str, Histogram<u64>)>,
    pub(crate) counters: BTreeMap<&'static str, u64>,
    pub(crate) rejects: BTreeMap<&'static str, u64>,
    pub(crate) gauges: BTreeMap<&'static str, u64>,
    /// How often each model was chosen, and why.
    pub(crate) routed: BTreeMap<Name, Routed>,
    /// Bytes of the batches of the log.
    pub(crate) batch_bytes: Histogram<u64>,
    /// Records in them.
    pub(crate) batch_records: Histogram<u64>,
    pub(crate) stalls: u64,
    /// The same by where most of the time went.
    pub(crate) stall_places: BTreeMap<&'static str, u64>,
    /// Where the longest stall was, and how long, in microseconds.
    pub(crate) worst_stall: Option<(&'static str, u64)>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the bounds are valid: 1 to a minute, 2 digits")
}

/// Tells sizes apart, up to those of the largest batch of the log.
pub(crate) fn sizes() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 2 * LOG_BATCH_BYTES_MAX as u64, 2)
        .expect("the bounds are valid: 1 to 8 MiB, 2 digits")
}

impl Default for CoreStats {
    fn default() -> Self {
        let shard_stages = thalweg_shard::Stage::ALL.iter().map(|stage| (stage.as_str(), histogram())).collect();
        let node_stages = NodeStage::NAMES.map(|name| (name, histogram())).into();
        Self {
            core: 0,
            shard_stages,
            node_stages,
            counters: BTreeMap::new(),
            rejects: BTreeMap::new(),
            gauges: BTreeMap::new(),
            routed: BTreeMap::new(),
            batch_bytes: sizes(),
            batch_records: sizes(),
            stalls: 0,
            stall_places: BTreeMap::new(),
            worst_stall: None,
        }
    }
}

impl CoreStats {
    /// Nothing yet, of this core.
    pub(crate) fn of(core: CoreId) -> Self {
        Self { core: core.0, ..Self::default() }
    }

    pub(crate) fn sample(&mut self, sample: thalweg_shard::Sample) {
        self.shard_stages[sample.stage as usize].1.saturating_record(u64::from(sample.us).max(1));
    }

    pub(crate) fn record(&mut self, stage: NodeStage, took: Duration) {
        self.node_stages[stage as usize].1.saturating_record((took.as_micros() as u64).max(1));
    }

    pub(crate) fn stalled(&mut self, place: &'static str, took_us: u64) {
        self.stalls += 1;
        *self.stall_places.entry(place).or_default() += 1;
        if self.worst_stall.is_none_or(|(_, worst_us)| took_us > worst_us) {
            self.worst_stall = Some((place, took_us));
        }
    }

    pub(crate) fn count_shard(&mut self, counters: &Counters) {
        for (name, count) in [
            ("published", counters.published),
            ("duplicates", counters.duplicates),
            ("delivered", counters.delivered),
            ("delivered_bytes", counters.delivered_bytes),
            ("missed", counters.missed),
            ("slow_disconnected", counters.slow_disconnected),
            ("history_reads", counters.history_reads),
            ("history_disk_reads", counters.disk_reads),
            ("forwarded", counters.forwarded),
            ("generations", counters.generations),
            ("generations_resumed", counters.resumed),
            ("tokens", counters.tokens),
            ("presence_frames", counters.presence_frames),
            ("presence_bytes", counters.presence_bytes),
            ("presence_skipped", counters.presence_skipped),
            ("updates", counters.updates),
            ("updates_merged", counters.updates_merged),
            ("updates_refused", counters.updates_refused),
            ("snapshots", counters.snapshots),
            ("documents_opened", counters.documents_opened),
            ("documents_evicted", counters.documents_evicted),
            ("documents_poisoned", counters.documents_poisoned),
            ("reader_merges", counters.reader_merges),
            ("reader_catch_ups", counters.reader_catch_ups),
            ("awareness_frames", counters.awareness_frames),
            ("awareness_dropped", counters.awareness_dropped),
            ("document_asks", counters.document_asks),
            ("document_refreshes", counters.document_refreshes),
            ("presence_timeouts", counters.presence_timeouts),
            ("typing_notices", counters.typing_notices),
            ("typing_dropped", counters.typing_dropped),
        ] {
            self.counters.insert(name, count);
        }
        for (code, &count) in RejectCode::ALL.iter().zip(counters.rejects.iter()) {
            if count > 0 {
                *self.rejects.entry(code.as_str()).or_default() += count;
            }
        }
    }

    pub(crate) fn count_transport(&mut self, quic: &QuicCounters, udp: &UdpCounters) {
        macro_rules! keep {
            ($from:ident: $($field:ident)*) => { $(self.counters.insert(stringify!($field), $from.$field);)* };
        }
        keep!(quic: datagrams_received datagrams_ignored batches_sent handshakes_started accepted handshakes_failed
            handshakes_timed_out retries_sent refused resets_sent answers_sent answers_dropped frames_received
            frame_bytes_received frames_sent frame_bytes_sent frames_refused unreliable_received lanes_refused migrated closed_by_peer closed_by_us
            closed_by_reject closed_by_timeout closed_by_reset closed_by_transport);
        keep!(udp: received_datagrams received_bytes received_batches received_unusable sent_datagrams sent_bytes
            sent_batches send_blocked send_failed system_calls ring_buffers ring_starved);
    }
}

/// Puts the histograms of all cores together, by stage.
pub(crate) fn merged_stages(cores: &[CoreStats]) -> Vec<(&'static str, Histogram<u64>)> {
    let mut merged: Vec<(&'static str, Histogram<u64>)> = Vec::new();
    for (name, histogram) in cores.iter().flat_map(|core| core.shard_stages.iter().chain(&core.node_stages)) {
        match merged.iter_mut().find(|(other, _)| other == name) {
            Some((_, sum)) => sum.add(histogram).expect("all histograms have the same bounds"),
            None => merged.push((name, histogram.clone())),
        }
    }
    merged
}

fn latencies(histogram: &Histogram<u64>) -> Value {
    let at = |quantile| histogram.value_at_quantile(quantile);
    json!({
        "count": histogram.len(), "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99), "p999_us": at(0.999),
        "p9999_us": at(0.9999), "max_us": histogram.max(),
    })
}

/// The middle and the ends of what was counted in all cores.
fn spread<'a>(all: impl Iterator<Item = &'a Histogram<u64>>) -> Value {
    let mut sum = sizes();
    all.for_each(|histogram| sum.add(histogram).expect("all histograms have the same bounds"));
    json!({"p50": sum.value_at_quantile(0.5), "p99": sum.value_at_quantile(0.99), "max": sum.max()})
}

/// Merges what the cores measured and counted into the report that `thalweg admin stats --json` prints.
pub(crate) fn report(node: Map<String, Value>, cores: &[CoreStats], inference: Option<Value>) -> Value {
    let mut stages = Map::new();
    for (name, histogram) in merged_stages(cores).iter().filter(|(_, histogram)| !histogram.is_empty()) {
        stages.insert((*name).to_owned(), latencies(histogram));
    }
    let sum = |of: fn(&CoreStats) -> &BTreeMap<&'static str, u64>| {
        let mut sums = BTreeMap::<&str, u64>::new();
        for (name, count) in cores.iter().flat_map(of) {
            *sums.entry(name).or_default() += count;
        }
        sums
    };
    let per_core: Vec<_> = cores
        .iter()
        .map(|core| json!({"counters": core.counters, "gauges": core.gauges, "stalls": core.stalls}))
        .collect();
    let worst = cores.iter().filter_map(|core| core.worst_stall).max_by_key(|(_, us)| *us);
    json!({
        "node": node,
        "stages": stages,
        "counters": sum(|core| &core.counters),
        "rejects": sum(|core| &core.rejects),
        "gauges": sum(|core| &core.gauges),
        "log": {
            "batch_bytes": spread(cores.iter().map(|core| &core.batch_bytes)),
            "batch_records": spread(cores.iter().map(|core| &core.batch_records)),
        },
        "stalls": {
            "count": cores.iter().map(|core| core.stalls).sum::<u64>(),
            "worst_us": worst.map(|(_, us)| us),
            "worst_in": worst.map(|(place, _)| place),
        },
        "cores": per_core,
        "inference": inference,
    })
}

#[cfg(test)]
mod tests {
    use thalweg_shard::{Sample, Stage};

    use super::*;

    #[test]
    fn cores_are_merged() {
        let mut cores = [CoreStats::default(), CoreStats::default()];
        for (core, us) in cores.iter_mut().zip([10, 1_000]) {
            core.sample(Sample { stage: Stage::Publish, us });
            core.count_shard(&Counters { published: 2, ..Counters::default() });
            core.stalled("shard", u64::from(us));
        }
        let report = report(Map::new(), &cores, None);
        assert_eq!(report["counters"]["published"], 4);
        assert_eq!(report["stages"]["publish"]["count"], 2);
        assert!((990..=1_010).contains(&report["stages"]["publish"]["max_us"].as_u64().expect("a number")));
        assert_eq!(report["stalls"], json!({"count": 2, "worst_us": 1_000, "worst_in": "shard"}));
        assert!(report["stages"].get("turn").is_none(), "what was never measured is not reported");
    }
}
