//! What a peer is told when its request is refused: a stable code, and a text that names what was wrong and what to do.

use std::borrow::Cow;
use std::fmt;

use crate::limits::REJECT_BYTES_MAX;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a request was refused. The numbers are part of the protocol: never reused, never renumbered.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum RejectCode { $($(#[$doc])* $name = $code,)* }

        impl RejectCode {
            /// Every code there is, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code with this number; [`RejectCode::Unknown`] for one that a newer peer made up.
            pub fn from_number(number: u16) -> Self {
                match number { $($code => Self::$name,)* _ => Self::Unknown }
            }

            /// The code as a word, for scripts and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// A code this build does not know.
    Unknown = 0, "unknown";
    /// Bytes that are not a frame, or a frame whose FlatBuffer does not verify.
    FrameInvalid = 1, "frame_invalid";
    /// A frame longer than the limit.
    FrameTooLarge = 2, "frame_too_large";
    /// An operation this node does not know, or one that is not for this direction.
    OperationUnknown = 3, "operation_unknown";
    /// No wire version in common.
    VersionUnsupported = 4, "version_unsupported";
    /// Something other than a hello came first, or a second hello.
    HelloExpected = 5, "hello_expected";
    /// The token is missing, malformed, or was not signed by this node's key.
    TokenInvalid = 6, "token_invalid";
    /// The token was valid once.
    TokenExpired = 7, "token_expired";
    /// The token's permissions do not cover this.
    Forbidden = 8, "forbidden";
    /// A name that is empty, too long, not UTF-8 or holds a forbidden character.
    NameInvalid = 9, "name_invalid";
    /// A number, text or combination that makes no sense here.
    ParameterInvalid = 10, "parameter_invalid";
    /// No such channel, and the request did not ask to create it.
    ChannelUnknown = 11, "channel_unknown";
    /// A message longer than the limit.
    BodyTooLarge = 12, "body_too_large";
    /// No such subscription in this session, or one of that number exists already.
    SubscriptionInvalid = 13, "subscription_invalid";
    /// A limit on how many of something there may be was reached.
    LimitReached = 14, "limit_reached";
    /// The session's place in the window of recognised commands is gone: whether the command was carried out is not known.
    SessionExpired = 15, "session_expired";
    /// A write whose sequence was already passed by a later one and is outside of the remembered window.
    SequenceInvalid = 16, "sequence_invalid";
    /// A reader fell too far behind and its policy says to part.
    SlowReader = 17, "slow_reader";
    /// The node is going away; come back after the given delay.
    Draining = 18, "draining";
    /// No such model on this node.
    ModelUnknown = 19, "model_unknown";
    /// The prompt does not fit in the model's context.
    PromptTooLong = 20, "prompt_too_long";
    /// Too much is waiting already; come back after the given delay.
    Busy = 21, "busy";
    /// No such generation, or it was kept long enough and is gone.
    GenerationUnknown = 22, "generation_unknown";
    /// The node failed at something that was not the client's fault; the node's log says more.
    Internal = 23, "internal";
    /// The hello did not come in time.
    HelloTimeout = 24, "hello_timeout";
    /// The same session was opened over another connection, which now has it.
    SessionTakenOver = 25, "session_taken_over";
    /// The disk has no room for what would have to be kept; reading goes on.
    StorageFull = 26, "storage_full";
    /// What was asked for cannot be read back from the disk; the node's log says where the damage is.
    StorageDamaged = 27, "storage_damaged";
    /// The channel was deleted.
    ChannelDeleted = 28, "channel_deleted";
    /// The token, or whose it is, was revoked.
    TokenRevoked = 29, "token_revoked";
    /// No such user, or another password.
    LoginFailed = 30, "login_failed";
    /// Too much in too short a time; come back after the given delay.
    RateLimited = 31, "rate_limited";
    /// More than the user or the tenant may have.
    QuotaExceeded = 32, "quota_exceeded";
    /// No such message in the channel, or it is no longer kept.
    MessageUnknown = 33, "message_unknown";
    /// The name is kept for channels that the node makes itself.
    NameReserved = 34, "name_reserved";
    /// No such user.
    UserUnknown = 35, "user_unknown";
    /// The issuer of the token cannot be asked for its keys; come back after the given delay.
    IssuerUnavailable = 36, "issuer_unavailable";
    /// The node is short of memory; come back after the given delay.
    Overloaded = 37, "overloaded";
    /// A request to the node's administration that makes no sense.
    RequestInvalid = 38, "request_invalid";
    /// A schema, expression or grammar that no text can follow, that cannot be read, or that takes too long to.
    ConstraintInvalid = 39, "constraint_invalid";
    /// The model makes no embeddings, or it makes nothing else.
    EmbeddingsUnsupported = 40, "embeddings_unsupported";
    /// The model is run elsewhere, and cannot be reached there or fails; come back after the given delay.
    ModelUnavailable = 41, "model_unavailable";
    /// Not a Yjs update, or one that no honest editor makes.
    UpdateInvalid = 42, "update_invalid";
    /// An update that builds on edits the node does not have; send what the node lacks first.
    UpdateIncomplete = 43, "update_incomplete";
    /// No such revision: it lies ahead of the document, or is too old to be edited against.
    RevisionUnknown = 44, "revision_unknown";
    /// Positional operations that do not fit the text of their revision.
    OperationsInvalid = 45, "operations_invalid";
    /// The document would be larger than the limit.
    DocumentTooLarge = 46, "document_too_large";
    /// The name is that of a channel and not of a document, or the other way round.
    KindMismatch = 47, "kind_mismatch";
}

impl fmt::Display for RejectCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: what was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Reject {
    /// Why, for programs.
    pub code: RejectCode,
    /// Why, for people: what was wrong, where, and what to do. At most [`REJECT_BYTES_MAX`] bytes.
    pub message: Cow<'static, str>,
    /// When to try again, in milliseconds; 0 if trying again would not help.
    pub retry_after_ms: u32,
}

impl Reject {
    /// A refusal that trying again would not change.
    pub fn new(code: RejectCode, message: impl Into<Cow<'static, str>>) -> Self {
        let mut message = message.into();
        if message.len() > REJECT_BYTES_MAX {
            let end = (0..=REJECT_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.to_mut().truncate(end);
        }
        Self { code, message, retry_after_ms: 0 }
    }

    /// The same refusal, with a time after which trying again may help.
    #[must_use]
    pub fn retry_after_ms(mut self, delay_ms: u32) -> Self {
        self.retry_after_ms = delay_ms;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stable_and_distinct() {
        for (at, &code) in RejectCode::ALL.iter().enumerate() {
            assert_eq!(code as usize, at, "codes are contiguous: {code}");
            assert_eq!(RejectCode::from_number(code as u16), code);
        }
        assert_eq!(RejectCode::from_number(u16::MAX), RejectCode::Unknown);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let reject = Reject::new(RejectCode::Forbidden, "é".repeat(REJECT_BYTES_MAX));
        assert!(reject.message.len() <= REJECT_BYTES_MAX && reject.message.ends_with('é'));
    }
}
