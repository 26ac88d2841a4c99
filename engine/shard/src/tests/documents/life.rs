//! Documents that are let go of, read again, deleted while they are open; a disk that is full, rotten or slow; a node that
//! goes.

use thalweg_protocol::ids::ChannelKey;
use thalweg_protocol::limits::{DOCUMENT_IDLE_MS, DOCUMENT_WAITING_MAX, IN_FLIGHT_MAX};
use thalweg_protocol::reject::RejectCode;

use crate::Input;

use super::*;

#[test]
fn a_document_that_nobody_uses_is_let_go_of_and_read_again() {
    let mut node = Node::new(2);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    for n in 0..100 {
        let edit = ada.insert(n, "x");
        node.call(ada.client, edit);
    }
    node.pass_ms(DOCUMENT_IDLE_MS * 2);
    assert_eq!(node.gauge("documents_open"), 1, "somebody has it open");
    node.close(ada.client);
    node.pass_ms(DOCUMENT_IDLE_MS / 2);
    assert_eq!(node.gauge("documents_open"), 1, "not yet");
    node.pass_ms(DOCUMENT_IDLE_MS);
    assert_eq!((node.gauge("documents_open"), node.gauge("document_bytes")), (0, 0));
    assert_eq!(counted(&node, |c| c.snapshots), 1, "it is written as a whole, for many edits came");
    ada.client = node.open(1, "ada", 2);
    let opened = ada.open(&mut node);
    assert_eq!((opened.revision, opened.bytes), (101, 0));
    assert_eq!((counted(&node, |c| c.documents_opened), counted(&node, |c| c.documents_evicted)), (1, 1));
    let edit = ada.insert(0, ">");
    assert_eq!(published(Some(node.call(ada.client, edit))).0, 102);
    assert_eq!(text_now(&mut node, ada.client, "plan"), format!(">{}", "x".repeat(100)));
}

#[test]
fn a_node_that_is_short_of_memory_lets_go_of_what_nobody_reads() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    let thin = node.open(0, "thin", 2);
    for n in 0..10 {
        let document = format!("other-{n}");
        node.call(thin, operations(&document, n + 1, 0, &Operations::new().insert("x")));
    }
    assert_eq!(node.gauge("documents_open"), 11);
    node.feed(0, Input::Pressure { level: 1 });
    assert_eq!(node.gauge("documents_open"), 1);
    node.feed(0, Input::Pressure { level: 3 });
    let edit = ada.insert(0, "x");
    assert_eq!(node.refusal(ada.client, edit), RejectCode::Overloaded);
    node.feed(0, Input::Pressure { level: 0 });
    let edit = ada.update(ada.copy.state());
    assert_eq!(published(Some(node.call(ada.client, edit))).0, 1);
}

#[test]
fn what_comes_while_a_document_is_read_waits_for_it_in_order() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.call(ada, operations("plan", 1, 0, &Operations::new().insert("one")));
    node.restart(1);
    node.archive();
    let (ada, bob) = (node.open(0, "ada", 2), node.open(0, "bob", 3));
    let insert = |text: &str| Operations::new().insert(text);
    let requests = [
        node.send(ada, operations("plan", 1, 1, &insert("2"))),
        node.send(ada, operations("plan", 2, 2, &insert("3"))),
        // In the same partition, but about another document: what a session writes has its order.
        node.send(ada, operations("plan", 3, 3, &insert("4"))),
        node.send(bob, operations("plan", 1, 4, &insert("5"))),
    ];
    node.settle();
    let answers: Vec<_> = requests.into_iter().map(|request| published(node.reply(request)).0).collect();
    assert_eq!(answers, [2, 3, 4, 5]);
    assert_eq!(text_now(&mut node, ada, "plan"), "5432one");
}

/// Each has more to write as soon as what it wrote is done: that is done in turn, and not one inside of the other.
#[test]
fn a_crowd_that_waits_for_a_document_does_not_nest() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.call(ada, operations("plan", 1, 0, &Operations::new().insert("one")));
    node.restart(1);
    node.archive();
    let crowd: Vec<_> = (2..402).map(|session| node.open(0, "bob", session)).collect();
    let mut requests = Vec::new();
    for sequence in 1..=2 {
        for &client in &crowd {
            requests.push(node.send(client, operations("plan", sequence, 1, &Operations::new().insert("x"))));
        }
    }
    node.settle();
    let mut revisions: Vec<_> = requests.into_iter().map(|request| published(node.reply(request)).0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..802).collect::<Vec<_>>());
}

/// Who read a document that is gone has nothing to do with another one of its name.
#[test]
fn a_document_that_was_made_again_is_another_one() {
    let mut node = Node::new(1);
    let admin = node.open_as(0, "acme", "root", 9, &["read:*", "write:*", "admin:*"]);
    let open = |node: &mut Node, known| {
        let (document, state, form) = (name("plan"), Bytes::new(), DocumentForm::Updates);
        let open = OpenDocument { document, state, form, make: true, lead: 0, known };
        let request = node.request(admin, ClientOp::Document(DocumentOp::Open(open)));
        match node.reply(request) {
            Some(ServerOp::Document(DocumentNews::Opened { id, made, .. })) => Ok((id, made)),
            Some(ServerOp::Reject(reject)) => Err(reject.code),
            other => panic!("expected an opened document, got {other:?}"),
        }
    };
    let (first, _) = open(&mut node, None).expect("is made");
    assert_eq!(open(&mut node, Some(first)), Ok((first, false)));
    node.call(admin, ClientOp::DeleteChannel { channel: name("plan") });
    assert_eq!(open(&mut node, Some(first)), Err(RejectCode::ChannelDeleted), "nothing is made for it");
    assert_eq!(node.gauge("documents"), 0);
    let (second, made) = open(&mut node, None).expect("is made again");
    assert!(made && second != first);
    assert_eq!(open(&mut node, Some(first)), Err(RejectCode::ChannelDeleted));
}

#[test]
fn too_many_that_wait_for_a_document_are_told_to_come_back() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.call(ada, operations("plan", 1, 0, &Operations::new().insert("one")));
    node.restart(1);
    // What was appended last is not durable, so that the document cannot be read yet.
    let ada = node.open(0, "ada", 2);
    node.late = true;
    let other = node.request(ada, create("elsewhere"));
    let clients: Vec<_> =
        (0..=DOCUMENT_WAITING_MAX / IN_FLIGHT_MAX).map(|n| node.open(0, "bob", 3 + n as u128)).collect();
    let reads = clients.iter().flat_map(|client| std::iter::repeat_n(*client, IN_FLIGHT_MAX));
    let mut requests = Vec::new();
    for client in reads.take(DOCUMENT_WAITING_MAX + 1) {
        requests.push(node.request(client, read_op("plan", 0, ReadForm::Text, 0)));
    }
    let last = requests.pop().expect("one too many");
    assert!(matches!(node.reply(last), Some(ServerOp::Reject(reject)) if reject.code == RejectCode::Busy));
    node.commit();
    assert!(node.reply(other).is_some());
    assert!(requests.into_iter().all(|request| matches!(node.reply(request), Some(ServerOp::Document(_)))));
}

#[test]
fn a_document_that_cannot_be_read_is_refused_and_tried_again() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.call(ada, operations("plan", 1, 0, &Operations::new().insert("one")));
    node.restart(1);
    node.rotten = true;
    let ada = node.open(0, "ada", 2);
    assert_eq!(node.refusal(ada, read_op("plan", 0, ReadForm::Text, 0)), RejectCode::StorageDamaged);
    assert_eq!(node.refusal(ada, open_op("plan", DocumentForm::Updates, Bytes::new())), RejectCode::StorageDamaged);
    let insert = operations("plan", 1, 1, &Operations::new().insert("> "));
    assert_eq!(node.refusal(ada, insert.clone()), RejectCode::StorageDamaged);
    assert_eq!(node.gauge("documents_open"), 0);
    node.rotten = false;
    assert_eq!(published(Some(node.call(ada, insert))).0, 2);
    assert_eq!(text_now(&mut node, ada, "plan"), "> one");
}

#[test]
fn a_document_is_deleted_while_it_is_open() {
    for read_again in [false, true] {
        let mut node = Node::new(2);
        let admin = node.open_as(0, "acme", "root", 9, &["read:*", "write:*", "admin:*"]);
        let mut ada = Editor::new(node.open(1, "ada", 1), "plan", 1);
        ada.open(&mut node);
        let edit = ada.insert(0, "gone");
        node.call(ada.client, edit);
        if read_again {
            node.restart(2);
            ada.client = node.open(1, "ada", 1);
            ada.open(&mut node);
        }
        let admin = if read_again { node.open_as(0, "acme", "root", 9, &["admin:*"]) } else { admin };
        // An edit of the same turn comes before the end.
        let edit = ada.insert(0, "x");
        let last = node.send(ada.client, edit);
        let delete = node.send(admin, ClientOp::DeleteChannel { channel: name("plan") });
        node.settle();
        let reply = node.reply(last);
        assert!(matches!(reply, Some(ServerOp::Published { .. } | ServerOp::Reject(_))), "{reply:?}");
        assert_eq!(node.reply(delete), Some(ServerOp::Done));
        assert_eq!(ada.hear(&mut node).last().map(String::as_str), Some("ended channel_deleted"));
        assert_eq!((node.gauge("documents"), node.gauge("documents_open")), (0, 0));
        let edit = match ada.insert(0, "y") {
            ClientOp::Publish(publish) => ClientOp::Publish(Publish { make: false, ..publish }),
            other => other,
        };
        assert_eq!(node.refusal(ada.client, edit), RejectCode::ChannelUnknown);
        ada.copy = Document::new(5);
        assert!(ada.open(&mut node).made, "another one may have its name");
    }
}

/// Who has a document that is gone lacks all that the node writes in another one of its name.
#[test]
fn a_document_of_an_old_name_is_edited_by_another_client_of_the_node() {
    let mut node = Node::new(1);
    let admin = node.open_as(0, "acme", "root", 9, &["read:*", "write:*", "admin:*"]);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    node.call(admin, operations("plan", 1, 0, &Operations::new().insert("old")));
    ada.open(&mut node);
    assert_eq!(ada.copy.text(), "old");
    node.call(admin, ClientOp::DeleteChannel { channel: name("plan") });
    ada.hear(&mut node);
    node.call(admin, operations("plan", 2, 0, &Operations::new().insert("new")));
    ada.open(&mut node);
    assert!(ada.copy.text().contains("new"), "{}", ada.copy.text());
}

/// The same where the end of a log was lost, and what comes instead stands at the same revisions.
#[test]
fn a_document_whose_end_was_lost_is_edited_by_another_client_of_the_node() {
    let mut node = Node::new(1);
    let thin = node.open(0, "thin", 2);
    node.call(thin, operations("plan", 1, 0, &Operations::new().insert("one")));
    node.restart(1);
    let (thin, mut ada) = (node.open(0, "thin", 3), Editor::new(node.open(0, "ada", 1), "plan", 1));
    node.call(thin, operations("plan", 1, 1, &Operations::new().insert("two ")));
    ada.open(&mut node);
    assert_eq!(ada.copy.text(), "two one");
    let lost = node.records.pop().expect("a record");
    assert_eq!(lost.event.posting().map(|posting| posting.message.position), Some(Position(2)));
    node.restart(1);
    let thin = node.open(0, "thin", 4);
    ada.client = node.open(0, "ada", 5);
    node.call(thin, operations("plan", 1, 1, &Operations::new().insert("six ")));
    ada.open(&mut node);
    assert!(ada.copy.text().contains("six "), "{}", ada.copy.text());
}

/// What edits did to the text is known as long as somebody may want to know, and no longer.
#[test]
fn deltas_are_kept_for_those_who_edit_by_operations() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    let (eve, thin) = (node.open_as(0, "acme", "eve", 2, &["read:*"]), node.open(0, "thin", 3));
    let key = ChannelKey { tenant: name("acme"), channel: name("plan") };
    let mut check = |node: &mut Node, expected: bool, why: &str| {
        let edit = ada.insert(0, "x");
        node.call(ada.client, edit);
        assert_eq!(node.shards[0].keeps_deltas(&key), expected, "{why}");
    };
    let pass = |node: &mut Node| (0..DOCUMENT_IDLE_MS / 1_000).for_each(|_| node.pass_ms(2_000));
    check(&mut node, false, "nobody wants to know");
    text_now(&mut node, eve, "plan");
    check(&mut node, false, "who only reads does not");
    text_now(&mut node, thin, "plan");
    check(&mut node, true, "who may write may");
    pass(&mut node);
    check(&mut node, false, "not for ever");
    let opened = open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
    pass(&mut node);
    check(&mut node, true, "a reader is told");
    node.call(thin, ClientOp::Unsubscribe { subscription: opened.subscription });
    check(&mut node, true, "it may come back");
    pass(&mut node);
    check(&mut node, false, "nobody reads it so any more");
}

#[test]
fn a_tenant_is_deleted_with_its_documents() {
    let mut node = Node::new(3);
    let admin = node.open_as(0, "acme", "root", 9, &["read:*", "write:*", "admin:*"]);
    for n in 0..5 {
        node.call(admin, operations(&format!("plan-{n}"), n + 1, 0, &Operations::new().insert("x")));
    }
    assert_eq!(node.gauge("documents"), 5);
    assert_eq!(node.call(admin, ClientOp::DeleteTenant), ServerOp::Deleted { channels: 5 });
    assert_eq!((node.gauge("documents"), node.gauge("documents_open")), (0, 0));
}

#[test]
fn a_full_disk_refuses_edits_and_nothing_else() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    let first = ada.insert(0, "one");
    node.call(ada.client, first.clone());
    node.feed(0, Input::Storage { full: Some("no space".to_owned()) });
    let edit = ada.insert(3, " two");
    assert_eq!(node.refusal(ada.client, edit.clone()), RejectCode::StorageFull);
    assert_eq!(published(Some(node.call(ada.client, again(&first)))), (1, true), "this is known");
    assert_eq!(text_now(&mut node, ada.client, "plan"), "one");
    node.feed(0, Input::Storage { full: None });
    assert_eq!(published(Some(node.call(ada.client, again(&edit)))), (2, false));
    assert_eq!(text_now(&mut node, ada.client, "plan"), "one two");
}

#[test]
fn a_node_that_goes_takes_no_new_edits_and_finishes_what_it_took() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    node.late = true;
    let edit = ada.insert(0, "one");
    let taken = node.request(ada.client, edit.clone());
    node.feed(0, Input::Drain);
    assert!(!node.shards[0].is_idle());
    let later = ada.insert(3, " two");
    assert_eq!(node.refusal(ada.client, later), RejectCode::Draining);
    assert_eq!(node.refusal(ada.client, open_op("new", DocumentForm::Updates, Bytes::new())), RejectCode::Draining);
    node.commit();
    let reply = node.reply(taken);
    assert_eq!(published(reply), (1, false));
    assert_eq!(published(Some(node.call(ada.client, again(&edit)))), (1, true));
    node.settle();
    assert!(node.shards[0].is_idle());
}

#[test]
fn what_was_not_durable_when_the_node_was_killed_was_seen_by_nobody() {
    let mut node = Node::new(2);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    let mut bob = Editor::new(node.open(1, "bob", 2), "plan", 2);
    ada.open(&mut node);
    bob.open(&mut node);
    let edit = ada.insert(0, "safe");
    node.call(ada.client, edit);
    bob.hear(&mut node);
    node.late = true;
    let lost = ada.insert(4, ", lost");
    let request = node.request(ada.client, lost.clone());
    let late = node.open(1, "eve", 3);
    let opening = node.request(late, open_op("plan", DocumentForm::Updates, Bytes::new()));
    let reading = node.request(late, read_op("plan", 0, ReadForm::Text, 0));
    assert_eq!([node.reply(request), node.reply(opening), node.reply(reading)], [None, None, None]);
    node.restart(1);
    let mut bob = Editor { client: node.open(0, "bob", 2), ..bob };
    bob.open(&mut node);
    assert_eq!(bob.copy.text(), "safe");
    ada.client = node.open(0, "ada", 1);
    ada.open(&mut node);
    assert_eq!(published(Some(node.call(ada.client, again(&lost)))), (2, false), "its writer sends it again");
    bob.hear(&mut node);
    assert_eq!(bob.copy.text(), "safe, lost");
}
