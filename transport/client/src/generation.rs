//! Reading a model's answer.

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, TokenDetail, Usage};
use thalweg_protocol::ids::GenerationId;
use tokio::sync::mpsc;

use crate::client::Handle;
use crate::entries::Failure;
use crate::error::ClientError;

/// What comes on a generation's lane.
#[derive(Debug)]
pub(crate) enum Event {
    Tokens { index: u32, count: u32, text: Bytes, details: Vec<TokenDetail> },
    Rewound { to: u32 },
    Finished { reason: FinishReason, usage: Usage, message: String },
}

/// Some tokens of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The index of the first token, from 0.
    pub index: u32,
    /// How many tokens: one, but when the node is busy.
    pub count: u32,
    /// Their text; empty while a character's last token has not come.
    pub text: String,
    /// How likely they were, if [`logprobs`](crate::Sampling::logprobs) were asked for; none for tokens that came while
    /// nobody read along.
    pub details: Vec<TokenDetail>,
}

/// The next thing to know about an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// It grew.
    Piece(Piece),
    /// A node that came back had less of it than was read here: the tokens before `to` stand, the others are dropped. They
    /// come again from `to` on, perhaps with another text. `to` is where a piece that was read began or ended; it lies before
    /// the first piece only if reading began in the middle.
    Rewound {
        /// Index of the first token that is dropped.
        to: u32,
    },
}

/// The text of an answer as it is read: it grows with every piece, and is cut where the answer is rewound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text {
    first: u32,
    text: String,
    /// After each piece: index of the next token, and length of the text.
    ends: Vec<(u32, usize)>,
}

impl Text {
    /// An empty text that begins with token `first`.
    pub fn starting_at(first: u32) -> Self {
        Self { first, ..Self::default() }
    }

    /// Takes the next part in.
    pub fn take(&mut self, part: &Part) {
        match part {
            Part::Piece(piece) => {
                self.text.push_str(&piece.text);
                self.ends.push((piece.index.saturating_add(piece.count), self.text.len()));
            }
            Part::Rewound { to } => {
                self.ends.truncate(self.ends.partition_point(|&(next, _)| next <= *to));
                self.text.truncate(self.ends.last().map_or(0, |&(_, bytes)| bytes));
                self.first = self.first.min(*to);
            }
        }
    }

    /// Index of the token that it begins with: where it was said to begin, unless the answer was rewound to before that.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Index of the token that would be read next.
    pub fn next(&self) -> u32 {
        self.ends.last().map_or(self.first, |&(next, _)| next)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text.
    pub fn into_string(self) -> String {
        self.text
    }
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
    /// What failed, if it failed.
    pub message: String,
}

/// A model's answer that is being read. Taking pieces is what lets the model go on; dropping it ends the reading, and with
/// the last reader the generation, unless it was asked to be kept.
///
/// Over a lost connection it goes on after the last token that came, without gaps or repetitions; over a restart of the node
/// too, or it says what is to be dropped ([`Part::Rewound`]).
#[derive(Debug)]
pub struct Generation {
    pub(crate) handle: Handle,
    pub(crate) key: u64,
    pub(crate) id: GenerationId,
    pub(crate) model: String,
    /// Index of the first token that was asked for.
    pub(crate) first: u32,
    pub(crate) queue: mpsc::Receiver<Event>,
    pub(crate) failure: Failure,
    pub(crate) finished: Option<Finished>,
    /// Tokens taken since the node was told, and after how many it is told.
    pub(crate) unreported: u32,
    pub(crate) report_every: u32,
}

impl Generation {
    /// Its id, with which it can be [watched](crate::Client::watch) from anywhere and [cancelled](crate::Client::cancel).
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// The model that answers.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The next part; `None` once the answer is [finished](Self::finished). Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Ended`] if the node ended the reading; [`ClientError::Refused`] if the answer could not be resumed after
    /// a restart of the node; [`ClientError::Lost`] if the connection did not come back in time.
    pub async fn next(&mut self) -> Result<Option<Part>, ClientError> {
        if self.finished.is_some() {
            return Ok(None);
        }
        match self.queue.recv().await {
            Some(Event::Tokens { index, count, text, details }) => {
                self.unreported = self.unreported.saturating_add(count);
                if self.unreported >= self.report_every {
                    self.unreported = 0;
                    self.handle.with(|state| state.tokens_consumed(self.key, index.saturating_add(count)));
                }
                let text = String::from_utf8_lossy(&text).into_owned();
                Ok(Some(Part::Piece(Piece { index, count, text, details })))
            }
            Some(Event::Rewound { to }) => Ok(Some(Part::Rewound { to })),
            Some(Event::Finished { reason, usage, message }) => {
                self.finished = Some(Finished { reason, usage, message });
                Ok(None)
            }
            None => Err(self.failure.get().cloned().unwrap_or(ClientError::Closed)),
        }
    }

    /// How it ended, once [`next`](Self::next) gave `None`.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// Reads the rest of the answer, and how it ended. The text is that of the tokens from the one that was asked for on,
    /// or from an earlier one if the answer was rewound to before it ([`Text::first`]).
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn finish(mut self) -> Result<(Text, Finished), ClientError> {
        let mut text = Text::starting_at(self.first);
        while let Some(part) = self.next().await? {
            text.take(&part);
        }
        let finished = self.finished.take().expect("next() gives None only when it is finished");
        Ok((text, finished))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.handle.with(|state| state.unwatch(self.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_grows_and_is_cut() {
        let piece =
            |index, count, text: &str| Part::Piece(Piece { index, count, text: text.into(), details: Vec::new() });
        let check = |first: u32, parts: &[Part], expected: (u32, u32, &str)| {
            let mut text = Text::starting_at(first);
            parts.iter().for_each(|part| text.take(part));
            assert_eq!((text.first(), text.next(), text.as_str()), expected, "{parts:?}");
        };
        check(0, &[], (0, 0, ""));
        check(0, &[piece(0, 1, "He"), piece(1, 2, "llo")], (0, 3, "Hello"));
        check(0, &[piece(0, 1, "He"), piece(1, 2, "llo"), Part::Rewound { to: 1 }], (0, 1, "He"));
        check(0, &[piece(0, 1, "He"), Part::Rewound { to: 1 }, piece(1, 1, "y")], (0, 2, "Hey"));
        check(0, &[piece(0, 1, "He"), Part::Rewound { to: 0 }, piece(0, 1, "Yo")], (0, 1, "Yo"));
        check(5, &[piece(5, 1, "a"), Part::Rewound { to: 3 }, piece(3, 1, "b")], (3, 4, "b"));
    }
}
