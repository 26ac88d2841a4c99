//! What people do in channels beside writing and reading: membership, roles, read marks, profiles, presence. And what an
//! administrator asks of the node.

use bytes::Bytes;
use thalweg_protocol::chat::{
    ChannelKind, ChannelReport, ChannelSummary, ChatOp, MemberRole, PostRule, PresentUser, ProfileReport, ProfileText,
};
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::limits::CHANNELS_LISTED;
use thalweg_protocol::op::{ClientOp, ServerOp};

use crate::client::{AsName, Client};
use crate::entries::Repeat;
use crate::error::ClientError;

/// What is to be changed of a channel; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelChange {
    /// What it is about.
    pub topic: Option<String>,
    /// Who may find and read it; open or private.
    pub kind: Option<ChannelKind>,
    /// Who may write.
    pub post: Option<PostRule>,
}

/// A part of a list of channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelPage {
    /// In the order of their names.
    pub channels: Vec<ChannelSummary>,
    /// Whether there are others after the last.
    pub more: bool,
}

/// Who is in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoIsIn {
    /// How many.
    pub count: u32,
    /// They, or some of them.
    pub users: Vec<PresentUser>,
    /// Whether `users` are all there are.
    pub complete: bool,
}

impl Client {
    async fn chat(&self, op: ChatOp) -> Result<ServerOp, ClientError> {
        self.call(ClientOp::Chat(op), Repeat::Again).await
    }

    async fn chat_done(&self, op: ChatOp) -> Result<(), ClientError> {
        match self.chat(op).await? {
            ServerOp::Done => Ok(()),
            other => Err(ClientError::unexpected("Done", &other)),
        }
    }

    /// Becomes a member of a channel.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel that the user may join: it is private and nobody invited them, or
    /// they are banned.
    pub async fn join(&self, channel: impl AsName) -> Result<(), ClientError> {
        self.chat_done(ChatOp::Join { channel: channel.as_name("channel")? }).await
    }

    /// Is no longer a member of a channel.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel.
    pub async fn leave(&self, channel: impl AsName) -> Result<(), ClientError> {
        self.chat_done(ChatOp::Leave { channel: channel.as_name("channel")? }).await
    }

    /// Gives somebody a role in a channel: invites, bans, makes a moderator. `None` removes them.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the user's own role does not allow it.
    pub async fn set_member(
        &self,
        channel: impl AsName,
        user: impl AsName,
        role: Option<MemberRole>,
    ) -> Result<(), ClientError> {
        let (channel, user) = (channel.as_name("channel")?, user.as_name("user")?);
        self.chat_done(ChatOp::SetMember { channel, user, role }).await
    }

    /// Changes how a channel is used.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the user's role does not allow it.
    pub async fn set_channel(&self, channel: impl AsName, change: ChannelChange) -> Result<(), ClientError> {
        let ChannelChange { topic, kind, post } = change;
        self.chat_done(ChatOp::SetChannel { channel: channel.as_name("channel")?, topic, kind, post }).await
    }

    /// Opens the conversation of these users and the session's own, which is made if it is not there.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there are none or too many of them.
    pub async fn open_direct<N: AsName>(
        &self,
        users: impl IntoIterator<Item = N>,
    ) -> Result<ChannelReport, ClientError> {
        let users = users.into_iter().map(|user| user.as_name("user")).collect::<Result<_, _>>()?;
        report(self.chat(ChatOp::OpenDirect { users }).await?)
    }

    /// What there is to say about a channel.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel, or it may not be read.
    pub async fn about_channel(&self, channel: impl AsName) -> Result<ChannelReport, ClientError> {
        report(self.chat(ChatOp::AboutChannel { channel: channel.as_name("channel")? }).await?)
    }

    /// The channels whose member the user is, or (`all`) which they may read, from the first after `after` on; `limit` 0 for
    /// as many as fit in an answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if too many lists are asked for at a time.
    pub async fn list_channels(
        &self,
        after: impl Into<String>,
        limit: u32,
        all: bool,
    ) -> Result<ChannelPage, ClientError> {
        let limit = if limit == 0 { CHANNELS_LISTED as u32 } else { limit };
        match self.chat(ChatOp::ListChannels { after: after.into(), limit, all }).await? {
            ServerOp::ChannelList { channels, more } => Ok(ChannelPage { channels, more }),
            other => Err(ClientError::unexpected("ChannelList", &other)),
        }
    }

    /// All channels whose member the user is, or (`all`) which they may read, in the order of their names.
    ///
    /// # Errors
    /// As [`list_channels`](Self::list_channels).
    pub async fn channels(&self, all: bool) -> Result<Vec<ChannelSummary>, ClientError> {
        let mut channels: Vec<ChannelSummary> = Vec::new();
        loop {
            let last = channels.last().map(|last| last.channel.clone());
            let after = last.as_ref().map_or(String::new(), Name::to_string);
            let page = self.list_channels(after, 0, all).await?;
            let Some(first) = page.channels.first() else { return Ok(channels) };
            if last.is_some_and(|last| first.channel <= last) {
                return Err(ClientError::Protocol(format!("the list of channels goes back to {}", first.channel)));
            }
            channels.extend(page.channels);
            if !page.more {
                return Ok(channels);
            }
        }
    }

    /// Notes that the user has read a channel up to a message, its [`number`](crate::Message::number)th. A mark never goes
    /// back.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel, or it may not be read.
    pub async fn mark_read(&self, channel: impl AsName, position: Position, number: u64) -> Result<(), ClientError> {
        self.chat_done(ChatOp::MarkRead { channel: channel.as_name("channel")?, position, number }).await
    }

    /// Says who the user is, in place of what was said before.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if a text is too long.
    pub async fn set_profile(&self, profile: ProfileText) -> Result<(), ClientError> {
        self.chat_done(ChatOp::SetProfile(profile)).await
    }

    /// Who somebody is, and whether they are there.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the user may not ask that.
    pub async fn profile(&self, user: impl AsName) -> Result<ProfileReport, ClientError> {
        match self.chat(ChatOp::GetProfile { user: user.as_name("user")? }).await? {
            ServerOp::ProfileReport(report) => Ok(*report),
            other => Err(ClientError::unexpected("ProfileReport", &other)),
        }
    }

    /// Says that the user is there, at the keyboard or away from it. From then on the client tells the node regularly that
    /// it is still there, also over another connection.
    ///
    /// # Errors
    /// Only of the connection.
    pub async fn set_presence(&self, away: bool) -> Result<(), ClientError> {
        self.chat_done(ChatOp::SetPresence { away }).await
    }

    /// Who is in a channel: whose clients read it with [presence](crate::SubscribeOptions::presence).
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel, or it may not be read.
    pub async fn who_is_in(&self, channel: impl AsName) -> Result<WhoIsIn, ClientError> {
        match self.chat(ChatOp::WhoIsIn { channel: channel.as_name("channel")? }).await? {
            ServerOp::PresenceReport { count, users, complete } => Ok(WhoIsIn { count, users, complete }),
            other => Err(ClientError::unexpected("PresenceReport", &other)),
        }
    }

    /// Tells those who are in a channel that the session's user writes, or stopped to, if this client reads it with
    /// [presence](crate::SubscribeOptions::presence); otherwise nothing. May be lost, and is dropped if it is said too often.
    pub fn typing(&self, channel: &str, on: bool) {
        self.handle.with(|state| state.typing_in(channel, on));
    }

    /// Asks something of the node's administration: `{"command": …}` with what belongs to the command. Never repeated over
    /// another connection.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the token does not allow it, or the request makes no sense to the node;
    /// [`ClientError::Lost`] or [`ClientError::Unreachable`] if it may or may not have been done.
    pub async fn manage(&self, request: &serde_json::Value) -> Result<serde_json::Value, ClientError> {
        let json = Bytes::from(request.to_string());
        match self.call(ClientOp::Manage { json }, Repeat::Never).await? {
            ServerOp::Managed { json } => serde_json::from_slice(&json)
                .map_err(|error| ClientError::Protocol(format!("the answer is not JSON: {error}"))),
            other => Err(ClientError::unexpected("Managed", &other)),
        }
    }
}

fn report(op: ServerOp) -> Result<ChannelReport, ClientError> {
    match op {
        ServerOp::ChannelReport(report) => Ok(*report),
        other => Err(ClientError::unexpected("ChannelReport", &other)),
    }
}
