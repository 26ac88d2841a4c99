//! Who is there. All of it lives in memory: after a restart, and after a lost heartbeat, it is what sessions say next.
//!
//! Three parties keep a part each. The core of a session knows whether the session was heard of, and as what it counts; it
//! tells the owner of each channel the session takes part in, and the owner of its user. It says how things *are*, never
//! that something happened, and one after the other over one ring; so the owner is right as soon as it has heard the last.
//! The owner of a channel ([`room`], [`rooms`]) keeps the people in it and tells the cores whose sessions read there, over
//! a time at once. Those hand the same bytes to each reader that is up to date ([`crowd`](crate::fan)).
//!
//! The invariant: a reader that was not told something is *behind*, and one that is behind is told nothing but a whole
//! picture, which is asked for at once or as soon as there is room for it. So none is left with an old picture.

mod room;
mod rooms;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thalweg_protocol::chat::PresenceState;
use thalweg_protocol::ids::{CoreId, Name};
use thalweg_protocol::limits::PRESENCE_TIMEOUT_MS;
use thalweg_protocol::op::ServerOp;

use crate::contract::{Link, Origin, OwnerMessage};
use crate::fan::{News, SubscriptionIndex};
use crate::session::Session;
use crate::shard::{Deadline, Shard};

pub(crate) use rooms::Rooms;

/// Sessions looked at in one sweep for silent ones; the rest waits for the next turn.
const SWEEP_SESSIONS: usize = 256;

/// A user of a tenant.
type User = (Name, Name);

/// As what the sessions of one user on one core count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    online: u32,
    away: u32,
}

impl Tally {
    /// Counts a session as something else than before.
    pub(crate) fn recount(&mut self, before: Option<PresenceState>, now: Option<PresenceState>) {
        let is = |state, of| u32::from(state == Some(of));
        self.online = self.online + is(now, PresenceState::Online) - is(before, PresenceState::Online);
        self.away = self.away + is(now, PresenceState::Away) - is(before, PresenceState::Away);
    }

    /// The user is as much there as the session that is most.
    pub(crate) fn best(self) -> Option<PresenceState> {
        match self {
            Self { online: 1.., .. } => Some(PresenceState::Online),
            Self { away: 1.., .. } => Some(PresenceState::Away),
            Self { online: 0, away: 0 } => None,
        }
    }
}

/// What is known of a session's presence.
#[derive(Default)]
pub(crate) struct Attendance {
    /// As what it counts; `None` while it was not heard of, or before it said anything of presence.
    pub(crate) state: Option<PresenceState>,
    /// Whether it ever said anything of presence.
    involved: bool,
    away: bool,
    /// When it was last heard.
    heard_us: u64,
    /// When it is looked at whether it was heard.
    look_at: Option<u64>,
    /// How many of its subscriptions take part.
    pub(crate) parts: usize,
    /// Subscriptions that are behind and wait for room in the session's queue.
    pub(crate) behind: Vec<SubscriptionIndex>,
}

impl Attendance {
    fn says(&self) -> PresenceState {
        if self.away { PresenceState::Away } else { PresenceState::Online }
    }
}

/// What this core knows of who is there.
#[derive(Default)]
pub(crate) struct Presences {
    /// When it is looked at whether a session was heard of.
    looks: BTreeSet<(u64, Link)>,
    sweep_at: Option<u64>,
    /// The users with sessions on this core.
    here: BTreeMap<User, Tally>,
    /// The users this core owns, on all cores.
    everywhere: BTreeMap<User, Vec<(CoreId, PresenceState)>>,
    /// The rooms of the channels this core owns.
    pub(crate) rooms: Rooms,
    /// What readers on this core are to be told, in order.
    pub(crate) news: VecDeque<News>,
}

impl Presences {
    /// The users of this core who are there.
    pub(crate) fn users(&self) -> usize {
        self.everywhere.len()
    }
}

impl Shard {
    pub(crate) fn has_presence_to_serve(&self) -> bool {
        self.presence.rooms.has_ready() || !self.presence.news.is_empty()
    }

    /// Tells readers and their cores who is there, up to about `budget` deliveries; gives how many there were.
    pub(crate) fn serve_presence(&mut self, budget: usize) -> usize {
        let mut served = 0;
        while served < budget && self.presence.rooms.has_ready() {
            served += self.serve_room();
        }
        served + self.serve_news(budget.saturating_sub(served))
    }

    /// A session said something, whatever it was.
    pub(crate) fn heard(&mut self, link: Link) {
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get_mut(link) else { return };
        session.attendance.heard_us = now_us;
        if session.attendance.involved && session.attendance.state.is_none() {
            let says = session.attendance.says();
            self.look_after(link);
            self.attend(link, Some(says));
        }
    }

    /// A session says something of presence: from now on it counts for its user.
    pub(crate) fn involve(&mut self, link: Link) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        if !session.attendance.involved {
            session.attendance.involved = true;
            self.heard(link);
        }
    }

    pub(crate) fn request_set_presence(&mut self, origin: Origin, away: bool) {
        self.involve(origin.link);
        if let Some(session) = self.sessions.get_mut(origin.link) {
            session.attendance.away = away;
            let says = session.attendance.says();
            self.attend(origin.link, Some(says));
        }
        self.reply(origin.link, origin.request, ServerOp::Done);
    }

    /// A session counts as this from now on, for its user and in the channels it takes part in.
    fn attend(&mut self, link: Link, state: Option<PresenceState>) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let before = std::mem::replace(&mut session.attendance.state, state);
        if before == state {
            return;
        }
        let user = (session.principal.tenant.clone(), session.principal.user.clone());
        let takes_part = session.attendance.parts > 0;
        let subscriptions: Vec<_> = session.subscriptions.values().copied().filter(|_| takes_part).collect();
        self.recount_user(user, before, state);
        for index in subscriptions {
            self.count_part(index, state);
        }
    }

    /// A session is gone.
    pub(crate) fn attends_no_more(&mut self, link: Link, session: &Session) {
        if let Some(at) = session.attendance.look_at {
            self.presence.looks.remove(&(at, link));
        }
        let user = (session.principal.tenant.clone(), session.principal.user.clone());
        self.recount_user(user, session.attendance.state, None);
    }

    fn recount_user(&mut self, user: User, before: Option<PresenceState>, now: Option<PresenceState>) {
        if before == now {
            return;
        }
        let tally = self.presence.here.entry(user.clone()).or_default();
        let best = tally.best();
        tally.recount(before, now);
        let state = tally.best();
        if state.is_none() {
            self.presence.here.remove(&user);
        }
        if best != state {
            let (partition, core) = (self.user_partition(&user.0, &user.1), self.config.core);
            self.tell_owner(partition, OwnerMessage::UserPresence { core, user, state });
        }
    }

    /// A core says how a user of this core is there.
    pub(crate) fn user_presence(&mut self, core: CoreId, user: User, state: Option<PresenceState>) {
        let cores = self.presence.everywhere.entry(user.clone()).or_default();
        cores.retain(|(other, _)| *other != core);
        cores.extend(state.map(|state| (core, state)));
        if cores.is_empty() {
            self.presence.everywhere.remove(&user);
            self.note_seen(&user.0, &user.1);
        }
    }

    /// How a user of this core is, and if they are there, the time: when they were last seen.
    pub(crate) fn presence_of(&self, user: &User) -> (PresenceState, u64) {
        let cores = self.presence.everywhere.get(user).into_iter().flatten();
        match cores.map(|(_, state)| *state).max() {
            Some(state) => (state, self.now.wall_us),
            None => (PresenceState::Offline, 0),
        }
    }

    /// Looks at a session again when it would have been silent for too long.
    fn look_after(&mut self, link: Link) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let at = session.attendance.heard_us + PRESENCE_TIMEOUT_MS * 1_000;
        if let Some(before) = session.attendance.look_at.replace(at) {
            self.presence.looks.remove(&(before, link));
        }
        self.presence.looks.insert((at, link));
        self.arm_sweep();
    }

    fn arm_sweep(&mut self) {
        let Some(&(first, _)) = self.presence.looks.first() else { return };
        let at = first.max(self.now.mono_us + 1);
        if self.presence.sweep_at.is_none_or(|armed| at < armed) {
            self.presence.sweep_at = Some(at);
            self.deadlines.insert((at, Deadline::Sweep));
        }
    }

    /// Looks which sessions were not heard for too long: they count as gone until they are heard again.
    pub(crate) fn sweep(&mut self) {
        self.presence.sweep_at = None;
        for _ in 0..SWEEP_SESSIONS {
            let Some(&(at, link)) = self.presence.looks.first().filter(|(at, _)| *at <= self.now.mono_us) else {
                break;
            };
            self.presence.looks.remove(&(at, link));
            let Some(session) = self.sessions.get_mut(link) else { continue };
            session.attendance.look_at = None;
            if session.attendance.heard_us + PRESENCE_TIMEOUT_MS * 1_000 > self.now.mono_us {
                self.look_after(link);
            } else {
                self.counters.presence_timeouts += 1;
                self.attend(link, None);
            }
        }
        self.arm_sweep();
    }
}
