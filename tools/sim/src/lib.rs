//! Deterministic simulation of a node, by seed.
//!
//! [`simulate`] runs real shards, real frames and the real scheduler with a scripted model under a fake clock, with
//! clients that are cut at any byte, read slowly or not at all, and come back to another core. What they saw is judged by
//! the auditor of `thalweg-workload`, which knows nothing of the engine, and by checks of the simulation's own. The same
//! seed gives the same run, to the byte: see [`Report::hash`].
//!
//! What is absent: real time, threads, I/O, hash order. All chance comes from one generator that the seed starts.
#![forbid(unsafe_code)]

mod client;
mod disk;
mod faults;
mod lives;
mod node;
mod script;
mod stage;
mod storage;
mod trace;
mod truth;
mod world;

pub use faults::{FAULTS, Fault, Faults};
pub use world::{Options, Plant, Report, simulate};

#[cfg(test)]
mod tests;
