//! Models behind somebody else's OpenAI-compatible endpoint, as one more inference stage.
//!
//! [`RemoteStage`] is a thread that speaks the words of [`thalweg_worker::stage`] over rings, as the stage that computes
//! itself does: [`Command`](thalweg_worker::stage::Command)s come in, [`Event`](thalweg_worker::stage::Event)s go out. Each
//! generation is one request to `/chat/completions` with `stream`, over a connection of its own, which is closed to cancel
//! it. A reader who gives no credit is not read for: what the remote sends then waits in the socket's buffers, and so does
//! the remote. How much those hide is [`limits::REMOTE_RECEIVE_BYTES`] and what the remote's side buffers itself.
//!
//! From below: [`lines`] takes a body apart into events, [`answer`] reads them, [`request`] writes what is asked, [`connect`]
//! speaks HTTP, [`course`] is one generation from its submit to its end, [`stage`] the thread and its rings.

mod answer;
pub mod config;
mod connect;
mod course;
mod fault;
pub mod limits;
mod lines;
mod request;
mod stage;

#[cfg(test)]
mod tests;

pub use config::{Endpoint, Key, RemoteError, RemoteModel};
pub use stage::{RemoteHandle, RemoteLink, RemoteStage};
