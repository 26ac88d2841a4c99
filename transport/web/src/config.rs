//! What the stage is told before it starts.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use thalweg_protocol::limits;

/// Where HTTP is served if nobody says otherwise.
pub const DEFAULT_ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// What the stage is told before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Where HTTP is served; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Whether plain HTTP may be served to other machines: whoever listens on the way reads tokens.
    pub allow_plain: bool,
    /// Threads, each with a share of the connections.
    pub threads: usize,
    /// Origins whose pages may use the API from a browser, such as `https://chat.example.com`; `*` for all. By default none:
    /// the API takes no cookies, so that a page can do nothing without a token, but whoever wants none finds none.
    pub cors: Vec<String>,
    /// What a client can press against.
    pub limits: WebLimits,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self { addr: DEFAULT_ADDR, allow_plain: false, threads: 1, cors: Vec::new(), limits: WebLimits::default() }
    }
}

/// What a client can press against. `Default` is what [`thalweg_protocol::limits`] says; tests are less patient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebLimits {
    /// Connections open at a time, over all threads.
    pub connections: usize,
    /// Bytes of a request before its body, at least 8 KiB.
    pub header_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's body outside of the API, which has a limit of its own.
    pub body_bytes: usize,
    /// Until a request's headers are there.
    pub header_timeout: Duration,
    /// Until a request's body is there, and, but for the API's answers, until it is answered.
    pub request_timeout: Duration,
    /// How long a client may take nothing of its answer.
    pub stall_timeout: Duration,
    /// Until a core has answered.
    pub core_timeout: Duration,
    /// Until a session is open: its token may have to be checked with whoever issued it.
    pub session_timeout: Duration,
    /// Until what is under way is given up at the end.
    pub grace: Duration,
    /// A WebSocket that is silent for this long is pinged.
    pub socket_ping: Duration,
    /// A WebSocket of which nothing is heard for this long is closed.
    pub socket_idle: Duration,
}

impl Default for WebLimits {
    fn default() -> Self {
        Self {
            connections: limits::WEB_CONNECTIONS_MAX,
            header_bytes: limits::WEB_HEADER_BYTES_MAX,
            headers: limits::WEB_HEADERS_MAX,
            body_bytes: limits::WEB_BODY_BYTES_MAX,
            header_timeout: Duration::from_millis(limits::WEB_HEADER_TIMEOUT_MS),
            request_timeout: Duration::from_millis(limits::WEB_REQUEST_TIMEOUT_MS),
            stall_timeout: Duration::from_millis(limits::WEB_STALL_TIMEOUT_MS),
            core_timeout: Duration::from_millis(limits::WEB_CORE_TIMEOUT_MS),
            session_timeout: Duration::from_millis(limits::HELLO_TIMEOUT_MS),
            grace: Duration::from_millis(limits::WEB_GRACE_MS),
            socket_ping: Duration::from_millis(limits::KEEP_ALIVE_MS),
            socket_idle: Duration::from_millis(limits::IDLE_TIMEOUT_MS),
        }
    }
}
