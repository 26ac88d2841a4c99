//! A request's body: how long it may be, how long it may take, and where exactly it is not what is expected.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use crate::error::Refusal;
use crate::limits::V1_BODY_BYTES_MAX;
use crate::stage::Stage;

/// Reads a body as JSON of a shape.
pub(super) async fn read<T: DeserializeOwned>(stage: &Stage, request: Request) -> Result<T, Refusal> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let essence = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
        let text = "the header Content-Type must be application/json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type_unsupported", text));
    }
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > V1_BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let timeout = stage.limits.request_timeout;
    let body: Body = request.into_body();
    match tokio::time::timeout(timeout, axum::body::to_bytes(body, V1_BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => parse(&bytes),
        // Either it is too long, or the client is gone and nobody reads this.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let text = format!("the body was not there within {} ms", timeout.as_millis());
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", text))
        }
    }
}

fn too_large() -> Refusal {
    let text = format!("the body is longer than {V1_BODY_BYTES_MAX} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text)
}

/// Reads JSON, and says by line, column and field where it is not what is expected.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first.is_some_and(|&first| first == b'[') {
        // An array whose items happen to fit would pass for an object otherwise.
        let text = "invalid type: the body is an array, expected an object";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "parameter_invalid", text));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let invalid = |text: String| Refusal::new(StatusCode::BAD_REQUEST, "json_invalid", text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.inner());
        if inner.is_data() {
            let path = if path == "." { None } else { Some(path) };
            let what = path.as_deref().map_or(String::new(), |path| format!("{path}: "));
            let mut refusal = invalid(format!("{what}{inner}"));
            refusal.code = "parameter_invalid";
            refusal.param = path;
            refusal
        } else {
            invalid(format!("the body is not JSON: {inner}"))
        }
    })?;
    json.end().map_err(|error| invalid(format!("the body is not JSON: {error}")))?;
    Ok(value)
}
