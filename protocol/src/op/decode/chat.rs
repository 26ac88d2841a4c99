//! FlatBuffers about channels and people to values.

use flatbuffers::{ForwardsUOffset, Vector};

use super::{invalid, name, text_within};
use crate::chat::{
    ChannelKind, ChannelReport, ChannelSummary, ChatOp, MemberEntry, MemberRole, PostKind, PostRule, Presence,
    PresenceState, PresentUser, ProfileReport, ProfileText,
};
use crate::generated::thalweg::wire;
use crate::ids::{Name, Position};
use crate::limits::{
    ABOUT_BYTES_MAX, CHANNELS_LISTED, DIRECT_USERS_MAX, DISPLAY_BYTES_MAX, MEMBERS_LISTED, NAME_BYTES_MAX,
    PASSWORD_BYTES_MAX, PRESENT_MAX, SEARCH_QUERY_BYTES_MAX, STATUS_BYTES_MAX, TOKEN_BYTES_MAX, TOPIC_BYTES_MAX,
};
use crate::op::{Durability, Login, ServerOp};
use crate::reject::{Reject, RejectCode};

type Strings<'a> = Vector<'a, ForwardsUOffset<&'a str>>;

/// A line of text for people: bounded, and without what would be a command to their terminals.
pub(super) fn text(field: &str, text: Option<&str>, bytes_max: usize) -> Result<String, Reject> {
    let text = text_within(field, text, bytes_max)?;
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, c)) => {
            let text = format!("{field} holds {c:?} at byte {at}; control characters and line ends are not allowed");
            Err(Reject::new(RejectCode::ParameterInvalid, text))
        }
        None => Ok(text),
    }
}

pub(super) fn names(field: &str, names: Option<Strings<'_>>, most: usize) -> Result<Vec<Name>, Reject> {
    let Some(names) = names else { return Ok(Vec::new()) };
    if names.len() > most {
        return Err(invalid(format!("{field} has {} entries; at most {most} are allowed", names.len())));
    }
    names.iter().map(|text| name(field, Some(text))).collect()
}

pub(super) fn kind(kind: wire::ChannelKind) -> Result<Option<ChannelKind>, Reject> {
    Ok(match kind {
        wire::ChannelKind::Unsaid => None,
        wire::ChannelKind::Open => Some(ChannelKind::Open),
        wire::ChannelKind::Private => Some(ChannelKind::Private),
        wire::ChannelKind::Direct => Some(ChannelKind::Direct),
        wire::ChannelKind::Document => Some(ChannelKind::Document),
        other => return Err(invalid(format!("kind is {}; 0 to 4", other.0))),
    })
}

pub(super) fn post_rule(rule: wire::PostRule) -> Result<Option<PostRule>, Reject> {
    Ok(match rule {
        wire::PostRule::Unsaid => None,
        wire::PostRule::Everyone => Some(PostRule::Everyone),
        wire::PostRule::Members => Some(PostRule::Members),
        wire::PostRule::Moderators => Some(PostRule::Moderators),
        other => return Err(invalid(format!("post is {}; 0 to 3", other.0))),
    })
}

pub(super) fn post_kind(kind: wire::PostKind) -> Result<PostKind, Reject> {
    Ok(match kind {
        wire::PostKind::Message => PostKind::Message,
        wire::PostKind::Edit => PostKind::Edit,
        wire::PostKind::Redact => PostKind::Redact,
        wire::PostKind::React => PostKind::React,
        wire::PostKind::Unreact => PostKind::Unreact,
        wire::PostKind::Update => PostKind::Update,
        wire::PostKind::Operations => PostKind::Operations,
        wire::PostKind::Version => PostKind::Version,
        wire::PostKind::Restore => PostKind::Restore,
        other => return Err(invalid(format!("kind is {}; 0 to 8", other.0))),
    })
}

pub(super) fn role(role: wire::MemberRole) -> Result<Option<MemberRole>, Reject> {
    MemberRole::of_number(role.0).ok_or_else(|| invalid(format!("role is {}; 0 to 6", role.0)))
}

fn state(state: wire::PresenceState) -> Result<PresenceState, Reject> {
    Ok(match state {
        wire::PresenceState::Offline => PresenceState::Offline,
        wire::PresenceState::Online => PresenceState::Online,
        wire::PresenceState::Away => PresenceState::Away,
        other => return Err(invalid(format!("state is {}; 0 to 2", other.0))),
    })
}

/// Reads a request about channels and people; `None` if the frame holds none.
pub(super) fn read_request(frame: &wire::Frame<'_>) -> Result<Option<ChatOp>, Reject> {
    Ok(Some(match frame.op_type() {
        wire::Op::Join => ChatOp::Join { channel: name("channel", table!(frame, op_as_join).channel())? },
        wire::Op::Leave => ChatOp::Leave { channel: name("channel", table!(frame, op_as_leave).channel())? },
        wire::Op::AboutChannel => {
            ChatOp::AboutChannel { channel: name("channel", table!(frame, op_as_about_channel).channel())? }
        }
        wire::Op::WhoIsIn => ChatOp::WhoIsIn { channel: name("channel", table!(frame, op_as_who_is_in).channel())? },
        wire::Op::SetMember => {
            let table = table!(frame, op_as_set_member);
            let (channel, user) = (name("channel", table.channel())?, name("user", table.user())?);
            ChatOp::SetMember { channel, user, role: role(table.role())? }
        }
        wire::Op::SetChannel => {
            let table = table!(frame, op_as_set_channel);
            ChatOp::SetChannel {
                channel: name("channel", table.channel())?,
                topic: table.topic().map(|topic| text("topic", Some(topic), TOPIC_BYTES_MAX)).transpose()?,
                kind: kind(table.kind())?,
                post: post_rule(table.post())?,
            }
        }
        wire::Op::OpenDirect => {
            ChatOp::OpenDirect { users: names("users", table!(frame, op_as_open_direct).users(), DIRECT_USERS_MAX)? }
        }
        wire::Op::ListChannels => {
            let table = table!(frame, op_as_list_channels);
            let after = text_within("after", table.after(), NAME_BYTES_MAX)?;
            ChatOp::ListChannels { after, limit: table.limit(), all: table.all() }
        }
        wire::Op::MarkRead => {
            let table = table!(frame, op_as_mark_read);
            let (position, number) = (Position(table.position()), table.number());
            ChatOp::MarkRead { channel: name("channel", table.channel())?, position, number }
        }
        wire::Op::SetProfile => {
            let table = table!(frame, op_as_set_profile);
            ChatOp::SetProfile(profile(table.display(), table.about(), table.status())?)
        }
        wire::Op::GetProfile => ChatOp::GetProfile { user: name("user", table!(frame, op_as_get_profile).user())? },
        wire::Op::SetPresence => match state(table!(frame, op_as_set_presence).state())? {
            PresenceState::Online => ChatOp::SetPresence { away: false },
            PresenceState::Away => ChatOp::SetPresence { away: true },
            PresenceState::Offline => {
                let text = "state is offline; close the session to be offline";
                return Err(Reject::new(RejectCode::ParameterInvalid, text));
            }
        },
        wire::Op::SearchHistory => {
            let table = table!(frame, op_as_search_history);
            let query = text_within("query", table.query(), SEARCH_QUERY_BYTES_MAX)?;
            if query.is_empty() {
                let text = "query is empty; give the text to look for";
                return Err(Reject::new(RejectCode::ParameterInvalid, text));
            }
            let (before, limit) = (Position(table.before()), table.limit());
            ChatOp::SearchHistory { channel: name("channel", table.channel())?, query, before, limit }
        }
        _ => return Ok(None),
    }))
}

fn profile(display: Option<&str>, about: Option<&str>, status: Option<&str>) -> Result<ProfileText, Reject> {
    Ok(ProfileText {
        display: text("display", display, DISPLAY_BYTES_MAX)?,
        about: text("about", about, ABOUT_BYTES_MAX)?,
        status: text("status", status, STATUS_BYTES_MAX)?,
    })
}

pub(super) fn read_login(table: &wire::Login<'_>) -> Result<Login, Reject> {
    let (tenant, user) = (name("tenant", table.tenant())?, name("user", table.user())?);
    Ok(Login { tenant, user, password: text_within("password", table.password(), PASSWORD_BYTES_MAX)? })
}

/// Reads an answer about channels and people; `None` if the frame holds none.
pub(super) fn read_answer(frame: &wire::Frame<'_>) -> Result<Option<ServerOp>, Reject> {
    Ok(Some(match frame.op_type() {
        wire::Op::ChannelReport => {
            ServerOp::ChannelReport(Box::new(read_report(&table!(frame, op_as_channel_report))?))
        }
        wire::Op::ChannelList => {
            let table = table!(frame, op_as_channel_list);
            let channels = table.channels().into_iter().flatten();
            let channels = channels.take(CHANNELS_LISTED).map(|summary| read_summary(&summary));
            ServerOp::ChannelList { channels: channels.collect::<Result<_, _>>()?, more: table.more() }
        }
        wire::Op::ProfileReport => {
            let table = table!(frame, op_as_profile_report);
            ServerOp::ProfileReport(Box::new(ProfileReport {
                user: name("user", table.user())?,
                profile: profile(table.display(), table.about(), table.status())?,
                state: state(table.state())?,
                seen_us: table.seen_us(),
            }))
        }
        wire::Op::PresenceReport => {
            let table = table!(frame, op_as_presence_report);
            let users = present_users(table.users())?;
            ServerOp::PresenceReport { count: table.count(), users, complete: table.complete() }
        }
        wire::Op::Presence => {
            let table = table!(frame, op_as_presence);
            ServerOp::Presence(Presence {
                full: table.full(),
                sampled: table.sampled(),
                count: table.count(),
                users: present_users(table.users())?,
                left: names("left", table.left(), PRESENT_MAX)?,
            })
        }
        wire::Op::TypingNotice => {
            let table = table!(frame, op_as_typing_notice);
            ServerOp::TypingNotice { user: name("user", table.user())?, on: table.on() }
        }
        wire::Op::LoggedIn => {
            let table = table!(frame, op_as_logged_in);
            let token = text_within("token", table.token(), TOKEN_BYTES_MAX)?;
            ServerOp::LoggedIn { token, expires_us: table.expires_us() }
        }
        _ => return Ok(None),
    }))
}

fn present_users(
    users: Option<Vector<'_, ForwardsUOffset<wire::PresentUser<'_>>>>,
) -> Result<Vec<PresentUser>, Reject> {
    let users = users.into_iter().flatten().take(PRESENT_MAX);
    users
        .map(|present| {
            let (state, since_us) = (state(present.state())?, present.since_us());
            Ok(PresentUser { user: name("user", present.user())?, state, since_us })
        })
        .collect()
}

fn read_report(table: &wire::ChannelReport<'_>) -> Result<ChannelReport, Reject> {
    let members = table.members().into_iter().flatten().take(MEMBERS_LISTED).map(|member| {
        let role = role(member.role())?.ok_or_else(|| invalid("a member has no role"))?;
        Ok(MemberEntry { user: name("user", member.user())?, role, since_us: member.since_us() })
    });
    Ok(ChannelReport {
        channel: name("channel", table.channel())?,
        kind: kind(table.kind())?.unwrap_or_default(),
        topic: text("topic", table.topic(), TOPIC_BYTES_MAX)?,
        post: post_rule(table.post())?.unwrap_or_default(),
        created_us: table.created_us(),
        first: Position(table.first()),
        head: Position(table.head()),
        messages: table.messages(),
        durability: match table.durability() {
            wire::Durability::Memory => Durability::Memory,
            wire::Durability::Disk => Durability::Disk,
            wire::Durability::Replicated => Durability::Replicated,
            other => return Err(invalid(format!("durability is {}; 1 to 3", other.0))),
        },
        you: role(table.you())?,
        members_total: table.members_total(),
        members: members.collect::<Result<_, _>>()?,
    })
}

fn read_summary(table: &wire::ChannelSummary<'_>) -> Result<ChannelSummary, Reject> {
    Ok(ChannelSummary {
        channel: name("channel", table.channel())?,
        kind: kind(table.kind())?.unwrap_or_default(),
        topic: text("topic", table.topic(), TOPIC_BYTES_MAX)?,
        role: role(table.role())?,
        head: Position(table.head()),
        messages: table.messages(),
        read: Position(table.read()),
        unread: table.unread(),
        mentions: table.mentions(),
        active_us: table.active_us(),
    })
}
