//! What a model is asked to compute in one step.

use crate::sequence::SequenceId;

/// One token to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Where the sequence's KV lies.
    pub slot: u32,
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
    /// Its slot.
    pub slot: u32,
    /// Index of the first in [`Step::rows`].
    pub first: usize,
    /// How many; at least 1. Positions are consecutive.
    pub count: usize,
    /// Whether the last of them wants logits.
    pub wants_logits: bool,
    /// Index of the token that is drawn if so.
    pub index: u32,
}

/// Packed ragged rows: some of decoding sequences, one each, and some of prompts, a chunk each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// All rows; those of a sequence stand together, in order of positions.
    pub rows: Vec<Row>,
    /// Whose rows those are, in the same order.
    pub parts: Vec<Part>,
}

impl Step {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Shares `budget` rows among prompts that have `pending` tokens each, so that none gets more than another unless the
/// other needs no more (max-min fairness). Every prompt gets at least one row if the budget has one for each.
///
/// Gives shares in the order of `pending`.
pub(crate) fn share(budget: usize, pending: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pending.len()).collect();
    order.sort_by_key(|&n| (pending[n], n));
    let mut shares = vec![0; pending.len()];
    let mut left = budget;
    for (done, &n) in order.iter().enumerate() {
        shares[n] = pending[n].min(left / (order.len() - done));
        left -= shares[n];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn short_prompts_are_not_held_up_by_long_ones() {
        let check = |budget, pending: &[usize], expected: &[usize]| {
            assert_eq!(share(budget, pending), expected, "{budget} among {pending:?}");
        };
        check(128, &[], &[]);
        check(128, &[8_000], &[128]);
        check(128, &[8_000, 10], &[118, 10]);
        check(128, &[8_000, 10, 8_000], &[59, 10, 59]);
        check(7, &[3, 3, 3], &[2, 2, 3]);
        check(2, &[5, 5, 5], &[0, 1, 1]);
    }
}
