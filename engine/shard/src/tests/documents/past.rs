//! Documents as they were: revisions, versions, restoring.

use thalweg_protocol::limits::{
    BODY_BYTES_MAX, DOCUMENT_PART_BYTES, DOCUMENT_PASTS_PER_SESSION, DOCUMENT_SNAPSHOT_UPDATES,
};
use thalweg_protocol::reject::RejectCode;

use super::*;

/// A document whose edits each add one more character, by somebody who writes operations. Gives its newest revision.
fn counted_up(node: &mut Node, client: Client, document: &str, edits: u64) -> u64 {
    node.call(client, create(document));
    let mut newest = 0;
    for edit in 0..edits {
        let insert = Operations::new().retain(edit as u32).insert(char::from(b'a' + (edit % 26) as u8));
        let reply = node.call(client, operations(document, edit + 1, newest, &insert));
        newest = published(Some(reply)).0;
    }
    newest
}

#[test]
fn every_revision_can_be_read() {
    let mut node = Node::new(2);
    let ada = node.open(0, "ada", 1);
    counted_up(&mut node, ada, "plan", 30);
    let whole: String = text_now(&mut node, ada, "plan");
    assert_eq!(whole.len(), 30);
    for revision in 1..=30 {
        assert_eq!(text_at(&mut node, ada, "plan", revision), whole[..revision as usize]);
    }
    assert_eq!(node.refusal(ada, read_op("plan", 31, ReadForm::Text, 0)), RejectCode::RevisionUnknown);
    assert_eq!(node.refusal(ada, read_op("plan", 3, ReadForm::Text, 4)), RejectCode::ParameterInvalid);
    assert_eq!(node.refusal(ada, read_op("none", 0, ReadForm::Text, 0)), RejectCode::ChannelUnknown);
    let (revision, json) = read_as(&mut node, ada, "plan", 2, ReadForm::Json);
    assert_eq!((revision, &json[..]), (2, &b"{\"content\":\"ab\"}"[..]));
    let (_, state) = read_as(&mut node, ada, "plan", 3, ReadForm::State);
    assert_eq!(Document::open(1, &state).expect("a state").text(), "abc");
}

/// Who asks for the newest revision is not given the next one.
#[test]
fn a_revision_is_read_as_it_was_while_it_is_edited() {
    for restarts in [false, true] {
        let mut node = Node::new(1);
        let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
        ada.open(&mut node);
        let edit = ada.insert(0, "one");
        node.call(ada.client, edit);
        if restarts {
            node.restart(1);
            ada.client = node.open(0, "ada", 1);
        }
        let bob = node.open(0, "bob", 2);
        let edit = ada.insert(3, " two");
        let requests = [node.send(ada.client, edit), node.send(bob, read_op("plan", 1, ReadForm::Text, 0))];
        node.settle();
        let [edited, read] = requests.map(|request| node.reply(request));
        assert_eq!(published(edited), (2, false));
        match read {
            Some(ServerOp::Document(DocumentNews::State { revision, bytes, .. })) => {
                assert_eq!((revision, &bytes[..]), (Position(1), &b"one"[..]), "restarted: {restarts}");
            }
            other => panic!("expected a revision, got {other:?}"),
        }
    }
}

/// Pieces are taken in one a turn, whoever asked, and nobody has many read at a time.
#[test]
fn reading_the_past_leaves_turns_to_others() {
    let mut node = Node::new(1);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    counted_up(&mut node, ada, "plan", 20);
    let read = |node: &mut Node, client, revision| node.send(client, read_op("plan", revision, ReadForm::Text, 0));
    let most = DOCUMENT_PASTS_PER_SESSION as u64;
    let own: Vec<_> = (1..=most + 2).map(|revision| read(&mut node, ada, revision)).collect();
    let others = read(&mut node, bob, 9);
    let mut turns = 0;
    while node.shards[0].has_gathered() {
        node.shards[0].finish_turn(node.now);
        turns += 1;
    }
    assert_eq!(turns, 2 * (most + 1), "each is read in one turn, and taken in in another");
    node.settle();
    assert!(matches!(node.reply(others), Some(ServerOp::Document(_))));
    let (read_now, refused): (Vec<_>, Vec<_>) = own
        .into_iter()
        .map(|request| node.reply(request).expect("an answer"))
        .partition(|reply| matches!(reply, ServerOp::Document(_)));
    assert_eq!(read_now.len() as u64, most);
    let is_busy = |reply: &ServerOp| matches!(reply, ServerOp::Reject(reject) if reject.code == RejectCode::Busy);
    assert!(refused.len() == 2 && refused.iter().all(is_busy), "{refused:?}");
    assert_eq!(text_at(&mut node, ada, "plan", 3), "abc", "and later it may again");
}

#[test]
fn those_who_read_different_revisions_in_pieces_do_not_have_them_made_anew() {
    let mut node = Node::new(1);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    node.call(ada, create("plan"));
    let piece = "0123456789abcdef".repeat(BODY_BYTES_MAX / 16 - 10);
    let mut revisions = vec![0];
    for n in 0..3 {
        let insert = operations("plan", n + 1, revisions[n as usize], &Operations::new().insert(piece.clone()));
        revisions.push(published(Some(node.call(ada, insert))).0);
    }
    let part = |node: &mut Node, client, nth: usize, offset| {
        let request = node.send(client, read_op("plan", revisions[nth], ReadForm::Text, offset));
        let is_made = node.shards[0].has_gathered();
        node.settle();
        match node.reply(request) {
            Some(ServerOp::Document(DocumentNews::State { total, .. })) => {
                assert_eq!(total, (nth * piece.len()) as u64);
            }
            other => panic!("expected a piece of a document, got {other:?}"),
        }
        is_made
    };
    for (client, nth) in [(ada, 1), (bob, 2)] {
        assert!(part(&mut node, client, nth, 0));
    }
    let offset = DOCUMENT_PART_BYTES as u64;
    for (client, nth) in [(ada, 1), (bob, 2), (ada, 1)] {
        assert!(!part(&mut node, client, nth, offset), "{nth}");
    }
    // Who does not go on with it for long has it made again.
    node.pass_ms(11_000);
    node.pass_ms(11_000);
    assert!(part(&mut node, ada, 1, offset));
}

#[test]
fn a_large_document_is_read_in_pieces_and_written_in_parts() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.call(ada, create("plan"));
    let piece = "0123456789abcdef".repeat(BODY_BYTES_MAX / 16 - 10);
    let mut newest = 0;
    for n in 0..6 {
        let insert = operations("plan", n + 1, newest, &Operations::new().insert(piece.clone()));
        newest = published(Some(node.call(ada, insert))).0;
        let (revision, text) = read_as(&mut node, ada, "plan", 0, ReadForm::Text);
        assert_eq!((text.len(), revision > n), (piece.len() * (n as usize + 1), true));
        assert!(text.len() / DOCUMENT_PART_BYTES > n as usize, "it takes several pieces");
    }
    assert!(counted(&node, |c| c.snapshots) > 0);
    let parts: Vec<_> = node
        .records
        .iter()
        .filter_map(|record| record.event.posting())
        .filter(|posting| posting.message.kind == DeliveryKind::Snapshot)
        .map(|posting| posting.message.context.number)
        .collect();
    assert!(parts.iter().any(|parts| *parts > 1), "one snapshot at least has several parts: {parts:?}");
    let before = text_now(&mut node, ada, "plan");
    node.restart(3);
    let ada = node.open(1, "ada", 2);
    assert_eq!(text_now(&mut node, ada, "plan"), before);
}

#[test]
fn a_document_is_what_it_was_after_a_restart_with_other_cores() {
    let mut node = Node::new(3);
    let ada = node.open(0, "ada", 1);
    let revisions = DOCUMENT_SNAPSHOT_UPDATES + 300;
    node.quiet = true;
    let mut newest = counted_up(&mut node, ada, "plan", DOCUMENT_SNAPSHOT_UPDATES);
    assert!(counted(&node, |c| c.snapshots) > 0, "so many edits are not read one by one");
    for sequence in DOCUMENT_SNAPSHOT_UPDATES..revisions {
        let insert = Operations::new().insert("x");
        newest = published(Some(node.call(ada, operations("plan", sequence + 1, newest, &insert)))).0;
    }
    let whole = text_now(&mut node, ada, "plan");
    let then = newest - 100;
    let middle = text_at(&mut node, ada, "plan", then);
    for cores in [1, 2, 5] {
        node.restart(cores);
        let ada = node.open(0, "ada", 10 + u128::from(cores));
        assert_eq!(node.gauge("documents"), 1);
        assert!(text_now(&mut node, ada, "plan") == whole, "{cores} cores");
        assert!(text_at(&mut node, ada, "plan", then) == middle, "{cores} cores");
        assert_eq!(text_at(&mut node, ada, "plan", 26), "abcdefghijklmnopqrstuvwxyz");
        let reply = node.call(ada, operations("plan", 1, newest, &Operations::new().insert("!")));
        newest = published(Some(reply)).0;
        node.call(ada, operations("plan", 2, newest, &Operations::new().delete(1)));
        newest += 1;
    }
}

#[test]
fn versions_are_names_of_revisions() {
    let mut node = Node::new(1);
    let mut bob = Editor::new(node.open(0, "bob", 2), "plan", 2);
    let ada = node.open(0, "ada", 1);
    counted_up(&mut node, ada, "plan", 5);
    bob.open(&mut node);
    let named = write("plan", 10, PostKind::Version, 3, Bytes::from_static(b"draft"));
    assert_eq!(published(Some(node.call(ada, named.clone()))), (6, false));
    assert_eq!(published(Some(node.call(ada, again(&named)))), (6, true), "it is done once");
    let newest = write("plan", 11, PostKind::Version, 0, Bytes::from_static("fertig ✓".as_bytes()));
    node.call(ada, newest);
    assert_eq!(bob.hear(&mut node), ["6 Version", "7 Version"]);
    let page = ClientOp::ReadHistory { channel: name("plan"), from: Position(6), limit: 0 };
    let ServerOp::Page { deliveries, .. } = node.call(ada, page) else { panic!("a page") };
    let versions: Vec<_> = deliveries
        .into_iter()
        .map(|payload| match ServerOp::decode(&payload).expect("a delivery") {
            ServerOp::Delivery(delivery) => (delivery.context.target.0, delivery.body),
            other => panic!("expected a delivery, got {other:?}"),
        })
        .collect();
    assert_eq!(versions, [(3, Bytes::from_static(b"draft")), (6, Bytes::from_static("fertig ✓".as_bytes()))]);
    assert_eq!(text_at(&mut node, ada, "plan", 7), "abcde");
}

#[test]
fn a_revision_is_restored_by_a_new_edit() {
    let mut node = Node::new(2);
    let mut bob = Editor::new(node.open(1, "bob", 2), "plan", 2);
    let ada = node.open(0, "ada", 1);
    counted_up(&mut node, ada, "plan", 10);
    bob.open(&mut node);
    let thin = node.open(0, "thin", 3);
    open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
    let restore = write("plan", 20, PostKind::Restore, 4, Bytes::new());
    // What the same session writes next waits, so that its order is kept.
    let requests = [
        node.send(ada, restore.clone()),
        node.send(ada, operations("plan", 21, 10, &Operations::new().insert("> "))),
        node.send(ada, write("plan", 22, PostKind::Version, 0, Bytes::from_static(b"v"))),
    ];
    node.settle();
    let answers: Vec<_> = requests.into_iter().map(|request| published(node.reply(request))).collect();
    assert_eq!(answers, [(11, false), (12, false), (13, false)]);
    assert_eq!(text_now(&mut node, ada, "plan"), "> abcd");
    bob.hear(&mut node);
    assert_eq!(bob.copy.text(), "> abcd");
    assert_eq!(text_at(&mut node, ada, "plan", 10), "abcdefghij", "what was is not undone");
    assert_eq!(published(Some(node.call(ada, again(&restore)))), (11, true), "it is done once");
    let unchanged = write("plan", 23, PostKind::Restore, 13, Bytes::new());
    assert_eq!(published(Some(node.call(ada, unchanged))).0, 14, "even one that changes nothing has its place");
    assert_eq!(text_now(&mut node, ada, "plan"), "> abcd");
}

/// Who puts back what was does not know what that does to the document, and is told like everybody.
#[test]
fn who_restores_is_told_what_it_did() {
    let mut node = Node::new(2);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    let thin = node.open(1, "thin", 2);
    ada.open(&mut node);
    for text in ["two", "one "] {
        let edit = ada.insert(0, text);
        node.call(ada.client, edit);
    }
    open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
    node.document_frames(thin);
    assert_eq!(ada.hear(&mut node), [""; 0], "its own updates it has");
    node.call(ada.client, write("plan", 10, PostKind::Restore, 1, Bytes::new()));
    assert_eq!(ada.hear(&mut node), ["3"]);
    assert_eq!(ada.copy.text(), "two");
    node.document_frames(thin);
    node.call(thin, write("plan", 1, PostKind::Restore, 2, Bytes::new()));
    let told = node.document_frames(thin).into_iter().map(|(_, op, _)| match op {
        ServerOp::Document(DocumentNews::Operations(news)) => {
            (news.own, Operations::decode(&news.operations).expect("operations").apply("two").expect("they fit"))
        }
        other => panic!("expected operations, got {other:?}"),
    });
    assert_eq!(told.collect::<Vec<_>>(), [(None, "one two".to_owned())]);
}

/// A session that reads a document in both forms: what it sends as updates, its reader of operations does not have.
#[test]
fn a_session_is_told_by_operations_what_it_sent_as_updates() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    open_with(&mut node, ada.client, "plan", DocumentForm::Operations, Bytes::new());
    let edit = ada.insert(0, "one");
    node.call(ada.client, edit);
    let told = node.document_frames(ada.client).into_iter().map(|(_, op, _)| match op {
        ServerOp::Document(DocumentNews::Operations(news)) => {
            (news.own, Operations::decode(&news.operations).expect("operations").apply("").expect("they fit"))
        }
        other => panic!("expected operations, got {other:?}"),
    });
    assert_eq!(told.collect::<Vec<_>>(), [(None, "one".to_owned())]);
}

/// What is to be put back is more than one message takes: the document in memory has it already, and is read anew.
#[test]
fn a_document_that_is_not_what_its_log_says_is_read_anew() {
    let mut node = Node::new(1);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    node.call(ada, create("plan"));
    let piece = "0123456789abcdef".repeat(BODY_BYTES_MAX / 16 - 10);
    let mut newest = 0;
    for n in 0..4 {
        let insert = operations("plan", n + 1, newest, &Operations::new().insert(piece.clone()));
        newest = published(Some(node.call(ada, insert))).0;
    }
    let full = newest;
    let length = 4 * piece.len() as u32;
    let cut = operations("plan", 5, newest, &Operations::new().delete(length).insert("cut"));
    newest = published(Some(node.call(ada, cut))).0;
    let opened = counted(&node, |c| c.documents_opened);
    let requests = [
        node.send(ada, write("plan", 6, PostKind::Restore, full, Bytes::new())),
        node.send(ada, operations("plan", 7, newest, &Operations::new().insert("> "))),
        node.send(bob, read_op("plan", 0, ReadForm::Text, 0)),
    ];
    node.settle();
    let [restored, inserted, read] = requests.map(|request| node.reply(request));
    assert!(
        matches!(&restored, Some(ServerOp::Reject(reject)) if reject.code == RejectCode::DocumentTooLarge),
        "{restored:?}"
    );
    assert!(matches!(read, Some(ServerOp::Document(DocumentNews::State { .. }))), "{read:?}");
    // What the document did before it was read anew is not known to those who write operations: they read it again.
    let answer = inserted.expect("an answer");
    assert!(matches!(answer, ServerOp::Published { .. } | ServerOp::Reject(_)), "{answer:?}");
    let poisoned = (counted(&node, |c| c.documents_poisoned), counted(&node, |c| c.documents_opened) - opened);
    assert_eq!(poisoned, (1, 1));
    let text = text_now(&mut node, bob, "plan");
    assert!(text == "cut" || text == "> cut", "{text}");
}
