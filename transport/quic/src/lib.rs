//! The QUIC connections of one core: datagrams ⇄ frames.
//!
//! [`Quic`] is a value you call: datagrams and the time go in, events and datagrams come out. It opens no socket, starts
//! no thread and reads no clock. TLS is rustls, the transport is quinn-proto; what is ours is the mapping between lanes
//! and frames, the queue in front of a lane that the transport has no room for, admission (retry, refusal, limits), and
//! bookkeeping that stays cheap with tens of thousands of idle connections.
//!
//! A *link* is a connection, a *lane* one of its QUIC streams:
//!
//! - the client's first bidirectional lane is the command lane ([`Lane::COMMAND`]), read and written as frames;
//! - every other lane is unidirectional and opened here ([`Quic::open_lane`]): one for delivery, one per generation;
//! - a client may open no further lane.
//!
//! Limits come from [`thalweg_protocol::limits`]. A peer's fault closes its connection with a reject's code, or is
//! dropped and counted in [`QuicCounters`]; it never is an error here.
#![forbid(unsafe_code)]

mod admission;
mod cid;
mod config;
mod counters;
mod deadlines;
mod event;
mod lane;
mod peer;
mod quic;
#[cfg(test)]
mod tests;

pub use config::{QuicConfig, QuicError, QuicLimits, TlsIdentity};
pub use counters::QuicCounters;
pub use event::{CloseReason, Event, Lane, LaneError, Link, SendError, Transmit};
pub use lane::{PRIORITY_COMMAND, PRIORITY_DELIVERY, PRIORITY_DOCUMENT, PRIORITY_GENERATION};
pub use quic::Quic;
pub use rustls::pki_types;
