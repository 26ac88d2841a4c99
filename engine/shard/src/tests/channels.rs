//! Writes: their order, their places, their repetition, and what they cost between cores.

use thalweg_protocol::ids::Position;
use thalweg_protocol::limits::{DEDUPE_SESSIONS_MAX, HISTORY_MESSAGES};
use thalweg_protocol::op::{ClientOp, Durability, From, Publish, ServerOp, Subscribe};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Node, WALL_US, publish, retry, subscribe};

fn create(channel: &str, history_messages: u32) -> ClientOp {
    super::harness::create(channel, history_messages, None)
}

fn published(position: u64, duplicate: bool) -> ServerOp {
    ServerOp::Published { position: Position(position), timestamp_us: WALL_US, duplicate }
}

/// Where the first line of the trace stands that holds `text`.
fn line(node: &Node, text: &str) -> usize {
    node.trace.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?} in the trace"))
}

#[test]
fn a_write_is_answered_and_spread_only_once_it_is_durable() {
    let check = |cores: u16, owner: u16, writer_core: u16, reader_core: u16| {
        let case = format!("{cores} cores, {owner} owns, {writer_core} writes, {reader_core} reads");
        let mut node = Node::new(cores);
        let channel = node.channel_on(owner, 0);
        let (writer, reader) = (node.open(writer_core, "ada", 1), node.open(reader_core, "bob", 2));
        node.subscribe(reader, &channel, From::End);
        node.late = true;
        node.trace.clear();
        let request = node.request(writer, publish(&channel, 1, "hi"));
        assert_eq!(node.reply(request), None, "{case}: answered before it was durable");
        assert!(node.heard(reader).is_empty(), "{case}: spread before it was durable");
        assert!(!node.shards[usize::from(owner)].is_idle(), "{case}");
        node.commit();
        assert_eq!(node.reply(request), Some(published(1, false)), "{case}");
        assert_eq!(node.heard(reader), ["1 ada: hi"], "{case}");
        let append = line(&node, &format!("{owner} > Append"));
        let durable = line(&node, &format!("{owner} < Durable"));
        let reply = line(&node, &format!("{writer_core} > Reply"));
        let deliver = line(&node, &format!("{reader_core} > Deliver"));
        assert!(append < durable && durable < reply && durable < deliver, "{case}");
        // On one core the writer knows first; between cores nothing orders the two.
        assert!(writer_core != reader_core || reply < deliver, "{case}");
        assert!(node.shards.iter().all(crate::Shard::is_idle), "{case}");
    };
    check(1, 0, 0, 0);
    check(3, 0, 1, 1);
    check(3, 0, 1, 2);
    check(3, 2, 0, 2);
}

#[test]
fn appends_count_without_gaps_on_a_core_and_in_a_partition() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    let (one, two) = (node.channel_on(0, 0), node.channel_on(0, 1));
    for n in 0..3 {
        node.publish(client, &one, 2 * n + 1, "x");
        node.publish(client, &two, 2 * n + 2, "y");
    }
    let appends: Vec<_> = node.trace.iter().filter(|line| line.contains("> Append")).collect();
    let field = |line: &str, from: &str| {
        let at = line.find(from).expect("the field is there") + from.len();
        line[at..].split(')').next().and_then(|digits| digits.parse::<u64>().ok()).expect("a number")
    };
    let mut lsns = std::collections::BTreeMap::<u64, u64>::new();
    for (at, append) in appends.iter().enumerate() {
        assert_eq!(field(append, "Ticket("), at as u64 + 1, "{append}");
        let lsn = lsns.entry(field(append, "Partition(")).or_default();
        *lsn += 1;
        assert_eq!(field(append, "lsn: Lsn("), *lsn, "{append}");
        assert_eq!(field(append, "Epoch("), 3, "{append}");
    }
    assert_eq!((appends.len(), lsns.len()), (8, 2), "a creation and three messages for each of two channels");
}

#[test]
fn a_channel_is_made_once_and_answered_when_durable() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    for core in 0..2 {
        let channel = node.channel_on(core, 0);
        node.late = true;
        let (first, second) = (node.request(client, create(&channel, 0)), node.request(client, create(&channel, 0)));
        assert_eq!((node.reply(first), node.reply(second)), (None, None), "core {core}");
        node.commit();
        let created = |created| Some(ServerOp::ChannelCreated { created });
        assert_eq!((node.reply(first), node.reply(second)), (created(true), created(false)), "core {core}");
        node.late = false;
        assert_eq!(node.call(client, create(&channel, 7)), ServerOp::ChannelCreated { created: false });
    }
    assert_eq!(node.gauge("channels"), 2);
    let big = super::harness::create("big", HISTORY_MESSAGES + 1, Some(Durability::Memory));
    assert_eq!(node.refusal(client, big), RejectCode::ParameterInvalid);
}

#[test]
fn a_reader_starts_where_it_asks_to() {
    // Of five messages the channel keeps the newest three, or all.
    let check = |kept: u32, from: From, next: u64, expected: &[&str]| {
        for reader_core in 0..2 {
            let case = format!("{kept} kept, {from:?}, core {reader_core}");
            let mut node = Node::new(2);
            let channel = node.channel_on(0, 0);
            let (writer, reader) = (node.open(0, "ada", 1), node.open(reader_core, "bob", 2));
            node.request(writer, create(&channel, kept));
            for n in 1..=5 {
                assert_eq!(node.publish(writer, &channel, n, &n.to_string()), n);
            }
            let reply = node.call(reader, subscribe(&channel, from, Default::default(), 0));
            assert_eq!(reply, ServerOp::Subscribed { next: Position(next), head: Position(5) }, "{case}");
            node.publish(writer, &channel, 6, "6");
            assert_eq!(node.heard(reader), expected, "{case}");
        }
    };
    let all = ["1 ada: 1", "2 ada: 2", "3 ada: 3", "4 ada: 4", "5 ada: 5", "6 ada: 6"];
    let at = |position| From::Position(Position(position));
    check(0, From::Start, 1, &all);
    check(0, From::End, 6, &all[5..]);
    check(0, at(0), 1, &all);
    check(0, at(1), 1, &all);
    check(0, at(4), 4, &all[3..]);
    check(0, at(5), 5, &all[4..]);
    check(0, at(6), 6, &all[5..]);
    check(0, at(7), 6, &all[5..]);
    check(0, at(u64::MAX), 6, &all[5..]);
    check(3, From::Start, 3, &all[2..]);
    check(3, at(3), 3, &all[2..]);
    check(3, at(2), 3, &["missed 2..=2", all[2], all[3], all[4], all[5]]);
    check(3, at(0), 3, &["missed 1..=2", all[2], all[3], all[4], all[5]]);
}

#[test]
fn a_session_does_not_hear_itself_but_its_users_other_session_does() {
    for core in 0..2 {
        let mut node = Node::new(2);
        let channel = node.channel_on(core, 0);
        let (writer, other) = (node.open(0, "ada", 1), node.open(1, "ada", 2));
        node.subscribe(writer, &channel, From::End);
        node.subscribe(other, &channel, From::End);
        node.publish(writer, &channel, 1, "a");
        node.publish(other, &channel, 1, "b");
        node.publish(writer, &channel, 2, "c");
        assert_eq!(node.heard(writer), ["2 ada: b"], "owner {core}");
        assert_eq!(node.heard(other), ["1 ada: a", "3 ada: c"], "owner {core}");
        // Nor does it when it comes back and reads from the start.
        let again = node.open(1, "ada", 1);
        node.subscribe(again, &channel, From::Start);
        assert_eq!(node.heard(again), ["2 ada: b"], "owner {core}");
    }
}

#[test]
fn a_repeated_write_is_answered_from_memory_and_no_sooner_than_the_first() {
    let mut node = Node::new(2);
    let (here, there) = (node.channel_on(0, 0), node.channel_on(1, 0));
    let (client, reader) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    for channel in [&here, &there] {
        node.subscribe(reader, channel, From::End);
        node.late = true;
        let first = node.request(client, publish(channel, 1, "once"));
        let second = node.request(client, retry(channel, 1, "once"));
        assert_eq!((node.reply(first), node.reply(second)), (None, None), "nothing is durable yet");
        node.commit();
        assert_eq!((node.reply(first), node.reply(second)), (Some(published(1, false)), Some(published(1, true))));
        node.late = false;
        // Other content under the number changes nothing.
        assert_eq!(node.call(client, retry(channel, 1, "other")), published(1, true));
        assert_eq!(node.heard(reader), ["1 ada: once"]);
    }
    let duplicates: u64 = node.shards.iter().map(|shard| shard.counters().duplicates).sum();
    assert_eq!(duplicates, 4);
    let next = node.open(1, "ada", 1);
    assert_eq!(node.call(next, retry(&here, 1, "once")), published(1, true), "the session's next connection");
    assert_eq!(node.publish(next, &here, 5, "five"), 2);
    assert_eq!(node.refusal(next, publish(&here, 3, "three")), RejectCode::SequenceInvalid);
}

#[test]
fn a_forgotten_session_is_told_so() {
    let mut node = Node::with_partitions(1, 1);
    let first = node.open(0, "ada", 1);
    node.publish(first, "room", 1, "x");
    for n in 0..DEDUPE_SESSIONS_MAX as u128 {
        let other = node.open(0, "bob", 2 + n);
        node.publish(other, "room", 1, "y");
    }
    assert_eq!(node.refusal(first, retry("room", 1, "x")), RejectCode::SessionExpired);
    let head = DEDUPE_SESSIONS_MAX as u64 + 1;
    assert_eq!(node.publish(first, "room", 2, "new"), head + 1, "what is said to be new is carried out");
}

#[test]
fn a_write_crosses_between_cores_as_little_as_it_can() {
    let check = |cores: u16, writer_core: u16, owner: u16, readers: &[u16], expected: usize| {
        let mut node = Node::new(cores);
        let channel = node.channel_on(owner, 0);
        let writer = node.open(writer_core, "ada", 1);
        let readers: Vec<_> = (10..).zip(readers).map(|(id, &core)| node.open(core, "bob", id)).collect();
        for &reader in &readers {
            node.subscribe(reader, &channel, From::End);
        }
        node.publish(writer, &channel, 1, "first");
        let (before, forwarded) = (node.crossings, node.shards[usize::from(writer_core)].counters().forwarded);
        node.publish(writer, &channel, 2, "second");
        let case = format!("{writer_core} writes, {owner} owns, {readers:?} read");
        assert_eq!(node.crossings - before, expected, "{case}");
        let forwarded = node.shards[usize::from(writer_core)].counters().forwarded - forwarded;
        assert_eq!(forwarded, u64::from(writer_core != owner), "{case}");
        for reader in readers {
            assert_eq!(node.heard(reader).len(), 2, "{case}");
        }
    };
    check(1, 0, 0, &[0, 0], 0);
    check(2, 0, 0, &[], 0);
    check(2, 0, 1, &[], 2);
    check(2, 0, 1, &[1, 1], 2);
    check(2, 0, 1, &[0, 0, 0], 3);
    check(4, 0, 1, &[0, 1, 2, 3, 2, 3], 5);
    check(4, 1, 1, &[0, 2, 3], 3);
}

#[test]
fn a_channel_that_is_not_there_is_not_made_unasked() {
    for core in 0..2 {
        let mut node = Node::new(2);
        let client = node.open(0, "ada", 1);
        let channel = node.channel_on(core, 0);
        let ClientOp::Publish(write) = publish(&channel, 1, "x") else { panic!("a write") };
        let write = ClientOp::Publish(Publish { make: false, ..write });
        assert_eq!(node.refusal(client, write.clone()), RejectCode::ChannelUnknown);
        let ClientOp::Subscribe(read) = subscribe(&channel, From::End, Default::default(), 0) else { panic!("a read") };
        let read = ClientOp::Subscribe(Subscribe { make: false, ..read });
        assert_eq!(node.refusal(client, read.clone()), RejectCode::ChannelUnknown);
        assert_eq!((node.gauge("subscriptions"), node.gauge("channels_read")), (0, 0));
        node.request(client, create(&channel, 0));
        assert!(matches!(node.call(client, write), ServerOp::Published { .. }));
        assert!(matches!(node.call(client, read), ServerOp::Subscribed { .. }));
    }
}

#[test]
fn permissions_cover_every_request_about_a_channel() {
    let check = |permissions: &[&str], channel: &str, expected: [bool; 3]| {
        let mut node = Node::new(2);
        let client = node.open_as(0, "acme", "ada", 1, permissions);
        let ops = [create(channel, 0), publish(channel, 1, "x"), subscribe(channel, From::End, Default::default(), 0)];
        for (op, allowed) in ops.into_iter().zip(expected) {
            let case = format!("{permissions:?}, {op:?}");
            let reply = node.call(client, op);
            let forbidden = matches!(&reply, ServerOp::Reject(reject) if reject.code == RejectCode::Forbidden);
            let refused = matches!(&reply, ServerOp::Reject(_));
            assert_eq!((forbidden, refused), (!allowed, !allowed), "{case}: {reply:?}");
        }
    };
    check(&["read:*", "write:*"], "team-a", [true; 3]);
    check(&["write:team-*"], "team-a", [true, true, false]);
    check(&["write:team-*"], "other", [false; 3]);
    check(&["read:team-*", "ask:*", "admin:*"], "other", [false; 3]);
    check(&[], "team-a", [false; 3]);
    // A reader who may not write does not make channels.
    let mut node = Node::new(1);
    let reader = node.open_as(0, "acme", "ada", 1, &["read:*"]);
    let read = subscribe("new", From::End, Default::default(), 0);
    assert_eq!(node.refusal(reader, read), RejectCode::ChannelUnknown);
    let rejects = &node.shards[0].counters().rejects;
    assert_eq!(rejects[RejectCode::ChannelUnknown as usize], 1);
}

#[test]
fn tenants_do_not_hear_each_other() {
    let mut node = Node::new(3);
    let all = ["read:*", "write:*"];
    let tenants = ["acme", "globex"];
    let pairs = [0_u16, 1].map(|n| {
        let tenant = tenants[usize::from(n)];
        let id = 10 * u128::from(n);
        (node.open_as(n, tenant, "ada", id + 1, &all), node.open_as(2, tenant, "bob", id + 2, &all))
    });
    for (_, reader) in pairs {
        node.subscribe(reader, "general", From::Start);
    }
    for (n, (writer, _)) in pairs.iter().enumerate() {
        assert_eq!(node.publish(*writer, "general", 1, tenants[n]), 1, "each channel counts for itself");
    }
    for (n, (_, reader)) in pairs.iter().enumerate() {
        assert_eq!(node.heard(*reader), [format!("1 ada: {}", tenants[n])]);
    }
    assert_eq!(node.gauge("channels"), 2);
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let run = || {
        let mut node = Node::new(3);
        let clients: Vec<_> = (0..6).map(|n| node.open(n % 3, "ada", 1 + u128::from(n))).collect();
        let channels: Vec<_> = (0..3).map(|core| node.channel_on(core, 0)).collect();
        for (n, &client) in clients.iter().enumerate() {
            node.subscribe_with(client, &channels[n % 3], From::Start, Default::default(), 2);
        }
        for round in 1..=20 {
            for (n, &client) in clients.iter().enumerate() {
                node.send(client, publish(&channels[(n + round) % 3], round as u64, "@ai hello"));
            }
            node.pass_ms(3);
        }
        node.close(clients[0]);
        node.trace
    };
    let (first, second) = (run(), run());
    assert!(first.len() > 500, "{} lines say little", first.len());
    assert_eq!(first, second);
}
