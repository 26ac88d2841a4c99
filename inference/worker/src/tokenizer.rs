//! Text to tokens and back: the vocabulary, merges and chat template that lie in a GGUF.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use minijinja::{Environment, context};
use thalweg_protocol::generation::{ChatMessage, Role};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
use tokenizers::{AddedToken, Tokenizer};

use crate::constraint::Grammars;
use crate::gguf::{Gguf, LoadError};

/// `tokenizer.ggml.token_type` of a token that steers and has no text.
const CONTROL: i64 = 3;

/// What a conversation looked like to the tokenizer when that failed.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The template refused the conversation, for example its order of roles.
    #[error("the chat template of the model refuses these messages: {0}; change their roles or order")]
    Template(String),
    /// The tokenizer failed at the text.
    #[error("the text cannot be tokenised: {0}")]
    Tokenizer(String),
}

/// Turns conversations into tokens, and tokens into bytes.
pub struct Vocabulary {
    /// Knows the control tokens: for what the template writes.
    tokenizer: Tokenizer,
    /// Takes control tokens for ordinary text: for what people write.
    plain: Tokenizer,
    templates: Environment<'static>,
    /// Bytes of each token; empty for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Texts of the control tokens.
    controls: Vec<String>,
    ends: Vec<u32>,
    begin: Option<u32>,
    grammars: Grammars,
}

impl Vocabulary {
    /// Reads the vocabulary of `file`.
    pub fn load(file: &Gguf) -> Result<Self, LoadError> {
        let kind = file.text("tokenizer.ggml.model")?;
        let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
        if kind != "gpt2" || pre != "smollm" {
            return Err(
                file.invalid(format!("tokenizer {kind:?} with pre-tokenizer {pre:?} is not known to this build"))
            );
        }
        let texts = texts(file, "tokenizer.ggml.tokens")?;
        let types = file.list("tokenizer.ggml.token_type")?;
        if types.len() != texts.len() {
            return Err(file.invalid(format!("{} tokens have {} types", texts.len(), types.len())));
        }
        let is_control: Vec<bool> = types.iter().map(|t| whole(t) == Some(CONTROL)).collect();
        let (tokenizer, plain) = tokenizers(file, &texts, &is_control)?;
        let letters = letters();
        let bytes = texts.iter().zip(&is_control).map(|(text, &control)| match control {
            true => Box::default(),
            false => text.chars().flat_map(|c| spelled(&letters, c)).collect(),
        });
        let bytes: Vec<Box<[u8]>> = bytes.collect();
        let mut ends = vec![file.number("tokenizer.ggml.eos_token_id")? as u32];
        // Chat models end a turn with a token of its own, which need not be the one that ends a document.
        let turn_ends = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"];
        ends.extend((0..texts.len()).filter(|&n| is_control[n] && turn_ends.contains(&texts[n])).map(|n| n as u32));
        let begin = match file.value("tokenizer.ggml.add_bos_token").and_then(|v| v.to_bool().ok()) {
            Some(true) => Some(file.number("tokenizer.ggml.bos_token_id")? as u32),
            _ => None,
        };
        let mut templates = Environment::new();
        templates.set_keep_trailing_newline(true);
        templates.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, text))
        });
        templates
            .add_template_owned("chat", file.text("tokenizer.chat_template")?.to_owned())
            .map_err(|e| file.invalid(format!("its chat template does not parse: {e:#}")))?;
        let grammars = Grammars::new(&bytes, &ends);
        let grammars =
            grammars.map_err(|e| file.invalid(format!("its vocabulary does not do for constraints: {e}")))?;
        Ok(Self {
            tokenizer,
            plain,
            templates,
            grammars,
            bytes,
            controls: texts.iter().zip(&is_control).filter(|(_, c)| **c).map(|(t, _)| (*t).to_owned()).collect(),
            ends,
            begin,
        })
    }

    /// The tokens of a conversation, ready for the model to answer.
    ///
    /// What looks like a control token inside of a message is taken for text: a message cannot end its own turn.
    pub fn prompt(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, PromptError> {
        let hostile = messages.iter().any(|m| self.controls.iter().any(|control| m.content.contains(control.as_str())));
        let mut tokens: Vec<u32> = self.begin.into_iter().collect();
        if !hostile {
            let contents = messages.iter().map(|m| (m.role, m.content.clone()));
            let text = self.render(contents)?;
            encode(&self.tokenizer, &text, &mut tokens)?;
            return Ok(tokens);
        }
        // Marks of private-use characters stand for the contents while the template runs.
        let mark = |n: usize| format!("\u{f8f0}{n}\u{f8f1}");
        let text = self.render(messages.iter().enumerate().map(|(n, m)| (m.role, mark(n))))?;
        let mut rest = text.as_str();
        for (n, message) in messages.iter().enumerate() {
            let mark = mark(n);
            let Some((before, after)) = rest.split_once(mark.as_str()) else { continue };
            encode(&self.tokenizer, before, &mut tokens)?;
            encode(&self.plain, &message.content, &mut tokens)?;
            rest = after;
        }
        encode(&self.tokenizer, rest, &mut tokens)?;
        Ok(tokens)
    }

    /// The tokens of contents as they stand, one after the other, without a template; at least one.
    pub fn raw(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, PromptError> {
        let mut tokens: Vec<u32> = self.begin.into_iter().collect();
        let text: String = messages.iter().map(|message| message.content.as_str()).collect();
        encode(&self.plain, &text, &mut tokens)?;
        if tokens.is_empty() {
            // A text begins after the end of another, as in training.
            tokens.extend(self.ends.first());
        }
        Ok(tokens)
    }

    /// What texts of these tokens can be made to follow.
    pub fn grammars(&self) -> &Grammars {
        &self.grammars
    }

    /// The tokens of plain text, without a template.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let mut tokens = Vec::new();
        encode(&self.plain, text, &mut tokens)?;
        Ok(tokens)
    }

    /// The bytes a token stands for: often not whole characters, and none for control tokens.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    /// Whether a model that draws `token` has ended its answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Tokens there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn render(&self, messages: impl Iterator<Item = (Role, String)>) -> Result<String, PromptError> {
        let messages: Vec<_> = messages
            .map(|(role, content)| HashMap::from([("role", role.as_str().to_owned()), ("content", content)]))
            .collect();
        let template = self.templates.get_template("chat").map_err(|e| PromptError::Template(e.to_string()))?;
        let values = context! { messages, add_generation_prompt => true };
        template.render(values).map_err(|e| PromptError::Template(e.to_string()))
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, tokens: &mut Vec<u32>) -> Result<(), PromptError> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|e| PromptError::Tokenizer(e.to_string()))?;
    tokens.extend_from_slice(encoding.get_ids());
    Ok(())
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::I32(n) => Some(i64::from(*n)),
        Value::U32(n) => Some(i64::from(*n)),
        Value::I64(n) => Some(*n),
        _ => None,
    }
}

fn texts<'a>(file: &'a Gguf, key: &str) -> Result<Vec<&'a str>, LoadError> {
    let texts = file.list(key)?.iter().map(|value| value.to_string().map(String::as_str));
    texts.collect::<Result<_, _>>().map_err(|_| file.invalid(format!("{key} holds something that is no text")))
}

/// Two tokenizers of the same vocabulary: one that knows the control tokens, and one that does not.
fn tokenizers(file: &Gguf, texts: &[&str], is_control: &[bool]) -> Result<(Tokenizer, Tokenizer), LoadError> {
    let vocabulary: HashMap<String, u32> = texts.iter().zip(0..).map(|(text, id)| ((*text).to_owned(), id)).collect();
    let merges = self::texts(file, "tokenizer.ggml.merges")?.into_iter().map(|merge| {
        let pair = merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        pair.ok_or_else(|| file.invalid(format!("merge {merge:?} is not a pair")))
    });
    let merges: Vec<(String, String)> = merges.collect::<Result<_, _>>()?;
    let invalid = |e: tokenizers::Error| file.invalid(format!("its vocabulary does not fit together: {e}"));
    let bpe =
        BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(invalid)?);
    // Digits one by one, then words with their leading space, spelled in the letters of GPT-2.
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        Digits::new(true).into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    let plain = tokenizer.clone();
    let controls = texts.iter().zip(is_control).filter(|(_, control)| **control);
    let controls: Vec<AddedToken> = controls.map(|(text, _)| AddedToken::from(*text, true).normalized(false)).collect();
    tokenizer.add_special_tokens(controls).map_err(invalid)?;
    Ok((tokenizer, plain))
}

/// The letter that stands for each byte in vocabularies of this kind (after GPT-2's `bytes_to_unicode`): itself if it is
/// printable, else the next free one from U+0100.
fn letters() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|&byte| !printable(byte)).zip(0x100_u32..);
    let others = others.filter_map(|(byte, code)| Some((char::from_u32(code)?, byte)));
    (0..=u8::MAX).filter(|&byte| printable(byte)).map(|byte| (char::from(byte), byte)).chain(others).collect()
}

/// The byte a letter stands for; a letter that stands for none is written as itself.
fn spelled(letters: &HashMap<char, u8>, c: char) -> Vec<u8> {
    match letters.get(&c) {
        Some(&byte) => vec![byte],
        None => c.to_string().into_bytes(),
    }
}
