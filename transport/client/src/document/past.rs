//! What documents were: revisions, names of them, and asking models.

use bytes::Bytes;
use thalweg_protocol::chat::{ChannelAbout, ChannelKind, Post, PostKind};
use thalweg_protocol::document::{AskInDocument, DocumentNews, DocumentOp, Operation, Operations, ReadForm, utf16_len};
use thalweg_protocol::ids::{GenerationId, Name, Position};
use thalweg_protocol::limits::DOCUMENT_BYTES_MAX;
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, ServerOp};
use yrs::updates::decoder::Decode as _;
use yrs::{IdSet, Update};

use super::Assembly;
use super::replica::Replica;
use crate::channel::ChannelOptions;
use crate::client::{AsName, Client};
use crate::entries::Repeat;
use crate::error::ClientError;
use crate::publish::Published;

/// A document as it was at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRead {
    /// The revision.
    pub revision: Position,
    /// What it was, in the form that was asked for.
    pub bytes: Bytes,
}

/// A part of what a document was edited by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// The oldest position there is.
    pub first: Position,
    /// Where the next page begins.
    pub next: Position,
    /// The newest position there is. Once [`next`](Self::next) is beyond it, this was the last page.
    pub head: Position,
    /// What happened, in order.
    pub records: Vec<Record>,
}

/// Something that happened to a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands. That of an edit is the revision it made.
    pub position: Position,
    /// When it was accepted: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// Who did it; for models `ai/` and the model's name.
    pub user: Name,
    /// The generation it is a piece of, if a model did it.
    pub generation: Option<GenerationId>,
    /// What it was.
    pub kind: RecordKind,
}

/// What happened to a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKind {
    /// It was edited, by this Yjs update.
    Edit(Bytes),
    /// A revision was given a name.
    Version {
        /// Which.
        revision: Position,
        /// The name.
        name: String,
    },
    /// A model began to write.
    GenerationStarted,
    /// A model's writing ended.
    GenerationEnded {
        /// Why, for people.
        reason: String,
    },
    /// The node wrote it down as a whole, or something became of its members: no edit.
    Other,
}

impl Record {
    fn of(delivery: Delivery) -> Self {
        let Delivery { position, timestamp_us, kind, user, generation, body, context, .. } = delivery;
        let text = |body: &Bytes| String::from_utf8_lossy(body).into_owned();
        let kind = match kind {
            DeliveryKind::Update => RecordKind::Edit(body),
            DeliveryKind::Version => RecordKind::Version { revision: context.target, name: text(&body) },
            DeliveryKind::GenerationStarted => RecordKind::GenerationStarted,
            DeliveryKind::GenerationEnded => RecordKind::GenerationEnded { reason: text(&body) },
            _ => RecordKind::Other,
        };
        Self { position, timestamp_us, user, generation, kind }
    }
}

/// What a model did in a document, in all.
#[derive(Debug, Clone)]
pub struct ModelEdit {
    pub(super) generation: GenerationId,
    pub(super) insertions: IdSet,
    pub(super) deletions: IdSet,
}

impl ModelEdit {
    /// The model's edit that this is.
    pub fn generation(&self) -> GenerationId {
        self.generation
    }
}

/// A document made again from what it was edited by, edit by edit.
#[derive(Debug)]
pub struct Replay(Replica);

impl Default for Replay {
    fn default() -> Self {
        // Nothing is edited here, so that the id does not matter.
        Self(Replica::new(1))
    }
}

impl Replay {
    /// Takes an update in. Gives what it did to the text.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] if it is no update.
    pub fn apply(&mut self, update: &[u8]) -> Result<Operations, ClientError> {
        Ok(self.0.apply(update, None)?.operations)
    }

    /// The text as it is now.
    pub fn text(&self) -> String {
        self.0.text()
    }
}

/// How much an edit put in and took out, in characters as people count them: UTF-16 code units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Put in.
    pub inserted: u64,
    /// Taken out.
    pub deleted: u64,
}

impl Tally {
    /// Of these operations.
    pub fn of(operations: &Operations) -> Self {
        let mut tally = Self::default();
        for part in operations.parts() {
            match part {
                Operation::Retain(_) => {}
                Operation::Insert(text) => tally.inserted += u64::from(utf16_len(text)),
                Operation::Delete(length) => tally.deleted += u64::from(*length),
            }
        }
        tally
    }
}

impl Client {
    /// Makes an empty document. Whether it is new.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it may not be made, or there is a channel of that name that is no document.
    pub async fn create_document(&self, name: impl AsName) -> Result<bool, ClientError> {
        let about = ChannelAbout { kind: ChannelKind::Document, ..ChannelAbout::default() };
        self.create_channel(name, ChannelOptions { about, ..ChannelOptions::default() }).await
    }

    /// Reads a document as it was at a revision (0: now).
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document or revision, or reading it is forbidden.
    pub async fn read_document(
        &self,
        document: impl AsName,
        revision: Position,
        form: ReadForm,
    ) -> Result<DocumentRead, ClientError> {
        let document = document.as_name("document")?;
        let (mut assembly, mut at, mut offset) = (Assembly::default(), revision, 0);
        loop {
            let op = DocumentOp::Read { document: document.clone(), revision: at, form, offset };
            match self.call(ClientOp::Document(op), Repeat::Again).await? {
                ServerOp::Document(DocumentNews::State { revision, offset: from, total, bytes }) => {
                    if let Some(bytes) = assembly.take(from, total, &bytes)? {
                        return Ok(DocumentRead { revision, bytes });
                    }
                    if bytes.is_empty() {
                        return Err(ClientError::Protocol(format!("an empty part at {from} of {total} bytes")));
                    }
                    (at, offset) = (revision, from + bytes.len() as u64);
                }
                other => return Err(ClientError::unexpected("State", &other)),
            }
        }
    }

    /// The text of a document as it was at a revision (0: now), and that revision.
    ///
    /// # Errors
    /// As [`read_document`](Self::read_document).
    pub async fn read_text(&self, name: impl AsName, revision: Position) -> Result<(Position, String), ClientError> {
        let read = self.read_document(name, revision, ReadForm::Text).await?;
        let text = String::from_utf8(read.bytes.into());
        let text = text.map_err(|_| ClientError::Protocol("the text of a document is not UTF-8".to_owned()))?;
        Ok((read.revision, text))
    }

    /// Reads a part of what a document was edited by: what stands from `from` on (0: from the beginning), at most `limit`
    /// records (0: as many as fit in an answer). A page may hold fewer although there are more: go on at [`LogPage::next`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document, or reading it is forbidden.
    pub async fn document_log(&self, name: impl AsName, from: Position, limit: u32) -> Result<LogPage, ClientError> {
        let channel = name.as_name("document")?;
        match self.call(ClientOp::ReadHistory { channel, from, limit }, Repeat::Again).await? {
            ServerOp::Page { first, next, head, deliveries } => {
                let record = |payload: &Bytes| match ServerOp::decode(payload) {
                    Ok(ServerOp::Delivery(delivery)) => Ok(Record::of(delivery)),
                    Ok(other) => Err(ClientError::unexpected("Delivery", &other)),
                    Err(reject) => Err(ClientError::Protocol(reject.to_string())),
                };
                let records = deliveries.iter().map(record).collect::<Result<_, _>>()?;
                Ok(LogPage { first, next, head, records })
            }
            other => Err(ClientError::unexpected("Page", &other)),
        }
    }

    /// Gives a revision (0: the newest) a name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document or revision, it may not be written, or the name is too long.
    pub async fn name_version(
        &self,
        document: impl AsName,
        revision: Position,
        name: &str,
    ) -> Result<Published, ClientError> {
        self.write(document, name.to_owned().into(), Post { kind: PostKind::Version, target: revision }).await
    }

    /// Makes a document read again as it did at a revision, by a new edit.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document or revision, or it may not be written.
    pub async fn restore_document(&self, document: impl AsName, revision: Position) -> Result<Published, ClientError> {
        self.write(document, Bytes::new(), Post { kind: PostKind::Restore, target: revision }).await
    }

    /// Edits the text of a document by operations that were made on the text of a revision; gives the revision this made.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document, it may not be written, the operations do not fit the text, or the
    /// revision is so old that the node does not know any more what happened since: read it anew.
    pub async fn edit_document(
        &self,
        document: impl AsName,
        revision: Position,
        operations: &Operations,
    ) -> Result<Published, ClientError> {
        let post = Post { kind: PostKind::Operations, target: revision };
        self.write(document, operations.encode(), post).await
    }

    /// Asks that a model write in a document; gives the id of what it writes, with which it can be
    /// [stopped](Self::cancel), and the model. The text comes as edits of the document.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such document or model, it may not be written or asked, or too many models
    /// write in it already.
    pub async fn ask_in_document(&self, ask: AskInDocument) -> Result<(GenerationId, String), ClientError> {
        // Repeated, it would write twice.
        match self.call(ClientOp::Document(DocumentOp::Ask(Box::new(ask))), Repeat::Never).await? {
            ServerOp::Asked { generation, model } => Ok((generation, model)),
            other => Err(ClientError::unexpected("Asked", &other)),
        }
    }

    /// All that a model did in a document after a revision (0: ever), as the node keeps it; for
    /// [`Document::learn`](super::Document::learn).
    ///
    /// # Errors
    /// As [`document_log`](Self::document_log).
    pub async fn model_edit(
        &self,
        document: impl AsName,
        generation: GenerationId,
        after: Position,
    ) -> Result<ModelEdit, ClientError> {
        let document = document.as_name("document")?;
        let mut edit = ModelEdit { generation, insertions: IdSet::new(), deletions: IdSet::new() };
        let (mut from, mut bytes) = (after, 0);
        loop {
            let page = self.document_log(document.clone(), from, 0).await?;
            for record in page.records {
                if let (RecordKind::Edit(update), true) = (record.kind, record.generation == Some(generation)) {
                    bytes += update.len();
                    let broken = |error| ClientError::Protocol(format!("an update of a document: {error}"));
                    let update = Update::decode_v1(&update).map_err(broken)?;
                    edit.insertions.merge_with(update.insertions(true));
                    edit.deletions.merge_with(update.delete_set().clone());
                }
            }
            // No model writes more than a document holds.
            if page.next > page.head || page.next <= from || bytes > DOCUMENT_BYTES_MAX {
                return Ok(edit);
            }
            from = page.next;
        }
    }
}
