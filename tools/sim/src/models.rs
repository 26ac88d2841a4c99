//! Models that fail, recover, go and come while they are asked. What decides it has randomness of its own, so that the rest
//! of a run is as it would be without.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use thalweg_domain::routing::{ACCURATE, AUTO, FAST, Health, ModelCard, Routes};
use thalweg_protocol::ids::{CoreId, Name};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::{Input, Submit};

use crate::faults::Fault;
use crate::world::{Event, World};

/// All models of a run, the default first. All say the same: what the script says.
const MODELS: [(&str, &str, Option<&str>); 3] =
    [("script", FAST, None), ("twin", FAST, None), ("sage", ACCURATE, Some("twin"))];
/// Nobody is called so.
const NOBODY: &str = "nobody";
/// Between two changes, at most, in microseconds.
const CHANGE_US: u64 = 300_000;
/// How long news may be on their way to a core, at most, in microseconds.
const NEWS_US: u64 = 2_000;
/// How long a request may be under way from the core that chose its model, in microseconds.
const UNDERWAY_US: u64 = 1_000_000;

/// The models of a run.
pub(crate) struct Models {
    rng: StdRng,
    /// Whether anything happens to them.
    restless: bool,
    /// Those that are there.
    cards: Vec<ModelCard>,
    /// When each could be asked last, by what cores were told.
    asked_until: BTreeMap<Name, u64>,
    tries: u32,
    /// When news arrive at each core, the newest last.
    arrivals: BTreeMap<CoreId, u64>,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn card(at: usize) -> ModelCard {
    let (model, class, fallback) = MODELS[at];
    ModelCard {
        name: name(model),
        class: name(class),
        cost: 0,
        context_tokens: 256,
        health: Health::Up,
        first_token_ms: 0,
        prompt_us: 0,
        fallback: fallback.map(name),
        resumes: true,
    }
}

impl Models {
    pub(crate) fn new(seed: u64, planted: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6d6f_6465_6c73);
        let restless = rng.random_bool(0.6) && !planted;
        let cards = (0..MODELS.len()).map(card).collect();
        Self { rng, restless, cards, asked_until: BTreeMap::new(), tries: 0, arrivals: BTreeMap::new() }
    }

    /// What cores are told.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::new(Routes { cards: self.cards.clone(), default: None })
    }

    /// What a request names.
    pub(crate) fn word(&mut self) -> Option<Name> {
        let words = ["script", "twin", "sage", FAST, ACCURATE, AUTO, NOBODY];
        let named = self.restless && self.rng.random_bool(0.7);
        named.then(|| name(words[self.rng.random_range(0..words.len())]))
    }

    fn can_be_asked(&self, name: &Name) -> bool {
        self.cards.iter().any(|card| card.name == *name && !matches!(card.health, Health::Down { .. }))
    }

    /// Something happens to one of them.
    fn change(&mut self, now_us: u64) {
        for card in self.cards.iter().filter(|card| !matches!(card.health, Health::Down { .. })) {
            self.asked_until.insert(card.name.clone(), now_us);
        }
        let at = self.rng.random_range(0..MODELS.len());
        let there = self.cards.iter().position(|card| card.name.as_str() == MODELS[at].0);
        match (there, self.rng.random_range(0..8)) {
            // One is always there, or nobody would be the default.
            (Some(there), 0) if self.cards.len() > 1 => drop(self.cards.remove(there)),
            (Some(there), 1..=4) => self.cards[there].health = Health::Down { retry_ms: 50 },
            (Some(there), 5) => {
                self.tries += 1;
                self.cards[there].health = Health::Trying { attempt: self.tries };
            }
            (Some(there), _) => self.cards[there].health = Health::Up,
            (None, _) => self.cards.push(card(at)),
        }
    }

    /// All are well again.
    fn calm(&mut self) {
        self.cards = (0..MODELS.len()).map(card).collect();
    }
}

impl World {
    /// The models of a node that starts are all there: one that is not would end what it was asked.
    pub(crate) fn start_models(&mut self) {
        self.models.arrivals.clear();
        self.models.calm();
        if self.models.restless && !self.settling {
            self.at(self.now_us + CHANGE_US, Event::Routes { core: None });
        }
    }

    /// Something happens to a model, or a core is told.
    pub(crate) fn routes(&mut self, core: Option<CoreId>) {
        if let Some(core) = core {
            let (routes, at) = (self.models.routes(), self.now_us + 1);
            self.node.cores[usize::from(core.0)].inbox.push_back(Input::Routes(routes));
            return self.turn_by(core, at);
        }
        if self.settling {
            self.models.calm();
        } else {
            self.faults.count(Fault::RoutesChanged);
            self.models.change(self.now_us);
            let next = self.now_us + 1 + self.models.rng.random_range(0..CHANGE_US);
            self.at(next, Event::Routes { core: None });
        }
        let routes = self.models.routes();
        self.note(format_args!("models: {:?}", routes.cards.iter().map(|c| (&c.name, c.health)).collect::<Vec<_>>()));
        for core in (0..self.node.cores.len()).map(|core| CoreId(core as u16)) {
            let at = self.now_us + 1 + self.models.rng.random_range(0..NEWS_US);
            let last = self.models.arrivals.entry(core).or_default();
            *last = at.max(*last);
            let at = *last;
            self.at(at, Event::Routes { core: Some(core) });
        }
    }

    /// A shard hands a request to the stage: its model could be asked when it was chosen.
    pub(crate) fn check_route(&mut self, submit: &Submit) {
        let (generation, model) = (submit.generation, &submit.model);
        // One of an earlier life goes on with the model that it had; which life it is of stands in the middle of its id.
        if generation.0 >> 32 & 0xffff != self.epoch & 0xffff || self.models.can_be_asked(model) {
            return;
        }
        let until = self.models.asked_until.get(model).copied().unwrap_or_default();
        if self.now_us > until + UNDERWAY_US {
            self.violation(format!("{generation} was given to {model}, which was not to be asked since {until}"));
        }
    }

    /// A question was refused for the models there are.
    pub(crate) fn check_unrouted(&mut self, client: usize, reject: &Reject) {
        if reject.code == RejectCode::ModelUnknown {
            self.faults.count(Fault::ModelUnknown);
            if !self.models.restless {
                self.violation(format!("client {client} named no model, and was refused: {reject}"));
            }
        }
        if reject.code == RejectCode::Busy && reject.message.contains("not answer at present") {
            self.faults.count(Fault::ModelsDown);
            if !self.models.restless {
                self.violation(format!("client {client}: all models are well, and it was refused: {reject}"));
            }
        }
    }
}
