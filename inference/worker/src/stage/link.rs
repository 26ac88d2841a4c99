//! A core's end of the rings to all inference threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use thalweg_protocol::ids::GenerationId;
use thalweg_ring::{Consumer, Producer};

use super::thread::Shared;
use super::{Command, Event};

/// The rings to and from one thread.
pub(super) struct ThreadEnd {
    pub(super) commands: Producer<Command>,
    pub(super) events: Consumer<Event>,
    pub(super) shared: Arc<Shared>,
}

/// What one core holds of the stage. Dropping it cancels its generations.
pub struct CoreLink {
    threads: Vec<ThreadEnd>,
    /// Which thread has which generation. As long as the generations are, which the threads bound.
    routes: HashMap<GenerationId, usize>,
    /// The thread whose events are looked at first, so that none is preferred.
    turn: usize,
}

impl CoreLink {
    pub(super) fn new(threads: Vec<ThreadEnd>) -> Self {
        Self { threads, routes: HashMap::new(), turn: 0 }
    }

    /// Sends a command: a submit to the thread that has least to do, others to the thread that has the generation. Gives
    /// the command back if that thread's ring is full.
    pub fn send(&mut self, command: Command) -> Result<(), Command> {
        let (generation, is_submit) = match &command {
            Command::Submit(submit) => (submit.generation, true),
            Command::Credit { generation, .. } | Command::Cancel { generation } => (*generation, false),
        };
        let known = self.routes.get(&generation).copied();
        let thread = match (known, is_submit) {
            (Some(thread), _) => thread,
            (None, true) => self.least_loaded(),
            // It ended already, and so there is nothing to tell.
            (None, false) => return Ok(()),
        };
        let end = &mut self.threads[thread];
        end.commands.push(command)?;
        if is_submit {
            end.shared.load.fetch_add(1, Ordering::Relaxed);
            self.routes.insert(generation, thread);
        }
        end.shared.bell.ring();
        Ok(())
    }

    /// The next event of any thread.
    pub fn receive(&mut self) -> Option<Event> {
        for _ in 0..self.threads.len() {
            let event = self.threads[self.turn].events.pop();
            self.turn = (self.turn + 1) % self.threads.len();
            if let Some(event) = event {
                if let Event::Finished { generation, .. } | Event::Refused { generation, .. } = &event {
                    self.routes.remove(generation);
                }
                return Some(event);
            }
        }
        None
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.threads.iter().all(|end| end.events.is_empty())
    }

    fn least_loaded(&self) -> usize {
        let load = |thread: &usize| self.threads[*thread].shared.load.load(Ordering::Relaxed);
        (0..self.threads.len()).min_by_key(load).unwrap_or(0)
    }
}
