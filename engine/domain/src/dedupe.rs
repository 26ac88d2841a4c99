//! Which commands of which sessions a partition has carried out, so that a repeated one is answered and not done again.
//!
//! The window: the last [`DEDUPE_COMMANDS_MAX`] commands of the last [`DEDUPE_SESSIONS_MAX`] sessions of a partition. Past
//! it the answer is `session_expired`, never a silent second execution.

use std::collections::{BTreeMap, VecDeque};

use thalweg_protocol::ids::{Name, Position, Sequence, SessionId};
use thalweg_protocol::limits::{DEDUPE_COMMANDS_MAX, DEDUPE_SESSIONS_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};

/// Whose commands are told apart. Sessions choose their ids themselves and tenants share partitions, so the id alone would
/// let one tenant ask for the outcome of another's writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// Whose session it is.
    pub tenant: Name,
    /// The session.
    pub session: SessionId,
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

#[derive(Debug, Default)]
struct Window {
    last: Sequence,
    recent: VecDeque<(Sequence, Outcome)>,
    /// When it was last written to, counted in writes of the partition.
    touched: u64,
}

/// The commands a partition remembers.
#[derive(Debug, Default)]
pub struct Dedupe {
    windows: BTreeMap<Writer, Window>,
    /// Sessions by when they were last written to, to find the one to forget.
    by_age: BTreeMap<u64, Writer>,
    writes: u64,
    forgotten: u64,
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
            if retry && self.forgotten > 0 {
                let text =
                    format!("write {sequence} of {session} may have been carried out; its session was forgotten");
                return Err(Reject::new(RejectCode::SessionExpired, text));
            }
            return Ok(Verdict::New);
        };
        if sequence > window.last {
            return Ok(Verdict::New);
        }
        match window.recent.binary_search_by_key(&sequence, |(sequence, _)| *sequence) {
            Ok(at) => Ok(Verdict::Repeated(window.recent[at].1)),
            Err(_) => {
                let text = format!(
                    "write {sequence} of {session} comes after {} and is not among the last {DEDUPE_COMMANDS_MAX}",
                    window.last
                );
                Err(Reject::new(RejectCode::SequenceInvalid, text))
            }
        }
    }

    /// Remembers a command that [`check`](Self::check) found to be new.
    pub fn remember(&mut self, writer: Writer, sequence: Sequence, outcome: Outcome) {
        self.writes += 1;
        let window = self.windows.entry(writer.clone()).or_default();
        self.by_age.remove(&window.touched);
        window.touched = self.writes;
        self.by_age.insert(self.writes, writer);
        window.last = sequence;
        if window.recent.len() == DEDUPE_COMMANDS_MAX {
            window.recent.pop_front();
        }
        window.recent.push_back((sequence, outcome));
        if self.windows.len() > DEDUPE_SESSIONS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.windows.remove(&oldest);
            self.forgotten += 1;
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
            dedupe.remember(session.clone(), Sequence(3 * n), outcome(n));
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
            dedupe.remember(writer(n), Sequence(1), outcome(1));
        }
        let code = |session, retry| dedupe.check(&writer(session), Sequence(1), retry).map_err(|r| r.code);
        assert_eq!(code(0, true), Err(RejectCode::SessionExpired));
        assert_eq!(code(0, false), Ok(Verdict::New));
        assert_eq!(code(1, true), Ok(Verdict::Repeated(outcome(1))));
        let stranger = Writer { tenant: Name::new("other").expect("valid"), session: SessionId(1) };
        assert_eq!(dedupe.check(&stranger, Sequence(1), false), Ok(Verdict::New), "tenants do not see each other");
        assert_eq!((dedupe.windows.len(), dedupe.by_age.len()), (DEDUPE_SESSIONS_MAX, DEDUPE_SESSIONS_MAX));
    }
}
