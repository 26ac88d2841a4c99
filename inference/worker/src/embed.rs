//! Texts to vectors: a sentence encoder with the tokenizer that lies beside its weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::bert::Bert;
use crate::gguf::LoadError;
use crate::kernel::Kernels;

/// The tokenizer's file, in the directory of the weights.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Longest text in tokens, with the two that stand around it. The models are trained on no longer ones, though they have
/// positions for more; their reference implementation cuts here.
pub const TEXT_TOKENS_MAX: usize = 256;
/// Bytes of a text that are tokenised at first. Most texts that fit have fewer, and of those that do not fit no more need
/// be looked at.
const TEXT_BYTES_FIRST: usize = 4096;

/// Why a text has no vector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It has more tokens than the model takes. It is refused, not cut: a vector of a text's beginning would pass for
    /// that of the text.
    #[error("it has more than {TEXT_TOKENS_MAX} tokens, the most this model takes: split it")]
    TooLong,
    /// The tokenizer failed.
    #[error("it cannot be tokenised: {0}")]
    Tokenizer(String),
}

/// A sentence encoder in memory.
pub struct TextEncoder {
    bert: Arc<Bert>,
    tokenizer: Tokenizer,
    tokens_max: usize,
}

impl TextEncoder {
    /// Reads the weights at `path` (safetensors) and [`TOKENIZER_FILE`] beside them.
    ///
    /// # Errors
    /// One of them cannot be read, or they do not belong together.
    pub fn load(path: &Path, kernels: Kernels) -> Result<Self, LoadError> {
        let bert = Bert::open(path, kernels)?;
        let file: PathBuf = path.with_file_name(TOKENIZER_FILE);
        let bytes = std::fs::read(&file).map_err(|source| LoadError::Open { path: file.clone(), source })?;
        let invalid = |what: String| LoadError::Invalid { path: file.clone(), what };
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| invalid(format!("it is no tokenizer: {e}")))?;
        // Its file says how a batch was padded when it was written; rows here need no padding, and what is too long is
        // refused.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
        let (tokens, known) = (tokenizer.get_vocab_size(true), bert.dimensions().vocabulary);
        if tokens > known {
            return Err(invalid(format!("it has {tokens} tokens, the model {known}")));
        }
        let tokens_max = TEXT_TOKENS_MAX.min(bert.dimensions().positions);
        Ok(Self { bert: Arc::new(bert), tokenizer, tokens_max })
    }

    /// The model.
    pub fn bert(&self) -> &Arc<Bert> {
        &self.bert
    }

    /// Numbers of a vector.
    pub fn dimensions(&self) -> usize {
        self.bert.dimensions().width
    }

    /// Longest text in tokens.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// The tokens of a text, with those that stand around it. However long a text is, little more of it is looked at than
    /// can fit.
    ///
    /// # Errors
    /// It is too long, or the tokenizer fails.
    pub fn tokenise(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut bytes = TEXT_BYTES_FIRST;
        loop {
            let part = beginning(text, bytes);
            let encoding = self.tokenizer.encode_fast(part, true).map_err(|e| TextError::Tokenizer(e.to_string()))?;
            if encoding.len() > self.tokens_max {
                return Err(TextError::TooLong);
            }
            if part.len() == text.len() {
                return match encoding.get_ids() {
                    [] => Err(TextError::Tokenizer("there is nothing in it that the model knows".into())),
                    tokens => Ok(tokens.to_vec()),
                };
            }
            bytes *= 2;
        }
    }
}

/// At most so many bytes of a text, whole words, if there is one so short.
fn beginning(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let end = text.floor_char_boundary(bytes);
    // A piece of a word may have more tokens than the word, of which a very long one has one.
    text[..end].rfind(char::is_whitespace).map_or("", |at| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_words() {
        let check = |text: &str, bytes, expected| assert_eq!(beginning(text, bytes), expected, "{text:?}, {bytes}");
        check("one two", 7, "one two");
        check("one two", 6, "one");
        check("one two", 3, "");
        check("one\u{2003}zwölf", 11, "one");
        check("", 0, "");
    }
}
