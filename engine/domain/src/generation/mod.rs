//! A generation: one answer of a model as a sequence of tokens that can be read from any of them on.

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::Name;

/// How a generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
    /// What went wrong, if something did.
    pub message: String,
}

/// The state of a generation at its owner.
#[derive(Debug)]
pub struct Generation {
    /// Whose it is.
    pub tenant: Name,
    /// Who asked.
    pub user: Name,
    /// The model that answers.
    pub model: Name,
    text: Vec<u8>,
    /// Where in `text` each token ends.
    ends: Vec<u32>,
    ending: Option<Ending>,
}

impl Generation {
    /// A generation without tokens.
    pub fn new(tenant: Name, user: Name, model: Name) -> Self {
        Self { tenant, user, model, text: Vec::new(), ends: Vec::new(), ending: None }
    }

    /// Takes the next token in. A token may have no text of its own while its last character is incomplete.
    pub fn apply_token(&mut self, text: &[u8]) {
        debug_assert!(self.ending.is_none(), "no token follows the end");
        self.text.extend_from_slice(text);
        self.ends.push(self.text.len() as u32);
    }

    /// Ends it.
    pub fn apply_ending(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// Tokens so far; also the index of the next.
    pub fn tokens(&self) -> u32 {
        self.ends.len() as u32
    }

    /// The text of the tokens `from..to`.
    ///
    /// # Panics
    /// If `to` lies beyond the tokens there are, or before `from`.
    pub fn text(&self, from: u32, to: u32) -> Bytes {
        let start_of = |token: u32| if token == 0 { 0 } else { self.ends[token as usize - 1] as usize };
        Bytes::copy_from_slice(&self.text[start_of(from)..start_of(to)])
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_tokens_can_be_read() {
        let name = |text: &str| Name::new(text).expect("valid");
        let mut generation = Generation::new(name("default"), name("ada"), name("model"));
        let pieces = ["Hel", "", "lo", " wörld"];
        pieces.iter().for_each(|piece| generation.apply_token(piece.as_bytes()));
        assert_eq!(generation.tokens(), 4);
        for from in 0..=4_u32 {
            for to in from..=4 {
                let expected = pieces[from as usize..to as usize].concat();
                assert_eq!(generation.text(from, to), expected.as_bytes(), "{from}..{to}");
            }
        }
    }
}
