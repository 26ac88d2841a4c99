//! Traces: where the time of a request went, as spans for an OpenTelemetry collector.
//!
//! A request that is sampled gets a *root*: a span whose id goes with the request through shards, rings and the inference
//! stage as one number; 0 means that nobody asks. Each core has a [`Tracer`], which decides at the door which requests are
//! sampled and puts what is measured of them on a ring ([`record::Record`]). The exporter is two ordinary threads: one
//! joins records to traces and makes batches of them, one sends the batches by HTTP.
//!
//! Everything is bounded, and what finds no room is counted and forgotten: a collector that is slow, broken or gone costs
//! spans and nothing else. Without an endpoint in the configuration there are no threads and no rings, and a request costs
//! one comparison.
//!
//! Spans name operations, stages, the tenant, the model and numbers of tokens. They name no channel and no user, and hold
//! nothing of bodies, prompts or tokens.

pub mod config;
mod counters;
mod exporter;
mod joiner;
mod otlp;
mod record;
mod sampling;
mod sender;
mod tracer;

#[cfg(test)]
mod tests;

pub use config::{TraceConfig, TraceConfigError};
pub(crate) use exporter::{Exporter, ExporterError};
pub(crate) use record::GenerationRecord;
pub(crate) use tracer::Tracer;
