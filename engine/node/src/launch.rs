//! Starting the cores' threads, and ending those that did start when not all do.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use thalweg_domain::partition::PartitionState;
use thalweg_protocol::ids::{CoreId, Partition};
use thalweg_quic::{Quic, QuicConfig};
use thalweg_ring::{Bell, Consumer};
use thalweg_shard::{Config as ShardConfig, Shard};
use thalweg_udp::Socket;

use crate::clerk::ClerkLink;
use crate::core_loop::{Core, Shared};
use crate::disk::LogParts;
use crate::entrance::Entrance;
use crate::error::StartError;
use crate::inference::Links;
use crate::log::CoreLog;
use crate::mesh::Mesh;
use crate::park::Parker;
use crate::reload::Control;
use crate::trace::Tracer;
use crate::web::WebDesk;

/// A core that has not come up after this long will not.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Registered memory of a core's executor, in bytes. Sockets and the log have their own.
const IO_MEMORY_BYTES: usize = 1 << 20;
/// Entries of an executor's submission ring: a core waits for two descriptors and a timer.
const EXECUTOR_RING_ENTRIES: usize = 64;

/// One core's parts, on the way to its thread.
pub(crate) struct Parts {
    pub(crate) core: CoreId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) socket: Socket,
    pub(crate) quic: QuicConfig,
    pub(crate) shard: ShardConfig,
    pub(crate) mesh: Mesh,
    pub(crate) inference: Links,
    pub(crate) clerk: ClerkLink,
    pub(crate) control: Consumer<Control>,
    pub(crate) entrance: Entrance,
    pub(crate) web: WebDesk,
    pub(crate) tracer: Tracer,
    pub(crate) log: LogParts,
    pub(crate) states: Vec<(Partition, Box<PartitionState>)>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) spin: Duration,
    #[cfg(test)]
    pub(crate) broken: Option<Broken>,
}

/// What is wrong with a core, in tests.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It does not come up.
    Refuses,
    /// It panics once all are up.
    Panics,
}

type Ready = (u16, Result<(), String>);

/// The cores' threads.
pub(crate) struct Cores {
    handles: Vec<ExecutorJoinHandle<()>>,
    /// Which have said anything: those run, or have ended, and can be waited for.
    heard: Vec<bool>,
    deadline: Instant,
}

impl Cores {
    /// Starts one pinned thread per core, and waits until each has said that it is up, and then that it has taken in what
    /// the log left behind, which may take longer.
    ///
    /// # Errors
    /// Why not all of them came up, with those that were started: the caller must [`end`](Self::end) them.
    pub(crate) fn start(parts: Vec<Parts>, cpus: &[usize]) -> Result<Vec<ExecutorJoinHandle<()>>, (StartError, Ended)> {
        let shared = parts.first().map(|parts| Arc::clone(&parts.shared));
        let (ready, said) = mpsc::sync_channel(2 * parts.len());
        let mut cores = Self { handles: Vec::new(), heard: Vec::new(), deadline: Instant::now() + READY_TIMEOUT };
        match cores.spawn(parts, cpus, ready).and_then(|()| cores.await_all(&said)) {
            Ok(()) => Ok(cores.handles),
            Err(error) => {
                shared.inspect(|shared| shared.alarm.abandon());
                Err((error, cores.end(&said)))
            }
        }
    }

    fn spawn(&mut self, parts: Vec<Parts>, cpus: &[usize], ready: mpsc::SyncSender<Ready>) -> Result<(), StartError> {
        for (parts, &cpu) in parts.into_iter().zip(cpus) {
            let (core, ready) = (parts.core.0, ready.clone());
            let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
                .name(&format!("thalweg-core-{core}"))
                .io_memory(IO_MEMORY_BYTES)
                .ring_depth(EXECUTOR_RING_ENTRIES)
                .spawn(move || run_core(parts, ready))
                .map_err(|error| StartError::Core { core, reason: error.to_string() })?;
            self.handles.push(handle);
            self.heard.push(false);
        }
        Ok(())
    }

    fn await_all(&mut self, said: &mpsc::Receiver<Ready>) -> Result<(), StartError> {
        let mut restored = 0;
        while let Some(silent) = self.heard.iter().position(|heard| !heard) {
            let core = silent as u16;
            match said.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
                Ok((core, result)) => {
                    restored += usize::from(std::mem::replace(&mut self.heard[usize::from(core)], true));
                    result.map_err(|reason| StartError::Core { core, reason })?;
                }
                // With too little locked memory an executor is started and never runs, without a word.
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let reason = format!("nothing was heard of it for {} s", READY_TIMEOUT.as_secs());
                    return Err(StartError::Core { core, reason });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(StartError::Core { core, reason: "its thread ended".into() });
                }
            }
        }
        while restored < self.handles.len() {
            let (core, result) =
                said.recv().map_err(|_| StartError::Core { core: 0, reason: "a core's thread ended".into() })?;
            result.map_err(|reason| StartError::Core { core, reason })?;
            restored += 1;
        }
        Ok(())
    }

    /// Waits for those to end that came up, which the alarm tells to. The others, of which nothing was heard by the
    /// deadline, may never run: they are given back. Should one run after all, it sees the alarm and touches nothing.
    fn end(mut self, said: &mpsc::Receiver<Ready>) -> Ended {
        while self.heard.contains(&false) {
            match said.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
                Ok((core, _)) => self.heard[usize::from(core)] = true,
                Err(mpsc::RecvTimeoutError::Timeout) => break,
                // Nobody is left who could say anything.
                Err(mpsc::RecvTimeoutError::Disconnected) => self.heard.fill(true),
            }
        }
        let (heard, silent): (Vec<_>, Vec<_>) = self.handles.into_iter().zip(self.heard).partition(|(_, heard)| *heard);
        for (handle, _) in heard {
            if let Err(error) = handle.join() {
                tracing::error!(%error, "a core ended badly");
            }
        }
        Ended { silent: silent.into_iter().map(|(handle, _)| handle).collect() }
    }
}

/// What is left of cores that were started in vain.
pub(crate) struct Ended {
    silent: Vec<ExecutorJoinHandle<()>>,
}

impl Ended {
    /// Drops `held` once the last of them is gone. That may be never; this does not wait.
    pub(crate) fn hold<T: Send + 'static>(self, held: T) {
        if self.silent.is_empty() {
            return;
        }
        let (give, take) = mpsc::sync_channel::<T>(1);
        let wait = move || {
            let held = take.recv();
            for handle in self.silent {
                if let Err(error) = handle.join() {
                    tracing::error!(%error, "a core ended badly");
                }
            }
            drop(held);
        };
        let spawned = std::thread::Builder::new().name("thalweg-silent".into()).spawn(wait);
        if let Err(mpsc::SendError(held)) = give.send(held) {
            // Better held until the process ends than let go too early.
            tracing::warn!(error = spawned.err().map(|error| error.to_string()), "nobody waits for the silent cores");
            std::mem::forget(held);
        }
    }
}

async fn run_core(parts: Parts, ready: mpsc::SyncSender<Ready>) {
    #[cfg(test)]
    let broken = parts.broken;
    let Parts {
        core,
        shared,
        socket,
        quic,
        shard,
        mesh,
        inference,
        clerk,
        entrance,
        control,
        web,
        tracer,
        log,
        states,
        bell,
        spin,
        ..
    } = parts;
    let _guard = shared.alarm.guard(format!("core {}", core.0));
    let log = CoreLog::new(core, log);
    let parker = Parker::new(bell, socket.wait_fd(), log.wake_fds()).await.map_err(|error| error.to_string());
    let made = parker.and_then(|parker| Ok((parker, Quic::new(quic).map_err(|error| error.to_string())?)));
    #[cfg(test)]
    let made = if broken == Some(Broken::Refuses) { Err("it is broken".into()) } else { made };
    // The receiver is gone only if another core failed first, and then nobody needs to know.
    match made {
        Ok((parker, quic)) => {
            let id = core.0;
            let _ = ready.send((id, Ok(())));
            let outlook = Arc::clone(&shared.outlook);
            let mut core = Core::new(
                core,
                shared,
                socket,
                quic,
                Shard::new(shard),
                log,
                mesh,
                inference,
                clerk,
                control,
                entrance,
                web,
                tracer,
            );
            core.restore(states);
            let _ = ready.send((id, Ok(())));
            drop(ready);
            #[cfg(test)]
            assert_ne!(broken, Some(Broken::Panics), "as planned");
            core.run(parker, spin).await;
            outlook.ended(CoreId(id));
        }
        Err(reason) => {
            let _ = ready.send((core.0, Err(reason)));
        }
    }
}
