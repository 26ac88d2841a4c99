//! Keys, the mouse, and pasted text.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use ratatui::layout::{Position, Rect};

use crate::app::{App, LEAVE_WITHIN, Pane, Sure};
use crate::chat::{Chat, Draft};
use crate::editor::Motion;
use crate::event::{Command, Request};
use crate::ink::Ink;
use crate::layout::Areas;
use crate::popup::Popup;

/// Lines of one notch of the wheel.
const WHEEL: usize = 3;

impl App {
    pub(crate) fn key(&mut self, key: KeyEvent) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        self.awake();
        if self.popup.is_some() {
            return self.popup_key(key);
        }
        if self.chord(key) {
            return;
        }
        if self.chat().is_some_and(|chat| chat.picked.is_some()) {
            return self.picked_key(key);
        }
        self.edit_key(key);
    }

    /// Keys that mean the same wherever one is; says whether this was one.
    fn chord(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        match key.code {
            KeyCode::F(1) => self.popup = Some(Popup::Help { scroll: 0 }),
            KeyCode::F(2) => self.sidebar = toggled(self.sidebar, Areas::of(self).sidebar.is_some()),
            KeyCode::F(3) => self.people = toggled(self.people, Areas::of(self).people.is_some()),
            KeyCode::PageUp => self.scroll(true, self.page_lines()),
            KeyCode::PageDown => self.scroll(false, self.page_lines()),
            KeyCode::Home if control => self.scroll(true, usize::MAX / 2),
            KeyCode::End if control => self.go_to_bottom(),
            KeyCode::Up if control => self.pick_next(false),
            KeyCode::Up if alt => self.step_channel(false, |_| true),
            KeyCode::Down if alt => self.step_channel(true, |_| true),
            KeyCode::Char('p') if control => self.step_channel(false, |_| true),
            KeyCode::Char('n') if control => self.step_channel(true, |_| true),
            KeyCode::Char('a') if alt => self.step_channel(true, |chat| chat.unread > 0),
            KeyCode::Char('u') if alt => self.go_to_unread(),
            KeyCode::Char(digit @ '1'..='9') if alt => {
                let index = usize::from(digit as u8 - b'1');
                let name = self.order().get(index).map(|chat| chat.name.clone());
                name.into_iter().for_each(|name| self.show(&name));
            }
            KeyCode::Char('b') if alt && self.chat().is_some_and(|chat| chat.editor.is_empty()) => {
                let before = self.before.clone();
                before.into_iter().for_each(|name| self.show(&name));
            }
            KeyCode::Char('l') if control => self.command(Command::Redraw),
            KeyCode::Char('c') if control => self.interrupt(),
            KeyCode::Esc => self.escape(),
            _ => return false,
        }
        true
    }

    /// Ctrl-C: stops an answer, or clears the line, or leaves when it is pressed twice.
    fn interrupt(&mut self) {
        if self.stop() {
            return;
        }
        if let Some(chat) = self.chat_mut().filter(|chat| !chat.editor.is_empty() || chat.draft != Draft::New) {
            let _ = chat.editor.take();
            chat.draft = Draft::New;
            self.quiet();
            return;
        }
        if matches!(self.sure, Some((Sure::Leave, _))) {
            self.command(Command::Quit);
            return;
        }
        self.sure = Some((Sure::Leave, self.now.mono + LEAVE_WITHIN));
        self.say("press Ctrl-C again to leave", Ink::Note);
    }

    /// Stops the answer that is being written in the open channel; says whether there is one.
    pub(crate) fn stop(&mut self) -> bool {
        let Some(writing) = self.chat().and_then(|chat| chat.timeline.running()) else { return false };
        let generation = writing.generation;
        if self.stopped == Some(generation) {
            return false;
        }
        self.stopped = Some(generation);
        self.say("stopping the answer", Ink::Note);
        self.ask(Request::Cancel { generation }, crate::app::Asked::Cancel);
        true
    }

    fn escape(&mut self) {
        self.sure = None;
        if self.completion.take().is_some() {
            return;
        }
        let overlays = Areas::of(self).overlays();
        if overlays && (self.sidebar == Pane::Shown || self.people == Pane::Shown) {
            (self.sidebar, self.people) = (Pane::Auto, Pane::Auto);
            return;
        }
        let Some(chat) = self.chat_mut() else { return };
        if chat.picked.take().is_some() {
            return;
        }
        if chat.draft != Draft::New {
            if matches!(chat.draft, Draft::Edit(_) | Draft::React(_)) {
                let _ = chat.editor.take();
            }
            chat.draft = Draft::New;
            return;
        }
        if chat.thread.take().is_some() {
            chat.anchor = None;
        }
    }

    fn page_lines(&self) -> usize {
        usize::from(Areas::of(self).timeline.height).saturating_sub(2).max(1)
    }

    /// Scrolls the conversation.
    pub(crate) fn scroll(&mut self, up: bool, lines: usize) {
        let Some((sight, areas)) = self.sight() else { return };
        let height = usize::from(areas.timeline.height);
        let anchor = if up { sight.up(sight.chat.anchor, lines, height) } else { sight.down(sight.chat.anchor, lines) };
        self.anchored(anchor);
    }

    fn anchored(&mut self, anchor: crate::rows::Anchor) {
        if let Some(chat) = self.chat_mut() {
            chat.anchor = anchor;
            if anchor.is_none() {
                chat.below = 0;
            }
        }
    }

    pub(crate) fn go_to_bottom(&mut self) {
        if let Some(chat) = self.chat_mut() {
            (chat.anchor, chat.picked, chat.below) = (None, None, 0);
        }
    }

    fn go_to_unread(&mut self) {
        let Some((sight, areas)) = self.sight() else { return };
        let mark = sight.chat.mark.map(crate::timeline::Key::at);
        let Some(key) = mark.and_then(|mark| sight.chat.timeline.next(Some(mark))) else {
            return self.say("nothing is unread here", Ink::Note);
        };
        let height = usize::from(areas.timeline.height);
        // The first unread line at the top, as far as there is something below it.
        let lowered = sight.down(Some((key, 0)), height.saturating_sub(sight.block(key).len() + 1));
        let anchor = sight.up(lowered, 0, height);
        self.anchored(anchor);
    }

    /// Goes to the next channel above or below that `accept`s.
    fn step_channel(&mut self, down: bool, accept: impl Fn(&Chat) -> bool) {
        let order = self.order();
        let count = order.len();
        let at = order.iter().position(|chat| chat.name == self.open).unwrap_or(0);
        let steps = (1..count).map(|step| if down { (at + step) % count } else { (at + count - step) % count });
        let found = steps.map(|index| order[index]).find(|chat| accept(chat)).map(|chat| chat.name.clone());
        found.into_iter().for_each(|name| self.show(&name));
    }

    /// Picks the message above or below the one picked; the newest if none is.
    pub(crate) fn pick_next(&mut self, down: bool) {
        let Some((sight, areas)) = self.sight() else { return };
        let picked = sight.chat.picked;
        let next = sight.pick(picked, down);
        let anchor = next.map(|key| sight.bring(key, usize::from(areas.timeline.height)));
        match (next, anchor) {
            (Some(key), Some(anchor)) => {
                self.anchored(anchor);
                if let Some(chat) = self.chat_mut() {
                    chat.picked = Some(key);
                }
            }
            // Below the newest is the line one writes.
            _ if down => self.go_to_bottom(),
            _ => self.scroll(true, 1),
        }
    }

    fn picked_key(&mut self, key: KeyEvent) {
        let Some(picked) = self.chat().and_then(|chat| chat.picked) else { return };
        match key.code {
            KeyCode::Up | KeyCode::Char('k') => self.pick_next(false),
            KeyCode::Down | KeyCode::Char('j') => self.pick_next(true),
            KeyCode::Char('r') => self.begin_reply(picked),
            KeyCode::Char('e') => self.begin_edit(picked),
            KeyCode::Char('d') | KeyCode::Delete => self.delete(picked),
            KeyCode::Char('+' | ':') => self.begin_reaction(picked),
            KeyCode::Char('t') => self.open_thread(picked),
            KeyCode::Char('w') => self.who_wrote(picked),
            KeyCode::Char('x') => self.drop_failed(Some(picked)),
            KeyCode::Char('?') => self.popup = Some(Popup::Help { scroll: 0 }),
            KeyCode::Char('G') | KeyCode::End | KeyCode::Tab => self.go_to_bottom(),
            KeyCode::Enter | KeyCode::Char(' ') => {
                if picked.is_unsent() {
                    return self.resend(Some(picked));
                }
                if let Some(chat) = self.chat_mut()
                    && !chat.unfolded.remove(&picked)
                {
                    chat.unfolded.insert(picked);
                }
            }
            _ => {}
        }
    }

    fn edit_key(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        match key.code {
            KeyCode::Enter if !alt && !control => return self.enter(),
            KeyCode::Char('d') if control && self.chat().is_some_and(|chat| chat.editor.is_empty()) => {
                return self.command(Command::Quit);
            }
            KeyCode::Tab if self.chat().is_some_and(|chat| chat.editor.is_empty()) => return self.pick_next(false),
            KeyCode::Tab => return self.complete(true),
            KeyCode::BackTab => return self.complete(false),
            KeyCode::Up | KeyCode::Down if !alt && !control => return self.vertical(key.code == KeyCode::Down),
            _ => {}
        }
        let Some(chat) = self.chats.get_mut(&self.open) else { return };
        let editor = &mut chat.editor;
        let before = editor.text().len();
        match key.code {
            KeyCode::Enter => editor.type_char('\n'),
            KeyCode::Char('j') if control => editor.type_char('\n'),
            KeyCode::Backspace if alt || control => editor.kill(Motion::WordLeft),
            KeyCode::Backspace => editor.backspace(),
            // What some terminals send for the same key.
            KeyCode::Char('h') if control => editor.backspace(),
            KeyCode::Delete => editor.delete(Motion::Right),
            KeyCode::Left if control || alt => editor.go(Motion::WordLeft),
            KeyCode::Right if control || alt => editor.go(Motion::WordRight),
            KeyCode::Left => editor.go(Motion::Left),
            KeyCode::Right => editor.go(Motion::Right),
            KeyCode::Home => editor.go(Motion::LineStart),
            KeyCode::End => editor.go(Motion::LineEnd),
            KeyCode::Char(c) if control => control_key(editor, c),
            KeyCode::Char(c) if alt => alt_key(editor, c),
            KeyCode::Char(c) => {
                editor.type_char(c);
                if c == ':' {
                    crate::complete::closed_emoji(editor);
                }
            }
            _ => return,
        }
        let changed = editor.text().len() != before;
        if changed {
            self.history.leave();
            self.typed();
        }
        self.suggest();
    }

    /// Another line of what is being written; beyond it, what was sent before.
    fn vertical(&mut self, down: bool) {
        let Some(chat) = self.chats.get_mut(&self.open) else { return };
        if chat.editor.vertical(down) {
            return;
        }
        let line = if down { self.history.newer() } else { self.history.older(chat.editor.text()) };
        if let Some(line) = line {
            chat.editor.set(&line);
        }
        self.completion = None;
    }

    pub(crate) fn paste(&mut self, text: &str) {
        self.awake();
        let Some(chat) = self.chat_mut() else { return };
        chat.picked = None;
        if !chat.editor.paste(text) {
            let room = crate::editor::DRAFT_BYTES_MAX >> 10;
            self.say(format!("a message here has room for {room} KiB; the rest was cut off"), Ink::Warning);
        }
        self.history.leave();
        self.completion = None;
        self.typed();
    }

    fn popup_key(&mut self, key: KeyEvent) {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            self.popup = None;
            return;
        }
        let page = self.page_lines();
        let step = match key.code {
            KeyCode::Up | KeyCode::Char('k') => Some((true, 1)),
            KeyCode::Down | KeyCode::Char('j') => Some((false, 1)),
            KeyCode::PageUp => Some((true, page)),
            KeyCode::PageDown | KeyCode::Char(' ') => Some((false, page)),
            KeyCode::Home => Some((true, usize::MAX)),
            KeyCode::Enter => return self.popup_enter(),
            KeyCode::Esc | KeyCode::F(1) | KeyCode::Char('q' | '?') => {
                self.popup = None;
                return;
            }
            _ => None,
        };
        step.into_iter().for_each(|(up, lines)| self.popup_scroll(up, lines));
    }

    fn popup_scroll(&mut self, up: bool, lines: usize) {
        let area = Areas::popup(self.size);
        let height = usize::from(area.height).saturating_sub(2);
        let moved =
            |at: usize, last: usize| if up { at.saturating_sub(lines) } else { at.saturating_add(lines).min(last) };
        match &mut self.popup {
            Some(Popup::Help { scroll }) => {
                let last = crate::view::help_lines(usize::from(area.width)).len().saturating_sub(height);
                *scroll = moved(*scroll, last);
            }
            Some(Popup::Card(card)) => card.scroll = moved(card.scroll, card.lines.len().saturating_sub(height)),
            Some(Popup::Found(found)) => {
                found.picked = moved(found.picked, found.hits.len().saturating_sub(1));
                self.search_on();
            }
            None => {}
        }
    }

    fn popup_enter(&mut self) {
        let Some(Popup::Found(found)) = self.popup.take() else { return };
        if let Some(hit) = found.hits.get(found.picked) {
            let position = hit.position;
            self.show(&found.channel);
            self.go_to(position);
        }
    }

    pub(crate) fn mouse_event(&mut self, mouse: MouseEvent) {
        self.awake();
        let at = Position::new(mouse.column, mouse.row);
        let areas = Areas::of(self);
        let over = |area: Option<Rect>| area.is_some_and(|area| area.contains(at));
        match mouse.kind {
            MouseEventKind::ScrollUp | MouseEventKind::ScrollDown => {
                let up = mouse.kind == MouseEventKind::ScrollUp;
                if self.popup.is_some() {
                    self.popup_scroll(up, 1);
                } else if over(areas.sidebar) {
                    self.step_channel(!up, |_| true);
                } else {
                    self.scroll(up, WHEEL);
                }
            }
            MouseEventKind::Down(MouseButton::Left) => {
                if self.popup.is_some() {
                    if !Areas::popup(self.size).contains(at) {
                        self.popup = None;
                    }
                } else {
                    self.click(&areas, at);
                }
            }
            _ => {}
        }
    }

    fn click(&mut self, areas: &Areas, at: Position) {
        if let Some(area) = areas.sidebar.filter(|area| area.contains(at)) {
            let line = usize::from(at.y - area.y);
            if let Some(name) = crate::view::sidebar_channel(self, area, line) {
                self.show(&name);
            }
        } else if let Some(area) = areas.people.filter(|area| area.contains(at)) {
            let line = usize::from(at.y - area.y);
            if let Some(user) = crate::view::person_at(self, line) {
                self.whois(&user);
            }
        } else if areas.timeline.contains(at) {
            let Some((sight, _)) = self.sight() else { return };
            let window = sight.window(usize::from(areas.timeline.height));
            let above = usize::from(areas.timeline.height).saturating_sub(window.rows.len());
            let row = usize::from(at.y - areas.timeline.y).checked_sub(above).and_then(|line| window.rows.get(line));
            let key = row.and_then(|row| row.key);
            let key = key.filter(|key| sight.pickable(*key));
            if let Some(chat) = self.chat_mut() {
                chat.picked = key.filter(|key| chat.picked != Some(*key));
            }
        } else if areas.status.contains(at) {
            self.go_to_bottom();
        } else if let Some(chat) = self.chat_mut() {
            chat.picked = None;
        }
    }
}

fn control_key(editor: &mut crate::editor::Editor, c: char) {
    match c {
        'a' => editor.go(Motion::LineStart),
        'e' => editor.go(Motion::LineEnd),
        'b' => editor.go(Motion::Left),
        'f' => editor.go(Motion::Right),
        'd' => editor.delete(Motion::Right),
        'w' => editor.kill(Motion::WordLeft),
        'u' => editor.kill(Motion::LineStart),
        'k' => editor.kill(Motion::LineEnd),
        'y' => editor.yank(),
        'z' | '_' => editor.undo(),
        'r' => editor.redo(),
        _ => {}
    }
}

fn alt_key(editor: &mut crate::editor::Editor, c: char) {
    match c {
        'b' => editor.go(Motion::WordLeft),
        'f' => editor.go(Motion::WordRight),
        'd' => editor.kill(Motion::WordRight),
        'z' => editor.redo(),
        '<' => editor.go(Motion::Start),
        '>' => editor.go(Motion::End),
        _ => {}
    }
}

fn toggled(pane: Pane, shown: bool) -> Pane {
    match (shown, pane) {
        (true, Pane::Shown) => Pane::Auto,
        (true, _) => Pane::Hidden,
        (false, Pane::Hidden) => Pane::Auto,
        (false, _) => Pane::Shown,
    }
}
