//! Tokens per second of the forward pass, on one thread, by shape.
//!
//! `cargo bench -p thalweg-micro --bench decode [-- --rounds N] [--only NAME]`
//!
//! Shapes: `prefill/N` computes a prompt of N tokens (in chunks, as the scheduler cuts them) and its first logits;
//! `decode/bN` computes N sequences of 64 known tokens 32 tokens further. Prints one line per shape and round:
//! `NAME TOKENS_PER_SECOND`, then the medians. Logits are computed as in service; drawing from them is greedy.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use thalweg_protocol::limits::PREFILL_CHUNK_TOKENS;
use thalweg_scheduler::Row;
use thalweg_worker::gguf::Gguf;
use thalweg_worker::kernel::Kernels;
use thalweg_worker::llama::Llama;
use thalweg_worker::model::{Model, Runner};

const KNOWN: usize = 64;
const DRAWN: usize = 32;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let rounds: usize = after("--rounds").and_then(|n| n.parse().ok()).unwrap_or(5);
    let only = after("--only");
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let models = std::env::var_os("THALWEG_MODELS").map_or_else(|| cache.join("thalweg/models"), PathBuf::from);
    let start = Instant::now();
    let kernels = Kernels::choose().expect("the processor has the kernels asked for");
    let file = Gguf::open(&models.join("smollm2-135m/model.gguf")).expect("run `thalweg models pull smollm2-135m`");
    let model = Arc::new(Llama::load(&file, kernels).expect("the model loads"));
    eprintln!("{} kernels, loaded in {} ms", kernels.isa(), start.elapsed().as_millis());
    let mut runner = Arc::clone(&model).runner(32, 160);
    let vocabulary = model.shape().vocabulary;
    let shapes = [("prefill", 38), ("prefill", 128), ("prefill", 512), ("decode", 1), ("decode", 8), ("decode", 16)];
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for round in 0..rounds {
        for (kind, size) in shapes {
            let name = if kind == "prefill" { format!("{kind}/{size}") } else { format!("{kind}/b{size}") };
            if only.is_some_and(|only| *only != name) {
                continue;
            }
            let rate =
                if kind == "prefill" { prefill(&mut *runner, size) } else { decode(&mut *runner, size, vocabulary) };
            println!("{name} {rate:.1}");
            if round == 0 {
                all.push((name, vec![rate]));
            } else if let Some((_, rates)) = all.iter_mut().find(|(other, _)| *other == name) {
                rates.push(rate);
            }
        }
    }
    for (name, mut rates) in all {
        rates.sort_by(f64::total_cmp);
        println!("median {name} {:.1}", rates[rates.len() / 2]);
    }
}

/// A token that depends on its place only.
fn token(sequence: usize, position: usize) -> u32 {
    ((sequence * 7919 + position * 104_729) % 40_000 + 100) as u32
}

fn prompt(runner: &mut dyn Runner, slot: usize, tokens: usize) {
    for start in (0..tokens).step_by(PREFILL_CHUNK_TOKENS) {
        let end = tokens.min(start + PREFILL_CHUNK_TOKENS);
        let row = |at: usize| Row {
            slot: slot as u32,
            position: at as u32,
            token: token(slot, at),
            wants_logits: at + 1 == tokens,
        };
        runner.step(&(start..end).map(row).collect::<Vec<_>>());
    }
}

fn prefill(runner: &mut dyn Runner, tokens: usize) -> f64 {
    runner.reserve(0, tokens);
    let start = Instant::now();
    prompt(runner, 0, tokens);
    tokens as f64 / start.elapsed().as_secs_f64()
}

fn decode(runner: &mut dyn Runner, batch: usize, vocabulary: usize) -> f64 {
    let mut last = Vec::new();
    for slot in 0..batch {
        runner.reserve(slot, KNOWN + DRAWN);
        prompt(runner, slot, KNOWN);
        last.push(best(runner.logits()));
    }
    let start = Instant::now();
    for step in 0..DRAWN {
        let row = |slot: usize| Row {
            slot: slot as u32,
            position: (KNOWN + step) as u32,
            token: last[slot],
            wants_logits: true,
        };
        runner.step(&(0..batch).map(row).collect::<Vec<_>>());
        last = runner.logits().chunks_exact(vocabulary).map(best).collect();
    }
    (batch * DRAWN) as f64 / start.elapsed().as_secs_f64()
}

fn best(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (n, &l)| if l > best.1 { (n, l) } else { best });
    best.0 as u32
}
