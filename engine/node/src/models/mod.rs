//! The models there are, wherever they run: what is known of each, and what cores are told of it.
//!
//! [`registry`] holds what was configured and loaded, and what became of requests, counted by cores without locks. [`watch`]
//! is a thread that makes of it what the router needs: who is well, and how long who takes.

pub(crate) mod registry;

pub(crate) use registry::{Entry, Gauges, Kind, Outcome, Place, Registry, RegistryError, Served, ServedModels, State};
