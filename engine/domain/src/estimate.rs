//! How long a model takes until its first token, learned from how long it took.
//!
//! What is learned is a straight line: a time that does not depend on the prompt (the queue, the way there), and a time for
//! each token of it. The slope belongs to model and machine and stays; the fixed part is mostly the queue and is forgotten
//! when nothing is heard of the model, since otherwise one that was slow once would never be asked again.

/// Weight of what is known against one more observation: about so many count.
const MEMORY: f64 = 32.0;
/// Without an observation for so long the fixed part begins to be forgotten, in milliseconds.
const STALE_MS: u64 = 10_000;
/// After that it halves in so long, in milliseconds.
const HALF_LIFE_MS: f64 = 30_000.0;
/// Below this the fixed part is nothing, in milliseconds.
const NOTHING_MS: f64 = 1.0;

/// Observations, as sums: `prompt` in tokens, `time` in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Observed {
    /// How many.
    pub count: u64,
    /// Of times.
    pub time: u64,
    /// Of prompts.
    pub prompt: u64,
    /// Of prompts squared.
    pub prompt_squared: u64,
    /// Of prompts times times.
    pub product: u64,
}

/// What is known of one model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Estimate {
    count: f64,
    time: f64,
    prompt: f64,
    prompt_squared: f64,
    product: f64,
    /// Microseconds per prompt token.
    slope_us: f64,
    fixed_ms: f64,
    /// When the fixed part was last brought up to date.
    heard_ms: u64,
    faded_ms: u64,
}

impl Estimate {
    /// Takes observations in.
    pub fn add(&mut self, now_ms: u64, observed: Observed) {
        if observed.count == 0 {
            return self.fade(now_ms);
        }
        let (count, keep) = (observed.count as f64, (1.0 - 1.0 / MEMORY).powf(observed.count as f64));
        let mix = |known: &mut f64, new: u64| *known = *known * keep + new as f64;
        mix(&mut self.time, observed.time);
        mix(&mut self.prompt, observed.prompt);
        mix(&mut self.prompt_squared, observed.prompt_squared);
        mix(&mut self.product, observed.product);
        self.count = self.count * keep + count;
        let (prompt, time) = (self.prompt / self.count, self.time / self.count);
        let variance = self.prompt_squared / self.count - prompt * prompt;
        // Prompts that are all alike say nothing of what a token costs.
        if variance > 0.01 * prompt * prompt {
            let covariance = self.product / self.count - prompt * time;
            // More than all of the time cannot be the prompt's.
            self.slope_us = (covariance / variance).clamp(0.0, time / prompt.max(1.0));
        }
        let fixed_ms = (observed.time as f64 - self.slope_us * observed.prompt as f64).max(0.0) / count / 1e3;
        // What comes first is all that is known.
        let known = if self.count <= count { 0.0 } else { keep };
        self.fixed_ms = self.fixed_ms * known + fixed_ms * (1.0 - known);
        (self.heard_ms, self.faded_ms) = (now_ms, now_ms);
    }

    fn fade(&mut self, now_ms: u64) {
        let from_ms = self.faded_ms.max(self.heard_ms + STALE_MS);
        if now_ms > from_ms {
            self.fixed_ms *= 0.5_f64.powf((now_ms - from_ms) as f64 / HALF_LIFE_MS);
            self.faded_ms = now_ms;
            if self.fixed_ms < NOTHING_MS {
                self.fixed_ms = 0.0;
            }
        }
    }

    /// Whether there is something left to be forgotten, so that [`add`](Self::add) should be called now and then although
    /// nothing was observed.
    pub fn fades(&self) -> bool {
        self.fixed_ms > 0.0
    }

    /// The part that does not depend on the prompt, in milliseconds. Coarse, so that it does not change with every request.
    pub fn first_token_ms(&self) -> u32 {
        coarse(self.fixed_ms)
    }

    /// What each token of the prompt adds, in microseconds. As coarse.
    pub fn prompt_us(&self) -> u32 {
        coarse(self.slope_us)
    }
}

/// With two significant digits, or nearly: 16 steps from one power of two to the next.
fn coarse(value: f64) -> u32 {
    let value = value.round().clamp(0.0, f64::from(u32::MAX)) as u32;
    let shift = (u32::BITS - value.leading_zeros()).saturating_sub(5);
    value >> shift << shift
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observed(samples: &[(u64, u64)]) -> Observed {
        let mut sums = Observed::default();
        for &(prompt, time) in samples {
            sums.count += 1;
            sums.time += time;
            sums.prompt += prompt;
            sums.prompt_squared += prompt * prompt;
            sums.product += prompt * time;
        }
        sums
    }

    #[test]
    fn a_line_is_found_and_forgotten() {
        let mut estimate = Estimate::default();
        assert_eq!((estimate.first_token_ms(), estimate.prompt_us(), estimate.fades()), (0, 0, false));
        let samples: Vec<_> = (1..=20).map(|n| (n * 50, 80_000 + n * 50 * 500)).collect();
        estimate.add(1_000, observed(&samples));
        assert_eq!((estimate.first_token_ms(), estimate.prompt_us()), (80, 496));
        estimate.add(10_000, Observed::default());
        assert_eq!(estimate.first_token_ms(), 80, "it is fresh");
        estimate.add(41_000, Observed::default());
        assert_eq!((estimate.first_token_ms(), estimate.prompt_us()), (40, 496), "half is forgotten");
        estimate.add(10_000_000, Observed::default());
        assert_eq!((estimate.first_token_ms(), estimate.prompt_us(), estimate.fades()), (0, 496, false));
    }

    #[test]
    fn numbers_are_coarse() {
        let check = |value: f64, expected: u32| assert_eq!(coarse(value), expected, "{value}");
        check(0.4, 0);
        check(31.0, 31);
        check(33.0, 32);
        check(1_000.0, 992);
        check(1e12, 0xf800_0000);
        check(f64::NAN, 0);
    }

    proptest! {
        #[test]
        fn no_observation_makes_nonsense(
            batches in proptest::collection::vec(
                proptest::collection::vec((1_u64..200_000, 0_u64..600_000_000), 0..20),
                1..20,
            )
        ) {
            let (mut estimate, mut longest) = (Estimate::default(), 0);
            for (at, batch) in batches.iter().enumerate() {
                longest = batch.iter().map(|&(_, time)| time).max().unwrap_or(0).max(longest);
                estimate.add(at as u64 * 1_000, observed(batch));
                prop_assert!(u64::from(estimate.first_token_ms()) <= longest / 1_000 + 1);
                prop_assert!(u64::from(estimate.prompt_us()) <= longest);
            }
        }
    }
}
