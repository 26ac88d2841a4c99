//! Lines: sessions on a core whose news come as they are, in order, to one place. A WebSocket has one or a few.
//!
//! What a socket has not taken is bounded by what its sessions may be told: answers, of which it asks for at most
//! [`SOCKET_IN_FLIGHT_MAX`](crate::limits::SOCKET_IN_FLIGHT_MAX), frames of subscriptions, which stop when a session's queue
//! is full until it says what was taken, and frames of generations, by their credit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thalweg_protocol::VERSIONS;
use thalweg_protocol::ids::{Request, SessionId};
use thalweg_protocol::op::{ClientOp, Hello};
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::sync::mpsc;

use crate::limits::SOCKET_NEWS_MAX;
use crate::link::Desk;
use crate::port::{SessionEvent, SessionNews, Unheard};

impl From<Unheard> for Reject {
    fn from(why: Unheard) -> Self {
        let reject = match why {
            Unheard::Gone => Self::new(RejectCode::Draining, "the node is going away; come back"),
            Unheard::Busy => Self::new(RejectCode::Busy, "the node's core does not keep up; try again"),
        };
        reject.retry_after_ms(1_000)
    }
}

/// Hears what a session is told.
#[derive(Debug)]
pub(crate) struct Listener {
    news: mpsc::Sender<(u32, SessionNews)>,
    /// The socket's name for the session.
    session: u32,
    overrun: Arc<AtomicBool>,
}

impl Listener {
    pub(crate) fn hear(&self, what: SessionNews) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.news.try_send((self.session, what)) {
            // Once a frame is lost nothing after it makes sense; the socket sees this and closes.
            if !self.overrun.swap(true, Ordering::Relaxed) {
                tracing::error!("a core sent a WebSocket more than it was given credit for");
            }
        }
    }
}

/// Where a socket hears of all its sessions.
pub(crate) struct Exchange {
    desk: Arc<Desk>,
    remote: SocketAddr,
    client: &'static str,
    sender: mpsc::Sender<(u32, SessionNews)>,
    /// What is new, each with the socket's name for the session.
    pub(crate) news: mpsc::Receiver<(u32, SessionNews)>,
    overrun: Arc<AtomicBool>,
}

impl Exchange {
    /// `client`: what it is called in the node's log.
    pub(crate) fn new(desk: Arc<Desk>, remote: SocketAddr, client: &'static str) -> Self {
        let (sender, news) = mpsc::channel(SOCKET_NEWS_MAX);
        Self { desk, remote, client, sender, news, overrun: Arc::default() }
    }

    /// Whether news were lost.
    pub(crate) fn is_overrun(&self) -> bool {
        self.overrun.load(Ordering::Relaxed)
    }

    /// Opens a session for the holder of a token. The answer is the reply to request 0.
    pub(crate) fn open(&self, session: u32, token: String) -> Result<Line, Reject> {
        let id = SessionId(rand::random::<u128>().max(1));
        self.open_as(session, id, token)
    }

    /// Opens a session that was there before, so that a write that is repeated is known.
    pub(crate) fn open_as(&self, session: u32, id: SessionId, token: String) -> Result<Line, Reject> {
        let versions = (*VERSIONS.start(), *VERSIONS.end());
        let hello = Hello { versions, session: id, token, client: self.client.to_owned() };
        let listener = Listener { news: self.sender.clone(), session, overrun: Arc::clone(&self.overrun) };
        let number = self.desk.sessions().listen(self.remote, hello, listener)?;
        self.desk.ring();
        Ok(Line { desk: Arc::clone(&self.desk), number })
    }
}

/// A session. Dropping it closes it.
pub(crate) struct Line {
    desk: Arc<Desk>,
    number: u64,
}

impl Line {
    /// Asks for something.
    pub(crate) fn ask(&self, request: Request, op: ClientOp) -> Result<(), Reject> {
        self.desk.sessions().begin(self.number, SessionEvent::Request { request, op, context: None })?;
        self.desk.ring();
        Ok(())
    }

    /// Says what has no answer and must arrive: credit, and that somebody goes.
    pub(crate) fn tell(&self, op: ClientOp) {
        // Nobody waits for an answer to it.
        let request = Request(u32::MAX);
        self.desk.sessions().send(self.number, SessionEvent::Request { request, op, context: None });
        self.desk.ring();
    }

    /// So many bytes of frames of subscriptions were taken.
    pub(crate) fn drained(&self, bytes: usize) {
        self.desk.sessions().send(self.number, SessionEvent::Drained { bytes });
        self.desk.ring();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let left = self.desk.sessions().leave(self.number);
        if left {
            self.desk.ring();
        }
    }
}
