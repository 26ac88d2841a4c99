//! What every request passes: its time, its size, its place in the counters, and what all answers have in common.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use crate::error::Refusal;
use crate::stage::Stage;
use crate::{health, metrics, v1, ws};

/// Headers of every answer: nothing here is a page, and nothing of it is to be kept.
const COMMON: [(HeaderName, HeaderValue); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// All modules behind one door.
pub(crate) fn router(stage: Arc<Stage>) -> Router {
    Router::new()
        .merge(health::routes())
        .merge(metrics::routes())
        .merge(v1::routes())
        .merge(ws::routes())
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(stage.limits.body_bytes))
        .layer(from_fn_with_state(Arc::clone(&stage), door))
        .with_state(stage)
}

async fn unknown_path() -> Refusal {
    let text = "there is nothing here; GET /openapi.json says what there is under /v1; there are /health and /metrics, and the \
         WebSockets /yjs/{document}, /hocuspocus and /ws";
    Refusal::new(StatusCode::NOT_FOUND, "not_found", text)
}

async fn unknown_method(method: Method, uri: Uri) -> Refusal {
    // What a client sent is given back to it, cut short.
    let (method, path): (String, String) =
        (method.as_str().chars().take(32).collect(), uri.path().chars().take(128).collect());
    let text = format!("{method} is not possible on {path}; the header Allow says what is");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

async fn door(State(stage): State<Arc<Stage>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match stage.cors.preflight(&request) {
        Some(answer) => answer,
        None => answer(&stage, path.as_deref(), request, next).await,
    };
    stage.cors.allow(origin.as_ref(), response.headers_mut());
    for (name, value) in COMMON {
        response.headers_mut().entry(name).or_insert(value);
    }
    let path = path.as_deref().unwrap_or("unmatched");
    stage.counters.request(&method, path, response.status().as_u16(), began.elapsed());
    response
}

async fn answer(stage: &Stage, path: Option<&str>, request: Request, next: Next) -> Response {
    // An answer of the API takes as long as its model does; what it waits for before that has limits of its own.
    if path.is_some_and(|path| path.starts_with("/v1/")) {
        return next.run(request).await;
    }
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let body_max = stage.limits.body_bytes;
    if length.is_some_and(|length: u64| length > body_max as u64) {
        let text = format!("the body is longer than {body_max} bytes");
        return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text).into_response();
    }
    let timeout = stage.limits.request_timeout;
    match tokio::time::timeout(timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let text = format!("the request was not answered within {} ms; try again", timeout.as_millis());
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", text).retry_after_ms(1_000).into_response()
        }
    }
}
