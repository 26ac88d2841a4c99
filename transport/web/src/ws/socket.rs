//! One WebSocket: carries messages between a client, its [`Protocol`], and the protocol's sessions.
//!
//! What is told to a client counts as taken when the kernel took it, and the kernel holds little
//! ([`NOT_SENT_BYTES`](crate::limits::NOT_SENT_BYTES)): a client that does not read gets no credit, and its core serves it as
//! it serves any slow reader. While much waits to be written, or is unanswered, nothing is read.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{Sink, Stream};
use thalweg_protocol::ids::Request;
use thalweg_protocol::limits::FRAME_HEADER_BYTES;
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Interval;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message as Wire};

use super::ENDPOINTS;
use super::close::Close;
use super::gauge::{Gauged, TooLong};
use super::protocol::{Effect, HURRY, Input, Message, Protocol, Taken};
use crate::counters::SocketCounters;
use crate::limits::{
    SOCKET_DISCARD_BYTES_MAX, SOCKET_DRAINED_BYTES, SOCKET_OUTBOX_BYTES, SOCKET_OUTBOX_MAX, SOCKET_QUIET_MS,
    SOCKET_UPDATE_MESSAGE_BYTES_MAX,
};
use crate::line::{Exchange, Line};
use crate::port::SessionNews;
use crate::stage::Stage;

/// A socket looks at its clock this often.
const TICK: Duration = Duration::from_secs(1);
/// News taken in before they are written.
const BATCH: usize = 64;
/// Bytes of the buffers of one socket for what comes and for what goes, before it is written.
const BUFFER_BYTES: usize = 8 << 10;
/// How long a client gets to take why it is parted with, and to go.
const PARTING_MAX: Duration = Duration::from_secs(5);

/// What a socket is part of. Dropping it counts the socket as gone.
pub(super) struct Part {
    stage: Arc<Stage>,
    endpoint: usize,
    remote: SocketAddr,
}

impl Part {
    pub(super) fn new(stage: Arc<Stage>, endpoint: usize, remote: SocketAddr) -> Self {
        stage.counters.sockets[endpoint].opened.fetch_add(1, Ordering::Relaxed);
        stage.counters.sockets[endpoint].open.fetch_add(1, Ordering::Relaxed);
        stage.open.send_modify(|open| *open += 1);
        Self { stage, endpoint, remote }
    }

    fn counters(&self) -> &SocketCounters {
        &self.stage.counters.sockets[self.endpoint]
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.counters().open.fetch_sub(1, Ordering::Relaxed);
        self.stage.open.send_modify(|open| *open -= 1);
    }
}

/// A message on its way.
struct Outgoing {
    message: Wire,
    taken: Option<Taken>,
    /// Bytes of a session's frames that are taken with it.
    drained: Option<(u32, usize)>,
}

/// A session of the socket.
struct Seat {
    line: Line,
    /// Bytes that were taken and that the core was not told of.
    drained: usize,
    /// Since when its hello waits for an answer.
    waits: Option<Instant>,
}

/// What happened.
enum Event {
    Message(Wire),
    News(u32, SessionNews),
    Written,
    Tick,
    Stop,
    /// The client is gone, or cannot be understood.
    Gone(Option<Error>),
}

struct Socket<P> {
    part: Part,
    stream: WebSocketStream<Gauged>,
    protocol: P,
    exchange: Exchange,
    seats: BTreeMap<u32, Seat>,
    outbox: VecDeque<Outgoing>,
    outbox_bytes: usize,
    /// What was handed to the stream and is not flushed.
    written: Vec<Outgoing>,
    unflushed: usize,
    closing: Option<Close>,
    /// Whose turn it is first: the client's, or the sessions'.
    client_first: bool,
    began: Instant,
    heard: Instant,
    said: Instant,
}

/// Serves a socket until it is gone.
pub(super) async fn serve(part: Part, stream: TcpStream, read: Vec<u8>, protocol: impl Protocol) {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(SOCKET_UPDATE_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(SOCKET_UPDATE_MESSAGE_BYTES_MAX));
    let stream = Gauged::new(stream, protocol.message_bytes_max() + BUFFER_BYTES);
    let stream = WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await;
    let exchange = Exchange::new(Arc::clone(&part.stage.desk), part.remote, ENDPOINTS[part.endpoint]);
    let now = Instant::now();
    let mut stop = part.stage.stop.clone();
    let mut socket = Socket {
        part,
        stream,
        protocol,
        exchange,
        seats: BTreeMap::new(),
        outbox: VecDeque::new(),
        outbox_bytes: 0,
        written: Vec::new(),
        unflushed: 0,
        closing: None,
        client_first: true,
        began: now,
        heard: now,
        said: now,
    };
    let close = socket.run(&mut stop).await;
    socket.part_with(close).await;
}

impl<P: Protocol> Socket<P> {
    /// Serves until there is a reason to close; none if the client closed.
    async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Option<Close> {
        let mut ticks = tokio::time::interval(TICK.min(self.part.stage.limits.socket_ping / 4));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stopped = stop.wait_for(|stop| *stop);
        tokio::pin!(stopped);
        let mut hurries = false;
        loop {
            self.carry_out(None);
            if !hurries && self.protocol.is_in_a_hurry() {
                ticks.reset_after(HURRY);
                hurries = true;
            }
            if self.closing.is_some() && self.outbox.is_empty() && self.written.is_empty() {
                return self.closing.take();
            }
            let event = poll_fn(|cx| match stopped.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(Event::Stop),
                Poll::Pending => self.poll_event(cx, &mut ticks),
            });
            match event.await {
                Event::Message(message) => self.message(message),
                Event::News(session, what) => {
                    self.news(session, what);
                    for _ in 0..BATCH {
                        let Ok((session, what)) = self.exchange.news.try_recv() else { break };
                        self.news(session, what);
                    }
                }
                Event::Written => self.taken(),
                Event::Tick => {
                    hurries = false;
                    self.tick();
                }
                Event::Stop => return Some(Close::new(1012, "draining: the node is going away; come back")),
                Event::Gone(None) => return None,
                Event::Gone(Some(error)) => return self.why(&error),
            }
        }
    }

    /// What a client is told whose connection failed; nothing if it is not there to hear it.
    fn why(&self, error: &Error) -> Option<Close> {
        tracing::debug!(%error, remote = %self.part.remote, "a WebSocket ended");
        if TooLong::is(error) || matches!(error, Error::Capacity(CapacityError::MessageTooLong { .. })) {
            let most = self.protocol.message_bytes_max();
            return Some(Close::new(4413, format!("body_too_large: a message has at most {most} bytes; send pieces")));
        }
        match error {
            Error::Utf8(_) => Some(Close::new(1007, "frame_invalid: a text is not UTF-8")),
            Error::Protocol(error) => Some(Close::new(1002, format!("frame_invalid: {error}"))),
            _ => None,
        }
    }

    fn is_congested(&self) -> bool {
        self.outbox.len() >= SOCKET_OUTBOX_MAX || self.outbox_bytes >= SOCKET_OUTBOX_BYTES
    }

    fn poll_event(&mut self, cx: &mut Context<'_>, ticks: &mut Interval) -> Poll<Event> {
        if let Poll::Ready(event) = self.poll_write(cx) {
            return Poll::Ready(event);
        }
        if self.closing.is_none() && !self.is_congested() {
            self.client_first = !self.client_first;
            for client in [self.client_first, !self.client_first] {
                let polled = if client { self.poll_read(cx) } else { self.poll_news(cx) };
                if polled.is_ready() {
                    return polled;
                }
            }
        }
        ticks.poll_tick(cx).map(|_| Event::Tick)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut stream = Pin::new(&mut self.stream);
        while self.unflushed < SOCKET_OUTBOX_BYTES && !self.outbox.is_empty() {
            match stream.as_mut().poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Event::Gone(Some(error))),
                Poll::Pending => break,
            }
            let Some(mut outgoing) = self.outbox.pop_front() else { break };
            let message = std::mem::replace(&mut outgoing.message, Wire::Pong(bytes::Bytes::new()));
            self.unflushed += message.len();
            self.outbox_bytes -= message.len();
            if let Err(error) = stream.as_mut().start_send(message) {
                return Poll::Ready(Event::Gone(Some(error)));
            }
            self.written.push(outgoing);
        }
        if self.written.is_empty() {
            return Poll::Pending;
        }
        stream.poll_flush(cx).map(|flushed| match flushed {
            Ok(()) => Event::Written,
            Err(error) => Event::Gone(Some(error)),
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.protocol.is_full() {
            return Poll::Pending;
        }
        self.stream.get_mut().allow(self.protocol.message_bytes_max() + BUFFER_BYTES);
        Pin::new(&mut self.stream).poll_next(cx).map(|next| match next {
            Some(Ok(message)) => Event::Message(message),
            Some(Err(error)) => Event::Gone(Some(error)),
            None => Event::Gone(None),
        })
    }

    fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        // The exchange has a sender of its own, so that news never end.
        match self.exchange.news.poll_recv(cx) {
            Poll::Ready(Some((session, what))) => Poll::Ready(Event::News(session, what)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn message(&mut self, message: Wire) {
        self.heard = Instant::now();
        let gauged = self.stream.get_mut();
        if message.is_text() || message.is_binary() {
            gauged.begin();
        } else {
            gauged.pass_over(message.len());
        }
        let counters = self.part.counters();
        counters.received.fetch_add(1, Ordering::Relaxed);
        counters.received_bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        let message = match message {
            Wire::Binary(bytes) => Message::Binary(bytes),
            Wire::Text(text) => Message::Text(text.as_str().to_owned()),
            // Pings are answered below us; a close is followed by the end.
            Wire::Ping(_) | Wire::Pong(_) | Wire::Close(_) | Wire::Frame(_) => return,
        };
        self.protocol.handle(Input::Message(message));
    }

    fn news(&mut self, session: u32, what: SessionNews) {
        let Some(seat) = self.seats.get_mut(&session) else { return };
        match what {
            SessionNews::Reply { request, op } => {
                if request == Request(0) && !matches!(op, ServerOp::ServerRestarting { .. }) {
                    seat.waits = None;
                }
                let said = if let ServerOp::Reject(reject) = op { Err(reject) } else { Ok(op) };
                self.protocol.handle(Input::Answered { session, request, said });
                self.carry_out(None);
            }
            SessionNews::Frame { subject, payload, .. } => {
                let counted = self.protocol.is_counted(session, subject);
                let drained = counted.then(|| (session, payload.len() + FRAME_HEADER_BYTES));
                self.protocol.handle(Input::Frame { session, subject, payload });
                self.carry_out(drained);
            }
            SessionNews::Closed(reject) => {
                self.seats.remove(&session);
                self.protocol.handle(Input::Closed { session, reject });
                self.carry_out(None);
            }
        }
    }

    /// Does what the protocol wants. What a frame brought is taken with the last message that came of it, or at once.
    fn carry_out(&mut self, drained: Option<(u32, usize)>) {
        let before = self.outbox.len();
        while let Some(effect) = self.protocol.poll() {
            if self.closing.is_none() {
                self.effect(effect);
            }
        }
        let Some((session, bytes)) = drained else { return };
        let came = self.outbox.len() > before;
        match self.outbox.back_mut().filter(|_| came) {
            Some(last) => last.drained = drained,
            None => self.drain(session, bytes),
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Open { session, id, token } => {
                let line = match id {
                    Some(id) => self.exchange.open_as(session, id, token),
                    None => self.exchange.open(session, token),
                };
                match line {
                    Ok(line) => {
                        drop(self.seats.insert(session, Seat { line, drained: 0, waits: Some(Instant::now()) }));
                    }
                    Err(reject) => {
                        self.protocol.handle(Input::Answered { session, request: Request(0), said: Err(reject) });
                    }
                }
            }
            Effect::Leave { session } => drop(self.seats.remove(&session)),
            Effect::Ask { session, request, op } => {
                let Some(seat) = self.seats.get(&session) else { return };
                if let Err(reject) = seat.line.ask(request, op) {
                    self.protocol.handle(Input::Answered { session, request, said: Err(reject) });
                }
            }
            Effect::Tell { session, op } => {
                if let Some(seat) = self.seats.get(&session) {
                    seat.line.tell(op);
                }
            }
            Effect::Send(message, taken) => {
                let message = match message {
                    Message::Binary(bytes) => Wire::Binary(bytes),
                    Message::Text(text) => Wire::Text(text.into()),
                };
                self.said = Instant::now();
                self.queue(message, taken);
            }
            Effect::Close(close) => self.closing = Some(close),
        }
    }

    fn queue(&mut self, message: Wire, taken: Option<Taken>) {
        let counters = self.part.counters();
        counters.sent.fetch_add(1, Ordering::Relaxed);
        counters.sent_bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        self.outbox_bytes += message.len();
        self.outbox.push_back(Outgoing { message, taken, drained: None });
    }

    /// All that was written was taken.
    fn taken(&mut self) {
        self.unflushed = 0;
        for Outgoing { taken, drained, .. } in std::mem::take(&mut self.written) {
            if let Some((session, bytes)) = drained {
                self.drain(session, bytes);
            }
            if let Some(taken) = taken {
                self.protocol.handle(Input::Taken(taken));
            }
        }
    }

    fn drain(&mut self, session: u32, bytes: usize) {
        let Some(seat) = self.seats.get_mut(&session) else { return };
        seat.drained += bytes;
        if seat.drained >= SOCKET_DRAINED_BYTES {
            seat.line.drained(std::mem::take(&mut seat.drained));
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let limits = &self.part.stage.limits;
        let (ping, idle, hello) = (limits.socket_ping, limits.socket_idle, limits.session_timeout);
        if self.protocol.is_full() || self.is_congested() {
            // It may have said something that was not read.
            self.heard = now;
        }
        let silent = now - self.heard;
        if self.exchange.is_overrun() {
            self.closing = Some(Close::new(4508, "slow_reader: the client does not take what it asked for"));
        } else if silent >= idle {
            let text = format!("timeout: nothing was heard for {} s; answer pings", idle.as_secs());
            self.closing = Some(Close::new(4508, text));
        } else if self.seats.values().any(|seat| seat.waits.is_some_and(|since| now - since >= hello)) {
            let text = format!("the token was not checked within {} ms; come back", hello.as_millis());
            self.closing = Some(Close::from(Reject::new(RejectCode::Busy, text)));
        }
        if silent >= ping && self.outbox.is_empty() {
            self.queue(Wire::Ping(bytes::Bytes::new()), None);
        }
        if now - self.said >= Duration::from_millis(SOCKET_QUIET_MS) && self.outbox.is_empty() {
            self.protocol.handle(Input::Quiet);
        }
        self.protocol.handle(Input::Tick(now - self.began));
    }

    /// Parts with a client: tells it why, throws away what it is still sending, so that it gets to read that, and goes.
    async fn part_with(mut self, close: Option<Close>) {
        self.seats.clear();
        let told = close.is_some();
        if let Some(close) = &close {
            self.part.stage.counters.socket_closed(self.part.endpoint, close.code);
        }
        let frame = close.map(|close| CloseFrame { code: close.code.into(), reason: close.reason.into() });
        let parting = async {
            // Whoever is gone does not hear it.
            if self.stream.close(frame).await.is_err() {
                return;
            }
            let stream = self.stream.get_mut();
            stream.allow(usize::MAX);
            if stream.shutdown().await.is_err() || !told {
                return;
            }
            let (mut thrown, mut buffer) = (0, [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                thrown += count;
                if thrown > SOCKET_DISCARD_BYTES_MAX {
                    break;
                }
            }
        };
        // Whoever takes longer is cut off.
        drop(tokio::time::timeout(PARTING_MAX, parting).await);
    }
}
