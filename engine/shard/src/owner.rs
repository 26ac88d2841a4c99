//! The channels this core owns: decide, append, apply, answer, spread.

mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use thalweg_domain::channel::{Channel, Kept, Roster, check_name};
use thalweg_domain::dedupe::{Dedupe, Writer};
use thalweg_domain::fact::ChannelFact;
use thalweg_domain::partition::ChannelState;
use thalweg_domain::permission::Principal;
use thalweg_domain::record::{ChannelSettings, Event, Message, Posting};
use thalweg_protocol::chat::{ChannelAbout, Context};
use thalweg_protocol::generation::ChatMessage;
use thalweg_protocol::ids::{
    ChannelId, ChannelKey, CoreId, GenerationId, Name, Partition, Position, Sequence, SessionId,
};
use thalweg_protocol::limits::{CHANNELS_MAX, HISTORY_BATCH_MESSAGES};
use thalweg_protocol::op::{Delivery, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Opening, Origin, SessionMessage, Ticket};
use crate::counters::Stage;
use crate::documents::{no_channel, without_its_part};
use crate::fan::{FanId, SubscriptionRef};
use crate::log::Purpose;
use crate::shard::Shard;

/// Whoever speaks to a channel that is being deleted is told to come back after this, in milliseconds.
const DELETING_DELAY_MS: u32 = 100;

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
    /// Somebody spoke to a model in a channel; `trace` is the span of their message.
    Mention { channel: ChannelKey, principal: Arc<Principal>, trace: u64 },
    /// Somebody, or everybody who is no member, may not be allowed to read a channel any more.
    Expel { channel: ChannelKey, user: Option<Name> },
    /// Tell the core of a session.
    Tell { core: CoreId, message: SessionMessage },
    /// What this core owned of a tenant is gone.
    TenantDeleted { origin: Origin, channels: u32 },
    /// The beginning of a generation is durable: its watchers may see it.
    Announce { generation: GenerationId },
    /// The tokens before `index` are in the channel's log.
    TokensLogged { generation: GenerationId, index: u32 },
    /// The end of a generation is durable: its watchers may see it.
    Conclude { generation: GenerationId },
    /// What there is to be known of a document is in its log: it is read from there.
    ReadDocument { document: ChannelKey, life: u64 },
    /// The same of a document that is to be read as it was.
    ReadPast { life: u64 },
    /// What a reader of a document begins with is durable: from now on its core is told of edits.
    OpenDocument { origin: Origin, document: ChannelKey, id: ChannelId, fan: FanId, opening: Box<Opening> },
}

/// A channel of this core.
struct Owned {
    channel: Channel,
    partition: Partition,
    /// The cores that have readers, and where they gather them.
    cores: Vec<(CoreId, FanId)>,
    /// The append that what is not logged must wait for: the channel's own making, and what waits for it already.
    depends_on: Ticket,
    /// Whether its end is in the log, and only waits to be durable.
    deleting: bool,
}

/// All channels of this core, and what their partitions remember of their writers.
#[derive(Default)]
pub(crate) struct Owner {
    channels: BTreeMap<ChannelKey, Owned>,
    /// Commands whose outcome is in the log.
    dedupe: BTreeMap<Partition, Dedupe>,
    /// Commands whose outcome is as volatile as their channels.
    dedupe_unlogged: BTreeMap<Partition, Dedupe>,
    /// Counts the latter, in place of positions in the log.
    unlogged: u64,
    /// How many of the channels are documents.
    documents: usize,
    /// Writers whose next write waits for a message to be read from disk, and what they wrote after it. Bounded by what a
    /// session may have unanswered.
    held: BTreeMap<(Partition, Writer), VecDeque<Held>>,
}

/// A write that waits for an earlier one of its writer.
struct Held {
    origin: Origin,
    principal: Arc<Principal>,
    publish: Publish,
    limited: Option<Box<Reject>>,
}

impl Owner {
    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }

    pub(crate) fn documents(&self) -> usize {
        self.documents
    }

    /// The channels of a tenant, in the order of their names.
    pub(crate) fn of_tenant<'a>(&'a self, tenant: &'a Name) -> impl Iterator<Item = (&'a ChannelKey, &'a Channel)> {
        let start = ChannelKey { tenant: tenant.clone(), channel: first_name() };
        let live = self
            .channels
            .range(start..)
            .take_while(move |(key, _)| key.tenant == *tenant)
            .filter(|(_, owned)| !owned.deleting);
        live.map(|(key, owned)| (key, &owned.channel))
    }

    fn dedupe(&mut self, partition: Partition, logged: bool) -> &mut Dedupe {
        let all = if logged { &mut self.dedupe } else { &mut self.dedupe_unlogged };
        all.entry(partition).or_default()
    }
}

pub(crate) fn unknown(channel: &ChannelKey) -> Reject {
    let text = format!("there is no channel {}; publish or subscribe with `make`, or create it", channel.channel);
    Reject::new(RejectCode::ChannelUnknown, text)
}

/// The first of all names.
fn first_name() -> Name {
    Name::new("!").expect("the first character that names may hold")
}

pub(crate) fn deleted(channel: &ChannelKey) -> Reject {
    Reject::new(RejectCode::ChannelDeleted, format!("{} was deleted", channel.channel))
}

impl Shard {
    pub(crate) fn restore_channels(
        &mut self,
        partition: Partition,
        channels: BTreeMap<ChannelId, ChannelState>,
        dedupe: Dedupe,
    ) {
        self.owner.dedupe.insert(partition, dedupe);
        let mut of_tenants: BTreeMap<Name, i64> = BTreeMap::new();
        for (id, state) in channels {
            // One without a name was deleted; recovery has made sure of it.
            let Some((key, settings)) = &state.made else { continue };
            let channel = Channel::restore(id, *settings, &state);
            self.owner.documents += usize::from(channel.is_document());
            let owned = Owned { channel, partition, cores: Vec::new(), depends_on: Ticket::default(), deleting: false };
            self.owner.channels.insert(key.clone(), owned);
            *of_tenants.entry(key.tenant.clone()).or_default() += 1;
        }
        for (tenant, channels) in of_tenants {
            self.report_channels(&tenant, channels);
        }
    }

    pub(crate) fn create_channel(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        channel: ChannelKey,
        settings: ChannelSettings,
        about: &ChannelAbout,
    ) {
        let made = match self.existing(&channel) {
            Ok(Some(_)) => {
                self.after_appends(Action::Answer { origin, op: ServerOp::ChannelCreated { created: false } });
                return;
            }
            Ok(None) => {
                let answer = Action::Answer { origin, op: ServerOp::ChannelCreated { created: true } };
                self.audit(principal, "create_channel", channel.channel.to_string(), None);
                let facts = Roster::decide_new(about, &principal.user, self.now.wall_us);
                self.make_channel(principal, &channel, settings, facts, vec![answer])
            }
            Err(reject) => Err(reject),
        };
        if let Err(reject) = made {
            self.refuse(origin, reject);
        }
    }

    /// The channel, if it exists and is not about to be gone.
    fn existing(&mut self, key: &ChannelKey) -> Result<Option<&mut Owned>, Reject> {
        match self.owner.channels.get_mut(key) {
            Some(owned) if owned.deleting => {
                let text = format!("the channel {} is being deleted; come back after the delay", key.channel);
                Err(Reject::new(RejectCode::Busy, text).retry_after_ms(DELETING_DELAY_MS))
            }
            owned => Ok(owned),
        }
    }

    /// The channel, if it exists and is not about to be gone.
    pub(crate) fn existing_channel(&mut self, key: &ChannelKey) -> Result<Option<&mut Channel>, Reject> {
        Ok(self.existing(key)?.map(|owned| &mut owned.channel))
    }

    /// The channel, even if it is about to be gone.
    pub(crate) fn channel_mut(&mut self, key: &ChannelKey) -> Option<&mut Channel> {
        self.owner.channels.get_mut(key).map(|owned| &mut owned.channel)
    }

    /// A channel, and the cores that have readers.
    pub(crate) fn channel_with_readers(&self, key: &ChannelKey) -> Option<(&Channel, Vec<(CoreId, FanId)>)> {
        self.owner.channels.get(key).map(|owned| (&owned.channel, owned.cores.clone()))
    }

    /// Makes a channel that does not exist, for somebody whose tenant may have one more. `facts` say what it is and whose.
    pub(crate) fn make_channel(
        &mut self,
        principal: &Arc<Principal>,
        key: &ChannelKey,
        settings: ChannelSettings,
        facts: Vec<ChannelFact>,
        actions: Vec<Action>,
    ) -> Result<(), Reject> {
        self.storage_has_room()?;
        if self.owner.channels.len() >= CHANNELS_MAX {
            let text = format!("this core has {CHANNELS_MAX} channels, which is all it takes");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        self.may_have_channel(principal, key)?;
        self.report_channels(&key.tenant, 1);
        let partition = self.partition(&key.tenant, key.channel.as_str());
        let mut channel = Channel::new(ChannelId(self.log.next_lsn(partition).0), settings);
        facts.iter().for_each(|fact| channel.roster_mut().set(fact));
        self.append(partition, Event::ChannelCreated { channel: key.clone(), settings, facts }, actions);
        let depends_on = self.log.appended();
        let owned = Owned { channel, partition, cores: Vec::new(), depends_on, deleting: false };
        let (id, is_document) = (owned.channel.id(), owned.channel.is_document());
        self.owner.channels.insert(key.clone(), owned);
        if is_document {
            self.owner.documents += 1;
            self.document_made(key, id);
        }
        Ok(())
    }

    pub(crate) fn delete_channel(&mut self, origin: Origin, principal: &Arc<Principal>, key: ChannelKey) {
        let result = match self.existing(&key) {
            Ok(Some(owned)) => Ok((owned.channel.id(), owned.partition)),
            Ok(None) => Err(unknown(&key)),
            Err(reject) => Err(reject),
        };
        match result {
            Ok((id, partition)) => {
                let answer = Action::Answer { origin, op: ServerOp::Done };
                self.audit(principal, "delete_channel", key.channel.to_string(), None);
                self.delete(key, id, partition, vec![answer]);
            }
            Err(reject) => self.refuse(origin, reject),
        }
    }

    fn delete(&mut self, key: ChannelKey, id: ChannelId, partition: Partition, actions: Vec<Action>) {
        // Edits that were accepted have their place before the end.
        self.flush_document(&key);
        if let Some(owned) = self.owner.channels.get_mut(&key) {
            owned.deleting = true;
        }
        self.cancel_in_channel(&key);
        // Nothing is gained by refusing this to a disk that is full.
        self.append(partition, Event::ChannelDeleted { channel: key, id }, actions);
    }

    /// Deletes everything of a tenant on this core.
    pub(crate) fn delete_tenant(&mut self, origin: Origin, tenant: &Name) {
        let of_tenant = self.owner.channels.iter().filter(|(key, owned)| key.tenant == *tenant && !owned.deleting);
        let channels: Vec<_> =
            of_tenant.map(|(key, owned)| (key.clone(), owned.channel.id(), owned.partition)).collect();
        let count = channels.len() as u32;
        for (key, id, partition) in channels {
            self.delete(key, id, partition, Vec::new());
        }
        self.delete_generations(tenant);
        self.delete_users(tenant);
        self.after_appends(Action::TenantDeleted { origin, channels: count });
    }

    /// Appends an event that may add something to a channel, as durable as was asked for.
    pub(crate) fn append_posting(&mut self, partition: Partition, logged: bool, event: Event, actions: Vec<Action>) {
        if logged {
            return self.append(partition, event, actions);
        }
        let channel = event.posting().map(|posting| posting.channel.clone());
        let owned = channel.as_ref().and_then(|key| self.owner.channels.get(key));
        let depends_on = owned.map_or(Ticket::default(), |owned| owned.depends_on);
        self.append_unlogged_posting(depends_on, event, actions);
    }

    /// Adds something to a channel in memory once an append is durable.
    pub(crate) fn append_posting_after(&mut self, ticket: Ticket, event: Event) {
        self.append_unlogged_posting(ticket, event, Vec::new());
    }

    fn append_unlogged_posting(&mut self, depends_on: Ticket, event: Event, actions: Vec<Action>) {
        let channel = event.posting().map(|posting| posting.channel.clone());
        let waits_for = self.append_unlogged(depends_on, event, actions);
        if let Some(owned) = channel.and_then(|key| self.owner.channels.get_mut(&key)) {
            owned.depends_on = owned.depends_on.max(waits_for);
        }
    }

    /// What a model adds to a channel; `None` if the channel is gone.
    pub(crate) fn generated(
        &mut self,
        key: &ChannelKey,
        id: ChannelId,
        kind: DeliveryKind,
        user: Name,
        generation: GenerationId,
        body: bytes::Bytes,
    ) -> Option<Posting> {
        let now_us = self.now.wall_us;
        let owned = self.owner.channels.get_mut(key).filter(|owned| owned.channel.id() == id && !owned.deleting)?;
        let channel = &mut owned.channel;
        let (position, timestamp_us) = (channel.decide_position(), channel.decide_timestamp(now_us));
        let says = kind == DeliveryKind::Message;
        let number = if says { channel.decide_number() } else { channel.messages() };
        let context = Context { number, ..Context::default() };
        let generation = Some(generation);
        let delivery = Delivery { position, timestamp_us, kind, user, generation, body, key: 0, context };
        let message = Arc::new(Message::new(delivery, SessionId(0), Sequence(0)));
        Some(Posting { channel: key.clone(), id, message })
    }

    /// Which of the channels of that name exists, and whether it is in the log.
    pub(crate) fn channel_id(&self, key: &ChannelKey) -> Option<(ChannelId, bool)> {
        let owned = self.owner.channels.get(key).filter(|owned| !owned.deleting)?;
        Some((owned.channel.id(), owned.channel.is_logged()))
    }

    /// The recent past of a channel, for a model; `older` was read back from disk.
    pub(crate) fn conversation(&self, key: &ChannelKey, older: &[Arc<Message>]) -> Vec<ChatMessage> {
        self.owner.channels.get(key).map_or_else(Vec::new, |owned| owned.channel.conversation(older))
    }

    pub(crate) fn attach(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        channel: ChannelKey,
        make: bool,
        fan: FanId,
    ) {
        let attach = Action::Attach { origin, channel: channel.clone(), fan };
        let made = match self.existing(&channel) {
            Ok(Some(owned)) if owned.channel.is_document() => Err(no_channel(&channel.channel)),
            Ok(Some(owned)) => match owned.channel.roster().may_read(principal, &channel.channel) {
                Ok(()) => {
                    self.after_appends(attach);
                    return;
                }
                Err(reject) => Err(reject),
            },
            Ok(None) if make => check_name(&channel.channel).and_then(|()| {
                let facts = Roster::decide_new(&ChannelAbout::default(), &principal.user, self.now.wall_us);
                self.make_channel(
                    principal,
                    &channel,
                    ChannelSettings::new(self.config.durability),
                    facts,
                    vec![attach],
                )
            }),
            Ok(None) => Err(unknown(&channel)),
            Err(reject) => Err(reject),
        };
        if let Err(reject) = made {
            self.tell_attached(origin, channel, fan, Err(reject));
        }
    }

    fn tell_attached(
        &mut self,
        origin: Origin,
        channel: ChannelKey,
        fan: FanId,
        result: crate::contract::AttachResult,
    ) {
        let Origin { core, link, request, .. } = origin;
        self.tell_session(core, SessionMessage::Attached { link, request, channel, fan, result });
    }

    pub(crate) fn detach(&mut self, core: CoreId, channel: ChannelKey, fan: FanId) {
        self.after_appends(Action::Detach { core, channel, fan });
    }

    /// Whether a core gathers readers of a channel of this core there.
    pub(crate) fn is_attached(&self, channel: &ChannelKey, place: (CoreId, FanId)) -> bool {
        self.owner.channels.get(channel).is_some_and(|owned| owned.cores.contains(&place))
    }

    /// From now on tells a core about a channel, if it is that one still.
    pub(crate) fn attach_place(&mut self, channel: &ChannelKey, id: ChannelId, place: (CoreId, FanId)) -> bool {
        let Some(owned) = self.owner.channels.get_mut(channel).filter(|owned| owned.channel.id() == id) else {
            return false;
        };
        if !owned.cores.contains(&place) {
            owned.cores.push(place);
        }
        true
    }

    /// Whether any core gathers readers of a channel.
    pub(crate) fn has_readers(&self, channel: &ChannelKey) -> bool {
        self.owner.channels.get(channel).is_some_and(|owned| !owned.cores.is_empty())
    }

    fn detach_now(&mut self, core: CoreId, channel: &ChannelKey, fan: FanId) {
        if let Some(owned) = self.owner.channels.get_mut(channel) {
            owned.cores.retain(|attached| *attached != (core, fan));
            self.close_place((core, fan), channel);
            self.documents.touch(channel, self.now.mono_us);
        }
    }

    pub(crate) fn read(&mut self, core: CoreId, channel: &ChannelKey, reader: SubscriptionRef, from: Position) {
        let now_us = self.now.wall_us;
        // The readers of a channel that is gone were told so.
        let Some(owned) = self.owner.channels.get(channel) else { return };
        let id = owned.channel.id();
        match owned.channel.read(from, now_us) {
            Kept::AtHand(messages) => {
                let first = owned.channel.first(now_us);
                self.tell_session(core, SessionMessage::History { reader, first, messages });
            }
            Kept::OnDisk { from, to } => {
                self.read_disk(Purpose::History { core, reader }, channel.clone(), id, from, to);
            }
        }
    }

    /// Answers a request for a page of history.
    pub(crate) fn page(
        &mut self,
        origin: Origin,
        principal: &Principal,
        channel: ChannelKey,
        from: Position,
        limit: u32,
    ) {
        let limit = if limit == 0 { HISTORY_BATCH_MESSAGES } else { HISTORY_BATCH_MESSAGES.min(limit as usize) };
        let Some(owned) = self.owner.channels.get(&channel) else { return self.refuse(origin, unknown(&channel)) };
        if let Err(reject) = owned.channel.roster().may_read(principal, &channel.channel) {
            return self.refuse(origin, reject);
        }
        let id = owned.channel.id();
        match owned.channel.read(from, self.now.wall_us) {
            Kept::AtHand(messages) => self.answer_page(origin, &channel, from, limit, &messages),
            Kept::OnDisk { from, to } => self.read_disk(Purpose::Page { origin, limit }, channel, id, from, to),
        }
    }

    pub(crate) fn first_of(&self, channel: &ChannelKey) -> Position {
        let first = |owned: &Owned| owned.channel.first(self.now.wall_us);
        self.owner.channels.get(channel).map_or(Position(1), first)
    }

    /// Notes that a channel keeps nothing before a position.
    pub(crate) fn let_go_before(&mut self, channel: &ChannelKey, position: Position) {
        if let Some(owned) = self.owner.channels.get_mut(channel) {
            owned.channel.let_go_before(position);
        }
    }

    pub(crate) fn head_of(&self, channel: &ChannelKey) -> Position {
        self.owner.channels.get(channel).map_or(Position(0), |owned| owned.channel.head())
    }

    pub(crate) fn evict_from_channel(&mut self, channel: &ChannelKey, id: ChannelId, through: Position) {
        if let Some(owned) = self.owner.channels.get_mut(channel).filter(|owned| owned.channel.id() == id) {
            owned.channel.evict(through);
        }
    }

    /// Takes a durable event into the state.
    pub(crate) fn apply(&mut self, ticket: Ticket, event: &Event) {
        if let Some(Posting { channel, id, message }) = event.posting()
            && let Some(owned) = self.owner.channels.get_mut(channel).filter(|owned| owned.channel.id() == *id)
        {
            owned.channel.apply(Arc::clone(message));
            if owned.channel.is_logged() {
                self.keep_at_hand(ticket, channel, *id, message);
            }
        }
        match event {
            Event::ChannelDeleted { channel, .. } => self.channel_gone(channel),
            Event::GenerationDeleted { generation } => self.expire(*generation),
            // The rest was taken in when it was decided: an empty channel, tokens that had left already.
            Event::ChannelCreated { .. }
            | Event::Published(_)
            | Event::GenerationStarted { .. }
            | Event::GenerationTokens { .. }
            | Event::GenerationFinished { .. }
            | Event::ChannelChanged { .. }
            | Event::UserChanged { .. } => {}
        }
    }

    fn channel_gone(&mut self, channel: &ChannelKey) {
        let Some(owned) = self.owner.channels.remove(channel) else { return };
        self.forget_room(channel);
        self.forget_awareness(channel);
        if owned.channel.is_document() {
            self.owner.documents -= 1;
            self.document_gone(channel);
        }
        self.report_channels(&channel.tenant, -1);
        for (core, fan) in owned.cores {
            self.tell_session(core, SessionMessage::Gone { fan, reject: deleted(channel) });
        }
    }

    /// Tells the cores with readers about a durable event; `trace` is the span of the request behind it.
    pub(crate) fn spread(&mut self, event: &Event, trace: u64) {
        let Some(Posting { channel, id, message }) = event.posting() else { return };
        let Some(owned) = self.owner.channels.get(channel).filter(|owned| owned.channel.id() == *id) else { return };
        let cores = owned.cores.clone();
        let (message, edit) = match owned.channel.is_document() && !cores.is_empty() {
            true => (without_its_part(message), self.text_edit(channel, message.position)),
            false => (Arc::clone(message), None),
        };
        for (core, fan) in cores {
            let (message, edit) = (Arc::clone(&message), edit.clone());
            self.tell_session(core, SessionMessage::Appended { fan, message, edit, trace });
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Answer { origin, op } => self.answer(origin, op),
            Action::AnswerWrite { origin, op, since_us } => {
                self.sample(Stage::Publish, since_us);
                self.span(origin.trace, "shard.publish", since_us);
                self.answer(origin, op);
            }
            Action::Attach { origin, channel, fan } => self.attach_now(origin, channel, fan),
            Action::Detach { core, channel, fan } => self.detach_now(core, &channel, fan),
            Action::Mention { channel, principal, trace } => self.mentioned(channel, principal, trace),
            Action::Expel { channel, user } => self.expel(&channel, user),
            Action::Tell { core, message } => self.tell_session(core, message),
            Action::TenantDeleted { origin: Origin { core, link, request, .. }, channels } => {
                self.tell_session(core, SessionMessage::TenantDeleted { link, request, channels });
            }
            Action::Announce { generation } => self.announce(generation),
            Action::TokensLogged { generation, index } => self.tokens_logged(generation, index),
            Action::Conclude { generation } => self.conclude(generation),
            Action::ReadDocument { document, life } => self.document_settled(&document, life),
            Action::ReadPast { life } => self.go_on_with_past(life),
            Action::OpenDocument { origin, document, id, fan, opening } => {
                self.document_opened_now(origin, document, id, fan, *opening);
            }
        }
    }

    fn attach_now(&mut self, origin: Origin, channel: ChannelKey, fan: FanId) {
        let now_us = self.now.wall_us;
        let Some(owned) = self.owner.channels.get_mut(&channel) else {
            let reject = deleted(&channel);
            return self.tell_attached(origin, channel, fan, Err(reject));
        };
        let attached = (origin.core, fan);
        if !owned.cores.contains(&attached) {
            owned.cores.push(attached);
        }
        let result = Ok((owned.channel.first(now_us), owned.channel.head()));
        self.tell_attached(origin, channel, fan, result);
    }

    /// Somebody spoke to a model in a channel: its past is gathered, from disk if it must be.
    fn mentioned(&mut self, channel: ChannelKey, principal: Arc<Principal>, trace: u64) {
        if !self.has_tokens_left(&channel.tenant, &principal.user) {
            return;
        }
        let Some(owned) = self.owner.channels.get(&channel) else { return };
        let id = owned.channel.id();
        let on_disk = owned.channel.conversation_on_disk(self.now.wall_us).filter(|_| owned.channel.is_logged());
        match on_disk {
            Some((from, to)) => self.read_disk(Purpose::Conversation { principal, trace }, channel, id, from, to),
            None => self.answer_in_channel(channel, &principal, trace, &[]),
        }
    }
}
