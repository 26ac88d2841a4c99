//! What a model that writes in a document is told, and what others are told of it.

use std::fmt::Write;

use bytes::Bytes;
use thalweg_protocol::document::{Operation, Operations, utf16_len};
use thalweg_protocol::generation::{ChatMessage, Role};
use thalweg_protocol::ids::{GenerationId, Name};

/// What models are told in every document.
const SYSTEM: &str = "You are one of several people who write a document together. You are given the text before a place in \
                      it, the text after that place, and an instruction. Answer with the text that belongs there and with \
                      nothing else: no greeting, no explanation, no quotation marks around it.";
/// The colours models are shown in, as editors of documents show people.
const COLOURS: [&str; 4] = ["#8250df", "#0969da", "#1a7f37", "#bf3989"];

/// The text around a place, as far as there is room for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Around<'a> {
    before: &'a str,
    /// What lies between the two ends of the place.
    pub(super) between: &'a str,
    after: &'a str,
}

impl<'a> Around<'a> {
    /// What is around `from..to`, in code units, of a text; of `room` bytes two thirds are for what is before.
    pub(super) fn new(text: &'a str, from: u32, to: u32, room: usize) -> Self {
        let from = byte_at(text, from);
        let to = byte_at(text, to).max(from);
        let after_most = (text.len() - to).min(room / 3);
        let before_most = room - after_most;
        let begin = (from.saturating_sub(before_most)..=from).find(|at| text.is_char_boundary(*at)).unwrap_or(from);
        let end = (to..=to + after_most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(to);
        Self { before: &text[begin..from], between: &text[from..to], after: &text[to..end] }
    }
}

/// The byte at which so many code units of a text end, or all of it.
fn byte_at(text: &str, units: u32) -> usize {
    let mut left = units;
    for (at, c) in text.char_indices() {
        if left == 0 {
            return at;
        }
        left = left.saturating_sub(c.len_utf16() as u32);
    }
    text.len()
}

/// What is between two offsets in code units of a text.
pub(super) fn between(text: &str, from: u32, to: u32) -> &str {
    let from = byte_at(text, from);
    &text[from..byte_at(text, to).max(from)]
}

/// What the model is told.
pub(super) fn messages(around: &Around<'_>, selected: &str, instruction: &str) -> Vec<ChatMessage> {
    let mut content = String::new();
    let mut part = |what: &str, text: &str| {
        if !text.trim().is_empty() {
            // Marks around it would come back in the answers of small models.
            let _ = write!(content, "{what}:\n\n{}\n\n", text.trim_matches('\n'));
        }
    };
    part("The text before the place", around.before);
    part("The text after the place", around.after);
    part("The text that yours takes the place of", selected);
    content.push_str("Instruction: ");
    content.push_str(instruction.trim());
    let message = |role, content| ChatMessage { role, content };
    vec![message(Role::System, SYSTEM.to_owned()), message(Role::User, content)]
}

/// Where a line ended that somebody just finished: before the break that they put in, in code units of the text after that.
/// `None` unless they put in one break, with nothing but white space behind it; who pastes a text finishes no line.
pub(super) fn ended_line(operations: &Operations) -> Option<u32> {
    let mut at = 0;
    let mut ended = None;
    for part in operations.parts() {
        match part {
            Operation::Retain(length) => at += length,
            Operation::Delete(_) => {}
            Operation::Insert(text) => {
                let (line, rest) = match text.split_once('\n') {
                    Some(parts) => parts,
                    None => {
                        at += utf16_len(text);
                        continue;
                    }
                };
                if ended.is_some() || !rest.trim().is_empty() || rest.contains('\n') {
                    return None;
                }
                ended = Some(at + utf16_len(line.strip_suffix('\r').unwrap_or(line)));
                at += utf16_len(text);
            }
        }
    }
    ended
}

/// The line that ends at an offset in code units.
pub(super) fn line_before(text: &str, at: u32) -> &str {
    let before = &text[..byte_at(text, at)];
    before.rsplit('\n').next().unwrap_or(before)
}

/// What others are told of a model that writes: as editors in browsers do it, with the ends of its selection as the JSON of
/// Yjs relative positions.
pub(super) fn awareness(user: &Name, id: GenerationId, anchor: &str, head: &str) -> Bytes {
    let mut name = String::new();
    for c in user.as_str().chars() {
        // Names have no control characters.
        if matches!(c, '"' | '\\') {
            name.push('\\');
        }
        name.push(c);
    }
    let colour = COLOURS[id.0 as usize % COLOURS.len()];
    Bytes::from(format!(
        "{{\"user\":{{\"name\":\"{name}\",\"color\":\"{colour}\",\"colorLight\":\"{colour}33\"}},\
         \"cursor\":{{\"anchor\":{anchor},\"head\":{head}}},\"generation\":\"{id}\"}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_around_a_place_is_cut_to_the_room_there_is() {
        let check = |text: &str, from, to, room, expected: (&str, &str, &str)| {
            let Around { before, between, after } = Around::new(text, from, to, room);
            assert_eq!((before, between, after), expected);
        };
        check("", 0, 0, 10, ("", "", ""));
        check("abcdefghij", 5, 5, 100, ("abcde", "", "fghij"));
        check("abcdefghij", 5, 7, 6, ("bcde", "fg", "hi"));
        check("abcdefghij", 10, 10, 4, ("ghij", "", ""));
        // No character is cut.
        check("äöü€äöü", 3, 4, 6, ("öü", "€", "ä"));
        check("a\u{1f600}b", 3, 9, 100, ("a\u{1f600}", "b", ""));
    }

    #[test]
    fn ending_a_line_is_not_pasting_one() {
        let check = |operations: Operations, expected: Option<u32>| assert_eq!(ended_line(&operations), expected);
        let at = |offset| Operations::new().retain(offset);
        check(at(4).insert("\n"), Some(4));
        check(at(4).insert("ab\r\n"), Some(6));
        check(at(4).insert("\n  "), Some(4));
        check(at(4).insert("a\nb\n"), None);
        check(at(4).insert("\n").retain(1).insert("\n"), None);
        check(at(4).insert("ab"), None);
        check(Operations::new().insert("ab").retain(2).insert("\n"), Some(4));
        check(at(2).delete(3), None);
        assert_eq!(line_before("one\n@ai two\nthree", 11), "@ai two");
    }

    #[test]
    fn others_are_told_in_json() {
        let user = Name::new("ai/\"odd\\name").expect("valid");
        let state = awareness(&user, GenerationId(6), "{\"a\":1}", "null");
        let text = std::str::from_utf8(&state).expect("UTF-8");
        assert!(
            text.contains(r#""name":"ai/\"odd\\name""#) && text.contains(r#""anchor":{"a":1},"head":null"#),
            "{text}"
        );
    }
}
