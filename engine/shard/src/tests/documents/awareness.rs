//! What editors say of themselves.

use std::collections::BTreeSet;

use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate};
use thalweg_protocol::limits::{
    AWARENESS_BURST, AWARENESS_BYTES_MAX, AWARENESS_CLIENTS_MAX, AWARENESS_CLIENTS_PER_LINK, AWARENESS_DISTANCE_MS,
    AWARENESS_TICK_MS, AWARENESS_TIMEOUT_MS,
};

use super::*;

pub(super) fn says(subscription: Subscription, entries: &[(u64, u64, Option<&str>)]) -> ClientOp {
    let entry = |&(client, clock, state): &(u64, u64, Option<&str>)| AwarenessEntry {
        client,
        clock,
        state: state.map(|state| Bytes::copy_from_slice(state.as_bytes())),
    };
    let update = AwarenessUpdate { entries: entries.iter().map(entry).collect() }.encode();
    ClientOp::Document(DocumentOp::ShareAwareness { subscription, update })
}

/// What a client was told of others, a frame each.
pub(super) fn aware(node: &mut Node, client: Client) -> Vec<String> {
    let mut told = Vec::new();
    for (_, op, _) in node.document_frames(client) {
        let ServerOp::Document(DocumentNews::Awareness { update }) = op else { continue };
        let update = AwarenessUpdate::decode(&update).expect("our own");
        let line = |entry: &AwarenessEntry| {
            let state = entry.state.as_ref().map_or("-".into(), |state| String::from_utf8_lossy(state));
            format!("{}@{} {state}", entry.client, entry.clock)
        };
        told.push(update.entries.iter().map(line).collect::<Vec<_>>().join(", "));
    }
    told
}

/// A document with readers on each of some cores.
fn readers(node: &mut Node, users: &[(u16, &str)]) -> Vec<(Client, Subscription)> {
    let mut open = |&(core, user): &(u16, &str)| {
        let session = u128::from(node.gauge("sessions")) + 1;
        let client = node.open(core, user, session);
        (client, open_with(node, client, "plan", DocumentForm::Updates, Bytes::new()).subscription)
    };
    users.iter().map(&mut open).collect()
}

#[test]
fn everybody_but_who_said_it_is_told_after_a_while() {
    let mut node = Node::new(2);
    let [ada, bob, eve] = readers(&mut node, &[(0, "ada"), (0, "bob"), (1, "eve")])[..] else { panic!() };
    node.request(ada.0, says(ada.1, &[(1, 1, Some("{\"a\":1}"))]));
    node.request(ada.0, says(ada.1, &[(1, 2, Some("{\"a\":2}"))]));
    assert!(aware(&mut node, bob.0).is_empty());
    node.pass_ms(AWARENESS_TICK_MS);
    for reader in [bob, eve] {
        assert_eq!(aware(&mut node, reader.0), ["1@2 {\"a\":2}"], "the newest, once");
    }
    assert!(aware(&mut node, ada.0).is_empty(), "it knows");
    node.request(eve.0, says(eve.1, &[(3, 1, Some("{}"))]));
    node.request(bob.0, says(bob.1, &[(2, 1, Some("{}"))]));
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, ada.0), ["2@1 {}, 3@1 {}"]);
    // Who comes later is told of all who are there.
    let late = node.open(1, "late", 9);
    open_with(&mut node, late, "plan", DocumentForm::Operations, Bytes::new());
    assert_eq!(aware(&mut node, late), ["1@2 {\"a\":2}, 2@1 {}, 3@1 {}"]);
    assert_eq!(node.gauge("document_editors"), 3);
}

#[test]
fn who_leaves_or_is_silent_is_taken_out() {
    let mut node = Node::new(2);
    let [ada, bob, eve] = readers(&mut node, &[(0, "ada"), (1, "bob"), (1, "eve")])[..] else { panic!() };
    for (at, reader) in [ada, bob, eve].into_iter().enumerate() {
        node.request(reader.0, says(reader.1, &[(at as u64, 5, Some("{}"))]));
    }
    node.pass_ms(AWARENESS_TICK_MS);
    aware(&mut node, ada.0);
    node.close(bob.0);
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, ada.0), ["1@5 -"]);
    node.request(eve.0, ClientOp::Unsubscribe { subscription: eve.1 });
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, ada.0), ["2@5 -"]);
    node.pass_ms(AWARENESS_TIMEOUT_MS / 2);
    node.request(ada.0, says(ada.1, &[(0, 6, Some("{}"))]));
    node.pass_ms(AWARENESS_TIMEOUT_MS - 1);
    assert_eq!(node.gauge("document_editors"), 1, "it renewed what it said");
    node.pass_ms(2);
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(node.gauge("document_editors"), 0);
}

#[test]
fn nobody_speaks_for_others() {
    let mut node = Node::new(1);
    let [ada, bob, again] = readers(&mut node, &[(0, "ada"), (0, "bob"), (0, "ada")])[..] else { panic!() };
    let watcher = readers(&mut node, &[(0, "watcher")])[0];
    let mut check = |by: (Client, Subscription), entry, expected: &[&str]| {
        node.request(by.0, says(by.1, &[entry]));
        node.pass_ms(AWARENESS_TICK_MS);
        assert_eq!(aware(&mut node, watcher.0), expected, "{entry:?}");
    };
    check(ada, (7, 3, Some("\"ada\"")), &["7@3 \"ada\""]);
    check(bob, (7, 9, Some("\"bob\"")), &[]);
    check(bob, (7, 3, None), &[]);
    check(bob, (7, 99, None), &[]);
    check(again, (7, 3, Some("\"again\"")), &[]);
    check(ada, (7, 2, Some("\"old\"")), &[]);
    check(again, (7, 4, Some("\"again\"")), &["7@4 \"again\""]);
    // Who had it before has it no more.
    check(ada, (7, 4, None), &[]);
    check(again, (7, 5, None), &["7@4 -"]);
    check(bob, (8, 1, None), &[]);
}

#[test]
fn who_left_is_not_brought_back_by_those_who_pass_on_what_they_heard() {
    let mut node = Node::new(1);
    let [ada, bob, again] = readers(&mut node, &[(0, "ada"), (0, "bob"), (0, "ada")])[..] else { panic!() };
    let watcher = readers(&mut node, &[(0, "watcher")])[0];
    let check = |node: &mut Node, by: (Client, Subscription), entry, expected: &[&str]| {
        node.request(by.0, says(by.1, &[entry]));
        node.pass_ms(AWARENESS_TICK_MS);
        assert_eq!(aware(node, watcher.0), expected, "{entry:?}");
    };
    check(&mut node, ada, (7, 3, Some("\"ada\"")), &["7@3 \"ada\""]);
    check(&mut node, ada, (7, 3, None), &["7@3 -"]);
    check(&mut node, bob, (7, 3, Some("\"ada\"")), &[]);
    check(&mut node, bob, (7, 2, Some("\"ada\"")), &[]);
    assert_eq!(node.gauge("document_editors"), 0);
    // Who comes back with what it said before is there at once.
    check(&mut node, again, (7, 3, Some("\"back\"")), &["7@3 \"back\""]);
    node.close(again.0);
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, watcher.0), ["7@3 -"]);
    check(&mut node, bob, (7, 3, Some("\"echo\"")), &[]);
    node.pass_ms(AWARENESS_TIMEOUT_MS);
    check(&mut node, bob, (7, 3, Some("\"bob\"")), &["7@3 \"bob\""]);
}

#[test]
fn who_comes_and_goes_before_anybody_is_told_is_no_news() {
    let mut node = Node::new(2);
    let [ada, bob, eve] = readers(&mut node, &[(0, "ada"), (1, "bob"), (0, "eve")])[..] else { panic!() };
    node.request(eve.0, says(eve.1, &[(1, 1, Some("{}"))]));
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, bob.0), ["1@1 {}"]);
    node.close(eve.0);
    for message in 0..4 {
        let clients = (0..AWARENESS_CLIENTS_MAX as u64 / 2).map(|n| 10 + message * 1_000 + n);
        let restless: Vec<_> = clients.flat_map(|client| [(client, 1, Some("{}")), (client, 1, None)]).collect();
        node.request(ada.0, says(ada.1, &restless));
    }
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, bob.0), ["1@1 -"], "who was there is told to be gone");
    assert_eq!(node.gauge("document_editors"), 0);
}

/// More than half of those who may be there are others all at once: that is more than one update holds.
#[test]
fn a_crowd_that_comes_back_as_others_leaves_nobody_behind() {
    let mut node = Node::new(1);
    let bob = readers(&mut node, &[(0, "bob")])[0];
    let links = AWARENESS_CLIENTS_MAX / 2 / AWARENESS_CLIENTS_PER_LINK + 2;
    let crowd = readers(&mut node, &vec![(0, "crowd"); links]);
    let clients = |life: u64, at: usize| {
        let first = life * 10_000 + (at * AWARENESS_CLIENTS_PER_LINK) as u64;
        first..first + AWARENESS_CLIENTS_PER_LINK as u64
    };
    let mut shown = BTreeSet::new();
    let show = |shown: &mut BTreeSet<u64>, told: Vec<String>| {
        for entry in told.iter().flat_map(|line| line.split(", ")) {
            let (client, state) = entry.split_once('@').expect("an entry");
            let client = client.parse().expect("a number");
            let _ = if state.ends_with('-') { shown.remove(&client) } else { shown.insert(client) };
        }
    };
    for life in 1..=3 {
        for (at, reader) in crowd.iter().enumerate() {
            let left = clients(life - 1, at).map(|client| (client, 1, None));
            let came = clients(life, at).map(|client| (client, 1, Some("{}")));
            node.request(reader.0, says(reader.1, &left.chain(came).collect::<Vec<_>>()));
        }
        node.pass_ms(AWARENESS_TICK_MS);
        let there: BTreeSet<_> = (0..links).flat_map(|at| clients(life, at)).collect();
        assert_eq!(node.gauge("document_editors"), there.len() as u64);
        show(&mut shown, aware(&mut node, bob.0));
        assert!(shown == there, "{} are shown and {} are there", shown.len(), there.len());
    }
    let late = readers(&mut node, &[(0, "late")])[0];
    let mut seen = BTreeSet::new();
    show(&mut seen, aware(&mut node, late.0));
    assert!(seen == shown, "who comes late sees no ghosts");
}

#[test]
fn what_is_too_much_is_dropped_and_counted() {
    let mut node = Node::new(1);
    let [ada, bob] = readers(&mut node, &[(0, "ada"), (0, "bob")])[..] else { panic!() };
    let dropped = |node: &Node| counted(node, |c| c.awareness_dropped);
    for clock in 1..=u64::from(AWARENESS_BURST) + 10 {
        node.request(ada.0, says(ada.1, &[(1, clock, Some("{}"))]));
    }
    assert_eq!(dropped(&node), 10);
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, bob.0), [format!("1@{AWARENESS_BURST} {{}}")]);
    node.pass_ms(AWARENESS_DISTANCE_MS * 4);
    for clock in 100..110 {
        node.request(ada.0, says(ada.1, &[(1, clock, Some("{}"))]));
    }
    assert!((13..=15).contains(&dropped(&node)), "{}", dropped(&node));
    let before = dropped(&node);
    let raw = |update| ClientOp::Document(DocumentOp::ShareAwareness { subscription: bob.1, update });
    node.request(bob.0, raw(Bytes::from_static(b"\x05nonsense")));
    node.request(bob.0, raw(vec![0; AWARENESS_BYTES_MAX + 1].into()));
    node.request(bob.0, says(Subscription(999), &[(2, 1, Some("{}"))]));
    assert_eq!(dropped(&node) - before, 3);
    let crowd: Vec<_> = (10..12 + AWARENESS_CLIENTS_PER_LINK as u64).map(|id| (id, 1, Some("{}"))).collect();
    node.request(bob.0, says(bob.1, &crowd));
    assert_eq!(dropped(&node) - before, 5);
    let large = "x".repeat(AWARENESS_BYTES_MAX - 100);
    let more = readers(&mut node, &[("core", "u"); 18].map(|(_, user)| (0, user)));
    for (at, reader) in more.into_iter().enumerate() {
        node.request(reader.0, says(reader.1, &[(100 + at as u64, 1, Some(&large))]));
    }
    assert!(dropped(&node) - before > 5, "a document shows only so much");
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, bob.0).len(), 1, "in one frame");
}

#[test]
fn a_reader_without_room_is_told_the_newest_once_there_is() {
    let mut node = Node::new(1);
    let [ada, bob] = readers(&mut node, &[(0, "ada"), (0, "bob")])[..] else { panic!() };
    let mut typist = Editor::new(node.open(0, "eve", 9), "plan", 9);
    typist.open(&mut node);
    node.request(ada.0, says(ada.1, &[(1, 1, Some("{}"))]));
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, bob.0), ["1@1 {}"]);
    node.clogged = true;
    for _ in 0..20 {
        let edit = typist.insert(0, &"x".repeat(20 << 10));
        node.call(typist.client, edit);
    }
    for clock in 2..=20 {
        node.request(ada.0, says(ada.1, &[(1, clock, Some("{}"))]));
        node.pass_ms(AWARENESS_TICK_MS);
    }
    node.request(ada.0, says(ada.1, &[(1, 21, None)]));
    node.pass_ms(AWARENESS_TICK_MS);
    assert!(aware(&mut node, bob.0).is_empty());
    while node.drain(bob.0) > 0 {}
    assert_eq!(aware(&mut node, bob.0), ["1@20 -"]);
}

#[test]
fn a_document_that_is_gone_has_no_editors() {
    let mut node = Node::new(2);
    let [ada, _] = readers(&mut node, &[(0, "ada"), (1, "bob")])[..] else { panic!() };
    node.request(ada.0, says(ada.1, &[(1, 1, Some("{}"))]));
    let admin = node.open_as(0, "acme", "root", 9, &["read:*", "admin:*"]);
    node.call(admin, ClientOp::DeleteChannel { channel: name("plan") });
    assert_eq!(node.gauge("document_editors"), 0);
    node.request(ada.0, says(ada.1, &[(1, 2, Some("{}"))]));
    node.pass_ms(AWARENESS_TIMEOUT_MS);
    assert_eq!(node.gauge("document_editors"), 0);
}
