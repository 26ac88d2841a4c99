//! HTTP/1.1 to a remote (RFC 9112): one connection for each answer, which ends with it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::config::{Endpoint, RemoteModel};
use crate::fault::Fault;
use crate::limits::{
    REMOTE_CONNECT, REMOTE_ERROR_BYTES_MAX, REMOTE_MESSAGE_BYTES_MAX, REMOTE_READ_BYTES, REMOTE_RECEIVE_BYTES,
    REMOTE_RETRY_MS_MAX,
};

/// Time to read what an error says of itself.
const ERROR_PATIENCE: Duration = Duration::from_secs(5);

/// Makes connections.
pub(crate) struct Dialer {
    tls: TlsConnector,
}

/// An answer that begins. Dropping it closes the connection.
pub(crate) struct Reply {
    body: Incoming,
    _connection: Connection,
}

struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Dialer {
    /// Trusts the certificate authorities that browsers trust.
    pub(crate) fn new() -> io::Result<Self> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Asks for an answer. It begins by `by`, or it is a fault.
    pub(crate) async fn ask(&self, model: &RemoteModel, body: String, by: Instant) -> Result<Reply, Fault> {
        let slow = |_| Fault::Slow { what: "reaching it", within: REMOTE_CONNECT };
        let endpoint = &model.endpoint;
        let stream =
            timeout(REMOTE_CONNECT, reach(endpoint)).await.map_err(slow)?.map_err(|error| unreachable(&error))?;
        if !endpoint.tls {
            return send(stream, model, body, by).await;
        }
        let name = ServerName::try_from(endpoint.host.clone());
        let name = name.map_err(|_| Fault::Unreachable("its name is none that a certificate can have".into()))?;
        let greeted = timeout(REMOTE_CONNECT, self.tls.connect(name, stream)).await.map_err(slow)?;
        send(greeted.map_err(|error| unreachable(&error))?, model, body, by).await
    }
}

/// What the system or TLS say, which holds nothing but names and numbers.
fn unreachable(error: &io::Error) -> Fault {
    Fault::Unreachable(error.to_string())
}

async fn reach(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let mut last = io::Error::other("its name has no address");
    for address in lookup_host((endpoint.host.as_str(), endpoint.port)).await? {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // What the kernel keeps of an answer that nobody reads is soon full, so that the remote waits as well.
    socket.set_recv_buffer_size(REMOTE_RECEIVE_BYTES)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    model: &RemoteModel,
    body: String,
    by: Instant,
) -> Result<Reply, Fault> {
    let began = Instant::now();
    let slow = |_| Fault::Slow { what: "the beginning of an answer", within: by.duration_since(began) };
    let broken = |_: hyper::Error| Fault::Unreachable("the connection broke before an answer came".into());
    let handshake = http1::Builder::new().max_buf_size(REMOTE_READ_BYTES).handshake(TokioIo::new(stream));
    let (mut sender, connection) = timeout_at(by, handshake).await.map_err(slow)?.map_err(broken)?;
    let driver = tokio::task::spawn_local(async move {
        // What goes wrong with it is seen by who reads.
        let _ = connection.await;
    });
    let connection = Connection(driver.abort_handle());
    let endpoint = &model.endpoint;
    let mut request = Request::post(format!("{}/chat/completions", endpoint.path))
        .header(HOST, endpoint.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "text/event-stream")
        .header(USER_AGENT, concat!("thalweg/", env!("CARGO_PKG_VERSION")));
    if let Some(key) = model.key.as_ref().and_then(|key| key.header()) {
        request = request.header(AUTHORIZATION, key);
    }
    let request = request.body(body).map_err(|_| Fault::Unreachable("its address cannot be asked for".into()))?;
    let response = timeout_at(by, sender.send_request(request)).await.map_err(slow)?.map_err(broken)?;
    let (head, body) = response.into_parts();
    let reply = Reply { body, _connection: connection };
    if head.status != StatusCode::OK {
        return Err(reply.refusal(head.status, &head.headers).await);
    }
    let kind = head.headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    match kind.starts_with(b"text/event-stream") {
        true => Ok(reply),
        false => Err(Fault::Garbage("its answer is no stream of events")),
    }
}

impl Reply {
    /// The next bytes; none at its end. An end that was not announced is a fault.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(Fault::Cut),
                // Others are trailers.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// What an answer means that is none.
    async fn refusal(mut self, status: StatusCode, headers: &HeaderMap) -> Fault {
        let (retry_after_ms, status) = (retry_after_ms(headers), status.as_u16());
        match status {
            401 | 403 => Fault::Key(status),
            404 | 405 | 410 => Fault::NoSuchModel(status),
            429 => Fault::Busy { status, retry_after_ms },
            408 | 500.. => Fault::Failing { status, retry_after_ms },
            400 | 413 | 422 => {
                let (said, code) = timeout(ERROR_PATIENCE, self.error()).await.unwrap_or_default();
                let too_long = status == 413 || code == "context_length_exceeded" || code == "prompt_too_long";
                let said = if said.is_empty() { format!("it answers {status} and says no more") } else { said };
                Fault::Invalid { status, said, too_long }
            }
            _ => Fault::Strange(status),
        }
    }

    /// What an error says of itself: text and code, both short.
    async fn error(&mut self) -> (String, String) {
        #[derive(Deserialize)]
        struct Envelope {
            error: Error,
        }
        #[derive(Deserialize)]
        struct Error {
            #[serde(default)]
            message: String,
            #[serde(default)]
            code: serde_json::Value,
        }
        let mut bytes = Vec::new();
        while let Ok(Some(more)) = self.next().await {
            bytes.extend_from_slice(&more);
            if bytes.len() > REMOTE_ERROR_BYTES_MAX {
                return Default::default();
            }
        }
        let Ok(Envelope { error }) = serde_json::from_slice(&bytes) else { return Default::default() };
        (plain(&error.message), error.code.as_str().unwrap_or_default().to_owned())
    }
}

/// A stranger's text, without what could move a cursor, and no longer than [`REMOTE_MESSAGE_BYTES_MAX`].
fn plain(text: &str) -> String {
    let mut plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=plain.len().min(REMOTE_MESSAGE_BYTES_MAX)).rev().find(|&at| plain.is_char_boundary(at));
    plain.truncate(end.unwrap_or(0));
    plain
}

/// When a remote wants to be asked again: in seconds (RFC 9110, section 10.2.3), or in milliseconds as OpenAI says it. A date
/// is taken for a moment from now, by this machine's clock.
fn retry_after_ms(headers: &HeaderMap) -> Option<u32> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let ms = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok());
    let seconds = text(RETRY_AFTER.as_str()).and_then(|text| match text.parse::<f64>() {
        Ok(seconds) => Some(seconds),
        Err(_) => until(text),
    });
    let ms = ms.or(seconds.map(|seconds| seconds * 1_000.0)).filter(|ms| ms.is_finite() && *ms >= 0.0)?;
    Some((ms.ceil() as u32).clamp(1, REMOTE_RETRY_MS_MAX))
}

/// Seconds until a date such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn until(date: &str) -> Option<f64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = date.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse::<i64>().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as i64 + 1;
    let year = words.next()?.parse::<i64>().ok().filter(|year| (1..=9_999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1970 of the proleptic Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms").
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let then = days * 86_400 + hours * 3_600 + minutes * 60 + seconds;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
    Some((then as f64 - now).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_say_in_several_ways_when_to_come_again() {
        let check = |headers: &[(&'static str, &str)], expected: Option<u32>| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().expect("a value"));
            }
            assert_eq!(retry_after_ms(&map), expected, "{headers:?}");
        };
        check(&[], None);
        check(&[("retry-after", "3")], Some(3_000));
        check(&[("retry-after", "0.25")], Some(250));
        check(&[("retry-after", "3"), ("retry-after-ms", "120")], Some(120));
        check(&[("retry-after", "99999999")], Some(REMOTE_RETRY_MS_MAX));
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(1));
        check(&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], Some(REMOTE_RETRY_MS_MAX));
        check(&[("retry-after", "-3")], None);
        check(&[("retry-after", "soon")], None);
        check(&[("retry-after", "NaN")], None);
        let known = until("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        assert!(known < 1.0, "it is past");
    }

    #[test]
    fn strangers_texts_are_short_and_plain() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(plain(&"é".repeat(REMOTE_MESSAGE_BYTES_MAX)).len(), REMOTE_MESSAGE_BYTES_MAX);
    }
}
