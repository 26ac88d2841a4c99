//! The certificate a node shows: one of its own making, or one that an authority issued.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thalweg_quic::{QuicError, TlsIdentity};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::identity::{DataDir, IdentityError, write_secret};

/// The certificate that a node makes for itself, within the data directory.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// Its key.
pub const CERTIFICATE_KEY_FILE: &str = "certificate.key";

/// A certificate of an operator's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the node's own certificate first, then those that link it to its authority.
    pub certificate: PathBuf,
    /// PEM: the private key of the first, as PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// What can be wrong with a certificate of an operator's own.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; check quic.certificate and quic.key, and that the node's user may read both", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has no PEM of the right kind.
    #[error("{} holds no {wanted}: {reason}; it must be PEM, a text with lines like -----BEGIN {example}-----", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// How that begins.
        example: &'static str,
        /// What was found.
        reason: String,
    },
    /// The first certificate of the chain cannot be understood.
    #[error("the first certificate of {} cannot be understood: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Key and certificate do not belong together.
    #[error(
        "the key in {} is not the key of the first certificate in {}; name the key that the certificate was issued for, and \
         put the node's own certificate before those of its authorities", key.display(), certificate.display()
    )]
    Mismatch {
        /// The file with the chain.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
    },
    /// The key, or the certificate, is of a kind that cannot be used.
    #[error(
        "the certificate in {} with the key in {} cannot be used: {reason}; use ECDSA (P-256 or P-384), Ed25519, or RSA of at \
         least 2048 bits", certificate.display(), key.display()
    )]
    Unusable {
        /// The file with the chain.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is not valid at this time, and would replace one that is.
    #[error("the certificate in {} is {state}; the node goes on with the one it has", path.display())]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// Since when, or until when.
        state: String,
    },
}

/// The node's certificate, its key, and the hash by which clients know it.
pub struct Certificate {
    /// The node's own certificate, then those that link it to its authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// SHA-256 of the DER `SubjectPublicKeyInfo`, in hexadecimal: what clients pin.
    pub key_sha256: String,
    /// From when on until when it is valid.
    pub validity: Validity,
    /// The names and addresses it is for.
    pub names: Vec<String>,
}

/// From when until when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from_s: i64,
    /// The last second.
    pub until_s: i64,
}

/// What a certificate's dates say about a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It begins in so many seconds.
    NotYet(i64),
    /// It is valid for so many seconds more.
    Valid(i64),
    /// It ended so many seconds ago.
    Expired(i64),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |seconds: i64| match seconds {
            ..120 => format!("{seconds} s"),
            120..7_200 => format!("{} min", seconds / 60),
            7_200..172_800 => format!("{} h", seconds / 3_600),
            _ => format!("{} days", seconds / 86_400),
        };
        match *self {
            Self::NotYet(in_s) => write!(f, "not valid yet: it will be in {}", time(in_s)),
            Self::Valid(for_s) => write!(f, "valid for another {}", time(for_s)),
            Self::Expired(since_s) => write!(f, "expired since {}", time(since_s)),
        }
    }
}

impl Validity {
    /// What the dates say about this second since 1970.
    pub fn at(&self, now_s: i64) -> State {
        if now_s < self.from_s {
            State::NotYet(self.from_s - now_s)
        } else if now_s > self.until_s {
            State::Expired(now_s - self.until_s)
        } else {
            State::Valid(self.until_s - now_s)
        }
    }

    /// What the dates say about now.
    pub fn now(&self) -> State {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.at(now.as_secs() as i64)
    }
}

impl Certificate {
    /// Opens the operator's certificate if there is one, else that of the data directory.
    ///
    /// # Errors
    /// As [`made`](Self::made) and [`read`](Self::read).
    pub fn open(data: &DataDir, own: Option<&CertificateFiles>) -> Result<Self, IdentityError> {
        match own {
            Some(files) => Ok(Self::read(files)?),
            None => Self::made(data),
        }
    }

    /// Opens the certificate of a data directory. Made from a key that is kept, so that it can be made again without
    /// clients noticing.
    ///
    /// # Errors
    /// If a file cannot be read or written, or holds something else.
    pub fn made(data: &DataDir) -> Result<Self, IdentityError> {
        let key_path = data.path().join(CERTIFICATE_KEY_FILE);
        let damaged =
            |reason: rcgen::Error| IdentityError::Damaged { path: key_path.clone(), reason: reason.to_string() };
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(damaged)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(damaged)?;
                write_secret(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
            Err(source) => return Err(IdentityError::File { action: "read", path: key_path, source }),
        };
        let names: Vec<_> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        let mut params = CertificateParams::new(names.clone()).map_err(damaged)?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "thalweg");
        let validity =
            Validity { from_s: params.not_before.unix_timestamp(), until_s: params.not_after.unix_timestamp() };
        let certificate = params.self_signed(&key).map_err(damaged)?;
        write_secret(&data.path().join(CERTIFICATE_FILE), certificate.pem().as_bytes())?;
        Ok(Self {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            key_sha256: sha256(&key.subject_public_key_info()),
            validity,
            names,
        })
    }

    /// Reads an operator's certificate, and checks that chain and key can be used together. Its dates are not looked at: see
    /// [`validity`](Self::validity).
    ///
    /// # Errors
    /// [`CertificateError`], naming the files.
    pub fn read(files: &CertificateFiles) -> Result<Self, CertificateError> {
        let path = &files.certificate;
        let pem = read(path)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let no_certificate = |reason: String| CertificateError::Pem {
            path: path.clone(),
            wanted: "certificate",
            example: "CERTIFICATE",
            reason,
        };
        let chain = chain.map_err(|error| no_certificate(error.to_string()))?;
        let Some(first) = chain.first() else { return Err(no_certificate("it has no such section".into())) };
        let strange = |reason: String| CertificateError::Certificate { path: path.clone(), reason };
        let parsed = x509_cert::Certificate::from_der(first).map_err(|error| strange(error.to_string()))?;
        let body = &parsed.tbs_certificate;
        let spki = body.subject_public_key_info.to_der().map_err(|error| strange(error.to_string()))?;
        let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs() as i64;
        let validity =
            Validity { from_s: seconds(body.validity.not_before), until_s: seconds(body.validity.not_after) };
        let key = read_key(&files.key)?;
        let read = Self { key_sha256: sha256(&spki), validity, names: names(&parsed), chain, key };
        match read.identity() {
            Ok(_) => Ok(read),
            Err(QuicError::Certificate(rustls::Error::InconsistentKeys(_))) => {
                Err(CertificateError::Mismatch { certificate: path.clone(), key: files.key.clone() })
            }
            Err(error) => Err(CertificateError::Unusable {
                certificate: path.clone(),
                key: files.key.clone(),
                reason: match error {
                    QuicError::Certificate(reason) => reason.to_string(),
                    other => other.to_string(),
                },
            }),
        }
    }

    /// What cores show of it.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn identity(&self) -> Result<TlsIdentity, QuicError> {
        TlsIdentity::native((self.chain.clone(), self.key.clone_key()))
    }
}

/// Without the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("key_sha256", &self.key_sha256)
            .field("validity", &self.validity)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::File { path: path.to_owned(), source })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| CertificateError::Pem {
        path: path.to_owned(),
        wanted: "private key",
        example: "PRIVATE KEY",
        reason: match error {
            rustls::pki_types::pem::Error::NoItemsFound => "it has no such section, or it is encrypted".into(),
            other => other.to_string(),
        },
    })
}

fn sha256(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names and addresses a certificate is for, as far as they are such.
fn names(certificate: &x509_cert::Certificate) -> Vec<String> {
    let Ok(Some((_, names))) = certificate.tbs_certificate.get::<SubjectAltName>() else { return Vec::new() };
    let shown = names.0.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(bytes) => match *bytes.as_bytes() {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            ref bytes => <[u8; 16]>::try_from(bytes).ok().map(|all| std::net::Ipv6Addr::from(all).to_string()),
        },
        _ => None,
    });
    shown.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::identity::tests::TempDir;

    /// Writes a certificate for localhost and its key, of this kind and these years; gives where.
    pub(crate) fn write_certificate(
        dir: &Path,
        name: &str,
        kind: &'static rcgen::SignatureAlgorithm,
        years: (i32, i32),
    ) -> CertificateFiles {
        let key = KeyPair::generate_for(kind).expect("a key");
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("valid names");
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(years.0, 1, 1), rcgen::date_time_ymd(years.1, 1, 1));
        let certificate = params.self_signed(&key).expect("signed");
        let files =
            CertificateFiles { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        fs::write(&files.certificate, certificate.pem()).expect("written");
        fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    #[test]
    fn certificates_of_ones_own_are_read_or_refused_by_name() {
        let dir = TempDir::new();
        let good = write_certificate(dir.path(), "good", &rcgen::PKCS_ECDSA_P256_SHA256, (2020, 2100));
        let other = write_certificate(dir.path(), "other", &rcgen::PKCS_ED25519, (2020, 2100));
        let old = write_certificate(dir.path(), "old", &rcgen::PKCS_ECDSA_P384_SHA384, (2020, 2021));
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "").expect("written");
        let garbage = dir.path().join("garbage.pem");
        fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("written");
        let check = |certificate: &Path, key: &Path, expected: Result<(), &[&str]>| {
            let files = CertificateFiles { certificate: certificate.to_owned(), key: key.to_owned() };
            match (Certificate::read(&files), expected) {
                (Ok(read), Ok(())) => {
                    assert!(read.names == ["localhost", "127.0.0.1", "::1"] && read.key_sha256.len() == 64)
                }
                (Err(error), Err(words)) => {
                    let text = error.to_string();
                    assert!(words.iter().all(|word| text.contains(word)), "{text}");
                }
                (read, expected) => panic!("{files:?}: {read:?} instead of {expected:?}"),
            }
        };
        for files in [&good, &other, &old] {
            check(&files.certificate, &files.key, Ok(()));
        }
        check(&good.certificate, &other.key, Err(&["good.pem", "other.key", "not the key"]));
        check(&dir.path().join("none"), &good.key, Err(&["cannot read", "none", "quic.certificate"]));
        check(&good.certificate, &dir.path().join("none"), Err(&["cannot read", "none"]));
        check(&empty, &good.key, Err(&["empty.pem", "no certificate", "BEGIN CERTIFICATE"]));
        check(&good.key, &good.key, Err(&["good.key", "no certificate"]));
        check(&good.certificate, &good.certificate, Err(&["good.pem", "no private key"]));
        check(&garbage, &good.key, Err(&["garbage.pem", "cannot be understood"]));
        let old = Certificate::read(&old).expect("read");
        assert!(matches!(old.validity.now(), State::Expired(_)), "{old:?}");
    }

    #[test]
    fn dates_are_judged() {
        let validity = Validity { from_s: 1_000, until_s: 2_000 };
        let check = |now_s: i64, expected: &str| assert_eq!(validity.at(now_s).to_string(), expected);
        check(900, "not valid yet: it will be in 100 s");
        check(1_000, "valid for another 1000 s".replace("1000 s", "16 min").as_str());
        check(2_000, "valid for another 0 s");
        check(2_001, "expired since 1 s");
        check(2_000 + 90_000, "expired since 25 h");
        check(2_000 + 10 * 86_400, "expired since 10 days");
    }

    #[test]
    fn the_node_makes_one_of_its_own() {
        let dir = TempDir::new();
        let data = DataDir::open(dir.path()).expect("free");
        let (one, two) = (Certificate::made(&data).expect("made"), Certificate::made(&data).expect("found"));
        assert_eq!((one.key_sha256.len(), &one.key_sha256), (64, &two.key_sha256));
        assert!(matches!(one.validity.now(), State::Valid(_)));
        let own = Certificate::read(&CertificateFiles {
            certificate: dir.path().join(CERTIFICATE_FILE),
            key: dir.path().join(CERTIFICATE_KEY_FILE),
        });
        assert_eq!(own.expect("it reads as any other").key_sha256, one.key_sha256);
    }
}
