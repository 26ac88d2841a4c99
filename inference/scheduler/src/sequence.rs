//! One sequence of tokens as the scheduler sees it.

use thalweg_protocol::generation::Priority;

use crate::blocks::Seat;

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

/// How many microseconds of waiting a priority is worth: who has waited this much longer goes before who has the next
/// higher one, so that nobody waits for ever.
const PRIORITY_WORTH_US: u64 = 10_000_000;

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It may not run, for want of credit or because its outlet is blocked. It may have a seat.
    Parked,
    /// It may run and waits for a seat.
    Queued,
    /// It has a seat, may run, and waits for a place in the step.
    Returning,
    /// It gets rows.
    Active,
}

/// A sequence that is held.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) outlet: Outlet,
    pub(crate) tenant: u64,
    pub(crate) priority: Priority,
    /// Its place among those of its tenant: by time of arrival as its priority moves it, then by number.
    pub(crate) rank: (u64, u64),
    /// The prompt, then what was produced.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// Length at which it ends: prompt and most tokens to produce, or the context.
    pub(crate) end_len: usize,
    /// Tokens with an index below this may be produced.
    pub(crate) credit: u32,
    /// Leading tokens whose KV is there; 0 without a seat.
    pub(crate) computed: usize,
    /// Leading tokens that were computed once, before an eviction.
    pub(crate) computed_before: usize,
    pub(crate) seat: Option<Seat>,
    pub(crate) stand: Stand,
    /// Whether it got its seat in this plan, which may not take it away again.
    pub(crate) fresh: bool,
    /// Whether the step that is under way has rows of it.
    pub(crate) in_step: bool,
    /// Since when it has been parked with a seat.
    pub(crate) parked_since_us: Option<u64>,
    pub(crate) submitted_us: u64,
    pub(crate) admitted_us: Option<u64>,
    /// By when it has to begin, as long as it has not.
    pub(crate) deadline_us: Option<u64>,
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

    /// Whether all but its last token is computed.
    pub(crate) fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.computed > 0
    }

    /// Blocks it has or will have.
    pub(crate) fn blocks(&self) -> usize {
        self.seat.as_ref().map_or(0, Seat::blocks)
    }
}

/// The place of a sequence among those of its tenant.
pub(crate) fn rank(submitted_us: u64, priority: Priority, number: u64) -> (u64, u64) {
    let steps = match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    };
    (submitted_us.saturating_add(steps * PRIORITY_WORTH_US), number)
}
