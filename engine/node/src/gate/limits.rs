//! Limits of the gate. What a client can press against on the wire stands in `thalweg_protocol::limits`.

/// Longest life of a token, in seconds: 400 days. A revocation by user is kept for so long, since then nothing is left that
/// it could be about.
pub(crate) const TOKEN_TTL_S_MAX: u64 = 400 * 24 * 3600;
/// Tokens of an earlier version, which kept no account of them, may have been signed for so long, in seconds.
pub(crate) const TAKEN_OVER_TTL_S: u64 = 366 * 24 * 3600;
/// Life of a token that a login gives, by default, in seconds: a working day.
pub(crate) const LOGIN_TOKEN_TTL_S: u64 = 12 * 3600;
/// Clocks of machines may differ by so many seconds before a token of the node is held to be expired, or of the future.
pub(crate) const LEEWAY_S: u64 = 5;
/// The last expiry of a key's tokens is kept in steps of so many seconds, so that not every login writes a file.
pub(crate) const EXPIRY_STEP_S: u64 = 3600;
/// Signing keys at a time: the current one, and those whose tokens have not all expired. One more rotation is refused.
pub(crate) const SIGNING_KEYS_MAX: usize = 64;

/// Revocations of a node, and of one tenant.
pub(crate) const REVOCATIONS_MAX: usize = 16_384;
/// See [`REVOCATIONS_MAX`].
pub(crate) const REVOCATIONS_PER_TENANT_MAX: usize = 8_192;
/// API keys of a node, and of one tenant.
pub(crate) const API_KEYS_MAX: usize = 16_384;
/// See [`API_KEYS_MAX`].
pub(crate) const API_KEYS_PER_TENANT_MAX: usize = 4_096;
/// Users with passwords of a node, and of one tenant. Larger installations have an issuer.
pub(crate) const USERS_MAX: usize = 16_384;
/// See [`USERS_MAX`].
pub(crate) const USERS_PER_TENANT_MAX: usize = 4_096;
/// Permissions of one token, user or API key.
pub(crate) const PERMISSIONS_MAX: usize = 64;
/// Bytes of the reason of a revocation, and of the note on an API key.
pub(crate) const NOTE_BYTES_MAX: usize = 256;
/// Entries of one answer that lists.
pub(crate) const LISTED_MAX: usize = 500;
/// Shortest password that is taken, in bytes (NIST SP 800-63B, section 5.1.1.2, asks for 8 characters).
pub(crate) const PASSWORD_BYTES_MIN: usize = 8;

/// Memory of one hash of a password (argon2id), in KiB: OWASP's choice of 19 MiB, two passes, one lane (RFC 9106).
pub(crate) const ARGON2_KIB: u32 = 19 * 1024;
/// See [`ARGON2_KIB`].
pub(crate) const ARGON2_PASSES: u32 = 2;
/// See [`ARGON2_KIB`].
pub(crate) const ARGON2_LANES: u32 = 1;
/// Passwords that wait to be hashed; one more is refused as busy.
pub(crate) const HASHES_WAITING_MAX: usize = 64;
/// Models that are loaded, unloaded, or wait for it; one more is refused as busy.
pub(crate) const MODEL_JOBS_MAX: usize = 8;
/// Longest time that what runs may go on when its model is unloaded, in milliseconds.
pub(crate) const MODEL_GRACE_MS_MAX: u64 = 600_000;
/// Longest path of a model, in bytes.
pub(crate) const MODEL_PATH_BYTES_MAX: usize = 4_096;

/// Passwords from one address that are hashed at once.
pub(crate) const LOGINS_AT_ONCE_MAX: usize = 16;

/// Failed logins of a user that cost nothing but the hash.
pub(crate) const FREE_FAILURES_PER_USER: u32 = 3;
/// Failed logins from an address that cost nothing but the hash: many people may share one.
pub(crate) const FREE_FAILURES_PER_ADDRESS: u32 = 10;
/// Longest delay that failures on one user bring, in seconds. Short, so that nobody locks others out for long.
pub(crate) const USER_DELAY_S_MAX: u64 = 30;
/// Longest delay that failures from one address bring, in seconds.
pub(crate) const ADDRESS_DELAY_S_MAX: u64 = 900;
/// Failures are forgotten after so many seconds without one.
pub(crate) const FAILURES_FORGOTTEN_S: u64 = 3_600;
/// Users and addresses whose failures are remembered; the oldest give way.
pub(crate) const FAILURES_REMEMBERED_MAX: usize = 16_384;
/// Logins that one connection may try.
pub(crate) const LOGINS_PER_CONNECTION_MAX: u32 = 5;

/// External issuers of a node; each has a thread that asks it for its keys.
pub(crate) const ISSUERS_MAX: usize = 8;
/// Keys of one issuer; further ones are ignored.
pub(crate) const ISSUER_KEYS_MAX: usize = 64;
/// Bytes of an issuer's answer; a longer one is refused.
pub(crate) const ISSUER_ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Longest URL of an issuer, in bytes.
pub(crate) const URL_BYTES_MAX: usize = 2_048;
/// Longest name of a claim, in bytes.
pub(crate) const CLAIM_NAME_BYTES_MAX: usize = 128;
/// An issuer gets so long to be connected to, in milliseconds.
pub(crate) const ISSUER_CONNECT_MS: u64 = 2_000;
/// An issuer gets so long for one answer in all, in milliseconds. Two answers fit in the time a hello has.
pub(crate) const ISSUER_ANSWER_MS: u64 = 4_000;
/// A token with an unknown key makes the gate ask its issuer at most this often, in seconds.
pub(crate) const ISSUER_ASK_S: u64 = 10;
/// An issuer's keys are asked for again after so long, in seconds.
pub(crate) const ISSUER_REFRESH_S: u64 = 900;
/// Known keys go on for so long while their issuer does not answer, by default, in seconds.
pub(crate) const ISSUER_KEEP_S: u64 = 24 * 3600;
/// How far an issuer's clock may be off, by default, in seconds.
pub(crate) const ISSUER_LEEWAY_S: u64 = 30;
/// See [`ISSUER_LEEWAY_S`].
pub(crate) const ISSUER_LEEWAY_S_MAX: u64 = 300;
/// Hellos that wait for one issuer's keys; one more is told to come back.
pub(crate) const ISSUER_WAITING_MAX: usize = 1_024;

/// Questions of one core to the gate that are not answered; one more is refused as busy.
pub(crate) const GATE_QUESTIONS_MAX: usize = 256;
/// Audit events of one core on their way to the gate; further ones are counted and dropped.
pub(crate) const AUDIT_RING_SLOTS: usize = 1_024;
/// Bytes of one file of the audit log, by default.
pub(crate) const AUDIT_FILE_BYTES: u64 = 16 << 20;
/// Files of the audit log that are kept, by default.
pub(crate) const AUDIT_FILES: usize = 16;
/// Newest events that can be asked for.
pub(crate) const AUDIT_TAIL_EVENTS: usize = 4_096;
/// Bytes of the object of an audit event; longer ones are cut.
pub(crate) const AUDIT_OBJECT_BYTES_MAX: usize = 256;
/// Sessions of one core that are compared with a change of access in one turn: about 100 µs.
pub(crate) const SWEEP_SESSIONS: usize = 1_024;

const _: () = {
    assert!(2 * ISSUER_ANSWER_MS < thalweg_protocol::limits::HELLO_TIMEOUT_MS, "a hello waits for its issuer's keys");
    assert!(GATE_QUESTIONS_MAX <= ISSUER_WAITING_MAX, "one core's hellos can all wait for one issuer");
    assert!(LOGIN_TOKEN_TTL_S <= TOKEN_TTL_S_MAX && TAKEN_OVER_TTL_S <= TOKEN_TTL_S_MAX);
    assert!(REVOCATIONS_PER_TENANT_MAX < REVOCATIONS_MAX, "one tenant leaves room for others");
    assert!(API_KEYS_PER_TENANT_MAX < API_KEYS_MAX && USERS_PER_TENANT_MAX < USERS_MAX);
};
