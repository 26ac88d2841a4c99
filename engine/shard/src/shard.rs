//! The shard itself: its state, its contract, and who handles what.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use thalweg_domain::quota::Limits;
use thalweg_domain::routing::Routes;
use thalweg_protocol::ids::{CoreId, Epoch, GenerationId, Name, Partition, partition_of};
use thalweg_protocol::limits::CORES_MAX;
use thalweg_protocol::op::{Durability, ServerOp};
use thalweg_protocol::reject::Reject;

use crate::contract::{Input, Now, Origin, Output, OwnerMessage, PeerMessage, SessionMessage};
use crate::counters::{Counters, Sample, Span, Stage};
use crate::directory::Directory;
use crate::documents::{Awareness, Documents};
use crate::fan::Fans;
use crate::generations::Generations;
use crate::log::LogEnd;
use crate::owner::Owner;
use crate::presence::Presences;
use crate::quota::Quotas;
use crate::routing::Router;
use crate::session::Sessions;

/// What a shard must know about its node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which core it is.
    pub core: CoreId,
    /// How many there are.
    pub cores: u16,
    /// How many partitions there are; fixed for the life of the data.
    pub partitions: u16,
    /// Which life of the node this is.
    pub epoch: Epoch,
    /// The models that can be asked when it begins; [`Input::Routes`] brings others.
    pub routes: Arc<Routes>,
    /// How durable channels are whose makers do not say, and generations outside of channels.
    pub durability: Durability,
}

impl Config {
    /// The core that owns a partition.
    pub fn core_of(&self, partition: Partition) -> CoreId {
        CoreId(partition.0 % self.cores)
    }
}

/// One core's state.
///
/// Contract: call [`handle`](Self::handle) with what happened, then carry out everything [`poll`](Self::poll) gives, in
/// order. When a batch of inputs is through, call [`finish_turn`](Self::finish_turn), which hands out what was gathered
/// over the turn, for as long as it [has gathered](Self::has_gathered) something, and [`fan_out`](Self::fan_out) in slices for as long as it says that there is more; poll after each.
/// Say [`Input::Timeout`] when [`next_deadline`](Self::next_deadline) has come.
///
/// Every write goes append → durable → apply → reply → fan-out, whatever stands behind the log. Nothing replies around it.
pub struct Shard {
    pub(crate) config: Config,
    pub(crate) now: Now,
    pub(crate) sessions: Sessions,
    pub(crate) owner: Owner,
    pub(crate) fans: Fans,
    pub(crate) documents: Documents,
    pub(crate) awareness: Awareness,
    pub(crate) generations: Generations,
    pub(crate) router: Router,
    pub(crate) directory: Directory,
    pub(crate) presence: Presences,
    pub(crate) quotas: Quotas,
    pub(crate) draining: bool,
    /// How short of memory the node is.
    pub(crate) pressure: u8,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counters: Counters,
    pub(crate) samples: Vec<Sample>,
    pub(crate) spans: Vec<Span>,
    pub(crate) deadlines: BTreeSet<(u64, Deadline)>,
    outputs: VecDeque<Output>,
    /// What this shard says to itself, in place of a ring. Empty between two calls.
    to_self: VecDeque<PeerMessage>,
    pub(crate) log: LogEnd,
}

/// Something to be done at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deadline {
    /// Put the tokens gathered for a channel into its log.
    Record(GenerationId),
    /// A generation without readers has waited long enough.
    Detached(GenerationId),
    /// A finished generation was kept long enough.
    Expired(GenerationId),
    /// A generation of an earlier life, for which there was no room, is handed to the inference stage again.
    Resume(GenerationId),
    /// Somebody is to be told who is in some channels.
    Rooms,
    /// Somebody is to be told who edits some documents, or may have been silent for too long.
    Awareness,
    /// A model that writes in a document is to begin anew, if the text around its place is at rest.
    Refresh(GenerationId),
    /// Documents that nobody uses are to be let go of.
    Documents,
    /// Some sessions may have been silent for too long.
    Sweep,
    /// Others are to be told what was done here.
    Report,
}

impl Shard {
    /// A shard that owns its share of the partitions, all empty.
    ///
    /// # Panics
    /// If the configuration names a core that there is not, or no cores, partitions or too many of them.
    pub fn new(config: Config) -> Self {
        assert!((1..=CORES_MAX).contains(&usize::from(config.cores)) && config.partitions > 0);
        assert!(config.core.0 < config.cores);
        let router = Router::new(Arc::clone(&config.routes));
        Self {
            config,
            router,
            now: Now::default(),
            sessions: Sessions::default(),
            owner: Owner::default(),
            fans: Fans::default(),
            documents: Documents::default(),
            awareness: Awareness::default(),
            generations: Generations::default(),
            directory: Directory::default(),
            presence: Presences::default(),
            quotas: Quotas::default(),
            draining: false,
            pressure: 0,
            limits: Arc::default(),
            counters: Counters::default(),
            samples: Vec::new(),
            spans: Vec::new(),
            deadlines: BTreeSet::new(),
            outputs: VecDeque::new(),
            to_self: VecDeque::new(),
            log: LogEnd::default(),
        }
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.now = now;
        match input {
            Input::Restore { partition, state } => self.restore(partition, *state),
            Input::Opened { link, principal } => self.open(link, principal),
            Input::Request { link, request, op, trace } => self.request(link, request, op, trace),
            Input::Closed { link } => self.close(link),
            Input::Drained { link, bytes } => self.drained(link, bytes),
            Input::Peer(message) => self.peer(message),
            Input::Durable { ticket } => self.durable(ticket),
            Input::Archived { ticket } => self.archived(ticket),
            Input::Read { read, result } => self.read_done(read, result),
            Input::Storage { full } => self.log.full = full,
            Input::Limits(limits) => self.set_limits(limits),
            Input::Routes(routes) => self.router.set(routes),
            Input::Pressure { level } => self.press(level),
            Input::Inference(event) => self.inference(event),
            Input::Timeout => self.timeout(),
            // Reading goes on, so that what was begun can be finished by those who read it.
            Input::Drain => self.draining = true,
        }
        // What the shard says to itself causes at most an answer and one more message each, so this ends.
        while let Some(message) = self.to_self.pop_front() {
            self.peer(message);
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether [`finish_turn`](Self::finish_turn) has something to hand out.
    pub fn has_gathered(&self) -> bool {
        self.generations.has_gathered() || self.documents.has_gathered()
    }

    /// Hands out what was gathered over a turn: edits of documents, the tokens that came in it, and ends that became durable.
    pub fn finish_turn(&mut self, now: Now) {
        self.now = now;
        self.finish_documents();
        self.pump_generations();
        while let Some(message) = self.to_self.pop_front() {
            self.peer(message);
        }
    }

    /// Serves readers in turn, up to `budget` deliveries. Says whether there is more to do.
    pub fn fan_out(&mut self, now: Now, budget: usize) -> bool {
        self.now = now;
        self.serve_ready(budget);
        while let Some(message) = self.to_self.pop_front() {
            self.peer(message);
        }
        self.has_readers_to_serve()
    }

    /// Whether [`fan_out`](Self::fan_out) has something to do.
    pub fn has_readers_to_serve(&self) -> bool {
        !self.fans.is_idle() || self.has_presence_to_serve()
    }

    /// When [`Input::Timeout`] is due next, in microseconds of [`Now::mono_us`].
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whether nothing that was begun is left to be done, so that a draining node may go.
    pub fn is_idle(&self) -> bool {
        self.log.is_idle()
            && self.outputs.is_empty()
            && self.generations.unfinished() == 0
            && self.fans.is_idle()
            && self.documents.is_idle()
    }

    /// What was counted since the shard began.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Users known, users there, people in channels, channels with people in them, users and tenants whose
    /// use is counted, sessions, subscriptions, channels owned,
    /// channels with readers here, generations kept, generations unfinished, appends that are not durable, bytes of messages
    /// at hand, reads from disk under way, documents owned, those in memory and the bytes of these, encoded.
    pub fn gauges(&self) -> [(&'static str, u64); 18] {
        [
            ("users", self.directory.len() as u64),
            ("users_present", self.presence.users() as u64),
            ("people_present", self.presence.rooms.people()),
            ("channels_with_presence", self.presence.rooms.len() as u64),
            ("usages", self.quotas.len() as u64),
            ("sessions", self.sessions.len() as u64),
            ("subscriptions", self.fans.subscriptions() as u64),
            ("channels", self.owner.channels() as u64),
            ("channels_read", self.fans.len() as u64),
            ("generations_kept", self.generations.len() as u64),
            ("generations_running", self.generations.unfinished() as u64),
            ("appends_pending", self.log.pending() as u64),
            ("resident_bytes", self.log.resident_bytes() as u64),
            ("disk_reads", self.log.reads() as u64),
            ("documents", self.owner.documents() as u64),
            ("documents_open", self.documents.len() as u64),
            ("document_bytes", self.documents.bytes() as u64),
            ("document_editors", self.editors() as u64),
        ]
    }

    /// Takes the samples since the last call. Bounded by what one turn does.
    pub fn samples(&mut self) -> std::vec::Drain<'_, Sample> {
        self.samples.drain(..)
    }

    /// Takes the spans since the last call. Bounded by what one turn does, and empty unless something is traced.
    pub fn spans(&mut self) -> std::vec::Drain<'_, Span> {
        self.spans.drain(..)
    }

    /// Notes what a traced request spent its time with; nothing, if it is not traced.
    pub(crate) fn span(&mut self, trace: u64, name: &'static str, start_us: u64) {
        if trace != 0 {
            self.spans.push(Span { parent: trace, name, start_us, end_us: self.now.mono_us });
        }
    }

    fn peer(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::ToOwner(message) => self.owner_message(message),
            PeerMessage::ToSession(message) => self.session_message(message),
        }
    }

    fn owner_message(&mut self, message: OwnerMessage) {
        match message {
            OwnerMessage::Create { origin, principal, channel, settings, about } => {
                self.create_channel(origin, &principal, channel, settings, &about);
            }
            OwnerMessage::Publish { origin, principal, publish, limited } => {
                self.publish(origin, &principal, *publish, limited);
            }
            OwnerMessage::Spent { core, spent } => {
                for (tenant, user, spent) in spent {
                    self.count(Some(core), &tenant, &user, spent);
                }
            }
            OwnerMessage::Connection { core, link, tenant, user, open } => {
                self.count_connection(core, link, &tenant, &user, open);
            }
            OwnerMessage::ChannelsCounted { tenant, change } => self.count_channels(&tenant, change),
            OwnerMessage::Attach { origin, principal, channel, make, fan } => {
                self.attach(origin, &principal, channel, make, fan);
            }
            OwnerMessage::Detach { core, channel, fan } => self.detach(core, channel, fan),
            OwnerMessage::Read { core, channel, reader, from } => self.read(core, &channel, reader, from),
            OwnerMessage::Page { origin, principal, channel, from, limit } => {
                self.page(origin, &principal, channel, from, limit);
            }
            OwnerMessage::Present { place, channel, user, was, state } => {
                self.present(place, channel, &user, was, state);
            }
            OwnerMessage::Picture { place, channel } => self.asked_for_picture(place, channel),
            OwnerMessage::Typing { place, link, channel, principal, on } => {
                self.typed(place, link, &channel, &principal, on);
            }
            OwnerMessage::UserPresence { core, user, state } => self.user_presence(core, user, state),
            OwnerMessage::Delete { origin, principal, channel } => self.delete_channel(origin, &principal, channel),
            OwnerMessage::Channel { origin, principal, channel, op } => {
                self.about_channel(origin, &principal, channel, *op);
            }
            OwnerMessage::User { origin, principal, op } => self.about_user(origin, &principal, *op),
            OwnerMessage::List { origin, principal, after, limit, all } => {
                self.list(origin, &principal, &after, limit, all);
            }
            OwnerMessage::DeleteTenant { origin, tenant } => self.delete_tenant(origin, &tenant),
            OwnerMessage::Ask { origin, principal, model, request } => self.ask(origin, &principal, model, *request),
            OwnerMessage::Watch { origin, principal, request } => self.watch(origin, &principal, request),
            OwnerMessage::TokensConsumed { core, link, watch, generation, index } => {
                self.tokens_consumed(core, link, watch, generation, index);
            }
            OwnerMessage::Unwatch { core, link, watch, generation } => self.unwatch(core, link, watch, generation),
            OwnerMessage::Cancel { origin, principal, generation } => self.cancel(origin, &principal, generation),
            OwnerMessage::OpenDocument { origin, principal, document, open, fan } => {
                self.open_document(origin, &principal, document, *open, fan);
            }
            OwnerMessage::CatchUp { core, document, reader, form } => {
                self.catch_up_document(core, document, reader, form);
            }
            OwnerMessage::ReadDocument { origin, principal, document, revision, form, offset } => {
                self.read_document(origin, &principal, document, revision, form, offset);
            }
            OwnerMessage::AskInDocument { origin, principal, ask } => self.ask_in_document(origin, &principal, *ask),
            OwnerMessage::Aware { place, link, document, principal, update } => {
                self.aware(place, link, &document, &principal, &update);
            }
            OwnerMessage::Unaware { place, link, document } => self.unaware(place, link, &document),
            OwnerMessage::UntellOperations { core, document } => self.untell_operations(core, &document),
        }
    }

    fn session_message(&mut self, message: SessionMessage) {
        match message {
            SessionMessage::Answer { link, request, op } => self.answered(link, request, op),
            SessionMessage::Attached { link, request, channel, fan, result } => {
                self.attached(link, request, channel, fan, result);
            }
            SessionMessage::Appended { fan, message, edit, trace } => {
                self.appended(fan, message, edit, trace);
            }
            SessionMessage::History { reader, first, messages } => self.history(reader, first, messages),
            SessionMessage::HistoryFailed { reader, reject } => self.history_failed(reader, reject),
            SessionMessage::Refuse { holder, resource, for_ms } => self.refuse_for(holder, resource, for_ms),
            SessionMessage::TokensSpent { link, tokens } => self.session_spent(link, tokens),
            SessionMessage::TooMany { link, holder, reject } => self.too_many_connections(link, holder, reject),
            SessionMessage::Presence { fan, payload, news, whole } => self.presence_told(fan, payload, news, whole),
            SessionMessage::Typing { fan, but, payload } => self.typing_told(fan, but, &payload),
            SessionMessage::Gone { fan, reject } => self.gone(fan, &reject),
            SessionMessage::Expelled { fan, user, reject } => self.expelled(fan, &user, &reject),
            SessionMessage::Closed { fan, members, reject } => self.closed(fan, &members, &reject),
            SessionMessage::Listed { link, request, channels, more } => self.listed(link, request, channels, more),
            SessionMessage::TenantDeleted { link, request, channels } => self.tenant_deleted(link, request, channels),
            SessionMessage::Generation { link, watch, payload, last } => {
                self.generation_frame(link, watch, payload, last);
            }
            SessionMessage::DocumentOpened { link, request, document, fan, result } => {
                self.document_opened(link, request, document, fan, result);
            }
            SessionMessage::CaughtUp { reader, result } => self.document_caught_up(reader, result),
            SessionMessage::Aware { fan, payload, but } => self.awareness_told(fan, &payload, but),
        }
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    /// Says something to the shard of a core, which may be this one.
    pub(crate) fn tell(&mut self, to: CoreId, message: PeerMessage) {
        if to == self.config.core {
            self.to_self.push_back(message);
        } else {
            self.counters.forwarded += u64::from(matches!(message, PeerMessage::ToOwner(_)));
            self.outputs.push_back(Output::Peer { to, message });
        }
    }

    pub(crate) fn tell_owner(&mut self, partition: Partition, message: OwnerMessage) {
        let to = self.config.core_of(partition);
        self.tell(to, PeerMessage::ToOwner(message));
    }

    pub(crate) fn tell_session(&mut self, to: CoreId, message: SessionMessage) {
        self.tell(to, PeerMessage::ToSession(message));
    }

    pub(crate) fn answer(&mut self, to: Origin, op: ServerOp) {
        let Origin { core, link, request, .. } = to;
        self.tell_session(core, SessionMessage::Answer { link, request, op });
    }

    pub(crate) fn refuse(&mut self, to: Origin, reject: Reject) {
        self.answer(to, ServerOp::Reject(reject));
    }

    pub(crate) fn partition(&self, tenant: &Name, affinity: &str) -> Partition {
        partition_of(tenant, affinity, self.config.partitions)
    }

    pub(crate) fn sample(&mut self, stage: Stage, since_us: u64) {
        let us = self.now.mono_us.saturating_sub(since_us).min(u64::from(u32::MAX)) as u32;
        self.samples.push(Sample { stage, us });
    }

    fn timeout(&mut self) {
        while let Some(&(at, deadline)) = self.deadlines.first().filter(|(at, _)| *at <= self.now.mono_us) {
            self.deadlines.remove(&(at, deadline));
            match deadline {
                Deadline::Record(generation) => self.record_tokens(generation),
                Deadline::Detached(generation) => self.detached_too_long(generation),
                Deadline::Expired(generation) => self.expire(generation),
                Deadline::Resume(generation) => self.submit(generation),
                Deadline::Rooms => self.rooms_due(),
                Deadline::Awareness => self.awareness_due(),
                Deadline::Refresh(generation) => self.refresh_due(generation),
                Deadline::Documents => self.sweep_documents(),
                Deadline::Sweep => self.sweep(),
                Deadline::Report => self.report(),
            }
        }
    }
}
