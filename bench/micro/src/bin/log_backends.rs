//! The back ends of a core's log side by side: batches written and synced into a file of a log.
//!
//! `log_backends [ROUNDS] [MILLISECONDS] [DIRECTORY]`. The core is one thread on one CPU that sleeps on its bell or on the
//! back end's descriptor while a batch is under way, as a node's core does; what writes may run anywhere. Batches go one
//! behind the other, each as soon as the last is durable. Back ends alternate; medians over the rounds are printed:
//!
//! - `p50`, `p99`: from handing a batch over until the core knows that it is durable, in µs;
//! - `batches/s` and `MB/s`: what that comes to;
//! - `core us`: CPU time per batch of the thread that is the core, its sleeps and wake-ups included;
//! - `cpu us`: that of the whole process, with its threads and those the kernel runs for it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thalweg_journal::Disk;
use thalweg_node::disk::{FileDisk, LogBackend, LogFile, writer};
use thalweg_ring::Bell;

const BACKENDS: [LogBackend; 2] = [LogBackend::Thread, LogBackend::IoUring];
const BATCHES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];
const DELAYS_MS: [u64; 3] = [0, 1, 5];
const FILE_BYTES: u64 = 32 << 20;

/// What the file looks like before the batches come.
#[derive(Debug, Clone, Copy)]
enum File {
    /// Room was set aside, nothing was ever written.
    Allocated,
    /// It was written before, with zeros or with an older part of the log.
    Written,
}

#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    core_us: f64,
    cpu_us: f64,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, time) = (number(5), Duration::from_millis(number(500)));
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = directory.join(format!("log-backends-{}", std::process::id()));
    println!("delay_ms file      batch_KiB backend      p50_us   p99_us batches/s     MB/s core_us  cpu_us");
    for delay_ms in DELAYS_MS {
        for file in [File::Allocated, File::Written] {
            if delay_ms > 0 && matches!(file, File::Allocated) {
                continue; // the delay hides the difference
            }
            for bytes in BATCHES {
                let mut results = BACKENDS.map(|_| Vec::new());
                for _ in 0..rounds {
                    for (backend, results) in BACKENDS.into_iter().zip(&mut results) {
                        let delay = Duration::from_millis(delay_ms);
                        results.push(measure(&directory, backend, file, bytes, delay, time));
                    }
                }
                for (backend, results) in BACKENDS.into_iter().zip(&results) {
                    print(delay_ms, file, bytes, backend, results);
                }
            }
        }
    }
    std::fs::remove_dir_all(&directory).expect("the directory can be removed");
}

fn print(delay_ms: u64, file: File, bytes: usize, backend: LogBackend, results: &[Figures]) {
    let median = |of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = results.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{delay_ms:>8} {:<9} {:>9} {:<12} {:>6.1} {:>8.1} {:>9.0} {:>8.1} {:>7.1} {:>7.1}",
        format!("{file:?}"),
        bytes >> 10,
        format!("{backend:?}"),
        median(|f| f.p50_us),
        median(|f| f.p99_us),
        median(|f| f.rate),
        median(|f| f.rate) * bytes as f64 / 1e6,
        median(|f| f.core_us),
        median(|f| f.cpu_us),
    );
}

fn measure(
    directory: &Path,
    backend: LogBackend,
    kind: File,
    bytes: usize,
    delay: Duration,
    time: Duration,
) -> Figures {
    pin(0);
    let disk = FileDisk::open(directory, delay).expect("a directory");
    let path = "wal/bench";
    let file = disk.create(path).expect("a file");
    file.allocate(FILE_BYTES).expect("room");
    if matches!(kind, File::Written) {
        let zeros = vec![0; 1 << 20];
        (0..FILE_BYTES).step_by(zeros.len()).for_each(|at| file.write_at(at, &zeros).expect("room"));
    }
    file.sync().expect("synced");
    let open = |path| LogFile::open(&disk, directory, path, backend).expect("a file");
    let file = open(path);
    let bell = Bell::new().expect("an eventfd");
    // What the back end starts inherits the CPUs it may use.
    unpin();
    let mut writer = writer(backend, &bell, delay).expect("a back end");
    pin(0);
    let mut batch: Vec<u8> = (0..bytes).map(|n| (n * 31 + 7) as u8 | 1).collect();
    let (mut offset, mut took) = (0, Vec::with_capacity(1 << 20));
    let clocks = [libc::CLOCK_THREAD_CPUTIME_ID, libc::CLOCK_PROCESS_CPUTIME_ID];
    let ([core, cpu], began) = (clocks.map(cpu_time), Instant::now());
    while began.elapsed() < time {
        if offset + bytes as u64 > FILE_BYTES {
            // A file that is full is followed by another like it; a core gets it ready beforehand.
            if matches!(kind, File::Allocated) {
                break;
            }
            offset = 0;
        }
        let begin = Instant::now();
        writer.begin(&file, offset, batch);
        let written = loop {
            if let Some(written) = writer.poll() {
                break written;
            }
            bell.prepare_nap();
            if !writer.is_ready() {
                bell.nap(writer.wake_fds().map_or(bell.fd(), |fds| fds.poll), Duration::from_secs(1));
            }
            bell.awake();
        };
        written.result.expect("written");
        took.push(begin.elapsed().as_nanos() as u32);
        batch = written.bytes;
        offset += bytes as u64;
    }
    let ([core_now, cpu_now], elapsed) = (clocks.map(cpu_time), began.elapsed());
    let (core, cpu) = (core_now - core, cpu_now - cpu);
    let count = took.len() as f64;
    took.sort_unstable();
    let at = |share: f64| took.get((count * share) as usize).map_or(0.0, |&ns| f64::from(ns) / 1e3);
    Figures {
        rate: count / elapsed.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        core_us: core.as_secs_f64() * 1e6 / count,
        cpu_us: cpu.as_secs_f64() * 1e6 / count,
    }
}

fn pin(cpu: usize) {
    affinity(|n| n == cpu);
}

fn unpin() {
    affinity(|_| true);
}

fn affinity(allowed: impl Fn(usize) -> bool) {
    // SAFETY: a set of zeros is empty, and the call reads no more than the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (0..64).filter(|&n| allowed(n)).for_each(|n| libc::CPU_SET(n, &mut set));
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the timespec it is given.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
