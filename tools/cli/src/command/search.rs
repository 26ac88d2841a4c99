//! `thalweg search`: look for a text in a channel.

use std::time::Duration;

use thalweg_client::{Change, ChangeKind, Item, Message};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::plain::{print, say};
use crate::{lines, timestamp};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Look for a text in a channel, newest first, whatever its case
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel
    channel: String,
    /// What to look for
    text: String,
    /// At most so many messages [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg search general \"release date\" --limit 5
  thalweg search general bug --json | jq .seq

JSON: as `thalweg sub --json`; an edit that gave a message a matching text as `thalweg sub --events`.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(async {
        let client = args.connect.connect("search", PATIENCE).await?;
        let mut search = client.search(args.channel.as_str(), args.text.as_str())?;
        let mut left = args.limit.unwrap_or(usize::MAX);
        while left > 0
            && let Some(item) = search.next().await?
        {
            let line = match &item {
                Item::Message(message) if args.json => lines::message(message),
                Item::Message(message) => found(message),
                Item::Change(change) if args.json => lines::change(change),
                Item::Change(change) => edited(change),
                _ => continue,
            };
            if args.json {
                print(&line)?
            } else {
                say(&line)?
            }
            left -= 1;
        }
        client.close().await;
        Ok(())
    })
}

fn found(message: &Message) -> String {
    let at = timestamp::rfc3339(message.timestamp_us);
    format!("{} {at} {}: {}", message.position, message.user, message.text())
}

fn edited(change: &Change) -> String {
    let at = timestamp::rfc3339(change.timestamp_us);
    let text = match &change.kind {
        ChangeKind::Edited { body, .. } => String::from_utf8_lossy(body),
        _ => "".into(),
    };
    let target = change.target().unwrap_or_default();
    format!("{target} {at} {} (edited): {text}", change.user)
}
