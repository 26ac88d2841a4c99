//! `bench append`: messages that are answered when they are as durable as their channel asks.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::ids::{Name, Sequence};
use thalweg_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_MAX};
use thalweg_protocol::op::{ClientOp, CreateChannel, Durability, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_workload::behaviour::{STAMP_BYTES, Stamp};
use thalweg_workload::{Arrivals, Schedule};

use crate::cli::{AppendArgs, Context, Idle, Kept};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::process::{Process, per_cpu_second};
use crate::report::{Row, round};
use crate::swarm::{Greeting, LinkId, Seen, Swarm};

/// Handshakes under way at a time while the writers come.
const HANDSHAKES: usize = 64;
/// How long connections and channels may take, beside a second for every 200.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// How long answers are waited for after the last message.
const GRACE: Duration = Duration::from_secs(10);
/// Unanswered requests of one link beyond which the generator holds back: the node refuses more than its limit. What is
/// held back is still measured from when it was intended.
const UNANSWERED_MAX: usize = IN_FLIGHT_MAX - 8;
/// Channels at most: the node keeps a history of each, so that many more would measure its memory.
const CHANNELS_MAX: usize = 4_096;

/// Cost so far, at one moment.
#[derive(Clone, Copy)]
struct Sample {
    appended: u64,
    at_ns: u64,
    server_cpu_s: Option<f64>,
    own_cpu_s: f64,
}

/// One connection and session that writes.
#[derive(Debug, Default)]
struct Writer {
    /// Request number and sequence of its newest message; the first is 1.
    count: u64,
    /// Messages it may have on the way at a time.
    room: usize,
    unanswered: Unanswered,
}

/// What waits for its answer. Answers mostly come in order, but a refusal, or a channel of another core, may overtake.
#[derive(Debug, Default)]
struct Unanswered {
    /// Intended times by request number, oldest first; `None` where the answer overtook an older one.
    waiting: VecDeque<Option<u64>>,
    /// Request number of the oldest, as it travels: 32 bits.
    oldest: u32,
    count: usize,
}

impl Unanswered {
    /// Adds a request; their numbers grow by one.
    fn push(&mut self, number: u32, intended_ns: u64) {
        if self.waiting.is_empty() {
            self.oldest = number;
        }
        self.waiting.push_back(Some(intended_ns));
        self.count += 1;
    }

    /// Takes the intended time of the request of this number; `None` if none of that number waits.
    fn take(&mut self, number: u32) -> Option<u64> {
        let at = number.wrapping_sub(self.oldest) as usize;
        let intended_ns = self.waiting.get_mut(at)?.take()?;
        self.count -= 1;
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.oldest = self.oldest.wrapping_add(1);
        }
        Some(intended_ns)
    }
}

/// The state of a run.
struct Append<'a> {
    args: &'a AppendArgs,
    context: &'a Context,
    channels: Vec<Name>,
    writers: Vec<Writer>,
    schedule: Option<Schedule>,
    next_ns: Option<u64>,
    rng: StdRng,
    measured: Range<u64>,
    published: u64,
    appended: u64,
    /// Refused because too much waits already.
    busy: u64,
    /// Refused because the disk is full.
    storage_full: u64,
    /// Answered as carried out before: must stay 0, since nothing is sent twice.
    duplicates: u64,
    latencies: Latencies,
    late: Latencies,
}

pub(crate) fn run(args: &AppendArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    check(args)?;
    let greeting = Greeting::Hello { token: context.target.token.clone() };
    let mut swarm = Swarm::new(&context.target, greeting, context.idle.unwrap_or(Idle::Park))?;
    let limit = SETUP_LIMIT + Duration::from_millis((args.connections + args.channels) as u64 * 5);
    swarm.open_all(args.connections, HANDSHAKES, limit)?;
    let mut append = Append::new(args, context);
    append.make_channels(&mut swarm, limit)?;
    append.run(&mut swarm)
}

fn check(args: &AppendArgs) -> Result<(), LoadError> {
    let wrong = |text: String| Err(LoadError::Usage(text));
    let AppendArgs { connections, in_flight, body, channels, .. } = *args;
    if connections == 0 || in_flight < connections {
        return wrong(format!("{in_flight} messages in flight do not give each of {connections} connections one"));
    }
    if in_flight.div_ceil(connections) > UNANSWERED_MAX {
        return wrong(format!("at most {UNANSWERED_MAX} messages are in flight on one connection; give more of those"));
    }
    if !(STAMP_BYTES..=BODY_BYTES_MAX).contains(&body) {
        return wrong(format!("a body has {STAMP_BYTES} to {BODY_BYTES_MAX} bytes, not {body}"));
    }
    if !(1..=CHANNELS_MAX).contains(&channels) {
        return wrong(format!("there are 1 to {CHANNELS_MAX} channels, not {channels}"));
    }
    Ok(())
}

impl<'a> Append<'a> {
    fn new(args: &'a AppendArgs, context: &'a Context) -> Self {
        let run = rand::rng().random::<u32>();
        let channel = |n| Name::new(&format!("bench/append-{run:08x}-{n}")).expect("a valid name");
        let share = |at| args.in_flight / args.connections + usize::from(at < args.in_flight % args.connections);
        // An open loop does not wait for answers, but for what the protocol forbids.
        let room = |at| if args.rate.is_some() { UNANSWERED_MAX } else { share(at) };
        Self {
            args,
            context,
            channels: (0..args.channels).map(channel).collect(),
            writers: (0..args.connections).map(|at| Writer { room: room(at), ..Writer::default() }).collect(),
            schedule: None,
            next_ns: None,
            rng: StdRng::seed_from_u64(1),
            measured: 0..0,
            published: 0,
            appended: 0,
            busy: 0,
            storage_full: 0,
            duplicates: 0,
            latencies: Latencies::new(),
            late: Latencies::new(),
        }
    }

    /// Makes the channels over the first link, one after the other, whose answers come in any order.
    fn make_channels(&mut self, swarm: &mut Swarm, limit: Duration) -> Result<(), LoadError> {
        let durability = match self.args.durability {
            Kept::Disk => Durability::Disk,
            Kept::Memory => Durability::Memory,
        };
        let (wanted, mut asked, mut made) = (self.channels.len(), 0, 0);
        swarm.run_until(limit, |swarm, seen| {
            match seen {
                Some((_, Seen::Frame { op: ServerOp::ChannelCreated { .. }, .. })) => made += 1,
                Some((_, Seen::Frame { op: ServerOp::Reject(reject), .. })) => {
                    return Err(LoadError::Refused { what: "a channel", reject });
                }
                Some((_, Seen::Lost(reason))) => return Err(swarm.lost(reason)),
                _ => {}
            }
            while asked < wanted && asked - made < HANDSHAKES {
                let create = CreateChannel {
                    channel: self.channels[asked].clone(),
                    history_messages: 0,
                    history_bytes: 0,
                    history_age_ms: 0,
                    durability: Some(durability),
                    about: Default::default(),
                };
                asked += 1;
                swarm.request(0, asked as u32, &ClientOp::CreateChannel(create))?;
            }
            Ok(made == wanted)
        })?;
        if made < wanted {
            let (got, wanted, seconds) = (made as u64, wanted as u64, limit.as_secs());
            return Err(LoadError::Incomplete { what: "channels", got, wanted, seconds });
        }
        // Request numbers and sequences go on, over the first link.
        self.writers[0].count = wanted as u64;
        Ok(())
    }

    fn run(&mut self, swarm: &mut Swarm) -> Result<Vec<Row>, LoadError> {
        let start_ns = swarm.clock().now_ns();
        let from = start_ns + nanos(self.args.warmup);
        self.measured = from..from + nanos(self.args.duration);
        if let Some(rate) = self.args.rate {
            let mut schedule = Schedule::new(Arrivals::Even, rate, start_ns);
            self.next_ns = schedule.next(&mut self.rng);
            self.schedule = Some(schedule);
        }
        let (own, mut before, mut after) = (Process::own(), None, None);
        swarm.run_until(self.args.warmup + self.args.duration + GRACE, |swarm, seen| {
            if let Some((link, seen)) = seen {
                self.see(swarm, link, seen)?;
                return Ok(false);
            }
            let now_ns = swarm.clock().now_ns();
            let sample = || -> Result<Sample, LoadError> {
                let (server_cpu_s, own_cpu_s) = (self.context.server_cpu()?, own.cpu_seconds()?);
                Ok(Sample { appended: self.appended, at_ns: now_ns, server_cpu_s, own_cpu_s })
            };
            if before.is_none() && now_ns >= self.measured.start {
                before = Some(sample()?);
            }
            if after.is_none() && now_ns >= self.measured.end {
                after = Some(sample()?);
            }
            self.publish_due(swarm, now_ns)?;
            Ok(now_ns >= self.measured.end && self.unanswered() == 0 && self.unsent() == 0)
        })?;
        swarm.close();
        self.rows(before.zip(after))
    }

    /// Messages whose answer is still to come.
    fn unanswered(&self) -> usize {
        self.writers.iter().map(|writer| writer.unanswered.count).sum()
    }

    /// Sends everything whose time has come.
    fn publish_due(&mut self, swarm: &mut Swarm, now_ns: u64) -> Result<(), LoadError> {
        if self.schedule.is_none() {
            if now_ns >= self.measured.end {
                return Ok(());
            }
            for link in 0..self.writers.len() {
                while self.has_room(link) {
                    let now_ns = swarm.clock().now_ns();
                    self.publish(swarm, link, now_ns)?;
                }
            }
            swarm.wake_at(self.measured.end);
            return Ok(());
        }
        // What was intended in time is sent, however late it has become.
        while let Some(intended_ns) = self.next_ns.filter(|&at| at <= now_ns && at < self.measured.end) {
            let link = self.published as usize % self.writers.len();
            if !self.has_room(link) {
                // An answer, and nothing else, ends the wait.
                swarm.wake_at(self.measured.end);
                return Ok(());
            }
            if self.measured.contains(&intended_ns) {
                self.late.record(intended_ns, swarm.clock().now_ns());
            }
            self.publish(swarm, link, intended_ns)?;
            self.next_ns = self.schedule.as_mut().and_then(|schedule| schedule.next(&mut self.rng));
        }
        let end = self.measured.end;
        swarm.wake_at(self.next_ns.map_or(end, |next| next.min(end)));
        Ok(())
    }

    /// Messages that a schedule wanted sent and that never left: the node did not make room for them in time.
    fn unsent(&self) -> u64 {
        let behind_ns = self.next_ns.map_or(0, |next| self.measured.end.saturating_sub(next));
        (behind_ns as f64 * self.args.rate.unwrap_or(0.0) / 1e9).ceil() as u64
    }

    fn has_room(&self, link: LinkId) -> bool {
        let writer = &self.writers[link];
        // The span is bounded too: one answer may stay out while those after it overtake it.
        writer.unanswered.count < writer.room && writer.unanswered.waiting.len() < UNANSWERED_MAX
    }

    fn publish(&mut self, swarm: &mut Swarm, link: LinkId, intended_ns: u64) -> Result<(), LoadError> {
        let channel = self.channels[self.published as usize % self.channels.len()].clone();
        self.published += 1;
        let writer = &mut self.writers[link];
        writer.count += 1;
        let number = writer.count as u32;
        writer.unanswered.push(number, intended_ns);
        let sequence = Sequence(writer.count);
        let body = Bytes::from(Stamp { intended_ns, session: swarm.session(link), sequence }.body(self.args.body));
        let publish = Publish { channel, sequence, retry: false, make: false, body, key: 0, post: Default::default() };
        swarm.request(link, number, &ClientOp::Publish(publish))
    }

    fn see(&mut self, swarm: &mut Swarm, link: LinkId, seen: Seen) -> Result<(), LoadError> {
        let (number, op, at_ns) = match seen {
            Seen::Frame { subject, op, at_ns, .. } => (subject, op, at_ns),
            Seen::Lost(reason) => return Err(swarm.lost(reason)),
            Seen::Ready | Seen::Bytes { .. } => return Ok(()),
        };
        let answer = match op {
            ServerOp::Published { duplicate, .. } => Ok(duplicate),
            ServerOp::Reject(reject) => Err(reject),
            ServerOp::ServerRestarting { .. } => return Err(swarm.lost("the node is restarting".into())),
            other => return Err(LoadError::Protocol(format!("nobody asked for {other:?}"))),
        };
        let Some(intended_ns) = self.writers[link].unanswered.take(number) else {
            return Err(LoadError::Protocol(format!("request {number} was answered, which did not wait for it")));
        };
        match answer {
            Ok(duplicate) => {
                self.appended += 1;
                self.duplicates += u64::from(duplicate);
                if self.measured.contains(&intended_ns) {
                    self.latencies.record(intended_ns, at_ns);
                }
                Ok(())
            }
            Err(reject) => self.refused(reject),
        }
    }

    /// Counts what a node says that has too much to do. Anything else is a mistake of ours, or of the node.
    fn refused(&mut self, reject: Reject) -> Result<(), LoadError> {
        match reject.code {
            RejectCode::Busy => self.busy += 1,
            RejectCode::StorageFull => self.storage_full += 1,
            _ => return Err(LoadError::Refused { what: "a message", reject }),
        }
        Ok(())
    }

    fn rows(&self, samples: Option<(Sample, Sample)>) -> Result<Vec<Row>, LoadError> {
        let Some((before, after)) = samples else {
            let (got, wanted) = (self.appended, self.published);
            return Err(LoadError::Incomplete { what: "answers", got, wanted, seconds: GRACE.as_secs() });
        };
        let seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        let appended = after.appended - before.appended;
        let cpu = before.server_cpu_s.zip(after.server_cpu_s).map(|(before, after)| after - before);
        let open = self.args.rate.is_some();
        let row = Row::new(format!("append_{}", if open { "open" } else { "saturated" }), &self.latencies, seconds)
            .with("durability", self.args.durability.as_str())
            .with("connections", self.args.connections as u64)
            .with("channels", self.args.channels as u64)
            .with("body_bytes", self.args.body as u64)
            .with("in_flight", if open { "unbounded".into() } else { self.args.in_flight.to_string() })
            .with("appends_per_s", round(appended as f64 / seconds))
            .with("refused_busy", self.busy)
            .with("refused_storage_full", self.storage_full)
            .with("duplicates", self.duplicates)
            .with("unanswered", self.unanswered() as u64)
            .with("unsent", self.unsent())
            .with_known("server_cpu_s", cpu)
            .with_known("appends_per_cpu_s", per_cpu_second(appended, cpu))
            .with("generator_cpu_s", round(after.own_cpu_s - before.own_cpu_s))
            .with_known("sent_late_p99_us", open.then(|| self.late.percentile_us(99.0)));
        Ok(vec![row])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> AppendArgs {
        AppendArgs {
            connections: 1,
            in_flight: 256,
            body: 256,
            channels: 1,
            durability: Kept::Disk,
            saturate: true,
            rate: None,
            duration: Duration::from_secs(1),
            warmup: Duration::ZERO,
        }
    }

    fn context() -> Context {
        let server = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let target = crate::cli::Target { server, server_key: None, token: String::new(), server_pid: None };
        Context { target, server: None, idle: None }
    }

    #[test]
    fn arguments_that_cannot_work_are_refused() {
        let check_args = |change: &dyn Fn(&mut AppendArgs), good: bool| {
            let mut args = args();
            change(&mut args);
            assert_eq!(check(&args).is_ok(), good, "{args:?}");
        };
        check_args(&|_| {}, true);
        check_args(&|args| args.connections = 256, true);
        check_args(&|args| args.connections = 257, false);
        check_args(&|args| args.connections = 0, false);
        check_args(&|args| args.in_flight = 0, false);
        check_args(&|args| args.in_flight = UNANSWERED_MAX, true);
        check_args(&|args| args.in_flight = UNANSWERED_MAX + 1, false);
        check_args(&|args| (args.in_flight, args.connections) = (2 * UNANSWERED_MAX, 2), true);
        check_args(&|args| args.body = STAMP_BYTES - 1, false);
        check_args(&|args| args.body = BODY_BYTES_MAX + 1, false);
        check_args(&|args| args.channels = 0, false);
        check_args(&|args| args.channels = CHANNELS_MAX + 1, false);
    }

    #[test]
    fn answers_find_their_request_in_any_order() {
        let check = |first: u32, answers: &[u32], waiting: usize| {
            let mut unanswered = Unanswered::default();
            (0..5).for_each(|n| unanswered.push(first.wrapping_add(n), u64::from(n)));
            for &n in answers {
                assert_eq!(unanswered.take(first.wrapping_add(n)), Some(u64::from(n)), "{answers:?} from {first}");
                assert_eq!(unanswered.take(first.wrapping_add(n)), None, "{n} is answered once");
            }
            assert_eq!((unanswered.waiting.len(), unanswered.count), (waiting, 5 - answers.len()), "{answers:?}");
        };
        for first in [1, u32::MAX - 2] {
            check(first, &[], 5);
            check(first, &[0, 1, 2, 3, 4], 0);
            check(first, &[4, 3, 2, 1, 0], 0);
            check(first, &[1, 2], 5);
            check(first, &[1, 2, 0], 2);
            check(first, &[4], 5);
        }
        let mut unanswered = Unanswered::default();
        unanswered.push(7, 70);
        assert_eq!((unanswered.take(6), unanswered.take(8), unanswered.take(7)), (None, None, Some(70)));
        unanswered.push(12, 120);
        assert_eq!(unanswered.take(12), Some(120), "after all were answered");
    }

    #[test]
    fn messages_in_flight_are_spread_over_the_connections() {
        let context = context();
        let check = |in_flight: usize, connections: usize, rate: Option<f64>, expected: &[usize]| {
            let args = AppendArgs { in_flight, connections, rate, ..args() };
            let rooms: Vec<usize> = Append::new(&args, &context).writers.iter().map(|writer| writer.room).collect();
            assert_eq!(rooms, expected, "{in_flight} over {connections}");
        };
        check(256, 1, None, &[256]);
        check(256, 2, None, &[128, 128]);
        check(8, 3, None, &[3, 3, 2]);
        check(8, 3, Some(1.0), &[UNANSWERED_MAX; 3]);
    }

    #[test]
    fn what_never_left_is_counted() {
        let (args, context) = (AppendArgs { rate: Some(1_000.0), ..args() }, context());
        let mut append = Append::new(&args, &context);
        append.measured = 0..2_000_000_000;
        let mut check = |next_ns: Option<u64>, expected: u64| {
            append.next_ns = next_ns;
            assert_eq!(append.unsent(), expected, "{next_ns:?}");
        };
        check(Some(2_000_000_000), 0);
        check(Some(1_999_000_000), 1);
        check(Some(1_500_000_000), 500);
        check(None, 0);
    }

    #[test]
    fn a_node_with_too_much_to_do_is_counted_and_others_end_the_run() {
        let context = context();
        let args = args();
        let mut append = Append::new(&args, &context);
        let mut check = |code: RejectCode, expected: Option<(u64, u64)>| {
            let counted = append.refused(Reject::new(code, "no")).is_ok().then_some((append.busy, append.storage_full));
            assert_eq!(counted, expected, "{code}");
        };
        check(RejectCode::Busy, Some((1, 0)));
        check(RejectCode::StorageFull, Some((1, 1)));
        check(RejectCode::Busy, Some((2, 1)));
        check(RejectCode::Forbidden, None);
        check(RejectCode::SequenceInvalid, None);
    }
}
