//! A Rust file taken apart just far enough to search it: code, comments, and which of it is test.
//!
//! Not a parser. It knows where comments, strings and characters begin and end, and that braces pair up; that is enough
//! to never mistake a word in a text for code.

use std::ops::Range;

/// One Rust file. Both texts have the length of the file, so that an offset means the same line in each.
pub(super) struct Source<'a> {
    /// Where the file lies, relative to the root.
    pub(super) path: &'a str,
    /// The code; comments and the insides of strings are spaces.
    pub(super) code: String,
    /// The comments; everything else is spaces.
    pub(super) comments: String,
    tests: Vec<Range<usize>>,
}

impl<'a> Source<'a> {
    /// Takes `text` apart.
    pub(super) fn new(path: &'a str, text: &str) -> Self {
        let (code, comments) = split(text);
        let whole = is_test_file(path) || code.contains("#![cfg(test)]");
        let tests = if whole { std::iter::once(0..code.len()).collect() } else { test_items(&code) };
        Self { path, code, comments, tests }
    }

    /// The line of an offset, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        1 + self.code.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count()
    }

    /// Whether what stands at `at` is compiled for tests only.
    pub(super) fn is_test(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// Where `word` stands in the code as a whole word (a path such as `std::fs` is one too).
    pub(super) fn words<'s>(&'s self, word: &'s str) -> impl Iterator<Item = usize> + 's {
        words(&self.code, word)
    }

    /// Every function with a body: where it begins, its name, and the lines of it that hold code.
    pub(super) fn functions(&self) -> Vec<(usize, &str, usize)> {
        let mut found = Vec::new();
        for at in self.words("fn") {
            let rest = self.code[at + 2..].trim_start();
            let name = &rest[..rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())];
            if name.is_empty() {
                continue; // a function pointer's type
            }
            if let Some(end) = item_end(&self.code, at).filter(|&end| self.code.as_bytes()[end - 1] == b'}') {
                let lines = self.code[at..end].lines().filter(|line| !line.trim().is_empty()).count();
                found.push((at, name, lines));
            }
        }
        found
    }

    /// Every path that a `use` brings in, its braces written out: `use std::{fs, io};` gives `std::fs` and `std::io`.
    pub(super) fn imports(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for at in self.words("use") {
            let end = self.code[at..].find(';').map_or(self.code.len(), |n| at + n);
            let tree: String = self.code[at + 3..end].split_whitespace().collect::<Vec<_>>().join(" ");
            expand("", &tree, &mut |path| found.push((at, path)));
        }
        found
    }
}

/// Where `word` stands in `text` with no letter, digit or underscore beside it.
pub(super) fn words<'s>(text: &'s str, word: &'s str) -> impl Iterator<Item = usize> + 's {
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = text[..at].chars().next_back().is_some_and(is_word);
        let behind = word.ends_with(is_word) && text[at + word.len()..].starts_with(is_word);
        !before && !behind
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.split('/').any(|part| part == "tests" || part == "benches")
}

/// Writes out the braces of a `use` tree.
fn expand(before: &str, tree: &str, found: &mut impl FnMut(String)) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or(tree).replace(' ', "");
        return found(format!("{before}{path}").trim_start_matches("::").trim_end_matches("::self").to_owned());
    };
    let before = format!("{before}{}", tree[..open].replace(' ', ""));
    let inside = tree[open + 1..].strip_suffix('}').unwrap_or(&tree[open + 1..]);
    let (mut depth, mut start) = (0_u32, 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                expand(&before, &inside[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inside[start..].trim().is_empty() {
        expand(&before, &inside[start..], found);
    }
}

/// The items that an attribute gives to the tests.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let marks = ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(any(test", "#[test]"];
    let starts = marks.iter().flat_map(|mark| code.match_indices(mark).map(|(at, _)| at));
    starts.filter_map(|at| item_end(code, at).map(|end| at..end)).collect()
}

/// The end of the item that begins at `at`: behind its block, or behind its semicolon.
fn item_end(code: &str, at: usize) -> Option<usize> {
    let (mut braces, mut others) = (0_i32, 0_i32);
    for (n, b) in code.as_bytes()[at..].iter().enumerate() {
        match b {
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces <= 0 && others <= 0 {
                    return Some(at + n + 1);
                }
            }
            b'(' | b'[' => others += 1,
            b')' | b']' => others -= 1,
            b';' if braces == 0 && others == 0 => return Some(at + n + 1),
            _ => {}
        }
    }
    None
}

/// Separates code from comments, byte for byte.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let blank = |range: Range<usize>| bytes[range].iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' });
    let (mut code, mut comments) = (Vec::with_capacity(bytes.len()), Vec::with_capacity(bytes.len()));
    let mut at = 0;
    while at < bytes.len() {
        let (end, is_comment) = token_end(bytes, at);
        if is_comment {
            code.extend(blank(at..end));
            comments.extend_from_slice(&bytes[at..end]);
        } else if end - at > 1 {
            // A text or character: its quotes stay, so that what stands on both sides does not grow together.
            code.push(bytes[at]);
            code.extend(blank(at + 1..end - 1));
            code.push(bytes[end - 1]);
            comments.extend(blank(at..end));
        } else {
            code.push(bytes[at]);
            comments.extend(blank(at..end));
        }
        at = end;
    }
    let text = |bytes| String::from_utf8(bytes).expect("whole characters are copied, or blanked");
    (text(code), text(comments))
}

/// The end of the comment, text or character that begins at `at`, else of the one byte there.
fn token_end(bytes: &[u8], at: usize) -> (usize, bool) {
    let rest = &bytes[at..];
    let joined = at > 0 && is_word(bytes[at - 1] as char) && !matches!(bytes[at - 1], b'b' | b'c');
    match rest {
        [b'/', b'/', ..] => (at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()), true),
        [b'/', b'*', ..] => (at + block_comment(rest), true),
        [b'r', b'"' | b'#', ..] if !joined => (at + raw_text(rest), false),
        [b'"', ..] => (at + quoted(rest, b'"'), false),
        [b'\'', b'\\', ..] => (at + quoted(rest, b'\''), false),
        [b'\'', first, ..] => {
            let length = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            // Without a closing quote behind one character it is a lifetime.
            (at + if rest.get(1 + length) == Some(&b'\'') { length + 2 } else { 1 }, false)
        }
        _ => (at + 1, false),
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut n) = (0, 0);
    while n < rest.len() {
        match &rest[n..] {
            [b'/', b'*', ..] => (depth, n) = (depth + 1, n + 2),
            [b'*', b'/', ..] => {
                (depth, n) = (depth - 1, n + 2);
                if depth == 0 {
                    return n;
                }
            }
            _ => n += 1,
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut n = 1;
    while n < rest.len() {
        match rest[n] {
            b'\\' => n += 2,
            b if b == quote => return n + 1,
            _ => n += 1,
        }
    }
    rest.len()
}

fn raw_text(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 1; // a raw identifier
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    rest[body..].windows(close.len()).position(|w| w == close).map_or(rest.len(), |n| body + n + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_not_code() {
        let check = |text: &str, code: &str, comments: &str| {
            let source = Source::new("a.rs", text);
            assert_eq!((source.code.trim_end(), source.comments.trim()), (code, comments), "{text}");
            assert_eq!((source.code.len(), source.comments.len()), (text.len(), text.len()), "{text}");
        };
        check("a // b", "a", "// b");
        check("a /* b /* c */ d */ e", "a                   e", "/* b /* c */ d */");
        check(r#"f("// x", 'y')"#, r#"f("    ", ' ')"#, "");
        check(r#"f("a\"b", '\'', '"')"#, r#"f("    ", '  ', ' ')"#, "");
        check(r##"f(r#"a"b"#, br"\")"##, r##"f(r      #, br  ")"##, "");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}", "");
        check("'é' 'a' r#type", "'  ' ' ' r#type", "");
        check("\"open", "\"   n", "");
    }

    #[test]
    fn tests_are_told_from_code() {
        let check = |path: &str, text: &str, expected: bool| {
            let source = Source::new(path, text);
            assert_eq!(source.is_test(text.find("HERE").expect("marked")), expected, "{path}: {text}");
        };
        check("a.rs", "fn a() { HERE }", false);
        check("a.rs", "#[cfg(test)]\nmod tests { fn a() {} HERE }", true);
        check("a.rs", "#[cfg(test)]\nmod tests;\nfn a() { HERE }", false);
        check("a.rs", "#[cfg(test)]\n#[path = \"x\"]\nmod tests { a(); HERE }", true);
        check("a.rs", "#[test]\nfn a(x: [u8; 3]) { HERE }", true);
        check("a.rs", "mod tests { } HERE", false);
        check("src/tests.rs", "fn a() { HERE }", true);
        check("src/tests/a.rs", "fn a() { HERE }", true);
    }

    #[test]
    fn use_trees_are_written_out() {
        let check = |text: &str, expected: &[&str]| {
            let source = Source::new("a.rs", text);
            let found: Vec<String> = source.imports().into_iter().map(|(_, path)| path).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("use std::fs;", &["std::fs"]);
        check("pub use ::std::fs as f;", &["std::fs"]);
        check("use std::{fs::{self, File}, io as i,\n net};", &["std::fs", "std::fs::File", "std::io", "std::net"]);
        check("use {std::fs, a::b};", &["std::fs", "a::b"]);
        check("fn user() {}", &[]);
    }

    #[test]
    fn functions_are_measured_without_blank_lines_and_comments() {
        let check = |text: &str, expected: &[(&str, usize)]| {
            let source = Source::new("a.rs", text);
            let found: Vec<_> = source.functions().into_iter().map(|(_, name, lines)| (name, lines)).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("fn a() {\n\n // no\n b();\n}", &[("a", 3)]);
        check("trait T { fn a(&self); fn b(&self) {} }", &[("b", 1)]);
        check("fn a(f: fn(u8) -> [u8; 2]) -> u8 {\n f\n}", &[("a", 3)]);
        check("fn a() {\n fn b() {\n }\n}", &[("a", 4), ("b", 2)]);
    }
}
