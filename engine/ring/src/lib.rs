//! Bounded lock-free rings between stages, and the bell that wakes a parked one.
//!
//! Every hand-over between two threads of Thalweg goes through a [`ring`]: one producer, one consumer, a fixed number of
//! slots, no lock, no allocation after the first. A full ring refuses, and what is refused is the producer's to keep:
//! that is how backpressure travels. A consumer with nothing to do may park; producers ring its [`Bell`], which costs
//! one relaxed load while the consumer is awake.
//!
//! All `unsafe` of the in-process hand-over is in this crate. Its tests run under loom with
//! `RUSTFLAGS="--cfg loom" cargo test --release -p thalweg-ring`.

mod bell;
mod spsc;

pub use bell::Bell;
pub use spsc::{Consumer, Producer, ring};
