//! The state of an editor that knows no Yjs: a text, edits that the node has not answered, and how those of others go in
//! between. No I/O.

use thalweg_protocol::document::{Operation, Operations, Side, utf16_len};
use thalweg_protocol::ids::Position;
use thalweg_protocol::limits::OPERATIONS_MAX;
use thalweg_protocol::reject::Reject;

use super::replica::chunks;

/// Bytes of text in one write.
const WRITE_BYTES: usize = 64 << 10;

/// A text that is edited by positional operations, one write at a time.
///
/// [`edit`](Self::edit) changes it at once; [`outgoing`](Self::outgoing) gives what is to be sent next;
/// [`accepted`](Self::accepted) is to be called when the node told that it was, [`remote`](Self::remote) when it told what
/// others did. Ties are settled as the node settles them: what was accepted earlier stands first.
#[derive(Debug, Clone, Default)]
pub struct Positional {
    /// The text as the node has it at `revision`.
    base: String,
    revision: Position,
    /// Sent, and not known to be accepted; made on `base`.
    in_flight: Option<Operations>,
    /// Made on the text after `in_flight`.
    buffer: Operations,
    text: String,
}

impl Positional {
    /// A text as the node has it.
    pub fn new(revision: Position, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { base: text.clone(), revision, in_flight: None, buffer: Operations::new(), text }
    }

    /// The text, with own edits.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The newest revision that is known.
    pub fn revision(&self) -> Position {
        self.revision
    }

    /// Whether something is not known to be accepted.
    pub fn is_waiting(&self) -> bool {
        self.in_flight.is_some() || !self.buffer.is_empty()
    }

    /// Edits the text.
    ///
    /// # Errors
    /// `operations_invalid` if they reach beyond it, or cut a character in two.
    pub fn edit(&mut self, operations: &Operations) -> Result<(), Reject> {
        self.text = operations.apply(&self.text)?;
        self.buffer = self.buffer.compose(operations);
        Ok(())
    }

    /// What is to be sent now, and at which revision it was made; `None` while something is unanswered, or there is nothing.
    pub fn outgoing(&mut self) -> Option<(Position, Operations)> {
        if self.in_flight.is_some() || self.buffer.is_empty() {
            return None;
        }
        let (first, rest) = split(&self.buffer);
        self.buffer = rest;
        self.in_flight = Some(first.clone());
        Some((self.revision, first))
    }

    /// What was sent is this revision. Nothing that others did before it may be missing.
    pub fn accepted(&mut self, revision: Position) {
        if let Some(sent) = self.in_flight.take()
            && let Ok(base) = sent.apply(&self.base)
        {
            self.base = base;
        }
        self.revision = self.revision.max(revision);
    }

    /// Others did this, which leads to `revision`. Gives what it does to the text here.
    ///
    /// # Errors
    /// `operations_invalid` if it does not fit the text: something is missing.
    pub fn remote(&mut self, revision: Position, operations: &Operations) -> Result<Operations, Reject> {
        let base = operations.apply(&self.base)?;
        let mut theirs = operations.clone();
        let mut in_flight = None;
        if let Some(sent) = &self.in_flight {
            in_flight = Some(sent.transform(&theirs, Side::Second));
            theirs = theirs.transform(sent, Side::First);
        }
        let buffer = self.buffer.transform(&theirs, Side::Second);
        let here = theirs.transform(&self.buffer, Side::First);
        let text = here.apply(&self.text)?;
        *self = Self { base, revision, in_flight, buffer, text };
        Ok(here)
    }

    /// The node has this text at `revision`, and what led there is not known. `accepted`: what was sent is in it. Gives what
    /// that does to the text here.
    ///
    /// # Errors
    /// Never for a text that the node has.
    pub fn reset(&mut self, revision: Position, text: &str, accepted: bool) -> Result<Operations, Reject> {
        if accepted {
            self.accepted(revision);
        }
        let operations = Operations::between(&self.base, text);
        self.remote(revision, &operations)
    }

    /// What was sent was not accepted and has to be sent again, as it is now.
    pub fn again(&mut self) {
        if let Some(sent) = self.in_flight.take() {
            self.buffer = sent.compose(&self.buffer);
        }
    }

    /// Gives up what was not accepted. Gives what that does to the text here.
    pub fn give_up(&mut self) -> Operations {
        let here = Operations::between(&self.text, &self.base);
        *self = Self::new(self.revision, std::mem::take(&mut self.base));
        here
    }
}

/// Cuts an edit into one that fits into a write, and what is to be done after it.
fn split(operations: &Operations) -> (Operations, Operations) {
    let mut room = WRITE_BYTES;
    let mut first: Vec<Operation> = Vec::new();
    let mut rest: Vec<Operation> = Vec::new();
    // How long the text of `first` is, up to where `rest` begins.
    let mut produced = 0;
    for (at, part) in operations.parts().iter().enumerate() {
        if !rest.is_empty() || at + 2 > OPERATIONS_MAX {
            rest.push(part.clone());
            continue;
        }
        match part {
            Operation::Insert(text) if text.len() > room => {
                // A piece of no length would never end.
                let now = chunks(text, room.max(4)).next().unwrap_or_default();
                first.push(Operation::Insert(now.to_owned()));
                produced += utf16_len(now);
                rest.push(Operation::Insert(text[now.len()..].to_owned()));
            }
            part => {
                match part {
                    Operation::Insert(text) => {
                        room -= text.len();
                        produced += utf16_len(text);
                    }
                    Operation::Retain(length) => produced += length,
                    Operation::Delete(_) => {}
                }
                first.push(part.clone());
            }
        }
    }
    let rest = Operations::of(std::iter::once(Operation::Retain(produced)).chain(rest));
    (Operations::of(first), rest)
}
