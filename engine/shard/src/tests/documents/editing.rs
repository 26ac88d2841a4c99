//! Edits: one by one, several in a turn, repeated, by operations, refused.

use thalweg_protocol::limits::{DOCUMENT_DELTAS_KEPT, DOCUMENT_UPDATE_BYTES_MAX};
use thalweg_protocol::reject::RejectCode;

use super::*;

#[test]
fn an_edit_is_answered_once_it_is_durable_and_reaches_the_others() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
        let mut bob = Editor::new(node.open(cores - 1, "bob", 2), "plan", 2);
        let made = ada.open(&mut node);
        assert_eq!((made.made, made.revision, made.bytes, made.access), (true, 0, 0, DocumentAccess::Write));
        assert!(!bob.open(&mut node).made);
        node.late = true;
        let edit = ada.insert(0, "The tide turns.");
        let request = node.request(ada.client, edit);
        assert_eq!(node.reply(request), None, "an answer says that it is durable");
        assert!(bob.hear(&mut node).is_empty(), "nobody sees what may be lost");
        node.commit();
        let reply = node.reply(request);
        assert_eq!(published(reply), (1, false));
        node.late = false;
        node.settle();
        assert_eq!(bob.hear(&mut node), ["1"]);
        assert_eq!(bob.copy.text(), "The tide turns.");
        assert!(ada.hear(&mut node).is_empty(), "an own edit is not heard again");
        assert_eq!(node.gauge("documents"), 1);
        assert_eq!(node.gauge("documents_open"), 1);
    }
}

#[test]
fn a_document_is_opened_with_what_its_reader_lacks() {
    let mut node = Node::new(2);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    let edit = ada.insert(0, "one");
    node.call(ada.client, edit);
    let mut bob = Editor::new(node.open(1, "bob", 2), "plan", 2);
    let whole = bob.open(&mut node);
    assert_eq!((whole.revision, bob.copy.text().as_str()), (1, "one"));
    node.close(bob.client);
    let edit = ada.insert(3, " two");
    node.call(ada.client, edit);
    bob.client = node.open(1, "bob", 3);
    let rest = bob.open(&mut node);
    assert_eq!((rest.revision, bob.copy.text().as_str()), (2, "one two"));
    assert!(rest.bytes < whole.bytes + 10, "only what is new: {rest:?}");
    node.close(bob.client);
    bob.client = node.open(1, "bob", 4);
    assert_eq!(bob.open(&mut node).bytes, 0, "nothing is new");
    let thin = node.open(0, "eve", 5);
    let refused = node.refusal(thin, open_op("plan", DocumentForm::Updates, Bytes::from_static(&[1, 1])));
    assert_eq!(refused, RejectCode::UpdateInvalid);
    let refused = node.refusal(thin, open_op("plan", DocumentForm::Operations, Bytes::from_static(&[0])));
    assert_eq!(refused, RejectCode::ParameterInvalid);
}

#[test]
fn the_updates_of_a_turn_become_one_message() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    let mut bob = Editor::new(node.open(0, "bob", 2), "plan", 2);
    let mut eve = Editor::new(node.open(0, "eve", 3), "plan", 3);
    for editor in [&mut ada, &mut bob, &mut eve] {
        editor.open(&mut node);
    }
    let edits = [ada.insert(0, "a"), ada.insert(1, "d"), ada.insert(2, "a")];
    let own: Vec<_> = edits.into_iter().map(|edit| node.send(ada.client, edit)).collect();
    node.settle();
    for request in own {
        let reply = node.reply(request);
        assert_eq!(published(reply), (1, false));
    }
    assert!(ada.hear(&mut node).is_empty(), "all of it is hers");
    assert_eq!((bob.hear(&mut node).join(" "), bob.copy.text().as_str()), ("1".into(), "ada"));
    eve.hear(&mut node);
    let edits = [(ada.client, ada.insert(3, "!")), (bob.client, bob.insert(0, "> "))];
    let both: Vec<_> = edits.into_iter().map(|(client, edit)| node.send(client, edit)).collect();
    node.settle();
    for request in both {
        let reply = node.reply(request);
        assert_eq!(published(reply), (2, false));
    }
    for editor in [&mut ada, &mut bob, &mut eve] {
        assert_eq!(editor.hear(&mut node), ["2"], "one frame for everybody");
        assert_eq!(editor.copy.text(), "> ada!");
    }
    assert_eq!((counted(&node, |c| c.updates), counted(&node, |c| c.updates_merged)), (5, 3));
    assert_eq!(text_now(&mut node, ada.client, "plan"), "> ada!");
}

#[test]
fn what_is_repeated_changes_nothing() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    node.late = true;
    let edit = ada.insert(0, "once");
    let first = node.request(ada.client, edit.clone());
    let second = node.request(ada.client, again(&edit));
    assert_eq!((node.reply(first), node.reply(second)), (None, None), "neither is durable");
    node.commit();
    let (first, second) = (node.reply(first), node.reply(second));
    assert_eq!((published(first), published(second)), ((1, false), (1, true)));
    node.late = false;
    // In one turn, too.
    let edit = ada.insert(4, "!");
    let requests = [node.send(ada.client, edit.clone()), node.send(ada.client, again(&edit))];
    node.settle();
    let answers: Vec<_> = requests.into_iter().map(|request| published(node.reply(request))).collect();
    assert_eq!(answers, [(2, false), (2, true)]);
    // Operations are no updates: they are remembered.
    let insert = operations("plan", 100, 2, &Operations::new().insert("> "));
    assert_eq!(published(Some(node.call(ada.client, insert.clone()))), (3, false));
    assert_eq!(published(Some(node.call(ada.client, again(&insert)))), (3, true));
    assert_eq!(text_now(&mut node, ada.client, "plan"), "> once!");
    assert_eq!(node.records.iter().filter(|record| record.event.posting().is_some()).count(), 3);
}

#[test]
fn operations_are_carried_out_after_what_happened_since() {
    let check = |made_at: u64, edit: Operations, expected: &str| {
        let mut node = Node::new(2);
        let thin = node.open(0, "thin", 1);
        open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
        let other = node.open(1, "other", 2);
        node.call(other, operations("plan", 1, 0, &Operations::new().insert("0123456789")));
        node.call(other, operations("plan", 2, 1, &Operations::new().retain(2).delete(3).insert("abc")));
        let mut ada = Editor::new(other, "plan", 7);
        ada.open(&mut node);
        ada.sequence = 2;
        let edit_of_ada = ada.insert(0, "> ");
        node.call(ada.client, edit_of_ada);
        assert_eq!(text_now(&mut node, thin, "plan"), "> 01abc56789");
        let reply = node.call(thin, operations("plan", 1, made_at, &edit));
        assert_eq!(published(Some(reply)), (4, false), "{edit:?} at {made_at}");
        assert_eq!(text_now(&mut node, thin, "plan"), expected, "{edit:?} at {made_at}");
    };
    check(3, Operations::new().insert("x"), "x> 01abc56789");
    check(2, Operations::new().insert("x"), "> x01abc56789");
    check(1, Operations::new().retain(2).insert("x"), "> 01abcx56789");
    check(1, Operations::new().retain(1).delete(5).insert("-"), "> 0-abc6789");
    check(0, Operations::new().insert("x"), "> 01abc56789x");
    check(2, Operations::new(), "> 01abc56789");
}

#[test]
fn a_reader_of_operations_hears_what_was_done_to_the_text() {
    let mut node = Node::new(2);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    let edit = ada.insert(0, "one");
    node.call(ada.client, edit);
    let thin = node.open(1, "thin", 2);
    let opened = open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
    assert_eq!((opened.revision, opened.bytes), (1, 3));
    let heard = |node: &mut Node| -> Vec<(u64, u64, Option<u64>, Operations)> {
        let frames = node.document_frames(thin).into_iter().filter_map(|(_, op, _)| match op {
            ServerOp::Document(DocumentNews::Operations(news)) => {
                let operations = Operations::decode(&news.operations).expect("operations");
                Some((news.from.0, news.to.0, news.own.map(|own| own.0), operations))
            }
            _ => None,
        });
        frames.collect()
    };
    heard(&mut node);
    let edit = ada.insert(3, " two");
    node.call(ada.client, edit);
    assert_eq!(heard(&mut node), [(2, 2, None, Operations::new().retain(3).insert(" two"))]);
    node.call(thin, operations("plan", 9, 1, &Operations::new().delete(1).insert("O")));
    let own = heard(&mut node);
    assert_eq!((own.len(), own[0].2), (1, Some(9)), "{own:?}");
    ada.hear(&mut node);
    assert_eq!(ada.copy.text(), "One two");
}

#[test]
fn a_bad_edit_is_refused_and_harms_nobody() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    let mut bob = Editor::new(node.open(0, "bob", 2), "plan", 2);
    ada.open(&mut node);
    bob.open(&mut node);
    let edit = ada.insert(0, "fine");
    node.call(ada.client, edit);
    let missed = ada.copy.edit(&Operations::new().insert("lost")).expect("fits");
    let after = ada.copy.edit(&Operations::new().insert("x")).expect("fits");
    let mut sequence = 10;
    let mut check = |kind: PostKind, target: u64, body: Bytes, expected: RejectCode| {
        sequence += 1;
        let refused = node.refusal(bob.client, write("plan", sequence, kind, target, body.clone()));
        assert_eq!(refused, expected, "{kind:?} {target} {body:?}");
    };
    check(PostKind::Update, 0, Bytes::new(), RejectCode::UpdateInvalid);
    check(PostKind::Update, 0, Bytes::from_static(b"\xff\xff\xff\xff\xff"), RejectCode::UpdateInvalid);
    check(PostKind::Update, 0, missed.slice(..missed.len() - 3), RejectCode::UpdateInvalid);
    check(PostKind::Update, 0, after, RejectCode::UpdateIncomplete);
    check(PostKind::Operations, 1, Operations::new().retain(99).insert("x").encode(), RejectCode::OperationsInvalid);
    check(PostKind::Operations, 1, Bytes::from_static(b"\x03"), RejectCode::OperationsInvalid);
    check(PostKind::Operations, 9, Operations::new().insert("x").encode(), RejectCode::RevisionUnknown);
    check(PostKind::Version, 9, Bytes::from_static(b"draft"), RejectCode::RevisionUnknown);
    check(PostKind::Version, 0, Bytes::new(), RejectCode::ParameterInvalid);
    check(PostKind::Version, 0, Bytes::from(vec![b'x'; 200]), RejectCode::ParameterInvalid);
    check(PostKind::Restore, 9, Bytes::new(), RejectCode::RevisionUnknown);
    check(PostKind::Restore, 0, Bytes::new(), RejectCode::RevisionUnknown);
    check(PostKind::Message, 0, Bytes::from_static(b"hello"), RejectCode::KindMismatch);
    check(PostKind::React, 1, Bytes::from_static(b"+1"), RejectCode::KindMismatch);
    assert_eq!(counted(&node, |c| c.updates_refused), 12);
    assert_eq!(text_now(&mut node, ada.client, "plan"), "fine");
    let edit = bob.update(missed);
    assert_eq!(published(Some(node.call(bob.client, edit))).0, 2, "who is refused may go on");
    assert_eq!(text_now(&mut node, ada.client, "plan"), "lostfine");
}

#[test]
fn operations_that_are_too_old_are_refused() {
    let mut node = Node::new(1);
    let thin = node.open(0, "thin", 1);
    open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
    let revisions = DOCUMENT_DELTAS_KEPT as u64 + 10;
    for sequence in 1..=revisions {
        node.call(thin, operations("plan", sequence, sequence - 1, &Operations::new().insert("x")));
    }
    let insert = |sequence, revision| operations("plan", sequence, revision, &Operations::new().insert("y"));
    assert_eq!(node.refusal(thin, insert(revisions + 1, 3)), RejectCode::RevisionUnknown);
    assert_eq!(published(Some(node.call(thin, insert(revisions + 2, 10)))).0, revisions + 1);
}

#[test]
fn large_updates_of_one_turn_are_no_larger_message_than_a_record_takes() {
    let mut node = Node::new(1);
    let mut editors: Vec<_> = (1..=4).map(|id| Editor::new(node.open(0, "ada", id), "plan", id as u64)).collect();
    for editor in &mut editors {
        editor.open(&mut node);
    }
    let text = "x".repeat(DOCUMENT_UPDATE_BYTES_MAX / 2);
    let edits: Vec<_> = editors.iter_mut().map(|editor| (editor.client, editor.insert(0, &text))).collect();
    let requests: Vec<_> = edits.into_iter().map(|(client, edit)| node.send(client, edit)).collect();
    node.settle();
    let revisions: Vec<_> = requests.into_iter().map(|request| published(node.reply(request)).0).collect();
    assert!(revisions.last() > revisions.first(), "{revisions:?}");
    assert_eq!(text_now(&mut node, editors[0].client, "plan").len(), text.len() * 4);
    let bodies = node.records.iter().filter_map(|record| record.event.posting()).map(|p| p.message.body.len());
    assert!(bodies.max() <= Some(DOCUMENT_UPDATE_BYTES_MAX));
}
