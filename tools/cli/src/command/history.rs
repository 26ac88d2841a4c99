//! `thalweg history`: print what a channel holds, and end.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use thalweg_client::{ChangeKind, Client, Item, Message, Page, Position};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, output};
use crate::{duration, lines, plain};

/// Print what a channel holds, oldest first, and end
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel
    channel: String,
    /// From this sequence on [default: the oldest message that is kept]
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// At most so many messages [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Show messages with their last edits, and not those that were taken back [default: true, with --json false]. It costs a
    /// look through the whole channel first
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    resolved: Option<bool>,
    /// With --json: also what became of messages, roles and the channel, as `thalweg sub --events` prints it
    #[arg(long, requires = "json")]
    events: bool,
    /// How long to wait for a node that went away
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg history general                        all of it
  thalweg history general --from 100 --limit 20  a page of it
  thalweg history general --json | jq -r .body
  thalweg history general --json --resolved      edited messages carry \"edited\":true

JSON: as `thalweg sub --json`, also for what is no longer kept: {\"missed\":{\"from\":7,\"to\":9}}";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(history(args))
}

async fn history(args: Args) -> Result<(), Failure> {
    let client = args.connect.connect("history", args.timeout).await?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    print(&client, &args, &mut out).await?;
    out.flush().map_err(|error| output(&error))?;
    client.close().await;
    Ok(())
}

/// Asks for page after page, until the newest or the limit.
async fn print(client: &Client, args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let edits = match args.resolved.unwrap_or(!args.json) {
        true => Some(edits(client, args).await?),
        false => None,
    };
    let person = std::io::stdout().is_terminal();
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut told = args.from.is_none();
    let mut pages = Pages::new(client, args, args.limit.unwrap_or(0));
    while left > 0
        && let Some(page) = pages.next().await?
    {
        if let (false, Some(from)) = (std::mem::replace(&mut told, true), args.from)
            && from < page.first.0
        {
            missed(out, args.json, from.max(1), page.first.0 - 1).map_err(|error| output(&error))?;
        }
        for item in page.items {
            let Item::Message(mut message) = item else {
                if let (true, Item::Change(change)) = (args.events, &item) {
                    writeln!(out, "{}", lines::change(change)).map_err(|error| output(&error))?;
                }
                continue;
            };
            let edited = match &edits {
                Some(edits) => resolve(client, args, edits, &mut message).await?,
                None => false,
            };
            let written = match args.json {
                true if edited => writeln!(out, "{}", lines::edited(&message)),
                true => writeln!(out, "{}", lines::message(&message)),
                // What was taken back has nothing to show.
                false if edits.is_some() && message.is_redacted() => Ok(()),
                false => plain::body(out, &message, person),
            };
            written.map_err(|error| output(&error))?;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// The pages of a channel's history, one after the other.
struct Pages<'a> {
    client: &'a Client,
    channel: &'a str,
    /// Where the next one begins; `None` after the last.
    from: Option<Position>,
    limit: u32,
}

impl<'a> Pages<'a> {
    fn new(client: &'a Client, args: &'a Args, limit: u64) -> Self {
        // A limit that does not fit is none: as many as the node gives.
        let limit = u32::try_from(limit).unwrap_or(0);
        Self { client, channel: &args.channel, from: Some(Position(args.from.unwrap_or(0))), limit }
    }

    async fn next(&mut self) -> Result<Option<Page>, Failure> {
        let Some(from) = self.from else { return Ok(None) };
        let page = self.client.read_history(self.channel, from, self.limit).await?;
        if page.next > page.head {
            self.from = None;
        } else if page.next <= from {
            let text = format!("the node broke the protocol: after position {from} it named {} as the next", page.next);
            return Err(Failure::failed(text));
        } else {
            self.from = Some(page.next);
        }
        Ok(Some(page))
    }
}

/// Where the last edit of each edited message stands.
async fn edits(client: &Client, args: &Args) -> Result<BTreeMap<Position, Position>, Failure> {
    let mut edits = BTreeMap::new();
    let mut pages = Pages::new(client, args, 0);
    while let Some(page) = pages.next().await? {
        for item in page.items {
            if let Item::Change(change) = &item
                && let ChangeKind::Edited { target, redacted: false, .. } = change.kind
            {
                edits.insert(target, change.position);
            }
        }
    }
    Ok(edits)
}

/// Gives a message the text of its last edit. Whether it has one.
async fn resolve(
    client: &Client,
    args: &Args,
    edits: &BTreeMap<Position, Position>,
    message: &mut Message,
) -> Result<bool, Failure> {
    let Some(&at) = edits.get(&message.position).filter(|_| !message.is_redacted()) else { return Ok(false) };
    let page = client.read_history(args.channel.as_str(), at, 1).await?;
    let Some(Item::Change(change)) = page.items.into_iter().next() else { return Ok(false) };
    match change.kind {
        ChangeKind::Edited { target, body, redacted, .. } if target == message.position => {
            message.body = body;
            // It can be taken back between the two looks.
            message.context.redacted |= redacted;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn missed(out: &mut impl Write, json: bool, from: u64, to: u64) -> std::io::Result<()> {
    if json {
        return writeln!(out, "{}", lines::missed(from, to));
    }
    eprintln!("thalweg: messages {from} to {to} are no longer kept");
    Ok(())
}
