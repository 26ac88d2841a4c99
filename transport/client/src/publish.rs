//! Writing: messages, and what becomes of them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::ids::{Name, Position, Sequence};
use thalweg_protocol::limits::{BODY_BYTES_MAX, DOCUMENT_UPDATE_BYTES_MAX, REACTION_BYTES_MAX, VERSION_BYTES_MAX};
use thalweg_protocol::op::Publish;
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::sync::oneshot;

use crate::client::{AsName, Client};
use crate::entries::PendingPublish;
use crate::error::ClientError;

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PostOptions {
    /// The message it answers.
    pub reply_to: Option<Position>,
}

/// What the node says of a message it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Where the message stands in its channel.
    pub position: Position,
    /// When the channel's owner accepted it: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// It had been written before its connection was lost, and was recognised when it was sent again.
    pub duplicate: bool,
}

/// The answer to one write, when it comes. Dropping it does not take the write back.
///
/// # Errors
/// [`ClientError::Refused`] if the node said no; [`ClientError::Lost`] if the connection did not come back in time, and
/// [`ClientError::SessionExpired`] if it came back so late that the node had forgotten this session (the message may or may not
/// have been written).
#[derive(Debug)]
#[must_use = "the message is known to be written once this resolves"]
pub struct Ack {
    /// The number of the write within its session.
    pub(crate) sequence: Sequence,
    pub(crate) reply: oneshot::Receiver<Result<Published, ClientError>>,
}

impl Future for Ack {
    type Output = Result<Published, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.reply).poll(context).map(|reply| reply.unwrap_or(Err(ClientError::Closed)))
    }
}

impl Client {
    /// Writes a message and waits until the node has it.
    ///
    /// # Errors
    /// See [`Ack`].
    pub async fn publish(&self, channel: impl AsName, body: impl Into<Bytes>) -> Result<Published, ClientError> {
        self.publish_with(channel, body, PostOptions::default()).await
    }

    /// Writes a message that answers another one, and waits until the node has it.
    ///
    /// # Errors
    /// See [`Ack`]; [`RejectCode::MessageUnknown`] if there is no such message.
    pub async fn publish_with(
        &self,
        channel: impl AsName,
        body: impl Into<Bytes>,
        options: PostOptions,
    ) -> Result<Published, ClientError> {
        let target = options.reply_to.unwrap_or_default();
        self.write(channel, body.into(), Post { kind: PostKind::Message, target }).await
    }

    /// Gives a message another text. Everybody may do so with what they wrote.
    ///
    /// # Errors
    /// See [`Ack`]; [`RejectCode::MessageUnknown`] if there is no such message, or its text was taken back, and
    /// [`RejectCode::Forbidden`] if somebody else wrote it.
    pub async fn edit(
        &self,
        channel: impl AsName,
        position: Position,
        body: impl Into<Bytes>,
    ) -> Result<Published, ClientError> {
        self.write(channel, body.into(), Post { kind: PostKind::Edit, target: position }).await
    }

    /// Takes the text of a message back. Everybody may do so with what they wrote; moderators with what others did.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub async fn redact(&self, channel: impl AsName, position: Position) -> Result<Published, ClientError> {
        self.write(channel, Bytes::new(), Post { kind: PostKind::Redact, target: position }).await
    }

    /// Reacts to a message with an emoji.
    ///
    /// # Errors
    /// See [`Ack`]; [`RejectCode::MessageUnknown`] if there is no such message.
    pub async fn react(&self, channel: impl AsName, position: Position, emoji: &str) -> Result<Published, ClientError> {
        self.write(channel, emoji.to_owned().into(), Post { kind: PostKind::React, target: position }).await
    }

    /// Takes a reaction back.
    ///
    /// # Errors
    /// As [`react`](Self::react).
    pub async fn unreact(
        &self,
        channel: impl AsName,
        position: Position,
        emoji: &str,
    ) -> Result<Published, ClientError> {
        self.write(channel, emoji.to_owned().into(), Post { kind: PostKind::Unreact, target: position }).await
    }

    pub(crate) async fn write(&self, channel: impl AsName, body: Bytes, post: Post) -> Result<Published, ClientError> {
        let channel = channel.as_name("channel")?;
        self.patiently(|| async { self.write_start(&channel, body.clone(), post).await?.await }).await
    }

    /// Sends a message and gives a handle for its answer, so that many can be under way. Messages of one session are
    /// written in the order of these calls. Waits while as much is unanswered as the node, or this client's memory, allows.
    ///
    /// # Errors
    /// At once if the channel's name or the size of the body cannot be right, or the client is closed.
    pub async fn publish_start(&self, channel: impl AsName, body: impl Into<Bytes>) -> Result<Ack, ClientError> {
        self.write_start(channel, body, Post::default()).await
    }

    /// The same for every kind of write: a message, its edit or redaction, a reaction or its end. Never tried again when it
    /// is refused, whatever [`retry_refusals`](crate::Builder::retry_refusals) says: what is behind it is under way already.
    ///
    /// # Errors
    /// As [`publish_start`](Self::publish_start).
    pub async fn write_start(
        &self,
        channel: impl AsName,
        body: impl Into<Bytes>,
        post: Post,
    ) -> Result<Ack, ClientError> {
        let (channel, body): (Name, Bytes) = (channel.as_name("channel")?, body.into());
        let reacts = matches!(post.kind, PostKind::React | PostKind::Unreact);
        let (what, limit) = match post.kind {
            PostKind::Update => ("document's update", DOCUMENT_UPDATE_BYTES_MAX),
            PostKind::Version => ("version's name", VERSION_BYTES_MAX),
            _ if reacts => ("reaction", REACTION_BYTES_MAX),
            _ => ("message", BODY_BYTES_MAX),
        };
        if body.len() > limit {
            let text = format!("a {what} of {} bytes; at most {limit} are allowed", body.len());
            return Err(ClientError::Refused(Reject::new(RejectCode::BodyTooLarge, text)));
        }
        let slot = self.permit().await?;
        let bytes = u32::try_from(body.len()).expect("checked against the largest body").max(1);
        let room = self.shared().bytes.clone().acquire_many_owned(bytes).await.map_err(|_| ClientError::Closed)?;
        let (sender, reply) = oneshot::channel();
        // What is done to a message of a channel that is not there makes no channel.
        let make = self.make && post == Post::default();
        let publish = Publish { channel, sequence: Sequence(0), retry: false, make, body, key: 0, post };
        let trace = self.trace;
        self.handle.with(|state| {
            self.check(state)?;
            let sequence = state.publish(PendingPublish { publish, trace, reply: sender, _permits: (slot, room) });
            Ok(Ack { sequence, reply })
        })
    }
}
