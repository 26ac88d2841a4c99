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

use super::awareness::{Other, Others, Own};
use super::outbox::{Acknowledgement, Outbox, Progress};
use super::replica::{Edited, Replica};
use super::{Assembly, DocumentEvent, Line, TextChange};
use crate::client::{Client, ConnectionState};
use crate::error::ClientError;
use crate::state::documents::{Incoming, Opened};

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
    connection: watch::Receiver<ConnectionState>,
    online: bool,
    others: Others,
    own: Own,
    shown: (String, String),
    revision: Position,
    access: DocumentAccess,
    assembly: Assembly,
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

/// The colour of a name, the same everywhere: `#rrggbb`, dark enough for white and bright enough for black.
fn colour(name: &str) -> String {
    const COLOURS: [&str; 12] = [
        "#30bced", "#6eeb83", "#ffbc42", "#ecd444", "#ee6352", "#9ac2c9", "#8acb88", "#1be7ff", "#d783ff", "#ff9f80",
        "#7fb3ff", "#c0ca33",
    ];
    // FNV-1a.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    COLOURS[(hash >> 8) as usize % COLOURS.len()].to_owned()
}

impl Document {
    pub(super) async fn over(
        client: Client,
        name: Name,
        line: Line,
        shown: Option<(String, String)>,
    ) -> Result<Self, ClientError> {
        let outbox = Outbox::start(client.clone(), name.clone());
        let shown = shown.unwrap_or_else(|| {
            let user = client.welcome().user.to_string();
            (user.clone(), colour(&user))
        });
        let Opened { revision, bytes, access, .. } = line.opened;
        let mut document = Self {
            name,
            replica: Replica::new(client_id()),
            anew: None,
            progress: outbox.progress(),
            outbox,
            connection: client.connection(),
            online: true,
            others: Others::default(),
            own: Own::new(),
            shown,
            revision,
            access,
            assembly: Assembly::default(),
            events: VecDeque::new(),
            told: 0,
            edited: None,
            looked: Instant::now(),
            over: false,
            line,
        };
        let mut complete = bytes == 0;
        while !complete {
            let Some(incoming) = document.line.queue.recv().await else { return Err(document.line.end()) };
            let mut ends = matches!(incoming, Incoming::State { offset, total, ref bytes, .. }
                if offset + bytes.len() as u64 == total);
            // The connection can be lost in the middle of it; what is missing then may be nothing.
            ends |= matches!(incoming, Incoming::Opened(ref opened) if opened.bytes == 0);
            document.take(incoming)?;
            complete = ends;
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
        self.line.opened.made
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
        self.online
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

    /// Takes the last own edit back; those of others stay. Gives what that did to the text; `None` if there is none.
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

    /// What a model writes from now on under this id is taken back as if it were one own edit.
    pub fn adopt(&mut self, generation: GenerationId) {
        self.replica.adopt(generation);
    }

    /// Takes back what a model wrote, whoever asked it, and puts back what it took out. If it was not all seen here, the node
    /// is asked. Gives what that did to the text; `None` if there is nothing of it left.
    ///
    /// # Errors
    /// As [`edit`](Self::edit); those of [`Client::document_log`].
    pub async fn undo_generation(&mut self, generation: GenerationId) -> Result<Option<Operations>, ClientError> {
        self.may_write()?;
        if !self.replica.knows(generation) {
            let updates = super::past::updates_of(&self.line.client, &self.name, generation).await?;
            for update in &updates {
                self.replica.note(generation, update);
            }
        }
        let edited = self.replica.undo_generation(generation);
        Ok(self.sent(edited))
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
    /// [`acknowledgement`](Self::acknowledgement) resolved.
    pub fn ask_at(&self, from: u32, to: u32, instruction: impl Into<String>) -> AskInDocument {
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
            let due = self.own.due(Instant::now()).filter(|_| self.online);
            let due = due.unwrap_or(self.looked + LOOK).min(self.looked + LOOK);
            tokio::select! {
                incoming = self.line.queue.recv() => match incoming {
                    Some(incoming) => self.take(incoming).inspect_err(|_| self.over = true)?,
                    None => {
                        self.over = true;
                        return match self.line.end() {
                            ClientError::Closed => Ok(None),
                            error => Err(error),
                        };
                    }
                },
                Ok(()) = self.progress.changed() => self.progressed(),
                Ok(()) = self.connection.changed() => self.connected(),
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
        if self.online && self.own.due(now).is_some_and(|due| due <= now) {
            let update = self.own.say(self.replica.client(), now);
            self.line.client.handle.with(|state| state.share_awareness(self.line.key, update));
        }
    }

    fn connected(&mut self) {
        let reason = match &*self.connection.borrow_and_update() {
            ConnectionState::Connected { .. } | ConnectionState::Closed { .. } => return,
            ConnectionState::Leaving { .. } => "the node goes away for a while".to_owned(),
            ConnectionState::Reconnecting { reason, .. } => reason.clone(),
        };
        if std::mem::replace(&mut self.online, false) {
            self.events.push_back(DocumentEvent::Offline { reason });
            if self.others.clear() {
                self.events.push_back(DocumentEvent::Others);
            }
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

    fn take(&mut self, incoming: Incoming) -> Result<(), ClientError> {
        match incoming {
            Incoming::Opened(opened) => self.opened(opened)?,
            Incoming::State { revision, offset, total, bytes } => {
                if let Some(state) = self.assembly.take(offset, total, &bytes)? {
                    self.apply(&state, revision, None)?;
                    self.line.report(revision);
                    self.renewed()?;
                }
            }
            Incoming::Delivery(delivery) => self.deliver(*delivery)?,
            Incoming::Operations(_) => {
                return Err(ClientError::Protocol("operations came where updates were asked for".to_owned()));
            }
            Incoming::Awareness(update) => {
                let update =
                    AwarenessUpdate::decode(&update).map_err(|reject| ClientError::Protocol(reject.to_string()))?;
                if self.others.take(update, self.replica.client(), Instant::now()) {
                    self.events.push_back(DocumentEvent::Others);
                }
            }
        }
        Ok(())
    }

    /// It was opened again.
    fn opened(&mut self, opened: Opened) -> Result<(), ClientError> {
        self.access = opened.access;
        self.assembly = Assembly::default();
        self.own.refresh();
        if !std::mem::replace(&mut self.online, true) {
            self.events.push_back(DocumentEvent::Online);
        }
        if self.anew.is_none() && self.may().is_ok() {
            // What waits is sent in any case. What was durable and is gone (a backup was put back) is sent again.
            let waits = self.outbox.unacknowledged() > 0 && opened.revision >= self.revision;
            if let Some(lacking) = self.replica.lacking(&opened.vector).filter(|_| !waits) {
                drop(self.outbox.put(vec![lacking]));
            }
        }
        if opened.bytes == 0 { self.renewed() } else { Ok(()) }
    }

    /// The state is complete; if it was read anew, it takes the place of what was there.
    fn renewed(&mut self) -> Result<(), ClientError> {
        let Some(anew) = self.anew.take() else { return Ok(()) };
        let operations = Operations::between(&self.replica.text(), &anew.text());
        let farewell = self.own.farewell(self.replica.client());
        self.replica = anew;
        self.outbox.clear();
        self.told = self.progress.borrow().acknowledged;
        self.line.know(self.replica.state_vector());
        if let Some(update) = farewell {
            self.line.client.handle.with(|state| state.share_awareness(self.line.key, update));
        }
        let revision = self.revision;
        self.events.push_back(DocumentEvent::Changed(TextChange {
            operations,
            revision,
            timestamp_us: 0,
            user: None,
            generation: None,
        }));
        Ok(())
    }

    /// Takes an update in where it belongs.
    fn apply(&mut self, update: &[u8], revision: Position, delivery: Option<&Delivery>) -> Result<(), ClientError> {
        let generation = delivery.and_then(|delivery| delivery.generation);
        let operations = self.anew.as_mut().unwrap_or(&mut self.replica).apply(update, generation)?;
        self.revision = self.revision.max(revision);
        if self.anew.is_some() {
            return Ok(());
        }
        self.line.know(self.replica.state_vector());
        self.events.push_back(DocumentEvent::Changed(TextChange {
            operations,
            revision,
            timestamp_us: delivery.map_or(0, |delivery| delivery.timestamp_us),
            user: delivery.filter(|delivery| delivery.context.target.0 == 0).map(|delivery| delivery.user.clone()),
            generation,
        }));
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
            let merged = delivery.context.target.0 != 0;
            if let Some(generation) = self.replica.undoes_generation().filter(|_| merged) {
                // Some of it may be in what was merged, under nobody's name.
                self.replica.forget(generation);
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
