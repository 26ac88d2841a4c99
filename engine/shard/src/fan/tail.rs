//! What a core keeps of a channel with readers: the newest messages, and who reads them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelKey, Position};
use thalweg_protocol::limits::{TAIL_BYTES, TAIL_MESSAGES};

use super::SubscriptionIndex;
use super::crowd::Crowd;
use super::document::DocumentFan;

/// The readers of one channel on this core.
pub(super) struct Fan {
    pub(super) key: ChannelKey,
    /// The newest messages, oldest first, without gaps.
    pub(super) tail: VecDeque<Entry>,
    pub(super) tail_bytes: usize,
    /// Where the newest message this core was told about stands; `None` until the owner has answered.
    pub(super) head: Option<Position>,
    pub(super) readers: Vec<SubscriptionIndex>,
    /// Those of them who take part in presence.
    pub(super) crowd: Crowd,
    /// What a document's readers need beside, once one of them was accepted.
    pub(super) document: Option<Box<DocumentFan>>,
}

/// A message of a tail.
pub(super) struct Entry {
    pub(super) message: Arc<Message>,
    /// When it came.
    pub(super) since_us: u64,
    /// What it does to a document's text, encoded, if its owner said so.
    pub(super) operations: Option<Bytes>,
    /// The frame that tells readers of operations, once there was one.
    pub(super) frame: Option<Bytes>,
}

impl Fan {
    pub(super) fn new(key: ChannelKey) -> Self {
        Self {
            key,
            tail: VecDeque::new(),
            tail_bytes: 0,
            head: None,
            readers: Vec::new(),
            crowd: Crowd::default(),
            document: None,
        }
    }

    pub(super) fn push(&mut self, message: Arc<Message>, operations: Option<Bytes>, since_us: u64) {
        self.head = Some(message.position);
        self.tail_bytes += message.payload.len();
        self.tail.push_back(Entry { message, since_us, operations, frame: None });
        while self.tail.len() > TAIL_MESSAGES || self.tail_bytes > TAIL_BYTES {
            self.drop_oldest();
        }
    }

    pub(super) fn drop_oldest(&mut self) {
        if let Some(oldest) = self.tail.pop_front() {
            self.tail_bytes -= oldest.message.payload.len();
        }
    }

    /// Where the message at `position` is in the tail, if it is there.
    pub(super) fn place_of(&self, position: Position) -> Option<usize> {
        let first = self.tail.front()?.message.position;
        let place = usize::try_from(position.0.checked_sub(first.0)?).ok()?;
        (place < self.tail.len()).then_some(place)
    }

    /// The message at `position`, if the tail still holds it.
    pub(super) fn get(&self, position: Position) -> Option<&Entry> {
        self.tail.get(self.place_of(position)?)
    }
}
