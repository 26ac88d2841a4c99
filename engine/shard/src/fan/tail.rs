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
use crate::contract::TextEdit;

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
    /// What it does to a document's text, if its owner said so.
    pub(super) edit: Option<TextEdit>,
    /// The frame that tells readers of operations, once there was one.
    pub(super) frame: Option<Bytes>,
}

impl Entry {
    /// Bytes it takes, about, with the frame that there may be once.
    pub(super) fn bytes(&self) -> usize {
        self.message.payload.len() + 2 * self.edit.as_ref().map_or(0, |edit| edit.operations.len())
    }
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

    pub(super) fn push(&mut self, message: Arc<Message>, edit: Option<TextEdit>, since_us: u64) {
        self.head = Some(message.position);
        let entry = Entry { message, since_us, edit, frame: None };
        self.tail_bytes += entry.bytes();
        self.tail.push_back(entry);
        while self.tail.len() > TAIL_MESSAGES || self.tail_bytes > TAIL_BYTES {
            self.drop_oldest();
        }
    }

    pub(super) fn drop_oldest(&mut self) {
        if let Some(oldest) = self.tail.pop_front() {
            self.tail_bytes -= oldest.bytes();
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

#[cfg(test)]
mod tests {
    use thalweg_protocol::chat::Context;
    use thalweg_protocol::ids::{Name, Sequence, SessionId};
    use thalweg_protocol::op::{Delivery, DeliveryKind};

    use super::*;

    #[test]
    fn what_an_edit_does_to_the_text_counts_as_its_bytes() {
        let name = |text: &str| Name::new(text).expect("a valid name");
        let mut fan = Fan::new(ChannelKey { tenant: name("acme"), channel: name("plan") });
        let operations = Bytes::from(vec![0; TAIL_BYTES / 10]);
        for position in 1..=20 {
            let delivery = Delivery {
                position: Position(position),
                timestamp_us: 0,
                kind: DeliveryKind::Update,
                user: name("ada"),
                generation: None,
                body: Bytes::from_static(b"small"),
                key: 0,
                context: Context::default(),
            };
            let message = Arc::new(Message::new(delivery, SessionId(1), Sequence(0)));
            let edit = TextEdit { operations: operations.clone(), is_positional: true };
            fan.push(message, Some(edit), 0);
        }
        assert_eq!(fan.tail.len(), 4);
        fan.drop_oldest();
        assert_eq!(fan.tail_bytes, fan.tail.iter().map(Entry::bytes).sum::<usize>());
    }
}
