//! Text of strangers, made harmless: the one place through which everything goes that a terminal will show.
//!
//! A message may hold escape sequences that clear a screen or rename a window, direction overrides that make a line read
//! as something else, thousands of marks stacked on one letter, or characters without width that make words differ that
//! look the same. What [`clean`] gives holds none of that, and still shows that something was there.

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Marks that one character may carry: more than any script stacks, too few to reach the lines above and below.
const MARKS_MAX: usize = 4;
/// Characters of one grapheme: a family of four with skin tones has eleven.
const GRAPHEME_CHARS_MAX: usize = 12;
/// What stands for a character that would have steered the terminal or the direction of text.
const STEERING: char = char::REPLACEMENT_CHARACTER;
/// What carries marks that came without a letter.
const BASE: char = '\u{25cc}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';
const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
/// Columns of a tab.
const TAB: &str = "    ";

/// `text` with line ends as `\n`, no other control character, and nothing that changes how its neighbours are shown.
pub fn clean(text: &str) -> String {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')) {
        return text.to_owned();
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    plain.push('\n');
                }
            }
            '\n' | '\u{2028}' | '\u{2029}' | '\u{85}' => plain.push('\n'),
            '\t' => plain.push_str(TAB),
            _ => plain.extend(harmless(c)),
        }
    }
    let mut cleaned = String::with_capacity(plain.len());
    for line in plain.split_inclusive('\n') {
        line.graphemes(true).for_each(|grapheme| push_grapheme(&mut cleaned, grapheme));
    }
    cleaned
}

/// [`clean`], on one line: names, topics, reasons.
pub fn clean_line(text: &str) -> String {
    let mut line = clean(text);
    if line.contains('\n') {
        line = line.trim_end_matches('\n').replace('\n', " ");
    }
    line
}

/// What stands for a character: itself, a sign for it, or nothing.
fn harmless(c: char) -> Option<char> {
    match c {
        // Their pictures: U+2400 and on.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + u32::from(c)),
        '\u{7f}' => Some('\u{2421}'),
        '\u{80}'..='\u{9f}' => Some(STEERING),
        // Overrides, embeddings and isolates of direction.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => Some(STEERING),
        // Marks of direction, harmless but for hiding; joiners and fillers without width; tags.
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' => None,
        '\u{ad}' | '\u{34f}' | '\u{180b}'..='\u{180f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => None,
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{17b4}' | '\u{17b5}' => None,
        '\u{e0000}'..='\u{e0fff}' => None,
        '\u{fdd0}'..='\u{fdef}' | '\u{fffe}' | '\u{ffff}' => Some(STEERING),
        _ if u32::from(c) & 0xfffe == 0xfffe => Some(STEERING),
        _ => Some(c),
    }
}

/// Takes one grapheme over, without a flood of marks, and never one that would sit on what is before it.
fn push_grapheme(out: &mut String, grapheme: &str) {
    if grapheme == "\n" || grapheme.len() == 1 {
        return out.push_str(grapheme);
    }
    let first = grapheme.chars().next().unwrap_or(' ');
    let carried = first.width().unwrap_or(0) > 0;
    let joins = grapheme.chars().any(is_pictograph);
    if !carried {
        // Joiners alone say nothing; a mark gets something to sit on.
        let visible = |c| !matches!(c, ZERO_WIDTH_JOINER | ZERO_WIDTH_NON_JOINER | '\u{fe00}'..='\u{fe0f}');
        if !grapheme.chars().any(visible) {
            return;
        }
        out.push(BASE);
    }
    let (mut marks, mut count) = (0, 0);
    for c in grapheme.chars() {
        let kept = match c {
            ZERO_WIDTH_JOINER => joins && carried,
            _ if c.width().unwrap_or(0) == 0 => {
                marks += 1;
                marks <= MARKS_MAX
            }
            _ => true,
        };
        if kept && count < GRAPHEME_CHARS_MAX {
            out.push(c);
            count += 1;
        }
    }
    // A joiner at the end would take in what comes next.
    if out.ends_with(ZERO_WIDTH_JOINER) {
        out.pop();
    }
}

fn is_pictograph(c: char) -> bool {
    matches!(c, '\u{1f000}'..='\u{1faff}' | '\u{2190}'..='\u{2bff}' | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}')
}

/// Columns that a text takes in a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// The text if it fits into so many columns, else its beginning and `…`.
pub(crate) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut left = columns.saturating_sub(1);
    for grapheme in text.graphemes(true) {
        let columns = width(grapheme);
        if columns > left {
            break;
        }
        left -= columns;
        cut.push_str(grapheme);
    }
    if columns > 0 {
        cut.push('…');
    }
    cut
}

/// [`fit`], filled with spaces to exactly so many columns.
pub(crate) fn fill(text: &str, columns: usize) -> String {
    let mut text = fit(text, columns);
    let missing = columns.saturating_sub(width(&text));
    text.extend(std::iter::repeat_n(' ', missing));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_text_is_shown_harmlessly() {
        let check = |text: &str, expected: &str| assert_eq!(clean(text), expected, "{text:?}");
        check("plain\ntext", "plain\ntext");
        check("a\r\nb\rc\u{2028}d\u{85}e", "a\nb\nc\nd\ne");
        check("a\tb", "a    b");
        // Clears the screen; renames the window; the same with one character for ESC [.
        check("\u{1b}[2J\u{1b}]0;pwned\u{7}", "\u{241b}[2J\u{241b}]0;pwned\u{2407}");
        check("\u{9b}2J\u{7f}", "\u{fffd}2J\u{2421}");
        // Reads `exe.txt` in a terminal that reorders.
        check("\u{202e}txt.exe\u{202c}", "\u{fffd}txt.exe\u{fffd}");
        check("a\u{2067}b\u{2069}c", "a\u{fffd}b\u{fffd}c");
        check("pay\u{200b}pal\u{feff}\u{ad}\u{2060}\u{200e}", "paypal");
        check("\u{3164}\u{115f}x", "x");
        check(&format!("Z{}", "\u{301}".repeat(500)), &format!("Z{}", "\u{301}".repeat(MARKS_MAX)));
        // Marks without a letter do not climb onto the name before the message.
        check("\u{301}\u{301}a", "\u{25cc}\u{301}\u{301}a");
        check("a\n\u{301}b", "a\n\u{25cc}\u{301}b");
        check("\u{200d}\u{200d}", "");
        check("a\u{200d}b", "ab");
        check("\u{1f469}\u{200d}\u{1f4bb} \u{2764}\u{fe0f}", "\u{1f469}\u{200d}\u{1f4bb} \u{2764}\u{fe0f}");
        check("\u{1f469}\u{200d}", "\u{1f469}");
        check("日本語 한국어 עברית", "日本語 한국어 עברית");
        check("tag\u{e0041}\u{e007f}\u{ffff}\u{fdd0}", "tag\u{fffd}\u{fffd}");
        assert_eq!(clean_line("a\nb\u{1b}\n"), "a b\u{241b}");
    }

    #[test]
    fn text_is_cut_by_columns() {
        let check = |text: &str, columns: usize, expected: &str| assert_eq!(fit(text, columns), expected);
        check("abc", 3, "abc");
        check("abcd", 3, "ab…");
        check("日本語", 4, "日…");
        check("日本語", 6, "日本語");
        check("abc", 0, "");
        assert_eq!(fill("日本", 5), "日本 ");
        assert_eq!(fill("日本語", 4), "日… ");
    }

    proptest! {
        #[test]
        fn nothing_steers_after_cleaning(text in "\\PC*|(.|\\n|\\p{Cf}|\\p{Mn}|\\p{Cc}){0,200}") {
            let cleaned = clean(&text);
            prop_assert!(cleaned.chars().all(|c| c == '\n' || !c.is_control()));
            let steers = cleaned.contains(['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}']);
            prop_assert!(!steers);
            for grapheme in cleaned.split('\n').flat_map(|line| line.graphemes(true)) {
                prop_assert!(grapheme.chars().count() <= 2 * GRAPHEME_CHARS_MAX, "{grapheme:?}");
            }
            for line in cleaned.lines() {
                prop_assert!(line.is_empty() || width(line.graphemes(true).next().unwrap()) > 0, "{line:?}");
            }
            prop_assert!(width(&fit(&clean_line(&text), 7)) <= 7);
        }
    }
}
