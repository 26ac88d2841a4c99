//! What clients say over `/ws`, and what a core is asked for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thalweg_protocol::chat::{ChannelAbout, ChannelKind, Post, PostKind};
use thalweg_protocol::generation::{AskRequest, ChatMessage, OnDetach, Priority, Role, Sampling};
use thalweg_protocol::ids::{Epoch, GenerationId, Name, Position, Sequence, SessionId};
use thalweg_protocol::limits::{BODY_BYTES_MAX, TOPIC_BYTES_MAX};
use thalweg_protocol::op::{CreateChannel, Durability, From as Begin, Policy, Publish, Subscribe, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};

/// The types of messages that clients send.
pub(super) const TYPES: [&str; 20] = [
    "hello",
    "ping",
    "create",
    "delete",
    "subscribe",
    "unsubscribe",
    "publish",
    "history",
    "credit",
    "open",
    "edit",
    "version",
    "restore",
    "read",
    "write",
    "awareness",
    "ask",
    "watch",
    "unwatch",
    "cancel",
];

/// A number that JavaScript holds.
pub(super) const NUMBER_MAX: u64 = (1 << 53) - 1;
/// The highest number of a write: the node's answer names it, in JSON.
pub(super) const SEQUENCE_MAX: u64 = NUMBER_MAX;

pub(super) fn invalid(text: impl Into<String>) -> Reject {
    Reject::new(RejectCode::ParameterInvalid, text.into())
}

/// A message of a client: its type, the number it gave it, and its other fields.
pub(super) struct Asked {
    pub(super) kind: String,
    pub(super) id: Option<u64>,
    pub(super) fields: Map<String, Value>,
}

impl Asked {
    /// Reads a message.
    ///
    /// # Errors
    /// What is wrong, and the message's number if that could be read.
    pub(super) fn read(text: &str) -> Result<Self, (Option<u64>, Reject)> {
        let mut fields = match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err((None, Reject::new(RejectCode::FrameInvalid, "the message is no JSON object"))),
            Err(error) => {
                return Err((None, Reject::new(RejectCode::FrameInvalid, format!("the message is not JSON: {error}"))));
            }
        };
        let id = match fields.remove("id") {
            None => None,
            Some(id) => match id.as_u64().filter(|id| *id <= NUMBER_MAX) {
                Some(id) => Some(id),
                None => return Err((None, invalid(format!("id is no whole number from 0 to {NUMBER_MAX}")))),
            },
        };
        match fields.remove("type") {
            Some(Value::String(kind)) => Ok(Self { kind, id, fields }),
            _ => Err((id, invalid(format!("type is missing, or is no text; it is one of {}", TYPES.join(", "))))),
        }
    }

    /// The fields as a type of message has them.
    pub(super) fn fields<T: DeserializeOwned>(&mut self) -> Result<T, Reject> {
        let fields = Value::Object(std::mem::take(&mut self.fields));
        serde_path_to_error::deserialize(fields).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!(".{path}") };
            invalid(format!("{}{place}: {}", self.kind, error.inner()))
        })
    }
}

pub(super) fn name(field: &str, text: &str) -> Result<Name, Reject> {
    Name::new(text).map_err(|error| Reject::new(RejectCode::NameInvalid, format!("{field} {error}")))
}

pub(super) fn bytes_of(field: &str, text: &str, most: usize) -> Result<Bytes, Reject> {
    let bytes = BASE64.decode(text).map_err(|error| invalid(format!("{field} is not base64: {error}")))?;
    within(field, bytes.len(), most)?;
    Ok(bytes.into())
}

pub(super) fn within(field: &str, bytes: usize, most: usize) -> Result<(), Reject> {
    if bytes <= most {
        return Ok(());
    }
    Err(Reject::new(RejectCode::BodyTooLarge, format!("{field} has {bytes} bytes; at most {most}")))
}

pub(super) fn generation(text: &str) -> Result<GenerationId, Reject> {
    text.parse().map_err(|error| invalid(format!("generation: {error}")))
}

/// Who says how far the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CreditBy {
    /// The node, when the client's connection took what it was told.
    #[default]
    Auto,
    /// The client, by messages of type `credit`.
    Manual,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HelloFields {
    pub(super) token: String,
    session: Option<String>,
}

impl HelloFields {
    /// The session of an earlier socket, whose writes may be repeated.
    pub(super) fn session(&self) -> Result<Option<SessionId>, Reject> {
        let Some(text) = &self.session else { return Ok(None) };
        let digits = text.strip_prefix("s-").unwrap_or(text);
        let number = u128::from_str_radix(digits, 16).ok().filter(|number| *number != 0 && digits.len() == 32);
        let number =
            number.ok_or_else(|| invalid("session is not 32 hexadecimal digits, or is 0; draw 128 random bits"));
        Ok(Some(SessionId(number?)))
    }
}

/// Numbers of a session's writes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// The session is of the client's naming: another socket may have written in it.
    pub(super) is_named: bool,
    /// The highest so far.
    last: u64,
}

impl Writes {
    /// The number of a write: the client's, or one more than the last. `repeats`: the write is known by it when it is repeated.
    pub(super) fn number(&mut self, given: Option<u64>, repeats: bool) -> Result<Sequence, Reject> {
        if given.is_none() && repeats && self.is_named {
            let text = "sequence is missing: who names a session in its hello numbers what it writes, from 1 on, and goes on \
                        from there over the next socket; or leave session out of hello";
            return Err(invalid(text));
        }
        let sequence = given.unwrap_or(self.last + 1);
        if !(1..=SEQUENCE_MAX).contains(&sequence) {
            return Err(invalid(format!("sequence is {sequence}; 1 to {SEQUENCE_MAX}")));
        }
        self.last = self.last.max(sequence);
        Ok(Sequence(sequence))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoFields {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateFields {
    channel: String,
    #[serde(default)]
    kind: KindField,
    #[serde(default)]
    topic: String,
    durability: Option<DurabilityField>,
    #[serde(default)]
    history_messages: u32,
    #[serde(default)]
    history_bytes: u64,
    #[serde(default)]
    history_age_ms: u64,
}

#[derive(Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindField {
    #[default]
    Open,
    Private,
    Document,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DurabilityField {
    Memory,
    Disk,
    Replicated,
}

impl CreateFields {
    pub(super) fn op(self) -> Result<CreateChannel, Reject> {
        within("topic", self.topic.len(), TOPIC_BYTES_MAX)?;
        let kind = match self.kind {
            KindField::Open => ChannelKind::Open,
            KindField::Private => ChannelKind::Private,
            KindField::Document => ChannelKind::Document,
        };
        Ok(CreateChannel {
            channel: name("channel", &self.channel)?,
            history_messages: self.history_messages,
            history_bytes: self.history_bytes,
            history_age_ms: self.history_age_ms,
            durability: self.durability.map(|durability| match durability {
                DurabilityField::Memory => Durability::Memory,
                DurabilityField::Disk => Durability::Disk,
                DurabilityField::Replicated => Durability::Replicated,
            }),
            about: ChannelAbout { kind, topic: self.topic, ..ChannelAbout::default() },
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChannelFields {
    pub(super) channel: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubscribeFields {
    channel: String,
    #[serde(default)]
    from: FromField,
    #[serde(default)]
    policy: PolicyField,
    #[serde(default)]
    pub(super) lead: u32,
    #[serde(default)]
    make: bool,
    #[serde(default)]
    pub(super) credit: CreditBy,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FromField {
    Position(u64),
    Word(FromWord),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromWord {
    Start,
    End,
}

impl Default for FromField {
    fn default() -> Self {
        Self::Word(FromWord::End)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PolicyField {
    #[default]
    Replay,
    Drop,
    Disconnect,
}

impl SubscribeFields {
    pub(super) fn op(self) -> Result<Subscribe, Reject> {
        Ok(Subscribe {
            channel: name("channel", &self.channel)?,
            from: match self.from {
                FromField::Position(position) => Begin::Position(Position(position)),
                FromField::Word(FromWord::Start) => Begin::Start,
                FromField::Word(FromWord::End) => Begin::End,
            },
            policy: match self.policy {
                PolicyField::Replay => Policy::Replay,
                PolicyField::Drop => Policy::Drop,
                PolicyField::Disconnect => Policy::Disconnect,
            },
            lead: self.lead,
            make: self.make,
            presence: false,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubscriptionFields {
    pub(super) subscription: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchedFields {
    pub(super) watch: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationFields {
    pub(super) generation: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishFields {
    channel: String,
    #[serde(default)]
    action: ActionField,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    base64: Option<String>,
    #[serde(default)]
    target: u64,
    #[serde(default)]
    make: bool,
    pub(super) sequence: Option<u64>,
    #[serde(default)]
    retry: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ActionField {
    #[default]
    Message,
    Edit,
    Redact,
    React,
    Unreact,
}

impl PublishFields {
    pub(super) fn op(self, sequence: Sequence) -> Result<Publish, Reject> {
        let body = match (self.text, self.base64) {
            (Some(text), None) => text.into(),
            (None, Some(bytes)) => bytes_of("base64", &bytes, BODY_BYTES_MAX)?,
            (None, None) if matches!(self.action, ActionField::Redact) => Bytes::new(),
            (None, None) => return Err(invalid("publish has neither text nor base64; give one")),
            (Some(_), Some(_)) => return Err(invalid("publish has both text and base64; give one")),
        };
        within("the body", body.len(), BODY_BYTES_MAX)?;
        let kind = match self.action {
            ActionField::Message => PostKind::Message,
            ActionField::Edit => PostKind::Edit,
            ActionField::Redact => PostKind::Redact,
            ActionField::React => PostKind::React,
            ActionField::Unreact => PostKind::Unreact,
        };
        Ok(write(name("channel", &self.channel)?, sequence, self.retry, self.make, body, kind, self.target))
    }
}

/// A write of any kind.
pub(super) fn write(
    channel: Name,
    sequence: Sequence,
    retry: bool,
    make: bool,
    body: Bytes,
    kind: PostKind,
    target: u64,
) -> Publish {
    Publish { channel, sequence, retry, make, body, key: 0, post: Post { kind, target: Position(target) } }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryFields {
    pub(super) channel: String,
    #[serde(default)]
    pub(super) from: u64,
    #[serde(default)]
    pub(super) limit: u32,
}

/// Credit: of a subscription up to a position, or of a watch for all tokens before an index.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreditFields {
    pub(super) subscription: Option<u64>,
    pub(super) position: Option<u64>,
    pub(super) watch: Option<u64>,
    pub(super) index: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskFields {
    prompt: Option<String>,
    messages: Option<Vec<MessageField>>,
    system: Option<String>,
    model: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<u64>,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    keep_ms: u64,
    #[serde(default)]
    pub(super) lead: u32,
    #[serde(default)]
    pub(super) credit: CreditBy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageField {
    role: RoleField,
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RoleField {
    System,
    User,
    Assistant,
    Tool,
}

impl AskFields {
    pub(super) fn op(self) -> Result<AskRequest, Reject> {
        let system = self.system.map(|content| ChatMessage { role: Role::System, content });
        let said = match (self.prompt, self.messages) {
            (Some(content), None) => vec![ChatMessage { role: Role::User, content }],
            (None, Some(messages)) => messages.into_iter().map(MessageField::message).collect(),
            _ => return Err(invalid("ask has either prompt or messages")),
        };
        let usual = Sampling::default();
        let ask = AskRequest {
            model: self.model.map(|model| name("model", &model)).transpose()?,
            messages: system.into_iter().chain(said).collect(),
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(usual.temperature),
                top_p: self.top_p.unwrap_or(usual.top_p),
                max_tokens: self.max_tokens.unwrap_or(usual.max_tokens),
                seed: self.seed.unwrap_or(0),
                stop: self.stop,
                ..usual
            },
            has_seed: self.seed.is_some(),
            on_detach: if self.keep_ms == 0 { OnDetach::Cancel } else { OnDetach::Keep(self.keep_ms) },
            lead: self.lead,
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
        };
        ask.check()?;
        Ok(ask)
    }
}

impl MessageField {
    fn message(self) -> ChatMessage {
        let role = match self.role {
            RoleField::System => Role::System,
            RoleField::User => Role::User,
            RoleField::Assistant => Role::Assistant,
            RoleField::Tool => Role::Tool,
        };
        ChatMessage { role, content: self.content }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchFields {
    generation: String,
    #[serde(default)]
    from: u32,
    #[serde(default)]
    pub(super) lead: u32,
    #[serde(default)]
    pub(super) credit: CreditBy,
}

impl WatchFields {
    pub(super) fn op(self) -> Result<WatchRequest, Reject> {
        let generation = generation(&self.generation)?;
        Ok(WatchRequest { generation, from: self.from, lead: self.lead, epoch: Epoch(0), seen: None })
    }
}
