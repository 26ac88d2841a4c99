//! Which node is the right one: its public key is pinned.
//!
//! What is pinned is the SHA-256 of the DER `SubjectPublicKeyInfo` (as in RFC 7469, section 2.4), not the certificate, so
//! that a node may reissue short-lived certificates from one key. The handshake's signature is always checked: showing a
//! certificate proves nothing, using its key does. Names and dates in a pinned certificate are not looked at.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

use crate::error::ClientError;

/// SHA-256 of a node's public key (DER `SubjectPublicKeyInfo`), written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of this DER `SubjectPublicKeyInfo`.
    pub fn of_spki(der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The hash of the key in this DER certificate; `None` if it is not a certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Self::of_spki(&parsed.subject_public_key_info()))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyHash {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let invalid = || ClientError::Invalid {
            what: "key hash",
            text: text.chars().take(80).collect(),
            reason: "is not 64 hexadecimal digits".into(),
        };
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(hash))
    }
}

/// A node nobody vouched for yet.
#[derive(Debug, Clone)]
pub struct FirstContact {
    /// The address as it was given, `host:port`.
    pub server: String,
    /// The key it showed. That it holds it is proved in the handshake that follows a yes.
    pub key: KeyHash,
}

/// Asked whether a node met for the first time is to be trusted. May block: it is called on a thread of its own.
pub type AskTrust = Arc<dyn Fn(&FirstContact) -> bool + Send + Sync>;

/// Whom to believe.
#[derive(Clone)]
pub enum Trust {
    /// The node with this key, no other.
    PinnedKey(KeyHash),
    /// The key that was seen at this address before; on first contact, ask and remember.
    FirstUse {
        /// A text file of `host:port sha256:HEX` lines, made when the first key is remembered.
        store: PathBuf,
        /// Says whether a key seen for the first time is right.
        ask: AskTrust,
    },
    /// A node whose certificate is one of these or was issued by one of these; names and dates count.
    Certificate(Vec<CertificateDer<'static>>),
}

impl Trust {
    /// Trusts nodes whose certificates were issued by the authorities in this PEM file.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no certificate.
    pub fn authorities(path: &Path) -> Result<Self, ClientError> {
        let fault = |reason: String| ClientError::File { path: path.to_path_buf(), reason };
        let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let roots = roots.map_err(|error| fault(error.to_string()))?;
        if roots.is_empty() {
            return Err(fault(
                "it holds no certificate; it must be PEM, with lines like -----BEGIN CERTIFICATE-----".into(),
            ));
        }
        Ok(Self::Certificate(roots))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PinnedKey(key) => write!(f, "PinnedKey({key})"),
            Self::FirstUse { store, .. } => write!(f, "FirstUse({})", store.display()),
            Self::Certificate(roots) => write!(f, "Certificate({} roots)", roots.len()),
        }
    }
}

/// Accepts one key, and notes what key was shown.
#[derive(Debug)]
pub(crate) struct PinnedKeyVerifier {
    /// `None` accepts no key: the handshake is only made to see which one there is.
    pub(crate) expected: Option<KeyHash>,
    pub(crate) seen: Arc<Mutex<Option<KeyHash>>>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key = KeyHash::of_certificate(end_entity).ok_or(CertificateError::BadEncoding)?;
        *self.seen.lock().expect("nothing panics under this lock") = Some(key);
        if self.expected == Some(key) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // QUIC speaks TLS 1.3 only (RFC 9001, section 4.2).
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The key remembered for `server`, with the number of its line.
///
/// # Errors
/// If the file cannot be read, or a line of it about this server is not a key.
pub(crate) fn known_key(store: &Path, server: &str) -> Result<Option<(KeyHash, usize)>, ClientError> {
    let fault = |reason: String| ClientError::File { path: store.to_path_buf(), reason };
    let text = match std::fs::read_to_string(store) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error.to_string())),
    };
    for (at, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        if words.next() != Some(server) {
            continue;
        }
        let key = words.next().unwrap_or_default().parse();
        return match key {
            Ok(key) => Ok(Some((key, at + 1))),
            Err(_) => Err(fault(format!("line {} is damaged; remove it to be asked again", at + 1))),
        };
    }
    Ok(None)
}

/// Adds the key of `server` to the store, making the file (mode 0600) and its directories if need be.
pub(crate) fn remember_key(store: &Path, server: &str, key: KeyHash) -> Result<(), ClientError> {
    let write = || -> std::io::Result<()> {
        if let Some(directory) = store.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(store)?;
        // One write, so that two clients that learn at once do not mix their lines.
        file.write_all(format!("{server} sha256:{key}\n").as_bytes())
    };
    write().map_err(|error| ClientError::File { path: store.to_path_buf(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_hashes_are_read_strictly() {
        let key = KeyHash([0xab; 32]);
        let check = |text: &str, expected: Option<KeyHash>| {
            assert_eq!(text.parse::<KeyHash>().ok(), expected, "{text:?}");
        };
        check(&key.to_string(), Some(key));
        check(&format!("sha256:{key}"), Some(key));
        check("", None);
        check(&"a".repeat(63), None);
        check(&"g".repeat(64), None);
        check(&format!("{}é", "a".repeat(62)), None);
    }

    #[test]
    fn authorities_are_read_from_a_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let check = |text: &str, expected: Result<usize, &str>| {
            std::fs::write(&path, text).expect("written");
            match (Trust::authorities(&path), expected) {
                (Ok(Trust::Certificate(roots)), Ok(count)) => assert_eq!(roots.len(), count),
                (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{error}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        check(&made.cert.pem().repeat(2), Ok(2));
        check("", Err("no certificate"));
        check("-----BEGIN CERTIFICATE-----", Err("ca.pem"));
    }

    #[test]
    fn keys_are_remembered_per_server() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = directory.path().join("deep/known_nodes");
        let (one, two) = (KeyHash([1; 32]), KeyHash([2; 32]));
        assert_eq!(known_key(&store, "a:1").expect("no file is no key"), None);
        remember_key(&store, "a:1", one).expect("written");
        remember_key(&store, "b:1", two).expect("written");
        assert_eq!(known_key(&store, "a:1").expect("read"), Some((one, 1)));
        assert_eq!(known_key(&store, "b:1").expect("read"), Some((two, 2)));
        std::fs::write(&store, "a:1 sha256:zz\n").expect("written");
        let error = known_key(&store, "a:1").expect_err("damaged").to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
