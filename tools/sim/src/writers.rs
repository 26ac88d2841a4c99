//! Models that write in documents, from the inference stage's side: how far they may run ahead, how they begin anew, how they
//! are stopped.

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_protocol::ids::{CoreId, GenerationId};
use thalweg_protocol::limits::LEAD_TOKENS;
use thalweg_shard::{InferenceCommand, InferenceEvent};

use crate::faults::Fault;
use crate::world::{Plant, World};

/// Tokens that a model may still say after its stop was answered: those of the steps that were under way.
const TOKENS_AFTER_STOP: u32 = 3;
/// What a planted defect gives beyond the credit that there is.
const CREDIT_MADE_UP: u32 = 1_000;

/// What is known of models that write.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    /// What each core gave up last, which what it begins next may take the place of.
    given_up: BTreeMap<CoreId, GenerationId>,
    before: BTreeMap<GenerationId, GenerationId>,
    /// Which generation a later attempt is of.
    roots: BTreeMap<GenerationId, GenerationId>,
    said: BTreeMap<GenerationId, u32>,
    /// How many tokens there were when a stop was answered.
    stopped: BTreeMap<GenerationId, u32>,
}

impl Writers {
    /// Which generation the inference stage computes under an id.
    fn root(&self, attempt: GenerationId) -> GenerationId {
        self.roots.get(&attempt).copied().unwrap_or(attempt)
    }
}

impl World {
    /// A shard tells the inference stage something. Gives what a planted defect makes of it.
    pub(crate) fn command_of_shard(&mut self, core: CoreId, command: InferenceCommand) -> Option<InferenceCommand> {
        let writers = &mut self.writers;
        match command {
            InferenceCommand::Cancel { generation } => {
                writers.given_up.insert(core, generation);
                let is_writer = self.truth.chronicle.tokens_of(writers.root(generation)).is_some();
                let ignored = self.options.plant == Some(Plant::IgnoreStop) && is_writer;
                (!ignored).then_some(InferenceCommand::Cancel { generation })
            }
            InferenceCommand::Submit(mut submit) => {
                if let Some(before) = writers.given_up.remove(&core) {
                    writers.before.insert(submit.generation, before);
                }
                if self.options.plant == Some(Plant::MakeUpCredit) {
                    submit.credit += CREDIT_MADE_UP;
                }
                Some(InferenceCommand::Submit(submit))
            }
            command => Some(command),
        }
    }

    /// A command reaches the inference stage. One that was not begun as a generation takes the place of what was given up.
    pub(crate) fn notice_attempt(&mut self, command: &InferenceCommand) {
        let InferenceCommand::Submit(submit) = command else { return };
        let attempt = submit.generation;
        if self.truth.chronicle.was_started(attempt) {
            return;
        }
        let Some(&before) = self.writers.before.get(&attempt) else {
            return self.violation(format!("{attempt} was handed over, and nobody began it"));
        };
        let root = self.writers.root(before);
        if self.writers.roots.insert(attempt, root).is_none() {
            self.faults.count(Fault::ModelRefreshed);
            self.said.anew(root, before, attempt);
        }
    }

    /// The inference stage said something: nobody runs further ahead than their text is durable, or read.
    pub(crate) fn judge_writer(&mut self, event: &mut InferenceEvent) {
        let InferenceEvent::Token { generation, index, text, .. } = event else { return };
        let root = self.writers.root(*generation);
        let Some(durable) = self.truth.chronicle.tokens_of(root) else { return };
        if self.options.plant == Some(Plant::WriteTwice) {
            *text = Bytes::from([&text[..], &text[..]].concat());
        }
        let read = self.heard.get(&root).copied().unwrap_or_default();
        let most = durable.max(read) + LEAD_TOKENS;
        let (index, said) = (*index, *index + 1);
        self.writers.said.insert(root, said);
        if said == most {
            self.faults.count(Fault::ModelHeldBack);
        }
        if said > most {
            self.violation(format!("{root} said token {index}, and {durable} are durable and {read} were read"));
        }
        if self.writers.stopped.get(&root).is_some_and(|stopped| said > stopped + TOKENS_AFTER_STOP) {
            self.violation(format!("{root} says token {index} after it was stopped"));
        }
    }

    /// Somebody was told that a model was stopped.
    pub(crate) fn writer_stopped(&mut self, generation: GenerationId) {
        if self.truth.chronicle.writes(generation) {
            let said = self.writers.said.get(&generation).copied().unwrap_or_default();
            self.writers.stopped.entry(generation).or_insert(said);
        }
    }
}
