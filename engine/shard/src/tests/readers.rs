//! Readers that are slower than their channel.

use thalweg_protocol::ids::{Position, Subscription};
use thalweg_protocol::limits::{
    BODY_BYTES_MAX, HISTORY_BATCH_MESSAGES, LEAD_MESSAGES, LEAD_MESSAGES_MAX, SESSION_QUEUE_BYTES, TAIL_MESSAGES,
};
use thalweg_protocol::op::{ClientOp, From, Policy, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Client, Node, create, publish, subscribe};

/// A channel of core 0 with a writer there, and a reader on `core`.
fn room(cores: u16, core: u16, from: From, policy: Policy, lead: u32) -> (Node, String, Client, Client, Subscription) {
    let mut node = Node::new(cores);
    let channel = node.channel_on(0, 0);
    let (writer, reader) = (node.open(0, "ada", 1), node.open(core, "bob", 2));
    let subscription = node.subscribe_with(reader, &channel, from, policy, lead);
    (node, channel, writer, reader, subscription)
}

fn say(node: &mut Node, writer: Client, channel: &str, from: u64, to: u64) {
    for n in from..=to {
        node.publish(writer, channel, n, &n.to_string());
    }
}

fn lines(from: u64, to: u64) -> Vec<String> {
    (from..=to).map(|n| format!("{n} ada: {n}")).collect()
}

fn total(node: &Node, count: impl Fn(&crate::Counters) -> u64) -> u64 {
    node.shards.iter().map(|shard| count(shard.counters())).sum()
}

#[test]
fn a_subscription_runs_ahead_by_its_lead_and_no_further() {
    let check = |lead: u32, effective: u64| {
        let (mut node, channel, writer, reader, subscription) = room(1, 0, From::End, Policy::Replay, lead);
        say(&mut node, writer, &channel, 1, effective + 5);
        assert_eq!(node.heard(reader), lines(1, effective), "lead {lead}");
        node.consumed(reader, subscription, 3.min(effective));
        let until = effective + 3.min(effective);
        assert_eq!(node.heard(reader), lines(effective + 1, until), "lead {lead}");
        node.consumed(reader, subscription, 1);
        assert!(node.heard(reader).is_empty(), "credit is not given twice: lead {lead}");
        node.consumed(reader, subscription, u64::MAX);
        let most = (effective + 5).min(until + effective);
        assert_eq!(node.heard(reader), lines(until + 1, most), "lead {lead}");
    };
    check(1, 1);
    check(2, 2);
    check(10, 10);
    check(0, LEAD_MESSAGES.into());
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    let greedy = subscribe("room", From::End, Policy::Replay, LEAD_MESSAGES_MAX + 1);
    assert_eq!(node.refusal(client, greedy), RejectCode::ParameterInvalid);
    assert_eq!(node.gauge("subscriptions"), 0);
}

#[test]
fn a_stalled_reader_with_policy_replay_gets_everything_later() {
    for core in 0..2 {
        let (mut node, channel, writer, reader, subscription) = room(2, core, From::End, Policy::Replay, 16);
        // More than a tail and several batches of history lie between the reader and the newest.
        let all = (TAIL_MESSAGES + 3 * HISTORY_BATCH_MESSAGES) as u64;
        say(&mut node, writer, &channel, 1, all);
        let mut heard = node.positions(reader);
        assert_eq!(heard.len(), 16, "no credit, no deliveries");
        assert_eq!(total(&node, |counters| counters.history_reads), 0);
        while let Some(&last) = heard.last().filter(|last| **last < all) {
            node.consumed(reader, subscription, last);
            let more = node.positions(reader);
            assert!(!more.is_empty() && more.len() <= 16, "{more:?} after {last}");
            heard.extend(more);
        }
        assert!(heard.iter().copied().eq(1..=all), "reader on core {core}");
        assert!(total(&node, |counters| counters.history_reads) >= 3, "it was read back from history");
        assert_eq!(total(&node, |counters| counters.missed), 0);
        node.consumed(reader, subscription, all);
        say(&mut node, writer, &channel, all + 1, all + 3);
        assert_eq!(node.positions(reader), [all + 1, all + 2, all + 3], "it has caught up");
    }
}

#[test]
fn a_replay_reader_is_told_what_history_no_longer_holds() {
    let (mut node, _, writer, reader, _) = room(2, 1, From::End, Policy::Replay, 1);
    let create = create("small", 10, None);
    node.request(writer, create);
    let subscription = node.subscribe_with(reader, "small", From::End, Policy::Replay, 2);
    let all = TAIL_MESSAGES as u64 + 100;
    say(&mut node, writer, "small", 1, all);
    assert_eq!(node.positions(reader), [1, 2]);
    node.consumed(reader, subscription, 2);
    let kept = all - 9;
    let mut expected = vec![format!("missed 3..={}", kept - 1)];
    expected.extend(lines(kept, kept + 1));
    assert_eq!(node.heard(reader), expected);
    assert_eq!(total(&node, |counters| counters.missed), kept - 3);
}

#[test]
fn a_stalled_reader_with_policy_drop_skips_to_the_newest() {
    for core in 0..2 {
        let (mut node, channel, writer, reader, subscription) = room(2, core, From::End, Policy::Drop, 4);
        say(&mut node, writer, &channel, 1, 20);
        assert_eq!(node.heard(reader), lines(1, 4));
        node.consumed(reader, subscription, 4);
        let mut expected = vec!["missed 5..=16".to_owned()];
        expected.extend(lines(17, 20));
        assert_eq!(node.heard(reader), expected, "reader on core {core}");
        assert_eq!(total(&node, |counters| counters.missed), 12);
        node.consumed(reader, subscription, 20);
        say(&mut node, writer, &channel, 21, 22);
        assert_eq!(node.heard(reader), lines(21, 22), "it has caught up");
        // One that is behind by no more than its lead misses nothing.
        say(&mut node, writer, &channel, 23, 26);
        node.consumed(reader, subscription, 26);
        assert_eq!(node.heard(reader), lines(23, 26));
        assert_eq!(total(&node, |counters| counters.slow_disconnected), 0);
    }
}

#[test]
fn a_stalled_reader_with_policy_disconnect_is_ended() {
    for core in 0..2 {
        let (mut node, channel, writer, reader, subscription) = room(2, core, From::End, Policy::Disconnect, 4);
        say(&mut node, writer, &channel, 1, 8);
        assert_eq!(node.heard(reader), lines(1, 4), "behind by its lead, no more");
        assert_eq!(node.gauge("subscriptions"), 1);
        say(&mut node, writer, &channel, 9, 12);
        let ended = node.deliveries(reader);
        assert_eq!(ended.len(), 1, "{ended:?}");
        let (of, ServerOp::Ended(reject)) = &ended[0] else { panic!("an end, not {ended:?}") };
        assert_eq!((*of, reject.code), (subscription, RejectCode::SlowReader), "reader on core {core}");
        assert_eq!(total(&node, |counters| counters.slow_disconnected), 1);
        assert_eq!((node.gauge("subscriptions"), node.gauge("channels_read")), (0, 0));
        let again = ClientOp::Unsubscribe { subscription };
        assert_eq!(node.refusal(reader, again), RejectCode::SubscriptionInvalid);
        node.subscribe_with(reader, &channel, From::Position(Position(5)), Policy::Replay, 0);
        assert_eq!(node.heard(reader), lines(5, 12), "the session lives on");
    }
}

#[test]
fn a_slow_reader_holds_up_nobody_else() {
    let (mut node, channel, writer, slow, _) = room(2, 1, From::End, Policy::Replay, 1);
    let fast = node.open(1, "eve", 3);
    node.subscribe(fast, &channel, From::End);
    say(&mut node, writer, &channel, 1, 50);
    assert_eq!((node.heard(slow), node.heard(fast)), (lines(1, 1), lines(1, 50)));
}

#[test]
fn a_full_session_waits_for_room() {
    let (mut node, channel, writer, reader, _) = room(2, 1, From::End, Policy::Replay, 0);
    node.clogged = true;
    let body = "x".repeat(BODY_BYTES_MAX / 8);
    let all = 40;
    for n in 1..=all {
        node.publish(writer, &channel, n, &body);
    }
    let mut heard = node.positions(reader);
    let fit = SESSION_QUEUE_BYTES.div_ceil(body.len());
    assert!((fit - 1..=fit).contains(&heard.len()), "{} of {fit} fit", heard.len());
    while heard.len() < all as usize {
        let drained = node.drain(reader);
        assert!(drained > 0 && drained < SESSION_QUEUE_BYTES + 2 * body.len(), "{drained} bytes were queued");
        let more = node.positions(reader);
        assert!(!more.is_empty(), "room was not used after {heard:?}");
        heard.extend(more);
    }
    assert!(heard.into_iter().eq(1..=all));
}

#[test]
fn room_is_used_once_half_of_the_queue_is_free() {
    let (mut node, channel, writer, reader, _) = room(1, 0, From::End, Policy::Replay, 0);
    node.clogged = true;
    let body = "x".repeat(1 << 10);
    for n in 1..=2 * (SESSION_QUEUE_BYTES >> 10) as u64 {
        node.publish(writer, &channel, n, &body);
    }
    let queued = node.deliveries(reader).len();
    assert!(queued > 0);
    let core = reader.core;
    node.feed(core, crate::Input::Drained { link: reader.link, bytes: SESSION_QUEUE_BYTES / 4 });
    node.settle();
    assert!(node.deliveries(reader).is_empty(), "a quarter is no room yet");
    node.feed(core, crate::Input::Drained { link: reader.link, bytes: SESSION_QUEUE_BYTES / 2 });
    node.settle();
    assert!(!node.deliveries(reader).is_empty(), "three quarters are");
}

#[test]
fn readers_are_served_in_turn() {
    let mut node = Node::new(1);
    let writer = node.open(0, "ada", 1);
    let readers = [2, 3].map(|id| node.open(0, "bob", id));
    for n in 1..=100 {
        node.publish(writer, "room", n, "x");
    }
    for reader in readers {
        node.send(reader, subscribe("room", From::Start, Policy::Replay, 0));
    }
    node.settle();
    let delivered: Vec<_> = node.trace.iter().filter(|line| line.contains("> Deliver")).collect();
    let of = |reader: Client| format!("{:?}", reader.link);
    let changes =
        delivered.windows(2).filter(|pair| pair[0].contains(&of(readers[0])) != pair[1].contains(&of(readers[0])));
    assert!(changes.count() >= 5, "one reader was served to its end before the other began");
}

/// A detach once overtook the attach that waited for the log, and left a core that was told about everything for ever.
#[test]
fn a_subscription_ended_before_it_began_is_answered_and_leaves_nothing_behind() {
    let mut node = Node::new(2);
    let channel = node.channel_on(1, 0);
    let (writer, reader) = (node.open(1, "ada", 1), node.open(0, "bob", 2));
    node.publish(writer, &channel, 1, "first");
    node.late = true;
    node.send(writer, publish(&channel, 2, "second"));
    let asked = node.request(reader, subscribe(&channel, From::End, Policy::Replay, 0));
    let ended = node.request(reader, ClientOp::Unsubscribe { subscription: Subscription(asked.0) });
    assert_eq!(node.reply(ended), Some(ServerOp::Done));
    node.late = false;
    node.commit();
    let answer = node.reply(asked);
    let Some(ServerOp::Reject(reject)) = answer else { panic!("a refusal, not {answer:?}") };
    assert_eq!(reject.code, RejectCode::SubscriptionInvalid);
    let before = node.crossings;
    node.publish(writer, &channel, 3, "third");
    assert_eq!(node.crossings, before, "nobody on the other core reads");
}

/// A reader that waited for its turn was once taken for a slow one.
#[test]
fn a_reader_that_keeps_up_is_not_slow_however_much_comes_at_once() {
    for policy in [Policy::Drop, Policy::Disconnect] {
        let (mut node, channel, writer, reader, subscription) = room(1, 0, From::End, policy, 1);
        node.late = true;
        for n in 1..=3 {
            node.send(writer, publish(&channel, n, &format!("line {n}")));
        }
        node.late = false;
        node.commit();
        assert_eq!(node.gauge("subscriptions"), 1, "{policy:?}");
        for n in 1..=3 {
            assert_eq!(node.positions(reader), [n], "{policy:?}");
            node.consumed(reader, subscription, n);
        }
    }
}

/// Readers that came and went while their session's queue was full once piled up in the list of those who wait for room.
#[test]
fn readers_that_left_wait_for_no_room() {
    let (mut node, channel, writer, reader, _) = room(1, 0, From::End, Policy::Replay, 0);
    node.clogged = true;
    let body = "x".repeat(BODY_BYTES_MAX / 2);
    for n in 1..=4 {
        node.publish(writer, &channel, n, &body);
    }
    for _ in 0..20 {
        let subscription = node.subscribe(reader, &channel, From::Start);
        assert_eq!(node.call(reader, ClientOp::Unsubscribe { subscription }), ServerOp::Done);
    }
    let session = node.shards[0].sessions.get(reader.link).expect("it is open");
    assert!(session.queued >= SESSION_QUEUE_BYTES, "the queue is full");
    assert_eq!(session.waiting_for_room.len(), 1, "the first reader waits, and nobody else");
}
