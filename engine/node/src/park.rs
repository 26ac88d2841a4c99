//! How a core sleeps: until its bell rings, its socket has something, or a time has come.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_lite::future::or;
use glommio::io::BufferedFile;
use glommio::net::UdpSocket;
use glommio::timer::sleep;
use thalweg_ring::Bell;
use thalweg_udp::WaitFd;

use crate::disk::WakeFds;

/// Says to the core's task that there is something to do.
#[derive(Default)]
struct Wake {
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Wake {
    fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn woken(&self) {
        poll_fn(|context| {
            if self.woken.replace(false) {
                return Poll::Ready(());
            }
            self.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Puts the core's task to sleep.
///
/// glommio cannot wait for readiness of any descriptor, but it can read an eventfd as a file and peek at a UDP socket. One
/// task does each, for the life of the core; they run only while the core sleeps.
///
/// A sleep through the executor costs about four system calls, so short ones, between the packets of a busy core, are
/// naps: one `ppoll` of the same descriptors, outside of the executor, which has nothing else to do.
pub(crate) struct Parker {
    wake: Rc<Wake>,
    bell: Arc<Bell>,
    /// What a nap polls beside its bell: the socket, or a set of it and the log's ring.
    nap_fd: RawFd,
    /// Holds that set open.
    _set: Option<OwnedFd>,
}

impl Parker {
    /// Starts the watching tasks. Must be called on the core's executor.
    pub(crate) async fn new(bell: Arc<Bell>, socket: WaitFd, log: Option<WakeFds>) -> io::Result<Self> {
        let wake = Rc::new(Wake::default());
        watch_eventfd(bell.fd(), Rc::clone(&wake))?;
        match socket {
            WaitFd::Udp(fd) => watch_udp(fd, Rc::clone(&wake))?,
            WaitFd::Eventfd(fd) => watch_eventfd(fd, Rc::clone(&wake))?,
        }
        let (WaitFd::Udp(socket) | WaitFd::Eventfd(socket)) = socket;
        let (mut nap_fd, mut set) = (socket, None);
        if let Some(WakeFds { poll, eventfd }) = log {
            watch_eventfd(eventfd, Rc::clone(&wake))?;
            let both = poll_set([socket, poll])?;
            nap_fd = both.as_raw_fd();
            set = Some(both);
        }
        // The first sleep of an executor registers the process with the kernel, which takes 10 ms. Better now than later.
        sleep(Duration::from_micros(1)).await;
        Ok(Self { wake, bell, nap_fd, _set: set })
    }

    /// Sleeps like [`park`](Self::park), but without giving the executor its turn.
    pub(crate) fn nap(&self, timeout: Duration, busy: impl FnOnce() -> bool) {
        self.bell.prepare_nap();
        if !busy() {
            self.bell.nap(self.nap_fd, timeout);
        }
        self.bell.awake();
    }

    /// Sleeps until something happens or `timeout` has passed, unless `busy` finds work after the bell was armed.
    pub(crate) async fn park(&self, timeout: Duration, busy: impl FnOnce() -> bool) {
        self.bell.prepare();
        if !busy() {
            or(self.wake.woken(), async {
                sleep(timeout).await;
            })
            .await;
        }
        self.bell.awake();
    }
}

/// A descriptor that is readable when any of these is.
fn poll_set(fds: [RawFd; 2]) -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor, which is then ours alone.
    let set = unsafe {
        let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    for fd in fds {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: two open descriptors, and an event that outlives the call.
        if unsafe { libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

/// A descriptor of our own for what `fd` names, so that closing it leaves the other open.
fn duplicate(fd: RawFd) -> io::Result<RawFd> {
    // SAFETY: duplicating a descriptor touches no memory; a bad one is an error.
    let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

fn watch_eventfd(fd: RawFd, wake: Rc<Wake>) -> io::Result<()> {
    // SAFETY: the descriptor was just made and is the file's alone.
    let file = unsafe { BufferedFile::from_raw_fd(duplicate(fd)?) };
    glommio::spawn_local(async move {
        while file.read_at(0, 8).await.is_ok() {
            wake.wake();
        }
        tracing::error!("an eventfd cannot be read; this core will only notice work when a timer wakes it");
    })
    .detach();
    Ok(())
}

fn watch_udp(fd: RawFd, wake: Rc<Wake>) -> io::Result<()> {
    // SAFETY: the descriptor was just made and is the socket's alone.
    let socket = unsafe { UdpSocket::from_raw_fd(duplicate(fd)?) };
    glommio::spawn_local(async move {
        let mut byte = [0];
        loop {
            // An error is one of the network that the socket's owner will see as well; it is a reason to look.
            let peeked = socket.peek_from(&mut byte).await;
            wake.wake();
            if peeked.is_err() {
                sleep(Duration::from_millis(1)).await;
            }
            // Let the core's task take what is there before looking again.
            glommio::executor().yield_now().await;
        }
    })
    .detach();
    Ok(())
}
