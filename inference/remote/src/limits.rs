//! What a remote, or those who ask it, can press against.

use std::time::Duration;

/// Generations of one model that are asked of its remote at a time; further ones wait.
pub const REMOTE_RUNNING_MAX: usize = 32;
/// Generations of one model that wait for one of those places; one more is refused as busy.
pub const REMOTE_WAITING_MAX: usize = 256;
/// What those who are refused for that are told to wait, if nothing better is known, in milliseconds.
pub const REMOTE_RETRY_MS: u32 = 2_000;
/// Longest wait that a remote may send its clients into, in milliseconds.
pub const REMOTE_RETRY_MS_MAX: u32 = 3_600_000;
/// Time to find, reach and greet a remote.
pub const REMOTE_CONNECT: Duration = Duration::from_secs(10);
/// Time until the first token, and between two, if the settings do not say.
pub const REMOTE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of one line, and of one event, of a remote's answer.
pub const REMOTE_LINE_BYTES_MAX: usize = 64 << 10;
/// Bytes of all text of one answer: a remote that sends more is cut off.
pub const REMOTE_TEXT_BYTES_MAX: usize = 1 << 20;
/// Bytes of an error's body that are read.
pub const REMOTE_ERROR_BYTES_MAX: usize = 16 << 10;
/// Bytes of what a remote says of an error that are told to who asked.
pub const REMOTE_MESSAGE_BYTES_MAX: usize = 300;
/// Bytes of a connection that are read at a time.
pub const REMOTE_READ_BYTES: usize = 16 << 10;
/// What the kernel is asked to keep of a connection that is not read, in bytes; Linux takes twice as much.
pub const REMOTE_RECEIVE_BYTES: u32 = 32 << 10;
/// Bytes of a key.
pub const REMOTE_KEY_BYTES_MAX: usize = 8 << 10;
/// Models with a remote.
pub const REMOTE_MODELS_MAX: usize = 64;

const _: () = {
    assert!(REMOTE_READ_BYTES <= REMOTE_LINE_BYTES_MAX, "a line of several reads is the exception");
    assert!(REMOTE_LINE_BYTES_MAX < thalweg_protocol::limits::LOG_RECORD_BYTES_MAX / 4, "an event fits in a record");
};
