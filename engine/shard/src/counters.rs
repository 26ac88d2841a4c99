//! What a shard counts and how long its stages take.

use std::ops::{Deref, DerefMut};

use thalweg_protocol::reject::RejectCode;

/// Counts since the shard began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages accepted by this core as their channels' owner.
    pub published: u64,
    /// Writes that had been carried out before and were answered from memory.
    pub duplicates: u64,
    /// Records handed to readers.
    pub delivered: u64,
    /// Bytes of frames handed to readers.
    pub delivered_bytes: u64,
    /// Records that readers did not get: skipped by policy `drop`, or no longer kept.
    pub missed: u64,
    /// Readers ended for being slow, by policy `disconnect`.
    pub slow_disconnected: u64,
    /// Reads of history for readers that fell behind their tail.
    pub history_reads: u64,
    /// Of these, those that had to go to disk.
    pub disk_reads: u64,
    /// Requests handed to another core.
    pub forwarded: u64,
    /// Generations begun.
    pub generations: u64,
    /// Generations that were cut off by the end of an earlier life of the node, and go on.
    pub resumed: u64,
    /// Tokens received from the inference stage.
    pub tokens: u64,
    /// Frames that told readers who is in a channel.
    pub presence_frames: u64,
    /// Bytes of these; they are among the bytes handed to readers.
    pub presence_bytes: u64,
    /// Frames of presence that readers did not get for want of room, and had made up for by a whole picture later.
    pub presence_skipped: u64,
    /// Sessions that counted as gone since they were silent.
    pub presence_timeouts: u64,
    /// Notices handed out that somebody types.
    pub typing_notices: u64,
    /// Notices that somebody types which came too often, in too large a channel or from who may not write, and were
    /// dropped.
    pub typing_dropped: u64,
    /// Edits of documents accepted by this core as their owner.
    pub updates: u64,
    /// Of these, those that share their message with an earlier one of the same turn.
    pub updates_merged: u64,
    /// Edits of documents that were refused.
    pub updates_refused: u64,
    /// Documents written as a whole.
    pub snapshots: u64,
    /// Documents read from the log.
    pub documents_opened: u64,
    /// Documents let go of since nobody used them.
    pub documents_evicted: u64,
    /// Documents that an edit broke in memory, and that were read anew.
    pub documents_poisoned: u64,
    /// Edits of documents merged into one for readers who were behind.
    pub reader_merges: u64,
    /// Readers of documents who were so far behind that they got the document anew.
    pub reader_catch_ups: u64,
    /// Frames that told readers of documents what others say of themselves.
    pub awareness_frames: u64,
    /// Updates of awareness that came too often, were no such thing, or too much, and were dropped.
    pub awareness_dropped: u64,
    /// Models asked to write in documents.
    pub document_asks: u64,
    /// Models that began anew since the text around their place had changed.
    pub document_refreshes: u64,
    /// What was refused since somebody had used up what they may, in the order of [`Resource::ALL`](crate::Resource::ALL).
    pub limited: [u64; 5],
    /// Refusals, by code number.
    pub rejects: Rejects,
}

/// A count for each code of refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejects([u64; RejectCode::ALL.len()]);

impl Default for Rejects {
    fn default() -> Self {
        Self([0; RejectCode::ALL.len()])
    }
}

impl Deref for Rejects {
    type Target = [u64];

    /// The counts, in the order of the codes' numbers.
    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl DerefMut for Rejects {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

/// A stage that a message or a token passes inside a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From append to durable.
    Commit,
    /// From a write's arrival at its owner to its answer.
    Publish,
    /// From a message's arrival at a reader's core to its hand-over to the transport.
    FanOut,
    /// From a token's arrival at its owner to its hand-over towards a watcher.
    TokenOut,
    /// From the beginning of reading a document from the log to its being in memory.
    Open,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 5] = [Self::Commit, Self::Publish, Self::FanOut, Self::TokenOut, Self::Open];

    /// The stage's name in statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Publish => "publish",
            Self::FanOut => "fan_out",
            Self::TokenOut => "token_out",
            Self::Open => "open",
        }
    }
}

/// How long one thing took in one stage, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Which stage.
    pub stage: Stage,
    /// How long.
    pub us: u32,
}

/// What a traced request spent its time with, between two moments of [`Now::mono_us`](crate::Now::mono_us).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The span of the request.
    pub parent: u64,
    /// With what.
    pub name: &'static str,
    /// When it began.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
}
