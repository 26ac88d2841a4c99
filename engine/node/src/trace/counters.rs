//! What became of spans.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of the exporter, which its threads add to and the first core reads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Spans a collector took.
    pub(super) exported: AtomicU64,
    /// Spans a collector took notice of and threw away.
    pub(super) rejected: AtomicU64,
    /// Spans in batches that no collector took, however often it was tried.
    pub(super) undelivered: AtomicU64,
    /// Spans for which there was no room in the queue of batches, as the collector is too slow.
    pub(super) overflowed: AtomicU64,
    /// Spans whose root is not known, because its record found no room.
    pub(super) orphaned: AtomicU64,
    /// Batches that were sent, successfully or not.
    pub(super) requests: AtomicU64,
    /// Requests that failed, each try counted.
    pub(super) failures: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Everything, by the names that statistics have.
    pub(super) fn all(&self) -> [(&'static str, u64); 7] {
        [
            ("spans_exported", &self.exported),
            ("spans_rejected", &self.rejected),
            ("spans_undelivered", &self.undelivered),
            ("spans_overflowed", &self.overflowed),
            ("spans_orphaned", &self.orphaned),
            ("trace_requests", &self.requests),
            ("trace_request_failures", &self.failures),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}
