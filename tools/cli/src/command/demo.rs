//! `thalweg demo`: a node, two people and a model, in one process and over real QUIC.

use std::fs;
use std::io::{IsTerminal as _, Stdout, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use thalweg_client::{
    AskRequest, Client, FinishReason, Item, KeyHash, Name, Part, Sampling, SubscribeOptions, Subscription, Trust,
};
use thalweg_node::Node;
use thalweg_node::config::{ModelSource, NodeConfig};
use thalweg_node::gate::{Action, Claims, Keys, Permission};

use crate::connect::block_on;
use crate::failure::{During as _, Failure, exit, output};
use crate::models::catalogue::known;
use crate::models::{Source, Store};
use crate::paths;
use crate::transcript::Transcript;

/// The model that talks.
const MODEL: &str = "smollm2-135m";
/// Where they talk.
const CHANNEL: &str = "lobby";
/// Longest wait for a message between people.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the next token: a small machine may need a while to read the question.
const TOKEN_PATIENCE: Duration = Duration::from_secs(60);
/// The most tokens of the last answer.
const TOKENS_MAX: u32 = 96;

/// Show it all in a minute: a node, two people, and a model that answers them
///
/// Fetches the model first if it is not here (98 MB, once). On a terminal you can join the conversation afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the demo's node keeps its data [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let known = known(MODEL).expect("the catalogue has the demo's model");
    let store = Store::new(paths::models());
    if store.find(MODEL)?.is_none() {
        eprintln!("Fetching {MODEL} ({}; {} MB), once.", known.licence, known.bytes() / 1_000_000);
    }
    let model = store.pull(known, &Source::Any).during("the demo needs its model")?;

    let scratch = args.data.is_none().then(Scratch::new).transpose()?;
    let data = args.data.or_else(|| scratch.as_ref().map(|scratch| scratch.0.clone())).expect("one of both");
    let name = Name::new(MODEL).expect("a valid name");
    let config = NodeConfig {
        data,
        quic: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        models: vec![ModelSource { name, path: model.path }],
        ..NodeConfig::default()
    };
    let began = Instant::now();
    let node = Node::start(config).map_err(|error| Failure::failed(error.to_string()))?;
    eprintln!("A node serves QUIC on {}, ready after {} ms.\n", node.quic_addr(), began.elapsed().as_millis());
    let place = Place::of(&node)?;
    let result = block_on(async {
        conversation(&place).await?;
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let you = std::env::var("USER").ok().and_then(|user| Name::new(&user).ok());
            let you = you.unwrap_or_else(|| Name::new("you").expect("a valid name"));
            eprintln!("\nYour turn; this is still the same node.");
            return super::chat::talk(place.connect(&you).await?, CHANNEL).await;
        }
        Ok(())
    });
    node.drain();
    let ended = node.wait().map_err(|error| Failure::failed(error.to_string()));
    result.and(ended)
}

/// A directory that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("thalweg-demo-{}-{}", std::process::id(), since.subsec_nanos());
        let path = std::env::temp_dir().join(name);
        // Fails if it is there already: nobody else's directory is used.
        fs::create_dir(&path).during(path.display())?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "could not remove {}", self.0.display());
        }
    }
}

/// What it takes to come in.
struct Place {
    server: String,
    key: KeyHash,
    keys: Keys,
}

impl Place {
    fn of(node: &Node) -> Result<Self, Failure> {
        let keys = Keys::open(node.data()).map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self { server: node.quic_addr().to_string(), key: node.key_sha256().parse()?, keys })
    }

    async fn connect(&self, user: &Name) -> Result<Client, Failure> {
        let everything = |action| Permission { action, pattern: "*".into() };
        let claims = Claims {
            tenant: Name::new("default").expect("a valid name"),
            user: user.clone(),
            allow: [Action::Read, Action::Write, Action::Ask].map(everything).into(),
            ttl: Duration::from_secs(24 * 3600),
        };
        let token = self.keys.mint(&claims).map_err(|error| Failure::failed(error.to_string()))?;
        let trust = Trust::PinnedKey(self.key);
        Ok(Client::builder().server(&self.server).trust(trust).token(token).name("thalweg-demo").connect().await?)
    }

    async fn seat(&self, user: &str) -> Result<Seat, Failure> {
        let user = Name::new(user).expect("a valid name");
        let client = self.connect(&user).await?;
        let subscription = client.subscribe(CHANNEL, SubscribeOptions::default()).await?;
        Ok(Seat { user, client, subscription })
    }
}

/// Somebody in the channel.
struct Seat {
    user: Name,
    client: Client,
    subscription: Subscription,
}

impl Seat {
    async fn say(&self, text: &str) -> Result<(), Failure> {
        let publishing = self.client.publish(CHANNEL, text.to_owned());
        within(MESSAGE_PATIENCE, "the node's acknowledgement", publishing).await?;
        Ok(())
    }

    async fn next(&mut self, patience: Duration) -> Result<Item, Failure> {
        let item = within(patience, "the next delivery", self.subscription.next()).await?;
        item.ok_or_else(|| Failure::new(exit::INCOMPLETE, format!("the subscription of {} ended", self.user)))
    }

    /// Waits for a message with this text.
    async fn hear(&mut self, text: &str) -> Result<Item, Failure> {
        match self.next(MESSAGE_PATIENCE).await? {
            Item::Message(message) if message.body == text => Ok(Item::Message(message)),
            other => Err(Failure::failed(format!("{} was to get {text:?}, not {other:?}", self.user))),
        }
    }

    /// Follows a model's answer to its end, which is one message; gives its text and in how many pieces it came.
    async fn follow(&mut self, mut transcript: Option<&mut Transcript<Stdout>>) -> Result<(String, u32), Failure> {
        let (mut pieces, mut streamed) = (0, String::new());
        loop {
            let item = self.next(TOKEN_PATIENCE).await?;
            if let Some(transcript) = transcript.as_mut() {
                transcript.item(&item).map_err(|error| output(&error))?;
            }
            match item {
                Item::Tokens { text, .. } => {
                    pieces += 1;
                    streamed.push_str(&String::from_utf8_lossy(&text));
                }
                Item::Message(message) if message.generation.is_some() => {
                    let whole = String::from_utf8_lossy(&message.body).into_owned();
                    if whole.trim().is_empty() || streamed.trim() != whole.trim() {
                        let text = format!("the answer {whole:?} is not what was streamed: {streamed:?}");
                        return Err(Failure::failed(text));
                    }
                    return Ok((whole, pieces));
                }
                Item::GenerationEnded { reason, .. } => {
                    return Err(Failure::failed(format!("the model ended without an answer: {reason}")));
                }
                _ => {}
            }
        }
    }
}

async fn within<T>(
    patience: Duration,
    what: &str,
    future: impl Future<Output = Result<T, thalweg_client::ClientError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(patience, future).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::new(exit::INCOMPLETE, format!("{what} did not come within {patience:?}"))),
    }
}

/// The scripted part. Ends well only if real tokens came to everybody.
async fn conversation(place: &Place) -> Result<(), Failure> {
    let (mut ada, mut grace) = (place.seat("ada").await?, place.seat("grace").await?);
    let out = std::io::stdout();
    let colours = out.is_terminal();
    let mut transcript = Transcript::new(out, colours);
    let show = |error: std::io::Error| output(&error);

    transcript
        .notice(&format!("ada and grace are in #{CHANNEL}, each over a QUIC connection of her own"))
        .map_err(show)?;
    let text = "Hi Grace! We share this channel with a language model.";
    ada.say(text).await?;
    transcript.item(&grace.hear(text).await?).map_err(show)?;
    let text = "Then let us ask it something.";
    grace.say(text).await?;
    transcript.item(&ada.hear(text).await?).map_err(show)?;

    let text = "@ai What is a river? Answer in one short sentence.";
    let asked = Instant::now();
    grace.say(text).await?;
    transcript.item(&ada.hear(text).await?).map_err(show)?;
    let (seen_by_ada, seen_by_grace) = tokio::try_join!(ada.follow(Some(&mut transcript)), grace.follow(None))?;
    if seen_by_ada.0 != seen_by_grace.0 {
        return Err(Failure::failed("ada and grace saw different answers"));
    }
    let (pieces, took) = (seen_by_ada.1, asked.elapsed());
    transcript.notice(&format!("both saw it grow: {pieces} pieces in {:.1} s", took.as_secs_f64())).map_err(show)?;

    ask(&ada, &mut transcript, colours).await?;
    for seat in [ada, grace] {
        drop(seat.subscription);
        seat.client.close().await;
    }
    Ok(())
}

/// A question beside the channel, on a lane of its own.
async fn ask(ada: &Seat, transcript: &mut Transcript<Stdout>, colours: bool) -> Result<(), Failure> {
    let question = "Write a two-line poem about water.";
    let show = |error: std::io::Error| output(&error);
    transcript.notice("ada asks the model alone").map_err(show)?;
    transcript.said(ada.user.as_str(), question).map_err(show)?;
    let request = AskRequest {
        sampling: Sampling { seed: 7, max_tokens: TOKENS_MAX, ..Sampling::default() },
        has_seed: true,
        ..AskRequest::prompt(question)
    };
    let asked = Instant::now();
    let mut answer = within(MESSAGE_PATIENCE, "the answer's beginning", ada.client.ask(request)).await?;
    let mut out = std::io::stdout();
    let (bold, reset) = if colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    write!(out, "{bold}ai/{}:{reset} ", answer.model()).map_err(show)?;
    let mut first = None;
    while let Some(part) = within(TOKEN_PATIENCE, "the next token", answer.next()).await? {
        // The node is in this process: it does not come back without us.
        let Part::Piece(piece) = part else { continue };
        first.get_or_insert_with(|| asked.elapsed());
        write!(out, "{}", piece.text).and_then(|()| out.flush()).map_err(show)?;
    }
    writeln!(out).map_err(show)?;
    let took = asked.elapsed();
    let finished = answer.finished().expect("next() gives None only when it is finished");
    let tokens = finished.usage.completion_tokens;
    let Some(first) = first.filter(|_| tokens > 0 && finished.reason != FinishReason::Failed) else {
        return Err(Failure::failed(format!("the model gave no tokens: {}", finished.message)));
    };
    let rate = f64::from(tokens) / took.as_secs_f64();
    let text = format!("{tokens} tokens, the first after {} ms, {rate:.0} a second", first.as_millis());
    transcript.notice(&text).map_err(show)
}
