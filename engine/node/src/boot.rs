//! From a configuration to a node that serves, and back.

mod parts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use glommio::ExecutorJoinHandle;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thalweg_domain::partition::PartitionState;
use thalweg_domain::routing::Routes;
use thalweg_journal::Disk;
use thalweg_protocol::ids::{CoreId, Epoch, Partition};
use thalweg_quic::QuicConfig;
use thalweg_remote::RemoteStage;
use thalweg_ring::{Bell, Consumer};
use thalweg_shard::Config as ShardConfig;
use thalweg_udp::{Socket, Steering};
use thalweg_web::Web;

use crate::certificate::Certificate;
use crate::clerk::{Clerk, ClerkLink};
use crate::config::{DiskShell, Layout, NodeConfig, cpus};
use crate::connection::Reception;
use crate::core_loop::Shared;
use crate::disk::{Alarm, Cause, ForgetfulDisk, LOG_DIRECTORY, LogParts, Storage};
use crate::entrance::Entrance;
use crate::error::StartError;
use crate::gate::{Gate, GateError};
use crate::identity::DataDir;
use crate::inference::Links;
use crate::launch::{Cores, Parts};
use crate::memory;
use crate::mesh::Mesh;
use crate::models::Watch;
use crate::outlook::Outlook;
use crate::reload::{Control, Reloader};
use crate::trace::{Exporter, Tracer};
use crate::vitals::{Sampler, Vitals};
use crate::web::WebDesk;

use parts::{
    Models, about, bind, check_config, control, join_links, local_claims, open_certificate, open_gate, open_log,
    share_out, start_exporter, start_gate, start_models, start_storage, start_watch, start_web, system, web_desks,
};

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
    background: Background,
    exporter: Option<Exporter>,
    reloader: Arc<Reloader>,
    /// Ends last, so that `/health` is answered until then.
    web: Option<Web>,
}

/// The threads that work for the cores. They end after these, in order, also if a node does not come up.
#[derive(Default)]
struct Background {
    watch: Option<Watch>,
    clerk: Option<Clerk>,
    remote: Option<RemoteStage>,
    gate: Option<Gate>,
    storage: Option<Storage>,
}

impl Background {
    fn shut_down(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.shut_down();
        }
        if let Some(clerk) = self.clerk.take() {
            clerk.shut_down();
        }
        // Ends what waits at a model, such as who unloads one.
        drop(self.remote.take());
        if let Some(gate) = self.gate.take() {
            gate.shut_down();
        }
        if let Some(storage) = self.storage.take() {
            storage.shut_down();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.shut_down();
    }
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
        // Declared before what uses it, and so dropped after that, whatever fails from here on.
        let mut background = Background::default();
        let (storage, logs) = start_storage(&config, &log, disk, epoch, &alarm, &mut recovered, &bells)?;
        background.storage = Some(storage);
        let Models { stage, links, remote, remote_links, registry, desk } = start_models(&config, &layout, &bells)?;
        outlook.set_models(Arc::clone(&registry));
        let models = registry.entries().iter().map(|entry| entry.name.to_string()).collect();
        background.remote = Some(remote);
        let budget = config.memory_budget_bytes.unwrap_or_else(memory::default_budget);
        let sampler = Sampler::new(Arc::clone(&vitals), Arc::clone(&outlook), budget, &bells);
        let (clerk, clerk_links) = Clerk::start(stage, sampler, &bells).map_err(system("start a thread"))?;
        background.clerk = Some(clerk);
        let shared = Arc::new(Shared {
            reception: Reception { epoch },
            steering,
            drain: AtomicBool::new(false),
            bells: bells.clone(),
            alarm: Arc::clone(&alarm),
            about: about(&config, &layout, &addr, epoch, &recovered),
            origin: began,
            vitals: Arc::clone(&vitals),
            outlook: Arc::clone(&outlook),
            registry: Arc::clone(&registry),
        });
        let (controls, controlled): (Vec<_>, Vec<_>) = bells.iter().map(control).unzip();
        let reloader =
            Arc::new(Reloader::new(&config, Arc::clone(&data), vitals, &certificate, Arc::clone(&registry), controls));
        let (watch, news) = start_watch(&registry, &reloader, began)?;
        background.watch = Some(watch);
        let (gate, entrances) =
            start_gate(keeper, &reloader, &desk, &bells, began, &alarm).map_err(system("start a thread"))?;
        background.gate = Some(gate);
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
        let links = join_links(links, remote_links, &news.served);
        let parts = assemble(&config, &layout, &shared, sockets, &quic, news.routes, links, desks, logs, partitions);
        let cores = match Cores::start(parts, &layout.cores) {
            Ok(cores) => cores,
            Err((error, ended)) => {
                background.shut_down();
                // Nobody else may open the log while a core is left that was given its files.
                ended.hold(data);
                return Err(error);
            }
        };
        let key_sha256 = certificate.key_sha256;
        let node =
            Self { data, addr, key_sha256, token, models, layout, shared, cores, background, exporter, reloader, web };
        node.announce(epoch, budget)
    }

    /// Lets clients of this machine find the node, and says that it serves.
    fn announce(self, epoch: Epoch, budget: u64) -> Result<Self, StartError> {
        let (addr, http) = (self.addr, self.http_addr());
        if let Err(error) = self.data.announce(addr, http, &self.key_sha256, epoch) {
            // A node that nobody can find must not go on in the background.
            self.drain();
            self.wait()?;
            return Err(error.into());
        }
        self.shared.outlook.serves();
        let (layout, start_ms) = (&self.layout, self.shared.origin.elapsed().as_millis() as u64);
        tracing::info!(
            %addr, ?http, cores = ?layout.cores, inference = ?layout.inference,
            inference_threads = layout.inference_threads, spin_us = layout.spin_us,
            memory_budget_mib = budget >> 20, epoch = epoch.0, start_ms, "serving"
        );
        Ok(self)
    }

    /// Where QUIC is served, with the actual port.
    pub fn quic_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where HTTP is served, with the actual port, if it is.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(Web::addr)
    }

    /// The models it runs: those that answer, default first, and those that make embeddings.
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
        self.background.shut_down();
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
    routes: Arc<Routes>,
    links: Vec<Links>,
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
                routes: Arc::clone(&routes),
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
