//! What is remembered of a generation that is traced.

use std::time::Instant;

use thalweg_protocol::ids::GenerationId;

/// Parks of one generation that are told apart; what comes after them is one long last one.
const PARKS_MAX: usize = 32;

/// The moments of a generation. One that was not reached is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    /// Which generation.
    pub generation: GenerationId,
    /// Tokens of its prompt; 0 if it was not tokenised.
    pub prompt_tokens: u32,
    /// It was taken off the ring.
    pub taken: Instant,
    /// Its prompt was tokenised, and handed to the scheduler.
    pub tokenised: Option<Instant>,
    /// It got a slot for the first time.
    pub admitted: Option<Instant>,
    /// The step began that computed its first row.
    pub first_row: Option<Instant>,
    /// Its first token was drawn.
    pub first_token: Option<Instant>,
    /// When it was parked, from and to, at most 32 times.
    pub parks: Vec<(Instant, Instant)>,
    /// It ended, or was refused.
    pub ended: Instant,
    parked_since: Option<Instant>,
}

impl Times {
    /// Those of a generation that was just taken off the ring.
    pub fn new(generation: GenerationId, taken: Instant) -> Box<Self> {
        Box::new(Self {
            generation,
            prompt_tokens: 0,
            taken,
            tokenised: None,
            admitted: None,
            first_row: None,
            first_token: None,
            parks: Vec::new(),
            ended: taken,
            parked_since: None,
        })
    }

    /// It is parked from now on, or no longer.
    pub(super) fn parked(&mut self, at: Instant, parked: bool) {
        if parked {
            self.parked_since.get_or_insert(at);
        } else if let Some(since) = self.parked_since.take() {
            match self.parks.get_mut(PARKS_MAX - 1) {
                Some(last) => last.1 = at,
                None => self.parks.push((since, at)),
            }
        }
    }

    /// It ended now.
    #[must_use]
    pub fn end(mut self: Box<Self>) -> Box<Self> {
        self.ended = Instant::now();
        self.parked(self.ended, false);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn parks_are_bounded_and_end_with_the_generation() {
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_millis(n);
        let mut times = Times::new(GenerationId(1), start);
        for n in 0..100 {
            times.parked(at(2 * n), true);
            times.parked(at(2 * n + 1), false);
            times.parked(at(2 * n + 1), false);
        }
        assert_eq!((times.parks.len(), times.parks[0]), (PARKS_MAX, (at(0), at(1))));
        assert_eq!(times.parks[PARKS_MAX - 1], (at(62), at(199)));
        let mut times = Times::new(GenerationId(1), start);
        times.parked(start, true);
        let times = times.end();
        assert_eq!(times.parks, [(start, times.ended)]);
    }
}
