//! A core's end of the rings to the inference thread.

use std::sync::Arc;

use thalweg_protocol::ids::Name;
use thalweg_ring::{Consumer, Producer};

use super::thread::{Shared, Told};
use super::{Command, Event};

/// What one core holds of the stage. Dropping it cancels its generations.
pub struct CoreLink {
    commands: Producer<Command>,
    events: Consumer<Told>,
    shared: Arc<Shared>,
    /// The model that embeds texts of requests that name none.
    embeds: Option<Name>,
}

impl CoreLink {
    pub(super) fn new(
        commands: Producer<Command>,
        events: Consumer<Told>,
        shared: Arc<Shared>,
        embeds: Option<Name>,
    ) -> Self {
        Self { commands, events, shared, embeds }
    }

    /// Sends a command. Gives it back if the ring is full.
    pub fn send(&mut self, command: Command) -> Result<(), Command> {
        self.commands.push(command)?;
        self.shared.bell.ring();
        Ok(())
    }

    /// The next event.
    pub fn receive(&mut self) -> Option<Event> {
        loop {
            match self.events.pop()? {
                Told::Event(event) => return Some(event),
                Told::Embeds(name) => self.embeds = name,
            }
        }
    }

    /// The model that embeds texts of requests that name none, if any makes embeddings; as far as events were received.
    pub fn embedding_model(&self) -> Option<&Name> {
        self.embeds.as_ref()
    }

    /// Whether nothing waits to be received.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}
