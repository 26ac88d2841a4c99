//! What the editors of a document say of themselves: gathered by its owner, told to all that read it. Nothing of it is kept
//! beyond the life of the process.
//!
//! An editor is a Yjs client id. Whoever spoke of it first speaks of it alone, so that clients which pass on what they hear
//! cannot take others out; only the same user over another connection, with something newer, takes over. Nor can they bring
//! back who left: that is remembered as long as somebody may pass on what was heard before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate};
use thalweg_protocol::ids::{ChannelKey, CoreId, GenerationId, Name};
use thalweg_protocol::limits::{
    AWARENESS_CLIENTS_MAX, AWARENESS_CLIENTS_PER_LINK, AWARENESS_ENTRY_BYTES, AWARENESS_LEFT_MAX,
    AWARENESS_PICTURE_BYTES_MAX, AWARENESS_TICK_MS, AWARENESS_TIMEOUT_MS,
};

use crate::contract::{Link, SessionMessage};
use crate::fan::FanId;
use crate::shard::{Deadline, Shard};

/// Who speaks of an editor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Link(CoreId, Link),
    /// A model, of itself: as long as it writes.
    Model(GenerationId),
}

/// An editor of a document.
struct Editor {
    clock: u64,
    /// JSON.
    state: Bytes,
    speaker: Speaker,
    user: Name,
    heard_us: u64,
    /// Whether readers were told of it, so that they are to be told when it is gone.
    is_told: bool,
}

/// An editor that left.
struct Gone {
    clock: u64,
    user: Name,
    /// Until when that is remembered.
    until_us: u64,
}

/// Those who left lately.
#[derive(Default)]
struct Left {
    editors: BTreeMap<u64, Gone>,
    /// Until when each is remembered, in that order, which is the one in which they left.
    order: VecDeque<(u64, u64)>,
}

impl Left {
    fn note(&mut self, client: u64, editor: &Editor, now_us: u64) {
        let until_us = now_us + AWARENESS_TIMEOUT_MS * 1_000;
        let before = self.editors.get(&client).map_or(0, |gone| gone.clock);
        let gone = Gone { clock: editor.clock.max(before), user: editor.user.clone(), until_us };
        self.editors.insert(client, gone);
        self.order.push_back((until_us, client));
        while self.order.len() > AWARENESS_LEFT_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((until_us, client)) = self.order.pop_front() else { return };
        // It may have come back and left again since.
        if self.editors.get(&client).is_some_and(|gone| gone.until_us == until_us) {
            self.editors.remove(&client);
        }
    }

    fn forget(&mut self, now_us: u64) {
        while self.order.front().is_some_and(|(until_us, _)| *until_us <= now_us) {
            self.forget_oldest();
        }
    }

    /// Whether somebody passes on what an editor said before it left.
    fn is_echo(&self, client: u64, clock: u64, user: &Name) -> bool {
        self.editors.get(&client).is_some_and(|gone| clock <= gone.clock && gone.user != *user)
    }
}

/// Whom the news of a tick are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum From {
    #[default]
    Nobody,
    One(Speaker),
    Several,
}

/// The editors of one document.
#[derive(Default)]
struct Editors {
    present: BTreeMap<u64, Editor>,
    /// Bytes they take in an encoded update.
    bytes: usize,
    left: Left,
    /// Those readers are to be told of; with their last clock, if they are gone.
    news: BTreeMap<u64, Option<u64>>,
    from: From,
    /// When readers are told.
    tell_at: Option<u64>,
    /// When it is looked who is silent.
    look_at: Option<u64>,
}

/// What the editors of the documents of this core say of themselves.
#[derive(Default)]
pub(crate) struct Awareness {
    documents: BTreeMap<ChannelKey, Editors>,
    due: BTreeSet<(u64, ChannelKey)>,
    /// When the deadline is set.
    at: Option<u64>,
}

impl Editors {
    fn due(&self) -> Option<u64> {
        [self.tell_at, self.look_at].into_iter().flatten().min()
    }

    fn entry(client: u64, editor: &Editor) -> AwarenessEntry {
        AwarenessEntry { client, clock: editor.clock, state: Some(editor.state.clone()) }
    }

    /// Takes in what somebody says of some editors; gives how much of that is not acceptable.
    fn say(&mut self, entries: Vec<AwarenessEntry>, speaker: Speaker, user: &Name, now_us: u64) -> u64 {
        // How many it speaks of: counted once, and only if there is one more.
        let mut own = None;
        let mut refused = 0;
        for entry in entries {
            refused += u64::from(!self.say_one(entry, speaker, user, &mut own, now_us));
        }
        refused
    }

    fn say_one(
        &mut self,
        entry: AwarenessEntry,
        speaker: Speaker,
        user: &Name,
        own: &mut Option<usize>,
        now_us: u64,
    ) -> bool {
        let AwarenessEntry { client, clock, state } = entry;
        let known = self.present.get(&client);
        let is_speaker = known.is_some_and(|known| known.speaker == speaker);
        let Some(state) = state else {
            if known.is_some_and(|known| is_speaker && clock >= known.clock) {
                self.remove(client, now_us);
                *own = own.map(|own| own - 1);
            }
            return true;
        };
        match known {
            Some(known) if clock <= known.clock => return true,
            Some(known) if !is_speaker && known.user != *user => return false,
            None if self.left.is_echo(client, clock, user) => return true,
            _ => {}
        }
        let freed = known.map_or(0, |known| known.state.len() + AWARENESS_ENTRY_BYTES);
        let bytes = self.bytes - freed + state.len() + AWARENESS_ENTRY_BYTES;
        if bytes > AWARENESS_PICTURE_BYTES_MAX || (known.is_none() && self.present.len() >= AWARENESS_CLIENTS_MAX) {
            return false;
        }
        if !is_speaker {
            let present = self.present.values();
            let own = own.get_or_insert_with(|| present.filter(|editor| editor.speaker == speaker).count());
            if *own >= AWARENESS_CLIENTS_PER_LINK {
                return false;
            }
            *own += 1;
        }
        let is_told = known.is_some_and(|known| known.is_told) || matches!(self.news.get(&client), Some(Some(_)));
        let (user, heard_us) = (user.clone(), now_us);
        self.bytes = bytes;
        self.present.insert(client, Editor { clock, state, speaker, user, heard_us, is_told });
        self.note(client, None, speaker, now_us);
        true
    }

    fn remove(&mut self, client: u64, now_us: u64) {
        let Some(editor) = self.present.remove(&client) else { return };
        self.bytes -= editor.state.len() + AWARENESS_ENTRY_BYTES;
        if editor.is_told {
            self.left.note(client, &editor, now_us);
            self.note(client, Some(editor.clock), editor.speaker, now_us);
        } else {
            self.news.remove(&client);
        }
    }

    fn note(&mut self, client: u64, gone: Option<u64>, speaker: Speaker, now_us: u64) {
        self.news.insert(client, gone);
        self.from = match self.from {
            From::Nobody => From::One(speaker),
            From::One(other) if other == speaker => From::One(speaker),
            _ => From::Several,
        };
        self.tell_at.get_or_insert(now_us + AWARENESS_TICK_MS * 1_000);
        self.look_at.get_or_insert(now_us + AWARENESS_TIMEOUT_MS * 1_000);
    }

    /// Takes out those who were silent too long.
    fn look(&mut self, now_us: u64) {
        if self.look_at.is_none_or(|at| at > now_us) {
            return;
        }
        let timeout_us = AWARENESS_TIMEOUT_MS * 1_000;
        let links = |editor: &&Editor| matches!(editor.speaker, Speaker::Link(..));
        let silent = self.present.iter().filter(|(_, editor)| links(editor) && editor.heard_us + timeout_us <= now_us);
        let silent: Vec<_> = silent.map(|(&client, _)| client).collect();
        for client in silent {
            self.remove(client, now_us);
        }
        self.left.forget(now_us);
        let silent = self.present.values().filter(links).map(|editor| editor.heard_us + timeout_us);
        self.look_at = silent.chain(self.left.order.front().map(|(until_us, _)| *until_us)).min();
    }

    /// What readers are to be told now, in updates, and whom it is from.
    fn news(&mut self, now_us: u64) -> Option<(Vec<Bytes>, From)> {
        if self.tell_at.is_none_or(|at| at > now_us) {
            return None;
        }
        self.tell_at = None;
        let from = std::mem::take(&mut self.from);
        let (gone, here): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.news).into_iter().partition(|(_, gone)| gone.is_some());
        let gone = gone.into_iter().map(|(client, clock)| {
            let clock = clock.unwrap_or_default();
            AwarenessEntry { client, clock, state: None }
        });
        // Those who left come first, so that there is room for those who came.
        let mut entries: Vec<_> = gone.collect();
        for (client, _) in here {
            if let Some(editor) = self.present.get_mut(&client) {
                editor.is_told = true;
                entries.push(Self::entry(client, editor));
            }
        }
        (!entries.is_empty()).then(|| (in_updates(entries), from))
    }
}

/// As few updates as the limits allow.
fn in_updates(entries: Vec<AwarenessEntry>) -> Vec<Bytes> {
    let (mut updates, mut next, mut bytes) = (Vec::new(), AwarenessUpdate::default(), 0);
    for entry in entries {
        let more = AWARENESS_ENTRY_BYTES + entry.state.as_ref().map_or(0, Bytes::len);
        if next.entries.len() == AWARENESS_CLIENTS_MAX || bytes + more > AWARENESS_PICTURE_BYTES_MAX {
            updates.push(std::mem::take(&mut next).encode());
            bytes = 0;
        }
        bytes += more;
        next.entries.push(entry);
    }
    updates.push(next.encode());
    updates
}

impl Shard {
    /// A reader of a document of this core says something of itself.
    pub(crate) fn aware(
        &mut self,
        place: (CoreId, FanId),
        link: Link,
        document: &ChannelKey,
        principal: &Arc<Principal>,
        update: &Bytes,
    ) {
        // One that is gone has no readers to be told.
        if !self.is_attached(document, place) {
            return;
        }
        let Ok(update) = AwarenessUpdate::decode(update) else {
            self.counters.awareness_dropped += 1;
            return;
        };
        let (now_us, speaker) = (self.now.mono_us, Speaker::Link(place.0, link));
        let mut dropped = 0;
        self.change_awareness(document, |editors| {
            dropped = editors.say(update.entries, speaker, &principal.user, now_us);
        });
        self.counters.awareness_dropped += dropped;
    }

    /// A reader of a document of this core is gone, and with it those it spoke of.
    pub(crate) fn unaware(&mut self, place: (CoreId, FanId), link: Link, document: &ChannelKey) {
        self.leaves(document, Speaker::Link(place.0, link));
    }

    /// A model that writes in a document says where.
    pub(super) fn model_aware(
        &mut self,
        document: &ChannelKey,
        id: GenerationId,
        client: u64,
        user: &Name,
        state: Bytes,
    ) {
        let now_us = self.now.mono_us;
        self.change_awareness(document, |editors| {
            let clock = editors.present.get(&client).map_or(1, |editor| editor.clock + 1);
            let entry = AwarenessEntry { client, clock, state: Some(state) };
            editors.say(vec![entry], Speaker::Model(id), user, now_us);
        });
    }

    /// A model does not write in a document any more.
    pub(super) fn model_unaware(&mut self, document: &ChannelKey, id: GenerationId) {
        self.leaves(document, Speaker::Model(id));
    }

    fn leaves(&mut self, document: &ChannelKey, speaker: Speaker) {
        if !self.awareness.documents.contains_key(document) {
            return;
        }
        let now_us = self.now.mono_us;
        self.change_awareness(document, |editors| {
            let own = editors.present.iter().filter(|(_, editor)| editor.speaker == speaker);
            let own: Vec<_> = own.map(|(&client, _)| client).collect();
            for client in own {
                editors.remove(client, now_us);
            }
        });
    }

    /// What the editors of a document say of themselves whom readers were told of: an encoded [`AwarenessUpdate`]; `None` if
    /// there are none. The others are told to all at once.
    pub(crate) fn awareness_of(&self, document: &ChannelKey) -> Option<Bytes> {
        let present = &self.awareness.documents.get(document)?.present;
        let told = present.iter().filter(|(_, editor)| editor.is_told);
        let entries: Vec<_> = told.map(|(&client, editor)| Editors::entry(client, editor)).collect();
        (!entries.is_empty()).then(|| AwarenessUpdate { entries }.encode())
    }

    /// A document is gone.
    pub(crate) fn forget_awareness(&mut self, document: &ChannelKey) {
        if let Some(at) = self.awareness.documents.remove(document).and_then(|editors| editors.due()) {
            self.awareness.due.remove(&(at, document.clone()));
        }
    }

    fn change_awareness(&mut self, document: &ChannelKey, change: impl FnOnce(&mut Editors)) {
        let Awareness { documents, due, .. } = &mut self.awareness;
        let editors = documents.entry(document.clone()).or_default();
        let before = editors.due();
        change(editors);
        let after = editors.due();
        if editors.present.is_empty() && after.is_none() {
            documents.remove(document);
        }
        if before != after {
            before.map(|at| due.remove(&(at, document.clone())));
            due.extend(after.map(|at| (at, document.clone())));
            self.schedule_awareness();
        }
    }

    fn schedule_awareness(&mut self) {
        let next = self.awareness.due.first().map(|(at, _)| *at);
        if next == self.awareness.at {
            return;
        }
        if let Some(at) = self.awareness.at.take() {
            self.deadlines.remove(&(at, Deadline::Awareness));
        }
        self.awareness.at = next;
        self.deadlines.extend(next.map(|at| (at, Deadline::Awareness)));
    }

    /// Readers of some documents are to be told who edits, or somebody may be silent.
    pub(crate) fn awareness_due(&mut self) {
        let now_us = self.now.mono_us;
        self.awareness.at = None;
        while let Some((_, document)) = self.awareness.due.first().filter(|(at, _)| *at <= now_us).cloned() {
            let mut news = None;
            self.change_awareness(&document, |editors| {
                editors.look(now_us);
                news = editors.news(now_us);
            });
            if let Some((updates, from)) = news {
                self.tell_awareness(&document, &updates, from);
            }
        }
        self.schedule_awareness();
    }

    fn tell_awareness(&mut self, document: &ChannelKey, updates: &[Bytes], from: From) {
        let Some((_, places)) = self.channel_with_readers(document) else { return };
        for (core, fan) in places {
            let but = match from {
                From::One(Speaker::Link(of, link)) if of == core => Some(link),
                _ => None,
            };
            for payload in updates {
                self.tell_session(core, SessionMessage::Aware { fan, payload: payload.clone(), but });
            }
        }
    }

    /// How many editors there are in the documents of this core.
    pub(crate) fn editors(&self) -> usize {
        self.awareness.documents.values().map(|editors| editors.present.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_who_left_are_remembered_for_so_long() {
        let user = |user: &str| Name::new(user).expect("a valid name");
        let editor = |clock| Editor {
            clock,
            state: Bytes::new(),
            speaker: Speaker::Model(GenerationId(1)),
            user: user("ada"),
            heard_us: 0,
            is_told: true,
        };
        let mut left = Left::default();
        left.note(1, &editor(5), 10);
        left.note(1, &editor(3), 20);
        let check = |left: &Left, clock, by: &str, expected| {
            assert_eq!(left.is_echo(1, clock, &user(by)), expected, "{clock} of {by}");
        };
        check(&left, 5, "bob", true);
        check(&left, 6, "bob", false);
        check(&left, 5, "ada", false);
        left.forget(AWARENESS_TIMEOUT_MS * 1_000 + 10);
        check(&left, 5, "bob", true);
        left.forget(AWARENESS_TIMEOUT_MS * 1_000 + 20);
        check(&left, 5, "bob", false);
        for client in 1..=2 * AWARENESS_LEFT_MAX as u64 {
            left.note(client, &editor(1), 30);
        }
        assert_eq!((left.editors.len(), left.order.len()), (AWARENESS_LEFT_MAX, AWARENESS_LEFT_MAX));
        check(&left, 1, "bob", false);
    }
}
