//! The shard's end of the log: what was appended and is not durable, what is at hand and what is on disk only.
//!
//! Here stands the order of every write: append → durable → apply → reply → fan-out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use thalweg_domain::partition::PartitionState;
use thalweg_domain::permission::Principal;
use thalweg_domain::record::{Event, Message, Record};
use thalweg_protocol::ids::{ChannelId, ChannelKey, CoreId, Lsn, Partition, Position};
use thalweg_protocol::limits::{
    APPENDS_PENDING_BYTES, HISTORY_BATCH_MESSAGES, READS_MAX, RECONNECT_DELAY_MS, RESIDENT_BYTES,
};
use thalweg_protocol::op::{DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Origin, Output, ReadId, SessionMessage, Ticket};
use crate::counters::Stage;
use crate::fan::SubscriptionRef;
use crate::owner::{Action, deleted};
use crate::shard::Shard;

/// What an entry of the log takes in memory beside its message's payload, about, in bytes.
const ENTRY_BYTES: usize = 256;
/// While the node is short of memory, this part of the messages that could be at hand is.
const PRESSED_SHARE: usize = 8;
/// Those who are refused because the log is behind are told to come back after this, in milliseconds.
const BEHIND_DELAY_MS: u32 = 100;

/// A record that is not durable yet, and what is to be done when it is.
struct Pending {
    ticket: Ticket,
    event: Event,
    bytes: usize,
    appended_us: u64,
    actions: Vec<Action>,
}

/// A message that is at hand although it is in the log.
struct Resident {
    ticket: Ticket,
    channel: ChannelKey,
    id: ChannelId,
    position: Position,
    bytes: usize,
}

/// For whom something is read from disk.
pub(crate) enum Purpose {
    /// For a reader that fell off its core's tail.
    History { core: CoreId, reader: SubscriptionRef },
    /// For somebody who pages through history.
    Page { origin: Origin, limit: usize },
    /// For a model that was spoken to in a channel; `trace` is the span of what was said.
    Conversation { principal: Arc<Principal>, trace: u64 },
    /// For somebody who looks for a text.
    Search { origin: Origin, query: String, limit: u32 },
    /// For a write that means this message.
    Target { origin: Origin, principal: Arc<Principal>, publish: Box<Publish> },
    /// For a document that is opened.
    Document { life: u64 },
    /// For a document that is read as it was.
    Past { life: u64 },
}

/// A read from disk that is under way.
struct Reading {
    purpose: Purpose,
    channel: ChannelKey,
    id: ChannelId,
    from: Position,
    to: Position,
}

/// A shard's end of its log.
#[derive(Default)]
pub(crate) struct LogEnd {
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    appended: Ticket,
    durable: Ticket,
    archived: Ticket,
    /// Why the disk takes no more, if it does not.
    pub(crate) full: Option<String>,
    lsns: BTreeMap<Partition, Lsn>,
    /// Messages at hand, in the order of the log.
    resident: VecDeque<Resident>,
    resident_bytes: usize,
    reads: BTreeMap<ReadId, Reading>,
    reads_made: u64,
    /// Reads beyond those that may be under way. A reader, a request and a mention have one each, so they are bounded.
    reads_waiting: VecDeque<Reading>,
}

impl LogEnd {
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.reads.is_empty()
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.len() + self.reads_waiting.len()
    }

    /// Where the next record of a partition will stand.
    pub(crate) fn next_lsn(&self, partition: Partition) -> Lsn {
        self.lsns.get(&partition).copied().unwrap_or_default().next()
    }

    /// The newest append.
    pub(crate) fn appended(&self) -> Ticket {
        self.appended
    }
}

impl Shard {
    /// Appends an event of `partition` to the log; `actions` are taken, in order, when it is durable and applied.
    pub(crate) fn append(&mut self, partition: Partition, event: Event, actions: Vec<Action>) {
        let log = &mut self.log;
        log.appended = Ticket(log.appended.0 + 1);
        let lsn = log.next_lsn(partition);
        log.lsns.insert(partition, lsn);
        let (epoch, timestamp_us) = (self.config.epoch, self.now.wall_us);
        let record = Record { partition, lsn, epoch, timestamp_us, event: event.clone() };
        let ticket = log.appended;
        self.output(Output::Append { ticket, record });
        self.push_pending(event, actions);
    }

    /// Takes an event that is not kept beyond the life of the process: it is as durable as it will get at once, unless it
    /// depends on an append that is not. Gives the append it waits for.
    pub(crate) fn append_unlogged(&mut self, depends_on: Ticket, event: Event, actions: Vec<Action>) -> Ticket {
        if depends_on > self.log.durable {
            self.push_pending(event, actions);
            return self.log.appended;
        }
        self.commit(self.log.durable, &event, actions);
        depends_on
    }

    fn push_pending(&mut self, event: Event, actions: Vec<Action>) {
        let ticket = self.log.appended;
        let bytes = ENTRY_BYTES + event.posting().map_or(0, |posting| posting.message.payload.len());
        self.log.pending_bytes += bytes;
        self.log.pending.push_back(Pending { ticket, event, bytes, appended_us: self.now.mono_us, actions });
    }

    /// Takes an action once everything appended so far is durable: at once if it is already.
    pub(crate) fn after_appends(&mut self, action: Action) {
        match self.log.pending.back_mut() {
            Some(pending) => pending.actions.push(action),
            None => self.act(action),
        }
    }

    pub(crate) fn durable(&mut self, ticket: Ticket) {
        while self.log.pending.front().is_some_and(|pending| pending.ticket <= ticket) {
            let Some(pending) = self.log.pending.pop_front() else { break };
            self.log.pending_bytes -= pending.bytes;
            self.log.durable = pending.ticket;
            self.sample(Stage::Commit, pending.appended_us);
            for action in &pending.actions {
                if let Action::AnswerWrite { origin, .. } = action {
                    self.span(origin.trace, "log.commit", pending.appended_us);
                }
            }
            self.commit(pending.ticket, &pending.event, pending.actions);
        }
        self.log.durable = self.log.durable.max(ticket);
        self.evict();
    }

    fn commit(&mut self, ticket: Ticket, event: &Event, actions: Vec<Action>) {
        self.apply(ticket, event);
        let traced = |action: &Action| match action {
            Action::AnswerWrite { origin, .. } => origin.trace,
            _ => 0,
        };
        let trace = actions.iter().map(traced).max().unwrap_or(0);
        for action in actions {
            self.act(action);
        }
        self.spread(event, trace);
    }

    /// Refuses what would have to be kept on disk while that is full or behind.
    pub(crate) fn storage_has_room(&self) -> Result<(), Reject> {
        if let Some(why) = &self.log.full {
            let text = format!("nothing can be written until there is room; reading goes on: {why}");
            return Err(Reject::new(RejectCode::StorageFull, text).retry_after_ms(RECONNECT_DELAY_MS));
        }
        if self.log.pending_bytes > APPENDS_PENDING_BYTES {
            let text = "the disk is behind with what was written; come back after the delay";
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(BEHIND_DELAY_MS));
        }
        Ok(())
    }

    /// Notes that a message of the log is at hand.
    pub(crate) fn keep_at_hand(&mut self, ticket: Ticket, channel: &ChannelKey, id: ChannelId, message: &Message) {
        let bytes = ENTRY_BYTES + message.payload.len();
        self.log.resident_bytes += bytes;
        let (channel, position) = (channel.clone(), message.position);
        self.log.resident.push_back(Resident { ticket, channel, id, position, bytes });
    }

    pub(crate) fn archived(&mut self, ticket: Ticket) {
        self.log.archived = self.log.archived.max(ticket);
        self.evict();
    }

    /// Lets go of the oldest messages at hand, as far as they are on disk, until the rest is within its bound.
    fn evict(&mut self) {
        let most = if self.pressure > 0 { RESIDENT_BYTES / PRESSED_SHARE } else { RESIDENT_BYTES };
        while self.log.resident_bytes > most
            && self.log.resident.front().is_some_and(|oldest| oldest.ticket <= self.log.archived)
        {
            let Some(oldest) = self.log.resident.pop_front() else { return };
            self.log.resident_bytes -= oldest.bytes;
            self.evict_from_channel(&oldest.channel, oldest.id, oldest.position);
        }
    }

    /// Takes in how short of memory the node is.
    pub(crate) fn press(&mut self, level: u8) {
        let rises = level > self.pressure;
        self.pressure = level;
        self.evict();
        if rises {
            self.sweep_documents();
        }
    }

    /// Reads the messages `from..to` of a channel from disk, or as many of them as one answer holds.
    pub(crate) fn read_disk(
        &mut self,
        purpose: Purpose,
        channel: ChannelKey,
        id: ChannelId,
        from: Position,
        to: Position,
    ) {
        self.counters.disk_reads += 1;
        let to = to.min(Position(from.0 + HISTORY_BATCH_MESSAGES as u64));
        let reading = Reading { purpose, channel, id, from, to };
        if self.log.reads.len() >= READS_MAX {
            self.log.reads_waiting.push_back(reading);
        } else {
            self.begin_read(reading);
        }
    }

    fn begin_read(&mut self, reading: Reading) {
        self.log.reads_made += 1;
        let read = ReadId(self.log.reads_made);
        let partition = self.partition(&reading.channel.tenant, reading.channel.channel.as_str());
        let (channel, from, to) = (reading.id, reading.from, reading.to);
        self.log.reads.insert(read, reading);
        self.output(Output::Read { read, partition, channel, from, to });
    }

    pub(crate) fn read_done(&mut self, read: ReadId, result: Result<Vec<Arc<Message>>, Reject>) {
        let Some(Reading { purpose, channel, id, from, to }) = self.log.reads.remove(&read) else { return };
        if let Some(reading) = self.log.reads_waiting.pop_front() {
            self.begin_read(reading);
        }
        if self.channel_id(&channel).is_none_or(|(now, _)| now != id) {
            // The channel was deleted meanwhile. Its readers were told; who asked for something is told now.
            match purpose {
                Purpose::Page { origin, .. } | Purpose::Search { origin, .. } => self.refuse(origin, deleted(&channel)),
                Purpose::Target { origin, principal, publish } => {
                    self.target_read(origin, &principal, *publish, Err(deleted(&channel)));
                }
                Purpose::Past { life } => self.past_piece(life, Err(deleted(&channel))),
                // Who waits for a document that is gone is told when it is.
                Purpose::History { .. } | Purpose::Conversation { .. } | Purpose::Document { .. } => {}
            }
            return;
        }
        if let Ok(messages) = &result {
            // What is missing at the beginning was let go of while the read was under way.
            let kept = messages.first().map_or(to, |message| message.position);
            if kept > from {
                self.let_go_before(&channel, kept);
            }
        }
        let result = result.map(|messages| self.shown(&channel, messages));
        match purpose {
            Purpose::History { core, reader } => {
                let first = self.first_of(&channel);
                self.tell_session(
                    core,
                    match result {
                        Ok(messages) => SessionMessage::History { reader, first, messages },
                        Err(reject) => SessionMessage::HistoryFailed { reader, reject },
                    },
                );
            }
            Purpose::Page { origin, limit } => match result {
                Ok(messages) => self.answer_page(origin, &channel, from, limit, &messages),
                Err(reject) => self.refuse(origin, reject),
            },
            Purpose::Conversation { principal, trace } => {
                // A model that sees less of the past is better than none.
                self.answer_in_channel(channel, &principal, trace, &result.unwrap_or_default());
            }
            Purpose::Search { origin, query, limit } => match result {
                Ok(messages) => {
                    let whole = messages.last().is_none_or(|last| last.position.next() == to);
                    // What did not fit in one answer of the disk is the newer part; it is looked at first, in halves.
                    if whole {
                        self.answer_search(origin, &channel, &query, from, limit, &messages);
                    } else {
                        let from = Position(from.0 + (to.0 - from.0) / 2);
                        self.read_disk(Purpose::Search { origin, query, limit }, channel, id, from, to);
                    }
                }
                Err(reject) => self.refuse(origin, reject),
            },
            Purpose::Target { origin, principal, publish } => self.target_read(origin, &principal, *publish, result),
            Purpose::Document { life } => self.document_piece(&channel, life, result),
            Purpose::Past { life } => self.past_piece(life, result),
        }
    }

    /// Messages as they may be shown: without the texts that were taken back.
    fn shown(&mut self, channel: &ChannelKey, messages: Vec<Arc<Message>>) -> Vec<Arc<Message>> {
        let Some(channel) = self.channel_mut(channel) else { return messages };
        messages.iter().map(|message| channel.shown(message)).collect()
    }

    /// Takes in what the log left behind of a partition.
    pub(crate) fn restore(&mut self, partition: Partition, state: PartitionState) {
        debug_assert!(!self.log.lsns.contains_key(&partition), "the past of a partition comes once, and first");
        self.log.lsns.insert(partition, state.last);
        self.restore_channels(partition, state.channels, state.dedupe);
        self.restore_users(state.users);
        for (id, state) in state.generations {
            self.restore_generation(id, state);
        }
    }

    pub(crate) fn answer_page(
        &mut self,
        origin: Origin,
        channel: &ChannelKey,
        from: Position,
        limit: usize,
        messages: &[Arc<Message>],
    ) {
        let (first, head) = (self.first_of(channel), self.head_of(channel));
        let kept: Vec<_> = messages.iter().filter(|message| message.position >= first).take(limit).collect();
        let next = kept.last().map_or(from.max(first), |message| message.position.next());
        let is_shown = |message: &&&Arc<Message>| message.kind != DeliveryKind::Snapshot;
        let deliveries = kept.iter().filter(is_shown).map(|message| message.payload.clone()).collect();
        self.answer(origin, ServerOp::Page { first, next, head, deliveries });
    }
}
