//! The wake-up of a parked stage.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::time::Duration;

/// Wakes a thread that parked because its rings were empty.
///
/// Contract, after Dekker: the sleeper calls [`Bell::prepare`], looks at all its rings once more, and sleeps only if they
/// are still empty, on [`Bell::wait`] or on a read of [`Bell::fd`]; then it calls [`Bell::awake`]. A producer pushes and
/// then calls [`Bell::ring`]. The sequentially consistent fence on both sides makes sure that at least one of them sees
/// the other: either the sleeper sees the item, or the producer sees the sleeper and writes to its eventfd.
///
/// A sleeper whose runtime keeps a read of [`Bell::fd`] under way at all times cannot also poll that descriptor: the read
/// would take the ring away. For short sleeps outside of the runtime there is a second one: [`Bell::prepare_nap`] and
/// [`Bell::nap`].
#[derive(Debug)]
pub struct Bell {
    state: AtomicU8,
    fd: OwnedFd,
    nap_fd: OwnedFd,
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NAPPING: u8 = 2;

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forgets the rings of an eventfd so far.
fn clear(fd: RawFd) {
    let mut count = [0_u8; 8];
    // SAFETY: reads 8 bytes into a buffer of 8. EAGAIN means that there was nothing to clear.
    let _ = unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
}

fn timeout_ms(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
}

impl Bell {
    /// Makes a bell: two eventfds. Fails if the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { state: AtomicU8::new(AWAKE), fd: eventfd()?, nap_fd: eventfd()? }))
    }

    /// Called by a producer after it pushed: wakes the sleeper if there is one.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) != AWAKE {
            match self.state.swap(AWAKE, Ordering::AcqRel) {
                ASLEEP => Self::write(&self.fd),
                NAPPING => Self::write(&self.nap_fd),
                _ => {}
            }
        }
    }

    /// Announces that the caller is about to sleep. It must look at its rings once more before it does.
    pub fn prepare(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// As [`prepare`](Self::prepare), for a sleep on [`nap`](Self::nap).
    pub fn prepare_nap(&self) {
        self.state.store(NAPPING, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeps until rung, until `other` is readable, or until `timeout` has passed, to the microsecond.
    pub fn nap(&self, other: RawFd, timeout: Duration) {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polls = [poll(self.nap_fd.as_raw_fd()), poll(other)];
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        };
        // SAFETY: `polls` are two valid pollfds and `timeout` a valid timespec that outlive the call; no signal mask is
        // given. A failure (EINTR) is an early wake-up, which is allowed.
        unsafe { libc::ppoll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, &raw const timeout, std::ptr::null()) };
        if polls[0].revents != 0 {
            clear(self.nap_fd.as_raw_fd());
        }
    }

    /// Called by the sleeper when it is up, or when it found something after [`Bell::prepare`].
    pub fn awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// The eventfd to wait on: readable (8 bytes) once rung. For sleepers that wait on other things too.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sleeps until rung or until `timeout` has passed, and clears the bell. For threads that wait on nothing else.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd that outlives the call. A failure (EINTR) is an early wake-up, which is allowed.
        if unsafe { libc::poll(&mut poll, 1, timeout_ms(timeout)) } > 0 {
            clear(self.fd());
        }
    }

    fn write(fd: &OwnedFd) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: writes 8 bytes from a buffer of 8. It can fail only with EAGAIN at 2^64-2 rings, when it is readable anyway.
        let _ = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ring;

    /// Each item is waited for, so that a lost wake-up would hang the test.
    fn check(sleep: impl Fn(&Bell, &dyn Fn() -> bool)) {
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
                    sleep(&bell, &|| inbox.is_empty());
                    bell.awake();
                }
            }
        }
        thread.join().expect("the producer does not panic");
    }

    #[test]
    fn no_wake_up_is_lost() {
        check(|bell, empty| {
            bell.prepare();
            if empty() {
                bell.wait(None);
            }
        });
    }

    #[test]
    fn no_wake_up_of_a_nap_is_lost() {
        let silent = eventfd().expect("an eventfd");
        check(|bell, empty| {
            bell.prepare_nap();
            if empty() {
                bell.nap(silent.as_raw_fd(), Duration::from_secs(3600));
            }
        });
    }
}
