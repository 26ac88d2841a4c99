//! What can go wrong between an application and a node, by what the application can do about it.

use std::path::PathBuf;
use std::time::Duration;

use thalweg_protocol::ids::NameError;
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::trust::KeyHash;

/// Why a call of the SDK failed. Cheap to clone: one loss of the connection is told to everyone who waits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered, or the address does not resolve.
    #[error("no node answers at {server}: {reason}; check that `thalweg serve` runs there")]
    Unreachable {
        /// The address as it was given, `host:port`.
        server: String,
        /// What the network or the handshake said.
        reason: String,
    },
    /// Nothing useful happened in the time given.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The node's key is not the one that is trusted, or nobody said that it may be trusted.
    #[error("the key of {server} is not trusted: {reason}")]
    Untrusted {
        /// The address as it was given.
        server: String,
        /// The key the node showed.
        found: KeyHash,
        /// What was expected instead, and what to do.
        reason: String,
    },
    /// The node's certificate was not issued by an authority that is trusted, is for another name, or has run out.
    #[error("the certificate of {server} is not accepted: {reason}")]
    Certificate {
        /// The address as it was given.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The node understood the request and said no.
    #[error("the node refused: {0}")]
    Refused(Reject),
    /// The session was over because who it belonged to may not use the node any more: the token ended, or was revoked. A new
    /// token, or another login, is needed.
    #[error("signed out: {0}")]
    SignedOut(Reject),
    /// The application's own source of tokens gave none.
    #[error("no token: {0}")]
    NoToken(String),
    /// The node no longer remembers this session's last requests: a write that was repeated after a lost connection may or may
    /// not have been carried out before. It was not carried out again.
    #[error("whether it was carried out is not known: {0}")]
    SessionExpired(Reject),
    /// The node ended a subscription or a generation that had begun.
    #[error("the node ended it: {0}")]
    Ended(Reject),
    /// The connection went and did not come back in the time given; what was under way may or may not have been done.
    #[error("the connection to {server} was lost and did not come back: {reason}")]
    Lost {
        /// The address as it was given.
        server: String,
        /// Why it was lost, or why the last try to come back failed.
        reason: String,
    },
    /// The node said something that makes no sense here: a defect in it, or a version that is not what it claims.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
    /// A name, address or option that cannot be right. Nothing was sent.
    #[error("{what} {text:?} {reason}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Its value, shortened.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of this machine could not be used: the node's data directory or the store of known keys.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl ClientError {
    pub(crate) fn name(what: &'static str, text: &str, error: &NameError) -> Self {
        Self::Invalid { what, text: text.chars().take(64).collect(), reason: error.to_string() }
    }

    /// A refusal, as what the application can do about it.
    pub(crate) fn refused(reject: Reject) -> Self {
        match reject.code {
            RejectCode::SessionExpired => Self::SessionExpired(reject),
            _ => Self::Refused(reject),
        }
    }

    /// An answer of another kind than the question. Names the kind alone: the rest may be somebody's words.
    pub(crate) fn unexpected(expected: &str, found: &ServerOp) -> Self {
        let found = format!("{found:?}");
        let kind = found.split([' ', '(', '{']).next().unwrap_or_default();
        Self::Protocol(format!("{expected} was expected, not {kind}"))
    }

    /// After how long the same call may succeed, if the node said so: it has too much to do, or we asked too much of it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(reject) if reject.retry_after_ms > 0 => {
                Some(Duration::from_millis(reject.retry_after_ms.into()))
            }
            _ => None,
        }
    }

    /// What the node said, if it was the node that refused or ended it.
    pub fn reject(&self) -> Option<&Reject> {
        match self {
            Self::Refused(reject) | Self::SignedOut(reject) | Self::SessionExpired(reject) | Self::Ended(reject) => {
                Some(reject)
            }
            _ => None,
        }
    }

    /// The exit code of a command that failed so: 1 failed, 3 unreachable, 4 refused, 5 incomplete.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => 3,
            Self::Untrusted { .. } | Self::Certificate { .. } | Self::Refused(_) | Self::SignedOut(_) => 4,
            Self::Ended(_) | Self::Lost { .. } | Self::SessionExpired(_) => 5,
            Self::Protocol(_) | Self::Invalid { .. } | Self::File { .. } | Self::NoToken(_) | Self::Closed => 1,
        }
    }

    /// Whether the same call may succeed a little later without anybody doing anything.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Lost { .. } => true,
            Self::Refused(reject) => matches!(
                reject.code,
                RejectCode::Draining
                    | RejectCode::Busy
                    | RejectCode::RateLimited
                    | RejectCode::Overloaded
                    | RejectCode::IssuerUnavailable
                    | RejectCode::LimitReached
                    | RejectCode::HelloTimeout
                    | RejectCode::Internal
                    | RejectCode::Unknown
            ),
            // A node that is being restarted writes its files again; a reader can come in between.
            Self::File { .. } => true,
            // Who issues tokens may be out of reach for the same reason as the node was.
            Self::NoToken(_) => true,
            _ => false,
        }
    }

    /// What a refusal means for a session that had begun: whose token is good no longer is signed out.
    pub(crate) fn of_session(self) -> Self {
        match self {
            Self::Refused(reject) if is_sign_out(reject.code) => Self::SignedOut(reject),
            other => other,
        }
    }
}

/// Whether the node says so to whose token is good no longer.
pub(crate) fn is_sign_out(code: RejectCode) -> bool {
    matches!(code, RejectCode::TokenExpired | RejectCode::TokenRevoked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_repeat_what_somebody_wrote() {
        let op = ServerOp::LoggedIn { token: "secret".into(), expires_us: 1 };
        let text = ClientError::unexpected("Done", &op).to_string();
        assert!(text.contains("not LoggedIn") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let check = |error: ClientError, expected: Option<u64>| {
            assert_eq!(error.retry_after(), expected.map(Duration::from_millis), "{error}");
        };
        let limited = Reject::new(RejectCode::RateLimited, "slowly").retry_after_ms(20);
        check(ClientError::Refused(limited.clone()), Some(20));
        check(ClientError::Refused(Reject::new(RejectCode::Forbidden, "no")), None);
        check(ClientError::Ended(limited), None);
        check(ClientError::Closed, None);
    }
}
