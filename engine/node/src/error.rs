//! Why a node does not start, or ends.

use std::io;
use std::path::PathBuf;

use thalweg_journal::LogError;
use thalweg_protocol::ids::Name;
use thalweg_protocol::op::Durability;
use thalweg_quic::QuicError;
use thalweg_remote::RemoteError;
use thalweg_udp::UdpError;
use thalweg_web::WebError;
use thalweg_worker::stage::StageError;

use crate::gate::GateError;
use crate::identity::IdentityError;
use crate::trace::TraceConfigError;

/// Why a node did not start, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something is wrong with the data directory or what is in it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The gate cannot open what it keeps, or its configuration makes no sense.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The sockets could not be bound.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// QUIC cannot be served.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// Traces cannot be sent as configured.
    #[error(transparent)]
    Trace(#[from] TraceConfigError),
    /// HTTP cannot be served.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The models could not be loaded.
    #[error(transparent)]
    Inference(#[from] StageError),
    /// The log cannot be recovered or written.
    #[error("the log in {}: {source}", path.display())]
    Log {
        /// The log's directory.
        path: PathBuf,
        /// What is wrong, where in it, and what to do.
        source: LogError,
    },
    /// The log failed while the node ran.
    #[error(
        "the log in {} failed: {cause}. The node stopped, so that nothing is acknowledged that is not on the disk. What \
         was acknowledged is there; see what the system says of the disk (`dmesg`), then start the node again", path.display()
    )]
    LogFailed {
        /// The log's directory.
        path: PathBuf,
        /// Which file, and what the system said.
        cause: String,
    },
    /// A thread panicked while the node ran.
    #[error(
        "{thread} panicked, which is a defect of Thalweg. The node stopped, so that nobody waits for what no longer \
         happens. What was acknowledged is on the disk; start the node again, and report what it said on standard error"
    )]
    Panicked {
        /// Which thread.
        thread: String,
    },
    /// Messages cannot be as durable as asked.
    #[error("durability {} needs other nodes; choose disk or memory", .0.as_str())]
    Durability(Durability),
    /// A model cannot be asked elsewhere as it is to be.
    #[error("model.{model}: {source}")]
    Remote {
        /// Which model.
        model: Name,
        /// Why not.
        source: RemoteError,
    },
    /// What asks models elsewhere does not start.
    #[error(transparent)]
    RemoteStage(#[from] RemoteError),
    /// Two settings contradict each other.
    #[error("the io_uring back end of the log writes around any disk shell; choose the thread back end")]
    ShellBypassed,
    /// A number in the configuration makes no sense.
    #[error("{what} is {value}; give {least} to {most}")]
    Config {
        /// Which setting.
        what: &'static str,
        /// What it was.
        value: usize,
        /// The least it can be.
        least: usize,
        /// The most it can be.
        most: usize,
    },
    /// The machine would not give a core what it needs.
    #[error(
        "core {core} did not come up: {reason}. Each core needs io_uring and about 1 MiB of locked memory: check that \
         `sysctl kernel.io_uring_disabled` is 0 and raise `ulimit -l` (in a systemd unit: LimitMEMLOCK=64M); \
         `thalweg doctor` tells more"
    )]
    Core {
        /// Which core.
        core: u16,
        /// What is known.
        reason: String,
    },
    /// The system refused something else.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
