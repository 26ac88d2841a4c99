//! The bytes of the log. Pure: files are reached through [`Disk`], which the node makes of real files and the simulation of
//! a disk that loses, tears and rots.
//!
//! Two tiers. What is appended goes into the *write-ahead log* of its core, group by group, and is durable when its group
//! is synced ([`wal`]). A file of that log that is full is sealed into a *segment*, where the messages of a channel stand
//! together and are found through a sparse index, beside the state that the records left behind ([`segment`]). Segments are
//! merged, the file is used again. Recovery seals what is left of the write-ahead log and merges the states ([`recovery`]):
//! nothing else is replayed, so it does not matter how many cores there were.
#![forbid(unsafe_code)]

pub mod disk;
pub mod error;
mod golden;
pub mod record;
pub mod recovery;
pub mod segment;
pub mod wal;

pub use disk::{Disk, DiskError, DiskFile};
pub use error::LogError;
