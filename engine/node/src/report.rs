//! Collecting what all cores and the inference stage measured, for a client or for the web stage.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use thalweg_protocol::ids::{CoreId, Request};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Link;
use thalweg_web::Said;
use thalweg_worker::stage::StageReport;

use crate::core_loop::Core;
use crate::mesh::MeshMessage;
use crate::metrics::Scrape;
use crate::stats::{CoreStats, NodeStage, report};

/// Collections under way on one core; one more is refused.
const REPORTS_MAX: usize = 64;

/// Who asked for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A client, which gets them as JSON.
    Client { link: Link, request: Request },
    /// A thread of the web stage, which writes them out itself.
    Web { thread: usize, number: u64 },
}

/// Statistics that are being collected on one core.
#[derive(Default)]
pub(crate) struct Reports {
    under_way: BTreeMap<u64, Report>,
    begun: u64,
}

struct Report {
    asker: Asker,
    cores: Vec<CoreStats>,
    inference: Option<Option<Box<StageReport>>>,
}

impl Core {
    /// Asks all others for their part.
    pub(crate) fn begin_report(&mut self, now: Instant, asker: Asker) {
        if self.reports.under_way.len() >= REPORTS_MAX {
            let text = "too many statistics are being collected";
            let reject = Reject::new(RejectCode::Busy, text).retry_after_ms(1_000);
            return match asker {
                Asker::Client { link, request } => self.reply(now, link, request, &ServerOp::Reject(reject)),
                Asker::Web { thread, number } => self.web.answer(thread, number, Err(reject)),
            };
        }
        self.reports.begun += 1;
        let number = self.reports.begun;
        let asked = self.clerk.ask_inference_stats(number);
        let inference = if asked { None } else { Some(None) };
        let report = Report { asker, cores: vec![self.measured_snapshot()], inference };
        self.reports.under_way.insert(number, report);
        for core in (0..self.shared.bells.len() as u16).map(CoreId).filter(|core| *core != self.id) {
            self.mesh.send(core, MeshMessage::StatsWanted { from: self.id, number });
        }
        self.finish_report(number);
    }

    /// A snapshot, whose own cost is counted and will be in the next one.
    pub(crate) fn measured_snapshot(&mut self) -> CoreStats {
        let began = Instant::now();
        let stats = self.snapshot();
        self.stats.record(NodeStage::Scrape, began.elapsed());
        stats
    }

    pub(crate) fn stats_arrived(&mut self, number: u64, stats: CoreStats) {
        if let Some(report) = self.reports.under_way.get_mut(&number) {
            report.cores.push(stats);
            self.finish_report(number);
        }
    }

    pub(crate) fn inference_stats_arrived(&mut self, number: u64, stats: Option<Box<StageReport>>) {
        if let Some(report) = self.reports.under_way.get_mut(&number) {
            report.inference = Some(stats);
            self.finish_report(number);
        }
    }

    /// Gives a report out once everybody has given their part.
    fn finish_report(&mut self, number: u64) {
        let cores = self.shared.bells.len();
        let Entry::Occupied(entry) = self.reports.under_way.entry(number) else { return };
        if entry.get().cores.len() < cores || entry.get().inference.is_none() {
            return;
        }
        let Report { asker, cores, inference } = entry.remove();
        let inference = inference.flatten();
        match asker {
            Asker::Client { link, request } => {
                let mut node = self.shared.about.clone();
                node.insert("uptime_s".into(), json!(self.shared.origin.elapsed().as_secs()));
                node.insert("draining".into(), json!(self.draining.is_some()));
                node.insert("vitals".into(), self.shared.vitals.report());
                let models: Vec<_> = self.shard.routes().cards.iter().map(|card| card.name.as_str()).collect();
                node.insert("models".into(), json!(models));
                let inference = inference.and_then(|report| serde_json::to_value(&report.stats).ok());
                let json = report(node, &cores, inference);
                let op = ServerOp::StatsReport { json: json.to_string().into() };
                self.reply(Instant::now(), link, request, &op);
            }
            Asker::Web { thread, number } => {
                let scrape = Scrape { cores, inference, shared: Arc::clone(&self.shared) };
                self.web.answer(thread, number, Ok(Said::Measured(Box::new(scrape))));
            }
        }
    }
}
