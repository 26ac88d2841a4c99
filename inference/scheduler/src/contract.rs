//! What goes into a scheduler, and what comes out.

use thalweg_protocol::generation::Priority;
use thalweg_protocol::limits::{
    KV_BLOCK_TOKENS, PARK_KEEP_US, PREFILL_CHUNK_TOKENS, SEQUENCES_RUNNING_MAX, SEQUENCES_WAITING_MAX,
    SEQUENCES_WAITING_TENANT_MAX,
};

use crate::sequence::{End, Outlet, SequenceId};

/// Bounds of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Sequences in one step, at least 1.
    pub running: usize,
    /// Sequences held at all, waiting, running or parked.
    pub sequences: usize,
    /// Sequences of one tenant that wait for memory, at least 1.
    pub waiting_tenant: usize,
    /// Blocks of KV memory there are: enough for at least one sequence that fills the context.
    pub blocks: usize,
    /// Tokens of a block, at least 1.
    pub block_tokens: usize,
    /// Tokens computed in one step, at least `running`: decoding sequences have one each, prompts share what is left.
    pub prefill_tokens: usize,
    /// Longest sequence, prompt and answer together, in tokens.
    pub context_tokens: usize,
    /// Time a parked sequence keeps its KV although others wait for it, in microseconds.
    pub park_keep_us: u64,
}

impl Config {
    /// The limits of this build, for a model with `context_tokens` and memory for `blocks` blocks. With too few blocks for
    /// the context, the context is what they hold.
    pub fn new(context_tokens: usize, blocks: usize) -> Self {
        Self {
            running: SEQUENCES_RUNNING_MAX,
            sequences: SEQUENCES_WAITING_MAX,
            waiting_tenant: SEQUENCES_WAITING_TENANT_MAX,
            blocks,
            block_tokens: KV_BLOCK_TOKENS,
            prefill_tokens: PREFILL_CHUNK_TOKENS,
            context_tokens: context_tokens.min(blocks * KV_BLOCK_TOKENS),
            park_keep_us: PARK_KEEP_US,
        }
    }

    /// Blocks of a sequence that becomes `tokens` long. Its last token is drawn and never computed.
    pub(crate) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.saturating_sub(1).div_ceil(self.block_tokens)
    }

    /// Panics if no scheduler can work within these bounds.
    pub(crate) fn check(&self) {
        assert!(self.running > 0 && self.prefill_tokens >= self.running, "everyone can get a row: {self:?}");
        assert!(self.block_tokens > 0 && self.waiting_tenant > 0, "there is room for something: {self:?}");
        assert!(self.blocks * self.block_tokens >= self.context_tokens, "one sequence fits: {self:?}");
        assert!(u32::try_from(self.blocks).is_ok(), "blocks have numbers: {self:?}");
    }
}

/// A new sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// Its name; not that of one that lives.
    pub id: SequenceId,
    /// Where its tokens go.
    pub outlet: Outlet,
    /// Whose it is, as a number of the caller's. Tenants share the model fairly, and never share KV memory.
    pub tenant: u64,
    /// When its turn comes among those of its tenant.
    pub priority: Priority,
    /// It is given up with [`Output::Expired`] if it has not begun by then, on the clock of `now_us`. Of no effect on one
    /// that resumes.
    pub deadline_us: Option<u64>,
    /// Its prompt; at least one token.
    pub prompt: Vec<u32>,
    /// Most tokens to produce; at least 1.
    pub max_tokens: u32,
    /// Tokens with an index below this may be produced.
    pub credit: u32,
    /// Whether the caller wants to know when it is [parked](Output::Parked).
    pub traced: bool,
}

/// What happens to a scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A sequence arrives.
    Submit(Submit),
    /// A sequence arrives that was interrupted elsewhere and goes on here.
    Resume {
        /// The sequence as it was submitted at first. Its most tokens and its credit count from its very beginning.
        submit: Submit,
        /// What it had produced. It is computed after the prompt and not given out again: the next token has its length as
        /// index. If the sequence has its most tokens with it, or the context is full, it ends at once by its length.
        produced: Vec<u32>,
    },
    /// Tokens of `id` with an index below `until` may be produced. Credit never shrinks.
    Credit {
        /// Which sequence; unknown ones have ended already and are ignored.
        id: SequenceId,
        /// One past the last index.
        until: u32,
    },
    /// Nobody wants the rest of `id`.
    Cancel(SequenceId),
    /// Sequences of an outlet that is blocked get no rows.
    Block {
        /// Which outlet.
        outlet: Outlet,
        /// Whether it is blocked from now on.
        blocked: bool,
    },
}

/// What came of a row that wanted logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The next token; the sequence goes on.
    Token(u32),
    /// The next token; the sequence ends with it.
    Last(u32),
    /// The sequence ends without another token.
    End,
    /// It cannot be computed.
    Failed,
}

/// A result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    /// Of which sequence.
    pub id: SequenceId,
    /// What came of it.
    pub outcome: Outcome,
}

/// What the caller is to do or to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// `id` got memory and begins, or begins again after it lost its memory. Comes before its first row.
    Admitted {
        /// Which sequence.
        id: SequenceId,
        /// How long it waited, in microseconds; none when it begins again.
        waited_us: Option<u64>,
        /// Its leading tokens that need not be computed: their keys and values were found.
        cached: u32,
    },
    /// A token was produced.
    Token {
        /// Of which sequence.
        id: SequenceId,
        /// Its index, contiguous from 0, or from the number of tokens it had produced when it resumed.
        index: u32,
        /// The token.
        token: u32,
    },
    /// `id`, which is traced, may not run, for want of credit or because its outlet is blocked; or it may again.
    Parked {
        /// Which sequence.
        id: SequenceId,
        /// Whether it is parked from now on.
        parked: bool,
    },
    /// `id` ended; it is forgotten.
    Finished {
        /// Which sequence.
        id: SequenceId,
        /// Why.
        end: End,
        /// Tokens it produced, here and before it resumed.
        produced: u32,
    },
    /// `id` was not accepted: as many sequences are held as may be, or as many of its tenant wait as may.
    Busy {
        /// Which sequence.
        id: SequenceId,
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// `id` had not begun by its deadline; it is forgotten.
    Expired {
        /// Which sequence.
        id: SequenceId,
        /// When to try again, in milliseconds.
        retry_after_ms: u32,
    },
    /// `id` was not accepted: its prompt leaves no room for an answer.
    TooLong {
        /// Which sequence.
        id: SequenceId,
    },
}
