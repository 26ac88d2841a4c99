//! What people do with the channels this core owns beside writing and reading: membership, roles, topics, read marks,
//! direct conversations, search.
//!
//! Decisions are taken in at once, so that the next one sees them; whatever shows them waits until they are durable.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::channel::{Kept, Roster, direct_name, direct_users};
use thalweg_domain::fact::ChannelFact;
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::{ChannelSettings, Event, Message, Posting};
use thalweg_protocol::chat::{ChannelKind, ChannelReport, ChatOp, Context, MemberRole};
use thalweg_protocol::ids::{ChannelId, ChannelKey, Name, Partition, Position, Sequence, SessionId};
use thalweg_protocol::limits::SEARCH_MESSAGES;
use thalweg_protocol::op::{Delivery, DeliveryKind, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{AuditEvent, Origin, Output, OwnerMessage, SessionMessage};
use crate::log::Purpose;
use crate::owner::{Action, unknown};
use crate::shard::Shard;

impl Shard {
    /// A client asks something about a channel, its members or the people in it.
    pub(crate) fn request_chat(&mut self, origin: Origin, principal: Arc<Principal>, op: ChatOp) -> Result<(), Reject> {
        if let Some(bytes) = bytes_written(&op) {
            self.spend_write(origin.link, &principal, bytes)?;
        }
        let (channel, access) = match &op {
            ChatOp::SetProfile(_) | ChatOp::GetProfile { .. } => {
                return self.request_user(origin, principal, op);
            }
            ChatOp::SetPresence { away } => {
                self.request_set_presence(origin, *away);
                return Ok(());
            }
            ChatOp::ListChannels { .. } => return self.request_list(origin, principal, op),
            ChatOp::OpenDirect { users } => {
                self.not_draining()?;
                let users = direct_users(&principal.user, users.clone())?;
                (direct_name(&users), Access::Write)
            }
            ChatOp::Join { channel }
            | ChatOp::Leave { channel }
            | ChatOp::SetMember { channel, .. }
            | ChatOp::SetChannel { channel, .. } => {
                self.not_draining()?;
                (channel.clone(), Access::Read)
            }
            ChatOp::MarkRead { channel, .. } => {
                self.not_draining()?;
                (channel.clone(), Access::Read)
            }
            ChatOp::AboutChannel { channel } | ChatOp::WhoIsIn { channel } | ChatOp::SearchHistory { channel, .. } => {
                (channel.clone(), Access::Read)
            }
        };
        principal.require(access, channel.as_str())?;
        self.admit_request(origin.link)?;
        let partition = self.partition(&principal.tenant, channel.as_str());
        let channel = ChannelKey { tenant: principal.tenant.clone(), channel };
        self.tell_owner(partition, OwnerMessage::Channel { origin, principal, channel, op: Box::new(op) });
        Ok(())
    }

    /// Somebody asks something about a channel of this core.
    pub(crate) fn about_channel(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        channel: ChannelKey,
        op: ChatOp,
    ) {
        if let Err(reject) = self.try_about_channel(origin, principal, channel, op) {
            self.refuse(origin, reject);
        }
    }

    fn try_about_channel(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        key: ChannelKey,
        op: ChatOp,
    ) -> Result<(), Reject> {
        if let ChatOp::OpenDirect { users } = op {
            return self.open_direct(origin, principal, key, users);
        }
        let now_us = self.now.wall_us;
        let name = key.channel.clone();
        let channel = self.existing_channel(&key)?.ok_or_else(|| unknown(&key))?;
        let roster = channel.roster();
        let fact = match op {
            ChatOp::Join { .. } => roster.decide_join(principal, &name, now_us)?,
            ChatOp::Leave { .. } => roster.decide_leave(principal, &name, now_us)?,
            ChatOp::SetMember { user, role, .. } => roster.decide_member(principal, &name, &user, role, now_us)?,
            ChatOp::SetChannel { topic, kind, post, .. } => {
                roster.decide_change(principal, &name, topic, kind, post, now_us)?
            }
            ChatOp::MarkRead { position, number, .. } => {
                roster.may_read(principal, &name)?;
                let number = number.min(channel.messages());
                roster.decide_reading(&principal.user, position, number, channel.head())
            }
            ChatOp::AboutChannel { .. } => {
                roster.may_read(principal, &name)?;
                let op = self.channel_report(&key, &principal.user);
                self.after_appends(Action::Answer { origin, op });
                return Ok(());
            }
            ChatOp::WhoIsIn { .. } => {
                roster.may_read(principal, &name)?;
                self.answer_who_is_in(origin, &key);
                return Ok(());
            }
            ChatOp::SearchHistory { query, before, limit, .. } => {
                roster.may_read(principal, &name)?;
                self.search(origin, key, query, before, limit);
                return Ok(());
            }
            ChatOp::OpenDirect { .. }
            | ChatOp::SetProfile(_)
            | ChatOp::GetProfile { .. }
            | ChatOp::SetPresence { .. }
            | ChatOp::ListChannels { .. } => {
                return Err(Reject::new(RejectCode::Internal, "this request is not about a channel"));
            }
        };
        match fact {
            Some(fact) => self.change_channel(origin, principal, &key, fact),
            // It is so already; but what made it so may not be durable yet.
            None => {
                self.after_appends(Action::Answer { origin, op: ServerOp::Done });
                Ok(())
            }
        }
    }

    /// Takes in what was decided about a channel, records it, and tells its readers, if it concerns them.
    fn change_channel(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        key: &ChannelKey,
        fact: ChannelFact,
    ) -> Result<(), Reject> {
        self.storage_has_room()?;
        let (kind, body, role, expelled) = match &fact {
            ChannelFact::Info(info) => (Some(DeliveryKind::Info), info.topic.clone(), None, None),
            ChannelFact::Member { user, member } => {
                let role = member.as_ref().map(|member| member.role);
                (Some(DeliveryKind::Membership), user.to_string(), role, Some(user.clone()))
            }
            ChannelFact::Reading { .. } | ChannelFact::Redacted { .. } | ChannelFact::Snapshot(_) => {
                (None, String::new(), None, None)
            }
        };
        let Some(channel) = self.channel_mut(key) else { return Err(unknown(key)) };
        let is_open = |kind| matches!(kind, ChannelKind::Open | ChannelKind::Document);
        let was_open = is_open(channel.roster().kind());
        channel.roster_mut().set(&fact);
        let id = channel.id();
        let closes = was_open && !is_open(channel.roster().kind());
        let context = Context { role, ..Context::default() };
        let posting = kind.and_then(|kind| {
            let body = Bytes::from(body.into_bytes());
            self.note(key, id, kind, principal.user.clone(), context, body)
        });
        let mut actions = vec![Action::Answer { origin, op: ServerOp::Done }];
        if let Some(user) = expelled {
            actions.push(Action::Expel { channel: key.clone(), user: Some(user) });
        }
        if closes {
            actions.push(Action::Expel { channel: key.clone(), user: None });
        }
        if let Some(posting) = &posting {
            let object = match &fact {
                ChannelFact::Member { user, .. } => {
                    format!("{} {user} {}", key.channel, role.map_or("none", MemberRole::as_str))
                }
                _ => key.channel.to_string(),
            };
            debug_assert_eq!(posting.id, id);
            self.audit(principal, "change_channel", object, None);
        }
        let partition = self.partition(&key.tenant, key.channel.as_str());
        self.append_change(partition, key.clone(), id, vec![fact], posting, actions);
        Ok(())
    }

    /// Records facts of a channel and what its readers are told of them. What a channel in memory tells its readers is not
    /// in the log, but waits for the facts that are.
    pub(crate) fn append_change(
        &mut self,
        partition: Partition,
        channel: ChannelKey,
        id: ChannelId,
        facts: Vec<ChannelFact>,
        posting: Option<Posting>,
        actions: Vec<Action>,
    ) {
        let in_log = self.channel_id(&channel).is_some_and(|(_, logged)| logged);
        if in_log || posting.is_none() {
            return self.append(partition, Event::ChannelChanged { channel, id, facts, posting }, actions);
        }
        let told = Event::ChannelChanged { channel: channel.clone(), id, facts: Vec::new(), posting };
        self.append(partition, Event::ChannelChanged { channel, id, facts, posting: None }, actions);
        self.append_posting_after(self.log.appended(), told);
    }

    /// What the node itself adds to a channel.
    fn note(
        &mut self,
        key: &ChannelKey,
        id: ChannelId,
        kind: DeliveryKind,
        user: Name,
        context: Context,
        body: Bytes,
    ) -> Option<Posting> {
        let now_us = self.now.wall_us;
        let channel = self.channel_mut(key)?;
        let (position, timestamp_us) = (channel.decide_position(), channel.decide_timestamp(now_us));
        let context = Context { number: channel.messages(), ..context };
        let delivery = Delivery { position, timestamp_us, kind, user, generation: None, body, key: 0, context };
        let message = Arc::new(Message::new(delivery, SessionId(0), Sequence(0)));
        Some(Posting { channel: key.clone(), id, message })
    }

    /// Tells the cores with readers that somebody, or (`None`) everybody who is no member, may not read a channel any more,
    /// if that is so.
    pub(crate) fn expel(&mut self, key: &ChannelKey, user: Option<Name>) {
        let Some((channel, cores)) = self.channel_with_readers(key) else { return };
        let roster = channel.roster();
        let text = format!("{} may not be read any more by who is not a member of it", key.channel);
        let reject = Reject::new(RejectCode::Forbidden, text);
        let may_stay = |user: &Name| match roster.role(user) {
            Some(MemberRole::Banned) => false,
            Some(role) if role >= MemberRole::Reader => true,
            _ => matches!(roster.kind(), ChannelKind::Open | ChannelKind::Document),
        };
        match user {
            Some(user) if may_stay(&user) => {}
            Some(user) => {
                for (core, fan) in cores {
                    let (user, reject) = (user.clone(), reject.clone());
                    self.tell_session(core, SessionMessage::Expelled { fan, user, reject });
                }
                self.expel_watchers(key, &user, &reject);
            }
            None => {
                let members = Arc::new(roster.users().filter(|user| may_stay(user)).cloned().collect());
                for (core, fan) in cores {
                    let (members, reject) = (Arc::clone(&members), reject.clone());
                    self.tell_session(core, SessionMessage::Closed { fan, members, reject });
                }
            }
        }
    }

    fn open_direct(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        key: ChannelKey,
        users: Vec<Name>,
    ) -> Result<(), Reject> {
        let users = direct_users(&principal.user, users)?;
        match self.existing_channel(&key)? {
            Some(channel) if channel.roster().is_direct_of(&users) => {}
            Some(_) => {
                let text = format!("{} is the conversation of others", key.channel);
                return Err(Reject::new(RejectCode::Forbidden, text));
            }
            None => {
                self.not_draining()?;
                let facts = Roster::decide_direct(&users, &principal.user, self.now.wall_us);
                let settings = ChannelSettings::new(self.config.durability);
                self.make_channel(principal, &key, settings, facts, Vec::new())?;
                self.audit(principal, "open_direct", key.channel.to_string(), None);
            }
        }
        let op = self.channel_report(&key, &principal.user);
        self.after_appends(Action::Answer { origin, op });
        Ok(())
    }

    fn channel_report(&mut self, key: &ChannelKey, user: &Name) -> ServerOp {
        let now_us = self.now.wall_us;
        let Some(channel) = self.channel_mut(key) else { return ServerOp::Reject(unknown(key)) };
        let roster = channel.roster();
        ServerOp::ChannelReport(Box::new(ChannelReport {
            channel: key.channel.clone(),
            kind: roster.kind(),
            topic: roster.topic().to_owned(),
            post: roster.post_rule(),
            created_us: roster.created_us(),
            first: channel.first(now_us),
            head: channel.head(),
            messages: channel.messages(),
            durability: channel.settings().durability,
            you: roster.role(user),
            members_total: roster.members_total() as u32,
            members: roster.members(),
        }))
    }

    /// Looks through the messages before a position, as many as one answer takes.
    fn search(&mut self, origin: Origin, key: ChannelKey, query: String, before: Position, limit: u32) {
        let now_us = self.now.wall_us;
        let Some(channel) = self.channel_mut(&key) else { return self.refuse(origin, unknown(&key)) };
        let (id, first, end) = (channel.id(), channel.first(now_us), channel.head().next());
        let to = if before == Position(0) { end } else { before.min(end) };
        let from = Position(to.0.saturating_sub(SEARCH_MESSAGES as u64)).max(first);
        if from >= to {
            return self.answer_search(origin, &key, &query, Position(0), limit, &[]);
        }
        // The newest first: what is on disk is looked at by the next request, if some of it is at hand.
        let from = match channel.read(from, now_us) {
            Kept::OnDisk { to: at_hand, .. } if at_hand < to => at_hand,
            _ => from,
        };
        match channel.read(from, now_us) {
            // Fewer than were asked for fit in one answer: those that are missing are looked at next.
            Kept::AtHand(messages) => {
                let messages: Vec<_> = messages.into_iter().take_while(|message| message.position < to).collect();
                let all_there = messages.last().is_some_and(|last| last.position.next() == to);
                if all_there {
                    self.answer_search(origin, &key, &query, from, limit, &messages);
                } else {
                    self.search_narrower(origin, key, query, from, to, limit);
                }
            }
            Kept::OnDisk { from, to: at_hand } => {
                let purpose = Purpose::Search { origin, query, limit };
                self.read_disk(purpose, key, id, from, to.min(at_hand));
            }
        }
    }

    /// Looks at the newer half of a stretch whose messages do not fit in one answer.
    fn search_narrower(
        &mut self,
        origin: Origin,
        key: ChannelKey,
        query: String,
        from: Position,
        to: Position,
        limit: u32,
    ) {
        let now_us = self.now.wall_us;
        let Some(channel) = self.channel_mut(&key) else { return self.refuse(origin, unknown(&key)) };
        let mut from = from;
        loop {
            from = Position(from.0 + (to.0 - from.0) / 2);
            let Kept::AtHand(messages) = channel.read(from, now_us) else { break };
            let messages: Vec<_> = messages.into_iter().take_while(|message| message.position < to).collect();
            if messages.last().is_none_or(|last| last.position.next() == to) || from.next() >= to {
                return self.answer_search(origin, &key, &query, from, limit, &messages);
            }
        }
        // What was at hand is not any more: none of this stretch was looked at.
        self.answer_search(origin, &key, &query, to, limit, &[]);
    }

    /// Answers a search with the matches among messages that begin at `from`.
    pub(crate) fn answer_search(
        &mut self,
        origin: Origin,
        key: &ChannelKey,
        query: &str,
        from: Position,
        limit: u32,
        messages: &[Arc<Message>],
    ) {
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        let (first, head) = (self.first_of(key), self.head_of(key));
        let query = query.to_lowercase();
        let mut next = if from <= first { Position(0) } else { from };
        let mut deliveries = Vec::new();
        for message in messages.iter().rev().filter(|message| matches(message, &query)) {
            if deliveries.len() == limit {
                next = deliveries_end(&deliveries).unwrap_or(next);
                break;
            }
            deliveries.push((message.position, message.payload.clone()));
        }
        let deliveries = deliveries.into_iter().map(|(_, payload)| payload).collect();
        self.answer(origin, ServerOp::Page { first, next, head, deliveries });
    }

    pub(crate) fn audit(
        &mut self,
        principal: &Arc<Principal>,
        action: &'static str,
        object: String,
        refused: Option<RejectCode>,
    ) {
        let principal = Arc::clone(principal);
        self.output(Output::Audit(AuditEvent { principal, action, object, refused }));
    }
}

/// What a request writes, in bytes of text, if it writes at all.
fn bytes_written(op: &ChatOp) -> Option<usize> {
    match op {
        ChatOp::SetProfile(profile) => Some(profile.display.len() + profile.about.len() + profile.status.len()),
        ChatOp::SetChannel { topic, .. } => Some(topic.as_ref().map_or(0, String::len)),
        ChatOp::Join { .. }
        | ChatOp::Leave { .. }
        | ChatOp::SetMember { .. }
        | ChatOp::OpenDirect { .. }
        | ChatOp::MarkRead { .. }
        | ChatOp::SetPresence { .. } => Some(0),
        ChatOp::AboutChannel { .. }
        | ChatOp::ListChannels { .. }
        | ChatOp::GetProfile { .. }
        | ChatOp::WhoIsIn { .. }
        | ChatOp::SearchHistory { .. } => None,
    }
}

/// Where to go on after the last of some matches, newest first.
fn deliveries_end(deliveries: &[(Position, Bytes)]) -> Option<Position> {
    deliveries.last().map(|(position, _)| *position)
}

/// Whether a message, in its first or an edited text, holds the text that is looked for, in lower case.
fn matches(message: &Message, query: &str) -> bool {
    matches!(message.kind, DeliveryKind::Message | DeliveryKind::Edit)
        && !message.context.redacted
        && String::from_utf8_lossy(&message.body).to_lowercase().contains(query)
}
