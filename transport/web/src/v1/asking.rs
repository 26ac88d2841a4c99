//! From what a request says to what a core is asked.

use thalweg_protocol::generation::{AskRequest, ChatMessage, Constraint, OnDetach, Priority, Role, Sampling};
use thalweg_protocol::ids::Name;
use thalweg_protocol::limits::{GENERATION_TOKENS_MAX, STOPS_MAX};

use super::parameters::{Content, FormatKind, Knobs, Message, MessageRole, ResponseFormat, ServiceTier};
use super::tools;
use crate::error::Refusal;
use crate::limits::V1_CHOICES_MAX;

/// Checks that a field is within its limits; the core checks again what is its own.
fn within<T: PartialOrd + std::fmt::Display>(field: &str, value: T, low: T, high: T) -> Result<T, Refusal> {
    if value >= low && value <= high {
        return Ok(value);
    }
    Err(Refusal::parameter(field, format!("{field} is {value}; it lies between {low} and {high}")))
}

fn within_count<'a, T>(field: &str, values: &'a [T], most: usize) -> Result<&'a [T], Refusal> {
    if values.len() <= most {
        return Ok(values);
    }
    Err(Refusal::parameter(field, format!("{field} has {} items; it has at most {most}", values.len())))
}

/// The model that is named; none if the node is to choose.
pub(super) fn model_of(name: Option<&str>) -> Result<Option<Name>, Refusal> {
    name.map(|name| {
        Name::new(name).map_err(|error| Refusal::parameter("model", format!("model is no name of a model: {error}")))
    })
    .transpose()
}

/// How many answers there are to be for each prompt.
pub(super) fn choices_of(n: Option<u32>, prompts: usize) -> Result<usize, Refusal> {
    let n = within("n", n.unwrap_or(1), 1, V1_CHOICES_MAX as u32)? as usize;
    if prompts.saturating_mul(n) > V1_CHOICES_MAX {
        let text = format!("{prompts} prompts with n {n} make {} answers; at most {V1_CHOICES_MAX}", prompts * n);
        return Err(Refusal::parameter("prompt", text));
    }
    Ok(n)
}

/// How tokens are drawn. OpenAI's defaults, where a request says nothing; `max_tokens` is that of the endpoint.
pub(super) fn sampling_of(knobs: &Knobs, max_tokens: u32, logprobs: Option<u8>) -> Result<Sampling, Refusal> {
    if knobs.has_stream_options && !knobs.stream {
        return Err(Refusal::parameter("stream_options", "stream_options is for streams; set stream to true"));
    }
    // -1 is how others spell that all are meant.
    let top_k = within("top_k", knobs.top_k.unwrap_or(0), -1, i64::from(u32::MAX))?;
    let logit_bias = knobs.logit_bias.iter().map(|(token, &bias)| match token.parse() {
        Ok(token) => Ok((token, within("logit_bias", bias, -100.0, 100.0)?)),
        Err(_) => {
            let text = format!("logit_bias has {token:?}, which is no number of a token");
            Err(Refusal::parameter("logit_bias", text))
        }
    });
    Ok(Sampling {
        temperature: within("temperature", knobs.temperature.unwrap_or(1.0), 0.0, 2.0)?,
        // 0 is taken for the least there is, as elsewhere.
        top_p: within("top_p", knobs.top_p.unwrap_or(1.0), 0.0, 1.0)?.max(f32::MIN_POSITIVE),
        top_k: u32::try_from(top_k).unwrap_or(0),
        min_p: within("min_p", knobs.min_p.unwrap_or(0.0), 0.0, 1.0)?,
        repetition_penalty: within("repetition_penalty", knobs.repetition_penalty.unwrap_or(1.0), 0.01, 10.0)?,
        frequency_penalty: within("frequency_penalty", knobs.frequency_penalty.unwrap_or(0.0), -2.0, 2.0)?,
        presence_penalty: within("presence_penalty", knobs.presence_penalty.unwrap_or(0.0), -2.0, 2.0)?,
        logit_bias: logit_bias.collect::<Result<_, Refusal>>()?,
        logprobs,
        constraint: constraint_of(knobs.response_format.as_ref())?,
        seed: knobs.seed.unwrap_or(0).cast_unsigned(),
        max_tokens: within("max_tokens", max_tokens, 1, GENERATION_TOKENS_MAX)?,
        // An empty stop string stops nothing, but counts.
        stop: within_count("stop", &knobs.stop, STOPS_MAX)?.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
    })
}

fn constraint_of(format: Option<&ResponseFormat>) -> Result<Constraint, Refusal> {
    let Some(format) = format else { return Ok(Constraint::None) };
    let field = "response_format.json_schema";
    let schema = format.json_schema.as_ref().and_then(|named| named.schema.as_ref());
    if schema.is_some_and(|schema| !schema.get().starts_with('{')) {
        return Err(Refusal::parameter(field, format!("{field}.schema is no object")));
    }
    Ok(match format.kind {
        FormatKind::Text => Constraint::None,
        FormatKind::JsonObject => Constraint::Json,
        FormatKind::JsonSchema => {
            if format.json_schema.is_none() {
                return Err(Refusal::parameter(field, format!("{field} is missing")));
            }
            schema.map_or(Constraint::Json, |schema| Constraint::JsonSchema(schema.get().to_owned()))
        }
    })
}

/// What is asked, but for what only one of several answers is asked.
pub(super) fn ask_of(knobs: &Knobs, messages: Vec<ChatMessage>, sampling: Sampling) -> Result<AskRequest, Refusal> {
    let priority = match knobs.service_tier {
        None | Some(ServiceTier::Auto | ServiceTier::Default) => Priority::Normal,
        Some(ServiceTier::Flex) => Priority::Low,
        Some(ServiceTier::Priority) => Priority::High,
    };
    let ask = AskRequest {
        model: model_of(knobs.model.as_deref())?,
        messages,
        sampling,
        has_seed: knobs.seed.is_some(),
        on_detach: OnDetach::Cancel,
        lead: 0,
        raw: false,
        priority,
        deadline_ms: 0,
    };
    ask.check().map_err(Refusal::from)?;
    Ok(ask)
}

/// What the answer with this index is asked: another seed than the others, or they would all be the same.
pub(super) fn nth(ask: &AskRequest, index: usize) -> AskRequest {
    let mut ask = ask.clone();
    ask.sampling.seed = ask.sampling.seed.wrapping_add(index as u64);
    ask
}

/// The conversation, as templates take it.
pub(super) fn messages_of(messages: Vec<Message>) -> Result<Vec<ChatMessage>, Refusal> {
    messages.into_iter().enumerate().map(|(index, message)| message_of(index, message)).collect()
}

fn message_of(index: usize, message: Message) -> Result<ChatMessage, Refusal> {
    let refuse = |field: &str, text: String| Err(Refusal::parameter(format!("messages[{index}].{field}"), text));
    if message.function_call.is_some() {
        return refuse("function_call", "function_call is not supported; use tool_calls".into());
    }
    if message.audio.is_some() {
        return refuse("audio", "audio is not supported".into());
    }
    let role = match message.role {
        MessageRole::System | MessageRole::Developer => Role::System,
        MessageRole::User => Role::User,
        MessageRole::Assistant => Role::Assistant,
        MessageRole::Tool => Role::Tool,
    };
    let calls = message.tool_calls.unwrap_or_default();
    let mut content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for (at, part) in parts.into_iter().enumerate() {
                match (part.kind.as_str(), part.text, part.refusal) {
                    ("text", Some(part), _) | ("refusal", _, Some(part)) => text.push_str(&part),
                    ("text", ..) => return refuse("content", format!("part {at} is a text without its text")),
                    (kind, ..) => {
                        let text = format!("part {at} is of the type {kind:?}; this node's models read text only");
                        return refuse("content", text);
                    }
                }
            }
            text
        }
        None if role == Role::Assistant => message.refusal.unwrap_or_default(),
        None => return refuse("content", "content is missing".into()),
    };
    if role == Role::Assistant {
        tools::write_calls(&mut content, &calls);
    }
    Ok(ChatMessage { role, content })
}
