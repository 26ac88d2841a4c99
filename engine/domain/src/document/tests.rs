//! What documents do with good and with bad updates. `editors` has the random ones.

mod editors;
mod hostile;
mod properties;

use thalweg_protocol::document::{COMMENTS_ROOT, DocumentAccess, Operations, ROOT};
use thalweg_protocol::reject::RejectCode;
use yrs::types::Attrs;
use yrs::{Any, Array, ArrayPrelim, Doc, GetString, Map, ReadTxn, StateVector, Text, Transact, Update, WriteTxn};
use yrs::{XmlElementPrelim, XmlFragment, XmlTextPrelim};

use super::*;
use editors::editor;

const NODE: u64 = NODE_CLIENTS | 7;

/// What an edit of a client's copy sends.
fn edit(doc: &Doc, run: impl FnOnce(&mut TransactionMut<'_>)) -> Vec<u8> {
    let mut txn = doc.transact_mut();
    run(&mut txn);
    txn.encode_update_v1()
}

fn take(document: &mut Document, update: &[u8]) -> Applied {
    let checked = document.check(update).expect("an update of an editor is taken");
    document.apply(checked, update, DocumentAccess::Write).expect("what was checked is applied")
}

/// A copy of a client's that has what the document has.
fn copy(document: &Document, client: u64) -> Doc {
    let doc = editor(client);
    doc.transact_mut().apply_update(Update::decode_v1(&document.state()).expect("a state")).expect("is applied");
    doc
}

#[test]
fn a_document_is_what_its_editors_made_it() {
    let mut document = Document::new(NODE);
    assert_eq!((document.text().as_str(), document.json().as_str()), ("", "{\"content\":\"\"}"));
    let ada = editor(1);
    let update = edit(&ada, |txn| txn.get_or_insert_text(ROOT).insert(txn, 0, "The tide 🌊 turns"));
    assert!(take(&mut document, &update).changed);
    assert_eq!(document.text(), "The tide 🌊 turns");
    assert!(!document.check(&update).expect("is known").is_news, "an update that is known is no news");
    let bob = copy(&document, 2);
    let update = edit(&bob, |txn| txn.get_or_insert_text(ROOT).remove_range(txn, 0, 4));
    assert!(take(&mut document, &update).changed);
    let again = take(&mut document, &update);
    assert!(!again.changed, "what is deleted already changes nothing");
    assert_eq!(document.text(), "tide 🌊 turns");
    let opened = Document::open(NODE + 1, &document.state()).expect("opens");
    assert_eq!((opened.text(), opened.state()), (document.text(), document.state()));
    assert_eq!(opened.state_vector(), document.state_vector());
}

#[test]
fn somebody_who_returns_gets_what_they_lack() {
    let mut document = Document::new(NODE);
    let ada = editor(1);
    take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).insert(txn, 0, "one")));
    let vector = document.state_vector();
    take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).insert(txn, 3, " two")));
    let diff = document.diff(&vector).expect("a state vector");
    assert!(diff.len() < document.state().len());
    let mut other = Document::new(NODE);
    assert_eq!(other.check(&diff).expect_err("lacks the first").code, RejectCode::UpdateIncomplete);
    let nothing = Document::new(NODE).state_vector();
    other.replay(&document.diff(&nothing).expect("all")).expect("is whole");
    other.replay(&document.diff(b"").expect("all")).expect("is whole");
    assert_eq!(other.text(), "one two");
    for bad in [&[9, 1, 1][..], &[1, 1], &[0, 0], &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1]] {
        assert_eq!(document.diff(bad).expect_err("no state vector").code, RejectCode::UpdateInvalid, "{bad:?}");
    }
}

#[test]
fn the_node_edits_by_offsets_and_places() {
    let mut document = Document::new(NODE);
    document.watch(true);
    let first = document.edit(&Operations::new().insert("a😀c")).expect("fits");
    let place = document.anchor(3, false).expect("behind the face");
    let (before, end) = (document.anchor(3, true).expect("before c"), document.anchor(4, true).expect("the end"));
    let (second, did) = document.insert(&place, "bb").expect("is in the text");
    assert_eq!(did, Operations::new().retain(3).insert("bb"));
    assert_eq!(document.text(), "a😀bbc");
    assert_eq!([&place, &before, &end].map(|place| document.offset(place)), [Some(3), Some(5), Some(6)]);
    for anchor in [&place, &before, &end] {
        assert_eq!(&Anchor::decode(&anchor.encode()).expect("round trip"), anchor);
    }
    let (third, _) = document.delete(&place, &before).expect("both are in the text");
    assert_eq!(document.text(), "a😀c");
    for (operations, why) in [
        (Operations::new().retain(9).insert("x"), "beyond the end"),
        (Operations::new().retain(2).insert("x"), "within a character"),
        (Operations::new().delete(2), "half of a character"),
    ] {
        assert_eq!(document.edit(&operations).expect_err(why).code, RejectCode::OperationsInvalid);
    }
    assert_eq!(document.anchor(5, true), None);
    let mut other = Document::new(NODE);
    for update in [first, second, third] {
        other.replay(&update).expect("follows");
    }
    assert_eq!((other.text(), other.state()), (document.text(), document.state()));
    assert_eq!(Anchor::decode(&[9, 9]).expect_err("no place").code, RejectCode::UpdateInvalid);
    let elsewhere = Anchor::decode(&[0, 99, 5, 0]).expect("a place of somebody unknown");
    assert_eq!(document.offset(&elsewhere), None);
    assert_eq!(document.insert(&elsewhere, "x").expect_err("is nowhere").code, RejectCode::OperationsInvalid);
    assert!(place.json().starts_with("{\"type\":null,\"tname\":\"content\",\"item\":{\"client\":"), "{}", place.json());
}

#[test]
fn watchers_are_told_what_happened_to_the_text() {
    let mut document = Document::new(NODE);
    document.watch(true);
    let ada = editor(1);
    let mut check = |run: &dyn Fn(&mut TransactionMut<'_>), expected: Operations| {
        let applied = take(&mut document, &edit(&ada, run));
        assert_eq!(applied.operations, Some(expected));
    };
    check(&|txn| txn.get_or_insert_text(ROOT).insert(txn, 0, "one two"), Operations::new().insert("one two"));
    let bold = Attrs::from([("bold".into(), Any::Bool(true))]);
    check(&|txn| txn.get_or_insert_text(ROOT).format(txn, 0, 3, bold.clone()), Operations::new());
    check(&|txn| txn.get_or_insert_text(ROOT).remove_range(txn, 1, 2), Operations::new().retain(1).delete(2));
    let image = Any::from_json("{\"image\":5}").expect("is JSON");
    check(
        &|txn| {
            txn.get_or_insert_text(ROOT).insert_embed(txn, 1, image.clone());
        },
        Operations::new().retain(1).insert(EMBEDDED.to_string()),
    );
    check(
        &|txn| {
            txn.get_or_insert_map("other").insert(txn, "key", 5);
        },
        Operations::new(),
    );
    assert_eq!(document.text(), format!("o{EMBEDDED} two"));
    document.edit(&Operations::new().retain(2).insert("n")).expect("what is embedded counts as one");
    assert_eq!(document.text(), format!("o{EMBEDDED}n two"));
}

#[test]
fn all_kinds_of_roots_are_told_as_json_and_restored() {
    let mut document = Document::new(NODE);
    let ada = editor(1);
    let bold = Attrs::from([("bold".into(), Any::Bool(true))]);
    let update = edit(&ada, |txn| {
        let text = txn.get_or_insert_text(ROOT);
        text.insert(txn, 0, "The quick brown fox");
        text.format(txn, 4, 5, bold.clone());
        let list = txn.get_or_insert_array("list");
        list.insert_range(txn, 0, [1, 2, 3]);
        list.insert(txn, 3, ArrayPrelim::from([Any::from("in")]));
        let map = txn.get_or_insert_map("map");
        map.insert(txn, "b", true);
        map.insert(txn, "a", "\"quoted\"\n");
        let page = txn.get_or_insert_xml_fragment("page");
        let paragraph = page.insert(txn, 0, XmlElementPrelim::empty("p"));
        yrs::Xml::insert_attribute(&paragraph, txn, "level", "1");
        paragraph.insert(txn, 0, XmlTextPrelim::new("Hello there"));
        page.insert(txn, 1, XmlElementPrelim::empty("hr"));
    });
    take(&mut document, &update);
    let json = "{\"content\":\"The quick brown fox\",\"list\":[1,2,3,[\"in\"]],\"map\":{\"a\":\"\\\"quoted\\\"\\n\",\"b\":true},\
                \"page\":\"<p level=\\\"1\\\">Hello there</p><hr></hr>\"}";
    assert_eq!(document.json(), json);
    let old = Document::open(NODE + 1, &document.state()).expect("opens");
    let update = edit(&ada, |txn| {
        let text = txn.get_or_insert_text(ROOT);
        text.remove_range(txn, 0, 10);
        text.insert(txn, 3, "!!");
        text.format(txn, 0, 4, Attrs::from([("italic".into(), Any::Bool(true))]));
        let list = txn.get_or_insert_array("list");
        list.remove_range(txn, 1, 2);
        list.push_back(txn, 9);
        let map = txn.get_or_insert_map("map");
        map.remove(txn, "b");
        map.insert(txn, "c", 1);
        let page = txn.get_or_insert_xml_fragment("page");
        page.remove_range(txn, 0, 1);
        txn.get_or_insert_array("new").push_back(txn, "more");
    });
    take(&mut document, &update);
    assert_ne!(document.json(), json);
    let update = document.restore(&old).expect("restores").expect("something is to be changed");
    assert_eq!(document.json().replace(",\"new\":null", ""), json);
    assert!(!document.is_poisoned());
    let state = tree::read(&document.doc.transact());
    let was = tree::read(&old.doc.transact());
    assert_eq!(state.get(ROOT), was.get(ROOT), "formats are restored too");
    assert_eq!(document.restore(&old).expect("restores"), None, "there is nothing left to change");
    ada.transact_mut().apply_update(Update::decode_v1(&update).expect("an update")).expect("applies");
    let text = ada.transact().get_text(ROOT).expect("is there");
    assert_eq!(text.get_string(&ada.transact()), "The quick brown fox");
}

#[test]
fn restoring_changes_no_more_than_differs() {
    let mut document = Document::new(NODE);
    let paragraph = "Rivers find their own way down to the sea. ".repeat(40);
    document.edit(&Operations::new().insert(&paragraph)).expect("fits");
    let old = Document::open(NODE + 1, &document.state()).expect("opens");
    let cursor = document.anchor(1_000, true).expect("in the middle");
    document.edit(&Operations::new().retain(10).insert("XX").retain(700).delete(3)).expect("fits");
    let update = document.restore(&old).expect("restores").expect("differs");
    assert_eq!(document.text(), paragraph);
    assert!(update.len() < 100, "{} bytes to change five characters", update.len());
    assert_eq!(document.offset(&cursor), Some(1_000), "cursors in what is the same stay where they are");
}

#[test]
fn commenters_change_comments_and_nothing_else() {
    let mut document = Document::new(NODE);
    let ada = editor(1);
    take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).insert(txn, 0, "abc")));
    take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).remove_range(txn, 0, 1)));
    let bob = copy(&document, 2);
    let check = |document: &mut Document, update: &[u8], expected: Result<bool, RejectCode>| {
        let checked = document.check(update).expect("is an update");
        let applied = document.apply(checked, update, DocumentAccess::Comment);
        assert_eq!(applied.map(|applied| applied.changed).map_err(|reject| reject.code), expected);
        assert!(!document.is_poisoned(), "it is refused before it does anything");
    };
    let comment = edit(&bob, |txn| {
        let thread = txn.get_or_insert_array(COMMENTS_ROOT);
        thread.push_back(txn, yrs::MapPrelim::from([("text", "why?")]));
    });
    check(&mut document, &comment, Ok(true));
    let answer = edit(&bob, |txn| {
        let thread = txn.get_or_insert_array(COMMENTS_ROOT);
        let Some(Out::YMap(first)) = thread.get(txn, 0) else { panic!("it is there") };
        first.insert(txn, "resolved", true);
        thread.push_back(txn, "more");
    });
    check(&mut document, &answer, Ok(true));
    let all = bob.transact().encode_state_as_update_v1(&StateVector::default());
    check(&mut document, &all, Ok(false));
    let gone = edit(&bob, |txn| txn.get_or_insert_array(COMMENTS_ROOT).remove(txn, 1));
    check(&mut document, &gone, Ok(true));
    let json = document.json();
    let forbidden: [&dyn Fn(&mut TransactionMut<'_>); 4] = [
        &|txn| txn.get_or_insert_text(ROOT).insert(txn, 0, "x"),
        &|txn| txn.get_or_insert_text(ROOT).insert(txn, 2, "x"),
        &|txn| txn.get_or_insert_text(ROOT).remove_range(txn, 0, 1),
        &|txn| {
            txn.get_or_insert_map("other").insert(txn, "a", 1);
        },
    ];
    for run in forbidden {
        let eve = copy(&document, 3);
        check(&mut document, &edit(&eve, run), Err(RejectCode::Forbidden));
        assert_eq!(document.json(), json);
    }
    let checked = document.check(&answer).expect("is an update");
    assert!(!checked.is_news);
    let reject = document.apply(checked, &answer, DocumentAccess::Read).expect_err("readers read");
    assert_eq!(reject.code, RejectCode::Forbidden);
}

#[test]
fn a_document_that_grows_too_large_takes_no_more() {
    let mut document = Document::new(NODE);
    let ada = editor(1);
    let page = "x".repeat(700 << 10);
    let mut update = Vec::new();
    for _ in 0..6 {
        update = edit(&ada, |txn| txn.get_or_insert_text(ROOT).push(txn, &page));
        if document.check(&update).is_err() {
            break;
        }
        take(&mut document, &update);
    }
    assert_eq!(document.check(&update).expect_err("is full").code, RejectCode::DocumentTooLarge);
    let reject = document.edit(&Operations::new().insert(&*page)).expect_err("is full");
    assert_eq!(reject.code, RejectCode::DocumentTooLarge);
    let bob = copy(&document, 2);
    take(&mut document, &edit(&bob, |txn| txn.get_or_insert_text(ROOT).remove_range(txn, 0, 3_000_000)));
    let carol = copy(&document, 3);
    let update = edit(&carol, |txn| txn.get_or_insert_text(ROOT).push(txn, &page));
    assert!(take(&mut document, &update).changed, "what was taken out leaves room");
    let reject = document.check(&vec![0; DOCUMENT_UPDATE_BYTES_MAX + 1]).expect_err("is too long");
    assert_eq!(reject.code, RejectCode::UpdateInvalid);
}

#[test]
fn a_full_document_can_be_emptied_and_filled_again() {
    let mut document = Document::new(NODE);
    let page = "x".repeat(700 << 10);
    while document.edit(&Operations::new().insert(&*page)).is_ok() {}
    let length = utf16_len(&document.text());
    document.edit(&Operations::new().delete(length)).expect("deleting is no growing");
    document.edit(&Operations::new().insert(&*page)).expect("what was taken out leaves room");
}

#[test]
fn an_edit_that_is_longer_than_a_log_takes_is_refused_and_not_kept() {
    let mut document = Document::new(NODE);
    document.edit(&Operations::new().insert("short")).expect("is taken");
    let page = "x".repeat(DOCUMENT_UPDATE_BYTES_MAX);
    let reject = document.edit(&Operations::new().insert(page)).expect_err("its update is longer than its text");
    assert_eq!(reject.code, RejectCode::DocumentTooLarge);
    assert!(document.is_poisoned(), "it was carried out in memory, and is not in the log");
}

#[test]
fn so_many_stretches_are_deleted_at_once_and_no_more() {
    let mut document = Document::new(NODE);
    let ada = editor(1);
    let count = DELETES_MAX as u32 + 1;
    let page = "xy".repeat(count as usize);
    take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).push(txn, &page)));
    let cut = |doc: &Doc, from: u32, to: u32| {
        edit(doc, |txn| {
            let text = txn.get_or_insert_text(ROOT);
            (from..to).rev().for_each(|at| text.remove_range(txn, 2 * at, 1));
        })
    };
    let (bob, carol) = (copy(&document, 2), copy(&document, 3));
    let all = cut(&ada, 0, count);
    assert!(document.check(&all).expect_err("too many").message.contains("in pieces"));
    take(&mut document, &cut(&bob, 0, count / 2));
    take(&mut document, &cut(&carol, count / 2, count));
    assert!(take(&mut document, &all).operations.is_none(), "those that are deleted already do not count");
}

#[test]
fn what_was_restored_is_told_once() {
    let mut document = Document::new(NODE);
    document.watch(true);
    let ada = editor(1);
    take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).push(txn, "now")));
    let old = Document::new(NODE + 1);
    document.restore(&old).expect("restores").expect("something changed");
    let comment = edit(&ada, |txn| {
        txn.get_or_insert_map("other").insert(txn, "a", 1);
    });
    assert_eq!(take(&mut document, &comment).operations, Some(Operations::new()));
}

#[test]
fn typing_is_counted_as_what_it_adds() {
    let mut document = Document::new(NODE);
    let ada = editor(1);
    for at in 0..2_000 {
        take(&mut document, &edit(&ada, |txn| txn.get_or_insert_text(ROOT).insert(txn, at, "a")));
    }
    let (estimate, exact) = (document.bytes(), document.state().len());
    assert!((exact..exact * 2).contains(&estimate), "{estimate} for {exact} bytes");
}
