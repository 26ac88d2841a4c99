//! What a client has under way, and what every frame of the node does to it.
//!
//! The tables outlive connections: a request stays in its table until it is answered, however many connections that takes.
//! `backlog` says what is still to be sent on this one, `requests` what was sent and not answered. Nothing here waits or
//! does I/O; the [driver](crate::driver) carries bytes in and out.

mod beside;
pub(crate) mod documents;
mod lanes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use thalweg_protocol::chat::ChatOp;
use thalweg_protocol::frame::{RawFrame, header};
use thalweg_protocol::ids::{Epoch, GenerationId, Position, Sequence, Subscription, Watch};
use thalweg_protocol::limits::CLIENT_OUTBOX_BYTES;
use thalweg_protocol::op::{ClientOp, From, ServerOp, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_protocol::trace::TraceContext;
use tokio::sync::{Notify, mpsc};

use crate::entries::{PendingCall, PendingPublish, Repeat, SubscriptionEntry, WatchEntry};
use crate::error::ClientError;
use crate::generation::Event;
use crate::publish::Published;
use crate::state::documents::{DocumentEntry, Numbered};
use crate::subscription::Item;

/// Whether the command lane can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection.
    Down,
    /// The node answers.
    Up,
    /// The node said that it goes away: nothing new is begun on this connection.
    Leaving,
}

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Publish(u64),
    Call(u64),
    Subscribe(u64),
    Watch(u64),
    Open(u64),
    /// The number on this connection of a subscription whose reader is gone. The answer says nothing new.
    Unsubscribe(u32),
    /// The same for a generation.
    Unwatch(u32),
    /// Whether the user is at the keyboard, told again to a node that cannot remember.
    Presence,
}

/// What the reader of a lane has to do about a frame before it takes the next.
pub(crate) enum Handled {
    Done,
    /// The queue was full, which credit should prevent: wait for room.
    Full(FullQueue),
    /// The cursor of this subscription is being settled on the command lane: wait, then handle the frame again.
    Unsettled(Arc<Notify>),
}

/// Something that did not fit in its queue.
pub(crate) enum FullQueue {
    Subscription(mpsc::Sender<Item>, Item),
    Generation(mpsc::Sender<Event>, Event),
    Document(mpsc::Sender<Numbered>, Numbered),
}

pub(crate) struct State {
    pub(crate) link: Link,
    pub(crate) outbox: BytesMut,
    /// Datagrams that wait to be sent; few, and worth nothing later.
    pub(crate) datagrams: VecDeque<Bytes>,
    /// Datagrams of the node that made no sense, or were too many.
    pub(crate) datagrams_ignored: u64,
    /// Unanswered requests the node allows.
    pub(crate) in_flight_max: usize,
    /// Whether a lost connection is replaced.
    pub(crate) reconnects: bool,
    /// The last handle of the client was dropped, or it was closed.
    pub(crate) closing: bool,
    /// Why nothing works any more.
    pub(crate) ended: Option<ClientError>,
    /// Whether the user is away from the keyboard, if that was said.
    away: Option<bool>,
    /// Which life of the node this connection leads to.
    epoch: Epoch,
    next_request: u32,
    next_sequence: u64,
    next_key: u64,
    requests: HashMap<u32, Target>,
    backlog: VecDeque<Target>,
    publishes: BTreeMap<u64, PendingPublish>,
    calls: BTreeMap<u64, PendingCall>,
    subscriptions: BTreeMap<u64, SubscriptionEntry>,
    watches: BTreeMap<u64, WatchEntry>,
    documents: BTreeMap<u64, DocumentEntry>,
    /// By number on this connection.
    subscription_keys: HashMap<u32, u64>,
    watch_keys: HashMap<u32, u64>,
    document_keys: HashMap<u32, u64>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reads = [self.subscriptions.len(), self.watches.len(), self.documents.len()];
        let [subscriptions, watches, documents] = reads;
        let counts = [self.publishes.len(), self.calls.len(), subscriptions, watches, documents];
        write!(f, "State({:?}, publishes, calls, subscriptions, watches, documents: {counts:?})", self.link)
    }
}

impl State {
    pub(crate) fn new(in_flight_max: usize, reconnects: bool) -> Self {
        Self {
            link: Link::Down,
            outbox: BytesMut::new(),
            datagrams: VecDeque::new(),
            datagrams_ignored: 0,
            in_flight_max,
            reconnects,
            closing: false,
            ended: None,
            away: None,
            epoch: Epoch(0),
            next_request: 1,
            next_sequence: 1,
            next_key: 1,
            requests: HashMap::new(),
            backlog: VecDeque::new(),
            publishes: BTreeMap::new(),
            calls: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            watches: BTreeMap::new(),
            documents: BTreeMap::new(),
            subscription_keys: HashMap::new(),
            watch_keys: HashMap::new(),
            document_keys: HashMap::new(),
        }
    }

    /// Whether an answer is due on this connection.
    pub(crate) fn waits(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether a node that goes away still has something to give us.
    pub(crate) fn expects_more(&self) -> bool {
        let reads = [&self.subscription_keys, &self.watch_keys, &self.document_keys];
        self.waits() || reads.iter().any(|keys| !keys.is_empty())
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Takes a write in. Gives its number within the session.
    pub(crate) fn publish(&mut self, mut pending: PendingPublish) -> Sequence {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        pending.publish.sequence = Sequence(sequence);
        self.publishes.insert(sequence, pending);
        self.enqueue(Target::Publish(sequence));
        Sequence(sequence)
    }

    pub(crate) fn call(&mut self, call: PendingCall) {
        if let ClientOp::Chat(ChatOp::SetPresence { away }) = call.op {
            self.away = Some(away);
        }
        let key = self.key();
        self.calls.insert(key, call);
        self.enqueue(Target::Call(key));
    }

    pub(crate) fn subscribe(&mut self, entry: SubscriptionEntry) -> u64 {
        let key = self.key();
        self.subscriptions.insert(key, entry);
        self.enqueue(Target::Subscribe(key));
        key
    }

    pub(crate) fn watch(&mut self, entry: WatchEntry) -> u64 {
        let key = self.key();
        self.watches.insert(key, entry);
        self.enqueue(Target::Watch(key));
        key
    }

    /// Forgets a subscription and tells the node.
    pub(crate) fn unsubscribe(&mut self, key: u64) {
        let Some(entry) = self.subscriptions.remove(&key) else { return };
        if let Some(wire) = entry.wire {
            self.subscription_keys.remove(&wire);
            self.enqueue(Target::Unsubscribe(wire));
        }
    }

    /// Forgets a watched generation and tells the node.
    pub(crate) fn unwatch(&mut self, key: u64) {
        let Some(entry) = self.watches.remove(&key) else { return };
        if let Some(wire) = entry.wire {
            self.watch_keys.remove(&wire);
            self.enqueue(Target::Unwatch(wire));
        }
    }

    /// Reports that everything up to `position` was taken.
    pub(crate) fn consumed(&mut self, key: u64, position: u64) {
        if let Some(wire) = self.subscriptions.get(&key).and_then(|entry| entry.wire) {
            let (subscription, position) = (Subscription(wire), Position(position));
            self.write(0, &ClientOp::Consumed { subscription, position }, None);
        }
    }

    /// Reports that all tokens before `index` were taken.
    pub(crate) fn tokens_consumed(&mut self, key: u64, index: u32) {
        if let Some((wire, next)) = self.watches.get(&key).and_then(|entry| Some((entry.wire?, entry.seen.next()))) {
            // What is taken from the queue may have been rewound meanwhile.
            self.write(0, &ClientOp::TokensConsumed { watch: Watch(wire), index: index.min(next) }, None);
        }
    }

    fn write(&mut self, subject: u32, op: &ClientOp, trace: Option<TraceContext>) {
        if self.link != Link::Down {
            let payload = op.encode_traced(trace);
            self.outbox.extend_from_slice(&header(payload.len(), subject));
            self.outbox.extend_from_slice(&payload);
        }
    }

    /// Writes a request under a number that is free on this connection.
    fn send(&mut self, target: Target, op: &ClientOp, trace: Option<TraceContext>) -> u32 {
        let mut number = self.next_request;
        let reads = [&self.subscription_keys, &self.watch_keys, &self.document_keys];
        let taken = |n| n == 0 || self.requests.contains_key(&n) || reads.iter().any(|keys| keys.contains_key(&n));
        while taken(number) {
            number = number.wrapping_add(1);
        }
        self.next_request = number.wrapping_add(1);
        self.write(number, op, trace);
        if self.link != Link::Down {
            self.requests.insert(number, target);
        }
        number
    }

    fn enqueue(&mut self, target: Target) {
        if self.link != Link::Down {
            self.backlog.push_back(target);
            self.pump();
        }
    }

    /// Writes as much of the backlog as the node and the outbox have room for.
    pub(crate) fn pump(&mut self) {
        while self.link == Link::Up
            && self.requests.len() < self.in_flight_max
            && self.outbox.len() < CLIENT_OUTBOX_BYTES
            && let Some(target) = self.backlog.pop_front()
        {
            self.transmit(target);
        }
        if self.link == Link::Leaving {
            // Calls are answered at once and may be what ends the waiting (a cancel); writes and reads wait for the next
            // node.
            let waits = |target: &Target| {
                matches!(target, Target::Publish(_) | Target::Subscribe(_) | Target::Watch(_) | Target::Open(_))
            };
            let (later, now): (VecDeque<_>, VecDeque<_>) = self.backlog.drain(..).partition(waits);
            self.backlog = later;
            now.into_iter().for_each(|target| self.transmit(target));
        }
    }

    fn transmit(&mut self, target: Target) {
        match target {
            Target::Publish(sequence) => {
                let Some(pending) = self.publishes.get(&sequence) else { return };
                let (op, trace) = (ClientOp::Publish(pending.publish.clone()), pending.trace);
                self.send(target, &op, trace);
            }
            Target::Call(key) => {
                let Some(call) = self.calls.get(&key) else { return };
                let (op, trace) = (call.op.clone(), call.trace);
                self.send(target, &op, trace);
            }
            Target::Subscribe(key) => {
                let Some(entry) = self.subscriptions.get(&key) else { return };
                let mut subscribe = entry.subscribe.clone();
                let asked_from = Position(entry.cursor.load(Ordering::Relaxed)).next();
                if entry.started {
                    subscribe.from = From::Position(asked_from);
                }
                let trace = entry.trace.filter(|_| !entry.started);
                let wire = self.send(target, &ClientOp::Subscribe(subscribe), trace);
                self.subscription_keys.insert(wire, key);
                let entry = self.subscriptions.get_mut(&key).expect("looked up above");
                (entry.wire, entry.asked_from) = (Some(wire), asked_from);
            }
            Target::Watch(key) => {
                let Some(entry) = self.watches.get(&key) else { return };
                let op = match (entry.generation, &entry.ask) {
                    (Some(generation), _) => {
                        let (from, epoch, seen) = (entry.seen.next(), entry.seen.epoch(), entry.seen.fingerprint());
                        ClientOp::Watch(WatchRequest { generation, from, lead: entry.lead, epoch, seen })
                    }
                    (None, Some(ask)) => ClientOp::Ask(ask.clone()),
                    (None, None) => unreachable!("a watch begins with a question or an id"),
                };
                let trace = entry.trace;
                let wire = self.send(target, &op, trace);
                self.watch_keys.insert(wire, key);
                self.watches.get_mut(&key).expect("looked up above").wire = Some(wire);
            }
            Target::Open(key) => self.transmit_open(key),
            Target::Unsubscribe(wire) => {
                self.send(target, &ClientOp::Unsubscribe { subscription: Subscription(wire) }, None);
            }
            Target::Unwatch(wire) => {
                self.send(target, &ClientOp::Unwatch { watch: Watch(wire) }, None);
            }
            Target::Presence => {
                let Some(away) = self.away else { return };
                self.send(target, &ClientOp::Chat(ChatOp::SetPresence { away }), None);
            }
        }
    }

    /// A connection is there: everything unanswered is sent on it, writes in the order in which they were made.
    pub(crate) fn connected(&mut self, in_flight_max: usize, epoch: Epoch) {
        self.link = Link::Up;
        self.epoch = epoch;
        self.in_flight_max = in_flight_max.max(1);
        let calls = self.calls.keys().map(|&key| Target::Call(key));
        // The newest word, after those that may be older.
        let presence = self.away.map(|_| Target::Presence);
        let subscriptions = self.subscriptions.keys().map(|&key| Target::Subscribe(key));
        let watches = self.watches.keys().map(|&key| Target::Watch(key));
        let documents = self.documents.keys().map(|&key| Target::Open(key));
        let publishes = self.publishes.keys().map(|&sequence| Target::Publish(sequence));
        self.backlog =
            calls.chain(presence).chain(subscriptions).chain(watches).chain(documents).chain(publishes).collect();
        self.pump();
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self, error: &ClientError) {
        self.link = Link::Down;
        self.outbox.clear();
        self.datagrams.clear();
        self.backlog.clear();
        self.subscription_keys.clear();
        self.watch_keys.clear();
        self.document_keys.clear();
        for (_, target) in self.requests.drain() {
            match target {
                Target::Publish(sequence) => {
                    if let Some(pending) = self.publishes.get_mut(&sequence) {
                        pending.publish.retry = true;
                    }
                }
                Target::Call(key) if self.calls.get(&key).is_some_and(|call| call.repeat == Repeat::Never) => {
                    let call = self.calls.remove(&key).expect("looked up in the guard");
                    let _ = call.reply.send(Err(error.clone()));
                }
                Target::Call(key) => {
                    if let Some(call) = self.calls.get_mut(&key) {
                        call.retried = true;
                    }
                }
                _ => {}
            }
        }
        for entry in self.subscriptions.values_mut() {
            (entry.wire, entry.confirmed) = (None, false);
        }
        for entry in self.watches.values_mut() {
            entry.wire = None;
        }
        self.documents.values_mut().for_each(DocumentEntry::disconnected);
    }

    /// Nothing will work any more: tells everybody who waits.
    pub(crate) fn fail(&mut self, error: ClientError) {
        self.disconnected(&error);
        for (_, pending) in std::mem::take(&mut self.publishes) {
            let _ = pending.reply.send(Err(error.clone()));
        }
        for (_, call) in std::mem::take(&mut self.calls) {
            let _ = call.reply.send(Err(error.clone()));
        }
        for (_, entry) in std::mem::take(&mut self.subscriptions) {
            entry.end(error.clone());
        }
        for (_, entry) in std::mem::take(&mut self.watches) {
            entry.end(error.clone());
        }
        for (_, entry) in std::mem::take(&mut self.documents) {
            entry.end(error.clone());
        }
        self.ended = Some(error);
    }

    /// A frame of the command lane. `Some`: the node goes away and asks to come back after so many milliseconds.
    pub(crate) fn command_frame(&mut self, frame: &RawFrame) -> Result<Option<u32>, ClientError> {
        let op = ServerOp::decode(&frame.payload).map_err(|reject| ClientError::Protocol(reject.to_string()))?;
        if let ServerOp::ServerRestarting { reconnect_delay_ms } = op {
            self.link = Link::Leaving;
            return Ok(Some(reconnect_delay_ms));
        }
        if frame.subject == 0 {
            // About a request that has no number (a report of credit), or about the connection, which then is closed.
            tracing::debug!(?op, "the node said something about no request");
            return Ok(None);
        }
        if let ServerOp::Ended(reject) = op {
            self.requests.remove(&frame.subject);
            self.ended(frame.subject, reject);
            self.pump();
            return Ok(None);
        }
        let Some(target) = self.requests.remove(&frame.subject) else {
            return Err(ClientError::Protocol(format!("an answer to request {}, which is not open", frame.subject)));
        };
        if let (ServerOp::Reject(reject), true) = (&op, self.reconnects)
            && reject.code == RejectCode::Draining
        {
            self.postpone(frame.subject, target);
        } else {
            self.answer(frame.subject, target, op)?;
        }
        self.pump();
        Ok(None)
    }

    /// A request came too late for a node that goes away: it stays in its table for the next one.
    fn postpone(&mut self, wire: u32, target: Target) {
        self.link = Link::Leaving;
        match target {
            Target::Subscribe(_) => drop(self.subscription_keys.remove(&wire)),
            Target::Watch(_) => drop(self.watch_keys.remove(&wire)),
            Target::Open(key) => {
                self.document_keys.remove(&wire);
                if let Some(entry) = self.documents.get_mut(&key) {
                    entry.disconnected();
                }
            }
            Target::Publish(_) | Target::Call(_) | Target::Unsubscribe(_) | Target::Unwatch(_) | Target::Presence => {}
        }
    }

    fn answer(&mut self, wire: u32, target: Target, op: ServerOp) -> Result<(), ClientError> {
        match target {
            Target::Publish(sequence) => {
                let Some(pending) = self.publishes.remove(&sequence) else { return Ok(()) };
                let _ = pending.reply.send(match op {
                    ServerOp::Published { position, timestamp_us, duplicate } => {
                        Ok(Published { position, timestamp_us, duplicate })
                    }
                    ServerOp::Reject(reject) => Err(ClientError::refused(reject)),
                    other => return Err(ClientError::unexpected("Published", &other)),
                });
            }
            Target::Call(key) => {
                let Some(call) = self.calls.remove(&key) else { return Ok(()) };
                let deleted = call.retried && matches!(call.op, ClientOp::DeleteChannel { .. });
                let _ = call.reply.send(match op {
                    // It was deleted before the connection was lost.
                    ServerOp::Reject(reject) if deleted && reject.code == RejectCode::ChannelUnknown => {
                        Ok(ServerOp::Done)
                    }
                    ServerOp::Reject(reject) => Err(ClientError::refused(reject)),
                    other => Ok(other),
                });
            }
            Target::Subscribe(key) => match op {
                ServerOp::Subscribed { next, head } => self.subscribed(key, next, head),
                ServerOp::Reject(reject) => {
                    self.subscription_keys.remove(&wire);
                    if let Some(entry) = self.subscriptions.remove(&key) {
                        entry.end(ClientError::Refused(reject));
                    }
                }
                other => return Err(ClientError::unexpected("Subscribed", &other)),
            },
            Target::Watch(key) => match op {
                ServerOp::Asked { generation, model } => self.asked(key, generation, model),
                ServerOp::Reject(reject) => {
                    self.watch_keys.remove(&wire);
                    if let Some(entry) = self.watches.remove(&key) {
                        entry.end(ClientError::Refused(reject));
                    }
                }
                other => return Err(ClientError::unexpected("Asked", &other)),
            },
            Target::Open(key) => self.opened(wire, key, op)?,
            Target::Unsubscribe(_) | Target::Unwatch(_) | Target::Presence => {}
        }
        Ok(())
    }

    fn subscribed(&mut self, key: u64, next: Position, head: Position) {
        let Some(entry) = self.subscriptions.get_mut(&key) else { return };
        let resumed = entry.started && !entry.confirmed;
        entry.confirmed = true;
        entry.permit = None;
        let before = next.0.saturating_sub(1);
        if let Some(first) = entry.first.take() {
            let _ = first.send(Ok((next, head)));
        }
        if !entry.started {
            entry.started = true;
            entry.cursor.fetch_max(before, Ordering::Relaxed);
            entry.seen = entry.seen.max(before);
        } else if resumed && next < entry.asked_from {
            // The node lost what we had already read. Its positions begin again: what follows is new.
            entry.seen = before;
            entry.cursor.store(before, Ordering::Relaxed);
            if entry.queue.try_send(Item::Rewound { to: Position(before) }).is_err() {
                tracing::warn!(channel = %entry.subscribe.channel, "a rewind was not told: the queue is full");
            }
        }
        // One lane carries all deliveries, so that one reader at most waits for this.
        entry.confirm.notify_one();
    }

    fn asked(&mut self, key: u64, generation: GenerationId, model: String) {
        let Some(entry) = self.watches.get_mut(&key) else { return };
        entry.generation = Some(generation);
        entry.ask = None;
        entry.permit = None;
        if let Some(first) = entry.first.take() {
            let _ = first.send(Ok((generation, model)));
        }
    }

    fn ended(&mut self, wire: u32, reject: Reject) {
        if reject.code == RejectCode::Draining && self.reconnects {
            // The node ends it because it goes away, not because it is over: it is resumed on the next connection.
            self.link = Link::Leaving;
            self.subscription_keys.remove(&wire);
            self.watch_keys.remove(&wire);
            self.document_keys.remove(&wire);
            return;
        }
        if let Some(key) = self.subscription_keys.remove(&wire) {
            if let Some(entry) = self.subscriptions.remove(&key) {
                entry.end(ClientError::Ended(reject));
            }
        } else if let Some(key) = self.watch_keys.remove(&wire)
            && let Some(entry) = self.watches.remove(&key)
        {
            entry.end(ClientError::Ended(reject));
        } else {
            self.document_ended(wire, reject);
        }
    }
}
