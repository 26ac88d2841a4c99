//! The segments of a node, as its threads see them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thalweg_journal::segment::{Segment, Shelf};

/// All segments, shared by the threads that make, merge and read them. No core looks at it.
#[derive(Debug, Default)]
pub(super) struct Shelves(Mutex<Shelf>);

impl Shelves {
    pub(super) fn new(shelf: Shelf) -> Arc<Self> {
        Arc::new(Self(Mutex::new(shelf)))
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // What it guards is replaced in one step, so it is whole whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segments as they are now; they can be read even when they are replaced.
    pub(super) fn now(&self) -> Shelf {
        self.lock().clone()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().0.len()
    }

    /// The number of the newest; 0 if there is none.
    pub(super) fn last_number(&self) -> u64 {
        self.lock().0.last().map_or(0, |segment| segment.range().1)
    }

    /// Adds the newest.
    pub(super) fn push(&self, segment: Segment) {
        self.lock().0.push(Arc::new(segment));
    }

    /// Puts what neighbours were merged into in their place.
    pub(super) fn replace(&self, merged: Segment) {
        let mut shelf = self.lock();
        let name = merged.name();
        let at = shelf.0.iter().position(|segment| name.contains(segment.name())).unwrap_or(shelf.0.len());
        shelf.0.retain(|segment| !name.contains(segment.name()));
        shelf.0.insert(at, Arc::new(merged));
    }
}
