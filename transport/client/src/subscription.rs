//! Reading a channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use thalweg_protocol::chat::Context;
use thalweg_protocol::ids::{GenerationId, Name, Position};
use thalweg_protocol::op::{Delivery, DeliveryKind, From, Policy};
use tokio::sync::mpsc;

use crate::client::Handle;
use crate::entries::Failure;
use crate::error::ClientError;

/// How a channel is read.
#[derive(Debug, Clone, Copy)]
pub struct SubscribeOptions {
    /// Where to begin.
    pub from: From,
    /// What becomes of a reader that falls behind.
    pub policy: Policy,
    /// Messages the node may send ahead of what was taken, which bounds the queue here too; 0 for the default.
    pub lead: u32,
    /// Make the channel if there is none.
    pub make: bool,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { from: From::End, policy: Policy::Replay, lead: 0, make: true }
    }
}

/// A message somebody published, or the whole answer of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it stands in the channel.
    pub position: Position,
    /// When the channel's owner accepted it: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// Who wrote it; for models `ai/` and the model's name.
    pub user: Name,
    /// The generation it is the answer of, if a model wrote it.
    pub generation: Option<GenerationId>,
    /// What was written; not necessarily text.
    pub body: Bytes,
    /// 0: the body is plain.
    pub key: u32,
    /// What it answers, whom it mentions, whether its text was taken back.
    pub context: Context,
}

/// What happens in a channel, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A message.
    Message(Message),
    /// A piece of a model's answer, as it is produced; the whole follows as a message.
    Tokens {
        /// Where the piece stands in the channel.
        position: Position,
        /// The answer it belongs to.
        generation: GenerationId,
        /// `ai/` and the model's name.
        user: Name,
        /// UTF-8, whole characters.
        text: Bytes,
    },
    /// A model began to answer.
    GenerationStarted {
        /// Where this stands in the channel.
        position: Position,
        /// The answer that begins.
        generation: GenerationId,
        /// `ai/` and the model's name.
        user: Name,
    },
    /// A model's answer ended without a message: it was cancelled, refused, or failed.
    GenerationEnded {
        /// Where this stands in the channel.
        position: Position,
        /// The answer that ended.
        generation: GenerationId,
        /// `ai/` and the model's name.
        user: Name,
        /// Why, for people.
        reason: String,
    },
    /// Something became of an earlier message, of somebody's membership, or of the channel: an edit, a redaction, a
    /// reaction or its end, a role, a topic.
    Change {
        /// What.
        kind: DeliveryKind,
        /// Who did it, when, to which message, and with what: the new text, the emoji, the user, the topic.
        change: Message,
    },
    /// These positions will not come: they are kept no longer, or the reader was too slow and its policy skips.
    Missed {
        /// The first that is missing.
        from: Position,
        /// The last that is missing.
        to: Position,
    },
    /// The node came back with less than it had: positions after `to` are given out anew.
    Rewound {
        /// The last position that is still what it was.
        to: Position,
    },
}

impl Item {
    pub(crate) fn of(delivery: Delivery) -> Self {
        let Delivery { position, timestamp_us, kind, user, generation, body, key, context } = delivery;
        let id = generation.unwrap_or_default();
        match kind {
            DeliveryKind::Message => {
                Self::Message(Message { position, timestamp_us, user, generation, body, key, context })
            }
            DeliveryKind::Edit
            | DeliveryKind::Redaction
            | DeliveryKind::Reaction
            | DeliveryKind::Unreaction
            | DeliveryKind::Membership
            | DeliveryKind::Info => {
                let change = Message { position, timestamp_us, user, generation, body, key, context };
                Self::Change { kind, change }
            }
            DeliveryKind::Tokens => Self::Tokens { position, generation: id, user, text: body },
            DeliveryKind::GenerationStarted => Self::GenerationStarted { position, generation: id, user },
            DeliveryKind::GenerationEnded => {
                let reason = String::from_utf8_lossy(&body).into_owned();
                Self::GenerationEnded { position, generation: id, user, reason }
            }
        }
    }

    /// Where a reader that took this item stands.
    fn cursor(&self) -> u64 {
        match self {
            Self::Message(Message { position, .. })
            | Self::Change { change: Message { position, .. }, .. }
            | Self::Tokens { position, .. }
            | Self::GenerationStarted { position, .. }
            | Self::GenerationEnded { position, .. } => position.0,
            Self::Missed { to, .. } | Self::Rewound { to } => to.0,
        }
    }
}

/// A channel that is being read. Taking items is what lets the node send more; dropping it ends the reading.
///
/// Over a lost connection it goes on after the last item that was taken, without gaps or repetitions.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) handle: Handle,
    pub(crate) key: u64,
    pub(crate) channel: Name,
    pub(crate) next: Position,
    pub(crate) head: Position,
    pub(crate) queue: mpsc::Receiver<Item>,
    pub(crate) cursor: Arc<AtomicU64>,
    pub(crate) failure: Failure,
    /// Items taken since the node was told.
    pub(crate) unreported: u32,
    /// The node is told after so many: a quarter of the lead, so that it never has to wait for a report.
    pub(crate) report_every: u32,
}

impl Subscription {
    /// The channel that is read.
    pub fn channel(&self) -> &Name {
        &self.channel
    }

    /// The position reading began at.
    pub fn first(&self) -> Position {
        self.next
    }

    /// The newest position of the channel when reading began; 0 if it was empty.
    pub fn head(&self) -> Position {
        self.head
    }

    /// The next item, in the channel's order. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Ended`] if the node ended the subscription, for instance because the reader was too slow;
    /// [`ClientError::Lost`] if the connection did not come back in time. Items that arrived before come first. After an
    /// error, and after the client was closed, it gives `None`.
    pub async fn next(&mut self) -> Result<Option<Item>, ClientError> {
        match self.queue.recv().await {
            Some(item) => Ok(Some(self.take(item))),
            None => self.end(),
        }
    }

    /// The next item if it is here already.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<Item>, ClientError> {
        match self.queue.try_recv() {
            Ok(item) => Ok(Some(self.take(item))),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => self.end(),
        }
    }

    fn take(&mut self, item: Item) -> Item {
        let position = item.cursor();
        self.cursor.store(position, Ordering::Relaxed);
        self.unreported += 1;
        if self.unreported >= self.report_every {
            self.unreported = 0;
            self.handle.with(|state| state.consumed(self.key, position));
        }
        item
    }

    fn end(&mut self) -> Result<Option<Item>, ClientError> {
        match std::mem::take(&mut self.failure).get() {
            None | Some(ClientError::Closed) => Ok(None),
            Some(error) => Err(error.clone()),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.handle.with(|state| state.unsubscribe(self.key));
    }
}
