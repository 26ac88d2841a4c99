//! What is asked of a model, and what comes back.

use bytes::Bytes;

use crate::ids::Name;
use crate::limits::{
    CHAT_MESSAGES_MAX, CONSTRAINT_BYTES_MAX, DEADLINE_MS_MAX, DETACH_KEEP_MS_MAX, EMBED_TEXT_BYTES_MAX,
    EMBED_TEXTS_MAX, GENERATION_TOKENS, GENERATION_TOKENS_MAX, LOGIT_BIASES_MAX, LOGPROBS_MAX, PROMPT_BYTES_MAX,
    STOP_BYTES_MAX, STOPS_MAX,
};
use crate::reject::{Reject, RejectCode};

/// Who said a line of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the model.
    System,
    /// A person.
    User,
    /// The model.
    Assistant,
    /// A function that the model called, with what it gave.
    Tool,
}

impl Role {
    /// The role as chat templates spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One line of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChatMessage {
    /// Who said it.
    pub role: Role,
    /// What was said, as it goes into the chat template.
    pub content: String,
}

/// What the whole text has to be, whatever the model would rather say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Constraint {
    /// Anything.
    #[default]
    None,
    /// One JSON object.
    Json,
    /// A JSON value that this JSON Schema accepts.
    JsonSchema(String),
    /// A text that this regular expression matches from its first to its last character.
    Regex(String),
    /// A text of this grammar, in the Lark notation; it begins with the rule `start`.
    Lark(String),
}

impl Constraint {
    /// The schema, expression or grammar; empty for constraints that need none.
    pub fn text(&self) -> &str {
        match self {
            Self::None | Self::Json => "",
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text,
        }
    }

    /// The kind of constraint as scripts see it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Json => "json",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Lark(_) => "lark",
        }
    }

    fn check(&self) -> Result<(), Reject> {
        let (what, text) = (self.as_str(), self.text());
        if text.len() > CONSTRAINT_BYTES_MAX {
            return refuse(format!("{what} has {} bytes; at most {CONSTRAINT_BYTES_MAX}", text.len()));
        }
        if text.is_empty() && !matches!(self, Self::None | Self::Json) {
            return refuse(format!("{what} is empty; leave the constraint out to allow any text"));
        }
        Ok(())
    }
}

/// How the next token is drawn from a model's logits: they are moved by `logit_bias` and the penalties, what the
/// constraint forbids goes, they are divided by the temperature, and what top k, top p and min p leave is drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; up to 2 flattens the distribution.
    pub temperature: f32,
    /// Draw among the likeliest tokens whose probabilities sum to this; 0 < p ≤ 1.
    pub top_p: f32,
    /// Draw among this many likeliest tokens; 0 means all.
    pub top_k: u32,
    /// Draw among tokens at least this part as likely as the likeliest; 0 means all, 1 only the likeliest.
    pub min_p: f32,
    /// Logits of tokens that stand in the prompt or the answer are divided by this if above 0, else multiplied; 1 is
    /// without effect; 0.01 to 10.
    pub repetition_penalty: f32,
    /// Taken from a token's logit for each time it stands in the answer; -2 to 2.
    pub frequency_penalty: f32,
    /// Taken from a token's logit if it stands in the answer; -2 to 2.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, by their number in the model's vocabulary; -100 to 100. At most
    /// [`LOGIT_BIASES_MAX`].
    pub logit_bias: Vec<(u32, f32)>,
    /// How likely the drawn token was is told, with so many of the likeliest ones beside it; at most [`LOGPROBS_MAX`].
    pub logprobs: Option<u8>,
    /// What the text has to be.
    pub constraint: Constraint,
    /// Randomness is a function of (seed, position), so that the same request gives the same text.
    pub seed: u64,
    /// Most tokens to produce, 1 to [`GENERATION_TOKENS_MAX`].
    pub max_tokens: u32,
    /// The text ends before any of these.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_p: 0.95,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
            constraint: Constraint::None,
            seed: 0,
            max_tokens: GENERATION_TOKENS,
            stop: Vec::new(),
        }
    }
}

/// A parameter that makes no sense.
fn refuse(text: String) -> Result<(), Reject> {
    Err(Reject::new(RejectCode::ParameterInvalid, text))
}

impl Sampling {
    /// Checks every field against its limits; the reject names the first that is wrong.
    ///
    /// # Errors
    /// `parameter_invalid`.
    pub fn check(&self) -> Result<(), Reject> {
        let within = |field: &str, value: f32, low: f32, high: f32| match (low..=high).contains(&value) {
            true => Ok(()),
            false => refuse(format!("{field} is {value}; it lies between {low} and {high}")),
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top_p is {}; it lies above 0 and up to 1", self.top_p));
        }
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        if self.logit_bias.len() > LOGIT_BIASES_MAX {
            return refuse(format!("logit_bias has {} tokens; at most {LOGIT_BIASES_MAX}", self.logit_bias.len()));
        }
        for &(id, bias) in &self.logit_bias {
            within(&format!("logit_bias of token {id}"), bias, -100.0, 100.0)?;
        }
        if let Some(count) = self.logprobs.filter(|&count| count > LOGPROBS_MAX) {
            return refuse(format!("logprobs is {count}; at most {LOGPROBS_MAX}"));
        }
        self.constraint.check()?;
        if !(1..=GENERATION_TOKENS_MAX).contains(&self.max_tokens) {
            return refuse(format!("max_tokens is {}; 1 to {GENERATION_TOKENS_MAX}", self.max_tokens));
        }
        if self.stop.len() > STOPS_MAX {
            return refuse(format!("stop has {} strings; at most {STOPS_MAX}", self.stop.len()));
        }
        match self.stop.iter().position(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
            Some(at) => refuse(format!("stop {at} has {} bytes; 1 to {STOP_BYTES_MAX}", self.stop[at].len())),
            None => Ok(()),
        }
    }
}

/// How soon a request gets its turn among those of the same tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// After the others: work that nobody waits for.
    Low,
    /// In the order of coming.
    #[default]
    Normal,
    /// Before the others.
    High,
}

impl Priority {
    /// Every priority, lowest first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The priority as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// What becomes of a generation when its last reader goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDetach {
    /// It ends within one step.
    Cancel,
    /// It waits so many milliseconds for a reader to come back, at most [`DETACH_KEEP_MS_MAX`].
    Keep(u64),
}

/// A request to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct AskRequest {
    /// Which model; the node's first chat model if none is named.
    pub model: Option<Name>,
    /// The conversation so far, oldest first; the last is usually the user's.
    pub messages: Vec<ChatMessage>,
    /// How tokens are drawn. A seed is made up by the node if `has_seed` is false.
    pub sampling: Sampling,
    /// Whether `sampling.seed` was given by the client.
    pub has_seed: bool,
    /// What becomes of it when the last reader goes.
    pub on_detach: OnDetach,
    /// Tokens it may run ahead of this reader; 0 for the default.
    pub lead: u32,
    /// The messages' contents are the prompt as it stands, one after the other, without a chat template.
    pub raw: bool,
    /// Its place among the tenant's requests.
    pub priority: Priority,
    /// It is refused if its first token is not being computed so many milliseconds after it came; 0: it waits as long as
    /// it takes.
    pub deadline_ms: u32,
}

impl AskRequest {
    /// A request with one user message and defaults for the rest.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self {
            model: None,
            messages: vec![ChatMessage { role: Role::User, content: text.into() }],
            sampling: Sampling::default(),
            has_seed: false,
            on_detach: OnDetach::Cancel,
            lead: 0,
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
        }
    }

    /// Checks every field against its limits; the reject names the first that is wrong.
    ///
    /// # Errors
    /// `parameter_invalid`.
    pub fn check(&self) -> Result<(), Reject> {
        if self.messages.is_empty() {
            return refuse("messages is empty; give at least one".into());
        }
        if self.messages.len() > CHAT_MESSAGES_MAX {
            return refuse(format!("messages has {} entries; at most {CHAT_MESSAGES_MAX}", self.messages.len()));
        }
        let bytes: usize = self.messages.iter().map(|m| m.content.len()).sum();
        if bytes > PROMPT_BYTES_MAX {
            return refuse(format!("messages has {bytes} bytes; at most {PROMPT_BYTES_MAX}"));
        }
        self.sampling.check()?;
        if self.deadline_ms > DEADLINE_MS_MAX {
            return refuse(format!("deadline_ms is {}; at most {DEADLINE_MS_MAX}", self.deadline_ms));
        }
        match self.on_detach {
            OnDetach::Keep(ms) if ms > DETACH_KEEP_MS_MAX => {
                refuse(format!("keep is {ms} ms; at most {DETACH_KEEP_MS_MAX}"))
            }
            _ => Ok(()),
        }
    }
}

/// Checks the texts of a request for embeddings against their limits; the reject names the first that is wrong.
///
/// # Errors
/// `parameter_invalid`.
pub fn check_embed_texts(texts: &[String]) -> Result<(), Reject> {
    if texts.is_empty() || texts.len() > EMBED_TEXTS_MAX {
        return refuse(format!("texts has {} entries; 1 to {EMBED_TEXTS_MAX}", texts.len()));
    }
    if let Some(at) = texts.iter().position(|text| text.len() > EMBED_TEXT_BYTES_MAX) {
        return refuse(format!("text {at} has {} bytes; at most {EMBED_TEXT_BYTES_MAX}", texts[at].len()));
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes > PROMPT_BYTES_MAX {
        return refuse(format!("texts has {bytes} bytes; at most {PROMPT_BYTES_MAX}"));
    }
    Ok(())
}

/// How likely a model thought a token, before anything moved its logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenChance {
    /// Its number in the model's vocabulary.
    pub id: u32,
    /// Its bytes, which may be part of a character; empty for a token that is no text.
    pub text: Bytes,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// What a model thought of a token that was drawn. Live only: it is not in the log, and a reader that resumes gets none
/// for what it missed.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenDetail {
    /// Which token of the answer, from 0.
    pub index: u32,
    /// Its number in the model's vocabulary.
    pub id: u32,
    /// Its bytes, which may be part of a character.
    pub text: Bytes,
    /// Natural logarithm of its probability, before anything moved the logits.
    pub logprob: f32,
    /// The likeliest tokens in its place, likeliest first.
    pub top: Vec<TokenChance>,
}

/// A fingerprint of a text as it comes in, so that a reader can say which text it has. FNV-1a with 64 bits, finished by a
/// multiplication: not cryptographic, both ends are on the same side. The same over any division of the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextHash(u64);

impl Default for TextHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl TextHash {
    /// Takes the next bytes in.
    pub fn update(&mut self, text: &[u8]) {
        self.0 = text.iter().fold(self.0, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    }

    /// The fingerprint of what came in so far.
    pub fn value(self) -> u64 {
        (self.0 ^ self.0 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The fingerprint of one text.
    pub fn of(text: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.update(text);
        hash.value()
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model said so, or a stop string was reached.
    Stop,
    /// The limit of tokens, or the end of the model's context, was reached.
    Length,
    /// A reader cancelled it, or the last one went.
    Cancelled,
    /// The node failed; the message says at what.
    Failed,
}

impl FinishReason {
    /// The reason as scripts see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// What a generation cost, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the conversation as templated.
    pub prompt_tokens: u32,
    /// Tokens produced.
    pub completion_tokens: u32,
    /// Tokens of the prompt that had been computed before, for another request that began alike.
    pub cached_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_field_by_field() {
        let check = |change: &dyn Fn(&mut AskRequest), expected: &str| {
            let mut request = AskRequest::prompt("hi");
            change(&mut request);
            match request.check() {
                Ok(()) => assert_eq!(expected, "", "accepted"),
                Err(reject) => assert!(
                    !expected.is_empty() && reject.message.contains(expected),
                    "expected {expected:?}, got {reject}"
                ),
            }
        };
        check(&|_| {}, "");
        check(&|r| r.messages.clear(), "messages");
        check(&|r| r.sampling.temperature = f32::NAN, "temperature");
        check(&|r| r.sampling.temperature = -0.1, "temperature");
        check(&|r| r.sampling.top_p = 0.0, "top_p");
        check(&|r| r.sampling.max_tokens = 0, "max_tokens");
        check(&|r| r.sampling.stop = vec![String::new()], "stop 0");
        check(&|r| r.sampling.min_p = 1.5, "min_p is 1.5; it lies between 0 and 1");
        check(&|r| r.sampling.repetition_penalty = 0.0, "repetition_penalty is 0; it lies between 0.01 and 10");
        check(&|r| r.sampling.frequency_penalty = f32::INFINITY, "frequency_penalty");
        check(&|r| r.sampling.presence_penalty = -2.5, "presence_penalty is -2.5; it lies between -2 and 2");
        check(&|r| r.sampling.logit_bias = vec![(3, 1.0), (7, -101.0)], "logit_bias of token 7 is -101");
        check(&|r| r.sampling.logit_bias = vec![(3, 1.0); LOGIT_BIASES_MAX + 1], "logit_bias has 1025 tokens");
        check(&|r| r.sampling.logprobs = Some(LOGPROBS_MAX), "");
        check(&|r| r.sampling.logprobs = Some(21), "logprobs is 21; at most 20");
        check(&|r| r.sampling.constraint = Constraint::Json, "");
        check(&|r| r.sampling.constraint = Constraint::Regex(String::new()), "regex is empty");
        check(&|r| r.sampling.constraint = Constraint::JsonSchema("x".repeat(CONSTRAINT_BYTES_MAX + 1)), "json_schema");
        check(&|r| r.deadline_ms = DEADLINE_MS_MAX + 1, "deadline_ms");
        check(&|r| r.on_detach = OnDetach::Keep(u64::MAX), "keep");
        check(&|r| r.messages[0].content = "x".repeat(PROMPT_BYTES_MAX + 1), "bytes");
    }

    #[test]
    fn texts_to_embed_are_checked() {
        let check = |texts: Vec<String>, expected: &str| match check_embed_texts(&texts) {
            Ok(()) => assert_eq!(expected, "", "accepted"),
            Err(reject) => {
                assert!(!expected.is_empty() && reject.message.contains(expected), "{expected:?}, got {reject}");
            }
        };
        check(vec!["hello".into()], "");
        check(vec![String::new()], "");
        check(Vec::new(), "texts has 0 entries");
        check(vec!["a".into(); EMBED_TEXTS_MAX + 1], "texts has 257 entries");
        check(vec!["a".into(), "x".repeat(EMBED_TEXT_BYTES_MAX + 1)], "text 1 has 65537 bytes");
        check(vec!["x".repeat(EMBED_TEXT_BYTES_MAX); 9], "texts has 589824 bytes");
    }
}
