//! What a backup says of itself, and the files it is made of.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thalweg_journal::segment::{SEGMENTS, SegmentName};

use crate::failure::{During as _, Failure};
use crate::keys::is_key;
use crate::logs;

/// The format of the manifest and of the layout around it.
const FORMAT: u32 = 1;
/// The file that makes a directory a backup. It is written last and replaced whole.
pub(super) const MANIFEST_FILE: &str = "manifest.json";
/// The directory of the log, in a data directory and in a backup.
pub(super) const LOG: &str = "log";
/// The file that says of what format the log is, and how many partitions it has.
pub(super) const LOG_FORMAT: &str = "log/format";
/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Where it is, in the backup as in a data directory.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    /// Messages, if it is a segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) messages: Option<u64>,
}

/// All of a backup.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// When it was made, RFC 3339.
    pub(super) made: String,
    /// The version that made it.
    pub(super) version: String,
    pub(super) files: Vec<Entry>,
}

impl Manifest {
    pub(super) fn new(made: String, files: Vec<Entry>) -> Self {
        Self { format: FORMAT, made, version: env!("CARGO_PKG_VERSION").into(), files }
    }

    /// The manifest of a backup.
    pub(super) fn read(backup: &Path) -> Result<Self, Failure> {
        let path = backup.join(MANIFEST_FILE);
        let text = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::failed(format!(
                "{} is no whole backup: it has no {MANIFEST_FILE}; `thalweg admin backup` writes one last",
                backup.display()
            )),
            _ => Failure::failed(format!("{}: {error}", path.display())),
        })?;
        let bad = |what: String| Failure::failed(format!("{}: {what}", path.display()));
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if manifest.format > FORMAT {
            let found = manifest.format;
            return Err(bad(format!("it has format {found}; this version reads up to {FORMAT}: run a newer thalweg")));
        }
        // Nothing a manifest names is read or written outside of the two directories.
        if let Some(entry) = manifest.files.iter().find(|entry| !known(&entry.path)) {
            return Err(bad(format!("it names {:?}, which is no file of a backup", entry.path)));
        }
        Ok(manifest)
    }

    pub(super) fn write(&self, backup: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Failure::failed(error.to_string()))?;
        write_whole(&backup.join(MANIFEST_FILE), &text)
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = (SegmentName, &Entry)> {
        self.files.iter().filter_map(|entry| Some((segment_of(&entry.path)?, entry)))
    }
}

fn known(path: &str) -> bool {
    path == LOG_FORMAT || is_key(path) || segment_of(path).is_some()
}

/// The segment whose file this is, if it is one's.
fn segment_of(path: &str) -> Option<SegmentName> {
    let file = path.strip_prefix(LOG)?.strip_prefix('/')?.strip_prefix(SEGMENTS)?.strip_prefix('/')?;
    file.parse().ok()
}

/// Where a segment is, in a backup as in a data directory.
pub(super) fn segment_path(name: SegmentName) -> String {
    format!("{LOG}/{}", name.path())
}

/// Copies a file by way of a draft, synced and renamed; gives its length and SHA-256. `NotFound` is the source's.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<(u64, String)> {
    let mut input = File::open(from)?;
    let draft = draft(to);
    let mut output = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let hashed = pump(&mut input, Some(&mut output))?;
    output.sync_all()?;
    fs::rename(&draft, to)?;
    Ok(hashed)
}

/// Reads a file; gives its length and SHA-256.
pub(super) fn hash(path: &Path) -> io::Result<(u64, String)> {
    pump(&mut File::open(path)?, None)
}

fn pump(input: &mut File, mut output: Option<&mut File>) -> io::Result<(u64, String)> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = input.read(&mut buffer)?;
        if read == 0 {
            let digest = hash.finalize();
            return Ok((bytes, digest.iter().map(|byte| format!("{byte:02x}")).collect()));
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
        if let Some(output) = &mut output {
            output.write_all(&buffer[..read])?;
        }
    }
}

/// Writes a small file that only its owner may read, whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let draft = draft(path);
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().during(path.display())
}

fn draft(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Makes durable which files are in a directory.
pub(super) fn sync_directory(path: &Path) -> Result<(), Failure> {
    File::open(path).and_then(|directory| directory.sync_all()).during(path.display())
}

/// Reads a segment back and checks all of it; gives what a manifest says of it.
pub(super) fn examine(root: &Path, name: SegmentName) -> Result<Entry, Failure> {
    let path = segment_path(name);
    let (bytes, sha256) = hash(&root.join(&path)).during(root.join(&path).display())?;
    let messages = logs::verify_segment(&root.join(LOG), name)?;
    Ok(Entry { path, bytes, sha256, messages: Some(messages) })
}

/// Which segments of a directory are to be copied: neighbours may have been merged while their parts are still there. A hole
/// means that they changed while they were listed.
pub(super) fn whole(mut names: Vec<SegmentName>) -> Result<Vec<SegmentName>, String> {
    // The largest of those that begin at a number comes first.
    names.sort_by_key(|name| (name.first, std::cmp::Reverse(name.last)));
    let mut chosen: Vec<SegmentName> = Vec::new();
    for name in names {
        let next = chosen.last().map_or(1, |last| last.last + 1);
        if name.first == next {
            chosen.push(name);
        } else if name.first > next {
            return Err(format!("segment {next} is missing before {name}"));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_segments_stand_for_their_parts() {
        let check = |names: &[(u64, u64)], expected: Result<&[(u64, u64)], &str>| {
            let names = names.iter().map(|&(first, last)| SegmentName { first, last }).collect();
            let found = whole(names).map(|all| all.iter().map(|name| (name.first, name.last)).collect::<Vec<_>>());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{found:?}"),
            }
        };
        check(&[], Ok(&[]));
        check(&[(1, 1), (2, 2)], Ok(&[(1, 1), (2, 2)]));
        check(&[(1, 1), (2, 2), (1, 2), (3, 3)], Ok(&[(1, 2), (3, 3)]));
        check(&[(3, 3), (2, 2), (1, 8), (9, 9)], Ok(&[(1, 8), (9, 9)]));
        check(&[(2, 2)], Err("segment 1 is missing"));
        check(&[(1, 1), (3, 3)], Err("segment 2 is missing"));
    }

    #[test]
    fn a_manifest_names_files_of_a_backup_and_no_others() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let check = |path: &str, expected: Option<&str>| {
            let entry = Entry { path: path.into(), bytes: 1, sha256: String::new(), messages: None };
            Manifest::new("now".into(), vec![entry]).write(directory.path()).expect("written");
            let read = Manifest::read(directory.path()).err().map(|failure| failure.message);
            match expected {
                None => assert_eq!(read, None, "{path}"),
                Some(expected) => {
                    assert!(read.as_ref().is_some_and(|text| text.contains(expected)), "{path}: {read:?}")
                }
            }
        };
        check("signing.key", None);
        check("access/keys.json", None);
        check("access/keys/0123456789abcdef.pem", None);
        check("access/keys/../../x.pem", Some("no file of a backup"));
        check("access/lock", Some("no file of a backup"));
        check("log/format", None);
        check("log/segments/000000000001-000000000008.seg", None);
        check("log/segments/../../../etc/passwd", Some("no file of a backup"));
        check("/etc/passwd", Some("no file of a backup"));
        check("node.json", Some("no file of a backup"));
        std::fs::write(directory.path().join(MANIFEST_FILE), r#"{"format":2,"made":"","version":"","files":[]}"#)
            .expect("written");
        assert!(Manifest::read(directory.path()).expect_err("newer").message.contains("newer thalweg"));
        let none = Manifest::read(&directory.path().join("nowhere")).expect_err("none").message;
        assert!(none.contains("no whole backup"), "{none}");
    }
}
