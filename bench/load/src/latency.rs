//! Latencies of one kind, as a histogram.

use hdrhistogram::Histogram;

/// Longest latency that is told apart from longer ones, ns: 10 minutes. Longer ones count as this long.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Significant digits that are kept: 3 make an error of at most 0.1 %.
const DIGITS: u8 = 3;

/// Latencies in nanoseconds, p50 to p99.99 within 0.1 %.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("the bounds are constants");
        Self { histogram }
    }

    /// Records the time from `from_ns` (intended) to `to_ns` (seen).
    pub(crate) fn record(&mut self, from_ns: u64, to_ns: u64) {
        self.record_ns(to_ns.saturating_sub(from_ns));
    }

    pub(crate) fn record_ns(&mut self, latency_ns: u64) {
        // Zero is below the lowest value the histogram tells apart.
        self.histogram.saturating_record(latency_ns.max(1));
    }

    pub(crate) fn record_many(&mut self, latency_ns: u64, count: u64) {
        self.histogram.saturating_record_n(latency_ns.max(1), count);
    }

    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The latency that `percent` % of all were not longer than, in µs; 0 if there are none.
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        self.histogram.value_at_percentile(percent) as f64 / 1e3
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.histogram.max() as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latencies = Latencies::new();
        (1..=100_000_u64).for_each(|us| latencies.record(5, 5 + us * 1_000));
        let check = |percent: f64, expected_us: f64| {
            let got = latencies.percentile_us(percent);
            assert!((got / expected_us - 1.0).abs() <= 0.001, "p{percent}: {got}, expected {expected_us}");
        };
        check(50.0, 50_000.0);
        check(90.0, 90_000.0);
        check(99.0, 99_000.0);
        check(99.9, 99_900.0);
        check(99.99, 99_990.0);
        assert!((latencies.max_us() / 100_000.0 - 1.0).abs() <= 0.001);
        assert_eq!(latencies.count(), 100_000);
    }

    #[test]
    fn times_that_run_backwards_or_forever_are_kept_at_the_ends() {
        let mut latencies = Latencies::new();
        latencies.record(10, 5);
        latencies.record(0, u64::MAX);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.max_us() >= LATENCY_NS_MAX as f64 / 1e3 * 0.999);
        assert_eq!(Latencies::new().percentile_us(99.0), 0.0);
    }

    /// A server that answers 1,000 requests a second at once, but stands still for one second in the middle of ten: a
    /// generator that waits for it sees one bad answer in 9,000; the people who wanted an answer saw a tenth of theirs late.
    #[test]
    fn a_pause_is_charged_to_everybody_who_waited() {
        let (mut open, mut closed) = (Latencies::new(), Latencies::new());
        let (pause_from, pause_to) = (5_000_000_000_u64, 6_000_000_000);
        let answered = |sent: u64| if (pause_from..pause_to).contains(&sent) { pause_to } else { sent + 1_000 };
        (0..10_000).map(|n| n * 1_000_000).for_each(|intended| open.record(intended, answered(intended)));
        let mut now = 0;
        while now < 10_000_000_000 {
            let end = answered(now);
            closed.record(now, end);
            now = end.max(now + 1_000_000);
        }
        assert!(closed.percentile_us(99.9) < 2.0, "a closed loop hides the pause");
        assert!(open.percentile_us(99.0) > 850_000.0, "an open loop shows it");
    }
}
