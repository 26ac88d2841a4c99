//! Facts of channels and users in bytes, in records and in the states that sealed segments keep.

use thalweg_domain::fact::{ChannelFact, ChannelInfo, Member, Reading, Snapshot, UserFact};
use thalweg_protocol::chat::{ChannelKind, MemberRole, PostRule, ProfileText};
use thalweg_protocol::ids::Position;
use thalweg_protocol::limits::{ABOUT_BYTES_MAX, DISPLAY_BYTES_MAX, STATUS_BYTES_MAX, TOPIC_BYTES_MAX};

use super::RecordError;
use super::fields::{Fields, put_bytes, put_name, put_u32, put_u64};

const INFO: u8 = 0;
const MEMBER: u8 = 1;
const NO_MEMBER: u8 = 2;
const READING: u8 = 3;
const REDACTED: u8 = 4;
const SNAPSHOT: u8 = 5;

const PROFILE: u8 = 0;
const SEEN: u8 = 1;
const FORGOTTEN: u8 = 2;

/// Least bytes of a fact of a channel: what it is, and a name of one byte.
const CHANNEL_FACT_BYTES: usize = 3;
/// Least bytes of a fact of a user: what it is.
const USER_FACT_BYTES: usize = 1;

/// List of facts of a channel.
pub(crate) fn put_channel_facts(into: &mut Vec<u8>, facts: &[ChannelFact]) {
    put_u32(into, facts.len() as u32);
    for fact in facts {
        match fact {
            ChannelFact::Info(info) => {
                into.push(INFO);
                put_info(into, info);
            }
            ChannelFact::Member { user, member: Some(member) } => {
                into.push(MEMBER);
                put_name(into, user);
                put_member(into, member);
            }
            ChannelFact::Member { user, member: None } => {
                into.push(NO_MEMBER);
                put_name(into, user);
            }
            ChannelFact::Reading { user, reading } => {
                into.push(READING);
                put_name(into, user);
                put_reading(into, reading);
            }
            ChannelFact::Redacted { position } => {
                into.push(REDACTED);
                put_u64(into, position.0);
            }
            ChannelFact::Snapshot(snapshot) => {
                into.push(SNAPSHOT);
                put_snapshot(into, *snapshot);
            }
        }
    }
}

pub(crate) fn read_channel_facts(fields: &mut Fields<'_>) -> Result<Vec<ChannelFact>, RecordError> {
    let count = fields.count("facts", CHANNEL_FACT_BYTES)?;
    (0..count).map(|_| read_channel_fact(fields)).collect()
}

fn read_channel_fact(fields: &mut Fields<'_>) -> Result<ChannelFact, RecordError> {
    Ok(match fields.u8("fact of channel")? {
        INFO => ChannelFact::Info(read_info(fields)?),
        MEMBER => ChannelFact::Member { user: fields.name("member")?, member: Some(read_member(fields)?) },
        NO_MEMBER => ChannelFact::Member { user: fields.name("member")?, member: None },
        READING => ChannelFact::Reading { user: fields.name("reader")?, reading: read_reading(fields)? },
        REDACTED => ChannelFact::Redacted { position: Position(fields.u64("redacted")?) },
        SNAPSHOT => ChannelFact::Snapshot(read_snapshot(fields)?),
        other => return Err(RecordError::Unknown { field: "fact of channel", value: u64::from(other) }),
    })
}

/// Info: kind `u8`, topic, who may write `u8`, name of who made it, when `u64`.
pub(crate) fn put_info(into: &mut Vec<u8>, info: &ChannelInfo) {
    into.push(match info.kind {
        ChannelKind::Open => 0,
        ChannelKind::Private => 1,
        ChannelKind::Direct => 2,
        ChannelKind::Document => 3,
    });
    put_bytes(into, info.topic.as_bytes());
    into.push(match info.post {
        PostRule::Everyone => 0,
        PostRule::Members => 1,
        PostRule::Moderators => 2,
    });
    put_name(into, &info.by);
    put_u64(into, info.created_us);
}

pub(crate) fn read_info(fields: &mut Fields<'_>) -> Result<ChannelInfo, RecordError> {
    Ok(ChannelInfo {
        kind: match fields.u8("kind of channel")? {
            0 => ChannelKind::Open,
            1 => ChannelKind::Private,
            2 => ChannelKind::Direct,
            3 => ChannelKind::Document,
            other => return Err(RecordError::Unknown { field: "kind of channel", value: u64::from(other) }),
        },
        topic: fields.short_text("topic", TOPIC_BYTES_MAX)?,
        post: match fields.u8("who may write")? {
            0 => PostRule::Everyone,
            1 => PostRule::Members,
            2 => PostRule::Moderators,
            other => return Err(RecordError::Unknown { field: "who may write", value: u64::from(other) }),
        },
        by: fields.name("maker")?,
        created_us: fields.u64("made at")?,
    })
}

/// Snapshot: position of its first part `u64`, how many there are `u32`.
pub(crate) fn put_snapshot(into: &mut Vec<u8>, snapshot: Snapshot) {
    put_u64(into, snapshot.position.0);
    put_u32(into, snapshot.parts);
}

pub(crate) fn read_snapshot(fields: &mut Fields<'_>) -> Result<Snapshot, RecordError> {
    Ok(Snapshot { position: Position(fields.u64("snapshot")?), parts: fields.u32("parts of snapshot")? })
}

/// Member: role `u8` (from 1), since when `u64`, name of who made them that.
pub(crate) fn put_member(into: &mut Vec<u8>, member: &Member) {
    into.push(MemberRole::number(Some(member.role)));
    put_u64(into, member.since_us);
    put_name(into, &member.by);
}

pub(crate) fn read_member(fields: &mut Fields<'_>) -> Result<Member, RecordError> {
    let number = fields.u8("role of member")?;
    let Some(Some(role)) = MemberRole::of_number(number) else {
        return Err(RecordError::Unknown { field: "role of member", value: u64::from(number) });
    };
    Ok(Member { role, since_us: fields.u64("member since")?, by: fields.name("made member by")? })
}

/// Reading: position and number `u64`.
pub(crate) fn put_reading(into: &mut Vec<u8>, reading: &Reading) {
    put_u64(into, reading.position.0);
    put_u64(into, reading.number);
}

pub(crate) fn read_reading(fields: &mut Fields<'_>) -> Result<Reading, RecordError> {
    Ok(Reading { position: Position(fields.u64("read up to")?), number: fields.u64("messages read")? })
}

/// List of facts of a user.
pub(crate) fn put_user_facts(into: &mut Vec<u8>, facts: &[UserFact]) {
    put_u32(into, facts.len() as u32);
    for fact in facts {
        match fact {
            UserFact::Profile(profile) => {
                into.push(PROFILE);
                put_profile(into, profile);
            }
            UserFact::Seen { at_us } => {
                into.push(SEEN);
                put_u64(into, *at_us);
            }
            UserFact::Forgotten => into.push(FORGOTTEN),
        }
    }
}

pub(crate) fn read_user_facts(fields: &mut Fields<'_>) -> Result<Vec<UserFact>, RecordError> {
    let count = fields.count("facts", USER_FACT_BYTES)?;
    // A fact takes more room in memory than its byte may in the log: what is read is pushed, and nothing reserved.
    let mut facts = Vec::new();
    for _ in 0..count {
        facts.push(match fields.u8("fact of user")? {
            PROFILE => UserFact::Profile(read_profile(fields)?),
            SEEN => UserFact::Seen { at_us: fields.u64("seen at")? },
            FORGOTTEN => UserFact::Forgotten,
            other => return Err(RecordError::Unknown { field: "fact of user", value: u64::from(other) }),
        });
    }
    Ok(facts)
}

/// Profile: texts: shown name, about, status.
pub(crate) fn put_profile(into: &mut Vec<u8>, profile: &ProfileText) {
    put_bytes(into, profile.display.as_bytes());
    put_bytes(into, profile.about.as_bytes());
    put_bytes(into, profile.status.as_bytes());
}

pub(crate) fn read_profile(fields: &mut Fields<'_>) -> Result<ProfileText, RecordError> {
    Ok(ProfileText {
        display: fields.short_text("shown name", DISPLAY_BYTES_MAX)?,
        about: fields.short_text("about", ABOUT_BYTES_MAX)?,
        status: fields.short_text("status", STATUS_BYTES_MAX)?,
    })
}
