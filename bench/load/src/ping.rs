//! `bench ping`: round trips on the command lane, in a closed and in an open loop.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use thalweg_protocol::frame::header;
use thalweg_protocol::ids::{Name, Position, Sequence, Subscription};
use thalweg_protocol::limits::{FRAME_HEADER_BYTES, IN_FLIGHT_MAX, LEAD_MESSAGES};
use thalweg_protocol::op::{ClientOp, From, Policy, Publish, ServerOp, Subscribe};
use thalweg_workload::behaviour::Stamp;
use thalweg_workload::{Arrivals, Schedule};

use crate::cli::{Context, Idle, PingArgs};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::floor;
use crate::latency::Latencies;
use crate::process::Process;
use crate::report::Row;
use crate::swarm::{Greeting, LinkId, Seen, Swarm};

/// The open loop's rate if none is given, requests a second.
const RATE_DEFAULT: f64 = 1_000.0;
/// How long answers are waited for after the last request.
const GRACE: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Unanswered requests beyond which the generator holds back: the node refuses more than its limit. What is held back is
/// still measured from when it was intended.
const UNANSWERED_MAX: usize = IN_FLIGHT_MAX - 8;

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ping,
    Echo,
    Publish,
}

/// One measured loop.
struct Loop {
    kind: Kind,
    bytes: usize,
    channel: Name,
    /// `None`: the next request leaves when nothing is unanswered.
    schedule: Option<Schedule>,
    /// Intended time of the next request of the schedule, ns.
    next_ns: Option<u64>,
    rng: StdRng,
    count: u64,
    /// Requests that wait for their answer, oldest first: number, intended time.
    unanswered: VecDeque<(u64, u64)>,
    /// Only requests intended in this time count, ns.
    measured: std::ops::Range<u64>,
    /// Bytes of an echo that do not make a whole message yet.
    partial: usize,
    answers: Latencies,
    deliveries: Latencies,
    /// How much later than intended the generator sent.
    late: Latencies,
    delivered_to: Position,
    /// Deliveries that must still come before the loop is over.
    undelivered: u64,
}

pub(crate) fn run(args: &PingArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    let kind = match (args.publish, args.echo) {
        (true, _) => Kind::Publish,
        (_, true) => Kind::Echo,
        _ => Kind::Ping,
    };
    let greeting = match kind {
        Kind::Echo => Greeting::Echo,
        _ => Greeting::Hello { token: context.target.token.clone() },
    };
    let mut swarm = Swarm::new(&context.target, greeting, context.idle.unwrap_or(Idle::Spin))?;
    let links = if kind == Kind::Publish { 2 } else { 1 };
    swarm.open_all(links, links, CONNECT_LIMIT)?;
    let channel = Name::new(&format!("bench/ping-{:08x}", rand::rng().random::<u32>())).expect("a valid name");
    if kind == Kind::Publish {
        subscribe(&mut swarm, 1, &channel)?;
    }
    let rates: &[Option<f64>] = match (args.closed, args.rate) {
        (true, _) => &[None],
        (_, Some(rate)) => &[Some(rate)],
        _ => &[None, Some(RATE_DEFAULT)],
    };
    let mut rows = Vec::new();
    let (mut count, mut delivered_to) = (0, Position(0));
    for &rate in rates {
        let mut state = Loop::new(kind, args, &swarm, channel.clone(), rate);
        // Sequences go on, since it is the same session.
        (state.count, state.delivered_to) = (count, delivered_to);
        rows.extend(state.measure(args, context, &mut swarm, rate)?);
        (count, delivered_to) = (state.count, state.delivered_to);
    }
    swarm.close();
    rows.push(floor::udp(args.bytes)?);
    Ok(rows)
}

/// Subscribes a link to a channel, from now on.
fn subscribe(swarm: &mut Swarm, link: LinkId, channel: &Name) -> Result<(), LoadError> {
    let subscribe = Subscribe {
        channel: channel.clone(),
        from: From::End,
        policy: Policy::Replay,
        lead: 0,
        make: true,
        presence: false,
    };
    swarm.request(link, 1, &ClientOp::Subscribe(subscribe))?;
    let answered = swarm.run_until(CONNECT_LIMIT, |swarm, seen| match seen {
        Some((_, Seen::Frame { op: ServerOp::Subscribed { .. }, .. })) => Ok(true),
        Some((_, Seen::Frame { op: ServerOp::Reject(reject), .. })) => {
            Err(LoadError::Refused { what: "a subscription", reject })
        }
        Some((_, Seen::Lost(reason))) => Err(swarm.lost(reason)),
        _ => Ok(false),
    })?;
    let seconds = CONNECT_LIMIT.as_secs();
    if answered { Ok(()) } else { Err(LoadError::Incomplete { what: "subscriptions", got: 0, wanted: 1, seconds }) }
}

impl Loop {
    fn new(kind: Kind, args: &PingArgs, swarm: &Swarm, channel: Name, rate: Option<f64>) -> Self {
        let start_ns = swarm.clock().now_ns();
        let measured_from = start_ns + nanos(args.warmup);
        let mut rng = StdRng::seed_from_u64(1);
        let mut schedule = rate.map(|rate| Schedule::new(Arrivals::Even, rate, start_ns));
        let next_ns = schedule.as_mut().and_then(|schedule| schedule.next(&mut rng));
        Self {
            kind,
            bytes: args.bytes,
            channel,
            schedule,
            next_ns,
            rng,
            count: 0,
            unanswered: VecDeque::new(),
            measured: measured_from..measured_from + nanos(args.duration),
            partial: 0,
            answers: Latencies::new(),
            deliveries: Latencies::new(),
            late: Latencies::new(),
            delivered_to: Position(0),
            undelivered: 0,
        }
    }

    fn measure(
        &mut self,
        args: &PingArgs,
        context: &Context,
        swarm: &mut Swarm,
        rate: Option<f64>,
    ) -> Result<Vec<Row>, LoadError> {
        let (own, mut before) = (Process::own(), None);
        let mut after = None;
        swarm.run_until(args.warmup + args.duration + GRACE, |swarm, seen| {
            let now_ns = swarm.clock().now_ns();
            match seen {
                Some((_, seen)) => {
                    self.see(swarm, seen)?;
                }
                None => {
                    if before.is_none() && now_ns >= self.measured.start {
                        before = Some((context.server_cpu()?, own.cpu_seconds()?));
                    }
                    if after.is_none() && now_ns >= self.measured.end {
                        after = Some((context.server_cpu()?, own.cpu_seconds()?));
                    }
                    self.send_due(swarm, now_ns)?;
                }
            }
            let quiet = self.unanswered.is_empty() && self.undelivered == 0;
            Ok(now_ns >= self.measured.end && quiet)
        })?;
        let seconds = args.duration.as_secs_f64();
        let cpu = |which: fn(&(Option<f64>, f64)) -> Option<f64>| {
            Some(after.as_ref().and_then(which)? - before.as_ref().and_then(which)?)
        };
        let (server_cpu, own_cpu) = (cpu(|sample| sample.0), cpu(|sample| Some(sample.1)));
        let suffix = if rate.is_some() { "open" } else { "closed" };
        let finish = |row: Row| {
            row.with("bytes", self.bytes as u64)
                .with("lost", self.unanswered.len() as u64)
                .with_known("server_cpu_s", server_cpu)
                .with_known("generator_cpu_s", own_cpu)
                .with_known("sent_late_p99_us", rate.map(|_| self.late.percentile_us(99.0)))
        };
        let name = match self.kind {
            Kind::Ping => "ping",
            Kind::Echo => "echo",
            Kind::Publish => "publish_ack",
        };
        let mut rows = vec![finish(Row::new(format!("{name}_{suffix}"), &self.answers, seconds))];
        if self.kind == Kind::Publish {
            rows.push(finish(Row::new(format!("publish_deliver_{suffix}"), &self.deliveries, seconds)));
        }
        Ok(rows)
    }

    /// Sends everything whose time has come.
    fn send_due(&mut self, swarm: &mut Swarm, now_ns: u64) -> Result<(), LoadError> {
        if self.schedule.is_none() {
            // Closed: one at a time. A delivery is part of the round.
            if self.unanswered.is_empty() && self.undelivered == 0 && now_ns < self.measured.end {
                self.send(swarm, now_ns)?;
            }
            return Ok(());
        }
        while let Some(intended_ns) = self.next_ns.filter(|&at| at <= now_ns && at < self.measured.end) {
            if self.unanswered.len() >= UNANSWERED_MAX {
                return Ok(());
            }
            if self.measured.contains(&intended_ns) {
                self.late.record(intended_ns, swarm.clock().now_ns());
            }
            self.send(swarm, intended_ns)?;
            self.next_ns = self.schedule.as_mut().and_then(|schedule| schedule.next(&mut self.rng));
        }
        let end = self.measured.end;
        swarm.wake_at(self.next_ns.map_or(end, |next| next.min(end)));
        Ok(())
    }

    fn send(&mut self, swarm: &mut Swarm, intended_ns: u64) -> Result<(), LoadError> {
        self.count += 1;
        self.unanswered.push_back((self.count, intended_ns));
        match self.kind {
            Kind::Echo => swarm.send_bytes(0, &vec![b'x'; self.bytes]),
            Kind::Ping => {
                // A FlatBuffer may be followed by anything: this fills the frame up to the size that is measured.
                let mut payload = ClientOp::Ping { nonce: self.count }.encode().to_vec();
                payload.resize(payload.len().max(self.bytes.saturating_sub(FRAME_HEADER_BYTES)), 0);
                let mut frame = header(payload.len(), self.count as u32).to_vec();
                frame.extend_from_slice(&payload);
                swarm.send_bytes(0, &frame)
            }
            Kind::Publish => {
                self.undelivered += 1;
                let sequence = Sequence(self.count);
                let body = Stamp { intended_ns, session: swarm.session(0), sequence }.body(self.bytes);
                let channel = self.channel.clone();
                let publish = Publish {
                    channel,
                    sequence,
                    retry: false,
                    make: true,
                    body: Bytes::from(body),
                    key: 0,
                    post: Default::default(),
                };
                swarm.request(0, self.count as u32, &ClientOp::Publish(publish))
            }
        }
    }

    fn see(&mut self, swarm: &mut Swarm, seen: Seen) -> Result<(), LoadError> {
        match seen {
            Seen::Lost(reason) => Err(swarm.lost(reason)),
            Seen::Ready => Ok(()),
            Seen::Bytes { count, at_ns } => {
                self.partial += count;
                while self.partial >= self.bytes {
                    self.partial -= self.bytes;
                    let oldest = self.unanswered.front().map_or(0, |&(number, _)| number);
                    self.answer(oldest, at_ns)?;
                }
                Ok(())
            }
            Seen::Frame { subject, op, at_ns, .. } => match op {
                ServerOp::Pong { nonce } => self.answer(nonce, at_ns),
                ServerOp::Published { .. } => self.answer(u64::from(subject), at_ns),
                ServerOp::Delivery(delivery) => self.deliver(swarm, delivery.position, &delivery.body, at_ns),
                ServerOp::Reject(reject) => Err(LoadError::Refused { what: "a request", reject }),
                ServerOp::ServerRestarting { .. } => Err(swarm.lost("the node is restarting".into())),
                other => Err(LoadError::Protocol(format!("nobody asked for {other:?}"))),
            },
        }
    }

    /// Notes the answer to a request. Answers come in order on the command lane.
    fn answer(&mut self, number: u64, at_ns: u64) -> Result<(), LoadError> {
        match self.unanswered.pop_front() {
            // Request numbers travel as 32 bits.
            Some((expected, intended_ns)) if expected == number || expected as u32 == number as u32 => {
                if self.measured.contains(&intended_ns) {
                    self.answers.record(intended_ns, at_ns);
                }
                Ok(())
            }
            expected => {
                let text = format!("request {number} was answered while {expected:?} was the oldest unanswered");
                Err(LoadError::Protocol(text))
            }
        }
    }

    fn deliver(&mut self, swarm: &mut Swarm, position: Position, body: &[u8], at_ns: u64) -> Result<(), LoadError> {
        if position <= self.delivered_to {
            return Err(LoadError::Protocol(format!("position {position} came after {}", self.delivered_to)));
        }
        self.delivered_to = position;
        self.undelivered = self.undelivered.saturating_sub(1);
        if let Some(stamp) = Stamp::read(body)
            && self.measured.contains(&stamp.intended_ns)
        {
            self.deliveries.record(stamp.intended_ns, at_ns);
        }
        if position.0.is_multiple_of(u64::from(LEAD_MESSAGES / 4)) {
            swarm.request(1, 0, &ClientOp::Consumed { subscription: Subscription(1), position })?;
        }
        Ok(())
    }
}
