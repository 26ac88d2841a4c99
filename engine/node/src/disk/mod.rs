//! The log on the disk of this machine.

mod aligned;
#[cfg(test)]
pub(crate) mod fault;
mod file;
mod ring;
mod thread;
mod writer;

pub use file::FileDisk;
pub use writer::{LogBackend, LogFile, LogWriter, WakeFds, Written, writer};
