//! What the stage counts about itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::Method;

use crate::exposition::{Buckets, Exposition};
use crate::ws::ENDPOINTS;

/// Combinations of method, path template and status that are told apart. Templates and methods are the code's, so that
/// only statuses could ever press against it.
const SERIES_MAX: usize = 512;

/// What requests were about: method, path template, status.
type About = (&'static str, String, u16);

/// What the stage counts about itself.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections_opened: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) connections_failed: AtomicU64,
    pub(crate) connections_open: AtomicU64,
    requests: Mutex<Requests>,
    /// By endpoint, as in [`ENDPOINTS`].
    pub(crate) sockets: [SocketCounters; ENDPOINTS.len()],
    /// By endpoint and code: how many WebSockets the node closed.
    closed: Mutex<BTreeMap<(usize, u16), u64>>,
}

/// What is counted of the WebSockets of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct SocketCounters {
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Requests {
    counts: BTreeMap<About, u64>,
    /// By path template: how many took how long, and microseconds in all.
    times: BTreeMap<String, (Vec<u64>, f64)>,
}

/// A method's name, if it is one that we know.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

impl Counters {
    /// Counts a request that was answered.
    pub(crate) fn request(&self, method: &Method, path: &str, status: u16, took: Duration) {
        let took_us = took.as_micros() as u64;
        let mut requests = self.lock();
        let about = (known(method), path.to_owned(), status);
        let room = requests.counts.len() < SERIES_MAX;
        match requests.counts.get_mut(&about) {
            Some(count) => *count += 1,
            None if room => drop(requests.counts.insert(about, 1)),
            None => *requests.counts.entry(("other", "other".into(), 0)).or_default() += 1,
        }
        let (counts, sum_us) = requests.times.entry(path.to_owned()).or_insert_with(|| (Buckets::SECONDS.zeros(), 0.0));
        counts[Buckets::SECONDS.index(took_us)] += 1;
        *sum_us += took_us as f64;
    }

    /// Counts a WebSocket that the node closed. Codes are the code's own, so that they are few.
    pub(crate) fn socket_closed(&self, endpoint: usize, code: u16) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        *closed.entry((endpoint, code)).or_default() += 1;
    }

    fn expose_sockets(&self, into: &mut Exposition) {
        type Field = fn(&SocketCounters) -> &AtomicU64;
        let rows: [(&str, &str, Field); 6] = [
            ("thalweg_web_sockets_opened", "WebSockets opened, by endpoint.", |of| &of.opened),
            ("thalweg_web_sockets_refused", "Requests for a WebSocket that were refused, by endpoint.", |of| {
                &of.refused
            }),
            ("thalweg_web_socket_messages_received", "Messages received over WebSockets.", |of| &of.received),
            ("thalweg_web_socket_received_bytes", "Bytes of messages received over WebSockets.", |of| {
                &of.received_bytes
            }),
            ("thalweg_web_socket_messages_sent", "Messages sent over WebSockets.", |of| &of.sent),
            ("thalweg_web_socket_sent_bytes", "Bytes of messages sent over WebSockets.", |of| &of.sent_bytes),
        ];
        let mut family = into.gauge("thalweg_web_sockets", "WebSockets open now, by endpoint.");
        for (name, of) in ENDPOINTS.iter().zip(&self.sockets) {
            family.add(&[("endpoint", name)], of.open.load(Ordering::Relaxed));
        }
        for (name, help, field) in rows {
            let mut family = into.counter(name, help);
            for (endpoint, of) in ENDPOINTS.iter().zip(&self.sockets) {
                family.add(&[("endpoint", endpoint)], field(of).load(Ordering::Relaxed));
            }
        }
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut family =
            into.counter("thalweg_web_sockets_closed", "WebSockets that the node closed, by endpoint and code.");
        for ((endpoint, code), count) in &*closed {
            family.add(&[("endpoint", ENDPOINTS[*endpoint]), ("code", &code.to_string())], *count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        // Counting does not panic half-way.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it all out. `unanswered`: questions that the cores have not answered.
    pub(crate) fn expose(&self, unanswered: usize, into: &mut Exposition) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        into.gauge("thalweg_web_connections", "HTTP connections open now.").add(&[], get(&self.connections_open));
        into.counter("thalweg_web_connections_opened", "HTTP connections accepted.")
            .add(&[], get(&self.connections_opened));
        into.counter("thalweg_web_connections_refused", "HTTP connections turned away, since too many were open.")
            .add(&[], get(&self.connections_refused));
        into.counter(
            "thalweg_web_connections_failed",
            "HTTP connections ended for what came over them: headers that came too slowly, were too long or made no sense.",
        )
        .add(&[], get(&self.connections_failed));
        into.gauge("thalweg_web_questions", "Questions of the web stage that its core has not answered.")
            .add(&[], unanswered as u64);
        self.expose_sockets(into);
        let requests = self.lock();
        let mut family =
            into.counter("thalweg_web_requests", "HTTP requests answered, by method, path template and status.");
        for ((method, path, status), count) in &requests.counts {
            let status = status.to_string();
            family.add(&[("method", method), ("path", path), ("status", &status)], *count);
        }
        let mut family =
            into.histogram("thalweg_web_request_duration_seconds", "Time until an HTTP request was answered.");
        for (path, (counts, sum_us)) in &requests.times {
            family.add_spread(&[("path", path)], &Buckets::SECONDS, counts, *sum_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Format;

    #[test]
    fn series_are_bounded() {
        let counters = Counters::default();
        for n in 0..2_000_u16 {
            counters.request(&Method::from_bytes(b"STRANGE").expect("a token"), "/a", n, Duration::from_micros(1));
        }
        let mut into = Exposition::new(Format::Text);
        counters.expose(0, &mut into);
        let text = into.finish();
        assert!(text.lines().filter(|line| line.starts_with("thalweg_web_requests_total")).count() <= SERIES_MAX + 1);
        assert!(text.contains("{method=\"other\",path=\"other\",status=\"0\"}"), "{text}");
        assert!(text.contains("thalweg_web_request_duration_seconds_count{path=\"/a\"} 2000"));
    }
}
