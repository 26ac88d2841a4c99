//! What a protocol over WebSocket is: a value that takes what its client and its sessions say, and gives what is to be done.
//!
//! `handle` one thing, then drain `poll` until it gives nothing. No protocol does I/O or looks at a clock, so that each is
//! tested by lists of what happens.

use std::time::Duration;

use bytes::Bytes;
use thalweg_protocol::ids::{Request, SessionId};
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::reject::Reject;

use super::close::Close;
use crate::limits::SOCKET_MESSAGE_BYTES_MAX;

/// How soon a tick comes that a protocol wants soon.
pub(crate) const HURRY: Duration = Duration::from_millis(20);

/// A message to or from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Bytes.
    Binary(Bytes),
    /// A text.
    Text(String),
}

/// Something that was told to a client and for which its core gives more, once it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Of which session.
    pub(crate) session: u32,
    /// Of which subscription or watch.
    pub(crate) subject: u32,
    /// Up to which position or token.
    pub(crate) mark: u64,
}

/// What happens to a protocol.
#[derive(Debug)]
pub(crate) enum Input {
    /// The client sent a message.
    Message(Message),
    /// A request was answered. Request 0 is the session's hello, or nothing that was asked for.
    Answered { session: u32, request: Request, said: Result<ServerOp, Reject> },
    /// A subscription or watch was told something: an encoded `ServerOp`.
    Frame { session: u32, subject: u32, payload: Bytes },
    /// A session was ended by its core.
    Closed { session: u32, reject: Reject },
    /// The client took this.
    Taken(Taken),
    /// So much time has passed since the socket was opened. Comes about once a second, and soon if that is wanted.
    Tick(Duration),
    /// Nothing was sent for a while: say something, or the client thinks that nobody is there.
    Quiet,
}

/// What a protocol wants done, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// Open a session for the holder of a token, as another if `id` is given.
    Open { session: u32, id: Option<SessionId>, token: String },
    /// End a session.
    Leave { session: u32 },
    /// Ask for something. What cannot even be asked is answered by a reject.
    Ask { session: u32, request: Request, op: ClientOp },
    /// Say what has no answer and must arrive.
    Tell { session: u32, op: ClientOp },
    /// Send to the client.
    Send(Message, Option<Taken>),
    /// Send what is left, and close.
    Close(Close),
}

/// A protocol, and one client's state in it.
pub(crate) trait Protocol: Send {
    /// Takes in what happened.
    fn handle(&mut self, input: Input);
    /// What is to be done next.
    fn poll(&mut self) -> Option<Effect>;
    /// Whether so much is unanswered that nothing more is to be read from the client.
    fn is_full(&self) -> bool;
    /// Bytes that the next message of the client may have.
    fn message_bytes_max(&self) -> usize {
        SOCKET_MESSAGE_BYTES_MAX
    }
    /// Whether the next tick should come within [`HURRY`].
    fn is_in_a_hurry(&self) -> bool {
        false
    }
    /// Whether a subject is a subscription, whose bytes its session wants to hear of when they are taken.
    fn is_counted(&self, _session: u32, _subject: u32) -> bool {
        true
    }
}
