//! The wire of Thalweg: frames, ids, limits and rejects.
//!
//! This crate imports nothing of ours and does no I/O. It is what every other crate agrees on:
//!
//! - [`limits`]: every bound of the system in one file, related to each other by compile-time assertions;
//! - [`ids`]: names and numbers that cannot be confused with each other;
//! - [`reject`]: what is said to a peer whose request is refused, with stable codes;
//! - [`frame`]: the length-prefixed frames of a lane, and the splitter that cuts a byte stream into them;
//! - [`op`]: the operations inside the frames, decoded from verified FlatBuffers;
//! - [`chat`]: what people do in channels beside writing and reading;
//! - [`generation`]: what is asked of a model and what comes back;
//! - [`trace`]: what a request is part of.
//!
//! Two invariants hold everywhere: a decoder verifies before it reads, and nothing is allocated because a peer's length
//! field said so.
#![deny(unsafe_code)]

pub mod chat;
pub mod document;
pub mod frame;
pub mod generation;
pub mod ids;
pub mod limits;
pub mod op;
pub mod reject;
pub mod trace;

#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    rust_2018_idioms,
    mismatched_lifetime_syntaxes,
    unused
)]
#[rustfmt::skip]
#[path = "generated/wire_generated.rs"]
mod generated;

/// The application protocol negotiated in the TLS handshake by native clients.
pub const ALPN: &[u8] = b"thalweg/1";

/// The oldest and the newest wire version this build speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=1;
