//! Which model a question goes to, as models come, fail and go.

use std::sync::Arc;

use thalweg_domain::routing::{Health, Routes};
use thalweg_protocol::generation::AskRequest;
use thalweg_protocol::op::{ClientOp, DeliveryKind, From, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Client, Node, card, name};
use crate::{InferenceCommand, Input};

fn ask(model: &str) -> ClientOp {
    let mut request = AskRequest::prompt("hi");
    request.model = Some(model).filter(|model| !model.is_empty()).map(name);
    ClientOp::Ask(Box::new(request))
}

fn set(node: &mut Node, cards: &[(&str, Health, Option<&str>)]) {
    let cards = cards.iter().map(|(model, health, fallback)| {
        let (health, fallback) = (*health, fallback.map(name));
        thalweg_domain::routing::ModelCard { health, fallback, ..card(model, "fast") }
    });
    let routes = Arc::new(Routes { cards: cards.collect(), default: None });
    for core in 0..node.shards.len() as u16 {
        node.feed(core, Input::Routes(Arc::clone(&routes)));
    }
}

/// Who was asked, or why nobody was.
fn asked(node: &mut Node, client: Client, model: &str) -> String {
    let answer = node.call(client, ask(model));
    let submitted: Vec<_> = node.commands().into_iter().collect();
    match (answer, &submitted[..]) {
        (ServerOp::Asked { model, .. }, [InferenceCommand::Submit(submit)]) => {
            assert_eq!(model, submit.model.as_str());
            model
        }
        (ServerOp::Reject(reject), []) => reject.code.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn questions_follow_the_routes() {
    let mut node = Node::new(2);
    let client = node.open(0, "ada", 1);
    let down = Health::Down { retry_ms: 700 };
    let mut check = |cards: &[(&str, Health, Option<&str>)], model: &str, expected: &[&str]| {
        set(&mut node, cards);
        for expected in expected {
            assert_eq!(&asked(&mut node, client, model), expected, "{cards:?} {model}");
        }
    };
    check(&[("a", Health::Up, None), ("b", Health::Up, None)], "fast", &["a", "b", "a", "b"]);
    check(&[("a", Health::Up, None), ("b", Health::Up, None)], "auto", &["a", "b", "a"]);
    check(&[("a", down, None), ("b", Health::Up, None)], "fast", &["b", "b"]);
    check(&[("a", down, None), ("b", Health::Up, None)], "a", &["busy"]);
    check(&[("a", down, Some("b")), ("b", Health::Up, None)], "a", &["b"]);
    check(&[("b", Health::Up, None)], "a", &["model_unknown"]);
    check(&[], "", &["model_unknown"]);
    check(&[("a", Health::Up, None)], "", &["a"]);
    // One try each, even if the routes are told again for another reason.
    let trying = Health::Trying { attempt: 1 };
    check(&[("a", trying, Some("b")), ("b", Health::Up, None)], "a", &["a", "b", "b"]);
    check(&[("a", trying, Some("b")), ("b", Health::Up, None), ("c", Health::Up, None)], "a", &["b"]);
    check(&[("a", Health::Trying { attempt: 2 }, Some("b")), ("b", Health::Up, None)], "a", &["a", "b"]);
    check(&[("a", Health::Up, Some("b")), ("b", Health::Up, None)], "a", &["a", "a"]);
    let routed = node.shards[0].routed();
    assert_eq!(routed.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["a", "b"], "what is gone is forgotten");
    assert_eq!(routed.values().flatten().sum::<u64>(), 9, "since there was none at all");
}

#[test]
fn a_refused_question_leaves_no_watch_behind() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    for _ in 0..2_000 {
        assert_eq!(asked(&mut node, client, "nobody"), "model_unknown");
    }
    assert_eq!(asked(&mut node, client, "small"), "small");
}

#[test]
fn a_class_is_asked_for_with_what_the_token_allows() {
    let mut node = Node::new(1);
    let cards = [("a", Health::Up, None), ("b", Health::Up, None)];
    set(&mut node, &cards);
    let client = node.open_as(0, "acme", "ada", 1, &["ask:b"]);
    for model in ["fast", "auto", "b"] {
        assert_eq!(asked(&mut node, client, model), "b", "{model}");
    }
    let refused = node.call(client, ask("a"));
    assert!(matches!(&refused, ServerOp::Reject(reject) if reject.code == RejectCode::Forbidden), "{refused:?}");
    let nobody = node.open_as(0, "acme", "bob", 2, &["read:*"]);
    assert_eq!(asked(&mut node, nobody, "fast"), "forbidden");
}

#[test]
fn a_channel_hears_that_nobody_answers() {
    let mut node = Node::new(2);
    let (writer, reader) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    node.subscribe(reader, "general", From::End);
    set(&mut node, &[("a", Health::Down { retry_ms: 9 }, Some("b")), ("b", Health::Up, None)]);
    node.publish(writer, "general", 1, "@ai who are you?");
    let commands = node.commands();
    assert!(matches!(&commands[..], [InferenceCommand::Submit(submit)] if submit.model == name("b")), "{commands:?}");
    set(&mut node, &[("a", Health::Down { retry_ms: 9 }, None)]);
    node.deliveries(reader);
    node.publish(writer, "general", 2, "@ai and now?");
    assert_eq!(node.commands(), []);
    let heard: Vec<_> = node.deliveries(reader).into_iter().map(|(_, op)| op).collect();
    let kind = |op: &ServerOp| if let ServerOp::Delivery(delivery) = op { Some(delivery.kind) } else { None };
    assert_eq!(
        heard.iter().filter_map(kind).collect::<Vec<_>>(),
        [DeliveryKind::Message, DeliveryKind::GenerationStarted, DeliveryKind::GenerationEnded]
    );
    assert_eq!(node.gauge("generations_running"), 1, "only the first");
}
