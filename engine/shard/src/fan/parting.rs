//! Readers that are parted with: too slow, not allowed to read any more, or of a channel that is gone.

use std::collections::BTreeSet;

use bytes::Bytes;
use thalweg_domain::permission::Action as Access;
use thalweg_protocol::ids::{Name, Subscription};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::{FanId, State, SubscriptionRef};
use crate::contract::Link;
use crate::shard::Shard;

impl Shard {
    /// A reader by policy `disconnect` is too far behind.
    pub(super) fn end_slow_reader(&mut self, link: Link, number: Subscription, pending: u64) {
        self.counters.slow_disconnected += 1;
        let text = format!("the reader is {pending} messages behind; consume faster, or choose another policy");
        self.drop_subscription(link, number);
        let payload = ServerOp::Ended(Reject::new(RejectCode::SlowReader, text)).encode();
        self.deliver(link, number, payload);
    }

    /// Ends the subscriptions of a user, who may not read a channel any more.
    pub(crate) fn expelled(&mut self, id: FanId, user: &Name, reject: &Reject) {
        self.end_readers(id, reject, |reader| reader == user);
    }

    /// Ends the subscriptions of everybody but a channel's members.
    pub(crate) fn closed(&mut self, id: FanId, members: &BTreeSet<Name>, reject: &Reject) {
        self.end_readers(id, reject, |reader| !members.contains(reader));
    }

    fn end_readers(&mut self, id: FanId, reject: &Reject, goes: impl Fn(&Name) -> bool) {
        let Some(fan) = self.fans.fans.get(&id) else { return };
        let channel = fan.key.channel.clone();
        let readers = fan.readers.iter().filter_map(|&index| self.fans.readers.get(index)?.as_ref());
        let going: Vec<_> = readers
            .filter(|reader| {
                // Whoever administers the channel stays.
                self.sessions.get(reader.link).is_some_and(|session| {
                    let principal = &session.principal;
                    goes(&principal.user) && !principal.may(Access::Admin, channel.as_str())
                })
            })
            .map(|reader| (reader.link, reader.number, reader.document.is_some(), reader.state == State::Attaching))
            .collect();
        for (link, number, of_document, attaching) in going {
            // One that was not accepted yet was, or will be, answered by the owner.
            if !attaching {
                self.drop_subscription(link, number);
                self.deliver_end(link, number, of_document, ServerOp::Ended(reject.clone()).encode());
            }
        }
    }

    /// A channel is gone.
    pub(crate) fn gone(&mut self, id: FanId, reject: &Reject) {
        let Some(fan) = self.fans.fans.remove(&id) else { return };
        self.fans.by_channel.remove(&fan.key);
        let payload = ServerOp::Ended(reject.clone()).encode();
        for index in fan.readers {
            let Some(reader) = self.fans.readers.get_mut(index).and_then(Option::take) else { continue };
            self.fans.free.push(index);
            self.leave_crowd(index, &reader);
            self.leave_document(&reader);
            if let Some(session) = self.sessions.get_mut(reader.link) {
                session.waiting_for_room.retain(|other| *other != index);
                session.subscriptions.remove(&reader.number.0);
            }
            // One that was not accepted yet gets its answer as an answer.
            if reader.state != State::Attaching {
                self.deliver_end(reader.link, reader.number, reader.document.is_some(), payload.clone());
            }
        }
    }

    /// Tells a reader that it was parted with.
    fn deliver_end(&mut self, link: Link, number: Subscription, of_document: bool, payload: Bytes) {
        if of_document {
            self.deliver_document(link, number, payload, true);
        } else {
            self.deliver(link, number, payload);
        }
    }

    /// The owner could not read what a reader lacks.
    pub(crate) fn history_failed(&mut self, reference: SubscriptionRef, reject: Reject) {
        let Some(reader) = self.fans.reader_mut(reference.index).filter(|reader| reader.life == reference.life) else {
            return;
        };
        let (link, number, of_document) = (reader.link, reader.number, reader.document.is_some());
        self.drop_subscription(link, number);
        self.deliver_end(link, number, of_document, ServerOp::Ended(reject).encode());
    }
}
