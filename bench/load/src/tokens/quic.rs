//! Questions over QUIC, each reader on a connection of its own.

use std::time::Duration;

use quinn_proto::StreamId;
use thalweg_protocol::generation::{AskRequest, ChatMessage, FinishReason, Role};
use thalweg_protocol::ids::{Name, Watch};
use thalweg_protocol::limits::LEAD_TOKENS;
use thalweg_protocol::op::{ClientOp, ServerOp};

use super::book::{Book, Turn, is_other};
use super::questions::{NEVER, Questions};
use crate::cli::{Context, Idle, TokensArgs};
use crate::error::LoadError;
use crate::process::Process;
use crate::report::Row;
use crate::swarm::{Greeting, LinkId, Seen, Swarm};

/// Handshakes under way at a time.
const HANDSHAKES: usize = 64;
/// How long connections may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long a run may take; its patience ends it sooner.
const RUN_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// A reader reports what it consumed after so many tokens.
const CREDIT_EVERY: u32 = LEAD_TOKENS / 4;
/// The book is looked at this often at least, ns.
const TURN_NS: u64 = 100_000_000;

/// What the transport needs to know of a reader.
#[derive(Debug, Default, Clone)]
struct Reader {
    /// Request and watch number of the current question; 0 before the first.
    watch: u32,
    /// Up to where credit was given.
    reported: u32,
    lane: Option<StreamId>,
}

struct Tokens<'a> {
    args: &'a TokensArgs,
    readers: Vec<Reader>,
    questions: Questions<'a>,
    book: Book,
}

pub(super) fn run(args: &TokensArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    let hello = |token: &str| Greeting::Hello { token: token.to_owned() };
    let greeting = hello(&context.target.token);
    let mut swarm = Swarm::new(&context.target, greeting.clone(), context.idle.unwrap_or(Idle::Park))?;
    let other = hello(args.other_token.as_deref().unwrap_or_default());
    let greetings = (0..args.concurrency).map(|n| if is_other(args, n) { other.clone() } else { greeting.clone() });
    swarm.open_each(greetings, HANDSHAKES, CONNECT_LIMIT)?;
    let (own, cpu_before) = (Process::own(), context.server_cpu()?);
    let own_before = own.cpu_seconds()?;
    let mut state = Tokens {
        args,
        readers: vec![Reader::default(); args.concurrency],
        questions: Questions::new(args),
        book: Book::new(args, swarm.clock().now_ns()),
    };
    for link in 0..args.concurrency {
        state.ask(&mut swarm, link)?;
    }
    swarm.run_until(RUN_LIMIT, |swarm, seen| match seen {
        Some((link, seen)) => state.see(swarm, link, seen).map(|()| false),
        None => state.turn(swarm),
    })?;
    swarm.close();
    let cpu = cpu_before.zip(context.server_cpu()?).map(|(before, after)| after - before);
    Ok(state.book.rows(cpu, own.cpu_seconds()? - own_before, false))
}

impl Tokens<'_> {
    fn ask(&mut self, swarm: &mut Swarm, link: LinkId) -> Result<(), LoadError> {
        let question = self.questions.next();
        let mut request = AskRequest::prompt(question.prompt);
        if let Some(system) = question.system {
            request.messages.insert(0, ChatMessage { role: Role::System, content: system });
        }
        if let Some(model) = &self.args.model {
            let name = Name::new(model).map_err(|error| LoadError::Usage(format!("the model's name {error}")))?;
            request.model = Some(name);
        }
        request.raw = self.args.raw;
        request.sampling.temperature = self.args.temperature;
        request.sampling.max_tokens = question.length;
        request.sampling.logit_bias = self.args.never.iter().map(|&token| (token, NEVER)).collect();
        (request.sampling.seed, request.has_seed) = (question.seed, true);
        request.check().map_err(|reject| LoadError::Refused { what: "a question", reject })?;
        let watch = self.readers[link].watch + 1;
        self.readers[link] = Reader { watch, ..Reader::default() };
        self.book.asked(link, question.length, swarm.clock().now_ns());
        swarm.request(link, watch, &ClientOp::Ask(Box::new(request)))
    }

    /// Once a turn: lets the stalled readers go on when the others are done; whether all is over.
    fn turn(&mut self, swarm: &mut Swarm) -> Result<bool, LoadError> {
        let now_ns = swarm.clock().now_ns();
        match self.book.turn(now_ns)? {
            Turn::Over => return Ok(true),
            Turn::Wait => {}
            Turn::Resume(readers) => {
                for (link, got) in readers {
                    let reader = &mut self.readers[link];
                    reader.reported = got;
                    let credit = ClientOp::TokensConsumed { watch: Watch(reader.watch), index: got };
                    let lane = reader.lane;
                    swarm.request(link, 0, &credit)?;
                    lane.into_iter().for_each(|lane| swarm.resume(link, lane));
                }
            }
        }
        swarm.wake_at(now_ns + TURN_NS);
        Ok(false)
    }

    fn see(&mut self, swarm: &mut Swarm, link: LinkId, seen: Seen) -> Result<(), LoadError> {
        let (lane, op, at_ns) = match seen {
            Seen::Frame { lane, op, at_ns, .. } => (lane, op, at_ns),
            Seen::Lost(reason) => return Err(swarm.lost(reason)),
            Seen::Ready | Seen::Bytes { .. } => return Ok(()),
        };
        match op {
            ServerOp::Tokens { index, count, .. } => {
                let next = self.book.got(link);
                if index != next {
                    return Err(LoadError::Protocol(format!("tokens from {index} on came when {next} was next")));
                }
                self.arrived(swarm, link, lane, count, at_ns)
            }
            ServerOp::Finished { reason, usage, message } => {
                if reason == FinishReason::Failed {
                    return Err(LoadError::Protocol(format!("the generation failed: {message}")));
                }
                let (got, announced) = (self.book.got(link), usage.completion_tokens);
                if got != announced {
                    return Err(LoadError::Protocol(format!("{got} tokens came, the end announced {announced}")));
                }
                self.book.ended(link, announced);
                if self.book.has_more() { self.ask(swarm, link) } else { Ok(()) }
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
        count: u32,
        at_ns: u64,
    ) -> Result<(), LoadError> {
        self.readers[link].lane = Some(lane);
        if self.book.arrived(link, count, at_ns) {
            swarm.pause(link, lane);
        }
        let (reader, got) = (&mut self.readers[link], self.book.got(link));
        if !self.book.is_stopped(link) && got - reader.reported >= CREDIT_EVERY {
            reader.reported = got;
            let credit = ClientOp::TokensConsumed { watch: Watch(reader.watch), index: got };
            swarm.request(link, 0, &credit)?;
        }
        Ok(())
    }
}
