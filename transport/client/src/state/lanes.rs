//! What comes on the delivery lane and on the lanes of generations.

use std::sync::atomic::Ordering;

use thalweg_protocol::frame::RawFrame;
use thalweg_protocol::generation::TokenDetail;
use thalweg_protocol::ids::Position;
use thalweg_protocol::op::{Delivery, DeliveryKind, ServerOp};
use tokio::sync::mpsc;

use super::{FullQueue, Handled, State, Target};
use crate::error::ClientError;
use crate::generation::Event;
use crate::subscription::Item;

impl State {
    /// A frame of the delivery lane or of a generation's.
    pub(crate) fn lane_frame(&mut self, frame: &RawFrame) -> Result<Handled, ClientError> {
        let op = ServerOp::decode(&frame.payload).map_err(|reject| ClientError::Protocol(reject.to_string()))?;
        match op {
            ServerOp::Ended(reject) => {
                self.ended(frame.subject, reject);
                Ok(Handled::Done)
            }
            op if self.document_keys.contains_key(&frame.subject) || matches!(op, ServerOp::Document(_)) => {
                self.document_frame(frame.subject, op)
            }
            // On its way when its reader closed the document.
            ServerOp::Delivery(Delivery { kind: DeliveryKind::Update | DeliveryKind::Version, .. }) => {
                Ok(Handled::Done)
            }
            ServerOp::Delivery(delivery) => {
                let position = delivery.position.0;
                let item = Item::of(delivery)?;
                self.deliver(frame.subject, position..=position, |_| item)
            }
            ServerOp::Missed { from, to } => self
                .deliver(frame.subject, from.0..=to.0, |seen| Item::Missed { from: from.max(Position(seen + 1)), to }),
            ServerOp::Presence(report) => {
                self.present(frame.subject, report);
                Ok(Handled::Done)
            }
            ServerOp::Asked { generation, model } => {
                if let Some(&key) = self.watch_keys.get(&frame.subject) {
                    self.asked(key, generation, model);
                }
                Ok(Handled::Done)
            }
            ServerOp::Tokens { index, count, text, details } => {
                self.tokens(frame.subject, (index, count), text, details)
            }
            ServerOp::Rewound { to } => Ok(self.rewound(frame.subject, to)),
            ServerOp::Finished { reason, usage, message } => {
                let Some(key) = self.watch_keys.remove(&frame.subject) else { return Ok(Handled::Done) };
                let Some(entry) = self.watches.remove(&key) else { return Ok(Handled::Done) };
                let event = Event::Finished { reason, usage, message };
                Ok(queued_event(&entry.queue, event))
            }
            other => Err(ClientError::unexpected("a delivery or tokens", &other)),
        }
    }

    fn deliver(
        &mut self,
        wire: u32,
        positions: std::ops::RangeInclusive<u64>,
        item: impl FnOnce(u64) -> Item,
    ) -> Result<Handled, ClientError> {
        // A delivery can be under way when its reader unsubscribes.
        let Some(key) = self.subscription_keys.get(&wire) else { return Ok(Handled::Done) };
        let Some(entry) = self.subscriptions.get_mut(key) else { return Ok(Handled::Done) };
        if !entry.started {
            // It overtook the answer; what it says about where the subscription begins is as good.
            entry.started = true;
            entry.confirmed = true;
            entry.cursor.store(positions.start().saturating_sub(1), Ordering::Relaxed);
        } else if !entry.confirmed {
            return Ok(Handled::Unsettled(entry.confirm.clone()));
        }
        if *positions.end() <= entry.seen {
            return Ok(Handled::Done);
        }
        let item = item(entry.seen);
        entry.seen = *positions.end();
        match entry.queue.try_send(item) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(Handled::Done),
            Err(mpsc::error::TrySendError::Full(item)) => {
                Ok(Handled::Full(FullQueue::Subscription(entry.queue.clone(), item)))
            }
        }
    }

    fn tokens(
        &mut self,
        wire: u32,
        (index, count): (u32, u32),
        text: bytes::Bytes,
        details: Vec<TokenDetail>,
    ) -> Result<Handled, ClientError> {
        let Some(key) = self.watch_keys.get(&wire) else { return Ok(Handled::Done) };
        let Some(entry) = self.watches.get_mut(key) else { return Ok(Handled::Done) };
        let end = index.saturating_add(count);
        let next = entry.seen.next();
        if end <= next {
            return Ok(Handled::Done);
        }
        if index != next {
            let text = format!("tokens {index}..{end} of a generation came where {next} was next");
            return Err(ClientError::Protocol(text));
        }
        entry.seen.grow(end, &text, self.epoch);
        Ok(queued_event(&entry.queue, Event::Tokens { index, count, text, details }))
    }

    /// The node came back with less of a generation than its reader has.
    fn rewound(&mut self, wire: u32, to: u32) -> Handled {
        let Some(&key) = self.watch_keys.get(&wire) else { return Handled::Done };
        let Some(entry) = self.watches.get_mut(&key) else { return Handled::Done };
        if to >= entry.seen.next() {
            return Handled::Done;
        }
        let kept = entry.seen.rewind(to, self.epoch);
        let handled = queued_event(&entry.queue, Event::Rewound { to: kept });
        if kept < to {
            // Tokens that came together are dropped together; the first of them is asked for again.
            entry.wire = None;
            self.watch_keys.remove(&wire);
            self.enqueue(Target::Unwatch(wire));
            self.enqueue(Target::Watch(key));
        }
        handled
    }
}

fn queued_event(queue: &mpsc::Sender<Event>, event: Event) -> Handled {
    match queue.try_send(event) {
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Handled::Done,
        Err(mpsc::error::TrySendError::Full(event)) => Handled::Full(FullQueue::Generation(queue.clone(), event)),
    }
}
