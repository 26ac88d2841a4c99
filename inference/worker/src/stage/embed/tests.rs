//! The queue of texts to embed, with an encoder of made-up weights; and beside a real language model.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor, safetensors};
use thalweg_protocol::generation::{ChatMessage, FinishReason, Priority, Role, Sampling};
use thalweg_protocol::ids::GenerationId;
use thalweg_ring::{Bell, Consumer, ring};

use super::super::thread::{Port, Told};
use super::super::{Command, Loaded, LoadedModel, Submit, start_loaded};
use super::*;
use crate::testing::model_path;

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2, "c": 3}, "unk_token": "[UNK]"}}"#;

/// An encoder of one layer, in a directory that goes with it.
fn made_up(test: &str) -> LoadedEncoder {
    let directory = std::env::temp_dir().join(format!("thalweg-embed-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (width, hidden) = (384_usize, 384_usize);
    let mut tensors = HashMap::new();
    let mut put = |name: &str, dims: &[usize], center: f32| {
        let count: usize = dims.iter().product();
        let values = (0..count).map(|n| center + ((n * 7919 + name.len() * 31) % 1009) as f32 / 5045.0 - 0.1);
        let tensor = Tensor::from_vec(values.collect::<Vec<f32>>(), dims, &Device::Cpu).expect("a tensor");
        tensors.insert(name.to_owned(), tensor);
    };
    put("embeddings.word_embeddings.weight", &[4, width], 0.0);
    put("embeddings.position_embeddings.weight", &[256, width], 0.0);
    put("embeddings.token_type_embeddings.weight", &[1, width], 0.0);
    for (part, outputs, inputs) in [
        ("attention.self.query", width, width),
        ("attention.self.key", width, width),
        ("attention.self.value", width, width),
        ("attention.output.dense", width, width),
        ("intermediate.dense", hidden, width),
        ("output.dense", width, hidden),
    ] {
        put(&format!("encoder.layer.0.{part}.weight"), &[outputs, inputs], 0.0);
        put(&format!("encoder.layer.0.{part}.bias"), &[outputs], 0.0);
    }
    for norm in ["embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"] {
        put(&format!("{norm}.LayerNorm.weight"), &[width], 1.0);
        put(&format!("{norm}.LayerNorm.bias"), &[width], 0.0);
    }
    let path: PathBuf = directory.join("model.safetensors");
    safetensors::save(&tensors, &path).expect("written");
    std::fs::write(directory.join(crate::embed::TOKENIZER_FILE), TOKENIZER).expect("written");
    let loaded = LoadedEncoder::load(&ModelSource { name: name("made-up"), path }).expect("loads");
    std::fs::remove_dir_all(directory).expect("removed");
    loaded
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// An embedder with one core that asks it.
struct Desk {
    embedder: Embedder,
    ports: Ports,
    events: Consumer<Told>,
    stats: ThreadStats,
}

impl Desk {
    fn new(models: Vec<LoadedEncoder>) -> Self {
        let (_, inbox) = ring(4);
        let (outbox, events) = ring(2 * EMBED_JOBS_MAX);
        let port = Port::new(inbox, outbox, Bell::new().expect("an eventfd"));
        Self { embedder: Embedder::new(models), ports: Ports::new(vec![port]), events, stats: ThreadStats::default() }
    }

    fn submit(&mut self, job: u64, model: Option<&str>, texts: Vec<String>) {
        let embed = Embed { job, model: model.map(name), texts, submitted: Instant::now() };
        self.embedder.submit(0, embed, &[&name("chats")], &mut self.ports, &mut self.stats);
    }

    /// One unit of work; what came of it.
    fn unit(&mut self) -> Option<(u64, Result<Embeddings, Reject>)> {
        self.embedder.advance(|| true, &mut self.ports, &mut self.stats);
        self.events.pop().map(|told| match told {
            Told::Event(Event::Embedded { job, result }) => (job, result),
            _ => panic!("that is no answer to texts"),
        })
    }
}

/// The time is looked at after each unit, and a unit is a small part of a text: that bounds how long others wait.
#[test]
fn work_is_cut_into_units_that_time_is_looked_at_between() {
    let model = made_up("units");
    let mut desk = Desk::new(vec![model.clone()]);
    let texts: Vec<String> = ["a b c ".repeat(80), "c".into(), "b a ".repeat(125)].into();
    desk.submit(7, None, texts.clone());
    let mut units = 0;
    let (job, result) = loop {
        units += 1;
        if let Some(answer) = desk.unit() {
            break answer;
        }
    };
    let got = result.expect("embedded");
    assert_eq!((job, got.dimensions, got.tokens), (7, 384, 240 + 1 + 250));
    // For each of two passes: rows twice by groups, and a head of a text at a time.
    assert!(units > 2 * 2 * 240 / crate::bert::UNIT_ROWS + 3 * 12, "{units} units");
    let mut encoder = Encoder::new(Arc::clone(model.encoder.bert()));
    for (text, got) in texts.iter().zip(got.vectors.chunks_exact(384)) {
        encoder.begin(&[&model.encoder.tokenise(text).expect("tokens")]);
        while encoder.advance() {}
        assert_eq!(encoder.vectors(), got, "as alone");
    }
    let mut looked = 0;
    desk.submit(8, None, texts);
    let five = || {
        looked += 1;
        looked == 5
    };
    desk.embedder.advance(five, &mut desk.ports, &mut desk.stats);
    assert_eq!(looked, 5, "it stops when time is up");
    assert!(desk.events.pop().is_none() && desk.embedder.len() == 1);
    assert_eq!((desk.stats.embed_jobs, desk.stats.embed_texts, desk.stats.embed_tokens), (2, 3, 491));
}

#[test]
fn a_question_does_not_wait_for_a_library() {
    let mut desk = Desk::new(vec![made_up("turns")]);
    desk.submit(1, None, vec!["a b ".repeat(100); 200]);
    desk.submit(2, None, vec!["c a b".into()]);
    let (job, result) = std::iter::repeat_with(|| desk.unit()).flatten().next().expect("an answer");
    assert_eq!((job, result.map(|made| made.tokens)), (2, Ok(3)));
    assert!(desk.stats.embed_texts < 10, "{} texts were first", desk.stats.embed_texts);
}

#[test]
fn what_cannot_be_embedded_is_refused_with_the_reason() {
    let model = made_up("refused");
    let check = |desk: &mut Desk, model: Option<&str>, texts: Vec<String>, code, says: &str| {
        desk.submit(3, model, texts);
        let (job, result) = std::iter::repeat_with(|| desk.unit()).flatten().next().expect("an answer");
        let reject = result.expect_err("refused");
        assert_eq!((job, reject.code), (3, code), "{reject}");
        assert!(reject.message.contains(says), "{reject}");
    };
    let one = || vec!["a".to_owned()];
    let mut none = Desk::new(Vec::new());
    check(&mut none, None, one(), RejectCode::EmbeddingsUnsupported, "models pull minilm-l6");
    let mut desk = Desk::new(vec![model]);
    check(&mut desk, Some("chats"), one(), RejectCode::EmbeddingsUnsupported, "made-up");
    check(&mut desk, Some("nonsense"), one(), RejectCode::ModelUnknown, "made-up");
    check(&mut desk, None, Vec::new(), RejectCode::ParameterInvalid, "1 to 256");
    check(&mut desk, None, vec!["a".into(); 257], RejectCode::ParameterInvalid, "1 to 256");
    check(
        &mut desk,
        None,
        vec!["a".into(), "b ".repeat(257)],
        RejectCode::PromptTooLong,
        "text 1: it has more than 256",
    );
    check(&mut desk, None, vec![" ".into()], RejectCode::ParameterInvalid, "text 0");
    assert_eq!(desk.embedder.len(), 0, "nothing is left of what was refused");
    for job in 0..EMBED_JOBS_MAX as u64 {
        desk.submit(1000 + job, None, one());
    }
    desk.submit(3, None, one());
    let busy = std::iter::repeat_with(|| desk.unit()).flatten().find(|(job, _)| *job == 3).expect("an answer");
    let reject = busy.1.expect_err("refused");
    assert!(reject.code == RejectCode::Busy && reject.retry_after_ms > 0, "{reject:?}");
}

#[test]
fn nothing_is_left_of_a_core_that_is_gone_or_of_an_end() {
    let mut desk = Desk::new(vec![made_up("gone")]);
    let begin = |desk: &mut Desk, job| {
        desk.submit(job, None, vec!["a b c".into(); 3]);
        (0..8).for_each(|_| assert!(desk.unit().is_none(), "the pass is under way"));
    };
    begin(&mut desk, 1);
    desk.embedder.forget(0);
    assert!((0..1000).all(|_| desk.unit().is_none()) && desk.embedder.len() == 0);
    begin(&mut desk, 2);
    let reject = Reject::new(RejectCode::Draining, "the end");
    desk.embedder.refuse_all(&reject, &mut desk.ports, &mut desk.stats);
    assert_eq!(desk.unit(), Some((2, Err(reject))));
    assert!((0..1000).all(|_| desk.unit().is_none()));
    begin(&mut desk, 3);
    let (job, result) = std::iter::repeat_with(|| desk.unit()).flatten().next().expect("an answer");
    assert!(job == 3 && result.is_ok(), "and it goes on");
}

/// A generation that comes after hundreds of pages ends long before they are embedded, and both do.
#[test]
fn a_language_model_is_not_held_back() {
    let chats = LoadedModel::load(&ModelSource { name: name("smollm2-135m"), path: model_path() }).expect("loads");
    let loaded = Loaded { models: vec![chats], encoders: vec![made_up("beside")] };
    let bell = Bell::new().expect("an eventfd");
    let started = start_loaded(loaded, 1, &[], 64, None, &[Arc::clone(&bell)]);
    let (mut stage, mut links) = started.expect("the stage starts");
    let kinds: Vec<_> = stage.models().iter().map(|info| (info.kind, info.dimensions)).collect();
    assert_eq!(kinds, [(ModelKind::Chat, 0), (ModelKind::Embedding, 384)]);
    let mut link = links.remove(0);
    assert_eq!(link.embedding_model(), Some(&name("made-up")));
    let texts = vec!["a b ".repeat(125); 256];
    let embed = Embed { job: 9, model: None, texts, submitted: Instant::now() };
    assert!(link.send(Command::Embed(Box::new(embed))).is_ok(), "there is room");
    let submit = Submit {
        generation: GenerationId(5),
        tenant: name("default"),
        model: None,
        messages: vec![ChatMessage { role: Role::User, content: "Name a river.".into() }],
        sampling: Sampling { temperature: 0.0, max_tokens: 6, ..Sampling::default() },
        raw: false,
        priority: Priority::Normal,
        deadline_ms: 0,
        produced: Vec::new(),
        credit: 100,
        submitted: Instant::now(),
        traced: false,
    };
    assert!(link.send(Command::Submit(Box::new(submit))).is_ok(), "there is room");
    let mut next = || loop {
        bell.prepare();
        match link.receive() {
            Some(event) => break event,
            None => bell.wait(Some(Duration::from_secs(60))),
        }
    };
    let reason = loop {
        match next() {
            Event::Finished { reason, .. } => break reason,
            Event::Embedded { .. } => panic!("the pages were first"),
            _ => {}
        }
    };
    assert!(matches!(reason, FinishReason::Length | FinishReason::Stop), "{reason:?}");
    stage.shutdown();
    match next() {
        Event::Embedded { job: 9, result: Err(reject) } => assert_eq!(reject.code, RejectCode::Draining),
        other => panic!("{other:?}"),
    }
}
