//! A document that is edited by positional operations.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{DocumentAccess, Operations};
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::limits::DOCUMENT_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::sync::watch;

use super::{Assembly, DocumentEvent, Line, Positional, TextChange};
use crate::client::{Client, ConnectionState};
use crate::error::ClientError;
use crate::publish::Published;
use crate::state::documents::{Incoming, Opened};

/// A write under way.
type Writing = Pin<Box<dyn Future<Output = Result<Published, ClientError>> + Send>>;

/// A document that is open as text: edits are positional operations, and those of others come so too. One write is under
/// way at a time, and what is edited meanwhile is the next.
///
/// Nothing is sent or taken in but by [`next`](Self::next) and [`flush`](Self::flush).
pub struct TextSession {
    name: Name,
    line: Line,
    text: Positional,
    writing: Option<Writing>,
    /// The revision of what was written, if its place among the edits of others has not come yet.
    written: Option<Position>,
    /// The text was read anew, and it is not known whether what is under way is in it.
    held: Option<(Position, String)>,
    assembly: Assembly,
    connection: watch::Receiver<ConnectionState>,
    online: bool,
    access: DocumentAccess,
    events: VecDeque<DocumentEvent>,
    over: bool,
}

impl std::fmt::Debug for TextSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let revision = self.text.revision();
        f.debug_struct("TextSession").field("name", &self.name).field("revision", &revision).finish_non_exhaustive()
    }
}

impl TextSession {
    pub(super) async fn over(client: Client, name: Name, line: Line) -> Result<Self, ClientError> {
        let Opened { revision, bytes, access, .. } = line.opened;
        let mut session = Self {
            name,
            text: Positional::new(revision, String::new()),
            writing: None,
            written: None,
            held: None,
            assembly: Assembly::default(),
            connection: client.connection(),
            online: true,
            access,
            events: VecDeque::new(),
            over: false,
            line,
        };
        let mut complete = bytes == 0;
        while !complete {
            let Some(incoming) = session.line.queue.recv().await else { return Err(session.line.end()) };
            let mut ends = matches!(incoming, Incoming::State { offset, total, ref bytes, .. }
                if offset + bytes.len() as u64 == total);
            ends |= matches!(incoming, Incoming::Opened(ref opened) if opened.bytes == 0);
            session.take(incoming)?;
            complete = ends;
        }
        session.events.clear();
        Ok(session)
    }

    /// The document's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The text, with own edits.
    pub fn text(&self) -> &str {
        self.text.text()
    }

    /// The newest revision that is known.
    pub fn revision(&self) -> Position {
        self.text.revision()
    }

    /// What may be done to the document.
    pub fn access(&self) -> DocumentAccess {
        self.access
    }

    /// Whether own edits are not known to be durable.
    pub fn is_waiting(&self) -> bool {
        self.text.is_waiting()
    }

    /// Edits the text. It is sent by [`next`](Self::next).
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it may not be written, the operations do not fit the text, or would make it too long.
    pub fn edit(&mut self, operations: &Operations) -> Result<(), ClientError> {
        if self.access < DocumentAccess::Write {
            let text = format!("you may {} {}, not write in it", self.access.as_str(), self.name);
            return Err(ClientError::Refused(Reject::new(RejectCode::Forbidden, text)));
        }
        if self.text.text().len() > DOCUMENT_BYTES_MAX {
            let text = format!("{} holds {} bytes, which is all it may", self.name, self.text.text().len());
            return Err(ClientError::Refused(Reject::new(RejectCode::DocumentTooLarge, text)));
        }
        self.text.edit(operations).map_err(ClientError::Refused)
    }

    /// Sends what was edited, and takes in what others do, until all own edits are durable. What came meanwhile is told by
    /// [`next`](Self::next) after it.
    ///
    /// # Errors
    /// As [`next`](Self::next); [`ClientError::Refused`] if an edit was not taken.
    pub async fn flush(&mut self) -> Result<Position, ClientError> {
        while self.text.is_waiting() && !self.over {
            self.turn().await?;
            let refused = self.events.iter().find_map(|event| match event {
                DocumentEvent::Refused { reject, .. } => Some(reject.clone()),
                _ => None,
            });
            if let Some(reject) = refused {
                return Err(ClientError::Refused(reject));
            }
        }
        if self.over { Err(self.line.end()) } else { Ok(self.text.revision()) }
    }

    /// Sends what was edited, and takes in what comes next. `None` once the client was closed, or after an error. Cancel-safe.
    ///
    /// # Errors
    /// As [`Document::next`](super::Document::next).
    pub async fn next(&mut self) -> Result<Option<DocumentEvent>, ClientError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if self.over {
                return match self.line.end() {
                    ClientError::Closed => Ok(None),
                    error => Err(error),
                };
            }
            self.turn().await.inspect_err(|_| self.over = true)?;
        }
    }

    async fn turn(&mut self) -> Result<(), ClientError> {
        if self.writing.is_none()
            && let Some((revision, operations)) = self.text.outgoing()
        {
            self.writing = Some(Box::pin(write(self.line.client.clone(), self.name.clone(), revision, operations)));
        }
        // What comes after a text that was read anew waits until it is known what is in that.
        let held = self.held.is_some() && self.writing.is_some();
        tokio::select! {
            answer = answered(&mut self.writing) => {
                self.writing = None;
                self.answer(answer)?;
            }
            incoming = self.line.queue.recv(), if !held => match incoming {
                Some(incoming) => self.take(incoming)?,
                None => self.over = true,
            },
            Ok(()) = self.connection.changed() => self.connected(),
        }
        Ok(())
    }

    fn connected(&mut self) {
        let reason = match &*self.connection.borrow_and_update() {
            ConnectionState::Connected { .. } | ConnectionState::Closed { .. } => return,
            ConnectionState::Leaving { .. } => "the node goes away for a while".to_owned(),
            ConnectionState::Reconnecting { reason, .. } => reason.clone(),
        };
        if std::mem::replace(&mut self.online, false) {
            self.events.push_back(DocumentEvent::Offline { reason });
        }
    }

    /// The node answered a write.
    fn answer(&mut self, answer: Result<Published, ClientError>) -> Result<(), ClientError> {
        match answer {
            Ok(Published { position, .. }) => match self.held.take() {
                Some((revision, text)) => {
                    let accepted = position <= revision;
                    self.written = Some(position).filter(|_| !accepted);
                    self.reset(revision, &text, accepted)
                }
                // Its place among the edits of others came before the answer, or comes after it.
                None if position <= self.text.revision() => {
                    self.saved();
                    Ok(())
                }
                None => {
                    self.written = Some(position);
                    Ok(())
                }
            },
            Err(ClientError::Refused(reject)) if reject.code == RejectCode::RevisionUnknown => {
                // Made on a text so old that it has to be made anew on the newest.
                self.text.again();
                match self.held.take() {
                    Some((revision, text)) => self.reset(revision, &text, false),
                    None => {
                        self.line.reopen();
                        Ok(())
                    }
                }
            }
            Err(ClientError::Refused(reject)) => {
                let text = self.text.text().to_owned();
                let operations = self.text.give_up();
                self.events.push_back(DocumentEvent::Refused { reject, text });
                self.changed(operations, 0, None);
                match self.held.take() {
                    Some((revision, text)) => self.reset(revision, &text, false),
                    None => Ok(()),
                }
            }
            // Whether it was carried out is not known; what is read anew shows it.
            Err(ClientError::SessionExpired(reject)) => Err(ClientError::SessionExpired(reject)),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, incoming: Incoming) -> Result<(), ClientError> {
        match incoming {
            Incoming::Opened(opened) => {
                self.access = opened.access;
                self.assembly = Assembly::default();
                if !std::mem::replace(&mut self.online, true) {
                    self.events.push_back(DocumentEvent::Online);
                }
                if opened.bytes == 0 { self.renewed(opened.revision, String::new()) } else { Ok(()) }
            }
            Incoming::State { revision, offset, total, bytes } => {
                let Some(state) = self.assembly.take(offset, total, &bytes)? else { return Ok(()) };
                self.line.report(revision);
                let text = String::from_utf8(state.into());
                let text = text.map_err(|_| ClientError::Protocol("a document's text is not UTF-8".to_owned()))?;
                self.renewed(revision, text)
            }
            Incoming::Operations(news) => {
                self.line.consumed(news.to);
                if news.to <= self.text.revision() {
                    return Ok(());
                }
                if news.own.is_some() {
                    self.text.accepted(news.to);
                    if self.written.take().is_some() {
                        self.saved();
                    }
                    return Ok(());
                }
                let broken = |reject: Reject| ClientError::Protocol(reject.to_string());
                let operations = Operations::decode(&news.operations).map_err(broken)?;
                let here = self.text.remote(news.to, &operations).map_err(broken)?;
                self.changed(here, news.timestamp_us, Some((news.user, news.generation)));
                Ok(())
            }
            Incoming::Delivery(delivery) => {
                self.line.consumed(delivery.position);
                let name = String::from_utf8_lossy(&delivery.body).into_owned();
                let (position, revision, user) = (delivery.position, delivery.context.target, delivery.user);
                self.events.push_back(DocumentEvent::Version { position, revision, name, user });
                Ok(())
            }
            Incoming::Awareness(_) => Ok(()),
        }
    }

    /// The node told the whole text.
    fn renewed(&mut self, revision: Position, text: String) -> Result<(), ClientError> {
        if self.writing.is_some() {
            self.held = Some((revision, text));
            return Ok(());
        }
        let accepted = self.written.take_if(|written| *written <= revision).is_some();
        self.reset(revision, &text, accepted)?;
        if accepted {
            self.saved();
        }
        Ok(())
    }

    fn reset(&mut self, revision: Position, text: &str, accepted: bool) -> Result<(), ClientError> {
        let broken = |reject: Reject| ClientError::Protocol(reject.to_string());
        let here = self.text.reset(revision, text, accepted).map_err(broken)?;
        self.changed(here, 0, None);
        Ok(())
    }

    fn saved(&mut self) {
        if !self.text.is_waiting() {
            self.events.push_back(DocumentEvent::Saved { revision: self.text.revision() });
        }
    }

    fn changed(
        &mut self,
        operations: Operations,
        timestamp_us: u64,
        by: Option<(Name, Option<thalweg_protocol::ids::GenerationId>)>,
    ) {
        let (user, generation) = by.map_or((None, None), |(user, generation)| (Some(user), generation));
        let revision = self.text.revision();
        let change = TextChange { operations, revision, timestamp_us, user, generation };
        self.events.push_back(DocumentEvent::Changed(change));
    }
}

/// Waits for the answer to the write under way; for ever if there is none.
async fn answered(writing: &mut Option<Writing>) -> Result<Published, ClientError> {
    match writing {
        Some(writing) => writing.await,
        None => std::future::pending().await,
    }
}

/// Writes, again if the node says that it may work later.
async fn write(
    client: Client,
    document: Name,
    revision: Position,
    operations: Operations,
) -> Result<Published, ClientError> {
    let body = operations.encode();
    loop {
        let post = Post { kind: PostKind::Operations, target: revision };
        let ack = client.write_start(document.clone(), body.clone(), post).await?;
        match ack.await {
            Err(error) if error.retry_after().is_some() => {
                tokio::time::sleep(error.retry_after().unwrap_or_default()).await;
            }
            answer => return answer,
        }
    }
}
