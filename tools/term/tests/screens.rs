//! Screens of every feature in several sizes, compared with those in `tests/screens`.
//! `THALWEG_BLESS=1 cargo test -p thalweg-term --test screens` writes them anew.

mod stage;

use crossterm::event::{MouseButton, MouseEventKind};
use ratatui::style::Color;
use stage::{MORNING_US, Stage, is_write, message, person};
use thalweg_protocol::ids::GenerationId;
use thalweg_term::{
    About, Answer, ChannelKind, Command, Delivery, Event, Item, Kind, Link, Profile, Request, Role, State, Summary,
};

/// A morning in #general.
fn conversation(columns: u16, lines: u16) -> Stage {
    let mut stage = Stage::general(columns, lines);
    stage.says(1, "grace", "Good morning! Did anybody look at the new compiler?");
    stage.says(2, "grace", "It builds everything twice as fast here.");
    stage.about(3, "linus", 1, message("I did. It is fine, but have a look at the warnings; there are many more of them than before, and some even make sense."));
    stage.about(4, "grace", 3, Kind::Reaction { emoji: "👍".into(), on: true });
    stage.about(5, "ada", 3, Kind::Reaction { emoji: "👍".into(), on: true });
    stage.about(6, "grace", 3, Kind::Reaction { emoji: "🎉".into(), on: true });
    let call = Delivery {
        mentions: vec!["ada".into()],
        ..stage.delivery(7, "linus", message("@ada what do you think? see #design and https://example.org/warnings"))
    };
    stage.item(Item::Delivery(call));
    stage.about(8, "grace", 2, Kind::Edit { body: "It builds everything three times as fast here.".into() });
    stage
}

#[test]
fn a_conversation_in_many_sizes() {
    for (columns, lines) in [(120, 30), (80, 24), (60, 16), (40, 12), (20, 6)] {
        conversation(columns, lines).shows(&format!("conversation-{columns}x{lines}"));
    }
}

#[test]
fn the_first_screens() {
    let mut stage = Stage::dark(60, 10);
    stage.shows("connecting");
    stage.event(Event::Link(Link::Up { epoch: 1 }));
    stage.shows("no-welcome-yet");
    Stage::general(80, 12).shows("empty-channel");
}

#[test]
fn own_messages_wait_are_confirmed_and_fail() {
    let mut stage = conversation(80, 16);
    stage.enters("on my way");
    stage.shows("sending");
    stage.sent(9);
    stage.enters("second");
    stage.refuse(is_write, "you may not write here");
    stage.shows("sent-and-failed");
    stage.enters("/resend");
    stage.sent(10);
    stage.enters("third");
    stage.refuse(is_write, "busy");
    stage.enters("/drop");
    stage.later(9);
    stage.shows("resent-and-dropped");
}

#[test]
fn replies_edits_deletions_and_reactions() {
    let mut stage = conversation(80, 20);
    // Up from the newest: linus' call.
    stage.key("Tab");
    stage.shows("picked");
    stage.key("r");
    stage.types("I like them");
    stage.shows("replying");
    stage.key("Enter");
    let (_, request) = stage.request(is_write);
    assert_eq!(request, Request::Post { channel: "general".into(), body: "I like them".into(), reply_to: 7 });
    let mut stage = conversation(80, 20);
    stage.enters("teh warnings");
    stage.sent(9);
    stage.key("Tab");
    stage.key("e");
    stage.shows("editing");
    for _ in 0.."teh warnings".len() {
        stage.key("Backspace");
    }
    stage.enters("the warnings");
    stage.sent(10);
    stage.enters("/react :tada:");
    stage.sent(11);
    stage.shows("edited-and-reacted");
    stage.key("Tab");
    stage.key("d");
    stage.shows("sure");
    stage.key("d");
    stage.sent(12);
    stage.later(9);
    stage.shows("deleted");
    // What is not ours.
    stage.key("Tab");
    stage.key("Up");
    stage.key("e");
    stage.shows("not-ours");
}

#[test]
fn a_thread_alone() {
    let mut stage = conversation(80, 16);
    stage.about(9, "grace", 3, message("Which ones?"));
    stage.about(10, "linus", 9, message("The ones about lifetimes."));
    stage.key("Tab");
    stage.key("t");
    stage.shows("thread");
    stage.enters("those indeed");
    let (_, request) = stage.request(is_write);
    assert_eq!(request, Request::Post { channel: "general".into(), body: "those indeed".into(), reply_to: 1 });
    stage.key("Esc");
    stage.later(9);
    stage.shows("thread-left");
}

#[test]
fn an_answer_is_written_and_stopped() {
    let mut stage = conversation(80, 18);
    let piece = |position, kind| {
        Item::Delivery(Delivery {
            generation: Some(GenerationId(5)),
            position,
            at_us: MORNING_US + 200_000_000,
            user: "ai/smollm2-135m".into(),
            kind,
            ..Delivery::default()
        })
    };
    stage.enters("/ai what is a river?");
    stage.sent(9);
    stage.item(piece(10, Kind::Started));
    stage.shows("answer-begins");
    stage.item(piece(11, Kind::Tokens { text: " A river is a natural flow of water that".into() }));
    stage.item(piece(12, Kind::Tokens { text: " moves across the land".into() }));
    stage.shows("answer-grows");
    stage.key("C-c");
    assert_eq!(stage.request(|_| true).1, Request::Cancel { generation: GenerationId(5) });
    stage.item(piece(13, Kind::Ended { reason: "cancelled".into() }));
    stage.later(9);
    stage.shows("answer-stopped");
    stage.item(piece(14, message("A river is water.")));
    stage.shows("answer-whole");
    // Nothing runs any more: the key leaves when it is pressed twice.
    stage.key("C-c");
    stage.shows("leaving");
    stage.key("C-c");
    assert!(stage.commands.contains(&Command::Quit));
}

#[test]
fn unread_messages_and_history() {
    let mut stage = Stage::general(80, 16);
    let summary = Summary {
        channel: "design".into(),
        topic: "how it looks".into(),
        head: 300,
        messages: 300,
        read: 290,
        unread: 10,
        ..Summary::default()
    };
    stage.key("M-Up");
    stage.later(15);
    stage.grant(|request| *request == Request::Channels, Answer::Channels(vec![summary]));
    stage.opened("design", 301, 300);
    stage.history(300, |n| format!("message {n}"));
    stage.shows("unread-mark");
    stage.key("PageUp");
    stage.key("PageUp");
    stage.event(Event::Item {
        channel: "design".into(),
        item: Item::Delivery(stage.delivery(301, "grace", message("new below"))),
    });
    stage.shows("scrolled-with-new-below");
    stage.key("C-Home");
    stage.history(300, |n| format!("message {n}"));
    stage.key("C-Home");
    stage.history(300, |n| format!("message {n}"));
    stage.key("C-Home");
    stage.shows("the-oldest");
    stage.key("C-End");
    stage.later(1);
    stage.later(1);
    let (_, request) = stage.request(|request| matches!(request, Request::MarkRead { .. }));
    assert_eq!(request, Request::MarkRead { channel: "design".into(), position: 301, number: 301 });
    stage.shows("the-newest");
    stage.key("M-u");
    stage.shows("the-first-unread");
}

#[test]
fn notes_of_what_happened() {
    let mut stage = Stage::general(80, 16);
    stage.says(1, "grace", "hello");
    stage.deliver(2, "grace", Kind::Membership { user: "bob".into(), role: Some(Role::Invited) });
    stage.deliver(3, "bob", Kind::Membership { user: "bob".into(), role: Some(Role::Member) });
    stage.deliver(4, "grace", Kind::Topic { topic: "compilers".into() });
    stage.item(Item::Presence {
        full: false,
        count: 4,
        users: vec![person("bob", State::Online)],
        left: vec!["linus".into()],
        sampled: false,
    });
    stage.item(Item::Missed { from: 5, to: 7 });
    stage.quietly_later(2);
    stage.item(Item::Typing { user: "grace".into(), on: true });
    stage.item(Item::Typing { user: "bob".into(), on: true });
    stage.shows("notes");
    stage.later(6);
    stage.shows("typing-is-over");
}

#[test]
fn another_day() {
    let mut stage = conversation(60, 20);
    let next = Delivery { at_us: MORNING_US + 86_400_000_000, ..stage.delivery(9, "grace", message("A new day.")) };
    stage.item(Item::Delivery(next));
    stage.shows("days");
}

#[test]
fn the_connection_goes_and_comes_back() {
    let mut stage = conversation(80, 14);
    stage.event(Event::Link(Link::Leaving { delay: std::time::Duration::from_secs(1) }));
    stage.shows("leaving-node");
    stage.event(Event::Link(Link::Trying { attempt: 1, reason: "no answer".into() }));
    stage.enters("are you there?");
    stage.later(12);
    stage.event(Event::Link(Link::Trying { attempt: 3, reason: "no answer\u{1b}[2J".into() }));
    stage.shows("reconnecting");
    stage.event(Event::Link(Link::Up { epoch: 2 }));
    stage.sent(9);
    stage.shows("connected-again");
    stage.event(Event::Link(Link::Over { reason: "the token was revoked".into() }));
    stage.shows("over");
    let mut small = conversation(40, 12);
    small.event(Event::Link(Link::Trying { attempt: 3, reason: "no answer".into() }));
    small.shows("reconnecting-40x12");
}

#[test]
fn commands_are_completed_and_explained() {
    let mut stage = conversation(80, 14);
    stage.types("/cr");
    stage.shows("complete-command");
    stage.key("Tab");
    stage.types("team --private our team");
    stage.key("Enter");
    let (_, request) = stage.request(|request| matches!(request, Request::Create { .. }));
    assert_eq!(request, Request::Create { channel: "team".into(), private: true, topic: "our team".into() });
    stage.types("hi @");
    stage.shows("complete-people");
    stage.key("Tab");
    stage.key("Tab");
    stage.types("see #");
    stage.key("Tab");
    stage.types(":tad");
    stage.shows("complete-emoji");
    stage.key("Tab");
    stage.shows("completed");
    stage.key("C-u");
    stage.enters("/nonsense");
    stage.shows("unknown-command");
    stage.key("C-u");
    stage.enters("/role grace king");
    stage.shows("command-usage");
}

#[test]
fn cards_and_searches() {
    let mut stage = conversation(80, 18);
    stage.enters("/whois grace");
    let profile = Profile {
        user: "grace".into(),
        display: "Grace H.".into(),
        about: "compilers\nand\u{202e} ships".into(),
        status: "at sea".into(),
        state: State::Online,
        seen_us: 0,
    };
    stage.grant(|request| matches!(request, Request::Profile { .. }), Answer::Profile(profile));
    stage.shows("whois");
    stage.key("Esc");
    stage.enters("/info");
    let members = vec![("grace".into(), Role::Owner), ("ada".into(), Role::Member), ("linus".into(), Role::Moderator)];
    let about = About {
        channel: "general".into(),
        topic: "all".into(),
        members_total: 3,
        members,
        created_us: MORNING_US,
        messages: 8,
        role: Some(Role::Member),
        kind: ChannelKind::Open,
    };
    stage.grant(|request| matches!(request, Request::About { .. }), Answer::About(about));
    stage.shows("info");
    stage.key("q");
    stage.enters("/who");
    let users = vec![person("linus", State::Away), person("grace", State::Online)];
    stage.grant(|request| matches!(request, Request::Who { .. }), Answer::Who { count: 40, users, complete: false });
    stage.shows("who");
    stage.key("Esc");
    stage.enters("/search compiler");
    stage.shows("searching");
    let hits = vec![stage.delivery(1, "grace", message("Good morning! Did anybody look at the new compiler?"))];
    stage.grant(|request| matches!(request, Request::Search { .. }), Answer::Found { hits, next: 0 });
    stage.shows("found");
    stage.key("Enter");
    stage.shows("found-message");
    stage.key("Esc");
    stage.enters("/profile status reading");
    let profile = Profile { user: "ada".into(), display: "Ada".into(), about: "x".into(), ..Profile::default() };
    stage.grant(|request| matches!(request, Request::Profile { .. }), Answer::Profile(profile));
    let (_, request) = stage.request(|request| matches!(request, Request::SetProfile { .. }));
    assert_eq!(request, Request::SetProfile { display: "Ada".into(), about: "x".into(), status: "reading".into() });
}

#[test]
fn help_scrolls() {
    let mut stage = conversation(80, 24);
    stage.key("F1");
    stage.shows("help");
    stage.key("PageDown");
    stage.key("PageDown");
    stage.shows("help-scrolled");
    stage.key("Esc");
    let mut small = conversation(40, 12);
    small.enters("/help");
    small.shows("help-40x12");
}

#[test]
fn panes_come_and_go() {
    let mut stage = conversation(80, 12);
    stage.key("F2");
    stage.key("F3");
    stage.shows("panes-hidden");
    let mut stage = conversation(40, 12);
    stage.key("F2");
    stage.shows("sidebar-over-40x12");
    stage.key("Esc");
    stage.key("F3");
    stage.shows("people-over-40x12");
}

#[test]
fn people_of_a_large_channel() {
    let mut stage = conversation(80, 12);
    let users = (0..64).map(|n| person(&format!("user-{n:02}"), State::Online)).collect();
    stage.item(Item::Presence { full: true, count: 9_876, users, left: Vec::new(), sampled: true });
    stage.shows("large-channel");
}

#[test]
fn the_mouse_scrolls_picks_and_opens() {
    let mut stage = Stage::general(80, 16);
    (1..40).for_each(|n| stage.says(n, "grace", &format!("message {n}")));
    for _ in 0..3 {
        stage.mouse(MouseEventKind::ScrollUp, 40, 5);
    }
    stage.shows("wheel");
    stage.mouse(MouseEventKind::Down(MouseButton::Left), 40, 5);
    stage.shows("clicked-message");
    stage.mouse(MouseEventKind::Down(MouseButton::Left), 4, 2);
    stage.shows("clicked-channel");
}

#[test]
fn several_lines_are_written() {
    let mut stage = conversation(60, 18);
    stage.types("first");
    stage.key("M-Enter");
    stage.types("second");
    stage.key("C-j");
    stage.types("third");
    stage.key("Up");
    stage.types("!");
    stage.shows("several-lines");
    stage.key("C-u");
    stage.event(Event::Paste("pasted\r\ntext \u{1b}[31m".into()));
    stage.shows("pasted");
    stage.key("Enter");
    stage.key("Up");
    stage.shows("line-of-before");
}

#[test]
fn hostile_messages_are_harmless() {
    let mut stage = Stage::general(60, 24);
    stage.says(1, "ev\u{1b}il", "\u{1b}[2J\u{1b}]0;owned\u{7} \u{9b}31m");
    stage.says(2, "mallory", "\u{202e}gpj.exe\u{202c} pay\u{200b}pal");
    stage.says(3, "zalgo", &format!("Z{}algo", "\u{301}".repeat(300)));
    stage.says(4, "mallory", "\u{301}\u{301} floats");
    stage.says(5, "wide", "日本語のメッセージ、とても広い文字が続きますので折り返しが必要です");
    stage.says(6, "long", &"x".repeat(5_000));
    stage.deliver(7, "mallory", Kind::Topic { topic: "a\nb\u{1b}c".into() });
    stage.about(8, "mallory", 5, Kind::Reaction { emoji: "\u{1b}[1m\u{202e}".into(), on: true });
    stage.item(Item::Typing { user: "m\u{7}".into(), on: true });
    stage.item(Item::Presence {
        full: false,
        count: 4,
        users: vec![person("a\u{1b}[7m", State::Online)],
        left: Vec::new(),
        sampled: false,
    });
    stage.shows("hostile");
}

#[test]
fn long_messages_are_folded() {
    let mut stage = Stage::general(60, 20);
    stage.says(1, "grace", &(0..60).map(|n| format!("line {n}\n")).collect::<String>());
    stage.says(2, "grace", "```\nlet x = 1;\n```\nand `code`");
    stage.shows("folded");
    stage.key("Tab");
    stage.key("Up");
    stage.key("Enter");
    stage.shows("unfolded");
}

#[test]
fn themes_colour_or_do_not() {
    let colours = |stage: &Stage| {
        let buffer = stage.buffer();
        buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    let mut stage = conversation(80, 24);
    assert!(colours(&stage));
    let dark = stage.buffer();
    stage.enters("/theme light");
    let light = stage.buffer();
    assert!(colours(&stage) && dark != light);
    stage.enters("/theme plain");
    assert!(!colours(&stage), "without colours");
    stage.enters("/theme nonsense");
    assert!(stage.screen().contains("dark, light and plain"));
}

#[test]
fn who_is_away_and_who_types_is_told() {
    let mut stage = conversation(80, 12);
    stage.types("h");
    stage.types("ello");
    let typing = |on| Command::Typing { channel: "general".into(), on };
    assert_eq!(stage.commands.iter().filter(|command| **command == typing(true)).count(), 1);
    stage.later(3);
    stage.types("!");
    assert_eq!(stage.commands.iter().filter(|command| **command == typing(true)).count(), 2);
    stage.key("Enter");
    assert!(!stage.commands.contains(&typing(false)), "the message says it");
    // Soon after a message it is told a little later, and taken back when nothing is left of the line.
    stage.commands.clear();
    stage.types("again");
    assert!(!stage.commands.contains(&typing(true)));
    assert!(stage.app.wake() <= Some(stage.now.mono + std::time::Duration::from_millis(2_600)));
    stage.later(3);
    assert!(stage.commands.contains(&typing(true)));
    stage.key("C-u");
    assert!(stage.commands.contains(&typing(false)));
    stage.types("/join");
    stage.later(400);
    assert!(stage.commands.contains(&Command::Present(State::Away)));
    stage.shows("away");
    stage.types("x");
    assert!(stage.commands.contains(&Command::Present(State::Online)));
}

#[test]
fn a_channel_is_entered_left_and_refused() {
    let mut stage = conversation(80, 12);
    stage.enters("/join nowhere");
    stage.refuse(|request| matches!(request, Request::Join { .. }), "there is no channel nowhere");
    stage.shows("join-refused");
    stage.enters("/dm grace");
    let direct = About {
        channel: "dm/ffff".into(),
        kind: ChannelKind::Direct,
        members: vec![("ada".into(), Role::Member), ("grace".into(), Role::Member)],
        ..About::default()
    };
    stage.grant(|request| matches!(request, Request::Direct { .. }), Answer::About(direct));
    stage.later(9);
    stage.event(Event::Item {
        channel: "dm/ffff".into(),
        item: Item::Delivery(stage.delivery(1, "grace", message("psst"))),
    });
    stage.shows("direct");
    stage.enters("/leave");
    assert!(stage.commands.contains(&Command::Unwatch { channel: "dm/ffff".into() }));
    stage.event(Event::Shut { channel: "general".into(), reason: "you were removed".into() });
    stage.shows("shut");
    stage.enters("hello?");
    assert!(!stage.commands.iter().any(|command| matches!(command, Command::Ask { request, .. } if is_write(request))));
}
