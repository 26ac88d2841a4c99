//! What has to be done to one row of things to make it another: the shortest way by Myers, "An O(ND) difference algorithm
//! and its variations" (1986), figure 2, up to a number of differences; beyond it, all that differs is replaced.

use std::ops::Range;

use thalweg_protocol::document::{Operation, Operations};

/// Differences that are looked for; the search takes about the square of this in memory and time.
const DIFFERENCES_MAX: usize = 256;

/// One step, in order. Ranges are of the row that is (`Keep`, `Remove`) or of the one that is wanted (`Insert`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Keep(Range<usize>),
    Remove(Range<usize>),
    Insert(Range<usize>),
}

/// The steps from one row to another. What is removed stands before what is inserted in its place.
pub(crate) fn steps<T: PartialEq>(have: &[T], want: &[T]) -> Vec<Step> {
    let before = have.iter().zip(want).take_while(|(a, b)| a == b).count();
    let most = have.len().min(want.len()) - before;
    let after = have.iter().rev().zip(want.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let (have_end, want_end) = (have.len() - after, want.len() - after);
    let mut steps = Vec::new();
    push(&mut steps, Step::Keep(0..before));
    match shortest(&have[before..have_end], &want[before..want_end]) {
        Some(path) => {
            for kept in path {
                let (x, y, length) = (kept.0 + before, kept.1 + before, kept.2);
                let (had, wanted) = reached(&steps);
                push(&mut steps, Step::Remove(had..x));
                push(&mut steps, Step::Insert(wanted..y));
                push(&mut steps, Step::Keep(x..x + length));
            }
        }
        None => {
            push(&mut steps, Step::Remove(before..have_end));
            push(&mut steps, Step::Insert(before..want_end));
        }
    }
    push(&mut steps, Step::Keep(have_end..have.len()));
    steps
}

/// The positional edit that makes one text another.
pub(crate) fn operations(have: &str, want: &str) -> Operations {
    let (have, want): (Vec<char>, Vec<char>) = (have.chars().collect(), want.chars().collect());
    let length = |chars: &[char]| chars.iter().map(|c| c.len_utf16() as u32).sum();
    Operations::of(steps(&have, &want).into_iter().map(|step| match step {
        Step::Keep(range) => Operation::Retain(length(&have[range])),
        Step::Remove(range) => Operation::Delete(length(&have[range])),
        Step::Insert(range) => Operation::Insert(want[range].iter().collect()),
    }))
}

/// How far steps go in both rows.
fn reached(steps: &[Step]) -> (usize, usize) {
    steps.iter().fold((0, 0), |(had, wanted), step| match step {
        Step::Keep(range) => (had + range.len(), wanted + range.len()),
        Step::Remove(range) => (had + range.len(), wanted),
        Step::Insert(range) => (had, wanted + range.len()),
    })
}

fn push(steps: &mut Vec<Step>, step: Step) {
    let (Step::Keep(range) | Step::Remove(range) | Step::Insert(range)) = &step;
    if !range.is_empty() {
        steps.push(step);
    }
}

/// What two rows have in common on the shortest way: from where in each, how many; the last has a length of 0 and is at
/// their ends. `None`: too many differences.
fn shortest<T: PartialEq>(have: &[T], want: &[T]) -> Option<Vec<(usize, usize, usize)>> {
    let (n, m) = (have.len() as isize, want.len() as isize);
    let most = DIFFERENCES_MAX.min(have.len() + want.len()) as isize;
    let at = |k: isize| (k + most + 1) as usize;
    let mut furthest = vec![0isize; (2 * most + 3) as usize];
    let mut trace = Vec::new();
    for d in 0..=most {
        trace.push(furthest.clone());
        for k in (-d..=d).step_by(2) {
            let is_down = k == -d || (k != d && furthest[at(k - 1)] < furthest[at(k + 1)]);
            let mut x = if is_down { furthest[at(k + 1)] } else { furthest[at(k - 1)] + 1 };
            let mut y = x - k;
            while x < n && y < m && have[x as usize] == want[y as usize] {
                (x, y) = (x + 1, y + 1);
            }
            furthest[at(k)] = x;
            if x >= n && y >= m {
                return Some(walk_back(&trace, d, (n, m), at));
            }
        }
    }
    None
}

fn walk_back(
    trace: &[Vec<isize>],
    last: isize,
    end: (isize, isize),
    at: impl Fn(isize) -> usize,
) -> Vec<(usize, usize, usize)> {
    let (mut x, mut y) = end;
    let mut common = vec![(x as usize, y as usize, 0)];
    for d in (0..=last).rev() {
        let furthest = &trace[d as usize];
        let k = x - y;
        let is_down = k == -d || (k != d && furthest[at(k - 1)] < furthest[at(k + 1)]);
        let before_k = if is_down { k + 1 } else { k - 1 };
        let (before_x, before_y) = match d {
            0 => (0, 0),
            _ => (furthest[at(before_k)], furthest[at(before_k)] - before_k),
        };
        let (begin_x, begin_y) = match (d, is_down) {
            (0, _) => (0, 0),
            (_, true) => (before_x, before_y + 1),
            (_, false) => (before_x + 1, before_y),
        };
        if x > begin_x {
            common.push((begin_x as usize, begin_y as usize, (x - begin_x) as usize));
        }
        (x, y) = (before_x, before_y);
    }
    common.reverse();
    common
}
