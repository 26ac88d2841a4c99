//! Who may come in: signed tokens, minted and checked with the node's own key.
//!
//! A token is a JWT signed with Ed25519 (RFC 8037): `ten` (tenant), `sub` (user), `allow` (permissions), `iat` and `exp`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
pub use thalweg_domain::permission::{Action, Credential, Permission, Principal};
use thalweg_protocol::ids::{Name, SessionId};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::identity::{IdentityError, write_secret};

/// The file of the signing key within the data directory: PKCS#8 PEM, mode 0600.
pub const SIGNING_KEY_FILE: &str = "signing.key";

/// Clocks of machines may differ by so many seconds before a token is held to be expired.
const LEEWAY_S: u64 = 5;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whose data its holder may touch.
    pub tenant: Name,
    /// Under which name its holder writes.
    pub user: Name,
    /// What its holder may do.
    pub allow: Vec<Permission>,
    /// For how long.
    pub ttl: Duration,
}

#[derive(Serialize, Deserialize)]
struct Body {
    ten: String,
    sub: String,
    allow: Vec<String>,
    iat: u64,
    exp: u64,
}

/// The key pair that signs and checks tokens.
pub struct Keys {
    signing: EncodingKey,
    checking: DecodingKey,
}

impl Keys {
    /// Opens the signing key of a data directory; makes one if there is none.
    ///
    /// # Errors
    /// If the file cannot be read, written, or is not an Ed25519 key.
    pub fn open(data: &Path) -> Result<Self, IdentityError> {
        let path = data.join(SIGNING_KEY_FILE);
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| damaged(&path, &e))?;
                let pem = key.serialize_pem();
                write_secret(&path, pem.as_bytes())?;
                pem
            }
            Err(source) => return Err(IdentityError::File { action: "read", path, source }),
        };
        let public = rcgen::KeyPair::from_pem(&pem).map_err(|e| damaged(&path, &e))?.public_key_pem();
        Ok(Self {
            signing: EncodingKey::from_ed_pem(pem.as_bytes()).map_err(|e| damaged(&path, &e))?,
            checking: DecodingKey::from_ed_pem(public.as_bytes()).map_err(|e| damaged(&path, &e))?,
        })
    }

    /// Signs a token.
    ///
    /// # Errors
    /// If the key refuses to sign, which a key that was opened does not.
    pub fn mint(&self, claims: &Claims) -> Result<String, IdentityError> {
        let iat = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let body = Body {
            ten: claims.tenant.to_string(),
            sub: claims.user.to_string(),
            allow: claims.allow.iter().map(Permission::to_string).collect(),
            iat,
            exp: iat.saturating_add(claims.ttl.as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &body, &self.signing)
            .map_err(|error| damaged(Path::new(SIGNING_KEY_FILE), &error))
    }

    /// Checks a token and gives its holder, as `session`.
    ///
    /// # Errors
    /// `token_expired` or `token_invalid`, saying what is wrong with it.
    pub fn check(&self, token: &str, session: SessionId) -> Result<Principal, Reject> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        let body = match jsonwebtoken::decode::<Body>(token, &self.checking, &validation) {
            Ok(data) => data.claims,
            Err(error) => return Err(refusal(error.kind())),
        };
        let name = |field: &str, text: &str| {
            let invalid = |error| Reject::new(RejectCode::TokenInvalid, format!("the token's {field} {error}"));
            Name::new(text).map_err(invalid)
        };
        let permission = |text: &String| {
            text.parse().map_err(|error| Reject::new(RejectCode::TokenInvalid, format!("the token's allow: {error}")))
        };
        Ok(Principal {
            tenant: name("ten", &body.ten)?,
            user: name("sub", &body.sub)?,
            session,
            permissions: body.allow.iter().map(permission).collect::<Result<_, _>>()?,
            credential: Credential { id: 0, issued_s: body.iat, expires_s: body.exp },
        })
    }
}

fn refusal(kind: &ErrorKind) -> Reject {
    let (code, text) = match kind {
        ErrorKind::ExpiredSignature => {
            (RejectCode::TokenExpired, "the token has expired; get a new one with `thalweg admin token`")
        }
        ErrorKind::InvalidSignature => (
            RejectCode::TokenInvalid,
            "the token was not signed by this node's key; get one with `thalweg admin token` on the node's machine",
        ),
        _ => (RejectCode::TokenInvalid, "the token is not a signed token of this node; check that it was copied whole"),
    };
    Reject::new(code, text)
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::Damaged { path: PathBuf::from(path), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked() {
        let (here, there) = (crate::identity::tests::TempDir::new(), crate::identity::tests::TempDir::new());
        let keys = Keys::open(here.path()).expect("a key is made");
        let again = Keys::open(here.path()).expect("and found again");
        let other = Keys::open(there.path()).expect("another node's key");
        let name = |text| Name::new(text).expect("valid");
        let allow = vec!["read:*".parse().expect("valid")];
        let claims = |ttl_s| Claims {
            tenant: name("default"),
            user: name("ada"),
            allow: allow.clone(),
            ttl: Duration::from_secs(ttl_s),
        };
        let token = keys.mint(&claims(60)).expect("minted");
        let principal = again.check(&token, SessionId(7)).expect("valid");
        assert_eq!((principal.tenant, principal.user, principal.session), (name("default"), name("ada"), SessionId(7)));
        assert_eq!(principal.permissions, allow);
        let check = |keys: &Keys, token: &str, expected| {
            assert_eq!(keys.check(token, SessionId(7)).map_err(|r| r.code), Err(expected), "{token}");
        };
        check(&other, &token, RejectCode::TokenInvalid);
        check(&keys, "", RejectCode::TokenInvalid);
        check(&keys, "a.b.c", RejectCode::TokenInvalid);
        check(&keys, &token[..token.len() - 4], RejectCode::TokenInvalid);
        // The token of a forger who claims that nothing needs to be signed.
        let body = token.split('.').nth(1).expect("a JWT has three parts");
        check(&keys, &format!("eyJhbGciOiJub25lIn0.{body}."), RejectCode::TokenInvalid);
        let old = Body { ten: "t".into(), sub: "u".into(), allow: Vec::new(), iat: 1, exp: 2 };
        let old = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &old, &keys.signing).expect("signed");
        check(&keys, &old, RejectCode::TokenExpired);
    }
}
