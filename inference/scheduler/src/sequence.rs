//! One sequence of tokens as the scheduler sees it.

/// The caller's name of a sequence; unique among those that live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// Where a sequence's tokens go. An outlet that is blocked blocks all its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Outlet(pub u16);

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The caller said that the last token completed it.
    Stop,
    /// It has the most tokens it may have, or the context is full.
    Length,
    /// It was cancelled.
    Cancelled,
    /// The caller said that computing it failed.
    Failed,
}

/// A sequence that is held.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) outlet: Outlet,
    /// The prompt, then what was produced.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// Length at which it ends: prompt and most tokens to produce, or the context.
    pub(crate) end_len: usize,
    /// Tokens with an index below this may be produced.
    pub(crate) credit: u32,
    /// Leading tokens whose KV is there; 0 without a slot.
    pub(crate) computed: usize,
    /// Leading tokens that were computed once, before an eviction.
    pub(crate) computed_before: usize,
    pub(crate) slot: Option<u32>,
    /// Its place in the queue for slots: set when it becomes ready to run without having one.
    pub(crate) queued: Option<u64>,
    /// Since when it has been parked with a slot.
    pub(crate) parked_since_us: Option<u64>,
    pub(crate) submitted_us: u64,
    pub(crate) admitted_us: Option<u64>,
    /// Whether the caller is told when it is parked, and what it was told last.
    pub(crate) traced: bool,
    pub(crate) told_parked: bool,
}

impl Sequence {
    /// Index of the token that comes next.
    pub(crate) fn produced(&self) -> u32 {
        (self.tokens.len() - self.prompt_len) as u32
    }

    /// Whether its reader lets it produce another token.
    pub(crate) fn has_credit(&self) -> bool {
        self.produced() < self.credit
    }

    /// Tokens to compute before the next one can be drawn; at least 1.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }
}
