//! Awareness: what editors of a document tell each other of themselves (name, colour, cursor) in the encoding of
//! y-protocols, so that editors of any kind see each other.

use bytes::{BufMut, Bytes, BytesMut};

use super::number::{put_number, take_number};
use crate::limits::{AWARENESS_CLIENTS_MAX, AWARENESS_PICTURE_BYTES_MAX};
use crate::reject::{Reject, RejectCode};

/// What one editor says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwarenessEntry {
    /// The editor's Yjs client id.
    pub client: u64,
    /// Counts what it says; the higher is the newer.
    pub clock: u64,
    /// JSON; `None`: it is gone. Checked for being UTF-8, not for being JSON.
    pub state: Option<Bytes>,
}

/// What some editors say of themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwarenessUpdate {
    /// Each of them.
    pub entries: Vec<AwarenessEntry>,
}

impl AwarenessUpdate {
    /// Reads the bytes of a peer.
    ///
    /// # Errors
    /// `update_invalid`, if they are not the encoding of y-protocols, or more than the limits allow.
    pub fn decode(bytes: &Bytes) -> Result<Self, Reject> {
        let invalid = |what: &str| Reject::new(RejectCode::UpdateInvalid, format!("not an awareness update: {what}"));
        if bytes.len() > AWARENESS_PICTURE_BYTES_MAX {
            return Err(invalid("it is longer than the limit"));
        }
        let mut rest = &bytes[..];
        let count = take_number(&mut rest).ok_or_else(|| invalid("it ends early"))?;
        if count > AWARENESS_CLIENTS_MAX as u64 {
            return Err(invalid("it is of more editors than the limit"));
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            let client = take_number(&mut rest).ok_or_else(|| invalid("it ends early"))?;
            let clock = take_number(&mut rest).ok_or_else(|| invalid("it ends early"))?;
            let length = take_number(&mut rest).ok_or_else(|| invalid("it ends early"))?;
            let length = usize::try_from(length).map_err(|_| invalid("a state is longer than the update"))?;
            let (state, after) =
                rest.split_at_checked(length).ok_or_else(|| invalid("a state is longer than the update"))?;
            std::str::from_utf8(state).map_err(|_| invalid("a state is not UTF-8"))?;
            let state = (state != b"null").then(|| bytes.slice_ref(state));
            entries.push(AwarenessEntry { client, clock, state });
            rest = after;
        }
        if !rest.is_empty() {
            return Err(invalid("something follows its end"));
        }
        Ok(Self { entries })
    }

    /// The bytes for the wire.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        put_number(&mut bytes, self.entries.len() as u64);
        for entry in &self.entries {
            let state = entry.state.as_deref().unwrap_or(b"null");
            put_number(&mut bytes, entry.client);
            put_number(&mut bytes, entry.clock);
            put_number(&mut bytes, state.len() as u64);
            bytes.put_slice(state);
        }
        bytes.freeze()
    }
}
