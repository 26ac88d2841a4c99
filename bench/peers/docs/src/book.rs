//! Who typed what when, and which reader has it.

use hdrhistogram::Histogram;

/// Longest latency that is told apart from longer ones, ns: 10 minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants")
}

/// A keystroke: the clock after it, by which a reader that knows so much of its author has it.
struct Op {
    end: u32,
    intended_ns: u64,
}

/// What a reader knows of an author.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The clock up to which it has everything.
    clock: u32,
    /// How many of the author's keystrokes that are.
    ops: u32,
}

/// Sums over all documents.
pub struct Totals {
    pub latencies: Histogram<u64>,
    /// Keystrokes that are measured begin here; those before are warming up.
    pub from_ns: u64,
    pub delivered: u64,
    pub frames: u64,
    /// Times that a reader was told of an author's edits without having had those before: must stay 0.
    pub gaps: u64,
}

/// The editors of one document.
pub struct Book {
    authors: Vec<Vec<Op>>,
    /// By reader, then by author.
    known: Vec<Known>,
    editors: usize,
    pub outstanding: u64,
}

impl Book {
    pub fn new(editors: usize) -> Self {
        let authors = (0..editors).map(|_| Vec::new()).collect();
        Self { authors, known: vec![Known::default(); editors * editors], editors, outstanding: 0 }
    }

    /// Notes what an author typed.
    pub fn typed(&mut self, author: usize, end: u32, intended_ns: u64) {
        self.authors[author].push(Op { end, intended_ns });
        let own = &mut self.known[author * self.editors + author];
        (own.clock, own.ops) = (end, own.ops + 1);
        self.outstanding += self.editors as u64 - 1;
    }

    /// Notes that a reader got an author's edits from one clock to another.
    pub fn got(&mut self, reader: usize, author: usize, from: u32, end: u32, now_ns: u64, totals: &mut Totals) {
        let known = &mut self.known[reader * self.editors + author];
        if from > known.clock {
            totals.gaps += 1;
        }
        if reader == author || end <= known.clock {
            return;
        }
        known.clock = end;
        let ops = &self.authors[author];
        while let Some(op) = ops.get(known.ops as usize).filter(|op| op.end <= end) {
            known.ops += 1;
            totals.delivered += 1;
            self.outstanding -= 1;
            if op.intended_ns >= totals.from_ns {
                totals.latencies.saturating_record(now_ns.saturating_sub(op.intended_ns).max(1));
            }
        }
    }

    /// Charges what never came as if it came now.
    pub fn give_up(&mut self, now_ns: u64, totals: &mut Totals) {
        for reader in 0..self.editors {
            for author in 0..self.editors {
                let missing = &self.authors[author][self.known[reader * self.editors + author].ops as usize..];
                for op in missing.iter().filter(|op| op.intended_ns >= totals.from_ns) {
                    totals.latencies.saturating_record(now_ns.saturating_sub(op.intended_ns).max(1));
                }
            }
        }
    }

    /// Whether all know the same of all.
    pub fn agree(&self) -> bool {
        (0..self.editors).all(|author| {
            let last = self.known[author * self.editors + author].clock;
            (0..self.editors).all(|reader| self.known[reader * self.editors + author].clock == last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_is_delivered_once_to_each_peer_however_it_is_merged() {
        let mut totals = Totals { latencies: histogram(), from_ns: 100, delivered: 0, frames: 0, gaps: 0 };
        let mut book = Book::new(3);
        book.typed(0, 1, 50);
        book.typed(0, 2, 150);
        book.typed(1, 4, 160);
        assert_eq!(book.outstanding, 6);
        book.got(1, 0, 0, 2, 250, &mut totals);
        book.got(1, 0, 0, 2, 950, &mut totals);
        book.got(0, 0, 0, 2, 999, &mut totals);
        assert_eq!((totals.delivered, totals.latencies.len(), totals.latencies.max()), (2, 1, 100));
        book.got(2, 0, 1, 2, 250, &mut totals);
        assert_eq!(totals.gaps, 1);
        assert!(!book.agree());
        book.got(0, 1, 0, 4, 260, &mut totals);
        book.got(2, 1, 0, 4, 260, &mut totals);
        assert!(book.agree());
        assert_eq!(book.outstanding, 0);
    }
}
