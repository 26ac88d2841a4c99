//! Keys, the mouse, and pasted text.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};

use super::app::{Asking, EditApp, Prompt};
use super::body::glyph;
use super::event::EditCommand;
use crate::editor::{Editor, Motion};
use crate::ink::Ink;
use unicode_segmentation::UnicodeSegmentation as _;

/// Rows of one notch of the wheel.
const WHEEL: usize = 3;

impl EditApp {
    pub(super) fn key(&mut self, key: KeyEvent) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        if self.help {
            self.help = false;
            return;
        }
        if self.prompt.is_some() {
            return self.prompt_key(key);
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        let shift = key.modifiers.contains(KeyModifiers::SHIFT);
        let leaves = control && matches!(key.code, KeyCode::Char('q' | 'c'));
        // Who keeps a copy first still wants to leave.
        self.leaving &= leaves || (control && key.code == KeyCode::Char('s'));
        match key.code {
            KeyCode::Char(c) if control || alt => {
                self.chord(c.to_ascii_lowercase(), control, shift || c.is_uppercase())
            }
            KeyCode::F(1) => self.help = true,
            KeyCode::F(2) => self.numbers = !self.numbers,
            KeyCode::F(3) => self.seek(!shift),
            KeyCode::Esc => self.escape(),
            KeyCode::Backspace if control || alt => self.delete(|app| app.body.word_before(app.cursor)),
            KeyCode::Delete if control || alt => self.delete(|app| app.body.word_after(app.cursor)),
            KeyCode::Backspace => self.delete(|app| app.body.before(app.cursor)),
            KeyCode::Delete => self.delete(|app| app.body.after(app.cursor)),
            KeyCode::Enter => self.insert("\n"),
            KeyCode::Tab => self.insert("\t"),
            KeyCode::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            code => self.travel(code, control || alt, shift),
        }
    }

    /// Keys with Ctrl or Alt.
    fn chord(&mut self, c: char, control: bool, shift: bool) {
        match c {
            'a' => self.begin_ask(),
            'q' if control => self.leave(),
            'c' if control && self.anchor.is_none() => self.interrupt(),
            'c' => self.copy(),
            'x' => self.cut(),
            'v' => {
                let text = self.clipboard.clone();
                self.paste(&text);
            }
            'z' if !shift => self.undo(),
            'z' | 'y' if self.may_write() => self.command(EditCommand::Redo),
            'f' => self.prompt = Some(Prompt::Find(Editor::default())),
            'g' => self.prompt = Some(Prompt::Line(Editor::default())),
            'k' => self.cut_line(),
            'e' => {
                self.anchor = Some(0);
                self.go(self.body.length(), true);
            }
            's' => self.saved(),
            'l' => self.command(EditCommand::Redraw),
            'w' | 'h' => self.delete(|app| app.body.word_before(app.cursor)),
            _ => {}
        }
    }

    /// Moves the cursor, with `far` by words or to the ends, with `selects` taking the selection along.
    fn travel(&mut self, code: KeyCode, far: bool, selects: bool) {
        let page = self.height().saturating_sub(1).max(1);
        match code {
            KeyCode::Left | KeyCode::Right
                if !selects && !far && self.anchor.is_some_and(|anchor| anchor != self.cursor) =>
            {
                let (from, to) = self.selected();
                self.go(if code == KeyCode::Left { from } else { to }, false);
            }
            KeyCode::Left if far => self.go(self.body.word_before(self.cursor), selects),
            KeyCode::Right if far => self.go(self.body.word_after(self.cursor), selects),
            KeyCode::Left => self.go(self.body.before(self.cursor), selects),
            KeyCode::Right => self.go(self.body.after(self.cursor), selects),
            KeyCode::Home if far => self.go(0, selects),
            KeyCode::End if far => self.go(self.body.length(), selects),
            KeyCode::Home => {
                let row = self.row_of(self.cursor);
                let start = self.start_of(row);
                // Once more: to the beginning of a line that has several rows.
                let start = if start == self.cursor { self.body.line_start(row.0) } else { start };
                self.go(start, selects);
            }
            KeyCode::End => {
                let row = self.row_of(self.cursor);
                let end = self.row_end(row);
                let end = if end == self.cursor { self.body.line_end(row.0) } else { end };
                self.go(end, selects);
            }
            KeyCode::Up => self.climb(1, false, selects),
            KeyCode::Down => self.climb(1, true, selects),
            KeyCode::PageUp => self.climb(page, false, selects),
            KeyCode::PageDown => self.climb(page, true, selects),
            _ => {}
        }
    }

    /// The last place of a row that is still in it.
    fn row_end(&mut self, row: (usize, usize)) -> usize {
        let end = self.end_of(row);
        if self.row_of(end) == row { end } else { self.body.before(end) }
    }

    /// Puts the cursor somewhere.
    pub(super) fn go(&mut self, to: usize, selects: bool) {
        if selects {
            self.anchor.get_or_insert(self.cursor);
        } else {
            self.anchor = None;
        }
        if to != self.cursor {
            self.command(EditCommand::Separate);
        }
        (self.cursor, self.goal, self.follows) = (to, None, true);
    }

    /// The column of a place in its row.
    pub(super) fn column_of(&mut self, at: usize) -> usize {
        let row = self.row_of(at);
        let start = self.start_of(row);
        columns(&self.body.slice(start, at))
    }

    /// Moves the cursor by rows, in its column.
    fn climb(&mut self, count: usize, down: bool, selects: bool) {
        let goal = match self.goal {
            Some(goal) => goal,
            None => self.column_of(self.cursor),
        };
        let row = self.row_of(self.cursor);
        let to = if down { self.rows_after(row, count) } else { self.rows_before(row, count) };
        let at = match to == row {
            true if down => self.body.length(),
            true => 0,
            false => self.place_at(to, goal),
        };
        self.go(at, selects);
        self.goal = Some(goal);
    }

    /// The place in a row nearest to a column.
    pub(super) fn place_at(&mut self, row: (usize, usize), column: usize) -> usize {
        let (start, end) = (self.start_of(row), self.row_end(row));
        let (mut at, mut used) = (start, 0);
        for grapheme in self.body.slice(start, end).graphemes(true) {
            let width = glyph(grapheme, used).columns;
            if used + width > column {
                break;
            }
            used += width;
            at += grapheme.chars().count();
        }
        at.min(end)
    }

    /// Several keys that stand for what is written on them.
    pub(super) fn typed(&mut self, text: &str) {
        if !self.help && self.prompt.is_none() {
            self.leaving = false;
            return self.insert(text);
        }
        for c in text.chars() {
            let code = match c {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                c => KeyCode::Char(c),
            };
            self.key(KeyEvent::new(code, KeyModifiers::NONE));
        }
    }

    fn insert(&mut self, text: &str) {
        let fits = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
        if !self.may_write() || !text.chars().all(fits) {
            return;
        }
        let (from, to) = self.selected();
        if from != to {
            self.command(EditCommand::Separate);
        }
        let call = self.calling(from, text);
        // A document with the line ends of Windows keeps them.
        let windows = text.contains('\n') && self.windows();
        if windows {
            self.replace(from, to, &text.replace('\n', "\r\n"));
        } else {
            self.replace(from, to, text);
        }
        if let Some(at) = call {
            self.called(at);
        }
    }

    /// Whether the line before the cursor ends as Windows has it.
    fn windows(&self) -> bool {
        let line = self.body.line_of(self.cursor);
        let near = if line > 0 { line - 1 } else { line };
        let start = self.body.line_start(near);
        self.body.slice(self.body.line_end(near).max(start), self.body.line_start(near + 1)).starts_with('\r')
    }

    pub(super) fn paste(&mut self, text: &str) {
        if let Some(prompt) = &mut self.prompt {
            prompt.editor_mut().paste(&text.replace(['\n', '\r'], " "));
            return;
        }
        if self.may_write() {
            // Terminals send the end of a line as they send the key.
            let text = if text.contains('\n') { text.to_owned() } else { text.replace('\r', "\n") };
            let (from, to) = self.selected();
            self.command(EditCommand::Separate);
            self.replace(from, to, &text);
            self.command(EditCommand::Separate);
        }
    }

    /// Takes the selection out, or what lies between the cursor and another place.
    fn delete(&mut self, until: impl FnOnce(&Self) -> usize) {
        if !self.may_write() {
            return;
        }
        let (mut from, mut to) = self.selected();
        if from == to {
            let other = until(self);
            (from, to) = (from.min(other), to.max(other));
        } else {
            self.command(EditCommand::Separate);
        }
        self.replace(from, to, "");
    }

    fn copy(&mut self) {
        let (from, to) = self.selected();
        if from != to {
            self.clipboard = self.body.slice(from, to);
            self.command(EditCommand::Copy(self.clipboard.clone()));
        }
    }

    fn cut(&mut self) {
        let (from, to) = self.selected();
        if from != to && self.may_write() {
            self.copy();
            self.command(EditCommand::Separate);
            self.replace(from, to, "");
            self.command(EditCommand::Separate);
        }
    }

    fn cut_line(&mut self) {
        if self.may_write() {
            let line = self.body.line_of(self.cursor);
            let (from, to) = (self.body.line_start(line), self.body.line_start(line + 1));
            self.clipboard = self.body.slice(from, to);
            self.command(EditCommand::Copy(self.clipboard.clone()));
            self.command(EditCommand::Separate);
            self.replace(from, to, "");
            self.command(EditCommand::Separate);
        }
    }

    fn undo(&mut self) {
        if !self.may_write() {
            return;
        }
        self.stop();
        match &mut self.asking {
            Some(Asking::Writes { undo_when_over, .. }) => {
                *undo_when_over = true;
                self.say("the AI stops, and what it wrote is taken back then", Ink::Note);
            }
            _ => self.command(EditCommand::Undo),
        }
    }

    /// Stops the model that writes; says whether there is one.
    fn stop(&mut self) -> bool {
        let Some(Asking::Writes { generation, stopped, .. }) = &mut self.asking else { return false };
        let generation = *generation;
        if std::mem::replace(stopped, true) {
            return false;
        }
        self.command(EditCommand::Stop(generation));
        true
    }

    /// Everything is saved as it is typed; what the node cannot be given goes into a file.
    fn saved(&mut self) {
        match self.unsaved {
            _ if self.over.is_some() => self.command(EditCommand::Keep),
            0 => self.say("all changes are saved, as you type", Ink::Good),
            _ if self.offline.is_some() || self.leaving => self.command(EditCommand::Keep),
            _ => self.say("being saved, as you type", Ink::Note),
        }
    }

    fn escape(&mut self) {
        if self.stop() {
            self.say("the AI stops; Ctrl-Z takes its edit back", Ink::Note);
        } else {
            self.anchor = None;
            self.notice = None;
        }
    }

    fn interrupt(&mut self) {
        if self.stop() {
            self.say("the AI stops; Ctrl-Z takes its edit back", Ink::Note);
        } else {
            self.leave();
        }
    }

    fn leave(&mut self) {
        if self.unsaved > 0 && !std::mem::replace(&mut self.leaving, true) {
            // How that stands is at the foot.
            self.notice = None;
            return;
        }
        self.command(EditCommand::Quit);
    }

    fn begin_ask(&mut self) {
        if self.asking.is_some() {
            self.say("the AI is writing; Esc stops it", Ink::Note);
        } else if self.offline.is_some() {
            self.say("the AI can be asked when the node is back", Ink::Warning);
        } else if self.may_write() {
            self.prompt = Some(Prompt::Ask(Editor::default()));
        }
    }

    /// Goes to the next place of what was looked for.
    fn seek(&mut self, forward: bool) {
        let sought = self.sought.clone();
        let from = if forward { self.selected().0 + 1 } else { self.selected().0 };
        self.seek_from(&sought, from, forward);
    }

    fn seek_from(&mut self, sought: &str, from: usize, forward: bool) {
        if sought.is_empty() {
            return;
        }
        match self.body.find(sought, from, forward) {
            Some(at) => {
                if (forward && at < from) || (!forward && at >= from) {
                    self.say("found beyond the end", Ink::Note);
                }
                self.go(at, false);
                self.go(at + sought.chars().count(), true);
            }
            None => self.say(&format!("{sought:?} is not there"), Ink::Warning),
        }
    }

    fn prompt_key(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let far = control || key.modifiers.contains(KeyModifiers::ALT);
        let Some(prompt) = &mut self.prompt else { return };
        let editor = prompt.editor_mut();
        match key.code {
            KeyCode::Esc => self.prompt = None,
            KeyCode::Char('c' | 'q' | 'g') if control => self.prompt = None,
            KeyCode::Enter => {
                if let Some(prompt) = self.prompt.take() {
                    self.answer(prompt);
                }
            }
            KeyCode::Backspace if far => editor.kill(Motion::WordLeft),
            KeyCode::Backspace => editor.backspace(),
            KeyCode::Delete => editor.delete(Motion::Right),
            KeyCode::Left => editor.go(if far { Motion::WordLeft } else { Motion::Left }),
            KeyCode::Right => editor.go(if far { Motion::WordRight } else { Motion::Right }),
            KeyCode::Home => editor.go(Motion::LineStart),
            KeyCode::End => editor.go(Motion::LineEnd),
            KeyCode::Char('u') if control => editor.kill(Motion::Start),
            KeyCode::Char('w') if control => editor.kill(Motion::WordLeft),
            KeyCode::Char(c) if !far => editor.type_char(c),
            _ => {}
        }
    }

    /// What was typed at the foot of the screen is to be done.
    fn answer(&mut self, prompt: Prompt) {
        let text = prompt.editor().text().to_owned();
        match prompt {
            Prompt::Find(_) => {
                if !text.is_empty() {
                    self.sought.clone_from(&text);
                }
                let sought = self.sought.clone();
                self.seek_from(&sought, self.cursor, true);
            }
            Prompt::Line(_) => match text.trim().parse::<usize>() {
                Ok(line) if line > 0 => {
                    let line = (line - 1).min(self.body.lines() - 1);
                    self.go(self.body.line_start(line), false);
                }
                _ if text.trim().is_empty() => {}
                _ => self.say("give the number of a line", Ink::Warning),
            },
            Prompt::Ask(_) => {
                let instruction = text.trim().to_owned();
                if !instruction.is_empty() && self.may_write() {
                    let (from, to) = self.selected();
                    let (from, to) = (self.body.utf16(from), self.body.utf16(to));
                    self.anchor = None;
                    self.asking = Some(Asking::Waits);
                    self.command(EditCommand::Separate);
                    self.command(EditCommand::Ask { from, to, instruction });
                }
            }
        }
    }

    pub(super) fn mouse(&mut self, mouse: MouseEvent) {
        match mouse.kind {
            MouseEventKind::ScrollUp | MouseEventKind::ScrollDown => {
                let top = self.row_of(self.top);
                let down = mouse.kind == MouseEventKind::ScrollDown;
                let to = if down { self.rows_after(top, WHEEL) } else { self.rows_before(top, WHEEL) };
                self.top = self.start_of(to);
                self.follows = false;
            }
            MouseEventKind::Down(MouseButton::Left) | MouseEventKind::Drag(MouseButton::Left) => {
                let Some(at) = self.place_on_screen(mouse.column, mouse.row) else { return };
                let drags = matches!(mouse.kind, MouseEventKind::Drag(_));
                let follows = self.follows;
                self.go(at, drags || mouse.modifiers.contains(KeyModifiers::SHIFT));
                self.follows = follows;
            }
            _ => {}
        }
    }

    fn place_on_screen(&mut self, column: u16, row: u16) -> Option<usize> {
        let head = 1 + usize::from(self.banner().is_some());
        let index = usize::from(row).checked_sub(head)?;
        if index >= self.height() {
            return None;
        }
        let Some(row) = self.rows.get(index).copied() else { return Some(self.body.length()) };
        let column = usize::from(column).saturating_sub(self.gutter());
        let row = self.row_of(row.from);
        Some(self.place_at(row, column))
    }
}

/// Columns of a piece of a line that begins at the beginning of a row.
pub(super) fn columns(text: &str) -> usize {
    text.graphemes(true).fold(0, |used, grapheme| used + glyph(grapheme, used).columns)
}
