//! Frames to requests, outputs to frames: what happens between a core's connections and its shard.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_protocol::document::DocumentOp;
use thalweg_protocol::frame::Splitter;
use thalweg_protocol::ids::{CoreId, Request, Subscription, Watch};
use thalweg_protocol::limits::{FRAME_HEADER_BYTES, HELLO_TIMEOUT_MS, RECONNECT_DELAY_MS};
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_protocol::trace::TraceContext;
use thalweg_quic::{
    Event, Lane, Link as QuicLink, PRIORITY_DELIVERY, PRIORITY_DOCUMENT, PRIORITY_GENERATION, SendError,
};
use thalweg_shard::{Input, Link, Output};
use thalweg_web::SessionNews;

use crate::connection::Connection;
use crate::core_loop::Core;
use crate::disk::ReadJob;
use crate::gate::Source;
use crate::mesh::MeshMessage;
use crate::report::Asker;
use crate::stats::CoreStats;
use crate::web::is_web;

/// When a checkpoint that had no room may be tried again.
const CHECKPOINT_RETRY_MS: u32 = 1_000;
/// Checkpoints under way on one core; one more is refused.
const CHECKPOINTS_MAX: usize = 64;

/// The connections of one core, and what it owes them itself.
#[derive(Default)]
pub(crate) struct Sessions {
    connections: BTreeMap<u64, Connection>,
    /// Connections that have not said hello, oldest first.
    awaiting_hello: VecDeque<(Instant, QuicLink)>,
    checkpoints: BTreeMap<u64, Checkpoint>,
    checkpoints_begun: u64,
    hellos_accepted: u64,
    hellos_refused: BTreeMap<&'static str, u64>,
    closed_slow: u64,
    /// Datagrams to or from clients that were not taken.
    unreliable_dropped: u64,
}

/// A checkpoint that somebody asked for and that is not done on all cores.
struct Checkpoint {
    link: QuicLink,
    request: Request,
    /// Cores that are not done.
    cores: usize,
}

impl Sessions {
    pub(crate) fn next_hello_deadline(&self) -> Option<Instant> {
        self.awaiting_hello.front().map(|(at, _)| *at)
    }

    pub(crate) fn count(&self, stats: &mut CoreStats) {
        stats.counters.insert("hellos_accepted", self.hellos_accepted);
        stats.counters.insert("hellos_refused", self.hellos_refused.values().sum());
        stats.counters.insert("closed_slow", self.closed_slow);
        stats.counters.insert("unreliable_dropped", self.unreliable_dropped);
        for (code, count) in &self.hellos_refused {
            *stats.rejects.entry(code).or_default() += count;
        }
    }

    pub(crate) fn connection(&self, link: QuicLink) -> Option<&Connection> {
        self.connections.get(&link.number())
    }

    /// A connection was made.
    pub(crate) fn connected(&mut self, link: QuicLink, connection: Connection) {
        self.connections.insert(link.number(), connection);
    }

    /// The connections from a number on, in order.
    pub(crate) fn connections_from(&self, number: u64) -> impl Iterator<Item = (u64, &Connection)> {
        self.connections.range(number..).map(|(number, connection)| (*number, connection))
    }

    /// Who has a session over a connection, and from where.
    pub(crate) fn who(&self, link: QuicLink) -> Option<(Arc<Principal>, SocketAddr)> {
        let connection = self.connection(link)?;
        Some((connection.principal.clone()?, connection.remote))
    }

    /// A hello was accepted.
    pub(crate) fn opened(&mut self, link: QuicLink, principal: Arc<Principal>, source: Source) {
        if let Some(connection) = self.connections.get_mut(&link.number()) {
            (connection.principal, connection.source) = (Some(principal), Some(source));
            self.hellos_accepted += 1;
        }
    }

    /// The gate was asked about a connection, or has answered.
    pub(crate) fn set_waits(&mut self, link: QuicLink, waits: bool) {
        if let Some(connection) = self.connections.get_mut(&link.number()) {
            connection.waits = waits;
        }
    }

    /// A login was refused.
    pub(crate) fn count_login(&mut self, link: QuicLink) {
        if let Some(connection) = self.connections.get_mut(&link.number()) {
            connection.logins += 1;
        }
    }

    /// The connections whose hello was accepted.
    pub(crate) fn open(&self) -> Vec<QuicLink> {
        let open = self.connections.iter().filter(|(_, connection)| connection.principal.is_some());
        open.map(|(number, _)| QuicLink::from_number(*number)).collect()
    }

    /// All connections.
    pub(crate) fn all(&self) -> Vec<QuicLink> {
        self.connections.keys().map(|number| QuicLink::from_number(*number)).collect()
    }
}

fn quic_link(link: Link) -> QuicLink {
    QuicLink::from_number(link.0)
}

pub(crate) fn shard_link(link: QuicLink) -> Link {
    Link(link.number())
}

impl Core {
    /// Takes what the transport has to say.
    pub(crate) fn events(&mut self, now: Instant) -> usize {
        let mut work = 0;
        while let Some(event) = self.quic.poll_event() {
            work += 1;
            self.event(now, event);
        }
        work
    }

    fn event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Opened { link, remote } => {
                self.sessions.connected(link, Connection::new(remote));
                let deadline = now + Duration::from_millis(HELLO_TIMEOUT_MS);
                self.sessions.awaiting_hello.push_back((deadline, link));
            }
            Event::Frame { link, subject, payload, .. } => self.frame(now, link, Request(subject), &payload),
            Event::Drained { link, lane, bytes } => self.lane_drained(link, lane, bytes),
            Event::Closed { link, reason } => {
                tracing::debug!(?link, ?reason, "connection closed");
                self.connection_closed(link);
            }
            Event::Datagram { link, payload } => self.datagram(link, &payload),
            // A reader that stopped reading a lane says so with credit, or by going; what was queued for it will not be taken.
            Event::LaneClosed { link, lane } => {
                let connection = self.sessions.connections.get(&link.number());
                let left = connection.and_then(|connection| connection.undrained.get(&lane).copied());
                if let Some(left) = left {
                    self.lane_drained(link, lane, left);
                    if let Some(connection) = self.sessions.connections.get_mut(&link.number()) {
                        connection.undrained.remove(&lane);
                    }
                }
            }
        }
    }

    /// The transport took bytes of a lane, or will not take them any more.
    fn lane_drained(&mut self, link: QuicLink, lane: Lane, bytes: usize) {
        let Some(connection) = self.sessions.connections.get_mut(&link.number()) else { return };
        let of_document = connection.undrained.get_mut(&lane);
        let counts = of_document.is_some() || connection.delivery == Some(lane);
        if let Some(undrained) = of_document {
            *undrained = undrained.saturating_sub(bytes);
        }
        if counts && bytes > 0 {
            let at = self.now();
            self.shard.handle(at, Input::Drained { link: shard_link(link), bytes });
        }
    }

    /// Forgets a connection that is gone.
    pub(crate) fn connection_closed(&mut self, link: QuicLink) {
        self.tracer.closed(link.number());
        if let Some(connection) = self.sessions.connections.remove(&link.number())
            && let Some(principal) = connection.principal
        {
            self.entrance.closed(link, &principal);
            let at = self.now();
            self.shard.handle(at, Input::Closed { link: shard_link(link) });
        }
    }

    /// Takes in what may be lost: that a user is there, is writing, or where in a document. Anything else is for the command lane, and counted.
    fn datagram(&mut self, link: QuicLink, datagram: &Bytes) {
        let mut splitter = Splitter::new();
        splitter.push(datagram.clone());
        let frame = splitter.next().ok().flatten().filter(|_| splitter.pending() == 0);
        let open = self.sessions.connections.get(&link.number()).is_some_and(|own| own.principal.is_some());
        let op = frame.filter(|_| open).map(|frame| (frame.subject, ClientOp::decode(&frame.payload)));
        match op {
            Some((
                subject,
                Ok(
                    op @ (ClientOp::Heartbeat
                    | ClientOp::Typing { .. }
                    | ClientOp::Document(DocumentOp::ShareAwareness { .. })),
                ),
            )) => {
                let (at, request) = (self.now(), Request(subject));
                self.shard.handle(at, Input::Request { link: shard_link(link), request, op, trace: 0 });
            }
            _ => self.sessions.unreliable_dropped += 1,
        }
    }

    fn frame(&mut self, now: Instant, link: QuicLink, request: Request, payload: &Bytes) {
        let (decoded, context) = match ClientOp::decode_traced(payload) {
            Ok((op, context)) => (Ok(op), context),
            Err(reject) => (Err(reject), None),
        };
        self.operation(now, link, request, decoded, context);
    }

    /// Carries out what a connection asks, or tells it why that cannot be read.
    pub(crate) fn operation(
        &mut self,
        now: Instant,
        link: QuicLink,
        request: Request,
        decoded: Result<ClientOp, Reject>,
        context: Option<TraceContext>,
    ) {
        let Some(connection) = self.sessions.connections.get(&link.number()) else { return };
        let open = connection.principal.clone();
        let trace = match (&decoded, &open) {
            (Ok(op), Some(principal)) => {
                let (at_us, tenant) = (self.now().mono_us, &principal.tenant);
                self.tracer.begin(at_us, link.number(), request, tenant, op, context)
            }
            _ => 0,
        };
        match (decoded, open) {
            (Ok(ClientOp::Hello(hello)), None) => self.hello(now, link, request, hello),
            (Ok(ClientOp::Login(login)), _) => self.log_in(now, link, request, login),
            (Ok(_), None) => {
                let text = "the first frame of a connection must be a hello, or a login before it";
                self.turn_away(now, link, request, Reject::new(RejectCode::HelloExpected, text));
            }
            (Err(reject), None) => self.turn_away(now, link, request, reject),
            (Ok(ClientOp::Ping { nonce }), Some(_)) => self.reply(now, link, request, &ServerOp::Pong { nonce }),
            (Ok(ClientOp::Manage { json }), Some(principal)) => self.manage(now, link, request, principal, json),
            (Ok(ClientOp::Stats), Some(principal)) => match self.may_do(link, &principal, "stats") {
                Ok(()) => self.begin_report(now, Asker::Client { link, request }),
                Err(reject) => self.reply(now, link, request, &ServerOp::Reject(reject)),
            },
            (Ok(ClientOp::Checkpoint), Some(principal)) => match self.may_do(link, &principal, "checkpoint") {
                Ok(()) => self.begin_checkpoint(now, link, request),
                Err(reject) => self.reply(now, link, request, &ServerOp::Reject(reject)),
            },
            (Ok(ClientOp::Drain), Some(principal)) => match self.may_do(link, &principal, "drain") {
                Ok(()) => {
                    tracing::info!(user = %principal.user, "a client asked the node to drain");
                    self.reply(now, link, request, &ServerOp::Done);
                    self.shared.drain();
                }
                Err(reject) => self.reply(now, link, request, &ServerOp::Reject(reject)),
            },
            (Ok(ClientOp::Embed { model, texts }), Some(_)) => self.embed(now, link, request, model, texts),
            (Ok(op), Some(_)) => {
                let at = self.now();
                self.shard.handle(at, Input::Request { link: shard_link(link), request, op, trace });
            }
            // The frame's boundaries are known, so one bad request does not end the session.
            (Err(reject), Some(_)) => self.reply(now, link, request, &ServerOp::Reject(reject)),
        }
    }

    /// Refuses a connection that did not get as far as a session.
    pub(crate) fn turn_away(&mut self, now: Instant, link: QuicLink, request: Request, reject: Reject) {
        *self.sessions.hellos_refused.entry(reject.code.as_str()).or_default() += 1;
        self.reply(now, link, request, &ServerOp::Reject(reject.clone()));
        self.close(now, link, reject.code, &reject.message);
    }

    /// Closes connections that said no hello in time.
    pub(crate) fn close_silent(&mut self, now: Instant) -> usize {
        let mut closed = 0;
        while let Some(&(_, link)) = self.sessions.awaiting_hello.front().filter(|(at, _)| *at <= now) {
            self.sessions.awaiting_hello.pop_front();
            let connection = self.sessions.connections.get(&link.number());
            if connection.is_some_and(|connection| connection.principal.is_none()) {
                let text = format!("no hello came within {HELLO_TIMEOUT_MS} ms");
                let reject = Reject::new(RejectCode::HelloTimeout, text);
                *self.sessions.hellos_refused.entry(reject.code.as_str()).or_default() += 1;
                self.close(now, link, reject.code, &reject.message);
                closed += 1;
            }
        }
        closed
    }

    /// Parts with a connection, telling it why.
    pub(crate) fn close(&mut self, now: Instant, link: QuicLink, code: RejectCode, text: &str) {
        if is_web(link) {
            self.web.close(link, code, text);
        } else {
            self.quic.close(now, link, code as u32, text.as_bytes());
        }
    }

    pub(crate) fn reply(&mut self, now: Instant, link: QuicLink, request: Request, op: &ServerOp) {
        self.tracer.answered(link.number(), request, op);
        if is_web(link) {
            return self.web.tell(link, SessionNews::Reply { request, op: op.clone() });
        }
        self.send(now, link, Lane::COMMAND, request.0, op.encode());
    }

    /// Sends a frame; a client that lets too much pile up is parted with.
    fn send(&mut self, now: Instant, link: QuicLink, lane: Lane, subject: u32, payload: Bytes) {
        match self.quic.send(link, lane, subject, payload) {
            Ok(()) | Err(SendError::LinkClosed(_) | SendError::LaneClosed(..)) => {}
            Err(
                error @ (SendError::QueueFull { .. } | SendError::TooLarge { .. } | SendError::DatagramsUnsupported(_)),
            ) => {
                self.sessions.closed_slow += 1;
                tracing::debug!(?link, %error, "parting with a client that does not read");
                self.close(now, link, RejectCode::SlowReader, "too much is queued; read what was asked for");
            }
        }
    }

    /// Carries out one wish of the shard.
    pub(crate) fn carry_out(&mut self, now: Instant, output: Output) {
        match output {
            Output::Append { ticket, record } => self.log.append(ticket, &record),
            Output::Read { read, partition, channel, from, to } => {
                self.log.read(ReadJob { read, partition, channel, from, to });
            }
            Output::Reply { link, request, op } if is_web(quic_link(link)) => {
                self.tracer.answered(link.0, request, &op);
                self.web.tell(quic_link(link), SessionNews::Reply { request, op });
            }
            Output::Reply { link, request, op } => self.reply(now, quic_link(link), request, &op),
            Output::Deliver { link, subscription: Subscription(subject), payload } if is_web(quic_link(link)) => {
                self.web.tell(quic_link(link), SessionNews::Frame { subject, payload, last: false });
            }
            Output::Deliver { link, subscription, payload } => {
                let link = quic_link(link);
                if let Some(lane) = self.delivery_lane(now, link) {
                    self.send(now, link, lane, subscription.0, payload);
                }
            }
            Output::Document { link, subscription: Subscription(subject), payload, last }
                if is_web(quic_link(link)) =>
            {
                self.web.tell(quic_link(link), SessionNews::Frame { subject, payload, last });
            }
            Output::Document { link, subscription, payload, last } => {
                self.document_frame(now, quic_link(link), subscription, payload);
                if last {
                    self.finish_document(quic_link(link), subscription);
                }
            }
            Output::DocumentLeft { link, subscription } => self.finish_document(quic_link(link), subscription),
            Output::Generation { link, watch, payload, last } if is_web(quic_link(link)) => {
                self.tracer.frame(self.now().mono_us, link.0, watch, last);
                self.web.tell(quic_link(link), SessionNews::Frame { subject: watch.0, payload, last });
            }
            Output::Generation { link, watch, payload, last } => {
                let link = quic_link(link);
                let Some(lane) = self.generation_lane(now, link, watch) else { return };
                self.tracer.frame(self.now().mono_us, link.number(), watch, last);
                self.send(now, link, lane, watch.0, payload);
                if last {
                    self.quic.finish_lane(link, lane);
                    if let Some(connection) = self.sessions.connections.get_mut(&link.number()) {
                        connection.generations.remove(&watch);
                    }
                }
            }
            Output::Peer { to, message } => self.mesh.send(to, MeshMessage::Shard(message)),
            Output::Inference(command) => self.inference.send(command),
            Output::Datagram { link, subscription, payload } => {
                let header = thalweg_protocol::frame::header(payload.len(), subscription.0);
                let datagram = [&header[..], &payload].concat().into();
                // What is lost is of no use later; a client that takes no datagrams does without.
                let link = quic_link(link);
                let sent = !is_web(link) && self.quic.send_datagram(link, datagram).is_ok();
                self.sessions.unreliable_dropped += u64::from(!sent);
            }
            Output::Audit(event) => self.shard_decided(event),
            Output::Close { link, reject } => {
                self.close(now, quic_link(link), reject.code, &reject.message);
            }
        }
    }

    fn delivery_lane(&mut self, now: Instant, link: QuicLink) -> Option<Lane> {
        if let Some(lane) = self.sessions.connections.get(&link.number())?.delivery {
            return Some(lane);
        }
        let lane = self.open_lane(now, link, PRIORITY_DELIVERY)?;
        self.sessions.connections.get_mut(&link.number())?.delivery = Some(lane);
        Some(lane)
    }

    /// Sends a frame on the lane of a document, which is opened for the first.
    fn document_frame(&mut self, now: Instant, link: QuicLink, subscription: Subscription, payload: Bytes) {
        let Some(connection) = self.sessions.connections.get(&link.number()) else { return };
        let lane = match connection.documents.get(&subscription) {
            Some(lane) => *lane,
            None => {
                let Some(lane) = self.open_lane(now, link, PRIORITY_DOCUMENT) else { return };
                let Some(connection) = self.sessions.connections.get_mut(&link.number()) else { return };
                connection.documents.insert(subscription, lane);
                connection.undrained.insert(lane, 0);
                lane
            }
        };
        let bytes = payload.len() + FRAME_HEADER_BYTES;
        let Some(connection) = self.sessions.connections.get_mut(&link.number()) else { return };
        match connection.undrained.get_mut(&lane) {
            Some(undrained) => *undrained += bytes,
            // The client reads this lane no more, but has not left the document: nothing of it waits for anybody.
            None => {
                let at = self.now();
                return self.shard.handle(at, Input::Drained { link: shard_link(link), bytes });
            }
        }
        self.send(now, link, lane, subscription.0, payload);
    }

    /// Ends the lane of a document after what is queued on it.
    fn finish_document(&mut self, link: QuicLink, subscription: Subscription) {
        let connection = self.sessions.connections.get_mut(&link.number());
        if let Some(lane) = connection.and_then(|connection| connection.documents.remove(&subscription)) {
            self.quic.finish_lane(link, lane);
        }
    }

    fn generation_lane(&mut self, now: Instant, link: QuicLink, watch: Watch) -> Option<Lane> {
        if let Some(lane) = self.sessions.connections.get(&link.number())?.generations.get(&watch) {
            return Some(*lane);
        }
        let lane = self.open_lane(now, link, PRIORITY_GENERATION)?;
        self.sessions.connections.get_mut(&link.number())?.generations.insert(watch, lane);
        Some(lane)
    }

    /// Opens a lane. A client that allows too few of them cannot be served and is told so.
    fn open_lane(&mut self, now: Instant, link: QuicLink, priority: i32) -> Option<Lane> {
        debug_assert!(!is_web(link), "what web sessions are told goes over their ring");
        match self.quic.open_lane(link, priority) {
            Ok(lane) => Some(lane),
            Err(error) => {
                let text = format!("{error}; allow more unidirectional streams");
                self.close(now, link, RejectCode::LimitReached, &text);
                None
            }
        }
    }

    fn begin_checkpoint(&mut self, now: Instant, link: QuicLink, request: Request) {
        if self.sessions.checkpoints.len() >= CHECKPOINTS_MAX {
            let reject = Reject::new(RejectCode::Busy, "too many checkpoints are under way").retry_after_ms(1_000);
            self.reply(now, link, request, &ServerOp::Reject(reject));
            return;
        }
        self.sessions.checkpoints_begun += 1;
        let number = self.sessions.checkpoints_begun;
        let cores = self.shared.bells.len();
        self.sessions.checkpoints.insert(number, Checkpoint { link, request, cores });
        for core in (0..cores as u16).map(CoreId).filter(|core| *core != self.id) {
            self.mesh.send(core, MeshMessage::CheckpointWanted { from: self.id, number });
        }
        self.log.checkpoint(self.id, number);
    }

    /// One core more is done with a checkpoint, or cannot do it.
    pub(crate) fn checkpointed(&mut self, number: u64, result: Result<(), String>) {
        let std::collections::btree_map::Entry::Occupied(mut entry) = self.sessions.checkpoints.entry(number) else {
            return;
        };
        entry.get_mut().cores -= 1;
        let op = match result {
            Err(said) => {
                let text = format!("the checkpoint is not done: {said}; what is acknowledged is safe in the log");
                ServerOp::Reject(Reject::new(RejectCode::StorageFull, text).retry_after_ms(CHECKPOINT_RETRY_MS))
            }
            Ok(()) if entry.get().cores == 0 => ServerOp::Done,
            Ok(()) => return,
        };
        let Checkpoint { link, request, .. } = entry.remove();
        self.reply(Instant::now(), link, request, &op);
    }
}

/// What those are told who come or stay while the node goes.
pub(crate) fn going_away() -> Reject {
    let text = "the node is restarting; come back after the delay";
    Reject::new(RejectCode::Draining, text).retry_after_ms(RECONNECT_DELAY_MS)
}
