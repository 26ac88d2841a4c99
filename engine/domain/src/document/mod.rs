//! Documents that many people edit at once: a Yjs CRDT with rules.
//!
//! A [`Document`] is the state that its log leads to. What clients send is looked at by [`Document::check`], which knows the
//! encoding and what the document has, before any of it reaches the library that carries it out ([`Document::apply`]); and
//! that runs guarded, so that an update which breaks the library anyway is refused, and costs the document
//! ([`Document::is_poisoned`]) and nobody else.
//!
//! Two documents that applied the same updates in the same order are the same, byte for byte, but for the order of keys in
//! values that are maps.

mod anchor;
mod differ;
mod guard;
mod json;
mod places;
mod positional;
mod restore;
mod tree;
mod update;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use thalweg_protocol::document::{DocumentAccess, Operation, Operations, ROOT, utf16_len};
use thalweg_protocol::limits::{DOCUMENT_BYTES_MAX, DOCUMENT_UPDATE_BYTES_MAX, STATE_VECTOR_BYTES_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};
use yrs::types::text::YChange;
use yrs::updates::decoder::Decode;
use yrs::{Any, ClientID, Doc, GetString, ID, IdSet, Observable, OffsetKind, Options, Out, ReadTxn, StateVector, Text};
use yrs::{TextRef, Transact, TransactionMut, Update};

pub use anchor::Anchor;
pub use update::NODE_CLIENTS;

use guard::guarded;
use places::Places;
use positional::{carry_out, operations_of};
use update::{Kind, Parsed};

/// What stands in a text for something embedded that is no text: one code unit, as it counts in offsets.
pub const EMBEDDED: char = '\u{fffc}';
/// The bytes of an update that changes nothing.
pub const EMPTY_UPDATE: &[u8] = &[0, 0];
/// A document of which so much was inserted and deleted since it was measured is measured again before an edit is refused for
/// its size.
const MEASURED_BYTES: usize = DOCUMENT_BYTES_MAX / 64;
/// Stretches that one update may delete and that are not deleted yet. The library cuts the text that they are in at each of
/// them, and copies what is left of it.
const DELETES_MAX: usize = 1 << 14;

/// An update that may be applied to the document that checked it, as long as that was not changed since.
#[derive(Debug)]
pub struct Checked {
    /// Whether it may change anything. If not, it need not be applied.
    pub is_news: bool,
    /// Whether some of the text that it inserts, anywhere, ends a line.
    pub ends_line: bool,
    is_own: bool,
    parsed: Parsed,
    places: Places,
}

/// What came of an update.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether it changed anything.
    pub changed: bool,
    /// What it did to the text of root `content`; `None` unless the document is [watched](Document::watch).
    pub operations: Option<Operations>,
    /// What others are to be given in place of the update, if that tells again what the document has. They would not notice
    /// if it told that differently, and it would replace what it contradicts when the two are merged.
    pub instead: Option<Bytes>,
}

/// One document at the state its updates lead to.
///
/// Contract: `check` an update, then `apply` it; or make one by `edit`, `insert`, `delete` or `restore`, which are applied
/// already when they return. Nothing may be done with it once it [is poisoned](Self::is_poisoned): it is to be opened anew.
pub struct Document {
    doc: Doc,
    text: TextRef,
    client: u64,
    places: Places,
    /// What the encoded state is estimated to have at most, and how much was inserted and deleted since it was measured.
    bytes: usize,
    unmeasured: usize,
    is_poisoned: bool,
    is_watched: bool,
    /// Whether a character of two code units, which edits may cut in half, was ever in it.
    has_pairs: bool,
    /// Whether a text in it ever had a format.
    has_formats: bool,
    /// Where the observer of the text leaves what a transaction did to it. Locked only within calls of `self`.
    heard: Arc<Mutex<Option<Operations>>>,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document").field("client", &self.client).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

pub(crate) fn invalid(what: impl std::fmt::Display) -> Reject {
    Reject::new(RejectCode::UpdateInvalid, format!("not an update of this document: {what}"))
}

impl Document {
    /// An empty one, in which the node edits as `client`: a Yjs client id that nobody used before, from [`NODE_CLIENTS`].
    pub fn new(client: u64) -> Self {
        let options = Options {
            client_id: ClientID::new(client & ((1 << 53) - 1)),
            guid: "document".into(),
            collection_id: None,
            offset_kind: OffsetKind::Utf16,
            skip_gc: false,
            auto_load: false,
            should_load: true,
            // An update is to do what it says and nothing else: the node makes no edits of its own on the way.
            cleanup_formatting: false,
        };
        let doc = Doc::with_options(options);
        let text = doc.get_or_insert_text(ROOT);
        let places = Places::default();
        let heard = Arc::new(Mutex::new(None));
        Self {
            doc,
            text,
            client,
            places,
            bytes: 2,
            unmeasured: 0,
            is_poisoned: false,
            is_watched: false,
            has_pairs: false,
            has_formats: false,
            heard,
        }
    }

    /// The one whose state was encoded by [`Document::state`].
    ///
    /// # Errors
    /// `update_invalid`, if it was not.
    pub fn open(client: u64, snapshot: &[u8]) -> Result<Self, Reject> {
        let mut document = Self::new(client);
        document.replay(snapshot)?;
        (document.bytes, document.unmeasured) = (snapshot.len(), 0);
        Ok(document)
    }

    /// Applies an update from the document's own log, which nobody needs to be protected from.
    ///
    /// # Errors
    /// `update_invalid` or `update_incomplete`, if it does not follow what came before it.
    pub fn replay(&mut self, update: &[u8]) -> Result<Applied, Reject> {
        let parsed = Parsed::read(update, usize::MAX)?;
        let checked = self.place(parsed, true)?;
        self.apply(checked, update, DocumentAccess::Write)
    }

    /// The Yjs client id of the node's own edits.
    pub fn client(&self) -> u64 {
        self.client
    }

    /// Whether anything in it was made by a Yjs client.
    pub fn has_edits_of(&self, client: u64) -> bool {
        self.doc.transact().state_vector().get(&ClientID::new(client)) > 0
    }

    /// Whether it was left in a state that cannot be trusted, and must be opened anew from its log.
    pub fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    /// Says whether `apply` shall tell what it did to the text, which costs about a walk through the text.
    pub fn watch(&mut self, watched: bool) {
        if watched == self.is_watched {
            return;
        }
        self.is_watched = watched;
        if !watched {
            self.text.unobserve("watch");
            return;
        }
        let heard = Arc::clone(&self.heard);
        self.text.observe("watch", move |txn, event| {
            let operations = operations_of(event.delta(txn));
            if let Ok(mut slot) = heard.lock() {
                *slot = Some(operations);
            }
        });
    }

    /// Whether `apply` tells what it does to the text.
    pub fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Looks at an update of a client.
    ///
    /// # Errors
    /// `update_invalid`, if it is none, or one that no client makes; `update_incomplete`, if it builds on what the document
    /// does not have; `document_too_large`, if the document would become so.
    pub fn check(&mut self, update: &[u8]) -> Result<Checked, Reject> {
        let parsed = Parsed::read(update, DOCUMENT_UPDATE_BYTES_MAX)?;
        let checked = self.place(parsed, false)?;
        if checked.is_news && checked.parsed.inserts() {
            self.has_room(checked.parsed.grows())?;
        }
        if checked.parsed.deletes.values().map(Vec::len).sum::<usize>() > DELETES_MAX {
            self.deletes_few(&checked.parsed)?;
        }
        Ok(checked)
    }

    /// Refuses an update that deletes more stretches than one may. Editors that come back send all deletions they know of, of
    /// which only the new ones count.
    fn deletes_few(&self, parsed: &Parsed) -> Result<(), Reject> {
        let new = deletes_of(parsed).diff(&self.doc.transact().snapshot().delete_set);
        let count: usize = new.iter().map(|(_, ranges)| ranges.iter().count()).sum();
        if count <= DELETES_MAX {
            return Ok(());
        }
        Err(invalid(format_args!("it deletes {count} stretches; at most {DELETES_MAX}: delete in pieces")))
    }

    /// Refuses to grow beyond what a document may have. Measuring it takes a walk through all of it, so that a full one is not
    /// measured for each edit.
    fn has_room(&mut self, grows: usize) -> Result<(), Reject> {
        if self.bytes + grows > DOCUMENT_BYTES_MAX && self.unmeasured > MEASURED_BYTES {
            (self.bytes, self.unmeasured) = (self.state().len(), 0);
        }
        if self.bytes + grows <= DOCUMENT_BYTES_MAX {
            return Ok(());
        }
        let text = format!("the document has {} bytes and may have {DOCUMENT_BYTES_MAX}; begin another", self.bytes);
        Err(Reject::new(RejectCode::DocumentTooLarge, text))
    }

    /// Counts what an update added to the document, and took from it.
    fn count(&mut self, parsed: &Parsed) {
        self.bytes += parsed.grows();
        self.unmeasured += parsed.grows() + parsed.deleted();
    }

    fn place(&self, parsed: Parsed, is_own: bool) -> Result<Checked, Reject> {
        let places = self.places.extend(&parsed, is_own)?;
        let (is_news, ends_line) = (!places.is_empty() || parsed.has_deletes(), parsed.ends_line);
        Ok(Checked { is_news, ends_line, is_own, parsed, places })
    }

    /// Carries out an update of somebody who may do `may`.
    ///
    /// # Errors
    /// `forbidden`, if they may not; `update_invalid`, if it cannot be carried out. The document is as before, unless it
    /// [is poisoned](Self::is_poisoned).
    pub fn apply(&mut self, checked: Checked, update: &[u8], may: DocumentAccess) -> Result<Applied, Reject> {
        match may {
            DocumentAccess::Write => {}
            DocumentAccess::Comment => self.check_comments(&checked)?,
            DocumentAccess::Read => {
                return Err(Reject::new(RejectCode::Forbidden, "you may read this document and not change it"));
            }
        }
        if !checked.is_news {
            return Ok(Applied { operations: self.is_watched.then(Operations::new), ..Applied::default() });
        }
        let decoded = guarded(|| Update::decode_v1(update)).and_then(Result::ok);
        let decoded = decoded.filter(|decoded| checked.is_own || is_same(decoded, &checked.parsed));
        let decoded = decoded.ok_or_else(|| invalid("its contents cannot be read"))?;
        self.has_pairs |= checked.parsed.has_pairs;
        self.has_formats |= checked.parsed.has_formats;
        let before = (self.is_watched && self.has_pairs).then(|| self.text());
        let repeats = self.places.has_some_of(&checked.parsed);
        let (applied, changed, news) = self.transact(|txn| {
            let applied = txn.apply_update(decoded);
            let news = repeats.then(|| txn.encode_update_v1());
            (applied.map_err(|error| error.to_string()), txn.has_changes(), news)
        })?;
        if let Err(error) = applied {
            self.is_poisoned = true;
            return Err(invalid(error));
        }
        if self.doc.transact().has_missing_updates() {
            self.is_poisoned = true;
            return Err(invalid("its parts depend on each other in a circle"));
        }
        if changed {
            self.count(&checked.parsed);
        }
        self.places.take(checked.places);
        let operations = match (self.heard(), before) {
            (Some(heard), Some(before)) => Some(self.whole_characters(&before, heard)),
            (heard, _) => heard,
        };
        let instead = match news {
            Some(news) => {
                let news = with_deletes_of(&news, &update[checked.parsed.deletes_at..]);
                Some(self.or_distrust(news.and_then(loggable))?)
            }
            None => None,
        };
        Ok(Applied { changed, operations, instead })
    }

    /// What was heard of a change of the text from `before`, or the same in whole characters if a half of one was deleted, or
    /// something was put between its halves: what is left of it is another character then.
    fn whole_characters(&self, before: &str, heard: Operations) -> Operations {
        let after = self.text();
        match heard.apply(before) {
            Ok(told) if told == after => heard,
            _ => differ::operations(before, &after),
        }
    }

    /// Whether an update changes nothing but the comments. What it deletes elsewhere must be deleted already: editors that
    /// come back send all deletions they know of.
    fn check_comments(&self, checked: &Checked) -> Result<(), Reject> {
        let beyond = self.places.beyond_comments(&checked.places, &checked.parsed)?;
        if beyond.is_empty() {
            return Ok(());
        }
        let deleted = self.doc.transact().snapshot().delete_set;
        let mut asked = IdSet::new();
        for (client, range) in beyond {
            asked.insert(ID::new(ClientID::new(client), range.start), range.end - range.start);
        }
        if asked.diff(&deleted).is_empty() { Ok(()) } else { Err(places::only_comments()) }
    }

    /// What the last edit of the node's own did to the text, if the document is [watched](Self::watch); told once.
    pub fn heard(&mut self) -> Option<Operations> {
        let heard = self.heard.lock().ok().and_then(|mut slot| slot.take());
        self.is_watched.then(|| heard.unwrap_or_default())
    }

    /// Runs a transaction, guarded.
    fn transact<T>(&mut self, run: impl FnOnce(&mut TransactionMut<'_>) -> T) -> Result<T, Reject> {
        let poisoned = |what| Reject::new(RejectCode::UpdateInvalid, format!("{what}; the document is read anew"));
        if self.is_poisoned {
            return Err(poisoned("an earlier update broke the document"));
        }
        // What was not asked for since is of an earlier edit.
        if let Ok(mut heard) = self.heard.lock() {
            *heard = None;
        }
        let Ok(mut txn) = self.doc.try_transact_mut() else {
            self.is_poisoned = true;
            return Err(poisoned("the document is in use"));
        };
        let done = guarded(|| run(&mut txn));
        // Committed apart: a transaction that is dropped while its thread panics commits, and must not panic then.
        let committed = guarded(|| txn.commit());
        let dropped = guarded(move || drop(txn));
        match (done, committed, dropped) {
            (Some(done), Some(()), Some(())) => Ok(done),
            _ => {
                self.is_poisoned = true;
                Err(poisoned("the update broke the document and is refused"))
            }
        }
    }

    /// What was carried out and cannot be told is not to stay.
    fn or_distrust<T>(&mut self, told: Result<T, Reject>) -> Result<T, Reject> {
        self.is_poisoned |= told.is_err();
        told
    }

    /// Runs a transaction of the node's own and gives its update.
    fn edit_with(&mut self, run: impl FnOnce(&mut TransactionMut<'_>)) -> Result<Bytes, Reject> {
        let update = self.transact(|txn| {
            run(txn);
            txn.encode_update_v1()
        })?;
        let checked = loggable(Bytes::from(update)).and_then(|update| {
            let parsed = Parsed::read(&update, usize::MAX)?;
            Ok((self.place(parsed, true)?, update))
        });
        let (checked, update) = self.or_distrust(checked)?;
        self.count(&checked.parsed);
        self.has_pairs |= checked.parsed.has_pairs;
        self.has_formats |= checked.parsed.has_formats;
        self.places.take(checked.places);
        Ok(update)
    }

    /// Edits the text of root `content` as the node's client, and gives the update that did it.
    ///
    /// # Errors
    /// `operations_invalid`, if the operations do not fit the text; `document_too_large`.
    pub fn edit(&mut self, operations: &Operations) -> Result<Bytes, Reject> {
        let (text, is_text) = self.content();
        if !is_text {
            return Err(Reject::new(
                RejectCode::OperationsInvalid,
                "the root `content` of this document is no text; edit it with Yjs updates",
            ));
        }
        let edited = operations.apply(&text)?;
        let grows = edited.len().saturating_sub(text.len());
        if grows > 0 {
            self.has_room(grows)?;
        }
        let text = self.text.clone();
        let has_formats = self.has_formats;
        let update = self.edit_with(|txn| carry_out(&text, txn, operations, has_formats))?;
        self.heard();
        Ok(update)
    }

    /// Inserts a text at a place, as the node's client; gives the update, and what it did to the text.
    ///
    /// # Errors
    /// `operations_invalid`, if the place is not in the text; else as [`Document::edit`].
    pub fn insert(&mut self, at: &Anchor, text: &str) -> Result<(Bytes, Operations), Reject> {
        let offset = self.offset(at).ok_or_else(no_place)?;
        let operations = Operations::of([Operation::Retain(offset), Operation::Insert(text.to_owned())]);
        Ok((self.edit(&operations)?, operations))
    }

    /// Takes out what lies between two places, as the node's client; gives the update, and what it did to the text.
    ///
    /// # Errors
    /// As [`Document::insert`].
    pub fn delete(&mut self, from: &Anchor, to: &Anchor) -> Result<(Bytes, Operations), Reject> {
        let (from, to) = (self.offset(from).ok_or_else(no_place)?, self.offset(to).ok_or_else(no_place)?);
        let operations = Operations::of([Operation::Retain(from), Operation::Delete(to.saturating_sub(from))]);
        Ok((self.edit(&operations)?, operations))
    }

    /// The Yjs state vector (version 1) of what it has, its clients in ascending order.
    pub fn state_vector(&self) -> Bytes {
        self.places.state_vector()
    }

    /// What somebody lacks whose Yjs state vector (version 1) is this, as an update; empty bytes stand for nothing.
    ///
    /// # Errors
    /// `update_invalid`, if it is no state vector.
    pub fn diff(&self, state_vector: &[u8]) -> Result<Bytes, Reject> {
        if state_vector.is_empty() {
            return Ok(self.state());
        }
        if state_vector.len() > STATE_VECTOR_BYTES_MAX {
            return Err(invalid(format_args!("a state vector of {} bytes", state_vector.len())));
        }
        let theirs = update::read_state_vector(state_vector)?;
        let theirs = theirs.into_iter().map(|(client, clock)| (ClientID::new(client), clock));
        let theirs = StateVector::from_iter(theirs);
        guarded(|| self.doc.transact().encode_diff_v1(&theirs))
            .map(Bytes::from)
            .ok_or_else(|| invalid("a state vector that cannot be compared"))
    }

    /// All of it, as one update.
    pub fn state(&self) -> Bytes {
        Bytes::from(self.doc.transact().encode_diff_v1(&StateVector::default()))
    }

    /// The text of root `content`; [`EMBEDDED`] stands for what is no text.
    pub fn text(&self) -> String {
        self.content().0
    }

    /// The text, and whether it is all there is in the root, so that its offsets are the root's.
    fn content(&self) -> (String, bool) {
        let txn = self.doc.transact();
        let length = self.text.len(&txn);
        let text = self.text.get_string(&txn);
        if utf16_len(&text) == length {
            return (text, true);
        }
        let mut text = String::with_capacity(text.len());
        for chunk in self.text.diff(&txn, YChange::identity) {
            match chunk.insert {
                Out::Any(Any::String(piece)) => text.push_str(&piece),
                _ => text.push(EMBEDDED),
            }
        }
        let is_text = utf16_len(&text) == length;
        (text, is_text)
    }

    /// All of its roots, as a JSON object with its keys in order: texts as strings, arrays and maps as themselves, XML as
    /// its text.
    pub fn json(&self) -> String {
        json::of(&self.doc.transact())
    }

    /// How many bytes its encoded state has, at most and about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory that knowing where everything stands takes, about: for benches.
    pub fn places_bytes(&self) -> usize {
        self.places.memory()
    }

    /// Makes it what an older state of it was, as an edit of the node's client; gives the update, or nothing if there is
    /// nothing to change. What it did to the text, [`Document::heard`] tells.
    ///
    /// Texts are changed where they differ and keep their formats elsewhere; in arrays and XML, the elements that differ are
    /// replaced; in maps, the entries that do.
    ///
    /// # Errors
    /// `update_invalid`, if one of the two holds what cannot be restored; the document is as before, unless it
    /// [is poisoned](Self::is_poisoned).
    pub fn restore(&mut self, old: &Document) -> Result<Option<Bytes>, Reject> {
        let old = guarded(|| restore::read(&old.doc.transact()));
        let old = old.ok_or_else(|| invalid("its old state cannot be read"))?;
        let mut is_changed = false;
        let update = self.edit_with(|txn| {
            restore::restore(txn, &old);
            is_changed = txn.has_changes();
        })?;
        Ok(is_changed.then_some(update))
    }
}

/// Whether the library read what was checked. If the two ever read something differently, what follows it was not judged.
fn is_same(decoded: &Update, parsed: &Parsed) -> bool {
    let mut inserted = IdSet::new();
    for (client, structs) in &parsed.sections {
        for one in parsed.structs[structs.clone()].iter().filter(|one| one.kind != Kind::Skip) {
            inserted.insert(ID::new(ClientID::new(*client), one.clock), one.length);
        }
    }
    decoded.insertions(true) == inserted && *decoded.delete_set() == deletes_of(parsed)
}

/// What an update deletes, as the library has it.
fn deletes_of(parsed: &Parsed) -> IdSet {
    let mut deletes = IdSet::new();
    for (client, ranges) in &parsed.deletes {
        for range in ranges {
            deletes.insert(ID::new(ClientID::new(*client), range.start), range.end - range.start);
        }
    }
    deletes
}

/// An update that was carried out, if it is one that a log takes.
fn loggable(update: Bytes) -> Result<Bytes, Reject> {
    if update.len() <= DOCUMENT_UPDATE_BYTES_MAX {
        return Ok(update);
    }
    Err(Reject::new(
        RejectCode::DocumentTooLarge,
        format!(
            "the edit takes {} bytes as an update and may take {DOCUMENT_UPDATE_BYTES_MAX}; make it in pieces",
            update.len()
        ),
    ))
}

/// An update with the structs of one and these deletions: those of the library's own would have a range for each piece that
/// was not deleted before.
fn with_deletes_of(structs: &[u8], deletes: &[u8]) -> Result<Bytes, Reject> {
    let at = Parsed::read(structs, usize::MAX)?.deletes_at;
    Ok(Bytes::from([&structs[..at], deletes].concat()))
}

fn no_place() -> Reject {
    Reject::new(RejectCode::OperationsInvalid, "the place is not, or no longer, in the text of this document")
}

/// One update that does what these do, one after the other. They must be updates that a document took.
///
/// # Errors
/// `update_invalid`, if one is no update.
pub fn merge(updates: &[Bytes]) -> Result<Bytes, Reject> {
    match updates {
        [] => Ok(Bytes::from_static(EMPTY_UPDATE)),
        [one] => Ok(one.clone()),
        many => guarded(|| yrs::merge_updates_v1(many))
            .and_then(Result::ok)
            .map(Bytes::from)
            .ok_or_else(|| invalid("one of those to merge cannot be read")),
    }
}

#[cfg(test)]
mod tests;
