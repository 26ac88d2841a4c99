//! How the connections of a core are served.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
#[allow(
    clippy::disallowed_types,
    reason = "the transport dates its retry tokens in it; TokenClock never asks the machine"
)]
use std::time::SystemTime;

use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    EndpointConfig, IdleTimeout, ServerConfig, TimeSource, TransportConfig, ValidationTokenConfig, VarInt,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ring::{hkdf, hmac};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use thalweg_protocol::limits;

use crate::cid::{CoreCids, FirstByte};

/// Bytes of one lane that a client may send ahead of our reading. Frames are read as they come, so that a frame may be
/// longer than the window.
const LANE_WINDOW_BYTES: u32 = 512 << 10;
/// The same over all lanes of a client.
const LINK_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes of a client the transport holds until they are acknowledged: what one round trip of 20 ms carries at 100 Mbit/s.
const SEND_WINDOW_BYTES: u64 = 256 << 10;
/// Bytes of unreliable datagrams that wait in either direction; older ones give way.
const UNRELIABLE_BYTES: usize = 32 << 10;
/// The round trip assumed before one was measured: a lost first packet of a handshake is repeated after three of them.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Shortest distance between two stateless resets. Ids carry a proof, so hardly any reset goes to a stranger; after a
/// restart 10,000 clients want one.
const RESET_INTERVAL: Duration = Duration::from_micros(200);

/// What a node shows in handshakes: its certificate chain and its key, made ready for use. That takes work, which belongs on
/// another thread than a core's; a core is handed the result ([`Quic::set_identity`](crate::Quic::set_identity)).
#[derive(Clone)]
pub struct TlsIdentity(pub(crate) Arc<QuicServerConfig>);

impl TlsIdentity {
    /// Makes a chain, the node's own certificate first, and its private key ready, for these application protocols.
    ///
    /// # Errors
    /// [`QuicError::Certificate`] if they cannot be used, or do not belong together.
    pub fn new(
        certificate: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        alpn: Vec<Vec<u8>>,
    ) -> Result<Self, QuicError> {
        tls(certificate, alpn).map(|config| Self(Arc::new(config)))
    }

    /// For native clients only, as [`QuicConfig::new`] has it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn native(certificate: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)) -> Result<Self, QuicError> {
        Self::new(certificate, vec![thalweg_protocol::ALPN.to_vec()])
    }
}

/// Without the secrets.
impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// How many of everything one core serves. The defaults are those of [`thalweg_protocol::limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicLimits {
    /// Connections, handshakes among them; one more is refused.
    pub connections: usize,
    /// Handshakes under way. Beyond half of it new clients must prove their address first, beyond it they are refused.
    pub handshakes: usize,
    /// A handshake that takes longer is forgotten.
    pub handshake_timeout: Duration,
    /// A link that is silent this long is closed.
    pub idle_timeout: Duration,
    /// Lanes of a link that are open at a time, the command lane among them.
    pub lanes: usize,
    /// Bytes queued towards a link over all of its lanes, in bytes; one frame more is refused.
    pub queue_bytes: usize,
}

impl Default for QuicLimits {
    fn default() -> Self {
        Self {
            connections: limits::SESSIONS_MAX,
            handshakes: limits::HANDSHAKES_MAX,
            handshake_timeout: Duration::from_millis(limits::HELLO_TIMEOUT_MS),
            idle_timeout: Duration::from_millis(limits::IDLE_TIMEOUT_MS),
            lanes: limits::LANES_MAX,
            queue_bytes: limits::LINK_QUEUE_BYTES,
        }
    }
}

/// How the connections of one core are served.
///
/// The cores of a node share the certificate, [`reset_key`](Self::reset_key) and [`retry_key`](Self::retry_key); each
/// has a [`cid_first_byte`](Self::cid_first_byte) and a [`seed`](Self::seed) of its own.
pub struct QuicConfig {
    /// The certificate chain, the node's own first, and its private key.
    pub certificate: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    /// Application protocols offered, preferred first.
    pub alpn: Vec<Vec<u8>>,
    /// Chooses the first byte of a connection id of this core from a random byte, so that the kernel steers its
    /// datagrams here.
    pub cid_first_byte: Arc<dyn Fn(u8) -> u8 + Send + Sync>,
    /// Secret from which stateless reset tokens and the proofs in connection ids come. Keep it over restarts, so that
    /// clients of the former run learn at once that their connection is gone.
    pub reset_key: [u8; 64],
    /// Secret that protects retry tokens. Draw it anew at each start: tokens are dated by the time since the start.
    pub retry_key: [u8; 64],
    /// Fresh randomness, from which this core draws connection ids and what the transport needs besides.
    pub seed: [u8; 32],
    /// Whether to find out how long a datagram may be. Only where the socket forbids fragmentation.
    pub path_mtu_discovery: bool,
    /// How many of everything.
    pub limits: QuicLimits,
}

impl QuicConfig {
    /// A configuration with the default limits, for native clients, on a node of one core.
    pub fn new(
        certificate: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        reset_key: [u8; 64],
        retry_key: [u8; 64],
        seed: [u8; 32],
    ) -> Self {
        Self {
            certificate,
            alpn: vec![thalweg_protocol::ALPN.to_vec()],
            cid_first_byte: Arc::new(|random| random),
            reset_key,
            retry_key,
            seed,
            path_mtu_discovery: true,
            limits: QuicLimits::default(),
        }
    }
}

impl Clone for QuicConfig {
    fn clone(&self) -> Self {
        let (chain, key) = &self.certificate;
        Self {
            certificate: (chain.clone(), key.clone_key()),
            alpn: self.alpn.clone(),
            cid_first_byte: Arc::clone(&self.cid_first_byte),
            reset_key: self.reset_key,
            retry_key: self.retry_key,
            seed: self.seed,
            path_mtu_discovery: self.path_mtu_discovery,
            limits: self.limits.clone(),
        }
    }
}

/// Without the secrets.
impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig")
            .field("alpn", &self.alpn)
            .field("path_mtu_discovery", &self.path_mtu_discovery)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Why a core cannot serve QUIC.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuicError {
    /// The certificate or its key is of no use.
    #[error(
        "the certificate or its private key cannot be used: {0}; remove both from the data directory to have new ones made"
    )]
    Certificate(#[from] rustls::Error),
    /// A timeout or window is too large for the wire.
    #[error("an idle timeout of {0:?} is too long for QUIC; give less than 146 million years")]
    IdleTimeout(Duration),
    /// A limit of zero would serve nobody.
    #[error("limits {0:?}: connections, handshakes and lanes must be at least 2")]
    LimitsInvalid(QuicLimits),
}

/// The time, as far as retry tokens need it: what has passed since the core first heard of it.
#[derive(Debug, Default)]
pub(crate) struct TokenClock {
    elapsed_ms: AtomicU64,
}

impl TokenClock {
    /// Sets the time passed.
    pub(crate) fn set(&self, elapsed: Duration) {
        // Ordering: only this core writes and reads it; it is atomic because the transport wants to share it.
        self.elapsed_ms.store(elapsed.as_millis() as u64, Ordering::Relaxed);
    }
}

impl TimeSource for TokenClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.elapsed_ms.load(Ordering::Relaxed))
    }
}

/// What quinn-proto makes of a [`QuicConfig`].
pub(crate) struct Prepared {
    pub(crate) endpoint: Arc<EndpointConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) token_clock: Arc<TokenClock>,
    pub(crate) limits: QuicLimits,
    pub(crate) path_mtu_discovery: bool,
}

pub(crate) fn prepare(config: QuicConfig) -> Result<Prepared, QuicError> {
    let limits = config.limits;
    if limits.connections < 2 || limits.handshakes < 2 || limits.lanes < 2 {
        return Err(QuicError::LimitsInvalid(limits));
    }
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &config.reset_key);
    let mut random = StdRng::from_seed(config.seed);
    let (endpoint_seed, cid_seed): ([u8; 32], [u8; 32]) = (random.random(), random.random());
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key.clone()));
    let first_byte: FirstByte = config.cid_first_byte;
    endpoint
        .cid_generator(move || Box::new(CoreCids::new(Arc::clone(&first_byte), cid_seed, reset_key.clone())))
        .rng_seed(Some(endpoint_seed))
        .min_reset_interval(RESET_INTERVAL);

    let token_clock = Arc::new(TokenClock::default());
    let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&config.retry_key);
    let mut validation = ValidationTokenConfig::default();
    // Tokens for a later visit would have to be remembered to be used once only; a retry costs one round trip instead.
    validation.sent(0).log(Arc::new(quinn_proto::NoneTokenLog));
    let tls = tls(config.certificate, config.alpn)?;
    let mut server = ServerConfig::new(Arc::new(tls), Arc::new(token_key));
    server
        .transport_config(Arc::new(transport(&limits)?))
        .validation_token_config(validation)
        .migration(true)
        .time_source(Arc::clone(&token_clock) as Arc<dyn TimeSource>)
        // Every attempt is decided at once, so that none is ever kept.
        .max_incoming(16)
        .incoming_buffer_size(0)
        .incoming_buffer_size_total(0);
    Ok(Prepared {
        endpoint: Arc::new(endpoint),
        server: Arc::new(server),
        token_clock,
        limits,
        path_mtu_discovery: config.path_mtu_discovery,
    })
}

/// TLS 1.3 without session tickets: a ticket saves a client one signature when it returns to the same core within
/// the life of the process, and would cost every client two more packets and us a table.
fn tls(
    (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    alpn: Vec<Vec<u8>>,
) -> Result<QuicServerConfig, QuicError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = alpn;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    // Early data can be replayed by whoever records it, and our requests have effects.
    tls.max_early_data_size = 0;
    Ok(QuicServerConfig::try_from(tls).expect("the ring provider has the cipher suite of Initial packets"))
}

fn transport(limits: &QuicLimits) -> Result<TransportConfig, QuicError> {
    let idle = IdleTimeout::try_from(limits.idle_timeout).map_err(|_| QuicError::IdleTimeout(limits.idle_timeout))?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle))
        .stream_receive_window(VarInt::from_u32(LANE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(LINK_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(Some(UNRELIABLE_BYTES))
        .datagram_send_buffer_size(UNRELIABLE_BYTES);
    Ok(transport)
}
