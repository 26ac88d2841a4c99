//! Models as editors.

use thalweg_protocol::chat::{ChatOp, MemberRole};
use thalweg_protocol::document::{AskInDocument, Place};
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::limits::{
    AWARENESS_TICK_MS, DOCUMENT_ASKS_MAX, DOCUMENT_CONTEXT_BYTES, DOCUMENT_REFRESH_MS, DOCUMENT_REFRESHES_MAX,
    LEAD_TOKENS,
};
use thalweg_protocol::reject::RejectCode;

use super::awareness::aware;
use super::*;
use crate::{InferenceCommand, InferenceEvent, Submit};

fn ask_op(instruction: &str, revision: u64, start: u32, end: u32) -> ClientOp {
    ClientOp::Document(DocumentOp::Ask(Box::new(AskInDocument {
        document: name("plan"),
        instruction: instruction.to_owned(),
        model: None,
        place: Place::Offsets { revision: Position(revision), start, end },
        max_tokens: 100,
        temperature: 0.0,
        seed: Some(7),
    })))
}

/// A document with this text, whose author has it open.
fn written(node: &mut Node, text: &str) -> Editor {
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(node);
    let edit = ada.insert(0, text);
    node.call(ada.client, edit);
    ada
}

fn asked(node: &mut Node, client: Client, op: ClientOp) -> GenerationId {
    match node.call(client, op) {
        ServerOp::Asked { generation, model } => {
            assert_eq!(model, "small");
            generation
        }
        other => panic!("expected a generation, got {other:?}"),
    }
}

/// What the inference stage was asked to compute since the last call, and which generations to end.
fn commands(node: &mut Node) -> (Vec<Submit>, Vec<GenerationId>) {
    let (mut submits, mut cancels) = (Vec::new(), Vec::new());
    for command in node.commands() {
        match command {
            InferenceCommand::Submit(submit) => submits.push(*submit),
            InferenceCommand::Cancel { generation } => cancels.push(generation),
            InferenceCommand::Credit { .. } => {}
        }
    }
    (submits, cancels)
}

fn submitted(node: &mut Node) -> Submit {
    let (mut submits, cancels) = commands(node);
    assert_eq!((submits.len(), cancels.len()), (1, 0));
    submits.remove(0)
}

fn token(node: &mut Node, generation: GenerationId, index: u32, text: &str) {
    let text = Bytes::copy_from_slice(text.as_bytes());
    node.infer(InferenceEvent::Token { generation, index, id: 100 + index, text, detail: None });
}

/// Tokens, each in its own record.
fn tokens(node: &mut Node, generation: GenerationId, from: u32, texts: &[&str]) {
    for (at, text) in texts.iter().enumerate() {
        token(node, generation, from + at as u32, text);
        node.pass_ms(50);
    }
}

fn finish(node: &mut Node, generation: GenerationId, reason: FinishReason) {
    let usage = Usage { prompt_tokens: 5, completion_tokens: 9, ..Usage::default() };
    node.infer(InferenceEvent::Finished { generation, reason, usage, message: String::new() });
    node.settle();
}

#[test]
fn a_model_writes_where_its_place_is_whatever_others_do() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let mut ada = written(&mut node, "one three");
        let mut bob = Editor::new(node.open(cores - 1, "bob", 2), "plan", 2);
        bob.open(&mut node);
        let generation = asked(&mut node, bob.client, ask_op("the number between", 1, 4, 4));
        let submit = submitted(&mut node);
        assert_eq!((submit.generation, submit.sampling.seed, submit.sampling.max_tokens), (generation, 7, 100));
        let told = &submit.messages[1].content;
        assert!(told.contains("one ") && told.contains("three") && told.contains("the number between"), "{told}");
        tokens(&mut node, generation, 0, &["tw"]);
        assert_eq!(text_now(&mut node, ada.client, "plan"), "one twthree");
        ada.hear(&mut node);
        // Before its place, right behind it, and far behind.
        for (at, text) in [(0, "zero "), (11, "<"), (17, " four")] {
            let edit = ada.insert(at, text);
            node.call(ada.client, edit);
        }
        tokens(&mut node, generation, 1, &["o", " "]);
        finish(&mut node, generation, FinishReason::Stop);
        assert_eq!(text_now(&mut node, ada.client, "plan"), "zero one two <three four");
        ada.hear(&mut node);
        bob.hear(&mut node);
        assert_eq!((ada.copy.text(), bob.copy.text()), (bob.copy.text(), "zero one two <three four".into()));
        assert_eq!(node.gauge("generations_running"), 0);
    }
}

#[test]
fn what_a_model_writes_says_which_generation_it_is_of() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "one");
    let bob = node.open(0, "bob", 2);
    open_with(&mut node, bob, "plan", DocumentForm::Updates, Bytes::new());
    node.document_frames(bob);
    let generation = asked(&mut node, ada.client, ask_op("go on", 0, 3, 3));
    tokens(&mut node, generation, 0, &[" two", "", " three"]);
    let by = |(_, op, _)| match op {
        ServerOp::Delivery(delivery) => Some((delivery.user.to_string(), delivery.generation)),
        _ => None,
    };
    let deliveries: Vec<_> = node.document_frames(bob).into_iter().filter_map(by).collect();
    assert_eq!(deliveries, vec![("ai/small".to_owned(), Some(generation)); 2]);
    let in_log = node.records.iter().filter(|record| {
        matches!(&record.event, thalweg_domain::record::Event::GenerationTokens { posting: Some(_), .. })
    });
    assert_eq!(in_log.count(), 2, "tokens and their text are one record");
}

#[test]
fn the_first_token_is_written_at_once_and_the_others_are_gathered() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "");
    let generation = asked(&mut node, ada.client, ask_op("write", 0, 0, 0));
    token(&mut node, generation, 0, "a");
    node.pass_ms(0);
    assert_eq!(text_now(&mut node, ada.client, "plan"), "a");
    for index in 1..20 {
        token(&mut node, generation, index, "b");
        node.pass_ms(2);
    }
    assert_eq!(text_now(&mut node, ada.client, "plan"), "a");
    node.pass_ms(20);
    assert_eq!(text_now(&mut node, ada.client, "plan"), format!("a{}", "b".repeat(19)));
    token(&mut node, generation, 20, "c");
    finish(&mut node, generation, FinishReason::Length);
    assert!(text_now(&mut node, ada.client, "plan").ends_with("bc"), "the end brings the rest");
}

#[test]
fn a_selection_goes_when_the_first_token_comes() {
    let mut node = Node::new(1);
    let mut ada = written(&mut node, "keep old text keep");
    let generation = asked(&mut node, ada.client, ask_op("shorter", 1, 5, 13));
    assert!(submitted(&mut node).messages[1].content.contains("old text"));
    // Somebody types at both ends of it and within it.
    for (at, text) in [(5, "<"), (9, "!"), (15, ">")] {
        let edit = ada.insert(at, text);
        node.call(ada.client, edit);
    }
    assert_eq!(text_now(&mut node, ada.client, "plan"), "keep <old! text> keep");
    tokens(&mut node, generation, 0, &["new", "er"]);
    assert_eq!(text_now(&mut node, ada.client, "plan"), "keep <newer> keep");
    ada.hear(&mut node);
    assert_eq!(ada.copy.text(), "keep <newer> keep");
    // One that is stopped before it begins leaves it.
    let generation = asked(&mut node, ada.client, ask_op("shorter", 0, 0, 4));
    commands(&mut node);
    assert_eq!(node.call(ada.client, ClientOp::Cancel { generation }), ServerOp::Done);
    assert_eq!(commands(&mut node).1, [generation]);
    finish(&mut node, generation, FinishReason::Cancelled);
    assert_eq!(text_now(&mut node, ada.client, "plan"), "keep <newer> keep");
}

#[test]
fn a_place_of_an_older_revision_is_found_in_the_newest() {
    let mut node = Node::new(1);
    let thin = node.open(0, "thin", 1);
    open_with(&mut node, thin, "plan", DocumentForm::Operations, Bytes::new());
    node.call(thin, operations("plan", 1, 0, &Operations::new().insert("one two three")));
    node.call(thin, operations("plan", 2, 1, &Operations::new().insert("zero ")));
    node.call(thin, operations("plan", 3, 2, &Operations::new().retain(12).insert("!")));
    let generation = asked(&mut node, thin, ask_op("other", 1, 4, 7));
    tokens(&mut node, generation, 0, &["2"]);
    assert_eq!(text_now(&mut node, thin, "plan"), "zero one 2! three");
    assert_eq!(node.refusal(thin, ask_op("x", 99, 0, 0)), RejectCode::RevisionUnknown);
    assert_eq!(node.refusal(thin, ask_op("x", 0, 99, 99)), RejectCode::ParameterInvalid);
}

#[test]
fn several_models_write_at_once_but_not_many() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "a\nb\nc\nd\n");
    let at = |n: usize| 1 + 2 * n as u32;
    let asks: Vec<_> =
        (0..DOCUMENT_ASKS_MAX).map(|n| asked(&mut node, ada.client, ask_op("more", 1, at(n), at(n)))).collect();
    assert_eq!(node.refusal(ada.client, ask_op("more", 0, 0, 0)), RejectCode::Busy);
    for round in 0..3 {
        for (n, generation) in asks.iter().enumerate() {
            tokens(&mut node, *generation, round, &[&n.to_string()]);
        }
    }
    assert_eq!(text_now(&mut node, ada.client, "plan"), "a000\nb111\nc222\nd333\n");
    finish(&mut node, asks[0], FinishReason::Stop);
    asked(&mut node, ada.client, ask_op("more", 0, 0, 0));
}

#[test]
fn a_model_begins_anew_when_the_text_around_it_is_another() {
    let mut node = Node::new(1);
    let mut ada = written(&mut node, "The sky is . The end.");
    let generation = asked(&mut node, ada.client, ask_op("complete", 1, 11, 11));
    submitted(&mut node);
    tokens(&mut node, generation, 0, &["very", " "]);
    node.pass_ms(DOCUMENT_REFRESH_MS * 2);
    assert_eq!(commands(&mut node).0.len(), 0, "what it writes itself changes nothing");
    ada.hear(&mut node);
    let edit = ada.edit(Operations::new().retain(4).insert("sea").delete(3));
    node.call(ada.client, edit);
    node.pass_ms(DOCUMENT_REFRESH_MS / 2);
    let edit = ada.insert(0, ">");
    node.call(ada.client, edit);
    node.pass_ms(DOCUMENT_REFRESH_MS - 1);
    assert_eq!(commands(&mut node).0.len(), 0, "not while somebody types");
    node.pass_ms(1);
    let (submits, cancels) = commands(&mut node);
    assert_eq!((submits.len(), cancels), (1, vec![generation]));
    let again = &submits[0];
    assert_eq!(again.produced, [100, 101], "it goes on behind what it wrote");
    let told = &again.messages[1].content;
    assert!(told.contains(">The sea is \n") && told.contains("\n. The end.") && !told.contains("very"), "{told}");
    // The attempt before is not heard.
    token(&mut node, generation, 2, "grey");
    finish(&mut node, generation, FinishReason::Cancelled);
    assert_eq!(node.gauge("generations_running"), 1);
    tokens(&mut node, again.generation, 2, &["deep"]);
    finish(&mut node, again.generation, FinishReason::Stop);
    assert_eq!(text_now(&mut node, ada.client, "plan"), ">The sea is very deep. The end.");
    assert_eq!((node.gauge("generations_running"), counted(&node, |c| c.document_refreshes)), (0, 1));
}

#[test]
fn a_model_that_was_stopped_does_not_begin_anew() {
    let mut node = Node::new(1);
    let mut ada = written(&mut node, "The sky is .");
    let generation = asked(&mut node, ada.client, ask_op("complete", 1, 11, 11));
    submitted(&mut node);
    tokens(&mut node, generation, 0, &["very"]);
    ada.hear(&mut node);
    let edit = ada.insert(0, ">");
    node.call(ada.client, edit);
    node.pass_ms(DOCUMENT_REFRESH_MS - 1);
    assert_eq!(node.call(ada.client, ClientOp::Cancel { generation }), ServerOp::Done);
    node.pass_ms(1);
    let (submits, cancels) = commands(&mut node);
    assert_eq!((submits.len(), cancels), (0, vec![generation]));
    finish(&mut node, generation, FinishReason::Cancelled);
    assert_eq!(node.gauge("generations_running"), 0);
    assert_eq!(text_now(&mut node, ada.client, "plan"), ">The sky is very.");
}

#[test]
fn a_model_for_which_there_is_no_room_when_it_begins_anew_waits() {
    let mut node = Node::new(1);
    let mut ada = written(&mut node, "The sky is .");
    let generation = asked(&mut node, ada.client, ask_op("complete", 1, 11, 11));
    submitted(&mut node);
    tokens(&mut node, generation, 0, &["very "]);
    ada.hear(&mut node);
    let edit = ada.insert(0, ">");
    node.call(ada.client, edit);
    node.pass_ms(DOCUMENT_REFRESH_MS);
    let again = commands(&mut node).0.remove(0);
    let reject = thalweg_protocol::reject::Reject::new(RejectCode::Busy, "full").retry_after_ms(20);
    node.infer(InferenceEvent::Refused { generation: again.generation, reject });
    assert_eq!(node.gauge("generations_running"), 1);
    node.pass_ms(20);
    let later = submitted(&mut node);
    assert_eq!((later.generation, later.produced), (again.generation, vec![100]));
    tokens(&mut node, later.generation, 1, &["blue"]);
    finish(&mut node, later.generation, FinishReason::Stop);
    assert_eq!(text_now(&mut node, ada.client, "plan"), ">The sky is very blue.");
}

#[test]
fn a_model_begins_anew_only_so_often() {
    let mut node = Node::new(1);
    let mut ada = written(&mut node, "x");
    let generation = asked(&mut node, ada.client, ask_op("write", 1, 1, 1));
    let mut submits = 0;
    for _ in 0..DOCUMENT_REFRESHES_MAX + 3 {
        let edit = ada.insert(0, "y");
        node.call(ada.client, edit);
        node.pass_ms(DOCUMENT_REFRESH_MS);
        submits += commands(&mut node).0.len() as u32;
    }
    assert_eq!(submits, 1 + DOCUMENT_REFRESHES_MAX);
    // Stopping means the newest attempt, and is meant by the first id.
    node.call(ada.client, ClientOp::Cancel { generation });
    let cancelled = commands(&mut node).1;
    assert_eq!(cancelled.len(), 1);
    finish(&mut node, cancelled[0], FinishReason::Cancelled);
    assert_eq!(node.gauge("generations_running"), 0);
}

#[test]
fn who_asks_must_be_allowed_to_write_and_to_ask() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "text");
    let mut check = |permissions: &[&str], expected: Option<RejectCode>| {
        let client = node.open_as(0, "acme", "eve", 9, permissions);
        let refused = match node.call(client, ask_op("x", 0, 0, 0)) {
            ServerOp::Reject(reject) => Some(reject.code),
            ServerOp::Asked { .. } => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused, expected, "{permissions:?}");
        node.close(client);
    };
    check(&["read:*", "ask:*"], Some(RejectCode::Forbidden));
    check(&["read:*", "comment:*", "ask:*"], Some(RejectCode::Forbidden));
    check(&["read:*", "write:*"], Some(RejectCode::Forbidden));
    check(&["read:*", "write:*", "ask:small"], None);
    let role = ChatOp::SetMember { channel: name("plan"), user: name("bob"), role: Some(MemberRole::Reader) };
    node.call(ada.client, ClientOp::Chat(role));
    let bob = node.open(0, "bob", 3);
    assert_eq!(node.refusal(bob, ask_op("x", 0, 0, 0)), RejectCode::Forbidden);
    for (op, code) in [
        (ask_op("  ", 0, 0, 0), RejectCode::ParameterInvalid),
        (ask_op(&"x".repeat(5 << 10), 0, 0, 0), RejectCode::ParameterInvalid),
    ] {
        assert_eq!(node.refusal(ada.client, op), code);
    }
    let long = "y".repeat(DOCUMENT_CONTEXT_BYTES + 1);
    let mut ada = ada;
    let edit = ada.insert(0, &long);
    node.call(ada.client, edit);
    let all = long.len() as u32;
    assert_eq!(node.refusal(ada.client, ask_op("shorter", 0, 0, all)), RejectCode::ParameterInvalid);
}

#[test]
fn the_log_sets_the_pace() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "");
    let generation = asked(&mut node, ada.client, ask_op("write", 0, 0, 0));
    assert_eq!(submitted(&mut node).credit, LEAD_TOKENS);
    let credits = |node: &mut Node| -> Vec<u32> {
        let until = |command| match command {
            InferenceCommand::Credit { until, .. } => Some(until),
            _ => None,
        };
        node.commands().into_iter().filter_map(until).collect()
    };
    node.late = true;
    tokens(&mut node, generation, 0, &["a", "b", "c"]);
    assert_eq!(credits(&mut node), [0_u32; 0], "the log has not taken them");
    node.commit();
    assert_eq!(credits(&mut node).last(), Some(&(3 + LEAD_TOKENS)));
}

#[test]
fn a_restart_ends_what_a_model_writes_and_keeps_what_it_wrote() {
    let mut node = Node::new(2);
    let ada = written(&mut node, "one");
    let generation = asked(&mut node, ada.client, ask_op("go on", 0, 3, 3));
    tokens(&mut node, generation, 0, &[" two"]);
    commands(&mut node);
    node.restart(3);
    let ada = node.open(1, "ada", 2);
    assert_eq!(commands(&mut node).0.len(), 0);
    assert_eq!(node.gauge("generations_running"), 0);
    assert_eq!(text_now(&mut node, ada, "plan"), "one two");
    let request = node.request(ada, super::super::harness::watch(generation, 0, 0));
    assert!(matches!(node.reply(request), Some(ServerOp::Asked { .. })));
    assert_eq!(node.watched(ada).last().map(String::as_str), Some("failed 1."));
}

#[test]
fn a_document_that_is_deleted_stops_those_who_write_in_it() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "one");
    let generation = asked(&mut node, ada.client, ask_op("go on", 0, 3, 3));
    tokens(&mut node, generation, 0, &[" two"]);
    commands(&mut node);
    let admin = node.open_as(0, "acme", "root", 9, &["read:*", "admin:*"]);
    node.call(admin, ClientOp::DeleteChannel { channel: name("plan") });
    assert_eq!(commands(&mut node).1, [generation]);
    tokens(&mut node, generation, 1, &[" three"]);
    finish(&mut node, generation, FinishReason::Cancelled);
    assert_eq!((node.gauge("generations_running"), node.gauge("document_editors")), (0, 0));
    // One of the same name is another one.
    let mut again = Editor::new(node.open(0, "ada", 3), "plan", 3);
    assert!(again.open(&mut node).made);
    assert_eq!(text_now(&mut node, again.client, "plan"), "");
}

#[test]
fn others_see_a_model_come_move_and_go() {
    let mut node = Node::new(2);
    let ada = written(&mut node, "one");
    let bob = node.open(1, "bob", 2);
    open_with(&mut node, bob, "plan", DocumentForm::Updates, Bytes::new());
    node.document_frames(bob);
    let generation = asked(&mut node, ada.client, ask_op("go on", 0, 0, 3));
    node.pass_ms(AWARENESS_TICK_MS);
    let came = aware(&mut node, bob);
    assert_eq!(came.len(), 1);
    assert!(came[0].contains("\"name\":\"ai/small\"") && came[0].contains("\"cursor\""), "{came:?}");
    let number: u64 = came[0].split('@').next().and_then(|number| number.parse().ok()).expect("a number");
    assert!((1 << 52..1 << 53).contains(&number));
    tokens(&mut node, generation, 0, &["two"]);
    node.pass_ms(AWARENESS_TICK_MS);
    let moved = aware(&mut node, bob);
    assert!(moved.len() == 1 && moved[0].starts_with(&format!("{number}@2 ")), "{moved:?}");
    assert_ne!(came[0].split_once(' ').map(|(_, state)| state), moved[0].split_once(' ').map(|(_, state)| state));
    finish(&mut node, generation, FinishReason::Stop);
    node.pass_ms(AWARENESS_TICK_MS);
    assert_eq!(aware(&mut node, bob), [format!("{number}@2 -")]);
}

#[test]
fn a_line_that_speaks_to_a_model_is_answered_below_it() {
    let mut node = Node::new(1);
    let mut ada = written(&mut node, "above\n@ai write a line\nbelow");
    assert_eq!(commands(&mut node).0.len(), 0, "a text that is pasted asks nobody");
    let edit = ada.edit(Operations::new().retain(6).insert("@ai and another").delete(16));
    node.call(ada.client, edit);
    assert_eq!(commands(&mut node).0.len(), 0, "the line was not ended");
    let edit = ada.insert(21, "\n");
    node.call(ada.client, edit);
    let submit = submitted(&mut node);
    assert!(submit.messages[1].content.ends_with("Instruction: and another"), "{:?}", submit.messages);
    tokens(&mut node, submit.generation, 0, &["An", " answer."]);
    finish(&mut node, submit.generation, FinishReason::Stop);
    assert_eq!(text_now(&mut node, ada.client, "plan"), "above\n@ai and another\nAn answer.\n\nbelow");
    assert_eq!(commands(&mut node).0.len(), 0, "what a model writes asks nobody");
    // Thin clients speak to models in the same way; who may not ask is not answered.
    let thin = node.open(0, "thin", 5);
    let line = Operations::new().insert("@ai hello\n");
    node.call(thin, operations("notes", 1, 0, &line));
    assert_eq!(commands(&mut node).0.len(), 1);
    let quiet = node.open_as(0, "acme", "quiet", 6, &["read:*", "write:*"]);
    node.call(quiet, operations("notes", 1, 0, &line));
    assert_eq!(commands(&mut node).0.len(), 0);
}

#[test]
fn a_document_stays_in_memory_while_a_model_writes_in_it() {
    let mut node = Node::new(1);
    let ada = written(&mut node, "one");
    let generation = asked(&mut node, ada.client, ask_op("go on", 0, 3, 3));
    node.close(ada.client);
    node.pass_ms(600_000);
    assert_eq!(node.gauge("documents_open"), 1);
    tokens(&mut node, generation, 0, &[" two"]);
    finish(&mut node, generation, FinishReason::Stop);
    node.pass_ms(600_000);
    assert_eq!((node.gauge("documents_open"), node.gauge("generations_kept")), (0, 0));
    let eve = node.open(0, "eve", 2);
    assert_eq!(text_now(&mut node, eve, "plan"), "one two");
}
