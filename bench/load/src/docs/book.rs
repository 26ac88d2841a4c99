//! Who typed what when, and which reader has it.
//!
//! `bench/peers/docs` is made of the same file.

/// An edit: the clock after it, by which a reader that knows so much of its author has it.
struct Edit {
    end: u32,
    intended_ns: u64,
}

/// What a reader knows of an author.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The clock up to which it has everything.
    clock: u32,
    /// How many of the author's edits that are.
    edits: u32,
}

/// The editors of one document, by number from 0.
pub(crate) struct Book {
    authors: Vec<Vec<Edit>>,
    /// By reader, then by author.
    known: Vec<Known>,
    editors: usize,
    outstanding: u64,
}

impl Book {
    pub(crate) fn new(editors: usize) -> Self {
        let authors = (0..editors).map(|_| Vec::new()).collect();
        Self { authors, known: vec![Known::default(); editors * editors], editors, outstanding: 0 }
    }

    /// Deliveries that are still to come.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Notes what an author typed.
    pub(crate) fn typed(&mut self, author: usize, end: u32, intended_ns: u64) {
        self.authors[author].push(Edit { end, intended_ns });
        let own = &mut self.known[author * self.editors + author];
        (own.clock, own.edits) = (end, own.edits + 1);
        self.outstanding += self.editors as u64 - 1;
    }

    /// Notes that a reader got an author's insertions from one clock to another, and calls `each` with the intended time of
    /// every edit that it has now and had not; false if it had not got what comes before.
    pub(crate) fn got(&mut self, reader: usize, author: usize, from: u32, end: u32, mut each: impl FnMut(u64)) -> bool {
        let known = &mut self.known[reader * self.editors + author];
        let in_order = from <= known.clock;
        if reader == author || end <= known.clock {
            return in_order;
        }
        known.clock = end;
        while let Some(edit) = self.authors[author].get(known.edits as usize).filter(|edit| edit.end <= end) {
            known.edits += 1;
            self.outstanding -= 1;
            each(edit.intended_ns);
        }
        in_order
    }

    /// Calls `each` with the intended time of everything that was never delivered.
    pub(crate) fn missing(&self, mut each: impl FnMut(u64)) {
        for reader in 0..self.editors {
            for author in 0..self.editors {
                let known = self.known[reader * self.editors + author].edits as usize;
                self.authors[author][known..].iter().for_each(|edit| each(edit.intended_ns));
            }
        }
    }

    /// Whether all know the same of all.
    pub(crate) fn agree(&self) -> bool {
        (0..self.editors).all(|author| {
            let known = |reader: usize| self.known[reader * self.editors + author].clock;
            // Who wrote the first page and nothing since is told of it by nobody.
            let last = (0..self.editors).map(known).max();
            (0..self.editors).filter(|reader| *reader != author).all(|reader| Some(known(reader)) == last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_is_delivered_once_to_each_peer_however_it_is_merged() {
        let mut book = Book::new(3);
        book.typed(0, 1, 50);
        book.typed(0, 2, 150);
        book.typed(1, 4, 160);
        assert_eq!(book.outstanding(), 6);
        let mut got = |reader: usize, author: usize, from: u32, end: u32, in_order: bool, expected: &[u64]| {
            let mut times = Vec::new();
            assert_eq!(book.got(reader, author, from, end, |at| times.push(at)), in_order);
            assert_eq!(times, expected);
        };
        got(1, 0, 0, 2, true, &[50, 150]);
        got(1, 0, 0, 2, true, &[]);
        got(0, 0, 0, 2, true, &[]);
        got(2, 0, 1, 2, false, &[50, 150]);
        got(0, 1, 0, 4, true, &[160]);
        assert!(!book.agree());
        let mut missing = Vec::new();
        book.missing(|at| missing.push(at));
        assert_eq!(missing, [160]);
        assert!(book.got(2, 1, 0, 4, |_| ()) && book.agree());
        assert_eq!(book.outstanding(), 0);
    }
}
