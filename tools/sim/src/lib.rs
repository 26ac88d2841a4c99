//! Deterministic simulation of a node and its lives, by seed.
//!
//! [`simulate`] runs real shards, real frames, the real log on a disk that loses, tears and rots, and the real scheduler with
//! a scripted model, under a fake clock. Clients are cut at any byte, read slowly or not at all, and come back to another
//! core, or to another life of the node: it is killed or loses its power at any operation of its disk, while it recovers too,
//! and starts again with another number of cores. What clients saw is judged by the auditor of `thalweg-workload`, which
//! knows nothing of the engine. What was recovered is compared, after each crash and at the end, with what all durable
//! records leave behind when they are applied one by one, down to the last message that can be read back. The same seed gives
//! the same run, to the byte: see [`Report::hash`].
//!
//! That defects are seen is known from [`Plant`]: each is made on purpose, in the simulation's own shell, and must be found.
//!
//! What is absent: real time, threads, I/O, hash order. All chance comes from generators that the seed starts.
#![forbid(unsafe_code)]

mod chronicle;
mod client;
mod disk;
mod faults;
mod limits;
mod lives;
mod models;
mod node;
mod script;
mod stage;
mod storage;
mod trace;
mod troubles;
mod truth;
mod world;
mod writers;

pub use faults::{FAULTS, Fault, Faults};
pub use world::{Options, Plant, Report, simulate};

#[cfg(test)]
mod tests;
