//! What each member of a crowd does: publishers, readers and talkers, as values that are asked what comes next.
//!
//! Contract of all three: they keep no clock. The caller hands in the time in nanoseconds and a seeded generator, carries
//! out what they answer, and keeps the order of its calls; then the same seed gives the same behaviour.

use rand::Rng;
use thalweg_protocol::ids::{Sequence, SessionId};

use crate::schedule::{Arrivals, Schedule};

/// Bytes at the start of every body that say who wrote it, and when it was intended to be sent. See [`Stamp`].
pub const STAMP_BYTES: usize = 32;

/// What every body of this crate begins with: it makes each body unique, which the auditor needs to recognise it, and
/// carries the intended time, which a reader on the same clock needs to measure a latency.
///
/// Layout, little-endian: intended time `u64` ns, session `u128`, sequence `u64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// When the schedule wanted the message sent, ns.
    pub intended_ns: u64,
    /// The session that wrote it.
    pub session: SessionId,
    /// The session's number for it.
    pub sequence: Sequence,
}

impl Stamp {
    /// A body of `body_bytes` (at least [`STAMP_BYTES`]) that begins with this stamp; the rest is a fixed pattern.
    pub fn body(&self, body_bytes: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(body_bytes.max(STAMP_BYTES));
        body.extend_from_slice(&self.intended_ns.to_le_bytes());
        body.extend_from_slice(&self.session.0.to_le_bytes());
        body.extend_from_slice(&self.sequence.0.to_le_bytes());
        while body.len() < body_bytes {
            body.push(b'a' + (body.len() % 26) as u8);
        }
        body
    }

    /// The stamp of a body; `None` if it is too short to have one.
    pub fn read(body: &[u8]) -> Option<Self> {
        let (time, rest) = body.split_first_chunk::<8>()?;
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (sequence, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            intended_ns: u64::from_le_bytes(*time),
            session: SessionId(u128::from_le_bytes(*session)),
            sequence: Sequence(u64::from_le_bytes(*sequence)),
        })
    }
}

/// A write that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// When it was intended, ns; never later than the `now` it was asked for with.
    pub intended_ns: u64,
    /// Its number, growing by one.
    pub sequence: Sequence,
    /// The message, stamped.
    pub body: Vec<u8>,
}

/// Somebody who writes by a schedule, whether or not the answers keep up.
///
/// Contract: [`due`](Self::due) until it gives `None`; then nothing is due before [`next_ns`](Self::next_ns).
#[derive(Debug, Clone)]
pub struct Publisher {
    session: SessionId,
    schedule: Schedule,
    /// Smallest and largest body, bytes.
    body_bytes: (usize, usize),
    next_ns: Option<u64>,
    sequence: Sequence,
    /// Writes that are left, so that a run ends by count and not by the luck of its times.
    left: u64,
}

impl Publisher {
    /// A publisher of `count` messages of `body_bytes.0..=body_bytes.1` bytes (at least [`STAMP_BYTES`]).
    pub fn new(
        session: SessionId,
        mut schedule: Schedule,
        body_bytes: (usize, usize),
        count: u64,
        rng: &mut impl Rng,
    ) -> Self {
        let next_ns = schedule.next(rng).filter(|_| count > 0);
        Self { session, schedule, body_bytes, next_ns, sequence: Sequence(0), left: count }
    }

    /// When the next write is intended, ns; `None` when all are done.
    pub fn next_ns(&self) -> Option<u64> {
        self.next_ns
    }

    /// The next write if its time has come.
    pub fn due(&mut self, now_ns: u64, rng: &mut impl Rng) -> Option<Submission> {
        let intended_ns = self.next_ns.filter(|&at| at <= now_ns)?;
        self.left -= 1;
        self.next_ns = if self.left == 0 { None } else { self.schedule.next(rng) };
        self.sequence = Sequence(self.sequence.0 + 1);
        let (small, large) = self.body_bytes;
        let body_bytes = rng.random_range(small..=large.max(small));
        let body = Stamp { intended_ns, session: self.session, sequence: self.sequence }.body(body_bytes);
        Some(Submission { intended_ns, sequence: self.sequence, body })
    }
}

/// How fast a reader consumes what arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// At once.
    Immediate,
    /// At most so many a second.
    PerSecond(f64),
    /// At once, but not at all between these two times, ns.
    Stalled {
        /// Stops here.
        from_ns: u64,
        /// Goes on here; `u64::MAX` for never.
        until_ns: u64,
    },
}

/// Somebody who reads. Says how many of the things that arrived are consumed by now; credit is given for those.
#[derive(Debug, Clone, PartialEq)]
pub struct Reader {
    speed: Speed,
    /// When the allowance was last counted, ns.
    last_ns: u64,
    /// Part of a message that the passed time allows already.
    allowance: f64,
}

impl Reader {
    /// A reader of this speed that begins at `now_ns`.
    pub fn new(speed: Speed, now_ns: u64) -> Self {
        Self { speed, last_ns: now_ns, allowance: 0.0 }
    }

    /// How many of `waiting` things are consumed at `now_ns`. Times must not go backwards.
    pub fn consume(&mut self, now_ns: u64, waiting: u64) -> u64 {
        match self.speed {
            Speed::Immediate => waiting,
            Speed::Stalled { from_ns, until_ns } if (from_ns..until_ns).contains(&now_ns) => 0,
            Speed::Stalled { .. } => waiting,
            Speed::PerSecond(rate) => {
                let passed_s = now_ns.saturating_sub(self.last_ns) as f64 / 1e9;
                self.last_ns = now_ns;
                // Somebody with nothing to read does not save up time: at most one second's worth.
                self.allowance = (self.allowance + passed_s * rate).min(rate.max(1.0));
                let taken = waiting.min(self.allowance as u64);
                self.allowance -= taken as f64;
                taken
            }
        }
    }
}

/// A question that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// When it was intended, ns.
    pub intended_ns: u64,
    /// The text for the model.
    pub prompt: String,
    /// How many tokens to ask for.
    pub tokens: u32,
    /// For sampling.
    pub seed: u64,
    /// After how many tokens this asker walks away without a word; `None`: it stays to the end.
    pub leaves_after: Option<u32>,
}

/// Somebody who asks a model, by a schedule.
#[derive(Debug, Clone)]
pub struct Talker {
    schedule: Schedule,
    prompt_words: (u32, u32),
    tokens: (u32, u32),
    /// Share of questions whose asker does not wait for the end, 0 to 1.
    impatience: f64,
    next_ns: Option<u64>,
    left: u64,
}

/// Words of made-up prompts: short, common, one token each in most vocabularies.
const WORDS: [&str; 16] = [
    "river", "stone", "water", "light", "north", "house", "green", "paper", "count", "seven", "small", "train",
    "music", "night", "apple", "cloud",
];

/// A prompt of `words` common words.
pub fn prompt(words: u32, rng: &mut impl Rng) -> String {
    let mut text = String::new();
    for n in 0..words {
        if n > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
    }
    text
}

impl Talker {
    /// Somebody who asks `count` questions of `prompt_words` words for `tokens` tokens (both inclusive ranges).
    pub fn new(
        mut schedule: Schedule,
        prompt_words: (u32, u32),
        tokens: (u32, u32),
        impatience: f64,
        count: u64,
        rng: &mut impl Rng,
    ) -> Self {
        let next_ns = schedule.next(rng).filter(|_| count > 0);
        Self { schedule, prompt_words, tokens, impatience, next_ns, left: count }
    }

    /// When the next question is intended, ns; `None` when all were asked.
    pub fn next_ns(&self) -> Option<u64> {
        self.next_ns
    }

    /// The next question if its time has come.
    pub fn due(&mut self, now_ns: u64, rng: &mut impl Rng) -> Option<Question> {
        let intended_ns = self.next_ns.filter(|&at| at <= now_ns)?;
        self.left -= 1;
        self.next_ns = if self.left == 0 { None } else { self.schedule.next(rng) };
        let words = rng.random_range(self.prompt_words.0..=self.prompt_words.1.max(self.prompt_words.0));
        let tokens = rng.random_range(self.tokens.0..=self.tokens.1.max(self.tokens.0));
        let leaves = rng.random::<f64>() < self.impatience;
        Some(Question {
            intended_ns,
            prompt: prompt(words, rng),
            tokens,
            seed: rng.random(),
            leaves_after: leaves.then(|| rng.random_range(0..=tokens)),
        })
    }
}

/// What a crowd is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct CrowdShape {
    /// Publishers, each a session of its own.
    pub publishers: usize,
    /// Messages a second of one publisher.
    pub publish_rate_per_s: f64,
    /// Messages of one publisher in all.
    pub messages: u64,
    /// Smallest and largest body, bytes.
    pub body_bytes: (usize, usize),
    /// Readers, each a session of its own.
    pub readers: usize,
    /// Share of the readers that are slow, 0 to 1.
    pub slow: f64,
    /// Messages a second of a slow reader.
    pub slow_rate_per_s: f64,
    /// Askers of models.
    pub talkers: usize,
    /// Questions a second of one asker.
    pub ask_rate_per_s: f64,
    /// Questions of one asker in all.
    pub questions: u64,
    /// Share of the questions that are left before their end, 0 to 1.
    pub impatience: f64,
}

/// A crowd: who publishes, who reads, who asks.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// The publishers and their sessions.
    pub publishers: Vec<(SessionId, Publisher)>,
    /// The readers and their sessions.
    pub readers: Vec<(SessionId, Reader)>,
    /// The askers and their sessions.
    pub talkers: Vec<(SessionId, Talker)>,
}

impl Crowd {
    /// The crowd of this shape and seed, beginning at `start_ns`, with Poisson arrivals throughout.
    pub fn new(shape: &CrowdShape, start_ns: u64, rng: &mut impl Rng) -> Self {
        let mut publishers = Vec::with_capacity(shape.publishers);
        for _ in 0..shape.publishers {
            let session = SessionId(rng.random());
            let schedule = Schedule::new(Arrivals::Poisson, shape.publish_rate_per_s, start_ns);
            publishers.push((session, Publisher::new(session, schedule, shape.body_bytes, shape.messages, rng)));
        }
        let mut readers = Vec::with_capacity(shape.readers);
        for _ in 0..shape.readers {
            let slow = rng.random::<f64>() < shape.slow;
            let speed = if slow { Speed::PerSecond(shape.slow_rate_per_s) } else { Speed::Immediate };
            readers.push((SessionId(rng.random()), Reader::new(speed, start_ns)));
        }
        let mut talkers = Vec::with_capacity(shape.talkers);
        for _ in 0..shape.talkers {
            let schedule = Schedule::new(Arrivals::Poisson, shape.ask_rate_per_s, start_ns);
            let talker = Talker::new(schedule, (4, 32), (8, 64), shape.impatience, shape.questions, rng);
            talkers.push((SessionId(rng.random()), talker));
        }
        Self { publishers, readers, talkers }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn stamps_round_trip_and_fill_the_body() {
        let stamp = Stamp { intended_ns: 5, session: SessionId(u128::MAX - 3), sequence: Sequence(9) };
        for bytes in [0, STAMP_BYTES, 128] {
            let body = stamp.body(bytes);
            assert_eq!(body.len(), bytes.max(STAMP_BYTES));
            assert_eq!(Stamp::read(&body), Some(stamp));
        }
        assert_eq!(Stamp::read(&[0; STAMP_BYTES - 1]), None);
    }

    #[test]
    fn a_publisher_catches_up_with_its_schedule_and_keeps_the_intended_times() {
        let mut rng = StdRng::seed_from_u64(1);
        let schedule = Schedule::new(Arrivals::Even, 1_000.0, 0);
        let mut publisher = Publisher::new(SessionId(1), schedule, (64, 64), 5, &mut rng);
        assert_eq!(publisher.due(0, &mut rng).map(|s| s.sequence), Some(Sequence(1)));
        assert_eq!(publisher.due(0, &mut rng), None);
        // The system stood still for a second: what was intended meanwhile is due at its own times.
        let late: Vec<_> = std::iter::from_fn(|| publisher.due(1_000_000_000, &mut rng)).collect();
        assert_eq!(
            late.iter().map(|s| s.intended_ns).collect::<Vec<_>>(),
            [1_000_000, 2_000_000, 3_000_000, 4_000_000]
        );
        assert_eq!(publisher.next_ns(), None);
    }

    #[test]
    fn readers_keep_their_speed() {
        let check = |speed: Speed, calls: &[(u64, u64, u64)]| {
            let mut reader = Reader::new(speed, 0);
            for &(now_ms, waiting, expected) in calls {
                assert_eq!(reader.consume(now_ms * 1_000_000, waiting), expected, "{speed:?} at {now_ms} ms");
            }
        };
        check(Speed::Immediate, &[(0, 7, 7), (1, 0, 0)]);
        check(Speed::PerSecond(10.0), &[(0, 5, 0), (100, 5, 1), (150, 5, 0), (200, 5, 1), (60_000, 99, 10)]);
        check(Speed::Stalled { from_ns: 10_000_000, until_ns: 20_000_000 }, &[(5, 2, 2), (10, 9, 0), (20, 9, 9)]);
    }

    #[test]
    fn a_seed_makes_one_crowd() {
        let shape = CrowdShape {
            publishers: 3,
            publish_rate_per_s: 100.0,
            messages: 50,
            body_bytes: (32, 256),
            readers: 10,
            slow: 0.5,
            slow_rate_per_s: 5.0,
            talkers: 2,
            ask_rate_per_s: 1.0,
            questions: 4,
            impatience: 0.5,
        };
        let run = |seed: u64| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut crowd = Crowd::new(&shape, 0, &mut rng);
            let mut trace = Vec::new();
            for (session, publisher) in &mut crowd.publishers {
                while let Some(s) = publisher.due(u64::MAX, &mut rng) {
                    trace.push(format!("{session} {} {} {}", s.intended_ns, s.sequence, s.body.len()));
                }
            }
            for (session, talker) in &mut crowd.talkers {
                while let Some(q) = talker.due(u64::MAX, &mut rng) {
                    trace.push(format!("{session} {q:?}"));
                }
            }
            trace.extend(crowd.readers.iter().map(|(session, reader)| format!("{session} {reader:?}")));
            trace
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert_eq!(run(1).len(), 3 * 50 + 2 * 4 + 10);
    }
}
