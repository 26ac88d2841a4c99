//! The channels this core owns: decide, append, apply, answer, spread.

use std::collections::BTreeMap;

use std::sync::Arc;

use thalweg_domain::channel::{Channel, mentions_model};
use thalweg_domain::dedupe::{Dedupe, Outcome, Verdict, Writer};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::{ChannelSettings, Event, Message};
use thalweg_protocol::ids::{ChannelKey, CoreId, GenerationId, Name, Partition, Position, Sequence, SessionId};
use thalweg_protocol::limits::CHANNELS_MAX;
use thalweg_protocol::op::{Delivery, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Origin, SessionMessage};
use crate::counters::Stage;
use crate::fan::{FanId, SubscriptionRef};
use crate::shard::Shard;

/// What is done once an append is durable and applied.
#[derive(Debug)]
pub(crate) enum Action {
    /// Answer a request.
    Answer { origin: Origin, op: ServerOp },
    /// Answer a write, and measure how long it took.
    AnswerWrite { origin: Origin, op: ServerOp, since_us: u64 },
    /// Tell a core about a channel from now on.
    Attach { origin: Origin, channel: ChannelKey, fan: FanId },
    /// No longer; in order with `Attach`, which waits for the log.
    Detach { core: CoreId, channel: ChannelKey, fan: FanId },
    /// Somebody spoke to a model in a channel.
    Mention { channel: ChannelKey, user: Name, model: Name },
    /// The beginning of a generation is durable: its watchers may see it.
    Announce { generation: GenerationId },
    /// The tokens before `index` are in the channel's log.
    TokensLogged { generation: GenerationId, index: u32 },
    /// The end of a generation is durable: its watchers may see it.
    Conclude { generation: GenerationId },
}

/// A channel of this core.
struct Owned {
    channel: Channel,
    partition: Partition,
    /// The cores that have readers, and where they gather them.
    cores: Vec<(CoreId, FanId)>,
}

/// All channels of this core, and what their partitions remember of their writers.
#[derive(Default)]
pub(crate) struct Owner {
    channels: BTreeMap<ChannelKey, Owned>,
    dedupe: BTreeMap<Partition, Dedupe>,
}

impl Owner {
    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }
}

fn unknown(channel: &ChannelKey) -> Reject {
    let text = format!("there is no channel {}; publish or subscribe with `make`, or create it", channel.channel);
    Reject::new(RejectCode::ChannelUnknown, text)
}

impl Shard {
    pub(crate) fn create_channel(&mut self, origin: Origin, channel: ChannelKey, settings: ChannelSettings) {
        if self.owner.channels.contains_key(&channel) {
            self.after_appends(Action::Answer { origin, op: ServerOp::ChannelCreated { created: false } });
            return;
        }
        let answer = Action::Answer { origin, op: ServerOp::ChannelCreated { created: true } };
        if let Err(reject) = self.make_channel(&channel, settings, vec![answer]) {
            self.refuse(origin, reject);
        }
    }

    fn make_channel(
        &mut self,
        key: &ChannelKey,
        settings: ChannelSettings,
        actions: Vec<Action>,
    ) -> Result<(), Reject> {
        if self.owner.channels.len() >= CHANNELS_MAX {
            let text = format!("this core has {CHANNELS_MAX} channels, which is all it takes");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        let partition = self.partition(&key.tenant, key.channel.as_str());
        let owned = Owned { channel: Channel::new(settings), partition, cores: Vec::new() };
        self.owner.channels.insert(key.clone(), owned);
        self.append(partition, Event::ChannelCreated { channel: key.clone(), settings }, actions);
        Ok(())
    }

    pub(crate) fn publish(&mut self, origin: Origin, principal: &Arc<Principal>, publish: Publish) {
        if let Err(reject) = self.try_publish(origin, principal, publish) {
            self.refuse(origin, reject);
        }
    }

    fn try_publish(&mut self, origin: Origin, principal: &Arc<Principal>, publish: Publish) -> Result<(), Reject> {
        let key = ChannelKey { tenant: principal.tenant.clone(), channel: publish.channel };
        let partition = self.partition(&key.tenant, key.channel.as_str());
        let session = principal.session;
        let writer = Writer { tenant: principal.tenant.clone(), session };
        let dedupe = self.owner.dedupe.entry(partition).or_default();
        if let Verdict::Repeated(Outcome { position, timestamp_us }) =
            dedupe.check(&writer, publish.sequence, publish.retry)?
        {
            self.counters.duplicates += 1;
            let op = ServerOp::Published { position, timestamp_us, duplicate: true };
            // The first copy may not be durable yet, and an answer would claim that it is.
            self.after_appends(Action::Answer { origin, op });
            return Ok(());
        }
        if !self.owner.channels.contains_key(&key) {
            if !publish.make {
                return Err(unknown(&key));
            }
            self.make_channel(&key, ChannelSettings::default(), Vec::new())?;
        }
        let Some(owned) = self.owner.channels.get_mut(&key) else { return Err(unknown(&key)) };
        let position = owned.channel.decide_position();
        let timestamp_us = self.now.wall_us;
        let delivery = Delivery {
            position,
            timestamp_us,
            kind: DeliveryKind::Message,
            user: principal.user.clone(),
            generation: None,
            body: publish.body,
            key: publish.key,
        };
        let mention = mentions_model(&delivery.body).then(|| self.model(None)).and_then(Result::ok);
        let mention = mention.filter(|model| principal.may(Access::Ask, model.as_str()));
        let message = Arc::new(Message::new(delivery, session, publish.sequence));
        if let Some(dedupe) = self.owner.dedupe.get_mut(&partition) {
            dedupe.remember(writer, publish.sequence, Outcome { position, timestamp_us });
        }
        let op = ServerOp::Published { position, timestamp_us, duplicate: false };
        let mut actions = vec![Action::AnswerWrite { origin, op, since_us: self.now.mono_us }];
        if let Some(model) = mention {
            let (channel, user) = (key.clone(), principal.user.clone());
            actions.push(Action::Mention { channel, user, model });
        }
        self.counters.published += 1;
        self.append(partition, Event::Published { channel: key, message }, actions);
        Ok(())
    }

    /// Adds to a channel what a model says. The channel exists: a generation in it began with a message in it.
    pub(crate) fn publish_generated(
        &mut self,
        key: &ChannelKey,
        kind: DeliveryKind,
        user: Name,
        generation: GenerationId,
        body: bytes::Bytes,
        actions: Vec<Action>,
    ) {
        let Some(owned) = self.owner.channels.get_mut(key) else { return };
        let (position, partition) = (owned.channel.decide_position(), owned.partition);
        let timestamp_us = self.now.wall_us;
        let delivery = Delivery { position, timestamp_us, kind, user, generation: Some(generation), body, key: 0 };
        let message = Arc::new(Message::new(delivery, SessionId(0), Sequence(0)));
        self.append(partition, Event::Published { channel: key.clone(), message }, actions);
    }

    /// The recent past of a channel, for a model.
    pub(crate) fn conversation(&self, key: &ChannelKey) -> Vec<thalweg_protocol::generation::ChatMessage> {
        self.owner.channels.get(key).map_or_else(Vec::new, |owned| owned.channel.conversation())
    }

    pub(crate) fn attach(&mut self, origin: Origin, channel: ChannelKey, make: bool, fan: FanId) {
        let attach = Action::Attach { origin, channel: channel.clone(), fan };
        if self.owner.channels.contains_key(&channel) {
            self.after_appends(attach);
            return;
        }
        let made = if make {
            self.make_channel(&channel, ChannelSettings::default(), vec![attach])
        } else {
            Err(unknown(&channel))
        };
        if let Err(reject) = made {
            let Origin { core, link, request } = origin;
            self.tell_session(core, SessionMessage::Attached { link, request, result: Err(reject) });
        }
    }

    pub(crate) fn detach(&mut self, core: CoreId, channel: ChannelKey, fan: FanId) {
        self.after_appends(Action::Detach { core, channel, fan });
    }

    fn detach_now(&mut self, core: CoreId, channel: &ChannelKey, fan: FanId) {
        if let Some(owned) = self.owner.channels.get_mut(channel) {
            owned.cores.retain(|attached| *attached != (core, fan));
        }
    }

    pub(crate) fn read(&mut self, core: CoreId, channel: &ChannelKey, reader: SubscriptionRef, from: Position) {
        let Some(owned) = self.owner.channels.get(channel) else { return };
        let (first, messages) = (owned.channel.first(), owned.channel.read(from));
        self.tell_session(core, SessionMessage::History { reader, first, messages });
    }

    /// Takes a durable event into the state.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Published { channel, message } => {
                if let Some(owned) = self.owner.channels.get_mut(channel) {
                    owned.channel.apply(Arc::clone(message));
                }
            }
            // The rest was taken in when it was decided: an empty channel, tokens that had left already.
            Event::ChannelCreated { .. }
            | Event::GenerationStarted { .. }
            | Event::GenerationTokens { .. }
            | Event::GenerationFinished { .. } => {}
        }
    }

    /// Tells the cores with readers about a durable event.
    pub(crate) fn spread(&mut self, event: &Event) {
        let Event::Published { channel, message } = event else { return };
        let Some(owned) = self.owner.channels.get(channel) else { return };
        for (core, fan) in owned.cores.clone() {
            self.tell_session(core, SessionMessage::Appended { fan, message: Arc::clone(message) });
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Answer { origin, op } => self.answer(origin, op),
            Action::AnswerWrite { origin, op, since_us } => {
                self.sample(Stage::Publish, since_us);
                self.answer(origin, op);
            }
            Action::Attach { origin, channel, fan } => self.attach_now(origin, &channel, fan),
            Action::Detach { core, channel, fan } => self.detach_now(core, &channel, fan),
            Action::Mention { channel, user, model } => self.answer_in_channel(channel, user, model),
            Action::Announce { generation } => self.announce(generation),
            Action::TokensLogged { generation, index } => self.tokens_logged(generation, index),
            Action::Conclude { generation } => self.conclude(generation),
        }
    }

    fn attach_now(&mut self, origin: Origin, channel: &ChannelKey, fan: FanId) {
        let Origin { core, link, request } = origin;
        let Some(owned) = self.owner.channels.get_mut(channel) else { return };
        if !owned.cores.contains(&(core, fan)) {
            owned.cores.push((core, fan));
        }
        let result = Ok((owned.channel.first(), owned.channel.head()));
        self.tell_session(core, SessionMessage::Attached { link, request, result });
    }
}
