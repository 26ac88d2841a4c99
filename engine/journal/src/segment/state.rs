//! The codec of a partition's state. What records are made of too stands as it does in records.
//!
//! What is read is checked against the limits of what may be there, and nothing is allocated that the bytes do not hold.
//!
//! A state begins with `u64::MAX`, which is no place in a log, and the number of its layout, `u8`. Those of layout 2 have no
//! snapshots. States in segments of format 1 begin with the place of their first record instead: they end after the
//! generations, and their channels after the marks, so that there are no facts in them.
//!
//! | piece | fields |
//! |---|---|
//! | state | first and last place `u64`, channels (id `u64`, channel), commands, generations (id `u64`, generation), users |
//! | channel | optional key and settings, head `u64`, bytes `u64`, deleted `u8`, marks, messages `u64`, newest at `u64`, facts, snapshots |
//! | facts | optional info, members (name; 0, or 1 and member), readings (name, reading), redacted `u64`, mentions (name, `u64`) |
//! | user | tenant and user name, optional profile, seen at `u64`, forgotten `u8` |

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::dedupe::{Dedupe, Outcome, Writer};
use thalweg_domain::fact::{ChannelFacts, Mentions, UserState};
use thalweg_domain::partition::{ChannelState, GenerationState, Mark, PartitionState};
use thalweg_protocol::ids::{ChannelId, GenerationId, Lsn, Name, Position, Sequence, SessionId};
use thalweg_protocol::limits::{DEDUPE_COMMANDS_MAX, DEDUPE_OUTCOMES_MAX, DEDUPE_SESSIONS_MAX, MEMBERS_MAX, USERS_MAX};

use crate::record::RecordError;
use crate::record::facts::{
    put_info, put_member, put_profile, put_reading, put_snapshot, read_info, read_member, read_profile, read_reading,
    read_snapshot,
};
use crate::record::fields::{Fields, put_bytes, put_name, put_u32, put_u64, put_u128};
use crate::record::parts::{
    put_ending, put_key, put_request, put_settings, put_tokens, read_ending, read_key, read_request, read_settings,
    read_tokens,
};

/// What no state of format 1 begins with.
const LAID_OUT: u64 = u64::MAX;
/// The layout that is written.
const LAYOUT: u8 = 3;
/// The first layout whose channels have snapshots.
const WITH_SNAPSHOTS: u8 = 3;
/// The oldest layout that is read, beside that of format 1.
const LAYOUT_OLDEST: u8 = 2;

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
    put_u64(into, LAID_OUT);
    into.push(LAYOUT);
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
    put_u32(into, state.users.len() as u32);
    for ((tenant, user), state) in &state.users {
        put_name(into, tenant);
        put_name(into, user);
        put_user(state, into);
    }
}

/// Reads a state, of this layout or of those before it.
///
/// # Errors
/// [`StateError`], if the bytes are none, or more than one.
pub fn decode_state(bytes: &Bytes) -> Result<PartitionState, StateError> {
    let mut fields = Fields::new(bytes, 0);
    let mut first = fields.u64("first")?;
    let has_facts = first == LAID_OUT;
    let mut layout = 1;
    if has_facts {
        layout = fields.u8("layout")?;
        if !(LAYOUT_OLDEST..=LAYOUT).contains(&layout) {
            return Err(RecordError::Unknown { field: "layout", value: u64::from(layout) }.into());
        }
        first = fields.u64("first")?;
    }
    let (first, last) = (Lsn(first), Lsn(fields.u64("last")?));
    if last < first || (first == Lsn(0)) != (last == Lsn(0)) {
        return Err(StateError::Contradiction("its last record is before its first"));
    }
    let mut state = PartitionState { first, last, ..PartitionState::default() };
    for _ in 0..fields.count("channels", 8 + 22)? {
        let id = ChannelId(fields.u64("channel")?);
        if state.channels.last_key_value().is_some_and(|(before, _)| *before >= id) {
            return Err(StateError::Contradiction("channels are out of order"));
        }
        let mut channel = read_channel(&mut fields)?;
        if has_facts {
            read_people(&mut channel, &mut fields)?;
        }
        if layout >= WITH_SNAPSHOTS {
            read_snapshots(&mut channel, &mut fields)?;
        }
        state.channels.insert(id, channel);
    }
    state.dedupe = read_dedupe(&mut fields)?;
    for _ in 0..fields.count("generations", 8 + 15)? {
        let id = GenerationId(fields.u64("generation")?);
        if state.generations.last_key_value().is_some_and(|(before, _)| *before >= id) {
            return Err(StateError::Contradiction("generations are out of order"));
        }
        state.generations.insert(id, read_generation(&mut fields)?);
    }
    if has_facts {
        state.users = read_users(&mut fields)?;
    }
    fields.finish()?;
    Ok(state)
}

fn put_channel(channel: &ChannelState, into: &mut Vec<u8>) {
    let ChannelState { made, head, bytes, marks, deleted, messages, mentioned, active_us, facts } = channel;
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
    put_u64(into, *messages);
    put_u64(into, *active_us);
    put_facts(facts, into);
    put_u32(into, mentioned.len() as u32);
    for (user, mentions) in mentioned {
        put_name(into, user);
        let positions = mentions.positions();
        put_u32(into, positions.len() as u32);
        positions.for_each(|position| put_u64(into, position.0));
    }
    put_u32(into, facts.snapshots.len() as u32);
    facts.snapshots.iter().for_each(|snapshot| put_snapshot(into, *snapshot));
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

fn put_facts(facts: &ChannelFacts, into: &mut Vec<u8>) {
    // Snapshots came later, and stand behind the rest of the channel.
    let ChannelFacts { info, members, readings, redacted, snapshots: _ } = facts;
    into.push(info.is_some().into());
    if let Some(info) = info {
        put_info(into, info);
    }
    put_u32(into, members.len() as u32);
    for (user, member) in members {
        put_name(into, user);
        into.push(member.is_some().into());
        if let Some(member) = member {
            put_member(into, member);
        }
    }
    put_u32(into, readings.len() as u32);
    for (user, reading) in readings {
        put_name(into, user);
        put_reading(into, reading);
    }
    put_u32(into, redacted.len() as u32);
    redacted.iter().for_each(|position| put_u64(into, position.0));
}

/// What a channel had nothing of in format 1.
fn read_people(channel: &mut ChannelState, fields: &mut Fields<'_>) -> Result<(), StateError> {
    channel.messages = fields.u64("messages of channel")?;
    channel.active_us = fields.u64("newest message at")?;
    let facts = &mut channel.facts;
    if fields.flag("has info")? {
        facts.info = Some(read_info(fields)?);
    }
    facts.members = read_by_name(fields, "members", 3, &mut |fields| {
        if fields.flag("is member")? { read_member(fields).map(Some) } else { Ok(None) }
    })?;
    // Those who lost their place are not counted: there may have been any number of them.
    if facts.members.values().flatten().count() > MEMBERS_MAX {
        return Err(StateError::Contradiction("a channel has more members than it may"));
    }
    facts.readings = read_by_name(fields, "readings", 18, &mut read_reading)?;
    for _ in 0..fields.count("redacted messages", 8)? {
        let position = Position(fields.u64("redacted message")?);
        if facts.redacted.last().is_some_and(|before| *before >= position) {
            return Err(StateError::Contradiction("the redacted messages of a channel are out of order"));
        }
        facts.redacted.insert(position);
    }
    // More than are kept are no contradiction: the newest are taken.
    channel.mentioned = read_by_name(fields, "mentioned", 6, &mut |fields| {
        let mut mentions = Mentions::default();
        for _ in 0..fields.count("mentions", 8)? {
            mentions.push(Position(fields.u64("mentioned at")?));
        }
        Ok(mentions)
    })?;
    Ok(())
}

/// What a channel had nothing of before layout 3.
fn read_snapshots(channel: &mut ChannelState, fields: &mut Fields<'_>) -> Result<(), StateError> {
    let mut end = Position(0);
    for _ in 0..fields.count("snapshots", 12)? {
        let snapshot = read_snapshot(fields)?;
        if snapshot.position < end || snapshot.parts == 0 {
            return Err(StateError::Contradiction("the snapshots of a document are out of order"));
        }
        let after = snapshot.position.0.checked_add(u64::from(snapshot.parts));
        end = Position(after.ok_or(StateError::Contradiction("a snapshot of a document has no end"))?);
        channel.facts.snapshots.push(snapshot);
    }
    Ok(())
}

/// A list of a name and a value, in the order of names. An entry has at least `entry_bytes`.
fn read_by_name<T>(
    fields: &mut Fields<'_>,
    what: &'static str,
    entry_bytes: usize,
    read: &mut dyn FnMut(&mut Fields<'_>) -> Result<T, RecordError>,
) -> Result<BTreeMap<Name, T>, StateError> {
    let mut entries = BTreeMap::new();
    for _ in 0..fields.count(what, entry_bytes)? {
        let name = fields.name(what)?;
        if entries.last_key_value().is_some_and(|(before, _)| *before >= name) {
            return Err(StateError::Contradiction("what a channel knows of people is out of order"));
        }
        entries.insert(name, read(fields)?);
    }
    Ok(entries)
}

fn put_user(user: &UserState, into: &mut Vec<u8>) {
    let UserState { profile, seen_us, forgotten } = user;
    into.push(profile.is_some().into());
    if let Some(profile) = profile {
        put_profile(into, profile);
    }
    put_u64(into, *seen_us);
    into.push((*forgotten).into());
}

fn read_users(fields: &mut Fields<'_>) -> Result<BTreeMap<(Name, Name), UserState>, StateError> {
    let mut users = BTreeMap::new();
    let count = fields.count("users", 2 + 2 + 10)?;
    if count > USERS_MAX {
        return Err(StateError::Contradiction("more users are known than may be"));
    }
    for _ in 0..count {
        let key = (fields.name("tenant")?, fields.name("user")?);
        if users.last_key_value().is_some_and(|(before, _)| *before >= key) {
            return Err(StateError::Contradiction("users are out of order"));
        }
        let mut user = UserState::default();
        if fields.flag("has profile")? {
            user.profile = Some(read_profile(fields)?);
        }
        (user.seen_us, user.forgotten) = (fields.u64("seen at")?, fields.flag("is forgotten")?);
        users.insert(key, user);
    }
    Ok(users)
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
