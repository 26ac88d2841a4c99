//! How a run of documents begins and ends.

use std::time::Duration;

use bytes::Bytes;
use thalweg_protocol::chat::PostKind;
use thalweg_protocol::document::{DocumentNews, DocumentOp, OpenDocument, ReadForm};
use thalweg_protocol::ids::{Position, Subscription};
use thalweg_protocol::op::{ClientOp, ServerOp};

use super::editors::Hands;
use super::{AT_ONCE, Docs, REQUESTS_FROM, SETUP_LIMIT, broken};
use crate::error::LoadError;
use crate::process::Process;
use crate::swarm::{Seen, Swarm};

/// Documents that are fetched anew in the end and compared.
const FETCHED_MAX: usize = 16;
/// How long the unsubscribing, or fetching a document, may take.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Number of the request that fetches a document.
const FETCH: u32 = REQUESTS_FROM - 1;

impl Docs<'_> {
    /// Connects, lets one editor of each document write its page, and lets the others open it.
    pub(super) fn set_up(&mut self, swarm: &mut Swarm) -> Result<(), LoadError> {
        let limit = SETUP_LIMIT + Duration::from_millis(self.editors.len() as u64 * 5);
        swarm.open_all(self.lines.len(), AT_ONCE, limit)?;
        self.memory.connected = self.resident()?;
        self.open(swarm, 0..self.args.documents, limit)?;
        self.write_pages(swarm, limit)?;
        self.open(swarm, self.args.documents..self.editors.len(), limit)?;
        self.memory.opened = self.resident()?;
        Ok(())
    }

    pub(super) fn resident(&self) -> Result<Option<u64>, LoadError> {
        self.context.server.as_ref().map(Process::resident_bytes).transpose()
    }

    fn open(&mut self, swarm: &mut Swarm, which: std::ops::Range<usize>, limit: Duration) -> Result<(), LoadError> {
        let (wanted, mut asked) = (which.end, which.start);
        let done = swarm.run_until(limit, |swarm, seen| {
            if let Some((link, seen)) = seen {
                self.see(swarm, link, seen)?;
            }
            while asked < wanted && asked - self.ready < AT_ONCE {
                let editor = &self.editors[asked];
                let open = OpenDocument {
                    document: self.name(editor.document),
                    state: Bytes::new(),
                    form: self.form,
                    make: editor.seat == 0,
                    lead: 0,
                    known: None,
                };
                swarm.request(editor.link, editor.number, &ClientOp::Document(DocumentOp::Open(open)))?;
                asked += 1;
            }
            Ok(self.ready == wanted)
        })?;
        self.require(done, "documents were opened", self.ready, wanted, limit)
    }

    fn write_pages(&mut self, swarm: &mut Swarm, limit: Duration) -> Result<(), LoadError> {
        let (wanted, mut asked) = (self.args.documents, 0);
        let done = swarm.run_until(limit, |swarm, seen| {
            if let Some((link, seen)) = seen {
                self.see(swarm, link, seen)?;
            }
            while asked < wanted && asked - (self.acknowledged as usize) < AT_ONCE {
                let page = self.args.page;
                match &mut self.editors[asked].hands {
                    Hands::Replica(typist) => {
                        let update = typist.page(page).into();
                        self.publish(swarm, asked, PostKind::Update, Position(0), update, 0)?;
                    }
                    Hands::Thin(thin) => {
                        thin.page(page).map_err(|reject| broken(&reject))?;
                        self.send_operations(swarm, asked)?;
                    }
                }
                asked += 1;
            }
            Ok(self.acknowledged as usize == wanted)
        })?;
        self.require(done, "pages were written", self.acknowledged as usize, wanted, limit)
    }

    fn require(
        &self,
        done: bool,
        what: &'static str,
        got: usize,
        wanted: usize,
        limit: Duration,
    ) -> Result<(), LoadError> {
        let seconds = limit.as_secs();
        if done { Ok(()) } else { Err(LoadError::Incomplete { what, got: got as u64, wanted: wanted as u64, seconds }) }
    }

    /// `None` if everybody reads the same: all were told of all edits, those who apply everything have the same text, and
    /// so has the node.
    pub(super) fn compare(&mut self, swarm: &mut Swarm) -> Result<Option<String>, LoadError> {
        if self.outstanding() > 0 {
            return Ok(Some(format!("{} deliveries are missing", self.outstanding())));
        }
        if let Some(document) = self.books.iter().position(|book| !book.agree()) {
            return Ok(Some(format!("some editors of document {document} know less than others")));
        }
        for document in 0..self.args.documents {
            let seats = self.args.full.min(self.args.editors);
            let mut texts = (0..seats).filter_map(|seat| self.text(self.at(document, seat)));
            let Some(text) = texts.next() else { continue };
            if texts.any(|other| other != text) {
                return Ok(Some(format!("two editors of document {document} read different texts")));
            }
            if document < FETCHED_MAX && self.fetch(swarm, document)? != text.as_bytes() {
                return Ok(Some(format!("the node and an editor of document {document} read different texts")));
            }
        }
        Ok(None)
    }

    fn text(&self, at: usize) -> Option<String> {
        match &self.editors[at].hands {
            Hands::Replica(typist) => Some(typist.read()),
            Hands::Thin(thin) => thin.read().map(str::to_owned),
        }
    }

    /// The text of a document as the node has it.
    fn fetch(&mut self, swarm: &mut Swarm, document: usize) -> Result<Vec<u8>, LoadError> {
        let (name, link) = (self.name(document), self.editors[document].link);
        let mut text = Vec::new();
        let read = |revision: Position, offset: usize| {
            let (document, form, offset) = (name.clone(), ReadForm::Text, offset as u64);
            ClientOp::Document(DocumentOp::Read { document, revision, form, offset })
        };
        swarm.request(link, FETCH, &read(Position(0), 0))?;
        let done = swarm.run_until(END_LIMIT, |swarm, seen| {
            let Some((link, seen)) = seen else { return Ok(false) };
            match seen {
                Seen::Frame { subject: FETCH, op: ServerOp::Document(news), .. } => {
                    let DocumentNews::State { revision, total, bytes, .. } = news else {
                        return Err(LoadError::Protocol(format!("a document was asked for, not {news:?}")));
                    };
                    text.extend_from_slice(&bytes);
                    if (text.len() as u64) < total {
                        swarm.request(link, FETCH, &read(revision, text.len()))?;
                    }
                    return Ok(text.len() as u64 >= total);
                }
                Seen::Frame { subject: FETCH, op: ServerOp::Reject(reject), .. } => {
                    return Err(LoadError::Refused { what: "to read a document", reject });
                }
                seen => self.see(swarm, link, seen)?,
            }
            Ok(false)
        })?;
        self.require(done, "documents were read", 0, 1, END_LIMIT)?;
        Ok(text)
    }

    /// Closes every document and waits, if that is wanted, to see what the node keeps of them.
    pub(super) fn leave(&mut self, swarm: &mut Swarm) -> Result<(), LoadError> {
        if self.args.linger.is_zero() {
            return Ok(());
        }
        for at in 0..self.editors.len() {
            let (link, subscription) = (self.editors[at].link, Subscription(self.editors[at].number));
            let request = self.lines[link].next_request();
            swarm.request(link, request, &ClientOp::Unsubscribe { subscription })?;
        }
        swarm.run_until(self.args.linger, |swarm, seen| match seen {
            // Frames of documents that were on their way; the answers are not counted.
            Some((_, Seen::Lost(reason))) => Err(swarm.lost(reason)),
            _ => Ok(false),
        })?;
        self.memory.left = self.resident()?;
        Ok(())
    }
}
