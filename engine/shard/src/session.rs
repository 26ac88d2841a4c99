//! The sessions of this core: what a client asks, checked and handed to the owner of what it asks about.

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_domain::channel::{Channel, check_name};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::routing::Need;
use thalweg_protocol::chat::{ChannelKind, PostKind};
use thalweg_protocol::generation::AskRequest;
use thalweg_protocol::ids::{ChannelKey, CoreId, GenerationId, Name, Position, Request, SessionId, Watch};
use thalweg_protocol::limits::{IN_FLIGHT_MAX, RECONNECT_DELAY_MS, WATCHES_MAX};
use thalweg_protocol::op::{ClientOp, CreateChannel, Publish, ServerOp, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Link, Origin, Output, OwnerMessage, PeerMessage};
use crate::directory::Listing;
use crate::fan::SubscriptionIndex;
use crate::presence::Attendance;
use crate::quota::{Purse, Retry};
use crate::shard::Shard;

/// From this level of pressure on nobody new is served.
const PRESSURE_NEWCOMERS: u8 = 2;
/// From this level of pressure on nothing is written.
const PRESSURE_WRITES: u8 = 3;

/// A session with an open connection on this core.
pub(crate) struct Session {
    pub(crate) principal: Arc<Principal>,
    /// Requests handed to an owner and not answered.
    in_flight: usize,
    /// Its subscriptions by number.
    pub(crate) subscriptions: BTreeMap<u32, SubscriptionIndex>,
    /// How many of them are of documents.
    pub(crate) documents: usize,
    /// The generations it watches, by number; `None` while the owner has not answered.
    watches: BTreeMap<Watch, Option<GenerationId>>,
    /// Bytes delivered that the transport has not taken.
    pub(crate) queued: usize,
    /// Subscriptions that wait for room in the queue.
    pub(crate) waiting_for_room: Vec<SubscriptionIndex>,
    /// Deletions of its tenant: how many cores have not answered, how many channels the others had.
    deletions: BTreeMap<Request, (u16, u32)>,
    /// Lists of channels that are being gathered.
    pub(crate) listings: BTreeMap<Request, Listing>,
    pub(crate) attendance: Attendance,
    /// What is left to it of what it may do.
    pub(crate) purse: Purse,
    /// Repeated writes that were not answered.
    pub(crate) retries: BTreeMap<Request, Retry>,
}

/// All sessions of this core.
#[derive(Default)]
pub(crate) struct Sessions {
    by_link: BTreeMap<Link, Session>,
    /// Sessions choose their ids themselves, so one tells sessions of one tenant apart.
    by_id: BTreeMap<(SessionId, Name), Link>,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.by_link.len()
    }

    pub(crate) fn get(&self, link: Link) -> Option<&Session> {
        self.by_link.get(&link)
    }

    pub(crate) fn get_mut(&mut self, link: Link) -> Option<&mut Session> {
        self.by_link.get_mut(&link)
    }
}

fn refusal(code: RejectCode, text: impl Into<std::borrow::Cow<'static, str>>) -> Result<(), Reject> {
    Err(Reject::new(code, text))
}

impl Shard {
    pub(crate) fn open(&mut self, link: Link, principal: Arc<Principal>) {
        let id = (principal.session, principal.tenant.clone());
        if let Some(old) = self.sessions.by_id.insert(id.clone(), link) {
            let text = "the session was opened over another connection, which has it now";
            self.output(Output::Close { link: old, reject: Reject::new(RejectCode::SessionTakenOver, text) });
            self.forget_session(old);
            self.sessions.by_id.insert(id, link);
        }
        let session = Session {
            principal: Arc::clone(&principal),
            in_flight: 0,
            subscriptions: BTreeMap::new(),
            documents: 0,
            watches: BTreeMap::new(),
            queued: 0,
            waiting_for_room: Vec::new(),
            deletions: BTreeMap::new(),
            listings: BTreeMap::new(),
            attendance: Attendance::default(),
            purse: Purse::default(),
            retries: BTreeMap::new(),
        };
        self.sessions.by_link.insert(link, session);
        self.report_connection(link, &principal, true);
    }

    pub(crate) fn close(&mut self, link: Link) {
        self.forget_session(link);
    }

    fn forget_session(&mut self, link: Link) {
        let Some(session) = self.sessions.by_link.remove(&link) else { return };
        let id = (session.principal.session, session.principal.tenant.clone());
        if self.sessions.by_id.get(&id) == Some(&link) {
            self.sessions.by_id.remove(&id);
        }
        self.attends_no_more(link, &session);
        self.report_connection(link, &session.principal, false);
        for (_, subscription) in session.subscriptions {
            self.remove_subscription(subscription);
        }
        for (watch, generation) in session.watches {
            // One that was not answered yet is given back when its answer finds no session.
            if let Some(generation) = generation {
                self.leave_generation(link, watch, generation);
            }
        }
    }

    fn leave_generation(&mut self, link: Link, watch: Watch, generation: GenerationId) {
        let core = self.config.core;
        self.tell_owner(generation.partition(), OwnerMessage::Unwatch { core, link, watch, generation });
    }

    pub(crate) fn request(&mut self, link: Link, request: Request, op: ClientOp, trace: u64) {
        self.heard(link);
        let Some(session) = self.sessions.get(link) else { return };
        let principal = Arc::clone(&session.principal);
        let origin = Origin { core: self.config.core, link, request, trace };
        let result = match op {
            ClientOp::Publish(publish) => self.request_publish(origin, principal, publish),
            ClientOp::Subscribe(subscribe) => self.request_subscribe(origin, principal, subscribe),
            ClientOp::Consumed { subscription, position } => {
                self.consumed(link, subscription, position);
                Ok(())
            }
            ClientOp::Unsubscribe { subscription } => self.request_unsubscribe(origin, subscription),
            ClientOp::CreateChannel(create) => self.request_create(origin, principal, create),
            ClientOp::DeleteChannel { channel } => self.request_delete(origin, principal, channel),
            ClientOp::DeleteTenant => self.request_delete_tenant(origin, &principal),
            ClientOp::ReadHistory { channel, from, limit } => {
                self.request_page(origin, principal, channel, from, limit)
            }
            ClientOp::Ask(ask) => self.request_ask(origin, principal, ask),
            ClientOp::Watch(watch) => self.request_watch(origin, principal, watch),
            ClientOp::TokensConsumed { watch, index } => {
                self.request_tokens_consumed(link, watch, index);
                Ok(())
            }
            ClientOp::Unwatch { watch } => self.request_unwatch(origin, watch),
            ClientOp::Cancel { generation } => self.request_cancel(origin, principal, generation),
            ClientOp::Hello(_) => refusal(RejectCode::HelloExpected, "the session is open; say hello once"),
            ClientOp::Chat(op) => self.request_chat(origin, principal, op),
            ClientOp::Document(op) => self.request_document(origin, principal, op),
            ClientOp::Heartbeat => {
                self.involve(link);
                Ok(())
            }
            ClientOp::Typing { subscription, on } => {
                self.request_typing(link, subscription, on);
                Ok(())
            }
            ClientOp::Ping { .. }
            | ClientOp::Stats
            | ClientOp::Drain
            | ClientOp::Checkpoint
            | ClientOp::Login(_)
            | ClientOp::Manage { .. }
            | ClientOp::Embed { .. } => {
                refusal(RejectCode::Internal, "this request is the shell's and does not belong to a shard")
            }
        };
        if let Err(reject) = result {
            self.reply(link, request, ServerOp::Reject(reject));
        }
    }

    /// Refuses what would begin something new on a node that is going away.
    pub(crate) fn not_draining(&self) -> Result<(), Reject> {
        if self.draining {
            let reject = Reject::new(RejectCode::Draining, "the node is restarting; come back after the delay");
            return Err(reject.retry_after_ms(RECONNECT_DELAY_MS));
        }
        Ok(())
    }

    /// Refuses what would serve somebody new while the node is short of memory.
    pub(crate) fn newcomers_are_served(&self) -> Result<(), Reject> {
        self.has_memory(PRESSURE_NEWCOMERS)
    }

    /// Refuses writes while the node is very short of memory.
    pub(crate) fn writes_are_served(&self) -> Result<(), Reject> {
        self.has_memory(PRESSURE_WRITES)
    }

    fn has_memory(&self, level: u8) -> Result<(), Reject> {
        if self.pressure >= level {
            let text = "the node is short of memory; come back after the delay";
            return Err(Reject::new(RejectCode::Overloaded, text).retry_after_ms(RECONNECT_DELAY_MS));
        }
        Ok(())
    }

    /// Counts a request that an owner will answer.
    fn admit(&mut self, link: Link) -> Result<(), Reject> {
        let Some(session) = self.sessions.get_mut(link) else { return Ok(()) };
        if session.in_flight >= IN_FLIGHT_MAX {
            let text = format!("{IN_FLIGHT_MAX} requests are unanswered; wait for answers before asking more");
            return refusal(RejectCode::LimitReached, text);
        }
        session.in_flight += 1;
        Ok(())
    }

    fn request_publish(&mut self, origin: Origin, principal: Arc<Principal>, publish: Publish) -> Result<(), Reject> {
        // A draining owner refuses what is new, but still answers what it has carried out.
        let comments =
            publish.post.kind == PostKind::Update && principal.may(Access::Comment, publish.channel.as_str());
        if !comments {
            principal.require(Access::Write, publish.channel.as_str())?;
        }
        self.admit(origin.link)?;
        let limited = self.spend_publish(origin.link, origin.request, &principal, &publish);
        if limited.is_err() {
            self.settle(origin.link);
        }
        let (limited, publish) = (limited?, Box::new(publish));
        let partition = self.partition(&principal.tenant, publish.channel.as_str());
        self.tell_owner(partition, OwnerMessage::Publish { origin, principal, publish, limited });
        Ok(())
    }

    fn request_create(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        create: CreateChannel,
    ) -> Result<(), Reject> {
        self.not_draining()?;
        principal.require(Access::Write, create.channel.as_str())?;
        check_name(&create.channel)?;
        let settings = Channel::decide_settings(&create, self.config.durability)?;
        if create.about.kind == ChannelKind::Direct {
            let text = "a direct conversation is opened with the people in it, not created by name";
            return refusal(RejectCode::ParameterInvalid, text);
        }
        self.spend_write(origin.link, &principal, create.about.topic.len())?;
        self.admit(origin.link)?;
        let partition = self.partition(&principal.tenant, create.channel.as_str());
        let channel = ChannelKey { tenant: principal.tenant.clone(), channel: create.channel };
        let about = Box::new(create.about);
        self.tell_owner(partition, OwnerMessage::Create { origin, principal, channel, settings, about });
        Ok(())
    }

    fn request_delete(&mut self, origin: Origin, principal: Arc<Principal>, channel: Name) -> Result<(), Reject> {
        self.not_draining()?;
        principal.require(Access::Admin, channel.as_str())?;
        self.admit(origin.link)?;
        let partition = self.partition(&principal.tenant, channel.as_str());
        let channel = ChannelKey { tenant: principal.tenant.clone(), channel };
        self.tell_owner(partition, OwnerMessage::Delete { origin, principal, channel });
        Ok(())
    }

    /// Asks every core to delete what it owns of the session's tenant.
    fn request_delete_tenant(&mut self, origin: Origin, principal: &Principal) -> Result<(), Reject> {
        self.not_draining()?;
        principal.require(Access::Admin, "tenant")?;
        self.admit(origin.link)?;
        let cores = self.config.cores;
        if let Some(session) = self.sessions.get_mut(origin.link) {
            session.deletions.insert(origin.request, (cores, 0));
        }
        for core in 0..cores {
            let tenant = principal.tenant.clone();
            self.tell(CoreId(core), PeerMessage::ToOwner(OwnerMessage::DeleteTenant { origin, tenant }));
        }
        Ok(())
    }

    /// A core has deleted what it owned of a session's tenant.
    pub(crate) fn tenant_deleted(&mut self, link: Link, request: Request, channels: u32) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let Some((cores, so_far)) = session.deletions.get_mut(&request) else { return };
        (*cores, *so_far) = (*cores - 1, *so_far + channels);
        if *cores == 0 {
            let channels = *so_far;
            session.deletions.remove(&request);
            self.settle(link);
            self.reply(link, request, ServerOp::Deleted { channels });
        }
    }

    fn request_page(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        channel: Name,
        from: Position,
        limit: u32,
    ) -> Result<(), Reject> {
        principal.require(Access::Read, channel.as_str())?;
        self.admit(origin.link)?;
        let partition = self.partition(&principal.tenant, channel.as_str());
        let channel = ChannelKey { tenant: principal.tenant.clone(), channel };
        self.tell_owner(partition, OwnerMessage::Page { origin, principal, channel, from, limit });
        Ok(())
    }

    /// Reserves a number for a watch, which is the number of the request that made it.
    fn reserve_watch(&mut self, origin: Origin) -> Result<(), Reject> {
        let Some(session) = self.sessions.get_mut(origin.link) else { return Ok(()) };
        let watch = Watch(origin.request.0);
        if session.watches.contains_key(&watch) {
            return refusal(RejectCode::SubscriptionInvalid, format!("watch {watch} exists already"));
        }
        if session.watches.len() >= WATCHES_MAX {
            let text = format!("the session watches {WATCHES_MAX} generations; leave one first");
            return refusal(RejectCode::LimitReached, text);
        }
        self.admit(origin.link)?;
        if let Some(session) = self.sessions.get_mut(origin.link) {
            session.watches.insert(watch, None);
        }
        Ok(())
    }

    /// Gives back what was reserved for a request that is refused after all.
    fn release_watch(&mut self, origin: Origin) {
        if let Some(session) = self.sessions.get_mut(origin.link) {
            session.watches.remove(&Watch(origin.request.0));
        }
        self.settle(origin.link);
    }

    fn request_ask(&mut self, origin: Origin, principal: Arc<Principal>, ask: Box<AskRequest>) -> Result<(), Reject> {
        self.not_draining()?;
        self.newcomers_are_served()?;
        ask.check()?;
        self.may_ask_more(origin.link, &principal)?;
        self.reserve_watch(origin)?;
        // Last, for who is chosen counts as asked.
        let model = self.route(&principal, ask.model.as_ref(), &Need::of_ask(&ask));
        let model = model.inspect_err(|_| self.release_watch(origin))?;
        let partition = self.partition(&principal.tenant, &principal.session.to_string());
        self.tell_owner(partition, OwnerMessage::Ask { origin, principal, model, request: ask });
        Ok(())
    }

    fn request_watch(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        request: WatchRequest,
    ) -> Result<(), Reject> {
        let generation = request.generation;
        if generation.partition().0 >= self.config.partitions {
            return refusal(RejectCode::GenerationUnknown, format!("there is no generation {generation}"));
        }
        self.reserve_watch(origin)?;
        self.tell_owner(generation.partition(), OwnerMessage::Watch { origin, principal, request });
        Ok(())
    }

    fn request_tokens_consumed(&mut self, link: Link, watch: Watch, index: u32) {
        let core = self.config.core;
        // A watch that has ended is no error: credit and the last frame cross on the way.
        if let Some(&Some(generation)) = self.sessions.get(link).and_then(|session| session.watches.get(&watch)) {
            let message = OwnerMessage::TokensConsumed { core, link, watch, generation, index };
            self.tell_owner(generation.partition(), message);
        }
    }

    fn request_unwatch(&mut self, origin: Origin, watch: Watch) -> Result<(), Reject> {
        let session = self.sessions.get_mut(origin.link);
        if let Some(Some(generation)) = session.and_then(|session| session.watches.remove(&watch)) {
            self.leave_generation(origin.link, watch, generation);
        }
        self.reply(origin.link, origin.request, ServerOp::Done);
        Ok(())
    }

    fn request_cancel(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        generation: GenerationId,
    ) -> Result<(), Reject> {
        if generation.partition().0 >= self.config.partitions {
            return refusal(RejectCode::GenerationUnknown, format!("there is no generation {generation}"));
        }
        self.admit(origin.link)?;
        self.tell_owner(generation.partition(), OwnerMessage::Cancel { origin, principal, generation });
        Ok(())
    }

    /// An owner answered.
    pub(crate) fn answered(&mut self, link: Link, request: Request, op: ServerOp) {
        let watch = Watch(request.0);
        let asked = if let ServerOp::Asked { generation, .. } = &op { Some(*generation) } else { None };
        let Some(session) = self.sessions.get_mut(link) else {
            // The session went while its question was under way; nobody will read the answer.
            if let Some(generation) = asked {
                self.leave_generation(link, watch, generation);
            }
            return;
        };
        session.in_flight = session.in_flight.saturating_sub(1);
        let may_be_repeated = !session.retries.is_empty();
        match (session.watches.get_mut(&watch), asked) {
            (Some(slot @ None), Some(generation)) => *slot = Some(generation),
            // The watch was left before its answer came.
            (None, Some(generation)) => self.leave_generation(link, watch, generation),
            (Some(None), None) if matches!(op, ServerOp::Reject(_)) => {
                session.watches.remove(&watch);
            }
            _ => {}
        }
        if may_be_repeated {
            self.retry_answered(link, request, &op);
        }
        self.reply(link, request, op);
    }

    pub(crate) fn generation_frame(&mut self, link: Link, watch: Watch, payload: bytes::Bytes, last: bool) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        if !session.watches.contains_key(&watch) {
            return;
        }
        if last {
            session.watches.remove(&watch);
        }
        self.output(Output::Generation { link, watch, payload, last });
    }

    /// Counts an answered request whose reply is made on this core.
    pub(crate) fn settle(&mut self, link: Link) {
        if let Some(session) = self.sessions.get_mut(link) {
            session.in_flight = session.in_flight.saturating_sub(1);
        }
    }

    /// Counts a request that will be answered by [`settle`](Self::settle).
    pub(crate) fn admit_request(&mut self, link: Link) -> Result<(), Reject> {
        self.admit(link)
    }

    pub(crate) fn reply(&mut self, link: Link, request: Request, op: ServerOp) {
        if let ServerOp::Reject(reject) = &op {
            self.counters.rejects[reject.code as usize] += 1;
            if reject.code == RejectCode::Forbidden
                && let Some(session) = self.sessions.get(link)
            {
                let principal = Arc::clone(&session.principal);
                self.audit(&principal, "request", reject.message.to_string(), Some(reject.code));
            }
        }
        self.output(Output::Reply { link, request, op });
    }
}
