//! A connection of which no more is read than one message may have.
//!
//! The library that reads messages has one limit for as long as a connection is open. What a client may send changes: one that
//! has shown no token may send less, and what it sends must not fill the node's memory before it is known who it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;

/// Bytes of the header of such a frame from a client (RFC 6455, section 5.2).
const CONTROL_HEADER_BYTES: usize = 6;

/// More came than a message may have.
#[derive(Debug, thiserror::Error)]
#[error("a message of more than {most} bytes")]
pub(super) struct TooLong {
    most: usize,
}

impl TooLong {
    /// Whether a connection failed for this.
    pub(super) fn is(error: &Error) -> bool {
        let Error::Io(error) = error else { return false };
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// See the module.
pub(super) struct Gauged {
    stream: TcpStream,
    /// Bytes that came since the last message.
    came: usize,
    most: usize,
}

impl Gauged {
    /// `most`: bytes that may come until there is a whole message.
    pub(super) fn new(stream: TcpStream, most: usize) -> Self {
        Self { stream, came: 0, most }
    }

    /// So many bytes may come until there is a whole message.
    pub(super) fn allow(&mut self, most: usize) {
        self.most = most;
    }

    /// There is a whole message; what comes now is of the next.
    pub(super) fn begin(&mut self) {
        self.came = 0;
    }

    /// A ping, a pong or a close of so many bytes came, perhaps amid a message.
    pub(super) fn pass_over(&mut self, bytes: usize) {
        self.came = self.came.saturating_sub(bytes + CONTROL_HEADER_BYTES);
    }
}

impl AsyncRead for Gauged {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.came > self.most {
            return Poll::Ready(Err(io::Error::other(TooLong { most: self.most })));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.came += buffer.filled().len() - before;
        polled
    }
}

impl AsyncWrite for Gauged {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn no_more_is_read_than_a_message_may_have() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
            let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
            let mut gauged = Gauged::new(listener.accept().await.expect("connects").0, 10);
            client.write_all(&[0; 100]).await.expect("sent");
            let mut buffer = [0; 11];
            gauged.read_exact(&mut buffer).await.expect("read");
            let error = gauged.read_exact(&mut buffer).await.expect_err("it is no message yet");
            assert!(TooLong::is(&Error::Io(error)));
            // A ping of five bytes amid it does not count, and does not make the message a new one.
            gauged.pass_over(5);
            gauged.read_exact(&mut buffer).await.expect("read");
            assert!(gauged.read_exact(&mut buffer).await.is_err());
            gauged.begin();
            gauged.read_exact(&mut buffer).await.expect("read");
            gauged.allow(usize::MAX);
            gauged.read_exact(&mut buffer).await.expect("read");
        });
    }
}
