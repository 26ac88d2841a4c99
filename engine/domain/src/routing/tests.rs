//! Who is chosen.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

/// `name class cost context health expected fallback`, all but the first two optional.
fn card(text: &str) -> ModelCard {
    let words: Vec<_> = text.split(' ').collect();
    let number = |at: usize, preset: u32| words.get(at).map_or(preset, |word| word.parse().expect("a number"));
    ModelCard {
        name: name(words[0]),
        class: name(words[1]),
        cost: number(2, 0),
        context_tokens: number(3, 4_096),
        health: match words.get(4) {
            Some(&"down") => Health::Down { retry_ms: 3_000 },
            Some(&"trying") => Health::Trying { attempt: 7 },
            _ => Health::Up,
        },
        first_token_ms: number(5, 0),
        prompt_us: 0,
        fallback: words.get(6).map(|word| name(word)),
        resumes: true,
    }
}

fn routes(cards: &[&str]) -> Routes {
    Routes { cards: cards.iter().map(|text| card(text)).collect(), default: None }
}

/// Who answers each of `turns` requests, or why nobody does.
fn chosen(routes: &Routes, named: Option<&str>, need: &Need, forbidden: &str) -> String {
    let one = |turn| match routes.choose(named, need, turn, |name| name.as_str() != forbidden) {
        Ok(choice) => format!("{}:{}", choice.card.name, choice.reason.as_str()),
        Err(reject) => format!("{} {}", reject.code, reject.retry_after_ms),
    };
    let (first, second) = (one(0), one(1));
    if first == second { first } else { format!("{first} {second}") }
}

#[test]
fn names_and_classes_mean_what_they_say() {
    let all = routes(&["a fast", "b fast", "c accurate 5", "d own"]);
    let check = |named: &str, need: Need, expected: &str| {
        let named = Some(named).filter(|named| !named.is_empty());
        assert_eq!(chosen(&all, named, &need, "x"), expected, "{named:?}");
    };
    let simple = Need { prompt_bytes: 40, turns: 1, max_tokens: 512, ..Need::default() };
    let complex = Need { prompt_bytes: 4_000, ..simple };
    check("", simple, "a:named");
    check("c", simple, "c:named");
    check("fast", complex, "a:class b:class");
    check("own", simple, "d:class");
    check("auto", simple, "a:auto b:auto");
    check("auto", complex, "c:auto");
    check("auto", Need { constrained: true, turns: 12, ..simple }, "c:auto");
    check("nobody", simple, "model_unknown 0");
    assert_eq!(chosen(&routes(&[]), None, &simple, ""), "model_unknown 0");
    let text = all.choose(Some("z"), &simple, 0, |_| true).expect_err("unknown").message;
    assert_eq!(text, "there is no model z; this node has a, b, c, d; of the classes fast, accurate, own");
}

#[test]
fn what_names_nothing_means_the_default() {
    let check = |default: Option<&str>, expected: &str| {
        let routes = Routes { default: default.map(name), ..routes(&["a fast", "b accurate"]) };
        assert_eq!(chosen(&routes, None, &Need::default(), ""), expected, "{default:?}");
    };
    check(None, "a:named");
    check(Some("b"), "b:named");
    check(Some("accurate"), "b:class");
    check(Some("auto"), "a:auto");
    check(Some("gone"), "a:named");
}

#[test]
fn the_cheapest_that_can_is_chosen() {
    let check = |cards: &[&str], need: Need, forbidden: &str, expected: &str| {
        assert_eq!(chosen(&routes(cards), Some("fast"), &need, forbidden), expected, "{cards:?} {need:?}");
    };
    let need = Need { prompt_bytes: 4_000, max_tokens: 100, ..Need::default() };
    let soon = Need { budget_ms: 300, ..need };
    check(&["a fast 2", "b fast 1", "c fast 1"], need, "", "b:class c:class");
    check(&["a fast 2", "b fast 1"], need, "b", "a:class");
    check(&["a fast 2", "b fast 1"], need, "", "b:class");
    check(&["a fast 2", "b fast 1 512"], need, "", "a:class");
    check(&["a fast 2 1000", "b fast 1 512"], need, "", "a:class");
    check(&["a fast 2 4096 up 200", "b fast 1 4096 up 400"], soon, "", "a:class");
    check(&["a fast 2 4096 up 200", "b fast 1 4096 up 400"], need, "", "b:class");
    check(&["a fast 2 4096 up 900", "b fast 1 4096 up 400", "c fast 0 4096 up 901"], soon, "", "b:class");
    check(&["a fast 2 4096 down", "b fast 3"], need, "", "b:class");
    check(&["a fast 2 4096 trying", "b fast 3"], need, "", "a:class");
    check(&["a fast", "b fast"], need, "", "a:class b:class");
    check(&["a fast"], need, "a", "forbidden 0");
    check(&["a fast 0 4096 down", "b fast 0 4096 down"], need, "", "busy 3000");
    check(&["a fast 0 4096 down 0 z", "z slow"], need, "", "z:fallback");
    check(&["a fast 0 4096 down 0 z", "z slow"], need, "z", "busy 3000");
}

#[test]
fn who_is_down_is_answered_for() {
    let check = |cards: &[&str], forbidden: &str, expected: &str| {
        assert_eq!(chosen(&routes(cards), Some("a"), &Need::default(), forbidden), expected, "{cards:?}");
    };
    check(&["a x 0 1 down"], "", "busy 3000");
    check(&["a x 0 1 down 0 b", "b x"], "", "b:fallback");
    check(&["a x 0 1 down 0 b", "b x"], "b", "busy 3000");
    check(&["a x 0 1 down 0 b", "b x"], "a", "forbidden 0");
    check(&["a x 0 1 down 0 gone"], "", "busy 3000");
    check(&["a x 0 1 down 0 b", "b x 0 1 down 0 c", "c x"], "", "c:fallback");
    check(&["a x 0 1 down 0 b", "b x 0 1 down 0 c", "c x 0 1 down 0 d", "d x"], "", "busy 3000");
    check(&["a x 0 1 down 0 b", "b x 0 1 down 0 a"], "", "busy 3000");
    check(&["a x 0 1 trying 0 b", "b x"], "", "a:named");
}

#[test]
fn one_request_tries() {
    let mut routes = routes(&["a x 0 1 trying 0 b", "b x"]);
    assert_eq!(routes.take_try(&name("a")), Some(7));
    assert_eq!((routes.take_try(&name("a")), routes.take_try(&name("b"))), (None, None));
    assert_eq!(chosen(&routes, Some("a"), &Need::default(), ""), "b:fallback");
}

#[test]
fn complexity_is_counted() {
    let check = |need: Need, expected: u32| assert_eq!(need.complexity(), expected, "{need:?}");
    check(Need::default(), 0);
    check(Need { prompt_bytes: 1_280, turns: 3, max_tokens: 512, ..Need::default() }, 13);
    check(Need { prompt_bytes: usize::MAX, turns: 999, max_tokens: u32::MAX, constrained: true, budget_ms: 1 }, 80);
    check(Need { constrained: true, max_tokens: 640, ..Need::default() }, 14);
}

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![
        3 => Just(Health::Up),
        1 => Just(Health::Trying { attempt: 1 }),
        2 => Just(Health::Down { retry_ms: 500 }),
    ]
}

prop_compose! {
    fn any_card()(
        class in 0..3_usize, cost in 0..3_u32, context_tokens in 1..5_000_u32, health in health(),
        first_token_ms in 0..2_000_u32, prompt_us in 0..2_000_u32, fallback in proptest::option::of(0..8_usize),
    ) -> ModelCard {
        ModelCard {
            name: name("m"),
            class: name([FAST, ACCURATE, "own"][class]),
            cost, context_tokens, health, first_token_ms, prompt_us,
            fallback: fallback.map(|at| name(&format!("m{at}"))),
            resumes: true,
        }
    }
}

prop_compose! {
    fn any_routes()(
        mut cards in proptest::collection::vec(any_card(), 1..8), default in proptest::option::of(0..4_usize),
    ) -> Routes {
        for (at, card) in cards.iter_mut().enumerate() {
            card.name = name(&format!("m{at}"));
        }
        Routes { cards, default: default.map(|at| name([AUTO, FAST, "m0", "gone"][at])) }
    }
}

prop_compose! {
    fn any_need()(
        prompt_bytes in 0..20_000_usize, turns in 0..30_usize, max_tokens in 1..2_000_u32, constrained: bool,
        budget_ms in prop_oneof![Just(0_u32), 1..3_000_u32],
    ) -> Need {
        Need { prompt_bytes, turns, max_tokens, constrained, budget_ms }
    }
}

proptest! {
    #[test]
    fn what_is_chosen_may_be_asked_and_can_be(
        routes in any_routes(), need in any_need(), word in 0..12_usize, turn: u64, allowed in 0_u32..256,
    ) {
        let words = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", AUTO, FAST, ACCURATE, "own"];
        let may = |name: &Name| allowed >> name.as_str()[1..].parse::<u32>().expect("a number") & 1 == 1;
        for named in [None, Some(words[word])] {
            let result = routes.choose(named, &need, turn, may);
            prop_assert_eq!(&result, &routes.choose(named, &need, turn, may), "the same gives the same");
            match result {
                Ok(Choice { card, reason }) => {
                    prop_assert!(may(&card.name) && !card.is_down());
                    prop_assert!(reason != Reason::Class || named == Some(card.class.as_str()) || named.is_none());
                }
                Err(reject) => match reject.code {
                    RejectCode::Busy => prop_assert_eq!(reject.retry_after_ms, 500),
                    code => prop_assert!(matches!(code, RejectCode::Forbidden | RejectCode::ModelUnknown)),
                },
            }
        }
    }

    #[test]
    fn budgets_are_kept_and_equals_share(mut routes in any_routes(), need in any_need()) {
        for card in &mut routes.cards {
            card.class = name(FAST);
        }
        let able: Vec<_> = routes.cards.iter().filter(|card| !card.is_down()).collect();
        prop_assume!(!able.is_empty());
        let rounds = 840_u64; // Divisible by every number of models there can be.
        let mut shares: BTreeMap<&Name, u64> = BTreeMap::new();
        for turn in 0..rounds {
            let card = routes.choose(Some(FAST), &need, turn, |_| true).expect("somebody can").card;
            *shares.entry(&card.name).or_default() += 1;
        }
        prop_assert!(shares.values().all(|share| *share == rounds / shares.len() as u64), "{:?}", shares);
        let tokens = need.prompt_tokens() + need.max_tokens;
        let fits = |card: &&&ModelCard| card.context_tokens >= tokens;
        let in_time = |card: &&&ModelCard| need.budget_ms == 0 || card.expected_ms(&need) <= need.budget_ms.into();
        for (chosen, _) in shares {
            let chosen = &routes.get(chosen.as_str()).expect("it was chosen");
            if able.iter().any(|card| fits(&card)) {
                prop_assert!(fits(&chosen));
                if able.iter().filter(fits).any(|card| in_time(&card)) {
                    prop_assert!(in_time(&chosen));
                    let cheapest = able.iter().filter(fits).filter(in_time).map(|card| card.cost).min();
                    prop_assert_eq!(Some(chosen.cost), cheapest);
                }
            }
        }
    }
}
