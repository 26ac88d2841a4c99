//! The audit log: one line for every decision about who may do what, kept in files of the data directory.
//!
//! Events come from the cores over rings that lose rather than wait; what was lost is counted in the log itself.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use thalweg_domain::permission::Principal;
use thalweg_protocol::ids::{Name, SessionId};
use thalweg_protocol::reject::RejectCode;

use super::limits::{AUDIT_OBJECT_BYTES_MAX, AUDIT_TAIL_EVENTS};
use super::store::{AccessError, file_error};

/// The directory of the audit log within the data directory.
pub const AUDIT_DIRECTORY: &str = "audit";
/// Bytes at the end of the newest file that are looked through at the start for the newest events.
const TAIL_BYTES: u64 = 1 << 20;

/// One decision. Holds no secret, no token and no body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditEvent {
    /// When, in microseconds since 1970.
    pub(crate) at_us: u64,
    /// Whose data it was about, if that is known.
    pub(crate) tenant: Option<Name>,
    /// Who asked, if that is known.
    pub(crate) user: Option<Name>,
    /// In which session; 0 before there is one.
    pub(crate) session: SessionId,
    /// What was asked for: a word.
    pub(crate) action: &'static str,
    /// With what: a channel, a user, the id of a token.
    pub(crate) object: String,
    /// Why it was refused; `None` if it was not.
    pub(crate) refused: Option<RejectCode>,
    /// From where.
    pub(crate) remote: Option<SocketAddr>,
}

impl AuditEvent {
    /// Something that somebody was let do.
    pub(crate) fn new(at_us: u64, action: &'static str, object: impl Into<String>) -> Self {
        let (tenant, user, session, remote) = (None, None, SessionId(0), None);
        Self { at_us, tenant, user, session, action, object: object.into(), refused: None, remote }
    }

    /// The same, by a session.
    pub(crate) fn by(mut self, principal: &Principal, remote: Option<SocketAddr>) -> Self {
        (self.tenant, self.user) = (Some(principal.tenant.clone()), Some(principal.user.clone()));
        (self.session, self.remote) = (principal.session, remote);
        self
    }

    /// The same, refused or not.
    pub(crate) fn refused(mut self, code: Option<RejectCode>) -> Self {
        self.refused = code;
        self
    }

    fn line(&self) -> String {
        let mut end = self.object.len().min(AUDIT_OBJECT_BYTES_MAX);
        while !self.object.is_char_boundary(end) {
            end -= 1;
        }
        let line = Line {
            ts: rfc3339(self.at_us),
            tenant: self.tenant.as_ref().map(Name::as_str),
            user: self.user.as_ref().map(Name::as_str),
            session: (self.session.0 != 0).then(|| format!("{:032x}", self.session.0)),
            action: self.action,
            object: &self.object[..end],
            allowed: self.refused.is_none(),
            code: self.refused.map(RejectCode::as_str),
            remote: self.remote,
        };
        serde_json::to_string(&line).expect("texts and numbers are JSON")
    }
}

#[derive(Serialize)]
struct Line<'a> {
    ts: String,
    tenant: Option<&'a str>,
    user: Option<&'a str>,
    session: Option<String>,
    action: &'a str,
    object: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    remote: Option<SocketAddr>,
}

/// The files, and the newest events at hand.
pub(crate) struct AuditLog {
    directory: PathBuf,
    file: Option<File>,
    number: u64,
    bytes: u64,
    file_bytes_max: u64,
    files_max: usize,
    /// Lines of this turn that are not in the file.
    pending: Vec<u8>,
    pending_events: u64,
    tail: VecDeque<(Option<Name>, String)>,
    dropped: u64,
    failing: bool,
}

impl AuditLog {
    /// Opens the log of a data directory, to go on with its newest file.
    pub(crate) fn open(data: &Path, file_bytes_max: u64, files_max: usize) -> Result<Self, AccessError> {
        let directory = data.join(AUDIT_DIRECTORY);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(file_error("make", &directory))?;
        let number = numbers(&directory).map_err(file_error("read", &directory))?.last().copied().unwrap_or(1);
        let mut log = Self {
            directory,
            file: None,
            number,
            bytes: 0,
            file_bytes_max,
            files_max,
            pending: Vec::new(),
            pending_events: 0,
            tail: VecDeque::new(),
            dropped: 0,
            failing: false,
        };
        let path = log.path(number);
        log.recall(&path).map_err(file_error("read", &path))?;
        log.open_file().map_err(file_error("write", &path))?;
        Ok(log)
    }

    /// Other bounds, from now on.
    pub(crate) fn set_bounds(&mut self, file_bytes_max: u64, files_max: usize) {
        (self.file_bytes_max, self.files_max) = (file_bytes_max, files_max);
    }

    /// Takes an event; [`flush`](Self::flush) writes it.
    pub(crate) fn push(&mut self, event: &AuditEvent) {
        let line = event.line();
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
        self.pending_events += 1;
        self.remember(event.tenant.clone(), line);
    }

    /// Counts events that were lost on the way, and says so in the log.
    pub(crate) fn lost(&mut self, count: u64, at_us: u64) {
        self.dropped += count;
        self.push(&AuditEvent::new(at_us, "audit-lost", count.to_string()));
    }

    /// Events that were lost since the node started.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Hands what was pushed to the kernel. A disk that refuses costs the events, not the node.
    pub(crate) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let (pending, events) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.pending_events));
        match self.append(&pending) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.dropped += events;
                if !std::mem::replace(&mut self.failing, true) {
                    let path = self.path(self.number);
                    tracing::error!(%error, path = %path.display(), "the audit log cannot be written; its events are lost");
                }
                // Perhaps half a line was written: the next file begins with a whole one.
                self.file = None;
            }
        }
    }

    /// Puts what was flushed onto the disk.
    pub(crate) fn sync(&mut self) {
        self.flush();
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            tracing::error!(%error, "the audit log cannot be synced");
        }
    }

    /// The newest events that `tenant` may see (all without one), newest last, of at most `bytes` in all; and whether there
    /// were more.
    pub(crate) fn tail(&self, tenant: Option<&Name>, limit: usize, bytes: usize) -> (Vec<Value>, bool) {
        let (mut events, mut left) = (Vec::new(), bytes);
        for (of, line) in self.tail.iter().rev().filter(|(of, _)| tenant.is_none() || of.as_ref() == tenant) {
            if events.len() >= limit || line.len() + 1 > left {
                events.reverse();
                return (events, true);
            }
            left -= line.len() + 1;
            events.extend(serde_json::from_str::<Value>(line).inspect_err(|_| debug_assert!(false, "of {of:?}")));
        }
        events.reverse();
        (events, false)
    }

    fn remember(&mut self, tenant: Option<Name>, line: String) {
        if self.tail.len() >= AUDIT_TAIL_EVENTS {
            self.tail.pop_front();
        }
        self.tail.push_back((tenant, line));
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() || (self.bytes > 0 && self.bytes + bytes.len() as u64 > self.file_bytes_max) {
            self.rotate()?;
        }
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("no file is open"))?;
        file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            file.sync_data()?;
        }
        self.number += 1;
        self.open_file()?;
        let numbers = numbers(&self.directory)?;
        for old in &numbers[..numbers.len().saturating_sub(self.files_max.max(1))] {
            fs::remove_file(self.path(*old))?;
        }
        Ok(())
    }

    fn open_file(&mut self) -> io::Result<()> {
        let path = self.path(self.number);
        let mut file = OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(path)?;
        self.bytes = file.metadata()?.len();
        // A node that was killed may have left half a line.
        if self.bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                self.bytes += 1;
            }
        }
        self.file = Some(file);
        Ok(())
    }

    /// Takes the newest events of an earlier life out of its newest file. Lines that are no events are passed over.
    fn recall(&mut self, path: &Path) -> io::Result<()> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        // The first line may be cut.
        for line in bytes.split(|byte| *byte == b'\n').skip(usize::from(from > 0)) {
            let Ok(Value::Object(event)) = serde_json::from_slice::<Value>(line) else { continue };
            let tenant = event.get("tenant").and_then(Value::as_str).and_then(|tenant| Name::new(tenant).ok());
            self.remember(tenant, Value::Object(event).to_string());
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("audit-{number}.jsonl"))
    }
}

/// The numbers of the files that are there, in order.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let number = |name: &str| name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse::<u64>().ok();
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        numbers.extend(entry?.file_name().to_str().and_then(number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A time as RFC 3339 writes it, in UTC to the microsecond.
pub(crate) fn rfc3339(us: u64) -> String {
    let (seconds, us) = (us / 1_000_000, us % 1_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March put the leap day last (Hinnant, "chrono-compatible low-level date algorithms").
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{us:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TempDir;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    fn event(tenant: &str, n: u64) -> AuditEvent {
        let event = AuditEvent::new(1_700_000_000_000_000 + n, "hello", n.to_string());
        AuditEvent { tenant: Some(name(tenant)), user: Some(name("ada")), ..event }
    }

    fn objects(log: &AuditLog, tenant: Option<&str>, limit: usize) -> Vec<String> {
        let (events, _) = log.tail(tenant.map(name).as_ref(), limit, 1 << 16);
        events.iter().map(|event| event["object"].as_str().expect("a text").to_owned()).collect()
    }

    #[test]
    fn times_are_written() {
        for (us, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z"),
            (1_735_689_600_000_000, "2025-01-01T00:00:00.000000Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(us), expected);
        }
    }

    #[test]
    fn events_are_lines_and_are_recalled() {
        let dir = TempDir::new();
        let mut log = AuditLog::open(dir.path(), 1 << 20, 3).expect("opened");
        log.push(&event("a", 1));
        log.push(&event("b", 2).refused(Some(RejectCode::Forbidden)));
        log.lost(7, 5);
        log.sync();
        let text = fs::read_to_string(dir.path().join("audit/audit-1.jsonl")).expect("there");
        let first = text.lines().next().expect("a line");
        let expected = "{\"ts\":\"2023-11-14T22:13:20.000001Z\",\"tenant\":\"a\",\"user\":\"ada\",\"session\":null,\
            \"action\":\"hello\",\"object\":\"1\",\"allowed\":true,\"remote\":null}";
        assert_eq!(first, expected);
        assert!(text.contains("\"allowed\":false,\"code\":\"forbidden\"") && log.dropped() == 7);
        drop(log);
        // Killed in the middle of a line.
        let half = format!("{text}{{\"ts\":\"x");
        fs::write(dir.path().join("audit/audit-1.jsonl"), half).expect("written");
        let mut log = AuditLog::open(dir.path(), 1 << 20, 3).expect("opened");
        log.push(&event("a", 3));
        log.flush();
        assert_eq!(objects(&log, None, 99), ["1", "2", "7", "3"]);
        assert_eq!(objects(&log, Some("a"), 99), ["1", "3"], "a tenant sees its own");
        assert_eq!(objects(&log, None, 2), ["7", "3"], "the newest, in order");
        let text = fs::read_to_string(dir.path().join("audit/audit-1.jsonl")).expect("there");
        assert!(text.ends_with("}\n") && text.lines().count() == 5, "{text}");
        let (events, more) = log.tail(None, 99, 200);
        assert!(events.len() == 1 && more, "answers are bounded");
    }

    #[test]
    fn files_are_rotated_and_bounded() {
        let dir = TempDir::new();
        let mut log = AuditLog::open(dir.path(), 300, 3).expect("opened");
        for n in 0..20 {
            log.push(&event("a", n));
            log.flush();
        }
        assert_eq!(numbers(&dir.path().join(AUDIT_DIRECTORY)).expect("there"), [8, 9, 10]);
        drop(log);
        let log = AuditLog::open(dir.path(), 300, 3).expect("opened");
        assert_eq!(objects(&log, None, 99), ["18", "19"]);
    }

    #[test]
    fn long_objects_are_cut() {
        let line = AuditEvent::new(0, "x", "é".repeat(AUDIT_OBJECT_BYTES_MAX)).line();
        assert!(line.len() < AUDIT_OBJECT_BYTES_MAX + 200, "{}", line.len());
    }

    #[test]
    fn a_disk_that_refuses_costs_events_only() {
        let dir = TempDir::new();
        let mut log = AuditLog::open(dir.path(), 300, 3).expect("opened");
        fs::remove_dir_all(dir.path().join(AUDIT_DIRECTORY)).expect("removed");
        for n in 0..20 {
            log.push(&event("a", n));
            log.flush();
        }
        assert!(log.dropped() > 0);
        fs::create_dir(dir.path().join(AUDIT_DIRECTORY)).expect("made");
        log.push(&event("a", 99));
        log.flush();
        assert_eq!(numbers(&dir.path().join(AUDIT_DIRECTORY)).expect("there").len(), 1, "it goes on when it can");
    }
}
