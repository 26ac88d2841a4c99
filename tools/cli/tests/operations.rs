//! A node as an operator runs it: settings, reload, certificates, memory, what is logged, what the service manager is told.

mod binary;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex};

use binary::{Home, end, eventually, signal};
use serde_json::Value;

/// A node whose log can be read while it runs.
struct Served {
    child: Child,
    quic: String,
    log: Arc<Mutex<String>>,
}

impl Served {
    fn start(home: &Home, line: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = home.command(&format!("serve --no-model --quic 127.0.0.1:0 --http off {line}"));
        let mut child = command.envs(environment.iter().copied()).spawn().expect("the binary runs");
        let (log, mut stderr) = (Arc::new(Mutex::new(String::new())), child.stderr.take().expect("piped"));
        let told = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                told.lock().expect("no panic").push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("text");
        let quic = ready.split(' ').find_map(|field| field.strip_prefix("quic="));
        let quic = quic.unwrap_or_else(|| panic!("serve {line}: {ready}{}", log.lock().expect("no panic"))).to_owned();
        Self { child, quic, log }
    }

    fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    /// Has it read its settings again; gives what it says about that.
    fn reload(&self) -> String {
        let before = self.log().len();
        signal(self.child.id(), "HUP");
        let said = || self.log()[before..].lines().find(|line| line.contains("reloaded")).map(str::to_owned);
        eventually("the reload", || said().is_some());
        // What it says may go on in further lines.
        self.log()[before..].to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authority, and certificates that it issues.
struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of a test");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Writes a certificate for this machine, and its key.
    fn issue(&self, certificate: &Path, key: &Path, kind: &'static rcgen::SignatureAlgorithm) {
        let pair = rcgen::KeyPair::generate_for(kind).expect("a key");
        let params = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        let signed = params.signed_by(&pair, &self.issuer).expect("signed");
        std::fs::write(certificate, format!("{}{}", signed.pem(), self.pem)).expect("written");
        std::fs::write(key, pair.serialize_pem()).expect("written");
    }
}

fn stats(home: &Home) -> Value {
    let stats = home.run("admin stats --json", b"");
    serde_json::from_str(&stats.stdout).unwrap_or_else(|error| panic!("{error}: {stats:?}"))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

fn say(into: &mut ChildStdin, lines: std::ops::Range<u64>) {
    for line in lines {
        writeln!(into, "message {line}").expect("it reads");
    }
}

/// Certificates change, files break and heal, while somebody writes and somebody reads.
#[test]
fn a_reload_loses_no_message_and_says_what_it_could_not_do() {
    const ROUNDS: u64 = 6;
    const EACH: u64 = 50;
    let (home, authority) = (Home::new(), Authority::new());
    let (file, ca) = (home.path("thalweg.toml"), home.path("ca.pem"));
    let (certificate, key) = (home.path("node.pem"), home.path("node.key"));
    write(&ca, &authority.pem);
    authority.issue(&certificate, &key, &rcgen::PKCS_ECDSA_P256_SHA256);
    let settings = "[quic]\ncertificate = \"node.pem\"\nkey = \"node.key\"\n";
    write(&file, settings);
    let node = Served::start(&home, &format!("--config {}", file.display()), &[]);
    let token = home.run("admin token --user ada", b"").stdout;
    // These know nothing of the data directory: they trust the authority, by name and date.
    let far = format!("--server {} --ca {} --token {}", node.quic, ca.display(), token.trim());

    let reader = home.command(&format!("sub stream --from start --count {} --json {far}", ROUNDS * EACH));
    let reader = { reader }.spawn().expect("the binary runs");
    let mut writer = home.command(&format!("pub stream --print-acks {far}")).spawn().expect("the binary runs");
    let mut lines = writer.stdin.take().expect("piped");
    let mut acks = BufReader::new(writer.stdout.take().expect("piped")).lines();
    let mut acked = |until: u64| {
        while acks.next().expect("a line").expect("text") != until.to_string() {}
    };
    say(&mut lines, 0..EACH);
    acked(EACH);
    let kinds = [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384];
    for round in 1..ROUNDS {
        say(&mut lines, round * EACH..round * EACH + EACH / 2);
        authority.issue(&certificate, &key, kinds[round as usize % 2]);
        let said = node.reload();
        assert!(said.contains("settings were reloaded") && !said.contains("unchanged"), "{said}");
        say(&mut lines, round * EACH + EACH / 2..(round + 1) * EACH);
        acked((round + 1) * EACH);
        assert_eq!(home.run(&format!("pub other {far}"), b"x\n").code, Some(0), "who comes now sees the new one");
        assert_eq!(home.run("pub other", b"x\n").code, Some(0), "and who finds the node by its data directory");
    }
    drop(lines);
    assert_eq!(end(writer, "pub").code, Some(0));
    let read = end(reader, "sub");
    let seqs: Vec<_> =
        read.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=ROUNDS * EACH).map(Some).collect::<Vec<_>>(), "{}", read.stderr);
    let counted = stats(&home);
    let expected = 2 + 2 * (ROUNDS - 1) + 1;
    assert_eq!(counted["counters"]["hellos_accepted"], expected, "writer and reader kept their connections");

    // What cannot be used changes nothing, and says why.
    let check = |text: &str, expected: &[&str]| {
        write(&file, text);
        let said = node.reload();
        assert!(expected.iter().all(|expected| said.contains(expected)), "{text}: {said}");
        assert_eq!(home.run(&format!("pub other {far}"), b"x\n").code, Some(0), "{text}: it goes on");
    };
    check("[quic]\nadress = \"x\"\n", &["nothing was changed", "thalweg.toml:2:1", "did you mean `quic.address`?"]);
    check(&format!("{settings}[node]\ncores = 2\n"), &["settings were reloaded", "needs_restart=\"node.cores\""]);
    check(&format!("{settings}[logging]\nlevel = \"debug\"\n"), &["logging.level"]);
    check(settings, &["logging.level"]);
    authority.issue(&home.path("other.pem"), &key, &rcgen::PKCS_ED25519);
    check(settings, &["nothing was changed", "node.key", "is not the key of the first certificate in"]);
    authority.issue(&certificate, &key, &rcgen::PKCS_ED25519);
    check(settings, &["settings were reloaded"]);
    assert_eq!(stats(&home)["node"]["vitals"]["reloads"]["refused"], 2);
}

#[test]
fn a_client_that_checks_certificates_refuses_one_of_nobody() {
    let (home, authority) = (Home::new(), Authority::new());
    let ca = home.path("ca.pem");
    write(&ca, &authority.pem);
    let node = Served::start(&home, "", &[]);
    let token = home.run("admin token", b"").stdout;
    let far = format!("--server {} --ca {} --token {}", node.quic, ca.display(), token.trim());
    let refused = home.run(&format!("pub x --timeout 2s {far}"), b"x\n");
    assert!(matches!(refused.code, Some(3 | 4)), "{refused:?}");
    write(&ca, "");
    let refused = home.run(&format!("pub x --timeout 2s {far}"), b"x\n");
    assert!(refused.code != Some(0) && refused.stderr.contains("no certificate"), "{refused:?}");
}

/// A budget below what the node has makes it refuse in order, and take everybody again afterwards.
#[test]
fn a_node_short_of_memory_refuses_and_recovers() {
    let home = Home::new();
    let file = home.path("thalweg.toml");
    write(&file, "");
    let node = Served::start(&home, &format!("--config {}", file.display()), &[]);
    let token = home.run("admin token --user ada", b"").stdout;
    let publish = || home.run(&format!("pub x --timeout 2s --token {}", token.trim()), b"x\n");
    assert_eq!(publish().code, Some(0));
    let vitals = || stats(&home)["node"]["vitals"]["memory"].clone();
    assert_eq!(vitals()["level"], 0);
    write(&file, "memory.budget = \"16MiB\"");
    assert!(node.reload().contains("memory.budget"));
    eventually("the level", || vitals()["level"] == 3);
    assert!(node.log().contains("memory is short"), "{}", node.log());
    let refused = publish();
    assert!(refused.code != Some(0) && refused.stderr.contains("short of memory"), "{refused:?}");
    // Whoever could do something about it is let in; writes are refused all the same.
    let refused = home.run("pub x --timeout 2s", b"x\n");
    assert!(refused.code != Some(0) && refused.stderr.contains("short of memory"), "{refused:?}");
    write(&file, "");
    node.reload();
    eventually("the level", || vitals()["level"] == 0);
    assert_eq!(publish().code, Some(0));
}

/// What users wrote and what lets them in is in no line of the log, whatever the level.
#[test]
fn a_busy_node_logs_no_secret() {
    let home = Home::new();
    let node = Served::start(&home, "", &[("THALWEG_LOGGING_LEVEL", "trace")]);
    let token = home.run("admin token --user ada", b"").stdout.trim().to_owned();
    let body = "planted-hunter2-body";
    for line in [format!("pub room --token {token}"), "pub room".to_owned()] {
        assert_eq!(home.run(&line, format!("{body}\n@ai {body}\n").as_bytes()).code, Some(0));
    }
    assert_eq!(home.run("sub room --from start --count 2", b"").code, Some(0));
    home.run(&format!("ask {body} --system {body}"), b"");
    home.run(
        &format!("pub room --timeout 1s --token planted.hunter2.token --server {} --trust-first", node.quic),
        b"x\n",
    );
    node.reload();
    let log = node.log();
    assert!(log.contains("TRACE") && log.len() > 10_000, "it says much: {} bytes", log.len());
    let data = home.path("state/thalweg");
    let mut planted = vec![body.to_owned(), "planted.hunter2".to_owned(), token];
    for file in ["local.token", "certificate.key"] {
        let text = std::fs::read_to_string(data.join(file)).expect("there");
        planted.extend(text.lines().filter(|line| line.len() > 20 && !line.starts_with('-')).map(str::to_owned));
    }
    for secret in planted {
        // A token may be logged in part; its last part is what makes it one.
        let secret = secret.rsplit('.').next().expect("a part");
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "a secret is in the log");
    }
}

#[test]
fn the_service_manager_is_told() {
    let home = Home::new();
    let path = home.path("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(binary::PATIENCE)).expect("a time");
    let heard = || {
        let mut buffer = [0; 512];
        let length = manager.recv(&mut buffer).expect("something is said");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().expect("UTF-8")), ("WATCHDOG_USEC", "200000")];
    let mut node = Served::start(&home, "", &environment);
    let ready = heard();
    assert!(ready.starts_with("READY=1\n") && ready.contains(&format!("MAINPID={}", node.child.id())), "{ready}");
    assert_eq!((heard().as_str(), heard().as_str()), ("WATCHDOG=1", "WATCHDOG=1"));
    signal(node.child.id(), "TERM");
    let mut last = heard();
    while last == "WATCHDOG=1" {
        last = heard();
    }
    assert!(last.starts_with("STOPPING=1"), "{last}");
    assert_eq!(node.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn settings_are_checked_and_shown() {
    let home = Home::new();
    let file = home.path("thalweg.toml");
    let example = home.run("admin config example", b"");
    assert_eq!(example.code, Some(0), "{example:?}");
    write(&file, &example.stdout);
    let sound = home.run(&format!("admin config check {}", file.display()), b"");
    assert!(sound.code == Some(0) && sound.stdout.ends_with(": sound\n"), "{sound:?}");
    write(&file, "[quic]\naddress = \"nowhere\"\n[nod]\ncores = 1\n");
    let broken = home.run(&format!("admin config check {}", file.display()), b"");
    assert_eq!(broken.code, Some(2), "{broken:?}");
    for expected in [
        "thalweg.toml:2:11",
        "2 | address = \"nowhere\"\n  |           ^^^^^^^^^",
        "did you mean `[node]`?",
        "2 errors",
    ] {
        assert!(broken.stderr.contains(expected), "{expected:?} is not in\n{}", broken.stderr);
    }
    let refused = home.run(&format!("serve --no-model --config {}", file.display()), b"");
    assert!(refused.code == Some(2) && refused.stderr.contains("thalweg.toml:2:11"), "{refused:?}");

    write(&file, "[memory]\nbudget = \"1GiB\"\n");
    let shown = home.run(&format!("admin config show --config {}", file.display()), b"");
    assert!(shown.stdout.contains("budget = \"1GiB\"  # ") && shown.stdout.contains("thalweg.toml:2"), "{shown:?}");
    let environment = [("THALWEG_DURABILITY_DEFAULT", "memory")];
    let _node = Served::start(&home, &format!("--config {} --cores 1", file.display()), &environment);
    let running = home.run("admin config show --running", b"");
    for expected in [
        "default = \"memory\"  # environment THALWEG_DURABILITY_DEFAULT",
        "cores = 1  # flag --cores",
        "budget = \"1GiB\"  # ",
    ] {
        assert!(running.stdout.contains(expected), "{expected:?} is not in {running:?}");
    }
    let running: Value =
        serde_json::from_str(&home.run("admin config show --running --json", b"").stdout).expect("JSON");
    assert_eq!(running["settings"]["node.cores"]["value"], 1);

    let doctor = home.run(&format!("doctor --json --config {}", file.display()), b"");
    let checks: Vec<Value> = doctor.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let outcome = |name: &str| checks.iter().find(|check| check["name"] == name).map(|check| check["outcome"].clone());
    assert_eq!(outcome("settings"), Some("pass".into()), "{checks:?}");
    assert_eq!((outcome("secrets"), outcome("certificate")), (Some("pass".into()), Some("pass".into())), "{checks:?}");
}
