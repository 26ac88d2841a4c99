//! What models write in documents: where they were asked to, and what of it is in the text.

use std::collections::BTreeSet;

use thalweg_domain::generation::Ending;
use thalweg_domain::record::Posting;
use thalweg_protocol::generation::FinishReason;
use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::op::DeliveryKind;

use super::{Chronicle, Life, Unit, marks};
use crate::faults::Fault;

/// Where somebody asked a model to write, as they saw the text.
#[derive(Debug, Clone, Default)]
pub(crate) struct AskedAt {
    /// The mark before the place, and the one behind it, if those are its neighbours.
    pub(crate) left: Option<String>,
    pub(crate) right: Option<String>,
    /// The marks that are to be written anew.
    pub(crate) selected: BTreeSet<String>,
    /// Whether anything is.
    pub(crate) is_selection: bool,
    /// All marks there were.
    pub(crate) all: BTreeSet<String>,
}

/// The first that a model wrote, and what was around it.
#[derive(Debug)]
struct First {
    before: String,
    after: String,
    deleted: String,
}

/// What a model wrote.
#[derive(Debug)]
pub(super) struct Writing {
    life: Life,
    asked: Option<AskedAt>,
    /// Tokens that are durable.
    tokens: u32,
    /// Their text.
    text: String,
    /// Code units of it in the document.
    units: u32,
    first: Option<First>,
    /// Somebody took some of it out.
    is_cut: bool,
    ended: bool,
    /// The node died while it wrote.
    was_broken_off: bool,
}

impl Writing {
    pub(super) fn new(life: Life) -> Self {
        Self {
            life,
            asked: None,
            tokens: 0,
            text: String::new(),
            units: 0,
            first: None,
            is_cut: false,
            ended: false,
            was_broken_off: false,
        }
    }

    pub(super) fn is_under_way(&self, life: Life) -> bool {
        self.life == life && !self.ended && self.units > 0
    }

    pub(super) fn outlived(&mut self) {
        self.was_broken_off |= !self.ended && self.units > 0;
    }

    /// Whether the first that it wrote is where it was asked to.
    fn judge_place(&self, is_restored: bool) -> Result<(), String> {
        let (Some(asked), Some(first)) = (&self.asked, &self.first) else { return Ok(()) };
        let First { before, after, deleted } = first;
        let around = || format!("between {before:?} and {after:?}, in place of {deleted:?}");
        if !asked.is_selection && !deleted.is_empty() {
            return Err(format!("it was asked to take out nothing, and wrote {}", around()));
        }
        // What was put back stands anywhere.
        if is_restored {
            return Ok(());
        }
        let beyond = marks(deleted).find(|mark| asked.all.contains(*mark) && !asked.selected.contains(*mark));
        if let Some(mark) = beyond {
            return Err(format!("it took out {mark}, which it was not asked to: it wrote {}", around()));
        }
        if let Some(mark) = asked.left.as_ref().filter(|mark| after.contains(*mark)) {
            return Err(format!("it was asked to write behind {mark}, and wrote {}", around()));
        }
        if let Some(mark) = asked.right.as_ref().filter(|mark| before.contains(*mark)) {
            return Err(format!("it was asked to write before {mark}, and wrote {}", around()));
        }
        let left = asked.selected.iter().find(|mark| before.contains(*mark) || after.contains(*mark));
        left.map_or(Ok(()), |mark| Err(format!("it was to write {mark} anew, and wrote {}", around())))
    }

    /// Whether what is in a text of what it wrote is there once, and in order.
    fn judge_text(&self, id: GenerationId, units: &[Unit]) -> Result<(), String> {
        let own = |unit: &Unit| unit.by.filter(|(by, _)| *by == id).map(|(_, number)| (number, unit.code));
        let found: Vec<(u32, u16)> = units.iter().filter_map(own).collect();
        let read = || String::from_utf16_lossy(&found.iter().map(|(_, code)| *code).collect::<Vec<_>>());
        if !found.is_sorted_by(|(one, _), (other, _)| one < other) {
            return Err(format!("it wrote {:?}, and the document has of it {:?}", self.text, read()));
        }
        if !self.is_cut && found.len() != self.units as usize {
            return Err(format!("it wrote {:?}, and of that there is {:?}, though nobody cut it", self.text, read()));
        }
        Ok(())
    }
}

impl Chronicle {
    /// A client was told that a model writes where it asked.
    pub(crate) fn asked(&mut self, generation: GenerationId, at: AskedAt) {
        match self.writings.get_mut(&generation) {
            Some(writing) => writing.asked = Some(at),
            None => self.wrong.push(format!("{generation} writes in no document, and its asker was told so")),
        }
    }

    /// How many tokens of a model that writes in a document are durable; `None` if it is none.
    pub(crate) fn tokens_of(&self, generation: GenerationId) -> Option<u32> {
        self.writings.get(&generation).map(|writing| writing.tokens)
    }

    /// Whether a model that writes in a document has not ended.
    pub(crate) fn writes(&self, generation: GenerationId) -> bool {
        self.writings.get(&generation).is_some_and(|writing| !writing.ended)
    }

    /// Tokens of a model are durable, and what it wrote with them.
    pub(super) fn tokens(&mut self, id: GenerationId, tokens: u32, text: &str, posting: Option<&Posting>) {
        let Some(writing) = self.writings.get_mut(&id) else { return };
        writing.tokens += tokens;
        writing.text.push_str(text);
        let (life, units) = (writing.life, writing.units);
        let Some(paper) = self.papers.get_mut(&life) else { return };
        let name = paper.name.clone();
        let Some(posting) = posting else {
            if !text.is_empty() && paper.deleted.is_none() && !self.may_be_unreadable {
                self.wrong.push(format!("{id} said {text:?}, which is not in {name}"));
            }
            return;
        };
        let message = &posting.message;
        paper.head = message.position;
        if message.kind != DeliveryKind::Update || (life.0, posting.id) != life {
            return self.wrong.push(format!("{id} wrote {:?} elsewhere than in {name}", message.kind));
        }
        let change = match paper.edit(message, Some((id, units))) {
            Ok(change) => change,
            Err(text) => return self.wrong.push(format!("{name} at {}: {text}", message.position)),
        };
        self.faults.count(Fault::ModelWrote);
        let is_first = units == 0;
        // One that was asked by a line begins another.
        let expected = change.inserted == text || (is_first && change.inserted.strip_prefix('\n') == Some(text));
        if !expected || change.places > 1 {
            let wrote = &change.inserted;
            self.wrong.push(format!("{id} said {text:?} and wrote {wrote:?} at {} places of {name}", change.places));
        }
        if !is_first && !change.deleted.is_empty() {
            let deleted = super::text_of(&change.deleted);
            self.wrong.push(format!("{id} took {deleted:?} out of {name} while it wrote"));
        }
        if let Some(writing) = self.writings.get_mut(&id) {
            writing.units += change.inserted.encode_utf16().count() as u32;
            let deleted = super::text_of(&change.deleted);
            self.faults.add(Fault::ModelRewrote, u64::from(!deleted.is_empty()));
            self.rewritten.extend(marks(&deleted).map(str::to_owned));
            writing.first.get_or_insert(First { before: change.before, after: change.after, deleted });
        }
        self.cut(&change.deleted);
    }

    /// What was taken out may have been a model's.
    pub(super) fn cut(&mut self, deleted: &[Unit]) {
        for (generation, _) in deleted.iter().filter_map(|unit| unit.by) {
            if let Some(writing) = self.writings.get_mut(&generation) {
                writing.is_cut = true;
            }
        }
    }

    pub(super) fn writing_ended(&mut self, id: GenerationId, ending: &Ending) {
        let Some(writing) = self.writings.get_mut(&id) else { return };
        writing.ended = true;
        let is_deleted = self.papers.get(&writing.life).is_some_and(|paper| paper.deleted.is_some());
        self.faults.add(Fault::ModelBrokenOff, writing.was_broken_off.into());
        self.faults.add(Fault::ModelStopped, (ending.reason == FinishReason::Cancelled && !is_deleted).into());
        self.faults.add(Fault::ModelOfDeleted, is_deleted.into());
    }

    /// Judges what models wrote. `restores`: in which documents people put back what was.
    pub(crate) fn judge_writings(&self, is_restored: impl Fn(&str) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (&id, writing) in &self.writings {
            let Some(paper) = self.papers.get(&writing.life) else { continue };
            let judged = [
                writing.judge_text(id, &paper.units),
                writing.judge_place(is_restored(paper.name.as_str())),
                if writing.ended { Ok(()) } else { Err("it never ended".to_owned()) },
            ];
            let wrong = judged.into_iter().filter_map(Result::err);
            found.extend(wrong.map(|text| format!("{id} in {}: {text}", paper.name)));
        }
        found
    }

    /// The text of each model's durable tokens.
    pub(crate) fn model_texts(&self) -> impl Iterator<Item = (GenerationId, u32, &str)> {
        self.writings.iter().map(|(&id, writing)| (id, writing.tokens, writing.text.as_str()))
    }
}
