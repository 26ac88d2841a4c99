//! What data means. Pure: no clock, no randomness, no I/O, no dependence on hash order.
//!
//! One folder per aggregate, all of the same shape: `decide` looks at the state and a command and gives an event or a
//! refusal; `apply` takes the event into the state and cannot fail, so that what was logged can always be replayed.
//!
//! - [`channel`]: an ordered sequence of messages with a bounded history;
//! - [`generation`]: one answer of a model as a sequence of tokens;
//! - [`document`]: a text, or anything else, that many edit at once;
//! - [`dedupe`]: which commands of which sessions a partition has carried out;
//! - [`fact`]: small values of channels and users of which the newest counts;
//! - [`routing`]: which model answers a request; [`breaker`], [`estimate`]: what is learned of models by asking them;
//! - [`permission`]: what a token's holder may do;
//! - [`quota`]: how much somebody may do in a time;
//! - [`record`]: what goes into the log;
//! - [`partition`]: what the records of a piece of a log leave behind.
#![forbid(unsafe_code)]

pub mod breaker;
pub mod channel;
pub mod dedupe;
pub mod document;
pub mod estimate;
pub mod fact;
pub mod generation;
pub mod partition;
pub mod permission;
pub mod quota;
pub mod record;
pub mod routing;
