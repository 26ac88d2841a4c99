//! What the editors of a document say of themselves: gathered by its owner, told to all that read it. Nothing of it is kept
//! beyond the life of the process.
//!
//! An editor is a Yjs client id. Whoever spoke of it first speaks of it alone, so that clients which pass on what they hear
//! cannot take others out, or bring them back; only the same user over another connection, with something newer, takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate};
use thalweg_protocol::ids::{ChannelKey, CoreId, GenerationId, Name};
use thalweg_protocol::limits::{
    AWARENESS_CLIENTS_MAX, AWARENESS_CLIENTS_PER_LINK, AWARENESS_PICTURE_BYTES_MAX, AWARENESS_TICK_MS,
    AWARENESS_TIMEOUT_MS,
};

use crate::contract::{Link, SessionMessage};
use crate::fan::FanId;
use crate::shard::{Deadline, Shard};

/// What an entry takes in an encoded update beside its state, at most, in bytes: three numbers.
const ENTRY_BYTES: usize = 24;

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

    /// Takes in what somebody says of an editor; whether it is acceptable.
    fn say(&mut self, entry: AwarenessEntry, speaker: Speaker, user: &Name, now_us: u64) -> bool {
        let AwarenessEntry { client, clock, state } = entry;
        let known = self.present.get(&client);
        let is_speaker = known.is_some_and(|known| known.speaker == speaker);
        let Some(state) = state else {
            if known.is_some_and(|known| is_speaker && clock >= known.clock) {
                self.remove(client, now_us);
            }
            return true;
        };
        let freed = known.map_or(0, |known| known.state.len() + ENTRY_BYTES);
        if self.bytes - freed + state.len() + ENTRY_BYTES > AWARENESS_PICTURE_BYTES_MAX {
            return false;
        }
        match known {
            Some(known) if clock <= known.clock => return true,
            Some(known) if !is_speaker && known.user != *user => return false,
            Some(_) if is_speaker => {}
            _ => {
                let own = self.present.values().filter(|editor| editor.speaker == speaker).count();
                let full = self.present.len() >= AWARENESS_CLIENTS_MAX && known.is_none();
                if own >= AWARENESS_CLIENTS_PER_LINK || full {
                    return false;
                }
            }
        }
        self.bytes = self.bytes - freed + state.len() + ENTRY_BYTES;
        let (user, heard_us) = (user.clone(), now_us);
        self.present.insert(client, Editor { clock, state, speaker, user, heard_us });
        self.note(client, None, speaker, now_us);
        true
    }

    fn remove(&mut self, client: u64, now_us: u64) {
        if let Some(editor) = self.present.remove(&client) {
            self.bytes -= editor.state.len() + ENTRY_BYTES;
            self.note(client, Some(editor.clock), editor.speaker, now_us);
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
        self.look_at = self.present.values().filter(links).map(|editor| editor.heard_us + timeout_us).min();
    }

    /// What readers are to be told now, and whom it is from.
    fn news(&mut self, now_us: u64) -> Option<(Bytes, From)> {
        if self.tell_at.is_none_or(|at| at > now_us) {
            return None;
        }
        self.tell_at = None;
        let entry = |(client, gone)| match (gone, self.present.get(&client)) {
            (None, Some(editor)) => Self::entry(client, editor),
            (clock, _) => AwarenessEntry { client, clock: clock.unwrap_or_default(), state: None },
        };
        let entries = std::mem::take(&mut self.news).into_iter().map(entry).collect();
        Some((AwarenessUpdate { entries }.encode(), std::mem::take(&mut self.from)))
    }
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
            for entry in update.entries {
                dropped += u64::from(!editors.say(entry, speaker, &principal.user, now_us));
            }
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
            editors.say(AwarenessEntry { client, clock, state: Some(state) }, Speaker::Model(id), user, now_us);
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

    /// What all editors of a document say of themselves: an encoded [`AwarenessUpdate`]; `None` if nobody does.
    pub(crate) fn awareness_of(&self, document: &ChannelKey) -> Option<Bytes> {
        let editors = self.awareness.documents.get(document).filter(|editors| !editors.present.is_empty())?;
        let entries = editors.present.iter().map(|(&client, editor)| Editors::entry(client, editor)).collect();
        Some(AwarenessUpdate { entries }.encode())
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
            if let Some((update, from)) = news {
                self.tell_awareness(&document, &update, from);
            }
        }
        self.schedule_awareness();
    }

    fn tell_awareness(&mut self, document: &ChannelKey, update: &Bytes, from: From) {
        let Some((_, places)) = self.channel_with_readers(document) else { return };
        for (core, fan) in places {
            let but = match from {
                From::One(Speaker::Link(of, link)) if of == core => Some(link),
                _ => None,
            };
            self.tell_session(core, SessionMessage::Aware { fan, payload: update.clone(), but });
        }
    }

    /// How many editors there are in the documents of this core.
    pub(crate) fn editors(&self) -> usize {
        self.awareness.documents.values().map(|editors| editors.present.len()).sum()
    }
}
