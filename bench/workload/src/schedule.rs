//! When things are intended to happen.
//!
//! A schedule is open loop: its times are fixed by rate and seed alone. A latency measured from the intended time, and not
//! from when the generator found the time to send, does not hide the waiting of those who could not even ask (coordinated
//! omission).

use rand::Rng;

/// Nanoseconds of a second.
const SECOND_NS: f64 = 1e9;

/// How the arrivals of a rate are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    /// At equal distances: the easiest load of a rate, and the one peers are usually measured with.
    #[default]
    Even,
    /// Independent of each other (exponential distances): what many unrelated people make.
    Poisson,
}

/// The intended times of one source of load, in nanoseconds of whatever clock the caller keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Mean distance of two arrivals, ns. Infinite if the rate is zero.
    gap_ns: f64,
    start_ns: u64,
    /// Time of the next arrival after `start_ns`; kept as a float so that distances which are no whole number do not drift.
    offset_ns: f64,
    /// Arrivals given out so far.
    count: u64,
}

impl Schedule {
    /// A schedule of `rate_per_s` arrivals a second from `start_ns` on. The first one of an even schedule is at the start,
    /// of a Poisson schedule one random distance later. A rate that is zero, negative or not a number never arrives.
    pub fn new(arrivals: Arrivals, rate_per_s: f64, start_ns: u64) -> Self {
        let gap_ns = if rate_per_s > 0.0 { SECOND_NS / rate_per_s } else { f64::INFINITY };
        Self { arrivals, gap_ns, start_ns, offset_ns: 0.0, count: 0 }
    }

    /// The next intended time, ns; `None` if there will never be one.
    pub fn next(&mut self, rng: &mut impl Rng) -> Option<u64> {
        if !self.gap_ns.is_finite() {
            return None;
        }
        self.offset_ns = match self.arrivals {
            // A product and not a sum: a sum of a million rounded distances drifts.
            Arrivals::Even => self.gap_ns * self.count as f64,
            Arrivals::Poisson => self.offset_ns + self.gap_ns * exponential(rng),
        };
        self.count += 1;
        Some(self.start_ns.saturating_add(self.offset_ns as u64))
    }
}

/// A draw from the exponential distribution of mean 1, by inversion.
fn exponential(rng: &mut impl Rng) -> f64 {
    // 1 - u lies in (0, 1], so that the logarithm is finite.
    -(1.0 - rng.random::<f64>()).ln()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn times(arrivals: Arrivals, rate: f64, seed: u64, count: usize) -> Vec<u64> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut schedule = Schedule::new(arrivals, rate, 1_000);
        std::iter::from_fn(|| schedule.next(&mut rng)).take(count).collect()
    }

    #[test]
    fn even_arrivals_do_not_drift() {
        assert_eq!(times(Arrivals::Even, 1_000.0, 1, 3), [1_000, 1_001_000, 2_001_000]);
        // A third of a second is no whole number of nanoseconds; after 3 million arrivals a million seconds have passed.
        assert_eq!(times(Arrivals::Even, 3.0, 1, 3_000_001).last(), Some(&1_000_000_000_001_000));
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_their_rate() {
        let times = times(Arrivals::Poisson, 500.0, 7, 100_000);
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 2e6 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "an exponential's deviation is its mean");
    }

    #[test]
    fn a_seed_gives_the_same_times_and_another_seed_others() {
        assert_eq!(times(Arrivals::Poisson, 50.0, 3, 100), times(Arrivals::Poisson, 50.0, 3, 100));
        assert_ne!(times(Arrivals::Poisson, 50.0, 3, 100), times(Arrivals::Poisson, 50.0, 4, 100));
    }

    #[test]
    fn no_rate_means_no_arrival() {
        for rate in [0.0, -1.0, f64::NAN] {
            assert_eq!(times(Arrivals::Even, rate, 1, 1), [], "{rate}");
        }
    }
}
