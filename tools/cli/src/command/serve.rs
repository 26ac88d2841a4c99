//! `thalweg serve`: run a node.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;
use thalweg_client::Name;
use thalweg_node::config::{Backend, DiskShell, LogBackend, ModelSource, NodeConfig};
use thalweg_node::{Node, run_until_signal};

use crate::command::channel::Keep;
use crate::connect::log_to_stderr;
use crate::failure::{During as _, Failure};
use crate::models::catalogue::Class;
use crate::models::{Store, check_gguf};
use crate::{duration, paths, size};

/// Run a node
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the node keeps its keys and data [default: $XDG_STATE_HOME/thalweg]
    #[arg(long, value_name = "DIR", env = "THALWEG_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Where to serve QUIC; port 0 lets the system choose [default: 127.0.0.1:4433]
    #[arg(long, value_name = "ADDR")]
    pub(crate) quic: Option<SocketAddr>,
    /// Where to serve HTTP; only `off` in this version
    #[arg(long, value_name = "ADDR|off", value_parser = parse_http)]
    pub(crate) http: Option<Http>,
    /// Cores that serve clients [default: what inference leaves]
    #[arg(long, value_name = "N")]
    pub(crate) cores: Option<usize>,
    /// Threads that run models [default: a quarter of the CPUs, at least 1]
    #[arg(long, value_name = "N")]
    pub(crate) inference_threads: Option<usize>,
    /// A model to load, by name or GGUF file; repeat for more, default first [default: all that were pulled]
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "no_model")]
    pub(crate) model: Vec<String>,
    /// Load no model
    #[arg(long)]
    pub(crate) no_model: bool,
    /// Read settings from a TOML file; the command line goes before it
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
    /// How the log on standard error is written
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log: Log,
}

const EXAMPLES: &str = "\
Examples:
  thalweg serve                                     with every model that was pulled
  thalweg serve --no-model --quic 0.0.0.0:4433      channels only, for other machines too
  thalweg serve --model ./my.gguf --data /tmp/node  a model of your own
  thalweg serve --durability memory                 nothing waits for the disk, nothing outlives the node

Prints one line `ready quic=ADDR http=ADDR data=DIR models=a,b` on standard output once it serves.
Ctrl-C or SIGTERM drains it: what is in flight is finished first. A second one ends it at once.";

/// Whether HTTP is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    Off,
    At(SocketAddr),
}

fn parse_http(text: &str) -> Result<Http, String> {
    if text == "off" {
        return Ok(Http::Off);
    }
    text.parse().map(Http::At).map_err(|_| "give an address like 127.0.0.1:8080, or off".into())
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Log {
    /// For people
    #[default]
    Human,
    /// One JSON object a line
    Json,
}

/// Back end of the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// What a configuration file may say: the options of the command line, by the same names.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    data: Option<PathBuf>,
    quic: Option<SocketAddr>,
    http: Option<String>,
    cores: Option<usize>,
    inference_threads: Option<usize>,
    model: Vec<String>,
    no_model: bool,
    spin_us: Option<u64>,
    udp: Option<Udp>,
    durability: Option<Keep>,
}

/// Fills in from the configuration file what the command line left open.
fn with_file(mut args: Args) -> Result<Args, Failure> {
    let Some(path) = &args.config else { return Ok(args) };
    let text = std::fs::read_to_string(path).during(path.display())?;
    let bad = |reason: String| Failure::usage(format!("{}: {reason}", path.display()));
    let file: ConfigFile = toml::from_str(&text).map_err(|error| bad(error.to_string().trim_end().into()))?;
    let http = file.http.as_deref().map(parse_http).transpose().map_err(|error| bad(format!("http: {error}")))?;
    if file.no_model && !file.model.is_empty() {
        return Err(bad("no-model and model exclude each other".into()));
    }
    args.data = args.data.or(file.data);
    args.quic = args.quic.or(file.quic);
    args.http = args.http.or(http);
    args.cores = args.cores.or(file.cores);
    args.inference_threads = args.inference_threads.or(file.inference_threads);
    args.spin_us = args.spin_us.or(file.spin_us);
    args.udp = args.udp.or(file.udp);
    args.durability = args.durability.or(file.durability);
    if args.model.is_empty() && !args.no_model {
        (args.model, args.no_model) = (file.model, file.no_model);
    }
    Ok(args)
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let args = with_file(args)?;
    log_to_stderr(args.log == Log::Json, "info");
    if let Some(Http::At(address)) = args.http {
        let text = format!("--http {address}: HTTP is not in this version; leave it out, or give --http off");
        return Err(Failure::usage(text));
    }
    let models = models(&args, &Store::new(paths::models()))?;
    let none = models.is_empty() && !args.no_model;
    let config = config(args, models);
    let node = Node::start(config).map_err(|error| Failure::failed(error.to_string()))?;
    ready(&node).map_err(|error| crate::failure::output(&error))?;
    hint(&node, none);
    run_until_signal(node).map_err(|error| Failure::failed(error.to_string()))
}

fn config(args: Args, models: Vec<ModelSource>) -> NodeConfig {
    let default = NodeConfig::default();
    NodeConfig {
        data: paths::data_directory(args.data),
        quic: args.quic.unwrap_or(default.quic),
        cores: args.cores,
        inference_threads: args.inference_threads,
        models,
        spin_us: args.spin_us,
        backend: match args.udp {
            None => default.backend,
            Some(Udp::QuinnUdp) => Backend::QuinnUdp,
            Some(Udp::IoUring) => Backend::IoUring,
        },
        durability: args.durability.map_or(default.durability, Keep::durability),
        log_backend: match args.log_backend {
            None => default.log_backend,
            Some(LogWriter::Thread) => LogBackend::Thread,
            Some(LogWriter::IoUring) => LogBackend::IoUring,
        },
        log_file_bytes: args.log_file_bytes.unwrap_or(default.log_file_bytes),
        sync_delay: args.sync_delay.unwrap_or(default.sync_delay),
        disk_shell: match args.disk_shell {
            None => default.disk_shell,
            Some(Shell::Plain) => DiskShell::Plain,
            Some(Shell::Discard) => DiskShell::Discard,
        },
        ..default
    }
}

/// The one line scripts wait for.
fn ready(node: &Node) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    let (quic, data, models) = (node.quic_addr(), node.data().display(), node.models().join(","));
    writeln!(output, "ready quic={quic} http=off data={data} models={models}")?;
    output.flush()
}

/// What a person wants to know.
fn hint(node: &Node, none: bool) {
    eprintln!("Serving QUIC on {}; data in {}.", node.quic_addr(), node.data().display());
    if node.models().is_empty() {
        eprintln!("No model is loaded{}.", if none { "; `thalweg models pull smollm2-135m` fetches one" } else { "" });
    } else {
        eprintln!("Models: {}.", node.models().join(", "));
    }
    let default = paths::data_directory(None) == node.data();
    let data = if default { String::new() } else { format!(" --data {}", node.data().display()) };
    eprintln!("In another terminal: thalweg chat general{data}");
}

/// The models to load, default first.
fn models(args: &Args, store: &Store) -> Result<Vec<ModelSource>, Failure> {
    if args.no_model {
        return Ok(Vec::new());
    }
    if args.model.is_empty() {
        return pulled(store);
    }
    let mut models: Vec<ModelSource> = Vec::new();
    for given in &args.model {
        let model = model(given, store)?;
        if models.iter().any(|other| other.name == model.name) {
            return Err(Failure::usage(format!("--model {given}: there are two models called {}", model.name)));
        }
        models.push(model);
    }
    Ok(models)
}

/// All chat models of the store; says what is passed over.
fn pulled(store: &Store) -> Result<Vec<ModelSource>, Failure> {
    let mut models = Vec::new();
    for installed in store.list()? {
        match installed {
            Ok(installed) if installed.metadata.class == Class::Chat => {
                models.push(ModelSource { name: name(&installed.metadata.name)?, path: installed.path });
            }
            Ok(installed) => {
                let (name, class) = (&installed.metadata.name, installed.metadata.class.as_str());
                tracing::info!(model = name, class, "not loaded: this version runs chat models only");
            }
            Err(failure) => tracing::warn!("not loaded: {}", failure.message),
        }
    }
    Ok(models)
}

/// The model of one `--model`: a name of the store, or a file.
fn model(given: &str, store: &Store) -> Result<ModelSource, Failure> {
    if given.contains('/') || given.ends_with(".gguf") {
        let path = Path::new(given);
        check_gguf(path).during(format!("--model {given}"))?;
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
    if installed.metadata.class != Class::Chat {
        let class = installed.metadata.class.as_str();
        return Err(Failure::failed(format!(
            "--model {given}: it is a {class} model; this version runs chat models only"
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
        let check = |text: &str, args: Args, expected: Result<&str, &str>| {
            std::fs::write(&path, text).expect("written");
            let args = with_file(Args { config: Some(path.clone()), ..args });
            let found = args.map(|a| format!("{:?} {:?} {:?} {} {:?}", a.quic, a.cores, a.model, a.no_model, a.http));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(failure), Err(expected)) => assert!(failure.message.contains(expected), "{}", failure.message),
                (found, _) => panic!("{text}: {found:?}"),
            }
        };
        let given = || Args { cores: Some(3), model: vec!["b".into()], ..Args::default() };
        check("", Args::default(), Ok("None None [] false None"));
        check(
            "cores = 2\nmodel = [\"a\"]\nhttp = \"off\"",
            Args::default(),
            Ok("None Some(2) [\"a\"] false Some(Off)"),
        );
        check("cores = 2\nno-model = true", given(), Ok("None Some(3) [\"b\"] false None"));
        check("no-model = true", Args::default(), Ok("None None [] true None"));
        check("quic = \"127.0.0.1:1\"", Args::default(), Ok("Some(127.0.0.1:1) None [] false None"));
        check("durability = \"memory\"", Args::default(), Ok("None None [] false None"));
        check("durability = \"replicated\"", Args::default(), Err("replicated"));
        check("coers = 2", Args::default(), Err("coers"));
        check("http = \"yes\"", Args::default(), Err("http"));
        check("no-model = true\nmodel = [\"a\"]", Args::default(), Err("exclude"));
    }

    #[test]
    fn models_are_found_by_name_or_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::new(directory.path().join("models"));
        let file = directory.path().join("My model.gguf");
        std::fs::write(&file, b"GGUF").expect("written");
        store.add("mine", &file).expect("added");
        let check = |given: &[&str], expected: Result<&[&str], &str>| {
            let args = Args { model: given.iter().map(|&text| text.into()).collect(), ..Args::default() };
            match (models(&args, &store), expected) {
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
        assert!(models(&Args { no_model: true, ..Args::default() }, &store).expect("none").is_empty());
    }
}
