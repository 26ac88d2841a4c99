//! Contract tests: shards fed from a list, and what comes out of them.

mod channels;
mod documents;
mod draining;
mod extras;
mod generations;
mod harness;
mod members;
mod presence;
mod properties;
mod quota;
mod readers;
mod recovery;
mod routing;
mod sessions;
