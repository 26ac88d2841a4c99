//! `thalweg serve`: run a node.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use thalweg_client::Name;
use thalweg_node::config::{DeviceChoice, ModelSource, NodeConfig};
use thalweg_node::reload::Source;
use thalweg_node::{Node, run_until_signal};

use crate::command::channel::Keep;
use crate::config::checked::{Checked, check};
use crate::config::effective::{FlagValue, Override};
use crate::config::source::Settings;
use crate::config::{self, Inputs};
use crate::failure::{During as _, Failure};
use crate::models::{Store, check_gguf};
use crate::{duration, logging, notify, paths, size};

/// Run a node
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the node keeps its keys and data [env: THALWEG_DATA] [default: $XDG_STATE_HOME/thalweg]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where to serve QUIC; port 0 lets the system choose [default: 127.0.0.1:4433]
    #[arg(long, value_name = "ADDR")]
    pub(crate) quic: Option<SocketAddr>,
    /// Where to serve health and metrics over HTTP, or `off` [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR|off", value_parser = parse_http)]
    pub(crate) http: Option<Http>,
    /// Serve HTTP without encryption to other machines too
    #[arg(long)]
    pub(crate) http_allow_plain: bool,
    /// Cores that serve clients [default: what inference leaves]
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<usize>,
    /// Threads that run models [default: a quarter of the CPUs, at least 1]
    #[arg(long, value_name = "N")]
    pub(crate) inference_threads: Option<usize>,
    /// A model to load, by name or GGUF file; repeat for more, default first [default: all that were pulled]
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "no_model")]
    pub(crate) model: Vec<String>,
    /// Where chat models are computed: `cpu`, `cuda:N` for a GPU, or `auto` for a GPU if it can [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceChoice>,
    /// Load no model
    #[arg(long)]
    pub(crate) no_model: bool,
    /// Read settings from this TOML file; `thalweg admin config example` prints one [default: thalweg.toml in the data
    /// directory, else /etc/thalweg/thalweg.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How long an idle core looks for work before it sleeps, in microseconds; only on CPUs of its own
    #[arg(long, value_name = "N")]
    pub(crate) spin_us: Option<u64>,
    /// How the sockets talk to the kernel
    #[arg(long, value_enum)]
    pub(crate) udp: Option<Udp>,
    /// What an acknowledged message outlives, in channels whose maker did not choose [default: disk]
    #[arg(long, value_enum)]
    pub(crate) durability: Option<Keep>,
    /// For measuring: how the log's batches are written
    #[arg(long, value_enum, hide = true)]
    pub(crate) log_backend: Option<LogWriter>,
    /// For measuring: what each sync of the log takes longer than it must
    #[arg(long, value_name = "TIME", value_parser = duration::parse, hide = true)]
    pub(crate) sync_delay: Option<Duration>,
    /// For tests: how large a file of the write-ahead log is
    #[arg(long, value_name = "BYTES", value_parser = size::parse, hide = true)]
    pub(crate) log_file_bytes: Option<u64>,
    /// For tests: which disk stands behind the log
    #[arg(long, value_enum, hide = true)]
    pub(crate) disk_shell: Option<Shell>,
    /// How the log on standard error is written [default: human]
    #[arg(long, value_enum)]
    pub(crate) log: Option<Log>,
}

const EXAMPLES: &str = "\
Examples:
  thalweg serve                                     with every model that was pulled
  thalweg serve --no-model --quic 0.0.0.0:4433      channels only, for other machines too
  thalweg serve --model ./my.gguf --data /tmp/node  a model of your own
  thalweg serve --device cuda:0                     models on the first GPU, in a build with CUDA
  thalweg serve --durability memory                 nothing waits for the disk, nothing outlives the node
  curl -s http://127.0.0.1:8080/health              whether it serves; /metrics is for Prometheus
  thalweg serve --config /etc/thalweg/thalweg.toml  as that file says; flags and THALWEG_… variables go before it

Prints one line `ready quic=ADDR http=ADDR data=DIR models=a,b` on standard output once it serves.
Ctrl-C or SIGTERM drains it: what is in flight is finished first. A second one ends it at once.
SIGHUP reads settings and certificates again; what cannot be changed while it runs is named in the log.";

/// Whether HTTP is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    Off,
    At(SocketAddr),
}

impl Http {
    fn text(self) -> String {
        match self {
            Self::Off => "off".into(),
            Self::At(address) => address.to_string(),
        }
    }
}

fn parse_http(text: &str) -> Result<Http, String> {
    if text == "off" {
        return Ok(Http::Off);
    }
    text.parse().map(Http::At).map_err(|_| "give an address like 127.0.0.1:8080, or off".into())
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

/// Back end of the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Udp {
    /// sendmmsg and recvmmsg; works everywhere
    QuinnUdp,
    /// A ring of its own; needs Linux 6.1
    IoUring,
}

/// How the log's batches are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogWriter {
    /// A thread beside each core, through the page cache
    Thread,
    /// A ring of its own, around the page cache
    IoUring,
}

/// The disk behind the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// As it is
    Plain,
    /// Forgets with the process what was not synced, as a disk does when the power goes
    Discard,
}

impl Args {
    /// What was given, as settings.
    pub(crate) fn inputs(self) -> Inputs {
        let mut overrides = Vec::new();
        let mut say = |setting, flag, text: Option<String>| {
            overrides.extend(text.map(|text| Override { setting, flag, value: FlagValue::Text(text) }));
        };
        say("node.data", "--data", self.data.map(|path| path.to_string_lossy().into_owned()));
        say("quic.address", "--quic", self.quic.map(|address| address.to_string()));
        say("http.address", "--http", self.http.map(Http::text));
        say("http.allow_plain", "--http-allow-plain", self.http_allow_plain.then(|| "true".into()));
        say("node.cores", "--cores", self.cores.map(|n| n.to_string()));
        say("node.inference_threads", "--inference-threads", self.inference_threads.map(|n| n.to_string()));
        say("inference.device", "--device", self.device.map(|device| device.to_string()));
        say("node.spin", "--spin-us", self.spin_us.map(|us| format!("{us}us")));
        say("quic.backend", "--udp", word(self.udp));
        say("durability.default", "--durability", word(self.durability));
        say("log.backend", "--log-backend", word(self.log_backend));
        say("log.sync_delay", "--sync-delay", self.sync_delay.map(|time| format!("{}us", time.as_micros())));
        say("log.file_size", "--log-file-bytes", self.log_file_bytes.map(|bytes| bytes.to_string()));
        say("log.disk_shell", "--disk-shell", word(self.disk_shell));
        say("logging.format", "--log", word(self.log));
        if !self.model.is_empty() || self.no_model {
            let flag = if self.no_model { "--no-model" } else { "--model" };
            overrides.push(Override { setting: "models.load", flag, value: FlagValue::List(self.model) });
        }
        Inputs::new(self.config, overrides)
    }
}

/// A word of the command line, which files know too.
fn word(value: Option<impl ValueEnum>) -> Option<String> {
    value.and_then(|value| value.to_possible_value()).map(|word| word.get_name().to_owned())
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let inputs = args.inputs();
    let loaded = config::load(&inputs).map_err(|problems| config::failure(&problems))?;
    let Checked { node, models: wanted, logging, warnings } =
        check(&loaded.effective).map_err(|problems| config::failure(&problems))?;
    config::warn(&[&loaded.warnings[..], &warnings].concat());
    let log = logging::start(&logging);
    let file = loaded.file.clone();
    let models = models(wanted.as_deref(), &Store::new(paths::models()))?;
    let none = models.is_empty() && wanted.is_none();
    let source = Source(Some(Arc::new(Settings::new(inputs, loaded, log))));
    let config = NodeConfig { models, source, ..node };
    let node = Node::start(config).map_err(|error| Failure::failed(error.to_string()))?;
    ready(&node).map_err(|error| crate::failure::output(&error))?;
    hint(&node, file.as_deref(), none);
    let _notifier = notify::ready(node.pulse());
    run_until_signal(node).map_err(|error| Failure::failed(error.to_string()))
}

/// The one line scripts wait for.
fn ready(node: &Node) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    let (quic, data, models) = (node.quic_addr(), node.data().display(), node.models().join(","));
    let http = node.http_addr().map_or_else(|| "off".to_owned(), |http| http.to_string());
    writeln!(output, "ready quic={quic} http={http} data={data} models={models}")?;
    output.flush()
}

/// What a person wants to know.
fn hint(node: &Node, file: Option<&Path>, none: bool) {
    eprintln!("Serving QUIC on {}; data in {}.", node.quic_addr(), node.data().display());
    if let Some(http) = node.http_addr() {
        eprintln!("Health and metrics: http://{http}/health, http://{http}/metrics.");
    }
    match file {
        Some(file) => eprintln!("Settings from {}.", file.display()),
        None => eprintln!("Settings are the defaults; `thalweg admin config example` prints a file with all of them."),
    }
    if node.models().is_empty() {
        eprintln!("No model is loaded{}.", if none { "; `thalweg models pull smollm2-135m` fetches one" } else { "" });
    } else {
        eprintln!("Models: {}.", node.models().join(", "));
    }
    let default = paths::data_directory(None) == node.data();
    let data = if default { String::new() } else { format!(" --data {}", node.data().display()) };
    eprintln!("In another terminal: thalweg chat general{data}");
}

/// The models to load, default first: those that are wanted, or all there are.
fn models(wanted: Option<&[String]>, store: &Store) -> Result<Vec<ModelSource>, Failure> {
    let Some(wanted) = wanted else { return pulled(store) };
    let mut models: Vec<ModelSource> = Vec::new();
    for given in wanted {
        let model = model(given, store)?;
        if models.iter().any(|other| other.name == model.name) {
            return Err(Failure::usage(format!("--model {given}: there are two models called {}", model.name)));
        }
        models.push(model);
    }
    Ok(models)
}

/// All models of the store that can be run; says what is passed over.
fn pulled(store: &Store) -> Result<Vec<ModelSource>, Failure> {
    let mut models = Vec::new();
    for installed in store.list()? {
        match installed {
            Ok(installed) if installed.metadata.class.is_run() => {
                models.push(ModelSource { name: name(&installed.metadata.name)?, path: installed.path });
            }
            Ok(installed) => {
                let (name, class) = (&installed.metadata.name, installed.metadata.class.as_str());
                tracing::info!(model = name, class, "not loaded: this version does not run models of this class");
            }
            Err(failure) => tracing::warn!("not loaded: {}", failure.message),
        }
    }
    Ok(models)
}

/// The model of one `--model`: a name of the store, or a file.
pub(crate) fn model(given: &str, store: &Store) -> Result<ModelSource, Failure> {
    if given.contains('/') || given.ends_with(".gguf") {
        let path = Path::new(given);
        // Sentence encoders come as safetensors, with their tokenizer beside them.
        let encoder = path.extension().is_some_and(|extension| extension == "safetensors");
        if encoder { Ok(()) } else { check_gguf(path) }.during(format!("--model {given}"))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let clean: String =
            stem.chars().map(|c| if c.is_alphanumeric() || "-._".contains(c) { c } else { '-' }).collect();
        return Ok(ModelSource { name: name(&clean)?, path: path.to_owned() });
    }
    let Some(installed) = store.find(given)? else {
        let text = match crate::models::catalogue::known(given) {
            Some(_) => format!("--model {given}: it is not on this machine; `thalweg models pull {given}` fetches it"),
            None => format!("--model {given}: there is no such model; `thalweg models list` shows what there is"),
        };
        return Err(Failure::failed(text));
    };
    if !installed.metadata.class.is_run() {
        let class = installed.metadata.class.as_str();
        return Err(Failure::failed(format!(
            "--model {given}: it is a {class} model; this version runs chat and embedding models"
        )));
    }
    Ok(ModelSource { name: name(given)?, path: installed.path })
}

fn name(text: &str) -> Result<Name, Failure> {
    Name::new(text).map_err(|error| Failure::usage(format!("the model's name {text:?} {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("node.toml");
        let check = |text: &str, args: Args, expected: &str| {
            std::fs::write(&path, text).expect("written");
            let inputs = Inputs { environment: Vec::new(), ..Args { config: Some(path.clone()), ..args }.inputs() };
            let checked = check(&config::load(&inputs).expect(text).effective).expect(text);
            let node = checked.node;
            let found = format!(
                "{} {:?} {:?} {} {:?}",
                node.quic,
                node.cores,
                checked.models,
                node.device,
                node.http.map(|http| http.web.addr)
            );
            assert_eq!(found, expected, "{text}");
        };
        let given = || Args { cores: Some(3), model: vec!["b".into()], ..Args::default() };
        check("", Args::default(), "127.0.0.1:4433 None None auto Some(127.0.0.1:8080)");
        let file = "node.cores = 2\nmodels.load = [\"a\"]\nhttp.address = \"off\"\ninference.device = \"cuda:1\"";
        check(file, Args::default(), "127.0.0.1:4433 Some(2) Some([\"a\"]) cuda:1 None");
        check(file, given(), "127.0.0.1:4433 Some(3) Some([\"b\"]) cuda:1 None");
        check(file, Args { no_model: true, ..Args::default() }, "127.0.0.1:4433 Some(2) Some([]) cuda:1 None");
        let everything = Args {
            quic: "127.0.0.1:1".parse().ok(),
            http: Some(Http::At("127.0.0.1:2".parse().expect("valid"))),
            spin_us: Some(7),
            udp: Some(Udp::IoUring),
            durability: Some(Keep::Memory),
            log_backend: Some(LogWriter::Thread),
            sync_delay: Some(Duration::from_micros(1_500)),
            log_file_bytes: Some(2 << 20),
            disk_shell: Some(Shell::Discard),
            log: Some(Log::Json),
            inference_threads: Some(1),
            device: Some(DeviceChoice::Cpu),
            http_allow_plain: true,
            ..given()
        };
        check(file, everything, "127.0.0.1:1 Some(3) Some([\"b\"]) cpu Some(127.0.0.1:2)");
    }

    #[test]
    fn models_are_found_by_name_or_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::new(directory.path().join("models"));
        let file = directory.path().join("My model.gguf");
        std::fs::write(&file, b"GGUF").expect("written");
        store.add("mine", &file).expect("added");
        let check = |given: &[&str], expected: Result<&[&str], &str>| {
            let wanted: Vec<String> = given.iter().map(|&text| text.into()).collect();
            match (models((!wanted.is_empty()).then_some(&wanted), &store), expected) {
                (Ok(found), Ok(expected)) => {
                    let names: Vec<_> = found.iter().map(|model| model.name.as_str()).collect();
                    assert_eq!(names, expected, "{given:?}");
                }
                (Err(failure), Err(expected)) => assert!(failure.message.contains(expected), "{}", failure.message),
                (found, _) => panic!("{given:?}: {found:?}"),
            }
        };
        let path = file.to_str().expect("UTF-8");
        check(&[], Ok(&["mine"]));
        check(&["mine", path], Ok(&["mine", "My-model"]));
        check(&["mine", "mine"], Err("two models"));
        check(&["smollm2-135m"], Err("models pull smollm2-135m"));
        check(&["nonsense"], Err("no such model"));
        check(&["./nonsense.gguf"], Err("nonsense.gguf"));
        assert!(models(Some(&[]), &store).expect("none").is_empty());
    }
}
