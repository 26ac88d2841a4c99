//! Documents: clients that edit a copy of their own, thin ones that edit by offsets, and what all of them must end with.
//!
//! Everything that is typed is a mark of its own, put between others or taken out whole. So each mark that was acknowledged
//! stands in the text once, unless somebody took it out, and the text says by itself whether an edit was lost, done twice or
//! done by half.

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_domain::document::Document;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{
    DocumentForm, DocumentNews, DocumentOp, DocumentOperations, OpenDocument, Operations, ReadForm, Side,
};
use thalweg_protocol::ids::{Name, Position, Sequence, Subscription};
use thalweg_protocol::op::{ClientOp, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::Asked;
use crate::faults::Fault;
use crate::world::{Event, Plant, World};

/// Documents of a run.
const DOCUMENTS: u64 = 2;
/// A refused edit is sent again about so much later once clients do nothing new, in microseconds.
const AGAIN_US: u64 = 50_000;

/// What was asked of a document.
#[derive(Debug)]
pub(super) enum DocumentAsked {
    Open(u32),
    Write(Sequence),
    Text(u32),
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
}

fn document_name(document: u32) -> Name {
    Name::new(&format!("paper-{document}")).expect("a valid name")
}

/// The marks of a text, and where each begins.
fn marks(text: &str) -> Vec<(usize, &str)> {
    let ends = text.match_indices('>').map(|(at, _)| at + 1);
    let mut begin = 0;
    ends.map(|end| (std::mem::replace(&mut begin, end), end)).map(|(from, to)| (from, &text[from..to])).collect()
}

impl Paper {
    fn new(client: usize, document: u32) -> Self {
        let copy = match client.is_multiple_of(2) {
            true => Copy::Whole(Box::new(Document::new(client as u64 + 1))),
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

    /// The connection is gone, or the reading is at its end.
    fn part(&mut self) {
        (self.number, self.is_open, self.owed) = (None, false, None);
        self.early.clear();
        self.parts.clear();
    }
}

impl World {
    /// Opens a document, edits it, or stops reading it.
    pub(super) fn act_on_document(&mut self, client: usize) {
        if self.clients[client].tenant > 0 {
            return;
        }
        let document = self.below(DOCUMENTS) as u32;
        self.clients[client].papers.entry(document).or_insert_with(|| Paper::new(client, document));
        self.send_waiting(client);
        if self.chance(0.1) {
            return self.close_document(client, document);
        }
        self.open_document(client, document);
        let Some(paper) = self.clients[client].papers.get(&document) else { return };
        let may = match &paper.copy {
            Copy::Whole(_) => true,
            Copy::Thin { sent, .. } => paper.is_open && sent.is_none() && paper.parts.is_empty(),
        };
        if may {
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
        let open = OpenDocument { document: document_name(document), state, form, make: true, lead };
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

    /// Types a mark between others, or takes one out.
    fn edit_document(&mut self, client: usize, document: u32) {
        let Some(text) = self.clients[client].papers.get(&document).map(Paper::text) else { return };
        let own = &mut self.clients[client];
        own.sequences += 1;
        let sequence = Sequence(own.sequences);
        let there = marks(&text);
        let at = self.below(there.len() as u64 + 1) as usize;
        let delete = self.chance(0.25);
        let offset = there.get(at).map_or(text.len(), |(begin, _)| *begin) as u32;
        let (operations, inserted, deleted) = match there.get(at).filter(|_| delete) {
            Some((_, mark)) => {
                self.papers.marks.entry((document, (*mark).to_owned())).or_default().is_deleting = true;
                (Operations::new().retain(offset).delete(mark.len() as u32), None, Some((*mark).to_owned()))
            }
            None => {
                let mark = format!("<{client}.{sequence}>");
                self.papers.marks.insert((document, mark.clone()), Mark::default());
                (Operations::new().retain(offset).insert(mark.clone()), Some(mark), None)
            }
        };
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
        let post = Post { kind, target };
        let edit = Edit { document, post, body, inserted, deleted, sent: 0, waits: false };
        self.clients[client].edits.insert(sequence, edit.clone());
        self.send_edit(client, sequence);
        if self.options.plant == Some(Plant::DoubleOperation) && kind == PostKind::Operations && self.planted < 9 {
            self.planted += 1;
            self.clients[client].sequences += 1;
            let (sequence, channel) = (Sequence(self.clients[client].sequences), document_name(document));
            let Edit { body, post, .. } = edit;
            let publish = Publish { channel, sequence, retry: false, make: true, body, key: 0, post };
            self.request(client, &ClientOp::Publish(publish), Asked::Other);
        }
    }

    fn send_edit(&mut self, client: usize, sequence: Sequence) {
        let Some(edit) = self.clients[client].edits.get_mut(&sequence) else { return };
        let (retry, post, body) = (edit.sent > 0, edit.post, edit.body.clone());
        (edit.sent, edit.waits) = (edit.sent + 1, false);
        let channel = document_name(edit.document);
        self.faults.add(Fault::EditRetried, u64::from(retry));
        let publish = Publish { channel, sequence, retry, make: true, body, key: 0, post };
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

    pub(super) fn document_answered(&mut self, client: usize, request: u32, asked: DocumentAsked, op: ServerOp) {
        match (asked, op) {
            (DocumentAsked::Open(document), ServerOp::Document(DocumentNews::Opened { revision, .. })) => {
                let Some(paper) = self.clients[client].papers.get_mut(&document) else { return };
                if paper.number == Some(request) {
                    (paper.is_open, paper.revision) = (true, revision);
                    for op in std::mem::take(&mut paper.early) {
                        self.document_news(client, request, op);
                    }
                }
            }
            (DocumentAsked::Open(document), ServerOp::Reject(reject)) => {
                self.refusal_of_document(client, &reject);
                if let Some(paper) = self.clients[client].papers.get_mut(&document) {
                    paper.part();
                }
                self.again(client);
            }
            (DocumentAsked::Write(sequence), ServerOp::Published { .. }) => self.edit_answered(client, sequence),
            (DocumentAsked::Write(sequence), ServerOp::Reject(reject)) => self.edit_refused(client, sequence, &reject),
            (DocumentAsked::Text(document), ServerOp::Document(DocumentNews::State { total, bytes, .. })) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if bytes.len() as u64 != total {
                    self.violation(format!(
                        "client {client}: paper {document} of {total} bytes came in {}",
                        bytes.len()
                    ));
                }
                let first = self.papers.texts.entry(document).or_insert_with(|| text.clone()).clone();
                if first != text {
                    self.violation(format!(
                        "paper {document} reads {text:?} to client {client}, and {first:?} to another"
                    ));
                }
            }
            (asked, op) => self.violation(format!("client {client}: {asked:?} was answered by {op:?}")),
        }
    }

    fn edit_answered(&mut self, client: usize, sequence: Sequence) {
        let Some(edit) = self.clients[client].edits.remove(&sequence) else { return };
        self.faults.count(Fault::DocumentEdited);
        if let Some(mark) = edit.inserted {
            self.papers.marks.entry((edit.document, mark)).or_default().is_typed = true;
        }
        if let Some(mark) = edit.deleted {
            self.papers.marks.entry((edit.document, mark)).or_default().is_deleted = true;
        }
        if self.settling {
            self.settle_documents(client);
        }
    }

    fn edit_refused(&mut self, client: usize, sequence: Sequence, reject: &Reject) {
        let Some(edit) = self.clients[client].edits.get_mut(&sequence) else { return };
        let (document, is_update) = (edit.document, edit.post.kind == PostKind::Update);
        edit.waits = true;
        match reject.code {
            // What it builds on was refused.
            RejectCode::UpdateIncomplete if is_update => {}
            // Made at a revision that the node no longer has at hand, or of which nothing outlived it.
            RejectCode::RevisionUnknown | RejectCode::SequenceInvalid if !is_update => {}
            _ => self.refusal_of_document(client, reject),
        }
        if !is_update {
            // It may have been carried out all the same, if it was sent more than once.
            self.clients[client].edits.remove(&sequence);
            self.close_document(client, document);
        }
        self.again(client);
    }

    fn again(&mut self, client: usize) {
        if self.settling {
            self.within(AGAIN_US, Event::Act { client });
        }
    }

    /// Judges why something was refused.
    fn refusal_of_document(&mut self, client: usize, reject: &Reject) {
        let is_lawful = match reject.code {
            RejectCode::RateLimited | RejectCode::QuotaExceeded => self.is_limited(),
            RejectCode::Overloaded => self.is_pressed(),
            RejectCode::Draining => true,
            RejectCode::Busy => true,
            RejectCode::StorageFull => self.was_full,
            RejectCode::StorageDamaged => self.was_rotten,
            _ => false,
        };
        match is_lawful {
            true => self.faults.count(Fault::DocumentRefused),
            false => self.violation(format!("client {client}: a document was refused: {reject}")),
        }
    }

    /// Whether a frame of the delivery lane is of a document.
    pub(super) fn is_of_document(&self, client: usize, number: u32) -> bool {
        self.clients[client].papers.values().any(|paper| paper.number == Some(number))
    }

    /// What is told about a document.
    pub(super) fn document_news(&mut self, client: usize, number: u32, op: ServerOp) {
        let mut papers = self.clients[client].papers.values_mut();
        let Some(paper) = papers.find(|paper| paper.number == Some(number)) else { return };
        if !paper.is_open {
            return paper.early.push(op);
        }
        let (document, before) = (paper.document, paper.revision);
        let told = match op {
            ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Update => {
                let is_merged = delivery.context.target.0 > 0 && delivery.context.target < delivery.position;
                self.faults.add(Fault::EditsMerged, u64::from(is_merged));
                if self.options.plant == Some(Plant::DropUpdate) && self.planted < 40 {
                    self.planted += 1;
                    return;
                }
                self.take_update(client, document, delivery.position, &delivery.body)
            }
            ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Version => Ok(delivery.position),
            ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
                self.take_state(client, document, revision, (offset, total), &bytes)
            }
            ServerOp::Document(DocumentNews::Operations(news)) => self.take_operations(client, document, &news),
            ServerOp::Document(DocumentNews::Awareness { .. }) => return,
            ServerOp::Ended(reject) => {
                self.refusal_of_document(client, &reject);
                if let Some(paper) = self.clients[client].papers.get_mut(&document) {
                    paper.part();
                }
                return self.again(client);
            }
            op => Err(format!("{op:?}")),
        };
        let position = match told {
            Ok(position) => position,
            Err(text) => return self.violation(format!("client {client}: paper {document}: {text}")),
        };
        if position < before {
            self.violation(format!("client {client}: paper {document} went back from {before} to {position}"));
        }
        let slow = self.clients[client].slow;
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return };
        paper.revision = position;
        if slow {
            paper.owed = Some(position);
        } else {
            self.say(client, 0, &ClientOp::Consumed { subscription: Subscription(number), position });
        }
    }

    fn take_update(&mut self, client: usize, document: u32, at: Position, update: &[u8]) -> Result<Position, String> {
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return Ok(at) };
        let Copy::Whole(copy) = &mut paper.copy else { return Err("a thin client was sent an update".into()) };
        copy.replay(update).map_err(|reject| format!("the update of {at} does not follow: {reject}"))?;
        Ok(at)
    }

    fn take_state(
        &mut self,
        client: usize,
        document: u32,
        revision: Position,
        (offset, total): (u64, u64),
        bytes: &[u8],
    ) -> Result<Position, String> {
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return Ok(revision) };
        if offset != paper.parts.len() as u64 {
            return Err(format!("a part of its state at {offset} follows {} bytes", paper.parts.len()));
        }
        paper.parts.extend_from_slice(bytes);
        if (paper.parts.len() as u64) < total {
            return Ok(paper.revision);
        }
        let state = std::mem::take(&mut paper.parts);
        match &mut paper.copy {
            Copy::Whole(copy) => drop(copy.replay(&state).map_err(|reject| format!("its state is none: {reject}"))?),
            Copy::Thin { text, sent } => {
                (*text, *sent) = (String::from_utf8(state).map_err(|_| "its text is none".to_owned())?, None);
            }
        }
        self.faults.count(Fault::StateTaken);
        Ok(revision)
    }

    fn take_operations(&mut self, client: usize, document: u32, news: &DocumentOperations) -> Result<Position, String> {
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return Ok(news.to) };
        let before = paper.revision;
        let Copy::Thin { text, sent } = &mut paper.copy else { return Err("a whole copy was sent operations".into()) };
        if news.from <= before {
            return Err(format!("operations from {} follow {before}", news.from));
        }
        if let Some(own) = news.own {
            // Its own edit, at its place in the order; one that it no longer knows of is in no text it has.
            if sent.take_if(|(sequence, _)| *sequence == own).is_none() {
                self.close_document(client, document);
                self.again(client);
            }
            return Ok(news.to);
        }
        let mut theirs = Operations::decode(&news.operations).map_err(|reject| reject.to_string())?;
        if let Some((_, mine)) = sent {
            let after = theirs.transform(mine, Side::First);
            *mine = mine.transform(&theirs, Side::Second);
            theirs = after;
        }
        *text = theirs.apply(text).map_err(|reject| format!("operations to {} do not fit: {reject}", news.to))?;
        Ok(news.to)
    }

    /// Asks for the texts that all must have by now.
    pub(crate) fn ask_documents(&mut self, client: usize) {
        let documents: Vec<u32> = self.clients[client].papers.keys().copied().collect();
        for document in documents {
            let (name, revision) = (document_name(document), Position(0));
            let op = DocumentOp::Read { document: name, revision, form: ReadForm::Text, offset: 0 };
            self.request(client, &ClientOp::Document(op), Asked::Document(DocumentAsked::Text(document)));
        }
    }

    /// Whether everybody has the text, and the text what was acknowledged. Then nobody reads any more, so that the node can let
    /// go of the documents.
    pub(crate) fn judge_documents(&mut self) {
        let texts = std::mem::take(&mut self.papers.texts);
        let mut found = Vec::new();
        for (number, client) in self.clients.iter().enumerate() {
            for (document, paper) in &client.papers {
                match texts.get(document) {
                    Some(text) if *text == paper.text() && paper.is_open => {}
                    Some(text) => found.push(format!(
                        "client {number} ends with {:?} (open: {}, at {}) in paper {document}, which reads {text:?}",
                        paper.text(),
                        paper.is_open,
                        paper.revision,
                    )),
                    None => found.push(format!("client {number}: nobody was told the text of paper {document}")),
                }
            }
        }
        for (document, text) in &texts {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            marks(text).into_iter().for_each(|(_, mark)| *counts.entry(mark).or_default() += 1);
            for (mark, count) in &counts {
                if !self.papers.marks.contains_key(&(*document, (*mark).to_owned())) {
                    found.push(format!("paper {document} holds {mark:?}, which nobody typed"));
                }
                if *count > 1 {
                    found.push(format!("paper {document} holds {mark} {count} times"));
                }
            }
            for ((_, mark), state) in self.papers.marks.iter().filter(|((of, _), _)| of == document) {
                match counts.contains_key(mark.as_str()) {
                    false if state.is_typed && !state.is_deleting => {
                        found.push(format!("paper {document} lost {mark}, which was acknowledged"));
                    }
                    true if state.is_deleted => {
                        found.push(format!("paper {document} holds {mark}, whose deletion was acknowledged"));
                    }
                    _ => {}
                }
            }
        }
        found.into_iter().for_each(|text| self.violation(text));
        for client in 0..self.clients.len() {
            for document in 0..DOCUMENTS as u32 {
                self.close_document(client, document);
            }
        }
    }
}
