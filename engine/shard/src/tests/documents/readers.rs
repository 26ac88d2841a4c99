//! Readers: those who keep up, those who do not, those who read operations, those who leave.

use thalweg_protocol::limits::{
    AWARENESS_TICK_MS, DOCUMENT_PART_BYTES, DOCUMENTS_PER_SESSION_MAX, LEAD_MESSAGES_MAX, SESSION_QUEUE_BYTES,
    TAIL_MESSAGES,
};
use thalweg_protocol::reject::RejectCode;

use super::*;

fn open_lead(document: &str, form: DocumentForm, lead: u32) -> ClientOp {
    let (document, state) = (name(document), Bytes::new());
    ClientOp::Document(DocumentOp::Open(OpenDocument { document, state, form, make: true, lead, known: None }))
}

/// Opens a document with a lead; nothing of it is heard yet.
fn read_with(node: &mut Node, client: Client, document: &str, form: DocumentForm, lead: u32) -> Subscription {
    let request = node.request(client, open_lead(document, form, lead));
    let reply = node.reply(request);
    opened(request, reply).subscription
}

/// What a client was told of a document: from which revision to which, and what was done.
fn told(node: &mut Node, client: Client) -> Vec<(u64, u64, String)> {
    let line = |(_, op, _)| match op {
        ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Update => {
            let from = if delivery.context.target.0 == 0 { delivery.position } else { delivery.context.target };
            (from.0, delivery.position.0, delivery.user.to_string())
        }
        ServerOp::Delivery(delivery) => (delivery.position.0, delivery.position.0, format!("{:?}", delivery.kind)),
        ServerOp::Document(DocumentNews::Operations(news)) => {
            let done = Operations::decode(&news.operations).expect("our own");
            let what = news.own.map_or(format!("{:?}", done.parts()), |sequence| format!("own {sequence}"));
            (news.from.0, news.to.0, what)
        }
        ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
            (revision.0, revision.0, format!("{} of {total} from {offset}", bytes.len()))
        }
        ServerOp::Ended(reject) => (0, 0, format!("ended {}", reject.code)),
        other => panic!("unexpected {other:?}"),
    };
    node.document_frames(client).into_iter().map(line).collect()
}

fn revisions(node: &mut Node, client: Client) -> Vec<(u64, u64)> {
    told(node, client).into_iter().map(|(from, to, _)| (from, to)).collect()
}

/// Somebody who made a document and has it open.
fn author(node: &mut Node) -> Editor {
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(node);
    ada
}

fn type_in(node: &mut Node, editor: &mut Editor, text: &str) {
    let at = editor.copy.text().len() as u32;
    let edit = editor.insert(at, text);
    node.call(editor.client, edit);
}

#[test]
fn who_is_out_of_credit_gets_what_was_missed_in_one() {
    let mut node = Node::new(2);
    let mut ada = author(&mut node);
    let (bob, eve, quick) = (node.open(1, "bob", 2), node.open(1, "eve", 3), node.open(1, "quick", 4));
    let at = [bob, eve].map(|client| read_with(&mut node, client, "plan", DocumentForm::Updates, 2));
    read_with(&mut node, quick, "plan", DocumentForm::Updates, 0);
    (0..12).for_each(|_| type_in(&mut node, &mut ada, "x"));
    assert_eq!(revisions(&mut node, quick), (1..=12).map(|n| (n, n)).collect::<Vec<_>>());
    for (client, subscription) in [bob, eve].into_iter().zip(at) {
        assert_eq!(revisions(&mut node, client), [(1, 1), (2, 2)]);
        node.consumed(client, subscription, 1);
        assert_eq!(revisions(&mut node, client), [(3, 12)], "ten edits, one frame");
    }
    assert_eq!(counted(&node, |c| c.reader_merges), 1, "those who lack the same share it");
    (0..2).for_each(|_| type_in(&mut node, &mut ada, "y"));
    assert_eq!(revisions(&mut node, bob), []);
    node.consumed(bob, at[0], 12);
    assert_eq!(revisions(&mut node, bob), [(13, 14)]);
    type_in(&mut node, &mut ada, "y");
    assert_eq!(revisions(&mut node, bob), [(15, 15)], "who keeps up gets each");
}

#[test]
fn a_merged_edit_does_what_those_it_is_made_of_do() {
    let mut node = Node::new(1);
    let (mut ada, mut bob) = (author(&mut node), Editor::new(node.open(0, "bob", 2), "plan", 2));
    bob.open(&mut node);
    let slow = node.open(0, "slow", 3);
    let at = read_with(&mut node, slow, "plan", DocumentForm::Updates, 1);
    let thin = node.open(0, "thin", 4);
    let thin_at = read_with(&mut node, thin, "plan", DocumentForm::Operations, 1);
    let mut text = String::new();
    for n in 0..40u32 {
        type_in(&mut node, &mut ada, &n.to_string());
        bob.hear(&mut node);
        let cut = Operations::new().retain(n / 2).insert("-").delete(1);
        let edit = bob.edit(cut);
        node.call(bob.client, edit);
        ada.hear(&mut node);
    }
    let mut copy = Document::new(9);
    loop {
        for (_, op, _) in node.document_frames(slow) {
            let ServerOp::Delivery(delivery) = op else { panic!("unexpected {op:?}") };
            copy.replay(&delivery.body).expect("an update");
            node.consumed(slow, at, delivery.position.0);
        }
        for (_, op, _) in node.document_frames(thin) {
            match op {
                ServerOp::Document(DocumentNews::Operations(news)) => {
                    let done = Operations::decode(&news.operations).expect("our own");
                    text = done.apply(&text).expect("they fit");
                    node.consumed(thin, thin_at, news.to.0);
                }
                ServerOp::Document(DocumentNews::State { revision, bytes, .. }) => {
                    text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
                    node.consumed(thin, thin_at, revision.0);
                }
                op => panic!("unexpected {op:?}"),
            }
        }
        if copy.text() == ada.copy.text() && text == ada.copy.text() {
            break;
        }
        assert!(copy.text().len() + text.len() < 400);
    }
    assert_eq!(copy.state_vector(), ada.copy.state_vector());
}

#[test]
fn a_transport_that_takes_nothing_is_not_queued_for() {
    let mut node = Node::new(1);
    let mut ada = author(&mut node);
    let bob = node.open(0, "bob", 2);
    read_with(&mut node, bob, "plan", DocumentForm::Updates, 0);
    let mut copy = Document::new(9);
    node.clogged = true;
    let piece = "x".repeat(20 << 10);
    (0..40).for_each(|_| type_in(&mut node, &mut ada, &piece));
    let mut before = 0;
    for round in 0.. {
        let frames = node.document_frames(bob);
        for (_, op, _) in frames {
            let ServerOp::Delivery(delivery) = op else { panic!("unexpected {op:?}") };
            assert!(delivery.position.0 > before);
            before = delivery.position.0;
            copy.replay(&delivery.body).expect("an update");
        }
        if node.drain(bob) == 0 {
            assert!(round > 1, "it was more than the queue holds");
            break;
        }
    }
    assert_eq!(copy.text().len(), 40 * piece.len());
    assert!(counted(&node, |c| c.reader_merges) > 0);
}

#[test]
fn a_document_comes_in_parts_that_a_queue_holds() {
    let mut node = Node::new(2);
    let mut ada = author(&mut node);
    let piece = "x".repeat(DOCUMENT_PART_BYTES);
    (0..6).for_each(|_| type_in(&mut node, &mut ada, &piece));
    let bob = node.open(1, "bob", 2);
    node.clogged = true;
    read_with(&mut node, bob, "plan", DocumentForm::Operations, 0);
    let (mut whole, mut rounds) = (0, 0);
    loop {
        let frames = node.document_frames(bob);
        for (_, op, _) in frames {
            let ServerOp::Document(DocumentNews::State { offset, total, bytes, .. }) = op else {
                panic!("unexpected {op:?}");
            };
            assert_eq!((offset, total), (whole, 6 * DOCUMENT_PART_BYTES as u64));
            assert!(bytes.len() <= DOCUMENT_PART_BYTES);
            whole += bytes.len() as u64;
        }
        let drained = node.drain(bob);
        assert!(drained <= SESSION_QUEUE_BYTES + DOCUMENT_PART_BYTES + 4096, "{drained} bytes were queued");
        if drained == 0 {
            break;
        }
        rounds += 1;
    }
    assert_eq!((whole, rounds > 2), (6 * DOCUMENT_PART_BYTES as u64, true));
}

#[test]
fn who_fell_off_the_tail_gets_the_document_anew() {
    let mut node = Node::new(2);
    node.quiet = true;
    let mut ada = author(&mut node);
    let (bob, thin) = (node.open(1, "bob", 2), node.open(1, "thin", 3));
    let at = read_with(&mut node, bob, "plan", DocumentForm::Updates, 1);
    let thin_at = read_with(&mut node, thin, "plan", DocumentForm::Operations, 1);
    (0..TAIL_MESSAGES + 10).for_each(|_| type_in(&mut node, &mut ada, "x"));
    assert_eq!(revisions(&mut node, bob), [(1, 1)]);
    node.consumed(bob, at, 1);
    let mut copy = Document::new(9);
    for (_, op, _) in node.document_frames(bob) {
        let ServerOp::Document(DocumentNews::State { bytes, .. }) = op else { panic!("unexpected {op:?}") };
        copy.replay(&bytes).expect("a state");
    }
    assert_eq!(copy.text(), ada.copy.text());
    node.document_frames(thin);
    node.consumed(thin, thin_at, 1);
    let text = told(&mut node, thin);
    assert_eq!(text.last().map(|(.., what)| what.clone()), Some(format!("{0} of {0} from 0", TAIL_MESSAGES + 10)));
    assert_eq!(counted(&node, |c| c.reader_catch_ups), 2);
    type_in(&mut node, &mut ada, "y");
    assert_eq!(revisions(&mut node, bob).len(), 1, "and goes on");
}

#[test]
fn who_says_nothing_of_what_it_takes_is_not_given_all_of_it_again_and_again() {
    let mut node = Node::new(2);
    node.quiet = true;
    let mut ada = author(&mut node);
    let (bob, eve) = (node.open(1, "bob", 2), node.open(0, "eve", 3));
    let at = read_with(&mut node, bob, "plan", DocumentForm::Updates, 1);
    let eves = read_with(&mut node, eve, "plan", DocumentForm::Updates, 0);
    (0..TAIL_MESSAGES + 10).for_each(|_| type_in(&mut node, &mut ada, "x"));
    assert_eq!(revisions(&mut node, bob), [(1, 1)]);
    for clock in 1..4 {
        node.request(eve, super::awareness::says(eves, &[(9, clock, Some("{}"))]));
        node.pass_ms(AWARENESS_TICK_MS);
        assert_eq!(super::awareness::aware(&mut node, bob), [format!("9@{clock} {{}}")]);
    }
    assert_eq!(counted(&node, |c| c.reader_catch_ups), 0);
    node.consumed(bob, at, 1);
    assert_eq!(counted(&node, |c| c.reader_catch_ups), 1);
}

#[test]
fn a_reader_of_operations_is_told_where_its_own_stand() {
    let mut node = Node::new(2);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    for client in [ada, bob] {
        read_with(&mut node, client, "plan", DocumentForm::Operations, 0);
    }
    node.call(ada, operations("plan", 1, 0, &Operations::new().insert("one")));
    node.call(bob, operations("plan", 1, 0, &Operations::new().insert("two")));
    let own = |node: &mut Node, client| told(node, client).into_iter().map(|(.., what)| what).collect::<Vec<_>>();
    assert_eq!(own(&mut node, ada), ["own 1", "[Retain(3), Insert(\"two\")]"]);
    assert_eq!(own(&mut node, bob), ["[Insert(\"one\")]", "own 1"]);
    // One who is behind is told its own one by one.
    let slow = node.open(0, "slow", 3);
    let at = read_with(&mut node, slow, "plan", DocumentForm::Operations, 1);
    node.document_frames(slow);
    let writes = [(ada, 2), (ada, 3), (slow, 1), (ada, 4), (ada, 5)];
    for (client, sequence) in writes {
        node.call(client, operations("plan", sequence, 0, &Operations::new().insert("x")));
    }
    let mut heard = Vec::new();
    for position in 3..=7 {
        heard.extend(revisions(&mut node, slow));
        node.consumed(slow, at, position);
    }
    assert_eq!(heard, [(3, 3), (4, 4), (5, 5), (6, 7)]);
}

#[test]
fn names_of_revisions_are_told_and_the_whole_is_not() {
    let mut node = Node::new(1);
    let mut ada = author(&mut node);
    let bob = node.open(0, "bob", 2);
    let at = read_with(&mut node, bob, "plan", DocumentForm::Updates, 1);
    type_in(&mut node, &mut ada, "one");
    type_in(&mut node, &mut ada, "two");
    ada.sequence += 1;
    node.call(ada.client, write("plan", ada.sequence, PostKind::Version, 2, Bytes::from_static(b"draft")));
    type_in(&mut node, &mut ada, "three");
    let mut heard = Vec::new();
    for position in 1..=4 {
        heard.extend(told(&mut node, bob));
        node.consumed(bob, at, position);
    }
    let line = |from, what: &str| (from, from, what.to_owned());
    assert_eq!(heard, [line(1, "ada"), line(2, "ada"), line(3, "Version"), line(4, "ada")]);
}

#[test]
fn readers_leave_and_are_parted_with() {
    let mut node = Node::new(2);
    let mut ada = author(&mut node);
    let (bob, eve) = (node.open(1, "bob", 2), node.open(1, "eve", 3));
    let at = read_with(&mut node, bob, "plan", DocumentForm::Updates, 0);
    read_with(&mut node, eve, "plan", DocumentForm::Operations, 0);
    assert_eq!(node.call(bob, ClientOp::Unsubscribe { subscription: at }), ServerOp::Done);
    assert_eq!(node.left, [(bob, at)]);
    type_in(&mut node, &mut ada, "one");
    assert_eq!(revisions(&mut node, bob), []);
    assert_eq!(revisions(&mut node, eve), [(1, 1)]);
    let admin = node.open_as(0, "acme", "root", 9, &["read:*", "admin:*"]);
    node.call(admin, ClientOp::DeleteChannel { channel: name("plan") });
    let frames = node.document_frames(eve);
    let last = frames.last().map(|(_, op, last)| (op.clone(), *last));
    assert!(matches!(last, Some((ServerOp::Ended(reject), true)) if reject.code == RejectCode::ChannelDeleted));
    assert_eq!(node.gauge("subscriptions"), 0);
    assert_eq!(node.left.len(), 1, "the last frame ends a lane by itself");
}

#[test]
fn what_a_session_has_open_is_bounded() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    let check = |node: &mut Node, op, code| assert_eq!(node.refusal(ada, op), code);
    check(&mut node, open_lead("plan", DocumentForm::Updates, LEAD_MESSAGES_MAX + 1), RejectCode::ParameterInvalid);
    let mut first = None;
    for n in 0..DOCUMENTS_PER_SESSION_MAX {
        let at = read_with(&mut node, ada, &format!("plan-{n}"), DocumentForm::Updates, 0);
        first.get_or_insert(at);
    }
    check(&mut node, open_lead("more", DocumentForm::Updates, 0), RejectCode::LimitReached);
    node.call(ada, ClientOp::Unsubscribe { subscription: first.expect("one") });
    read_with(&mut node, ada, "more", DocumentForm::Updates, 0);
    node.close(ada);
    assert_eq!(node.gauge("subscriptions"), 0);
}

#[test]
fn a_tail_holds_what_somebody_lacks_and_little_more() {
    let mut node = Node::new(1);
    let mut ada = author(&mut node);
    let bob = node.open(0, "bob", 2);
    let at = read_with(&mut node, bob, "plan", DocumentForm::Updates, 100);
    for n in 1..=300 {
        type_in(&mut node, &mut ada, "x");
        node.consumed(bob, at, n);
    }
    assert!(node.shards[0].fans.tail_messages() <= 32, "{}", node.shards[0].fans.tail_messages());
    (0..120).for_each(|_| type_in(&mut node, &mut ada, "x"));
    assert!(node.shards[0].fans.tail_messages() >= 20, "somebody lacks them");
    assert_eq!(revisions(&mut node, bob).len(), 400);
    node.consumed(bob, at, 400);
    assert_eq!(revisions(&mut node, bob), [(401, 420)]);
}
