//! One channel as a person has it before them: what was said, who is there, what is being written, where one has scrolled to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Now;
use crate::editor::Editor;
use crate::event::{About, ChannelKind, Item, Person, Role, State, Summary, Ticket};
use crate::text;
use crate::timeline::{ENTRIES_BACKGROUND, ENTRIES_MAX, Key, Timeline};

/// People of one channel that are known by name.
const PEOPLE_MAX: usize = 1_024;
/// People whose typing is shown.
const TYPING_MAX: usize = 16;
/// Typing is over when nothing more is heard of it.
const TYPING_FOR: Duration = Duration::from_millis(thalweg_protocol::limits::TYPING_MS);
/// For how long after a message its writer's notices of typing may still arrive that were sent before it.
pub(crate) const OVERTAKEN_FOR: Duration = Duration::from_millis(1_500);
/// Channels of at most so many people tell who came and went.
const TRAFFIC_PEOPLE_MAX: u32 = 32;

/// How a channel is being read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Live {
    /// Not at all; what is known of it comes from the list.
    #[default]
    Idle,
    /// The node was asked.
    Opening,
    /// Deliveries come.
    Reading,
    /// The node said no, or ended it.
    Shut(String),
}

/// What becomes of the text when it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Draft {
    /// A message.
    #[default]
    New,
    /// A message that replies to this one.
    Reply(u64),
    /// The new text of this one.
    Edit(u64),
    /// A reaction to this one.
    React(u64),
}

/// A channel.
#[derive(Debug, Default)]
pub(crate) struct Chat {
    pub(crate) name: String,
    pub(crate) kind: ChannelKind,
    pub(crate) topic: String,
    pub(crate) role: Option<Role>,
    pub(crate) live: Live,
    pub(crate) timeline: Timeline,
    /// History that was asked for.
    pub(crate) paging: Option<Ticket>,
    /// To become a member once it is being read.
    pub(crate) join_when_open: bool,
    /// In the node's list of our channels.
    pub(crate) listed: bool,

    /// Messages people wrote, as far as is known.
    pub(crate) messages: u64,
    /// Up to where we read.
    pub(crate) read: u64,
    pub(crate) unread: u64,
    pub(crate) mentions: u64,
    /// Where the line before what is new stands: after this position.
    pub(crate) mark: Option<u64>,
    /// When to tell the node that we read.
    pub(crate) read_due: Option<Duration>,

    pub(crate) people: BTreeMap<String, Person>,
    pub(crate) present: u32,
    pub(crate) sampled: bool,
    /// Whether the first list of people came.
    pub(crate) met: bool,
    /// Who types, and until when that is believed.
    pub(crate) typing: BTreeMap<String, Duration>,
    /// Who wrote just now, and until when a notice that they type is taken for an older one: datagrams have no order.
    pub(crate) wrote: BTreeMap<String, Duration>,
    /// When others were last told that we type, or stopped.
    pub(crate) typing_told: Option<Duration>,
    /// What they were told.
    pub(crate) typing_on: bool,
    /// When they will be told that we type, because it is too early now.
    pub(crate) typing_due: Option<Duration>,

    pub(crate) editor: Editor,
    pub(crate) draft: Draft,

    /// What stands at the bottom of the screen, and how many of its lines are below; `None`: the newest.
    pub(crate) anchor: Option<(Key, usize)>,
    pub(crate) picked: Option<Key>,
    /// The message whose replies alone are shown.
    pub(crate) thread: Option<u64>,
    /// Messages that came while one was looking at older ones.
    pub(crate) below: u64,
    pub(crate) unfolded: BTreeSet<Key>,
}

impl Chat {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Names as people read them: `#general`, `@bob, @cy` for those who talk directly.
    pub(crate) fn title(&self, me: &str) -> String {
        let name = text::clean_line(&self.name);
        if self.kind != ChannelKind::Direct {
            return format!("#{name}");
        }
        // A direct channel's name or its members say who it is with.
        let others: Vec<String> = self
            .people
            .keys()
            .filter(|user| *user != me)
            .take(8)
            .map(|user| format!("@{}", text::clean_line(user)))
            .collect();
        match (others.is_empty(), self.topic.is_empty()) {
            (false, _) => others.join(" "),
            (true, false) => self.topic.clone(),
            // The node gave it a name that says nothing.
            (true, true) => "(direct)".to_owned(),
        }
    }

    /// Takes what the node's list says. What was delivered since is newer than the list.
    /// Whoever is `looking` at the newest has read it, whether the node knows already or not.
    pub(crate) fn summarise(&mut self, summary: &Summary, looking: bool) {
        self.listed = true;
        self.kind = summary.kind;
        self.topic = text::clean_line(&summary.topic);
        self.role = summary.role;
        if summary.head >= self.timeline.head || self.live != Live::Reading {
            self.messages = self.messages.max(summary.messages);
            if self.live == Live::Reading && looking && self.at_bottom() {
                (self.unread, self.mentions) = (0, 0);
            } else if self.read_due.is_none() {
                (self.unread, self.mentions) = (summary.unread, summary.mentions);
            }
        }
        self.read = self.read.max(summary.read);
    }

    pub(crate) fn about(&mut self, about: &About) {
        self.kind = about.kind;
        self.topic = text::clean_line(&about.topic);
        self.role = about.role;
        self.messages = self.messages.max(about.messages);
        if about.kind == ChannelKind::Direct {
            for (user, _) in about.members.iter().take(PEOPLE_MAX) {
                let person = || Person { user: user.clone(), state: State::Offline, since_us: 0 };
                self.people.entry(user.clone()).or_insert_with(person);
            }
        }
    }

    /// Somebody types, or stopped.
    pub(crate) fn typing(&mut self, user: &str, on: bool, now: Now) {
        let user = text::clean_line(user);
        if !on {
            self.typing.remove(&user);
        } else if self.wrote.get(&user).is_some_and(|until| *until > now.mono) {
            // It was sent before what they wrote.
        } else if self.typing.len() < TYPING_MAX || self.typing.contains_key(&user) {
            self.typing.insert(user, now.mono + TYPING_FOR);
        }
    }

    /// Somebody wrote, and so does not type any more.
    pub(crate) fn wrote(&mut self, user: &str, now: Now) {
        let user = text::clean_line(user);
        self.typing.remove(&user);
        if self.wrote.len() < TYPING_MAX || self.wrote.contains_key(&user) {
            self.wrote.insert(user, now.mono + OVERTAKEN_FOR);
        }
    }

    /// Who is there. Those who come and go are told, in channels where that says something.
    pub(crate) fn presence(&mut self, item: &Item, me: &str, now: Now) {
        let Item::Presence { full, count, users, left, sampled } = item else { return };
        let was: Vec<String> = self.here(me);
        if *full {
            self.people.values_mut().for_each(|person| person.state = State::Offline);
            if self.kind != ChannelKind::Direct {
                self.people.clear();
            }
        }
        for person in users.iter().take(PEOPLE_MAX) {
            if self.people.len() < PEOPLE_MAX || self.people.contains_key(&person.user) {
                self.people.insert(person.user.clone(), person.clone());
            }
        }
        for user in left {
            match self.kind {
                ChannelKind::Direct => {
                    if let Some(person) = self.people.get_mut(user) {
                        (person.state, person.since_us) = (State::Offline, now.wall_us);
                    }
                }
                _ => drop(self.people.remove(user)),
            }
            self.typing.remove(user);
        }
        (self.present, self.sampled) = (*count, *sampled);
        let small = !sampled && *count <= TRAFFIC_PEOPLE_MAX;
        if std::mem::replace(&mut self.met, true) && small {
            let is = self.here(me);
            let came: Vec<String> = is.iter().filter(|user| !was.contains(user)).cloned().collect();
            let gone: Vec<String> = was.iter().filter(|user| !is.contains(user)).cloned().collect();
            if !(came.is_empty() && gone.is_empty()) {
                self.timeline.traffic(&came, &gone, now.wall_us);
            }
        }
    }

    fn here(&self, me: &str) -> Vec<String> {
        let here = self.people.values().filter(|person| person.state != State::Offline && person.user != me);
        here.take(2 * TRAFFIC_PEOPLE_MAX as usize).map(|person| text::clean_line(&person.user)).collect()
    }

    /// Whether the newest is on the screen.
    pub(crate) fn at_bottom(&self) -> bool {
        self.anchor.is_none() && self.thread.is_none()
    }

    /// Everything that was there is read.
    pub(crate) fn read_all(&mut self) {
        self.read = self.read.max(self.timeline.head);
        (self.unread, self.mentions) = (0, 0);
    }

    /// Keeps memory within bounds: what nobody looks at keeps less.
    pub(crate) fn trim(&mut self, open: bool) {
        let entries_max = match (open, self.anchor.is_some()) {
            (true, false) => ENTRIES_MAX,
            // Who reads old messages keeps them while new ones come, for a while.
            (true, true) => 2 * ENTRIES_MAX,
            (false, _) => ENTRIES_BACKGROUND,
        };
        if self.timeline.trim(entries_max) {
            let from = Key::at(self.timeline.from);
            self.anchor = self.anchor.filter(|(key, _)| *key >= from);
            self.picked = self.picked.filter(|key| *key >= from);
            self.unfolded = self.unfolded.split_off(&from);
        }
    }

    /// Typing that was not heard of again is over. When the next one is.
    pub(crate) fn expire(&mut self, now: Now) -> Option<Duration> {
        self.typing.retain(|_, until| *until > now.mono);
        self.wrote.retain(|_, until| *until > now.mono);
        self.typing.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_channels_are_called_after_the_others() {
        let mut chat = Chat { kind: ChannelKind::Direct, ..Chat::new("dm/0123") };
        assert_eq!(chat.title("ada"), "(direct)");
        let members = ["ada", "bob", "c\u{1b}y"].map(|user| (user.to_owned(), Role::Member)).into();
        chat.about(&About { kind: ChannelKind::Direct, members, ..About::default() });
        assert_eq!(chat.title("ada"), "@bob @c\u{241b}y");
        assert_eq!(Chat::new("gen\u{1b}eral").title("ada"), "#gen\u{241b}eral");
    }

    #[test]
    fn a_list_does_not_undo_what_was_delivered() {
        let mut chat = Chat { live: Live::Reading, unread: 3, messages: 9, ..Chat::new("a") };
        chat.timeline.head = 20;
        chat.summarise(&Summary { head: 19, unread: 2, messages: 8, ..Summary::default() }, false);
        assert_eq!((chat.unread, chat.messages), (3, 9));
        chat.summarise(&Summary { head: 20, unread: 0, messages: 9, read: 20, ..Summary::default() }, false);
        assert_eq!((chat.unread, chat.read), (0, 20), "read on another device");
        chat.summarise(&Summary { head: 21, unread: 1, messages: 10, read: 20, ..Summary::default() }, true);
        assert_eq!(chat.unread, 0, "it is on the screen");
    }
}
