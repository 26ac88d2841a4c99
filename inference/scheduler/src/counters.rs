//! What a scheduler has done so far.

/// Counts since the scheduler was made, and how things stand now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Steps planned.
    pub steps: u64,
    /// Rows planned: tokens computed.
    pub rows: u64,
    /// Rows of sequences that already produced their last known token: one a token.
    pub decode_rows: u64,
    /// Rows of prompts, of what resumed sequences had produced, and of evicted sequences computed again.
    pub prefill_rows: u64,
    /// Rows computed again because their KV had been evicted; part of `prefill_rows`.
    pub recomputed_rows: u64,
    /// Rows planned for a sequence without credit, as found by a second look at the finished step. Always 0.
    pub rows_without_credit: u64,
    /// Tokens produced beyond a sequence's credit, as found when they came. Always 0.
    pub tokens_without_credit: u64,
    /// Tokens produced.
    pub tokens: u64,
    /// Sequences accepted.
    pub submitted: u64,
    /// Sequences accepted that had produced tokens before they were interrupted; part of `submitted`.
    pub resumed: u64,
    /// Sequences refused because too many were held.
    pub refused_busy: u64,
    /// Sequences refused because their prompt does not fit in the context.
    pub refused_long: u64,
    /// Sequences that ended, for whatever reason.
    pub finished: u64,
    /// Sequences that ended because they were cancelled.
    pub cancelled: u64,
    /// Times a sequence ran out of credit.
    pub parks: u64,
    /// Times a parked sequence lost its KV to one that waited.
    pub evictions: u64,
    /// Sequences that wait for a slot now.
    pub waiting: u64,
    /// Sequences that have a slot and may run now.
    pub running: u64,
    /// Sequences that have no credit, or whose outlet is blocked, now.
    pub parked: u64,
    /// Slots in use now.
    pub slots_used: u64,
}
