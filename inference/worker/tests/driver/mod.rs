//! Runs sequences through a model without a scheduler: blocks are handed out here, in an order that is not theirs.

#![allow(dead_code, reason = "every test uses a part")]

use std::path::PathBuf;
use std::sync::Arc;

use thalweg_protocol::limits::KV_BLOCK_TOKENS;
use thalweg_scheduler::{BlockCopy, Part, Row, SequenceId, Step};
use thalweg_worker::model::{Model, Runner};
use thalweg_worker::team::Team;

/// The file of the model the tests run.
pub(crate) fn model_path() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("thalweg/models")
    };
    let path = std::env::var_os("THALWEG_MODELS").map_or_else(cache, PathBuf::from).join("smollm2-135m/model.gguf");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo run --release -- models pull smollm2-135m` first",
        path.display()
    );
    path
}

/// Which rows of a chunk want logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Nothing,
    Last,
    All,
}

/// Tokens of a sequence to compute, from `start` on.
pub(crate) struct Chunk<'a> {
    pub(crate) sequence: usize,
    pub(crate) start: usize,
    pub(crate) tokens: &'a [u32],
    pub(crate) wants: Wants,
}

/// A runner and the blocks of its sequences.
pub(crate) struct Driver {
    runner: Box<dyn Runner>,
    /// Logits of a row.
    pub(crate) vocabulary: usize,
    /// The blocks of each sequence.
    tables: Vec<Vec<u32>>,
    free: Vec<u32>,
    copies: Vec<BlockCopy>,
}

impl Driver {
    /// A driver of up to `sequences` sequences with `blocks` blocks between them.
    pub(crate) fn new(model: &Arc<impl Model + 'static>, sequences: usize, blocks: usize, team: Team) -> Self {
        let vocabulary = model.shape().vocabulary;
        let runner = Arc::clone(model).runner(blocks, 160, Arc::new(team));
        // 7 has no divisor in common with what the tests ask for but by mistake; then blocks would be missing.
        let free: Vec<u32> = (0..blocks as u32).map(|n| n * 7 % blocks as u32).collect();
        assert!(!blocks.is_multiple_of(7), "blocks are given out by sevens");
        Self { runner, vocabulary, tables: vec![Vec::new(); sequences], free, copies: Vec::new() }
    }

    /// Computes the chunks in one step: the logits of all rows that wanted them, in order.
    pub(crate) fn step(&mut self, chunks: &[Chunk<'_>]) -> &[f32] {
        let mut step = Step { copies: std::mem::take(&mut self.copies), ..Step::default() };
        for (index, chunk) in chunks.iter().enumerate() {
            let table = &mut self.tables[chunk.sequence];
            let blocks = (chunk.start + chunk.tokens.len()).div_ceil(KV_BLOCK_TOKENS);
            while table.len() < blocks {
                table.push(self.free.pop().expect("blocks enough"));
            }
            step.parts.push(Part {
                id: SequenceId(chunk.sequence as u64),
                first: step.rows.len(),
                count: chunk.tokens.len(),
                table: step.tables.len(),
                blocks,
                wants_logits: chunk.wants != Wants::Nothing,
                index: 0,
            });
            step.tables.extend_from_slice(&table[..blocks]);
            let row = |(n, &token): (usize, &u32)| Row {
                part: index as u32,
                position: (chunk.start + n) as u32,
                token,
                wants_logits: match chunk.wants {
                    Wants::Nothing => false,
                    Wants::Last => n + 1 == chunk.tokens.len(),
                    Wants::All => true,
                },
            };
            step.rows.extend(chunk.tokens.iter().enumerate().map(row));
        }
        self.runner.step(&step);
        self.runner.logits()
    }

    /// One sequence, in chunks of at most 128: the logits after each token that `wants` them.
    pub(crate) fn whole(&mut self, sequence: usize, tokens: &[u32], wants: Wants) -> Vec<f32> {
        let mut all = Vec::new();
        for (n, chunk) in tokens.chunks(128).enumerate() {
            let is_last = (n + 1) * 128 >= tokens.len();
            let wants = if is_last || wants == Wants::All { wants } else { Wants::Nothing };
            all.extend_from_slice(self.step(&[Chunk { sequence, start: n * 128, tokens: chunk, wants }]));
        }
        all
    }

    /// Gives a sequence's blocks back.
    pub(crate) fn forget(&mut self, sequence: usize) {
        self.free.append(&mut self.tables[sequence]);
    }

    /// Lets `to`, which is empty, begin as the first `tokens` tokens of `from` did: whole blocks are shared, and what is
    /// left is copied with the next step.
    pub(crate) fn share(&mut self, from: usize, to: usize, tokens: usize) {
        let (whole, rest) = (tokens / KV_BLOCK_TOKENS, tokens % KV_BLOCK_TOKENS);
        let shared = self.tables[from][..whole].to_vec();
        self.tables[to] = shared;
        if rest > 0 {
            let block = self.free.pop().expect("blocks enough");
            self.tables[to].push(block);
            self.copies.push(BlockCopy { from: self.tables[from][whole], to: block, tokens: rest as u32 });
        }
    }
}

/// Index of the largest.
pub(crate) fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).expect("logits")
}

/// How far the largest is above the second largest.
pub(crate) fn margin(logits: &[f32]) -> f32 {
    let most = best(logits);
    let others = logits.iter().enumerate().filter(|&(n, _)| n != most).map(|(_, &logit)| logit);
    logits[most] - others.fold(f32::NEG_INFINITY, f32::max)
}

/// Logarithm of the probability of `token`.
pub(crate) fn log_likelihood(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    f64::from(logits[token as usize] - most) - sum.ln()
}
