//! `thalweg admin`: tokens, users, keys, audit, statistics, draining, tenants, backups.

mod access;
#[cfg(feature = "node")]
mod backup;
#[cfg(feature = "node")]
mod config;
#[cfg(feature = "node")]
pub(crate) mod manifest;
#[cfg(feature = "node")]
mod model;
#[cfg(feature = "node")]
mod restore;
#[cfg(feature = "node")]
mod tenant;
#[cfg(feature = "node")]
mod token;

use std::io::Write as _;
use std::time::Duration;

use clap::Subcommand;
use serde_json::Value;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Look after a node: tokens, users, keys, statistics, draining, backups
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg admin token --user ada                                     may do everything in the tenant `default`
  thalweg admin token --user bot --allow read:* --allow write:bot-* --ttl 1h
  thalweg admin revoke --user bot                                    whatever it was given; its sessions end
  thalweg admin user add ada                                         who then does `thalweg login --user ada`
  thalweg admin key create --user ci --allow write:builds            an API key
  thalweg admin audit --limit 20
  thalweg admin stats
  thalweg admin model load smollm2-360m --class accurate             while the node serves others
  thalweg admin drain
  thalweg admin config example > thalweg.toml                        every setting there is, with its default
  thalweg admin config check thalweg.toml
  thalweg admin backup /mnt/backup/thalweg                           again and again: only what is new is copied
  thalweg admin restore /mnt/backup/thalweg --data /srv/thalweg";

#[derive(Debug, Subcommand)]
enum Command {
    /// Sign a token with the key of the data directory, and print it
    #[cfg(feature = "node")]
    Token(token::Args),
    Revoke(access::RevokeArgs),
    RotateKeys(access::RotateArgs),
    User(access::UserArgs),
    Key(access::KeyArgs),
    Reload(access::ReloadArgs),
    Audit(access::AuditArgs),
    /// Show counters and latencies of the node
    Stats {
        /// The node's JSON as it is
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Check, show and explain settings
    #[cfg(feature = "node")]
    Config(config::Args),
    #[cfg(feature = "node")]
    Model(model::Args),
    /// Let the node finish what is in flight and end
    Drain {
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Delete all channels and generations of a tenant
    #[cfg(feature = "node")]
    DeleteTenant(tenant::Args),
    /// Copy all that is durable of a running node to a directory, and verify it
    #[cfg(feature = "node")]
    Backup(backup::Args),
    /// Make a data directory of a backup
    #[cfg(feature = "node")]
    Restore(restore::Args),
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        #[cfg(feature = "node")]
        Command::Token(args) => token::run(args),
        Command::Revoke(args) => access::revoke(args),
        Command::RotateKeys(args) => access::rotate(args),
        Command::User(args) => access::user(args),
        Command::Key(args) => access::key(args),
        Command::Reload(args) => access::reload(args),
        Command::Audit(args) => access::audit(args),
        Command::Stats { json, connect } => block_on(stats(connect, json)),
        #[cfg(feature = "node")]
        Command::Config(args) => config::run(args),
        #[cfg(feature = "node")]
        Command::Model(args) => model::run(args),
        Command::Drain { connect } => block_on(drain(connect)),
        #[cfg(feature = "node")]
        Command::DeleteTenant(args) => tenant::run(args),
        #[cfg(feature = "node")]
        Command::Backup(args) => backup::run(args),
        #[cfg(feature = "node")]
        Command::Restore(args) => restore::run(args),
    }
}

async fn stats(connect: ConnectArgs, json: bool) -> Result<(), Failure> {
    let client = connect.connect("admin", PATIENCE).await?;
    let bytes = tokio::time::timeout(PATIENCE, client.stats()).await.map_err(|_| slow())??;
    let mut out = std::io::stdout().lock();
    if json {
        out.write_all(&bytes).and_then(|()| out.write_all(b"\n")).map_err(|error| output(&error))?;
    } else {
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::failed(format!("the node's statistics are not JSON: {error}")))?;
        let mut lines = Vec::new();
        table(String::new(), &value, &mut lines);
        let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in lines {
            writeln!(out, "{name:<width$}  {value}").map_err(|error| output(&error))?;
        }
    }
    client.close().await;
    Ok(())
}

/// One line per number or text; an object of nothing but numbers, such as a latency, is one line with all of them.
fn table(name: String, value: &Value, lines: &mut Vec<(String, String)>) {
    let join = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(fields) if !name.is_empty() && is_latency(fields) => {
            let all: Vec<_> = fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
            lines.push((name, all.join("  ")));
        }
        Value::Object(fields) => fields.iter().for_each(|(key, value)| table(join(key), value, lines)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| table(join(&at.to_string()), value, lines));
        }
        Value::String(text) => lines.push((name, text.clone())),
        other => lines.push((name, other.to_string())),
    }
}

fn is_latency(fields: &serde_json::Map<String, Value>) -> bool {
    fields.keys().any(|key| key.starts_with("p50")) && fields.values().all(Value::is_number)
}

async fn drain(connect: ConnectArgs) -> Result<(), Failure> {
    let builder = connect.builder("admin")?.reconnect(None);
    let client = builder.connect().await?;
    tokio::time::timeout(PATIENCE, client.drain()).await.map_err(|_| slow())??;
    eprintln!("the node drains; it ends when what is in flight is finished");
    client.close().await;
    Ok(())
}

fn slow() -> Failure {
    Failure::new(exit::UNREACHABLE, format!("the node did not answer within {PATIENCE:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_become_a_table() {
        let value = serde_json::json!({
            "epoch": 3, "cores": [{ "turn_us": { "p50": 1, "p99": 9, "count": 7 }, "drops": 0 }], "server": "x",
        });
        let mut lines = Vec::new();
        table(String::new(), &value, &mut lines);
        let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let expected = ["epoch 3", "cores.0.turn_us p50=1  p99=9  count=7", "cores.0.drops 0", "server x"];
        assert_eq!(lines, expected);
    }
}
