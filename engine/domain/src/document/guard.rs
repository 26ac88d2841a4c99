//! Calls that may panic through no fault of ours.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call into the CRDT library gives, or nothing if it panicked. The panic is told as any other; whoever calls counts
/// what it worked on as lost.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}
