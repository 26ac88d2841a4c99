//! What is under way, one entry each: it stays until it is answered, however many connections that takes.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use thalweg_protocol::generation::{AskRequest, TextHash};
use thalweg_protocol::ids::{Epoch, GenerationId, Position};
use thalweg_protocol::op::{ClientOp, Publish, ServerOp, Subscribe};
use thalweg_protocol::trace::TraceContext;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use crate::error::ClientError;
use crate::generation::Event;
use crate::people::News;
use crate::publish::Published;
use crate::subscription::Item;

/// The answer somebody waits for.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// What becomes of a call whose connection was lost before the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It is made again: doing it twice changes nothing.
    Again,
    /// It fails: doing it twice could hurt.
    Never,
}

pub(crate) struct PendingPublish {
    pub(crate) publish: Publish,
    /// The trace it is part of.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) reply: Reply<Published>,
    /// A place among the unanswered requests, and room for the body; given back when this is dropped.
    pub(crate) _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

pub(crate) struct PendingCall {
    pub(crate) op: ClientOp,
    /// The trace it is part of.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) repeat: Repeat,
    /// It was sent over a connection that was lost before the answer, and may have been carried out.
    pub(crate) retried: bool,
    pub(crate) reply: Reply<ServerOp>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// Why a subscription or generation gives nothing more, for its reader to find when its queue is empty.
pub(crate) type Failure = Arc<OnceLock<ClientError>>;

pub(crate) struct SubscriptionEntry {
    /// What is asked for on the first connection; later ones ask from the cursor on.
    pub(crate) subscribe: Subscribe,
    /// The trace that asking for the first time is part of.
    pub(crate) trace: Option<TraceContext>,
    /// The last position the application took.
    pub(crate) cursor: Arc<AtomicU64>,
    pub(crate) queue: mpsc::Sender<Item>,
    /// What comes beside the queue.
    pub(crate) news: Arc<News>,
    /// When it was last told that the user writes here.
    pub(crate) typed: Option<Instant>,
    pub(crate) failure: Failure,
    pub(crate) first: Option<Reply<(Position, Position)>>,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    /// Whether the cursor means something.
    pub(crate) started: bool,
    /// Highest position that was put in the queue, or skipped.
    pub(crate) seen: u64,
    /// Its number on this connection.
    pub(crate) wire: Option<u32>,
    /// The position that was asked for on this connection, if it was resumed.
    pub(crate) asked_from: Position,
    /// Whether it was answered on this connection.
    pub(crate) confirmed: bool,
    pub(crate) confirm: Arc<Notify>,
}

impl SubscriptionEntry {
    pub(crate) fn new(
        subscribe: Subscribe,
        trace: Option<TraceContext>,
        queue: mpsc::Sender<Item>,
        first: Reply<(Position, Position)>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            subscribe,
            trace,
            cursor: Arc::default(),
            queue,
            news: Arc::default(),
            typed: None,
            failure: Failure::default(),
            first: Some(first),
            permit: Some(permit),
            started: false,
            seen: 0,
            wire: None,
            asked_from: Position(0),
            confirmed: false,
            confirm: Arc::default(),
        }
    }

    /// Tells the reader that nothing more comes, after what is in its queue.
    pub(crate) fn end(self, error: ClientError) {
        let _ = self.failure.set(error.clone());
        if let Some(first) = self.first {
            let _ = first.send(Err(error));
        }
        self.confirm.notify_one();
    }
}

/// How much of a generation a reader has, so that it can say so to another life of the node.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Index of the first token that was not put in the queue.
    next: u32,
    /// The life of the node in which the tokens before `next` came; 0 if it is not known.
    epoch: Epoch,
    /// Over the text of the tokens before `next`, if it is known.
    hash: Option<TextHash>,
    /// What `next` and `hash` were before each piece: at most as many as a generation has tokens.
    marks: Vec<(u32, Option<TextHash>)>,
}

impl Seen {
    /// Of somebody who has the tokens before `from`, and perhaps still knows their text.
    pub(crate) fn new(from: u32, text: Option<&str>) -> Self {
        let text = if from == 0 { Some("") } else { text };
        let hash = text.map(|text| {
            let mut hash = TextHash::default();
            hash.update(text.as_bytes());
            hash
        });
        Self { next: from, epoch: Epoch(0), hash, marks: Vec::new() }
    }

    /// Index of the first token that was not put in the queue.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// The life of the node in which the tokens came; 0 if it is not known.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The fingerprint of their text, if it is known.
    pub(crate) fn fingerprint(&self) -> Option<u64> {
        self.hash.map(TextHash::value)
    }

    /// Takes in the tokens before `end`, which came in this life of the node.
    pub(crate) fn grow(&mut self, end: u32, text: &[u8], epoch: Epoch) {
        self.marks.push((self.next, self.hash));
        (self.next, self.epoch) = (end, epoch);
        if let Some(hash) = &mut self.hash {
            hash.update(text);
        }
    }

    /// Forgets the tokens from `to` on. Gives where that leaves us: pieces are forgotten whole, so it may lie before `to`.
    pub(crate) fn rewind(&mut self, to: u32, epoch: Epoch) -> u32 {
        self.epoch = epoch;
        while self.next > to
            && let Some(mark) = self.marks.pop()
        {
            (self.next, self.hash) = mark;
        }
        if self.next > to {
            // Before where reading began: nothing is known of that text, but that it is empty at the very start.
            *self = Self { epoch, ..Self::new(to, None) };
        }
        self.next
    }
}

pub(crate) struct WatchEntry {
    /// The question; forgotten once the node gave it an id.
    pub(crate) ask: Option<Box<AskRequest>>,
    pub(crate) generation: Option<GenerationId>,
    /// The trace that asking is part of.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) lead: u32,
    pub(crate) seen: Seen,
    pub(crate) queue: mpsc::Sender<Event>,
    pub(crate) failure: Failure,
    pub(crate) first: Option<Reply<(GenerationId, String)>>,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    pub(crate) wire: Option<u32>,
}

impl WatchEntry {
    /// Tells the reader that nothing more comes, after what is in its queue.
    pub(crate) fn end(self, error: ClientError) {
        let _ = self.failure.set(error.clone());
        if let Some(first) = self.first {
            let _ = first.send(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_knows_what_it_has() {
        /// Reading begins at the token, with or without the text before it; then the pieces come, and the cut.
        fn check(begin: (u32, Option<&str>), pieces: &[(u32, &str)], to: u32, expected: (u32, Option<&str>)) {
            let mut seen = Seen::new(begin.0, begin.1);
            assert_eq!(seen.epoch(), Epoch(0));
            for &(end, text) in pieces {
                seen.grow(end, text.as_bytes(), Epoch(1));
            }
            assert_eq!(seen.rewind(to, Epoch(2)), expected.0);
            let hash = expected.1.map(|text| TextHash::of(text.as_bytes()));
            assert_eq!(
                (seen.next(), seen.epoch(), seen.fingerprint()),
                (expected.0, Epoch(2), hash),
                "{pieces:?} {to}"
            );
        }
        check((0, None), &[], 0, (0, Some("")));
        check((0, None), &[(1, "a"), (2, "b")], 2, (2, Some("ab")));
        check((0, None), &[(1, "a"), (2, "b")], 1, (1, Some("a")));
        check((0, None), &[(1, "a"), (4, "bcd"), (5, "e")], 3, (1, Some("a")));
        check((0, None), &[(1, "a")], 0, (0, Some("")));
        check((3, Some("abc")), &[(4, "d")], 4, (4, Some("abcd")));
        check((3, Some("abc")), &[(4, "d")], 3, (3, Some("abc")));
        check((3, None), &[(4, "d")], 4, (4, None));
        check((3, Some("abc")), &[(4, "d")], 2, (2, None));
        check((3, None), &[(4, "d")], 0, (0, Some("")));
    }
}
