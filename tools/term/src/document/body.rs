//! The text of a document: a rope, places in it, and how a line of it is broken into rows of the screen.
//!
//! A place is counted in characters from the beginning. What is exchanged with others counts UTF-16 code units.

use ropey::{Rope, RopeSlice};
use thalweg_client::{Operation, Operations};
use unicode_segmentation::{GraphemeCursor, GraphemeIncomplete, UnicodeSegmentation as _};

use crate::text;

/// Columns between two stops of the tabulator.
pub(super) const TAB: usize = 4;
/// Columns of a row at least, so that the widest character fits.
const COLUMNS_MIN: usize = 2;
/// A run of characters without a place to break is looked at for one so far back.
const WORD_MAX: usize = 40;

#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    rope: Rope,
    /// Counts changes.
    version: u64,
}

/// What is seen of one grapheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glyph {
    /// Harmless, and without tabs.
    pub(super) text: String,
    pub(super) columns: usize,
}

/// How one grapheme is seen that begins in this column.
pub(super) fn glyph(grapheme: &str, column: usize) -> Glyph {
    let (text, columns) = match grapheme.as_bytes() {
        [b'\t'] => {
            let columns = TAB - column % TAB;
            (" ".repeat(columns), columns)
        }
        // The end of a line as Windows has it.
        b"\r" | b"\n" | b"\r\n" => (String::new(), 0),
        [b' '..=b'~'] => (grapheme.to_owned(), 1),
        _ => {
            let clean = text::clean_line(grapheme);
            // Something without width would hide where the cursor is.
            let clean = if text::width(&clean) == 0 { "\u{fffd}".to_owned() } else { clean };
            let columns = text::width(&clean);
            (clean, columns)
        }
    };
    Glyph { text, columns }
}

impl Body {
    pub(super) fn new(text: &str) -> Self {
        Self { rope: Rope::from_str(text), version: 1 }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// How many characters there are.
    pub(super) fn length(&self) -> usize {
        self.rope.len_chars()
    }

    pub(super) fn text(&self) -> String {
        self.rope.to_string()
    }

    /// How many lines there are: one more than line ends.
    pub(super) fn lines(&self) -> usize {
        self.rope.len_lines()
    }

    pub(super) fn line_of(&self, at: usize) -> usize {
        self.rope.char_to_line(at.min(self.length()))
    }

    pub(super) fn line_start(&self, line: usize) -> usize {
        self.rope.line_to_char(line.min(self.rope.len_lines()))
    }

    /// Before the end of the line, whatever it is made of.
    pub(super) fn line_end(&self, line: usize) -> usize {
        let slice = self.line(line);
        let length = slice.len_chars();
        let ends = slice.chars_at(length).reversed().take_while(|c| matches!(c, '\n' | '\r')).take(2).count();
        self.line_start(line) + length - ends
    }

    pub(super) fn line(&self, line: usize) -> RopeSlice<'_> {
        self.rope.line(line.min(self.rope.len_lines().saturating_sub(1)))
    }

    pub(super) fn slice(&self, from: usize, to: usize) -> String {
        let to = to.min(self.length());
        self.rope.slice(from.min(to)..to).to_string()
    }

    pub(super) fn utf16(&self, at: usize) -> u32 {
        u32::try_from(self.rope.char_to_utf16_cu(at.min(self.length()))).unwrap_or(u32::MAX)
    }

    pub(super) fn of_utf16(&self, offset: u32) -> usize {
        self.rope.utf16_cu_to_char((offset as usize).min(self.rope.len_utf16_cu()))
    }

    /// What puts a text in the place of what lies between.
    pub(super) fn replacement(&self, from: usize, to: usize, text: &str) -> Operations {
        let (start, end) = (self.utf16(from), self.utf16(to));
        Operations::new().retain(start).insert(text).delete(end - start)
    }

    /// Edits the text. Gives where the last change ends. Operations that reach beyond the text change what there is.
    pub(super) fn apply(&mut self, operations: &Operations) -> Option<usize> {
        self.version += 1;
        let (mut at, mut end) = (0, None);
        for part in operations.parts() {
            match part {
                Operation::Retain(length) => at = self.of_utf16(self.utf16(at).saturating_add(*length)),
                Operation::Insert(text) => {
                    self.rope.insert(at, text);
                    at += text.chars().count();
                    end = Some(at);
                }
                Operation::Delete(length) => {
                    let to = self.of_utf16(self.utf16(at).saturating_add(*length));
                    self.rope.remove(at..to);
                    end = Some(at);
                }
            }
        }
        end
    }

    /// The next place between graphemes.
    pub(super) fn after(&self, at: usize) -> usize {
        let (byte, end) = (self.rope.char_to_byte(at.min(self.length())), self.rope.len_bytes());
        let mut cursor = GraphemeCursor::new(byte, end, true);
        let (mut chunk, mut start, ..) = self.rope.chunk_at_byte(byte);
        loop {
            match cursor.next_boundary(chunk, start) {
                Ok(None) => return self.length(),
                Ok(Some(next)) => return self.rope.byte_to_char(next),
                Err(GraphemeIncomplete::NextChunk) => {
                    start += chunk.len();
                    chunk = self.rope.chunk_at_byte(start).0;
                }
                Err(GraphemeIncomplete::PreContext(before)) => {
                    let (context, from, ..) = self.rope.chunk_at_byte(before - 1);
                    cursor.provide_context(&context[..before - from], from);
                }
                Err(_) => return (at + 1).min(self.length()),
            }
        }
    }

    /// The place between graphemes before this one.
    pub(super) fn before(&self, at: usize) -> usize {
        let (byte, end) = (self.rope.char_to_byte(at.min(self.length())), self.rope.len_bytes());
        let mut cursor = GraphemeCursor::new(byte, end, true);
        let (mut chunk, mut start, ..) = self.rope.chunk_at_byte(byte);
        loop {
            match cursor.prev_boundary(chunk, start) {
                Ok(None) => return 0,
                Ok(Some(before)) => return self.rope.byte_to_char(before),
                Err(GraphemeIncomplete::PrevChunk) => {
                    let (before, from, ..) = self.rope.chunk_at_byte(start - 1);
                    (chunk, start) = (before, from);
                }
                Err(GraphemeIncomplete::PreContext(before)) => {
                    let (context, from, ..) = self.rope.chunk_at_byte(before - 1);
                    cursor.provide_context(&context[..before - from], from);
                }
                Err(_) => return at.saturating_sub(1),
            }
        }
    }

    /// The nearest place between graphemes that is not behind this one.
    pub(super) fn settled(&self, at: usize) -> usize {
        let at = at.min(self.length());
        if at == 0 || at == self.length() { at } else { self.before(at + 1).max(self.before(self.after(at))) }
    }

    /// The beginning of the next word.
    pub(super) fn word_after(&self, at: usize) -> usize {
        let mut chars = self.rope.chars_at(at.min(self.length())).peekable();
        let mut to = at;
        let Some(kind) = chars.peek().map(|c| kind(*c)) else { return at };
        to += take(&mut chars, |c| self::kind(c) == kind);
        to + take(&mut chars, |c| self::kind(c) == Kind::Space)
    }

    /// The beginning of the word before.
    pub(super) fn word_before(&self, at: usize) -> usize {
        let mut chars = self.rope.chars_at(at.min(self.length())).reversed().peekable();
        let mut to = at - take(&mut chars, |c| kind(c) == Kind::Space);
        if let Some(kind) = chars.peek().map(|c| kind(*c)) {
            to -= take(&mut chars, |c| self::kind(c) == kind);
        }
        to
    }

    /// Where a text is found from a place on, whatever its case; from the beginning if it is nowhere behind it.
    pub(super) fn find(&self, wanted: &str, from: usize, forward: bool) -> Option<usize> {
        let wanted: Vec<char> = wanted.chars().flat_map(char::to_lowercase).collect();
        if wanted.is_empty() {
            return None;
        }
        // As many characters as before: those that become several are compared by their first.
        let folded: Vec<char> = self.rope.chars().map(|c| c.to_lowercase().next().unwrap_or(c)).collect();
        let mut starts =
            folded.windows(wanted.len()).enumerate().filter(|(_, found)| *found == wanted).map(|(at, _)| at);
        if forward {
            let mut first = None;
            return starts
                .find(|at| {
                    first.get_or_insert(*at);
                    *at >= from
                })
                .or(first);
        }
        let (mut before, mut last) = (None, None);
        for at in starts {
            if at < from {
                before = Some(at);
            }
            last = Some(at);
        }
        before.or(last)
    }

    /// Where each row of a line begins, in characters from the beginning of the line, and whether it is broken between words
    /// where that is possible.
    pub(super) fn rows(&self, line: usize, columns: usize) -> Vec<usize> {
        let columns = columns.max(COLUMNS_MIN);
        let text = self.line(line).to_string();
        let mut rows = vec![0];
        let (mut used, mut at) = (0, 0);
        // The last place where the row may be broken, and how many columns lie behind it.
        let mut breaks: Option<(usize, usize)> = None;
        for grapheme in text.graphemes(true) {
            let width =
                if grapheme.len() == 1 && grapheme.as_bytes()[0] >= b' ' { 1 } else { glyph(grapheme, used).columns };
            // A space at the end has room where the cursor would stand.
            let hangs = grapheme == " " && used == columns;
            if used + width > columns && !hangs {
                let (start, carried) =
                    breaks.filter(|(_, carried)| *carried <= WORD_MAX.min(columns - 1)).unwrap_or((at, 0));
                rows.push(start);
                (used, breaks) = (carried, None);
            }
            used += width;
            at += grapheme.chars().count();
            match &mut breaks {
                _ if matches!(grapheme, " " | "\t") => breaks = Some((at, 0)),
                Some((_, carried)) => *carried += width,
                None => {}
            }
        }
        rows
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    Word,
    Sign,
}

fn kind(c: char) -> Kind {
    match c {
        _ if c.is_whitespace() => Kind::Space,
        _ if c.is_alphanumeric() || c == '_' => Kind::Word,
        _ => Kind::Sign,
    }
}

fn take(chars: &mut std::iter::Peekable<impl Iterator<Item = char>>, so: impl Fn(char) -> bool) -> usize {
    std::iter::from_fn(|| chars.next_if(|c| so(*c))).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_broken_between_words() {
        fn check(text: &str, columns: usize, expected: &[&str]) {
            let body = Body::new(text);
            let mut rows = body.rows(0, columns);
            rows.push(text.chars().count());
            let found: Vec<String> = rows.windows(2).map(|row| body.slice(row[0], row[1])).collect();
            assert_eq!(found, expected, "{text:?} in {columns}");
        }
        check("", 10, &[""]);
        check("one two three", 8, &["one two ", "three"]);
        check("one two three", 7, &["one two ", "three"]);
        check("incomprehensible", 6, &["incomp", "rehens", "ible"]);
        check("日本語のテキスト", 6, &["日本語", "のテキ", "スト"]);
        check("a\tb", 4, &["a\t", "b"]);
        check("abc\r\n", 3, &["abc\r\n"]);
    }

    #[test]
    fn words_graphemes_and_lines() {
        let body = Body::new("let x = a_b; // 👩‍💻!\r\nnext\n");
        assert_eq!((body.lines(), body.line_end(0), body.line_start(1)), (3, 20, 22));
        assert_eq!((body.word_after(0), body.word_after(4), body.word_before(13)), (4, 6, 11));
        assert_eq!((body.after(16), body.before(19), body.settled(17)), (19, 16, 16));
        assert_eq!((body.after(20), body.before(22)), (22, 20));
        assert_eq!((body.utf16(19), body.of_utf16(21)), (21, 19));
        assert_eq!(body.find("NEXT", 0, true), Some(22));
        assert_eq!(body.find("x", 5, true), Some(24));
        assert_eq!(body.find("x", 24, false), Some(4));
        assert_eq!(body.find("nowhere", 0, true), None);
    }

    proptest! {
        #[test]
        fn a_rope_is_edited_like_a_text(
            text in "[a-z 👍日\\n\\r\\t]{0,40}", at in any::<u16>(), length in 0_usize..9, insertion in "[a👍\\n]{0,4}"
        ) {
            let mut body = Body::new(&text);
            let from = usize::from(at) % (body.length() + 1);
            let to = (from + length).min(body.length());
            let operations = body.replacement(from, to, &insertion);
            let expected = operations.apply(&text).expect("it fits");
            body.apply(&operations);
            prop_assert_eq!(body.text(), expected);
            for place in 0..=body.length() {
                let settled = body.settled(place);
                prop_assert!(settled <= place && body.settled(settled) == settled);
                prop_assert!(body.after(place) >= place && body.before(place) <= place);
            }
            for line in 0..body.lines() {
                let rows = body.rows(line, 5);
                prop_assert!(rows.windows(2).all(|row| row[0] < row[1]), "{:?}", rows);
            }
        }
    }
}
