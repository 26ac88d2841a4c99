//! A channel: an ordered sequence of messages with a bounded history.

mod roster;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use thalweg_protocol::chat::ChannelKind;
use thalweg_protocol::generation::{ChatMessage, Role};
use thalweg_protocol::ids::{ChannelId, Position};
use thalweg_protocol::limits::{
    CONVERSATION_BYTES, CONVERSATION_MESSAGES, HISTORY_BATCH_BYTES, HISTORY_BATCH_MESSAGES, HISTORY_BYTES,
    HISTORY_BYTES_MAX, HISTORY_MARK_MESSAGES, HISTORY_MEMORY_BYTES_MAX, HISTORY_MEMORY_MESSAGES_MAX, HISTORY_MESSAGES,
    HISTORY_MESSAGES_MAX,
};
use thalweg_protocol::op::{CreateChannel, DeliveryKind, Durability};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::fact::Snapshot;
use crate::partition::{ChannelState, Mark, first_kept, is_logged};
use crate::record::{ChannelSettings, Message};

pub use roster::{DIRECT_PREFIX, Roster, check_name, direct_name, direct_users};

/// Marks of one channel; a longer history is measured more coarsely.
const MARKS_MAX: usize = 1_024;

/// What calls a model in a channel.
pub const MENTION: &[u8] = b"@ai";

/// The state of a channel at its owner.
///
/// A channel whose messages live in memory has them all at hand. One whose messages are in the log has the newest at hand;
/// older ones were [evicted](Self::evict) and are read back from disk.
#[derive(Debug)]
pub struct Channel {
    id: ChannelId,
    settings: ChannelSettings,
    /// The messages at hand: the newest, oldest of them first, without gaps.
    history: VecDeque<Arc<Message>>,
    /// Bytes of their bodies.
    history_bytes: u64,
    /// Where the newest applied message stands.
    head: Position,
    /// Where the newest decided message stands; ahead of `head` by what is not durable yet.
    decided: Position,
    /// Bytes of the bodies of all messages there ever were.
    bytes: u64,
    /// Measures of what is kept, to say how far back that goes.
    marks: VecDeque<Mark>,
    /// Nothing before this is kept, whatever the measures say.
    floor: Position,
    /// How many of its messages were written as such; ahead of what is durable, like `decided`.
    messages: u64,
    /// When the newest decided message was accepted, in microseconds since 1970.
    active_us: u64,
    roster: Roster,
    /// Where a document was written as a whole, oldest first; ahead of what is durable, like `decided`.
    snapshots: Vec<Snapshot>,
}

/// Where the messages from a position on are to be had.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// Here they are, as many as fit in one answer; none past the head.
    AtHand(Vec<Arc<Message>>),
    /// On disk, from this position on; those from `to` on are at hand.
    OnDisk {
        /// The first that is kept of what was asked for.
        from: Position,
        /// One after the last that is on disk only.
        to: Position,
    },
}

impl Channel {
    /// Checks what a channel shall keep; zeroes take the defaults.
    ///
    /// # Errors
    /// `parameter_invalid`, if it asks for more than this node allows, or for a durability it does not have.
    pub fn decide_settings(create: &CreateChannel, default: Durability) -> Result<ChannelSettings, Reject> {
        if create.about.kind == ChannelKind::Document {
            return Self::decide_document_settings(create);
        }
        let durability = create.durability.unwrap_or(default);
        if durability == Durability::Replicated {
            let text = "durability is replicated; this node stands alone: ask for disk or memory";
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        }
        let in_memory = durability == Durability::Memory;
        let messages_max = if in_memory { HISTORY_MEMORY_MESSAGES_MAX } else { HISTORY_MESSAGES_MAX };
        let bytes_max = if in_memory { HISTORY_MEMORY_BYTES_MAX } else { HISTORY_BYTES_MAX };
        let check = |what: &str, asked: u64, default: u64, most: u64| match asked {
            0 => Ok(default),
            asked if asked <= most => Ok(asked),
            asked => {
                let text = format!("{what} is {asked}; at most {most} with durability {}, or 0", durability.as_str());
                Err(Reject::new(RejectCode::ParameterInvalid, text))
            }
        };
        let asked = create.history_messages.into();
        let messages = check("history_messages", asked, HISTORY_MESSAGES.into(), messages_max.into())?;
        let history_bytes = check("history_bytes", create.history_bytes, HISTORY_BYTES, bytes_max)?;
        let age_ms_max = u64::MAX / 1_000;
        let history_age_us = check("history_age_ms", create.history_age_ms, 0, age_ms_max)? * 1_000;
        Ok(ChannelSettings { history_messages: messages as u32, history_bytes, history_age_us, durability })
    }

    fn decide_document_settings(create: &CreateChannel) -> Result<ChannelSettings, Reject> {
        let refuse = |text: &'static str| Err(Reject::new(RejectCode::ParameterInvalid, text));
        match create.durability {
            None | Some(Durability::Disk) => {}
            Some(Durability::Memory) => return refuse("a document is always on disk; leave its durability out"),
            Some(Durability::Replicated) => {
                return refuse("durability is replicated; this node stands alone: leave it out");
            }
        }
        let asks_less = |asked: u64, most: u64| asked != 0 && asked < most;
        if asks_less(create.history_messages.into(), HISTORY_MESSAGES_MAX.into())
            || asks_less(create.history_bytes, HISTORY_BYTES_MAX)
            || create.history_age_ms != 0
        {
            return refuse("a document keeps everything it was edited by; leave the limits of its history out");
        }
        Ok(Self::document_settings())
    }

    /// What a document keeps: everything.
    pub fn document_settings() -> ChannelSettings {
        ChannelSettings {
            history_messages: HISTORY_MESSAGES_MAX,
            history_bytes: HISTORY_BYTES_MAX,
            history_age_us: 0,
            durability: Durability::Disk,
        }
    }

    /// An empty channel.
    pub fn new(id: ChannelId, settings: ChannelSettings) -> Self {
        let (head, decided) = (Position(0), Position(0));
        let (history, marks) = (VecDeque::new(), VecDeque::new());
        Self {
            id,
            settings,
            history,
            history_bytes: 0,
            head,
            decided,
            bytes: 0,
            marks,
            floor: Position(1),
            messages: 0,
            active_us: 0,
            roster: Roster::default(),
            snapshots: Vec::new(),
        }
    }

    /// The channel that the log left behind; its messages are on disk.
    pub fn restore(id: ChannelId, settings: ChannelSettings, state: &ChannelState) -> Self {
        let mut channel = Self::new(id, settings);
        (channel.head, channel.decided, channel.bytes) = (state.head, state.head, state.bytes);
        (channel.messages, channel.active_us) = (state.messages, state.active_us);
        channel.roster = Roster::restore(&state.facts, &state.mentioned);
        channel.snapshots.clone_from(&state.facts.snapshots);
        state.marks.iter().for_each(|mark| channel.mark(*mark));
        channel
    }

    /// Which of the channels that had its name.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// Whether its messages are in the log.
    pub fn is_logged(&self) -> bool {
        is_logged(&self.settings)
    }

    /// What it keeps.
    pub fn settings(&self) -> &ChannelSettings {
        &self.settings
    }

    /// The people it belongs to.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The people it belongs to, to take in what was decided.
    pub fn roster_mut(&mut self) -> &mut Roster {
        &mut self.roster
    }

    /// Whether it is a document.
    pub fn is_document(&self) -> bool {
        self.roster.kind() == ChannelKind::Document
    }

    /// Where the newest decided message stands, which may not be durable yet.
    pub fn decided(&self) -> Position {
        self.decided
    }

    /// The newest snapshot of a document as it was at a revision, or before.
    pub fn snapshot_at(&self, revision: Position) -> Option<Snapshot> {
        let later = self.snapshots.partition_point(|snapshot| snapshot.position <= revision.next());
        later.checked_sub(1).map(|at| self.snapshots[at])
    }

    /// Notes that a document was written as a whole.
    pub fn note_snapshot(&mut self, snapshot: Snapshot) {
        debug_assert!(self.snapshots.last().is_none_or(|before| before.position < snapshot.position));
        self.snapshots.push(snapshot);
    }

    /// How many of its messages were written as such.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// When the newest message was accepted, in microseconds since 1970; 0 if that is not known.
    pub fn active_us(&self) -> u64 {
        self.active_us
    }

    /// Gives the next message its place. It counts from here on, though nobody sees it until it is applied.
    pub fn decide_position(&mut self) -> Position {
        self.decided = self.decided.next();
        self.decided
    }

    /// Gives the next message its time, which never lies before that of the one before it, however the clock was set.
    pub fn decide_timestamp(&mut self, now_us: u64) -> u64 {
        self.active_us = self.active_us.max(now_us);
        self.active_us
    }

    /// Counts the next message that is written as such, and gives its number.
    pub fn decide_number(&mut self) -> u64 {
        self.messages += 1;
        self.messages
    }

    /// A message, or what is left of it if its text was taken back.
    pub fn shown(&self, message: &Arc<Message>) -> Arc<Message> {
        // What a text was changed to goes with it.
        let is_edit = message.kind == DeliveryKind::Edit && self.roster.is_redacted(message.context.target);
        if !message.context.redacted && (is_edit || self.roster.is_redacted(message.position)) {
            return Arc::new(message.redacted());
        }
        Arc::clone(message)
    }

    /// Takes a decided message in.
    pub fn apply(&mut self, message: Arc<Message>) {
        debug_assert_eq!(message.position, self.head.next(), "messages are applied in order, without gaps");
        self.head = message.position;
        self.decided = self.decided.max(self.head);
        self.bytes += message.body.len() as u64;
        self.history_bytes += message.body.len() as u64;
        let (position, bytes, timestamp_us) = (message.position, self.bytes, message.timestamp_us);
        self.history.push_back(message);
        if !self.is_logged() {
            return self.trim(timestamp_us);
        }
        if position.0.is_multiple_of(HISTORY_MARK_MESSAGES) {
            self.mark(Mark { position, bytes, timestamp_us });
        }
    }

    /// Lets go of the messages at hand up to a position: they are to be had from disk.
    pub fn evict(&mut self, through: Position) {
        while self.history.front().is_some_and(|message| message.position <= through) {
            self.drop_oldest();
        }
    }

    /// The message at a position, if it is at hand.
    pub fn at_hand(&self, position: Position) -> Option<Arc<Message>> {
        let first = self.history.front()?.position;
        self.history.get(usize::try_from(position.0.checked_sub(first.0)?).ok()?).cloned()
    }

    /// Where the newest applied message stands.
    pub fn head(&self) -> Position {
        self.head
    }

    /// Where the oldest kept message stands; one after the head if none is kept.
    pub fn first(&self, now_us: u64) -> Position {
        let at_hand = self.history.front().map(|message| message.position);
        if !self.is_logged() {
            let oldest_us = self.oldest_us(now_us);
            let young = self.history.iter().find(|message| message.timestamp_us >= oldest_us);
            return young.map(|message| message.position).or(at_hand.map(|_| self.head)).unwrap_or(self.head.next());
        }
        if self.head == Position(0) {
            return Position(1);
        }
        first_kept(&self.settings, self.head, self.bytes, self.marks.iter(), now_us).max(self.floor)
    }

    /// Notes that nothing before `position` is kept, which the disk knows first: what goes by age goes by the wall clock,
    /// and that may have been stepped back since.
    pub fn let_go_before(&mut self, position: Position) {
        self.floor = self.floor.max(position);
    }

    /// Where the kept messages from `from` on are.
    pub fn read(&self, from: Position, now_us: u64) -> Kept {
        let from = from.max(self.first(now_us));
        let at_hand = self.history.front().map_or(self.head.next(), |message| message.position);
        if from < at_hand {
            return Kept::OnDisk { from, to: at_hand };
        }
        let skip = (from.0 - at_hand.0) as usize;
        let mut bytes = 0;
        let fits = |message: &&Arc<Message>| {
            let first = bytes == 0;
            bytes += message.payload.len();
            first || bytes <= HISTORY_BATCH_BYTES
        };
        Kept::AtHand(
            self.history
                .iter()
                .skip(skip)
                .take(HISTORY_BATCH_MESSAGES)
                .take_while(fits)
                .map(|message| self.shown(message))
                .collect(),
        )
    }

    /// Which messages must be read from disk before [`conversation`](Self::conversation) knows the recent past.
    pub fn conversation_on_disk(&self, now_us: u64) -> Option<(Position, Position)> {
        let said = self.history.iter().filter(|message| message.kind == DeliveryKind::Message).count();
        let at_hand = self.history.front().map_or(self.head.next(), |message| message.position);
        let first = self.first(now_us);
        if said >= CONVERSATION_MESSAGES || at_hand <= first {
            return None;
        }
        let batch = Position(at_hand.0.saturating_sub(HISTORY_BATCH_MESSAGES as u64));
        Some((batch.max(first), at_hand))
    }

    /// The recent past up to the head, as a model is given it: people's lines with their names, its own without.
    /// `older` are messages before those at hand, oldest first.
    pub fn conversation(&self, older: &[Arc<Message>]) -> Vec<ChatMessage> {
        let mut bytes = 0;
        let at_hand = self.history.front().map_or(self.head.next(), |message| message.position);
        let older = older.iter().rev().skip_while(|message| message.position >= at_hand);
        let newest_first = || self.history.iter().rev().chain(older.clone());
        // What was edited is given as it reads now; what was taken back, not at all.
        let mut edits = BTreeMap::new();
        for edit in newest_first().filter(|message| message.kind == DeliveryKind::Edit) {
            edits.entry(edit.context.target).or_insert(&edit.body);
        }
        let said = newest_first().filter(|message| {
            message.kind == DeliveryKind::Message
                && !message.context.redacted
                && !self.roster.is_redacted(message.position)
        });
        let mut lines: Vec<_> = said
            .map(|message| {
                let text = String::from_utf8_lossy(edits.get(&message.position).unwrap_or(&&message.body));
                let text = text.strip_prefix("@ai").map_or(&*text, str::trim_start);
                if message.generation.is_some() {
                    ChatMessage { role: Role::Assistant, content: text.to_owned() }
                } else {
                    ChatMessage { role: Role::User, content: format!("{}: {text}", message.user) }
                }
            })
            .take(CONVERSATION_MESSAGES)
            .take_while(|line| {
                bytes += line.content.len();
                bytes <= CONVERSATION_BYTES || bytes == line.content.len()
            })
            .collect();
        lines.reverse();
        lines
    }

    fn mark(&mut self, mark: Mark) {
        self.marks.push_back(mark);
        let first = first_kept(&self.settings, self.head, self.bytes, self.marks.iter(), 0);
        while self.marks.get(1).is_some_and(|mark| mark.position < first) {
            self.marks.pop_front();
        }
        if self.marks.len() > MARKS_MAX {
            // Coarser steps for a long history: every other goes.
            let mut keep = false;
            self.marks.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Drops what is beyond the bounds of a channel in memory.
    fn trim(&mut self, now_us: u64) {
        let oldest_us = self.oldest_us(now_us);
        while self.history.len() > 1
            && (self.history.len() > self.settings.history_messages as usize
                || self.history_bytes > self.settings.history_bytes
                || self.history.front().is_some_and(|message| message.timestamp_us < oldest_us))
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.history.pop_front();
        self.history_bytes -= oldest.map_or(0, |message| message.body.len() as u64);
    }

    /// Messages older than this need not be kept.
    fn oldest_us(&self, now_us: u64) -> u64 {
        match self.settings.history_age_us {
            0 => 0,
            age => now_us.saturating_sub(age),
        }
    }
}

/// Whether a message calls a model: it begins with `@ai` as a word and says something.
pub fn mentions_model(body: &[u8]) -> bool {
    body.strip_prefix(MENTION).is_some_and(|rest| {
        rest.first().is_some_and(u8::is_ascii_whitespace) && rest.iter().any(|b| !b.is_ascii_whitespace())
    })
}

#[cfg(test)]
mod tests;
