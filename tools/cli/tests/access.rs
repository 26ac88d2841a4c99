//! Who may use a node, end to end: logins, API keys, revocation, keys that are replaced, the audit.

mod binary;

use std::process::Child;

use binary::{Ended, Home, Node, end, eventually};
use serde_json::Value;

fn good(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

fn refused(ended: &Ended, says: &str) {
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.stderr.contains(says), "{ended:?} does not say {says}");
}

/// A node, and a laptop that knows nothing of it.
fn node_and_laptop() -> (Home, Node, Home) {
    let home = Home::new();
    let node = home.serve("--no-model --quic 127.0.0.1:0");
    (home, node, Home::new())
}

/// A reader that has begun to read: it has printed what was there.
fn reader(home: &Home, line: &str) -> Child {
    use std::io::Read as _;
    let mut child = home.command(line).spawn().expect("the binary runs");
    let mut one = [0];
    child.stdout.as_mut().expect("piped").read_exact(&mut one).expect("a message");
    child
}

#[test]
fn a_login_is_kept_until_it_is_revoked() {
    let (home, node, laptop) = node_and_laptop();
    good(home.run("admin user add ada", b"correct horse\n"));
    let server = format!("--server {} --trust-first", node.quic);
    let pub_ = format!("pub general {server}");
    let ended = laptop.run(&pub_, b"x\n");
    assert!(ended.code == Some(2) && ended.stderr.contains("thalweg login"), "{ended:?}");
    refused(&laptop.run(&format!("login {server} --user ada"), b"wrong horse\n"), "login_failed");
    refused(&laptop.run(&format!("login {server} --user nobody"), b"correct horse\n"), "login_failed");
    let said = good(laptop.run(&format!("login {server} --user ada"), b"correct horse\n"));
    assert!(said.starts_with("logged in as ada (default) until "), "{said}");
    good(laptop.run(&pub_, b"hello\n"));
    let lines = good(home.run("history general --json", b""));
    assert!(lines.contains(r#""from":"ada""#), "{lines}");

    // Who is revoked is out at once, and stays out until the next login.
    let reading = reader(&laptop, &format!("sub general --from start {server}"));
    good(home.run("admin revoke --user ada --reason test", b""));
    refused(&end(reading, "sub"), "token_revoked");
    refused(&laptop.run(&pub_, b"x\n"), "token_revoked");
    eventually("another login", || {
        laptop.run(&format!("login {server} --user ada"), b"correct horse\n").code == Some(0)
    });
    good(laptop.run(&pub_, b"again\n"));

    good(laptop.run(&format!("logout --server {}", node.quic), b""));
    assert_eq!(laptop.run(&pub_, b"x\n").code, Some(2));
    // Another password, and then no user at all.
    good(home.run("admin user password ada", b"battery staple\n"));
    refused(&laptop.run(&format!("login {server} --user ada"), b"correct horse\n"), "login_failed");
    let users = good(home.run("admin user list", b""));
    assert!(users.contains("ada") && users.contains("read:*"), "{users}");
    good(home.run("admin user rm ada", b""));
    assert!(!good(home.run("admin user list --json", b"")).contains("ada"));
    let audit = good(home.run("admin audit --json", b""));
    let events: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(
        events.iter().any(|event| event["action"].as_str().is_some_and(|action| action.contains("login"))),
        "{audit}"
    );
    assert!(!audit.contains("horse") && !audit.contains("staple"), "{audit}");
}

#[test]
fn tokens_and_keys_are_good_until_they_are_revoked() {
    let (home, node, laptop) = node_and_laptop();
    let with = |token: &str| format!("pub general --server {} --trust-first --token {token}", node.quic);
    let minted: Value = serde_json::from_str(&good(home.run("admin token --user bot --json", b""))).expect("JSON");
    let (token, id) = (minted["token"].as_str().expect("a token"), minted["id"].as_str().expect("an id"));
    good(laptop.run(&with(token), b"x\n"));
    good(home.run(&format!("admin revoke --token-id {id}"), b""));
    eventually("the revocation", || laptop.run(&with(token), b"x\n").code == Some(4));

    let key = good(home.run("admin key create --user ci --allow write:* --note builds", b""));
    let key = key.trim();
    assert!(key.starts_with("thk_"), "{key}");
    good(laptop.run(&with(key), b"x\n"));
    // What the key does not allow is refused.
    let reading = format!("history general --server {} --trust-first --token {key}", node.quic);
    refused(&laptop.run(&reading, b""), "forbidden");
    let list = good(home.run("admin key list", b""));
    assert!(list.contains("builds") && list.contains("write:*") && !list.contains(key), "{list}");
    good(home.run(&format!("admin key rm {key}"), b""));
    eventually("the removal", || laptop.run(&with(key), b"x\n").code == Some(4));

    // What an old key signed stays good, unless it is dropped.
    let old = good(home.run("admin token --user bot", b""));
    good(home.run("admin rotate-keys", b""));
    good(laptop.run(&with(old.trim()), b"x\n"));
    good(home.run("admin rotate-keys --drop-old", b""));
    eventually("the old key's end", || laptop.run(&with(old.trim()), b"x\n").code == Some(4));
    good(laptop.run(&with(good(home.run("admin token --user bot", b"")).trim()), b"x\n"));
    // Who looks after the node needs to be allowed to.
    let user = good(home.run("admin token --user bot", b""));
    refused(&home.run(&format!("admin user list --token {}", user.trim()), b""), "forbidden");
}
