//! Starts the binary that was built: on a machine without a GPU it must say so, and serve all the same if it may.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Far longer than a start takes, with the reading of a small model.
const TIME_MAX: Duration = Duration::from_secs(120);
/// How often to look whether it ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The model that is served, if it was pulled; else any that was.
const MODEL: &str = "smollm2-135m";

/// Starts `binary` in every way, and says whether each was as it should be.
pub(super) fn run(binary: &Path, toolkit: &Path) -> Result<bool> {
    let size = std::fs::metadata(binary).with_context(|| format!("looking at {}", binary.display()))?.len();
    println!("built: {} ({} MiB)", binary.display(), size >> 20);
    let version = Command::new(binary).arg("--version").output().context("starting what was built")?;
    ensure!(version.status.success(), "it does not start: {}", String::from_utf8_lossy(&version.stderr).trim());
    println!("starts: {}", String::from_utf8_lossy(&version.stdout).trim());
    // The libraries of the toolkit are there; the driver, which is not of it, decides.
    for libraries in [None, Some(toolkit.join("lib"))] {
        let place = if libraries.is_some() { "with the toolkit's libraries" } else { "without its libraries" };
        for device in ["cuda:0", "auto"] {
            let outcome = Trial::start(binary, device, libraries.as_deref())?.outcome()?;
            println!("serve --device {device}, {place}: {outcome}");
            match (device, &outcome) {
                // What there is to say of a machine without a GPU, or what it does on one that has some.
                ("cuda:0", Outcome::Ended(text)) if is_clear(text) => {}
                (_, Outcome::Serves) => {}
                _ => bail!("`serve --device {device}` should have served, or said why there is no GPU: {outcome}"),
            }
        }
    }
    Ok(true)
}

/// Whether an error names what is missing and what to do, and is no panic.
fn is_clear(text: &str) -> bool {
    let names = ["libcuda", "libcublas", "libcurand", "cuda:0"].iter().any(|name| text.contains(name));
    names && !text.contains("panicked") && text.contains("device")
}

/// How a start came out.
enum Outcome {
    /// It said that it is ready.
    Serves,
    /// It ended before, and said this.
    Ended(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serves => f.write_str("it serves"),
            Self::Ended(text) => write!(f, "it ends: {text}"),
        }
    }
}

/// A node on a data directory of its own.
struct Trial {
    child: Child,
    data: PathBuf,
}

impl Trial {
    fn start(binary: &Path, device: &str, libraries: Option<&Path>) -> Result<Self> {
        let data = std::env::temp_dir().join(format!("thalweg-cuda-{}", std::process::id()));
        std::fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
        let mut command = Command::new(binary);
        command.args([
            "serve",
            "--quic",
            "127.0.0.1:0",
            "--http",
            "off",
            "--model",
            MODEL,
            "--device",
            device,
            "--data",
        ]);
        command.arg(&data).env_remove("LD_LIBRARY_PATH").env_remove("THALWEG_DATA");
        if let Some(libraries) = libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting a node")?;
        Ok(Self { child, data })
    }

    /// Waits until it serves or ends.
    fn outcome(mut self) -> Result<Outcome> {
        let output = self.child.stdout.take().context("the node has no output")?;
        let errors = self.child.stderr.take().context("the node has no errors")?;
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let lines = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.starts_with("ready ") && ready.send(()).is_err() {
                    return;
                }
            }
        });
        let said = std::thread::spawn(move || {
            let lines = BufReader::new(errors).lines().map_while(Result::ok);
            lines
                .filter(|line| line.starts_with("thalweg: ") || line.contains("panicked"))
                .collect::<Vec<_>>()
                .join("; ")
        });
        let start = Instant::now();
        let serves = loop {
            if is_ready.try_recv().is_ok() {
                break true;
            }
            if self.child.try_wait().context("waiting for the node")?.is_some() {
                break false;
            }
            ensure!(start.elapsed() < TIME_MAX, "the node neither serves nor ends within {} s", TIME_MAX.as_secs());
            std::thread::sleep(LOOK_EVERY);
        };
        self.end();
        lines.join().expect("the reader does not panic");
        let said = said.join().expect("the reader does not panic");
        Ok(if serves { Outcome::Serves } else { Outcome::Ended(said) })
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clear_error_names_what_is_missing() {
        let check = |text: &str, expected: bool| assert_eq!(is_clear(text), expected, "{text}");
        check("libcuda, the driver of NVIDIA's GPUs, cannot be loaded: install it, or take the device \"cpu\"", true);
        check("thread 'main' panicked at libcuda: device", false);
        check("error: no such file", false);
        check("", false);
    }
}
