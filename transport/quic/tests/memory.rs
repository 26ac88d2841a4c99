//! What an idle link costs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[allow(dead_code, reason = "the unit tests use all of it")]
#[path = "../src/tests/pair.rs"]
mod pair;

// The pair speaks of them as items of its crate.
use thalweg_quic::{CloseReason, Event, Lane, Link, PRIORITY_DELIVERY, Quic, QuicConfig};

/// Counts the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls are passed on unchanged; what is counted is nobody's memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A node may hold 32 KiB resident per idle connection; sessions and the allocator's own waste want some of that.
const LINK_BYTES_MAX: usize = 22 << 10;

#[test]
fn an_idle_link_is_small() {
    const LINKS: usize = 200;
    let mut pair = pair::Pair::new(pair::config());
    let open = |pair: &mut pair::Pair| {
        let (client, link) = pair.connect();
        pair.clients[client].write_frame(1, &[7; 300]);
        pair.until("hello", |pair| pair.frames(link).len() == 1);
        let lane = pair.server.open_lane(link, PRIORITY_DELIVERY).expect("there is room");
        for lane in [Lane::COMMAND, lane] {
            pair.server.send(link, lane, 1, vec![7; 300].into()).expect("there is room");
        }
        pair.until("welcome", |pair| pair.clients[client].frames.len() == 2);
        // Until all is acknowledged and the length of datagrams is found out.
        pair.run(Duration::from_millis(100));
        pair.drop_clients();
    };
    open(&mut pair);
    let before = IN_USE.load(Ordering::Relaxed);
    (0..LINKS).for_each(|_| open(&mut pair));
    let each = (IN_USE.load(Ordering::Relaxed) - before) / LINKS;
    assert_eq!(pair.server.connections(), LINKS + 1, "all are open, and idle");
    println!("{each} bytes of heap per idle link");
    assert!(each <= LINK_BYTES_MAX, "{each} bytes of heap per idle link, at most {LINK_BYTES_MAX} are allowed");
}
