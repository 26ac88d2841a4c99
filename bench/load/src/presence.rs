//! `bench presence`: many users in many channels, who come, go, write, and see each other.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use thalweg_protocol::chat::Post;
use thalweg_protocol::ids::{Name, Position, Sequence, Subscription};
use thalweg_protocol::limits::{
    BODY_BYTES_MAX, IN_FLIGHT_MAX, LEAD_MESSAGES, PRESENCE_HEARTBEAT_MS, SUBSCRIPTIONS_MAX,
};
use thalweg_protocol::op::{ClientOp, From, Policy, Publish, ServerOp, Subscribe};
use thalweg_workload::behaviour::{STAMP_BYTES, Stamp};
use thalweg_workload::{Arrivals, Schedule};

use crate::cli::{Context, Idle, PresenceArgs};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::process::{Process, per_cpu_second};
use crate::report::{Row, round};
use crate::swarm::{Greeting, LinkId, Seen, Swarm};

/// Handshakes, and requests beside them, that are under way at a time while the crowd comes.
const AT_ONCE: usize = 64;
/// How long each part of the setup may take, beside a second for every 200 of what is set up.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// How long deliveries are waited for after the last message.
const GRACE: Duration = Duration::from_secs(5);
/// The link that mints the users' tokens: the first.
const OPERATOR: LinkId = 0;
/// A subscription reports what it consumed after so many messages.
const CREDIT_EVERY: u64 = LEAD_MESSAGES as u64 / 4;
/// How long the tokens of the made-up users are good.
const TOKEN_TTL_S: u64 = 3_600;
/// The number of a publish or an unsubscribe: above those of subscriptions.
const REQUESTS_FROM: u32 = 1_000_000;

/// One user's part in one channel: its subscription is named after its place in [`User::parts`], from 1.
struct Part {
    channel: usize,
    /// Whether the subscription stands, or was asked for.
    present: bool,
    /// How often it was asked for: each time under another number, so that what is late is told apart.
    lives: u32,
    got: Position,
}

struct User {
    link: LinkId,
    parts: Vec<Part>,
    /// Messages it wrote.
    written: u64,
}

/// What came in a measured second, and what it cost.
#[derive(Clone, Copy, Default)]
struct Sample {
    at_ns: u64,
    delivered: u64,
    presence_frames: u64,
    presence_bytes: u64,
    other_bytes: u64,
    server_cpu_s: Option<f64>,
    own_cpu_s: f64,
}

struct Crowd<'a> {
    args: &'a PresenceArgs,
    context: &'a Context,
    prefix: String,
    users: Vec<User>,
    /// How many take part in each channel now.
    present: Vec<u32>,
    rng: StdRng,
    measured: Range<u64>,
    requests: u32,
    published: u64,
    acknowledged: u64,
    expected: u64,
    missed: u64,
    out_of_order: u64,
    refused: u64,
    heartbeats: u64,
    churned: u64,
    /// Users that left a channel and their part in it, who left first first: every second change is somebody coming back, so
    /// that the channels stay as full as they are.
    away: VecDeque<(usize, usize)>,
    joins_seen: u64,
    leaves_seen: u64,
    /// When a user meant to come into a channel, by (user, channel), until the first of the others saw it.
    joining: HashMap<(usize, usize), u64>,
    now: Sample,
    deliveries: Latencies,
    joins: Latencies,
    late: Latencies,
}

/// Things that are done by schedule.
struct Plan {
    publish: (Schedule, Option<u64>),
    churn: (Schedule, Option<u64>),
    heartbeat: (Schedule, Option<u64>),
}

pub(crate) fn run(args: &PresenceArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    check(args)?;
    let operator = Greeting::Hello { token: context.target.token.clone() };
    let mut swarm = Swarm::new(&context.target, operator, context.idle.unwrap_or(Idle::Park))?;
    swarm.open_all(1, 1, SETUP_LIMIT)?;
    let mut crowd = Crowd::new(args, context);
    let limit = SETUP_LIMIT + Duration::from_millis(args.users as u64 * 5);
    let greetings = crowd.mint(&mut swarm, limit)?;
    swarm.open_each(greetings.into_iter(), AT_ONCE, limit)?;
    crowd.join(&mut swarm, limit + limit * args.per_user as u32)?;
    crowd.run(&mut swarm)
}

fn check(args: &PresenceArgs) -> Result<(), LoadError> {
    let wrong = |text: String| Err(LoadError::Usage(text));
    if args.users == 0 || args.channels == 0 {
        return wrong("give at least one user and one channel".into());
    }
    let most = args.channels.min(SUBSCRIPTIONS_MAX).min(IN_FLIGHT_MAX);
    if args.per_user == 0 || args.per_user > most {
        return wrong(format!("--per-user is {}; give 1 to {most}", args.per_user));
    }
    if !(STAMP_BYTES..=BODY_BYTES_MAX).contains(&args.body) {
        return wrong(format!("a body has {STAMP_BYTES} to {BODY_BYTES_MAX} bytes, not {}", args.body));
    }
    Ok(())
}

fn user_name(user: usize) -> String {
    format!("bench-{user}")
}

fn user_of(name: &Name) -> Option<usize> {
    name.as_str().strip_prefix("bench-")?.parse().ok()
}

impl<'a> Crowd<'a> {
    fn new(args: &'a PresenceArgs, context: &'a Context) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut present = vec![0; args.channels];
        let part = |channel| Part { channel, present: true, lives: 0, got: Position(0) };
        let users = (0..args.users)
            .map(|user| {
                let parts: Vec<Part> = index::sample(&mut rng, args.channels, args.per_user).iter().map(part).collect();
                parts.iter().for_each(|part| present[part.channel] += 1);
                User { link: user + 1, parts, written: 0 }
            })
            .collect();
        Self {
            args,
            context,
            prefix: format!("bench/presence-{:08x}", rand::rng().random::<u32>()),
            users,
            present,
            rng,
            measured: 0..0,
            requests: REQUESTS_FROM,
            published: 0,
            acknowledged: 0,
            expected: 0,
            missed: 0,
            out_of_order: 0,
            refused: 0,
            heartbeats: 0,
            churned: 0,
            away: VecDeque::new(),
            joins_seen: 0,
            leaves_seen: 0,
            joining: HashMap::new(),
            now: Sample::default(),
            deliveries: Latencies::new(),

            joins: Latencies::new(),
            late: Latencies::new(),
        }
    }

    fn channel(&self, channel: usize) -> Name {
        Name::new(&format!("{}/{channel}", self.prefix)).expect("a valid name")
    }

    /// Has the node sign a token for every user, since presence is of users and not of connections.
    fn mint(&self, swarm: &mut Swarm, limit: Duration) -> Result<Vec<Greeting>, LoadError> {
        let mut tokens: Vec<Option<String>> = vec![None; self.args.users];
        let (mut asked, mut answered) = (0, 0);
        swarm.run_until(limit, |swarm, seen| {
            match seen {
                Some((_, Seen::Frame { subject, op: ServerOp::Managed { json }, .. })) => {
                    let answer: Value = serde_json::from_slice(&json).unwrap_or_default();
                    let token = answer["token"].as_str().map(str::to_owned);
                    let place = tokens.get_mut((subject as usize).wrapping_sub(1));
                    match (place, token) {
                        (Some(place @ None), Some(token)) => *place = Some(token),
                        _ => return Err(LoadError::Protocol(format!("a token was expected, not {answer}"))),
                    }
                    answered += 1;
                }
                Some((_, Seen::Frame { op: ServerOp::Reject(reject), .. })) => {
                    return Err(LoadError::Refused { what: "a token for a made-up user", reject });
                }
                Some((_, Seen::Lost(reason))) => return Err(swarm.lost(reason)),
                _ => {}
            }
            while asked < self.args.users && asked - answered < AT_ONCE {
                let allow = ["read", "write"].map(|action| format!("{action}:{}/*", self.prefix));
                let command = json!({
                    "command": "token", "user": user_name(asked), "allow": allow, "ttl_s": TOKEN_TTL_S,
                });
                asked += 1;
                swarm.request(OPERATOR, asked as u32, &ClientOp::Manage { json: command.to_string().into() })?;
            }
            Ok(answered == self.args.users)
        })?;
        let greeting = |token: Option<String>| Some(Greeting::Hello { token: token? });
        let greetings: Option<Vec<_>> = tokens.into_iter().map(greeting).collect();
        greetings.ok_or_else(|| incomplete("tokens", answered, self.args.users, limit))
    }

    /// Lets every user join its channels.
    fn join(&mut self, swarm: &mut Swarm, limit: Duration) -> Result<(), LoadError> {
        let wanted = self.args.users * self.args.per_user;
        let (mut asked, mut answered) = (0, 0);
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
                // One channel of everybody after the other, so that channels fill evenly.
                let (part, user) = (asked / self.args.users, asked % self.args.users);
                self.subscribe(swarm, user, part)?;
                asked += 1;
            }
            Ok(answered == wanted)
        })?;
        if answered < wanted { Err(incomplete("subscriptions", answered, wanted, limit)) } else { Ok(()) }
    }

    /// The number of a subscription: the part and its life.
    fn number(&self, user: usize, part: usize) -> u32 {
        let lives = self.users[user].parts[part].lives % (REQUESTS_FROM / self.args.per_user as u32 - 1);
        lives * self.args.per_user as u32 + part as u32 + 1
    }

    fn subscribe(&mut self, swarm: &mut Swarm, user: usize, part: usize) -> Result<(), LoadError> {
        let channel = self.channel(self.users[user].parts[part].channel);
        let (policy, lead) = (Policy::Replay, LEAD_MESSAGES);
        let subscribe = Subscribe { channel, from: From::End, policy, lead, make: true, presence: true };
        swarm.request(self.users[user].link, self.number(user, part), &ClientOp::Subscribe(subscribe))
    }

    fn run(&mut self, swarm: &mut Swarm) -> Result<Vec<Row>, LoadError> {
        let start_ns = swarm.clock().now_ns();
        let from = start_ns + nanos(self.args.warmup);
        self.measured = from..from + nanos(self.args.duration);
        let mut schedule = |rate: f64| {
            let mut schedule = Schedule::new(Arrivals::Poisson, rate, start_ns);
            let next = schedule.next(&mut self.rng);
            (schedule, next)
        };
        let beats = self.args.users as f64 * 1e3 / PRESENCE_HEARTBEAT_MS as f64;
        let mut plan =
            Plan { publish: schedule(self.args.rate), churn: schedule(self.args.churn), heartbeat: schedule(beats) };
        let (own, mut before, mut after) = (Process::own(), None, None);
        swarm.run_until(self.args.warmup + self.args.duration + GRACE, |swarm, seen| {
            if let Some((link, seen)) = seen {
                self.see(swarm, link, seen)?;
                return Ok(false);
            }
            let at_ns = swarm.clock().now_ns();
            let (begins, ends) = (at_ns >= self.measured.start, at_ns >= self.measured.end);
            if (before.is_none() && begins) || (after.is_none() && ends) {
                let (server_cpu_s, own_cpu_s) = (self.context.server_cpu()?, own.cpu_seconds()?);
                let sample = Sample { at_ns, server_cpu_s, own_cpu_s, ..self.now };
                if before.is_none() { before = Some(sample) } else { after = Some(sample) }
            }
            if !ends {
                self.act(swarm, &mut plan, at_ns)?;
            }
            Ok(after.is_some() && self.outstanding() == 0 && self.acknowledged + self.refused >= self.published)
        })?;
        swarm.close();
        self.rows(before.zip(after))
    }

    /// Deliveries that are still to come. While users come and go it is not known to the last one who was there for a message:
    /// this counts who was meant to be.
    fn outstanding(&self) -> u64 {
        self.expected.saturating_sub(self.now.delivered + self.missed)
    }

    /// Does everything that is due.
    fn act(&mut self, swarm: &mut Swarm, plan: &mut Plan, now_ns: u64) -> Result<(), LoadError> {
        while let Some(at) = due(&mut plan.publish, now_ns, &mut self.rng) {
            if self.measured.contains(&at) {
                self.late.record(at, swarm.clock().now_ns());
            }
            self.publish(swarm, at)?;
        }
        while let Some(at) = due(&mut plan.churn, now_ns, &mut self.rng) {
            self.churn(swarm, at)?;
        }
        while due(&mut plan.heartbeat, now_ns, &mut self.rng).is_some() {
            let user = (self.heartbeats % self.users.len() as u64) as usize;
            self.heartbeats += 1;
            swarm.send_datagram(self.users[user].link, 0, &ClientOp::Heartbeat);
        }
        let next = [plan.publish.1, plan.churn.1, plan.heartbeat.1].into_iter().flatten().min();
        swarm.wake_at(next.map_or(self.measured.end, |next| next.min(self.measured.end)));
        Ok(())
    }

    fn publish(&mut self, swarm: &mut Swarm, intended_ns: u64) -> Result<(), LoadError> {
        let user = self.rng.random_range(0..self.users.len());
        let User { link, parts, written } = &mut self.users[user];
        let present: Vec<usize> = parts.iter().filter(|part| part.present).map(|part| part.channel).collect();
        // Who left all its channels has nothing to say.
        let Some(&channel) = present.get(self.rng.random_range(0..present.len().max(1))) else { return Ok(()) };
        *written += 1;
        let (link, sequence) = (*link, Sequence(*written));
        self.published += 1;
        self.requests = REQUESTS_FROM.max(self.requests.wrapping_add(1));
        self.expected += u64::from(self.present[channel].saturating_sub(1));
        let body = Bytes::from(Stamp { intended_ns, session: swarm.session(link), sequence }.body(self.args.body));
        let publish = Publish {
            channel: self.channel(channel),
            sequence,
            retry: false,
            make: true,
            body,
            key: 0,
            post: Post::default(),
        };
        swarm.request(link, self.requests, &ClientOp::Publish(publish))
    }

    /// Lets somebody leave a channel, or come back to one.
    fn churn(&mut self, swarm: &mut Swarm, intended_ns: u64) -> Result<(), LoadError> {
        self.churned += 1;
        let back = if self.churned.is_multiple_of(2) { self.away.pop_front() } else { None };
        let (user, at) = back.unwrap_or_else(|| {
            (self.rng.random_range(0..self.users.len()), self.rng.random_range(0..self.args.per_user))
        });
        // Whoever is drawn and is away already stays so until it is their turn.
        if back.is_none() && !self.users[user].parts[at].present {
            return Ok(());
        }
        let number = self.number(user, at);
        let part = &mut self.users[user].parts[at];
        part.present = !part.present;
        let (channel, comes) = (part.channel, part.present);
        if !comes {
            self.away.push_back((user, at));
            self.present[channel] -= 1;
            self.joining.remove(&(user, channel));
            self.requests = REQUESTS_FROM.max(self.requests.wrapping_add(1));
            let subscription = Subscription(number);
            return swarm.request(self.users[user].link, self.requests, &ClientOp::Unsubscribe { subscription });
        }
        (part.lives, part.got) = (part.lives + 1, Position(0));
        self.present[channel] += 1;
        if self.measured.contains(&intended_ns) && self.present[channel] > 1 {
            self.joining.insert((user, channel), intended_ns);
        }
        self.subscribe(swarm, user, at)
    }

    fn see(&mut self, swarm: &mut Swarm, link: LinkId, seen: Seen) -> Result<(), LoadError> {
        let (subject, op, bytes, at_ns) = match seen {
            Seen::Frame { subject, op, bytes, at_ns, .. } => (subject, op, bytes as u64, at_ns),
            Seen::Lost(reason) => return Err(swarm.lost(reason)),
            Seen::Ready | Seen::Bytes { .. } => return Ok(()),
        };
        if let ServerOp::Presence(presence) = op {
            self.now.presence_frames += 1;
            self.now.presence_bytes += bytes;
            if !presence.full {
                self.leaves_seen += presence.left.len() as u64;
                for seen in &presence.users {
                    self.saw(link, subject, &seen.user, at_ns);
                }
            }
            return Ok(());
        }
        self.now.other_bytes += bytes;
        match op {
            ServerOp::Delivery(delivery) => {
                self.deliver(swarm, link, subject, delivery.position, &delivery.body, at_ns)
            }
            ServerOp::Missed { from, to } => {
                self.missed += to.0.saturating_sub(from.0) + 1;
                Ok(())
            }
            ServerOp::Published { .. } => {
                self.acknowledged += 1;
                Ok(())
            }
            ServerOp::Reject(_) => {
                self.refused += 1;
                Ok(())
            }
            ServerOp::Subscribed { .. } | ServerOp::Done => Ok(()),
            ServerOp::Ended(reject) => Err(LoadError::Refused { what: "a subscription, later", reject }),
            ServerOp::ServerRestarting { .. } => Err(swarm.lost("the node is restarting".into())),
            other => Err(LoadError::Protocol(format!("nobody asked for {other:?}"))),
        }
    }

    /// The part that a subscription stands for, unless it is one of an earlier life.
    fn part(&mut self, link: LinkId, subject: u32) -> Option<&mut Part> {
        let (user, at) = (link.checked_sub(1)?, (subject.checked_sub(1)? as usize) % self.args.per_user);
        let current = self.number(user, at) == subject;
        self.users.get_mut(user)?.parts.get_mut(at).filter(|_| current)
    }

    /// Somebody saw somebody come.
    fn saw(&mut self, link: LinkId, subject: u32, user: &Name, at_ns: u64) {
        let Some(channel) = self.part(link, subject).map(|part| part.channel) else { return };
        let Some(user) = user_of(user) else { return };
        if user + 1 == link {
            return;
        }
        self.joins_seen += 1;
        if let Some(intended_ns) = self.joining.remove(&(user, channel)) {
            self.joins.record(intended_ns, at_ns);
        }
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
        self.now.delivered += 1;
        // One's own messages are not sent back, so that positions may be passed over, but never repeated.
        let Some(part) = self.part(link, subject) else { return Ok(()) };
        let in_order = position > part.got;
        part.got = position;
        self.out_of_order += u64::from(!in_order);
        if let Some(stamp) = Stamp::read(body)
            && self.measured.contains(&stamp.intended_ns)
        {
            self.deliveries.record(stamp.intended_ns, at_ns);
        }
        if position.0.is_multiple_of(CREDIT_EVERY) {
            swarm.request(link, 0, &ClientOp::Consumed { subscription: Subscription(subject), position })?;
        }
        Ok(())
    }

    fn rows(&self, samples: Option<(Sample, Sample)>) -> Result<Vec<Row>, LoadError> {
        let Some((before, after)) = samples else {
            return Err(incomplete("deliveries", self.now.delivered as usize, self.expected as usize, GRACE));
        };
        let seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        let delivered = after.delivered - before.delivered;
        let cpu = before.server_cpu_s.zip(after.server_cpu_s).map(|(before, after)| after - before);
        let presence = after.presence_bytes - before.presence_bytes;
        let all = presence + after.other_bytes - before.other_bytes;
        let deliver = Row::new("presence_deliver", &self.deliveries, seconds)
            .with("users", self.args.users as u64)
            .with("channels", self.args.channels as u64)
            .with("per_user", self.args.per_user as u64)
            .with("published", self.published)
            .with("refused", self.refused)
            .with("deliveries_per_s", round(delivered as f64 / seconds))
            .with("undelivered", self.outstanding())
            .with("missed", self.missed)
            .with("out_of_order", self.out_of_order)
            .with("presence_bytes_percent", round(100.0 * presence as f64 / all.max(1) as f64))
            .with("presence_bytes_per_s", round(presence as f64 / seconds))
            .with("bytes_per_s", round(all as f64 / seconds))
            .with("presence_frames_per_s", round((after.presence_frames - before.presence_frames) as f64 / seconds))
            .with_known("server_cpu_s", cpu)
            .with_known("deliveries_per_cpu_s", per_cpu_second(delivered, cpu))
            .with("generator_cpu_s", round(after.own_cpu_s - before.own_cpu_s))
            .with("sent_late_p99_us", round(self.late.percentile_us(99.0)));
        let join = Row::new("presence_join_seen", &self.joins, seconds)
            .with("churned", self.churned)
            .with("unseen", self.joining.len() as u64)
            .with("joins_seen", self.joins_seen)
            .with("leaves_seen", self.leaves_seen)
            .with("heartbeats", self.heartbeats);
        Ok(vec![deliver, join])
    }
}

/// The next time of a schedule, if it has come.
fn due(of: &mut (Schedule, Option<u64>), now_ns: u64, rng: &mut StdRng) -> Option<u64> {
    let at = of.1.filter(|&at| at <= now_ns)?;
    of.1 = of.0.next(rng);
    Some(at)
}

fn incomplete(what: &'static str, got: usize, wanted: usize, limit: Duration) -> LoadError {
    LoadError::Incomplete { what, got: got as u64, wanted: wanted as u64, seconds: limit.as_secs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_cannot_work_are_refused() {
        let check_args = |change: &dyn Fn(&mut PresenceArgs), good: bool| {
            let mut args = PresenceArgs {
                users: 100,
                channels: 10,
                per_user: 3,
                rate: 10.0,
                churn: 1.0,
                body: 128,
                duration: Duration::from_secs(1),
                warmup: Duration::ZERO,
            };
            change(&mut args);
            assert_eq!(check(&args).is_ok(), good, "{args:?}");
        };
        check_args(&|_| {}, true);
        check_args(&|args| args.users = 0, false);
        check_args(&|args| args.per_user = 0, false);
        check_args(&|args| args.per_user = 11, false);
        check_args(&|args| (args.channels, args.per_user) = (100_000, SUBSCRIPTIONS_MAX + 1), false);
        check_args(&|args| args.body = STAMP_BYTES - 1, false);
    }

    #[test]
    fn users_are_known_by_their_names() {
        let check = |text: &str, expected| assert_eq!(user_of(&Name::new(text).expect("valid")), expected, "{text}");
        check(&user_name(17), Some(17));
        check("bench-", None);
        check("ada", None);
    }
}
