//! What records are made of, piece by piece. The states that sealed segments keep are made of the same pieces.

use std::sync::Arc;

use thalweg_domain::generation::{Ending, Token};
use thalweg_domain::record::{ChannelSettings, GenerationRequest, Message, Posting};
use thalweg_protocol::generation::{ChatMessage, Constraint, FinishReason, OnDetach, Priority, Role, Sampling, Usage};
use thalweg_protocol::ids::{ChannelId, ChannelKey, Sequence, SessionId};
use thalweg_protocol::op::Durability;

use super::RecordError;
use super::fields::{Fields, put_bytes, put_name, put_u32, put_u64, put_u128};

/// Bytes of a token: id `u32`, bytes of text `u32`.
const TOKEN_BYTES: usize = 8;
/// Least bytes of a line of a conversation: role `u8`, length of its text.
const CHAT_MESSAGE_BYTES: usize = 5;
/// Least bytes of a text.
const TEXT_BYTES: usize = 4;
/// Bytes of a bias: token `u32`, bias `f32`.
const BIAS_BYTES: usize = 8;
/// Says, beside whether the generation is kept without readers, that more of the request follows.
const MORE: u8 = 2;
/// Says, beside the reason of an ending, that tokens which had been computed before follow.
const CACHED: u8 = 0x80;

/// Key: tenant name, channel name.
pub(crate) fn put_key(into: &mut Vec<u8>, key: &ChannelKey) {
    put_name(into, &key.tenant);
    put_name(into, &key.channel);
}

pub(crate) fn read_key(fields: &mut Fields<'_>) -> Result<ChannelKey, RecordError> {
    Ok(ChannelKey { tenant: fields.name("tenant")?, channel: fields.name("channel")? })
}

/// Settings: messages `u32`, bytes `u64`, age `u64`, durability `u8`.
pub(crate) fn put_settings(into: &mut Vec<u8>, settings: &ChannelSettings) {
    put_u32(into, settings.history_messages);
    put_u64(into, settings.history_bytes);
    put_u64(into, settings.history_age_us);
    into.push(match settings.durability {
        Durability::Memory => 0,
        Durability::Disk => 1,
        Durability::Replicated => 2,
    });
}

pub(crate) fn read_settings(fields: &mut Fields<'_>) -> Result<ChannelSettings, RecordError> {
    Ok(ChannelSettings {
        history_messages: fields.u32("history messages")?,
        history_bytes: fields.u64("history bytes")?,
        history_age_us: fields.u64("history age")?,
        durability: match fields.u8("durability")? {
            0 => Durability::Memory,
            1 => Durability::Disk,
            2 => Durability::Replicated,
            other => return Err(RecordError::Unknown { field: "durability", value: u64::from(other) }),
        },
    })
}

/// Posting: channel id `u64`, position `u64`, session `u128`, sequence `u64`, key, payload.
pub(crate) fn put_posting(into: &mut Vec<u8>, posting: &Posting) {
    let message = &posting.message;
    put_u64(into, posting.id.0);
    put_u64(into, message.position.0);
    put_u128(into, message.session.0);
    put_u64(into, message.sequence.0);
    put_key(into, &posting.channel);
    put_bytes(into, &message.payload);
}

pub(crate) fn read_posting(fields: &mut Fields<'_>) -> Result<Posting, RecordError> {
    let id = ChannelId(fields.u64("channel id")?);
    let position = fields.u64("position")?;
    let (session, sequence) = (SessionId(fields.u128("session")?), Sequence(fields.u64("sequence")?));
    let channel = read_key(fields)?;
    let payload = fields.bytes("payload")?;
    let message = Message::decode(payload, session, sequence).map_err(RecordError::Payload)?;
    if message.position.0 != position {
        let (field, other) = ("position", "payload");
        return Err(RecordError::Contradiction { field, found: position, other, expected: message.position.0 });
    }
    Ok(Posting { channel, id, message: Arc::new(message) })
}

/// A byte 0, or 1 and a posting.
pub(crate) fn put_optional_posting(into: &mut Vec<u8>, posting: Option<&Posting>) {
    into.push(u8::from(posting.is_some()));
    if let Some(posting) = posting {
        put_posting(into, posting);
    }
}

pub(crate) fn read_optional_posting(fields: &mut Fields<'_>) -> Result<Option<Posting>, RecordError> {
    if fields.flag("posting")? { read_posting(fields).map(Some) } else { Ok(None) }
}

/// Request: tenant, user and model names; optional key and channel id `u64`; list of messages (role `u8`, text); sampling
/// (temperature and top p `f32`, top k `u32`, seed `u64`, most tokens `u32`, list of stop texts); what happens when the
/// last reader goes (0, or 1 and milliseconds `u64`), to which 2 is added if more follows that was not there at first.
pub(crate) fn put_request(into: &mut Vec<u8>, request: &GenerationRequest) {
    put_name(into, &request.tenant);
    put_name(into, &request.user);
    put_name(into, &request.model);
    into.push(u8::from(request.channel.is_some()));
    if let Some((key, id)) = &request.channel {
        put_key(into, key);
        put_u64(into, id.0);
    }
    put_u32(into, request.messages.len() as u32);
    for message in &request.messages {
        into.push(match message.role {
            Role::System => 0,
            Role::User => 1,
            Role::Assistant => 2,
            Role::Tool => 3,
        });
        put_bytes(into, message.content.as_bytes());
    }
    put_sampling(into, &request.sampling);
    // A request that says nothing of what came later stands as it did before there was any.
    let more = if says_more(request) { MORE } else { 0 };
    match request.on_detach {
        OnDetach::Cancel => into.push(more),
        OnDetach::Keep(ms) => {
            into.push(1 | more);
            put_u64(into, ms);
        }
    }
    if more != 0 {
        put_more(into, request);
    }
}

/// Whether a request says something for which there was no place at first. Numbers are compared by their bits, so that
/// whatever was written is read again.
fn says_more(request: &GenerationRequest) -> bool {
    let numbers =
        |s: &Sampling| [s.min_p, s.repetition_penalty, s.frequency_penalty, s.presence_penalty].map(f32::to_bits);
    let sampling = &request.sampling;
    numbers(sampling) != numbers(&Sampling::default())
        || !sampling.logit_bias.is_empty()
        || sampling.logprobs.is_some()
        || sampling.constraint != Constraint::None
        || request.raw
        || request.priority != Priority::default()
        || request.deadline_ms != 0
}

/// More of a request: min p and penalties for repetition, frequency and presence `f32`; list of biases (token `u32`, bias
/// `f32`); number of likelihoods 0, or 1 and `u8`; constraint (kind `u8`, and its text from 2 on); raw `u8`; priority `u8`;
/// deadline `u32`.
fn put_more(into: &mut Vec<u8>, request: &GenerationRequest) {
    let sampling = &request.sampling;
    let Sampling { min_p, repetition_penalty, frequency_penalty, presence_penalty, .. } = *sampling;
    for number in [min_p, repetition_penalty, frequency_penalty, presence_penalty] {
        put_u32(into, number.to_bits());
    }
    put_u32(into, sampling.logit_bias.len() as u32);
    for &(id, bias) in &sampling.logit_bias {
        put_u32(into, id);
        put_u32(into, bias.to_bits());
    }
    into.push(u8::from(sampling.logprobs.is_some()));
    into.extend(sampling.logprobs);
    into.push(match &sampling.constraint {
        Constraint::None => 0,
        Constraint::Json => 1,
        Constraint::JsonSchema(_) => 2,
        Constraint::Regex(_) => 3,
        Constraint::Lark(_) => 4,
    });
    if !matches!(sampling.constraint, Constraint::None | Constraint::Json) {
        put_bytes(into, sampling.constraint.text().as_bytes());
    }
    into.push(u8::from(request.raw));
    into.push(match request.priority {
        Priority::Normal => 0,
        Priority::Low => 1,
        Priority::High => 2,
    });
    put_u32(into, request.deadline_ms);
}

fn read_more(fields: &mut Fields<'_>, request: &mut GenerationRequest) -> Result<(), RecordError> {
    let sampling = &mut request.sampling;
    sampling.min_p = f32::from_bits(fields.u32("min p")?);
    sampling.repetition_penalty = f32::from_bits(fields.u32("repetition penalty")?);
    sampling.frequency_penalty = f32::from_bits(fields.u32("frequency penalty")?);
    sampling.presence_penalty = f32::from_bits(fields.u32("presence penalty")?);
    let count = fields.count("biases", BIAS_BYTES)?;
    let bias = |_| Ok((fields.u32("token of bias")?, f32::from_bits(fields.u32("bias")?)));
    sampling.logit_bias = (0..count).map(bias).collect::<Result<_, _>>()?;
    sampling.logprobs = if fields.flag("likelihoods")? { Some(fields.u8("number of likelihoods")?) } else { None };
    sampling.constraint = match fields.u8("constraint")? {
        0 => Constraint::None,
        1 => Constraint::Json,
        2 => Constraint::JsonSchema(fields.text("schema")?),
        3 => Constraint::Regex(fields.text("expression")?),
        4 => Constraint::Lark(fields.text("grammar")?),
        other => return Err(RecordError::Unknown { field: "constraint", value: u64::from(other) }),
    };
    request.raw = fields.flag("raw")?;
    request.priority = match fields.u8("priority")? {
        0 => Priority::Normal,
        1 => Priority::Low,
        2 => Priority::High,
        other => return Err(RecordError::Unknown { field: "priority", value: u64::from(other) }),
    };
    request.deadline_ms = fields.u32("deadline")?;
    Ok(())
}

pub(crate) fn read_request(fields: &mut Fields<'_>) -> Result<GenerationRequest, RecordError> {
    let (tenant, user, model) = (fields.name("tenant")?, fields.name("user")?, fields.name("model")?);
    let channel = match fields.flag("channel of request")? {
        true => Some((read_key(fields)?, ChannelId(fields.u64("channel id")?))),
        false => None,
    };
    let count = fields.count("messages", CHAT_MESSAGE_BYTES)?;
    let messages = (0..count).map(|_| read_chat_message(fields)).collect::<Result<_, _>>()?;
    let sampling = read_sampling(fields)?;
    let tail = fields.u8("on detach")?;
    if tail & !(MORE | 1) != 0 {
        return Err(RecordError::Unknown { field: "on detach", value: u64::from(tail) });
    }
    let on_detach = if tail & 1 != 0 { OnDetach::Keep(fields.u64("keep")?) } else { OnDetach::Cancel };
    let (raw, priority, deadline_ms) = (false, Priority::default(), 0);
    let mut request =
        GenerationRequest { tenant, user, model, channel, messages, sampling, on_detach, raw, priority, deadline_ms };
    if tail & MORE != 0 {
        read_more(fields, &mut request)?;
    }
    Ok(request)
}

fn read_chat_message(fields: &mut Fields<'_>) -> Result<ChatMessage, RecordError> {
    let role = match fields.u8("role")? {
        0 => Role::System,
        1 => Role::User,
        2 => Role::Assistant,
        3 => Role::Tool,
        other => return Err(RecordError::Unknown { field: "role", value: u64::from(other) }),
    };
    Ok(ChatMessage { role, content: fields.text("content")? })
}

fn put_sampling(into: &mut Vec<u8>, sampling: &Sampling) {
    put_u32(into, sampling.temperature.to_bits());
    put_u32(into, sampling.top_p.to_bits());
    put_u32(into, sampling.top_k);
    put_u64(into, sampling.seed);
    put_u32(into, sampling.max_tokens);
    put_u32(into, sampling.stop.len() as u32);
    sampling.stop.iter().for_each(|stop| put_bytes(into, stop.as_bytes()));
}

fn read_sampling(fields: &mut Fields<'_>) -> Result<Sampling, RecordError> {
    Ok(Sampling {
        temperature: f32::from_bits(fields.u32("temperature")?),
        top_p: f32::from_bits(fields.u32("top p")?),
        top_k: fields.u32("top k")?,
        seed: fields.u64("seed")?,
        max_tokens: fields.u32("max tokens")?,
        stop: (0..fields.count("stops", TEXT_BYTES)?).map(|_| fields.text("stop")).collect::<Result<_, _>>()?,
        ..Sampling::default()
    })
}

/// List of tokens: id `u32`, bytes of text `u32`.
pub(crate) fn put_tokens(into: &mut Vec<u8>, tokens: &[Token]) {
    put_u32(into, tokens.len() as u32);
    for token in tokens {
        put_u32(into, token.id);
        put_u32(into, token.bytes);
    }
}

pub(crate) fn read_tokens(fields: &mut Fields<'_>) -> Result<Vec<Token>, RecordError> {
    let count = fields.count("tokens", TOKEN_BYTES)?;
    let token = |_| Ok(Token { id: fields.u32("token id")?, bytes: fields.u32("token bytes")? });
    (0..count).map(token).collect()
}

/// Ending: reason `u8`, prompt and completion tokens `u32`, message; and, if 0x80 is added to the reason, tokens of the prompt
/// that had been computed before `u32`.
pub(crate) fn put_ending(into: &mut Vec<u8>, ending: &Ending) {
    let reason = match ending.reason {
        FinishReason::Stop => 0,
        FinishReason::Length => 1,
        FinishReason::Cancelled => 2,
        FinishReason::Failed => 3,
    };
    let cached = ending.usage.cached_tokens;
    into.push(if cached == 0 { reason } else { reason | CACHED });
    put_u32(into, ending.usage.prompt_tokens);
    put_u32(into, ending.usage.completion_tokens);
    put_bytes(into, ending.message.as_bytes());
    if cached != 0 {
        put_u32(into, cached);
    }
}

pub(crate) fn read_ending(fields: &mut Fields<'_>) -> Result<Ending, RecordError> {
    let tag = fields.u8("reason")?;
    let reason = match tag & !CACHED {
        0 => FinishReason::Stop,
        1 => FinishReason::Length,
        2 => FinishReason::Cancelled,
        3 => FinishReason::Failed,
        _ => return Err(RecordError::Unknown { field: "reason", value: u64::from(tag) }),
    };
    let (prompt_tokens, completion_tokens) = (fields.u32("prompt tokens")?, fields.u32("completion tokens")?);
    let message = fields.text("message")?;
    let cached_tokens = if tag & CACHED != 0 { fields.u32("cached tokens")? } else { 0 };
    Ok(Ending { reason, usage: Usage { prompt_tokens, completion_tokens, cached_tokens }, message })
}
