//! What outlives a node that is killed, and what its operator can do: the real binary, real files, real signals.

mod binary;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout};

use binary::{Home, end, model};
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Somebody who publishes numbered lines, and reads what was acknowledged.
struct Publisher {
    child: Child,
    acks: std::io::Lines<BufReader<ChildStdout>>,
    feeding: std::thread::JoinHandle<u64>,
    acknowledged: Vec<u64>,
}

impl Publisher {
    /// Publishes lines until there were `lines`, or `end` is gone.
    fn start(home: &Home, channel: &str, lines: u64) -> Self {
        let mut child = home.command(&format!("pub {channel} --print-acks --timeout 60s")).spawn().expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        let feeding = std::thread::spawn(move || {
            for line in 0..lines {
                if stdin.write_all(format!("line {line}\n").as_bytes()).is_err() {
                    return line;
                }
            }
            lines
        });
        let acks = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, acks, feeding, acknowledged: Vec::new() }
    }

    /// Waits until so many were acknowledged in all.
    fn wait_for(&mut self, count: usize) {
        while self.acknowledged.len() < count {
            let ack = self.acks.next().expect("an acknowledgement").expect("text");
            self.acknowledged.push(ack.parse().expect("a sequence"));
        }
    }

    /// Waits for the rest; gives all that was acknowledged.
    fn finish(mut self) -> Vec<u64> {
        self.acknowledged.extend(self.acks.map(|ack| ack.expect("text").parse::<u64>().expect("a sequence")));
        let ended = end(self.child, "pub");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(self.feeding.join().expect("no panic"), self.acknowledged.len() as u64);
        self.acknowledged
    }
}

/// All of a channel as `history --json` prints it.
fn history(home: &Home, channel: &str, more: &str) -> Vec<Value> {
    let ended = home.run(&format!("history {channel} --json {more}"), b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    json_lines(&ended.stdout)
}

fn bodies(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["body"].as_str().expect("a body")).collect()
}

#[test]
fn what_was_acknowledged_outlives_kills_and_is_there_once() {
    let home = Home::new();
    let mut node = home.serve("--no-model --quic 127.0.0.1:0 --cores 2");
    assert_eq!(home.run("channel create general --keep-messages 1000000", b"").code, Some(0));
    let mut publisher = Publisher::start(&home, "general", 20_000);
    for (count, cores) in [(500, 1), (6_000, 3), (13_000, 2)] {
        publisher.wait_for(count);
        node.kill();
        node = home.serve(&format!("--no-model --quic 127.0.0.1:0 --cores {cores}"));
    }
    let acknowledged = publisher.finish();
    let lines = history(&home, "general", "");
    let expected: Vec<_> = (0..20_000).map(|line| format!("line {line}")).collect();
    assert!(bodies(&lines) == expected, "{} messages", lines.len());
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert!(seqs == acknowledged && seqs == (1..=20_000).collect::<Vec<_>>());
    // Pages and readers show the same.
    let page = history(&home, "general", "--from 7000 --limit 2000");
    assert!(page == lines[6_999..8_999], "{} lines", page.len());
    let read = home.run("sub general --from 19990 --count 11 --json", b"");
    assert_eq!(json_lines(&read.stdout), lines[19_989..]);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn channels_are_as_durable_as_their_maker_said_and_can_be_deleted() {
    let home = Home::new();
    let node = home.serve("--no-model --quic 127.0.0.1:0");
    let check = |line: &str, code: i32, expected: &str| {
        let ended = home.run(line, b"hello\n");
        assert_eq!(ended.code, Some(code), "{line}: {ended:?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains(expected), "{line}: {ended:?}");
    };
    check("channel create brief --durability memory", 0, "brief made");
    check("channel create brief --durability disk", 0, "there already");
    check("channel create short --keep-messages 300", 0, "made");
    check("pub brief", 0, "");
    check("pub kept", 0, "");
    check("pub gone", 0, "");
    check("channel delete gone", 0, "deleted");
    check("channel delete gone", 4, "channel_unknown");
    check("history gone", 4, "channel_unknown");
    let many: String = (0..3_000).map(|line| format!("{line}\n")).collect();
    assert_eq!(home.run("pub short", many.as_bytes()).code, Some(0));
    node.kill();

    let node = home.serve("--no-model --quic 127.0.0.1:0 --cores 2");
    check("history kept", 0, "hello\n");
    let brief = home.run("history brief", b"");
    assert_eq!(brief.stdout, "", "{brief:?}");
    check("history gone", 4, "channel_unknown");
    // What is no longer kept is told, in steps; what is kept is there.
    let short = history(&home, "short", "--from 1");
    let first = short[1]["seq"].as_u64().expect("a message");
    assert_eq!(short[0], serde_json::json!({ "missed": { "from": 1, "to": first - 1 } }));
    assert_eq!((short.last().expect("some")["body"].as_str(), short.len() > 300), (Some("2999"), true));

    check("admin delete-tenant default", 2, "--yes");
    let other = home.run("admin token --tenant other", b"").stdout;
    check(&format!("pub theirs --token {}", other.trim()), 0, "");
    check("admin delete-tenant default --yes", 0, "default: ");
    check("history kept", 4, "channel_unknown");
    node.kill();
    let _node = home.serve("--no-model --quic 127.0.0.1:0");
    check("history kept", 4, "channel_unknown");
    check(&format!("history theirs --token {}", other.trim()), 0, "hello\n");
}

#[test]
fn a_dead_node_is_not_waited_for_longer_than_asked() {
    let home = Home::new();
    home.serve("--no-model --quic 127.0.0.1:0").kill();
    let ended = home.run("pub general --timeout 300ms", b"hello\n");
    assert!(ended.code == Some(3) && ended.stderr.contains("no answer within 300ms"), "{ended:?}");
}

fn backup(home: &Home, backup: &Path) -> Value {
    let ended = home.run(&format!("admin backup {} --json", backup.display()), b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    json_lines(&ended.stdout).remove(0)
}

/// What is in a node that has this data directory.
fn history_of(home: &Home, data: &Path, channel: &str) -> Vec<Value> {
    let data = format!("--data {}", data.display());
    let node = home.serve(&format!("--no-model --quic 127.0.0.1:0 {data}"));
    let lines = history(home, channel, &data);
    assert_eq!(node.terminate(), Some(0));
    lines
}

#[test]
fn a_backup_of_a_node_at_work_is_a_node_as_it_was() {
    let home = Home::new();
    let node = home.serve("--no-model --quic 127.0.0.1:0 --log-file-bytes 2MiB");
    assert_eq!(home.run("channel create general --keep-messages 1000000", b"").code, Some(0));
    let mut publisher = Publisher::start(&home, "general", 20_000);
    publisher.wait_for(2_000);
    let place = home.path("backup");
    let first = backup(&home, &place);
    assert!(first["copied"].as_u64() > Some(0) && first["messages"].as_u64() >= Some(2_000), "{first}");
    let early = home.path("early");
    let restore = |to: &Path| home.run(&format!("admin restore {} --data {}", place.display(), to.display()), b"");
    let restored = restore(&early);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    publisher.finish();
    let all = history(&home, "general", "");
    let then = history_of(&home, &early, "general");
    assert!(then.len() >= 2_000 && then == all[..then.len()], "{} of {}", then.len(), all.len());

    // Again: what is there is not copied again, and what was merged away is not kept.
    backup(&home, &place);
    let third = backup(&home, &place);
    assert_eq!(third["copied"], 0, "{third}");
    let key = std::fs::read_to_string(home.path("state/thalweg/node.json")).expect("it serves");
    assert_eq!(node.terminate(), Some(0));
    let late = home.path("late");
    assert_eq!(restore(&late).code, Some(0));
    assert!(history_of(&home, &late, "general") == all);
    let node = home.serve(&format!("--no-model --quic 127.0.0.1:0 --data {}", late.display()));
    let same: Value =
        serde_json::from_str(&std::fs::read_to_string(late.join("node.json")).expect("there")).expect("JSON");
    assert!(key.contains(same["key_sha256"].as_str().expect("a key")), "clients trust it");
    drop(node);

    let taken = restore(&late);
    assert!(taken.code == Some(1) && taken.stderr.contains("has a log already"), "{taken:?}");
    let segment = segments(&place.join("log/segments")).remove(0);
    flip(&segment, 5_000);
    let damaged = restore(&home.path("never"));
    assert!(damaged.code == Some(1) && damaged.stderr.contains("is damaged"), "{damaged:?}");
    assert!(!home.path("never/log").exists());
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(directory).expect("there").map(|entry| entry.expect("read").path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "seg"));
    files.sort();
    files
}

/// Turns one bit of a file over.
fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("there");
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn damage_is_found_shown_and_what_is_intact_is_salvaged() {
    let home = Home::new();
    let node = home.serve("--no-model --quic 127.0.0.1:0");
    let many: String = (0..3_000).map(|line| format!("{line} {}\n", "x".repeat(200))).collect();
    assert_eq!(home.run("pub general", many.as_bytes()).code, Some(0));
    assert_eq!(node.terminate(), Some(0));
    // A new life seals what the one before it wrote.
    assert_eq!(home.serve("--no-model --quic 127.0.0.1:0").terminate(), Some(0));
    let log_checks = || {
        let ended = home.run("doctor --json", b"");
        json_lines(&ended.stdout).into_iter().filter(|check| check["name"] == "log").collect::<Vec<_>>()
    };
    assert!(log_checks().iter().all(|check| check["outcome"] == "pass"), "{:?}", log_checks());

    let files = segments(&home.path("state/thalweg/log/segments"));
    let largest = files.iter().max_by_key(|file| std::fs::metadata(file).expect("there").len()).expect("one");
    let shown = home.run(&format!("doctor --json --show {}", largest.display()), b"");
    let records = json_lines(&shown.stdout);
    assert!(shown.code == Some(0) && records.len() > 1_000, "{} {}", records.len(), shown.stderr);
    assert!(records[0]["position"].is_u64() && records[0]["body"].is_null() && records[0]["body_bytes"].is_u64());
    let bodies = home.run(&format!("doctor --bodies --show {}", largest.display()), b"");
    assert!(bodies.stdout.contains("xxxx"), "{}", bodies.stderr);

    flip(largest, 6_000);
    let found = log_checks();
    let fail = found.iter().find(|check| check["outcome"] == "fail").expect("a problem");
    let name = largest.file_name().expect("a name").to_string_lossy().into_owned();
    let text = fail["found"].as_str().expect("text");
    assert!(text.contains(&name) && text.contains("offset"), "{text}");
    assert!(fail["remedy"].as_str().is_some_and(|remedy| remedy.contains("--salvage")), "{fail}");

    let to = home.path("salvaged");
    let salvaged = home.run(&format!("doctor --json --salvage {}", to.display()), b"");
    assert_eq!(salvaged.code, Some(0), "{salvaged:?}");
    let salvaged = json_lines(&salvaged.stdout).remove(0);
    assert!(!salvaged["lost"].as_array().expect("a list").is_empty(), "{salvaged}");
    let again = home.run(&format!("doctor --salvage {}", to.display()), b"");
    assert!(again.code == Some(1) && again.stderr.contains("not empty"), "{again:?}");
    let data = format!("--data {}", to.display());
    let node = home.serve(&format!("--no-model --quic 127.0.0.1:0 {data}"));
    let rest = history(&home, "general", &data);
    assert_eq!(node.terminate(), Some(0));
    let texts: Vec<_> = rest.iter().filter_map(|line| line["body"].as_str()).collect();
    assert!(texts.len() > 2_000, "{} are left", texts.len());
    let numbers: Vec<u64> =
        texts.iter().map(|text| text.split(' ').next().expect("a number").parse().expect("a number")).collect();
    assert!(numbers.is_sorted() && numbers.last() == Some(&2_999), "{:?}", numbers.last());
}

/// The lines of an answer: its id, the text that its tokens make, and the text it says it has.
fn answer(lines: &[Value]) -> (String, String) {
    let mut tokens: Vec<(u64, String)> = Vec::new();
    for line in &lines[1..lines.len() - 1] {
        if let Some(to) = line["rewound"]["to"].as_u64() {
            tokens.retain(|&(index, _)| index < to);
            continue;
        }
        let index = line["index"].as_u64().expect("an index");
        tokens.push((index, line["token"].as_str().expect("text").to_owned()));
    }
    let text: String = tokens.into_iter().map(|(_, text)| text).collect();
    (text, lines.last().expect("a line")["text"].as_str().expect("text").to_owned())
}

#[test]
fn an_answer_goes_on_over_kills_of_its_node_and_is_the_same() {
    let Some(model) = model() else { return };
    let home = Home::new();
    let serve = |cores: u32| home.serve(&format!("--quic 127.0.0.1:0 --cores {cores} --model {}", model.display()));
    let mut node = serve(1);
    let line = "ask - --json --seed 7 --temperature 0.8 --max-tokens 160 --keep 300s";
    let whole = home.run(line, b"Tell a long story about a river.");
    let (_, whole) = answer(&json_lines(&whole.stdout));

    let mut asking = home.command(line).spawn().expect("it runs");
    asking.stdin.take().expect("piped").write_all(b"Tell a long story about a river.").expect("it reads");
    let mut lines = BufReader::new(asking.stdout.take().expect("piped")).lines();
    let mut read = Vec::new();
    let mut next = |read: &mut Vec<Value>| match lines.next() {
        Some(line) => {
            read.push(serde_json::from_str(&line.expect("text")).expect("JSON"));
            true
        }
        None => false,
    };
    for (tokens, cores) in [(10, 2), (40, 1)] {
        while read.len() < tokens {
            assert!(next(&mut read), "the answer ended early");
        }
        node.kill();
        node = serve(cores);
    }
    while next(&mut read) {}
    assert_eq!(end(asking, "ask").code, Some(0));
    let (tokens, text) = answer(&read);
    assert_eq!((&tokens, &text), (&whole, &whole));

    // Others can read it again, from any token, also in a later life.
    let id = read[0]["id"].as_str().expect("an id").to_owned();
    node.kill();
    let node = serve(1);
    let resumed = home.run(&format!("ask --resume {id} --json"), b"");
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    assert_eq!(answer(&json_lines(&resumed.stdout)).1, whole);
    let rest = home.run(&format!("ask --resume {id} --from 100"), b"");
    assert!(rest.code == Some(0) && whole.ends_with(rest.stdout.trim_end_matches('\n')), "{rest:?}");
    assert_eq!(node.terminate(), Some(0));
}
