//! What a request says beside its conversation, likelihoods of tokens, and who may have texts embedded.

use thalweg_protocol::generation::{
    AskRequest, Constraint, FinishReason, OnDetach, Priority, Sampling, TokenDetail, Usage,
};
use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::limits::{TOKEN_DETAILS_KEPT, TOKEN_DETAILS_MAX};
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Client, Node, name, watch};
use crate::{InferenceCommand, InferenceEvent, Input, Submit};

fn ask_with(change: impl FnOnce(&mut AskRequest)) -> ClientOp {
    let mut request = AskRequest::prompt("hi");
    change(&mut request);
    ClientOp::Ask(Box::new(request))
}

fn asked(node: &mut Node, client: Client, op: ClientOp) -> GenerationId {
    match node.call(client, op) {
        ServerOp::Asked { generation, .. } => generation,
        other => panic!("expected a generation, got {other:?}"),
    }
}

/// The stage produces the tokens `from..to` in one turn, with details.
fn tokens(node: &mut Node, generation: GenerationId, from: u32, to: u32) {
    for index in from..to {
        let detail = TokenDetail { index, id: 7, text: "x".into(), logprob: -0.5, top: Vec::new() };
        let (id, text, detail) = (7, "x".into(), Some(Box::new(detail)));
        node.infer(InferenceEvent::Token { generation, index, id, text, detail });
    }
    node.settle();
}

fn submitted(node: &mut Node) -> Submit {
    let submit = |command| if let InferenceCommand::Submit(submit) = command { Some(*submit) } else { None };
    node.commands().into_iter().find_map(submit).expect("a submit")
}

fn full(request: &mut AskRequest) {
    request.sampling = Sampling {
        min_p: 0.05,
        repetition_penalty: 1.1,
        logit_bias: vec![(3, 1.0)],
        logprobs: Some(2),
        constraint: Constraint::Regex("a+".into()),
        ..Sampling::default()
    };
    (request.raw, request.priority, request.deadline_ms) = (true, Priority::High, 700);
    request.has_seed = true;
    request.on_detach = OnDetach::Keep(60_000);
}

#[test]
fn what_a_request_says_reaches_the_stage_also_after_a_restart() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    let generation = asked(&mut node, client, ask_with(full));
    let first = submitted(&mut node);
    let mut expected = AskRequest::prompt("hi");
    full(&mut expected);
    assert_eq!(first.sampling, expected.sampling);
    assert_eq!((first.raw, first.priority, first.deadline_ms), (true, Priority::High, 700));
    tokens(&mut node, generation, 0, 2);
    node.pass_ms(100);
    node.restart(1);
    let again = submitted(&mut node);
    assert_eq!((again.sampling, again.raw, again.priority), (first.sampling, true, Priority::High));
    assert_eq!((again.produced, again.deadline_ms), (vec![7, 7], 0), "it began in time");
}

#[test]
fn likelihoods_go_to_those_who_read_along() {
    let mut node = Node::new(1);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    let generation = asked(&mut node, ada, ask_with(full));
    tokens(&mut node, generation, 0, 2);
    assert_eq!(node.watched(ada), ["asked small", "0+2 xx~0~1"]);
    node.call(bob, watch(generation, 0, 3));
    assert_eq!(node.watched(bob), ["asked small", "0+2 xx"], "they are of the moment");
    tokens(&mut node, generation, 2, 5);
    assert_eq!(node.watched(ada), ["2+3 xxx~2~3~4"]);
    assert_eq!(node.watched(bob), ["2+1 x~2"], "as far as it has credit");
    let usage = Usage { prompt_tokens: 1, completion_tokens: 5, cached_tokens: 1 };
    let (reason, message) = (FinishReason::Stop, String::new());
    node.infer(InferenceEvent::Finished { generation, reason, usage, message });
    node.settle();
    assert_eq!(node.watched(ada), ["stop 5."]);
}

#[test]
fn a_frame_holds_so_many_likelihoods_and_a_generation_keeps_so_many() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    let request = |request: &mut AskRequest| {
        full(request);
        request.lead = 4_096;
    };
    node.late = true;
    node.request(ada, ask_with(request));
    let generation = submitted(&mut node).generation;
    let (most, kept) = (TOKEN_DETAILS_MAX as u32, TOKEN_DETAILS_KEPT as u32);
    tokens(&mut node, generation, 0, kept + 5);
    node.commit();
    let lines = node.watched(ada);
    assert_eq!(lines[0], "asked small");
    let counts: Vec<usize> = lines[1..].iter().map(|line| line.matches('~').count()).collect();
    assert_eq!(counts, [TOKEN_DETAILS_MAX - 5, TOKEN_DETAILS_MAX, TOKEN_DETAILS_MAX, TOKEN_DETAILS_MAX, 5]);
    assert!(lines[2].starts_with(&format!("{most}+{most} ")), "{}", lines[2]);
}

#[test]
fn who_may_have_texts_embedded() {
    let check = |permissions: &[&str], model: &str, expected: Result<(), RejectCode>| {
        let mut node = Node::new(1);
        let client = node.open_as(0, "acme", "ada", 1, permissions);
        let result = node.shards[0].may_embed(client.link, &name(model)).map_err(|reject| reject.code);
        assert_eq!(result, expected, "{permissions:?} {model}");
    };
    check(&["ask:*"], "minilm", Ok(()));
    check(&["ask:minilm"], "minilm", Ok(()));
    check(&["ask:small"], "minilm", Err(RejectCode::Forbidden));
    check(&["read:*"], "minilm", Err(RejectCode::Forbidden));
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    node.feed(0, Input::Drain);
    assert_eq!(node.shards[0].may_embed(client.link, &name("m")).map_err(|r| r.code), Err(RejectCode::Draining));
}
