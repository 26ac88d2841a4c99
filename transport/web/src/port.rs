//! Web sessions: what a thread of the stage and its core say about them, and the stage's side of each.
//!
//! A session is opened with a hello and ends with a close, as one over QUIC is; in between the stage sends decoded
//! operations, so that nothing is encoded within the process but what is shared anyway. Both rings are bounded, and so is
//! what waits before them: a session has at most [`V1_CHOICES_MAX`](crate::limits::V1_CHOICES_MAX) answers under way, each
//! of which gets no more than [`V1_LEAD_TOKENS`](crate::limits::V1_LEAD_TOKENS) frames ahead of what its reader reported as
//! taken, and a stage has at most so many sessions as connections. What a WebSocket is told, and what bounds that, says
//! [`line`](crate::line).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use thalweg_protocol::VERSIONS;
use thalweg_protocol::generation::AskRequest;
use thalweg_protocol::ids::{GenerationId, Request, SessionId, Watch};
use thalweg_protocol::op::{ClientOp, Hello, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_protocol::trace::TraceContext;
use thalweg_ring::Producer;
use tokio::sync::{mpsc, oneshot};

use crate::error::Refusal;
use crate::limits::{V1_CREDIT_TOKENS, V1_FRAMES_WAITING, V1_LEAD_TOKENS};
use crate::line::Listener;
use crate::link::{Desk, gone, unavailable};

/// What the stage tells a core about one of its sessions.
#[derive(Debug)]
pub struct SessionInput {
    /// The thread's number for the session; never used again.
    pub session: u64,
    /// What happened.
    pub what: SessionEvent,
}

/// What happens to a web session.
#[derive(Debug)]
pub enum SessionEvent {
    /// It begins. Answered by a reply to request 0, and if that is a reject by [`SessionNews::Closed`] too.
    Open {
        /// Where its HTTP connection comes from.
        remote: SocketAddr,
        /// Who it says it is.
        hello: Box<Hello>,
    },
    /// It asks for something.
    Request {
        /// The number of the request; a watch is named after it.
        request: Request,
        /// What it asks.
        op: ClientOp,
        /// The trace that the request is part of, as its caller says.
        context: Option<TraceContext>,
    },
    /// Its connection took bytes of what its subscriptions were delivered: of each such frame the payload and
    /// [`FRAME_HEADER_BYTES`](thalweg_protocol::limits::FRAME_HEADER_BYTES). Frames of generations are not counted.
    Drained {
        /// How many.
        bytes: usize,
    },
    /// Its HTTP connection is gone. Nothing more is said about it by either side.
    Close,
}

/// What a core tells the stage about one of its sessions.
#[derive(Debug)]
pub struct SessionOutput {
    /// The thread's number for the session.
    pub session: u64,
    /// What is new.
    pub what: SessionNews,
}

/// What a web session is told.
#[derive(Debug)]
pub enum SessionNews {
    /// The answer to a request; 0 is its hello, or nothing it asked for.
    Reply {
        /// Which request.
        request: Request,
        /// The answer.
        op: ServerOp,
    },
    /// A frame of a generation, channel or document.
    Frame {
        /// Of which watch or subscription: the number of the request that began it.
        subject: u32,
        /// An encoded [`ServerOp`], which may be shared with other readers.
        payload: Bytes,
        /// Whether nothing follows.
        last: bool,
    },
    /// The session was ended by the core.
    Closed(Reject),
}

/// The sessions of one thread of the stage.
pub(crate) struct Sessions {
    inputs: Producer<SessionInput>,
    /// What found no room on the ring: credits, departures and closings, which must not be lost. Bounded as above.
    backlog: VecDeque<SessionInput>,
    open: HashMap<u64, Mailboxes>,
    last: u64,
}

type Answer = oneshot::Sender<Result<ServerOp, Reject>>;
type Frame = Result<Bytes, Reject>;

/// Where the parts of one session wait for news.
#[derive(Default)]
struct Mailboxes {
    answers: HashMap<Request, Answer>,
    watches: HashMap<Watch, mpsc::Sender<Frame>>,
    closed: Option<Reject>,
    /// Who gets all news as they come, instead of the others.
    line: Option<Listener>,
}

/// Why a core cannot be told something new.
pub(crate) enum Unheard {
    /// It is gone.
    Gone,
    /// It does not keep up.
    Busy,
}

impl From<Unheard> for Refusal {
    fn from(why: Unheard) -> Self {
        match why {
            Unheard::Gone => gone(),
            Unheard::Busy => unavailable("busy", "the node's core does not keep up with HTTP requests; try again"),
        }
    }
}

impl Sessions {
    pub(crate) fn new(inputs: Producer<SessionInput>) -> Self {
        Self { inputs, backlog: VecDeque::new(), open: HashMap::new(), last: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Sends what waited for room; whether nothing waits any more.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some(input) = self.backlog.pop_front() {
            if let Err(input) = self.inputs.push(input) {
                self.backlog.push_front(input);
                return self.inputs.is_abandoned();
            }
        }
        true
    }

    /// Sends what must arrive.
    pub(crate) fn send(&mut self, session: u64, what: SessionEvent) {
        self.backlog.push_back(SessionInput { session, what });
        self.flush();
    }

    /// Sends something new, unless the core does not keep up.
    pub(crate) fn begin(&mut self, session: u64, what: SessionEvent) -> Result<(), Unheard> {
        if self.inputs.is_abandoned() {
            return Err(Unheard::Gone);
        }
        if !self.flush() {
            return Err(Unheard::Busy);
        }
        self.inputs.push(SessionInput { session, what }).map_err(|_| Unheard::Busy)
    }

    /// Opens a session whose news go to a listener; gives its number.
    pub(crate) fn listen(&mut self, remote: SocketAddr, hello: Hello, listener: Listener) -> Result<u64, Unheard> {
        self.last += 1;
        let number = self.last;
        self.begin(number, SessionEvent::Open { remote, hello: Box::new(hello) })?;
        self.open.insert(number, Mailboxes { line: Some(listener), ..Mailboxes::default() });
        Ok(number)
    }

    /// Ends a session, unless it ended before; whether the core has to be woken.
    pub(crate) fn leave(&mut self, number: u64) -> bool {
        let open = self.open.remove(&number).is_some_and(|mailboxes| mailboxes.closed.is_none());
        if open {
            self.send(number, SessionEvent::Close);
        }
        open
    }

    /// Hands news to whom it is for.
    pub(crate) fn deliver(&mut self, SessionOutput { session, what }: SessionOutput) {
        // Whoever has gone meanwhile said so to the core.
        let Some(mailboxes) = self.open.get_mut(&session) else { return };
        if let Some(line) = &mailboxes.line {
            if let SessionNews::Closed(reject) = &what {
                mailboxes.closed = Some(reject.clone());
            }
            return line.hear(what);
        }
        match what {
            SessionNews::Reply { request, op } => {
                if let Some(answer) = mailboxes.answers.remove(&request) {
                    let result = if let ServerOp::Reject(reject) = op { Err(reject) } else { Ok(op) };
                    drop(answer.send(result));
                }
            }
            SessionNews::Frame { subject, payload, last } => {
                let watch = Watch(subject);
                let sent = mailboxes.watches.get(&watch).map(|frames| frames.try_send(Ok(payload)));
                // The reader reads what it has, and then that nothing more comes.
                let full = matches!(sent, Some(Err(mpsc::error::TrySendError::Full(_))));
                if full {
                    tracing::error!("a core sent an HTTP request more than it was given credit for");
                }
                if last || full {
                    mailboxes.watches.remove(&watch);
                }
            }
            SessionNews::Closed(reject) => mailboxes.close(&reject),
        }
    }

    /// The core is gone, and with it all sessions.
    pub(crate) fn abandon(&mut self) {
        let reject = Reject::new(RejectCode::Draining, "the node is going away; try again").retry_after_ms(1_000);
        self.open.values_mut().for_each(|mailboxes| mailboxes.close(&reject));
        self.backlog.clear();
    }
}

impl Mailboxes {
    fn close(&mut self, reject: &Reject) {
        if let Some(line) = &self.line {
            line.hear(SessionNews::Closed(reject.clone()));
        }
        for (_, answer) in self.answers.drain() {
            drop(answer.send(Err(reject.clone())));
        }
        for (_, frames) in self.watches.drain() {
            // Without room it reads that nothing more comes.
            drop(frames.try_send(Err(reject.clone())));
        }
        self.closed = Some(reject.clone());
    }
}

/// One session. Dropping it closes it.
pub(crate) struct Session {
    desk: Arc<Desk>,
    number: u64,
    requests: AtomicU32,
    patience: Duration,
}

impl Drop for Session {
    fn drop(&mut self) {
        let left = self.desk.sessions().leave(self.number);
        if left {
            self.desk.ring();
        }
    }
}

impl Session {
    /// Opens a session for the holder of a token. `patience`: until an answer that needs no model must be there.
    pub(crate) async fn open(
        desk: &Arc<Desk>,
        remote: SocketAddr,
        token: &str,
        patience: Duration,
    ) -> Result<Self, Refusal> {
        let hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            session: SessionId(rand::random::<u128>().max(1)),
            token: token.to_owned(),
            client: "http".to_owned(),
        };
        let (sender, answer) = oneshot::channel();
        let number = {
            let mut sessions = desk.sessions();
            sessions.last += 1;
            let number = sessions.last;
            sessions.begin(number, SessionEvent::Open { remote, hello: Box::new(hello) })?;
            let answers = HashMap::from([(Request(0), sender)]);
            sessions.open.insert(number, Mailboxes { answers, ..Mailboxes::default() });
            number
        };
        desk.ring();
        let session = Self { desk: Arc::clone(desk), number, requests: AtomicU32::new(0), patience };
        match session.wait(answer).await? {
            ServerOp::Welcome(_) => Ok(session),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the core ended it.
    pub(crate) fn is_closed(&self) -> bool {
        let sessions = self.desk.sessions();
        sessions.open.get(&self.number).is_none_or(|mailboxes| mailboxes.closed.is_some())
    }

    async fn wait(&self, answer: oneshot::Receiver<Result<ServerOp, Reject>>) -> Result<ServerOp, Refusal> {
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(said)) => said.map_err(Refusal::from),
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                let text = format!("the node's core did not answer within {} ms; try again", self.patience.as_millis());
                Err(unavailable("core_silent", text))
            }
        }
    }

    fn next_request(&self) -> Request {
        Request(self.requests.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn begin(
        &self,
        op: ClientOp,
        context: Option<TraceContext>,
        frames: Option<mpsc::Sender<Frame>>,
    ) -> Result<(Request, oneshot::Receiver<Result<ServerOp, Reject>>), Refusal> {
        let request = self.next_request();
        let (sender, answer) = oneshot::channel();
        let mut sessions = self.desk.sessions();
        let mailboxes = sessions.open.get(&self.number);
        if let Some(reject) = mailboxes.and_then(|mailboxes| mailboxes.closed.clone()) {
            return Err(reject.into());
        }
        sessions.begin(self.number, SessionEvent::Request { request, op, context })?;
        if let Some(mailboxes) = sessions.open.get_mut(&self.number) {
            mailboxes.answers.insert(request, sender);
            mailboxes.watches.extend(frames.map(|frames| (Watch(request.0), frames)));
        }
        drop(sessions);
        self.desk.ring();
        Ok((request, answer))
    }

    /// Asks for something that is answered once, as long as that takes.
    pub(crate) async fn request(&self, op: ClientOp, context: Option<TraceContext>) -> Result<ServerOp, Refusal> {
        let (_, answer) = self.begin(op, context, None)?;
        answer.await.map_err(|_| gone())?.map_err(Refusal::from)
    }

    /// Asks a model. What is asked is given up when the reader is dropped.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        ask: AskRequest,
        context: Option<TraceContext>,
    ) -> Result<Reader, Refusal> {
        let ask = AskRequest { lead: V1_LEAD_TOKENS, ..ask };
        let (sender, frames) = mpsc::channel(V1_FRAMES_WAITING);
        let (request, answer) = self.begin(ClientOp::Ask(Box::new(ask)), context, Some(sender))?;
        let mut reader = Reader {
            session: Arc::clone(self),
            watch: Watch(request.0),
            generation: GenerationId(0),
            model: String::new(),
            frames,
            reported: 0,
            over: false,
        };
        let said = answer.await.map_err(|_| gone()).and_then(|said| said.map_err(Refusal::from));
        match said {
            Ok(ServerOp::Asked { generation, model }) => {
                (reader.generation, reader.model) = (generation, model);
                Ok(reader)
            }
            Ok(other) => Err(unexpected(&other)),
            Err(refusal) => {
                reader.leave(false);
                Err(refusal)
            }
        }
    }
}

/// Reads one generation. Dropping it before its end ends the generation within one step.
pub(crate) struct Reader {
    session: Arc<Session>,
    watch: Watch,
    /// Which generation.
    pub(crate) generation: GenerationId,
    /// The model that answers.
    pub(crate) model: String,
    frames: mpsc::Receiver<Frame>,
    reported: u32,
    over: bool,
}

impl Reader {
    /// The next frame; `None` once it ended.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ServerOp, Refusal>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let Some(frame) = std::task::ready!(self.frames.poll_recv(cx)) else {
            self.over = true;
            return Poll::Ready(Some(Err(gone())));
        };
        let op = frame.and_then(|payload| ServerOp::decode(&payload)).map_err(Refusal::from);
        // Nothing follows these, and the core knows.
        self.over = matches!(op, Err(_) | Ok(ServerOp::Finished { .. } | ServerOp::Ended(_)));
        Poll::Ready(Some(op))
    }

    /// All tokens before this index are on their way to the client: that many more may be produced.
    pub(crate) fn taken(&mut self, index: u32) {
        if self.over || index < self.reported.saturating_add(V1_CREDIT_TOKENS) {
            return;
        }
        self.reported = index;
        let op = ClientOp::TokensConsumed { watch: self.watch, index };
        let request = self.session.next_request();
        let mut sessions = self.session.desk.sessions();
        sessions.send(self.session.number, SessionEvent::Request { request, op, context: None });
        drop(sessions);
        self.session.desk.ring();
    }

    fn leave(&mut self, tell: bool) {
        self.over = true;
        let request = self.session.next_request();
        let mut sessions = self.session.desk.sessions();
        if let Some(mailboxes) = sessions.open.get_mut(&self.session.number) {
            mailboxes.watches.remove(&self.watch);
            mailboxes.answers.remove(&Request(self.watch.0));
        }
        if tell {
            let op = ClientOp::Unwatch { watch: self.watch };
            sessions.send(self.session.number, SessionEvent::Request { request, op, context: None });
            drop(sessions);
            self.session.desk.ring();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.over {
            self.leave(true);
        }
    }
}

fn unexpected(op: &ServerOp) -> Refusal {
    tracing::error!(op = ?std::mem::discriminant(op), "a core answered what nobody asked");
    let text = "the node answered something else, which is a defect of Thalweg; its log says more";
    Reject::new(RejectCode::Internal, text).into()
}
