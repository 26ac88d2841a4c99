//! What can go wrong between an application and a node, by what the application can do about it.

use std::path::PathBuf;
use std::time::Duration;

use thalweg_protocol::ids::NameError;
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
    /// The node understood the request and said no.
    #[error("the node refused: {0}")]
    Refused(Reject),
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

    /// The exit code of a command that failed so: 1 failed, 3 unreachable, 4 refused, 5 incomplete.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } => 3,
            Self::Untrusted { .. } | Self::Refused(_) => 4,
            Self::Ended(_) | Self::Lost { .. } | Self::SessionExpired(_) => 5,
            Self::Protocol(_) | Self::Invalid { .. } | Self::File { .. } | Self::Closed => 1,
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
                    | RejectCode::LimitReached
                    | RejectCode::HelloTimeout
                    | RejectCode::Internal
                    | RejectCode::Unknown
            ),
            // A node that is being restarted writes its files again; a reader can come in between.
            Self::File { .. } => true,
            _ => false,
        }
    }
}
