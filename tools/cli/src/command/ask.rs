//! `thalweg ask`: one question to a model.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thalweg_client::{
    AskRequest, ChatMessage, Constraint, FinishReason, Generation, GenerationId, Name, OnDetach, Part, Priority, Role,
    Sampling, Text, TraceContext,
};
use thalweg_protocol::limits::{CONSTRAINT_BYTES_MAX, PROMPT_BYTES_MAX};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};
use crate::{duration, lines};

/// How long to wait for a node that went away in the middle of an answer.
const RECONNECT: Duration = Duration::from_secs(30);

/// Ask a model; its answer is printed as it is written
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The question; `-` reads it from standard input
    #[arg(required_unless_present = "resume", conflicts_with = "resume")]
    prompt: Option<String>,
    /// Which model [default: the node's first]
    #[arg(long, short, value_name = "M")]
    model: Option<String>,
    /// Instructions to the model
    #[arg(long, value_name = "S")]
    system: Option<String>,
    /// Most tokens to write [default: 512]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; up to 2 is more surprising [default: 0.7]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw among the likeliest tokens whose probabilities sum to this [default: 0.95]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw among this many likeliest tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Draw among tokens at least this part as likely as the likeliest; 0 for all
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide the logits of tokens that were there before by this; above 1 against repetition
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// Take this from a token's logit for each time it is in the answer; -2 to 2
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Take this from a token's logit if it is in the answer; -2 to 2
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// With --json: say how likely each token was, and the N likeliest beside it; at most 20
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<u8>,
    #[command(flatten)]
    constraint: ConstraintArgs,
    /// The question is the beginning of a text that goes on: no chat template
    #[arg(long, conflicts_with = "system")]
    raw: bool,
    /// Its place among your tenant's questions
    #[arg(long, value_name = "P", value_enum, default_value_t = PriorityArg::Normal)]
    priority: PriorityArg,
    /// Give up if the answer has not begun by then
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// The same seed and question give the same answer
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// End before this text; repeat for more
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// How long an answer waits for a reader that went away, before it is cancelled
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    keep: Duration,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Go on reading an answer that was begun before
    #[arg(long, value_name = "ID")]
    resume: Option<GenerationId>,
    /// With --resume: from this token on
    #[arg(long, value_name = "N", requires = "resume", conflicts_with = "prompt")]
    from: Option<u32>,
    /// The trace this is part of, as W3C Trace Context writes it
    #[arg(long, value_name = "TEXT", env = "TRACEPARENT")]
    traceparent: Option<TraceContext>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What the answer has to be.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct ConstraintArgs {
    /// The answer is a JSON object
    #[arg(long)]
    json_object: bool,
    /// The answer is JSON that the JSON Schema in this file accepts
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// The answer is matched by this regular expression, as a whole
    #[arg(long, value_name = "RE")]
    regex: Option<String>,
    /// The answer is of the grammar in this file, in the Lark notation
    #[arg(long, value_name = "FILE")]
    lark: Option<PathBuf>,
}

impl ConstraintArgs {
    fn read(&self) -> Result<Constraint, Failure> {
        Ok(match self {
            Self { json_object: true, .. } => Constraint::Json,
            Self { json_schema: Some(path), .. } => Constraint::JsonSchema(read_constraint(path)?),
            Self { lark: Some(path), .. } => Constraint::Lark(read_constraint(path)?),
            Self { regex: Some(regex), .. } => Constraint::Regex(regex.clone()),
            _ => Constraint::None,
        })
    }
}

fn read_constraint(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("reading {}: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(CONSTRAINT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| Failure::failed(format!("{} is not UTF-8: {error}", path.display())))
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PriorityArg {
    Low,
    Normal,
    High,
}

impl PriorityArg {
    fn priority(self) -> Priority {
        match self {
            Self::Low => Priority::Low,
            Self::Normal => Priority::Normal,
            Self::High => Priority::High,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  thalweg ask \"Name three rivers.\"
  git diff | thalweg ask - --system \"Write a commit message for this diff.\"
  thalweg ask \"Tell a story.\" --json --seed 7 --temperature 0.8
  thalweg ask \"A person from a novel.\" --json-schema person.json
  thalweg ask \"Is water wet?\" --regex \"yes|no\"
  thalweg ask --resume g-00ff000100000007 --from 12     after a lost terminal; the id was printed first

Ctrl-C cancels the answer on the node too.";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let request = args.resume.is_none().then(|| request(&args)).transpose()?;
    block_on(ask(args, request))
}

fn request(args: &Args) -> Result<AskRequest, Failure> {
    let prompt = match args.prompt.as_deref() {
        Some("-") => read_prompt()?,
        Some(prompt) => prompt.to_owned(),
        None => return Err(Failure::usage("there is no question")),
    };
    let system = args.system.iter().map(|content| ChatMessage { role: Role::System, content: content.clone() });
    let messages = system.chain([ChatMessage { role: Role::User, content: prompt }]).collect();
    let default = Sampling::default();
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(default.temperature),
        top_p: args.top_p.unwrap_or(default.top_p),
        top_k: args.top_k.unwrap_or(default.top_k),
        seed: args.seed.unwrap_or_default(),
        max_tokens: args.max_tokens.unwrap_or(default.max_tokens),
        stop: args.stop.clone(),
        min_p: args.min_p.unwrap_or(default.min_p),
        repetition_penalty: args.repetition_penalty.unwrap_or(default.repetition_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(default.frequency_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(default.presence_penalty),
        logit_bias: Vec::new(),
        logprobs: args.logprobs,
        constraint: args.constraint.read()?,
    };
    let model = args.model.as_deref().map(Name::new).transpose();
    let model = model.map_err(|error| Failure::usage(format!("--model {error}")))?;
    let keep_ms = u64::try_from(args.keep.as_millis()).unwrap_or(u64::MAX);
    let on_detach = if keep_ms == 0 { OnDetach::Cancel } else { OnDetach::Keep(keep_ms) };
    let deadline_ms = args.deadline.map_or(0, |deadline| u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX));
    let request = AskRequest {
        model,
        messages,
        sampling,
        has_seed: args.seed.is_some(),
        on_detach,
        lead: 0,
        raw: args.raw,
        priority: args.priority.priority(),
        deadline_ms,
    };
    request.check().map_err(|reject| Failure::usage(reject.message))?;
    Ok(request)
}

fn read_prompt() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(PROMPT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::failed(format!("reading standard input: {error}")))?;
    String::from_utf8(bytes).map_err(|error| Failure::failed(format!("the question is not UTF-8: {error}")))
}

async fn ask(args: Args, request: Option<AskRequest>) -> Result<(), Failure> {
    let client = args.connect.connect("ask", RECONNECT).await?;
    let client = args.traceparent.map_or_else(|| client.clone(), |trace| client.with_trace(trace));
    let mut generation = match (request, args.resume) {
        (Some(request), _) => client.ask(request).await?,
        (None, Some(id)) => client.watch(id, args.from.unwrap_or(0), None).await?,
        (None, None) => return Err(Failure::usage("there is no question")),
    };
    let id = generation.id();
    tokio::select! {
        result = print(&args, &mut generation) => result?,
        _ = tokio::signal::ctrl_c() => {
            client.cancel(id).await?;
            return Err(Failure::new(exit::INCOMPLETE, "cancelled"));
        }
    }
    drop(generation);
    client.close().await;
    Ok(())
}

async fn print(args: &Args, generation: &mut Generation) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let mut put = |text: &str, end: &str| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(end.as_bytes()));
        written.and_then(|()| out.flush()).map_err(|error| output(&error))
    };
    if args.json {
        put(&lines::asked(generation), "\n")?;
    } else {
        eprintln!("{} {}", generation.id(), generation.model());
    }
    let mut text = Text::starting_at(args.from.unwrap_or(0));
    // An answer that began and did not end is incomplete, whatever it was that ended it.
    let incomplete = |error: thalweg_client::ClientError| Failure::new(exit::INCOMPLETE, error.to_string());
    while let Some(part) = generation.next().await.map_err(incomplete)? {
        text.take(&part);
        match part {
            Part::Piece(piece) if args.json => put(&lines::token(&piece), "\n")?,
            Part::Piece(piece) => put(&piece.text, "")?,
            Part::Rewound { to } if args.json => put(&lines::rewound(to), "\n")?,
            Part::Rewound { to } => {
                // What is on the screen cannot be taken back, but what stands can be shown again.
                put("", "\n")?;
                eprintln!("thalweg: the node came back with less of the answer; it goes on after token {to}");
                put(text.as_str(), "")?;
            }
        }
    }
    let finished = generation.finished().expect("next() gives None only when it is finished");
    if args.json {
        put(&lines::finished(text.as_str(), finished), "\n")?;
    } else {
        put("", "\n")?;
    }
    match finished.reason {
        FinishReason::Stop | FinishReason::Length => Ok(()),
        FinishReason::Cancelled => Err(Failure::new(exit::INCOMPLETE, "the answer was cancelled")),
        FinishReason::Failed => Err(Failure::failed(format!("the model failed: {}", finished.message))),
    }
}
