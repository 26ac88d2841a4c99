//! Limits of the endpoints under `/v1` and of WebSockets. Those of HTTP itself stand in `thalweg_protocol::limits`, and so do those of what
//! the node is asked: prompts, tokens, stop strings, constraints, texts to embed.

use thalweg_protocol::limits::{
    DOCUMENT_BYTES_MAX, DOCUMENT_UPDATE_BYTES_MAX, DOCUMENTS_PER_SESSION_MAX, EMBED_TEXTS_MAX, IN_FLIGHT_MAX,
    LEAD_TOKENS_MAX, LEAD_UPDATES, NAME_BYTES_MAX, PROMPT_BYTES_MAX, RING_SLOTS, SESSION_QUEUE_BYTES,
    SUBSCRIPTIONS_MAX, TOKEN_DETAILS_KEPT, WATCHES_MAX, WEB_CONNECTIONS_MAX,
};

/// Bytes of the body of one request: a conversation as long as may be, in letters that JSON writes with six bytes each.
pub(crate) const V1_BODY_BYTES_MAX: usize = 6 * PROMPT_BYTES_MAX + (1 << 20);
/// Answers of one request: prompts times `n`.
pub(crate) const V1_CHOICES_MAX: usize = 16;
/// Tokens an answer may run ahead of what its HTTP connection took.
pub(crate) const V1_LEAD_TOKENS: u32 = 32;
/// A reader says how far it is each so many tokens.
pub(crate) const V1_CREDIT_TOKENS: u32 = 8;
/// Functions of one request.
pub(crate) const V1_TOOLS_MAX: usize = 128;
/// Longest name of a function, in bytes (OpenAI's limit).
pub(crate) const V1_TOOL_NAME_BYTES_MAX: usize = 64;
/// Bytes the kernel is asked to hold of what was written to a connection; it takes twice as much for its own bookkeeping.
pub(crate) const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Bytes that were written and not sent above which the kernel takes no more.
pub(crate) const NOT_SENT_BYTES: u32 = 4 << 10;
/// Frames of one answer between its core and the connection: each has a token at least, but for the last ones.
pub(crate) const V1_FRAMES_WAITING: usize = 2 * V1_LEAD_TOKENS as usize;
/// Slots of the rings between a thread and its core that sessions use.
pub(crate) const SESSION_RING_SLOTS: usize = RING_SLOTS;
/// Between two tries to send a core what its ring had no room for, in milliseconds.
pub(crate) const RING_RETRY_MS: u64 = 1;

/// Bytes of one message of a client over a WebSocket: the largest edit, in base64 and JSON.
pub(crate) const SOCKET_MESSAGE_BYTES_MAX: usize = DOCUMENT_UPDATE_BYTES_MAX * 3 / 2;
/// Bytes of one message of an editor of Yjs that has shown a token. More than an edit may have: an editor answers with all that
/// the node lacks, and what is too much of it is refused to that one document, while the socket goes on.
pub(crate) const SOCKET_UPDATE_MESSAGE_BYTES_MAX: usize = DOCUMENT_BYTES_MAX * 3 / 2;
/// Bytes of what names a document within a socket of Hocuspocus's kind: its name, and the provider's number.
pub(crate) const SOCKET_ADDRESS_BYTES_MAX: usize = NAME_BYTES_MAX + 64;
/// Bytes of a message that is too long that are thrown away, so that its sender reads why it is parted with.
pub(crate) const SOCKET_DISCARD_BYTES_MAX: usize = 64 << 20;
/// Sessions of one WebSocket: one for each token, and for each further time it opens the same document.
pub(crate) const SOCKET_SESSIONS_MAX: usize = 16;
/// News of all sessions of one WebSocket that it has not taken. Its sessions' credit and room are reached before.
pub(crate) const SOCKET_NEWS_MAX: usize = 1 << 16;
/// Messages that wait to be written to one WebSocket; with more, nothing is read from it and nothing taken from its core.
pub(crate) const SOCKET_OUTBOX_MAX: usize = 256;
/// Bytes of these messages.
pub(crate) const SOCKET_OUTBOX_BYTES: usize = 256 << 10;
/// Requests of one WebSocket that are not answered; with more, nothing is read from it.
pub(crate) const SOCKET_IN_FLIGHT_MAX: usize = 256;
/// Bytes of writes of one WebSocket that are not answered, above which nothing is read from it.
pub(crate) const SOCKET_IN_FLIGHT_BYTES: usize = 4 << 20;
/// Bytes that a WebSocket took and its core was not told of: below half of what a session's queue may hold, so that nobody
/// waits for it.
pub(crate) const SOCKET_DRAINED_BYTES: usize = 16 << 10;
/// A WebSocket that was sent nothing for this long is sent something empty, in milliseconds: clients of Yjs part with a
/// server that they hear nothing of for 30 s, and WebSocket's own pings are not shown to them.
pub(crate) const SOCKET_QUIET_MS: u64 = 12_000;
/// A reader of a document says how far it is each so many updates.
pub(crate) const SOCKET_CREDIT_UPDATES: u32 = LEAD_UPDATES / 4;
/// How often a client is asked anew for edits that the node had no room for, before it is parted with.
pub(crate) const SOCKET_RETRIES_MAX: u32 = 8;
/// Least time before that, in milliseconds.
pub(crate) const SOCKET_RETRY_MS: u64 = 250;
/// Documents of one WebSocket of Hocuspocus's kind.
pub(crate) const SOCKET_DOCUMENTS_MAX: usize = 2 * DOCUMENTS_PER_SESSION_MAX;
/// Subscriptions, watches and documents that one WebSocket of the JSON kind reads.
pub(crate) const SOCKET_READING_MAX: usize = 512;

const _: () = {
    assert!(SOCKET_IN_FLIGHT_MAX < IN_FLIGHT_MAX && SOCKET_READING_MAX <= SUBSCRIPTIONS_MAX);
    assert!(SOCKET_MESSAGE_BYTES_MAX < SOCKET_UPDATE_MESSAGE_BYTES_MAX);
    assert!(SOCKET_UPDATE_MESSAGE_BYTES_MAX < SOCKET_DISCARD_BYTES_MAX, "whoever sends too much can read so");
    assert!(SOCKET_DRAINED_BYTES <= SESSION_QUEUE_BYTES / 4, "nobody waits for what was taken and not told");
    assert!(SOCKET_CREDIT_UPDATES > 0 && SOCKET_CREDIT_UPDATES < LEAD_UPDATES);
    assert!(V1_CHOICES_MAX <= WATCHES_MAX && V1_CHOICES_MAX < IN_FLIGHT_MAX, "a session can read all of a request");
    assert!(V1_CREDIT_TOKENS < V1_LEAD_TOKENS && V1_LEAD_TOKENS <= LEAD_TOKENS_MAX, "credit comes before it is needed");
    assert!(V1_LEAD_TOKENS as usize <= TOKEN_DETAILS_KEPT, "likelihoods are there for who reads");
    assert!(WEB_CONNECTIONS_MAX <= SESSION_RING_SLOTS, "all connections can end at once");
    assert!(V1_CHOICES_MAX < EMBED_TEXTS_MAX);
};
