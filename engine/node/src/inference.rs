//! A core's end of the inference stage.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::{InferenceCommand, InferenceEvent};
use thalweg_worker::stage::{Command, CoreLink, Embed, Embeddings, Event, Submit, Times};

use crate::stats::{CoreStats, NodeStage};
use crate::trace::GenerationRecord;

/// Translates between the shard's words and the stage's, and measures the way between.
pub(crate) struct Inference {
    link: Option<CoreLink>,
    /// Commands the ring had no room for, in order. Bounded by the generations of the core: each has at most one submit,
    /// one cancel and one credit per report of its readers on the way; and by the requests for embeddings it keeps.
    backlog: VecDeque<Command>,
    /// When generations were asked for that have no token yet.
    submitted: BTreeMap<GenerationId, Instant>,
    /// When the tokens of this turn were sampled.
    sampled: Vec<Instant>,
    /// When those generations were asked for whose first token came in this turn.
    first: Vec<Instant>,
    /// Answers to commands that cannot be carried out, as there is no stage.
    refused: VecDeque<InferenceEvent>,
    /// What is known of generations that are traced.
    traced: BTreeMap<GenerationId, Traced>,
    /// Those of them that ended in this turn, with their roots.
    told: Vec<(u64, Box<GenerationRecord>)>,
    /// What became of texts to embed in this turn.
    embedded: VecDeque<(u64, Result<Embeddings, Reject>)>,
    /// The moment the node's clocks count from.
    origin: Instant,
}

/// A generation that is traced.
struct Traced {
    root: u64,
    model: Name,
    submitted: Instant,
    /// When its first token came.
    received: Option<Instant>,
    times: Option<Box<Times>>,
}

impl Inference {
    pub(crate) fn new(link: Option<CoreLink>, origin: Instant) -> Self {
        Self {
            link,
            backlog: VecDeque::new(),
            submitted: BTreeMap::new(),
            sampled: Vec::new(),
            first: Vec::new(),
            refused: VecDeque::new(),
            traced: BTreeMap::new(),
            told: Vec::new(),
            embedded: VecDeque::new(),
            origin,
        }
    }

    pub(crate) fn send(&mut self, command: InferenceCommand) {
        let command = match command {
            InferenceCommand::Submit(submit) => {
                let submitted = Instant::now();
                self.submitted.insert(submit.generation, submitted);
                let thalweg_shard::Submit { generation, tenant, model, messages, sampling, produced, .. } = *submit;
                let thalweg_shard::Submit { raw, priority, deadline_ms, credit, trace, .. } = *submit;
                if trace != 0 && self.link.is_some() {
                    let (model, received, times) = (model.clone(), None, None);
                    self.traced.insert(generation, Traced { root: trace, model, submitted, received, times });
                }
                let model = Some(model);
                Command::Submit(Box::new(Submit {
                    generation,
                    tenant,
                    model,
                    messages,
                    sampling,
                    produced,
                    raw,
                    priority,
                    deadline_ms,
                    credit,
                    submitted,
                    traced: trace != 0,
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

    /// Whether there is a stage.
    pub(crate) fn is_there(&self) -> bool {
        self.link.is_some()
    }

    /// The model that embeds texts of requests that name none.
    pub(crate) fn embedding_model(&self) -> Option<&Name> {
        self.link.as_ref().and_then(CoreLink::embedding_model)
    }

    /// Sends texts to embed; [`next_embedded`](Self::next_embedded) says what became of them, once.
    pub(crate) fn embed(&mut self, embed: Embed) {
        self.backlog.push_back(Command::Embed(Box::new(embed)));
        self.flush();
    }

    /// What became of texts to embed: the job, and its vectors or why there are none.
    pub(crate) fn next_embedded(&mut self) -> Option<(u64, Result<Embeddings, Reject>)> {
        self.embedded.pop_front()
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
        for _ in 0..TURN_INPUTS_MAX {
            let Some(event) = self.link.as_mut().and_then(CoreLink::receive) else { break };
            taken += 1;
            take(match event {
                Event::Scheduled { generation, at, .. } => {
                    if let Some(submitted) = self.submitted.get(&generation) {
                        stats.record(NodeStage::AskScheduled, at.saturating_duration_since(*submitted));
                    }
                    continue;
                }
                Event::Token { generation, index, id, text, detail, at } => {
                    self.sampled.push(at);
                    self.first.extend(self.submitted.remove(&generation));
                    if !self.traced.is_empty()
                        && let Some(traced) = self.traced.get_mut(&generation)
                    {
                        traced.received.get_or_insert_with(Instant::now);
                    }
                    InferenceEvent::Token { generation, index, id, text, detail }
                }
                Event::Embedded { job, result } => {
                    self.embedded.push_back((job, result));
                    continue;
                }
                Event::Traced(times) => {
                    if let Some(traced) = self.traced.get_mut(&times.generation) {
                        traced.times = Some(times);
                    }
                    continue;
                }
                Event::Finished { generation, reason, usage, message } => {
                    self.submitted.remove(&generation);
                    self.tell(generation, Some((reason, usage)));
                    InferenceEvent::Finished { generation, reason, usage, message }
                }
                Event::Refused { generation, reject } => {
                    self.submitted.remove(&generation);
                    self.tell(generation, None);
                    InferenceEvent::Refused { generation, reject }
                }
            });
        }
        taken
    }

    /// A generation ended. If it is traced, what is known of it is told.
    fn tell(&mut self, generation: GenerationId, end: Option<(FinishReason, Usage)>) {
        if self.traced.is_empty() {
            return;
        }
        let Some(Traced { root, model, submitted, received, times }) = self.traced.remove(&generation) else { return };
        let us = |at: Instant| at.saturating_duration_since(self.origin).as_micros() as u64;
        let now_us = us(Instant::now());
        let moment = |of: fn(&Times) -> Option<Instant>| times.as_deref().and_then(of).map(us);
        let record = GenerationRecord {
            model: Some(model),
            prompt_tokens: times.as_ref().map_or(0, |times| times.prompt_tokens),
            completion_tokens: end.map_or(0, |(_, usage)| usage.completion_tokens),
            reason: end.map(|(reason, _)| reason),
            submitted_us: us(submitted),
            taken_us: moment(|times| Some(times.taken)),
            tokenised_us: moment(|times| times.tokenised),
            admitted_us: moment(|times| times.admitted),
            first_row_us: moment(|times| times.first_row),
            first_token_us: moment(|times| times.first_token),
            first_received_us: received.map(us),
            parks_us: times.iter().flat_map(|times| &times.parks).map(|&(from, to)| (us(from), us(to))).collect(),
            ended_us: moment(|times| Some(times.ended)).unwrap_or(now_us),
            received_us: now_us,
        };
        self.told.push((root, Box::new(record)));
    }

    /// What was told of generations that are traced, with their roots. Bounded by the events of a turn.
    pub(crate) fn told(&mut self) -> std::vec::Drain<'_, (u64, Box<GenerationRecord>)> {
        self.told.drain(..)
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
