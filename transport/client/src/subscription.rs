//! Reading a channel.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use thalweg_protocol::chat::{Context, MemberRole, Presence};
use thalweg_protocol::ids::{GenerationId, Name, Position};
use thalweg_protocol::op::{Delivery, DeliveryKind, From, Policy};
use tokio::sync::mpsc;

use crate::client::Handle;
use crate::entries::Failure;
use crate::error::ClientError;
use crate::people::News;

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
    /// Be seen in the channel, and be told who is there ([`Item::Presence`]) and who writes ([`Item::Typing`]).
    pub presence: bool,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { from: From::End, policy: Policy::Replay, lead: 0, make: true, presence: false }
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

impl Message {
    /// The message that this one answers.
    pub fn reply_to(&self) -> Option<Position> {
        Some(self.context.target).filter(|target| target.0 != 0)
    }

    /// Whether its text was taken back; the body is empty then.
    pub fn is_redacted(&self) -> bool {
        self.context.redacted
    }

    /// Whether it mentions this user.
    pub fn mentions(&self, user: &Name) -> bool {
        self.context.mentions.contains(user)
    }

    /// How many messages were written in the channel with this one.
    pub fn number(&self) -> u64 {
        self.context.number
    }

    /// What was written, with what is not UTF-8 replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// Something became of an earlier message, of somebody's membership, or of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where this stands in the channel.
    pub position: Position,
    /// When the channel's owner accepted it: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// Who did it.
    pub user: Name,
    /// How many messages had been written in the channel.
    pub number: u64,
    /// What.
    pub kind: ChangeKind,
}

/// What became of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// A message has another text.
    Edited {
        /// Which message.
        target: Position,
        /// The text; empty if it was taken back since.
        body: Bytes,
        /// Whom the new text mentions.
        mentions: Vec<Name>,
        /// Whether the text was taken back since.
        redacted: bool,
    },
    /// A message's text was taken back.
    Redacted {
        /// Which message.
        target: Position,
    },
    /// Somebody reacted to a message.
    Reacted {
        /// Which message.
        target: Position,
        /// With this. What is not UTF-8 was replaced.
        emoji: String,
    },
    /// Somebody took a reaction back.
    Unreacted {
        /// Which message.
        target: Position,
        /// This one.
        emoji: String,
    },
    /// Somebody has another role.
    Member {
        /// Whose.
        user: Name,
        /// Which; `None` if they left or were removed.
        role: Option<MemberRole>,
    },
    /// The channel is used in another way.
    Info {
        /// Its topic.
        topic: String,
    },
}

impl Change {
    /// The message it is about.
    pub fn target(&self) -> Option<Position> {
        match self.kind {
            ChangeKind::Edited { target, .. }
            | ChangeKind::Redacted { target }
            | ChangeKind::Reacted { target, .. }
            | ChangeKind::Unreacted { target, .. } => Some(target),
            ChangeKind::Member { .. } | ChangeKind::Info { .. } => None,
        }
    }
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
    /// Something became of an earlier message, of somebody's membership, or of the channel.
    Change(Change),
    /// Who is there, or who came and went. Has no place in the channel's order and costs no credit. An application that does
    /// not take it gets the newest picture when it does ([`People`](crate::People) keeps it).
    Presence(Presence),
    /// Somebody writes, or stopped to. Who says nothing more for [`TYPING_MS`](thalweg_protocol::limits::TYPING_MS)
    /// stopped.
    Typing {
        /// Who.
        user: Name,
        /// Whether.
        on: bool,
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
    /// What a delivery says.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] for a change that names nobody.
    pub(crate) fn of(delivery: Delivery) -> Result<Self, ClientError> {
        let Delivery { position, timestamp_us, kind, user, generation, body, key, context } = delivery;
        let id = generation.unwrap_or_default();
        let text = |body: &Bytes| String::from_utf8_lossy(body).into_owned();
        let target = context.target;
        let change = match kind {
            DeliveryKind::Message => {
                return Ok(Self::Message(Message { position, timestamp_us, user, generation, body, key, context }));
            }
            DeliveryKind::Tokens => return Ok(Self::Tokens { position, generation: id, user, text: body }),
            DeliveryKind::GenerationStarted => return Ok(Self::GenerationStarted { position, generation: id, user }),
            DeliveryKind::GenerationEnded => {
                return Ok(Self::GenerationEnded { position, generation: id, user, reason: text(&body) });
            }
            DeliveryKind::Edit => {
                ChangeKind::Edited { target, body, mentions: context.mentions, redacted: context.redacted }
            }
            DeliveryKind::Redaction => ChangeKind::Redacted { target },
            DeliveryKind::Reaction => ChangeKind::Reacted { target, emoji: text(&body) },
            DeliveryKind::Unreaction => ChangeKind::Unreacted { target, emoji: text(&body) },
            DeliveryKind::Membership => {
                let whose = std::str::from_utf8(&body).ok().and_then(|text| Name::new(text).ok());
                let error = || ClientError::Protocol(format!("the change of a role at {position} names nobody"));
                ChangeKind::Member { user: whose.ok_or_else(error)?, role: context.role }
            }
            DeliveryKind::Info => ChangeKind::Info { topic: text(&body) },
            DeliveryKind::Update | DeliveryKind::Snapshot | DeliveryKind::Version => {
                return Err(ClientError::Protocol(format!("{position} is of a document, which is opened to be read")));
            }
        };
        Ok(Self::Change(Change { position, timestamp_us, user, number: context.number, kind: change }))
    }

    /// Where a reader that took this item stands; `None` for what has no place in the channel.
    fn cursor(&self) -> Option<u64> {
        match self {
            Self::Message(Message { position, .. })
            | Self::Change(Change { position, .. })
            | Self::Tokens { position, .. }
            | Self::GenerationStarted { position, .. }
            | Self::GenerationEnded { position, .. } => Some(position.0),
            Self::Missed { to, .. } | Self::Rewound { to } => Some(to.0),
            Self::Presence(_) | Self::Typing { .. } => None,
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
    /// What comes beside the queue.
    pub(crate) news: Arc<News>,
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
        loop {
            if let Some(item) = self.news.take() {
                return Ok(Some(item));
            }
            tokio::select! {
                item = self.queue.recv() => match item {
                    Some(item) => return Ok(Some(self.take(item))),
                    None => return self.end(),
                },
                () = self.news.arrived() => {}
            }
        }
    }

    /// The next item if it is here already.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<Item>, ClientError> {
        if let Some(item) = self.news.take() {
            return Ok(Some(item));
        }
        match self.queue.try_recv() {
            Ok(item) => Ok(Some(self.take(item))),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => self.end(),
        }
    }

    fn take(&mut self, item: Item) -> Item {
        let Some(position) = item.cursor() else { return item };
        self.cursor.store(position, Ordering::Relaxed);
        self.unreported += 1;
        if self.unreported >= self.report_every {
            self.unreported = 0;
            self.handle.with(|state| state.consumed(self.key, position));
        }
        item
    }

    /// Tells those who are in the channel that the session's user writes, or stopped to. Only who takes part in presence is
    /// told, and can tell. May be lost, and is dropped if it is said too often.
    pub fn typing(&self, on: bool) {
        self.handle.with(|state| state.typing(self.key, on));
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
