//! Values about channels and people to FlatBuffers.

use flatbuffers::{ForwardsUOffset, Vector, WIPOffset};

use super::{Builder, Offset};
use crate::chat::{
    ChannelKind, ChannelReport, ChannelSummary, ChatOp, MemberRole, PostKind, PostRule, Presence, PresenceState,
    PresentUser, ProfileReport,
};
use crate::generated::thalweg::wire;
use crate::ids::Name;
use crate::op::{Durability, Login, ServerOp};

type Names = WIPOffset<Vector<'static, ForwardsUOffset<&'static str>>>;
type PresentUsers = WIPOffset<Vector<'static, ForwardsUOffset<wire::PresentUser<'static>>>>;

pub(super) fn kind(kind: Option<ChannelKind>) -> wire::ChannelKind {
    match kind {
        None => wire::ChannelKind::Unsaid,
        Some(ChannelKind::Open) => wire::ChannelKind::Open,
        Some(ChannelKind::Private) => wire::ChannelKind::Private,
        Some(ChannelKind::Direct) => wire::ChannelKind::Direct,
        Some(ChannelKind::Document) => wire::ChannelKind::Document,
    }
}

pub(super) fn post_rule(rule: Option<PostRule>) -> wire::PostRule {
    match rule {
        None => wire::PostRule::Unsaid,
        Some(PostRule::Everyone) => wire::PostRule::Everyone,
        Some(PostRule::Members) => wire::PostRule::Members,
        Some(PostRule::Moderators) => wire::PostRule::Moderators,
    }
}

pub(super) fn post_kind(kind: PostKind) -> wire::PostKind {
    match kind {
        PostKind::Message => wire::PostKind::Message,
        PostKind::Edit => wire::PostKind::Edit,
        PostKind::Redact => wire::PostKind::Redact,
        PostKind::React => wire::PostKind::React,
        PostKind::Unreact => wire::PostKind::Unreact,
        PostKind::Update => wire::PostKind::Update,
        PostKind::Operations => wire::PostKind::Operations,
        PostKind::Version => wire::PostKind::Version,
        PostKind::Restore => wire::PostKind::Restore,
    }
}

pub(super) fn role(role: Option<MemberRole>) -> wire::MemberRole {
    wire::MemberRole(MemberRole::number(role))
}

fn state(state: PresenceState) -> wire::PresenceState {
    match state {
        PresenceState::Offline => wire::PresenceState::Offline,
        PresenceState::Online => wire::PresenceState::Online,
        PresenceState::Away => wire::PresenceState::Away,
    }
}

fn durability(durability: Durability) -> wire::Durability {
    match durability {
        Durability::Memory => wire::Durability::Memory,
        Durability::Disk => wire::Durability::Disk,
        Durability::Replicated => wire::Durability::Replicated,
    }
}

/// Names, if there are any: a frame without them is that of the first version.
pub(super) fn names(b: &mut Builder, names: &[Name]) -> Option<Names> {
    if names.is_empty() {
        return None;
    }
    let names: Vec<_> = names.iter().map(|name| b.create_string(name.as_str())).collect();
    Some(b.create_vector(&names))
}

fn present_users(b: &mut Builder, users: &[PresentUser]) -> Option<PresentUsers> {
    if users.is_empty() {
        return None;
    }
    let users: Vec<_> = users
        .iter()
        .map(|present| {
            let user = Some(b.create_string(present.user.as_str()));
            let (state, since_us) = (state(present.state), present.since_us);
            wire::PresentUser::create(b, &wire::PresentUserArgs { user, state, since_us })
        })
        .collect();
    Some(b.create_vector(&users))
}

pub(super) fn build_request(b: &mut Builder, op: &ChatOp) -> (wire::Op, Offset) {
    /// An operation that names a channel and nothing else.
    macro_rules! of_channel {
        ($table:ident, $args:ident, $channel:expr) => {{
            let channel = Some(b.create_string($channel.as_str()));
            table!(b, $table, wire::$args { channel })
        }};
    }
    match op {
        ChatOp::Join { channel } => of_channel!(Join, JoinArgs, channel),
        ChatOp::Leave { channel } => of_channel!(Leave, LeaveArgs, channel),
        ChatOp::AboutChannel { channel } => of_channel!(AboutChannel, AboutChannelArgs, channel),
        ChatOp::WhoIsIn { channel } => of_channel!(WhoIsIn, WhoIsInArgs, channel),
        ChatOp::SetMember { channel, user, role: given } => {
            let (channel, user) = (Some(b.create_string(channel.as_str())), Some(b.create_string(user.as_str())));
            table!(b, SetMember, wire::SetMemberArgs { channel, user, role: role(*given) })
        }
        ChatOp::SetChannel { channel, topic, kind: given, post } => {
            let channel = Some(b.create_string(channel.as_str()));
            let topic = topic.as_ref().map(|topic| b.create_string(topic));
            let (kind, post) = (kind(*given), post_rule(*post));
            table!(b, SetChannel, wire::SetChannelArgs { channel, topic, kind, post })
        }
        ChatOp::OpenDirect { users } => {
            let users = names(b, users);
            table!(b, OpenDirect, wire::OpenDirectArgs { users })
        }
        ChatOp::ListChannels { after, limit, all } => {
            let after = Some(b.create_string(after));
            table!(b, ListChannels, wire::ListChannelsArgs { after, limit: *limit, all: *all })
        }
        ChatOp::MarkRead { channel, position, number } => {
            let channel = Some(b.create_string(channel.as_str()));
            table!(b, MarkRead, wire::MarkReadArgs { channel, position: position.0, number: *number })
        }
        ChatOp::SetProfile(profile) => {
            let display = Some(b.create_string(&profile.display));
            let about = Some(b.create_string(&profile.about));
            let status = Some(b.create_string(&profile.status));
            table!(b, SetProfile, wire::SetProfileArgs { display, about, status })
        }
        ChatOp::GetProfile { user } => {
            let user = Some(b.create_string(user.as_str()));
            table!(b, GetProfile, wire::GetProfileArgs { user })
        }
        ChatOp::SetPresence { away } => {
            let state = if *away { wire::PresenceState::Away } else { wire::PresenceState::Online };
            table!(b, SetPresence, wire::SetPresenceArgs { state })
        }
        ChatOp::SearchHistory { channel, query, before, limit } => {
            let (channel, query) = (Some(b.create_string(channel.as_str())), Some(b.create_string(query)));
            table!(b, SearchHistory, wire::SearchHistoryArgs { channel, query, before: before.0, limit: *limit })
        }
    }
}

pub(super) fn build_login(b: &mut Builder, login: &Login) -> (wire::Op, Offset) {
    let tenant = Some(b.create_string(login.tenant.as_str()));
    let user = Some(b.create_string(login.user.as_str()));
    let password = Some(b.create_string(&login.password));
    table!(b, Login, wire::LoginArgs { tenant, user, password })
}

/// The answers and news about channels, people and the node's administration; anything else is the caller's.
pub(super) fn build_answer(b: &mut Builder, op: &ServerOp) -> (wire::Op, Offset) {
    match op {
        ServerOp::ChannelReport(report) => build_report(b, report),
        ServerOp::ChannelList { channels, more } => build_list(b, channels, *more),
        ServerOp::ProfileReport(report) => build_profile(b, report),
        ServerOp::PresenceReport { count, users, complete } => {
            let users = present_users(b, users);
            table!(b, PresenceReport, wire::PresenceReportArgs { count: *count, users, complete: *complete })
        }
        ServerOp::Presence(presence) => build_presence(b, presence),
        ServerOp::TypingNotice { user, on } => {
            let user = Some(b.create_string(user.as_str()));
            table!(b, TypingNotice, wire::TypingNoticeArgs { user, on: *on })
        }
        ServerOp::LoggedIn { token, expires_us } => {
            let token = Some(b.create_string(token));
            table!(b, LoggedIn, wire::LoggedInArgs { token, expires_us: *expires_us })
        }
        ServerOp::Managed { json } => {
            let json = Some(b.create_vector(json));
            table!(b, Managed, wire::ManagedArgs { json })
        }
        other => unreachable!("{other:?} is encoded by the caller"),
    }
}

fn build_report(b: &mut Builder, report: &ChannelReport) -> (wire::Op, Offset) {
    let members: Vec<_> = report
        .members
        .iter()
        .map(|member| {
            let user = Some(b.create_string(member.user.as_str()));
            let (role, since_us) = (role(Some(member.role)), member.since_us);
            wire::MemberEntry::create(b, &wire::MemberEntryArgs { user, role, since_us })
        })
        .collect();
    let members = Some(b.create_vector(&members));
    let channel = Some(b.create_string(report.channel.as_str()));
    let topic = Some(b.create_string(&report.topic));
    let args = wire::ChannelReportArgs {
        channel,
        kind: kind(Some(report.kind)),
        topic,
        post: post_rule(Some(report.post)),
        created_us: report.created_us,
        first: report.first.0,
        head: report.head.0,
        messages: report.messages,
        durability: durability(report.durability),
        you: role(report.you),
        members_total: report.members_total,
        members,
    };
    table!(b, ChannelReport, args)
}

fn build_list(b: &mut Builder, channels: &[ChannelSummary], more: bool) -> (wire::Op, Offset) {
    let channels: Vec<_> = channels
        .iter()
        .map(|summary| {
            let channel = Some(b.create_string(summary.channel.as_str()));
            let topic = Some(b.create_string(&summary.topic));
            let args = wire::ChannelSummaryArgs {
                channel,
                kind: kind(Some(summary.kind)),
                topic,
                role: role(summary.role),
                head: summary.head.0,
                messages: summary.messages,
                read: summary.read.0,
                unread: summary.unread,
                mentions: summary.mentions,
                active_us: summary.active_us,
            };
            wire::ChannelSummary::create(b, &args)
        })
        .collect();
    let channels = Some(b.create_vector(&channels));
    table!(b, ChannelList, wire::ChannelListArgs { channels, more })
}

fn build_profile(b: &mut Builder, report: &ProfileReport) -> (wire::Op, Offset) {
    let user = Some(b.create_string(report.user.as_str()));
    let display = Some(b.create_string(&report.profile.display));
    let about = Some(b.create_string(&report.profile.about));
    let status = Some(b.create_string(&report.profile.status));
    let (state, seen_us) = (state(report.state), report.seen_us);
    table!(b, ProfileReport, wire::ProfileReportArgs { user, display, about, status, state, seen_us })
}

fn build_presence(b: &mut Builder, presence: &Presence) -> (wire::Op, Offset) {
    let users = present_users(b, &presence.users);
    let left = names(b, &presence.left);
    let Presence { full, sampled, count, .. } = *presence;
    table!(b, Presence, wire::PresenceArgs { full, sampled, count, users, left })
}
