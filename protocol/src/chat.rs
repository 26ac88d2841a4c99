//! What people do in channels beside writing and reading: membership, roles, read marks, profiles, presence.

use crate::ids::{Name, Position};
use crate::op::Durability;

/// Who may find and read a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ChannelKind {
    /// Everybody of the tenant whose token covers it.
    #[default]
    Open,
    /// Its members only.
    Private,
    /// Its members only, whose number does not change; the node gave it its name.
    Direct,
    /// A document: everybody whose token covers it opens it, and its messages are what it was edited by. A kind that is
    /// chosen when it is made, and stays.
    Document,
}

impl ChannelKind {
    /// The kind as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Private => "private",
            Self::Direct => "direct",
            Self::Document => "document",
        }
    }
}

/// Who may write in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PostRule {
    /// Everybody who may read it.
    #[default]
    Everyone,
    /// Members.
    Members,
    /// Moderators and the owner.
    Moderators,
}

impl PostRule {
    /// The rule as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::Members => "members",
            Self::Moderators => "moderators",
        }
    }
}

/// What somebody is in a channel. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberRole {
    /// May do nothing, whatever the token says.
    Banned,
    /// May join.
    Invited,
    /// Reads.
    Reader,
    /// Writes.
    Member,
    /// Invites, removes and bans, takes back what others wrote, changes the topic.
    Moderator,
    /// Does everything.
    Owner,
}

impl MemberRole {
    /// All roles, from the least to the most.
    pub const ALL: [Self; 6] = [Self::Banned, Self::Invited, Self::Reader, Self::Member, Self::Moderator, Self::Owner];

    /// The role as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::Invited => "invited",
            Self::Reader => "reader",
            Self::Member => "member",
            Self::Moderator => "moderator",
            Self::Owner => "owner",
        }
    }

    /// The number that stands for it on the wire and in the log; 0 stands for none.
    pub fn number(role: Option<Self>) -> u8 {
        role.map_or(0, |role| role as u8 + 1)
    }

    /// The role of a number; `None` if there is none of that number.
    pub fn of_number(number: u8) -> Option<Option<Self>> {
        match number {
            0 => Some(None),
            n => Self::ALL.get(usize::from(n) - 1).copied().map(Some),
        }
    }
}

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PostKind {
    /// Adds a message.
    #[default]
    Message,
    /// Gives a message another text.
    Edit,
    /// Takes a message's text back.
    Redact,
    /// Adds a reaction to a message; the body is the emoji.
    React,
    /// Takes a reaction back; the body is the emoji.
    Unreact,
    /// Edits a document; the body is a Yjs update (version 1). May be repeated at will.
    Update,
    /// Edits the text of a document; the body is [`Operations`](crate::document::Operations), the target the revision they
    /// were made at.
    Operations,
    /// Gives a revision of a document, the target (0: the newest), a name, the body.
    Version,
    /// Makes a document read again as it did at a revision, the target, by a new edit.
    Restore,
}

/// What a write does, and to which message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Post {
    /// What it does.
    pub kind: PostKind,
    /// A message: the one it answers (0: none). In a document: a revision. Otherwise: the message that is meant.
    pub target: Position,
}

/// What a delivery says of the place it has in its channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// The message that is answered, edited, taken back or reacted to; 0 for none. Of an update: the first revision that is
    /// merged in it, 0 if it is one. Of a version: the revision that is named. Of a part of a snapshot: the first part.
    pub target: Position,
    /// How many messages people and models had written in the channel with this one, whatever happened to them since.
    pub number: u64,
    /// The members that it mentions.
    pub mentions: Vec<Name>,
    /// The role that somebody has from now on, in a delivery about membership; `None` if they left or were removed.
    pub role: Option<MemberRole>,
    /// Whether the text was taken back; the body is empty then.
    pub redacted: bool,
}

/// How a new channel is to be used. What is not said takes the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelAbout {
    /// Who may find and read it. Not [`ChannelKind::Direct`], which [`ChatOp::OpenDirect`] makes.
    pub kind: ChannelKind,
    /// What it is about, at most [`TOPIC_BYTES_MAX`](crate::limits::TOPIC_BYTES_MAX) bytes.
    pub topic: String,
    /// Who may write.
    pub post: PostRule,
}

/// What a user says of themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProfileText {
    /// The name they are shown under; empty: the user's name.
    pub display: String,
    /// About them.
    pub about: String,
    /// What they are doing.
    pub status: String,
}

/// Whether somebody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PresenceState {
    /// No client of theirs is connected.
    #[default]
    Offline,
    /// Connected, but not at the keyboard.
    Away,
    /// There.
    Online,
}

impl PresenceState {
    /// The state as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Away => "away",
            Self::Online => "online",
        }
    }
}

/// A request about channels, their members and the people in them. Names of channels and users are of the session's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields of one-line variants are named after their types")]
pub enum ChatOp {
    /// Becomes a member of a channel. Answer: `Done`.
    Join { channel: Name },
    /// Is no longer a member. Answer: `Done`.
    Leave { channel: Name },
    /// Gives somebody a role, invites, bans or removes (`None`) them. Answer: `Done`.
    SetMember { channel: Name, user: Name, role: Option<MemberRole> },
    /// Changes a channel; what is `None` stays. Answer: `Done`.
    SetChannel { channel: Name, topic: Option<String>, kind: Option<ChannelKind>, post: Option<PostRule> },
    /// Opens the conversation of these users and the session's own, which is made if it is not there. Answer:
    /// `ChannelReport`.
    OpenDirect { users: Vec<Name> },
    /// Asks about a channel. Answer: `ChannelReport`.
    AboutChannel { channel: Name },
    /// Asks for the channels whose member the user is, or (`all`) which they may read, in the order of their names, from
    /// the first after `after` on. Answer: `ChannelList`.
    ListChannels { after: String, limit: u32, all: bool },
    /// Notes that the user has read up to this message, the `number`th of the channel. Answer: `Done`.
    MarkRead { channel: Name, position: Position, number: u64 },
    /// Says who the user is. Answer: `Done`.
    SetProfile(ProfileText),
    /// Asks who somebody is. Answer: `ProfileReport`.
    GetProfile { user: Name },
    /// Says whether the user is at the keyboard. Answer: `Done`.
    SetPresence { away: bool },
    /// Asks who is in a channel. Answer: `PresenceReport`.
    WhoIsIn { channel: Name },
    /// Looks for a text in the messages before a position (0: the newest), newest first, whatever its case. Answer: `Page`
    /// with the matches among the messages that were looked at; its `next` is the `before` to go on with, 0 when all was
    /// looked at.
    SearchHistory { channel: Name, query: String, before: Position, limit: u32 },
}

/// A member of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEntry {
    /// Who.
    pub user: Name,
    /// As what.
    pub role: MemberRole,
    /// Since when, in microseconds since 1970.
    pub since_us: u64,
}

/// What there is to say about a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelReport {
    /// Its name.
    pub channel: Name,
    /// Who may find and read it.
    pub kind: ChannelKind,
    /// What it is about.
    pub topic: String,
    /// Who may write.
    pub post: PostRule,
    /// When it was made, in microseconds since 1970; 0 if that is not known.
    pub created_us: u64,
    /// The oldest position that is kept.
    pub first: Position,
    /// The newest there is.
    pub head: Position,
    /// How many messages were written in it.
    pub messages: u64,
    /// How durable it is.
    pub durability: Durability,
    /// What the asking user is in it.
    pub you: Option<MemberRole>,
    /// How many members it has, with those invited and banned.
    pub members_total: u32,
    /// The first of them by name, at most [`MEMBERS_LISTED`](crate::limits::MEMBERS_LISTED).
    pub members: Vec<MemberEntry>,
}

/// A channel in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelSummary {
    /// Its name.
    pub channel: Name,
    /// Who may find and read it.
    pub kind: ChannelKind,
    /// What it is about.
    pub topic: String,
    /// What the user is in it.
    pub role: Option<MemberRole>,
    /// The newest position.
    pub head: Position,
    /// How many messages were written in it.
    pub messages: u64,
    /// Up to where the user has read.
    pub read: Position,
    /// How many messages came after that.
    pub unread: u64,
    /// How many of these mention the user.
    pub mentions: u64,
    /// When something was last written, in microseconds since 1970; 0 if that is not known.
    pub active_us: u64,
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileReport {
    /// The user.
    pub user: Name,
    /// What they say of themselves.
    pub profile: ProfileText,
    /// Whether they are there.
    pub state: PresenceState,
    /// When they were last there, in microseconds since 1970; 0 if never, or if that is not known any more.
    pub seen_us: u64,
}

/// Somebody in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentUser {
    /// Who.
    pub user: Name,
    /// Whether they are at the keyboard.
    pub state: PresenceState,
    /// Since when they are in the channel, in microseconds since 1970.
    pub since_us: u64,
}

/// News of the people in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Whether `users` are all there are, or a sample of them, and who is not named is not there; otherwise, who came or
    /// changed.
    pub full: bool,
    /// Whether there are too many people to name them all.
    pub sampled: bool,
    /// How many people are in the channel.
    pub count: u32,
    /// People who are in it.
    pub users: Vec<PresentUser>,
    /// Who went.
    pub left: Vec<Name>,
}
