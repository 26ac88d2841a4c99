//! What documents must read: made of the records of the log one by one, as they become durable.
//!
//! Every document that there ever was is followed edit by edit, without snapshots, merging or caches, and each character of it
//! is known to be a person's or a model's. So it is known what each revision reads, what a model wrote and where, and what was
//! of a document that is gone. Nothing here asks the node.

mod writing;

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use thalweg_domain::document::Document;
use thalweg_domain::record::{Event, Message, Posting, Record};
use thalweg_protocol::document::{Operation, Operations, utf16_len};
use thalweg_protocol::ids::{ChannelId, GenerationId, Name, Partition, Position, Sequence, SessionId};
use thalweg_protocol::op::DeliveryKind;

use crate::faults::{Fault, Faults};

pub(crate) use writing::AskedAt;
use writing::Writing;

/// How the documents of a run begin to be called.
pub(crate) const PAPER: &str = "paper-";

/// One of the documents that had a name.
pub(crate) type Life = (Partition, ChannelId);

/// A code unit of a text, and which of a model's it is if a model wrote it.
#[derive(Debug, Clone, Copy)]
struct Unit {
    code: u16,
    by: Option<(GenerationId, u32)>,
}

/// A stretch of a text: what somebody typed at once, or what is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    /// Where it begins, in code units.
    pub(crate) at: u32,
    pub(crate) text: &'a str,
    /// Whether it is a mark: typed at once, to be taken out at once.
    pub(crate) is_mark: bool,
}

/// The pieces of a text: marks, which are `<…>` or `@ai …;`, and what is between them.
pub(crate) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest, mut at) = (Vec::new(), text, 0);
    while let Some(first) = rest.chars().next() {
        let ends = match first {
            '<' => Some('>'),
            '@' => Some(';'),
            _ => None,
        };
        let length = match ends {
            Some(end) => rest.find(end).map_or(rest.len(), |found| found + 1),
            None => rest.find(['<', '@']).unwrap_or(rest.len()),
        };
        let (text, after) = rest.split_at(length);
        pieces.push(Piece { at, text, is_mark: ends.is_some() });
        (rest, at) = (after, at + utf16_len(text));
    }
    pieces
}

/// The marks of a text.
pub(crate) fn marks(text: &str) -> impl Iterator<Item = &str> {
    pieces(text).into_iter().filter(|piece| piece.is_mark).map(|piece| piece.text)
}

/// A document as its log says.
struct Paper {
    name: Name,
    document: Document,
    units: Vec<Unit>,
    /// What each revision did to the text.
    edits: Vec<(Position, Operations)>,
    head: Position,
    /// The newest revision when the node died last.
    outlived: Position,
    /// Its name, and the revision it means.
    versions: BTreeMap<Position, (String, Position)>,
    /// The parts of a snapshot.
    parts: BytesMut,
    /// Which deletion it was deleted by.
    deleted: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Chronicle {
    papers: BTreeMap<Life, Paper>,
    writings: BTreeMap<GenerationId, Writing>,
    /// In which documents each mark was typed.
    typed: BTreeMap<String, BTreeSet<Life>>,
    /// Marks that models took out, to write what was selected anew.
    rewritten: BTreeSet<String>,
    /// What clients asked to be put back.
    restores: BTreeMap<(SessionId, Sequence), Position>,
    deletions: u64,
    /// Generations whose beginning was written.
    started: BTreeSet<GenerationId>,
    /// Bits were flipped: a document may not be read any more.
    pub(crate) may_be_unreadable: bool,
    pub(crate) faults: Faults,
    /// What is not as it must be.
    pub(crate) wrong: Vec<String>,
}

impl std::fmt::Debug for Chronicle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chronicle").field("papers", &self.papers.len()).finish_non_exhaustive()
    }
}

fn text_of(units: &[Unit]) -> String {
    let codes: Vec<u16> = units.iter().map(|unit| unit.code).collect();
    String::from_utf16_lossy(&codes)
}

/// What an edit put in and took out.
#[derive(Default)]
struct Change {
    inserted: String,
    deleted: Vec<Unit>,
    /// Stretches that it changed.
    places: usize,
    /// What was before and behind the first of them.
    before: String,
    after: String,
}

impl Paper {
    fn new(name: Name) -> Self {
        let mut document = Document::new(1 << 40);
        document.watch(true);
        Self {
            name,
            document,
            units: Vec::new(),
            edits: Vec::new(),
            head: Position(0),
            outlived: Position(0),
            versions: BTreeMap::new(),
            parts: BytesMut::new(),
            deleted: None,
        }
    }

    fn text(&self) -> String {
        text_of(&self.units)
    }

    /// What it read at a revision.
    fn text_at(&self, revision: Position) -> Result<String, String> {
        let edits = self.edits.iter().take_while(|(position, _)| *position <= revision);
        let mut text = String::new();
        for (position, operations) in edits {
            text = operations.apply(&text).map_err(|reject| format!("revision {position}: {reject}"))?;
        }
        Ok(text)
    }

    /// Carries out an edit; what a model put in is numbered from `by` on.
    fn edit(&mut self, message: &Message, by: Option<(GenerationId, u32)>) -> Result<Change, String> {
        let applied = self.document.replay(&message.body).map_err(|reject| format!("it does not follow: {reject}"))?;
        let operations = applied.operations.unwrap_or_default();
        let (mut at, mut change, mut next) = (0, Change::default(), by);
        for operation in operations.parts() {
            match operation {
                Operation::Retain(length) => at += *length as usize,
                Operation::Insert(text) => {
                    let codes: Vec<u16> = text.encode_utf16().collect();
                    let length = codes.len();
                    let units = codes.into_iter().map(|code| {
                        let by = next;
                        next = next.map(|(generation, number)| (generation, number + 1));
                        Unit { code, by }
                    });
                    self.units.splice(at..at, units.collect::<Vec<_>>());
                    change.inserted.push_str(text);
                    at += length;
                }
                Operation::Delete(length) => {
                    let to = (at + *length as usize).min(self.units.len());
                    change.deleted.extend(self.units.drain(at..to));
                }
            }
        }
        let is_change = |part: &Operation| !matches!(part, Operation::Retain(_));
        let mut runs = operations.parts().chunk_by(|one, other| is_change(one) == is_change(other));
        change.places = runs.by_ref().filter(|run| run.first().is_some_and(is_change)).count();
        let begin = match operations.parts().first() {
            Some(Operation::Retain(length)) => *length as usize,
            _ => 0,
        };
        let end = (begin + change.inserted.encode_utf16().count()).min(self.units.len());
        (change.before, change.after) = (text_of(&self.units[..begin.min(end)]), text_of(&self.units[end..]));
        self.edits.push((message.position, operations));
        Ok(change)
    }
}

impl Chronicle {
    /// A record was written, durable or not.
    pub(crate) fn appended(&mut self, record: &Record) {
        if let Event::GenerationStarted { generation, .. } = &record.event {
            self.started.insert(*generation);
        }
    }

    /// Whether a generation is one that was begun, and no later attempt of one.
    pub(crate) fn was_started(&self, generation: GenerationId) -> bool {
        self.started.contains(&generation)
    }

    /// The node died.
    pub(crate) fn crashed(&mut self) {
        self.papers.values_mut().for_each(|paper| paper.outlived = paper.head);
        self.writings.values_mut().for_each(|writing| writing.outlived());
    }

    /// A record is durable.
    pub(crate) fn record(&mut self, record: &Record) {
        let life = |id| (record.partition, id);
        match &record.event {
            Event::ChannelCreated { channel, .. } if channel.channel.as_str().starts_with(PAPER) => {
                let again = self.papers.values().any(|paper| paper.name == channel.channel);
                self.faults.add(Fault::DocumentRemade, again.into());
                self.papers.insert(life(ChannelId(record.lsn.0)), Paper::new(channel.channel.clone()));
            }
            Event::ChannelDeleted { id, .. } => {
                if let Some(paper) = self.papers.get_mut(&life(*id)) {
                    self.deletions += 1;
                    paper.deleted = Some(self.deletions);
                }
            }
            Event::GenerationStarted { generation, request, .. } => {
                let channel = request.channel.as_ref().filter(|(key, _)| key.channel.as_str().starts_with(PAPER));
                if let Some((_, id)) = channel {
                    self.writings.insert(*generation, Writing::new(life(*id)));
                }
            }
            Event::GenerationTokens { generation, tokens, text, posting, .. } => {
                self.tokens(*generation, tokens.len() as u32, &String::from_utf8_lossy(text), posting.as_ref());
                return;
            }
            Event::GenerationFinished { generation, ending, .. } => self.writing_ended(*generation, ending),
            _ => {}
        }
        if let Some(posting) = record.event.posting() {
            self.posted(record.partition, posting);
        }
    }

    fn posted(&mut self, partition: Partition, posting: &Posting) {
        let life = (partition, posting.id);
        let Some(paper) = self.papers.get_mut(&life) else { return };
        let message = &posting.message;
        paper.head = message.position;
        let name = paper.name.clone();
        let judged = match message.kind {
            DeliveryKind::Update => self.person_edited(life, message),
            DeliveryKind::Version => {
                let text = String::from_utf8_lossy(&message.body).into_owned();
                paper.versions.insert(message.position, (text, message.context.target));
                self.faults.count(Fault::VersionNamed);
                Ok(())
            }
            DeliveryKind::Snapshot => self.written_as_a_whole(life, message),
            _ => Ok(()),
        };
        if let Err(text) = judged {
            self.wrong.push(format!("{name} at {}: {text}", message.position));
        }
    }

    fn person_edited(&mut self, life: Life, message: &Message) -> Result<(), String> {
        let Some(paper) = self.papers.get_mut(&life) else { return Ok(()) };
        let change = paper.edit(message, None)?;
        let restored = self.restores.get(&(message.session, message.sequence));
        if let Some(&revision) = restored.filter(|_| message.sequence != Sequence(0)) {
            self.faults.count(Fault::Restored);
            let (was, is) = (paper.text_at(revision)?, paper.text());
            if was != is {
                return Err(format!("it was made what it was at {revision} and reads {is:?} instead of {was:?}"));
            }
        } else {
            for mark in marks(&change.inserted) {
                self.typed.entry(mark.to_owned()).or_default().insert(life);
            }
        }
        self.cut(&change.deleted);
        let around = self.writings.values().any(|writing| writing.is_under_way(life));
        self.faults.add(Fault::EditedAroundModel, around.into());
        Ok(())
    }

    fn written_as_a_whole(&mut self, life: Life, message: &Message) -> Result<(), String> {
        let Some(paper) = self.papers.get_mut(&life) else { return Ok(()) };
        let (first, parts) = (message.context.target, message.context.number);
        if message.position == first {
            paper.parts.clear();
        }
        paper.parts.extend_from_slice(&message.body);
        if message.position.0 + 1 < first.0 + parts {
            return Ok(());
        }
        self.faults.count(Fault::DocumentSnapshot);
        let whole = Document::open(1 << 41, &paper.parts).map_err(|reject| format!("a snapshot is none: {reject}"))?;
        match (whole.text(), paper.text()) {
            (written, text) if written == text => Ok(()),
            (written, text) => Err(format!("a snapshot reads {written:?}, and the document {text:?}")),
        }
    }

    /// A client asks that a document be made what it was.
    pub(crate) fn restores(&mut self, session: SessionId, sequence: Sequence, revision: Position) {
        self.restores.insert((session, sequence), revision);
    }

    /// How many documents were deleted so far.
    pub(crate) fn deletions(&self) -> u64 {
        self.deletions
    }

    /// Whether what somebody was told that a document reads is what one of that name read at this revision, one that was not
    /// deleted before the deletion after `since`. Gives whether the revision is one of an earlier life of the node.
    pub(crate) fn reads(&self, name: &Name, since: u64, revision: Position, text: &str) -> Result<bool, String> {
        let mut other = None;
        let alive = |paper: &&Paper| paper.name == *name && paper.deleted.is_none_or(|deleted| deleted > since);
        for paper in self.papers.values().filter(alive).filter(|paper| paper.head >= revision) {
            match paper.text_at(revision)? {
                read if read == text => return Ok(revision <= paper.outlived && revision > Position(0)),
                read => other = Some(read),
            }
        }
        match other {
            Some(read) => Err(format!("{name} at {revision} read {read:?}, and is said to have read {text:?}")),
            None => Err(format!("{name} has no revision {revision}, and is said to have read {text:?}")),
        }
    }

    /// The newest revision of the document of a name, and what it reads; `None` if there is none.
    pub(crate) fn newest(&self, name: &Name) -> Option<(Position, String)> {
        let paper = self.papers.values().find(|paper| paper.name == *name && paper.deleted.is_none())?;
        Some((paper.head, paper.text()))
    }

    /// What people wrote of the document of a name.
    pub(crate) fn by_people(&self, name: &Name) -> Option<String> {
        let paper = self.papers.values().find(|paper| paper.name == *name && paper.deleted.is_none())?;
        Some(text_of(&paper.units.iter().filter(|unit| unit.by.is_none()).copied().collect::<Vec<_>>()))
    }

    /// What the documents read that were called so and deleted.
    pub(crate) fn deleted_texts(&self, name: &Name) -> impl Iterator<Item = String> {
        self.papers.values().filter(move |paper| paper.name == *name && paper.deleted.is_some()).map(Paper::text)
    }

    /// In how many documents a mark was typed, and whether one of them was not deleted.
    pub(crate) fn homes(&self, mark: &str) -> (usize, bool) {
        let lives = self.typed.get(mark).into_iter().flatten();
        let alive = lives.clone().any(|life| self.papers.get(life).is_some_and(|paper| paper.deleted.is_none()));
        (lives.count(), alive)
    }

    /// Whether a model took a mark out, which somebody may have put into what it was to write anew.
    pub(crate) fn was_rewritten(&self, mark: &str) -> bool {
        self.rewritten.contains(mark)
    }

    /// The name that a document's version of this revision was given, and the revision that it means.
    pub(crate) fn version(&self, name: &Name, position: Position) -> Option<(String, Position)> {
        let paper = self.papers.values().find(|paper| paper.name == *name && paper.deleted.is_none())?;
        paper.versions.get(&position).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_falls_into_marks_and_what_is_between() {
        let check = |text: &str, expected: &[(u32, &str, bool)]| {
            let found: Vec<_> = pieces(text).iter().map(|piece| (piece.at, piece.text, piece.is_mark)).collect();
            assert_eq!(found, expected, "{text:?}");
        };
        check("", &[]);
        check("<1.2>ü3 <4.5>", &[(0, "<1.2>", true), (5, "ü3 ", false), (8, "<4.5>", true)]);
        check("@ai 1.2;\n7 ", &[(0, "@ai 1.2;", true), (8, "\n7 ", false)]);
        check("7 <1", &[(0, "7 ", false), (2, "<1", true)]);
        assert_eq!(marks("<1>2<3>").collect::<Vec<_>>(), ["<1>", "<3>"]);
    }
}
