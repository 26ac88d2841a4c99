//! Turns among tenants, priorities, deadlines, limits.

use super::*;

fn of(tenant: u64, request: Submit) -> Submit {
    Submit { tenant, ..request }
}

#[test]
fn a_tenant_that_waits_too_much_is_refused_and_others_are_not() {
    let (mut scheduler, mut bench) = Bench::new(Config { waiting_tenant: 3, sequences: 64, ..config(1) });
    (0..8).for_each(|id| bench.submit(&mut scheduler, 0, Input::Submit(of(1, request(id, 20, 20, 100)))));
    let retry: Vec<u32> = std::iter::from_fn(|| scheduler.poll())
        .map(|output| match output {
            Output::Busy { retry_after_ms, .. } => retry_after_ms,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(retry.len(), 5);
    assert!(retry.iter().all(|&ms| ms >= 1_000), "three are before it and each takes about a second: {retry:?}");
    assert_eq!((scheduler.counters().refused_busy, scheduler.counters().refused_tenant), (5, 5));
    bench.submit(&mut scheduler, 0, Input::Submit(of(2, request(20, 20, 20, 100))));
    assert_eq!(scheduler.len(), 4);
    // What had begun elsewhere was accepted once.
    let produced = expected(1, &request(30, 20, 20, 0).prompt, 2);
    bench.submit(&mut scheduler, 0, Input::Resume { submit: of(1, request(30, 20, 20, 100)), produced });
    bench.steps(&mut scheduler, 0..200);
    assert!(scheduler.is_empty() && bench.ends.len() == 5);
}

#[test]
fn the_last_places_are_for_tenants_of_whom_none_waits() {
    let mut scheduler = Scheduler::new(Config { waiting_tenant: 64, sequences: 32, ..config(1) });
    (0..40).for_each(|id| scheduler.handle(0, Input::Submit(of(id % 2, request(id, 20, 20, 100)))));
    assert_eq!(scheduler.len(), 30);
    (100..104).for_each(|id| scheduler.handle(0, Input::Submit(of(id, request(id, 20, 20, 100)))));
    assert_eq!(scheduler.len(), 32);
}

#[test]
fn who_has_not_begun_by_its_deadline_is_given_up() {
    let (mut scheduler, mut bench) = Bench::new(config(1));
    let by = |id, at| Input::Submit(Submit { deadline_us: Some(at), ..request(id, 20, 30, 100) });
    bench.submit(&mut scheduler, 0, by(1, 5));
    bench.steps(&mut scheduler, 0..3);
    bench.submit(&mut scheduler, 3, by(2, 10));
    bench.submit(&mut scheduler, 3, by(3, 1_000));
    assert_eq!(scheduler.wake_at_us(), Some(10));
    bench.steps(&mut scheduler, 3..100);
    assert_eq!(bench.expired, BTreeSet::from([SequenceId(2)]), "who has begun goes on, who had its turn in time too");
    assert_eq!((scheduler.counters().expired, bench.ends.len()), (1, 2));
}

#[test]
fn priority_moves_the_order_inside_of_a_tenant_and_starves_nobody() {
    let begun = |submits: &[(u64, Priority)]| {
        let (mut scheduler, mut bench) = Bench::new(config(1));
        bench.submit(&mut scheduler, 0, submit(99, 4, 4, 100));
        bench.step(&mut scheduler, 0);
        for (id, &(at, priority)) in submits.iter().enumerate() {
            bench.submit(&mut scheduler, at, Input::Submit(Submit { priority, ..request(id as u64, 4, 2, 100) }));
        }
        let mut order = Vec::new();
        for now in 30_000_000..30_000_040 {
            for part in bench.step(&mut scheduler, now).parts {
                if part.id.0 != 99 && part.index == 0 && part.wants_logits {
                    order.push(part.id.0);
                }
            }
        }
        order
    };
    use Priority::{High, Low, Normal};
    assert_eq!(begun(&[(1, Low), (2, Normal), (3, Normal), (4, High)]), [3, 1, 2, 0]);
    assert_eq!(begun(&[(0, Low), (20_000_001, High)]), [0, 1], "who waited long goes before who just came");
}

/// Runs a step at each microsecond and says after how many `id` has its first token.
fn steps_to_first(scheduler: &mut Scheduler, bench: &mut Bench, from: u64, id: SequenceId) -> u64 {
    (1..2_000)
        .find(|n| {
            bench.step(scheduler, from + n);
            bench.tokens.contains_key(&id)
        })
        .expect("it gets its turn")
}

#[test]
fn two_tenants_have_the_same_places_whoever_came_first() {
    let (mut scheduler, mut bench) = Bench::new(Config { sequences: 64, waiting_tenant: 32, ..config(4) });
    (0..20).for_each(|id| bench.submit(&mut scheduler, 0, Input::Submit(of(1, request(id, 4, 50, 1_000)))));
    bench.steps(&mut scheduler, 0..10);
    (20..30).for_each(|id| bench.submit(&mut scheduler, 10, Input::Submit(of(2, request(id, 4, 50, 1_000)))));
    for now in 10..200 {
        let step = bench.step(&mut scheduler, now);
        let second = step.parts.iter().filter(|part| part.id.0 >= 20).count();
        assert_eq!((step.parts.len(), second), (4, 2), "step {now}");
    }
    assert!(scheduler.counters().preemptions >= 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A flood of one tenant, with all memory and all places, does not delay another's single request by more than its
    /// prompt takes at half the rows, a turn of each, and a step in which memory or a place is taken.
    #[test]
    fn a_flood_of_one_delays_another_by_a_bounded_number_of_steps(
        flood in prop::collection::vec((1..60_usize, 1..60_u32), 1..40), before in 0..60_u64,
        prompt in 1..40_usize, max_tokens in 1..20_u32, running in 2..5_usize, blocks in 16..40_usize,
    ) {
        let config = Config { sequences: 64, waiting_tenant: 40, blocks, ..config(running) };
        let (mut scheduler, mut bench) = Bench::new(config);
        for (id, &(prompt, max_tokens)) in flood.iter().enumerate() {
            bench.submit(&mut scheduler, 0, Input::Submit(of(1, request(id as u64, prompt, max_tokens, 1_000))));
        }
        bench.steps(&mut scheduler, 0..before);
        let id = SequenceId(99);
        bench.submit(&mut scheduler, before, Input::Submit(of(2, request(id.0, prompt, max_tokens, 1_000))));
        let steps = steps_to_first(&mut scheduler, &mut bench, before, id);
        let (turn, rows) = (config.block_tokens, config.prefill_tokens - running);
        let bound = (2 * prompt + 2 * turn).div_ceil(rows) + 2;
        prop_assert!(steps as usize <= bound, "{steps} steps, not {bound}");
        let stop = before + steps;
        bench.steps(&mut scheduler, stop..stop + 4_000);
        prop_assert!(scheduler.is_empty(), "and the flood is served as well");
    }

    /// Of the rows for prompts, tenants that have some at all times get the same, but for a turn each.
    #[test]
    fn tenants_with_prompts_get_the_same_rows(sizes in prop::collection::vec(1..6_u64, 2..4)) {
        let config = Config { sequences: 256, waiting_tenant: 128, blocks: 800, context_tokens: 4_000, ..config(12) };
        let (mut scheduler, mut bench) = Bench::new(config);
        let mut id = 0;
        for (tenant, &count) in sizes.iter().enumerate() {
            for _ in 0..count {
                let prompt = (0..1_000).map(|n| n + 10_000 * id as u32).collect();
                bench.submit(&mut scheduler, 0, Input::Submit(Submit {
                    prompt, ..of(tenant as u64, request(id, 1, 1, 1_000))
                }));
                id += 1;
            }
        }
        let mut rows = vec![0_usize; sizes.len()];
        for now in 0..60 {
            for part in bench.step(&mut scheduler, now).parts {
                rows[bench.prompts[&part.id].0 as usize] += part.count;
            }
        }
        let (most, least) = (rows.iter().max().expect("some"), rows.iter().min().expect("some"));
        prop_assert!(most - least <= 2 * config.block_tokens, "{rows:?}");
    }
}
