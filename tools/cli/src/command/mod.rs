//! The commands: one file each, with its `Args` and `run(args)`.

pub(crate) mod admin;
pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod channel;
pub(crate) mod chat;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod history;
pub(crate) mod models;
pub(crate) mod publish;
pub(crate) mod serve;
pub(crate) mod subscribe;
