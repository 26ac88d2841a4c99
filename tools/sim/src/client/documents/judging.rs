//! What documents read in the end, to everybody and by their log.

use std::collections::BTreeMap;

use thalweg_protocol::ids::Position;

use super::{DOOMED, Mark, document_name};
use crate::chronicle::{marks, pieces};
use crate::world::World;

impl World {
    /// Asks for the texts that all must have by now, and for what was named.
    pub(crate) fn ask_documents(&mut self, client: usize) {
        let documents: Vec<u32> = self.clients[client].papers.keys().copied().collect();
        for document in documents {
            self.read_document(client, document, Position(0), true);
        }
        self.read_versions(client);
    }

    /// Whether everybody has the text, and the text what was acknowledged. Then nobody reads any more, so that the node can let
    /// go of the documents.
    pub(crate) fn judge_documents(&mut self) {
        let texts = std::mem::take(&mut self.papers.texts);
        let mut found = self.judge_copies(&texts);
        for (&document, text) in &texts {
            found.extend(self.judge_marks(document, text));
        }
        found.extend(self.judge_homes(&texts));
        found.extend(self.judge_versions());
        let restored = self.papers.restores.then(|| document_name(super::RESTORED));
        let is_restored = |name: &str| restored.as_ref().is_some_and(|restored| restored.as_str() == name);
        found.extend(self.truth.chronicle.judge_writings(is_restored));
        found.extend(self.judge_tokens());
        found.into_iter().for_each(|text| self.violation(text));
        for client in 0..self.clients.len() {
            for document in 0..=DOOMED {
                self.close_document(client, document);
            }
        }
    }

    /// Whether everybody who reads a document has what it reads.
    fn judge_copies(&self, texts: &BTreeMap<u32, String>) -> Vec<String> {
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
                    // Nobody makes one anew that was deleted.
                    None if *document == DOOMED && !paper.is_open => {}
                    None => found.push(format!("client {number}: nobody was told the text of paper {document}")),
                }
            }
        }
        found
    }

    /// Whether a document reads what its log says, and holds what was acknowledged.
    fn judge_marks(&self, document: u32, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let name = document_name(document);
        let newest = self.truth.chronicle.newest(&name).map(|(_, text)| text);
        if newest.as_deref() != Some(text) {
            found.push(format!("paper {document} reads {text:?}, and by its log {newest:?}"));
        }
        if self.papers.is_restored(document) {
            return found;
        }
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        marks(text).for_each(|mark| *counts.entry(mark).or_default() += 1);
        for (mark, count) in &counts {
            if !self.papers.marks.contains_key(&(document, (*mark).to_owned())) {
                found.push(format!("paper {document} holds {mark:?}, which nobody typed"));
            }
            if *count > 1 {
                found.push(format!("paper {document} holds {mark} {count} times"));
            }
        }
        let by_people = self.truth.chronicle.by_people(&name).unwrap_or_default();
        let others = pieces(&by_people).into_iter().filter(|piece| !piece.is_mark);
        for piece in others.filter(|piece| !piece.text.trim().is_empty()) {
            found.push(format!("paper {document} holds {:?}, which no model wrote", piece.text));
        }
        for ((_, mark), state) in self.papers.marks.iter().filter(|((of, _), _)| *of == document) {
            found.extend(self.judge_mark(document, mark, *state, counts.contains_key(mark.as_str())));
        }
        found
    }

    fn judge_mark(&self, document: u32, mark: &str, state: Mark, is_there: bool) -> Option<String> {
        // One that was typed in a document that is gone is gone with it.
        let was_taken = state.is_deleting || self.truth.chronicle.was_rewritten(mark);
        let was_here = document != DOOMED || self.truth.chronicle.homes(mark).1;
        match is_there {
            false if state.is_typed && !was_taken && was_here => {
                Some(format!("paper {document} lost {mark}, which was acknowledged"))
            }
            true if state.is_deleted => Some(format!("paper {document} holds {mark}, whose deletion was acknowledged")),
            _ => None,
        }
    }

    /// Whether each mark was typed in one document, and in one only: nothing of one that was deleted is in the next.
    fn judge_homes(&self, texts: &BTreeMap<u32, String>) -> Vec<String> {
        let typed = self.papers.marks.iter().map(|((document, mark), state)| (*document, mark, state));
        let judge = |(document, mark, state): (u32, &String, &Mark)| {
            let (homes, alive) = self.truth.chronicle.homes(mark);
            // What is put back may cut marks that are typed meanwhile.
            let is_missing = homes == 0 && !self.papers.is_restored(document) && state.is_typed && !state.is_deleting;
            match document {
                _ if homes > 1 => Some(format!("paper {document}: {mark} is in {homes} documents of that name")),
                _ if is_missing => Some(format!("paper {document}: {mark} was acknowledged, and is in no log")),
                DOOMED if alive && !texts.contains_key(&document) => {
                    let newest = self.truth.chronicle.newest(&document_name(document));
                    let holds = newest.is_some_and(|(_, text)| marks(&text).any(|other| other == mark));
                    let lost = !holds && state.is_typed && !state.is_deleting;
                    lost.then(|| format!("paper {document} lost {mark}, which was acknowledged"))
                }
                _ => None,
            }
        };
        typed.filter_map(judge).collect()
    }

    /// Whether versions are what they were given to be.
    fn judge_versions(&self) -> Vec<String> {
        let judge = |version: &super::Version| {
            let known = self.truth.chronicle.version(&document_name(version.document), version.position);
            let is_meant = |target: Position| match version.target {
                Position(0) => target < version.position,
                meant => target == meant,
            };
            let sound = known.as_ref().is_some_and(|(name, target)| *name == version.name && is_meant(*target));
            (!sound).then(|| format!("{version:?} is {known:?} in the log"))
        };
        self.papers.versions.iter().filter_map(judge).collect()
    }

    /// Whether what models wrote is what they said.
    fn judge_tokens(&self) -> Vec<String> {
        let judge = |(id, tokens, text): (_, u32, &str)| {
            let said = self.said.version(id, self.epoch).and_then(|version| version.range(0, tokens));
            (said.unwrap_or_default() != text).then(|| format!("{id} said {said:?}, and {text:?} was written of it"))
        };
        self.truth.chronicle.model_texts().filter_map(judge).collect()
    }
}
