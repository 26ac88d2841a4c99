//! `thalweg dm`: talk to a few people alone.

use std::io::Read as _;
use std::time::Duration;

use thalweg_protocol::limits::BODY_BYTES_MAX;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::lines;
use crate::plain::{print, say};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Talk to a few people alone
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// With whom; several are separated by commas
    #[arg(value_name = "USER,…")]
    users: String,
    /// What to write; `-` reads it from standard input
    text: Option<String>,
    /// One JSON object: the channel, as `thalweg channel info --json` shows it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg dm ada \"lunch?\"
  thalweg dm ada,grace               opens the conversation, and prints the name of its channel
  thalweg chat \"$(thalweg dm ada)\"   and goes there";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let text = match args.text.as_deref() {
        Some("-") => Some(read()?),
        Some(text) => Some(text.as_bytes().to_owned()),
        None => None,
    };
    block_on(async {
        let client = args.connect.connect("dm", PATIENCE).await?;
        let report = client.open_direct(args.users.split(',')).await?;
        if let Some(text) = text {
            client.publish(&report.channel, text).await?;
        }
        client.close().await;
        if args.json { print(&lines::report(&report)) } else { say(report.channel.as_str()) }
    })
}

fn read() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::failed(format!("reading standard input: {error}")))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(bytes)
}
