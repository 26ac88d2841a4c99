//! What leads from the node to an open document, over however many connections and openings.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use thalweg_protocol::document::DocumentOperations;
use thalweg_protocol::ids::Position;
use thalweg_protocol::limits::{DOCUMENT_BYTES_MAX, STATE_VECTOR_BYTES_MAX};
use thalweg_protocol::op::Delivery;
use tokio::sync::{mpsc, watch};

use crate::client::{Client, ConnectionState};
use crate::entries::Failure;
use crate::error::ClientError;
use crate::state::documents::{Incoming, Numbered, Opened};

/// What is heard of an open document.
#[derive(Debug)]
pub(super) enum Heard {
    /// It was opened again; whether it was told that the node was away.
    Opened {
        opened: Opened,
        was_away: bool,
    },
    /// A state, whole.
    State {
        revision: Position,
        bytes: Bytes,
    },
    /// An update, or a version.
    Delivery(Box<Delivery>),
    Operations(Box<DocumentOperations>),
    Awareness(Bytes),
    /// The node is away.
    Offline {
        reason: String,
    },
}

/// What leads from the node to an open document. Dropping it closes the document.
pub(super) struct Line {
    pub(super) client: Client,
    pub(super) key: u64,
    queue: mpsc::Receiver<Numbered>,
    known: Arc<Mutex<Bytes>>,
    failure: Failure,
    connection: watch::Receiver<ConnectionState>,
    is_online: bool,
    /// The opening that is read. What comes of an earlier one is stale: it may stand on what the reader has no more.
    opening: u64,
    assembly: Assembly,
    /// Whether the state that follows that opening was handed out.
    is_read: bool,
    unreported: u32,
    report_every: u32,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("key", &self.key).field("opening", &self.opening).finish_non_exhaustive()
    }
}

impl Line {
    /// Of a document that was asked for; what the reader is told is counted, and the node told after so many.
    pub(super) fn new(
        client: Client,
        key: u64,
        queue: mpsc::Receiver<Numbered>,
        (known, failure): (Arc<Mutex<Bytes>>, Failure),
        report_every: u32,
    ) -> Self {
        let connection = client.connection();
        Self {
            client,
            key,
            queue,
            known,
            failure,
            connection,
            is_online: true,
            opening: 0,
            assembly: Assembly::default(),
            is_read: false,
            unreported: 0,
            report_every,
        }
    }

    /// It was opened for the first time.
    pub(super) fn opened(mut self, opened: Opened) -> (Self, Opened) {
        (self.opening, self.is_read) = (opened.opening, opened.bytes == 0);
        (self, opened)
    }

    /// Waits for what comes next: of the document only if it `takes` that, and of the connection. `None`: nothing more comes.
    /// Cancel-safe.
    pub(super) async fn next(&mut self, takes: bool) -> Result<Option<Heard>, ClientError> {
        loop {
            tokio::select! {
                incoming = self.queue.recv(), if takes => match incoming {
                    None => return Ok(None),
                    Some((opening, _)) if opening < self.opening => {}
                    Some((opening, incoming)) => {
                        if let Some(heard) = self.hear(opening, incoming)? {
                            return Ok(Some(heard));
                        }
                    }
                },
                Ok(()) = self.connection.changed() => {
                    if let Some(reason) = self.lost() {
                        return Ok(Some(Heard::Offline { reason }));
                    }
                }
                else => std::future::pending::<()>().await,
            }
        }
    }

    fn hear(&mut self, opening: u64, incoming: Incoming) -> Result<Option<Heard>, ClientError> {
        if opening > self.opening {
            self.opening = opening;
            self.assembly = Assembly::default();
            // If the queue had no room to tell of the opening: edits come after the state.
            self.is_read = matches!(incoming, Incoming::Delivery(_) | Incoming::Operations(_));
        }
        Ok(Some(match incoming {
            Incoming::Opened(opened) => {
                self.assembly = Assembly::default();
                self.is_read = opened.bytes == 0;
                Heard::Opened { opened, was_away: !std::mem::replace(&mut self.is_online, true) }
            }
            Incoming::State { revision, offset, total, bytes } => {
                let Some(bytes) = self.assembly.take(offset, total, &bytes)? else { return Ok(None) };
                self.is_read = true;
                self.report(revision);
                Heard::State { revision, bytes }
            }
            Incoming::Delivery(delivery) => Heard::Delivery(delivery),
            Incoming::Operations(operations) => Heard::Operations(operations),
            Incoming::Awareness(update) => Heard::Awareness(update),
        }))
    }

    /// Why the node is away, if it is and that was not told.
    fn lost(&mut self) -> Option<String> {
        let reason = match &*self.connection.borrow_and_update() {
            ConnectionState::Connected { .. } | ConnectionState::Closed { .. } => return None,
            ConnectionState::Leaving { .. } => "the node goes away for a while".to_owned(),
            ConnectionState::Reconnecting { reason, .. } => reason.clone(),
        };
        std::mem::replace(&mut self.is_online, false).then_some(reason)
    }

    /// Whether the node is there, as far as was told.
    pub(super) fn is_online(&self) -> bool {
        self.is_online
    }

    /// Whether the reader was given the state of the newest opening.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// Says what the reader has, for the next connection.
    pub(super) fn know(&self, state_vector: Bytes) {
        // One that the node would not take is none: all is sent again then.
        let state_vector = if state_vector.len() > STATE_VECTOR_BYTES_MAX { Bytes::new() } else { state_vector };
        *self.known.lock().expect("nothing panics under this lock") = state_vector;
    }

    /// Counts an edit that was taken, and tells the node every now and then.
    pub(super) fn consumed(&mut self, position: Position) {
        self.unreported += 1;
        if self.unreported >= self.report_every {
            self.report(position);
        }
    }

    fn report(&mut self, position: Position) {
        self.unreported = 0;
        self.client.handle.with(|state| state.document_consumed(self.key, position));
    }

    /// Has it opened anew, with what the reader says it has. Nothing of earlier openings is told any more.
    pub(super) fn reopen(&mut self) {
        if let Some(opening) = self.client.handle.with(|state| state.reopen_document(self.key)) {
            (self.opening, self.is_read) = (opening, false);
            self.assembly = Assembly::default();
        }
    }

    /// Why nothing more comes; `Closed` if that was asked for.
    pub(super) fn end(&self) -> ClientError {
        self.failure.get().cloned().unwrap_or(ClientError::Closed)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.client.handle.with(|state| state.close_document(self.key));
    }
}

/// A state that comes in parts.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    bytes: BytesMut,
}

impl Assembly {
    /// Takes a part. Gives the whole once it is complete.
    pub(super) fn take(&mut self, offset: u64, total: u64, part: &Bytes) -> Result<Option<Bytes>, ClientError> {
        if offset == 0 {
            self.bytes.clear();
        }
        let limit = 4 * DOCUMENT_BYTES_MAX as u64;
        if offset != self.bytes.len() as u64 || offset + part.len() as u64 > total || total > limit {
            let text =
                format!("bytes from {offset} on of a state of {total} came when {} were there", self.bytes.len());
            return Err(ClientError::Protocol(text));
        }
        self.bytes.extend_from_slice(part);
        Ok((self.bytes.len() as u64 == total).then(|| self.bytes.split().freeze()))
    }
}
