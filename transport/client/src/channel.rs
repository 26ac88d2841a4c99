//! Making, deleting and looking into channels, without reading them as they grow.

use std::time::Duration;

use thalweg_protocol::chat::ChannelAbout;
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::op::{ClientOp, CreateChannel, Durability, ServerOp};

use crate::client::{AsName, Client};
use crate::entries::Repeat;
use crate::error::ClientError;
use crate::subscription::Item;

/// What a new channel keeps, and how safely.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelOptions {
    /// Messages it keeps at most; 0 for the node's default.
    pub keep_messages: u32,
    /// Bytes of bodies it keeps at most; 0 for the node's default.
    pub keep_bytes: u64,
    /// It need not keep messages older than this; `None` sets no limit of age.
    pub keep_age: Option<Duration>,
    /// How durable its messages are when they are acknowledged; `None` for the node's default.
    pub durability: Option<Durability>,
    /// Who may find and read it, what it is about, and who may write.
    pub about: ChannelAbout,
}

/// A part of a channel's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The oldest position the channel still keeps.
    pub first: Position,
    /// Where the next page begins.
    pub next: Position,
    /// The newest position there is; 0 if there never was one. Once [`next`](Self::next) is beyond it, this was the last page.
    pub head: Position,
    /// What happened, in order.
    pub items: Vec<Item>,
}

impl Client {
    /// Makes a channel. Whether it is new; an old one, or one whose making was repeated over a new connection, is not, and
    /// keeps its options.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it may not be made, or a node that stands alone is asked for `replicated`.
    pub async fn create_channel(&self, channel: impl AsName, options: ChannelOptions) -> Result<bool, ClientError> {
        let history_age_ms = match options.keep_age {
            None => 0,
            // An age below the unit of the wire is still an age.
            Some(age) => u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1),
        };
        let op = ClientOp::CreateChannel(CreateChannel {
            channel: channel.as_name("channel")?,
            history_messages: options.keep_messages,
            history_bytes: options.keep_bytes,
            history_age_ms,
            durability: options.durability,
            about: options.about,
        });
        match self.call(op, Repeat::Again).await? {
            ServerOp::ChannelCreated { created } => Ok(created),
            other => Err(ClientError::unexpected("ChannelCreated", &other)),
        }
    }

    /// Deletes a channel with all it holds. Its readers are told that it ended.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel, or the token does not allow it.
    pub async fn delete_channel(&self, channel: impl AsName) -> Result<(), ClientError> {
        let channel: Name = channel.as_name("channel")?;
        match self.call(ClientOp::DeleteChannel { channel }, Repeat::Again).await? {
            ServerOp::Done => Ok(()),
            other => Err(ClientError::unexpected("Done", &other)),
        }
    }

    /// Deletes all channels and generations of the token's tenant; gives how many channels there were. Repeated over a new
    /// connection it counts what was left.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the token does not allow it.
    pub async fn delete_tenant(&self) -> Result<u32, ClientError> {
        match self.call(ClientOp::DeleteTenant, Repeat::Again).await? {
            ServerOp::Deleted { channels } => Ok(channels),
            other => Err(ClientError::unexpected("Deleted", &other)),
        }
    }

    /// Has the node move all that is durable now into sealed segments, which can be copied; returns when it is done.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the token does not allow it.
    pub async fn checkpoint(&self) -> Result<(), ClientError> {
        match self.call(ClientOp::Checkpoint, Repeat::Again).await? {
            ServerOp::Done => Ok(()),
            other => Err(ClientError::unexpected("Done", &other)),
        }
    }

    /// Reads a part of a channel's history: what stands from `from` on (0: from the oldest that is kept), at most `limit`
    /// items (0: as many as fit in an answer). A page may hold fewer although there are more: go on at [`Page::next`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel, reading it is forbidden, or that part of the disk is damaged.
    pub async fn read_history(&self, channel: impl AsName, from: Position, limit: u32) -> Result<Page, ClientError> {
        let channel = channel.as_name("channel")?;
        match self.call(ClientOp::ReadHistory { channel, from, limit }, Repeat::Again).await? {
            ServerOp::Page { first, next, head, deliveries } => {
                Ok(Page { first, next, head, items: items(&deliveries)? })
            }
            other => Err(ClientError::unexpected("Page", &other)),
        }
    }
}

/// What a page holds.
pub(crate) fn items(deliveries: &[bytes::Bytes]) -> Result<Vec<Item>, ClientError> {
    let item = |payload| match ServerOp::decode(payload) {
        Ok(ServerOp::Delivery(delivery)) => Item::of(delivery),
        Ok(other) => Err(ClientError::unexpected("Delivery", &other)),
        Err(reject) => Err(ClientError::Protocol(reject.to_string())),
    };
    deliveries.iter().map(item).collect()
}
