//! Who is in a channel: the picture that is kept of it, and what waits for an application beside a subscription's queue.

use std::collections::BTreeMap;
use std::sync::Mutex;

use thalweg_protocol::chat::{Presence, PresenceState, PresentUser};
use thalweg_protocol::ids::Name;
use thalweg_protocol::limits::{PRESENCE_LARGE, PRESENT_MAX};
use tokio::sync::Notify;

use crate::subscription::Item;

/// Names in a report that waits; one with more is replaced by the whole picture.
const WAITING_NAMES_MAX: usize = 2 * PRESENCE_LARGE;
/// Typing notices that wait, one a user; further users are not told about.
const TYPISTS_MAX: usize = 64;

/// Who is in a channel, as far as the node told: feed it every [`Item::Presence`] of one subscription.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct People {
    count: u32,
    sampled: bool,
    users: BTreeMap<Name, PresentUser>,
}

/// What a report changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeopleChange {
    /// Somebody is there who was not.
    Joined(PresentUser),
    /// Somebody went to or came back from elsewhere.
    Changed(PresentUser),
    /// Somebody is there no more.
    Left(Name),
}

impl People {
    /// How many are there.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there are too many for the node to name them all: who is not named may be there.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// Those who are known by name, in the order of their names.
    pub fn users(&self) -> impl Iterator<Item = &PresentUser> {
        self.users.values()
    }

    /// What is known of somebody; `Offline` if they are not there, or not in the sample.
    pub fn state(&self, user: &Name) -> PresenceState {
        self.users.get(user).map_or(PresenceState::Offline, |present| present.state)
    }

    /// Takes a report in. Gives who came, changed and left; nobody for a sample, which does not say.
    pub fn take(&mut self, report: &Presence) -> Vec<PeopleChange> {
        let mut changes = Vec::new();
        let sample = report.sampled || self.sampled;
        (self.count, self.sampled) = (report.count, report.sampled);
        let gone: Vec<Name> = if report.full {
            let mut before = std::mem::take(&mut self.users);
            for present in &report.users {
                if let Some(known) = before.remove(&present.user) {
                    self.users.insert(known.user.clone(), known);
                }
            }
            before.into_keys().collect()
        } else {
            report.left.iter().filter(|user| self.users.remove(*user).is_some()).cloned().collect()
        };
        changes.extend(gone.into_iter().map(PeopleChange::Left));
        for present in &report.users {
            let room = self.users.len() < PRESENT_MAX;
            match self.users.get_mut(&present.user) {
                Some(known) if known == present => {}
                Some(known) => {
                    let moved = known.state != present.state;
                    known.clone_from(present);
                    changes.extend(moved.then(|| PeopleChange::Changed(present.clone())));
                }
                // A node that names more than there can be is not followed.
                None if !room => {}
                None => {
                    self.users.insert(present.user.clone(), present.clone());
                    changes.push(PeopleChange::Joined(present.clone()));
                }
            }
        }
        if sample { Vec::new() } else { changes }
    }

    /// The whole picture as one report.
    fn report(&self) -> Presence {
        let users = self.users.values().cloned().collect();
        Presence { full: true, sampled: self.sampled, count: self.count, users, left: Vec::new() }
    }
}

/// What comes for an application beside the deliveries of a channel. It is not queued but merged, so that one that does not
/// take it is not flooded: it gets the newest picture, and of everybody whether they write.
#[derive(Debug, Default)]
pub(crate) struct News {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    people: People,
    report: Option<Presence>,
    typists: BTreeMap<Name, bool>,
}

impl News {
    /// Takes in a report of the node.
    pub(crate) fn present(&self, report: Presence) {
        let mut waiting = self.waiting.lock().expect("nothing panics under this lock");
        waiting.people.take(&report);
        let merged = match waiting.report.take() {
            Some(before) if !report.full => merge(before, report),
            _ => report,
        };
        let names = merged.users.len() + merged.left.len();
        waiting.report = Some(if names > WAITING_NAMES_MAX { waiting.people.report() } else { merged });
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Takes in that somebody writes, or stopped to. Whether there was room.
    pub(crate) fn typing(&self, user: Name, on: bool) -> bool {
        let mut waiting = self.waiting.lock().expect("nothing panics under this lock");
        if waiting.typists.len() >= TYPISTS_MAX && !waiting.typists.contains_key(&user) {
            return false;
        }
        waiting.typists.insert(user, on);
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    /// What there is for the application.
    pub(crate) fn take(&self) -> Option<Item> {
        let mut waiting = self.waiting.lock().expect("nothing panics under this lock");
        if let Some(report) = waiting.report.take() {
            return Some(Item::Presence(report));
        }
        waiting.typists.pop_first().map(|(user, on)| Item::Typing { user, on })
    }

    /// Waits until there is something. Cancel-safe.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

/// One report that says what two say, one after the other; the second is not full.
fn merge(mut before: Presence, after: Presence) -> Presence {
    let Presence { sampled, count, users, left, .. } = after;
    (before.sampled, before.count) = (sampled, count);
    let named: std::collections::BTreeSet<&Name> = users.iter().map(|present| &present.user).chain(&left).collect();
    before.users.retain(|present| !named.contains(&present.user));
    before.left.retain(|user| !named.contains(user));
    before.users.extend(users);
    if !before.full {
        before.left.extend(left);
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    fn present(text: &str) -> PresentUser {
        let (user, state) = match text.strip_suffix('-') {
            Some(user) => (user, PresenceState::Away),
            None => (text, PresenceState::Online),
        };
        PresentUser { user: name(user), state, since_us: 1 }
    }

    /// `full: a b- | c`: who is there (`-`: away), and who left.
    fn report(text: &str) -> Presence {
        let (kind, rest) = text.split_once(':').expect("a kind");
        let (users, left) = rest.split_once('|').unwrap_or((rest, ""));
        let users: Vec<_> = users.split_whitespace().map(present).collect();
        let left = left.split_whitespace().map(name).collect();
        let count = users.len() as u32;
        Presence { full: kind != "news", sampled: kind == "sample", count, users, left }
    }

    fn show(changes: &[PeopleChange]) -> String {
        let show = |change: &PeopleChange| match change {
            PeopleChange::Joined(present) => format!("+{}", present.user),
            PeopleChange::Changed(present) => format!("{}={}", present.user, present.state.as_str()),
            PeopleChange::Left(user) => format!("-{user}"),
        };
        changes.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_picture_follows_the_reports() {
        let check = |reports: &[(&str, &str)], there: &str| {
            let mut people = People::default();
            for (text, expected) in reports {
                assert_eq!(show(&people.take(&report(text))), *expected, "{text} of {reports:?}");
            }
            let users: Vec<_> = people.users().map(|present| present.user.as_str()).collect();
            assert_eq!(users.join(" "), there, "{reports:?}");
        };
        check(&[("full: b a", "+b +a"), ("news: c", "+c"), ("news: | a zed", "-a")], "b c");
        check(&[("full: a", "+a"), ("news: a-", "a=away"), ("news: a-", "")], "a");
        check(&[("full: a b", "+a +b"), ("full: b c", "-a +c")], "b c");
        // A sample names some: nobody is known to have come or gone, even when it ends.
        check(&[("full: a b", "+a +b"), ("sample: a", ""), ("full: a b", ""), ("news: | b", "-b")], "a");
    }

    #[test]
    fn reports_that_wait_are_merged() {
        let check = |reports: &[&str], expected: &str| {
            let news = News::default();
            reports.iter().for_each(|text| news.present(report(text)));
            let Some(Item::Presence(found)) = news.take() else { panic!("a report was expected") };
            let expected = report(expected);
            assert_eq!((found.full, found.sampled), (expected.full, expected.sampled), "{reports:?}");
            assert_eq!((found.users, found.left), (expected.users, expected.left), "{reports:?}");
            assert_eq!(news.take(), None);
        };
        check(&["news: a | b"], "news: a | b");
        check(&["news: a | b", "news: b | a"], "news: b | a");
        check(&["full: a b", "news: c | a"], "full: b c");
        check(&["news: a | b", "full: z"], "full: z");
        check(&["full: a", "sample: b"], "sample: b");
    }

    #[test]
    fn what_is_not_taken_stays_bounded() {
        let news = News::default();
        news.present(report("full: a"));
        for at in 0..10 * WAITING_NAMES_MAX {
            news.present(report(&format!("news: u{at} | u{}", at.wrapping_sub(1))));
            news.typing(name(&format!("u{at}")), true);
        }
        let Some(Item::Presence(found)) = news.take() else { panic!("a report was expected") };
        let users: Vec<_> = found.users.iter().map(|present| present.user.to_string()).collect();
        assert!(found.full);
        assert_eq!(users, ["a".to_owned(), format!("u{}", 10 * WAITING_NAMES_MAX - 1)]);
        assert_eq!(std::iter::from_fn(|| news.take()).count(), TYPISTS_MAX);
    }
}
