//! Whether the wall clock stepped: somebody set it, or the machine slept.
//!
//! Nothing in the node depends on the wall clock but what people are shown and when tokens expire, so a step is reported, not
//! refused. What was decided by the other clock (timeouts, idle links, spans of measured time) does not move.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A difference below this is drift or the scheduler's doing, not a step.
const STEP_MIN: Duration = Duration::from_millis(250);
/// The two clocks are not read at once. A reading that took longer than this says nothing.
const READING_MAX: Duration = Duration::from_millis(50);

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Since 1970.
    pub(crate) wall: Duration,
    pub(crate) mono: Instant,
}

impl Reading {
    /// Reads both clocks; nothing if something came between.
    pub(crate) fn take() -> Option<Self> {
        let mono = Instant::now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (mono.elapsed() < READING_MAX).then_some(Self { wall, mono })
    }
}

/// Compares readings.
#[derive(Debug, Default)]
pub(crate) struct StepWatch {
    last: Option<Reading>,
}

impl StepWatch {
    /// Takes in a reading; gives by how many microseconds the wall clock stepped since the last one, forwards if positive.
    pub(crate) fn read(&mut self, reading: Reading) -> Option<i64> {
        let last = self.last.replace(reading)?;
        let passed_us = reading.mono.saturating_duration_since(last.mono).as_micros() as i64;
        let shown_us = reading.wall.as_micros() as i64 - last.wall.as_micros() as i64;
        let step_us = shown_us - passed_us;
        (step_us.unsigned_abs() >= STEP_MIN.as_micros() as u64).then_some(step_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_drift() {
        let origin = Instant::now();
        // Milliseconds of the wall clock and of the other, one reading after the other, and the step seen at the last.
        let check = |readings: &[(u64, u64)], expected_ms: Option<i64>| {
            let mut watch = StepWatch::default();
            let mut seen = None;
            for &(wall, mono) in readings {
                let (wall, mono) = (Duration::from_millis(wall), origin + Duration::from_millis(mono));
                seen = watch.read(Reading { wall, mono });
            }
            assert_eq!(seen, expected_ms.map(|ms| ms * 1_000), "{readings:?}");
        };
        check(&[], None);
        check(&[(5_000_000, 0)], None);
        check(&[(1_000, 0), (1_500, 500)], None);
        check(&[(1_000, 0), (1_700, 500)], None);
        check(&[(1_000, 0), (3_600_500, 500)], Some(3_599_000));
        check(&[(9_000, 0), (1_000, 500)], Some(-8_500));
        check(&[(9_000, 0), (1_000, 500), (1_500, 1_000)], None);
        check(&[(1_000, 0), (1_000, 60_000)], Some(-60_000));
        assert!(Reading::take().is_none_or(|reading| reading.wall > Duration::ZERO));
    }
}
