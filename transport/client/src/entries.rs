//! What is under way, one entry each: it stays until it is answered, however many connections that takes.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use thalweg_protocol::generation::AskRequest;
use thalweg_protocol::ids::{GenerationId, Position};
use thalweg_protocol::op::{ClientOp, Publish, ServerOp, Subscribe};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use crate::error::ClientError;
use crate::generation::Event;
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
    pub(crate) reply: Reply<Published>,
    /// A place among the unanswered requests, and room for the body; given back when this is dropped.
    pub(crate) _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

pub(crate) struct PendingCall {
    pub(crate) op: ClientOp,
    pub(crate) repeat: Repeat,
    pub(crate) reply: Reply<ServerOp>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// Why a subscription or generation gives nothing more, for its reader to find when its queue is empty.
pub(crate) type Failure = Arc<OnceLock<ClientError>>;

pub(crate) struct SubscriptionEntry {
    /// What is asked for on the first connection; later ones ask from the cursor on.
    pub(crate) subscribe: Subscribe,
    /// The last position the application took.
    pub(crate) cursor: Arc<AtomicU64>,
    pub(crate) queue: mpsc::Sender<Item>,
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
        cursor: Arc<AtomicU64>,
        queue: mpsc::Sender<Item>,
        failure: Failure,
        first: Reply<(Position, Position)>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let (first, permit, confirm) = (Some(first), Some(permit), Arc::default());
        let (started, seen, wire, asked_from, confirmed) = (false, 0, None, Position(0), false);
        Self { subscribe, cursor, queue, failure, first, permit, started, seen, wire, asked_from, confirmed, confirm }
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

pub(crate) struct WatchEntry {
    /// The question; forgotten once the node gave it an id.
    pub(crate) ask: Option<Box<AskRequest>>,
    pub(crate) generation: Option<GenerationId>,
    pub(crate) lead: u32,
    /// Index of the first token that was not put in the queue.
    pub(crate) next: u32,
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
