//! Every limit of the system, in one file. A queue, a frame, a batch, a name or a retry without an entry here is a bug.
//!
//! Limits of one machine that an operator may change are configuration, and start from the defaults given here; the
//! others are part of the protocol. The assertions at the end hold the relations between them.

/// Bytes of a frame header: payload length and subject, both `u32` little-endian.
pub const FRAME_HEADER_BYTES: usize = 8;
/// Largest payload of one frame, in bytes. A longer length field ends the lane before anything is allocated.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest message body in a channel, in bytes.
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// Longest name of a tenant, user, channel or model, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest signed token accepted in a hello, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Longest text of a reject, in bytes; longer texts are cut at a character boundary.
pub const REJECT_BYTES_MAX: usize = 512;
/// Largest nesting depth and table count the FlatBuffers verifier walks before it refuses a frame.
pub const FLATBUFFER_DEPTH_MAX: usize = 8;
/// See [`FLATBUFFER_DEPTH_MAX`].
pub const FLATBUFFER_TABLES_MAX: usize = CHAT_MESSAGES_MAX + 16;

/// Partitions of a node, fixed when its data is created.
pub const PARTITIONS_DEFAULT: u16 = 1024;
/// Most cores of one node: the core index must fit in the first byte of a connection id.
pub const CORES_MAX: usize = 128;

/// Sessions served by one core.
pub const SESSIONS_MAX: usize = 65_536;
/// Connections of one core whose handshake is not finished; beyond half of it new ones must prove their address first.
pub const HANDSHAKES_MAX: usize = 1024;
/// Time from the first packet of a connection until its hello was accepted, in milliseconds.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;
/// A connection that is silent this long is closed, in milliseconds.
pub const IDLE_TIMEOUT_MS: u64 = 60_000;
/// Clients ping at this distance, in milliseconds.
pub const KEEP_ALIVE_MS: u64 = 20_000;
/// Requests of one session that are not answered yet.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Subscriptions of one session.
pub const SUBSCRIPTIONS_MAX: usize = 4096;
/// Generations watched by one session at a time, each on a lane of its own.
pub const WATCHES_MAX: usize = 64;
/// Bytes queued towards one session before its subscriptions wait for room.
pub const SESSION_QUEUE_BYTES: usize = 256 << 10;
/// Bytes queued towards one connection over all of its lanes; a frame more is refused. Above [`SESSION_QUEUE_BYTES`], since
/// answers to requests and generations are queued beside what subscriptions wait for.
pub const LINK_QUEUE_BYTES: usize = 4 << 20;
/// Lanes of one connection open at a time: command, delivery, and one per generation watched and document open, some of which
/// may still be finishing.
pub const LANES_MAX: usize = 2 + 2 * WATCHES_MAX + 2 * DOCUMENTS_PER_SESSION_MAX;
/// Answers to datagrams of no connection (retries, refusals, resets) that wait to be sent by one core; more are dropped.
pub const UNCONNECTED_ANSWERS_MAX: usize = 256;

/// Messages a subscription may run ahead of what its reader has consumed, by default.
pub const LEAD_MESSAGES: u32 = 1_000;
/// Largest lead a reader may ask for.
pub const LEAD_MESSAGES_MAX: u32 = 65_536;
/// Tokens a generation may run ahead of its fastest reader, by default.
pub const LEAD_TOKENS: u32 = 64;
/// Largest lead in tokens a reader may ask for.
pub const LEAD_TOKENS_MAX: u32 = 4_096;

/// Messages a channel keeps for later readers, by default.
pub const HISTORY_MESSAGES: u32 = 65_536;
/// Bytes of message bodies a channel keeps for later readers, by default.
pub const HISTORY_BYTES: u64 = 64 << 20;
/// Channels of one core.
pub const CHANNELS_MAX: usize = 1 << 20;
/// Newest messages of a channel that every core with subscribers keeps at hand.
pub const TAIL_MESSAGES: usize = 2_048;
/// Bytes of bodies a tail keeps at hand, whatever their number.
pub const TAIL_BYTES: usize = 4 << 20;
/// Messages of one answer to a read of history.
pub const HISTORY_BATCH_MESSAGES: usize = 256;
/// Bytes of bodies of one answer to a read of history.
pub const HISTORY_BATCH_BYTES: usize = 512 << 10;
/// Largest history a channel may ask for, in messages.
pub const HISTORY_MESSAGES_MAX: u32 = u32::MAX;
/// Largest history a channel may ask for, in bytes of bodies.
pub const HISTORY_BYTES_MAX: u64 = 1 << 40;
/// Largest history of a channel whose messages live in memory, in messages.
pub const HISTORY_MEMORY_MESSAGES_MAX: u32 = 65_536;
/// Largest history of a channel whose messages live in memory, in bytes of bodies.
pub const HISTORY_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// The kept part of a channel on disk is measured at every so many messages: what is beyond its bytes or its age goes in
/// such steps.
pub const HISTORY_MARK_MESSAGES: u64 = 256;
/// Bytes of messages of channels on disk that one core keeps at hand, newest first; older ones are read back.
pub const RESIDENT_BYTES: usize = 64 << 20;
/// Bytes of appends of one core that are not durable yet, beyond which writes are refused as busy.
pub const APPENDS_PENDING_BYTES: usize = 64 << 20;
/// Reads of history from disk that one core has under way; further ones wait.
pub const READS_MAX: usize = 1_024;
/// Sessions whose last commands a partition remembers, so that a repeated one is answered and not done again.
pub const DEDUPE_SESSIONS_MAX: usize = 4_096;
/// Commands a partition remembers in all.
pub const DEDUPE_OUTCOMES_MAX: usize = 65_536;
/// Commands remembered per session and partition.
pub const DEDUPE_COMMANDS_MAX: usize = IN_FLIGHT_MAX;

/// Requests a second whose clients say that they are traced, and which one core traces for that; whatever is beyond, it
/// serves without tracing it.
pub const TRACE_PARENTS_PER_SECOND: u32 = 100;

/// Members of one channel, with those who are invited or banned.
pub const MEMBERS_MAX: usize = 16_384;
/// Members in one answer about a channel.
pub const MEMBERS_LISTED: usize = 1_000;
/// People one message can mention; further ones are not told.
pub const MENTIONS_MAX: usize = 16;
/// Unread mentions of one user in one channel that are counted; there may have been more.
pub const MENTIONS_KEPT: usize = 64;
/// Messages of one channel whose bodies were taken back while they are kept; one more is refused.
pub const REDACTIONS_MAX: usize = 65_536;
/// Longest topic of a channel, in bytes.
pub const TOPIC_BYTES_MAX: usize = 512;
/// Longest reaction, in bytes: an emoji with all its modifiers.
pub const REACTION_BYTES_MAX: usize = 32;
/// People in one direct conversation, with the one who opens it.
pub const DIRECT_USERS_MAX: usize = 8;
/// Channels in one answer to a request for a list.
pub const CHANNELS_LISTED: usize = 500;
/// Requests for lists of channels that one session has under way.
pub const LISTS_MAX: usize = 4;
/// Longest text to search for, in bytes.
pub const SEARCH_QUERY_BYTES_MAX: usize = 256;
/// Messages that one request to search looks at; the answer says where to go on.
pub const SEARCH_MESSAGES: usize = HISTORY_BATCH_MESSAGES;
/// Longest name a user is shown under, in bytes.
pub const DISPLAY_BYTES_MAX: usize = 64;
/// Longest text about a user, in bytes.
pub const ABOUT_BYTES_MAX: usize = 512;
/// Longest status of a user, in bytes.
pub const STATUS_BYTES_MAX: usize = 128;
/// Users of one core whose profile or last visit is kept.
pub const USERS_MAX: usize = 1 << 20;
/// A user's last visit is noted in the log at most this often, in milliseconds.
pub const SEEN_NOTE_MS: u64 = 60_000;
/// Clients that take part in presence say that they are there at this distance, in milliseconds.
pub const PRESENCE_HEARTBEAT_MS: u64 = 15_000;
/// Who takes part in presence and was not heard for this long counts as gone, in milliseconds.
pub const PRESENCE_TIMEOUT_MS: u64 = 45_000;
/// Changes of presence in a channel are gathered for this long before its readers are told, in milliseconds.
pub const PRESENCE_TICK_MS: u64 = 250;
/// With more people than this in a channel, its readers are told of a sample, and less often.
pub const PRESENCE_LARGE: usize = 128;
/// Distance of two reports on the people of a large channel, in milliseconds.
pub const PRESENCE_LARGE_TICK_MS: u64 = 5_000;
/// People named in one report on presence.
pub const PRESENCE_SAMPLE: usize = 64;
/// People named in one answer to who is in a channel.
pub const PRESENT_LISTED: usize = 1_000;
/// Subscriptions of one session that take part in presence.
pub const PRESENCE_SUBSCRIPTIONS_MAX: usize = 1_024;
/// People whose presence one channel keeps; further ones are only counted.
pub const PRESENT_MAX: usize = 16_384;
/// Somebody who was typing and says nothing more has stopped after this, in milliseconds.
pub const TYPING_MS: u64 = 5_000;
/// Distance of two notices that one session types in one channel, below which they are dropped, in milliseconds.
pub const TYPING_DISTANCE_MS: u64 = 1_000;
/// Notices of typing that one channel hands out in that time; further ones are dropped.
pub const TYPING_NOTICES_MAX: u32 = 16;
/// A client counts its user as away after this long without a key, in milliseconds.
pub const AWAY_AFTER_MS: u64 = 300_000;
/// Longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Longest request to a node's administration, in bytes of JSON.
pub const MANAGE_BYTES_MAX: usize = 64 << 10;
/// Longest answer of a node's administration, in bytes of JSON.
pub const MANAGED_BYTES_MAX: usize = 768 << 10;
/// Requests to the node's administration, and hellos that wait for it, of one core.
pub const GATE_REQUESTS_MAX: usize = 256;
/// Users and tenants whose use one core counts; those who used least recently are forgotten.
pub const USAGES_MAX: usize = 65_536;

/// Largest edit of a document, in bytes of a Yjs update; a larger paste comes in pieces.
pub const DOCUMENT_UPDATE_BYTES_MAX: usize = 768 << 10;
/// Largest document, in bytes of its encoded state; what would make it larger is refused.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Largest state vector of a document, in bytes: one entry for everybody who ever edited it.
pub const STATE_VECTOR_BYTES_MAX: usize = 256 << 10;
/// Documents that one core holds open; beyond it the one that was used least recently is let go of, or, if all are in use,
/// one more is refused.
pub const DOCUMENTS_OPEN_MAX: usize = 16_384;
/// Requests to one document that wait until it was read from disk; one more is refused as busy.
pub const DOCUMENT_WAITING_MAX: usize = 1_024;
/// A document that nobody reads or edits for this long is let go of, in milliseconds.
pub const DOCUMENT_IDLE_MS: u64 = 60_000;
/// A document is written as a whole when at least so many bytes of edits, and as many as it has itself, came since it was
/// last written so.
pub const DOCUMENT_SNAPSHOT_BYTES: usize = 64 << 10;
/// A document is written as a whole after so many edits at the latest.
pub const DOCUMENT_SNAPSHOT_UPDATES: u64 = 4_096;
/// Revisions of one open document against which positional operations may be made; older ones are refused.
pub const DOCUMENT_DELTAS_KEPT: usize = 1_024;
/// Bytes of positional operations that one open document keeps for that.
pub const DOCUMENT_DELTAS_BYTES: usize = 256 << 10;
/// Parts of one positional operation: stretches kept, inserted or deleted.
pub const OPERATIONS_MAX: usize = 4_096;
/// Longest name of a version, in bytes.
pub const VERSION_BYTES_MAX: usize = 128;
/// Updates in a row that a document's reader may be sent ahead of what it reported as consumed, by default; what is beyond
/// is merged for it.
pub const LEAD_UPDATES: u32 = 64;
/// Bytes of a document's state in one frame.
pub const DOCUMENT_PART_BYTES: usize = 128 << 10;
/// Documents that one session reads as they were, or has made so again, at a time; one more is refused as busy.
pub const DOCUMENT_PASTS_PER_SESSION: usize = 4;
/// Documents that one session has open.
pub const DOCUMENTS_PER_SESSION_MAX: usize = 64;
/// Largest update of awareness, in bytes.
pub const AWARENESS_BYTES_MAX: usize = 16 << 10;
/// Bytes of what all editors of one document say of themselves; what is beyond is not shown.
pub const AWARENESS_PICTURE_BYTES_MAX: usize = 256 << 10;
/// What one editor takes in an update of awareness beside its state, at most, in bytes: two numbers and a length, or `null`.
pub const AWARENESS_ENTRY_BYTES: usize = 24;
/// Editors one connection may speak of in one document: itself, and those it stands for.
pub const AWARENESS_CLIENTS_PER_LINK: usize = 16;
/// Updates of awareness that one reader of a document may send at once; then one every [`AWARENESS_DISTANCE_MS`].
pub const AWARENESS_BURST: u32 = 32;
/// Distance at which a reader of a document may send updates of awareness for long, in milliseconds.
pub const AWARENESS_DISTANCE_MS: u64 = 20;
/// Editors whose awareness one document keeps; further ones are not shown.
pub const AWARENESS_CLIENTS_MAX: usize = 1_024;
/// Editors of one document that are remembered after they left, so that clients which pass on what they heard do not bring
/// them back; beyond it those who left first are forgotten.
pub const AWARENESS_LEFT_MAX: usize = 1_024;
/// Changes of awareness in a document are gathered for this long before its readers are told, in milliseconds.
pub const AWARENESS_TICK_MS: u64 = 40;
/// An editor that does not renew its awareness for this long is taken out of it, in milliseconds.
pub const AWARENESS_TIMEOUT_MS: u64 = 30_000;
/// Models that write in one document at a time.
pub const DOCUMENT_ASKS_MAX: usize = 4;
/// Longest instruction for a model in a document, in bytes.
pub const INSTRUCTION_BYTES_MAX: usize = 4 << 10;
/// Bytes of a document's text around the place that a model is given.
pub const DOCUMENT_CONTEXT_BYTES: usize = 6 << 10;
/// How often a model that writes in a document begins anew because the text around it changed.
pub const DOCUMENT_REFRESHES_MAX: u32 = 4;
/// Text around a model's place must have been left alone for this long before the model is told, in milliseconds.
pub const DOCUMENT_REFRESH_MS: u64 = 500;

/// Slots of a ring between two cores, or between a core and an inference thread.
pub const RING_SLOTS: usize = 4_096;
/// Inputs a core takes from one source before it looks at the others.
pub const TURN_INPUTS_MAX: usize = 256;
/// Longest time one turn spends on fan-out, in microseconds.
pub const FAN_OUT_SLICE_US: u64 = 1_000;
/// Deliveries between two looks at the clock inside a fan-out slice.
pub const FAN_OUT_BURST: usize = 64;
/// A turn of the core loop longer than this is counted as a stall and logged with where it was, in microseconds.
pub const STALL_US: u64 = 10_000;

/// Messages of one conversation given to a model.
pub const CHAT_MESSAGES_MAX: usize = 256;
/// Bytes of one conversation given to a model.
pub const PROMPT_BYTES_MAX: usize = 512 << 10;
/// Stop strings of one request.
pub const STOPS_MAX: usize = 8;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 256;
/// Most tokens one generation may produce.
pub const GENERATION_TOKENS_MAX: u32 = 8_192;
/// Tokens of a generation when the request does not say.
pub const GENERATION_TOKENS: u32 = 512;
/// Tokens of one request whose logits are moved.
pub const LOGIT_BIASES_MAX: usize = 1_024;
/// Likeliest tokens that are told beside a drawn one.
pub const LOGPROBS_MAX: u8 = 20;
/// Bytes of the schema, expression or grammar that a text has to follow.
pub const CONSTRAINT_BYTES_MAX: usize = 64 << 10;
/// A request may ask to begin within so many milliseconds at most.
pub const DEADLINE_MS_MAX: u32 = 3_600_000;
/// Tokens in one frame that says how likely they were: each is a table of its own.
pub const TOKEN_DETAILS_MAX: usize = CHAT_MESSAGES_MAX;
/// Tokens of one generation whose likelihoods are kept until its readers got them; a reader further behind is not told.
pub const TOKEN_DETAILS_KEPT: usize = 1_024;
/// Texts of one request for embeddings.
pub const EMBED_TEXTS_MAX: usize = 256;
/// Longest text to embed, in bytes; all of a request have at most [`PROMPT_BYTES_MAX`].
pub const EMBED_TEXT_BYTES_MAX: usize = 64 << 10;
/// Numbers in one answer with embeddings: its texts times the model's dimensions.
pub const EMBED_VALUES_MAX: usize = 240 << 10;
/// Messages of a channel's recent past that `@ai` sees.
pub const CONVERSATION_MESSAGES: usize = 16;
/// Bytes of a channel's recent past that `@ai` sees.
pub const CONVERSATION_BYTES: usize = 4 << 10;
/// Generations one core keeps, running or finished.
pub const GENERATIONS_MAX: usize = 16_384;
/// A finished generation can be watched this long, in milliseconds.
pub const GENERATION_KEEP_MS: u64 = 600_000;
/// After a restart the reader of a generation gets this long to come back, in milliseconds.
pub const RESUME_GRACE_MS: u64 = 30_000;
/// Longest `keep` a client may ask for, in milliseconds.
pub const DETACH_KEEP_MS_MAX: u64 = 3_600_000;
/// Generations an inference thread holds, waiting, running or parked; one more is refused with a time to retry.
pub const SEQUENCES_WAITING_MAX: usize = 1_024;
/// Generations of one tenant that wait for their first step; one more is refused, so that a flood leaves room for others.
pub const SEQUENCES_WAITING_TENANT_MAX: usize = 256;
/// Sequences computed in one step.
pub const SEQUENCES_RUNNING_MAX: usize = 32;
/// Tokens whose keys and values lie in one block of KV memory.
pub const KV_BLOCK_TOKENS: usize = 64;
/// Tokens computed in one step: decoding sequences have one each, prompts share what is left.
pub const PREFILL_CHUNK_TOKENS: usize = 128;
/// A sequence without credit keeps its KV memory at least this long although others wait for it, in microseconds.
pub const PARK_KEEP_US: u64 = 100_000;
/// Time an inference thread spends on taking in requests (tokenising) before the next step, in microseconds.
pub const INTAKE_SLICE_US: u64 = 2_000;

/// Bytes of one file of the write-ahead log.
pub const LOG_FILE_BYTES: u64 = 32 << 20;
/// The write-ahead log is written in multiples of this many bytes: the page of a disk.
pub const LOG_BLOCK_BYTES: usize = 4096;
/// Bytes of one batch of the write-ahead log, which is written and synced as a whole.
pub const LOG_BATCH_BYTES_MAX: usize = 4 << 20;
/// Bytes of one record of the log: a prompt, a body, and what stands around them.
pub const LOG_RECORD_BYTES_MAX: usize = 1 << 20;
/// Bytes of one block of a sealed segment, the unit of its checks and of its index; a larger record gets a block of its own.
pub const SEGMENT_BLOCK_BYTES: usize = 32 << 10;
/// Neighbouring segments of like size that are merged into one.
pub const SEGMENT_MERGE_FANIN: usize = 8;

/// A draining node finishes what is in flight for this long, in milliseconds.
pub const DRAIN_MS: u64 = 25_000;
/// Clients of a draining node are told to come back after this long, in milliseconds.
pub const RECONNECT_DELAY_MS: u32 = 1_000;

/// Bytes of unanswered writes that one client keeps for repeating them over the next connection.
pub const CLIENT_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Encoded requests a client keeps ready for its command lane, in bytes, before it encodes more.
pub const CLIENT_OUTBOX_BYTES: usize = 512 << 10;
/// Most bytes a client takes from a lane at a time.
pub const CLIENT_READ_BYTES: usize = 256 << 10;
/// A client that waits for answers and hears nothing at all for this long takes the connection for dead, in milliseconds.
pub const CLIENT_SILENCE_MS: u64 = 5_000;
/// A client waits this long before its first try to come back, in milliseconds; twice as long before each further one.
pub const RECONNECT_BACKOFF_MS: u64 = 50;
/// Longest wait between two tries to come back, in milliseconds.
pub const RECONNECT_BACKOFF_MS_MAX: u64 = 2_000;

/// HTTP connections open at a time; one more is told to come back and closed.
pub const WEB_CONNECTIONS_MAX: usize = 1_024;
/// Bytes of one HTTP request before its body: request line and headers.
pub const WEB_HEADER_BYTES_MAX: usize = 16 << 10;
/// Headers of one HTTP request.
pub const WEB_HEADERS_MAX: usize = 64;
/// Bytes of the body of one HTTP request.
pub const WEB_BODY_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Time from the opening of an HTTP connection, or from its last answer, until the next request's headers are there, in
/// milliseconds.
pub const WEB_HEADER_TIMEOUT_MS: u64 = 10_000;
/// Time until an HTTP request is answered, in milliseconds.
pub const WEB_REQUEST_TIMEOUT_MS: u64 = 30_000;
/// An HTTP client that takes nothing of its answer for this long is parted with, in milliseconds.
pub const WEB_STALL_TIMEOUT_MS: u64 = 30_000;
/// Time until a core has answered what the web stage asked it, in milliseconds.
pub const WEB_CORE_TIMEOUT_MS: u64 = 2_000;
/// Questions of one web thread that its core has not answered; one more is refused as busy.
pub const WEB_QUESTIONS_MAX: usize = 256;
/// Collections of metrics under way; one more is refused as busy.
pub const WEB_SCRAPES_MAX: usize = 4;
/// Time that HTTP requests under way get when the stage ends, in milliseconds.
pub const WEB_GRACE_MS: u64 = 2_000;
/// A core that has not looked around for this long is held to hang, in milliseconds.
pub const CORE_SILENT_MS: u64 = 5_000;

const _: () = {
    assert!(WEB_CORE_TIMEOUT_MS < WEB_REQUEST_TIMEOUT_MS, "a request can tell that its core did not answer");
    assert!(WEB_SCRAPES_MAX <= WEB_QUESTIONS_MAX, "questions bound scrapes");
    assert!(CORE_SILENT_MS > 2_000, "an idle core looks around once a second");
    assert!(
        CLIENT_OUTBOX_BYTES + FRAME_BYTES_MAX <= CLIENT_IN_FLIGHT_BYTES,
        "an outbox is a part of what is in flight"
    );
    assert!(BODY_BYTES_MAX + 4096 <= FRAME_BYTES_MAX, "a body and its envelope fit in a frame");
    assert!(TOKEN_BYTES_MAX + 1024 <= FRAME_BYTES_MAX, "a hello fits in a frame");
    assert!(
        PROMPT_BYTES_MAX * 3 / 2 + CONSTRAINT_BYTES_MAX + 8 * LOGIT_BIASES_MAX <= FRAME_BYTES_MAX,
        "a conversation fits in a frame"
    );
    assert!(TOKEN_DETAILS_MAX + 2 <= FLATBUFFER_TABLES_MAX, "a frame full of likelihoods is read");
    assert!(TOKEN_DETAILS_KEPT >= LEAD_TOKENS as usize, "a reader within its lead gets every likelihood");
    assert!(EMBED_VALUES_MAX * 4 + 4096 <= FRAME_BYTES_MAX, "an answer with embeddings fits in a frame");
    assert!(EMBED_TEXTS_MAX * 16 + PROMPT_BYTES_MAX + 4096 <= FRAME_BYTES_MAX, "texts to embed fit in a frame");
    assert!(HISTORY_BATCH_BYTES >= BODY_BYTES_MAX, "a batch of history holds at least one message");
    assert!(TAIL_BYTES >= 2 * BODY_BYTES_MAX, "a tail holds at least two messages");
    assert!(TAIL_MESSAGES as u32 > LEAD_MESSAGES, "a reader within its lead is served from the tail");
    assert!(DEDUPE_COMMANDS_MAX >= IN_FLIGHT_MAX, "every unanswered command can be recognised when repeated");
    assert!(DEDUPE_OUTCOMES_MAX >= 2 * DEDUPE_COMMANDS_MAX, "one session does not fill a partition's memory");
    assert!(HISTORY_MEMORY_MESSAGES_MAX >= HISTORY_MESSAGES && HISTORY_MEMORY_BYTES_MAX >= HISTORY_BYTES);
    assert!(LOG_BATCH_BYTES_MAX < LOG_FILE_BYTES as usize / 4, "a log file holds several batches");
    assert!(LOG_RECORD_BYTES_MAX < LOG_BATCH_BYTES_MAX, "a batch holds the largest record");
    assert!(RESIDENT_BYTES as u64 >= LOG_FILE_BYTES, "what is in the newest log file is at hand");
    assert!(
        LOG_RECORD_BYTES_MAX >= PROMPT_BYTES_MAX + BODY_BYTES_MAX + CONSTRAINT_BYTES_MAX + (64 << 10),
        "the largest record fits"
    );
    assert!(IN_FLIGHT_MAX <= RING_SLOTS, "one session cannot fill a ring");
    assert!(TURN_INPUTS_MAX <= RING_SLOTS, "a ring holds a turn's batch");
    assert!(SEQUENCES_RUNNING_MAX <= PREFILL_CHUNK_TOKENS, "a step has a row for everyone");
    assert!(SEQUENCES_WAITING_TENANT_MAX * 4 <= SEQUENCES_WAITING_MAX, "one tenant does not fill the queue");
    assert!(FAN_OUT_SLICE_US < STALL_US, "a fan-out slice is not a stall");
    assert!(SESSION_QUEUE_BYTES >= BODY_BYTES_MAX, "a session's queue holds the largest message");
    assert!(LINK_QUEUE_BYTES >= SESSION_QUEUE_BYTES + 2 * FRAME_BYTES_MAX, "a full session can still be answered");
    assert!(LEAD_TOKENS <= LEAD_TOKENS_MAX && LEAD_MESSAGES <= LEAD_MESSAGES_MAX, "defaults lie within their maxima");
    assert!(DRAIN_MS < 30_000, "a drained node is out within 30 s");
    assert!(PRESENCE_TIMEOUT_MS >= 3 * PRESENCE_HEARTBEAT_MS, "two lost heartbeats are not an absence");
    assert!(PRESENCE_SAMPLE <= PRESENCE_LARGE && PRESENCE_LARGE <= PRESENT_MAX, "a small channel is told in full");
    assert!(PRESENT_LISTED * (NAME_BYTES_MAX + 64) <= FRAME_BYTES_MAX, "an answer to who is there fits in a frame");
    assert!(PRESENCE_SUBSCRIPTIONS_MAX < RING_SLOTS, "one session that comes or goes does not fill a ring");
    assert!(MEMBERS_LISTED * (NAME_BYTES_MAX + 64) <= FRAME_BYTES_MAX, "a list of members fits in a frame");
    assert!(CHANNELS_LISTED * (NAME_BYTES_MAX + TOPIC_BYTES_MAX + 256) <= FRAME_BYTES_MAX, "a list fits in a frame");
    assert!(MANAGED_BYTES_MAX + 1024 <= FRAME_BYTES_MAX && MANAGE_BYTES_MAX <= MANAGED_BYTES_MAX);
    assert!(CONVERSATION_BYTES <= PROMPT_BYTES_MAX, "a channel's past fits in a prompt");
    assert!(DOCUMENT_UPDATE_BYTES_MAX + (64 << 10) <= FRAME_BYTES_MAX, "an edit and its envelope fit in a frame");
    assert!(DOCUMENT_UPDATE_BYTES_MAX + (64 << 10) <= LOG_RECORD_BYTES_MAX, "an edit fits in a record");
    assert!(TAIL_BYTES >= 2 * DOCUMENT_UPDATE_BYTES_MAX, "a tail holds at least two edits");
    assert!(STATE_VECTOR_BYTES_MAX + 4096 <= FRAME_BYTES_MAX, "a document can be asked for");
    assert!(DOCUMENT_PART_BYTES <= SESSION_QUEUE_BYTES && DOCUMENT_PART_BYTES <= BODY_BYTES_MAX);
    assert!(DOCUMENT_BYTES_MAX <= TAIL_BYTES, "whoever gets a document anew does not hold more than a tail");
    assert!(AWARENESS_PICTURE_BYTES_MAX + 4096 <= FRAME_BYTES_MAX, "who edits a document fits in a frame");
    assert!(AWARENESS_BYTES_MAX + AWARENESS_ENTRY_BYTES <= AWARENESS_PICTURE_BYTES_MAX);
    assert!(AWARENESS_TIMEOUT_MS > 15_000, "editors of Yjs renew what they say of themselves every 15 s");
    assert!(INSTRUCTION_BYTES_MAX + DOCUMENT_CONTEXT_BYTES <= PROMPT_BYTES_MAX, "a document's part fits in a prompt");
};
