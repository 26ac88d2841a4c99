//! The next token, drawn from a row of logits.

use std::collections::HashMap;

use thalweg_protocol::generation::Sampling;

/// Why no token can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// The logits of a row hold a value that is no number: the model or its input is broken.
    #[error("the model gave logits that are not finite; its file may be damaged: pull it again")]
    NotFinite,
    /// The constraint leaves no token that could come next.
    #[error("no token can follow: the constraint allows none that the model has")]
    NoneAllowed,
}

/// Which tokens a text holds so far, for penalties.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// How often each token stands in the answer; 0 for those that stand in the prompt alone.
    seen: HashMap<u32, u32>,
}

impl History {
    /// A history as far as `sampling` needs one: nothing if no penalty is asked for. `prompt`: its tokens.
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Option<Self> {
        let repeats = sampling.repetition_penalty != 1.0;
        let counts = sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0;
        let before: &[u32] = if repeats { prompt } else { &[] };
        (repeats || counts).then(|| Self { seen: before.iter().map(|&token| (token, 0)).collect() })
    }

    /// The answer grew by a token.
    pub fn push(&mut self, token: u32) {
        *self.seen.entry(token).or_default() += 1;
    }
}

/// The tokens that may be drawn, a bit for each, lowest first.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a>(pub &'a [u32]);

/// Scratch memory for drawing.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<(f32, u32)>,
    /// The logits of a row after biases, penalties and the constraint.
    moved: Vec<f32>,
}

impl Sampler {
    /// Draws the token at `position` (of the answer, from 0) with neither history nor constraint.
    ///
    /// # Errors
    /// [`DrawError::NotFinite`].
    pub fn draw(&mut self, logits: &[f32], sampling: &Sampling, position: u32) -> Result<u32, DrawError> {
        self.draw_among(logits, sampling, position, None, None)
    }

    /// Draws the token at `position` (of the answer, from 0).
    ///
    /// Order: biases, penalty for repetition, for frequency and presence, what is `allowed`; then temperature, top-k, top-p
    /// of what is left, min-p. Randomness is a function of seed and position alone, and ties go to the lower token, so equal
    /// logits give equal tokens.
    ///
    /// # Errors
    /// See [`DrawError`].
    pub fn draw_among(
        &mut self,
        logits: &[f32],
        sampling: &Sampling,
        position: u32,
        history: Option<&History>,
        allowed: Option<Allowed<'_>>,
    ) -> Result<u32, DrawError> {
        let (best, max) = largest(logits)?;
        if sampling.logit_bias.is_empty() && history.is_none() && allowed.is_none() {
            return Ok(self.pick(logits, sampling, position, (best, max)));
        }
        let mut moved = std::mem::take(&mut self.moved);
        moved.clear();
        moved.extend_from_slice(logits);
        shift(&mut moved, sampling, history);
        if let Some(allowed) = allowed {
            forbid(&mut moved, allowed);
        }
        let best = best_of(&moved);
        let token = best.map(|best| self.pick(&moved, sampling, position, best));
        self.moved = moved;
        token.ok_or(DrawError::NoneAllowed)
    }

    /// Draws from logits of which `best` and its logit `max` are the largest. Those of minus infinity are never drawn.
    fn pick(&mut self, logits: &[f32], sampling: &Sampling, position: u32, (best, max): (u32, f32)) -> u32 {
        if sampling.temperature <= 0.0 || sampling.top_k == 1 {
            return best;
        }
        let inverse = 1.0 / sampling.temperature;
        let weight = |logit: f32| f64::from((logit - max) * inverse).exp();
        let top_k = if sampling.top_k == 0 { logits.len() } else { (sampling.top_k as usize).min(logits.len()) };
        let top_p = f64::from(sampling.top_p);
        // All weight there is bounds what the candidates found so far must reach; needed only if all may be drawn.
        let total: f64 = if top_k == logits.len() { logits.iter().map(|&l| weight(l)).sum() } else { 0.0 };
        self.gather(logits, sampling, max, top_k, top_p * total);
        self.candidates.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.candidates.truncate(top_k);
        let mass: f64 = match top_k == logits.len() {
            true => total,
            false => self.candidates.iter().map(|&(logit, _)| weight(logit)).sum(),
        };
        let (mut nucleus, mut count) = (0.0, 0);
        // The likeliest weighs 1, so that min p is a bound on weights.
        let least = f64::from(sampling.min_p);
        while count < self.candidates.len() && (count == 0 || nucleus < top_p * mass) {
            let more = weight(self.candidates[count].0);
            if count > 0 && more < least {
                break;
            }
            nucleus += more;
            count += 1;
        }
        let mut left = uniform(sampling.seed, position) * nucleus;
        for &(logit, token) in &self.candidates[..count] {
            left -= weight(logit);
            if left < 0.0 {
                return token;
            }
        }
        self.candidates[count - 1].1
    }

    /// Gathers the likeliest tokens: at least `top_k` of them, or, if that is all, of so much `mass`. Few tokens carry nearly
    /// all weight. Those within a distance of the best are taken, farther and farther, until what is wanted is among them;
    /// then only those need sorting.
    fn gather(&mut self, logits: &[f32], sampling: &Sampling, max: f32, top_k: usize, mass: f64) {
        let inverse = 1.0 / sampling.temperature;
        let mut distance = 8.0 * sampling.temperature;
        loop {
            let all = distance > 1e4;
            let floor = if all { f32::MIN } else { max - distance };
            self.candidates.clear();
            let near = logits.iter().zip(0..).filter(|(logit, _)| **logit >= floor);
            self.candidates.extend(near.map(|(&logit, token)| (logit, token)));
            let found =
                || self.candidates.iter().map(|&(logit, _)| f64::from((logit - max) * inverse).exp()).sum::<f64>();
            let enough = if top_k == logits.len() { found() >= mass } else { self.candidates.len() >= top_k };
            if enough || all {
                return;
            }
            distance *= 2.0;
        }
    }
}

/// Moves logits by biases and penalties.
fn shift(logits: &mut [f32], sampling: &Sampling, history: Option<&History>) {
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    let penalty = sampling.repetition_penalty;
    for (&token, &count) in history.iter().flat_map(|history| &history.seen) {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        if penalty != 1.0 {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        if count > 0 {
            *logit -= sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
        }
    }
}

/// Sets the logits of all tokens that are not allowed to minus infinity.
fn forbid(logits: &mut [f32], Allowed(allowed): Allowed<'_>) {
    let mut chunks = logits.chunks_mut(32);
    // The mask is asked first: a chunk taken and then found to have no bits would be left as it is.
    for (&bits, chunk) in allowed.iter().zip(chunks.by_ref()) {
        match bits {
            u32::MAX => {}
            0 => chunk.fill(f32::NEG_INFINITY),
            bits => {
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if bits >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
    chunks.for_each(|chunk| chunk.fill(f32::NEG_INFINITY));
}

/// The first token with the largest logit; none if all are minus infinity.
fn best_of(logits: &[f32]) -> Option<(u32, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at = logits.iter().position(|&logit| logit == max)?;
    (max > f32::NEG_INFINITY).then_some((at as u32, max))
}

/// Natural logarithms of probabilities of a row of finite logits: that of `token`, and the `count` likeliest tokens with
/// theirs, likeliest first, the lower of equal ones before the other.
pub fn logprobs(logits: &[f32], token: u32, count: usize) -> (f32, Vec<(u32, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let all = f64::from(max) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - all) as f32;
    let mut top: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    for (&logit, id) in logits.iter().zip(0..) {
        if top.len() == count && top.last().is_none_or(|&(least, _)| logit <= least) {
            continue;
        }
        let at = top.partition_point(|&(other, _)| other >= logit);
        top.insert(at, (logit, id));
        top.truncate(count);
    }
    let drawn = logits.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit));
    (drawn, top.into_iter().map(|(logit, id)| (id, logprob(logit))).collect())
}

/// The largest logit and the first token that has it.
fn largest(logits: &[f32]) -> Result<(u32, f32), DrawError> {
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
        _ => Err(DrawError::NotFinite),
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
                    Err(DrawError::NotFinite),
                    "{bad} at {at}"
                );
            }
        }
        assert_eq!(Sampler::default().draw(&[], &sampling(0.7, 0.9, 0), 0), Err(DrawError::NotFinite));
    }

    /// What is drawn is what a plain computation of penalties, biases and cuts over all tokens gives.
    #[test]
    fn draws_are_those_of_a_plain_reference() {
        let reference =
            |logits: &[f32], s: &Sampling, prompt: &[u32], answer: &[u32], allowed: &[u32], position: u32| {
                let mut moved: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
                s.logit_bias.iter().for_each(|&(token, bias)| moved[token as usize] += f64::from(bias));
                for (token, logit) in moved.iter_mut().enumerate() {
                    let count = answer.iter().filter(|&&t| t as usize == token).count() as f64;
                    if count > 0.0 || prompt.contains(&(token as u32)) {
                        let r = f64::from(s.repetition_penalty);
                        *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
                    }
                    *logit -= f64::from(s.frequency_penalty) * count;
                    *logit -= if count > 0.0 { f64::from(s.presence_penalty) } else { 0.0 };
                    if allowed[token / 32] >> (token % 32) & 1 == 0 {
                        *logit = f64::NEG_INFINITY;
                    }
                }
                let mut order: Vec<usize> = (0..moved.len()).filter(|&t| moved[t].is_finite()).collect();
                order.sort_by(|&a, &b| moved[b].total_cmp(&moved[a]).then(a.cmp(&b)));
                let weight = |t: usize| ((moved[t] - moved[order[0]]) / f64::from(s.temperature)).exp();
                let k = if s.top_k == 0 { order.len() } else { order.len().min(s.top_k as usize) };
                let mass: f64 = order[..k].iter().map(|&t| weight(t)).sum();
                let (mut kept, mut sum) = (Vec::new(), 0.0);
                for &t in &order[..k] {
                    if !kept.is_empty() && (sum >= f64::from(s.top_p) * mass || weight(t) < f64::from(s.min_p)) {
                        break;
                    }
                    sum += weight(t);
                    kept.push(t);
                }
                let mut left = uniform(s.seed, position) * sum;
                for &t in &kept {
                    left -= weight(t);
                    if left < 0.0 {
                        return t as u32;
                    }
                }
                kept[kept.len() - 1] as u32
            };
        let logits: Vec<f32> = (0..200_u32).map(|n| uniform(3, n) as f32 * 12.0 - 7.0).collect();
        let mut allowed = vec![u32::MAX; 7];
        (allowed[1], allowed[4]) = (0, 0x00f0_0ff0);
        let check = |change: &dyn Fn(&mut Sampling)| {
            let mut s = Sampling { temperature: 0.9, top_p: 1.0, seed: 11, ..Sampling::default() };
            change(&mut s);
            let (prompt, mut answer) = (vec![3, 5, 150], Vec::new());
            let mut history = History::new(&s, &prompt);
            let mut sampler = Sampler::default();
            for position in 0..300 {
                let expected = reference(&logits, &s, &prompt, &answer, &allowed, position);
                let got = sampler.draw_among(&logits, &s, position, history.as_ref(), Some(Allowed(&allowed)));
                assert_eq!(got, Ok(expected), "{s:?} at {position}");
                answer.push(expected);
                history.iter_mut().for_each(|history| history.push(expected));
            }
        };
        check(&|_| {});
        check(&|s| s.min_p = 0.2);
        check(&|s| (s.top_k, s.min_p) = (9, 0.1));
        check(&|s| s.repetition_penalty = 1.3);
        check(&|s| s.repetition_penalty = 0.7);
        check(&|s| (s.frequency_penalty, s.presence_penalty) = (0.4, 0.9));
        check(&|s| (s.frequency_penalty, s.top_p) = (-0.3, 0.9));
        check(&|s| s.logit_bias = vec![(7, 4.5), (8, -50.0), (7, 1.0)]);
        check(&|s| (s.repetition_penalty, s.presence_penalty, s.top_p, s.top_k) = (1.2, 0.5, 0.8, 20));
    }

    #[test]
    fn what_is_not_allowed_is_never_drawn() {
        let logits = [1.0, 9.0, 3.0, 5.0];
        let draw = |allowed: &[u32], temperature| {
            let sampling = sampling(temperature, 1.0, 0);
            Sampler::default().draw_among(&logits, &sampling, 0, None, Some(Allowed(allowed)))
        };
        assert_eq!(draw(&[0b1100], 0.0), Ok(3));
        assert_eq!(draw(&[0b0001], 2.0), Ok(0), "the only one");
        assert_eq!(draw(&[0], 0.7), Err(DrawError::NoneAllowed));
        assert_eq!(draw(&[], 0.7), Err(DrawError::NoneAllowed), "a mask that is too short allows nothing beyond it");
    }

    #[test]
    fn logprobs_are_those_of_a_softmax() {
        let logits: Vec<f32> = [8.0_f32, 1.0, 4.0, 2.0, 1.0].iter().map(|w| w.ln() + 40.0).collect();
        let (drawn, top) = logprobs(&logits, 2, 4);
        let near =
            |got: f32, weight: f32| assert!((got - (weight / 16.0).ln()).abs() < 1e-5, "{got} is not {weight}/16");
        near(drawn, 4.0);
        assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [0, 2, 3, 1], "the lower of equal ones first");
        top.iter().zip([8.0, 4.0, 2.0, 1.0]).for_each(|(&(_, logprob), weight)| near(logprob, weight));
        assert_eq!(logprobs(&logits, 0, 0).1, []);
        assert_eq!(logprobs(&logits, 0, 20).1.len(), 5);
    }
}
