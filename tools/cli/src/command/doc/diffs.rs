//! What makes one text of another.

use std::time::{Duration, Instant};

use similar::{Algorithm, DiffOp, TextDiff, capture_diff_slices_deadline};
use thalweg_client::{Operation, Operations, utf16_len};

/// How long it is looked for what two texts have in common: where they have little, that takes the square of their length.
/// What is not compared by then counts as different.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Stretches that are changed, at most: each is an edit. Beyond that, those that are nearest to each other are joined.
const STRETCHES_MAX: usize = 1_000;

/// A stretch of lines that take the place of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    old: (usize, usize),
    new: (usize, usize),
}

/// The edits that make `after` of `before`: lines that are the same stay, and of those that are not, what they begin and end
/// with.
pub(super) fn edits(before: &str, after: &str) -> Operations {
    edits_within(before, after, STRETCHES_MAX)
}

fn edits_within(before: &str, after: &str, stretches_max: usize) -> Operations {
    let (old, new): (Vec<&str>, Vec<&str>) =
        (before.split_inclusive('\n').collect(), after.split_inclusive('\n').collect());
    let deadline = Instant::now().checked_add(TIME_MAX);
    let found = capture_diff_slices_deadline(Algorithm::Patience, &old, &new, deadline);
    let mut stretches = Vec::new();
    for op in found.iter().filter(|op| !matches!(op, DiffOp::Equal { .. })) {
        let (_, from, to) = op.as_tag_tuple();
        let stretch = Stretch { old: (from.start, from.end), new: (to.start, to.end) };
        match stretches.last_mut() {
            // What was not compared comes as what goes, and what comes.
            Some(Stretch { old, new }) if old.1 == stretch.old.0 && new.1 == stretch.new.0 => {
                (old.1, new.1) = (stretch.old.1, stretch.new.1);
            }
            _ => stretches.push(stretch),
        }
    }
    let mut parts = Vec::new();
    let mut at = 0;
    for stretch in joined(stretches, stretches_max) {
        parts.push(Operation::Retain(length(&old[at..stretch.old.0])));
        within(&old[stretch.old.0..stretch.old.1].concat(), &new[stretch.new.0..stretch.new.1].concat(), &mut parts);
        at = stretch.old.1;
    }
    Operations::of(parts)
}

/// Joins stretches with what is the same between them until there are few enough, where that is least.
fn joined(stretches: Vec<Stretch>, most: usize) -> Vec<Stretch> {
    if stretches.len() <= most {
        return stretches;
    }
    let gap = |pair: &[Stretch]| pair[1].old.0 - pair[0].old.1;
    let mut gaps: Vec<usize> = stretches.windows(2).map(gap).collect();
    gaps.sort_unstable();
    // The widest stay, one fewer than there may be stretches.
    let least = gaps[gaps.len() - most];
    let mut as_wide = (most - 1).saturating_sub(gaps.iter().filter(|gap| **gap > least).count());
    let mut out: Vec<Stretch> = Vec::with_capacity(most);
    for stretch in stretches {
        if let Some(last) = out.last_mut() {
            let gap = stretch.old.0 - last.old.1;
            let stays = gap > least || (gap == least && as_wide > 0);
            if !stays {
                (last.old.1, last.new.1) = (stretch.old.1, stretch.new.1);
                continue;
            }
            as_wide -= usize::from(gap == least);
        }
        out.push(stretch);
    }
    out
}

fn length(lines: &[&str]) -> u32 {
    lines.iter().map(|line| utf16_len(line)).sum()
}

/// Replaces what lies between the common beginning and the common end of a stretch of the text, and goes to its end.
fn within(before: &str, after: &str, parts: &mut Vec<Operation>) {
    let operations = Operations::between(before, after);
    let rest = u64::from(utf16_len(before)) - operations.reach();
    parts.extend_from_slice(operations.parts());
    parts.push(Operation::Retain(u32::try_from(rest).expect("no longer than the stretch")));
}

/// How two texts differ, as `diff -u` prints it; empty if they do not.
pub(super) fn unified(before: (&str, &str), after: (&str, &str)) -> String {
    let diff = TextDiff::configure().algorithm(Algorithm::Patience).timeout(TIME_MAX).diff_lines(before.1, after.1);
    diff.unified_diff().context_radius(3).header(before.0, after.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_not_touched() {
        let check = |before: &str, after: &str, expected: Operations| {
            let edits = edits(before, after);
            assert_eq!(edits.apply(before).expect("it fits"), after);
            assert_eq!(edits, expected, "{before:?} {after:?}");
        };
        let o = Operations::new;
        check("", "", o());
        check("", "new\n", o().insert("new\n"));
        check("a\nb\nc\n", "a\nc\n", o().retain(2).delete(2));
        check("one\ntwo\nthree\n", "one\ntwo!\nthree\n", o().retain(7).insert("!"));
        check("a\nb\nc\nd\ne\n", "A\nb\nc\nd\nE\n", o().insert("A").delete(1).retain(7).insert("E").delete(1));
        check("日本\n👍\n", "日本\n👎\n", o().retain(3).insert("👎").delete(2));
        check("no end", "no end\n", o().retain(6).insert("\n"));
    }

    #[test]
    fn stretches_that_are_near_are_joined_when_there_are_many() {
        let before: String = (0..60).map(|line| format!("line {line}\n")).collect();
        let check = |changed: &[usize], most: usize, expected: usize| {
            let mut lines: Vec<String> = before.lines().map(|line| format!("{line}\n")).collect();
            changed.iter().for_each(|at| lines[*at] = format!("{at} is another\n"));
            let after = lines.concat();
            let edits = edits_within(&before, &after, most);
            assert_eq!(edits.apply(&before).expect("it fits"), after);
            let deleted = edits.parts().iter().filter(|part| matches!(part, Operation::Delete(_))).count();
            assert_eq!(deleted, expected, "{changed:?} {most}");
        };
        check(&[1, 3, 20, 40, 42], 5, 5);
        check(&[1, 3, 20, 40, 42], 3, 3);
        check(&[1, 3, 20, 40, 42], 1, 1);
        let all: Vec<usize> = (0..60).step_by(2).collect();
        check(&all, 7, 7);
    }

    #[test]
    fn large_texts_that_have_nothing_in_common_are_replaced() {
        let text = |what: &str| (0..60_000).map(|line| format!("{what} {line} {}\n", line % 7)).collect::<String>();
        let (before, after) = (text("old"), text("new"));
        let start = Instant::now();
        let edits = edits(&before, &after);
        // Printed, not asserted: the machine may be busy.
        println!("{:?} for {} and {} bytes", start.elapsed(), before.len(), after.len());
        assert_eq!(edits.apply(&before).expect("it fits"), after);
        assert!(edits.parts().len() <= 4 * STRETCHES_MAX, "{}", edits.parts().len());
        assert!(!unified(("a", &before), ("b", &after)).is_empty());
    }
}
