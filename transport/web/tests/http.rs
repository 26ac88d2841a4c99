//! The stage over real sockets, beside a scripted core.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::Bell;
use thalweg_web::{
    CoreEnd, Exposed, Exposition, Health, Phase, Question, Said, Web, WebAnswer, WebConfig, WebError, WebLimits, link,
};

/// Longest time anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Measured;

impl Exposed for Measured {
    fn expose(self: Box<Self>, into: &mut Exposition) {
        into.counter("thalweg_test", "A test.").add(&[("core", "0")], 7);
    }
}

/// What the scripted core does with what it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    /// Answers.
    Answers,
    /// Refuses all tokens but `good`.
    Checks,
    /// Takes nothing.
    Sleeps,
    /// Is gone.
    Gone,
}

/// A stage, and the core it talks to.
struct Node {
    web: Option<Web>,
    addr: SocketAddr,
    health: Arc<Mutex<Health>>,
    done: Arc<AtomicBool>,
    bell: Arc<Bell>,
    core: Option<JoinHandle<()>>,
}

fn no_models() -> thalweg_web::ModelList {
    Arc::new(Vec::new)
}

fn healthy() -> Health {
    Health {
        phase: Phase::Serving,
        storage_full: false,
        memory_pressure: 0,
        cores: 1,
        silent_cores: Vec::new(),
        uptime: Duration::from_secs(5),
        epoch: 3,
        version: "0.0.0",
    }
}

impl Node {
    fn new(script: Script, limits: WebLimits) -> Self {
        let bell = Bell::new().expect("a bell");
        let (web, mut end) = link(&bell).expect("a link");
        let config = WebConfig { addr: ([127, 0, 0, 1], 0).into(), limits, ..WebConfig::default() };
        let health = Arc::new(Mutex::new(healthy()));
        let shown = Arc::clone(&health);
        let check = Arc::new(move || shown.lock().expect("whole").clone());
        let web = Web::start(&config, vec![web], check, no_models()).expect("starts");
        let done = Arc::new(AtomicBool::new(false));
        let (own_bell, own_done) = (Arc::clone(&bell), Arc::clone(&done));
        let core = (script != Script::Gone).then(|| {
            std::thread::spawn(move || {
                while !own_done.load(Ordering::Acquire) {
                    while script != Script::Sleeps && answer_one(script, &mut end) {}
                    own_bell.prepare();
                    let idle = script == Script::Sleeps || end.is_empty();
                    if idle && !own_done.load(Ordering::Acquire) {
                        own_bell.wait(None);
                    }
                    own_bell.awake();
                }
            })
        });
        Self { addr: web.addr(), web: Some(web), health, done, bell, core }
    }

    /// Sends bytes, and gives everything that comes back until the end.
    fn raw(&self, bytes: &[u8]) -> String {
        raw(self.addr, bytes)
    }

    fn get(&self, path: &str, headers: &str) -> String {
        let host = self.addr;
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n").as_bytes())
    }
}

fn answer_one(script: Script, end: &mut CoreEnd) -> bool {
    let Some(request) = end.receive() else { return false };
    let Question::Measure { token } = request.question;
    let refused = script == Script::Checks && token.as_deref() != Some("good");
    let said = if refused {
        Err(Reject::new(RejectCode::TokenInvalid, "not good"))
    } else {
        Ok(Said::Measured(Box::new(Measured)))
    };
    end.answer(WebAnswer { number: request.number, said });
    true
}

fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    // Who is refused early does not read it all.
    let _ = stream.write_all(bytes);
    read_all(&mut stream)
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // A reset after the answer is an end too: the stage does not read what it refused.
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(answer).expect("text")
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.web.take());
        self.done.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(core) = self.core.take() {
            core.join().expect("no panic");
        }
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

fn json(answer: &str) -> serde_json::Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    serde_json::from_str(body).expect("JSON")
}

#[test]
fn health_says_how_the_node_is() {
    let node = Node::new(Script::Gone, WebLimits::default());
    let check = |phase, path: &str, expected: &str, word: &str| {
        node.health.lock().expect("whole").phase = phase;
        let answer = node.get(path, "");
        assert_eq!((status(&answer), json(&answer)["status"].as_str()), (expected, Some(word)), "{path} {answer}");
    };
    for path in ["/health", "/health/ready", "/health/readiness"] {
        check(Phase::Starting, path, "503", "starting");
        check(Phase::Serving, path, "200", "ok");
        check(Phase::Draining, path, "503", "draining");
        check(Phase::Failed, path, "503", "failed");
    }
    for path in ["/health/live", "/health/liveness"] {
        check(Phase::Starting, path, "200", "starting");
        check(Phase::Draining, path, "200", "draining");
        check(Phase::Failed, path, "503", "failed");
    }
    node.health.lock().expect("whole").phase = Phase::Serving;
    node.health.lock().expect("whole").storage_full = true;
    let body = json(&node.get("/health", ""));
    assert_eq!((body["ready"].as_bool(), body["writes"].as_bool()), (Some(true), Some(false)), "reads go on: {body}");
}

#[test]
fn metrics_are_in_the_format_that_was_asked_for() {
    let node = Node::new(Script::Answers, WebLimits::default());
    let answer = node.get("/metrics", "");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("# TYPE thalweg_test_total counter\nthalweg_test_total{core=\"0\"} 7\n"), "{answer}");
    let answer = node.get("/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer}");
    assert!(answer.contains("# TYPE thalweg_test counter\nthalweg_test_total{core=\"0\"} 7\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    let counted = "thalweg_web_requests_total{method=\"GET\",path=\"/metrics\",status=\"200\"} 1\n";
    assert!(answer.contains(counted.trim_end()), "it counts itself: {answer}");
}

#[test]
fn who_is_not_on_this_machine_needs_a_token() {
    let node = Node::new(Script::Checks, WebLimits::default());
    let check = |headers: &str, expected: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
        let answer = node.raw(request.as_bytes());
        assert_eq!(status(&answer), expected, "{headers} {answer}");
        assert_eq!(answer.contains("www-authenticate: Bearer"), expected == "401", "{answer}");
    };
    check("host: metrics.example\r\n", "401");
    check("host: 127.0.0.1\r\nx-forwarded-for: 10.0.0.1\r\n", "401");
    check("host: metrics.example\r\nauthorization: Bearer bad\r\n", "401");
    check("host: metrics.example\r\nauthorization: Basic good\r\n", "401");
    check("host: metrics.example\r\nauthorization: Bearer good\r\n", "200");
}

#[test]
fn a_core_that_does_not_answer_is_said() {
    let limits = || WebLimits { core_timeout: Duration::from_millis(50), ..WebLimits::default() };
    let check = |script, code: &str| {
        let node = Node::new(script, limits());
        let answer = node.get("/metrics", "");
        assert_eq!((status(&answer), json(&answer)["error"]["code"].as_str()), ("503", Some(code)), "{answer}");
        assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
        // Who asks for nothing of the core gets its answer.
        assert_eq!(status(&node.get("/health", "")), "200");
    };
    check(Script::Sleeps, "core_silent");
    check(Script::Gone, "core_gone");
    let node = Node::new(Script::Sleeps, limits());
    let codes: Vec<_> = (0..300).map(|_| json(&node.get("/metrics", ""))["error"]["code"].clone()).take(1).collect();
    assert_eq!(codes, ["core_silent"]);
}

#[test]
fn what_makes_no_sense_is_refused_in_json() {
    let node = Node::new(Script::Answers, WebLimits::default());
    let check = |request: &str, expected: &str, code: Option<&str>| {
        let answer = node.raw(request.as_bytes());
        assert_eq!(status(&answer), expected, "{:?} {answer}", &request[..request.len().min(60)]);
        if let Some(code) = code {
            assert_eq!(json(&answer)["error"]["code"], code, "{answer}");
            assert!(answer.contains("x-content-type-options: nosniff"), "{answer}");
        }
    };
    check("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "404", Some("not_found"));
    check("GET /metrics/../x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "404", Some("not_found"));
    check("POST /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "405", Some("method_not_allowed"));
    check("STRANGE /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", "405", Some("method_not_allowed"));
    let long = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\n";
    check(long, "413", Some("body_too_large"));
    check("nonsense\r\n\r\n", "400", None);
    check("GET /health HTTP/9.9\r\n\r\n", "400", None);
    check("GET /health HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", "400", None);
    check(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)), "431", None);
    check(&format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(70_000)), "431", None);
    check(&format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500)), "431", None);
    let answer = node.raw(b"HEAD /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    assert!(status(&answer) == "200" && answer.ends_with("\r\n\r\n"), "no body: {answer}");
    let answer = node.raw(b"OPTIONS /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    assert!(answer.contains("allow: GET,HEAD\r\n"), "{answer}");
}

#[test]
fn those_who_are_slow_are_parted_with() {
    let limits = WebLimits { header_timeout: Duration::from_millis(100), ..WebLimits::default() };
    let node = Node::new(Script::Answers, limits);
    let check = |sent: &[u8], answers: usize| {
        // It never ends its side: who closes is the stage.
        let mut stream = TcpStream::connect(node.addr).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(sent).expect("sent");
        let answer = read_all(&mut stream);
        assert_eq!(answer.matches("HTTP/1.1 200").count(), answers, "{answer}");
    };
    check(b"", 0);
    check(b"GET /health HTTP/1.1\r\nhost:", 0);
    check(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n", 1);
    check(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\nGET /health HTTP/1.1\r\nhost: h\r\n\r\nGET", 2);
}

#[test]
fn connections_are_bounded_and_come_back() {
    let node = Node::new(Script::Answers, WebLimits { connections: 2, ..WebLimits::default() });
    let open = |node: &Node| {
        let mut stream = TcpStream::connect(node.addr).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n").expect("sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("answered");
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    let (one, two) = (open(&node), open(&node));
    let refused = node.raw(b"");
    assert_eq!((status(&refused), json(&refused)["error"]["code"].as_str()), ("503", Some("busy")), "{refused}");
    one.shutdown(Shutdown::Both).expect("closed");
    drop((one, two));
    let start = std::time::Instant::now();
    while status(&node.get("/health", "")) != "200" {
        assert!(start.elapsed() < PATIENCE, "room does not come back");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(node.get("/metrics", "").contains("thalweg_web_connections_refused_total"));
}

#[test]
fn a_stage_that_ends_answers_what_it_was_asked() {
    let limits = WebLimits { core_timeout: Duration::from_millis(300), ..WebLimits::default() };
    let mut node = Node::new(Script::Sleeps, limits);
    let mut stream = TcpStream::connect(node.addr).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n").expect("sent");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("answered");
    // Under way when the end comes: the core never answers it.
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", node.addr).as_bytes()).expect("sent");
    let addr = node.addr;
    while !raw(addr, b"GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").starts_with("HTTP/1.1 401") {}
    drop(node.web.take());
    let rest = read_all(&mut stream);
    assert!(rest.contains("HTTP/1.1 503"), "{rest}");
    assert!(TcpStream::connect(addr).is_err(), "nobody listens");
}

#[test]
fn addresses_are_refused_with_what_to_do() {
    let start = |addr: SocketAddr, allow_plain| {
        let bell = Bell::new().expect("a bell");
        let (web, _core) = link(&bell).expect("a link");
        let config = WebConfig { addr, allow_plain, ..WebConfig::default() };
        Web::start(&config, vec![web], Arc::new(healthy), no_models())
    };
    let any: SocketAddr = ([0, 0, 0, 0], 0).into();
    let error = start(any, false).err().expect("refused");
    assert!(matches!(error, WebError::Plain { .. }) && error.to_string().contains("--http-allow-plain"), "{error}");
    let web = start(any, true).expect("allowed");
    let error = start(web.addr(), true).err().expect("taken");
    assert!(matches!(error, WebError::Taken { .. }) && error.to_string().contains("--http off"), "{error}");
    let nowhere: SocketAddr = ([192, 0, 2, 1], 80).into();
    let error = start(nowhere, true).err().expect("no address of ours");
    assert!(matches!(error, WebError::Bind { .. }) && error.to_string().contains("192.0.2.1:80"), "{error}");
}
