//! The binary end to end: a real node, real commands, real QUIC.

mod binary;

use std::io::{BufRead as _, BufReader, Write as _};

use binary::{Home, end, eventually, model};
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn what_is_published_comes_out_in_order_with_its_sequence() {
    let home = Home::new();
    let node = home.serve("--no-model --quic 127.0.0.1:0");
    let data = home.path("state/thalweg");
    assert_eq!(node.ready, format!("ready quic={} http=off data={} models=", node.quic, data.display()));

    let published = home.run("pub general --print-acks", b"one\n\xff\x00\n\nlast");
    assert_eq!((published.code, published.stdout.as_str()), (Some(0), "1\n2\n3\n4\n"), "{published:?}");
    let read = home.run("sub general --from start --count 4 --json", b"");
    assert_eq!(read.code, Some(0), "{read:?}");
    let lines = json_lines(&read.stdout);
    let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!((&lines[0]["body"], &lines[1]["body_base64"]), (&"one".into(), &"/wA=".into()));
    assert_eq!((&lines[2]["body"], &lines[3]["body"]), (&"".into(), &"last".into()));
    let ts = lines[0]["ts"].as_str().expect("text");
    assert!(ts.len() == 27 && ts.ends_with('Z') && ts.as_bytes()[10] == b'T', "{ts}");

    assert_eq!(home.run("sub general --from 4 --count 1", b"").stdout, "last\n");
    assert_eq!(home.run("sub general --count 0", b"").code, Some(0));
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_reader_gets_what_comes_later_and_a_closed_pipe_ends_it() {
    let home = Home::new();
    let _node = home.serve("--no-model --quic 127.0.0.1:0");
    assert_eq!(home.run("pub live", b"before\n").code, Some(0));
    let mut reader = home.command("sub live --from 1 --json").spawn().expect("the binary runs");
    let mut lines = BufReader::new(reader.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert!(next().contains(r#""body":"before""#));
    for text in ["x", "y"] {
        assert_eq!(home.run("pub live", text.as_bytes()).code, Some(0));
        assert!(next().contains(&format!(r#""body":"{text}""#)));
    }
    drop(lines);
    // The reader learns that nobody reads when it next writes.
    assert_eq!(home.run("pub live", b"z\n").code, Some(0));
    assert_eq!(end(reader, "sub").code, Some(0));
}

#[test]
fn people_in_a_chat_see_each_other_and_not_themselves() {
    let home = Home::new();
    let _node = home.serve("--no-model --quic 127.0.0.1:0");
    let join = |user: &str| {
        let token = home.run(&format!("admin token --user {user}"), b"").stdout;
        let mut chat = home.command(&format!("chat lobby --token {}", token.trim()));
        let mut chat = chat.spawn().expect("the binary runs");
        let mut greeting = String::new();
        BufReader::new(chat.stderr.as_mut().expect("piped")).read_line(&mut greeting).expect("text");
        assert!(greeting.contains(&format!("You are {user} in lobby")), "{greeting}");
        chat
    };
    let (mut ada, mut grace) = (join("ada"), join("grace"));
    let say = |chat: &mut std::process::Child, text: &str| {
        chat.stdin.as_mut().expect("piped").write_all(text.as_bytes()).expect("it reads");
    };
    say(&mut ada, "hello grace\n");
    let mut heard = BufReader::new(grace.stdout.take().expect("piped")).lines();
    assert_eq!(heard.next().expect("a line").expect("text"), "ada: hello grace");
    say(&mut grace, "hello \x1b[31mada\n/nonsense\n/quit\n");
    let rest: Vec<_> = heard.map(|line| line.expect("text")).collect();
    assert_eq!(rest, ["(/nonsense is not known; there are /help and /quit)"]);
    assert_eq!(end(grace, "chat").code, Some(0));
    let mut heard = BufReader::new(ada.stdout.take().expect("piped")).lines();
    assert_eq!(heard.next().expect("a line").expect("text"), "grace: hello \u{fffd}[31mada");
    // The end of the input leaves.
    drop(ada.stdin.take());
    assert_eq!(end(ada, "chat").code, Some(0));
    assert_eq!(heard.count(), 0, "no echo");
}

#[test]
fn failures_have_their_exit_codes_and_say_what_to_do() {
    let home = Home::new();
    let check = |line: &str, code: i32, expected: &str| {
        let ended = home.run(line, b"x\n");
        assert_eq!(ended.code, Some(code), "{line}: {ended:?}");
        assert!(ended.stderr.contains(expected), "{line}: {ended:?}");
        assert_eq!(ended.stdout, "", "{line}");
    };
    check("pub general", 3, "no node runs with this data directory");
    check("pub general --server 127.0.0.1:9 --token t --trust-first", 3, "no answer");
    check("pub general --server 127.0.0.1:9", 2, "--token");
    check("serve --no-model --quic 127.0.0.1:0 --http 0.0.0.0:0", 2, "--http-allow-plain");
    check("serve --model nonsense", 1, "models list");
    check("serve --no-model --config /nowhere.toml", 2, "/nowhere.toml");
    check("admin token", 1, "start a node there once");
    check("models pull nonsense", 2, "not a known model");
    check("models rm nonsense", 1, "no model");
    std::fs::write(home.path("bad.gguf"), b"GGUF\x03\0\0\0").expect("written");
    let bad = format!("serve --quic 127.0.0.1:0 --model {}", home.path("bad.gguf").display());
    check(&bad, 1, "bad.gguf");
    std::fs::write(home.path("file"), b"").expect("written");
    check(&format!("serve --no-model --data {}", home.path("file").display()), 1, "--data DIR");

    let node = home.serve("--no-model --quic 127.0.0.1:0");
    check("pub general --token nonsense", 4, "token_invalid");
    check("ask hi", 4, "models pull");
    check("pub two:words\u{7}", 2, "channel");
    check("sub general --from start --policy nonsense", 2, "replay");
    check("serve --no-model", 1, "used by another node");
    let taken = format!("serve --no-model --data {} --quic {}", home.path("other").display(), node.quic);
    check(&taken, 1, &node.quic);
    // Not a terminal: an unknown key is not trusted silently.
    let token = home.run("admin token --allow read:public-*", b"").stdout;
    let abroad = format!("--server {} --token {} --data {}", node.quic, token.trim(), home.path("none").display());
    check(&format!("sub public-1 {abroad}"), 4, "--trust-first");
    check(&format!("sub private {abroad} --trust-first"), 4, "forbidden");
    // It was remembered.
    check(&format!("pub public-1 {abroad}"), 4, "forbidden");
}

/// A superuser locks what it likes, so the node runs as nobody, from a copy that nobody can reach.
#[test]
fn too_little_locked_memory_is_named_with_its_remedy() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65_534;
    let home = Home::new();
    let place = home.path("nobody");
    std::fs::create_dir(&place).expect("made");
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).expect("opened to all");
    let program = place.join("thalweg");
    std::fs::copy(env!("CARGO_BIN_EXE_thalweg"), &program).expect("copied");
    let mut shell = std::process::Command::new("sh");
    let script = r#"ulimit -l 64; exec timeout 30 "$0" serve --no-model --quic 127.0.0.1:0 --data "$1""#;
    shell.arg("-c").arg(script).arg(&program).arg(place.join("data"));
    if std::fs::metadata("/proc/self").expect("our own process").uid() == 0 {
        shell.uid(NOBODY).gid(NOBODY);
    }
    let ended = shell.output().expect("a shell");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("ulimit -l") && said.contains("core 0"), "{said}");
}

#[test]
fn a_node_drains_when_it_is_told_to() {
    let home = Home::new();
    let node = home.serve("--no-model --quic 127.0.0.1:0");
    let stats = home.run("admin stats --json", b"");
    assert!(serde_json::from_str::<Value>(&stats.stdout).is_ok_and(|stats| stats.is_object()), "{stats:?}");
    assert!(home.run("admin stats", b"").stdout.contains("cores.0."));
    let drained = home.run("admin drain", b"");
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert_eq!(node.ended(), Some(0));
    assert!(!home.path("state/thalweg/node.json").exists());
}

#[test]
fn pub_goes_on_over_a_restart_of_the_node() {
    for crash in [false, true] {
        let home = Home::new();
        // Below the ports the system gives out: while the node is away nobody else's socket gets its port.
        let port = 20_000 + (2 * std::process::id() + u32::from(crash)) % 10_000;
        let node = home.serve(&format!("--no-model --quic 127.0.0.1:{port}"));
        let mut publisher = home.command("pub general --print-acks --timeout 30s").spawn().expect("the binary runs");
        let mut acks = BufReader::new(publisher.stdout.take().expect("piped")).lines();
        let mut stdin = publisher.stdin.take().expect("piped");
        stdin.write_all(b"a\nb\n").expect("it reads");
        assert_eq!([acks.next(), acks.next()].map(|ack| ack.expect("a line").expect("text")), ["1", "2"]);
        let quic = node.quic.clone();
        if crash {
            node.kill()
        } else {
            assert_eq!(node.terminate(), Some(0))
        }
        stdin.write_all(b"c\nd\n").expect("it reads");
        let _node = home.serve(&format!("--no-model --quic {quic}"));
        drop(stdin);
        let rest: Vec<_> = acks.map(|ack| ack.expect("text")).collect();
        assert_eq!(rest, ["3", "4"]);
        assert_eq!(end(publisher, "pub").code, Some(0));
        let read = home.run("sub general --from start --count 4", b"");
        assert_eq!(read.stdout, "a\nb\nc\nd\n");
    }
}

#[test]
fn a_model_answers_is_resumed_and_gives_the_same_again() {
    let Some(model) = model() else { return };
    let home = Home::new();
    let link = home.path("tiny.gguf");
    std::os::unix::fs::symlink(model, &link).expect("linked");
    let node = home.serve(&format!("--quic 127.0.0.1:0 --model {}", link.display()));
    assert!(node.ready.ends_with("models=tiny"), "{}", node.ready);

    let line = "ask - --json --seed 7 --max-tokens 12";
    let ended = home.run(line, b"Name a river.");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = json_lines(&ended.stdout);
    let (first, last) = (lines.first().expect("a line"), lines.last().expect("a line"));
    assert_eq!(first["model"], "tiny");
    let tokens: String = lines[1..lines.len() - 1].iter().filter_map(|line| line["token"].as_str()).collect();
    assert_eq!(last["text"], tokens.as_str());
    assert!(!tokens.trim().is_empty() && last["usage"]["completion_tokens"].as_u64() > Some(0), "{last}");
    assert!(matches!(last["finish_reason"].as_str(), Some("stop" | "length")), "{last}");

    let again = home.run(line, b"Name a river.");
    assert_eq!(json_lines(&again.stdout).last().expect("a line")["text"], tokens.as_str(), "the same seed");
    let id = first["id"].as_str().expect("an id");
    let resumed = home.run(&format!("ask --resume {id} --from 2 --json"), b"");
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    let resumed = json_lines(&resumed.stdout);
    assert_eq!(resumed[1]["index"], 2);
    assert!(tokens.ends_with(resumed.last().expect("a line")["text"].as_str().expect("text")));
    let plain = home.run("ask Hello --max-tokens 4", b"");
    assert!(plain.code == Some(0) && plain.stderr.starts_with("g-") && plain.stdout.ends_with('\n'), "{plain:?}");

    // In a channel the whole answer is a message too.
    assert_eq!(home.run("pub talk", b"@ai Say hello.\n").code, Some(0));
    let read = home.run("sub talk --from start --count 2 --json --events", b"");
    let lines = json_lines(&read.stdout);
    assert!(lines.iter().any(|line| line["event"] == "tokens"), "{read:?}");
    assert_eq!(lines.last().expect("a line")["from"], "ai/tiny");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_second_signal_ends_a_node_at_once() {
    let Some(model) = model() else { return };
    let home = Home::new();
    let node = home.serve(&format!("--quic 127.0.0.1:0 --model {}", model.display()));
    let mut asking = home.command("ask Count-to-a-thousand. --max-tokens 4000").spawn().expect("the binary runs");
    let mut first = [0];
    std::io::Read::read_exact(asking.stdout.as_mut().expect("piped"), &mut first).expect("a token");
    let id = node.id();
    binary::signal(id, "TERM");
    eventually("the node's farewell", || home.run("admin stats", b"").code != Some(0));
    binary::signal(id, "TERM");
    assert_ne!(node.ended(), Some(0));
    drop(asking.kill());
    drop(asking.wait());
}
