//! What the editor of a document looks like.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Widget as _};
use unicode_segmentation::UnicodeSegmentation as _;

use super::app::{Asking, EditApp, Row, edits_of};
use super::body::glyph;
use super::event::Peer;
use super::keys::columns;
use crate::ink::{Ink, author};
use crate::text;
use thalweg_client::DocumentAccess;

const HELP: &[&str] = &[
    "",
    " Type, and others see it. Everything is saved as you",
    " type; edits made while the node is away are merged",
    " when it is back.",
    "",
    " arrows Home End PgUp PgDn   move; with Shift select",
    " Ctrl-arrows                 move by words",
    " Ctrl-E                      select all",
    " Ctrl-C  Ctrl-X  Ctrl-V      copy, cut, paste",
    " Ctrl-K                      cut the line",
    " Ctrl-Z  Ctrl-Y              undo, redo your edits",
    " Ctrl-F  F3  Shift-F3        find, next, previous",
    " Ctrl-G                      go to a line",
    " Ctrl-A                      ask the AI about what is",
    "                             selected, or to write here",
    " Esc                         stop the AI; Ctrl-Z then",
    "                             takes back all it wrote",
    " F2                          numbers of lines",
    " Ctrl-S                      keep a copy if offline",
    " Ctrl-Q                      leave",
    "",
    " A line `@ai do something` asks the AI, too.",
    " Any key closes this.",
];

/// Draws an editor.
pub fn render_edit(app: &EditApp, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width == 0 || area.height == 0 {
        return;
    }
    title(app, frame, Rect { height: 1, ..area });
    let mut top = 1;
    if let Some(banner) = app.banner()
        && area.height > 2
    {
        let ink = if app.over.is_some() { Ink::Error } else { Ink::Warning };
        let line = text::fill(&format!(" {banner}"), usize::from(area.width));
        let style = app.theme.bar().patch(app.theme.style(ink));
        Paragraph::new(Span::styled(line, style)).render(Rect { y: 1, height: 1, ..area }, frame.buffer_mut());
        top = 2;
    }
    let height = area.height.saturating_sub(top + 1);
    let body = Rect { y: top, height, ..area };
    page(app, frame, body);
    foot(app, frame, Rect { y: area.height - 1, height: 1, ..area });
    if app.help {
        help(app, frame, area);
    }
}

/// Who is there, and what this is.
fn title(app: &EditApp, frame: &mut Frame<'_>, area: Rect) {
    let theme = app.theme;
    let bar = theme.bar();
    let mut spans = vec![Span::styled(format!(" {} ", app.document), bar.add_modifier(Modifier::BOLD))];
    let mode = match app.access {
        DocumentAccess::Write => "",
        DocumentAccess::Comment => "· you may comment ",
        DocumentAccess::Read => "· read only ",
    };
    spans.push(Span::styled(mode, bar.patch(theme.style(Ink::Warning))));
    let used: usize = spans.iter().map(|span| text::width(&span.content)).sum();
    let mut who = vec![(format!("{} (you)", app.user), author(&app.user))];
    who.extend(app.peers.iter().map(|peer| (name(peer), ink(peer))));
    let room = usize::from(area.width).saturating_sub(used + 1);
    let total: usize = who.iter().map(|(name, _)| text::width(name) + 3).sum();
    if total > room {
        let count = format!("{} here", who.len());
        who = vec![(count, Ink::Plain)];
    }
    let total: usize = who.iter().map(|(name, _)| text::width(name) + 3).sum::<usize>().saturating_sub(1);
    let gap = room.saturating_sub(total);
    spans.push(Span::styled(" ".repeat(gap), bar));
    if total <= room {
        for (at, (name, ink)) in who.into_iter().enumerate() {
            let sign = if at == 0 { "● " } else { " ● " };
            let style = bar.patch(theme.style(ink));
            spans.extend([Span::styled(sign, style), Span::styled(name, style)]);
        }
    }
    spans.push(Span::styled(" ".repeat(usize::from(area.width)), bar));
    Paragraph::new(Line::from(spans)).render(area, frame.buffer_mut());
}

fn name(peer: &Peer) -> String {
    let name = text::clean_line(&peer.name);
    text::fit(if name.is_empty() { "somebody" } else { &name }, 24)
}

fn ink(peer: &Peer) -> Ink {
    if peer.name.starts_with("ai/") { Ink::Model } else { author(&peer.name) }
}

/// A stretch of the text that somebody has selected, and where their cursor is, in characters.
struct Mark<'a> {
    peer: &'a Peer,
    from: usize,
    to: usize,
    head: usize,
}

/// The text, with everybody's cursors and selections.
fn page(app: &EditApp, frame: &mut Frame<'_>, area: Rect) {
    let theme = app.theme;
    let gutter = app.gutter();
    let marks: Vec<Mark<'_>> = app
        .peers
        .iter()
        .filter_map(|peer| {
            let (anchor, head) = peer.cursor?;
            let (anchor, head) = (app.body.of_utf16(anchor), app.body.of_utf16(head));
            Some(Mark { peer, from: anchor.min(head), to: anchor.max(head), head })
        })
        .collect();
    let (from, to) = app.selected();
    for (y, row) in (area.y..area.bottom()).zip(&app.rows) {
        if gutter > 0 {
            let number = if row.first { (row.line + 1).to_string() } else { String::new() };
            let text = format!("{number:>width$} ", width = gutter - 1);
            frame.buffer_mut().set_stringn(area.x, y, text, gutter, theme.style(Ink::Dim));
        }
        let x = area.x + gutter as u16;
        let line = Rect { x, y, width: area.width.saturating_sub(gutter as u16), height: 1 };
        let end = draw(app, row, line, frame.buffer_mut(), |at| {
            let mut style = Style::new();
            for mark in &marks {
                if (mark.from..mark.to).contains(&at) {
                    style = style.patch(theme.style(ink(mark.peer))).add_modifier(Modifier::UNDERLINED);
                }
            }
            if (from..to).contains(&at) { style.patch(theme.picked()) } else { style }
        });
        tags(app, row, line, end, &marks, frame.buffer_mut());
    }
    for y in area.y + app.rows.len() as u16..area.bottom() {
        frame.buffer_mut().set_stringn(area.x + gutter as u16, y, "~", 1, theme.style(Ink::Dim));
    }
    if let Some(position) = cursor(app, area, gutter)
        && app.prompt.is_none()
        && !app.help
    {
        frame.set_cursor_position(position);
    }
}

/// Draws a row. Gives the column behind it.
fn draw(app: &EditApp, row: &Row, area: Rect, buffer: &mut Buffer, style: impl Fn(usize) -> Style) -> usize {
    let (mut column, mut at) = (0, row.from);
    for grapheme in app.body.slice(row.from, row.to).graphemes(true) {
        let seen = glyph(grapheme, column);
        if column + seen.columns > usize::from(area.width) {
            break;
        }
        if seen.columns > 0 {
            buffer.set_stringn(area.x + column as u16, area.y, &seen.text, seen.columns, style(at));
        }
        column += seen.columns;
        at += grapheme.chars().count();
    }
    column
}

/// The cursors of others in a row, and behind its end whose they are.
fn tags(app: &EditApp, row: &Row, area: Rect, end: usize, marks: &[Mark<'_>], buffer: &mut Buffer) {
    let last =
        app.rows.iter().rposition(|other| other.line == row.line) == app.rows.iter().position(|other| other == row);
    let mut behind = end + 2;
    for mark in marks {
        let here = (row.from..row.to).contains(&mark.head) || (mark.head == row.to && (last || row.from == row.to));
        if !here {
            continue;
        }
        let style = app.theme.style(ink(mark.peer));
        let column = columns(&app.body.slice(row.from, mark.head));
        if column < usize::from(area.width) {
            let cell = &mut buffer[(area.x + column as u16, area.y)];
            let shown = if cell.symbol().trim().is_empty() { "▏" } else { cell.symbol() }.to_owned();
            let block = if shown == "▏" { style } else { style.add_modifier(Modifier::REVERSED) };
            cell.set_symbol(&shown).set_style(block);
        }
        let name = name(mark.peer);
        let width = text::width(&name);
        if behind + width <= usize::from(area.width) {
            buffer.set_stringn(area.x + behind as u16, area.y, &name, width, style.add_modifier(Modifier::ITALIC));
            behind += width + 1;
        }
    }
}

/// Where the cursor is on the screen, if it is there.
fn cursor(app: &EditApp, area: Rect, gutter: usize) -> Option<Position> {
    let at = app.cursor;
    let index = app.rows.iter().rposition(|row| row.from <= at && at <= row.to)?;
    let row = &app.rows[index];
    let column = columns(&app.body.slice(row.from, at)) + gutter;
    let inside = index < usize::from(area.height) && column < usize::from(area.width);
    inside.then(|| Position::new(area.x + column as u16, area.y + index as u16))
}

/// What is being typed at the foot, or how things stand.
fn foot(app: &EditApp, frame: &mut Frame<'_>, area: Rect) {
    let theme = app.theme;
    let bar = theme.bar();
    let width = usize::from(area.width);
    if let Some(prompt) = &app.prompt {
        let label = prompt.label();
        let before = text::clean_line(prompt.editor().before());
        let room = width.saturating_sub(text::width(label) + 1);
        // The end of what is before the cursor is in sight.
        let mut skipped = 0;
        while text::width(&before[skipped..]) > room {
            skipped += before[skipped..].graphemes(true).next().map_or(1, str::len);
        }
        let whole = text::clean_line(prompt.editor().text());
        let shown = whole.get(skipped..).unwrap_or_default();
        let spans = vec![
            Span::styled(label, bar.patch(theme.style(Ink::Strong))),
            Span::styled(text::fill(shown, room + 1), bar),
        ];
        Paragraph::new(Line::from(spans)).render(area, frame.buffer_mut());
        let column = text::width(label) + text::width(&before[skipped..]);
        frame.set_cursor_position(Position::new(area.x + column.min(width.saturating_sub(1)) as u16, area.y));
        return;
    }
    let (left, ink) = state(app);
    let row = app.body.line_of(app.cursor);
    let column = columns(&app.body.slice(app.body.line_start(row), app.cursor)) + 1;
    let right = format!("{}:{column} ", row + 1);
    let room = width.saturating_sub(text::width(&right) + 1);
    let spans = vec![
        Span::styled(" ", bar),
        Span::styled(text::fill(&left, room), bar.patch(theme.style(ink))),
        Span::styled(right, bar.patch(theme.style(Ink::Dim))),
    ];
    Paragraph::new(Line::from(spans)).render(area, frame.buffer_mut());
}

/// How things stand, in a line.
fn state(app: &EditApp) -> (String, Ink) {
    if let Some((text, ink, _)) = &app.notice {
        return (text.clone(), *ink);
    }
    if app.leaving {
        let edits = edits_of(app.unsaved);
        let wait = app.offline.is_none() && app.over.is_none();
        let how = if wait { "saving, then leaving" } else { "the node has not got them" };
        let what = format!("Ctrl-Q again loses {edits}, Ctrl-S keeps a copy · {how}");
        return (what, if wait { Ink::Pending } else { Ink::Warning });
    }
    match &app.asking {
        Some(Asking::Waits) => return ("the AI is asked…".to_owned(), Ink::Model),
        Some(Asking::Writes { stopped: true, .. }) => return ("the AI stops…".to_owned(), Ink::Model),
        Some(Asking::Writes { model, .. }) => return (format!("{model} is writing · Esc stops it"), Ink::Model),
        None => {}
    }
    let hint = if usize::from(app.size.0) >= 60 { " · F1 help · Ctrl-A asks the AI" } else { "" };
    match (app.access, app.unsaved) {
        (DocumentAccess::Read, _) => ("read only · F1 help".to_owned(), Ink::Dim),
        (_, 0) => (format!("all changes saved{hint}"), Ink::Good),
        (_, 1) => ("1 edit not yet acknowledged".to_owned(), Ink::Pending),
        (_, unsaved) => (format!("{unsaved} edits not yet acknowledged"), Ink::Pending),
    }
}

fn help(app: &EditApp, frame: &mut Frame<'_>, area: Rect) {
    let lines = HELP.len() as u16 + 1;
    let width = 58.min(area.width);
    let height = lines.min(area.height);
    let place = Rect::new(area.x + (area.width - width) / 2, area.y + (area.height - height) / 2, width, height);
    Clear.render(place, frame.buffer_mut());
    let style = app.theme.bar();
    let text: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
    Paragraph::new(text).style(style).render(place, frame.buffer_mut());
}
