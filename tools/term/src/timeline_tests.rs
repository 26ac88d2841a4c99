use proptest::prelude::*;

use super::*;

fn delivery(position: u64, user: &str, kind: Kind) -> Delivery {
    Delivery { position, user: user.into(), kind, ..Delivery::default() }
}

fn message(position: u64, user: &str, body: &str) -> Item {
    Item::Delivery(delivery(position, user, Kind::Message { body: body.into(), redacted: false }))
}

fn about(position: u64, user: &str, target: u64, kind: Kind) -> Item {
    Item::Delivery(Delivery { target, ..delivery(position, user, kind) })
}

fn of(position: u64, generation: u64, kind: Kind) -> Item {
    let generation = Some(GenerationId(generation));
    Item::Delivery(Delivery { generation, ..delivery(position, "ai/m", kind) })
}

fn tokens(position: u64, generation: u64, text: &str) -> Item {
    of(position, generation, Kind::Tokens { text: text.into() })
}

/// Everything that can be seen.
fn seen(timeline: &Timeline) -> Vec<String> {
    let mut lines = Vec::new();
    let mut key = None;
    while let Some(next) = timeline.next(key) {
        key = Some(next);
        let line = match timeline.get(next).expect("it was found") {
            Shown::Entry(Entry::Said(said)) => {
                let body = timeline.body(next.position, said).unwrap_or("(deleted)");
                let mut line = format!("{} {}: {body}", next.position, said.user);
                if timeline.is_edited(next.position) {
                    line.push_str(" (edited)");
                }
                for (emoji, count, mine) in timeline.reactions(next.position, "me") {
                    line.push_str(&format!(" {emoji}{count}{}", if mine { "!" } else { "" }));
                }
                line
            }
            Shown::Entry(Entry::Answer(writing)) => {
                let ended = writing.ended.as_deref().unwrap_or("…");
                format!("{}: {}{} [{ended}]", writing.user, if writing.begun { "" } else { "…" }, writing.text())
            }
            Shown::Entry(Entry::Note { text, .. }) => format!("({text})"),
            Shown::Entry(Entry::Traffic { came, left, .. }) => format!("+{came:?} -{left:?}"),
            Shown::Entry(Entry::Gap { to }) => format!("{}..{to} missing", next.position),
            Shown::Unsent(unsent) => format!("? {} {:?}", unsent.body, unsent.failed),
        };
        lines.push(line);
    }
    lines
}

fn check(items: &[Item], expected: &[&str]) {
    let mut timeline = Timeline::default();
    for item in items {
        timeline.apply(item, "me");
    }
    assert_eq!(seen(&timeline), expected, "{items:?}");
    let mut backwards = Timeline::default();
    for item in items.iter().rev() {
        backwards.apply(item, "me");
    }
    assert_eq!(seen(&backwards), expected, "from the end: {items:?}");
    assert_eq!(timeline.kept(), backwards.kept());
}

#[test]
fn records_make_a_timeline_in_any_order() {
    let react =
        |position, user: &str, emoji: &str, on| about(position, user, 1, Kind::Reaction { emoji: emoji.into(), on });
    check(&[message(1, "ada", "hi"), message(2, "bob", "\u{1b}[2J")], &["1 ada: hi", "2 bob: \u{241b}[2J"]);
    let edit = |position, body: &str| about(position, "ada", 1, Kind::Edit { body: body.into() });
    check(&[message(1, "ada", "hi"), edit(2, "ho"), edit(3, "hu")], &["1 ada: hu (edited)"]);
    check(&[message(1, "ada", "hi"), about(2, "ada", 1, Kind::Redaction)], &["1 ada: (deleted)"]);
    check(
        &[
            message(1, "ada", "hi"),
            react(2, "bob", "👍", true),
            react(3, "me", "👍", true),
            react(4, "cy", "x", true),
            react(5, "cy", "x", false),
        ],
        &["1 ada: hi 👍2!"],
    );
    // An answer as it is written, from its beginning and from its middle; ended; and whole.
    check(&[of(1, 7, Kind::Started), tokens(2, 7, "He"), tokens(3, 7, "llo")], &["ai/m: Hello […]"]);
    check(&[tokens(3, 7, "llo")], &["ai/m: …llo […]"]);
    let ended = of(4, 7, Kind::Ended { reason: "cancelled".into() });
    check(&[of(1, 7, Kind::Started), tokens(2, 7, "He"), ended], &["ai/m: He [cancelled]"]);
    let whole = of(4, 7, Kind::Message { body: "Hello".into(), redacted: false });
    check(&[of(1, 7, Kind::Started), tokens(2, 7, "He"), whole], &["4 ai/m: Hello"]);
    check(
        &[
            about(1, "ada", 0, Kind::Membership { user: "bob".into(), role: Some(Role::Moderator) }),
            about(2, "bob", 0, Kind::Membership { user: "bob".into(), role: None }),
            about(3, "ada", 0, Kind::Topic { topic: "a\nb".into() }),
        ],
        &["(ada made bob moderator)", "(bob left the channel)", "(ada set the topic: a b)"],
    );
    check(&[Item::Missed { from: 3, to: 9 }, message(10, "a", "x")], &["3..9 missing", "10 a: x"]);
}

#[test]
fn a_node_that_came_back_with_less_takes_back() {
    let mut timeline = Timeline::default();
    for item in [message(1, "a", "x"), about(3, "a", 1, Kind::Redaction), message(4, "a", "y"), tokens(5, 1, "z")] {
        timeline.apply(&item, "me");
    }
    timeline.apply(&Item::Rewound { to: 2 }, "me");
    timeline.apply(&message(3, "b", "new"), "me");
    assert_eq!(seen(&timeline), ["1 a: x", "3 b: new"]);
    assert_eq!(timeline.head, 3);
}

#[test]
fn own_messages_wait_are_confirmed_or_fail() {
    let mut timeline = Timeline::default();
    timeline.apply(&message(1, "ada", "hi"), "me");
    for (ticket, body) in [(10, "one"), (11, "two"), (12, "three")] {
        assert!(timeline.send(ticket, body, 0, 0));
    }
    timeline.confirm(10, "me", 2, 0);
    timeline.fail(12, "refused".into());
    assert_eq!(seen(&timeline), ["1 ada: hi", "2 me: one", "? two None", "? three Some(\"refused\")"]);
    assert_eq!(timeline.waiting(), 1);
    let failed = timeline.last_failed().expect("one failed");
    assert_eq!(timeline.take_failed(failed).map(|unsent| unsent.body).as_deref(), Some("three"));
    // Confirmed behind what others wrote meanwhile.
    timeline.apply(&message(4, "ada", "ho"), "me");
    timeline.confirm(11, "me", 3, 0);
    assert_eq!(seen(&timeline), ["1 ada: hi", "2 me: one", "3 me: two", "4 ada: ho"]);
    let refused = (0..=UNSENT_MAX).filter(|n| !timeline.send(100 + *n as u64, "x", 0, 0)).count();
    assert_eq!(refused, 1);
}

#[test]
fn who_comes_and_goes_takes_one_line() {
    let name = |text: &str| vec![text.to_owned()];
    let mut timeline = Timeline::default();
    timeline.apply(&message(5, "ada", "hi"), "me");
    timeline.traffic(&name("bob"), &[], 0);
    timeline.traffic(&name("cy"), &name("dora"), 0);
    assert_eq!(seen(&timeline), ["5 ada: hi", r#"+["bob", "cy"] -["dora"]"#]);
    timeline.traffic(&[], &name("bob"), 0);
    timeline.traffic(&name("dora"), &name("cy"), 0);
    assert_eq!(seen(&timeline), ["5 ada: hi"], "they left no trace");
    timeline.traffic(&name("bob"), &[], 0);
    timeline.apply(&message(6, "ada", "ho"), "me");
    timeline.note("mine".into(), 0);
    assert_eq!(seen(&timeline), ["5 ada: hi", r#"+["bob"] -[]"#, "6 ada: ho", "(mine)"]);
}

#[test]
fn threads_are_found_and_memory_is_bounded() {
    let reply = |position, target| about(position, "a", target, Kind::Message { body: "r".into(), redacted: false });
    let mut timeline = Timeline::default();
    for item in [message(1, "a", "root"), reply(2, 1), reply(3, 2), reply(4, 1), reply(5, 5), reply(6, 9)] {
        timeline.apply(&item, "me");
    }
    assert_eq!([1, 2, 3, 5, 6].map(|at| timeline.root(at)), [1, 1, 1, 5, 6]);
    assert_eq!(timeline.replies(1), 2);
    for position in 10..1_000 {
        timeline.apply(&message(position, "a", "x"), "me");
    }
    assert!(timeline.trim(100));
    assert_eq!((timeline.kept(), timeline.from), ((100, 100), 900));
    timeline.apply(&message(2_000, "a", &"x".repeat(BYTES_MAX + 1)), "me");
    timeline.trim(100);
    assert_eq!(timeline.kept().0, 1);
}

proptest! {
    #[test]
    fn any_order_gives_the_same(order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle()) {
        let items: Vec<Item> = (0..40_u64).map(|n| match n % 8 {
            0..=2 => message(n + 1, "ada", &n.to_string()),
            3 => about(n + 1, "ada", n / 8 * 8 + 1, Kind::Edit { body: n.to_string() }),
            4 => about(n + 1, if n % 3 == 0 { "me" } else { "bob" }, n % 5 + 1, Kind::Reaction { emoji: "x".into(), on: n % 16 == 4 }),
            5 => tokens(n + 1, n / 16, &n.to_string()),
            6 => of(n + 1, n / 16, Kind::Started),
            _ if n == 39 => of(n + 1, 0, Kind::Message { body: "whole".into(), redacted: false }),
            _ => about(n + 1, "ada", n % 7 + 1, Kind::Redaction),
        }).collect();
        let build = |order: &[usize]| {
            let mut timeline = Timeline::default();
            for at in order {
                timeline.apply(&items[*at], "me");
            }
            seen(&timeline)
        };
        prop_assert_eq!(build(&order), build(&(0..40).collect::<Vec<_>>()));
    }
}
