//! An HTTP/1.1 answer as its bytes come: head, chunks, and the events of a stream of completions.

use serde_json::Value;

/// Header lines that an answer may have.
const HEADERS_MAX: usize = 64;
/// Bytes of a head, of an event's line, or of an answer that is no stream, before it is given up.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Something that an answer said.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A piece of text came.
    Piece,
    /// The answer has so many tokens.
    Tokens(u32),
    /// A whole answer that is no stream of events.
    Document(u16, String),
    /// The answer is complete; `true` if the connection can be used again.
    End(bool),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Head,
    /// So many bytes of a body whose length was announced are left.
    Length(u64),
    ChunkSize,
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// Lines after the last chunk, up to an empty one.
    Trailer,
    /// The body lasts as long as the connection.
    UntilClose,
}

/// The state of one answer. [`Answer::push`] takes bytes as they come; after [`Event::End`] it begins with the next one.
#[derive(Debug)]
pub(super) struct Answer {
    part: Part,
    /// Bytes that are not understood yet.
    raw: Vec<u8>,
    status: u16,
    /// Whether the body is a stream of events.
    stream: bool,
    keep: bool,
    /// The unfinished line of a stream, or the body of a document.
    held: Vec<u8>,
}

impl Answer {
    pub(super) fn new() -> Self {
        Self { part: Part::Head, raw: Vec::new(), status: 0, stream: false, keep: true, held: Vec::new() }
    }

    /// Takes bytes; what they say is appended to `events`. The error says what is wrong with them.
    pub(super) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), String> {
        self.raw.extend_from_slice(bytes);
        let raw = std::mem::take(&mut self.raw);
        let mut at = 0;
        while let Some(used) = self.advance(&raw[at..], events)? {
            at += used;
        }
        self.raw = raw[at..].to_vec();
        match self.raw.len().max(self.held.len()) > HELD_BYTES_MAX {
            true => Err(format!("more than {HELD_BYTES_MAX} bytes came without an end")),
            false => Ok(()),
        }
    }

    /// Whether nothing of an answer came since the last one ended.
    pub(super) fn is_untouched(&self) -> bool {
        self.part == Part::Head && self.raw.is_empty()
    }

    /// The connection ended.
    pub(super) fn close(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
        match self.part {
            Part::UntilClose => {
                self.keep = false;
                self.end(events);
                Ok(())
            }
            _ => Err("the connection ended in the middle of an answer".into()),
        }
    }

    /// Understands one part at the front of `raw`: how many bytes it had, or `None` if it is not there yet.
    fn advance(&mut self, raw: &[u8], events: &mut Vec<Event>) -> Result<Option<usize>, String> {
        match self.part {
            Part::Head => self.head(raw, events),
            Part::Length(left) | Part::Chunk(left) => {
                let count = left.min(raw.len() as u64);
                self.body(&raw[..count as usize], events)?;
                let left = left - count;
                self.part = match self.part {
                    Part::Length(_) => Part::Length(left),
                    _ if left == 0 => Part::ChunkEnd,
                    _ => Part::Chunk(left),
                };
                if self.part == Part::Length(0) {
                    self.end(events);
                }
                Ok((count > 0 || left == 0).then_some(count as usize))
            }
            Part::UntilClose => {
                self.body(raw, events)?;
                Ok((!raw.is_empty()).then_some(raw.len()))
            }
            Part::ChunkSize => match httparse::parse_chunk_size(raw) {
                Ok(httparse::Status::Complete((used, size))) => {
                    self.part = if size == 0 { Part::Trailer } else { Part::Chunk(size) };
                    Ok(Some(used))
                }
                Ok(httparse::Status::Partial) => Ok(None),
                Err(_) => Err("the size of a chunk is no number".into()),
            },
            Part::ChunkEnd => match raw {
                [b'\r', b'\n', ..] => {
                    self.part = Part::ChunkSize;
                    Ok(Some(2))
                }
                [] | [b'\r'] => Ok(None),
                _ => Err("a chunk is longer than announced".into()),
            },
            Part::Trailer => {
                let Some(line) = raw.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
                if line == 0 {
                    self.end(events);
                }
                Ok(Some(line + 2))
            }
        }
    }

    fn head(&mut self, raw: &[u8], events: &mut Vec<Event>) -> Result<Option<usize>, String> {
        if raw.is_empty() {
            return Ok(None);
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let used = match response.parse(raw).map_err(|error| format!("the head is no HTTP: {error}"))? {
            httparse::Status::Complete(used) => used,
            httparse::Status::Partial => return Ok(None),
        };
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| String::from_utf8_lossy(header.value).to_ascii_lowercase())
        };
        let says = |name: &str, word: &str| header(name).is_some_and(|value| value.contains(word));
        self.status = response.code.unwrap_or(0);
        self.stream = self.status == 200 && says("content-type", "text/event-stream");
        self.keep = !says("connection", "close");
        self.part = match header("content-length").map(|length| length.trim().parse()) {
            _ if says("transfer-encoding", "chunked") => Part::ChunkSize,
            Some(Ok(length)) => Part::Length(length),
            Some(Err(_)) => return Err("the content-length is no number".into()),
            None => Part::UntilClose,
        };
        if (100..200).contains(&self.status) {
            self.part = Part::Head;
        } else if self.part == Part::Length(0) {
            self.end(events);
        }
        Ok(Some(used))
    }

    fn body(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), String> {
        self.held.extend_from_slice(bytes);
        if !self.stream {
            return Ok(());
        }
        let Some(end) = self.held.iter().rposition(|&byte| byte == b'\n') else { return Ok(()) };
        let rest = self.held.split_off(end + 1);
        let lines = std::mem::replace(&mut self.held, rest);
        lines.split(|&byte| byte == b'\n').try_for_each(|line| event(line, events))
    }

    fn end(&mut self, events: &mut Vec<Event>) {
        let held = std::mem::take(&mut self.held);
        if !self.stream {
            events.push(Event::Document(self.status, String::from_utf8_lossy(&held).into_owned()));
        }
        events.push(Event::End(self.keep));
        self.part = Part::Head;
    }
}

/// A line of a stream of completions, of chats or of plain text.
fn event(line: &[u8], events: &mut Vec<Event>) -> Result<(), String> {
    let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
    let data = data.trim_ascii();
    if data.is_empty() || data == b"[DONE]" {
        return Ok(());
    }
    let value: Value = serde_json::from_slice(data).map_err(|error| format!("an event is no JSON: {error}"))?;
    if let Some(error) = value.get("error") {
        return Err(format!("the answer ends with an error: {error}"));
    }
    let choice = &value["choices"][0];
    let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
    if text.is_some_and(|text| !text.is_empty()) {
        events.push(Event::Piece);
    }
    if let Some(tokens) = value["usage"]["completion_tokens"].as_u64() {
        events.push(Event::Tokens(tokens as u32));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// Every way to cut the bytes in two and all of them one by one say the same.
    fn check(bytes: &str, expected: &[Event]) {
        let whole = bytes.as_bytes();
        for cut in 0..=whole.len() {
            let (mut answer, mut events) = (Answer::new(), Vec::new());
            let parts = [&whole[..cut], &whole[cut..]];
            parts.iter().for_each(|part| answer.push(part, &mut events).expect("good bytes"));
            assert_eq!(events, expected, "cut at {cut}: {bytes:?}");
        }
        let (mut answer, mut events) = (Answer::new(), Vec::new());
        whole.chunks(1).for_each(|byte| answer.push(byte, &mut events).expect("good bytes"));
        assert_eq!(events, expected, "one by one: {bytes:?}");
    }

    fn chunk(text: &str) -> String {
        format!("{:x}\r\n{text}\r\n", text.len())
    }

    #[test]
    fn streams_are_read_however_they_are_cut() {
        let pieces = [
            chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choi"),
            chunk("ces\":[{\"delta\":{\"content\":\"b\"}}]}\r\n\r\n: ping\n"),
            chunk("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"),
            chunk("data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\ndata: [DONE]\n\n"),
        ];
        let bytes = format!("{STREAM}{}0\r\n\r\n", pieces.concat());
        check(&bytes, &[Event::Piece, Event::Piece, Event::Tokens(7), Event::End(true)]);
        let twice = format!("{bytes}{bytes}");
        let once = [Event::Piece, Event::Piece, Event::Tokens(7), Event::End(true)];
        check(&twice, &[once.clone(), once].concat());
    }

    #[test]
    fn documents_are_read_whole() {
        let head = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
        check(&format!("{head}{{}}"), &[Event::Document(429, "{}".into()), Event::End(true)]);
        let head =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        check(head, &[Event::Document(204, String::new()), Event::End(false)]);
        let (mut answer, mut events) = (Answer::new(), Vec::new());
        answer.push(b"HTTP/1.1 200 OK\r\n\r\nhello", &mut events).expect("good bytes");
        answer.close(&mut events).expect("it lasts as long as the connection");
        assert_eq!(events, [Event::Document(200, "hello".into()), Event::End(false)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |bytes: &str, reason: &str| {
            let mut events = Vec::new();
            let mut answer = Answer::new();
            let error = answer.push(bytes.as_bytes(), &mut events).and_then(|()| answer.close(&mut events));
            assert!(error.as_ref().is_err_and(|error| error.contains(reason)), "{bytes:?}: {error:?}");
        };
        check("SSH-2.0-OpenSSH\r\n\r\n", "no HTTP");
        check(&format!("{STREAM}zz\r\n"), "no number");
        check(&format!("{STREAM}1\r\nabc"), "longer");
        check(&format!("{STREAM}5\r\nab"), "middle");
        check(&format!("{STREAM}{}", chunk("data: {\n")), "no JSON");
        check(&format!("{STREAM}{}", chunk("data: {\"error\":{\"message\":\"boom\"}}\n")), "boom");
        check("HTTP/1.1 200 OK\r\nContent-Length: much\r\n\r\n", "no number");
    }
}
