//! Own edits on their way: merged while others are unanswered, kept while the node is away, until they are durable.

use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::sync::{Notify, watch};

use crate::client::Client;
use crate::error::ClientError;

/// Bytes of updates that are merged into one write.
const MERGED_BYTES: usize = 192 << 10;
/// Bytes of own edits that wait for the node; a further edit is refused. Days of typing, or four large books.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Shortest time before a write is tried again that the node refused for now.
const AGAIN: Duration = Duration::from_millis(20);

/// How own edits stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// Edits that are durable.
    pub(super) acknowledged: u64,
    /// The newest revision that one of them is.
    pub(super) revision: Position,
    /// Why an edit was not taken; the document is read anew then.
    pub(super) refused: Option<Reject>,
    /// Why nothing will be taken any more.
    pub(super) failed: Option<ClientError>,
    /// How often edits were given up.
    pub(super) round: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    updates: VecDeque<Bytes>,
    bytes: usize,
    /// Edits that were put in.
    edits: u64,
    /// How many of them are not in `updates` any more.
    taken: u64,
    round: u64,
    /// The node refused one; nothing is sent or taken until the document was read anew.
    halted: bool,
    closed: bool,
}

/// Own edits of one document.
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
    progress: watch::Sender<Progress>,
}

impl Outbox {
    /// Starts the task that sends what is put in.
    pub(super) fn start(client: Client, document: Name) -> Arc<Self> {
        let (progress, _) = watch::channel(Progress::default());
        let outbox = Arc::new(Self { waiting: Mutex::default(), wake: Notify::new(), progress });
        tokio::spawn(carry(client, document, outbox.clone()));
        outbox
    }

    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.waiting.lock().expect("nothing panics under this lock"))
    }

    /// Whether there is room for another edit.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        if let Some(error) = &self.progress.borrow().failed {
            return Err(error.clone());
        }
        let (bytes, halted) = self.with(|waiting| (waiting.bytes, waiting.halted));
        if halted {
            let text = "an edit was refused, and the document is being read anew; try again";
            return Err(ClientError::Refused(Reject::new(RejectCode::Busy, text).retry_after_ms(100)));
        }
        if bytes < WAITING_BYTES_MAX {
            return Ok(());
        }
        let text = format!("{bytes} bytes of edits wait for the node; wait until it has them");
        Err(ClientError::Refused(Reject::new(RejectCode::LimitReached, text)))
    }

    /// Sends these after what was put in before.
    pub(super) fn put(&self, updates: Vec<Bytes>) -> Acknowledgement {
        let (target, round) = self.with(|waiting| {
            waiting.edits += u64::from(!updates.is_empty());
            waiting.bytes += updates.iter().map(Bytes::len).sum::<usize>();
            waiting.updates.extend(updates);
            (waiting.edits, waiting.round)
        });
        self.wake.notify_one();
        Acknowledgement { target, round, progress: self.progress.subscribe() }
    }

    /// How many edits are not known to be durable.
    pub(super) fn unacknowledged(&self) -> u64 {
        let edits = self.with(|waiting| waiting.edits);
        edits.saturating_sub(self.progress.borrow().acknowledged)
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Gives up what waits: it stands on what the node refused.
    pub(super) fn clear(&self) {
        let (edits, round) = self.with(|waiting| {
            waiting.updates.clear();
            (waiting.bytes, waiting.taken) = (0, waiting.edits);
            waiting.round += 1;
            waiting.halted = false;
            (waiting.edits, waiting.round)
        });
        self.progress.send_modify(|progress| {
            (progress.acknowledged, progress.round, progress.refused) = (edits, round, None);
        });
    }

    /// Sends what waits, and then nothing more.
    pub(super) fn close(&self) {
        self.with(|waiting| waiting.closed = true);
        self.wake.notify_one();
    }

    /// The next write: as much as goes into one, how many edits are done with it, and in which round.
    fn take(&self) -> Taken {
        self.with(|waiting| {
            if waiting.halted && !waiting.closed {
                return Taken::Nothing;
            }
            let Some(first) = waiting.updates.pop_front() else {
                return if waiting.closed { Taken::Closed } else { Taken::Nothing };
            };
            let mut bytes = first.len();
            let mut updates = vec![first];
            while let Some(next) = waiting.updates.front().filter(|next| bytes + next.len() <= MERGED_BYTES) {
                bytes += next.len();
                updates.extend(waiting.updates.pop_front());
            }
            waiting.bytes = waiting.bytes.saturating_sub(bytes);
            if waiting.updates.is_empty() {
                waiting.taken = waiting.edits;
            }
            Taken::Some { updates, taken: waiting.taken, round: waiting.round }
        })
    }
}

enum Taken {
    Some { updates: Vec<Bytes>, taken: u64, round: u64 },
    Nothing,
    Closed,
}

/// Sends what is put in, one write at a time.
async fn carry(client: Client, document: Name, outbox: Arc<Outbox>) {
    loop {
        let (updates, taken, round) = match outbox.take() {
            Taken::Some { updates, taken, round } => (updates, taken, round),
            Taken::Nothing => {
                outbox.wake.notified().await;
                continue;
            }
            Taken::Closed => return,
        };
        let body = match updates.as_slice() {
            [one] => one.clone(),
            several => yrs::merge_updates_v1(several).expect("our own updates are updates").into(),
        };
        match write(&client, &document, &body).await {
            Ok(revision) => {
                if outbox.with(|waiting| waiting.round) == round {
                    outbox.progress.send_modify(|progress| {
                        progress.acknowledged = progress.acknowledged.max(taken);
                        progress.revision = progress.revision.max(revision);
                    });
                }
            }
            Err(ClientError::Refused(reject)) => {
                outbox.with(|waiting| waiting.halted = true);
                outbox.progress.send_modify(|progress| progress.refused = Some(reject));
            }
            Err(error) => {
                outbox.progress.send_modify(|progress| progress.failed = Some(error));
                return;
            }
        }
    }
}

/// Writes one update, however often it takes: it may be repeated at will.
async fn write(client: &Client, document: &Name, body: &Bytes) -> Result<Position, ClientError> {
    loop {
        let post = Post { kind: PostKind::Update, target: Position(0) };
        let answer = match client.write_start(document.clone(), body.clone(), post).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(published) => return Ok(published.position),
            Err(ClientError::SessionExpired(_)) => {}
            Err(error) => match error.retry_after() {
                Some(delay) => tokio::time::sleep(delay.max(AGAIN)).await,
                None => return Err(error),
            },
        }
    }
}

/// Becomes the revision of an edit, or of a later one, once it is durable. Dropping it takes nothing back.
///
/// # Errors
/// [`ClientError::Refused`] if the node did not take it; the error of the client if that ended.
#[derive(Debug)]
pub struct Acknowledgement {
    target: u64,
    round: u64,
    progress: watch::Receiver<Progress>,
}

impl Acknowledgement {
    async fn durable(mut self) -> Result<Position, ClientError> {
        let (target, round) = (self.target, self.round);
        let over = |progress: &Progress| {
            progress.acknowledged >= target
                || progress.round != round
                || progress.refused.is_some()
                || progress.failed.is_some()
        };
        let progress = self.progress.wait_for(over).await.map_err(|_| ClientError::Closed)?;
        if progress.round == round && progress.acknowledged >= target {
            return Ok(progress.revision);
        }
        if let Some(error) = &progress.failed {
            return Err(error.clone());
        }
        let lost = || Reject::new(RejectCode::UpdateInvalid, "an edit before this one was refused, and this with it");
        Err(ClientError::Refused(progress.refused.clone().unwrap_or_else(lost)))
    }
}

impl IntoFuture for Acknowledgement {
    type Output = Result<Position, ClientError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.durable())
    }
}
