//! Connections: how they come, what they may do to us, and how they go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tower_service::Service;

use crate::limits::{NOT_SENT_BYTES, SEND_BUFFER_BYTES};
use crate::stage::Stage;
use crate::v1::Caller;

/// Between two tries to take a connection when the system has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Connections that the kernel holds until they are taken.
const BACKLOG: i32 = 1_024;
/// What those are told who find no room: whole, since nobody reads their request.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 132\r\n\r\n\
    {\"error\": {\"message\": \"too many HTTP connections are open; try again later\", \"type\": \"server_error\", \
    \"param\": null, \"code\": \"busy\"}}";

/// Who a request came from: an extension of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// A place among the connections that may be open: an extension of each request. What outlives its request keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Place(
    #[allow(dead_code, reason = "held, and given back by being dropped")] Arc<OwnedSemaphorePermit>,
);

/// Opens the listener that all threads share.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    // A node that starts again need not wait for connections of its earlier life to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes connections until told to stop; then lets those go that do nothing, and waits a while for the others.
pub(crate) async fn run(listener: TcpListener, router: Router, stage: Arc<Stage>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error means that the stage is gone, which is to stop too.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, peer)) => admit(stream, peer, &router, &stage),
            // The client gave up before it was taken.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "taking an HTTP connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    let mut open = stage.open.subscribe();
    if tokio::time::timeout(stage.limits.grace, open.wait_for(|open| *open == 0)).await.is_err() {
        tracing::info!("HTTP requests were under way when the node ended");
    }
}

fn admit(stream: TcpStream, peer: SocketAddr, router: &Router, stage: &Arc<Stage>) {
    let Ok(permit) = Arc::clone(&stage.connections).try_acquire_owned() else {
        stage.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
        // It has an empty buffer, which takes this at once or never will.
        drop(stream.try_write(NO_ROOM));
        return;
    };
    let counters = &stage.counters;
    counters.connections_opened.fetch_add(1, Ordering::Relaxed);
    counters.connections_open.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = tune(&stream, stage.limits.stall_timeout) {
        tracing::debug!(%error, "an HTTP connection keeps the system's settings");
    }
    let limits = &stage.limits;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.headers);
    let router = router.clone();
    let caller = Caller::new(peer);
    let place = Place(Arc::new(permit));
    let own_place = place.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(caller.clone());
        request.extensions_mut().insert(place.clone());
        // A router is always ready.
        router.clone().call(request)
    });
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let stage = Arc::clone(stage);
    stage.open.send_modify(|open| *open += 1);
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        let mut stop = stage.stop.clone();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            // An error means that the stage is gone, which is to stop too.
            () = async { drop(stop.wait_for(|stop| *stop).await) } => {
                // What is under way is answered, and then nothing more.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            stage.counters.connections_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, %peer, "an HTTP connection ended");
        }
        stage.counters.connections_open.fetch_sub(1, Ordering::Relaxed);
        drop(own_place);
        stage.open.send_modify(|open| *open -= 1);
    });
}

/// Small answers leave at once; who takes nothing for too long is given up by the kernel, also with a window of zero. The
/// kernel holds little of what a client has not taken, so that a slow reader is seen to be one: how much in all, says
/// `v1::stream`.
fn tune(stream: &TcpStream, stall: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(stall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_find_no_room_get_a_whole_answer() {
        let text = std::str::from_utf8(NO_ROOM).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON")["error"]["code"], "busy");
    }
}
