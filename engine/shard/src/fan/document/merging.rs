//! Edits of a document in the form of its readers: one by one, or several in one for those who are behind.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::document::merge;
use thalweg_domain::record::Message;
use thalweg_protocol::chat::Context;
use thalweg_protocol::document::{DocumentForm, DocumentNews, DocumentOperations, Operation, Operations};
use thalweg_protocol::ids::{Position, SessionId};
use thalweg_protocol::limits::OPERATIONS_MAX;
use thalweg_protocol::op::{Delivery, DeliveryKind, ServerOp};

use super::super::Entry;

/// Merged edits of one document that are kept for other readers who lack the same.
const MERGES_KEPT: usize = 8;
/// Bytes of edits merged into one; what is beyond comes in the next.
const MERGE_BYTES: usize = 256 << 10;

/// Merged edits, newest last.
#[derive(Default)]
pub(super) struct Merges {
    kept: VecDeque<Merge>,
}

struct Merge {
    form: DocumentForm,
    from: Position,
    to: Position,
    payload: Bytes,
}

impl Merges {
    /// Lets go of those that everybody has who lacks no more than what begins at `needed`.
    pub(super) fn forget_before(&mut self, needed: Position) {
        self.kept.retain(|kept| kept.to >= needed);
    }

    /// One frame of all edits from `place` in the tail on, as far as they can be told as one, and the last of them; `None` if
    /// that is only the first.
    pub(super) fn merged(
        &mut self,
        tail: &VecDeque<Entry>,
        place: usize,
        form: DocumentForm,
        own: SessionId,
        made: &mut u64,
    ) -> Option<(Bytes, Position)> {
        let mut bytes = 0;
        let mut edits: Vec<&Entry> = Vec::new();
        let mut does = Does::default();
        for entry in tail.range(place..) {
            match entry.message.kind {
                DeliveryKind::Update => {}
                // Who reads it is to know which revision has that name.
                DeliveryKind::Version => break,
                _ => continue,
            }
            let size = match (form, &entry.edit) {
                (DocumentForm::Updates, _) => entry.message.body.len(),
                // The reader is to know where in the order its own edits stand.
                (DocumentForm::Operations, Some(edit)) if entry.message.session != own || !edit.is_positional => {
                    does = does.and(&edit.operations);
                    edit.operations.len()
                }
                (DocumentForm::Operations, _) => break,
            };
            if does.inserts && does.deletes {
                break;
            }
            if !edits.is_empty() && bytes + size > MERGE_BYTES {
                break;
            }
            bytes += size;
            edits.push(entry);
        }
        let ([first, .., last], from) = (&edits[..], edits.first()?.message.position) else { return None };
        let to = last.message.position;
        if let Some(kept) = self.kept.iter().find(|kept| (kept.form, kept.from, kept.to) == (form, from, to)) {
            return Some((kept.payload.clone(), to));
        }
        debug_assert!(first.message.position < to);
        let payload = match form {
            DocumentForm::Updates => merged_updates(&edits)?,
            DocumentForm::Operations => composed(&edits)?,
        };
        *made += 1;
        if self.kept.len() == MERGES_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Merge { form, from, to, payload: payload.clone() });
        Some((payload, to))
    }
}

fn merged_updates(edits: &[&Entry]) -> Option<Bytes> {
    let (first, last) = (&edits.first()?.message, &edits.last()?.message);
    let bodies: Vec<_> = edits.iter().map(|edit| edit.message.body.clone()).collect();
    // What cannot be merged is told one by one.
    let body = merge(&bodies).ok()?;
    let delivery = Delivery {
        position: last.position,
        timestamp_us: last.timestamp_us,
        kind: DeliveryKind::Update,
        user: last.user.clone(),
        generation: generation_of(edits),
        body,
        key: 0,
        context: Context { target: first.position, number: last.context.number, ..Context::default() },
    };
    Some(ServerOp::Delivery(delivery).encode())
}

/// What edits that are told as one do to the text. Who has an edit of its own under way moves that by what it is told; were
/// insertions told in one with deletions, which may take the place that they were at, it would move it otherwise than the
/// owner does, who knows one after the other.
#[derive(Debug, Clone, Copy, Default)]
struct Does {
    inserts: bool,
    deletes: bool,
}

impl Does {
    /// And what encoded operations do; those that cannot be read do both.
    fn and(self, operations: &[u8]) -> Self {
        let Ok(operations) = Operations::decode(operations) else { return Self { inserts: true, deletes: true } };
        let parts = operations.parts();
        Self {
            inserts: self.inserts || parts.iter().any(|part| matches!(part, Operation::Insert(_))),
            deletes: self.deletes || parts.iter().any(|part| matches!(part, Operation::Delete(_))),
        }
    }
}

/// The generation that all of the edits belong to, if there is one.
fn generation_of(edits: &[&Entry]) -> Option<thalweg_protocol::ids::GenerationId> {
    let first = edits.first()?.message.generation?;
    edits.iter().all(|edit| edit.message.generation == Some(first)).then_some(first)
}

fn composed(edits: &[&Entry]) -> Option<Bytes> {
    let mut whole = Operations::new();
    for edit in edits {
        whole = whole.compose(&Operations::decode(&edit.edit.as_ref()?.operations).ok()?);
        if whole.parts().len() > OPERATIONS_MAX {
            return None;
        }
    }
    let (first, last) = (&edits.first()?.message, &edits.last()?.message);
    let news = operations_of(last, first.position, generation_of(edits), whole.encode());
    Some(ServerOp::Document(DocumentNews::Operations(news)).encode())
}

fn operations_of(
    last: &Message,
    from: Position,
    generation: Option<thalweg_protocol::ids::GenerationId>,
    operations: Bytes,
) -> DocumentOperations {
    DocumentOperations {
        from,
        to: last.position,
        timestamp_us: last.timestamp_us,
        user: last.user.clone(),
        generation,
        own: None,
        operations,
    }
}

/// Whether the writer of an edit made it of operations, and needs no more than to be told where it stands. What a session sent
/// as an update, or had put back, its readers of operations are told as anybody is.
pub(super) fn is_positional(entry: &Entry) -> bool {
    entry.edit.as_ref().is_some_and(|edit| edit.is_positional)
}

/// The frame that tells the writer of an edit where it stands in the order.
pub(super) fn own_frame(message: &Arc<Message>) -> Bytes {
    let mut news = operations_of(message, message.position, message.generation, Bytes::new());
    news.own = Some(message.sequence);
    ServerOp::Document(DocumentNews::Operations(news)).encode()
}

/// The frame that tells readers of operations of an edit, made once; `None` if it is not known what it does to the text, or
/// that is more than one may be told at once.
pub(super) fn operations_frame(entry: &mut Entry) -> Option<Bytes> {
    if let Some(frame) = &entry.frame {
        return Some(frame.clone());
    }
    let operations = entry.edit.as_ref().map(|edit| &edit.operations);
    let operations = operations.filter(|operations| Operations::decode(operations).is_ok())?;
    let message = &entry.message;
    let news = operations_of(message, message.position, message.generation, operations.clone());
    let frame = ServerOp::Document(DocumentNews::Operations(news)).encode();
    entry.frame = Some(frame.clone());
    Some(frame)
}
