//! `thalweg bench`: arguments, and which bench they mean.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::error::LoadError;
use crate::process::Process;
use crate::report::Row;
pub use crate::swarm::Idle;
use crate::{append, connect, docs, fanout, ping, presence, report, tokens};

/// The node that is measured.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it listens for QUIC.
    pub server: SocketAddr,
    /// SHA-256 of its public key (DER `SubjectPublicKeyInfo`); `None` believes whoever answers.
    pub server_key: Option<[u8; 32]>,
    /// The signed token to show.
    pub token: String,
    /// Its process, if it runs on this machine: then its processor time and memory are reported too.
    pub server_pid: Option<u32>,
}

/// What `thalweg bench` takes.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Which bench.
    #[command(subcommand)]
    pub bench: Bench,
    /// Print one JSON object a line instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// The node's process, to report its processor time and memory
    #[arg(long, global = true, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// What the generator does while there is nothing to do: `spin` needs a CPU of its own [default: spin for ping, else
    /// park]
    #[arg(long, global = true, value_enum)]
    pub idle: Option<Idle>,
}

/// The benches.
#[derive(Debug, Clone, Subcommand)]
pub enum Bench {
    /// Round trips of 64 bytes on the command lane
    Ping(PingArgs),
    /// One publisher, many subscribers
    Fanout(FanoutArgs),
    /// Many idle connections
    Connect(ConnectArgs),
    /// Concurrent questions to a model
    Tokens(TokensArgs),
    /// Messages that are answered when they are durable
    Append(AppendArgs),
    /// Many users in many channels, who see each other come and go
    Presence(PresenceArgs),
    /// Documents that several people edit at once
    Docs(DocsArgs),
}

/// `thalweg bench ping`.
#[derive(Debug, Clone, Args)]
pub struct PingArgs {
    /// Only the closed loop: the next request leaves when the answer is there
    #[arg(long, conflicts_with = "rate")]
    pub closed: bool,
    /// Only the open loop, at this many requests a second [default: both loops, the open one at 1000]
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,
    /// Publish messages instead: one row for the acknowledgement, one for the delivery to another session
    #[arg(long)]
    pub publish: bool,
    /// Bytes of a ping's frame, or of a message's body
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub bytes: usize,
    /// The server is a stock QUIC echo (application protocol `echo`), for comparison with the same generator
    #[arg(long, conflicts_with = "publish")]
    pub echo: bool,
    /// How long to measure
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before that
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = duration)]
    pub warmup: Duration,
}

/// `thalweg bench fanout`.
#[derive(Debug, Clone, Args)]
pub struct FanoutArgs {
    /// Subscriptions
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub subscribers: usize,
    /// Connections they are spread over, each a session [default: one each]
    #[arg(long, value_name = "M")]
    pub connections: Option<usize>,
    /// Bytes of a message's body
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub body: usize,
    /// Messages published a second
    #[arg(long, default_value_t = 20.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// Publish as fast as everything is delivered, with at most WINDOW messages on the way
    #[arg(long, conflicts_with = "rate")]
    pub saturate: bool,
    /// Messages on the way when saturating
    #[arg(long, default_value_t = 32, value_name = "WINDOW")]
    pub window: u64,
    /// How long to measure
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before that
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    pub warmup: Duration,
}

/// `thalweg bench connect`.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// Connections
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub connections: usize,
    /// Connections begun a second
    #[arg(long, default_value_t = 500.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// How long to keep them, idle
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub hold: Duration,
}

/// `thalweg bench tokens`.
#[derive(Debug, Clone, Args)]
pub struct TokensArgs {
    /// Questions at a time, each on a connection of its own
    #[arg(long, short = 'c', default_value_t = 1, value_name = "N")]
    pub concurrency: usize,
    /// Questions in all [default: one for each connection]
    #[arg(long, value_name = "N")]
    pub asks: Option<usize>,
    /// Ask through HTTP, at this address, instead of QUIC; any server with /v1/chat/completions can be measured
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// The prompt is continued as it stands, without a chat template (over HTTP: /v1/completions)
    #[arg(long)]
    pub raw: bool,
    /// Where the lengths of prompts and answers come from
    #[arg(long, value_enum, default_value_t = Lengths::Fixed, value_name = "FROM")]
    pub lengths: Lengths,
    /// Words of a made-up prompt
    #[arg(long, default_value_t = 32, value_name = "N", conflicts_with = "lengths")]
    pub prompt_words: u32,
    /// This prompt instead
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 128, value_name = "N", conflicts_with = "lengths")]
    pub length: u32,
    /// Words of a system message that all questions begin with
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub system_words: u32,
    /// Seed of the made-up prompts and their lengths
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub seed: u64,
    /// A token, by its number, that is not to be drawn: without those that end an answer, all answers are as long as asked
    #[arg(long, value_name = "ID")]
    pub never: Vec<u32>,
    /// So many of the readers ask with --other-token, and are reported apart
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub other: usize,
    /// The signed token of another tenant
    #[arg(long, env = "THALWEG_OTHER_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub other_token: Option<String>,
    /// Which model [default: the node's first]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Randomness of the answers; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    pub temperature: f32,
    /// So many of the readers stop reading after a few tokens, and go on when the others are done
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub stall: usize,
    /// After how many tokens a stalled reader stops
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub stall_after: u32,
    /// Longest time to wait for the next token of anybody
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    pub patience: Duration,
}

/// `thalweg bench append`.
#[derive(Debug, Clone, Args)]
pub struct AppendArgs {
    /// Connections that write, each a session
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub connections: usize,
    /// Messages on the way at a time, over all connections, when saturating
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub in_flight: usize,
    /// Bytes of a message's body
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub body: usize,
    /// Channels that are written to in turn
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub channels: usize,
    /// How durable the channels are made
    #[arg(long, value_enum, default_value_t = Kept::Disk, value_name = "WHERE")]
    pub durability: Kept,
    /// A closed loop: a message leaves for each that is answered [default, if no rate is given]
    #[arg(long, conflicts_with = "rate")]
    pub saturate: bool,
    /// An open loop at this many messages a second, whether or not the answers keep up
    #[arg(long, value_name = "R", value_parser = rate)]
    pub rate: Option<f64>,
    /// How long to measure
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before that
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    pub warmup: Duration,
}

/// `thalweg bench presence`.
#[derive(Debug, Clone, Args)]
pub struct PresenceArgs {
    /// Users, each with a connection and a token of its own, which the node mints: the token given must allow that
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub users: usize,
    /// Channels
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub channels: usize,
    /// Channels that each user is in
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub per_user: usize,
    /// Messages a second, in all channels together
    #[arg(long, default_value_t = 1_000.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// Joins and leaves a second, in all channels together
    #[arg(long, default_value_t = 50.0, value_name = "R", value_parser = rate)]
    pub churn: f64,
    /// Bytes of a message's body
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub body: usize,
    /// How long to measure
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before that
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    pub warmup: Duration,
}

/// `thalweg bench docs`.
#[derive(Debug, Clone, Args)]
pub struct DocsArgs {
    /// Documents
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub documents: usize,
    /// Editors of each document, each a session of its own
    #[arg(long, default_value_t = 50, value_name = "M")]
    pub editors: usize,
    /// Edits a second, of all editors of all documents together
    #[arg(long, default_value_t = 250.0, value_name = "R", value_parser = rate)]
    pub rate: f64,
    /// How they edit
    #[arg(long, value_enum, default_value_t = EditForm::Updates, value_name = "FORM")]
    pub form: EditForm,
    /// Documents that one connection has open
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub per_connection: usize,
    /// Characters of each document in the beginning
    #[arg(long, default_value_t = 3_000, value_name = "N")]
    pub page: usize,
    /// Editors of each document that apply all they get, to be compared in the end
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub full: usize,
    /// Times a second that each editor tells where its cursor is
    #[arg(long, default_value_t = 0.0, value_name = "R")]
    pub awareness: f64,
    /// Everybody types what was recorded here, a JSON array of [place, code units that go, text that comes], instead of what
    /// a seeded model types
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Seed of what is typed, by whom, and when
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub seed: u64,
    /// How long to measure
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before that
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    pub warmup: Duration,
    /// How long to stay connected when everybody closed their documents, to see what memory that gives back
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = duration)]
    pub linger: Duration,
}

/// How editors of documents edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EditForm {
    /// With replicas: Yjs updates.
    Updates,
    /// Without: positional operations.
    Operations,
}

/// Where the lengths of prompts and answers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Lengths {
    /// From --prompt-words and --length.
    Fixed,
    /// Drawn, by seed, from real chats: all that was said, and the next turn.
    Chat,
}

/// Where messages are when they are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kept {
    /// Synced to the disk.
    Disk,
    /// In the node's memory.
    Memory,
}

impl Kept {
    /// As users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }
}

/// What every bench needs to know.
pub(crate) struct Context {
    pub(crate) target: Target,
    pub(crate) server: Option<Process>,
    pub(crate) idle: Option<Idle>,
}

impl Context {
    /// Processor seconds of the server so far, if its process is known.
    pub(crate) fn server_cpu(&self) -> Result<Option<f64>, LoadError> {
        self.server.as_ref().map(Process::cpu_seconds).transpose()
    }
}

/// Runs the bench and prints its rows to standard output.
///
/// # Errors
/// If there is no result; [`LoadError::exit_code`] says how the command ends.
pub fn run(args: &BenchArgs, target: Target) -> Result<(), LoadError> {
    let rows = measure(args, target)?;
    report::write(&rows, args.json, &mut io::stdout().lock()).map_err(LoadError::io("writing the result"))
}

/// Runs the bench and returns its rows.
///
/// # Errors
/// As for [`run`].
pub fn measure(args: &BenchArgs, target: Target) -> Result<Vec<Row>, LoadError> {
    let server = args.server_pid.or(target.server_pid).map(Process::new).transpose()?;
    let context = Context { target, server, idle: args.idle };
    match &args.bench {
        Bench::Ping(args) => ping::run(args, &context),
        Bench::Fanout(args) => fanout::run(args, &context),
        Bench::Connect(args) => connect::run(args, &context),
        Bench::Tokens(args) => tokens::run(args, &context),
        Bench::Append(args) => append::run(args, &context),
        Bench::Presence(args) => presence::run(args, &context),
        Bench::Docs(args) => docs::run(args, &context),
    }
}

/// A time like `10s`, `500ms`, `5m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a time; write one like 10s, 500ms, 5m or 1h");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(invalid()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 && rate <= 1e7 => Ok(rate),
        _ => Err(format!("{text:?} is not a rate; give a number above 0, at most 10 million a second")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).map(|cli| cli.bench)
    }

    #[test]
    fn command_lines_are_taken_or_refused() {
        let check = |line: &str, good: bool| {
            let result = parse(line);
            assert_eq!(result.is_ok(), good, "{line:?}: {:?}", result.err());
        };
        check("ping", true);
        check("ping --closed --duration 5s --json", true);
        check("ping --rate 1000 --publish --server-pid 7", true);
        check("ping --rate 1000 --closed", false);
        check("ping --rate 0", false);
        check("ping --rate NaN", false);
        check("ping --duration 10", false);
        check("fanout --subscribers 10000 --connections 100 --saturate", true);
        check("fanout --saturate --rate 5", false);
        check("connect --connections 10000 --rate 500 --hold 5m", true);
        check("tokens -c 16 --stall 1 --length 64", true);
        check("tokens -c 101 --http localhost:8080 --raw --never 0 --never 2 --other 1 --system-words 400", true);
        check("tokens --lengths chat --seed 7", true);
        check("tokens --lengths chat --length 7", false);
        check("tokens --lengths long", false);
        check("append", true);
        check("append --saturate --in-flight 512 --connections 2 --channels 16 --durability memory", true);
        check("append --rate 20000 --body 1024 --duration 5s --warmup 1s --json", true);
        check("append --rate 20000 --saturate", false);
        check("append --durability replicated", false);
        check("presence --users 100 --channels 10 --per-user 3 --rate 50 --churn 5 --duration 2s", true);
        check("presence --churn 0", false);
        check("docs --documents 1000 --editors 5 --rate 2500 --per-connection 50 --linger 70s --json", true);
        check("docs --form operations --trace typed.json --awareness 1 --seed 7", true);
        check("docs --form text", false);
        check("", false);
    }

    #[test]
    fn times_have_units() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_millis() as u64), expected, "{text:?}");
        };
        check("10s", Some(10_000));
        check("1.5s", Some(1_500));
        check("250ms", Some(250));
        check("5m", Some(300_000));
        check("1h", Some(3_600_000));
        check("10", None);
        check("s", None);
        check("-1s", None);
        check("1d", None);
        check("99999999999999999999999h", None);
    }
}
