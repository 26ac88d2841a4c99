//! The thread that watches the models: what became of requests goes in, routes come out.
//!
//! It looks when a core noted something, when the registry changed, and when a breaker or an estimate wants to be looked at;
//! no more often than each [`TICK`]. A node that nobody asks anything sleeps.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thalweg_domain::breaker::Breaker;
use thalweg_domain::estimate::{Estimate, Observed};
use thalweg_domain::routing::{Health, ModelCard, Routes};
use thalweg_protocol::ids::Name;

use super::registry::{Gauges, Kind, Known, Place, Reading, Registry, Served, ServedModels, Shown, State};

/// Between two looks at the numbers: how late a breaker may open, and how often cores may be given routes.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks at estimates that are forgotten while nothing happens.
const FADE_MS: u64 = 10_000;
/// After so long a try counts as lost of which nothing was heard, such as one that was refused before it was handed over.
const TRY_LOST_MS: u64 = 60_000;
/// When somebody should come back who wanted a model that is being loaded, in milliseconds.
const LOADING_RETRY_MS: u32 = 2_000;

/// What cores are told of the models.
#[derive(Debug, Clone)]
pub(crate) struct News {
    pub(crate) routes: Arc<Routes>,
    pub(crate) served: ServedModels,
}

/// One model, as far as it was watched.
struct Watched {
    gauges: Arc<Gauges>,
    last: Reading,
    breaker: Breaker,
    estimate: Estimate,
    /// Since when one may try, which try that is, and how many had been asked by then.
    trying: Option<(u64, u32, u64)>,
}

impl Watched {
    fn new(gauges: Arc<Gauges>) -> Self {
        let last = gauges.read();
        Self { gauges, last, breaker: Breaker::default(), estimate: Estimate::default(), trying: None }
    }

    /// Takes in what became of requests since the last time. Gives when to look again.
    fn look(&mut self, now_ms: u64) -> Option<u64> {
        let (was, is) = (self.last, self.gauges.read());
        let since = |of: fn(&Reading) -> u64| of(&is).wrapping_sub(of(&was));
        let observed = Observed {
            count: since(|r| r.timed),
            time: since(|r| r.first_token_us_sum),
            prompt: since(|r| r.prompt_tokens_sum),
            prompt_squared: since(|r| r.prompt_squared_sum),
            product: since(|r| r.product_sum),
        };
        let (begun, failed) = (since(|r| r.begun), since(|r| r.failed));
        self.last = is;
        self.estimate.add(now_ms, observed);
        // In which order they came is known only of those at the end.
        let at_end = failed.min(u64::from(is.failed_in_row));
        let failures = |breaker: &mut Breaker, count: u64| (0..count).for_each(|_| breaker.failed(now_ms));
        failures(&mut self.breaker, failed - at_end);
        if begun > 0 {
            self.breaker.succeeded();
        }
        failures(&mut self.breaker, at_end);
        self.breaker.poll(now_ms);
        self.look_at_try(now_ms, &is);
        let fade = self.estimate.fades().then_some(now_ms + FADE_MS);
        let lost = self.trying.map(|(since_ms, ..)| since_ms + TRY_LOST_MS);
        [self.breaker.next_deadline(), fade, lost].into_iter().flatten().min()
    }

    /// Lets another request try if the last one told nothing.
    fn look_at_try(&mut self, now_ms: u64, is: &Reading) {
        if let (Some((since_ms, attempt, asked)), Health::Trying { attempt: now }) =
            (self.trying, self.breaker.health())
            && attempt == now
        {
            let ended = is.asked != asked && is.running() == 0;
            if !ended && now_ms < since_ms + TRY_LOST_MS {
                return;
            }
            self.breaker.untold();
        }
        self.trying = match self.breaker.health() {
            Health::Trying { attempt } => Some((now_ms, attempt, is.asked)),
            Health::Up | Health::Down { .. } => None,
        };
    }
}

/// What is known of all models. Pure: told the time and what the registry holds.
#[derive(Default)]
struct Watcher {
    models: BTreeMap<Name, Watched>,
    told: Option<(u64, Arc<Routes>)>,
}

impl Watcher {
    /// Looks at everything. Gives what cores are to be told, if that is news, and when to look again.
    fn look(&mut self, now_ms: u64, registry: &Registry) -> (Option<News>, Option<u64>) {
        let (known, version, default) = registry.look();
        self.models.retain(|name, _| known.iter().any(|known| known.entry.name == *name));
        let (mut cards, mut shown, mut next) = (Vec::new(), BTreeMap::new(), None);
        for Known { entry, gauges, .. } in &known {
            let watched = self.models.entry(entry.name.clone()).or_insert_with(|| Watched::new(Arc::clone(gauges)));
            // Another one has taken the name of one that is gone.
            if !Arc::ptr_eq(&watched.gauges, gauges) {
                *watched = Watched::new(Arc::clone(gauges));
            }
            next = [next, watched.look(now_ms)].into_iter().flatten().min();
            let health = match entry.state {
                State::Ready => watched.breaker.health(),
                _ => Health::Down { retry_ms: LOADING_RETRY_MS },
            };
            let (first_token_ms, prompt_us) = (watched.estimate.first_token_ms(), watched.estimate.prompt_us());
            let opens = watched.breaker.opens();
            shown.insert(entry.name.clone(), Shown { health, opens, first_token_ms, prompt_us });
            if entry.kind == Kind::Chat && matches!(entry.state, State::Ready | State::Loading) {
                cards.push(ModelCard {
                    name: entry.name.clone(),
                    class: entry.class.clone(),
                    cost: entry.cost,
                    context_tokens: entry.context_tokens,
                    health,
                    first_token_ms,
                    prompt_us,
                    fallback: entry.fallback.clone(),
                    resumes: entry.place == Place::Local,
                });
            }
        }
        registry.show(shown);
        let routes = Routes { cards, default };
        if self.told.as_ref().is_some_and(|(told, before)| *told == version && **before == routes) {
            return (None, next);
        }
        let routes = Arc::new(routes);
        self.told = Some((version, Arc::clone(&routes)));
        (Some(News { routes, served: served(&known) }), next)
    }
}

/// What cores must know of models they hand requests to.
fn served(known: &[Known]) -> ServedModels {
    let one = |Known { entry, gauges, .. }: &Known| {
        (entry.name.clone(), Served { kind: entry.kind, place: entry.place, gauges: Arc::clone(gauges) })
    };
    Arc::new(known.iter().map(one).collect())
}

/// The thread.
pub(crate) struct Watch {
    registry: Arc<Registry>,
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Looks once, tells, and then goes on in a thread. `tell` is false if not all cores took the news; then it is asked
    /// again. Times count from `origin`. Gives what was told first, too.
    pub(crate) fn start(
        registry: Arc<Registry>,
        origin: Instant,
        mut tell: impl FnMut(&News) -> bool + Send + 'static,
    ) -> io::Result<(Self, News)> {
        let mut watcher = Watcher::default();
        let (first, _) = watcher.look(ms_since(origin), &registry);
        let first = first.expect("nothing was told before");
        let mut untold = if tell(&first) { None } else { Some(first.clone()) };
        let done = Arc::new(AtomicBool::new(false));
        let (own, own_done) = (Arc::clone(&registry), Arc::clone(&done));
        let watch = move || {
            let bell = own.bell();
            while !own_done.load(Ordering::Acquire) {
                let began = Instant::now();
                bell.prepare();
                let (news, next_ms) = watcher.look(ms_since(origin), &own);
                untold = news.or(untold.take()).filter(|news| !tell(news));
                let next = next_ms.map(|at| (origin + Duration::from_millis(at)).saturating_duration_since(began));
                let next = if untold.is_some() { Some(TICK) } else { next };
                if !own_done.load(Ordering::Acquire) {
                    bell.wait(next);
                }
                bell.awake();
                if !own_done.load(Ordering::Acquire) {
                    std::thread::park_timeout(TICK.saturating_sub(began.elapsed()));
                }
            }
        };
        let thread = std::thread::Builder::new().name("thalweg-models".into()).spawn(watch)?;
        Ok((Self { registry, done, thread }, first))
    }

    /// Ends the thread.
    pub(crate) fn shut_down(self) {
        self.done.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.registry.bell().ring();
        if self.thread.join().is_err() {
            tracing::error!("the thread that watches the models panicked");
        }
    }
}

fn ms_since(origin: Instant) -> u64 {
    origin.elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use thalweg_domain::breaker::{FAILURES_TO_OPEN, OPEN_MS};
    use thalweg_ring::Bell;

    use super::super::registry::tests::{entry, name};
    use super::super::registry::{Outcome, Place};
    use super::*;

    fn registry() -> Arc<Registry> {
        let mut vectors = entry("vectors", "x");
        vectors.kind = Kind::Embedding;
        let mut far = entry("far", "accurate");
        far.place = Place::Remote;
        Registry::new(vec![entry("near", "fast"), vectors, far], Bell::new().expect("an eventfd"))
    }

    fn gauges(registry: &Registry, model: &str) -> Arc<Gauges> {
        let known = registry.look().0;
        Arc::clone(&known.iter().find(|known| known.entry.name == name(model)).expect("it is known").gauges)
    }

    fn health(news: Option<News>, model: &str) -> Option<Health> {
        news?.routes.get(model).map(|card| card.health)
    }

    #[test]
    fn failures_take_a_model_out_and_a_try_brings_it_back() {
        let registry = registry();
        let mut watcher = Watcher::default();
        let (news, next) = watcher.look(0, &registry);
        let news = news.expect("the first time");
        assert_eq!(news.routes.cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>(), ["near", "far"]);
        assert_eq!((news.served.len(), news.served[&name("far")].place, next), (3, Place::Remote, None));
        assert!(watcher.look(1, &registry).0.is_none(), "nothing changed");
        let far = gauges(&registry, "far");
        for _ in 0..FAILURES_TO_OPEN {
            far.note(Outcome::Asked);
            far.note(Outcome::Failed);
        }
        let (news, next) = watcher.look(100, &registry);
        assert_eq!(health(news, "far"), Some(Health::Down { retry_ms: OPEN_MS }));
        assert_eq!(next, Some(100 + u64::from(OPEN_MS)));
        assert_eq!(registry.shown(&name("far")).map(|shown| shown.opens), Some(1));
        let (news, next) = watcher.look(100 + u64::from(OPEN_MS), &registry);
        assert_eq!(health(news, "far"), Some(Health::Trying { attempt: 1 }));
        assert_eq!(next, Some(100 + u64::from(OPEN_MS) + TRY_LOST_MS));
        // One that is cancelled tells nothing, so another may try.
        far.note(Outcome::Asked);
        assert!(watcher.look(1_200, &registry).0.is_none(), "it is under way");
        far.note(Outcome::Ended);
        assert_eq!(health(watcher.look(1_300, &registry).0, "far"), Some(Health::Trying { attempt: 2 }));
        assert_eq!(health(watcher.look(1_300 + TRY_LOST_MS, &registry).0, "far"), Some(Health::Trying { attempt: 3 }));
        far.note(Outcome::Asked);
        far.note(Outcome::Begun { first_token_us: 80_000, prompt_tokens: 10 });
        let (news, _) = watcher.look(70_000, &registry);
        let card = news.expect("it is well").routes.get("far").cloned().expect("it is there");
        assert_eq!((card.health, card.first_token_ms), (Health::Up, 80));
    }

    #[test]
    fn models_come_and_go() {
        let registry = registry();
        let mut watcher = Watcher::default();
        watcher.look(0, &registry);
        registry.set_state(&name("near"), State::Draining);
        let (news, _) = watcher.look(1, &registry);
        let news = news.expect("it is asked no more");
        assert!(news.routes.get("near").is_none() && news.served.contains_key(&name("near")));
        registry.remove(&name("near"));
        let (news, _) = watcher.look(2, &registry);
        assert!(!news.expect("it is gone").served.contains_key(&name("near")));
        let mut again = entry("near", "fast");
        again.state = State::Loading;
        registry.add(again).expect("there is room");
        assert_eq!(health(watcher.look(3, &registry).0, "near"), Some(Health::Down { retry_ms: LOADING_RETRY_MS }));
        registry.set_state(&name("near"), State::Ready);
        assert_eq!(health(watcher.look(4, &registry).0, "near"), Some(Health::Up));
        registry.set_default(Some(name("auto")));
        assert_eq!(watcher.look(5, &registry).0.expect("news").routes.default, Some(name("auto")));
    }

    #[test]
    fn the_thread_tells_what_changed() {
        let registry = registry();
        let (tell, told) = mpsc::sync_channel(64);
        let mut refuses = true;
        let (watch, first) = Watch::start(Arc::clone(&registry), Instant::now(), move |news| {
            refuses = !refuses;
            refuses && tell.send(Arc::clone(&news.routes)).is_ok()
        })
        .expect("a thread");
        assert_eq!(first.routes.cards.len(), 2);
        let patience = Duration::from_secs(30);
        assert_eq!(told.recv_timeout(patience).expect("told again").cards.len(), 2);
        let far = gauges(&registry, "far");
        (0..FAILURES_TO_OPEN).for_each(|_| far.note(Outcome::Failed));
        let routes = told.recv_timeout(patience).expect("it failed");
        assert!(matches!(routes.get("far").map(|card| card.health), Some(Health::Down { .. })));
        watch.shut_down();
    }
}
