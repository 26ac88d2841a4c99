//! The stage with the real model.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use thalweg_protocol::generation::Role;
use thalweg_protocol::reject::RejectCode;
use thalweg_scheduler::Step;

use super::*;
use crate::model::{Runner, Shape};
use crate::testing::model_path;

mod loading;
mod resume;

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn loaded() -> LoadedModel {
    LoadedModel::load(&ModelSource { name: name("smollm2-135m"), path: model_path() }).expect("the model loads")
}

/// A stage with one core, and what came of each generation.
struct Bench {
    stage: Stage,
    link: CoreLink,
    bell: Arc<Bell>,
    seen: BTreeMap<u64, Seen>,
}

#[derive(Default, Debug, Clone, PartialEq)]
struct Seen {
    scheduled: bool,
    /// Tokens it had produced before it was submitted; not part of `ids` and `texts`.
    before: usize,
    ids: Vec<u32>,
    texts: Vec<String>,
    finished: Option<(FinishReason, Usage, String)>,
    refused: Option<Reject>,
    times: Option<Box<Times>>,
}

impl Seen {
    fn text(&self) -> String {
        self.texts.concat()
    }
    fn ended(&self) -> bool {
        self.finished.is_some() || self.refused.is_some()
    }
    fn reason(&self) -> FinishReason {
        self.finished.as_ref().expect("it finished").0
    }
}

impl Bench {
    fn new(model: LoadedModel, ring_slots: usize) -> Self {
        Self::with(model, 1, ring_slots, None)
    }

    fn with(model: LoadedModel, threads: usize, ring_slots: usize, kv_bytes: Option<u64>) -> Self {
        let bell = Bell::new().expect("an eventfd");
        let bells = [Arc::clone(&bell)];
        let (stage, links) =
            start_loaded(vec![model], threads, &[], ring_slots, kv_bytes, &bells).expect("the stage starts");
        let link = links.into_iter().next().expect("one link per bell");
        Self { stage, link, bell, seen: BTreeMap::new() }
    }

    fn submit(&mut self, id: u64, text: &str, credit: u32, change: impl FnOnce(&mut Submit)) {
        let mut submit = Submit {
            generation: GenerationId(id),
            tenant: name("default"),
            model: None,
            messages: vec![ChatMessage { role: Role::User, content: text.into() }],
            sampling: Sampling { temperature: 0.0, max_tokens: 24, ..Sampling::default() },
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
            produced: Vec::new(),
            credit,
            submitted: Instant::now(),
            traced: false,
        };
        change(&mut submit);
        self.seen.entry(id).or_default().before = submit.produced.len();
        assert!(self.link.send(Command::Submit(Box::new(submit))).is_ok(), "the ring has room");
    }

    fn receive(&mut self) -> bool {
        let Some(event) = self.link.receive() else { return false };
        match event {
            Event::Scheduled { generation, prompt_tokens, .. } => {
                assert!(prompt_tokens > 0);
                self.seen.entry(generation.0).or_default().scheduled = true;
            }
            Event::Token { generation, index, id, text, .. } => {
                let seen = self.seen.entry(generation.0).or_default();
                assert!(seen.scheduled && !seen.ended(), "tokens lie between start and end");
                assert_eq!(seen.before + seen.texts.len(), index as usize, "tokens are contiguous");
                seen.ids.push(id);
                seen.texts.push(String::from_utf8(text.to_vec()).expect("whole characters"));
            }
            Event::Traced(times) => {
                let seen = self.seen.entry(times.generation.0).or_default();
                assert!(!seen.ended() && seen.times.replace(times).is_none(), "once, before the end");
            }
            Event::Finished { generation, reason, usage, message } => {
                let seen = self.seen.entry(generation.0).or_default();
                assert_eq!(usage.completion_tokens as usize, seen.before + seen.texts.len());
                assert!(seen.finished.replace((reason, usage, message)).is_none(), "it ends once");
            }
            Event::Refused { generation, reject } => {
                self.seen.entry(generation.0).or_default().refused = Some(reject);
            }
            Event::Embedded { job, .. } => unreachable!("nobody asked for vectors, job {job}"),
        }
        true
    }

    /// Takes events until `done`; a minute without any is a failure.
    fn until(&mut self, done: impl Fn(&BTreeMap<u64, Seen>) -> bool) {
        while !done(&self.seen) {
            if !self.receive() {
                self.bell.prepare();
                if self.link.is_empty() {
                    // It may ring for what was received already.
                    let (minute, start) = (Duration::from_secs(60), Instant::now());
                    self.bell.wait(Some(minute));
                    let silent = self.link.is_empty() && start.elapsed() >= minute;
                    assert!(!silent, "nothing happened for a minute: {:?}", self.seen);
                }
                self.bell.awake();
            }
        }
    }

    fn until_ended(&mut self, ids: impl IntoIterator<Item = u64> + Clone) {
        self.until(|seen| ids.clone().into_iter().all(|id| seen.get(&id).is_some_and(Seen::ended)));
    }

    /// Stats that were published after this call began.
    fn stats(&mut self) -> StageStats {
        self.stage.shutdown();
        self.stage.stats()
    }
}

#[test]
fn the_model_answers_and_cancel_stop_seed_and_length_hold() {
    let mut bench = Bench::new(loaded(), 4096);
    bench.submit(1, "What color is the sky?", 100, |_| {});
    bench.until_ended([1]);
    let answer = bench.seen[&1].text();
    assert!(answer.contains("sky"), "{answer:?}");
    assert!(bench.seen[&1].finished.as_ref().expect("finished").1.prompt_tokens > 20);

    // The same alone and among others; a stop string ends it before itself, wherever token boundaries lie.
    bench.submit(2, "What color is the sky?", 100, |_| {});
    bench.submit(3, "What color is the sky?", 100, |s| s.sampling.stop = vec!["ky is a b".into()]);
    bench.submit(4, "Count from 1 to 50.", 100, |s| s.sampling.max_tokens = 5);
    for id in 5..8 {
        bench.submit(id, "Tell me a story.", 100, |s| {
            s.sampling = Sampling { seed: id.min(6), max_tokens: 20, ..Sampling::default() };
        });
    }
    bench.submit(9, "Tell me a long story.", 1_000, |s| s.sampling.max_tokens = 1_000);
    bench.until(|seen| seen.get(&9).is_some_and(|seen| seen.texts.len() > 2));
    assert!(bench.link.send(Command::Cancel { generation: GenerationId(9) }).is_ok());
    bench.until_ended(2..8);
    bench.until_ended([9]);
    assert_eq!(bench.seen[&2].text(), answer, "batched as alone");
    let cut = answer.find("ky is a b").expect("it says so");
    assert_eq!((bench.seen[&3].text().as_str(), bench.seen[&3].reason()), (&answer[..cut], FinishReason::Stop));
    assert_eq!((bench.seen[&4].texts.len(), bench.seen[&4].reason()), (5, FinishReason::Length));
    assert_eq!(bench.seen[&6].text(), bench.seen[&7].text(), "equal seeds, equal text");
    assert_ne!(bench.seen[&5].text(), bench.seen[&6].text(), "other seeds, other text");
    assert_eq!(bench.seen[&9].reason(), FinishReason::Cancelled);
    assert!(bench.seen[&9].texts.len() < 1_000);
    let stats = bench.stats();
    assert_eq!((stats.finished, stats.cancelled, stats.failed, stats.running), (8, 1, 0, 0));
    assert!(serde_json::to_string(&stats).expect("it serialises").contains("queue_wait"));
}

#[test]
fn a_stalled_reader_costs_nothing_and_then_gets_every_token() {
    let mut bench = Bench::new(loaded(), 4096);
    let prompt = |id: u64| format!("Write about the number {}.", id % 4);
    for id in 0..16 {
        bench.submit(id, &prompt(id), if id == 7 { 4 } else { 100 }, |s| s.traced = id % 4 == 3);
    }
    bench.until_ended((0..16).filter(|id| *id != 7));
    assert_eq!(bench.seen[&7].texts.len(), 4, "as many as it has credit for");
    assert!(bench.link.send(Command::Credit { generation: GenerationId(7), until: 100 }).is_ok());
    bench.until_ended([7]);
    assert_eq!(bench.seen[&7].text(), bench.seen[&3].text(), "the same prompt gives the same text, stalled or not");
    for (id, seen) in &bench.seen {
        let Some(times) = &seen.times else {
            assert_ne!(id % 4, 3, "{id} is traced");
            continue;
        };
        let moments =
            [times.tokenised, times.admitted, times.first_row, times.first_token].map(|at| at.expect("reached"));
        assert!(times.taken <= moments[0] && moments.is_sorted() && moments[3] <= times.ended, "{times:?}");
        assert_eq!((id % 4, times.parks.len()), (3, usize::from(*id == 7)), "{times:?}");
        assert!(times.parks.iter().all(|&(from, to)| moments[3] <= from && from < to && to <= times.ended));
        assert!(times.prompt_tokens > 0);
    }
    let stats = bench.stats();
    assert_eq!((stats.rows_while_parked, stats.tokens_while_parked, stats.recomputed_rows), (0, 0, 0));
    assert!(stats.parks >= 1);
}

#[test]
fn a_core_that_takes_no_events_loses_none() {
    let mut bench = Bench::new(loaded(), 8);
    (0..6).for_each(|id| bench.submit(id, "Name three colours.", 100, |_| {}));
    // Nothing is taken until the ring is full and the thread holds what does not fit.
    while bench.stage.stats().outlets_blocked == 0 {
        std::thread::yield_now();
    }
    bench.until_ended(0..6);
    assert!((0..6).all(|id| bench.seen[&id].text() == bench.seen[&0].text()));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let mut bench = Bench::new(loaded(), 4096);
    bench.submit(1, "hi", 9, |s| (s.model, s.traced) = (Some(name("gpt-9")), true));
    bench.submit(2, &"word ".repeat(9_000), 9, |s| s.traced = true);
    bench.submit(3, "hi", 9, |s| s.sampling.max_tokens = 2);
    assert!(bench.link.send(Command::Cancel { generation: GenerationId(77) }).is_ok());
    bench.until_ended(1..4);
    let reject = |id: u64| bench.seen[&id].refused.clone().expect("refused");
    assert_eq!(reject(1).code, RejectCode::ModelUnknown);
    assert!(reject(1).message.contains("gpt-9") && reject(1).message.contains("smollm2-135m"));
    assert_eq!(reject(2).code, RejectCode::PromptTooLong);
    let tokenised = |id: u64| bench.seen[&id].times.as_ref().expect("traced").tokenised.is_some();
    assert_eq!((tokenised(1), tokenised(2)), (false, true));
    assert_eq!(bench.seen[&3].reason(), FinishReason::Length);
}

/// A model that panics at one token and gives NaN at another.
struct Faulty {
    inner: Arc<dyn Model>,
    panics_at: u32,
    broken_at: u32,
    steps: Arc<AtomicU32>,
}

struct FaultyRunner {
    inner: Box<dyn Runner>,
    panics_at: u32,
    broken_at: u32,
    steps: Arc<AtomicU32>,
    logits: Vec<f32>,
    vocabulary: usize,
}

impl Model for Faulty {
    fn shape(&self) -> Shape {
        self.inner.shape()
    }
    fn runner(self: Arc<Self>, blocks: usize, rows: usize, team: Arc<Team>) -> Box<dyn Runner> {
        Box::new(FaultyRunner {
            inner: Arc::clone(&self.inner).runner(blocks, rows, team),
            panics_at: self.panics_at,
            broken_at: self.broken_at,
            steps: Arc::clone(&self.steps),
            logits: Vec::new(),
            vocabulary: self.shape().vocabulary,
        })
    }
}

impl Runner for FaultyRunner {
    fn step(&mut self, step: &Step) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        assert!(step.rows.iter().all(|row| row.token != self.panics_at), "scripted");
        self.inner.step(step);
        self.logits = self.inner.logits().to_vec();
        for (n, part) in step.parts.iter().filter(|part| part.wants_logits).enumerate() {
            if step.rows_of(part).iter().any(|row| row.token == self.broken_at) {
                self.logits[n * self.vocabulary..][..self.vocabulary].fill(f32::NAN);
            }
        }
    }
    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

#[test]
fn a_panic_or_a_broken_number_ends_one_generation_only() {
    let mut model = loaded();
    let token = |text: &str| *model.vocabulary.encode(text).expect("tokens").last().expect("a token");
    let (panics_at, broken_at) = (token(" volcano"), token(" penguin"));
    let steps = Arc::new(AtomicU32::new(0));
    model.model = Arc::new(Faulty { inner: model.model, panics_at, broken_at, steps: Arc::clone(&steps) });
    let mut bench = Bench::new(model, 4096);
    bench.submit(1, "What color is the sky?", 100, |_| {});
    bench.submit(2, "Where is a volcano ?", 100, |_| {});
    bench.submit(3, "Where is a penguin ?", 100, |_| {});
    bench.until_ended(1..4);
    assert!(bench.seen[&1].text().contains("sky"));
    for id in [2, 3] {
        let (reason, _, message) = bench.seen[&id].finished.clone().expect("finished");
        assert_eq!(reason, FinishReason::Failed);
        assert!(!message.is_empty());
    }
    bench.submit(4, "What color is the sky?", 100, |_| {});
    bench.until_ended([4]);
    assert_eq!(bench.seen[&4].text(), bench.seen[&1].text(), "the thread goes on");
    let stats = bench.stats();
    assert_eq!((stats.failed, stats.panics), (2, 1));
}

/// A common beginning is computed once; what is found says the same as what is computed, also after memory was short.
#[test]
fn what_was_computed_before_is_found_and_says_the_same() {
    let long =
        format!("{} What color is the sky?", "You are a kind and patient teacher of small children. ".repeat(20));
    let mut bench = Bench::with(loaded(), 2, 4096, None);
    bench.submit(1, &long, 100, |_| {});
    bench.until_ended([1]);
    bench.submit(2, &long, 100, |_| {});
    bench.submit(3, &format!("{long} Say why."), 100, |_| {});
    bench.submit(4, &long, 100, |s| s.tenant = name("other"));
    bench.until_ended(2..5);
    let usage = |bench: &Bench, id: u64| bench.seen[&id].finished.clone().expect("finished").1;
    let prompt = usage(&bench, 1).prompt_tokens;
    assert_eq!([1, 2, 4].map(|id| usage(&bench, id).cached_tokens), [0, prompt - 1, 0], "tenants share nothing");
    assert!(usage(&bench, 3).cached_tokens >= prompt * 3 / 4);
    assert_eq!([2, 4].map(|id| bench.seen[&id].text()), [1, 1].map(|id| bench.seen[&id].text()));
    let alone = bench.seen[&3].text();
    let stats = bench.stats();
    assert_eq!((stats.blocks_used, stats.blocks_promised, stats.blocks_leaked), (0, 0, 0));
    assert!(stats.prefix_hit_tokens > 0 && stats.blocks_copied > 0 && stats.blocks_cached > 0 && stats.threads == 2);

    // Memory for 640 tokens: one of these at a time, and nothing of the others is left.
    let info = loaded().info;
    let mut bench = Bench::with(loaded(), 1, 4096, Some(10 * 64 * info.kv_bytes_per_token as u64));
    assert_eq!(bench.stage.models()[0].context_tokens, 640);
    for id in 1..7 {
        let text = if id % 2 == 0 { format!("{long} Say why.") } else { format!("{id} {long}") };
        bench.submit(id, &text, if id == 3 { 4 } else { 100 }, |_| {});
    }
    bench.until_ended([1, 2, 4, 5, 6]);
    assert!(bench.link.send(Command::Credit { generation: GenerationId(3), until: 100 }).is_ok());
    bench.until_ended([3]);
    assert_eq!([2, 4, 6].map(|id| bench.seen[&id].text()), [(); 3].map(|()| alone.clone()));
    let stats = bench.stats();
    assert_eq!((stats.evictions, stats.blocks_used, stats.blocks_leaked), (1, 0, 0));
    assert!(stats.blocks_dropped > 0 && stats.recomputed_rows > 0, "{stats:?}");
}

#[test]
fn who_does_not_begin_in_time_and_memory_for_nothing_are_refused() {
    let mut bench = Bench::with(loaded(), 1, 4096, None);
    bench.submit(1, "Tell me a long story.", 9_000, |s| s.sampling.max_tokens = 8_000);
    bench.submit(2, "hi", 9, |s| s.sampling.max_tokens = 8_000);
    bench.until(|seen| seen.values().all(|seen| seen.scheduled));
    // Memory is for four such and more, so that places are what is short.
    (3..40).for_each(|id| bench.submit(id, "Say something.", 9_000, |s| s.sampling.max_tokens = 2_000));
    bench.submit(50, "hi", 9, |s| s.deadline_ms = 1);
    bench.until_ended([50]);
    let reject = bench.seen[&50].refused.clone().expect("refused");
    assert!(reject.code == RejectCode::Busy && reject.message.contains("deadline"), "{reject:?}");
    (1..40).for_each(|id| {
        assert!(bench.link.send(Command::Cancel { generation: GenerationId(id) }).is_ok());
    });
    bench.until_ended(1..40);
    assert_eq!((bench.stats().expired, bench.stats().blocks_used), (1, 0));

    let refused = start_loaded(vec![loaded()], 1, &[], 16, Some(1_000), &[]).err().expect("no block fits");
    assert!(refused.to_string().contains("smollm2-135m"), "{refused}");
}

#[test]
fn shutdown_and_a_dropped_link_end_what_runs() {
    let mut bench = Bench::new(loaded(), 4096);
    bench.submit(1, "Tell me a long story.", 9_000, |s| s.sampling.max_tokens = 8_000);
    bench.until(|seen| seen.get(&1).is_some_and(|seen| !seen.texts.is_empty()));
    bench.stage.shutdown();
    bench.until_ended([1]);
    assert_eq!(bench.seen[&1].reason(), FinishReason::Cancelled);

    let mut bench = Bench::new(loaded(), 4096);
    bench.submit(1, "Tell me a long story.", 9_000, |s| s.sampling.max_tokens = 8_000);
    bench.until(|seen| seen.get(&1).is_some_and(|seen| !seen.texts.is_empty()));
    let Bench { stage, link, .. } = bench;
    drop(link);
    while stage.stats().cancelled == 0 {
        std::thread::yield_now();
    }
}
