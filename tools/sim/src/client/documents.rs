//! Documents: clients that edit a copy of their own, thin ones that edit by offsets, and what all of them must end with.
//!
//! Everything that is typed is a mark of its own, put between others or taken out whole. So each mark that was acknowledged
//! stands in the text once, unless somebody took it out, and the text says by itself whether an edit was lost, done twice or
//! done by half. What is between the marks models wrote.
//!
//! Of one document people put back what it was; then only its log says what it must read (`crate::chronicle`). Another one is
//! deleted and made again: who comes back to it begins anew, as somebody does who loads a page.

mod answers;
mod hostile;
mod judging;
mod past;
mod writers;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rand::{Rng as _, rngs::StdRng};
use thalweg_domain::document::Document;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{DocumentForm, DocumentOp, OpenDocument, Operations, utf16_len};
use thalweg_protocol::ids::{GenerationId, Name, Position, Sequence, Subscription};
use thalweg_protocol::op::{ClientOp, Publish, ServerOp};

use super::Asked;
use crate::chronicle::{AskedAt, PAPER, pieces};
use crate::faults::Fault;
use crate::world::{Event, Plant, World};

use hostile::Hostile;
use past::{Reading, Version};

/// The document that people put back to what it was, in some runs.
const RESTORED: u32 = 1;
/// The document that people delete, in some runs.
const DOOMED: u32 = 2;
/// A refused edit is sent again about so much later once clients do nothing new, in microseconds.
const AGAIN_US: u64 = 50_000;
/// Yjs client ids of copies of the document that is deleted begin here: each copy has one of its own.
const COPIES: u64 = 1 << 20;
/// Code units of a model's text that people take out at once, at most.
const CUT_UNITS: u64 = 6;

/// What was asked of a document.
#[derive(Debug)]
pub(super) enum DocumentAsked {
    Open(u32),
    Write(Sequence),
    Read(Reading),
    Delete(u32),
    /// A model was asked to write where.
    Ask {
        document: u32,
        at: AskedAt,
        /// What the asker has of the document may not be what the node has.
        is_unsure: bool,
    },
    Stop(GenerationId),
    Hostile(Hostile),
}

/// A client's end of a document, over all connections.
pub(super) struct Paper {
    document: u32,
    copy: Copy,
    /// Its subscription over this connection, and whether the node accepted it.
    number: Option<u32>,
    is_open: bool,
    /// What came before the answer, on the other lane.
    early: Vec<ServerOp>,
    revision: Position,
    /// A state that comes in parts.
    parts: Vec<u8>,
    owed: Option<Position>,
}

/// What a client has of a document.
enum Copy {
    /// All of it, to edit without the node.
    Whole(Box<Document>),
    /// Its text, and the edit under way.
    Thin { text: String, sent: Option<(Sequence, Operations)> },
}

/// An edit that was not answered.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    document: u32,
    post: Post,
    body: Bytes,
    make: bool,
    inserted: Option<String>,
    deleted: Option<String>,
    sent: u32,
    /// It was refused for a reason that passes.
    waits: bool,
}

/// What became of a mark.
#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    is_typed: bool,
    is_deleting: bool,
    is_deleted: bool,
}

/// What was done to documents, and what they read in the end.
#[derive(Debug, Default)]
pub(crate) struct Papers {
    marks: BTreeMap<(u32, String), Mark>,
    texts: BTreeMap<u32, String>,
    /// People put back what one document was.
    restores: bool,
    /// People delete a document.
    deletes: bool,
    /// People paste much.
    pub(crate) pastes: bool,
    /// Models that write, the newest last.
    models: VecDeque<(u32, GenerationId)>,
    versions: Vec<Version>,
}

impl Papers {
    pub(crate) fn new(rng: &mut StdRng) -> Self {
        let (restores, deletes, pastes) = (rng.random_bool(0.5), rng.random_bool(0.5), rng.random_bool(0.08));
        Self { restores, deletes, pastes, ..Self::default() }
    }

    fn is_restored(&self, document: u32) -> bool {
        self.restores && document == RESTORED
    }

    /// How many documents there are.
    fn count(&self) -> u64 {
        u64::from(DOOMED) + u64::from(self.deletes)
    }
}

fn document_name(document: u32) -> Name {
    Name::new(&format!("{PAPER}{document}")).expect("a valid name")
}

impl Paper {
    fn new(client: usize, document: u32, fresh: u64) -> Self {
        let id = if document == DOOMED { COPIES + fresh } else { client as u64 + 1 };
        let copy = match client.is_multiple_of(2) {
            true => Copy::Whole(Box::new(Document::new(id))),
            false => Copy::Thin { text: String::new(), sent: None },
        };
        let (early, parts) = (Vec::new(), Vec::new());
        Self { document, copy, number: None, is_open: false, early, revision: Position(0), parts, owed: None }
    }

    fn text(&self) -> String {
        match &self.copy {
            Copy::Whole(document) => document.text(),
            Copy::Thin { text, .. } => text.clone(),
        }
    }

    /// Whether it has all of the document, and nothing of its own is under way.
    fn is_at_hand(&self) -> bool {
        match &self.copy {
            Copy::Whole(_) => self.is_open,
            Copy::Thin { sent, .. } => self.is_open && sent.is_none() && self.parts.is_empty(),
        }
    }

    /// The connection is gone, or the reading is at its end.
    fn part(&mut self) {
        (self.number, self.is_open, self.owed) = (None, false, None);
        self.early.clear();
        self.parts.clear();
    }
}

impl World {
    /// Does something with a document.
    pub(super) fn act_on_document(&mut self, client: usize) {
        if self.clients[client].tenant > 0 {
            return;
        }
        let document = self.below(self.papers.count()) as u32;
        if !self.clients[client].papers.contains_key(&document) {
            let fresh = self.fresh_number();
            self.clients[client].papers.insert(document, Paper::new(client, document, fresh));
        }
        self.send_waiting(client);
        match self.below(100) {
            0..9 if document == DOOMED => return self.forget_paper(client, document),
            0..9 => return self.close_document(client, document),
            9..15 => return self.ask_in_document(client, document),
            15..22 => return self.send_hostile(client, document),
            22..30 => return self.read_revision(client, document),
            30..35 => return self.name_version(client, document),
            35..39 if self.papers.is_restored(document) => return self.restore_document(client, document),
            39..42 => return self.stop_model(client, document),
            42..50 if document == DOOMED => return self.delete_document(client),
            _ => {}
        }
        self.open_document(client, document);
        let Some(paper) = self.clients[client].papers.get(&document) else { return };
        if matches!(paper.copy, Copy::Whole(_)) || paper.is_at_hand() {
            self.edit_document(client, document);
        }
    }

    /// Opens a document that is not open; a thin client waits for the answers to its edits first.
    fn open_document(&mut self, client: usize, document: u32) {
        let own = &self.clients[client];
        let Some(paper) = own.papers.get(&document) else { return };
        let (state, form) = match &paper.copy {
            Copy::Whole(copy) => (copy.state_vector(), DocumentForm::Updates),
            Copy::Thin { .. } => (Bytes::new(), DocumentForm::Operations),
        };
        let is_busy = own.edits.values().any(|edit| edit.document == document);
        if paper.number.is_some() || own.link.is_none() || (form == DocumentForm::Operations && is_busy) {
            return;
        }
        let lead = [0, 1, 3][self.below(3) as usize];
        let make = document != DOOMED || self.chance(0.7);
        let open = OpenDocument { document: document_name(document), state, form, make, lead, known: None };
        let op = ClientOp::Document(DocumentOp::Open(open));
        let number = self.request(client, &op, Asked::Document(DocumentAsked::Open(document)));
        if let Some(paper) = self.clients[client].papers.get_mut(&document) {
            paper.part();
            (paper.number, paper.revision) = (Some(number), Position(0));
            if let Copy::Thin { text, sent } = &mut paper.copy {
                (*text, *sent) = (String::new(), None);
            }
        }
    }

    fn close_document(&mut self, client: usize, document: u32) {
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return };
        let Some(number) = paper.number.filter(|_| paper.is_open) else { return };
        paper.part();
        let op = ClientOp::Unsubscribe { subscription: Subscription(number) };
        self.request(client, &op, Asked::Other);
    }

    fn delete_document(&mut self, client: usize) {
        if self.clients[client].admin && self.clients[client].link.is_some() {
            let op = ClientOp::DeleteChannel { channel: document_name(DOOMED) };
            self.request(client, &op, Asked::Document(DocumentAsked::Delete(DOOMED)));
        }
    }

    /// Throws away what a client has of a document that is deleted now and then.
    fn forget_paper(&mut self, client: usize, document: u32) {
        let own = &mut self.clients[client];
        let number = own.papers.remove(&document).and_then(|paper| paper.number);
        if let Some(number) = number.filter(|_| own.link.is_some()) {
            let op = ClientOp::Unsubscribe { subscription: Subscription(number) };
            self.request(client, &op, Asked::Other);
        }
        let own = &mut self.clients[client];
        own.edits.retain(|_, edit| edit.document != document);
    }

    fn next_sequence(&mut self, client: usize) -> Sequence {
        let own = &mut self.clients[client];
        own.sequences += 1;
        Sequence(own.sequences)
    }

    /// Types a mark, between others or in what a model wrote, or takes one out, or a little of what a model wrote.
    fn edit_document(&mut self, client: usize, document: u32) {
        let Some(paper) = self.clients[client].papers.get(&document) else { return };
        let (text, is_thin) = (paper.text(), matches!(paper.copy, Copy::Thin { .. }));
        let sequence = self.next_sequence(client);
        // An offset that was meant for the one that was deleted may be used in the next.
        let only_before = is_thin && document == DOOMED;
        let there = if only_before { Vec::new() } else { pieces(&text) };
        let at = self.below(there.len() as u64 + 1) as usize;
        let piece = there.get(at).copied();
        let delete = self.chance(0.25);
        let cut = 1 + self.below(CUT_UNITS) as u32;
        let end = if only_before { 0 } else { utf16_len(&text) };
        let (operations, inserted, deleted) = match piece {
            Some(piece) if delete && piece.is_mark => {
                let mark = piece.text.to_owned();
                self.papers.marks.entry((document, mark.clone())).or_default().is_deleting = true;
                (Operations::new().retain(piece.at).delete(utf16_len(piece.text)), None, Some(mark))
            }
            Some(piece) if delete => {
                let length = utf16_len(piece.text);
                let from = self.below(length.into()) as u32;
                (Operations::new().retain(piece.at + from).delete(cut.min(length - from)), None, None)
            }
            piece => {
                let (mark, line_end) = self.fresh_mark(client, sequence);
                let within = piece.filter(|piece| !piece.is_mark).map_or(0, |piece| utf16_len(piece.text));
                let within = self.below(u64::from(within) + 1) as u32;
                // Who calls a model begins a line.
                let offset = if line_end { 0 } else { piece.map_or(end, |piece| piece.at + within) };
                self.papers.marks.insert((document, mark.clone()), Mark::default());
                let typed = if line_end { format!("{mark}\n") } else { mark.clone() };
                (Operations::new().retain(offset).insert(typed), Some(mark), None)
            }
        };
        self.carry_out_edit(client, document, sequence, (operations, inserted, deleted));
    }

    /// A mark that nobody typed before, and whether it ends a line.
    fn fresh_mark(&mut self, client: usize, sequence: Sequence) -> (String, bool) {
        if self.chance(0.06) {
            return (format!("@ai {client}.{sequence};"), true);
        }
        let padding = if self.papers.pastes && self.chance(0.05) { self.below(15_000) as usize } else { 0 };
        (format!("<{client}.{sequence}{}>", "x".repeat(padding)), false)
    }

    /// Edits the copy of a client, and tells the node.
    fn carry_out_edit(
        &mut self,
        client: usize,
        document: u32,
        sequence: Sequence,
        (operations, inserted, deleted): (Operations, Option<String>, Option<String>),
    ) {
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return };
        let (kind, target, body) = match &mut paper.copy {
            Copy::Whole(copy) => match copy.edit(&operations) {
                Ok(update) => (PostKind::Update, Position(0), update),
                Err(reject) => return self.violation(format!("client {client}: its own edit does not fit: {reject}")),
            },
            Copy::Thin { text, sent } => {
                match operations.apply(text) {
                    Ok(edited) => *text = edited,
                    Err(reject) => {
                        return self.violation(format!("client {client}: its own edit does not fit: {reject}"));
                    }
                }
                *sent = Some((sequence, operations.clone()));
                (PostKind::Operations, paper.revision, operations.encode())
            }
        };
        let make = document != DOOMED || self.chance(0.7);
        let post = Post { kind, target };
        let edit = Edit { document, post, body, make, inserted, deleted, sent: 0, waits: false };
        self.clients[client].edits.insert(sequence, edit.clone());
        self.send_edit(client, sequence);
        if self.options.plant == Some(Plant::DoubleOperation) && kind == PostKind::Operations && self.planted < 9 {
            self.planted += 1;
            let (sequence, channel) = (self.next_sequence(client), document_name(document));
            let Edit { body, post, .. } = edit;
            let publish = Publish { channel, sequence, retry: false, make: true, body, key: 0, post };
            self.request(client, &ClientOp::Publish(publish), Asked::Other);
        }
    }

    fn send_edit(&mut self, client: usize, sequence: Sequence) {
        let Some(edit) = self.clients[client].edits.get_mut(&sequence) else { return };
        let (retry, mut post, body, make) = (edit.sent > 0, edit.post, edit.body.clone(), edit.make);
        (edit.sent, edit.waits) = (edit.sent + 1, false);
        let channel = document_name(edit.document);
        if post.kind == PostKind::Restore && self.options.plant == Some(Plant::RestoreOther) && post.target.0 > 1 {
            post.target.0 -= 1;
        }
        self.faults.add(Fault::EditRetried, u64::from(retry));
        let publish = Publish { channel, sequence, retry, make, body, key: 0, post };
        self.request(client, &ClientOp::Publish(publish), Asked::Document(DocumentAsked::Write(sequence)));
    }

    /// Sends edits again that were refused, and what was built on them.
    fn send_waiting(&mut self, client: usize) {
        let waiting: Vec<Sequence> =
            self.clients[client].edits.iter().filter(|(_, edit)| edit.waits).map(|(&sequence, _)| sequence).collect();
        waiting.into_iter().for_each(|sequence| self.send_edit(client, sequence));
    }

    /// The connection is gone.
    pub(super) fn forget_documents(&mut self, client: usize) {
        self.clients[client].papers.values_mut().for_each(Paper::part);
        self.forget_paper(client, DOOMED);
    }

    /// A new connection: what was not answered is repeated, and the documents are opened again.
    pub(super) fn come_back_to_documents(&mut self, client: usize) {
        let edits: Vec<Sequence> = self.clients[client].edits.keys().copied().collect();
        edits.into_iter().for_each(|sequence| self.send_edit(client, sequence));
        self.open_all_documents(client);
    }

    fn open_all_documents(&mut self, client: usize) {
        let documents: Vec<u32> = self.clients[client].papers.keys().copied().collect();
        documents.into_iter().for_each(|document| self.open_document(client, document));
    }

    /// Nobody makes trouble any more.
    pub(super) fn settle_documents(&mut self, client: usize) {
        if self.clients[client].link.is_some() {
            self.send_waiting(client);
            self.open_all_documents(client);
        }
    }

    /// What a client gives credit for in its documents.
    pub(super) fn credit_documents(&mut self, client: usize) -> Vec<ClientOp> {
        let owed =
            self.clients[client].papers.values_mut().filter_map(|paper| Some((paper.number?, paper.owed.take()?)));
        owed.map(|(number, position)| ClientOp::Consumed { subscription: Subscription(number), position }).collect()
    }

    fn again(&mut self, client: usize) {
        if self.settling {
            self.within(AGAIN_US, Event::Act { client });
        }
    }
}
