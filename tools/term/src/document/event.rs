//! What happens to an editor of a document, and what it wants done.

use crossterm::event::{KeyEvent, MouseEvent};
use thalweg_client::{DocumentAccess, GenerationId, Operations, Reject};

/// Something that happened.
#[derive(Debug, Clone)]
pub enum EditEvent {
    /// A key was pressed.
    Key(KeyEvent),
    /// The mouse did something.
    Mouse(MouseEvent),
    /// Several keys were pressed that stand for what is written on them; line ends are `\n`.
    Typed(String),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size.
    Resize {
        /// Columns.
        columns: u16,
        /// Lines.
        lines: u16,
    },
    /// Time passed.
    Timer,
    /// Others changed the text.
    Changed {
        /// How.
        operations: Operations,
        /// Who; `None` if there were several.
        user: Option<String>,
        /// The model's edit that this is a piece of.
        generation: Option<GenerationId>,
    },
    /// What was taken back or done again changed the text so; `None` if there was nothing.
    Reverted(Option<Operations>),
    /// The text is another one than was thought: an edit was not possible.
    Reset {
        /// The text.
        text: String,
        /// Why.
        reason: String,
    },
    /// The node did not take an edit; the change of the text follows.
    Refused {
        /// Why.
        reject: Reject,
        /// The text as it was with what is lost.
        text: String,
    },
    /// Who else is there.
    Others(Vec<Peer>),
    /// How many own edits are not known to be durable.
    Unsaved(u64),
    /// The node is away, and why.
    Offline(String),
    /// The node is back.
    Online(DocumentAccess),
    /// A revision was given a name.
    Version {
        /// The name.
        name: String,
        /// By whom.
        user: String,
    },
    /// The model that was asked begins to write.
    Asked {
        /// The id of what it writes.
        generation: GenerationId,
        /// Which model.
        model: String,
    },
    /// The model that was asked wrote all it will, or could not be asked.
    Answered(Result<String, String>),
    /// A copy of the text was written: into which file, or why not.
    Kept(Result<String, String>),
    /// The node ended it.
    Ended(String),
}

/// Somebody else in the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its Yjs client id.
    pub client: u64,
    /// Its name.
    pub name: String,
    /// Where its selection begins and its cursor is, in UTF-16 code units.
    pub cursor: Option<(u32, u32)>,
    /// What it writes, if it is a model.
    pub generation: Option<GenerationId>,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditCommand {
    /// Tells the document of an own edit.
    Edit(Operations),
    /// What follows is not taken back together with what was edited before.
    Separate,
    /// Takes the last own edit back.
    Undo,
    /// Takes back what a model wrote.
    TakeBack(GenerationId),
    /// Does again what was taken back.
    Redo,
    /// Tells others where the selection begins and the cursor is, in UTF-16 code units.
    Cursor(u32, u32),
    /// Asks a model to write between two offsets.
    Ask {
        /// Where.
        from: u32,
        /// Until where.
        to: u32,
        /// What.
        instruction: String,
    },
    /// Stops a model.
    Stop(GenerationId),
    /// A model that an own line of the text asked begins to write: it is told when it is over ([`EditEvent::Answered`]), and
    /// is taken back like an own edit.
    Adopt(GenerationId),
    /// Writes a copy of the text into a file ([`EditEvent::Kept`]).
    Keep,
    /// Puts a text into the clipboard of the terminal.
    Copy(String),
    /// Draws everything anew.
    Redraw,
    /// Leaves.
    Quit,
}
