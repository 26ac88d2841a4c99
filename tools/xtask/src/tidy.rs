//! Rules of the house that no compiler knows. Each violation says where, what, and what to do.
//!
//! Runs in well under a second, touches no network and writes nothing (but see [`run`]), so it is an ordinary test.

mod documents;
mod manifests;
mod names;
mod purity;
mod sizes;
mod source;
mod unsafety;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use source::Source;

/// Code that a program wrote: it must be current, and that is all.
const GENERATED: &str = "protocol/src/generated/";

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The file, relative to the root.
    pub path: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: String, remedy: &str) -> Self {
        Self { path: path.to_owned(), line, what, remedy: remedy.to_owned() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n    {}", self.path, self.line, self.what, self.remedy)
    }
}

/// The files of the repository, as far as tidy reads them.
struct Tree {
    /// Path to text of every Rust file, manifest, document, and configuration file.
    files: BTreeMap<String, String>,
    /// Every file and folder, whatever it holds.
    paths: BTreeSet<String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self { files: BTreeMap::new(), paths: BTreeSet::new() };
        tree.walk(root, "")?;
        Ok(tree)
    }

    fn walk(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let path = format!("{prefix}{name}");
            let kind = entry.file_type().with_context(|| format!("looking at {path}"))?;
            if kind.is_dir() {
                // What tools leave behind is not ours to judge.
                if !matches!(
                    name,
                    ".git" | "target" | "node_modules" | "corpus" | "artifacts" | "__pycache__" | ".venv"
                ) {
                    self.walk(&entry.path(), &format!("{path}/"))?;
                    self.paths.insert(path);
                }
                continue;
            }
            if [".rs", ".md", ".toml", ".txt"].iter().any(|ending| name.ends_with(ending)) {
                // A file that vanishes between listing and reading was an editor's.
                if let Ok(text) = std::fs::read_to_string(entry.path()) {
                    self.files.insert(path.clone(), text);
                }
            }
            self.paths.insert(path);
        }
        Ok(())
    }

    /// The first line of a file that holds `text`, else 1.
    fn line_of(&self, path: &str, text: &str) -> usize {
        let lines = self.files.get(path).map(|file| file.lines());
        lines.and_then(|mut lines| lines.position(|line| line.contains(text))).map_or(1, |n| n + 1)
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let folders = files.iter().flat_map(|(path, _)| path.match_indices('/').map(|(at, _)| path[..at].to_owned()));
        Self {
            paths: folders.chain(files.iter().map(|(path, _)| (*path).to_owned())).collect(),
            files: files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect(),
        }
    }
}

/// Checks every rule. An error means that the repository could not be read, not that a rule was broken.
pub fn check(root: &Path) -> Result<Vec<Violation>> {
    let tree = Tree::read(root)?;
    let packages = manifests::packages(root)?;
    let mut found = Vec::new();
    manifests::check_imports(&tree, &packages, &mut found);
    manifests::check_inheritance(&tree, &packages, &mut found);
    names::check_packages(&packages, &mut found);
    purity::check_crates(&tree, &mut found);
    documents::check(&tree, &mut found);
    let sources = sources(&tree);
    for source in &sources {
        names::check(source, &mut found);
        purity::check(source, &mut found);
        unsafety::check(source, &mut found);
    }
    sizes::check(&sizes::Ratchet::of(&tree), &sizes::measure(&tree, &sources), &mut found);
    if let Some(at) = crate::codegen::first_difference(root)? {
        let remedy = "run `cargo xtask codegen` and commit what it wrote";
        found.push(Violation::new(&at.path, at.line, "differs from what its schema gives".to_owned(), remedy));
    }
    found.sort();
    Ok(found)
}

fn sources(tree: &Tree) -> Vec<Source<'_>> {
    let rust = tree.files.iter().filter(|(path, _)| path.ends_with(".rs") && !path.starts_with(GENERATED));
    rust.map(|(path, text)| Source::new(path, text)).collect()
}

/// Checks every rule and prints what was broken; says whether nothing was. With `write`, first lowers the numbers of
/// the ratchet to what the code has reached. It never raises one.
pub fn run(root: &Path, write: bool) -> Result<bool> {
    if write {
        let tree = Tree::read(root)?;
        let text = sizes::Ratchet::of(&tree).tightened(&sizes::measure(&tree, &sources(&tree)));
        std::fs::write(root.join(sizes::RATCHET), text).with_context(|| format!("writing {}", sizes::RATCHET))?;
    }
    let found = check(root)?;
    for violation in &found {
        eprintln!("{violation}");
    }
    match found.len() {
        0 => println!("tidy: nothing to do"),
        n => eprintln!("tidy: {n} to do"),
    }
    Ok(found.is_empty())
}
