//! `thalweg admin restore`: a data directory made of a backup.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use thalweg_journal::segment::SEGMENTS;
use thalweg_node::gate;
use thalweg_node::identity::DataDir;

use super::manifest::{Entry, LOG, Manifest, copy, hash, sync_directory, whole, write_whole};
use crate::failure::{During as _, Failure, output};
use crate::keys::{EPOCH_FILE, KEYS, carried, is_key};
use crate::{logs, paths, size};

/// Where the log is put together before it is one.
const DRAFT: &str = "log.restoring";
/// Make a data directory of a backup
///
/// Every file is checked against the backup's manifest, and every segment by its own checks, before anything counts. The
/// backup holds the keys of the node (certificate.key, signing.key, reset.key, epoch), so that the restored one is the same
/// node to its clients: they trust it, and their tokens are good. Do not let both run. Refuses a directory that has a log,
/// other keys, or a node.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the backup is
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// The data directory to make [default: $XDG_STATE_HOME/thalweg]
    #[arg(long, value_name = "DIR", env = "THALWEG_DATA")]
    data: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let data = paths::data_directory(args.data);
    let manifest = Manifest::read(&args.backup)?;
    let segments: Vec<_> = manifest.segments().map(|(name, _)| name).collect();
    let complete = whole(segments.clone()).map_err(|hole| damaged(&args.backup, &hole))?;
    if complete.len() != segments.len() {
        return Err(damaged(&args.backup, "it names segments that are within others"));
    }
    let _lock = DataDir::open(&data).map_err(|error| Failure::failed(error.to_string()))?;
    vacant(&data, &args.backup)?;

    let draft = data.join(DRAFT);
    if draft.exists() {
        fs::remove_dir_all(&draft).during(draft.display())?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(draft.join(SEGMENTS)).during(draft.display())?;
    for entry in manifest.files.iter().filter(|entry| !is_key(&entry.path)) {
        let inside = entry.path.strip_prefix(LOG).and_then(|path| path.strip_prefix('/')).unwrap_or(&entry.path);
        take(&args.backup, entry, &draft.join(inside))?;
    }
    let mut messages = 0;
    for name in segments {
        messages += logs::verify_segment(&draft, name)?;
    }
    sync_directory(&draft.join(SEGMENTS))?;
    sync_directory(&draft)?;
    // What the gate of the same node keeps there is newer than the backup's, with what was revoked since.
    let kept = data.join(gate::KEYS_FILE).exists();
    let wanted = |entry: &&Entry| is_key(&entry.path) && !(kept && gate::is_file(&entry.path));
    for entry in manifest.files.iter().filter(wanted) {
        key(&args.backup, entry, &data)?;
    }
    // The log comes last: a directory without one can be restored to again.
    fs::rename(&draft, data.join(LOG)).during(draft.display())?;
    sync_directory(&data)?;
    let bytes: u64 = manifest.files.iter().map(|entry| entry.bytes).sum();
    let text = format!("{}: {messages} messages, {}, as of {}", data.display(), size::show(bytes), manifest.made);
    writeln!(io::stdout(), "{text}").map_err(|error| output(&error))
}

fn damaged(backup: &Path, what: &str) -> Failure {
    Failure::failed(format!("{} is damaged: {what}; restore an older backup", backup.display()))
}

/// Refuses a directory in which something would be lost.
fn vacant(data: &Path, backup: &Path) -> Result<(), Failure> {
    if data.join(LOG).exists() {
        let text = format!("{} has a log already; restore to another directory, or move that one away", data.display());
        return Err(Failure::failed(text));
    }
    for file in KEYS.into_iter().filter(|&file| file != EPOCH_FILE) {
        let there = match fs::read(data.join(file)) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Failure::failed(format!("{}: {error}", data.join(file).display()))),
        };
        if fs::read(backup.join(file)).is_ok_and(|ours| ours != there) {
            let text = format!("{} has the keys of another node; restore to another directory", data.display());
            return Err(Failure::failed(text));
        }
    }
    Ok(())
}

/// Copies a file whose content is what the manifest says.
fn take(backup: &Path, entry: &Entry, to: &Path) -> Result<(), Failure> {
    let from = backup.join(&entry.path);
    let (bytes, sha256) = copy(&from, to).during(from.display())?;
    judge(backup, entry, bytes, &sha256)
}

fn judge(backup: &Path, entry: &Entry, bytes: u64, sha256: &str) -> Result<(), Failure> {
    if (bytes, sha256) == (entry.bytes, &*entry.sha256) {
        return Ok(());
    }
    let what = format!(
        "{} has {bytes} bytes with sha256 {sha256}, expected {} with {}",
        entry.path, entry.bytes, entry.sha256
    );
    Err(damaged(backup, &what))
}

fn key(backup: &Path, entry: &Entry, data: &Path) -> Result<(), Failure> {
    let from = backup.join(&entry.path);
    let (bytes, sha256) = hash(&from).during(from.display())?;
    judge(backup, entry, bytes, &sha256)?;
    let content = fs::read(&from).during(from.display())?;
    let content = carried(&entry.path, content).map_err(|what| damaged(backup, &what))?;
    let directory = data.join(&entry.path).parent().map(Path::to_owned).unwrap_or_default();
    DirBuilder::new().recursive(true).mode(0o700).create(&directory).during(directory.display())?;
    write_whole(&data.join(&entry.path), &content)
}
