//! The encoding of lib0, which the protocols of Yjs are written in: numbers of seven bits a byte, lowest first, and bytes and
//! texts behind their length.

use bytes::Bytes;

/// What cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {length} bytes makes no sense at byte {at}")]
pub(super) struct Malformed {
    at: usize,
    length: usize,
}

/// Reads a message. What stands last in it shares its memory; all else is copied, so that nothing that is kept holds more than
/// it shows.
pub(super) struct Reader {
    message: Bytes,
    at: usize,
}

impl Reader {
    pub(super) fn new(message: Bytes) -> Self {
        Self { message, at: 0 }
    }

    fn malformed(&self) -> Malformed {
        Malformed { at: self.at, length: self.message.len() }
    }

    /// Whether everything was read.
    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.message.len()
    }

    /// A number of at most 53 bits, which is what editors in browsers can hold.
    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for shift in (0..56).step_by(7) {
            let byte = *self.message.get(self.at).ok_or_else(|| self.malformed())?;
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return if number < 1 << 53 { Ok(number) } else { Err(self.malformed()) };
            }
        }
        Err(self.malformed())
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = self.number()?;
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let end = end.filter(|end| *end <= self.message.len()).ok_or_else(|| self.malformed())?;
        let bytes = self.message.slice(self.at..end);
        self.at = end;
        Ok(if self.is_empty() { bytes } else { Bytes::copy_from_slice(&bytes) })
    }

    /// A text behind its length.
    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| self.malformed())
    }
}

/// Writes a message.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// For a message of about so many bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes + 16))
    }

    #[must_use]
    pub(super) fn number(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    #[must_use]
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut writer = self.number(bytes.len() as u64);
        writer.0.extend_from_slice(bytes);
        writer
    }

    #[must_use]
    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn finish(self) -> Bytes {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_and_texts_round_trip() {
        for number in [0, 1, 127, 128, 300, 1 << 32, (1 << 53) - 1] {
            let message = Writer::default().number(number).text("é").bytes(&[1, 2]).finish();
            let mut reader = Reader::new(message);
            assert_eq!(reader.number(), Ok(number));
            assert_eq!(reader.text().as_deref(), Ok("é"));
            assert_eq!(reader.bytes().as_deref(), Ok(&[1, 2][..]));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_is_not_last_does_not_hold_its_message() {
        let message = Writer::default().bytes(&[7; 3]).bytes(&[8; 1000]).finish();
        let mut reader = Reader::new(message.clone());
        let first = reader.bytes().expect("read");
        drop(reader);
        assert!(first[..] == [7; 3] && message.is_unique());
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_refused() {
        let check = |message: &[u8]| {
            let mut reader = Reader::new(Bytes::copy_from_slice(message));
            assert!(reader.bytes().is_err(), "{message:?}");
        };
        check(&[]);
        check(&[1]);
        check(&[0x80]);
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        check(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1]);
        let mut reader = Reader::new(Bytes::from_static(&[1, 0xff]));
        assert!(reader.text().is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(message: Vec<u8>) {
            let mut reader = Reader::new(message.into());
            while !reader.is_empty() {
                if reader.text().is_err() {
                    break;
                }
            }
        }
    }
}
