//! `thalweg chat`: talk in a channel, line by line.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Stdout};
use std::time::Duration;

use thalweg_client::{Ack, Client, ClientError, ConnectionState, SubscribeOptions};
use tokio::sync::mpsc;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, output};
use crate::transcript::Transcript;

/// How long to wait for a node that went away.
const RECONNECT: Duration = Duration::from_secs(300);
/// Lines read ahead of what was sent.
const LINES_AHEAD: usize = 64;
/// Unanswered lines; beyond that reading waits.
const UNANSWERED_MAX: usize = 64;
/// How long the last lines may take when the input has ended.
const FAREWELL: Duration = Duration::from_secs(10);

const HELP: &str = "a line is sent to the channel; @ai and a question asks the model; /quit leaves";

/// Talk in a channel, with people and models
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel; made if there is none
    #[arg(default_value = "general")]
    channel: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg chat                     the channel `general` of the node on this machine
  thalweg chat team --server chat.example.org:4433 --token T

In it: a line is sent; `@ai` and a question asks the model, which answers everybody; /help, /quit.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "error");
    block_on(async {
        let client = args.connect.connect("chat", RECONNECT).await?;
        talk(client, &args.channel).await
    })
}

/// Talks until the input ends or the person leaves.
pub(crate) async fn talk(client: Client, channel: &str) -> Result<(), Failure> {
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
