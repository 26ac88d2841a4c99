//! `bench fanout`: one publisher, many subscribers.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::ids::{Name, Position, Sequence, Subscription};
use thalweg_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_MAX, LEAD_MESSAGES, SUBSCRIPTIONS_MAX};
use thalweg_protocol::op::{ClientOp, From, Policy, Publish, ServerOp, Subscribe};
use thalweg_workload::behaviour::{STAMP_BYTES, Stamp};
use thalweg_workload::{Arrivals, Schedule};

use crate::cli::{Context, FanoutArgs, Idle};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::process::{Process, per_cpu_second};
use crate::report::{Row, round};
use crate::swarm::{Greeting, LinkId, Seen, Swarm};

/// Handshakes under way at a time while the subscribers come.
const HANDSHAKES: usize = 64;
/// How long connections and subscriptions may take, beside a second for every 200.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// How long deliveries are waited for after the last message.
const GRACE: Duration = Duration::from_secs(10);
/// The publisher's link: the first.
const PUBLISHER: LinkId = 0;
/// A subscription reports what it consumed after so many messages.
const CREDIT_EVERY: u64 = LEAD_MESSAGES as u64 / 4;

/// Cost so far, at one moment.
#[derive(Clone, Copy)]
struct Sample {
    delivered: u64,
    at_ns: u64,
    server_cpu_s: Option<f64>,
    own_cpu_s: f64,
}

/// The state of a run.
struct Fan<'a> {
    args: &'a FanoutArgs,
    context: &'a Context,
    channel: Name,
    /// Subscriptions of one link; the request numbers are 1 to this.
    per_link: usize,
    /// Newest position each subscription got, by (link - 1) * per_link + (request - 1).
    got: Vec<Position>,
    schedule: Option<Schedule>,
    next_ns: Option<u64>,
    rng: StdRng,
    measured: Range<u64>,
    published: u64,
    delivered: u64,
    /// Positions that were passed over without a notice, or came twice: must stay 0.
    out_of_order: u64,
    /// Positions that subscriptions were told they missed.
    missed: u64,
    unacked: VecDeque<u64>,
    latencies: Latencies,
    acks: Latencies,
    late: Latencies,
}

pub(crate) fn run(args: &FanoutArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    let connections = args.connections.unwrap_or(args.subscribers);
    check(args, connections)?;
    let greeting = Greeting::Hello { token: context.target.token.clone() };
    let mut swarm = Swarm::new(&context.target, greeting, context.idle.unwrap_or(Idle::Park))?;
    let limit = SETUP_LIMIT + Duration::from_millis(args.subscribers as u64 * 5);
    swarm.open_all(connections + 1, HANDSHAKES, limit)?;
    let mut fan = Fan::new(args, context, connections);
    fan.subscribe(&mut swarm, limit)?;
    fan.run(&mut swarm)
}

fn check(args: &FanoutArgs, connections: usize) -> Result<(), LoadError> {
    let wrong = |text: String| Err(LoadError::Usage(text));
    if args.subscribers == 0 || connections == 0 || !args.subscribers.is_multiple_of(connections) {
        let subscribers = args.subscribers;
        return wrong(format!("{subscribers} subscribers cannot be spread evenly over {connections} connections"));
    }
    let per_link_max = SUBSCRIPTIONS_MAX.min(IN_FLIGHT_MAX);
    if args.subscribers / connections > per_link_max {
        return wrong(format!("at most {per_link_max} subscriptions fit on one connection; give more --connections"));
    }
    if !(STAMP_BYTES..=BODY_BYTES_MAX).contains(&args.body) {
        return wrong(format!("a body has {STAMP_BYTES} to {BODY_BYTES_MAX} bytes, not {}", args.body));
    }
    if args.window == 0 || args.window > u64::from(LEAD_MESSAGES) / 2 {
        return wrong(format!("a window has 1 to {} messages, not {}", LEAD_MESSAGES / 2, args.window));
    }
    Ok(())
}

impl<'a> Fan<'a> {
    fn new(args: &'a FanoutArgs, context: &'a Context, connections: usize) -> Self {
        Self {
            args,
            context,
            channel: Name::new(&format!("bench/fan-{:08x}", rand::rng().random::<u32>())).expect("a valid name"),
            per_link: args.subscribers / connections,
            got: vec![Position(0); args.subscribers],
            schedule: None,
            next_ns: None,
            rng: StdRng::seed_from_u64(1),
            measured: 0..0,
            published: 0,
            delivered: 0,
            out_of_order: 0,
            missed: 0,
            unacked: VecDeque::new(),
            latencies: Latencies::new(),
            acks: Latencies::new(),
            late: Latencies::new(),
        }
    }

    fn subscribe(&mut self, swarm: &mut Swarm, limit: Duration) -> Result<(), LoadError> {
        let subscribe = Subscribe {
            channel: self.channel.clone(),
            from: From::End,
            policy: Policy::Replay,
            lead: LEAD_MESSAGES,
            make: true,
            presence: false,
        };
        let payload = ClientOp::Subscribe(subscribe).encode();
        let (wanted, mut answered, mut asked) = (self.args.subscribers, 0, 0);
        swarm.run_until(limit, |swarm, seen| {
            match seen {
                Some((_, Seen::Frame { op: ServerOp::Subscribed { .. }, .. })) => answered += 1,
                Some((_, Seen::Frame { op: ServerOp::Reject(reject), .. })) => {
                    return Err(LoadError::Refused { what: "a subscription", reject });
                }
                Some((_, Seen::Lost(reason))) => return Err(swarm.lost(reason)),
                _ => {}
            }
            while asked < wanted && asked - answered < IN_FLIGHT_MAX {
                let (link, request) = (asked / self.per_link + 1, asked % self.per_link + 1);
                swarm.send_payload(link, request as u32, &payload)?;
                asked += 1;
            }
            Ok(answered == wanted)
        })?;
        if answered < wanted {
            let (got, wanted, seconds) = (answered as u64, wanted as u64, limit.as_secs());
            return Err(LoadError::Incomplete { what: "subscriptions", got, wanted, seconds });
        }
        Ok(())
    }

    fn run(&mut self, swarm: &mut Swarm) -> Result<Vec<Row>, LoadError> {
        let start_ns = swarm.clock().now_ns();
        let from = start_ns + nanos(self.args.warmup);
        self.measured = from..from + nanos(self.args.duration);
        if !self.args.saturate {
            let mut schedule = Schedule::new(Arrivals::Even, self.args.rate, start_ns);
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
                Ok(Sample { delivered: self.delivered, at_ns: now_ns, server_cpu_s, own_cpu_s })
            };
            if before.is_none() && now_ns >= self.measured.start {
                before = Some(sample()?);
            }
            if after.is_none() && now_ns >= self.measured.end {
                after = Some(sample()?);
            }
            self.publish_due(swarm, now_ns)?;
            Ok(now_ns >= self.measured.end && self.outstanding() == 0 && self.unacked.is_empty())
        })?;
        swarm.close();
        self.rows(before.zip(after), swarm.alive())
    }

    /// Deliveries that are still to come.
    fn outstanding(&self) -> u64 {
        (self.published * self.args.subscribers as u64).saturating_sub(self.delivered + self.missed)
    }

    fn publish_due(&mut self, swarm: &mut Swarm, now_ns: u64) -> Result<(), LoadError> {
        if now_ns >= self.measured.end {
            return Ok(());
        }
        if self.args.saturate {
            let room = self.args.window * self.args.subscribers as u64;
            while self.outstanding() + self.args.subscribers as u64 <= room && self.unacked.len() < IN_FLIGHT_MAX - 8 {
                let now_ns = swarm.clock().now_ns();
                self.publish(swarm, now_ns)?;
            }
            swarm.wake_at(self.measured.end);
            return Ok(());
        }
        while let Some(intended_ns) = self.next_ns.filter(|&at| at <= now_ns && self.unacked.len() < IN_FLIGHT_MAX - 8)
        {
            if self.measured.contains(&intended_ns) {
                self.late.record(intended_ns, swarm.clock().now_ns());
            }
            self.publish(swarm, intended_ns)?;
            self.next_ns = self.schedule.as_mut().and_then(|schedule| schedule.next(&mut self.rng));
        }
        let end = self.measured.end;
        swarm.wake_at(self.next_ns.map_or(end, |next| next.min(end)));
        Ok(())
    }

    fn publish(&mut self, swarm: &mut Swarm, intended_ns: u64) -> Result<(), LoadError> {
        self.published += 1;
        self.unacked.push_back(intended_ns);
        let sequence = Sequence(self.published);
        let body = Bytes::from(Stamp { intended_ns, session: swarm.session(PUBLISHER), sequence }.body(self.args.body));
        let publish = Publish {
            channel: self.channel.clone(),
            sequence,
            retry: false,
            make: true,
            body,
            key: 0,
            post: Default::default(),
        };
        swarm.request(PUBLISHER, self.published as u32, &ClientOp::Publish(publish))
    }

    fn see(&mut self, swarm: &mut Swarm, link: LinkId, seen: Seen) -> Result<(), LoadError> {
        let (subject, op, at_ns) = match seen {
            Seen::Frame { subject, op, at_ns, .. } => (subject, op, at_ns),
            Seen::Lost(reason) => return Err(swarm.lost(reason)),
            Seen::Ready | Seen::Bytes { .. } => return Ok(()),
        };
        match op {
            ServerOp::Delivery(delivery) => {
                self.deliver(swarm, link, subject, delivery.position, &delivery.body, at_ns)
            }
            ServerOp::Missed { from, to } => {
                self.missed += to.0.saturating_sub(from.0) + 1;
                if let Some(got) = self.slot(link, subject) {
                    *got = to;
                }
                Ok(())
            }
            ServerOp::Published { .. } => {
                if let Some(intended_ns) = self.unacked.pop_front().filter(|at| self.measured.contains(at)) {
                    self.acks.record(intended_ns, at_ns);
                }
                Ok(())
            }
            ServerOp::Reject(reject) => Err(LoadError::Refused { what: "a message", reject }),
            ServerOp::Ended(reject) => Err(LoadError::Refused { what: "a subscription, later", reject }),
            ServerOp::ServerRestarting { .. } => Err(swarm.lost("the node is restarting".into())),
            other => Err(LoadError::Protocol(format!("nobody asked for {other:?}"))),
        }
    }

    fn slot(&mut self, link: LinkId, subject: u32) -> Option<&mut Position> {
        let at = link.checked_sub(1)? * self.per_link + (subject as usize).checked_sub(1)?;
        self.got.get_mut(at)
    }

    fn deliver(
        &mut self,
        swarm: &mut Swarm,
        link: LinkId,
        subject: u32,
        position: Position,
        body: &[u8],
        at_ns: u64,
    ) -> Result<(), LoadError> {
        let Some(got) = self.slot(link, subject) else {
            return Err(LoadError::Protocol(format!("a delivery for subscription {subject}, which there is not")));
        };
        let in_order = position == got.next();
        *got = position;
        self.out_of_order += u64::from(!in_order);
        self.delivered += 1;
        if let Some(stamp) = Stamp::read(body)
            && self.measured.contains(&stamp.intended_ns)
        {
            self.latencies.record(stamp.intended_ns, at_ns);
        }
        if position.0.is_multiple_of(CREDIT_EVERY) {
            swarm.request(link, 0, &ClientOp::Consumed { subscription: Subscription(subject), position })?;
        }
        Ok(())
    }

    fn rows(&self, samples: Option<(Sample, Sample)>, alive: usize) -> Result<Vec<Row>, LoadError> {
        let Some((before, after)) = samples else {
            let (got, wanted) = (self.delivered, self.published * self.args.subscribers as u64);
            return Err(LoadError::Incomplete { what: "deliveries", got, wanted, seconds: GRACE.as_secs() });
        };
        let seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        let delivered = after.delivered - before.delivered;
        let cpu = before.server_cpu_s.zip(after.server_cpu_s).map(|(before, after)| after - before);
        let mode = if self.args.saturate { "saturated" } else { "open" };
        let deliver = Row::new(format!("fanout_deliver_{mode}"), &self.latencies, seconds)
            .with("subscribers", self.args.subscribers as u64)
            .with("connections", alive as u64 - 1)
            .with("body_bytes", self.args.body as u64)
            .with("published", self.published)
            .with("deliveries_per_s", round(delivered as f64 / seconds))
            .with("undelivered", self.outstanding())
            .with("missed", self.missed)
            .with("out_of_order", self.out_of_order)
            .with_known("server_cpu_s", cpu)
            .with_known("deliveries_per_cpu_s", per_cpu_second(delivered, cpu))
            .with("generator_cpu_s", round(after.own_cpu_s - before.own_cpu_s))
            .with_known("sent_late_p99_us", (!self.args.saturate).then(|| self.late.percentile_us(99.0)));
        Ok(vec![deliver, Row::new(format!("fanout_ack_{mode}"), &self.acks, seconds)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_cannot_work_are_refused() {
        let check_args = |change: &dyn Fn(&mut FanoutArgs), connections: usize, good: bool| {
            let mut args = FanoutArgs {
                subscribers: 1_000,
                connections: None,
                body: 128,
                rate: 20.0,
                saturate: false,
                window: 32,
                duration: Duration::from_secs(1),
                warmup: Duration::ZERO,
            };
            change(&mut args);
            assert_eq!(check(&args, connections).is_ok(), good, "{args:?} over {connections}");
        };
        check_args(&|_| {}, 1_000, true);
        check_args(&|_| {}, 10, true);
        check_args(&|_| {}, 7, false);
        check_args(&|_| {}, 0, false);
        check_args(&|args| args.subscribers = 0, 1, false);
        check_args(&|args| args.subscribers = 100_000, 10, false);
        check_args(&|args| args.body = STAMP_BYTES - 1, 1_000, false);
        check_args(&|args| args.body = BODY_BYTES_MAX + 1, 1_000, false);
        check_args(&|args| args.window = 0, 1_000, false);
    }
}
