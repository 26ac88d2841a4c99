//! A bounded ring from one producer to one consumer.
//!
//! The indexes grow without wrapping (a `usize` lasts for centuries) and are masked into a power of two of slots. Each
//! side keeps a private copy of the other's index and looks at the shared one only when the copy says full or empty, so
//! that a busy ring moves one cache line per batch and not per item (after Lee, Bu, Chandranmenon: "A lock-free,
//! cache-efficient shared ring buffer for multi-core systems", ANCS 2010).

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crossbeam_utils::CachePadded;

struct Shared<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    /// Next slot to be read. Written by the consumer only.
    head: CachePadded<AtomicUsize>,
    /// Next slot to be written. Written by the producer only.
    tail: CachePadded<AtomicUsize>,
}

// SAFETY: a slot is touched by the producer only while it lies outside of head..tail and by the consumer only while it
// lies inside; the release stores and acquire loads of the indexes hand it over. So a `T` moves between two threads,
// which `T: Send` allows, and is never shared.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above; the ring owns its items.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, index: usize) -> *mut MaybeUninit<T> {
        self.slots[index & (self.slots.len() - 1)].get()
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Both ends are gone, so nobody else looks at the indexes.
        let (head, tail) = (self.head.load(Ordering::Acquire), self.tail.load(Ordering::Acquire));
        for index in head..tail {
            // SAFETY: slots in head..tail hold initialised items that nobody else can reach any more.
            unsafe { (*self.slot(index)).assume_init_drop() };
        }
    }
}

/// The writing end of a [`ring`].
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    head_seen: usize,
}

/// The reading end of a [`ring`].
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    tail_seen: usize,
}

/// Makes a ring of `slots` items; `slots` is rounded up to a power of two.
pub fn ring<T: Send>(slots: usize) -> (Producer<T>, Consumer<T>) {
    let slots = slots.max(1).next_power_of_two();
    let shared = Arc::new(Shared {
        slots: (0..slots).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
    });
    let producer = Producer { shared: Arc::clone(&shared), tail: 0, head_seen: 0 };
    (producer, Consumer { shared, head: 0, tail_seen: 0 })
}

impl<T: Send> Producer<T> {
    /// Puts `item` on the ring, or gives it back if the ring is full.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.tail - self.head_seen == self.shared.slots.len() {
            self.head_seen = self.shared.head.load(Ordering::Acquire);
            if self.tail - self.head_seen == self.shared.slots.len() {
                return Err(item);
            }
        }
        // SAFETY: the slot lies outside of head..tail, so it is the producer's and holds nothing.
        unsafe { (*self.shared.slot(self.tail)).write(item) };
        self.tail += 1;
        self.shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Slots that are free for certain; the consumer may free more at any moment.
    pub fn free(&mut self) -> usize {
        self.head_seen = self.shared.head.load(Ordering::Acquire);
        self.shared.slots.len() - (self.tail - self.head_seen)
    }

    /// Slots in all.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Whether the other end still exists.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }
}

impl<T: Send> Consumer<T> {
    /// Takes the oldest item off the ring.
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.shared.tail.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: the slot lies inside of head..tail, so it holds an item that the producer has handed over.
        let item = unsafe { (*self.shared.slot(self.head)).assume_init_read() };
        self.head += 1;
        self.shared.head.store(self.head, Ordering::Release);
        Some(item)
    }

    /// Items that wait for certain; the producer may add more at any moment.
    pub fn len(&self) -> usize {
        self.shared.tail.load(Ordering::Acquire) - self.head
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the other end still exists.
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_gives_the_item_back() {
        let (mut producer, mut consumer) = ring(3);
        assert_eq!(producer.capacity(), 4, "rounded up to a power of two");
        for n in 0..4 {
            assert_eq!(producer.push(n), Ok(()));
        }
        assert_eq!((producer.push(4), producer.free()), (Err(4), 0));
        assert_eq!((consumer.pop(), consumer.len()), (Some(0), 3));
        assert_eq!(producer.push(4), Ok(()));
        assert_eq!(std::iter::from_fn(|| consumer.pop()).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(consumer.is_empty());
    }

    #[test]
    fn items_left_on_the_ring_are_dropped_once() {
        let item = std::sync::Arc::new(());
        let (mut producer, mut consumer) = ring(8);
        for _ in 0..5 {
            assert!(producer.push(item.clone()).is_ok());
        }
        drop(consumer.pop());
        drop((producer, consumer));
        assert_eq!(std::sync::Arc::strong_count(&item), 1);
    }

    #[test]
    fn everything_arrives_in_order_across_threads() {
        const ITEMS: u64 = 200_000;
        let (mut producer, mut consumer) = ring(64);
        let thread = std::thread::spawn(move || {
            for n in 0..ITEMS {
                let mut item = n;
                while let Err(back) = producer.push(item) {
                    item = back;
                    std::thread::yield_now();
                }
            }
        });
        for expected in 0..ITEMS {
            let got = loop {
                match consumer.pop() {
                    Some(got) => break got,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(got, expected);
        }
        thread.join().expect("the producer does not panic");
        assert!(consumer.is_abandoned() && consumer.pop().is_none());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn every_interleaving_keeps_order_and_loses_nothing() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let thread = loom::thread::spawn(move || {
                for n in 0..3_u32 {
                    let mut item = n;
                    while let Err(back) = producer.push(item) {
                        item = back;
                        loom::thread::yield_now();
                    }
                }
            });
            let mut expected = 0;
            while expected < 3 {
                match consumer.pop() {
                    Some(got) => {
                        assert_eq!(got, expected);
                        expected += 1;
                    }
                    None => loom::thread::yield_now(),
                }
            }
            thread.join().unwrap();
        });
    }
}
