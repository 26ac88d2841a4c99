//! Who runs next: continuous batching, KV blocks, prefix cache, fairness, credit.
//!
//! The [`Scheduler`] decides, step by step, which tokens of which sequences a model computes, and in which blocks of KV
//! memory. It knows token ids, blocks and credit, and nothing of text, weights or devices. It is deterministic: it has no
//! clock, no randomness, and the same inputs give the same steps.
#![forbid(unsafe_code)]

mod blocks;
mod contract;
mod counters;
mod fair;
mod plan;
mod scheduler;
mod sequence;

#[cfg(test)]
mod tests;

pub use contract::{Config, Input, Outcome, Output, Sampled, Submit};
pub use counters::Counters;
pub use plan::{BlockCopy, Part, Row, Step};
pub use scheduler::Scheduler;
pub use sequence::{End, Outlet, SequenceId};
pub use thalweg_protocol::generation::Priority;
