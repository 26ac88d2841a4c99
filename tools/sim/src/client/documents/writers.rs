//! Models that clients ask to write in documents.

use std::collections::BTreeSet;

use thalweg_protocol::document::{AskInDocument, DocumentOp, Place, utf16_len};
use thalweg_protocol::ids::{GenerationId, Position};
use thalweg_protocol::limits::DOCUMENT_CONTEXT_BYTES;
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::{Copy, DOOMED, DocumentAsked, document_name};
use crate::chronicle::{AskedAt, Piece, pieces};
use crate::client::Asked;
use crate::faults::Fault;
use crate::world::World;

/// Pieces of a text that are to be written anew, at most.
const SELECTED_MAX: u64 = 4;
/// Models that are remembered, to be stopped.
const MODELS_MAX: usize = 8;

impl World {
    /// Asks a model to write in a document, at a place or instead of what is there.
    pub(super) fn ask_in_document(&mut self, client: usize, document: u32) {
        let Some(paper) = self.clients[client].papers.get(&document).filter(|paper| paper.is_at_hand()) else {
            return self.open_document(client, document);
        };
        let (text, revision) = (paper.text(), paper.revision);
        let there = pieces(&text);
        let from = self.below(there.len() as u64 + 1) as usize;
        // Of a document that is made again nobody knows in which one offsets are used.
        let may_select = document != DOOMED && self.chance(0.35);
        let count = if may_select { self.below(SELECTED_MAX + 1) as usize } else { 0 };
        let to = (from + count).min(there.len());
        let end = utf16_len(&text);
        let offset = |at: usize| there.get(at).map_or(end, |piece| piece.at);
        let (start, stop) = (offset(from), offset(to));
        let mark = |piece: &Piece<'_>| piece.is_mark.then(|| piece.text.to_owned());
        let selected: BTreeSet<String> = there[from..to].iter().filter_map(mark).collect();
        for mark in &selected {
            self.papers.marks.entry((document, mark.clone())).or_default().is_deleting = true;
        }
        let left = from.checked_sub(1).and_then(|at| there.get(at)).and_then(mark);
        let right = there.get(to).and_then(mark);
        let at =
            AskedAt { left, right, selected, is_selection: start < stop, all: there.iter().filter_map(mark).collect() };
        // What is too long to be written anew is refused as what is nowhere.
        let is_long = (stop - start) as usize > DOCUMENT_CONTEXT_BYTES / 2;
        let is_unsure = is_long || self.clients[client].edits.values().any(|edit| edit.document == document);
        let place = self.place(client, document, (start, stop), revision);
        let Some(place) = place else { return };
        let ask = AskInDocument {
            document: document_name(document),
            instruction: "go on".into(),
            model: self.models.word(),
            place,
            max_tokens: 1 + self.below(120) as u32,
            temperature: 0.0,
            seed: Some(7),
        };
        let asked = DocumentAsked::Ask { document, at, is_unsure };
        self.request(client, &ClientOp::Document(DocumentOp::Ask(Box::new(ask))), Asked::Document(asked));
    }

    /// A place in a client's copy of a document, as such a client says it.
    fn place(&mut self, client: usize, document: u32, (start, end): (u32, u32), revision: Position) -> Option<Place> {
        match &self.clients[client].papers.get(&document)?.copy {
            Copy::Thin { .. } => Some(Place::Offsets { revision, start, end }),
            Copy::Whole(copy) => {
                let (start, end) = match start == end {
                    true => (copy.anchor(start, false)?, copy.anchor(start, false)?),
                    false => (copy.anchor(start, true)?, copy.anchor(end, false)?),
                };
                Some(Place::Anchors { start: start.encode(), end: end.encode() })
            }
        }
    }

    pub(super) fn model_asked(&mut self, client: usize, document: u32, at: AskedAt, generation: GenerationId) {
        self.faults.count(Fault::ModelAskedInDocument);
        self.truth.chronicle.asked(generation, at);
        self.meet_model(client, document, generation);
    }

    /// A client learns that a model writes in a document.
    pub(super) fn meet_model(&mut self, client: usize, document: u32, generation: GenerationId) {
        self.heard.entry(generation).or_insert(0);
        self.generation_tenants.entry(generation).or_insert(self.clients[client].tenant);
        if !self.papers.models.contains(&(document, generation)) {
            self.papers.models.push_back((document, generation));
            if self.papers.models.len() > MODELS_MAX {
                self.papers.models.pop_front();
            }
        }
    }

    pub(super) fn ask_refused(&mut self, client: usize, document: u32, is_unsure: bool, reject: &Reject) {
        self.check_unrouted(client, reject);
        match reject.code {
            RejectCode::ModelUnknown => {}
            // What it knows of the document the node does not, or no longer.
            RejectCode::ParameterInvalid if is_unsure => {}
            RejectCode::ParameterInvalid if document == DOOMED => {}
            RejectCode::RevisionUnknown => {}
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted if document == DOOMED => {
                self.faults.count(Fault::DocumentGoneRefused);
            }
            _ => self.refusal_of_document(client, Some(document), reject),
        }
    }

    /// Stops a model that writes in a document.
    pub(super) fn stop_model(&mut self, client: usize, document: u32) {
        let newest = self.papers.models.iter().rev().find(|(of, _)| *of == document);
        let Some(&(_, generation)) = newest.filter(|_| self.clients[client].link.is_some()) else { return };
        let asked = Asked::Document(DocumentAsked::Stop(generation));
        self.request(client, &ClientOp::Cancel { generation }, asked);
    }

    pub(super) fn stop_answered(&mut self, client: usize, generation: GenerationId, op: ServerOp) {
        match op {
            ServerOp::Done => self.writer_stopped(generation),
            ServerOp::Reject(reject) if reject.code == RejectCode::GenerationUnknown => {}
            ServerOp::Reject(reject) => self.refusal_of_document(client, None, &reject),
            op => self.violation(format!("client {client}: a stop of {generation} was answered by {op:?}")),
        }
    }
}
