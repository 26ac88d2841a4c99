//! Fan-out: one bounded tail per channel with readers on this core, and a cursor per subscription.
//!
//! An owner tells each core once about a message; the core keeps the newest in a tail and serves its readers from there,
//! in turn and in bursts, as far as their credit and the room in their session's queue go. A reader whose cursor fell off
//! the tail is read back to it from the owner's history.

mod crowd;
mod document;
mod parting;
mod tail;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelKey, Position, Request, Subscription};
use thalweg_protocol::limits::{
    FRAME_HEADER_BYTES, LEAD_MESSAGES, LEAD_MESSAGES_MAX, PRESENCE_SUBSCRIPTIONS_MAX, SESSION_QUEUE_BYTES,
    SUBSCRIPTIONS_MAX,
};
use thalweg_protocol::op::{DeliveryKind, From, Policy, ServerOp, Subscribe};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{AttachResult, Link, Origin, Output, OwnerMessage, TextEdit};
use crate::counters::Stage;
use crate::shard::Shard;

use crowd::Part;
use document::DocumentReader;
use tail::{Entry, Fan};

pub(crate) use crowd::News;

/// Deliveries to one reader before the next has its turn.
const BURST: usize = 16;
/// Messages that are traced and not fanned out; what is beyond has no such span.
const TRACED_MAX: usize = 1_024;

/// Where a core gathers the readers of a channel. Its owner names it when it tells about a message; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FanId(u64);

/// A slot of a subscription; reused after the subscription is gone.
pub(crate) type SubscriptionIndex = usize;

/// A subscription as others name it: a slot, and which of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionRef {
    index: SubscriptionIndex,
    life: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The owner has not answered.
    Attaching,
    /// It has had everything.
    Idle,
    /// It is in the queue of those to be served.
    Ready,
    /// Its history is being read.
    Reading,
    /// It has not consumed enough.
    OutOfCredit,
    /// Its session's queue is full.
    OutOfRoom,
}

/// One reader of one channel.
struct Reader {
    life: u64,
    link: Link,
    number: Subscription,
    fan: FanId,
    policy: Policy,
    lead: u32,
    from: From,
    state: State,
    /// What it gets next.
    cursor: Position,
    /// What it got and has not reported as consumed, oldest first; at most `lead`.
    outstanding: VecDeque<Position>,
    /// History read for it, oldest first; at most one answer of the owner's.
    replay: VecDeque<Arc<Message>>,
    /// What it will not get and was not told about yet.
    missed: Option<(Position, Position)>,
    /// How it takes part in presence, if it does.
    part: Option<Part>,
    /// How it reads a document, if it is one.
    document: Option<Box<DocumentReader>>,
}

impl Reader {
    /// A reader of everything from now on, who is yet to be accepted.
    fn new(link: Link, number: Subscription, fan: FanId, lead: u32) -> Self {
        Self {
            life: 0,
            link,
            number,
            fan,
            policy: Policy::Replay,
            lead,
            from: From::End,
            state: State::Attaching,
            cursor: Position(0),
            outstanding: VecDeque::new(),
            replay: VecDeque::new(),
            missed: None,
            part: None,
            document: None,
        }
    }
}

/// All readers of this core.
#[derive(Default)]
pub(crate) struct Fans {
    fans: BTreeMap<FanId, Fan>,
    by_channel: BTreeMap<ChannelKey, FanId>,
    made: u64,
    readers: Vec<Option<Reader>>,
    free: Vec<SubscriptionIndex>,
    lives: u64,
    ready: VecDeque<SubscriptionIndex>,
    /// Messages that are traced and not fanned out yet: the span of their request, and since when.
    traced: Vec<(u64, u64)>,
}

impl Fans {
    pub(crate) fn len(&self) -> usize {
        self.fans.len()
    }

    pub(crate) fn subscriptions(&self) -> usize {
        self.readers.len() - self.free.len()
    }

    /// Messages that all tails hold.
    #[cfg(test)]
    pub(crate) fn tail_messages(&self) -> usize {
        self.fans.values().map(|fan| fan.tail.len()).sum()
    }

    /// Whether nobody is to be served.
    pub(crate) fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.traced.is_empty()
    }

    fn reader_mut(&mut self, index: SubscriptionIndex) -> Option<&mut Reader> {
        self.readers.get_mut(index)?.as_mut()
    }

    fn set_ready(&mut self, index: SubscriptionIndex) {
        if let Some(reader) = self.reader_mut(index)
            && reader.state != State::Ready
        {
            reader.state = State::Ready;
            self.ready.push_back(index);
        }
    }
}

/// What became of one step of serving a reader.
enum Step {
    Delivered,
    /// Nothing was sent, but the cursor moved on: its own echo.
    Skipped,
    Waits(State),
}

impl Shard {
    pub(crate) fn request_subscribe(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        subscribe: Subscribe,
    ) -> Result<(), Reject> {
        principal.require(Access::Read, subscribe.channel.as_str())?;
        self.newcomers_are_served()?;
        let Some(session) = self.sessions.get(origin.link) else { return Ok(()) };
        let number = Subscription(origin.request.0);
        if session.subscriptions.contains_key(&number.0) {
            let text = format!("subscription {number} exists already");
            return Err(Reject::new(RejectCode::SubscriptionInvalid, text));
        }
        if session.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let text = format!("the session has {SUBSCRIPTIONS_MAX} subscriptions; end one first");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        if subscribe.presence && session.attendance.parts >= PRESENCE_SUBSCRIPTIONS_MAX {
            let text = format!("the session takes part in {PRESENCE_SUBSCRIPTIONS_MAX} channels; leave one first");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        let lead = match subscribe.lead {
            0 => LEAD_MESSAGES,
            lead if lead <= LEAD_MESSAGES_MAX => lead,
            lead => {
                let text = format!("lead is {lead}; at most {LEAD_MESSAGES_MAX}");
                return Err(Reject::new(RejectCode::ParameterInvalid, text));
            }
        };
        self.admit_request(origin.link)?;
        let make = subscribe.make && principal.may(Access::Write, subscribe.channel.as_str());
        let channel = ChannelKey { tenant: principal.tenant.clone(), channel: subscribe.channel.clone() };
        let fan = self.fan_of(&channel);
        let Subscribe { policy, from, .. } = subscribe;
        let part = subscribe.presence.then(|| Part::new(principal.user.clone()));
        self.add_reader(Reader { policy, from, part, ..Reader::new(origin.link, number, fan, lead) });
        let partition = self.partition(&channel.tenant, channel.channel.as_str());
        self.tell_owner(partition, OwnerMessage::Attach { origin, principal, channel, make, fan });
        Ok(())
    }

    fn fan_of(&mut self, channel: &ChannelKey) -> FanId {
        if let Some(&fan) = self.fans.by_channel.get(channel) {
            return fan;
        }
        self.fans.made += 1;
        let id = FanId(self.fans.made);
        self.fans.fans.insert(id, Fan::new(channel.clone()));
        self.fans.by_channel.insert(channel.clone(), id);
        id
    }

    fn add_reader(&mut self, reader: Reader) {
        self.fans.lives += 1;
        let (link, number, fan) = (reader.link, reader.number, reader.fan);
        let (takes_part, of_document) = (reader.part.is_some(), reader.document.is_some());
        let reader = Reader { life: self.fans.lives, ..reader };
        let index = self.fans.free.pop().unwrap_or(self.fans.readers.len());
        if index == self.fans.readers.len() {
            self.fans.readers.push(Some(reader));
        } else {
            self.fans.readers[index] = Some(reader);
        }
        if let Some(fan) = self.fans.fans.get_mut(&fan) {
            fan.readers.push(index);
        }
        if let Some(session) = self.sessions.get_mut(link) {
            session.subscriptions.insert(number.0, index);
            session.attendance.parts += usize::from(takes_part);
            session.documents += usize::from(of_document);
        }
    }

    /// The owner answered a subscription.
    pub(crate) fn attached(
        &mut self,
        link: Link,
        request: Request,
        channel: ChannelKey,
        fan: FanId,
        result: AttachResult,
    ) {
        self.settle(link);
        if result.is_ok() && !self.fans.fans.contains_key(&fan) {
            // The channel was deleted, and made again by this very request: nobody here reads the new one.
            let core = self.config.core;
            let partition = self.partition(&channel.tenant, channel.channel.as_str());
            self.tell_owner(partition, OwnerMessage::Detach { core, channel, fan });
        }
        let index = self.sessions.get(link).and_then(|session| session.subscriptions.get(&request.0).copied());
        let Some(index) = index else {
            let text = "the subscription was ended before it began: by its client, or because the channel was deleted";
            let reject = Reject::new(RejectCode::SubscriptionInvalid, text);
            self.reply(link, request, ServerOp::Reject(reject));
            return;
        };
        match result {
            Ok((first, head)) => {
                let Some(next) = self.begin_reading(index, first, head) else { return };
                self.reply(link, request, ServerOp::Subscribed { next, head });
                self.fans.set_ready(index);
                self.join_crowd(link, index);
            }
            Err(reject) => {
                self.drop_subscription(link, Subscription(request.0));
                self.reply(link, request, ServerOp::Reject(reject));
            }
        }
    }

    /// Puts a reader's cursor where it asked to start, and gives that place.
    fn begin_reading(&mut self, index: SubscriptionIndex, first: Position, head: Position) -> Option<Position> {
        let reader = self.fans.readers.get_mut(index)?.as_mut()?;
        let fan = self.fans.fans.get_mut(&reader.fan)?;
        // The first answer says where the tail begins; later ones come in order with the messages and agree with it.
        fan.head.get_or_insert(head);
        let end = head.next();
        reader.cursor = match reader.from {
            From::Start => first,
            From::End => end,
            From::Position(position) if position < first => {
                // Position 0 is no message, so asking for it is asking for the start.
                let from = position.max(Position(1));
                if from < first {
                    self.counters.missed += first.0 - from.0;
                    reader.missed = Some((from, Position(first.0 - 1)));
                }
                first
            }
            From::Position(position) => position.min(end),
        };
        reader.state = State::Idle;
        Some(reader.cursor)
    }

    pub(crate) fn request_unsubscribe(&mut self, origin: Origin, subscription: Subscription) -> Result<(), Reject> {
        let of_document = self.reads_document(origin.link, subscription);
        if self.drop_subscription(origin.link, subscription) {
            if of_document {
                self.output(Output::DocumentLeft { link: origin.link, subscription });
            }
            self.reply(origin.link, origin.request, ServerOp::Done);
            return Ok(());
        }
        let text = format!("the session has no subscription {subscription}");
        Err(Reject::new(RejectCode::SubscriptionInvalid, text))
    }

    fn drop_subscription(&mut self, link: Link, number: Subscription) -> bool {
        let Some(session) = self.sessions.get_mut(link) else { return false };
        let Some(index) = session.subscriptions.remove(&number.0) else { return false };
        self.remove_subscription(index);
        true
    }

    /// Takes a reader out of its channel's fan; the last one closes it.
    pub(crate) fn remove_subscription(&mut self, index: SubscriptionIndex) {
        let Some(reader) = self.fans.readers.get_mut(index).and_then(Option::take) else { return };
        self.fans.free.push(index);
        self.leave_crowd(index, &reader);
        self.leave_document(&reader);
        if let Some(session) = self.sessions.get_mut(reader.link) {
            session.waiting_for_room.retain(|other| *other != index);
        }
        let Some(fan) = self.fans.fans.get_mut(&reader.fan) else { return };
        fan.readers.retain(|other| *other != index);
        if fan.readers.is_empty() {
            let channel = fan.key.clone();
            self.fans.by_channel.remove(&channel);
            self.fans.fans.remove(&reader.fan);
            let partition = self.partition(&channel.tenant, channel.channel.as_str());
            let (core, fan) = (self.config.core, reader.fan);
            self.tell_owner(partition, OwnerMessage::Detach { core, channel, fan });
        }
    }

    /// An owner told about a message.
    pub(crate) fn appended(&mut self, id: FanId, message: Arc<Message>, edit: Option<TextEdit>, trace: u64) {
        let Some(fan) = self.fans.fans.get_mut(&id) else { return };
        // A core that attached while this message was being spread knows it already.
        if fan.head.is_some_and(|head| message.position <= head) {
            return;
        }
        let head = message.position;
        if message.kind == DeliveryKind::Redaction {
            self.redact_gathered(id, message.context.target);
        }
        let Some(fan) = self.fans.fans.get_mut(&id) else { return };
        fan.push(message, edit, self.now.mono_us);
        self.prune_document(id);
        if trace != 0 && self.fans.traced.len() < TRACED_MAX {
            self.fans.traced.push((trace, self.now.mono_us));
        }
        let mut too_slow = Vec::new();
        let Fans { fans, readers, ready, .. } = &mut self.fans;
        for &index in fans.get(&id).map_or(&[][..], |fan| &fan.readers) {
            let Some(reader) = readers.get_mut(index).and_then(Option::as_mut) else { continue };
            let pending = (head.0 + 1).saturating_sub(reader.cursor.0);
            match reader.state {
                State::Idle => {
                    reader.state = State::Ready;
                    ready.push_back(index);
                }
                // Only a reader that holds itself up is slow; one that waits for its turn, or for history, is served.
                State::Attaching | State::Ready | State::Reading => {}
                State::OutOfCredit | State::OutOfRoom if pending <= u64::from(reader.lead) => {}
                State::OutOfCredit | State::OutOfRoom => match reader.policy {
                    Policy::Replay => {}
                    Policy::Drop => {
                        let to = Position(head.0 - u64::from(reader.lead));
                        let from = reader.missed.map_or(reader.cursor, |(from, _)| from);
                        self.counters.missed += (to.0 + 1).saturating_sub(reader.cursor.0);
                        reader.missed = Some((from, to));
                        reader.cursor = to.next();
                        reader.replay.clear();
                    }
                    Policy::Disconnect => too_slow.push((reader.link, reader.number, pending)),
                },
            }
        }
        for (link, number, pending) in too_slow {
            self.end_slow_reader(link, number, pending);
        }
    }

    /// Takes the text of a message out of what is gathered here for readers who have not had it.
    fn redact_gathered(&mut self, id: FanId, target: Position) {
        let Fans { fans, readers, .. } = &mut self.fans;
        let Some(fan) = fans.get_mut(&id) else { return };
        let redact = |message: &mut Arc<Message>| {
            let is_edit = message.kind == DeliveryKind::Edit && message.context.target == target;
            if message.position == target || is_edit {
                *message = Arc::new(message.redacted());
            }
        };
        fan.tail.iter_mut().for_each(|entry| redact(&mut entry.message));
        fan.tail_bytes = fan.tail.iter().map(Entry::bytes).sum();
        for &index in &fan.readers {
            let reader = readers.get_mut(index).and_then(Option::as_mut);
            reader.into_iter().flat_map(|reader| &mut reader.replay).for_each(redact);
        }
    }

    /// The owner answered a read of history.
    pub(crate) fn history(&mut self, reference: SubscriptionRef, first: Position, messages: Vec<Arc<Message>>) {
        let Some(reader) = self.fans.reader_mut(reference.index).filter(|reader| reader.life == reference.life) else {
            return;
        };
        if reader.cursor < first {
            let from = reader.missed.map_or(reader.cursor, |(from, _)| from);
            self.counters.missed += first.0 - reader.cursor.0;
            reader.missed = Some((from, Position(first.0 - 1)));
            reader.cursor = first;
        }
        let cursor = reader.cursor;
        reader.replay = messages.into_iter().skip_while(|message| message.position < cursor).collect();
        self.fans.set_ready(reference.index);
    }

    /// A reader reported what it consumed.
    pub(crate) fn consumed(&mut self, link: Link, subscription: Subscription, position: Position) {
        let session = self.sessions.get(link);
        let Some(&index) = session.and_then(|session| session.subscriptions.get(&subscription.0)) else { return };
        let Some(reader) = self.fans.reader_mut(index) else { return };
        while reader.outstanding.front().is_some_and(|oldest| *oldest <= position) {
            reader.outstanding.pop_front();
        }
        if reader.state == State::OutOfCredit && reader.outstanding.len() < reader.lead as usize {
            self.fans.set_ready(index);
        }
    }

    /// The transport took bytes of a session's queue.
    pub(crate) fn drained(&mut self, link: Link, bytes: usize) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        session.queued = session.queued.saturating_sub(bytes);
        if session.queued <= SESSION_QUEUE_BYTES / 2 {
            for index in std::mem::take(&mut session.waiting_for_room) {
                let waits = |reader: &&mut Reader| reader.state == State::OutOfRoom && reader.link == link;
                if self.fans.reader_mut(index).filter(waits).is_some() {
                    self.fans.set_ready(index);
                }
            }
            self.catch_up(link);
        }
    }

    /// Serves readers, up to `budget` deliveries: at most half of it goes to who is there, the rest to what is said.
    pub(crate) fn serve_ready(&mut self, budget: usize) {
        let mut left = budget.saturating_sub(self.serve_presence((budget / 2).max(1)));
        while left > 0 {
            let Some(index) = self.fans.ready.pop_front() else { break };
            left = left.saturating_sub(self.serve(index, left.min(BURST)).max(1));
        }
        if self.fans.ready.is_empty() {
            self.fanned_out();
        }
    }

    /// Nobody is left who can be served: what is traced was fanned out.
    fn fanned_out(&mut self) {
        for (trace, since_us) in std::mem::take(&mut self.fans.traced) {
            self.span(trace, "fan_out", since_us);
        }
    }

    /// Serves one reader, up to `burst` deliveries; gives how many there were.
    fn serve(&mut self, index: SubscriptionIndex, burst: usize) -> usize {
        let mut delivered = 0;
        while delivered < burst {
            match self.step(index) {
                Some(Step::Delivered) => delivered += 1,
                Some(Step::Skipped) => {}
                Some(Step::Waits(state)) => {
                    self.wait(index, state);
                    return delivered;
                }
                None => return delivered,
            }
        }
        self.fans.ready.push_back(index);
        delivered
    }

    fn wait(&mut self, index: SubscriptionIndex, state: State) {
        let core = self.config.core;
        let Some(reader) = self.fans.reader_mut(index) else { return };
        reader.state = state;
        let (link, id, from) = (reader.link, reader.fan, reader.cursor);
        let form = reader.document.as_ref().map(|document| document.form);
        let reference = SubscriptionRef { index, life: reader.life };
        match state {
            State::OutOfRoom => {
                if let Some(session) = self.sessions.get_mut(link) {
                    session.waiting_for_room.push(index);
                }
            }
            State::Reading => {
                let Some(fan) = self.fans.fans.get(&id) else { return };
                let channel = fan.key.clone();
                self.counters.history_reads += 1;
                let partition = self.partition(&channel.tenant, channel.channel.as_str());
                let message = match form {
                    Some(form) => OwnerMessage::CatchUp { core, document: channel, reader: reference, form },
                    None => OwnerMessage::Read { core, channel, reader: reference, from },
                };
                self.tell_owner(partition, message);
            }
            _ => {}
        }
    }

    /// Gives a ready reader the next it is due; `None` if it is gone or was served already.
    fn step(&mut self, index: SubscriptionIndex) -> Option<Step> {
        let reader = self.fans.readers.get_mut(index)?.as_mut().filter(|reader| reader.state == State::Ready)?;
        let fan = self.fans.fans.get(&reader.fan)?;
        let session = self.sessions.get_mut(reader.link)?;
        if reader.document.is_some() {
            return self.step_document(index);
        }
        if session.queued >= SESSION_QUEUE_BYTES {
            return Some(Step::Waits(State::OutOfRoom));
        }
        let (link, number) = (reader.link, reader.number);
        if let Some((from, to)) = reader.missed.take() {
            self.deliver(link, number, ServerOp::Missed { from, to }.encode());
            return Some(Step::Delivered);
        }
        while reader.replay.front().is_some_and(|message| message.position < reader.cursor) {
            reader.replay.pop_front();
        }
        let (message, since_us) = match reader.replay.front() {
            Some(message) => (Arc::clone(message), None),
            None if fan.head.is_none_or(|head| reader.cursor > head) => return Some(Step::Waits(State::Idle)),
            None => match fan.get(reader.cursor) {
                Some(entry) => (Arc::clone(&entry.message), Some(entry.since_us)),
                None => return Some(Step::Waits(State::Reading)),
            },
        };
        if message.session == session.principal.session {
            reader.cursor = message.position.next();
            return Some(Step::Skipped);
        }
        if reader.outstanding.len() >= reader.lead as usize {
            return Some(Step::Waits(State::OutOfCredit));
        }
        reader.cursor = message.position.next();
        reader.outstanding.push_back(message.position);
        if let Some(since_us) = since_us {
            self.sample(Stage::FanOut, since_us);
        }
        self.counters.delivered += 1;
        self.deliver(link, number, message.payload.clone());
        Some(Step::Delivered)
    }

    fn deliver(&mut self, link: Link, subscription: Subscription, payload: bytes::Bytes) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let bytes = payload.len() + FRAME_HEADER_BYTES;
        session.queued += bytes;
        self.counters.delivered_bytes += bytes as u64;
        self.output(Output::Deliver { link, subscription, payload });
    }
}
