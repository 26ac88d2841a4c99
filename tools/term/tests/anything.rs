//! Whatever happens, in whatever order and on whatever screen: nothing panics, and no cell holds what a terminal would obey.

#[allow(dead_code, reason = "the other tests use the rest")]
mod stage;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use proptest::prelude::*;
use stage::Stage;
use thalweg_protocol::ids::GenerationId;
use thalweg_term::{
    About, Answer, ChannelKind, Command, Delivery, Event, Item, Kind, Link, Page, Person, Profile, Refusal, Request,
    Role, State, Summary, Welcome,
};

/// Text as an attacker would write it.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z@#:/` \\n]{0,40}",
        "(\u{1b}\\[2J|\u{7}|\u{9b}|\u{202e}|\u{200b}|\u{301}|日|👩|\u{200d}|[a-z ]){0,40}",
        any::<String>(),
        Just("@ada see #general https://x.y/z `code`".to_owned()),
        Just("```\ncode\n```".to_owned()),
        Just("x".repeat(3_000)),
        Just("line\n".repeat(60)),
    ]
}

fn channel() -> impl Strategy<Value = String> {
    prop_oneof![Just("general"), Just("design"), Just("dm/ffff"), Just("ev\u{1b}il")].prop_map(str::to_owned)
}

fn user() -> impl Strategy<Value = String> {
    prop_oneof![Just("ada"), Just("grace"), Just("li\u{202e}nus"), Just("日本語の名前です")].prop_map(str::to_owned)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => (text(), prop::bool::weighted(0.1)).prop_map(|(body, redacted)| Kind::Message { body, redacted }),
        1 => text().prop_map(|text| Kind::Tokens { text }),
        1 => Just(Kind::Started),
        1 => text().prop_map(|reason| Kind::Ended { reason }),
        1 => text().prop_map(|body| Kind::Edit { body }),
        1 => Just(Kind::Redaction),
        1 => (text(), any::<bool>()).prop_map(|(emoji, on)| Kind::Reaction { emoji, on }),
        1 => (user(), prop::option::of(Just(Role::Owner))).prop_map(|(user, role)| Kind::Membership { user, role }),
        1 => text().prop_map(|topic| Kind::Topic { topic }),
    ]
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let position = prop_oneof![8 => 0_u64..40, 1 => any::<u64>()];
    let target = prop_oneof![8 => 0_u64..40, 1 => any::<u64>()];
    let at_us = prop_oneof![8 => 0_u64..400_000_000_000, 1 => any::<u64>()];
    let generation = prop::option::of((0_u64..3).prop_map(GenerationId));
    (position, at_us, user(), target, prop::option::of(user()), generation, kind()).prop_map(
        |(position, at_us, user, target, mention, generation, kind)| Delivery {
            position: position.min(u64::MAX - 2),
            at_us,
            user,
            number: position.min(1 << 40),
            target,
            mentions: mention.into_iter().collect(),
            generation,
            kind,
        },
    )
}

fn item() -> impl Strategy<Value = Item> {
    let state = prop_oneof![Just(State::Online), Just(State::Away), Just(State::Offline)];
    let person = (user(), state, any::<u64>()).prop_map(|(user, state, since_us)| Person { user, state, since_us });
    let people = prop::collection::vec(person, 0..4);
    let left = prop::collection::vec(user(), 0..3);
    prop_oneof![
        6 => delivery().prop_map(Item::Delivery),
        1 => (0_u64..40, 0_u64..40).prop_map(|(from, to)| Item::Missed { from, to }),
        1 => (0_u64..40).prop_map(|to| Item::Rewound { to }),
        1 => (user(), any::<bool>()).prop_map(|(user, on)| Item::Typing { user, on }),
        1 => (any::<bool>(), any::<u32>(), people, left, any::<bool>())
            .prop_map(|(full, count, users, left, sampled)| Item::Presence { full, count, users, left, sampled }),
    ]
}

fn key() -> impl Strategy<Value = KeyEvent> {
    let code = prop_oneof![
        4 => any::<char>().prop_map(KeyCode::Char),
        8 => prop::sample::select("abdeklmnpruwxyz+?:/#@ jtG19".chars().collect::<Vec<_>>()).prop_map(KeyCode::Char),
        8 => prop::sample::select(vec![
            KeyCode::Enter, KeyCode::Tab, KeyCode::BackTab, KeyCode::Esc, KeyCode::Up, KeyCode::Down, KeyCode::Left,
            KeyCode::Right, KeyCode::PageUp, KeyCode::PageDown, KeyCode::Home, KeyCode::End, KeyCode::Backspace,
            KeyCode::Delete, KeyCode::F(1), KeyCode::F(2), KeyCode::F(3), KeyCode::F(9), KeyCode::Null,
        ]),
    ];
    let modifiers = prop_oneof![
        4 => Just(KeyModifiers::NONE),
        1 => Just(KeyModifiers::CONTROL),
        1 => Just(KeyModifiers::ALT),
    ];
    (code, modifiers).prop_map(|(code, modifiers)| KeyEvent::new(code, modifiers))
}

/// Something that happens; answers are made for the request that is then the oldest.
#[derive(Debug, Clone)]
enum Step {
    Event(Event),
    Types(String),
    Answer(Box<Answer>),
    Refuse(String),
    Later(u64),
    /// Another size, drawn before the application hears of it.
    Resize(u16, u16),
}

fn answer() -> impl Strategy<Value = Answer> {
    let summary =
        (channel(), text(), any::<u8>(), 0_u64..50, 0_u64..50).prop_map(|(channel, topic, kind, head, read)| {
            let kind = [ChannelKind::Open, ChannelKind::Private, ChannelKind::Direct][usize::from(kind) % 3];
            Summary {
                channel,
                kind,
                topic,
                head,
                read,
                unread: head,
                mentions: read,
                messages: head,
                ..Summary::default()
            }
        });
    let page = (0_u64..40, 0_u64..60, prop::collection::vec(item(), 0..8)).prop_map(|(first, next, items)| Page {
        first,
        next,
        head: 60,
        items,
    });
    let members = prop::collection::vec((user(), Just(Role::Member)), 0..4);
    let about = (channel(), text(), members).prop_map(|(channel, topic, members)| About {
        channel,
        topic,
        members,
        kind: ChannelKind::Direct,
        ..About::default()
    });
    prop_oneof![
        Just(Answer::Done),
        (0_u64..60, any::<u64>()).prop_map(|(position, at_us)| Answer::Sent { position, at_us }),
        page.prop_map(Answer::Page),
        prop::collection::vec(summary, 0..5).prop_map(Answer::Channels),
        about.prop_map(Answer::About),
        (user(), text(), any::<u64>()).prop_map(|(user, about, seen_us)| Answer::Profile(Profile {
            user,
            about,
            seen_us,
            ..Profile::default()
        })),
        (prop::collection::vec(delivery(), 0..5), 0_u64..9).prop_map(|(hits, next)| Answer::Found { hits, next }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let mouse = (0_u16..130, 0_u16..45, any::<u8>()).prop_map(|(column, row, kind)| {
        let kinds = [MouseEventKind::ScrollUp, MouseEventKind::ScrollDown, MouseEventKind::Down(MouseButton::Left)];
        Event::Mouse(MouseEvent { kind: kinds[usize::from(kind) % 3], column, row, modifiers: KeyModifiers::NONE })
    });
    let link = prop_oneof![
        Just(Link::Up { epoch: 1 }),
        (any::<u32>(), text()).prop_map(|(attempt, reason)| Link::Trying { attempt, reason }),
        Just(Link::Leaving { delay: std::time::Duration::from_secs(1) }),
        text().prop_map(|reason| Link::Over { reason }),
    ];
    let commands = prop::sample::select(vec![
        "/help",
        "/search x",
        "/thread",
        "/react :tada:",
        "/reply hi",
        "/edit x",
        "/edit",
        "/delete",
        "/leave",
        "/read",
        "/resend",
        "/drop",
        "/stop",
        "/who",
        "/info",
        "/profile",
        "/profile name x",
        "/models",
        "/theme plain",
        "/mouse",
        "/away",
        "/join design",
        "/create x",
        "/dm grace",
        "/role grace owner",
        "/topic t",
        "/quit",
        "hello",
    ]);
    prop_oneof![
        8 => (channel(), item()).prop_map(|(channel, item)| Step::Event(Event::Item { channel, item })),
        8 => key().prop_map(|key| Step::Event(Event::Key(key))),
        3 => commands.prop_map(|line| Step::Types(format!("{line}\n"))),
        1 => text().prop_map(|text| Step::Event(Event::Paste(text))),
        2 => mouse.prop_map(Step::Event),
        2 => link.prop_map(|link| Step::Event(Event::Link(link))),
        1 => any::<bool>().prop_map(|on| Step::Event(Event::Focus(on))),
        1 => Just(Step::Event(Event::Welcome(Welcome { user: "ada".into(), ..Welcome::default() }))),
        2 => (channel(), 0_u64..300, 0_u64..300)
            .prop_map(|(channel, next, head)| Step::Event(Event::Opened { channel, next, head })),
        1 => (channel(), text()).prop_map(|(channel, reason)| Step::Event(Event::Shut { channel, reason })),
        5 => answer().prop_map(|answer| Step::Answer(Box::new(answer))),
        1 => text().prop_map(Step::Refuse),
        2 => (0_u64..500).prop_map(Step::Later),
        2 => prop_oneof![(0_u16..4, 0_u16..4), (0_u16..130, 0_u16..45)].prop_map(|(c, l)| Step::Resize(c, l)),
    ]
}

fn take(stage: &mut Stage, step: Step) {
    match step {
        Step::Event(event) => stage.event(event),
        Step::Types(text) => {
            for c in text.chars() {
                let code = if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) };
                stage.event(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
            }
        }
        Step::Later(seconds) => stage.later(seconds),
        Step::Resize(columns, lines) => {
            stage.size = (columns, lines);
            look(stage);
            stage.event(Event::Resize { columns, lines });
        }
        Step::Answer(answer) => answered(stage, |request| Ok(fitting(request, *answer))),
        Step::Refuse(reason) => answered(stage, |_| Err(Refusal { reason, retry_after: None })),
    }
    assert!(stage.app.wake().is_none_or(|wake| wake > std::time::Duration::ZERO));
}

/// The answer a request may get; a peer that mixes kinds up is no worse than one that says nothing.
fn fitting(request: &Request, answer: Answer) -> Answer {
    match request {
        Request::Post { .. } | Request::Edit { .. } | Request::Redact { .. } | Request::React { .. } => {
            Answer::Sent { position: 17, at_us: 1 }
        }
        _ => answer,
    }
}

fn answered(stage: &mut Stage, answer: impl FnOnce(&Request) -> Result<Answer, Refusal>) {
    let at = stage.commands.iter().position(|command| matches!(command, Command::Ask { .. }));
    let Some(at) = at else { return };
    if let Command::Ask { ticket, request } = stage.commands.remove(at) {
        let result = answer(&request);
        stage.event(Event::Answered { ticket, result });
    }
}

/// Draws, and looks for what a terminal would obey.
fn look(stage: &Stage) {
    let buffer = stage.buffer();
    for cell in buffer.content() {
        let symbol = cell.symbol();
        assert!(!symbol.chars().any(char::is_control), "{symbol:?}");
        assert!(!symbol.contains(['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}']), "{symbol:?}");
        assert!(symbol.chars().count() <= 24, "{symbol:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_breaks_it(
        size in prop_oneof![Just((0, 0)), Just((1, 1)), Just((40, 12)), Just((80, 24)), (0_u16..130, 0_u16..45)],
        met in any::<bool>(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut stage = if met { Stage::general(size.0, size.1) } else { Stage::dark(size.0, size.1) };
        for step in steps {
            take(&mut stage, step);
            look(&stage);
            // A shell carries commands out as they come; only what is not answered piles up here.
            if stage.commands.len() > 200 {
                stage.commands.clear();
            }
        }
    }
}
