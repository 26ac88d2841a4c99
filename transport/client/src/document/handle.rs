//! A document that is open, as the application has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use thalweg_protocol::document::{AskInDocument, AwarenessUpdate, DocumentAccess, Operations, Place};
use thalweg_protocol::ids::{GenerationId, Name, Position};
use thalweg_protocol::op::{Delivery, DeliveryKind};
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::sync::watch;
use yrs::updates::encoder::Encode as _;
use yrs::{Doc, TransactionMut};

use super::awareness::{Other, Others, Own, colour};
use super::outbox::{Acknowledgement, Outbox, Progress};
use super::replica::{Applied, Edited, Replica};
use super::{DocumentEvent, Heard, Line, ModelEdit, TextChange};
use crate::client::Client;
use crate::error::ClientError;
use crate::state::documents::Opened;

/// Own edits within this time are taken back together.
const TOGETHER: Duration = Duration::from_millis(500);
/// How often it is looked whether somebody was not heard of for long.
const LOOK: Duration = Duration::from_secs(5);

/// A document that is open: a Yjs document of one's own, which is kept like the node's.
///
/// Edits are made on it at once, and sent behind: what was made while others are unanswered is sent as one, and what was
/// made while the node is away when it is back. What others did is taken in by [`next`](Self::next) alone.
/// Dropping it closes it; own edits that wait are still sent, as long as the [`Client`] lives.
#[derive(Debug)]
pub struct Document {
    name: Name,
    line: Line,
    replica: Replica,
    /// What is being read in its place, because the node did not take an edit.
    anew: Option<Replica>,
    outbox: Arc<Outbox>,
    progress: watch::Receiver<Progress>,
    others: Others,
    own: Own,
    shown: (String, String),
    revision: Position,
    access: DocumentAccess,
    made: bool,
    events: VecDeque<DocumentEvent>,
    /// Own edits that were known to be durable when that was last told.
    told: u64,
    edited: Option<Instant>,
    looked: Instant,
    over: bool,
}

/// A Yjs client id like those of browsers, which nobody else has.
fn client_id() -> u64 {
    u64::from(rand::random::<u32>().max(1))
}

impl Document {
    pub(super) async fn over(
        name: Name,
        line: Line,
        opened: Opened,
        shown: Option<(String, String)>,
    ) -> Result<Self, ClientError> {
        let replica = Replica::new(client_id());
        let outbox = Outbox::start(line.client.clone(), name.clone(), replica.doc().clone());
        let shown = shown.unwrap_or_else(|| {
            let user = line.client.welcome().user.to_string();
            (user.clone(), colour(&user))
        });
        let mut document = Self {
            name,
            replica,
            anew: None,
            progress: outbox.progress(),
            outbox,
            others: Others::default(),
            own: Own::new(),
            shown,
            revision: opened.revision,
            access: opened.access,
            made: opened.made,
            events: VecDeque::new(),
            told: 0,
            edited: None,
            looked: Instant::now(),
            over: false,
            line,
        };
        while !document.line.is_read() {
            let heard = document.line.next(true).await?.ok_or_else(|| document.line.end())?;
            document.take(heard)?;
        }
        // What was there is no change.
        document.events.clear();
        Ok(document)
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The session it is open in.
    pub fn client(&self) -> &Client {
        &self.line.client
    }

    /// Whether opening it made it.
    pub fn made(&self) -> bool {
        self.made
    }

    /// What may be done to it.
    pub fn access(&self) -> DocumentAccess {
        self.access
    }

    /// The newest revision that was taken in, or of an own edit that is durable.
    pub fn revision(&self) -> Position {
        self.revision
    }

    /// Whether the node is there.
    pub fn is_online(&self) -> bool {
        self.line.is_online()
    }

    /// The text of its root [`ROOT`](thalweg_protocol::document::ROOT), with own edits. What is in it that is no text is one
    /// `U+FFFC` each.
    pub fn text(&self) -> String {
        self.replica.text()
    }

    /// How long the text is, in UTF-16 code units.
    pub fn length(&self) -> u32 {
        self.replica.length()
    }

    /// The Yjs document, to read whatever it has. Change it with [`transact`](Self::transact) alone: of other changes nobody
    /// is told. It is another one after [`DocumentEvent::Refused`].
    pub fn doc(&self) -> &Doc {
        self.replica.doc()
    }

    /// The Yjs client id of own edits.
    pub fn client_id(&self) -> u64 {
        self.replica.client()
    }

    /// How many own edits are not known to be durable.
    pub fn unacknowledged(&self) -> u64 {
        self.outbox.unacknowledged()
    }

    fn may(&self) -> Result<(), ClientError> {
        if self.access < DocumentAccess::Comment {
            let text = format!("you may read {}, not change it; ask for the permission write:{0}", self.name);
            return Err(ClientError::Refused(Reject::new(RejectCode::Forbidden, text)));
        }
        self.outbox.check()
    }

    fn may_write(&self) -> Result<(), ClientError> {
        if self.access == DocumentAccess::Comment {
            let text = format!("you may comment in {}, not change its text", self.name);
            return Err(ClientError::Refused(Reject::new(RejectCode::Forbidden, text)));
        }
        self.may()
    }

    fn send(&mut self, edited: Edited) -> Acknowledgement {
        self.outbox.put(edited.updates)
    }

    /// Own edits that follow each other closely are taken back together.
    fn group(&mut self) {
        let now = Instant::now();
        if self.edited.is_none_or(|last| now.duration_since(last) > TOGETHER) {
            self.replica.separate();
        }
        self.edited = Some(now);
    }

    /// Puts a text in at an offset.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn insert(&mut self, offset: u32, text: &str) -> Result<Acknowledgement, ClientError> {
        self.edit(&Operations::new().retain(offset).insert(text))
    }

    /// Takes so much out from an offset on.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn delete(&mut self, offset: u32, length: u32) -> Result<Acknowledgement, ClientError> {
        self.edit(&Operations::new().retain(offset).delete(length))
    }

    /// Edits the text. Long insertions become several updates.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it may not be written, the operations reach beyond the text or cut a character in two, or
    /// too much waits for the node.
    pub fn edit(&mut self, operations: &Operations) -> Result<Acknowledgement, ClientError> {
        self.may_write()?;
        let length = self.replica.length();
        if operations.reach() > u64::from(length) {
            let text = format!("an edit reaches {} code units far, and the text has {length}", operations.reach());
            return Err(ClientError::Refused(Reject::new(RejectCode::OperationsInvalid, text)));
        }
        if self.replica.has_pairs() {
            operations.apply(&self.replica.text()).map_err(ClientError::Refused)?;
        }
        self.group();
        let edited = self.replica.edit(operations);
        Ok(self.send(edited))
    }

    /// Makes the text this one, by the smallest edit that replaces one stretch of it.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn set_text(&mut self, text: &str) -> Result<Acknowledgement, ClientError> {
        let operations = Operations::between(&self.replica.text(), text);
        self.edit(&operations)
    }

    /// Does anything to the document, of whatever type its roots are, as one own edit.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if nothing may be changed, or too much waits for the node. What only may be commented refuses
    /// changes outside of the root `comments` later ([`DocumentEvent::Refused`]).
    pub fn transact<T>(
        &mut self,
        change: impl FnOnce(&mut TransactionMut<'_>) -> T,
    ) -> Result<(T, Acknowledgement), ClientError> {
        self.may()?;
        self.group();
        let (result, edited) = self.replica.transact(change);
        Ok((result, self.send(edited)))
    }

    /// What is edited next is not taken back together with what was edited before.
    pub fn separate(&mut self) {
        self.replica.separate();
    }

    /// Whether there is an own edit to take back.
    pub fn can_undo(&self) -> bool {
        self.replica.can_undo()
    }

    /// Whether there is an own edit to do again.
    pub fn can_redo(&self) -> bool {
        self.replica.can_redo()
    }

    /// The model's edit that [`undo`](Self::undo) would take back next, if it is one that was [adopted](Self::adopt).
    pub fn undoes_generation(&self) -> Option<GenerationId> {
        self.replica.undoes_generation()
    }

    /// Takes the last own edit back; those of others stay. Gives what that did to the text; `None` if there is none, or if it
    /// is one of a model ([`undoes_generation`](Self::undoes_generation)) that was not all [seen](Self::has_seen) here: that
    /// one is for [`undo_generation`](Self::undo_generation).
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn undo(&mut self) -> Result<Option<Operations>, ClientError> {
        self.may()?;
        let edited = self.replica.undo();
        Ok(self.sent(edited))
    }

    /// Does the own edit again that was taken back last. Gives what that did to the text; `None` if there is none.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn redo(&mut self) -> Result<Option<Operations>, ClientError> {
        self.may()?;
        let edited = self.replica.redo();
        Ok(self.sent(edited))
    }

    fn sent(&mut self, edited: Option<Edited>) -> Option<Operations> {
        let edited = edited?;
        drop(self.outbox.put(edited.updates));
        Some(edited.operations)
    }

    /// What a model writes under this id, which was [asked](Self::ask_at) to, is taken back as if it were one own edit.
    pub fn adopt(&mut self, generation: GenerationId) {
        self.replica.adopt(generation);
    }

    /// Whether all that this model has written was seen here: since it was [asked](Self::ask_at) here, nothing came that does
    /// not say who wrote it, or it was [learnt](Self::learn).
    pub fn has_seen(&self, generation: GenerationId) -> bool {
        self.replica.knows(generation)
    }

    /// A revision before this model began to write, from which on the node is to be [asked](Client::model_edit) about it; 0 if
    /// it was not asked here.
    pub fn revision_before(&self, generation: GenerationId) -> Position {
        self.replica.before(generation)
    }

    /// Takes in what the node knows of a model's edit.
    pub fn learn(&mut self, edit: ModelEdit) {
        self.replica.learn(edit.generation, edit.insertions, edit.deletions);
    }

    /// Takes back what a model wrote and is [seen](Self::has_seen), whoever asked it, and puts back what it took out; what
    /// still comes of it is taken back as it comes. Gives what that did to the text; `None` if there is nothing of it left, or
    /// it was not all seen.
    ///
    /// # Errors
    /// As [`edit`](Self::edit).
    pub fn undo_seen(&mut self, generation: GenerationId) -> Result<Option<Operations>, ClientError> {
        self.may_write()?;
        let edited = self.replica.undo_generation(generation);
        Ok(self.sent(edited))
    }

    /// The same of any model's edit: if it was not all seen here, the node is asked.
    ///
    /// # Errors
    /// As [`edit`](Self::edit); those of [`Client::model_edit`].
    pub async fn undo_generation(&mut self, generation: GenerationId) -> Result<Option<Operations>, ClientError> {
        self.may_write()?;
        if !self.has_seen(generation) {
            let after = self.revision_before(generation);
            let edit = self.line.client.model_edit(&self.name, generation, after).await?;
            self.learn(edit);
        }
        self.undo_seen(generation)
    }

    /// Waits until everything that was edited up to now is durable. Does not take in what others did.
    ///
    /// # Errors
    /// As [`Acknowledgement`].
    pub async fn flush(&self) -> Result<Position, ClientError> {
        self.acknowledgement().await
    }

    /// Resolves when everything that was edited up to now is durable.
    pub fn acknowledgement(&self) -> Acknowledgement {
        self.outbox.put(Vec::new())
    }

    /// Others who are in the document.
    pub fn others(&self) -> Vec<Other> {
        self.others.list(&self.replica)
    }

    /// Says where the selection begins and where the cursor is; `None`: nowhere. Others are told soon, by
    /// [`next`](Self::next).
    pub fn set_cursor(&mut self, cursor: Option<(u32, u32)>) {
        if self.own.state().is_none() {
            let (name, colour) = &self.shown;
            self.own
                .set(Some(json!({ "user": { "name": name, "color": colour, "colorLight": format!("{colour}33") } })));
        }
        let anchors = cursor.map(|(from, to)| (self.replica.anchor(from), self.replica.anchor(to)));
        self.own.set_cursor(anchors);
    }

    /// Says this of oneself, in place of everything said before; `None`: that one is not there.
    pub fn set_awareness(&mut self, state: Option<Value>) {
        self.own.set(state);
    }

    /// A request that a model write between two offsets of the text as it is now, for
    /// [`Client::ask_in_document`]; others' edits move the place. The node has to have the text there: ask when
    /// [`acknowledgement`](Self::acknowledgement) resolved. [`adopt`](Self::adopt) what comes of it.
    pub fn ask_at(&mut self, from: u32, to: u32, instruction: impl Into<String>) -> AskInDocument {
        self.replica.asks(self.revision);
        let anchor = |offset: u32| Bytes::from(self.replica.anchor(offset).encode_v1());
        let place = match self.replica.length() {
            // There is nothing to hold on to.
            0 => Place::Offsets { revision: Position(0), start: 0, end: 0 },
            _ => Place::Anchors { start: anchor(from), end: anchor(to) },
        };
        AskInDocument {
            document: self.name.clone(),
            instruction: instruction.into(),
            model: None,
            place,
            max_tokens: 0,
            temperature: 0.0,
            seed: None,
        }
    }

    /// Takes in what comes next: what others did to the document, who they are, how own edits stand. `None` once the client
    /// was closed, or after an error. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Ended`] if the node ended it, for instance because the document was deleted; [`ClientError::Lost`] if the
    /// connection did not come back in time; [`ClientError::Refused`] if the document could not be opened again.
    pub async fn next(&mut self) -> Result<Option<DocumentEvent>, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
            let due = self.own.due(Instant::now()).filter(|_| self.line.is_online());
            let due = due.unwrap_or(self.looked + LOOK).min(self.looked + LOOK);
            tokio::select! {
                heard = self.line.next(true) => match heard.and_then(|heard| heard.map(|heard| self.take(heard)).transpose()) {
                    Ok(Some(())) => {}
                    Ok(None) => {
                        self.over = true;
                        return match self.line.end() {
                            ClientError::Closed => Ok(None),
                            error => Err(error),
                        };
                    }
                    Err(error) => {
                        self.over = true;
                        return Err(error);
                    }
                },
                Ok(()) = self.progress.changed() => self.progressed(),
                () = tokio::time::sleep_until(due.into()) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now >= self.looked + LOOK {
            self.looked = now;
            if self.others.expire(now) {
                self.events.push_back(DocumentEvent::Others);
            }
        }
        if self.line.is_online() && self.own.due(now).is_some_and(|due| due <= now) {
            let update = self.own.say(self.replica.client(), now);
            self.line.client.handle.with(|state| state.share_awareness(self.line.key, update));
        }
    }

    fn progressed(&mut self) {
        let progress = self.progress.borrow_and_update().clone();
        self.revision = self.revision.max(progress.revision);
        if let (Some(reject), None) = (progress.refused, &self.anew) {
            self.events.push_back(DocumentEvent::Refused { reject, text: self.replica.text() });
            self.anew = Some(Replica::new(client_id()));
            self.line.know(Bytes::new());
            self.line.reopen();
        } else if progress.acknowledged > self.told && self.outbox.unacknowledged() == 0 {
            self.told = progress.acknowledged;
            // What was read since the connection began may be less than the node has of ours now.
            self.line.know(self.replica.state_vector());
            self.events.push_back(DocumentEvent::Saved { revision: progress.revision });
        }
    }

    fn take(&mut self, heard: Heard) -> Result<(), ClientError> {
        match heard {
            Heard::Opened { opened, was_away } => self.opened(opened, was_away)?,
            Heard::State { revision, bytes } => {
                self.replica.missed();
                self.apply(&bytes, revision, None)?;
                self.renewed();
            }
            Heard::Delivery(delivery) => self.deliver(*delivery)?,
            Heard::Operations(_) => {
                return Err(ClientError::Protocol("operations came where updates were asked for".to_owned()));
            }
            Heard::Awareness(update) => {
                let update =
                    AwarenessUpdate::decode(&update).map_err(|reject| ClientError::Protocol(reject.to_string()))?;
                if self.others.take(update, self.replica.client(), Instant::now()) {
                    self.events.push_back(DocumentEvent::Others);
                }
            }
            Heard::Offline { reason } => {
                self.events.push_back(DocumentEvent::Offline { reason });
                if self.others.clear() {
                    self.events.push_back(DocumentEvent::Others);
                }
            }
        }
        Ok(())
    }

    /// It was opened again.
    fn opened(&mut self, opened: Opened, was_away: bool) -> Result<(), ClientError> {
        self.access = opened.access;
        self.own.refresh();
        if was_away {
            self.events.push_back(DocumentEvent::Online);
        }
        if self.anew.is_none() && self.may().is_ok() {
            // What waits is sent in any case. What was durable and is gone (a backup was put back) is sent again.
            let waits = self.outbox.unacknowledged() > 0 && opened.revision >= self.revision;
            if let Some(lacking) = self.replica.lacking(&opened.vector).filter(|_| !waits) {
                drop(self.outbox.put(vec![lacking]));
            }
        }
        if opened.bytes == 0 {
            self.renewed();
        }
        Ok(())
    }

    /// The state is complete; if it was read anew, it takes the place of what was there.
    fn renewed(&mut self) {
        let Some(anew) = self.anew.take() else { return };
        let operations = Operations::between(&self.replica.text(), &anew.text());
        let farewell = self.own.farewell(self.replica.client());
        self.replica = anew;
        self.outbox.clear(self.replica.doc().clone());
        self.progress = self.outbox.progress();
        self.told = self.progress.borrow().acknowledged;
        self.line.know(self.replica.state_vector());
        if let Some(update) = farewell {
            self.line.client.handle.with(|state| state.share_awareness(self.line.key, update));
        }
        let revision = self.revision;
        self.changed(TextChange { operations, revision, timestamp_us: 0, user: None, generation: None });
    }

    /// The text is another one. That is told before all else, so that offsets are those of the text that was told.
    fn changed(&mut self, change: TextChange) {
        self.events.push_front(DocumentEvent::Changed(change));
    }

    /// Takes an update in where it belongs.
    fn apply(&mut self, update: &[u8], revision: Position, delivery: Option<&Delivery>) -> Result<(), ClientError> {
        let generation = delivery.and_then(|delivery| delivery.generation);
        let replica = self.anew.as_mut().unwrap_or(&mut self.replica);
        let Applied { mut operations, late } = replica.apply(update, generation)?;
        self.revision = self.revision.max(revision);
        if self.anew.is_some() {
            return Ok(());
        }
        self.line.know(self.replica.state_vector());
        if let Some(late) = late.filter(|_| self.may_write().is_ok()) {
            let edited = self.replica.take_back(late);
            operations = self.sent(edited).map_or(operations.clone(), |back| operations.compose(&back));
        }
        self.changed(TextChange {
            operations,
            revision,
            timestamp_us: delivery.map_or(0, |delivery| delivery.timestamp_us),
            user: delivery.filter(|delivery| delivery.context.target.0 == 0).map(|delivery| delivery.user.clone()),
            generation,
        });
        Ok(())
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), ClientError> {
        let position = delivery.position;
        if delivery.kind == DeliveryKind::Version {
            let name = String::from_utf8_lossy(&delivery.body).into_owned();
            let (revision, user) = (delivery.context.target, delivery.user);
            self.events.push_back(DocumentEvent::Version { position, revision, name, user });
            self.revision = self.revision.max(position);
        } else {
            if delivery.context.target.0 != 0 && delivery.generation.is_none() {
                // What models wrote may be in what was merged, under nobody's name.
                self.replica.missed();
            }
            self.apply(&delivery.body.clone(), position, Some(&delivery))?;
        }
        self.line.consumed(position);
        Ok(())
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        if let Some(update) = self.own.farewell(self.replica.client()) {
            self.line.client.handle.with(|state| state.share_awareness(self.line.key, update));
        }
        self.outbox.close();
    }
}
