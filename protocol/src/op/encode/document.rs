//! Values about documents to FlatBuffers.

use super::{Builder, Offset};
use crate::document::{
    AskInDocument, DocumentAccess, DocumentForm, DocumentNews, DocumentOp, DocumentOperations, Place, ReadForm,
};
use crate::generated::thalweg::wire;

/// How many bytes a request has beside what every frame has.
pub(super) fn request_bytes(op: &DocumentOp) -> usize {
    match op {
        DocumentOp::Open(open) => open.state.len(),
        DocumentOp::Ask(ask) => ask.instruction.len(),
        DocumentOp::ShareAwareness { update, .. } => update.len(),
        DocumentOp::Read { .. } => 0,
    }
}

pub(super) fn build_request(b: &mut Builder, op: &DocumentOp) -> (wire::Op, Offset) {
    match op {
        DocumentOp::Open(open) => {
            let state = (!open.state.is_empty()).then(|| b.create_vector(&open.state));
            let document = Some(b.create_string(open.document.as_str()));
            let form = match open.form {
                DocumentForm::Updates => wire::DocumentForm::Updates,
                DocumentForm::Operations => wire::DocumentForm::Operations,
            };
            let (make, lead, known) = (open.make, open.lead, open.known.map_or(0, |known| known.0));
            table!(b, OpenDocument, wire::OpenDocumentArgs { document, state, form, make, lead, known })
        }
        DocumentOp::Read { document, revision, form, offset } => {
            let document = Some(b.create_string(document.as_str()));
            let form = match form {
                ReadForm::Text => wire::ReadForm::Text,
                ReadForm::State => wire::ReadForm::State,
                ReadForm::Json => wire::ReadForm::Json,
            };
            table!(b, ReadDocument, wire::ReadDocumentArgs { document, revision: revision.0, form, offset: *offset })
        }
        DocumentOp::Ask(ask) => build_ask(b, ask),
        DocumentOp::ShareAwareness { subscription, update } => {
            let update = Some(b.create_vector(update));
            table!(b, ShareAwareness, wire::ShareAwarenessArgs { subscription: subscription.0, update })
        }
    }
}

fn build_ask(b: &mut Builder, ask: &AskInDocument) -> (wire::Op, Offset) {
    let document = Some(b.create_string(ask.document.as_str()));
    let instruction = Some(b.create_string(&ask.instruction));
    let model = ask.model.as_ref().map(|model| b.create_string(model.as_str()));
    let (mut anchors, mut offsets) = ((None, None), (0, 0, 0));
    match &ask.place {
        Place::Anchors { start, end } => anchors = (Some(b.create_vector(start)), Some(b.create_vector(end))),
        Place::Offsets { revision, start, end } => offsets = (revision.0, *start, *end),
    }
    let args = wire::AskInDocumentArgs {
        document,
        instruction,
        model,
        start: anchors.0,
        end: anchors.1,
        revision: offsets.0,
        start_offset: offsets.1,
        end_offset: offsets.2,
        max_tokens: ask.max_tokens,
        temperature: ask.temperature,
        seed: ask.seed.unwrap_or(0),
        has_seed: ask.seed.is_some(),
    };
    table!(b, AskInDocument, args)
}

/// How many bytes news have beside what every frame has.
pub(super) fn news_bytes(news: &DocumentNews) -> usize {
    match news {
        DocumentNews::Opened { vector, .. } => vector.len(),
        DocumentNews::State { bytes, .. } => bytes.len(),
        DocumentNews::Operations(operations) => operations.operations.len(),
        DocumentNews::Awareness { update } => update.len(),
    }
}

pub(super) fn build_news(b: &mut Builder, news: &DocumentNews) -> (wire::Op, Offset) {
    match news {
        DocumentNews::Opened { id, revision, bytes, access, made, vector } => {
            let vector = (!vector.is_empty()).then(|| b.create_vector(vector));
            let access = match access {
                DocumentAccess::Read => wire::DocumentAccess::Read,
                DocumentAccess::Comment => wire::DocumentAccess::Comment,
                DocumentAccess::Write => wire::DocumentAccess::Write,
            };
            let (id, revision, bytes, made) = (id.0, revision.0, *bytes, *made);
            table!(b, DocumentOpened, wire::DocumentOpenedArgs { revision, bytes, access, made, vector, id })
        }
        DocumentNews::State { revision, offset, total, bytes } => {
            let (revision, offset, total) = (revision.0, *offset, *total);
            let bytes = Some(b.create_vector(bytes));
            table!(b, DocumentState, wire::DocumentStateArgs { revision, offset, total, bytes })
        }
        DocumentNews::Operations(news) => {
            let DocumentOperations { from, to, timestamp_us, user, generation, own, operations } = news;
            let operations = Some(b.create_vector(operations));
            let user = Some(b.create_string(user.as_str()));
            let args = wire::DocumentOperationsArgs {
                from: from.0,
                to: to.0,
                timestamp_us: *timestamp_us,
                user,
                generation: generation.map_or(0, |generation| generation.0),
                sequence: own.map_or(0, |sequence| sequence.0),
                operations,
            };
            table!(b, DocumentOperations, args)
        }
        DocumentNews::Awareness { update } => {
            let update = Some(b.create_vector(update));
            table!(b, Awareness, wire::AwarenessArgs { update })
        }
    }
}
