//! The codec of a partition's state. What records are made of too stands as it does in records.
//!
//! What is read is checked against the limits of what may be there, and nothing is allocated that the bytes do not hold.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::dedupe::{Dedupe, Outcome, Writer};
use thalweg_domain::partition::{ChannelState, GenerationState, Mark, PartitionState};
use thalweg_protocol::ids::{ChannelId, GenerationId, Lsn, Position, Sequence, SessionId};
use thalweg_protocol::limits::{DEDUPE_COMMANDS_MAX, DEDUPE_OUTCOMES_MAX, DEDUPE_SESSIONS_MAX};

use crate::record::RecordError;
use crate::record::fields::{Fields, put_bytes, put_name, put_u32, put_u64, put_u128};
use crate::record::parts::{
    put_ending, put_key, put_request, put_settings, put_tokens, read_ending, read_key, read_request, read_settings,
    read_tokens,
};

/// Why bytes are no state of a partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A field is not what it should be.
    #[error(transparent)]
    Field(#[from] RecordError),
    /// Fields contradict each other, or a limit.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// Writes a state. [`decode_state`] reads it back, equal.
pub fn encode_state(state: &PartitionState, into: &mut Vec<u8>) {
    put_u64(into, state.first.0);
    put_u64(into, state.last.0);
    put_u32(into, state.channels.len() as u32);
    for (id, channel) in &state.channels {
        put_u64(into, id.0);
        put_channel(channel, into);
    }
    put_dedupe(&state.dedupe, into);
    put_u32(into, state.generations.len() as u32);
    for (id, generation) in &state.generations {
        put_u64(into, id.0);
        put_generation(generation, into);
    }
}

/// Reads a state.
///
/// # Errors
/// [`StateError`], if the bytes are none, or more than one.
pub fn decode_state(bytes: &Bytes) -> Result<PartitionState, StateError> {
    let mut fields = Fields::new(bytes, 0);
    let (first, last) = (Lsn(fields.u64("first")?), Lsn(fields.u64("last")?));
    if last < first || (first == Lsn(0)) != (last == Lsn(0)) {
        return Err(StateError::Contradiction("its last record is before its first"));
    }
    let mut state = PartitionState { first, last, ..PartitionState::default() };
    for _ in 0..fields.count("channels", 8 + 22)? {
        let id = ChannelId(fields.u64("channel")?);
        if state.channels.last_key_value().is_some_and(|(before, _)| *before >= id) {
            return Err(StateError::Contradiction("channels are out of order"));
        }
        state.channels.insert(id, read_channel(&mut fields)?);
    }
    state.dedupe = read_dedupe(&mut fields)?;
    for _ in 0..fields.count("generations", 8 + 15)? {
        let id = GenerationId(fields.u64("generation")?);
        if state.generations.last_key_value().is_some_and(|(before, _)| *before >= id) {
            return Err(StateError::Contradiction("generations are out of order"));
        }
        state.generations.insert(id, read_generation(&mut fields)?);
    }
    fields.finish()?;
    Ok(state)
}

fn put_channel(channel: &ChannelState, into: &mut Vec<u8>) {
    let ChannelState { made, head, bytes, marks, deleted } = channel;
    into.push(made.is_some().into());
    if let Some((key, settings)) = made {
        put_key(into, key);
        put_settings(into, settings);
    }
    put_u64(into, head.0);
    put_u64(into, *bytes);
    into.push((*deleted).into());
    put_u32(into, marks.len() as u32);
    for mark in marks {
        put_u64(into, mark.position.0);
        put_u64(into, mark.bytes);
        put_u64(into, mark.timestamp_us);
    }
}

fn read_channel(fields: &mut Fields<'_>) -> Result<ChannelState, StateError> {
    let mut channel = ChannelState::default();
    if fields.flag("made")? {
        channel.made = Some((read_key(fields)?, read_settings(fields)?));
    }
    channel.head = Position(fields.u64("head")?);
    channel.bytes = fields.u64("bytes")?;
    channel.deleted = fields.flag("deleted")?;
    let count = fields.count("marks", 24)?;
    channel.marks.reserve_exact(count);
    for _ in 0..count {
        let (position, bytes) = (Position(fields.u64("mark")?), fields.u64("mark bytes")?);
        let in_order = channel.marks.last().is_none_or(|before| before.position < position && before.bytes <= bytes);
        if !in_order || position > channel.head || bytes > channel.bytes {
            return Err(StateError::Contradiction("the marks of a channel are out of order"));
        }
        channel.marks.push(Mark { position, bytes, timestamp_us: fields.u64("mark timestamp")? });
    }
    Ok(channel)
}

fn put_dedupe(dedupe: &Dedupe, into: &mut Vec<u8>) {
    into.push(dedupe.has_forgotten().into());
    let count_at = into.len();
    put_u32(into, 0);
    let mut count = 0_u32;
    for (writer, touched, commands) in dedupe.writers() {
        count += 1;
        put_name(into, &writer.tenant);
        put_u128(into, writer.session.0);
        put_u64(into, touched.0);
        put_u32(into, commands.len() as u32);
        for (sequence, Outcome { position, timestamp_us }) in commands {
            put_u64(into, sequence.0);
            put_u64(into, position.0);
            put_u64(into, timestamp_us);
        }
    }
    into[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
}

fn read_dedupe(fields: &mut Fields<'_>) -> Result<Dedupe, StateError> {
    let mut dedupe = Dedupe::default();
    if fields.flag("forgotten")? {
        dedupe.set_forgotten();
    }
    let writers = fields.count("writers", 30)?;
    if writers > DEDUPE_SESSIONS_MAX {
        return Err(StateError::Contradiction("more writers are remembered than may be"));
    }
    let (mut newest, mut outcomes) = (Lsn(0), 0);
    for _ in 0..writers {
        let writer = Writer { tenant: fields.name("tenant")?, session: SessionId(fields.u128("session")?) };
        let touched = Lsn(fields.u64("touched")?);
        if touched <= newest {
            return Err(StateError::Contradiction("writers are out of order"));
        }
        newest = touched;
        let count = fields.count("commands", 24)?;
        outcomes += count;
        if count > DEDUPE_COMMANDS_MAX || outcomes > DEDUPE_OUTCOMES_MAX {
            return Err(StateError::Contradiction("more commands are remembered than may be"));
        }
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            let (sequence, position) = (Sequence(fields.u64("sequence")?), Position(fields.u64("position")?));
            commands.push((sequence, Outcome { position, timestamp_us: fields.u64("timestamp")? }));
        }
        dedupe.restore(writer, touched, commands);
    }
    if dedupe.writers().count() != writers {
        return Err(StateError::Contradiction("a writer is remembered twice"));
    }
    Ok(dedupe)
}

fn put_generation(generation: &GenerationState, into: &mut Vec<u8>) {
    let GenerationState { request, index, tokens, text, ending, deleted } = generation;
    into.push(request.is_some().into());
    if let Some(request) = request {
        put_request(into, request);
    }
    put_u32(into, *index);
    put_tokens(into, tokens);
    put_bytes(into, text);
    into.push(ending.is_some().into());
    if let Some((ending, at_us)) = ending {
        put_ending(into, ending);
        put_u64(into, *at_us);
    }
    into.push((*deleted).into());
}

fn read_generation(fields: &mut Fields<'_>) -> Result<GenerationState, StateError> {
    let mut generation = GenerationState::default();
    if fields.flag("has request")? {
        generation.request = Some(Arc::new(read_request(fields)?));
    }
    generation.index = fields.u32("index")?;
    generation.tokens = read_tokens(fields)?;
    generation.text = fields.bytes("text")?.to_vec();
    let bytes: u64 = generation.tokens.iter().map(|token| u64::from(token.bytes)).sum();
    if bytes != generation.text.len() as u64 {
        return Err(StateError::Contradiction("the tokens of a generation do not fit their text"));
    }
    if fields.flag("has ended")? {
        generation.ending = Some((read_ending(fields)?, fields.u64("ended at")?));
    }
    generation.deleted = fields.flag("deleted")?;
    Ok(generation)
}
