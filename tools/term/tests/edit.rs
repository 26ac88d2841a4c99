//! The editor of documents: what its keys do, and its screens, compared with those in `tests/screens`.
//! `THALWEG_BLESS=1 cargo test -p thalweg-term --test edit` writes them anew.

use std::path::Path;
use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use thalweg_client::{DocumentAccess, GenerationId, Operation, Operations, Reject, RejectCode, utf16_len};
use thalweg_term::{EditApp, EditCommand, EditEvent, EditOptions, Peer, Theme, render_edit};

const TEXT: &str = "# A plan\n\nThe quick brown fox jumps over the lazy dog, and then goes home to write it all down.\n\n\
                    - 日本語のテキスト\n- a\ttab and 👩‍💻\n";

struct Desk {
    app: EditApp,
    now: Duration,
    size: (u16, u16),
    /// The document, as it is when all commands are carried out.
    text: String,
    commands: Vec<EditCommand>,
}

impl Desk {
    fn with(text: &str, access: DocumentAccess, size: (u16, u16)) -> Self {
        let options = EditOptions {
            document: "notes".into(),
            user: "ada".into(),
            text: text.into(),
            access,
            theme: Theme::Dark,
            size,
        };
        let app = EditApp::new(options);
        Self { app, now: Duration::from_secs(10), size, text: text.into(), commands: Vec::new() }
    }

    fn new(text: &str) -> Self {
        Self::with(text, DocumentAccess::Write, (60, 12))
    }

    fn event(&mut self, event: EditEvent) {
        if let EditEvent::Changed { operations, .. } | EditEvent::Reverted(Some(operations)) = &event {
            self.text = operations.apply(&self.text).expect("it fits");
        }
        for command in self.app.handle(self.now, event) {
            if let EditCommand::Edit(operations) = &command {
                self.text = operations.apply(&self.text).expect("it fits");
            }
            self.commands.push(command);
        }
        assert_eq!(self.app.text(), self.text, "the screen shows the document");
    }

    /// `C-z`, `S-Right`, `M-a`, `Enter`, `x`.
    fn key(&mut self, name: &str) {
        let mut modifiers = KeyModifiers::NONE;
        let mut rest = name;
        while let Some((prefix, more)) =
            rest.split_once('-').filter(|(prefix, more)| prefix.len() == 1 && !more.is_empty())
        {
            modifiers |= match prefix {
                "C" => KeyModifiers::CONTROL,
                "M" => KeyModifiers::ALT,
                _ => KeyModifiers::SHIFT,
            };
            rest = more;
        }
        let code = match rest {
            "Enter" => KeyCode::Enter,
            "Tab" => KeyCode::Tab,
            "Esc" => KeyCode::Esc,
            "Up" => KeyCode::Up,
            "Down" => KeyCode::Down,
            "Left" => KeyCode::Left,
            "Right" => KeyCode::Right,
            "PageUp" => KeyCode::PageUp,
            "PageDown" => KeyCode::PageDown,
            "Home" => KeyCode::Home,
            "End" => KeyCode::End,
            "Backspace" => KeyCode::Backspace,
            "Delete" => KeyCode::Delete,
            "F1" => KeyCode::F(1),
            "F2" => KeyCode::F(2),
            "F3" => KeyCode::F(3),
            letter => KeyCode::Char(letter.chars().next().expect("a key")),
        };
        self.event(EditEvent::Key(KeyEvent::new(code, modifiers)));
    }

    fn keys(&mut self, names: &str) {
        names.split(' ').for_each(|name| self.key(name));
    }

    fn types(&mut self, text: &str) {
        for c in text.chars() {
            self.event(EditEvent::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)));
        }
    }

    fn others(&mut self, peers: &[(&str, Option<(u32, u32)>)]) {
        #[allow(clippy::type_complexity, reason = "a line of a table")]
        let peer = |(at, (name, cursor)): (usize, &(&str, Option<(u32, u32)>))| Peer {
            client: at as u64 + 1,
            name: (*name).to_owned(),
            cursor: *cursor,
            generation: None,
        };
        self.event(EditEvent::Others(peers.iter().enumerate().map(peer).collect()));
    }

    fn changed(&mut self, operations: Operations) {
        self.event(EditEvent::Changed { operations, user: Some("grace".into()), generation: None });
    }

    fn done(&mut self, like: impl Fn(&EditCommand) -> bool) -> bool {
        let found = self.commands.iter().any(like);
        self.commands.clear();
        found
    }

    fn buffer(&self) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(self.size.0, self.size.1)).expect("a terminal of memory");
        terminal.draw(|frame| render_edit(&self.app, frame)).expect("it takes all");
        terminal.backend().buffer().clone()
    }

    fn shows(&self, name: &str) {
        let buffer = self.buffer();
        let mut screen = String::new();
        for y in 0..buffer.area.height {
            let (mut line, mut x) = (String::new(), 0);
            while x < buffer.area.width {
                let symbol = buffer[(x, y)].symbol();
                line.push_str(symbol);
                x += (unicode_width::UnicodeWidthStr::width(symbol) as u16).max(1);
            }
            screen.push_str(line.trim_end());
            screen.push('\n');
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens").join(format!("edit-{name}.txt"));
        if std::env::var_os("THALWEG_BLESS").is_some_and(|value| value == "1") {
            std::fs::write(&path, &screen).expect("written");
            return;
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            screen == expected,
            "{name} is not as in {}:\n{screen}\nexpected:\n{expected}\nTHALWEG_BLESS=1 writes what is shown",
            path.display()
        );
    }
}

#[test]
fn screens() {
    let mut desk = Desk::new(TEXT);
    desk.shows("alone");
    desk.key("F2");
    desk.others(&[("grace", Some((14, 19))), ("ai/smollm2-135m", Some((95, 95))), ("", None)]);
    desk.shows("others");
    desk.keys("C-End F2");
    desk.event(EditEvent::Unsaved(3));
    desk.shows("unsaved");
    desk.event(EditEvent::Offline("no node answers".into()));
    desk.shows("offline");
    desk.event(EditEvent::Online(DocumentAccess::Write));
    desk.event(EditEvent::Unsaved(0));
    desk.shows("online");
    desk.key("F1");
    desk.event(EditEvent::Resize { columns: 60, lines: 24 });
    desk.size = (60, 24);
    desk.shows("help");
    desk.event(EditEvent::Resize { columns: 60, lines: 12 });
    desk.size = (60, 12);
    desk.key("Esc");
    desk.key("C-f");
    desk.types("fox");
    desk.shows("finding");
    desk.key("Enter");
    desk.shows("found");
    desk.event(EditEvent::Ended("the document was deleted".into()));
    desk.shows("ended");
    Desk::with(TEXT, DocumentAccess::Read, (60, 12)).shows("read-only");
    Desk::with(TEXT, DocumentAccess::Comment, (20, 6)).shows("small");
    Desk::with("\u{1b}[2Jhostile\u{202e}\r\nend\u{0}", DocumentAccess::Write, (40, 5)).shows("hostile");
}

#[test]
fn what_is_typed_is_the_documents() {
    let check = |text: &str, keys: &str, expected: &str| {
        let mut desk = Desk::new(text);
        desk.keys(keys);
        assert_eq!(desk.text, expected, "{text:?} {keys}");
    };
    check("", "a b Enter c", "ab\nc");
    check("one two", "C-Right x", "one xtwo");
    check("one two", "C-End C-Backspace", "one ");
    check("one two", "S-Right S-Right x", "xe two");
    check("one two", "C-e x", "x");
    check("one\ntwo\n", "C-k", "two\n");
    check("one\ntwo\n", "C-k C-End C-v", "two\none\n");
    check("one two", "S-End C-c C-End C-v", "one twoone two");
    check("one two", "S-Right S-Right C-x C-End C-v", "e twoon");
    check("👩‍💻x", "Delete", "x");
    check("👩‍💻x", "Right Backspace", "x");
    check("e\u{301}x", "Right Backspace", "x");
    check("one\r\ntwo", "Down Enter", "one\r\n\r\ntwo");
    check("a\r\nb", "End Delete", "ab");
    check("abc\nab\nabc", "End Down Down x", "abc\nab\nabcx");
    check("abc\nab\nabc", "Right Right Right Down x", "abc\nabx\nabc");
    check("abc", "C-g 1 Enter x", "xabc");
    check("a\nb\nc", "C-g 3 Enter x", "a\nb\nxc");
    check("a fox, a fox", "C-f f o x Enter x F3 x", "a x, a x");
    check("a", "Tab", "\ta");
}

#[test]
fn reading_changes_nothing() {
    for access in [DocumentAccess::Read, DocumentAccess::Comment] {
        let mut desk = Desk::with("text", access, (60, 12));
        desk.keys("x Enter Tab Delete Backspace C-k C-x C-v C-z C-y C-a");
        desk.event(EditEvent::Paste("pasted".into()));
        assert_eq!(desk.text, "text");
        assert!(!desk.done(|command| !matches!(command, EditCommand::Cursor(..) | EditCommand::Separate)));
    }
}

#[test]
fn everything_stays_where_it_is_when_others_edit() {
    let mut desk = Desk::new(TEXT);
    desk.keys("Down Down S-Right S-Right S-Right");
    desk.others(&[("grace", Some((20, 20)))]);
    assert_eq!(desk.app.selection(), (10, 13));
    desk.changed(Operations::new().insert("日👍"));
    assert_eq!(desk.app.selection(), (12, 15));
    // At the very cursor: what others put there comes behind it.
    desk.changed(Operations::new().retain(16).insert("x"));
    assert_eq!(desk.app.selection(), (12, 15));
    desk.changed(Operations::new().retain(3).delete(11));
    assert_eq!(desk.app.selection(), (2, 4));
    desk.key("x");
    assert!(desk.text.starts_with("日👍xx quick"), "{}", desk.text);
}

#[test]
fn pastes_keep_their_lines() {
    let mut desk = Desk::new("[]");
    desk.key("Right");
    desk.event(EditEvent::Paste("a\rb".into()));
    assert_eq!(desk.text, "[a\nb]");
    desk.event(EditEvent::Paste("c\r\nd".into()));
    assert_eq!(desk.text, "[a\nbc\r\nd]");
}

#[test]
fn a_model_is_asked_stopped_and_taken_back() {
    let mut desk = Desk::new("tighten this please");
    desk.keys("C-Right S-End");
    desk.key("C-a");
    desk.types("be brief");
    desk.shows("asking");
    desk.key("Enter");
    let ask = EditCommand::Ask { from: 8, to: 19, instruction: "be brief".into() };
    assert!(desk.done(|command| *command == ask));
    let generation = GenerationId(7);
    desk.event(EditEvent::Asked { generation, model: "smollm2-135m".into() });
    desk.changed(Operations::new().retain(8).insert("it").delete(11));
    desk.others(&[("ai/smollm2-135m", Some((10, 10)))]);
    desk.shows("writing");
    desk.key("M-a");
    assert!(!desk.done(|command| matches!(command, EditCommand::Stop(_))), "one at a time");
    desk.key("Esc");
    assert!(desk.done(|command| *command == EditCommand::Stop(generation)));
    desk.key("Esc");
    assert!(!desk.done(|command| matches!(command, EditCommand::Stop(_))), "it was told already");
    desk.event(EditEvent::Answered(Ok("the AI was stopped after 1 tokens; Ctrl-Z takes them back".into())));
    desk.key("C-z");
    assert!(desk.done(|command| *command == EditCommand::Undo));
    desk.event(EditEvent::Reverted(Some(Operations::new().retain(8).insert("this please").delete(2))));
    assert_eq!(desk.text, "tighten this please");
    desk.key("C-a");
    desk.types("more");
    desk.key("Enter");
    desk.event(EditEvent::Answered(Err("no such model".into())));
    desk.shows("not-asked");
}

#[test]
fn what_a_model_is_writing_is_taken_back_when_it_is_over() {
    let check = |keys: &str, result: Result<String, String>| {
        let mut desk = Desk::new("my words");
        desk.keys("C-a x Enter");
        let generation = GenerationId(7);
        desk.event(EditEvent::Asked { generation, model: "smollm2-135m".into() });
        desk.changed(Operations::new().insert("a "));
        desk.commands.clear();
        desk.keys(keys);
        let stops = desk.commands.iter().filter(|command| matches!(command, EditCommand::Stop(_))).count();
        assert_eq!(stops, 1, "{keys}");
        assert!(
            !desk.done(|command| matches!(command, EditCommand::Undo | EditCommand::TakeBack(_))),
            "{keys}: too early"
        );
        // What had gathered by then comes after it.
        desk.changed(Operations::new().retain(2).insert("few "));
        assert!(
            !desk.done(|command| matches!(command, EditCommand::Undo | EditCommand::TakeBack(_))),
            "{keys}: too early"
        );
        desk.event(EditEvent::Answered(result));
        let backs = desk.commands.iter().filter(|command| **command == EditCommand::TakeBack(generation)).count();
        assert_eq!(backs, 1, "{keys}");
        assert!(!desk.done(|command| *command == EditCommand::Undo), "{keys}: the person's own edit stays");
        desk.event(EditEvent::Reverted(Some(Operations::new().delete(6))));
        desk.key("C-z");
        assert!(desk.done(|command| *command == EditCommand::Undo), "now it is the person's own");
    };
    let stopped = || Ok("the AI was stopped after 2 tokens; Ctrl-Z takes them back".to_owned());
    check("C-z", stopped());
    check("Esc C-z", stopped());
    check("C-z C-z Esc", stopped());
    check("C-z", Err("it broke".into()));
}

#[test]
fn leaving_with_edits_that_wait() {
    let quits = |desk: &mut Desk| desk.done(|command| *command == EditCommand::Quit);
    let mut desk = Desk::new("text");
    desk.key("C-q");
    assert!(quits(&mut desk));
    desk.event(EditEvent::Offline("it sleeps".into()));
    desk.key("x");
    desk.key("C-q");
    assert!(!quits(&mut desk), "the edit would be lost");
    desk.key("C-q");
    assert!(quits(&mut desk));
}

#[test]
fn leaving_waits_until_all_is_saved() {
    let mut desk = Desk::new("text");
    desk.key("x");
    desk.event(EditEvent::Unsaved(3));
    desk.key("C-q");
    desk.shows("leaving");
    desk.key("C-s");
    assert!(desk.done(|command| *command == EditCommand::Keep));
    desk.event(EditEvent::Kept(Ok("/home/ada/notes.unsaved.txt".into())));
    desk.event(EditEvent::Unsaved(1));
    assert!(!desk.done(|command| *command == EditCommand::Quit), "one is under way");
    desk.event(EditEvent::Unsaved(0));
    assert!(desk.done(|command| *command == EditCommand::Quit));

    let mut desk = Desk::new("text");
    desk.event(EditEvent::Unsaved(2));
    desk.keys("C-q x");
    desk.event(EditEvent::Unsaved(0));
    assert!(!desk.done(|command| *command == EditCommand::Quit), "who goes on typing stays");

    let mut desk = Desk::new("text");
    desk.event(EditEvent::Unsaved(2));
    desk.event(EditEvent::Ended("notes was deleted".into()));
    desk.key("C-q");
    desk.shows("left-behind");
    assert!(!desk.done(|command| *command == EditCommand::Quit), "they would be lost");
    desk.key("C-q");
    assert!(desk.done(|command| *command == EditCommand::Quit));
}

#[test]
fn what_is_typed_at_once_is_one_edit() {
    let check = |text: &str, keys: &str, typed: &str, expected: &str| {
        let mut desk = Desk::new(text);
        if !keys.is_empty() {
            desk.keys(keys);
        }
        desk.commands.clear();
        desk.event(EditEvent::Typed(typed.into()));
        assert_eq!(desk.text, expected, "{text:?} {keys} {typed:?}");
        let edits = desk.commands.iter().filter(|command| matches!(command, EditCommand::Edit(_))).count();
        assert!(edits <= 1, "{edits} edits of {typed:?}");
    };
    check("[]", "Right", "a\tb\nc", "[a\tb\nc]");
    check("one two", "S-End", "日本", "日本");
    check("a\r\nb", "Down", "x\ny", "a\r\nx\r\nyb");
    check("text", "C-f", "xt\n", "text");
    check("text", "F1", "ab", "btext");
}

#[test]
fn a_model_that_an_own_line_asked_is_stopped_and_taken_back() {
    let generation = GenerationId(7);
    let peer = |at| Peer { client: 9, name: "ai/small".into(), cursor: Some((at, at)), generation: Some(generation) };
    let writes = |at| EditEvent::Changed {
        operations: Operations::new().retain(at).insert("\nit"),
        user: Some("ai/small".into()),
        generation: Some(generation),
    };
    let check = |line: &str, event: EditEvent, expected: bool| {
        let mut desk = Desk::new("");
        desk.event(EditEvent::Typed(line.into()));
        // What others do meanwhile moves the place.
        desk.changed(Operations::new().insert("ab"));
        desk.event(event);
        assert_eq!(desk.done(|command| *command == EditCommand::Adopt(generation)), expected, "{line:?}");
        desk.key("Esc");
        assert_eq!(desk.done(|command| *command == EditCommand::Stop(generation)), expected, "{line:?}");
        desk.key("C-z");
        desk.event(EditEvent::Answered(Ok("it stopped".into())));
        assert_eq!(desk.done(|command| *command == EditCommand::TakeBack(generation)), expected, "{line:?}");
    };
    check("@ai be brief\n", EditEvent::Others(vec![peer(14)]), true);
    check("@ai be brief\n", writes(14), true);
    check("one\n  @ai be brief\n", EditEvent::Others(vec![peer(2)]), false);
    check("@ai be brief\n", writes(0), false);
    check("@ai \n", EditEvent::Others(vec![peer(6)]), false);
    check("not @ai x\n", EditEvent::Others(vec![peer(11)]), false);
    check("@ai x\nmore", writes(7), false);
    let mut desk = Desk::new("");
    desk.types("@ai x");
    desk.key("Enter");
    desk.event(EditEvent::Others(vec![peer(5)]));
    assert!(desk.done(|command| *command == EditCommand::Adopt(generation)));
    desk.shows("called");
}

#[test]
fn what_the_node_does_not_take() {
    let mut desk = Desk::new("text");
    desk.types("my ");
    let reject = Reject::new(RejectCode::DocumentTooLarge, "too long");
    desk.event(EditEvent::Refused { reject, text: "my text".into() });
    desk.changed(Operations::new().delete(3));
    assert_eq!(desk.text, "text");
    desk.keys("C-e C-v");
    assert_eq!(desk.text, "my text", "it is in the clipboard");
    desk.text = "another".into();
    desk.event(EditEvent::Reset { text: "another".into(), reason: "too much waits".into() });
}

#[test]
fn the_mouse() {
    let mut desk = Desk::new(TEXT);
    let mouse = |kind, column, row| EditEvent::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE });
    desk.event(mouse(MouseEventKind::Down(MouseButton::Left), 4, 3));
    assert_eq!(desk.app.selection(), (14, 14));
    desk.event(mouse(MouseEventKind::Drag(MouseButton::Left), 9, 3));
    assert_eq!(desk.app.selection(), (14, 19));
    desk.event(mouse(MouseEventKind::Down(MouseButton::Left), 50, 1));
    assert_eq!(desk.app.selection(), (8, 8));
    desk.event(mouse(MouseEventKind::ScrollDown, 0, 0));
    desk.event(mouse(MouseEventKind::ScrollUp, 0, 0));
    desk.event(mouse(MouseEventKind::Down(MouseButton::Left), 0, 11));
}

#[test]
fn long_documents_and_long_lines_are_handled() {
    let lines = "a line of a long document, with some words in it\n".repeat(100_000);
    let long = "word ".repeat(100_000);
    for text in [lines, long] {
        let start = Instant::now();
        let mut app = EditApp::new(EditOptions {
            document: "long".into(),
            user: "ada".into(),
            text,
            access: DocumentAccess::Write,
            theme: Theme::Dark,
            size: (80, 24),
        });
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal of memory");
        for code in [KeyCode::End, KeyCode::Char('x'), KeyCode::PageUp, KeyCode::Home, KeyCode::Enter] {
            let modifiers = if code == KeyCode::End { KeyModifiers::CONTROL } else { KeyModifiers::NONE };
            app.handle(Duration::ZERO, EditEvent::Key(KeyEvent::new(code, modifiers)));
            terminal.draw(|frame| render_edit(&app, frame)).expect("it takes all");
        }
        // Printed, not asserted: the machine may be busy.
        println!("{:?} for five keys and screens", start.elapsed());
    }
}

fn step() -> impl Strategy<Value = EditEvent> {
    let code = prop_oneof![
        6 => prop::sample::select("ab d\u{301}日👍\u{1b}".chars().collect::<Vec<_>>()).prop_map(KeyCode::Char),
        8 => prop::sample::select(vec![
            KeyCode::Enter, KeyCode::Tab, KeyCode::Esc, KeyCode::Up, KeyCode::Down, KeyCode::Left, KeyCode::Right,
            KeyCode::PageUp, KeyCode::PageDown, KeyCode::Home, KeyCode::End, KeyCode::Backspace, KeyCode::Delete,
            KeyCode::F(1), KeyCode::F(2), KeyCode::F(3),
        ]),
        4 => prop::sample::select("acefgkqsvxyz19".chars().collect::<Vec<_>>()).prop_map(KeyCode::Char),
    ];
    let modifiers = prop_oneof![
        4 => Just(KeyModifiers::NONE),
        2 => Just(KeyModifiers::CONTROL),
        1 => Just(KeyModifiers::SHIFT),
        1 => Just(KeyModifiers::ALT),
    ];
    let text =
        prop_oneof![Just("pasted\r\ntext".to_owned()), Just("x".repeat(200)), "[a\u{301}\u{202e}\\r\\n\\t👩‍💻]{0,9}"];
    let mouse = prop::sample::select(vec![
        MouseEventKind::Down(MouseButton::Left),
        MouseEventKind::Drag(MouseButton::Left),
        MouseEventKind::ScrollDown,
        MouseEventKind::ScrollUp,
    ]);
    prop_oneof![
        12 => (code, modifiers).prop_map(|(code, modifiers)| EditEvent::Key(KeyEvent::new(code, modifiers))),
        2 => text.prop_map(EditEvent::Paste),
        1 => (mouse, 0_u16..40, 0_u16..12).prop_map(|(kind, column, row)| {
            EditEvent::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE })
        }),
        1 => (0_u16..40, 0_u16..12).prop_map(|(columns, lines)| EditEvent::Resize { columns, lines }),
        3 => (any::<u32>(), 0_u32..6, "[a日\\n]{0,3}").prop_map(|(at, delete, insert)| EditEvent::Changed {
            operations: Operations::new().retain(at % 97).insert(insert).delete(delete),
            user: None,
            generation: None,
        }),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(from, to)| {
            EditEvent::Others(vec![Peer { client: 1, name: "gr\u{202e}ace".into(), cursor: Some((from, to)), generation: None }])
        }),
        1 => "[a-c @\\n\\t日]{0,9}".prop_map(EditEvent::Typed),
        1 => Just(EditEvent::Offline("gone".into())),
        1 => Just(EditEvent::Asked { generation: GenerationId(1), model: "m".into() }),
        1 => Just(EditEvent::Answered(Ok("done".into()))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens(text in "[a-c 日👍\\n\\t\\r]{0,60}", steps in prop::collection::vec(step(), 0..60)) {
        let mut desk = Desk::with(&text, DocumentAccess::Write, (30, 8));
        for step in steps {
            let step = match step {
                EditEvent::Changed { operations, user, generation } => {
                    // Others' edits fit the text.
                    let mut at = 0;
                    if let Some(Operation::Retain(length)) = operations.parts().first() {
                        at = *length;
                    }
                    let mut units = 0;
                    for c in desk.text.chars() {
                        if units + c.len_utf16() as u32 > at { break; }
                        units += c.len_utf16() as u32;
                    }
                    let fits = Operations::of(operations.parts().iter().filter_map(|part| match part {
                        Operation::Retain(_) => Some(Operation::Retain(units)),
                        Operation::Delete(_) if units == utf16_len(&desk.text) => None,
                        Operation::Delete(_) => {
                            let next = desk.text.chars().scan(0, |sum, c| { *sum += c.len_utf16() as u32; Some((*sum, c)) });
                            next.into_iter().find(|(sum, _)| *sum > units).map(|(_, c)| Operation::Delete(c.len_utf16() as u32))
                        }
                        Operation::Insert(text) => Some(Operation::Insert(text.clone())),
                    }));
                    EditEvent::Changed { operations: fits, user, generation }
                }
                other => other,
            };
            if let EditEvent::Resize { columns, lines } = step {
                desk.size = (columns.max(1), lines.max(1));
            }
            desk.event(step);
            let buffer = desk.buffer();
            for cell in &buffer.content {
                prop_assert!(!cell.symbol().contains(|c: char| c.is_control() || c == '\u{202e}'), "{:?}", cell.symbol());
            }
        }
    }
}
