//! A generation: one answer of a model as a sequence of tokens that can be read from any of them on.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, TextHash, Usage};

use crate::record::GenerationRequest;

/// One token of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its number in the model's vocabulary, from which the computation can go on.
    pub id: u32,
    /// How many bytes of the text are its own: none while its last character is incomplete.
    pub bytes: u32,
}

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
    /// What was asked.
    pub request: Arc<GenerationRequest>,
    text: Vec<u8>,
    tokens: Vec<Token>,
    /// Where in `text` each token ends.
    ends: Vec<u32>,
    ending: Option<Ending>,
}

impl Generation {
    /// A generation without tokens.
    pub fn new(request: Arc<GenerationRequest>) -> Self {
        Self { request, text: Vec::new(), tokens: Vec::new(), ends: Vec::new(), ending: None }
    }

    /// Takes the next token in. A token may have no text of its own while its last character is incomplete.
    pub fn apply_token(&mut self, id: u32, text: &[u8]) {
        debug_assert!(self.ending.is_none(), "no token follows the end");
        self.text.extend_from_slice(text);
        self.ends.push(self.text.len() as u32);
        self.tokens.push(Token { id, bytes: text.len() as u32 });
    }

    /// Ends it.
    pub fn apply_ending(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// Tokens so far; also the index of the next.
    pub fn tokens(&self) -> u32 {
        self.ends.len() as u32
    }

    /// The tokens from `from` on.
    ///
    /// # Panics
    /// If `from` lies beyond the tokens there are.
    pub fn tokens_from(&self, from: u32) -> &[Token] {
        &self.tokens[from as usize..]
    }

    /// The text of the tokens `from..to`.
    ///
    /// # Panics
    /// If `to` lies beyond the tokens there are, or before `from`.
    pub fn text(&self, from: u32, to: u32) -> Bytes {
        Bytes::copy_from_slice(&self.text[self.start_of(from)..self.start_of(to)])
    }

    /// The fingerprint of the text of the tokens before `to`.
    ///
    /// # Panics
    /// If `to` lies beyond the tokens there are.
    pub fn text_hash(&self, to: u32) -> u64 {
        TextHash::of(&self.text[..self.start_of(to)])
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    fn start_of(&self, token: u32) -> usize {
        if token == 0 { 0 } else { self.ends[token as usize - 1] as usize }
    }
}

#[cfg(test)]
mod tests {
    use thalweg_protocol::generation::{OnDetach, Priority, Sampling};
    use thalweg_protocol::ids::Name;

    use super::*;

    #[test]
    fn any_range_of_tokens_can_be_read() {
        let name = |text: &str| Name::new(text).expect("valid");
        let mut generation = Generation::new(Arc::new(GenerationRequest {
            tenant: name("default"),
            user: name("ada"),
            model: name("model"),
            channel: None,
            messages: Vec::new(),
            sampling: Sampling::default(),
            on_detach: OnDetach::Cancel,
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
        }));
        let pieces = ["Hel", "", "lo", " wörld"];
        pieces.iter().enumerate().for_each(|(id, piece)| generation.apply_token(id as u32, piece.as_bytes()));
        assert_eq!(generation.tokens(), 4);
        for from in 0..=4_u32 {
            assert_eq!(generation.text_hash(from), TextHash::of(pieces[..from as usize].concat().as_bytes()));
            for to in from..=4 {
                let expected = pieces[from as usize..to as usize].concat();
                assert_eq!(generation.text(from, to), expected.as_bytes(), "{from}..{to}");
            }
        }
        assert_eq!(generation.tokens_from(2), [Token { id: 2, bytes: 2 }, Token { id: 3, bytes: 7 }]);
    }
}
