//! Numbers in a row of bytes, little endian. Nothing is allocated that is not there.

/// Why bytes are not what they should be: where, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) what: String,
}

/// Takes fields from the front of some bytes.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { at: self.at, what: what.into() })
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Wrong> {
        if count > self.left() {
            return self.wrong(format!("{count} bytes are said to follow, {} do", self.left()));
        }
        self.at += count;
        Ok(&self.bytes[self.at - count..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        Ok(self.bytes(N)?.try_into().expect("as many bytes as were asked for"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Wrong> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Wrong> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Wrong> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Wrong> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, Wrong> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn long_bytes(&mut self) -> Result<&'a [u8], Wrong> {
        let count = self.u32()? as usize;
        self.bytes(count)
    }
}
