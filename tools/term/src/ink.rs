//! What a piece of text is, so that a theme can say how it looks.

use unicode_segmentation::UnicodeSegmentation as _;

use crate::text;

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Ink {
    /// What somebody wrote.
    Plain,
    /// Beside the point.
    Dim,
    /// A title, a name of a thing.
    Strong,
    /// The name of somebody, by a number that stands for the name.
    Author(u8),
    /// `@somebody`.
    Mention,
    /// `@me`.
    Called,
    /// `#channel`.
    Channel,
    /// An address of the web.
    Link,
    /// `code`.
    Code,
    /// Words of an earlier message.
    Quote,
    /// A reaction, and one that is also mine.
    Reaction(bool),
    /// Something that happened.
    Note,
    /// Something that went wrong.
    Error,
    /// Something that is well.
    Good,
    /// Something that needs attention.
    Warning,
    /// Not confirmed by the node.
    Pending,
    /// A line between days.
    Day,
    /// The line before what is new.
    New,
    /// A model that writes.
    Model,
}

/// Text of one ink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) ink: Ink,
}

impl Piece {
    pub(crate) fn new(text: impl Into<String>, ink: Ink) -> Self {
        Self { text: text.into(), ink }
    }
}

/// One line of a screen.
pub(crate) type Line = Vec<Piece>;

/// The number that stands for a name among the colours: the same on every screen.
pub(crate) fn author(name: &str) -> Ink {
    // FNV-1a.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    Ink::Author((hash >> 8) as u8)
}

/// What a word is, and how much of it: `@ada,` is a mention and a comma.
fn mark(word: &str, me: &str) -> (usize, Ink) {
    let name = |word: &str| word.trim_end_matches([',', '.', ':', ';', '!', '?', ')', '\'', '"']).len();
    match word.as_bytes() {
        [b'@', _, ..] => {
            let end = name(word);
            let ink = if word[1..end.max(1)] == *me { Ink::Called } else { Ink::Mention };
            (end, if end > 1 { ink } else { Ink::Plain })
        }
        [b'#', next, ..] if !matches!(next, b'#' | b' ') => {
            let end = name(word);
            (end, if end > 1 { Ink::Channel } else { Ink::Plain })
        }
        _ if word.starts_with("https://") || word.starts_with("http://") => (name(word), Ink::Link),
        _ => (word.len(), Ink::Plain),
    }
}

/// Takes a line apart into words, spaces and code, in order.
fn pieces(line: &str, me: &str) -> Vec<(String, Ink)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = if first == ' ' {
            rest.find(|c| c != ' ').unwrap_or(rest.len())
        } else if let Some(code) = rest.strip_prefix('`').and_then(|inner| inner.find('`')).filter(|&at| at > 0) {
            found.push((rest[..code + 2].to_owned(), Ink::Code));
            rest = &rest[code + 2..];
            continue;
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            let begin = first.len_utf8();
            rest[begin..end].find('`').map_or(end, |at| begin + at)
        };
        let (word, after) = rest.split_at(end);
        if first == ' ' {
            found.push((word.to_owned(), Ink::Plain));
        } else {
            let (marked, ink) = mark(word, me);
            found.push((word[..marked].to_owned(), ink));
            if marked < word.len() {
                found.push((word[marked..].to_owned(), Ink::Plain));
            }
        }
        rest = after;
    }
    found
}

/// Breaks clean text into lines of at most so many columns: between words where possible, within a word that is longer.
/// At most `lines_max` lines; says whether that was all.
pub(crate) fn wrap(body: &str, columns: usize, me: &str, lines_max: usize) -> (Vec<Line>, bool) {
    let columns = columns.max(2);
    let mut wrapped = Wrapped { lines: Vec::new(), line: Line::new(), used: 0, columns };
    let mut fenced = false;
    for line in body.split('\n') {
        let fence = line.trim_start().starts_with("```");
        if fence || fenced {
            wrapped.take(line, Ink::Code);
            fenced ^= fence;
        } else {
            let mut word: Vec<(String, Ink)> = Vec::new();
            for piece in pieces(line, me) {
                if piece.0.starts_with(' ') {
                    wrapped.word(&word);
                    word.clear();
                    wrapped.space(&piece.0);
                } else {
                    word.push(piece);
                }
            }
            wrapped.word(&word);
        }
        wrapped.end();
        if wrapped.lines.len() > lines_max {
            wrapped.lines.truncate(lines_max);
            return (wrapped.lines, false);
        }
    }
    (wrapped.lines, true)
}

struct Wrapped {
    lines: Vec<Line>,
    line: Line,
    used: usize,
    columns: usize,
}

impl Wrapped {
    /// A word with what clings to it: onto this line if there is room, else onto the next.
    fn word(&mut self, pieces: &[(String, Ink)]) {
        let columns: usize = pieces.iter().map(|(text, _)| text::width(text)).sum();
        if self.used + columns > self.columns && self.used > 0 && columns <= self.columns {
            if let Some(last) = self.line.last_mut() {
                last.text.truncate(last.text.trim_end_matches(' ').len());
            }
            self.end();
        }
        for (text, ink) in pieces {
            self.take(text, *ink);
        }
    }

    /// Spaces are kept at the beginning of what somebody wrote and between words, and dropped where a line is broken.
    fn space(&mut self, text: &str) {
        if self.used + text.len() < self.columns {
            self.take(text, Ink::Plain);
        } else {
            self.end();
        }
    }

    fn take(&mut self, text: &str, ink: Ink) {
        for grapheme in text.graphemes(true) {
            let columns = text::width(grapheme);
            if self.used + columns > self.columns {
                self.end();
            }
            self.used += columns;
            match self.line.last_mut() {
                Some(last) if last.ink == ink => last.text.push_str(grapheme),
                _ => self.line.push(Piece::new(grapheme, ink)),
            }
        }
    }

    fn end(&mut self) {
        self.lines.push(std::mem::take(&mut self.line));
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.iter().map(|piece| piece.text.as_str()).collect()).collect()
    }

    #[test]
    fn lines_are_broken_between_words() {
        let check = |text: &str, columns: usize, expected: &[&str]| {
            assert_eq!(plain(&wrap(text, columns, "me", 100).0), expected, "{text:?} {columns}");
        };
        check("", 10, &[""]);
        check("hello world", 20, &["hello world"]);
        check("hello world", 8, &["hello", "world"]);
        check("hello world", 5, &["hello", "world"]);
        check("abcdefghij xyz", 4, &["abcd", "efgh", "ij", "xyz"]);
        check("  indented\nnext", 20, &["  indented", "next"]);
        check("日本語日本語", 5, &["日本", "語日", "本語"]);
        check("a\n\nb", 5, &["a", "", "b"]);
        check("ends with `code here`, yes", 12, &["ends with", "`code here`,", "yes"]);
        assert_eq!(wrap("a\nb\nc", 5, "me", 2).0.len(), 2);
        assert!(!wrap("a\nb\nc", 5, "me", 2).1);
    }

    #[test]
    fn words_are_what_they_are() {
        let check = |text: &str, expected: &[(&str, Ink)]| {
            let (lines, _) = wrap(text, 80, "me", 10);
            let found: Vec<_> = lines.iter().flatten().map(|piece| (piece.text.as_str(), piece.ink)).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("hi @ada, see", &[("hi ", Ink::Plain), ("@ada", Ink::Mention), (", see", Ink::Plain)]);
        check("@me!", &[("@me", Ink::Called), ("!", Ink::Plain)]);
        check("#general.", &[("#general", Ink::Channel), (".", Ink::Plain)]);
        check("a@b # @ ##", &[("a@b # @ ##", Ink::Plain)]);
        check("`x y` `", &[("`x y`", Ink::Code), (" `", Ink::Plain)]);
        check("https://a.b/c?d.", &[("https://a.b/c?d", Ink::Link), (".", Ink::Plain)]);
        check("```\na @b\n```", &[("```", Ink::Code), ("a @b", Ink::Code), ("```", Ink::Code)]);
    }

    proptest! {
        #[test]
        fn lines_fit_and_nothing_is_lost(text in "[a-z@#`日é \\n]{0,80}", columns in 2_usize..20) {
            let (lines, all) = wrap(&text, columns, "me", 1_000);
            prop_assert!(all);
            for line in plain(&lines) {
                prop_assert!(text::width(&line) <= columns);
            }
            let kept = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(kept(&plain(&lines).concat()), kept(&text));
        }
    }
}
