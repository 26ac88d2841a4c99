//! How a record stands in the log: little-endian, hand-written, and read without copying what is large.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | length | `u32`, bytes that follow it; at most [`LOG_RECORD_BYTES_MAX`] |
//! | 4 | tag | `u8`, layout version in the upper four bits, kind of event in the lower |
//! | 5 | partition | `u16` |
//! | 7 | lsn | `u64` |
//! | 15 | epoch | `u64` |
//! | 23 | timestamp | `u64`, microseconds since 1970 |
//! | 31 | event | by its kind |
//!
//! | kind | event | fields |
//! |---|---|---|
//! | 1 | channel created | key, settings |
//! | 2 | channel deleted | key, id `u64` |
//! | 3 | published | posting |
//! | 4 | generation started | generation `u64`, request, optional posting |
//! | 5 | generation tokens | generation `u64`, index `u32`, tokens, text, optional posting |
//! | 6 | generation finished | generation `u64`, ending, optional posting |
//! | 7 | generation deleted | generation `u64` |
//! | 8 | channel created, with facts | key, settings, facts of the channel, at least one |
//! | 9 | channel changed | key, id `u64`, facts of the channel, optional posting |
//! | 10 | user changed | tenant and user name, facts of the user |
//!
//! Names are one byte of length and UTF-8, texts four; lists are a count `u32` and their entries; what is optional is a byte
//! 0, or 1 and the value. Of these are made:
//!
//! | piece | fields |
//! |---|---|
//! | key | tenant name, channel name |
//! | settings | messages `u32`, bytes `u64`, age `u64` in microseconds, durability `u8` |
//! | posting | channel id `u64`, position `u64`, session `u128`, sequence `u64`, key, payload |
//! | request | tenant, user and model name, optional key and id `u64`, list of messages, sampling, what happens when readers go, perhaps more |
//! | message | role `u8`, text |
//! | sampling | temperature `f32`, top p `f32`, top k `u32`, seed `u64`, most tokens `u32`, list of stop texts |
//! | when readers go | 0, or 1 and milliseconds `u64`; 2 is added if more of the request follows |
//! | more | min p, repetition, frequency and presence penalty `f32`, list of biases (token `u32`, bias `f32`), optional number of likelihoods `u8`, constraint `u8` and from 2 on its text, raw `u8`, priority `u8`, deadline `u32` in milliseconds |
//! | tokens | list of id `u32` and bytes of text `u32` |
//! | facts of a channel | list of a byte and: 0 info; 1 user, member; 2 user, who is none; 3 user, reading; 4 position `u64`, redacted; 5 snapshot |
//! | snapshot | position of its first part `u64`, number of parts `u32` |
//! | info | kind `u8`, topic, who may write `u8`, name of who made it, when `u64` |
//! | member | role `u8`, since when `u64`, name of who made them that |
//! | reading | position, number of messages and of mentions `u64` |
//! | facts of a user | list of a byte and: 0 texts (shown name, about, status); 1 seen at `u64`; 2 forgotten |
//! | ending | reason `u8`, prompt tokens `u32`, completion tokens `u32`, text; cached tokens `u32` if 0x80 is added to the reason |
//!
//! The *payload* of a posting is its encoded delivery as it goes to readers, after its length `u32`; what else is known of
//! the message is read from it. A layout that changes gets another version; the golden file holds one record of each kind.

pub(crate) mod facts;
pub(crate) mod fields;
pub(crate) mod parts;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use thalweg_domain::record::{Event, Record};
use thalweg_protocol::ids::{ChannelId, Epoch, GenerationId, Lsn, NameError, Partition};
use thalweg_protocol::limits::LOG_RECORD_BYTES_MAX;
use thalweg_protocol::reject::Reject;

use fields::{Fields, put_u16, put_u32, put_u64};

/// The layout of records that is written.
const VERSION: u8 = 1;

const CHANNEL_CREATED: u8 = 1;
const CHANNEL_DELETED: u8 = 2;
const PUBLISHED: u8 = 3;
const GENERATION_STARTED: u8 = 4;
const GENERATION_TOKENS: u8 = 5;
const GENERATION_FINISHED: u8 = 6;
const GENERATION_DELETED: u8 = 7;
const CHANNEL_CREATED_WITH_FACTS: u8 = 8;
const CHANNEL_CHANGED: u8 = 9;
const USER_CHANGED: u8 = 10;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It ends inside a field.
    #[error("{field}, at byte {at}, reaches beyond the end of the record")]
    Short {
        /// The field.
        field: &'static str,
        /// Where the field begins in the bytes that were given.
        at: usize,
    },
    /// It says that it is longer than any that is written.
    #[error("the record has {bytes} bytes; at most {LOG_RECORD_BYTES_MAX} are ever written")]
    Long {
        /// What it says.
        bytes: usize,
    },
    /// A text is longer than any that is written.
    #[error("{field} has {bytes} bytes; at most {most} are ever written")]
    Beyond {
        /// The field.
        field: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// Something is left after its last field.
    #[error("{bytes} bytes are left after the last field of the record")]
    Rest {
        /// How much.
        bytes: usize,
    },
    /// A field has a value that means nothing.
    #[error("{field} is {value}, which means nothing to this version")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A name is none.
    #[error("{field} {error}")]
    Name {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        error: NameError,
    },
    /// A text is not UTF-8.
    #[error("{field} is not valid UTF-8 after byte {valid}")]
    Text {
        /// The field.
        field: &'static str,
        /// Bytes of it that are.
        valid: usize,
    },
    /// Two fields contradict each other.
    #[error("{field} is {found}, but {other} makes it {expected}")]
    Contradiction {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What says otherwise.
        other: &'static str,
        /// What that says.
        expected: u64,
    },
    /// The encoded delivery of a message cannot be read.
    #[error("payload: {0}")]
    Payload(Reject),
}

/// What can be said of a record without reading its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heading {
    /// See [`Record::partition`].
    pub partition: Partition,
    /// See [`Record::lsn`].
    pub lsn: Lsn,
    /// See [`Record::epoch`].
    pub epoch: Epoch,
    /// See [`Record::timestamp_us`].
    pub timestamp_us: u64,
}

/// Appends a record to `into`.
///
/// # Panics
/// If the record is larger than [`LOG_RECORD_BYTES_MAX`], or its tokens and their text do not fit each other: it could
/// never be read again, and must not be answered as if it were safe.
pub fn encode(record: &Record, into: &mut Vec<u8>) {
    let start = into.len();
    let kind = match &record.event {
        Event::ChannelCreated { facts, .. } if facts.is_empty() => CHANNEL_CREATED,
        Event::ChannelCreated { .. } => CHANNEL_CREATED_WITH_FACTS,
        Event::ChannelChanged { .. } => CHANNEL_CHANGED,
        Event::UserChanged { .. } => USER_CHANGED,
        Event::ChannelDeleted { .. } => CHANNEL_DELETED,
        Event::Published(_) => PUBLISHED,
        Event::GenerationStarted { .. } => GENERATION_STARTED,
        Event::GenerationTokens { .. } => GENERATION_TOKENS,
        Event::GenerationFinished { .. } => GENERATION_FINISHED,
        Event::GenerationDeleted { .. } => GENERATION_DELETED,
    };
    put_u32(into, 0);
    into.push(VERSION << 4 | kind);
    put_u16(into, record.partition.0);
    put_u64(into, record.lsn.0);
    put_u64(into, record.epoch.0);
    put_u64(into, record.timestamp_us);
    put_event(into, &record.event);
    let bytes = into.len() - start - 4;
    assert!(bytes <= LOG_RECORD_BYTES_MAX, "a record of {bytes} bytes was decided on; at most {LOG_RECORD_BYTES_MAX}");
    into[start..start + 4].copy_from_slice(&(bytes as u32).to_le_bytes());
}

fn put_event(into: &mut Vec<u8>, event: &Event) {
    match event {
        Event::ChannelCreated { channel, settings, facts } => {
            parts::put_key(into, channel);
            parts::put_settings(into, settings);
            // One without facts stands as it did before there were any.
            if !facts.is_empty() {
                facts::put_channel_facts(into, facts);
            }
        }
        Event::ChannelChanged { channel, id, facts, posting } => {
            parts::put_key(into, channel);
            put_u64(into, id.0);
            facts::put_channel_facts(into, facts);
            parts::put_optional_posting(into, posting.as_ref());
        }
        Event::UserChanged { tenant, user, facts } => {
            fields::put_name(into, tenant);
            fields::put_name(into, user);
            facts::put_user_facts(into, facts);
        }
        Event::ChannelDeleted { channel, id } => {
            parts::put_key(into, channel);
            put_u64(into, id.0);
        }
        Event::Published(posting) => parts::put_posting(into, posting),
        Event::GenerationStarted { generation, request, posting } => {
            put_u64(into, generation.0);
            parts::put_request(into, request);
            parts::put_optional_posting(into, posting.as_ref());
        }
        Event::GenerationTokens { generation, index, tokens, text, posting } => {
            let bytes: u64 = tokens.iter().map(|token| u64::from(token.bytes)).sum();
            assert_eq!(bytes, text.len() as u64, "the text of tokens is theirs, one after the other");
            put_u64(into, generation.0);
            put_u32(into, *index);
            parts::put_tokens(into, tokens);
            fields::put_bytes(into, text);
            parts::put_optional_posting(into, posting.as_ref());
        }
        Event::GenerationFinished { generation, ending, posting } => {
            put_u64(into, generation.0);
            parts::put_ending(into, ending);
            parts::put_optional_posting(into, posting.as_ref());
        }
        Event::GenerationDeleted { generation } => put_u64(into, generation.0),
    }
}

/// Reads the record that begins at `at`, and says where it ends. Texts of tokens and payloads of messages share `bytes`.
///
/// # Errors
/// [`RecordError`], which names the field. Nothing is allocated because a length in the bytes says so.
pub fn decode(bytes: &Bytes, at: usize) -> Result<(Record, usize), RecordError> {
    let mut fields = open(bytes, at)?;
    let tag = fields.u8("tag")?;
    if tag >> 4 != VERSION {
        return Err(RecordError::Unknown { field: "layout version", value: u64::from(tag >> 4) });
    }
    let heading = read_heading(&mut fields)?;
    let event = read_event(&mut fields, tag & 0xf)?;
    let end = fields.finish()?;
    let Heading { partition, lsn, epoch, timestamp_us } = heading;
    Ok((Record { partition, lsn, epoch, timestamp_us, event }, end))
}

/// Reads what stands before the event of the record that begins at `at`, and says where the record ends.
///
/// # Errors
/// See [`decode`].
pub fn heading(bytes: &Bytes, at: usize) -> Result<(Heading, usize), RecordError> {
    let mut fields = open(bytes, at)?;
    fields.u8("tag")?;
    let heading = read_heading(&mut fields)?;
    Ok((heading, fields.end()))
}

/// The fields of the record that begins at `at`, its length checked.
fn open(bytes: &Bytes, at: usize) -> Result<Fields<'_>, RecordError> {
    let mut fields = Fields::new(bytes, at);
    let length = fields.u32("length")? as usize;
    if length > LOG_RECORD_BYTES_MAX {
        return Err(RecordError::Long { bytes: length });
    }
    fields.narrow("record", length)
}

fn read_heading(fields: &mut Fields<'_>) -> Result<Heading, RecordError> {
    Ok(Heading {
        partition: Partition(fields.u16("partition")?),
        lsn: Lsn(fields.u64("lsn")?),
        epoch: Epoch(fields.u64("epoch")?),
        timestamp_us: fields.u64("timestamp")?,
    })
}

fn read_event(fields: &mut Fields<'_>, kind: u8) -> Result<Event, RecordError> {
    Ok(match kind {
        CHANNEL_CREATED => Event::ChannelCreated {
            channel: parts::read_key(fields)?,
            settings: parts::read_settings(fields)?,
            facts: Vec::new(),
        },
        CHANNEL_CREATED_WITH_FACTS => {
            let (channel, settings) = (parts::read_key(fields)?, parts::read_settings(fields)?);
            let facts = facts::read_channel_facts(fields)?;
            if facts.is_empty() {
                return Err(RecordError::Unknown { field: "number of facts", value: 0 });
            }
            Event::ChannelCreated { channel, settings, facts }
        }
        CHANNEL_CHANGED => Event::ChannelChanged {
            channel: parts::read_key(fields)?,
            id: ChannelId(fields.u64("channel id")?),
            facts: facts::read_channel_facts(fields)?,
            posting: parts::read_optional_posting(fields)?,
        },
        USER_CHANGED => Event::UserChanged {
            tenant: fields.name("tenant")?,
            user: fields.name("user")?,
            facts: facts::read_user_facts(fields)?,
        },
        CHANNEL_DELETED => {
            Event::ChannelDeleted { channel: parts::read_key(fields)?, id: ChannelId(fields.u64("channel id")?) }
        }
        PUBLISHED => Event::Published(parts::read_posting(fields)?),
        GENERATION_STARTED => Event::GenerationStarted {
            generation: GenerationId(fields.u64("generation")?),
            request: parts::read_request(fields)?.into(),
            posting: parts::read_optional_posting(fields)?,
        },
        GENERATION_TOKENS => read_tokens(fields)?,
        GENERATION_FINISHED => Event::GenerationFinished {
            generation: GenerationId(fields.u64("generation")?),
            ending: parts::read_ending(fields)?,
            posting: parts::read_optional_posting(fields)?,
        },
        GENERATION_DELETED => Event::GenerationDeleted { generation: GenerationId(fields.u64("generation")?) },
        other => return Err(RecordError::Unknown { field: "kind of event", value: u64::from(other) }),
    })
}

fn read_tokens(fields: &mut Fields<'_>) -> Result<Event, RecordError> {
    let (generation, index) = (GenerationId(fields.u64("generation")?), fields.u32("index")?);
    let tokens = parts::read_tokens(fields)?;
    let text = fields.bytes("text")?;
    let expected = tokens.iter().map(|token| u64::from(token.bytes)).sum();
    if expected != text.len() as u64 {
        let (field, other) = ("length of text", "tokens");
        return Err(RecordError::Contradiction { field, found: text.len() as u64, other, expected });
    }
    let posting = parts::read_optional_posting(fields)?;
    Ok(Event::GenerationTokens { generation, index, tokens, text, posting })
}
