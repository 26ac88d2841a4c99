//! Fan-out through NATS or Redis: one publisher, many subscribers, one connection each.
//!
//! The twin of `thalweg bench fanout`: one thread, one loop over epoll, the same schedule and window, latencies from the
//! intended time in the body, the server's processor time from `/proc`. Protocols are spoken in plain, without an SDK.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use mio::{Events, Interest, Poll, Token};
use thalweg_peers::link::{Link, Outcome, Protocol};
use thalweg_peers::{client_tls, cpu_seconds, latencies, row};

#[derive(Parser)]
struct Cli {
    #[arg(long, value_enum)]
    protocol: Protocol,
    #[arg(long)]
    server: SocketAddr,
    #[arg(long)]
    server_pid: u32,
    #[arg(long, default_value_t = 1000)]
    subscribers: usize,
    #[arg(long, default_value_t = 128)]
    body: usize,
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// As fast as everything is delivered, with at most WINDOW messages on the way
    #[arg(long)]
    saturate: bool,
    #[arg(long, default_value_t = 32)]
    window: u64,
    /// Seconds
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
}

/// Cuts the messages off `input`, hands their bodies out, and answers pings into `output`.
fn cut(protocol: Protocol, input: &mut Vec<u8>, output: &mut Vec<u8>, mut body: impl FnMut(&[u8])) -> Outcome {
    let mut at = 0;
    while let Some(end) = input[at..].windows(2).position(|pair| pair == b"\r\n").map(|end| at + end) {
        let line = &input[at..end];
        let (length, start) = if !protocol.is_nats() {
            // `*3`, then three times `$LENGTH` and the text: "message", the channel, the body.
            let Some((length, start, next)) = redis_third(&input[at..])? else { break };
            if let Some(start) = start {
                body(&input[at + start..at + start + length]);
            }
            at += next;
            continue;
        } else if line.starts_with(b"MSG ") {
            let size = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
            (std::str::from_utf8(size)?.parse::<usize>()?, end + 2)
        } else {
            if line == b"PING" {
                output.extend_from_slice(b"PONG\r\n");
            } else if line.starts_with(b"-ERR") {
                return Err(String::from_utf8_lossy(line).into());
            }
            at = end + 2;
            continue;
        };
        if input.len() < start + length + 2 {
            break;
        }
        body(&input[start..start + length]);
        at = start + length + 2;
    }
    input.drain(..at);
    Ok(())
}

/// Reads one array of three from Redis: length and start of its third text if it is a message, and where the next begins.
/// `None` if it is not all there. Other answers (`:1`) are passed over.
#[allow(clippy::type_complexity, reason = "one caller, three numbers")]
fn redis_third(input: &[u8]) -> Outcome<Option<(usize, Option<usize>, usize)>> {
    let line = |at: usize| input[at..].windows(2).position(|pair| pair == b"\r\n").map(|end| (&input[at..at + end], at + end + 2));
    let Some((head, mut at)) = line(0) else { return Ok(None) };
    if head != b"*3" {
        return match head.first() {
            Some(b':' | b'+') => Ok(Some((0, None, at))),
            _ => Err(String::from_utf8_lossy(head).into()),
        };
    }
    let (mut message, mut third) = (false, (0, 0));
    for n in 0..3 {
        let Some((head, start)) = line(at) else { return Ok(None) };
        if head.first() == Some(&b':') {
            at = start;
            continue;
        }
        let length: usize = std::str::from_utf8(&head[1..])?.parse()?;
        if input.len() < start + length + 2 {
            return Ok(None);
        }
        message |= n == 0 && &input[start..start + length] == b"message";
        (third, at) = ((length, start), start + length + 2);
    }
    Ok(Some((third.0, message.then_some(third.1), at)))
}

fn main() -> Outcome {
    let cli = Cli::parse();
    let tls = Arc::new(client_tls(&[]));
    let mut poll = Poll::new()?;
    // The publisher is the last.
    let mut links = Vec::with_capacity(cli.subscribers + 1);
    for at in 0..=cli.subscribers {
        let mut link = Link::connect(cli.protocol, cli.server, &tls)?;
        poll.registry().register(&mut link.socket, Token(at), Interest::READABLE | Interest::WRITABLE)?;
        let publisher = at == cli.subscribers;
        if cli.protocol.is_nats() {
            link.output.extend_from_slice(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false}\r\n");
        }
        match cli.protocol {
            _ if publisher => {}
            Protocol::Redis => link.output.extend_from_slice(b"*2\r\n$9\r\nSUBSCRIBE\r\n$3\r\nfan\r\n"),
            _ => link.output.extend_from_slice(b"SUB fan 1\r\n"),
        }
        link.send()?;
        links.push(link);
    }
    run(&cli, &mut poll, &mut links)
}

/// Waits until the subscriptions are in place: when a second passed without news. Their answers are read meanwhile.
fn settle(cli: &Cli, poll: &mut Poll, events: &mut Events, links: &mut [Link]) -> Outcome {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        poll.poll(events, Some(Duration::from_millis(100)))?;
        for event in &*events {
            let link = &mut links[event.token().0];
            link.receive()?;
            cut(cli.protocol, &mut link.input, &mut link.output, |_| {})?;
            link.send()?;
        }
    }
    Ok(())
}

fn run(cli: &Cli, poll: &mut Poll, links: &mut [Link]) -> Outcome {
    let (subscribers, publisher) = (cli.subscribers as u64, cli.subscribers);
    let mut events = Events::with_capacity(1024);
    settle(cli, poll, &mut events, links)?;
    // SAFETY: PR_SET_TIMERSLACK takes one number and changes only how exact this thread's sleeps are.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
    let start = Instant::now();
    let ns = |at: Instant| at.saturating_duration_since(start).as_nanos() as u64;
    let measured = (cli.warmup * 1e9) as u64..((cli.warmup + cli.duration) * 1e9) as u64;
    let (mut published, mut delivered, mut seen) = (0_u64, 0_u64, latencies());
    let (mut before, mut after) = (None, None);
    let grace = measured.end + 10_000_000_000;
    loop {
        let now = ns(Instant::now());
        if before.is_none() && now >= measured.start {
            before = Some((delivered, now, cpu_seconds(cli.server_pid)?, cpu_seconds(std::process::id())?));
        }
        if after.is_none() && now >= measured.end {
            after = Some((delivered, now, cpu_seconds(cli.server_pid)?, cpu_seconds(std::process::id())?));
        }
        if now >= grace || (now >= measured.end && delivered == published * subscribers) {
            break;
        }
        let mut due = measured.end;
        while now < measured.end {
            let intended = match cli.saturate {
                true if (published + 1) * subscribers - delivered <= cli.window * subscribers => ns(Instant::now()),
                true => break,
                false => (published as f64 * 1e9 / cli.rate) as u64,
            };
            if intended > now && !cli.saturate {
                due = intended;
                break;
            }
            let mut body = vec![b'x'; cli.body];
            body[..8].copy_from_slice(&intended.to_le_bytes());
            let output = &mut links[publisher].output;
            match cli.protocol {
                Protocol::Redis => write!(output, "*3\r\n$7\r\nPUBLISH\r\n$3\r\nfan\r\n${}\r\n", cli.body)?,
                _ => write!(output, "PUB fan {}\r\n", cli.body)?,
            }
            output.extend_from_slice(&body);
            output.extend_from_slice(b"\r\n");
            published += 1;
        }
        links[publisher].send()?;
        // mio sleeps whole milliseconds, rounded up: the last one is looked away instead.
        let left = Duration::from_nanos(due.max(now + 1) - now);
        let sleep = if left > Duration::from_millis(2) { left - Duration::from_millis(1) } else { Duration::ZERO };
        poll.poll(&mut events, Some(if now >= measured.end { Duration::from_millis(10) } else { sleep }))?;
        for event in &events {
            let link = &mut links[event.token().0];
            if event.is_readable() {
                link.receive()?;
                cut(cli.protocol, &mut link.input, &mut link.output, |body| {
                    delivered += 1;
                    let intended = body.first_chunk::<8>().map_or(0, |time| u64::from_le_bytes(*time));
                    if measured.contains(&intended) {
                        seen.saturating_record(ns(Instant::now()).saturating_sub(intended).max(1));
                    }
                })?;
            }
            link.send()?;
        }
    }
    let ((d0, t0, s0, o0), (d1, t1, s1, o1)) = before.zip(after).ok_or("the run ended too early")?;
    let (seconds, count) = ((t1 - t0) as f64 / 1e9, (d1 - d0) as f64);
    let mut result = row(if cli.saturate { "fanout_deliver_saturated" } else { "fanout_deliver_open" }, &seen, seconds);
    result.insert("deliveries_per_s".into(), (count / seconds).into());
    result.insert("server_cpu_s".into(), (s1 - s0).into());
    result.insert("deliveries_per_cpu_s".into(), (count / (s1 - s0).max(0.01)).into());
    result.insert("generator_cpu_s".into(), (o1 - o0).into());
    result.insert("undelivered".into(), (published * subscribers - delivered).into());
    println!("{}", serde_json::Value::from(result));
    Ok(())
}
