//! Which credentials let whom in.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};
use thalweg_protocol::limits::TOKEN_BYTES_MAX;

use super::super::access::{Access, Admission, Refusal, identify};
use super::super::apikeys::ApiKeys;
use super::super::config::{AccessConfig, IssuerConfig};
use super::super::jwks::{self, IssuerKeys};
use super::super::keyring::KeyRing;
use super::super::limits::{LEEWAY_S, TOKEN_TTL_S_MAX};
use super::super::revocations::{Revocations, Revoked};
use super::issuer::{TestKey, config};
use super::*;
use crate::identity::tests::TempDir;

const URL: &str = "https://id.example.com";

fn code(result: Result<Admission, Refusal>) -> Result<Admission, RejectCode> {
    result.map_err(|refusal| match refusal {
        Refusal::Final(reject) => reject.code,
        Refusal::AskIssuer(_) => RejectCode::IssuerUnavailable,
    })
}

/// A token of the node's own make, with any claims.
fn forge(data: &std::path::Path, kid: Option<&str>, body: &Value) -> String {
    let ring = KeyRing::open(data, NOW).expect("there");
    let path = data.join(store::KEYS_DIRECTORY).join(format!("{}.pem", ring.current()));
    let key = EncodingKey::from_ed_pem(&fs::read(path).expect("there")).expect("a key");
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, body, &key).expect("signed")
}

#[test]
fn own_tokens() {
    let (dir, other) = (TempDir::new(), TempDir::new());
    let mut ring = KeyRing::open(dir.path(), NOW).expect("made");
    let access = Access { keys: ring.public(), ..Access::default() };
    let minted = ring.mint(&claims("acme", "ada", &["read:*"], 60), NOW).expect("signed");
    let got = access.check(&minted.token, NOW).expect("good");
    assert_eq!((got.tenant, got.user, got.permissions), (name("acme"), name("ada"), allow(&["read:*"])));
    let credential = Credential { id: minted.id, issued_s: NOW, expires_s: NOW + 60 };
    assert_eq!(got.credential, credential);
    assert_eq!(identify(&minted.token), Some((Some(name("acme")), minted.id, Some(NOW + 60))));
    let check = |token: &str, at: u64, expected: RejectCode| {
        assert_eq!(code(access.check(token, at)), Err(expected), "{:.80} at {at}", token);
    };
    assert!(access.check(&minted.token, NOW + 60 + LEEWAY_S).is_ok());
    check(&minted.token, NOW + 61 + LEEWAY_S, RejectCode::TokenExpired);
    assert!(access.check(&minted.token, NOW - LEEWAY_S).is_ok(), "clocks differ");
    check(&minted.token, NOW - LEEWAY_S - 1, RejectCode::TokenInvalid);
    let invalid = |token: &str| check(token, NOW, RejectCode::TokenInvalid);
    let mut theirs = KeyRing::open(other.path(), NOW).expect("made");
    invalid(&theirs.mint(&claims("acme", "ada", &[], 60), NOW).expect("signed").token);
    let whole = &minted.token;
    for token in ["", "a", "a.b", "a.b.c", "..", "...", "a.b.c.d", &whole[..whole.len() - 4], &format!("{whole}.x")] {
        invalid(token);
    }
    invalid(&"x".repeat(TOKEN_BYTES_MAX + 1));
    let kid = ring.current().to_owned();
    let good = json!({ "ten": "acme", "sub": "ada", "allow": [], "iat": NOW, "exp": NOW + 60 });
    assert!(access.check(&forge(dir.path(), Some(&kid), &good), NOW).is_ok());
    invalid(&forge(dir.path(), Some("0000000000000000"), &good));
    invalid(&forge(dir.path(), None, &good));
    for (field, value) in [
        ("ten", json!("a b")),
        ("sub", json!("")),
        ("sub", json!("ai/smollm2")),
        ("allow", json!(["fly:*"])),
        ("exp", json!("soon")),
        ("iat", json!(NOW + 3600)),
        ("ten", json!(null)),
    ] {
        let mut body = good.clone();
        body[field] = value;
        invalid(&forge(dir.path(), Some(&kid), &body));
    }
    let mut long = good.clone();
    long["exp"] = json!(u64::MAX);
    let got = access.check(&forge(dir.path(), Some(&kid), &long), NOW).expect("good");
    assert_eq!(got.credential.expires_s, NOW + TOKEN_TTL_S_MAX, "nothing is good for ever");
    assert_ne!(got.credential.id, 0, "it has an id although it says none");
}

#[test]
fn forged_headers() {
    let dir = TempDir::new();
    let mut ring = KeyRing::open(dir.path(), NOW).expect("made");
    let access = Access { keys: ring.public(), ..Access::default() };
    let token = ring.mint(&claims("acme", "ada", &[], 60), NOW).expect("signed").token;
    let (_, rest) = token.split_once('.').expect("three parts");
    let (body, signature) = rest.split_once('.').expect("three parts");
    let kid = ring.current();
    let path = dir.path().join(store::KEYS_DIRECTORY).join(format!("{kid}.pem"));
    let public = rcgen::KeyPair::from_pem(&fs::read_to_string(path).expect("there")).expect("a key").public_key_pem();
    let check = |header: &Value, signature: &str| {
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let got = code(access.check(&format!("{header}.{body}.{signature}"), NOW));
        assert_eq!(got, Err(RejectCode::TokenInvalid), "{header}");
    };
    for algorithm in ["none", "None", "NONE", "HS256", "HS512", "RS256", "ES256", "EdDSA", ""] {
        check(&json!({ "alg": algorithm, "kid": kid }), "");
    }
    check(&json!({ "alg": "HS256", "kid": kid }), signature);
    check(&json!({ "alg": "EdDSA", "kid": kid, "crit": ["b64"], "b64": false }), signature);
    // Whoever takes the public key for a shared secret believes this one.
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
    let claims = json!({ "ten": "acme", "sub": "eve", "allow": ["admin:*"], "iat": NOW, "exp": NOW + 60 });
    let forged = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(public.as_bytes())).expect("signed");
    assert_eq!(code(access.check(&forged, NOW)), Err(RejectCode::TokenInvalid));
}

fn issuers(issuers: Vec<IssuerConfig>, keys: &[&TestKey]) -> Access {
    let config = AccessConfig { issuers, ..AccessConfig::default() };
    let set = json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string();
    let known = config.checked_issuers().expect("valid").into_iter().map(|issuer| {
        let keys = jwks::parse(set.as_bytes()).expect("usable");
        IssuerKeys::unknown(Arc::new(issuer)).with(keys, NOW + 1_000)
    });
    Access { issuers: known.collect(), ..Access::default() }
}

fn body() -> Value {
    json!({ "iss": URL, "aud": "thalweg", "sub": "ada", "iat": NOW, "exp": NOW + 600, "jti": "x1" })
}

#[test]
fn tokens_of_issuers() {
    let keys = [("r", Algorithm::RS256), ("e", Algorithm::ES256), ("d", Algorithm::EdDSA)]
        .map(|(kid, a)| TestKey::new(kid, a));
    let access = issuers(vec![config(URL)], &keys.each_ref());
    for key in &keys {
        let got = access.check(&key.sign(&body()), NOW).expect("good");
        assert_eq!((got.tenant, got.user, got.permissions), (name("acme"), name("ada"), allow(&["read:*"])));
        assert!(got.credential.id != 0 && got.credential.issued_s == NOW);
    }
    let key = &keys[2];
    let with = |field: &str, value: Value| {
        let mut body = body();
        body[field] = value;
        key.sign(&body)
    };
    let check = |token: &str, expected: Result<(), RejectCode>| {
        assert_eq!(code(access.check(token, NOW)).map(drop), expected, "{:?}", identify(token));
    };
    check(&with("aud", json!(["other", "thalweg"])), Ok(()));
    check(&with("iat", json!(NOW as f64 + 0.5)), Ok(()));
    for (field, value) in [
        ("aud", json!("other")),
        ("aud", json!([])),
        ("aud", json!(null)),
        ("iss", json!("https://id.example.com/")),
        ("iss", json!("https://evil.example.com")),
        ("iss", json!(7)),
        ("sub", json!(null)),
        ("sub", json!("a b")),
        ("sub", json!("ai/x")),
        ("iat", json!(null)),
        ("iat", json!(NOW + 31)),
        ("nbf", json!(NOW + 31)),
        ("exp", json!(null)),
        ("exp", json!("never")),
    ] {
        check(&with(field, value), Err(RejectCode::TokenInvalid));
    }
    check(&with("exp", json!(NOW - 31)), Err(RejectCode::TokenExpired));
    check(&with("exp", json!(NOW - 29)), Ok(()));
    // A key is good for its own algorithm, and only its own issuer's.
    let mut confused = TestKey::new("r", Algorithm::EdDSA);
    check(&confused.sign(&body()), Err(RejectCode::TokenInvalid));
    confused.kid = Some("d");
    check(&confused.sign(&body()), Err(RejectCode::TokenInvalid));
    confused.kid = Some("new");
    check(&confused.sign(&body()), Err(RejectCode::IssuerUnavailable));
    confused.kid = None;
    check(&confused.sign(&body()), Err(RejectCode::TokenInvalid));
    assert_eq!(access.check(&key.sign(&body()), NOW + 1_001), Err(Refusal::AskIssuer(0)), "keys are kept for a time");
}

#[test]
fn claims_become_tenants_users_and_permissions() {
    let key = TestKey::new("d", Algorithm::EdDSA);
    let base = IssuerConfig {
        tenant: None,
        tenant_claim: Some("org.name".into()),
        tenants: vec!["acme-*".into()],
        user_claim: Some("https://example.com/user".into()),
        user_prefix: "sso/".into(),
        allow: Vec::new(),
        allow_claim: Some("scope".into()),
        role_claim: Some("realm_access.roles".into()),
        roles: [("staff".to_owned(), vec!["write:*".to_owned(), "ask:*".to_owned()])].into(),
        ..config(URL)
    };
    let access = issuers(vec![base], &[&key]);
    let mut claims = body();
    claims["org"] = json!({ "name": "acme-eu" });
    claims["https://example.com/user"] = json!("ada");
    claims["scope"] = json!("read:a read:b-*");
    claims["realm_access"] = json!({ "roles": ["staff", "unknown", 7] });
    let got = access.check(&key.sign(&claims), NOW).expect("good");
    assert_eq!((got.tenant, got.user), (name("acme-eu"), name("sso/ada")));
    assert_eq!(got.permissions, allow(&["write:*", "ask:*", "read:a", "read:b-*"]));
    for (field, value) in [
        ("org", json!({ "name": "default" })),
        ("org", json!("acme-eu")),
        ("scope", json!("read")),
        ("https://example.com/user", json!(["ada"])),
    ] {
        let mut claims = claims.clone();
        claims[field] = value;
        assert_eq!(code(access.check(&key.sign(&claims), NOW)), Err(RejectCode::TokenInvalid), "{field}");
    }
}

#[test]
fn what_is_revoked_lets_nobody_in() {
    let dir = TempDir::new();
    let mut ring = KeyRing::open(dir.path(), NOW).expect("made");
    let mut tokens = Vec::new();
    for (tenant, user) in [("a", "ada"), ("a", "bob"), ("b", "ada")] {
        tokens.push(ring.mint(&claims(tenant, user, &[], 600), NOW).expect("signed"));
    }
    let base = Access { keys: ring.public(), ..Access::default() };
    let check = |what: Revoked, expected: [bool; 3]| {
        let mut revocations = Revocations::default();
        revocations.add(what.clone(), "", NOW).expect("room");
        let access = Access { revocations: Arc::new(revocations), ..base.clone() };
        let got = tokens.iter().map(|token| match code(access.check(&token.token, NOW)) {
            Ok(_) => true,
            Err(code) => {
                assert_eq!(code, RejectCode::TokenRevoked);
                false
            }
        });
        assert!(got.eq(expected), "{what:?}");
    };
    check(Revoked::Token { tenant: name("a"), id: tokens[0].id, expires_s: None }, [false, true, true]);
    check(Revoked::Token { tenant: name("b"), id: tokens[0].id, expires_s: None }, [true, true, true]);
    check(Revoked::User { tenant: name("a"), user: name("ada") }, [false, true, true]);
    check(Revoked::Tenant { tenant: name("a") }, [false, false, true]);
    // One who is in has to go when what it stands on is gone.
    let got = base.check(&tokens[0].token, NOW).expect("good");
    let objection = |access: &Access, at| {
        let Admission { tenant, user, credential, source, .. } = &got;
        access.objection(tenant, user, credential, source, at).map(|reject| reject.code)
    };
    assert_eq!(objection(&base, NOW), None);
    assert_eq!(objection(&base, NOW + 601 + LEEWAY_S), Some(RejectCode::TokenExpired));
    ring.rotate(NOW, false).expect("rotated");
    assert_eq!(objection(&Access { keys: ring.public(), ..base.clone() }, NOW), None, "an old key still verifies");
    ring.rotate(NOW, true).expect("rotated");
    assert_eq!(objection(&Access { keys: ring.public(), ..base.clone() }, NOW), Some(RejectCode::TokenRevoked));
}

#[test]
fn api_keys() {
    let mut keys = ApiKeys::default();
    let who = (name("a"), name("bot"));
    let (id, text) = keys.create(who, allow(&["read:*"]), (NOW, NOW + 60), String::new()).expect("room");
    let access = Access { api_keys: Arc::new(keys), ..Access::default() };
    let got = access.check(&text, NOW).expect("good");
    assert_eq!((got.tenant.clone(), got.credential.id), (name("a"), id.into()));
    assert_eq!(code(access.check(&text, NOW + 61 + LEEWAY_S)), Err(RejectCode::TokenExpired));
    assert_eq!(code(access.check(&text[..text.len() - 1], NOW)), Err(RejectCode::TokenInvalid));
    assert_eq!(code(Access::default().check(&text, NOW)), Err(RejectCode::TokenInvalid));
    let gone = Access::default().objection(&got.tenant, &got.user, &got.credential, &got.source, NOW);
    assert_eq!(gone.map(|reject| reject.code), Some(RejectCode::TokenRevoked));
}

#[test]
fn tools_sign_without_the_node() {
    let dir = TempDir::new();
    assert!(!Keys::are_in(dir.path()));
    let keys = Keys::open(dir.path()).expect("made");
    assert!(Keys::are_in(dir.path()));
    let token = keys.mint(&claims("acme", "ada", &["read:*"], 60)).expect("signed");
    let principal = keys.check(&token, SessionId(7)).expect("good");
    assert_eq!((principal.user, principal.session), (name("ada"), SessionId(7)));
    let error = keys.mint(&claims("acme", "ada", &[], TOKEN_TTL_S_MAX + 1)).expect_err("too long").to_string();
    assert!(error.contains("ask for less"), "{error}");
    // A token that is made in the second in which its user is revoked is not covered.
    let mut revocations = Revocations::default();
    revocations.add(Revoked::User { tenant: name("acme"), user: name("ada") }, "", now_s()).expect("room");
    revocations.write(dir.path()).expect("written");
    assert_eq!(keys.check(&token, SessionId(7)).map_err(|reject| reject.code), Err(RejectCode::TokenRevoked));
    let token = keys.mint(&claims("acme", "ada", &[], 60)).expect("signed");
    assert!(keys.check(&token, SessionId(7)).is_ok());
    let files = files(dir.path()).expect("there");
    let paths: Vec<_> = files.iter().map(|path| path.to_str().expect("plain")).collect();
    assert!(paths.contains(&"access/keys.json") && paths.contains(&"access/revoked.json") && paths.len() == 3);
    assert!(paths.iter().all(|path| is_file(path)) && !is_file("access/lock") && !is_file("access/keys/../x.pem"));
}

proptest! {
    #[test]
    fn whatever_is_shown_as_a_token_is_refused(token in "\\PC{0,200}") {
        prop_assert!(Access::default().check(&token, NOW).is_err());
        let _ = identify(&token);
    }

    #[test]
    fn a_changed_token_is_refused(at in 0_usize..1_000, byte in 0_u8..128) {
        let key = TestKey::new("d", Algorithm::EdDSA);
        let access = issuers(vec![config(URL)], &[&key]);
        let token = key.sign(&body());
        let mut bytes = token.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).expect("ASCII");
        // The last character of a part carries bits that mean nothing; a decoder that is strict refuses other ones.
        prop_assert!(changed == token || access.check(&changed, NOW).is_err(), "{}", changed);
    }

    #[test]
    fn nearly_tokens_are_refused(header in "\\PC{0,60}", body in "\\PC{0,60}", signature in "[A-Za-z0-9_-]{0,86}") {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.{signature}", part(&header), part(&body));
        prop_assert!(Access::default().check(&token, NOW).is_err());
    }
}
