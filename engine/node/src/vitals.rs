//! The few numbers about the process as a whole that every stage may read: memory, clock, certificate.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thalweg_ring::Bell;

use crate::clock::{Reading, StepWatch};
use crate::memory::{Budget, SAMPLE, give_back, resident_bytes};
use crate::outlook::Outlook;

/// While memory is short, the allocator is asked this often to give back what is free: it takes its locks meanwhile.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(10);

/// Written by one thread each, read by all. Every number stands alone, so none is ordered after another.
#[derive(Debug, Default)]
pub struct Vitals {
    level: AtomicU8,
    resident_bytes: AtomicU64,
    budget_bytes: AtomicU64,
    level_changes: AtomicU64,
    clock_steps: AtomicU64,
    clock_step_us: AtomicI64,
    certificate_expires_s: AtomicI64,
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
}

impl Vitals {
    /// How short memory is: 0 (not at all) to 3.
    pub fn memory_level(&self) -> u8 {
        self.level.load(Ordering::Relaxed)
    }

    /// Bytes of the process in memory, when last looked.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the node may use.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes.load(Ordering::Relaxed)
    }

    /// How often the level of memory changed.
    pub fn memory_level_changes(&self) -> u64 {
        self.level_changes.load(Ordering::Relaxed)
    }

    /// How often the wall clock stepped.
    pub fn clock_steps(&self) -> u64 {
        self.clock_steps.load(Ordering::Relaxed)
    }

    /// By how much it stepped last, in microseconds, forwards if positive.
    pub fn clock_step_us(&self) -> i64 {
        self.clock_step_us.load(Ordering::Relaxed)
    }

    /// When the certificate that is shown expires, in seconds since 1970; 0 if that is not known.
    pub fn certificate_expires_s(&self) -> i64 {
        self.certificate_expires_s.load(Ordering::Relaxed)
    }

    /// How often settings were reloaded, and how often that was refused.
    pub fn reloads(&self) -> (u64, u64) {
        (self.reloads.load(Ordering::Relaxed), self.reloads_failed.load(Ordering::Relaxed))
    }

    /// The node may use so many bytes from now on.
    pub(crate) fn set_budget(&self, bytes: u64) {
        self.budget_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_certificate_expiry(&self, expires_s: i64) {
        self.certificate_expires_s.store(expires_s, Ordering::Relaxed);
    }

    pub(crate) fn count_reload(&self, good: bool) {
        let counter = if good { &self.reloads } else { &self.reloads_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What `thalweg admin stats` says of them.
    pub(crate) fn report(&self) -> Value {
        let (reloads, failed) = self.reloads();
        json!({
            "memory": {
                "level": self.memory_level(), "level_changes": self.memory_level_changes(),
                "resident_bytes": self.resident_bytes(), "budget_bytes": self.budget_bytes(),
            },
            "clock": { "steps": self.clock_steps(), "last_step_us": self.clock_step_us() },
            "certificate_expires_s": self.certificate_expires_s(),
            "reloads": { "done": reloads, "refused": failed },
        })
    }
}

/// Takes the samples. Owned by the clerk.
pub(crate) struct Sampler {
    vitals: Arc<Vitals>,
    outlook: Arc<Outlook>,
    bells: Vec<Arc<Bell>>,
    budget: Budget,
    clock: StepWatch,
    next: Instant,
    gave_back: Option<Instant>,
    /// Whether a core was seen not to come round.
    stuck: bool,
}

impl Sampler {
    pub(crate) fn new(vitals: Arc<Vitals>, outlook: Arc<Outlook>, budget_bytes: u64, bells: &[Arc<Bell>]) -> Self {
        vitals.set_budget(budget_bytes);
        let (budget, clock) = (Budget::new(budget_bytes), StepWatch::default());
        Self {
            vitals,
            outlook,
            bells: bells.into(),
            budget,
            clock,
            next: Instant::now(),
            gave_back: None,
            stuck: false,
        }
    }

    /// Takes a sample if one is due; gives how long it is until the next.
    pub(crate) fn tick(&mut self) -> Duration {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + SAMPLE;
            self.look_at_memory(now);
            self.look_at_clock();
            self.look_at_cores();
        }
        self.next.saturating_duration_since(now)
    }

    /// A core that never returns cannot say so itself.
    fn look_at_cores(&mut self) {
        let silent = self.outlook.stuck_core();
        if let (Some((core, since)), false) = (silent, self.stuck) {
            tracing::error!(core, since_ms = since.as_millis() as u64, "a core does not come round; its clients wait");
        }
        self.stuck = silent.is_some();
    }

    fn look_at_memory(&mut self, now: Instant) {
        // A system that does not say how much is used cannot be told to use less.
        let Ok(bytes) = resident_bytes() else { return };
        self.vitals.resident_bytes.store(bytes, Ordering::Relaxed);
        self.budget.resize(self.vitals.budget_bytes());
        if let Some(level) = self.budget.used(bytes) {
            let before = self.vitals.level.swap(level, Ordering::Relaxed);
            self.vitals.level_changes.fetch_add(1, Ordering::Relaxed);
            self.bells.iter().for_each(|bell| bell.ring());
            let (used_mib, budget_mib, means) = (bytes >> 20, self.budget.bytes() >> 20, meaning(level));
            if level > before {
                tracing::warn!(level, before, used_mib, budget_mib, means, "memory is short");
            } else {
                tracing::info!(level, before, used_mib, budget_mib, means, "memory is less short");
            }
        }
        let due = self.gave_back.is_none_or(|at| now - at >= GIVE_BACK_EVERY);
        if self.vitals.memory_level() > 0 && due {
            self.gave_back = Some(now);
            give_back();
        }
    }

    fn look_at_clock(&mut self) {
        let Some(step_us) = Reading::take().and_then(|reading| self.clock.read(reading)) else { return };
        self.vitals.clock_steps.fetch_add(1, Ordering::Relaxed);
        self.vitals.clock_step_us.store(step_us, Ordering::Relaxed);
        tracing::warn!(
            step_ms = step_us / 1_000,
            "the wall clock stepped, or the machine slept; timestamps of messages follow it, but never go back in a channel"
        );
    }
}

fn meaning(level: u8) -> &'static str {
    match level {
        0 => "all is served",
        1 => "history in memory is dropped; it is read from the disk",
        2 => "new sessions, subscriptions and generations are refused as `overloaded`",
        _ => "writes are refused as `overloaded` too",
    }
}
