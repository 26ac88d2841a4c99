//! `bench tokens`: concurrent questions to a model; some readers may stop reading for a while.

use std::time::Duration;

use quinn_proto::StreamId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use thalweg_protocol::generation::{AskRequest, FinishReason};
use thalweg_protocol::ids::{Name, Watch};
use thalweg_protocol::limits::LEAD_TOKENS;
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_workload::behaviour::prompt;

use crate::cli::{Context, Idle, TokensArgs};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::process::Process;
use crate::report::{Row, round};
use crate::swarm::{Greeting, LinkId, Seen, Swarm};

/// Handshakes under way at a time.
const HANDSHAKES: usize = 64;
/// How long connections may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// A reader reports what it consumed after so many tokens.
const CREDIT_EVERY: u32 = LEAD_TOKENS / 4;

/// A question that is being answered, on a link of its own.
#[derive(Debug, Default, Clone)]
struct Asker {
    /// Request and watch number of the current question; 0 before the first.
    watch: u32,
    asked_ns: u64,
    first_ns: Option<u64>,
    last_ns: u64,
    /// Index of the token that comes next.
    next: u32,
    /// Up to where credit was given.
    reported: u32,
    lane: Option<StreamId>,
    busy: bool,
    stall: Stall,
}

/// Whether a reader is one of those that stop.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stall {
    #[default]
    Never,
    /// It will stop.
    Due,
    /// It stopped at this token.
    Stopped,
    /// It reads again; it had got so many tokens when it went on.
    Resumed(u32),
}

struct Tokens<'a> {
    args: &'a TokensArgs,
    askers: Vec<Asker>,
    /// Questions that are left to ask.
    left: usize,
    rng: StdRng,
    first: Latencies,
    between: Latencies,
    resumed: Latencies,
    /// Tokens of the readers that do not stall, and when the last of them came.
    tokens: u64,
    last_ns: u64,
    finished: u64,
    stopped_early: u64,
    stalled_tokens: u64,
    stalled_finished: u64,
    /// Tokens a second of each answer of a reader that does not stall, first to last token.
    rates: Vec<f64>,
    /// When anybody got something, for patience.
    moved_ns: u64,
}

pub(crate) fn run(args: &TokensArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    if args.concurrency == 0 || args.stall >= args.concurrency.max(1) {
        let text = format!("{} of {} readers cannot stall: one at least must read on", args.stall, args.concurrency);
        return Err(LoadError::Usage(text));
    }
    let greeting = Greeting::Hello { token: context.target.token.clone() };
    let mut swarm = Swarm::new(&context.target, greeting, context.idle.unwrap_or(Idle::Park))?;
    swarm.open_all(args.concurrency, HANDSHAKES, CONNECT_LIMIT)?;
    let mut state = Tokens::new(args);
    let (own, cpu_before) = (Process::own(), context.server_cpu()?);
    let (start_ns, own_before) = (swarm.clock().now_ns(), own.cpu_seconds()?);
    state.moved_ns = start_ns;
    for link in 0..args.concurrency {
        state.ask(&mut swarm, link)?;
    }
    let limit = Duration::from_secs(24 * 3600);
    swarm.run_until(limit, |swarm, seen| match seen {
        Some((link, seen)) => state.see(swarm, link, seen).map(|()| false),
        None => state.turn(swarm),
    })?;
    swarm.close();
    let cpu = cpu_before.zip(context.server_cpu()?).map(|(before, after)| after - before);
    Ok(state.rows(start_ns, cpu, own.cpu_seconds()? - own_before))
}

impl<'a> Tokens<'a> {
    fn new(args: &'a TokensArgs) -> Self {
        let mut askers = vec![Asker::default(); args.concurrency];
        askers.iter_mut().take(args.stall).for_each(|asker| asker.stall = Stall::Due);
        Self {
            args,
            askers,
            left: args.asks.unwrap_or(args.concurrency).max(args.concurrency),
            rng: StdRng::seed_from_u64(1),
            first: Latencies::new(),
            between: Latencies::new(),
            resumed: Latencies::new(),
            tokens: 0,
            last_ns: 0,
            finished: 0,
            stopped_early: 0,
            stalled_tokens: 0,
            stalled_finished: 0,
            rates: Vec::new(),
            moved_ns: 0,
        }
    }

    fn ask(&mut self, swarm: &mut Swarm, link: LinkId) -> Result<(), LoadError> {
        self.left = self.left.saturating_sub(1);
        let text = match &self.args.prompt {
            Some(text) => text.clone(),
            None => prompt(self.args.prompt_words, &mut self.rng),
        };
        let mut request = AskRequest::prompt(text);
        if let Some(model) = &self.args.model {
            let name = Name::new(model).map_err(|error| LoadError::Usage(format!("the model's name {error}")))?;
            request.model = Some(name);
        }
        request.sampling.temperature = self.args.temperature;
        request.sampling.max_tokens = self.args.length;
        (request.sampling.seed, request.has_seed) = (link as u64, true);
        request.check().map_err(|reject| LoadError::Refused { what: "a question", reject })?;
        let asker = &mut self.askers[link];
        let (watch, stall) = (asker.watch + 1, asker.stall);
        *asker = Asker { watch, stall, asked_ns: swarm.clock().now_ns(), busy: true, ..Asker::default() };
        swarm.request(link, watch, &ClientOp::Ask(Box::new(request)))
    }

    /// Once a turn: lets the stalled readers go on when the others are done; whether all is over.
    fn turn(&mut self, swarm: &mut Swarm) -> Result<bool, LoadError> {
        if self.askers.iter().all(|asker| !asker.busy) {
            return Ok(true);
        }
        let now_ns = swarm.clock().now_ns();
        let others_done = self.askers.iter().all(|asker| !asker.busy || asker.stall == Stall::Stopped);
        if others_done {
            for link in 0..self.askers.len() {
                let asker = &mut self.askers[link];
                if asker.stall == Stall::Stopped {
                    asker.stall = Stall::Resumed(asker.next);
                    (asker.reported, asker.last_ns, self.moved_ns) = (asker.next, now_ns, now_ns);
                    let credit = ClientOp::TokensConsumed { watch: Watch(asker.watch), index: asker.next };
                    let lane = asker.lane;
                    swarm.request(link, 0, &credit)?;
                    lane.into_iter().for_each(|lane| swarm.resume(link, lane));
                }
            }
        }
        if now_ns.saturating_sub(self.moved_ns) > nanos(self.args.patience) {
            let got = self.finished + self.stalled_finished;
            let wanted = got + self.askers.iter().filter(|asker| asker.busy).count() as u64 + self.left as u64;
            let seconds = self.args.patience.as_secs();
            return Err(LoadError::Incomplete { what: "answers (no token for a while)", got, wanted, seconds });
        }
        swarm.wake_at(now_ns + 100_000_000);
        Ok(false)
    }

    fn see(&mut self, swarm: &mut Swarm, link: LinkId, seen: Seen) -> Result<(), LoadError> {
        let (lane, op, at_ns) = match seen {
            Seen::Frame { lane, op, at_ns, .. } => (lane, op, at_ns),
            Seen::Lost(reason) => return Err(swarm.lost(reason)),
            Seen::Ready | Seen::Bytes { .. } => return Ok(()),
        };
        match op {
            ServerOp::Tokens { index, count, .. } => self.arrived(swarm, link, lane, index, count, at_ns),
            ServerOp::Finished { reason, usage, message } => {
                if reason == FinishReason::Failed {
                    return Err(LoadError::Protocol(format!("the generation failed: {message}")));
                }
                self.ended(swarm, link, usage.completion_tokens)
            }
            ServerOp::Asked { .. } => Ok(()),
            ServerOp::Reject(reject) | ServerOp::Ended(reject) => {
                Err(LoadError::Refused { what: "a question", reject })
            }
            ServerOp::ServerRestarting { .. } => Err(swarm.lost("the node is restarting".into())),
            other => Err(LoadError::Protocol(format!("nobody asked for {other:?}"))),
        }
    }

    fn arrived(
        &mut self,
        swarm: &mut Swarm,
        link: LinkId,
        lane: StreamId,
        index: u32,
        count: u32,
        at_ns: u64,
    ) -> Result<(), LoadError> {
        self.moved_ns = at_ns;
        let asker = &mut self.askers[link];
        if index != asker.next {
            return Err(LoadError::Protocol(format!("tokens from {index} on came when {} was next", asker.next)));
        }
        (asker.next, asker.lane) = (index + count, Some(lane));
        let steady = asker.stall == Stall::Never;
        match asker.first_ns {
            None => {
                asker.first_ns = Some(at_ns);
                if steady {
                    self.first.record(asker.asked_ns, at_ns);
                }
            }
            Some(_) if count > 0 => {
                // Tokens that came together took their share of the time each.
                let each_ns = at_ns.saturating_sub(asker.last_ns) / u64::from(count);
                match asker.stall {
                    Stall::Never => self.between.record_many(each_ns, u64::from(count)),
                    Stall::Resumed(_) => self.resumed.record_many(each_ns, u64::from(count)),
                    Stall::Due | Stall::Stopped => {}
                }
            }
            Some(_) => {}
        }
        asker.last_ns = at_ns;
        if steady {
            self.tokens += u64::from(count);
            self.last_ns = at_ns;
        }
        if asker.stall == Stall::Due && asker.next >= self.args.stall_after {
            asker.stall = Stall::Stopped;
            swarm.pause(link, lane);
        }
        if asker.stall != Stall::Stopped && asker.next - asker.reported >= CREDIT_EVERY {
            asker.reported = asker.next;
            let credit = ClientOp::TokensConsumed { watch: Watch(asker.watch), index: asker.next };
            swarm.request(link, 0, &credit)?;
        }
        Ok(())
    }

    fn ended(&mut self, swarm: &mut Swarm, link: LinkId, announced: u32) -> Result<(), LoadError> {
        let asker = &mut self.askers[link];
        if asker.next != announced {
            let text = format!("{} tokens came, the end announced {announced}", asker.next);
            return Err(LoadError::Protocol(text));
        }
        asker.busy = false;
        if asker.stall != Stall::Never {
            self.stalled_finished += 1;
            self.stalled_tokens += u64::from(announced);
            return Ok(());
        }
        self.finished += 1;
        self.stopped_early += u64::from(announced < self.args.length);
        if let Some(first_ns) = asker.first_ns
            && asker.last_ns > first_ns
            && announced > 1
        {
            self.rates.push(f64::from(announced - 1) * 1e9 / (asker.last_ns - first_ns) as f64);
        }
        if self.left > 0 { self.ask(swarm, link) } else { Ok(()) }
    }

    fn rows(&mut self, start_ns: u64, server_cpu: Option<f64>, own_cpu: f64) -> Vec<Row> {
        let seconds = self.last_ns.saturating_sub(start_ns) as f64 / 1e9;
        self.rates.sort_by(f64::total_cmp);
        let median = self.rates.get(self.rates.len() / 2).copied();
        let first = Row::new("first_token", &self.first, seconds)
            .with("concurrency", self.args.concurrency as u64)
            .with("answers", self.finished)
            .with("answers_shorter_than_asked", self.stopped_early);
        let between = Row::new("inter_token", &self.between, seconds)
            .with("tokens", self.tokens)
            .with("tokens_per_s", round(self.tokens as f64 / seconds.max(1e-9)))
            .with_known("tokens_per_s_each_min", self.rates.first().copied())
            .with_known("tokens_per_s_each_median", median)
            .with_known("server_cpu_s", server_cpu)
            .with("generator_cpu_s", round(own_cpu));
        let mut rows = vec![first, between];
        if self.args.stall > 0 {
            let held: Vec<u32> = self.askers.iter().filter_map(Asker::held).collect();
            let row = Row::new("stalled_reader_resumed", &self.resumed, 0.0)
                .with("stalled", self.args.stall as u64)
                .with("stopped_in_time", held.len() as u64)
                .with("tokens_when_resumed", held)
                .with("tokens_in_the_end", self.stalled_tokens)
                .with("complete", self.stalled_finished == self.args.stall as u64);
            rows.push(row);
        }
        rows
    }
}

impl Asker {
    /// Tokens a stalled reader had when it went on.
    fn held(&self) -> Option<u32> {
        match self.stall {
            Stall::Resumed(tokens) => Some(tokens),
            Stall::Never | Stall::Due | Stall::Stopped => None,
        }
    }
}
