//! WebSockets over real sockets, beside a scripted core.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use thalweg_protocol::chat::Context;
use thalweg_protocol::document::{DocumentAccess, DocumentNews, DocumentOp};
use thalweg_protocol::ids::{ChannelId, Epoch, Name, Position, Request, SessionId};
use thalweg_protocol::limits::{FRAME_HEADER_BYTES, LEAD_UPDATES};
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, ServerOp, Welcome};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::Bell;
use thalweg_web::{CoreEnd, Health, Phase, SessionEvent, SessionNews, SessionOutput, Web, WebConfig, WebLimits, link};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Longest time anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Client = WebSocketStream<tokio::net::TcpStream>;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// What the scripted core was told, and what it is to tell.
#[derive(Default)]
struct Script {
    tokens: Mutex<Vec<String>>,
    closed: AtomicUsize,
    drained: AtomicUsize,
    /// Frames that it sends to who opens a document, as far as the client takes them.
    frames: AtomicUsize,
    sent: AtomicUsize,
    done: AtomicBool,
}

/// A stage, and the core it talks to.
struct Node {
    web: Option<Web>,
    addr: SocketAddr,
    script: Arc<Script>,
    bell: Arc<Bell>,
    core: Option<JoinHandle<()>>,
}

const FRAME_BYTES: usize = 60_000;
/// What a core lets a session have that it did not report as taken.
const ROOM: usize = 256 << 10;

fn welcome() -> ServerOp {
    ServerOp::Welcome(Welcome {
        version: 1,
        session: SessionId(7),
        epoch: Epoch(1),
        tenant: name("default"),
        user: name("ada"),
        server: String::new(),
        models: Vec::new(),
        frame_bytes_max: 1,
        body_bytes_max: 1,
        in_flight_max: 1,
        lead_messages: 1,
        lead_tokens: 1,
        token_expires_us: 0,
    })
}

fn update(position: u64) -> Bytes {
    let delivery = Delivery {
        position: Position(position),
        timestamp_us: 1,
        kind: DeliveryKind::Update,
        user: name("bob"),
        generation: None,
        body: vec![7; FRAME_BYTES].into(),
        key: 0,
        context: Context::default(),
    };
    ServerOp::Delivery(delivery).encode()
}

/// One document that somebody has open.
struct Reading {
    session: u64,
    subject: u32,
    sent: u64,
    consumed: u64,
    queued: usize,
}

fn play(script: &Script, end: &mut CoreEnd, reading: &mut Option<Reading>) {
    while let Some(input) = end.session_input() {
        let session = input.session;
        let mut reply = |request, op| end.tell(SessionOutput { session, what: SessionNews::Reply { request, op } });
        match input.what {
            SessionEvent::Open { hello, .. } => {
                let refused = hello.token == "bad";
                script.tokens.lock().expect("whole").push(hello.token);
                let reject = Reject::new(RejectCode::TokenInvalid, "not signed by this node");
                reply(Request(0), if refused { ServerOp::Reject(reject) } else { welcome() });
            }
            SessionEvent::Request { request, op: ClientOp::Document(DocumentOp::Open(_)), .. } => {
                let (access, vector) = (DocumentAccess::Write, Bytes::from_static(&[0]));
                let revision = Position(0);
                reply(
                    request,
                    ServerOp::Document(DocumentNews::Opened {
                        id: ChannelId(1),
                        revision,
                        bytes: 0,
                        access,
                        made: true,
                        vector,
                    }),
                );
                *reading = Some(Reading { session, subject: request.0, sent: 0, consumed: 0, queued: 0 });
            }
            SessionEvent::Request { op: ClientOp::Consumed { position, .. }, .. } => {
                if let Some(reading) = reading {
                    reading.consumed = position.0;
                }
            }
            SessionEvent::Request { request, op: ClientOp::Publish(_), .. } => {
                reply(request, ServerOp::Published { position: Position(1), timestamp_us: 1, duplicate: false });
            }
            SessionEvent::Request { .. } => {}
            SessionEvent::Drained { bytes } => {
                script.drained.fetch_add(bytes, Ordering::SeqCst);
                if let Some(reading) = reading {
                    reading.queued -= bytes;
                }
            }
            SessionEvent::Close => {
                script.closed.fetch_add(1, Ordering::SeqCst);
                *reading = None;
            }
        }
    }
    let wanted = script.frames.load(Ordering::SeqCst) as u64;
    if let Some(reading) = reading {
        while reading.sent < wanted
            && reading.queued < ROOM
            && reading.sent < reading.consumed + u64::from(LEAD_UPDATES)
        {
            reading.sent += 1;
            let payload = update(reading.sent);
            reading.queued += payload.len() + FRAME_HEADER_BYTES;
            script.sent.store(reading.sent as usize, Ordering::SeqCst);
            let what = SessionNews::Frame { subject: reading.subject, payload, last: false };
            end.tell(SessionOutput { session: reading.session, what });
        }
    }
}

impl Node {
    fn new(limits: WebLimits) -> Self {
        let bell = Bell::new().expect("a bell");
        let (web, mut end) = link(&bell).expect("a link");
        let cors = vec!["https://friend.example".to_owned()];
        let config = WebConfig { addr: ([127, 0, 0, 1], 0).into(), cors, limits, ..WebConfig::default() };
        let health = || Health {
            phase: Phase::Serving,
            storage_full: false,
            memory_pressure: 0,
            cores: 1,
            silent_cores: Vec::new(),
            uptime: Duration::ZERO,
            epoch: 1,
            version: "0.0.0",
        };
        let web = Web::start(&config, vec![web], Arc::new(health), Arc::new(Vec::new)).expect("starts");
        let script = Arc::<Script>::default();
        let (own_bell, own) = (Arc::clone(&bell), Arc::clone(&script));
        let core = std::thread::spawn(move || {
            let mut reading = None;
            while !own.done.load(Ordering::Acquire) {
                play(&own, &mut end, &mut reading);
                own_bell.prepare();
                if end.is_empty() && !own.done.load(Ordering::Acquire) {
                    own_bell.wait(Some(Duration::from_millis(20)));
                }
                own_bell.awake();
            }
        });
        Self { addr: web.addr(), web: Some(web), script, bell, core: Some(core) }
    }

    async fn connect(&self, path: &str) -> Client {
        let request = format!("ws://{}{path}", self.addr).into_client_request().expect("a request");
        let stream = tokio::net::TcpStream::connect(self.addr).await.expect("connects");
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        client_async_with_config(request, stream, Some(config)).await.expect("upgraded").0
    }

    /// Asks for an upgrade by hand; gives the head of the answer.
    fn upgrade(&self, path: &str, headers: &str) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.addr).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
            self.addr
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            head.push(byte[0]);
        }
        (String::from_utf8(head).expect("text"), stream)
    }

    fn stop(&mut self) {
        drop(self.web.take());
        self.script.done.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(core) = self.core.take() {
            core.join().expect("no panic");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

fn block_on<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, what).await.expect("in time") })
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

/// Reads to the end; gives why the node closed.
async fn closing(client: &mut Client) -> (u16, String) {
    while let Some(message) = client.next().await {
        match message {
            Ok(Message::Close(Some(frame))) => return (frame.code.into(), frame.reason.to_string()),
            Ok(_) => {}
            Err(error) => panic!("cut off: {error}"),
        }
    }
    panic!("ended without a word")
}

#[test]
fn requests_are_upgraded_if_they_may_be() {
    let node = Node::new(WebLimits::default());
    let check = |path: &str, headers: &str, expected: &str, token: Option<&str>| {
        let (head, _stream) = node.upgrade(path, headers);
        assert!(head.starts_with(expected), "{path} {headers}: {head}");
        if expected.contains("101") {
            // The example of RFC 6455, section 1.3.
            assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        }
        if let Some(token) = token {
            until("a session is opened", || node.script.tokens.lock().expect("whole").pop().as_deref() == Some(token));
        }
        head
    };
    let ok = "HTTP/1.1 101";
    check("/yjs/a?token=query", "", ok, Some("query"));
    check("/yjs/a/b%2Fc?x=1&token=query2", "", ok, Some("query2"));
    check("/ws", "authorization: Bearer header\r\n", ok, Some("header"));
    let head = check("/ws", "sec-websocket-protocol: bearer.sub, thalweg\r\n", ok, Some("sub"));
    assert!(head.contains("sec-websocket-protocol: thalweg\r\n"), "{head}");
    check("/ws", "origin: https://friend.example\r\n", ok, None);
    check("/ws", &format!("origin: http://{}\r\n", node.addr), ok, None);
    check("/ws", "origin: https://evil.example\r\n", "HTTP/1.1 403", None);
    check("/ws", "authorization: Basic x\r\n", "HTTP/1.1 401", None);
    check("/hocuspocus", "", ok, None);
    check("/ws/schema.json", "", "HTTP/1.1 200", None);
    let mut stream = TcpStream::connect(node.addr).expect("connects");
    stream.write_all(b"GET /ws HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 426") && answer.contains("upgrade_required"), "{answer}");
}

#[test]
fn who_cannot_be_served_is_told_why() {
    let node = Node::new(WebLimits::default());
    let check = |path: &str, code: u16, says: &str| {
        let close = block_on(async { closing(&mut node.connect(path).await).await });
        assert!(close.0 == code && close.1.contains(says), "{path}: {close:?}");
    };
    check("/yjs/a", 4401, "a token is needed");
    check("/yjs/a?token=bad", 4401, "not signed");
    check("/yjs/a%20b?token=good", 4400, "name_invalid");
    check("/ws?token=bad", 4401, "not signed");
}

#[test]
fn a_reader_that_does_not_read_gets_no_credit() {
    let node = Node::new(WebLimits::default());
    node.script.frames.store(400, Ordering::SeqCst);
    block_on(async {
        let mut client = node.connect("/yjs/a?token=good").await;
        client.send(Message::Binary(Bytes::from_static(&[0, 0, 1, 0]))).await.expect("sent");
        // Nobody reads: what was taken is what kernels hold, and what is sent stops there.
        let mut before = usize::MAX;
        while before != node.script.sent.load(Ordering::SeqCst) {
            before = node.script.sent.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(before * FRAME_BYTES < (10 << 20), "{before} frames were sent to a client that reads none");
        let mut updates = 0;
        while updates < 400 {
            let message = client.next().await.expect("goes on").expect("a message");
            updates += usize::from(message.len() > FRAME_BYTES);
        }
        // Another waits meanwhile for nothing.
        let mut other = node.connect("/ws").await;
        other.send(Message::Text("{\"type\":\"ping\",\"id\":1}".into())).await.expect("sent");
        assert!(
            other
                .next()
                .await
                .expect("answered")
                .expect("a message")
                .to_text()
                .expect("text")
                .contains("hello_expected")
        );
    });
    assert!(node.script.drained.load(Ordering::SeqCst) > 390 * FRAME_BYTES);
}

#[test]
fn what_is_too_long_is_refused_while_it_is_being_sent() {
    let node = Node::new(WebLimits::default());
    block_on(async {
        let mut client = node.connect("/yjs/a?token=good").await;
        // It is cut off or not; either way it can read why.
        match client.send(Message::Binary(vec![0; 10 << 20].into())).await {
            Ok(()) | Err(Error::Io(_) | Error::AlreadyClosed | Error::ConnectionClosed) => {}
            Err(error) => panic!("{error}"),
        }
        let close = closing(&mut client).await;
        assert!(close.0 == 4413 && close.1.contains("body_too_large"), "{close:?}");
    });
    until("its session is closed", || node.script.closed.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_document_that_is_sent_too_much_is_closed_and_its_socket_is_not() {
    let node = Node::new(WebLimits::default());
    let message = |address: &str, rest: &[&[u8]]| {
        let head = [&[address.len() as u8], address.as_bytes()].concat();
        Message::Binary([&head[..], &rest.concat()].concat().into())
    };
    // 2 MiB, in lib0's numbers of seven bits.
    let large = message("a", &[&[0, 2, 0x80, 0x80, 0x80, 1], &vec![1; 2 << 20]]);
    block_on(async {
        let mut client = node.connect("/hocuspocus").await;
        client.send(message("a", &[b"\x02\x00\x04good\x01v"])).await.expect("sent");
        client.send(message("a", &[&[0, 0, 1, 0]])).await.expect("sent");
        client.send(large.clone()).await.expect("sent");
        client.send(Message::Binary(Bytes::from_static(&[9]))).await.expect("sent");
        let mut told = Vec::new();
        while told.last().map(Vec::as_slice) != Some(&[10]) {
            told.push(client.next().await.expect("goes on").expect("a message").into_data().to_vec());
        }
        let closed = told.iter().find(|message| message.starts_with(&[1, b'a', 7])).expect("the document is closed");
        assert!(String::from_utf8_lossy(closed).contains("body_too_large"), "{closed:?}");
        // Of whom the node does not know, it does not read as much.
        let mut stranger = node.connect("/hocuspocus").await;
        match stranger.send(large).await {
            Ok(()) | Err(Error::Io(_) | Error::AlreadyClosed | Error::ConnectionClosed) => {}
            Err(error) => panic!("{error}"),
        }
        let close = closing(&mut stranger).await;
        assert!(close.0 == 4413 && close.1.contains("body_too_large"), "{close:?}");
    });
}

#[test]
fn who_is_silent_is_parted_with() {
    let limits = WebLimits {
        socket_ping: Duration::from_millis(50),
        socket_idle: Duration::from_millis(300),
        ..WebLimits::default()
    };
    let node = Node::new(limits);
    let (head, mut stream) = node.upgrade("/ws?token=good", "");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut rest = Vec::new();
    // It answers no ping.
    stream.read_to_end(&mut rest).expect("closed");
    assert!(rest.windows(2).any(|bytes| bytes == [0x89, 0]), "it was pinged");
    let text = String::from_utf8_lossy(&rest);
    assert!(text.contains("timeout: nothing was heard"), "{text}");
    block_on(async {
        let mut client = node.connect("/ws?token=good").await;
        let until = tokio::time::Instant::now() + Duration::from_millis(900);
        // It does, by reading.
        while let Ok(message) = tokio::time::timeout_at(until, client.next()).await {
            assert!(!matches!(message, None | Some(Err(_) | Ok(Message::Close(_)))), "{message:?}");
        }
    });
}

#[test]
fn a_stage_that_ends_says_so_to_its_sockets() {
    let mut node = Node::new(WebLimits::default());
    let addr = node.addr;
    let script = Arc::clone(&node.script);
    let thread = std::thread::spawn(move || {
        until("it is open", || !script.tokens.lock().expect("whole").is_empty());
        node.stop();
    });
    block_on(async {
        let request = format!("ws://{addr}/yjs/a?token=good").into_client_request().expect("a request");
        let stream = tokio::net::TcpStream::connect(addr).await.expect("connects");
        let mut client = client_async_with_config(request, stream, None).await.expect("upgraded").0;
        let close = closing(&mut client).await;
        assert_eq!(close.0, 1012, "{close:?}");
    });
    thread.join().expect("no panic");
}
