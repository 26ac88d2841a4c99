//! What goes wrong with a remote, and what those who asked are told of it.

use std::time::Duration;

use thalweg_protocol::reject::{Reject, RejectCode};

use crate::limits::{REMOTE_LINE_BYTES_MAX, REMOTE_RETRY_MS, REMOTE_TEXT_BYTES_MAX};

/// What went wrong. Its text holds nothing of a prompt, an answer or a key: it may be logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("{what} took more than {} ms", .within.as_millis())]
    Slow { what: &'static str, within: Duration },
    #[error("it refuses the node's key ({0})")]
    Key(u16),
    #[error("it has no such model, or its address is wrong ({0})")]
    NoSuchModel(u16),
    #[error("it is busy ({status})")]
    Busy { status: u16, retry_after_ms: Option<u32> },
    #[error("it fails ({status})")]
    Failing { status: u16, retry_after_ms: Option<u32> },
    #[error("it answered {0}, which no endpoint for chats does; is its address right?")]
    Strange(u16),
    #[error("it does not accept the request ({status})")]
    Invalid {
        status: u16,
        /// What it said, for who asked; never logged.
        said: String,
        too_long: bool,
    },
    #[error("it sent something else than an answer: {0}")]
    Garbage(&'static str),
    #[error("it sent a line of more than {REMOTE_LINE_BYTES_MAX} bytes")]
    EndlessLine,
    #[error("it sent more than {REMOTE_TEXT_BYTES_MAX} bytes of text")]
    EndlessText,
    #[error("it ended the connection in the middle of an answer")]
    Cut,
    #[error("it failed in the middle of an answer")]
    FailedInside,
    #[error("it withheld the rest of the answer (its filter of contents)")]
    Filtered,
}

impl Fault {
    /// The refusal for a generation that had no token yet.
    pub(crate) fn reject(&self, model: &str) -> Reject {
        let text = format!("the remote endpoint of {model} cannot answer: {self}");
        match self {
            Self::Invalid { said, too_long, .. } => {
                let code = if *too_long { RejectCode::PromptTooLong } else { RejectCode::ParameterInvalid };
                Reject::new(code, format!("the remote endpoint of {model} refuses the request: {said}"))
            }
            Self::Busy { retry_after_ms, .. } => {
                Reject::new(RejectCode::Busy, text).retry_after_ms(retry_after_ms.unwrap_or(REMOTE_RETRY_MS))
            }
            Self::Failing { retry_after_ms, .. } => Reject::new(RejectCode::ModelUnavailable, text)
                .retry_after_ms(retry_after_ms.unwrap_or(REMOTE_RETRY_MS)),
            // Trying again does not help before somebody changes the settings.
            Self::Key(_) | Self::NoSuchModel(_) | Self::Strange(_) => Reject::new(RejectCode::ModelUnavailable, text),
            _ => Reject::new(RejectCode::ModelUnavailable, text).retry_after_ms(REMOTE_RETRY_MS),
        }
    }

    /// Whether it says something of the remote, rather than of the request.
    pub(crate) fn is_of_remote(&self) -> bool {
        !matches!(self, Self::Invalid { .. })
    }
}
