//! What is to be known of a remote, checked as it is read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use thalweg_protocol::ids::Name;

use crate::limits::{REMOTE_KEY_BYTES_MAX, REMOTE_MODELS_MAX, REMOTE_TIMEOUT};

/// Why a remote cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Its address makes no sense.
    #[error("url {url:?}: {what}; write such as https://api.example.com/v1, to which /chat/completions is added")]
    Url {
        /// As it was written, without what could be a password.
        url: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The file of its key cannot be read.
    #[error("key_file {path}: {source}; the node must be able to read it")]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What lies in that file is no key.
    #[error("key_file {path}: {what}; it holds the key alone, on one line")]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Two models have one name.
    #[error("two models are named {0}; rename one")]
    Twice(Name),
    /// There is no such model.
    #[error("no model with a remote is named {0}")]
    Unknown(Name),
    /// There are too many.
    #[error("{0} models with a remote; at most {REMOTE_MODELS_MAX}")]
    TooMany(usize),
    /// The system refuses a thread or a descriptor.
    #[error("the stage for remote models cannot start: {0}")]
    System(#[from] std::io::Error),
    /// The thread has ended.
    #[error("the stage for remote models has ended; the node is going away")]
    Ended,
}

/// A key that a remote knows the node by. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Arc<str>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Reads a key from a file that holds nothing else.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no key.
    pub fn read(path: &Path) -> Result<Self, RemoteError> {
        let failed = |source| RemoteError::KeyFile { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(failed)?.len();
        let wrong = |what: String| RemoteError::Key { path: path.to_owned(), what };
        if bytes > REMOTE_KEY_BYTES_MAX as u64 {
            return Err(wrong(format!("{bytes} bytes; a key has at most {REMOTE_KEY_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::new(text.trim()).map_err(|what| wrong(what.into()))
    }

    /// A key that was read elsewhere.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        match text {
            "" => Err("it is empty"),
            text if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err("it holds something else than visible ASCII")
            }
            text => Ok(Self(text.into())),
        }
    }

    /// What goes into the header, marked as not to be shown.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Where a remote listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether by TLS.
    pub tls: bool,
    /// Its name or address, without the brackets of IPv6.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What stands before `/chat/completions`; no slash at its end.
    pub path: String,
}

impl Endpoint {
    /// Reads an address such as `https://api.example.com/v1`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, RemoteError> {
        let shown = match url.rsplit_once('@') {
            Some((_, rest)) => format!("…@{rest}"),
            None => url.to_owned(),
        };
        let wrong = |what| RemoteError::Url { url: shown.clone(), what };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no address"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it holds a user or a password; use key_file"));
        }
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || authority.port().is_some() != authority.port_u16().is_some() {
            return Err(wrong("its host or port makes no sense"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { tls, host, port, path })
    }

    /// What the `Host` header says.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// A model that somebody else runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteModel {
    /// The name requests give here.
    pub name: Name,
    /// Where it is.
    pub endpoint: Endpoint,
    /// The name it has there.
    pub remote_name: String,
    /// What the node shows there, if anything.
    pub key: Option<Key>,
    /// Time until the first token, and between two.
    pub timeout: Duration,
}

impl RemoteModel {
    /// A model that has the same name there, needs no key, and gets [`REMOTE_TIMEOUT`].
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn new(name: Name, url: &str) -> Result<Self, RemoteError> {
        let (endpoint, remote_name) = (Endpoint::parse(url)?, name.to_string());
        Ok(Self { name, endpoint, remote_name, key: None, timeout: REMOTE_TIMEOUT })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_with_what_is_wrong() {
        let check =
            |url: &str, expected: Result<(bool, &str, u16, &str, &str), &str>| match (Endpoint::parse(url), expected) {
                (Ok(endpoint), Ok((tls, host, port, path, authority))) => {
                    assert_eq!(endpoint.authority(), authority, "{url}");
                    let (host, path) = (host.to_owned(), path.to_owned());
                    assert_eq!(endpoint, Endpoint { tls, host, port, path }, "{url}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{url}: {error}"),
                (got, expected) => panic!("{url}: {got:?}, not {expected:?}"),
            };
        check("https://api.example.com/v1", Ok((true, "api.example.com", 443, "/v1", "api.example.com")));
        check("https://api.example.com", Ok((true, "api.example.com", 443, "", "api.example.com")));
        check("http://127.0.0.1:8080/v1/", Ok((false, "127.0.0.1", 8080, "/v1", "127.0.0.1:8080")));
        check("http://[::1]:80/a/b", Ok((false, "::1", 80, "/a/b", "[::1]")));
        check("ftp://example.com/", Err("neither https:// nor http://"));
        check("example.com/v1", Err("url \"example.com/v1\""));
        check("https://me:secret@example.com/v1", Err("key_file"));
        check("https://example.com/v1?key=1", Err("query"));
        check("https://exa mple.com", Err("no address"));
        let error = Endpoint::parse("https://me:secret@example.com/v1").expect_err("refused").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn keys_are_read_from_files_and_never_shown() {
        let directory = std::env::temp_dir().join(format!("thalweg-remote-key-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("key");
        let check = |content: &[u8], expected: Result<&str, &str>| {
            std::fs::write(&path, content).expect("written");
            match (Key::read(&path), expected) {
                (Ok(key), Ok(header)) => {
                    let value = key.header().expect("a header");
                    assert_eq!((value.to_str().expect("ASCII"), value.is_sensitive()), (header, true));
                    assert!(!format!("{key:?}{value:?}").contains("abc"));
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (got, expected) => panic!("{got:?}, not {expected:?}"),
            }
        };
        check(b"sk-abc\n", Ok("Bearer sk-abc"));
        check(b"\n", Err("empty"));
        check(b"two words", Err("visible ASCII"));
        check(&[b'x'; REMOTE_KEY_BYTES_MAX + 1], Err("at most"));
        std::fs::remove_dir_all(&directory).expect("removed");
        let error = Key::read(&path).expect_err("it is gone").to_string();
        assert!(error.contains("key_file"), "{error}");
    }
}
