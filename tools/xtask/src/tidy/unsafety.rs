//! Unsafe code stands in as few files as can be, and they are listed here. That each block says why it is sound is
//! clippy's to check.

use super::Violation;
use super::source::Source;

/// Files and folders that may hold unsafe code, and for what.
#[rustfmt::skip]
const MAY: &[(&str, &str)] = &[
    ("bench/load/src/process.rs",     "clock ticks and page size of this machine"),
    ("bench/load/src/swarm",          "timer slack, ppoll"),
    ("bench/micro/src/bin/log_backends.rs", "pinning, CPU time of a thread"),
    ("bench/micro/src/bin/udp_backends.rs", "pinning, CPU time of a thread"),
    ("bench/peers/",                  "programs to compare with: system calls that read CPU time"),
    ("engine/ring/src/",              "slots shared by two threads; eventfd"),
    ("engine/node/src/",              "pinning, descriptors, executor wake-up"),
    ("inference/worker/src/kernel/",  "SIMD"),
    ("inference/worker/src/decoder/pass.rs", "rows that the members of a team write parts of"),
    ("inference/worker/src/gguf",     "memory-mapped weights"),
    ("inference/worker/src/team.rs",  "work shared by threads; pinning"),
    ("inference/worker/src/tensor/device.rs", "whether libraries of CUDA are there, and what its driver finds"),
    ("inference/remote/src/stage.rs", "the bell's descriptor in tokio's reactor"),
    ("transport/quic/tests/memory.rs", "an allocator that counts"),
    ("transport/udp/src/",            "socket options, control messages, io_uring"),
    ("transport/web/src/link.rs",     "the bell's descriptor in tokio's reactor"),
];

/// Checks that unsafe code stands where it may.
pub(super) fn check(source: &Source<'_>, found: &mut Vec<Violation>) {
    if MAY.iter().any(|(prefix, _)| source.path.starts_with(prefix)) {
        return;
    }
    let mut places = source.words("unsafe");
    if let Some(first) = places.next() {
        let what = format!("unsafe code, {} time(s), in a file not listed for it", 1 + places.count());
        let remedy = "use a safe interface, or add the file to MAY in tools/xtask/src/tidy/unsafety.rs with its reason";
        found.push(Violation::new(source.path, source.line(first), what, remedy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_stands_where_it_may() {
        let check = |path: &str, text: &str, expected: usize| {
            let mut found = Vec::new();
            check(&Source::new(path, text), &mut found);
            assert_eq!(found.len(), expected, "{path}: {text}");
        };
        check("engine/ring/src/spsc.rs", "unsafe { a() }", 0);
        check("engine/shard/src/lib.rs", "unsafe { a() } unsafe fn b() {}", 1);
        check("engine/shard/src/lib.rs", "#![forbid(unsafe_code)] // unsafe", 0);
    }
}
