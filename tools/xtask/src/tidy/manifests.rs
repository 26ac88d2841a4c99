//! Who may import whom, and what every manifest inherits.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Tree, Violation};

/// What a package may import of ours: in its library or binary, and beyond that in its tests, benches and examples.
struct Row {
    package: &'static str,
    may: &'static [&'static str],
    tests_may: &'static [&'static str],
}

/// Shortens the table: names are written without their prefix.
const fn row(package: &'static str, may: &'static [&'static str], tests_may: &'static [&'static str]) -> Row {
    Row { package, may, tests_may }
}

/// The import table. ARCHITECTURE.md says why; what is not written here is forbidden.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("protocol",  &[], &[]),
    row("ring",      &[], &[]),
    row("domain",    &["protocol"], &[]),
    row("journal",   &["protocol", "domain"], &[]),
    row("shard",     &["protocol", "domain"], &["workload"]),
    row("node",      &["protocol", "ring", "domain", "journal", "shard", "quic", "udp", "worker", "remote", "web"], &["client", "workload"]),
    row("udp",       &[], &["quic"]),
    row("quic",      &["protocol"], &["udp"]),
    row("client",    &["protocol"], &["quic", "node"]),
    row("web",       &["protocol", "ring"], &[]),
    row("scheduler", &["protocol"], &["workload"]),
    row("worker",    &["protocol", "ring", "scheduler"], &[]),
    row("remote",    &["protocol", "ring", "worker"], &[]),
    row("workload",  &["protocol"], &[]),
    row("load",      &["protocol", "workload", "client"], &["node"]),
    row("micro",     &["protocol", "ring", "domain", "journal", "shard", "node", "quic", "udp", "scheduler", "worker", "web"], &["client", "workload"]),
    row("sim",       &["protocol", "domain", "journal", "shard", "scheduler", "workload"], &[]),
    row("chaos",     &["protocol", "workload", "client"], &[]),
    row("cli",       &["protocol", "domain", "journal", "client", "node", "load", "worker", "term"], &["workload"]),
    row("term",      &["protocol", "client"], &[]),
    row("xtask",     &[], &[]),
];

/// Foreign crates that only some may import, so that they can be replaced, or stay off the cores.
#[rustfmt::skip]
const FOREIGN: &[(&str, &[&str], &str)] = &[
    ("glommio",     &["node", "udp"], "upstream is quiet, so it must stay replaceable"),
    ("io-uring",    &["node", "udp"], "system calls belong to the shell"),
    ("tokio",       &["client", "web", "remote", "load", "chaos", "cli", "term", "micro"], "it never runs on a core thread"),
    ("axum",        &["web"], "HTTP has one face"),
    ("tokio-tungstenite", &["web"], "WebSockets have one face"),
    ("hyper",       &["web", "remote"], "HTTP has one face on each side"),
    ("quinn",       &["client", "load", "micro"], "the node drives quinn-proto itself"),
    ("quinn-proto", &["quic", "load", "micro"], "lanes are the only face of QUIC; a load generator drives thousands of connections on one thread"),
    ("quinn-udp",   &["udp", "load"], "datagrams have one small interface"),
    ("candle-core", &["worker", "micro"], "models have one interface"),
    ("candle-nn",   &["worker"], "models have one interface"),
    ("yrs",         &["domain", "client", "load", "micro", "sim"], "documents have rules; who has none of its own hands their bytes on"),
    ("flatbuffers", &["protocol"], "operations are decoded in one place"),
    ("crossterm",   &["term"], "one crate owns the terminal"),
    ("ratatui",     &["term"], "one crate owns the terminal"),
    ("ureq",        &["node", "cli"], "it waits: on threads of the gate's and of traces, never on a core"),
    ("prost",       &["node"], "spans are encoded in one place"),
    ("clap",        &["cli", "load", "sim"], "only a binary parses arguments"),
];

/// Packages whose lints differ, and why: they must still name the two of the house in their own manifest.
const OWN_LINTS: &[(&str, &str)] = &[("ring", "checked with loom, whose cfg the compiler must be told of")];

/// A package of the workspace.
pub(super) struct Package {
    /// Its name without the prefix `thalweg-`; the binary's package is `cli`.
    pub(super) name: String,
    /// The path of its manifest, relative to the root.
    pub(super) manifest: String,
    /// Names of the packages it depends on (ours shortened like `name`), whether ours, and whether for tests only.
    pub(super) dependencies: Vec<Dependency>,
}

/// One dependency of a [`Package`].
pub(super) struct Dependency {
    /// As in its registry or, for ours, without the prefix.
    pub(super) name: String,
    /// Whether it is of this workspace.
    pub(super) ours: bool,
    /// Whether only tests, benches and examples see it.
    pub(super) tests_only: bool,
}

/// Asks cargo for the packages of the workspace. Touches no network and no lock file.
pub(super) fn packages(root: &Path) -> Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("running `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let value: Value = serde_json::from_slice(&output.stdout).context("reading the answer of `cargo metadata`")?;
    let base = value["workspace_root"].as_str().context("no workspace_root in the answer of `cargo metadata`")?;
    let packages = value["packages"].as_array().context("no packages in the answer of `cargo metadata`")?;
    packages.iter().map(|package| read_package(package, base)).collect()
}

fn read_package(package: &Value, base: &str) -> Result<Package> {
    let text = |key: &str| package[key].as_str().with_context(|| format!("a package of `cargo metadata` has no {key}"));
    let manifest = text("manifest_path")?;
    let manifest = manifest.strip_prefix(base).unwrap_or(manifest).trim_start_matches('/').to_owned();
    let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
    let dependency = |d: &Value| Dependency {
        name: short(d["name"].as_str().unwrap_or_default()).to_owned(),
        ours: d["path"].is_string(),
        tests_only: d["kind"] == "dev",
    };
    Ok(Package {
        name: short(text("name")?).to_owned(),
        manifest,
        dependencies: dependencies.iter().map(dependency).collect(),
    })
}

fn short(name: &str) -> &str {
    if name == "thalweg" { "cli" } else { name.strip_prefix("thalweg-").unwrap_or(name) }
}

/// Checks the import tables.
pub(super) fn check_imports(tree: &Tree, packages: &[Package], found: &mut Vec<Violation>) {
    for package in packages {
        let Some(row) = TABLE.iter().find(|row| row.package == package.name) else {
            found.push(Violation::new(
                &package.manifest,
                tree.line_of(&package.manifest, "name ="),
                format!("package {} has no row in the import table", package.name),
                "add one to TABLE in tools/xtask/src/tidy/manifests.rs and a line to ARCHITECTURE.md",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(remedy) = refusal(row, dependency) else { continue };
            let written =
                if dependency.ours { format!("thalweg-{}", dependency.name) } else { dependency.name.clone() };
            found.push(Violation::new(
                &package.manifest,
                tree.line_of(&package.manifest, &written),
                format!("{} may not import {}", package.name, dependency.name),
                &remedy,
            ));
        }
    }
}

/// Why a row forbids a dependency, as what to do instead.
fn refusal(row: &Row, dependency: &Dependency) -> Option<String> {
    let name = dependency.name.as_str();
    if dependency.ours {
        let allowed = row.may.contains(&name) || (dependency.tests_only && row.tests_may.contains(&name));
        let may = if row.may.is_empty() { "nothing of ours".to_owned() } else { row.may.join(", ") };
        return (!allowed).then(|| format!("it may import {may}; move the code, or change the table with its reason"));
    }
    let (_, allowed, why) = FOREIGN.iter().find(|(foreign, ..)| *foreign == name)?;
    let refused = !dependency.tests_only && !allowed.contains(&row.package);
    refused.then(|| format!("only {} may: {why}", allowed.join(", ")))
}

/// Checks what a manifest must inherit, and that nothing comes in by a side door.
pub(super) fn check_inheritance(tree: &Tree, packages: &[Package], found: &mut Vec<Violation>) {
    for package in packages {
        let path = package.manifest.as_str();
        let Some(text) = tree.files.get(path) else { continue };
        let has = |section: &str, wanted: &str| entries(text).any(|(_, s, line)| s == section && line == wanted);
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let wanted = format!("{key}.workspace = true");
            if !has("package", &wanted) {
                let remedy = format!("write `{wanted}` under [package]");
                found.push(Violation::new(path, 1, format!("does not inherit {key}"), &remedy));
            }
        }
        let own = OWN_LINTS.iter().any(|(name, _)| *name == package.name);
        if own && !(text.contains("missing_docs = ") && text.contains("undocumented_unsafe_blocks = ")) {
            let remedy = "name missing_docs under [lints.rust] and undocumented_unsafe_blocks under [lints.clippy]";
            found.push(Violation::new(path, 1, "its own lints lack those of the house".to_owned(), remedy));
        } else if !own && !has("lints", "workspace = true") {
            let remedy = "write `workspace = true` under [lints]";
            found.push(Violation::new(path, 1, "does not inherit the lints of the workspace".to_owned(), remedy));
        }
        check_sources(path, text, found);
    }
}

/// Dependencies by path or from git: ours are named once, in the root manifest.
fn check_sources(path: &str, text: &str, found: &mut Vec<Violation>) {
    for (line, section, entry) in entries(text).filter(|(_, section, _)| section.contains("dependencies")) {
        let key = |name: &str| {
            let spaced = entry.replace(' ', "");
            spaced.contains(&format!("{{{name}="))
                || spaced.contains(&format!(",{name}="))
                || spaced.starts_with(&format!("{name}="))
        };
        if key("path") {
            let remedy = "name it under [workspace.dependencies] of the root and write `NAME.workspace = true` here";
            found.push(Violation::new(path, line, format!("a dependency by path in [{section}]"), remedy));
        }
        if key("git") {
            let remedy = "use a version of the registry, so that a build needs nothing else";
            found.push(Violation::new(path, line, format!("a dependency from git in [{section}]"), remedy));
        }
    }
}

/// The lines of a manifest: number, section, content without comment.
fn entries(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut section = "";
    text.lines().enumerate().filter_map(move |(n, line)| {
        let line = line.split(" #").next().unwrap_or(line).trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
            return None;
        }
        (!line.is_empty() && !line.starts_with('#')).then_some((n + 1, section, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"thalweg-shard\"\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n[lints]\nworkspace = true\n\
        [dependencies]\n";

    fn package(name: &str, dependencies: &[(&str, bool, bool)]) -> Package {
        let dependency =
            |&(name, ours, tests_only): &(&str, bool, bool)| Dependency { name: name.into(), ours, tests_only };
        Package {
            name: name.into(),
            manifest: "a/Cargo.toml".into(),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn imports_follow_the_table() {
        let check = |name: &str, dependency: (&str, bool, bool), expected: &[&str]| {
            let mut found = Vec::new();
            let tree = Tree::of(&[("a/Cargo.toml", "[package]\n\nx = 1\nthalweg-node.workspace = true\n")]);
            check_imports(&tree, &[package(name, &[dependency])], &mut found);
            let found: Vec<&str> = found.iter().map(|v| v.what.as_str()).collect();
            assert_eq!(found, expected, "{name} {dependency:?}");
        };
        check("shard", ("domain", true, false), &[]);
        check("shard", ("node", true, false), &["shard may not import node"]);
        check("shard", ("workload", true, false), &["shard may not import workload"]);
        check("shard", ("workload", true, true), &[]);
        check("ring", ("protocol", true, false), &["ring may not import protocol"]);
        check("shard", ("tokio", false, false), &["shard may not import tokio"]);
        check("node", ("tokio", false, false), &["node may not import tokio"]);
        check("node", ("tokio", false, true), &[]);
        check("client", ("tokio", false, false), &[]);
        check("attic", ("bytes", false, false), &["package attic has no row in the import table"]);
    }

    #[test]
    fn a_violation_points_at_the_line() {
        let mut found = Vec::new();
        let tree = Tree::of(&[("a/Cargo.toml", "[package]\n\nthalweg-node.workspace = true\n")]);
        check_imports(&tree, &[package("shard", &[("node", true, false)])], &mut found);
        assert_eq!(found[0].line, 3);
    }

    #[test]
    fn manifests_inherit() {
        let check = |name: &str, text: &str, expected: &[(usize, &str)]| {
            let mut found = Vec::new();
            check_inheritance(&Tree::of(&[("a/Cargo.toml", text)]), &[package(name, &[])], &mut found);
            let found: Vec<_> = found.iter().map(|v| (v.line, v.what.as_str())).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("shard", GOOD, &[]);
        check(
            "shard",
            &GOOD.replace("edition.workspace = true", "edition = \"2021\""),
            &[(1, "does not inherit edition")],
        );
        check("shard", &GOOD.replace("[lints]\n", "[other]\n"), &[(1, "does not inherit the lints of the workspace")]);
        check("ring", GOOD, &[(1, "its own lints lack those of the house")]);
        check(
            "shard",
            &format!("{GOOD}x = {{ path = \"../x\" }}\n"),
            &[(11, "a dependency by path in [dependencies]")],
        );
        check(
            "shard",
            &format!("{GOOD}x = {{ version = \"1\", git = \"y\" }}\n"),
            &[(11, "a dependency from git in [dependencies]")],
        );
        check("shard", &format!("{GOOD}xpath = \"1\"\n"), &[]);
    }

    #[test]
    fn the_table_names_only_its_own_rows() {
        for row in TABLE {
            for name in row.may.iter().chain(row.tests_may) {
                assert!(
                    TABLE.iter().any(|other| other.package == *name),
                    "{} may import {name}, which is no row",
                    row.package
                );
            }
        }
    }
}
