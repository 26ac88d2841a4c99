//! A document that is edited by positional operations.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{DocumentAccess, DocumentOperations, Operations};
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::limits::DOCUMENT_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::write::write;
use super::{DocumentEvent, Heard, Line, Positional, TextChange};
use crate::error::ClientError;
use crate::publish::Published;
use crate::state::documents::Opened;

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
    /// The number of the last write within the session; others of the same session may write here, too. 0 before the first.
    sequence: Arc<AtomicU64>,
    /// The revision of what was written, if its place among the edits of others has not come yet.
    written: Option<Position>,
    /// The text was read anew, and it is not known whether what is under way is in it.
    held: Option<(Position, String)>,
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
    pub(super) async fn over(name: Name, line: Line, opened: Opened) -> Result<Self, ClientError> {
        let mut session = Self {
            name,
            text: Positional::new(opened.revision, String::new()),
            writing: None,
            sequence: Arc::default(),
            written: None,
            held: None,
            access: opened.access,
            events: VecDeque::new(),
            over: false,
            line,
        };
        while !session.line.is_read() {
            let heard = session.line.next(true).await?.ok_or_else(|| session.line.end())?;
            session.take(heard)?;
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
        // What is made on a text that is being read anew may not fit it.
        if self.writing.is_none()
            && self.line.is_read()
            && let Some((revision, operations)) = self.text.outgoing()
        {
            self.writing = Some(self.write(revision, &operations));
        }
        // What comes after a text that was read anew waits until it is known what is in that.
        let held = self.held.is_some() && self.writing.is_some();
        tokio::select! {
            answer = answered(&mut self.writing) => {
                self.writing = None;
                self.answer(answer)?;
            }
            heard = self.line.next(!held) => match heard? {
                Some(heard) => self.take(heard)?,
                None => self.over = true,
            },
        }
        Ok(())
    }

    fn write(&self, revision: Position, operations: &Operations) -> Writing {
        let (client, document, sequence) = (self.line.client.clone(), self.name.clone(), self.sequence.clone());
        let (post, body) = (Post { kind: PostKind::Operations, target: revision }, operations.encode());
        Box::pin(async move {
            write(&client, &document, post, &body, |number| sequence.store(number.0, Ordering::Relaxed)).await
        })
    }

    /// The node answered a write.
    fn answer(&mut self, answer: Result<Published, ClientError>) -> Result<(), ClientError> {
        match answer {
            Ok(Published { position, .. }) => match self.held.take() {
                Some((revision, text)) => {
                    let accepted = position <= revision;
                    self.written = Some(position).filter(|_| !accepted);
                    self.reset(revision, &text, accepted)?;
                    if accepted {
                        self.saved();
                    }
                    Ok(())
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

    fn take(&mut self, heard: Heard) -> Result<(), ClientError> {
        match heard {
            Heard::Opened { opened, was_away } => {
                self.access = opened.access;
                if was_away {
                    self.events.push_back(DocumentEvent::Online);
                }
                if opened.bytes == 0 { self.renewed(opened.revision, String::new()) } else { Ok(()) }
            }
            Heard::State { revision, bytes } => {
                let text = String::from_utf8(bytes.into());
                let text = text.map_err(|_| ClientError::Protocol("a document's text is not UTF-8".to_owned()))?;
                self.renewed(revision, text)
            }
            Heard::Operations(news) => {
                self.line.consumed(news.to);
                if news.to <= self.text.revision() { Ok(()) } else { self.edited(*news) }
            }
            Heard::Delivery(delivery) => {
                self.line.consumed(delivery.position);
                let name = String::from_utf8_lossy(&delivery.body).into_owned();
                let (position, revision, user) = (delivery.position, delivery.context.target, delivery.user);
                self.events.push_back(DocumentEvent::Version { position, revision, name, user });
                Ok(())
            }
            Heard::Awareness(_) => Ok(()),
            Heard::Offline { reason } => {
                self.events.push_back(DocumentEvent::Offline { reason });
                Ok(())
            }
        }
    }

    /// The document was edited, perhaps by what is under way.
    fn edited(&mut self, news: DocumentOperations) -> Result<(), ClientError> {
        if let Some(own) = news.own {
            if own.0 == self.sequence.load(Ordering::Relaxed) {
                self.text.accepted(news.to);
                if self.written.take().is_some() {
                    self.saved();
                }
            } else {
                // Somebody else of this session wrote, and what is not told.
                self.line.reopen();
            }
            return Ok(());
        }
        let operations =
            Operations::decode(&news.operations).map_err(|reject| ClientError::Protocol(reject.to_string()))?;
        match self.text.remote(news.to, &operations) {
            Ok(here) => self.changed(here, news.timestamp_us, Some((news.user, news.generation))),
            // It cuts a character in two, which editors in browsers do: what is left of that is told by the text alone.
            Err(_) => self.line.reopen(),
        }
        Ok(())
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
