//! An issuer of tokens on this machine, over plain HTTP, that can be down, slow or talk nonsense.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use thalweg_protocol::reject::RejectCode;

use super::super::config::{AccessConfig, IssuerConfig};
use super::super::fetch;

/// What an issuer does when it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Answers,
    Garbage,
    Endless,
    Silent,
    OtherIssuer,
    KeysElsewhere,
    Error,
    Redirects,
}

pub(super) struct TestIssuer {
    pub(super) url: String,
    pub(super) asked: Arc<AtomicUsize>,
    state: Arc<Mutex<(Mood, Vec<Value>)>>,
}

/// A key pair of an issuer.
pub(super) struct TestKey {
    pub(super) kid: Option<&'static str>,
    pub(super) algorithm: Algorithm,
    signing: EncodingKey,
    public: Value,
}

impl TestKey {
    pub(super) fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        let pair = |algorithm| rcgen::KeyPair::generate_for(algorithm).expect("made");
        let (signing, public) = if algorithm == Algorithm::EdDSA {
            let pair = pair(&rcgen::PKCS_ED25519);
            let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
            let signing = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).expect("a key");
            (signing, json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "x": x }))
        } else {
            let signing = if algorithm == Algorithm::RS256 {
                EncodingKey::from_rsa_pem(include_bytes!("issuer_rsa.pem"))
            } else {
                EncodingKey::from_ec_pem(pair(&rcgen::PKCS_ECDSA_P256_SHA256).serialize_pem().as_bytes())
            };
            let signing = signing.expect("a key");
            let jwk = Jwk::from_encoding_key(&signing, algorithm).expect("a public key");
            (signing, serde_json::to_value(jwk).expect("JSON"))
        };
        Self { kid: Some(kid), algorithm, signing, public }
    }

    pub(super) fn jwk(&self) -> Value {
        let mut jwk = self.public.clone();
        jwk["kid"] = json!(self.kid);
        jwk
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: self.kid.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.signing).expect("signed")
    }
}

impl TestIssuer {
    pub(super) fn start(keys: &[&TestKey]) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(Mutex::new((Mood::Answers, keys.iter().map(|key| key.jwk()).collect())));
        let asked = Arc::new(AtomicUsize::new(0));
        let (own_url, own_state, own_asked) = (url.clone(), Arc::clone(&state), Arc::clone(&asked));
        std::thread::spawn(move || {
            // Connections that are not answered are kept open until the test ends.
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = [0; 4_096];
                let read = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let (mood, keys) = own_state.lock().expect("whole").clone();
                if request.contains("/keys") {
                    own_asked.fetch_add(1, Ordering::SeqCst);
                }
                let (mut status, mut more) = ("200 OK", String::new());
                let body = match mood {
                    Mood::Silent => {
                        silent.push(stream);
                        continue;
                    }
                    Mood::Garbage => "<html>".to_owned(),
                    Mood::Endless => " ".repeat(300 << 10),
                    Mood::Error => {
                        status = "503 Service Unavailable";
                        String::new()
                    }
                    Mood::Redirects => {
                        status = "302 Found";
                        more = "location: http://example.com/\r\n".to_owned();
                        String::new()
                    }
                    Mood::Answers | Mood::OtherIssuer | Mood::KeysElsewhere if request.contains("/keys") => {
                        json!({ "keys": keys }).to_string()
                    }
                    Mood::OtherIssuer => json!({ "issuer": "https://x", "jwks_uri": own_url }).to_string(),
                    Mood::KeysElsewhere => {
                        json!({ "issuer": own_url, "jwks_uri": "http://example.com/keys" }).to_string()
                    }
                    Mood::Answers => json!({ "issuer": own_url, "jwks_uri": format!("{own_url}/keys") }).to_string(),
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Self { url, asked, state }
    }

    pub(super) fn set(&self, mood: Mood, keys: &[&TestKey]) {
        *self.state.lock().expect("whole") = (mood, keys.iter().map(|key| key.jwk()).collect());
    }

    pub(super) fn config(&self) -> IssuerConfig {
        config(&self.url)
    }
}

/// The configuration of an issuer whose users are of the tenant `acme`.
pub(super) fn config(url: &str) -> IssuerConfig {
    IssuerConfig {
        issuer: url.into(),
        audience: "thalweg".into(),
        tenant: Some("acme".into()),
        allow: vec!["read:*".into()],
        ..IssuerConfig::default()
    }
}

#[test]
fn keys_are_fetched_or_it_is_said_why_not() {
    let (rsa, ec, ed) =
        (TestKey::new("r", Algorithm::RS256), TestKey::new("e", Algorithm::ES256), TestKey::new("d", Algorithm::EdDSA));
    let issuer = TestIssuer::start(&[&rsa, &ec, &ed]);
    let fetch = |config: IssuerConfig| {
        let config = AccessConfig { issuers: vec![config], ..AccessConfig::default() };
        fetch::keys_of(&config.checked_issuers().expect("valid")[0]).map(|keys| keys.len())
    };
    assert_eq!(fetch(issuer.config()), Ok(3));
    let direct = IssuerConfig { jwks_url: Some(format!("{}/keys", issuer.url)), ..issuer.config() };
    assert_eq!(fetch(direct), Ok(3));
    let check = |mood: Mood, says: &str| {
        issuer.set(mood, &[&rsa]);
        let error = fetch(issuer.config()).expect_err(says);
        assert!(error.contains(says) && error.contains(&issuer.url), "{error} lacks {says:?}");
    };
    check(Mood::Garbage, "is not JSON");
    check(Mood::Endless, "limit");
    check(Mood::OtherIssuer, "of another issuer");
    check(Mood::KeysElsewhere, "this machine only");
    check(Mood::Error, "503");
    check(Mood::Redirects, "302");
    check(Mood::Silent, "timeout");
    issuer.set(Mood::Answers, &[]);
    assert!(fetch(issuer.config()).expect_err("none").contains("none of the 0 keys"));
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    assert!(fetch(config(&format!("http://{nobody}"))).expect_err("down").contains("refused"));
    let ca = IssuerConfig { ca: Some("/nonexistent/ca.pem".into()), ..issuer.config() };
    assert!(fetch(ca).expect_err("no file").contains("/nonexistent/ca.pem"));
    assert_eq!(RejectCode::IssuerUnavailable as u16, 36, "as the protocol has it");
}
