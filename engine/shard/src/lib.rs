//! How one core runs the domain: a deterministic state machine, sans I/O.
//!
//! [`Shard`] is one core's state. Its shell feeds it [`Input`]s and carries out its [`Output`]s; nothing else goes in or
//! out, so that the same inputs always give the same outputs, on a core and in the simulation.
//!
//! What is absent: no clock, no randomness, no I/O, no threads, no hash order. The shard does not know what stands behind
//! the log (memory, disk, replicas) nor what runs the models.
#![forbid(unsafe_code)]

mod contract;
mod counters;
mod directory;
mod documents;
mod embedding;
mod fan;
mod generations;
mod log;
mod members;
mod owner;
mod presence;
mod quota;
mod routing;
mod session;
mod shard;

pub use contract::{
    AttachResult, AuditEvent, InferenceCommand, InferenceEvent, Input, Link, Now, Opening, Origin, Output,
    OwnerMessage, PeerMessage, ReadId, SessionMessage, Submit, Ticket,
};
pub use counters::{Counters, Rejects, Sample, Span, Stage};
pub use fan::FanId;
pub use quota::{Holder, Resource, Spent};
pub use routing::Routed;
pub use shard::{Config, Shard};

#[cfg(test)]
mod tests;
