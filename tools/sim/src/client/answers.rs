//! What a client makes of the bytes that a node sends it.

use bytes::Bytes;
use thalweg_protocol::chat::PostKind;
use thalweg_protocol::frame::Splitter;
use thalweg_protocol::ids::{Position, Sequence, SessionId, Subscription};
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, Policy, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::Link;
use thalweg_workload::auditor::{Event as Seen, ReaderId};

use super::Asked;
use super::channels::{Kind, content, kind};
use crate::faults::Fault;
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
                    if self.trace.prints() && !matches!(op, ServerOp::Delivery(_)) {
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
                self.acknowledged(client, sequence, position);
            }
            (Asked::Publish(sequence), ServerOp::Reject(reject)) => self.refused(client, sequence, &reject),
            (Asked::Subscribe, ServerOp::Subscribed { next, .. }) => self.subscribed(client, request, next),
            (Asked::Subscribe, ServerOp::Reject(reject)) => {
                self.subscription_refused(client, request, &reject);
            }
            (Asked::Generation, ServerOp::Asked { generation, .. }) => {
                self.heard.entry(generation).or_insert(0);
                let tenant = self.clients[client].tenant;
                let owner = *self.generation_tenants.entry(generation).or_insert(tenant);
                if owner != tenant {
                    self.violation(format!("client {client} of tenant {tenant} was given {generation} of another"));
                }
                if let Some(watching) = self.clients[client].watches.get_mut(&request) {
                    watching.generation.get_or_insert(generation);
                }
            }
            (Asked::Generation, ServerOp::Reject(reject)) => {
                self.generation_refused(client, request, &reject);
            }
            (Asked::Page { channel, from, since }, op) => self.page(client, channel, from, since, op),
            (Asked::Create(deed), op) => match op {
                ServerOp::ChannelCreated { created: true } => self.people.done(deed),
                ServerOp::ChannelCreated { created: false } => self.people.was_there(deed),
                _ => self.people.refused(deed),
            },
            (Asked::Chat(asked), op) => self.chat_answered(client, asked, op),
            (Asked::Document(asked), op) => self.document_answered(client, request, asked, op),
            (Asked::Publish(_) | Asked::Subscribe | Asked::Generation, op) => {
                self.violation(format!("client {client}: request {request} was answered by {op:?}"));
            }
            (Asked::Abandoned | Asked::Other, _) => {}
        }
    }

    fn acknowledged(&mut self, client: usize, sequence: Sequence, position: Position) {
        let session = self.clients[client].session;
        self.auditor.record(Seen::Acked { session, sequence, position });
        let Some(write) = self.clients[client].unacked.remove(&sequence) else { return };
        if let Some(deed) = write.deed {
            self.people.done(deed);
            self.note_taken_back(write.index, write.post.target);
        }
        if kind(write.channel) == Kind::Club && !self.clients[client].admin {
            let who = self.person(client);
            match write.post.kind {
                PostKind::Redact => self.people.took_back(write.index, who, write.since),
                _ => self.people.wrote(write.index, who, write.since),
            }
        }
    }

    fn refused(&mut self, client: usize, sequence: Sequence, reject: &Reject) {
        let Some(write) = self.clients[client].unacked.get(&sequence) else { return };
        let (channel, since, target, index) = (write.channel, write.since, write.post.target, write.index);
        let (plain, last_word, written) = (write.post == Default::default(), write.last_word, write.written);
        if last_word && !self.draining {
            return self.violation(format!("client {client}: write {sequence}, its last word, was refused: {reject}"));
        }
        // What it was answered first went with its connection; but what was carried out is answered so again.
        if written && reject.code != RejectCode::SequenceInvalid && kind(channel) != Kind::Memory {
            let session = self.clients[client].session;
            if self.truth.is_written(session, sequence) {
                let text = format!("write {sequence}, which was carried out, was refused: {reject}");
                self.violation(format!("client {client}: {text}"));
            }
        }
        let gone = || self.people.may_be_redacted(index, target) || (channel == 0 && self.trimmed);
        match reject.code {
            RejectCode::MessageUnknown if !plain && gone() => self.faults.count(Fault::MessageGone),
            RejectCode::StorageDamaged if !plain && self.was_rotten => self.faults.count(Fault::RotRefusedRead),
            RejectCode::Forbidden if kind(channel) == Kind::Club => self.refused_in_club(client, channel, since),
            RejectCode::RateLimited | RejectCode::QuotaExceeded if self.is_limited() => {
                self.faults.count(Fault::RateRefused);
            }
            RejectCode::Overloaded if self.is_pressed() => self.faults.count(Fault::PressureRefused),
            RejectCode::SequenceInvalid if !plain || self.was_limited || self.was_pressed => {}
            RejectCode::Draining => self.faults.count(Fault::DrainingRefused),
            RejectCode::StorageFull if self.was_full => self.faults.count(Fault::FullRefused),
            RejectCode::Busy if kind(channel) == Kind::Doomed => self.faults.count(Fault::RefusedByDeletion),
            // Refused before, which was never heard, and later writes were carried out; or carried out in a memory that is gone.
            RejectCode::SequenceInvalid if kind(channel) != Kind::Disk || self.was_full => {}
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted if kind(channel) != Kind::Disk => {
                if self.chance(0.5) {
                    self.create(client, channel);
                }
            }
            _ => return self.violation(format!("client {client}: write {sequence} was refused: {reject}")),
        }
        let own = &mut self.clients[client];
        let session = own.session;
        // One that was sent over two connections may have been carried out by the first.
        let write = own.unacked.remove(&sequence).filter(|write| write.sent == 1);
        if let Some(write) = write {
            self.auditor.record(Seen::Refused { session, sequence });
            write.deed.into_iter().for_each(|deed| self.people.refused(deed));
        }
    }

    fn subscription_refused(&mut self, client: usize, request: u32, reject: &Reject) {
        let Some(reader) = self.clients[client].readers.get(&request) else { return };
        let (channel, again, since) = (reader.channel, reader.accepted.1, reader.since);
        let lawful = match reject.code {
            RejectCode::Forbidden if kind(channel) == Kind::Club => {
                self.refused_in_club(client, channel, since);
                true
            }
            RejectCode::Overloaded => self.is_pressed(),
            RejectCode::RateLimited | RejectCode::QuotaExceeded => self.is_limited() && !again,
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted => kind(channel) != Kind::Disk,
            RejectCode::Busy | RejectCode::SubscriptionInvalid => kind(channel) == Kind::Doomed,
            RejectCode::StorageFull => self.was_full && !again,
            _ => false,
        };
        if !lawful {
            return self.violation(format!("client {client}: subscription {request} was refused: {reject}"));
        }
        self.end_reader(client, request);
        if kind(channel) != Kind::Disk && self.chance(0.5) && !self.settling {
            self.create(client, channel);
        }
    }

    fn subscribed(&mut self, client: usize, request: u32, next: Position) {
        let session = self.clients[client].session;
        let Some(reader) = self.clients[client].readers.get_mut(&request) else { return };
        reader.accepted = (true, true);
        let (of, since) = (reader.channel, reader.since);
        let channel = self.index_for(client, of);
        self.judge_reader(client, of, since);
        let Some(reader) = self.clients[client].readers.get_mut(&request) else { return };
        // Of a channel that is deleted and made again, the first message tells which one it is.
        if kind(reader.channel) != Kind::Doomed && reader.index.is_none() {
            let id = reader.id;
            (reader.cursor, reader.index) = (next, Some(channel));
            self.auditor.record(Seen::Subscribed { reader: id, session, channel, next });
        }
        let Some(reader) = self.clients[client].readers.get_mut(&request) else { return };
        for op in std::mem::take(&mut reader.early) {
            self.delivered(client, request, op);
        }
    }

    fn delivered(&mut self, client: usize, number: u32, op: ServerOp) {
        if self.is_of_document(client, number) {
            return self.document_news(client, number, op);
        }
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return };
        if !reader.accepted.0 {
            return reader.early.push(op);
        }
        let (id, policy, channel) = (reader.id, reader.policy, reader.channel);
        let known = reader.index.is_some();
        match op {
            ServerOp::Delivery(delivery) => self.take(client, number, delivery),
            ServerOp::Presence(news) => self.presence_news(client, number, &news),
            ServerOp::Missed { from, to } => {
                reader.cursor = to.next();
                self.faults.count(Fault::Missed);
                if known {
                    self.auditor.record(Seen::Missed { reader: id, from, to });
                }
                if policy == Policy::Replay && !(channel == 0 && self.trimmed) {
                    self.violation(format!("client {client}: reader {number} with replay missed {from} to {to}"));
                }
            }
            ServerOp::Ended(reject) => {
                self.faults.add(Fault::SlowReaderEnded, u64::from(reject.code == RejectCode::SlowReader));
                let lawful = match reject.code {
                    RejectCode::SlowReader => policy == Policy::Disconnect,
                    RejectCode::ChannelDeleted => kind(channel) == Kind::Doomed,
                    RejectCode::StorageDamaged => self.was_rotten,
                    RejectCode::Forbidden => kind(channel) == Kind::Club,
                    _ => false,
                };
                self.faults.add(Fault::Expelled, u64::from(reject.code == RejectCode::Forbidden));
                self.faults.add(Fault::RotRefusedRead, u64::from(reject.code == RejectCode::StorageDamaged));
                self.faults.add(Fault::ReaderOfDeleted, u64::from(reject.code == RejectCode::ChannelDeleted));
                if !lawful {
                    self.violation(format!("client {client}: reader {number} was ended: {reject}"));
                }
                self.end_reader(client, number);
            }
            op => self.violation(format!("client {client}: {op:?} on the delivery lane")),
        }
    }

    /// Takes a record, or does with it what a planted defect says.
    fn take(&mut self, client: usize, number: u32, delivery: Delivery) {
        let Some(reader) = self.clients[client].readers.get(&number) else { return };
        let doomed = kind(reader.channel) == Kind::Doomed;
        if doomed && !self.learn_life(client, number, &delivery) {
            return;
        }
        let said =
            delivery.generation.is_none() && delivery.kind == DeliveryKind::Message && !delivery.context.redacted;
        let planted = said && self.planted == 0 && !doomed;
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

    /// The first message of a channel that is deleted and made again tells which of those channels is read.
    fn learn_life(&mut self, client: usize, number: u32, delivery: &Delivery) -> bool {
        let text = String::from_utf8_lossy(&delivery.body);
        let mut words = text.split(' ').map(str::parse::<u128>);
        let (Some(Ok(session)), Some(Ok(sequence))) = (words.next(), words.next()) else {
            self.violation(format!("client {client}: nobody wrote {text:?}"));
            return false;
        };
        let life = self.truth.life_of(SessionId(session), Sequence(sequence as u64));
        let fresh = ReaderId(self.fresh_number());
        let (session, next) = (self.clients[client].session, delivery.position);
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return false };
        match (reader.index, life) {
            (None, Some(channel)) => {
                (reader.id, reader.index) = (fresh, Some(channel));
                self.auditor.record(Seen::Subscribed { reader: fresh, session, channel, next });
                true
            }
            (Some(known), Some(life)) if known == life => true,
            (known, life) => {
                let text = format!("{} of {life:?} was delivered to a reader of {known:?}", delivery.position);
                self.violation(format!("client {client}: {text}"));
                false
            }
        }
    }

    fn see(&mut self, client: usize, number: u32, delivery: Delivery) {
        let (channel, since) = match self.clients[client].readers.get(&number) {
            Some(reader) => (reader.channel, reader.since),
            None => return,
        };
        self.judge_text(client, channel, since, &delivery);
        self.learn(client, channel, &delivery);
        let Delivery { position, kind, generation, body, user, context, .. } = delivery;
        let slow = self.clients[client].slow;
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return };
        reader.cursor = position.next();
        let hash = content(kind, context.target, &user, &body);
        if slow {
            reader.owed = Some(position);
        }
        let (reader, body_hash) = (reader.id, hash);
        let of_node = matches!(kind, DeliveryKind::Membership | DeliveryKind::Info);
        if context.redacted {
            self.faults.count(Fault::ReadRedacted);
            self.auditor.record(Seen::DeliveredRedacted { reader, position });
        } else if of_node {
            self.auditor.record(Seen::DeliveredGenerated { reader, position, body: body_hash });
        } else if let Some(generation) = generation {
            self.auditor.record(Seen::DeliveredGenerated { reader, position, body: body_hash });
            self.heard.entry(generation).or_insert(0);
            self.generation_tenants.entry(generation).or_insert(self.clients[client].tenant);
            let said = self.said.version(generation, self.clients[client].epoch);
            let said = said.map_or("", |version| version.all());
            let sound = match kind {
                DeliveryKind::Message => said.as_bytes() == body,
                DeliveryKind::Tokens => said.contains(&*String::from_utf8_lossy(&body)),
                DeliveryKind::GenerationStarted | DeliveryKind::GenerationEnded => true,
                _ => false,
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

    pub(crate) fn judge_client(&mut self, client: usize) {
        let own = &self.clients[client];
        let writes = own.unacked.len() + own.edits.len();
        let asked: Vec<_> = own.asked.iter().collect();
        if writes > 0 || !asked.is_empty() {
            let text = format!("client {client}: {writes} writes and these requests were never answered: {asked:?}");
            self.violation(text);
        }
    }
}
