//! Sends batches of spans to the collector: OTLP over HTTP, in protobuf.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use prost::Message as _;
use ureq::Agent;
use ureq::http::{Response, header};

use super::config::Checked;
use super::counters::Counters;
use super::joiner::Batch;
use super::otlp::ExportResponse;

/// How often a batch is sent at most.
const TRIES_MAX: u32 = 5;
/// What is waited after the first try that failed; each later one waits twice as long.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest such wait, also where a collector asks for a longer one.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Longest time for one try while the node goes.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);
/// Most of an answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What came of sending a batch once.
enum Tried {
    /// It was taken, but for so many spans.
    Taken { rejected: usize },
    /// It will never be taken.
    Refused(String),
    /// It may be taken later, perhaps after this long.
    Later(String, Option<Duration>),
}

pub(super) struct Sender {
    agent: Agent,
    to: Checked,
    queue: Receiver<Batch>,
    counters: Arc<Counters>,
    closing: Arc<AtomicBool>,
    /// Whether the last batch was lost: the log says when that begins and when it ends.
    losing: bool,
    /// What makes waits differ from those of other nodes.
    jitter: u32,
}

impl Sender {
    pub(super) fn new(to: Checked, queue: Receiver<Batch>, counters: Arc<Counters>, closing: Arc<AtomicBool>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A collector stands beside its nodes; what the environment says is about the way out.
            .proxy(None)
            .user_agent(concat!("thalweg/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, to, queue, counters, closing, losing: false, jitter: rand::random() }
    }

    /// Runs until nobody can make batches any more and all were sent or given up.
    pub(super) fn run(mut self) {
        while let Ok(batch) = self.queue.recv() {
            self.deliver(&batch);
        }
    }

    fn deliver(&mut self, batch: &Batch) {
        Counters::add(&self.counters.requests, 1);
        for tried in 1.. {
            match self.attempt(&batch.bytes) {
                Tried::Taken { rejected } => return self.taken(batch, rejected),
                Tried::Refused(reason) => return self.give_up(batch, &reason),
                Tried::Later(reason, after) => {
                    if tried >= TRIES_MAX || self.closing.load(Ordering::Acquire) {
                        return self.give_up(batch, &reason);
                    }
                    Counters::add(&self.counters.failures, 1);
                    tracing::debug!(reason, tried, "the collector did not take a batch of spans");
                    let backoff = self.backoff(tried);
                    self.wait(after.unwrap_or(backoff));
                }
            }
        }
    }

    fn taken(&mut self, batch: &Batch, rejected: usize) {
        Counters::add(&self.counters.rejected, rejected);
        Counters::add(&self.counters.exported, batch.spans.saturating_sub(rejected));
        if std::mem::take(&mut self.losing) {
            tracing::info!("the collector takes spans again");
        }
    }

    fn give_up(&mut self, batch: &Batch, reason: &str) {
        Counters::add(&self.counters.failures, 1);
        Counters::add(&self.counters.undelivered, batch.spans);
        if !std::mem::replace(&mut self.losing, true) {
            tracing::warn!(reason, "the collector takes no spans; they are lost until it does");
        }
    }

    fn attempt(&self, bytes: &[u8]) -> Tried {
        let closing = self.closing.load(Ordering::Acquire);
        let timeout = if closing { CLOSING_TIMEOUT.min(self.to.timeout) } else { self.to.timeout };
        let mut request = self.agent.post(&self.to.url).config().timeout_global(Some(timeout)).build();
        request = request.header(header::CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.to.headers {
            request = request.header(name, value);
        }
        match request.send(bytes) {
            Ok(response) => judge(response),
            // The collector, or the way to it, may come back.
            Err(error) => Tried::Later(error.to_string(), None),
        }
    }

    /// A wait that doubles with every try, and differs by a quarter so that the nodes of a place do not come back as one.
    fn backoff(&mut self, tried: u32) -> Duration {
        self.jitter = self.jitter.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let whole = (BACKOFF * 2_u32.pow(tried - 1)).min(BACKOFF_MAX);
        whole.mul_f64(0.75 + 0.25 * f64::from(self.jitter) / f64::from(u32::MAX))
    }

    /// Sleeps, unless the node goes.
    fn wait(&self, time: Duration) {
        let until = Instant::now() + time.min(BACKOFF_MAX);
        while !self.closing.load(Ordering::Acquire) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }
}

/// Reads an answer as section "OTLP/HTTP Response" of the protocol's specification has it.
fn judge(response: Response<ureq::Body>) -> Tried {
    let status = response.status();
    let after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let after = after.map(Duration::from_secs);
    let mut answer = Vec::new();
    // The body is read to the end, so that the connection can be used again. One that breaks off says nothing.
    let read = response.into_body().into_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    match status.as_u16() {
        200..300 => {
            let said = read.ok().and_then(|_| ExportResponse::decode(&answer[..]).ok());
            let rejected = said.and_then(|said| said.partial_success).map_or(0, |partial| partial.rejected_spans);
            Tried::Taken { rejected: usize::try_from(rejected).unwrap_or(0) }
        }
        429 | 502 | 503 | 504 => Tried::Later(format!("it answers {status}"), after),
        _ => Tried::Refused(format!("it answers {status}")),
    }
}
