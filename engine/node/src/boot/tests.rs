//! Whole nodes, from their configuration to their end.

use std::cell::Cell;

use thalweg_protocol::op::Durability;

use super::*;
use crate::config::LogBackend;
use crate::config::{HttpConfig, WebConfig};
use crate::disk::fault::{Fault, FaultyDisk};
use crate::identity::tests::TempDir;
use crate::launch::Broken;

thread_local! {
    /// Which core of the nodes that this thread starts is broken.
    static BROKEN: Cell<Option<(CoreId, Broken)>> = const { Cell::new(None) };
}

pub(super) fn broken(core: CoreId) -> Option<Broken> {
    BROKEN.get().filter(|(broken, _)| *broken == core).map(|(_, how)| how)
}

fn config(data: &TempDir) -> NodeConfig {
    let quic = SocketAddr::from(([127, 0, 0, 1], 0));
    NodeConfig { data: data.path().to_owned(), quic, cores: Some(2), ..NodeConfig::default() }
}

#[test]
fn a_failed_sync_ends_the_node_with_its_cause() {
    let data = TempDir::new();
    // Each core's first file is synced before the node serves; then come the spares.
    let fault = Fault::Sync { of: ".new", after: 3 };
    let node = Node::start_on(config(&data), |disk| Arc::new(FaultyDisk::new(disk, fault))).expect("starts");
    let error = node.wait().expect_err("the log fails").to_string();
    let says = |what: &str| assert!(error.contains(what), "{error}");
    says("syncing it failed: Input/output error");
    says("wal/00");
    says(&data.path().join(LOG_DIRECTORY).display().to_string());
    let again = Node::start(config(&data)).expect("starts on a disk that works");
    again.drain();
    again.wait().expect("drains");
}

#[test]
fn what_cannot_be_is_refused() {
    let data = TempDir::new();
    let check = |config: NodeConfig, says: &str| match Node::start(config) {
        Ok(_) => panic!("started, instead of saying {says:?}"),
        Err(error) => assert!(error.to_string().contains(says), "{error}"),
    };
    check(NodeConfig { durability: Durability::Replicated, ..config(&data) }, "needs other nodes");
    check(NodeConfig { log_file_bytes: 4_096, ..config(&data) }, "bytes of a file of the log is 4096");
    let (disk_shell, log_backend) = (DiskShell::Discard, LogBackend::IoUring);
    check(NodeConfig { disk_shell, log_backend, ..config(&data) }, "choose the thread back end");
}

#[test]
fn a_core_that_does_not_come_up_leaves_nothing_running() {
    for core in 0..2 {
        let data = TempDir::new();
        BROKEN.set(Some((CoreId(core), Broken::Refuses)));
        let Err(error) = Node::start(config(&data)) else { panic!("it starts") };
        assert!(error.to_string().contains(&format!("core {core} did not come up: it is broken")), "{error}");
        BROKEN.set(None);
        // The directory is locked as long as anything is left that may write to it.
        let again = Node::start(config(&data)).expect("starts");
        again.drain();
        again.wait().expect("drains");
    }
}

#[test]
fn a_thread_that_panics_ends_the_node() {
    let check = |start: &dyn Fn(&TempDir) -> Result<Node, StartError>, says: &[&str]| {
        let data = TempDir::new();
        let error = start(&data).expect("starts").wait().expect_err("it panics").to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{error}");
    };
    let core = |data: &TempDir| {
        // The last: whoever waits for the cores in order waits for another one first.
        BROKEN.set(Some((CoreId(1), Broken::Panics)));
        let node = Node::start(config(data));
        BROKEN.set(None);
        node
    };
    check(&core, &["core 1 panicked", "defect"]);
    let archive = |data: &TempDir| {
        let fault = Fault::Panic { of: ".new", after: 3 };
        Node::start_on(config(data), |disk| Arc::new(FaultyDisk::new(disk, fault)))
    };
    check(&archive, &["the archive panicked"]);
}

#[test]
fn what_clients_published_is_there_after_a_restart_with_other_cores() {
    use thalweg_client::{Client, From, Item, SubscribeOptions};

    const CHANNELS: u64 = 5;
    const MESSAGES: u64 = 200;
    let data = TempDir::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let body = |channel: u64, n: u64| format!("message {n} of channel {channel}");
    let mut expected = 0;
    for cores in [1, 3, 2] {
        let node = Node::start(NodeConfig { cores: Some(cores), ..config(&data) }).expect("starts");
        runtime.block_on(async {
            let client = Client::builder().local(data.path()).make_channels(true).connect().await.expect("connects");
            for channel in 0..CHANNELS {
                let options = SubscribeOptions { from: From::Start, ..SubscribeOptions::default() };
                let mut reader = client.subscribe(format!("room-{channel}"), options).await.expect("subscribes");
                for n in 0..expected {
                    match reader.next().await.expect("goes on") {
                        Some(Item::Message(message)) => {
                            assert_eq!(message.body, body(channel, n).as_bytes(), "{cores} cores");
                            assert_eq!(message.position.0, n + 1);
                        }
                        other => panic!("{cores} cores, message {n}: {other:?}"),
                    }
                }
                let mut acks = Vec::new();
                for n in expected..expected + MESSAGES {
                    let ack = client.publish_start(format!("room-{channel}"), body(channel, n)).await;
                    acks.push(ack.expect("taken"));
                }
                for ack in acks {
                    ack.await.expect("acknowledged");
                }
            }
            client.close().await;
        });
        expected += MESSAGES;
        node.drain();
        node.wait().expect("drains");
    }
}

/// One request over HTTP: the status, and everything that came back.
fn http(addr: SocketAddr, path: &str) -> (String, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(addr).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    (answer.split(' ').nth(1).unwrap_or_default().to_owned(), answer)
}

#[test]
fn a_node_says_how_it_is_and_what_it_measured() {
    let data = TempDir::new();
    let web = WebConfig { addr: SocketAddr::from(([127, 0, 0, 1], 0)), ..WebConfig::default() };
    let with_http = |web: &WebConfig, optional| {
        let http = Some(HttpConfig { web: web.clone(), optional });
        NodeConfig { http, ..config(&data) }
    };
    let node = Node::start(with_http(&web, false)).expect("starts");
    let addr = node.http_addr().expect("it serves HTTP");
    let announced = std::fs::read_to_string(data.path().join(crate::identity::NODE_FILE)).expect("announced");
    assert!(announced.contains(&format!("\"http\":\"{addr}\"")), "{announced}");
    let (status, body) = http(addr, "/health");
    assert!(status == "200" && body.contains("\"status\":\"ok\"") && body.contains("\"epoch\":1"), "{body}");
    let (status, first) = http(addr, "/metrics");
    assert_eq!(status, "200", "{first}");
    let (_, body) = http(addr, "/metrics");
    let has = |line: &str| assert!(body.contains(line), "no {line:?} in {body}");
    has("\nthalweg_cores 2\n");
    has("\nthalweg_ready 1\n");
    has("\nthalweg_messages_published_total{core=\"1\"} 0\n");
    has("\nthalweg_rejects_total{code=\"forbidden\"} 0\n");
    has("\nthalweg_stage_duration_seconds_count{stage=\"scrape\"} 2\n");
    assert!(!body.contains("\nthalweg_unlisted{"), "give it a row in metrics/names.rs: {body}");

    // Another node finds the port taken, and does without if it may.
    let other = TempDir::new();
    let taken = WebConfig { addr, ..web };
    let there = |optional| NodeConfig { data: other.path().to_owned(), ..with_http(&taken, optional) };
    let Err(error) = Node::start(there(false)) else { panic!("it starts") };
    assert!(error.to_string().contains("the port is taken"), "{error}");
    let without = Node::start(there(true)).expect("starts");
    assert_eq!(without.http_addr(), None);
    without.drain();
    without.wait().expect("drains");

    node.drain();
    let (status, body) = http(addr, "/health");
    assert!(status == "503" && body.contains("\"status\":\"draining\""), "{body}");
    node.wait().expect("drains");
    assert!(std::net::TcpStream::connect(addr).is_err(), "nobody listens");
}
