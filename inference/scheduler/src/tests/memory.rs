//! Blocks: shared, copied, taken back, found again; and everything at random.

use super::*;

/// A prompt of `common` tokens that others have too, and of `own` that no other has.
fn prompt(kind: u32, common: usize, own: usize, id: u64) -> Vec<u32> {
    let common = (0..common as u32).map(|n| n * 11 + kind);
    common.chain((0..own as u32).map(|n| 5_000 + n * 3 + 100 * id as u32)).collect()
}

fn with(id: u64, tenant: u64, prompt: Vec<u32>, max_tokens: u32) -> Input {
    Input::Submit(Submit { tenant, prompt, ..request(id, 1, max_tokens, 1_000) })
}

#[test]
fn a_common_beginning_is_computed_once_for_each_tenant() {
    let (mut scheduler, mut bench) = Bench::new(config(4));
    // Blocks have 8 tokens: of 21 common ones 16 are shared and 5 are copied.
    for (id, tenant) in [(1, 0), (2, 0), (3, 7), (4, 7)] {
        bench.submit(&mut scheduler, id, with(id, tenant, prompt(1, 21, 4, id), 3));
        bench.steps(&mut scheduler, 0..12);
        bench.is_right(SequenceId(id));
    }
    let cached: Vec<u32> = bench.cached.values().flatten().copied().collect();
    assert_eq!(cached, [0, 21, 0, 21], "and nothing of another tenant's");
    let counters = scheduler.counters();
    assert_eq!((counters.prefill_rows, counters.blocks_copied), (2 * 25 + 2 * 4, 2));
    assert_eq!((counters.prefix_lookups, counters.prefix_tokens, counters.prefix_hit_tokens), (4, 100, 42));
    assert_eq!((counters.blocks_used, counters.blocks_promised, counters.blocks_leaked), (0, 0, 0));
    assert!(counters.blocks_cached > 0);
}

#[test]
fn a_conversation_goes_on_from_its_last_token() {
    let (mut scheduler, mut bench) = Bench::new(config(1));
    bench.submit(&mut scheduler, 0, with(1, 0, prompt(1, 10, 0, 1), 9));
    bench.steps(&mut scheduler, 0..12);
    let mut second = prompt(1, 10, 0, 1);
    second.extend(&bench.tokens[&SequenceId(1)]);
    second.extend([1, 2, 3]);
    bench.submit(&mut scheduler, 20, with(2, 0, second.clone(), 5));
    let step = bench.step(&mut scheduler, 20);
    // All but the answer's last token, which was drawn and never computed.
    assert_eq!((bench.cached[&SequenceId(2)][0], step.rows.len()), (18, 4));
    bench.steps(&mut scheduler, 21..30);
    bench.submit(&mut scheduler, 30, with(3, 0, second.clone(), 5));
    bench.steps(&mut scheduler, 30..40);
    assert_eq!(bench.cached[&SequenceId(3)][0], 21, "the last token of a prompt is always computed");
    [2, 3].into_iter().for_each(|id| bench.is_right(SequenceId(id)));
}

#[test]
fn equal_prompts_at_the_same_time_are_computed_once() {
    let (mut scheduler, mut bench) = Bench::new(config(4));
    (0..4).for_each(|id| bench.submit(&mut scheduler, 0, with(id, 0, prompt(1, 45, 0, id), 6)));
    bench.steps(&mut scheduler, 0..1);
    assert_eq!(scheduler.counters().running, 4);
    bench.steps(&mut scheduler, 1..5);
    assert_eq!(scheduler.counters().blocks_shared, 5);
    bench.steps(&mut scheduler, 5..30);
    (0..4).for_each(|id| bench.is_right(SequenceId(id)));
    let counters = scheduler.counters();
    assert!(counters.prefill_rows <= 45 + 3 * 8, "{counters:?}");
    assert_eq!(counters.finished, 4);
}

#[test]
fn what_failed_is_not_found_again() {
    let (mut scheduler, mut bench) = Bench::new(config(2));
    bench.broken.insert(SequenceId(1));
    bench.submit(&mut scheduler, 0, with(1, 0, prompt(1, 40, 0, 1), 5));
    bench.steps(&mut scheduler, 0..4);
    assert_eq!(bench.ends[&SequenceId(1)], (End::Failed, 0));
    bench.submit(&mut scheduler, 5, with(2, 0, prompt(1, 40, 0, 2), 5));
    bench.steps(&mut scheduler, 5..15);
    assert_eq!(bench.cached[&SequenceId(2)], [0]);
    bench.is_right(SequenceId(2));
}

/// Never more is promised than there is: who could not have all it may need waits, however much is free now.
#[test]
fn memory_is_never_overcommitted() {
    let (mut scheduler, mut bench) = Bench::new(Config { blocks: 10, ..config(4) });
    bench.submit(&mut scheduler, 0, with(1, 0, prompt(1, 4, 0, 1), 40));
    bench.submit(&mut scheduler, 0, with(2, 0, prompt(2, 4, 0, 2), 40));
    bench.steps(&mut scheduler, 0..20);
    let counters = scheduler.counters();
    assert_eq!((counters.running, counters.waiting, counters.blocks_used + counters.blocks_promised), (1, 1, 6));
    bench.steps(&mut scheduler, 20..100);
    assert!(scheduler.is_empty() && bench.ends.len() == 2);
}

#[derive(Debug, Clone)]
enum Act {
    Submit(Wish),
    Credit { of: usize, more: u32 },
    Cancel { of: usize, in_step: bool },
    Block { outlet: u16, blocked: bool },
    Steps(u8),
}

#[derive(Debug, Clone)]
struct Wish {
    tenant: u64,
    kind: u32,
    common: usize,
    own: usize,
    max_tokens: u32,
    credit: u32,
    outlet: u16,
    produced: usize,
    priority: Priority,
    deadline: Option<u64>,
    broken: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let prompt = (0..3_u64, 0..3_u32, 0..50_usize, 1..30_usize);
    let rest = (1..30_u32, prop_oneof![0..20_u32, Just(1_000)], 0..2_u16, prop_oneof![4 => Just(0), 1 => 0..30_usize]);
    let when = (prop::sample::select(Priority::ALL.to_vec()), prop::option::weighted(0.2, 0..2_000_u64));
    (prompt, rest, when, prop::bool::weighted(0.05)).prop_map(
        |((tenant, kind, common, own), (max_tokens, credit, outlet, produced), (priority, deadline), broken)| Wish {
            tenant,
            kind,
            common,
            own,
            max_tokens,
            credit,
            outlet,
            produced,
            priority,
            deadline,
            broken,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => wish().prop_map(Act::Submit),
        3 => (0..64_usize, 0..20_u32).prop_map(|(of, more)| Act::Credit { of, more }),
        1 => (0..64_usize, any::<bool>()).prop_map(|(of, in_step)| Act::Cancel { of, in_step }),
        1 => (0..2_u16, any::<bool>()).prop_map(|(outlet, blocked)| Act::Block { outlet, blocked }),
        4 => (1..20_u8).prop_map(Act::Steps),
    ]
}

/// What the test knows of a sequence, kept apart from the scheduler.
struct Known {
    wish: Wish,
    credit: u32,
    cancelled: bool,
}

/// The scheduler, its model, and what the test knows.
struct World {
    scheduler: Scheduler,
    bench: Bench,
    known: Vec<Known>,
    blocked: BTreeSet<u16>,
    now: u64,
}

impl World {
    fn submit(&mut self, wish: Wish) {
        let number = self.known.len() as u64;
        let id = SequenceId(number);
        let prompt = prompt(wish.kind, wish.common, wish.own, number);
        let Wish { tenant, max_tokens, credit, priority, .. } = wish;
        let outlet = Outlet(wish.outlet);
        let deadline_us = wish.deadline.map(|after| self.now + after);
        let room = (max_tokens as usize).min(self.bench.config.context_tokens.saturating_sub(prompt.len()));
        let produced = expected(tenant, &prompt, wish.produced.min(room));
        let submit = Submit { id, outlet, tenant, priority, deadline_us, prompt, max_tokens, credit, traced: true };
        if wish.broken {
            self.bench.broken.insert(id);
        }
        self.known.push(Known { wish, credit, cancelled: false });
        let input = if produced.is_empty() { Input::Submit(submit) } else { Input::Resume { submit, produced } };
        self.bench.submit(&mut self.scheduler, self.now, input);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Submit(wish) => self.submit(wish),
            Act::Credit { of, more } => {
                if let Some(one) = self.known.get_mut(of) {
                    one.credit += more;
                    let input = Input::Credit { id: SequenceId(of as u64), until: one.credit };
                    self.scheduler.handle(self.now, input);
                }
            }
            Act::Cancel { of, in_step } => {
                let Some(one) = self.known.get_mut(of) else { return };
                one.cancelled = true;
                let step = if in_step { self.scheduler.plan(self.now) } else { Step::default() };
                self.bench.drain(&mut self.scheduler);
                let sampled = self.bench.compute(&step);
                self.scheduler.handle(self.now, Input::Cancel(SequenceId(of as u64)));
                self.scheduler.check();
                self.scheduler.complete(self.now, &step, &sampled);
            }
            Act::Block { outlet, blocked } => {
                if blocked {
                    self.blocked.insert(outlet)
                } else {
                    self.blocked.remove(&outlet)
                };
                self.scheduler.handle(self.now, Input::Block { outlet: Outlet(outlet), blocked });
            }
            Act::Steps(count) => {
                for _ in 0..count {
                    let step = self.bench.step(&mut self.scheduler, self.now);
                    for part in &step.parts {
                        let one = &self.known[part.id.0 as usize];
                        let open = !self.blocked.contains(&one.wish.outlet);
                        assert!(part.index < one.credit && open, "the parked get no rows: {part:?}");
                    }
                    self.now += 10;
                }
            }
        }
        self.bench.drain(&mut self.scheduler);
    }

    /// With credit for all and nothing blocked, everyone ends within a bounded number of steps.
    fn end(&mut self) {
        (0..2).for_each(|outlet| self.act(Act::Block { outlet, blocked: false }));
        (0..self.known.len()).for_each(|of| self.act(Act::Credit { of, more: 1_000 }));
        for _ in 0..200 {
            self.act(Act::Steps(10));
        }
        assert!(self.scheduler.is_empty(), "nobody starves");
    }

    fn judge(&self) {
        for (of, one) in self.known.iter().enumerate() {
            let id = SequenceId(of as u64);
            self.bench.is_right(id);
            let got = self.bench.tokens.get(&id).map_or(0, Vec::len);
            let (refused, expired) = (self.bench.refused.contains(&id), self.bench.expired.contains(&id));
            match self.bench.ends.get(&id) {
                None => assert!(refused != expired && (refused || one.wish.deadline.is_some()), "{id:?}"),
                Some((End::Cancelled, _)) => assert!(one.cancelled),
                Some((End::Failed, _)) => assert!(one.wish.broken),
                Some((end, _)) => {
                    let room = self.bench.config.context_tokens - one.wish.common - one.wish.own;
                    assert_eq!((*end, got), (End::Length, room.min(one.wish.max_tokens as usize)), "{id:?}");
                }
            }
        }
        let counters = self.scheduler.counters();
        assert_eq!(counters.rows_without_credit + counters.tokens_without_credit + counters.blocks_leaked, 0);
        assert_eq!(counters.rows, counters.decode_rows + counters.prefill_rows);
        assert!(counters.prefix_hit_tokens <= counters.prefix_tokens);
        assert_eq!(counters.blocks_used + counters.blocks_promised, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// No block is leaked, none that is shared is written, everyone reads exactly its own past, memory and rows are never
    /// exceeded, the parked get no rows, and everyone ends with exactly the tokens it has alone.
    #[test]
    fn whatever_happens_everyone_gets_exactly_their_tokens(
        acts in prop::collection::vec(act(), 1..80),
        running in 1..5_usize, block_tokens in prop::sample::select(vec![1_usize, 4, 8, 16]), spare in 0..20_usize,
    ) {
        let config = Config {
            running,
            sequences: 12,
            waiting_tenant: 6,
            blocks: 64_usize.div_ceil(block_tokens) + spare,
            block_tokens,
            ..config(running)
        };
        let (scheduler, bench) = Bench::new(config);
        let mut world = World { scheduler, bench, known: Vec::new(), blocked: BTreeSet::new(), now: 0 };
        acts.into_iter().for_each(|act| world.act(act));
        world.end();
        world.judge();
    }
}
