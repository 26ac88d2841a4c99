//! People in channels, end to end: a real node, real commands, real QUIC.

mod binary;

use std::io::{BufRead as _, BufReader};
use std::process::Child;

use binary::{Ended, Home, Node, eventually};
use serde_json::{Value, json};

/// A node, and people who have tokens for it.
struct Town {
    home: Home,
    _node: Node,
}

impl Town {
    fn new() -> Self {
        let home = Home::new();
        let node = home.serve("--no-model --quic 127.0.0.1:0");
        Self { home, _node: node }
    }

    fn token(&self, user: &str) -> String {
        let ended = self.home.run(&format!("admin token --user {user}"), b"");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout.trim().to_owned()
    }

    /// What a command of this user says, whatever it is.
    fn run(&self, user: &str, line: &str, input: &[u8]) -> Ended {
        self.home.run(&format!("{line} --token {}", self.token(user)), input)
    }

    /// What a command of this user prints, which must work.
    fn good(&self, user: &str, line: &str, input: &[u8]) -> String {
        let ended = self.run(user, line, input);
        assert_eq!(ended.code, Some(0), "{user}: {line}: {ended:?}");
        ended.stdout
    }

    fn json(&self, user: &str, line: &str) -> Vec<Value> {
        let text = self.good(user, &format!("{line} --json"), b"");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// A command of this user is refused, and says so in this word.
    fn refused(&self, user: &str, line: &str, input: &[u8], says: &str) {
        let ended = self.run(user, line, input);
        assert_eq!(ended.code, Some(4), "{user}: {line}: {ended:?}");
        assert!(ended.stderr.contains(says), "{user}: {line}: {ended:?} does not say {says}");
    }

    /// Reads a channel's events as they come.
    fn events(&self, user: &str, line: &str) -> Events {
        let line = format!("sub {line} --json --events --token {}", self.token(user));
        let mut child = self.home.command(&line).spawn().expect("the binary runs");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Events { child, lines: lines.lines() }
    }
}

struct Events {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Events {
    /// The next line in which these fields have these values.
    fn until(&mut self, fields: &Value) -> Value {
        let fields = fields.as_object().expect("fields");
        loop {
            let line = self.lines.next().unwrap_or_else(|| panic!("the events ended before {fields:?}")).expect("text");
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if fields.iter().all(|(name, value)| event[name] == *value) {
                return event;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_private_channel_is_for_those_who_were_invited() {
    let town = Town::new();
    town.good("ada", "channel create plans --private --topic secret", b"");
    town.good("ada", "pub plans", b"first\n");
    // Who was not invited does not find it, and cannot read or write it.
    assert_eq!(town.json("eve", "channel list --all"), Vec::<Value>::new());
    town.refused("eve", "history plans", b"", "forbidden");
    let ended = town.run("eve", "pub plans", b"let me in\n");
    assert_eq!(ended.code, Some(4), "{ended:?}");
    town.refused("eve", "channel join plans", b"", "forbidden");

    town.good("ada", "channel invite plans grace", b"");
    town.good("grace", "channel join plans", b"");
    town.good("grace", "pub plans", b"second\n");
    assert_eq!(town.good("grace", "history plans", b""), "first\nsecond\n");
    let info = &town.json("grace", "channel info plans")[0];
    assert_eq!((&info["kind"], &info["topic"], &info["role"]), (&json!("private"), &json!("secret"), &json!("member")));
    assert_eq!(info["members_total"], 2);

    // A member may not ban; the owner may, and a reader is out at once.
    town.refused("grace", "channel ban plans ada", b"", "forbidden");
    let mut reader = town.home.command(&format!("sub plans --token {}", town.token("grace")));
    let reader = reader.spawn().expect("the binary runs");
    town.good("ada", "channel ban plans grace", b"");
    let ended = binary::end(reader, "sub");
    assert!(matches!(ended.code, Some(4 | 5)) && ended.stderr.contains("forbidden"), "{ended:?}");
    let ended = town.run("grace", "history plans", b"");
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let ended = town.run("grace", "channel join plans", b"");
    assert_eq!(ended.code, Some(4), "{ended:?}");
}

#[test]
fn what_becomes_of_messages_is_seen_by_others() {
    let town = Town::new();
    town.good("ada", "pub general", b"helo\n");
    let mut grace = town.events("grace", "general --from start");
    grace.until(&json!({ "seq": 1, "body": "helo" }));
    town.good("ada", "pub general --edit 1", b"hello\n");
    grace.until(&json!({ "event": "edit", "target": 1, "user": "ada", "body": "hello" }));
    town.good("bob", "pub general --react 1", "👍\n".as_bytes());
    grace.until(&json!({ "event": "react", "target": 1, "user": "bob", "emoji": "👍" }));
    town.good("bob", "pub general --unreact 1", "👍\n".as_bytes());
    grace.until(&json!({ "event": "unreact", "target": 1, "user": "bob", "emoji": "👍" }));
    town.good("bob", "pub general --reply-to 1", b"hi @ada\n");
    let reply = grace.until(&json!({ "from": "bob", "reply_to": 1 }));
    // Others may not change what ada wrote.
    town.refused("bob", "pub general --edit 1", b"mine\n", "forbidden");
    assert_eq!(town.good("bob", "history general", b""), "hello\nhi @ada\n");
    assert_eq!(town.good("bob", "history general --resolved=false", b""), "helo\nhi @ada\n");
    let resolved = town.json("bob", "history general --resolved");
    assert_eq!((&resolved[0]["body"], &resolved[0]["edited"]), (&json!("hello"), &json!(true)));

    town.good("bob", &format!("pub general --redact {}", reply["seq"]), b"");
    grace.until(&json!({ "event": "redact", "target": reply["seq"], "user": "bob" }));
    assert_eq!(town.good("ada", "history general", b""), "hello\n");
    let lines = town.json("ada", "history general");
    assert_eq!((&lines[1]["redacted"], &lines[1]["body"]), (&json!(true), &json!("")));
    town.refused("ada", "pub general --react 99", b"x\n", "message_unknown");
}

#[test]
fn a_conversation_is_for_those_in_it() {
    let town = Town::new();
    let channel = town.good("ada", "dm grace hello", b"");
    let channel = channel.trim();
    // Opened from the other side, it is the same.
    assert_eq!(town.good("grace", "dm ada", b"").trim(), channel);
    assert_eq!(town.good("grace", &format!("history {channel}"), b""), "hello\n");
    let mine = town.json("grace", "channel list");
    assert_eq!(
        (&mine[0]["channel"], &mine[0]["kind"], &mine[0]["unread"]),
        (&json!(channel), &json!("direct"), &json!(1))
    );
    let ended = town.run("eve", &format!("history {channel}"), b"");
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert_eq!(town.json("eve", "channel list --all"), Vec::<Value>::new());
}

#[test]
fn the_newest_matches_are_found_first() {
    let town = Town::new();
    let lines: Vec<u8> = (0..600)
        .flat_map(|n| format!("line {n}{}\n", if n % 200 == 7 { " Needle" } else { "" }).into_bytes())
        .collect();
    town.good("ada", "pub general", &lines);
    let found = town.json("ada", "search general needle");
    let bodies: Vec<_> = found.iter().map(|line| line["body"].as_str().expect("text")).collect();
    assert_eq!(bodies, ["line 407 Needle", "line 207 Needle", "line 7 Needle"]);
    assert_eq!(town.json("ada", "search general needle --limit 1").len(), 1);
    assert_eq!(town.good("ada", "search general nothing", b""), "");
    town.good("ada", "pub general", b"Needle \x1b[2J\n");
    let shown = town.good("ada", "search general needle --limit 1", b"");
    assert!(shown.contains("Needle \u{fffd}[2J") && !shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn topics_roles_and_profiles_are_shown_harmlessly() {
    let town = Town::new();
    town.good("ada", "channel create news --post moderators", b"");
    town.good("grace", "channel join news", b"");
    town.refused("grace", "pub news", b"no\n", "forbidden");
    town.good("ada", "channel role news grace moderator", b"");
    town.good("grace", "pub news", b"yes\n");
    town.good("grace", "channel topic news today", b"");
    assert_eq!(town.good("ada", "channel topic news", b""), "today\n");
    let mut evil = town.home.command(&format!("profile set --token {}", town.token("grace")));
    evil.args(["--display", "G\u{1b}[31mrace", "--status", "counting"]);
    let ended = binary::end(evil.spawn().expect("the binary runs"), "profile set");
    let shown = town.good("ada", "profile show grace", b"");
    match ended.code {
        // Taken, and shown harmlessly.
        Some(0) => assert!(shown.contains("G\u{fffd}[31mrace") && !shown.contains('\x1b'), "{shown:?}"),
        code => assert_eq!(code, Some(4), "{ended:?}"),
    }
    town.good("grace", "profile set --display Grace --status counting", b"");
    let shown = town.json("ada", "profile show grace");
    assert_eq!((&shown[0]["display"], &shown[0]["status"]), (&json!("Grace"), &json!("counting")));
    let list = town.good("ada", "channel list", b"");
    assert!(list.starts_with("CHANNEL") && list.contains("news") && list.contains("owner"), "{list}");
}

#[test]
fn who_reads_with_events_is_seen() {
    let town = Town::new();
    town.good("ada", "channel create general", b"");
    let mut ada = town.events("ada", "general");
    let mut grace = town.events("grace", "general");
    ada.until(&json!({ "event": "join", "user": "grace" }));
    grace.until(&json!({ "event": "join", "user": "ada" }));
    let users = |town: &Town| -> Vec<String> {
        let who = town.json("bob", "who general");
        who.iter().map(|who| who["user"].as_str().expect("a name").to_owned()).collect()
    };
    eventually("both", || users(&town) == ["ada", "grace"]);
    assert_eq!(town.json("bob", "profile show ada")[0]["state"], "online");
    // Asked to end, it says so.
    binary::signal(grace.child.id(), "TERM");
    ada.until(&json!({ "event": "leave", "user": "grace" }));
    eventually("one", || users(&town) == ["ada"]);
}

#[tokio::test]
async fn what_was_read_on_one_device_is_read_on_all() {
    let town = Town::new();
    town.good("ada", "channel create general", b"");
    town.good("grace", "channel join general", b"");
    town.good("ada", "pub general", b"one\n@grace two\nthree\n");
    let unread = |town: &Town| {
        let list = town.json("grace", "channel list");
        (list[0]["unread"].clone(), list[0]["mentions"].clone())
    };
    assert_eq!(unread(&town), (json!(3), json!(1)));
    // One device reads two of them; another one knows.
    let builder = thalweg_client::Client::builder().local(town.home.path("state/thalweg")).token(town.token("grace"));
    let client = builder.connect().await.expect("connected");
    let page = client.read_history("general", thalweg_client::Position(0), 0).await.expect("a page");
    let messages: Vec<_> = page
        .items
        .iter()
        .filter_map(|item| match item {
            thalweg_client::Item::Message(message) => Some(message),
            _ => None,
        })
        .collect();
    client.mark_read("general", messages[1].position, messages[1].number()).await.expect("noted");
    assert_eq!(unread(&town), (json!(1), json!(0)));
    // A mark does not go back.
    client.mark_read("general", messages[0].position, messages[0].number()).await.expect("noted");
    assert_eq!(unread(&town), (json!(1), json!(0)));
    client.close().await;
}
