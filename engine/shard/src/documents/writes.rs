//! Edits of the documents this core owns.
//!
//! Updates may be repeated at will: one that changes nothing is acknowledged and leaves no trace. So they are not remembered,
//! and those of one turn, whoever made them, become one message. Whatever else is done to a document is done once: it goes
//! through the window of its writer, and is a message of its own.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::dedupe::{Outcome, Verdict, Writer};
use thalweg_domain::document::{Document, EMPTY_UPDATE, merge};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::{Event, Message, Posting};
use thalweg_protocol::chat::{Context, PostKind};
use thalweg_protocol::document::{DocumentAccess, Operations, Side};
use thalweg_protocol::ids::{ChannelId, ChannelKey, GenerationId, Name, Partition, Position, Sequence, SessionId};
use thalweg_protocol::limits::{DOCUMENT_UPDATE_BYTES_MAX, VERSION_BYTES_MAX};
use thalweg_protocol::op::{Delivery, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::past::PastPurpose;
use super::{Waiting, no_document, no_revision};
use crate::contract::Origin;
use crate::owner::{Action, unknown};
use crate::shard::Shard;

/// Gathered updates become a message before they have more bytes than this.
const GATHERED_BYTES: usize = DOCUMENT_UPDATE_BYTES_MAX;

/// Updates that came over a turn and were applied, and those who wait for their message.
#[derive(Default)]
pub(super) struct Gathered {
    updates: Vec<Bytes>,
    bytes: usize,
    operations: Option<Operations>,
    /// The only one who wrote, or `None` if there were several.
    session: Option<SessionId>,
    user: Option<Name>,
    writers: Vec<(Origin, u64)>,
    /// Those whose updates changed nothing, perhaps because of what was gathered.
    repeated: Vec<Origin>,
}

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }

    fn push(&mut self, principal: &Principal, origin: Origin, since_us: u64, update: Bytes) {
        self.session = match (self.is_empty(), self.session) {
            (true, _) => Some(principal.session),
            (false, session) => session.filter(|session| *session == principal.session),
        };
        self.user = Some(principal.user.clone());
        self.bytes += update.len();
        self.updates.push(update);
        self.writers.push((origin, since_us));
    }
}

/// What is added to a document, and by whom.
struct Edit {
    kind: DeliveryKind,
    body: Bytes,
    user: Name,
    session: SessionId,
    sequence: Sequence,
    generation: Option<GenerationId>,
    target: Position,
}

/// Whether a write is one of those that documents take.
pub(crate) fn is_edit(kind: PostKind) -> bool {
    matches!(kind, PostKind::Update | PostKind::Operations | PostKind::Version | PostKind::Restore)
}

fn may_only(document: &Name, access: DocumentAccess) -> Reject {
    let text = format!("you may {} {document} and not change it so; that takes write:{document}", access.as_str());
    Reject::new(RejectCode::Forbidden, text)
}

impl Shard {
    /// Somebody edits a document of this core.
    pub(crate) fn publish_edit(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        publish: Publish,
        limited: Option<Box<Reject>>,
    ) -> Result<(), Reject> {
        let document = ChannelKey { tenant: principal.tenant.clone(), channel: publish.channel.clone() };
        let partition = self.partition(&document.tenant, document.channel.as_str());
        if publish.post.kind != PostKind::Update && self.answer_repeated(origin, principal, partition, &publish)? {
            return Ok(());
        }
        match self.existing_channel(&document)? {
            Some(channel) if channel.is_document() => {}
            Some(_) => return Err(no_document(&document.channel)),
            None if publish.make && principal.may(Access::Write, document.channel.as_str()) => {
                if let Some(reject) = limited {
                    return Err(*reject);
                }
                self.make_document(principal, &document)?;
            }
            None => return Err(unknown(&document)),
        }
        let (principal, publish) = (Arc::clone(principal), Box::new(publish));
        self.with_document(&document, Waiting::Publish { origin, principal, publish, limited });
        Ok(())
    }

    /// Answers a command that was carried out; whether it was.
    fn answer_repeated(
        &mut self,
        origin: Origin,
        principal: &Principal,
        partition: Partition,
        publish: &Publish,
    ) -> Result<bool, Reject> {
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        let verdict = self.check_repeated(partition, &writer, publish.sequence, publish.retry)?;
        let Verdict::Repeated(Outcome { position, timestamp_us }) = verdict else { return Ok(false) };
        self.counters.duplicates += 1;
        let op = ServerOp::Published { position, timestamp_us, duplicate: true };
        self.after_appends(Action::Answer { origin, op });
        Ok(true)
    }

    /// Edits a document that is in memory.
    pub(super) fn edit_ready_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: Publish,
        limited: Option<Box<Reject>>,
    ) {
        let edited = match publish.post.kind {
            PostKind::Update => self.take_update(origin, principal, document, publish, limited),
            _ => self.command_document(origin, principal, document, publish, limited),
        };
        let is_broken = self.documents.ready(document).is_some_and(|ready| ready.document.is_poisoned());
        if let Err(reject) = edited {
            self.counters.updates_refused += 1;
            self.refuse(origin, reject);
        }
        if is_broken {
            self.document_poisoned(document);
        }
    }

    fn access(&mut self, principal: &Principal, document: &ChannelKey) -> Result<DocumentAccess, Reject> {
        let channel = self.existing_channel(document)?.ok_or_else(|| unknown(document))?;
        channel.roster().document_access(principal, &document.channel)
    }

    /// Refuses what is new while the node takes nothing.
    fn takes_edits(&self, limited: Option<Box<Reject>>) -> Result<(), Reject> {
        if let Some(reject) = limited {
            return Err(*reject);
        }
        self.not_draining()?;
        self.storage_has_room()?;
        self.writes_are_served()
    }

    fn take_update(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: Publish,
        limited: Option<Box<Reject>>,
    ) -> Result<(), Reject> {
        let access = self.access(principal, document)?;
        if access == DocumentAccess::Read {
            return Err(may_only(&document.channel, access));
        }
        let update = publish.body;
        let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
        let checked = ready.document.check(&update)?;
        if !checked.is_news {
            self.answer_unchanged(origin, document);
            return Ok(());
        }
        self.takes_edits(limited)?;
        // Who ends a line may have asked a model for something, which is seen by what the edit does to the text.
        let may_ask = checked.ends_line && access == DocumentAccess::Write && self.may_ask_any(principal);
        let (since_us, room) = (self.now.mono_us, GATHERED_BYTES.saturating_sub(update.len()));
        if self.documents.ready(document).is_some_and(|ready| ready.gathered.bytes > room) {
            self.flush_document(document);
        }
        let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
        let keeps_deltas = ready.deltas.is_some();
        ready.document.watch(keeps_deltas || may_ask);
        let applied = ready.document.apply(checked, &update, access)?;
        if !applied.changed {
            self.answer_unchanged(origin, document);
            return Ok(());
        }
        let is_first = ready.gathered.is_empty();
        ready.gathered.push(principal, origin, since_us, applied.instead.unwrap_or(update));
        if let Some(operations) = applied.operations.as_ref().filter(|_| keeps_deltas) {
            ready.gathered.operations = Some(match ready.gathered.operations.take() {
                Some(before) => before.compose(operations),
                None => operations.clone(),
            });
        }
        self.counters.updates += 1;
        if is_first {
            self.documents.gathered.push(document.clone());
        }
        if let Some(operations) = applied.operations.filter(|_| may_ask) {
            self.text_edited(document, principal, &operations, origin.trace);
        }
        Ok(())
    }

    /// Answers an update that changed nothing, once what it may be a repetition of is durable.
    fn answer_unchanged(&mut self, origin: Origin, document: &ChannelKey) {
        if let Some(ready) = self.documents.ready(document).filter(|ready| !ready.gathered.is_empty()) {
            ready.gathered.repeated.push(origin);
            return;
        }
        let Some(channel) = self.channel_mut(document) else { return self.refuse(origin, unknown(document)) };
        let (position, timestamp_us) = (channel.decided(), channel.active_us());
        let op = ServerOp::Published { position, timestamp_us, duplicate: true };
        self.after_appends(Action::Answer { origin, op });
    }

    /// Makes what was gathered for a document a message.
    pub(crate) fn flush_document(&mut self, document: &ChannelKey) {
        let Some(ready) = self.documents.ready(document).filter(|ready| !ready.gathered.is_empty()) else { return };
        let gathered = std::mem::take(&mut ready.gathered);
        let Gathered { updates, operations, session, user, writers, repeated, .. } = gathered;
        let user = user.expect("who gathers an update says whose it is");
        self.counters.updates_merged += updates.len() as u64 - 1;
        // What cannot be merged, though it was applied, is kept one by one; and so is what is longer merged than apart, for
        // numbers that are written anew may take more room.
        let merged = merge(&updates).ok().filter(|merged| merged.len() <= DOCUMENT_UPDATE_BYTES_MAX);
        let bodies = merged.map_or(updates, |merged| vec![merged]);
        let whole = bodies.len() == 1;
        let mut actions = Vec::new();
        let last = bodies.len() - 1;
        for (at, body) in bodies.into_iter().enumerate() {
            let edit = Edit {
                kind: DeliveryKind::Update,
                body,
                user: user.clone(),
                session: session.unwrap_or(SessionId(0)),
                sequence: Sequence(0),
                generation: None,
                target: Position(0),
            };
            let Some((posting, position, timestamp_us)) = self.decide_edit(document, edit) else { return };
            if at == last {
                let published = |duplicate| ServerOp::Published { position, timestamp_us, duplicate };
                let write = |&(origin, since_us)| Action::AnswerWrite { origin, op: published(false), since_us };
                actions.extend(writers.iter().map(write));
                actions.extend(repeated.iter().map(|&origin| Action::Answer { origin, op: published(true) }));
            }
            let operations = if whole || at == last { operations.clone() } else { None };
            self.append_edit(document, posting, (operations, false), std::mem::take(&mut actions));
        }
        self.write_snapshot_if_due(document);
    }

    /// Gives an edit its place.
    fn decide_edit(&mut self, document: &ChannelKey, edit: Edit) -> Option<(Posting, Position, u64)> {
        let now_us = self.now.wall_us;
        let channel = self.channel_mut(document)?;
        let id = channel.id();
        let (position, timestamp_us) = (channel.decide_position(), channel.decide_timestamp(now_us));
        let Edit { kind, body, user, session, sequence, generation, target } = edit;
        let context = Context { target, number: channel.messages(), ..Context::default() };
        let delivery = Delivery { position, timestamp_us, kind, user, generation, body, key: 0, context };
        let message = Arc::new(Message::new(delivery, session, sequence));
        Some((Posting { channel: document.clone(), id, message }, position, timestamp_us))
    }

    /// Notes an edit that was given its place, what it did to the text, and whether it was made of operations.
    fn note_edit(
        &mut self,
        document: &ChannelKey,
        message: &Message,
        (operations, is_positional): (Option<Operations>, bool),
    ) {
        self.writers_look_around(document, message.generation);
        let applied = self.channel_mut(document).map_or(Position(0), |channel| channel.head());
        let Some(ready) = self.documents.ready(document) else { return };
        ready.age.add(message);
        if let Some(deltas) = &mut ready.deltas {
            deltas.push(message.position, operations.unwrap_or_default(), is_positional, applied);
        }
    }

    fn append_edit(
        &mut self,
        document: &ChannelKey,
        posting: Posting,
        did: (Option<Operations>, bool),
        actions: Vec<Action>,
    ) {
        self.counters.published += 1;
        self.note_edit(document, &posting.message, did);
        let partition = self.partition(&document.tenant, document.channel.as_str());
        self.append(partition, Event::Published(posting), actions);
    }

    /// Does something to a document that is to be done once.
    fn command_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: Publish,
        limited: Option<Box<Reject>>,
    ) -> Result<(), Reject> {
        let partition = self.partition(&document.tenant, document.channel.as_str());
        // It may have been carried out while it waited for the document.
        if self.answer_repeated(origin, principal, partition, &publish)? {
            return Ok(());
        }
        self.takes_edits(limited)?;
        let access = self.access(principal, document)?;
        if access != DocumentAccess::Write {
            return Err(may_only(&document.channel, access));
        }
        self.flush_document(document);
        let newest = self.decided_revision(document);
        if publish.post.target > newest {
            return Err(no_revision(&document.channel, publish.post.target, newest));
        }
        match publish.post.kind {
            PostKind::Operations => self.take_operations(origin, principal, document, &publish),
            PostKind::Version => self.name_version(origin, principal, document, &publish),
            _ => {
                let revision = publish.post.target;
                if revision == Position(0) {
                    return Err(no_revision(&document.channel, revision, newest));
                }
                let id = self.existing_channel(document)?.ok_or_else(|| unknown(document))?.id();
                let (principal, publish) = (Arc::clone(principal), Box::new(publish));
                self.begin_past(document, id, revision, PastPurpose::Restore { origin, principal, publish })
            }
        }
    }

    fn take_operations(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: &Publish,
    ) -> Result<(), Reject> {
        let mut operations = Operations::decode(&publish.body)?;
        let (made_at, newest) = (publish.post.target, self.decided_revision(document));
        let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
        let deltas = ready.keep_deltas(newest);
        let Some(since) = deltas.since(made_at) else {
            let oldest = deltas.after;
            let text = format!(
                "operations made at revision {made_at} of {} cannot be carried out any more, the oldest is {oldest}; read the text again",
                document.channel
            );
            return Err(Reject::new(RejectCode::RevisionUnknown, text));
        };
        for earlier in since {
            // Of two that insert at the same place, the one that was accepted earlier stands first.
            operations = operations.transform(earlier, Side::Second);
        }
        let update = ready.document.edit(&operations)?;
        self.counters.updates += 1;
        self.append_command(origin, principal, document, publish, update, Some(operations.clone()))?;
        if self.may_ask_any(principal) {
            self.text_edited(document, principal, &operations, origin.trace);
        }
        Ok(())
    }

    fn name_version(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: &Publish,
    ) -> Result<(), Reject> {
        let is_name = |name: &str| !name.trim().is_empty() && !name.contains(char::is_control);
        let name = std::str::from_utf8(&publish.body).ok().filter(|name| is_name(name));
        if name.is_none_or(|name| name.len() > VERSION_BYTES_MAX) {
            let text = format!("the name of a version is 1 to {VERSION_BYTES_MAX} bytes of text on one line");
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        }
        self.append_command(origin, principal, document, publish, publish.body.clone(), None)
    }

    /// Makes a document what it was, as an edit of its own.
    pub(super) fn restore_ready_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: Publish,
        old: &Document,
    ) {
        if let Err(reject) = self.try_restore(origin, principal, document, &publish, old) {
            self.counters.updates_refused += 1;
            self.refuse(origin, reject);
        }
        if self.documents.ready(document).is_some_and(|ready| ready.document.is_poisoned()) {
            self.document_poisoned(document);
        }
    }

    fn try_restore(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: &Publish,
        old: &Document,
    ) -> Result<(), Reject> {
        self.takes_edits(None)?;
        let access = self.access(principal, document)?;
        if access != DocumentAccess::Write {
            return Err(may_only(&document.channel, access));
        }
        self.flush_document(document);
        let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
        let before = ready.deltas.is_some().then(|| ready.document.text());
        let update = ready.document.restore(old)?.unwrap_or(Bytes::from_static(EMPTY_UPDATE));
        let operations = before.map(|before| Operations::between(&before, &ready.document.text()));
        self.counters.updates += 1;
        self.append_command(origin, principal, document, publish, update, operations)
    }

    /// Records what somebody did to a document, so that it is known if it is repeated.
    fn append_command(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        publish: &Publish,
        body: Bytes,
        operations: Option<Operations>,
    ) -> Result<(), Reject> {
        let is_version = publish.post.kind == PostKind::Version;
        let newest = self.decided_revision(document);
        let target = match (is_version, publish.post.target) {
            (true, Position(0)) => newest,
            (true, target) => target,
            (false, _) => Position(0),
        };
        let edit = Edit {
            kind: if is_version { DeliveryKind::Version } else { DeliveryKind::Update },
            body,
            user: principal.user.clone(),
            session: principal.session,
            sequence: publish.sequence,
            generation: None,
            target,
        };
        let decided = self.decide_edit(document, edit);
        let (posting, position, timestamp_us) = decided.ok_or_else(|| unknown(document))?;
        let writer = Writer { tenant: principal.tenant.clone(), session: principal.session };
        self.remember(writer, publish.sequence, Outcome { position, timestamp_us }, &document.channel);
        let op = ServerOp::Published { position, timestamp_us, duplicate: false };
        let actions = vec![Action::AnswerWrite { origin, op, since_us: self.now.mono_us }];
        let is_positional = publish.post.kind == PostKind::Operations;
        self.append_edit(document, posting, (operations, is_positional), actions);
        self.write_snapshot_if_due(document);
        Ok(())
    }

    /// A model edits a document that is in memory. Gives what is to be appended with the generation's own event; `None` if
    /// the document is not in memory now.
    ///
    /// # Errors
    /// What [`Document`] says of the edit.
    pub(super) fn model_edits(
        &mut self,
        document: &ChannelKey,
        id: ChannelId,
        generation: GenerationId,
        user: Name,
        edit: impl FnOnce(&mut Document) -> Result<(Bytes, Operations), Reject>,
    ) -> Result<Option<Posting>, Reject> {
        self.flush_document(document);
        if self.channel_id(document).is_none_or(|(now, _)| now != id) {
            return Err(crate::owner::deleted(document));
        }
        let Some(ready) = self.documents.ready(document) else { return Ok(None) };
        let edited = edit(&mut ready.document);
        let is_broken = ready.document.is_poisoned();
        if is_broken {
            self.document_poisoned(document);
        }
        let (body, operations) = edited?;
        self.counters.updates += 1;
        let edit = Edit {
            kind: DeliveryKind::Update,
            body,
            user,
            session: SessionId(0),
            sequence: Sequence(0),
            generation: Some(generation),
            target: Position(0),
        };
        let Some((posting, ..)) = self.decide_edit(document, edit) else { return Ok(None) };
        self.note_edit(document, &posting.message, (Some(operations), false));
        Ok(Some(posting))
    }
}
