//! The node: a process with a data directory, which is killed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::Options;

/// How long a node may take to serve: a machine with other work may be slow, but not that slow.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// How long a node may take to finish what is in flight.
const DRAIN_PATIENCE: Duration = Duration::from_secs(40);
/// How often it is looked whether a node ended.
const LOOK: Duration = Duration::from_millis(2);
/// Size of a file of the write-ahead log.
const LOG_FILE_BYTES: &str = "2MiB";
/// Lines of a node's log that are shown if it ended by itself.
const LOG_LINES: usize = 20;

/// One life of the node.
pub(crate) struct Node {
    child: Child,
    ready: Option<oneshot::Receiver<String>>,
    log: PathBuf,
    pub(crate) cores: u64,
}

impl Node {
    /// Begins a life on `cores` cores with the data in `directory`.
    pub(crate) fn start(options: &Options, directory: &Path, cores: u64) -> Result<Self, String> {
        let log = directory.join("node.log");
        let stderr = File::options().create(true).append(true).open(&log);
        let stderr = stderr.map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = Command::new(&options.program);
        for name in ["THALWEG_SERVER", "THALWEG_TOKEN", "THALWEG_DATA", "THALWEG_LOG"] {
            command.env_remove(name);
        }
        command.args(["serve", "--quic", "127.0.0.1:0", "--http", "off", "--data"]).arg(data(directory));
        command.args(["--cores", &cores.to_string()]);
        match &options.model {
            Some(model) => command.args(["--model", model]),
            None => command.arg("--no-model"),
        };
        // Small files are sealed and merged often.
        command.args(["--log-file-bytes", LOG_FILE_BYTES]);
        if options.discard {
            command.args(["--disk-shell", "discard"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", options.program.display()))?;
        let output = child.stdout.take().expect("it is a pipe");
        let (sender, ready) = oneshot::channel();
        std::thread::spawn(move || {
            // The first line is all it says there; whoever waited for it may be gone.
            if let Some(Ok(line)) = BufReader::new(output).lines().next() {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, ready: Some(ready), log, cores })
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) -> Result<(), String> {
        let Some(ready) = self.ready.take() else { return Ok(()) };
        match tokio::time::timeout(READY_PATIENCE, ready).await {
            Ok(Ok(line)) if line.starts_with("ready ") => Ok(()),
            Ok(Ok(line)) => Err(format!("the node said {line:?} instead of being ready")),
            Ok(Err(_)) => Err(format!("the node did not come up:\n{}", self.tail())),
            Err(_) => Err(format!("the node is not ready after {READY_PATIENCE:?}:\n{}", self.tail())),
        }
    }

    /// Ends it at once. Fails if it had ended already, which nobody asked for.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        if let Some(status) = self.ended()? {
            return Err(format!("the node ended by itself with {status}:\n{}", self.tail()));
        }
        self.child.kill().map_err(|error| format!("killing the node: {error}"))?;
        self.child.wait().map_err(|error| format!("waiting for the node: {error}"))?;
        Ok(())
    }

    /// Asks it to go, and waits until it did.
    pub(crate) async fn drain(mut self) -> Result<(), String> {
        if let Some(status) = self.ended()? {
            return Err(format!("the node ended by itself with {status}:\n{}", self.tail()));
        }
        let kill = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        if !kill.as_ref().is_ok_and(ExitStatus::success) {
            return Err(format!("asking the node to end: {kill:?}"));
        }
        let end = tokio::time::Instant::now() + DRAIN_PATIENCE;
        while tokio::time::Instant::now() < end {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(format!("the node was asked to end, and failed with {status}:\n{}", self.tail()));
                }
                None => tokio::time::sleep(LOOK).await,
            }
        }
        Err(format!("the node was asked to end, and did not within {DRAIN_PATIENCE:?}:\n{}", self.tail()))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|error| format!("looking after the node: {error}"))
    }

    fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail if it ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The data directory within the run's.
pub(crate) fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}
