//! The buffers that a ring receives into.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// Length of a buffer: 64 KiB that GRO may coalesce, and what the kernel says about them, in whole pages. A short datagram
/// touches the first page only, and pages never touched cost nothing.
pub(super) const BUFFER_BYTES: usize = 17 * 4096;
/// Buffers at first, and added at a time.
pub(super) const SLAB_BUFFERS: usize = 64;
/// Most buffers of a ring. More datagrams wait in the socket until buffers are given back. A power of two, as the kernel
/// wants it.
pub(super) const BUFFERS_MAX: usize = 1024;
/// The number under which the kernel knows the buffers.
pub(super) const GROUP: u16 = 0;

/// Memory straight from the kernel, in pages.
#[derive(Debug)]
struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the pages belong to whoever has the value; nothing about them is bound to a thread.
unsafe impl Send for Pages {}

impl Pages {
    fn new(bytes: usize) -> io::Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for fresh pages at an address of the kernel's choice, so nothing existing is affected.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => Ok(Self { start, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages were mapped by `new` with this length, and whoever had borrowed them no longer does.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The buffers that a ring receives into, and the ring of descriptors by which the kernel is given them.
///
/// A buffer is the kernel's from [`give`](Self::give) until a completion names it, then ours until it is given again.
/// The number of buffers grows on demand up to [`BUFFERS_MAX`]: a fixed number either wastes memory on a quiet node or
/// makes a busy one re-arm its receive over and over.
#[derive(Debug)]
pub(super) struct Buffers {
    /// [`BUFFERS_MAX`] descriptors, shared with the kernel.
    descriptors: Pages,
    slabs: Vec<Pages>,
    /// Descriptors written so far, wrapping.
    tail: u16,
}

impl Buffers {
    /// The first buffers, made known to the kernel.
    ///
    /// # Safety
    /// The result must outlive every receive of the ring of `submitter`.
    pub(super) unsafe fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        let descriptors = Pages::new(BUFFERS_MAX * size_of::<BufRingEntry>())?;
        let start = descriptors.start.as_ptr() as u64;
        // SAFETY: the pages are as long as announced, and the caller keeps them until the ring is done with them.
        unsafe { submitter.register_buf_ring_with_flags(start, BUFFERS_MAX as u16, GROUP, 0)? };
        let mut buffers = Self { descriptors, slabs: Vec::new(), tail: 0 };
        buffers.grow()?;
        Ok(buffers)
    }

    /// How many buffers there are.
    pub(super) fn len(&self) -> usize {
        self.slabs.len() * SLAB_BUFFERS
    }

    /// Doubles the number of buffers, up to the limit; false if it is reached.
    pub(super) fn grow(&mut self) -> io::Result<bool> {
        let wanted = (2 * self.slabs.len()).clamp(1, BUFFERS_MAX / SLAB_BUFFERS);
        let grows = wanted > self.slabs.len();
        while self.slabs.len() < wanted {
            let first = self.len() as u16;
            self.slabs.push(Pages::new(SLAB_BUFFERS * BUFFER_BYTES)?);
            (first..first + SLAB_BUFFERS as u16).for_each(|buffer| self.give(buffer));
        }
        self.publish();
        Ok(grows)
    }

    /// The first bytes of a buffer that a completion named.
    ///
    /// # Safety
    /// The buffer must be ours: a completion named it, and it was not given back since.
    pub(super) unsafe fn received(&self, buffer: u16, bytes: usize) -> &[u8] {
        let start = self.start(buffer);
        // SAFETY: the buffer lies within its slab, the kernel filled that much of it (pages are zeroed before, so the rest
        // is initialised too), and by the caller's promise it does not write to it now.
        unsafe { std::slice::from_raw_parts(start, bytes.min(BUFFER_BYTES)) }
    }

    /// Gives a buffer to the kernel, which sees it with the next [`publish`](Self::publish).
    pub(super) fn give(&mut self, buffer: u16) {
        let start = self.start(buffer) as u64;
        let at = usize::from(self.tail) & (BUFFERS_MAX - 1);
        // SAFETY: the index is masked to the number of descriptors. The kernel does not read beyond the published tail, and
        // there are never more buffers than descriptors, so it is done with this one. A descriptor's three fields are set
        // one by one, so that the tail, which lies in the unused field of the first, stays as it is.
        unsafe {
            let descriptor = &mut *self.descriptors.start.as_ptr().cast::<BufRingEntry>().add(at);
            descriptor.set_addr(start);
            descriptor.set_len(BUFFER_BYTES as u32);
            descriptor.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was given.
    pub(super) fn publish(&mut self) {
        let base = self.descriptors.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the first descriptor's unused field is the tail, is aligned, and is written by us alone.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        // Ordering: the descriptors must be visible before the tail that covers them.
        tail.store(self.tail, Ordering::Release);
    }

    fn start(&self, buffer: u16) -> *mut u8 {
        let (slab, at) = (usize::from(buffer) / SLAB_BUFFERS, usize::from(buffer) % SLAB_BUFFERS);
        // SAFETY: buffers are numbered through the slabs there are, so this is within the slab.
        unsafe { self.slabs[slab].start.as_ptr().add(at * BUFFER_BYTES) }
    }
}
