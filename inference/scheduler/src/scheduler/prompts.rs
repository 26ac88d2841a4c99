//! How the rows of a step that decoding leaves are shared among prompts.

use std::collections::{BTreeMap, BTreeSet};

use super::{Scheduler, SequenceId};
use crate::blocks::{Blocks, Parent};
use crate::sequence::Sequence;

impl Scheduler {
    /// Shares `budget` rows among sequences that have prompts to compute. Tenants take turns; see [`Self::of_tenant`] for what
    /// a tenant does with its rows. Gives who gets how many, at least 1 each.
    pub(super) fn share(&mut self, budget: usize, prompts: &[SequenceId]) -> Vec<(SequenceId, usize)> {
        let mut tenants: BTreeMap<u64, Vec<SequenceId>> = BTreeMap::new();
        for &id in prompts {
            let sequence = self.sequences.get_mut(&id).expect("who is active is held");
            let seat = sequence.seat.as_mut().expect("who is active has memory");
            if sequence.computed == seat.known * self.config.block_tokens {
                let saved = self.blocks.catch_up(sequence.tenant, seat, &sequence.tokens);
                sequence.computed += saved;
                self.counters.prefix_hit_tokens += saved as u64;
            }
            tenants.entry(sequence.tenant).or_default().push(id);
        }
        let mut asked: BTreeMap<u64, usize> = BTreeMap::new();
        for (&tenant, ids) in &mut tenants {
            *ids = self.leaders(ids);
            asked.insert(tenant, ids.iter().map(|id| self.sequences[id].pending()).sum());
        }
        self.prompts.only(&asked.keys().copied().collect());
        let mut given: BTreeMap<u64, usize> = BTreeMap::new();
        let mut left = budget;
        while left > 0
            && let Some((tenant, turn)) = self.prompts.front()
        {
            let wants = asked.get_mut(&tenant).expect("who takes turns asks");
            let rows = left.min(turn).min(*wants);
            (*wants, left) = (*wants - rows, left - rows);
            *given.entry(tenant).or_default() += rows;
            self.prompts.charge(tenant, rows);
            if *wants == 0 {
                self.prompts.leave(tenant);
            }
        }
        given.into_iter().flat_map(|(tenant, rows)| self.of_tenant(rows, &tenants[&tenant])).collect()
    }

    /// Those of a tenant's prompts that are to get rows, in the order in which they get them: first the first by rank, then
    /// by priority and by how little they lack. One whose next block another of them computes waits for that block.
    fn leaders(&self, ids: &[SequenceId]) -> Vec<SequenceId> {
        let mut order: Vec<&Sequence> = ids.iter().map(|id| &self.sequences[id]).collect();
        order.sort_by_key(|sequence| (std::cmp::Reverse(sequence.priority), sequence.pending(), sequence.rank));
        let first = (0..order.len()).min_by_key(|&n| order[n].rank);
        if let Some(first) = first {
            order[..=first].rotate_right(1);
        }
        let size = self.config.block_tokens;
        let mut filling: BTreeSet<(Option<u32>, &[u32])> = BTreeSet::new();
        let mut leaders = Vec::with_capacity(order.len());
        for sequence in order {
            let seat = sequence.seat.as_ref().expect("who is active has memory");
            let start = seat.known * size;
            // A block that ends with the last token is not one that others could go on after.
            if let Some(next) = sequence.tokens.get(start..start + size) {
                let above = match Blocks::parent(sequence.tenant, seat, seat.known) {
                    Parent::Tenant(_) => None,
                    Parent::Block(block) => Some(block),
                };
                let is_first = filling.insert((above, next));
                let at_start = sequence.computed == start && start + size < sequence.tokens.len();
                if !is_first && at_start {
                    continue;
                }
            }
            leaders.push(sequence.id);
        }
        leaders
    }

    /// Shares a tenant's rows among its prompts, which come in their order: half are for the first, so that it is done some
    /// time, and the rest for those that lack least, so that short prompts are not held up by long ones.
    fn of_tenant(&self, rows: usize, order: &[SequenceId]) -> Vec<(SequenceId, usize)> {
        let wants = |id: &SequenceId| self.sequences[id].pending();
        let mut shares: Vec<usize> = vec![0; order.len()];
        let mut left = rows;
        let mut give = |shares: &mut Vec<usize>, n: usize, most: usize| {
            let more = left.min(most).min(wants(&order[n]) - shares[n]);
            shares[n] += more;
            left -= more;
        };
        give(&mut shares, 0, rows.div_ceil(2));
        let mut rest: Vec<usize> = (0..order.len()).collect();
        rest.sort_by_key(|&n| {
            let sequence = &self.sequences[&order[n]];
            (std::cmp::Reverse(sequence.priority), sequence.pending() - shares[n], sequence.rank)
        });
        rest.into_iter().for_each(|n| give(&mut shares, n, rows));
        order.iter().copied().zip(shares).filter(|&(_, count)| count > 0).collect()
    }
}
