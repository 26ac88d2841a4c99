//! Whether this machine can run a node, and what to do where it cannot.

mod setup;

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thalweg_protocol::limits::{LOG_BLOCK_BYTES, LOG_FILE_BYTES, WEB_CONNECTIONS_MAX};

use crate::config::{CertificateFiles, DeviceChoice, cpus};
use crate::identity::{DataDir, IdentityError};

/// Locked memory that one core needs, in bytes: two executors and a ring fit in 1 MiB, not in half of it.
const LOCKED_BYTES_PER_CORE: u64 = 1 << 20;
/// Descriptors a node wants: HTTP connections, segments of the log, rings. Sessions over QUIC share one socket a core, and
/// need none.
const OPEN_FILES: u64 = WEB_CONNECTIONS_MAX as u64 + 2_048;
/// Kernel buffer below which bursts of datagrams are lost, in bytes.
const UDP_BUFFER_BYTES: u64 = 2 << 20;
/// Free space below which the log of a node soon has no room, in bytes.
const DISK_FREE_BYTES: u64 = 32 * LOG_FILE_BYTES;
/// Length of the file on which the disk is tried.
const PROBE_BYTES: i64 = 1 << 20;
/// How long a try-out of io_uring may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// A node runs, but not as well as it could.
    Warn,
    /// A node does not run.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

/// What to check.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// The data directory a node would use.
    pub data: PathBuf,
    /// The address it would serve QUIC on.
    pub quic: SocketAddr,
    /// The address it would serve HTTP on, if it would.
    pub http: Option<SocketAddr>,
    /// The certificate of an operator's own, if there is one.
    pub certificate: Option<CertificateFiles>,
    /// Memory it would use, in bytes, if that was said.
    pub memory_budget_bytes: Option<u64>,
    /// Where it would compute models.
    pub device: DeviceChoice,
}

/// Looks at everything a node needs. Changes nothing but a file it makes in the data directory and removes again.
pub fn checks(options: &DoctorOptions) -> Vec<Check> {
    let runs = is_in_use(&options.data);
    vec![
        io_uring(),
        locked_memory(),
        open_files(),
        udp_buffer("UDP receive buffer", "net.core.rmem_max"),
        udp_buffer("UDP send buffer", "net.core.wmem_max"),
        cpu_features(),
        setup::device(options.device),
        setup::memory(options.memory_budget_bytes),
        setup::clock(),
        port(options.quic, runs),
        setup::http(options.http, runs),
        setup::certificate(options.certificate.as_ref()),
        data_directory(&options.data),
        log_disk(&options.data),
        setup::secrets(&options.data),
        setup::audit(&options.data),
    ]
}

fn check(name: &'static str, outcome: Outcome, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    let remedy = (outcome != Outcome::Pass).then(|| remedy.into());
    Check { name, outcome, found: found.into(), remedy }
}

/// Starts an executor and lets it sleep once: what every core does first.
fn io_uring() -> Check {
    let name = "io_uring";
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if disabled.trim() == "2" {
        let remedy = "sudo sysctl kernel.io_uring_disabled=0";
        return check(name, Outcome::Fail, "disabled for all by kernel.io_uring_disabled=2", remedy);
    }
    let (done, waited) = std::sync::mpsc::sync_channel(1);
    let spawned = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .name("thalweg-doctor")
        .io_memory(64 << 10)
        .ring_depth(16)
        .spawn(move || async move {
            glommio::timer::sleep(Duration::from_micros(1)).await;
            let _ = done.send(());
        });
    let remedy = "allow the io_uring system calls (container: a seccomp profile that has them) and raise `ulimit -l`";
    match spawned {
        Err(error) => check(name, Outcome::Fail, format!("an executor does not start: {error}"), remedy),
        Ok(_) if waited.recv_timeout(TRY_TIMEOUT).is_err() => {
            check(name, Outcome::Fail, "an executor starts but never runs", remedy)
        }
        Ok(_) => check(name, Outcome::Pass, "works", ""),
    }
}

fn limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    (unsafe { libc::getrlimit(resource, &raw mut limit) } == 0).then_some(limit.rlim_cur)
}

fn locked_memory() -> Check {
    let name = "locked memory";
    let needed = LOCKED_BYTES_PER_CORE * cpus().len() as u64;
    match limit(libc::RLIMIT_MEMLOCK) {
        Some(libc::RLIM_INFINITY) => check(name, Outcome::Pass, "unlimited", ""),
        Some(bytes) => {
            let outcome = if bytes < LOCKED_BYTES_PER_CORE {
                Outcome::Fail
            } else if bytes < needed {
                Outcome::Warn
            } else {
                Outcome::Pass
            };
            let remedy = "ulimit -l unlimited, or LimitMEMLOCK=64M in the systemd unit";
            check(name, outcome, format!("{} KiB, {} wanted", bytes >> 10, needed >> 10), remedy)
        }
        None => check(name, Outcome::Warn, "cannot be read", "see `ulimit -l`"),
    }
}

fn open_files() -> Check {
    let name = "open files";
    match limit(libc::RLIMIT_NOFILE) {
        Some(files) if files < OPEN_FILES => {
            let remedy = "ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit";
            check(name, Outcome::Warn, format!("{files}, {OPEN_FILES} wanted"), remedy)
        }
        Some(files) => check(name, Outcome::Pass, format!("{files}, {OPEN_FILES} wanted"), ""),
        None => check(name, Outcome::Warn, "cannot be read", "see `ulimit -n`"),
    }
}

fn udp_buffer(name: &'static str, setting: &str) -> Check {
    let path = format!("/proc/sys/{}", setting.replace('.', "/"));
    let bytes = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let remedy = format!("sudo sysctl -w {setting}=8388608, so that bursts are not lost");
    match bytes {
        Some(bytes) if bytes < UDP_BUFFER_BYTES => {
            check(name, Outcome::Warn, format!("at most {} KiB", bytes >> 10), remedy)
        }
        Some(bytes) => check(name, Outcome::Pass, format!("at most {} KiB", bytes >> 10), remedy),
        None => check(name, Outcome::Warn, format!("{path} cannot be read"), remedy),
    }
}

fn cpu_features() -> Check {
    let name = "CPU";
    #[cfg(target_arch = "x86_64")]
    {
        let features = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ];
        let has: Vec<_> = features.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        let found =
            format!("{} CPUs; {}", cpus().len(), if has.is_empty() { "no vector units".into() } else { has.join(" ") });
        let fast = features[..3].iter().all(|(_, there)| *there);
        let outcome = if fast { Outcome::Pass } else { Outcome::Warn };
        check(name, outcome, found, "models will be slow; use a CPU with AVX2, or serve with --no-model")
    }
    #[cfg(not(target_arch = "x86_64"))]
    check(name, Outcome::Warn, format!("{} CPUs", cpus().len()), "models will be slow: fast kernels are for x86-64")
}

/// Whether a node runs with a data directory.
fn is_in_use(data: &Path) -> bool {
    data.is_dir() && matches!(DataDir::open(data), Err(IdentityError::InUse { .. }))
}

/// What is to be said of an address that cannot be had, while a node `runs` with the same settings.
fn taken(name: &'static str, addr: SocketAddr, runs: bool, error: &io::Error, flag: &str) -> Check {
    if runs && error.kind() == io::ErrorKind::AddrInUse {
        return check(name, Outcome::Pass, format!("{addr} is taken, and the node of this data directory runs"), "");
    }
    let remedy = format!("stop the program that has it (a running node?), or choose another with {flag} ADDR");
    check(name, Outcome::Warn, format!("{addr}: {error}"), remedy)
}

fn port(addr: SocketAddr, runs: bool) -> Check {
    let name = "QUIC address";
    match UdpSocket::bind(addr) {
        Ok(_) => check(name, Outcome::Pass, format!("{addr} is free"), ""),
        Err(error) => taken(name, addr, runs, &error, "--quic"),
    }
}

fn data_directory(data: &Path) -> Check {
    let name = "data directory";
    let shown = data.display();
    // A directory that is not there yet is made by the node; what matters is whether it could be.
    let existing = nearest(data);
    let probe = existing.join(format!(".thalweg-doctor-{}", std::process::id()));
    match OpenOptions::new().write(true).create_new(true).open(&probe) {
        Ok(_) => {
            let removed = fs::remove_file(&probe);
            let found =
                if existing == data { format!("{shown} can be written") } else { format!("{shown} can be made") };
            match removed {
                Ok(()) => check(name, Outcome::Pass, found, ""),
                Err(error) => check(name, Outcome::Warn, format!("{}: {error}", probe.display()), "remove it by hand"),
            }
        }
        Err(error) => check(
            name,
            Outcome::Fail,
            format!("{shown}: {error}"),
            "choose another with --data DIR, or mend its permissions",
        ),
    }
}

/// The directory itself, or the nearest above it that exists.
fn nearest(data: &Path) -> &Path {
    data.ancestors().find(|path| path.exists()).unwrap_or(data)
}

/// Tries on the disk of the data directory what the log does there.
fn log_disk(data: &Path) -> Check {
    let name = "disk of the log";
    let probe = nearest(data).join(format!(".thalweg-doctor-log-{}", std::process::id()));
    let tried = try_disk(&probe);
    let removed = fs::remove_file(&probe);
    match (tried, removed) {
        (Err((what, error)), _) => check(
            name,
            Outcome::Fail,
            format!("{what} failed: {error}"),
            "choose a directory on another disk with --data DIR",
        ),
        (Ok(_), Err(error)) => check(name, Outcome::Warn, format!("{}: {error}", probe.display()), "remove it by hand"),
        (Ok(disk), Ok(())) => {
            let found = format!(
                "{} MiB free; a sync takes about {} us{}",
                disk.free_bytes >> 20,
                disk.sync_us,
                if disk.direct { "" } else { "; it cannot be written around the page cache" }
            );
            let outcome = if disk.free_bytes < DISK_FREE_BYTES { Outcome::Warn } else { Outcome::Pass };
            check(name, outcome, found, "free some space; without room nothing can be written to channels on disk")
        }
    }
}

/// What a disk can do.
struct DiskProbe {
    free_bytes: u64,
    sync_us: u128,
    /// Whether files can be written around the page cache, as the io_uring back end of the log does.
    direct: bool,
}

fn try_disk(probe: &Path) -> Result<DiskProbe, (&'static str, std::io::Error)> {
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(probe);
    let file = made.map_err(|error| ("making a file", error))?;
    // SAFETY: takes an open descriptor and three numbers.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, PROBE_BYTES) } != 0 {
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            return Err(("setting room aside", error));
        }
    }
    let mut took: Vec<u128> = Vec::new();
    for n in 0..9 {
        let began = Instant::now();
        file.write_all_at(&[1; LOG_BLOCK_BYTES], n * LOG_BLOCK_BYTES as u64).map_err(|error| ("writing", error))?;
        file.sync_data().map_err(|error| ("syncing", error))?;
        took.push(began.elapsed().as_micros());
    }
    took.sort_unstable();
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(probe).is_ok();
    // SAFETY: zeros are a valid statvfs, which is filled through an open descriptor.
    let free_bytes = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::fstatvfs(file.as_raw_fd(), &raw mut stat) != 0 {
            return Err(("asking for free space", std::io::Error::last_os_error()));
        }
        stat.f_bavail * stat.f_frsize
    };
    Ok(DiskProbe { free_bytes, sync_us: took[took.len() / 2], direct })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        let dir = crate::identity::tests::TempDir::new();
        let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let quic = taken.local_addr().expect("bound");
        let all = checks(&DoctorOptions {
            data: dir.path().join("new"),
            quic,
            http: None,
            certificate: None,
            memory_budget_bytes: None,
            device: DeviceChoice::Auto,
        });
        assert!(all.iter().all(|check| (check.outcome == Outcome::Pass) == check.remedy.is_none()), "{all:#?}");
        let outcome = |name| all.iter().find(|check| check.name == name).map(|check| check.outcome);
        assert_eq!(outcome("QUIC address"), Some(Outcome::Warn));
        assert_eq!(port(quic, true).outcome, Outcome::Pass, "its node has it");
        assert_eq!(outcome("data directory"), Some(Outcome::Pass));
        assert!(matches!(outcome("disk of the log"), Some(Outcome::Pass | Outcome::Warn)), "{all:#?}");
        assert_eq!(log_disk(Path::new("/proc/nowhere")).outcome, Outcome::Fail);
        let nowhere = PathBuf::from("/proc/nowhere");
        assert_eq!(data_directory(&nowhere).outcome, Outcome::Fail);
    }
}
