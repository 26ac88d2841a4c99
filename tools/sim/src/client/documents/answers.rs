//! What clients make of what they are told about documents.

use thalweg_protocol::chat::PostKind;
use thalweg_protocol::document::{DocumentNews, DocumentOperations, Operations, Side};
use thalweg_protocol::ids::{Position, Sequence, Subscription};
use thalweg_protocol::op::{ClientOp, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::past::Version;
use super::{Copy, DOOMED, DocumentAsked, Edit, document_name};
use crate::client::Asked;
use crate::faults::Fault;
use crate::world::{Plant, World};

impl World {
    pub(in crate::client) fn document_answered(
        &mut self,
        client: usize,
        request: u32,
        asked: DocumentAsked,
        op: ServerOp,
    ) {
        match (asked, op) {
            (DocumentAsked::Open(document), ServerOp::Document(DocumentNews::Opened { revision, .. })) => {
                self.document_opened(client, request, document, revision);
            }
            (DocumentAsked::Open(document), ServerOp::Reject(reject)) => {
                let is_current =
                    self.clients[client].papers.get(&document).is_some_and(|paper| paper.number == Some(request));
                self.opening_refused(client, document, is_current, &reject);
            }
            (DocumentAsked::Write(sequence), ServerOp::Published { position, duplicate, .. }) => {
                self.edit_answered(client, sequence, position, duplicate);
            }
            (DocumentAsked::Write(sequence), ServerOp::Reject(reject)) => self.edit_refused(client, sequence, &reject),
            (
                DocumentAsked::Read(reading),
                ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }),
            ) => self.piece_of_document(client, reading, revision, (offset, total), &bytes),
            (DocumentAsked::Read(reading), ServerOp::Reject(reject)) => {
                self.reading_refused(client, &reading, &reject);
            }
            (DocumentAsked::Delete(document), op) => self.deletion_answered(client, document, op),
            (DocumentAsked::Ask { document, at, .. }, ServerOp::Asked { generation, .. }) => {
                self.model_asked(client, document, at, generation);
            }
            (DocumentAsked::Ask { document, is_unsure, .. }, ServerOp::Reject(reject)) => {
                self.ask_refused(client, document, is_unsure, &reject);
            }
            (DocumentAsked::Stop(generation), op) => self.stop_answered(client, generation, op),
            (DocumentAsked::Hostile(hostile), op) => self.hostile_answered(client, hostile, op),
            (asked, op) => self.violation(format!("client {client}: {asked:?} was answered by {op:?}")),
        }
    }

    fn document_opened(&mut self, client: usize, request: u32, document: u32, revision: Position) {
        let Some(paper) = self.clients[client].papers.get_mut(&document) else { return };
        if paper.number == Some(request) {
            (paper.is_open, paper.revision) = (true, revision);
            for op in std::mem::take(&mut paper.early) {
                self.document_news(client, request, op);
            }
        }
    }

    fn opening_refused(&mut self, client: usize, document: u32, is_current: bool, reject: &Reject) {
        let is_gone = matches!(
            reject.code,
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted | RejectCode::SubscriptionInvalid
        );
        if is_gone && document == DOOMED {
            self.faults.count(Fault::DocumentGoneRefused);
        } else {
            self.refusal_of_document(client, Some(document), reject);
        }
        if let Some(paper) = self.clients[client].papers.get_mut(&document).filter(|_| is_current) {
            paper.part();
            if document == DOOMED {
                self.forget_paper(client, document);
            }
        }
        self.again(client);
    }

    fn deletion_answered(&mut self, client: usize, document: u32, op: ServerOp) {
        match op {
            ServerOp::Done => {
                self.faults.count(Fault::DocumentDeleted);
                if self.options.plant == Some(Plant::KeepDeletedText) {
                    self.write_deleted_text(client, document);
                }
            }
            ServerOp::Reject(reject) if reject.code == RejectCode::ChannelUnknown => {}
            ServerOp::Reject(reject) => self.refusal_of_document(client, Some(document), &reject),
            op => self.violation(format!("client {client}: a deletion was answered by {op:?}")),
        }
    }

    /// Makes a document anew with what stood in the one that was deleted, as a defect.
    fn write_deleted_text(&mut self, client: usize, document: u32) {
        let channel = document_name(document);
        let Some(text) = self.truth.chronicle.deleted_texts(&channel).find(|text| !text.is_empty()) else { return };
        let (sequence, body) = (self.next_sequence(client), Operations::new().insert(text).encode());
        let post = thalweg_protocol::chat::Post { kind: PostKind::Operations, target: Position(0) };
        let publish = Publish { channel, sequence, retry: false, make: true, body, key: 0, post };
        self.request(client, &ClientOp::Publish(publish), Asked::Other);
    }

    fn edit_answered(&mut self, client: usize, sequence: Sequence, position: Position, duplicate: bool) {
        let Some(edit) = self.clients[client].edits.remove(&sequence) else { return };
        self.faults.count(Fault::DocumentEdited);
        let Edit { document, post, body, inserted, deleted, .. } = edit;
        if let Some(mark) = inserted {
            self.papers.marks.entry((document, mark)).or_default().is_typed = true;
        }
        if let Some(mark) = deleted {
            self.papers.marks.entry((document, mark)).or_default().is_deleted = true;
        }
        if post.kind == PostKind::Version && document != DOOMED {
            let name = String::from_utf8_lossy(&body).into_owned();
            self.papers.versions.push(Version { document, position, name, target: post.target });
        }
        let _ = duplicate;
        if self.settling {
            self.settle_documents(client);
        }
    }

    fn edit_refused(&mut self, client: usize, sequence: Sequence, reject: &Reject) {
        let Some(edit) = self.clients[client].edits.get_mut(&sequence) else { return };
        let (document, kind) = (edit.document, edit.post.kind);
        let is_update = kind == PostKind::Update;
        edit.waits = true;
        match reject.code {
            // What it builds on was refused, or was of the one that is gone.
            RejectCode::UpdateIncomplete if is_update => {}
            // Made at a revision that the node no longer has at hand, or of which nothing outlived it.
            RejectCode::RevisionUnknown if kind == PostKind::Operations || document == DOOMED => {}
            RejectCode::SequenceInvalid if !is_update => {}
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted if document == DOOMED => {
                self.faults.count(Fault::DocumentGoneRefused);
            }
            _ => self.refusal_of_document(client, Some(document), reject),
        }
        if document == DOOMED {
            // What it has may be of the one that was deleted: it begins anew.
            self.forget_paper(client, document);
        } else if !is_update {
            // It may have been carried out all the same, if it was sent more than once.
            self.clients[client].edits.remove(&sequence);
            if kind == PostKind::Operations {
                self.close_document(client, document);
            }
        }
        self.again(client);
    }

    /// Judges why something was refused.
    pub(super) fn refusal_of_document(&mut self, client: usize, document: Option<u32>, reject: &Reject) {
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
            false => {
                self.violation(format!("client {client}: something of paper {document:?} was refused: {reject}"));
            }
        }
    }

    /// Whether a frame of the delivery lane is of a document.
    pub(in crate::client) fn is_of_document(&self, client: usize, number: u32) -> bool {
        self.clients[client].papers.values().any(|paper| paper.number == Some(number))
    }

    /// What is told about a document.
    pub(in crate::client) fn document_news(&mut self, client: usize, number: u32, op: ServerOp) {
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
                if let Some(generation) = delivery.generation {
                    self.meet_model(client, document, generation);
                }
                self.take_update(client, document, delivery.position, &delivery.body)
            }
            ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Version => Ok(delivery.position),
            ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
                self.take_state(client, document, revision, (offset, total), &bytes)
            }
            ServerOp::Document(DocumentNews::Operations(news)) => {
                if let Some(generation) = news.generation {
                    self.meet_model(client, document, generation);
                }
                self.take_operations(client, document, &news)
            }
            ServerOp::Document(DocumentNews::Awareness { .. }) => return,
            ServerOp::Ended(reject) => return self.reading_ended(client, document, &reject),
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

    /// A reader is told no more: for a reason that passes, or because its document was deleted.
    fn reading_ended(&mut self, client: usize, document: u32, reject: &Reject) {
        if reject.code == RejectCode::ChannelDeleted && document == DOOMED {
            self.faults.count(Fault::DocumentReaderTold);
        } else {
            self.refusal_of_document(client, Some(document), reject);
        }
        if let Some(paper) = self.clients[client].papers.get_mut(&document) {
            paper.part();
        }
        if document == DOOMED {
            self.forget_paper(client, document);
        }
        self.again(client);
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
}
