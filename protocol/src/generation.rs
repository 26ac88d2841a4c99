//! What is asked of a model, and what comes back.

use crate::ids::Name;
use crate::limits::{
    CHAT_MESSAGES_MAX, DETACH_KEEP_MS_MAX, GENERATION_TOKENS, GENERATION_TOKENS_MAX, PROMPT_BYTES_MAX, STOP_BYTES_MAX,
    STOPS_MAX,
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
}

impl Role {
    /// The role as chat templates spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
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

/// How the next token is drawn from a model's logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; up to 2 flattens the distribution.
    pub temperature: f32,
    /// Draw among the likeliest tokens whose probabilities sum to this; 0 < p ≤ 1.
    pub top_p: f32,
    /// Draw among this many likeliest tokens; 0 means all.
    pub top_k: u32,
    /// Randomness is a function of (seed, position), so that the same request gives the same text.
    pub seed: u64,
    /// Most tokens to produce, 1 to [`GENERATION_TOKENS_MAX`].
    pub max_tokens: u32,
    /// The text ends before any of these.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.7, top_p: 0.95, top_k: 0, seed: 0, max_tokens: GENERATION_TOKENS, stop: Vec::new() }
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
        }
    }

    /// Checks every field against its limits; the reject names the first that is wrong.
    pub fn check(&self) -> Result<(), Reject> {
        let refuse = |text: String| Err(Reject::new(RejectCode::ParameterInvalid, text));
        let sampling = &self.sampling;
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
        if !(0.0..=2.0).contains(&sampling.temperature) {
            return refuse(format!("temperature is {}; it lies between 0 and 2", sampling.temperature));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return refuse(format!("top_p is {}; it lies above 0 and up to 1", sampling.top_p));
        }
        if !(1..=GENERATION_TOKENS_MAX).contains(&sampling.max_tokens) {
            return refuse(format!("max_tokens is {}; 1 to {GENERATION_TOKENS_MAX}", sampling.max_tokens));
        }
        if sampling.stop.len() > STOPS_MAX {
            return refuse(format!("stop has {} strings; at most {STOPS_MAX}", sampling.stop.len()));
        }
        if sampling.stop.iter().any(|s| s.is_empty() || s.len() > STOP_BYTES_MAX) {
            return refuse(format!("a stop string has 1 to {STOP_BYTES_MAX} bytes"));
        }
        match self.on_detach {
            OnDetach::Keep(ms) if ms > DETACH_KEEP_MS_MAX => {
                refuse(format!("keep is {ms} ms; at most {DETACH_KEEP_MS_MAX}"))
            }
            _ => Ok(()),
        }
    }
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
        check(&|r| r.sampling.stop = vec![String::new()], "stop");
        check(&|r| r.on_detach = OnDetach::Keep(u64::MAX), "keep");
        check(&|r| r.messages[0].content = "x".repeat(PROMPT_BYTES_MAX + 1), "bytes");
    }
}
