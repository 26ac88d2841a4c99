//! `thalweg chat`: talk in channels, over the whole terminal or line by line.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Stdout};
use std::time::Duration;

use thalweg_client::{Ack, Client, ClientError, ConnectionState, SubscribeOptions};
use thalweg_term::Theme;
use tokio::sync::mpsc;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, output};
use crate::transcript::Transcript;

/// How long to wait for a node that went away.
const RECONNECT: Duration = Duration::from_secs(300);
/// The same for somebody who looks at it and can leave: a laptop sleeps over a weekend.
const RECONNECT_SEEN: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Lines read ahead of what was sent.
const LINES_AHEAD: usize = 64;
/// Unanswered lines; beyond that reading waits.
const UNANSWERED_MAX: usize = 64;
/// How long the last lines may take when the input has ended.
const FAREWELL: Duration = Duration::from_secs(10);

const HELP: &str = "a line is sent to the channel; @ai and a question asks the model; /quit leaves";

/// Talk with people and models, in channels
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel; made if there is none
    #[arg(default_value = "general")]
    channel: String,
    /// How it looks [default: plain if NO_COLOR is set, else dark]
    #[arg(long, value_parser = ["dark", "light", "plain"])]
    theme: Option<String>,
    /// Line by line, as without a terminal, instead of over the whole screen
    #[arg(long, conflicts_with = "theme")]
    plain: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg chat                     the channel `general` of the node on this machine
  thalweg chat team --server chat.example.org:4433 --token T
  thalweg chat --theme light

In it: F1 or /help shows keys and commands; `@ai` and a question asks the model, which answers everybody; /quit leaves.
Between pipes, or with --plain: a line is sent; /help, /quit. Scripts are better served by `thalweg pub` and `thalweg sub`.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "error");
    let whole = whole_screen(args.plain)?;
    let theme = theme(args.theme.as_deref());
    let reconnect = if whole { RECONNECT_SEEN } else { RECONNECT };
    block_on(async {
        // The first connection is waited for as ever; only a lost one is tried for so long.
        let client = args.connect.connect("chat", reconnect).await?;
        if whole {
            over_the_screen(client, &args.channel, theme).await
        } else {
            line_by_line(client, &args.channel).await
        }
    })
}

/// Whether to take the whole terminal. Between pipes nobody wants that; with half a terminal it cannot be meant.
fn whole_screen(plain: bool) -> Result<bool, Failure> {
    let nobody = !std::io::stdin().is_terminal() && !std::io::stdout().is_terminal();
    if plain || nobody {
        return Ok(false);
    }
    match thalweg_term::obstacle() {
        None => Ok(true),
        Some(obstacle) => Err(Failure::usage(format!(
            "chat takes the whole terminal, but {obstacle}; use --plain to talk line by line, or `thalweg pub` and `thalweg sub` \
             in scripts"
        ))),
    }
}

/// The theme that is asked for, or else fits.
pub(crate) fn theme(name: Option<&str>) -> Theme {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let named = name.and_then(Theme::named);
    named.unwrap_or(if no_colour { Theme::Plain } else { Theme::Dark })
}

async fn over_the_screen(client: Client, channel: &str, theme: Theme) -> Result<(), Failure> {
    thalweg_term::run(client, channel, theme).await.map_err(|error| Failure::failed(error.to_string()))
}

/// Talks over the whole terminal if there is one, else line by line.
#[cfg(feature = "node")]
pub(crate) async fn talk(client: Client, channel: &str) -> Result<(), Failure> {
    match thalweg_term::obstacle() {
        None => over_the_screen(client, channel, theme(None)).await,
        Some(_) => line_by_line(client, channel).await,
    }
}

/// Talks until the input ends or the person leaves.
async fn line_by_line(client: Client, channel: &str) -> Result<(), Failure> {
    let mut subscription = client.subscribe(channel, SubscribeOptions::default()).await?;
    let welcome = client.welcome();
    let out = std::io::stdout();
    let colours = out.is_terminal();
    let mut transcript = Transcript::new(out, colours);
    let ai = welcome.models.first().map_or(String::new(), |model| format!("; @ai asks {model}"));
    eprintln!("You are {} in {channel}{ai}. /help says more.", welcome.user);
    let mut lines = read_lines();
    let mut acks = VecDeque::new();
    let mut connection = client.connection();
    loop {
        tokio::select! {
            item = subscription.next() => match item? {
                Some(item) => transcript.item(&item).map_err(|error| output(&error))?,
                None => break,
            },
            line = lines.recv(), if acks.len() < UNANSWERED_MAX => match line.as_deref().map(str::trim_end) {
                None | Some("/quit") => break,
                Some("") => {}
                Some("/help") => notice(&mut transcript, HELP)?,
                Some(command) if command.starts_with('/') => {
                    notice(&mut transcript, &format!("{command} is not known; there are /help and /quit"))?;
                }
                Some(line) => match client.publish_start(channel, line.to_owned()).await {
                    Ok(ack) => acks.push_back(ack),
                    Err(error) => notice(&mut transcript, &format!("not sent: {error}"))?,
                },
            },
            answer = oldest(&mut acks) => if let Err(error) = answer {
                notice(&mut transcript, &format!("not sent: {error}"))?;
            },
            changed = connection.changed() => {
                let Ok(()) = changed else { break };
                let state = connection.borrow_and_update().clone();
                tell(&mut transcript, &state)?;
            }
        }
    }
    while !acks.is_empty() {
        match tokio::time::timeout(FAREWELL, oldest(&mut acks)).await {
            Ok(answer) => drop(answer?),
            Err(_) => return Err(Failure::failed(format!("no answer to the last lines for {FAREWELL:?}"))),
        }
    }
    drop(subscription);
    client.close().await;
    Ok(())
}

async fn oldest(acks: &mut VecDeque<Ack>) -> Result<(), ClientError> {
    let Some(ack) = acks.front_mut() else { return std::future::pending().await };
    let answer = ack.await;
    acks.pop_front();
    answer.map(drop)
}

fn notice(transcript: &mut Transcript<Stdout>, text: &str) -> Result<(), Failure> {
    transcript.notice(text).map_err(|error| output(&error))
}

fn tell(transcript: &mut Transcript<Stdout>, state: &ConnectionState) -> Result<(), Failure> {
    match state {
        ConnectionState::Connected { .. } => notice(transcript, "connected again"),
        ConnectionState::Leaving { .. } => notice(transcript, "the node restarts; lines wait for it"),
        ConnectionState::Reconnecting { attempt: 1, reason } => {
            notice(transcript, &format!("connection lost: {reason}"))
        }
        // The subscription says why it is over.
        ConnectionState::Reconnecting { .. } | ConnectionState::Closed { .. } => Ok(()),
    }
}

/// Lines of standard input, read on a thread of their own. Bytes that are not UTF-8 are replaced.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        for line in std::io::BufRead::split(std::io::stdin().lock(), b'\n') {
            let Ok(line) = line else { return };
            if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    lines
}
