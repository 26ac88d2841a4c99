//! `thalweg channel`: make and delete channels.

use std::io::Write as _;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use thalweg_client::{ChannelOptions, Durability};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, output};
use crate::{duration, size};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Make and delete channels
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg channel create audit --keep-age 30d        on disk, the last thirty days
  thalweg channel create cursors --durability memory  gone with the node, and never waits for the disk
  thalweg channel delete audit

Writing to a channel that does not exist makes it with the node's defaults.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a channel; one that exists keeps its options
    Create {
        /// Its name
        name: String,
        /// What an acknowledged message outlives [default: the node's]
        #[arg(long, value_enum)]
        durability: Option<Keep>,
        /// Messages it keeps at most [default: the node's]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep_messages: Option<u32>,
        /// Bytes of messages it keeps at most, like 64MiB [default: the node's]
        #[arg(long, value_name = "BYTES", value_parser = size::parse)]
        keep_bytes: Option<u64>,
        /// For how long it keeps messages, like 30d [default: for ever]
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        keep_age: Option<Duration>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Delete a channel with all it holds
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// What an acknowledged message outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Keep {
    /// Nothing: it is gone with the node's process
    Memory,
    /// The loss of process, machine and power: it was synced to the node's disk
    Disk,
}

impl Keep {
    pub(crate) fn durability(self) -> Durability {
        match self {
            Self::Memory => Durability::Memory,
            Self::Disk => Durability::Disk,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    match args.command {
        Command::Create { name, durability, keep_messages, keep_bytes, keep_age, connect } => {
            let options = ChannelOptions {
                keep_messages: keep_messages.unwrap_or(0),
                keep_bytes: keep_bytes.unwrap_or(0),
                keep_age,
                durability: durability.map(Keep::durability),
            };
            block_on(create(connect, name, options))
        }
        Command::Delete { name, connect } => block_on(delete(connect, name)),
    }
}

async fn create(connect: ConnectArgs, name: String, options: ChannelOptions) -> Result<(), Failure> {
    let client = connect.connect("channel", PATIENCE).await?;
    let created = client.create_channel(name.as_str(), options).await?;
    let text = if created { "made" } else { "there already, and not changed" };
    writeln!(std::io::stdout(), "{name} {text}").map_err(|error| output(&error))?;
    client.close().await;
    Ok(())
}

async fn delete(connect: ConnectArgs, name: String) -> Result<(), Failure> {
    let client = connect.connect("channel", PATIENCE).await?;
    client.delete_channel(name.as_str()).await?;
    writeln!(std::io::stdout(), "{name} deleted").map_err(|error| output(&error))?;
    client.close().await;
    Ok(())
}
