//! Which model answers: the routes this core was given, and whose turn it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::routing::{Choice, Health, Meaning, Need, Reason, Routes};
use thalweg_protocol::ids::Name;
use thalweg_protocol::reject::Reject;

use crate::shard::Shard;

/// How often a model was chosen, in the order of [`Reason::ALL`].
pub type Routed = [u64; Reason::ALL.len()];

/// The routes of a core. What it remembers of models is of those in its routes, and so bounded.
#[derive(Default)]
pub(crate) struct Router {
    routes: Arc<Routes>,
    /// Requests so far for any model of a class, or for any at all, so that equals take turns.
    turns: BTreeMap<Option<Name>, u64>,
    /// The tries that requests of this core have taken, of models that are not known to be well.
    tried: BTreeMap<Name, u32>,
    routed: BTreeMap<Name, Routed>,
}

impl Router {
    pub(crate) fn new(routes: Arc<Routes>) -> Self {
        Self { routes, ..Self::default() }
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Routes from now on.
    pub(crate) fn set(&mut self, mut routes: Arc<Routes>) {
        let Self { turns, tried, routed, .. } = self;
        let health = |name: &Name| routes.get(name.as_str()).map(|card| card.health);
        tried.retain(|name, tried| health(name) == Some(Health::Trying { attempt: *tried }));
        routed.retain(|name, _| health(name).is_some());
        turns
            .retain(|class, _| routes.cards.iter().any(|card| class.as_ref().is_none_or(|class| card.class == *class)));
        // A try that is under way is not to be had again because something else changed.
        if !tried.is_empty() {
            let routes = Arc::make_mut(&mut routes);
            for name in tried.keys() {
                routes.take_try(name);
            }
        }
        self.routes = routes;
    }

    /// The model that answers a request; counts it as asked.
    fn choose(&mut self, named: Option<&str>, need: &Need, may: impl Fn(&Name) -> bool) -> Result<Name, Reject> {
        let class = match self.routes.meaning(named, need)? {
            Meaning::Model(_) => None,
            Meaning::Class(class, _) => Some(class.cloned()),
        };
        let turn = class.as_ref().and_then(|class| self.turns.get(class)).copied().unwrap_or_default();
        let Choice { card, reason } = self.routes.choose(named, need, turn, may)?;
        let (name, tries) = (card.name.clone(), matches!(card.health, Health::Trying { .. }));
        if let Some(class) = class {
            self.turns.insert(class, turn.wrapping_add(1));
        }
        if tries && let Some(attempt) = Arc::make_mut(&mut self.routes).take_try(&name) {
            self.tried.insert(name.clone(), attempt);
        }
        self.routed.entry(name.clone()).or_default()[reason as usize] += 1;
        Ok(name)
    }
}

impl Shard {
    /// The routes this core chooses by: which models there are, the default first, and how they are.
    pub fn routes(&self) -> &Routes {
        self.router.routes()
    }

    /// How often each model was chosen here, and why.
    pub fn routed(&self) -> &BTreeMap<Name, Routed> {
        &self.router.routed
    }

    /// The model that answers a request of somebody.
    pub(crate) fn route(&mut self, principal: &Principal, named: Option<&Name>, need: &Need) -> Result<Name, Reject> {
        let named = named.map(Name::as_str);
        // Who names a model hears which permission is missing.
        if let Meaning::Model(card) = self.router.routes.meaning(named, need)? {
            principal.require(Access::Ask, card.name.as_str())?;
        }
        self.router.choose(named, need, |name| principal.may(Access::Ask, name.as_str()))
    }

    /// Who may be asked for somebody in place of a model that fails.
    pub(crate) fn fallbacks(&self, principal: &Principal, model: &Name) -> Vec<Name> {
        self.router.routes.fallbacks(model, |name| principal.may(Access::Ask, name.as_str()))
    }

    /// Whether somebody may ask any of the models.
    pub(crate) fn may_ask_any(&self, principal: &Principal) -> bool {
        self.router.routes.cards.iter().any(|card| principal.may(Access::Ask, card.name.as_str()))
    }
}
