//! How a core sleeps: until its bell rings, its socket has something, or a time has come.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, RawFd};
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
    socket: WaitFd,
}

impl Parker {
    /// Starts the watching tasks. Must be called on the core's executor.
    pub(crate) async fn new(bell: Arc<Bell>, socket: WaitFd) -> io::Result<Self> {
        let wake = Rc::new(Wake::default());
        watch_eventfd(bell.fd(), Rc::clone(&wake))?;
        match socket {
            WaitFd::Udp(fd) => watch_udp(fd, Rc::clone(&wake))?,
            WaitFd::Eventfd(fd) => watch_eventfd(fd, Rc::clone(&wake))?,
        }
        // The first sleep of an executor registers the process with the kernel, which takes 10 ms. Better now than later.
        sleep(Duration::from_micros(1)).await;
        Ok(Self { wake, bell, socket })
    }

    /// Sleeps like [`park`](Self::park), but without giving the executor its turn.
    pub(crate) fn nap(&self, timeout: Duration, busy: impl FnOnce() -> bool) {
        self.bell.prepare_nap();
        if !busy() {
            let (WaitFd::Udp(fd) | WaitFd::Eventfd(fd)) = self.socket;
            self.bell.nap(fd, timeout);
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
