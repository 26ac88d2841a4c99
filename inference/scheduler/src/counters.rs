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
    /// Sequences refused because too many were held, of all or of their tenant.
    pub refused_busy: u64,
    /// Sequences refused because too many of their tenant waited; part of `refused_busy`.
    pub refused_tenant: u64,
    /// Sequences refused because their prompt does not fit in the context.
    pub refused_long: u64,
    /// Sequences given up because they had not begun by their deadline.
    pub expired: u64,
    /// Sequences that ended, for whatever reason but their deadline.
    pub finished: u64,
    /// Sequences that ended because they were cancelled.
    pub cancelled: u64,
    /// Times a sequence ran out of credit.
    pub parks: u64,
    /// Times a parked sequence lost its KV to one that waited.
    pub evictions: u64,
    /// Times a sequence that could run lost its place in the step or its KV to a tenant that had less.
    pub preemptions: u64,
    /// Times the beginning of a sequence was looked up among what was computed before.
    pub prefix_lookups: u64,
    /// Tokens that had to be there before a sequence could draw, by all those lookups: found or not.
    pub prefix_tokens: u64,
    /// Tokens that were found and not computed again; part of `prefix_tokens`.
    pub prefix_hit_tokens: u64,
    /// Blocks of which the beginning was copied for a sequence.
    pub blocks_copied: u64,
    /// Blocks whose content could have been found again and made room for other.
    pub blocks_dropped: u64,
    /// Blocks that were held or promised although no sequence was there. Always 0.
    pub blocks_leaked: u64,
    /// Sequences that wait for memory now.
    pub waiting: u64,
    /// Sequences that have memory and may run now.
    pub running: u64,
    /// Sequences that have no credit, or whose outlet is blocked, now.
    pub parked: u64,
    /// Blocks of KV memory there are.
    pub blocks_total: u64,
    /// Blocks that sequences hold now.
    pub blocks_used: u64,
    /// Blocks that nobody holds and that can be found again by their content, now.
    pub blocks_cached: u64,
    /// Blocks that several sequences hold; part of `blocks_used`.
    pub blocks_shared: u64,
    /// Blocks that sequences do not hold yet and will get when they ask, now.
    pub blocks_promised: u64,
}
