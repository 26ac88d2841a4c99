//! The web stage: HTTP beside QUIC.
//!
//! A stage like the others: threads of its own, each with a tokio runtime, joined to a core by a ring each way. It
//! translates and decides nothing: whether a node is healthy is what the node [says](Health), and what is in the metrics
//! is what the node [exposes](Exposed). Each thread has a [`WebLink`] of its own, and all threads are alike.
//!
//! The router of [`Web::start`] is put together from modules: health, metrics, and `v1`, which is OpenAI's API. An HTTP
//! connection that shows a token is a session on the core behind its thread's link, as one over QUIC is, and so is a
//! WebSocket (`ws`).
//!
//! What is absent: the stage knows no shard, no file and no model, and nothing in it runs on a core.

mod accept;
mod config;
mod cors;
mod counters;
mod door;
mod error;
mod exposition;
mod health;
mod limits;
mod line;
mod link;
mod metrics;
mod port;
mod stage;
mod v1;
mod ws;

pub use config::{DEFAULT_ADDR, WebConfig, WebLimits};
pub use error::WebError;
pub use exposition::{Buckets, Exposition, Family, Format, Labels};
pub use health::{Health, HealthCheck, Phase};
pub use link::{CoreEnd, Exposed, Question, Said, WebAnswer, WebLink, WebRequest, link};
pub use port::{SessionEvent, SessionInput, SessionNews, SessionOutput};
pub use stage::Web;
pub use v1::{ModelCard, ModelKind, ModelList};
