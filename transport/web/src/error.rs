//! Why the stage does not start, and how a request is refused.

use std::io;
use std::net::SocketAddr;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use thalweg_protocol::reject::{Reject, RejectCode};

/// Why HTTP cannot be served, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Somebody else serves there.
    #[error("HTTP cannot be served on {addr}: the port is taken; give another with --http ADDR, or --http off")]
    Taken {
        /// Where.
        addr: SocketAddr,
    },
    /// The address is no address of this machine, or may not be used.
    #[error("HTTP cannot be served on {addr}: {source}; give another address with --http ADDR, or --http off")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Other machines would send tokens in the clear.
    #[error(
        "HTTP on {addr} would be plain, and {addr} can be reached from other machines: whoever listens on the way reads \
         tokens. Serve it on 127.0.0.1 behind a proxy that speaks TLS, or say --http-allow-plain"
    )]
    Plain {
        /// Where.
        addr: SocketAddr,
    },
    /// The system refuses a thread, a runtime or a descriptor.
    #[error("the web stage cannot start: {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A request that is not granted: a status, and `{"error": {"message": …, "type": …, "param": …, "code": …}}`, which is the
/// shape that clients of OpenAI's API read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// For programs: the code of a reject, or of HTTP.
    pub(crate) code: &'static str,
    /// For people: what was wrong, and what to do.
    pub(crate) message: String,
    /// Which field of the request it is about, if it is about one.
    pub(crate) param: Option<String>,
    /// When to try again, in milliseconds; 0 if that would not help.
    pub(crate) retry_after_ms: u32,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after_ms: 0 }
    }

    /// A field of the request that cannot be.
    pub(crate) fn parameter(param: impl Into<String>, message: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::BAD_REQUEST, RejectCode::ParameterInvalid.as_str(), message);
        Self { param: Some(param.into()), ..refusal }
    }

    /// The kind of error, as clients of OpenAI's API tell them apart.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            status if status < 500 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> serde_json::Value {
        let (message, kind, param, code) = (&self.message, self.kind(), &self.param, self.code);
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    pub(crate) fn retry_after_ms(mut self, ms: u32) -> Self {
        self.retry_after_ms = ms;
        self
    }
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        let mut refusal = Self::new(status_of(reject.code), reject.code.as_str(), reject.message.into_owned());
        if reject.code == RejectCode::ParameterInvalid {
            // Those begin with the name of the field, in the words of the wire, which are those of the API.
            let name: String = refusal.message.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            refusal.param = Some(name).filter(|name| !name.is_empty());
        }
        refusal.retry_after_ms(reject.retry_after_ms)
    }
}

/// The status that says most nearly what a reject says.
fn status_of(code: RejectCode) -> StatusCode {
    match code.as_str() {
        "token_invalid" | "token_expired" | "token_revoked" | "login_failed" | "hello_expected" => {
            StatusCode::UNAUTHORIZED
        }
        "forbidden" => StatusCode::FORBIDDEN,
        "channel_unknown" | "model_unknown" | "generation_unknown" | "user_unknown" | "message_unknown" => {
            StatusCode::NOT_FOUND
        }
        "body_too_large" | "frame_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "channel_deleted" => StatusCode::GONE,
        "rate_limited" | "quota_exceeded" | "limit_reached" | "busy" => StatusCode::TOO_MANY_REQUESTS,
        "draining" | "overloaded" | "issuer_unavailable" | "model_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        "storage_full" => StatusCode::INSUFFICIENT_STORAGE,
        "internal" | "storage_damaged" | "unknown" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.retry_after_ms > 0 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after_ms.div_ceil(1_000)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_become_statuses() {
        let check = |code, status: u16| assert_eq!(status_of(code).as_u16(), status, "{code}");
        check(RejectCode::TokenInvalid, 401);
        check(RejectCode::Forbidden, 403);
        check(RejectCode::ChannelUnknown, 404);
        check(RejectCode::BodyTooLarge, 413);
        check(RejectCode::LimitReached, 429);
        check(RejectCode::Busy, 429);
        check(RejectCode::ConstraintInvalid, 400);
        check(RejectCode::PromptTooLong, 400);
        check(RejectCode::Draining, 503);
        check(RejectCode::ModelUnavailable, 503);
        check(RejectCode::StorageFull, 507);
        check(RejectCode::Internal, 500);
        check(RejectCode::NameInvalid, 400);
    }

    #[test]
    fn a_refusal_has_the_shape_that_clients_read() {
        let reject = Reject::new(RejectCode::ParameterInvalid, "top_p is 2; it lies above 0 and up to 1");
        let error = &Refusal::from(reject).body()["error"];
        assert_eq!(error["param"], "top_p");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["code"], "parameter_invalid");
        let error = &Refusal::from(Reject::new(RejectCode::RateLimited, "slow down")).body()["error"];
        assert_eq!((&error["param"], error["type"].as_str()), (&serde_json::Value::Null, Some("rate_limit_error")));
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let reject = Reject::new(RejectCode::Busy, "later").retry_after_ms(1_500);
        let response = Refusal::from(reject).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let response = Refusal::from(Reject::new(RejectCode::TokenExpired, "old")).into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
