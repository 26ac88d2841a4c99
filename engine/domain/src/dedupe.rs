//! Which commands of which sessions a partition has carried out, so that a repeated one is answered and not done again.
//!
//! The window: the last [`DEDUPE_COMMANDS_MAX`] commands of the last [`DEDUPE_SESSIONS_MAX`] sessions of a partition, at most
//! [`DEDUPE_OUTCOMES_MAX`] in all. Past it the answer is `session_expired`, never a silent second execution.
//!
//! What is remembered follows from the log alone: two windows of neighbouring pieces of a log [`merge`](Dedupe::merge) into
//! the window of both.

use std::collections::{BTreeMap, VecDeque};

use thalweg_protocol::ids::{Lsn, Name, Position, Sequence, SessionId};
use thalweg_protocol::limits::{DEDUPE_COMMANDS_MAX, DEDUPE_OUTCOMES_MAX, DEDUPE_SESSIONS_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};

/// Whose commands are told apart. Sessions choose their ids themselves and tenants share partitions, so the id alone would
/// let one tenant ask for the outcome of another's writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// The session. It stands first because it tells most writers apart, and is compared fast.
    pub session: SessionId,
    /// Whose session it is.
    pub tenant: Name,
}

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Where its message stands.
    pub position: Position,
    /// When it was accepted, in microseconds since 1970.
    pub timestamp_us: u64,
}

/// Whether a command is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new.
    New,
    /// It was carried out, with this outcome.
    Repeated(Outcome),
}

/// The commands of one writer, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    recent: VecDeque<(Sequence, Outcome)>,
    /// The log position of the newest.
    touched: Lsn,
}

/// The commands a partition remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dedupe {
    windows: BTreeMap<Writer, Window>,
    /// Writers by when they last wrote, to find the one to forget.
    by_age: BTreeMap<Lsn, Writer>,
    outcomes: usize,
    forgotten: bool,
}

impl Dedupe {
    /// Looks up a command.
    ///
    /// # Errors
    /// `session_expired` for a repeated command of a session that may have been forgotten; `sequence_invalid` for one that
    /// lies before the session's window.
    pub fn check(&self, writer: &Writer, sequence: Sequence, retry: bool) -> Result<Verdict, Reject> {
        let session = writer.session;
        let Some(window) = self.windows.get(writer) else {
            if retry && self.forgotten {
                let text =
                    format!("write {sequence} of {session} may have been carried out; its session was forgotten");
                return Err(Reject::new(RejectCode::SessionExpired, text));
            }
            return Ok(Verdict::New);
        };
        let last = window.recent.back().map_or(Sequence(0), |(sequence, _)| *sequence);
        if sequence > last {
            return Ok(Verdict::New);
        }
        match window.recent.binary_search_by_key(&sequence, |(sequence, _)| *sequence) {
            Ok(at) => Ok(Verdict::Repeated(window.recent[at].1)),
            Err(_) => {
                let text = format!(
                    "write {sequence} of {session} comes after {last} and is not among the last {DEDUPE_COMMANDS_MAX}"
                );
                Err(Reject::new(RejectCode::SequenceInvalid, text))
            }
        }
    }

    /// Remembers a command that [`check`](Self::check) found to be new. `lsn`, where the log has it, grows.
    pub fn remember(&mut self, writer: Writer, sequence: Sequence, outcome: Outcome, lsn: Lsn) {
        self.push(writer, [(sequence, outcome)], lsn);
        self.forget();
    }

    /// Takes in what a later piece of the same log left behind.
    pub fn merge(&mut self, newer: Self) {
        for (lsn, writer) in newer.by_age {
            if let Some(window) = newer.windows.get(&writer) {
                self.push(writer, window.recent.iter().copied(), lsn);
            }
        }
        self.forgotten |= newer.forgotten;
        self.forget();
    }

    /// Whether a writer was forgotten, so that a repeated command of an unknown one may have been carried out.
    pub fn has_forgotten(&self) -> bool {
        self.forgotten
    }

    /// Says that writers were forgotten before.
    pub fn set_forgotten(&mut self) {
        self.forgotten = true;
    }

    /// Every remembered writer, oldest first: where the log has its newest command, and its commands in order.
    pub fn writers(&self) -> impl Iterator<Item = (&Writer, Lsn, impl ExactSizeIterator<Item = (Sequence, Outcome)>)> {
        self.by_age.iter().filter_map(|(lsn, writer)| {
            let window = self.windows.get(writer)?;
            Some((writer, *lsn, window.recent.iter().copied()))
        })
    }

    /// Takes back what [`writers`](Self::writers) gave.
    pub fn restore(&mut self, writer: Writer, touched: Lsn, commands: impl IntoIterator<Item = (Sequence, Outcome)>) {
        self.push(writer, commands, touched);
    }

    fn push(&mut self, writer: Writer, commands: impl IntoIterator<Item = (Sequence, Outcome)>, lsn: Lsn) {
        let window = self.windows.entry(writer.clone()).or_default();
        self.by_age.remove(&window.touched);
        window.touched = lsn;
        self.by_age.insert(lsn, writer);
        for command in commands {
            if window.recent.len() == DEDUPE_COMMANDS_MAX {
                window.recent.pop_front();
                self.outcomes -= 1;
            }
            window.recent.push_back(command);
            self.outcomes += 1;
        }
    }

    /// Forgets those who wrote longest ago, until what is remembered is within its bounds. The newest writer stays.
    fn forget(&mut self) {
        while self.windows.len() > DEDUPE_SESSIONS_MAX || self.outcomes > DEDUPE_OUTCOMES_MAX {
            let Some((_, oldest)) = self.by_age.pop_first() else { return };
            self.outcomes -= self.windows.remove(&oldest).map_or(0, |window| window.recent.len());
            self.forgotten = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(session: u128) -> Writer {
        Writer { tenant: Name::new("default").expect("valid"), session: SessionId(session) }
    }

    fn outcome(position: u64) -> Outcome {
        Outcome { position: Position(position), timestamp_us: 7 }
    }

    #[test]
    fn a_repeated_command_is_recognised_within_its_window() {
        let (mut dedupe, session) = (Dedupe::default(), writer(1));
        for n in 1..=2 * DEDUPE_COMMANDS_MAX as u64 {
            // A session's writes to one partition grow, but need not be contiguous.
            assert_eq!(dedupe.check(&session, Sequence(3 * n), false), Ok(Verdict::New));
            dedupe.remember(session.clone(), Sequence(3 * n), outcome(n), Lsn(n));
        }
        let newest = 2 * DEDUPE_COMMANDS_MAX as u64;
        let check = |sequence: u64, expected: Result<Verdict, RejectCode>| {
            assert_eq!(dedupe.check(&session, Sequence(sequence), true).map_err(|r| r.code), expected, "{sequence}");
        };
        check(3 * newest, Ok(Verdict::Repeated(outcome(newest))));
        check(3 * (newest / 2 + 1), Ok(Verdict::Repeated(outcome(newest / 2 + 1))));
        check(3 * newest / 2, Err(RejectCode::SequenceInvalid));
        check(3 * newest - 1, Err(RejectCode::SequenceInvalid));
        check(3 * newest + 1, Ok(Verdict::New));
    }

    #[test]
    fn a_forgotten_session_is_told_so_and_never_served_twice() {
        let mut dedupe = Dedupe::default();
        assert_eq!(dedupe.check(&writer(1), Sequence(1), true), Ok(Verdict::New), "nothing was forgotten yet");
        for n in 0..=DEDUPE_SESSIONS_MAX as u128 {
            dedupe.remember(writer(n), Sequence(1), outcome(1), Lsn(n as u64 + 1));
        }
        let code = |session, retry| dedupe.check(&writer(session), Sequence(1), retry).map_err(|r| r.code);
        assert_eq!(code(0, true), Err(RejectCode::SessionExpired));
        assert_eq!(code(0, false), Ok(Verdict::New));
        assert_eq!(code(1, true), Ok(Verdict::Repeated(outcome(1))));
        let stranger = Writer { tenant: Name::new("other").expect("valid"), session: SessionId(1) };
        assert_eq!(dedupe.check(&stranger, Sequence(1), false), Ok(Verdict::New), "tenants do not see each other");
        assert_eq!((dedupe.windows.len(), dedupe.by_age.len()), (DEDUPE_SESSIONS_MAX, DEDUPE_SESSIONS_MAX));
    }

    #[test]
    fn what_is_remembered_in_all_is_bounded() {
        let (mut dedupe, mut lsn) = (Dedupe::default(), 0);
        for session in 0..=(DEDUPE_OUTCOMES_MAX / DEDUPE_COMMANDS_MAX) as u128 {
            for n in 1..=DEDUPE_COMMANDS_MAX as u64 {
                lsn += 1;
                dedupe.remember(writer(session), Sequence(n), outcome(n), Lsn(lsn));
            }
        }
        assert_eq!(dedupe.outcomes, DEDUPE_OUTCOMES_MAX);
        assert_eq!(dedupe.check(&writer(0), Sequence(1), true).map_err(|r| r.code), Err(RejectCode::SessionExpired));
    }

    #[test]
    fn windows_of_pieces_merge_into_the_window_of_the_whole() {
        let commands: Vec<(u128, u64)> = (1..=3_000).map(|n| (u128::from(n * n % 5), n)).collect();
        let of = |commands: &[(u128, u64)]| {
            let mut dedupe = Dedupe::default();
            for &(session, n) in commands {
                dedupe.remember(writer(session), Sequence(n), outcome(n), Lsn(n));
            }
            dedupe
        };
        for cut in [0, 1, 1_500, 2_999, 3_000] {
            let (older, newer) = commands.split_at(cut);
            let mut merged = of(older);
            merged.merge(of(newer));
            assert_eq!(merged, of(&commands), "cut at {cut}");
        }
    }
}
