//! `thalweg pub`: publish standard input, a message a line.

use std::collections::VecDeque;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use thalweg_client::{Ack, Client};
use thalweg_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_MAX};
use tokio::sync::mpsc;

use crate::connect::{ConnectArgs, block_on};
use crate::duration;
use crate::failure::{Failure, exit, output};

/// Lines read ahead of what was sent.
const LINES_AHEAD: usize = 64;

/// Publish standard input, a message a line
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The channel; made if there is none
    channel: String,
    /// Print the sequence of each message as it is acknowledged, in the order of the input
    #[arg(long)]
    print_acks: bool,
    /// How long to wait for a node that went away, and for the last acknowledgement
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  echo hello | thalweg pub general
  tail -f app.log | thalweg pub logs --server chat.example.org:4433

Ends with 0 when every line is acknowledged, with 5 if some may not have been written.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(publish(args))
}

async fn publish(args: Args) -> Result<(), Failure> {
    let client = args.connect.connect("pub", args.timeout).await?;
    let mut lines = read_lines();
    let mut acks = VecDeque::new();
    let mut acknowledged = 0_u64;
    let mut input_failure = None;
    loop {
        tokio::select! {
            line = lines.recv(), if acks.len() < IN_FLIGHT_MAX => match line {
                Some(Ok(line)) => acks.push_back(start(&client, &args, line).await?),
                Some(Err(failure)) => {
                    input_failure = Some(failure);
                    break;
                }
                None => break,
            },
            // Each look takes the oldest alone, so that acknowledgements come out in the order of the input.
            published = oldest(&mut acks) => acknowledge(&args, &mut acknowledged, published?)?,
        }
    }
    let waiting = acks.len();
    let drain = async {
        while !acks.is_empty() {
            let published = oldest(&mut acks).await?;
            acknowledge(&args, &mut acknowledged, published)?;
        }
        Ok::<(), Failure>(())
    };
    match tokio::time::timeout(args.timeout, drain).await {
        Ok(result) => result?,
        Err(_) => {
            let text =
                format!("no acknowledgement for {:?}; up to {waiting} messages may not be written", args.timeout);
            return Err(Failure::new(exit::INCOMPLETE, text));
        }
    }
    client.close().await;
    input_failure.map_or(Ok(()), Err)
}

async fn start(client: &Client, args: &Args, line: Bytes) -> Result<Ack, Failure> {
    let starting = client.publish_start(args.channel.as_str(), line);
    match tokio::time::timeout(args.timeout, starting).await {
        Ok(ack) => Ok(ack?),
        Err(_) => Err(Failure::new(exit::INCOMPLETE, format!("the node took nothing for {:?}", args.timeout))),
    }
}

/// The answer to the oldest write; never, if there is none.
async fn oldest(acks: &mut VecDeque<Ack>) -> Result<u64, Failure> {
    let Some(ack) = acks.front_mut() else { return std::future::pending().await };
    let published = ack.await;
    acks.pop_front();
    Ok(published?.position.0)
}

fn acknowledge(args: &Args, acknowledged: &mut u64, sequence: u64) -> Result<(), Failure> {
    *acknowledged += 1;
    if args.print_acks {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{sequence}").and_then(|()| out.flush()).map_err(|error| output(&error))?;
    }
    Ok(())
}

/// Lines of standard input without their ends, read on a thread of their own.
fn read_lines() -> mpsc::Receiver<Result<Bytes, Failure>> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut number = 0_u64;
        loop {
            number += 1;
            let line = match next_line(&mut input, number) {
                Ok(None) => return,
                Ok(Some(line)) => Ok(line),
                Err(failure) => Err(failure),
            };
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    lines
}

/// The next line; `None` at the end. Reads at most one byte more than a message may have.
fn next_line(input: &mut impl std::io::BufRead, number: u64) -> Result<Option<Bytes>, Failure> {
    let mut line = Vec::new();
    let limit = BODY_BYTES_MAX as u64 + 1;
    let read = std::io::Read::take(&mut *input, limit).read_until(b'\n', &mut line);
    let read = read.map_err(|error| Failure::failed(format!("reading standard input: {error}")))?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > BODY_BYTES_MAX {
        let text =
            format!("line {number} of the input has more than {BODY_BYTES_MAX} bytes, the most a message may have");
        return Err(Failure::failed(text));
    }
    Ok(Some(line.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_cut_into_lines() {
        let check = |text: &[u8], expected: &[&[u8]]| {
            let mut input = text;
            let lines = std::iter::from_fn(|| next_line(&mut input, 1).expect("short lines"));
            assert_eq!(lines.collect::<Vec<_>>(), expected);
        };
        check(b"", &[]);
        check(b"a\nb\n", &[b"a", b"b"]);
        check(b"a\n\nb", &[b"a", b"", b"b"]);
        check(b"\xff\x00\r\n", &[b"\xff\x00\r"]);
        let longest = vec![b'x'; BODY_BYTES_MAX];
        check(&[&longest[..], b"\n"].concat(), &[&longest]);
        let too_long = vec![b'x'; BODY_BYTES_MAX + 1];
        assert!(next_line(&mut &too_long[..], 7).expect_err("too long").message.contains("line 7"));
    }
}
