//! Numbers, names and texts in bytes: put at the end of a buffer, read from shared bytes with every bound checked.

use bytes::Bytes;
use thalweg_protocol::ids::Name;

use super::RecordError;

/// Puts a number of two bytes.
pub(crate) fn put_u16(into: &mut Vec<u8>, value: u16) {
    into.extend_from_slice(&value.to_le_bytes());
}

/// Puts a number of four bytes.
pub(crate) fn put_u32(into: &mut Vec<u8>, value: u32) {
    into.extend_from_slice(&value.to_le_bytes());
}

/// Puts a number of eight bytes.
pub(crate) fn put_u64(into: &mut Vec<u8>, value: u64) {
    into.extend_from_slice(&value.to_le_bytes());
}

/// Puts a number of sixteen bytes.
pub(crate) fn put_u128(into: &mut Vec<u8>, value: u128) {
    into.extend_from_slice(&value.to_le_bytes());
}

/// Puts bytes after their length, `u32`.
pub(crate) fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(into, u32::try_from(bytes.len()).expect("what goes into the log is far below 4 GiB"));
    into.extend_from_slice(bytes);
}

/// Puts a name after its length, `u8`.
pub(crate) fn put_name(into: &mut Vec<u8>, name: &Name) {
    let text = name.as_str().as_bytes();
    into.push(u8::try_from(text.len()).expect("a name has at most 128 bytes"));
    into.extend_from_slice(text);
}

/// Reads field after field. An error names the field; afterwards the position means nothing.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    /// Reads `bytes` from `at` to their end.
    pub(crate) fn new(bytes: &'a Bytes, at: usize) -> Self {
        Self { bytes, at, end: bytes.len() }
    }

    /// The same, but only the next `length` bytes.
    pub(crate) fn narrow(self, field: &'static str, length: usize) -> Result<Self, RecordError> {
        if length > self.left() {
            return Err(RecordError::Short { field, at: self.at });
        }
        Ok(Self { end: self.at + length, ..self })
    }

    /// Where the last field must end.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Bytes that were not read yet.
    pub(crate) fn left(&self) -> usize {
        self.end.saturating_sub(self.at)
    }

    /// Checks that everything was read, and says where that is.
    pub(crate) fn finish(self) -> Result<usize, RecordError> {
        if self.at != self.end {
            return Err(RecordError::Rest { bytes: self.left() });
        }
        Ok(self.end)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, RecordError> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u128(&mut self, field: &'static str) -> Result<u128, RecordError> {
        Ok(u128::from_le_bytes(self.array(field)?))
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, RecordError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(RecordError::Unknown { field, value: u64::from(other) }),
        }
    }

    /// A count of entries of at least `entry_bytes` each: never more than there is room for.
    pub(crate) fn count(&mut self, field: &'static str, entry_bytes: usize) -> Result<usize, RecordError> {
        let at = self.at;
        let count = self.u32(field)? as usize;
        if count > self.left() / entry_bytes {
            return Err(RecordError::Short { field, at });
        }
        Ok(count)
    }

    /// A name after its length, `u8`.
    pub(crate) fn name(&mut self, field: &'static str) -> Result<Name, RecordError> {
        let length = usize::from(self.u8(field)?);
        Name::from_bytes(self.take(field, length)?).map_err(|error| RecordError::Name { field, error })
    }

    /// Bytes after their length, `u32`; shared, not copied.
    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<Bytes, RecordError> {
        let length = self.u32(field)? as usize;
        let start = self.at;
        self.take(field, length)?;
        Ok(self.bytes.slice(start..start + length))
    }

    /// A text after its length, `u32`.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<String, RecordError> {
        let length = self.u32(field)? as usize;
        let text = std::str::from_utf8(self.take(field, length)?);
        text.map(str::to_owned).map_err(|error| RecordError::Text { field, valid: error.valid_up_to() })
    }

    /// A text after its length, `u32`, of at most so many bytes.
    pub(crate) fn short_text(&mut self, field: &'static str, most: usize) -> Result<String, RecordError> {
        let text = self.text(field)?;
        if text.len() > most {
            return Err(RecordError::Beyond { field, bytes: text.len(), most });
        }
        Ok(text)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], RecordError> {
        let bytes = self.take(field, N)?;
        Ok(bytes.try_into().expect("as many bytes were taken"))
    }

    fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], RecordError> {
        if length > self.left() {
            return Err(RecordError::Short { field, at: self.at });
        }
        let start = self.at;
        self.at += length;
        Ok(&self.bytes[start..self.at])
    }
}
