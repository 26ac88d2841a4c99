//! Texts per second of the sentence encoder, on one thread, from text to vector (tokenising included).
//!
//! `cargo bench -p thalweg-micro --bench embed [-- --rounds N] [--seconds S] [--texts FILE] [--vectors] [--batch N,…]`
//!
//! Computes the lines of FILE (a question by default) in batches of N (1 and 32), again and again for S seconds a round.
//! Prints `batch/N TEXTS_PER_SECOND` for each round. `--vectors` prints the vector of each line as JSON instead.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thalweg_worker::bert::Encoder;
use thalweg_worker::embed::TextEncoder;
use thalweg_worker::kernel::Kernels;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let rounds: usize = after("--rounds").and_then(|n| n.parse().ok()).unwrap_or(5);
    let seconds: f64 = after("--seconds").and_then(|n| n.parse().ok()).unwrap_or(1.0);
    let batches = after("--batch").map_or("1,32", String::as_str);
    let file = after("--texts").map(|path| std::fs::read_to_string(path).expect("the texts are read"));
    let file = file.unwrap_or_else(|| "how do I change the password of my account".to_owned());
    let texts: Vec<&str> = file.lines().collect();
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let models = std::env::var_os("THALWEG_MODELS").map_or_else(|| cache.join("thalweg/models"), PathBuf::from);
    let kernels = Kernels::choose().expect("the processor has the kernels asked for");
    let model = TextEncoder::load(&models.join("minilm-l6/model.safetensors"), kernels);
    let model = model.expect("run `thalweg models pull minilm-l6`");
    let mut encoder = Encoder::new(Arc::clone(model.bert()));
    if arguments.iter().any(|a| a == "--vectors") {
        for text in texts {
            embed(&model, &mut encoder, &[text]);
            println!("{:?}", encoder.vectors());
        }
        return;
    }
    for size in batches.split(',').map(|n| n.parse::<usize>().expect("--batch takes numbers")) {
        let texts: Vec<&str> =
            texts.iter().copied().cycle().take(size.max(texts.len()).next_multiple_of(size)).collect();
        embed(&model, &mut encoder, &texts[..size]);
        for _ in 0..rounds {
            let (start, mut count) = (Instant::now(), 0);
            for batch in texts.chunks(size).cycle() {
                embed(&model, &mut encoder, batch);
                count += batch.len();
                if start.elapsed() > Duration::from_secs_f64(seconds) {
                    break;
                }
            }
            println!("batch/{size} {:.1}", count as f64 / start.elapsed().as_secs_f64());
        }
    }
}

fn embed(model: &TextEncoder, encoder: &mut Encoder, texts: &[&str]) {
    let tokens: Vec<Vec<u32>> = texts.iter().map(|text| model.tokenise(text).expect("texts that fit")).collect();
    encoder.begin(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>());
    while encoder.advance() {}
}
