//! The published keys of an external issuer (RFC 7517), as far as this node uses them: RS256, ES256 and EdDSA.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::config::Issuer;
use super::limits::ISSUER_KEYS_MAX;

/// Bytes of the smallest RSA modulus that is accepted (RFC 7518, section 3.3).
const RSA_BYTES_MIN: usize = 256;
/// Bytes of the largest: checking with a larger one would keep a core busy.
const RSA_BYTES_MAX: usize = 512;

/// One key, with the only algorithm it is used with.
#[derive(Clone)]
pub(crate) struct IssuerKey {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// What is known of an issuer.
#[derive(Clone)]
pub(crate) struct IssuerKeys {
    pub(crate) url: Arc<str>,
    pub(crate) issuer: Arc<Issuer>,
    keys: Arc<[IssuerKey]>,
    /// They may be used until then, in seconds since 1970. 0 if none were ever fetched.
    pub(crate) until_s: u64,
}

impl IssuerKeys {
    /// An issuer of which no keys are known yet.
    pub(crate) fn unknown(issuer: Arc<Issuer>) -> Self {
        Self { url: issuer.url.as_str().into(), issuer, keys: Arc::new([]), until_s: 0 }
    }

    /// The same issuer with keys, good until a time in seconds.
    pub(crate) fn with(&self, keys: Vec<IssuerKey>, until_s: u64) -> Self {
        Self { keys: keys.into(), until_s, ..self.clone() }
    }

    /// The key that a token names; `None` if there is none of that name.
    ///
    /// # Errors
    /// If the key is not for the token's algorithm, or the token names none and it could be several.
    pub(crate) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Option<&DecodingKey>, &'static str> {
        if !matches!(algorithm, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err("the token's algorithm is none of RS256, ES256 and EdDSA");
        }
        let Some(kid) = kid else {
            let mut fitting = self.keys.iter().filter(|key| key.algorithm == algorithm);
            return match (fitting.next(), fitting.next()) {
                (Some(key), None) => Ok(Some(&key.key)),
                (None, _) => Ok(None),
                (Some(_), Some(_)) => Err("the token does not say which of its issuer's keys signed it (kid)"),
            };
        };
        let mut named = self.keys.iter().filter(|key| key.kid.as_deref() == Some(kid)).peekable();
        if named.peek().is_none() {
            return Ok(None);
        }
        let fitting = named.find(|key| key.algorithm == algorithm);
        fitting.map(|key| Some(&key.key)).ok_or("the token's algorithm is not the one of the key it names")
    }
}

/// Takes the usable keys out of a key set. Others are skipped, as RFC 7517, section 5, asks.
///
/// # Errors
/// If it is not a key set, or nothing in it is usable.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<IssuerKey>, String> {
    let set: Value = serde_json::from_slice(bytes).map_err(|error| format!("the key set is not JSON: {error}"))?;
    let list = set.get("keys").and_then(Value::as_array).ok_or("the key set has no list `keys`")?;
    let keys: Vec<_> = list.iter().filter_map(usable).take(ISSUER_KEYS_MAX).collect();
    if keys.is_empty() {
        return Err(format!("none of the {} keys is for RS256, ES256 or EdDSA", list.len()));
    }
    Ok(keys)
}

fn usable(value: &Value) -> Option<IssuerKey> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let said = jwk.common.key_algorithm;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if matches!(said, None | Some(KeyAlgorithm::RS256)) => {
            let modulus = URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
            (RSA_BYTES_MIN..=RSA_BYTES_MAX).contains(&modulus.len()).then_some(Algorithm::RS256)?
        }
        AlgorithmParameters::EllipticCurve(ec)
            if ec.curve == EllipticCurve::P256 && matches!(said, None | Some(KeyAlgorithm::ES256)) =>
        {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(pair)
            if pair.curve == EllipticCurve::Ed25519 && matches!(said, None | Some(KeyAlgorithm::EdDSA)) =>
        {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(IssuerKey { kid: jwk.common.key_id, algorithm, key })
}
