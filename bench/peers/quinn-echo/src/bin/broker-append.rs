//! Durable appends to NATS JetStream or to streams of Redis: each counts when the broker has acknowledged it.
//!
//! The twin of `thalweg bench append`: one thread, one loop over epoll, the same schedule and number in flight, latencies
//! from the intended time. Protocols are spoken in plain, without an SDK: for JetStream a `PUB` with a reply subject of its
//! own per message, whose `{"stream":…,"seq":…}` is the acknowledgement; for Redis a pipelined `XADD`.

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use thalweg_peers::link::{Link, Outcome, Protocol};
use thalweg_peers::{client_tls, cpu_seconds, latencies, row};

/// How long answers are waited for after the last message.
const GRACE_NS: u64 = 10_000_000_000;
/// How long the streams may take to be made.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// An open loop does not wait for answers, but for this: the limit of our own protocol per connection.
const UNANSWERED_MAX: usize = 1016;

#[derive(Parser)]
struct Cli {
    #[arg(long, value_enum)]
    protocol: Protocol,
    #[arg(long)]
    server: SocketAddr,
    #[arg(long)]
    server_pid: u32,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Messages on the way at a time, over all connections
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    #[arg(long, default_value_t = 256)]
    body: usize,
    /// Streams that are written to in turn
    #[arg(long, default_value_t = 1)]
    channels: usize,
    /// An open loop at so many a second; without it a closed one
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
}

/// A connection that writes.
struct Writer {
    link: Link,
    /// Messages it may have on the way at a time.
    room: usize,
    /// Intended times of what waits, by number, oldest first; `None` where an answer overtook an older one.
    waiting: VecDeque<Option<u64>>,
    /// Number of the oldest.
    oldest: u64,
    unanswered: usize,
}

impl Writer {
    fn push(&mut self, intended: u64) -> u64 {
        self.waiting.push_back(Some(intended));
        self.unanswered += 1;
        self.oldest + self.waiting.len() as u64 - 1
    }

    fn has_room(&self) -> bool {
        self.unanswered < self.room && self.waiting.len() < UNANSWERED_MAX
    }

    /// The intended time of a number; of the oldest that waits, if the protocol answers in order and names none.
    fn take(&mut self, number: Option<u64>) -> Outcome<u64> {
        let at = number.unwrap_or(self.oldest).checked_sub(self.oldest).ok_or("an answer came twice")?;
        let slot = self.waiting.get_mut(at as usize).ok_or("an answer to nothing")?;
        let intended = slot.take().ok_or("an answer came twice")?;
        self.unanswered -= 1;
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.oldest += 1;
        }
        Ok(intended)
    }
}

/// An answer: which number, if the protocol says so, and whether the message was accepted.
struct Answer {
    number: Option<u64>,
    accepted: bool,
}

fn line(input: &[u8], at: usize) -> Option<(&[u8], usize)> {
    input[at..].windows(2).position(|pair| pair == b"\r\n").map(|end| (&input[at..at + end], at + end + 2))
}

/// Cuts the answers off `input`, and answers pings into `output`.
fn cut(protocol: Protocol, input: &mut Vec<u8>, output: &mut Vec<u8>, answers: &mut Vec<Answer>) -> Outcome {
    let mut at = 0;
    while let Some((head, next)) = line(input, at) {
        let mut end = next;
        match (protocol.is_nats(), head) {
            (true, b"PING") => output.extend_from_slice(b"PONG\r\n"),
            (true, head) if head.starts_with(b"MSG ") => {
                // MSG SUBJECT SID [REPLY] BYTES; our subjects end in the number.
                let mut words = std::str::from_utf8(&head[4..])?.split(' ');
                let subject = words.next().ok_or("a message without a subject")?;
                let bytes: usize = words.next_back().ok_or("a message without a length")?.parse()?;
                end = next + bytes + 2;
                if input.len() < end {
                    break;
                }
                let body = &input[next..next + bytes];
                let accepted = !body.windows(7).any(|text| text == b"\"error\"");
                let number = subject.rsplit('.').next().and_then(|text| text.parse().ok());
                if !accepted {
                    eprintln!("{}", String::from_utf8_lossy(body));
                }
                answers.push(Answer { number, accepted });
            }
            (true, head) if head.starts_with(b"-ERR") => return Err(String::from_utf8_lossy(head).into()),
            (true, _) => {}
            (false, [b'$', bytes @ ..]) => {
                end = next + std::str::from_utf8(bytes)?.parse::<usize>()? + 2;
                if input.len() < end {
                    break;
                }
                answers.push(Answer { number: None, accepted: true });
            }
            (false, [b'-', text @ ..]) => {
                eprintln!("{}", String::from_utf8_lossy(text));
                answers.push(Answer { number: None, accepted: false });
            }
            (false, other) => return Err(format!("unexpected: {}", String::from_utf8_lossy(other)).into()),
        }
        at = end;
    }
    input.drain(..at);
    Ok(())
}

/// Writes the request for one append.
fn request(protocol: Protocol, output: &mut Vec<u8>, at: usize, channel: usize, number: u64, body: &[u8]) -> Outcome {
    let bytes = body.len();
    if protocol.is_nats() {
        write!(output, "PUB append.{channel} _INBOX.{at}.{number} {bytes}\r\n")?;
    } else {
        let key = format!("append.{channel}");
        write!(output, "*5\r\n$4\r\nXADD\r\n${}\r\n{key}\r\n$1\r\n*\r\n$1\r\nm\r\n${bytes}\r\n", key.len())?;
    }
    output.extend_from_slice(body);
    output.extend_from_slice(b"\r\n");
    Ok(())
}

/// Makes the streams of JetStream, on disk, one subject each, and waits until it says so.
fn make_streams(cli: &Cli, poll: &mut Poll, events: &mut Events, writer: &mut Writer) -> Outcome {
    for channel in 0..cli.channels {
        let stream = format!(
            "{{\"name\":\"append{channel}\",\"subjects\":[\"append.{channel}\"],\"storage\":\"file\",\
             \"retention\":\"limits\",\"num_replicas\":1}}"
        );
        let output = &mut writer.link.output;
        write!(output, "PUB $JS.API.STREAM.CREATE.append{channel} _INBOX.0.{channel} {}\r\n", stream.len())?;
        write!(output, "{stream}\r\n")?;
    }
    let (mut answers, until) = (Vec::new(), Instant::now() + SETUP_LIMIT);
    while answers.len() < cli.channels && Instant::now() < until {
        writer.link.send()?;
        poll.poll(events, Some(Duration::from_millis(10)))?;
        writer.link.receive()?;
        cut(cli.protocol, &mut writer.link.input, &mut writer.link.output, &mut answers)?;
    }
    match answers.len() == cli.channels && answers.iter().all(|answer| answer.accepted) {
        true => Ok(()),
        false => Err("the streams could not be made".into()),
    }
}

fn main() -> Outcome {
    let cli = Cli::parse();
    let tls = Arc::new(client_tls(&[]));
    let mut poll = Poll::new()?;
    let mut writers = Vec::with_capacity(cli.connections);
    for at in 0..cli.connections {
        let mut link = Link::connect(cli.protocol, cli.server, &tls)?;
        poll.registry().register(&mut link.socket, Token(at), Interest::READABLE | Interest::WRITABLE)?;
        if cli.protocol.is_nats() {
            link.output.extend_from_slice(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false}\r\n");
            write!(link.output, "SUB _INBOX.{at}.* 1\r\n")?;
        }
        link.send()?;
        let share = cli.in_flight / cli.connections + usize::from(at < cli.in_flight % cli.connections);
        let room = if cli.rate.is_some() { UNANSWERED_MAX } else { share };
        writers.push(Writer { link, room, waiting: VecDeque::new(), oldest: 0, unanswered: 0 });
    }
    let mut events = Events::with_capacity(1024);
    if cli.protocol.is_nats() {
        make_streams(&cli, &mut poll, &mut events, &mut writers[0])?;
    }
    // SAFETY: PR_SET_TIMERSLACK takes one number and changes only how exact this thread's sleeps are.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
    run(&cli, &mut poll, &mut events, &mut writers)
}

/// Counts and cost so far, at one moment.
struct Sample {
    appended: u64,
    at_ns: u64,
    server_cpu_s: f64,
    own_cpu_s: f64,
}

/// The state of a run.
struct Run<'a> {
    cli: &'a Cli,
    start: Instant,
    /// Only messages intended in this time count, ns.
    measured: Range<u64>,
    published: u64,
    appended: u64,
    errors: u64,
    seen: Histogram<u64>,
    /// How much later than intended they were sent.
    late: Histogram<u64>,
    body: Vec<u8>,
}

fn run(cli: &Cli, poll: &mut Poll, events: &mut Events, writers: &mut [Writer]) -> Outcome {
    let mut run = Run {
        cli,
        start: Instant::now(),
        measured: (cli.warmup * 1e9) as u64..((cli.warmup + cli.duration) * 1e9) as u64,
        published: 0,
        appended: 0,
        errors: 0,
        seen: latencies(),
        late: latencies(),
        body: vec![b'x'; cli.body],
    };
    let (mut before, mut after) = (None, None);
    loop {
        let now = run.now();
        if before.is_none() && now >= run.measured.start {
            before = Some(run.sample(now)?);
        }
        if after.is_none() && now >= run.measured.end {
            after = Some(run.sample(now)?);
        }
        let unanswered: usize = writers.iter().map(|writer| writer.unanswered).sum();
        let done = now >= run.measured.end && unanswered == 0 && run.unsent() == 0;
        if done || now >= run.measured.end + GRACE_NS {
            let (before, after) = before.zip(after).ok_or("the run ended too early")?;
            run.report(&before, &after, unanswered as u64);
            return Ok(());
        }
        let due = run.publish_due(writers, now)?;
        for writer in &mut *writers {
            writer.link.send()?;
        }
        // mio sleeps whole milliseconds, rounded up: the last one is looked away instead.
        let left = Duration::from_nanos(due.max(now) - now);
        let sleep = if left > Duration::from_millis(2) { left - Duration::from_millis(1) } else { Duration::ZERO };
        let idle = now >= run.measured.end || cli.rate.is_none();
        poll.poll(events, Some(if idle { Duration::from_millis(5) } else { sleep }))?;
        for event in &*events {
            let writer = &mut writers[event.token().0];
            if event.is_readable() {
                run.receive(writer)?;
            }
            writer.link.send()?;
        }
    }
}

impl Run<'_> {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Messages that the schedule wanted sent and that never left.
    fn unsent(&self) -> u64 {
        let wanted = |rate: f64| (self.measured.end as f64 * rate / 1e9) as u64;
        self.cli.rate.map_or(0, wanted).saturating_sub(self.published)
    }

    fn sample(&self, at_ns: u64) -> Outcome<Sample> {
        let (server_cpu_s, own_cpu_s) = (cpu_seconds(self.cli.server_pid)?, cpu_seconds(std::process::id())?);
        Ok(Sample { appended: self.appended, at_ns, server_cpu_s, own_cpu_s })
    }

    /// Queues all that is due; says when there is more to do, if no answer brings it earlier.
    fn publish_due(&mut self, writers: &mut [Writer], now: u64) -> Outcome<u64> {
        let Some(rate) = self.cli.rate else {
            for (at, writer) in writers.iter_mut().enumerate() {
                while now < self.measured.end && writer.has_room() {
                    let intended = self.now();
                    self.publish(writer, at, intended)?;
                }
            }
            return Ok(self.measured.end);
        };
        loop {
            let intended = (self.published as f64 * 1e9 / rate) as u64;
            let at = self.published as usize % writers.len();
            if intended > now {
                return Ok(intended.min(self.measured.end));
            }
            // What was intended in time is sent, however late it has become.
            if intended >= self.measured.end || !writers[at].has_room() {
                return Ok(self.measured.end);
            }
            if self.measured.contains(&intended) {
                self.late.saturating_record(self.now().saturating_sub(intended).max(1));
            }
            self.publish(&mut writers[at], at, intended)?;
        }
    }

    fn publish(&mut self, writer: &mut Writer, at: usize, intended: u64) -> Outcome {
        self.body[..8].copy_from_slice(&intended.to_le_bytes());
        let number = writer.push(intended);
        let channel = self.published as usize % self.cli.channels;
        self.published += 1;
        request(self.cli.protocol, &mut writer.link.output, at, channel, number, &self.body)
    }

    /// Takes the answers that came.
    fn receive(&mut self, writer: &mut Writer) -> Outcome {
        let mut answers = Vec::new();
        writer.link.receive()?;
        cut(self.cli.protocol, &mut writer.link.input, &mut writer.link.output, &mut answers)?;
        let at = self.now();
        for Answer { number, accepted } in answers {
            let intended = writer.take(number)?;
            if !accepted {
                self.errors += 1;
                continue;
            }
            self.appended += 1;
            if self.measured.contains(&intended) {
                self.seen.saturating_record(at.saturating_sub(intended).max(1));
            }
        }
        Ok(())
    }

    fn report(&self, before: &Sample, after: &Sample, unanswered: u64) {
        let (cli, seconds) = (self.cli, (after.at_ns - before.at_ns) as f64 / 1e9);
        let count = (after.appended - before.appended) as f64;
        let cpu = after.server_cpu_s - before.server_cpu_s;
        let name = if cli.rate.is_some() { "append_open" } else { "append_saturated" };
        let mut result = row(name, &self.seen, seconds);
        result.insert("appends_per_s".into(), (count / seconds).into());
        for (name, count) in [("errors", self.errors), ("unanswered", unanswered), ("unsent", self.unsent())] {
            result.insert(name.into(), count.into());
        }
        result.insert("server_cpu_s".into(), cpu.into());
        result.insert("appends_per_cpu_s".into(), (count / cpu.max(0.01)).into());
        result.insert("generator_cpu_s".into(), (after.own_cpu_s - before.own_cpu_s).into());
        if cli.rate.is_some() {
            result.insert("sent_late_p99_us".into(), (self.late.value_at_percentile(99.0) as f64 / 1e3).into());
        }
        println!("{}", serde_json::Value::from(result));
    }
}
