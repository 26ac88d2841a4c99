//! The thread that reads history back from disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use thalweg_domain::record::Message;
use thalweg_journal::LogError;
use thalweg_protocol::ids::{ChannelId, Partition, Position};
use thalweg_protocol::limits::{HISTORY_BATCH_BYTES, HISTORY_BATCH_MESSAGES, READS_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::{Bell, Consumer, Producer, ring};
use thalweg_shard::ReadId;

use super::alarm::Alarm;
use super::shelves::Shelves;

/// What to read: messages of one channel in `from..to`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadJob {
    pub(crate) read: ReadId,
    pub(crate) partition: Partition,
    pub(crate) channel: ChannelId,
    pub(crate) from: Position,
    pub(crate) to: Position,
}

/// What was read.
pub(crate) type ReadDone = (ReadId, Result<Vec<Arc<Message>>, Reject>);

/// One core's ends of the rings to the reader and back. A shard has at most [`READS_MAX`] reads under way, and so many fit.
pub(crate) struct ReaderLink {
    jobs: Producer<ReadJob>,
    done: Consumer<ReadDone>,
    bell: Arc<Bell>,
}

impl ReaderLink {
    /// Hands a read over; gives it back if there is no room.
    pub(crate) fn ask(&mut self, job: ReadJob) -> Result<(), ReadJob> {
        self.jobs.push(job)?;
        self.bell.ring();
        Ok(())
    }

    pub(crate) fn receive(&mut self) -> Option<ReadDone> {
        self.done.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty()
    }
}

struct Desk {
    jobs: Consumer<ReadJob>,
    done: Producer<ReadDone>,
    bell: Arc<Bell>,
}

/// The reader: one thread per node, which sleeps in reads so that no core does.
pub(super) struct Reader {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// Starts the reader, and gives each core its link; `bells` are the cores'.
    pub(super) fn start(
        shelves: Arc<Shelves>,
        alarm: &Arc<Alarm>,
        bells: &[Arc<Bell>],
    ) -> io::Result<(Self, Vec<ReaderLink>)> {
        let (bell, stop) = (Bell::new()?, Arc::new(AtomicBool::new(false)));
        let (mut desks, mut links) = (Vec::new(), Vec::new());
        for core in bells {
            let (jobs, asked) = ring(READS_MAX);
            let (told, done) = ring(READS_MAX);
            links.push(ReaderLink { jobs, done, bell: Arc::clone(&bell) });
            desks.push(Desk { jobs: asked, done: told, bell: Arc::clone(core) });
        }
        let (own_bell, own_stop) = (Arc::clone(&bell), Arc::clone(&stop));
        let guard = alarm.guard("the reader of history");
        let work = move || {
            let _guard = guard;
            work(&shelves, desks, &own_bell, &own_stop);
        };
        let thread = std::thread::Builder::new().name("thalweg-reader".into()).spawn(work)?;
        Ok((Self { bell, stop, thread }, links))
    }

    pub(super) fn shut_down(self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.join().is_err() {
            tracing::error!("the reader's thread panicked");
        }
    }
}

fn work(shelves: &Shelves, mut desks: Vec<Desk>, bell: &Bell, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        // One read of each core in turn, so that none waits behind all of another's.
        let mut served = 0;
        for desk in &mut desks {
            let Some(job) = desk.jobs.pop() else { continue };
            served += 1;
            // There are as many slots for answers as for questions, so a refusal means that the core is gone.
            if desk.done.push((job.read, read(shelves, &job))).is_ok() {
                desk.bell.ring();
            }
        }
        if served > 0 {
            continue;
        }
        bell.prepare();
        if desks.iter().all(|desk| desk.jobs.is_empty()) && !stop.load(Ordering::Acquire) {
            bell.wait(None);
        }
        bell.awake();
    }
}

fn read(shelves: &Shelves, job: &ReadJob) -> Result<Vec<Arc<Message>>, Reject> {
    let &ReadJob { partition, channel, from, to, .. } = job;
    let read = shelves.now().read(partition, channel, from, to, HISTORY_BATCH_MESSAGES, HISTORY_BATCH_BYTES);
    read.map_err(|error| {
        tracing::error!(%error, %partition, %channel, %from, "history cannot be read back");
        let what = match error {
            LogError::Damaged { .. } | LogError::Missing { .. } => "it is damaged on the disk",
            _ => "the disk failed",
        };
        let text = format!("messages from {from} cannot be read back: {what}; the node's log says where");
        Reject::new(RejectCode::StorageDamaged, text)
    })
}
