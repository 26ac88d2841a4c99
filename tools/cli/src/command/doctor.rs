//! `thalweg doctor`: whether this machine is fit to run a node, and whether the log of one that does not run is sound.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;
use thalweg_node::config::NodeConfig;
use thalweg_node::doctor::{Check, DoctorOptions, Outcome, checks};
use thalweg_node::identity::{DataDir, IdentityError};

use crate::config::effective::{FlagValue, Override};
use crate::config::problem::Problem;
use crate::config::{self, Inputs};
use crate::failure::{Failure, output};
use crate::{logs, paths, size};

/// Check whether this machine is fit to run a node, and whether what it has on disk is sound
///
/// With a data directory whose node does not run, all of its log is verified: every block of every segment, every batch of
/// the write-ahead log, and that nothing is missing between them. Nothing is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The data directory a node would use [default: $XDG_STATE_HOME/thalweg]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where it would serve QUIC [default: as its settings say]
    #[arg(long, value_name = "ADDR")]
    quic: Option<SocketAddr>,
    /// The file with its settings [default: thalweg.toml in the data directory, else /etc/thalweg/thalweg.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Print the records of a file of the log instead, without what users wrote
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
    /// With --show: also what users wrote
    #[arg(long, requires = "show")]
    bodies: bool,
    /// Copy what is intact of the log, and the keys, into a new data directory instead
    #[arg(long, value_name = "NEW-DIR", conflicts_with = "show")]
    salvage: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  thalweg doctor
  thalweg doctor --config /etc/thalweg/thalweg.toml
  thalweg doctor --data /srv/thalweg
  thalweg doctor --show /srv/thalweg/log/wal/000-000000000001.wal
  thalweg doctor --data /srv/thalweg --salvage /srv/thalweg-salvaged

Exit codes: 0 all is well, 1 something is not.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let (settings, options) = settings(&args);
    let data = options.data.clone();
    if let Some(file) = &args.show {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let shown = logs::show(file, logs::Show { json: args.json, bodies: args.bodies }, &mut out);
        out.flush().map_err(|error| output(&error))?;
        return shown;
    }
    if let Some(to) = &args.salvage {
        return salvage(&data, to, args.json);
    }
    let mut checks = [vec![settings], checks(&options)].concat();
    checks.extend(log_checks(&data));
    let mut out = std::io::stdout().lock();
    let colours = out.is_terminal();
    for check in &checks {
        let text = if args.json { object(check) } else { line(check, colours) };
        writeln!(out, "{text}").map_err(|error| output(&error))?;
    }
    if let (Ok(node), false) = (thalweg_client::discover(&data), args.json) {
        writeln!(out, "key of this node: sha256:{}", node.key).map_err(|error| output(&error))?;
    }
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Fail).count();
    if failed > 0 {
        return Err(Failure::failed(format!("{failed} of {} checks failed", checks.len())));
    }
    Ok(())
}

/// Whether a node could read its settings, and what they say.
fn settings(args: &Args) -> (Check, DoctorOptions) {
    let mut overrides = Vec::new();
    let mut say = |setting, flag, text: Option<String>| {
        overrides.extend(text.map(|text| Override { setting, flag, value: FlagValue::Text(text) }));
    };
    say("node.data", "--data", args.data.as_ref().map(|path| path.to_string_lossy().into_owned()));
    say("quic.address", "--quic", args.quic.map(|quic| quic.to_string()));
    let inputs = Inputs::new(args.config.clone(), overrides);
    let shown = |path: Option<PathBuf>| path.map_or("no file; the defaults".into(), |path| path.display().to_string());
    let loaded = config::load(&inputs).and_then(|loaded| {
        let checked = config::checked::check(&loaded.effective)?;
        Ok((shown(loaded.file), [loaded.warnings, checked.warnings].concat(), checked.node))
    });
    let options = |node: NodeConfig| DoctorOptions {
        data: node.data,
        quic: node.quic,
        http: node.http.map(|http| http.web.addr),
        certificate: node.certificate,
        memory_budget_bytes: node.memory_budget_bytes,
        device: node.device,
    };
    let lines = |problems: &[Problem]| problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ");
    let remedy = || Some("`thalweg admin config check` shows each with its line".to_owned());
    let check = |outcome, found, remedy| Check { name: "settings", outcome, found, remedy };
    match loaded {
        Ok((file, warnings, node)) if warnings.is_empty() => (check(Outcome::Pass, file, None), options(node)),
        Ok((file, warnings, node)) => {
            (check(Outcome::Warn, format!("{file}: {}", lines(&warnings)), remedy()), options(node))
        }
        Err(problems) => {
            // The rest is looked at as far as flags say where.
            let defaults = NodeConfig::default();
            let data =
                paths::data_directory(args.data.clone().or_else(|| std::env::var_os("THALWEG_DATA").map(Into::into)));
            let node = NodeConfig { data, quic: args.quic.unwrap_or(defaults.quic), ..defaults };
            (check(Outcome::Fail, lines(&problems), remedy()), options(node))
        }
    }
}

fn check(outcome: Outcome, found: impl Into<String>, remedy: Option<String>) -> Check {
    Check { name: "log", outcome, found: found.into(), remedy }
}

/// What is to be said of the log of a data directory: nothing if it has none.
fn log_checks(data: &Path) -> Vec<Check> {
    let log = data.join("log");
    if !log.is_dir() {
        return Vec::new();
    }
    let _lock = match DataDir::open(data) {
        Ok(lock) => lock,
        Err(IdentityError::InUse { .. }) => {
            return vec![check(Outcome::Pass, "not verified: its node runs, and verified it when it started", None)];
        }
        Err(error) => return vec![check(Outcome::Fail, error.to_string(), None)],
    };
    let report = match logs::verify_all(&log) {
        Ok(report) => report,
        Err(failure) => return vec![check(Outcome::Fail, failure.message, None)],
    };
    let salvage = format!("restore a backup, or `thalweg doctor --data {} --salvage NEW-DIR`", data.display());
    let mut checks: Vec<_> = report
        .problems
        .iter()
        .map(|problem| {
            // Where to look further is what this command is.
            let text = problem.to_string();
            let text = text.split("; `thalweg doctor`").next().unwrap_or(&text).to_owned();
            check(Outcome::Fail, text, Some(salvage.clone()))
        })
        .collect();
    checks.extend(report.notes.iter().map(|note| check(Outcome::Pass, note.as_str(), None)));
    let (messages, bytes) = report
        .segments
        .iter()
        .fold((0, 0), |(messages, bytes), (_, verified)| (messages + verified.messages, bytes + verified.bytes));
    let records: u64 = report.wal.iter().map(|(_, records, _)| records).sum();
    let text = format!(
        "{} segments with {messages} messages in {}; {records} records in {} files of the write-ahead log, {} free ones",
        report.segments.len(),
        size::show(bytes),
        report.wal.len(),
        report.free
    );
    let outcome = if report.problems.is_empty() { Outcome::Pass } else { Outcome::Warn };
    checks.push(check(outcome, text, None));
    checks
}

fn salvage(data: &Path, to: &Path, json: bool) -> Result<(), Failure> {
    let _lock = DataDir::open(data).map_err(|error| Failure::failed(error.to_string()))?;
    let text = logs::salvage_to(data, to, json)?;
    writeln!(std::io::stdout(), "{text}").map_err(|error| output(&error))
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Warn => "warn",
        Outcome::Fail => "fail",
    }
}

fn line(check: &Check, colours: bool) -> String {
    let colour = match check.outcome {
        Outcome::Pass => "\x1b[32m",
        Outcome::Warn => "\x1b[33m",
        Outcome::Fail => "\x1b[31m",
    };
    let (colour, reset) = if colours { (colour, "\x1b[0m") } else { ("", "") };
    let remedy = check.remedy.as_ref().map(|remedy| format!("\n      do: {remedy}")).unwrap_or_default();
    format!("{colour}{}{reset}  {:<20} {}{remedy}", word(check.outcome), check.name, check.found)
}

fn object(check: &Check) -> String {
    let Check { name, outcome, found, remedy } = check;
    json!({ "name": name, "outcome": word(*outcome), "found": found, "remedy": remedy }).to_string()
}
