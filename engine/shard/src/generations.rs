//! The generations this core owns: tokens in, frames out, credit back.
//!
//! Tokens leave for their watchers at once, gathered over a turn; the records that make them part of the log follow, one
//! per generation and [`RECORD_US`]. A generation's beginning is shown once it is durable, and so is its end. The fastest
//! watcher's credit sets the pace; a generation in a channel is paced by that channel's log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::generation::{Ending, Generation};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::Event;
use thalweg_protocol::generation::{AskRequest, FinishReason, OnDetach, Sampling, Usage};
use thalweg_protocol::ids::{ChannelKey, CoreId, GenerationId, Name, Watch};
use thalweg_protocol::limits::{GENERATION_KEEP_MS, GENERATIONS_MAX, LEAD_TOKENS, LEAD_TOKENS_MAX};
use thalweg_protocol::op::{DeliveryKind, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{InferenceCommand, InferenceEvent, Link, Origin, Output, SessionMessage, Submit};
use crate::counters::Stage;
use crate::owner::Action;
use crate::shard::{Deadline, Shard};

/// Tokens of one generation are gathered this long before they become a record.
const RECORD_US: u64 = 20_000;

/// Somebody who reads a generation.
struct Watcher {
    core: CoreId,
    link: Link,
    watch: Watch,
    /// Tokens before this were sent.
    sent: u32,
    /// Tokens before this were consumed.
    consumed: u32,
    lead: u32,
}

impl Watcher {
    fn is(&self, core: CoreId, link: Link, watch: Watch) -> bool {
        (self.core, self.link, self.watch) == (core, link, watch)
    }
}

/// A generation of this core.
struct Owned {
    generation: Generation,
    /// The channel it answers in.
    channel: Option<ChannelKey>,
    on_detach: OnDetach,
    watchers: Vec<Watcher>,
    /// Whether its beginning is durable.
    announced: bool,
    /// Tokens the inference stage may produce so far.
    credit: u32,
    /// Tokens before this are in records.
    recorded: u32,
    record_at: Option<u64>,
    /// When the oldest token came that watchers were not told about.
    arrived_us: Option<u64>,
    /// How it ended, until that is durable.
    ending: Option<Ending>,
    /// Why the inference stage would not begin it.
    refusal: Option<Reject>,
    detached_at: Option<u64>,
}

/// All generations of this core.
#[derive(Default)]
pub(crate) struct Generations {
    owned: BTreeMap<GenerationId, Owned>,
    unfinished: usize,
    started: u32,
    /// Those with something to hand out at the end of the turn.
    dirty: Vec<GenerationId>,
}

impl Generations {
    pub(crate) fn len(&self) -> usize {
        self.owned.len()
    }

    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished
    }
}

fn lead_of(lead: u32) -> u32 {
    if lead == 0 { LEAD_TOKENS } else { lead.min(LEAD_TOKENS_MAX) }
}

fn unknown(generation: GenerationId) -> Reject {
    let text = format!("there is no generation {generation}; it was never begun here, or it was kept long enough");
    Reject::new(RejectCode::GenerationUnknown, text)
}

impl Shard {
    /// A client asks a model.
    pub(crate) fn ask(&mut self, origin: Origin, principal: &Arc<Principal>, model: Name, request: AskRequest) {
        let lead = lead_of(request.lead);
        let (tenant, user) = (principal.tenant.clone(), principal.user.clone());
        let partition = self.partition(&tenant, &principal.session.to_string());
        let generation = Generation::new(tenant, user, model);
        let Some(id) = self.begin(partition, generation, None, request.on_detach, lead) else {
            let text = format!("this core keeps {GENERATIONS_MAX} generations, which is all it takes");
            self.refuse(origin, Reject::new(RejectCode::Busy, text).retry_after_ms(1_000));
            return;
        };
        self.add_watcher(id, origin, 0, lead);
        let mut sampling = request.sampling;
        if !request.has_seed {
            // Any number will do, as long as the same inputs give the same one.
            sampling.seed = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.now.wall_us;
        }
        self.submit(id, request.messages, sampling, lead);
    }

    /// Somebody spoke to a model in a channel.
    pub(crate) fn answer_in_channel(&mut self, channel: ChannelKey, user: Name, model: Name) {
        let partition = self.partition(&channel.tenant, channel.channel.as_str());
        let messages = self.conversation(&channel);
        let generation = Generation::new(channel.tenant.clone(), user, model.clone());
        let keep = OnDetach::Keep(0);
        let Some(id) = self.begin(partition, generation, Some(channel.clone()), keep, LEAD_TOKENS) else { return };
        let body = Bytes::copy_from_slice(model.as_str().as_bytes());
        self.publish_generated(&channel, DeliveryKind::GenerationStarted, author(&model), id, body, Vec::new());
        let sampling = Sampling { seed: id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..Sampling::default() };
        self.submit(id, messages, sampling, LEAD_TOKENS);
    }

    /// Records that a generation begins; `None` if no more can be kept.
    fn begin(
        &mut self,
        partition: thalweg_protocol::ids::Partition,
        generation: Generation,
        channel: Option<ChannelKey>,
        on_detach: OnDetach,
        credit: u32,
    ) -> Option<GenerationId> {
        if self.generations.owned.len() >= GENERATIONS_MAX {
            return None;
        }
        self.generations.started += 1;
        self.generations.unfinished += 1;
        self.counters.generations += 1;
        let id = GenerationId::new(partition, self.config.epoch, self.generations.started);
        let (tenant, user, model) = (generation.tenant.clone(), generation.user.clone(), generation.model.clone());
        let owned = Owned {
            generation,
            channel,
            on_detach,
            watchers: Vec::new(),
            announced: false,
            credit,
            recorded: 0,
            record_at: None,
            arrived_us: None,
            ending: None,
            refusal: None,
            detached_at: None,
        };
        self.generations.owned.insert(id, owned);
        let event = Event::GenerationStarted { generation: id, tenant, user, model };
        self.append(partition, event, vec![Action::Announce { generation: id }]);
        Some(id)
    }

    /// Hands a generation to the inference stage. Its prompt is computed while its beginning becomes durable.
    fn submit(
        &mut self,
        id: GenerationId,
        messages: Vec<thalweg_protocol::generation::ChatMessage>,
        sampling: Sampling,
        credit: u32,
    ) {
        let Some(owned) = self.generations.owned.get(&id) else { return };
        let (tenant, model) = (owned.generation.tenant.clone(), owned.generation.model.clone());
        let submit = Submit { generation: id, tenant, model, messages, sampling, credit };
        self.output(Output::Inference(InferenceCommand::Submit(Box::new(submit))));
    }

    fn add_watcher(&mut self, id: GenerationId, origin: Origin, from: u32, lead: u32) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        let Origin { core, link, request } = origin;
        if let Some(at) = owned.detached_at.take() {
            self.deadlines.remove(&(at, Deadline::Detached(id)));
        }
        owned.watchers.push(Watcher { core, link, watch: Watch(request.0), sent: from, consumed: from, lead });
        if owned.announced {
            self.greet(id, origin);
        }
        self.extend_credit(id);
    }

    /// Tells a watcher what it watches, as an answer and as the first frame of the generation's lane.
    fn greet(&mut self, id: GenerationId, origin: Origin) {
        let Some(owned) = self.generations.owned.get(&id) else { return };
        let op = ServerOp::Asked { generation: id, model: owned.generation.model.to_string() };
        let (payload, Origin { core, link, request }) = (op.encode(), origin);
        self.answer(origin, op);
        let watch = Watch(request.0);
        self.tell_session(core, SessionMessage::Generation { link, watch, payload, last: false });
        self.generations.dirty.push(id);
    }

    /// The beginning of a generation is durable.
    pub(crate) fn announce(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        owned.announced = true;
        let origin =
            |w: &Watcher| Origin { core: w.core, link: w.link, request: thalweg_protocol::ids::Request(w.watch.0) };
        let origins: Vec<_> = owned.watchers.iter().map(origin).collect();
        for origin in origins {
            self.greet(id, origin);
        }
    }

    /// A client wants to read a generation that exists.
    pub(crate) fn watch(&mut self, origin: Origin, principal: &Arc<Principal>, id: GenerationId, from: u32, lead: u32) {
        let found = self.generations.owned.get(&id).filter(|owned| owned.generation.tenant == principal.tenant);
        let result = match found {
            None => Err(unknown(id)),
            Some(owned) if from > owned.generation.tokens() => {
                let text = format!("token {from} is beyond the {} there are", owned.generation.tokens());
                Err(Reject::new(RejectCode::ParameterInvalid, text))
            }
            Some(owned) => may_read(principal, owned),
        };
        match result {
            Ok(()) => self.add_watcher(id, origin, from, lead_of(lead)),
            Err(reject) => self.refuse(origin, reject),
        }
    }

    pub(crate) fn tokens_consumed(&mut self, core: CoreId, link: Link, watch: Watch, id: GenerationId, index: u32) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if let Some(watcher) = owned.watchers.iter_mut().find(|watcher| watcher.is(core, link, watch)) {
            // Nobody can consume what was not sent, so a reader cannot make itself credit.
            watcher.consumed = watcher.consumed.max(index.min(watcher.sent));
            self.generations.dirty.push(id);
            self.extend_credit(id);
        }
    }

    pub(crate) fn unwatch(&mut self, core: CoreId, link: Link, watch: Watch, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        let watchers = owned.watchers.len();
        owned.watchers.retain(|watcher| !watcher.is(core, link, watch));
        // One that left when it had everything leaves nothing behind.
        if owned.watchers.len() == watchers
            || !owned.watchers.is_empty()
            || owned.channel.is_some()
            || owned.generation.ending().is_some()
        {
            return;
        }
        match owned.on_detach {
            OnDetach::Cancel => self.output(Output::Inference(InferenceCommand::Cancel { generation: id })),
            OnDetach::Keep(ms) => {
                let at = self.now.mono_us + ms * 1_000;
                owned.detached_at = Some(at);
                self.deadlines.insert((at, Deadline::Detached(id)));
            }
        }
    }

    pub(crate) fn detached_too_long(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if owned.detached_at.take().is_some() && owned.generation.ending().is_none() {
            self.output(Output::Inference(InferenceCommand::Cancel { generation: id }));
        }
    }

    /// A finished generation was kept long enough; whoever has not read it to its end is told.
    pub(crate) fn expire(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.remove(&id) else { return };
        let payload = ServerOp::Ended(unknown(id)).encode();
        for Watcher { core, link, watch, .. } in owned.watchers {
            let payload = payload.clone();
            self.tell_session(core, SessionMessage::Generation { link, watch, payload, last: true });
        }
    }

    pub(crate) fn cancel(&mut self, origin: Origin, principal: &Arc<Principal>, id: GenerationId) {
        let found = self.generations.owned.get(&id).filter(|owned| owned.generation.tenant == principal.tenant);
        let result = found.ok_or_else(|| unknown(id)).and_then(|owned| {
            if owned.generation.user == principal.user || principal.may(Access::Admin, "generations") {
                return Ok(owned.generation.ending().is_some());
            }
            let channel = owned.channel.as_ref().ok_or_else(|| {
                let text = format!("{} did not ask for {id}", principal.user);
                Reject::new(RejectCode::Forbidden, text)
            })?;
            principal.require(Access::Write, channel.channel.as_str())?;
            Ok(owned.generation.ending().is_some())
        });
        match result {
            Ok(ended) => {
                if !ended {
                    self.output(Output::Inference(InferenceCommand::Cancel { generation: id }));
                }
                self.answer(origin, ServerOp::Done);
            }
            Err(reject) => self.refuse(origin, reject),
        }
    }

    /// The inference stage said something.
    pub(crate) fn inference(&mut self, event: InferenceEvent) {
        match event {
            InferenceEvent::Token { generation, index, text } => self.token(generation, index, &text),
            InferenceEvent::Finished { generation, reason, usage, message } => {
                self.finished(generation, Ending { reason, usage, message }, None);
            }
            InferenceEvent::Refused { generation, reject } => {
                let ending =
                    Ending { reason: FinishReason::Failed, usage: Usage::default(), message: reject.to_string() };
                self.finished(generation, ending, Some(reject));
            }
        }
    }

    fn token(&mut self, id: GenerationId, index: u32, text: &[u8]) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        debug_assert_eq!(index, owned.generation.tokens(), "tokens come in order, without gaps");
        self.counters.tokens += 1;
        owned.generation.apply_token(text);
        owned.arrived_us.get_or_insert(self.now.mono_us);
        if owned.record_at.is_none() {
            // The first token goes into the log in its own turn, so that a channel shows it at once.
            let at = self.now.mono_us + if owned.recorded == 0 { 0 } else { RECORD_US };
            owned.record_at = Some(at);
            self.deadlines.insert((at, Deadline::Record(id)));
        }
        self.generations.dirty.push(id);
    }

    /// Puts the tokens that are in no record yet into one.
    pub(crate) fn record_tokens(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if let Some(at) = owned.record_at.take() {
            self.deadlines.remove(&(at, Deadline::Record(id)));
        }
        let (index, tokens) = (owned.recorded, owned.generation.tokens());
        if index == tokens {
            return;
        }
        owned.recorded = tokens;
        let text = owned.generation.text(index, tokens);
        let logged = vec![Action::TokensLogged { generation: id, index: tokens }];
        match owned.channel.clone() {
            // Tokens whose character is incomplete have no text yet; the next ones bring it.
            Some(_) if text.is_empty() => self.after_appends(Action::TokensLogged { generation: id, index: tokens }),
            Some(channel) => {
                let user = author(&owned.generation.model);
                self.publish_generated(&channel, DeliveryKind::Tokens, user, id, text, logged);
            }
            None => {
                let event = Event::GenerationTokens { generation: id, index, count: tokens - index, text };
                self.append(id.partition(), event, logged);
            }
        }
    }

    pub(crate) fn tokens_logged(&mut self, id: GenerationId, index: u32) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if owned.channel.is_some() {
            self.grant(id, index.saturating_add(LEAD_TOKENS));
        }
    }

    fn finished(&mut self, id: GenerationId, ending: Ending, refusal: Option<Reject>) {
        self.record_tokens(id);
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        let (reason, usage) = (ending.reason, ending.usage);
        owned.refusal = refusal;
        let user = author(&owned.generation.model);
        let (kind, body) = match reason {
            FinishReason::Stop | FinishReason::Length => {
                (DeliveryKind::Message, owned.generation.text(0, owned.generation.tokens()))
            }
            FinishReason::Cancelled => (DeliveryKind::GenerationEnded, Bytes::from_static(b"cancelled")),
            FinishReason::Failed => (DeliveryKind::GenerationEnded, Bytes::from(ending.message.clone())),
        };
        owned.ending = Some(ending);
        let channel = owned.channel.clone();
        let event = Event::GenerationFinished { generation: id, reason, usage };
        if let Some(channel) = channel {
            self.publish_generated(&channel, kind, user, id, body, Vec::new());
        }
        self.append(id.partition(), event, vec![Action::Conclude { generation: id }]);
    }

    /// The end of a generation is durable.
    pub(crate) fn conclude(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        let Some(ending) = owned.ending.take() else { return };
        owned.generation.apply_ending(ending);
        self.generations.unfinished -= 1;
        let at = self.now.mono_us + GENERATION_KEEP_MS * 1_000;
        self.deadlines.insert((at, Deadline::Expired(id)));
        self.generations.dirty.push(id);
    }

    /// Lets the inference stage run as far ahead as the fastest watcher allows.
    fn extend_credit(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get(&id) else { return };
        let until = owned.watchers.iter().map(|watcher| watcher.consumed.saturating_add(watcher.lead)).max();
        self.grant(id, until.unwrap_or(0));
    }

    fn grant(&mut self, id: GenerationId, until: u32) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if until > owned.credit && owned.ending.is_none() && owned.generation.ending().is_none() {
            owned.credit = until;
            self.output(Output::Inference(InferenceCommand::Credit { generation: id, until }));
        }
    }

    /// Sends watchers what came over the turn, as far as their credit goes.
    pub(crate) fn pump_generations(&mut self) {
        let mut dirty = std::mem::take(&mut self.generations.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for id in dirty.drain(..) {
            self.pump(id);
        }
        // Keep the memory for the next turn; whatever was marked meanwhile waits for it.
        dirty.append(&mut self.generations.dirty);
        self.generations.dirty = dirty;
    }

    fn pump(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id).filter(|owned| owned.announced) else { return };
        let tokens = owned.generation.tokens();
        let arrived_us = owned.arrived_us.take();
        let mut frames = Vec::new();
        for watcher in &mut owned.watchers {
            let to = tokens.min(watcher.consumed.saturating_add(watcher.lead));
            if to > watcher.sent {
                let (index, count) = (watcher.sent, to - watcher.sent);
                let op = ServerOp::Tokens { index, count, text: owned.generation.text(index, to) };
                watcher.sent = to;
                frames.push((watcher.core, watcher.link, watcher.watch, op, false));
            }
        }
        if let Some(ending) = owned.generation.ending() {
            let op = match &owned.refusal {
                Some(reject) => ServerOp::Ended(reject.clone()),
                None => {
                    ServerOp::Finished { reason: ending.reason, usage: ending.usage, message: ending.message.clone() }
                }
            };
            owned.watchers.retain(|watcher| {
                let done = watcher.sent == tokens;
                if done {
                    frames.push((watcher.core, watcher.link, watcher.watch, op.clone(), true));
                }
                !done
            });
        }
        if let Some(since_us) = arrived_us.filter(|_| !frames.is_empty()) {
            self.sample(Stage::TokenOut, since_us);
        }
        for (core, link, watch, op, last) in frames {
            let payload = op.encode();
            self.tell_session(core, SessionMessage::Generation { link, watch, payload, last });
        }
    }
}

/// Under which name a model writes in a channel.
fn author(model: &Name) -> Name {
    // A model whose name leaves no room for the prefix writes under its bare name.
    Name::new(&format!("ai/{model}")).unwrap_or_else(|_| model.clone())
}

fn may_read(principal: &Principal, owned: &Owned) -> Result<(), Reject> {
    match &owned.channel {
        Some(channel) => principal.require(Access::Read, channel.channel.as_str()),
        None => principal.require(Access::Ask, owned.generation.model.as_str()),
    }
}
