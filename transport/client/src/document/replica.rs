//! A document as one editor has it: the Yjs document, what its own edits were, and how to take them back. No I/O.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use thalweg_protocol::document::{Operation, Operations, ROOT, utf16_len};
use thalweg_protocol::ids::{GenerationId, Position};
use yrs::types::Delta;
use yrs::types::text::YChange;
use yrs::undo::{Options as UndoOptions, StackItem, UndoManager};
use yrs::updates::decoder::Decode as _;
use yrs::updates::encoder::Encode as _;
use yrs::{
    Any, Assoc, ClientID, Doc, GetString as _, ID, IdSet, IndexScope, IndexedSequence as _, Observable as _,
    OffsetKind, Out, ReadTxn as _, StateVector, StickyIndex, Text as _, TextRef, Transact as _, TransactionMut, Update,
};

use crate::error::ClientError;

/// Text of one insertion that goes into one update; what is longer goes into several, so that each is small enough to send.
pub(super) const INSERTION_BYTES: usize = 64 << 10;
/// Own edits that can be taken back.
const STEPS_MAX: usize = 1_000;
/// Models' edits that can be taken back without asking the node what they were.
const GENERATIONS_KEPT: usize = 32;
/// What stands in the text for something in it that is no text, such as a picture.
const OBJECT: &str = "\u{fffc}";
/// Marks transactions that came from the node.
const REMOTE: &str = "remote";

/// What transactions did since it was last asked.
#[derive(Debug, Default)]
struct Gathered {
    /// Of local transactions, to be sent.
    updates: Vec<Bytes>,
    /// On the text, of all transactions.
    operations: Operations,
    /// Whether the text ever had a character that is two code units long, which an edit can cut in two.
    has_pairs: bool,
}

/// What an edit put in and took out, by which it can be taken back.
#[derive(Debug, Clone, Default)]
struct Step {
    /// The model's edit that this is, if it is one: what it did is looked up when it is taken back.
    generation: Option<GenerationId>,
    insertions: IdSet,
    deletions: IdSet,
}

/// A model's edit.
#[derive(Debug)]
struct Written {
    generation: GenerationId,
    insertions: IdSet,
    deletions: IdSet,
    /// Whether nothing of it can have been missed.
    complete: bool,
    /// It was taken back, and what still comes of it is to be.
    undone: bool,
    /// It began after this revision.
    after: Position,
}

/// What came of a local change.
#[derive(Debug, Default)]
pub(super) struct Edited {
    /// To be sent, in this order.
    pub(super) updates: Vec<Bytes>,
    /// What it did to the text.
    pub(super) operations: Operations,
}

/// What came of an update of the node.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// What it did to the text.
    pub(super) operations: Operations,
    /// It is a piece of a model's edit that was taken back already, and is to be [taken back](Replica::take_back) as well.
    pub(super) late: Option<Late>,
}

/// A piece of a model's edit that was taken back already.
#[derive(Debug)]
pub(super) struct Late(Step);

pub(super) struct Replica {
    doc: Doc,
    content: TextRef,
    gathered: Arc<Mutex<Gathered>>,
    undo: VecDeque<Step>,
    redo: Vec<Step>,
    /// Whether the next own edit is taken back together with the last.
    joins: bool,
    written: VecDeque<Written>,
    /// How often something was taken in that does not say who did what in it.
    gaps: u64,
    /// How often that was when a model was asked, and at which revision; of those that have not begun to write the first.
    asked: Option<(u64, Position)>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica")
            .field("client", &self.client())
            .field("undo", &self.undo.len())
            .finish_non_exhaustive()
    }
}

fn operations_of(delta: &[Delta]) -> Operations {
    Operations::of(delta.iter().map(|part| match part {
        Delta::Retain(length, _) => Operation::Retain(*length),
        Delta::Deleted(length) => Operation::Delete(*length),
        Delta::Inserted(Out::Any(Any::String(text)), _) => Operation::Insert(text.to_string()),
        Delta::Inserted(..) => Operation::Insert(OBJECT.to_owned()),
    }))
}

/// Whether a part puts a character in that is two code units long.
fn has_pairs(part: &Operation) -> bool {
    matches!(part, Operation::Insert(text) if text.chars().any(|c| c.len_utf16() == 2))
}

/// What was told of a change of the text, or the same in whole characters if half of one was taken out, or something was put
/// between its halves: what is left of it is another character then.
fn whole_characters(told: Operations, before: &str, after: &str) -> Operations {
    match told.apply(before) {
        Ok(text) if text == after => told,
        _ => Operations::between(before, after),
    }
}

/// All that somebody lacks who has this state, with all that was taken out.
///
/// # Errors
/// [`ClientError::Protocol`] if it is no state.
pub(super) fn beyond(doc: &Doc, state: &[u8]) -> Result<Bytes, ClientError> {
    let broken = |error| ClientError::Protocol(format!("the state of a document: {error}"));
    let theirs = Update::decode_v1(state).map_err(broken)?.state_vector();
    Ok(doc.transact().encode_state_as_update_v1(&theirs).into())
}

impl Replica {
    /// An empty document, edited as this Yjs client.
    pub(super) fn new(client: u64) -> Self {
        // Nothing is forgotten while it is open, so that what a model deleted can be put back.
        let options = yrs::Options {
            client_id: ClientID::new(client),
            offset_kind: OffsetKind::Utf16,
            skip_gc: true,
            ..yrs::Options::default()
        };
        let doc = Doc::with_options(options);
        let content = doc.get_or_insert_text(ROOT);
        let gathered = Arc::new(Mutex::new(Gathered::default()));
        let updates = gathered.clone();
        let observed = doc.observe_update_v1("client", move |transaction, event| {
            let remote = transaction.origin().is_some_and(|origin| origin.as_ref() == REMOTE.as_bytes());
            if !remote {
                let mut gathered = updates.lock().expect("nothing panics under this lock");
                gathered.updates.push(Bytes::copy_from_slice(&event.update));
            }
        });
        observed.expect("a document that nobody else has is not in use");
        let deltas = gathered.clone();
        content.observe("client", move |transaction, event| {
            let operations = operations_of(event.delta(transaction));
            let mut gathered = deltas.lock().expect("nothing panics under this lock");
            gathered.has_pairs |= operations.parts().iter().any(has_pairs);
            gathered.operations = gathered.operations.compose(&operations);
        });
        let (undo, redo, written) = Default::default();
        Self { doc, content, gathered, undo, redo, joins: false, written, gaps: 0, asked: None }
    }

    pub(super) fn doc(&self) -> &Doc {
        &self.doc
    }

    pub(super) fn client(&self) -> u64 {
        self.doc.client_id().get()
    }

    fn gathered(&self) -> Gathered {
        let mut gathered = self.gathered.lock().expect("nothing panics under this lock");
        let has_pairs = gathered.has_pairs;
        std::mem::replace(&mut *gathered, Gathered { has_pairs, ..Gathered::default() })
    }

    /// Whether there may be characters in the text that are two code units long.
    pub(super) fn has_pairs(&self) -> bool {
        self.gathered.lock().expect("nothing panics under this lock").has_pairs
    }

    /// The text of the root; what is no text in it is one `U+FFFC` each.
    pub(super) fn text(&self) -> String {
        let transaction = self.doc.transact();
        let text = self.content.get_string(&transaction);
        if utf16_len(&text) == yrs::Text::len(&self.content, &transaction) {
            return text;
        }
        let pieces = self.content.diff(&transaction, YChange::identity);
        pieces
            .iter()
            .map(|piece| match &piece.insert {
                Out::Any(Any::String(text)) => text.as_ref(),
                _ => OBJECT,
            })
            .collect()
    }

    /// How long the text is, in UTF-16 code units.
    pub(super) fn length(&self) -> u32 {
        yrs::Text::len(&self.content, &self.doc.transact())
    }

    pub(super) fn state_vector(&self) -> Bytes {
        self.doc.transact().state_vector().encode_v1().into()
    }

    /// What somebody with this state vector lacks, as one update; `None` if it is nothing, or the vector makes no sense.
    pub(super) fn lacking(&self, vector: &[u8]) -> Option<Bytes> {
        let theirs = if vector.is_empty() { StateVector::default() } else { StateVector::decode_v1(vector).ok()? };
        let transaction = self.doc.transact();
        let ours = transaction.state_vector();
        let lacks = ours.iter().any(|(client, clock)| theirs.get(client) < *clock);
        lacks.then(|| transaction.encode_state_as_update_v1(&theirs).into())
    }

    /// Takes in an update of the node.
    pub(super) fn apply(&mut self, update: &[u8], generation: Option<GenerationId>) -> Result<Applied, ClientError> {
        let broken = |error: String| ClientError::Protocol(format!("an update of a document: {error}"));
        let update = Update::decode_v1(update).map_err(|error| broken(error.to_string()))?;
        let mut late = None;
        if let Some(generation) = generation {
            let (insertions, deletions) = (update.insertions(true), update.delete_set().clone());
            if self.note(generation, insertions.clone(), deletions.clone()).undone {
                late = Some(Late(Step { generation: Some(generation), insertions, deletions }));
            }
        }
        let before = self.has_pairs().then(|| self.text());
        let mut transaction = self.doc.transact_mut_with(REMOTE);
        transaction.apply_update(update).map_err(|error| broken(error.to_string()))?;
        drop(transaction);
        let told = self.gathered().operations;
        let operations = match before {
            Some(before) => whole_characters(told, &before, &self.text()),
            None => told,
        };
        Ok(Applied { operations, late })
    }

    /// The place where it stands what this model's edit did. One that was not heard of may have begun before.
    fn written(&mut self, generation: GenerationId) -> &mut Written {
        let found = self.written.iter().position(|written| written.generation == generation);
        let at = found.unwrap_or_else(|| {
            if self.written.len() == GENERATIONS_KEPT {
                self.written.pop_front();
            }
            let (insertions, deletions) = Default::default();
            self.written.push_back(Written {
                generation,
                insertions,
                deletions,
                complete: false,
                undone: false,
                after: Position(0),
            });
            self.written.len() - 1
        });
        &mut self.written[at]
    }

    /// Remembers what a model did.
    fn note(&mut self, generation: GenerationId, insertions: IdSet, deletions: IdSet) -> &Written {
        let written = self.written(generation);
        written.insertions.merge_with(insertions);
        written.deletions.merge_with(deletions);
        written
    }

    /// Remembers all that a model did, as the node keeps it.
    pub(super) fn learn(&mut self, generation: GenerationId, insertions: IdSet, deletions: IdSet) {
        self.note(generation, insertions, deletions);
        self.written(generation).complete = true;
    }

    /// What was taken in does not say who did what in it: models may have written some of it.
    pub(super) fn missed(&mut self) {
        self.gaps += 1;
        self.written.iter_mut().for_each(|written| written.complete = false);
    }

    /// Does something to the document, as one own edit.
    pub(super) fn transact<T>(&mut self, change: impl FnOnce(&mut TransactionMut<'_>) -> T) -> (T, Edited) {
        let mut transaction = self.doc.transact_mut();
        let result = change(&mut transaction);
        transaction.commit();
        let (insertions, deletions) = (transaction.insert_set().clone(), transaction.delete_set().clone());
        drop(transaction);
        self.remember(Step { generation: None, insertions, deletions });
        (result, self.edited())
    }

    fn edited(&self) -> Edited {
        let Gathered { updates, operations, .. } = self.gathered();
        Edited { updates, operations }
    }

    fn remember(&mut self, step: Step) {
        if step.insertions.is_empty() && step.deletions.is_empty() {
            return;
        }
        self.redo.clear();
        match self.undo.back_mut() {
            Some(last) if self.joins && last.generation.is_none() => {
                last.insertions.merge_with(step.insertions);
                last.deletions.merge_with(step.deletions);
            }
            _ => self.push(step),
        }
        self.joins = true;
    }

    fn push(&mut self, step: Step) {
        if self.undo.len() == STEPS_MAX {
            self.undo.pop_front();
        }
        self.undo.push_back(step);
    }

    /// Edits the text. The operations were checked against its length.
    pub(super) fn edit(&mut self, operations: &Operations) -> Edited {
        let content = self.content.clone();
        let mut edited = Edited::default();
        let mut at = 0;
        for part in operations.parts() {
            match part {
                Operation::Retain(length) => at += length,
                Operation::Delete(length) => {
                    self.transact_into(&mut edited, |transaction| content.remove_range(transaction, at, *length));
                }
                Operation::Insert(text) => {
                    for chunk in chunks(text, INSERTION_BYTES) {
                        self.transact_into(&mut edited, |transaction| content.insert(transaction, at, chunk));
                        at += utf16_len(chunk);
                    }
                }
            }
        }
        edited
    }

    fn transact_into(&mut self, edited: &mut Edited, change: impl FnOnce(&mut TransactionMut<'_>)) {
        let ((), mut more) = self.transact(change);
        edited.updates.append(&mut more.updates);
        edited.operations = edited.operations.compose(&more.operations);
    }

    /// What is edited next is taken back by itself.
    pub(super) fn separate(&mut self) {
        self.joins = false;
    }

    /// A model is being asked: nothing of what it will write is there yet, at this revision.
    pub(super) fn asks(&mut self, revision: Position) {
        self.asked.get_or_insert((self.gaps, revision));
    }

    /// What a model is about to write, or began to since it was [asked](Self::asks), is taken back as one own edit.
    pub(super) fn adopt(&mut self, generation: GenerationId) {
        if let Some((gaps, after)) = self.asked.take() {
            let all_seen = gaps == self.gaps;
            let written = self.written(generation);
            (written.complete, written.after) = (written.complete || all_seen, after);
        }
        self.redo.clear();
        self.joins = false;
        self.push(Step { generation: Some(generation), ..Step::default() });
    }

    /// The model's edit that [`undo`](Self::undo) would take back next.
    pub(super) fn undoes_generation(&self) -> Option<GenerationId> {
        self.undo.back().and_then(|step| step.generation)
    }

    pub(super) fn can_undo(&self) -> bool {
        !self.undo.is_empty()
    }

    pub(super) fn can_redo(&self) -> bool {
        !self.redo.is_empty()
    }

    /// Takes the last own edit back that changes anything. `None` if there is none, or if it is a model's that is not
    /// [known](Self::knows), which stays the last.
    pub(super) fn undo(&mut self) -> Option<Edited> {
        self.joins = false;
        while let Some(last) = self.undo.back() {
            let step = match last.generation {
                Some(generation) => self.undone(generation)?,
                None => last.clone(),
            };
            self.undo.pop_back();
            if let Some((inverse, edited)) = self.revert(step) {
                self.redo.push(inverse);
                return Some(edited);
            }
        }
        None
    }

    /// What a model's edit did, which from now on counts as taken back; `None` if it is not known.
    fn undone(&mut self, generation: GenerationId) -> Option<Step> {
        let mut all = self.written.iter_mut();
        let written = all.find(|written| written.generation == generation && written.complete)?;
        written.undone = true;
        let (insertions, deletions) = (written.insertions.clone(), written.deletions.clone());
        Some(Step { generation: Some(generation), insertions, deletions })
    }

    /// Does the edit again that was taken back last. `None` if there is none.
    pub(super) fn redo(&mut self) -> Option<Edited> {
        self.joins = false;
        while let Some(step) = self.redo.pop() {
            if let Some((inverse, edited)) = self.revert(step) {
                // What a model wrote and is there again are other characters than those it wrote.
                let again = self.written.iter_mut().find(|written| Some(written.generation) == inverse.generation);
                if let Some(written) = again {
                    written.undone = false;
                    (written.insertions, written.deletions) = (inverse.insertions.clone(), inverse.deletions.clone());
                }
                self.push(inverse);
                return Some(edited);
            }
        }
        None
    }

    /// Whether this model's edit is known here from its beginning on, and without a hole.
    pub(super) fn knows(&self, generation: GenerationId) -> bool {
        self.written.iter().any(|written| written.generation == generation && written.complete)
    }

    /// A revision before this model began to write; 0 if none is known.
    pub(super) fn before(&self, generation: GenerationId) -> Position {
        let found = self.written.iter().find(|written| written.generation == generation);
        found.map_or(Position(0), |written| written.after)
    }

    /// Takes a model's edit back that is [known](Self::knows), as an own edit. `None` if there is nothing of it left.
    pub(super) fn undo_generation(&mut self, generation: GenerationId) -> Option<Edited> {
        let step = self.undone(generation)?;
        self.undo.retain(|step| step.generation != Some(generation));
        self.joins = false;
        let (inverse, edited) = self.revert(step)?;
        self.redo.clear();
        self.redo.push(inverse);
        Some(edited)
    }

    /// Takes a piece back of a model's edit that was taken back before it came.
    pub(super) fn take_back(&mut self, Late(step): Late) -> Option<Edited> {
        let generation = step.generation;
        let (inverse, edited) = self.revert(step)?;
        // Done again, it is there with the rest.
        if let Some(again) = self.redo.iter_mut().rev().find(|step| step.generation == generation) {
            again.insertions.merge_with(inverse.insertions);
            again.deletions.merge_with(inverse.deletions);
        }
        Some(edited)
    }

    /// Takes out what an edit put in, and puts back what it took out. Gives how that is taken back.
    fn revert(&self, step: Step) -> Option<(Step, Edited)> {
        let generation = step.generation;
        // The node may have told more of a model's edit than came of it.
        let here = self.everything();
        let (insertions, deletions) = (step.insertions.intersect(&here), step.deletions.intersect(&here));
        let item = StackItem::new(self.doc.guid(), deletions, insertions);
        // Made for this one edit: it watches the document only while it is here.
        let mut manager = UndoManager::<()>::with_options(UndoOptions {
            capture_timeout_millis: 0,
            init_undo_stack: vec![item],
            ..UndoOptions::default()
        });
        manager.expand_scope(&self.doc, &self.content);
        let done = manager.undo_blocking();
        let inverse = manager.redo_stack().last().map(|item| Step {
            generation,
            insertions: item.insertions().clone(),
            deletions: item.deletions().clone(),
        });
        drop(manager);
        let edited = self.edited();
        inverse.filter(|_| done && !edited.updates.is_empty()).map(|inverse| (inverse, edited))
    }

    /// All that was ever put in.
    fn everything(&self) -> IdSet {
        let mut all = IdSet::new();
        for (&client, &clock) in self.doc.transact().state_vector().iter() {
            all.insert(ID::new(client, 0), clock);
        }
        all
    }

    /// A place in the text that stays where it is while others edit around it: between the characters before and after the
    /// offset, clinging to the one after it.
    pub(super) fn anchor(&self, offset: u32) -> StickyIndex {
        let transaction = self.doc.transact();
        let found = self.content.sticky_index(&transaction, offset, Assoc::After);
        found.unwrap_or_else(|| StickyIndex::from_type(&transaction, &self.content, Assoc::After))
    }

    /// Where a place is now; `None` if it is not in the text, or not known yet.
    pub(super) fn offset(&self, anchor: &StickyIndex) -> Option<u32> {
        let transaction = self.doc.transact();
        let offset = anchor.get_offset(&transaction)?;
        let content: &yrs::branch::Branch = self.content.as_ref();
        (offset.branch.id() == content.id()).then_some(offset.index)
    }
}

/// A place as editors in browsers write it into their awareness.
pub(super) fn anchor_json(anchor: &StickyIndex) -> serde_json::Value {
    use serde_json::json;
    let assoc = if anchor.assoc == Assoc::After { 0 } else { -1 };
    let id = |id: &ID| json!({ "client": id.client.get(), "clock": id.clock });
    match anchor.scope() {
        // As Yjs writes it: with the root's name beside the item.
        IndexScope::Relative(item) => json!({ "type": null, "tname": ROOT, "item": id(item), "assoc": assoc }),
        IndexScope::Nested(parent) => json!({ "type": id(parent), "tname": null, "item": null, "assoc": assoc }),
        IndexScope::Root(name) => json!({ "type": null, "tname": &**name, "item": null, "assoc": assoc }),
    }
}

/// Reads what [`anchor_json`] or an editor in a browser wrote; `None` if it makes no sense.
pub(super) fn anchor_of_json(value: &serde_json::Value) -> Option<StickyIndex> {
    let id = |value: &serde_json::Value| {
        let client = value.get("client")?.as_u64().filter(|client| *client < 1 << 53)?;
        let clock = u32::try_from(value.get("clock")?.as_u64()?).ok()?;
        Some(ID::new(ClientID::new(client), clock))
    };
    let assoc = match value.get("assoc").and_then(serde_json::Value::as_i64) {
        Some(number) if number < 0 => Assoc::Before,
        _ => Assoc::After,
    };
    let scope = match (value.get("item").and_then(id), value.get("tname").and_then(serde_json::Value::as_str)) {
        (Some(item), _) => IndexScope::Relative(item),
        (None, Some(name)) => IndexScope::Root(name.into()),
        (None, None) => IndexScope::Nested(value.get("type").and_then(id)?),
    };
    Some(StickyIndex::new(scope, assoc))
}

/// Cuts a text into pieces of at most so many bytes, between characters.
pub(super) fn chunks(text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (chunk, after) = rest.split_at(rest.floor_char_boundary(bytes_max));
        rest = after;
        Some(chunk)
    })
}
