//! What a model is asked to compute in one step.

use crate::sequence::SequenceId;

/// One token to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Whose it is: index in [`Step::parts`].
    pub part: u32,
    /// Place of the token in its sequence, from 0.
    pub position: u32,
    /// The token.
    pub token: u32,
    /// Whether the next token is to be drawn from this row's logits.
    pub wants_logits: bool,
}

/// The rows of one sequence in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Whose they are.
    pub id: SequenceId,
    /// Index of the first in [`Step::rows`].
    pub first: usize,
    /// How many; at least 1. Positions are consecutive.
    pub count: usize,
    /// Index of the sequence's first block in [`Step::tables`].
    pub table: usize,
    /// How many blocks: enough for the last row of the step. Block `i` holds the keys and values of the positions from
    /// `i` times the tokens of a block on.
    pub blocks: usize,
    /// Whether the last row wants logits.
    pub wants_logits: bool,
    /// Index of the token that is drawn if so.
    pub index: u32,
}

/// Keys and values to copy before any row is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that holds them. No copy and no row of the same step writes it.
    pub from: u32,
    /// The block that gets them; the target of no other copy of the step.
    pub to: u32,
    /// How many positions, from the block's first.
    pub tokens: u32,
}

/// Packed ragged rows: some of decoding sequences, one each, and some of prompts, a chunk each.
///
/// Every position of a sequence before its first row was computed in an earlier step, or by another sequence with equal
/// tokens up to there, or is copied by this step. A block that rows of a part are written to is in no other part's table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// All rows; those of a sequence stand together, in order of positions.
    pub rows: Vec<Row>,
    /// Whose rows those are, in the same order: first those that decode.
    pub parts: Vec<Part>,
    /// The blocks of all parts, one part after the other.
    pub tables: Vec<u32>,
    /// What is to be copied first, in any order.
    pub copies: Vec<BlockCopy>,
}

impl Step {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The blocks of a part.
    pub fn table(&self, part: &Part) -> &[u32] {
        &self.tables[part.table..part.table + part.blocks]
    }

    /// The rows of a part.
    pub fn rows_of(&self, part: &Part) -> &[Row] {
        &self.rows[part.first..part.first + part.count]
    }

    /// A step that computes one part of this one, after all its copies. It may be run after this one was broken off: what
    /// is copied twice is the same both times, and a sequence may get a copy in a step that has no row of it.
    pub fn alone(&self, part: &Part) -> Self {
        Self {
            rows: self.rows_of(part).iter().map(|row| Row { part: 0, ..*row }).collect(),
            parts: vec![Part { first: 0, table: 0, ..*part }],
            tables: self.table(part).to_vec(),
            copies: self.copies.clone(),
        }
    }
}
