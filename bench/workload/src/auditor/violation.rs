//! What can be wrong.

use std::fmt;

use thalweg_protocol::ids::{Position, Sequence, SessionId};

use super::{ChannelIndex, ReaderId, WatchId};

/// A broken promise, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is named in the sentence that Display makes of it")]
pub enum Violation {
    /// An acknowledged write did not reach a reader that was entitled to it.
    AckedLost { reader: ReaderId, position: Position, session: SessionId, sequence: Sequence },
    /// A reader got a position a second time.
    Doubled { reader: ReaderId, position: Position },
    /// A reader got a position after a later one, or after it was told that it would not.
    OutOfOrder { reader: ReaderId, position: Position, last: Position },
    /// A reader did not get these positions, they are not its own writes, and nobody told it.
    Gap { reader: ReaderId, from: Position, to: Position },
    /// A session was given its own write.
    Echo { reader: ReaderId, position: Position },
    /// A reader got a position before the one its subscription was said to start at.
    BeforeStart { reader: ReaderId, position: Position, next: Position },
    /// A reader got something after its subscription had ended.
    AfterEnd { reader: ReaderId, position: Position },
    /// A notice of missed positions that is empty, or names some that were delivered or missed already.
    MissedInvalid { reader: ReaderId, from: Position, to: Position },
    /// A reader got a message that nobody sent to this channel.
    Phantom { reader: ReaderId, position: Position },
    /// A write that was refused was carried out all the same.
    RefusedDelivered { channel: ChannelIndex, position: Position },
    /// One position holds different messages for different readers, or another one than was acknowledged there.
    BodyDiffers { channel: ChannelIndex, position: Position },
    /// Two writes were acknowledged at one position.
    PositionShared {
        channel: ChannelIndex,
        position: Position,
        first: (SessionId, Sequence),
        second: (SessionId, Sequence),
    },
    /// One write stands at two positions.
    ExecutedTwice { channel: ChannelIndex, first: Position, second: Position },
    /// One write was acknowledged at two positions.
    AckMoved { session: SessionId, sequence: Sequence, first: Position, second: Position },
    /// A write was acknowledged that was never sent.
    AckUnsent { session: SessionId, sequence: Sequence, position: Position },
    /// The workload gave one number to two writes: the run says nothing.
    SequenceReused { session: SessionId, sequence: Sequence },
    /// The workload repeats a write that it never sent: the run says nothing.
    ResentUnsent { session: SessionId, sequence: Sequence },
    /// Something came for a subscription that was never made.
    ReaderUnknown { reader: ReaderId },
    /// Something came for a watch that was never made.
    WatchUnknown { watch: WatchId },
    /// Tokens are missing between two arrivals.
    TokensGap { watch: WatchId, expected: u32, index: u32 },
    /// Tokens came a second time.
    TokensDoubled { watch: WatchId, expected: u32, index: u32 },
    /// A watcher was rewound without having come back, or to a token that it has not got to.
    RewindInvalid { watch: WatchId, got: u32, to: u32 },
    /// Tokens, or another end, came after the end.
    TokensAfterEnd { watch: WatchId, index: u32 },
    /// The end announced another number of tokens than arrived.
    TokensMissing { watch: WatchId, got: u32, announced: u32 },
    /// A generation did not end though it had the time to.
    GenerationUnfinished { watch: WatchId, got: u32 },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AckedLost { reader, position, session, sequence } => write!(
                f,
                "acknowledged write lost: {session} #{sequence} at position {position} never reached reader {}",
                reader.0
            ),
            Self::Doubled { reader, position } => write!(f, "reader {} got position {position} twice", reader.0),
            Self::OutOfOrder { reader, position, last } => {
                write!(f, "reader {} got position {position} after {last}", reader.0)
            }
            Self::Gap { reader, from, to } => write!(f, "reader {} was not told it misses {from}..={to}", reader.0),
            Self::Echo { reader, position } => {
                write!(f, "reader {} was given its own session's write at position {position}", reader.0)
            }
            Self::BeforeStart { reader, position, next } => {
                write!(f, "reader {} got position {position}, but was to start at {next}", reader.0)
            }
            Self::AfterEnd { reader, position } => {
                write!(f, "reader {} got position {position} after its subscription ended", reader.0)
            }
            Self::MissedInvalid { reader, from, to } => {
                write!(f, "reader {} was told it misses {from}..={to}, which is empty or already settled", reader.0)
            }
            Self::Phantom { reader, position } => {
                write!(f, "reader {} got a message at position {position} that nobody sent", reader.0)
            }
            Self::RefusedDelivered { channel, position } => {
                write!(f, "channel {}: a refused write stands at position {position}", channel.0)
            }
            Self::BodyDiffers { channel, position } => {
                write!(f, "channel {}: position {position} holds two different messages", channel.0)
            }
            Self::PositionShared { channel, position, first, second } => write!(
                f,
                "channel {}: position {position} was acknowledged to {} #{} and to {} #{}",
                channel.0, first.0, first.1, second.0, second.1
            ),
            Self::ExecutedTwice { channel, first, second } => {
                write!(f, "channel {}: one write stands at positions {first} and {second}", channel.0)
            }
            Self::AckMoved { session, sequence, first, second } => {
                write!(f, "{session} #{sequence} was acknowledged at position {first} and then at {second}")
            }
            Self::AckUnsent { session, sequence, position } => {
                write!(f, "{session} #{sequence} was acknowledged at position {position} but never sent")
            }
            Self::SequenceReused { session, sequence } => {
                write!(f, "the workload sent {session} #{sequence} twice as different writes")
            }
            Self::ResentUnsent { session, sequence } => {
                write!(f, "the workload repeated {session} #{sequence}, which it never sent")
            }
            Self::ReaderUnknown { reader } => {
                write!(f, "something came for reader {}, which never subscribed", reader.0)
            }
            Self::WatchUnknown { watch } => write!(f, "something came for watch {}, which was never made", watch.0),
            Self::TokensGap { watch, expected, index } => {
                write!(f, "watch {}: tokens jump from {expected} to {index}", watch.0)
            }
            Self::TokensDoubled { watch, expected, index } => {
                write!(f, "watch {}: tokens fall back from {expected} to {index}", watch.0)
            }
            Self::RewindInvalid { watch, got, to } => {
                write!(f, "watch {}: rewound to {to} at token {got}, without having come back or too far", watch.0)
            }
            Self::TokensAfterEnd { watch, index } => {
                write!(f, "watch {}: something came at token {index} after the end", watch.0)
            }
            Self::TokensMissing { watch, got, announced } => {
                write!(f, "watch {}: {got} tokens came, the end announced {announced}", watch.0)
            }
            Self::GenerationUnfinished { watch, got } => {
                write!(f, "watch {}: no end came after {got} tokens", watch.0)
            }
        }
    }
}
