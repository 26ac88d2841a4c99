//! `thalweg doctor`: whether this machine is fit to run a node.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;
use thalweg_node::config::NodeConfig;
use thalweg_node::doctor::{Check, DoctorOptions, Outcome, checks};

use crate::failure::{Failure, output};
use crate::paths;

/// Check whether this machine is fit to run a node, and say what to do if not
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data directory a node would use [default: $XDG_STATE_HOME/thalweg]
    #[arg(long, value_name = "DIR", env = "THALWEG_DATA")]
    data: Option<PathBuf>,
    /// Where it would serve QUIC [default: 127.0.0.1:4433]
    #[arg(long, value_name = "ADDR")]
    quic: Option<SocketAddr>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let data = paths::data_directory(args.data);
    let checks = checks(&DoctorOptions { data: data.clone(), quic: args.quic.unwrap_or(NodeConfig::default().quic) });
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
