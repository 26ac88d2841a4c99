//! `thalweg sub`: print the messages of a channel.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use thalweg_client::{From, Item, People, Policy, Position, SubscribeOptions};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};
use crate::{duration, lines, plain};

/// Items between two looks whether the command is asked to end.
const TURNS: u32 = 256;

/// Print the messages of a channel
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel; made if there is none
    channel: String,
    /// Where to begin: the oldest message, only new ones, or a sequence
    #[arg(long, value_name = "start|end|SEQ", default_value = "end", value_parser = parse_from)]
    from: From,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// With --json: be seen in the channel, and print also who comes and goes, edits, reactions and roles, and how models
    /// answer, piece by piece
    #[arg(long, requires = "json")]
    events: bool,
    /// If this reader falls behind: get everything later, skip what it missed, or be disconnected
    #[arg(long, value_name = "replay|drop|disconnect", default_value = "replay", value_parser = parse_policy)]
    policy: Policy,
    /// How long to wait for a node that went away
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg sub general                           what is said from now on
  thalweg sub general --from start --count 10   the first ten messages that are kept
  thalweg sub general --json | jq -r .body

JSON: {\"seq\":1,\"from\":\"user\",\"ts\":\"RFC 3339\",\"body\":\"…\"}, with body_base64 where the body is not UTF-8;
where there is something to say with reply_to, mentions and redacted;
what will not come: {\"missed\":{\"from\":7,\"to\":9}}
--events: {\"event\":\"join\"|\"leave\"|\"presence\",\"user\":…,\"state\":…}, {\"event\":\"crowd\",\"count\":…} where people are too many
to name, {\"event\":\"typing\",\"user\":…,\"on\":…}, {\"event\":\"edit\"|\"redact\"|\"react\"|\"unreact\",\"seq\":…,\"user\":…,\"target\":…},
{\"event\":\"member\",\"member\":…,\"role\":…}, {\"event\":\"info\",\"topic\":…}, generation_started, tokens; at its end the whole answer as a\nmessage with \"generation\", or generation_ended with the reason if it was cancelled or failed";

fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "start" => Ok(From::Start),
        "end" => Ok(From::End),
        number => match number.parse() {
            Ok(number) => Ok(From::Position(Position(number))),
            Err(_) => Err("give start, end, or a sequence number".into()),
        },
    }
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    let policies = [Policy::Replay, Policy::Drop, Policy::Disconnect];
    policies.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| "give replay, drop or disconnect".into())
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if args.count == Some(0) {
        return Ok(());
    }
    crate::connect::log_to_stderr(false, "warn");
    block_on(subscribe(args))
}

async fn subscribe(args: Args) -> Result<(), Failure> {
    let client = args.connect.connect("sub", args.timeout).await?;
    let options =
        SubscribeOptions { from: args.from, policy: args.policy, presence: args.events, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(args.channel.as_str(), options).await?;
    let mut people = People::default();
    let person = std::io::stdout().is_terminal();
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let stop = stopped();
    tokio::pin!(stop);
    let mut turns = 0_u32;
    while left > 0 {
        turns = turns.wrapping_add(1);
        // A flood leaves no pause in which a signal would be noticed.
        if args.events && turns.is_multiple_of(TURNS) {
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = tokio::task::yield_now() => {}
            }
        }
        // Flushed whenever nothing more is here already: at once for a person, in blocks for a flood.
        let item = match subscription.try_next()? {
            Some(item) => item,
            None => {
                out.flush().map_err(|error| output(&error))?;
                let next = tokio::select! {
                    next = subscription.next() => next?,
                    () = &mut stop, if args.events => break,
                };
                next.ok_or_else(|| Failure::new(exit::INCOMPLETE, "the subscription ended"))?
            }
        };
        left -= u64::from(matches!(item, Item::Message(_)));
        print(&mut out, &args, &mut people, person, &item).map_err(|error| output(&error))?;
    }
    out.flush().map_err(|error| output(&error))?;
    drop(subscription);
    client.close().await;
    match (left, args.count) {
        (1.., Some(_)) => Err(Failure::new(exit::INCOMPLETE, "it was stopped")),
        _ => Ok(()),
    }
}

/// Waits until the command is asked to end. Who is seen in a channel should not be so for longer than they are there, so
/// that with --events the command says farewell; without, it just ends.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // If that cannot be listened to either, nothing asks.
    let _ = tokio::signal::ctrl_c().await;
}

fn print(
    out: &mut impl std::io::Write,
    args: &Args,
    people: &mut People,
    person: bool,
    item: &Item,
) -> std::io::Result<()> {
    match item {
        Item::Message(message) if args.json => writeln!(out, "{}", lines::message(message)),
        Item::Message(message) => plain::body(out, message, person),
        Item::Presence(report) if args.events => {
            let before = people.count();
            let changes = people.take(report);
            if people.is_sampled() && people.count() != before {
                writeln!(out, "{}", lines::crowd(people.count()))?;
            }
            changes.iter().try_for_each(|change| writeln!(out, "{}", lines::people(change)))
        }
        Item::Missed { from, to } if args.json => writeln!(out, "{}", lines::missed(from.0, to.0)),
        Item::Missed { from, to } => {
            eprintln!("thalweg: messages {from} to {to} are missing");
            Ok(())
        }
        Item::Rewound { to } if !args.events => {
            eprintln!("thalweg: the node came back with less than it had; messages after {to} are gone");
            Ok(())
        }
        other if args.events => lines::event(other).map_or(Ok(()), |line| writeln!(out, "{line}")),
        _ => Ok(()),
    }
}
