//! The two ways in which Yjs is spoken over WebSocket: y-websocket's, and Hocuspocus' with a document's name before each
//! message and a token first.

use crate::scan::{bytes, number};

const SYNC: u64 = 0;
const AWARENESS: u64 = 1;
const AUTH: u64 = 2;
/// Hocuspocus: as `SYNC`, for an answer.
const SYNC_REPLY: u64 = 4;
/// Hocuspocus: that the connection is to be closed.
const CLOSE: u64 = 7;
/// Hocuspocus: whether an update was taken.
const SYNC_STATUS: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// y-websocket's.
    Yjs,
    /// Hocuspocus'.
    Hocuspocus,
}

/// What a server said.
#[derive(Debug, PartialEq)]
pub enum Heard<'a> {
    /// It asks for what it lacks, by its state vector.
    Step1(&'a [u8]),
    /// What we lacked.
    Step2(&'a [u8]),
    /// An edit, or several.
    Update(&'a [u8]),
    /// The token was taken.
    Authenticated,
    /// The oldest unanswered update was taken.
    Taken,
    /// It refuses, and says why.
    Refused(String),
    /// Awareness, or something else that is not measured.
    Other,
}

impl Protocol {
    fn head(self, document: &str, kind: u64) -> Vec<u8> {
        let mut message = Vec::with_capacity(64);
        if self == Self::Hocuspocus {
            put_bytes(&mut message, document.as_bytes());
        }
        put_number(&mut message, kind);
        message
    }

    fn sync(self, document: &str, step: u64, body: &[u8]) -> Vec<u8> {
        let mut message = self.head(document, SYNC);
        put_number(&mut message, step);
        put_bytes(&mut message, body);
        message
    }

    /// The token, where it is a message.
    pub fn token(self, document: &str, token: &str) -> Option<Vec<u8>> {
        if self == Self::Yjs {
            return None;
        }
        let mut message = self.head(document, AUTH);
        put_number(&mut message, 0);
        put_bytes(&mut message, token.as_bytes());
        Some(message)
    }

    pub fn step1(self, document: &str, state_vector: &[u8]) -> Vec<u8> {
        self.sync(document, 0, state_vector)
    }

    pub fn step2(self, document: &str, update: &[u8]) -> Vec<u8> {
        self.sync(document, 1, update)
    }

    pub fn update(self, document: &str, update: &[u8]) -> Vec<u8> {
        self.sync(document, 2, update)
    }

    /// Says where one's cursor is.
    pub fn awareness(self, document: &str, client: u64, clock: u64) -> Vec<u8> {
        let place = format!(r#"{{"tname":"{}","item":null,"assoc":0}}"#, crate::typing::ROOT);
        let state = format!(
            r##"{{"user":{{"name":"editor {client}","color":"#30bced"}},"cursor":{{"anchor":{place},"head":{place}}}}}"##
        );
        let mut update = Vec::with_capacity(state.len() + 16);
        put_number(&mut update, 1);
        put_number(&mut update, client);
        put_number(&mut update, clock);
        put_bytes(&mut update, state.as_bytes());
        let mut message = self.head(document, AWARENESS);
        put_bytes(&mut message, &update);
        message
    }

    /// Reads the next message of a frame, which may hold several; `None` if it is none of this protocol.
    pub fn hear<'a>(self, frame: &mut &'a [u8]) -> Option<Heard<'a>> {
        if self == Self::Hocuspocus {
            bytes(frame)?;
        }
        let kind = number(frame)?;
        Some(match kind {
            SYNC | SYNC_REPLY => match number(frame)? {
                0 => Heard::Step1(bytes(frame)?),
                1 => Heard::Step2(bytes(frame)?),
                2 => Heard::Update(bytes(frame)?),
                _ => return None,
            },
            AWARENESS => {
                bytes(frame)?;
                Heard::Other
            }
            AUTH => match number(frame)? {
                2 => {
                    bytes(frame)?;
                    Heard::Authenticated
                }
                _ => Heard::Refused(String::from_utf8_lossy(bytes(frame)?).into_owned()),
            },
            SYNC_STATUS if self == Self::Hocuspocus => match number(frame)? {
                1 => Heard::Taken,
                _ => Heard::Refused("an update was not taken".into()),
            },
            CLOSE if self == Self::Hocuspocus => Heard::Refused(String::from_utf8_lossy(bytes(frame)?).into_owned()),
            // Kinds that are not of the two: nothing after them can be read.
            _ => {
                *frame = &[];
                Heard::Other
            }
        })
    }
}

pub(crate) fn put_number(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

pub(crate) fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    put_number(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_heard_as_they_were_said() {
        let check = |protocol: Protocol, message: Vec<u8>, expected: Heard<'_>| {
            let mut rest = &message[..];
            assert_eq!(protocol.hear(&mut rest), Some(expected));
            assert!(rest.is_empty());
        };
        for protocol in [Protocol::Yjs, Protocol::Hocuspocus] {
            check(protocol, protocol.step1("d", b"sv"), Heard::Step1(b"sv"));
            check(protocol, protocol.step2("d", b"all"), Heard::Step2(b"all"));
            check(protocol, protocol.update("d", b"edit"), Heard::Update(b"edit"));
            check(protocol, protocol.awareness("d", 5, 1), Heard::Other);
        }
        check(Protocol::Hocuspocus, vec![1, b'd', 2, 2, 1, b'x'], Heard::Authenticated);
        check(Protocol::Hocuspocus, vec![1, b'd', 2, 1, 2, b'n', b'o'], Heard::Refused("no".into()));
        check(Protocol::Hocuspocus, vec![1, b'd', 8, 1], Heard::Taken);
        assert_eq!(Protocol::Yjs.hear(&mut &[0, 2, 9, 1][..]), None);
    }
}
