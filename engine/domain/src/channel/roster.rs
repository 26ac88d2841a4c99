//! Who a channel belongs to: what it is, its members and their roles, and how far they have read.
//!
//! Decisions look at what was decided before, durable or not, since both are in one log in that order; what comes of them is
//! taken in at once by [`Roster::set`]. Answers wait until it is durable.

use std::collections::{BTreeMap, BTreeSet};

use thalweg_protocol::chat::{ChannelAbout, ChannelKind, MemberEntry, MemberRole, PostRule};
use thalweg_protocol::document::DocumentAccess;
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::limits::{DIRECT_USERS_MAX, MEMBERS_LISTED, MEMBERS_MAX, MENTIONS_MAX, REDACTIONS_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::fact::{ChannelFact, ChannelFacts, ChannelInfo, Member, Mentions, Reading};
use crate::permission::{Action, Principal};

/// What the names of direct conversations begin with. The node makes them; nobody else can.
pub const DIRECT_PREFIX: &str = "dm/";

/// The people of a channel, at its owner.
#[derive(Debug, Default)]
pub struct Roster {
    info: Option<ChannelInfo>,
    members: BTreeMap<Name, Member>,
    readings: BTreeMap<Name, Reading>,
    redacted: BTreeSet<Position>,
    /// Where people were mentioned.
    mentioned: BTreeMap<Name, Mentions>,
}

fn refuse<T>(code: RejectCode, text: impl Into<String>) -> Result<T, Reject> {
    Err(Reject::new(code, text.into()))
}

/// Refuses names that only the node gives.
///
/// # Errors
/// `name_reserved`.
pub fn check_name(channel: &Name) -> Result<(), Reject> {
    if channel.as_str().starts_with(DIRECT_PREFIX) {
        let text =
            format!("{channel}: names that begin with {DIRECT_PREFIX} are those of direct conversations; open one");
        return refuse(RejectCode::NameReserved, text);
    }
    Ok(())
}

impl Roster {
    /// The roster that the log left behind.
    pub fn restore(facts: &ChannelFacts, mentioned: &BTreeMap<Name, Mentions>) -> Self {
        let members = facts.members.iter().filter_map(|(user, member)| Some((user.clone(), member.clone()?)));
        Self {
            info: facts.info.clone(),
            members: members.collect(),
            readings: facts.readings.clone(),
            redacted: facts.redacted.clone(),
            mentioned: mentioned.clone(),
        }
    }

    /// Takes in what was decided.
    pub fn set(&mut self, fact: &ChannelFact) {
        match fact {
            ChannelFact::Info(info) => self.info = Some(info.clone()),
            ChannelFact::Member { user, member: Some(member) } => {
                self.members.insert(user.clone(), member.clone());
            }
            ChannelFact::Member { user, member: None } => {
                self.members.remove(user);
            }
            ChannelFact::Reading { user, reading } => {
                self.readings.insert(user.clone(), *reading);
            }
            ChannelFact::Redacted { position } => {
                self.redacted.insert(*position);
            }
            // Where a document is written as a whole is no matter of people.
            ChannelFact::Snapshot(_) => {}
        }
    }

    /// What a new channel is, and who owns it.
    pub fn decide_new(about: &ChannelAbout, by: &Name, now_us: u64) -> Vec<ChannelFact> {
        let ChannelAbout { kind, topic, post } = about.clone();
        let info = ChannelInfo { kind, topic, post, by: by.clone(), created_us: now_us };
        vec![ChannelFact::Info(info), member_fact(by, Some(MemberRole::Owner), by, now_us)]
    }

    /// What a new direct conversation is, and whose.
    pub fn decide_direct(users: &BTreeSet<Name>, by: &Name, now_us: u64) -> Vec<ChannelFact> {
        let about = ChannelAbout { kind: ChannelKind::Direct, ..ChannelAbout::default() };
        let mut facts = Self::decide_new(&about, by, now_us);
        facts.truncate(1);
        facts.extend(users.iter().map(|user| member_fact(user, Some(MemberRole::Member), by, now_us)));
        facts
    }

    /// Whether it is the conversation of exactly these users.
    pub fn is_direct_of(&self, users: &BTreeSet<Name>) -> bool {
        self.kind() == ChannelKind::Direct && self.members.keys().eq(users.iter())
    }

    /// Who may find and read it.
    pub fn kind(&self) -> ChannelKind {
        self.info.as_ref().map_or(ChannelKind::Open, |info| info.kind)
    }

    /// What it is about.
    pub fn topic(&self) -> &str {
        self.info.as_ref().map_or("", |info| &info.topic)
    }

    /// Who may write.
    pub fn post_rule(&self) -> PostRule {
        self.info.as_ref().map_or(PostRule::Everyone, |info| info.post)
    }

    /// When it was made, in microseconds since 1970; 0 if that is not known.
    pub fn created_us(&self) -> u64 {
        self.info.as_ref().map_or(0, |info| info.created_us)
    }

    /// What a user is in it.
    pub fn role(&self, user: &Name) -> Option<MemberRole> {
        self.members.get(user).map(|member| member.role)
    }

    /// How many have a place in it, with those invited and banned.
    pub fn members_total(&self) -> usize {
        self.members.len()
    }

    /// The first members by name.
    pub fn members(&self) -> Vec<MemberEntry> {
        let entry = |(user, member): (&Name, &Member)| MemberEntry {
            user: user.clone(),
            role: member.role,
            since_us: member.since_us,
        };
        self.members.iter().take(MEMBERS_LISTED).map(entry).collect()
    }

    /// Everybody with a place in it.
    pub fn users(&self) -> impl Iterator<Item = &Name> {
        self.members.keys()
    }

    /// The role somebody acts in: whose token administers the channel acts as its owner.
    fn acts_as(&self, principal: &Principal, channel: &Name) -> Option<MemberRole> {
        if principal.may(Action::Admin, channel.as_str()) {
            return Some(MemberRole::Owner);
        }
        self.role(&principal.user)
    }

    /// Checks that somebody, whose token says so, may read here.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may_read(&self, principal: &Principal, channel: &Name) -> Result<(), Reject> {
        match (self.acts_as(principal, channel), self.kind()) {
            (Some(MemberRole::Banned), _) => {
                refuse(RejectCode::Forbidden, format!("{} is banned from {channel}", principal.user))
            }
            (Some(role), _) if role >= MemberRole::Reader => Ok(()),
            (_, ChannelKind::Open | ChannelKind::Document) => Ok(()),
            (Some(_), _) => refuse(
                RejectCode::Forbidden,
                format!("{} is invited to {channel} and has not joined; join it", principal.user),
            ),
            (None, ChannelKind::Direct) => {
                refuse(RejectCode::Forbidden, format!("{channel} is a conversation of others"))
            }
            (None, ChannelKind::Private) => refuse(
                RejectCode::Forbidden,
                format!("{channel} is private; one of its moderators can invite {}", principal.user),
            ),
        }
    }

    /// Checks that somebody, whose token says so, may write here.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may_write(&self, principal: &Principal, channel: &Name) -> Result<(), Reject> {
        self.may_read(principal, channel)?;
        let role = self.acts_as(principal, channel);
        let least = match self.post_rule() {
            _ if role == Some(MemberRole::Reader) => MemberRole::Member,
            PostRule::Everyone => return Ok(()),
            PostRule::Members => MemberRole::Member,
            PostRule::Moderators => MemberRole::Moderator,
        };
        if role >= Some(least) {
            return Ok(());
        }
        let text = format!("{} may not write in {channel}: that takes a {}", principal.user, least.as_str());
        refuse(RejectCode::Forbidden, text)
    }

    /// What somebody may do to a document, whose token says that they may read it.
    ///
    /// # Errors
    /// `forbidden`, if they may not even read it.
    pub fn document_access(&self, principal: &Principal, document: &Name) -> Result<DocumentAccess, Reject> {
        self.may_read(principal, document)?;
        let may = |action| principal.may(action, document.as_str());
        if may(Action::Write) && self.may_write(principal, document).is_ok() {
            return Ok(DocumentAccess::Write);
        }
        // Who may write in general says nothing of who may comment; a reader only reads.
        let reads_only = self.acts_as(principal, document) == Some(MemberRole::Reader);
        let comments = (may(Action::Comment) || may(Action::Write)) && !reads_only;
        Ok(if comments { DocumentAccess::Comment } else { DocumentAccess::Read })
    }

    fn must_be(&self, principal: &Principal, channel: &Name, least: MemberRole) -> Result<MemberRole, Reject> {
        match self.acts_as(principal, channel).filter(|role| *role >= least) {
            Some(role) => Ok(role),
            None => {
                let text = format!("{} may not do that in {channel}: that takes a {}", principal.user, least.as_str());
                refuse(RejectCode::Forbidden, text)
            }
        }
    }

    fn has_room(&self, channel: &Name) -> Result<(), Reject> {
        if self.members.len() >= MEMBERS_MAX {
            return refuse(
                RejectCode::LimitReached,
                format!("{channel} has {MEMBERS_MAX} members, which is all it takes"),
            );
        }
        Ok(())
    }

    /// Somebody becomes a member; `None` if they are one.
    ///
    /// # Errors
    /// `forbidden`, `limit_reached`.
    pub fn decide_join(
        &self,
        principal: &Principal,
        channel: &Name,
        now_us: u64,
    ) -> Result<Option<ChannelFact>, Reject> {
        let fact = |role| Ok(Some(member_fact(&principal.user, Some(role), &principal.user, now_us)));
        match self.role(&principal.user) {
            Some(MemberRole::Invited) => fact(MemberRole::Member),
            Some(role) if role >= MemberRole::Reader => Ok(None),
            None if self.kind() == ChannelKind::Direct => {
                refuse(RejectCode::Forbidden, format!("{channel} is a conversation of others"))
            }
            _ => {
                self.may_read(principal, channel)?;
                self.has_room(channel)?;
                // Who administers a channel without members becomes its owner, so that it has one.
                let alone = self.members.is_empty() && principal.may(Action::Admin, channel.as_str());
                fact(if alone { MemberRole::Owner } else { MemberRole::Member })
            }
        }
    }

    /// Somebody is no longer a member; `None` if they are none.
    ///
    /// # Errors
    /// `forbidden`, if nobody would be left to own it, or it is a direct conversation.
    pub fn decide_leave(
        &self,
        principal: &Principal,
        channel: &Name,
        now_us: u64,
    ) -> Result<Option<ChannelFact>, Reject> {
        if self.kind() == ChannelKind::Direct {
            return refuse(RejectCode::Forbidden, format!("{channel} is a direct conversation, which nobody leaves"));
        }
        match self.role(&principal.user) {
            None => Ok(None),
            Some(MemberRole::Banned) => {
                refuse(RejectCode::Forbidden, format!("{} is banned from {channel}", principal.user))
            }
            Some(MemberRole::Owner) if self.members.len() > 1 && self.owners() == 1 => {
                let text = format!("{} is the only owner of {channel}; make somebody else owner first", principal.user);
                refuse(RejectCode::Forbidden, text)
            }
            Some(_) => Ok(Some(member_fact(&principal.user, None, &principal.user, now_us))),
        }
    }

    fn owners(&self) -> usize {
        self.members.values().filter(|member| member.role == MemberRole::Owner).count()
    }

    /// Somebody gives somebody a role, invites, bans or removes them; `None` if they are that already.
    ///
    /// # Errors
    /// `forbidden`, `user_unknown`, `limit_reached`.
    pub fn decide_member(
        &self,
        principal: &Principal,
        channel: &Name,
        user: &Name,
        role: Option<MemberRole>,
        now_us: u64,
    ) -> Result<Option<ChannelFact>, Reject> {
        if self.kind() == ChannelKind::Direct {
            let text = format!("{channel} is a direct conversation, whose members do not change");
            return refuse(RejectCode::Forbidden, text);
        }
        let current = self.role(user);
        // Members ask others in; everything else is for those who look after the channel.
        let invites = role == Some(MemberRole::Invited) && current.is_none();
        let least = if invites { MemberRole::Member } else { MemberRole::Moderator };
        let own = self.must_be(principal, channel, least)?;
        if current.is_none() && role.is_none() {
            return refuse(RejectCode::UserUnknown, format!("{user} is not a member of {channel}"));
        }
        if current == role {
            return Ok(None);
        }
        if role == Some(MemberRole::Invited) && current >= Some(MemberRole::Reader) {
            return Ok(None);
        }
        if own != MemberRole::Owner && (current >= Some(own) || role >= Some(own)) {
            let text = format!("{} may not do that to {user} in {channel}: that takes an owner", principal.user);
            return refuse(RejectCode::Forbidden, text);
        }
        if current == Some(MemberRole::Owner) && self.owners() == 1 && role != Some(MemberRole::Owner) {
            return refuse(
                RejectCode::Forbidden,
                format!("{user} is the only owner of {channel}; make another one first"),
            );
        }
        if current.is_none() {
            self.has_room(channel)?;
        }
        Ok(Some(member_fact(user, role, &principal.user, now_us)))
    }

    /// Somebody changes what the channel is; `None` if it is that already.
    ///
    /// # Errors
    /// `forbidden`, `parameter_invalid`.
    pub fn decide_change(
        &self,
        principal: &Principal,
        channel: &Name,
        topic: Option<String>,
        kind: Option<ChannelKind>,
        post: Option<PostRule>,
        now_us: u64,
    ) -> Result<Option<ChannelFact>, Reject> {
        let least = if kind.is_some() { MemberRole::Owner } else { MemberRole::Moderator };
        self.must_be(principal, channel, least)?;
        if kind == Some(ChannelKind::Direct) || self.kind() == ChannelKind::Direct {
            let text = format!("{channel}: no channel becomes a direct conversation or stops to be one");
            return refuse(RejectCode::ParameterInvalid, text);
        }
        let is_document = |kind| kind == ChannelKind::Document;
        if kind.is_some_and(|kind| is_document(kind) != is_document(self.kind())) {
            let text = format!("{channel}: no channel becomes a document or stops to be one");
            return refuse(RejectCode::KindMismatch, text);
        }
        let unsaid = || ChannelInfo {
            kind: ChannelKind::Open,
            topic: String::new(),
            post: PostRule::Everyone,
            by: principal.user.clone(),
            created_us: now_us,
        };
        let before = self.info.clone().unwrap_or_else(unsaid);
        let after = ChannelInfo {
            kind: kind.unwrap_or(before.kind),
            topic: topic.unwrap_or_else(|| before.topic.clone()),
            post: post.unwrap_or(before.post),
            ..before.clone()
        };
        Ok((self.info.as_ref() != Some(&after)).then_some(ChannelFact::Info(after)))
    }

    /// Checks that somebody may give the message of `author` another text, or (`redact`) take it back.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may_amend(&self, principal: &Principal, channel: &Name, author: &Name, redact: bool) -> Result<(), Reject> {
        self.may_read(principal, channel)?;
        if *author == principal.user {
            return Ok(());
        }
        if redact {
            return self.must_be(principal, channel, MemberRole::Moderator).map(drop);
        }
        refuse(RejectCode::Forbidden, format!("the message is {author}'s; nobody else may change its text"))
    }

    /// Checks that the texts of so many messages can be remembered as taken back.
    ///
    /// # Errors
    /// `limit_reached`.
    pub fn may_redact_more(&mut self, first_kept: Position) -> Result<(), Reject> {
        if self.redacted.len() >= REDACTIONS_MAX {
            self.redacted = self.redacted.split_off(&first_kept);
        }
        if self.redacted.len() >= REDACTIONS_MAX {
            let text = format!("{REDACTIONS_MAX} messages of the channel were taken back, which is all it takes");
            return refuse(RejectCode::LimitReached, text);
        }
        Ok(())
    }

    /// Whether the text of a message was taken back.
    pub fn is_redacted(&self, position: Position) -> bool {
        !self.redacted.is_empty() && self.redacted.contains(&position)
    }

    /// The members a text mentions: `@name`, as a word.
    pub fn mentions(&self, body: &[u8]) -> Vec<Name> {
        if self.members.is_empty() || !body.contains(&b'@') {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(body);
        let mut mentions: Vec<Name> = Vec::new();
        for word in text.split_whitespace().filter_map(|word| word.strip_prefix('@')) {
            // A name may end in what ends a sentence; the longest that is somebody's counts.
            let mut name = word;
            let member = loop {
                if let Some((member, _)) = self.members.get_key_value(name) {
                    break Some(member);
                }
                match name.char_indices().next_back() {
                    Some((at, last)) if at > 0 && !last.is_alphanumeric() => name = &name[..at],
                    _ => break None,
                }
            };
            if let Some(member) = member.filter(|member| !mentions.contains(member)) {
                mentions.push(member.clone());
            }
            if mentions.len() == MENTIONS_MAX {
                break;
            }
        }
        mentions
    }

    /// Notes who was mentioned in a message.
    pub fn note_mentions(&mut self, mentions: &[Name], position: Position) {
        for user in mentions {
            self.mentioned.entry(user.clone()).or_default().push(position);
        }
    }

    /// How far a user has read in a channel that came up to `head`, with so many messages.
    pub fn reading(&self, user: &Name, head: Position) -> Reading {
        // What was read in an earlier life of a channel in memory does not count.
        self.readings.get(user).filter(|reading| reading.position <= head).copied().unwrap_or_default()
    }

    /// How often a user was mentioned after what they have read, as far as that is kept.
    pub fn unread_mentions(&self, user: &Name, head: Position) -> u64 {
        let read = self.reading(user, head).position;
        self.mentioned.get(user).map_or(0, |mentions| mentions.after(read))
    }

    /// A user has read further; `None` if not.
    pub fn decide_reading(&self, user: &Name, position: Position, number: u64, head: Position) -> Option<ChannelFact> {
        let reading = Reading { position: position.min(head), number };
        (reading.position > self.reading(user, head).position)
            .then(|| ChannelFact::Reading { user: user.clone(), reading })
    }
}

fn member_fact(user: &Name, role: Option<MemberRole>, by: &Name, now_us: u64) -> ChannelFact {
    let member = role.map(|role| Member { role, since_us: now_us, by: by.clone() });
    ChannelFact::Member { user: user.clone(), member }
}

/// The users of a direct conversation: those named and the one who opens it.
///
/// # Errors
/// `parameter_invalid`, if there are too many or too few.
pub fn direct_users(by: &Name, named: Vec<Name>) -> Result<BTreeSet<Name>, Reject> {
    let users: BTreeSet<Name> = named.into_iter().chain([by.clone()]).collect();
    if !(2..=DIRECT_USERS_MAX).contains(&users.len()) {
        let text = format!(
            "a direct conversation has 2 to {DIRECT_USERS_MAX} people with the one who opens it; this has {}",
            users.len()
        );
        return refuse(RejectCode::ParameterInvalid, text);
    }
    Ok(users)
}

/// The name of the direct conversation of these users: made from theirs, so that it is found again, and short. Part of the
/// format of data on disk.
pub fn direct_name(users: &BTreeSet<Name>) -> Name {
    // FNV-1a over the names, each ended by a zero byte, which no name holds. Two groups with one name are told apart by
    // their members.
    let bytes = users.iter().flat_map(|user| user.as_str().bytes().chain([0]));
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    Name::new(&format!("{DIRECT_PREFIX}{hash:032x}")).expect("hexadecimal digits make a name")
}

#[cfg(test)]
mod tests;
