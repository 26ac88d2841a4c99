//! Who is in the channels this core owns: what the cores of the people report, and what it tells their readers, gathered
//! over a time so that many changes cost as much as one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_protocol::chat::PresenceState;
use thalweg_protocol::ids::{ChannelKey, Name};
use thalweg_protocol::limits::{
    PRESENCE_LARGE, PRESENCE_LARGE_TICK_MS, PRESENCE_TICK_MS, PRESENT_LISTED, TYPING_DISTANCE_MS, TYPING_NOTICES_MAX,
};
use thalweg_protocol::op::ServerOp;

use super::room::{Place, Room};
use crate::contract::{Link, Origin, SessionMessage};
use crate::shard::{Deadline, Shard};

/// What one look at a room costs beside telling its cores, in deliveries.
const LOOK_COST: usize = 8;

/// A room, and when who reads in it is told what.
#[derive(Default)]
struct Kept {
    room: Room,
    /// The places that need a picture.
    asking: BTreeSet<Place>,
    /// When pictures are handed out.
    pictures_at: Option<u64>,
    /// When news are handed out.
    news_at: Option<u64>,
    /// When they last were.
    told_us: Option<u64>,
    /// Under which time the room stands in the list of those that are due.
    due_at: Option<u64>,
    /// When the present stretch of typing notices began, and how many there were in it.
    typing: (u64, u32),
}

/// The rooms of the channels this core owns in which somebody is.
#[derive(Default)]
pub(crate) struct Rooms {
    rooms: BTreeMap<ChannelKey, Kept>,
    due: BTreeSet<(u64, ChannelKey)>,
    /// Rooms whose time has come.
    ready: VecDeque<ChannelKey>,
}

impl Rooms {
    pub(crate) fn len(&self) -> usize {
        self.rooms.len()
    }

    pub(crate) fn people(&self) -> u64 {
        self.rooms.values().map(|kept| u64::from(kept.room.count())).sum()
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Shard {
    /// A core says how somebody is in a channel, `None` for not there; `was` says whether they were there before.
    pub(crate) fn present(
        &mut self,
        place: Place,
        channel: ChannelKey,
        user: &Name,
        was: bool,
        state: Option<PresenceState>,
    ) {
        // What is said of a channel that is gone, or was made again, means nothing any more.
        if !self.is_attached(&channel, place) {
            return;
        }
        let kept = self.presence.rooms.rooms.entry(channel.clone()).or_default();
        kept.room.set(place, user, was, state, self.now.wall_us);
        self.arrange(channel);
    }

    /// A core has readers who do not know who is in a channel.
    pub(crate) fn asked_for_picture(&mut self, place: Place, channel: ChannelKey) {
        if self.is_attached(&channel, place) {
            self.presence.rooms.rooms.entry(channel.clone()).or_default().asking.insert(place);
            self.arrange(channel);
        }
    }

    /// Sees to it that a room is looked at when something of it is due, and forgotten when nothing is.
    fn arrange(&mut self, channel: ChannelKey) {
        let now_us = self.now.mono_us;
        let Some(kept) = self.presence.rooms.rooms.get_mut(&channel) else { return };
        let gathered_at = now_us + PRESENCE_TICK_MS * 1_000;
        if kept.room.has_news() && !kept.room.is_empty() {
            let rest_ms = if kept.room.is_large() { PRESENCE_LARGE_TICK_MS } else { PRESENCE_TICK_MS };
            let rested_at = kept.told_us.map_or(0, |told_us| told_us + rest_ms * 1_000);
            kept.news_at.get_or_insert(gathered_at.max(rested_at));
        }
        if !kept.asking.is_empty() {
            kept.pictures_at.get_or_insert(gathered_at);
        }
        let due_at = [kept.news_at, kept.pictures_at].into_iter().flatten().min();
        let before = std::mem::replace(&mut kept.due_at, due_at);
        let over = kept.room.is_empty() && kept.asking.is_empty();
        if before != due_at || over {
            if let Some(at) = before {
                self.presence.rooms.due.remove(&(at, channel.clone()));
            }
            if over {
                self.presence.rooms.rooms.remove(&channel);
            } else if let Some(at) = due_at {
                self.presence.rooms.due.insert((at, channel));
                self.deadlines.insert((at, Deadline::Rooms));
            }
        }
    }

    /// The time of some rooms has come. They are looked at in slices, with fan-out.
    pub(crate) fn rooms_due(&mut self) {
        let rooms = &mut self.presence.rooms;
        while rooms.due.first().is_some_and(|(at, _)| *at <= self.now.mono_us) {
            let Some((_, channel)) = rooms.due.pop_first() else { return };
            if let Some(kept) = rooms.rooms.get_mut(&channel) {
                kept.due_at = None;
                rooms.ready.push_back(channel);
            }
        }
    }

    /// Looks at the next room whose time has come; gives what that cost, in deliveries.
    pub(crate) fn serve_room(&mut self) -> usize {
        let now_us = self.now.mono_us;
        let Some(channel) = self.presence.rooms.ready.pop_front() else { return 0 };
        let Some(kept) = self.presence.rooms.rooms.get_mut(&channel) else { return 1 };
        let mut frames = Vec::new();
        if kept.news_at.take_if(|at| *at <= now_us).is_some()
            && let Some(news) = kept.room.news()
        {
            kept.told_us = Some(now_us);
            frames.extend(kept.room.places().map(|place| (place, news.payload.clone(), true, news.whole)));
        }
        if kept.pictures_at.take_if(|at| *at <= now_us).is_some() {
            let picture = kept.room.picture();
            let asking = std::mem::take(&mut kept.asking);
            frames.extend(asking.into_iter().map(|place| (place, picture.clone(), false, true)));
        }
        let cost = LOOK_COST + frames.len();
        for ((core, fan), payload, news, whole) in frames {
            self.tell_session(core, SessionMessage::Presence { fan, payload, news, whole });
        }
        self.arrange(channel);
        cost
    }

    /// A core has no more readers of a channel. Those it had said so; but if the channel was deleted and made again, its core
    /// may have spoken of them too late.
    pub(crate) fn close_place(&mut self, place: Place, channel: &ChannelKey) {
        if let Some(kept) = self.presence.rooms.rooms.get_mut(channel) {
            kept.room.close(place);
            kept.asking.remove(&place);
            self.arrange(channel.clone());
        }
    }

    /// A channel is gone, and nobody is in it any more.
    pub(crate) fn forget_room(&mut self, channel: &ChannelKey) {
        let rooms = &mut self.presence.rooms;
        if let Some(at) = rooms.rooms.remove(channel).and_then(|kept| kept.due_at) {
            rooms.due.remove(&(at, channel.clone()));
        }
    }

    /// Answers who is in a channel.
    pub(crate) fn answer_who_is_in(&mut self, origin: Origin, channel: &ChannelKey) {
        let room = self.presence.rooms.rooms.get(channel).map(|kept| &kept.room);
        let (count, users) = room.map_or((0, Vec::new()), |room| (room.count(), room.list(PRESENT_LISTED)));
        let complete = users.len() == count as usize;
        self.answer(origin, ServerOp::PresenceReport { count, users, complete });
    }

    /// Somebody types in a channel, or stopped to. Its readers are told unless that would be too much for what it is worth.
    pub(crate) fn typed(
        &mut self,
        place: Place,
        link: Link,
        channel: &ChannelKey,
        principal: &Arc<Principal>,
        on: bool,
    ) {
        let now_us = self.now.mono_us;
        let writes = self
            .channel_with_readers(channel)
            .is_some_and(|(kept, _)| kept.roster().may_write(principal, &channel.channel).is_ok());
        let room = self.presence.rooms.rooms.get_mut(channel);
        let Some(kept) = room.filter(|kept| writes && kept.room.count() as usize <= PRESENCE_LARGE) else {
            self.counters.typing_dropped += 1;
            return;
        };
        if kept.typing.1 == 0 || now_us.saturating_sub(kept.typing.0) >= TYPING_DISTANCE_MS * 1_000 {
            kept.typing = (now_us, 0);
        }
        if kept.typing.1 >= TYPING_NOTICES_MAX {
            self.counters.typing_dropped += 1;
            return;
        }
        kept.typing.1 += 1;
        let payload = ServerOp::TypingNotice { user: principal.user.clone(), on }.encode();
        for (core, fan) in kept.room.places().collect::<Vec<_>>() {
            let but = (core == place.0).then_some(link);
            self.tell_session(core, SessionMessage::Typing { fan, but, payload: payload.clone() });
        }
    }
}
