//! What outlives a node: messages, outcomes of writes, generations; and what is read back from disk.

use thalweg_protocol::generation::{AskRequest, FinishReason, TextHash, Usage};
use thalweg_protocol::ids::{Epoch, GenerationId, Position};
use thalweg_protocol::limits::{HISTORY_BATCH_MESSAGES, RESIDENT_BYTES, RESUME_GRACE_MS};
use thalweg_protocol::op::{ClientOp, CreateChannel, Durability, From, ServerOp, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::harness::{Client, Node, create, name, publish, retry, watch};
use crate::{InferenceCommand, InferenceEvent, Input, Submit};

fn all(core: u16, node: &mut Node, user: &str, session: u128) -> Client {
    node.open_as(core, "acme", user, session, &["read:*", "write:*", "ask:*", "admin:*"])
}

fn duplicate(position: u64) -> impl Fn(&ServerOp) -> bool {
    move |op| matches!(op, ServerOp::Published { position: Position(at), duplicate: true, .. } if *at == position)
}

fn page(node: &mut Node, client: Client, channel: &str, from: u64, limit: u32) -> (u64, u64, u64, usize) {
    let op = ClientOp::ReadHistory { channel: name(channel), from: Position(from), limit };
    match node.call(client, op) {
        ServerOp::Page { first, next, head, deliveries } => (first.0, next.0, head.0, deliveries.len()),
        other => panic!("expected a page, got {other:?}"),
    }
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_with_another_number_of_cores() {
    let mut node = Node::new(2);
    for (n, cores) in [(0, 3), (1, 1), (2, 4)] {
        let client = node.open(0, "ada", 1);
        for channel in 0..5 {
            let position = node.publish(client, &format!("room-{channel}"), n * 5 + channel + 1, "hello");
            assert_eq!(position, n + 1);
        }
        // Written, not durable, and lost.
        node.late = true;
        node.send(client, publish("room-0", 99, "lost"));
        node.restart(cores);
    }
    let client = node.open(3, "bob", 2);
    for channel in 0..5 {
        node.subscribe(client, &format!("room-{channel}"), From::Start);
    }
    assert_eq!(node.positions(client).len(), 15);
    let ada = node.open(1, "ada", 1);
    assert!(duplicate(3)(&node.call(ada, retry("room-4", 15, "hello"))), "its outcome is remembered");
    let ServerOp::Published { position, duplicate: false, .. } = node.call(ada, retry("room-0", 99, "lost")) else {
        panic!("what was lost is carried out when it is repeated");
    };
    assert_eq!(position, Position(4));
}

#[test]
fn a_channel_in_memory_keeps_its_name_and_loses_its_messages() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    node.call(client, create("volatile", 5, Some(Durability::Memory)));
    node.late = true;
    let before = node.records.len();
    for n in 1..=9 {
        assert_eq!(node.publish(client, "volatile", n, "gone soon"), n, "answered although the log is late");
    }
    assert_eq!(node.records.len(), before);
    assert_eq!(page(&mut node, client, "volatile", 0, 0), (5, 10, 9, 5));
    node.restart(1);
    let client = node.open(0, "ada", 1);
    assert_eq!(page(&mut node, client, "volatile", 0, 0), (1, 1, 0, 0));
    assert_eq!(node.publish(client, "volatile", 10, "again"), 1);
}

#[test]
fn what_is_not_logged_waits_for_what_it_depends_on() {
    let mut node = Node::in_memory(1);
    let client = node.open(0, "ada", 1);
    node.late = true;
    let (one, two) = (node.request(client, publish("new", 1, "a")), node.request(client, publish("new", 2, "b")));
    assert_eq!((node.reply(one), node.reply(two)), (None, None), "the channel is not made yet");
    node.commit();
    assert!(node.reply(one).is_some() && node.reply(two).is_some());
    node.publish(client, "new", 3, "at once");
}

#[test]
fn what_is_not_at_hand_is_read_from_disk() {
    let mut node = Node::new(2);
    node.quiet = true;
    let (writer, reader) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    let ClientOp::CreateChannel(create) = create("room", 0, None) else { panic!("it creates a channel") };
    node.call(writer, ClientOp::CreateChannel(CreateChannel { history_bytes: 1 << 30, ..create }));
    let body = "x".repeat(200 << 10);
    let count = 2 * (RESIDENT_BYTES / body.len()) as u64;
    for n in 1..=count {
        node.publish(writer, "room", n, &body);
    }
    assert!(node.gauge("resident_bytes") as usize > RESIDENT_BYTES, "nothing goes before it is on disk");
    node.archive();
    assert!(node.gauge("resident_bytes") as usize <= RESIDENT_BYTES);
    node.subscribe(reader, "room", From::Start);
    assert_eq!(node.positions(reader), (1..=count).collect::<Vec<_>>());
    let disk_reads: u64 = node.shards.iter().map(|shard| shard.counters().disk_reads).sum();
    assert!(disk_reads >= count / 2 / HISTORY_BATCH_MESSAGES as u64);
    assert_eq!(page(&mut node, reader, "room", 3, 2), (1, 5, count, 2));
}

#[test]
fn what_cannot_be_read_back_ends_its_reader_with_a_reason() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    (1..=5).for_each(|n| assert_eq!(node.publish(client, "room", n, "hello"), n));
    node.restart(1);
    node.rotten = true;
    let reader = node.open(0, "bob", 2);
    node.subscribe(reader, "room", From::Start);
    assert_eq!(node.heard(reader), ["ended storage_damaged"]);
    let op = ClientOp::ReadHistory { channel: name("room"), from: Position(0), limit: 0 };
    assert_eq!(node.refusal(reader, op), RejectCode::StorageDamaged);
    assert_eq!(node.publish(reader, "room", 1, "writing goes on"), 6);
}

#[test]
fn what_a_merge_let_go_of_is_missed_and_not_damaged() {
    for (let_go, expected) in [(3, &["missed 1..=2", "3 ada: hello", "4 ada: hello"][..]), (9, &["missed 1..=4"])] {
        let mut node = Node::new(1);
        let client = node.open(0, "ada", 1);
        (1..=4).for_each(|n| assert_eq!(node.publish(client, "room", n, "hello"), n));
        node.restart(1);
        node.let_go = let_go;
        let reader = node.open(0, "bob", 2);
        node.subscribe(reader, "room", From::Start);
        assert_eq!(node.heard(reader), expected);
    }
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    node.publish(client, "room", 1, "before");
    node.feed(0, Input::Storage { full: Some("no space left".into()) });
    for op in [publish("room", 2, "x"), create("new", 0, None), ClientOp::Ask(Box::new(AskRequest::prompt("hi")))] {
        assert_eq!(node.refusal(client, op), RejectCode::StorageFull);
    }
    assert!(duplicate(1)(&node.call(client, retry("room", 1, "before"))));
    assert_eq!(page(&mut node, client, "room", 0, 0), (1, 2, 1, 1));
    node.feed(0, Input::Storage { full: None });
    assert_eq!(node.publish(client, "room", 2, "after"), 2);
}

#[test]
fn a_deleted_channel_is_gone_for_everybody_and_can_be_made_again() {
    let mut node = Node::new(2);
    let (ada, bob) = (all(0, &mut node, "ada", 1), node.open(1, "bob", 2));
    (1..=3).for_each(|n| assert_eq!(node.publish(ada, "room", n, "old"), n));
    node.subscribe(bob, "room", From::End);
    let delete = || ClientOp::DeleteChannel { channel: name("room") };
    assert_eq!(node.refusal(bob, delete()), RejectCode::Forbidden);
    node.late = true;
    let request = node.request(ada, delete());
    assert_eq!(node.reply(request), None, "it is not durable");
    assert_eq!(node.refusal(ada, publish("room", 4, "too early")), RejectCode::Busy);
    node.late = false;
    node.commit();
    assert_eq!((node.reply(request), node.heard(bob)), (Some(ServerOp::Done), vec!["ended channel_deleted".into()]));
    assert_eq!(node.refusal(ada, delete()), RejectCode::ChannelUnknown);
    assert_eq!(node.publish(ada, "room", 5, "new"), 1);
    node.restart(1);
    let bob = node.open(0, "bob", 2);
    node.subscribe(bob, "room", From::Start);
    assert_eq!(node.heard(bob), ["1 ada: new"]);
}

#[test]
fn a_deleted_tenant_leaves_nothing_and_others_alone() {
    let mut node = Node::new(3);
    let (ada, eve) = (all(0, &mut node, "ada", 1), node.open_as(1, "other", "eve", 2, &["read:*", "write:*"]));
    for n in 0..7 {
        node.publish(ada, &format!("room-{n}"), n + 1, "mine");
    }
    node.publish(eve, "room-0", 1, "hers");
    node.call(ada, ClientOp::Ask(Box::new(AskRequest::prompt("hi"))));
    assert_eq!(node.call(ada, ClientOp::DeleteTenant), ServerOp::Deleted { channels: 7 });
    assert_eq!((node.gauge("channels"), node.gauge("generations_kept")), (1, 0));
    node.restart(2);
    assert_eq!((node.gauge("channels"), node.gauge("generations_kept")), (1, 0));
    let eve = node.open_as(0, "other", "eve", 2, &["read:*"]);
    assert_eq!(page(&mut node, eve, "room-0", 0, 0), (1, 2, 1, 1));
}

/// A generation of `small` with tokens "0 1 2 …", of which `durable` are in the log and `seen` were sent.
fn cut_off(durable: u32, seen: u32) -> (Node, GenerationId) {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    let ServerOp::Asked { generation, .. } = node.call(client, ClientOp::Ask(Box::new(AskRequest::prompt("hi"))))
    else {
        panic!("not asked")
    };
    produce(&mut node, generation, 0, durable);
    node.pass_ms(100);
    node.late = true;
    produce(&mut node, generation, durable, seen);
    node.restart(1);
    (node, generation)
}

fn produce(node: &mut Node, generation: GenerationId, from: u32, to: u32) {
    for index in from..to {
        let text = format!("{index} ").into();
        node.infer(InferenceEvent::Token { generation, index, id: 100 + index, text, detail: None });
    }
    node.settle();
}

fn submitted(node: &mut Node) -> Submit {
    match node.commands().remove(0) {
        InferenceCommand::Submit(submit) => *submit,
        other => panic!("expected a submit, got {other:?}"),
    }
}

fn text(to: u32) -> String {
    (0..to).map(|index| format!("{index} ")).collect()
}

#[test]
fn a_generation_goes_on_where_the_log_ends() {
    let (mut node, generation) = cut_off(3, 5);
    let submit = submitted(&mut node);
    assert_eq!((submit.generation, submit.produced), (generation, vec![100, 101, 102]));
    assert_eq!(submit.messages[0].content, "hi");
    let late = node.open(0, "bob", 2);
    node.call(late, watch(generation, 0, 0));
    produce(&mut node, generation, 3, 5);
    let usage = Usage { prompt_tokens: 1, completion_tokens: 5, ..Usage::default() };
    let message = String::new();
    node.infer(InferenceEvent::Finished { generation, reason: FinishReason::Stop, usage, message });
    node.settle();
    assert_eq!(node.watched(late), ["asked small", "0+3 0 1 2 ", "3+2 3 4 ", "stop 5."]);
    // Its end is in the log as well.
    node.restart(2);
    assert_eq!(node.commands(), []);
    let later = node.open(1, "bob", 2);
    node.call(later, watch(generation, 4, 0));
    assert_eq!(node.watched(later), ["asked small", "4+1 4 ", "stop 5."]);
}

#[test]
fn somebody_who_saw_more_than_was_durable_is_rewound_only_if_the_text_differs() {
    let check = |epoch: u64, seen: Option<&str>, from: u32, expected: &[&str]| {
        let (mut node, generation) = cut_off(3, 5);
        let reader = node.open(0, "ada", 1);
        let seen = seen.map(|seen| TextHash::of(seen.as_bytes()));
        let request = WatchRequest { generation, from, lead: 0, epoch: Epoch(epoch), seen };
        node.call(reader, ClientOp::Watch(request));
        produce(&mut node, generation, 3, 6);
        assert_eq!(node.watched(reader), expected, "{request:?}");
    };
    check(3, Some(&text(5)), 5, &["asked small", "5+1 5 "]);
    check(3, Some("other"), 5, &["asked small", "Rewound { to: 3 }", "3+3 3 4 5 "]);
    check(3, None, 5, &["asked small", "Rewound { to: 3 }", "3+3 3 4 5 "]);
    check(3, Some(&text(2)), 2, &["asked small", "2+1 2 ", "3+3 3 4 5 "]);
    // A text of a life before the last is the same or must be read again.
    check(2, Some(&text(2)), 2, &["asked small", "2+1 2 ", "3+3 3 4 5 "]);
    check(2, Some("other"), 2, &["asked small", "Rewound { to: 0 }", "0+3 0 1 2 ", "3+3 3 4 5 "]);
    check(2, None, 2, &["asked small", "Rewound { to: 0 }", "0+3 0 1 2 ", "3+3 3 4 5 "]);
    // Who knows neither life nor text has none that could differ.
    check(0, None, 3, &["asked small", "3+3 3 4 5 "]);
    check(0, None, 5, &["asked small", "Rewound { to: 3 }", "3+3 3 4 5 "]);
    check(0, Some("other"), 3, &["asked small", "Rewound { to: 0 }", "0+3 0 1 2 ", "3+3 3 4 5 "]);
}

#[test]
fn somebody_who_saw_more_than_ever_comes_is_rewound_at_the_end() {
    let (mut node, generation) = cut_off(1, 9);
    let reader = node.open(0, "ada", 1);
    let seen = Some(TextHash::of(text(9).as_bytes()));
    node.call(reader, ClientOp::Watch(WatchRequest { generation, from: 9, lead: 0, epoch: Epoch(3), seen }));
    produce(&mut node, generation, 1, 2);
    let (usage, message) = (Usage::default(), String::new());
    node.infer(InferenceEvent::Finished { generation, reason: FinishReason::Stop, usage, message });
    node.settle();
    assert_eq!(node.watched(reader), ["asked small", "Rewound { to: 1 }", "1+1 1 ", "stop 0."]);
    // In the life that wrote it, nobody can have seen what does not exist.
    let request = WatchRequest { generation, from: 9, lead: 0, epoch: Epoch(4), seen };
    assert_eq!(node.refusal(reader, ClientOp::Watch(request)), RejectCode::ParameterInvalid);
}

#[test]
fn a_generation_that_nobody_comes_back_to_ends() {
    let (mut node, generation) = cut_off(2, 2);
    node.commands();
    node.pass_ms(RESUME_GRACE_MS - 1);
    assert_eq!(node.commands(), []);
    node.pass_ms(1);
    assert_eq!(node.commands(), [InferenceCommand::Cancel { generation }]);
}

#[test]
fn a_generation_that_finds_no_room_at_once_goes_on_later() {
    let (mut node, generation) = cut_off(2, 2);
    node.commands();
    let reject = Reject::new(RejectCode::Busy, "too many").retry_after_ms(50);
    node.infer(InferenceEvent::Refused { generation, reject });
    node.pass_ms(49);
    assert_eq!(node.commands(), []);
    node.pass_ms(1);
    assert_eq!(submitted(&mut node).produced, [100, 101]);
    let reject = Reject::new(RejectCode::Busy, "still too many").retry_after_ms(50);
    node.infer(InferenceEvent::Refused { generation, reject });
    let client = node.open(0, "ada", 1);
    assert_eq!(node.call(client, ClientOp::Cancel { generation }), ServerOp::Done);
    node.pass_ms(1_000);
    assert_eq!((node.commands(), node.gauge("generations_running")), (Vec::new(), 0));
    node.call(client, watch(generation, 0, 0));
    assert_eq!(node.watched(client), ["asked small", "0+2 0 1 ", "cancelled 2."]);
}

#[test]
fn an_answer_in_a_channel_goes_on_without_a_gap_in_the_channel() {
    let mut node = Node::new(2);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    node.subscribe(bob, "room", From::Start);
    node.publish(ada, "room", 1, "@ai hello?");
    let generation = submitted(&mut node).generation;
    produce(&mut node, generation, 0, 3);
    node.pass_ms(100);
    node.late = true;
    produce(&mut node, generation, 3, 4);
    node.pass_ms(100);
    node.restart(1);
    assert_eq!(submitted(&mut node).produced, [100, 101, 102]);
    let bob = node.open(0, "bob", 2);
    node.subscribe(bob, "room", From::Start);
    produce(&mut node, generation, 3, 4);
    let (usage, message) = (Usage::default(), String::new());
    node.infer(InferenceEvent::Finished { generation, reason: FinishReason::Stop, usage, message });
    node.settle();
    let pieces = ["3 ai/small: 0 1 2 ", "4 ai/small: 3 ", "5 ai/small: 0 1 2 3 "];
    assert_eq!(node.heard(bob), [&["1 ada: @ai hello?", "2 ai/small: small"], &pieces[..]].concat());
}

#[test]
fn an_end_that_becomes_durable_between_turns_is_waiting_to_be_handed_out() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    let ServerOp::Asked { generation, .. } = node.call(client, ClientOp::Ask(Box::new(AskRequest::prompt("hi"))))
    else {
        panic!("not asked")
    };
    node.late = true;
    let (usage, message) = (Usage::default(), String::new());
    node.infer(InferenceEvent::Finished { generation, reason: FinishReason::Stop, usage, message });
    node.settle();
    assert!(!node.shards[0].has_gathered());
    node.feed(0, Input::Durable { ticket: crate::Ticket(2) });
    assert!(node.shards[0].has_gathered(), "or its shell would sleep on it");
    node.settle();
    assert!(!node.shards[0].has_gathered());
    assert_eq!(node.watched(client).last().map(String::as_str), Some("stop 0."));
}
