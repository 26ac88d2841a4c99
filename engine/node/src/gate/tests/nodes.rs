//! Whole nodes, asked by clients over QUIC.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use thalweg_client::{Client, ClientError, ConnectionState, From, SubscribeOptions};

use super::issuer::{Mood, TestIssuer, TestKey};
use super::*;
use crate::Node;
use crate::config::NodeConfig;
use crate::identity::tests::TempDir;

fn config(dir: &TempDir) -> NodeConfig {
    let quic = SocketAddr::from(([127, 0, 0, 1], 0));
    NodeConfig { data: dir.path().to_owned(), quic, cores: Some(2), ..NodeConfig::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn local(dir: &TempDir) -> Client {
    Client::builder().local(dir.path()).connect().await.expect("the local token is good")
}

async fn with_token(dir: &TempDir, token: &str) -> Result<Client, ClientError> {
    Client::builder().local(dir.path()).token(token).reconnect(None).connect().await
}

async fn ask(client: &Client, command: Value) -> Value {
    client.manage(&command).await.expect("done")
}

fn text(answer: &Value, field: &str) -> String {
    answer[field].as_str().expect("a text").to_owned()
}

/// Why the node says no.
fn refusal<T>(result: Result<T, ClientError>) -> RejectCode {
    match result {
        Err(ClientError::Refused(reject) | ClientError::SignedOut(reject) | ClientError::Ended(reject)) => reject.code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the node says yes"),
    }
}

/// Waits until a client is told to go; says why, and after how long.
async fn ended(client: &Client) -> (RejectCode, Duration) {
    let (began, mut connection) = (Instant::now(), client.connection());
    let over = connection.wait_for(|state| matches!(state, ConnectionState::Closed { .. }));
    let over =
        tokio::time::timeout(Duration::from_secs(30), over).await.expect("it ends").expect("it says why").clone();
    let ConnectionState::Closed { error } = over else { panic!("it is over") };
    (refusal(Err::<(), _>(error)), began.elapsed())
}

#[test]
fn revocation_ends_live_sessions_on_all_cores() {
    let dir = TempDir::new();
    let node = Node::start(config(&dir)).expect("starts");
    runtime().block_on(async {
        let admin = local(&dir).await;
        let token = |user: &str| {
            json!({"command":"token","tenant":"acme","user":user,"allow":["read:*","write:*"],"ttl_s":600})
        };
        let (ada, bob) = (ask(&admin, token("ada")).await, ask(&admin, token("bob")).await);
        // Connections are spread over the cores by chance; eight of them are on both but once in 128 times, and then one is.
        let mut adas = Vec::new();
        for _ in 0..8 {
            adas.push(with_token(&dir, &text(&ada, "token")).await.expect("good"));
        }
        let bobs = with_token(&dir, &text(&bob, "token")).await.expect("good");
        ask(&admin, json!({"command":"revoke","tenant":"acme","token":ada["id"]})).await;
        for client in &adas {
            let (code, after) = ended(client).await;
            assert_eq!(code, RejectCode::TokenRevoked);
            // Not asserted, for a busy machine takes its time: the target is 1 s.
            println!("a session ended {after:?} after the revocation was answered");
        }
        assert_eq!(refusal(with_token(&dir, &text(&ada, "token")).await), RejectCode::TokenRevoked);
        bobs.ping().await.expect("others stay");
        // What is said to a user from now on is good again; everybody of the tenant goes.
        let again = ask(&admin, token("ada")).await;
        let again = with_token(&dir, &text(&again, "token")).await.expect("good");
        ask(&admin, json!({"command":"revoke","tenant":"acme","everybody":true,"reason":"over"})).await;
        assert_eq!(ended(&again).await.0, RejectCode::TokenRevoked);
        assert_eq!(ended(&bobs).await.0, RejectCode::TokenRevoked);
        admin.ping().await.expect("the administrator is of another tenant");
        let key = json!({"command":"key-create","tenant":"acme","user":"bot","allow":["read:*"]});
        let key = ask(&admin, key).await;
        let bot = with_token(&dir, &text(&key, "key")).await.expect("an API key is as good as a token");
        ask(&admin, json!({"command":"key-remove","key":key["id"]})).await;
        assert_eq!(ended(&bot).await.0, RejectCode::TokenRevoked);
        // Who is parted with hears it before the trail has it.
        for tries in 1.. {
            let events = ask(&admin, json!({"command":"audit","limit":500})).await;
            let events = events["events"].as_array().expect("a list");
            let count = |action: &str| events.iter().filter(|event| event["action"] == action).count();
            if count("session-end") >= 11 && count("hello") >= 12 && count("revoke") == 2 {
                break;
            }
            assert!(tries < 1_000, "{events:?}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        admin.close().await;
    });
    node.drain();
    node.wait().expect("drains");
    let again = Node::start(config(&dir)).expect("starts");
    again.drain();
    again.wait().expect("drains");
}

#[test]
fn sessions_end_with_their_credential() {
    let dir = TempDir::new();
    let node = Node::start(config(&dir)).expect("starts");
    runtime().block_on(async {
        let admin = local(&dir).await;
        let token = json!({"command":"token","user":"ada","allow":["read:*"],"ttl_s":1});
        let token = ask(&admin, token).await;
        let client = with_token(&dir, &text(&token, "token")).await.expect("good for a moment");
        assert_eq!(ended(&client).await.0, RejectCode::TokenExpired);
        admin.ping().await.expect("others stay");
        admin.close().await;
    });
    node.drain();
    node.wait().expect("drains");
}

#[test]
fn people_log_in_over_the_wire() {
    let dir = TempDir::new();
    let node = Node::start(config(&dir)).expect("starts");
    runtime().block_on(async {
        let admin = local(&dir).await;
        let add =
            json!({"command":"user-add","tenant":"acme","user":"ada","password":"correct horse","allow":["read:*"]});
        ask(&admin, add).await;
        let login =
            |password: &str| Client::builder().local(dir.path()).reconnect(None).password("acme", "ada", password);
        assert_eq!(refusal(login("wrong").connect().await), RejectCode::LoginFailed);
        let client = login("correct horse").connect().await.expect("in");
        let welcome = client.welcome();
        assert_eq!((welcome.tenant.as_str(), welcome.user.as_str()), ("acme", "ada"));
        assert!(welcome.token_expires_us > 0);
        let forbidden = client.manage(&json!({"command":"user-list"})).await;
        assert_eq!(refusal(forbidden), RejectCode::Forbidden);
        assert_eq!(refusal(client.manage(&json!({"command":"fly"})).await), RejectCode::RequestInvalid);
        assert_eq!(refusal(client.stats().await), RejectCode::Forbidden);
        let options = SubscribeOptions { from: From::End, ..SubscribeOptions::default() };
        assert_eq!(refusal(client.subscribe("nowhere", options).await), RejectCode::ChannelUnknown);
        // While passwords are hashed others are served.
        let hashing = (0..8).map(|_| login("correct horse").connect());
        let (logins, pings) = tokio::join!(join(hashing), async {
            for _ in 0..100 {
                client.ping().await.expect("served");
            }
        });
        let () = pings;
        assert!(logins.into_iter().all(|login| login.is_ok()));
        admin.close().await;
    });
    node.drain();
    node.wait().expect("drains");
}

async fn join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut done = Vec::new();
    for future in futures {
        done.push(future.await);
    }
    done
}

#[test]
fn tokens_of_an_issuer_are_good_once_its_keys_are_known() {
    let dir = TempDir::new();
    let key = TestKey::new("k", Algorithm::ES256);
    let issuer = TestIssuer::start(&[&key]);
    issuer.set(Mood::Error, &[]);
    let access = AccessConfig { issuers: vec![issuer.config()], ..AccessConfig::default() };
    let node = Node::start(NodeConfig { access, ..config(&dir) }).expect("an issuer that is down stops nobody");
    let now_s = now_s();
    let body = json!({ "iss": issuer.url, "aud": "thalweg", "sub": "ada", "iat": now_s, "exp": now_s + 600 });
    let token = key.sign(&body);
    runtime().block_on(async {
        let admin = local(&dir).await;
        assert_eq!(refusal(with_token(&dir, &token).await), RejectCode::IssuerUnavailable);
        issuer.set(Mood::Answers, &[&key]);
        let client = loop {
            match with_token(&dir, &token).await {
                Ok(client) => break client,
                Err(ClientError::Refused(reject)) => {
                    assert_eq!(reject.code, RejectCode::IssuerUnavailable);
                    tokio::time::sleep(Duration::from_millis(u64::from(reject.retry_after_ms).clamp(1, 2_000))).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(client.welcome().tenant.as_str(), "acme");
        ask(&admin, json!({"command":"revoke","tenant":"acme","user":"ada"})).await;
        assert_eq!(ended(&client).await.0, RejectCode::TokenRevoked);
        assert_eq!(refusal(with_token(&dir, &token).await), RejectCode::TokenRevoked);
        assert_eq!(refusal(with_token(&dir, &token[..token.len() - 2]).await), RejectCode::TokenInvalid);
        admin.close().await;
    });
    node.drain();
    node.wait().expect("drains");
}

#[test]
fn a_damaged_file_of_the_gate_stops_the_start_and_leaves_nothing_running() {
    let dir = TempDir::new();
    fs::create_dir(dir.path().join(ACCESS_DIRECTORY)).expect("made");
    let path = dir.path().join("access/revoked.json");
    fs::write(&path, "garbage").expect("written");
    let Err(error) = Node::start(config(&dir)) else { panic!("it starts") };
    let error = error.to_string();
    assert!(error.contains("access/revoked.json is damaged") && error.contains("backup"), "{error}");
    fs::remove_file(&path).expect("removed");
    let node = Node::start(config(&dir)).expect("starts");
    node.drain();
    node.wait().expect("drains");
}
