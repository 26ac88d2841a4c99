//! The words of the SDK in those of the application.

use thalweg_client::{
    ChangeKind, ChannelReport, ChannelSummary, MemberRole, PresenceState, PresentUser, ProfileReport,
};

use crate::event::{About, Answer, ChannelKind, Delivery, Item, Kind, Page, Person, Profile, Role, State, Summary};

/// What a subscription gave. `at_us`: when, for what does not say so itself; 0 if that is not known.
pub(crate) fn item(item: thalweg_client::Item, at_us: u64) -> Item {
    match item {
        thalweg_client::Item::Missed { from, to } => Item::Missed { from: from.0, to: to.0 },
        thalweg_client::Item::Rewound { to } => Item::Rewound { to: to.0 },
        thalweg_client::Item::Presence(presence) => Item::Presence {
            full: presence.full,
            count: presence.count,
            users: presence.users.into_iter().map(person).collect(),
            left: presence.left.iter().map(ToString::to_string).collect(),
            sampled: presence.sampled,
        },
        thalweg_client::Item::Typing { user, on } => Item::Typing { user: user.to_string(), on },
        other => delivery(other, at_us).map_or(Item::Typing { user: String::new(), on: false }, Item::Delivery),
    }
}

/// A record; `None` for what is none.
pub(crate) fn delivery(item: thalweg_client::Item, at_us: u64) -> Option<Delivery> {
    use thalweg_client::Item as Sdk;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let answer = |position: thalweg_client::Position, user: thalweg_client::Name, generation, kind| Delivery {
        position: position.0,
        at_us,
        user: user.to_string(),
        generation: Some(generation),
        kind,
        ..Delivery::default()
    };
    Some(match item {
        Sdk::Message(message) => Delivery {
            position: message.position.0,
            at_us: message.timestamp_us,
            user: message.user.to_string(),
            number: message.context.number,
            target: message.context.target.0,
            mentions: message.context.mentions.iter().map(ToString::to_string).collect(),
            generation: message.generation,
            kind: Kind::Message { body: text(&message.body), redacted: message.context.redacted },
        },
        Sdk::Tokens { position, generation, user, text: piece } => {
            answer(position, user, generation, Kind::Tokens { text: text(&piece) })
        }
        Sdk::GenerationStarted { position, generation, user } => answer(position, user, generation, Kind::Started),
        Sdk::GenerationEnded { position, generation, user, reason } => {
            answer(position, user, generation, Kind::Ended { reason })
        }
        Sdk::Change(change) => {
            let target = change.target().map_or(0, |target| target.0);
            let kind = match change.kind {
                ChangeKind::Edited { redacted: true, .. } | ChangeKind::Redacted { .. } => Kind::Redaction,
                ChangeKind::Edited { body, .. } => Kind::Edit { body: text(&body) },
                ChangeKind::Reacted { emoji, .. } => Kind::Reaction { emoji, on: true },
                ChangeKind::Unreacted { emoji, .. } => Kind::Reaction { emoji, on: false },
                ChangeKind::Member { user, role } => {
                    Kind::Membership { user: user.to_string(), role: role.map(self::role) }
                }
                ChangeKind::Info { topic } => Kind::Topic { topic },
            };
            Delivery {
                position: change.position.0,
                at_us: change.timestamp_us,
                user: change.user.to_string(),
                number: change.number,
                target,
                kind,
                ..Delivery::default()
            }
        }
        Sdk::Presence(_) | Sdk::Typing { .. } | Sdk::Missed { .. } | Sdk::Rewound { .. } => return None,
    })
}

pub(crate) fn page(page: thalweg_client::Page) -> Page {
    let items = page.items.into_iter().map(|found| item(found, 0)).collect();
    Page { first: page.first.0, next: page.next.0, head: page.head.0, items }
}

pub(crate) fn summary(summary: ChannelSummary) -> Summary {
    Summary {
        channel: summary.channel.to_string(),
        kind: kind(summary.kind),
        topic: summary.topic,
        role: summary.role.map(role),
        head: summary.head.0,
        messages: summary.messages,
        read: summary.read.0,
        unread: summary.unread,
        mentions: summary.mentions,
        active_us: summary.active_us,
    }
}

pub(crate) fn about(report: ChannelReport) -> Answer {
    Answer::About(About {
        channel: report.channel.to_string(),
        kind: kind(report.kind),
        topic: report.topic,
        role: report.you.map(role),
        members_total: report.members_total,
        members: report.members.into_iter().map(|member| (member.user.to_string(), role(member.role))).collect(),
        created_us: report.created_us,
        messages: report.messages,
    })
}

pub(crate) fn profile(report: ProfileReport) -> Answer {
    Answer::Profile(Profile {
        user: report.user.to_string(),
        display: report.profile.display,
        about: report.profile.about,
        status: report.profile.status,
        state: state(report.state),
        seen_us: report.seen_us,
    })
}

pub(crate) fn who(who: thalweg_client::WhoIsIn) -> Answer {
    Answer::Who { count: who.count, users: who.users.into_iter().map(person).collect(), complete: who.complete }
}

fn person(present: PresentUser) -> Person {
    Person { user: present.user.to_string(), state: state(present.state), since_us: present.since_us }
}

fn state(state: PresenceState) -> State {
    match state {
        PresenceState::Online => State::Online,
        PresenceState::Away => State::Away,
        PresenceState::Offline => State::Offline,
    }
}

fn kind(kind: thalweg_client::ChannelKind) -> ChannelKind {
    match kind {
        // Documents are not in the list, and one that is meant by name is refused by the node, which says what to do.
        thalweg_client::ChannelKind::Open | thalweg_client::ChannelKind::Document => ChannelKind::Open,
        thalweg_client::ChannelKind::Private => ChannelKind::Private,
        thalweg_client::ChannelKind::Direct => ChannelKind::Direct,
    }
}

fn role(role: MemberRole) -> Role {
    match role {
        MemberRole::Banned => Role::Banned,
        MemberRole::Invited => Role::Invited,
        MemberRole::Reader => Role::Reader,
        MemberRole::Member => Role::Member,
        MemberRole::Moderator => Role::Moderator,
        MemberRole::Owner => Role::Owner,
    }
}

pub(crate) fn member_role(role: Role) -> MemberRole {
    match role {
        Role::Banned => MemberRole::Banned,
        Role::Invited => MemberRole::Invited,
        Role::Reader => MemberRole::Reader,
        Role::Member => MemberRole::Member,
        Role::Moderator => MemberRole::Moderator,
        Role::Owner => MemberRole::Owner,
    }
}
