//! From a configuration to a node that serves, and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{io, net::SocketAddr};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thalweg_protocol::ids::{CoreId, Epoch, Name};
use thalweg_protocol::limits::{CORES_MAX, RING_SLOTS};
use thalweg_quic::{Quic, QuicConfig, QuicError};
use thalweg_ring::Bell;
use thalweg_shard::{Config as ShardConfig, Shard};
use thalweg_udp::{GroupConfig, Socket, Steering, UdpError, bind_group};
use thalweg_worker::stage::{self, CoreLink, Stage, StageConfig, StageError};

use crate::clerk::{Clerk, ClerkLink};
use crate::config::{Layout, NodeConfig, cpus};
use crate::connection::Reception;
use crate::core_loop::{Core, Shared};
use crate::gatekeeper::{Action, Claims, Keys, Permission};
use crate::identity::{Certificate, DataDir, IdentityError, TOKEN_FILE, write_secret};
use crate::log::MemoryLog;
use crate::mesh::Mesh;
use crate::park::Parker;

/// A core that has not come up after this long will not.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// The local token is made anew at each start, so that it is always good for a year.
const LOCAL_TOKEN_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Registered memory of a core's executor, in bytes. Sockets and the log have their own.
const IO_MEMORY_BYTES: usize = 1 << 20;
/// Entries of an executor's submission ring: a core waits for two descriptors and a timer.
const EXECUTOR_RING_ENTRIES: usize = 64;

/// Why a node did not start, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something is wrong with the data directory or what is in it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The sockets could not be bound.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// QUIC cannot be served.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The models could not be loaded.
    #[error(transparent)]
    Inference(#[from] StageError),
    /// A number in the configuration makes no sense.
    #[error("{what} is {value}; give {least} to {most}")]
    Config {
        /// Which setting.
        what: &'static str,
        /// What it was.
        value: usize,
        /// The least it can be.
        least: usize,
        /// The most it can be.
        most: usize,
    },
    /// The machine would not give a core what it needs.
    #[error(
        "core {core} did not come up: {reason}. Each core needs io_uring and about 1 MiB of locked memory: check that \
         `sysctl kernel.io_uring_disabled` is 0 and raise `ulimit -l` (in a systemd unit: LimitMEMLOCK=64M); \
         `thalweg doctor` tells more"
    )]
    Core {
        /// Which core.
        core: u16,
        /// What is known.
        reason: String,
    },
    /// The system refused something else.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A node that serves.
pub struct Node {
    data: DataDir,
    addr: SocketAddr,
    key_sha256: String,
    token: String,
    models: Vec<String>,
    layout: Layout,
    shared: Arc<Shared>,
    cores: Vec<ExecutorJoinHandle<()>>,
    clerk: Option<Clerk>,
}

/// One core's parts, on the way to its thread.
struct Parts {
    core: CoreId,
    shared: Arc<Shared>,
    socket: Socket,
    quic: QuicConfig,
    shard: ShardConfig,
    mesh: Mesh,
    inference: Option<CoreLink>,
    clerk: ClerkLink,
    bell: Arc<Bell>,
    spin: Duration,
}

impl Node {
    /// Starts a node; returns when all its cores serve.
    ///
    /// # Errors
    /// [`StartError`], each with what to do about it. Nothing is left running.
    pub fn start(config: NodeConfig) -> Result<Self, StartError> {
        let began = Instant::now();
        check("cores", config.cores.unwrap_or(1), 1, CORES_MAX)?;
        check("partitions", config.partitions.into(), 1, u16::MAX.into())?;
        let data = DataDir::open(&config.data)?;
        let keys = Keys::open(data.path())?;
        let token = local_token(&keys, data.path())?;
        let certificate = Certificate::open(&data)?;
        let epoch = data.next_epoch()?;
        let reset_key = data.reset_key()?;
        let layout = Layout::new(&config, &cpus());
        let steering = Steering::new(layout.cores.len(), rand::random());
        let sockets = bind(&config, &layout, steering)?;
        let addr = sockets.first().map_or(config.quic, Socket::local_addr);
        let bells: Vec<_> =
            layout.cores.iter().map(|_| Bell::new()).collect::<Result<_, _>>().map_err(system("make an eventfd"))?;
        let (stage, links) = start_stage(&config, &layout, &bells)?;
        let models: Vec<Name> = config.models.iter().map(|model| model.name.clone()).collect();
        let model_names: Vec<_> = models.iter().map(Name::to_string).collect();
        let (clerk, clerk_links) = Clerk::start(stage, &bells).map_err(system("start a thread"))?;
        let shared = Arc::new(Shared {
            reception: Reception { keys, epoch, models: model_names.clone() },
            steering,
            drain: AtomicBool::new(false),
            bells: bells.clone(),
            about: about(&config, &layout, &addr, epoch, &model_names),
            origin: began,
        });
        let quic = QuicSetup { reset_key, retry_key: rand::random(), certificate: &certificate };
        let parts = assemble(&config, &layout, &shared, sockets, &quic, models, links, clerk_links);
        let cores = match start_cores(parts, &layout) {
            Ok(cores) => cores,
            Err(error) => {
                shared.drain();
                clerk.shut_down();
                return Err(error);
            }
        };
        let key_sha256 = certificate.key_sha256;
        let clerk = Some(clerk);
        let node = Self { data, addr, key_sha256, token, models: model_names, layout, shared, cores, clerk };
        if let Err(error) = node.data.announce(addr, &node.key_sha256, epoch) {
            // A node that nobody can find must not go on in the background.
            node.drain();
            node.wait()?;
            return Err(error.into());
        }
        let layout = &node.layout;
        tracing::info!(
            %addr, cores = ?layout.cores, inference = ?layout.inference, inference_threads = layout.inference_threads,
            spin_us = layout.spin_us, epoch = epoch.0, start_ms = began.elapsed().as_millis() as u64, "serving"
        );
        Ok(node)
    }

    /// Where QUIC is served, with the actual port.
    pub fn quic_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The models it runs, default first.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// SHA-256 of its public key, in hexadecimal: what clients pin.
    pub fn key_sha256(&self) -> &str {
        &self.key_sha256
    }

    /// A token that may do everything as a local user.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Which CPUs do what.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A handle by which another thread can begin to drain the node.
    pub fn drainer(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.drain()
    }

    /// Begins to drain: clients are told, what was begun is finished, then the cores end. Returns at once.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Waits until the node has drained, by [`drain`](Self::drain) or a client's request.
    ///
    /// # Errors
    /// If a core ended otherwise.
    pub fn wait(mut self) -> Result<(), StartError> {
        let mut failed = None;
        for (core, handle) in self.cores.drain(..).enumerate() {
            if let Err(error) = handle.join() {
                // One core down means partitions without an owner: the others must not go on as if nothing had happened.
                self.shared.drain();
                failed.get_or_insert(StartError::Core { core: core as u16, reason: error.to_string() });
            }
        }
        if let Some(clerk) = self.clerk.take() {
            clerk.shut_down();
        }
        self.data.retract();
        failed.map_or(Ok(()), Err)
    }
}

fn check(what: &'static str, value: usize, least: usize, most: usize) -> Result<(), StartError> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(StartError::Config { what, value, least, most }) }
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { action, source }
}

/// Makes the token that lets clients on this machine in.
fn local_token(keys: &Keys, data: &Path) -> Result<String, StartError> {
    let user = std::env::var("USER").ok().and_then(|user| Name::new(&user).ok());
    let all = |action| Permission { action, pattern: "*".into() };
    let name = |text| Name::new(text).expect("a literal name is valid");
    let claims = Claims {
        tenant: name("default"),
        user: user.unwrap_or_else(|| name("local")),
        allow: Action::ALL.map(all).into(),
        ttl: LOCAL_TOKEN_TTL,
    };
    let token = keys.mint(&claims)?;
    write_secret(&data.join(TOKEN_FILE), token.as_bytes())?;
    Ok(token)
}

fn bind(config: &NodeConfig, layout: &Layout, steering: Steering) -> Result<Vec<Socket>, StartError> {
    let group = GroupConfig {
        addr: config.quic,
        cores: layout.cores.len(),
        backend: config.backend,
        steering,
        receive_buffer_bytes: config.socket_buffer_bytes,
        send_buffer_bytes: config.socket_buffer_bytes,
    };
    Ok(bind_group(&group)?)
}

fn start_stage(
    config: &NodeConfig,
    layout: &Layout,
    bells: &[Arc<Bell>],
) -> Result<(Option<Stage>, Vec<Option<CoreLink>>), StartError> {
    if config.models.is_empty() {
        return Ok((None, bells.iter().map(|_| None).collect()));
    }
    let models = config.models.clone();
    let (threads, pin) = (layout.inference_threads, layout.inference.clone());
    check("inference threads", threads, 1, CORES_MAX)?;
    let (stage, links) = stage::start(StageConfig { models, threads, pin, ring_slots: RING_SLOTS }, bells)?;
    Ok((Some(stage), links.into_iter().map(Some).collect()))
}

fn about(
    config: &NodeConfig,
    layout: &Layout,
    addr: &SocketAddr,
    epoch: Epoch,
    models: &[String],
) -> serde_json::Map<String, serde_json::Value> {
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"), "quic": addr.to_string(), "epoch": epoch.0, "models": models,
        "cores": layout.cores, "inference": layout.inference, "inference_threads": layout.inference_threads,
        "spin_us": layout.spin_us, "partitions": config.partitions, "pid": std::process::id(), "log": "memory",
    });
    about.as_object().cloned().unwrap_or_default()
}

struct QuicSetup<'a> {
    reset_key: [u8; 64],
    retry_key: [u8; 64],
    certificate: &'a Certificate,
}

#[allow(clippy::too_many_arguments, reason = "called in one place, to split what every core gets from how it starts")]
fn assemble(
    config: &NodeConfig,
    layout: &Layout,
    shared: &Arc<Shared>,
    sockets: Vec<Socket>,
    quic: &QuicSetup<'_>,
    models: Vec<Name>,
    links: Vec<Option<CoreLink>>,
    clerk_links: Vec<ClerkLink>,
) -> Vec<Parts> {
    let meshes = Mesh::all(&shared.bells);
    let each = sockets.into_iter().zip(meshes).zip(links).zip(clerk_links).enumerate();
    each.map(|(index, (((socket, mesh), inference), clerk))| {
        let core = CoreId(index as u16);
        let key = quic.certificate.key.clone_key();
        let mut quic_config =
            QuicConfig::new((quic.certificate.chain.clone(), key), quic.reset_key, quic.retry_key, rand::random());
        let steering = shared.steering;
        quic_config.cid_first_byte = Arc::new(move |random| steering.first_byte_for(index, random));
        quic_config.path_mtu_discovery = !socket.may_fragment();
        let shard = ShardConfig {
            core,
            cores: layout.cores.len() as u16,
            partitions: config.partitions,
            epoch: shared.reception.epoch,
            models: models.clone(),
        };
        let (bell, spin) = (Arc::clone(&shared.bells[index]), Duration::from_micros(layout.spin_us));
        Parts { core, shared: Arc::clone(shared), socket, quic: quic_config, shard, mesh, inference, clerk, bell, spin }
    })
    .collect()
}

/// Starts one pinned thread per core, and waits until each has said that it is ready.
fn start_cores(parts: Vec<Parts>, layout: &Layout) -> Result<Vec<ExecutorJoinHandle<()>>, StartError> {
    let cores = parts.len();
    let (ready, said) = mpsc::sync_channel(cores);
    let mut handles = Vec::new();
    for (parts, &cpu) in parts.into_iter().zip(&layout.cores) {
        let (core, ready) = (parts.core.0, ready.clone());
        let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("thalweg-core-{core}"))
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(EXECUTOR_RING_ENTRIES)
            .spawn(move || run_core(parts, ready))
            .map_err(|error| StartError::Core { core, reason: error.to_string() })?;
        handles.push(handle);
    }
    drop(ready);
    let mut up = vec![false; cores];
    let deadline = Instant::now() + READY_TIMEOUT;
    while up.contains(&false) {
        let core = up.iter().position(|up| !up).unwrap_or_default() as u16;
        match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((core, Ok(()))) => up[usize::from(core)] = true,
            Ok((core, Err(reason))) => return Err(StartError::Core { core, reason }),
            // With too little locked memory an executor is started and never runs, without a word.
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let reason = format!("nothing was heard of it for {} s", READY_TIMEOUT.as_secs());
                return Err(StartError::Core { core, reason });
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(StartError::Core { core, reason: "its thread ended".into() });
            }
        }
    }
    Ok(handles)
}

async fn run_core(parts: Parts, ready: mpsc::SyncSender<(u16, Result<(), String>)>) {
    let Parts { core, shared, socket, quic, shard, mesh, inference, clerk, bell, spin } = parts;
    let parker = Parker::new(bell, socket.wait_fd()).await.map_err(|error| error.to_string());
    let made = parker.and_then(|parker| Ok((parker, Quic::new(quic).map_err(|error| error.to_string())?)));
    // The receiver is gone only if another core failed first, and then nobody needs to know.
    match made {
        Ok((parker, quic)) => {
            let _ = ready.send((core.0, Ok(())));
            drop(ready);
            let log = Box::new(MemoryLog::default());
            let core = Core::new(core, shared, socket, quic, Shard::new(shard), log, mesh, inference, clerk);
            core.run(parker, spin).await;
        }
        Err(reason) => {
            let _ = ready.send((core.0, Err(reason)));
        }
    }
}

/// Runs a node until it has drained. SIGTERM and SIGINT drain it; a second one ends the process at once.
///
/// # Errors
/// If the signals cannot be caught, or a core ended otherwise.
pub fn run_until_signal(node: Node) -> Result<(), StartError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system("catch signals"))?;
    let (handle, drain) = (signals.handle(), node.drainer());
    let watch = move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                tracing::warn!(signal, "a second signal; leaving now");
                signal_hook::low_level::exit(128 + signal);
            }
            tracing::info!(signal, "draining; a second signal ends the node at once");
            drain();
        }
    };
    let thread =
        std::thread::Builder::new().name("thalweg-signals".into()).spawn(watch).map_err(system("start a thread"))?;
    let result = node.wait();
    handle.close();
    if thread.join().is_err() {
        tracing::error!("the signal thread panicked");
    }
    result
}

/// The data directory for those who name none: `$XDG_STATE_HOME/thalweg`.
pub fn default_data_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty());
    state.map_or_else(|| home().join(".local/state"), PathBuf::from).join("thalweg")
}
