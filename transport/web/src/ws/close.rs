//! How a WebSocket is closed: a code and a reason that clients can act on.
//!
//! Codes of 4000 and more are the application's (RFC 6455, section 7.4.2). As clients of Yjs have it, those from 4400 to 4499
//! mirror the statuses of HTTP and mean that coming back does not help, and those from 4500 on that it may.

use thalweg_protocol::reject::{Reject, RejectCode};

/// Bytes a reason may have: a control frame's, without the code.
const REASON_BYTES_MAX: usize = 123;

/// Why a socket is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Close {
    /// For programs.
    pub(crate) code: u16,
    /// For people: the code of a reject, and what was wrong.
    pub(crate) reason: String,
}

impl Close {
    pub(crate) fn new(code: u16, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        let end = (0..=REASON_BYTES_MAX.min(reason.len())).rev().find(|&at| reason.is_char_boundary(at));
        reason.truncate(end.unwrap_or(0));
        Self { code, reason }
    }
}

impl From<&Reject> for Close {
    fn from(reject: &Reject) -> Self {
        Self::new(code_of(reject.code), format!("{}: {}", reject.code, reject.message))
    }
}

impl From<Reject> for Close {
    fn from(reject: Reject) -> Self {
        Self::from(&reject)
    }
}

/// The code that says most nearly what a reject says.
fn code_of(code: RejectCode) -> u16 {
    use RejectCode as Code;
    match code {
        Code::TokenInvalid | Code::TokenExpired | Code::TokenRevoked | Code::LoginFailed | Code::HelloExpected => 4401,
        Code::Forbidden => 4403,
        Code::ChannelUnknown | Code::ModelUnknown | Code::GenerationUnknown | Code::UserUnknown => 4404,
        Code::HelloTimeout => 4408,
        Code::ChannelDeleted => 4410,
        Code::BodyTooLarge | Code::FrameTooLarge | Code::DocumentTooLarge => 4413,
        Code::Draining => 1012,
        Code::Internal | Code::StorageDamaged | Code::Unknown => 1011,
        Code::RateLimited | Code::QuotaExceeded | Code::LimitReached => 4529,
        Code::Busy | Code::Overloaded | Code::IssuerUnavailable | Code::ModelUnavailable => 4503,
        Code::StorageFull => 4507,
        Code::SlowReader | Code::SessionTakenOver | Code::SessionExpired => 4508,
        _ => 4400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_to_come_back() {
        let check = |code, expected: u16| assert_eq!(code_of(code), expected, "{code}");
        check(RejectCode::TokenExpired, 4401);
        check(RejectCode::Forbidden, 4403);
        check(RejectCode::ChannelDeleted, 4410);
        check(RejectCode::UpdateInvalid, 4400);
        check(RejectCode::DocumentTooLarge, 4413);
        check(RejectCode::KindMismatch, 4400);
        check(RejectCode::Draining, 1012);
        check(RejectCode::StorageFull, 4507);
        check(RejectCode::Busy, 4503);
        for &code in RejectCode::ALL {
            assert!(matches!(code_of(code), 1011 | 1012 | 4400..4600), "{code}");
        }
    }

    #[test]
    fn reasons_fit_in_a_control_frame() {
        let close = Close::from(Reject::new(RejectCode::Forbidden, "é".repeat(200)));
        assert!(close.reason.len() <= REASON_BYTES_MAX && close.reason.starts_with("forbidden: é"));
    }
}
