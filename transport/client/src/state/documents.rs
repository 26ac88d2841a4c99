//! Documents that are open: asking for them on every connection, and what comes on their lanes.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use thalweg_protocol::document::{DocumentAccess, DocumentNews, DocumentOp, DocumentOperations, OpenDocument};
use thalweg_protocol::ids::{Position, Subscription};
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, ServerOp};
use thalweg_protocol::reject::Reject;
use thalweg_protocol::trace::TraceContext;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

use super::{FullQueue, Handled, Link, State, Target};
use crate::entries::{Failure, Reply};
use crate::error::ClientError;

/// How a document was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Which opening this answers; they are counted from 1.
    pub(crate) opening: u64,
    pub(crate) revision: Position,
    /// Bytes of state that follow.
    pub(crate) bytes: u64,
    pub(crate) access: DocumentAccess,
    pub(crate) made: bool,
    /// The Yjs state vector of that revision.
    pub(crate) vector: Bytes,
}

/// What comes of an open document, in its order.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// It was opened again, on another connection or because it was asked for anew.
    Opened(Opened),
    State {
        revision: Position,
        offset: u64,
        total: u64,
        bytes: Bytes,
    },
    /// An update, or a version.
    Delivery(Box<Delivery>),
    Operations(Box<DocumentOperations>),
    Awareness(Bytes),
}

/// What comes, and of which opening.
pub(crate) type Numbered = (u64, Incoming);

/// A document that is open: it stays until its reader is gone, however many connections that takes.
pub(crate) struct DocumentEntry {
    open: OpenDocument,
    /// The state vector of what the reader has, as it is asked with on the next connection.
    known: Arc<Mutex<Bytes>>,
    trace: Option<TraceContext>,
    queue: mpsc::Sender<Numbered>,
    failure: Failure,
    first: Option<Reply<Opened>>,
    permit: Option<OwnedSemaphorePermit>,
    /// How often the node was asked to open it.
    openings: u64,
    /// Its number on this connection.
    wire: Option<u32>,
    /// Whether it was answered on this connection.
    confirmed: bool,
    confirm: Arc<Notify>,
}

impl DocumentEntry {
    pub(crate) fn new(
        open: OpenDocument,
        trace: Option<TraceContext>,
        queue: mpsc::Sender<Numbered>,
        first: Reply<Opened>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            open,
            known: Arc::default(),
            trace,
            queue,
            failure: Failure::default(),
            first: Some(first),
            permit: Some(permit),
            openings: 0,
            wire: None,
            confirmed: false,
            confirm: Arc::default(),
        }
    }

    /// Where the reader notes what it has, and where it finds why nothing more comes.
    pub(crate) fn shared(&self) -> (Arc<Mutex<Bytes>>, Failure) {
        (self.known.clone(), self.failure.clone())
    }

    /// Tells the reader that nothing more comes, after what is in its queue.
    pub(crate) fn end(self, error: ClientError) {
        let _ = self.failure.set(error.clone());
        if let Some(first) = self.first {
            let _ = first.send(Err(error));
        }
        self.confirm.notify_one();
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        (self.wire, self.confirmed) = (None, false);
        self.confirm.notify_one();
    }
}

impl State {
    pub(crate) fn open_document(&mut self, entry: DocumentEntry) -> u64 {
        let key = self.key();
        self.documents.insert(key, entry);
        self.enqueue(Target::Open(key));
        key
    }

    /// Opens it anew on this connection, with what its reader has now. Gives the number of that opening; `None` if there is
    /// no such document any more.
    pub(crate) fn reopen_document(&mut self, key: u64) -> Option<u64> {
        let entry = self.documents.get_mut(&key)?;
        entry.confirmed = false;
        let (wire, opening) = (entry.wire.take(), entry.openings + 1);
        if let Some(wire) = wire {
            self.document_keys.remove(&wire);
            self.enqueue(Target::Unsubscribe(wire));
        }
        self.enqueue(Target::Open(key));
        Some(opening)
    }

    /// Forgets a document and tells the node.
    pub(crate) fn close_document(&mut self, key: u64) {
        let Some(entry) = self.documents.remove(&key) else { return };
        if let Some(wire) = entry.wire {
            self.document_keys.remove(&wire);
            self.enqueue(Target::Unsubscribe(wire));
        }
    }

    /// Reports that everything up to `position` was taken.
    pub(crate) fn document_consumed(&mut self, key: u64, position: Position) {
        if let Some(wire) = self.documents.get(&key).filter(|entry| entry.confirmed).and_then(|entry| entry.wire) {
            self.write(0, &ClientOp::Consumed { subscription: Subscription(wire), position }, None);
        }
    }

    /// Tells other readers about this one. Whether there was somebody to tell it to.
    pub(crate) fn share_awareness(&mut self, key: u64, update: Bytes) -> bool {
        let Some(entry) = self.documents.get(&key).filter(|entry| entry.confirmed) else { return false };
        let Some(wire) = entry.wire.filter(|_| self.link == Link::Up) else { return false };
        let op = DocumentOp::ShareAwareness { subscription: Subscription(wire), update };
        self.write(0, &ClientOp::Document(op), None);
        true
    }

    pub(super) fn transmit_open(&mut self, key: u64) {
        // It may have been opened on this connection since this was put in the backlog.
        let Some(entry) = self.documents.get(&key).filter(|entry| entry.wire.is_none()) else { return };
        let state = entry.known.lock().expect("nothing panics under this lock").clone();
        let open = OpenDocument { state, ..entry.open.clone() };
        let trace = entry.trace.filter(|_| entry.first.is_some());
        let wire = self.send(Target::Open(key), &ClientOp::Document(DocumentOp::Open(open)), trace);
        self.document_keys.insert(wire, key);
        let entry = self.documents.get_mut(&key).expect("looked up above");
        entry.wire = Some(wire);
        entry.openings += 1;
    }

    /// The answer to an opening.
    pub(super) fn opened(&mut self, wire: u32, key: u64, op: ServerOp) -> Result<(), ClientError> {
        let current = self.documents.get(&key).is_some_and(|entry| entry.wire == Some(wire));
        match op {
            ServerOp::Document(DocumentNews::Opened { id, revision, bytes, access, made, vector }) => {
                let Some(entry) = self.documents.get_mut(&key).filter(|_| current) else { return Ok(()) };
                let opened = Opened { opening: entry.openings, revision, bytes, access, made, vector };
                // From now on it is this document: not another that is made under its name, should it be deleted.
                (entry.open.make, entry.open.known) = (false, Some(id));
                entry.confirmed = true;
                entry.permit = None;
                match entry.first.take() {
                    Some(first) => drop(first.send(Ok(opened))),
                    None => {
                        if entry.queue.try_send((entry.openings, Incoming::Opened(opened))).is_err() {
                            tracing::debug!(document = %entry.open.document, "a reopening was not told: the queue is full");
                        }
                    }
                }
                entry.confirm.notify_one();
                Ok(())
            }
            ServerOp::Reject(reject) => {
                self.document_keys.remove(&wire);
                if let Some(entry) = self.documents.remove(&key) {
                    entry.end(ClientError::Refused(reject));
                }
                Ok(())
            }
            other => Err(ClientError::unexpected("Opened", &other)),
        }
    }

    /// The node ended the reading of a document.
    pub(super) fn document_ended(&mut self, wire: u32, reject: Reject) {
        if let Some(entry) = self.document_keys.remove(&wire).and_then(|key| self.documents.remove(&key)) {
            entry.end(ClientError::Ended(reject));
        }
    }

    /// A frame of a document's lane.
    pub(super) fn document_frame(&mut self, wire: u32, op: ServerOp) -> Result<Handled, ClientError> {
        let Some(entry) = self.document_keys.get(&wire).and_then(|key| self.documents.get(key)) else {
            // It can be under way when its reader closes it.
            return Ok(Handled::Done);
        };
        if !entry.confirmed {
            return Ok(Handled::Unsettled(entry.confirm.clone()));
        }
        let incoming = match op {
            ServerOp::Delivery(delivery) if matches!(delivery.kind, DeliveryKind::Update | DeliveryKind::Version) => {
                Incoming::Delivery(Box::new(delivery))
            }
            ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
                Incoming::State { revision, offset, total, bytes }
            }
            ServerOp::Document(DocumentNews::Operations(operations)) => Incoming::Operations(Box::new(operations)),
            ServerOp::Document(DocumentNews::Awareness { update }) => Incoming::Awareness(update),
            // Something that a newer node tells of its documents.
            ServerOp::Delivery(_) => return Ok(Handled::Done),
            other => return Err(ClientError::unexpected("news of a document", &other)),
        };
        match entry.queue.try_send((entry.openings, incoming)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(Handled::Done),
            Err(mpsc::error::TrySendError::Full(incoming)) => {
                Ok(Handled::Full(FullQueue::Document(entry.queue.clone(), incoming)))
            }
        }
    }
}
