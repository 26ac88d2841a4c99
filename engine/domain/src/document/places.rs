//! Where everything in a document stands: how deep, below which root, and whether others may belong to it. With it an
//! update is judged before the library sees it.
//!
//! Per client one list of stretches, so a text of any length that one person typed takes one entry.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use thalweg_protocol::document::COMMENTS_ROOT;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::invalid;
use super::update::{Id, Kind, NODE_CLIENTS, Parent, Parsed, SAME_PLACE_MAX, Struct, hash};

/// Types within types. The library walks them recursively.
const DEPTH_MAX: u8 = 96;
/// Clients that ever edited one document.
const CLIENTS_MAX: usize = 1 << 14;
/// Roots of one document.
const ROOTS_MAX: usize = 1 << 10;

/// Where something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    kind: Kind,
    /// 1: directly in a root; 0 if nobody can tell any more.
    depth: u8,
    is_comment: bool,
    /// Whether it is under a key of a map, or an attribute.
    is_entry: bool,
    /// Which sequence or entry of a map it is in, as a hash of whose.
    list: u32,
}

const GONE: Place = Place { kind: Kind::Gone, depth: 0, is_comment: false, is_entry: false, list: 0 };

impl Place {
    fn is_beside(self, other: Self) -> bool {
        let of = |place: Self| (place.list, place.depth, place.is_comment, place.is_entry);
        of(self) == of(other)
    }
}

/// What one client inserted: stretches by their first clock, from `from` up to `clock`.
#[derive(Debug, Default)]
struct Line {
    from: u32,
    clock: u32,
    runs: Vec<(u32, Place)>,
}

impl Line {
    fn at(&self, clock: u32) -> Option<Place> {
        if clock < self.from || clock >= self.clock {
            return None;
        }
        let after = self.runs.partition_point(|(start, _)| *start <= clock);
        after.checked_sub(1).map(|at| self.runs[at].1)
    }

    fn push(&mut self, start: u32, end: u32, place: Place) {
        self.clock = end;
        if self.runs.last().is_none_or(|(_, last)| *last != place) {
            self.runs.push((start, place));
        }
    }

    /// Whether all that is in a stretch of clocks may be changed by those who comment. What is gone may: nothing happens.
    fn only_comments(&self, stretch: &Range<u32>) -> bool {
        let begin = self.runs.partition_point(|(start, _)| *start <= stretch.start).saturating_sub(1);
        let touched = self.runs[begin.min(self.runs.len())..].iter().take_while(|(start, _)| *start < stretch.end);
        touched.into_iter().all(|(_, place)| place.is_comment || place.kind == Kind::Gone)
    }
}

/// Where everything stands.
#[derive(Debug, Default)]
pub(crate) struct Places {
    lines: BTreeMap<u64, Line>,
    roots: BTreeSet<Box<str>>,
}

fn incomplete(id: Id) -> Reject {
    let Id { client, clock } = id;
    Reject::new(
        RejectCode::UpdateIncomplete,
        format!(
            "the update builds on what client {client} edited from {clock} on, which the document does not have; send all \
             that it lacks since the state vector you were given"
        ),
    )
}

impl Places {
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Up to where a client's edits are known.
    fn clock(&self, client: u64) -> u32 {
        self.lines.get(&client).map_or(0, |line| line.clock)
    }

    /// The state vector, encoded.
    pub(crate) fn state_vector(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(5 + 12 * self.lines.len());
        put_number(&mut bytes, self.lines.len() as u64);
        for (client, line) in &self.lines {
            put_number(&mut bytes, *client);
            put_number(&mut bytes, u64::from(line.clock));
        }
        bytes.freeze()
    }

    /// Bytes of memory these take, about.
    pub(crate) fn memory(&self) -> usize {
        let run = size_of::<(u32, Place)>();
        let lines: usize = self.lines.values().map(|line| 64 + line.runs.capacity() * run).sum();
        lines + self.roots.iter().map(|root| 32 + root.len()).sum::<usize>()
    }

    /// Where the structs of an update would stand that are not known yet.
    ///
    /// # Errors
    /// `update_incomplete`, if it builds on what is not known; `update_invalid`, if it builds on itself in a circle, or goes
    /// beyond a limit. An update of the document's `own` log may have more clients, and those of nodes.
    pub(crate) fn extend(&self, parsed: &Parsed, is_own: bool) -> Result<Self, Reject> {
        let mut news = News { known: self, parsed, made: Self::default(), crowds: BTreeMap::new(), is_own };
        news.run()?;
        let made = news.made;
        for (client, ranges) in &parsed.deletes {
            let known = made.clock(*client).max(self.clock(*client));
            let end = ranges.last().map_or(0, |last| last.end);
            if end > known {
                return Err(incomplete(Id { client: *client, clock: known }));
            }
        }
        let clients = made.lines.keys().filter(|client| !self.lines.contains_key(client)).count();
        if !is_own && clients > 0 && self.lines.len() + clients > CLIENTS_MAX {
            return Err(Reject::new(
                RejectCode::DocumentTooLarge,
                format!("more than {CLIENTS_MAX} clients edited this document; begin another"),
            ));
        }
        let roots = made.roots.iter().filter(|root| !self.roots.contains(*root)).count();
        if !is_own && roots > 0 && self.roots.len() + roots > ROOTS_MAX {
            return Err(invalid(format_args!("the document would have more than {ROOTS_MAX} roots")));
        }
        Ok(made)
    }

    /// Whether some of an update's structs are known already, at least in part.
    pub(crate) fn has_some_of(&self, parsed: &Parsed) -> bool {
        parsed.sections.iter().any(|(client, structs)| {
            let mut structs = parsed.structs[structs.clone()].iter();
            structs.find(|one| one.kind != Kind::Skip).is_some_and(|first| first.clock < self.clock(*client))
        })
    }

    /// Takes in what [`Places::extend`] made.
    pub(crate) fn take(&mut self, made: Self) {
        for (client, line) in made.lines {
            let known = self.lines.entry(client).or_default();
            if known.clock != line.from {
                continue;
            }
            for (start, place) in line.runs {
                known.push(start, line.clock, place);
            }
            known.clock = line.clock;
        }
        self.roots.extend(made.roots);
    }

    /// What an update deletes outside of the comments.
    ///
    /// # Errors
    /// `forbidden`, if it inserts anything there.
    pub(crate) fn beyond_comments(&self, made: &Self, parsed: &Parsed) -> Result<Vec<(u64, Range<u32>)>, Reject> {
        for line in made.lines.values() {
            if !line.only_comments(&(line.from..line.clock)) {
                return Err(only_comments());
            }
        }
        let mut beyond = Vec::new();
        for (client, ranges) in &parsed.deletes {
            for range in ranges {
                let lines = [&self.lines, &made.lines].into_iter().filter_map(|lines| lines.get(client));
                if !lines.into_iter().all(|line| line.only_comments(&clip(range, line))) {
                    beyond.push((*client, range.clone()));
                }
            }
        }
        Ok(beyond)
    }
}

/// The part of a stretch that a line has.
fn clip(range: &Range<u32>, line: &Line) -> Range<u32> {
    range.start.max(line.from)..range.end.min(line.clock)
}

/// What commenters are told who changed more.
pub(crate) fn only_comments() -> Reject {
    Reject::new(
        RejectCode::Forbidden,
        format!("you may comment in this document: change nothing but its root `{COMMENTS_ROOT}`"),
    )
}

/// Where something is inserted: between which two, under which key, in what.
type Spot = (Option<Id>, Option<Id>, u64, Option<Id>);

/// One update being laid over what is known, in the order in which its structs can be carried out.
struct News<'a> {
    known: &'a Places,
    parsed: &'a Parsed,
    made: Places,
    /// How many are inserted at the same place.
    crowds: BTreeMap<Spot, usize>,
    is_own: bool,
}

impl News<'_> {
    fn run(&mut self) -> Result<(), Reject> {
        let parsed = self.parsed;
        let mut open: BTreeMap<u64, Range<usize>> = parsed.sections.clone();
        let mut waiting: Vec<u64> = Vec::new();
        let mut is_waiting: BTreeSet<u64> = BTreeSet::new();
        for first in parsed.sections.keys() {
            waiting.push(*first);
            is_waiting.insert(*first);
            while let Some(&client) = waiting.last() {
                let Some(at) = open.get(&client).filter(|left| !left.is_empty()).map(|left| left.start) else {
                    waiting.pop();
                    is_waiting.remove(&client);
                    continue;
                };
                let one = &parsed.structs[at];
                let missing = self.missing(client, one);
                match missing {
                    None => {
                        self.place(client, one)?;
                        if let Some(left) = open.get_mut(&client) {
                            left.start += 1;
                        }
                        // Back to whoever waits, which may have what it needs now.
                        if waiting.len() > 1 {
                            waiting.pop();
                            is_waiting.remove(&client);
                        }
                    }
                    Some(id) if is_waiting.contains(&id.client) && id.client != client => {
                        return Err(invalid("its parts depend on each other in a circle"));
                    }
                    Some(id) if id.client != client && open.get(&id.client).is_some_and(|left| !left.is_empty()) => {
                        waiting.push(id.client);
                        is_waiting.insert(id.client);
                    }
                    Some(id) => return Err(incomplete(Id { clock: self.clock(id.client), ..id })),
                }
            }
        }
        Ok(())
    }

    fn clock(&self, client: u64) -> u32 {
        self.made.clock(client).max(self.known.clock(client))
    }

    fn at(&self, id: Id) -> Option<Place> {
        let made = self.made.lines.get(&id.client).and_then(|line| line.at(id.clock));
        made.or_else(|| self.known.lines.get(&id.client).and_then(|line| line.at(id.clock)))
    }

    /// What a struct needs that is not there.
    fn missing(&self, client: u64, one: &Struct) -> Option<Id> {
        if one.kind == Kind::Skip || one.clock + one.length <= self.clock(client) {
            return None;
        }
        let parent = match one.parent {
            Parent::Item(id) => Some(id),
            _ => None,
        };
        let before = one.clock.checked_sub(1).map(|clock| Id { client, clock });
        let needs = [before, one.left, one.right, parent];
        needs.into_iter().flatten().find(|id| id.clock >= self.clock(id.client))
    }

    fn place(&mut self, client: u64, one: &Struct) -> Result<(), Reject> {
        let known = self.clock(client);
        let end = one.clock + one.length;
        if one.kind == Kind::Skip || end <= known {
            return Ok(());
        }
        if client >= NODE_CLIENTS && !self.is_own {
            return Err(invalid(format_args!("client {client} is one that only nodes edit as; take a smaller id")));
        }
        if !self.is_own && one.kind != Kind::Gone {
            self.crowd(one)?;
        }
        let place = self.place_of(one)?;
        if one.clock < known && !self.is_own {
            self.check_rest(place, Id { client, clock: known - 1 })?;
        }
        let from = self.known.clock(client);
        let line = self.made.lines.entry(client).or_insert_with(|| Line { from, clock: from, runs: Vec::new() });
        line.push(known, end, place);
        Ok(())
    }

    /// Looks at a struct whose beginning is known, up to `last`. The library puts the rest of it behind that, wherever it says
    /// that it belongs.
    fn check_rest(&self, place: Place, last: Id) -> Result<(), Reject> {
        match self.at(last) {
            Some(known) if known.list == place.list && (known.kind == Kind::Gone) == (place.kind == Kind::Gone) => {
                Ok(())
            }
            _ => {
                let Id { client, clock } = last;
                Err(invalid(format_args!("what client {client} edited at {clock} is elsewhere than it says")))
            }
        }
    }

    fn crowd(&mut self, one: &Struct) -> Result<(), Reject> {
        let parent = match one.parent {
            Parent::Item(id) => Some(id),
            Parent::Root(root) => Some(Id { client: u64::MAX, clock: u32::from(root) }),
            Parent::Neighbours => None,
        };
        let crowd = self.crowds.entry((one.left, one.right, one.key, parent)).or_default();
        *crowd += 1;
        if *crowd > SAME_PLACE_MAX {
            return Err(invalid(format_args!("it inserts more than {SAME_PLACE_MAX} parts at one place")));
        }
        Ok(())
    }

    /// Where a struct stands, as the library will find it.
    fn place_of(&mut self, one: &Struct) -> Result<Place, Reject> {
        if one.kind == Kind::Gone {
            return Ok(GONE);
        }
        let (depth, is_comment, is_entry, list) = match one.parent {
            Parent::Root(root) => {
                let name = &self.parsed.roots[usize::from(root)];
                if !self.made.roots.contains(name) {
                    self.made.roots.insert(name.clone());
                }
                (1, &**name == COMMENTS_ROOT, one.key != 0, list_of(hash(name), one.key))
            }
            Parent::Item(id) => match self.at(id) {
                Some(Place { kind: Kind::Type, depth, is_comment, .. }) => {
                    let owner = id.client.rotate_left(32) ^ u64::from(id.clock);
                    (depth + 1, is_comment, one.key != 0, list_of(owner, one.key))
                }
                Some(Place { kind: Kind::Gone | Kind::Erased, .. }) => return Ok(GONE),
                _ => return Err(invalid("something belongs to what is no type")),
            },
            Parent::Neighbours => {
                let neighbours = [one.left, one.right].map(|id| id.and_then(|id| self.at(id)));
                let mut there = neighbours.into_iter().flatten().filter(|place| place.kind != Kind::Gone);
                let Some(first) = there.next() else { return Ok(GONE) };
                if !self.is_own && there.any(|other| !other.is_beside(first)) {
                    return Err(invalid("something stands between what is not in the same place"));
                }
                if !self.is_own && first.is_entry && one.right.is_some() {
                    return Err(invalid("something stands before the value of a key"));
                }
                (first.depth, first.is_comment, first.is_entry, first.list)
            }
        };
        if depth > DEPTH_MAX {
            return Err(invalid(format_args!("types nested more than {DEPTH_MAX} deep")));
        }
        if is_entry && one.is_text && !self.is_own {
            return Err(invalid("the value of a key is text that is in no type"));
        }
        Ok(Place { kind: one.kind, depth, is_comment, is_entry, list })
    }
}

/// A number for a sequence, or an entry of a map, by whose it is and its key. Whoever makes two of them the same gains a
/// document in which their own edits are somewhere else.
fn list_of(owner: u64, key: u64) -> u32 {
    let mixed = (owner ^ key.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

fn put_number(bytes: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        bytes.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.put_u8(number as u8);
}
