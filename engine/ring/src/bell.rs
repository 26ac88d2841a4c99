//! The wake-up of a parked stage.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

/// Wakes a thread that parked because its rings were empty.
///
/// Contract, after Dekker: the sleeper calls [`Bell::prepare`], looks at all its rings once more, and sleeps only if they
/// are still empty, on [`Bell::wait`] or on a read of [`Bell::fd`]; then it calls [`Bell::awake`]. A producer pushes and
/// then calls [`Bell::ring`]. The sequentially consistent fence on both sides makes sure that at least one of them sees
/// the other: either the sleeper sees the item, or the producer sees the sleeper and writes to its eventfd.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    fd: OwnedFd,
}

impl Bell {
    /// Makes a bell: one eventfd. Fails if the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        // SAFETY: eventfd takes no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Arc::new(Self { asleep: AtomicBool::new(false), fd }))
    }

    /// Called by a producer after it pushed: wakes the sleeper if there is one.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.write();
        }
    }

    /// Announces that the caller is about to sleep. It must look at its rings once more before it does.
    pub fn prepare(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Called by the sleeper when it is up, or when it found something after [`Bell::prepare`].
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// The eventfd to wait on: readable (8 bytes) once rung. For sleepers that wait on other things too.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sleeps until rung or until `timeout` has passed, and clears the bell. For threads that wait on nothing else.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        let timeout_ms = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        // SAFETY: `poll` is one valid pollfd that outlives the call. A failure (EINTR) is an early wake-up, which is allowed.
        if unsafe { libc::poll(&mut poll, 1, timeout_ms) } > 0 {
            self.clear();
        }
    }

    /// Forgets rings so far. Needed only by sleepers that wait on [`Bell::fd`] without reading it.
    pub fn clear(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: reads 8 bytes into a buffer of 8. EAGAIN means that there was nothing to clear.
        let _ = unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    fn write(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: writes 8 bytes from a buffer of 8. It can fail only with EAGAIN at 2^64-2 rings, when it is readable anyway.
        let _ = unsafe { libc::write(self.fd(), one.as_ptr().cast(), one.len()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ring;

    /// Each item is waited for, so that a lost wake-up would hang the test.
    #[test]
    fn no_wake_up_is_lost() {
        let bell = Bell::new().expect("an eventfd");
        let (mut requests, mut inbox) = ring::<u32>(4);
        let (mut answers, mut outbox) = ring::<u32>(4);
        let rung = Arc::clone(&bell);
        let thread = std::thread::spawn(move || {
            for n in 0..20_000 {
                assert!(requests.push(n).is_ok());
                rung.ring();
                while outbox.pop() != Some(n) {
                    std::hint::spin_loop();
                }
            }
        });
        let mut seen = 0;
        while seen < 20_000 {
            match inbox.pop() {
                Some(n) => {
                    assert!(answers.push(n).is_ok());
                    seen += 1;
                }
                None => {
                    bell.prepare();
                    if inbox.is_empty() {
                        bell.wait(None);
                    }
                    bell.awake();
                }
            }
        }
        thread.join().expect("the producer does not panic");
    }
}
