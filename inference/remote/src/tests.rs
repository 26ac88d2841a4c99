//! The stage against remotes that are scripted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thalweg_protocol::generation::{ChatMessage, FinishReason, Priority, Role, Sampling, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::Bell;
use thalweg_worker::stage::{Command, Embed, Event, Submit, Times};

use crate::limits::{REMOTE_RUNNING_MAX, REMOTE_WAITING_MAX};
use crate::{Key, RemoteError, RemoteLink, RemoteModel, RemoteStage};

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// What servers tell their tests, at the most.
const TOLD_MAX: usize = 1_024;

/// What a remote was asked.
struct Asked {
    head: String,
    body: Value,
    stream: TcpStream,
}

impl Asked {
    /// Says something. False if nobody is there.
    fn say(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).and_then(|()| self.stream.flush()).is_ok()
    }

    fn begin(&mut self) -> bool {
        self.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n")
    }

    fn token(&mut self, text: &str) -> bool {
        self.say(&format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]})))
    }

    fn end(&mut self, reason: &str) -> bool {
        let usage = json!({"prompt_tokens": 12, "completion_tokens": 3});
        self.say(&format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})))
            && self.say(&format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage})))
    }

    /// Waits until the other side closes the connection.
    fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good.
        let _ = self.stream.read_to_end(&mut rest);
    }
}

/// Answers every request on a thread of its own, as `script` does. Lives until the process ends.
fn remote(script: impl Fn(Asked) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let script = Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, script) = (stream.expect("accepted"), Arc::clone(&script));
            std::thread::spawn(move || script(read(stream)));
        }
    });
    address
}

fn read(stream: TcpStream) -> Asked {
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    Asked { head, body: serde_json::from_slice(&body).expect("JSON"), stream }
}

#[derive(Default, Debug, Clone)]
struct Seen {
    scheduled: bool,
    texts: Vec<String>,
    finished: Option<(FinishReason, Usage, String)>,
    refused: Option<Reject>,
    times: Option<Box<Times>>,
}

impl Seen {
    fn ended(&self) -> bool {
        self.finished.is_some() || self.refused.is_some()
    }
}

/// A stage with one core, and what came of each generation.
struct Bench {
    stage: RemoteStage,
    link: RemoteLink,
    bell: Arc<Bell>,
    seen: BTreeMap<u64, Seen>,
}

fn model(address: SocketAddr, change: impl FnOnce(&mut RemoteModel)) -> RemoteModel {
    let mut model = RemoteModel::new(name("far"), &format!("http://{address}/v1")).expect("an address");
    model.timeout = Duration::from_secs(30);
    change(&mut model);
    model
}

impl Bench {
    fn new(models: Vec<RemoteModel>, ring_slots: usize) -> Self {
        let bell = Bell::new().expect("an eventfd");
        let (stage, links) = RemoteStage::start(models, &[Arc::clone(&bell)], ring_slots).expect("it starts");
        let link = links.into_iter().next().expect("one link per bell");
        Self { stage, link, bell, seen: BTreeMap::new() }
    }

    fn submit(&mut self, id: u64, credit: u32, change: impl FnOnce(&mut Submit)) {
        let mut submit = Submit {
            generation: GenerationId(id),
            tenant: name("default"),
            model: Some(name("far")),
            messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
            sampling: Sampling { max_tokens: 100, ..Sampling::default() },
            produced: Vec::new(),
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
            credit,
            submitted: Instant::now(),
            traced: false,
        };
        change(&mut submit);
        self.seen.entry(id).or_default();
        assert!(self.link.send(Command::Submit(Box::new(submit))).is_ok(), "the ring has room");
    }

    fn cancel(&mut self, id: u64) {
        assert!(self.link.send(Command::Cancel { generation: GenerationId(id) }).is_ok());
    }

    fn receive(&mut self) -> bool {
        let Some(event) = self.link.receive() else { return false };
        match event {
            Event::Scheduled { generation, model, .. } => {
                assert_eq!(model, name("far"));
                self.seen.entry(generation.0).or_default().scheduled = true;
            }
            Event::Token { generation, index, id, text, .. } => {
                let seen = self.seen.entry(generation.0).or_default();
                assert!(seen.scheduled && !seen.ended(), "tokens lie between start and end");
                assert_eq!((seen.texts.len() as u32, index), (index, id), "tokens are contiguous");
                seen.texts.push(String::from_utf8(text.to_vec()).expect("whole characters"));
            }
            Event::Traced(times) => {
                let seen = self.seen.entry(times.generation.0).or_default();
                assert!(!seen.ended() && seen.times.replace(times).is_none(), "once, before the end");
            }
            Event::Finished { generation, reason, usage, message } => {
                let seen = self.seen.entry(generation.0).or_default();
                assert!(!seen.ended() && seen.finished.replace((reason, usage, message)).is_none(), "it ends once");
            }
            Event::Refused { generation, reject } => {
                let seen = self.seen.entry(generation.0).or_default();
                assert!(!seen.ended() && seen.refused.replace(reject).is_none(), "it ends once");
            }
            Event::Embedded { job, result } => {
                let reject = result.expect_err("remotes make none");
                self.seen.entry(job).or_default().refused = Some(reject);
            }
        }
        true
    }

    /// Takes events until `done`; a minute without any is a failure.
    fn until(&mut self, done: impl Fn(&BTreeMap<u64, Seen>) -> bool) {
        while !done(&self.seen) {
            if !self.receive() {
                self.bell.prepare();
                if self.link.is_empty() {
                    // It may ring for what was received already.
                    let (minute, start) = (Duration::from_secs(60), Instant::now());
                    self.bell.wait(Some(minute));
                    let silent = self.link.is_empty() && start.elapsed() >= minute;
                    assert!(!silent, "nothing happened for a minute: {:?}", self.seen);
                }
                self.bell.awake();
            }
        }
    }

    fn until_ended(&mut self, ids: impl IntoIterator<Item = u64> + Clone) {
        self.until(|seen| ids.clone().into_iter().all(|id| seen.get(&id).is_some_and(Seen::ended)));
    }

    fn reject(&self, id: u64) -> &Reject {
        self.seen[&id].refused.as_ref().unwrap_or_else(|| panic!("{id} was refused: {:?}", self.seen[&id]))
    }
}

#[test]
fn an_answer_comes_in_pieces_and_with_what_it_cost() {
    let (tell, told) = sync_channel(TOLD_MAX);
    let address = remote(move |mut asked| {
        let _ = tell.send((asked.head.clone(), asked.body.clone()));
        asked.begin();
        for text in ["The sky", " is", " blü."] {
            asked.token(text);
        }
        asked.end("stop");
    });
    let far = model(address, |model| {
        (model.remote_name, model.key) = ("their-model".into(), Some(Key::new("sk-abc").expect("a key")));
    });
    // The ring holds less than there are events: they wait for it.
    let mut bench = Bench::new(vec![far], 2);
    bench.submit(1, 100, |submit| submit.traced = true);
    bench.until_ended([1]);
    let seen = bench.seen[&1].clone();
    assert_eq!(seen.texts, ["The sky", " is", " blü."]);
    let usage = Usage { prompt_tokens: 12, completion_tokens: 3, cached_tokens: 0 };
    assert_eq!(seen.finished, Some((FinishReason::Stop, usage, String::new())));
    let times = seen.times.expect("traced");
    let moments = [Some(times.taken), times.admitted, times.first_row, times.first_token, Some(times.ended)];
    assert!(moments.map(|at| at.expect("reached")).is_sorted());
    let (head, body) = told.recv().expect("it was asked");
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("authorization: bearer sk-abc\r\n"), "{head}");
    assert_eq!((&body["model"], &body["stream"]), (&json!("their-model"), &json!(true)));
}

#[test]
fn what_goes_wrong_before_the_first_token_is_a_refusal() {
    let check = |answer: &'static str, code: RejectCode, retry_after_ms: u32, part: &str| {
        let address = remote(move |mut asked| {
            asked.say(answer);
        });
        let mut bench = Bench::new(vec![model(address, |_| {})], 64);
        bench.submit(1, 10, |_| {});
        bench.until_ended([1]);
        let reject = bench.reject(1);
        assert_eq!((reject.code, reject.retry_after_ms), (code, retry_after_ms), "{answer:?}: {reject}");
        assert!(reject.message.contains(part), "{answer:?}: {reject}");
    };
    let unavailable = RejectCode::ModelUnavailable;
    check("HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", RejectCode::Busy, 7_000, "busy (429)");
    check("HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops", unavailable, 2_000, "it fails (500)");
    check("HTTP/1.1 503 Oh\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n", unavailable, 30_000, "(503)");
    check("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", unavailable, 0, "refuses the node's key");
    check("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", unavailable, 0, "no such model");
    check("HTTP/1.1 302 There\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", unavailable, 0, "302");
    let said =
        "HTTP/1.1 400 No\r\nContent-Length: 51\r\n\r\n{\"error\":{\"message\":\"stop: at most 4\",\"code\":null}}";
    check(said, RejectCode::ParameterInvalid, 0, "stop: at most 4");
    let long = "HTTP/1.1 400 No\r\nConnection: close\r\n\r\n{\"error\":{\"code\":\"context_length_exceeded\"}}";
    check(long, RejectCode::PromptTooLong, 0, "refuses the request");
    check("HTTP/1.1 400 No\r\nConnection: close\r\n\r\n<html>", RejectCode::ParameterInvalid, 0, "says no more");
    check("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", unavailable, 2_000, "stream");
    check("SSH-2.0-OpenSSH_9\r\n", unavailable, 2_000, "cannot answer");
    check("", unavailable, 2_000, "broke before an answer came");
    let events = |rest: &str| -> &'static str {
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{rest}").leak()
    };
    check(events("data: hello\n\n"), unavailable, 2_000, "no chunk");
    check(events(": busy\n\n"), unavailable, 2_000, "in the middle");
    check(events(&format!("data: {}", "x".repeat(70_000))), unavailable, 2_000, "line of more than");
    check(events("data: {\"error\":{\"message\":\"no\"}}\n\n"), unavailable, 2_000, "failed");
}

#[test]
fn what_goes_wrong_later_ends_an_answer_with_what_came_of_it() {
    let check = |rest: &'static str, part: &str| {
        let address = remote(move |mut asked| {
            asked.begin();
            asked.token("one");
            asked.token("two");
            asked.say(rest);
        });
        let mut bench = Bench::new(vec![model(address, |_| {})], 64);
        bench.submit(1, 10, |_| {});
        bench.until_ended([1]);
        let (reason, usage, message) = bench.seen[&1].finished.clone().expect("finished");
        assert_eq!((reason, usage.completion_tokens, bench.seen[&1].texts.len()), (FinishReason::Failed, 2, 2));
        assert!(message.contains(part) && message.contains("far"), "{rest:?}: {message}");
    };
    check("", "in the middle");
    check("data: {\"choices\":[", "in the middle");
    check("data: oops\n\n", "no chunk");
    check("data: {\"error\":{}}\n\n", "it failed");
    check("data: [DONE]\n\n", "not why");
    check("x".repeat(80_000).leak(), "line of more than");
}

#[test]
fn a_remote_that_is_silent_or_away_is_given_up() {
    let check = |script: fn(&mut Asked), began: bool| {
        let address = remote(move |mut asked| {
            script(&mut asked);
            asked.closed();
        });
        let mut bench = Bench::new(vec![model(address, |model| model.timeout = Duration::from_millis(300))], 64);
        bench.submit(1, 10, |_| {});
        bench.until_ended([1]);
        match began {
            true => assert!(bench.seen[&1].finished.as_ref().expect("finished").2.contains("next token")),
            false => assert_eq!(bench.reject(1).code, RejectCode::ModelUnavailable),
        }
    };
    check(|_| {}, false);
    check(|asked| _ = asked.begin(), false);
    // Signs of life are no token.
    check(
        |asked| {
            asked.begin();
            while asked.say(": still here\n\n") {
                std::thread::sleep(Duration::from_millis(20));
            }
        },
        false,
    );
    check(
        |asked| {
            asked.begin();
            asked.token("one");
        },
        true,
    );
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let mut bench = Bench::new(vec![model(nobody, |_| {})], 64);
    bench.submit(1, 10, |_| {});
    bench.until_ended([1]);
    assert_eq!(bench.reject(1).code, RejectCode::ModelUnavailable);
    assert!(bench.reject(1).message.contains("cannot be reached"), "{}", bench.reject(1));
}

/// A remote that says more than anybody reads: it is held back by its socket, not by this node's memory.
#[test]
fn a_reader_without_credit_holds_the_remote_back() {
    let (tell, told): (_, Receiver<&'static str>) = sync_channel(TOLD_MAX);
    let said = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&said);
    let address = remote(move |mut asked| {
        asked.begin();
        asked.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set");
        let event = format!("data: {}\n\n", json!({"choices": [{"delta": {"content": "x".repeat(1_000)}}]}));
        while counter.load(Ordering::Relaxed) < 64 << 20 {
            match asked.stream.write(event.as_bytes()) {
                // Some of an event may be left out; nobody reads that far.
                Ok(bytes) => _ = counter.fetch_add(bytes, Ordering::Relaxed),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let _ = tell.send("held back");
                }
                Err(_) => {
                    let _ = tell.send("closed");
                    return;
                }
            }
        }
        let _ = tell.send("said it all");
    });
    let mut bench = Bench::new(vec![model(address, |_| {})], 4_096);
    bench.submit(1, 4, |submit| submit.sampling.max_tokens = 8_000);
    bench.until(|seen| seen[&1].texts.len() == 4);
    assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok("held back"));
    assert!(!bench.receive(), "nothing comes without credit");
    let first = said.load(Ordering::Relaxed);
    assert!(first < 16 << 20, "{first} bytes lie in buffers");
    let credit = Command::Credit { generation: GenerationId(1), until: 12 };
    assert!(bench.link.send(credit).is_ok());
    bench.until(|seen| seen[&1].texts.len() == 12);
    bench.cancel(1);
    bench.until_ended([1]);
    assert_eq!(bench.seen[&1].finished.as_ref().expect("finished").0, FinishReason::Cancelled);
    while told.recv_timeout(Duration::from_secs(60)).expect("it is closed") != "closed" {}
}

#[test]
fn tokens_end_where_they_were_to() {
    let address = remote(|mut asked| {
        asked.begin();
        while asked.token("more") {}
    });
    let mut bench = Bench::new(vec![model(address, |_| {})], 64);
    bench.submit(1, 100, |submit| submit.sampling.max_tokens = 7);
    bench.until_ended([1]);
    assert_eq!(
        (bench.seen[&1].texts.len(), bench.seen[&1].finished.clone().expect("finished").0),
        (7, FinishReason::Length)
    );
}

#[test]
fn places_are_bounded_and_what_waits_gets_one() {
    let open = Arc::new(Mutex::new(Vec::new()));
    let (kept, (tell, told)) = (Arc::clone(&open), sync_channel(TOLD_MAX));
    let address = remote(move |mut asked| {
        asked.begin();
        asked.token("hello");
        kept.lock().expect("whole").push(asked);
        let _ = tell.send(());
    });
    let mut bench = Bench::new(vec![model(address, |_| {})], 4_096);
    let all = (REMOTE_RUNNING_MAX + REMOTE_WAITING_MAX) as u64;
    // Those that are begun take their places one by one; each is awaited, so that who waits is known.
    for id in 0..REMOTE_RUNNING_MAX as u64 {
        bench.submit(id, 100, |_| {});
        bench.until(|seen| !seen[&id].texts.is_empty());
    }
    for id in REMOTE_RUNNING_MAX as u64..all {
        bench.submit(id, 100, |submit| submit.deadline_ms = if id == all - 1 { 50 } else { 0 });
    }
    bench.submit(all, 100, |_| {});
    bench.until_ended([all, all - 1]);
    assert_eq!(bench.reject(all).code, RejectCode::Busy);
    assert!(bench.reject(all).retry_after_ms > 0 && bench.reject(all).message.contains("wait"));
    assert!(bench.reject(all - 1).message.contains("deadline"), "{}", bench.reject(all - 1));
    (0..REMOTE_RUNNING_MAX).for_each(|_| told.recv().expect("asked"));
    assert!(told.try_recv().is_err(), "the others were not asked yet");
    bench.cancel(0);
    bench.until_ended([0]);
    let next = REMOTE_RUNNING_MAX as u64;
    bench.until(|seen| !seen[&next].texts.is_empty());
    // One that waits ends as well.
    bench.cancel(next + 5);
    bench.until_ended([next + 5]);
    assert_eq!(bench.seen[&(next + 5)].finished.as_ref().expect("finished").0, FinishReason::Cancelled);
    bench.stage.shutdown();
    bench.until_ended(0..=all);
}

#[test]
fn models_come_change_and_go_while_answers_run() {
    let (tell, told) = sync_channel(TOLD_MAX);
    let address = remote(move |mut asked| {
        let _ = tell.send(asked.body["model"].as_str().unwrap_or_default().to_owned());
        asked.begin();
        asked.token("hello");
        asked.closed();
    });
    let mut bench = Bench::new(Vec::new(), 64);
    let handle = bench.stage.handle();
    bench.submit(1, 10, |_| {});
    bench.until_ended([1]);
    assert_eq!(bench.reject(1).code, RejectCode::ModelUnknown);

    let far = model(address, |_| {});
    handle.configure(vec![far.clone()]).expect("it is one");
    assert!(matches!(handle.configure(vec![far.clone(), far.clone()]), Err(RemoteError::Twice(_))));
    bench.submit(2, 10, |_| {});
    bench.until(|seen| !seen[&2].texts.is_empty());
    handle.put(model(address, |model| model.remote_name = "newer".into())).expect("it runs");
    bench.submit(3, 10, |_| {});
    bench.until(|seen| !seen[&3].texts.is_empty());
    assert_eq!([told.recv(), told.recv()], [Ok("far".into()), Ok("newer".into())]);
    bench.submit(2, 10, |_| {});
    bench.until(|seen| seen[&2].ended());
    assert!(bench.reject(2).message.contains("running already"), "the other of that id goes on");

    bench.seen.remove(&2);
    let remover = std::thread::spawn(move || (handle.remove(&name("far"), Duration::ZERO), handle));
    bench.seen.insert(2, Seen { scheduled: true, texts: vec!["hello".into()], ..Seen::default() });
    bench.until_ended([2, 3]);
    for id in [2, 3] {
        let (reason, _, message) = bench.seen[&id].finished.clone().expect("finished");
        assert_eq!((reason, message.as_str()), (FinishReason::Cancelled, "the model was unloaded"));
    }
    let (removed, handle) = remover.join().expect("no panic");
    assert_eq!(removed.expect("it was there"), 2);
    bench.submit(4, 10, |_| {});
    bench.until_ended([4]);
    assert_eq!(bench.reject(4).code, RejectCode::ModelUnknown);
    assert!(matches!(handle.remove(&name("far"), Duration::ZERO), Err(RemoteError::Unknown(_))));

    let texts = vec!["a".to_owned()];
    let embed = Embed { job: 9, model: Some(name("far")), texts, submitted: Instant::now() };
    assert!(bench.link.send(Command::Embed(Box::new(embed))).is_ok());
    bench.until_ended([9]);
    assert_eq!(bench.reject(9).code, RejectCode::EmbeddingsUnsupported);
    bench.stage.shutdown();
    assert!(matches!(handle.remove(&name("far"), Duration::ZERO), Err(RemoteError::Ended)));
}

#[test]
fn a_core_that_goes_takes_its_connections_along() {
    let (tell, told) = sync_channel(TOLD_MAX);
    let address = remote(move |mut asked| {
        asked.begin();
        asked.token("hello");
        asked.closed();
        let _ = tell.send(());
    });
    let mut bench = Bench::new(vec![model(address, |_| {})], 64);
    bench.submit(1, 10, |_| {});
    bench.until(|seen| !seen[&1].texts.is_empty());
    let Bench { stage, link, .. } = bench;
    drop(link);
    told.recv_timeout(Duration::from_secs(60)).expect("the connection is closed");
    drop(stage);
}
