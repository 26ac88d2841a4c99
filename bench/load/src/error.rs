//! Why a bench could not be run.

use std::net::SocketAddr;

use thalweg_protocol::reject::Reject;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nobody answered, or the handshake failed.
    #[error("no node answers at {server}: {reason}; check the address, and that `thalweg serve` runs there")]
    Unreachable {
        /// Where.
        server: SocketAddr,
        /// What the handshake said.
        reason: String,
    },
    /// The node said no.
    #[error("the node refused {what}: {reject}")]
    Refused {
        /// Which request.
        what: &'static str,
        /// What it said.
        reject: Reject,
    },
    /// A server said no over HTTP.
    #[error("the server at {server} answered {status}: {body}")]
    Http {
        /// Where.
        server: SocketAddr,
        /// The status.
        status: u16,
        /// What it said, or the beginning of that.
        body: String,
    },
    /// A connection went in the middle of a run.
    #[error("the connection to {server} was lost during the run: {reason}")]
    Lost {
        /// Where to.
        server: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The node said something that makes no sense here.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
    /// Not everything that was waited for came.
    #[error("{what}: {got} of {wanted} came within {seconds} s")]
    Incomplete {
        /// What was waited for.
        what: &'static str,
        /// How many came.
        got: u64,
        /// How many were to come.
        wanted: u64,
        /// How long it was waited for.
        seconds: u64,
    },
    /// This machine could not do its part.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An option that makes no sense.
    #[error("{0}")]
    Usage(String),
}

impl LoadError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The exit code of a command that failed so: 1 failed, 2 usage, 3 unreachable, 4 refused, 5 incomplete.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Refused { .. } | Self::Http { .. } => 4,
            Self::Lost { .. } | Self::Incomplete { .. } => 5,
            Self::Protocol(_) | Self::Io { .. } => 1,
        }
    }
}
