//! Own edits on their way: merged while others are unanswered, kept while the node is away, until they are durable.

use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::ReadForm;
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::sync::{Notify, watch};
use yrs::Doc;

use super::replica::beyond;
use super::write::{patience, write};
use crate::client::Client;
use crate::error::ClientError;

/// Bytes of updates that are merged into one write.
const MERGED_BYTES: usize = 192 << 10;
/// Bytes of own edits that wait for the node; a further edit is refused. Days of typing, or four large books.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// How own edits stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// Edits that are durable.
    pub(super) acknowledged: u64,
    /// The newest revision that one of them is.
    pub(super) revision: Position,
    /// Why an edit was not taken, nor any after it; the document is read anew then.
    pub(super) refused: Option<Reject>,
    /// Why nothing will be taken any more.
    pub(super) failed: Option<ClientError>,
}

struct Waiting {
    /// What all the edits were made on, and in.
    doc: Doc,
    updates: VecDeque<Bytes>,
    bytes: usize,
    /// Edits that were put in.
    edits: u64,
    /// How many of them are not in `updates` any more.
    taken: u64,
    /// Tells those who wait. There is another one once an edit was refused, so that who asks later how an earlier edit stands
    /// is not told of that one.
    progress: Arc<watch::Sender<Progress>>,
    /// The node refused one; nothing is sent or taken until the document was read anew.
    halted: bool,
    closed: bool,
}

/// Own edits of one document.
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (edits, bytes) = self.with(|waiting| (waiting.edits, waiting.bytes));
        f.debug_struct("Outbox").field("edits", &edits).field("bytes", &bytes).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Starts the task that sends what is put in: edits that were made in `doc`.
    pub(super) fn start(client: Client, document: Name, doc: Doc) -> Arc<Self> {
        let waiting = Waiting {
            doc,
            updates: VecDeque::new(),
            bytes: 0,
            edits: 0,
            taken: 0,
            progress: Arc::default(),
            halted: false,
            closed: false,
        };
        let outbox = Arc::new(Self { waiting: Mutex::new(waiting), wake: Notify::new() });
        tokio::spawn(carry(client, document, outbox.clone()));
        outbox
    }

    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        change(&mut self.waiting.lock().expect("nothing panics under this lock"))
    }

    /// Whether there is room for another edit.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        let (bytes, halted, failed) =
            self.with(|waiting| (waiting.bytes, waiting.halted, waiting.progress.borrow().failed.clone()));
        if let Some(error) = failed {
            return Err(error);
        }
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
        let (target, progress) = self.with(|waiting| {
            waiting.edits += u64::from(!updates.is_empty());
            waiting.bytes += updates.iter().map(Bytes::len).sum::<usize>();
            waiting.updates.extend(updates);
            (waiting.edits, waiting.progress.subscribe())
        });
        self.wake.notify_one();
        Acknowledgement { target, progress }
    }

    /// How many edits are not known to be durable.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.with(|waiting| waiting.edits.saturating_sub(waiting.progress.borrow().acknowledged))
    }

    /// How the edits stand, until one is refused and they are [given up](Self::clear).
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.with(|waiting| waiting.progress.subscribe())
    }

    /// Gives up what waits: it stands on what the node refused. What is put in from now on is made in `doc`.
    pub(super) fn clear(&self, doc: Doc) {
        self.with(|waiting| {
            waiting.updates.clear();
            (waiting.doc, waiting.bytes, waiting.taken, waiting.halted) = (doc, 0, waiting.edits, false);
            let before = waiting.progress.borrow().clone();
            let progress = Progress { acknowledged: waiting.edits, refused: None, ..before };
            waiting.progress = Arc::new(watch::channel(progress).0);
        });
    }

    /// Takes out all that waits, of which everything is in the document that this gives.
    fn drain(&self) -> (Doc, u64) {
        self.with(|waiting| {
            waiting.updates.clear();
            (waiting.bytes, waiting.taken) = (0, waiting.edits);
            (waiting.doc.clone(), waiting.edits)
        })
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        let progress = self.with(|waiting| waiting.progress.clone());
        progress.send_modify(change);
    }

    /// Sends what waits, and then nothing more.
    pub(super) fn close(&self) {
        self.with(|waiting| waiting.closed = true);
        self.wake.notify_one();
    }

    /// The next write: as much as goes into one, and how many edits are done with it.
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
            Taken::Some { updates, taken: waiting.taken }
        })
    }
}

enum Taken {
    Some { updates: Vec<Bytes>, taken: u64 },
    Nothing,
    Closed,
}

/// Updates, of what they build on alone.
const UPDATE: Post = Post { kind: PostKind::Update, target: Position(0) };

/// Sends what is put in, one write at a time.
async fn carry(client: Client, document: Name, outbox: Arc<Outbox>) {
    loop {
        let (updates, taken) = match outbox.take() {
            Taken::Some { updates, taken } => (updates, taken),
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
        let written = match write(&client, &document, UPDATE, &body, |_| ()).await {
            Err(ClientError::Refused(reject)) if reject.code == RejectCode::UpdateIncomplete => {
                mend(&client, &document, &outbox).await
            }
            answer => answer.map(|published| (published.position, taken)),
        };
        match written {
            Ok((revision, taken)) => outbox.tell(|progress| {
                progress.acknowledged = progress.acknowledged.max(taken);
                progress.revision = progress.revision.max(revision);
            }),
            Err(ClientError::Refused(reject)) => {
                outbox.with(|waiting| waiting.halted = true);
                outbox.tell(|progress| progress.refused = Some(reject));
            }
            Err(error) => {
                outbox.tell(|progress| progress.failed = Some(error));
                return;
            }
        }
    }
}

/// Writes all that the node lacks: what an edit builds on was durable and is gone, because a backup was put back. Gives the
/// revision, and how many edits are done with it.
async fn mend(client: &Client, document: &Name, outbox: &Outbox) -> Result<(Position, u64), ClientError> {
    let read = loop {
        match client.read_document(document.clone(), Position(0), ReadForm::State).await {
            Ok(read) => break read,
            Err(error) => patience(error).await?,
        }
    };
    // Drained first: what is edited from here on may be in both, which harms nothing.
    let (doc, taken) = outbox.drain();
    let lacking = beyond(&doc, &read.bytes)?;
    drop(doc);
    let published = write(client, document, UPDATE, &lacking, |_| ()).await?;
    Ok((published.position, taken))
}

/// Becomes the revision of an edit, or of a later one, once it is durable. Dropping it takes nothing back.
///
/// # Errors
/// [`ClientError::Refused`] if the node did not take it; the error of the client if that ended.
#[derive(Debug)]
pub struct Acknowledgement {
    target: u64,
    progress: watch::Receiver<Progress>,
}

impl Acknowledgement {
    async fn durable(mut self) -> Result<Position, ClientError> {
        let target = self.target;
        let over = |progress: &Progress| {
            progress.acknowledged >= target || progress.refused.is_some() || progress.failed.is_some()
        };
        // What was told last stays when nobody tells anything any more.
        let progress = self.progress.wait_for(over).await.map_err(|_| ClientError::Closed)?;
        if progress.acknowledged >= target {
            return Ok(progress.revision);
        }
        let refused = progress.refused.clone().map(ClientError::Refused);
        Err(refused.or_else(|| progress.failed.clone()).unwrap_or(ClientError::Closed))
    }
}

impl IntoFuture for Acknowledgement {
    type Output = Result<Position, ClientError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.durable())
    }
}
