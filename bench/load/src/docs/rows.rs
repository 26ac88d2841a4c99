//! What a run of documents says in the end.

use super::{Docs, Sample};
use crate::cli::EditForm;
use crate::error::LoadError;
use crate::process::per_cpu_second;
use crate::report::{Row, round};

impl Docs<'_> {
    pub(super) fn rows(
        &mut self,
        (before, after): (Sample, Sample),
        disagreement: Option<&str>,
    ) -> Result<Vec<Row>, LoadError> {
        let seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        let undelivered = self.outstanding();
        for book in &self.books {
            let (deliveries, measured) = (&mut self.deliveries, &self.measured);
            // What never came is charged for all the time it was waited for.
            book.missing(|at| {
                if measured.contains(&at) {
                    deliveries.record(at, after.at_ns);
                }
            });
        }
        let form = match self.args.form {
            EditForm::Updates => "updates",
            EditForm::Operations => "operations",
        };
        let per_client = |bytes: u64| round(bytes as f64 / seconds / self.editors.len() as f64);
        let (frames, merged) = (after.frames - before.frames, after.merged - before.merged);
        let delivered = after.delivered - before.delivered;
        let cpu = before.server_cpu_s.zip(after.server_cpu_s).map(|(before, after)| after - before);
        let mut deliver = Row::new(format!("docs_deliver_{form}"), &self.deliveries, seconds)
            .with("documents", self.args.documents as u64)
            .with("editors", self.args.editors as u64)
            .with("connections", self.lines.len() as u64)
            .with("ops_per_s", round((after.typed - before.typed) as f64 / seconds))
            .with("deliveries_per_s", round(delivered as f64 / seconds))
            .with("undelivered", undelivered)
            .with("gaps", self.gaps)
            .with("restarts", self.restarts)
            .with("converged", disagreement.is_none())
            .with("merged_percent", round(100.0 * merged as f64 / frames.max(1) as f64))
            .with("edits_per_frame", round(delivered as f64 / frames.max(1) as f64))
            .with("in_bytes_per_client_s", per_client(after.in_bytes - before.in_bytes))
            .with("out_bytes_per_client_s", per_client(after.out_bytes - before.out_bytes))
            .with("awareness_bytes_per_client_s", per_client(after.awareness_bytes - before.awareness_bytes))
            .with_known("server_cpu_s", cpu)
            .with_known("deliveries_per_cpu_s", per_cpu_second(delivered, cpu))
            .with("generator_cpu_s", round(after.own_cpu_s - before.own_cpu_s))
            .with("sent_late_p99_us", round(self.late.percentile_us(99.0)));
        if let Some(disagreement) = disagreement {
            deliver = deliver.with("disagreement", disagreement);
        }
        let mut ack = Row::new(format!("docs_ack_{form}"), &self.acks, seconds);
        for (code, &count) in &self.refused {
            ack = ack.with(&format!("refused_{code}"), count);
        }
        Ok(vec![self.with_memory(deliver), ack])
    }

    /// Adds what the node's memory was at the marks of the run.
    fn with_memory(&self, mut row: Row) -> Row {
        let marks = [
            ("rss_connected_mib", self.memory.connected),
            ("rss_opened_mib", self.memory.opened),
            ("rss_ended_mib", self.memory.ended),
            ("rss_left_mib", self.memory.left),
        ];
        for (name, bytes) in marks {
            row = row.with_known(name, bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)));
        }
        let documents = self.args.documents as f64;
        let opened = self.memory.connected.zip(self.memory.opened);
        // With its readers' subscriptions; the page is its text.
        let beyond =
            |(before, after): (u64, u64)| ((after as f64 - before as f64) / documents - self.args.page as f64) / 1024.0;
        row.with_known("kib_per_document_beyond_text", opened.map(beyond))
    }
}
