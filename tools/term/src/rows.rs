//! The lines of a conversation: what each entry looks like in so many columns, and which of them are on the screen.

use crate::chat::Chat;
use crate::clock::{Now, Zone};
use crate::event::State;
use crate::ink::{Ink, Line, Piece, author, wrap};
use crate::text::{fill, fit, width};
use crate::timeline::{Entry, Key, Said, Shown, Unsent, Writing};

/// A message of more lines is folded to [`FOLDED_LINES`].
const FOLD_LINES: usize = 24;
/// What is shown of a folded message.
const FOLDED_LINES: usize = 12;
/// What is shown of an unfolded one.
const UNFOLDED_LINES: usize = 4_000;
/// From so many columns on, names stand beside what was said; below, above it.
const WIDE: usize = 44;
/// Columns of a name beside what was said, where there is room, and where there is less.
const NAMES: (usize, usize) = (12, 8);
/// From so many columns on there is room for names.
const ROOMY: usize = 64;
/// Messages of one person within this time are one block: five minutes.
const BLOCK_US: u64 = 300_000_000;
/// How far a walk from reply to reply or from line to line goes for one screen.
const STEPS_MAX: usize = 10_000;
/// How a model that writes looks.
const SPINNER: [&str; 8] = ["⠋", "⠙", "⠸", "⠴", "⠦", "⠇", "⠏", "⠛"];
/// How fast the spinner turns.
pub(crate) const SPINNER_MS: u64 = 120;

/// A line of a conversation and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Option<Key>,
    pub(crate) line: Line,
}

/// What fits on a screen.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) rows: Vec<Row>,
    /// There is nothing above that is known here.
    pub(crate) at_top: bool,
}

/// A conversation as somebody looks at it.
pub(crate) struct Sight<'a> {
    pub(crate) chat: &'a Chat,
    pub(crate) me: &'a str,
    pub(crate) zone: &'a Zone,
    pub(crate) now: Now,
    pub(crate) columns: usize,
}

/// What stands at the bottom, and how many of its lines are below the screen.
pub(crate) type Anchor = Option<(Key, usize)>;

/// Which lines are on the screen.
impl Sight<'_> {
    fn previous(&self, mut key: Option<Key>) -> Option<Key> {
        for _ in 0..STEPS_MAX {
            key = Some(self.chat.timeline.previous(key)?);
            if self.belongs(key?) {
                return key;
            }
        }
        None
    }

    fn next(&self, mut key: Option<Key>) -> Option<Key> {
        for _ in 0..STEPS_MAX {
            key = Some(self.chat.timeline.next(key)?);
            if self.belongs(key?) {
                return key;
            }
        }
        None
    }

    /// Whether an entry is shown: all, or those of the thread that is looked at.
    fn belongs(&self, key: Key) -> bool {
        let Some(root) = self.chat.thread else { return true };
        match self.chat.timeline.get(key) {
            Some(Shown::Entry(Entry::Said(_))) => self.chat.timeline.root(key.position) == root,
            Some(Shown::Unsent(unsent)) => self.chat.timeline.root(unsent.target) == root,
            _ => false,
        }
    }

    /// The entry next to `key` that can be picked, or the newest.
    pub(crate) fn pick(&self, key: Option<Key>, down: bool) -> Option<Key> {
        let mut at = key;
        for _ in 0..STEPS_MAX {
            at = Some(if down { self.next(at)? } else { self.previous(at)? });
            if let Some(Shown::Entry(Entry::Said(_) | Entry::Answer(_)) | Shown::Unsent(_)) =
                self.chat.timeline.get(at?)
            {
                return at;
            }
        }
        None
    }

    fn start(&self, anchor: Anchor) -> Option<(Key, usize)> {
        let anchor = anchor.filter(|(key, _)| self.chat.timeline.get(*key).is_some() && self.belongs(*key));
        anchor.or_else(|| self.previous(None).map(|key| (key, 0)))
    }

    /// What is on a screen of so many lines.
    pub(crate) fn window(&self, height: usize) -> Window {
        let mut window = Window { rows: Vec::new(), at_top: true };
        let Some((mut key, mut hidden)) = self.start(self.chat.anchor) else { return window };
        let mut rows = Vec::new();
        loop {
            let mut block = self.block(key);
            block.truncate(block.len().saturating_sub(hidden));
            hidden = 0;
            rows.extend(block.into_iter().rev());
            match self.previous(Some(key)) {
                Some(_) if rows.len() >= height => {
                    window.at_top = false;
                    break;
                }
                Some(previous) => key = previous,
                None => {
                    window.at_top = rows.len() <= height;
                    break;
                }
            }
        }
        rows.truncate(height);
        rows.reverse();
        window.rows = rows;
        window
    }

    /// Where one is after scrolling up by so many lines, with the screen still full.
    pub(crate) fn up(&self, anchor: Anchor, mut lines: usize, height: usize) -> Anchor {
        let (mut key, mut hidden) = self.start(anchor)?;
        loop {
            let rows = self.block(key).len();
            if hidden + lines < rows {
                hidden += lines;
                break;
            }
            match self.previous(Some(key)) {
                Some(previous) => {
                    lines -= rows - hidden;
                    (key, hidden) = (previous, 0);
                }
                None => {
                    hidden = rows.saturating_sub(1);
                    break;
                }
            }
        }
        let above = self.lines_up_to((key, hidden), height);
        self.down(Some((key, hidden)), height - above)
    }

    /// Where one is after scrolling down.
    pub(crate) fn down(&self, anchor: Anchor, mut lines: usize) -> Anchor {
        let (mut key, mut hidden) = anchor?;
        while lines > hidden {
            lines -= hidden;
            key = self.next(Some(key))?;
            hidden = self.block(key).len();
        }
        hidden -= lines;
        (hidden > 0 || self.next(Some(key)).is_some()).then_some((key, hidden))
    }

    /// Where one is with an entry on the screen: there already, or at its middle.
    pub(crate) fn bring(&self, key: Key, height: usize) -> Anchor {
        let window = self.window(height);
        let shown = window.rows.iter().filter(|row| row.key == Some(key)).count();
        let lines = self.block(key).iter().filter(|row| row.key == Some(key)).count();
        if shown >= lines.min(height) {
            return self.chat.anchor;
        }
        let from = Some((key, 0));
        let lowered = self.down(from, (height / 2).min(height.saturating_sub(lines)));
        self.up(lowered, 0, height)
    }

    /// How many lines there are from the top to here, counted up to `limit`.
    fn lines_up_to(&self, (mut key, hidden): (Key, usize), limit: usize) -> usize {
        let mut lines = self.block(key).len().saturating_sub(hidden);
        while lines < limit {
            let Some(previous) = self.previous(Some(key)) else { break };
            key = previous;
            lines += self.block(key).len();
        }
        lines.min(limit)
    }
}

/// What an entry looks like.
impl Sight<'_> {
    /// The lines of an entry, with what stands above it: another day, the line before what is new.
    pub(crate) fn block(&self, key: Key) -> Vec<Row> {
        let before = self.previous(Some(key));
        let previous = before.and_then(|key| self.chat.timeline.get(key));
        let Some(shown) = self.chat.timeline.get(key) else { return Vec::new() };
        let mut rows = Vec::new();
        let at_us = moment(&shown);
        let day = self.zone.day(at_us);
        let other_day = previous.as_ref().is_none_or(|previous| {
            let before = moment(previous);
            before > 0 && self.zone.day(before) != day
        });
        if other_day && at_us > 0 {
            rows.push(self.ruler(&self.zone.day_name(at_us), Ink::Day));
        }
        let is_new = |key: Key| self.chat.mark.is_some_and(|mark| key.position > mark);
        let first_new = is_new(key) && !key.is_unsent() && before.is_none_or(|before| !is_new(before));
        if first_new && (before.is_some() || self.chat.timeline.from <= self.chat.timeline.first) {
            rows.push(self.ruler("new", Ink::New));
        }
        let ruled = !rows.is_empty();
        let lines = match shown {
            Shown::Entry(Entry::Said(said)) => self.said(key, said, previous.filter(|_| !ruled)),
            Shown::Entry(Entry::Answer(writing)) => self.answer(key, writing),
            Shown::Entry(Entry::Note { text, .. }) => self.note(text, Ink::Note),
            Shown::Entry(Entry::Traffic { came, left, .. }) => self.note(&traffic(came, left), Ink::Note),
            Shown::Entry(Entry::Gap { to }) => {
                let (from, to) = (key.position, *to);
                let text = if from == to {
                    format!("message {from} is not kept any more")
                } else {
                    format!("messages {from} to {to} are not kept any more")
                };
                self.note(&text, Ink::Warning)
            }
            Shown::Unsent(unsent) => self.unsent(unsent, previous.filter(|_| !ruled)),
        };
        rows.extend(lines.into_iter().map(|line| Row { key: Some(key), line }));
        rows
    }

    fn wide(&self) -> bool {
        self.columns >= WIDE
    }

    fn name(&self) -> usize {
        if self.columns >= ROOMY { NAMES.0 } else { NAMES.1 }
    }

    /// Columns before what was said.
    fn indent(&self) -> usize {
        if self.wide() { 6 + self.name() + 1 } else { 1 }
    }

    fn body_columns(&self) -> usize {
        self.columns.saturating_sub(self.indent()).max(2)
    }

    fn indented(&self, mut line: Line) -> Line {
        line.insert(0, Piece::new(" ".repeat(self.indent()), Ink::Plain));
        line
    }

    fn ruler(&self, text: &str, ink: Ink) -> Row {
        let text = fit(text, self.columns.saturating_sub(4));
        let dashes = self.columns.saturating_sub(width(&text) + 2);
        let line = format!("{} {text} {}", "─".repeat(dashes / 2), "─".repeat(dashes - dashes / 2));
        Row { key: None, line: vec![Piece::new(fit(&line, self.columns), ink)] }
    }

    fn note(&self, text: &str, ink: Ink) -> Vec<Line> {
        let (lines, _) = wrap(text, self.body_columns(), "", FOLD_LINES);
        let recoloured = |line: Line| line.into_iter().map(|piece| Piece { ink, ..piece }).collect();
        lines.into_iter().map(|line| self.indented(recoloured(line))).collect()
    }

    /// Puts time and name before lines, or above them. `name` is `None` where the same person goes on.
    fn signed(&self, time: Option<String>, name: Option<(&str, Ink)>, mut body: Vec<Line>) -> Vec<Line> {
        if !self.wide() {
            let mut lines: Vec<Line> = body.into_iter().map(|line| self.indented(line)).collect();
            if let Some((name, ink)) = name {
                let mut head = vec![Piece::new(fit(name, self.columns.saturating_sub(6)), ink)];
                head.extend(time.map(|time| Piece::new(format!(" {time}"), Ink::Dim)));
                lines.insert(0, head);
            }
            return lines;
        }
        let first = if body.is_empty() { Line::new() } else { body.remove(0) };
        let mut head = vec![Piece::new(fill(&time.unwrap_or_default(), 6), Ink::Dim)];
        match name {
            Some((name, ink)) => head.push(Piece::new(fill(name, self.name()) + " ", ink)),
            None => head.push(Piece::new(" ".repeat(self.name() + 1), Ink::Plain)),
        }
        head.extend(first);
        let rest = body.into_iter().map(|line| self.indented(line));
        std::iter::once(head).chain(rest).collect()
    }

    /// Whether `previous` was said by the same person just before.
    fn goes_on(&self, previous: Option<&Shown<'_>>, user: &str, at_us: u64) -> (bool, bool) {
        let (name, before) = match previous {
            Some(Shown::Entry(Entry::Said(said))) => (said.user.as_str(), said.at_us),
            Some(Shown::Unsent(unsent)) => (self.me, unsent.at_us),
            _ => return (false, false),
        };
        let same = name == user && at_us.saturating_sub(before) < BLOCK_US;
        (same, same && self.zone.time(before) == self.zone.time(at_us))
    }

    fn said(&self, key: Key, said: &Said, previous: Option<Shown<'_>>) -> Vec<Line> {
        let (same, minute) = self.goes_on(previous.as_ref(), &said.user, said.at_us);
        let same = same && said.target == 0;
        let ink = if said.model { Ink::Model } else { author(&said.user) };
        let mut lines = self.quote(said.target);
        let body = self.chat.timeline.body(key.position, said);
        match body {
            Some(body) => lines.extend(self.folded(key, body)),
            None => lines.push(vec![Piece::new("(deleted)", Ink::Note)]),
        }
        if body.is_some() && self.chat.timeline.is_edited(key.position) {
            self.append(&mut lines, " (edited)", Ink::Dim);
        }
        if body.is_some() {
            lines.extend(self.reactions(key.position));
        }
        let replies = self.chat.timeline.replies(key.position);
        if replies > 0 && self.chat.thread.is_none() {
            let text = if replies == 1 { "↳ 1 reply".to_owned() } else { format!("↳ {replies} replies") };
            lines.push(vec![Piece::new(text, Ink::Dim)]);
        }
        if said.calls_me && self.wide() {
            // Seen at a glance while scrolling.
            for line in &mut lines {
                line.iter_mut().filter(|piece| piece.ink == Ink::Plain).for_each(|piece| piece.ink = Ink::Strong);
            }
        }
        let time = (!minute || !same).then(|| self.zone.time(said.at_us));
        self.signed(time, (!same).then_some((&said.user, ink)), lines)
    }

    fn unsent(&self, unsent: &Unsent, previous: Option<Shown<'_>>) -> Vec<Line> {
        let (same, _) = self.goes_on(previous.as_ref(), self.me, unsent.at_us);
        let same = same && unsent.target == 0;
        let mut lines = self.quote(unsent.target);
        let (body, _) = wrap(&unsent.body, self.body_columns(), self.me, FOLDED_LINES);
        let pending = |line: Line| line.into_iter().map(|piece| Piece { ink: Ink::Pending, ..piece }).collect();
        lines.extend(body.into_iter().map(pending));
        match &unsent.failed {
            None => self.append(&mut lines, " … sending", Ink::Pending),
            Some(reason) => {
                let text = format!("✗ not sent: {reason}. /resend sends it again, /drop forgets it");
                let (reason, _) = wrap(&text, self.body_columns(), "", FOLDED_LINES);
                let red = |line: Line| line.into_iter().map(|piece| Piece { ink: Ink::Error, ..piece }).collect();
                lines.extend(reason.into_iter().map(red));
            }
        }
        self.signed(Some(self.zone.time(unsent.at_us)), (!same).then_some((self.me, author(self.me))), lines)
    }

    fn answer(&self, key: Key, writing: &Writing) -> Vec<Line> {
        let mut body = writing.text().trim_start().to_owned();
        if !writing.begun {
            body.insert(0, '…');
        }
        let mut lines = if body.is_empty() { Vec::new() } else { self.folded_end(key, &body) };
        match &writing.ended {
            Some(reason) => lines.push(vec![Piece::new(format!("({reason})"), Ink::Note)]),
            None => {
                let turn = self.now.mono.as_millis() as usize / SPINNER_MS as usize % SPINNER.len();
                let text = fit(&format!("{} writing… Ctrl-C stops it", SPINNER[turn]), self.body_columns());
                lines.push(vec![Piece::new(text, Ink::Dim)]);
            }
        }
        let time = (writing.at_us > 0).then(|| self.zone.time(writing.at_us));
        self.signed(time, Some((&writing.user, Ink::Model)), lines)
    }

    /// A body, or its beginning if it is long.
    fn folded(&self, key: Key, body: &str) -> Vec<Line> {
        let unfolded = self.chat.unfolded.contains(&key);
        let lines_max = if unfolded { UNFOLDED_LINES } else { FOLD_LINES };
        let (mut lines, all) = wrap(body, self.body_columns(), self.me, lines_max);
        if !all {
            let shown = if unfolded { UNFOLDED_LINES } else { FOLDED_LINES };
            lines.truncate(shown);
            let bytes: usize = lines.iter().flatten().map(|piece| piece.text.len()).sum();
            let rest = format!("… {} more; pick it and press Enter", amount(body.len().saturating_sub(bytes)));
            lines.push(vec![Piece::new(fit(&rest, self.body_columns()), Ink::Dim)]);
        }
        lines
    }

    /// The end of an answer that grows.
    fn folded_end(&self, key: Key, body: &str) -> Vec<Line> {
        let (mut lines, _) = wrap(body, self.body_columns(), self.me, UNFOLDED_LINES);
        if lines.len() > FOLD_LINES && !self.chat.unfolded.contains(&key) {
            lines.drain(..lines.len() - FOLD_LINES);
            lines.insert(0, vec![Piece::new("…", Ink::Dim)]);
        }
        lines
    }

    /// The first words of what is replied to.
    fn quote(&self, target: u64) -> Vec<Line> {
        if target == 0 || self.chat.thread == Some(target) {
            return Vec::new();
        }
        let text = match self.chat.timeline.said(target) {
            None => "┌ an earlier message".to_owned(),
            Some(said) => {
                let body = self.chat.timeline.body(target, said).unwrap_or("(deleted)");
                format!("┌ {}: {}", said.user, body.replace('\n', " "))
            }
        };
        vec![vec![Piece::new(fit(&text, self.body_columns()), Ink::Quote)]]
    }

    fn reactions(&self, position: u64) -> Vec<Line> {
        let (mut lines, mut line, mut used) = (Vec::new(), Line::new(), 0);
        for (emoji, count, mine) in self.chat.timeline.reactions(position, self.me) {
            let text = format!("{} {count}", fit(emoji, 16));
            let columns = width(&text) + 2;
            if used + columns > self.body_columns() && used > 0 {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            used += columns;
            line.push(Piece::new(fit(&text, self.body_columns()), Ink::Reaction(mine)));
            line.push(Piece::new("  ", Ink::Plain));
        }
        if !line.is_empty() {
            lines.push(line);
        }
        lines
    }

    /// Adds words to the last line, or below it if there is no room.
    fn append(&self, lines: &mut Vec<Line>, text: &str, ink: Ink) {
        let used = |line: &Line| line.iter().map(|piece| width(&piece.text)).sum::<usize>();
        match lines.last_mut() {
            Some(line) if used(line) + width(text) <= self.body_columns() => line.push(Piece::new(text, ink)),
            _ => lines.push(vec![Piece::new(fit(text.trim_start(), self.body_columns()), ink)]),
        }
    }
}

fn moment(shown: &Shown<'_>) -> u64 {
    match shown {
        Shown::Entry(Entry::Said(said)) => said.at_us,
        Shown::Entry(Entry::Answer(writing)) => writing.at_us,
        Shown::Entry(Entry::Note { at_us, .. } | Entry::Traffic { at_us, .. }) => *at_us,
        Shown::Entry(Entry::Gap { .. }) => 0,
        Shown::Unsent(unsent) => unsent.at_us,
    }
}

fn traffic(came: &[String], left: &[String]) -> String {
    let list = |names: &[String]| match names.len() {
        0..=4 => names.join(", "),
        many => format!("{} and {} more", names[..3].join(", "), many - 3),
    };
    match (came.is_empty(), left.is_empty()) {
        (false, true) => format!("→ {} came", list(came)),
        (true, false) => format!("← {} left", list(left)),
        _ => format!("→ {} came · ← {} left", list(came), list(left)),
    }
}

fn amount(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        _ => format!("{} kB", bytes / 1_000),
    }
}

/// The sign before a name that says how somebody is.
pub(crate) fn sign(state: State) -> (&'static str, Ink) {
    match state {
        State::Online => ("●", Ink::Good),
        State::Away => ("◐", Ink::Warning),
        State::Offline => ("○", Ink::Dim),
    }
}
