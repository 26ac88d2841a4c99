//! Seeded behaviours, and the auditor of what came back.
//!
//! What a crowd of clients does, without a socket: [`schedule`] says when something is intended to happen (open loop: the
//! time does not depend on how fast the system answers), [`behaviour`] says what each member of the crowd does then, and
//! [`auditor`] takes a record of what was asked and what came back and says which promises were broken. The load generator,
//! the simulation and the chaos runs share them.
//!
//! Pure: time is a number handed in, randomness is a seeded generator handed in. The auditor shares no code with the
//! engine, so that a mistake in the one is not repeated in the other.
#![forbid(unsafe_code)]

pub mod auditor;
pub mod behaviour;
pub mod schedule;

pub use auditor::{Auditor, Event, Violation};
pub use schedule::{Arrivals, Schedule};
