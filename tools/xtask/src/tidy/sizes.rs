//! Files and functions stay short. What was longer when a rule came is listed in the ratchet, and may only shrink.

use std::collections::BTreeMap;

use super::source::Source;
use super::{Tree, Violation};

/// Lines of a file, everything counted: as much as a reader keeps in mind.
const FILE_LINES_MAX: usize = 600;
/// Lines of a function that hold code; blank lines and comments are free, tests are not measured. The house says about
/// 70; the rest is room for a `match` to grow by a few arms before it must be split.
const FUNCTION_LINES_MAX: usize = 80;

/// Where the ratchet lies.
pub(super) const RATCHET: &str = "tools/xtask/ratchet.txt";

const HEADER: &str = "\
# What is longer than tidy allows, and by how much it still is: `lines path` or `lines path::function`.
# Numbers only go down: `cargo xtask tidy --write` lowers them. A new line needs a reason in its commit.
";

/// A file or function that was measured.
pub(super) struct Measured {
    path: String,
    line: usize,
    lines: usize,
}

/// The listed exceptions: `path` or `path::function` to lines.
pub(super) struct Ratchet(BTreeMap<String, (usize, usize)>);

impl Ratchet {
    /// Reads it from the tree; a line that cannot be read counts as an exception of 0 lines and is reported by [`check`].
    pub(super) fn of(tree: &Tree) -> Self {
        let text = tree.files.get(RATCHET).map_or("", String::as_str);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let entry = |(n, line): (usize, &str)| match line.trim().split_once(' ') {
            Some((lines, name)) => (name.trim().to_owned(), (lines.parse().unwrap_or(0), n + 1)),
            None => (line.trim().to_owned(), (0, n + 1)),
        };
        Self(lines.map(entry).collect())
    }

    /// Its text, with each number lowered to what was measured and what became short left out.
    pub(super) fn tightened(&self, measured: &BTreeMap<String, Measured>) -> String {
        let kept = self.0.iter().filter_map(|(name, (allowed, _))| {
            let lines = measured.get(name)?.lines.min(*allowed);
            (lines > limit(name)).then(|| format!("{lines} {name}\n"))
        });
        HEADER.to_owned() + &kept.collect::<String>()
    }
}

fn limit(name: &str) -> usize {
    if name.contains("::") { FUNCTION_LINES_MAX } else { FILE_LINES_MAX }
}

/// Measures every file, and every function outside tests.
pub(super) fn measure(tree: &Tree, sources: &[Source<'_>]) -> BTreeMap<String, Measured> {
    let mut measured = BTreeMap::new();
    for source in sources {
        let path = || source.path.to_owned();
        let lines = tree.files.get(source.path).map_or(0, |text| text.lines().count());
        measured.insert(path(), Measured { path: path(), line: 1, lines });
        for (at, name, lines) in source.functions() {
            let name = format!("{}::{name}", source.path);
            // Of functions with the same name in one file, the longest counts.
            if !source.is_test(at) && measured.get(&name).is_none_or(|other| other.lines < lines) {
                measured.insert(name, Measured { path: path(), line: source.line(at), lines });
            }
        }
    }
    measured
}

/// Compares what was measured with the limits and the ratchet.
pub(super) fn check(ratchet: &Ratchet, measured: &BTreeMap<String, Measured>, found: &mut Vec<Violation>) {
    for (name, Measured { path, line, lines }) in measured {
        let allowed = ratchet.0.get(name).map(|(allowed, _)| *allowed);
        let max = allowed.unwrap_or(0).max(limit(name));
        if *lines > max {
            let what = match name.rsplit_once("::") {
                Some((_, function)) => {
                    format!("function {function} has {lines} lines of code; at most {max} are allowed")
                }
                None => format!("has {lines} lines; at most {max} are allowed"),
            };
            found.push(Violation::new(path, *line, what, "split it where its meaning changes"));
        }
    }
    for (name, (allowed, line)) in &ratchet.0 {
        let now = measured.get(name).map_or(0, |m| m.lines);
        if now < *allowed || now <= limit(name) {
            let what = format!("{name} shrank from {allowed} to {now} lines");
            found.push(Violation::new(RATCHET, *line, what, "run `cargo xtask tidy --write`, so that it stays so"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_ratchet() {
        let long = "//\n".repeat(650);
        let function = format!("fn f() {{\n{}}}\n", "a();\n".repeat(90));
        let test = format!("#[test]\n{function}");
        let check = |text: &str, ratchet: &str, expected: &[&str], tightened: &str| {
            let tree = Tree::of(&[("a/b.rs", text), (RATCHET, ratchet)]);
            let sources = super::super::sources(&tree);
            let (ratchet, measured) = (Ratchet::of(&tree), measure(&tree, &sources));
            let mut found = Vec::new();
            check(&ratchet, &measured, &mut found);
            assert_eq!(found.iter().map(|v| v.what.as_str()).collect::<Vec<_>>(), expected);
            assert_eq!(ratchet.tightened(&measured), format!("{HEADER}{tightened}"));
        };
        check("", "", &[], "");
        check(&test, "", &[], "");
        check(&long, "", &["has 650 lines; at most 600 are allowed"], "");
        check(&long, "650 a/b.rs", &[], "650 a/b.rs\n");
        check(&long, "640 a/b.rs", &["has 650 lines; at most 640 are allowed"], "640 a/b.rs\n");
        check(&long, "# c\n700 a/b.rs", &["a/b.rs shrank from 700 to 650 lines"], "650 a/b.rs\n");
        check("", "700 a/b.rs", &["a/b.rs shrank from 700 to 0 lines"], "");
        check("", "700 a/c.rs", &["a/c.rs shrank from 700 to 0 lines"], "");
        check(&function, "", &["function f has 92 lines of code; at most 80 are allowed"], "");
        check(&function, "92 a/b.rs::f", &[], "92 a/b.rs::f\n");
        check("", "nonsense", &["nonsense shrank from 0 to 0 lines"], "");
    }
}
