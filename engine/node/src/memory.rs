//! How much memory the node uses, and what it gives up first when that comes near its budget.
//!
//! The clerk samples the process twice a second. The level that follows is one number that cores read; what a level means is
//! the shard's business, and the door's:
//!
//! | level | from | what happens |
//! |---|---|---|
//! | 0 | | nothing |
//! | 1 | 80 % | history that is on disk too is dropped from memory, and the allocator gives back what is free |
//! | 2 | 90 % | new sessions, subscriptions and generations are refused as `overloaded` |
//! | 3 | 97 % | writes are refused too |
//!
//! A level is left only when use is well below where it began, so that a node at the edge does not swing.

use std::fs;
use std::io;
use std::time::Duration;

/// Between two looks at the process.
pub(crate) const SAMPLE: Duration = Duration::from_millis(500);
/// Where levels 1, 2 and 3 begin, in percent of the budget. What arrives between two samples must fit in between.
const BEGINS_PERCENT: [u64; 3] = [80, 90, 97];
/// A level ends so far below where it began, in percent of the budget.
const HYSTERESIS_PERCENT: u64 = 5;
/// What a node takes of its machine if nobody says, in percent: the rest is for the page cache, which the log lives on.
const BUDGET_PERCENT: u64 = 75;
/// What is taken for the memory of a machine that does not say how much it has, in bytes.
const UNKNOWN_MACHINE_BYTES: u64 = 2 << 30;

/// From this level on nobody new is served.
pub(crate) const PRESSURE_NEWCOMERS: u8 = 2;

/// Finds the level that follows from what is used.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes: u64,
    level: u8,
}

impl Budget {
    /// Nothing is used yet of so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { bytes: bytes.max(1), level: 0 }
    }

    /// How many bytes there are to use.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// There are so many bytes to use from now on.
    pub fn resize(&mut self, bytes: u64) {
        self.bytes = bytes.max(1);
    }

    /// Takes in how many bytes are used; gives the new level if it is another one. It rises at once, and falls a step at a
    /// time.
    pub fn used(&mut self, bytes: u64) -> Option<u8> {
        let percent = u64::try_from(u128::from(bytes) * 100 / u128::from(self.bytes)).unwrap_or(u64::MAX);
        let reached = BEGINS_PERCENT.iter().filter(|&&begins| percent >= begins).count() as u8;
        let ends = |level: u8| BEGINS_PERCENT[usize::from(level) - 1] - HYSTERESIS_PERCENT;
        let level = match reached {
            higher if higher > self.level => higher,
            _ if self.level > 0 && percent < ends(self.level) => self.level - 1,
            _ => self.level,
        };
        (std::mem::replace(&mut self.level, level) != level).then_some(level)
    }
}

/// The memory that this process may have: that of the machine, or less if its control group says so. With where that is
/// written.
pub fn machine_bytes() -> (u64, &'static str) {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_limit(&text));
    match (machine, group) {
        (Some(machine), Some(group)) if group < machine => (group, "its control group"),
        (None, Some(group)) => (group, "its control group"),
        (Some(machine), _) => (machine, "the machine"),
        (None, None) => (UNKNOWN_MACHINE_BYTES, "a guess: /proc/meminfo cannot be read"),
    }
}

/// The budget of a node that is not given one.
pub fn default_budget() -> u64 {
    machine_bytes().0 / 100 * BUDGET_PERCENT
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// The least limit of the control group (version 2) and those above it.
fn group_limit(cgroup: &str) -> Option<u64> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/');
    let root = std::path::Path::new("/sys/fs/cgroup");
    let limit = |group: &std::path::Path| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    root.join(own).ancestors().take_while(|group| group.starts_with(root)).filter_map(limit).min()
}

/// Bytes of this process that are in memory.
///
/// # Errors
/// If the system does not say.
pub fn resident_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages =
        pages.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/statm has no second number"))?;
    // SAFETY: takes a number and gives one; no memory is involved.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(pages * u64::try_from(page_bytes).unwrap_or(4096))
}

/// Has the allocator give back to the system what it keeps although it is free. Without that, dropping history would not show.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time from any thread; it takes the allocator's own locks, one arena after the other.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_rise_at_once_and_fall_slowly() {
        let check = |used: &[(u64, Option<u8>)]| {
            let mut budget = Budget::new(1_000);
            for (at, &(bytes, expected)) in used.iter().enumerate() {
                assert_eq!(budget.used(bytes), expected, "sample {at} of {used:?}");
            }
        };
        check(&[(0, None), (799, None), (800, Some(1)), (799, None), (751, None), (749, Some(0)), (749, None)]);
        check(&[(900, Some(2)), (969, None), (970, Some(3)), (920, None), (919, Some(2)), (860, None), (800, Some(1))]);
        check(&[(5_000, Some(3)), (0, Some(2)), (0, Some(1)), (0, Some(0)), (0, None)]);
        check(&[(850, Some(1)), (850, None), (990, Some(3)), (990, None)]);
        assert_eq!(Budget::new(0).used(u64::MAX), Some(3), "no budget is no division by nothing");
        let mut budget = Budget::new(1_000);
        budget.resize(100);
        assert_eq!((budget.bytes(), budget.used(95)), (100, Some(2)));
    }

    #[test]
    fn the_machine_says_what_it_has() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(total("nonsense"), None);
        assert_eq!(group_limit("1:name=systemd:/x\n"), None, "version 1 is not asked");
        let (bytes, _) = machine_bytes();
        assert!(bytes > default_budget() && default_budget() > 0);
        let resident = resident_bytes().expect("Linux says");
        assert!((1 << 20..bytes).contains(&resident), "{resident}");
        give_back();
    }
}
