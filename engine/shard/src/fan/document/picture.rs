//! What the readers of a document say of themselves, as a core knows it. Whoever is told late is told the newest only.

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate, DocumentNews};
use thalweg_protocol::limits::AWARENESS_CLIENTS_MAX;
use thalweg_protocol::op::ServerOp;

use crate::contract::Link;

/// Frames kept for readers who lack the same.
const FRAMES_KEPT: usize = 8;
/// Those who left are remembered, so that everybody is told; at most so many.
const LEFT_KEPT: usize = 128;

/// Everybody who said something, and what is news since when.
#[derive(Default)]
pub(super) struct Picture {
    editors: BTreeMap<u64, Editor>,
    version: u64,
    /// Whom the newest version is from, if it is from one link: that one knows it.
    from: Option<Link>,
    /// What those lack who know all up to a version.
    frames: Vec<(u64, Bytes)>,
}

struct Editor {
    clock: u64,
    /// `None`: it left.
    state: Option<Bytes>,
    /// Since which version this is so.
    version: u64,
}

impl Picture {
    pub(super) fn is_empty(&self) -> bool {
        self.editors.is_empty()
    }

    /// Takes in what the owner of the document says.
    pub(super) fn take(&mut self, update: &Bytes, from: Option<Link>) {
        let Ok(update) = AwarenessUpdate::decode(update) else { return };
        self.version += 1;
        self.from = from;
        self.frames.clear();
        let version = self.version;
        for AwarenessEntry { client, clock, state } in update.entries {
            self.editors.insert(client, Editor { clock, state, version });
        }
        let left = self.editors.values().filter(|editor| editor.state.is_none()).count();
        let most = LEFT_KEPT.min(AWARENESS_CLIENTS_MAX.saturating_sub(self.editors.len() - left));
        if left > most {
            let mut versions: Vec<_> = self.editors.values().filter(|e| e.state.is_none()).map(|e| e.version).collect();
            versions.sort_unstable();
            let oldest = versions[left - most - 1];
            self.editors.retain(|_, editor| editor.state.is_some() || editor.version > oldest);
        }
    }

    /// The frame that a reader lacks who knows all up to `known`, if it lacks any; from then on it knows all.
    pub(super) fn next(&mut self, known: &mut u64, link: Link) -> Option<Bytes> {
        let since = std::mem::replace(known, self.version);
        if since == self.version || (since + 1 == self.version && self.from == Some(link)) {
            return None;
        }
        if let Some((_, frame)) = self.frames.iter().find(|(from, _)| *from == since) {
            return Some(frame.clone());
        }
        let news = self.editors.iter().filter(|(_, editor)| editor.version > since);
        // Whoever is new need not hear of those who left.
        let news = news.filter(|(_, editor)| since > 0 || editor.state.is_some());
        let entry = |(&client, editor): (&u64, &Editor)| {
            let (clock, state) = (editor.clock, editor.state.clone());
            AwarenessEntry { client, clock, state }
        };
        let entries: Vec<_> = news.map(entry).collect();
        if entries.is_empty() {
            return None;
        }
        let update = AwarenessUpdate { entries }.encode();
        let frame = ServerOp::Document(DocumentNews::Awareness { update }).encode();
        if self.frames.len() < FRAMES_KEPT {
            self.frames.push((since, frame.clone()));
        }
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(entries: &[(u64, u64, Option<&'static str>)]) -> Bytes {
        let entry = |&(client, clock, state): &(u64, u64, Option<&'static str>)| AwarenessEntry {
            client,
            clock,
            state: state.map(|state| Bytes::from_static(state.as_bytes())),
        };
        AwarenessUpdate { entries: entries.iter().map(entry).collect() }.encode()
    }

    fn told(frame: Option<Bytes>) -> Vec<(u64, bool)> {
        let Some(frame) = frame else { return Vec::new() };
        let Ok(ServerOp::Document(DocumentNews::Awareness { update })) = ServerOp::decode(&frame) else {
            panic!("no awareness");
        };
        let update = AwarenessUpdate::decode(&update).expect("our own");
        update.entries.into_iter().map(|entry| (entry.client, entry.state.is_some())).collect()
    }

    #[test]
    fn everybody_is_told_what_they_lack_and_no_more() {
        let mut picture = Picture::default();
        let (mut quick, mut slow) = (0, 0);
        picture.take(&update(&[(1, 1, Some("{}")), (2, 1, Some("{}"))]), None);
        assert_eq!(told(picture.next(&mut quick, Link(1))), [(1, true), (2, true)]);
        assert_eq!(told(picture.next(&mut slow, Link(2))), [(1, true), (2, true)]);
        assert_eq!(told(picture.next(&mut quick, Link(1))), [(0, true); 0]);
        picture.take(&update(&[(1, 2, Some("{}"))]), Some(Link(1)));
        assert_eq!(told(picture.next(&mut quick, Link(1))), [(0, true); 0], "its own");
        picture.take(&update(&[(2, 2, None)]), None);
        assert_eq!(told(picture.next(&mut quick, Link(1))), [(2, false)]);
        assert_eq!(told(picture.next(&mut slow, Link(2))), [(1, true), (2, false)], "all that it missed, once");
        assert_eq!(told(picture.next(&mut 0, Link(3))), [(1, true)], "the new are not told of the gone");
        for client in 10..10 + 2 * LEFT_KEPT as u64 {
            picture.take(&update(&[(client, 1, None)]), None);
        }
        assert!(picture.editors.len() <= LEFT_KEPT + 1);
    }
}
