//! Names that say nothing, and words that mean unfinished work.

use super::Violation;
use super::manifests::Package;
use super::source::{Source, words};

/// Names of crates, folders, files and modules that say nothing of what is inside.
const EMPTY: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc", "impls", "core", "types"];

const RENAME: &str = "name it after what it holds: a noun of the domain";

/// Macros that mean unfinished work.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// Words in comments that mean the same.
const LATER: &[&str] = &["FIXME", "XXX", "TODO"];

/// Checks the names of packages.
pub(super) fn check_packages(packages: &[Package], found: &mut Vec<Violation>) {
    for package in packages {
        if let Some(part) = package.name.split('-').find(|part| EMPTY.contains(part)) {
            found.push(Violation::new(&package.manifest, 1, format!("a package is called {part}"), RENAME));
        }
    }
}

/// Checks a file's path, its modules, and what it leaves undone.
pub(super) fn check(source: &Source<'_>, found: &mut Vec<Violation>) {
    let mut report = |at: usize, what: String, remedy: &str| {
        found.push(Violation::new(source.path, source.line(at), what, remedy));
    };
    let path = source.path.strip_suffix(".rs").unwrap_or(source.path);
    if let Some(part) = path.split('/').find(|part| EMPTY.contains(part)) {
        report(0, format!("a file or folder is called {part}"), RENAME);
    }
    for at in source.words("mod") {
        let name = source.code[at + 3..].trim_start();
        let name = &name[..name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len())];
        if EMPTY.contains(&name) {
            report(at, format!("a module is called {name}"), RENAME);
        }
    }
    for name in UNFINISHED {
        for at in source.words(name) {
            report(at, format!("`{name}` is left in the code"), "finish it, or return a typed error");
        }
    }
    for word in LATER {
        for at in words(&source.comments, word) {
            report(at, format!("a comment says {word}"), "do it now, open an issue, or say why it is right as it is");
        }
    }
    for at in source.code.match_indices("#[ignore]").map(|(at, _)| at) {
        report(at, "a test is ignored without a reason".to_owned(), "write `#[ignore = \"why, and how to run it\"]`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_unfinished_work() {
        let check = |path: &str, text: &str, expected: &[&str]| {
            let mut found = Vec::new();
            check(&Source::new(path, text), &mut found);
            let found: Vec<&str> = found.iter().map(|v| v.what.as_str()).collect();
            assert_eq!(found, expected, "{path}: {text}");
        };
        check("engine/shard/src/lib.rs", "fn core() {} // of the core", &[]);
        check("engine/shard/src/core_loop.rs", "mod cores;", &[]);
        check("engine/shard/src/util.rs", "", &["a file or folder is called util"]);
        check("engine/common/src/lib.rs", "", &["a file or folder is called common"]);
        check("a/src/lib.rs", "pub mod types {}", &["a module is called types"]);
        check("a/src/lib.rs", "fn f() { todo!() }", &["`todo!` is left in the code"]);
        check("a/src/lib.rs", "fn f() { \"todo!\"; } // todo!", &[]);
        check("a/src/lib.rs", "// FIXME: now", &["a comment says FIXME"]);
        check("a/src/lib.rs", "const XXX: u8 = 1; // XXXX", &[]);
        check("a/src/lib.rs", "#[ignore]", &["a test is ignored without a reason"]);
        check("a/src/lib.rs", "#[ignore = \"needs a GPU\"]", &[]);
    }

    #[test]
    fn package_names() {
        let mut found = Vec::new();
        let package = |name: &str| Package { name: name.into(), manifest: "a".into(), dependencies: Vec::new() };
        check_packages(&[package("shard"), package("wire-utils")], &mut found);
        assert_eq!(found.iter().map(|v| v.what.as_str()).collect::<Vec<_>>(), ["a package is called utils"]);
    }
}
