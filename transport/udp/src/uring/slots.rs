//! Datagrams on their way out of a ring.

use bytes::BytesMut;
use socket2::SockAddr;

use crate::control::ToSend;
use crate::socket::Transmit;

/// Batches under way in one ring; one more has to wait.
pub(super) const SLOTS_MAX: usize = 256;

/// A batch under way: all that the kernel reads of it, at an address that stays.
struct Slot {
    header: libc::msghdr,
    vector: libc::iovec,
    remote: SockAddr,
    control: ToSend,
    contents: BytesMut,
    datagrams: u64,
}

/// Batches under way. The kernel reads a batch after we returned to our caller, so each is copied.
pub(super) struct Slots {
    #[allow(clippy::vec_box, reason = "the kernel holds addresses into slots while the list grows")]
    slots: Vec<Box<Slot>>,
    free: Vec<u16>,
}

// SAFETY: the pointers in a slot lead into the same slot, which is boxed and moves with the value.
unsafe impl Send for Slots {}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("slots", &self.slots.len()).field("free", &self.free.len()).finish()
    }
}

/// A batch that is done with.
pub(super) struct Done {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == SLOTS_MAX
    }

    /// How many batches are under way.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Copies a batch into a free slot; gives its number and the header for the kernel, which may be read until
    /// [`done`](Self::done) is called with that number.
    ///
    /// # Panics
    /// If there is no free slot: [`is_full`](Self::is_full) was asked.
    pub(super) fn fill(&mut self, transmit: &Transmit<'_>) -> (u16, *const libc::msghdr) {
        let number = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < SLOTS_MAX, "a slot was asked for where none is free");
            self.slots.push(Box::new(Slot::empty(transmit)));
            (self.slots.len() - 1) as u16
        });
        let slot = &mut *self.slots[usize::from(number)];
        slot.remote = transmit.remote.into();
        slot.control = ToSend::new(transmit);
        slot.contents.clear();
        slot.contents.extend_from_slice(transmit.contents);
        slot.datagrams = transmit.datagrams();
        slot.vector = libc::iovec { iov_base: slot.contents.as_mut_ptr().cast(), iov_len: slot.contents.len() };
        slot.header.msg_name = slot.remote.as_ptr().cast_mut().cast();
        slot.header.msg_namelen = slot.remote.len();
        slot.header.msg_iov = &raw mut slot.vector;
        slot.header.msg_iovlen = 1;
        slot.header.msg_control = slot.control.as_bytes().as_ptr().cast_mut().cast();
        slot.header.msg_controllen = slot.control.as_bytes().len();
        (number, &raw const slot.header)
    }

    /// Frees a slot, once the kernel is done with it.
    pub(super) fn done(&mut self, number: u16) -> Done {
        let slot = &self.slots[usize::from(number)];
        self.free.push(number);
        Done { datagrams: slot.datagrams, bytes: slot.contents.len() as u64 }
    }
}

impl Slot {
    fn empty(transmit: &Transmit<'_>) -> Self {
        Self {
            // SAFETY: a msghdr of zeros is a valid one without name, data or control messages.
            header: unsafe { std::mem::zeroed() },
            vector: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
            remote: transmit.remote.into(),
            control: ToSend::new(transmit),
            contents: BytesMut::new(),
            datagrams: 0,
        }
    }
}
