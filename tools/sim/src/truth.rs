//! What the log must hold: every record that was appended, and up to where it was made durable.
//!
//! After a recovery the recovered states must be those that the durable records leave behind, one applied after the other,
//! and perhaps a few more that were written and never answered. Nothing here was ever on a disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use thalweg_domain::fact::ChannelFact;
use thalweg_domain::partition::{ChannelState, PartitionState, first_kept};
use thalweg_domain::record::{Event, Message, Record};
use thalweg_journal::segment::Shelf;
use thalweg_protocol::ids::{ChannelId, CoreId, Lsn, Name, Partition, Position, Sequence, SessionId};
use thalweg_protocol::limits::{HISTORY_BATCH_BYTES, HISTORY_BATCH_MESSAGES};
use thalweg_protocol::op::DeliveryKind;
use thalweg_shard::Ticket;
use thalweg_workload::auditor::ChannelIndex;

use crate::chronicle::Chronicle;

/// Numbers of the auditor for channels that are deleted and made again begin here.
const LIVES_FROM: u32 = 1_000_000;

/// The log of a partition as it should be.
#[derive(Debug, Default)]
struct Log {
    /// What the records left behind that cannot be lost any more.
    state: PartitionState,
    /// Those after them.
    pending: VecDeque<Record>,
    durable: Lsn,
    /// All records up to this one are in segments.
    archived: Lsn,
}

type Life = (Partition, ChannelId);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    logs: BTreeMap<Partition, Log>,
    tickets: BTreeMap<CoreId, VecDeque<(Ticket, Partition, Lsn)>>,
    /// Those that are durable and not archived.
    unarchived: BTreeMap<CoreId, VecDeque<(Ticket, Partition, Lsn)>>,
    /// Messages of the channels that were not deleted, from the first on.
    messages: BTreeMap<Life, Vec<Arc<Message>>>,
    /// Below which position a merge may have dropped messages.
    floors: BTreeMap<Life, Position>,
    /// What was deleted, as it was before.
    deleted: BTreeMap<Life, ChannelState>,
    /// Deleted or about to be.
    doomed: BTreeSet<Life>,
    lives: BTreeMap<(SessionId, Sequence), Life>,
    /// How many messages each channel has, counted one by one.
    counts: BTreeMap<Life, u64>,
    /// The messages whose texts were taken back.
    redacted: BTreeMap<Life, BTreeSet<Position>>,
    indices: BTreeMap<Life, ChannelIndex>,
    /// What documents must read.
    pub(crate) chronicle: Chronicle,
}

impl Truth {
    /// A record was appended. Says what is wrong with that.
    pub(crate) fn append(&mut self, core: CoreId, ticket: Ticket, record: Record) -> Result<(), String> {
        let (partition, lsn) = (record.partition, record.lsn);
        self.chronicle.appended(&record);
        let log = self.logs.entry(partition).or_default();
        let newest = log.pending.back().map_or(log.state.last, |record| record.lsn);
        if lsn != newest.next() {
            return Err(format!("partition {partition}: record {lsn} follows {newest}"));
        }
        self.tickets.entry(core).or_default().push_back((ticket, partition, lsn));
        let mut wrong = None;
        if let Some(posting) = record.event.posting() {
            let life = (partition, posting.id);
            let message = &posting.message;
            if self.deleted.contains_key(&life) {
                wrong = Some(format!("partition {partition}: {} was deleted and is written to", posting.id));
            }
            let of_session = message.sequence != Sequence(0) && message.generation.is_none();
            if of_session && let Some(before) = self.lives.insert((message.session, message.sequence), life) {
                let who = format!("{} #{}", message.session, message.sequence);
                wrong = Some(format!("{who} was written to {before:?} and again to {life:?}"));
            }
            let count = self.counts.entry(life).or_default();
            *count += u64::from(message.kind == DeliveryKind::Message);
            // Of a document that was written as a whole, the number says in how many parts.
            let is_counted = message.kind != DeliveryKind::Snapshot;
            if is_counted && message.context.number != *count && wrong.is_none() {
                let (number, position) = (message.context.number, message.position);
                wrong = Some(format!("{position} of {life:?} is message {number}, and {count} were counted"));
            }
        }
        if let Event::ChannelChanged { id, facts, .. } = &record.event {
            for fact in facts {
                if let ChannelFact::Redacted { position } = fact {
                    self.redacted.entry((partition, *id)).or_default().insert(*position);
                }
            }
        }
        if let Event::ChannelDeleted { id, .. } = record.event {
            self.doomed.insert((partition, id));
        }
        log.pending.push_back(record);
        wrong.map_or(Ok(()), Err)
    }

    /// A core was told that everything up to this append is durable.
    pub(crate) fn durable(&mut self, core: CoreId, ticket: Ticket) {
        let Some(tickets) = self.tickets.get_mut(&core) else { return };
        let mut settled = BTreeMap::new();
        while let Some(&(of, partition, lsn)) = tickets.front().filter(|(of, ..)| *of <= ticket) {
            debug_assert!(of <= ticket);
            tickets.pop_front();
            settled.insert(partition, lsn);
            self.unarchived.entry(core).or_default().push_back((of, partition, lsn));
            if let Some(log) = self.logs.get_mut(&partition) {
                log.durable = lsn;
            }
        }
        for (partition, lsn) in settled {
            // A record that cannot be applied is told of when the node died.
            let _ = self.settle(partition, lsn);
        }
    }

    /// A core was told that everything up to this append is in segments.
    pub(crate) fn archived(&mut self, core: CoreId, ticket: Ticket) {
        let Some(tickets) = self.unarchived.get_mut(&core) else { return };
        while let Some(&(_, partition, lsn)) = tickets.front().filter(|(of, ..)| *of <= ticket) {
            tickets.pop_front();
            if let Some(log) = self.logs.get_mut(&partition) {
                log.archived = lsn;
            }
        }
    }

    /// Whether a write is in the log.
    pub(crate) fn is_written(&self, session: SessionId, sequence: Sequence) -> bool {
        self.lives.contains_key(&(session, sequence))
    }

    /// The messages and edits of a channel that hold a text and were not taken back. What is not durable yet is not counted.
    pub(crate) fn matches(&mut self, tenant: &Name, channel: &Name, query: &str) -> Vec<Position> {
        let durable: Vec<(Partition, Lsn)> = self.logs.iter().map(|(&p, log)| (p, log.durable)).collect();
        for (partition, lsn) in durable {
            // A record that cannot be applied was told of when it was appended.
            let _ = self.settle(partition, lsn);
        }
        let made = |state: &ChannelState| {
            state.made.as_ref().is_some_and(|(key, _)| key.tenant == *tenant && key.channel == *channel)
        };
        let mut positions = Vec::new();
        for (&partition, log) in &self.logs {
            for (&id, state) in log.state.channels.iter().filter(|(_, state)| made(state)) {
                let messages = self.messages.get(&(partition, id)).into_iter().flatten();
                let said = messages.filter(|m| matches!(m.kind, DeliveryKind::Message | DeliveryKind::Edit));
                let found = said.filter(|m| String::from_utf8_lossy(&m.body).to_lowercase().contains(query));
                let shown = found.filter(|message| !is_taken_back(message, &state.facts.redacted));
                positions.extend(shown.map(|message| message.position));
            }
        }
        positions
    }

    /// Which life of a channel that is deleted and made again a write went to, as the auditor numbers them.
    pub(crate) fn life_of(&mut self, session: SessionId, sequence: Sequence) -> Option<ChannelIndex> {
        let life = *self.lives.get(&(session, sequence))?;
        let next = ChannelIndex(LIVES_FROM + self.indices.len() as u32);
        Some(*self.indices.entry(life).or_insert(next))
    }

    /// Moves the records up to `lsn` to those that cannot be lost.
    fn settle(&mut self, partition: Partition, lsn: Lsn) -> Result<(), String> {
        let Some(log) = self.logs.get_mut(&partition) else { return Ok(()) };
        while log.pending.front().is_some_and(|record| record.lsn <= lsn) {
            let Some(record) = log.pending.pop_front() else { break };
            if let Event::ChannelDeleted { id, .. } = record.event {
                let before = log.state.channels.get(&id).cloned().unwrap_or_default();
                self.deleted.insert((partition, id), before);
                self.messages.remove(&(partition, id));
            }
            log.state.apply(&record).map_err(|gap| format!("partition {partition}: {gap}"))?;
            self.chronicle.record(&record);
            if let Some(posting) = record.event.posting() {
                let messages = self.messages.entry((partition, posting.id)).or_default();
                if messages.len() as u64 + 1 != posting.message.position.0 {
                    return Err(format!("{}: a message at {}", posting.id, posting.message.position));
                }
                messages.push(Arc::clone(&posting.message));
            }
        }
        Ok(())
    }

    /// The node is gone, and with it what it had not written.
    pub(crate) fn crash(&mut self) {
        self.chronicle.crashed();
        self.tickets.clear();
        self.unarchived.clear();
    }

    /// Compares what was recovered with what should have been.
    pub(crate) fn compare(&mut self, recovered: &BTreeMap<Partition, PartitionState>) -> Result<(), String> {
        for (partition, log) in &self.logs {
            let last = recovered.get(partition).map_or(Lsn(0), |state| state.last);
            let newest = log.pending.back().map_or(log.state.last, |record| record.lsn);
            if last < log.durable.max(log.state.last) || last > newest {
                let durable = log.durable;
                return Err(format!("partition {partition}: recovered to {last}, durable to {durable} of {newest}"));
            }
        }
        for (&partition, state) in recovered {
            self.settle(partition, state.last)?;
            let Some(log) = self.logs.get_mut(&partition) else {
                return Err(format!("partition {partition} was recovered and never written"));
            };
            (log.durable, log.archived) = (state.last, state.last);
            for record in std::mem::take(&mut log.pending) {
                if let Some(posting) = record.event.posting() {
                    self.lives.remove(&(posting.message.session, posting.message.sequence));
                }
            }
            differ(partition, &log.state, state, &self.floors)?;
        }
        // Counted anew: what was not durable is gone.
        self.counts.clear();
        for (&life, messages) in &self.messages {
            let count = messages.iter().filter(|message| message.kind == DeliveryKind::Message).count();
            self.counts.insert(life, count as u64);
        }
        // A partition of which nothing was recovered.
        for (partition, log) in &mut self.logs {
            if !recovered.contains_key(partition) {
                for record in std::mem::take(&mut log.pending) {
                    if let Some(posting) = record.event.posting() {
                        self.lives.remove(&(posting.message.session, posting.message.sequence));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads all messages back that must be there. Gives how many.
    pub(crate) fn read_back(&self, shelf: &Shelf) -> Result<u64, String> {
        let mut read = 0;
        for (&(partition, channel), messages) in &self.messages {
            let mut from = self.floors.get(&(partition, channel)).copied().unwrap_or(Position(1));
            let to = Position(messages.len() as u64 + 1);
            while from < to {
                let found = shelf
                    .read(partition, channel, from, to, HISTORY_BATCH_MESSAGES, HISTORY_BATCH_BYTES)
                    .map_err(|error| format!("channel {channel} from {from}: {error}"))?;
                self.check(partition, channel, from, to, &found)?;
                if found.is_empty() {
                    return Err(format!("channel {channel} from {from}: nothing came"));
                }
                from = Position(from.0 + found.len() as u64);
                read += found.len() as u64;
            }
        }
        Ok(read)
    }

    /// Whether messages that were read back are those that were written.
    pub(crate) fn check(
        &self,
        partition: Partition,
        channel: ChannelId,
        from: Position,
        to: Position,
        found: &[Arc<Message>],
    ) -> Result<(), String> {
        let place = format!("channel {channel} of partition {partition}, read {from} to {to}");
        // What is below a floor may have been dropped since it was asked for.
        let floor = self.floors.get(&(partition, channel)).copied().unwrap_or(Position(1));
        let begins = found.first().map_or(to, |message| message.position);
        if begins > from && begins > floor.min(to) {
            return Err(format!("{place}: {} came, from {begins} on", found.len()));
        }
        let from = begins.max(from);
        let settled = self.messages.get(&(partition, channel));
        for (n, message) in (from.0..).zip(found) {
            let of_settled = settled.and_then(|messages| messages.get(n as usize - 1));
            let of_pending = || {
                let log = self.logs.get(&partition)?;
                let postings = log.pending.iter().filter_map(|record| record.event.posting());
                postings.into_iter().find(|p| p.id == channel && p.message.position == Position(n)).map(|p| &p.message)
            };
            let redacted = self.redacted.get(&(partition, channel));
            let may_be_redacted = |written: &Message| redacted.is_some_and(|all| is_taken_back(written, all));
            match of_settled.or_else(of_pending) {
                Some(written) if written == message && message.position == Position(n) => {}
                Some(written) if may_be_redacted(written) && **message == written.redacted() => {}
                Some(_) => return Err(format!("{place}: another message came as {n}: {}", message.position)),
                // Of a deleted channel whatever comes is thrown away.
                None if self.doomed.contains(&(partition, channel)) => {}
                None => return Err(format!("{place}: {n} was never written")),
            }
        }
        Ok(())
    }

    /// What a merge at `now_us` may drop: for each channel the first position that is kept, as far as segments know.
    pub(crate) fn raise_floors(&mut self, now_us: u64) -> Result<BTreeMap<Life, Position>, String> {
        let archived: Vec<(Partition, Lsn)> = self.logs.iter().map(|(&p, log)| (p, log.archived)).collect();
        for (partition, lsn) in archived {
            self.settle(partition, lsn)?;
        }
        let mut floors = BTreeMap::new();
        for (&partition, log) in &self.logs {
            for (&id, state) in &log.state.channels {
                let Some((_, settings)) = &state.made else { continue };
                let kept = first_kept(settings, state.head, state.bytes, state.marks.iter(), now_us);
                let floor = self.floors.entry((partition, id)).or_insert(Position(1));
                *floor = kept.max(*floor);
                floors.insert((partition, id), *floor);
            }
        }
        Ok(floors)
    }

    /// Channels that were deleted and not made again, as they were before.
    pub(crate) fn deleted_states(&self) -> Vec<(Life, ChannelState)> {
        let key = |state: &ChannelState| state.made.as_ref().map(|(key, _)| key.clone());
        let channels = self.logs.values().flat_map(|log| log.state.channels.values());
        let alive: Vec<_> = channels.filter(|state| !state.deleted).filter_map(key).collect();
        let gone = self.deleted.iter().filter(|(_, state)| key(state).is_some_and(|key| !alive.contains(&key)));
        gone.map(|(&life, state)| (life, state.clone())).collect()
    }
}

/// Whether the text of a message was taken back, or of the one it gives another text to.
fn is_taken_back(message: &Message, redacted: &BTreeSet<Position>) -> bool {
    let is_edit = message.kind == DeliveryKind::Edit && redacted.contains(&message.context.target);
    is_edit || redacted.contains(&message.position)
}

/// Channels without what no longer matters: that texts were taken back which are no longer kept.
fn kept(
    partition: Partition,
    channels: &BTreeMap<ChannelId, ChannelState>,
    floors: &BTreeMap<Life, Position>,
) -> BTreeMap<ChannelId, ChannelState> {
    let mut channels = channels.clone();
    for (&id, channel) in &mut channels {
        if let Some(floor) = floors.get(&(partition, id)) {
            channel.facts.redacted = channel.facts.redacted.split_off(floor);
        }
    }
    channels
}

/// What is different between two states that should be alike.
fn differ(
    partition: Partition,
    written: &PartitionState,
    recovered: &PartitionState,
    floors: &BTreeMap<Life, Position>,
) -> Result<(), String> {
    let place = format!("partition {partition} to {}", recovered.last);
    if (written.first, written.last) != (recovered.first, recovered.last) {
        return Err(format!("{place}: begins at {} instead of {}", recovered.first, written.first));
    }
    if kept(partition, &written.channels, floors) != kept(partition, &recovered.channels, floors) {
        return Err(format!("{place}: channels {:?} instead of {:?}", recovered.channels, written.channels));
    }
    if written.users != recovered.users {
        return Err(format!("{place}: users {:?} instead of {:?}", recovered.users, written.users));
    }
    if written.dedupe != recovered.dedupe {
        return Err(format!("{place}: other commands are remembered than were carried out"));
    }
    for (id, state) in &recovered.generations {
        if written.generations.get(id) != Some(state) {
            return Err(format!("{place}: {id} is {state:?} instead of {:?}", written.generations.get(id)));
        }
    }
    for (id, state) in &written.generations {
        // Those that ended long ago are forgotten.
        if !recovered.generations.contains_key(id) && state.ending.is_none() && !state.deleted {
            return Err(format!("{place}: {id} is forgotten"));
        }
    }
    Ok(())
}
