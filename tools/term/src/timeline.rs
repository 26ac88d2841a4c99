//! What happened in a channel, as far as it is known here.
//!
//! Records come in any order: live from the end, history from before, an answer's pieces before its beginning. Whatever the
//! order, the same records leave the same timeline: what changes a message (edits, deletions, reactions) is kept beside it
//! by position, the newest winning.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thalweg_protocol::ids::GenerationId;

use crate::event::{Delivery, Item, Kind, Role, Ticket};
use crate::text;

/// Entries of one channel that are kept.
pub(crate) const ENTRIES_MAX: usize = 4_000;
/// Entries of a channel that nobody looks at.
pub(crate) const ENTRIES_BACKGROUND: usize = 400;
/// Bytes of bodies of one channel that are kept.
pub(crate) const BYTES_MAX: usize = 8 << 20;
/// Messages with changes that are known, though perhaps the message is not.
const AMENDED_MAX: usize = 8_192;
/// Reactions of one message that are kept.
const REACTIONS_MAX: usize = 1_024;
/// Answers known to be over.
const FINISHED_MAX: usize = 4_096;
/// Messages that wait for the node.
pub(crate) const UNSENT_MAX: usize = 256;

/// Where an entry stands: the position of its record, and an order among what has none of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) position: u64,
    pub(crate) order: u32,
}

impl Key {
    pub(crate) fn at(position: u64) -> Self {
        Self { position, order: 0 }
    }

    fn unsent(order: u32) -> Self {
        Self { position: u64::MAX, order }
    }

    pub(crate) fn is_unsent(self) -> bool {
        self.position == u64::MAX
    }
}

/// One thing to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A message.
    Said(Said),
    /// An answer being written.
    Answer(Writing),
    /// Something that happened.
    Note { text: String, at_us: u64 },
    /// People who came and went, put together.
    Traffic { came: Vec<String>, left: Vec<String>, at_us: u64 },
    /// Positions up to this one will not come.
    Gap { to: u64 },
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) at_us: u64,
    pub(crate) user: String,
    /// Harmless.
    pub(crate) body: String,
    pub(crate) target: u64,
    pub(crate) redacted: bool,
    /// It calls the person at this terminal.
    pub(crate) calls_me: bool,
    /// A model wrote it.
    pub(crate) model: bool,
}

/// An answer that is being written, or ended without becoming a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Writing {
    pub(crate) generation: GenerationId,
    pub(crate) at_us: u64,
    pub(crate) user: String,
    /// Its beginning was seen.
    pub(crate) begun: bool,
    pieces: BTreeMap<u64, String>,
    pub(crate) ended: Option<String>,
}

impl Writing {
    pub(crate) fn text(&self) -> String {
        self.pieces.values().map(String::as_str).collect()
    }
}

/// A message the node did not confirm yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsent {
    pub(crate) ticket: Ticket,
    pub(crate) body: String,
    pub(crate) target: u64,
    pub(crate) at_us: u64,
    /// Why it was not sent; `None` while it may still be.
    pub(crate) failed: Option<String>,
    order: u32,
}

/// What became of a message after it was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Amended {
    /// The newest text and where it was written.
    edit: Option<(u64, String)>,
    redacted: Option<u64>,
    /// By emoji and user: where that was last said, and whether it holds.
    reactions: BTreeMap<(String, String), (u64, bool)>,
}

/// What a record changed, as far as others want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing new.
    Nothing,
    /// A message of somebody else or of a model: is it one that calls us?
    Message { calls_me: bool },
    /// A role changed.
    Membership { user: String, role: Option<Role> },
    /// The topic changed.
    Topic(String),
    /// Something else that is shown.
    Shown,
}

/// The records of one channel.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    entries: BTreeMap<Key, Entry>,
    amended: BTreeMap<u64, Amended>,
    answers: BTreeMap<GenerationId, Key>,
    finished: BTreeSet<GenerationId>,
    unsent: VecDeque<Unsent>,
    bytes: usize,
    orders: u32,
    /// Everything from here on is here; 0 while nothing was asked for.
    pub(crate) from: u64,
    /// The oldest position the node keeps.
    pub(crate) first: u64,
    /// The newest position that was seen.
    pub(crate) head: u64,
}

impl Timeline {
    /// Takes in what a subscription or a page of history gave. `me`: who sits at this terminal.
    pub(crate) fn apply(&mut self, item: &Item, me: &str) -> Change {
        match item {
            Item::Delivery(delivery) => self.delivery(delivery, me),
            Item::Missed { from, to } => {
                self.head = self.head.max(*to);
                self.insert(Key::at(*from), Entry::Gap { to: *to });
                Change::Shown
            }
            Item::Rewound { to } => {
                self.rewind(*to);
                Change::Shown
            }
            Item::Presence { .. } | Item::Typing { .. } => Change::Nothing,
        }
    }

    fn delivery(&mut self, delivery: &Delivery, me: &str) -> Change {
        let Delivery { position, at_us, target, .. } = *delivery;
        let user = text::clean_line(&delivery.user);
        self.head = self.head.max(position);
        let key = Key::at(position);
        match &delivery.kind {
            Kind::Message { body, redacted } => {
                if let Some(generation) = delivery.generation {
                    self.finish(generation);
                }
                let calls_me = delivery.mentions.iter().any(|name| name == me);
                let said = Said {
                    at_us,
                    body: text::clean(body),
                    target,
                    redacted: *redacted,
                    calls_me,
                    model: delivery.generation.is_some(),
                    user,
                };
                let (new, other) = (!self.entries.contains_key(&key), said.user != me);
                self.insert(key, Entry::Said(said));
                if new && other { Change::Message { calls_me } } else { Change::Shown }
            }
            Kind::Tokens { text } => self.piece(delivery, user, Some(text)),
            Kind::Started => self.piece(delivery, user, None),
            Kind::Ended { reason } => {
                self.piece(delivery, user, None);
                let key = delivery.generation.and_then(|id| self.answers.get(&id)).copied();
                if let Some(Entry::Answer(writing)) = key.and_then(|key| self.entries.get_mut(&key)) {
                    writing.ended = Some(text::clean_line(reason));
                }
                Change::Shown
            }
            Kind::Edit { body } => {
                let amended = self.amend(target);
                if amended.edit.as_ref().is_none_or(|(at, _)| *at < position) {
                    amended.edit = Some((position, text::clean(body)));
                }
                Change::Shown
            }
            Kind::Redaction => {
                self.amend(target).redacted = Some(position);
                Change::Shown
            }
            Kind::Reaction { emoji, on } => {
                let reactions = &mut self.amend(target).reactions;
                let known = (text::clean_line(emoji), user);
                if reactions.len() < REACTIONS_MAX || reactions.contains_key(&known) {
                    let newest = reactions.entry(known).or_insert((position, *on));
                    if newest.0 <= position {
                        *newest = (position, *on);
                    }
                }
                Change::Shown
            }
            Kind::Membership { user: whose, role } => {
                let whose = text::clean_line(whose);
                let text = membership(&user, &whose, *role);
                self.insert(key, Entry::Note { text, at_us });
                Change::Membership { user: whose, role: *role }
            }
            Kind::Topic { topic } => {
                let topic = text::clean_line(topic);
                let text = if topic.is_empty() {
                    format!("{user} took the topic away")
                } else {
                    format!("{user} set the topic: {topic}")
                };
                self.insert(key, Entry::Note { text, at_us });
                Change::Topic(topic)
            }
        }
    }

    /// A part of an answer: a piece of text, or its beginning or end.
    fn piece(&mut self, delivery: &Delivery, user: String, text: Option<&String>) -> Change {
        let Some(generation) = delivery.generation else { return Change::Nothing };
        if self.finished.contains(&generation) {
            return Change::Nothing;
        }
        let mut key = *self.answers.entry(generation).or_insert(Key::at(delivery.position));
        if delivery.position < key.position {
            // It began before what was seen of it.
            let entry = self.entries.remove(&key);
            key = Key::at(delivery.position);
            self.entries.extend(entry.map(|entry| (key, entry)));
            self.answers.insert(generation, key);
        }
        let new = || {
            let (pieces, ended) = (BTreeMap::new(), None);
            Entry::Answer(Writing { generation, at_us: delivery.at_us, user, begun: false, pieces, ended })
        };
        if let Entry::Answer(writing) = self.entries.entry(key).or_insert_with(new) {
            writing.begun |= delivery.kind == Kind::Started;
            if let Some(text) = text {
                let text = text::clean(text);
                self.bytes += text.len();
                writing.pieces.insert(delivery.position, text);
            }
        }
        Change::Shown
    }

    /// An answer became a message.
    fn finish(&mut self, generation: GenerationId) {
        if let Some(key) = self.answers.remove(&generation) {
            self.remove(key);
        }
        self.finished.insert(generation);
        if self.finished.len() > FINISHED_MAX {
            self.finished.pop_first();
        }
    }

    fn amend(&mut self, target: u64) -> &mut Amended {
        if self.amended.len() >= AMENDED_MAX {
            self.amended.pop_first();
        }
        self.amended.entry(target).or_default()
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        self.bytes += size(&entry);
        if let Some(old) = self.entries.insert(key, entry) {
            self.bytes -= size(&old);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(old) = self.entries.remove(&key) {
            self.bytes = self.bytes.saturating_sub(size(&old));
        }
    }

    /// Positions after `to` are given out anew.
    fn rewind(&mut self, to: u64) {
        let gone: Vec<Key> = self.entries.range(Key { position: to, order: u32::MAX }..).map(|(key, _)| *key).collect();
        gone.into_iter().for_each(|key| self.remove(key));
        self.answers.retain(|_, key| key.position <= to);
        for amended in self.amended.values_mut() {
            amended.edit.take_if(|(at, _)| *at > to);
            amended.redacted.take_if(|at| *at > to);
            amended.reactions.retain(|_, (at, _)| *at <= to);
        }
        self.head = self.head.min(to);
    }

    /// Shows something after all that is known.
    pub(crate) fn note(&mut self, text: String, at_us: u64) {
        let key = self.after_all();
        self.insert(key, Entry::Note { text, at_us });
    }

    /// Shows that people came and went; one line as long as nothing else happens.
    pub(crate) fn traffic(&mut self, came: &[String], left: &[String], at_us: u64) {
        let fresh = match self.entries.last_entry().map(std::collections::btree_map::OccupiedEntry::into_mut) {
            Some(Entry::Traffic { came: before, left: gone, .. }) => {
                // Who came and went leaves no trace, and the other way round.
                let come: Vec<_> = came.iter().filter(|name| !gone.contains(name)).cloned().collect();
                let go: Vec<_> = left.iter().filter(|name| !before.contains(name)).cloned().collect();
                before.retain(|name| !left.contains(name));
                gone.retain(|name| !came.contains(name));
                before.extend(come);
                gone.extend(go);
                let empty = before.is_empty() && gone.is_empty();
                if empty {
                    self.entries.pop_last();
                }
                return;
            }
            _ => Entry::Traffic { came: came.to_vec(), left: left.to_vec(), at_us },
        };
        let key = self.after_all();
        self.insert(key, fresh);
    }

    fn after_all(&mut self) -> Key {
        self.orders = self.orders.wrapping_add(1).max(1);
        let last = self.entries.last_key_value().map_or(0, |(key, _)| key.position);
        Key { position: self.head.max(last).min(u64::MAX - 1), order: self.orders }
    }

    /// Keeps a message until the node confirms it; says whether there was room.
    pub(crate) fn send(&mut self, ticket: Ticket, body: &str, target: u64, at_us: u64) -> bool {
        if self.unsent.len() >= UNSENT_MAX {
            return false;
        }
        self.orders = self.orders.wrapping_add(1).max(1);
        let unsent = Unsent { ticket, body: body.to_owned(), target, at_us, failed: None, order: self.orders };
        self.unsent.push_back(unsent);
        true
    }

    /// The node confirmed a message of ours, which is not delivered to us again.
    pub(crate) fn confirm(&mut self, ticket: Ticket, me: &str, position: u64, at_us: u64) {
        let Some(at) = self.unsent.iter().position(|unsent| unsent.ticket == ticket) else { return };
        let Some(Unsent { body, target, .. }) = self.unsent.remove(at) else { return };
        let said = Said { at_us, user: me.to_owned(), body, target, redacted: false, calls_me: false, model: false };
        self.head = self.head.max(position);
        self.entries.entry(Key::at(position)).or_insert_with(|| {
            self.bytes += said.body.len();
            Entry::Said(said)
        });
    }

    /// A message of ours was refused.
    pub(crate) fn fail(&mut self, ticket: Ticket, reason: String) {
        if let Some(unsent) = self.unsent.iter_mut().find(|unsent| unsent.ticket == ticket) {
            unsent.failed = Some(reason);
        }
    }

    /// Takes a message out that was refused.
    pub(crate) fn take_failed(&mut self, key: Key) -> Option<Unsent> {
        let at = self.unsent.iter().position(|unsent| Key::unsent(unsent.order) == key && unsent.failed.is_some())?;
        self.unsent.remove(at)
    }

    /// The newest message that was refused.
    pub(crate) fn last_failed(&self) -> Option<Key> {
        self.unsent.iter().rev().find(|unsent| unsent.failed.is_some()).map(|unsent| Key::unsent(unsent.order))
    }

    /// How many messages wait for the node.
    pub(crate) fn waiting(&self) -> usize {
        self.unsent.iter().filter(|unsent| unsent.failed.is_none()).count()
    }

    /// Forgets the oldest until so many are left; says whether anything went.
    pub(crate) fn trim(&mut self, entries_max: usize) -> bool {
        let mut trimmed = false;
        while self.entries.len() > entries_max || self.bytes > BYTES_MAX && self.entries.len() > 1 {
            let Some((key, entry)) = self.entries.pop_first() else { break };
            self.bytes = self.bytes.saturating_sub(size(&entry));
            if let Entry::Answer(writing) = &entry {
                self.answers.remove(&writing.generation);
            }
            self.from = self.from.max(key.position + 1);
            trimmed = true;
        }
        trimmed
    }

    /// Forgets everything but what was not sent.
    pub(crate) fn forget(&mut self) {
        let (unsent, orders) = (std::mem::take(&mut self.unsent), self.orders);
        *self = Self { unsent, orders, ..Self::default() };
    }
}

/// What is shown of an entry.
pub(crate) enum Shown<'a> {
    Entry(&'a Entry),
    Unsent(&'a Unsent),
}

/// Reading.
impl Timeline {
    /// The entry after `key`, or the first.
    pub(crate) fn next(&self, key: Option<Key>) -> Option<Key> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = key.map_or(Unbounded, Excluded);
        let entry = self.entries.range((after, Unbounded)).next().map(|(key, _)| *key);
        entry.or_else(|| self.unsent.iter().map(|u| Key::unsent(u.order)).find(|k| key.is_none_or(|key| *k > key)))
    }

    /// The entry before `key`, or the last.
    pub(crate) fn previous(&self, key: Option<Key>) -> Option<Key> {
        let before = |k: &Key| key.is_none_or(|key| *k < key);
        let unsent = self.unsent.iter().rev().map(|u| Key::unsent(u.order)).find(before);
        let bound = key.unwrap_or(Key::unsent(u32::MAX));
        unsent.or_else(|| self.entries.range(..bound).next_back().map(|(key, _)| *key))
    }

    pub(crate) fn get(&self, key: Key) -> Option<Shown<'_>> {
        if key.is_unsent() {
            return self.unsent.iter().find(|u| Key::unsent(u.order) == key).map(Shown::Unsent);
        }
        self.entries.get(&key).map(Shown::Entry)
    }

    pub(crate) fn said(&self, position: u64) -> Option<&Said> {
        match self.entries.get(&Key::at(position)) {
            Some(Entry::Said(said)) => Some(said),
            _ => None,
        }
    }

    /// The text of a message as it is now; `None` if it was taken back.
    pub(crate) fn body<'a>(&'a self, position: u64, said: &'a Said) -> Option<&'a str> {
        let amended = self.amended.get(&position);
        if said.redacted || amended.is_some_and(|amended| amended.redacted.is_some()) {
            return None;
        }
        Some(amended.and_then(|amended| amended.edit.as_ref()).map_or(&said.body, |(_, body)| body))
    }

    pub(crate) fn is_edited(&self, position: u64) -> bool {
        self.amended.get(&position).is_some_and(|amended| amended.edit.is_some())
    }

    /// Emoji with how many reacted so, and whether `me` did; the most frequent first.
    pub(crate) fn reactions(&self, position: u64, me: &str) -> Vec<(&str, usize, bool)> {
        let Some(amended) = self.amended.get(&position) else { return Vec::new() };
        let mut counted: Vec<(&str, usize, bool)> = Vec::new();
        for ((emoji, user), _) in amended.reactions.iter().filter(|(_, (_, on))| *on) {
            match counted.last_mut() {
                Some(last) if last.0 == emoji => {
                    last.1 += 1;
                    last.2 |= user == me;
                }
                _ => counted.push((emoji, 1, user == me)),
            }
        }
        counted.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
        counted
    }

    /// The message that a thread began with: from reply to reply as far as is known here.
    pub(crate) fn root(&self, position: u64) -> u64 {
        let mut root = position;
        // Targets lie before what replies to them; a peer that says otherwise ends the walk.
        while let Some(said) = self.said(root).filter(|said| said.target != 0 && said.target < root) {
            root = said.target;
        }
        root
    }

    /// Replies to a message, by how far they are known here.
    pub(crate) fn replies(&self, root: u64) -> usize {
        let after = self.entries.range(Key { position: root, order: 1 }..);
        after.filter(|(_, entry)| matches!(entry, Entry::Said(said) if said.target == root)).count()
    }

    /// The newest message that `accept`s.
    pub(crate) fn newest(&self, mut accept: impl FnMut(&Said) -> bool) -> Option<u64> {
        let mut said = self.entries.iter().rev().filter_map(|(key, entry)| match entry {
            Entry::Said(said) => Some((key.position, said)),
            _ => None,
        });
        said.find(|(position, said)| accept(said) && self.body(*position, said).is_some()).map(|(position, _)| position)
    }

    /// The answer that is being written, the newest if there are several.
    pub(crate) fn running(&self) -> Option<&Writing> {
        let writing = |key: &Key| match self.entries.get(key) {
            Some(Entry::Answer(writing)) if writing.ended.is_none() => Some(writing),
            _ => None,
        };
        self.answers.values().filter_map(writing).max_by_key(|writing| writing.at_us)
    }

    /// How many bytes and entries are kept.
    #[cfg(test)]
    fn kept(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

fn size(entry: &Entry) -> usize {
    match entry {
        Entry::Said(said) => said.body.len(),
        Entry::Answer(writing) => writing.pieces.values().map(String::len).sum(),
        Entry::Note { text, .. } => text.len(),
        Entry::Traffic { .. } | Entry::Gap { .. } => 0,
    }
}

fn membership(by: &str, whose: &str, role: Option<Role>) -> String {
    let own = by == whose;
    match role {
        None if own => format!("{whose} left the channel"),
        None => format!("{by} removed {whose}"),
        Some(Role::Banned) => format!("{by} banned {whose}"),
        Some(Role::Invited) => format!("{by} invited {whose}"),
        Some(Role::Member) if own => format!("{whose} joined the channel"),
        Some(role) if own => format!("{whose} is {} now", role.as_str()),
        Some(role) => format!("{by} made {whose} {}", role.as_str()),
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
