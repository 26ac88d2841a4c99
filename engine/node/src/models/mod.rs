//! The models there are, wherever they run: what is known of each, and what cores are told of it.
//!
//! [`registry`] holds what was configured and loaded, and what became of requests, counted by cores without locks. [`watch`]
//! is a thread that makes of it what the router needs: who is well, and how long who takes.

pub(crate) mod desk;
pub(crate) mod registry;
pub(crate) mod watch;

use thalweg_domain::routing::Health;
use thalweg_protocol::ids::Name;
use thalweg_web::{ModelCard, ModelKind};
use thalweg_worker::stage::{self, ModelInfo};

use crate::config::{CLASS, ModelSettings};

pub(crate) use desk::{ModelDesk, ModelJob, Remotes};
pub(crate) use registry::{Entry, Gauges, Kind, Known, Outcome, Place, Registry, ServedModels, State};
pub(crate) use watch::{News, Watch};

/// The class of models of which nobody says one.
pub(crate) fn default_class() -> Name {
    Name::new(CLASS).expect("a literal name is valid")
}

/// What is known of a model that was loaded here, with what the settings say of it.
pub(crate) fn local(info: &ModelInfo, settings: Option<&ModelSettings>) -> Entry {
    Entry {
        name: info.name.clone(),
        class: settings.and_then(|settings| settings.class.clone()).unwrap_or_else(default_class),
        cost: settings.map_or(0, |settings| settings.cost),
        fallback: settings.and_then(|settings| settings.fallback.clone()),
        context_tokens: info.context_tokens,
        kind: match info.kind {
            stage::ModelKind::Chat => Kind::Chat,
            stage::ModelKind::Embedding => Kind::Embedding,
        },
        place: Place::Local,
        state: State::Ready,
    }
}

/// What is known of a model that runs elsewhere; nothing if these settings are of one that does not.
pub(crate) fn remote(settings: &ModelSettings) -> Option<Entry> {
    let remote = settings.remote.as_ref()?;
    Some(Entry {
        name: settings.name.clone(),
        class: settings.class.clone().unwrap_or_else(default_class),
        cost: settings.cost,
        fallback: settings.fallback.clone(),
        context_tokens: remote.context_tokens,
        kind: Kind::Chat,
        place: Place::Remote,
        state: State::Ready,
    })
}

/// All models of a node that starts: those that were loaded, the default first, then those that run elsewhere.
pub(crate) fn entries(loaded: &[ModelInfo], settings: &[ModelSettings]) -> Vec<Entry> {
    let of = |name: &Name| settings.iter().find(|settings| settings.name == *name);
    for settings in settings.iter().filter(|settings| settings.remote.is_none()) {
        if !loaded.iter().any(|info| info.name == settings.name) {
            tracing::warn!(model = %settings.name, "there are settings of a model that is not loaded");
        }
    }
    let here = loaded.iter().map(|info| local(info, of(&info.name)));
    here.chain(settings.iter().filter_map(remote)).collect()
}

impl Registry {
    /// Takes in what the settings say now of models that are known, and of requests that name none. Of a model of which they
    /// say nothing any more, nothing is known but what it is; what an administrator said of one when it was loaded stays.
    pub(crate) fn describe(&self, settings: &[ModelSettings], default: Option<Name>) {
        let known = self.entries();
        let before = self.described(settings.iter().map(|settings| settings.name.clone()).collect());
        for Entry { name, class, cost, fallback, .. } in &known {
            let of = settings.iter().find(|settings| settings.name == *name);
            if of.is_none() && !before.contains(name) {
                continue;
            }
            let wanted = of.and_then(|settings| settings.class.clone()).unwrap_or_else(default_class);
            if known.iter().any(|other| other.name == wanted) {
                tracing::warn!(model = %name, class = %wanted, "the class is the name of a model; it stays as it was");
                continue;
            }
            let (costs, falls) = of.map_or((0, None), |settings| (settings.cost, settings.fallback.clone()));
            if (class, cost, fallback) != (&wanted, &costs, &falls) {
                self.change(name, |entry| (entry.class, entry.cost, entry.fallback) = (wanted, costs, falls));
            }
        }
        self.set_default(default);
    }

    /// What those are shown who ask over HTTP which models there are.
    pub(crate) fn cards(&self) -> Vec<ModelCard> {
        let card = |Known { entry, since_s, .. }: Known| {
            let health = self.shown(&entry.name).map(|shown| shown.health);
            ModelCard {
                name: entry.name.to_string(),
                kind: match entry.kind {
                    Kind::Chat => ModelKind::Chat,
                    Kind::Embedding => ModelKind::Embedding,
                },
                class: entry.class.to_string(),
                cost: entry.cost,
                state: match (&entry.state, health) {
                    (State::Ready, Some(Health::Down { .. })) => "down",
                    (State::Ready, Some(Health::Trying { .. })) => "trying",
                    (state, _) => state.as_str(),
                },
                context_tokens: entry.context_tokens,
                loaded_s: since_s,
            }
        };
        self.look().0.into_iter().map(card).collect()
    }
}

#[cfg(test)]
mod tests {
    use thalweg_ring::Bell;

    use super::registry::tests::{entry, name};
    use super::*;

    #[test]
    fn what_the_settings_say_is_taken_in_and_taken_back() {
        let registry = Registry::new(vec![entry("a", CLASS), entry("b", "own")], Bell::new().expect("an eventfd"));
        let shown = || {
            let one = |entry: &Entry| format!("{} {} {}", entry.name, entry.class, entry.cost);
            registry.entries().iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let settings = |model: &str, class: &str, cost| {
            let (name, class) = (name(model), Some(name(class)));
            ModelSettings { name, class, cost, fallback: None, remote: None }
        };
        registry.describe(&[settings("a", "fast", 7), settings("gone", "x", 1)], Some(name("auto")));
        assert_eq!((shown().as_str(), registry.look().2), ("a fast 7, b own 0", Some(name("auto"))));
        registry.describe(&[settings("a", "b", 8)], None);
        assert_eq!((shown().as_str(), registry.look().2), ("a fast 7, b own 0", None), "b is a model");
        let (_, version, _) = registry.look();
        registry.describe(&[settings("a", "fast", 7)], None);
        assert_eq!(registry.look().1, version, "nothing changed");
        registry.describe(&[], None);
        assert_eq!(shown(), "a standard 0, b own 0");
        let cards = registry.cards();
        assert_eq!((cards[0].class.as_str(), cards[0].state, cards[0].kind), (CLASS, "ready", ModelKind::Chat));
    }
}
