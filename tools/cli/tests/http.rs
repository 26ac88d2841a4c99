//! The HTTP address of the real binary: health through its life, metrics that every tool reads, and files that name them.

mod binary;
mod exposition;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use binary::{Home, Node, PATIENCE, eventually, model};
use serde_json::Value;

/// One request: the status, the headers, the body. None if nobody listens.
fn request(http: &str, path: &str, headers: &str) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(http).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {http}\r\nconnection: close\r\n{headers}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, head.to_owned(), body.to_owned()))
}

fn get(node: &Node, path: &str) -> (u16, String) {
    let (status, _, body) = request(&node.http, path, "").expect("it listens");
    (status, body)
}

fn serve(home: &Home) -> Node {
    home.serve("--no-model --quic 127.0.0.1:0 --http 127.0.0.1:0")
}

#[test]
fn health_is_told_from_start_to_end() {
    let home = Home::new();
    let node = serve(&home);
    let announced = std::fs::read_to_string(home.path("state/thalweg/node.json")).expect("it announces itself");
    let announced: Value = serde_json::from_str(&announced).expect("JSON");
    assert_eq!(announced["http"], node.http.as_str());
    for path in ["/health", "/health/ready", "/health/readiness", "/health/live", "/health/liveness"] {
        let (status, body) = get(&node, path);
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(
            (status, body["status"].as_str(), body["epoch"].as_u64()),
            (200, Some("ok"), Some(1)),
            "{path} {body}"
        );
    }
    let (status, body) = get(&node, "/nothing");
    assert!(status == 404 && body.contains("\"not_found\""), "{body}");

    // Somebody reads what is never said, so that the node has somebody to part with.
    let mut reader = home.command("sub general").spawn().expect("the binary runs");
    eventually("the reader", || get(&node, "/metrics").1.contains("\nthalweg_subscriptions{core=\"0\"} 1\n"));
    let http = node.http.clone();
    let watching = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        // Until nobody listens: the stage ends last.
        while let Some((status, _, body)) = request(&http, "/health", "") {
            let body: Value = serde_json::from_str(&body).expect("JSON");
            seen.insert((status, body["status"].as_str().unwrap_or_default().to_owned()));
        }
        seen
    });
    assert_eq!(home.run("admin drain", b"").code, Some(0));
    assert_eq!(node.ended(), Some(0));
    let seen = watching.join().expect("no panic");
    assert!(seen.contains(&(503, "draining".to_owned())), "{seen:?}");
    let others: Vec<_> = seen
        .iter()
        .filter(|(status, word)| !matches!((*status, word.as_str()), (200, "ok") | (503, "draining")))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    drop(reader.kill());
    drop(reader.wait());
}

#[test]
fn the_usual_port_is_not_needed_but_a_chosen_one_is() {
    let home = Home::new();
    let node = serve(&home);
    let other = home.path("other");
    let line = format!("serve --no-model --quic 127.0.0.1:0 --data {} --http {}", other.display(), node.http);
    let ended = home.run(&line, b"");
    assert!(ended.code == Some(1) && ended.stderr.contains("the port is taken"), "{ended:?}");
    let off = home.serve(&format!("--no-model --quic 127.0.0.1:0 --http off --data {}", other.display()));
    assert_eq!(off.http, "off");
}

/// Who asks and does not read stops the model, which goes on for others; who then reads gets the whole answer.
#[test]
fn a_slow_reader_of_events_parks_its_answer() {
    const TOKENS: usize = 700;
    let Some(path) = model() else { return };
    let home = Home::new();
    let node = home.serve(&format!("--quic 127.0.0.1:0 --http 127.0.0.1:0 --model {}", path.display()));
    let token = home.run("admin token", b"").stdout.trim().to_owned();
    // The tokens that end a text are forbidden.
    let body = format!(
        r#"{{"model":"model","prompt":"Once upon a time","max_tokens":{TOKENS},"stream":true,"logit_bias":{{"0":-100,"2":-100}}}}"#
    );
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    // The kernel hides less of what is not read.
    socket.set_recv_buffer_size(4 << 10).expect("set");
    let address: std::net::SocketAddr = node.http.parse().expect("an address");
    socket.connect(&address.into()).expect("it listens");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        node.http,
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).expect("it listens");
    let has = |state: &str, count: u32| {
        let line = format!("\nthalweg_model_generations{{model=\"model\",state=\"{state}\"}} {count}\n");
        get(&node, "/metrics").1.contains(&line)
    };
    eventually("the parked answer", || has("parked", 1));

    // Somebody else is answered meanwhile.
    let ended = home.run("ask Hello --max-tokens 4", b"");
    assert!(ended.code == Some(0) && has("parked", 1) && has("running", 0), "{ended:?}");

    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let pieces = answer.matches("\"finish_reason\":null").count();
    let last = answer.contains("\"finish_reason\":\"length\"") && answer.contains("data: [DONE]");
    assert!(answer.starts_with("HTTP/1.1 200 ") && last, "{answer}");
    // Some tokens are no text of their own, as they are parts of a character.
    assert!(pieces <= TOKENS && pieces > TOKENS * 9 / 10, "{pieces} of {TOKENS}");
    eventually("the end", || has("parked", 0) && has("running", 0));
    let metrics = get(&node, "/metrics").1;
    assert!(metrics.contains("\nthalweg_inference_without_credit_total 0\n"), "{metrics}");
}

#[test]
fn metrics_from_elsewhere_need_a_token_that_allows_them() {
    let home = Home::new();
    let node = serve(&home);
    let token = |allow: &str| home.run(&format!("admin token --allow {allow}"), b"").stdout.trim().to_owned();
    let status = |host: &str, token: &str| {
        let mut stream = TcpStream::connect(&node.http).expect("it listens");
        let bearer = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{bearer}\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status("127.0.0.1", ""), "200");
    assert_eq!(status("metrics.example", ""), "401");
    assert_eq!(status("metrics.example", "nonsense"), "401");
    assert_eq!(status("metrics.example", &token("read:*")), "403");
    assert_eq!(status("metrics.example", &token("admin:metrics")), "200");
}

#[test]
fn metrics_are_what_their_standards_and_our_files_say() {
    let home = Home::new();
    let node = serve(&home);
    assert_eq!(home.run("pub general", b"one\ntwo\n").code, Some(0));
    assert_eq!(home.run("pub general --token nonsense", b"three\n").code, Some(4));
    let (_, head, text) = request(&node.http, "/metrics", "").expect("it listens");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let open = "accept: application/openmetrics-text; version=1.0.0\r\n";
    let (_, head, open) = request(&node.http, "/metrics", open).expect("it listens");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");

    let families = exposition::check(&text, false);
    let names: BTreeSet<_> = families.keys().cloned().collect();
    assert_eq!(names, exposition::check(&open, true).keys().cloned().collect(), "both formats say the same");
    assert!(names.iter().all(|name| name.starts_with("thalweg_")), "{names:?}");
    assert_eq!(families["thalweg_unlisted"].samples, Vec::<String>::new(), "give them rows in metrics/names.rs");
    let has = |line: &str| assert!(text.contains(line), "no {line:?} in {text}");
    has("\nthalweg_messages_published_total{core=\"0\"} 2\n");
    has("\nthalweg_rejects_total{code=\"token_invalid\"} 1\n");
    has("\nthalweg_stage_duration_seconds_count{stage=\"publish\"} 2\n");

    // What the alerts and the dashboard name is there.
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for (file, most) in [("prometheus/alerts.yml", 25), ("grafana/dashboard.json", 40)] {
        let named = named(&std::fs::read_to_string(deploy.join(file)).expect("the file is there"));
        assert!(named.len() >= most, "{file} names {} metrics only", named.len());
        let known = |name: &String| {
            let base = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            names.contains(name) || base.is_some_and(|base| names.contains(base))
        };
        let unknown: Vec<_> = named.iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{file} names what no node exposes: {unknown:?}");
    }
    judge(&deploy, &text);
}

/// The metrics that a file names: words that begin with `thalweg_`. Recorded ones have a colon.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '-'));
    words.filter(|word| word.starts_with("thalweg_")).map(str::to_owned).collect()
}

/// Asks Prometheus' own tool too, where there is one.
fn judge(deploy: &Path, text: &str) {
    let run = |arguments: &[&str], directory: PathBuf, input: &str| {
        let mut promtool = Command::new("promtool");
        promtool.args(arguments).current_dir(directory);
        let mut child = promtool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_owned();
        let feeding = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("it ends");
        feeding.join().expect("no panic");
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let Some((fine, said)) = run(&["check", "metrics"], deploy.to_owned(), text) else {
        println!("skipped: promtool is not here (Debian: apt-get install prometheus); only our own checks were made");
        return;
    };
    assert!(fine && said.trim().is_empty(), "promtool check metrics: {said}");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let (fine, said) = run(&arguments, deploy.join("prometheus"), "").expect("it was there a moment ago");
        assert!(fine, "promtool {arguments:?}: {said}");
    }
}
