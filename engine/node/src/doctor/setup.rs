//! What an operator set up: certificate, memory, HTTP, clock, and who may read what is secret.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thalweg_worker::tensor;

use super::{Check, Outcome, check, nearest};
use crate::certificate::{CERTIFICATE_KEY_FILE, Certificate, CertificateFiles, State};
use crate::config::{DeviceChoice, DeviceError};
use crate::gate::{ACCESS_DIRECTORY, AUDIT_DIRECTORY, SIGNING_KEY_FILE};
use crate::identity::TOKEN_FILE;
use crate::memory::{default_budget, machine_bytes};

/// A certificate that ends within so many seconds should be replaced now.
const CERTIFICATE_SOON_S: i64 = 14 * 86_400;
/// A budget above this share of the machine's memory leaves too little for the page cache, in percent.
const BUDGET_PERCENT_MAX: u64 = 90;
/// A node with less than this hardly works, in bytes.
const BUDGET_BYTES_MIN: u64 = 128 << 20;

/// Whether chain and key can be used together, and for how long.
pub(super) fn certificate(own: Option<&CertificateFiles>) -> Check {
    let name = "certificate";
    let Some(files) = own else {
        return check(name, Outcome::Pass, "the node makes its own; clients pin its key", "");
    };
    let path = files.certificate.display();
    match Certificate::read(files) {
        Err(error) => {
            let text = error.to_string();
            let (found, remedy) = text.split_once("; ").unwrap_or((&text, "mend quic.certificate and quic.key"));
            check(name, Outcome::Fail, found, remedy)
        }
        Ok(certificate) => {
            let (state, names) = (certificate.validity.now(), certificate.names.join(", "));
            let outcome = match state {
                State::Valid(for_s) if for_s > CERTIFICATE_SOON_S => Outcome::Pass,
                State::Valid(_) => Outcome::Warn,
                State::NotYet(_) | State::Expired(_) => Outcome::Fail,
            };
            let remedy =
                "put a new one in its place, then `thalweg admin reload`; clients that check dates refuse this one";
            check(name, outcome, format!("{path} is {state}; for {names}"), remedy)
        }
    }
}

/// Where models would be computed, and which GPUs there are.
pub(super) fn device(choice: DeviceChoice) -> Check {
    let name = "models' device";
    let gpus = tensor::gpus();
    let found = match &gpus {
        Ok(gpus) if gpus.is_empty() => format!("{choice}; the driver finds no GPU"),
        Ok(gpus) => {
            let each =
                gpus.iter().map(|gpu| format!("cuda:{} {}, {} MiB", gpu.ordinal, gpu.name, gpu.memory_bytes >> 20));
            format!("{choice}; {}", each.collect::<Vec<_>>().join("; "))
        }
        Err(DeviceError::NotBuilt) => format!("{choice}; this build computes on the CPU only"),
        Err(error) => format!("{choice}; no GPU can be used: {}", error.to_string().split(';').next().unwrap_or("")),
    };
    let has = |ordinal: usize| gpus.as_ref().is_ok_and(|gpus| gpus.iter().any(|gpu| gpu.ordinal == ordinal));
    match choice {
        DeviceChoice::Cuda(ordinal) if !has(ordinal) => {
            let remedy = match gpus {
                Err(DeviceError::NotBuilt) => {
                    "build it with `cargo xtask cuda`, or set inference.device to cpu or auto"
                }
                _ => "see what `nvidia-smi` shows, or set inference.device to cpu or auto",
            };
            check(name, Outcome::Fail, found, remedy)
        }
        _ => check(name, Outcome::Pass, found, ""),
    }
}

/// How the memory budget stands to what there is.
pub(super) fn memory(budget: Option<u64>) -> Check {
    let (machine, whose) = machine_bytes();
    let budget = budget.unwrap_or_else(default_budget);
    let found = format!("a budget of {} MiB of the {} MiB of {whose}", budget >> 20, machine >> 20);
    let (outcome, remedy) = if budget < BUDGET_BYTES_MIN {
        (Outcome::Warn, "give it more with memory.budget, or a larger machine; it will refuse much")
    } else if budget > machine / 100 * BUDGET_PERCENT_MAX {
        (
            Outcome::Warn,
            "lower memory.budget to three quarters, or the kernel may kill the node before it refuses anything",
        )
    } else {
        (Outcome::Pass, "")
    };
    check("memory budget", outcome, found, remedy)
}

/// Whether HTTP can be served.
pub(super) fn http(addr: Option<SocketAddr>, runs: bool) -> Check {
    let name = "HTTP address";
    let Some(addr) = addr else { return check(name, Outcome::Pass, "off: no /health and no /metrics", "") };
    match TcpListener::bind(addr) {
        Ok(_) => check(name, Outcome::Pass, format!("{addr} is free"), ""),
        Err(error) => super::taken(name, addr, runs, &error, "--http"),
    }
}

/// Whether somebody keeps the wall clock right. Tokens expire by it, and messages are dated by it.
pub(super) fn clock() -> Check {
    let name = "clock";
    // SAFETY: zeroes are a valid timex that asks and changes nothing; it is written within its bounds.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    let remedy = "run chrony or systemd-timesyncd (`timedatectl set-ntp true`); in a container, on its host";
    match state {
        -1 => check(name, Outcome::Warn, "the kernel does not say whether it is synchronised", remedy),
        _ if state == libc::TIME_ERROR || status & libc::STA_UNSYNC != 0 => {
            check(name, Outcome::Warn, "nobody synchronises it", remedy)
        }
        _ => check(name, Outcome::Pass, "synchronised", ""),
    }
}

/// Whether only the node's user can read what is secret.
pub(super) fn secrets(data: &Path) -> Check {
    let name = "secrets";
    let mut paths: Vec<PathBuf> =
        [CERTIFICATE_KEY_FILE, "reset.key", SIGNING_KEY_FILE, TOKEN_FILE].iter().map(|file| data.join(file)).collect();
    if let Err((path, error)) = walk(&data.join(ACCESS_DIRECTORY), &mut paths) {
        let found = format!("{}: {error}", path.display());
        return check(name, Outcome::Fail, found, "run the doctor as the node's user, or mend the directory's owner");
    }
    let mut seen = 0;
    let mut open = Vec::new();
    for path in paths {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        seen += 1;
        let mode = metadata.permissions().mode() & 0o777;
        let strange = fs::metadata(data).is_ok_and(|data| data.uid() != metadata.uid());
        if mode & 0o077 != 0 || strange {
            let owner = if strange { ", of another user than the data directory" } else { "" };
            open.push(format!("{} has mode {mode:03o}{owner}", path.display()));
        }
    }
    if open.is_empty() {
        let found = if seen == 0 { "none yet".into() } else { format!("{seen} files and directories, private") };
        return check(name, Outcome::Pass, found, "");
    }
    let remedy = format!(
        "chown -R the node's user {0}, then chmod -R go= {0}; if others could read keys: `thalweg admin rotate-keys`",
        data.display()
    );
    check(name, Outcome::Fail, open.join("; "), remedy)
}

/// Everything below a directory, and itself. One that is not there has nothing below.
fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> Result<(), (PathBuf, std::io::Error)> {
    let failed = |error| (directory.to_owned(), error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    found.push(directory.to_owned());
    for entry in entries {
        let entry = entry.map_err(failed)?;
        match entry.file_type().map_err(failed)?.is_dir() {
            true => walk(&entry.path(), found)?,
            false => found.push(entry.path()),
        }
    }
    Ok(())
}

/// Whether what is decided about access can be written down.
pub(super) fn audit(data: &Path) -> Check {
    let name = "audit log";
    let directory = data.join(AUDIT_DIRECTORY);
    let files = match fs::read_dir(&directory) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.metadata().ok()).filter(|data| data.is_file()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return check(name, Outcome::Pass, format!("{} will be made", directory.display()), "");
        }
        Err(error) => {
            let found = format!("{}: {error}", directory.display());
            return check(name, Outcome::Fail, found, "mend its owner and permissions; decisions are not written down");
        }
    };
    let (count, bytes) = files.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.len()));
    let probe = nearest(&directory).join(format!(".thalweg-doctor-audit-{}", std::process::id()));
    let tried = fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe));
    match tried {
        Ok(()) => check(name, Outcome::Pass, format!("{count} files, {} MiB", bytes >> 20), ""),
        Err(error) => {
            let found = format!("{} cannot be written: {error}", directory.display());
            check(name, Outcome::Fail, found, "mend its owner and permissions; decisions are not written down")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::tests::write_certificate;
    use crate::identity::tests::TempDir;

    #[test]
    fn certificates_and_memory_are_judged() {
        let dir = TempDir::new();
        let good = write_certificate(dir.path(), "good", &rcgen::PKCS_ECDSA_P256_SHA256, (2020, 2100));
        let old = write_certificate(dir.path(), "old", &rcgen::PKCS_ED25519, (2020, 2021));
        let mixed = CertificateFiles { key: old.key.clone(), ..good.clone() };
        for (files, outcome, says) in [
            (None, Outcome::Pass, "makes its own"),
            (Some(&good), Outcome::Pass, "for localhost"),
            (Some(&old), Outcome::Fail, "expired"),
            (Some(&mixed), Outcome::Fail, "is not the key"),
        ] {
            let check = certificate(files);
            assert!(check.outcome == outcome && check.found.contains(says), "{check:?}");
        }
        let (machine, _) = machine_bytes();
        for (budget, outcome) in [(Some(1 << 20), Outcome::Warn), (Some(machine), Outcome::Warn)] {
            assert_eq!(memory(budget).outcome, outcome, "{budget:?}");
        }
        assert!(matches!(clock().outcome, Outcome::Pass | Outcome::Warn));
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert_eq!(http(taken.local_addr().ok(), false).outcome, Outcome::Warn);
        assert_eq!(http(taken.local_addr().ok(), true).outcome, Outcome::Pass);
        assert_eq!(http(None, false).outcome, Outcome::Pass);
    }

    #[test]
    fn secrets_that_others_can_read_are_found() {
        let dir = TempDir::new();
        let private = |path: &Path, mode: u32| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its owner may");
        };
        private(dir.path(), 0o700);
        assert_eq!((secrets(dir.path()).outcome, audit(dir.path()).outcome), (Outcome::Pass, Outcome::Pass));
        let keys = dir.path().join(ACCESS_DIRECTORY).join("keys");
        fs::create_dir_all(&keys).expect("made");
        fs::write(keys.join("a.pem"), "x").expect("written");
        for path in [dir.path().join(ACCESS_DIRECTORY), keys.clone()] {
            private(&path, 0o700);
        }
        private(&keys.join("a.pem"), 0o600);
        assert_eq!(secrets(dir.path()).outcome, Outcome::Pass);
        private(&keys.join("a.pem"), 0o640);
        let check = secrets(dir.path());
        assert!(check.outcome == Outcome::Fail && check.found.contains("a.pem has mode 640"), "{check:?}");
        fs::create_dir(dir.path().join(AUDIT_DIRECTORY)).expect("made");
        fs::write(dir.path().join(AUDIT_DIRECTORY).join("audit-1.jsonl"), "{}\n").expect("written");
        assert!(audit(dir.path()).found.starts_with("1 files"));
    }
}
