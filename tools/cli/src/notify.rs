//! What the service manager is told (sd_notify(3)): that the node serves, and that it still does.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Tells the service manager things. Told that the node ends when this is dropped.
pub(crate) struct Notifier {
    manager: Manager,
    watchdog: Option<(mpsc::SyncSender<()>, JoinHandle<()>)>,
}

/// The socket of the service manager.
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    fn of_environment() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let address = match name.as_bytes() {
            // A name of Linux's own, not a file.
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        Ok(Some(Self { socket: UnixDatagram::unbound()?, address }))
    }

    fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.address) {
            tracing::warn!(%error, state, "the service manager was not told");
        }
    }
}

/// Tells the service manager that the node serves, if there is one. `alive` is asked as often as the manager wants to hear of
/// us; while it says no, the manager hears nothing, and restarts the node when its patience ends.
pub(crate) fn ready(alive: impl Fn() -> bool + Send + 'static) -> Option<Notifier> {
    let manager = match Manager::of_environment() {
        Ok(manager) => manager?,
        Err(error) => {
            tracing::warn!(%error, "NOTIFY_SOCKET cannot be used; the service manager hears nothing");
            return None;
        }
    };
    manager.tell(&format!("READY=1\nMAINPID={}\nSTATUS=serving", std::process::id()));
    let watchdog = watchdog_interval().and_then(|interval| {
        let again = Manager::of_environment().ok().flatten()?;
        let (end, ended) = mpsc::sync_channel(1);
        let watch = move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(interval / 2) {
                if alive() {
                    again.tell("WATCHDOG=1");
                }
            }
        };
        Some((end, std::thread::Builder::new().name("thalweg-watchdog".into()).spawn(watch).ok()?))
    });
    Some(Notifier { manager, watchdog })
}

/// How often the service manager wants to hear of this process, if it does.
fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
        return None;
    }
    number("WATCHDOG_USEC").filter(|&us| us > 0).map(Duration::from_micros)
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.manager.tell("STOPPING=1\nSTATUS=ended");
        if let Some((end, thread)) = self.watchdog.take() {
            drop(end);
            if thread.join().is_err() {
                tracing::error!("the watchdog's thread panicked");
            }
        }
    }
}
