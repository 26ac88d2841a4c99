//! From an HTTP request to a WebSocket (RFC 6455, section 4.2), and whose it is.
//!
//! A token comes in the header Authorization, as the parameter `token`, or, since pages in browsers can send no headers with
//! an upgrade, as a subprotocol `bearer.TOKEN`. A page of another origin is let in only if its origin is named: the same
//! rule as for requests, although nothing but a token opens anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use thalweg_protocol::limits::TOKEN_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::close::Close;
use super::protocol::{Effect, Input, Protocol};
use super::socket::{self, Part};
use crate::accept::{Peer, Place};
use crate::error::Refusal;
use crate::metrics::bearer;
use crate::stage::Stage;

/// What a subprotocol that is a token begins with.
const BEARER: &str = "bearer.";

/// A request that is to become a socket.
#[derive(Debug)]
pub(super) struct Upgrade {
    endpoint: usize,
    /// What proves that the request was understood.
    key: String,
    ready: OnUpgrade,
    remote: SocketAddr,
    place: Place,
    token: Option<String>,
    /// The subprotocol that is chosen of those that the client offered.
    subprotocol: Option<HeaderValue>,
}

/// What a client is told who shows no token.
pub(super) fn no_token() -> Reject {
    let text = "a token is needed: ?token=TOKEN, `Authorization: Bearer TOKEN`, or a subprotocol bearer.TOKEN";
    Reject::new(RejectCode::TokenInvalid, text)
}

/// Reads a request to an endpoint.
///
/// # Errors
/// It is no upgrade, the page it comes from may not use this node, or its token cannot be one.
pub(super) fn read(stage: &Stage, endpoint: usize, mut request: Request) -> Result<Upgrade, Refusal> {
    let upgrade = understand(stage, endpoint, &mut request);
    if upgrade.is_err() {
        stage.counters.sockets[endpoint].refused.fetch_add(1, Ordering::Relaxed);
    }
    upgrade
}

fn understand(stage: &Stage, endpoint: usize, request: &mut Request) -> Result<Upgrade, Refusal> {
    let headers = request.headers();
    let says = |name: HeaderName, word: &str| words(headers, &name).any(|found| found.eq_ignore_ascii_case(word));
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
    let is_upgrade = says(header::CONNECTION, "upgrade")
        && says(header::UPGRADE, "websocket")
        && says(header::SEC_WEBSOCKET_VERSION, "13");
    let Some(key) = key.filter(|_| is_upgrade).map(|key| derive_accept_key(key.as_bytes())) else {
        let text = "this is a WebSocket (RFC 6455, version 13); connect with ws:// or wss://";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", text));
    };
    if !stage.cors.lets_in(headers) {
        let text = "pages of this origin may not use this node; name it with --http-cors";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "forbidden", text));
    }
    let offered = || words(headers, &header::SEC_WEBSOCKET_PROTOCOL);
    let from_query = request.uri().query().and_then(token_of);
    let token =
        bearer(headers)?.or(from_query).or_else(|| offered().find_map(|p| Some(p.strip_prefix(BEARER)?.to_owned())));
    if token.as_ref().is_some_and(|token| token.len() > TOKEN_BYTES_MAX) {
        let text = format!("the token is longer than {TOKEN_BYTES_MAX} bytes");
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "token_invalid", text));
    }
    let chosen = offered().find(|protocol| !protocol.starts_with(BEARER)).or_else(|| offered().next());
    let subprotocol = chosen.and_then(|protocol| HeaderValue::from_str(protocol).ok());
    let extensions = request.extensions();
    let (Some(Peer(remote)), Some(place)) = (extensions.get().copied(), extensions.get::<Place>().cloned()) else {
        let text = "the connection cannot be upgraded, which is a defect of Thalweg";
        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text));
    };
    let ready = hyper::upgrade::on(request);
    Ok(Upgrade { endpoint, key, ready, remote, place, token, subprotocol })
}

/// The words of a header that is a list.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// The parameter `token` of a query.
fn token_of(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("token="))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok().filter(|token| !token.is_empty())
}

impl Upgrade {
    /// The token that was shown.
    pub(super) fn token(&self) -> Option<String> {
        self.token.clone()
    }

    /// Answers the request, and serves the socket that comes of it; or closes it, saying why.
    pub(super) fn accept(self, stage: Arc<Stage>, protocol: Result<impl Protocol + 'static, Reject>) -> Response {
        let Self { endpoint, key, ready, remote, place, subprotocol, .. } = self;
        let part = Part::new(stage, endpoint, remote);
        tokio::spawn(async move {
            // Held until the socket is gone.
            let _place = place;
            let Ok(upgraded) = ready.await else { return };
            let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
            let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
            match protocol {
                Ok(protocol) => socket::serve(part, stream, read, protocol).await,
                Err(reject) => socket::serve(part, stream, read, Parting(Some(Close::from(reject)))).await,
            }
        });
        let mut response = (StatusCode::SWITCHING_PROTOCOLS, Body::empty()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(key) = HeaderValue::from_str(&key) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
        }
        if let Some(subprotocol) = subprotocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
        }
        response
    }
}

/// What is spoken to a client that cannot be served: why not.
struct Parting(Option<Close>);

impl Protocol for Parting {
    fn handle(&mut self, _: Input) {}

    fn poll(&mut self) -> Option<Effect> {
        self.0.take().map(Effect::Close)
    }

    fn is_full(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_in_queries() {
        let check = |query: &str, expected: Option<&str>| {
            assert_eq!(token_of(query).as_deref(), expected, "{query}");
        };
        check("token=abc.def-_", Some("abc.def-_"));
        check("a=1&token=a%2Bb%3d&b=2", Some("a+b="));
        check("token=", None);
        check("tokens=abc", None);
        check("token=%f", Some("%f"));
        check("token=%ff", None);
    }

    #[test]
    fn lists_are_split() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.append(header::CONNECTION, HeaderValue::from_static("x"));
        assert_eq!(words(&headers, &header::CONNECTION).collect::<Vec<_>>(), ["keep-alive", "Upgrade", "x"]);
    }
}
