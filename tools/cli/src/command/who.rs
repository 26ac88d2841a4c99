//! `thalweg who`: who is in a channel.

use std::time::Duration;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::lines;
use crate::plain::{print, table};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Say who is in a channel
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel
    channel: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg who general
  thalweg who general --json | jq -r .user

In a channel is whoever has it open in `thalweg chat`, or reads it with `thalweg sub --events`.
JSON: {\"user\":\"ada\",\"state\":\"online\"|\"away\",\"since\":\"RFC 3339\"}";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(async {
        let client = args.connect.connect("who", PATIENCE).await?;
        let who = client.who_is_in(args.channel.as_str()).await?;
        client.close().await;
        if args.json {
            who.users.iter().try_for_each(|present| print(&lines::present(present)))?;
        } else {
            let row = |present: &thalweg_client::PresentUser| {
                let since = crate::timestamp::rfc3339(present.since_us);
                vec![present.user.to_string(), present.state.as_str().to_owned(), since]
            };
            table(&["USER", "STATE", "SINCE"], &who.users.iter().map(row).collect::<Vec<_>>())?;
        }
        if !who.complete {
            eprintln!("thalweg: {} are there; these are some of them", who.count);
        }
        Ok(())
    })
}
