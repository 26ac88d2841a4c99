//! What a node keeps in its data directory: lock, keys, epoch, and where it can be found.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use thalweg_protocol::ids::Epoch;

use crate::certificate::CertificateError;

const LOCK_FILE: &str = "node.lock";
const RESET_KEY_FILE: &str = "reset.key";
const EPOCH_FILE: &str = "epoch";
/// Where clients on this machine find the node.
pub const NODE_FILE: &str = "node.json";
/// The token that lets clients on this machine in.
pub const TOKEN_FILE: &str = "local.token";

/// What can be wrong with a data directory.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or the directory itself cannot be used.
    #[error("cannot {action} {}: {source}; choose another place with --data DIR, or mend its permissions", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another node uses it.
    #[error("{} is used by another node{}; stop that one, or choose another place with --data DIR", path.display(), who(.pid))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other node's process, if it said.
        pid: Option<u64>,
    },
    /// A file holds something else than it should.
    #[error("{} is damaged: {reason}; restore it from a backup, or remove it to have a new one made", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The operator's certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

fn who(pid: &Option<u64>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { action, path, source }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let draft = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    write().map_err(file_error("write", path))
}

/// A data directory that this process has to itself.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if there is none, and locks it.
    ///
    /// # Errors
    /// If it cannot be made or written, or another node uses it.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file_error("make", path))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(file_error("write", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => {
                let node = fs::read(path.join(NODE_FILE)).ok();
                let node = node.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
                let pid = node.and_then(|node| node["pid"].as_u64());
                Err(IdentityError::InUse { path: path.to_owned(), pid })
            }
            Err(fs::TryLockError::Error(source)) => {
                Err(IdentityError::File { action: "lock", path: lock_path, source })
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counts this start of the node.
    ///
    /// # Errors
    /// If the file cannot be read or written, or holds no number.
    pub fn next_epoch(&self) -> Result<Epoch, IdentityError> {
        let path = self.path.join(EPOCH_FILE);
        let last: u64 = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| IdentityError::Damaged {
                path: path.clone(),
                reason: "it holds something else than a number".into(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(file_error("read", &path)(error)),
        };
        write_secret(&path, (last + 1).to_string().as_bytes())?;
        Ok(Epoch(last + 1))
    }

    /// The key behind stateless resets, kept over restarts.
    ///
    /// # Errors
    /// If the file cannot be read or written, or has another length.
    pub fn reset_key(&self) -> Result<[u8; 64], IdentityError> {
        let path = self.path.join(RESET_KEY_FILE);
        match fs::read(&path) {
            Ok(bytes) => <[u8; 64]>::try_from(bytes).map_err(|bytes| IdentityError::Damaged {
                path,
                reason: format!("it has {} bytes instead of 64", bytes.len()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key: [u8; 64] = rand::random();
                write_secret(&path, &key)?;
                Ok(key)
            }
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    /// Tells clients on this machine where the node is.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn announce(
        &self,
        quic: SocketAddr,
        http: Option<SocketAddr>,
        key_sha256: &str,
        epoch: Epoch,
    ) -> Result<(), IdentityError> {
        let node = json!({
            "quic": quic.to_string(), "http": http.map(|addr| addr.to_string()), "key_sha256": key_sha256,
            "pid": std::process::id(), "epoch": epoch.0,
        });
        write_secret(&self.path.join(NODE_FILE), format!("{node}\n").as_bytes())
    }

    /// Tells clients on this machine that the node shows another key now.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is not what [`announce`](Self::announce) wrote.
    pub fn announce_key(&self, key_sha256: &str) -> Result<(), IdentityError> {
        let path = self.path.join(NODE_FILE);
        let bytes = fs::read(&path).map_err(file_error("read", &path))?;
        let mut node: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| IdentityError::Damaged { path: path.clone(), reason: error.to_string() })?;
        node["key_sha256"] = key_sha256.into();
        write_secret(&path, format!("{node}\n").as_bytes())
    }

    /// Takes back what [`announce`](Self::announce) said. A file that is gone already is no error.
    pub fn retract(&self) {
        if let Err(error) = fs::remove_file(self.path.join(NODE_FILE))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "could not remove {NODE_FILE}; clients will look for a node that is gone");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::certificate::{CERTIFICATE_KEY_FILE, Certificate};

    /// A directory that is removed with its value.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            let path = std::env::temp_dir().join(format!("thalweg-test-{:016x}", rand::random::<u64>()));
            fs::create_dir(&path).expect("a directory can be made");
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_data_directory_has_one_user() {
        let dir = TempDir::new();
        let data = DataDir::open(dir.path()).expect("free");
        data.announce("127.0.0.1:1".parse().expect("valid"), None, "00", Epoch(1)).expect("written");
        let error = DataDir::open(dir.path()).expect_err("taken");
        let text = error.to_string();
        assert!(matches!(error, IdentityError::InUse { pid: Some(_), .. }) && text.contains("--data"), "{text}");
        drop(data);
        DataDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn what_is_kept_is_found_again_and_is_private() {
        let dir = TempDir::new();
        let data = DataDir::open(dir.path()).expect("free");
        Certificate::made(&data).expect("made");
        assert_eq!(data.reset_key().expect("made"), data.reset_key().expect("found"));
        assert_eq!((data.next_epoch().expect("1"), data.next_epoch().expect("2")), (Epoch(1), Epoch(2)));
        for file in [CERTIFICATE_KEY_FILE, RESET_KEY_FILE] {
            let mode = fs::metadata(dir.path().join(file)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn damage_is_named() {
        let dir = TempDir::new();
        let data = DataDir::open(dir.path()).expect("free");
        for (file, open) in [
            (EPOCH_FILE, (|d| d.next_epoch().map(drop)) as fn(&DataDir) -> Result<(), IdentityError>),
            (RESET_KEY_FILE, |d| d.reset_key().map(drop)),
            (CERTIFICATE_KEY_FILE, |d| Certificate::made(d).map(drop)),
        ] {
            fs::write(dir.path().join(file), "garbage").expect("written");
            let text = open(&data).expect_err("damaged").to_string();
            assert!(text.contains(file) && text.contains("damaged"), "{text}");
        }
    }
}
