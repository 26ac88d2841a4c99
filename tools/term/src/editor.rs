//! The line that is being written: moves, kills, undo, several lines, and the lines of before.

use std::collections::VecDeque;

use unicode_segmentation::{GraphemeCursor, UnicodeSegmentation as _};

use crate::text;

/// Bytes of one message being written: a node's largest body is larger, a person's never.
pub(crate) const DRAFT_BYTES_MAX: usize = 64 << 10;
/// Changes that can be taken back.
const UNDO_MAX: usize = 100;
/// Own lines that are remembered.
const HISTORY_MAX: usize = 200;

/// A text with a cursor. The cursor stands between graphemes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Editor {
    text: String,
    /// In bytes, on a boundary of graphemes.
    cursor: usize,
    undo: VecDeque<(String, usize)>,
    redo: Vec<(String, usize)>,
    /// Whether the last change was the typing of a letter, which the next letter continues.
    typing: bool,
    killed: String,
}

/// A way for the cursor to go, or for a kill to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Motion {
    Left,
    Right,
    WordLeft,
    WordRight,
    LineStart,
    LineEnd,
    Start,
    End,
}

impl Editor {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// What is before the cursor.
    pub(crate) fn before(&self) -> &str {
        &self.text[..self.cursor]
    }

    /// Replaces everything, as one change that can be taken back; the cursor goes to the end.
    pub(crate) fn set(&mut self, text: &str) {
        self.remember(false);
        self.text = clipped(text, DRAFT_BYTES_MAX).to_owned();
        self.cursor = self.text.len();
    }

    /// Takes the text out, as if nothing was ever written; the kill stays.
    pub(crate) fn take(&mut self) -> String {
        let killed = std::mem::take(&mut self.killed);
        let text = std::mem::take(self).text;
        self.killed = killed;
        text
    }

    /// Types a character. Control characters do nothing.
    pub(crate) fn type_char(&mut self, c: char) {
        if c != '\n' && c.is_control() || self.text.len() + c.len_utf8() > DRAFT_BYTES_MAX {
            return;
        }
        if !self.typing || c.is_whitespace() {
            self.remember(true);
        }
        self.text.insert(self.cursor, c);
        self.cursor = self.boundary_after(self.cursor + c.len_utf8());
        self.redo.clear();
    }

    /// Puts in what was pasted, made harmless. Says whether all of it had room.
    pub(crate) fn paste(&mut self, pasted: &str) -> bool {
        self.remember(false);
        let pasted = text::clean(pasted);
        let piece = clipped(&pasted, DRAFT_BYTES_MAX - self.text.len());
        self.text.insert_str(self.cursor, piece);
        self.cursor = self.boundary_after(self.cursor + piece.len());
        piece.len() == pasted.len()
    }

    /// Replaces the bytes from `start` to the cursor: a completion.
    pub(crate) fn complete(&mut self, start: usize, with: &str) {
        if start > self.cursor || !self.text.is_char_boundary(start) {
            return;
        }
        if self.text.len() - (self.cursor - start) + with.len() > DRAFT_BYTES_MAX {
            return;
        }
        self.remember(false);
        self.text.replace_range(start..self.cursor, with);
        self.cursor = self.boundary_after(start + with.len());
    }

    pub(crate) fn go(&mut self, motion: Motion) {
        self.typing = false;
        self.cursor = self.target(motion);
    }

    /// Deletes the grapheme before the cursor.
    pub(crate) fn backspace(&mut self) {
        self.delete(Motion::Left);
    }

    /// Deletes what lies on the way; it is not kept.
    pub(crate) fn delete(&mut self, motion: Motion) {
        let range = self.reach(motion);
        if !range.is_empty() {
            self.remember(false);
            self.cut(range);
        }
    }

    /// Deletes what lies on the way, and keeps it for [`yank`](Self::yank).
    pub(crate) fn kill(&mut self, motion: Motion) {
        let range = self.reach(motion);
        if !range.is_empty() {
            self.remember(false);
            self.killed = self.text[range.clone()].to_owned();
            self.cut(range);
        }
    }

    /// Puts in what was killed last.
    pub(crate) fn yank(&mut self) {
        let killed = self.killed.clone();
        if self.text.len() + killed.len() <= DRAFT_BYTES_MAX && !killed.is_empty() {
            self.remember(false);
            self.text.insert_str(self.cursor, &killed);
            self.cursor = self.boundary_after(self.cursor + killed.len());
        }
    }

    /// Takes the last change back.
    pub(crate) fn undo(&mut self) {
        if let Some((text, cursor)) = self.undo.pop_back() {
            self.redo.push((std::mem::replace(&mut self.text, text), self.cursor));
            self.cursor = cursor;
            self.typing = false;
        }
    }

    /// Does again what was taken back.
    pub(crate) fn redo(&mut self) {
        if let Some((text, cursor)) = self.redo.pop() {
            self.undo.push_back((std::mem::replace(&mut self.text, text), self.cursor));
            self.cursor = cursor;
            self.typing = false;
        }
    }

    /// One line up or down, in the same column as far as it goes; says whether there was one.
    pub(crate) fn vertical(&mut self, down: bool) -> bool {
        self.typing = false;
        let start = self.line_start();
        let column = self.text[start..self.cursor].graphemes(true).count();
        let target = if down {
            let end = self.line_end();
            if end == self.text.len() {
                return false;
            }
            end + 1
        } else {
            if start == 0 {
                return false;
            }
            self.text[..start - 1].rfind('\n').map_or(0, |at| at + 1)
        };
        let line = self.text[target..].split('\n').next().unwrap_or_default();
        self.cursor = target + line.graphemes(true).take(column).map(str::len).sum::<usize>();
        true
    }

    fn line_start(&self) -> usize {
        self.text[..self.cursor].rfind('\n').map_or(0, |at| at + 1)
    }

    fn line_end(&self) -> usize {
        self.text[self.cursor..].find('\n').map_or(self.text.len(), |at| self.cursor + at)
    }

    fn target(&self, motion: Motion) -> usize {
        let text = self.text.as_str();
        match motion {
            Motion::Left => text[..self.cursor].grapheme_indices(true).next_back().map_or(0, |(at, _)| at),
            Motion::Right => self.cursor + text[self.cursor..].graphemes(true).next().map_or(0, str::len),
            Motion::WordLeft => {
                let mut words = text[..self.cursor].unicode_word_indices();
                words.next_back().map_or(0, |(at, _)| at)
            }
            Motion::WordRight => {
                let mut words = text[self.cursor..].unicode_word_indices();
                words.next().map_or(text.len(), |(at, word)| self.cursor + at + word.len())
            }
            Motion::LineStart => self.line_start(),
            Motion::LineEnd => self.line_end(),
            Motion::Start => 0,
            Motion::End => text.len(),
        }
    }

    fn reach(&self, motion: Motion) -> std::ops::Range<usize> {
        let mut target = self.target(motion);
        // At the end of a line, a kill takes the line's end itself.
        if motion == Motion::LineEnd && target == self.cursor {
            target = self.target(Motion::Right);
        }
        if motion == Motion::LineStart && target == self.cursor {
            target = self.target(Motion::Left);
        }
        target.min(self.cursor)..target.max(self.cursor)
    }

    fn cut(&mut self, range: std::ops::Range<usize>) {
        self.cursor = range.start;
        self.text.replace_range(range, "");
        self.cursor = self.boundary_after(self.cursor);
    }

    /// The first boundary of graphemes at or after a boundary of characters: what was put in may have joined its neighbours.
    fn boundary_after(&self, at: usize) -> usize {
        let mut cursor = GraphemeCursor::new(at, self.text.len(), true);
        match cursor.is_boundary(&self.text, 0) {
            Ok(true) | Err(_) => at,
            Ok(false) => cursor.next_boundary(&self.text, 0).ok().flatten().unwrap_or(self.text.len()),
        }
    }

    fn remember(&mut self, typing: bool) {
        self.typing = typing;
        self.redo.clear();
        if self.undo.back().is_some_and(|(text, _)| *text == self.text) {
            return;
        }
        if self.undo.len() == UNDO_MAX {
            self.undo.pop_front();
        }
        self.undo.push_back((self.text.clone(), self.cursor));
    }

    /// The text in lines of so many columns, with the line and column of the cursor.
    pub(crate) fn rows(&self, columns: usize) -> (Vec<String>, (usize, usize)) {
        let columns = columns.max(2);
        let (mut rows, mut used, mut place) = (vec![String::new()], 0, (0, 0));
        for (at, grapheme) in self.text.grapheme_indices(true) {
            let wide = text::width(grapheme).max(usize::from(grapheme != "\n"));
            if grapheme != "\n" && used + wide > columns {
                rows.push(String::new());
                used = 0;
            }
            if at == self.cursor {
                place = (rows.len() - 1, used);
            }
            if grapheme == "\n" {
                rows.push(String::new());
                used = 0;
                continue;
            }
            used += wide;
            rows.last_mut().expect("never empty").push_str(grapheme);
        }
        if self.cursor == self.text.len() {
            if used >= columns {
                rows.push(String::new());
                used = 0;
            }
            place = (rows.len() - 1, used);
        }
        (rows, place)
    }
}

fn clipped(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What was sent before, to be sent again.
#[derive(Debug, Default)]
pub(crate) struct History {
    lines: VecDeque<String>,
    /// Which line is shown, counted from the newest, and what was being written before.
    at: Option<(usize, String)>,
}

impl History {
    /// Remembers a line that was sent.
    pub(crate) fn push(&mut self, line: &str) {
        self.at = None;
        if self.lines.front().is_some_and(|last| last == line) {
            return;
        }
        self.lines.push_front(line.to_owned());
        self.lines.truncate(HISTORY_MAX);
    }

    /// The line before the one shown, if there is one.
    pub(crate) fn older(&mut self, draft: &str) -> Option<String> {
        let next = self.at.as_ref().map_or(0, |(at, _)| at + 1);
        let line = self.lines.get(next)?.clone();
        let draft = self.at.take().map_or_else(|| draft.to_owned(), |(_, draft)| draft);
        self.at = Some((next, draft));
        Some(line)
    }

    /// The line after the one shown; in the end what was being written.
    pub(crate) fn newer(&mut self) -> Option<String> {
        let (at, draft) = self.at.take()?;
        let Some(newer) = at.checked_sub(1) else { return Some(draft) };
        let line = self.lines.get(newer).cloned();
        self.at = Some((newer, draft));
        line
    }

    /// What is shown was changed: it is a draft of its own now.
    pub(crate) fn leave(&mut self) {
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text with `|` for the cursor.
    fn editor(text: &str) -> Editor {
        let cursor = text.find('|').unwrap_or(text.len());
        Editor { text: text.replace('|', ""), cursor, ..Editor::default() }
    }

    fn shown(editor: &Editor) -> String {
        format!("{}|{}", editor.before(), &editor.text[editor.cursor..])
    }

    #[test]
    fn moves_and_kills() {
        let check = |before: &str, act: fn(&mut Editor), after: &str| {
            let mut editor = editor(before);
            act(&mut editor);
            assert_eq!(shown(&editor), after, "{before}");
        };
        check("ab|", |e| e.type_char('c'), "abc|");
        check("a|b", |e| e.type_char('\u{1b}'), "a|b");
        check("e|", |e| e.type_char('\u{301}'), "e\u{301}|");
        check("a日|b", |e| e.backspace(), "a|b");
        check("|", |e| e.backspace(), "|");
        check("👩\u{200d}💻|", |e| e.backspace(), "|");
        check("one two|", |e| e.go(Motion::WordLeft), "one |two");
        check("|one two", |e| e.go(Motion::WordRight), "one| two");
        check("one two |", |e| e.kill(Motion::WordLeft), "one |");
        check("one |two three", |e| e.delete(Motion::WordRight), "one | three");
        check("a\nb|c\nd", |e| e.go(Motion::LineStart), "a\n|bc\nd");
        check("a\nb|c\nd", |e| e.go(Motion::LineEnd), "a\nbc|\nd");
        check("a\nb|c\nd", |e| e.kill(Motion::LineEnd), "a\nb|\nd");
        check("a|\nb", |e| e.kill(Motion::LineEnd), "a|b");
        check("a\n|b", |e| e.kill(Motion::LineStart), "a|b");
        check("ab|c", |e| e.go(Motion::Start), "|abc");
        check("abc\nd\nef|gh", |e| _ = e.vertical(false), "abc\nd|\nefgh");
        check("abc|\nd", |e| _ = e.vertical(true), "abc\nd|");
        check("x :smi|", |e| e.complete(2, "😄"), "x 😄|");
        check("|", |e| _ = e.paste("a\r\nb\u{1b}[2J"), "a\nb\u{241b}[2J|");
        check("a |b", |e| [e.kill(Motion::End), e.yank(), e.yank()].into_iter().collect(), "a bb|");
    }

    #[test]
    fn changes_are_taken_back() {
        let mut editor = Editor::default();
        "one two".chars().for_each(|c| editor.type_char(c));
        editor.kill(Motion::WordLeft);
        assert_eq!(shown(&editor), "one |");
        editor.undo();
        assert_eq!(shown(&editor), "one two|");
        editor.undo();
        assert_eq!(shown(&editor), "one|");
        editor.redo();
        assert_eq!(shown(&editor), "one two|");
        (0..500).for_each(|_| editor.undo());
        assert_eq!(shown(&editor), "|");
        assert!(!editor.paste(&"x".repeat(DRAFT_BYTES_MAX + 1)), "too long");
        assert_eq!(editor.text().len(), DRAFT_BYTES_MAX);
    }

    #[test]
    fn lines_of_before_come_back() {
        let mut history = History::default();
        ["a", "b", "b"].iter().for_each(|line| history.push(line));
        assert_eq!(history.older("draft").as_deref(), Some("b"));
        assert_eq!(history.older("b").as_deref(), Some("a"));
        assert_eq!(history.older("a"), None);
        assert_eq!(history.newer().as_deref(), Some("b"));
        assert_eq!(history.newer().as_deref(), Some("draft"));
        assert_eq!(history.newer(), None);
    }

    #[test]
    fn text_is_laid_out_with_its_cursor() {
        let check = |text: &str, columns: usize, rows: &[&str], place: (usize, usize)| {
            let (found, at) = editor(text).rows(columns);
            assert_eq!((found.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), at), (rows, place), "{text}");
        };
        check("|", 4, &[""], (0, 0));
        check("abc|", 4, &["abc"], (0, 3));
        check("abcd|", 4, &["abcd", ""], (1, 0));
        check("abcd|e", 4, &["abcd", "e"], (1, 0));
        check("a|\nb", 4, &["a", "b"], (0, 1));
        check("a\n|b", 4, &["a", "b"], (1, 0));
        check("日本|語", 5, &["日本", "語"], (1, 0));
    }

    proptest! {
        #[test]
        fn no_sequence_of_keys_breaks_it(keys in prop::collection::vec((0_u8..16, any::<char>()), 0..80)) {
            let mut editor = Editor::default();
            for (key, c) in keys {
                match key {
                    0 => editor.backspace(),
                    1 => editor.go(Motion::Left),
                    2 => editor.go(Motion::WordLeft),
                    3 => editor.kill(Motion::WordRight),
                    4 => editor.kill(Motion::LineStart),
                    5 => editor.yank(),
                    6 => editor.undo(),
                    7 => editor.redo(),
                    8 => drop(editor.vertical((c as u32).is_multiple_of(2))),
                    9 => editor.type_char('\n'),
                    10 => drop(editor.paste(&String::from_iter(['a', c, '\u{200d}', '\u{301}']))),
                    _ => editor.type_char(c),
                }
                prop_assert!(editor.text.is_char_boundary(editor.cursor));
                let (rows, (row, column)) = editor.rows(7);
                prop_assert!(row < rows.len() && column <= 7);
            }
        }
    }
}
