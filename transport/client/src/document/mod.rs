//! Documents: text and other shared types that many edit at once.
//!
//! [`Client::document`] opens one. A [`Document`] is a Yjs document of its own that is kept like the node's: edits are made
//! on it at once and sent behind, also while the node is away, and what others edit comes with [`Document::next`]. Nothing
//! that others did is taken in anywhere else, so that offsets stay right between two calls of it. A [`TextSession`] does
//! without Yjs: it sends positional operations on the text and is told such.
//!
//! Offsets and lengths count UTF-16 code units, as editors in browsers do.

mod awareness;
mod handle;
mod line;
mod outbox;
mod past;
mod positional;
mod replica;
mod text_session;
mod write;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use thalweg_protocol::document::{DocumentForm, OpenDocument};
use thalweg_protocol::ids::{GenerationId, Name, Position};
use thalweg_protocol::limits::{DOCUMENT_BYTES_MAX, DOCUMENT_PART_BYTES, LEAD_MESSAGES_MAX, LEAD_UPDATES};
use thalweg_protocol::reject::Reject;
use tokio::sync::{mpsc, oneshot};

use crate::client::{AsName, Client};
use crate::error::ClientError;
use crate::state::documents::{DocumentEntry, Opened};

use line::{Assembly, Heard, Line};

pub use awareness::Other;
pub use handle::Document;
pub use outbox::Acknowledgement;
pub use past::{DocumentRead, LogPage, ModelEdit, Record, RecordKind, Replay, Tally};
pub use positional::Positional;
pub use text_session::TextSession;

/// Room in a reader's queue beyond its lead: all parts of the largest state, and notices that cost no credit.
const NOTICES: usize = DOCUMENT_BYTES_MAX / DOCUMENT_PART_BYTES + 32;

/// Something that became of an open document.
#[derive(Debug, Clone, PartialEq)]
pub enum DocumentEvent {
    /// The text is another one.
    Changed(TextChange),
    /// Others came, went, or moved their cursors: [`Document::others`].
    Others,
    /// A revision was given a name.
    Version {
        /// Where this stands.
        position: Position,
        /// Which revision.
        revision: Position,
        /// The name.
        name: String,
        /// Who named it.
        user: Name,
    },
    /// Everything that was edited up to now is durable.
    Saved {
        /// The newest revision of one's own.
        revision: Position,
    },
    /// The node did not take an own edit. What it has not got is lost with it: the document is read anew, and a
    /// [`Changed`](Self::Changed) says what that means for the text.
    Refused {
        /// Why.
        reject: Reject,
        /// The text as it was with the edits that are lost.
        text: String,
    },
    /// The node is away. Edits are kept, and sent when it is back.
    Offline {
        /// Why.
        reason: String,
    },
    /// The node is back; what others did meanwhile follows.
    Online,
}

/// A change of a document's text by somebody else, or of what was read anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChange {
    /// What leads from the text before to the text now. May be empty: other roots of the document changed.
    pub operations: thalweg_protocol::document::Operations,
    /// The revision that the document has now, own edits that wait apart.
    pub revision: Position,
    /// When its owner accepted it: microseconds since 1970, UTC; 0 if it is not known.
    pub timestamp_us: u64,
    /// Who edited; `None` if it is a catching up with several.
    pub user: Option<Name>,
    /// The model's edit that this is a piece of.
    pub generation: Option<GenerationId>,
}

/// How a document is to be opened.
#[derive(Debug, Clone)]
#[must_use = "a document is opened with `open` or `open_text`"]
pub struct DocumentBuilder {
    client: Client,
    name: Result<Name, ClientError>,
    make: bool,
    lead: u32,
    shown: Option<(String, String)>,
}

impl Client {
    /// Begins to open a document.
    pub fn document(&self, name: impl AsName) -> DocumentBuilder {
        let name = name.as_name("document");
        DocumentBuilder { client: self.clone(), name, make: true, lead: 0, shown: None }
    }
}

impl DocumentBuilder {
    /// Whether to make the document if there is none. By default it is made.
    pub fn make(mut self, make: bool) -> Self {
        self.make = make;
        self
    }

    /// How many edits the node may send ahead of what was taken, at most
    /// [`LEAD_MESSAGES_MAX`]; 0 for the default.
    pub fn lead(mut self, lead: u32) -> Self {
        self.lead = lead;
        self
    }

    /// Be shown to others under this name and in this colour (as browsers write it, `#rrggbb`) as soon as there is a cursor.
    pub fn shown_as(mut self, name: impl Into<String>, colour: impl Into<String>) -> Self {
        self.shown = Some((name.into(), colour.into()));
        self
    }

    /// Opens it, and reads it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document and it may not be made, reading it is forbidden, or the name is
    /// that of a channel that is no document.
    pub async fn open(self) -> Result<Document, ClientError> {
        let (client, shown) = (self.client.clone(), self.shown.clone());
        let name = self.name.clone()?;
        let (line, opened) = client.patiently(|| self.line(DocumentForm::Updates)).await?;
        Document::over(name, line, opened, shown).await
    }

    /// Opens it as text, for positional operations.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_text(self) -> Result<TextSession, ClientError> {
        let client = self.client.clone();
        let name = self.name.clone()?;
        let (line, opened) = client.patiently(|| self.line(DocumentForm::Operations)).await?;
        TextSession::over(name, line, opened).await
    }

    async fn line(&self, form: DocumentForm) -> Result<(Line, Opened), ClientError> {
        let document = self.name.clone()?;
        let lead = if self.lead == 0 { LEAD_UPDATES } else { self.lead.min(LEAD_MESSAGES_MAX) };
        let permit = self.client.permit().await?;
        let (queue_in, queue) = mpsc::channel(lead as usize + NOTICES);
        let (sender, reply) = oneshot::channel();
        let open = OpenDocument { document, state: Bytes::new(), form, make: self.make, lead, known: None };
        let entry = DocumentEntry::new(open, self.client.trace, queue_in, sender, permit);
        let shared = entry.shared();
        let key = self.client.handle.with(|state| {
            self.client.check(state)?;
            Ok(state.open_document(entry))
        })?;
        // Made before the wait, so that giving up the wait gives up the document.
        let line = Line::new(self.client.clone(), key, queue, shared, (lead / 4).max(1));
        Ok(line.opened(reply.await.unwrap_or(Err(ClientError::Closed))?))
    }
}
