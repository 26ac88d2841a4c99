//! What plain output shows: text that cannot steer a terminal, and tables.

use std::io::Write;

use thalweg_client::{MemberRole, Message};

use crate::failure::{Failure, output};

/// Text that cannot steer the terminal or reorder what stands around it: control characters but line ends and tabs, and the
/// marks that turn the direction of text, are shown as what they are.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if steers(c) && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The same, in one line.
pub(crate) fn harmless_line(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => ' ',
        c if steers(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
}

/// Writes a message's body and a line end: as it is for a program, harmlessly for a person.
pub(crate) fn body(out: &mut impl Write, message: &Message, person: bool) -> std::io::Result<()> {
    match person {
        true => out.write_all(harmless(&message.text()).as_bytes())?,
        false => out.write_all(&message.body)?,
    }
    out.write_all(b"\n")
}

/// Prints rows with their columns below each other. Every cell is made harmless.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| harmless_line(cell)).collect()).collect();
    let width = |at: usize| {
        let cells = std::iter::once(&head).chain(&rows).filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = std::io::stdout().lock();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        writeln!(out, "{}", line.trim_end()).map_err(|error| output(&error))?;
    }
    Ok(())
}

/// Prints a line for a program, as it is.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| output(&error))
}

/// Prints a line for a person.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    print(&harmless_line(line))
}

/// A role as tables show it.
pub(crate) fn role(role: Option<MemberRole>) -> String {
    role.map_or("-", MemberRole::as_str).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let check = |text: &str, shown: &str, line: &str| {
            assert_eq!((harmless(text).as_str(), harmless_line(text).as_str()), (shown, line), "{text:?}");
        };
        check("plain é 👍🏽", "plain é 👍🏽", "plain é 👍🏽");
        check("a\n\tb", "a\n\tb", "a  b");
        check("\x1b]0;x\x07\r", "\u{fffd}]0;x\u{fffd}\u{fffd}", "\u{fffd}]0;x\u{fffd}\u{fffd}");
        check("\u{9b}2J", "\u{fffd}2J", "\u{fffd}2J");
        check("a\u{202e}b", "a\u{fffd}b", "a\u{fffd}b");
    }
}
