//! The forward pass against llama.cpp's, whose figures lie in `data/llama_cpp.json`, made by `bench/peers/llm/perplexity.py`.
//!
//! Both quantise activations to 8 bits, but in other blocks and other places, so that their logits differ by noise: texts
//! are the same as long as that does not decide.

mod driver;

use std::sync::Arc;

use driver::{Chunk, Driver, Wants, best, log_likelihood, model_path};
use serde::Deserialize;
use thalweg_worker::decoder::Decoder;
use thalweg_worker::gguf::Gguf;
use thalweg_worker::kernel::Kernels;
use thalweg_worker::llama;
use thalweg_worker::team::Team;
use thalweg_worker::tokenizer::Vocabulary;

/// How far our perplexity may be from llama.cpp's, as a part of it.
const PERPLEXITY_OFF_MAX: f64 = 0.01;
/// Where llama.cpp's likeliest token is further above the second than this, in logits, ours is the same.
const MARGIN: f32 = 1.0;

#[derive(Deserialize)]
struct Recorded {
    tokens: Vec<u32>,
    perplexity: f64,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    /// How far the logit of each token was above the second largest.
    margins: Vec<f32>,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("data/llama_cpp.json")).expect("as its script writes it")
}

fn load() -> (Arc<Decoder>, Vocabulary) {
    let file = Gguf::open(&model_path()).expect("opens");
    let model = llama::load(&file, Kernels::choose().expect("kernels")).expect("loads");
    (Arc::new(model), Vocabulary::load(&file).expect("loads"))
}

#[test]
fn the_perplexity_of_a_text_is_llama_cpps() {
    let (model, vocabulary) = load();
    let recorded = recorded();
    let tokens = vocabulary.encode(include_str!("data/harbour.txt")).expect("tokens");
    assert_eq!(tokens, recorded.tokens, "the tokens of the text");
    let mut driver = Driver::new(&model, 1, 13, Team::alone());
    let (mut sum, mut at) = (0.0, 0);
    while at + 1 < tokens.len() {
        let chunk = &tokens[at..tokens.len().min(at + 128)];
        let vocabulary = driver.vocabulary;
        let logits = driver.step(&[Chunk { sequence: 0, start: at, tokens: chunk, wants: Wants::All }]);
        for (logits, &next) in logits.chunks_exact(vocabulary).zip(&tokens[at + 1..]) {
            sum += log_likelihood(logits, next);
        }
        at += chunk.len();
    }
    let perplexity = (-sum / (tokens.len() - 1) as f64).exp();
    let off = perplexity / recorded.perplexity - 1.0;
    println!("perplexity {perplexity:.4}, llama.cpp {:.4}: {:+.2} %", recorded.perplexity, 100.0 * off);
    assert!(off.abs() < PERPLEXITY_OFF_MAX, "perplexity {perplexity}, llama.cpp {}", recorded.perplexity);
}

/// At every position where llama.cpp was sure, ours draws its token; and a text of ours is llama.cpp's at least up to where
/// it was not.
#[test]
fn greedy_texts_are_llama_cpps_where_it_is_sure() {
    let (model, vocabulary) = load();
    let (mut sure, mut equal, mut free, mut all) = (0, 0, 0, 0);
    for Greedy { prompt, prompt_tokens, tokens, margins } in recorded().greedy {
        assert_eq!(vocabulary.encode(&prompt).expect("tokens"), prompt_tokens, "the tokens of {prompt:?}");
        let mut driver = Driver::new(&model, 1, 4, Team::alone());
        let fed = [&prompt_tokens[..], &tokens[..tokens.len() - 1]].concat();
        let logits = driver.whole(0, &fed, Wants::All);
        let rows = logits.chunks_exact(driver.vocabulary).skip(prompt_tokens.len() - 1);
        let drawn: Vec<u32> = rows.map(|logits| best(logits) as u32).collect();
        for (n, (&ours, &theirs)) in drawn.iter().zip(&tokens).enumerate() {
            if margins[n] > MARGIN {
                assert_eq!(ours, theirs, "token {n} after {prompt:?}, margin {}", margins[n]);
                sure += 1;
            }
            equal += usize::from(ours == theirs);
        }
        free += drawn.iter().zip(&tokens).take_while(|(ours, theirs)| ours == theirs).count();
        all += tokens.len();
    }
    println!(
        "{all} tokens: {equal} equal given llama.cpp's text before, all {sure} it was sure of; {free} in texts of our own"
    );
    assert!(
        sure > all / 3 && equal * 100 >= all * 90,
        "{equal} of {all} tokens are llama.cpp's, it was sure of {sure}"
    );
}
