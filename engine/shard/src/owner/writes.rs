//! Writes to the channels this core owns: what somebody may do to which message, and doing it once.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::channel::{Roster, check_name, mentions_model};
use thalweg_domain::dedupe::{Outcome, Verdict, Writer};
use thalweg_domain::fact::ChannelFact;
use thalweg_domain::permission::Principal;
use thalweg_domain::record::{ChannelSettings, Event, Message, Posting};
use thalweg_protocol::chat::{ChannelAbout, Context, PostKind};
use thalweg_protocol::ids::{ChannelKey, Lsn, Name, Partition, Sequence};
use thalweg_protocol::limits::REACTION_BYTES_MAX;
use thalweg_protocol::op::{Delivery, DeliveryKind, Durability, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::{Action, Held, unknown};
use crate::contract::Origin;
use crate::documents::{is_edit, no_channel, no_document};
use crate::log::Purpose;
use crate::shard::Shard;

impl Shard {
    /// Somebody writes to a channel of this core. What one session writes to a partition is carried out in its order, though
    /// one of it may have to wait for the disk.
    pub(crate) fn publish(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        publish: Publish,
        limited: Option<Box<Reject>>,
    ) {
        let partition = self.partition(&principal.tenant, publish.channel.as_str());
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        if let Some(held) = self.owner.held.get_mut(&(partition, writer)) {
            held.push_back(Held { origin, principal: Arc::clone(principal), publish, limited });
            return;
        }
        self.publish_now(origin, principal, publish, None, limited);
    }

    fn publish_now(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        publish: Publish,
        target: Option<&Arc<Message>>,
        limited: Option<Box<Reject>>,
    ) {
        let published = match is_edit(publish.post.kind) {
            true => self.publish_edit(origin, principal, publish, limited),
            false => self.try_publish(origin, principal, publish, target, limited),
        };
        if let Err(reject) = published {
            self.refuse(origin, reject);
        }
    }

    /// A message that is meant by a write was read from disk, or could not be; then what was written after it is carried out.
    pub(crate) fn target_read(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        publish: Publish,
        result: Result<Vec<Arc<Message>>, Reject>,
    ) {
        let (target, channel) = (publish.post.target, publish.channel.clone());
        self.release_writer(principal, &channel, |shard| {
            match result.map(|messages| messages.into_iter().find(|message| message.position == target)) {
                Ok(Some(message)) => shard.publish_now(origin, principal, publish, Some(&message), None),
                Ok(None) => shard.refuse(origin, no_message(&publish)),
                Err(reject) => shard.refuse(origin, reject),
            }
        });
    }

    /// What a session writes next to the partition of a channel waits for what it wrote last.
    pub(crate) fn hold_writer(&mut self, principal: &Principal, channel: &Name) {
        let partition = self.partition(&principal.tenant, channel.as_str());
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        self.owner.held.entry((partition, writer)).or_default();
    }

    /// Carries out what a session's other writes wait for, and then those, unless they have to wait again.
    pub(crate) fn release_writer(&mut self, principal: &Principal, channel: &Name, run: impl FnOnce(&mut Self)) {
        let partition = self.partition(&principal.tenant, channel.as_str());
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        let mut held = self.owner.held.remove(&(partition, writer.clone())).unwrap_or_default();
        run(self);
        if let Some(waits) = self.owner.held.get_mut(&(partition, writer.clone())) {
            waits.append(&mut held);
        }
        while let Some(next) = held.pop_front() {
            self.publish_now(next.origin, &next.principal, next.publish, None, next.limited);
            if let Some(waits) = self.owner.held.get_mut(&(partition, writer.clone())) {
                waits.append(&mut held);
            }
        }
    }

    fn try_publish(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        publish: Publish,
        target: Option<&Arc<Message>>,
        limited: Option<Box<Reject>>,
    ) -> Result<(), Reject> {
        let key = ChannelKey { tenant: principal.tenant.clone(), channel: publish.channel.clone() };
        let partition = self.partition(&key.tenant, key.channel.as_str());
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        let logged = match self.owner.channels.get(&key) {
            Some(owned) => owned.channel.is_logged(),
            None => self.config.durability != Durability::Memory,
        };
        let dedupe = self.owner.dedupe(partition, logged);
        if let Verdict::Repeated(Outcome { position, timestamp_us }) =
            dedupe.check(&writer, publish.sequence, publish.retry)?
        {
            self.counters.duplicates += 1;
            let op = ServerOp::Published { position, timestamp_us, duplicate: true };
            // The first copy may not be durable yet, and an answer would claim that it is.
            self.after_appends(Action::Answer { origin, op });
            return Ok(());
        }
        if let Some(reject) = limited {
            return Err(*reject);
        }
        self.not_draining()?;
        if logged {
            self.storage_has_room()?;
        }
        self.writes_are_served()?;
        if self.existing(&key)?.is_none() {
            if !publish.make || publish.post.kind != PostKind::Message {
                return Err(unknown(&key));
            }
            check_name(&key.channel)?;
            let facts = Roster::decide_new(&ChannelAbout::default(), &principal.user, self.now.wall_us);
            self.make_channel(principal, &key, ChannelSettings::new(self.config.durability), facts, Vec::new())?;
        }
        if !self.may_publish(&key, principal, &publish, target)? {
            return self.read_target(origin, principal, key, publish);
        }
        self.publish_allowed(origin, principal, key, publish, logged)
    }

    /// Checks that somebody may write what they want to; `false` if the message that is meant must be read first.
    fn may_publish(
        &mut self,
        key: &ChannelKey,
        principal: &Arc<Principal>,
        publish: &Publish,
        target: Option<&Arc<Message>>,
    ) -> Result<bool, Reject> {
        let now_us = self.now.wall_us;
        let Some(owned) = self.owner.channels.get_mut(key) else { return Err(unknown(key)) };
        let (channel, name, post) = (&mut owned.channel, &key.channel, publish.post);
        if channel.is_document() {
            return Err(no_channel(name));
        }
        if post.target > channel.head() || (post.kind != PostKind::Message && post.target < channel.first(now_us)) {
            return Err(no_message(publish));
        }
        match post.kind {
            PostKind::Update | PostKind::Operations | PostKind::Version | PostKind::Restore => {
                return Err(no_document(name));
            }
            PostKind::Message => channel.roster().may_write(principal, name)?,
            PostKind::React | PostKind::Unreact => {
                channel.roster().may_write(principal, name)?;
                check_reaction(&publish.body)?;
            }
            PostKind::Edit | PostKind::Redact => {
                let redact = post.kind == PostKind::Redact;
                if channel.roster().is_redacted(post.target) {
                    return Err(no_message(publish));
                }
                let at_hand = channel.at_hand(post.target);
                let Some(target) = target.or(at_hand.as_ref()) else { return Ok(false) };
                if target.kind != DeliveryKind::Message {
                    return Err(no_message(publish));
                }
                channel.roster().may_amend(principal, name, &target.user, redact)?;
                if redact {
                    let first = channel.first(now_us);
                    channel.roster_mut().may_redact_more(first)?;
                } else {
                    channel.roster().may_write(principal, name)?;
                }
            }
        }
        Ok(true)
    }

    /// Reads the message that a write means from disk; what its session writes next waits for it.
    fn read_target(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        key: ChannelKey,
        publish: Publish,
    ) -> Result<(), Reject> {
        let Some(owned) = self.owner.channels.get(&key) else { return Err(unknown(&key)) };
        let (id, target) = (owned.channel.id(), publish.post.target);
        self.hold_writer(principal, &key.channel);
        let purpose = Purpose::Target { origin, principal: Arc::clone(principal), publish: Box::new(publish) };
        self.read_disk(purpose, key, id, target, target.next());
        Ok(())
    }

    /// Whether a command whose outcome is in the log was carried out.
    pub(crate) fn check_repeated(
        &mut self,
        partition: Partition,
        writer: &Writer,
        sequence: Sequence,
        retry: bool,
    ) -> Result<Verdict, Reject> {
        self.owner.dedupe(partition, true).check(writer, sequence, retry)
    }

    /// Remembers a command whose outcome is appended next.
    pub(crate) fn remember(&mut self, writer: Writer, sequence: Sequence, outcome: Outcome, channel: &Name) {
        let partition = self.partition(&writer.tenant, channel.as_str());
        let lsn = self.log.next_lsn(partition);
        self.owner.dedupe(partition, true).remember(writer, sequence, outcome, lsn);
    }

    fn publish_allowed(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        key: ChannelKey,
        publish: Publish,
        logged: bool,
    ) -> Result<(), Reject> {
        let Publish { sequence, body, key: sealed, post, .. } = publish;
        let partition = self.partition(&key.tenant, key.channel.as_str());
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        let lsn = if logged { self.log.next_lsn(partition) } else { Lsn(self.owner.unlogged + 1) };
        let now_us = self.now.wall_us;
        let Some(owned) = self.owner.channels.get_mut(&key) else { return Err(unknown(&key)) };
        let channel = &mut owned.channel;
        let (position, id) = (channel.decide_position(), channel.id());
        let timestamp_us = channel.decide_timestamp(now_us);
        let says = post.kind == PostKind::Message;
        let mentions = if says { channel.roster().mentions(&body) } else { Vec::new() };
        channel.roster_mut().note_mentions(&mentions, position);
        let number = if says { channel.decide_number() } else { channel.messages() };
        let context = Context { target: post.target, number, mentions, ..Context::default() };
        let kind = match post.kind {
            PostKind::Message => DeliveryKind::Message,
            PostKind::Edit => DeliveryKind::Edit,
            PostKind::Redact => DeliveryKind::Redaction,
            PostKind::React => DeliveryKind::Reaction,
            PostKind::Unreact => DeliveryKind::Unreaction,
            PostKind::Update | PostKind::Operations | PostKind::Restore => DeliveryKind::Update,
            PostKind::Version => DeliveryKind::Version,
        };
        let body = if kind == DeliveryKind::Redaction { Bytes::new() } else { body };
        let user = principal.user.clone();
        let delivery = Delivery { position, timestamp_us, kind, user, generation: None, body, key: sealed, context };
        let mention = says && mentions_model(&delivery.body) && self.may_ask_any(principal);
        let message = Arc::new(Message::new(delivery, principal.session, sequence));
        let outcome = Outcome { position, timestamp_us };
        self.owner.dedupe(partition, logged).remember(writer, sequence, outcome, lsn);
        self.owner.unlogged += u64::from(!logged);
        let op = ServerOp::Published { position, timestamp_us, duplicate: false };
        let mut actions = vec![Action::AnswerWrite { origin, op, since_us: self.now.mono_us }];
        if mention {
            let (channel, principal, trace) = (key.clone(), Arc::clone(principal), origin.trace);
            actions.push(Action::Mention { channel, principal, trace });
        }
        self.counters.published += 1;
        let posting = Posting { channel: key.clone(), id, message };
        let event = if kind == DeliveryKind::Redaction {
            let fact = ChannelFact::Redacted { position: post.target };
            if let Some(channel) = self.channel_mut(&key) {
                channel.roster_mut().set(&fact);
            }
            Event::ChannelChanged { channel: key, id, facts: vec![fact], posting: Some(posting) }
        } else {
            Event::Published(posting)
        };
        self.append_posting(partition, logged, event, actions);
        Ok(())
    }
}

fn no_message(publish: &Publish) -> Reject {
    let text = format!(
        "{} has no message {} to do that to: there never was, it is no longer kept, or it was taken back",
        publish.channel, publish.post.target
    );
    Reject::new(RejectCode::MessageUnknown, text)
}

/// Checks that the body of a reaction is an emoji, or at least a short word.
fn check_reaction(body: &[u8]) -> Result<(), Reject> {
    let good = std::str::from_utf8(body).is_ok_and(|text| {
        (1..=REACTION_BYTES_MAX).contains(&text.len()) && !text.contains(|c: char| c.is_control() || c.is_whitespace())
    });
    if good {
        return Ok(());
    }
    let text = format!("a reaction is 1 to {REACTION_BYTES_MAX} bytes of text without white space, such as an emoji");
    Err(Reject::new(RejectCode::ParameterInvalid, text))
}
