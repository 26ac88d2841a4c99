//! The back end over a ring of `io-uring`.

mod buffers;
mod slots;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::types::{CancelBuilder, Fd, RecvMsgOut};
use io_uring::{IoUring, cqueue, opcode, squeue};
use quinn_udp::UdpSocketState;

use crate::control::{CONTROL_BYTES, parse, parse_address};
use crate::counters::UdpCounters;
use crate::socket::{Datagram, SendOutcome, Transmit, WaitFd};
use crate::syscalls::{local_addr, socket_is_broken, split};
use buffers::{Buffers, GROUP};
use slots::{SLOTS_MAX, Slots};

/// Room for what is submitted at a time: every batch under way, and the receive.
const SUBMISSIONS: u32 = 2 * SLOTS_MAX as u32;
/// Room for completions: one per buffer and per batch, with as much to spare. The kernel keeps those that do not fit.
const COMPLETIONS: u32 = 4096;
/// Room for the sender's address in front of a datagram.
const NAME_BYTES: usize = 32;
/// The mark of the receive among completions; sends are marked with the number of their slot.
const RECEIVE: u64 = u64::MAX;
/// What the kernel puts in front of a received message: lengths and flags.
const HEADER_BYTES: usize = 16;

const _: () = assert!(buffers::BUFFER_BYTES >= HEADER_BYTES + NAME_BYTES + CONTROL_BYTES + (64 << 10));

/// A message of the kernel that waits in a buffer.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    buffer: u16,
    bytes: usize,
}

/// A socket behind a ring of its own.
///
/// One multishot receive is always armed; the kernel picks a buffer for each message and goes on. Sends are copied into
/// slots and submitted together. Completions are announced by an eventfd to whoever sleeps; whoever is awake reads them
/// from memory without a system call.
#[derive(Debug)]
pub(crate) struct RingSocket {
    socket: socket2::Socket,
    local_addr: SocketAddr,
    may_fragment: bool,
    gso_segments: usize,
    ring: Ring,
    eventfd: OwnedFd,
    /// Messages in the order of their arrival, not handed on yet. At most one per buffer.
    arrived: VecDeque<Arrived>,
    /// The receive is under way.
    armed: bool,
    /// Completions were seen since the eventfd was last cleared, so it is set.
    announced: bool,
    counters: UdpCounters,
}

/// The ring and all memory that the kernel reads or writes on its behalf.
struct Ring {
    ring: IoUring,
    memory: ManuallyDrop<Memory>,
}

struct Memory {
    buffers: Buffers,
    slots: Slots,
    /// Says how a received message is laid out in its buffer.
    layout: Box<libc::msghdr>,
}

// SAFETY: the layout holds no pointers, only lengths; the rest is `Send`. A ring may be used by any one thread at a time.
unsafe impl Send for Memory {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("buffers", &self.memory.buffers).field("slots", &self.memory.slots).finish()
    }
}

impl Ring {
    fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_coop_taskrun().setup_taskrun_flag().dontfork();
        let ring = builder.build(SUBMISSIONS)?;
        // SAFETY: `Drop` frees the buffers only after the kernel said that nothing is under way any more.
        let buffers = unsafe { Buffers::register(&ring.submitter())? };
        // SAFETY: a msghdr of zeros is a valid one.
        let mut layout: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        layout.msg_namelen = NAME_BYTES as u32;
        layout.msg_controllen = CONTROL_BYTES;
        Ok(Self { ring, memory: ManuallyDrop::new(Memory { buffers, slots: Slots::new(), layout }) })
    }

    /// Queues a submission; the system call comes later, unless the queue is full.
    ///
    /// # Safety
    /// What the submission points to must be in `self.memory` and stay as it is until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: by the caller's promise.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel goes on with what is under way for a while after a ring is closed, so it must be stopped before.
        let stopped = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        if stopped.is_ok() || matches!(&stopped, Err(error) if error.raw_os_error() == Some(libc::ENOENT)) {
            // SAFETY: dropped once, here, and the kernel has confirmed that nothing uses the memory any more. Otherwise
            // it is left alone: better lost than written to while someone else has it.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl RingSocket {
    pub(crate) fn new(socket: socket2::Socket) -> io::Result<Self> {
        // Sets the options for coalescing, marks, destination addresses and fragmentation.
        let state = UdpSocketState::new((&socket).into())?;
        // On a non-blocking socket the kernel would answer a receive with "nothing there" instead of waiting for more.
        socket.set_nonblocking(false)?;
        let local_addr = local_addr(&socket)?;
        let ring = Ring::new()?;
        // SAFETY: makes a new descriptor, which is then ours alone.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        ring.ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let counters = UdpCounters { ring_buffers: ring.memory.buffers.len() as u64, ..UdpCounters::default() };
        Ok(Self {
            socket,
            local_addr,
            may_fragment: state.may_fragment(),
            gso_segments: state.max_gso_segments(),
            ring,
            eventfd,
            arrived: VecDeque::new(),
            armed: false,
            announced: false,
            counters,
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn may_fragment(&self) -> bool {
        self.may_fragment
    }

    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl FnMut(Datagram)) -> io::Result<usize> {
        if self.arrived.is_empty() {
            self.arm()?;
            self.flush()?;
            self.collect()?;
        }
        let mut received = 0;
        while received < max
            && let Some(arrived) = self.arrived.pop_front()
        {
            received += self.hand_on(arrived, sink);
            self.ring.memory.buffers.give(arrived.buffer);
        }
        if received > 0 {
            self.ring.memory.buffers.publish();
        }
        self.arm()?;
        Ok(received)
    }

    /// Cuts a message into its datagrams; gives their number.
    fn hand_on(&mut self, arrived: Arrived, sink: &mut impl FnMut(Datagram)) -> usize {
        // SAFETY: a completion named the buffer, and it is given back only after this.
        let bytes = unsafe { self.ring.memory.buffers.received(arrived.buffer, arrived.bytes) };
        let message = RecvMsgOut::parse(bytes, &self.ring.memory.layout).ok().filter(|m| !m.is_payload_truncated());
        let remote = message.as_ref().and_then(|message| parse_address(message.name_data()));
        let (Some(message), Some(remote)) = (message, remote) else {
            self.counters.received_unusable += 1;
            return 0;
        };
        let said = parse(message.control_data());
        let payload = message.payload_data();
        let mut datagrams = 0;
        split(payload, said.segment_bytes.unwrap_or(payload.len()), |bytes| {
            datagrams += 1;
            sink(Datagram { remote, local_ip: said.local_ip, ecn: said.ecn, bytes });
        });
        self.counters.received_batches += 1;
        self.counters.received_bytes += payload.len() as u64;
        self.counters.received_datagrams += datagrams as u64;
        datagrams
    }

    pub(crate) fn send(&mut self, transmit: &Transmit<'_>) -> io::Result<SendOutcome> {
        if self.ring.memory.slots.is_full() {
            self.flush()?;
            self.collect()?;
            if self.ring.memory.slots.is_full() {
                self.counters.send_blocked += 1;
                return Ok(SendOutcome::WouldBlock);
            }
        }
        let (number, header) = self.ring.memory.slots.fill(transmit);
        let entry = opcode::SendMsg::new(Fd(self.socket.as_raw_fd()), header).build().user_data(u64::from(number));
        // SAFETY: the header and what it points to lie in a slot, which is left alone until the completion frees it.
        unsafe { self.ring.push(&entry)? };
        Ok(SendOutcome::Sent)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.ring.ring.submission().is_empty() {
            self.counters.system_calls += 1;
            match self.ring.ring.submit() {
                // Completions have to be taken before more can be submitted, which happens next in any case.
                Err(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn max_gso_segments(&self) -> usize {
        self.gso_segments
    }

    pub(crate) fn wait_fd(&self) -> WaitFd {
        WaitFd::Eventfd(self.eventfd.as_raw_fd())
    }

    pub(crate) fn prepare_wait(&mut self) -> bool {
        // An error shows up again in the next receive; until then there is something to do.
        let Ok(()) = self.arm().and_then(|()| self.flush()) else { return true };
        if std::mem::take(&mut self.announced) {
            let mut count = [0_u8; 8];
            self.counters.system_calls += 1;
            // SAFETY: reads 8 bytes into 8 bytes. That it was clear already is no error.
            unsafe { libc::read(self.eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        }
        // After the eventfd was cleared: what completes from now on sets it again.
        self.collect().is_err() || !self.arrived.is_empty()
    }

    pub(crate) fn counters(&self) -> UdpCounters {
        self.counters
    }

    /// Puts the receive under way, if it is not.
    fn arm(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.armed, true) {
            return Ok(());
        }
        let layout: *const libc::msghdr = &raw const *self.ring.memory.layout;
        let entry = opcode::RecvMsgMulti::new(Fd(self.socket.as_raw_fd()), layout, GROUP).build().user_data(RECEIVE);
        // SAFETY: the layout is boxed in the memory of the ring and never changed.
        unsafe { self.ring.push(&entry) }
    }

    /// Takes the completions there are, with a system call only if the kernel says that it holds some back.
    fn collect(&mut self) -> io::Result<()> {
        self.take_completions()?;
        let held_back = {
            let submission = self.ring.ring.submission();
            submission.taskrun() || submission.cq_overflow()
        };
        if held_back && self.arrived.is_empty() {
            self.counters.system_calls += 1;
            const GET_EVENTS: u32 = 1;
            // SAFETY: submits nothing and waits for nothing, so no memory of ours is concerned.
            match unsafe { self.ring.ring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS, None) } {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => return Err(error),
                _ => {}
            }
            self.take_completions()?;
        }
        Ok(())
    }

    fn take_completions(&mut self) -> io::Result<()> {
        loop {
            let Some(completion) = self.ring.ring.completion().next() else { return Ok(()) };
            self.announced = true;
            if completion.user_data() == RECEIVE {
                self.on_received(&completion)?;
            } else {
                self.on_sent(&completion)?;
            }
        }
    }

    fn on_received(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        self.armed = cqueue::more(completion.flags());
        match (completion.result(), cqueue::buffer_select(completion.flags())) {
            (bytes @ 0.., Some(buffer)) => self.arrived.push_back(Arrived { buffer, bytes: bytes as usize }),
            (_, Some(buffer)) => {
                self.ring.memory.buffers.give(buffer);
                self.ring.memory.buffers.publish();
            }
            (error, None) if error == -libc::ENOBUFS => {
                self.counters.ring_starved += 1;
                self.ring.memory.buffers.grow()?;
                self.counters.ring_buffers = self.ring.memory.buffers.len() as u64;
            }
            (error, None) if error < 0 => {
                let error = io::Error::from_raw_os_error(-error);
                // The kernel does not know this kind of receive, or the socket is unusable. Anything else is about one
                // datagram (an ICMP answer to one sent earlier), and the receive is armed again.
                if socket_is_broken(&error) || error.raw_os_error() == Some(libc::EINVAL) {
                    return Err(error);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_sent(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let done = self.ring.memory.slots.done(completion.user_data() as u16);
        if completion.result() >= 0 {
            self.counters.sent_batches += 1;
            self.counters.sent_datagrams += done.datagrams;
            self.counters.sent_bytes += done.bytes;
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(-completion.result());
        if socket_is_broken(&error) {
            return Err(error);
        }
        self.counters.send_failed += 1;
        // Some devices cannot segment and say so only when asked to.
        if done.datagrams > 1 && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) {
            self.gso_segments = 1;
        }
        Ok(())
    }
}

impl Drop for RingSocket {
    /// Lets what was sent last get out: a node says goodbye to its clients right before it drops its sockets.
    fn drop(&mut self) {
        let _ = self.flush();
        let _ = self.collect();
        debug_assert!(self.ring.memory.slots.in_flight() <= SLOTS_MAX);
    }
}
