//! The readers of this core that take part in presence: as what they count in their channels, and what they are told of
//! who is there. Those who do not take part cost nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Action as Access;
use thalweg_protocol::chat::PresenceState;
use thalweg_protocol::ids::{Name, Subscription};
use thalweg_protocol::limits::{FRAME_HEADER_BYTES, SESSION_QUEUE_BYTES, TYPING_DISTANCE_MS};

use super::{Fan, FanId, Fans, Reader, State, SubscriptionIndex};
use crate::contract::{Link, Output, OwnerMessage};
use crate::presence::Tally;
use crate::shard::Shard;

/// How a reader takes part in presence.
pub(super) struct Part {
    user: Name,
    /// As what it counts; `None` before it was accepted, and while its session is silent.
    state: Option<PresenceState>,
    /// Whether it was not told something, and so waits for a whole picture.
    behind: bool,
    /// When it last said that its user types.
    typed_us: Option<u64>,
}

impl Part {
    pub(super) fn new(user: Name) -> Self {
        Self { user, state: None, behind: true, typed_us: None }
    }
}

/// Those who take part in presence in one channel on this core.
#[derive(Default)]
pub(super) struct Crowd {
    people: BTreeMap<Name, Tally>,
    /// The readers that count as somebody, who are told who is there.
    viewers: BTreeSet<SubscriptionIndex>,
    /// Whether a picture was asked for that has not come.
    asked: bool,
}

/// What the owner of a channel says of who is there, on its way to the readers.
pub(crate) struct News {
    fan: FanId,
    /// An encoded `ServerOp::Presence`.
    payload: Bytes,
    /// Whether it is for readers that are up to date.
    news: bool,
    /// Whether it is a whole picture: then it is for readers that are behind.
    whole: bool,
    /// The last reader that had it.
    after: Option<SubscriptionIndex>,
}

impl Fans {
    fn part_mut(&mut self, index: SubscriptionIndex) -> Option<&mut Part> {
        self.reader_mut(index)?.part.as_mut()
    }
}

impl Shard {
    /// A reader was accepted.
    pub(super) fn join_crowd(&mut self, link: Link, index: SubscriptionIndex) {
        if self.fans.part_mut(index).is_some() {
            self.involve(link);
            let state = self.sessions.get(link).and_then(|session| session.attendance.state);
            self.count_part(index, state);
        }
    }

    /// The session of a reader counts as something else than before.
    pub(crate) fn count_part(&mut self, index: SubscriptionIndex, state: Option<PresenceState>) {
        let Some(reader) = self.fans.reader_mut(index).filter(|reader| reader.state != State::Attaching) else {
            return;
        };
        let Some(part) = &mut reader.part else { return };
        let before = std::mem::replace(&mut part.state, state);
        if before == state {
            return;
        }
        part.behind |= before.is_none();
        let (fan, user) = (reader.fan, part.user.clone());
        self.recount(fan, index, user, before, state);
        if before.is_none() {
            self.ask_for_picture(fan);
        }
    }

    /// A reader is gone from its channel.
    pub(super) fn leave_crowd(&mut self, index: SubscriptionIndex, reader: &Reader) {
        let Some(part) = &reader.part else { return };
        if let Some(session) = self.sessions.get_mut(reader.link) {
            session.attendance.parts -= 1;
            session.attendance.behind.retain(|other| *other != index);
        }
        if part.state.is_some() {
            self.recount(reader.fan, index, part.user.clone(), part.state, None);
        }
    }

    fn recount(
        &mut self,
        id: FanId,
        index: SubscriptionIndex,
        user: Name,
        before: Option<PresenceState>,
        now: Option<PresenceState>,
    ) {
        let Some(Fan { key, crowd, .. }) = self.fans.fans.get_mut(&id) else { return };
        match now {
            Some(_) => crowd.viewers.insert(index),
            None => crowd.viewers.remove(&index),
        };
        let tally = crowd.people.entry(user.clone()).or_default();
        let best = tally.best();
        tally.recount(before, now);
        let state = tally.best();
        if state.is_none() {
            crowd.people.remove(&user);
        }
        if best != state {
            let (channel, was) = (key.clone(), best.is_some());
            let partition = self.partition(&channel.tenant, channel.channel.as_str());
            let place = (self.config.core, id);
            self.tell_owner(partition, OwnerMessage::Present { place, channel, user, was, state });
        }
    }

    /// Asks the owner who is in a channel, unless that was asked already.
    fn ask_for_picture(&mut self, id: FanId) {
        let Some(Fan { key, crowd, .. }) = self.fans.fans.get_mut(&id) else { return };
        if !std::mem::replace(&mut crowd.asked, true) {
            let channel = key.clone();
            let partition = self.partition(&channel.tenant, channel.channel.as_str());
            self.tell_owner(partition, OwnerMessage::Picture { place: (self.config.core, id), channel });
        }
    }

    /// The owner says who is in a channel. Its readers are told in turn, with fan-out.
    pub(crate) fn presence_told(&mut self, id: FanId, payload: Bytes, news: bool, whole: bool) {
        let Some(fan) = self.fans.fans.get_mut(&id) else { return };
        if whole {
            // Who comes from now on may come after those who are served already, and asks for another.
            fan.crowd.asked = false;
        }
        if !fan.crowd.viewers.is_empty() {
            self.presence.news.push_back(News { fan: id, payload, news, whole, after: None });
        }
    }

    /// Tells readers who is there, up to `budget` of them; gives how many there were.
    pub(crate) fn serve_news(&mut self, budget: usize) -> usize {
        let mut served = 0;
        while served < budget {
            let Some(mut news) = self.presence.news.pop_front() else { break };
            let from = news.after.map_or(Bound::Unbounded, Bound::Excluded);
            let viewers = self.fans.fans.get(&news.fan).map(|fan| fan.crowd.viewers.range((from, Bound::Unbounded)));
            let next: Vec<_> = viewers.into_iter().flatten().copied().take(budget - served).collect();
            if next.is_empty() {
                continue;
            }
            served += next.len();
            news.after = next.last().copied();
            for index in next {
                self.tell_viewer(index, &news);
            }
            // What follows for the same readers must not overtake it.
            self.presence.news.push_front(news);
        }
        served
    }

    fn tell_viewer(&mut self, index: SubscriptionIndex, news: &News) {
        let Some(reader) = self.fans.reader_mut(index) else { return };
        let (link, number) = (reader.link, reader.number);
        let Some(part) = &mut reader.part else { return };
        if !(if part.behind { news.whole } else { news.news }) {
            return;
        }
        let Some(session) = self.sessions.get_mut(link) else { return };
        part.behind = session.queued >= SESSION_QUEUE_BYTES;
        if part.behind {
            self.counters.presence_skipped += 1;
            if !session.attendance.behind.contains(&index) {
                session.attendance.behind.push(index);
            }
            return;
        }
        self.counters.presence_frames += 1;
        self.counters.presence_bytes += (news.payload.len() + FRAME_HEADER_BYTES) as u64;
        self.deliver(link, number, news.payload.clone());
    }

    /// There is room again in a session's queue: those of its readers that are behind can be told how things are.
    pub(super) fn catch_up(&mut self, link: Link) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        for index in std::mem::take(&mut session.attendance.behind) {
            let counts = |reader: &&mut Reader| {
                reader.link == link && reader.part.as_ref().is_some_and(|part| part.behind && part.state.is_some())
            };
            if let Some(fan) = self.fans.reader_mut(index).filter(counts).map(|reader| reader.fan) {
                self.ask_for_picture(fan);
            }
        }
    }

    /// The user of a session types, or stopped to. Too often, or where it may not write, this is dropped.
    pub(crate) fn request_typing(&mut self, link: Link, subscription: Subscription, on: bool) {
        if self.try_typing(link, subscription, on).is_none() {
            self.counters.typing_dropped += 1;
        }
    }

    fn try_typing(&mut self, link: Link, subscription: Subscription, on: bool) -> Option<()> {
        let now_us = self.now.mono_us;
        let session = self.sessions.get(link)?;
        let principal = Arc::clone(&session.principal);
        let index = *session.subscriptions.get(&subscription.0)?;
        let reader = self.fans.reader_mut(index)?;
        let id = reader.fan;
        let part = reader.part.as_mut().filter(|part| part.state.is_some())?;
        let rested = |at: u64| now_us.saturating_sub(at) >= TYPING_DISTANCE_MS * 1_000;
        if !part.typed_us.is_none_or(rested) {
            return None;
        }
        let channel = self.fans.fans.get(&id)?.key.clone();
        principal.may(Access::Write, channel.channel.as_str()).then_some(())?;
        self.fans.part_mut(index)?.typed_us = Some(now_us);
        let partition = self.partition(&channel.tenant, channel.channel.as_str());
        let place = (self.config.core, id);
        self.tell_owner(partition, OwnerMessage::Typing { place, link, channel, principal, on });
        Some(())
    }

    /// Somebody types in a channel: its readers are told, but for the session that said so.
    pub(crate) fn typing_told(&mut self, id: FanId, but: Option<Link>, payload: &Bytes) {
        let Some(fan) = self.fans.fans.get(&id) else { return };
        let readers = fan.crowd.viewers.iter().filter_map(|&index| self.fans.readers.get(index)?.as_ref());
        let told: Vec<_> = readers.map(|reader| (reader.link, reader.number)).collect();
        for (link, subscription) in told.into_iter().filter(|(link, _)| Some(*link) != but) {
            self.counters.typing_notices += 1;
            self.output(Output::Datagram { link, subscription, payload: payload.clone() });
        }
    }
}
