//! One connection: resolve, shake hands, say hello.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig, VarInt};
use rustls::client::WebPkiServerVerifier;
use thalweg_protocol::frame::{RawFrame, Splitter, header};
use thalweg_protocol::ids::{Epoch, SessionId};
use thalweg_protocol::limits::{CLIENT_READ_BYTES, IDLE_TIMEOUT_MS, WATCHES_MAX};
use thalweg_protocol::op::{ClientOp, Hello, Login, ServerOp, Welcome};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::credential::{self, Credential, LoggedIn, Show};
use crate::error::{ClientError, is_sign_out};
use crate::local;
use crate::trust::{FirstContact, KeyHash, PinnedKeyVerifier, Trust, known_key, remember_key};

/// First guess of the round-trip time. Lost first packets are repeated after three times this; RFC 9002's 333 ms would
/// make a client of a node that restarts next door wait for a second.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(100);

/// The number of the request to log in, which comes before the hello.
const LOGIN_REQUEST: u32 = 1;

/// How often it is looked whether the node still speaks.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked, too, whether the node of a data directory is still the same.
const LOOK_LOCAL: Duration = Duration::from_millis(100);
/// How often somebody who waits for the node of a data directory looks there.
const AWAIT_LOCAL: Duration = Duration::from_millis(20);

/// Where the node is and how it is recognised.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// An address, and whom to trust there.
    Remote { server: String, trust: Trust },
    /// The node of a data directory: looked up anew each time, since its port may change when it restarts.
    Local { data: PathBuf },
}

/// Makes connections of one session.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) target: Target,
    pub(crate) credential: Credential,
    /// What the last login gave.
    pub(crate) held: Option<LoggedIn>,
    pub(crate) session: SessionId,
    /// Name and version of the application, for the node's log.
    pub(crate) name: String,
    /// After how long a silence the connection is probed.
    pub(crate) keep_alive: Duration,
    /// A socket shared with other clients; `None` to open one of its own.
    pub(crate) endpoint: Option<Endpoint>,
}

/// A connection on which the node said welcome.
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    /// Holds what came after the welcome.
    pub(crate) splitter: Splitter,
    pub(crate) welcome: Welcome,
    pub(crate) server: String,
}

impl Dialer {
    /// The node as users call it.
    pub(crate) fn server(&self) -> String {
        match &self.target {
            Target::Remote { server, .. } => server.clone(),
            Target::Local { data, .. } => data.display().to_string(),
        }
    }

    /// Connects and says hello, within `limit`. On first contact with a node that somebody has to vouch for, the time that
    /// person takes does not count.
    pub(crate) async fn dial(&mut self, limit: Duration) -> Result<Established, ClientError> {
        let held = self.held.is_some();
        match self.dial_once(limit).await {
            // The token of an earlier login is good no longer; another login may give one that is. Who is revoked stays out.
            Err(ClientError::Refused(reject)) if held && reject.code == RejectCode::TokenExpired => {
                self.held = None;
                self.dial_once(limit).await
            }
            result => result,
        }
    }

    async fn dial_once(&mut self, limit: Duration) -> Result<Established, ClientError> {
        let (server, trust) = match &self.target {
            Target::Remote { server, trust } => (server.clone(), trust.clone()),
            Target::Local { data } => {
                let data = data.clone();
                return self.dial_local(&data, limit).await;
            }
        };
        match &trust {
            Trust::PinnedKey(key) => self.attempt(&server, Some(*key), None, None, limit).await,
            Trust::Certificate(roots) => self.attempt(&server, None, Some(roots), None, limit).await,
            Trust::FirstUse { store, ask } => {
                let known = known_key(store, &server)?;
                let result = self.attempt(&server, known.map(|(key, _)| key), None, None, limit).await;
                let Err(ClientError::Untrusted { found, .. }) = result else { return result };
                if let Some((expected, line)) = known {
                    let reason = format!(
                        "expected sha256:{expected}, found sha256:{found}. If the node was set up anew, remove line {line} \
                         of {}; otherwise somebody may be listening in",
                        store.display()
                    );
                    return Err(ClientError::Untrusted { server, found, reason });
                }
                let (ask, contact) = (ask.clone(), FirstContact { server: server.clone(), key: found });
                let trusted = tokio::task::spawn_blocking(move || ask(&contact)).await.unwrap_or(false);
                if !trusted {
                    let reason = format!("it was never seen before: sha256:{found}");
                    return Err(ClientError::Untrusted { server, found, reason });
                }
                let established = self.attempt(&server, Some(found), None, None, limit).await?;
                remember_key(store, &server, found)?;
                Ok(established)
            }
        }
    }

    /// Connects to the node of a data directory. What a node that was killed left there leads nowhere: if another one is
    /// started meanwhile, the try goes on with that one.
    async fn dial_local(&mut self, data: &Path, limit: Duration) -> Result<Established, ClientError> {
        let start = Instant::now();
        let mut left = limit;
        loop {
            let node = local::discover(data)?;
            let token = Some(node.token.as_str());
            tokio::select! {
                result = self.attempt(&node.quic, Some(node.key), None, token, left) => return result,
                () = restarted(data, node.epoch) => left = limit.saturating_sub(start.elapsed()),
            }
        }
    }

    /// Waits until the node of the data directory is in another life than this one; for ever, if it is known by its address
    /// alone.
    pub(crate) async fn restarted(&self, epoch: Epoch) {
        match &self.target {
            Target::Local { data, .. } => restarted(data, epoch.0).await,
            Target::Remote { .. } => std::future::pending().await,
        }
    }

    /// How often it should be looked after the node.
    pub(crate) fn look_every(&self) -> Duration {
        match &self.target {
            Target::Local { .. } => LOOK_LOCAL,
            Target::Remote { .. } => LOOK,
        }
    }

    /// Whether the node of the data directory is in another life than this one, as far as can be known.
    pub(crate) fn is_restarted(&self, epoch: Epoch) -> bool {
        match &self.target {
            Target::Local { data, .. } => is_restarted(data, epoch.0),
            Target::Remote { .. } => false,
        }
    }

    async fn attempt(
        &mut self,
        server: &str,
        key: Option<KeyHash>,
        roots: Option<&Vec<rustls::pki_types::CertificateDer<'static>>>,
        local: Option<&str>,
        limit: Duration,
    ) -> Result<Established, ClientError> {
        let unreachable = |reason: String| ClientError::Unreachable { server: server.to_owned(), reason };
        let seen = Arc::new(Mutex::new(None));
        let mut config = client_config(key, roots, seen.clone())?;
        config.transport_config(Arc::new(transport(self.keep_alive)));
        let connect = async {
            let addresses = tokio::net::lookup_host(server).await.map_err(|error| unreachable(error.to_string()))?;
            let mut last = unreachable("the name has no address".into());
            for address in addresses {
                match self.shake_hands(config.clone(), server, address).await {
                    Ok(connection) => return self.say_hello(connection, server, local).await,
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let result = match tokio::time::timeout(limit, connect).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(format!("no answer within {limit:?}"))),
        };
        let seen: Option<KeyHash> = *seen.lock().expect("nothing panics under this lock");
        match (result, seen) {
            (Err(_), Some(found)) if key != Some(found) => {
                let reason = match key {
                    Some(expected) => format!(
                        "expected sha256:{expected}, found sha256:{found}; if the node was set up anew, pin its new key"
                    ),
                    None => format!("it was never seen before: sha256:{found}"),
                };
                Err(ClientError::Untrusted { server: server.to_owned(), found, reason })
            }
            (result, _) => result,
        }
    }

    /// Opens the command lane, logs in if that is needed, and says hello.
    async fn say_hello(
        &mut self,
        connection: Connection,
        server: &str,
        local: Option<&str>,
    ) -> Result<Established, ClientError> {
        let (send, receive) = connection.open_bi().await.map_err(|error| loss(server, &error))?;
        let mut lane = FirstLane { connection, send, receive, splitter: Splitter::new(), server: server.to_owned() };
        let token = match credential::show(&self.credential, self.held.as_ref(), local).await? {
            Show::Token(token) => token,
            Show::Login(login) => self.held.insert(lane.log_in(login).await?).token.clone(),
        };
        let versions = (*thalweg_protocol::VERSIONS.start(), *thalweg_protocol::VERSIONS.end());
        let hello = Hello { versions, session: self.session, token, client: self.name.clone() };
        match lane.ask(ClientOp::Hello(hello), 0).await? {
            ServerOp::Welcome(welcome) => Ok(lane.established(welcome)),
            ServerOp::Reject(reject) => Err(ClientError::Refused(reject)),
            other => Err(ClientError::unexpected("Welcome", &other)),
        }
    }

    /// Whether a connection that was lost for this reason may be replaced: another token can be had for one that ended.
    pub(crate) fn may_come_back(&self, error: &ClientError) -> bool {
        match error {
            ClientError::Refused(reject) if is_sign_out(reject.code) => {
                reject.code == RejectCode::TokenExpired && self.credential.renews()
            }
            other => other.passes(),
        }
    }

    async fn shake_hands(
        &mut self,
        config: quinn::ClientConfig,
        server: &str,
        address: SocketAddr,
    ) -> Result<Connection, ClientError> {
        let unreachable = |reason: String| ClientError::Unreachable { server: server.to_owned(), reason };
        let endpoint = match &self.endpoint {
            Some(endpoint) if same_family(endpoint, address) => endpoint.clone(),
            _ => {
                let endpoint = open(address).map_err(|error| unreachable(format!("no socket: {error}")))?;
                self.endpoint = Some(endpoint.clone());
                endpoint
            }
        };
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host).trim_matches(['[', ']']);
        let connecting = endpoint.connect_with(config, address, host);
        let connecting = connecting.map_err(|error| unreachable(error.to_string()))?;
        connecting.await.map_err(|error| loss(server, &error))
    }
}

async fn restarted(data: &Path, epoch: u64) {
    while !is_restarted(data, epoch) {
        tokio::time::sleep(AWAIT_LOCAL).await;
    }
}

/// The file is a line; reading it takes less than handing the work to another thread would.
fn is_restarted(data: &Path, epoch: u64) -> bool {
    local::discover(data).is_ok_and(|node| node.epoch != 0 && node.epoch != epoch)
}

/// QUIC's codes for what TLS has against a certificate: 0x100 and the alert.
const CERTIFICATE_ALERTS: std::ops::RangeInclusive<u64> = 0x12a..=0x131;

/// What a lost or refused connection means to who waits for it.
pub(crate) fn loss(server: &str, error: &ConnectionError) -> ClientError {
    match error {
        ConnectionError::ApplicationClosed(close) if close.error_code.into_inner() != 0 => {
            let number = u16::try_from(close.error_code.into_inner()).unwrap_or(0);
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            ClientError::Refused(Reject::new(RejectCode::from_number(number), reason))
        }
        // We refused it: a TLS alert about a certificate (RFC 8446, 42 to 49) that is not the node's.
        ConnectionError::TransportError(error) if CERTIFICATE_ALERTS.contains(&u64::from(error.code)) => {
            ClientError::Certificate { server: server.to_owned(), reason: error.reason.clone() }
        }
        other => ClientError::Unreachable { server: server.to_owned(), reason: other.to_string() },
    }
}

fn same_family(endpoint: &Endpoint, address: SocketAddr) -> bool {
    endpoint.local_addr().is_ok_and(|local| local.is_ipv4() == address.is_ipv4())
}

fn open(address: SocketAddr) -> std::io::Result<Endpoint> {
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Endpoint::client(SocketAddr::new(any, 0))
}

fn client_config(
    key: Option<KeyHash>,
    roots: Option<&Vec<rustls::pki_types::CertificateDer<'static>>>,
    seen: Arc<Mutex<Option<KeyHash>>>,
) -> Result<quinn::ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let invalid = |reason: String| ClientError::Invalid { what: "certificate", text: String::new(), reason };
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3");
    let mut tls = match roots {
        Some(roots) => {
            let mut store = rustls::RootCertStore::empty();
            for root in roots {
                store.add(root.clone()).map_err(|error| invalid(error.to_string()))?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(store.into(), provider);
            let verifier = verifier.build().map_err(|error| invalid(error.to_string()))?;
            tls.with_webpki_verifier(verifier).with_no_client_auth()
        }
        None => {
            let verifier = Arc::new(PinnedKeyVerifier { expected: key, seen, provider });
            tls.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    };
    tls.alpn_protocols = vec![thalweg_protocol::ALPN.to_vec()];
    let tls = QuicClientConfig::try_from(tls).expect("the ring provider has QUIC's initial cipher suite");
    Ok(quinn::ClientConfig::new(Arc::new(tls)))
}

fn transport(keep_alive: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = Duration::from_millis(IDLE_TIMEOUT_MS);
    transport
        .max_idle_timeout(Some(idle.try_into().expect("a minute fits in QUIC's varint of milliseconds")))
        .keep_alive_interval(Some(keep_alive))
        .initial_rtt(INITIAL_ROUND_TRIP)
        // The node opens one lane for deliveries and one per watched generation; nothing else.
        .max_concurrent_uni_streams(VarInt::from_u32(WATCHES_MAX as u32 + 8))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport
}

/// The command lane before the node said welcome: one request at a time.
struct FirstLane {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    splitter: Splitter,
    server: String,
}

impl FirstLane {
    async fn ask(&mut self, op: ClientOp, subject: u32) -> Result<ServerOp, ClientError> {
        let payload = op.encode();
        let head = Bytes::copy_from_slice(&header(payload.len(), subject));
        let written = self.send.write_all_chunks(&mut [head, payload]).await;
        let answer = match written {
            Ok(()) => first_frame(&mut self.receive, &mut self.splitter).await,
            Err(_) => Err(()),
        };
        let Ok(frame) = answer else {
            // The lane broke; the reason is in how the connection was closed.
            return Err(loss(&self.server, &self.connection.closed().await));
        };
        ServerOp::decode(&frame.payload).map_err(|reject| ClientError::Protocol(reject.to_string()))
    }

    async fn log_in(&mut self, login: Login) -> Result<LoggedIn, ClientError> {
        match self.ask(ClientOp::Login(login), LOGIN_REQUEST).await? {
            ServerOp::LoggedIn { token, expires_us } => Ok(LoggedIn { token, expires_us }),
            ServerOp::Reject(reject) => Err(ClientError::Refused(reject)),
            other => Err(ClientError::unexpected("LoggedIn", &other)),
        }
    }

    fn established(self, welcome: Welcome) -> Established {
        let Self { connection, send, receive, splitter, server } = self;
        Established { connection, send, receive, splitter, welcome, server }
    }
}

async fn first_frame(receive: &mut RecvStream, splitter: &mut Splitter) -> Result<RawFrame, ()> {
    loop {
        match splitter.next() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(_) => return Err(()),
        }
        match receive.read_chunk(CLIENT_READ_BYTES, true).await {
            Ok(Some(chunk)) => splitter.push(chunk.bytes),
            Ok(None) | Err(_) => return Err(()),
        }
    }
}
