//! Generations that write in documents: their tokens become edits, and they may be begun anew.

use bytes::Bytes;
use thalweg_domain::generation::Token;
use thalweg_domain::record::Event;
use thalweg_protocol::ids::{ChannelKey, GenerationId};

use super::{Generations, WRITE_US};
use crate::contract::{InferenceCommand, Output};
use crate::documents::{Writer, Written};
use crate::owner::Action;
use crate::shard::{Deadline, Shard};

impl Generations {
    /// How many models write in a document.
    pub(crate) fn writers_in(&self, document: &ChannelKey) -> usize {
        self.writers.get(document).map_or(0, Vec::len)
    }

    /// The generations that write in a document.
    pub(crate) fn writers_of(&self, document: &ChannelKey) -> Vec<GenerationId> {
        self.writers.get(document).cloned().unwrap_or_default()
    }

    pub(crate) fn writer_begins(&mut self, document: &ChannelKey, id: GenerationId) {
        self.writers.entry(document.clone()).or_default().push(id);
    }

    pub(crate) fn writer_ends(&mut self, document: &ChannelKey, id: GenerationId) {
        if let Some(writers) = self.writers.get_mut(document) {
            writers.retain(|other| *other != id);
            if writers.is_empty() {
                self.writers.remove(document);
            }
        }
    }
}

impl Shard {
    /// Begins anew with what a generation has so far: another prompt stands before it now. What the inference stage still says
    /// of the attempt before is not heard.
    pub(crate) fn begin_anew(&mut self, id: GenerationId) {
        let Ok(attempt) = self.next_generation(id.partition()) else { return };
        let Some(owned) = self.generations.owned.get_mut(&id).filter(|owned| !owned.ends()) else { return };
        let before = std::mem::replace(&mut owned.attempt, attempt);
        self.generations.attempts.remove(&before);
        self.generations.attempts.insert(attempt, id);
        self.output(Output::Inference(InferenceCommand::Cancel { generation: before }));
        self.submit(id);
    }

    /// Where a generation writes, if that is in a document and it has not ended.
    pub(crate) fn writer_mut(&mut self, id: GenerationId) -> Option<&mut Writer> {
        let owned = self.generations.owned.get_mut(&id).filter(|owned| !owned.deleting)?;
        owned.writer.as_deref_mut()
    }

    /// Takes out where a generation writes, until [`put_writer`](Self::put_writer).
    pub(crate) fn take_writer(&mut self, id: GenerationId) -> Option<Box<Writer>> {
        self.generations.owned.get_mut(&id).filter(|owned| !owned.deleting)?.writer.take()
    }

    pub(crate) fn put_writer(&mut self, id: GenerationId, writer: Box<Writer>) {
        if let Some(owned) = self.generations.owned.get_mut(&id) {
            owned.writer = Some(writer);
        }
    }

    /// Whether a generation can be gone on with by its model after it was broken off.
    pub(crate) fn goes_on(&self, id: GenerationId) -> bool {
        let found = self.generations.owned.get(&id).filter(|owned| !owned.ends() && !owned.stopping);
        let Some(owned) = found else { return false };
        let card = self.routes().get(owned.generation.request.model.as_str());
        card.is_some_and(|card| card.resumes && !card.is_down())
    }

    /// Puts the tokens that are in no record yet into one, and their text into a document; if that has to wait, later.
    pub(super) fn write_tokens(&mut self, id: GenerationId, index: u32, produced: Vec<Token>, text: Bytes) {
        let to = index + produced.len() as u32;
        let written = if text.is_empty() { Written::Nothing } else { self.write_in_document(id, &text) };
        let posting = match written {
            Written::Posting(posting) => Some(posting),
            Written::Nothing => None,
            Written::Later => {
                let at = self.now.mono_us + WRITE_US;
                if let Some(owned) = self.generations.owned.get_mut(&id) {
                    (owned.recorded, owned.record_at) = (index, Some(at));
                    self.deadlines.insert((at, Deadline::Record(id)));
                }
                return;
            }
        };
        let logged = self.generations.owned.get(&id).is_some_and(|owned| owned.logged);
        let event = Event::GenerationTokens { generation: id, index, tokens: produced, text, posting };
        let actions = vec![Action::TokensLogged { generation: id, index: to }];
        let document = event.posting().map(|posting| posting.channel.clone());
        self.append_posting(id.partition(), logged, event, actions);
        if let Some(document) = document {
            self.model_wrote(&document);
        }
        let held = self.generations.owned.get_mut(&id).and_then(|owned| owned.held.take());
        if let Some((ending, refusal)) = held {
            self.finished(id, ending, refusal);
        }
    }
}
