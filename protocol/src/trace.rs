//! What a request is part of: W3C Trace Context (Recommendation of 23 November 2021).

use std::fmt;
use std::str::FromStr;

/// The trace a request belongs to, and the caller's place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// `trace-id`; not 0.
    pub trace: u128,
    /// `parent-id`: the caller's span; not 0.
    pub span: u64,
    /// `trace-flags`; bit 0: the caller keeps what it measured.
    pub flags: u8,
}

impl TraceContext {
    /// Whether the caller keeps what it measured of this trace.
    pub fn is_sampled(self) -> bool {
        self.flags & 1 != 0
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Why a text is no `traceparent` (section 3.2 of the recommendation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TraceContextError {
    /// It is not made of four fields of lower-case hexadecimal digits.
    #[error("is not of the form 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case")]
    Form,
    /// Version ff is forbidden.
    #[error("has version ff, which does not exist")]
    Version,
    /// An id of zeroes only.
    #[error("has a trace or parent id of zeroes only")]
    Zero,
}

impl FromStr for TraceContext {
    type Err = TraceContextError;

    /// Reads a `traceparent`. A version that is not known yet may have more fields, which are ignored.
    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let mut fields = text.splitn(5, '-');
        let mut field = |digits: usize| {
            let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            fields.next().filter(|f| f.len() == digits && f.bytes().all(is_digit)).ok_or(TraceContextError::Form)
        };
        let (version, trace, span, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        if version == "ff" {
            return Err(TraceContextError::Version);
        }
        if version == "00" && fields.next().is_some() {
            return Err(TraceContextError::Form);
        }
        let number = |digits| u128::from_str_radix(digits, 16).map_err(|_| TraceContextError::Form);
        let (trace, span) = (number(trace)?, number(span)? as u64);
        if trace == 0 || span == 0 {
            return Err(TraceContextError::Zero);
        }
        Ok(Self { trace, span, flags: number(flags)? as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents_are_read_as_the_recommendation_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = good.parse().expect("the recommendation's example");
        assert_eq!((context.to_string().as_str(), context.is_sampled()), (good, true));
        let check = |text: &str, expected: Result<(), TraceContextError>| {
            assert_eq!(text.parse::<TraceContext>().map(drop), expected, "{text:?}");
        };
        check("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", Ok(()));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", Err(TraceContextError::Form));
        check("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", Err(TraceContextError::Form));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01", Err(TraceContextError::Form));
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", Err(TraceContextError::Zero));
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", Err(TraceContextError::Zero));
        check("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Err(TraceContextError::Version));
        check("", Err(TraceContextError::Form));
        check("é", Err(TraceContextError::Form));
    }
}
