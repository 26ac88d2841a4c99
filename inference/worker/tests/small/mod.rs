//! Small models of random weights, one of each architecture, each with a vocabulary of its kind: the same every time.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

const WIDTH: usize = 64;
const HIDDEN: usize = 96;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// What architectures differ in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Small {
    pub(crate) architecture: &'static str,
    /// How its vocabulary cuts texts.
    pub(crate) pre: &'static str,
    /// Whether halves of a head are rotated, and not neighbours.
    pub(crate) halves: bool,
    pub(crate) head_width: usize,
    pub(crate) biases: bool,
    pub(crate) head_norms: bool,
    /// Whether the embedding is the output matrix too.
    pub(crate) tied: bool,
    /// Whether slow rotations are stretched, and all positions divided, as in models for longer contexts.
    pub(crate) stretched: bool,
    pub(crate) template: &'static str,
}

/// One of each.
pub(crate) const ALL: [Small; 3] = [
    Small {
        architecture: "llama",
        pre: "llama-bpe",
        halves: false,
        head_width: 16,
        biases: false,
        head_norms: false,
        tied: false,
        stretched: true,
        template: LLAMA3,
    },
    Small {
        architecture: "qwen2",
        pre: "qwen2",
        halves: true,
        head_width: 16,
        biases: true,
        head_norms: false,
        tied: true,
        stretched: false,
        template: CHATML,
    },
    Small {
        architecture: "qwen3",
        pre: "qwen2",
        halves: true,
        head_width: 32,
        biases: false,
        head_norms: true,
        tied: false,
        stretched: false,
        template: THINKING,
    },
];

/// As in Llama 3, in what it wants of the engine.
const LLAMA3: &str = "{%- for message in messages %}
    {%- set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\n\n' }}
{%- endif %}
";

/// Blocks on lines of their own leave nothing behind.
const CHATML: &str = r"{% if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nBe kind.<|im_end|>\n' -}}
{% endif %}
{% for message in messages %}
    {% if message.tool_calls %}
        {{- raise_exception('no tools') }}
    {% endif %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
";

/// As in Qwen3, in what it wants of the engine: answers from the last question on keep their thoughts, others lose them.
const THINKING: &str = r"{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == 'user' and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set thoughts = '' %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
        {%- set thoughts = message.reasoning_content %}
    {%- elif message.role == 'assistant' and '</think>' in content %}
        {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if thoughts and loop.index0 > ns.last %}
        {{- '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

/// What is put together, the first first: enough that every rule by which texts are cut shows in the tokens.
#[rustfmt::skip]
const MERGES: &[(&[u8], &[u8])] = &[
    (b" ", b" "), (b"  ", b"  "), (b"\n", b"\n"), (b"\r", b"\n"), (b" ", b"\n"), (b"\t", b"\n"), (b"\t", b"\t"), (b"\n", b" "),
    (b"1", b"2"), (b"12", b"3"), (b"123", b"4"), (b" ", b"1"), (b" ", b"12"), (b"4", b"5"),
    (b"'", b"s"), (b"'", b"S"), (b"'", b"t"), (b"'", b"l"), (b"'l", b"l"), (b"s", b"a"), (b"n", b"'"), (b" ", b"'"),
    (b"!", b"!"), (b"!", b"\n"), (b"!!", b"\n\n"), (b" ", b"!"), (b".", b"\n"), (b"\n", b"!"), (b"-", b"-"),
    (b"\xc3", b"\xa9"), (b"\xc3\xa9", b"a"), (b"a", b"\xc3\xa9"), (b"\xcc", b"\x81"), (b"x", b"\xcc\x81"), (b"\xcc\x81", b"y"),
    (b"\xc2", b"\xa0"), (b"\xc2\xa0", b"a"), (b"\xc2", b"\xb2"), (b"\xc2\xb2", b"a"), (b"1", b"\xc2\xb2"),
    (b"\t", b"a"), (b"-", b"a"), (b"(", b"a"), (b" ", b"a"), (b" ", b"("), (b" ", b"t"), (b"a", b"b"), (b"b", b"1"), (b"1", b"b"),
    (b"\xe6", b"\x97"), (b"\xe6\x97", b"\xa5"), (b"\xe6\x97\xa5", b"1"), (b"a", b"!"), (b"a", b" "), (b"t", b"h"), (b"th", b"e"),
    (b" ", b"the"), (b"e", b"r"), (b"i", b"n"), (b"o", b"n"), (b" a", b"n"), (b" an", b"d"),
];

/// Texts in which every rule matters.
pub(crate) const TEXTS: &[&str] = &[
    "the thin man and  the   other    one",
    "it's IT'S he'll HE'LL don't 's 'sab 'stab we're",
    "1234512345 12 a1b2ab12 1\u{b2}2 \u{662}\u{663}",
    "ab\tab\t\tab (ab) -ab --ab \u{a0}ab\u{a0} ab",
    "a!! !!\n\n!\n a.\n\n\r\n \n\t\n  \n   ab",
    "\u{e9}ab ab\u{e9} x\u{301}y \u{65e5}1\u{65e5} \u{1f980}\u{1f1eb}\u{1f1f7} \u{3000}\u{65e5}\u{200b}a",
    "\n\n\n   \n\n 1\n",
    "   ",
    "trailing   ",
    "<think>ab</think> a <thin k>",
];

/// Tokens after those of bytes and merges, and what `token_type` says of them.
const EXTRA: [(&str, i32); 11] = [
    ("<|endoftext|>", 3),
    ("<|im_start|>", 3),
    ("<|im_end|>", 3),
    ("<|begin|>", 3),
    ("<|start|>", 3),
    ("<|end|>", 3),
    ("<|eot_id|>", 3),
    ("<think>", 4),
    ("</think>", 4),
    ("[PAD1]", 5),
    ("[PAD2]", 5),
];

/// Numbers in -1..1, of a name.
fn noise(count: usize, name: &str) -> Vec<f32> {
    let mut state = name.bytes().fold(7_u32, |state, byte| state.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Bytes in the letters of GPT-2: themselves if they can be printed, else the next free ones from U+0100.
fn letters(bytes: &[u8]) -> String {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=u8::MAX).filter(|byte| !printable(byte)).collect();
    let letter = |byte: &u8| match others.iter().position(|other| other == byte) {
        Some(at) => char::from_u32(0x100 + at as u32).expect("a letter"),
        None => char::from(*byte),
    };
    bytes.iter().map(letter).collect()
}

impl Small {
    fn texts(values: impl Iterator<Item = String>) -> Value {
        Value::Array(values.map(Value::String).collect())
    }

    fn vocabulary(&self) -> Vec<(String, i32)> {
        let bytes = (0..=u8::MAX).map(|byte| (letters(&[byte]), 1));
        let merged = MERGES.iter().map(|(a, b)| (letters(&[*a, *b].concat()), 1));
        bytes.chain(merged).chain(EXTRA.map(|(text, kind)| (text.to_owned(), kind))).collect()
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let tokens = self.vocabulary();
        let id = |wanted: &str| Value::U32(tokens.iter().position(|(text, _)| text == wanted).expect("known") as u32);
        let merges = MERGES.iter().map(|(a, b)| format!("{} {}", letters(a), letters(b)));
        let mut all = vec![
            ("general.architecture".to_owned(), Value::String(self.architecture.into())),
            (key("embedding_length"), Value::U32(WIDTH as u32)),
            (key("block_count"), Value::U32(LAYERS as u32)),
            (key("attention.head_count"), Value::U32(HEADS as u32)),
            (key("attention.head_count_kv"), Value::U32(KV_HEADS as u32)),
            (key("attention.key_length"), Value::U32(self.head_width as u32)),
            (key("attention.value_length"), Value::U32(self.head_width as u32)),
            (key("feed_forward_length"), Value::U32(HIDDEN as u32)),
            (key("context_length"), Value::U32(512)),
            (key("rope.freq_base"), Value::F32(if self.stretched { 500_000.0 } else { 1_000_000.0 })),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
            ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
            ("tokenizer.ggml.pre".into(), Value::String(self.pre.into())),
            (
                "tokenizer.ggml.token_type".into(),
                Value::Array(tokens.iter().map(|(_, kind)| Value::I32(*kind)).collect()),
            ),
            ("tokenizer.ggml.merges".into(), Self::texts(merges)),
            ("tokenizer.ggml.bos_token_id".into(), id("<|begin|>")),
            ("tokenizer.ggml.eos_token_id".into(), id("<|im_end|>")),
            ("tokenizer.chat_template".into(), Value::String(self.template.into())),
            ("tokenizer.ggml.tokens".into(), Self::texts(tokens.into_iter().map(|(text, _)| text))),
        ];
        if self.stretched {
            all.push((key("rope.scaling.type"), Value::String("linear".into())));
            all.push((key("rope.scaling.factor"), Value::F32(2.0)));
        } else {
            all.push(("tokenizer.ggml.add_bos_token".into(), Value::Bool(false)));
        }
        all
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let (all, kv, vocabulary) = (HEADS * self.head_width, KV_HEADS * self.head_width, self.vocabulary().len());
        let mut tensors = Vec::new();
        // Names that differ by architecture give weights that do.
        let mut put = |name: String, shape: &[usize], scale: f32, shift: f32| {
            let values = noise(shape.iter().product(), &format!("{} {name}", self.architecture));
            let values: Vec<f32> = values.iter().map(|value| value * scale + shift).collect();
            let values = Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor");
            let kind = if shape.len() == 2 { GgmlDType::F16 } else { GgmlDType::F32 };
            tensors.push((name, QTensor::quantize(&values, kind).expect("candle writes floats")));
        };
        let scale = |inputs: usize| 2.5 / (inputs as f32).sqrt();
        put("token_embd.weight".into(), &[vocabulary, WIDTH], 1.0, 0.0);
        put("output_norm.weight".into(), &[WIDTH], 0.5, 1.0);
        if !self.tied {
            put("output.weight".into(), &[vocabulary, WIDTH], scale(WIDTH), 0.0);
        }
        if self.stretched {
            put("rope_freqs.weight".into(), &[self.head_width / 2], 3.0, 4.0);
        }
        for layer in 0..LAYERS {
            let mut matrix = |part: &str, outputs: usize, inputs: usize| {
                put(format!("blk.{layer}.{part}.weight"), &[outputs, inputs], scale(inputs), 0.0);
            };
            matrix("attn_q", all, WIDTH);
            matrix("attn_k", kv, WIDTH);
            matrix("attn_v", kv, WIDTH);
            matrix("attn_output", WIDTH, all);
            matrix("ffn_gate", HIDDEN, WIDTH);
            matrix("ffn_up", HIDDEN, WIDTH);
            matrix("ffn_down", WIDTH, HIDDEN);
            for part in ["attn_norm", "ffn_norm"] {
                put(format!("blk.{layer}.{part}.weight"), &[WIDTH], 0.5, 1.0);
            }
            if self.biases {
                for (part, outputs) in [("attn_q", all), ("attn_k", kv), ("attn_v", kv)] {
                    put(format!("blk.{layer}.{part}.bias"), &[outputs], 0.7, 0.0);
                }
            }
            if self.head_norms {
                for part in ["attn_q_norm", "attn_k_norm"] {
                    put(format!("blk.{layer}.{part}.weight"), &[self.head_width], 0.5, 1.3);
                }
            }
        }
        tensors
    }

    /// What a token is called, those without text too.
    pub(crate) fn name_of(&self, token: u32) -> String {
        self.vocabulary()[token as usize].0.clone()
    }

    /// Writes the model into a folder.
    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.gguf", self.architecture));
        let (metadata, tensors) = (self.metadata(), self.tensors());
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = std::fs::File::create(&path).expect("a file");
        gguf_file::write(&mut file, &metadata, &tensors).expect("written");
        path
    }
}
