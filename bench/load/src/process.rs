//! What a process costs, read from `/proc`.

use std::fs;

use crate::error::LoadError;

/// A process whose cost is looked at: the server's, or our own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    pid: u32,
}

impl Process {
    /// The process of this number.
    ///
    /// # Errors
    /// If there is none, or it may not be looked at.
    pub(crate) fn new(pid: u32) -> Result<Self, LoadError> {
        let process = Self { pid };
        process.cpu_seconds()?;
        Ok(process)
    }

    /// This process.
    pub(crate) fn own() -> Self {
        Self { pid: std::process::id() }
    }

    /// Processor time of all its threads so far, user and system, in seconds (resolution: 10 ms).
    pub(crate) fn cpu_seconds(&self) -> Result<f64, LoadError> {
        let text = self.read("stat")?;
        let ticks = ticks(&text).ok_or_else(|| self.damaged("stat"))?;
        // SAFETY: sysconf takes no pointer and has no precondition.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(ticks as f64 / per_second.max(1) as f64)
    }

    /// Memory that is resident now, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64, LoadError> {
        let text = self.read("statm")?;
        let pages: Option<u64> = text.split_whitespace().nth(1).and_then(|field| field.parse().ok());
        // SAFETY: as above.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Ok(pages.ok_or_else(|| self.damaged("statm"))? * page_bytes.max(0) as u64)
    }

    fn read(&self, file: &str) -> Result<String, LoadError> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read_to_string(&path).map_err(LoadError::io(format!("reading {path}")))
    }

    fn damaged(&self, file: &str) -> LoadError {
        let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
        LoadError::Io { what: format!("reading /proc/{}/{file}", self.pid), source }
    }
}

/// utime + stime of a `/proc/PID/stat` line (proc(5): fields 14 and 15). The name in field 2 may hold anything, also
/// blanks and brackets: counting starts behind its last bracket.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Deliveries, requests or whatever else, per processor second; `None` if nothing measurable was used.
pub(crate) fn per_cpu_second(count: u64, cpu_seconds: Option<f64>) -> Option<f64> {
    cpu_seconds.filter(|&s| s > 0.0).map(|s| count as f64 / s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_behind_the_name() {
        let check = |line: &str, expected: Option<u64>| assert_eq!(ticks(line), expected, "{line}");
        check("7 (thalweg) S 1 7 7 0 -1 4194560 900 0 3 0 120 34 0 0 20 0 5 0 100 1 2", Some(154));
        check("7 (a) b (c)) S 1 7 7 0 -1 4194560 900 0 3 0 1 2 0 0 20 0 5 0 100 1 2", Some(3));
        check("7 (cut) S 1 7", None);
        check("", None);
    }

    #[test]
    fn our_own_process_can_be_looked_at() {
        let own = Process::new(std::process::id()).expect("we exist");
        assert!(own.resident_bytes().expect("readable") > 100_000);
        assert!(Process::new(u32::MAX).is_err());
    }
}
