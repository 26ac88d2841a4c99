//! Documents as they were: read, named, put back.

use bytes::Bytes;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{DocumentOp, ReadForm};
use thalweg_protocol::ids::Position;
use thalweg_protocol::op::ClientOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::{DOOMED, DocumentAsked, Edit, document_name};
use crate::client::Asked;
use crate::faults::Fault;
use crate::world::{Plant, World};

/// A document that is being read in pieces.
#[derive(Debug)]
pub(in crate::client) struct Reading {
    pub(super) document: u32,
    /// As it was at this revision; 0: as it is.
    pub(super) revision: Position,
    /// How many documents had been deleted when it was asked for.
    since: u64,
    parts: Vec<u8>,
    /// All is over: everybody must read the same.
    pub(super) is_last: bool,
}

/// A revision that somebody gave a name.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) document: u32,
    pub(super) position: Position,
    pub(super) name: String,
    /// 0: the newest there was.
    pub(super) target: Position,
}

impl World {
    pub(super) fn read_revision(&mut self, client: usize, document: u32) {
        let Some(paper) = self.clients[client].papers.get(&document).filter(|paper| paper.is_open) else { return };
        let newest = paper.revision;
        let revision = Position(self.below(newest.0 + 1));
        self.read_document(client, document, revision, false);
    }

    /// Reads a document, now or as it was.
    pub(super) fn read_document(&mut self, client: usize, document: u32, revision: Position, is_last: bool) {
        let since = self.truth.chronicle.deletions();
        self.read_on(client, Reading { document, revision, since, parts: Vec::new(), is_last });
    }

    fn read_on(&mut self, client: usize, reading: Reading) {
        if self.clients[client].link.is_none() {
            return;
        }
        let (document, offset) = (document_name(reading.document), reading.parts.len() as u64);
        let mut revision = reading.revision;
        if self.options.plant == Some(Plant::ReadOther) && revision.0 > 1 && offset == 0 {
            revision.0 -= 1;
        }
        let op = DocumentOp::Read { document, revision, form: ReadForm::Text, offset };
        self.request(client, &ClientOp::Document(op), Asked::Document(DocumentAsked::Read(reading)));
    }

    /// A piece of a document came.
    pub(super) fn piece_of_document(
        &mut self,
        client: usize,
        mut reading: Reading,
        revision: Position,
        (offset, total): (u64, u64),
        bytes: &[u8],
    ) {
        let (document, has) = (reading.document, reading.parts.len() as u64);
        let is_asked = reading.revision == Position(0) || reading.revision == revision;
        let is_planted = self.options.plant == Some(Plant::ReadOther);
        if offset != has || offset + bytes.len() as u64 > total || !(is_asked || is_planted) {
            let text = format!("{} bytes at {offset} of {total}, revision {revision}", bytes.len());
            return self.violation(format!("client {client}: {reading:?} of paper {document} was answered by {text}"));
        }
        reading.parts.extend_from_slice(bytes);
        if (reading.parts.len() as u64) < total {
            if reading.revision == Position(0) {
                reading.revision = revision;
            }
            return self.read_on(client, reading);
        }
        let text = String::from_utf8_lossy(&reading.parts).into_owned();
        let said = if is_asked { revision } else { reading.revision };
        match self.truth.chronicle.reads(&document_name(document), reading.since, said, &text) {
            Ok(outlived) if reading.revision > Position(0) => {
                self.faults.count(Fault::RevisionRead);
                self.faults.add(Fault::RevisionOutlived, outlived.into());
            }
            Ok(_) => {}
            Err(text) => self.violation(format!("client {client}: {text}")),
        }
        if reading.is_last && reading.revision == Position(0) {
            let first = self.papers.texts.entry(document).or_insert_with(|| text.clone()).clone();
            if first != text {
                self.violation(format!("paper {document} reads {text:?} to client {client}, and {first:?} to another"));
            }
        }
    }

    pub(super) fn reading_refused(&mut self, client: usize, reading: &Reading, reject: &Reject) {
        match reject.code {
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted if reading.document == DOOMED => {
                self.faults.count(Fault::DocumentGoneRefused);
            }
            // It was made again between two pieces.
            RejectCode::RevisionUnknown | RejectCode::ParameterInvalid if reading.document == DOOMED => {}
            // Nobody reads many at a time as they were.
            RejectCode::Busy if reading.revision > Position(0) => self.faults.count(Fault::DocumentRefused),
            _ if reading.is_last && reject.code != RejectCode::StorageDamaged => {
                self.violation(format!("client {client}: {reading:?} was refused at last: {reject}"));
            }
            _ => self.refusal_of_document(client, Some(reading.document), reject),
        }
    }

    /// Gives a revision a name.
    pub(super) fn name_version(&mut self, client: usize, document: u32) {
        let Some(paper) = self.clients[client].papers.get(&document).filter(|paper| paper.is_open) else { return };
        let newest = paper.revision;
        let target = Position(self.below(newest.0 + 1));
        let sequence = self.next_sequence(client);
        let body = Bytes::from(format!("draft {client}.{sequence}"));
        self.command_document(client, document, sequence, Post { kind: PostKind::Version, target }, body);
    }

    /// Makes a document what it was.
    pub(super) fn restore_document(&mut self, client: usize, document: u32) {
        let newest = self.clients[client].papers.get(&document).map_or(Position(0), |paper| paper.revision);
        if newest == Position(0) {
            return;
        }
        let target = Position(1 + self.below(newest.0));
        let sequence = self.next_sequence(client);
        self.truth.chronicle.restores(self.clients[client].session, sequence, target);
        self.command_document(client, document, sequence, Post { kind: PostKind::Restore, target }, Bytes::new());
    }

    fn command_document(
        &mut self,
        client: usize,
        document: u32,
        sequence: thalweg_protocol::ids::Sequence,
        post: Post,
        body: Bytes,
    ) {
        let (inserted, deleted) = (None, None);
        let edit = Edit { document, post, body, make: false, inserted, deleted, sent: 0, waits: false };
        self.clients[client].edits.insert(sequence, edit);
        self.send_edit(client, sequence);
    }

    /// Reads what versions mean, now that all is over.
    pub(super) fn read_versions(&mut self, client: usize) {
        if self.clients[client].tenant > 0 {
            return;
        }
        let own = self.clients.iter().filter(|client| client.tenant == 0).count();
        let versions = self.papers.versions.iter().enumerate().filter(|(at, _)| at % own == client);
        let targets: Vec<_> = versions.map(|(_, version)| (version.document, version.target)).collect();
        for (document, target) in targets.into_iter().filter(|(_, target)| *target > Position(0)) {
            self.read_document(client, document, target, true);
        }
    }
}
