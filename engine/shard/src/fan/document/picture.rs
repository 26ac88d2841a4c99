//! What the readers of a document say of themselves, as a core knows it. Whoever is told late is told the newest only, in as
//! many frames as that takes.

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate, DocumentNews};
use thalweg_protocol::limits::{AWARENESS_CLIENTS_MAX, AWARENESS_ENTRY_BYTES, AWARENESS_PICTURE_BYTES_MAX};
use thalweg_protocol::op::ServerOp;

use crate::contract::Link;

/// Frames kept for readers who lack the same.
const FRAMES_KEPT: usize = 8;
/// Those who left are remembered, so that everybody is told; at most so many, which is as many as may leave at once.
const LEFT_KEPT: usize = AWARENESS_CLIENTS_MAX;

/// Everybody who said something, and what is news since when.
#[derive(Default)]
pub(super) struct Picture {
    editors: BTreeMap<u64, Editor>,
    version: u64,
    /// Whom the newest version is from, if it is from one link: that one knows it.
    from: Option<Link>,
    frames: Vec<Frame>,
}

/// What those lack who know all up to a version.
struct Frame {
    since: u64,
    /// They know all up to here then.
    to: u64,
    payload: Bytes,
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
        let gone = |(&client, editor): (&u64, &Editor)| editor.state.is_none().then_some((editor.version, client));
        let left = self.editors.values().filter(|editor| editor.state.is_none()).count();
        if left > LEFT_KEPT {
            let mut oldest: Vec<_> = self.editors.iter().filter_map(gone).collect();
            oldest.sort_unstable();
            for (_, client) in &oldest[..left - LEFT_KEPT] {
                self.editors.remove(client);
            }
        }
    }

    /// A frame that a reader lacks who knows all up to `known`, if it lacks any; from then on it knows what is in there.
    pub(super) fn next(&mut self, known: &mut u64, link: Link) -> Option<Bytes> {
        let since = *known;
        if since == self.version || (since + 1 == self.version && self.from == Some(link)) {
            *known = self.version;
            return None;
        }
        if let Some(frame) = self.frames.iter().find(|frame| frame.since == since) {
            *known = frame.to;
            return Some(frame.payload.clone());
        }
        let to = self.reach(since);
        *known = to;
        let entry = |(&client, editor): (&u64, &Editor)| {
            let (clock, state) = (editor.clock, editor.state.clone());
            AwarenessEntry { client, clock, state }
        };
        let entries: Vec<_> = self.news(since).filter(|(_, editor)| editor.version <= to).map(entry).collect();
        if entries.is_empty() {
            return None;
        }
        let update = AwarenessUpdate { entries }.encode();
        let payload = ServerOp::Document(DocumentNews::Awareness { update }).encode();
        if self.frames.len() < FRAMES_KEPT {
            self.frames.push(Frame { since, to, payload: payload.clone() });
        }
        Some(payload)
    }

    /// Those of whom there is news since a version.
    fn news(&self, since: u64) -> impl Iterator<Item = (&u64, &Editor)> {
        let news = self.editors.iter().filter(move |(_, editor)| editor.version > since);
        // Whoever is new need not hear of those who left.
        news.filter(move |(_, editor)| since > 0 || editor.state.is_some())
    }

    /// Up to which version the news since another fit in one frame. Those of one version do: they came in one.
    fn reach(&self, since: u64) -> u64 {
        let size = |editor: &Editor| AWARENESS_ENTRY_BYTES + editor.state.as_ref().map_or(0, Bytes::len);
        let mut sizes: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for (_, editor) in self.news(since) {
            let (editors, bytes) = sizes.entry(editor.version).or_default();
            *editors += 1;
            *bytes += size(editor);
        }
        let (mut editors, mut bytes, mut reached) = (0, 0, None);
        for (version, (more_editors, more_bytes)) in sizes {
            editors += more_editors;
            bytes += more_bytes;
            let fits = editors <= AWARENESS_CLIENTS_MAX && bytes <= AWARENESS_PICTURE_BYTES_MAX;
            match reached {
                Some(reached) if !fits => return reached,
                _ => reached = Some(version),
            }
        }
        self.version
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

    /// As many leave at once as may be there, and as many others come: everybody is told of all of them, in updates that can
    /// be read.
    #[test]
    fn a_crowd_that_leaves_is_told_to_everybody() {
        let crowd = |from: u64, state| -> Vec<_> {
            (from..from + AWARENESS_CLIENTS_MAX as u64).map(|client| (client, 1, state)).collect()
        };
        let mut picture = Picture::default();
        let (mut quick, mut slow) = (0, 0);
        picture.take(&update(&crowd(0, Some("{}"))), None);
        for known in [&mut quick, &mut slow] {
            assert_eq!(told(picture.next(known, Link(1))).len(), AWARENESS_CLIENTS_MAX);
        }
        picture.take(&update(&crowd(0, None)), None);
        assert_eq!(told(picture.next(&mut quick, Link(1))).len(), AWARENESS_CLIENTS_MAX);
        picture.take(&update(&crowd(5_000, Some("{}"))), None);
        assert_eq!(told(picture.next(&mut quick, Link(1))).len(), AWARENESS_CLIENTS_MAX);
        let (gone, here) = (told(picture.next(&mut slow, Link(2))), told(picture.next(&mut slow, Link(2))));
        assert!(
            gone.len() == AWARENESS_CLIENTS_MAX && gone.iter().all(|(client, is_here)| *client < 5_000 && !is_here)
        );
        assert!(
            here.len() == AWARENESS_CLIENTS_MAX && here.iter().all(|(client, is_here)| *client >= 5_000 && *is_here)
        );
        for known in [&mut quick, &mut slow] {
            assert_eq!(told(picture.next(known, Link(3))), []);
        }
    }
}
