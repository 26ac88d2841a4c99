//! The commands: one file each, with its `Args` and `run(args)`.

pub(crate) mod admin;
pub(crate) mod ask;
#[cfg(feature = "node")]
pub(crate) mod bench;
pub(crate) mod channel;
pub(crate) mod chat;
#[cfg(feature = "node")]
pub(crate) mod demo;
pub(crate) mod dm;
pub(crate) mod doc;
#[cfg(feature = "node")]
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod embed;
pub(crate) mod history;
pub(crate) mod login;
#[cfg(feature = "node")]
pub(crate) mod models;
pub(crate) mod profile;
pub(crate) mod publish;
pub(crate) mod search;
#[cfg(feature = "node")]
pub(crate) mod serve;
pub(crate) mod subscribe;
pub(crate) mod who;
