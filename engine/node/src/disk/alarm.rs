//! The one way in which a node stops by itself.

use std::sync::{Arc, OnceLock};

use thalweg_ring::Bell;

/// Why a node stops by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The log can no longer be trusted: a write or a sync failed, or what was written cannot be read. Nothing is tried
    /// again: after a failed sync the kernel may have dropped what was not written, and a second one would not say so.
    Log(String),
    /// A thread panicked: this one. What it was to do is not done any more, so nobody may be told that it will be.
    Panic(String),
    /// It did not start; what did must end.
    Abandoned,
}

/// Raised once, by whoever finds that the node cannot go on. Every core then ends its turn and answers nothing more; the
/// node ends with what was said.
#[derive(Debug)]
pub(crate) struct Alarm {
    cause: OnceLock<Cause>,
    bells: Vec<Arc<Bell>>,
}

impl Alarm {
    /// An alarm that wakes the cores with these bells.
    pub(crate) fn new(bells: Vec<Arc<Bell>>) -> Arc<Self> {
        Arc::new(Self { cause: OnceLock::new(), bells })
    }

    /// Stops the node because its log failed. The first cause counts.
    pub(crate) fn raise(&self, what: String) {
        self.stop(Cause::Log(what));
    }

    /// Ends what was started of a node that did not start.
    pub(crate) fn abandon(&self) {
        self.stop(Cause::Abandoned);
    }

    fn stop(&self, cause: Cause) {
        if self.cause.set(cause).is_ok() {
            match self.cause() {
                Some(Cause::Log(what)) => tracing::error!(what, "the log failed; the node stops"),
                Some(Cause::Panic(thread)) => tracing::error!(thread, "a thread panicked; the node stops"),
                Some(Cause::Abandoned) | None => {}
            }
        }
        self.bells.iter().for_each(|bell| bell.ring());
    }

    /// Why the node must stop, if it must.
    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.cause.get()
    }

    /// Whether the node must stop.
    pub(crate) fn is_raised(&self) -> bool {
        self.cause.get().is_some()
    }

    /// Stops the node if the calling thread panics before it drops this.
    pub(crate) fn guard(self: &Arc<Self>, thread: impl Into<String>) -> Guard {
        Guard { alarm: Arc::clone(self), thread: thread.into() }
    }
}

/// Watches over a thread: the others would wait for it for ever, or its partitions would have no owner.
#[derive(Debug)]
pub(crate) struct Guard {
    alarm: Arc<Alarm>,
    thread: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.alarm.stop(Cause::Panic(std::mem::take(&mut self.thread)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_panic_raises_it() {
        let alarm = Alarm::new(Vec::new());
        let run = |panics: bool| {
            let guard = alarm.guard("the thread");
            std::thread::spawn(move || {
                let _guard = guard;
                assert!(!panics, "as planned");
            })
            .join()
        };
        assert!(run(false).is_ok() && alarm.cause().is_none());
        assert!(run(true).is_err());
        alarm.raise("later".into());
        assert_eq!(alarm.cause(), Some(&Cause::Panic("the thread".into())), "the first counts");
    }
}
