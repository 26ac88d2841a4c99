//! Documents from scripts, end to end: a real node, real commands, real QUIC.

mod binary;

use std::io::{BufRead as _, BufReader};

use binary::{Ended, Home, Node, model};
use serde_json::{Value, json};

struct Desk {
    home: Home,
    _node: Node,
}

impl Desk {
    fn new(line: &str) -> Self {
        let home = Home::new();
        let node = home.serve(line);
        Self { home, _node: node }
    }

    fn good(&self, line: &str, input: &str) -> String {
        let ended = self.home.run(line, input.as_bytes());
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
        ended.stdout
    }

    fn json(&self, line: &str) -> Vec<Value> {
        let text = self.good(line, "");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// It ends with this code, and says so in this word.
    fn fails(&self, line: &str, input: &str, code: i32, says: &str) -> Ended {
        let ended = self.home.run(line, input.as_bytes());
        assert_eq!(ended.code, Some(code), "{line}: {ended:?}");
        assert!(ended.stderr.contains(says), "{line}: {ended:?} does not say {says}");
        ended
    }
}

#[test]
fn a_document_is_written_read_compared_and_restored() {
    let desk = Desk::new("--no-model --quic 127.0.0.1:0");
    let said = desk.good("doc put notes -", "one\ntwo\nthree\n");
    assert!(said.starts_with("notes is revision ") && said.contains("(+14 -0)"), "{said}");
    assert_eq!(desk.good("doc get notes", ""), "one\ntwo\nthree\n");
    desk.good("doc version notes draft", "");
    let said = desk.good("doc put notes -", "one\n2\nthree\nfour 👍\n");
    assert!(said.contains("(+9 -3)"), "{said}");
    assert!(desk.good("doc put notes -", "one\n2\nthree\nfour 👍\n").contains("reads so already"));

    let difference = desk.good("doc diff notes draft", "");
    for line in ["--- notes\trevision", "+++ notes\trevision", "-two", "+2", " three", "+four 👍"] {
        assert!(difference.contains(line), "{difference}");
    }
    assert_eq!(desk.good("doc get notes --revision draft", ""), "one\ntwo\nthree\n");
    assert_eq!(desk.json("doc get notes --format json"), [json!({ "content": "one\n2\nthree\nfour 👍\n" })]);

    let log = desk.json("doc log notes --json");
    assert_eq!((&log[0]["inserted"], &log[0]["deleted"], &log[0]["user"]), (&json!(14), &json!(0), &json!("local")));
    assert_eq!((&log[1]["version"], &log[1]["revision"]), (&json!("draft"), &log[0]["revision"]));
    assert_eq!((&log[2]["inserted"], &log[2]["deleted"]), (&json!(9), &json!(3)));
    assert_eq!(desk.json("doc log notes --json --limit 1"), log[2..]);
    let table = desk.good("doc log notes", "");
    assert!(table.contains("+9 -3") && table.contains("\"draft\""), "{table}");

    desk.good("doc restore notes draft", "");
    assert_eq!(desk.good("doc get notes", ""), "one\ntwo\nthree\n");
    let last = log[2]["revision"].as_u64().expect("a number");
    assert_eq!(desk.good(&format!("doc get notes --revision {last}"), ""), "one\n2\nthree\nfour 👍\n");

    assert_eq!(desk.json("doc list --json")[0]["document"], "notes");
    assert!(!desk.good("channel list --all", "").contains("notes"), "documents are no channels to talk in");
    desk.good("doc rm notes", "");
    desk.fails("doc get notes", "", 4, "notes");
}

#[test]
fn positional_operations_and_watching() {
    let desk = Desk::new("--no-model --quic 127.0.0.1:0");
    desk.good("doc put notes -", "tea\n");
    let mut watching = desk.home.command("doc watch notes --json --count 2").spawn().expect("the binary runs");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    // It reads when it is there: somebody who comes is told to it. What it is told before is not known, so edits go on
    // until it has seen enough.
    let mut made = Vec::new();
    let seen = std::thread::spawn(move || lines.by_ref().map_while(Result::ok).collect::<Vec<_>>());
    let start = std::time::Instant::now();
    while watching.try_wait().expect("a child").is_none() {
        assert!(start.elapsed() < binary::PATIENCE, "it does not see edits");
        made.push(desk.good("doc apply notes", "[{\"insert\":\"🍵 \"}]\n"));
    }
    let seen: Vec<Value> =
        seen.join().expect("no panic").iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let edits: Vec<_> = seen.iter().filter(|line| line["ops"] == json!([{ "insert": "🍵 " }])).collect();
    assert_eq!(edits.len(), 2, "{seen:?}");
    let revision = edits[0]["revision"].to_string();
    assert!(made.iter().any(|made| made.trim() == revision), "{made:?} {edits:?}");

    let revision = desk.good("doc put notes -", "one two\n");
    let revision: u64 = revision.split(' ').nth(3).and_then(|word| word.parse().ok()).expect("a revision");
    let input = format!(
        "[{{\"retain\":3}},{{\"insert\":\" and\"}}]\n\n{{\"revision\":{revision},\"ops\":[{{\"retain\":7}},{{\"insert\":\"!\"}}]}}\n"
    );
    let made = desk.good("doc apply notes", &input);
    assert_eq!(made.lines().count(), 2, "{made}");
    assert_eq!(desk.good("doc get notes", ""), "one and two!\n");

    desk.fails("doc apply notes", "nonsense\n", 2, "line 1");
    desk.fails("doc apply notes", "[{\"retain\":99},{\"insert\":\"x\"}]\n", 4, "line 1");
    desk.fails("doc apply notes", "{\"revision\":999,\"ops\":[{\"insert\":\"x\"}]}\n", 4, "999");
}

#[test]
fn what_is_refused() {
    let desk = Desk::new("--no-model --quic 127.0.0.1:0");
    desk.good("doc put notes -", "text\n");
    desk.good("pub general", "hello\n");
    desk.fails("doc get nowhere", "", 4, "nowhere");
    desk.fails("doc get notes --revision 99", "", 4, "99");
    desk.fails("doc get notes --revision draft", "", 4, "draft");
    for line in ["get notes --revision 0", "diff notes 0", "diff notes 1 0", "restore notes 0"] {
        desk.fails(&format!("doc {line}"), "", 2, "no revision 0");
    }
    desk.fails("doc version notes draft --revision 0", "", 2, "0");
    desk.fails(&format!("doc get {}", "x".repeat(1_000)), "", 2, "document");
    desk.fails("doc rm nowhere", "", 4, "no document nowhere");
    desk.fails("edit notes --ai x --max-tokens 0", "", 2, "--max-tokens");
    desk.fails("edit fresh --ai x", "", 4, "model");
    desk.fails("doc get fresh", "", 4, "fresh");
    desk.fails("doc get general", "", 4, "general");
    desk.fails("doc rm general", "", 4, "channel delete");
    desk.fails("sub notes --count 1", "", 4, "notes");
    desk.fails("pub notes", "hello\n", 4, "notes");
    desk.fails("edit notes", "", 2, "doc put");
    desk.fails("edit notes --ai tighten --lines 7-9", "", 2, "lines");
    let token = desk.good("admin token --user guest --allow read:*", "");
    let token = token.trim();
    assert_eq!(desk.good(&format!("doc get notes --token {token}"), ""), "text\n");
    desk.fails(&format!("doc put notes - --token {token}"), "more\n", 4, "write");
    desk.fails(&format!("edit notes --ai x --token {token}"), "", 4, "not write");
}

#[test]
fn a_text_that_is_too_long_changes_nothing() {
    let desk = Desk::new("--no-model --quic 127.0.0.1:0");
    let text =
        |what: &str, lines: usize| (0..lines).map(|line| format!("{what} {line:06} of it\n")).collect::<String>();
    let (first, second) = (text("a line", 150_000), text("another", 150_000));
    desk.good("doc put notes -", &first);
    // As text alone it would fit.
    let more = &second[..(4 << 20) - 200 - first.len()];
    desk.fails("doc put notes -", &(first.clone() + more), 4, "nothing was changed");
    assert!(desk.good("doc get notes", "") == first, "it is as it was");
    // One that fits takes the place of another, although there is no room for both.
    desk.good("doc put notes -", &second);
    assert!(desk.good("doc get notes", "") == second, "it is another");
}

#[test]
fn a_model_writes_in_a_document() {
    let Some(model) = model() else { return };
    let desk = Desk::new(&format!("--quic 127.0.0.1:0 --model {}", model.display()));
    desk.good("doc put notes -", "# Tea\n\nWrite about tea here.\n\nThe end.\n");
    let lines = desk.home.run("edit notes --ai describe --lines 3 --max-tokens 12 --json", b"");
    assert_eq!(lines.code, Some(0), "{lines:?}");
    let lines: Vec<Value> = lines.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let last = lines.last().expect("an outcome");
    assert!(last["tokens"].as_u64().is_some_and(|tokens| tokens > 0 && tokens <= 12), "{last}");
    let text = desk.good("doc get notes", "");
    assert!(text.starts_with("# Tea\n\n") && text.ends_with("\n\nThe end.\n"), "{text}");
    let written = last["text"].as_str().expect("a text").trim();
    assert!(text.contains(written) && !text.contains("Write about tea here."), "{written:?} is not in {text:?}");
    let log = desk.json("doc log notes --json");
    let by_model = |line: &&Value| line["generation"] == lines[0]["id"];
    assert!(log.iter().filter(by_model).count() > 0, "{log:?}");
}
