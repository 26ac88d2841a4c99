//! When each connection wants to be woken.

use std::time::Instant;

/// Not in the heap.
const ABSENT: u32 = u32::MAX;

/// A binary heap of one deadline per connection, in which a connection's entry can be found and moved.
///
/// An ordinary heap with stale entries would grow by one entry per packet until the idle timeout passes; a scan would
/// touch every idle connection each turn. Here the next deadline costs nothing and a change a few swaps.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: Vec<(Instant, u32)>,
    /// Where in the heap the entry of each connection is, by its index.
    position: Vec<u32>,
}

impl Deadlines {
    /// The earliest deadline, and whose it is.
    pub(crate) fn first(&self) -> Option<(Instant, usize)> {
        self.heap.first().map(|&(at, index)| (at, index as usize))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Wakes connection `index` no later than `at`.
    ///
    /// An entry that is earlier stays: acknowledgements push the same timer back again and again, and it is cheaper to
    /// wake once for nothing than to move the entry with every packet. Whoever is woken sets its deadline anew.
    pub(crate) fn no_later_than(&mut self, index: usize, at: Instant) {
        if self.position.len() <= index {
            self.position.resize(index + 1, ABSENT);
        }
        let place = match self.position[index] {
            ABSENT => {
                self.heap.push((at, index as u32));
                self.heap.len() - 1
            }
            place if self.heap[place as usize].0 <= at => return,
            place => {
                self.heap[place as usize].0 = at;
                place as usize
            }
        };
        self.rise(place);
    }

    /// Forgets the deadline of connection `index`.
    pub(crate) fn remove(&mut self, index: usize) {
        let Some(&place) = self.position.get(index).filter(|&&place| place != ABSENT) else { return };
        let place = place as usize;
        self.position[index] = ABSENT;
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.position[self.heap[place].1 as usize] = place as u32;
            self.sink(place);
            self.rise(place);
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.swap(place, parent);
            place = parent;
        }
        self.position[self.heap[place].1 as usize] = place as u32;
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let children = 2 * place + 1..(2 * place + 3).min(self.heap.len());
            let Some(child) = children.min_by_key(|&child| self.heap[child].0) else { break };
            if self.heap[place].0 <= self.heap[child].0 {
                break;
            }
            self.swap(place, child);
            place = child;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.position[self.heap[a].1 as usize] = a as u32;
        self.position[self.heap[b].1 as usize] = b as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    /// Random calls against a map that is scanned.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "some instant must be the first")]
    fn the_first_deadline_is_the_earliest() {
        let (start, mut state) = (Instant::now(), 7_u64);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut deadlines, mut model) = (Deadlines::default(), BTreeMap::<usize, Instant>::new());
        for _ in 0..50_000 {
            let index = random(200) as usize;
            if random(3) == 0 {
                deadlines.remove(index);
                model.remove(&index);
            } else {
                let at = start + Duration::from_micros(random(1_000_000));
                deadlines.no_later_than(index, at);
                model.entry(index).and_modify(|old| *old = at.min(*old)).or_insert(at);
            }
            let first = deadlines.first();
            assert_eq!(first.map(|(at, _)| at), model.values().min().copied());
            assert!(first.is_none_or(|(at, index)| model[&index] == at));
            assert_eq!(deadlines.heap.len(), model.len());
        }
    }
}
