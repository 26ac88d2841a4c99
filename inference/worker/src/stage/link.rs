//! A core's end of the rings to the inference thread.

use std::sync::Arc;

use thalweg_protocol::ids::Name;
use thalweg_ring::{Consumer, Producer};

use super::thread::Shared;
use super::{Command, Event};

/// What one core holds of the stage. Dropping it cancels its generations.
pub struct CoreLink {
    commands: Producer<Command>,
    events: Consumer<Event>,
    shared: Arc<Shared>,
}

impl CoreLink {
    pub(super) fn new(commands: Producer<Command>, events: Consumer<Event>, shared: Arc<Shared>) -> Self {
        Self { commands, events, shared }
    }

    /// Sends a command. Gives it back if the ring is full.
    pub fn send(&mut self, command: Command) -> Result<(), Command> {
        self.commands.push(command)?;
        self.shared.bell.ring();
        Ok(())
    }

    /// The next event.
    pub fn receive(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// The model that embeds texts of requests that name none, if any makes embeddings.
    pub fn embedding_model(&self) -> Option<&Name> {
        self.shared.embeds.as_ref()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}
