//! Tokens per second of the forward pass, by shape: kernels, attention over paged KV and the team. No scheduler, no sampler,
//! no ring.
//!
//! `cargo bench -p thalweg-micro --bench decode [-- --rounds N] [--only NAME] [--threads N] [--model PATH]`
//!
//! Shapes: `prefill/N` computes a prompt of N tokens (in chunks, as the scheduler cuts them) and its first logits;
//! `decode/bN` computes N sequences of 64 known tokens 32 tokens further. Prints one line per shape and round:
//! `NAME TOKENS_PER_SECOND`, then the medians. Logits are computed as in service; drawing from them is greedy and within the
//! time. Threads (1 unless said) are not pinned: `taskset` says where they run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use thalweg_protocol::limits::{KV_BLOCK_TOKENS, PREFILL_CHUNK_TOKENS};
use thalweg_scheduler::{Part, Row, SequenceId, Step};
use thalweg_worker::gguf::Gguf;
use thalweg_worker::kernel::Kernels;
use thalweg_worker::model::{self, Runner};
use thalweg_worker::team::Team;

const KNOWN: usize = 64;
const DRAWN: usize = 32;
/// Blocks of a sequence: for the longest prompt.
const BLOCKS: usize = 2_048 / KV_BLOCK_TOKENS;
const SHAPES: [(&str, usize); 8] = [
    ("prefill", 38),
    ("prefill", 128),
    ("prefill", 512),
    ("prefill", 2_048),
    ("decode", 1),
    ("decode", 8),
    ("decode", 16),
    ("decode", 32),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let number = |flag: &str, default: usize| after(flag).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (rounds, threads, only) = (number("--rounds", 5), number("--threads", 1), after("--only"));
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let models = std::env::var_os("THALWEG_MODELS").map_or_else(|| cache.join("thalweg/models"), PathBuf::from);
    let path = after("--model").map_or_else(|| models.join("smollm2-135m/model.gguf"), PathBuf::from);
    let start = Instant::now();
    let kernels = Kernels::choose().expect("the processor has the kernels asked for");
    let file = Gguf::open(&path).expect("run `thalweg models pull smollm2-135m`");
    let model = model::load(&file, kernels).expect("the model loads");
    eprintln!("{} kernels, {threads} threads, loaded in {} ms", kernels.isa(), start.elapsed().as_millis());
    let vocabulary = model.shape().vocabulary;
    let team = Arc::new(Team::new(threads, &[]).expect("threads"));
    let mut driver = Driver { runner: model.runner(32 * BLOCKS, 160, team), vocabulary };
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for round in 0..rounds {
        for (kind, size) in SHAPES {
            let name = if kind == "prefill" { format!("{kind}/{size}") } else { format!("{kind}/b{size}") };
            if only.is_some_and(|only| *only != name) {
                continue;
            }
            let rate = if kind == "prefill" { driver.prefill(size) } else { driver.decode(size) };
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

/// Adds rows of a sequence to a step. Sequence `n` has blocks `n · BLOCKS` and following.
fn add(step: &mut Step, sequence: usize, start: usize, tokens: &[u32], wants_logits: bool) {
    let (part, first, end) = (step.parts.len() as u32, step.rows.len(), start + tokens.len());
    let (table, blocks) = (step.tables.len(), end.div_ceil(KV_BLOCK_TOKENS));
    step.tables.extend((0..blocks).map(|block| (sequence * BLOCKS + block) as u32));
    for (position, &token) in (start..end).zip(tokens) {
        let wants_logits = wants_logits && position + 1 == end;
        step.rows.push(Row { part, position: position as u32, token, wants_logits });
    }
    let id = SequenceId(sequence as u64);
    step.parts.push(Part { id, first, count: tokens.len(), table, blocks, wants_logits, index: 0 });
}

struct Driver {
    runner: Box<dyn Runner>,
    vocabulary: usize,
}

impl Driver {
    fn prompt(&mut self, sequence: usize, tokens: usize) {
        for start in (0..tokens).step_by(PREFILL_CHUNK_TOKENS) {
            let end = tokens.min(start + PREFILL_CHUNK_TOKENS);
            let chunk: Vec<u32> = (start..end).map(|at| token(sequence, at)).collect();
            let mut step = Step::default();
            add(&mut step, sequence, start, &chunk, end == tokens);
            self.runner.step(&step);
        }
    }

    fn prefill(&mut self, tokens: usize) -> f64 {
        let start = Instant::now();
        self.prompt(0, tokens);
        tokens as f64 / start.elapsed().as_secs_f64()
    }

    fn decode(&mut self, batch: usize) -> f64 {
        let mut last = Vec::new();
        for sequence in 0..batch {
            self.prompt(sequence, KNOWN);
            last.push(best(self.runner.logits()));
        }
        let start = Instant::now();
        for at in KNOWN..KNOWN + DRAWN {
            let mut step = Step::default();
            for (sequence, &token) in last.iter().enumerate() {
                add(&mut step, sequence, at, &[token], true);
            }
            self.runner.step(&step);
            last = self.runner.logits().chunks_exact(self.vocabulary).map(best).collect();
        }
        (batch * DRAWN) as f64 / start.elapsed().as_secs_f64()
    }
}

fn best(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (n, &l)| if l > best.1 { (n, l) } else { best });
    best.0 as u32
}
