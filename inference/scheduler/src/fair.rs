//! Turns among tenants: deficit round robin, with cost in tokens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Whose turn it is. A tenant in front may spend as long as it has something to spend; it may overspend once and pays that
/// back in the turns that follow. Who has nothing to ask for leaves, and its account is closed.
#[derive(Debug)]
pub(crate) struct Turns {
    order: VecDeque<u64>,
    accounts: BTreeMap<u64, i64>,
    quantum: i64,
}

impl Turns {
    /// `quantum`: tokens that a tenant gets each turn, at least 1.
    pub(crate) fn new(quantum: usize) -> Self {
        Self { order: VecDeque::new(), accounts: BTreeMap::new(), quantum: quantum.max(1) as i64 }
    }

    /// A tenant asks for something, unless it does already. Its first turn comes after those of the others.
    pub(crate) fn join(&mut self, tenant: u64) {
        if let std::collections::btree_map::Entry::Vacant(account) = self.accounts.entry(tenant) {
            account.insert(self.quantum);
            self.order.push_back(tenant);
        }
    }

    /// A tenant asks for nothing any more.
    pub(crate) fn leave(&mut self, tenant: u64) {
        if self.accounts.remove(&tenant).is_some() {
            self.order.retain(|&other| other != tenant);
        }
    }

    /// Exactly these tenants ask for something.
    pub(crate) fn only(&mut self, tenants: &BTreeSet<u64>) {
        self.accounts.retain(|tenant, _| tenants.contains(tenant));
        self.order.retain(|tenant| tenants.contains(tenant));
        tenants.iter().for_each(|&tenant| self.join(tenant));
    }

    /// Whose turn it is, and what is left of it in tokens: at least 1.
    pub(crate) fn front(&mut self) -> Option<(u64, usize)> {
        // If everyone is in debt, the rounds in which nobody could spend are skipped.
        let richest = *self.accounts.values().max()?;
        let skipped = (-richest).div_euclid(self.quantum).max(0);
        self.accounts.values_mut().for_each(|account| *account += skipped * self.quantum);
        loop {
            let tenant = *self.order.front()?;
            let account = self.accounts.get_mut(&tenant).expect("who takes turns has an account");
            if *account > 0 {
                return Some((tenant, *account as usize));
            }
            *account += self.quantum;
            self.order.rotate_left(1);
        }
    }

    /// Everyone but the one in front, in the order of their turns.
    pub(crate) fn others(&self) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().skip(1).copied()
    }

    /// A tenant spends.
    pub(crate) fn charge(&mut self, tenant: u64, tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            *account -= tokens as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However they ask, over any stretch two tenants who ask all the time differ by a quantum and their largest wish.
    #[test]
    fn those_who_ask_all_the_time_get_the_same() {
        let check = |wishes: &[usize]| {
            let mut turns = Turns::new(10);
            let mut got = vec![0; wishes.len()];
            (0..wishes.len() as u64).for_each(|tenant| turns.join(tenant));
            for _ in 0..1_000 {
                let (tenant, left) = turns.front().expect("all ask");
                assert!(left > 0);
                turns.charge(tenant, wishes[tenant as usize]);
                got[tenant as usize] += wishes[tenant as usize];
            }
            let bound = 10 + wishes.iter().max().expect("some");
            assert!(
                got.iter().max().expect("some") - got.iter().min().expect("some") <= 2 * bound,
                "{wishes:?} {got:?}"
            );
        };
        check(&[1, 1]);
        check(&[1, 100]);
        check(&[7, 3, 95, 11]);
        check(&[500]);
    }

    #[test]
    fn who_leaves_has_no_debt_and_who_joins_waits_for_one_turn_of_each() {
        let mut turns = Turns::new(10);
        assert_eq!(turns.front(), None);
        turns.join(1);
        turns.charge(1, 95);
        assert_eq!(turns.front(), Some((1, 5)), "alone it does not wait for itself");
        turns.join(2);
        turns.charge(1, 5);
        assert_eq!(turns.front(), Some((2, 10)));
        turns.only(&BTreeSet::from([1, 3]));
        assert_eq!((turns.front(), turns.others().collect::<Vec<_>>()), (Some((1, 10)), vec![3]));
        turns.leave(1);
        assert_eq!(turns.front(), Some((3, 10)));
    }
}
