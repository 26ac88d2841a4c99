//! The models there are, and what became of what they were asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use thalweg_domain::routing::Health;
use thalweg_protocol::ids::Name;
use thalweg_ring::Bell;

/// Models that a node knows at a time, wherever they run: what bounds its tables, and the labels of its metrics.
pub(crate) const MODELS_MAX: usize = 64;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It answers.
    Chat,
    /// It says what texts are about.
    Embedding,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this process.
    Local,
    /// Behind another server's API.
    Remote,
}

/// Whether a model can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It is read and packed.
    Loading,
    /// It is asked.
    Ready,
    /// It answers what it was asked, and is then gone.
    Draining,
}

impl State {
    /// The state as a word, for scripts and metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// What is known of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    /// `fast`, `accurate`, or a word of the operator's.
    pub(crate) class: Name,
    /// What a token of it costs compared with the others; 0 is free.
    pub(crate) cost: u32,
    /// Who answers in its place while it cannot.
    pub(crate) fallback: Option<Name>,
    /// Longest conversation and answer together, or longest text, in tokens.
    pub(crate) context_tokens: u32,
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) state: State,
}

/// Why a model cannot be known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistryError {
    /// There is one of that name.
    #[error("there is a model {0} already; give this one another name, or unload that one first")]
    Exists(Name),
    /// A word would mean a model and a class.
    #[error("{0} is the name of a model and of a class; give one of them another name")]
    Ambiguous(Name),
    /// There are too many.
    #[error("the node knows {MODELS_MAX} models, which is all it takes; unload one first")]
    TooMany,
}

/// What became of something a model was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was asked. Exactly one of `Ended`, `Failed`, `Busy` follows, and before that at most one `Begun`.
    Asked,
    /// Its first token came.
    Begun {
        /// How long that took, from the moment it was asked.
        first_token_us: u64,
        /// Tokens of the prompt, as far as that is known; else 0, and the time is not counted as one of a prompt.
        prompt_tokens: u32,
    },
    /// It ended well, was cancelled, or was refused for what the client had asked: the model is not to blame.
    Ended,
    /// The model, or the way to it, failed. So many in a row, and it is not asked for a while.
    Failed,
    /// It has too much to do.
    Busy,
    /// What failed was given to the fallback. Comes beside `Failed`.
    FellBack,
}

/// Numbers of one model: cores write them without locks, any thread reads them. Each stands alone.
#[derive(Debug)]
pub(crate) struct Gauges {
    asked: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    busy: AtomicU64,
    fell_back: AtomicU64,
    failed_in_row: AtomicU32,
    /// Of those begun whose prompt is known: how many, and sums for a straight line through (prompt tokens, time). They wrap;
    /// what counts are differences.
    timed: AtomicU64,
    first_token_us_sum: AtomicU64,
    prompt_tokens_sum: AtomicU64,
    prompt_squared_sum: AtomicU64,
    product_sum: AtomicU64,
    /// Of whoever looks at them.
    bell: Arc<Bell>,
}

/// [`Gauges`] at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    pub(crate) asked: u64,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    pub(crate) busy: u64,
    pub(crate) fell_back: u64,
    pub(crate) failed_in_row: u32,
    pub(crate) timed: u64,
    pub(crate) first_token_us_sum: u64,
    pub(crate) prompt_tokens_sum: u64,
    pub(crate) prompt_squared_sum: u64,
    pub(crate) product_sum: u64,
}

impl Reading {
    /// Asked and not ended.
    pub(crate) fn running(&self) -> u64 {
        // They are read one after another, so an end may be seen without its beginning.
        self.asked.saturating_sub(self.ended + self.failed + self.busy)
    }
}

impl Gauges {
    fn new(bell: Arc<Bell>) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            asked: zero(),
            begun: zero(),
            ended: zero(),
            failed: zero(),
            busy: zero(),
            fell_back: zero(),
            failed_in_row: AtomicU32::new(0),
            timed: zero(),
            first_token_us_sum: zero(),
            prompt_tokens_sum: zero(),
            prompt_squared_sum: zero(),
            product_sum: zero(),
            bell,
        }
    }

    /// Something became of what the model was asked. Neither blocks nor allocates; may wake the thread that watches.
    pub(crate) fn note(&self, outcome: Outcome) {
        let add = |to: &AtomicU64, value: u64| {
            to.fetch_add(value, Ordering::Relaxed);
        };
        match outcome {
            // Nothing is learned from that.
            Outcome::Asked => return add(&self.asked, 1),
            Outcome::Begun { first_token_us, prompt_tokens } => {
                self.failed_in_row.store(0, Ordering::Relaxed);
                if prompt_tokens > 0 {
                    let prompt = u64::from(prompt_tokens);
                    add(&self.first_token_us_sum, first_token_us);
                    add(&self.prompt_tokens_sum, prompt);
                    add(&self.prompt_squared_sum, prompt * prompt);
                    add(&self.product_sum, prompt.wrapping_mul(first_token_us));
                    add(&self.timed, 1);
                }
                add(&self.begun, 1);
            }
            Outcome::Ended => add(&self.ended, 1),
            Outcome::Failed => {
                self.failed_in_row.fetch_add(1, Ordering::Relaxed);
                add(&self.failed, 1);
            }
            Outcome::Busy => add(&self.busy, 1),
            Outcome::FellBack => return add(&self.fell_back, 1),
        }
        self.bell.ring();
    }

    /// All of them now.
    pub(crate) fn read(&self) -> Reading {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        Reading {
            asked: get(&self.asked),
            begun: get(&self.begun),
            ended: get(&self.ended),
            failed: get(&self.failed),
            busy: get(&self.busy),
            fell_back: get(&self.fell_back),
            failed_in_row: self.failed_in_row.load(Ordering::Relaxed),
            timed: get(&self.timed),
            first_token_us_sum: get(&self.first_token_us_sum),
            prompt_tokens_sum: get(&self.prompt_tokens_sum),
            prompt_squared_sum: get(&self.prompt_squared_sum),
            product_sum: get(&self.product_sum),
        }
    }
}

/// What a core must know of a model that it hands requests to.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) gauges: Arc<Gauges>,
}

/// All models a core may hand requests to, those that are on their way out included.
pub(crate) type ServedModels = Arc<BTreeMap<Name, Served>>;

/// A model of the [`Registry`].
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) entry: Entry,
    pub(crate) gauges: Arc<Gauges>,
    /// When it came, in seconds since 1970.
    pub(crate) since_s: u64,
}

/// The models there are, in the order in which they were configured and loaded: the first that answers is the default. Shared
/// by all threads but the cores, which hold what they need of it; nothing is awaited while it is locked.
#[derive(Debug)]
pub(crate) struct Registry {
    known: Mutex<Inner>,
    shown: Mutex<BTreeMap<Name, Shown>>,
    bell: Arc<Bell>,
}

/// What was learned of a model by asking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) health: Health,
    /// How often it was left alone since it failed.
    pub(crate) opens: u64,
    /// How long it is expected to take to the first token apart from the prompt, in milliseconds.
    pub(crate) first_token_ms: u32,
    /// What each token of the prompt adds to that, in microseconds.
    pub(crate) prompt_us: u32,
}

#[derive(Debug, Default)]
struct Inner {
    models: Vec<Known>,
    /// Grows with every change.
    version: u64,
    /// What a request means that names no model.
    default: Option<Name>,
    /// Models of which the settings say something.
    described: BTreeSet<Name>,
}

impl Registry {
    /// A registry of these models; of two with one name the first is taken. `bell` is rung when something changed.
    pub(crate) fn new(entries: Vec<Entry>, bell: Arc<Bell>) -> Arc<Self> {
        let registry = Self { known: Mutex::default(), shown: Mutex::default(), bell };
        for entry in entries {
            if let Err(error) = registry.add(entry) {
                tracing::warn!(%error, "a model is left out");
            }
        }
        Arc::new(registry)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked here left a list of whole entries.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All there are.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().models.iter().map(|known| known.entry.clone()).collect()
    }

    /// All there are with their numbers, a number that grows with every change, and what a request means that names none.
    pub(crate) fn look(&self) -> (Vec<Known>, u64, Option<Name>) {
        let inner = self.lock();
        (inner.models.clone(), inner.version, inner.default.clone())
    }

    /// Of whoever watches.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What was learned of a model, if it was looked at.
    pub(crate) fn shown(&self, name: &Name) -> Option<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// What was learned of all.
    pub(crate) fn show(&self, shown: BTreeMap<Name, Shown>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    /// One of them.
    pub(crate) fn get(&self, name: &Name) -> Option<Entry> {
        self.lock().models.iter().map(|known| &known.entry).find(|entry| entry.name == *name).cloned()
    }

    /// One more, at the end.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing changed.
    pub(crate) fn add(&self, entry: Entry) -> Result<(), RegistryError> {
        let since_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut inner = self.lock();
        if inner.models.iter().any(|known| known.entry.name == entry.name) {
            return Err(RegistryError::Exists(entry.name));
        }
        if inner.models.len() >= MODELS_MAX {
            return Err(RegistryError::TooMany);
        }
        let all = || inner.models.iter().map(|known| &known.entry).chain([&entry]);
        if let Some(both) = all().find(|one| all().any(|other| other.class == one.name)) {
            return Err(RegistryError::Ambiguous(both.name.clone()));
        }
        let gauges = Arc::new(Gauges::new(Arc::clone(&self.bell)));
        inner.models.push(Known { entry, gauges, since_s });
        self.changed(inner);
        Ok(())
    }

    /// One fewer; gives what was known of it. What it still runs goes on to be counted by whoever holds its gauges.
    pub(crate) fn remove(&self, name: &Name) -> Option<Entry> {
        let mut inner = self.lock();
        let at = inner.models.iter().position(|known| known.entry.name == *name)?;
        let known = inner.models.remove(at);
        self.changed(inner);
        Some(known.entry)
    }

    /// Whether one can be asked from now on. False if there is none of that name.
    pub(crate) fn set_state(&self, name: &Name, state: State) -> bool {
        self.change(name, |entry| entry.state = state)
    }

    /// Changes what is known of one; its name must stay. False if there is none of that name.
    pub(crate) fn change(&self, name: &Name, with: impl FnOnce(&mut Entry)) -> bool {
        let mut inner = self.lock();
        let Some(known) = inner.models.iter_mut().find(|known| known.entry.name == *name) else { return false };
        with(&mut known.entry);
        debug_assert_eq!(known.entry.name, *name, "a name stays");
        self.changed(inner);
        true
    }

    /// What a request means from now on that names no model: a model, a class, or `auto`; without, the first.
    pub(crate) fn set_default(&self, default: Option<Name>) {
        let mut inner = self.lock();
        if inner.default != default {
            inner.default = default;
            self.changed(inner);
        }
    }

    /// The settings say something of these models now; gives of which they did before.
    pub(crate) fn described(&self, now: BTreeSet<Name>) -> BTreeSet<Name> {
        std::mem::replace(&mut self.lock().described, now)
    }

    fn changed(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.version += 1;
        drop(inner);
        self.bell.ring();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    pub(crate) fn entry(text: &str, class: &str) -> Entry {
        Entry {
            name: name(text),
            class: name(class),
            cost: 0,
            fallback: None,
            context_tokens: 2_048,
            kind: Kind::Chat,
            place: Place::Local,
            state: State::Ready,
        }
    }

    fn registry(entries: Vec<Entry>) -> Arc<Registry> {
        Registry::new(entries, Bell::new().expect("an eventfd"))
    }

    #[test]
    fn names_mean_one_thing_each() {
        let registry = registry(vec![entry("a", "fast"), entry("b", "fast"), entry("a", "slow")]);
        assert_eq!(registry.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(registry.add(entry("b", "x")), Err(RegistryError::Exists(name("b"))));
        assert_eq!(registry.add(entry("fast", "x")), Err(RegistryError::Ambiguous(name("fast"))));
        assert_eq!(registry.add(entry("c", "a")), Err(RegistryError::Ambiguous(name("a"))));
        assert_eq!(registry.add(entry("c", "c")), Err(RegistryError::Ambiguous(name("c"))));
        let (_, version, _) = registry.look();
        assert!(registry.set_state(&name("b"), State::Draining) && !registry.set_state(&name("z"), State::Ready));
        assert_eq!(registry.get(&name("b")).map(|entry| entry.state), Some(State::Draining));
        assert_eq!(registry.remove(&name("a")).map(|entry| entry.name), Some(name("a")));
        assert_eq!(registry.remove(&name("a")), None);
        assert_eq!(registry.look().1, version + 2);
        for n in 1..MODELS_MAX {
            registry.add(entry(&format!("m{n}"), "x")).expect("there is room");
        }
        assert_eq!(registry.add(entry("last", "x")), Err(RegistryError::TooMany));
    }

    #[test]
    fn outcomes_are_counted() {
        let registry = registry(vec![entry("a", "fast")]);
        let gauges = Arc::clone(&registry.look().0[0].gauges);
        let begun = |us, prompt_tokens| Outcome::Begun { first_token_us: us, prompt_tokens };
        for outcome in [Outcome::Asked, Outcome::Asked, Outcome::Asked, Outcome::Failed, begun(700, 10), begun(5, 0)] {
            gauges.note(outcome);
        }
        let read = gauges.read();
        assert_eq!((read.asked, read.begun, read.failed, read.failed_in_row, read.running()), (3, 2, 1, 0, 2));
        assert_eq!((read.timed, read.first_token_us_sum, read.product_sum), (1, 700, 7_000));
        gauges.note(Outcome::Busy);
        gauges.note(Outcome::Failed);
        gauges.note(Outcome::FellBack);
        let read = gauges.read();
        assert_eq!((read.failed_in_row, read.running(), read.busy, read.fell_back), (1, 0, 1, 1));
    }
}
