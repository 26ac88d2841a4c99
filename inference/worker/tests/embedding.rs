//! Sentence vectors against candle in f32, alone and beside each other, and files that are not what they should be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor, safetensors};
use thalweg_worker::bert::{Bert, Dimensions, Encoder};
use thalweg_worker::embed::{TextEncoder, TextError};
use thalweg_worker::kernel::{Isa, Kernels};

/// The weights that `thalweg models pull minilm-l6` fetches, if it did.
fn pulled() -> Option<PathBuf> {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("thalweg/models");
    let models = std::env::var_os("THALWEG_MODELS").map_or_else(cache, PathBuf::from);
    let path = models.join("minilm-l6/model.safetensors");
    if !path.is_file() {
        println!("skipped: {} is missing; `thalweg models pull minilm-l6` fetches it", path.display());
        return None;
    }
    Some(path)
}

/// A directory of this test's own, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("thalweg-embedding-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same model in candle's operations, in f32, for one text.
fn reference(weights: &HashMap<String, Tensor>, d: &Dimensions, tokens: &[u32]) -> Result<Vec<f32>> {
    let weight = |name: &str| weights[name].to_dtype(DType::F32);
    let norm = |x: &Tensor, name: &str| {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(d.epsilon))?.sqrt()?;
        let x = x.broadcast_div(&scale)?.broadcast_mul(&weight(&format!("{name}.LayerNorm.weight"))?)?;
        x.broadcast_add(&weight(&format!("{name}.LayerNorm.bias"))?)
    };
    let linear = |x: &Tensor, name: &str| {
        x.matmul(&weight(&format!("{name}.weight"))?.t()?)?.broadcast_add(&weight(&format!("{name}.bias"))?)
    };
    let cpu = &Device::Cpu;
    let x = weight("embeddings.word_embeddings.weight")?.index_select(&Tensor::new(tokens, cpu)?, 0)?;
    let x = (x + weight("embeddings.position_embeddings.weight")?.narrow(0, 0, tokens.len())?)?;
    let x = x.broadcast_add(&weight("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?)?;
    let mut x = norm(&x, "embeddings")?;
    for layer in 0..d.layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let [q, k, v] = ["query", "key", "value"].map(|part| linear(&x, &name(&format!("attention.self.{part}"))));
        let (q, k, v) = (q?, k?, v?);
        let mut heads = Vec::new();
        for head in 0..d.heads() {
            let of = |t: &Tensor| t.narrow(1, head * d.head_width, d.head_width)?.contiguous();
            let scores = (of(&q)?.matmul(&of(&k)?.t()?)? / (d.head_width as f64).sqrt())?;
            let e = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
            heads.push(e.broadcast_div(&e.sum_keepdim(1)?)?.matmul(&of(&v)?)?);
        }
        let attended = linear(&Tensor::cat(&heads, 1)?, &name("attention.output.dense"))?;
        x = norm(&(x + attended)?, &name("attention.output"))?;
        let inner = linear(&x, &name("intermediate.dense"))?.gelu_erf()?;
        x = norm(&(&x + linear(&inner, &name("output.dense"))?)?, &name("output"))?;
    }
    let mean = x.mean(0)?;
    mean.broadcast_div(&mean.sqr()?.sum_all()?.sqrt()?)?.to_vec1()
}

/// What an encoder gives for texts that it computes together.
fn vectors(bert: &Arc<Bert>, texts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut encoder = Encoder::new(Arc::clone(bert));
    encoder.begin(texts);
    while encoder.advance() {}
    encoder.vectors().chunks_exact(bert.dimensions().width).map(<[f32]>::to_vec).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A model of made-up weights: two layers of width 384, 50 tokens, 300 positions.
fn made_up(path: &Path) -> Result<()> {
    let cpu = &Device::Cpu;
    let (width, hidden) = (384, 128);
    let mut seed = 1_u32;
    let mut tensor = |name: &str, dims: &[usize], center: f32, spread: f32| {
        let mut draw = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            center + ((seed >> 8) as f32 / (1 << 23) as f32 - 1.0) * spread
        };
        let count = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|_| draw()).collect();
        Ok::<_, candle_core::Error>((name.to_owned(), Tensor::from_vec(values, dims, cpu)?))
    };
    let mut all = vec![
        tensor("embeddings.word_embeddings.weight", &[50, width], 0.0, 1.0)?,
        tensor("embeddings.position_embeddings.weight", &[300, width], 0.0, 0.3)?,
        tensor("embeddings.token_type_embeddings.weight", &[2, width], 0.0, 0.3)?,
        tensor("embeddings.LayerNorm.weight", &[width], 1.0, 0.3)?,
        tensor("embeddings.LayerNorm.bias", &[width], 0.0, 0.3)?,
    ];
    for layer in 0..2 {
        let parts = [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", hidden, width),
            ("output.dense", width, hidden),
        ];
        for (part, outputs, inputs) in parts {
            all.push(tensor(&format!("encoder.layer.{layer}.{part}.weight"), &[outputs, inputs], 0.0, 0.1)?);
            all.push(tensor(&format!("encoder.layer.{layer}.{part}.bias"), &[outputs], 0.0, 0.1)?);
        }
        for part in ["attention.output", "output"] {
            all.push(tensor(&format!("encoder.layer.{layer}.{part}.LayerNorm.weight"), &[width], 1.0, 0.3)?);
            all.push(tensor(&format!("encoder.layer.{layer}.{part}.LayerNorm.bias"), &[width], 0.0, 0.3)?);
        }
    }
    safetensors::save(&all.into_iter().collect::<HashMap<_, _>>(), path)
}

/// Needs no model. Lengths from one token to more than a unit of rows, and more than a block of positions.
#[test]
fn made_up_weights_agree_with_candle() {
    let directory = Directory::new("made-up");
    let path = directory.0.join("model.safetensors");
    made_up(&path).expect("written");
    let weights = safetensors::load(&path, &Device::Cpu).expect("candle reads it");
    let texts: Vec<Vec<u32>> =
        [1, 2, 15, 16, 33, 300].iter().map(|&n| (0..n).map(|at| (at * 31 + n) % 50).collect()).collect();
    let slices: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let bert = Arc::new(Bert::open(&path, Kernels::new(isa).expect("available")).expect("loads"));
        let together = vectors(&bert, &slices);
        for (text, got) in slices.iter().zip(&together) {
            let expected = reference(&weights, bert.dimensions(), text).expect("candle computes");
            let cosine = cosine(got, &expected);
            assert!(cosine > 0.999, "{isa}, {} tokens: cosine {cosine}", text.len());
            assert!((got.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5, "its length is 1");
            assert_eq!(
                vectors(&bert, &[text]),
                std::slice::from_ref(got),
                "{isa}, {} tokens: equal bits alone",
                text.len()
            );
        }
    }
}

/// Sentences of several kinds: prose, code, other scripts, one word, one that fills the model.
const TEXTS: &[&str] = &[
    "How do I reset my password?",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "fn main() { println!(\"{}\", std::env::args().count()); }",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "東京は日本の首都です。",
    "no",
    "",
    "Thalweg: the line of lowest elevation within a valley or watercourse. ",
];

#[test]
fn pulled_weights_agree_with_candle() {
    let Some(path) = pulled() else { return };
    let encoder = TextEncoder::load(&path, Kernels::choose().expect("kernels")).expect("loads");
    let weights = safetensors::load(&path, &Device::Cpu).expect("candle reads it");
    let long = TEXTS[7].repeat(13);
    let texts = TEXTS.iter().copied().chain([long.as_str()]);
    let tokens: Vec<Vec<u32>> = texts.map(|text| encoder.tokenise(text).expect("tokens")).collect();
    let slices: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let mut worst = 1.0_f64;
    for (text, got) in slices.iter().zip(vectors(encoder.bert(), &slices)) {
        let expected = reference(&weights, encoder.bert().dimensions(), text).expect("candle computes");
        worst = worst.min(cosine(&got, &expected));
    }
    println!("lowest cosine {worst}; the longest text has {} tokens", slices[8].len());
    assert!(worst >= 0.999, "lowest cosine {worst}");
}

/// What `tokenizers` of the reference implementation gives for the same texts.
#[test]
fn texts_are_tokenised_as_the_model_was_trained() {
    let Some(path) = pulled() else { return };
    let encoder = TextEncoder::load(&path, Kernels::choose().expect("kernels")).expect("loads");
    let check = |text: &str, expected: std::result::Result<&[u32], TextError>| {
        assert_eq!(encoder.tokenise(text).as_deref(), expected.as_ref().map(|tokens| *tokens), "{text:?}");
    };
    check("", Ok(&[101, 102]));
    check("Hello, World!", Ok(&[101, 7592, 1010, 2088, 999, 102]));
    check("Zwölf", Ok(&[101, 1062, 12155, 10270, 102]));
    check(&"no ".repeat(255), Err(TextError::TooLong));
    assert_eq!(encoder.tokenise(&"no ".repeat(254)).expect("fits").len(), 256);
    check(&"no ".repeat(20_000), Err(TextError::TooLong));
    // One word too long for the vocabulary, and more blanks than anything is made of.
    check(&"x".repeat(60_000), Ok(&[101, 100, 102]));
    check(&format!("{}no", " ".repeat(60_000)), Ok(&[101, 2053, 102]));
}

#[test]
fn wrong_files_are_refused_by_name() {
    let directory = Directory::new("wrong");
    let kernels = Kernels::choose().expect("kernels");
    let path = directory.0.join("model.safetensors");
    let check = |expected: &[&str]| {
        let error = TextEncoder::load(&path, kernels).err().expect("refused").to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    check(&["model.safetensors", "models pull"]);
    std::fs::write(&path, b"GGUF and nothing else").expect("written");
    check(&["model.safetensors", "cut off or damaged"]);
    made_up(&path).expect("written");
    check(&["tokenizer.json", "models pull"]);
    std::fs::write(directory.0.join("tokenizer.json"), b"{}").expect("written");
    check(&["tokenizer.json", "no tokenizer"]);
    let mut weights = safetensors::load(&path, &Device::Cpu).expect("candle reads it");
    let broken = weights["encoder.layer.1.output.dense.weight"].narrow(0, 0, 64).and_then(|t| t.contiguous());
    weights.insert("encoder.layer.1.output.dense.weight".into(), broken.expect("cut"));
    safetensors::save(&weights, &path).expect("written");
    check(&["encoder.layer.1.output.dense.weight", "[64, 128]", "[384, 128]"]);
    weights.retain(|name, _| !name.contains("word_embeddings"));
    safetensors::save(&weights, &path).expect("written");
    check(&["embeddings.word_embeddings.weight", "missing"]);
}
