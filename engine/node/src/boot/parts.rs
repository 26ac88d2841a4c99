//! The parts of a node, each opened or started by itself; what each may fail with says what to do.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use thalweg_domain::partition::PartitionState;
use thalweg_journal::Disk;
use thalweg_journal::recovery::Recovered;
use thalweg_protocol::ids::{Epoch, Name, Partition};
use thalweg_protocol::limits::{CORES_MAX, LOG_BLOCK_BYTES, LOG_FILE_BYTES, LOG_RECORD_BYTES_MAX, RING_SLOTS};
use thalweg_protocol::op::Durability;
use thalweg_remote::{RemoteLink, RemoteStage};
use thalweg_ring::{Bell, Consumer, Producer, ring};
use thalweg_udp::{GroupConfig, Socket, Steering, bind_group};
use thalweg_web::{CoreEnd, Web, WebError};
use thalweg_worker::stage::{self, CoreLink, Stage, StageConfig};

use crate::certificate::{Certificate, State};
use crate::config::{DiskShell, Layout, LogBackend, NodeConfig, cpus};
use crate::disk::{Alarm, Directory, FileDisk, LogParts, Storage, StorageConfig, StorageError, recover};
use crate::entrance::Entrance;
use crate::error::StartError;
use crate::gate::{Action, Claims, Gate, GateDesks, GateError, Keeper, Permission};
use crate::identity::DataDir;
use crate::inference::Links;
use crate::models::{self, ModelDesk, News, Registry, Remotes, ServedModels, Watch};
use crate::outlook::Outlook;
use crate::reload::{CONTROL_SLOTS, Control, Reloader};
use crate::trace::{Exporter, ExporterError, Tracer};
use crate::web::WebDesk;

/// A certificate that ends within so many seconds is warned of: time for those who renew by hand.
const CERTIFICATE_WARNING_S: i64 = 14 * 86_400;
/// Slots of each ring between a core and the stage for models elsewhere.
const REMOTE_RING_SLOTS: usize = 1_024;

/// Opens the certificate, and says so if its dates are wrong. The node starts nevertheless: clients that pin its key do not
/// look at dates, and a node that does not start helps nobody.
pub(super) fn open_certificate(config: &NodeConfig, data: &DataDir) -> Result<Certificate, StartError> {
    let certificate = Certificate::open(data, config.certificate.as_ref())?;
    match certificate.validity.now() {
        State::Valid(for_s) if for_s > CERTIFICATE_WARNING_S => {}
        state => tracing::warn!(%state, "the certificate should be replaced; put the new one in its place and reload"),
    }
    Ok(certificate)
}

/// Starts the web stage, if HTTP is wanted. Its threads are given to cores in turn.
pub(super) fn start_web(
    config: &NodeConfig,
    outlook: &Arc<Outlook>,
    bells: &[Arc<Bell>],
) -> Result<(Option<Web>, Vec<CoreEnd>), StartError> {
    let Some(http) = &config.http else { return Ok((None, Vec::new())) };
    check("threads that serve HTTP", http.web.threads, 1, CORES_MAX)?;
    let bells = bells.iter().cycle().take(http.web.threads);
    let links: io::Result<Vec<_>> = bells.map(thalweg_web::link).collect();
    let (links, ends) = links.map_err(system("make an eventfd"))?.into_iter().unzip();
    let (health, models) = (Arc::clone(outlook), Arc::clone(outlook));
    match Web::start(&http.web, links, Arc::new(move || health.health()), Arc::new(move || models.models())) {
        Ok(web) => Ok((Some(web), ends)),
        Err(error @ WebError::Taken { .. }) if http.optional => {
            tracing::warn!(%error, "the node goes on without HTTP");
            Ok((None, Vec::new()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The models there are when a node starts, and what requests mean that name none.
fn make_registry(config: &NodeConfig, stage: Option<&Stage>) -> Result<Arc<Registry>, StartError> {
    let loaded = stage.map_or(&[][..], Stage::models);
    let bell = Bell::new().map_err(system("make an eventfd"))?;
    let registry = Registry::new(models::entries(loaded, &config.model_settings), bell);
    registry.describe(&config.model_settings, config.model_default.clone());
    Ok(registry)
}

/// Begins to watch the models, and gives what cores begin with.
pub(super) fn start_watch(
    registry: &Arc<Registry>,
    reloader: &Arc<Reloader>,
    origin: Instant,
) -> Result<(Watch, News), StartError> {
    let reloader = Arc::clone(reloader);
    let tell = move |news: &News| reloader.tell_models(news);
    Watch::start(Arc::clone(registry), origin, tell).map_err(system("start a thread"))
}

/// Starts what sends traces, if any are wanted; and gives each core its tracer.
pub(super) fn start_exporter(
    config: &NodeConfig,
    cores: usize,
    origin: Instant,
) -> Result<(Option<Exporter>, Vec<Tracer>), StartError> {
    Exporter::start(&config.trace, cores, origin).map_err(|error| match error {
        ExporterError::Config(error) => error.into(),
        ExporterError::System(error) => system("start a thread")(error),
    })
}

/// Gives each core its ends of the rings to the web stage, in the order in which [`start_web`] made them.
pub(super) fn web_desks(ends: Vec<CoreEnd>, cores: usize) -> Vec<WebDesk> {
    let mut shares: Vec<Vec<_>> = (0..cores).map(|_| Vec::new()).collect();
    for (thread, end) in ends.into_iter().enumerate() {
        shares[thread % cores].push(end);
    }
    shares.into_iter().map(WebDesk::new).collect()
}

/// The two ends of the ring by which a core is told of changed settings.
pub(super) fn control(bell: &Arc<Bell>) -> ((Producer<Control>, Arc<Bell>), Consumer<Control>) {
    let (tell, told) = ring(CONTROL_SLOTS);
    ((tell, Arc::clone(bell)), told)
}

pub(super) fn check_config(config: &NodeConfig) -> Result<(), StartError> {
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
pub(super) fn open_log(
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

pub(super) fn start_storage(
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
pub(super) fn share_out(recovered: &mut Recovered, cores: usize) -> Vec<Vec<(Partition, Box<PartitionState>)>> {
    let mut shares: Vec<Vec<_>> = (0..cores).map(|_| Vec::new()).collect();
    for (partition, state) in std::mem::take(&mut recovered.states) {
        shares[usize::from(partition.0) % cores].push((partition, Box::new(state)));
    }
    shares
}

fn check(what: &'static str, value: usize, least: usize, most: usize) -> Result<(), StartError> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(StartError::Config { what, value, least, most }) }
}

pub(super) fn system(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { action, source }
}

/// Opens what the gate keeps in the data directory.
pub(super) fn open_gate(config: &NodeConfig, data: &DataDir, origin: Instant) -> Result<Keeper, GateError> {
    Keeper::open(data.path(), config.access.clone(), crate::gate::Now::since(origin))
}

/// Starts the gate, and gives each core its part of it.
pub(super) fn start_gate(
    mut keeper: Keeper,
    reloader: &Arc<Reloader>,
    models: &Arc<ModelDesk>,
    bells: &[Arc<Bell>],
    origin: Instant,
    alarm: &Arc<Alarm>,
) -> io::Result<(Gate, Vec<Entrance>)> {
    let (desks, links) = GateDesks::new(bells)?;
    keeper.set_reloader(Arc::clone(reloader));
    keeper.set_models(Arc::clone(models));
    reloader.set_models(Arc::clone(models));
    reloader.set_gate(desks.handle());
    // Every core begins with it, so that the gate need not send it.
    let access = keeper.news().unwrap_or_else(|| keeper.snapshot());
    let entrances = links.into_iter().map(|link| Entrance::new(Arc::clone(&access), link)).collect();
    Ok((Gate::start(keeper, desks, origin, Arc::clone(alarm))?, entrances))
}

/// What the token says that lets clients on this machine in.
pub(super) fn local_claims() -> Claims {
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

pub(super) fn bind(config: &NodeConfig, layout: &Layout, steering: Steering) -> Result<Vec<Socket>, StartError> {
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
    if config.models.is_empty() && layout.inference_threads == 0 {
        return Ok((None, bells.iter().map(|_| None).collect()));
    }
    let models = config.models.clone();
    let (threads, pin) = (layout.inference_threads, layout.inference.clone());
    check("inference threads", threads, 1, CORES_MAX)?;
    // Of each model. What a running generation has is never taken, so this is the bound of their number.
    let budget = config.memory_budget_bytes.unwrap_or_else(crate::memory::default_budget);
    let kv_bytes = Some(config.kv_bytes.unwrap_or(stage::KV_BYTES.min(budget / 4)));
    let device = config.device;
    let stage = StageConfig { models, threads, pin, ring_slots: RING_SLOTS, kv_bytes, device };
    let (stage, links) = stage::start(stage, bells)?;
    Ok((Some(stage), links.into_iter().map(Some).collect()))
}

/// Starts what asks models elsewhere; it waits for nothing while there are none.
fn start_remote(config: &NodeConfig, bells: &[Arc<Bell>]) -> Result<(RemoteStage, Vec<RemoteLink>), StartError> {
    let remotes = Remotes::read(&config.model_settings);
    let remotes = remotes.map_err(|(model, source)| StartError::Remote { model, source })?;
    Ok(RemoteStage::start(remotes.into_models(), bells, REMOTE_RING_SLOTS)?)
}

/// Everything that runs models, before the cores do.
pub(super) struct Models {
    pub(super) stage: Option<Stage>,
    pub(super) links: Vec<Option<CoreLink>>,
    pub(super) remote: RemoteStage,
    pub(super) remote_links: Vec<RemoteLink>,
    pub(super) registry: Arc<Registry>,
    pub(super) desk: Arc<ModelDesk>,
}

/// Starts everything that runs models.
pub(super) fn start_models(config: &NodeConfig, layout: &Layout, bells: &[Arc<Bell>]) -> Result<Models, StartError> {
    let (stage, links) = start_stage(config, layout, bells)?;
    let (remote, remote_links) = start_remote(config, bells)?;
    let registry = make_registry(config, stage.as_ref())?;
    let loader = stage.as_ref().map(Stage::loader);
    let desk = Arc::new(ModelDesk::new(loader, remote.handle(), Arc::clone(&registry)));
    Ok(Models { stage, links, remote, remote_links, registry, desk })
}

/// What each core gets of what runs models.
pub(super) fn join_links(stage: Vec<Option<CoreLink>>, remote: Vec<RemoteLink>, served: &ServedModels) -> Vec<Links> {
    let join = |(stage, remote)| Links { stage, remote: Some(remote), served: Arc::clone(served) };
    stage.into_iter().zip(remote).map(join).collect()
}

pub(super) fn about(
    config: &NodeConfig,
    layout: &Layout,
    addr: &std::net::SocketAddr,
    epoch: Epoch,
    recovered: &Recovered,
) -> serde_json::Map<String, serde_json::Value> {
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"), "quic": addr.to_string(), "epoch": epoch.0,
        "cores": layout.cores, "inference": layout.inference, "inference_threads": layout.inference_threads,
        "spin_us": layout.spin_us, "partitions": recovered.partitions, "pid": std::process::id(),
        "log": {
            "durability": config.durability.as_str(), "backend": format!("{:?}", config.log_backend),
            "recovered_records": recovered.report.records, "recovered_torn": recovered.report.torn.len(),
        },
    });
    about.as_object().cloned().unwrap_or_default()
}
