//! Who may come in, as every core has it at hand: an immutable snapshot that the gate replaces when something changes.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use thalweg_domain::permission::{Credential, Permission, Principal, matches};
use thalweg_protocol::ids::{Name, SessionId};
use thalweg_protocol::limits::TOKEN_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::apikeys::{API_KEY_PREFIX, ApiKeys, sha256};
use super::config::{Issuer, TenantOf};
use super::jwks::IssuerKeys;
use super::keyring::{Body, PublicKeys};
use super::limits::{LEEWAY_S, TOKEN_TTL_S_MAX};
use super::revocations::{Revocations, parse_id};

/// Names of users that begin so are the models'.
pub(crate) const MODEL_PREFIX: &str = "ai/";

/// A snapshot of who may come in. Cheap to clone: what did not change is shared.
#[derive(Clone, Default)]
pub(crate) struct Access {
    pub(crate) keys: PublicKeys,
    pub(crate) revocations: Arc<Revocations>,
    pub(crate) api_keys: Arc<ApiKeys>,
    pub(crate) issuers: Arc<[IssuerKeys]>,
}

/// Whom a credential lets in, and what would end that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) tenant: Name,
    pub(crate) user: Name,
    pub(crate) permissions: Vec<Permission>,
    pub(crate) credential: Credential,
    pub(crate) source: Source,
}

/// What a credential stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// One of the node's own signing keys.
    Own { kid: Arc<str> },
    /// An API key.
    ApiKey { id: u64 },
    /// An external issuer, by its URL.
    Issuer { url: Arc<str> },
}

/// Why a credential lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It does not.
    Final(Reject),
    /// It names a key of the issuer of this index that is not known here; the gate can ask.
    AskIssuer(usize),
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::Final(reject)
    }
}

impl Admission {
    /// The session's principal.
    pub(crate) fn principal(&self, session: SessionId) -> Principal {
        let mut principal = Principal::new(self.tenant.clone(), self.user.clone(), session, self.permissions.clone());
        principal.credential = self.credential;
        principal
    }
}

impl Access {
    /// Checks a token or an API key at a moment, in seconds since 1970.
    pub(crate) fn check(&self, token: &str, now_s: u64) -> Result<Admission, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid(format!("the token has {} bytes; at most {TOKEN_BYTES_MAX}", token.len())).into());
        }
        let admission = if token.starts_with(API_KEY_PREFIX) {
            self.check_api_key(token)?
        } else {
            let header = header_of(token)?;
            let Peek { iss } = peek(token)?;
            match iss {
                None => self.check_own(token, &header, now_s)?,
                Some(iss) => self.check_external(token, &header, &iss, now_s)?,
            }
        };
        if admission.user.as_str().starts_with(MODEL_PREFIX) {
            return Err(
                invalid(format!("a user cannot be called {}: such names are the models'", admission.user)).into()
            );
        }
        let Admission { tenant, user, credential, source, .. } = &admission;
        match self.objection(tenant, user, credential, source, now_s) {
            Some(reject) => Err(reject.into()),
            None => Ok(admission),
        }
    }

    /// What speaks against one who was let in once: expired, revoked, or what it stood on is gone.
    pub(crate) fn objection(
        &self,
        tenant: &Name,
        user: &Name,
        credential: &Credential,
        source: &Source,
        now_s: u64,
    ) -> Option<Reject> {
        if is_over(credential, now_s) {
            let text = match source {
                Source::ApiKey { .. } => "the API key has expired; ask an administrator for a new one",
                _ => "the token has expired; get a new one, such as with `thalweg admin token` or a login",
            };
            return Some(Reject::new(RejectCode::TokenExpired, text));
        }
        let revoked = |text: &'static str| Some(Reject::new(RejectCode::TokenRevoked, text));
        if self.revocations.covers(tenant, user, credential.id, credential.issued_s) {
            return revoked("this access was revoked; ask an administrator of the tenant");
        }
        match source {
            Source::Own { kid } if !self.keys.has(kid) => {
                revoked("the key that signed the token was dropped; get a new token")
            }
            Source::ApiKey { id } if self.api_keys.get(*id).is_none() => revoked("the API key was removed"),
            Source::Issuer { url } if self.issuers.iter().all(|issuer| *issuer.url != **url) => {
                revoked("the issuer of the token is no longer accepted")
            }
            _ => None,
        }
    }

    fn check_api_key(&self, text: &str) -> Result<Admission, Reject> {
        let Some((id, key)) = self.api_keys.find(text) else {
            return Err(invalid("no such API key; check that it was copied whole, and that it was not removed"));
        };
        Ok(Admission {
            tenant: key.tenant.clone(),
            user: key.user.clone(),
            permissions: key.allow.clone(),
            credential: Credential { id: id.into(), issued_s: key.created_s, expires_s: key.expires_s },
            source: Source::ApiKey { id },
        })
    }

    /// Checks a token of the node's own.
    fn check_own(&self, token: &str, header: &Head, now_s: u64) -> Result<Admission, Reject> {
        if header.algorithm != Algorithm::EdDSA {
            return Err(invalid("the token is not signed with Ed25519, as this node's are"));
        }
        let Some((kid, key)) = self.keys.find(header.kid.as_deref(), now_s) else {
            return Err(not_ours());
        };
        let body: Body =
            verified(token, key, Algorithm::EdDSA).map_err(|forged| if forged { not_ours() } else { not_whole() })?;
        let named =
            |field: &str, text: &str| Name::new(text).map_err(|error| invalid(format!("the token's {field} {error}")));
        let permission = |text: &String| text.parse().map_err(|error| invalid(format!("the token's allow: {error}")));
        check_times(body.iat, 0, now_s, LEEWAY_S)?;
        Ok(Admission {
            tenant: named("ten", &body.ten)?,
            user: named("sub", &body.sub)?,
            permissions: body.allow.iter().map(permission).collect::<Result<_, _>>()?,
            credential: Credential {
                id: body.jti.as_deref().and_then(parse_id).unwrap_or_else(|| derived_id(token)),
                issued_s: body.iat,
                expires_s: body.exp.min(body.iat.saturating_add(TOKEN_TTL_S_MAX)).max(1),
            },
            source: Source::Own { kid: Arc::clone(kid) },
        })
    }

    /// Checks a token of an external issuer (RFC 7519, RFC 8725; OpenID Connect Core 1.0, section 3.1.3.7).
    fn check_external(&self, token: &str, header: &Head, iss: &str, now_s: u64) -> Result<Admission, Refusal> {
        let Some(at) = self.issuers.iter().position(|issuer| *issuer.url == *iss) else {
            let iss: String = iss.chars().take(80).collect();
            return Err(invalid(format!("this node does not know the token's issuer {iss:?}")).into());
        };
        let known = &self.issuers[at];
        if known.until_s < now_s {
            return Err(Refusal::AskIssuer(at));
        }
        let key = match known.find(header.kid.as_deref(), header.algorithm) {
            Ok(Some(key)) => key,
            Ok(None) => return Err(Refusal::AskIssuer(at)),
            Err(reason) => return Err(invalid(reason).into()),
        };
        let claims: Map<String, Value> = verified(token, key, header.algorithm).map_err(|forged| {
            invalid(if forged {
                "the token was not signed by its issuer"
            } else {
                "the token's claims are not an object"
            })
        })?;
        let issuer = &known.issuer;
        Ok(admission_of(issuer, &known.url, &claims, token, now_s)?)
    }
}

/// What an external token's claims come to.
fn admission_of(
    issuer: &Issuer,
    url: &Arc<str>,
    claims: &Map<String, Value>,
    token: &str,
    now_s: u64,
) -> Result<Admission, Reject> {
    let audience = claims.get("aud").unwrap_or(&Value::Null);
    if !strings(audience).any(|audience| audience == issuer.audience) {
        return Err(invalid(format!("the token is not meant for this node: its aud lacks {:?}", issuer.audience)));
    }
    let iat = seconds(claims, "iat")?.ok_or_else(|| invalid("the token does not say when it was issued (iat)"))?;
    let exp = seconds(claims, "exp")?.ok_or_else(|| invalid("the token does not say when it expires (exp)"))?;
    check_times(iat, seconds(claims, "nbf")?.unwrap_or(0), now_s, issuer.leeway_s)?;
    let named =
        |claim: &str, text: &str| Name::new(text).map_err(|error| invalid(format!("the token's {claim} {error}")));
    let tenant = match &issuer.tenant {
        TenantOf::Fixed(tenant) => tenant.clone(),
        TenantOf::Claim { claim, allowed } => {
            let text = text_claim(claims, claim)?;
            if !allowed.iter().any(|pattern| matches(pattern, text)) {
                return Err(invalid(format!("the issuer may not speak for the tenant that {claim} names")));
            }
            named(claim, text)?
        }
    };
    let user = format!("{}{}", issuer.user_prefix, text_claim(claims, &issuer.user_claim)?);
    // Many issuers give no jti; then the id is of what was signed, which nobody can write in another way.
    let jti = claims.get("jti").and_then(Value::as_str);
    let id = jti.map_or_else(|| derived_id(token), |jti| id_of(&format!("{url} {jti}")));
    Ok(Admission {
        tenant,
        user: named(&issuer.user_claim, &user)?,
        permissions: permissions_of(issuer, claims)?,
        credential: Credential {
            id,
            issued_s: iat,
            // The leeway of the node's own tokens is added when it is looked at.
            expires_s: exp
                .saturating_add(issuer.leeway_s.saturating_sub(LEEWAY_S))
                .min(iat.saturating_add(TOKEN_TTL_S_MAX))
                .max(1),
        },
        source: Source::Issuer { url: Arc::clone(url) },
    })
}

fn permissions_of(issuer: &Issuer, claims: &Map<String, Value>) -> Result<Vec<Permission>, Reject> {
    let mut all = issuer.allow.clone();
    if let Some(value) = issuer.role_claim.as_deref().and_then(|claim| find(claims, claim)) {
        // Roles that are not configured mean something elsewhere.
        all.extend(strings(value).filter_map(|role| issuer.roles.get(role)).flatten().cloned());
    }
    if let Some(claim) = &issuer.allow_claim {
        for text in find(claims, claim).into_iter().flat_map(strings).flat_map(str::split_whitespace) {
            let permission = text.parse().map_err(|error| invalid(format!("the token's {claim}: {error}")))?;
            all.push(permission);
        }
    }
    Ok(all)
}

/// Whether a credential has expired.
pub(crate) fn is_over(credential: &Credential, now_s: u64) -> bool {
    credential.expires_s != 0 && credential.expires_s.saturating_add(LEEWAY_S) < now_s
}

fn check_times(iat: u64, nbf: u64, now_s: u64, leeway_s: u64) -> Result<(), Reject> {
    let ahead_s = iat.max(nbf).saturating_sub(now_s.saturating_add(leeway_s));
    if ahead_s == 0 {
        return Ok(());
    }
    Err(invalid(format!(
        "the token is of the future by {ahead_s} s; set the clocks of its issuer and of this node right"
    )))
}

/// A claim by its name, or by a path of names with dots between them.
fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

fn text_claim<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<&'a str, Reject> {
    let text = find(claims, claim).and_then(Value::as_str);
    text.ok_or_else(|| invalid(format!("the token has no text in {claim}")))
}

/// The texts of a claim that is one, or a list of some.
fn strings(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    value.as_str().into_iter().chain(list.iter().filter_map(Value::as_str))
}

/// A time in seconds; RFC 7519 allows fractions.
fn seconds(claims: &Map<String, Value>, claim: &str) -> Result<Option<u64>, Reject> {
    match claims.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().or_else(|| value.as_f64().map(|seconds| seconds as u64)) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(invalid(format!("the token's {claim} is no number"))),
        },
    }
}

/// The parts of a token's header that matter.
struct Head {
    algorithm: Algorithm,
    kid: Option<String>,
}

fn header_of(token: &str) -> Result<Head, Reject> {
    if token.is_empty() {
        let text = "the token is missing; get one with `thalweg admin token` on the node's machine";
        return Err(Reject::new(RejectCode::TokenInvalid, text));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| not_whole())?;
    if header.crit.is_some() {
        return Err(invalid("the token needs extensions (crit) that this node does not have"));
    }
    if matches!(header.alg, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
        return Err(invalid("the token is signed with a shared secret, which this node never accepts"));
    }
    Ok(Head { algorithm: header.alg, kid: header.kid })
}

#[derive(Deserialize)]
struct Peek {
    #[serde(default)]
    iss: Option<String>,
}

fn peek(token: &str) -> Result<Peek, Reject> {
    jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| not_whole())
}

/// The claims of a token, once its signature was checked. The error says whether that was what failed.
fn verified<T: DeserializeOwned>(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<T, bool> {
    let mut validation = Validation::new(algorithm);
    // Times, audience and issuer are checked by the caller, who knows the time and the issuer's ways.
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<T>(token, key, &validation)
        .map(|data| data.claims)
        .map_err(|error| !matches!(error.kind(), jsonwebtoken::errors::ErrorKind::Json(_)))
}

/// The id of a token that has none: of what was signed. Never 0.
pub(crate) fn derived_id(token: &str) -> u128 {
    id_of(token.rsplit_once('.').map_or(token, |(signed, _)| signed))
}

fn id_of(text: &str) -> u128 {
    let hash = sha256(text.as_bytes());
    u128::from_be_bytes(*hash.first_chunk().expect("a hash is longer")).max(1)
}

/// What a token says it is, believed without a look at its signature: tenant, id and expiry. For revoking one that somebody
/// holds in hand, which needs no proof.
pub(crate) fn identify(token: &str) -> Option<(Option<Name>, u128, Option<u64>)> {
    let claims = token.split('.').nth(1)?;
    let claims: Map<String, Value> = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
    let id = match (text("iss"), text("jti")) {
        (None, Some(jti)) => parse_id(jti)?,
        (Some(iss), Some(jti)) => id_of(&format!("{iss} {jti}")),
        (_, None) => derived_id(token),
    };
    let tenant = text("ten").filter(|_| text("iss").is_none()).and_then(|tenant| Name::new(tenant).ok());
    Some((tenant, id, claims.get("exp").and_then(Value::as_u64)))
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> Reject {
    Reject::new(RejectCode::TokenInvalid, text)
}

fn not_whole() -> Reject {
    invalid("the token is not a signed token of this node; check that it was copied whole")
}

fn not_ours() -> Reject {
    invalid("the token was not signed by this node's key; get one with `thalweg admin token` on the node's machine")
}
