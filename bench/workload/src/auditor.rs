//! The auditor: says which promises a run broke, from nothing but what clients saw.
//!
//! The promises, each with its [`Violation`]s:
//!
//! - what was acknowledged is read by every reader that did not say it missed it, and did not write it itself;
//! - nobody is given a message twice, or after a later one, or one that nobody sent, or one that was refused;
//! - a position holds one message, the same for everybody, and a write has one position, however often it was repeated;
//! - a hole in what a reader got was announced to it, or holds its own session's writes: nothing else;
//! - a session does not hear its own writes;
//! - the tokens of a generation come without a gap or an overlap, and add up to what its end says; they fall back only when
//!   the watcher came back and was told how far.
//!
//! A channel that loses its messages with its node (its durability is `memory`), or that was deleted and made again, begins
//! anew: it gets a new [`ChannelIndex`], and so do its writes that were not answered, by [`Event::Resent`]. Its readers end.
//!
//! What people did beside writing, and what they were shown of it, is judged by [`people`].
//!
//! Bodies must be unique within a channel, as those of [`crate::behaviour::Stamp`] are: the auditor recognises a write by
//! its body, even if its acknowledgement was lost with a connection.

pub mod people;
mod readers;
mod violation;

use std::collections::BTreeMap;

use thalweg_protocol::ids::{Position, Sequence, SessionId};

use readers::Reader;
pub use violation::Violation;

/// Violations that are kept; further ones are only counted, so that a broken run does not fill the memory.
pub const VIOLATIONS_MAX: usize = 1_000;

/// The caller's number for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelIndex(pub u32);

/// The caller's number for a subscription, unique within a run: every new subscription gets a new one. One that an SDK
/// carried over a reconnect keeps its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// The caller's number for somebody who watches a generation, unique within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// A message, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyHash(pub u64);

impl BodyHash {
    /// The hash of a body: FNV-1a with 64 bits, finished so that short bodies differ in all bits. Not cryptographic.
    pub fn of(body: &[u8]) -> Self {
        let hash =
            body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Self((hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// One thing that a client did or saw, in the order in which that client did and saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session sent a write for the first time. Repetitions are not reported.
    Sent {
        /// Who.
        session: SessionId,
        /// Its number for the write.
        sequence: Sequence,
        /// Where to.
        channel: ChannelIndex,
        /// What.
        body: BodyHash,
    },
    /// A write was acknowledged.
    Acked {
        /// Who had sent it.
        session: SessionId,
        /// Its number for the write.
        sequence: Sequence,
        /// Where it stands in its channel.
        position: Position,
    },
    /// A write was refused for good: it must never be read.
    Refused {
        /// Who had sent it.
        session: SessionId,
        /// Its number for the write.
        sequence: Sequence,
    },
    /// A write that was not answered may now stand in another channel of the same name than it was sent to at first.
    Resent {
        /// Who had sent it.
        session: SessionId,
        /// Its number for the write.
        sequence: Sequence,
        /// What the name means now.
        channel: ChannelIndex,
    },
    /// A message was read from a channel's history, without a subscription.
    Read {
        /// What was read.
        channel: ChannelIndex,
        /// Where the message stands.
        position: Position,
        /// What it is.
        body: BodyHash,
    },
    /// A message was read from a channel's history that is there without its text, which was taken back.
    ReadRedacted {
        /// What was read.
        channel: ChannelIndex,
        /// Where the message stands.
        position: Position,
    },
    /// A subscription was accepted.
    Subscribed {
        /// The subscription.
        reader: ReaderId,
        /// Whose it is.
        session: SessionId,
        /// What is read.
        channel: ChannelIndex,
        /// The first position that will be delivered.
        next: Position,
    },
    /// A message of a person was delivered.
    Delivered {
        /// To which subscription.
        reader: ReaderId,
        /// Where it stands.
        position: Position,
        /// What.
        body: BodyHash,
    },
    /// A record of a model, or about one, was delivered: it has a position like any other, but no session sent it.
    DeliveredGenerated {
        /// To which subscription.
        reader: ReaderId,
        /// Where it stands.
        position: Position,
        /// What.
        body: BodyHash,
    },
    /// A message was delivered without its text, which was taken back.
    DeliveredRedacted {
        /// To which subscription.
        reader: ReaderId,
        /// Where it stands.
        position: Position,
    },
    /// A reader was told that it will not get these positions.
    Missed {
        /// Which subscription.
        reader: ReaderId,
        /// The first of them.
        from: Position,
        /// The last of them.
        to: Position,
    },
    /// A subscription ended, by whoever's will: nothing more is expected of it, and nothing more may come.
    Ended {
        /// Which subscription.
        reader: ReaderId,
    },
    /// Somebody watches a generation from this token on.
    Watched {
        /// The watcher.
        watch: WatchId,
        /// Index of the first token it will get.
        from: u32,
    },
    /// A watch was taken up again over another connection: the next thing it hears may be that it is rewound.
    Rewatched {
        /// The watcher.
        watch: WatchId,
    },
    /// A watcher was told that the tokens from this one on come again.
    Rewound {
        /// The watcher.
        watch: WatchId,
        /// Index of the next token it will get.
        to: u32,
    },
    /// Tokens arrived.
    Tokens {
        /// At which watcher.
        watch: WatchId,
        /// Index of the first of them.
        index: u32,
        /// How many.
        count: u32,
    },
    /// A generation ended as its watcher was told.
    Finished {
        /// The watcher.
        watch: WatchId,
        /// Tokens of the generation in all, as its end says.
        tokens: u32,
    },
}

/// What the auditor knows about a write.
#[derive(Debug, Clone)]
struct Write {
    channel: ChannelIndex,
    body: BodyHash,
    acked: Option<Position>,
    refused: bool,
}

/// What the auditor knows about a position of a channel.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The write that stands there, by acknowledgement or by its body.
    author: Option<(SessionId, Sequence)>,
    body: Option<BodyHash>,
    acked: bool,
}

#[derive(Debug, Default)]
struct Channel {
    slots: BTreeMap<Position, Slot>,
    /// Which write has this body.
    bodies: BTreeMap<BodyHash, (SessionId, Sequence)>,
    /// Where this body was seen first.
    seen: BTreeMap<BodyHash, Position>,
}

#[derive(Debug)]
struct Watch {
    next: u32,
    finished: bool,
    /// It was taken up again, and nothing came since.
    rewindable: bool,
}

/// Takes [`Event`]s by [`record`](Self::record), in the order of each client, and judges at the end by
/// [`finish`](Self::finish). What can be seen to be wrong at once is noted at once, see [`violations`](Self::violations).
#[derive(Debug, Default)]
pub struct Auditor {
    writes: BTreeMap<(SessionId, Sequence), Write>,
    channels: BTreeMap<ChannelIndex, Channel>,
    readers: BTreeMap<ReaderId, Reader>,
    watches: BTreeMap<WatchId, Watch>,
    violations: Vec<Violation>,
    violations_count: u64,
}

impl Auditor {
    /// An auditor of a run that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event.
    pub fn record(&mut self, event: Event) {
        match event {
            Event::Sent { session, sequence, channel, body } => self.sent((session, sequence), channel, body),
            Event::Acked { session, sequence, position } => self.acked((session, sequence), position),
            Event::Refused { session, sequence } => self.refused((session, sequence)),
            Event::Resent { session, sequence, channel } => self.resent((session, sequence), channel),
            Event::Read { channel, position, body } => self.read(channel, position, body),
            Event::Subscribed { reader, session, channel, next } => {
                self.readers.insert(reader, Reader::new(session, channel, next));
            }
            Event::Delivered { reader, position, body } => self.delivered(reader, position, body, true),
            Event::DeliveredGenerated { reader, position, body } => self.delivered(reader, position, body, false),
            Event::DeliveredRedacted { reader, position } => self.delivered_redacted(reader, position),
            Event::ReadRedacted { channel, position } => {
                self.channels.entry(channel).or_default().slots.entry(position).or_default();
            }
            Event::Missed { reader, from, to } => self.missed(reader, from, to),
            Event::Ended { reader } => match self.readers.get_mut(&reader) {
                Some(state) => state.open = false,
                None => self.note(Violation::ReaderUnknown { reader }),
            },
            Event::Watched { watch, from } => {
                self.watches.insert(watch, Watch { next: from, finished: false, rewindable: true });
            }
            Event::Rewatched { watch } => match self.watches.get_mut(&watch) {
                Some(state) => state.rewindable = true,
                None => self.note(Violation::WatchUnknown { watch }),
            },
            Event::Rewound { watch, to } => self.rewound(watch, to),
            Event::Tokens { watch, index, count } => self.tokens(watch, index, count),
            Event::Finished { watch, tokens } => self.finished(watch, tokens),
        }
    }

    /// What was seen to be wrong so far; at most [`VIOLATIONS_MAX`].
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Judges the run: every violation found, at most [`VIOLATIONS_MAX`], and how many there were in all.
    ///
    /// `settled`: every open subscription had time and credit to get all that was acknowledged, and every generation to
    /// end. Without it, what has not arrived yet is not held against the system.
    pub fn finish(mut self, settled: bool) -> (Vec<Violation>, u64) {
        for (id, reader) in std::mem::take(&mut self.readers) {
            let unacked = self.unacked_of(reader.session, reader.channel);
            let empty = Channel::default();
            let channel = self.channels.get(&reader.channel).unwrap_or(&empty);
            for violation in reader.judge(id, channel, unacked, settled) {
                self.note(violation);
            }
        }
        if settled {
            let open: Vec<_> = self.watches.iter().filter(|(_, w)| !w.finished).map(|(&id, w)| (id, w.next)).collect();
            for (watch, got) in open {
                self.note(Violation::GenerationUnfinished { watch, got });
            }
        }
        (self.violations, self.violations_count)
    }

    fn note(&mut self, violation: Violation) {
        self.violations_count += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(violation);
        }
    }

    /// Writes of a session to a channel that may stand at a position of which nobody was told.
    fn unacked_of(&self, session: SessionId, channel: ChannelIndex) -> u64 {
        let of_session = (session, Sequence(0))..=(session, Sequence(u64::MAX));
        let open = |write: &&Write| write.channel == channel && write.acked.is_none() && !write.refused;
        self.writes.range(of_session).map(|(_, write)| write).filter(open).count() as u64
    }

    fn sent(&mut self, write: (SessionId, Sequence), channel: ChannelIndex, body: BodyHash) {
        let (session, sequence) = write;
        if self.writes.contains_key(&write) {
            return self.note(Violation::SequenceReused { session, sequence });
        }
        self.writes.insert(write, Write { channel, body, acked: None, refused: false });
        self.channels.entry(channel).or_default().bodies.insert(body, write);
    }

    fn resent(&mut self, write: (SessionId, Sequence), channel: ChannelIndex) {
        let (session, sequence) = write;
        let Some(state) = self.writes.get_mut(&write) else {
            return self.note(Violation::ResentUnsent { session, sequence });
        };
        state.channel = channel;
        let body = state.body;
        self.channels.entry(channel).or_default().bodies.insert(body, write);
    }

    fn read(&mut self, index: ChannelIndex, position: Position, body: BodyHash) {
        let channel = self.channels.entry(index).or_default();
        // A model's messages may be alike; only what stands at the position tells them apart.
        let slot = channel.slots.entry(position).or_default();
        let differs = slot.body.is_some_and(|seen| seen != body);
        slot.body.get_or_insert(body);
        if let Some(&author) = channel.bodies.get(&body) {
            slot.author.get_or_insert(author);
        }
        if differs {
            self.note(Violation::BodyDiffers { channel: index, position });
        }
    }

    fn acked(&mut self, write: (SessionId, Sequence), position: Position) {
        let (session, sequence) = write;
        let Some(state) = self.writes.get_mut(&write) else {
            return self.note(Violation::AckUnsent { session, sequence, position });
        };
        if let Some(first) = state.acked.filter(|&first| first != position) {
            return self.note(Violation::AckMoved { session, sequence, first, second: position });
        }
        state.acked = Some(position);
        let (index, body) = (state.channel, state.body);
        let channel = self.channels.entry(index).or_default();
        let slot = channel.slots.entry(position).or_default();
        slot.acked = true;
        let other = slot.author.filter(|&author| author != write);
        let differs = slot.body.is_some_and(|seen| seen != body);
        slot.author.get_or_insert(write);
        slot.body.get_or_insert(body);
        let moved = channel.seen.insert(body, position).filter(|&seen| seen != position);
        if let Some(first) = other {
            self.note(Violation::PositionShared { channel: index, position, first, second: write });
        } else if differs {
            self.note(Violation::BodyDiffers { channel: index, position });
        }
        if let Some(first) = moved {
            self.note(Violation::ExecutedTwice { channel: index, first, second: position });
        }
    }

    fn refused(&mut self, write: (SessionId, Sequence)) {
        let Some(state) = self.writes.get_mut(&write) else { return };
        state.refused = true;
        let (channel, body) = (state.channel, state.body);
        if let Some(&position) = self.channels.entry(channel).or_default().seen.get(&body) {
            self.note(Violation::RefusedDelivered { channel, position });
        }
    }

    fn delivered(&mut self, id: ReaderId, position: Position, body: BodyHash, by_session: bool) {
        let Some(reader) = self.readers.get_mut(&id) else {
            return self.note(Violation::ReaderUnknown { reader: id });
        };
        let (index, session) = (reader.channel, reader.session);
        let order = reader.take(id, position);
        order.into_iter().for_each(|violation| self.note(violation));
        let channel = self.channels.entry(index).or_default();
        let slot = channel.slots.entry(position).or_default();
        let differs = slot.body.is_some_and(|seen| seen != body);
        slot.body.get_or_insert(body);
        if differs {
            return self.note(Violation::BodyDiffers { channel: index, position });
        }
        if !by_session {
            return;
        }
        let moved = channel.seen.insert(body, position).filter(|&seen| seen != position);
        if let Some(first) = moved {
            self.note(Violation::ExecutedTwice { channel: index, first, second: position });
        }
        let Some(&author) = self.channels[&index].bodies.get(&body) else {
            return self.note(Violation::Phantom { reader: id, position });
        };
        if let Some(slot) = self.channels.get_mut(&index).and_then(|c| c.slots.get_mut(&position)) {
            slot.author.get_or_insert(author);
        }
        if self.writes.get(&author).is_some_and(|write| write.refused) {
            self.note(Violation::RefusedDelivered { channel: index, position });
        }
        if author.0 == session {
            self.note(Violation::Echo { reader: id, position });
        }
    }

    fn delivered_redacted(&mut self, id: ReaderId, position: Position) {
        let Some(reader) = self.readers.get_mut(&id) else {
            return self.note(Violation::ReaderUnknown { reader: id });
        };
        let (index, session) = (reader.channel, reader.session);
        let order = reader.take(id, position);
        order.into_iter().for_each(|violation| self.note(violation));
        let slot = self.channels.entry(index).or_default().slots.entry(position).or_default();
        if slot.author.is_some_and(|author| author.0 == session) {
            self.note(Violation::Echo { reader: id, position });
        }
    }

    fn missed(&mut self, id: ReaderId, from: Position, to: Position) {
        let found = match self.readers.get_mut(&id) {
            Some(reader) => reader.miss(id, from, to),
            None => Some(Violation::ReaderUnknown { reader: id }),
        };
        found.into_iter().for_each(|violation| self.note(violation));
    }

    fn tokens(&mut self, watch: WatchId, index: u32, count: u32) {
        let Some(state) = self.watches.get_mut(&watch) else {
            return self.note(Violation::WatchUnknown { watch });
        };
        let (expected, finished) = (state.next, state.finished);
        state.rewindable = false;
        state.next = expected.max(index.saturating_add(count));
        if finished {
            self.note(Violation::TokensAfterEnd { watch, index });
        } else if index > expected {
            self.note(Violation::TokensGap { watch, expected, index });
        } else if index < expected {
            self.note(Violation::TokensDoubled { watch, expected, index });
        }
    }

    fn rewound(&mut self, watch: WatchId, to: u32) {
        let Some(state) = self.watches.get_mut(&watch) else {
            return self.note(Violation::WatchUnknown { watch });
        };
        let lawful = std::mem::take(&mut state.rewindable) && to <= state.next && !state.finished;
        let got = std::mem::replace(&mut state.next, to);
        if !lawful {
            self.note(Violation::RewindInvalid { watch, got, to });
        }
    }

    fn finished(&mut self, watch: WatchId, tokens: u32) {
        let Some(state) = self.watches.get_mut(&watch) else {
            return self.note(Violation::WatchUnknown { watch });
        };
        let (got, twice) = (state.next, std::mem::replace(&mut state.finished, true));
        if twice {
            self.note(Violation::TokensAfterEnd { watch, index: got });
        } else if got != tokens {
            self.note(Violation::TokensMissing { watch, got, announced: tokens });
        }
    }
}

#[cfg(test)]
mod tests;
