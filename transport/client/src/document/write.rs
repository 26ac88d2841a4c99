//! Writing to a document until the node takes it, or refuses it for good.

use std::time::Duration;

use bytes::Bytes;
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::ids::{Name, Sequence};

use crate::client::Client;
use crate::error::ClientError;
use crate::publish::Published;

/// Shortest time before something is tried again that the node refused for now.
const AGAIN: Duration = Duration::from_millis(20);

/// Waits until something may work that the node refused for now.
///
/// # Errors
/// What the node said, if it refused it for good.
pub(super) async fn patience(error: ClientError) -> Result<(), ClientError> {
    let delay = error.retry_after().ok_or(error)?;
    tokio::time::sleep(delay.max(AGAIN)).await;
    Ok(())
}

/// Writes, however often it takes; `began` is told under which number, each time.
///
/// # Errors
/// As [`Ack`](crate::Ack). An update may be repeated at will, so that a session that is forgotten is no error.
pub(super) async fn write(
    client: &Client,
    document: &Name,
    post: Post,
    body: &Bytes,
    began: impl Fn(Sequence),
) -> Result<Published, ClientError> {
    loop {
        let answer = match client.write_start(document.clone(), body.clone(), post).await {
            Ok(ack) => {
                began(ack.sequence);
                ack.await
            }
            Err(error) => Err(error),
        };
        match answer {
            Err(ClientError::SessionExpired(_)) if post.kind == PostKind::Update => {}
            Err(error) => patience(error).await?,
            done => return done,
        }
    }
}
