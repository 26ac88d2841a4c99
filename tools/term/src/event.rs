//! What happens to the application, and what it wants done. Closed sets: the shell turns keys, the node's deliveries and
//! answers into [`Event`]s, and carries [`Command`]s out.
//!
//! Texts in events are as the node gave them; the application makes them harmless before it keeps them.

use std::time::Duration;

use crossterm::event::{KeyEvent, MouseEvent};
use thalweg_protocol::ids::GenerationId;

/// Names a request of the application, and the answer to it.
pub type Ticket = u64;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// The mouse did something.
    Mouse(MouseEvent),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size.
    Resize {
        /// Columns.
        columns: u16,
        /// Lines.
        lines: u16,
    },
    /// The terminal got or lost the attention of the person.
    Focus(bool),
    /// The time that [`App::wake`](crate::App::wake) asked for has come.
    Timer,
    /// The connection stands otherwise.
    Link(Link),
    /// The node said who it is and who we are.
    Welcome(Welcome),
    /// A channel is being read now.
    Opened {
        /// Which.
        channel: String,
        /// The first position that will be delivered.
        next: u64,
        /// The newest position when reading began; 0 if it was empty.
        head: u64,
    },
    /// A channel is not read, or no longer.
    Shut {
        /// Which.
        channel: String,
        /// Why.
        reason: String,
    },
    /// Something was delivered.
    Item {
        /// In which channel.
        channel: String,
        /// What.
        item: Item,
    },
    /// The answer to a command that had a ticket.
    Answered {
        /// Which.
        ticket: Ticket,
        /// What came of it.
        result: Result<Answer, Refusal>,
    },
}

/// How the connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// The node answers.
    Up {
        /// Another number than before: the node was restarted.
        epoch: u64,
    },
    /// The node said that it goes away for a while.
    Leaving {
        /// When it asked to be called again.
        delay: Duration,
    },
    /// It was lost and is being replaced.
    Trying {
        /// How often that was tried, from 1.
        attempt: u32,
        /// Why it was lost, or why the last try failed.
        reason: String,
    },
    /// It is over.
    Over {
        /// Why.
        reason: String,
    },
}

/// What the node says of itself and of us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Welcome {
    /// Who we are.
    pub user: String,
    /// To which tenant we belong.
    pub tenant: String,
    /// The node's name and version.
    pub server: String,
    /// Models that answer, the default first.
    pub models: Vec<String>,
}

/// What a subscription gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A record of the channel.
    Delivery(Delivery),
    /// These positions will not come.
    Missed {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// The node came back with less: positions after `to` are given out anew.
    Rewound {
        /// The last that stands.
        to: u64,
    },
    /// Who is there.
    Presence {
        /// Whether `users` are all there are, instead of what changed.
        full: bool,
        /// How many are there.
        count: u32,
        /// Who came or changed.
        users: Vec<Person>,
        /// Who left.
        left: Vec<String>,
        /// Whether `users` is a sample of a large crowd.
        sampled: bool,
    },
    /// Somebody types, or stopped.
    Typing {
        /// Who.
        user: String,
        /// Whether they type.
        on: bool,
    },
}

/// A record of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delivery {
    /// Where it stands.
    pub position: u64,
    /// When it was accepted: microseconds since 1970, UTC.
    pub at_us: u64,
    /// Who caused it.
    pub user: String,
    /// How many messages people wrote up to here.
    pub number: u64,
    /// The message it is about: replied to, edited, reacted to; 0 for none.
    pub target: u64,
    /// Users it calls by name.
    pub mentions: Vec<String>,
    /// The answer it belongs to.
    pub generation: Option<GenerationId>,
    /// What it is.
    pub kind: Kind,
}

/// What a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Somebody, or a model, said something.
    Message {
        /// What.
        body: String,
        /// It was taken back; `body` is empty.
        redacted: bool,
    },
    /// A piece of a model's answer.
    Tokens {
        /// Its text.
        text: String,
    },
    /// A model began to answer.
    Started,
    /// A model's answer ended without a message.
    Ended {
        /// Why.
        reason: String,
    },
    /// The target has another text now.
    Edit {
        /// The text.
        body: String,
    },
    /// The target was taken back.
    Redaction,
    /// Somebody reacted to the target.
    Reaction {
        /// With this.
        emoji: String,
        /// Or took that back.
        on: bool,
    },
    /// Somebody's role changed.
    Membership {
        /// Whose.
        user: String,
        /// The role; `None` for none any more.
        role: Option<Role>,
    },
    /// The channel has another topic.
    Topic {
        /// The topic.
        topic: String,
    },
}

impl Default for Kind {
    fn default() -> Self {
        Self::Message { body: String::new(), redacted: false }
    }
}

/// Somebody and how they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Who.
    pub user: String,
    /// How.
    pub state: State,
    /// Since when: microseconds since 1970, UTC.
    pub since_us: u64,
}

/// Whether somebody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum State {
    /// Here and awake.
    Online,
    /// Connected, and not at the keys.
    Away,
    /// Not connected.
    #[default]
    Offline,
}

/// What somebody may do in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Nothing.
    Banned,
    /// Come in.
    Invited,
    /// Read.
    Reader,
    /// Read and write.
    Member,
    /// And look after others.
    Moderator,
    /// And over the channel.
    Owner,
}

impl Role {
    /// All, the least first.
    pub const ALL: [Self; 6] = [Self::Banned, Self::Invited, Self::Reader, Self::Member, Self::Moderator, Self::Owner];

    /// Its word.
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
}

/// Who may find a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ChannelKind {
    /// Everybody whose token may.
    #[default]
    Open,
    /// Its members.
    Private,
    /// The few who talk to each other.
    Direct,
}

/// A channel in a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Its name.
    pub channel: String,
    /// Who may find it.
    pub kind: ChannelKind,
    /// Its topic.
    pub topic: String,
    /// Our role in it.
    pub role: Option<Role>,
    /// Its newest position.
    pub head: u64,
    /// Messages people wrote.
    pub messages: u64,
    /// Up to where we read.
    pub read: u64,
    /// Messages after that.
    pub unread: u64,
    /// Of which call us.
    pub mentions: u64,
    /// When something happened last: microseconds since 1970, UTC.
    pub active_us: u64,
}

/// What is known of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct About {
    /// Its name.
    pub channel: String,
    /// Who may find it.
    pub kind: ChannelKind,
    /// Its topic.
    pub topic: String,
    /// Our role in it.
    pub role: Option<Role>,
    /// How many members it has.
    pub members_total: u32,
    /// The first of them.
    pub members: Vec<(String, Role)>,
    /// When it was made: microseconds since 1970, UTC.
    pub created_us: u64,
    /// Messages people wrote.
    pub messages: u64,
}

/// What somebody tells of themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Who.
    pub user: String,
    /// The name they want to be called.
    pub display: String,
    /// Who they are.
    pub about: String,
    /// What they are up to.
    pub status: String,
    /// Whether they are there.
    pub state: State,
    /// When they were last: microseconds since 1970, UTC; 0 if never.
    pub seen_us: u64,
}

/// A part of a channel's history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The oldest position that is kept.
    pub first: u64,
    /// Where the next page begins.
    pub next: u64,
    /// The newest position.
    pub head: u64,
    /// What happened, in order.
    pub items: Vec<Item>,
}

/// What a command brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The message is written.
    Sent {
        /// Where it stands.
        position: u64,
        /// When it was accepted: microseconds since 1970, UTC.
        at_us: u64,
    },
    /// A part of history.
    Page(Page),
    /// Our channels.
    Channels(Vec<Summary>),
    /// What is known of a channel.
    About(About),
    /// A profile.
    Profile(Profile),
    /// Who is in a channel.
    Who {
        /// How many.
        count: u32,
        /// The first of them.
        users: Vec<Person>,
        /// Whether that is all.
        complete: bool,
    },
    /// What a search found, newest first.
    Found {
        /// The messages.
        hits: Vec<Delivery>,
        /// Where to go on, towards the past; 0 when everything was searched.
        next: u64,
    },
}

/// Why a command brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For people.
    pub reason: String,
    /// When the same may work.
    pub retry_after: Option<Duration>,
}

/// Something to be done by the shell. Those with a ticket are answered by [`Event::Answered`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Leave.
    Quit,
    /// Draw everything again.
    Redraw,
    /// Take the mouse, or leave it to the terminal.
    Mouse(bool),
    /// Ring the terminal's bell.
    Bell,
    /// Read a channel from its end; [`Event::Opened`] or [`Event::Shut`] follows.
    Watch {
        /// Which.
        channel: String,
        /// Make it if there is none.
        make: bool,
    },
    /// Stop reading a channel.
    Unwatch {
        /// Which.
        channel: String,
    },
    /// Tell that we type, or stopped.
    Typing {
        /// Where.
        channel: String,
        /// Whether.
        on: bool,
    },
    /// Tell whether we are at the keys.
    Present(State),
    /// A request.
    Ask {
        /// What its answer will carry.
        ticket: Ticket,
        /// What is asked.
        request: Request,
    },
}

/// What the node is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the request of the same name in the SDK")]
pub enum Request {
    /// Write a message → [`Answer::Sent`]. Messages are written in the order of these commands.
    Post { channel: String, body: String, reply_to: u64 },
    /// Give a message another text → [`Answer::Sent`].
    Edit { channel: String, position: u64, body: String },
    /// Take a message back → [`Answer::Sent`].
    Redact { channel: String, position: u64 },
    /// React, or take a reaction back → [`Answer::Sent`].
    React { channel: String, position: u64, emoji: String, on: bool },
    /// Stop an answer → [`Answer::Done`].
    Cancel { generation: GenerationId },
    /// A part of history → [`Answer::Page`].
    History { channel: String, from: u64, limit: u32 },
    /// Messages with these words → [`Answer::Found`]. `before` 0: from the newest on.
    Search { channel: String, query: String, before: u64 },
    /// Our channels → [`Answer::Channels`].
    Channels,
    /// What is known of a channel → [`Answer::About`].
    About { channel: String },
    /// Become a member → [`Answer::Done`].
    Join { channel: String },
    /// Cease to be one → [`Answer::Done`].
    Leave { channel: String },
    /// Make a channel → [`Answer::Done`].
    Create { channel: String, private: bool, topic: String },
    /// Talk to these alone → [`Answer::About`].
    Direct { users: Vec<String> },
    /// Give somebody a role, or none → [`Answer::Done`].
    SetRole { channel: String, user: String, role: Option<Role> },
    /// Give a channel a topic → [`Answer::Done`].
    SetTopic { channel: String, topic: String },
    /// Remember up to where we read → [`Answer::Done`].
    MarkRead { channel: String, position: u64, number: u64 },
    /// Somebody's profile → [`Answer::Profile`].
    Profile { user: String },
    /// Ours → [`Answer::Done`].
    SetProfile { display: String, about: String, status: String },
    /// Who is in a channel → [`Answer::Who`].
    Who { channel: String },
}
