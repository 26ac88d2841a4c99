//! A node that is going away.

use thalweg_protocol::generation::{AskRequest, FinishReason, Usage};
use thalweg_protocol::limits::RECONNECT_DELAY_MS;
use thalweg_protocol::op::{ClientOp, From, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Node, create, publish};
use crate::{InferenceEvent, Input};

#[test]
fn a_draining_node_refuses_what_is_new_and_says_when_to_come_back() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    node.publish(client, "room", 1, "before");
    for core in 0..2 {
        node.feed(core, Input::Drain);
    }
    let create = create("new", 0, None);
    for op in [create, publish("room", 2, "after"), ClientOp::Ask(Box::new(AskRequest::prompt("hi")))] {
        let text = format!("{op:?}");
        let ServerOp::Reject(reject) = node.call(client, op) else { panic!("{text} was accepted") };
        assert_eq!((reject.code, reject.retry_after_ms), (RejectCode::Draining, RECONNECT_DELAY_MS), "{text}");
    }
    assert_eq!(node.gauge("generations_running"), 0);
}

#[test]
fn a_draining_node_finishes_what_was_begun() {
    let mut node = Node::new(1);
    let (client, reader) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    node.subscribe(reader, "room", From::End);
    assert!(node.shards[0].is_idle());
    node.late = true;
    let write = node.request(client, publish("room", 1, "begun"));
    let ask = node.request(client, ClientOp::Ask(Box::new(AskRequest::prompt("hi"))));
    node.feed(0, Input::Drain);
    node.settle();
    assert!(!node.shards[0].is_idle(), "a write and a generation are under way");
    node.late = false;
    node.settle();
    assert!(matches!(node.reply(write), Some(ServerOp::Published { .. })));
    let Some(ServerOp::Asked { generation, .. }) = node.reply(ask) else { panic!("it was asked before") };
    assert_eq!(node.heard(reader), ["1 ada: begun"]);
    assert!(!node.shards[0].is_idle(), "a generation is under way");
    let usage = Usage { prompt_tokens: 3, completion_tokens: 1, ..Usage::default() };
    node.infer(InferenceEvent::Token { generation, index: 0, id: 7, text: "hey".into(), detail: None });
    node.infer(InferenceEvent::Finished { generation, reason: FinishReason::Stop, usage, message: String::new() });
    node.settle();
    assert_eq!(node.watched(client), ["asked small", "0+1 hey", "stop 1."]);
    assert!(node.shards[0].is_idle());
}
