//! `/metrics`: everything the node measured and counted, for Prometheus and its like.
//!
//! Whoever asks from this machine needs no token, if it asks for this machine by an address or as `localhost`, and not
//! through a proxy: a page in a browser cannot get here under a name of its own, nor can the world through a proxy that
//! passes everything on. All others need a token that allows admin of `metrics`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::accept::Peer;
use crate::error::Refusal;
use crate::exposition::{Exposition, Format};
use crate::link::{Question, Said};
use crate::stage::Stage;

pub(crate) fn routes() -> Router<Arc<Stage>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(
    State(stage): State<Arc<Stage>>,
    Extension(Peer(peer)): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let token = bearer(&headers)?;
    if token.is_none() && !is_local(peer, &headers) {
        let text = "metrics need a token that allows admin of metrics: send `Authorization: Bearer TOKEN`, made by \
                    `thalweg admin token --allow admin:metrics`";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "token_invalid", text));
    }
    let Ok(_permit) = stage.scrapes.try_acquire() else {
        let text = "enough metrics are being collected; try again";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text).retry_after_ms(1_000));
    };
    let Said::Measured(measured) = stage.desk.ask(Question::Measure { token }, stage.limits.core_timeout).await?;
    let format = Format::wanted(&headers);
    let write = {
        let stage = Arc::clone(&stage);
        move || {
            let mut into = Exposition::new(format);
            measured.expose(&mut into);
            stage.counters.expose(stage.desk.unanswered(), &mut into);
            into.finish()
        }
    };
    // It reads a few files of the system, and writes a text that may be long: others of this thread do not wait for it.
    let text = tokio::task::spawn_blocking(write).await.map_err(|_| {
        let text = "the metrics could not be written, which is a defect of Thalweg; the node's log says more";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text)
    })?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

/// The token that a request carries, if it carries one.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| text.split_once(' ')).filter(|(scheme, _)| {
        // RFC 9110, section 11.1: schemes know no case.
        scheme.eq_ignore_ascii_case("bearer")
    });
    match token {
        Some((_, token)) if !token.trim().is_empty() => Ok(Some(token.trim().to_owned())),
        _ => {
            let text = "the header Authorization must be `Bearer TOKEN`";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, "token_invalid", text))
        }
    }
}

/// Whether somebody on this machine asks, for this machine.
fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    let proxied = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"];
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    peer.ip().to_canonical().is_loopback()
        && !proxied.iter().any(|name| headers.contains_key(*name))
        && names_an_address(host)
}

/// Whether a host, with or without a port, is an address or `localhost`: nobody can make those point elsewhere.
fn names_an_address(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_no_token() {
        let check = |peer: &str, given: &[(&'static str, &str)], expected: bool| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.insert(*name, value.parse().expect("a value"));
            }
            assert_eq!(is_local(peer.parse().expect("an address"), &headers), expected, "{peer} {given:?}");
        };
        check("127.0.0.1:5", &[("host", "127.0.0.1:8080")], true);
        check("127.0.0.1:5", &[("host", "localhost:8080")], true);
        check("127.0.0.1:5", &[("host", "LOCALHOST")], true);
        check("[::1]:5", &[("host", "[::1]:8080")], true);
        check("[::ffff:127.0.0.1]:5", &[("host", "127.0.0.1")], true);
        check("10.0.0.1:5", &[("host", "127.0.0.1:8080")], false);
        check("127.0.0.1:5", &[("host", "evil.example:8080")], false);
        check("127.0.0.1:5", &[("host", "localhost.evil.example")], false);
        check("127.0.0.1:5", &[], false);
        check("127.0.0.1:5", &[("host", "127.0.0.1"), ("x-forwarded-for", "10.0.0.1")], false);
        check("127.0.0.1:5", &[("host", "127.0.0.1"), ("forwarded", "for=10.0.0.1")], false);
    }

    #[test]
    fn tokens_are_read() {
        let check = |value: Option<&str>, expected: Result<Option<&str>, ()>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().expect("a value"));
            }
            let found = bearer(&headers).map_err(drop);
            assert_eq!(found, expected.map(|token| token.map(str::to_owned)), "{value:?}");
        };
        check(None, Ok(None));
        check(Some("Bearer abc"), Ok(Some("abc")));
        check(Some("bearer  abc "), Ok(Some("abc")));
        check(Some("Basic abc"), Err(()));
        check(Some("Bearer "), Err(()));
        check(Some("abc"), Err(()));
    }
}
