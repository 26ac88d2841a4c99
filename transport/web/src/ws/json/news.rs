//! What clients are told over `/ws`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use thalweg_protocol::document::{AwarenessUpdate, DocumentOperations, Operation, Operations, ReadForm};
use thalweg_protocol::op::{Delivery, DeliveryKind, ServerOp, Welcome};
use thalweg_protocol::reject::Reject;

/// A message under way: an object with its type.
pub(super) struct News(Map<String, Value>);

impl News {
    pub(super) fn new(kind: &str) -> Self {
        Self(Map::from_iter([("type".to_owned(), Value::from(kind))]))
    }

    #[must_use]
    pub(super) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.insert(field.to_owned(), value.into());
        self
    }

    /// With a field, if there is a value for it.
    #[must_use]
    pub(super) fn perhaps(self, field: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(field, value),
            None => self,
        }
    }

    /// With bytes: as text if they are, in base64 if not.
    #[must_use]
    fn body(self, bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.with("text", text),
            Err(_) => self.with("base64", BASE64.encode(bytes)),
        }
    }

    #[must_use]
    pub(super) fn base64(self, field: &str, bytes: &[u8]) -> Self {
        self.with(field, BASE64.encode(bytes))
    }

    pub(super) fn text(self) -> String {
        Value::Object(self.0).to_string()
    }
}

pub(super) fn welcome(welcome: &Welcome) -> News {
    News::new("welcome")
        .with("session", welcome.session.to_string())
        .with("epoch", welcome.epoch.0)
        .with("tenant", welcome.tenant.as_str())
        .with("user", welcome.user.as_str())
        .with("server", welcome.server.as_str())
        .with("models", welcome.models.clone())
}

/// Something that is refused; of what, says the caller.
pub(super) fn error(kind: &str, reject: &Reject) -> News {
    let again = (reject.retry_after_ms > 0).then_some(reject.retry_after_ms);
    let news = News::new(kind).with("code", reject.code.as_str()).with("message", &*reject.message);
    news.perhaps("retry_after_ms", again)
}

fn kind_of(kind: DeliveryKind) -> &'static str {
    match kind {
        DeliveryKind::Message => "message",
        DeliveryKind::Tokens => "tokens",
        DeliveryKind::GenerationStarted => "generation_started",
        DeliveryKind::GenerationEnded => "generation_ended",
        DeliveryKind::Edit => "edit",
        DeliveryKind::Redaction => "redaction",
        DeliveryKind::Reaction => "reaction",
        DeliveryKind::Unreaction => "unreaction",
        DeliveryKind::Membership => "membership",
        DeliveryKind::Info => "info",
        DeliveryKind::Update => "update",
        DeliveryKind::Snapshot => "snapshot",
        DeliveryKind::Version => "version",
    }
}

/// A record of a channel, as a message of its own or within a page.
pub(super) fn delivery(delivery: &Delivery) -> News {
    let context = &delivery.context;
    let target = Some(context.target.0).filter(|target| *target > 0);
    let mentions: Vec<_> = context.mentions.iter().map(ToString::to_string).collect();
    let news = News::new("message")
        .with("kind", kind_of(delivery.kind))
        .with("position", delivery.position.0)
        .with("timestamp_us", delivery.timestamp_us)
        .with("user", delivery.user.as_str())
        .with("number", context.number)
        .perhaps("generation", delivery.generation.map(|generation| generation.to_string()))
        .perhaps("target", target)
        .perhaps("mentions", (!mentions.is_empty()).then_some(mentions))
        .perhaps("role", context.role.map(thalweg_protocol::chat::MemberRole::as_str))
        .perhaps("redacted", context.redacted.then_some(true));
    match delivery.kind {
        DeliveryKind::Update | DeliveryKind::Snapshot => news.base64("base64", &delivery.body),
        _ => news.body(&delivery.body),
    }
}

/// An edit of a document, as a Yjs update.
pub(super) fn update(delivery: &Delivery) -> News {
    let first = Some(delivery.context.target.0).filter(|first| *first > 0);
    News::new("update")
        .with("revision", delivery.position.0)
        .perhaps("first", first)
        .with("timestamp_us", delivery.timestamp_us)
        .with("user", delivery.user.as_str())
        .perhaps("generation", delivery.generation.map(|generation| generation.to_string()))
        .base64("update", &delivery.body)
}

/// The name of a revision.
pub(super) fn version(delivery: &Delivery) -> News {
    News::new("version")
        .with("position", delivery.position.0)
        .with("revision", delivery.context.target.0)
        .with("timestamp_us", delivery.timestamp_us)
        .with("user", delivery.user.as_str())
        .with("name", String::from_utf8_lossy(&delivery.body))
}

/// A document as it is at a revision: an update with what its reader lacks, or the whole text.
pub(super) fn state(is_update: bool, revision: u64, state: &[u8]) -> News {
    let news = News::new("state").with("revision", revision);
    if is_update { news.base64("update", state) } else { news.with("text", String::from_utf8_lossy(state)) }
}

/// An edit of a document's text.
pub(super) fn operations(news: &DocumentOperations) -> Result<News, Reject> {
    let parts = Operations::decode(&news.operations)?;
    let parts: Vec<_> = parts
        .parts()
        .iter()
        .map(|part| match part {
            Operation::Retain(length) => json!({"retain": length}),
            Operation::Insert(text) => json!({"insert": text}),
            Operation::Delete(length) => json!({"delete": length}),
        })
        .collect();
    Ok(News::new("operations")
        .with("from", news.from.0)
        .with("to", news.to.0)
        .with("timestamp_us", news.timestamp_us)
        .with("user", news.user.as_str())
        .perhaps("generation", news.generation.map(|generation| generation.to_string()))
        .perhaps("own", news.own.map(|sequence| sequence.0))
        .with("operations", parts))
}

/// What others say of themselves. A state that is no JSON is passed over.
pub(super) fn awareness(update: &AwarenessUpdate) -> News {
    let entries = update.entries.iter().filter_map(|entry| {
        let state = match &entry.state {
            None => Value::Null,
            Some(state) => serde_json::from_slice(state).ok()?,
        };
        Some(json!({"client": entry.client, "clock": entry.clock, "state": state}))
    });
    News::new("awareness").with("clients", entries.collect::<Vec<_>>())
}

/// A document as it was asked for.
pub(super) fn document(form: ReadForm, revision: u64, bytes: &[u8]) -> News {
    let news = News::new("document").with("revision", revision);
    match form {
        ReadForm::Text => news.with("text", String::from_utf8_lossy(bytes)),
        ReadForm::State => news.base64("state", bytes),
        ReadForm::Json => news.with("json", serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null)),
    }
}

/// Answers that are the same whatever was asked; `None` for what is told otherwise.
pub(super) fn answer(op: &ServerOp) -> Option<News> {
    Some(match op {
        ServerOp::Done => News::new("done"),
        ServerOp::ChannelCreated { created } => News::new("created").with("created", *created),
        ServerOp::Published { position, timestamp_us, duplicate } => News::new("published")
            .with("position", position.0)
            .with("timestamp_us", *timestamp_us)
            .with("duplicate", *duplicate),
        ServerOp::Subscribed { next, head } => News::new("subscribed").with("next", next.0).with("head", head.0),
        ServerOp::Asked { generation, model } => {
            News::new("asked").with("generation", generation.to_string()).with("model", model.as_str())
        }
        ServerOp::Pong { .. } => News::new("pong"),
        ServerOp::Page { first, next, head, deliveries } => {
            let read = |payload| match ServerOp::decode(payload) {
                Ok(ServerOp::Delivery(record)) => Some(Value::Object(delivery(&record).0)),
                _ => None,
            };
            let messages: Vec<_> = deliveries.iter().filter_map(read).collect();
            let news = News::new("page").with("first", first.0).with("next", next.0).with("head", head.0);
            news.with("messages", messages)
        }
        _ => return None,
    })
}
