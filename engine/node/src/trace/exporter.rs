//! The exporter's threads: their start and their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thalweg_ring::{Bell, ring};

use super::config::{TraceConfig, TraceConfigError};
use super::counters::Counters;
use super::joiner::Joiner;
use super::sender::Sender;
use super::tracer::Tracer;

/// Records of one core that wait for the exporter: what 100 ms bring when 80,000 spans a second are measured.
const RING_SLOTS: usize = 8_192;
/// Batches that wait for the collector.
const QUEUE_BATCHES: usize = 64;
/// Longest time a node that ends waits until its last spans are sent.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExporterError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] TraceConfigError),
    /// The system refuses a thread or a descriptor.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// The threads that join and send spans.
pub(crate) struct Exporter {
    bell: Arc<Bell>,
    closing: Arc<AtomicBool>,
    joiner: JoinHandle<()>,
    sender: JoinHandle<()>,
    /// Closed when the sender is done.
    sent: mpsc::Receiver<()>,
}

impl Exporter {
    /// Starts the threads, and gives each of `cores` its tracer; without an endpoint there are no threads, and tracers that
    /// do nothing. `origin` is what the cores' clocks count from.
    pub(crate) fn start(
        config: &TraceConfig,
        cores: usize,
        origin: Instant,
    ) -> Result<(Option<Self>, Vec<Tracer>), ExporterError> {
        let Some(to) = config.checked()? else { return Ok((None, (0..cores).map(|_| Tracer::off()).collect())) };
        let (bell, closing, counters) = (Bell::new()?, Arc::new(AtomicBool::new(false)), Arc::new(Counters::default()));
        let (mut tracers, mut rings) = (Vec::new(), Vec::new());
        for core in 0..cores {
            let (records, inbox) = ring(RING_SLOTS);
            rings.push(inbox);
            let counters = (core == 0).then(|| Arc::clone(&counters));
            tracers.push(Tracer::new(core as u16, config.ratio, records, Arc::clone(&bell), counters));
        }
        let (queue, batches) = mpsc::sync_channel(QUEUE_BATCHES);
        let (done, sent) = mpsc::sync_channel::<()>(0);
        let joiner = Joiner::new(rings, queue, Arc::clone(&counters), &config.service_name, origin);
        let sender = Sender::new(to, batches, counters, Arc::clone(&closing));
        let (own_bell, own_closing) = (Arc::clone(&bell), Arc::clone(&closing));
        let spawn =
            |name: &str, run: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(run);
        // If the second cannot be started, the first ends by itself, as nobody makes batches.
        let sender = spawn(
            "thalweg-spans",
            Box::new(move || {
                let _done = done;
                sender.run();
            }),
        )?;
        let joiner = spawn("thalweg-trace", Box::new(move || joiner.run(&own_bell, &own_closing)))?;
        Ok((Some(Self { bell, closing, joiner, sender, sent }), tracers))
    }

    /// Sends what is left, for a bounded time, and ends the threads. Comes after the cores' end.
    pub(crate) fn shut_down(self) {
        self.closing.store(true, Ordering::Release);
        self.bell.ring();
        self.sender.thread().unpark();
        if self.joiner.join().is_err() {
            tracing::error!("the thread that joins spans panicked");
        }
        match self.sent.recv_timeout(FLUSH_MAX) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::warn!("the collector did not take the last spans in {} s; they are lost", FLUSH_MAX.as_secs());
            }
            // It hung up: it is done.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                if self.sender.join().is_err() {
                    tracing::error!("the thread that sends spans panicked");
                }
            }
        }
    }
}
