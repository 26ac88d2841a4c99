//! How texts are cut into words, inside of which alone tokens are put together.
//!
//! A GGUF names the cut of its model only (`tokenizer.ggml.pre`); what the name means is what the tokenizer does that the
//! model was trained with. A wrong cut gives tokens that look right and a model that is worse without saying so: hence no
//! cut is guessed.

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

/// One way to cut.
#[derive(Debug)]
pub(super) struct Cut {
    /// What files call it.
    names: &'static [&'static str],
    words: Words,
    /// Whether characters are composed first, a letter and its accent to one.
    composed: bool,
    /// Whether a word that is a token is one, whatever merges would make of it.
    pub(super) whole: bool,
    /// Whether texts begin with the begin token, unless a file says otherwise.
    pub(super) begins: bool,
}

/// What a word is.
#[derive(Debug)]
enum Words {
    /// GPT-2's: a run of letters, of digits or of other signs, with the space before it.
    Gpt2,
    /// The same, but every digit is a word of its own, without the space before it.
    SingleDigits,
    /// What this expression finds.
    Expression(&'static str),
}

/// Qwen2's: one digit is a word, lines end words, letters take any one sign before them along.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Llama 3's: the same, but up to three digits are a word.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// All that are known.
#[rustfmt::skip]
const CUTS: &[Cut] = &[
    Cut { names: &["gpt-2"], words: Words::Gpt2, composed: false, whole: false, begins: false },
    Cut { names: &["smollm"], words: Words::SingleDigits, composed: false, whole: false, begins: false },
    Cut { names: &["qwen2", "deepseek-r1-qwen"], words: Words::Expression(QWEN2), composed: true, whole: false, begins: false },
    Cut { names: &["llama-bpe"], words: Words::Expression(LLAMA3), composed: false, whole: true, begins: true },
];

impl Cut {
    /// The cut of this name.
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        CUTS.iter().find(|cut| cut.names.contains(&name))
    }

    /// Lets a tokenizer cut like this, and spell words in the letters of GPT-2.
    pub(super) fn apply(&self, tokenizer: &mut Tokenizer) -> Result<(), tokenizers::Error> {
        let steps: Vec<PreTokenizerWrapper> = match self.words {
            Words::Gpt2 => vec![ByteLevel::new(false, true, true).into()],
            Words::SingleDigits => vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()],
            Words::Expression(expression) => {
                let pattern = SplitPattern::Regex(expression.into());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                vec![split.into(), ByteLevel::new(false, true, false).into()]
            }
        };
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        if self.composed {
            tokenizer.with_normalizer(Some(NFC))?;
        }
        Ok(())
    }
}
