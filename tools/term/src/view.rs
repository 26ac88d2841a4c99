//! The screen.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::widgets::{Block, Clear, Widget as _};
use unicode_segmentation::UnicodeSegmentation as _;

use crate::app::App;
use crate::chat::{Chat, Draft, Live};
use crate::clock::lasted;
use crate::complete::SHOWN_MAX;
use crate::event::{ChannelKind, Link, Person, State};
use crate::ink::{Ink, Line, Piece, author};
use crate::layout::{Areas, PROMPT};
use crate::popup::{Found, KEYS, PICKED_KEYS, Popup};
use crate::rows::sign;
use crate::slash::VERBS;
use crate::text::{clean_line, fill, fit, width};

/// Draws the application as it is now.
pub fn render(app: &App, frame: &mut Frame<'_>) {
    let area = frame.area();
    let areas = Areas::of(app);
    let mut screen = Screen { app, areas, buffer: frame.buffer_mut(), area };
    screen.title();
    screen.banner();
    screen.timeline();
    screen.sidebar();
    screen.people();
    screen.status();
    let cursor = screen.input();
    screen.completion();
    screen.popup();
    if let Some(cursor) = cursor.filter(|at| area.contains(*at) && app.popup.is_none()) {
        frame.set_cursor_position(cursor);
    }
}

struct Screen<'a> {
    app: &'a App,
    areas: Areas,
    buffer: &'a mut Buffer,
    /// The terminal may be smaller than the application knows: nothing is drawn outside.
    area: Rect,
}

impl Screen<'_> {
    fn style(&self, ink: Ink) -> Style {
        self.app.theme.style(ink)
    }

    /// Draws pieces from a place on, as far as `right`; gives where they end.
    fn line(&mut self, mut x: u16, y: u16, right: u16, line: &[Piece], base: Style) -> u16 {
        let right = right.min(self.area.right());
        for piece in line {
            let style = base.patch(self.style(piece.ink));
            for grapheme in piece.text.graphemes(true) {
                let columns = u16::try_from(width(grapheme)).unwrap_or(u16::MAX);
                if columns == 0 || y >= self.area.bottom() {
                    continue;
                }
                if x.saturating_add(columns) > right {
                    return x;
                }
                self.buffer.set_stringn(x, y, grapheme, usize::from(columns), style);
                x += columns;
            }
        }
        x
    }

    fn paint(&mut self, area: Rect, style: Style) {
        self.buffer.set_style(area.intersection(self.area), style);
    }

    fn title(&mut self) {
        let area = self.areas.title;
        if area.is_empty() {
            return;
        }
        let bar = self.app.theme.bar();
        self.paint(area, bar);
        let state = self.connection();
        let state_columns: u16 = state.iter().map(|piece| width(&piece.text) as u16).sum();
        let right = area.right().saturating_sub(state_columns + 1);
        let mut line = vec![Piece::new(" ", Ink::Plain)];
        if let Some(chat) = self.app.chat() {
            line.push(Piece::new(chat.title(&self.app.me), Ink::Strong));
            if chat.kind == ChannelKind::Private {
                line.push(Piece::new(" (private)", Ink::Dim));
            }
            if chat.thread.is_some() {
                line.push(Piece::new(" · thread", Ink::Warning));
            }
            if !chat.topic.is_empty() && chat.kind != ChannelKind::Direct {
                line.push(Piece::new(format!(" · {}", chat.topic), Ink::Dim));
            }
        }
        self.line(area.x, area.y, right.saturating_sub(1), &line, bar);
        self.line(right.max(area.x), area.y, area.right(), &state, bar);
    }

    /// How the connection stands, in a few letters.
    fn connection(&self) -> Line {
        let me = clean_line(&self.app.me);
        match &self.app.link {
            Link::Up { .. } => {
                let (sign, ink) =
                    if self.app.state == State::Away { ("◐", Ink::Warning) } else { ("●", Ink::Good) };
                vec![Piece::new(format!("{sign} "), ink), Piece::new(fit(&me, 20), author(&me))]
            }
            Link::Leaving { .. } => vec![Piece::new("◌ node restarts", Ink::Warning)],
            Link::Trying { attempt, .. } => vec![Piece::new(format!("◌ reconnecting ({attempt})"), Ink::Warning)],
            Link::Over { .. } => vec![Piece::new("✗ disconnected", Ink::Error)],
        }
    }

    /// What is wrong with the connection, since when, and what becomes of what is written.
    fn banner(&mut self) {
        let area = self.areas.banner;
        if area.is_empty() {
            return;
        }
        let since = lasted(self.app.now.mono.saturating_sub(self.app.link_since));
        let sent = match self.app.unconfirmed() {
            0 => String::new(),
            1 => "; 1 message waits".to_owned(),
            many => format!("; {many} messages wait"),
        };
        let text = match &self.app.link {
            Link::Up { .. } => return,
            Link::Leaving { delay } => format!("the node restarts; back in about {}{sent}", lasted(*delay)),
            Link::Trying { attempt, reason } if reason.is_empty() => format!("connecting, try {attempt}{sent}"),
            Link::Trying { attempt, reason } => {
                format!("no connection for {since}, try {attempt}{sent}: {}", clean_line(reason))
            }
            Link::Over { reason } => format!("the connection is over{sent}: {}", clean_line(reason)),
        };
        self.line(area.x + 1, area.y, area.right(), &[Piece::new(text, Ink::Warning)], Style::new());
    }

    fn timeline(&mut self) {
        let area = self.areas.timeline;
        let Some((sight, _)) = self.app.sight() else { return };
        if area.is_empty() {
            return;
        }
        let window = sight.window(usize::from(area.height));
        let picked = sight.chat.picked;
        if window.rows.is_empty() {
            return self.emptiness(sight.chat);
        }
        let top = area.bottom().saturating_sub(window.rows.len() as u16);
        for (n, row) in window.rows.iter().enumerate() {
            let y = top + n as u16;
            let base = if row.key.is_some() && row.key == picked {
                let style = self.app.theme.picked();
                self.paint(Rect::new(area.x, y, area.width, 1), style);
                self.line(area.x, y, area.right(), &[Piece::new("▌", Ink::Mention)], style);
                style
            } else {
                Style::new()
            };
            self.line(area.x + 1, y, area.right(), &row.line, base);
        }
        if window.at_top && sight.chat.paging.is_some() && window.rows.len() < usize::from(area.height) {
            let text = Piece::new("older messages are coming…", Ink::Dim);
            self.line(area.x + 1, area.y, area.right(), &[text], Style::new());
        }
    }

    fn emptiness(&mut self, chat: &Chat) {
        let area = self.areas.timeline;
        let text = match &chat.live {
            Live::Idle | Live::Opening => "one moment…".to_owned(),
            Live::Reading if chat.paging.is_some() => "one moment…".to_owned(),
            Live::Reading => "Nothing was said here yet. /help shows what can be done.".to_owned(),
            Live::Shut(reason) => format!("not read: {reason}"),
        };
        let (lines, _) =
            crate::ink::wrap(&text, usize::from(area.width).saturating_sub(2), "", usize::from(area.height));
        let y = area.y + area.height / 2;
        for (n, line) in lines.iter().enumerate() {
            let line: Line = line.iter().map(|piece| Piece::new(piece.text.clone(), Ink::Dim)).collect();
            if y + (n as u16) < area.bottom() {
                self.line(area.x + 1, y + n as u16, area.right(), &line, Style::new());
            }
        }
    }

    /// A line between a pane and the conversation, or a blank ground over it.
    fn pane(&mut self, area: Rect, left: bool) {
        if self.areas.overlays() {
            Clear.render(area.intersection(self.area), self.buffer);
            self.paint(area, self.app.theme.bar());
            return;
        }
        let x = if left { area.right() } else { area.x.saturating_sub(1) };
        for y in area.y..area.bottom() {
            self.line(x, y, x + 1, &[Piece::new("│", Ink::Day)], Style::new());
        }
    }

    fn sidebar(&mut self) {
        let Some(area) = self.areas.sidebar.filter(|area| !area.is_empty()) else { return };
        self.pane(area, true);
        let ground = if self.areas.overlays() { self.app.theme.bar() } else { Style::new() };
        let rows = sidebar_rows(self.app, area);
        for (n, row) in rows.into_iter().enumerate() {
            let y = area.y + n as u16;
            match row {
                SidebarRow::Head(text) => {
                    self.line(area.x + 1, y, area.right(), &[Piece::new(text, Ink::Dim)], ground);
                }
                SidebarRow::Channel(chat) => self.channel(area, y, chat, ground),
            }
        }
    }

    fn channel(&mut self, area: Rect, y: u16, chat: &Chat, ground: Style) {
        let base = if chat.name == self.app.open {
            self.paint(Rect::new(area.x, y, area.width, 1), self.app.theme.picked());
            self.app.theme.picked()
        } else {
            ground
        };
        let count = match (chat.mentions, chat.unread) {
            (0, 0) => Piece::new("", Ink::Plain),
            (0, unread) => Piece::new(counted(unread), Ink::Warning),
            (_, unread) => Piece::new(format!("@{}", counted(unread)), Ink::Called),
        };
        let columns = width(&count.text) as u16;
        let mut line = Line::new();
        if chat.kind == ChannelKind::Direct {
            let other = chat.people.values().find(|person| person.user != self.app.me);
            let (sign, ink) = sign(other.map_or(State::Offline, |person| person.state));
            line.push(Piece::new(format!("{sign} "), ink));
        } else if chat.kind == ChannelKind::Private {
            line.push(Piece::new("▪ ", Ink::Dim));
        } else {
            line.push(Piece::new("  ", Ink::Dim));
        }
        let ink = match (&chat.live, chat.unread) {
            (Live::Shut(_), _) => Ink::Dim,
            (_, 0) => Ink::Plain,
            _ => Ink::Strong,
        };
        line.push(Piece::new(chat.title(&self.app.me), ink));
        let right = area.right().saturating_sub(columns + u16::from(columns > 0) + 1);
        self.line(area.x, y, right, &line, base);
        self.line(area.right().saturating_sub(columns + 1), y, area.right(), &[count], base);
    }

    fn people(&mut self) {
        let Some(area) = self.areas.people.filter(|area| !area.is_empty()) else { return };
        self.pane(area, false);
        let ground = if self.areas.overlays() { self.app.theme.bar() } else { Style::new() };
        let Some(chat) = self.app.chat() else { return };
        let head = Piece::new(format!("{} here", chat.present), Ink::Dim);
        self.line(area.x + 1, area.y, area.right(), &[head], ground);
        let lines = usize::from(area.height).saturating_sub(1);
        let people = people_rows(chat);
        let all = people.len() <= lines && !chat.sampled;
        let shown = if all { people.len() } else { lines.saturating_sub(1).min(people.len()) };
        for (n, person) in people.iter().take(shown).enumerate() {
            let (sign, ink) = sign(person.state);
            let user = clean_line(&person.user);
            let name = if person.state == State::Offline { Ink::Dim } else { author(&user) };
            let line = [Piece::new(format!("{sign} "), ink), Piece::new(user, name)];
            self.line(area.x + 1, area.y + 1 + n as u16, area.right(), &line, ground);
        }
        if !all && lines > 0 {
            let known = (chat.present as usize).max(people.len());
            let more = Piece::new(format!("and {} more", known.saturating_sub(shown)), Ink::Dim);
            self.line(area.x + 1, area.y + 1 + shown as u16, area.right(), &[more], ground);
        }
    }

    /// What happens, and what can be done.
    fn status(&mut self) {
        let area = self.areas.status;
        if area.is_empty() {
            return;
        }
        let bar = self.app.theme.bar();
        self.paint(area, bar);
        let right_side = self.place();
        let columns: u16 = right_side.iter().map(|piece| width(&piece.text) as u16).sum();
        let right = area.right().saturating_sub(columns + 1);
        let left = self.happening(usize::from(right.saturating_sub(area.x + 2)));
        self.line(area.x + 1, area.y, right.saturating_sub(1), &left, bar);
        self.line(right.max(area.x), area.y, area.right(), &right_side, bar);
    }

    fn happening(&self, columns: usize) -> Line {
        if let Some(notice) = &self.app.notice {
            return vec![Piece::new(notice.text.clone(), notice.ink)];
        }
        let Some(chat) = self.app.chat() else { return Line::new() };
        let quoted = |position: u64| {
            let said = chat.timeline.said(position);
            said.map_or_else(String::new, |said| {
                let body = chat.timeline.body(position, said).unwrap_or_default();
                format!("{}: {}", said.user, fit(&body.replace('\n', " "), 40))
            })
        };
        if let Some(key) = chat.picked {
            let own = chat.timeline.said(key.position).is_some_and(|said| said.user == self.app.me);
            let keys = match (key.is_unsent(), own) {
                (true, _) => "Enter resend · x drop · Esc",
                (false, true) => "r reply · t thread · + react · e edit · d delete · Esc",
                (false, false) => "r reply · t thread · + react · Esc",
            };
            return vec![Piece::new(keys, Ink::Strong)];
        }
        match chat.draft {
            Draft::Reply(position) => {
                return vec![Piece::new(format!("replying to {}", quoted(position)), Ink::Mention)];
            }
            Draft::Edit(_) => return vec![Piece::new("editing; Esc leaves it as it was", Ink::Mention)],
            Draft::React(position) => {
                return vec![Piece::new(format!("reacting to {}", quoted(position)), Ink::Mention)];
            }
            Draft::New => {}
        }
        let typing: Vec<&str> = chat.typing.keys().map(String::as_str).collect();
        let text = match typing.as_slice() {
            [] => {
                let hint = "F1 help · Tab picks a message";
                let short = if width(hint) > columns { "F1 help" } else { hint };
                return vec![Piece::new(short, Ink::Dim)];
            }
            [one] => format!("{one} is typing…"),
            [one, two] => format!("{one} and {two} are typing…"),
            [one, two, more @ ..] => format!("{one}, {two} and {} more are typing…", more.len()),
        };
        vec![Piece::new(text, Ink::Note)]
    }

    /// What is not on the screen.
    fn place(&self) -> Line {
        let mut line = Line::new();
        let Some(chat) = self.app.chat() else { return line };
        let elsewhere: u64 =
            self.app.chats.values().filter(|other| other.name != chat.name).map(|other| other.unread).sum();
        if chat.anchor.is_some() {
            let text = match chat.below {
                0 => "↓ Ctrl-End".to_owned(),
                below => format!("↓ {} new, Ctrl-End", counted(below)),
            };
            line.push(Piece::new(text, Ink::New));
        } else if elsewhere > 0 && self.areas.sidebar.is_none() {
            line.push(Piece::new(format!("{} unread, Alt-A", counted(elsewhere)), Ink::Warning));
        }
        line
    }

    /// What is being written; gives where the cursor is.
    fn input(&mut self) -> Option<Position> {
        let area = self.areas.input;
        let chat = self.app.chat()?;
        if area.is_empty() {
            return None;
        }
        let indent = PROMPT.len() as u16;
        let (rows, (row, column)) = chat.editor.rows(usize::from(area.width.saturating_sub(indent)));
        let height = usize::from(area.height);
        let top = row.saturating_sub(height.saturating_sub(1)).min(rows.len().saturating_sub(height));
        for (n, text) in rows.iter().skip(top).take(height).enumerate() {
            let y = area.y + n as u16;
            let prompt = if n + top == 0 { PROMPT } else { "  " };
            self.line(
                area.x,
                y,
                area.right(),
                &[Piece::new(prompt, Ink::Strong), Piece::new(text.as_str(), Ink::Plain)],
                Style::new(),
            );
        }
        if rows.len() > height {
            let more = format!("{}/{}", row + 1, rows.len());
            let x = area.right().saturating_sub(width(&more) as u16);
            self.line(x, area.y, area.right(), &[Piece::new(more, Ink::Dim)], Style::new());
        }
        let (x, y) = (area.x + indent + column as u16, area.y + row.saturating_sub(top) as u16);
        chat.picked.is_none().then_some(Position::new(x.min(area.right().saturating_sub(1)), y))
    }

    /// What may be meant, above the line being written.
    fn completion(&mut self) {
        let Some(completion) = &self.app.completion else { return };
        let input = self.areas.input;
        let room = usize::from(input.y).min(SHOWN_MAX);
        let chosen = completion.chosen.unwrap_or(0);
        let first = (chosen + 1).saturating_sub(room);
        let shown: Vec<_> = completion.candidates.iter().enumerate().skip(first).take(room).collect();
        let words = shown.iter().map(|(_, candidate)| width(candidate.text.trim_end())).max().unwrap_or(0);
        let area = Rect::new(input.x, input.y - shown.len() as u16, input.width, shown.len() as u16);
        Clear.render(area.intersection(self.area), self.buffer);
        for (n, (index, candidate)) in shown.into_iter().enumerate() {
            let is_chosen = completion.chosen == Some(index);
            let style = if is_chosen { self.app.theme.picked() } else { self.app.theme.bar() };
            let y = area.y + n as u16;
            self.paint(Rect::new(area.x, y, area.width, 1), style);
            let mark = if is_chosen { "›" } else { " " };
            let line = [
                Piece::new(format!("{mark}{} ", fill(candidate.text.trim_end(), words)), Ink::Strong),
                Piece::new(clean_line(&candidate.note), Ink::Dim),
            ];
            self.line(area.x, y, area.right(), &line, style);
        }
    }

    fn popup(&mut self) {
        let Some(popup) = &self.app.popup else { return };
        let area = Areas::popup(self.app.size).intersection(self.area);
        if area.width < 4 || area.height < 3 {
            return;
        }
        Clear.render(area, self.buffer);
        let (title, lines, scroll, picked) = match popup {
            Popup::Help { scroll } => ("Help".to_owned(), help_lines(usize::from(area.width)), *scroll, None),
            Popup::Card(card) => (card.title.clone(), card.lines.clone(), card.scroll, None),
            Popup::Found(found) => {
                let height = usize::from(area.height - 2);
                let scroll = (found.picked + 1).saturating_sub(height);
                (found_title(found), self.found_lines(found), scroll, Some(found.picked))
            }
        };
        let block = Block::bordered().title(fit(&format!(" {title} "), usize::from(area.width - 2)));
        let inner = block.inner(area);
        block.render(area, self.buffer);
        for (n, line) in lines.iter().skip(scroll).take(usize::from(inner.height)).enumerate() {
            let y = inner.y + n as u16;
            let base =
                if picked == Some(n + scroll) && !lines.is_empty() { self.app.theme.picked() } else { Style::new() };
            self.paint(Rect::new(inner.x, y, inner.width, 1), base);
            self.line(inner.x + 1, y, inner.right(), line, base);
        }
        let rest = lines.len().saturating_sub(scroll + usize::from(inner.height));
        let foot = if rest > 0 { " ↓ more · Esc closes " } else { " Esc closes " };
        let x = area.right().saturating_sub(width(foot) as u16 + 1).max(area.x + 1);
        self.line(x, area.bottom() - 1, area.right() - 1, &[Piece::new(foot, Ink::Dim)], Style::new());
    }

    fn found_lines(&self, found: &Found) -> Vec<Line> {
        if found.hits.is_empty() {
            let text = if found.next.is_some() || found.asked.is_some() { "searching…" } else { "nothing was found" };
            return vec![vec![Piece::new(text, Ink::Dim)]];
        }
        let line = |hit: &crate::popup::Hit| {
            vec![
                Piece::new(format!("{} ", self.app.zone.moment(hit.at_us)), Ink::Dim),
                Piece::new(format!("{} ", fit(&hit.user, 16)), author(&hit.user)),
                Piece::new(hit.body.clone(), Ink::Plain),
            ]
        };
        found.hits.iter().map(line).collect()
    }
}

fn found_title(found: &Found) -> String {
    let state = match (found.asked.is_some(), found.next) {
        (true, _) => ", searching",
        (false, Some(_)) => ", and further back",
        (false, None) => ", all searched",
    };
    format!("“{}” in #{}: {}{state}", clean_line(&found.query), clean_line(&found.channel), found.hits.len())
}

/// The help, line by line.
pub(crate) fn help_lines(columns: usize) -> Vec<Line> {
    let row = |keys: String, what: &str| match columns {
        // Below each other where there is no room beside.
        0..60 => vec![vec![Piece::new(keys, Ink::Code)], vec![Piece::new(format!("  {what}"), Ink::Plain)]],
        _ => vec![vec![Piece::new(fill(&keys, 26), Ink::Code), Piece::new(format!(" {what}"), Ink::Plain)]],
    };
    let mut lines: Vec<Line> = Vec::new();
    let head = |lines: &mut Vec<Line>, text: &str| {
        if !lines.is_empty() {
            lines.push(Line::new());
        }
        lines.push(vec![Piece::new(text, Ink::Strong)]);
    };
    head(&mut lines, "Keys");
    KEYS.iter().for_each(|(keys, what)| lines.extend(row((*keys).to_owned(), what)));
    head(&mut lines, "On a picked message");
    PICKED_KEYS.iter().for_each(|(keys, what)| lines.extend(row((*keys).to_owned(), what)));
    head(&mut lines, "Commands");
    VERBS.iter().for_each(|verb| lines.extend(row(format!("/{} {}", verb.name, verb.usage), verb.help)));
    head(&mut lines, "In a message");
    lines.extend(row("@ai QUESTION".to_owned(), "at the beginning: a model answers, for all to see"));
    lines.extend(row("//TEXT".to_owned(), "a message that begins with /"));
    lines
}

fn counted(count: u64) -> String {
    if count > 999 { "999+".to_owned() } else { count.to_string() }
}

enum SidebarRow<'a> {
    Head(&'static str),
    Channel(&'a Chat),
}

/// The lines of the sidebar that have room, with the open channel among them.
fn sidebar_rows(app: &App, area: Rect) -> Vec<SidebarRow<'_>> {
    let (mut rows, mut open) = (Vec::new(), 0);
    let mut direct = None;
    for chat in app.order() {
        let is_direct = chat.kind == ChannelKind::Direct;
        if direct != Some(is_direct) {
            rows.push(SidebarRow::Head(if is_direct { "Direct" } else { "Channels" }));
            direct = Some(is_direct);
        }
        if chat.name == app.open {
            open = rows.len();
        }
        rows.push(SidebarRow::Channel(chat));
    }
    let height = usize::from(area.height);
    let first = (open + 1).saturating_sub(height);
    rows.into_iter().skip(first).take(height).collect()
}

/// The channel at a line of the sidebar.
pub(crate) fn sidebar_channel(app: &App, area: Rect, line: usize) -> Option<String> {
    match sidebar_rows(app, area).into_iter().nth(line)? {
        SidebarRow::Channel(chat) => Some(chat.name.clone()),
        SidebarRow::Head(_) => None,
    }
}

/// Who is here: those awake first.
fn people_rows(chat: &Chat) -> Vec<&Person> {
    let mut people: Vec<&Person> = chat.people.values().collect();
    people.sort_by(|a, b| a.state.cmp(&b.state).then_with(|| a.user.cmp(&b.user)));
    people
}

/// Who is at a line of the people's pane.
pub(crate) fn person_at(app: &App, line: usize) -> Option<String> {
    let chat = app.chat()?;
    people_rows(chat).get(line.checked_sub(1)?).map(|person| person.user.clone())
}
