//! The stage: its threads, from start to end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use thalweg_protocol::limits::WEB_SCRAPES_MAX;
use tokio::sync::{Semaphore, watch};

use crate::accept;
use crate::config::{WebConfig, WebLimits};
use crate::cors::Cors;
use crate::counters::Counters;
use crate::door;
use crate::error::WebError;
use crate::health::{Health, HealthCheck};
use crate::link::{Desk, WebLink};
use crate::v1::{ModelCard, ModelList};

/// Threads of one web thread that read files and write long texts.
const BLOCKING_THREADS_MAX: usize = WEB_SCRAPES_MAX;

/// What the handlers of one thread have at hand.
pub(crate) struct Stage {
    pub(crate) limits: WebLimits,
    pub(crate) desk: Arc<Desk>,
    /// These are all threads' together.
    pub(crate) counters: Arc<Counters>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) scrapes: Arc<Semaphore>,
    pub(crate) cors: Cors,
    /// Turns true when the stage ends.
    pub(crate) stop: watch::Receiver<bool>,
    /// How many connections and WebSockets are open on this thread.
    pub(crate) open: watch::Sender<usize>,
    check: HealthCheck,
    models: ModelList,
}

impl Stage {
    pub(crate) fn models(&self) -> Vec<ModelCard> {
        (self.models)()
    }

    pub(crate) fn health(&self) -> Health {
        (self.check)()
    }
}

/// The running stage. Dropping it shuts it down.
pub struct Web {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Web {
    /// Binds the address and starts one thread per link. From then on `/health` is answered; what needs a core is once
    /// the other end of the link is [looked after](crate::CoreEnd).
    ///
    /// # Errors
    /// [`WebError`]. Nothing is left running.
    pub fn start(
        config: &WebConfig,
        links: Vec<WebLink>,
        check: HealthCheck,
        models: ModelList,
    ) -> Result<Self, WebError> {
        let addr = config.addr;
        if !addr.ip().to_canonical().is_loopback() && !config.allow_plain {
            return Err(WebError::Plain { addr });
        }
        let listener = accept::bind(addr).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => WebError::Taken { addr },
            _ => WebError::Bind { addr, source },
        })?;
        let system = |what| move |source| WebError::System { what, source };
        let addr = listener.local_addr().map_err(system("ask for its address"))?;
        let counters = Arc::<Counters>::default();
        let connections = Arc::new(Semaphore::new(config.limits.connections));
        let scrapes = Arc::new(Semaphore::new(WEB_SCRAPES_MAX));
        let mut web = Self { addr, stop: watch::Sender::new(false), threads: Vec::new() };
        for (number, link) in links.into_iter().enumerate() {
            let listener = listener.try_clone().map_err(system("share the listener"))?;
            let thread = Thread {
                listener,
                link,
                limits: config.limits.clone(),
                counters: Arc::clone(&counters),
                connections: Arc::clone(&connections),
                scrapes: Arc::clone(&scrapes),
                cors: Cors::new(&config.cors),
                check: Arc::clone(&check),
                models: Arc::clone(&models),
                stop: web.stop.subscribe(),
            };
            let (report, started) = std::sync::mpsc::sync_channel(1);
            let builder = std::thread::Builder::new().name(format!("thalweg-web-{number}"));
            let handle = builder.spawn(move || thread.run(&report)).map_err(system("start a thread"))?;
            web.threads.push(handle);
            let died = || io::Error::other("its thread ended");
            started.recv().unwrap_or_else(|_| Err(died())).map_err(system("start a runtime"))?;
        }
        Ok(web)
    }

    /// Where it serves, with the actual port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no more connections, lets requests end that are under way, for a while, and waits for the threads.
    pub fn shut_down(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the web stage panicked");
            }
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// One thread, on the way to its start.
struct Thread {
    listener: std::net::TcpListener,
    link: WebLink,
    limits: WebLimits,
    counters: Arc<Counters>,
    connections: Arc<Semaphore>,
    scrapes: Arc<Semaphore>,
    cors: Cors,
    check: HealthCheck,
    models: ModelList,
    stop: watch::Receiver<bool>,
}

impl Thread {
    fn run(self, report: &std::sync::mpsc::SyncSender<io::Result<()>>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("thalweg-web-file")
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            // The receiver waits for one report.
            Err(error) => return drop(report.send(Err(error))),
        };
        let Self { listener, link, limits, counters, connections, scrapes, cors, check, models, stop } = self;
        runtime.block_on(async {
            let opened = tokio::net::TcpListener::from_std(listener).and_then(|l| Ok((l, link.open()?)));
            let (listener, (desk, hearing)) = match opened {
                Ok(opened) => opened,
                Err(error) => return drop(report.send(Err(error))),
            };
            let desk = Arc::new(desk);
            let hears = tokio::spawn(hearing.run(Arc::clone(&desk)));
            drop(report.send(Ok(())));
            let (open, ends) = (watch::Sender::new(0), stop.clone());
            let stage = Stage { limits, desk, counters, connections, scrapes, cors, stop: ends, open, check, models };
            let stage = Arc::new(stage);
            accept::run(listener, door::router(Arc::clone(&stage)), stage, stop).await;
            hears.abort();
            if let Ok(Err(error)) = hears.await {
                tracing::error!(%error, "the web stage no longer heard its core");
            }
        });
    }
}
