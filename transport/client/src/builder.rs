//! Describing a client.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use thalweg_protocol::ids::SessionId;
use thalweg_protocol::limits::{
    IDLE_TIMEOUT_MS, IN_FLIGHT_MAX, KEEP_ALIVE_MS, NAME_BYTES_MAX, PASSWORD_BYTES_MAX, TOKEN_BYTES_MAX,
};
use thalweg_protocol::trace::TraceContext;
use tokio::sync::{Notify, watch};

use crate::client::{AsName, Client, ConnectionState, Handle, Shared, semaphores};
use crate::credential::{Credential, LoggedIn, TokenSource};
use crate::dial::{Dialer, Target};
use crate::driver;
use crate::error::ClientError;
use crate::state::State;
use crate::trust::Trust;

/// How long a first connection may take when nothing else was said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lost connection is tried to be replaced when nothing else was said.
const RECONNECT: Duration = Duration::from_secs(60);

/// How a client says who it is, as it was given.
#[derive(Clone)]
enum Who {
    Token(String),
    Password { tenant: String, user: String, password: String },
    Source(TokenSource),
}

impl std::fmt::Debug for Who {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(_) => f.write_str("Token"),
            Self::Password { tenant, user, .. } => write!(f, "Password({tenant}/{user})"),
            Self::Source(_) => f.write_str("Source"),
        }
    }
}

/// Describes a client; [`connect`](Self::connect) makes it.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before connect()"]
pub struct Builder {
    server: Option<String>,
    data: Option<PathBuf>,
    trust: Option<Trust>,
    who: Option<Who>,
    name: String,
    session: Option<SessionId>,
    connect_timeout: Duration,
    keep_alive: Duration,
    reconnect: Option<Duration>,
    in_flight_max: usize,
    make: bool,
    trace: Option<TraceContext>,
    retry_refusals: bool,
    endpoint: Option<quinn::Endpoint>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            server: None,
            data: None,
            trust: None,
            who: None,
            name: concat!("thalweg-client/", env!("CARGO_PKG_VERSION")).into(),
            session: None,
            connect_timeout: CONNECT_TIMEOUT,
            keep_alive: Duration::from_millis(KEEP_ALIVE_MS),
            reconnect: Some(RECONNECT),
            in_flight_max: IN_FLIGHT_MAX,
            make: true,
            trace: None,
            retry_refusals: false,
            endpoint: None,
        }
    }
}

impl Builder {
    /// The node's address, `host:port`; needs [`trust`](Self::trust) and [`token`](Self::token).
    pub fn server(mut self, server: impl Into<String>) -> Self {
        self.server = Some(server.into());
        self
    }

    /// The node of this machine that uses this data directory: its address, key and token are found there, again at each
    /// reconnect. An address given with [`server`](Self::server) goes before it.
    pub fn local(mut self, data: impl Into<PathBuf>) -> Self {
        self.data = Some(data.into());
        self
    }

    /// How the node at [`server`](Self::server) is recognised.
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = Some(trust);
        self
    }

    /// The signed token, or the API key, that says who we are. When it ends, the client ends with
    /// [`ClientError::SignedOut`].
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.who = Some(Who::Token(token.into()));
        self
    }

    /// A name and a password, for which the node gives a token: before the hello, and again when that token has ended.
    pub fn password(mut self, tenant: impl Into<String>, user: impl Into<String>, password: impl Into<String>) -> Self {
        let (tenant, user, password) = (tenant.into(), user.into(), password.into());
        self.who = Some(Who::Password { tenant, user, password });
        self
    }

    /// Where to get a token before each connection, for tokens that somebody else issues.
    pub fn token_source(mut self, source: TokenSource) -> Self {
        self.who = Some(Who::Source(source));
        self
    }

    /// Name and version of the application, for the node's log.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The session to be; random if not given. Only for an application that remembers which of its writes were answered.
    pub fn session(mut self, session: SessionId) -> Self {
        self.session = Some(session);
        self
    }

    /// After how long a silence a connection is probed; 20 s if not given, at most a third of the idle timeout. A client
    /// that only listens and gets another address is not reached until it has sent something: this is how long that takes
    /// at most.
    pub fn keep_alive(mut self, silence: Duration) -> Self {
        self.keep_alive = silence.clamp(Duration::from_millis(100), Duration::from_millis(IDLE_TIMEOUT_MS / 3));
        self
    }

    /// How long the first connection may take; 5 s if not given.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long to try to replace a lost connection; `None` to give up at once. 60 s if not given.
    pub fn reconnect(mut self, limit: Option<Duration>) -> Self {
        self.reconnect = limit;
        self
    }

    /// Most requests under way at a time; what the node allows if that is less.
    pub fn in_flight_max(mut self, requests: usize) -> Self {
        self.in_flight_max = requests.clamp(1, IN_FLIGHT_MAX);
        self
    }

    /// Whether writing to a channel that does not exist makes it; yes if not given.
    pub fn make_channels(mut self, make: bool) -> Self {
        self.make = make;
        self
    }

    /// The trace that all requests are part of; none if not given. [`Client::with_trace`] says it for some.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Whether what the node refuses for now (too much is asked of it, or by us) is tried again when it said, for as long as
    /// a lost connection would be tried to be replaced; no if not given. Not for
    /// [`publish_start`](Client::publish_start) and [`write_start`](Client::write_start).
    pub fn retry_refusals(mut self, retry: bool) -> Self {
        self.retry_refusals = retry;
        self
    }

    /// A socket to share with other clients of this process; one of its own if not given.
    pub fn endpoint(mut self, endpoint: quinn::Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    fn target(&self) -> Result<Target, ClientError> {
        let missing = |what: &'static str, reason: &str| ClientError::Invalid {
            what,
            text: self.server.clone().unwrap_or_default(),
            reason: reason.into(),
        };
        match (&self.server, &self.data) {
            (Some(server), _) => {
                let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
                if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0)) {
                    return Err(missing("server address", "is not of the form host:port"));
                }
                let no_trust = "has no trust: say how the node is recognised";
                let trust = self.trust.clone().ok_or_else(|| missing("server", no_trust))?;
                if self.who.is_none() {
                    return Err(missing("server", "has no token: say who we are"));
                }
                Ok(Target::Remote { server: server.clone(), trust })
            }
            (None, Some(data)) => Ok(Target::Local { data: data.clone() }),
            (None, None) => Err(missing("server", "is missing: give an address or a data directory")),
        }
    }

    fn credential(&self) -> Result<Credential, ClientError> {
        // What is secret is not shown, but for its length.
        let long = |what, bytes: usize, limit: usize| ClientError::Invalid {
            what,
            text: String::new(),
            reason: format!("has {bytes} bytes; at most {limit} are allowed"),
        };
        match self.who.clone() {
            None => Ok(Credential::Local),
            Some(Who::Token(token)) if token.len() > TOKEN_BYTES_MAX => {
                Err(long("token", token.len(), TOKEN_BYTES_MAX))
            }
            Some(Who::Token(token)) => Ok(Credential::Token(token)),
            Some(Who::Password { password, .. }) if password.len() > PASSWORD_BYTES_MAX => {
                Err(long("password", password.len(), PASSWORD_BYTES_MAX))
            }
            Some(Who::Password { tenant, user, password }) => {
                Ok(Credential::password(tenant.as_name("tenant")?, user.as_name("user")?, password))
            }
            Some(Who::Source(source)) => Ok(Credential::Source(source)),
        }
    }

    fn dialer(&self) -> Result<Dialer, ClientError> {
        let (target, credential) = (self.target()?, self.credential()?);
        let mut name = self.name.clone();
        while name.len() > NAME_BYTES_MAX {
            name.pop();
        }
        let session = self.session.unwrap_or_else(|| SessionId(rand::random()));
        let (keep_alive, endpoint) = (self.keep_alive, self.endpoint.clone());
        Ok(Dialer { target, credential, held: None, session, name, keep_alive, endpoint })
    }

    /// Logs in with the [password](Self::password), and gives the token, with which clients can be made later.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`ClientError::Invalid`] if there is no password.
    pub async fn log_in(self) -> Result<LoggedIn, ClientError> {
        let mut dialer = self.dialer()?;
        let established = dialer.dial(self.connect_timeout).await?;
        established.connection.close(quinn::VarInt::from_u32(0), b"");
        if let Some(endpoint) = dialer.endpoint.filter(|_| self.endpoint.is_none()) {
            endpoint.wait_idle().await;
        }
        let reason = "is missing: a login needs one".into();
        dialer.held.ok_or(ClientError::Invalid { what: "password", text: String::new(), reason })
    }

    /// Connects, shows the token, and starts the task that keeps the session alive. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Untrusted`], [`ClientError::Refused`] (a bad token, no common version, too
    /// many sessions), or [`ClientError::Invalid`] if the description is not complete.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let mut dialer = self.dialer()?;
        let established = dialer.dial(self.connect_timeout).await?;
        let allowed = established.welcome.in_flight_max.max(1) as usize;
        let in_flight_max = self.in_flight_max.min(allowed);
        let (requests, bytes) = semaphores(in_flight_max);
        let epoch = established.welcome.epoch.0;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(in_flight_max, self.reconnect.is_some())),
            wake: Notify::new(),
            connection: watch::Sender::new(ConnectionState::Connected { epoch }),
            welcome: watch::Sender::new(established.welcome.clone()),
            requests,
            bytes,
        });
        tokio::spawn(driver::run(shared.clone(), dialer, established, self.reconnect, in_flight_max));
        let retry_refusals = self.retry_refusals.then(|| self.reconnect.unwrap_or(RECONNECT));
        Ok(Client { handle: Handle::new(shared), make: self.make, retry_refusals, trace: self.trace })
    }
}
