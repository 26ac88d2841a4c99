//! The handle applications hold.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_protocol::generation::{AskRequest, Role};
use thalweg_protocol::ids::{GenerationId, Name, Position};
use thalweg_protocol::limits::{
    CLIENT_IN_FLIGHT_BYTES, LEAD_MESSAGES, LEAD_MESSAGES_MAX, LEAD_TOKENS, LEAD_TOKENS_MAX,
};
use thalweg_protocol::op::{ClientOp, ServerOp, Subscribe, Welcome};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_protocol::trace::TraceContext;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::builder::Builder;
use crate::entries::{Failure, PendingCall, Repeat, Seen, SubscriptionEntry, WatchEntry};
use crate::error::ClientError;
use crate::generation::Generation;
use crate::state::State;
use crate::subscription::{SubscribeOptions, Subscription};

/// Room in a reader's queue beyond its lead, for notices that cost no credit.
const NOTICES: usize = 16;

/// How the client stands with its node.
#[derive(Debug, Clone)]
pub enum ConnectionState {
    /// The node answers.
    Connected {
        /// Which life of the node this is: another number than before means that it was restarted.
        epoch: u64,
    },
    /// The node said that it goes away; requests wait for it to come back.
    Leaving {
        /// When it asked to be called again.
        reconnect_delay: Duration,
    },
    /// The connection was lost and is being replaced.
    Reconnecting {
        /// How often it was tried, from 1.
        attempt: u32,
        /// Why it was lost, or why the last try failed.
        reason: String,
    },
    /// It is over.
    Closed {
        /// Why.
        error: ClientError,
    },
}

/// What client and driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Wakes the driver: there is something to write, or the client closes.
    pub(crate) wake: Notify,
    pub(crate) connection: watch::Sender<ConnectionState>,
    pub(crate) welcome: watch::Sender<Welcome>,
    /// Places for unanswered requests.
    pub(crate) requests: Arc<Semaphore>,
    /// Bytes of unanswered writes.
    pub(crate) bytes: Arc<Semaphore>,
}

/// Keeps the driver running; when the last one goes, the connection is closed.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Arc<Owner>);

#[derive(Debug)]
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.state.lock().expect("nothing panics under this lock").closing = true;
        self.0.wake.notify_one();
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(Arc::new(Owner(shared)))
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Changes the state, and wakes the driver if that gave it something to write.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.shared().state.lock().expect("nothing panics under this lock");
        let before = (state.outbox.len(), state.datagrams.len());
        let result = change(&mut state);
        let wake = state.outbox.len() > before.0 || state.datagrams.len() > before.1;
        drop(state);
        if wake {
            self.shared().wake.notify_one();
        }
        result
    }
}

/// Anything that is, or can be checked to be, a [`Name`].
pub trait AsName {
    /// The checked name.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] says what is wrong with the text; `what` is what it was to name.
    fn as_name(&self, what: &'static str) -> Result<Name, ClientError>;
}

impl AsName for Name {
    fn as_name(&self, _what: &'static str) -> Result<Name, ClientError> {
        Ok(self.clone())
    }
}

impl AsName for str {
    fn as_name(&self, what: &'static str) -> Result<Name, ClientError> {
        Name::new(self).map_err(|error| ClientError::name(what, self, &error))
    }
}

impl AsName for String {
    fn as_name(&self, what: &'static str) -> Result<Name, ClientError> {
        self.as_str().as_name(what)
    }
}

impl<T: AsName + ?Sized> AsName for &T {
    fn as_name(&self, what: &'static str) -> Result<Name, ClientError> {
        (**self).as_name(what)
    }
}

/// A session with a node. Cheap to clone; all clones are the same session. Needs a tokio runtime.
///
/// A lost connection is replaced without the application noticing more than a pause: unanswered writes are sent again in their
/// order and recognised by the node, readers go on where they were. How long to try is the
/// [builder's](Builder::reconnect) choice.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) handle: Handle,
    /// Whether writes make a missing channel.
    pub(crate) make: bool,
    /// For how long what the node refuses for now is tried again.
    pub(crate) retry_refusals: Option<Duration>,
    /// The trace that requests are part of.
    pub(crate) trace: Option<TraceContext>,
}

impl Client {
    /// Begins to describe a client.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The same session for requests that are part of a trace: the node puts what it measures of them below the caller's
    /// span, if the context says that it is sampled and the node exports traces.
    #[must_use]
    pub fn with_trace(&self, trace: TraceContext) -> Self {
        Self { trace: Some(trace), ..self.clone() }
    }

    /// What the node said of itself and of us when the current connection began.
    pub fn welcome(&self) -> Welcome {
        self.shared().welcome.borrow().clone()
    }

    /// How the client stands with its node, now and as it changes.
    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.shared().connection.subscribe()
    }

    /// Datagrams of the node that made no sense here, or were more than anybody took, since the client was made.
    pub fn datagrams_ignored(&self) -> u64 {
        self.handle.with(|state| state.datagrams_ignored)
    }

    pub(crate) fn shared(&self) -> &Shared {
        self.handle.shared()
    }

    /// Does something again while the node says that it may work later, if the application wants that.
    pub(crate) async fn patiently<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let start = Instant::now();
        loop {
            let error = match attempt().await {
                Err(error) => error,
                done => return done,
            };
            match (self.retry_refusals, error.retry_after()) {
                (Some(limit), Some(delay)) if start.elapsed() + delay <= limit => tokio::time::sleep(delay).await,
                _ => return Err(error),
            }
        }
    }

    pub(crate) fn check(&self, state: &State) -> Result<(), ClientError> {
        if state.closing {
            return Err(ClientError::Closed);
        }
        state.ended.clone().map_or(Ok(()), Err)
    }

    pub(crate) async fn permit(&self) -> Result<OwnedSemaphorePermit, ClientError> {
        self.shared().requests.clone().acquire_owned().await.map_err(|_| ClientError::Closed)
    }

    /// Reads a channel.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel and it may not be made, or reading it is forbidden.
    pub async fn subscribe(
        &self,
        channel: impl AsName,
        options: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        let channel = channel.as_name("channel")?;
        self.patiently(|| self.try_subscribe(channel.clone(), options)).await
    }

    async fn try_subscribe(&self, channel: Name, options: SubscribeOptions) -> Result<Subscription, ClientError> {
        let default = self.shared().welcome.borrow().lead_messages;
        let lead = effective_lead(options.lead, default, LEAD_MESSAGES, LEAD_MESSAGES_MAX);
        let permit = self.permit().await?;
        let (queue_in, queue) = mpsc::channel(lead as usize + NOTICES);
        let (sender, reply) = oneshot::channel();
        let SubscribeOptions { from, policy, make, presence, .. } = options;
        let subscribe = Subscribe { channel: channel.clone(), from, policy, lead, make, presence };
        let entry = SubscriptionEntry::new(subscribe, self.trace, queue_in, sender, permit);
        let (cursor, failure, news) = (entry.cursor.clone(), entry.failure.clone(), entry.news.clone());
        let key = self.handle.with(|state| {
            self.check(state)?;
            Ok(state.subscribe(entry))
        })?;
        // Made before the wait, so that giving up the wait gives up the subscription.
        let mut subscription = Subscription {
            handle: self.handle.clone(),
            key,
            channel,
            next: Position(0),
            head: Position(0),
            queue,
            cursor,
            failure,
            news,
            unreported: 0,
            report_every: (lead / 4).max(1),
        };
        (subscription.next, subscription.head) = reply.await.unwrap_or(Err(ClientError::Closed))?;
        Ok(subscription)
    }

    /// Asks a model. The answer's tokens come as they are produced.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if a parameter is out of range, the model is unknown, the prompt is too long, or the node has
    /// too much to do.
    pub async fn ask(&self, request: AskRequest) -> Result<Generation, ClientError> {
        request.check().map_err(ClientError::Refused)?;
        if !request.messages.iter().any(|message| message.role == Role::User) {
            let text = "messages holds nothing from a user; there is nothing to answer";
            return Err(ClientError::Refused(Reject::new(RejectCode::ParameterInvalid, text)));
        }
        let lead = request.lead;
        let attempt = || self.read_generation(Some(Box::new(request.clone())), None, Seen::new(0, None), lead);
        self.patiently(attempt).await
    }

    /// Reads a generation that somebody asked for, from token `from` on: to join in, or to go on in a new process.
    ///
    /// `text`: the text of the tokens before `from`, if it is still known. If the node was restarted meanwhile and had to
    /// compute some of them again, it compares; where it gets another text, and where it cannot know, the answer is rewound
    /// ([`Part::Rewound`](crate::Part)).
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such generation, or it is not ours to read.
    pub async fn watch(
        &self,
        generation: GenerationId,
        from: u32,
        text: Option<&str>,
    ) -> Result<Generation, ClientError> {
        self.read_generation(None, Some(generation), Seen::new(from, text), 0).await
    }

    async fn read_generation(
        &self,
        mut ask: Option<Box<AskRequest>>,
        generation: Option<GenerationId>,
        seen: Seen,
        lead: u32,
    ) -> Result<Generation, ClientError> {
        let default = self.shared().welcome.borrow().lead_tokens;
        let lead = effective_lead(lead, default, LEAD_TOKENS, LEAD_TOKENS_MAX);
        if let Some(ask) = &mut ask {
            ask.lead = lead;
        }
        let permit = self.permit().await?;
        let (queue_in, queue) = mpsc::channel(lead as usize + NOTICES);
        let (sender, reply) = oneshot::channel();
        let (failure, first) = (Failure::default(), seen.next());
        let entry = WatchEntry {
            ask,
            generation,
            trace: self.trace,
            lead,
            seen,
            queue: queue_in,
            failure: failure.clone(),
            first: Some(sender),
            permit: Some(permit),
            wire: None,
        };
        let key = self.handle.with(|state| {
            self.check(state)?;
            Ok(state.watch(entry))
        })?;
        let mut generation = Generation {
            handle: self.handle.clone(),
            key,
            id: GenerationId::default(),
            model: String::new(),
            first,
            queue,
            failure,
            finished: None,
            unreported: 0,
            report_every: (lead / 4).max(1),
        };
        (generation.id, generation.model) = reply.await.unwrap_or(Err(ClientError::Closed))?;
        Ok(generation)
    }

    pub(crate) async fn call(&self, op: ClientOp, repeat: Repeat) -> Result<ServerOp, ClientError> {
        let permit = self.permit().await?;
        let (sender, reply) = oneshot::channel();
        self.handle.with(|state| {
            self.check(state)?;
            state.call(PendingCall { op, trace: self.trace, repeat, retried: false, reply: sender, _permit: permit });
            Ok(())
        })?;
        reply.await.unwrap_or(Err(ClientError::Closed))
    }

    /// Ends a generation within one step, whoever reads it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such generation, or it is not ours to end.
    pub async fn cancel(&self, generation: GenerationId) -> Result<(), ClientError> {
        self.call(ClientOp::Cancel { generation }, Repeat::Again).await.map(drop)
    }

    /// The time from here to the core that serves this session and back.
    ///
    /// # Errors
    /// Only of the connection.
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let nonce = rand::random();
        let start = Instant::now();
        match self.call(ClientOp::Ping { nonce }, Repeat::Again).await? {
            ServerOp::Pong { nonce: answer } if answer == nonce => Ok(start.elapsed()),
            other => Err(ClientError::unexpected("Pong with our number", &other)),
        }
    }

    /// Counters and latencies of the node: a JSON object.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the token does not allow it.
    pub async fn stats(&self) -> Result<Bytes, ClientError> {
        match self.call(ClientOp::Stats, Repeat::Again).await? {
            ServerOp::StatsReport { json } => Ok(json),
            other => Err(ClientError::unexpected("StatsReport", &other)),
        }
    }

    /// Tells the node to finish what is in flight and go.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the token does not allow it. [`ClientError::Lost`] if the node was gone before it answered.
    pub async fn drain(&self) -> Result<(), ClientError> {
        self.call(ClientOp::Drain, Repeat::Never).await.map(drop)
    }

    /// Ends the session: what waits for an answer fails with [`ClientError::Closed`]. Returns when the node was told.
    pub async fn close(self) {
        let mut connection = self.connection();
        self.handle.with(|state| state.closing = true);
        self.shared().wake.notify_one();
        // An error means that the driver is gone, which is what is waited for.
        let _ = connection.wait_for(|state| matches!(state, ConnectionState::Closed { .. })).await;
    }
}

fn effective_lead(asked: u32, node: u32, default: u32, max: u32) -> u32 {
    let lead = [asked, node, default].into_iter().find(|&lead| lead > 0).expect("defaults are positive");
    lead.min(max)
}

/// Room for unanswered requests as the node allows them.
pub(crate) fn semaphores(in_flight_max: usize) -> (Arc<Semaphore>, Arc<Semaphore>) {
    (Arc::new(Semaphore::new(in_flight_max)), Arc::new(Semaphore::new(CLIENT_IN_FLIGHT_BYTES)))
}
