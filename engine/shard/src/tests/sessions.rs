//! Sessions: what they may hold, and that nothing stays behind when they go.

use thalweg_protocol::generation::AskRequest;
use thalweg_protocol::ids::{Subscription, Watch};
use thalweg_protocol::limits::{IN_FLIGHT_MAX, SUBSCRIPTIONS_MAX, WATCHES_MAX};
use thalweg_protocol::op::{ClientOp, From, Policy, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Client, Node, publish, subscribe};

fn code(reply: Option<ServerOp>) -> Option<RejectCode> {
    match reply {
        Some(ServerOp::Reject(reject)) => Some(reject.code),
        _ => None,
    }
}

fn end(subscription: Subscription) -> ClientOp {
    ClientOp::Unsubscribe { subscription }
}

#[test]
fn unanswered_requests_are_limited() {
    for core in 0..2 {
        let mut node = Node::new(2);
        let channel = node.channel_on(core, 0);
        let client = node.open(0, "ada", 1);
        node.late = true;
        let requests: Vec<_> =
            (1..=IN_FLIGHT_MAX as u64).map(|n| node.send(client, publish(&channel, n, "x"))).collect();
        node.settle();
        let most = IN_FLIGHT_MAX as u64;
        for op in [publish(&channel, most + 1, "x"), subscribe(&channel, From::End, Policy::Replay, 0)] {
            let refused = node.request(client, op);
            assert_eq!(code(node.reply(refused)), Some(RejectCode::LimitReached), "owner {core}");
        }
        node.commit();
        for request in requests {
            assert!(matches!(node.reply(request), Some(ServerOp::Published { .. })));
        }
        node.late = false;
        assert_eq!(node.publish(client, &channel, most + 1, "x"), most + 1, "the refused write was not carried out");
    }
}

#[test]
fn subscriptions_are_limited() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    let channels = [node.channel_on(0, 0), node.channel_on(1, 0)];
    let mut last = Subscription(0);
    for n in 0..SUBSCRIPTIONS_MAX {
        last = node.subscribe(client, &channels[n % 2], From::End);
    }
    let one_more = || subscribe("room", From::End, Policy::Replay, 0);
    assert_eq!(node.refusal(client, one_more()), RejectCode::LimitReached);
    assert_eq!(node.call(client, end(last)), ServerOp::Done);
    assert!(matches!(node.call(client, one_more()), ServerOp::Subscribed { .. }));
    node.close(client);
    assert_eq!((node.gauge("subscriptions"), node.gauge("channels_read")), (0, 0));
}

#[test]
fn watches_are_limited() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    let ask = || ClientOp::Ask(Box::new(AskRequest::prompt("hi")));
    let mut watches = Vec::new();
    for _ in 0..WATCHES_MAX {
        let request = node.request(client, ask());
        assert!(matches!(node.reply(request), Some(ServerOp::Asked { .. })));
        watches.push(Watch(request.0));
    }
    assert_eq!(node.refusal(client, ask()), RejectCode::LimitReached);
    assert_eq!(node.call(client, ClientOp::Unwatch { watch: watches[0] }), ServerOp::Done);
    assert!(matches!(node.call(client, ask()), ServerOp::Asked { .. }));
}

#[test]
fn nothing_is_delivered_after_an_unsubscribe() {
    for core in 0..2 {
        let mut node = Node::new(2);
        let channel = node.channel_on(0, 0);
        let (writer, reader) = (node.open(0, "ada", 1), node.open(core, "bob", 2));
        let (one, two) = (node.subscribe(reader, &channel, From::End), node.subscribe(reader, &channel, From::End));
        node.publish(writer, &channel, 1, "a");
        let of = |node: &mut Node| node.deliveries(reader).into_iter().map(|(of, _)| of).collect::<Vec<_>>();
        assert_eq!(of(&mut node), [one, two], "reader on core {core}");
        assert_eq!(node.call(reader, end(one)), ServerOp::Done);
        node.publish(writer, &channel, 2, "b");
        assert_eq!(of(&mut node), [two]);
        // A message that is under way between the cores when the last subscription ends.
        node.send(writer, publish(&channel, 3, "c"));
        assert_eq!(node.call(reader, end(two)), ServerOp::Done);
        node.settle();
        let crossings = node.crossings;
        node.publish(writer, &channel, 4, "d");
        assert_eq!(of(&mut node), [], "reader on core {core}");
        assert_eq!(node.crossings, crossings, "the owner was told that nobody reads");
        assert_eq!(node.refusal(reader, end(two)), RejectCode::SubscriptionInvalid);
        assert_eq!(node.refusal(reader, end(Subscription(999))), RejectCode::SubscriptionInvalid);
    }
}

#[test]
fn a_session_belongs_to_the_newest_connection() {
    let mut node = Node::new(1);
    let (writer, old) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    node.subscribe(old, "room", From::End);
    let new = node.open(0, "bob", 2);
    assert_eq!(node.closed(), [(old, RejectCode::SessionTakenOver)]);
    assert_eq!((node.gauge("sessions"), node.gauge("subscriptions")), (2, 0));
    node.subscribe(new, "room", From::End);
    // The old connection's own end comes later, and takes nothing from the new one.
    node.close(old);
    let ignored = node.request(old, publish("room", 1, "from the old connection"));
    assert_eq!(node.reply(ignored), None);
    node.publish(writer, "room", 1, "a");
    assert_eq!((node.heard(old), node.heard(new)), (vec![], vec!["1 ada: a".to_owned()]));
    let newest = node.open(0, "bob", 2);
    assert_eq!(node.closed(), [(new, RejectCode::SessionTakenOver)]);
    node.close(newest);
    assert_eq!(node.gauge("sessions"), 1);
}

#[test]
fn nothing_stays_behind_when_sessions_go() {
    // With `late`, they go while all they asked for is under way.
    for late in [false, true] {
        let mut node = Node::new(3);
        let channels: Vec<_> = (0..3).map(|core| node.channel_on(core, 0)).collect();
        let keeper = node.open(0, "eve", 99);
        for (sequence, channel) in (1..).zip(&channels) {
            node.publish(keeper, channel, sequence, "made");
        }
        node.late = late;
        let clients: Vec<Client> = (0..6).map(|n| node.open(n % 3, "ada", 1 + u128::from(n))).collect();
        for &client in &clients {
            for (sequence, channel) in (1..).zip(&channels) {
                node.request(client, subscribe(channel, From::Start, Policy::Replay, 1));
                node.request(client, publish(channel, sequence, "x"));
            }
            node.request(client, ClientOp::Ask(Box::new(AskRequest::prompt("hi"))));
        }
        assert_eq!(node.gauge("subscriptions"), 18, "late: {late}");
        for &client in &clients {
            node.close(client);
        }
        node.late = false;
        node.commit();
        node.close(keeper);
        for gauge in ["sessions", "subscriptions", "channels_read", "appends_pending"] {
            assert_eq!(node.gauge(gauge), 0, "{gauge}, late: {late}");
        }
        let cancelled = node.commands().into_iter();
        let cancelled = cancelled.filter(|command| matches!(command, crate::InferenceCommand::Cancel { .. }));
        assert_eq!(cancelled.count(), 6, "each generation lost its only reader, late: {late}");
        assert_eq!(node.gauge("channels"), 3);
    }
}

#[test]
fn what_belongs_to_the_shell_is_refused() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    for op in [ClientOp::Ping { nonce: 1 }, ClientOp::Stats, ClientOp::Drain] {
        assert_eq!(node.refusal(client, op), RejectCode::Internal);
    }
}
