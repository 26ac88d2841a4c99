//! Who gets memory and a place in the step, and who makes room for that.

use std::collections::BTreeMap;

use super::{Scheduler, SequenceId, Stand};
use crate::contract::{Output, Submit};
use crate::sequence::{End, Sequence, rank};

/// The part of all places that is kept for tenants of which none waits.
const RESERVED_PART: usize = 16;
/// Tenants that are looked at in one plan behind the one whose turn it is and who cannot be served.
const LOOK_PAST_MAX: usize = 32;
/// Shortest and longest time to retry that is told, in milliseconds.
const RETRY_MS: (u64, u64) = (100, 30_000);

impl Scheduler {
    /// Takes in a sequence that has `produced` behind its prompt already.
    pub(super) fn submit(&mut self, now_us: u64, submit: Submit, produced: &[u32]) {
        let Submit { id, outlet, tenant, priority, deadline_us, prompt, max_tokens, credit, traced } = submit;
        assert!(!self.sequences.contains_key(&id), "{id:?} lives already");
        assert!(!prompt.is_empty() && max_tokens > 0, "{id:?} has something to compute and to produce");
        if prompt.len() >= self.config.context_tokens {
            self.counters.refused_long += 1;
            return self.outputs.push_back(Output::TooLong { id });
        }
        let prompt_len = prompt.len();
        let end_len = prompt_len.saturating_add(max_tokens as usize).min(self.config.context_tokens);
        let mut tokens = prompt;
        tokens.extend_from_slice(produced);
        let (over, begun) = (tokens.len() >= end_len, !produced.is_empty());
        if !over && let Some(retry_after_ms) = self.refusal(tenant, begun) {
            self.counters.refused_busy += 1;
            return self.outputs.push_back(Output::Busy { id, retry_after_ms });
        }
        self.counters.submitted += 1;
        self.counters.resumed += u64::from(begun);
        self.submitted_ever += 1;
        let sequence = Sequence {
            id,
            outlet,
            tenant,
            priority,
            rank: rank(now_us, priority, self.submitted_ever),
            tokens,
            prompt_len,
            end_len,
            credit,
            computed: 0,
            computed_before: 0,
            seat: None,
            stand: Stand::Parked,
            fresh: false,
            in_step: false,
            parked_since_us: None,
            submitted_us: now_us,
            admitted_us: None,
            deadline_us: deadline_us.filter(|_| !begun),
            traced,
            told_parked: false,
        };
        self.deadlines.extend(sequence.deadline_us.map(|at| (at, id)));
        self.sequences.insert(id, sequence);
        self.tenants.entry(tenant).or_default().unseated += 1;
        // One that was over before it resumed only passes through, however many are held.
        if over { self.finish(now_us, id, End::Length) } else { self.settle(now_us, id) }
    }

    /// Whether one more sequence of a tenant is too much, and when to try again. A tenant's own limit is not for what had
    /// begun elsewhere: that was accepted once.
    fn refusal(&mut self, tenant: u64, begun: bool) -> Option<u32> {
        let waiting = self.tenants.get(&tenant).map_or(0, |tenant| tenant.unseated);
        let (held, most) = (self.sequences.len(), self.config.sequences);
        let is_full = held >= most || (!begun && waiting > 0 && held >= most - most / RESERVED_PART);
        if is_full {
            return Some(self.retry_after_ms(self.tenants.values().map(|tenant| tenant.queue.len()).sum()));
        }
        (!begun && waiting >= self.config.waiting_tenant).then(|| {
            self.counters.refused_tenant += 1;
            self.retry_after_ms(waiting)
        })
    }

    /// When those who wait now will have begun, judging by how long sequences took and how many there are at once.
    fn retry_after_ms(&self, waiting: usize) -> u32 {
        let seated = (self.active.len() + self.returning.len()).clamp(1, self.config.running);
        let rounds = (waiting / seated) as u64 + 1;
        (self.service_us.saturating_mul(rounds) / 1_000).clamp(RETRY_MS.0, RETRY_MS.1) as u32
    }

    /// Gives up those that have not begun in time.
    pub(super) fn expire(&mut self, now_us: u64) {
        while let Some(&(at, id)) = self.deadlines.first().filter(|&&(at, _)| at <= now_us) {
            let retry_after_ms = self.retry_after_ms(self.tenants.values().map(|tenant| tenant.queue.len()).sum());
            self.forget(id, false);
            debug_assert!(!self.deadlines.contains(&(at, id)), "it is forgotten");
            self.counters.expired += 1;
            self.outputs.push_back(Output::Expired { id, retry_after_ms });
        }
    }

    /// Gives places to those who have memory, and both to those who wait for both, as tenants take turns.
    pub(super) fn admit(&mut self, now_us: u64) {
        // Who holds memory goes first: it is of no use to anybody until they end.
        for id in self.returning.iter().copied().collect::<Vec<_>>() {
            if self.returning.contains(&id) && self.has_place(self.sequences[&id].tenant) {
                self.make_place(self.sequences[&id].tenant);
                self.stand(id, Stand::Active);
            }
        }
        while let Some((tenant, _)) = self.admissions.front() {
            if !self.admit_first(now_us, tenant) {
                break;
            }
        }
        // The others do not have to wait for somebody who has more already than they will have.
        let Some((front, _)) = self.admissions.front() else { return };
        let behind: Vec<u64> = self.admissions.others().take(LOOK_PAST_MAX).collect();
        for tenant in behind {
            while self.blocks_with_next(tenant).is_some_and(|blocks| blocks <= self.tenants[&front].blocks)
                && self.admit_first(now_us, tenant)
            {}
        }
    }

    /// Blocks that a tenant will have when the next of its sequences that wait is admitted; none if none waits.
    fn blocks_with_next(&self, tenant: u64) -> Option<usize> {
        let tenant = self.tenants.get(&tenant)?;
        let next = tenant.queue.values().next()?;
        Some(tenant.blocks + self.config.blocks_for(self.sequences[next].end_len))
    }

    /// Admits the first of those of a tenant that wait. False if there is no place or no memory.
    fn admit_first(&mut self, now_us: u64, tenant: u64) -> bool {
        let Some(&id) = self.tenants.get(&tenant).and_then(|tenant| tenant.queue.values().next()) else { return false };
        let sequence = &self.sequences[&id];
        let total = self.config.blocks_for(sequence.end_len);
        if !self.has_place(tenant) {
            return false;
        }
        let needed = self.blocks.needed(tenant, &sequence.tokens, total);
        let available = self.blocks.available();
        if available < needed && !self.make_room(now_us, tenant, needed - available, total) {
            return false;
        }
        let sequence = self.sequences.get_mut(&id).expect("who waits is held");
        let Some((seat, found)) = self.blocks.seat(tenant, &sequence.tokens, total, &mut self.copies) else {
            // What made room held some of what is needed; it counts as needed now. The next plan sees.
            return false;
        };
        (sequence.computed, sequence.fresh) = (found, true);
        let waited_us = sequence.admitted_us.is_none().then(|| now_us.saturating_sub(sequence.submitted_us));
        sequence.admitted_us.get_or_insert(now_us);
        if let Some(at) = sequence.deadline_us.take() {
            self.deadlines.remove(&(at, id));
        }
        self.counters.prefix_lookups += 1;
        self.counters.prefix_tokens += sequence.tokens.len() as u64;
        self.counters.prefix_hit_tokens += found as u64;
        let cost = sequence.end_len - found;
        let of_tenant = self.tenants.get_mut(&tenant).expect("a tenant of a sequence is known");
        of_tenant.blocks += seat.blocks();
        of_tenant.unseated -= 1;
        sequence.seat = Some(seat);
        self.admissions.charge(tenant, cost);
        self.make_place(tenant);
        self.stand(id, Stand::Active);
        self.outputs.push_back(Output::Admitted { id, waited_us, cached: found as u32 });
        true
    }

    /// Whether a sequence of a tenant can get a place in the step.
    fn has_place(&self, tenant: u64) -> bool {
        self.active.len() < self.config.running || self.who_leaves(tenant).is_some()
    }

    /// Sees to it that there is a place for a sequence of a tenant that [has one](Self::has_place).
    fn make_place(&mut self, tenant: u64) {
        if self.active.len() >= self.config.running {
            let id = self.who_leaves(tenant).expect("the caller has looked");
            self.counters.preemptions += 1;
            self.stand(id, Stand::Returning);
        }
    }

    /// Who gives a tenant its place: the last of the tenant with the most, if that one then still has as many.
    fn who_leaves(&self, tenant: u64) -> Option<SequenceId> {
        let mine = self.tenants.get(&tenant).map_or(0, |tenant| tenant.active);
        let (most, state) = self.tenants.iter().max_by_key(|(number, state)| (state.active, **number))?;
        if state.active < mine + 2 {
            return None;
        }
        let of_most = self.active.iter().map(|id| &self.sequences[id]).filter(|s| s.tenant == *most && !s.fresh);
        of_most.max_by_key(|sequence| sequence.rank).map(|sequence| sequence.id)
    }

    /// Takes memory, so that `missing` blocks more become available for a sequence of a tenant that may need `total`: of those
    /// parked longest, and then of tenants who have more than this one, from their last on. Takes nothing if all that would
    /// not be enough.
    fn make_room(&mut self, now_us: u64, tenant: u64, missing: usize, total: usize) -> bool {
        let keeps = self.config.park_keep_us;
        let mut parked: Vec<(u64, SequenceId)> = Vec::new();
        let mut ready: BTreeMap<u64, Vec<&Sequence>> = BTreeMap::new();
        for sequence in self.sequences.values().filter(|sequence| sequence.seat.is_some() && !sequence.fresh) {
            match sequence.parked_since_us {
                Some(since) if now_us.saturating_sub(since) >= keeps => parked.push((since, sequence.id)),
                Some(_) => {}
                None if sequence.tenant != tenant => ready.entry(sequence.tenant).or_default().push(sequence),
                None => {}
            }
        }
        parked.sort_unstable();
        ready.values_mut().for_each(|of_tenant| of_tenant.sort_by_key(|sequence| sequence.rank));
        let gain = |id: SequenceId| self.sequences[&id].seat.as_ref().map_or(0, |seat| self.blocks.gain(seat));
        let (mut leave, mut gained) = (Vec::new(), 0);
        for (_, id) in parked {
            if gained >= missing {
                break;
            }
            gained += gain(id);
            leave.push(id);
        }
        let mine = self.tenants[&tenant].blocks + total;
        let mut have: BTreeMap<u64, usize> = ready.keys().map(|&other| (other, self.tenants[&other].blocks)).collect();
        while gained < missing {
            let Some((&most, &blocks)) = have.iter().max_by_key(|(number, blocks)| (**blocks, **number)) else {
                return false;
            };
            // The last of those without which their tenant still has as much as this one.
            let of_most = ready.get_mut(&most).expect("it is one of these");
            let Some(at) = of_most.iter().rposition(|sequence| blocks - sequence.blocks() >= mine) else {
                have.remove(&most);
                continue;
            };
            let last = of_most.remove(at);
            have.insert(most, blocks - last.blocks());
            gained += gain(last.id);
            leave.push(last.id);
        }
        for id in leave {
            let parked = self.sequences[&id].stand == Stand::Parked;
            *(if parked { &mut self.counters.evictions } else { &mut self.counters.preemptions }) += 1;
            self.unseat(id, false);
            if !parked {
                self.stand(id, Stand::Queued);
            }
        }
        true
    }
}
