//! What people did to channels and to themselves, and what they were shown of it: roles, kinds and topics of channels,
//! profiles, read marks, texts that were taken back.
//!
//! Each of these is a register. What is known of a change is when it was asked for and when, if ever, it was acknowledged;
//! one that was not answered may have been carried out at any time since, or never. An observation is lawful if some order of
//! the changes that keeps to those times allows it at some moment between its question and its answer. So an acknowledged
//! change survives whatever happens to the node, one that was refused is never seen, and nobody is shown, or allowed, what
//! the role they had for certain does not permit.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use thalweg_protocol::chat::{ChannelKind, MemberRole};
use thalweg_protocol::ids::Position;

use super::ChannelIndex;

/// Violations that are kept; further ones are only counted.
const KEPT_MAX: usize = 100;

/// The caller's number for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Person(pub u32);

/// A moment of the run: the count of what was told before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(u64);

/// The number of something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeedId(usize);

/// A change that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named after their types; texts are hashes that no two changes share")]
pub enum Deed {
    /// Makes a channel; who does is its owner.
    Create { room: ChannelIndex, by: Person, kind: ChannelKind },
    /// Opens a conversation of these and no others.
    OpenDirect { room: ChannelIndex, users: Vec<Person> },
    /// Becomes a member.
    Join { room: ChannelIndex, who: Person },
    /// Is none any more.
    Leave { room: ChannelIndex, who: Person },
    /// Gives somebody a role, or takes it.
    SetMember { room: ChannelIndex, who: Person, role: Option<MemberRole> },
    /// Changes who may find and read a channel.
    SetKind { room: ChannelIndex, kind: ChannelKind },
    /// Changes what a channel is about.
    SetTopic { room: ChannelIndex, topic: u64 },
    /// Changes a profile.
    SetProfile { who: Person, profile: u64 },
    /// Has read up to a position.
    Read { room: ChannelIndex, who: Person, position: Position },
    /// Takes the text of a message back.
    Redact { room: ChannelIndex, position: Position },
}

/// A broken promise about people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are named after their types")]
pub enum Wrong {
    /// Somebody has a role that no order of the changes gives them.
    RoleImpossible { room: ChannelIndex, who: Person, role: Option<MemberRole> },
    /// A channel in which somebody has a place for certain was left out of their list.
    Unlisted { room: ChannelIndex, who: Person },
    /// A channel is of a kind that no order of the changes gives it.
    KindImpossible { room: ChannelIndex, kind: ChannelKind },
    /// A topic was lost, or came from nowhere.
    TopicImpossible { room: ChannelIndex },
    /// A profile was lost, or came from nowhere.
    ProfileImpossible { who: Person },
    /// A read mark is behind one that was acknowledged, or where nobody put it.
    ReadingImpossible { room: ChannelIndex, who: Person, position: Position },
    /// Somebody who may not was shown what is said in a channel.
    ShownToStranger { room: ChannelIndex, who: Person, position: Position },
    /// Somebody who may not wrote in a channel.
    WrittenByStranger { room: ChannelIndex, who: Person },
    /// Somebody who may was refused.
    RefusedToMember { room: ChannelIndex, who: Person },
    /// A text was shown to somebody who asked after it was taken back.
    TextBack { room: ChannelIndex, position: Position },
    /// A text that nobody took back is gone.
    TextGone { room: ChannelIndex, position: Position },
}

/// A change, and what is known of its time.
#[derive(Debug)]
struct Change<V> {
    effect: V,
    sent: Moment,
    done: Option<Moment>,
    /// By when it was carried out, if it ever was.
    over: Option<Moment>,
    refused: bool,
}

/// What a change of a role does.
#[derive(Debug, Clone, Copy)]
enum RoleEffect {
    /// Owner of a channel that was not there.
    Made,
    Joins,
    Leaves,
    Becomes(Option<MemberRole>),
}

impl RoleEffect {
    /// What may come of it, whatever it was before.
    fn gives(self) -> Vec<Option<MemberRole>> {
        match self {
            Self::Made => vec![Some(MemberRole::Owner)],
            // Who joins a channel without members may be made its owner.
            Self::Joins => vec![Some(MemberRole::Member), Some(MemberRole::Owner)],
            Self::Leaves => vec![None],
            Self::Becomes(role) => vec![role],
        }
    }

    /// Whether a role can be the same after it was carried out.
    fn leaves_as_is(self, role: Option<MemberRole>) -> bool {
        match self {
            Self::Made => role == Some(MemberRole::Owner),
            Self::Joins => role >= Some(MemberRole::Reader),
            Self::Leaves => role.is_none(),
            // Members are not invited again.
            Self::Becomes(Some(MemberRole::Invited)) => role >= Some(MemberRole::Invited),
            Self::Becomes(new) => role == new,
        }
    }
}

/// Whether a value can have held at some moment of `from..=to`. `gives` says what a change may have made of anything, and
/// `keeps` whether it may have left a value as it was.
fn could_hold<E: Copy, V: Copy>(
    changes: &[Change<E>],
    initial: V,
    gives: impl Fn(E) -> Vec<V>,
    keeps: impl Fn(E, V) -> bool,
    wanted: impl Fn(V) -> bool,
    (from, to): (Moment, Moment),
) -> bool {
    let overwritten = |value: V, since: Option<Moment>| {
        changes.iter().any(|later| {
            let after = since.is_some_and(|since| since <= later.sent);
            after && !later.refused && later.done.is_some_and(|done| done <= from) && !keeps(later.effect, value)
        })
    };
    let made = changes.iter().filter(|change| !change.refused && change.sent <= to);
    let mut values =
        made.flat_map(|change| gives(change.effect).into_iter().map(move |value| (value, change.done.or(change.over))));
    (wanted(initial) && !overwritten(initial, Some(Moment(0))))
        || values.any(|(value, done)| wanted(value) && !overwritten(value, done))
}

/// What becomes of a change.
struct End<'a> {
    done: &'a mut Option<Moment>,
    over: &'a mut Option<Moment>,
    refused: &'a mut bool,
}

/// Where a change is kept.
#[derive(Debug, Clone, Copy)]
enum Place {
    Role(ChannelIndex, Person),
    Kind(ChannelIndex),
    Topic(ChannelIndex),
    Profile(Person),
    Reading(ChannelIndex, Person),
    Redaction(ChannelIndex, Position),
}

/// See the module.
#[derive(Debug, Default)]
pub struct People {
    now: u64,
    /// Of each deed: where its changes are.
    deeds: Vec<Vec<(Place, usize)>>,
    roles: BTreeMap<(ChannelIndex, Person), Vec<Change<RoleEffect>>>,
    kinds: BTreeMap<ChannelIndex, Vec<Change<ChannelKind>>>,
    /// Channels that are known to be there, and since when.
    there: BTreeMap<ChannelIndex, Moment>,
    topics: BTreeMap<ChannelIndex, Vec<Change<u64>>>,
    profiles: BTreeMap<Person, Vec<Change<u64>>>,
    readings: BTreeMap<(ChannelIndex, Person), Vec<Change<Position>>>,
    redactions: BTreeMap<(ChannelIndex, Position), Vec<Change<()>>>,
    wrong: Vec<Wrong>,
    wrong_count: u64,
}

impl People {
    /// Nobody has done anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// This moment: to be kept with a question, and given with its answer.
    pub fn moment(&mut self) -> Moment {
        self.now += 1;
        Moment(self.now)
    }

    /// Somebody asks for a change.
    pub fn begin(&mut self, deed: &Deed) -> DeedId {
        let sent = self.moment();
        let mut places = Vec::new();
        match deed {
            Deed::Create { room, by, kind } => {
                places.push(self.role(sent, *room, *by, RoleEffect::Made));
                places.push(put(&mut self.kinds, *room, *kind, sent, Place::Kind(*room)));
            }
            Deed::OpenDirect { room, users } => {
                places.push(put(&mut self.kinds, *room, ChannelKind::Direct, sent, Place::Kind(*room)));
                for &who in users {
                    places.push(self.role(sent, *room, who, RoleEffect::Becomes(Some(MemberRole::Member))));
                }
            }
            Deed::Join { room, who } => places.push(self.role(sent, *room, *who, RoleEffect::Joins)),
            Deed::Leave { room, who } => places.push(self.role(sent, *room, *who, RoleEffect::Leaves)),
            Deed::SetMember { room, who, role } => {
                places.push(self.role(sent, *room, *who, RoleEffect::Becomes(*role)));
            }
            Deed::SetKind { room, kind } => {
                places.push(put(&mut self.kinds, *room, *kind, sent, Place::Kind(*room)));
            }
            Deed::SetTopic { room, topic } => {
                places.push(put(&mut self.topics, *room, *topic, sent, Place::Topic(*room)));
            }
            Deed::SetProfile { who, profile } => {
                places.push(put(&mut self.profiles, *who, *profile, sent, Place::Profile(*who)));
            }
            Deed::Read { room, who, position } => {
                let place = Place::Reading(*room, *who);
                places.push(put(&mut self.readings, (*room, *who), *position, sent, place));
            }
            Deed::Redact { room, position } => {
                let place = Place::Redaction(*room, *position);
                places.push(put(&mut self.redactions, (*room, *position), (), sent, place));
            }
        }
        self.deeds.push(places);
        DeedId(self.deeds.len() - 1)
    }

    fn role(&mut self, sent: Moment, room: ChannelIndex, who: Person, effect: RoleEffect) -> (Place, usize) {
        put(&mut self.roles, (room, who), effect, sent, Place::Role(room, who))
    }

    /// A change was acknowledged.
    pub fn done(&mut self, deed: DeedId) {
        let now = self.moment();
        self.settle(deed, |end| *end.done = Some(now));
    }

    /// The answer to a change was lost, and it was carried out by now or never will be.
    pub fn over(&mut self, deed: DeedId) {
        let now = self.moment();
        self.settle(deed, |end| *end.over = Some(now));
    }

    /// A change was refused, and so never carried out.
    pub fn refused(&mut self, deed: DeedId) {
        self.settle(deed, |end| *end.refused = true);
    }

    /// A channel was not made, since it is there.
    pub fn was_there(&mut self, deed: DeedId) {
        let now = self.moment();
        let rooms = self.deeds[deed.0].iter().filter_map(|(place, _)| match place {
            Place::Kind(room) => Some(*room),
            _ => None,
        });
        self.there.extend(rooms.map(|room| (room, now)));
        self.refused(deed);
    }

    fn settle(&mut self, deed: DeedId, settle: impl Fn(End<'_>)) {
        fn of<'a, K: Ord, V>(map: &'a mut BTreeMap<K, Vec<Change<V>>>, key: &K, at: usize) -> End<'a> {
            let Change { done, over, refused, .. } = &mut map.get_mut(key).expect("a deed's changes are kept")[at];
            End { done, over, refused }
        }
        for &(place, at) in &self.deeds[deed.0] {
            settle(match place {
                Place::Role(room, who) => of(&mut self.roles, &(room, who), at),
                Place::Kind(room) => of(&mut self.kinds, &room, at),
                Place::Topic(room) => of(&mut self.topics, &room, at),
                Place::Profile(who) => of(&mut self.profiles, &who, at),
                Place::Reading(room, who) => of(&mut self.readings, &(room, who), at),
                Place::Redaction(room, position) => of(&mut self.redactions, &(room, position), at),
            });
        }
    }

    fn note(&mut self, wrong: Wrong) {
        self.wrong_count += 1;
        if self.wrong.len() < KEPT_MAX {
            self.wrong.push(wrong);
        }
    }

    /// What was wrong, at most a hundred, and how much in all.
    pub fn finish(self) -> (Vec<Wrong>, u64) {
        (self.wrong, self.wrong_count)
    }

    fn role_could(
        &self,
        room: ChannelIndex,
        who: Person,
        span: (Moment, Moment),
        wanted: impl Fn(Option<MemberRole>) -> bool,
    ) -> bool {
        let changes = self.roles.get(&(room, who)).map_or(&[][..], Vec::as_slice);
        could_hold(changes, None, RoleEffect::gives, RoleEffect::leaves_as_is, wanted, span)
    }

    fn kind_could(&self, room: ChannelIndex, span: (Moment, Moment), wanted: impl Fn(ChannelKind) -> bool) -> bool {
        let changes = self.kinds.get(&room).map_or(&[][..], Vec::as_slice);
        // Until it is made nobody reads it, whatever it is called. That it is there was known later than it was made.
        let made = self.there.get(&room).is_some_and(|there| *there <= span.0);
        let initial = if made { None } else { Some(ChannelKind::Open) };
        let is_wanted = |kind: Option<ChannelKind>| kind.is_some_and(&wanted);
        could_hold(changes, initial, |kind| vec![Some(kind)], |kind, before| before == Some(kind), is_wanted, span)
    }

    /// Whether somebody can have been allowed to read at some moment since.
    pub fn may_read(&mut self, room: ChannelIndex, who: Person, since: Moment) -> bool {
        let span = (since, self.moment());
        self.role_could(room, who, span, |role| role >= Some(MemberRole::Reader))
            || (self.kind_could(room, span, |kind| kind == ChannelKind::Open)
                && self.role_could(room, who, span, |role| role != Some(MemberRole::Banned)))
    }

    /// Whether somebody can have been refused as one who may not write at some moment since.
    fn may_be_refused(&mut self, room: ChannelIndex, who: Person, since: Moment) -> bool {
        let span = (since, self.moment());
        let weak = |role| role < Some(MemberRole::Reader) && role != Some(MemberRole::Banned);
        self.role_could(room, who, span, |role| matches!(role, Some(MemberRole::Banned | MemberRole::Reader)))
            || (self.role_could(room, who, span, weak) && self.kind_could(room, span, |kind| kind != ChannelKind::Open))
    }

    /// Somebody was shown a message that was sent at `since`, or later.
    pub fn shown(&mut self, room: ChannelIndex, who: Person, position: Position, since: Moment) {
        if !self.may_read(room, who, since) {
            self.note(Wrong::ShownToStranger { room, who, position });
        }
    }

    /// Somebody's write, which they sent at `since`, was acknowledged.
    pub fn wrote(&mut self, room: ChannelIndex, who: Person, since: Moment) {
        let span = (since, self.moment());
        let able = self.may_read(room, who, since)
            && self.role_could(room, who, span, |role| role != Some(MemberRole::Reader));
        if !able {
            self.note(Wrong::WrittenByStranger { room, who });
        }
    }

    /// Somebody took back what they wrote, which takes less than to write.
    pub fn took_back(&mut self, room: ChannelIndex, who: Person, since: Moment) {
        if !self.may_read(room, who, since) {
            self.note(Wrong::WrittenByStranger { room, who });
        }
    }

    /// Somebody's write, which they sent at `since`, was refused because they may not write.
    pub fn refused_write(&mut self, room: ChannelIndex, who: Person, since: Moment) {
        if !self.may_be_refused(room, who, since) {
            self.note(Wrong::RefusedToMember { room, who });
        }
    }

    /// Somebody was said to have a role, in answer to a question of `since`.
    pub fn saw_role(&mut self, room: ChannelIndex, who: Person, role: Option<MemberRole>, since: Moment) {
        let span = (since, self.moment());
        if !self.role_could(room, who, span, |possible| possible == role) {
            self.note(Wrong::RoleImpossible { room, who, role });
        }
    }

    /// A channel was left out of a list of those in which somebody has a place.
    pub fn saw_unlisted(&mut self, room: ChannelIndex, who: Person, since: Moment) {
        let span = (since, self.moment());
        if !self.role_could(room, who, span, |role| matches!(role, None | Some(MemberRole::Banned))) {
            self.note(Wrong::Unlisted { room, who });
        }
    }

    /// A channel was said to be of a kind.
    pub fn saw_kind(&mut self, room: ChannelIndex, kind: ChannelKind, since: Moment) {
        let span = (since, self.moment());
        if !self.kind_could(room, span, |possible| possible == kind) {
            self.note(Wrong::KindImpossible { room, kind });
        }
    }

    /// A channel was said to be about something; 0: nothing.
    pub fn saw_topic(&mut self, room: ChannelIndex, topic: u64, since: Moment) {
        let span = (since, self.moment());
        let changes = self.topics.get(&room).map_or(&[][..], Vec::as_slice);
        if !could_hold(changes, 0, |topic| vec![topic], |new, old| new == old, |possible| possible == topic, span) {
            self.note(Wrong::TopicImpossible { room });
        }
    }

    /// Somebody was said to have a profile; 0: none.
    pub fn saw_profile(&mut self, who: Person, profile: u64, since: Moment) {
        let span = (since, self.moment());
        let changes = self.profiles.get(&who).map_or(&[][..], Vec::as_slice);
        if !could_hold(changes, 0, |profile| vec![profile], |new, old| new == old, |it| it == profile, span) {
            self.note(Wrong::ProfileImpossible { who });
        }
    }

    /// Somebody was said to have read up to a position. Marks only go forwards.
    pub fn saw_reading(&mut self, room: ChannelIndex, who: Person, position: Position, since: Moment) {
        let changes = self.readings.get(&(room, who)).map_or(&[][..], Vec::as_slice);
        let put = position == Position(0) || changes.iter().any(|mark| mark.effect == position && !mark.refused);
        let behind = |mark: &Change<Position>| mark.effect > position && mark.done.is_some_and(|done| done <= since);
        if !put || changes.iter().any(behind) {
            self.note(Wrong::ReadingImpossible { room, who, position });
        }
    }

    /// The text of a message was shown in answer to a question of `since`.
    pub fn saw_text(&mut self, room: ChannelIndex, position: Position, since: Moment) {
        if self.is_redacted(room, position, since) {
            self.note(Wrong::TextBack { room, position });
        }
    }

    /// A message was shown without its text.
    pub fn saw_no_text(&mut self, room: ChannelIndex, position: Position) {
        if !self.may_be_redacted(room, position) {
            self.note(Wrong::TextGone { room, position });
        }
    }

    /// Whether a text was taken back, and that acknowledged, before a moment.
    pub fn is_redacted(&self, room: ChannelIndex, position: Position, before: Moment) -> bool {
        let redactions = self.redactions.get(&(room, position));
        redactions.is_some_and(|all| all.iter().any(|change| change.done.is_some_and(|done| done <= before)))
    }

    /// Whether somebody tried to take a text back, and was not refused.
    pub fn may_be_redacted(&self, room: ChannelIndex, position: Position) -> bool {
        self.redactions.get(&(room, position)).is_some_and(|all| all.iter().any(|change| !change.refused))
    }
}

/// Keeps a change with those of the same thing, and says where.
fn put<K: Ord, V>(
    map: &mut BTreeMap<K, Vec<Change<V>>>,
    key: K,
    effect: V,
    sent: Moment,
    place: Place,
) -> (Place, usize) {
    let changes = match map.entry(key) {
        Entry::Occupied(changes) => changes.into_mut(),
        Entry::Vacant(vacant) => vacant.insert(Vec::new()),
    };
    changes.push(Change { effect, sent, done: None, over: None, refused: false });
    (place, changes.len() - 1)
}

#[cfg(test)]
mod tests;
