//! `thalweg history`: print what a channel holds, and end.

use std::io::Write;
use std::time::Duration;

use thalweg_client::{Client, Item, Position};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, output};
use crate::{duration, lines};

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
    let mut from = Position(args.from.unwrap_or(0));
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut told = args.from.is_none();
    while left > 0 {
        let limit = u32::try_from(left).unwrap_or(0);
        let page = client.read_history(args.channel.as_str(), from, limit).await?;
        if !std::mem::replace(&mut told, true) && from < page.first {
            missed(out, args.json, from.0.max(1), page.first.0 - 1).map_err(|error| output(&error))?;
        }
        for item in &page.items {
            if let Item::Message(message) = item {
                let written = match args.json {
                    true => writeln!(out, "{}", lines::message(message)),
                    false => out.write_all(&message.body).and_then(|()| out.write_all(b"\n")),
                };
                written.map_err(|error| output(&error))?;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        if page.next > page.head {
            break;
        }
        if page.next <= from {
            let text = format!("the node broke the protocol: after position {from} it named {} as the next", page.next);
            return Err(Failure::failed(text));
        }
        from = page.next;
    }
    Ok(())
}

fn missed(out: &mut impl Write, json: bool, from: u64, to: u64) -> std::io::Result<()> {
    if json {
        return writeln!(out, "{}", lines::missed(from, to));
    }
    eprintln!("thalweg: messages {from} to {to} are no longer kept");
    Ok(())
}
