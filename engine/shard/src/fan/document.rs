//! Readers of documents on this core.
//!
//! They are readers as any other, with two differences. One that is behind is not given what it missed one by one: it gets one
//! edit merged of all of them, or, if the tail does not reach back to it, the document as its owner has it. And beside the
//! edits they are told what others say of themselves, of which only the newest counts.

mod merging;
mod picture;

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_protocol::document::{DocumentForm, DocumentNews, OpenDocument};
use thalweg_protocol::ids::{ChannelKey, Position, Request, Sequence, SessionId, Subscription};
use thalweg_protocol::limits::{
    AWARENESS_BURST, AWARENESS_BYTES_MAX, AWARENESS_DISTANCE_MS, DOCUMENT_PART_BYTES, DOCUMENTS_PER_SESSION_MAX,
    FRAME_HEADER_BYTES, LEAD_MESSAGES_MAX, LEAD_UPDATES, SESSION_QUEUE_BYTES, STATE_VECTOR_BYTES_MAX,
    SUBSCRIPTIONS_MAX,
};
use thalweg_protocol::op::{DeliveryKind, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::{Fan, FanId, Fans, Reader, State, Step, SubscriptionIndex, SubscriptionRef};
use crate::contract::{Link, Opening, Origin, Output, OwnerMessage};
use crate::counters::Stage;
use crate::shard::Shard;

use merging::Merges;
use picture::Picture;

/// A document's tail is looked through for what nobody needs any more when it has so many messages.
const TAIL_PRUNED: usize = 16;

/// What a document's readers on this core share beside its tail.
pub(super) struct DocumentFan {
    merges: Merges,
    picture: Picture,
    /// Messages in the tail at which it is looked through next.
    prune_at: usize,
}

impl Default for DocumentFan {
    fn default() -> Self {
        Self { merges: Merges::default(), picture: Picture::default(), prune_at: TAIL_PRUNED }
    }
}

/// How somebody reads a document.
pub(super) struct DocumentReader {
    /// How it is told of edits.
    pub(super) form: DocumentForm,
    /// The document as it is being sent, if it is.
    state: Option<Parts>,
    /// Whether it could not be served when it was due something, and so gets what it missed in one.
    behind: bool,
    /// What it knows of what others say of themselves.
    aware: u64,
    /// Whether it said something of itself.
    shared: bool,
    /// What it may say of itself at once, and since when that counts.
    purse: (u32, u64),
}

/// A document that is sent in parts.
struct Parts {
    revision: Position,
    bytes: Bytes,
    /// How much of it was sent.
    offset: usize,
}

/// What a reader gets next.
enum Next {
    /// A frame, after which it has everything up to `to`.
    Frame { payload: Bytes, to: Position, since_us: u64 },
    /// Nothing, but it has everything up to there.
    Skip(Position),
    /// It has to wait.
    Waits(State),
}

impl DocumentReader {
    fn new(form: DocumentForm, now_us: u64) -> Self {
        Self { form, state: None, behind: false, aware: 0, shared: false, purse: (AWARENESS_BURST, now_us) }
    }

    /// Whether it may say something of itself now; that counts as said.
    fn may_share(&mut self, now_us: u64) -> bool {
        let (left, since_us) = &mut self.purse;
        let distance_us = AWARENESS_DISTANCE_MS * 1_000;
        let earned = now_us.saturating_sub(*since_us) / distance_us;
        *since_us += earned * distance_us;
        *left = left.saturating_add(earned.min(u64::from(AWARENESS_BURST)) as u32).min(AWARENESS_BURST);
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    }
}

fn refusal(code: RejectCode, text: String) -> Result<(), Reject> {
    Err(Reject::new(code, text))
}

impl Shard {
    /// A client opens a document.
    pub(crate) fn request_open_document(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        mut open: OpenDocument,
    ) -> Result<(), Reject> {
        principal.require(Access::Read, open.document.as_str())?;
        self.newcomers_are_served()?;
        let Some(session) = self.sessions.get(origin.link) else { return Ok(()) };
        let number = Subscription(origin.request.0);
        if session.subscriptions.contains_key(&number.0) {
            return refusal(RejectCode::SubscriptionInvalid, format!("subscription {number} exists already"));
        }
        if session.documents >= DOCUMENTS_PER_SESSION_MAX || session.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let text = format!(
                "the session has {} documents open and {} subscriptions; at most {DOCUMENTS_PER_SESSION_MAX} and \
                 {SUBSCRIPTIONS_MAX} are allowed; end one first",
                session.documents,
                session.subscriptions.len()
            );
            return refusal(RejectCode::LimitReached, text);
        }
        let lead = match open.lead {
            0 => LEAD_UPDATES,
            lead if lead <= LEAD_MESSAGES_MAX => lead,
            lead => {
                return refusal(RejectCode::ParameterInvalid, format!("lead is {lead}; at most {LEAD_MESSAGES_MAX}"));
            }
        };
        if open.state.len() > STATE_VECTOR_BYTES_MAX {
            let text = format!("a state vector of {} bytes; at most {STATE_VECTOR_BYTES_MAX}", open.state.len());
            return refusal(RejectCode::ParameterInvalid, text);
        }
        if open.form == DocumentForm::Operations && !open.state.is_empty() {
            let text = "a reader of operations has no state vector; leave it empty";
            return refusal(RejectCode::ParameterInvalid, text.to_owned());
        }
        self.admit_request(origin.link)?;
        open.make &= principal.may(Access::Write, open.document.as_str());
        let document = ChannelKey { tenant: principal.tenant.clone(), channel: open.document.clone() };
        let fan = self.fan_of(&document);
        let reader = Some(Box::new(DocumentReader::new(open.form, self.now.mono_us)));
        self.add_reader(Reader { document: reader, ..Reader::new(origin.link, number, fan, lead) });
        let partition = self.partition(&document.tenant, document.channel.as_str());
        let open = Box::new(open);
        self.tell_owner(partition, OwnerMessage::OpenDocument { origin, principal, document, open, fan });
        Ok(())
    }

    /// The owner answered.
    pub(crate) fn document_opened(
        &mut self,
        link: Link,
        request: Request,
        document: ChannelKey,
        fan: FanId,
        result: Result<Opening, Reject>,
    ) {
        self.settle(link);
        if result.is_ok() && !self.fans.fans.contains_key(&fan) {
            // The document was deleted, and made again by this very request: nobody here reads the new one.
            let core = self.config.core;
            let partition = self.partition(&document.tenant, document.channel.as_str());
            self.tell_owner(partition, OwnerMessage::Detach { core, channel: document, fan });
        }
        let index = self.sessions.get(link).and_then(|session| session.subscriptions.get(&request.0).copied());
        let Some(index) = index else {
            let text = "the document was left before it was open: by its client, or because it was deleted";
            let reject = Reject::new(RejectCode::SubscriptionInvalid, text);
            return self.reply(link, request, ServerOp::Reject(reject));
        };
        match result {
            Ok(opening) => {
                let Opening { id, revision, state, vector, access, made, awareness } = opening;
                let bytes = state.len() as u64;
                self.begin_document(index, revision, state, awareness);
                let opened = DocumentNews::Opened { id, revision, bytes, access, made, vector };
                self.reply(link, request, ServerOp::Document(opened));
                self.fans.set_ready(index);
            }
            Err(reject) => {
                self.drop_subscription(link, Subscription(request.0));
                self.reply(link, request, ServerOp::Reject(reject));
            }
        }
    }

    fn begin_document(&mut self, index: SubscriptionIndex, revision: Position, bytes: Bytes, awareness: Option<Bytes>) {
        let Fans { fans, readers, .. } = &mut self.fans;
        let Some(reader) = readers.get_mut(index).and_then(Option::as_mut) else { return };
        let Some(fan) = fans.get_mut(&reader.fan) else { return };
        // The first answer says where the tail begins; later ones come in order with the messages and agree with it.
        fan.head.get_or_insert(revision);
        let shared = fan.document.get_or_insert_default();
        if let Some(update) = awareness.filter(|_| shared.picture.is_empty()) {
            shared.picture.take(&update, None);
        }
        (reader.cursor, reader.state) = (revision.next(), State::Idle);
        if let Some(document) = reader.document.as_mut().filter(|_| !bytes.is_empty()) {
            document.state = Some(Parts { revision, bytes, offset: 0 });
        }
    }

    /// The owner gave what a reader lacks.
    pub(crate) fn document_caught_up(&mut self, reference: SubscriptionRef, result: Result<(Position, Bytes), Reject>) {
        let Some(reader) = self.fans.reader_mut(reference.index).filter(|reader| reader.life == reference.life) else {
            return;
        };
        match result {
            Ok((revision, bytes)) => {
                reader.cursor = revision.next();
                if let Some(document) = &mut reader.document {
                    document.state = Some(Parts { revision, bytes, offset: 0 });
                }
                self.counters.reader_catch_ups += 1;
                self.fans.set_ready(reference.index);
            }
            Err(reject) => self.history_failed(reference, reject),
        }
    }

    /// Whether a subscription is one of a document.
    pub(super) fn reads_document(&self, link: Link, number: Subscription) -> bool {
        let session = self.sessions.get(link);
        let index = session.and_then(|session| session.subscriptions.get(&number.0).copied());
        let reader = index.and_then(|index| self.fans.readers.get(index)?.as_ref());
        reader.is_some_and(|reader| reader.document.is_some())
    }

    /// A reader is gone.
    pub(super) fn leave_document(&mut self, reader: &Reader) {
        let Some(document) = &reader.document else { return };
        if let Some(session) = self.sessions.get_mut(reader.link) {
            session.documents -= 1;
        }
        if document.form == DocumentForm::Operations {
            self.leave_operations(reader);
        }
        if !document.shared {
            return;
        }
        // Of a document that is gone nobody needs to be told.
        if let Some(fan) = self.fans.fans.get(&reader.fan) {
            let (document, place, link) = (fan.key.clone(), (self.config.core, reader.fan), reader.link);
            let partition = self.partition(&document.tenant, document.channel.as_str());
            self.tell_owner(partition, OwnerMessage::Unaware { place, link, document });
        }
    }

    /// A reader who was told operations is gone. Its owner need not say what edits do to the text if it was the last here; that
    /// there is no reader at all, it is told anyway.
    fn leave_operations(&mut self, reader: &Reader) {
        let Fans { fans, readers, .. } = &self.fans;
        let Some(fan) = fans.get(&reader.fan) else { return };
        let others = fan.readers.iter().filter_map(|&index| readers.get(index)?.as_ref()?.document.as_ref());
        let forms: Vec<_> = others.map(|document| document.form).collect();
        if forms.is_empty() || forms.contains(&DocumentForm::Operations) {
            return;
        }
        let (core, document) = (self.config.core, fan.key.clone());
        let partition = self.partition(&document.tenant, document.channel.as_str());
        self.tell_owner(partition, OwnerMessage::UntellOperations { core, document });
    }

    /// Lets go of what all readers of a document have.
    pub(super) fn prune_document(&mut self, id: FanId) {
        let Fans { fans, readers, .. } = &mut self.fans;
        let Some(fan) = fans.get_mut(&id) else { return };
        let long = fan.document.as_ref().is_some_and(|document| fan.tail.len() >= document.prune_at);
        if !long {
            return;
        }
        let readers = fan.readers.iter().filter_map(|&index| readers.get(index)?.as_ref());
        let accepted = readers.filter(|reader| reader.state != State::Attaching);
        let needed = accepted.map(|reader| reader.cursor).min().unwrap_or(Position(u64::MAX));
        while fan.tail.front().is_some_and(|oldest| oldest.message.position < needed) {
            fan.drop_oldest();
        }
        if let Some(document) = &mut fan.document {
            document.merges.forget_before(needed);
            document.prune_at = (2 * fan.tail.len()).max(TAIL_PRUNED);
        }
    }

    /// Gives a ready reader of a document the next it is due.
    pub(super) fn step_document(&mut self, index: SubscriptionIndex) -> Option<Step> {
        let Fans { fans, readers, .. } = &mut self.fans;
        let reader = readers.get_mut(index)?.as_mut()?;
        let session = self.sessions.get(reader.link)?;
        let (link, number, own) = (reader.link, reader.number, session.principal.session);
        let fan = fans.get_mut(&reader.fan)?;
        let document = reader.document.as_mut()?;
        if session.queued >= SESSION_QUEUE_BYTES {
            document.behind = true;
            return Some(Step::Waits(State::OutOfRoom));
        }
        if let Some(payload) = document.next_part() {
            self.deliver_document(link, number, payload, false);
            return Some(Step::Delivered);
        }
        match next_of(reader, fan, own, &mut self.counters.reader_merges) {
            Next::Frame { payload, to, since_us } => {
                reader.cursor = to.next();
                reader.outstanding.push_back(to);
                if let Some(document) = reader.document.as_mut().filter(|_| fan.head <= Some(to)) {
                    document.behind = false;
                }
                self.counters.delivered += 1;
                self.sample(Stage::FanOut, since_us);
                self.deliver_document(link, number, payload, false);
                Some(Step::Delivered)
            }
            Next::Skip(to) => {
                reader.cursor = to.next();
                Some(Step::Skipped)
            }
            Next::Waits(state) => {
                let document = reader.document.as_mut()?;
                match state {
                    State::OutOfCredit => document.behind = true,
                    State::Idle => document.behind = false,
                    _ => {}
                }
                if state != State::Reading
                    && let Some(shared) = &mut fan.document
                    && let Some(payload) = shared.picture.next(&mut document.aware, link)
                {
                    self.counters.awareness_frames += 1;
                    self.deliver_document(link, number, payload, false);
                    return Some(Step::Delivered);
                }
                Some(Step::Waits(state))
            }
        }
    }

    /// Sends on the lane of a document.
    pub(super) fn deliver_document(&mut self, link: Link, subscription: Subscription, payload: Bytes, last: bool) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let bytes = payload.len() + FRAME_HEADER_BYTES;
        session.queued += bytes;
        self.counters.delivered_bytes += bytes as u64;
        self.output(Output::Document { link, subscription, payload, last });
    }

    /// A client says something of itself. Too often, or too much, that is dropped.
    pub(crate) fn share_awareness(&mut self, link: Link, subscription: Subscription, update: Bytes) {
        if self.try_share(link, subscription, update).is_none() {
            self.counters.awareness_dropped += 1;
        }
    }

    fn try_share(&mut self, link: Link, subscription: Subscription, update: Bytes) -> Option<()> {
        let now_us = self.now.mono_us;
        let session = self.sessions.get(link).filter(|_| update.len() <= AWARENESS_BYTES_MAX)?;
        let principal = Arc::clone(&session.principal);
        let index = *session.subscriptions.get(&subscription.0)?;
        let reader = self.fans.reader_mut(index).filter(|reader| reader.state != State::Attaching)?;
        let id = reader.fan;
        let document = reader.document.as_mut()?;
        if !document.may_share(now_us) {
            return None;
        }
        document.shared = true;
        let document = self.fans.fans.get(&id)?.key.clone();
        let partition = self.partition(&document.tenant, document.channel.as_str());
        let place = (self.config.core, id);
        self.tell_owner(partition, OwnerMessage::Aware { place, link, document, principal, update });
        Some(())
    }

    /// The owner tells what readers of a document say of themselves. They are told in turn, with fan-out.
    pub(crate) fn awareness_told(&mut self, id: FanId, update: &Bytes, but: Option<Link>) {
        let Fans { fans, readers, ready, .. } = &mut self.fans;
        let Some(fan) = fans.get_mut(&id) else { return };
        let Some(shared) = &mut fan.document else { return };
        shared.picture.take(update, but);
        for &index in &fan.readers {
            let Some(reader) = readers.get_mut(index).and_then(Option::as_mut) else { continue };
            // The others look by themselves when they are served.
            if matches!(reader.state, State::Idle | State::OutOfCredit) {
                reader.state = State::Ready;
                ready.push_back(index);
            }
        }
    }
}

impl DocumentReader {
    /// The next part of a document that is being sent.
    fn next_part(&mut self) -> Option<Bytes> {
        let Parts { revision, bytes, offset } = self.state.as_mut()?;
        let to = (*offset + DOCUMENT_PART_BYTES).min(bytes.len());
        let (part, total) = (bytes.slice(*offset..to), bytes.len() as u64);
        let news = DocumentNews::State { revision: *revision, offset: *offset as u64, total, bytes: part };
        *offset = to;
        if to == bytes.len() {
            self.state = None;
        }
        Some(ServerOp::Document(news).encode())
    }
}

/// What a reader is due of a document's edits.
fn next_of(reader: &Reader, fan: &mut Fan, own: SessionId, merges: &mut u64) -> Next {
    let Some(document) = &reader.document else { return Next::Waits(State::Idle) };
    let Some(head) = fan.head.filter(|head| reader.cursor <= *head) else { return Next::Waits(State::Idle) };
    let has_credit = reader.outstanding.len() < reader.lead as usize;
    let Some(place) = fan.place_of(reader.cursor) else {
        // One who does not say that it takes anything is not given all of the document each time somebody wakes it.
        return Next::Waits(if has_credit { State::Reading } else { State::OutOfCredit });
    };
    let entry = &mut fan.tail[place];
    let (to, since_us, is_own) = (entry.message.position, entry.since_us, entry.message.session == own);
    let skipped = match entry.message.kind {
        // A copy has what its own session sent as updates, and nothing of what it commanded.
        DeliveryKind::Update => {
            is_own && document.form == DocumentForm::Updates && entry.message.sequence == Sequence(0)
        }
        DeliveryKind::Version => false,
        _ => true,
    };
    if skipped {
        return Next::Skip(to);
    }
    if !has_credit {
        return Next::Waits(State::OutOfCredit);
    }
    let frame = |payload| Next::Frame { payload, to, since_us };
    if entry.message.kind == DeliveryKind::Version {
        return frame(entry.message.payload.clone());
    }
    if is_own && document.form == DocumentForm::Operations && merging::is_positional(entry) {
        return frame(merging::own_frame(&entry.message));
    }
    if document.behind && to < head {
        let (tail, shared) = (&fan.tail, fan.document.get_or_insert_default());
        if let Some((payload, to)) = shared.merges.merged(tail, place, document.form, own, merges) {
            return Next::Frame { payload, to, since_us };
        }
    }
    let entry = &mut fan.tail[place];
    match document.form {
        DocumentForm::Updates => frame(entry.message.payload.clone()),
        DocumentForm::Operations => match merging::operations_frame(entry) {
            Some(payload) => frame(payload),
            // What it does to the text is not known: then its reader gets the text.
            None => Next::Waits(State::Reading),
        },
    }
}
