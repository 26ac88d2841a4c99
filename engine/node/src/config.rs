//! What a node is told before it starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use thalweg_domain::quota::{Allowance, Limits, Rate, TenantLimits};
pub use thalweg_domain::routing::AUTO;
use thalweg_protocol::ids::Name;
use thalweg_protocol::limits::{LOG_FILE_BYTES, PARTITIONS_DEFAULT};
pub use thalweg_protocol::op::Durability;
pub use thalweg_udp::Backend;
pub use thalweg_web::{DEFAULT_ADDR as HTTP_DEFAULT, WebConfig, WebLimits};
pub use thalweg_worker::stage::ModelSource;
pub use thalweg_worker::tensor::{DeviceChoice, DeviceError};

pub use crate::certificate::CertificateFiles;
pub use crate::disk::LogBackend;
pub use crate::gate::{AccessConfig, IssuerConfig};
use crate::reload::Source;
pub use crate::trace::TraceConfig;
pub use crate::trace::config::Secret as TraceSecret;

/// Everything a node can be told. `Default` is what `thalweg serve` runs with, but for the data directory.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where keys, certificate and the node's address are kept. Made if it is not there; locked while the node runs.
    pub data: PathBuf,
    /// Where QUIC is served; port 0 lets the kernel choose.
    pub quic: SocketAddr,
    /// Whether and where HTTP is served; by default it is not.
    pub http: Option<HttpConfig>,
    /// Cores to run; by default what inference leaves.
    pub cores: Option<usize>,
    /// Threads that run models; by default a quarter of the CPUs, at least one, none without a model.
    pub inference_threads: Option<usize>,
    /// Memory for keys and values of generations of each model, in bytes; by default 1 GiB, and at most a quarter of
    /// `memory_budget_bytes`.
    pub kv_bytes: Option<u64>,
    /// Where chat models are computed; by default on a GPU, if this build can use one and there is one.
    pub device: DeviceChoice,
    /// Models, default first.
    pub models: Vec<ModelSource>,
    /// What is said of models one by one, in the order of their names; those with a [`RemoteSettings`] are models of their
    /// own.
    pub model_settings: Vec<ModelSettings>,
    /// What a request means that names no model: a model, a class, or `auto`; without, the first model.
    pub model_default: Option<Name>,
    /// How long an idle core looks for work before it parks, in microseconds; by default [`SPIN_US`] if every stage has a
    /// CPU of its own, else 0.
    pub spin_us: Option<u64>,
    /// How the sockets talk to the kernel.
    pub backend: Backend,
    /// Partitions of the data; fixed once there is some.
    pub partitions: u16,
    /// How durable the messages of a channel are whose maker did not choose.
    pub durability: Durability,
    /// How the log is written.
    pub log_backend: LogBackend,
    /// Bytes of one file of the write-ahead log; each core has two or three.
    pub log_file_bytes: u64,
    /// What stands between the log and the disk.
    pub disk_shell: DiskShell,
    /// What each sync of the log takes longer than it must: for measuring what slower disks would do.
    pub sync_delay: Duration,
    /// Size asked of the kernel for each socket's receive and send buffers, in bytes.
    pub socket_buffer_bytes: usize,
    /// The certificate of an operator's own; by default the node makes one, which clients pin.
    pub certificate: Option<CertificateFiles>,
    /// Memory the node may use before it begins to refuse, in bytes; by default three quarters of what it may have.
    pub memory_budget_bytes: Option<u64>,
    /// What is traced, and where to; by default nothing is.
    pub trace: TraceConfig,
    /// What sessions, users and tenants may do and have; by default all.
    pub limits: Arc<Limits>,
    /// Who may come in beside the holders of the node's own tokens.
    pub access: AccessConfig,
    /// Where these settings come from, to be read again while the node runs.
    pub source: Source,
}

/// What the settings say of one model: a table `[model.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The name requests give.
    pub name: Name,
    /// What it is good for: `fast`, `accurate`, or a word of the operator's; without, [`CLASS`].
    pub class: Option<Name>,
    /// What a token of it costs compared with the others; 0 is free.
    pub cost: u32,
    /// Who answers in its place while it cannot.
    pub fallback: Option<Name>,
    /// Where it is served, if that is not here.
    pub remote: Option<RemoteSettings>,
}

/// The class of models of which nobody says one.
pub const CLASS: &str = "standard";

/// A model that another server runs behind OpenAI's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteSettings {
    /// Where, up to `/v1`: `https://host[:port][/path]/v1`.
    pub url: String,
    /// What that server calls the model.
    pub remote_name: String,
    /// The file with the key that server wants, without a line's end; read at the start and at each reload.
    pub key_file: Option<PathBuf>,
    /// Longest time until it begins to answer, and between two parts of an answer.
    pub timeout: Duration,
    /// Longest conversation and answer together, in tokens.
    pub context_tokens: u32,
}

/// Whether and where HTTP is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpConfig {
    /// Where, and what its clients can press against.
    pub web: WebConfig,
    /// Whether the node does without HTTP, and says so, if somebody else serves there.
    pub optional: bool,
}

/// What stands between the log and the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskShell {
    /// Nothing.
    #[default]
    Plain,
    /// What was not synced is lost when the process dies, as if the power had failed: for tests with real processes. Not
    /// with [`LogBackend::IoUring`].
    Discard,
}

/// How long an idle core that has its CPU to itself looks for work before it parks, in microseconds: longer than the
/// distance of two messages of a lively conversation between programs, short enough to cost an idle node nothing.
pub const SPIN_US: u64 = 200;

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            quic: SocketAddr::from((Ipv4Addr::LOCALHOST, 4433)),
            http: None,
            cores: None,
            inference_threads: None,
            kv_bytes: None,
            device: DeviceChoice::Auto,
            models: Vec::new(),
            model_settings: Vec::new(),
            model_default: None,
            spin_us: None,
            backend: Backend::default(),
            partitions: PARTITIONS_DEFAULT,
            durability: Durability::Disk,
            log_backend: LogBackend::default(),
            log_file_bytes: LOG_FILE_BYTES,
            disk_shell: DiskShell::default(),
            sync_delay: Duration::ZERO,
            socket_buffer_bytes: 8 << 20,
            certificate: None,
            memory_budget_bytes: None,
            trace: TraceConfig::default(),
            limits: Arc::default(),
            access: AccessConfig::default(),
            source: Source::default(),
        }
    }
}

/// Which CPUs do what, decided once at boot and printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// One CPU per core.
    pub cores: Vec<usize>,
    /// One CPU per inference thread; empty if they are not pinned.
    pub inference: Vec<usize>,
    /// How many inference threads.
    pub inference_threads: usize,
    /// How long an idle core looks for work before it parks, in microseconds.
    pub spin_us: u64,
}

impl Layout {
    /// Shares `cpus` out. Cores get what inference leaves, and none shares its CPU with another unless told to.
    pub fn new(config: &NodeConfig, cpus: &[usize]) -> Self {
        let default_threads = if config.models.is_empty() { 0 } else { (cpus.len() / 4).max(1) };
        // Threads that are asked for are there also without a model: one may be loaded later.
        let inference_threads = config.inference_threads.unwrap_or(default_threads);
        let left = cpus.len().saturating_sub(inference_threads).max(1);
        // A machine without inference still leaves one CPU in four to clients, the web and the kernel's own work.
        let default_cores = if inference_threads == 0 { (cpus.len() * 3 / 4).max(1) } else { left };
        let cores = config.cores.unwrap_or(default_cores).max(1);
        let fits = cores + inference_threads <= cpus.len();
        let cpu = |n: usize| cpus.get(n % cpus.len().max(1)).copied().unwrap_or(0);
        Self {
            cores: (0..cores).map(cpu).collect(),
            inference: if fits { (cores..cores + inference_threads).map(cpu).collect() } else { Vec::new() },
            inference_threads,
            spin_us: config.spin_us.unwrap_or(if fits { SPIN_US } else { 0 }),
        }
    }
}

/// The CPUs this process may use, in order.
pub fn cpus() -> Vec<usize> {
    // SAFETY: a cpu_set_t of zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid cpu_set_t of the size given; 0 means this thread.
    let failed = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0;
    // SAFETY: n is below the number of bits of the set.
    let allowed = |n: &usize| unsafe { libc::CPU_ISSET(*n, &set) };
    let all: Vec<_> = (0..libc::CPU_SETSIZE as usize).filter(allowed).collect();
    if failed || all.is_empty() { vec![0] } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_shared_out() {
        let check = |cpus: usize, model: bool, cores: Option<usize>, expected: (&[usize], &[usize], u64)| {
            let name = Name::new("m").expect("valid");
            let models = if model { vec![ModelSource { name, path: PathBuf::new() }] } else { Vec::new() };
            let config = NodeConfig { cores, models, ..NodeConfig::default() };
            let layout = Layout::new(&config, &(0..cpus).collect::<Vec<_>>());
            assert_eq!((&layout.cores[..], &layout.inference[..], layout.spin_us), expected, "{cpus} CPUs");
        };
        check(1, false, None, (&[0], &[], SPIN_US));
        check(1, true, None, (&[0], &[], 0));
        check(2, false, None, (&[0], &[], SPIN_US));
        check(2, true, None, (&[0], &[1], SPIN_US));
        check(2, true, Some(2), (&[0, 1], &[], 0));
        check(8, true, None, (&[0, 1, 2, 3, 4, 5], &[6, 7], SPIN_US));
        check(2, false, Some(3), (&[0, 1, 0], &[], 0));
        assert!(!super::cpus().is_empty());
    }
}
