//! What the records of a piece of a partition's log leave behind: the state that is kept beside them, so that recovery does
//! not read them all again.
//!
//! A state may begin anywhere in the log. It then knows nothing of what was before, and says only what its own records did.
//! The states of neighbouring pieces [`merge`](PartitionState::merge) into the state of both: a snapshot is a merge of the
//! states of all pieces, and applying the records one by one gives the same.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use thalweg_protocol::ids::{ChannelId, ChannelKey, GenerationId, Lsn, Name, Position};
use thalweg_protocol::limits::{GENERATION_KEEP_MS, HISTORY_MARK_MESSAGES};
use thalweg_protocol::op::{DeliveryKind, Durability};

use crate::dedupe::{Dedupe, Outcome, Writer};
use crate::fact::{ChannelFact, ChannelFacts, Mentions, UserState};
use crate::generation::{Ending, Token};
use crate::record::{ChannelSettings, Event, GenerationRequest, Posting, Record};

/// Marks of one channel that are kept although they lie behind what is kept of it.
const MARKS_MAX: usize = 1_024;

/// Records that do not follow each other: some are missing between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {found} follows record {}; those between are missing", expected.0 - 1)]
pub struct Gap {
    /// The place that the next record should have.
    pub expected: Lsn,
    /// The place that it has.
    pub found: Lsn,
}

/// What a piece of a partition's log leaves behind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PartitionState {
    /// The first record of the piece; 0 if there is none.
    pub first: Lsn,
    /// The last record of the piece; 0 if there is none.
    pub last: Lsn,
    /// The channels that were made, written to or deleted.
    pub channels: BTreeMap<ChannelId, ChannelState>,
    /// The commands that were carried out.
    pub dedupe: Dedupe,
    /// The generations that were begun, continued or ended.
    pub generations: BTreeMap<GenerationId, GenerationState>,
    /// The users something was said of, by tenant and name.
    pub users: BTreeMap<(Name, Name), UserState>,
}

/// What became of a channel in a piece of its partition's log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelState {
    /// Its name and settings, if the piece saw it made.
    pub made: Option<(ChannelKey, ChannelSettings)>,
    /// Where the newest message stands; 0 if the piece has none.
    pub head: Position,
    /// Bytes of the bodies of all messages of the piece.
    pub bytes: u64,
    /// Measures along the way, at every position that is divisible by [`HISTORY_MARK_MESSAGES`].
    pub marks: Vec<Mark>,
    /// Whether it was deleted. What a piece before this one has of it is dead.
    pub deleted: bool,
    /// How many of its messages people and models wrote as such, in the piece.
    pub messages: u64,
    /// Where people were mentioned in them.
    pub mentioned: BTreeMap<Name, Mentions>,
    /// When the newest message was accepted, in microseconds since 1970.
    pub active_us: u64,
    /// What the piece says of it.
    pub facts: ChannelFacts,
}

/// How far a channel had come at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The position.
    pub position: Position,
    /// Bytes of all bodies up to it and with it, counted from where the counting began.
    pub bytes: u64,
    /// When its message was accepted, in microseconds since 1970.
    pub timestamp_us: u64,
}

/// What became of a generation in a piece of its partition's log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationState {
    /// What was asked, if the piece saw it begin.
    pub request: Option<Arc<GenerationRequest>>,
    /// Index of the first token of the piece.
    pub index: u32,
    /// The tokens of the piece.
    pub tokens: Vec<Token>,
    /// Their text.
    pub text: Vec<u8>,
    /// How and when (microseconds since 1970) it ended, if it did.
    pub ending: Option<(Ending, u64)>,
    /// Whether it was deleted.
    pub deleted: bool,
}

impl PartitionState {
    /// Takes the next record in.
    ///
    /// # Errors
    /// If records between the last and this one are missing. The state is as before.
    pub fn apply(&mut self, record: &Record) -> Result<(), Gap> {
        if self.last != Lsn(0) && record.lsn != self.last.next() {
            return Err(Gap { expected: self.last.next(), found: record.lsn });
        }
        if self.first == Lsn(0) {
            self.first = record.lsn;
        }
        self.last = record.lsn;
        match &record.event {
            Event::ChannelCreated { channel, settings, facts } => {
                let mut state = ChannelState { made: Some((channel.clone(), *settings)), ..ChannelState::default() };
                facts.iter().for_each(|fact| state.facts.set(fact));
                self.channels.insert(ChannelId(record.lsn.0), state);
            }
            Event::ChannelChanged { id, facts, posting, .. } => {
                self.change_channel(*id, facts);
                if let Some(posting) = posting.as_ref().filter(|posting| posting.message.is_commanded()) {
                    self.remember(posting, record.lsn);
                }
            }
            Event::UserChanged { tenant, user, facts } => {
                let mut state = UserState::default();
                facts.iter().for_each(|fact| state.set(fact));
                self.add_to_user((tenant.clone(), user.clone()), state);
            }
            Event::ChannelDeleted { id, .. } => self.delete_channel(*id),
            // An edit of a document may be repeated at will, so nobody asks what became of it.
            Event::Published(posting) if posting.message.is_commanded() => self.remember(posting, record.lsn),
            Event::Published(_) => {}
            Event::GenerationStarted { generation, request, .. } => {
                let state = GenerationState { request: Some(Arc::clone(request)), ..GenerationState::default() };
                self.generations.insert(*generation, state);
            }
            Event::GenerationTokens { generation, index, tokens, text, .. } => {
                let piece = GenerationState {
                    index: *index,
                    tokens: tokens.clone(),
                    text: text.to_vec(),
                    ..GenerationState::default()
                };
                self.add_to_generation(*generation, piece);
            }
            Event::GenerationFinished { generation, ending, .. } => {
                let ending = Some((ending.clone(), record.timestamp_us));
                let index = self.generations.get(generation).map_or(0, |state| state.index + state.tokens.len() as u32);
                self.add_to_generation(*generation, GenerationState { index, ending, ..GenerationState::default() });
            }
            Event::GenerationDeleted { generation } => {
                let piece = GenerationState { deleted: true, ..GenerationState::default() };
                self.add_to_generation(*generation, piece);
            }
        }
        if let Some(posting) = record.event.posting() {
            self.post(posting);
        }
        Ok(())
    }

    /// Takes in what the next piece of the same log left behind.
    ///
    /// # Errors
    /// If there is a piece missing between the two. The state is as before.
    pub fn merge(&mut self, newer: Self) -> Result<(), Gap> {
        if newer.first == Lsn(0) {
            return Ok(());
        }
        if self.last != Lsn(0) && newer.first != self.last.next() {
            return Err(Gap { expected: self.last.next(), found: newer.first });
        }
        if self.first == Lsn(0) {
            self.first = newer.first;
        }
        self.last = newer.last;
        for (id, state) in newer.channels {
            self.add_to_channel(id, state);
        }
        for (id, state) in newer.generations {
            self.add_to_generation(id, state);
        }
        for (user, state) in newer.users {
            self.add_to_user(user, state);
        }
        self.dedupe.merge(newer.dedupe);
        Ok(())
    }

    /// Drops what time has made useless: measures of channels that are far behind what is kept, and the generations that
    /// ended long enough ago to be forgotten. Of those whose beginning is not in this piece the
    /// end stays known, so that the beginning is not taken for one that goes on.
    pub fn expire(&mut self, now_us: u64) {
        self.channels.values_mut().for_each(|channel| channel.expire(now_us));
        let long_ago = now_us.saturating_sub(GENERATION_KEEP_MS * 1_000);
        self.generations.retain(|_, state| {
            let expired = state.ending.as_ref().is_some_and(|(_, at)| *at < long_ago);
            if expired || state.deleted {
                state.tokens = Vec::new();
                state.text = Vec::new();
            }
            !((expired || state.deleted) && state.request.is_some())
        });
    }

    fn remember(&mut self, posting: &Posting, lsn: Lsn) {
        let Posting { channel, message, .. } = posting;
        let writer = Writer { tenant: channel.tenant.clone(), session: message.session };
        let outcome = Outcome { position: message.position, timestamp_us: message.timestamp_us };
        self.dedupe.remember(writer, message.sequence, outcome, lsn);
    }

    fn post(&mut self, posting: &Posting) {
        let state = self.channels.entry(posting.id).or_default();
        let message = &posting.message;
        state.head = message.position;
        state.bytes += message.body.len() as u64;
        state.active_us = state.active_us.max(message.timestamp_us);
        state.messages += u64::from(message.kind == DeliveryKind::Message);
        for user in &message.context.mentions {
            state.mentioned.entry(user.clone()).or_default().push(message.position);
        }
        if message.position.0.is_multiple_of(HISTORY_MARK_MESSAGES) {
            let (position, bytes, timestamp_us) = (message.position, state.bytes, message.timestamp_us);
            state.marks.push(Mark { position, bytes, timestamp_us });
        }
    }

    fn change_channel(&mut self, id: ChannelId, facts: &[ChannelFact]) {
        let state = self.channels.entry(id).or_default();
        facts.iter().for_each(|fact| state.facts.set(fact));
        if state.made.is_some() {
            state.facts.forget_lost();
        }
    }

    fn add_to_user(&mut self, user: (Name, Name), newer: UserState) {
        // A piece from the beginning of the log need not remember that something older does not count.
        let from_beginning = self.first == Lsn(1);
        let state = self.users.entry(user.clone()).or_default();
        state.merge(newer);
        state.forgotten &= !from_beginning;
        if state.is_empty() && !state.forgotten {
            self.users.remove(&user);
        }
    }

    fn delete_channel(&mut self, id: ChannelId) {
        self.add_to_channel(id, ChannelState { deleted: true, ..ChannelState::default() });
    }

    fn add_to_channel(&mut self, id: ChannelId, newer: ChannelState) {
        match self.channels.entry(id) {
            // All there ever was of it is in this piece, so nothing needs to remember that it is gone.
            Entry::Occupied(older) if newer.deleted && older.get().made.is_some() => {
                older.remove();
            }
            Entry::Occupied(older) if newer.deleted => *older.into_mut() = newer,
            Entry::Occupied(mut older) => older.get_mut().add(newer),
            Entry::Vacant(place) => {
                place.insert(newer);
            }
        }
    }

    fn add_to_generation(&mut self, id: GenerationId, newer: GenerationState) {
        match self.generations.entry(id) {
            Entry::Occupied(older) if newer.deleted && older.get().request.is_some() => {
                older.remove();
            }
            Entry::Occupied(mut older) => older.get_mut().add(newer),
            Entry::Vacant(place) => {
                place.insert(newer);
            }
        }
    }
}

impl ChannelState {
    fn expire(&mut self, now_us: u64) {
        let Some((_, settings)) = &self.made else { return };
        if self.marks.len() <= MARKS_MAX && self.facts.redacted.is_empty() {
            return;
        }
        let first = first_kept(settings, self.head, self.bytes, self.marks.iter(), now_us);
        self.facts.redacted = self.facts.redacted.split_off(&first);
        if self.marks.len() > MARKS_MAX {
            // The last that is spent says where what is kept begins.
            let spent = self.marks.partition_point(|mark| mark.position < first).saturating_sub(1);
            self.marks.drain(..spent);
        }
    }

    fn add(&mut self, newer: Self) {
        let before = self.bytes;
        self.head = self.head.max(newer.head);
        self.bytes += newer.bytes;
        self.marks.extend(newer.marks.into_iter().map(|mark| Mark { bytes: mark.bytes + before, ..mark }));
        self.messages += newer.messages;
        self.active_us = self.active_us.max(newer.active_us);
        for (user, mentions) in newer.mentioned {
            self.mentioned.entry(user).or_default().merge(&mentions);
        }
        self.facts.merge(newer.facts);
        if self.made.is_some() {
            self.facts.forget_lost();
        }
    }
}

impl GenerationState {
    fn add(&mut self, newer: Self) {
        if self.tokens.is_empty() && self.request.is_none() {
            self.index = newer.index;
        }
        self.tokens.extend(newer.tokens);
        self.text.extend(newer.text);
        self.deleted |= newer.deleted;
        self.ending = newer.ending.or(self.ending.take());
        if let Some(request) = self.request.as_mut().filter(|_| self.ending.is_some())
            && !request.messages.is_empty()
        {
            // Nothing is computed any more, so nobody needs the prompt.
            Arc::make_mut(request).messages = Vec::new();
        }
    }
}

/// The oldest position that a channel on disk still keeps, if `bytes` were written up to `head` and `marks` measured along
/// the way. What goes by bytes or age goes in steps of [`HISTORY_MARK_MESSAGES`]; what was asked for is always kept.
pub fn first_kept<'a>(
    settings: &ChannelSettings,
    head: Position,
    bytes: u64,
    marks: impl DoubleEndedIterator<Item = &'a Mark>,
    now_us: u64,
) -> Position {
    let by_count = (head.0 + 1).saturating_sub(settings.history_messages.into()).max(1);
    let oldest_us = match settings.history_age_us {
        0 => 0,
        age => now_us.saturating_sub(age),
    };
    let spent = |mark: &&Mark| bytes - mark.bytes >= settings.history_bytes || mark.timestamp_us < oldest_us;
    let newest_spent = marks.rev().find(spent).map_or(0, |mark| mark.position.0);
    // The newest message stays, whatever its size and age.
    Position(by_count.max(newest_spent + 1).min(head.0.max(1)))
}

/// Whether a channel's messages are in the log at all.
pub fn is_logged(settings: &ChannelSettings) -> bool {
    settings.durability != Durability::Memory
}

#[cfg(test)]
mod tests;
