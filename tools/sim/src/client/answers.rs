//! What a client makes of the bytes that a node sends it.

use bytes::Bytes;
use thalweg_protocol::frame::Splitter;
use thalweg_protocol::generation::FinishReason;
use thalweg_protocol::ids::{Position, Sequence, Subscription, Watch};
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, Policy, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::Link;
use thalweg_workload::auditor::{BodyHash, ChannelIndex, Event as Seen};

use super::Asked;
use crate::faults::Fault;
use crate::script;
use crate::world::{Lane, Plant, World};

impl World {
    pub(crate) fn bytes_to_client(&mut self, link: Link, lane: Lane, bytes: Bytes) {
        let Some(wire) = self.wires.get_mut(&link).filter(|wire| wire.in_use) else { return };
        let client = wire.client;
        wire.lanes.entry(lane).or_insert_with(Splitter::new).push(bytes);
        loop {
            let Some(wire) = self.wires.get_mut(&link).filter(|wire| wire.in_use) else { return };
            let Some(splitter) = wire.lanes.get_mut(&lane) else { return };
            let frame = match splitter.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(reject) => return self.violation(format!("{link:?} {lane:?} is no lane: {reject}")),
            };
            match ServerOp::decode(&frame.payload) {
                Ok(op) => {
                    if !matches!(op, ServerOp::Delivery(_)) {
                        self.note(format_args!("client {client} {lane:?} {}: {op:?}", frame.subject));
                    }
                    self.said(client, lane, frame.subject, op);
                }
                Err(reject) => self.violation(format!("{link:?} {lane:?}: a frame does not decode: {reject}")),
            }
        }
    }

    fn said(&mut self, client: usize, lane: Lane, subject: u32, op: ServerOp) {
        match lane {
            Lane::Command => self.answered(client, subject, op),
            Lane::Delivery => self.delivered(client, subject, op),
            Lane::Generation(_) => self.generated(client, subject, op),
        }
    }

    fn answered(&mut self, client: usize, request: u32, op: ServerOp) {
        let Some(asked) = self.clients[client].asked.remove(&request) else {
            return self.violation(format!("client {client}: an answer to {request}, which was not asked: {op:?}"));
        };
        match (asked, op) {
            (Asked::Publish(sequence), ServerOp::Published { position, duplicate, .. }) => {
                self.faults.add(Fault::Duplicate, u64::from(duplicate));
                self.clients[client].unacked.remove(&sequence);
                let session = self.clients[client].session;
                self.auditor.record(Seen::Acked { session, sequence, position });
            }
            (Asked::Publish(sequence), ServerOp::Reject(reject)) => self.refused(client, sequence, &reject),
            (Asked::Subscribe, ServerOp::Subscribed { next, .. }) => self.subscribed(client, request, next),
            (Asked::Subscribe, ServerOp::Reject(reject)) => {
                if self.clients[client].readers.contains_key(&request) {
                    self.violation(format!("client {client}: subscription {request} was refused: {reject}"));
                }
            }
            (Asked::Generation, ServerOp::Asked { generation, .. }) => {
                self.heard.entry(generation).or_insert(0);
                if let Some(watching) = self.clients[client].watches.get_mut(&request) {
                    watching.generation.get_or_insert(generation);
                }
            }
            (Asked::Generation, ServerOp::Reject(reject)) => {
                self.faults.add(Fault::DrainingRefused, u64::from(reject.code == RejectCode::Draining));
                let watching = self.clients[client].watches.remove(&request);
                if watching.is_some_and(|watching| watching.greeted) {
                    self.violation(format!("client {client}: a watch could not be taken up again: {reject}"));
                }
            }
            (Asked::Publish(_) | Asked::Subscribe | Asked::Generation, op) => {
                self.violation(format!("client {client}: request {request} was answered by {op:?}"));
            }
            (Asked::Abandoned | Asked::Other, _) => {}
        }
    }

    fn refused(&mut self, client: usize, sequence: Sequence, reject: &Reject) {
        if reject.code != RejectCode::Draining {
            return self.violation(format!("client {client}: write {sequence} was refused: {reject}"));
        }
        self.faults.count(Fault::DrainingRefused);
        let own = &mut self.clients[client];
        let session = own.session;
        // One that was sent over two connections may have been carried out by the first.
        let first = own.unacked.remove(&sequence).is_some_and(|write| write.sent == 1);
        if first {
            self.auditor.record(Seen::Refused { session, sequence });
        }
    }

    fn subscribed(&mut self, client: usize, request: u32, next: Position) {
        let Some(reader) = self.clients[client].readers.get_mut(&request) else { return };
        let (id, channel) = (reader.id, ChannelIndex(reader.channel));
        let first = !std::mem::replace(&mut reader.accepted, (true, true)).1;
        let early = std::mem::take(&mut reader.early);
        if first {
            reader.cursor = next;
            let session = self.clients[client].session;
            self.auditor.record(Seen::Subscribed { reader: id, session, channel, next });
        }
        for op in early {
            self.delivered(client, request, op);
        }
    }

    fn delivered(&mut self, client: usize, number: u32, op: ServerOp) {
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return };
        if !reader.accepted.0 {
            return reader.early.push(op);
        }
        let (id, policy, channel) = (reader.id, reader.policy, reader.channel);
        match op {
            ServerOp::Delivery(delivery) => self.take(client, number, delivery),
            ServerOp::Missed { from, to } => {
                reader.cursor = to.next();
                self.faults.count(Fault::Missed);
                self.auditor.record(Seen::Missed { reader: id, from, to });
                if policy == Policy::Replay && !(channel == 0 && self.trimmed) {
                    self.violation(format!("client {client}: reader {number} with replay missed {from} to {to}"));
                }
            }
            ServerOp::Ended(reject) => {
                self.faults.add(Fault::SlowReaderEnded, u64::from(reject.code == RejectCode::SlowReader));
                if policy != Policy::Disconnect {
                    self.violation(format!("client {client}: reader {number} was ended: {reject}"));
                }
                self.end_reader(client, number);
            }
            op => self.violation(format!("client {client}: {op:?} on the delivery lane")),
        }
    }

    /// Takes a record, or does with it what a planted defect says.
    fn take(&mut self, client: usize, number: u32, delivery: Delivery) {
        let planted = delivery.generation.is_none() && self.planted == 0;
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return };
        match self.options.plant {
            Some(Plant::LoseDelivery) if planted && reader.policy == Policy::Replay => {
                self.planted += 1;
                reader.cursor = delivery.position.next();
                let position = delivery.position;
                self.say(client, 0, &ClientOp::Consumed { subscription: Subscription(number), position });
                return;
            }
            Some(Plant::DoubleDelivery) if planted => {
                self.planted += 1;
                self.see(client, number, delivery.clone());
            }
            Some(Plant::SwapDeliveries) if planted || reader.swapped.is_some() => {
                self.planted += 1;
                let Some(first) = reader.swapped.take() else {
                    reader.swapped = Some(delivery);
                    return;
                };
                self.see(client, number, delivery);
                return self.see(client, number, first);
            }
            _ => {}
        }
        self.see(client, number, delivery);
    }

    fn see(&mut self, client: usize, number: u32, delivery: Delivery) {
        let Delivery { position, kind, generation, body, .. } = delivery;
        let slow = self.clients[client].slow;
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return };
        reader.cursor = position.next();
        let hash = BodyHash::of(&body);
        if slow {
            reader.owed = Some(position);
        }
        let (reader, body_hash) = (reader.id, hash);
        if let Some(generation) = generation {
            self.auditor.record(Seen::DeliveredGenerated { reader, position, body: body_hash });
            self.heard.entry(generation).or_insert(0);
            let full = script::range(generation, 0, script::tokens(generation));
            let sound = match kind {
                DeliveryKind::Message => {
                    let tokens = self.node.stage.tokens(generation);
                    tokens.is_some_and(|tokens| script::range(generation, 0, tokens).as_bytes() == body)
                }
                DeliveryKind::Tokens => full.contains(&*String::from_utf8_lossy(&body)),
                DeliveryKind::GenerationStarted | DeliveryKind::GenerationEnded => true,
            };
            if !sound {
                self.violation(format!("client {client}: {kind:?} of {generation} is not the model's: {body:?}"));
            }
        } else {
            self.auditor.record(Seen::Delivered { reader, position, body: body_hash });
        }
        if slow {
            self.faults.count(Fault::CreditWithheld);
        } else {
            self.say(client, 0, &ClientOp::Consumed { subscription: Subscription(number), position });
        }
    }

    fn generated(&mut self, client: usize, number: u32, op: ServerOp) {
        let Some(watching) = self.clients[client].watches.get_mut(&number) else { return };
        match op {
            ServerOp::Asked { generation, .. } => {
                watching.generation = Some(generation);
                let (watch, from) = (watching.id, watching.next);
                if !std::mem::replace(&mut watching.greeted, true) {
                    self.auditor.record(Seen::Watched { watch, from });
                }
            }
            ServerOp::Tokens { index, count, text } => self.tokens(client, number, (index, count), &text),
            ServerOp::Finished { reason, usage, .. } => {
                let watch = watching.id;
                self.clients[client].watches.remove(&number);
                self.faults.add(Fault::Cancelled, u64::from(reason == FinishReason::Cancelled));
                self.faults.add(Fault::Failed, u64::from(reason == FinishReason::Failed));
                self.auditor.record(Seen::Finished { watch, tokens: usage.completion_tokens });
            }
            ServerOp::Ended(reject) => {
                let watch = watching.id;
                self.clients[client].watches.remove(&number);
                self.faults.add(Fault::Busy, u64::from(reject.code == RejectCode::Busy));
                self.faults.add(Fault::PromptTooLong, u64::from(reject.code == RejectCode::PromptTooLong));
                self.auditor.record(Seen::Finished { watch, tokens: 0 });
            }
            op => self.violation(format!("client {client}: {op:?} on a generation's lane")),
        }
    }

    fn tokens(&mut self, client: usize, number: u32, (index, count): (u32, u32), text: &Bytes) {
        let own = &mut self.clients[client];
        let Some(watching) = own.watches.get_mut(&number) else { return };
        let watch = watching.id;
        watching.next = index + count;
        let Some(generation) = watching.generation else {
            return self.violation(format!("client {client}: tokens before their generation was named"));
        };
        let mut expected = script::range(generation, index, index + count);
        let known = self.heard.entry(generation).or_insert(0);
        *known = (*known).max(index + count);
        let mut times = 1;
        if self.planted == 0 {
            match self.options.plant {
                Some(Plant::LoseTokens) => (times, self.planted) = (0, 1),
                Some(Plant::DoubleTokens) => (times, self.planted) = (2, 1),
                Some(Plant::ChangeText) => {
                    expected.push('!');
                    self.planted = 1;
                }
                _ => {}
            }
        }
        if expected.as_bytes() != text {
            self.violation(format!("client {client}: tokens {index} of {generation} are {text:?}, not {expected:?}"));
        }
        for _ in 0..times {
            self.auditor.record(Seen::Tokens { watch, index, count });
        }
        let own = &mut self.clients[client];
        if own.slow {
            if let Some(watching) = own.watches.get_mut(&number) {
                watching.owed = true;
            }
            self.faults.count(Fault::CreditWithheld);
        } else {
            self.say(client, 0, &ClientOp::TokensConsumed { watch: Watch(number), index: index + count });
        }
    }

    pub(crate) fn judge_client(&mut self, client: usize) {
        let own = &self.clients[client];
        let writes = own.unacked.len();
        let asked: Vec<_> = own.asked.iter().collect();
        if writes > 0 || !asked.is_empty() {
            let text = format!("client {client}: {writes} writes and these requests were never answered: {asked:?}");
            self.violation(text);
        }
    }
}
