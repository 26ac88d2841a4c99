//! Loading and unloading models while the node runs, and taking in what the settings say of those that run elsewhere.
//!
//! Everything here may take long: it is called by threads that work for the gate, and by whoever reloads the settings.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use thalweg_protocol::ids::Name;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_remote::{Endpoint, Key, RemoteError, RemoteHandle, RemoteModel};
use thalweg_worker::stage::{self, Loader, ModelSource, StageError};

use super::registry::{Entry, Kind, Known, Place, Registry, State};
use crate::config::ModelSettings;

/// What an administrator wants done about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelJob {
    /// Read a file of this machine and serve it.
    Load { name: Name, path: PathBuf, class: Option<Name>, cost: u32, fallback: Option<Name> },
    /// Serve it no more.
    Unload {
        name: Name,
        /// How long what runs may go on.
        grace: Duration,
    },
}

/// Changes which models there are.
pub(crate) struct ModelDesk {
    /// Of the models that are computed here; none if the node started without any.
    loader: Option<Loader>,
    remote: RemoteHandle,
    registry: Arc<Registry>,
}

/// Remotes as settings have them, with their keys: all that can fail has been done.
pub(crate) struct Remotes {
    models: Vec<RemoteModel>,
    entries: Vec<Entry>,
}

impl Remotes {
    /// Reads what settings say of models that run elsewhere, and the files of their keys.
    ///
    /// # Errors
    /// What is wrong, with the model's name.
    pub(crate) fn read(settings: &[ModelSettings]) -> Result<Self, (Name, RemoteError)> {
        let (mut models, mut entries) = (Vec::new(), Vec::new());
        for settings in settings {
            let (Some(remote), Some(entry)) = (&settings.remote, super::remote(settings)) else { continue };
            let failed = |error| (settings.name.clone(), error);
            let key = remote.key_file.as_deref().map(Key::read).transpose().map_err(failed)?;
            models.push(RemoteModel {
                name: settings.name.clone(),
                endpoint: Endpoint::parse(&remote.url).map_err(failed)?,
                remote_name: remote.remote_name.clone(),
                key,
                timeout: remote.timeout,
            });
            entries.push(entry);
        }
        Ok(Self { models, entries })
    }

    /// The models, to begin with.
    pub(crate) fn into_models(self) -> Vec<RemoteModel> {
        self.models
    }
}

impl ModelDesk {
    pub(crate) fn new(loader: Option<Loader>, remote: RemoteHandle, registry: Arc<Registry>) -> Self {
        Self { loader, remote, registry }
    }

    /// Does what is wanted; a panic of whatever reads a file is a refusal.
    pub(crate) fn work(&self, job: &ModelJob) -> Result<Value, Reject> {
        let done = catch_unwind(AssertUnwindSafe(|| match job {
            ModelJob::Load { name, path, class, cost, fallback } => {
                let class = class.clone().unwrap_or_else(super::default_class);
                self.load(name, path, (class, *cost, fallback.clone()))
            }
            ModelJob::Unload { name, grace } => self.unload(name, *grace),
        }));
        done.unwrap_or_else(|_| {
            Err(Reject::new(RejectCode::Internal, "the node failed at this model; its log says more"))
        })
    }

    fn load(
        &self,
        name: &Name,
        path: &std::path::Path,
        (class, cost, fallback): (Name, u32, Option<Name>),
    ) -> Result<Value, Reject> {
        let Some(loader) = &self.loader else {
            let text = "this node has no inference threads; start it with a model, or with --inference-threads";
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        };
        let (kind, place, state) = (Kind::Chat, Place::Local, State::Loading);
        let entry = Entry { name: name.clone(), class, cost, fallback, context_tokens: 0, kind, place, state };
        // Nobody is sent there before it is ready, but its name is taken.
        self.registry.add(entry).map_err(|error| Reject::new(RejectCode::ParameterInvalid, error.to_string()))?;
        let undo = Undo { registry: &self.registry, name: Some(name) };
        let info =
            loader.load(&ModelSource { name: name.clone(), path: path.to_owned() }).map_err(|e| reject_of(&e))?;
        self.registry.change(name, |entry| {
            entry.context_tokens = info.context_tokens;
            entry.kind = match info.kind {
                stage::ModelKind::Chat => Kind::Chat,
                stage::ModelKind::Embedding => Kind::Embedding,
            };
            entry.state = State::Ready;
        });
        undo.keep();
        Ok(json!({ "model": name.as_str(), "context_tokens": info.context_tokens, "load_ms": info.load_ms }))
    }

    fn unload(&self, name: &Name, grace: Duration) -> Result<Value, Reject> {
        let unknown = || {
            let known: Vec<String> = self.registry.entries().iter().map(|entry| entry.name.to_string()).collect();
            let text = format!("there is no model {name}; there are: [{}]", known.join(", "));
            Reject::new(RejectCode::ModelUnknown, text)
        };
        let entry = self.registry.get(name).ok_or_else(unknown)?;
        if entry.state != State::Ready {
            let text = format!("{name} is {} now; wait for that", entry.state.as_str());
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        }
        self.registry.set_state(name, State::Draining);
        let ended = match (entry.place, &self.loader) {
            (Place::Local, Some(loader)) => {
                loader.unload(name, grace).map(|unloaded| unloaded.ended).map_err(|e| reject_of(&e))
            }
            (Place::Local, None) => Err(unknown()),
            (Place::Remote, _) => self.remote.remove(name, grace).map_err(|error| remote_reject(&error)),
        };
        match ended {
            Ok(ended) => {
                self.registry.remove(name);
                Ok(json!({ "model": name.as_str(), "ended": ended }))
            }
            Err(reject) => {
                self.registry.set_state(name, State::Ready);
                Err(reject)
            }
        }
    }

    /// All there are, with what became of what they were asked.
    pub(crate) fn list(&self) -> Value {
        let one = |Known { entry, gauges, since_s }: &Known| {
            let (read, shown) = (gauges.read(), self.registry.shown(&entry.name));
            json!({
                "model": entry.name.as_str(),
                "kind": match entry.kind { Kind::Chat => "chat", Kind::Embedding => "embedding" },
                "place": match entry.place { Place::Local => "local", Place::Remote => "remote" },
                "class": entry.class.as_str(), "cost": entry.cost, "context_tokens": entry.context_tokens,
                "fallback": entry.fallback.as_ref().map(Name::as_str), "state": entry.state.as_str(),
                "opens": shown.map_or(0, |shown| shown.opens), "since_s": since_s,
                "first_token_ms": shown.map(|shown| shown.first_token_ms), "asked": read.asked,
                "running": read.running(), "failed": read.failed, "busy": read.busy, "fell_back": read.fell_back,
            })
        };
        let (known, _, default) = self.registry.look();
        json!({ "models": known.iter().map(one).collect::<Vec<_>>(), "default": default.as_ref().map(Name::as_str) })
    }

    /// Serves these elsewhere from now on, and no others; what runs at those that went may go on for a while. Names that
    /// models of this node have are left out, with a warning.
    pub(crate) fn configure(&self, remotes: Remotes) -> Result<(), RemoteError> {
        let Remotes { models, entries } = remotes;
        let known = self.registry.entries();
        let is_local = |name: &Name| known.iter().any(|entry| entry.name == *name && entry.place == Place::Local);
        let models: Vec<_> = models.into_iter().filter(|model| !is_local(&model.name)).collect();
        self.remote.configure(models)?;
        for entry in known.iter().filter(|entry| entry.place == Place::Remote) {
            if !entries.iter().any(|other| other.name == entry.name) {
                self.registry.remove(&entry.name);
            }
        }
        for entry in entries {
            let name = entry.name.clone();
            let context_tokens = entry.context_tokens;
            match known.iter().find(|other| other.name == name) {
                Some(Entry { place: Place::Local, .. }) => {
                    tracing::warn!(model = %name, "a model of this name runs here; the one elsewhere is left out");
                }
                // Class, cost and fallback are taken in with those of all models.
                Some(_) => drop(self.registry.change(&name, |entry| entry.context_tokens = context_tokens)),
                None => {
                    if let Err(error) = self.registry.add(entry) {
                        tracing::warn!(model = %name, %error, "a model is left out");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Forgets a model that does not come after all.
struct Undo<'a> {
    registry: &'a Registry,
    name: Option<&'a Name>,
}

impl Undo<'_> {
    fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            self.registry.remove(name);
        }
    }
}

fn reject_of(error: &StageError) -> Reject {
    let code = match error {
        StageError::Unknown(_) => RejectCode::ModelUnknown,
        StageError::Ended => RejectCode::Draining,
        StageError::System { .. } => RejectCode::Internal,
        _ => RejectCode::ParameterInvalid,
    };
    Reject::new(code, error.to_string())
}

fn remote_reject(error: &RemoteError) -> Reject {
    let code = match error {
        RemoteError::Unknown(_) => RejectCode::ModelUnknown,
        RemoteError::Ended => RejectCode::Draining,
        _ => RejectCode::Internal,
    };
    Reject::new(code, error.to_string())
}
