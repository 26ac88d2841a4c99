//! An application without a terminal and without a node: what happens to it is written down, what it shows is compared.

use std::path::Path;
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseEvent, MouseEventKind};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use thalweg_term::{
    About, Answer, App, ChannelKind, Command, Delivery, Event, Item, Kind, Link, Now, Options, Page, Person, Refusal,
    Request, Role, State, Summary, Theme, Ticket, Welcome, Zone, render,
};

/// 2026-11-21T09:41:00Z.
pub(crate) const MORNING_US: u64 = 1_795_254_060_000_000;

pub(crate) struct Stage {
    pub(crate) app: App,
    pub(crate) now: Now,
    pub(crate) size: (u16, u16),
    /// What was to be done, and was not looked at.
    pub(crate) commands: Vec<Command>,
}

impl Stage {
    /// An application that is not connected.
    pub(crate) fn dark(columns: u16, lines: u16) -> Self {
        let options =
            Options { channel: "general".into(), theme: Theme::Dark, zone: Zone::utc(), size: (columns, lines) };
        let now = Now { mono: Duration::from_secs(10), wall_us: MORNING_US };
        Self { app: App::new(options), now, size: (columns, lines), commands: Vec::new() }
    }

    /// `ada` in #general, with three channels and a direct one, and nothing said yet.
    pub(crate) fn general(columns: u16, lines: u16) -> Self {
        let mut stage = Self::dark(columns, lines);
        stage.event(Event::Link(Link::Up { epoch: 1 }));
        let models = vec!["smollm2-135m".to_owned()];
        let (user, tenant) = ("ada".to_owned(), "default".to_owned());
        stage.event(Event::Welcome(Welcome { user, tenant, server: "thalweg/0.1.0".into(), models }));
        stage.grant(|request| matches!(request, Request::Join { .. }), Answer::Done);
        let channel = |channel: &str, kind, topic: &str, unread, mentions| Summary {
            channel: channel.into(),
            kind,
            topic: topic.into(),
            role: Some(Role::Member),
            unread,
            mentions,
            ..Summary::default()
        };
        let list = vec![
            channel("general", ChannelKind::Open, "all of us, about everything", 0, 0),
            Summary {
                head: 300,
                messages: 300,
                read: 290,
                ..channel("design", ChannelKind::Open, "how it looks", 10, 0)
            },
            channel("ops", ChannelKind::Private, "", 3, 1),
            channel("dm/ffff", ChannelKind::Direct, "", 0, 0),
        ];
        stage.grant(|request| *request == Request::Channels, Answer::Channels(list));
        stage.opened("general", 1, 0);
        stage.opened("dm/ffff", 1, 0);
        let members = vec![("ada".into(), Role::Member), ("grace".into(), Role::Member)];
        let direct = About { channel: "dm/ffff".into(), kind: ChannelKind::Direct, members, ..About::default() };
        stage.grant(|r| matches!(r, Request::About { channel } if channel == "dm/ffff"), Answer::About(direct));
        stage.item(Item::Presence {
            full: true,
            count: 3,
            users: vec![person("ada", State::Online), person("grace", State::Online), person("linus", State::Away)],
            left: Vec::new(),
            sampled: false,
        });
        stage.commands.clear();
        stage
    }

    pub(crate) fn event(&mut self, event: Event) {
        let commands = self.app.handle(self.now, event);
        self.commands.extend(commands);
    }

    /// Time passes.
    pub(crate) fn later(&mut self, seconds: u64) {
        self.quietly_later(seconds);
        self.event(Event::Timer);
    }

    /// Time passes, and nothing is due.
    pub(crate) fn quietly_later(&mut self, seconds: u64) {
        self.now.mono += Duration::from_secs(seconds);
        self.now.wall_us += seconds * 1_000_000;
    }

    pub(crate) fn opened(&mut self, channel: &str, next: u64, head: u64) {
        self.event(Event::Opened { channel: channel.into(), next, head });
    }

    /// Something in the open channel.
    pub(crate) fn item(&mut self, item: Item) {
        self.event(Event::Item { channel: "general".into(), item });
    }

    pub(crate) fn deliver(&mut self, position: u64, user: &str, kind: Kind) {
        self.item(Item::Delivery(self.delivery(position, user, kind)));
    }

    pub(crate) fn delivery(&self, position: u64, user: &str, kind: Kind) -> Delivery {
        let at_us = MORNING_US + position * 20_000_000;
        Delivery { position, at_us, user: user.into(), number: position, kind, ..Delivery::default() }
    }

    pub(crate) fn says(&mut self, position: u64, user: &str, body: &str) {
        self.deliver(position, user, message(body));
    }

    /// Something about a message.
    pub(crate) fn about(&mut self, position: u64, user: &str, target: u64, kind: Kind) {
        let delivery = Delivery { target, ..self.delivery(position, user, kind) };
        self.item(Item::Delivery(delivery));
    }

    /// `C-c`, `M-Enter`, `Tab`, `a`.
    pub(crate) fn key(&mut self, name: &str) {
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
            "BackTab" => KeyCode::BackTab,
            "Esc" => KeyCode::Esc,
            "Up" => KeyCode::Up,
            "Down" => KeyCode::Down,
            "Left" => KeyCode::Left,
            "PageUp" => KeyCode::PageUp,
            "PageDown" => KeyCode::PageDown,
            "Home" => KeyCode::Home,
            "End" => KeyCode::End,
            "Backspace" => KeyCode::Backspace,
            "F1" => KeyCode::F(1),
            "F2" => KeyCode::F(2),
            "F3" => KeyCode::F(3),
            letter => KeyCode::Char(letter.chars().next().expect("a key")),
        };
        self.event(Event::Key(KeyEvent::new(code, modifiers)));
    }

    pub(crate) fn types(&mut self, text: &str) {
        for c in text.chars() {
            self.event(Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)));
        }
    }

    pub(crate) fn enters(&mut self, text: &str) {
        self.types(text);
        self.key("Enter");
    }

    pub(crate) fn mouse(&mut self, kind: MouseEventKind, column: u16, row: u16) {
        self.event(Event::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE }));
    }

    /// The newest request that is like this, taken out.
    pub(crate) fn request(&mut self, like: impl Fn(&Request) -> bool) -> (Ticket, Request) {
        let at =
            self.commands.iter().rposition(|command| matches!(command, Command::Ask { request, .. } if like(request)));
        let Some(at) = at else { panic!("no such request: {:?}", self.commands) };
        match self.commands.remove(at) {
            Command::Ask { ticket, request } => (ticket, request),
            other => unreachable!("{other:?}"),
        }
    }

    /// Answers the newest request that is like this.
    pub(crate) fn grant(&mut self, like: impl Fn(&Request) -> bool, answer: Answer) {
        let (ticket, _) = self.request(like);
        self.event(Event::Answered { ticket, result: Ok(answer) });
    }

    pub(crate) fn refuse(&mut self, like: impl Fn(&Request) -> bool, reason: &str) {
        let (ticket, _) = self.request(like);
        let refusal = Refusal { reason: reason.into(), retry_after: None };
        self.event(Event::Answered { ticket, result: Err(refusal) });
    }

    pub(crate) fn sent(&mut self, position: u64) {
        let at_us = MORNING_US + position * 20_000_000;
        self.grant(is_write, Answer::Sent { position, at_us });
    }

    /// Answers a request for history from messages 1 to `head`.
    pub(crate) fn history(&mut self, head: u64, body: impl Fn(u64) -> String) {
        let (ticket, request) = self.request(|request| matches!(request, Request::History { .. }));
        let Request::History { from, limit, .. } = request else { unreachable!("it was asked for") };
        let until = (from + u64::from(limit)).min(head + 1);
        let items = (from..until).map(|position| {
            let user = if position % 3 == 0 { "linus" } else { "grace" };
            Item::Delivery(self.delivery(position, user, message(&body(position))))
        });
        let page = Page { first: 1, next: until, head, items: items.collect() };
        self.event(Event::Answered { ticket, result: Ok(Answer::Page(page)) });
    }

    /// What is on the screen.
    pub(crate) fn buffer(&self) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(self.size.0, self.size.1)).expect("a terminal of memory");
        terminal.draw(|frame| render(&self.app, frame)).expect("it takes all");
        terminal.backend().buffer().clone()
    }

    pub(crate) fn screen(&self) -> String {
        let buffer = self.buffer();
        let mut text = String::new();
        for y in 0..buffer.area.height {
            let mut line = String::new();
            let mut x = 0;
            while x < buffer.area.width {
                let symbol = buffer[(x, y)].symbol();
                line.push_str(symbol);
                x += (unicode_width::UnicodeWidthStr::width(symbol) as u16).max(1);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Compares the screen with the one in `tests/screens`; writes it there when `THALWEG_BLESS` is set.
    pub(crate) fn shows(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens").join(format!("{name}.txt"));
        let screen = self.screen();
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

pub(crate) fn is_write(request: &Request) -> bool {
    matches!(request, Request::Post { .. } | Request::Edit { .. } | Request::Redact { .. } | Request::React { .. })
}

pub(crate) fn message(body: &str) -> Kind {
    Kind::Message { body: body.into(), redacted: false }
}

pub(crate) fn person(user: &str, state: State) -> Person {
    Person { user: user.into(), state, since_us: MORNING_US }
}
