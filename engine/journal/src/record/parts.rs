//! What records are made of, piece by piece. The states that sealed segments keep are made of the same pieces.

use std::sync::Arc;

use thalweg_domain::generation::{Ending, Token};
use thalweg_domain::record::{ChannelSettings, GenerationRequest, Message, Posting};
use thalweg_protocol::generation::{ChatMessage, FinishReason, OnDetach, Role, Sampling, Usage};
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
/// last reader goes (0, or 1 and milliseconds `u64`).
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
        });
        put_bytes(into, message.content.as_bytes());
    }
    put_sampling(into, &request.sampling);
    match request.on_detach {
        OnDetach::Cancel => into.push(0),
        OnDetach::Keep(ms) => {
            into.push(1);
            put_u64(into, ms);
        }
    }
}

pub(crate) fn read_request(fields: &mut Fields<'_>) -> Result<GenerationRequest, RecordError> {
    let (tenant, user, model) = (fields.name("tenant")?, fields.name("user")?, fields.name("model")?);
    let channel = match fields.flag("channel of request")? {
        true => Some((read_key(fields)?, ChannelId(fields.u64("channel id")?))),
        false => None,
    };
    let count = fields.count("messages", CHAT_MESSAGE_BYTES)?;
    let messages = (0..count).map(|_| read_chat_message(fields)).collect::<Result<_, _>>()?;
    Ok(GenerationRequest {
        tenant,
        user,
        model,
        channel,
        messages,
        sampling: read_sampling(fields)?,
        on_detach: if fields.flag("on detach")? { OnDetach::Keep(fields.u64("keep")?) } else { OnDetach::Cancel },
    })
}

fn read_chat_message(fields: &mut Fields<'_>) -> Result<ChatMessage, RecordError> {
    let role = match fields.u8("role")? {
        0 => Role::System,
        1 => Role::User,
        2 => Role::Assistant,
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

/// Ending: reason `u8`, prompt and completion tokens `u32`, message.
pub(crate) fn put_ending(into: &mut Vec<u8>, ending: &Ending) {
    into.push(match ending.reason {
        FinishReason::Stop => 0,
        FinishReason::Length => 1,
        FinishReason::Cancelled => 2,
        FinishReason::Failed => 3,
    });
    put_u32(into, ending.usage.prompt_tokens);
    put_u32(into, ending.usage.completion_tokens);
    put_bytes(into, ending.message.as_bytes());
}

pub(crate) fn read_ending(fields: &mut Fields<'_>) -> Result<Ending, RecordError> {
    Ok(Ending {
        reason: match fields.u8("reason")? {
            0 => FinishReason::Stop,
            1 => FinishReason::Length,
            2 => FinishReason::Cancelled,
            3 => FinishReason::Failed,
            other => return Err(RecordError::Unknown { field: "reason", value: u64::from(other) }),
        },
        usage: Usage {
            prompt_tokens: fields.u32("prompt tokens")?,
            completion_tokens: fields.u32("completion tokens")?,
        },
        message: fields.text("message")?,
    })
}
