//! What a step is for a device: few large operations instead of many small ones.
//!
//! Rows that decode attend together, as many as have sequences of about the same length, padded to the longest. Rows of a
//! prompt attend in tiles. Everything else of a pass sees rows only, in whichever order; so they are put in the order in
//! which they attend, and the rows whose logits are wanted are found again at the end.

use thalweg_scheduler::{Part, Step};

use crate::kernel::attention::POSITIONS;

/// How large the operations of attention may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Positions whose keys and values are gathered for one operation.
    pub(super) gathered: usize,
    /// Scores of one operation: queries by heads by positions.
    pub(super) scores: usize,
}

/// Rows that attend in one operation: `parts` sequences, `count` rows of each, over `length` positions of each.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// The first of its `parts · count` rows.
    pub(super) first: usize,
    pub(super) parts: usize,
    pub(super) count: usize,
    pub(super) length: usize,
    /// Where the keys and values of each sequence's positions are, `[part][position]`. Beyond a sequence's end stands its
    /// first position, so that nothing is read that the sequence has not written.
    pub(super) slots: Vec<u32>,
    /// How many positions each row sees, `[part][row]`.
    pub(super) visible: Vec<u32>,
}

/// A step in the order in which it is computed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Token of each row.
    pub(super) tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub(super) positions: Vec<u32>,
    /// Where the keys and values of each row go: block times positions of a block, and the position in it.
    pub(super) slots: Vec<u32>,
    /// Rows whose logits are wanted, in the step's order.
    pub(super) wanted: Vec<u32>,
    /// All rows, one batch after the other.
    pub(super) batches: Vec<Batch>,
    /// Slots that are copied before anything else, and to where.
    pub(super) copied_from: Vec<u32>,
    pub(super) copied_to: Vec<u32>,
}

impl Plan {
    /// Lays `step` out for a model of so many query heads.
    pub(super) fn new(step: &Step, heads: usize, bounds: Bounds) -> Self {
        let mut plan = Self::default();
        for copy in &step.copies {
            plan.copied_from.extend((0..copy.tokens).map(|n| copy.from * POSITIONS as u32 + n));
            plan.copied_to.extend((0..copy.tokens).map(|n| copy.to * POSITIONS as u32 + n));
        }
        // Where the rows of the step come to stand.
        let mut places = vec![0_u32; step.rows.len()];
        let length = |part: &Part| step.rows[part.first].position as usize + part.count;
        let (mut single, several): (Vec<&Part>, Vec<&Part>) = step.parts.iter().partition(|part| part.count == 1);
        single.sort_by_key(|part| std::cmp::Reverse(length(part)));
        let mut rest = &single[..];
        while let Some(longest) = rest.first().map(|part| length(part)) {
            let most = (bounds.gathered / longest).min(bounds.scores / (heads * longest)).max(1);
            // Padding that is longer than what is padded costs more than one more operation.
            let alike = rest.iter().take_while(|part| length(part) * 2 >= longest).count();
            let (together, later) = rest.split_at(most.min(alike));
            let first = plan.tokens.len();
            let mut batch =
                Batch { first, parts: together.len(), count: 1, length: longest, slots: vec![], visible: vec![] };
            for part in together {
                places[part.first] = plan.tokens.len() as u32;
                plan.put(step, part, 0..1);
                batch.see(step, part, 0..1);
            }
            plan.batches.push(batch);
            rest = later;
        }
        for part in several {
            let most = (bounds.scores / (heads * length(part))).max(1);
            for start in (0..part.count).step_by(most) {
                let rows = start..part.count.min(start + most);
                let length = step.rows[part.first].position as usize + rows.end;
                let first = plan.tokens.len();
                let mut batch = Batch { first, parts: 1, count: rows.len(), length, slots: vec![], visible: vec![] };
                for row in rows.clone() {
                    places[part.first + row] = (first + row - start) as u32;
                }
                plan.put(step, part, rows.clone());
                batch.see(step, part, rows);
                plan.batches.push(batch);
            }
        }
        plan.wanted = (0..step.rows.len()).filter(|&n| step.rows[n].wants_logits).map(|n| places[n]).collect();
        plan
    }

    /// Adds rows of a part.
    fn put(&mut self, step: &Step, part: &Part, rows: std::ops::Range<usize>) {
        for row in &step.rows_of(part)[rows] {
            self.tokens.push(row.token);
            self.positions.push(row.position);
            self.slots.push(slot(step.table(part), row.position as usize));
        }
    }
}

impl Batch {
    /// Adds what rows of a part see.
    fn see(&mut self, step: &Step, part: &Part, rows: std::ops::Range<usize>) {
        let table = step.table(part);
        let rows = &step.rows_of(part)[rows];
        self.visible.extend(rows.iter().map(|row| row.position + 1));
        let end = rows.last().map_or(0, |row| row.position as usize + 1);
        self.slots.extend((0..end).map(|position| slot(table, position)));
        self.slots.resize(self.slots.len() + self.length - end, slot(table, 0));
    }

    /// Whether every row sees every position, so that nothing is to be masked.
    pub(super) fn sees_all(&self) -> bool {
        self.visible.iter().all(|&visible| visible as usize == self.length)
    }
}

fn slot(table: &[u32], position: usize) -> u32 {
    table[position / POSITIONS] * POSITIONS as u32 + (position % POSITIONS) as u32
}

#[cfg(test)]
mod tests {
    use thalweg_scheduler::{BlockCopy, Row, SequenceId};

    use super::*;

    const HEADS: usize = 4;
    const WIDE: Bounds = Bounds { gathered: 1 << 20, scores: 1 << 30 };

    /// A step of parts of so many rows from so-and-so-manieth position on, in blocks of their own.
    fn step(parts: &[(usize, usize)]) -> Step {
        let mut step = Step::default();
        for (n, &(start, count)) in parts.iter().enumerate() {
            let row = |at: usize| Row { part: n as u32, position: at as u32, token: at as u32, wants_logits: true };
            let (first, table) = (step.rows.len(), step.tables.len());
            step.rows.extend((start..start + count).map(row));
            let blocks = (start + count).div_ceil(POSITIONS);
            step.tables.extend((0..blocks).map(|block| (100 * n + 7 * block) as u32));
            step.parts.push(Part {
                id: SequenceId(n as u64),
                first,
                count,
                table,
                blocks,
                wants_logits: true,
                index: 0,
            });
        }
        step
    }

    /// What holds for every plan of a step, and how many rows, sequences and positions its batches have.
    fn check(parts: &[(usize, usize)], bounds: Bounds, expected: &[(usize, usize, usize)]) {
        let step = step(parts);
        let plan = Plan::new(&step, HEADS, bounds);
        let shapes: Vec<_> = plan.batches.iter().map(|batch| (batch.parts, batch.count, batch.length)).collect();
        assert_eq!(shapes, expected, "{parts:?}");
        assert_eq!(plan.wanted.len(), step.rows.len());
        for (row, &place) in step.rows.iter().zip(&plan.wanted) {
            let table = step.table(&step.parts[row.part as usize]);
            let place = place as usize;
            assert_eq!((plan.tokens[place], plan.positions[place]), (row.token, row.position));
            assert_eq!(plan.slots[place], slot(table, row.position as usize));
            let batch = plan.batches.iter().find(|b| (b.first..b.first + b.parts * b.count).contains(&place));
            let batch = batch.expect("each row is in a batch");
            let at = place - batch.first;
            assert_eq!(batch.visible[at], row.position + 1);
            let seen = &batch.slots[at / batch.count * batch.length..][..batch.length];
            for (position, &found) in seen.iter().enumerate() {
                let end = step.parts[row.part as usize].count
                    + step.rows[step.parts[row.part as usize].first].position as usize;
                assert_eq!(found, slot(table, if position < end { position } else { 0 }), "position {position}");
            }
        }
    }

    #[test]
    fn rows_attend_with_their_like() {
        check(&[], WIDE, &[]);
        check(&[(9, 1)], WIDE, &[(1, 1, 10)]);
        check(&[(9, 1), (200, 1), (150, 1), (5, 1), (120, 70)], WIDE, &[(2, 1, 201), (2, 1, 10), (1, 70, 190)]);
        check(&[(99, 1), (99, 1), (99, 1)], Bounds { gathered: 200, scores: 1 << 30 }, &[(2, 1, 100), (1, 1, 100)]);
        check(&[(99, 1), (99, 1)], Bounds { gathered: 1, scores: 1 }, &[(1, 1, 100), (1, 1, 100)]);
        check(
            &[(0, 5), (64, 3)],
            Bounds { gathered: 1, scores: HEADS * 10 },
            &[(1, 2, 2), (1, 2, 4), (1, 1, 5), (1, 1, 65), (1, 1, 66), (1, 1, 67)],
        );
    }

    #[test]
    fn blocks_are_copied_position_by_position() {
        let step = Step { copies: vec![BlockCopy { from: 3, to: 1, tokens: 2 }], ..Step::default() };
        let plan = Plan::new(&step, HEADS, WIDE);
        let (from, to) = (3 * POSITIONS as u32, POSITIONS as u32);
        assert_eq!((plan.copied_from, plan.copied_to), (vec![from, from + 1], vec![to, to + 1]));
    }
}
