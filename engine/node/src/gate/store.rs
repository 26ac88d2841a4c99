//! The gate's files: JSON with a version, private, written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::identity::{IdentityError, write_secret};

/// The directory of all of it, within the data directory.
pub const ACCESS_DIRECTORY: &str = "access";
/// The directory of the signing keys, within the data directory.
pub(crate) const KEYS_DIRECTORY: &str = "access/keys";
/// Held while keys are read or changed: the node and `thalweg admin token` may do so at the same time.
const LOCK_FILE: &str = "access/lock";
/// The version of the files that this build writes.
const VERSION: u32 = 1;

/// What can be wrong with the files of the gate.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// A file holds something else than it should.
    #[error("{} is damaged: {reason}; restore it from a backup; {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What can be done without a backup, and what that costs.
        remedy: &'static str,
    },
    /// A later version of Thalweg wrote a file.
    #[error("{} was written by a later version of Thalweg (format {found}, this build knows {VERSION}); use that one", path.display())]
    Later {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A token was asked for that would be good for too long.
    #[error("a token is good for {most_s} s at most, not {asked_s} s; ask for less")]
    TooLong {
        /// What was asked for.
        asked_s: u64,
        /// What can be had.
        most_s: u64,
    },
    /// A limit was reached.
    #[error("{0}")]
    Full(String),
}

pub(crate) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AccessError {
    let path = path.to_owned();
    move |source| AccessError::File(IdentityError::File { action, path, source })
}

/// Makes the directories of the gate if they are not there.
pub(crate) fn make_directories(data: &Path) -> Result<(), AccessError> {
    let path = data.join(KEYS_DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(file_error("make", &path))
}

/// Waits for the lock on the gate's files. It is held for milliseconds, and never by a core.
pub(crate) fn lock(data: &Path) -> Result<File, AccessError> {
    let path = data.join(LOCK_FILE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(file_error("write", &path))?;
    file.lock().map_err(file_error("lock", &path))?;
    Ok(file)
}

/// A kind of file of the gate.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// Its path within the data directory.
    const PATH: &'static str;
    /// What can be done about a damaged one, and what that costs.
    const REMEDY: &'static str;
}

#[derive(serde::Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, serde::Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// Reads a file; `None` if there is none.
pub(crate) fn read<T: Stored>(data: &Path) -> Result<Option<T>, AccessError> {
    let path = data.join(T::PATH);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error("read", &path)(error)),
    };
    let wrong = |error: serde_json::Error| damaged::<T>(data, error.to_string());
    let Version { version } = serde_json::from_slice(&bytes).map_err(wrong)?;
    if version != VERSION {
        return Err(AccessError::Later { path, found: version });
    }
    serde_json::from_slice::<Versioned<T>>(&bytes).map(|file| Some(file.content)).map_err(wrong)
}

/// Writes a file: when this returns it is on the disk.
pub(crate) fn write<T: Stored>(data: &Path, content: &T) -> Result<(), AccessError> {
    #[derive(Serialize)]
    struct Borrowed<'a, T> {
        version: u32,
        #[serde(flatten)]
        content: &'a T,
    }
    let path = data.join(T::PATH);
    let json = serde_json::to_vec_pretty(&Borrowed { version: VERSION, content });
    let json = json.map_err(|error| damaged::<T>(data, error.to_string()))?;
    Ok(write_secret(&path, &json)?)
}

/// Says that a file is damaged.
pub(crate) fn damaged<T: Stored>(data: &Path, reason: String) -> AccessError {
    AccessError::Damaged { path: data.join(T::PATH), reason, remedy: T::REMEDY }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde::Deserialize;

    use super::*;
    use crate::identity::tests::TempDir;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Sample {
        entries: Vec<u32>,
    }

    impl Stored for Sample {
        const PATH: &'static str = "access/sample.json";
        const REMEDY: &'static str = "without it there are no samples";
    }

    #[test]
    fn files_are_private_versioned_and_checked() {
        let dir = TempDir::new();
        make_directories(dir.path()).expect("made");
        let path = dir.path().join(Sample::PATH);
        assert_eq!(read::<Sample>(dir.path()).expect("absent"), None);
        let sample = Sample { entries: vec![1, 2] };
        write(dir.path(), &sample).expect("written");
        assert_eq!(read::<Sample>(dir.path()).expect("there"), Some(sample));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join(ACCESS_DIRECTORY))), (0o600, 0o700));
        let check = |text: &str, says: &str| {
            fs::write(&path, text).expect("written");
            let error = read::<Sample>(dir.path()).expect_err("wrong").to_string();
            assert!(error.contains(says) && error.contains("sample.json"), "{error} lacks {says:?}");
        };
        check("", "without it there are no samples");
        check("{\"entries\":[]}", "missing field `version`");
        check("{\"version\":1,\"entries\":[1,", "damaged");
        check("{\"version\":2,\"entries\":[]}", "later version");
        check("\u{0}\u{0}\u{0}", "restore it from a backup");
    }
}
