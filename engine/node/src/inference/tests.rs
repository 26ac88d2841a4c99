//! Requests that fall back, with remotes that are scripted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::json;
use thalweg_domain::routing::FALLBACKS_MAX;
use thalweg_protocol::generation::{ChatMessage, Priority, Role, Sampling};
use thalweg_protocol::ids::CoreId;
use thalweg_remote::{RemoteModel, RemoteStage};
use thalweg_ring::Bell;

use super::*;
use crate::models::registry::Served;
use crate::models::{Entry, Registry, State};

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

/// Answers every request with the same bytes, and closes the connection.
fn remote(answer: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).expect("a line");
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
            }
            reader.read_exact(&mut vec![0; length]).expect("a body");
            stream.write_all(answer.as_bytes()).expect("written");
        }
    });
    address
}

fn good() -> String {
    let token = json!({"choices": [{"delta": {"content": "hello"}}]});
    let end = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]});
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {token}\n\ndata: {end}\n\ndata: [DONE]\n\n"
    )
}

fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// A core's end with models that run elsewhere, each with its answer and its fallback.
struct Bench {
    inference: Inference,
    registry: Arc<Registry>,
    bell: Arc<Bell>,
    stats: CoreStats,
    /// What the shard would give as the fallbacks of each.
    fallbacks: BTreeMap<Name, Vec<Name>>,
    _stage: RemoteStage,
}

impl Bench {
    fn new(models: &[(&str, String, Option<&str>)]) -> Self {
        let registry = Registry::new(Vec::new(), Bell::new().expect("an eventfd"));
        let mut remotes = Vec::new();
        for (model, answer, fallback) in models {
            let url = format!("http://{}/v1", remote(answer.clone()));
            remotes.push(RemoteModel::new(name(model), &url).expect("an address"));
            let entry = Entry {
                name: name(model),
                class: name("class"),
                cost: 0,
                fallback: fallback.map(name),
                context_tokens: 4_096,
                kind: Kind::Chat,
                place: Place::Remote,
                state: State::Ready,
            };
            registry.add(entry).expect("there is room");
        }
        let served = registry.look().0.into_iter().map(|known| {
            let (entry, gauges) = (known.entry, known.gauges);
            (entry.name, Served { kind: entry.kind, place: entry.place, gauges })
        });
        let served = Arc::new(served.collect());
        let bell = Bell::new().expect("an eventfd");
        let (stage, mut links) = RemoteStage::start(remotes, &[Arc::clone(&bell)], 64).expect("it starts");
        let links = Links { stage: None, remote: links.pop(), served };
        let inference = Inference::new(links, Instant::now());
        let next = |model: &Name| models.iter().find(|(known, ..)| *known == model.as_str()).and_then(|model| model.2);
        let chain = |model: &str| {
            let chain = std::iter::successors(next(&name(model)).map(name), |model| next(model).map(name));
            (name(model), chain.take(FALLBACKS_MAX).collect())
        };
        let fallbacks = models.iter().map(|(model, ..)| chain(model)).collect();
        Self { inference, registry, bell, stats: CoreStats::of(CoreId(0)), fallbacks, _stage: stage }
    }

    /// Asks a model, and gives what came of it: its text, and how it ended.
    fn ask(&mut self, model: &str) -> (String, Result<FinishReason, RejectCode>) {
        let submit = thalweg_shard::Submit {
            generation: GenerationId(7),
            tenant: name("default"),
            model: name(model),
            fallbacks: self.fallbacks.get(&name(model)).cloned().unwrap_or_default(),
            messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
            produced: Vec::new(),
            sampling: Sampling::default(),
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
            credit: 64,
            trace: 0,
        };
        self.inference.send(InferenceCommand::Submit(Box::new(submit)));
        let (mut text, mut end) = (String::new(), None);
        while end.is_none() {
            let taken = self.inference.receive(&mut self.stats, |event| match event {
                InferenceEvent::Token { text: more, .. } => text.push_str(std::str::from_utf8(&more).expect("UTF-8")),
                InferenceEvent::Finished { reason, .. } => end = Some(Ok(reason)),
                InferenceEvent::Refused { reject, .. } => end = Some(Err(reject.code)),
            });
            if taken == 0 {
                self.bell.prepare();
                if self.inference.is_empty() {
                    self.bell.wait(Some(Duration::from_secs(60)));
                    assert!(!self.inference.is_empty(), "nothing happened for a minute");
                }
                self.bell.awake();
            }
        }
        (text, end.expect("it ended"))
    }

    /// Asked, begun, ended, failed, busy, and fell back.
    fn counted(&self, model: &str) -> [u64; 6] {
        let known = self.registry.look().0;
        let read = known.iter().find(|known| known.entry.name == name(model)).expect("known").gauges.read();
        assert_eq!(read.running(), 0);
        [read.asked, read.begun, read.ended, read.failed, read.busy, read.fell_back]
    }
}

#[test]
fn who_fails_before_the_first_token_is_replaced() {
    let mut bench = Bench::new(&[
        ("good", good(), None),
        ("broken", status("500 Oh"), Some("good")),
        ("busy", status("429 Slow"), Some("broken")),
        ("deep", status("500 Oh"), Some("busy")),
        ("alone", status("503 Oh"), None),
        ("picky", status("400 No"), Some("good")),
        ("lost", status("500 Oh"), Some("nobody")),
    ]);
    let hello = || ("hello".to_owned(), Ok(FinishReason::Stop));
    assert_eq!(bench.ask("good"), hello());
    assert_eq!(bench.counted("good"), [1, 1, 1, 0, 0, 0]);
    assert_eq!(bench.ask("broken"), hello());
    assert_eq!((bench.counted("broken"), bench.counted("good")), ([1, 0, 0, 1, 0, 1], [2, 2, 2, 0, 0, 0]));
    // Twice at most: busy, broken, good.
    assert_eq!(bench.ask("busy"), hello());
    assert_eq!(bench.counted("busy"), [1, 0, 0, 0, 1, 1]);
    assert_eq!(bench.ask("deep"), (String::new(), Err(RejectCode::ModelUnavailable)));
    assert_eq!(bench.ask("alone"), (String::new(), Err(RejectCode::ModelUnavailable)));
    assert_eq!(bench.ask("picky"), (String::new(), Err(RejectCode::ParameterInvalid)), "another would not like it");
    assert_eq!(bench.counted("picky"), [1, 0, 1, 0, 0, 0]);
    assert_eq!(bench.ask("lost"), (String::new(), Err(RejectCode::ModelUnavailable)));
    assert_eq!(bench.ask("nobody"), (String::new(), Err(RejectCode::ModelUnknown)));
    assert!(bench.inference.asked.is_empty());
}
