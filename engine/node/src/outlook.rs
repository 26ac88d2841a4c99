//! How the node is, for those who ask from outside: written by cores and by whoever starts and ends them, read by any
//! thread without asking one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use thalweg_protocol::ids::{CoreId, Epoch};
use thalweg_protocol::limits::CORE_SILENT_MS;
use thalweg_web::{Health, ModelCard, Phase};

use crate::disk::Alarm;
use crate::models::Registry;
use crate::vitals::Vitals;

/// A core that does not run yet.
const NOT_YET: u64 = 0;
/// A core that has ended.
const ENDED: u64 = u64::MAX;

/// What one core shows of itself. On a cache line of its own, since it writes it in every turn.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Signs {
    /// When it last looked around, in microseconds of the node's clock, or one of the two above.
    looked_us: AtomicU64,
    storage_full: AtomicBool,
}

/// What the node shows of itself. Every number stands alone, so none is ordered after another.
pub(crate) struct Outlook {
    origin: Instant,
    /// The same by the wall clock as it was then, since it must not move.
    started: SystemTime,
    /// What a [`Phase`] is as a number.
    phase: AtomicU8,
    epoch: AtomicU64,
    cores: Vec<Signs>,
    alarm: Arc<Alarm>,
    vitals: Arc<Vitals>,
    /// Where its log is.
    log: PathBuf,
    /// Its models, once they are loaded.
    models: OnceLock<Arc<Registry>>,
}

impl Outlook {
    /// Of a node that starts, with so many cores. `origin` is the moment its clocks count from.
    pub(crate) fn new(
        cores: usize,
        origin: Instant,
        log: PathBuf,
        alarm: Arc<Alarm>,
        vitals: Arc<Vitals>,
    ) -> Arc<Self> {
        let cores = (0..cores).map(|_| Signs::default()).collect();
        let (phase, epoch) = (AtomicU8::new(Phase::Starting as u8), AtomicU64::new(0));
        let started = SystemTime::now();
        Arc::new(Self { origin, started, phase, epoch, cores, alarm, vitals, log, models: OnceLock::new() })
    }

    /// The models are loaded.
    pub(crate) fn set_models(&self, models: Arc<Registry>) {
        // Made once in the life of a node.
        drop(self.models.set(models));
    }

    /// The models there are, default first; none while they are loaded.
    pub(crate) fn models(&self) -> Vec<ModelCard> {
        self.models.get().map(|registry| registry.cards()).unwrap_or_default()
    }

    /// The node has counted this start.
    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    /// All cores are up.
    pub(crate) fn serves(&self) {
        let (from, to) = (Phase::Starting as u8, Phase::Serving as u8);
        // A node that was told to drain while it started drains.
        let _ = self.phase.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The node takes nothing new any more.
    pub(crate) fn drains(&self) {
        self.phase.store(Phase::Draining as u8, Ordering::Relaxed);
    }

    /// A core looks around.
    pub(crate) fn looked(&self, core: CoreId, now: Instant) {
        let at_us = now.saturating_duration_since(self.origin).as_micros() as u64;
        self.cores[usize::from(core.0)].looked_us.store(at_us.max(1), Ordering::Relaxed);
    }

    /// A core has ended.
    pub(crate) fn ended(&self, core: CoreId) {
        self.cores[usize::from(core.0)].looked_us.store(ENDED, Ordering::Relaxed);
    }

    /// A core was told whether the disk is full.
    pub(crate) fn set_storage_full(&self, core: CoreId, full: bool) {
        self.cores[usize::from(core.0)].storage_full.store(full, Ordering::Relaxed);
    }

    /// How long ago each core looked around; none for one that does not run.
    pub(crate) fn silences(&self) -> Vec<Option<Duration>> {
        let age = |signs: &Signs| match signs.looked_us.load(Ordering::Relaxed) {
            NOT_YET | ENDED => None,
            at_us => Some(self.uptime().saturating_sub(Duration::from_micros(at_us))),
        };
        self.cores.iter().map(age).collect()
    }

    /// A core that has not looked around for so long that it is not well, and for how long.
    pub(crate) fn stuck_core(&self) -> Option<(usize, Duration)> {
        let silences = self.silences().into_iter().enumerate();
        let longest = silences.filter_map(|(core, since)| Some((core, since?))).max_by_key(|(_, since)| *since)?;
        (longest.1 >= Duration::from_millis(CORE_SILENT_MS)).then_some(longest)
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }

    /// When it started, by the wall clock of that time.
    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// Where the log is.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.alarm.is_raised() {
            return Phase::Failed;
        }
        [Phase::Starting, Phase::Serving, Phase::Draining]
            .into_iter()
            .find(|phase| *phase as u8 == self.phase.load(Ordering::Relaxed))
            .unwrap_or(Phase::Failed)
    }

    /// All of it, as `/health` says it.
    pub(crate) fn health(&self) -> Health {
        let silent =
            |(_, age): &(u16, Option<Duration>)| age.is_some_and(|age| age.as_millis() as u64 > CORE_SILENT_MS);
        Health {
            phase: self.phase(),
            storage_full: self.cores.iter().any(|core| core.storage_full.load(Ordering::Relaxed)),
            memory_pressure: self.vitals.memory_level(),
            cores: self.cores.len() as u16,
            silent_cores: (0..).zip(self.silences()).filter(silent).map(|(core, _)| core).collect(),
            uptime: self.uptime(),
            epoch: self.epoch.load(Ordering::Relaxed),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_hangs_is_seen_and_one_that_ended_is_not() {
        let origin = Instant::now() - Duration::from_secs(60);
        let alarm = Alarm::new(Vec::new());
        let outlook = Outlook::new(3, origin, PathBuf::new(), Arc::clone(&alarm), Arc::default());
        outlook.looked(CoreId(0), Instant::now());
        outlook.looked(CoreId(1), origin + Duration::from_secs(1));
        let look = || (outlook.health().status(), outlook.health().silent_cores);
        assert_eq!(look(), ("stalled", vec![1]), "the third does not run yet");
        outlook.ended(CoreId(1));
        assert_eq!(look(), ("starting", vec![]));
        outlook.serves();
        assert_eq!(look(), ("ok", vec![]));
        outlook.set_storage_full(CoreId(2), true);
        assert_eq!(look(), ("degraded", vec![]));
        outlook.drains();
        outlook.serves();
        assert_eq!(look(), ("draining", vec![]));
        alarm.raise("as planned".into());
        assert_eq!(look(), ("failed", vec![]));
    }
}
