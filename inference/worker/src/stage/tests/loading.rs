//! Models that come and go while others answer.

use super::*;

fn renamed(text: &str) -> LoadedModel {
    let mut model = loaded();
    model.info.name = name(text);
    model
}

impl Bench {
    fn ask(&mut self, id: u64, model: &str, change: impl FnOnce(&mut Submit)) {
        self.submit(id, "What color is the sky?", 10_000, |submit| {
            submit.model = Some(name(model));
            change(submit);
        });
    }
}

#[test]
fn a_model_is_loaded_while_another_answers_and_unloaded_while_it_does() {
    let mut bench = Bench::new(loaded(), 4096);
    let loader = bench.stage.loader();
    bench.ask(1, "second", |_| {});
    bench.until_ended([1]);
    assert_eq!(bench.seen[&1].refused.as_ref().expect("refused").code, RejectCode::ModelUnknown);

    // It is at its credit's end soon, and stays.
    bench.ask(2, "smollm2-135m", |submit| submit.credit = 4);
    bench.until(|seen| !seen[&2].texts.is_empty());
    let source = ModelSource { name: name("second"), path: model_path() };
    let info = loader.load(&source).expect("it loads");
    assert_eq!((info.name.as_str(), info.context_tokens), ("second", loaded().info.context_tokens));
    assert!(matches!(loader.load(&source), Err(StageError::Exists(_))), "a name twice");
    bench.ask(3, "second", |_| {});
    bench.until_ended([3]);
    assert!(bench.seen[&3].text().contains("sky"));
    assert!(!bench.seen[&2].ended(), "the other goes on");
    bench.ask(4, "smollm2-135m", |_| {});
    bench.until_ended([4]);
    assert_eq!(bench.seen[&4].text(), bench.seen[&3].text());

    // What runs may end by itself; what comes is refused.
    bench.ask(5, "second", |submit| submit.sampling.max_tokens = 40);
    bench.until(|seen| !seen[&5].texts.is_empty());
    let second = loader.clone();
    let unloading = std::thread::spawn(move || second.unload(&name("second"), Duration::from_secs(60)));
    let mut id = 100;
    loop {
        bench.ask(id, "second", |submit| submit.sampling.max_tokens = 1);
        bench.until_ended([id]);
        if let Some(reject) = &bench.seen[&id].refused {
            assert_eq!(reject.code, RejectCode::ModelUnknown);
            assert!(!reject.message.contains("there are: second"), "{reject}");
            break;
        }
        id += 1;
    }
    bench.until_ended([5]);
    assert!(matches!(bench.seen[&5].reason(), FinishReason::Stop | FinishReason::Length));
    let unloaded = unloading.join().expect("no panic").expect("it was there");
    assert_eq!(unloaded, Unloaded { ended: 0, blocks_used: 0 });
    assert!(matches!(loader.unload(&name("second"), Duration::ZERO), Err(StageError::Unknown(_))));

    // Without grace it ends at once, and says why. The last one may go as well.
    let unloaded = loader.unload(&name("smollm2-135m"), Duration::ZERO).expect("it was there");
    bench.until_ended([2]);
    let (reason, usage, message) = bench.seen[&2].finished.clone().expect("finished");
    assert_eq!((reason, unloaded), (FinishReason::Cancelled, Unloaded { ended: 1, blocks_used: 0 }));
    assert!(message.contains("unloaded") && usage.completion_tokens > 0, "{message}");
    bench.submit(6, "hi", 10, |_| {});
    bench.until_ended([6]);
    assert!(bench.seen[&6].refused.as_ref().expect("refused").message.contains("no model"));
    let counted = bench.stage.stats();
    assert_eq!((counted.blocks_total, counted.running), (0, 0));
    assert!(counted.finished >= 4 && counted.tokens > 20, "what was done stays counted");

    loader.load_from(renamed("third")).expect("there is room");
    bench.submit(7, "What color is the sky?", 100, |submit| submit.model = Some(name("third")));
    bench.until(|seen| seen[&7].refused.is_some() || !seen[&7].texts.is_empty());
    bench.until_ended([7]);
    assert_eq!(bench.seen[&7].text(), bench.seen[&3].text());
    let stats = bench.stats();
    assert_eq!((stats.blocks_used, stats.blocks_promised, stats.blocks_leaked, stats.panics), (0, 0, 0, 0));
    assert!(matches!(loader.unload(&name("third"), Duration::ZERO), Err(StageError::Ended)));
    assert!(matches!(loader.load_from(renamed("fourth")), Err(StageError::Ended)));
}

#[test]
fn what_is_no_model_changes_nothing() {
    let directory = std::env::temp_dir().join(format!("thalweg-loading-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let broken = directory.join("model.gguf");
    let whole = std::fs::read(model_path()).expect("the model");
    let mut bench = Bench::new(loaded(), 4096);
    for content in [&b""[..], b"GGUF", &whole[..4_096], &whole[..whole.len() / 2]] {
        std::fs::write(&broken, content).expect("written");
        let error = bench.stage.load(&ModelSource { name: name("broken"), path: broken.clone() });
        let error = error.expect_err("it is broken").to_string();
        assert!(error.starts_with("model broken: "), "{error}");
    }
    std::fs::remove_dir_all(&directory).expect("removed");
    let gone = bench.stage.load(&ModelSource { name: name("broken"), path: broken });
    assert!(matches!(gone, Err(StageError::Load { .. })));
    bench.stage.loader().load_from(renamed("broken")).expect("its name is free");
    for (id, model) in [(1, "smollm2-135m"), (2, "broken")] {
        bench.submit(id, "Name a colour.", 100, |submit| submit.model = Some(name(model)));
        bench.until(|seen| seen[&id].refused.is_some() || seen[&id].finished.is_some());
    }
    assert_eq!(bench.seen[&1].text(), bench.seen[&2].text());
}
