//! Names and numbers that cannot be confused with each other.

use std::borrow::Borrow;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;

use crate::limits::NAME_BYTES_MAX;

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("is empty; give it at least one character")]
    Empty,
    /// It has more than [`NAME_BYTES_MAX`] bytes.
    #[error("has {0} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// It holds a character that would be invisible, or would end a word or a line, on a terminal.
    #[error("holds {0:?} at byte {1}; white space and control characters are not allowed")]
    Character(char, usize),
    /// It is not UTF-8.
    #[error("is not valid UTF-8 after byte {0}")]
    Utf8(usize),
}

/// A checked name: 1 to [`NAME_BYTES_MAX`] bytes of UTF-8 without white space or control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `text` and makes a name of it.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        match text.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control() || is_format(*c)) {
            Some((at, c)) => Err(NameError::Character(c, at)),
            None => Ok(Self(text.into())),
        }
    }

    /// Checks raw bytes of a peer and makes a name of them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::new(text),
            Err(error) => Err(NameError::Utf8(error.valid_up_to())),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Direction marks and other characters that change how their neighbours are shown.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A channel within its tenant: the key of everything that is kept about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey {
    /// Whose channel it is. No request of one tenant can name another's.
    pub tenant: Name,
    /// The name the tenant gave it.
    pub channel: Name,
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;
            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }
    };
}

number! {
    /// The unit of ownership, log and movement: `hash(tenant, affinity) mod P`.
    Partition(u16)
}
number! {
    /// The number of a core of this node, from 0.
    CoreId(u16)
}
number! {
    /// Where a record stands in its stream (a channel, a generation): contiguous, from 1. 0 stands before the first.
    Position(u64)
}
number! {
    /// Where a record stands in the log of its partition: contiguous, from 1. 0 stands before the first.
    Lsn(u64)
}
number! {
    /// Which of the channels that ever had its name: the place in its partition's log of the record that made it. A channel
    /// that was deleted and made again is another one.
    ChannelId(u64)
}
number! {
    /// Which life of the owner wrote a record; grows with each start.
    Epoch(u64)
}
number! {
    /// The number a session gives to each of its writes, growing from 1, so that a repeated one is recognised.
    Sequence(u64)
}
number! {
    /// The number a client gives to a request; its reply carries the same as its frame's subject.
    Request(u32)
}
number! {
    /// A subscription of a session: the [`Request`] that made it.
    Subscription(u32)
}
number! {
    /// A watched generation of a session: the [`Request`] that asked for it.
    Watch(u32)
}

impl Position {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Lsn {
    /// The place after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A client's session: 128 random bits that the client chose, so that it can be resumed over a new connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u128);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s-{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One answer of a model, as a stream that can be watched. Written `g-` and 16 hexadecimal digits.
///
/// The upper 16 bits name its partition, so that any core knows whom to ask; the next 16 the epoch of its owner
/// (its low bits), so that two lives of a node never give the same id; the rest counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GenerationId(pub u64);

impl GenerationId {
    /// The id of the `count`-th generation that `partition` started in `epoch`.
    pub fn new(partition: Partition, epoch: Epoch, count: u32) -> Self {
        Self(u64::from(partition.0) << 48 | (epoch.0 & 0xffff) << 32 | u64::from(count))
    }

    /// The partition that owns it.
    pub fn partition(self) -> Partition {
        Partition((self.0 >> 48) as u16)
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g-{:016x}", self.0)
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a generation's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a generation; one looks like g-00ff000100000007")]
pub struct GenerationIdError(String);

impl FromStr for GenerationId {
    type Err = GenerationIdError;
    fn from_str(text: &str) -> Result<Self, GenerationIdError> {
        text.strip_prefix("g-")
            .filter(|digits| digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| GenerationIdError(text.chars().take(64).collect()))
    }
}

/// The partition of `affinity` within `tenant`, out of `partitions`.
///
/// Part of the on-disk format: FNV-1a over tenant, a zero byte and affinity, finished by splitmix64 so that the low bits
/// are as good as the high ones. Must never change for data that exists.
pub fn partition_of(tenant: &Name, affinity: &str, partitions: u16) -> Partition {
    let bytes = tenant.as_str().bytes().chain([0]).chain(affinity.bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    Partition(((hash ^ hash >> 31) % u64::from(partitions)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_edge() {
        let check = |text: &str, expected: Result<(), NameError>| {
            assert_eq!(Name::new(text).map(drop), expected, "{text:?}");
        };
        check("general", Ok(()));
        check("équipe/日本", Ok(()));
        check("", Err(NameError::Empty));
        check("two words", Err(NameError::Character(' ', 3)));
        check("bell\u{7}", Err(NameError::Character('\u{7}', 4)));
        check("\u{1b}[31m", Err(NameError::Character('\u{1b}', 0)));
        check("rtl\u{202e}", Err(NameError::Character('\u{202e}', 3)));
        check(&"x".repeat(NAME_BYTES_MAX), Ok(()));
        check(&"x".repeat(NAME_BYTES_MAX + 1), Err(NameError::TooLong(NAME_BYTES_MAX + 1)));
        assert_eq!(Name::from_bytes(b"ab\xff"), Err(NameError::Utf8(2)));
    }

    #[test]
    fn generation_ids_round_trip_and_name_their_partition() {
        let id = GenerationId::new(Partition(1023), Epoch(0x1_0002), 7);
        assert_eq!(id.to_string(), "g-03ff000200000007");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.partition(), Partition(1023));
        for bad in ["", "g-", "03ff000200000007", "g-03ff00020000000", "g-03ff00020000000g", "g-+3ff000200000007"] {
            assert!(bad.parse::<GenerationId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn partitions_are_stable_and_spread() {
        let tenant = Name::new("default").expect("valid");
        // Golden: the on-disk placement of existing data depends on these.
        assert_eq!(partition_of(&tenant, "general", 1024), Partition(143));

        let mut counts = [0_u32; 64];
        for n in 0..64_000 {
            counts[usize::from(partition_of(&tenant, &format!("channel-{n}"), 64).0)] += 1;
        }
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
