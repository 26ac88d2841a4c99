//! What requests may say. Fields that are not named here are ignored, as OpenAI's own services ignore them, but for those
//! that would change what the answer means: they are refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// A text or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// What a stream says beside the answer.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// Which of three queues a request waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ServiceTier {
    Auto,
    Default,
    Flex,
    Priority,
}

/// What the answer has to be.
#[derive(Debug, Deserialize)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(super) kind: FormatKind,
    pub(super) json_schema: Option<JsonSchema>,
}

/// What kind of text the answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

/// A JSON Schema with a name.
#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "what is not needed is read so that what is no name or no switch is refused")]
pub(super) struct JsonSchema {
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) strict: Option<bool>,
    /// As the caller wrote it: the model writes fields in the order in which the schema names them.
    pub(super) schema: Option<Box<RawValue>>,
}

/// How tokens are drawn and how they are told: what chat and plain completions have in common.
macro_rules! with_knobs {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        pub(super) struct $name {
            $($(#[$field_doc])* pub(super) $field: $kind,)*
            pub(super) model: Option<String>,
            pub(super) stream: Option<bool>,
            pub(super) stream_options: Option<StreamOptions>,
            pub(super) n: Option<u32>,
            pub(super) max_tokens: Option<u32>,
            pub(super) stop: Option<OneOrMany>,
            pub(super) temperature: Option<f32>,
            pub(super) top_p: Option<f32>,
            pub(super) top_k: Option<i64>,
            pub(super) min_p: Option<f32>,
            pub(super) seed: Option<i64>,
            pub(super) repetition_penalty: Option<f32>,
            pub(super) frequency_penalty: Option<f32>,
            pub(super) presence_penalty: Option<f32>,
            pub(super) logit_bias: Option<BTreeMap<String, f32>>,
            pub(super) response_format: Option<ResponseFormat>,
            pub(super) service_tier: Option<ServiceTier>,
            #[allow(dead_code, reason = "read so that what is no text is refused; the token says who asks")]
            pub(super) user: Option<String>,
        }

        impl $name {
            /// What it says about drawing and telling; takes it out.
            pub(super) fn knobs(&mut self) -> Knobs {
                Knobs {
                    model: self.model.take(),
                    stream: self.stream.unwrap_or(false),
                    include_usage: self.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
                    has_stream_options: self.stream_options.is_some(),
                    n: self.n,
                    max_tokens: self.max_tokens,
                    stop: self.stop.take().map(OneOrMany::into_vec).unwrap_or_default(),
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    seed: self.seed,
                    repetition_penalty: self.repetition_penalty,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    logit_bias: self.logit_bias.take().unwrap_or_default(),
                    response_format: self.response_format.take(),
                    service_tier: self.service_tier,
                }
            }
        }
    };
}

/// How tokens are drawn and how they are told.
#[derive(Debug, Default)]
pub(super) struct Knobs {
    pub(super) model: Option<String>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) has_stream_options: bool,
    pub(super) n: Option<u32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) stop: Vec<String>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) seed: Option<i64>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) logit_bias: BTreeMap<String, f32>,
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) service_tier: Option<ServiceTier>,
}

with_knobs! {
    /// The body of a request for a chat completion.
    ChatRequest {
        messages: Vec<Message>,
        max_completion_tokens: Option<u32>,
        logprobs: Option<bool>,
        top_logprobs: Option<u8>,
        tools: Option<Vec<Tool>>,
        tool_choice: Option<ToolChoice>,
        parallel_tool_calls: Option<bool>,
        store: Option<bool>,
        modalities: Option<Vec<String>>,
        /// Refused.
        functions: Option<IgnoredAny>,
        /// Refused.
        function_call: Option<IgnoredAny>,
        /// Refused.
        audio: Option<IgnoredAny>,
        /// Refused.
        web_search_options: Option<IgnoredAny>,
    }
}

with_knobs! {
    /// The body of a request for a completion.
    CompletionRequest {
        prompt: OneOrMany,
        logprobs: Option<u8>,
        echo: Option<bool>,
        best_of: Option<u32>,
        suffix: Option<String>,
    }
}

/// The body of a request for embeddings.
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingRequest {
    pub(super) input: OneOrMany,
    pub(super) model: Option<String>,
    pub(super) encoding_format: Option<EncodingFormat>,
    pub(super) dimensions: Option<u32>,
    #[allow(dead_code, reason = "read so that what is no text is refused; the token says who asks")]
    pub(super) user: Option<String>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum EncodingFormat {
    /// As arrays of numbers.
    #[default]
    Float,
    /// As base64 of little-endian 32-bit numbers.
    Base64,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MessageRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// One message of a conversation.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) role: MessageRole,
    pub(super) content: Option<Content>,
    pub(super) tool_calls: Option<Vec<ToolCall>>,
    #[allow(dead_code, reason = "read so that what is no text is refused; templates know no such thing")]
    pub(super) tool_call_id: Option<String>,
    #[allow(dead_code, reason = "read so that what is no text is refused; templates know no such thing")]
    pub(super) name: Option<String>,
    pub(super) refusal: Option<String>,
    /// Refused.
    pub(super) audio: Option<IgnoredAny>,
    /// Refused.
    pub(super) function_call: Option<IgnoredAny>,
}

/// What a message says.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of parts")]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of what a message says.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) text: Option<String>,
    pub(super) refusal: Option<String>,
}

/// A function call of an earlier answer.
#[derive(Debug, Deserialize)]
pub(super) struct ToolCall {
    #[allow(dead_code, reason = "read so that what is no text is refused; templates know no such thing")]
    pub(super) id: Option<String>,
    pub(super) function: CalledFunction,
}

/// Which function was called, and with what.
#[derive(Debug, Deserialize)]
pub(super) struct CalledFunction {
    pub(super) name: String,
    /// JSON, as a text.
    pub(super) arguments: String,
}

/// Something the model may call.
#[derive(Debug, Deserialize)]
pub(super) struct Tool {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) function: Option<Function>,
}

/// A function the model may call.
#[derive(Debug, Deserialize)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) description: Option<String>,
    /// A JSON Schema, in the caller's order of fields, which is the order the model writes them in.
    pub(super) parameters: Option<Box<RawValue>>,
    #[allow(dead_code, reason = "read so that what is no switch is refused; arguments always follow their schema")]
    pub(super) strict: Option<bool>,
}

/// Whether functions are called.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected none, auto, required, or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub(super) enum ToolChoice {
    Mode(ToolMode),
    Named {
        #[allow(dead_code, reason = "read so that what is no function is refused")]
        #[serde(rename = "type")]
        kind: FunctionKind,
        function: NamedFunction,
    },
}

/// The only kind of tool there is.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FunctionKind {
    Function,
}

/// Whether functions are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ToolMode {
    None,
    Auto,
    Required,
}

/// A function by its name.
#[derive(Debug, Deserialize)]
pub(super) struct NamedFunction {
    pub(super) name: String,
}
