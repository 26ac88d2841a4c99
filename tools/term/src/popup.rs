//! What lies over the conversation: help, a card of facts, what a search found.

use crate::event::Ticket;
use crate::ink::{Ink, Line, Piece};
use crate::text::{clean, clean_line};

/// Messages that a search shows.
pub(crate) const HITS_MAX: usize = 500;

/// Something over the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Popup {
    /// Keys and commands.
    Help {
        /// Lines scrolled.
        scroll: usize,
    },
    Card(Card),
    Found(Found),
}

/// Facts about something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Card {
    pub(crate) title: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) scroll: usize,
}

impl Card {
    pub(crate) fn new(title: String) -> Self {
        Self { title, ..Self::default() }
    }

    pub(crate) fn line(&mut self, line: Line) {
        self.lines.push(line);
    }

    pub(crate) fn text(&mut self, text: &str, ink: Ink) {
        self.lines.push(vec![Piece::new(clean_line(text), ink)]);
    }

    /// A fact, if it says anything.
    pub(crate) fn field(&mut self, name: &str, value: &str) {
        for (n, line) in clean(value).split('\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let name = if n == 0 { name } else { "" };
            self.lines.push(vec![Piece::new(format!("{name:<9} "), Ink::Dim), Piece::new(line, Ink::Plain)]);
        }
    }
}

/// A message that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) position: u64,
    pub(crate) at_us: u64,
    pub(crate) user: String,
    pub(crate) body: String,
}

/// What a search found so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    pub(crate) channel: String,
    pub(crate) query: String,
    /// Newest first.
    pub(crate) hits: Vec<Hit>,
    pub(crate) picked: usize,
    /// The request under way.
    pub(crate) asked: Option<Ticket>,
    /// Where to go on; `None` when all is searched.
    pub(crate) next: Option<u64>,
}

impl Found {
    pub(crate) fn add(&mut self, position: u64, at_us: u64, user: String, body: String) {
        if self.hits.len() < HITS_MAX {
            self.hits.push(Hit { position, at_us, user, body });
        }
    }

    /// Whether enough was found for now: a few screens ahead of where one is.
    pub(crate) fn is_full(&self) -> bool {
        self.hits.len() >= HITS_MAX || self.hits.len() > self.picked + 64
    }
}

/// Keys, for the help.
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("Enter", "send"),
    ("Alt-Enter, Ctrl-J", "another line"),
    ("Tab, Shift-Tab", "complete /commands #channels @people :emoji:"),
    ("Tab on an empty line", "pick a message (also Ctrl-Up, a click)"),
    ("Up, Down", "lines you sent before"),
    ("PageUp, PageDown, wheel", "scroll"),
    ("Ctrl-Home, Ctrl-End", "the oldest loaded, the newest"),
    ("Alt-U", "the first unread message"),
    ("Alt-Up, Alt-Down", "the channel above, below"),
    ("Alt-A", "the next channel with unread messages"),
    ("Alt-1 … Alt-9", "a channel by its number"),
    ("Alt-B", "back to the channel before"),
    ("F2, F3", "channels, people"),
    ("Ctrl-C", "stop an answer; clear the line; twice: leave"),
    ("Ctrl-A E B F, Alt-B F", "move: line, character, word (Alt-B in a line)"),
    ("Ctrl-W U K, Alt-D", "cut: word, to the start, to the end, next word"),
    ("Ctrl-Y, Ctrl-Z, Alt-Z", "put back, undo, redo"),
    ("Ctrl-L", "draw again"),
    ("Esc", "close, cancel"),
];

/// Keys while a message is picked, for the help.
pub(crate) const PICKED_KEYS: &[(&str, &str)] = &[
    ("Up, Down, k, j", "another message"),
    ("r", "reply"),
    ("t", "its thread"),
    ("+", "react"),
    ("e, d", "edit, delete your own"),
    ("Enter", "unfold; send again what failed"),
    ("x", "drop what failed"),
    ("w", "who wrote it"),
];
