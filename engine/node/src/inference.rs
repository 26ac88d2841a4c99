//! A core's end of the inference stage.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::{InferenceCommand, InferenceEvent};
use thalweg_worker::stage::{Command, CoreLink, Event, Submit};

use crate::stats::{CoreStats, NodeStage};

/// Translates between the shard's words and the stage's, and measures the way between.
pub(crate) struct Inference {
    link: Option<CoreLink>,
    /// Commands the ring had no room for, in order. Bounded by the generations of the core: each has at most one submit,
    /// one cancel and one credit per report of its readers on the way.
    backlog: VecDeque<Command>,
    /// When generations were asked for that have no token yet.
    submitted: BTreeMap<GenerationId, Instant>,
    /// When the tokens of this turn were sampled.
    sampled: Vec<Instant>,
    /// When those generations were asked for whose first token came in this turn.
    first: Vec<Instant>,
    /// Answers to commands that cannot be carried out, as there is no stage.
    refused: VecDeque<InferenceEvent>,
}

impl Inference {
    pub(crate) fn new(link: Option<CoreLink>) -> Self {
        let (backlog, refused) = (VecDeque::new(), VecDeque::new());
        Self { link, backlog, submitted: BTreeMap::new(), sampled: Vec::new(), first: Vec::new(), refused }
    }

    pub(crate) fn send(&mut self, command: InferenceCommand) {
        let command = match command {
            InferenceCommand::Submit(submit) => {
                let submitted = Instant::now();
                self.submitted.insert(submit.generation, submitted);
                let thalweg_shard::Submit { generation, tenant, model, messages, sampling, produced, credit, trace: _ } =
                    *submit;
                let model = Some(model);
                Command::Submit(Box::new(Submit {
                    generation,
                    tenant,
                    model,
                    messages,
                    sampling,
                    produced,
                    credit,
                    submitted,
                    traced: false,
                }))
            }
            InferenceCommand::Credit { generation, until } => Command::Credit { generation, until },
            InferenceCommand::Cancel { generation } => Command::Cancel { generation },
        };
        if self.link.is_some() {
            self.backlog.push_back(command);
            self.flush();
        } else if let Command::Submit(submit) = command {
            let reject = Reject::new(RejectCode::ModelUnknown, "this node runs no models");
            self.refused.push_back(InferenceEvent::Refused { generation: submit.generation, reject });
        }
    }

    fn flush(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some(command) = self.backlog.pop_front() {
            if let Err(command) = link.send(command) {
                self.backlog.push_front(command);
                return;
            }
        }
    }

    /// Takes what the stage has to say; gives how much it was.
    pub(crate) fn receive(&mut self, stats: &mut CoreStats, mut take: impl FnMut(InferenceEvent)) -> usize {
        self.flush();
        let mut taken = 0;
        while let Some(event) = self.refused.pop_front() {
            taken += 1;
            take(event);
        }
        let Some(link) = &mut self.link else { return taken };
        for event in std::iter::from_fn(|| link.receive()).take(TURN_INPUTS_MAX) {
            taken += 1;
            take(match event {
                Event::Scheduled { generation, at, .. } => {
                    if let Some(submitted) = self.submitted.get(&generation) {
                        stats.record(NodeStage::AskScheduled, at.saturating_duration_since(*submitted));
                    }
                    continue;
                }
                Event::Token { generation, index, id, text, at } => {
                    self.sampled.push(at);
                    self.first.extend(self.submitted.remove(&generation));
                    InferenceEvent::Token { generation, index, id, text }
                }
                Event::Traced(_) => continue,
                Event::Finished { generation, reason, usage, message } => {
                    self.submitted.remove(&generation);
                    InferenceEvent::Finished { generation, reason, usage, message }
                }
                Event::Refused { generation, reject } => {
                    self.submitted.remove(&generation);
                    InferenceEvent::Refused { generation, reject }
                }
            });
        }
        taken
    }

    /// The turn is over, and what came in it was sent.
    pub(crate) fn sent(&mut self, stats: &mut CoreStats) {
        for at in self.sampled.drain(..) {
            stats.record(NodeStage::TokenSent, at.elapsed());
        }
        for submitted in self.first.drain(..) {
            stats.record(NodeStage::FirstToken, submitted.elapsed());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.refused.is_empty() && self.backlog.is_empty() && self.link.as_ref().is_none_or(CoreLink::is_empty)
    }

    pub(crate) fn count(&self, stats: &mut CoreStats) {
        stats.gauges.insert("inference_backlog", self.backlog.len() as u64);
    }
}
