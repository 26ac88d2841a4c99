//! The text of an answer, token by token: whole characters only, and nothing of a stop string.

/// Puts the bytes of tokens together to text that can be sent.
///
/// The bytes of one token often end inside of a character; they wait for the next. Text that may turn out to begin a stop
/// string waits too. So the text of a token may be empty, and all texts together are the answer.
#[derive(Debug, Default)]
pub struct Text {
    /// Bytes that are not a whole character yet; at most three after each push.
    bytes: Vec<u8>,
    /// Characters that may begin a stop string; shorter than the longest of them after each push.
    held: String,
    stops: Vec<String>,
}

/// What a token added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Text that can be sent now.
    pub text: String,
    /// Whether a stop string was reached: `text` ends before it, and the answer with it.
    pub stopped: bool,
}

impl Text {
    /// An answer that ends before any of `stops`.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), ..Self::default() }
    }

    /// Adds the bytes of a token.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        self.bytes.extend_from_slice(bytes);
        self.decode(false);
        self.take()
    }

    /// Adds the bytes of the last token: nothing waits any longer.
    pub fn finish(&mut self, bytes: &[u8]) -> Piece {
        self.bytes.extend_from_slice(bytes);
        self.decode(true);
        let piece = self.take();
        if piece.stopped {
            return piece;
        }
        Piece { text: piece.text + &std::mem::take(&mut self.held), stopped: false }
    }

    /// Moves whole characters from `bytes` to `held`. What can never become one is replaced by U+FFFD; at the end also what
    /// might have.
    fn decode(&mut self, at_end: bool) {
        let mut taken = 0;
        for chunk in self.bytes.utf8_chunks() {
            self.held.push_str(chunk.valid());
            taken += chunk.valid().len();
            if chunk.invalid().is_empty() {
                continue;
            }
            let ends_here = taken + chunk.invalid().len() == self.bytes.len();
            if ends_here && !at_end && is_beginning(chunk.invalid()) {
                break;
            }
            self.held.push(char::REPLACEMENT_CHARACTER);
            taken += chunk.invalid().len();
        }
        self.bytes.drain(..taken);
    }

    /// Takes what is safe to send out of `held`.
    fn take(&mut self) -> Piece {
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let safe = (0..self.held.len()).find(|&at| {
            let rest = &self.held.as_bytes()[at..];
            self.held.is_char_boundary(at) && self.stops.iter().any(|stop| stop.as_bytes().starts_with(rest))
        });
        let rest = self.held.split_off(safe.unwrap_or(self.held.len()));
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// Whether bytes that are not a character can become one when more follow.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `tokens`, finishing with the last, and gives the texts and whether it stopped.
    fn run(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut text = Text::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let mut texts = Vec::new();
        for (n, token) in tokens.iter().enumerate() {
            let piece = if n + 1 == tokens.len() { text.finish(token) } else { text.push(token) };
            texts.push(piece.text);
            if piece.stopped {
                return (texts, true);
            }
        }
        (texts, false)
    }

    #[test]
    fn characters_are_whole_and_stops_are_never_seen() {
        let check = |stops: &[&str], tokens: &[&[u8]], texts: &[&str], stopped: bool| {
            let expected = texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
            assert_eq!(run(stops, tokens), (expected, stopped), "{tokens:?} with stops {stops:?}");
        };
        check(&[], &[b"a", b"b", b""], &["a", "b", ""], false);
        check(&[], &["é".as_bytes()], &["é"], false);
        check(&[], &[b"\xf0\x9f", b"\xa6", b"\x80!"], &["", "", "🦀!"], false);
        check(&[], &[b"a\xff", b"b"], &["a\u{fffd}", "b"], false);
        check(&[], &[b"\xf0\x9f", b"x"], &["", "\u{fffd}x"], false);
        check(&[], &[b"a", b"\xe2\x82"], &["a", "\u{fffd}"], false);
        check(&["END"], &[b"a", b"E", b"N", b"D", b"x"], &["a", "", "", ""], true);
        check(&["END"], &[b"aE", b"Nx", b"E", b""], &["a", "ENx", "", "E"], false);
        check(&["END"], &[b"aEEND tail"], &["aE"], true);
        check(&["aab"], &[b"a", b"a", b"a", b"b", b"z"], &["", "", "a", ""], true);
        check(&["yz", "xyz!"], &[b"wxy", b"z"], &["w", "x"], true);
        check(&["é"], &[b"a\xc3", b"\xa9b"], &["a", ""], true);
        check(&[""], &[b"a"], &["a"], false);
    }

    /// However a text is cut into tokens, the pieces together are the text.
    #[test]
    fn pieces_together_are_the_text() {
        let text = "naïve 日本語 🦀🇫🇷 e\u{301} end".as_bytes();
        for first in 0..text.len() {
            for second in first..text.len() {
                let (texts, _) = run(&["never"], &[&text[..first], &text[first..second], &text[second..]]);
                assert_eq!(texts.concat().as_bytes(), text);
            }
        }
    }
}
