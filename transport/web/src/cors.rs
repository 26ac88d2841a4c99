//! Which pages of other origins may use the API from a browser (the CORS protocol of the Fetch standard, section 3.2).
//!
//! Off unless origins are named. Credentials that a browser adds by itself are never allowed: the API knows none but the
//! bearer token that a page has to have.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What a page may send beside what needs no permission.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, traceparent, openai-organization, openai-project, x-stainless-arch, x-stainless-lang, \
     x-stainless-os, x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, \
     x-stainless-runtime-version, x-stainless-timeout, x-stainless-async, x-stainless-helper-method",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// For a day, so that not every request is preceded by a question.
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
const EXPOSED: HeaderValue = HeaderValue::from_static("retry-after");

/// The origins that are allowed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cors {
    any: bool,
    origins: Vec<HeaderValue>,
}

impl Cors {
    pub(crate) fn new(origins: &[String]) -> Self {
        let any = origins.iter().any(|origin| origin == "*");
        // One that cannot stand in a header is no origin, and no browser sends it.
        Self { any, origins: origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect() }
    }

    fn covers(&self, origin: &HeaderValue) -> bool {
        self.any || self.origins.contains(origin)
    }

    /// Whether a WebSocket may be opened: by no page, by one of this very node, or by one of an origin that is allowed.
    /// Browsers open them for any page without asking first.
    pub(crate) fn lets_in(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let own = || {
            let (origin, host) = (origin.to_str().ok()?, headers.get(header::HOST)?.to_str().ok()?);
            let (_, from) = origin.split_once("://")?;
            Some(from.eq_ignore_ascii_case(host))
        };
        self.covers(origin) || own().unwrap_or(false)
    }

    /// The answer to a browser that asks whether a page may send a request.
    pub(crate) fn preflight(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        let asks = request.method() == Method::OPTIONS
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
            && headers.get(header::ORIGIN).is_some_and(|origin| self.covers(origin))
            && request.uri().path().starts_with("/v1/");
        asks.then(|| {
            let said = [
                (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
                (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
            ];
            (StatusCode::NO_CONTENT, said).into_response()
        })
    }

    /// Lets a page of an origin that is allowed read an answer.
    pub(crate) fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let Some(origin) = origin.filter(|origin| self.covers(origin)) else { return };
        let allowed = if self.any { HeaderValue::from_static("*") } else { origin.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_origins_may_read_answers() {
        let check = |allowed: &[&str], origin: Option<&str>, expected: Option<&str>| {
            let cors = Cors::new(&allowed.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>());
            let origin = origin.map(|origin| HeaderValue::from_str(origin).expect("a value"));
            let mut headers = HeaderMap::new();
            cors.allow(origin.as_ref(), &mut headers);
            let found = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|v| v.to_str().expect("text"));
            assert_eq!(found, expected, "{allowed:?} {origin:?}");
            assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
        };
        check(&[], Some("https://a.example"), None);
        check(&["https://a.example"], Some("https://a.example"), Some("https://a.example"));
        check(&["https://a.example"], Some("https://b.example"), None);
        check(&["*"], Some("https://b.example"), Some("*"));
        check(&["*"], None, None);
    }

    #[test]
    fn sockets_are_opened_by_pages_that_may() {
        let check = |allowed: &[&str], origin: Option<&str>, expected: bool| {
            let cors = Cors::new(&allowed.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>());
            let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("node.example:8080"))]);
            headers.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_str(origin).expect("a value"))));
            assert_eq!(cors.lets_in(&headers), expected, "{allowed:?} {origin:?}");
        };
        check(&[], None, true);
        check(&[], Some("http://node.example:8080"), true);
        check(&[], Some("http://node.example"), false);
        check(&[], Some("https://evil.example"), false);
        check(&[], Some("null"), false);
        check(&["https://a.example"], Some("https://a.example"), true);
        check(&["*"], Some("https://evil.example"), true);
    }

    #[test]
    fn a_browser_is_told_what_a_page_may_send() {
        let check = |method: Method, path: &str, headers: &[(&'static str, &str)], expected: bool| {
            let mut request = Request::builder().method(method.clone()).uri(path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(axum::body::Body::empty()).expect("a request");
            let found = Cors::new(&["https://a.example".into()]).preflight(&request);
            assert_eq!(found.is_some(), expected, "{method} {path} {headers:?}");
        };
        let (from, wants) = (("origin", "https://a.example"), ("access-control-request-method", "POST"));
        check(Method::OPTIONS, "/v1/models", &[from, wants], true);
        check(Method::OPTIONS, "/metrics", &[from, wants], false);
        check(Method::OPTIONS, "/v1/models", &[wants], false);
        check(Method::OPTIONS, "/v1/models", &[("origin", "https://b.example"), wants], false);
        check(Method::GET, "/v1/models", &[from, wants], false);
    }
}
