//! The load generator: what `thalweg bench` runs.
//!
//! Open loop by default: requests leave by a schedule that does not wait for answers, and a latency counts from the
//! *intended* time of sending. A system that stands still for a second is charged for everybody who wanted something in
//! that second, not only for the one who was first (coordinated omission). Closed loops are there too, for comparison.
//!
//! The generator is one thread that speaks the wire protocol over quinn-proto itself ([`swarm`]): an SDK on an async
//! runtime would add its own wake-ups to every figure. What is left of its own cost is measured and printed beside the
//! results: a floor (the same loop without a server), how late it sent, and the processor time it used.
//!
//! [`cli`] is the entry: arguments and [`cli::run`].

mod append;
pub mod cli;
mod clock;
mod connect;
mod docs;
mod error;
mod fanout;
mod floor;
mod latency;
mod ping;
mod presence;
mod process;
pub mod report;
mod swarm;
mod tokens;

pub use error::LoadError;
