//! When external issuers are asked for their keys, and who waits for the answer.

use std::sync::Arc;

use thalweg_protocol::reject::{Reject, RejectCode};

use super::config::Issuer;
use super::jwks::{IssuerKey, IssuerKeys};
use super::limits::{ISSUER_ASK_S, ISSUER_REFRESH_S, ISSUER_WAITING_MAX};

/// After a failure an issuer is asked again after so long, in seconds; twice as long after each further one.
const RETRY_S: u64 = 2;
/// Longest wait between two questions to an issuer that fails, in seconds.
const RETRY_S_MAX: u64 = 60;

/// What the gate knows of one issuer. Times are microseconds of a clock that does not step, but where they say otherwise.
pub(crate) struct IssuerDesk<W> {
    pub(crate) keys: IssuerKeys,
    /// A question is under way.
    asking: bool,
    /// When it may be asked because of an unknown key.
    unknown_from_us: u64,
    /// When it is asked anyway.
    next_us: u64,
    failures: u32,
    waiting: Vec<W>,
}

/// What becomes of one who names an unknown key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wait<W> {
    /// The issuer is asked; an answer follows.
    Waits,
    /// Refused at once.
    Refused(W, Reject),
}

impl<W> IssuerDesk<W> {
    pub(crate) fn new(issuer: Arc<Issuer>) -> Self {
        let keys = IssuerKeys::unknown(issuer);
        Self { keys, asking: false, unknown_from_us: 0, next_us: 0, failures: 0, waiting: Vec::new() }
    }

    /// When it is to be asked next.
    pub(crate) fn next_us(&self) -> u64 {
        if self.asking { u64::MAX } else { self.next_us }
    }

    /// Whether it is to be asked now; then the caller does so, and [`answered`](Self::answered) follows.
    pub(crate) fn is_due(&mut self, now_us: u64) -> bool {
        let due = !self.asking && self.next_us <= now_us;
        if due {
            self.asking = true;
            self.unknown_from_us = now_us + ISSUER_ASK_S * 1_000_000;
        }
        due
    }

    /// Somebody names a key that is not there, or there are no keys.
    pub(crate) fn unknown(&mut self, who: W, now_us: u64) -> Wait<W> {
        if self.waiting.len() >= ISSUER_WAITING_MAX {
            return Wait::Refused(who, self.unavailable(1_000));
        }
        if self.asking || self.unknown_from_us <= now_us {
            self.waiting.push(who);
            if !self.asking {
                self.next_us = now_us;
            }
            return Wait::Waits;
        }
        let ms = self.unknown_from_us.saturating_sub(now_us).div_ceil(1_000) as u32;
        if self.failures > 0 || self.keys.until_s == 0 {
            let at_us = self.next_us.min(self.unknown_from_us);
            let ms = at_us.saturating_sub(now_us).div_ceil(1_000).max(100) as u32;
            return Wait::Refused(who, self.unavailable(ms));
        }
        let text = format!("the issuer {} has no key of the name that the token gives", self.keys.url);
        Wait::Refused(who, Reject::new(RejectCode::TokenInvalid, text).retry_after_ms(ms))
    }

    /// The issuer answered, or not. Gives those who waited.
    pub(crate) fn answered(&mut self, result: Result<Vec<IssuerKey>, String>, now_us: u64, wall_s: u64) -> Vec<W> {
        self.asking = false;
        match result {
            Ok(keys) => {
                self.failures = 0;
                self.next_us = now_us + ISSUER_REFRESH_S * 1_000_000;
                self.keys = self.keys.with(keys, wall_s.saturating_add(self.keys.issuer.keep_s));
            }
            Err(error) => {
                self.failures += 1;
                let delay_s =
                    RETRY_S.checked_shl(self.failures - 1).map_or(RETRY_S_MAX, |delay| delay.min(RETRY_S_MAX));
                self.next_us = now_us + delay_s * 1_000_000;
                // Who comes meanwhile need not wait longer than that.
                self.unknown_from_us = self.unknown_from_us.min(self.next_us);
                if self.failures == 1 {
                    tracing::warn!(issuer = %self.keys.url, error, "an issuer does not give its keys; known ones go on for a while");
                } else {
                    tracing::debug!(issuer = %self.keys.url, error, failures = self.failures, "an issuer still does not give its keys");
                }
            }
        }
        std::mem::take(&mut self.waiting)
    }

    /// What those are told who waited in vain.
    pub(crate) fn refusal(&self, now_us: u64) -> Reject {
        if self.failures > 0 {
            return self.unavailable(self.next_us.saturating_sub(now_us).div_ceil(1_000).max(100) as u32);
        }
        let text = format!("the issuer {} has no key of the name that the token gives", self.keys.url);
        Reject::new(RejectCode::TokenInvalid, text)
    }

    /// Those who wait, on the way to somebody else who serves them.
    pub(crate) fn take_waiting(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiting)
    }

    fn unavailable(&self, ms: u32) -> Reject {
        let text = format!("the issuer {} cannot be asked for its keys; come back after the delay", self.keys.url);
        Reject::new(RejectCode::IssuerUnavailable, text).retry_after_ms(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::config::{AccessConfig, IssuerConfig};

    const S: u64 = 1_000_000;

    fn desk() -> IssuerDesk<u32> {
        let issuer = IssuerConfig {
            issuer: "https://id.example.com".into(),
            audience: "x".into(),
            tenant: Some("t".into()),
            allow: vec!["read:*".into()],
            ..IssuerConfig::default()
        };
        let config = AccessConfig { issuers: vec![issuer], ..AccessConfig::default() };
        IssuerDesk::new(Arc::new(config.checked_issuers().expect("valid").remove(0)))
    }

    fn keys() -> Vec<IssuerKey> {
        let jwk =
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        crate::gate::jwks::parse(jwk.as_bytes()).expect("usable")
    }

    #[test]
    fn an_unknown_key_makes_it_ask_but_not_too_often() {
        let mut desk = desk();
        assert!(desk.is_due(0) && !desk.is_due(0), "asked at the start, once");
        assert_eq!(desk.unknown(1, 0), Wait::Waits);
        assert_eq!(desk.answered(Ok(keys()), S, 100), [1]);
        assert_eq!(desk.next_us(), (1 + ISSUER_REFRESH_S) * S);
        let Wait::Refused(2, reject) = desk.unknown(2, 2 * S) else { panic!("it was asked a moment ago") };
        assert_eq!((reject.code, reject.retry_after_ms), (RejectCode::TokenInvalid, 8_000));
        assert_eq!(desk.unknown(3, 10 * S), Wait::Waits);
        assert!(desk.is_due(10 * S));
        assert_eq!(desk.unknown(4, 11 * S), Wait::Waits, "the same question answers both");
        assert_eq!(desk.answered(Ok(keys()), 12 * S, 112), [3, 4]);
        assert_eq!(desk.refusal(12 * S).code, RejectCode::TokenInvalid);
    }

    #[test]
    fn one_that_is_down_is_said_to_be() {
        let mut desk = desk();
        assert!(desk.is_due(0));
        assert_eq!(desk.unknown(1, 0), Wait::Waits);
        assert_eq!(desk.answered(Err("refused".into()), S, 100), [1]);
        let reject = desk.refusal(S);
        assert_eq!((reject.code, reject.retry_after_ms), (RejectCode::IssuerUnavailable, 2_000));
        let Wait::Refused(_, reject) = desk.unknown(2, 2 * S) else { panic!("it is down") };
        assert_eq!((reject.code, reject.retry_after_ms), (RejectCode::IssuerUnavailable, 1_000));
        let mut at = desk.next_us();
        for expected in [4, 8, 16, 32, 60, 60] {
            assert!(desk.is_due(at));
            desk.answered(Err("refused".into()), at, 100);
            assert_eq!(desk.next_us() - at, expected * S);
            at = desk.next_us();
        }
        assert!(desk.is_due(at));
        desk.answered(Ok(keys()), at, 500);
        assert_eq!(desk.keys.until_s, 500 + desk.keys.issuer.keep_s);
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let mut desk = desk();
        assert!(desk.is_due(0));
        for n in 0..ISSUER_WAITING_MAX as u32 {
            assert_eq!(desk.unknown(n, 0), Wait::Waits);
        }
        assert!(matches!(desk.unknown(0, 0), Wait::Refused(0, reject) if reject.code == RejectCode::IssuerUnavailable));
    }
}
