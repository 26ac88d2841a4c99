//! Limits of the endpoints under `/v1`. Those of HTTP itself stand in `thalweg_protocol::limits`, and so do those of what
//! the node is asked: prompts, tokens, stop strings, constraints, texts to embed.

use thalweg_protocol::limits::{
    EMBED_TEXTS_MAX, IN_FLIGHT_MAX, LEAD_TOKENS_MAX, PROMPT_BYTES_MAX, RING_SLOTS, TOKEN_DETAILS_KEPT, WATCHES_MAX,
    WEB_CONNECTIONS_MAX,
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

const _: () = {
    assert!(V1_CHOICES_MAX <= WATCHES_MAX && V1_CHOICES_MAX < IN_FLIGHT_MAX, "a session can read all of a request");
    assert!(V1_CREDIT_TOKENS < V1_LEAD_TOKENS && V1_LEAD_TOKENS <= LEAD_TOKENS_MAX, "credit comes before it is needed");
    assert!(V1_LEAD_TOKENS as usize <= TOKEN_DETAILS_KEPT, "likelihoods are there for who reads");
    assert!(WEB_CONNECTIONS_MAX <= SESSION_RING_SLOTS, "all connections can end at once");
    assert!(V1_CHOICES_MAX < EMBED_TEXTS_MAX);
};
