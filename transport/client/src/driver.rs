//! The task that keeps a session alive: carries bytes between the [state](crate::state) and the connection, and replaces a
//! connection that was lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, RecvStream, VarInt};
use rand::Rng as _;
use thalweg_protocol::frame::Splitter;
use thalweg_protocol::ids::Epoch;
use thalweg_protocol::limits::{
    CLIENT_READ_BYTES, CLIENT_SILENCE_MS, DRAIN_MS, PRESENCE_HEARTBEAT_MS, RECONNECT_BACKOFF_MS,
    RECONNECT_BACKOFF_MS_MAX,
};
use thalweg_protocol::reject::Reject;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{ConnectionState, Shared};
use crate::dial::{Dialer, Established, loss};
use crate::error::ClientError;
use crate::state::{FullQueue, Handled, Link};

/// Longest time one try to come back may take.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Why a connection is not used any more.
enum Over {
    /// The client was closed.
    Closing,
    /// The connection was lost, and may be replaced after the delay the node asked for.
    Lost(ClientError, Duration),
    /// The node or we ended it for a reason that a new connection would not change.
    Final(ClientError),
}

/// Runs until the client is closed or the node stays away for longer than `reconnect`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut dialer: Dialer,
    first: Established,
    reconnect: Option<Duration>,
    in_flight_max: usize,
) {
    let mut established = first;
    let error = loop {
        let server = established.server.clone();
        let connection = established.connection.clone();
        let epoch = established.welcome.epoch;
        let over = serve(&shared, &dialer, established, in_flight_max).await;
        connection.close(VarInt::from_u32(0), b"");
        let (error, delay) = match over {
            Over::Closing => break ClientError::Closed,
            Over::Final(error) => break error.of_session(),
            Over::Lost(error, delay) => (error, delay),
        };
        shared.state.lock().expect("nothing panics under this lock").disconnected(&error);
        let Some(limit) = reconnect else {
            break ClientError::Lost { server, reason: error.to_string() };
        };
        match come_back(&shared, &mut dialer, epoch, error, delay, limit).await {
            Ok(again) => established = again,
            Err(error) => break error.of_session(),
        }
    };
    shared.requests.close();
    shared.bytes.close();
    shared.state.lock().expect("nothing panics under this lock").fail(error.clone());
    if let (Some(endpoint), ClientError::Closed) = (&dialer.endpoint, &error) {
        // Lets the farewell out; a shared endpoint may have other connections and is not waited for.
        let _ = tokio::time::timeout(Duration::from_millis(100), endpoint.wait_idle()).await;
    }
    shared.connection.send_replace(ConnectionState::Closed { error });
}

/// Tries to connect again until it works, for at most `limit`, not before `delay`.
async fn come_back(
    shared: &Shared,
    dialer: &mut Dialer,
    epoch: Epoch,
    mut error: ClientError,
    delay: Duration,
    limit: Duration,
) -> Result<Established, ClientError> {
    let start = Instant::now();
    let mut backoff = Duration::from_millis(RECONNECT_BACKOFF_MS);
    let mut wait = delay;
    for attempt in 1_u32.. {
        shared.connection.send_replace(ConnectionState::Reconnecting { attempt, reason: error.to_string() });
        tracing::debug!(attempt, ?wait, %error, "trying to come back");
        let left = limit.saturating_sub(start.elapsed());
        let dial = async {
            // A node next door says when it is back; there is nothing to wait for then.
            tokio::select! {
                () = tokio::time::sleep(wait.min(left)) => {}
                () = dialer.restarted(epoch) => {}
            }
            dialer.dial(ATTEMPT.min(left.saturating_sub(wait)).max(Duration::from_millis(100))).await
        };
        let result = tokio::select! {
            result = dial => result,
            () = closing(shared) => return Err(ClientError::Closed),
        };
        error = match result {
            Ok(established) => return Ok(established),
            Err(error) if !error.passes() => return Err(error),
            Err(error) => error,
        };
        if start.elapsed() >= limit {
            break;
        }
        // Full jitter on the upper half, so that the clients of a node that restarts do not come back in step.
        wait = backoff.mul_f64(rand::rng().random_range(0.5..1.0));
        if let ClientError::Refused(reject) = &error {
            wait = wait.max(Duration::from_millis(reject.retry_after_ms.into()));
        }
        backoff = (backoff * 2).min(Duration::from_millis(RECONNECT_BACKOFF_MS_MAX));
    }
    Err(ClientError::Lost { server: dialer.server(), reason: error.to_string() })
}

async fn closing(shared: &Shared) {
    while !shared.state.lock().expect("nothing panics under this lock").closing {
        shared.wake.notified().await;
    }
}

/// Serves one connection until it is over.
async fn serve(shared: &Arc<Shared>, dialer: &Dialer, established: Established, in_flight_max: usize) -> Over {
    let Established { connection, mut send, mut receive, mut splitter, welcome, server } = established;
    let epoch = welcome.epoch;
    {
        let mut state = shared.state.lock().expect("nothing panics under this lock");
        state.connected(in_flight_max.min(welcome.in_flight_max.max(1) as usize), epoch);
    }
    shared.welcome.send_replace(welcome);
    shared.connection.send_replace(ConnectionState::Connected { epoch: epoch.0 });
    shared.wake.notify_one();

    let mut lanes: JoinSet<Result<(), ClientError>> = JoinSet::new();
    let mut look = tokio::time::interval(dialer.look_every());
    let heartbeat = Duration::from_millis(PRESENCE_HEARTBEAT_MS);
    let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
    let mut patience = Patience::new();
    let mut restart: Option<(Duration, Instant)> = None;
    let mut writing = [Bytes::new()];
    loop {
        // What the welcome's chunk held beyond it, or what the last turn brought.
        match command_frames(shared, &mut splitter) {
            Ok(None) => {}
            Ok(Some(reconnect_delay)) => {
                restart = Some((reconnect_delay, Instant::now()));
                shared.connection.send_replace(ConnectionState::Leaving { reconnect_delay });
            }
            Err(error) => return ended(&connection, error),
        }
        let (closing, done) = {
            let mut state = shared.state.lock().expect("nothing panics under this lock");
            while let Some(datagram) = state.datagrams.pop_front() {
                // What does not get through is worth nothing later.
                let _ = connection.send_datagram(datagram);
            }
            if writing[0].is_empty() && !state.outbox.is_empty() {
                writing[0] = state.outbox.split().freeze();
                state.pump();
            }
            (state.closing, state.link == Link::Leaving && !state.expects_more() && state.outbox.is_empty())
        };
        if closing && writing[0].is_empty() {
            return Over::Closing;
        }
        let delay = restart.map_or(Duration::ZERO, |(delay, _)| delay);
        if let (true, true, Some((delay, _))) = (done, writing[0].is_empty(), restart) {
            return Over::Lost(draining(), delay);
        }
        let gone = |error: &quinn::ConnectionError| gone(dialer, &server, error, delay);
        tokio::select! {
            chunk = receive.read_chunk(CLIENT_READ_BYTES, true) => match chunk {
                Ok(Some(chunk)) => splitter.push(chunk.bytes),
                Ok(None) | Err(_) => return gone(&connection.closed().await),
            },
            written = send.write_chunks(&mut writing), if !writing[0].is_empty() => if written.is_err() {
                return gone(&connection.closed().await);
            },
            () = shared.wake.notified() => {}
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => shared.state.lock().expect("nothing panics under this lock").datagram(datagram),
                Err(error) => return last_words(shared, &mut receive, &mut splitter, gone(&error)).await,
            },
            _ = heartbeat.tick() => beat(shared, &connection),
            lane = connection.accept_uni() => match lane {
                Ok(lane) => drop(lanes.spawn(read_lane(shared.clone(), lane))),
                Err(error) => return last_words(shared, &mut receive, &mut splitter, gone(&error)).await,
            },
            Some(lane) = lanes.join_next() => if let Ok(Err(error)) = lane {
                return ended(&connection, error);
            },
            _ = look.tick() => {
                let waits = shared.state.lock().expect("nothing panics under this lock").waits();
                let silent = patience.exhausted(waits, connection.stats().udp_rx.datagrams);
                let since = restart.map(|(_, since)| since);
                if let Some(error) = lost_sight(server.clone(), silent, dialer.is_restarted(epoch), since) {
                    return Over::Lost(error, delay);
                }
            }
        }
    }
}

/// Reads what came before the connection ended: it may be the answer to what ended it.
async fn last_words(shared: &Shared, receive: &mut RecvStream, splitter: &mut Splitter, over: Over) -> Over {
    // Of a connection that is over, this gives what is there and then an error.
    while let Ok(Some(chunk)) = receive.read_chunk(CLIENT_READ_BYTES, true).await {
        splitter.push(chunk.bytes);
    }
    if let Err(error) = command_frames(shared, splitter) {
        tracing::debug!(%error, "the last words were not understood");
    }
    over
}

/// Says that the user is there, if anybody wants to know.
fn beat(shared: &Shared, connection: &Connection) {
    let mut state = shared.state.lock().expect("nothing panics under this lock");
    if state.heartbeat().is_some_and(|datagram| connection.send_datagram(datagram).is_err()) {
        state.heartbeat_on_lane();
    }
}

/// Why a connection that is still open is of no use any more, if it is not.
fn lost_sight(server: String, silent: bool, restarted: bool, leaving: Option<Instant>) -> Option<ClientError> {
    if silent {
        let reason = format!("it said nothing for {CLIENT_SILENCE_MS} ms while requests waited");
        return Some(ClientError::Unreachable { server, reason });
    }
    // A reader asks nothing, so that its silence says nothing; but the next life of a node next door says that this one is
    // over.
    if restarted {
        return Some(ClientError::Unreachable { server, reason: "it was started again".into() });
    }
    // A node is out within its time to drain; what is left after that is a node that forgot us.
    let forgotten = Duration::from_millis(DRAIN_MS + CLIENT_SILENCE_MS);
    leaving.filter(|since| since.elapsed() > forgotten).map(|_| draining())
}

fn draining() -> ClientError {
    let text = "the node goes away and asked to come back later";
    ClientError::Refused(Reject::new(thalweg_protocol::reject::RejectCode::Draining, text))
}

/// What a closed connection means for the session.
fn gone(dialer: &Dialer, server: &str, error: &quinn::ConnectionError, delay: Duration) -> Over {
    let error = loss(server, error);
    if dialer.may_come_back(&error) { Over::Lost(error, delay) } else { Over::Final(error) }
}

/// The node broke the protocol: says so to it and to the application.
fn ended(connection: &Connection, error: ClientError) -> Over {
    let text = error.to_string();
    let code = thalweg_protocol::reject::RejectCode::FrameInvalid as u32;
    connection.close(VarInt::from_u32(code), &text.as_bytes()[..text.len().min(256)]);
    tracing::warn!(%error, "the connection was ended");
    Over::Final(error)
}

/// Handles all whole frames of the command lane. `Some`: the node goes away.
fn command_frames(shared: &Shared, splitter: &mut Splitter) -> Result<Option<Duration>, ClientError> {
    let mut restart = None;
    let mut state = shared.state.lock().expect("nothing panics under this lock");
    while let Some(frame) = splitter.next().map_err(|reject| ClientError::Protocol(reject.to_string()))? {
        if let Some(delay_ms) = state.command_frame(&frame)? {
            restart = Some(Duration::from_millis(delay_ms.into()));
        }
    }
    Ok(restart)
}

/// Reads the delivery lane or a generation's lane to its end.
async fn read_lane(shared: Arc<Shared>, mut lane: RecvStream) -> Result<(), ClientError> {
    let mut splitter = Splitter::new();
    // An error of the lane is an error of the connection, which the driver sees as well.
    while let Ok(Some(chunk)) = lane.read_chunk(CLIENT_READ_BYTES, true).await {
        splitter.push(chunk.bytes);
        while let Some(frame) = splitter.next().map_err(|reject| ClientError::Protocol(reject.to_string()))? {
            loop {
                let handled = shared.state.lock().expect("nothing panics under this lock").lane_frame(&frame)?;
                match handled {
                    Handled::Done => break,
                    Handled::Unsettled(settled) => settled.notified().await,
                    Handled::Full(full) => {
                        wait_for_room(full).await;
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn wait_for_room(full: FullQueue) {
    async fn send<T>(queue: mpsc::Sender<T>, item: T) {
        // An error means that the reader is gone, which is as good as room.
        let _ = queue.send(item).await;
    }
    match full {
        FullQueue::Subscription(queue, item) => send(queue, item).await,
        FullQueue::Generation(queue, event) => send(queue, event).await,
        FullQueue::Document(queue, incoming) => send(queue, incoming).await,
    }
}

/// How long the node has been silent while something was asked of it.
struct Patience {
    datagrams: u64,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { datagrams: 0, since: Instant::now() }
    }

    fn exhausted(&mut self, waits: bool, datagrams: u64) -> bool {
        if !waits || datagrams != self.datagrams {
            (self.datagrams, self.since) = (datagrams, Instant::now());
        }
        self.since.elapsed() > Duration::from_millis(CLIENT_SILENCE_MS)
    }
}
