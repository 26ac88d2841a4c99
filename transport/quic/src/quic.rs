//! The connections of one core.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{
    ConnectionError, DatagramEvent, Dir, EcnCodepoint, Endpoint, SendDatagramError, ServerConfig, StreamEvent, VarInt,
};
use thalweg_protocol::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, TURN_INPUTS_MAX, UNCONNECTED_ANSWERS_MAX};
use thalweg_protocol::reject::Reject;

use crate::config::{Prepared, QuicConfig, QuicError, QuicLimits, TlsIdentity, TokenClock, prepare};
use crate::counters::QuicCounters;
use crate::deadlines::Deadlines;
use crate::event::{CloseReason, Event, Lane, LaneError, Link, SendError, Transmit};
use crate::peer::{Peer, Read, Slot, Stage};

/// The connections of one core.
///
/// Contract of a turn: give in what arrived ([`receive`](Self::receive), [`handle_timeouts`](Self::handle_timeouts)),
/// take [`poll_event`](Self::poll_event) until `None`, act ([`send`](Self::send), [`close`](Self::close), …), take
/// [`poll_transmit`](Self::poll_transmit) until `None`. Sleep no longer than [`next_timeout`](Self::next_timeout), and
/// not at all while [`has_work`](Self::has_work). A turn costs what its connections do; idle ones cost nothing.
///
/// Memory is bounded: by [`QuicLimits`] per core, and per link by the windows of its transport and by
/// [`QuicLimits::queue_bytes`].
pub struct Quic {
    pub(crate) endpoint: Endpoint,
    /// How connections are taken in, kept to be taken in with another certificate.
    server: Arc<ServerConfig>,
    /// By the transport's handle, which is an index that is used again.
    pub(crate) slots: Vec<Slot>,
    /// Connections there are, whatever their stage.
    pub(crate) peers: usize,
    /// How many of them are handshaking.
    pub(crate) handshaking: usize,
    /// How many of them are open.
    open: usize,
    pub(crate) limits: QuicLimits,
    pub(crate) counters: QuicCounters,
    deadlines: Deadlines,
    /// Connections that may have something to say.
    touched: VecDeque<u32>,
    /// Connections that may have something to send.
    dirty: VecDeque<u32>,
    /// Lanes whose bytes taken are to be reported.
    drained: VecDeque<(Link, Lane)>,
    events: VecDeque<Event>,
    /// Answers to datagrams of no connection.
    answers: VecDeque<(quinn_proto::Transmit, Box<[u8]>)>,
    scratch: Vec<u8>,
    token_clock: Arc<TokenClock>,
    /// The first time we were told, and the latest.
    clock: Option<(Instant, Instant)>,
}

impl Quic {
    /// A core without connections.
    pub fn new(config: QuicConfig) -> Result<Self, QuicError> {
        let Prepared { endpoint, server, token_clock, limits, path_mtu_discovery } = prepare(config)?;
        Ok(Self {
            endpoint: Endpoint::new(endpoint, Some(Arc::clone(&server)), path_mtu_discovery, None),
            server,
            slots: Vec::new(),
            peers: 0,
            handshaking: 0,
            open: 0,
            limits,
            counters: QuicCounters::default(),
            deadlines: Deadlines::default(),
            touched: VecDeque::new(),
            dirty: VecDeque::new(),
            drained: VecDeque::new(),
            events: VecDeque::new(),
            answers: VecDeque::new(),
            scratch: Vec::new(),
            token_clock,
            clock: None,
        })
    }

    /// Shows this certificate from the next handshake on. Connections that are there, or on their way, stay as they are.
    pub fn set_identity(&mut self, identity: TlsIdentity) {
        let mut server = ServerConfig::clone(&self.server);
        server.crypto = identity.0;
        self.server = Arc::new(server);
        self.endpoint.set_server_config(Some(Arc::clone(&self.server)));
    }

    /// Takes in a datagram. `ecn` are the two ECN bits of its IP header.
    pub fn receive(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<u8>,
        bytes: BytesMut,
    ) {
        self.advance(now);
        self.counters.datagrams_received += 1;
        let short_header = bytes.first().is_some_and(|first| first & 0x80 == 0);
        let mut buffer = std::mem::take(&mut self.scratch);
        buffer.clear();
        match self.endpoint.handle(now, remote, local_ip, ecn.and_then(EcnCodepoint::from_bits), bytes, &mut buffer) {
            None => self.counters.datagrams_ignored += 1,
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(peer) = self.slots[handle.0].peer.as_mut() {
                    peer.connection.handle_event(event);
                    let remote = peer.connection.remote_address();
                    if remote != peer.remote {
                        peer.remote = remote;
                        self.counters.migrated += 1;
                    }
                    self.touch(handle.0);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(now, incoming, &mut buffer),
            Some(DatagramEvent::Response(answer)) => {
                let counter = match short_header {
                    true => &mut self.counters.resets_sent,
                    false => &mut self.counters.answers_sent,
                };
                *counter += 1;
                self.answer(answer, &buffer);
            }
        }
        self.scratch = buffer;
    }

    /// Acts on all timers that are due. To be called when [`next_timeout`](Self::next_timeout) has passed; any other time
    /// does no harm.
    pub fn handle_timeouts(&mut self, now: Instant) {
        self.advance(now);
        while let Some((at, index)) = self.deadlines.first() {
            if at > now {
                return;
            }
            self.deadlines.remove(index);
            let Some(peer) = self.slots[index].peer.as_mut() else { continue };
            if matches!(peer.stage, Stage::Handshaking(deadline) if deadline <= now) {
                self.abandon(index);
                continue;
            }
            match peer.connection.poll_timeout() {
                Some(timeout) if timeout <= now => {
                    peer.connection.handle_timeout(now);
                    self.touch(index);
                }
                _ => self.schedule(index),
            }
        }
    }

    /// When [`handle_timeouts`](Self::handle_timeouts) is to be called; may be a little early. Known once
    /// [`poll_transmit`](Self::poll_transmit) gave `None`. Costs nothing.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| at)
    }

    /// Whether an event or a datagram waits to be taken.
    pub fn has_work(&self) -> bool {
        let lists = [self.events.len(), self.touched.len(), self.dirty.len(), self.drained.len(), self.answers.len()];
        lists.iter().any(|&length| length > 0)
    }

    /// The next thing that happened. At most one connection's share is gathered at a time, so little is kept here.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if let Some(index) = self.touched.pop_front() {
                self.pump(index as usize);
                continue;
            }
            let (link, lane) = self.drained.pop_front()?;
            if let Some(queue) = self.open_peer(link).and_then(|peer| peer.lane(lane)) {
                queue.report_due = false;
                let bytes = std::mem::take(&mut queue.taken);
                return Some(Event::Drained { link, lane, bytes });
            }
        }
    }

    /// The next batch of datagrams to send, written to `buffer`, which is cleared first. Links with much to say take
    /// turns, a batch of at most `max_segments` datagrams each.
    pub fn poll_transmit(&mut self, now: Instant, max_segments: usize, buffer: &mut Vec<u8>) -> Option<Transmit> {
        self.advance(now);
        buffer.clear();
        if let Some((answer, bytes)) = self.answers.pop_front() {
            buffer.extend_from_slice(&bytes);
            return Some(self.transmit(answer));
        }
        while let Some(index) = self.dirty.pop_front() {
            let index = index as usize;
            self.exchange(index);
            let Some(peer) = self.slots[index].peer.as_mut() else { continue };
            if peer.stage == Stage::Open {
                let (link, drained) = (peer.link, &mut self.drained);
                peer.fill(|lane| drained.push_back((link, lane)));
            }
            if let Some(transmit) = peer.connection.poll_transmit(now, max_segments.max(1), buffer) {
                self.dirty.push_back(index as u32);
                return Some(self.transmit(transmit));
            }
            peer.dirty = false;
            self.schedule(index);
        }
        None
    }

    /// Queues a frame. The payload is shared, not copied (short ones are, when the transport takes them). It goes out
    /// with the next [`poll_transmit`](Self::poll_transmit) as far as the transport has room.
    pub fn send(&mut self, link: Link, lane: Lane, subject: u32, payload: Bytes) -> Result<(), SendError> {
        let max = self.limits.queue_bytes;
        if payload.len() > FRAME_BYTES_MAX {
            return Err(SendError::TooLarge { bytes: payload.len(), max: FRAME_BYTES_MAX });
        }
        let peer = self.open_peer(link).ok_or(SendError::LinkClosed(link))?;
        let queued = peer.queued;
        let queue = peer.lane(lane).filter(|queue| !queue.is_finishing()).ok_or(SendError::LaneClosed(link, lane))?;
        if queued + FRAME_HEADER_BYTES + payload.len() > max {
            self.counters.frames_refused += 1;
            return Err(SendError::QueueFull { link, queued, max });
        }
        let bytes = queue.push(subject, payload);
        peer.queued += bytes;
        self.counters.frames_sent += 1;
        self.counters.frame_bytes_sent += bytes as u64;
        self.mark_dirty(link.index());
        Ok(())
    }

    /// Bytes of frames accepted by [`send`](Self::send) that the transport has not taken, headers included; 0 if the
    /// lane is gone.
    pub fn queued(&self, link: Link, lane: Lane) -> usize {
        let lanes = self.peer(link).map_or(&[][..], |peer| &peer.lanes);
        lanes.iter().find(|queue| Lane::of(queue.stream) == lane).map_or(0, |queue| queue.queued)
    }

    /// The same over all lanes of a link.
    pub fn queued_total(&self, link: Link) -> usize {
        self.peer(link).map_or(0, |peer| peer.queued)
    }

    /// Opens a unidirectional lane towards the client. Lanes of higher priority are sent first.
    pub fn open_lane(&mut self, link: Link, priority: i32) -> Result<Lane, LaneError> {
        let max = self.limits.lanes;
        let peer = self.open_peer(link).ok_or(LaneError::LinkClosed(link))?;
        let open = peer.lanes.len();
        let full = LaneError::LimitReached { link, open };
        if open >= max {
            return Err(full);
        }
        let stream = peer.connection.streams().open(Dir::Uni).ok_or(full)?;
        peer.add_lane(stream, priority);
        Ok(Lane::of(stream))
    }

    /// Ends a lane after what is queued on it. [`Event::LaneClosed`] follows when the client has received everything.
    pub fn finish_lane(&mut self, link: Link, lane: Lane) {
        if let Some(queue) = self.open_peer(link).and_then(|peer| peer.lane(lane)) {
            queue.finish();
            self.mark_dirty(link.index());
        }
    }

    /// Drops a lane at once, with what is queued or under way on it, and tells the client `code`. No event follows.
    pub fn reset_lane(&mut self, link: Link, lane: Lane, code: u32) {
        let Some(peer) = self.open_peer(link) else { return };
        if peer.remove_lane(lane.stream()) {
            // An error means that the transport had closed it already.
            let _ = peer.connection.send_stream(lane.stream()).reset(VarInt::from_u32(code));
            self.mark_dirty(link.index());
        }
    }

    /// Sends an unreliable datagram. If too many wait, the oldest gives way.
    pub fn send_datagram(&mut self, link: Link, payload: Bytes) -> Result<(), SendError> {
        let bytes = payload.len();
        let peer = self.open_peer(link).ok_or(SendError::LinkClosed(link))?;
        let max = peer.connection.datagrams().max_size().ok_or(SendError::DatagramsUnsupported(link))?;
        match peer.connection.datagrams().send(payload, true) {
            Ok(()) => {
                self.mark_dirty(link.index());
                Ok(())
            }
            Err(SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => {
                Err(SendError::DatagramsUnsupported(link))
            }
            Err(SendDatagramError::TooLarge | SendDatagramError::Blocked(_)) => Err(SendError::TooLarge { bytes, max }),
        }
    }

    /// Closes a link at once; what is queued is dropped, and the client is told `code` and `reason`.
    /// [`Event::Closed`] follows as for any other end.
    pub fn close(&mut self, now: Instant, link: Link, code: u32, reason: &[u8]) {
        self.advance(now);
        if self.open_peer(link).is_some() {
            self.end(link, CloseReason::Local { code });
            let reason = Bytes::copy_from_slice(reason);
            self.tell_closed(now, link, code, reason);
        }
    }

    /// The client's address now.
    pub fn remote(&self, link: Link) -> Option<SocketAddr> {
        self.peer(link).map(|peer| peer.remote)
    }

    /// The smoothed round-trip time to the client.
    pub fn rtt(&self, link: Link) -> Option<Duration> {
        self.peer(link).map(|peer| peer.connection.rtt())
    }

    /// The application protocol the client chose of those offered.
    pub fn protocol(&self, link: Link) -> Option<Vec<u8>> {
        let data = self.peer(link)?.connection.crypto_session().handshake_data()?;
        data.downcast::<HandshakeData>().ok()?.protocol
    }

    /// Links that are open.
    pub fn connections(&self) -> usize {
        self.open
    }

    /// Connections whose handshake is under way.
    pub fn handshaking(&self) -> usize {
        self.handshaking
    }

    /// What happened so far.
    pub fn counters(&self) -> &QuicCounters {
        &self.counters
    }

    /// Entries of the table of deadlines.
    #[cfg(test)]
    pub(crate) fn deadlines_len(&self) -> usize {
        self.deadlines.len()
    }

    fn advance(&mut self, now: Instant) {
        let (first, _) = self.clock.unwrap_or((now, now));
        self.clock = Some((first, now));
        self.token_clock.set(now.saturating_duration_since(first));
    }

    fn peer(&self, link: Link) -> Option<&Peer> {
        let slot = self.slots.get(link.index()).filter(|slot| slot.generation == link.generation())?;
        slot.peer.as_deref()
    }

    /// The peer of a link that is open.
    fn open_peer(&mut self, link: Link) -> Option<&mut Peer> {
        let slot = self.slots.get_mut(link.index()).filter(|slot| slot.generation == link.generation())?;
        slot.peer.as_deref_mut().filter(|peer| peer.stage == Stage::Open)
    }

    /// The link of the next connection at a place.
    pub(crate) fn claim(&mut self, index: usize) -> Link {
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        Link::new(index as u32, slot.generation)
    }

    /// Notes that a connection may have something to say and to send.
    pub(crate) fn touch(&mut self, index: usize) {
        if let Some(peer) = self.slots[index].peer.as_mut()
            && !std::mem::replace(&mut peer.touched, true)
        {
            self.touched.push_back(index as u32);
        }
        self.mark_dirty(index);
    }

    fn mark_dirty(&mut self, index: usize) {
        if let Some(peer) = self.slots[index].peer.as_mut()
            && !std::mem::replace(&mut peer.dirty, true)
        {
            self.dirty.push_back(index as u32);
        }
    }

    fn schedule(&mut self, index: usize) {
        if let Some(at) = self.slots[index].peer.as_mut().and_then(|peer| peer.deadline()) {
            self.deadlines.no_later_than(index, at);
        }
    }

    pub(crate) fn forget(&mut self, index: usize) {
        self.slots[index].peer = None;
        self.deadlines.remove(index);
        self.peers -= 1;
    }

    pub(crate) fn answer(&mut self, answer: quinn_proto::Transmit, bytes: &[u8]) {
        if self.answers.len() >= UNCONNECTED_ANSWERS_MAX {
            self.counters.answers_dropped += 1;
            return;
        }
        let bytes = bytes[..answer.size].into();
        self.answers.push_back((answer, bytes));
    }

    fn transmit(&mut self, transmit: quinn_proto::Transmit) -> Transmit {
        self.counters.batches_sent += 1;
        Transmit {
            remote: transmit.destination,
            local_ip: transmit.src_ip,
            ecn: transmit.ecn.map(|ecn| ecn as u8),
            bytes: transmit.size,
            segment_bytes: transmit.segment_size,
        }
    }

    /// Lets a touched connection say what it has to.
    fn pump(&mut self, index: usize) {
        let Some(peer) = self.slots[index].peer.as_mut() else { return };
        peer.touched = false;
        self.listen(index);
        self.read(index);
        self.exchange(index);
    }

    /// Carries events between a connection and the endpoint, which owns the connection ids.
    fn exchange(&mut self, index: usize) {
        let mut drained = false;
        while let Some(peer) = self.slots[index].peer.as_mut()
            && let Some(event) = peer.connection.poll_endpoint_events()
        {
            drained |= event.is_drained();
            if let Some(event) = self.endpoint.handle_event(peer.handle, event) {
                peer.connection.handle_event(event);
                self.mark_dirty(index);
            }
        }
        if drained {
            // Its last words, if they were not heard yet.
            self.listen(index);
            self.forget(index);
        }
    }

    /// Takes the events of a connection.
    fn listen(&mut self, index: usize) {
        use quinn_proto::Event as Said;
        while let Some(peer) = self.slots[index].peer.as_mut()
            && let Some(said) = peer.connection.poll()
        {
            let link = peer.link;
            match said {
                Said::Connected => {
                    self.handshaking -= 1;
                    self.open += 1;
                    self.counters.accepted += 1;
                    peer.stage = Stage::Open;
                    self.events.push_back(Event::Opened { link, remote: peer.remote });
                }
                Said::ConnectionLost { reason } => self.end(link, reason.into()),
                Said::Stream(event) => self.on_stream(index, event),
                Said::DatagramReceived => {
                    while let Some(payload) = peer.connection.datagrams().recv() {
                        self.counters.unreliable_received += 1;
                        self.events.push_back(Event::Datagram { link, payload });
                    }
                }
                Said::HandshakeDataReady | Said::DatagramsUnblocked => {}
            }
        }
    }

    fn on_stream(&mut self, index: usize, event: StreamEvent) {
        let Some(peer) = self.slots[index].peer.as_mut() else { return };
        let link = peer.link;
        match event {
            StreamEvent::Opened { dir } => self.counters.lanes_refused += peer.accept_lanes(dir),
            StreamEvent::Readable { id } => peer.readable |= Lane::of(id) == Lane::COMMAND,
            StreamEvent::Writable { id } => {
                if let Some(lane) = peer.lane(Lane::of(id)) {
                    lane.blocked = false;
                    self.mark_dirty(index);
                }
            }
            StreamEvent::Finished { id } => {
                if peer.remove_lane(id) {
                    self.events.push_back(Event::LaneClosed { link, lane: Lane::of(id) });
                }
            }
            StreamEvent::Stopped { id, error_code } => {
                if peer.remove_lane(id) {
                    // An error means that the transport had closed it already.
                    let _ = peer.connection.send_stream(id).reset(error_code);
                    self.mark_dirty(index);
                    self.events.push_back(Event::LaneClosed { link, lane: Lane::of(id) });
                }
            }
            StreamEvent::Available { .. } => {}
        }
    }

    /// Reads frames off the command lane, at most [`TURN_INPUTS_MAX`] of them before other connections have a turn.
    fn read(&mut self, index: usize) {
        for _ in 0..TURN_INPUTS_MAX {
            let Some(peer) = self.slots[index].peer.as_mut() else { return };
            if peer.stage != Stage::Open || !peer.readable {
                return;
            }
            let link = peer.link;
            match peer.read() {
                Read::Frame(frame) => {
                    self.counters.frames_received += 1;
                    self.counters.frame_bytes_received += (FRAME_HEADER_BYTES + frame.payload.len()) as u64;
                    let (lane, subject, payload) = (Lane::COMMAND, frame.subject, frame.payload);
                    self.events.push_back(Event::Frame { link, lane, subject, payload });
                }
                Read::Blocked => peer.readable = false,
                Read::Ended => {
                    peer.readable = false;
                    self.events.push_back(Event::LaneClosed { link, lane: Lane::COMMAND });
                }
                Read::Reject(reject) => self.refuse_frames(link, reject),
            }
            self.mark_dirty(index);
        }
        self.touch(index);
    }

    /// Closes a link whose client broke the rules of frames.
    fn refuse_frames(&mut self, link: Link, reject: Reject) {
        let (code, reason) = (reject.code as u32, Bytes::copy_from_slice(reject.message.as_bytes()));
        self.end(link, CloseReason::Reject(reject));
        let (_, now) = self.clock.expect("bytes arrived, so we were told the time");
        self.tell_closed(now, link, code, reason);
    }

    /// Ends a link as far as our caller is concerned.
    fn end(&mut self, link: Link, reason: CloseReason) {
        let Some(peer) = self.slots[link.index()].peer.as_mut() else { return };
        match peer.stage {
            Stage::Closed => return,
            Stage::Handshaking(_) => {
                self.handshaking -= 1;
                self.counters.handshakes_failed += 1;
            }
            Stage::Open => {
                self.open -= 1;
                *self.counters.closed(&reason) += 1;
                self.events.push_back(Event::Closed { link, reason });
            }
        }
        peer.shed();
    }

    fn tell_closed(&mut self, now: Instant, link: Link, code: u32, reason: Bytes) {
        if let Some(peer) = self.slots[link.index()].peer.as_mut() {
            peer.connection.close(now, VarInt::from_u32(code), reason);
            self.touch(link.index());
        }
    }
}

impl QuicCounters {
    fn closed(&mut self, reason: &CloseReason) -> &mut u64 {
        match reason {
            CloseReason::Peer { .. } => &mut self.closed_by_peer,
            CloseReason::Local { .. } => &mut self.closed_by_us,
            CloseReason::Reject(_) => &mut self.closed_by_reject,
            CloseReason::TimedOut => &mut self.closed_by_timeout,
            CloseReason::Reset => &mut self.closed_by_reset,
            CloseReason::Transport { .. } => &mut self.closed_by_transport,
        }
    }
}

impl From<ConnectionError> for CloseReason {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::Peer { code: close.error_code.into(), reason: close.reason }
            }
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            error => Self::Transport { text: error.to_string() },
        }
    }
}
