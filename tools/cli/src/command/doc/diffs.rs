//! What makes one text of another.

use similar::{Algorithm, DiffOp, TextDiff, capture_diff_slices};
use thalweg_client::{Operation, Operations, utf16_len};

/// The edits that make `after` of `before`: lines that are the same stay, and of those that are not, what they begin and end
/// with.
pub(super) fn edits(before: &str, after: &str) -> Operations {
    let (old, new): (Vec<&str>, Vec<&str>) =
        (before.split_inclusive('\n').collect(), after.split_inclusive('\n').collect());
    let mut parts = Vec::new();
    for op in capture_diff_slices(Algorithm::Patience, &old, &new) {
        let (_, from, to) = op.as_tag_tuple();
        match op {
            DiffOp::Equal { .. } => parts.push(Operation::Retain(length(&old[from]))),
            _ => within(&old[from].concat(), &new[to].concat(), &mut parts),
        }
    }
    Operations::of(parts)
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
    let diff = TextDiff::from_lines(before.1, after.1);
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
}
