//! What is done to a node, and when.

use rand::{Rng as _, rngs::StdRng};

/// What is done to the node at a moment that was chosen beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Crash,
    Drain,
    FailSync,
    FillDisk,
    StepClock,
    Limits,
    Pressure,
    Pause,
}

/// What is done to a node over a run of so many operations.
pub(crate) fn troubles(rng: &mut StdRng, operations: u64) -> Vec<(u64, Trouble)> {
    let mut troubles = Vec::new();
    let mut some = |rng: &mut StdRng, trouble, count: u64| {
        for n in 0..count {
            // Spread, so that no two of a kind fall together, and none at the very end.
            let part = (operations * 9 / 10) / count.max(1);
            troubles.push((operations - part * n - rng.random_range(0..=part / 2), trouble));
        }
    };
    let crashes = rng.random_range(4..=6);
    some(rng, Trouble::Crash, crashes);
    let (drain, fail, fill) = (rng.random_bool(0.1), rng.random_bool(0.3), rng.random_bool(0.4));
    some(rng, Trouble::Drain, drain.into());
    some(rng, Trouble::FailSync, fail.into());
    some(rng, Trouble::FillDisk, fill.into());
    let steps = rng.random_range(0..4);
    some(rng, Trouble::StepClock, steps);
    let (limits, presses, pause) = (rng.random_range(0..5), rng.random_range(0..3), rng.random_bool(0.4));
    let limits = if rng.random_bool(0.5) { limits } else { 0 };
    some(rng, Trouble::Limits, limits);
    some(rng, Trouble::Pressure, presses);
    some(rng, Trouble::Pause, pause.into());
    troubles.sort_by_key(|&(at, trouble)| (at, trouble as u8));
    troubles
}
