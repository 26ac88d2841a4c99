//! Takes a stream of server-sent events apart (WHATWG HTML, section 9.2.6), as it comes in.
//!
//! Of an event only its data matters here. Lines end with LF or CR LF; a CR alone ends none, which nobody sends.

use crate::limits::REMOTE_LINE_BYTES_MAX;

/// A line or an event that is longer than [`REMOTE_LINE_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// What came in and makes no whole event yet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// What came in, from `at` on not looked at.
    buffer: Vec<u8>,
    at: usize,
    /// Up to here there is no end of a line.
    looked: usize,
    /// Data of the event that is not whole, a line feed behind each of its lines.
    data: Vec<u8>,
}

impl Lines {
    /// Takes more in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.looked -= self.at;
            self.at = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The data of the next event that is whole.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        while let Some(end) = self.buffer[self.looked..].iter().position(|&byte| byte == b'\n') {
            let line = &self.buffer[self.at..self.looked + end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let is_empty = line.is_empty();
            if let Some(data) = line.strip_prefix(b"data:") {
                let data = data.strip_prefix(b" ").unwrap_or(data);
                if self.data.len() + data.len() > REMOTE_LINE_BYTES_MAX {
                    return Err(TooLong);
                }
                self.data.extend_from_slice(data);
                self.data.push(b'\n');
            }
            self.looked += end + 1;
            self.at = self.looked;
            if is_empty && !self.data.is_empty() {
                let mut data = std::mem::take(&mut self.data);
                data.pop();
                return Ok(Some(data));
            }
        }
        self.looked = self.buffer.len();
        if self.looked - self.at > REMOTE_LINE_BYTES_MAX { Err(TooLong) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines) -> Vec<String> {
        let text = |data: Vec<u8>| String::from_utf8(data).expect("UTF-8");
        std::iter::from_fn(|| lines.next().expect("short")).map(text).collect()
    }

    const STREAM: &str = "\u{feff}data: lost\n\n: keep-alive\r\n\r\nevent: x\ndata: a\ndata:b\n\ndata: {\"ä\": 1}\r\n\r\n\n\nid: 7\ndata: [DONE]\n\ndata: half";

    #[test]
    fn events_are_found_whatever_stands_around_them() {
        let mut lines = Lines::default();
        lines.push(STREAM.as_bytes());
        assert_eq!(all(&mut lines), ["a\nb", "{\"ä\": 1}", "[DONE]"]);
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let check = |piece: &[u8], most: usize| {
            let mut lines = Lines::default();
            let mut pushed = 0;
            while lines.next().is_ok() {
                lines.push(piece);
                pushed += piece.len();
                assert!(pushed <= most, "it is refused in time");
            }
        };
        check(&[b'x'; 1000], REMOTE_LINE_BYTES_MAX + 2_000);
        check(b"data: an event without an end\n", 2 * REMOTE_LINE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_it_is_cut(cuts in prop::collection::vec(0..STREAM.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for cut in cuts.windows(2) {
                lines.push(&STREAM.as_bytes()[cut[0]..cut[1]]);
                found.extend(all(&mut lines));
            }
            prop_assert_eq!(found, ["a\nb", "{\"ä\": 1}", "[DONE]"]);
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut lines = Lines::default();
            lines.push(&bytes);
            while let Ok(Some(_)) = lines.next() {}
        }
    }
}
