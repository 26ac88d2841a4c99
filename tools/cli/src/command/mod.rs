//! The commands: one file each, with its `Args` and `run(args)`.

pub(crate) mod admin;
pub(crate) mod ask;
#[cfg(feature = "node")]
pub(crate) mod bench;
pub(crate) mod channel;
pub(crate) mod chat;
#[cfg(feature = "node")]
pub(crate) mod demo;
#[cfg(feature = "node")]
pub(crate) mod doctor;
pub(crate) mod history;
#[cfg(feature = "node")]
pub(crate) mod models;
pub(crate) mod publish;
#[cfg(feature = "node")]
pub(crate) mod serve;
pub(crate) mod subscribe;
