//! The gate as a whole: tokens of all kinds, an issuer over HTTP, the keeper's commands, and nodes.

mod commands;
mod issuer;
mod nodes;
mod tokens;

use thalweg_protocol::ids::Name;

use super::*;

/// A moment in seconds since 1970 at which tests take place that are told the time.
const NOW: u64 = 1_800_000_000;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn allow(texts: &[&str]) -> Vec<Permission> {
    texts.iter().map(|text| text.parse().expect("valid")).collect()
}

fn claims(tenant: &str, user: &str, texts: &[&str], ttl_s: u64) -> Claims {
    let ttl = std::time::Duration::from_secs(ttl_s);
    Claims { tenant: name(tenant), user: name(user), allow: allow(texts), ttl }
}
