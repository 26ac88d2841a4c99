//! Documents: what clients ask of them, and what they are told.
//!
//! A document is a channel of kind [`Document`](crate::chat::ChannelKind::Document): its messages are what it was edited by,
//! and a *revision* is the position of one of them. Whoever opens a document gets what they lack of its state, and then its
//! edits on a lane of their own: as Yjs updates, or as positional operations on the text of its root [`ROOT`].

mod awareness;
mod number;
mod operations;

use bytes::Bytes;

use crate::ids::{ChannelId, GenerationId, Name, Position, Sequence, Subscription};

pub use awareness::{AwarenessEntry, AwarenessUpdate};
pub use operations::{Operation, Operations, Side, utf16_len};

/// The root of a document that its text lives in, unless its editors use others.
pub const ROOT: &str = "content";
/// The root that those who may only comment may change.
pub const COMMENTS_ROOT: &str = "comments";

/// How the edits of a document are told to a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum DocumentForm {
    /// As Yjs updates (version 1), in deliveries of kind `Update`; the state is an update too.
    #[default]
    Updates,
    /// As positional operations on the text of root [`ROOT`]; the state is that text.
    Operations,
}

/// What somebody may do to a document. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum DocumentAccess {
    /// Reads.
    #[default]
    Read,
    /// Changes the root [`COMMENTS_ROOT`].
    Comment,
    /// Changes everything.
    Write,
}

impl DocumentAccess {
    /// The access as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Comment => "comment",
            Self::Write => "write",
        }
    }
}

/// How a document is to be given at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ReadForm {
    /// The text of its root [`ROOT`], in UTF-8.
    #[default]
    Text,
    /// All of it, as one Yjs update (version 1).
    State,
    /// All of its roots, as a JSON object.
    Json,
}

/// A request to read a document and its edits from now on; its request number becomes the subscription's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDocument {
    /// Which document.
    pub document: Name,
    /// The Yjs state vector (version 1) of what the reader has already; empty if that is nothing. Of no use with
    /// [`DocumentForm::Operations`], and must be empty then.
    pub state: Bytes,
    /// How its edits are to be told.
    pub form: DocumentForm,
    /// Make the document if there is none.
    pub make: bool,
    /// Edits the node may send ahead of what the reader reported as consumed; 0 for the default.
    pub lead: u32,
    /// Which document of that name `state` is of. If it is another one now, since that was deleted and one was made again, it is
    /// not opened: what the reader has does not belong into it.
    pub known: Option<ChannelId>,
}

/// A request that a model writes in a document.
#[derive(Debug, Clone, PartialEq)]
pub struct AskInDocument {
    /// Which document.
    pub document: Name,
    /// What it shall do.
    pub instruction: String,
    /// Which model, class, or `auto`; the default if not said.
    pub model: Option<Name>,
    /// Where in the document. What lies between the two ends is given to the model, deleted, and written anew; if they are
    /// the same place, the model writes there.
    pub place: Place,
    /// Tokens it may write at most; 0 for the default.
    pub max_tokens: u32,
    /// How freely it writes; 0 for always the likeliest.
    pub temperature: f32,
    /// The seed of what is drawn; the node makes one if there is none.
    pub seed: Option<u64>,
}

/// A stretch of a document's text in root [`ROOT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Between two Yjs relative positions, encoded (version 1).
    Anchors {
        /// Where it begins.
        start: Bytes,
        /// Where it ends.
        end: Bytes,
    },
    /// Between two offsets in UTF-16 code units, as the text was at a revision (0: the newest).
    Offsets {
        /// The revision.
        revision: Position,
        /// Where it begins.
        start: u32,
        /// Where it ends.
        end: u32,
    },
}

/// What a client asks about documents. Edits are `Publish`, the credit of a reader is `Consumed`, and the end of reading is
/// `Unsubscribe`, as in any channel.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields of one-line variants are named after their types")]
pub enum DocumentOp {
    /// Reads a document and its edits. Answer: `DocumentOpened`; then, on a lane of its own, `State` in parts, and edits.
    Open(OpenDocument),
    /// Asks for a document as it was at a revision (0: now), from byte `offset` on. Answer: `State`.
    Read { document: Name, revision: Position, form: ReadForm, offset: u64 },
    /// Asks that a model write in a document. Answer: `Asked`, once it has begun.
    Ask(Box<AskInDocument>),
    /// Tells other readers of a document about oneself: an encoded [`AwarenessUpdate`]. No answer; may be a datagram.
    ShareAwareness { subscription: Subscription, update: Bytes },
}

/// What a client is told about documents.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields of one-line variants are named after their types")]
pub enum DocumentNews {
    /// Answer to `Open`: the newest revision, how many bytes of state follow in `State` frames, what the reader may do, and
    /// whether the document is new. `vector`: the Yjs state vector of that revision, by which a reader of updates knows what
    /// of its own the node lacks; empty for a reader of operations. `id`: which document of that name it is.
    Opened { id: ChannelId, revision: Position, bytes: u64, access: DocumentAccess, made: bool, vector: Bytes },
    /// A part of a document as it was at a revision, `total` bytes long, from `offset` on. On a document's lane after its
    /// beginning: what the reader could not be sent one by one; what it has stays right, and this brings it up to the
    /// revision. For a reader of operations it is the whole text, which takes the place of the one it has.
    State { revision: Position, offset: u64, total: u64, bytes: Bytes },
    /// Positional operations that lead from the revision before `from` to `to`.
    Operations(DocumentOperations),
    /// What others say of themselves: an encoded [`AwarenessUpdate`].
    Awareness { update: Bytes },
}

/// Positional operations of a document as its readers get them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentOperations {
    /// The first revision they are of.
    pub from: Position,
    /// The last revision they are of.
    pub to: Position,
    /// When the last was accepted: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// Who edited; the last, if there were several.
    pub user: Name,
    /// The generation, if a model edited.
    pub generation: Option<GenerationId>,
    /// If this is the reader's own write: its sequence. The operations are empty then.
    pub own: Option<Sequence>,
    /// Encoded [`Operations`].
    pub operations: Bytes,
}

#[cfg(test)]
mod tests;
