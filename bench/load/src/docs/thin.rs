//! Editors without a replica: positional operations, one unanswered at a time.

use std::collections::{BTreeMap, VecDeque};

use thalweg_protocol::document::{Operations, Side, utf16_len};
use thalweg_protocol::ids::Position;
use thalweg_protocol::reject::Reject;

use super::typing::{Hand, Key};

/// Frames that a reader remembers: an author may hear of its edit's revision later than its readers.
const FRAMES_KEPT: usize = 4_096;

/// A thin editor.
pub(super) struct Thin {
    hand: Hand,
    length: u32,
    /// Its text, if it is one that keeps it to compare.
    text: Option<String>,
    revision: Position,
    /// What was sent and is not in its place yet, with the intended times of its keystrokes.
    sent: Option<(Operations, Vec<u64>)>,
    /// What was typed meanwhile.
    waiting: (Operations, Vec<u64>),
}

impl Thin {
    pub(super) fn new(hand: Hand, keeps_text: bool) -> Self {
        let text = keeps_text.then(String::new);
        Self { hand, length: 0, text, revision: Position(0), sent: None, waiting: Default::default() }
    }

    /// Begins with this text, and gives up what was not in its place; the intended times of that.
    pub(super) fn restart(&mut self, text: &str, revision: Position) -> Vec<u64> {
        self.length = utf16_len(text);
        self.revision = revision;
        if let Some(own) = &mut self.text {
            text.clone_into(own);
        }
        let mut lost = self.sent.take().map_or_else(Vec::new, |(_, times)| times);
        lost.append(&mut std::mem::take(&mut self.waiting).1);
        lost
    }

    /// A page typed at once.
    pub(super) fn page(&mut self, characters: usize) -> Result<(), Reject> {
        let page = self.hand.page(characters);
        let edit = Operations::new().insert(page);
        self.change(&edit)?;
        self.waiting.0 = self.waiting.0.compose(&edit);
        Ok(())
    }

    /// One keystroke.
    pub(super) fn key(&mut self, intended_ns: u64) -> Result<(), Reject> {
        let Key { at, gone, typed } = self.hand.key(self.length);
        let edit = Operations::new().retain(at).insert(typed).delete(gone);
        self.change(&edit)?;
        self.waiting.0 = self.waiting.0.compose(&edit);
        self.waiting.1.push(intended_ns);
        Ok(())
    }

    /// What is to be sent now, and the revision it was made at.
    pub(super) fn next(&mut self) -> Option<(Operations, Position)> {
        if self.sent.is_some() || self.waiting.0.is_empty() {
            return None;
        }
        let next = std::mem::take(&mut self.waiting);
        let operations = next.0.clone();
        self.sent = Some(next);
        Some((operations, self.revision))
    }

    /// What was sent is in its place: the intended times of its keystrokes.
    pub(super) fn placed(&mut self, revision: Position) -> Vec<u64> {
        self.revision = revision;
        self.sent.take().map_or_else(Vec::new, |(_, times)| times)
    }

    /// Takes what others did, up to this revision.
    pub(super) fn take(&mut self, edit: &Operations, revision: Position) -> Result<(), Reject> {
        self.revision = revision;
        let mut theirs = edit.clone();
        let sent = self.sent.as_mut().map(|(own, _)| own);
        for own in sent.into_iter().chain(Some(&mut self.waiting.0)) {
            // What was accepted earlier stands first.
            let moved = own.transform(&theirs, Side::Second);
            theirs = theirs.transform(own, Side::First);
            *own = moved;
        }
        self.hand.cursor = theirs.offset_after(self.hand.cursor, false);
        self.change(&theirs)
    }

    /// The text, if it is kept.
    pub(super) fn read(&self) -> Option<&str> {
        self.text.as_deref()
    }

    fn change(&mut self, edit: &Operations) -> Result<(), Reject> {
        if let Some(text) = &mut self.text {
            *text = edit.apply(text)?;
        }
        self.length = edit.offset_after(self.length, true);
        Ok(())
    }
}

/// An edit that has its revision, and is on its way to this many.
struct Placed {
    times: Vec<u64>,
    left: usize,
}

/// What readers of operations got, by revision.
pub(super) struct Revisions {
    /// By reader: the revision it has.
    reached: Vec<u64>,
    /// By reader: the last frames, each with the revision it led to, and when it came.
    frames: Vec<VecDeque<(u64, u64)>>,
    /// By revision and author.
    awaited: BTreeMap<(u64, usize), Placed>,
    outstanding: u64,
}

impl Revisions {
    pub(super) fn new(editors: usize) -> Self {
        let frames = (0..editors).map(|_| VecDeque::new()).collect();
        Self { reached: vec![0; editors], frames, awaited: BTreeMap::new(), outstanding: 0 }
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Notes a keystroke.
    pub(super) fn typed(&mut self) {
        self.outstanding += self.reached.len() as u64 - 1;
    }

    /// Notes that keystrokes were lost with what their author began anew.
    pub(super) fn lost(&mut self, keystrokes: usize) {
        self.outstanding -= keystrokes as u64 * (self.reached.len() as u64 - 1);
    }

    /// Notes which revision an author's keystrokes are; `each` gets the intended time and the arrival of all that came.
    pub(super) fn placed(&mut self, revision: u64, author: usize, times: Vec<u64>, mut each: impl FnMut(u64, u64)) {
        let mut left = 0;
        for reader in (0..self.reached.len()).filter(|&reader| reader != author) {
            if self.reached[reader] < revision {
                left += 1;
                continue;
            }
            let came = self.frames[reader].iter().find(|(to, _)| *to >= revision).map_or(0, |&(_, at)| at);
            times.iter().for_each(|&time| each(time, came.max(time)));
            self.outstanding -= times.len() as u64;
        }
        if left > 0 && !times.is_empty() {
            self.awaited.insert((revision, author), Placed { times, left });
        }
    }

    /// Notes that a reader has everything up to a revision.
    pub(super) fn reached(&mut self, reader: usize, revision: u64, at_ns: u64, mut each: impl FnMut(u64, u64)) {
        let from = std::mem::replace(&mut self.reached[reader], revision) + 1;
        let frames = &mut self.frames[reader];
        if frames.len() == FRAMES_KEPT {
            frames.pop_front();
        }
        frames.push_back((revision, at_ns));
        let mut done = Vec::new();
        for (&(place, author), placed) in self.awaited.range_mut((from, 0)..(revision + 1, 0)) {
            if author == reader {
                continue;
            }
            placed.times.iter().for_each(|&time| each(time, at_ns));
            self.outstanding -= placed.times.len() as u64;
            placed.left -= 1;
            if placed.left == 0 {
                done.push((place, author));
            }
        }
        for key in done {
            self.awaited.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thin_editors_and_an_order_make_one_text() {
        let hand = |seed| Hand::new(seed, None);
        let mut editors = [Thin::new(hand(1), true), Thin::new(hand(2), true)];
        let (mut text, mut log): (String, Vec<Operations>) = (String::new(), Vec::new());
        editors[0].page(200).expect("fits");
        // Each sends what it has, now and then; the order is that of sending, as a node would have it.
        for turn in 0..400_usize {
            let author = (turn / 3) % 2;
            editors[author].key(0).expect("fits");
            let Some((mut edit, made_at)) = editors[author].next() else { continue };
            for other in &log[made_at.0 as usize..] {
                edit = edit.transform(other, Side::Second);
            }
            text = edit.apply(&text).expect("fits");
            log.push(edit.clone());
            let revision = Position(log.len() as u64);
            editors[1 - author].take(&edit, revision).expect("fits");
            assert!(editors[author].placed(revision).len() <= 3);
        }
        assert!(editors.iter().all(|editor| editor.read() == Some(text.as_str())), "{text:?}");
    }

    #[test]
    fn a_delivery_counts_once_whichever_is_heard_of_first() {
        let mut revisions = Revisions::new(3);
        let mut seen = Vec::new();
        (0..2).for_each(|_| revisions.typed());
        revisions.reached(1, 5, 70, |time, at| seen.push((time, at)));
        revisions.placed(5, 0, vec![10, 20], |time, at| seen.push((time, at)));
        assert_eq!(seen, [(10, 70), (20, 70)]);
        assert_eq!(revisions.outstanding(), 2);
        revisions.reached(2, 7, 90, |time, at| seen.push((time, at)));
        assert_eq!(seen[2..], [(10, 90), (20, 90)]);
        assert_eq!(revisions.outstanding(), 0);
    }
}
