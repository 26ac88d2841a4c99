//! Generations: tokens in, frames out, credit back.

use thalweg_protocol::generation::{AskRequest, ChatMessage, FinishReason, OnDetach, Role, Usage};
use thalweg_protocol::ids::{GenerationId, Watch};
use thalweg_protocol::limits::{GENERATION_KEEP_MS, LEAD_TOKENS};
use thalweg_protocol::op::{ClientOp, DeliveryKind, From, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::harness::{Client, Node, name, publish, watch};
use crate::{InferenceCommand, InferenceEvent, Submit};

fn ask_with(change: impl FnOnce(&mut AskRequest)) -> ClientOp {
    let mut request = AskRequest::prompt("hi");
    change(&mut request);
    ClientOp::Ask(Box::new(request))
}

fn lead(lead: u32) -> ClientOp {
    ask_with(|request| request.lead = lead)
}

/// Asks, and gives the generation with the asker's watch.
fn ask(node: &mut Node, client: Client, op: ClientOp) -> (GenerationId, Watch) {
    let request = node.request(client, op);
    match node.reply(request) {
        Some(ServerOp::Asked { generation, .. }) => (generation, Watch(request.0)),
        other => panic!("expected a generation, got {other:?}"),
    }
}

/// The stage produces the tokens `from..to`, each its own index and a space, in one turn.
fn tokens(node: &mut Node, generation: GenerationId, from: u32, to: u32) {
    for index in from..to {
        let (id, text, detail) = (100 + index, format!("{index} ").into(), None);
        node.infer(InferenceEvent::Token { generation, index, id, text, detail });
    }
    node.settle();
}

fn finish(node: &mut Node, generation: GenerationId, reason: FinishReason, message: &str) {
    let usage = Usage { prompt_tokens: 5, completion_tokens: 9, ..Usage::default() };
    node.infer(InferenceEvent::Finished { generation, reason, usage, message: message.to_owned() });
    node.settle();
}

fn taken(node: &mut Node, client: Client, watch: Watch, index: u32) {
    node.request(client, ClientOp::TokensConsumed { watch, index });
}

fn submits(node: &mut Node) -> Vec<Submit> {
    let submit = |command| if let InferenceCommand::Submit(submit) = command { Some(*submit) } else { None };
    node.commands().into_iter().filter_map(submit).collect()
}

fn credits(node: &mut Node) -> Vec<u32> {
    let credit = |command| if let InferenceCommand::Credit { until, .. } = command { Some(until) } else { None };
    node.commands().into_iter().filter_map(credit).collect()
}

fn cancels(node: &mut Node) -> Vec<GenerationId> {
    let cancel = |command| match command {
        InferenceCommand::Cancel { generation } => Some(generation),
        _ => None,
    };
    node.commands().into_iter().filter_map(cancel).collect()
}

#[test]
fn a_question_is_submitted_at_once_and_answered_when_durable() {
    // Sessions of which some are owned by the core they are on, and some by the other.
    for session in 1..=4 {
        let mut node = Node::new(2);
        let client = node.open(0, "ada", session);
        node.late = true;
        let request = node.request(client, lead(7));
        let submits = submits(&mut node);
        let [submit] = &submits[..] else { panic!("one generation, not {submits:?}") };
        assert_eq!((submit.tenant.as_str(), submit.model.as_str(), submit.credit), ("acme", "small", 7));
        assert_eq!(submit.messages, [ChatMessage { role: Role::User, content: "hi".to_owned() }]);
        let generation = submit.generation;
        tokens(&mut node, generation, 0, 2);
        assert_eq!((node.reply(request), node.watched(client)), (None, vec![]), "session {session}: not durable yet");
        node.commit();
        let model = "small".to_owned();
        assert_eq!(node.reply(request), Some(ServerOp::Asked { generation, model }));
        assert_eq!(node.watched(client), ["asked small", "0+2 0 1 "]);
        tokens(&mut node, generation, 2, 5);
        tokens(&mut node, generation, 5, 6);
        assert_eq!(node.watched(client), ["2+3 2 3 4 ", "5+1 5 "], "gathered over a turn");
        finish(&mut node, generation, FinishReason::Stop, "");
        assert!(node.watched(client).is_empty(), "session {session}: its end is not durable yet");
        node.commit();
        assert_eq!(node.watched(client), ["stop 9."]);
        assert_eq!(node.gauge("generations_running"), 0);
    }
}

#[test]
fn a_question_is_checked() {
    let check = |permissions: &[&str], change: &dyn Fn(&mut AskRequest), expected: Option<RejectCode>| {
        let mut node = Node::new(2);
        let client = node.open_as(0, "acme", "ada", 1, permissions);
        let reply = node.call(client, ask_with(change));
        let code = if let ServerOp::Reject(reject) = &reply { Some(reject.code) } else { None };
        assert_eq!(code, expected, "{permissions:?}: {reply:?}");
        assert_eq!(submits(&mut node).len(), usize::from(expected.is_none()));
    };
    check(&["ask:*"], &|_| {}, None);
    check(&["ask:*"], &|request| request.model = Some(name("large")), None);
    check(&["ask:small"], &|request| request.model = Some(name("large")), Some(RejectCode::Forbidden));
    check(&["read:*", "write:*"], &|_| {}, Some(RejectCode::Forbidden));
    check(&["ask:*"], &|request| request.model = Some(name("huge")), Some(RejectCode::ModelUnknown));
    check(&["ask:*"], &|request| request.messages.clear(), Some(RejectCode::ParameterInvalid));
}

#[test]
fn the_same_question_has_a_seed_of_its_own_or_the_askers() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    let seeded = || ask_with(|request| (request.has_seed, request.sampling.seed) = (true, 42));
    for op in [seeded(), seeded(), lead(0), lead(0)] {
        ask(&mut node, client, op);
    }
    let seeds: Vec<_> = submits(&mut node).iter().map(|submit| submit.sampling.seed).collect();
    assert_eq!(seeds[..2], [42, 42]);
    assert_ne!(seeds[2], seeds[3]);
}

#[test]
fn credit_follows_what_the_watcher_consumed() {
    for session in 1..=4 {
        let mut node = Node::new(2);
        let client = node.open(0, "ada", session);
        let (generation, watch) = ask(&mut node, client, lead(4));
        node.commands();
        tokens(&mut node, generation, 0, 4);
        assert_eq!(credits(&mut node), [0_u32; 0], "a stalled watcher gives no credit");
        taken(&mut node, client, watch, 3);
        assert_eq!(credits(&mut node), [7]);
        taken(&mut node, client, watch, 2);
        assert_eq!(credits(&mut node), [0_u32; 0], "credit is not given twice");
        taken(&mut node, client, watch, 1_000);
        assert_eq!(credits(&mut node), [8], "nobody consumes what was not sent");
        taken(&mut node, client, Watch(999), 8);
        assert_eq!(credits(&mut node), [0_u32; 0], "there is no such watch");
    }
}

#[test]
fn the_fastest_watcher_sets_the_pace_and_the_others_lose_nothing() {
    let mut node = Node::new(3);
    let (slow, fast) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    let (generation, slow_watch) = ask(&mut node, slow, lead(2));
    let (_, fast_watch) = ask(&mut node, fast, watch(generation, 0, 4));
    assert_eq!(credits(&mut node), [4]);
    for to in [4, 8, 12] {
        tokens(&mut node, generation, to - 4, to);
        taken(&mut node, fast, fast_watch, to);
        assert_eq!(credits(&mut node), [to + 4]);
    }
    finish(&mut node, generation, FinishReason::Length, "");
    assert_eq!(node.watched(fast), ["asked small", "0+4 0 1 2 3 ", "4+4 4 5 6 7 ", "8+4 8 9 10 11 ", "length 9."]);
    assert_eq!(node.watched(slow), ["asked small", "0+2 0 1 "]);
    let mut lines = Vec::new();
    for index in (2..=12).step_by(2) {
        taken(&mut node, slow, slow_watch, index);
        lines.extend(node.watched(slow));
    }
    assert_eq!(lines, ["2+2 2 3 ", "4+2 4 5 ", "6+2 6 7 ", "8+2 8 9 ", "10+2 10 11 ", "length 9."]);
}

#[test]
fn a_generation_can_be_read_from_any_token_on() {
    // Five tokens, then three more, then the end.
    let check = |core: u16, from: u32, expected: &[&str]| {
        let mut node = Node::new(2);
        let asker = node.open(0, "ada", 1);
        let (generation, _) = ask(&mut node, asker, lead(0));
        tokens(&mut node, generation, 0, 5);
        let late = node.open(core, "ada", 2);
        ask(&mut node, late, watch(generation, from, 0));
        tokens(&mut node, generation, 5, 8);
        finish(&mut node, generation, FinishReason::Stop, "");
        assert_eq!(node.watched(late), expected, "from {from} on core {core}");
        // After its end it can still be read, for as long as it is kept.
        let after = node.open(core, "ada", 3);
        ask(&mut node, after, watch(generation, from, 0));
        let all: Vec<_> = (from..8).map(|index| format!("{index} ")).collect();
        let all = format!("{from}+{} {}", 8 - from, all.concat());
        assert_eq!(node.watched(after), ["asked small", &all, "stop 9."], "from {from} on core {core}");
        node.pass_ms(GENERATION_KEEP_MS);
        assert_eq!(node.refusal(after, watch(generation, from, 0)), RejectCode::GenerationUnknown);
        assert_eq!(node.gauge("generations_kept"), 0);
    };
    for core in 0..2 {
        check(core, 0, &["asked small", "0+5 0 1 2 3 4 ", "5+3 5 6 7 ", "stop 9."]);
        check(core, 3, &["asked small", "3+2 3 4 ", "5+3 5 6 7 ", "stop 9."]);
        check(core, 5, &["asked small", "5+3 5 6 7 ", "stop 9."]);
    }
}

#[test]
fn a_watch_is_checked() {
    let mut node = Node::new(2);
    let asker = node.open(0, "ada", 1);
    let (generation, _) = ask(&mut node, asker, lead(0));
    tokens(&mut node, generation, 0, 5);
    let stranger = node.open_as(1, "globex", "ada", 2, &["ask:*", "admin:*"]);
    let silent = node.open_as(1, "acme", "bob", 3, &["read:*", "write:*"]);
    let check = |node: &mut Node, client: Client, id: GenerationId, from: u32, expected: RejectCode| {
        assert_eq!(node.refusal(client, watch(id, from, 0)), expected, "{id} from {from}");
    };
    check(&mut node, asker, generation, 6, RejectCode::ParameterInvalid);
    check(&mut node, asker, GenerationId(generation.0 + 1), 0, RejectCode::GenerationUnknown);
    check(&mut node, asker, GenerationId(u64::MAX), 0, RejectCode::GenerationUnknown);
    check(&mut node, stranger, generation, 0, RejectCode::GenerationUnknown);
    check(&mut node, silent, generation, 0, RejectCode::Forbidden);
    let cancel = |generation| ClientOp::Cancel { generation };
    assert_eq!(node.refusal(asker, cancel(GenerationId(u64::MAX))), RejectCode::GenerationUnknown);
    assert_eq!(node.refusal(stranger, cancel(generation)), RejectCode::GenerationUnknown);
    assert_eq!(node.refusal(silent, cancel(generation)), RejectCode::Forbidden);
    assert_eq!(cancels(&mut node), []);
}

#[test]
fn those_who_may_cancel_a_generation() {
    let check = |user: &str, permissions: &[&str], expected: bool| {
        let mut node = Node::new(2);
        let asker = node.open(0, "ada", 1);
        let (generation, _) = ask(&mut node, asker, lead(0));
        let client = node.open_as(1, "acme", user, 2, permissions);
        let reply = node.call(client, ClientOp::Cancel { generation });
        assert_eq!(reply == ServerOp::Done, expected, "{user}, {permissions:?}: {reply:?}");
        assert_eq!(cancels(&mut node).len(), usize::from(expected));
        finish(&mut node, generation, FinishReason::Cancelled, "");
        assert_eq!(node.watched(asker), ["asked small", "cancelled 9."]);
        // What has ended need not be ended again.
        assert_eq!(node.call(asker, ClientOp::Cancel { generation }), ServerOp::Done);
        assert_eq!(cancels(&mut node), []);
    };
    check("ada", &[], true);
    check("bob", &["admin:*"], true);
    check("bob", &["ask:*", "read:*", "write:*"], false);
}

#[test]
fn a_generation_that_is_refused_ends_with_the_reason() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    node.late = true;
    node.request(client, lead(0));
    let generation = submits(&mut node)[0].generation;
    let reject = Reject::new(RejectCode::PromptTooLong, "too long");
    node.infer(InferenceEvent::Refused { generation, reject });
    node.settle();
    assert!(node.watched(client).is_empty());
    node.commit();
    assert_eq!(node.watched(client), ["asked small", "ended prompt_too_long."]);
    assert_eq!(node.gauge("generations_running"), 0);
}

#[test]
fn a_generation_without_readers_is_cancelled_or_kept_as_asked() {
    // What the last reader does, after how long another comes, and whether that finds it running.
    let check = |on_detach: OnDetach, closes: bool, back_ms: Option<u64>, cancelled: bool| {
        let case = format!("{on_detach:?}, closes: {closes}, back after {back_ms:?}");
        let mut node = Node::new(2);
        let client = node.open(0, "ada", 1);
        let (generation, first) = ask(&mut node, client, ask_with(|request| request.on_detach = on_detach));
        node.commands();
        if closes {
            node.close(client);
        } else {
            assert_eq!(node.call(client, ClientOp::Unwatch { watch: first }), ServerOp::Done);
        }
        if let Some(ms) = back_ms {
            node.pass_ms(ms);
            let back = node.open(1, "ada", 1);
            ask(&mut node, back, watch(generation, 0, 0));
        }
        node.pass_ms(1_000);
        assert_eq!(cancels(&mut node).len(), usize::from(cancelled), "{case}");
    };
    for closes in [false, true] {
        check(OnDetach::Cancel, closes, None, true);
        check(OnDetach::Keep(500), closes, None, true);
        check(OnDetach::Keep(500), closes, Some(499), false);
        check(OnDetach::Keep(500), closes, Some(500), true);
        check(OnDetach::Keep(2_000), closes, None, false);
    }
}

#[test]
fn a_generation_lives_while_one_reader_is_left() {
    let mut node = Node::new(2);
    let (asker, other) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    let (generation, _) = ask(&mut node, asker, lead(0));
    let (_, second) = ask(&mut node, other, watch(generation, 0, 0));
    node.close(asker);
    assert_eq!(cancels(&mut node), []);
    tokens(&mut node, generation, 0, 1);
    assert_eq!(node.watched(other), ["asked small", "0+1 0 "]);
    node.request(other, ClientOp::Unwatch { watch: second });
    assert_eq!(cancels(&mut node), [generation]);
    tokens(&mut node, generation, 1, 2);
    assert!(node.watched(other).is_empty(), "it has left");
}

/// The entries of a channel as a reader got them: kind and line.
fn heard(node: &mut Node, reader: Client) -> Vec<(DeliveryKind, String, String)> {
    let entry = |(_, op)| match op {
        ServerOp::Delivery(d) => (d.kind, d.user.to_string(), String::from_utf8_lossy(&d.body).into_owned()),
        other => panic!("expected deliveries only, got {other:?}"),
    };
    node.deliveries(reader).into_iter().map(entry).collect()
}

fn entry(kind: DeliveryKind, user: &str, body: &str) -> (DeliveryKind, String, String) {
    (kind, user.to_owned(), body.to_owned())
}

#[test]
fn a_model_answers_in_a_channel() {
    for core in 0..2 {
        let mut node = Node::new(2);
        let channel = node.channel_on(core, 0);
        let (writer, reader) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
        node.subscribe(reader, &channel, From::End);
        node.publish(writer, &channel, 1, "good morning");
        node.publish(writer, &channel, 2, "@ai who are you?");
        let asked = submits(&mut node);
        let [submit] = &asked[..] else { panic!("one generation, not {asked:?}") };
        let lines: Vec<_> = submit.messages.iter().map(|line| (line.role, line.content.as_str())).collect();
        assert_eq!(lines, [(Role::User, "ada: good morning"), (Role::User, "ada: who are you?")]);
        assert_eq!((submit.model.as_str(), submit.credit), ("small", LEAD_TOKENS));
        tokens(&mut node, submit.generation, 0, 1);
        node.pass_ms(0);
        tokens(&mut node, submit.generation, 1, 4);
        node.pass_ms(20);
        finish(&mut node, submit.generation, FinishReason::Stop, "");
        let expected = [
            entry(DeliveryKind::Message, "ada", "good morning"),
            entry(DeliveryKind::Message, "ada", "@ai who are you?"),
            entry(DeliveryKind::GenerationStarted, "ai/small", "small"),
            entry(DeliveryKind::Tokens, "ai/small", "0 "),
            entry(DeliveryKind::Tokens, "ai/small", "1 2 3 "),
            entry(DeliveryKind::Message, "ai/small", "0 1 2 3 "),
        ];
        assert_eq!(heard(&mut node, reader), expected, "owner {core}");
        assert_eq!(node.gauge("generations_running"), 0);
        node.publish(writer, &channel, 3, "@ai go on");
        let lines: Vec<_> = submits(&mut node)[0].messages.iter().map(|line| line.role).collect();
        assert_eq!(lines, [Role::User, Role::User, Role::Assistant, Role::User], "it knows what it said");
    }
}

#[test]
fn a_generation_in_a_channel_is_paced_by_the_log() {
    let mut node = Node::new(1);
    let writer = node.open(0, "ada", 1);
    node.publish(writer, "room", 1, "@ai hi");
    let generation = submits(&mut node)[0].generation;
    node.late = true;
    tokens(&mut node, generation, 0, 10);
    node.pass_ms(0);
    assert_eq!(credits(&mut node), [0_u32; 0], "the log has not taken them");
    node.commit();
    assert_eq!(credits(&mut node), [10 + LEAD_TOKENS]);
    tokens(&mut node, generation, 10, 12);
    node.pass_ms(19);
    node.commit();
    assert_eq!(credits(&mut node), [0_u32; 0], "gathered for 20 ms");
    node.pass_ms(1);
    node.commit();
    assert_eq!(credits(&mut node), [12 + LEAD_TOKENS]);
}

#[test]
fn who_may_call_watch_and_cancel_a_model_in_a_channel() {
    let mut node = Node::new(2);
    let mute = node.open_as(0, "acme", "eve", 9, &["read:*", "write:*"]);
    node.publish(mute, "room", 1, "@ai hi");
    assert!(submits(&mut node).is_empty(), "a writer who may not ask says it to the people only");
    let (writer, reader) = (node.open(0, "ada", 1), node.open_as(1, "acme", "bob", 2, &["read:room"]));
    node.publish(writer, "room", 1, "@ai hi");
    let generation = submits(&mut node)[0].generation;
    let (_, left) = ask(&mut node, reader, watch(generation, 0, 0));
    tokens(&mut node, generation, 0, 2);
    assert_eq!(node.watched(reader), ["asked small", "0+2 0 1 "]);
    node.request(reader, ClientOp::Unwatch { watch: left });
    assert_eq!(cancels(&mut node), [], "a channel is its reader");
    let cancel = || ClientOp::Cancel { generation };
    assert_eq!(node.refusal(reader, cancel()), RejectCode::Forbidden);
    let outsider = node.open_as(1, "acme", "joe", 3, &["read:other", "ask:*"]);
    assert_eq!(node.refusal(outsider, watch(generation, 0, 0)), RejectCode::Forbidden);
    assert_eq!(node.call(mute, cancel()), ServerOp::Done, "whoever may write there may stop it");
    assert_eq!(cancels(&mut node), [generation]);
}

#[test]
fn an_answer_in_a_channel_that_fails_says_so() {
    let check = |event: &dyn Fn(GenerationId) -> InferenceEvent, expected: &str| {
        let mut node = Node::new(2);
        let (writer, reader) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
        node.publish(writer, "room", 1, "@ai hi");
        let generation = submits(&mut node)[0].generation;
        node.subscribe(reader, "room", From::End);
        node.infer(event(generation));
        node.settle();
        assert_eq!(heard(&mut node, reader), [entry(DeliveryKind::GenerationEnded, "ai/small", expected)]);
        assert!(node.shards.iter().all(crate::Shard::is_idle));
    };
    let ended = |reason: FinishReason, message: &'static str| {
        move |generation| {
            let usage = Usage::default();
            InferenceEvent::Finished { generation, reason, usage, message: message.to_owned() }
        }
    };
    check(&ended(FinishReason::Cancelled, ""), "cancelled");
    check(&ended(FinishReason::Failed, "out of memory"), "out of memory");
    let busy = |generation| InferenceEvent::Refused { generation, reject: Reject::new(RejectCode::Busy, "later") };
    check(&busy, "later (busy)");
}

#[test]
fn only_words_to_the_model_call_it() {
    let mut node = Node::new(1);
    let writer = node.open(0, "ada", 1);
    for (sequence, (body, expected)) in (1..).zip([("hello", 0), ("@ai", 0), ("hi @ai there", 0), ("@ai there", 1)]) {
        let reply = node.call(writer, publish("room", sequence, body));
        assert!(matches!(reply, ServerOp::Published { .. }));
        assert_eq!(submits(&mut node).len(), expected, "{body:?}");
    }
}
