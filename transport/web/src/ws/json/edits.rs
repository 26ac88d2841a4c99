//! What clients say of documents over `/ws`.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use thalweg_protocol::chat::PostKind;
use thalweg_protocol::document::{
    AskInDocument, AwarenessEntry, AwarenessUpdate, DocumentForm, OpenDocument, Operation, Operations, Place, ReadForm,
};
use thalweg_protocol::ids::{Position, Sequence};
use thalweg_protocol::limits::{
    AWARENESS_BYTES_MAX, DOCUMENT_UPDATE_BYTES_MAX, GENERATION_TOKENS_MAX, INSTRUCTION_BYTES_MAX, OPERATIONS_MAX,
    STATE_VECTOR_BYTES_MAX, VERSION_BYTES_MAX,
};
use thalweg_protocol::op::Publish;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::requests::{CreditBy, NUMBER_MAX, bytes_of, invalid, name, within, write};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenFields {
    document: String,
    #[serde(default)]
    form: FormField,
    #[serde(default)]
    state: String,
    #[serde(default)]
    make: bool,
    #[serde(default)]
    pub(super) lead: u32,
    #[serde(default)]
    pub(super) credit: CreditBy,
}

#[derive(Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FormField {
    #[default]
    Operations,
    Updates,
}

impl OpenFields {
    pub(super) fn op(self) -> Result<OpenDocument, Reject> {
        let form = match self.form {
            FormField::Operations => DocumentForm::Operations,
            FormField::Updates => DocumentForm::Updates,
        };
        Ok(OpenDocument {
            document: name("document", &self.document)?,
            state: bytes_of("state", &self.state, STATE_VECTOR_BYTES_MAX)?,
            form,
            make: self.make,
            lead: self.lead,
            known: None,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EditFields {
    document: String,
    update: Option<String>,
    operations: Option<Vec<OperationField>>,
    revision: Option<u64>,
    pub(super) sequence: Option<u64>,
    #[serde(default)]
    retry: bool,
    #[serde(default)]
    make: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OperationField {
    Retain(u32),
    Insert(String),
    Delete(u32),
}

impl EditFields {
    /// Whether it does something again when it is repeated. An update of Yjs does not.
    pub(super) fn repeats(&self) -> bool {
        self.update.is_none()
    }

    pub(super) fn op(self, sequence: Sequence) -> Result<Publish, Reject> {
        let (kind, body, target) = match (self.update, self.operations, self.revision) {
            (Some(update), None, None) => {
                (PostKind::Update, bytes_of("update", &update, DOCUMENT_UPDATE_BYTES_MAX)?, 0)
            }
            (None, Some(parts), Some(revision)) => {
                if parts.len() > OPERATIONS_MAX {
                    let text = format!("operations has {} parts; at most {OPERATIONS_MAX}", parts.len());
                    return Err(Reject::new(RejectCode::OperationsInvalid, text));
                }
                let parts = parts.into_iter().map(|part| match part {
                    OperationField::Retain(length) => Operation::Retain(length),
                    OperationField::Insert(text) => Operation::Insert(text),
                    OperationField::Delete(length) => Operation::Delete(length),
                });
                (PostKind::Operations, Operations::of(parts).encode(), revision)
            }
            _ => return Err(invalid("edit has either update, or operations and the revision they were made at")),
        };
        within("the edit", body.len(), DOCUMENT_UPDATE_BYTES_MAX)?;
        Ok(write(name("document", &self.document)?, sequence, self.retry, self.make, body, kind, target))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VersionFields {
    document: String,
    name: String,
    #[serde(default)]
    revision: u64,
    pub(super) sequence: Option<u64>,
    #[serde(default)]
    retry: bool,
}

impl VersionFields {
    pub(super) fn op(self, sequence: Sequence) -> Result<Publish, Reject> {
        within("name", self.name.len(), VERSION_BYTES_MAX)?;
        let document = name("document", &self.document)?;
        Ok(write(document, sequence, self.retry, false, self.name.into(), PostKind::Version, self.revision))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreFields {
    document: String,
    revision: u64,
    pub(super) sequence: Option<u64>,
    #[serde(default)]
    retry: bool,
}

impl RestoreFields {
    pub(super) fn op(self, sequence: Sequence) -> Result<Publish, Reject> {
        let document = name("document", &self.document)?;
        Ok(write(document, sequence, self.retry, false, Bytes::new(), PostKind::Restore, self.revision))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadFields {
    pub(super) document: String,
    #[serde(default)]
    pub(super) revision: u64,
    #[serde(default)]
    form: ReadFormField,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReadFormField {
    #[default]
    Text,
    State,
    Json,
}

impl ReadFields {
    pub(super) fn form(&self) -> ReadForm {
        match self.form {
            ReadFormField::Text => ReadForm::Text,
            ReadFormField::State => ReadForm::State,
            ReadFormField::Json => ReadForm::Json,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteFields {
    document: String,
    instruction: String,
    #[serde(default)]
    revision: u64,
    start: u32,
    end: Option<u32>,
    model: Option<String>,
    #[serde(default)]
    max_tokens: u32,
    #[serde(default)]
    temperature: f32,
    seed: Option<u64>,
}

impl WriteFields {
    pub(super) fn op(self) -> Result<AskInDocument, Reject> {
        within("instruction", self.instruction.len(), INSTRUCTION_BYTES_MAX)?;
        let end = self.end.unwrap_or(self.start);
        if end < self.start {
            return Err(invalid(format!("start is {}, behind end, which is {end}", self.start)));
        }
        if !(0.0..=10.0).contains(&self.temperature) {
            return Err(invalid(format!("temperature is {}; 0 to 10", self.temperature)));
        }
        if self.max_tokens > GENERATION_TOKENS_MAX {
            return Err(invalid(format!("max_tokens is {}; at most {GENERATION_TOKENS_MAX}", self.max_tokens)));
        }
        Ok(AskInDocument {
            document: name("document", &self.document)?,
            instruction: self.instruction,
            model: self.model.map(|model| name("model", &model)).transpose()?,
            place: Place::Offsets { revision: Position(self.revision), start: self.start, end },
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AwarenessFields {
    pub(super) subscription: u64,
    client: u64,
    clock: u64,
    #[serde(default)]
    state: Value,
}

impl AwarenessFields {
    /// The update that says so.
    pub(super) fn update(&self) -> Result<Bytes, Reject> {
        if self.client > NUMBER_MAX || self.clock > NUMBER_MAX {
            return Err(invalid(format!("client and clock are at most {NUMBER_MAX}")));
        }
        let state = (!self.state.is_null()).then(|| Bytes::from(self.state.to_string()));
        let entry = AwarenessEntry { client: self.client, clock: self.clock, state };
        let update = AwarenessUpdate { entries: vec![entry] }.encode();
        within("state", update.len(), AWARENESS_BYTES_MAX)?;
        Ok(update)
    }
}
