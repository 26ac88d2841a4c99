//! Text to tokens and back: the vocabulary, merges and chat template that lie in a GGUF.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use minijinja::{Environment, context};
use thalweg_protocol::generation::{ChatMessage, Role};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Tokenizer};

use self::cut::Cut;
use crate::constraint::Grammars;
use crate::gguf::{Gguf, LoadError};

mod cut;

/// What a token is, as `tokenizer.ggml.token_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A piece of text, spelled in the letters of GPT-2.
    Ordinary,
    /// Steers and has no text.
    Control,
    /// A piece of text as it stands, which is found before anything is cut: marks that models write and read.
    Whole,
    /// Nothing: fills up the embedding, or stands for what is unknown.
    Void,
}

impl Kind {
    fn read(value: &Value) -> Self {
        match whole(value) {
            Some(3) => Self::Control,
            Some(4) => Self::Whole,
            Some(2 | 5) => Self::Void,
            _ => Self::Ordinary,
        }
    }
}

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
    /// What templates write where they want the begin token.
    begin_text: String,
    /// What they write where they want the end token.
    end_text: String,
    grammars: Grammars,
}

impl Vocabulary {
    /// Reads the vocabulary of `file`.
    pub fn load(file: &Gguf) -> Result<Self, LoadError> {
        let model = file.text("tokenizer.ggml.model")?;
        let pre = file.text("tokenizer.ggml.pre").unwrap_or("default");
        let cut = Cut::of(pre).filter(|_| model == "gpt2").ok_or_else(|| {
            file.invalid(format!("tokenizer {model:?} with pre-tokenizer {pre:?} is not known to this build"))
        })?;
        let texts = texts(file, "tokenizer.ggml.tokens")?;
        let types = file.list("tokenizer.ggml.token_type")?;
        if types.len() != texts.len() {
            return Err(file.invalid(format!("{} tokens have {} types", texts.len(), types.len())));
        }
        let kinds: Vec<Kind> = types.iter().map(Kind::read).collect();
        let (tokenizer, plain) = tokenizers(file, cut, &texts, &kinds)?;
        let letters = letters();
        let bytes = texts.iter().zip(&kinds).map(|(text, kind)| match kind {
            Kind::Control | Kind::Void => Box::default(),
            Kind::Whole => text.as_bytes().into(),
            Kind::Ordinary => text.chars().flat_map(|c| spelled(&letters, c)).collect(),
        });
        let bytes: Vec<Box<[u8]>> = bytes.collect();
        let of_kind =
            |kind| texts.iter().zip(0..).zip(&kinds).filter(move |(_, k)| **k == kind).map(|(token, _)| token);
        let controls = || of_kind(Kind::Control);
        let end = file.number("tokenizer.ggml.eos_token_id")? as u32;
        let mut ends = vec![end];
        // Chat models end a turn with a token of its own, which need not be the one that ends a document.
        let turn_ends = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>"];
        ends.extend(controls().filter(|(text, id)| turn_ends.contains(text) && *id != end).map(|(_, id)| id));
        let begins = file.value("tokenizer.ggml.add_bos_token").and_then(|v| v.to_bool().ok()).unwrap_or(cut.begins);
        let begin = match begins {
            true => Some(file.number("tokenizer.ggml.bos_token_id")? as u32),
            false => None,
        };
        let named =
            |key: &str| file.number(key).ok().and_then(|id| texts.get(id).copied()).unwrap_or_default().to_owned();
        let templates = environment(file.text("tokenizer.chat_template")?.to_owned())
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
            controls: controls().map(|(text, _)| (*text).to_owned()).collect(),
            ends,
            begin,
            // The begin token comes before all that the template writes.
            begin_text: if begins { String::new() } else { named("tokenizer.ggml.bos_token_id") },
            end_text: named("tokenizer.ggml.eos_token_id"),
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
        // Models that can think first and then answer are asked to answer.
        let values = context! {
            messages,
            add_generation_prompt => true,
            enable_thinking => false,
            bos_token => self.begin_text,
            eos_token => self.end_text,
        };
        template.render(values).map_err(|e| PromptError::Template(e.to_string()))
    }
}

/// What runs the template of a model: as the library does that it was written for.
fn environment(template: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut templates = Environment::new();
    templates.set_trim_blocks(true);
    templates.set_lstrip_blocks(true);
    templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    templates.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, text))
    });
    templates.add_template_owned("chat", template)?;
    Ok(templates)
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
fn tokenizers(file: &Gguf, cut: &Cut, texts: &[&str], kinds: &[Kind]) -> Result<(Tokenizer, Tokenizer), LoadError> {
    let vocabulary = texts.iter().zip(0..).map(|(text, id)| ((*text).to_owned(), id));
    let merges = self::texts(file, "tokenizer.ggml.merges")?.into_iter().map(|merge| {
        let pair = merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        pair.ok_or_else(|| file.invalid(format!("merge {merge:?} is not a pair")))
    });
    let merges: Vec<(String, String)> = merges.collect::<Result<_, _>>()?;
    let invalid = |e: tokenizers::Error| file.invalid(format!("its vocabulary does not fit together: {e}"));
    let bpe = BPE::builder().vocab_and_merges(vocabulary.collect::<tokenizers::models::bpe::Vocab>(), merges);
    let mut plain = Tokenizer::new(bpe.ignore_merges(cut.whole).build().map_err(invalid)?);
    cut.apply(&mut plain).map_err(invalid)?;
    let added = |wanted: Kind, special: bool| {
        let of_kind = texts.iter().zip(kinds).filter(move |(_, kind)| **kind == wanted);
        of_kind.map(move |(text, _)| AddedToken::from(*text, special).normalized(false)).collect::<Vec<_>>()
    };
    plain.add_tokens(added(Kind::Whole, false)).map_err(invalid)?;
    let mut tokenizer = plain.clone();
    tokenizer.add_special_tokens(added(Kind::Control, true)).map_err(invalid)?;
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
