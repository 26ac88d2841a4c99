//! Lines that speak to a model: who ends one asks the model as surely as with Ctrl-A, and may stop it and take back what it
//! wrote.

use std::time::Duration;

use thalweg_client::{GenerationId, Operation, Operations};

use super::app::{Asking, EditApp};
use super::event::{EditCommand, Peer};
use crate::text;

/// How a line begins that speaks to a model.
const CALL: &str = "@ai ";
/// How models are called as editors, before their own name.
const MODEL: &str = "ai/";
/// A model that begins later at the end of such a line was asked by somebody else. Long, since it may wait for its turn.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// An own line that spoke to a model, which has not begun to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// Where the line ends, and the model will begin, in UTF-16 code units.
    at: u32,
    until: Duration,
}

/// Where operations put something in first.
fn first_insertion(operations: &Operations) -> Option<u32> {
    let mut at = 0_u32;
    for part in operations.parts() {
        match part {
            Operation::Retain(length) => at = at.saturating_add(*length),
            Operation::Insert(_) => return Some(at),
            Operation::Delete(_) => {}
        }
    }
    None
}

impl EditApp {
    /// The place where a line ends that speaks to a model, if this text, put in there, ends one: as the node sees it.
    pub(super) fn calling(&self, from: usize, text: &str) -> Option<usize> {
        let (line, rest) = text.split_once('\n')?;
        if !rest.trim().is_empty() || rest.contains('\n') {
            return None;
        }
        let line = line.strip_suffix('\r').unwrap_or(line);
        let start = self.body.line_start(self.body.line_of(from));
        let whole = format!("{}{line}", self.body.slice(start, from));
        let instruction = whole.trim_start().strip_prefix(CALL)?.trim();
        (!instruction.is_empty()).then(|| from + line.chars().count())
    }

    /// An own line spoke to a model.
    pub(super) fn called(&mut self, at: usize) {
        self.call = Some(Call { at: self.body.utf16(at), until: self.now + ANSWERS_WITHIN });
    }

    /// An edit moves the place along.
    pub(super) fn moved_call(&mut self, operations: &Operations) {
        if let Some(call) = &mut self.call {
            call.at = operations.offset_after(call.at, false);
        }
    }

    /// A model edits the text; told before the text is another one.
    pub(super) fn model_edits(&mut self, generation: GenerationId, user: Option<&str>, operations: &Operations) {
        if let Some(at) = first_insertion(operations) {
            self.answers(generation, user.unwrap_or_default(), at);
        }
    }

    /// Models say where they are, mostly before they write.
    pub(super) fn models_are(&mut self, peers: &[Peer]) {
        for peer in peers {
            if let (Some(generation), Some((_, at))) = (peer.generation, peer.cursor) {
                self.answers(generation, &peer.name, at);
            }
        }
    }

    /// A model that begins where an own line asked for one is our own.
    fn answers(&mut self, generation: GenerationId, name: &str, at: u32) {
        self.call.take_if(|call| call.until <= self.now);
        if self.asking.is_some() || self.call.take_if(|call| call.at == at).is_none() {
            return;
        }
        let name = name.strip_prefix(MODEL).unwrap_or(name);
        let model = if name.is_empty() { "the AI".to_owned() } else { text::clean_line(name) };
        self.asking = Some(Asking::Writes { generation, model, stopped: false, undo_when_over: false });
        self.command(EditCommand::Adopt(generation));
    }
}
