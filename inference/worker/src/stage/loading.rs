//! Models that come and go while the stage runs.
//!
//! Whoever asks does the work: reading and packing weights, making and letting go of KV memory. The leader only takes a model
//! over between two steps, or hands one back, so that nobody's next token waits for a file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use thalweg_protocol::ids::Name;

use super::runtime::Runtime;
use super::thread::Shared;
use super::{Loaded, LoadedEncoder, LoadedModel, ModelInfo, ModelSource, StageError, blocks_of};
use crate::team::Team;
use crate::tensor::Place;

/// Loads and unloads models of a stage that runs, from any thread but a core's or the leader's: it waits.
#[derive(Clone)]
pub struct Loader {
    shared: Arc<Shared>,
    team: Arc<Team>,
    /// Where chat models are computed.
    place: Place,
    /// Bytes of KV memory each model gets.
    kv_bytes: u64,
}

/// What an unloaded model leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unloaded {
    /// Generations, or requests for embeddings, that had to be ended for it.
    pub ended: u64,
    /// Blocks of KV memory that were still held: always 0.
    pub blocks_used: u64,
}

/// What the leader is to do between two steps.
pub(super) enum Change {
    /// Serve this one too.
    Add(Box<Runtime>),
    /// Likewise.
    AddEncoder(Box<LoadedEncoder>),
    /// Serve this one no more: new requests are refused, what runs may go on for a while.
    Remove(Name, Leave),
}

/// How a model goes.
pub(super) struct Leave {
    /// Until then what runs may go on.
    pub(super) until: Instant,
    /// What was ended for it.
    pub(super) ended: u64,
    /// Who waits for it.
    pub(super) tell: SyncSender<Gone>,
}

/// A model that nobody uses any more, to be dropped by who asked for that.
pub(super) struct Gone {
    pub(super) unloaded: Unloaded,
    /// Its memory.
    pub(super) _rest: Rest,
}

/// What a model was, on its way to be dropped.
pub(super) enum Rest {
    Runtime { _it: Box<Runtime> },
    Encoder { _it: Box<LoadedEncoder> },
    Nothing,
}

impl Loader {
    pub(super) fn new(shared: Arc<Shared>, team: Arc<Team>, kv_bytes: u64) -> Self {
        Self { shared, team, place: Place::Cpu, kv_bytes }
    }

    /// The same, with chat models computed elsewhere.
    pub(super) fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Reads a model's file here, on the calling thread, and has it served under its name from the leader's next turn on.
    ///
    /// # Errors
    /// If there is one of that name, the file is no model this build can run, there is no memory, or the stage has ended.
    /// Nothing changes then.
    pub fn load(&self, source: &ModelSource) -> Result<ModelInfo, StageError> {
        self.reserve(&source.name)?;
        let mut loaded = Loaded::default();
        let read = loaded.add(source, &self.place);
        let read = read.map_err(|error| StageError::Load { name: source.name.clone(), source: error });
        let added = read.and_then(|()| match (loaded.models.pop(), loaded.encoders.pop()) {
            (Some(model), _) => self.serve(model),
            (None, Some(encoder)) => self.serve_encoder(encoder),
            (None, None) => Err(StageError::Config(format!("nothing came of reading {}", source.name))),
        });
        self.or_release(&source.name, added)
    }

    /// The same with a model that is in memory already.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub fn load_from(&self, model: LoadedModel) -> Result<ModelInfo, StageError> {
        let name = model.info.name.clone();
        self.reserve(&name)?;
        let added = self.serve(model);
        self.or_release(&name, added)
    }

    /// The same with a sentence encoder.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
    pub fn load_encoder(&self, encoder: LoadedEncoder) -> Result<ModelInfo, StageError> {
        let name = encoder.info.name.clone();
        self.reserve(&name)?;
        let added = self.serve_encoder(encoder);
        self.or_release(&name, added)
    }

    /// Serves a model no more. New requests are refused at once; what runs may go on for `grace` and is ended then. Waits for
    /// that, and lets go of the memory.
    ///
    /// # Errors
    /// If there is no such model, it is on its way out already, or the stage has ended.
    pub fn unload(&self, name: &Name, grace: Duration) -> Result<Unloaded, StageError> {
        if !self.shared.names().iter().any(|(other, stays)| other == name && *stays) {
            return Err(StageError::Unknown(name.clone()));
        }
        self.shared.names().iter_mut().filter(|(other, _)| other == name).for_each(|(_, stays)| *stays = false);
        let (tell, told) = sync_channel(1);
        let leave = Leave { until: Instant::now() + grace, ended: 0, tell };
        self.post(Change::Remove(name.clone(), leave))?;
        let gone = told.recv().map_err(|_| StageError::Ended)?;
        self.release(name);
        let unloaded = gone.unloaded;
        // Here, not on the leader, since this gives memory back to the system.
        drop(gone);
        tracing::info!(model = %name, ended = unloaded.ended, "model unloaded");
        Ok(unloaded)
    }

    fn serve(&self, mut model: LoadedModel) -> Result<ModelInfo, StageError> {
        let blocks = blocks_of(&mut model.info, self.kv_bytes, model.model.blocks_free())?;
        let (info, share) = (model.info.clone(), self.shared.names().len());
        let runtime = Runtime::new(model, blocks, Arc::clone(&self.team), share);
        self.post(Change::Add(Box::new(runtime)))?;
        Ok(info)
    }

    fn serve_encoder(&self, encoder: LoadedEncoder) -> Result<ModelInfo, StageError> {
        let info = encoder.info.clone();
        self.post(Change::AddEncoder(Box::new(encoder)))?;
        Ok(info)
    }

    /// Nobody else may take this name.
    fn reserve(&self, name: &Name) -> Result<(), StageError> {
        let mut names = self.shared.names();
        if names.iter().any(|(other, _)| other == name) {
            return Err(StageError::Exists(name.clone()));
        }
        names.push((name.clone(), true));
        Ok(())
    }

    fn release(&self, name: &Name) {
        self.shared.names().retain(|(other, _)| other != name);
    }

    fn or_release<T>(&self, name: &Name, result: Result<T, StageError>) -> Result<T, StageError> {
        if result.is_err() {
            self.release(name);
        }
        result
    }

    fn post(&self, change: Change) -> Result<(), StageError> {
        {
            let mut changes = self.shared.changes();
            if self.shared.stop.load(Ordering::Acquire) {
                return Err(StageError::Ended);
            }
            changes.push(change);
        }
        self.shared.has_changes.store(true, Ordering::Release);
        self.shared.bell.ring();
        Ok(())
    }
}
