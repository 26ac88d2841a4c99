//! The next token, drawn from a row of logits.

use thalweg_protocol::generation::Sampling;

/// The logits of a row hold a value that is no number: the model or its input is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model gave logits that are not finite; its file may be damaged: pull it again")]
pub struct NotFinite;

/// Scratch memory of [`Sampler::draw`].
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Draws the token at `position` (of the answer, from 0).
    ///
    /// Order as everywhere: temperature, then top-k, then top-p of what is left. Randomness is a function of seed and
    /// position alone, and ties go to the lower token, so equal logits give equal tokens.
    pub fn draw(&mut self, logits: &[f32], sampling: &Sampling, position: u32) -> Result<u32, NotFinite> {
        let (best, max) = largest(logits)?;
        if sampling.temperature <= 0.0 || sampling.top_k == 1 {
            return Ok(best);
        }
        let inverse = 1.0 / sampling.temperature;
        let weight = |logit: f32| f64::from((logit - max) * inverse).exp();
        let top_k = if sampling.top_k == 0 { logits.len() } else { (sampling.top_k as usize).min(logits.len()) };
        let top_p = f64::from(sampling.top_p);
        // All weight there is bounds what the candidates found so far must reach; needed only if all may be drawn.
        let total: f64 = if top_k == logits.len() { logits.iter().map(|&l| weight(l)).sum() } else { 0.0 };
        // Few tokens carry nearly all weight. Take those within a distance of the best, farther and farther, until what
        // is wanted is among them; then only those need sorting.
        let mut distance = 8.0 * sampling.temperature;
        loop {
            let all = distance > 1e4;
            let floor = if all { f32::NEG_INFINITY } else { max - distance };
            self.candidates.clear();
            let near = logits.iter().zip(0..).filter(|(logit, _)| **logit >= floor);
            self.candidates.extend(near.map(|(&logit, token)| (logit, token)));
            let weight_found: f64 = self.candidates.iter().map(|&(logit, _)| weight(logit)).sum();
            let enough =
                if top_k == logits.len() { weight_found >= top_p * total } else { self.candidates.len() >= top_k };
            if enough || all {
                break;
            }
            distance *= 2.0;
        }
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.candidates.truncate(top_k);
        let mass: f64 = match top_k == logits.len() {
            true => total,
            false => self.candidates.iter().map(|&(logit, _)| weight(logit)).sum(),
        };
        let mut nucleus = 0.0;
        let mut count = 0;
        while count < self.candidates.len() && (count == 0 || nucleus < top_p * mass) {
            nucleus += weight(self.candidates[count].0);
            count += 1;
        }
        let mut left = uniform(sampling.seed, position) * nucleus;
        for &(logit, token) in &self.candidates[..count] {
            left -= weight(logit);
            if left < 0.0 {
                return Ok(token);
            }
        }
        Ok(self.candidates[count - 1].1)
    }
}

/// The largest logit and the first token that has it.
fn largest(logits: &[f32]) -> Result<(u32, f32), NotFinite> {
    let mut maxima = [f32::NEG_INFINITY; 16];
    let mut poison = [0.0_f32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
            poison[lane] += chunk[lane] * 0.0;
        }
    }
    let max = rest.iter().chain(&maxima).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let poison = poison.iter().sum::<f32>() + rest.iter().map(|logit| logit * 0.0).sum::<f32>();
    match logits.iter().position(|&logit| logit == max) {
        Some(token) if poison == 0.0 => Ok((token as u32, max)),
        _ => Err(NotFinite),
    }
}

/// A number in 0..1 that is a function of seed and position (splitmix64, Steele et al. 2014, keyed twice).
fn uniform(seed: u64, position: u32) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let gamma = 0x9e37_79b9_7f4a_7c15_u64;
    let keyed = mix(seed.wrapping_add(gamma)).wrapping_add(gamma.wrapping_mul(u64::from(position) + 1));
    (mix(keyed) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32, top_k: u32) -> Sampling {
        Sampling { temperature, top_p, top_k, seed: 7, ..Sampling::default() }
    }

    fn counts(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::default();
        for position in 0..20_000 {
            counts[sampler.draw(logits, sampling, position).expect("finite") as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution_within_its_cuts() {
        // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625.
        let logits: Vec<f32> = [8.0_f32, 4.0, 2.0, 1.0, 1.0].iter().map(|w| w.ln()).collect();
        let check = |sampling: Sampling, expected: [u32; 5]| {
            for (got, expected) in counts(&logits, &sampling).iter().zip(expected) {
                assert!(got.abs_diff(expected) < 450, "{sampling:?}: {got}, not about {expected}");
                assert!(expected > 0 || *got == 0, "{sampling:?}: {got} drawn from beyond the cut");
            }
        };
        check(sampling(1.0, 1.0, 0), [10_000, 5_000, 2_500, 1_250, 1_250]);
        check(sampling(1.0, 0.7, 0), [13_333, 6_667, 0, 0, 0]);
        check(sampling(1.0, 1.0, 3), [11_429, 5_714, 2_857, 0, 0]);
        check(sampling(1.0, 0.6, 2), [20_000, 0, 0, 0, 0]);
        check(sampling(1.0, 0.7, 2), [13_333, 6_667, 0, 0, 0]);
        check(sampling(0.5, 1.0, 0), [14_884, 3_721, 930, 233, 233]);
        check(sampling(0.0, 1.0, 0), [20_000, 0, 0, 0, 0]);
        check(sampling(1.0, 1e-9, 0), [20_000, 0, 0, 0, 0]);
    }

    #[test]
    fn equal_seeds_draw_equally_and_ties_go_to_the_lower_token() {
        let logits: Vec<f32> = (0..100).map(|n| (n * 37 % 11) as f32).collect();
        let (a, b) = (sampling(1.5, 0.9, 0), Sampling { seed: 8, ..sampling(1.5, 0.9, 0) });
        let draw = |s: &Sampling| (0..50).map(|p| Sampler::default().draw(&logits, s, p)).collect::<Vec<_>>();
        assert_eq!(draw(&a), draw(&a));
        assert_ne!(draw(&a), draw(&b));
        assert_eq!(Sampler::default().draw(&[1.0, 3.0, 3.0], &sampling(0.0, 1.0, 0), 0), Ok(1));
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 16, 39] {
                let mut logits = vec![0.0; 40];
                logits[at] = bad;
                assert_eq!(
                    Sampler::default().draw(&logits, &sampling(0.7, 0.9, 0), 0),
                    Err(NotFinite),
                    "{bad} at {at}"
                );
            }
        }
        assert_eq!(Sampler::default().draw(&[], &sampling(0.7, 0.9, 0), 0), Err(NotFinite));
    }
}
