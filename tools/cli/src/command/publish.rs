//! `thalweg pub`: publish standard input, a message a line.

use std::collections::VecDeque;
use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_client::{Ack, Client, ClientError, Position, Post, PostKind, TraceContext};
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
    #[command(flatten)]
    what: What,
    /// How long to wait for a node that went away or has too much to do, and for the last acknowledgement
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    /// The trace the messages are part of, as W3C Trace Context writes it
    #[arg(long, value_name = "TEXT", env = "TRACEPARENT")]
    traceparent: Option<TraceContext>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What the lines are, if not messages.
#[derive(Debug, Clone, Copy, clap::Args)]
#[group(multiple = false)]
struct What {
    /// Each line answers this message
    #[arg(long, value_name = "SEQ")]
    reply_to: Option<u64>,
    /// Each line is the new text of this message
    #[arg(long, value_name = "SEQ")]
    edit: Option<u64>,
    /// Each line is an emoji to react to this message with
    #[arg(long, value_name = "SEQ")]
    react: Option<u64>,
    /// Each line is an emoji; the reaction to this message is taken back
    #[arg(long, value_name = "SEQ")]
    unreact: Option<u64>,
    /// Take this message back; nothing is read
    #[arg(long, value_name = "SEQ")]
    redact: Option<u64>,
}

impl What {
    fn post(self) -> Post {
        let given = [
            (PostKind::Message, self.reply_to),
            (PostKind::Edit, self.edit),
            (PostKind::React, self.react),
            (PostKind::Unreact, self.unreact),
            (PostKind::Redact, self.redact),
        ];
        let found = given.into_iter().find_map(|(kind, target)| Some(Post { kind, target: Position(target?) }));
        found.unwrap_or_default()
    }
}

const EXAMPLES: &str = "\
Examples:
  echo hello | thalweg pub general
  echo \"yes, at nine\" | thalweg pub general --reply-to 17
  echo 👍 | thalweg pub general --react 17
  thalweg pub general --redact 18
  tail -f app.log | thalweg pub logs --server chat.example.org:4433

A node that has too much to do, or holds us to a rate, is waited for. What was sent behind a message that it refused may come
before it then.
Ends with 0 when every line is acknowledged, with 5 if some may not have been written.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(publish(args))
}

async fn publish(args: Args) -> Result<(), Failure> {
    let client = args.connect.connect("pub", args.timeout).await?;
    let client = args.traceparent.map_or_else(|| client.clone(), |trace| client.with_trace(trace));
    let post = args.what.post();
    let mut writer = Writer { client: &client, args: &args, post, open: VecDeque::new(), window: IN_FLIGHT_MAX };
    if post.kind == PostKind::Redact {
        writer.start(Bytes::new()).await?;
    } else if let Some(failure) = writer.write(read_lines()).await? {
        writer.finish().await?;
        return Err(failure);
    }
    writer.finish().await?;
    client.close().await;
    Ok(())
}

/// A write that is not acknowledged.
struct Open {
    line: Bytes,
    ack: Ack,
}

/// Writes lines, many at a time, and acknowledges them in their order.
struct Writer<'a> {
    client: &'a Client,
    args: &'a Args,
    post: Post,
    open: VecDeque<Open>,
    /// How many may be open: one after a refusal, and twice as many after each that was not refused.
    window: usize,
}

impl Writer<'_> {
    /// Writes all lines. Gives what ended the input, if that was not its end.
    async fn write(&mut self, mut lines: mpsc::Receiver<Result<Bytes, Failure>>) -> Result<Option<Failure>, Failure> {
        loop {
            tokio::select! {
                line = lines.recv(), if self.open.len() < self.window => match line {
                    Some(Ok(line)) => self.start(line).await?,
                    Some(Err(failure)) => return Ok(Some(failure)),
                    None => return Ok(None),
                },
                // Each look takes the oldest alone, so that acknowledgements come out in the order of the input.
                published = oldest(&mut self.open) => self.settle(published).await?,
            }
        }
    }

    async fn start(&mut self, line: Bytes) -> Result<(), Failure> {
        let starting = self.client.write_start(self.args.channel.as_str(), line.clone(), self.post);
        let timeout = self.args.timeout;
        match tokio::time::timeout(timeout, starting).await {
            Ok(ack) => self.open.push_back(Open { line, ack: ack? }),
            Err(_) => return Err(Failure::new(exit::INCOMPLETE, format!("the node took nothing for {timeout:?}"))),
        }
        Ok(())
    }

    /// Waits for the acknowledgement of everything.
    async fn finish(&mut self) -> Result<(), Failure> {
        let (waiting, timeout) = (self.open.len(), self.args.timeout);
        let drain = async {
            while !self.open.is_empty() {
                let published = oldest(&mut self.open).await;
                self.settle(published).await?;
            }
            Ok::<(), Failure>(())
        };
        tokio::time::timeout(timeout, drain).await.unwrap_or_else(|_| {
            let text = format!("no acknowledgement for {timeout:?}; up to {waiting} messages may not be written");
            Err(Failure::new(exit::INCOMPLETE, text))
        })
    }

    /// What the node says of the oldest write, which is `line`. While it refuses it for now, it is written again.
    async fn settle(&mut self, (line, answer): (Bytes, Result<u64, ClientError>)) -> Result<(), Failure> {
        let start = Instant::now();
        let mut answer = answer;
        while let Some(delay) = answer.as_ref().err().and_then(ClientError::retry_after) {
            self.window = 1;
            if start.elapsed() + delay > self.args.timeout {
                break;
            }
            tokio::time::sleep(delay).await;
            let again = self.client.write_start(self.args.channel.as_str(), line.clone(), self.post).await;
            answer = match again {
                Ok(ack) => ack.await.map(|published| published.position.0),
                Err(error) => Err(error),
            };
        }
        let sequence = answer?;
        self.window = (self.window * 2).min(IN_FLIGHT_MAX);
        if self.args.print_acks {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{sequence}").and_then(|()| out.flush()).map_err(|error| output(&error))?;
        }
        Ok(())
    }
}

/// The oldest write and what came of it; never, if there is none. Cancel-safe.
async fn oldest(open: &mut VecDeque<Open>) -> (Bytes, Result<u64, ClientError>) {
    let Some(oldest) = open.front_mut() else { return std::future::pending().await };
    let answer = (&mut oldest.ack).await;
    let line = open.pop_front().map(|oldest| oldest.line).unwrap_or_default();
    (line, answer.map(|published| published.position.0))
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
