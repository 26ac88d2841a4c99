//! Asking an external issuer for its keys, on a thread of its own: discovery (OpenID Connect Discovery 1.0, section 4), then
//! the key set.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::config::{Issuer, check_url};
use super::jwks::{self, IssuerKey};
use super::limits::{ISSUER_ANSWER_BYTES_MAX, ISSUER_ANSWER_MS, ISSUER_CONNECT_MS};

/// Asks an issuer for its keys. Takes at most two answers' time.
///
/// # Errors
/// What went wrong, with the URL; no part of the answer.
pub(crate) fn keys_of(issuer: &Issuer) -> Result<Vec<IssuerKey>, String> {
    let agent = agent(issuer)?;
    let url = match &issuer.jwks_url {
        Some(url) => url.clone(),
        None => discover(&agent, issuer)?,
    };
    let answer = get(&agent, &url)?;
    jwks::parse(&answer).map_err(|error| format!("{url}: {error}"))
}

/// Where the issuer's discovery document says that its keys are.
fn discover(agent: &Agent, issuer: &Issuer) -> Result<String, String> {
    let url = format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
    let answer = get(agent, &url)?;
    let document: Value = serde_json::from_slice(&answer).map_err(|error| format!("{url} is not JSON: {error}"))?;
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    if text("issuer") != Some(&issuer.url) {
        return Err(format!("{url} is of another issuer than {}", issuer.url));
    }
    let keys = text("jwks_uri").ok_or_else(|| format!("{url} names no jwks_uri"))?;
    check_url("jwks_uri", keys).map_err(|(field, what)| format!("{url}: {field}: {what}"))?;
    Ok(keys.to_owned())
}

fn agent(issuer: &Issuer) -> Result<Agent, String> {
    let mut tls = TlsConfig::builder();
    if let Some(path) = &issuer.ca {
        let pem = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let certificate = |item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        };
        let roots: Vec<_> = parse_pem(&pem).filter_map(certificate).collect();
        if roots.is_empty() {
            return Err(format!("{} holds no certificate in PEM", path.display()));
        }
        tls = tls.root_certs(RootCerts::Specific(Arc::new(roots)));
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        // A redirect would lead to where nobody checked that it may be asked.
        .max_redirects(0)
        .proxy(None)
        .max_idle_connections(0)
        .user_agent(concat!("thalweg/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_millis(ISSUER_CONNECT_MS)))
        .timeout_global(Some(Duration::from_millis(ISSUER_ANSWER_MS)))
        .build();
    Ok(config.new_agent())
}

fn get(agent: &Agent, url: &str) -> Result<Vec<u8>, String> {
    let failed = |error: ureq::Error| format!("{url}: {error}");
    let mut response = agent.get(url).header("accept", "application/json").call().map_err(failed)?;
    if response.status() != 200 {
        return Err(format!("{url} answered with status {}", response.status().as_u16()));
    }
    response.body_mut().with_config().limit(ISSUER_ANSWER_BYTES_MAX).read_to_vec().map_err(failed)
}
