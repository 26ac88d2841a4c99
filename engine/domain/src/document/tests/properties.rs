//! What holds for any editors, in any order.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;
use thalweg_protocol::document::{DocumentAccess, Operations, ROOT, Side};
use yrs::updates::decoder::Decode;
use yrs::{Doc, Transact, TransactionMut, Update, WriteTxn};

use super::super::{Anchor, Document, merge, tree};
use super::editors::{Dice, change_anything, change_text, cut, editor};
use super::{NODE, edit, take};

type Change = fn(&mut TransactionMut<'_>, &mut Dice);

/// Editors that edit apart from each other and exchange what they did through a document, now and then; gives the document
/// and the updates it took.
fn session(seed: u64, rounds: u32, change: Change) -> (Document, Vec<Bytes>) {
    let mut dice = Dice::new(seed);
    let mut document = Document::new(NODE);
    document.watch(true);
    let mut editors: Vec<(Doc, usize, Vec<Vec<u8>>)> = (1..4).map(|client| (editor(client), 0, Vec::new())).collect();
    let mut log: Vec<Bytes> = Vec::new();
    let mut text = document.text();
    for round in 0..rounds + 3 {
        let (doc, seen, outbox) = &mut editors[if round < rounds { dice.below(3) } else { round - rounds } as usize];
        if round < rounds {
            outbox.push(edit(doc, |txn| change(txn, &mut dice)));
        }
        if dice.below(3) > 0 && round < rounds {
            continue;
        }
        for update in outbox.drain(..) {
            let applied = take(&mut document, &update);
            text = applied.operations.expect("is watched").apply(&text).expect("fits the text before");
            assert_eq!(text, document.text(), "watchers can follow");
            if applied.changed {
                log.push(update.into());
            }
        }
        for update in &log[*seen..] {
            doc.transact_mut().apply_update(Update::decode_v1(update).expect("an update")).expect("applies");
        }
        *seen = log.len();
    }
    for (doc, seen, _) in &mut editors {
        let missing = merge(&log[*seen..]).expect("merges");
        doc.transact_mut().apply_update(Update::decode_v1(&missing).expect("an update")).expect("applies");
        doc.transact_mut().get_or_insert_text(ROOT);
        assert_eq!(tree::read(&doc.transact()).get(ROOT), tree::read(&document.doc.transact()).get(ROOT));
        let vector = Document::new(NODE).diff(&[0]).expect("a state vector");
        assert_eq!(&*vector, &[0, 0]);
    }
    (document, log)
}

/// A thin client: it has a text at a revision, one edit under way, and what it typed since.
#[derive(Default)]
struct Thin {
    text: String,
    revision: usize,
    sent: Option<Operations>,
    typed: Operations,
}

impl Thin {
    fn type_something(&mut self, dice: &mut Dice) {
        let at = cut(&self.text, dice);
        let to = cut(&self.text, dice);
        let operations = match dice.below(3) {
            0 if at != to => Operations::new().retain(at.min(to)).delete(at.abs_diff(to)),
            _ => Operations::new().retain(at).insert(dice.words()),
        };
        self.text = operations.apply(&self.text).expect("fits");
        self.typed = self.typed.compose(&operations);
    }

    /// Takes what the node says happened next; `own`: it was what this client sent.
    fn hear(&mut self, operations: &Operations, own: bool) {
        self.revision += 1;
        if own {
            self.sent = None;
            return;
        }
        let mut theirs = operations.clone();
        for mine in [self.sent.as_mut(), Some(&mut self.typed)].into_iter().flatten() {
            let after = theirs.transform(mine, Side::First);
            *mine = mine.transform(&theirs, Side::Second);
            theirs = after;
        }
        self.text = theirs.apply(&self.text).expect("fits");
    }
}

/// Thin clients and Yjs editors on one document: all end with the same text.
fn mixed_session(seed: u64, rounds: u32) {
    let mut dice = Dice::new(seed);
    let mut document = Document::new(NODE);
    document.watch(true);
    // What happened at each revision, and which thin client did it.
    let mut log: Vec<(Bytes, Operations, Option<usize>)> = Vec::new();
    let mut thin: Vec<Thin> = (0..3).map(|_| Thin::default()).collect();
    let mut under_way: Vec<VecDeque<(usize, Operations)>> = (0..3).map(|_| VecDeque::new()).collect();
    let mut thick: Vec<(Doc, usize, Vec<Vec<u8>>)> = (1..3).map(|client| (editor(client), 0, Vec::new())).collect();
    for round in 0..rounds + 200 {
        let is_last = round >= rounds;
        let one = dice.below(3) as usize;
        match dice.below(6) {
            0 if !is_last => thin[one].type_something(&mut dice),
            1 if !is_last => {
                let (doc, _, outbox) = &mut thick[one % 2];
                outbox.push(edit(doc, |txn| change_text(txn, &mut dice)));
            }
            // A thin client sends what it typed.
            2 if thin[one].sent.is_none() && !thin[one].typed.is_empty() => {
                let operations = std::mem::take(&mut thin[one].typed);
                under_way[one].push_back((thin[one].revision, operations.clone()));
                thin[one].sent = Some(operations);
            }
            // The node takes it.
            3 => {
                if let Some((revision, operations)) = under_way[one].pop_front() {
                    let since = log[revision..]
                        .iter()
                        .fold(operations, |mine, (_, theirs, _)| mine.transform(theirs, Side::Second));
                    let before = document.text();
                    let update = document.edit(&since).expect("what was transformed fits");
                    assert_eq!(document.text(), since.apply(&before).expect("fits"));
                    log.push((update, since, Some(one)));
                }
            }
            // A thin client hears of the next revision.
            4 => {
                let revision = thin[one].revision;
                if let Some((_, operations, by)) = log.get(revision) {
                    thin[one].hear(operations, *by == Some(one));
                }
            }
            _ => {
                let (doc, seen, outbox) = &mut thick[one % 2];
                for update in outbox.drain(..) {
                    let applied = take(&mut document, &update);
                    log.push((update.into(), applied.operations.expect("is watched"), None));
                }
                for (update, ..) in &log[*seen..] {
                    doc.transact_mut().apply_update(Update::decode_v1(update).expect("an update")).expect("applies");
                }
                *seen = log.len();
            }
        }
    }
    // Whoever is not done yet catches up.
    for one in 0..3 {
        loop {
            if let Some((revision, operations)) = under_way[one].pop_front() {
                let since = log[revision..]
                    .iter()
                    .fold(operations, |mine, (_, theirs, _)| mine.transform(theirs, Side::Second));
                let update = document.edit(&since).expect("fits");
                log.push((update, since, Some(one)));
            }
            while let Some((_, operations, by)) = log.get(thin[one].revision) {
                thin[one].hear(operations, *by == Some(one));
            }
            if thin[one].typed.is_empty() {
                break;
            }
            let operations = std::mem::take(&mut thin[one].typed);
            under_way[one].push_back((thin[one].revision, operations.clone()));
            thin[one].sent = Some(operations);
        }
    }
    for client in &mut thin {
        while let Some((_, operations, by)) = log.get(client.revision) {
            assert!(by.is_none() || client.sent.is_none());
            client.hear(operations, false);
        }
        assert_eq!(client.text, document.text(), "thin clients end with the document's text");
    }
    for (doc, seen, outbox) in &mut thick {
        assert!(outbox.drain(..).all(|update| document.check(&update).is_ok()));
        for (update, ..) in &log[*seen..] {
            doc.transact_mut().apply_update(Update::decode_v1(update).expect("an update")).expect("applies");
        }
    }
}

/// A document that does the same as a log.
fn replayed(log: &[Bytes]) -> Document {
    let mut document = Document::new(NODE + 1);
    for update in log {
        document.replay(update).expect("is an update");
    }
    document
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn editors_of_anything_converge(seed: u64) {
        session(seed, 60, change_anything);
    }

    #[test]
    fn thin_clients_and_editors_converge(seed: u64) {
        mixed_session(seed, 120);
    }

    #[test]
    fn merged_updates_do_what_they_did_apart(seed: u64, cuts in prop::collection::vec(1usize..9, 1..20)) {
        let (document, log) = session(seed, 40, change_anything);
        let mut merged = Document::new(NODE + 1);
        let mut rest = &log[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            let update = merge(now).expect("merges");
            merged.replay(&update).expect("is an update");
            rest = later;
        }
        prop_assert_eq!(merged.json(), document.json());
        prop_assert_eq!(merged.state_vector(), document.state_vector());
    }

    #[test]
    fn a_log_leads_to_the_same_bytes(seed: u64) {
        let (document, log) = session(seed, 40, change_text);
        let (one, other) = (replayed(&log), replayed(&log));
        prop_assert_eq!(one.state(), other.state());
        prop_assert_eq!(one.text(), document.text());
        let reopened = Document::open(NODE + 2, &one.state()).expect("opens");
        prop_assert_eq!((reopened.text(), reopened.state_vector()), (one.text(), one.state_vector()));
        prop_assert!(reopened.state().len() <= one.state().len(), "neighbours become one, and nothing is added");
    }

    #[test]
    fn restoring_gives_what_was(seed: u64, at in 0usize..40) {
        let (mut document, log) = session(seed, 40, change_anything);
        let old = replayed(&log[..at.min(log.len())]);
        let update = document.restore(&old).expect("restores");
        prop_assert!(!document.is_poisoned());
        prop_assert_eq!(document.text(), old.text());
        let (now, was) = (tree::read(&document.doc.transact()), tree::read(&old.doc.transact()));
        for (name, root) in now {
            let was = was.get(&name).unwrap_or(&tree::Node::Unknown);
            let is_empty = matches!(root, tree::Node::Unknown) || root == tree::Node::Text { is_xml: false, pieces: vec![] };
            prop_assert!(root == *was || (is_empty && matches!(was, tree::Node::Unknown)), "{}: {:?} for {:?}", name, root, was);
        }
        if let Some(update) = update {
            let mut other = replayed(&log);
            other.replay(&update).expect("is an update");
            prop_assert_eq!(other.json(), document.json());
        }
    }

    #[test]
    fn places_go_with_what_is_around_them(seed: u64) {
        let mut dice = Dice::new(seed);
        let (mut document, _) = session(seed, 30, change_text);
        let text = document.text();
        let at = cut(&text, &mut dice);
        let (before, after) = (document.anchor(at, false).expect("within"), document.anchor(at, true).expect("within"));
        let before = Anchor::decode(&before.encode()).expect("round trip");
        let (mut low, mut high) = (at, at);
        for _ in 0..10 {
            let text = document.text();
            let (from, to) = (cut(&text, &mut dice), cut(&text, &mut dice));
            let operations = match dice.below(2) {
                0 => Operations::new().retain(from).insert("new"),
                _ => Operations::new().retain(from.min(to)).delete(from.abs_diff(to)),
            };
            document.edit(&operations).expect("fits");
            low = operations.offset_after(low, false);
            high = operations.offset_after(high, true);
            let (is_low, is_high) = (document.offset(&before).expect("is there"), document.offset(&after).expect("is there"));
            prop_assert!(low <= is_high && is_low <= high.max(is_high), "{} {} {} {}", low, high, is_low, is_high);
            (low, high) = (is_low, is_high);
        }
    }

    #[test]
    fn damaged_updates_are_refused_or_do_no_harm(
        seed: u64,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        is_cut in prop::bool::weighted(0.2),
    ) {
        let (document, log) = session(seed, 30, change_anything);
        let whole = document.state();
        for (at, update) in log.iter().chain([&whole]).enumerate() {
            let mut bytes = update.to_vec();
            for (index, byte) in &damage {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            // On a document that has the half of it, or all, or nothing.
            let mut victim = replayed(&log[..(log.len() / 2) * (at % 3)]);
            let Ok(checked) = victim.check(&bytes) else { continue };
            let applied = victim.apply(checked, &bytes, DocumentAccess::Write);
            prop_assert!(!victim.is_poisoned(), "{:?} got through with {:?}", applied, bytes);
            let (text, json, state) = (victim.text(), victim.json(), victim.state());
            let opened = Document::open(NODE, &state).expect("its state is a state");
            prop_assert_eq!((opened.text(), opened.json().len()), (text, json.len()));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut document = Document::new(NODE);
        if let Ok(checked) = document.check(&bytes) {
            let _ = document.apply(checked, &bytes, DocumentAccess::Write);
        }
        let _ = document.diff(&bytes);
        if let Ok(anchor) = Anchor::decode(&bytes) {
            let _ = document.offset(&anchor);
        }
    }
}
