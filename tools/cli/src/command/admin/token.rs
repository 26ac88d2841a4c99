//! `thalweg admin token`: sign a token with the key of the data directory.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use thalweg_client::Name;
use thalweg_node::gate::{Action, Claims, Keys, Permission};

use serde_json::json;

use crate::failure::{Failure, output};
use crate::{duration, paths};

/// Sign a token with the key of the data directory, and print it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose data its holder may touch
    #[arg(long, value_name = "T", default_value = "default", value_parser = parse_name)]
    tenant: Name,
    /// Under which name its holder writes [default: $USER]
    #[arg(long, value_name = "U", value_parser = parse_name)]
    user: Option<Name>,
    /// What its holder may do: read, comment, write, ask or admin, and a pattern of names; repeat for more [default: read,
    /// write and ask everything]
    #[arg(long, value_name = "PERM:PATTERN")]
    allow: Vec<Permission>,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = duration::parse)]
    ttl: Duration,
    /// Print the token's id to standard error, with which it can be revoked
    #[arg(long)]
    show_id: bool,
    /// Print {"token":…,"id":…,"expires_s":…} instead of the token
    #[arg(long)]
    json: bool,
    /// The node's data directory [default: $XDG_STATE_HOME/thalweg]
    #[arg(long, value_name = "DIR", env = "THALWEG_DATA")]
    data: Option<PathBuf>,
}

pub(super) fn parse_name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { tenant, user, allow, ttl, show_id, json, data } = args;
    let claims = Claims { tenant, user: user.unwrap_or_else(local_user), allow: or_default(allow), ttl };
    let token = mint(data, &claims)?;
    let (id, expires_s) = identity(&token).unwrap_or_default();
    if show_id {
        eprintln!("{id}");
    }
    let line = if json { json!({ "token": token, "id": id, "expires_s": expires_s }).to_string() } else { token };
    writeln!(std::io::stdout().lock(), "{line}").map_err(|error| output(&error))
}

/// Id and end of a token that was just signed.
fn identity(token: &str) -> Option<(String, u64)> {
    use base64::Engine as _;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some((claims["jti"].as_str()?.to_owned(), claims["exp"].as_u64()?))
}

/// Signs with the key that is there: a directory no node ever used has none, and making one there would give tokens that no
/// node accepts.
pub(super) fn mint(data: Option<PathBuf>, claims: &Claims) -> Result<String, Failure> {
    let data = paths::data_directory(data);
    if !Keys::are_in(&data) {
        let data = data.display();
        let text =
            format!("{data} has no signing keys; start a node there once, or name its data directory with --data");
        return Err(Failure::failed(text));
    }
    let keys = Keys::open(&data).map_err(|error| Failure::failed(error.to_string()))?;
    keys.mint(claims).map_err(|error| Failure::failed(error.to_string()))
}

fn or_default(allow: Vec<Permission>) -> Vec<Permission> {
    if !allow.is_empty() {
        return allow;
    }
    let everything = |action| Permission { action, pattern: "*".into() };
    [Action::Read, Action::Write, Action::Ask].map(everything).into()
}

pub(super) fn local_user() -> Name {
    let user = std::env::var("USER").ok().and_then(|user| Name::new(&user).ok());
    user.unwrap_or_else(|| Name::new("local").expect("a valid name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_need_a_node_that_was_there() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let claims = |ttl| Claims {
            tenant: Name::new("default").expect("valid"),
            user: local_user(),
            allow: or_default(Vec::new()),
            ttl,
        };
        let data = || Some(directory.path().to_owned());
        let error = mint(data(), &claims(Duration::from_secs(60))).expect_err("no key").message;
        assert!(error.contains("no signing keys") && error.contains("--data"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 0, "nothing was made");
        Keys::open(directory.path()).expect("as a node would");
        let token = mint(data(), &claims(Duration::from_secs(60))).expect("signed");
        assert_eq!(token.split('.').count(), 3);
    }
}
