//! Who else is in a document, and what we say of ourselves. No I/O; the clock is given.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate};
use thalweg_protocol::limits::{AWARENESS_CLIENTS_MAX, AWARENESS_TICK_MS, AWARENESS_TIMEOUT_MS};
use yrs::StickyIndex;

use super::replica::{Replica, anchor_json, anchor_of_json};

/// What we say of ourselves is said again after this long, so that nobody takes us for gone.
const RENEW: Duration = Duration::from_secs(10);
/// Shortest time between two things that we say of ourselves.
const DISTANCE: Duration = Duration::from_millis(AWARENESS_TICK_MS);
/// Who says nothing for so long is gone. A little longer than the node waits, which is who should notice.
const TIMEOUT: Duration = Duration::from_millis(AWARENESS_TIMEOUT_MS + 5_000);

const _: () = assert!(AWARENESS_TIMEOUT_MS >= 2 * 10_000, "one renewal may be lost");

/// Another editor of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Other {
    /// Its Yjs client id.
    pub client: u64,
    /// What it calls itself; empty if it does not say.
    pub name: String,
    /// The colour it wants, as browsers write it; empty if it does not say.
    pub colour: String,
    /// Where its selection begins and where its cursor is, in UTF-16 code units; `None` if it has none in the text.
    pub cursor: Option<(u32, u32)>,
    /// All that it says of itself.
    pub state: Value,
}

#[derive(Debug)]
struct Peer {
    clock: u64,
    /// `None` of one that said that it is gone, so that what it said before is not taken for news.
    state: Option<Value>,
    cursor: Option<(StickyIndex, StickyIndex)>,
    heard: Instant,
}

/// Those who are in a document beside us.
#[derive(Debug, Default)]
pub(super) struct Others(BTreeMap<u64, Peer>);

impl Others {
    /// Takes in what the node tells. Gives whether anybody but `me` is otherwise than before.
    pub(super) fn take(&mut self, update: AwarenessUpdate, me: u64, now: Instant) -> bool {
        let mut changed = false;
        for AwarenessEntry { client, clock, state } in update.entries {
            let old = self.0.get(&client);
            let newer = old.is_none_or(|old| clock > old.clock || (clock == old.clock && state.is_none()));
            if client == me || !newer || (old.is_none() && self.0.len() >= AWARENESS_CLIENTS_MAX) {
                continue;
            }
            let state: Option<Value> = state.and_then(|json| serde_json::from_slice(&json).ok());
            changed |= old.and_then(|old| old.state.as_ref()) != state.as_ref();
            let anchor = |end: &str| anchor_of_json(state.as_ref()?.get("cursor")?.get(end)?);
            let cursor = anchor("anchor").zip(anchor("head"));
            self.0.insert(client, Peer { clock, state, cursor, heard: now });
        }
        changed
    }

    /// Takes out who was not heard of for long. Whether there was anybody.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, peer| now.duration_since(peer.heard) < TIMEOUT);
        self.0.len() < before
    }

    /// Nobody is known to be there any more. Whether anybody was.
    pub(super) fn clear(&mut self) -> bool {
        let any = self.0.values().any(|peer| peer.state.is_some());
        self.0.clear();
        any
    }

    pub(super) fn list(&self, replica: &Replica) -> Vec<Other> {
        let others = self.0.iter().filter_map(|(&client, peer)| {
            let state = peer.state.clone()?;
            let said = |what: &str| {
                let text = state.get("user").and_then(|user| user.get(what)).and_then(Value::as_str);
                text.unwrap_or_default().to_owned()
            };
            let (name, colour) = (said("name"), said("color"));
            let place = |anchor: &StickyIndex| replica.offset(anchor);
            let cursor = peer.cursor.as_ref().and_then(|(from, to)| place(from).zip(place(to)));
            Some(Other { client, name, colour, cursor, state })
        });
        others.collect()
    }
}

/// The colour of a name, the same everywhere: `#rrggbb`, dark enough for white and bright enough for black.
pub(super) fn colour(name: &str) -> String {
    const COLOURS: [&str; 12] = [
        "#30bced", "#6eeb83", "#ffbc42", "#ecd444", "#ee6352", "#9ac2c9", "#8acb88", "#1be7ff", "#d783ff", "#ff9f80",
        "#7fb3ff", "#c0ca33",
    ];
    // FNV-1a.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    COLOURS[(hash >> 8) as usize % COLOURS.len()].to_owned()
}

/// What we say of ourselves.
#[derive(Debug)]
pub(super) struct Own {
    clock: u64,
    state: Option<Value>,
    /// When it was last said, and whether something was added since.
    said: Option<Instant>,
    fresh: bool,
}

impl Own {
    pub(super) fn new() -> Self {
        Self { clock: 0, state: None, said: None, fresh: false }
    }

    pub(super) fn state(&self) -> Option<&Value> {
        self.state.as_ref()
    }

    /// Says something else from now on; `None`: that we are not there.
    pub(super) fn set(&mut self, state: Option<Value>) {
        if self.state != state {
            self.state = state;
            self.fresh = true;
        }
    }

    /// Says where the cursor is, and leaves the rest as it was.
    pub(super) fn set_cursor(&mut self, cursor: Option<(StickyIndex, StickyIndex)>) {
        let mut state = self.state.clone().unwrap_or_else(|| json!({}));
        let Some(fields) = state.as_object_mut() else { return };
        let cursor = cursor.map(|(from, to)| json!({ "anchor": anchor_json(&from), "head": anchor_json(&to) }));
        fields.insert("cursor".to_owned(), cursor.unwrap_or(Value::Null));
        self.set(Some(state));
    }

    /// Says all again at the next occasion: to those who have not heard it.
    pub(super) fn refresh(&mut self) {
        self.fresh |= self.state.is_some();
        self.said = None;
    }

    /// When there is something to say, `now` at the earliest; `None` if there is not.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.fresh, self.said) {
            (true, None) => Some(now),
            (true, Some(said)) => Some(said + DISTANCE),
            (false, Some(said)) if self.state.is_some() => Some(said + RENEW),
            (false, _) => None,
        }
    }

    /// What is to be said now, as the editor `client`.
    pub(super) fn say(&mut self, client: u64, now: Instant) -> Bytes {
        self.clock += 1;
        (self.said, self.fresh) = (Some(now), false);
        self.entry(client)
    }

    fn entry(&self, client: u64) -> Bytes {
        let state = self.state.as_ref().map(|state| Bytes::from(state.to_string()));
        AwarenessUpdate { entries: vec![AwarenessEntry { client, clock: self.clock, state }] }.encode()
    }

    /// That we are gone.
    pub(super) fn farewell(&mut self, client: u64) -> Option<Bytes> {
        self.state.take()?;
        self.clock += 1;
        Some(self.entry(client))
    }
}
