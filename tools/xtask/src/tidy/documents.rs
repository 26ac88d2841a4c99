//! Paths that documents name exist: in backticks from the root, in links from the document.

use super::{Tree, Violation};

const REMEDY: &str = "correct the path, or the sentence if the thing is gone";

/// Checks every document of the repository.
pub(super) fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for (path, text) in tree.files.iter().filter(|(path, _)| path.ends_with(".md")) {
        let mut fenced = false;
        for (n, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            if fenced {
                continue; // commands and drawings
            }
            let mut report = |what: String| found.push(Violation::new(path, n + 1, what, REMEDY));
            for named in line.split('`').skip(1).step_by(2) {
                if let Some(missing) = candidates(tree, named).into_iter().find(|path| !exists(tree, path)) {
                    report(format!("names `{missing}`, which does not exist"));
                }
            }
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let target = target.split('#').next().unwrap_or(target);
                let foreign = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
                if !foreign && !exists(tree, &resolve(path, target)) {
                    report(format!("links to {target}, which does not exist"));
                }
            }
        }
    }
}

/// The paths from the root that a text in backticks names: none if it is not such a path.
fn candidates(tree: &Tree, named: &str) -> Vec<String> {
    let top = named.split('/').next().unwrap_or_default();
    let is_path = named.contains('/')
        && named.chars().all(|c| c.is_alphanumeric() || "/._-*{},:".contains(c))
        && tree.paths.contains(top);
    if !is_path {
        return Vec::new();
    }
    let named = named.split(':').next().unwrap_or(named); // a line or item behind it
    let Some((before, rest)) = named.split_once('{') else { return vec![named.to_owned()] };
    let (choices, after) = rest.split_once('}').unwrap_or((rest, ""));
    choices.split(',').map(|choice| format!("{before}{choice}{after}")).collect()
}

fn exists(tree: &Tree, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    match path.split_once('*') {
        None => tree.paths.contains(path),
        Some((before, after)) => {
            let ending = after.rsplit('*').next().unwrap_or(after);
            tree.paths.iter().any(|path| path.starts_with(before) && path.ends_with(ending))
        }
    }
}

/// A link's target as a path from the root.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_paths_exist() {
        let check = |text: &str, expected: &[&str]| {
            let tree = Tree::of(&[("README.md", text), ("a/b.rs", ""), ("a/c/d.md", "[up](../b.rs)")]);
            let mut found = Vec::new();
            check(&tree, &mut found);
            assert_eq!(found.iter().map(|v| v.what.as_str()).collect::<Vec<_>>(), expected, "{text}");
        };
        check(
            "`a/b.rs` `a/` `a/c/` `a/*.rs` `a/b.rs:12` `a/b.rs::new` `a/{b,c/d}.rs`",
            &["names `a/c/d.rs`, which does not exist"],
        );
        check("`a/{b.rs,c}` `GET /a/x` `other/x` `and/or` `a/b c`", &[]);
        check(
            "`a/x.rs` and\n`a/*.py`",
            &["names `a/x.rs`, which does not exist", "names `a/*.py`, which does not exist"],
        );
        check("```\n`a/x.rs`\n```\n", &[]);
        check("[b](a/b.rs#L3) [c](https://e.org/x) [d](#here)", &[]);
        check("[b](a/x.rs)", &["links to a/x.rs, which does not exist"]);
    }
}
