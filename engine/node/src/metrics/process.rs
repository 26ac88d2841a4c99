//! What the system says of the process. Read from /proc on a thread of the web stage, never on a core.

use std::fs;
use std::path::Path;

use thalweg_web::Exposition;

/// Ticks of processor time in a second, as /proc counts them: part of the kernel's interface (`USER_HZ`), the same on
/// every architecture that Thalweg runs on.
const TICKS_PER_S: f64 = 100.0;

/// Numbers of `/proc/self/stat` by their place after the command's name (proc(5) counts from 1 and has the name second).
const STAT_UTIME: usize = 14 - 3;
const STAT_STIME: usize = 15 - 3;
const STAT_THREADS: usize = 20 - 3;
const STAT_VIRTUAL: usize = 23 - 3;

/// Writes what the system says; what it does not say is left out.
pub(super) fn expose(into: &mut Exposition) {
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        expose_stat(&stat, into);
    }
    if let Some(kib) = status_kib("VmRSS:") {
        into.gauge("thalweg_process_resident_memory_bytes", "Memory of the process that is in RAM.")
            .add(&[], kib << 10);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        into.gauge("thalweg_process_open_fds", "Descriptors open.").add(&[], open.count() as u64);
    }
    if let Some(most) = limit("Max open files") {
        into.gauge("thalweg_process_max_fds", "Descriptors that may be open.").add(&[], most);
    }
}

fn expose_stat(stat: &str, into: &mut Exposition) {
    // The name may hold anything, brackets too.
    let Some((_, rest)) = stat.rsplit_once(')') else { return };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (number(STAT_UTIME), number(STAT_STIME)) {
        into.counter("thalweg_process_cpu_seconds", "Processor time used, by the program and by the kernel for it.")
            .add_fraction(&[("mode", "user")], user as f64 / TICKS_PER_S)
            .add_fraction(&[("mode", "system")], system as f64 / TICKS_PER_S);
    }
    if let Some(threads) = number(STAT_THREADS) {
        into.gauge("thalweg_process_threads", "Threads of the process.").add(&[], threads);
    }
    if let Some(bytes) = number(STAT_VIRTUAL) {
        into.gauge("thalweg_process_virtual_memory_bytes", "Address space of the process.").add(&[], bytes);
    }
}

fn status_kib(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

fn limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Bytes of the files in a directory: those of the write-ahead log are a few.
pub(super) fn directory_bytes(path: &Path) -> Option<u64> {
    let bytes = |entry: fs::DirEntry| entry.metadata().ok().filter(fs::Metadata::is_file).map(|file| file.len());
    Some(fs::read_dir(path).ok()?.filter_map(Result::ok).filter_map(bytes).sum())
}

#[cfg(test)]
mod tests {
    use thalweg_web::Format;

    use super::*;

    #[test]
    fn the_process_is_described() {
        let mut into = Exposition::new(Format::Text);
        expose(&mut into);
        let text = into.finish();
        for name in
            ["resident_memory_bytes", "virtual_memory_bytes", "open_fds", "max_fds", "threads", "cpu_seconds_total"]
        {
            assert!(text.contains(&format!("\nthalweg_process_{name}")), "{name}: {text}");
        }
    }

    #[test]
    fn a_name_with_brackets_confuses_nobody() {
        let mut into = Exposition::new(Format::Text);
        let rest = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        expose_stat(&format!("1 (a) b ( c) {rest}"), &mut into);
        let text = into.finish();
        assert!(text.contains("cpu_seconds_total{mode=\"user\"} 0.14\n"), "{text}");
        assert!(text.contains("cpu_seconds_total{mode=\"system\"} 0.15\n"), "{text}");
        assert!(text.contains("threads 20\n") && text.contains("virtual_memory_bytes 23\n"), "{text}");
    }
}
