//! The scheduler against a scripted model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

mod fairness;
mod memory;

/// A model that remembers what was computed in each place of its memory, and refuses what a real one could not do.
struct Bench {
    config: Config,
    /// What lies in each block at each offset: a hash of the tenant and of all tokens up to there, as keys and values
    /// depend on all of them.
    memory: Vec<Vec<u64>>,
    /// The prompts of those submitted.
    prompts: BTreeMap<SequenceId, (u64, Vec<u32>)>,
    tokens: BTreeMap<SequenceId, Vec<u32>>,
    ends: BTreeMap<SequenceId, (End, u32)>,
    refused: BTreeSet<SequenceId>,
    expired: BTreeSet<SequenceId>,
    /// What was found of each, every time it began.
    cached: BTreeMap<SequenceId, Vec<u32>>,
    /// What was said of each that is traced: parked or not.
    parks: BTreeMap<SequenceId, Vec<bool>>,
    /// Sequences at which the model fails.
    broken: BTreeSet<SequenceId>,
}

impl Bench {
    fn new(config: Config) -> (Scheduler, Self) {
        let bench = Self {
            config,
            memory: vec![vec![0; config.block_tokens]; config.blocks],
            prompts: BTreeMap::new(),
            tokens: BTreeMap::new(),
            ends: BTreeMap::new(),
            refused: BTreeSet::new(),
            expired: BTreeSet::new(),
            cached: BTreeMap::new(),
            parks: BTreeMap::new(),
            broken: BTreeSet::new(),
        };
        (Scheduler::new(config), bench)
    }

    fn submit(&mut self, scheduler: &mut Scheduler, now_us: u64, input: Input) {
        if let Input::Submit(submit) | Input::Resume { submit, .. } = &input {
            assert!(self.prompts.insert(submit.id, (submit.tenant, submit.prompt.clone())).is_none());
        }
        if let Input::Resume { submit, produced } = &input {
            self.tokens.insert(submit.id, produced.clone());
        }
        scheduler.handle(now_us, input);
        scheduler.check();
    }

    fn drain(&mut self, scheduler: &mut Scheduler) {
        while let Some(output) = scheduler.poll() {
            match output {
                Output::Admitted { id, cached, .. } => self.cached.entry(id).or_default().push(cached),
                Output::Token { id, index, token } => {
                    let tokens = self.tokens.entry(id).or_default();
                    assert_eq!(tokens.len(), index as usize, "tokens of {id:?} are contiguous");
                    tokens.push(token);
                }
                Output::Finished { id, end, produced } => {
                    assert_eq!(produced as usize, self.tokens.get(&id).map_or(0, Vec::len));
                    assert!(self.ends.insert(id, (end, produced)).is_none(), "{id:?} ends once");
                }
                Output::Parked { id, parked } => self.parks.entry(id).or_default().push(parked),
                Output::Expired { id, .. } => assert!(self.expired.insert(id)),
                Output::Busy { id, .. } | Output::TooLong { id } => assert!(self.refused.insert(id)),
            }
        }
        scheduler.check();
    }

    /// What lies at each position of a sequence after its tokens so far.
    fn prefixes(&self, id: SequenceId) -> Vec<u64> {
        let (tenant, prompt) = &self.prompts[&id];
        let tokens = prompt.iter().chain(self.tokens.get(&id).into_iter().flatten());
        let hash = |hash: &mut u64, &token: &u32| {
            *hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ u64::from(token);
            Some(*hash)
        };
        tokens.scan(tenant + 1, hash).collect()
    }

    /// Runs a step. The scripted token is a hash of all before it, so that a lost, doubled or misplaced row shows.
    fn compute(&mut self, step: &Step) -> Vec<Sampled> {
        let (from, to): (BTreeSet<u32>, BTreeSet<u32>) = step.copies.iter().map(|copy| (copy.from, copy.to)).unzip();
        assert!(from.is_disjoint(&to) && to.len() == step.copies.len(), "copies in any order: {:?}", step.copies);
        for copy in step.copies.iter().rev() {
            let tokens = self.memory[copy.from as usize][..copy.tokens as usize].to_vec();
            self.memory[copy.to as usize][..tokens.len()].copy_from_slice(&tokens);
        }
        let size = self.config.block_tokens;
        let mut written = BTreeSet::new();
        let mut sampled = Vec::new();
        assert!(step.rows.len() <= self.config.prefill_tokens && step.parts.len() <= self.config.running);
        for (number, part) in step.parts.iter().enumerate() {
            let (table, prefixes) = (step.table(part), self.prefixes(part.id));
            for row in step.rows_of(part) {
                let at = row.position as usize;
                assert_eq!(row.part as usize, number);
                assert!(!from.contains(&table[at / size]), "what is copied is not written");
                self.memory[table[at / size] as usize][at % size] = prefixes[at];
                written.insert((table[at / size], number));
            }
            let last = step.rows_of(part).last().expect("a part has rows");
            assert_eq!(last.position as usize / size + 1, part.blocks, "the table covers the rows and no more");
            for at in 0..=last.position as usize {
                let found = self.memory[table[at / size] as usize][at % size];
                assert_eq!(found, prefixes[at], "{:?} reads its own past at {at}", part.id);
            }
            let outcome = match (self.broken.contains(&part.id), part.wants_logits) {
                (true, _) => Outcome::Failed,
                (false, true) => Outcome::Token(next(prefixes[last.position as usize])),
                (false, false) => continue,
            };
            sampled.push(Sampled { id: part.id, outcome });
        }
        for part in step.parts.iter().enumerate() {
            let others = |block: &u32| written.iter().any(|(other, by)| other == block && *by != part.0);
            assert!(!step.table(part.1).iter().any(others), "what is written is in one table");
        }
        sampled
    }

    /// Plans and runs a step.
    fn step(&mut self, scheduler: &mut Scheduler, now_us: u64) -> Step {
        let step = scheduler.plan(now_us);
        self.drain(scheduler);
        let sampled = self.compute(&step);
        scheduler.complete(now_us, &step, &sampled);
        self.drain(scheduler);
        step
    }

    /// Runs a step at each of these times.
    fn steps(&mut self, scheduler: &mut Scheduler, times: std::ops::Range<u64>) {
        times.for_each(|now| drop(self.step(scheduler, now)));
    }

    /// Checks that a sequence produced what it must, whatever happened around it.
    fn is_right(&self, id: SequenceId) {
        let got = self.tokens.get(&id).map_or(&[][..], Vec::as_slice);
        let (tenant, prompt) = &self.prompts[&id];
        assert_eq!(got, expected(*tenant, prompt, got.len()), "{id:?}");
    }
}

fn next(prefix: u64) -> u32 {
    (prefix % 1_009) as u32
}

/// What a sequence must produce whatever happens around it.
fn expected(tenant: u64, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut hash = tenant + 1;
    let mut step = |token: u32| {
        hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ u64::from(token);
        next(hash)
    };
    let mut last = prompt.iter().map(|&token| step(token)).last().expect("a prompt");
    let mut tokens = Vec::new();
    for _ in 0..count {
        tokens.push(last);
        last = step(last);
    }
    tokens
}

/// With as many blocks as `running` sequences need that fill the context.
fn config(running: usize) -> Config {
    Config {
        running,
        sequences: 8,
        waiting_tenant: 8,
        blocks: running * 8,
        block_tokens: 8,
        prefill_tokens: 16,
        context_tokens: 64,
        park_keep_us: 100,
    }
}

fn request(id: u64, prompt: usize, max_tokens: u32, credit: u32) -> Submit {
    Submit {
        id: SequenceId(id),
        outlet: Outlet(0),
        tenant: 0,
        priority: Priority::Normal,
        deadline_us: None,
        prompt: (0..prompt as u32).map(|n| n * 7 + id as u32).collect(),
        max_tokens,
        credit,
        traced: false,
    }
}

fn submit(id: u64, prompt: usize, max_tokens: u32, credit: u32) -> Input {
    Input::Submit(request(id, prompt, max_tokens, credit))
}

#[test]
fn a_sequence_prefills_in_chunks_and_decodes_to_its_length() {
    let (mut scheduler, mut bench) = Bench::new(config(2));
    bench.submit(&mut scheduler, 0, submit(1, 40, 3, 100));
    let rows: Vec<usize> = (0..6).map(|now| bench.step(&mut scheduler, now).rows.len()).collect();
    assert_eq!(rows, [16, 16, 8, 1, 1, 0], "the first token is drawn in the step that ends the prompt");
    assert_eq!(bench.ends[&SequenceId(1)], (End::Length, 3));
    assert!(scheduler.is_empty());
}

#[test]
fn the_context_ends_a_sequence_and_refuses_a_prompt_that_fills_it() {
    let (mut scheduler, mut bench) = Bench::new(config(1));
    bench.submit(&mut scheduler, 0, submit(1, 62, 50, 100));
    bench.submit(&mut scheduler, 0, submit(2, 64, 50, 100));
    bench.steps(&mut scheduler, 0..20);
    assert_eq!(bench.ends[&SequenceId(1)], (End::Length, 2));
    assert!(bench.refused.contains(&SequenceId(2)));
}

#[test]
fn a_parked_sequence_gets_no_rows_and_then_every_token() {
    let (mut scheduler, mut bench) = Bench::new(config(4));
    bench.submit(&mut scheduler, 0, submit(1, 5, 20, 3));
    bench.submit(&mut scheduler, 0, submit(2, 5, 20, 100));
    for now in 0..30 {
        bench.step(&mut scheduler, now);
    }
    let before = scheduler.counters();
    assert_eq!((bench.tokens[&SequenceId(1)].len(), bench.ends.len(), before.parked), (3, 1, 1));
    assert!(bench.step(&mut scheduler, 31).is_empty());
    assert_eq!(scheduler.counters().steps, before.steps, "nothing is spent on the parked");
    scheduler.handle(32, Input::Credit { id: SequenceId(1), until: 100 });
    bench.steps(&mut scheduler, 32..60);
    assert_eq!(bench.ends[&SequenceId(1)], (End::Length, 20));
    assert_eq!(scheduler.counters().recomputed_rows, 0, "its KV was kept");
    assert_eq!(scheduler.counters().rows_without_credit + scheduler.counters().tokens_without_credit, 0);
}

#[test]
fn who_is_traced_is_told_of_every_park() {
    let (mut scheduler, mut bench) = Bench::new(config(1));
    let traced = |id, credit| match submit(id, 5, 6, credit) {
        Input::Submit(submit) => Input::Submit(Submit { traced: true, ..submit }),
        other => other,
    };
    bench.submit(&mut scheduler, 0, traced(1, 2));
    bench.steps(&mut scheduler, 0..5);
    // That somebody else runs meanwhile is no news.
    bench.submit(&mut scheduler, 5, submit(2, 5, 2, 9));
    bench.steps(&mut scheduler, 105..110);
    scheduler.handle(110, Input::Credit { id: SequenceId(1), until: 4 });
    bench.steps(&mut scheduler, 110..115);
    scheduler.handle(115, Input::Credit { id: SequenceId(1), until: 6 });
    scheduler.handle(115, Input::Block { outlet: Outlet(0), blocked: true });
    scheduler.handle(116, Input::Block { outlet: Outlet(0), blocked: false });
    bench.steps(&mut scheduler, 116..120);
    assert_eq!(bench.parks, BTreeMap::from([(SequenceId(1), vec![true, false, true, false, true, false])]));
    assert_eq!(bench.ends[&SequenceId(1)], (End::Length, 6));
}

#[test]
fn without_credit_no_place_is_taken() {
    let (mut scheduler, mut bench) = Bench::new(config(1));
    bench.submit(&mut scheduler, 0, submit(1, 5, 2, 0));
    bench.submit(&mut scheduler, 0, submit(2, 5, 2, 9));
    bench.steps(&mut scheduler, 0..5);
    assert_eq!(bench.ends.keys().collect::<Vec<_>>(), [&SequenceId(2)]);
}

#[test]
fn the_parked_are_evicted_only_under_pressure_and_resume_with_every_token() {
    let (mut scheduler, mut bench) = Bench::new(Config { blocks: 2, context_tokens: 16, ..config(1) });
    bench.submit(&mut scheduler, 0, submit(1, 5, 6, 2));
    bench.steps(&mut scheduler, 0..4);
    bench.submit(&mut scheduler, 4, submit(2, 5, 2, 9));
    assert!(bench.step(&mut scheduler, 50).is_empty(), "its KV is kept for a while");
    let wake = scheduler.wake_at_us().expect("someone waits for a parked one's memory");
    bench.steps(&mut scheduler, wake..wake + 5);
    assert!(bench.ends.contains_key(&SequenceId(2)));
    assert_eq!(scheduler.counters().evictions, 1);
    scheduler.handle(500, Input::Credit { id: SequenceId(1), until: 9 });
    bench.steps(&mut scheduler, 500..510);
    bench.is_right(SequenceId(1));
    assert_eq!(bench.cached[&SequenceId(1)], [0, 6], "what nobody needed meanwhile is found again");
    assert_eq!(scheduler.counters().recomputed_rows, 0);
    // Where the other needs all there is, nothing is left.
    bench.submit(&mut scheduler, 600, submit(3, 5, 6, 2));
    bench.steps(&mut scheduler, 600..604);
    bench.submit(&mut scheduler, 700, submit(4, 9, 7, 9));
    bench.steps(&mut scheduler, 704..712);
    scheduler.handle(720, Input::Credit { id: SequenceId(3), until: 9 });
    bench.steps(&mut scheduler, 720..730);
    [3, 4].into_iter().for_each(|id| bench.is_right(SequenceId(id)));
    assert_eq!((scheduler.counters().evictions, scheduler.counters().recomputed_rows), (2, 6));
    assert!(scheduler.is_empty());
}

fn resume(id: u64, prompt: usize, max_tokens: u32, credit: u32, produced: Vec<u32>) -> Input {
    let Input::Submit(submit) = submit(id, prompt, max_tokens, credit) else { unreachable!("submit makes a submit") };
    Input::Resume { submit, produced }
}

/// What was produced is computed after the prompt, is not given out again, and counts against credit and length.
#[test]
fn a_resumed_sequence_goes_on_where_it_was() {
    let prompt: Vec<u32> = (0..5).map(|n| n * 7 + 1).collect();
    let whole = expected(0, &prompt, 20);
    let (mut scheduler, mut bench) = Bench::new(config(1));
    bench.tokens.insert(SequenceId(1), whole[..14].to_vec());
    bench.submit(&mut scheduler, 0, resume(1, 5, 20, 14, whole[..14].to_vec()));
    assert!(
        bench.step(&mut scheduler, 0).is_empty(),
        "credit counts from the beginning: there is none for a new token"
    );
    scheduler.handle(1, Input::Credit { id: SequenceId(1), until: 16 });
    let rows: Vec<usize> = (1..6).map(|now| bench.step(&mut scheduler, now).rows.len()).collect();
    assert_eq!(rows, [16, 3, 1, 0, 0], "19 tokens are prefilled, then one is decoded for the second of credit");
    scheduler.handle(6, Input::Credit { id: SequenceId(1), until: 100 });
    bench.steps(&mut scheduler, 6..20);
    assert_eq!((&bench.tokens[&SequenceId(1)], bench.ends[&SequenceId(1)]), (&whole, (End::Length, 20)));
    let counters = scheduler.counters();
    assert_eq!((counters.tokens, counters.resumed, counters.submitted, counters.recomputed_rows), (6, 1, 1, 0));
}

/// Resumed sequences that have all they may have end without a row or memory, even where nobody else is taken in.
#[test]
fn a_resumed_sequence_that_was_over_ends_at_once() {
    let check = |prompt: usize, max_tokens: u32, produced: usize| {
        let (mut scheduler, mut bench) = Bench::new(config(2));
        (10..18).for_each(|id| bench.submit(&mut scheduler, 0, submit(id, 5, 2, 100)));
        bench.tokens.insert(SequenceId(1), vec![3; produced]);
        bench.submit(&mut scheduler, 0, resume(1, prompt, max_tokens, 0, vec![3; produced]));
        bench.drain(&mut scheduler);
        assert_eq!(bench.ends.get(&SequenceId(1)), Some(&(End::Length, produced as u32)), "{prompt} {max_tokens}");
        assert_eq!((scheduler.len(), bench.refused.len(), scheduler.counters().blocks_used), (8, 0, 0));
    };
    check(5, 7, 7);
    check(60, 50, 4);
    check(60, 50, 10);
}

#[test]
fn cancel_ends_at_once_also_between_plan_and_complete() {
    let (mut scheduler, mut bench) = Bench::new(config(2));
    bench.submit(&mut scheduler, 0, submit(1, 5, 20, 100));
    bench.submit(&mut scheduler, 0, submit(2, 5, 20, 100));
    bench.step(&mut scheduler, 0);
    let step = scheduler.plan(1);
    scheduler.handle(1, Input::Cancel(SequenceId(1)));
    let sampled: Vec<Sampled> =
        step.parts.iter().map(|part| Sampled { id: part.id, outcome: Outcome::Token(0) }).collect();
    scheduler.complete(1, &step, &sampled);
    bench.drain(&mut scheduler);
    assert_eq!(bench.ends[&SequenceId(1)], (End::Cancelled, 1));
    assert_eq!(scheduler.plan(2).parts.len(), 1);
    scheduler.handle(2, Input::Cancel(SequenceId(77)));
    assert_eq!(scheduler.counters().cancelled, 1, "who is not there cannot be cancelled");
}

#[test]
fn a_blocked_outlet_blocks_its_sequences_only() {
    let (mut scheduler, mut bench) = Bench::new(config(2));
    bench.submit(&mut scheduler, 0, submit(1, 5, 20, 100));
    scheduler.handle(0, Input::Block { outlet: Outlet(0), blocked: true });
    assert!(bench.step(&mut scheduler, 0).is_empty());
    scheduler.handle(0, Input::Block { outlet: Outlet(0), blocked: false });
    assert_eq!(bench.step(&mut scheduler, 1).rows.len(), 5);
}

#[test]
fn one_more_than_may_be_held_is_refused_with_a_time() {
    let mut scheduler = Scheduler::new(config(2));
    (0..9).for_each(|id| scheduler.handle(0, submit(id, 5, 2, 100)));
    let Some(Output::Busy { id, retry_after_ms }) = scheduler.poll() else { panic!("the ninth is refused") };
    assert_eq!(id, SequenceId(8));
    assert!((100..=30_000).contains(&retry_after_ms));
    assert_eq!((scheduler.len(), scheduler.counters().refused_busy), (8, 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// After any prefix a sequence draws the same tokens at the same indexes, whatever its credit and its neighbours are.
    #[test]
    fn a_sequence_that_goes_on_after_any_prefix_is_as_one_that_was_not_interrupted(
        prompt in 1..40_usize, max_tokens in 1..30_u32, cut in 0..30_usize, lead in 1..5_u32, others in 0..4_u64,
    ) {
        let run = |produced: Vec<u32>| {
            let (mut scheduler, mut bench) = Bench::new(config(2));
            let mut drawn = Vec::new();
            bench.tokens.insert(SequenceId(1), produced.clone());
            (2..2 + others).for_each(|id| bench.submit(&mut scheduler, 0, submit(id, 9, 20, 100)));
            bench.submit(&mut scheduler, 0, resume(1, prompt, max_tokens, 0, produced));
            for now in 0..400 {
                let index = bench.tokens[&SequenceId(1)].len() as u32;
                scheduler.handle(now, Input::Credit { id: SequenceId(1), until: index / lead * lead + lead });
                let step = bench.step(&mut scheduler, now * 10);
                let parts = step.parts.iter().filter(|part| part.id == SequenceId(1) && part.wants_logits);
                drawn.extend(parts.map(|part| (part.index, step.rows[part.first + part.count - 1].position)));
            }
            let counters = scheduler.counters();
            (drawn, bench.tokens.remove(&SequenceId(1)), bench.ends[&SequenceId(1)], counters.tokens_without_credit)
        };
        let whole = run(Vec::new());
        let tokens = whole.1.clone().expect("it produced");
        let cut = cut.min(tokens.len());
        let rest = run(tokens[..cut].to_vec());
        prop_assert_eq!(&rest.0, &whole.0[cut..]);
        prop_assert_eq!((&rest.1, rest.2, rest.3), (&whole.1, whole.2, 0));
    }

    /// A newcomer is served within a bounded number of steps, however many long prompts are there.
    #[test]
    fn a_newcomer_with_a_slot_is_not_starved(others in prop::collection::vec(17..60_usize, 1..4)) {
        let (mut scheduler, mut bench) = Bench::new(config(4));
        for (id, &prompt) in others.iter().enumerate() {
            bench.submit(&mut scheduler, 0, submit(id as u64, prompt, 30, 100));
        }
        bench.submit(&mut scheduler, 0, submit(99, 4, 1, 100));
        bench.step(&mut scheduler, 0);
        prop_assert_eq!(bench.ends.get(&SequenceId(99)), Some(&(End::Length, 1)), "a short prompt ends in one step");
    }
}
