//! From a configuration to a node that serves, and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use std::{io, net::SocketAddr};

use glommio::ExecutorJoinHandle;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thalweg_domain::partition::PartitionState;
use thalweg_journal::Disk;
use thalweg_journal::recovery::Recovered;
use thalweg_protocol::ids::{CoreId, Epoch, Name, Partition};
use thalweg_protocol::limits::{CORES_MAX, LOG_BLOCK_BYTES, LOG_FILE_BYTES, LOG_RECORD_BYTES_MAX, RING_SLOTS};
use thalweg_protocol::op::Durability;
use thalweg_quic::QuicConfig;
use thalweg_ring::{Bell, Consumer, Producer, ring};
use thalweg_shard::Config as ShardConfig;
use thalweg_udp::{GroupConfig, Socket, Steering, bind_group};
use thalweg_web::{CoreEnd, Web, WebError};
use thalweg_worker::stage::{self, CoreLink, Stage, StageConfig};

use crate::certificate::{Certificate, State};
use crate::clerk::{Clerk, ClerkLink};
use crate::config::{DiskShell, Layout, LogBackend, NodeConfig, cpus};
use crate::connection::Reception;
use crate::core_loop::Shared;
use crate::disk::{
    Alarm, Cause, Directory, FileDisk, ForgetfulDisk, LOG_DIRECTORY, LogParts, Storage, StorageConfig, StorageError,
    recover,
};
use crate::entrance::Entrance;
use crate::error::StartError;
use crate::gate::{Action, Claims, Gate, GateDesks, GateError, Keeper, Permission};
use crate::identity::DataDir;
use crate::launch::{Cores, Parts};
use crate::memory;
use crate::mesh::Mesh;
use crate::outlook::Outlook;
use crate::reload::{CONTROL_SLOTS, Control, Reloader};
use crate::trace::{Exporter, ExporterError, Tracer};
use crate::vitals::{Sampler, Vitals};
use crate::web::WebDesk;

/// A certificate that ends within so many seconds is warned of: time for those who renew by hand.
const CERTIFICATE_WARNING_S: i64 = 14 * 86_400;

/// A node that serves.
pub struct Node {
    data: Arc<DataDir>,
    addr: SocketAddr,
    key_sha256: String,
    token: String,
    models: Vec<String>,
    layout: Layout,
    shared: Arc<Shared>,
    cores: Vec<ExecutorJoinHandle<()>>,
    clerk: Option<Clerk>,
    gate: Option<Gate>,
    storage: Option<Storage>,
    exporter: Option<Exporter>,
    reloader: Arc<Reloader>,
    /// Ends last, so that `/health` is answered until then.
    web: Option<Web>,
}

impl Node {
    /// Starts a node; returns when all its cores serve.
    ///
    /// # Errors
    /// [`StartError`], each with what to do about it. Nothing is left running.
    pub fn start(config: NodeConfig) -> Result<Self, StartError> {
        let shell = config.disk_shell;
        Self::start_on(config, |disk| match shell {
            DiskShell::Plain => disk,
            DiskShell::Discard => Arc::new(ForgetfulDisk::new(disk)),
        })
    }

    /// Starts a node whose log reaches its files through what `wrap` makes of them.
    fn start_on(config: NodeConfig, wrap: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Result<Self, StartError> {
        let began = Instant::now();
        check_config(&config)?;
        let data = Arc::new(DataDir::open(&config.data)?);
        let log = data.path().join(LOG_DIRECTORY);
        let layout = Layout::new(&config, &cpus());
        let bells: Vec<_> =
            layout.cores.iter().map(|_| Bell::new()).collect::<Result<_, _>>().map_err(system("make an eventfd"))?;
        let alarm = Alarm::new(bells.clone());
        let vitals = Arc::new(Vitals::default());
        let outlook = Outlook::new(bells.len(), began, log.clone(), Arc::clone(&alarm), Arc::clone(&vitals));
        // First of all, so that a node that takes long to start says so.
        let (web, web_ends) = start_web(&config, &outlook, &bells)?;
        // Its threads end by themselves if the node does not come up.
        let (exporter, tracers) = start_exporter(&config, bells.len(), began)?;
        let (disk, mut recovered) = open_log(&config, &log, wrap)?;
        let mut keeper = open_gate(&config, &data, began)?;
        let token = keeper.local_token(local_claims()).map_err(GateError::from)?;
        let certificate = open_certificate(&config, &data)?;
        let epoch = data.next_epoch()?;
        outlook.set_epoch(epoch);
        let reset_key = data.reset_key()?;
        let steering = Steering::new(layout.cores.len(), rand::random());
        let sockets = bind(&config, &layout, steering)?;
        let addr = sockets.first().map_or(config.quic, Socket::local_addr);
        let (storage, logs) = start_storage(&config, &log, disk, epoch, &alarm, &mut recovered, &bells)?;
        let (stage, links) = match start_stage(&config, &layout, &bells) {
            Ok(started) => started,
            Err(error) => {
                drop(logs);
                storage.shut_down();
                return Err(error);
            }
        };
        let models: Vec<Name> = config.models.iter().map(|model| model.name.clone()).collect();
        let model_names: Vec<_> = models.iter().map(Name::to_string).collect();
        let budget = config.memory_budget_bytes.unwrap_or_else(memory::default_budget);
        let sampler = Sampler::new(Arc::clone(&vitals), Arc::clone(&outlook), budget, &bells);
        let (clerk, clerk_links) = match Clerk::start(stage, sampler, &bells) {
            Ok(started) => started,
            Err(error) => {
                drop(logs);
                storage.shut_down();
                return Err(system("start a thread")(error));
            }
        };
        let shared = Arc::new(Shared {
            reception: Reception { epoch, models: model_names.clone() },
            steering,
            drain: AtomicBool::new(false),
            bells: bells.clone(),
            alarm: Arc::clone(&alarm),
            about: about(&config, &layout, &addr, epoch, &model_names, &recovered),
            origin: began,
            vitals: Arc::clone(&vitals),
            outlook: Arc::clone(&outlook),
        });
        let (controls, controlled): (Vec<_>, Vec<_>) = bells.iter().map(control).unzip();
        let reloader = Arc::new(Reloader::new(&config, Arc::clone(&data), vitals, &certificate, controls));
        let (gate, entrances) = match start_gate(keeper, &reloader, &bells, began, &alarm) {
            Ok(started) => started,
            Err(error) => {
                drop(logs);
                clerk.shut_down();
                storage.shut_down();
                return Err(system("start a thread")(error));
            }
        };
        let quic = QuicSetup { reset_key, retry_key: rand::random(), certificate: &certificate };
        let logs = logs.into_iter().zip(share_out(&mut recovered, layout.cores.len())).collect();
        let partitions = recovered.partitions;
        let desks = clerk_links
            .into_iter()
            .zip(entrances)
            .zip(controlled)
            .zip(web_desks(web_ends, bells.len()))
            .zip(tracers)
            .collect();
        let parts = assemble(&config, &layout, &shared, sockets, &quic, models, links, desks, logs, partitions);
        let cores = match Cores::start(parts, &layout.cores) {
            Ok(cores) => cores,
            Err((error, ended)) => {
                clerk.shut_down();
                gate.shut_down();
                storage.shut_down();
                // Nobody else may open the log while a core is left that was given its files.
                ended.hold(data);
                return Err(error);
            }
        };
        let key_sha256 = certificate.key_sha256;
        let (clerk, gate, storage, models) = (Some(clerk), Some(gate), Some(storage), model_names);
        let node = Self {
            data,
            addr,
            key_sha256,
            token,
            models,
            layout,
            shared,
            cores,
            clerk,
            gate,
            storage,
            exporter,
            reloader,
            web,
        };
        if let Err(error) = node.data.announce(addr, node.http_addr(), &node.key_sha256, epoch) {
            // A node that nobody can find must not go on in the background.
            node.drain();
            node.wait()?;
            return Err(error.into());
        }
        outlook.serves();
        let (layout, http) = (&node.layout, node.http_addr());
        tracing::info!(
            %addr, ?http, cores = ?layout.cores, inference = ?layout.inference, inference_threads = layout.inference_threads,
            spin_us = layout.spin_us, memory_budget_mib = budget >> 20, epoch = epoch.0, start_ms = began.elapsed().as_millis() as u64, "serving"
        );
        Ok(node)
    }

    /// Where QUIC is served, with the actual port.
    pub fn quic_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where HTTP is served, with the actual port, if it is.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(Web::addr)
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

    /// Takes in changed settings while the node runs.
    pub fn reloader(&self) -> Arc<Reloader> {
        Arc::clone(&self.reloader)
    }

    /// Tells whether all cores come round, for a watchdog.
    pub fn pulse(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let outlook = Arc::clone(&self.shared.outlook);
        move || outlook.stuck_core().is_none()
    }

    /// Memory, clock and certificate of the node.
    pub fn vitals(&self) -> Arc<Vitals> {
        Arc::clone(&self.shared.vitals)
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
                // If it panicked it said so itself.
                self.shared.drain();
                failed.get_or_insert(StartError::Core { core: core as u16, reason: error.to_string() });
            }
        }
        if let Some(clerk) = self.clerk.take() {
            clerk.shut_down();
        }
        if let Some(gate) = self.gate.take() {
            gate.shut_down();
        }
        if let Some(storage) = self.storage.take() {
            storage.shut_down();
        }
        if let Some(exporter) = self.exporter.take() {
            exporter.shut_down();
        }
        self.data.retract();
        drop(self.web.take());
        match self.shared.alarm.cause().cloned() {
            Some(Cause::Log(cause)) => {
                let path = self.data.path().join(LOG_DIRECTORY);
                Err(StartError::LogFailed { path, cause })
            }
            Some(Cause::Panic(thread)) => Err(StartError::Panicked { thread }),
            Some(Cause::Abandoned) | None => failed.map_or(Ok(()), Err),
        }
    }
}

/// Opens the certificate, and says so if its dates are wrong. The node starts nevertheless: clients that pin its key do not
/// look at dates, and a node that does not start helps nobody.
fn open_certificate(config: &NodeConfig, data: &DataDir) -> Result<Certificate, StartError> {
    let certificate = Certificate::open(data, config.certificate.as_ref())?;
    match certificate.validity.now() {
        State::Valid(for_s) if for_s > CERTIFICATE_WARNING_S => {}
        state => tracing::warn!(%state, "the certificate should be replaced; put the new one in its place and reload"),
    }
    Ok(certificate)
}

/// Starts the web stage, if HTTP is wanted. One thread, which asks core 0: what it does today does not fill one.
fn start_web(
    config: &NodeConfig,
    outlook: &Arc<Outlook>,
    bells: &[Arc<Bell>],
) -> Result<(Option<Web>, Vec<CoreEnd>), StartError> {
    let (Some(http), Some(bell)) = (&config.http, bells.first()) else { return Ok((None, Vec::new())) };
    let (link, end) = thalweg_web::link(bell).map_err(system("make an eventfd"))?;
    let outlook = Arc::clone(outlook);
    match Web::start(&http.web, vec![link], Arc::new(move || outlook.health())) {
        Ok(web) => Ok((Some(web), vec![end])),
        Err(error @ WebError::Taken { .. }) if http.optional => {
            tracing::warn!(%error, "the node goes on without HTTP");
            Ok((None, Vec::new()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Starts what sends traces, if any are wanted; and gives each core its tracer.
fn start_exporter(
    config: &NodeConfig,
    cores: usize,
    origin: Instant,
) -> Result<(Option<Exporter>, Vec<Tracer>), StartError> {
    Exporter::start(&config.trace, cores, origin).map_err(|error| match error {
        ExporterError::Config(error) => error.into(),
        ExporterError::System(error) => system("start a thread")(error),
    })
}

/// Gives the threads of the web stage to cores in turn.
fn web_desks(ends: Vec<CoreEnd>, cores: usize) -> Vec<WebDesk> {
    let mut shares: Vec<Vec<_>> = (0..cores).map(|_| Vec::new()).collect();
    for (thread, end) in ends.into_iter().enumerate() {
        shares[thread % cores].push(end);
    }
    shares.into_iter().map(WebDesk::new).collect()
}

/// The two ends of the ring by which a core is told of changed settings.
fn control(bell: &Arc<Bell>) -> ((Producer<Control>, Arc<Bell>), Consumer<Control>) {
    let (tell, told) = ring(CONTROL_SLOTS);
    ((tell, Arc::clone(bell)), told)
}

fn check_config(config: &NodeConfig) -> Result<(), StartError> {
    check("cores", config.cores.unwrap_or(1), 1, CORES_MAX)?;
    check("partitions", config.partitions.into(), 1, u16::MAX.into())?;
    // A file has a header, and room for the largest record with what stands before it.
    let least = LOG_RECORD_BYTES_MAX + 3 * LOG_BLOCK_BYTES;
    check("bytes of a file of the log", config.log_file_bytes as usize, least, 32 * LOG_FILE_BYTES as usize)?;
    if config.disk_shell != DiskShell::Plain && config.log_backend != LogBackend::Thread {
        return Err(StartError::ShellBypassed);
    }
    match config.durability {
        Durability::Replicated => Err(StartError::Durability(config.durability)),
        Durability::Memory | Durability::Disk => Ok(()),
    }
}

/// Opens the log, and seals what the last life of the node left behind.
fn open_log(
    config: &NodeConfig,
    path: &Path,
    wrap: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>,
) -> Result<(Arc<dyn Disk>, Recovered), StartError> {
    let failed = |source| StartError::Log { path: path.to_owned(), source };
    let disk = FileDisk::open(path, config.sync_delay).map_err(|error| failed(error.into()))?;
    let disk = wrap(Arc::new(disk));
    let recovered = recover(&*disk, config.partitions, cpus().len()).map_err(failed)?;
    Ok((disk, recovered))
}

fn start_storage(
    config: &NodeConfig,
    path: &Path,
    disk: Arc<dyn Disk>,
    epoch: Epoch,
    alarm: &Arc<Alarm>,
    recovered: &mut Recovered,
    bells: &[Arc<Bell>],
) -> Result<(Storage, Vec<LogParts>), StartError> {
    let storage = StorageConfig {
        disk,
        root: path.to_owned(),
        place: Arc::new(Directory(path.to_owned())),
        backend: config.log_backend,
        sync_delay: config.sync_delay,
        epoch,
        file_bytes: config.log_file_bytes.next_multiple_of(LOG_BLOCK_BYTES as u64),
        alarm: Arc::clone(alarm),
    };
    Storage::start(storage, recovered, bells).map_err(|error| match error {
        StorageError::Log(source) => StartError::Log { path: path.to_owned(), source },
        StorageError::System(error) => system("get what writes the log ready")(error),
    })
}

/// Gives each core the states of its partitions.
fn share_out(recovered: &mut Recovered, cores: usize) -> Vec<Vec<(Partition, Box<PartitionState>)>> {
    let mut shares: Vec<Vec<_>> = (0..cores).map(|_| Vec::new()).collect();
    for (partition, state) in std::mem::take(&mut recovered.states) {
        shares[usize::from(partition.0) % cores].push((partition, Box::new(state)));
    }
    shares
}

fn check(what: &'static str, value: usize, least: usize, most: usize) -> Result<(), StartError> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(StartError::Config { what, value, least, most }) }
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { action, source }
}

/// Opens what the gate keeps in the data directory.
fn open_gate(config: &NodeConfig, data: &DataDir, origin: Instant) -> Result<Keeper, GateError> {
    Keeper::open(data.path(), config.access.clone(), crate::gate::Now::since(origin))
}

/// Starts the gate, and gives each core its part of it.
fn start_gate(
    mut keeper: Keeper,
    reloader: &Arc<Reloader>,
    bells: &[Arc<Bell>],
    origin: Instant,
    alarm: &Arc<Alarm>,
) -> io::Result<(Gate, Vec<Entrance>)> {
    let (desks, links) = GateDesks::new(bells)?;
    keeper.set_reloader(Arc::clone(reloader));
    reloader.set_gate(desks.handle());
    // Every core begins with it, so that the gate need not send it.
    let access = keeper.news().unwrap_or_else(|| keeper.snapshot());
    let entrances = links.into_iter().map(|link| Entrance::new(Arc::clone(&access), link)).collect();
    Ok((Gate::start(keeper, desks, origin, Arc::clone(alarm))?, entrances))
}

/// What the token says that lets clients on this machine in.
fn local_claims() -> Claims {
    let user = std::env::var("USER").ok().and_then(|user| Name::new(&user).ok());
    let all = |action| Permission { action, pattern: "*".into() };
    let name = |text| Name::new(text).expect("a literal name is valid");
    Claims {
        tenant: name(crate::gate::NODE_TENANT),
        user: user.unwrap_or_else(|| name("local")),
        allow: Action::ALL.map(all).into(),
        // The gate says for how long.
        ttl: Duration::ZERO,
    }
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
    recovered: &Recovered,
) -> serde_json::Map<String, serde_json::Value> {
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"), "quic": addr.to_string(), "epoch": epoch.0, "models": models,
        "cores": layout.cores, "inference": layout.inference, "inference_threads": layout.inference_threads,
        "spin_us": layout.spin_us, "partitions": recovered.partitions, "pid": std::process::id(),
        "log": {
            "durability": config.durability.as_str(), "backend": format!("{:?}", config.log_backend),
            "recovered_records": recovered.report.records, "recovered_torn": recovered.report.torn.len(),
        },
    });
    about.as_object().cloned().unwrap_or_default()
}

/// What a core gets of the log: its end of it, and what its partitions hold.
type CoreShare = (LogParts, Vec<(Partition, Box<PartitionState>)>);

/// Where a core asks the clerk, where it is told of changed settings, and where the web stage asks it.
type Desk = ((((ClerkLink, Entrance), Consumer<Control>), WebDesk), Tracer);

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
    desks: Vec<Desk>,
    logs: Vec<CoreShare>,
    partitions: u16,
) -> Vec<Parts> {
    let meshes = Mesh::all(&shared.bells);
    let each = sockets.into_iter().zip(meshes).zip(links).zip(desks).zip(logs).enumerate();
    each.map(
        |(index, ((((socket, mesh), inference), ((((clerk, entrance), control), web), tracer)), (log, states)))| {
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
                partitions,
                epoch: shared.reception.epoch,
                models: models.clone(),
                durability: config.durability,
            };
            let (bell, spin) = (Arc::clone(&shared.bells[index]), Duration::from_micros(layout.spin_us));
            let (shared, quic) = (Arc::clone(shared), quic_config);
            #[cfg(test)]
            let broken = tests::broken(core);
            Parts {
                core,
                shared,
                socket,
                quic,
                shard,
                mesh,
                inference,
                clerk,
                entrance,
                control,
                web,
                tracer,
                log,
                states,
                bell,
                spin,
                #[cfg(test)]
                broken,
            }
        },
    )
    .collect()
}

/// Runs a node until it has drained. SIGTERM and SIGINT drain it, a second one ends the process at once; SIGHUP reads the
/// settings again.
///
/// # Errors
/// If the signals cannot be caught, or a core ended otherwise.
pub fn run_until_signal(node: Node) -> Result<(), StartError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system("catch signals"))?;
    let (handle, drain, reloader) = (signals.handle(), node.drainer(), node.reloader());
    let watch = move || {
        let mut draining = false;
        for signal in signals.forever() {
            match signal {
                // What came of it is in the log: whoever sends a signal hears nothing.
                SIGHUP => drop(reloader.reload()),
                _ if draining => {
                    tracing::warn!(signal, "a second signal; leaving now");
                    signal_hook::low_level::exit(128 + signal);
                }
                _ => {
                    draining = true;
                    tracing::info!(signal, "draining; a second signal ends the node at once");
                    drain();
                }
            }
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

#[cfg(test)]
mod tests;
