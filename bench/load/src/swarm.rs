//! Many client connections on one thread, without a runtime.
//!
//! Contract, in a loop: [`Swarm::wait`] until something can be done, [`Swarm::receive`] what arrived, take every
//! [`Seen`] by [`Swarm::next_seen`] and answer it by [`Swarm::request`], then [`Swarm::flush`] what is to be sent. Answers
//! given before the flush travel in the same packet as the acknowledgement of what they answer.
//!
//! A *link* is one connection and one session: its command lane is opened and the hello said as soon as the handshake is
//! done; [`Seen::Ready`] says that the node welcomed it.

mod link;
mod port;
mod tls;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, ConnectionHandle, StreamId, TransportConfig, VarInt};
use rand::Rng;
use thalweg_protocol::frame::header;
use thalweg_protocol::ids::SessionId;
use thalweg_protocol::limits::{DOCUMENTS_PER_SESSION_MAX, IDLE_TIMEOUT_MS, KEEP_ALIVE_MS, WATCHES_MAX};
use thalweg_protocol::op::{ClientOp, Hello, ServerOp};

use crate::cli::Target;
use crate::clock::Clock;
use crate::error::LoadError;
use link::Link;
use port::Port;
pub(crate) use port::{pollfd, wait_for};

/// Links of one socket. A burst to one link costs its socket about 2 KiB of kernel memory, of which Linux grants 4 MiB
/// by default at most when asked; this many leave a wide margin, so that the generator is not what drops packets.
const LINKS_PER_PORT: usize = 128;
/// First guess of the round trip, as in the SDK.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Bytes that wait for room on the command lane of one link before the run is given up: a server that does not read.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Before something is due, the generator stops sleeping this early, because a sleep ends late by up to this much.
const SLEEP_SLACK: Duration = Duration::from_micros(80);

/// A link of the swarm, by number from 0 in the order of opening.
pub(crate) type LinkId = usize;

/// What a link says when it is connected.
#[derive(Debug, Clone)]
pub(crate) enum Greeting {
    /// The hello of a session with this token.
    Hello {
        /// The signed token.
        token: String,
    },
    /// Nothing: the server is one that sends back what it gets, a stock QUIC echo. Its application protocol is `echo`.
    Echo,
}

/// How the generator passes the time in which there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Idle {
    /// It keeps looking: smallest floor, for a CPU of its own.
    #[default]
    Spin,
    /// It sleeps in the kernel until a packet arrives or something is due.
    Park,
}

/// Something that happened on a link.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The node welcomed it (of an echo server: the handshake is done).
    Ready,
    /// The connection failed or ended. Nothing more comes.
    Lost(String),
    /// A frame of so many bytes with its header, read at `at_ns`. `lane` tells the lanes of a link apart.
    Frame { lane: StreamId, subject: u32, op: ServerOp, bytes: usize, at_ns: u64 },
    /// So many bytes of an echo server, read at `at_ns`.
    Bytes { count: usize, at_ns: u64 },
}

/// See the module.
pub(crate) struct Swarm {
    clock: Clock,
    server: SocketAddr,
    greeting: Greeting,
    config: ClientConfig,
    idle: Idle,
    /// When the caller wants its turn, even if nothing arrives.
    wake: Option<Instant>,
    ports: Vec<Port>,
    links: Vec<Link>,
    /// When a link's connection wants to be called, at the earliest; checked again when the time has come.
    timers: BinaryHeap<Reverse<(Instant, LinkId)>>,
    /// Links that may have something to send.
    dirty: Vec<LinkId>,
    seen: VecDeque<(LinkId, Seen)>,
    transmit: Vec<u8>,
}

impl Swarm {
    /// A swarm without links.
    pub(crate) fn new(target: &Target, greeting: Greeting, idle: Idle) -> Result<Self, LoadError> {
        // A sleep may end this much late by default, which would be charged to the server.
        // SAFETY: PR_SET_TIMERSLACK takes one number and changes only how exact this thread's sleeps are.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
        let alpn: &[u8] = match greeting {
            Greeting::Hello { .. } => thalweg_protocol::ALPN,
            Greeting::Echo => b"echo",
        };
        let tls = tls::client_config(target.server_key, alpn);
        let tls = QuicClientConfig::try_from(tls).expect("the ring provider has the cipher suite of Initial packets");
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport()));
        Ok(Self {
            clock: Clock::new(),
            wake: None,
            server: target.server,
            greeting,
            config,
            idle,
            ports: Vec::new(),
            links: Vec::new(),
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            seen: VecDeque::new(),
            transmit: Vec::with_capacity(64 << 10),
        })
    }

    /// Begins the handshake of a new link; [`Seen::Ready`] or [`Seen::Lost`] follows.
    pub(crate) fn open(&mut self) -> Result<LinkId, LoadError> {
        self.open_as(self.greeting.clone())
    }

    /// The same for somebody who is greeted otherwise.
    pub(crate) fn open_as(&mut self, greeting: Greeting) -> Result<LinkId, LoadError> {
        let id = self.links.len();
        let port = id / LINKS_PER_PORT;
        if port == self.ports.len() {
            self.ports.push(Port::open(self.server)?);
        }
        let session = SessionId(rand::rng().random());
        let (handle, connection) = self.ports[port].connect(self.config.clone(), self.server)?;
        self.ports[port].bind(handle, id);
        self.links.push(Link::new(port, handle, connection, session, greeting));
        self.dirty.push(id);
        Ok(id)
    }

    /// The clock of the run, by which frames are stamped.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Asks for a turn at this time, even if nothing arrives; holds for the next wait.
    pub(crate) fn wake_at(&mut self, at_ns: u64) {
        let at = self.clock.instant(at_ns);
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// The session a link has.
    pub(crate) fn session(&self, link: LinkId) -> SessionId {
        self.links[link].session
    }

    /// Links that were opened and not lost.
    pub(crate) fn alive(&self) -> usize {
        self.links.iter().filter(|link| !link.lost).count()
    }

    /// Links that were opened, lost ones included.
    pub(crate) fn opened(&self) -> usize {
        self.links.len()
    }

    /// Whether a link was not lost.
    pub(crate) fn is_alive(&self, link: LinkId) -> bool {
        !self.links[link].lost
    }

    /// Takes the next thing that happened.
    pub(crate) fn next_seen(&mut self) -> Option<(LinkId, Seen)> {
        self.seen.pop_front()
    }

    /// Sends a request on the command lane, with the next flush.
    pub(crate) fn request(&mut self, link: LinkId, subject: u32, op: &ClientOp) -> Result<(), LoadError> {
        self.send_payload(link, subject, &op.encode())
    }

    /// Sends a frame of this payload on the command lane, with the next flush.
    pub(crate) fn send_payload(&mut self, link: LinkId, subject: u32, payload: &[u8]) -> Result<(), LoadError> {
        let head = header(payload.len(), subject);
        self.send_bytes(link, &head)?;
        self.send_bytes(link, payload)
    }

    /// Sends raw bytes on the command lane, with the next flush.
    pub(crate) fn send_bytes(&mut self, id: LinkId, bytes: &[u8]) -> Result<(), LoadError> {
        let backlog = self.links[id].write(bytes);
        if backlog > BACKLOG_BYTES_MAX {
            let reason = format!("it does not read: {backlog} bytes wait on the command lane");
            return Err(LoadError::Lost { server: self.server, reason });
        }
        self.mark(id);
        Ok(())
    }

    /// Sends a frame as a datagram, with the next flush. It may be lost, as datagrams may.
    pub(crate) fn send_datagram(&mut self, id: LinkId, subject: u32, op: &ClientOp) {
        let payload = op.encode();
        let mut frame = Vec::with_capacity(payload.len() + 8);
        frame.extend_from_slice(&header(payload.len(), subject));
        frame.extend_from_slice(&payload);
        self.links[id].send_datagram(frame.into());
        self.mark(id);
    }

    /// Stops reading a lane: what arrives stays in the transport's window.
    pub(crate) fn pause(&mut self, link: LinkId, lane: StreamId) {
        self.links[link].pause(lane);
    }

    /// Reads a lane again.
    pub(crate) fn resume(&mut self, id: LinkId, lane: StreamId) {
        self.links[id].resume(lane);
        self.drain(id);
        self.mark(id);
    }

    /// Ends every link, politely.
    pub(crate) fn close(&mut self) {
        let now = Instant::now();
        for id in 0..self.links.len() {
            self.links[id].connection.close(now, VarInt::from_u32(0), Bytes::from_static(b"bench done"));
            self.mark(id);
        }
        // What cannot be sent now is learnt by the server's idle timeout.
        let _ = self.flush();
    }

    /// Sleeps until a packet arrives, a timer of a connection is due, or `until`; returns at once if spinning.
    pub(crate) fn wait(&mut self, until: Instant) -> Result<(), LoadError> {
        if self.idle == Idle::Spin || !self.seen.is_empty() {
            return Ok(());
        }
        let due = self.timers.peek().map_or(until, |Reverse((at, _))| (*at).min(until));
        let sleep = due.saturating_duration_since(Instant::now());
        if sleep <= SLEEP_SLACK {
            return Ok(());
        }
        port::poll(&self.ports, sleep - SLEEP_SLACK)
    }

    /// Takes what arrived, up to one batch of each socket, and serves the timers that are due.
    pub(crate) fn receive(&mut self) -> Result<(), LoadError> {
        // Each socket's batch is read out before the next is looked at, so that frames are stamped when they were there.
        for at in 0..self.ports.len() {
            let now = Instant::now();
            let (links, dirty) = (&mut self.links, &mut self.dirty);
            self.ports[at].receive(now, |id, event| {
                let link: &mut Link = &mut links[id];
                link.connection.handle_event(event);
                if !std::mem::replace(&mut link.dirty, true) {
                    dirty.push(id);
                }
            })?;
            self.drain_dirty();
        }
        let now = Instant::now();
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            let link = &mut self.links[id];
            link.timer = None;
            if link.connection.poll_timeout().is_some_and(|at| at <= now) {
                link.connection.handle_timeout(now);
            }
            self.mark(id);
        }
        self.drain_dirty();
        Ok(())
    }

    /// Sends what the links have to send.
    pub(crate) fn flush(&mut self) -> Result<(), LoadError> {
        let now = Instant::now();
        // A link that gets something to do while it is flushed (an event of its endpoint) is appended and served too.
        let mut at = 0;
        while at < self.dirty.len() {
            let id = self.dirty[at];
            at += 1;
            let link = &mut self.links[id];
            link.dirty = false;
            let port = &mut self.ports[link.port];
            port.transmit(now, &mut link.connection, &mut self.transmit)?;
            if port.endpoint_events(link.handle, &mut link.connection) && !std::mem::replace(&mut link.dirty, true) {
                self.dirty.push(id);
            }
            if let Some(at) = link.connection.poll_timeout()
                && link.timer.is_none_or(|timer| at < timer)
            {
                link.timer = Some(at);
                self.timers.push(Reverse((at, id)));
            }
        }
        self.dirty.clear();
        Ok(())
    }

    fn mark(&mut self, id: LinkId) {
        if !std::mem::replace(&mut self.links[id].dirty, true) {
            self.dirty.push(id);
        }
    }

    fn drain_dirty(&mut self) {
        for at in 0..self.dirty.len() {
            self.drain(self.dirty[at]);
        }
    }

    /// Turns what the transport has to say about a link into [`Seen`].
    fn drain(&mut self, id: LinkId) {
        let link = &mut self.links[id];
        link.drain(self.clock, &mut |seen| self.seen.push_back((id, seen)));
    }

    /// Runs turns until `step` says that it is done, or `limit` has passed; whether it was done.
    ///
    /// `step` is called once a turn with `None`, to do what is due (and to say by [`Self::wake_at`] when the next thing
    /// is), and with everything that was [`Seen`].
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut step: impl FnMut(&mut Self, Option<(LinkId, Seen)>) -> Result<bool, LoadError>,
    ) -> Result<bool, LoadError> {
        let end = Instant::now() + limit;
        loop {
            self.wake = None;
            let done = step(self, None)?;
            self.flush()?;
            if done || Instant::now() >= end {
                return Ok(done);
            }
            let until = self.wake.unwrap_or(end).min(end);
            self.wait(until)?;
            self.receive()?;
            while let Some(seen) = self.next_seen() {
                if step(self, Some(seen))? {
                    self.flush()?;
                    return Ok(true);
                }
            }
        }
    }

    /// Opens `count` links and waits until all are welcomed, with at most `at_once` handshakes under way.
    pub(crate) fn open_all(&mut self, count: usize, at_once: usize, limit: Duration) -> Result<Vec<LinkId>, LoadError> {
        let greeting = self.greeting.clone();
        self.open_each((0..count).map(|_| greeting.clone()), at_once, limit)
    }

    /// The same with a link for each of these greetings.
    pub(crate) fn open_each(
        &mut self,
        greetings: impl ExactSizeIterator<Item = Greeting>,
        at_once: usize,
        limit: Duration,
    ) -> Result<Vec<LinkId>, LoadError> {
        let (count, mut greetings) = (greetings.len(), greetings);
        let (mut opened, mut ready) = (Vec::with_capacity(count), 0);
        let server = self.server;
        let complete = self.run_until(limit, |swarm, seen| {
            match seen {
                Some((_, Seen::Ready)) => ready += 1,
                Some((_, Seen::Lost(reason))) => return Err(swarm.lost(reason)),
                _ => {}
            }
            while opened.len() - ready < at_once
                && let Some(greeting) = greetings.next()
            {
                opened.push(swarm.open_as(greeting)?);
            }
            Ok(ready == count)
        });
        match complete {
            Ok(true) => Ok(opened),
            Ok(false) if ready == 0 => {
                Err(LoadError::Unreachable { server, reason: format!("no answer within {limit:?}") })
            }
            Ok(false) => Err(LoadError::Incomplete {
                what: "connections",
                got: ready as u64,
                wanted: count as u64,
                seconds: limit.as_secs(),
            }),
            Err(LoadError::Lost { reason, .. }) if ready == 0 => Err(LoadError::Unreachable { server, reason }),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn lost(&self, reason: String) -> LoadError {
        LoadError::Lost { server: self.server, reason }
    }
}

/// The hello of a session.
fn hello(session: SessionId, token: &str) -> ClientOp {
    ClientOp::Hello(Hello {
        versions: (*thalweg_protocol::VERSIONS.start(), *thalweg_protocol::VERSIONS.end()),
        session,
        token: token.to_owned(),
        client: concat!("thalweg-load/", env!("CARGO_PKG_VERSION")).to_owned(),
    })
}

/// As the SDK has it, so that a bench sees what applications see.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = Duration::from_millis(IDLE_TIMEOUT_MS);
    transport
        .max_idle_timeout(Some(idle.try_into().expect("a minute fits in QUIC's milliseconds")))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_uni_streams(VarInt::from_u32((WATCHES_MAX + DOCUMENTS_PER_SESSION_MAX) as u32 + 8))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport
}

/// The key of a connection within its endpoint, as an index.
fn slot(handle: ConnectionHandle) -> usize {
    handle.0
}
