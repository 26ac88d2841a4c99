//! Generations that were interrupted and go on: each is as if it had not been interrupted, wherever the cut lies.

use thalweg_protocol::limits::KV_BLOCK_TOKENS;

use super::*;

/// A generation cut after `cut` tokens goes on as `id`.
fn go_on(bench: &mut Bench, id: u64, whole: &Seen, cut: usize, prompt: &str, sampling: &Sampling) {
    bench.submit(id, prompt, 1_000, |s| {
        s.sampling = sampling.clone();
        s.produced = whole.ids[..cut].to_vec();
    });
}

/// Checks that the first `cut` tokens of `whole` and `rest` are `whole`.
fn assert_continues(whole: &Seen, cut: usize, rest: &Seen, about: &str) {
    assert_eq!((&rest.refused, rest.before), (&None, cut), "{about}, cut after {cut}");
    assert_eq!(rest.ids, whole.ids[cut..], "{about}, cut after {cut}");
    assert_eq!(rest.texts, whole.texts[cut..], "{about}, cut after {cut}: texts, token by token");
    // What was found in memory is another matter.
    let counted = |seen: &Seen| {
        seen.finished.clone().map(|(reason, usage, message)| (reason, Usage { cached_tokens: 0, ..usage }, message))
    };
    assert_eq!(counted(rest), counted(whole), "{about}, cut after {cut}: reason and usage");
}

#[test]
fn a_generation_that_goes_on_is_as_if_not_interrupted_alone_and_beside_others() {
    let mut bench = Bench::new(loaded(), 4096);
    let prompt = "Tell me about the sea.";
    let sampling = |temperature, seed| Sampling { temperature, seed, max_tokens: 14, ..Sampling::default() };
    let mut cases = Vec::new();
    for (case, (temperature, seed)) in (1..).zip([(0.0, 1), (0.8, 1), (0.8, 2), (0.8, 3)]) {
        let sampling = sampling(temperature, seed);
        bench.submit(case, prompt, 1_000, |s| s.sampling = sampling.clone());
        bench.until_ended([case]);
        let whole = bench.seen[&case].clone();
        for cut in [0, 1, 6, whole.ids.len() - 1, whole.ids.len()] {
            cases.push((100 + cases.len() as u64, whole.clone(), cut, sampling.clone()));
        }
    }
    assert_ne!(bench.seen[&2].ids, bench.seen[&3].ids, "other seeds, other tokens: the cuts mean something");
    for (id, whole, cut, sampling) in &cases {
        go_on(&mut bench, *id, whole, *cut, prompt, sampling);
        bench.until_ended([*id]);
        assert_continues(whole, *cut, &bench.seen[id], &format!("alone, {sampling:?}"));
    }
    // Beside 15 that run all the while: each step has rows of at least 16.
    let others = 1_000..1_015;
    for id in others.clone() {
        let text = format!("Tell me a long story about the number {id}. {}", "And so on. ".repeat(id as usize % 7));
        bench.submit(id, &text, 10_000, |s| {
            s.sampling = Sampling { seed: id, max_tokens: 4_000, ..Sampling::default() }
        });
    }
    bench.until(|seen| others.clone().all(|id| seen.get(&id).is_some_and(|seen| !seen.texts.is_empty())));
    for (id, whole, cut, sampling) in &cases {
        go_on(&mut bench, id + 500, whole, *cut, prompt, sampling);
    }
    bench.until_ended(cases.iter().map(|(id, ..)| id + 500));
    for (id, whole, cut, sampling) in &cases {
        assert_continues(whole, *cut, &bench.seen[&(id + 500)], &format!("beside others, {sampling:?}"));
    }
    for id in others.clone() {
        assert!(bench.link.send(Command::Cancel { generation: GenerationId(id) }).is_ok());
    }
    bench.until_ended(others);
    let stats = bench.stats();
    assert_eq!((stats.tokens_while_parked, stats.rows_while_parked, stats.failed), (0, 0, 0));
    assert_eq!(
        (stats.resumed, stats.resumed_over),
        (2 * 4 * 3, 2 * 4),
        "those cut at 0 begin, those at the end are over"
    );
}

/// The real model, with a stop string that lies across tokens, cut at each.
#[test]
fn a_stop_string_across_the_cut_ends_the_real_model() {
    let mut bench = Bench::new(loaded(), 4096);
    let prompt = "What color is the sky?";
    let stop = vec!["ky is a b".to_owned()];
    let sampling = Sampling { temperature: 0.0, max_tokens: 24, stop, ..Sampling::default() };
    bench.submit(1, prompt, 1_000, |s| s.sampling = sampling.clone());
    bench.until_ended([1]);
    let whole = bench.seen[&1].clone();
    assert_eq!(whole.reason(), FinishReason::Stop);
    assert!(whole.ids.len() > 4, "the stop string has several tokens");
    for cut in 0..=whole.ids.len() {
        go_on(&mut bench, 10 + cut as u64, &whole, cut, prompt, &sampling);
    }
    bench.until_ended((0..=whole.ids.len()).map(|cut| 10 + cut as u64));
    for cut in 0..=whole.ids.len() {
        assert_continues(&whole, cut, &bench.seen[&(10 + cut as u64)], "with a stop string");
    }
}

/// A model that answers with a script, and refuses rows that are not the prompt and then the script.
struct Scripted {
    shape: Shape,
    prompt_tokens: usize,
    script: Vec<u32>,
}

struct ScriptedRunner {
    model: Arc<Scripted>,
    logits: Vec<f32>,
    /// The token whose keys and values would lie there: `[block][place]`.
    memory: Vec<[Option<u32>; KV_BLOCK_TOKENS]>,
}

impl ScriptedRunner {
    /// Checks that all that a row at `position` looks back at is there: the prompt, and then the script.
    fn look_back(&self, table: &[u32], position: usize) {
        let Scripted { prompt_tokens, script, .. } = &*self.model;
        for at in 0..=position {
            let kept = self.memory[table[at / KV_BLOCK_TOKENS] as usize][at % KV_BLOCK_TOKENS];
            let token = kept.expect("nothing is left out");
            assert!(at < *prompt_tokens || token == script[at - prompt_tokens], "what was produced is what is read");
        }
    }
}

impl Model for Scripted {
    fn shape(&self) -> Shape {
        self.shape
    }
    fn runner(self: Arc<Self>, blocks: usize, _rows: usize, _team: Arc<Team>) -> Box<dyn Runner> {
        let memory = vec![[None; KV_BLOCK_TOKENS]; blocks];
        Box::new(ScriptedRunner { model: self, logits: Vec::new(), memory })
    }
}

impl Runner for ScriptedRunner {
    fn step(&mut self, step: &Step) {
        for copy in &step.copies {
            let (from, count) = (self.memory[copy.from as usize], copy.tokens as usize);
            self.memory[copy.to as usize][..count].copy_from_slice(&from[..count]);
        }
        self.logits.clear();
        for row in &step.rows {
            let (at, table) = (row.position as usize, step.table(&step.parts[row.part as usize]));
            self.memory[table[at / KV_BLOCK_TOKENS] as usize][at % KV_BLOCK_TOKENS] = Some(row.token);
            self.look_back(table, at);
            if row.wants_logits {
                let Scripted { shape, prompt_tokens, script } = &*self.model;
                let start = self.logits.len();
                self.logits.resize(start + shape.vocabulary, 0.0);
                self.logits[start + script[at + 1 - prompt_tokens] as usize] = 9.0;
            }
        }
    }
    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// Each script is answered whole, and then cut after each of its tokens: also inside of a character, of a stop string, of
/// text that only looked like one, and after the last.
#[test]
fn wherever_a_script_is_cut_it_ends_alike() {
    let real = loaded();
    let vocabulary = Arc::clone(&real.vocabulary);
    let prompt = "Go on.";
    let messages = vec![ChatMessage { role: Role::User, content: prompt.into() }];
    let prompt_tokens = vocabulary.prompt(&messages).expect("tokens").len();
    let end = (0..vocabulary.len() as u32).find(|&token| vocabulary.is_end(token)).expect("there is an end");
    let check = |text: &str, stop: &str, max_tokens: u32, expected: &str, reason: FinishReason| {
        let about = format!("{text:?}, stop {stop:?}, at most {max_tokens}");
        let mut script = vocabulary.encode(text).expect("tokens");
        script.push(end);
        let model = Scripted { shape: real.model.shape(), prompt_tokens, script };
        let loaded = LoadedModel { model: Arc::new(model), ..real.clone() };
        let mut bench = Bench::new(loaded, 4096);
        let stop = [stop].into_iter().filter(|stop| !stop.is_empty()).map(str::to_owned).collect();
        let sampling = Sampling { temperature: 0.0, max_tokens, stop, ..Sampling::default() };
        bench.submit(1, prompt, 1_000, |s| s.sampling = sampling.clone());
        bench.until_ended([1]);
        let whole = bench.seen[&1].clone();
        assert_eq!((whole.text().as_str(), whole.reason()), (expected, reason), "{about}");
        for cut in 0..=whole.ids.len() {
            let id = 10 + cut as u64;
            go_on(&mut bench, id, &whole, cut, prompt, &sampling);
            bench.until_ended([id]);
            assert_continues(&whole, cut, &bench.seen[&id], &about);
        }
    };
    use FinishReason::{Length, Stop};
    let crabs = "naïve 日本語 🦀🇫🇷 𝄞!";
    assert!(vocabulary.encode("🦀𝄞").expect("tokens").len() > 2, "characters lie across tokens");
    check(crabs, "", 100, crabs, Stop);
    check("one two three", "", 2, "one two", Length);
    check("🦀", "", 1, "\u{fffd}", Length);
    check("one two three four five", "two three", 100, "one ", Stop);
    check("one 🦀 two", "🦀", 100, "one ", Stop);
    check("one two th", " two three", 100, "one two th", Stop);
    check("one two thirty", " two three", 100, "one two thirty", Stop);
    check("one two three", " three", 3, "one two", Stop);
}

#[test]
fn credit_counts_from_the_first_token_and_usage_has_all() {
    let mut bench = Bench::new(loaded(), 4096);
    bench.submit(1, "Name three colours.", 100, |_| {});
    bench.until_ended([1]);
    let whole = bench.seen[&1].clone();
    let cut = 5;
    assert!(whole.ids.len() > cut + 3, "there is something to go on with: {whole:?}");
    bench.submit(2, "Name three colours.", cut as u32, |s| s.produced = whole.ids[..cut].to_vec());
    // Another one begins and ends meanwhile.
    bench.submit(3, "Name three colours.", 100, |_| {});
    bench.until_ended([3]);
    assert_eq!(bench.seen[&2].ids, [0_u32; 0], "there is no credit for a new token");
    assert!(bench.link.send(Command::Credit { generation: GenerationId(2), until: cut as u32 + 2 }).is_ok());
    bench.until(|seen| seen[&2].ids.len() == 2);
    assert!(bench.link.send(Command::Cancel { generation: GenerationId(2) }).is_ok());
    bench.until_ended([2]);
    let (reason, usage, _) = bench.seen[&2].finished.clone().expect("finished");
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Cancelled, cut as u32 + 2));
    assert_eq!(usage.prompt_tokens, whole.finished.expect("finished").1.prompt_tokens, "the prompt's alone");
    let stats = bench.stats();
    assert_eq!((stats.tokens_while_parked, stats.rows_while_parked, stats.cancelled), (0, 0, 1));
}

#[test]
fn what_cannot_have_been_produced_is_refused_by_name() {
    let mut bench = Bench::new(loaded(), 4096);
    let vocabulary = bench.stage.models()[0].vocabulary;
    let mut check = |id: u64, max_tokens: u32, produced: Vec<u32>, expected: &[&str]| {
        bench.submit(id, "hi", 9, |s| (s.sampling.max_tokens, s.produced) = (max_tokens, produced));
        bench.until_ended([id]);
        let reject = bench.seen[&id].refused.clone().expect("refused");
        assert_eq!(reject.code, RejectCode::ParameterInvalid);
        assert!(expected.iter().all(|part| reject.message.contains(part)), "{reject}");
    };
    check(1, 3, vec![500; 4], &["produced", "4 tokens", "max_tokens is 3"]);
    check(2, 9, vec![500, vocabulary], &["produced[1]", &vocabulary.to_string(), "smollm2-135m"]);
    check(3, 9, vec![u32::MAX], &["produced[0]"]);
    assert_eq!(bench.stats().refused_invalid, 3);
}
