//! Writes under way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use thalweg_protocol::ids::Position;
use tokio::sync::oneshot;

use crate::error::ClientError;

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
    pub(crate) reply: oneshot::Receiver<Result<Published, ClientError>>,
}

impl Future for Ack {
    type Output = Result<Published, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.reply).poll(context).map(|reply| reply.unwrap_or(Err(ClientError::Closed)))
    }
}
