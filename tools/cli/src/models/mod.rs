//! Models on this machine: one directory each, with its files and a `model.json` that says what they are.
//!
//! Files are put together in `.partial/NAME` and the directory is moved into place when every digest is right, so that a
//! model is there whole or not at all, and a pull that was cut off goes on where it stopped.

pub(crate) mod catalogue;
mod fetch;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thalweg_client::Name;

use crate::failure::{During as _, Failure};
use catalogue::{Class, KnownModel, catalogue, known};

pub(crate) use fetch::Source;

/// What says what a model is, in its directory.
const METADATA_FILE: &str = "model.json";
/// The weights of a chat model.
const GGUF_FILE: &str = "model.gguf";
/// How a GGUF file begins.
const GGUF_MAGIC: &[u8] = b"GGUF";
/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What is kept about a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) class: Class,
    /// SPDX identifier; nothing for a model that was added by hand.
    pub(crate) licence: Option<String>,
    /// The file with the weights, in the model's directory.
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// Where it came from, for people.
    pub(crate) source: String,
    /// When, RFC 3339.
    pub(crate) added: String,
}

/// A model on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) metadata: Metadata,
    /// The file with the weights.
    pub(crate) path: PathBuf,
}

/// The directory of models.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The model `name`, if it is here.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Installed>, Failure> {
        let directory = self.directory(name)?;
        let metadata = directory.join(METADATA_FILE);
        let text = match fs::read_to_string(&metadata) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).during(metadata.display()),
        };
        let damaged = |reason: String| {
            let text = format!(
                "{} is damaged: {reason}; remove the model with `thalweg models rm {name}`",
                metadata.display()
            );
            Failure::failed(text)
        };
        let metadata: Metadata = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let path = directory.join(&metadata.file);
        match fs::metadata(&path) {
            Ok(file) if file.len() == metadata.bytes => Ok(Some(Installed { metadata, path })),
            Ok(file) => Err(damaged(format!("{} has {} bytes, not {}", metadata.file, file.len(), metadata.bytes))),
            Err(error) => Err(damaged(format!("{}: {error}", metadata.file))),
        }
    }

    /// All models on this machine: the known ones in the order of the catalogue, then the others by name. A damaged one is
    /// its own failure, and hides no other.
    pub(crate) fn list(&self) -> Result<Vec<Result<Installed, Failure>>, Failure> {
        let mut names = Vec::new();
        match fs::read_dir(&self.root) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.during(self.root.display())?.file_name();
                    names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).during(self.root.display()),
        }
        let rank = |name: &str| catalogue().iter().position(|model| model.name == name).unwrap_or(usize::MAX);
        names.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
        Ok(names.iter().filter_map(|name| self.find(name).transpose()).collect())
    }

    /// Fetches a known model; does nothing if it is here.
    pub(crate) fn pull(&self, model: &KnownModel, source: &Source) -> Result<Installed, Failure> {
        if let Some(installed) = self.find(&model.name)? {
            return Ok(installed);
        }
        let partial = self.partial(&model.name)?;
        let mut came_from = String::new();
        for (at, file) in model.files.iter().enumerate() {
            let from =
                fetch::file(file, at == 0, source, &partial).during(format!("{} of {}", file.name, model.name))?;
            came_from = if came_from.is_empty() { from } else { came_from };
        }
        let weights = &model.files[0];
        let metadata = Metadata {
            name: model.name.clone(),
            class: model.class,
            licence: Some(model.licence.clone()),
            file: weights.name.clone(),
            bytes: weights.bytes,
            sha256: weights.sha256.clone(),
            source: came_from,
            added: now(),
        };
        self.install(&partial, metadata)
    }

    /// Takes a copy of a GGUF file in under a name of its own.
    pub(crate) fn add(&self, name: &str, path: &Path) -> Result<Installed, Failure> {
        if known(name).is_some() {
            let text = format!(
                "{name} is the name of a known model; `thalweg models pull {name}` fetches it, or choose another"
            );
            return Err(Failure::usage(text));
        }
        if self.find(name)?.is_some() {
            let text = format!("there is a model {name} already; `thalweg models rm {name}` removes it");
            return Err(Failure::failed(text));
        }
        check_gguf(path)?;
        let partial = self.partial(name)?;
        let target = partial.join(GGUF_FILE);
        let bytes = fs::metadata(path).during(path.display())?.len();
        let bar = progress(name, bytes);
        let mut input = fs::File::open(path).during(path.display())?;
        let mut output = fs::File::create(&target).during(target.display())?;
        let sha256 = copy(&mut input, &mut output, Sha256::new(), &bar).during(target.display())?;
        output.sync_all().during(target.display())?;
        let source = path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string();
        let (name, file) = (name.to_owned(), GGUF_FILE.to_owned());
        let metadata = Metadata { name, class: Class::Chat, licence: None, file, bytes, sha256, source, added: now() };
        self.install(&partial, metadata)
    }

    /// Removes a model and what was fetched of it. Whether there was one.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Failure> {
        let mut found = false;
        for directory in [self.directory(name)?, self.root.join(".partial").join(name)] {
            found |= remove_if_there(&directory)?;
        }
        Ok(found)
    }

    /// The directory of a model. A name that could lead out of the store is refused.
    fn directory(&self, name: &str) -> Result<PathBuf, Failure> {
        Name::new(name).map_err(|error| Failure::usage(format!("the model's name {name:?} {error}")))?;
        if name.starts_with('.') || name.contains(['/', '\\', ',']) {
            return Err(Failure::usage(format!(
                "the model's name {name:?} begins with a dot, or holds a slash or comma"
            )));
        }
        Ok(self.root.join(name))
    }

    fn partial(&self, name: &str) -> Result<PathBuf, Failure> {
        self.directory(name)?;
        let partial = self.root.join(".partial").join(name);
        fs::create_dir_all(&partial).during(partial.display())?;
        Ok(partial)
    }

    fn install(&self, partial: &Path, metadata: Metadata) -> Result<Installed, Failure> {
        let directory = self.directory(&metadata.name)?;
        let json = serde_json::to_string_pretty(&metadata).expect("strings and numbers are JSON");
        let file = partial.join(METADATA_FILE);
        fs::write(&file, json + "\n").during(file.display())?;
        remove_if_there(&partial.join(fetch::WHEELS))?;
        // A directory without metadata is no model: what is left of one makes room.
        remove_if_there(&directory)?;
        fs::rename(partial, &directory).during(directory.display())?;
        let path = directory.join(&metadata.file);
        Ok(Installed { metadata, path })
    }
}

/// Removes a directory with all that is in it; whether there was one.
fn remove_if_there(directory: &Path) -> Result<bool, Failure> {
    match fs::remove_dir_all(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).during(directory.display()),
    }
}

/// Refuses a file that cannot be a GGUF model, before anything is done with it.
pub(crate) fn check_gguf(path: &Path) -> Result<(), Failure> {
    let mut magic = Vec::new();
    let file = fs::File::open(path).during(path.display())?;
    file.take(GGUF_MAGIC.len() as u64).read_to_end(&mut magic).during(path.display())?;
    if magic != GGUF_MAGIC {
        return Err(Failure::failed(format!("{} is not a GGUF file; models are added from GGUF", path.display())));
    }
    Ok(())
}

fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    crate::timestamp::rfc3339(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// A bar on standard error; nothing where that is not a terminal.
fn progress(what: &str, bytes: u64) -> ProgressBar {
    let style = "{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(style).expect("a constant template").progress_chars("=> ");
    ProgressBar::new(bytes).with_style(style).with_message(what.to_owned())
}

/// Copies all of `input`; gives the digest of `hash` and what was copied, in hexadecimal.
fn copy(
    input: &mut impl std::io::Read,
    output: &mut fs::File,
    mut hash: Sha256,
    bar: &ProgressBar,
) -> std::io::Result<String> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        output.write_all(&chunk[..read])?;
        hash.update(&chunk[..read]);
        bar.inc(read as u64);
    }
    Ok(hexadecimal(hash))
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
