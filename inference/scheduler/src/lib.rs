//! Who runs next: continuous batching, KV slots, credit.
//!
//! The [`Scheduler`] decides, step by step, which tokens of which sequences a model computes. It knows token ids, slots
//! and credit, and nothing of text, weights or devices. It is deterministic: it has no clock, no randomness, and the same
//! inputs give the same steps.
#![forbid(unsafe_code)]

mod counters;
mod plan;
mod scheduler;
mod sequence;

#[cfg(test)]
mod tests;

pub use counters::Counters;
pub use plan::{Part, Row, Step};
pub use scheduler::{Config, Input, Outcome, Output, Sampled, Scheduler, Submit};
pub use sequence::{End, Outlet, SequenceId};
