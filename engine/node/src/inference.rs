//! A core's ends of what runs models: the inference stage, and the stage for models that are run elsewhere.
//!
//! A request goes to the model that was chosen for it, wherever that runs. One that fails elsewhere before its first token is
//! handed to the first of the fallbacks that the shard gave with it, as if that had been asked at once; the asker does not notice
//! but by the time it took.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use thalweg_domain::routing::TOKEN_BYTES;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_remote::RemoteLink;
use thalweg_shard::{InferenceCommand, InferenceEvent};
use thalweg_worker::stage::{Command, CoreLink, Embed, Embeddings, Event, Submit, Times};

use crate::models::{Gauges, Kind, Outcome, Place, ServedModels};
use crate::stats::{CoreStats, NodeStage};
use crate::trace::GenerationRecord;

/// What a core gets of what runs models.
pub(crate) struct Links {
    /// To the inference stage, if there is one.
    pub(crate) stage: Option<CoreLink>,
    /// To the stage for models elsewhere.
    pub(crate) remote: Option<RemoteLink>,
    /// The models there are at the start.
    pub(crate) served: ServedModels,
}

/// Translates between the shard's words and the stage's, and measures the way between.
pub(crate) struct Inference {
    link: Option<CoreLink>,
    remote: Option<RemoteLink>,
    /// Commands for models elsewhere that their ring had no room for, in order; bounded likewise.
    remote_backlog: VecDeque<Command>,
    /// Commands the ring had no room for, in order. Bounded by the generations of the core: each has at most one submit,
    /// one cancel and one credit per report of its readers on the way; and by the requests for embeddings it keeps.
    backlog: VecDeque<Command>,
    /// Generations that were handed over and have not ended.
    asked: BTreeMap<GenerationId, Asked>,
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
    /// The models there are, and where to note what became of requests.
    served: ServedModels,
    /// The moment the node's clocks count from.
    origin: Instant,
}

/// A generation that was handed over.
struct Asked {
    /// When the shard asked.
    submitted: Instant,
    /// When this model was asked.
    handed: Instant,
    place: Place,
    gauges: Option<Arc<Gauges>>,
    prompt_tokens: u32,
    began: bool,
    /// Whom it can be handed to instead, in this order; its asker may ask them.
    fallbacks: VecDeque<Name>,
    /// What to hand to the fallback, while that is possible.
    again: Option<Box<Submit>>,
}

impl Asked {
    fn note(&self, outcome: Outcome) {
        if let Some(gauges) = &self.gauges {
            gauges.note(outcome);
        }
    }
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
    pub(crate) fn new(Links { stage: link, remote, served }: Links, origin: Instant) -> Self {
        Self {
            link,
            remote,
            backlog: VecDeque::new(),
            remote_backlog: VecDeque::new(),
            asked: BTreeMap::new(),
            sampled: Vec::new(),
            first: Vec::new(),
            refused: VecDeque::new(),
            traced: BTreeMap::new(),
            told: Vec::new(),
            embedded: VecDeque::new(),
            served,
            origin,
        }
    }

    /// These models can be handed requests from now on; what others run goes on.
    pub(crate) fn set_served(&mut self, served: ServedModels) {
        self.served = served;
    }

    pub(crate) fn send(&mut self, command: InferenceCommand) {
        match command {
            InferenceCommand::Submit(submit) => {
                let submitted = Instant::now();
                let thalweg_shard::Submit { generation, tenant, model, messages, sampling, produced, .. } = *submit;
                let thalweg_shard::Submit { raw, priority, deadline_ms, credit, trace, fallbacks, .. } = *submit;
                if trace != 0 {
                    let (model, received, times) = (model.clone(), None, None);
                    self.traced.insert(generation, Traced { root: trace, model, submitted, received, times });
                }
                let model = Some(model);
                let submit = Submit {
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
                };
                self.hand(Box::new(submit), submitted, fallbacks.into());
            }
            InferenceCommand::Credit { generation, until } => {
                let asked = self.asked.get_mut(&generation);
                if let Some(again) = asked.and_then(|asked| asked.again.as_mut()) {
                    again.credit = again.credit.max(until);
                }
                self.command(generation, Command::Credit { generation, until });
            }
            InferenceCommand::Cancel { generation } => {
                if let Some(asked) = self.asked.get_mut(&generation) {
                    // Nobody wants it from another either.
                    asked.again = None;
                }
                self.command(generation, Command::Cancel { generation });
            }
        }
    }

    /// Hands a request to where its model runs.
    fn hand(&mut self, submit: Box<Submit>, submitted: Instant, fallbacks: VecDeque<Name>) {
        let (generation, handed) = (submit.generation, Instant::now());
        let Some(model) = submit.model.clone() else { return };
        let served = self.served.get(&model);
        // One that is not known goes to the stage, which says so.
        let place = served.map_or(Place::Local, |served| served.place);
        let gauges = served.map(|served| Arc::clone(&served.gauges));
        let falls = place == Place::Remote && !fallbacks.is_empty();
        let again = falls.then(|| submit.clone());
        let bytes: usize = submit.messages.iter().map(|message| message.content.len()).sum();
        let prompt_tokens = match place {
            Place::Local => 0,
            // Those who run it elsewhere say how many they were when it is over.
            Place::Remote => u32::try_from(bytes / TOKEN_BYTES + 1).unwrap_or(u32::MAX),
        };
        let asked = Asked { submitted, handed, place, gauges, prompt_tokens, began: false, fallbacks, again };
        asked.note(Outcome::Asked);
        self.asked.insert(generation, asked);
        let is_there = match place {
            Place::Local => self.link.is_some(),
            Place::Remote => self.remote.is_some(),
        };
        if is_there {
            self.command(generation, Command::Submit(submit));
        } else {
            let reject = Reject::new(RejectCode::ModelUnknown, "this node runs no models");
            self.ended(generation, Outcome::Ended);
            self.tell(generation, None);
            self.refused.push_back(InferenceEvent::Refused { generation, reject });
        }
    }

    /// Sends a command to where its generation is.
    fn command(&mut self, generation: GenerationId, command: Command) {
        match self.asked.get(&generation).map_or(Place::Local, |asked| asked.place) {
            Place::Local if self.link.is_some() => self.backlog.push_back(command),
            Place::Remote if self.remote.is_some() => self.remote_backlog.push_back(command),
            Place::Local | Place::Remote => return,
        }
        self.flush();
    }

    /// A generation ended at its model; what became of it is noted there.
    fn ended(&mut self, generation: GenerationId, outcome: Outcome) {
        if let Some(asked) = self.asked.remove(&generation) {
            asked.note(outcome);
        }
    }

    /// Hands a generation that did not begin to its model's fallback. False if there is none.
    fn fall_back(&mut self, generation: GenerationId, outcome: Outcome) -> bool {
        let Some(asked) = self.asked.get_mut(&generation).filter(|asked| !asked.began) else { return false };
        let Some(mut submit) = asked.again.take() else { return false };
        let chats = |name: &Name| self.served.get(name).is_some_and(|served| served.kind == Kind::Chat);
        let mut fallbacks = std::mem::take(&mut asked.fallbacks);
        let fallback = std::iter::from_fn(|| fallbacks.pop_front()).find(chats);
        let Some(fallback) = fallback else { return false };
        asked.note(outcome);
        asked.note(Outcome::FellBack);
        let submitted = asked.submitted;
        submit.model = Some(fallback);
        self.asked.remove(&generation);
        self.hand(submit, submitted, fallbacks);
        true
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
        while let (Some(link), Some(command)) = (&mut self.link, self.backlog.pop_front()) {
            if let Err(command) = link.send(command) {
                self.backlog.push_front(command);
                break;
            }
        }
        while let (Some(link), Some(command)) = (&mut self.remote, self.remote_backlog.pop_front()) {
            if let Err(command) = link.send(command) {
                self.remote_backlog.push_front(command);
                break;
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
            if let Some(event) = self.event(event, stats) {
                take(event);
            }
        }
        for _ in 0..TURN_INPUTS_MAX {
            let Some(event) = self.remote.as_mut().and_then(RemoteLink::receive) else { break };
            taken += 1;
            if let Some(event) = self.event(event, stats) {
                take(event);
            }
        }
        taken
    }

    /// What an event means for the shard.
    fn event(&mut self, event: Event, stats: &mut CoreStats) -> Option<InferenceEvent> {
        Some(match event {
            Event::Scheduled { generation, at, prompt_tokens, .. } => {
                let asked = self.asked.get_mut(&generation)?;
                if asked.place == Place::Local {
                    asked.prompt_tokens = prompt_tokens;
                    stats.record(NodeStage::AskScheduled, at.saturating_duration_since(asked.submitted));
                }
                return None;
            }
            Event::Token { generation, index, id, text, detail, at } => {
                self.sampled.push(at);
                if let Some(asked) = self.asked.get_mut(&generation).filter(|asked| !asked.began) {
                    asked.began = true;
                    asked.again = None;
                    let first_token_us = at.saturating_duration_since(asked.handed).as_micros() as u64;
                    asked.note(Outcome::Begun { first_token_us, prompt_tokens: asked.prompt_tokens });
                    self.first.push(asked.submitted);
                }
                if !self.traced.is_empty()
                    && let Some(traced) = self.traced.get_mut(&generation)
                {
                    traced.received.get_or_insert_with(Instant::now);
                }
                InferenceEvent::Token { generation, index, id, text, detail }
            }
            Event::Embedded { job, result } => {
                self.embedded.push_back((job, result));
                return None;
            }
            Event::Traced(times) => {
                if let Some(traced) = self.traced.get_mut(&times.generation) {
                    traced.times = Some(times);
                }
                return None;
            }
            Event::Finished { generation, reason, usage, message } => {
                let outcome = if reason == FinishReason::Failed { Outcome::Failed } else { Outcome::Ended };
                if outcome == Outcome::Failed && self.fall_back(generation, outcome) {
                    return None;
                }
                self.ended(generation, outcome);
                self.tell(generation, Some((reason, usage)));
                InferenceEvent::Finished { generation, reason, usage, message }
            }
            Event::Refused { generation, reject } => {
                let (outcome, may_fall) = match reject.code {
                    RejectCode::ModelUnavailable | RejectCode::Internal => (Outcome::Failed, true),
                    RejectCode::Busy => (Outcome::Busy, true),
                    // It was unloaded meanwhile.
                    RejectCode::ModelUnknown => (Outcome::Ended, true),
                    _ => (Outcome::Ended, false),
                };
                if may_fall && self.fall_back(generation, outcome) {
                    return None;
                }
                self.ended(generation, outcome);
                self.tell(generation, None);
                InferenceEvent::Refused { generation, reject }
            }
        })
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
        self.refused.is_empty()
            && self.backlog.is_empty()
            && self.remote_backlog.is_empty()
            && self.link.as_ref().is_none_or(CoreLink::is_empty)
            && self.remote.as_ref().is_none_or(RemoteLink::is_empty)
    }

    pub(crate) fn count(&self, stats: &mut CoreStats) {
        stats.gauges.insert("inference_backlog", (self.backlog.len() + self.remote_backlog.len()) as u64);
    }
}

#[cfg(test)]
mod tests;
