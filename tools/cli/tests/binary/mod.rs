//! The real binary, in a home of its own.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest time anything in these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A home directory: nothing of the machine's user is seen or touched.
pub(crate) struct Home {
    pub(crate) directory: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `thalweg` with these arguments.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        for name in ["THALWEG_SERVER", "THALWEG_TOKEN", "THALWEG_DATA", "THALWEG_LOG"] {
            command.env_remove(name);
        }
        command
            .args(line.split_whitespace())
            .env("HOME", self.directory.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if std::env::var_os("THALWEG_MODELS").is_some() && !line.contains("--model") {
            command.env_remove("THALWEG_MODELS");
        }
        command
    }

    /// Runs `thalweg` with these arguments and this input to its end.
    pub(crate) fn run(&self, line: &str, input: &[u8]) -> Ended {
        let mut child = self.command(line).spawn().expect("the binary runs");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        // A command that refuses its arguments does not read.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let ended = end(child, line);
        feeding.join().expect("no panic");
        ended
    }

    /// Starts a node on a port of its own.
    pub(crate) fn serve(&self, line: &str) -> Node {
        // Nodes of other tests would find the usual port taken, and say so.
        let http = if line.contains("--http") { "" } else { " --http off" };
        let mut child = self.command(&format!("serve {line}{http}")).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        // What the node logs is read so that it never blocks, and shown if it does not come up.
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log = std::thread::spawn(move || stderr.lines().map_while(Result::ok).collect::<Vec<_>>());
        let mut ready = String::new();
        lines.read_line(&mut ready).expect("text");
        if !ready.starts_with("ready quic=") {
            panic!("serve {line}: {:?}", log.join());
        }
        let field = |name: &str| {
            let value = ready.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {ready}")).to_owned()
        };
        let (quic, http) = (field("quic"), field("http"));
        Node { child: Some(child), ready: ready.trim_end().to_owned(), quic, http }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Waits for the end of a command; kills one that hangs.
pub(crate) fn end(child: Child, what: &str) -> Ended {
    let id = child.id();
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        signal(id, "KILL");
        panic!("{what} hangs");
    };
    let Output { status, stdout, stderr } = output.expect("a child to wait for");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Sends a signal, by the name `kill` knows it under, to a child that was not waited for.
pub(crate) fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &process.to_string()]).status().expect("kill runs");
    assert!(status.success(), "no process {process}");
}

/// A node that serves, and is killed when the test ends.
pub(crate) struct Node {
    child: Option<Child>,
    pub(crate) ready: String,
    pub(crate) quic: String,
    /// `off` if it serves no HTTP.
    pub(crate) http: String,
}

impl Node {
    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("it serves").id()
    }

    /// Asks it to drain, and gives its exit code.
    pub(crate) fn terminate(self) -> Option<i32> {
        signal(self.child.as_ref().expect("it serves").id(), "TERM");
        self.ended()
    }

    /// Waits until it ended, and gives its exit code.
    pub(crate) fn ended(mut self) -> Option<i32> {
        end(self.child.take().expect("it serves"), "serve").code
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(mut self) {
        let mut child = self.child.take().expect("it serves");
        child.kill().expect("it serves");
        child.wait().expect("a child to wait for");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The model these tests may use, if there is one on this machine: pulled to where `THALWEG_MODELS` says.
pub(crate) fn model() -> Option<PathBuf> {
    let models = std::env::var_os("THALWEG_MODELS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        Some(cache.unwrap_or_else(home).join("thalweg/models"))
    })?;
    let model = models.join("smollm2-135m/model.gguf");
    if model.exists() {
        return Some(model);
    }
    println!("skipped: {} is not there; `thalweg models pull smollm2-135m` fetches it", model.display());
    None
}

/// Looks again until it is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
