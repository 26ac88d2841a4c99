//! How a command ends when it does not end well.

use std::fmt;

use thalweg_client::{ClientError, RejectCode};

/// What a script learns from a failure. The numbers are part of the interface.
pub(crate) mod exit {
    /// It did not work.
    pub(crate) const FAILED: u8 = 1;
    /// The command line makes no sense.
    pub(crate) const USAGE: u8 = 2;
    /// No node answers.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// The node said no, or is not trusted.
    pub(crate) const REFUSED: u8 = 4;
    /// It began and did not end.
    pub(crate) const INCOMPLETE: u8 = 5;
}

/// Why a command failed: a line for people, and a number for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    /// Nothing if whoever should read it is gone.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// A failure of this machine or of ours.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(exit::FAILED, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    /// The same failure, with what was being done.
    pub(crate) fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Tells it to the terminal.
    pub(crate) fn print(&self) {
        if !self.message.is_empty() {
            eprintln!("thalweg: {}", self.message);
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mismatch = error.reject().is_some_and(|reject| reject.code == RejectCode::KindMismatch);
        let hint =
            if mismatch { "; `thalweg edit` and `thalweg doc` are for documents, the others for channels" } else { "" };
        // What cannot be right was typed so.
        let typed = matches!(error, ClientError::Invalid { what: "document" | "channel" | "model", .. });
        let exit = if typed { exit::USAGE } else { error.exit_code() };
        Self::new(exit, format!("{error}{hint}"))
    }
}

/// Failures of files and pipes, with what was being done.
pub(crate) trait During<T> {
    /// Says what was being done.
    fn during(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(format!("{what}: {error}")))
    }
}

impl<T> During<T> for Result<T, Failure> {
    fn during(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|failure| failure.during(what))
    }
}

/// Turns an error of writing to standard output into the end of the command: a reader that went away, as `head` does, has
/// what it wanted.
pub(crate) fn output(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::new(0, ""),
        _ => Failure::failed(format!("writing to standard output: {error}")),
    }
}
