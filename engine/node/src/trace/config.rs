//! What the node is told about traces: section `[trace]` of the configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ureq::http::{HeaderName, HeaderValue, Uri};

/// Where collectors take spans, after the address that is configured without a path.
const DEFAULT_PATH: &str = "/v1/traces";
/// Longest time that a collector may be given to answer.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Longest name of the service, in bytes.
const SERVICE_NAME_BYTES_MAX: usize = 255;
/// Most headers that are sent along.
const HEADERS_MAX: usize = 16;

/// A value that is never shown: neither printed nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a value into custody.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one who sends it.
    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What is traced, and where it is sent. The default traces nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// The collector's OTLP/HTTP address, for example `http://127.0.0.1:4318`; without a path, spans go to `/v1/traces`
    /// there. None: nothing is traced.
    pub endpoint: Option<String>,
    /// Which part of the requests is traced: from 0, none, to 1, all. A request whose client says that it is traced is
    /// traced whatever this says, up to [`TRACE_PARENTS_PER_SECOND`] a second and core.
    ///
    /// [`TRACE_PARENTS_PER_SECOND`]: thalweg_protocol::limits::TRACE_PARENTS_PER_SECOND
    pub ratio: f64,
    /// The attribute `service.name` of what is sent.
    pub service_name: String,
    /// Headers that the collector wants, such as its key. Their values are never shown.
    pub headers: BTreeMap<String, Secret>,
    /// Longest time a collector may take to answer; what it takes longer for is sent again, or lost.
    pub timeout: Duration,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            // The price of every hundredth request cannot be measured; see bench/README.md.
            ratio: 0.01,
            service_name: "thalweg".into(),
            headers: BTreeMap::new(),
            // What OTLP exporters wait by default.
            timeout: Duration::from_secs(10),
        }
    }
}

/// What is wrong with the configuration of traces.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TraceConfigError {
    /// The address of the collector is none.
    #[error("trace.endpoint is {endpoint:?}: {reason}; write one like http://127.0.0.1:4318")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The ratio is not one.
    #[error("trace.ratio is {0}; give a number from 0 (nothing) to 1 (every request)")]
    Ratio(f64),
    /// The name cannot be sent.
    #[error("trace.service_name has {0} bytes; give 1 to {SERVICE_NAME_BYTES_MAX}")]
    ServiceName(usize),
    /// The time makes no sense.
    #[error("trace.timeout is {0:?}; give 1 ms to {TIMEOUT_MAX:?}")]
    Timeout(Duration),
    /// A header cannot be sent. Its value is not shown.
    #[error("trace.headers.{name}: {reason}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Secrets would go over the network for all to read.
    #[error(
        "trace.headers would go unencrypted to {host}, which is not this machine; use https in trace.endpoint, or a \
         collector on this machine"
    )]
    PlainSecret {
        /// Where to.
        host: String,
    },
}

/// A configuration that was checked, and is not empty.
pub(super) struct Checked {
    pub(super) url: Uri,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").field("url", &self.url).field("headers", &self.headers.len()).finish_non_exhaustive()
    }
}

impl TraceConfig {
    /// Whether anything can be traced.
    pub fn is_on(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Checks what is configured.
    ///
    /// # Errors
    /// [`TraceConfigError`] names the setting and what to write instead.
    pub fn check(&self) -> Result<(), TraceConfigError> {
        self.checked().map(drop)
    }

    pub(super) fn checked(&self) -> Result<Option<Checked>, TraceConfigError> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(TraceConfigError::Ratio(self.ratio));
        }
        let name_bytes = self.service_name.len();
        if !(1..=SERVICE_NAME_BYTES_MAX).contains(&name_bytes) {
            return Err(TraceConfigError::ServiceName(name_bytes));
        }
        if !(Duration::from_millis(1)..=TIMEOUT_MAX).contains(&self.timeout) {
            return Err(TraceConfigError::Timeout(self.timeout));
        }
        let headers = self.checked_headers()?;
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let wrong = |reason: &str| TraceConfigError::Endpoint { endpoint: endpoint.clone(), reason: reason.into() };
        let url = checked_url(endpoint).map_err(|reason| wrong(&reason))?;
        let host = url.host().unwrap_or_default();
        if !headers.is_empty() && url.scheme_str() == Some("http") && !is_loopback(host) {
            return Err(TraceConfigError::PlainSecret { host: host.to_owned() });
        }
        Ok(Some(Checked { url, headers, timeout: self.timeout }))
    }

    fn checked_headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, TraceConfigError> {
        let wrong = |name: &str, reason| TraceConfigError::Header { name: name.to_owned(), reason };
        if let Some(name) = self.headers.keys().nth(HEADERS_MAX) {
            return Err(wrong(name, "there are more than 16 headers; give fewer"));
        }
        let header = |(name, value): (&String, &Secret)| {
            let valid: HeaderName = name.parse().map_err(|_| wrong(name, "this is no name of an HTTP header"))?;
            if ["content-type", "content-length", "content-encoding", "host"].contains(&valid.as_str()) {
                return Err(wrong(name, "the exporter sets this header itself; leave it out"));
            }
            let mut value: HeaderValue = value
                .expose()
                .parse()
                .map_err(|_| wrong(name, "its value has characters that a header cannot have, such as a line's end"))?;
            value.set_sensitive(true);
            Ok((valid, value))
        };
        self.headers.iter().map(header).collect()
    }
}

/// The address that spans are sent to.
fn checked_url(endpoint: &str) -> Result<Uri, String> {
    let uri: Uri = endpoint.parse().map_err(|error| format!("it is no address ({error})"))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        Some(other) => return Err(format!("{other} is not spoken, only http and https")),
        None => return Err("it does not begin with http:// or https://".into()),
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or("it names no host")?;
    if authority.as_str().contains('@') {
        return Err("it holds a user or password, which belong in trace.headers".into());
    }
    if !matches!(uri.path(), "" | "/") {
        return Ok(uri);
    }
    let scheme = uri.scheme_str().unwrap_or("http");
    let whole = Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query(DEFAULT_PATH).build();
    whole.map_err(|error| format!("it is no address ({error})"))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_completed_or_refused() {
        let check = |endpoint: &str, expected: Result<&str, &str>| {
            let config = TraceConfig { endpoint: Some(endpoint.into()), ..TraceConfig::default() };
            match (config.checked(), expected) {
                (Ok(Some(checked)), Ok(url)) => assert_eq!(checked.url.to_string(), url),
                (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{endpoint}: {error}"),
                (got, expected) => panic!("{endpoint}: {got:?}, not {expected:?}"),
            }
        };
        check("http://127.0.0.1:4318", Ok("http://127.0.0.1:4318/v1/traces"));
        check("http://[::1]:4318/", Ok("http://[::1]:4318/v1/traces"));
        check("https://otlp.example.org/some/where?x=1", Ok("https://otlp.example.org/some/where?x=1"));
        check("127.0.0.1:4318", Err("http"));
        check("grpc://collector:4317", Err("grpc is not spoken"));
        check("http://", Err("trace.endpoint"));
        check("http://user:pass@collector/", Err("belong in trace.headers"));
        check("", Err("trace.endpoint"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let check = |change: &dyn Fn(&mut TraceConfig), says: &str| {
            let mut config = TraceConfig { endpoint: Some("http://127.0.0.1:1".into()), ..TraceConfig::default() };
            config.check().expect("good until it is changed");
            change(&mut config);
            let error = config.check().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("hush"), "secrets are not shown: {error}");
        };
        let with = |config: &mut TraceConfig, name: &str, value: &str| {
            config.headers.insert(name.into(), Secret::new(value));
        };
        check(&|config| config.ratio = 1.5, "trace.ratio is 1.5");
        check(&|config| config.ratio = f64::NAN, "trace.ratio");
        check(&|config| config.service_name.clear(), "trace.service_name has 0 bytes");
        check(&|config| config.timeout = Duration::ZERO, "trace.timeout is 0ns");
        check(&|config| with(config, "a b", "hush"), "trace.headers.a b");
        check(&|config| with(config, "x-key", "hush\nhush"), "trace.headers.x-key");
        check(&|config| with(config, "Content-Type", "hush"), "sets this header itself");
        check(&|config| (0..17).for_each(|n| with(config, &format!("x-{n}"), "hush")), "more than 16");
        let plain = |config: &mut TraceConfig| {
            config.endpoint = Some("http://collector.example.org:4318".into());
            with(config, "x-key", "hush");
        };
        check(&plain, "unencrypted to collector.example.org");
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut config = TraceConfig { endpoint: Some("http://127.0.0.1:4318".into()), ..TraceConfig::default() };
        config.headers.insert("x-key".into(), Secret::new("hush"));
        let shown = format!("{config:?} {:?}", config.checked());
        assert!(!shown.contains("hush") && shown.contains("(secret)"), "{shown}");
    }
}
