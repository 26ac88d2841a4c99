//! OpenAI's API: models, chat completions, completions, embeddings.
//!
//! A request is read ([`parameters`]), becomes what a core is asked ([`asking`], [`tools`]), and what comes back is written
//! as one answer or as events ([`choice`], [`writing`], [`stream`]). Nothing here decides what a client may do: that is the
//! core's, to which each connection with a token is a session.

mod asking;
mod chat;
mod choice;
mod completions;
mod embeddings;
mod intake;
mod models;
mod parameters;
mod stream;
mod tools;
mod writing;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use thalweg_protocol::trace::TraceContext;
use tokio::sync::Mutex;

use crate::error::Refusal;
use crate::limits::V1_BODY_BYTES_MAX;
use crate::metrics::bearer;
use crate::port::Session;
use crate::stage::Stage;

pub use models::{ModelCard, ModelKind, ModelList};

/// The document that describes all of this. Kept by hand; a test compares it with what is read.
const OPENAPI: &str = include_str!("openapi.json");

pub(crate) fn routes() -> Router<Arc<Stage>> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .layer(DefaultBodyLimit::max(V1_BODY_BYTES_MAX))
        .route("/openapi.json", get(openapi))
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

/// Who is at the other end of an HTTP connection: an extension of each of its requests. The connection is one session for as
/// long as it shows the same token, as a client over QUIC is; a proxy may send requests of several over one connection.
#[derive(Clone)]
pub(crate) struct Caller {
    remote: SocketAddr,
    session: Arc<Mutex<Option<Known>>>,
}

struct Known {
    token: String,
    session: Arc<Session>,
}

impl Caller {
    pub(crate) fn new(remote: SocketAddr) -> Self {
        Self { remote, session: Arc::default() }
    }

    /// The session of a request's token.
    async fn session(&self, stage: &Stage, headers: &HeaderMap) -> Result<Arc<Session>, Refusal> {
        let Some(token) = bearer(headers)? else {
            let text = "a token is needed: send `Authorization: Bearer TOKEN`, made by `thalweg admin token`; clients of \
                        OpenAI's API call it the API key";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "token_invalid", text));
        };
        let mut known = self.session.lock().await;
        if let Some(known) = known.as_ref().filter(|known| known.token == token && !known.session.is_closed()) {
            return Ok(Arc::clone(&known.session));
        }
        // The old one first, so that one connection never counts as two.
        *known = None;
        let session = Session::open(&stage.desk, self.remote, &token, stage.limits.session_timeout).await?;
        let session = Arc::new(session);
        *known = Some(Known { token, session: Arc::clone(&session) });
        Ok(session)
    }
}

/// The trace that a request is part of, as its caller says. One that cannot be read is as good as none.
fn trace_of(headers: &HeaderMap) -> Option<TraceContext> {
    headers.get("traceparent")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
