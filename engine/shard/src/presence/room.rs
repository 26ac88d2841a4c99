//! The people in one channel, as its owner knows them, and what was told of them. No clock, no queue: a value.
//!
//! Every reader that is up to date has the same picture of a room: those people who are `shown`. News are the difference
//! to it, and a picture given to somebody new is that picture; so news that follow a picture fit, in whatever order people
//! came to read. What news say of somebody is how things are when they are made, so that telling it twice does no harm.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use thalweg_protocol::chat::{Presence, PresenceState, PresentUser};
use thalweg_protocol::ids::{CoreId, Name};
use thalweg_protocol::limits::{PRESENCE_LARGE, PRESENCE_SAMPLE, PRESENT_MAX};
use thalweg_protocol::op::ServerOp;

use crate::fan::FanId;

/// A large room is small again with this many people: fewer than made it large, lest one who comes and goes makes all
/// readers learn everything anew each time.
const LARGE_NO_MORE: usize = PRESENCE_LARGE / 4 * 3;

/// Where a core gathers the readers of a channel.
pub(crate) type Place = (CoreId, FanId);

/// Somebody in a room.
struct Person {
    /// Since when, in microseconds since 1970.
    since_us: u64,
    /// On which cores, and as what there; never empty.
    at: Vec<(Place, PresenceState)>,
    /// Whether readers know of them.
    shown: bool,
}

impl Person {
    fn state(&self) -> PresenceState {
        self.at.iter().map(|(_, state)| *state).max().unwrap_or_default()
    }
}

/// The people in one channel.
#[derive(Default)]
pub(crate) struct Room {
    people: BTreeMap<Name, Person>,
    /// People, once for each core, whose names are not kept since there are too many.
    unnamed: u32,
    /// How many people came in over each place: those who come in are those who read.
    places: BTreeMap<Place, u32>,
    /// The people of whom readers do not know how they are now. Whoever is not shown, and should be, is among them.
    changed: BTreeSet<Name>,
    /// Those who went and of whom readers do not know it.
    left: BTreeSet<Name>,
    /// How many people are shown.
    shown: usize,
    /// Whether only a sample of the people is shown.
    sampled: bool,
    /// How many people there were when readers were last told.
    told_count: u32,
}

/// What readers are to be told.
pub(crate) struct News {
    /// An encoded [`ServerOp::Presence`].
    pub(crate) payload: Bytes,
    /// Whether it is a whole picture.
    pub(crate) whole: bool,
}

impl Room {
    /// Takes in how somebody is on a core now, `None` for not there; `was` says whether they were there before.
    pub(crate) fn set(&mut self, place: Place, user: &Name, was: bool, state: Option<PresenceState>, now_us: u64) {
        self.count_place(place, was, state.is_some());
        let named = self.people.get(user).is_some_and(|person| person.at.iter().any(|(at, _)| *at == place));
        self.unnamed = self.unnamed.saturating_sub(u32::from(was && !named));
        match state {
            Some(state) if self.people.contains_key(user) || self.people.len() < PRESENT_MAX => {
                self.come(place, user, state, now_us);
            }
            Some(_) => self.unnamed += 1,
            None if named => self.go(place, user),
            None => {}
        }
    }

    fn count_place(&mut self, place: Place, was: bool, is: bool) {
        let people = self.places.entry(place).or_default();
        // A core that has yet to hear that its channel was deleted, and made again, may speak of people nobody knows here.
        *people = (*people + u32::from(is)).saturating_sub(u32::from(was));
        if *people == 0 {
            self.places.remove(&place);
        }
    }

    fn come(&mut self, place: Place, user: &Name, state: PresenceState, now_us: u64) {
        // Somebody who went and came back before anybody was told was never away for the readers.
        let back = self.left.remove(user);
        self.shown += usize::from(back);
        let new = || Person { since_us: now_us, at: Vec::new(), shown: back };
        let person = self.people.entry(user.clone()).or_insert_with(new);
        let before = (!person.at.is_empty()).then(|| person.state());
        person.at.retain(|(at, _)| *at != place);
        person.at.push((place, state));
        if before != Some(person.state()) && (person.shown || !self.sampled) {
            self.changed.insert(user.clone());
        }
    }

    fn go(&mut self, place: Place, user: &Name) {
        let Some(person) = self.people.get_mut(user) else { return };
        let before = person.state();
        person.at.retain(|(at, _)| *at != place);
        if !person.at.is_empty() {
            if before != person.state() && (person.shown || !self.sampled) {
                self.changed.insert(user.clone());
            }
            return;
        }
        self.changed.remove(user);
        if person.shown {
            self.shown -= 1;
            self.left.insert(user.clone());
        }
        self.people.remove(user);
    }

    /// Nobody reads at a place any more: whoever is still there is not.
    pub(crate) fn close(&mut self, place: Place) {
        let Some(people) = self.places.remove(&place) else { return };
        let named = self.people.iter().filter(|(_, person)| person.at.iter().any(|(at, _)| *at == place));
        let named: Vec<_> = named.map(|(user, _)| user.clone()).collect();
        self.unnamed = self.unnamed.saturating_sub(people.saturating_sub(named.len() as u32));
        for user in named {
            self.go(place, &user);
        }
    }

    /// How many people are here.
    pub(crate) fn count(&self) -> u32 {
        self.people.len() as u32 + self.unnamed
    }

    /// Whether nobody is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether there are too many people to name them all.
    pub(crate) fn is_large(&self) -> bool {
        let most = if self.sampled { LARGE_NO_MORE } else { PRESENCE_LARGE };
        self.unnamed > 0 || self.people.len() > most
    }

    /// Where those who are here read.
    pub(crate) fn places(&self) -> impl ExactSizeIterator<Item = Place> + '_ {
        self.places.keys().copied()
    }

    /// Whether readers do not know how things are.
    pub(crate) fn has_news(&self) -> bool {
        !self.changed.is_empty() || !self.left.is_empty() || self.count() != self.told_count
    }

    /// What readers who know what was told before are to be told now.
    pub(crate) fn news(&mut self) -> Option<News> {
        let sampled = self.is_large();
        if sampled != self.sampled {
            self.sampled = sampled;
            self.show_anew();
            return Some(News { payload: self.picture(), whole: true });
        }
        if !self.has_news() {
            return None;
        }
        let mut news = std::mem::take(&mut self.changed);
        if self.sampled {
            self.fill_sample(|name| {
                news.insert(name.clone());
            });
        }
        self.told_count = self.count();
        let mut users = Vec::with_capacity(news.len());
        for user in news {
            let Some(person) = self.people.get_mut(&user) else { continue };
            self.shown += usize::from(!person.shown);
            person.shown = true;
            users.push(PresentUser { user, state: person.state(), since_us: person.since_us });
        }
        let left = std::mem::take(&mut self.left).into_iter().collect();
        let (count, sampled) = (self.count(), self.sampled);
        let news = Presence { full: false, sampled, count, users, left };
        Some(News { payload: ServerOp::Presence(news).encode(), whole: false })
    }

    /// Chooses who is shown, now that it is all or no longer all.
    fn show_anew(&mut self) {
        self.changed.clear();
        self.left.clear();
        self.told_count = self.count();
        let most = if self.sampled { PRESENCE_SAMPLE } else { usize::MAX };
        self.shown = 0;
        for person in self.people.values_mut() {
            person.shown = self.shown < most;
            self.shown += usize::from(person.shown);
        }
    }

    /// Puts others in the place of those of a sample who went.
    fn fill_sample(&mut self, mut add: impl FnMut(&Name)) {
        let free = PRESENCE_SAMPLE.saturating_sub(self.shown);
        if free > 0 {
            // Passes by at most a sample's worth of people.
            for (name, person) in self.people.iter_mut().filter(|(_, person)| !person.shown).take(free) {
                person.shown = true;
                self.shown += 1;
                add(name);
            }
        }
    }

    /// The picture that readers have who were told everything so far.
    pub(crate) fn picture(&self) -> Bytes {
        let mut users = Vec::with_capacity(self.shown);
        let mut shown = self.people.iter().filter(|(_, person)| person.shown);
        while users.len() < self.shown {
            let Some((user, person)) = shown.next() else { break };
            users.push(PresentUser { user: user.clone(), state: person.state(), since_us: person.since_us });
        }
        // Of those who are not shown yet the next news tell, and count them.
        let count = if self.sampled { self.count() } else { users.len() as u32 };
        let picture = Presence { full: true, sampled: self.sampled, count, users, left: Vec::new() };
        ServerOp::Presence(picture).encode()
    }

    /// The first people by name, at most so many.
    pub(crate) fn list(&self, most: usize) -> Vec<PresentUser> {
        let entry = |(user, person): (&Name, &Person)| PresentUser {
            user: user.clone(),
            state: person.state(),
            since_us: person.since_us,
        };
        self.people.iter().take(most).map(entry).collect()
    }
}
