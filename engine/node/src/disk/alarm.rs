//! The one way in which a node stops by itself.

use std::sync::{Arc, OnceLock};

use thalweg_ring::Bell;

/// Raised once, by whoever finds that the log can no longer be trusted: a write or a sync failed, or what was written cannot
/// be read. Every core then ends its turn and answers nothing more; the node ends with what was said. Nothing is tried
/// again: after a failed sync the kernel may have dropped what was not written, and a second one would not say so.
#[derive(Debug)]
pub(crate) struct Alarm {
    said: OnceLock<String>,
    bells: Vec<Arc<Bell>>,
}

impl Alarm {
    /// An alarm that wakes the cores with these bells.
    pub(crate) fn new(bells: Vec<Arc<Bell>>) -> Arc<Self> {
        Arc::new(Self { said: OnceLock::new(), bells })
    }

    /// Stops the node. The first cause counts.
    pub(crate) fn raise(&self, cause: String) {
        if self.said.set(cause).is_ok() {
            tracing::error!(cause = self.said.get(), "the log failed; the node stops");
        }
        self.bells.iter().for_each(|bell| bell.ring());
    }

    /// Why the node must stop, if it must.
    pub(crate) fn raised(&self) -> Option<&str> {
        self.said.get().map(String::as_str)
    }
}
