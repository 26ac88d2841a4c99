//! The log on the disk of this machine: real files, and the threads that sleep in system calls so that no core does.
//!
//! ```text
//! core ──batches──► writer ──► wal/…        one per core; one batch is under way at a time
//!   ▲ └──full files──► archive ──seal──► segments/…      one per node; also gets the next files ready
//!   │                  merger ──merge──► segments/…      one per node, gently
//!   └──messages── reader ◄── segments/…                  one per node
//! ```
//! All of them talk to the cores over bounded rings. What any of them cannot do with the log stops the node
//! ([`Alarm`]), but for a full disk: then writes are refused until there is room, and reads go on.
//!
//! The log is always there. [`durability`](crate::config::NodeConfig::durability) says what becomes of channels whose maker
//! did not choose: what is said in a channel of `memory` is never appended, so a node of which all channels are such writes
//! no more than the records of those who asked for `disk`.

mod alarm;
mod aligned;
mod archive;
#[cfg(test)]
pub(crate) mod fault;
mod file;
mod forgetful;
mod gentle;
mod merger;
mod place;
mod reader;
mod recovery;
mod retention;
mod ring;
mod shelves;
#[cfg(test)]
mod tests;
mod thread;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thalweg_journal::recovery::Recovered;
use thalweg_journal::wal::WalFile;
use thalweg_journal::{Disk, LogError};
use thalweg_protocol::ids::Epoch;
use thalweg_ring::Bell;

pub(crate) use alarm::{Alarm, Cause};
pub(crate) use archive::{ArchiveCounters, ArchiveLink, FromArchive};
pub use file::FileDisk;
pub use forgetful::ForgetfulDisk;
pub(crate) use place::{Directory, Place};
pub(crate) use reader::{ReadDone, ReadJob, ReaderLink};
pub(crate) use recovery::recover;
pub use writer::{LogBackend, LogFile, LogWriter, WakeFds, Written, writer};

use archive::{Archive, ArchiveConfig, ArchiveError};
use merger::{Merger, MergerConfig};
use reader::Reader;
use shelves::Shelves;

/// The directory of the log, within the data directory.
pub(crate) const LOG_DIRECTORY: &str = "log";

/// How the log is kept.
pub(crate) struct StorageConfig {
    pub(crate) disk: Arc<dyn Disk>,
    /// Where the files of the disk are.
    pub(crate) root: PathBuf,
    pub(crate) place: Arc<dyn Place>,
    pub(crate) backend: LogBackend,
    pub(crate) sync_delay: Duration,
    pub(crate) epoch: Epoch,
    pub(crate) file_bytes: u64,
    pub(crate) alarm: Arc<Alarm>,
}

/// What one core gets of the log.
pub(crate) struct LogParts {
    pub(crate) file: WalFile,
    pub(crate) opened: Arc<LogFile>,
    pub(crate) writer: Box<dyn LogWriter>,
    pub(crate) archive: ArchiveLink,
    pub(crate) reader: ReaderLink,
    pub(crate) counters: Arc<ArchiveCounters>,
}

/// Why the log could not be opened for writing.
#[derive(Debug)]
pub(crate) enum StorageError {
    Log(LogError),
    System(io::Error),
}

/// The threads behind the cores.
pub(crate) struct Storage {
    archive: Archive,
    merger: Merger,
    reader: Reader,
}

impl Storage {
    /// Starts the threads, and gives each core its part; `bells` are the cores'. Of `recovered` the segments, the files
    /// that are free and the generations are taken.
    ///
    /// # Errors
    /// If the first files cannot be prepared or a thread cannot be started. Nothing is left running.
    pub(crate) fn start(
        config: StorageConfig,
        recovered: &mut Recovered,
        bells: &[Arc<Bell>],
    ) -> Result<(Self, Vec<LogParts>), StorageError> {
        let StorageConfig { disk, root, place, backend, sync_delay, epoch, file_bytes, alarm } = config;
        let shelves = Shelves::new(std::mem::take(&mut recovered.shelf));
        let counters = Arc::<ArchiveCounters>::default();
        let merger_bell = Bell::new().map_err(StorageError::System)?;
        let mut writers = Vec::new();
        for bell in bells {
            writers.push(writer(backend, bell, sync_delay).map_err(StorageError::System)?);
        }
        let config = ArchiveConfig {
            disk: Arc::clone(&disk),
            root,
            backend,
            epoch,
            file_bytes,
            shelves: Arc::clone(&shelves),
            alarm: Arc::clone(&alarm),
            counters: Arc::clone(&counters),
            free: std::mem::take(&mut recovered.free),
            next_generation: std::mem::take(&mut recovered.next_generation),
            merger: Arc::clone(&merger_bell),
        };
        let (archive, links) = Archive::start(config, bells).map_err(|error| match error {
            ArchiveError::Prepare(error) => StorageError::Log(error.into()),
            ArchiveError::Start(error) => StorageError::System(error),
        })?;
        let (reader, reader_links) = match Reader::start(Arc::clone(&shelves), &alarm, bells) {
            Ok(started) => started,
            Err(error) => {
                archive.shut_down();
                return Err(StorageError::System(error));
            }
        };
        // Each core's next file and the one that is sealed meanwhile have room, whatever is merged.
        let reserve = 2 * file_bytes * bells.len() as u64;
        let bell = merger_bell;
        let merging = MergerConfig { disk, place, reserve, shelves, counters: Arc::clone(&counters), alarm, bell };
        let merger = match Merger::start(merging) {
            Ok(merger) => merger,
            Err(error) => {
                archive.shut_down();
                reader.shut_down();
                return Err(StorageError::System(error));
            }
        };
        let each = links.into_iter().zip(reader_links).zip(writers);
        let parts = each.map(|(((archive, file, opened), reader), writer)| LogParts {
            file,
            opened,
            writer,
            archive,
            reader,
            counters: Arc::clone(&counters),
        });
        Ok((Self { archive, merger, reader }, parts.collect()))
    }

    /// Ends the threads, once the cores are done.
    pub(crate) fn shut_down(self) {
        self.archive.shut_down();
        self.merger.shut_down();
        self.reader.shut_down();
    }
}
