//! Where things are on the screen, by its size.

use ratatui::layout::Rect;

use crate::app::{App, Pane};

/// From so many columns on there is room for people beside the conversation.
const PEOPLE_FROM: u16 = 80;
/// From so many columns on there is room for channels beside the conversation.
const SIDEBAR_FROM: u16 = 50;
/// Lines of what is being written, at most.
const INPUT_LINES_MAX: u16 = 6;
/// What stands before the line being written.
pub(crate) const PROMPT: &str = "> ";

/// Where things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Areas {
    pub(crate) title: Rect,
    /// What is wrong with the connection; nothing while it is well.
    pub(crate) banner: Rect,
    pub(crate) timeline: Rect,
    pub(crate) status: Rect,
    pub(crate) input: Rect,
    pub(crate) sidebar: Option<Rect>,
    pub(crate) people: Option<Rect>,
    overlays: bool,
}

impl Areas {
    /// For the application as it is.
    pub(crate) fn of(app: &App) -> Self {
        let (columns, lines) = app.size;
        let body = |top: u16, bottom: u16| (top, bottom.saturating_sub(top));
        let input_columns = columns.saturating_sub(PROMPT.len() as u16);
        let wanted = app.chat().map_or(1, |chat| chat.editor.rows(usize::from(input_columns)).0.len());
        let wanted = u16::try_from(wanted).unwrap_or(INPUT_LINES_MAX);
        // Title, status, and at least a line of conversation come first.
        let input_lines = wanted.min(INPUT_LINES_MAX).min((lines / 3).max(1)).min(lines);
        let title_lines = u16::from(lines > input_lines);
        let status_lines = u16::from(lines > input_lines + title_lines + 1);
        let banner_lines = u16::from(!app.is_up() && lines > input_lines + title_lines + status_lines + 2);
        let bottom = lines - input_lines - status_lines;
        let (top, height) = body(title_lines + banner_lines, bottom);
        let row = |y: u16, height: u16| Rect::new(0, y, columns, height);
        let (mut left, mut right) = (0, columns);
        let (mut sidebar, mut people) = (None, None);
        let beside = |pane: Pane, from: u16| pane != Pane::Hidden && columns >= from;
        let sidebar_columns = (columns / 5).clamp(14, 26).min(columns);
        let people_columns = (columns / 6).clamp(12, 22).min(columns);
        if beside(app.sidebar, SIDEBAR_FROM) {
            sidebar = Some(Rect::new(0, top, sidebar_columns, height));
            left = sidebar_columns + 1;
        }
        if beside(app.people, PEOPLE_FROM) {
            people = Some(Rect::new(columns - people_columns, top, people_columns, height));
            right = columns - people_columns - 1;
        }
        let timeline = Rect::new(left.min(right), top, right.saturating_sub(left), height);
        // Asked for where there is no room: over the conversation.
        let over = |pane: Pane, shown: &Option<Rect>| pane == Pane::Shown && shown.is_none() && columns > 0;
        let (over_left, over_right) = (over(app.sidebar, &sidebar), over(app.people, &people));
        if over_left {
            let width = (columns * 2 / 3).clamp(1, 30).min(columns);
            sidebar = Some(Rect::new(0, top, width, height));
        }
        if over_right {
            let width = (columns * 2 / 3).clamp(1, 30).min(columns);
            people = Some(Rect::new(columns - width, top, width, height));
        }
        Self {
            title: row(0, title_lines),
            banner: row(title_lines, banner_lines),
            timeline,
            status: row(bottom, status_lines),
            input: row(bottom + status_lines, input_lines),
            sidebar,
            people,
            overlays: over_left || over_right,
        }
    }

    /// Columns for text in the conversation: beside a mark on its left and, where people follow, a space on its right.
    pub(crate) fn text_columns(&self) -> u16 {
        self.timeline.width.saturating_sub(1 + u16::from(self.people.is_some()))
    }

    /// Whether a pane lies over the conversation.
    pub(crate) fn overlays(&self) -> bool {
        self.overlays
    }

    /// Where a popup lies.
    pub(crate) fn popup((columns, lines): (u16, u16)) -> Rect {
        let width = columns.saturating_sub(4).clamp(1, 84).min(columns);
        let height = lines.saturating_sub(2).clamp(1, 40).min(lines);
        Rect::new((columns - width) / 2, (lines - height) / 2, width, height)
    }
}
