//! Editors, and what they take of what they are sent.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_protocol::chat::Post;
use thalweg_protocol::document::{DocumentOperations, Operations};
use thalweg_protocol::ids::{Position, Sequence};

use super::scan::scan;
use super::thin::Thin;
use super::typing::{Hand, Recorded, Typist};
use super::{CLIENTS, Docs, REQUESTS_FROM, broken};
use crate::cli::{DocsArgs, EditForm};
use crate::error::LoadError;
use crate::swarm::LinkId;

/// How an editor edits.
pub(super) enum Hands {
    /// With a replica. Most replicas hold the page and their own edits only: what the others do is counted and not applied,
    /// which is what an editor that is told late edits on.
    Replica(Box<Typist>),
    /// By positional operations.
    Thin(Box<Thin>),
}

pub(super) struct Editor {
    pub(super) hands: Hands,
    pub(super) link: LinkId,
    pub(super) document: usize,
    pub(super) seat: usize,
    /// Its subscription.
    pub(super) number: u32,
    /// Whether it applies everything, so that its text can be compared.
    pub(super) full: bool,
    pub(super) ready: bool,
    /// The parts of a state that came so far.
    pub(super) state: Vec<u8>,
    /// Frames since it last reported what it consumed.
    pub(super) frames: u32,
    /// Of its last edit that was answered.
    pub(super) revision: Position,
    /// How often it shared its awareness.
    pub(super) said: u64,
}

impl Editor {
    pub(super) fn new(args: &DocsArgs, seat: usize, document: usize, recorded: Option<Arc<Vec<Recorded>>>) -> Self {
        let client = client(args, document, seat);
        let hand = Hand::new(args.seed ^ client.wrapping_mul(0x9e37_79b9_7f4a_7c15), recorded);
        let full = seat < args.full;
        let hands = match args.form {
            EditForm::Updates => Hands::Replica(Box::new(Typist::new(client, hand))),
            EditForm::Operations => Hands::Thin(Box::new(Thin::new(hand, full))),
        };
        Self {
            hands,
            link: document / args.per_connection * args.editors + seat,
            document,
            seat,
            number: (document % args.per_connection) as u32 + 1,
            full,
            ready: false,
            state: Vec::new(),
            frames: 0,
            revision: Position(0),
            said: 0,
        }
    }
}

fn client(args: &DocsArgs, document: usize, seat: usize) -> u64 {
    CLIENTS + (document * args.editors + seat) as u64
}

/// An edit that was not answered yet.
pub(super) struct Sent {
    pub(super) request: u32,
    pub(super) sequence: Sequence,
    /// Whose.
    pub(super) at: usize,
    pub(super) post: Post,
    pub(super) body: Bytes,
    pub(super) intended_ns: u64,
}

/// The writing half of a link.
#[derive(Default)]
pub(super) struct Line {
    pub(super) written: u64,
    requests: u32,
    pub(super) unanswered: VecDeque<Sent>,
    /// Keystrokes that wait for answers: whose, and when they were intended.
    pub(super) held: VecDeque<(usize, u64)>,
}

impl Line {
    pub(super) fn next_request(&mut self) -> u32 {
        self.requests = self.requests.wrapping_add(1).max(REQUESTS_FROM);
        self.requests
    }

    /// Takes the edit of this request, which was answered.
    pub(super) fn answered(&mut self, request: u32) -> Result<Sent, LoadError> {
        let at = self.unanswered.iter().position(|sent| sent.request == request);
        at.and_then(|at| self.unanswered.remove(at))
            .ok_or_else(|| LoadError::Protocol(format!("an answer to request {request}, which there is not")))
    }
}

impl Docs<'_> {
    /// An editor got the document's state: at the beginning, or because it could not be sent what it lacked one by one.
    pub(super) fn begin(&mut self, at: usize, state: &[u8], revision: Position, at_ns: u64) -> Result<(), LoadError> {
        let again = std::mem::replace(&mut self.editors[at].ready, true);
        self.ready += usize::from(!again);
        self.restarts += u64::from(again);
        if let Hands::Replica(_) = self.editors[at].hands {
            return if state.is_empty() { Ok(()) } else { self.apply(at, state, at_ns, !again) };
        }
        let editor = &mut self.editors[at];
        let Hands::Thin(thin) = &mut editor.hands else { return Ok(()) };
        let text = std::str::from_utf8(state)
            .map_err(|_| LoadError::Protocol("the text of a document is not UTF-8".into()))?;
        let lost = thin.restart(text, revision);
        self.revisions[editor.document].lost(lost.len());
        self.reached(at, revision, at_ns);
        Ok(())
    }

    pub(super) fn take_update(&mut self, at: usize, update: &[u8], at_ns: u64) -> Result<(), LoadError> {
        self.apply(at, update, at_ns, false)
    }

    /// Notes whose edits an update holds, and applies it if this editor applies all, or must.
    fn apply(&mut self, at: usize, update: &[u8], at_ns: u64, must: bool) -> Result<(), LoadError> {
        let first = client(self.args, self.editors[at].document, 0);
        let editors = self.args.editors as u64;
        let editor = &mut self.editors[at];
        let book = &mut self.books[editor.document];
        let (deliveries, measured) = (&mut self.deliveries, &self.measured);
        let (gaps, delivered) = (&mut self.gaps, &mut self.now.delivered);
        let valid = scan(update, |client, from, end| {
            let Some(author) = client.checked_sub(first).filter(|&author| author < editors) else { return };
            let in_order = book.got(editor.seat, author as usize, from, end, |intended_ns| {
                *delivered += 1;
                if measured.contains(&intended_ns) {
                    deliveries.record(intended_ns, at_ns);
                }
            });
            *gaps += u64::from(!in_order);
        });
        let Hands::Replica(typist) = &mut editor.hands else { return Ok(()) };
        if !valid || ((editor.full || must) && !typist.apply(update)) {
            return Err(LoadError::Protocol(format!("an update of {} bytes cannot be applied", update.len())));
        }
        Ok(())
    }

    pub(super) fn take_operations(
        &mut self,
        at: usize,
        news: &DocumentOperations,
        at_ns: u64,
    ) -> Result<(), LoadError> {
        let operations = Operations::decode(&news.operations).map_err(|reject| broken(&reject))?;
        let editor = &mut self.editors[at];
        let Hands::Thin(thin) = &mut editor.hands else {
            return Err(LoadError::Protocol("operations for a reader of updates".into()));
        };
        if news.own.is_some() {
            let times = thin.placed(news.to);
            let (document, seat) = (editor.document, editor.seat);
            let Self { revisions, deliveries, measured, now, .. } = self;
            revisions[document].placed(news.to.0, seat, times, |intended_ns, came_ns| {
                now.delivered += 1;
                if measured.contains(&intended_ns) {
                    deliveries.record(intended_ns, came_ns);
                }
            });
        }
        let Hands::Thin(thin) = &mut self.editors[at].hands else { return Ok(()) };
        if !operations.is_empty() || news.own.is_none() {
            thin.take(&operations, news.to).map_err(|reject| broken(&reject))?;
        }
        self.reached(at, news.to, at_ns);
        Ok(())
    }

    fn reached(&mut self, at: usize, revision: Position, at_ns: u64) {
        let Self { editors, revisions, deliveries, measured, now, .. } = self;
        let Editor { document, seat, .. } = editors[at];
        revisions[document].reached(seat, revision.0, at_ns, |intended_ns, came_ns| {
            now.delivered += 1;
            if measured.contains(&intended_ns) {
                deliveries.record(intended_ns, came_ns);
            }
        });
    }
}
