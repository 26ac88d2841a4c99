//! FlatBuffers about documents to values.

use bytes::Bytes;

use super::{body, invalid, name, text_within};
use crate::document::{
    AskInDocument, DocumentAccess, DocumentForm, DocumentNews, DocumentOp, DocumentOperations, OpenDocument, Place,
    ReadForm,
};
use crate::generated::thalweg::wire;
use crate::ids::{ChannelId, GenerationId, Position, Sequence, Subscription};
use crate::limits::{AWARENESS_BYTES_MAX, GENERATION_TOKENS_MAX, INSTRUCTION_BYTES_MAX, STATE_VECTOR_BYTES_MAX};
use crate::reject::{Reject, RejectCode};

/// Longest encoded relative position: the name of a root, or an id of two numbers, and a sign.
const ANCHOR_BYTES_MAX: usize = 256;

fn bytes_within(
    payload: &Bytes,
    field: &str,
    bytes: Option<flatbuffers::Vector<'_, u8>>,
    bytes_max: usize,
) -> Result<Bytes, Reject> {
    let bytes = body(payload, bytes);
    if bytes.len() > bytes_max {
        let text = format!("{field} has {} bytes; at most {bytes_max} are allowed", bytes.len());
        return Err(Reject::new(RejectCode::ParameterInvalid, text));
    }
    Ok(bytes)
}

/// Reads a request about documents; `None` if the frame holds none.
pub(super) fn read_request(payload: &Bytes, frame: &wire::Frame<'_>) -> Result<Option<DocumentOp>, Reject> {
    Ok(Some(match frame.op_type() {
        wire::Op::OpenDocument => {
            let table = table!(frame, op_as_open_document);
            DocumentOp::Open(OpenDocument {
                document: name("document", table.document())?,
                state: bytes_within(payload, "state", table.state(), STATE_VECTOR_BYTES_MAX)?,
                form: match table.form() {
                    wire::DocumentForm::Updates => DocumentForm::Updates,
                    wire::DocumentForm::Operations => DocumentForm::Operations,
                    other => return Err(invalid(format!("form is {}; 0 or 1", other.0))),
                },
                make: table.make(),
                lead: table.lead(),
                known: Some(ChannelId(table.known())).filter(|known| known.0 != 0),
            })
        }
        wire::Op::ReadDocument => {
            let table = table!(frame, op_as_read_document);
            DocumentOp::Read {
                document: name("document", table.document())?,
                revision: Position(table.revision()),
                form: match table.form() {
                    wire::ReadForm::Text => ReadForm::Text,
                    wire::ReadForm::State => ReadForm::State,
                    wire::ReadForm::Json => ReadForm::Json,
                    other => return Err(invalid(format!("form is {}; 0 to 2", other.0))),
                },
                offset: table.offset(),
            }
        }
        wire::Op::AskInDocument => DocumentOp::Ask(Box::new(read_ask(payload, &table!(frame, op_as_ask_in_document))?)),
        wire::Op::ShareAwareness => {
            let table = table!(frame, op_as_share_awareness);
            DocumentOp::ShareAwareness {
                subscription: Subscription(table.subscription()),
                update: bytes_within(payload, "update", table.update(), AWARENESS_BYTES_MAX)?,
            }
        }
        _ => return Ok(None),
    }))
}

fn read_ask(payload: &Bytes, table: &wire::AskInDocument<'_>) -> Result<AskInDocument, Reject> {
    let temperature = table.temperature();
    if !(0.0..=10.0).contains(&temperature) {
        let text = format!("temperature is {temperature}; 0 to 10");
        return Err(Reject::new(RejectCode::ParameterInvalid, text));
    }
    if table.max_tokens() > GENERATION_TOKENS_MAX {
        let text = format!("max_tokens is {}; at most {GENERATION_TOKENS_MAX}", table.max_tokens());
        return Err(Reject::new(RejectCode::ParameterInvalid, text));
    }
    let (start, end) = (
        bytes_within(payload, "start", table.start(), ANCHOR_BYTES_MAX)?,
        bytes_within(payload, "end", table.end(), ANCHOR_BYTES_MAX)?,
    );
    let place = match (start.is_empty(), end.is_empty()) {
        (false, false) => Place::Anchors { start, end },
        (true, true) => {
            let (start, end) = (table.start_offset(), table.end_offset());
            if start > end {
                let text = format!("start_offset is {start}, behind end_offset, which is {end}");
                return Err(Reject::new(RejectCode::ParameterInvalid, text));
            }
            Place::Offsets { revision: Position(table.revision()), start, end }
        }
        _ => {
            let text = "one of start and end is given; give both, or neither and offsets";
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        }
    };
    Ok(AskInDocument {
        document: name("document", table.document())?,
        instruction: text_within("instruction", table.instruction(), INSTRUCTION_BYTES_MAX)?,
        model: table.model().map(|model| name("model", Some(model))).transpose()?,
        place,
        max_tokens: table.max_tokens(),
        temperature,
        seed: table.has_seed().then(|| table.seed()),
    })
}

/// Reads news about documents; `None` if the frame holds none.
pub(super) fn read_news(payload: &Bytes, frame: &wire::Frame<'_>) -> Result<Option<DocumentNews>, Reject> {
    Ok(Some(match frame.op_type() {
        wire::Op::DocumentOpened => {
            let table = table!(frame, op_as_document_opened);
            DocumentNews::Opened {
                id: ChannelId(table.id()),
                revision: Position(table.revision()),
                bytes: table.bytes(),
                access: match table.access() {
                    wire::DocumentAccess::Read => DocumentAccess::Read,
                    wire::DocumentAccess::Comment => DocumentAccess::Comment,
                    wire::DocumentAccess::Write => DocumentAccess::Write,
                    other => return Err(invalid(format!("access is {}; 0 to 2", other.0))),
                },
                made: table.made(),
                vector: body(payload, table.vector()),
            }
        }
        wire::Op::DocumentState => {
            let table = table!(frame, op_as_document_state);
            let (offset, total, bytes) = (table.offset(), table.total(), body(payload, table.bytes()));
            if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > total) {
                let text = format!("a part of {} bytes at {offset} does not fit in {total}", bytes.len());
                return Err(invalid(text));
            }
            DocumentNews::State { revision: Position(table.revision()), offset, total, bytes }
        }
        wire::Op::DocumentOperations => {
            let table = table!(frame, op_as_document_operations);
            DocumentNews::Operations(DocumentOperations {
                from: Position(table.from()),
                to: Position(table.to()),
                timestamp_us: table.timestamp_us(),
                user: name("user", table.user())?,
                generation: Some(GenerationId(table.generation())).filter(|generation| generation.0 != 0),
                own: Some(Sequence(table.sequence())).filter(|sequence| sequence.0 != 0),
                operations: body(payload, table.operations()),
            })
        }
        wire::Op::Awareness => {
            DocumentNews::Awareness { update: body(payload, table!(frame, op_as_awareness).update()) }
        }
        _ => return Ok(None),
    }))
}
