//! What sessions, users and tenants may do and have: refused in time, exactly on one core, soon enough on several.

use std::sync::Arc;

use proptest::prelude::*;
use thalweg_domain::quota::{Allowance, Limits, Rate, TenantLimits};
use thalweg_protocol::chat::{ChatOp, ProfileText};
use thalweg_protocol::generation::{AskRequest, FinishReason, Usage};
use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::harness::{Client, Node, create, name, publish, retry};
use crate::{InferenceCommand, InferenceEvent, Input, Resource};

/// Longer than what was done on a core takes to be told and what follows from it to be heard.
const TOLD_MS: u64 = 60;

const FIVE: Rate = Rate { per_second: 1, burst: 5 };

fn messages(rate: Rate) -> Allowance {
    Allowance { messages: Some(rate), ..Allowance::default() }
}

fn of_session(session: Allowance) -> TenantLimits {
    TenantLimits { session, ..TenantLimits::default() }
}

fn of_user(user: Allowance) -> TenantLimits {
    TenantLimits { user, ..TenantLimits::default() }
}

fn of_tenant(tenant: Allowance) -> TenantLimits {
    TenantLimits { tenant, ..TenantLimits::default() }
}

/// Sets the limits of the default tenant on all cores.
fn limit(node: &mut Node, limits: TenantLimits) {
    let limits = Limits { default: TenantLimits::default(), tenants: [(name("acme"), limits)].into() };
    let limits = Arc::new(limits);
    for core in 0..node.shards.len() as u16 {
        node.feed(core, Input::Limits(Arc::clone(&limits)));
    }
    node.settle();
}

fn refused(node: &mut Node, client: Client, op: ClientOp) -> Option<Reject> {
    match node.call(client, op) {
        ServerOp::Reject(reject) => Some(reject),
        _ => None,
    }
}

fn limited(node: &Node, resource: Resource) -> u64 {
    node.shards.iter().map(|shard| shard.counters().limited[resource as usize]).sum()
}

#[test]
fn writes_are_limited_for_sessions_users_and_tenants() {
    // The sessions of ada, and one of bob; who of them is refused once ada's first session has used up what there is.
    let check = |limits: TenantLimits, other_session: bool, other_user: bool| {
        let mut node = Node::new(1);
        limit(&mut node, limits);
        let clients = [("ada", 1), ("ada", 2), ("bob", 3)].map(|(user, session)| node.open(0, user, session));
        let stranger = node.open_as(0, "other", "ada", 4, &["write:*"]);
        for n in 1..=5 {
            assert_eq!(node.publish(clients[0], "room", n, "x"), n);
        }
        let reject = refused(&mut node, clients[0], publish("room", 6, "x")).expect("the burst is used up");
        assert_eq!(reject.code, RejectCode::RateLimited);
        let refused = |node: &mut Node, client, n| {
            let refusal = refused(node, client, publish("room", n, "x"));
            refusal.map(|reject| reject.code) == Some(RejectCode::RateLimited)
        };
        assert_eq!(refused(&mut node, clients[1], 1), other_session, "{limits:?}");
        assert_eq!(refused(&mut node, clients[2], 1), other_user, "{limits:?}");
        assert!(!refused(&mut node, stranger, 1), "what one tenant does is nothing to another");
        // It says how long to wait, and that is true; the refused write is carried out under its own number then.
        node.pass_ms(u64::from(reject.retry_after_ms) - 1);
        assert!(refused(&mut node, clients[0], 6));
        node.pass_ms(1);
        assert!(!refused(&mut node, clients[0], 6), "{limits:?} after {} ms", reject.retry_after_ms);
    };
    check(of_session(messages(FIVE)), false, false);
    check(of_user(messages(FIVE)), true, false);
    check(of_tenant(messages(FIVE)), true, true);
}

#[test]
fn bytes_and_all_kinds_of_writes_count() {
    let mut node = Node::new(1);
    let bytes = Rate { per_second: 100, burst: 100 };
    limit(&mut node, of_user(Allowance { bytes: Some(bytes), ..Allowance::default() }));
    let ada = node.open(0, "ada", 1);
    assert_eq!(refused(&mut node, ada, publish("room", 1, &"x".repeat(250))), None, "the first may be large");
    let reject = refused(&mut node, ada, publish("room", 2, "x")).expect("but is paid for");
    assert!((1_500..=1_502).contains(&reject.retry_after_ms), "{reject:?}");
    let room = || name("room");
    let profile = ProfileText { status: "busy".into(), ..ProfileText::default() };
    for op in [
        create("new", 0, None),
        ClientOp::Chat(ChatOp::Join { channel: room() }),
        ClientOp::Chat(ChatOp::SetProfile(profile)),
        ClientOp::Chat(ChatOp::SetPresence { away: true }),
    ] {
        assert_eq!(node.refusal(ada, op), RejectCode::RateLimited);
    }
    for op in [
        ClientOp::Chat(ChatOp::AboutChannel { channel: room() }),
        ClientOp::Chat(ChatOp::GetProfile { user: name("ada") }),
    ] {
        assert_eq!(refused(&mut node, ada, op), None, "asking is not writing");
    }
    assert_eq!(limited(&node, Resource::Bytes), 5);
    let notes: Vec<_> = node.audited.iter().filter(|event| event.action == "limit").collect();
    assert_eq!(notes.len(), 1, "one note for all of them: {notes:?}");
    assert_eq!(notes[0].object, "bytes of the user ada");
}

#[test]
fn what_was_carried_out_is_answered_and_costs_nothing() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let channel = node.channel_on(0, 0);
        limit(&mut node, of_session(messages(FIVE)));
        let ada = node.open(1 % cores, "ada", 1);
        for n in 1..=4 {
            node.publish(ada, &channel, n, "x");
        }
        let again = |node: &mut Node, n| node.call(ada, retry(&channel, n, "x"));
        for n in [1, 2, 3, 4, 4, 4, 4] {
            let reply = again(&mut node, n);
            assert!(matches!(reply, ServerOp::Published { duplicate: true, .. }), "{n}: {reply:?}");
        }
        node.publish(ada, &channel, 5, "the last of the burst");
        let reply = again(&mut node, 5);
        assert!(matches!(reply, ServerOp::Published { duplicate: true, .. }), "though nothing is left: {reply:?}");
        let ServerOp::Reject(reject) = again(&mut node, 6) else { panic!("what is new is refused") };
        assert_eq!(reject.code, RejectCode::RateLimited);
        node.pass_ms(reject.retry_after_ms.into());
        let reply = again(&mut node, 6);
        assert!(matches!(reply, ServerOp::Published { duplicate: false, .. }), "the refusal left no trace: {reply:?}");
        assert_eq!(limited(&node, Resource::Messages), 1);
    }
}

#[test]
fn a_user_of_several_cores_is_limited_soon() {
    let mut node = Node::new(3);
    limit(&mut node, of_user(messages(FIVE)));
    let clients = [0, 1, 2].map(|core| node.open(core, "ada", 1 + u128::from(core)));
    let bob = node.open(1, "bob", 9);
    let mut accepted = 0;
    for n in 1..=100 {
        for client in clients {
            accepted += u64::from(refused(&mut node, client, publish("room", n, "x")).is_none());
        }
        node.pass_ms(10);
    }
    // Within one report each core lets through what comes: here five writes, then all of it has to be paid for.
    assert!((5..=5 + 3 * 6).contains(&accepted), "{accepted} of 300 in a second");
    assert_eq!(refused(&mut node, bob, publish("room", 1, "x")), None);
    for client in clients {
        let reject = refused(&mut node, client, publish("room", 200, "x")).expect("everywhere");
        assert!(reject.retry_after_ms > 0);
    }
    node.pass_ms(30_000);
    for client in clients {
        assert_eq!(refused(&mut node, client, publish("room", 201, "x")), None, "what was overdrawn is paid");
    }
}

#[test]
fn other_limits_hold_at_once() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let bytes = Rate { per_second: 1, burst: 1 };
        limit(&mut node, of_tenant(Allowance { bytes: Some(bytes), ..Allowance::default() }));
        let clients: Vec<_> = (0..cores).map(|core| node.open(core, "ada", 1 + u128::from(core))).collect();
        for &client in &clients {
            node.call(client, publish("room", 1, "which is paid for over many seconds"));
            node.pass_ms(TOLD_MS);
        }
        for &client in &clients {
            assert_eq!(node.refusal(client, publish("room", 2, "x")), RejectCode::RateLimited);
        }
        limit(&mut node, TenantLimits::default());
        for &client in &clients {
            assert_eq!(refused(&mut node, client, publish("room", 2, "x")), None, "{cores} cores");
        }
    }
}

fn ask() -> ClientOp {
    ClientOp::Ask(Box::new(AskRequest::prompt("hi")))
}

/// Answers the question that was asked last, with so many tokens.
fn answer(node: &mut Node, tokens: u32) {
    let submitted = node.commands().into_iter().find_map(|command| match command {
        InferenceCommand::Submit(submit) => Some(submit.generation),
        _ => None,
    });
    let generation: GenerationId = submitted.expect("a question");
    for index in 0..tokens {
        node.infer(InferenceEvent::Token { generation, index, id: 7, text: "x".into(), detail: None });
    }
    let usage = Usage { prompt_tokens: 1, completion_tokens: tokens, ..Usage::default() };
    let (reason, message) = (FinishReason::Stop, String::new());
    node.infer(InferenceEvent::Finished { generation, reason, usage, message });
    node.settle();
}

#[test]
fn tokens_are_limited_for_those_who_ask() {
    let tokens = Allowance { tokens_per_minute: Some(60), ..Allowance::default() };
    for limits in [of_session(tokens), of_user(tokens), of_tenant(tokens)] {
        for cores in [1, 3] {
            let mut node = Node::new(cores);
            limit(&mut node, limits);
            let ada = node.open(1 % cores, "ada", 1);
            assert_eq!(refused(&mut node, ada, ask()), None);
            answer(&mut node, 50);
            node.pass_ms(TOLD_MS);
            assert_eq!(refused(&mut node, ada, ask()), None, "ten are left");
            answer(&mut node, 40);
            node.pass_ms(TOLD_MS);
            let reject = refused(&mut node, ada, ask()).expect("thirty too many");
            assert_eq!(reject.code, RejectCode::RateLimited);
            assert!((29_000..=30_002).contains(&reject.retry_after_ms), "{reject:?}, {limits:?}, {cores} cores");
            let embeds = node.shards[usize::from(ada.core)].may_embed(ada.link, &name("minilm"));
            assert_eq!(embeds.map_err(|reject| reject.code), Err(RejectCode::RateLimited), "embeddings cost the same");
            let stranger = node.open_as(0, "other", "ada", 1, &["ask:*"]);
            assert_eq!(refused(&mut node, stranger, ask()), None);
            answer(&mut node, 1);
            node.pass_ms(u64::from(reject.retry_after_ms) + 1);
            assert_eq!(refused(&mut node, ada, ask()), None);
        }
    }
}

#[test]
fn answers_in_channels_are_paid_for_by_who_spoke_to_the_model() {
    let tokens = Allowance { tokens_per_minute: Some(60), ..Allowance::default() };
    let mut node = Node::new(1);
    limit(&mut node, of_user(tokens));
    let (ada, bob) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    node.publish(ada, "room", 1, "@ai hello");
    answer(&mut node, 61);
    assert_eq!(node.refusal(ada, ask()), RejectCode::RateLimited);
    node.call(ada, publish("room", 2, "@ai are you there?"));
    assert!(node.commands().iter().all(|command| !matches!(command, InferenceCommand::Submit(_))), "it is not");
    node.call(bob, publish("room", 1, "@ai and for me?"));
    answer(&mut node, 1);
}

#[test]
fn connections_are_limited_and_the_newest_goes() {
    let two = Allowance { connections: Some(2), ..Allowance::default() };
    for (limits, for_bob) in [(of_user(two), false), (of_tenant(two), true)] {
        for cores in [1, 3] {
            let mut node = Node::new(cores);
            limit(&mut node, limits);
            let first = node.open(0, "ada", 1);
            node.open(1 % cores, "ada", 2);
            node.settle();
            assert_eq!(node.closed(), []);
            let third = node.open(2 % cores, "ada", 3);
            node.settle();
            assert_eq!(node.closed(), [(third, RejectCode::QuotaExceeded)], "{cores} cores");
            let bob = node.open(0, "bob", 4);
            node.settle();
            assert_eq!(node.closed().is_empty(), !for_bob);
            node.close(bob);
            node.open_as(0, "other", "ada", 5, &[]);
            node.close(first);
            node.open(2 % cores, "ada", 6);
            node.settle();
            assert_eq!(node.closed(), [], "there is room again");
            // The same session over a new connection is no connection more.
            node.open(2 % cores, "ada", 6);
            node.settle();
            assert!(node.closed().iter().all(|(_, code)| *code == RejectCode::SessionTakenOver));
        }
    }
}

#[test]
fn channels_of_a_tenant_are_limited() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let three = Allowance { channels: Some(3), ..Allowance::default() };
        limit(&mut node, of_tenant(three));
        let everything = &["read:*", "write:*", "admin:*"];
        let ada = node.open_as(0, "acme", "ada", 1, everything);
        let channels: Vec<_> = (0..4).map(|n| node.channel_on(n % cores, usize::from(n))).collect();
        for channel in &channels[..3] {
            assert_eq!(refused(&mut node, ada, create(channel, 0, None)), None);
        }
        let one_more = |node: &mut Node, client| {
            let made = [create(&channels[3], 0, None), publish(&channels[3], 1, "x")];
            made.map(|op| refused(node, client, op).map(|reject| reject.code))
        };
        assert_eq!(one_more(&mut node, ada), [Some(RejectCode::QuotaExceeded); 2], "{cores} cores");
        let stranger = node.open_as(0, "other", "eve", 2, everything);
        assert_eq!(one_more(&mut node, stranger), [None; 2]);
        // Who is limited after a restart, with more cores, has as many.
        node.restart(cores + 1);
        limit(&mut node, of_tenant(three));
        let ada = node.open_as(0, "acme", "ada", 3, everything);
        assert_eq!(one_more(&mut node, ada), [Some(RejectCode::QuotaExceeded); 2], "after a restart");
        let delete = ClientOp::DeleteChannel { channel: name(&channels[0]) };
        assert_eq!(node.call(ada, delete), ServerOp::Done);
        assert_eq!(one_more(&mut node, ada), [None; 2], "one was given up");
        let four = Allowance { channels: Some(4), ..Allowance::default() };
        assert_eq!(node.refusal(ada, create(&channels[0], 0, None)), RejectCode::QuotaExceeded);
        limit(&mut node, of_tenant(four));
        assert_eq!(refused(&mut node, ada, create(&channels[0], 0, None)), None, "other limits hold at once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whoever writes how fast from wherever: a tenant gets what it may, no more than its cores let through before they
    /// tell each other, and nobody else notices.
    #[test]
    fn a_tenant_gets_what_it_may(
        cores in prop_oneof![Just(1_u16), Just(3)],
        (per_second, burst) in (1..20_u64, 1..20_u64),
        acts in prop::collection::vec((0..3_usize, 0..40_u64), 1..200),
    ) {
        let mut node = Node::in_memory(cores);
        node.quiet = true;
        limit(&mut node, of_tenant(messages(Rate { per_second, burst })));
        let clients: Vec<_> = (0..3_u16).map(|n| node.open(n % cores, &format!("u{n}"), 1 + u128::from(n))).collect();
        let stranger = node.open_as(0, "other", "eve", 9, &["write:*"]);
        let (began_us, mut accepted) = (node.now.mono_us, 0);
        for (n, (client, ms)) in acts.into_iter().enumerate() {
            let sequence = 1 + n as u64;
            match refused(&mut node, clients[client], publish("room", sequence, "x")) {
                None => accepted += 1,
                Some(reject) => {
                    prop_assert_eq!(reject.code, RejectCode::RateLimited);
                    prop_assert!(reject.retry_after_ms > 0);
                }
            }
            prop_assert_eq!(refused(&mut node, stranger, publish("room", sequence, "x")), None);
            let passed_us = node.now.mono_us - began_us;
            let may = burst + (passed_us * per_second).div_ceil(1_000_000);
            // On one core the limit is exact; on three, two may each let through what comes between two reports.
            let overshoot = if cores == 1 { 0 } else { sequence.min(200) };
            prop_assert!(accepted <= may + overshoot, "{} of {}", accepted, may);
            node.pass_ms(ms);
        }
        // Once what was overdrawn is paid, there is a full burst again, and not more.
        node.pass_ms(TOLD_MS);
        node.pass_ms(1_000 * (burst + 400));
        for n in 0..burst {
            prop_assert_eq!(refused(&mut node, clients[0], publish("room", 1_000 + n, "x")), None);
        }
        node.pass_ms(if cores == 1 { 0 } else { TOLD_MS });
        if cores == 1 {
            prop_assert!(refused(&mut node, clients[0], publish("room", 5_000, "x")).is_some());
        }
    }
}

#[test]
fn embeddings_are_paid_for_like_answers() {
    let tokens = Allowance { tokens_per_minute: Some(60), ..Allowance::default() };
    for limits in [of_session(tokens), of_user(tokens), of_tenant(tokens)] {
        let mut node = Node::new(1);
        limit(&mut node, limits);
        let ada = node.open(0, "ada", 1);
        let minilm = name("minilm");
        assert_eq!(node.shards[0].may_embed(ada.link, &minilm), Ok(()));
        node.shards[0].embedded(ada.link, 90);
        let refused = node.shards[0].may_embed(ada.link, &minilm).map_err(|reject| reject.code);
        assert_eq!(refused, Err(RejectCode::RateLimited), "{limits:?}");
    }
}
