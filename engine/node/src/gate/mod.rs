//! Who may come in and what they may do: tokens and keys, API keys, passwords, external issuers, revocation, and a log of
//! every decision.
//!
//! The gate is a thread of its own, because it reads and writes files (`DATA/access`, `DATA/audit`). What takes longer than
//! that, hashing passwords and asking issuers, is done by threads that work for it. Every core has an immutable snapshot,
//! `Access`, by which it decides about a hello without asking anybody; when something changes the gate hands every core
//! a new one by ring, and each core parts with the sessions it objects to. Only what a core cannot know goes to the gate: a
//! password, a key it has not seen, a command of an administrator.

mod access;
mod apikeys;
mod attempts;
mod audit;
mod command;
pub mod config;
mod fetch;
mod hand;
mod issuers;
mod jwks;
mod keeper;
mod keyring;
mod limits;
mod link;
mod login;
mod manage;
mod models;
mod revocations;
mod store;
mod thread;
mod users;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use access::{Access, Admission, Refusal, Source, is_over};
pub use audit::AUDIT_DIRECTORY;
pub(crate) use audit::AuditEvent;
pub(crate) use command::Secret;
pub use config::{AccessConfig, AccessConfigError, IssuerConfig};
pub use keeper::GateError;
pub(crate) use keeper::{Keeper, Now};
pub use keyring::{Claims, Minted, SIGNING_KEY_FILE};
pub(crate) use limits::{LOGINS_PER_CONNECTION_MAX, SWEEP_SESSIONS};
pub(crate) use link::{Asker, Awaiting, GateLink, Told, Wanted};
pub(crate) use manage::{NODE_TENANT, administers_node};
pub use store::{ACCESS_DIRECTORY, AccessError};
pub use thalweg_domain::permission::{Action, Credential, Permission, Principal};
use thalweg_protocol::ids::SessionId;
use thalweg_protocol::reject::{Reject, RejectCode};
pub(crate) use thread::{Gate, GateDesks, GateHandle};

use keyring::KeyRing;
use revocations::Revocations;

/// The signing keys of a data directory, for tools that use them without the node, or beside it.
pub struct Keys {
    data: PathBuf,
}

impl Keys {
    /// Opens the keys of a data directory; makes one if there is none.
    ///
    /// # Errors
    /// If a file cannot be read or written, or is damaged.
    pub fn open(data: &Path) -> Result<Self, AccessError> {
        KeyRing::open(data, now_s())?;
        Ok(Self { data: data.to_owned() })
    }

    /// Whether a node ever made keys in this directory.
    pub fn are_in(data: &Path) -> bool {
        data.join(keyring::INDEX_FILE).exists() || data.join(SIGNING_KEY_FILE).exists()
    }

    /// Signs a token with the current key.
    ///
    /// # Errors
    /// If the token is to be good for more than 400 days, or a file cannot be read or written.
    pub fn mint(&self, claims: &Claims) -> Result<String, AccessError> {
        let issued_s = Revocations::read(&self.data)?.issued_s(&claims.tenant, &claims.user, now_s());
        Ok(KeyRing::open(&self.data, now_s())?.mint(claims, issued_s)?.token)
    }

    /// Checks a token or an API key, and gives its holder, as `session`.
    ///
    /// # Errors
    /// `token_expired`, `token_revoked` or `token_invalid`, saying what is wrong with it; tokens of external issuers are
    /// invalid here.
    pub fn check(&self, token: &str, session: SessionId) -> Result<Principal, Reject> {
        let failed = |error: AccessError| Reject::new(RejectCode::Internal, error.to_string());
        let access = Access {
            keys: KeyRing::open(&self.data, now_s()).map_err(failed)?.public(),
            revocations: Revocations::read(&self.data).map_err(failed)?.into(),
            api_keys: apikeys::ApiKeys::read(&self.data).map_err(failed)?.into(),
            ..Access::default()
        };
        match access.check(token, now_s()) {
            Ok(admission) => Ok(admission.principal(session)),
            Err(Refusal::Final(reject)) => Err(reject),
            Err(Refusal::AskIssuer(_)) => {
                Err(Reject::new(RejectCode::TokenInvalid, "the token is of an external issuer"))
            }
        }
    }
}

/// Keeps the signing keys of a data directory as they are while it is held: for a backup, whose files must fit together.
///
/// # Errors
/// If the lock cannot be opened.
pub fn hold(data: &Path) -> Result<fs::File, AccessError> {
    store::make_directories(data)?;
    store::lock(data)
}

/// Whether a path within a data directory is of a file of the gate.
pub fn is_file(path: &str) -> bool {
    let plain = |name: &str, end: &str| {
        let stem = name.strip_suffix(end).unwrap_or_default();
        !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let key = path.strip_prefix(store::KEYS_DIRECTORY).and_then(|rest| rest.strip_prefix('/'));
    let file = path.strip_prefix(ACCESS_DIRECTORY).and_then(|rest| rest.strip_prefix('/'));
    path == SIGNING_KEY_FILE
        || key.is_some_and(|name| plain(name, ".pem"))
        || file.is_some_and(|name| plain(name, ".json"))
}

/// The files of the gate within a data directory, relative to it: what a backup has to hold beside the log, to be of the same
/// node. The audit log is not among them. Keys that are not in use may be removed meanwhile, the others not while the
/// directory is [held](hold).
///
/// # Errors
/// If the directory cannot be read.
pub fn files(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if data.join(SIGNING_KEY_FILE).exists() {
        files.push(SIGNING_KEY_FILE.into());
    }
    for directory in [ACCESS_DIRECTORY, store::KEYS_DIRECTORY] {
        let entries = match fs::read_dir(data.join(directory)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = Path::new(directory).join(entry?.file_name());
            if path.to_str().is_some_and(is_file) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The file that says which signing keys a data directory has.
pub const KEYS_FILE: &str = keyring::INDEX_FILE;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
