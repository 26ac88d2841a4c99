//! A node that does what a test tells it: real QUIC, real frames, no logic.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::PrivatePkcs8KeyDer;
use thalweg_client::{Builder, Client, KeyHash, Trust};
use thalweg_protocol::frame::{Splitter, header};
use thalweg_protocol::ids::{Epoch, Name, Position};
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, Hello, ServerOp, Welcome};
use thalweg_protocol::reject::RejectCode;

/// A listening socket with a key of its own.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) key: KeyHash,
    pub(crate) address: SocketAddr,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = KeyHash::of_certificate(&certificate).expect("a certificate");
        let secret = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], secret.into())
            .expect("the key fits");
        tls.alpn_protocols = vec![thalweg_protocol::ALPN.to_vec()];
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("QUIC")));
        let endpoint = Endpoint::server(config, address).expect("a port");
        let address = endpoint.local_addr().expect("bound");
        Self { endpoint, key, address }
    }

    /// A client of this node.
    pub(crate) fn client(&self) -> Builder {
        Client::builder().server(self.address.to_string()).trust(Trust::PinnedKey(self.key)).token("token")
    }

    /// The next connection, of which nothing was read.
    pub(crate) async fn accept_silent(&self) -> Session {
        let connection = self.endpoint.accept().await.expect("open").await.expect("a handshake");
        let (send, receive) = connection.accept_bi().await.expect("the command lane");
        Session { connection, send, receive, splitter: Splitter::new(), lanes: Vec::new() }
    }

    /// The next connection, whose hello was read.
    pub(crate) async fn accept(&self) -> (Session, Hello) {
        let mut session = self.accept_silent().await;
        match session.receive().await {
            (_, ClientOp::Hello(hello)) => (session, hello),
            other => panic!("a hello was expected, not {other:?}"),
        }
    }

    /// The next connection, welcomed.
    pub(crate) async fn welcome(&self, epoch: u64) -> (Session, Hello) {
        let (mut session, hello) = self.accept().await;
        session.send(0, &ServerOp::Welcome(welcome(&hello, epoch))).await;
        (session, hello)
    }
}

pub(crate) fn welcome(hello: &Hello, epoch: u64) -> Welcome {
    Welcome {
        version: 1,
        session: hello.session,
        epoch: Epoch(epoch),
        tenant: name("default"),
        user: name("me"),
        server: "scripted/1".into(),
        models: vec!["smollm2-135m".into()],
        frame_bytes_max: 1 << 20,
        body_bytes_max: 256 << 10,
        in_flight_max: 16,
        lead_messages: 8,
        lead_tokens: 8,
        token_expires_us: 0,
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// A message at `position`, whose text is `m` and its position.
pub(crate) fn message(position: u64) -> ServerOp {
    ServerOp::Delivery(Delivery {
        position: Position(position),
        timestamp_us: 1_700_000_000_000_000 + position,
        kind: DeliveryKind::Message,
        user: name("you"),
        generation: None,
        body: Bytes::from(format!("m{position}")),
        key: 0,
        context: Default::default(),
    })
}

/// One connection, seen from the node.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    send: SendStream,
    receive: RecvStream,
    splitter: Splitter,
    lanes: Vec<SendStream>,
}

impl Session {
    pub(crate) async fn send(&mut self, subject: u32, op: &ServerOp) {
        write(&mut self.send, subject, op).await;
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.expect("an open lane");
    }

    /// The next frame of the command lane.
    pub(crate) async fn receive(&mut self) -> (u32, ClientOp) {
        loop {
            if let Some(frame) = self.splitter.next().expect("frames") {
                return (frame.subject, ClientOp::decode(&frame.payload).expect("a valid operation"));
            }
            let chunk = self.receive.read_chunk(1 << 16, true).await.expect("an open lane").expect("an open lane");
            self.splitter.push(chunk.bytes);
        }
    }

    /// Opens a lane of deliveries or tokens; gives its index.
    pub(crate) async fn open(&mut self) -> usize {
        self.lanes.push(self.connection.open_uni().await.expect("a lane"));
        self.lanes.len() - 1
    }

    pub(crate) async fn send_on(&mut self, lane: usize, subject: u32, op: &ServerOp) {
        write(&mut self.lanes[lane], subject, op).await;
    }

    /// Ends the connection as a node that crashed would be noticed: at once, with nothing said.
    pub(crate) async fn vanish(self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }

    pub(crate) fn refuse(&self, code: RejectCode, text: &str) {
        self.connection.close(VarInt::from_u32(code as u32), text.as_bytes());
    }
}

async fn write(lane: &mut SendStream, subject: u32, op: &ServerOp) {
    let payload = op.encode();
    lane.write_all(&header(payload.len(), subject)).await.expect("an open lane");
    lane.write_all(&payload).await.expect("an open lane");
}

/// Fails a test that would hang.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("the test hangs")
}
