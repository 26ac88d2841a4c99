//! The generations this core owns: tokens in, frames out, credit back.
//!
//! Tokens leave for their watchers at once, gathered over a turn; the records that make them part of the log follow, one
//! per generation and [`RECORD_US`]. A generation's beginning is shown once it is durable, and so is its end. The fastest
//! watcher's credit sets the pace; a generation in a channel is paced by that channel's log.
//!
//! A generation that was cut off by the end of its node goes on from its last durable token. Somebody who saw more than
//! that says which text it saw; if what comes again is the same it is not told, and else it is told how far to go back.

mod details;
mod endings;
mod mention;
mod pump;
mod resume;
mod writing;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::generation::{Ending, Generation};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::{Event, GenerationRequest, Posting};
use thalweg_protocol::generation::{AskRequest, FinishReason, OnDetach, TokenDetail, Usage};
use thalweg_protocol::ids::{ChannelId, ChannelKey, CoreId, GenerationId, Name, Partition, Request, Watch};
use thalweg_protocol::limits::{GENERATION_KEEP_MS, GENERATIONS_MAX, LEAD_TOKENS, LEAD_TOKENS_MAX};
use thalweg_protocol::op::{DeliveryKind, Durability, ServerOp, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{InferenceCommand, InferenceEvent, Link, Origin, Output, SessionMessage, Submit};
use crate::documents::Writer;
use crate::owner::Action;
use crate::shard::{Deadline, Shard};

use details::Details;
use resume::Unverified;

/// Tokens of one generation are gathered this long before they become a record.
const RECORD_US: u64 = 20_000;

/// Tokens of one generation that writes in a document are gathered this long before they are written.
const WRITE_US: u64 = 50_000;

/// What a generation begins with beside its request.
#[derive(Default)]
pub(crate) struct Begin {
    /// Whether its records are in the log.
    pub(crate) logged: bool,
    /// What its channel is told.
    pub(crate) posting: Option<Posting>,
    /// Tokens that may be produced at first.
    pub(crate) credit: u32,
    /// The span of a trace that asked for it; 0 if it is not traced.
    pub(crate) trace: u64,
    /// Those that may be asked in place of its model.
    pub(crate) fallbacks: Vec<Name>,
    /// Where it writes, if that is in a document.
    pub(crate) writer: Option<Box<Writer>>,
    /// Whether it is known already that no model takes it.
    pub(crate) refused: bool,
    /// What is done once its beginning is durable.
    pub(crate) actions: Vec<Action>,
}

/// Somebody who reads a generation.
struct Watcher {
    core: CoreId,
    link: Link,
    watch: Watch,
    /// Who.
    user: Name,
    /// Tokens before this were sent.
    sent: u32,
    /// Tokens before this were consumed.
    consumed: u32,
    lead: u32,
    /// What it saw in an earlier life of the node, until that is compared with what came again.
    unverified: Option<Unverified>,
}

impl Watcher {
    fn is(&self, core: CoreId, link: Link, watch: Watch) -> bool {
        (self.core, self.link, self.watch) == (core, link, watch)
    }
}

/// A generation of this core.
struct Owned {
    generation: Generation,
    /// Whether its records are in the log.
    logged: bool,
    /// How many tokens there were when this life of the node began, if it goes on from an earlier one.
    recovered: Option<u32>,
    watchers: Vec<Watcher>,
    /// How likely tokens were that watchers were not told about.
    details: Details,
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
    /// Whether it is being deleted: nothing more is recorded of it.
    deleting: bool,
    /// When it is handed to the inference stage again, which had no room for it.
    resume_at: Option<u64>,
    /// The span of a trace that asked for it; 0 if it is not traced.
    trace: u64,
    /// The session that asked for it, if it was not in a channel: it pays, with its user and tenant.
    asker: Option<(CoreId, Link)>,
    /// Those that may be asked in place of its model.
    fallbacks: Vec<Name>,
    /// Under which id the inference stage computes it: another one each time it is begun anew.
    attempt: GenerationId,
    /// Where it writes, if that is in a document.
    writer: Option<Box<Writer>>,
    /// Whether its end was asked for: it is not begun anew.
    stopping: bool,
    /// How it ended, until its last tokens are written.
    held: Option<(Ending, Option<Reject>)>,
}

impl Owned {
    fn new(id: GenerationId, generation: Generation, logged: bool, credit: u32) -> Self {
        Self {
            fallbacks: Vec::new(),
            attempt: id,
            writer: None,
            stopping: false,
            held: None,
            generation,
            logged,
            recovered: None,
            watchers: Vec::new(),
            details: Details::default(),
            announced: false,
            credit,
            recorded: 0,
            record_at: None,
            arrived_us: None,
            ending: None,
            refusal: None,
            detached_at: None,
            deleting: false,
            resume_at: None,
            trace: 0,
            asker: None,
        }
    }

    /// The channel it answers in.
    fn channel(&self) -> Option<&(ChannelKey, ChannelId)> {
        self.generation.request.channel.as_ref()
    }

    /// Whether its end is decided, or even durable.
    fn ends(&self) -> bool {
        self.ending.is_some() || self.held.is_some() || self.generation.ending().is_some()
    }
}

/// All generations of this core.
#[derive(Default)]
pub(crate) struct Generations {
    owned: BTreeMap<GenerationId, Owned>,
    unfinished: usize,
    started: u32,
    /// Those with something to hand out at the end of the turn.
    dirty: Vec<GenerationId>,
    /// Those that write in documents.
    writers: BTreeMap<ChannelKey, Vec<GenerationId>>,
    /// Those that were begun anew, by the id of their newest attempt.
    attempts: BTreeMap<GenerationId, GenerationId>,
}

impl Generations {
    pub(crate) fn len(&self) -> usize {
        self.owned.len()
    }

    pub(crate) fn has_gathered(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The generation that an attempt of the inference stage is of, unless another took its place.
    fn of_attempt(&self, attempt: GenerationId) -> Option<GenerationId> {
        let id = self.attempts.get(&attempt).copied().unwrap_or(attempt);
        self.owned.get(&id).filter(|owned| owned.attempt == attempt).map(|_| id)
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
        let logged = self.config.durability != Durability::Memory;
        let room = if logged { self.storage_has_room() } else { Ok(()) };
        let id = match room.and_then(|()| self.next_generation(partition)) {
            Ok(id) => id,
            Err(reject) => return self.refuse(origin, reject),
        };
        let mut sampling = request.sampling;
        if !request.has_seed {
            // Any number will do, as long as the same inputs give the same one.
            sampling.seed = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.now.wall_us;
        }
        let AskRequest { messages, on_detach, raw, priority, deadline_ms, .. } = request;
        let channel = None;
        let request = GenerationRequest {
            tenant,
            user,
            model,
            channel,
            messages,
            sampling,
            on_detach,
            raw,
            priority,
            deadline_ms,
        };
        let fallbacks = self.fallbacks(principal, &request.model);
        let begin = Begin { logged, posting: None, credit: lead, trace: origin.trace, fallbacks, ..Begin::default() };
        self.begin(id, Arc::new(request), begin);
        if let Some(owned) = self.generations.owned.get_mut(&id) {
            owned.asker = Some((origin.core, origin.link));
        }
        self.add_watcher(id, origin, principal.user.clone(), 0, lead, None);
    }

    /// The id of the next generation.
    pub(crate) fn next_generation(&mut self, partition: Partition) -> Result<GenerationId, Reject> {
        if self.generations.owned.len() >= GENERATIONS_MAX {
            let text = format!("this core keeps {GENERATIONS_MAX} generations, which is all it takes");
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(1_000));
        }
        self.generations.started += 1;
        Ok(GenerationId::new(partition, self.config.epoch, self.generations.started))
    }

    /// Records that a generation begins, and hands it to the inference stage, if that is to `submit` it: its prompt is
    /// computed while its beginning becomes durable.
    pub(crate) fn begin(&mut self, id: GenerationId, request: Arc<GenerationRequest>, begin: Begin) {
        let Begin { logged, posting, credit, trace, fallbacks, writer, refused, mut actions } = begin;
        self.generations.unfinished += 1;
        self.counters.generations += 1;
        let new = Owned::new(id, Generation::new(Arc::clone(&request)), logged, credit);
        self.generations.owned.insert(id, Owned { trace, fallbacks, writer, ..new });
        if !refused {
            self.submit(id);
        }
        let event = Event::GenerationStarted { generation: id, request, posting };
        actions.insert(0, Action::Announce { generation: id });
        self.append_posting(id.partition(), logged, event, actions);
    }

    /// Hands a generation to the inference stage, to begin or to go on.
    pub(crate) fn submit(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        owned.resume_at = None;
        let GenerationRequest { tenant, model, messages, sampling, raw, priority, deadline_ms, .. } =
            (*owned.generation.request).clone();
        let produced = owned.generation.tokens_from(0).iter().map(|token| token.id).collect();
        // One that goes on from an earlier life of the node began in time, or was refused then.
        let deadline_ms = if owned.recovered.is_some() { 0 } else { deadline_ms };
        let again = owned.attempt != id;
        let messages = match &owned.writer {
            Some(writer) if again => writer.messages().to_vec(),
            _ => messages,
        };
        let submit = Submit {
            generation: owned.attempt,
            tenant,
            model,
            fallbacks: owned.fallbacks.clone(),
            messages,
            produced,
            sampling,
            raw,
            priority,
            deadline_ms,
            credit: owned.credit,
            trace: if again { 0 } else { owned.trace },
        };
        self.output(Output::Inference(InferenceCommand::Submit(Box::new(submit))));
    }

    fn add_watcher(
        &mut self,
        id: GenerationId,
        origin: Origin,
        user: Name,
        from: u32,
        lead: u32,
        unverified: Option<Unverified>,
    ) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        let Origin { core, link, request, .. } = origin;
        if let Some(at) = owned.detached_at.take() {
            self.deadlines.remove(&(at, Deadline::Detached(id)));
        }
        let watch = Watch(request.0);
        owned.watchers.push(Watcher { core, link, watch, user, sent: from, consumed: from, lead, unverified });
        if owned.announced {
            self.greet(id, origin);
        }
        self.extend_credit(id);
    }

    /// Tells a watcher what it watches, as an answer and as the first frame of the generation's lane.
    fn greet(&mut self, id: GenerationId, origin: Origin) {
        let Some(owned) = self.generations.owned.get(&id) else { return };
        let op = ServerOp::Asked { generation: id, model: owned.generation.request.model.to_string() };
        let (payload, Origin { core, link, request, .. }) = (op.encode(), origin);
        self.answer(origin, op);
        let watch = Watch(request.0);
        self.tell_session(core, SessionMessage::Generation { link, watch, payload, last: false });
        self.generations.dirty.push(id);
    }

    /// The beginning of a generation is durable.
    pub(crate) fn announce(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        owned.announced = true;
        let origin = |w: &Watcher| Origin { core: w.core, link: w.link, request: Request(w.watch.0), trace: 0 };
        let origins: Vec<_> = owned.watchers.iter().map(origin).collect();
        for origin in origins {
            self.greet(id, origin);
        }
    }

    /// A client wants to read a generation that exists.
    pub(crate) fn watch(&mut self, origin: Origin, principal: &Arc<Principal>, request: WatchRequest) {
        let WatchRequest { generation: id, from, lead, epoch, seen } = request;
        let found = self.generations.owned.get(&id).filter(|owned| owned.generation.request.tenant == principal.tenant);
        let result = found.ok_or_else(|| unknown(id)).and_then(|owned| {
            may_read(principal, owned)?;
            if let Some((key, _)) = owned.channel()
                && let Some((channel, _)) = self.channel_with_readers(key)
            {
                channel.roster().may_read(principal, &key.channel)?;
            }
            Unverified::of(owned, from, self.config.epoch, epoch, seen)
        });
        match result {
            Ok(unverified) => self.add_watcher(id, origin, principal.user.clone(), from, lead_of(lead), unverified),
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
            || owned.channel().is_some()
            || owned.generation.ending().is_some()
        {
            return;
        }
        match owned.generation.request.on_detach {
            OnDetach::Cancel => self.stop(id),
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
            self.stop(id);
        }
    }

    /// The inference stage said something.
    pub(crate) fn inference(&mut self, event: InferenceEvent) {
        let (InferenceEvent::Token { generation: attempt, .. }
        | InferenceEvent::Finished { generation: attempt, .. }
        | InferenceEvent::Refused { generation: attempt, .. }) = &event;
        // What an attempt still says that another took the place of is of no use.
        let Some(generation) = self.generations.of_attempt(*attempt) else { return };
        match event {
            InferenceEvent::Token { index, id, text, detail, .. } => {
                self.token(generation, index, id, &text, detail);
            }
            InferenceEvent::Finished { reason, usage, message, .. } => {
                self.finished(generation, Ending { reason, usage, message }, None);
            }
            InferenceEvent::Refused { reject, .. } if self.waits_to_resume(generation, &reject) => {}
            InferenceEvent::Refused { reject, .. } => {
                self.finish(generation, FinishReason::Failed, reject.to_string(), Some(reject));
            }
        }
    }

    /// Ends a generation within one step.
    pub(crate) fn stop(&mut self, id: GenerationId) {
        match self.generations.owned.get_mut(&id).and_then(|owned| owned.resume_at.take()) {
            Some(at) => {
                self.deadlines.remove(&(at, Deadline::Resume(id)));
                self.finish(id, FinishReason::Cancelled, String::new(), None);
            }
            None => {
                let attempt = match self.generations.owned.get_mut(&id) {
                    Some(owned) => {
                        owned.stopping = true;
                        owned.attempt
                    }
                    None => id,
                };
                self.output(Output::Inference(InferenceCommand::Cancel { generation: attempt }));
            }
        }
    }

    fn token(&mut self, id: GenerationId, index: u32, token: u32, text: &[u8], detail: Option<Box<TokenDetail>>) {
        let Some(owned) = self.generations.owned.get_mut(&id).filter(|owned| !owned.deleting) else { return };
        debug_assert_eq!(index, owned.generation.tokens(), "tokens come in order, without gaps");
        self.counters.tokens += 1;
        owned.generation.apply_token(token, text);
        if let Some(detail) = detail {
            owned.details.push(*detail);
        }
        owned.arrived_us.get_or_insert(self.now.mono_us);
        if owned.record_at.is_none() {
            // The first token goes into the log in its own turn, so that a channel shows it at once.
            let distance_us = if owned.writer.is_some() { WRITE_US } else { RECORD_US };
            let at = self.now.mono_us + if owned.recorded == 0 { 0 } else { distance_us };
            owned.record_at = Some(at);
            self.deadlines.insert((at, Deadline::Record(id)));
        }
        self.generations.dirty.push(id);
        let (request, asker) = (Arc::clone(&owned.generation.request), owned.asker);
        self.spend_tokens(&request.tenant, &request.user, asker, 1);
    }

    /// Puts the tokens that are in no record yet into one.
    pub(crate) fn record_tokens(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id).filter(|owned| !owned.deleting) else { return };
        if let Some(at) = owned.record_at.take() {
            self.deadlines.remove(&(at, Deadline::Record(id)));
        }
        let (index, tokens) = (owned.recorded, owned.generation.tokens());
        if index == tokens {
            return;
        }
        owned.recorded = tokens;
        let (text, logged) = (owned.generation.text(index, tokens), owned.logged);
        let (produced, user) = (owned.generation.tokens_from(index).to_vec(), author(&owned.generation.request.model));
        if owned.writer.is_some() {
            return self.write_tokens(id, index, produced, text);
        }
        // Tokens whose character is incomplete have no text yet; the next ones bring it.
        let posting = match owned.channel().cloned().filter(|_| !text.is_empty()) {
            Some((channel, channel_id)) => {
                self.generated(&channel, channel_id, DeliveryKind::Tokens, user, id, text.clone())
            }
            None => None,
        };
        let event = Event::GenerationTokens { generation: id, index, tokens: produced, text, posting };
        let actions = vec![Action::TokensLogged { generation: id, index: tokens }];
        self.append_posting(id.partition(), logged, event, actions);
    }

    pub(crate) fn tokens_logged(&mut self, id: GenerationId, index: u32) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if owned.channel().is_some() {
            self.grant(id, index.saturating_add(LEAD_TOKENS));
        }
    }

    /// Ends a generation that the inference stage does not have.
    pub(crate) fn finish(&mut self, id: GenerationId, reason: FinishReason, message: String, refusal: Option<Reject>) {
        let completion_tokens = self.generations.owned.get(&id).map_or(0, |owned| owned.generation.tokens());
        let usage = Usage { completion_tokens, ..Usage::default() };
        self.finished(id, Ending { reason, usage, message }, refusal);
    }

    fn finished(&mut self, id: GenerationId, ending: Ending, refusal: Option<Reject>) {
        self.record_tokens(id);
        let Some(owned) = self.generations.owned.get_mut(&id).filter(|owned| !owned.deleting) else { return };
        if owned.recorded < owned.generation.tokens() {
            // Its document is being read anew.
            owned.held = Some((ending, refusal));
            return;
        }
        owned.refusal = refusal;
        let (kind, body) = match ending.reason {
            FinishReason::Stop | FinishReason::Length => {
                (DeliveryKind::Message, owned.generation.text(0, owned.generation.tokens()))
            }
            FinishReason::Cancelled => (DeliveryKind::GenerationEnded, Bytes::from_static(b"cancelled")),
            FinishReason::Failed => (DeliveryKind::GenerationEnded, Bytes::from(ending.message.clone())),
        };
        owned.ending = Some(ending.clone());
        let (logged, user) = (owned.logged, author(&owned.generation.request.model));
        let (attempt, writer) = (owned.attempt, owned.writer.take());
        let posting = match owned.channel().cloned() {
            Some((channel, _)) if self.is_document(&channel) => None,
            Some((channel, channel_id)) => self.generated(&channel, channel_id, kind, user, id, body),
            None => None,
        };
        self.generations.attempts.remove(&attempt);
        if let Some(writer) = writer {
            self.writer_ended(id, *writer);
        }
        let event = Event::GenerationFinished { generation: id, ending, posting };
        self.append_posting(id.partition(), logged, event, vec![Action::Conclude { generation: id }]);
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
}

/// Under which name a model writes in a channel.
pub(crate) fn author(model: &Name) -> Name {
    // A model whose name leaves no room for the prefix writes under its bare name.
    Name::new(&format!("ai/{model}")).unwrap_or_else(|_| model.clone())
}

fn may_read(principal: &Principal, owned: &Owned) -> Result<(), Reject> {
    match owned.channel() {
        Some((channel, _)) => principal.require(Access::Read, channel.channel.as_str()),
        None => principal.require(Access::Ask, owned.generation.request.model.as_str()),
    }
}
