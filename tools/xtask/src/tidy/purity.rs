//! Pure crates do no I/O: time, bytes and seeds go in, effects come out. Their `clippy.toml` resolves names; this searches
//! the text, which clippy's lists of single functions cannot cover.

use super::source::{Source, words};
use super::{Tree, Violation};

/// A crate without I/O.
struct Pure {
    folder: &'static str,
    /// Whether equal inputs must give equal outputs too. Not so where TLS draws randomness.
    deterministic: bool,
}

const PURE: &[Pure] = &[
    Pure { folder: "engine/domain", deterministic: true },
    Pure { folder: "engine/journal", deterministic: true },
    Pure { folder: "engine/shard", deterministic: true },
    Pure { folder: "inference/scheduler", deterministic: true },
    Pure { folder: "bench/workload", deterministic: true },
    Pure { folder: "transport/quic", deterministic: false },
];

/// What no crate without I/O may name outside its tests, and what to do instead.
const IO: &[(&str, &str)] = &[
    ("std::fs", "files are the shell's: take the bytes"),
    ("std::thread", "threads are the shell's: return an output"),
    ("std::process", "processes are the shell's: return an error"),
    ("std::env", "configuration is an argument"),
    ("UdpSocket", "sockets are the shell's: return a datagram"),
    ("TcpStream", "sockets are the shell's"),
    ("TcpListener", "sockets are the shell's"),
    ("ToSocketAddrs", "names are resolved by the shell: take a SocketAddr"),
    ("Instant::now", "take `now` as an argument"),
    ("SystemTime::now", "take `now` as an argument"),
    ("stdin", "input is an argument"),
    ("stdout", "output is a return value"),
    ("stderr", "output is a return value"),
    ("println!", "output is a return value"),
    ("print!", "output is a return value"),
    ("eprintln!", "output is a return value"),
    ("eprint!", "output is a return value"),
];

/// What a deterministic crate may not name besides.
const CHANCE: &[(&str, &str)] = &[
    ("std::net", "a peer is a number here; addresses are the shell's"),
    ("SystemTime", "time is a number here"),
    ("HashMap", "its order differs in each process: use BTreeMap or rustc_hash::FxHashMap"),
    ("HashSet", "its order differs in each process: use BTreeSet or rustc_hash::FxHashSet"),
    ("RandomState", "it differs in each process"),
    ("DefaultHasher", "it may differ between compilers"),
    ("rand::rng", "take a seeded generator as an argument"),
    ("rand::random", "take a seeded generator as an argument"),
    ("thread_rng", "take a seeded generator as an argument"),
    ("ThreadRng", "take a seeded generator as an argument"),
    ("OsRng", "take a seeded generator as an argument"),
    ("from_os_rng", "take the seed as an argument"),
];

/// Checks that each pure crate forbids unsafe code and carries the clippy.toml of its kind.
pub(super) fn check_crates(tree: &Tree, found: &mut Vec<Violation>) {
    let model = tree.files.get(&format!("{}/clippy.toml", PURE[0].folder));
    for Pure { folder, deterministic } in PURE {
        let library = format!("{folder}/src/lib.rs");
        let Some(text) = tree.files.get(&library) else { continue };
        if !Source::new(&library, text).code.contains("#![forbid(unsafe_code)]") {
            let remedy = "write `#![forbid(unsafe_code)]` below its documentation";
            found.push(Violation::new(&library, 1, "a pure crate does not forbid unsafe code".to_owned(), remedy));
        }
        let lints = format!("{folder}/clippy.toml");
        let what = match tree.files.get(&lints) {
            None => "a pure crate has no clippy.toml",
            own if *deterministic && own != model => "the clippy.toml of pure crates differ",
            Some(_) => continue,
        };
        let remedy = format!("copy the one of {}", PURE[0].folder);
        found.push(Violation::new(&lints, 1, what.to_owned(), &remedy));
    }
}

/// Searches a file of a pure crate for what would make it impure.
pub(super) fn check(source: &Source<'_>, found: &mut Vec<Violation>) {
    let inside = |pure: &&Pure| source.path.strip_prefix(pure.folder).is_some_and(|rest| rest.starts_with("/src/"));
    let Some(pure) = PURE.iter().find(inside) else { return };
    let imports = source.imports();
    for (name, remedy) in IO.iter().chain(CHANCE.iter().filter(|_| pure.deterministic)) {
        let mut places: Vec<usize> = source.words(name).collect();
        places.extend(imports.iter().filter(|(_, path)| words(path, name).next().is_some()).map(|(at, _)| *at));
        // A name written in a `use` is found in the text and in the import: one report a line is enough.
        let lines = places.into_iter().filter(|&at| !source.is_test(at)).map(|at| source.line(at));
        let lines: std::collections::BTreeSet<usize> = lines.collect();
        let report = |line| Violation::new(source.path, line, format!("a pure crate names `{name}`"), remedy);
        found.extend(lines.into_iter().map(report));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_crates_name_no_effects() {
        let check = |path: &str, text: &str, expected: &[&str]| {
            let mut found = Vec::new();
            check(&Source::new(path, text), &mut found);
            let expected: Vec<String> = expected.iter().map(|name| format!("a pure crate names `{name}`")).collect();
            assert_eq!(found.iter().map(|v| v.what.clone()).collect::<Vec<_>>(), expected, "{path}: {text}");
        };
        let domain = "engine/domain/src/a.rs";
        check(domain, "use std::collections::BTreeMap;", &[]);
        check(domain, "use rustc_hash::FxHashMap;", &[]);
        check(domain, "use std::collections::HashMap;", &["HashMap"]);
        check(domain, "use std::{fs, io};", &["std::fs"]);
        check(domain, "fn f() { std::fs::read(p); }", &["std::fs"]);
        check(domain, "// std::fs\nfn f() { \"std::fs\"; }", &[]);
        check(domain, "fn f(now: Instant) {}", &[]);
        check(domain, "fn f() { Instant::now(); }", &["Instant::now"]);
        check(domain, "fn f() { rand::rng(); rand::rngs::StdRng::seed_from_u64(1); }", &["rand::rng"]);
        check(domain, "#[cfg(test)]\nmod tests { use std::fs; }", &[]);
        check("transport/quic/src/a.rs", "use std::net::SocketAddr; use std::collections::HashMap;", &[]);
        check("transport/quic/src/a.rs", "fn f(t: SystemTime) { SystemTime::now(); }", &["SystemTime::now"]);
        check(domain, "fn f(t: SystemTime) {}", &["SystemTime"]);
        check("transport/quic/src/a.rs", "use std::net::{SocketAddr, UdpSocket};", &["UdpSocket"]);
        check("engine/node/src/a.rs", "use std::fs;", &[]);
        check("engine/domain/tests/a.rs", "use std::fs;", &[]);
    }

    #[test]
    fn pure_crates_carry_their_lints() {
        let check = |files: &[(&str, &str)], expected: &[&str]| {
            let mut found = Vec::new();
            check_crates(&Tree::of(files), &mut found);
            assert_eq!(found.iter().map(|v| v.what.as_str()).collect::<Vec<_>>(), expected, "{files:?}");
        };
        let (domain, shard) = ("engine/domain/src/lib.rs", "engine/shard/src/lib.rs");
        let (one, two) = ("engine/domain/clippy.toml", "engine/shard/clippy.toml");
        let good = "//! A.\n#![forbid(unsafe_code)]";
        check(&[(domain, good), (one, "a"), (shard, good), (two, "a")], &[]);
        check(&[(domain, good), (one, "a"), (shard, good), (two, "b")], &["the clippy.toml of pure crates differ"]);
        check(&[(domain, good), (one, "a"), (shard, good)], &["a pure crate has no clippy.toml"]);
        check(&[(domain, "// #![forbid(unsafe_code)]"), (one, "a")], &["a pure crate does not forbid unsafe code"]);
    }
}
