//! Facts: small values of a channel or a user of which the newest counts. They are set by events and kept by the state of a
//! partition; like everything there, what two neighbouring pieces of a log know of them merges.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thalweg_protocol::chat::{ChannelKind, MemberRole, PostRule, ProfileText};
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::limits::MENTIONS_KEPT;

/// What a channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Who may find and read it.
    pub kind: ChannelKind,
    /// What it is about.
    pub topic: String,
    /// Who may write.
    pub post: PostRule,
    /// Who made it.
    pub by: Name,
    /// When it was made, in microseconds since 1970.
    pub created_us: u64,
}

/// Somebody's place in a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As what.
    pub role: MemberRole,
    /// Since when, in microseconds since 1970.
    pub since_us: u64,
    /// Who made them that.
    pub by: Name,
}

/// How far somebody has read in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Up to this position.
    pub position: Position,
    /// How many messages there were up to it.
    pub number: u64,
}

/// Where somebody was mentioned in a channel: the newest [`MENTIONS_KEPT`] places, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions(VecDeque<Position>);

impl Mentions {
    /// Takes a newer mention in.
    pub fn push(&mut self, position: Position) {
        if self.0.len() == MENTIONS_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(position);
    }

    /// Takes in what a newer piece of the log knows.
    pub fn merge(&mut self, newer: &Self) {
        newer.positions().for_each(|position| self.push(position));
    }

    /// How many came after a position, as far as they are kept.
    pub fn after(&self, position: Position) -> u64 {
        self.0.iter().rev().take_while(|at| **at > position).count() as u64
    }

    /// The places, oldest first.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = Position> {
        self.0.iter().copied()
    }
}

/// The state of a document as its messages hold it: in so many parts, from a position on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its first part stands. It is what the document was before that.
    pub position: Position,
    /// How many parts it has; they follow each other.
    pub parts: u32,
}

impl Snapshot {
    /// One after its last part.
    pub fn end(&self) -> Position {
        Position(self.position.0.saturating_add(u64::from(self.parts)))
    }
}

/// Something about a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelFact {
    /// What it is.
    Info(ChannelInfo),
    /// What somebody is in it; `None`: nothing any more.
    Member {
        /// Who.
        user: Name,
        /// As what.
        member: Option<Member>,
    },
    /// How far somebody has read.
    Reading {
        /// Who.
        user: Name,
        /// How far.
        reading: Reading,
    },
    /// The text of a message was taken back.
    Redacted {
        /// Which.
        position: Position,
    },
    /// A document was written as a whole.
    Snapshot(Snapshot),
}

/// Something about a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserFact {
    /// What they say of themselves.
    Profile(ProfileText),
    /// When they were last there, in microseconds since 1970.
    Seen {
        /// When.
        at_us: u64,
    },
    /// Nothing is known of them any more.
    Forgotten,
}

/// What a piece of a log says of a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelFacts {
    /// What it is, if the piece says so.
    pub info: Option<ChannelInfo>,
    /// Those who were given a place, or (`None`) lost it.
    pub members: BTreeMap<Name, Option<Member>>,
    /// How far people have read.
    pub readings: BTreeMap<Name, Reading>,
    /// The messages whose text was taken back.
    pub redacted: BTreeSet<Position>,
    /// Where a document was written as a whole, oldest first.
    pub snapshots: Vec<Snapshot>,
}

impl ChannelFacts {
    /// Takes a newer fact in.
    pub fn set(&mut self, fact: &ChannelFact) {
        match fact {
            ChannelFact::Info(info) => self.info = Some(info.clone()),
            ChannelFact::Member { user, member } => {
                self.members.insert(user.clone(), member.clone());
            }
            ChannelFact::Reading { user, reading } => {
                self.readings.insert(user.clone(), *reading);
            }
            ChannelFact::Redacted { position } => {
                self.redacted.insert(*position);
            }
            ChannelFact::Snapshot(snapshot) => self.snapshots.push(*snapshot),
        }
    }

    /// Takes in what a newer piece says.
    pub fn merge(&mut self, newer: Self) {
        self.info = newer.info.or(self.info.take());
        self.members.extend(newer.members);
        self.readings.extend(newer.readings);
        self.redacted.extend(newer.redacted);
        self.snapshots.extend(newer.snapshots);
    }

    /// Forgets who lost their place. Only for a piece that knows the channel from its beginning: to another, an older one
    /// may still say that they have it.
    pub fn forget_lost(&mut self) {
        self.members.retain(|_, member| member.is_some());
    }
}

/// What a piece of a log says of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserState {
    /// What they say of themselves, if the piece says so.
    pub profile: Option<ProfileText>,
    /// When they were last there, in microseconds since 1970; 0 if the piece does not say.
    pub seen_us: u64,
    /// Whether what older pieces say does not count any more.
    pub forgotten: bool,
}

impl UserState {
    /// Takes a newer fact in.
    pub fn set(&mut self, fact: &UserFact) {
        match fact {
            UserFact::Profile(profile) => self.profile = Some(profile.clone()),
            UserFact::Seen { at_us } => self.seen_us = *at_us,
            UserFact::Forgotten => *self = Self { forgotten: true, ..Self::default() },
        }
    }

    /// Takes in what a newer piece says.
    pub fn merge(&mut self, newer: Self) {
        if newer.forgotten {
            *self = newer;
            return;
        }
        self.profile = newer.profile.or(self.profile.take());
        self.seen_us = if newer.seen_us == 0 { self.seen_us } else { newer.seen_us };
    }

    /// Whether there is nothing to be known.
    pub fn is_empty(&self) -> bool {
        self.profile.is_none() && self.seen_us == 0
    }
}
