//! `thalweg admin backup`: a copy of what a running node has on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use thalweg_journal::segment::{SEGMENTS, SegmentName};
use thalweg_node::gate;

use super::manifest::{
    Entry, LOG, LOG_FORMAT, MANIFEST_FILE, Manifest, copy, examine, hash, segment_path, sync_directory, whole,
};
use crate::connect::{ConnectArgs, block_on};
use crate::failure::{During as _, Failure, output};
use crate::keys::KEYS;
use crate::{size, timestamp};

/// How long the node may take to move what it has into segments.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(120);
/// How often the segments are listed again because they were merged while they were copied.
const LISTINGS_MAX: u32 = 100;
/// Held while a backup is written.
const LOCK_FILE: &str = "backup.lock";

/// Copy all that is durable of a running node to a directory, and verify it
///
/// The node goes on meanwhile. Everything that was acknowledged before this command began is in the backup. Run again with
/// the same directory, it copies only what is new. The backup holds the node's keys: keep it as safe as the data directory.
/// Channels whose durability is `memory` are in no backup.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the backup is, or is made
    #[arg(value_name = "DIR")]
    backup: PathBuf,
    /// Print what was done as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What was done.
#[derive(Debug, Default)]
struct Summary {
    copied: u64,
    copied_bytes: u64,
    removed: u64,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let data = args.connect.data_directory();
    let began = Instant::now();
    // The files are read here, so the node must be one of this machine.
    let node = thalweg_client::discover(&data)?;
    if let Some(server) = args.connect.server.as_ref().filter(|server| **server != node.quic) {
        let text = format!(
            "{} is of the node at {}, not {server}; give the data directory of that node",
            data.display(),
            node.quic
        );
        return Err(Failure::usage(text));
    }
    let made = timestamp::rfc3339(micros_now());
    block_on(async {
        let client = args.connect.connect("admin", CHECKPOINT_PATIENCE).await?;
        let checkpoint = tokio::time::timeout(CHECKPOINT_PATIENCE, client.checkpoint()).await;
        checkpoint.map_err(|_| super::slow())??;
        client.close().await;
        Ok(())
    })?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(args.backup.join(LOG).join(SEGMENTS))
        .during(args.backup.display())?;
    let _lock = lock(&args.backup)?;
    same_node(&data, &args.backup)?;
    let mut summary = Summary::default();
    let mut files = segments(&data, &args.backup, &mut summary)?;
    for path in KEYS.into_iter().chain([LOG_FORMAT]) {
        let (bytes, sha256) = copy(&data.join(path), &args.backup.join(path)).during(data.join(path).display())?;
        files.push(Entry { path: path.into(), bytes, sha256, messages: None });
    }
    files.extend(access(&data, &args.backup)?);
    for directory in [args.backup.join(LOG).join(SEGMENTS), args.backup.join(LOG), args.backup.clone()] {
        sync_directory(&directory)?;
    }
    let manifest = Manifest::new(made, files);
    manifest.write(&args.backup)?;
    sync_directory(&args.backup)?;
    // Only now nothing needs what is no longer named.
    summary.removed = remove_leftovers(&args.backup, &manifest)?;
    print(&args, &manifest, &summary, began.elapsed())
}

fn micros_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// One backup into a directory at a time.
fn lock(backup: &Path) -> Result<File, Failure> {
    let path = backup.join(LOCK_FILE);
    let file = File::options().write(true).create(true).truncate(false).open(&path).during(path.display())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(error) => {
            Err(Failure::failed(format!("another backup is being written to {} ({error})", backup.display())))
        }
    }
}

/// Segments of two nodes have the same names, so that one directory can hold the backup of one node only.
fn same_node(data: &Path, backup: &Path) -> Result<(), Failure> {
    let key = |directory: &Path| fs::read(directory.join(KEYS[0]));
    match key(backup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::failed(format!("{}: {error}", backup.join(KEYS[0]).display()))),
        Ok(theirs) if theirs == key(data).during(data.join(KEYS[0]).display())? => Ok(()),
        Ok(_) => Err(Failure::failed(format!(
            "{} is the backup of another node; choose another directory",
            backup.display()
        ))),
    }
}

/// Copies what the gate keeps: signing keys, users, API keys, revocations.
fn access(data: &Path, backup: &Path) -> Result<Vec<Entry>, Failure> {
    // The node may go over to another key at any moment; its keys and their list have to fit together.
    let _held = gate::hold(data).map_err(|error| Failure::failed(error.to_string()))?;
    let mut files = Vec::new();
    for path in gate::files(data).during(data.display())? {
        let (from, to) = (data.join(&path), backup.join(&path));
        let directory = to.parent().unwrap_or(backup);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).during(directory.display())?;
        let (bytes, sha256) = match copy(&from, &to) {
            // A key that is not listed any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            copied => copied.during(from.display())?,
        };
        sync_directory(directory)?;
        files.push(Entry { path: path.to_string_lossy().into_owned(), bytes, sha256, messages: None });
    }
    Ok(files)
}

/// Copies the segments that are not there, and verifies them all.
fn segments(data: &Path, backup: &Path, summary: &mut Summary) -> Result<Vec<Entry>, Failure> {
    let mut done: BTreeMap<SegmentName, Entry> = BTreeMap::new();
    let mut why = String::new();
    'listing: for _ in 0..LISTINGS_MAX {
        let names = match listed(data)? {
            Ok(names) => names,
            Err(changed) => {
                why = changed;
                continue;
            }
        };
        for &name in &names {
            if done.contains_key(&name) {
                continue;
            }
            match segment(data, backup, name, summary)? {
                Some(entry) => drop(done.insert(name, entry)),
                // It was merged into another one meanwhile.
                None => {
                    why = format!("segment {name} was merged away");
                    continue 'listing;
                }
            }
        }
        return Ok(names.iter().filter_map(|name| done.remove(name)).collect());
    }
    Err(Failure::failed(format!(
        "the segments changed {LISTINGS_MAX} times while they were copied; the last time {why}"
    )))
}

/// The segments there are. They can change while a directory is listed, so two listings must agree; the inner error says
/// that they do not.
fn listed(data: &Path) -> Result<Result<Vec<SegmentName>, String>, Failure> {
    let directory = data.join(LOG).join(SEGMENTS);
    let list = || -> io::Result<BTreeSet<SegmentName>> {
        let names = fs::read_dir(&directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().parse().ok()));
        names.filter_map(Result::transpose).collect()
    };
    let (first, second) = (list().during(directory.display())?, list().during(directory.display())?);
    if first != second {
        return Ok(Err("two listings differed".into()));
    }
    Ok(whole(second.into_iter().collect()))
}

/// Brings one segment into the backup, unless it is there and sound. `None`: the node has it no longer.
fn segment(data: &Path, backup: &Path, name: SegmentName, summary: &mut Summary) -> Result<Option<Entry>, Failure> {
    let path = segment_path(name);
    let (from, to) = (data.join(&path), backup.join(&path));
    let bytes = match fs::metadata(&from) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::failed(format!("{}: {error}", from.display()))),
    };
    if fs::metadata(&to).is_ok_and(|there| there.len() == bytes)
        && let Ok(entry) = examine(backup, name)
    {
        return Ok(Some(entry));
    }
    let (_, sha256) = match copy(&from, &to) {
        Ok(copied) => copied,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::failed(format!("copying {} to {}: {error}", from.display(), to.display()))),
    };
    let entry = examine(backup, name)?;
    if entry.sha256 != sha256 {
        let text = format!("{}: what was written reads back as something else; do not trust that disk", to.display());
        return Err(Failure::failed(text));
    }
    summary.copied += 1;
    summary.copied_bytes += bytes;
    Ok(Some(entry))
}

/// Removes segments that were merged into others, and what interrupted backups left.
fn remove_leftovers(backup: &Path, manifest: &Manifest) -> Result<u64, Failure> {
    let directory = backup.join(LOG).join(SEGMENTS);
    let named: BTreeSet<_> = manifest.segments().map(|(name, _)| format!("{name}.seg")).collect();
    let mut removed = 0;
    for entry in fs::read_dir(&directory).during(directory.display())? {
        let entry = entry.during(directory.display())?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let ours = file.parse::<SegmentName>().is_ok() || file.ends_with(".seg.new");
        if ours && !named.contains(&file) {
            fs::remove_file(entry.path()).during(entry.path().display())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn print(args: &Args, manifest: &Manifest, summary: &Summary, took: Duration) -> Result<(), Failure> {
    let (_, manifest_sha256) =
        hash(&args.backup.join(MANIFEST_FILE)).during(args.backup.join(MANIFEST_FILE).display())?;
    let (mut segments, mut messages, mut bytes) = (0_u64, 0, 0);
    for (_, entry) in manifest.segments() {
        segments += 1;
        messages += entry.messages.unwrap_or(0);
        bytes += entry.bytes;
    }
    let Summary { copied, copied_bytes, removed } = *summary;
    let text = if args.json {
        json!({
            "backup": args.backup, "made": manifest.made, "segments": segments, "messages": messages, "bytes": bytes,
            "copied": copied, "copied_bytes": copied_bytes, "removed": removed,
            "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "manifest_sha256": manifest_sha256,
        })
        .to_string()
    } else {
        format!(
            "{}: {messages} messages in {segments} segments, {}; {copied} segments of {} were new, {removed} files were \
             removed; verified, in {:.1} s",
            args.backup.display(),
            size::show(bytes),
            size::show(copied_bytes),
            took.as_secs_f64()
        )
    };
    writeln!(io::stdout(), "{text}").map_err(|error| output(&error))
}
