//! Which requests are traced, decided where they come in.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::limits::TRACE_PARENTS_PER_SECOND;
use thalweg_protocol::trace::TraceContext;

use super::record::Ids;

/// Draws lots for requests, and makes their ids.
#[derive(Debug)]
pub(super) struct Sampler {
    /// A request is sampled if what is drawn for it is below this, of 2^64.
    below: u128,
    random: StdRng,
    /// The second in which clients' wishes are counted, and how many were heeded in it.
    second: u64,
    heeded: u32,
    /// Clients' wishes that were beyond the bound.
    pub(super) unheeded: u64,
}

impl Sampler {
    pub(super) fn new(ratio: f64, seed: u64) -> Self {
        let below = (ratio.clamp(0.0, 1.0) * 2_f64.powi(64)) as u128;
        let random = StdRng::seed_from_u64(seed);
        Self { below, random, second: 0, heeded: 0, unheeded: 0 }
    }

    /// Whether a request is traced, and then by which ids. A client that says that its trace is not sampled is believed; one
    /// that says that it is, too, as long as not too many do.
    pub(super) fn decide(&mut self, now_us: u64, context: Option<TraceContext>) -> Option<Ids> {
        let Some(context) = context else {
            if u128::from(self.random.random::<u64>()) >= self.below {
                return None;
            }
            let trace = self.random.random_range(1..=u128::MAX);
            return Some(Ids { trace, parent: 0, root: self.span() });
        };
        if !context.is_sampled() {
            return None;
        }
        let second = now_us / 1_000_000;
        if second != self.second {
            (self.second, self.heeded) = (second, 0);
        }
        if self.heeded >= TRACE_PARENTS_PER_SECOND {
            self.unheeded += 1;
            return None;
        }
        self.heeded += 1;
        Some(Ids { trace: context.trace, parent: context.span, root: self.span() })
    }

    /// The id of a span.
    pub(super) fn span(&mut self) -> u64 {
        self.random.random_range(1..=u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(trace: u128, span: u64, flags: u8) -> Option<TraceContext> {
        Some(TraceContext { trace, span, flags })
    }

    #[test]
    fn as_many_are_sampled_as_was_asked_for() {
        let check = |ratio: f64, least: usize, most: usize| {
            let mut sampler = Sampler::new(ratio, 7);
            let sampled: Vec<_> = (0..10_000).filter_map(|_| sampler.decide(0, None)).collect();
            assert!((least..=most).contains(&sampled.len()), "{ratio}: {}", sampled.len());
            assert!(sampled.iter().all(|ids| ids.parent == 0 && ids.trace != 0 && ids.root != 0));
        };
        check(0.0, 0, 0);
        check(0.01, 60, 140);
        check(0.5, 4_800, 5_200);
        check(1.0, 10_000, 10_000);
    }

    #[test]
    fn clients_are_believed_within_bounds() {
        let mut sampler = Sampler::new(0.0, 7);
        let ids = sampler.decide(0, context(5, 6, 1)).expect("sampled by its client");
        assert_eq!((ids.trace, ids.parent), (5, 6));
        assert_eq!(sampler.decide(0, context(5, 6, 0)), None);
        let taken = (0..2 * TRACE_PARENTS_PER_SECOND).filter_map(|_| sampler.decide(1, context(5, 6, 1))).count();
        assert_eq!(taken as u32, TRACE_PARENTS_PER_SECOND - 1, "the first one counts");
        assert_eq!(sampler.unheeded as u32, TRACE_PARENTS_PER_SECOND + 1);
        assert!(sampler.decide(1_000_000, context(5, 6, 1)).is_some(), "a second later");
        let mut all = Sampler::new(1.0, 7);
        assert_eq!(all.decide(0, context(5, 6, 0)), None, "whatever the node's own ratio says");
    }
}
