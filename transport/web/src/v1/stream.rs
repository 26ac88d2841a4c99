//! Answers as server-sent events (WHATWG HTML, section 9.2), told as they come.
//!
//! A piece is reported as taken when the connection takes it, and not before, so that a client that reads slowly parks its
//! generation. What may have been produced beyond what the client read is, in order: what its own kernel holds for it
//! (Linux: 128 KiB, grown up to 6 MiB while it reads fast), what ours holds
//! ([`SEND_BUFFER_BYTES`](crate::limits::SEND_BUFFER_BYTES), doubled), 16 frames in hyper, and
//! [`V1_LEAD_TOKENS`](crate::limits::V1_LEAD_TOKENS). A token is an event of about 220 bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::Value;

use super::choice::Answers;
use super::writing::Writer;

/// Events that leave together, if they are there together.
const EVENTS_MAX: usize = 8;
/// For proxies that would wait until there is more.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// An answer that is told as it comes. Dropping it, as is done when the client goes, ends its generations.
struct Events {
    answers: Answers,
    writer: Writer,
    over: bool,
}

/// Tells answers as they come.
pub(super) fn respond(answers: Answers, writer: Writer) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    ([kind, UNBUFFERED], Body::new(Events { answers, writer, over: false })).into_response()
}

fn event(into: &mut Vec<u8>, value: &Value) {
    into.extend_from_slice(b"data: ");
    // Writing a value to memory does not fail.
    drop(serde_json::to_writer(&mut *into, value));
    into.extend_from_slice(b"\n\n");
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { answers, writer, over } = self.get_mut();
        if *over {
            return Poll::Ready(None);
        }
        let mut bytes = Vec::new();
        for _ in 0..EVENTS_MAX {
            match answers.poll_piece(cx) {
                Poll::Ready(Some(Ok((index, piece)))) => event(&mut bytes, &writer.chunk(index, piece)),
                Poll::Ready(Some(Err(refusal))) => {
                    *over = true;
                    event(&mut bytes, &refusal.body());
                    break;
                }
                Poll::Ready(None) => {
                    *over = true;
                    if let Some(usage) = writer.usage_chunk(answers.usage()) {
                        event(&mut bytes, &usage);
                    }
                    bytes.extend_from_slice(b"data: [DONE]\n\n");
                    break;
                }
                Poll::Pending if bytes.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}
