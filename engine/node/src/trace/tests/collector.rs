//! A collector in this process, which decodes what it gets with the protocol's official types.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// How a collector answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manners {
    /// It takes everything.
    Good,
    /// It takes everything but says that so many spans of each request were thrown away.
    Partial(i64),
    /// It answers its first requests with this status, then takes everything.
    Status { status: u16, first: usize },
    /// It never answers.
    Silent,
}

/// A request as it came.
pub(super) struct Received {
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) request: ExportTraceServiceRequest,
}

pub(super) struct Collector {
    pub(super) endpoint: String,
    received: Receiver<Received>,
}

impl Collector {
    pub(super) fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, received) = mpsc::sync_channel(1_024);
        thread::spawn(move || {
            let mut requests = 0;
            for stream in listener.incoming() {
                serve(stream.expect("a connection"), manners, &mut requests, &sender);
            }
        });
        Self { endpoint, received }
    }

    /// The next request that was taken.
    pub(super) fn next(&self) -> Received {
        self.received.recv_timeout(Duration::from_secs(30)).expect("a request within 30 s")
    }

    /// All spans that were taken until now.
    pub(super) fn all(&self) -> Vec<Span> {
        self.received.try_iter().flat_map(|received| spans_of(received.request)).collect()
    }

    /// Spans of the requests until `enough` of them came.
    pub(super) fn spans_until(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut spans = Vec::new();
        while !enough(&spans) {
            spans.extend(spans_of(self.next().request));
        }
        spans
    }
}

/// All spans of a request.
pub(super) fn spans_of(request: ExportTraceServiceRequest) -> impl Iterator<Item = Span> {
    request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans)
}

/// What an attribute says, as text.
pub(super) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.clone()?.value? {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

/// Serves one connection after the other, each request of it in turn.
fn serve(mut stream: TcpStream, manners: Manners, requests: &mut usize, sender: &SyncSender<Received>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    while let Some(received) = read(&mut reader) {
        *requests += 1;
        let spans = spans_of(received.request.clone()).count();
        let (status, answer) = match manners {
            Manners::Good => (200, ExportTraceServiceResponse::default()),
            Manners::Partial(rejected_spans) => {
                let partial = ExportTracePartialSuccess { rejected_spans, error_message: "as scripted".into() };
                (200, ExportTraceServiceResponse { partial_success: Some(partial) })
            }
            Manners::Status { status, first } => {
                (if *requests <= first { status } else { 200 }, ExportTraceServiceResponse::default())
            }
            Manners::Silent => {
                // Until the other side has enough of it.
                let mut rest = Vec::new();
                let _ = reader.read_to_end(&mut rest);
                return;
            }
        };
        assert!(spans > 0, "nobody sends empty requests");
        if status == 200 && sender.send(received).is_err() {
            return;
        }
        let body = answer.encode_to_vec();
        let head = format!("HTTP/1.1 {status} scripted\r\nretry-after: 0\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let path = line.strip_prefix("POST ").expect("a POST").split(' ').next().expect("a path").to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers["content-length"].parse().expect("a length");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    let request = ExportTraceServiceRequest::decode(&body[..]).expect("it is OTLP");
    Some(Received { path, headers, request })
}
