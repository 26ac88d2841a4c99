//! How one machine runs shards: boot, core loop, log, mesh, drain.
//!
//! [`Node::start`] opens the data directory, loads the models, binds the sockets and starts one pinned thread per core;
//! each runs a glommio executor with one long-lived task, the core loop. It returns when every core has said that it is
//! ready.
//!
//! What is absent: the node knows no domain. It moves what shards, transports and the inference stage say to each other.

mod boot;
pub mod certificate;
mod clerk;
mod clock;
pub mod config;
mod connection;
mod core_loop;
pub mod disk;
pub mod doctor;
mod drain;
mod embed;
mod entrance;
mod error;
pub mod gate;
pub mod identity;
mod inference;
mod launch;
mod log;
pub mod memory;
mod mesh;
mod metrics;
mod models;
mod outlook;
mod park;
pub mod reload;
mod report;
mod sessions;
mod stats;
pub mod trace;
pub mod vitals;
mod web;

pub use boot::{Node, default_data_dir, run_until_signal};
pub use error::StartError;
