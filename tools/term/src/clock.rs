//! Times as people read them, in their own time zone.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// The two clocks, read by the shell once per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Since the program started; never goes back.
    pub mono: Duration,
    /// Microseconds since 1970, UTC.
    pub wall_us: u64,
}

/// Turns the node's microseconds into local days and hours.
#[derive(Debug, Clone)]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of this machine.
    pub fn local() -> Self {
        Self(TimeZone::system())
    }

    /// Coordinated universal time.
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    fn civil(&self, wall_us: u64) -> DateTime {
        let micros = i64::try_from(wall_us).unwrap_or(i64::MAX);
        let timestamp = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX);
        self.0.to_datetime(timestamp)
    }

    /// The day, to compare and to name.
    pub(crate) fn day(&self, wall_us: u64) -> Date {
        self.civil(wall_us).date()
    }

    /// `09:41`.
    pub(crate) fn time(&self, wall_us: u64) -> String {
        let at = self.civil(wall_us);
        format!("{:02}:{:02}", at.hour(), at.minute())
    }

    /// `Saturday, 21 November 2026`.
    pub(crate) fn day_name(&self, wall_us: u64) -> String {
        self.day(wall_us).strftime("%A, %-d %B %Y").to_string()
    }

    /// `21 Nov 2026 09:41`.
    pub(crate) fn moment(&self, wall_us: u64) -> String {
        self.civil(wall_us).strftime("%-d %b %Y %H:%M").to_string()
    }

    /// How long ago, with the unit that a person would take.
    pub(crate) fn ago(&self, wall_us: u64, now: Now) -> String {
        let seconds = now.wall_us.saturating_sub(wall_us) / 1_000_000;
        match seconds {
            0..60 => "just now".to_owned(),
            60..3_600 => format!("{} min ago", seconds / 60),
            3_600..86_400 => format!("{} h ago", seconds / 3_600),
            _ => self.moment(wall_us),
        }
    }
}

/// `12 s`, `3 min`, `2 h`: how long something has lasted.
pub(crate) fn lasted(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_people() {
        let zone = Zone::utc();
        let at = 1_795_254_060_000_000; // 2026-11-21T09:41:00Z
        assert_eq!(zone.time(at), "09:41");
        assert_eq!(zone.day_name(at), "Saturday, 21 November 2026");
        assert_eq!(zone.moment(at), "21 Nov 2026 09:41");
        let check = |seconds: u64, expected: &str| {
            assert_eq!(zone.ago(at, Now { wall_us: at + seconds * 1_000_000, ..Now::default() }), expected);
        };
        check(5, "just now");
        check(61, "1 min ago");
        check(7_300, "2 h ago");
        check(100_000, "21 Nov 2026 09:41");
        assert_eq!(zone.time(u64::MAX).len(), 5);
        assert_eq!(
            [3, 119, 121, 7_201].map(|s| lasted(Duration::from_secs(s))),
            ["3 s", "119 s", "2 min", "2 h"].map(str::to_owned)
        );
    }
}
