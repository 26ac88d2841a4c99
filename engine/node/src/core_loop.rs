//! The core loop: the only place where a core's socket, connections, shard, log and rings meet.
//!
//! Work is taken in batches and in one order: datagrams and rings in, shard, log, replies, fan-out, datagrams out. Nothing
//! here waits but [`Parker::park`], and nothing is held across it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_domain::partition::PartitionState;
use thalweg_protocol::ids::{CoreId, Partition};
use thalweg_protocol::limits::{FAN_OUT_BURST, FAN_OUT_SLICE_US, RING_SLOTS, STALL_US, TURN_INPUTS_MAX};
use thalweg_protocol::reject::RejectCode;
use thalweg_quic::Quic;
use thalweg_ring::{Bell, Consumer};
use thalweg_shard::{Input, Now, Shard};
use thalweg_udp::{Datagram, SendOutcome, Socket, Steering, Transmit};

use crate::clerk::ClerkLink;
use crate::connection::Reception;
use crate::disk::Alarm;
use crate::drain::Drain;
use crate::embed::Embeds;
use crate::entrance::Entrance;
use crate::inference::{Inference, Links};
use crate::log::{CoreLog, LogNews};
use crate::mesh::{Mesh, MeshMessage};
use crate::models::Registry;
use crate::outlook::Outlook;
use crate::park::Parker;
use crate::reload::Control;
use crate::report::Reports;
use crate::sessions::Sessions;
use crate::stats::{CoreStats, NodeStage};
use crate::trace::Tracer;
use crate::vitals::Vitals;
use crate::web::WebDesk;

/// An idle core looks around at least this often, whatever it was told to wait for.
const PARK_MAX: Duration = Duration::from_secs(1);
/// A core that was busy less than this ago naps; one that was not goes to sleep properly.
const NAP: Duration = Duration::from_millis(5);
/// Bytes of datagrams gathered before they are handed to the kernel.
const TRANSMIT_BYTES: usize = 64 << 10;
/// Batches handed to the kernel before the core looks at what has arrived: about a millisecond's worth.
const TRANSMIT_BATCHES_MAX: usize = 128;

/// What all cores of a node share. Nothing in it changes but the flag.
pub(crate) struct Shared {
    pub(crate) reception: Reception,
    pub(crate) steering: Steering,
    pub(crate) drain: AtomicBool,
    pub(crate) bells: Vec<Arc<Bell>>,
    /// Raised when the log failed: then nothing more is answered.
    pub(crate) alarm: Arc<Alarm>,
    /// What `admin stats` says about the node as a whole.
    pub(crate) about: serde_json::Map<String, serde_json::Value>,
    /// The moment the node's clocks count from.
    pub(crate) origin: Instant,
    /// Memory, clock, certificate: written by others, read by cores.
    pub(crate) vitals: Arc<Vitals>,
    /// What is shown to those who ask from outside.
    pub(crate) outlook: Arc<Outlook>,
    /// The models there are.
    pub(crate) registry: Arc<Registry>,
}

impl Shared {
    /// Begins to drain the node.
    pub(crate) fn drain(&self) {
        self.drain.store(true, Ordering::Release);
        self.outlook.drains();
        self.bells.iter().for_each(|bell| bell.ring());
    }
}

/// One core: everything its thread owns.
pub(crate) struct Core {
    pub(crate) id: CoreId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) socket: Socket,
    pub(crate) quic: Quic,
    pub(crate) shard: Shard,
    pub(crate) log: CoreLog,
    pub(crate) mesh: Mesh,
    pub(crate) inference: Inference,
    pub(crate) embeds: Embeds,
    pub(crate) clerk: ClerkLink,
    pub(crate) sessions: Sessions,
    pub(crate) entrance: Entrance,
    pub(crate) stats: CoreStats,
    pub(crate) reports: Reports,
    pub(crate) web: WebDesk,
    pub(crate) tracer: Tracer,
    pub(crate) draining: Option<Drain>,
    /// Changed settings.
    control: Consumer<Control>,
    /// How short memory is, as far as the shard was told.
    pub(crate) pressure: u8,
    clock: Clock,
    /// Datagrams that are ready to be sent, and the one the kernel had no room for.
    buffer: Vec<u8>,
    blocked: Option<thalweg_quic::Transmit>,
    turn: Turn,
}

/// Tells the shard the time. Reading the clocks is a tenth of an idle turn, so each is read no more often than needed:
/// the wall clock once a turn with work, the other once a phase.
struct Clock {
    origin: Instant,
    now: Now,
}

impl Clock {
    fn begin_turn(&mut self) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.now.wall_us = wall.as_micros() as u64;
        self.refresh();
    }

    fn refresh(&mut self) {
        self.now.mono_us = self.origin.elapsed().as_micros() as u64;
    }
}

/// What a turn found to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Only the transport's own business, such as acknowledgements.
    Upkeep,
    /// Requests, messages, tokens: more of them may follow soon.
    Work,
}

/// Where in a turn the core is, to name what took long.
struct Turn {
    began: Instant,
    place: &'static str,
    place_began: Instant,
    longest: (&'static str, Duration),
}

impl Turn {
    fn enter(&mut self, place: &'static str) {
        let now = Instant::now();
        let took = now - self.place_began;
        if took > self.longest.1 {
            self.longest = (self.place, took);
        }
        (self.place, self.place_began) = (place, now);
    }
}

impl Core {
    #[allow(clippy::too_many_arguments, reason = "a core is made in one place, from the parts it owns")]
    pub(crate) fn new(
        id: CoreId,
        shared: Arc<Shared>,
        socket: Socket,
        quic: Quic,
        shard: Shard,
        log: CoreLog,
        mesh: Mesh,
        inference: Links,
        clerk: ClerkLink,
        control: Consumer<Control>,
        entrance: Entrance,
        web: WebDesk,
        tracer: Tracer,
    ) -> Self {
        let now = Instant::now();
        Self {
            id,
            clock: Clock { origin: shared.origin, now: Now::default() },
            inference: Inference::new(inference, shared.origin),
            embeds: Embeds::default(),
            shared,
            socket,
            quic,
            shard,
            log,
            mesh,
            clerk,
            sessions: Sessions::default(),
            entrance,
            stats: CoreStats::of(id),
            reports: Reports::default(),
            web,
            tracer,
            draining: None,
            control,
            pressure: 0,
            buffer: Vec::with_capacity(TRANSMIT_BYTES),
            blocked: None,
            turn: Turn { began: now, place: "park", place_began: now, longest: ("park", Duration::ZERO) },
        }
    }

    /// Takes in what the log left behind of this core's partitions. Comes before [`run`](Self::run).
    pub(crate) fn restore(&mut self, states: Vec<(Partition, Box<PartitionState>)>) {
        self.clock.begin_turn();
        for (partition, state) in states {
            if self.shared.alarm.is_raised() {
                return;
            }
            self.shard.handle(self.clock.now, Input::Restore { partition, state });
        }
        self.settle(Instant::now());
    }

    /// Serves until the node has drained, or its log failed.
    pub(crate) async fn run(mut self, parker: Parker, spin: Duration) {
        // When there was last anything to do, and until when it is worth looking for more of it.
        let (mut busy_at, mut spin_until) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            self.shared.outlook.looked(self.id, now);
            if self.shared.alarm.is_raised() {
                return self.give_up(now);
            }
            match self.turn(now) {
                Found::Work => (busy_at, spin_until) = (now, now + spin),
                // Looking for more acknowledgements would burn the time that they leave.
                Found::Upkeep => busy_at = now,
                Found::Nothing if self.drained(now) => return,
                // While a batch is being written its writer may need this CPU, and will ring when it is done.
                Found::Nothing if now < spin_until && !self.log.is_writing() => std::hint::spin_loop(),
                Found::Nothing => self.sleep(&parker, now, now - busy_at < NAP).await,
            }
        }
    }

    /// Parts with everybody, and answers nothing more: what was not acknowledged stays so.
    fn give_up(&mut self, now: Instant) {
        for link in self.sessions.all() {
            self.close(now, link, RejectCode::Draining, "the node failed; it stops");
        }
        self.transmit(now);
    }

    async fn sleep(&mut self, parker: &Parker, now: Instant, nap: bool) {
        let timeout = self.time_to_next(now);
        if timeout.is_zero() || self.socket.prepare_wait() {
            return;
        }
        let (draining, drain) = (self.draining.is_some(), &self.shared.drain);
        let busy = || {
            self.rings_have_something() || self.shared.alarm.is_raised() || (!draining && drain.load(Ordering::Acquire))
        };
        if nap {
            parker.nap(timeout.min(NAP), busy);
        } else {
            parker.park(timeout, busy).await;
        }
    }

    /// How long the core may sleep.
    fn time_to_next(&mut self, now: Instant) -> Duration {
        let shard = self.shard.next_deadline().map(|at| self.clock.origin + Duration::from_micros(at));
        let sessions = [self.sessions.next_hello_deadline(), self.entrance.next_look()].into_iter().flatten().min();
        let next = [self.quic.next_timeout(), shard, sessions, self.next_drain_step()];
        let until = next.into_iter().flatten().min().map_or(PARK_MAX, |at| at.saturating_duration_since(now));
        until.min(PARK_MAX)
    }

    /// One turn.
    fn turn(&mut self, now: Instant) -> Found {
        self.turn = Turn { began: now, place: "receive", place_began: now, longest: ("receive", Duration::ZERO) };
        let mut upkeep = self.receive(now);
        let due = self.next_due(now);
        if upkeep == 0 && !due && !self.rings_have_something() && !self.quic.has_work() && self.blocked.is_none() {
            return Found::Nothing;
        }
        self.clock.begin_turn();
        self.turn.enter("timers");
        if due {
            upkeep += self.timers(now);
        }
        self.turn.enter("requests");
        let mut work = self.events(now);
        self.turn.enter("rings");
        work += self.rings();
        self.turn.enter("shard");
        self.shard.finish_turn(self.clock.now);
        work += self.settle(now);
        self.turn.enter("fan_out");
        work += self.fan_out(now);
        self.turn.enter("send");
        upkeep += self.transmit(now);
        self.mesh.flush();
        self.trace();
        if work + upkeep > 0 {
            self.measure();
        }
        match (work, upkeep) {
            (0, 0) => Found::Nothing,
            (0, _) => Found::Upkeep,
            _ => Found::Work,
        }
    }

    /// Whether something was to be done by now.
    fn next_due(&mut self, now: Instant) -> bool {
        let begins_drain = self.draining.is_none() && self.shared.drain.load(Ordering::Relaxed);
        begins_drain || self.time_to_next(now).is_zero()
    }

    fn rings_have_something(&self) -> bool {
        !self.mesh.is_empty()
            || !self.inference.is_empty()
            || !self.clerk.is_empty()
            || !self.web.is_empty()
            || !self.control.is_empty()
            || self.entrance.has_something()
            || self.shared.vitals.memory_level() != self.pressure
            || self.log.has_news()
            || self.shard.has_readers_to_serve()
            || self.shard.has_gathered()
    }

    /// Takes datagrams off the socket, unless other cores cannot keep up with what they lead to.
    fn receive(&mut self, now: Instant) -> usize {
        if self.mesh.backlog() > RING_SLOTS {
            return 0;
        }
        let (quic, mesh, steering, id) = (&mut self.quic, &mut self.mesh, &self.shared.steering, self.id);
        let cores = steering.cores();
        let received = self.socket.receive(TURN_INPUTS_MAX, &mut |datagram: Datagram| {
            if cores > 1
                && let Some(owner) = steering.core_of_datagram(&datagram.bytes)
                && owner != usize::from(id.0)
            {
                mesh.send(CoreId(owner as u16), MeshMessage::Datagram(datagram));
                return;
            }
            quic.receive(now, datagram.remote, datagram.local_ip, datagram.ecn, datagram.bytes);
        });
        received.unwrap_or_else(|error| {
            tracing::warn!(%error, core = self.id.0, "receiving failed");
            0
        })
    }

    fn timers(&mut self, now: Instant) -> usize {
        let mut due = 0;
        if self.quic.next_timeout().is_some_and(|at| at <= now) {
            self.quic.handle_timeouts(now);
            due += 1;
        }
        let at = self.clock.now;
        if self.shard.next_deadline().is_some_and(|deadline| deadline <= at.mono_us) {
            self.shard.handle(at, Input::Timeout);
            due += 1;
        }
        due + self.close_silent(now) + self.expire(now) + self.drain_step(now)
    }

    /// Takes what other threads put on the rings.
    fn rings(&mut self) -> usize {
        let (at, now) = (self.clock.now, self.turn.place_began);
        let mut messages = VecDeque::new();
        let mut work = self.mesh.receive(TURN_INPUTS_MAX, |message| messages.push_back(message));
        for message in messages {
            match message {
                MeshMessage::Shard(message) => self.shard.handle(at, Input::Peer(message)),
                MeshMessage::Datagram(Datagram { remote, local_ip, ecn, bytes }) => {
                    self.quic.receive(now, remote, local_ip, ecn, bytes);
                }
                MeshMessage::StatsWanted { from, number } => {
                    let stats = Box::new(self.measured_snapshot());
                    self.mesh.send(from, MeshMessage::Stats { number, stats });
                }
                MeshMessage::Stats { number, stats } => self.stats_arrived(number, *stats),
                MeshMessage::CheckpointWanted { from, number } => self.log.checkpoint(from, number),
                MeshMessage::Checkpointed { number, result } => self.checkpointed(number, result),
            }
        }
        while let Some((number, inference)) = self.clerk.receive() {
            self.inference_stats_arrived(number, inference);
            work += 1;
        }
        work += self.controls();
        work += self.gate_news(now);
        work += self.web_requests(now);
        let (shard, stats) = (&mut self.shard, &mut self.stats);
        work += self.inference.receive(stats, |event| shard.handle(at, Input::Inference(event)));
        self.answer_embeds(now);
        work
    }

    /// Takes in changed settings, and how short memory is.
    fn controls(&mut self) -> usize {
        let mut work = 0;
        while let Some(control) = self.control.pop() {
            work += 1;
            match control {
                Control::Identity(identity) => self.quic.set_identity(identity),
                Control::Limits(limits) => self.shard.handle(self.clock.now, Input::Limits(limits)),
                Control::Routes { routes, served } => {
                    self.inference.set_served(served);
                    self.shard.handle(self.clock.now, Input::Routes(routes));
                }
            }
        }
        let level = self.shared.vitals.memory_level();
        if level != self.pressure {
            self.pressure = level;
            self.shard.handle(self.clock.now, Input::Pressure { level });
            work += 1;
        }
        work
    }

    /// Carries out what the shard wants, until it wants nothing more and the log has nothing to say that would make it want
    /// more, or has said so much that the core must look around first. All that was appended on the way begins to be written
    /// as one batch, if none is being written.
    pub(crate) fn settle(&mut self, now: Instant) -> usize {
        let (mut work, mut news_taken) = (0, 0);
        while !self.shared.alarm.is_raised() {
            while let Some(output) = self.shard.poll() {
                work += 1;
                self.carry_out(now, output);
            }
            // Whatever is left keeps the core awake. If nothing is, the log is asked once more, for it begins the next batch.
            if news_taken >= TURN_INPUTS_MAX && self.log.has_news() {
                break;
            }
            match self.log.next(&mut self.stats) {
                Ok(Some(news)) => {
                    work += 1;
                    news_taken += 1;
                    self.log_news(news);
                }
                Ok(None) => break,
                Err(error) => self.shared.alarm.raise(error.to_string()),
            }
        }
        work
    }

    fn log_news(&mut self, news: LogNews) {
        self.clock.refresh();
        let input = match news {
            LogNews::Durable(ticket) => Input::Durable { ticket },
            LogNews::Archived(ticket) => Input::Archived { ticket },
            LogNews::Storage(full) => {
                self.shared.outlook.set_storage_full(self.id, full.is_some());
                Input::Storage { full }
            }
            LogNews::Read((read, result)) => Input::Read { read, result },
            LogNews::Checkpointed { from, number, result } if from == self.id => {
                return self.checkpointed(number, result);
            }
            LogNews::Checkpointed { from, number, result } => {
                return self.mesh.send(from, MeshMessage::Checkpointed { number, result });
            }
        };
        self.shard.handle(self.clock.now, input);
    }

    /// Serves readers for at most a slice of time.
    fn fan_out(&mut self, now: Instant) -> usize {
        let mut work = 0;
        self.clock.refresh();
        let until_us = self.clock.now.mono_us + FAN_OUT_SLICE_US;
        while self.shard.has_readers_to_serve() {
            self.shard.fan_out(self.clock.now, FAN_OUT_BURST);
            work += self.settle(now).max(1);
            self.clock.refresh();
            if self.clock.now.mono_us > until_us {
                break;
            }
        }
        work
    }

    /// Hands datagrams to the kernel until there are none, it has no room, or it is time to look around.
    fn transmit(&mut self, now: Instant) -> usize {
        let mut sent = 0;
        let segments = self.socket.max_gso_segments();
        while sent < TRANSMIT_BATCHES_MAX {
            let transmit = match self.blocked.take() {
                Some(transmit) => transmit,
                None => {
                    self.buffer.clear();
                    match self.quic.poll_transmit(now, segments, &mut self.buffer) {
                        Some(transmit) => transmit,
                        None => break,
                    }
                }
            };
            let batch = Transmit {
                remote: transmit.remote,
                local_ip: transmit.local_ip,
                ecn: transmit.ecn,
                contents: &self.buffer[..transmit.bytes],
                segment_bytes: transmit.segment_bytes,
            };
            match self.socket.send(&batch) {
                Ok(SendOutcome::Sent) => sent += 1,
                Ok(SendOutcome::WouldBlock) => {
                    self.blocked = Some(transmit);
                    break;
                }
                // A datagram that cannot be sent is one that was lost: the transport repeats what matters.
                Err(error) => tracing::debug!(%error, core = self.id.0, "sending failed"),
            }
        }
        if let Err(error) = self.socket.flush() {
            tracing::warn!(%error, core = self.id.0, "flushing the socket failed");
        }
        sent
    }

    /// Hands over what was measured of requests that are traced.
    fn trace(&mut self) {
        self.tracer.spans(self.shard.spans());
        for (root, generation) in self.inference.told() {
            self.tracer.generation(root, generation);
        }
        let origin = self.clock.origin;
        self.tracer.turn_over(|| origin.elapsed().as_micros() as u64);
    }

    /// Counts what the turn took, and says where, if it was too long.
    fn measure(&mut self) {
        self.turn.enter("done");
        let took = self.turn.began.elapsed();
        self.stats.record(NodeStage::Turn, took);
        for sample in self.shard.samples() {
            self.stats.sample(sample);
        }
        self.inference.sent(&mut self.stats);
        if took > Duration::from_micros(STALL_US) {
            let (place, longest) = self.turn.longest;
            self.stats.stalled(place, took.as_micros() as u64);
            let (took_us, place_us) = (took.as_micros() as u64, longest.as_micros() as u64);
            tracing::warn!(core = self.id.0, took_us, place, place_us, "the core stalled");
        }
    }

    /// What the core has measured and counted until now.
    pub(crate) fn snapshot(&self) -> CoreStats {
        let mut stats = self.stats.clone();
        stats.count_shard(self.shard.counters());
        stats.count_transport(self.quic.counters(), &self.socket.counters());
        self.sessions.count(&mut stats);
        self.entrance.count(&mut stats);
        self.web.count(&mut stats);
        self.inference.count(&mut stats);
        stats.gauges.insert("embeds_open", self.embeds.len() as u64);
        self.log.count(&mut stats);
        self.tracer.count(&mut stats);
        stats.gauges.extend(self.shard.gauges());
        stats.routed.clone_from(self.shard.routed());
        stats.gauges.insert("connections", self.quic.connections() as u64);
        stats.gauges.insert("handshakes", self.quic.handshaking() as u64);
        stats.gauges.insert("mesh_backlog", self.mesh.backlog() as u64);
        stats
    }

    pub(crate) fn now(&self) -> Now {
        self.clock.now
    }
}
