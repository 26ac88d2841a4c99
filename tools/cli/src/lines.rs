//! What `--json` prints: one object a line, fields in a fixed order.

use serde::Serialize;
use serde_json::{Value, json};
use thalweg_client::{
    Change, ChangeKind, ChannelReport, ChannelSummary, Finished, Generation, Item, MemberRole, Message, PeopleChange,
    Piece, PresentUser, ProfileReport, TokenChance, TokenDetail, Usage,
};

use crate::timestamp::rfc3339;

#[derive(Serialize)]
struct MessageLine<'a> {
    seq: u64,
    from: &'a str,
    ts: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mentions: Vec<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    redacted: bool,
    #[serde(skip_serializing_if = "is_false")]
    edited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// `{"seq":1,"from":"user","ts":"RFC 3339","body":"…"}`; `body_base64` instead where the body is not UTF-8; with `reply_to`,
/// `mentions`, `redacted` and, of a model's answer, `generation` where there is something to say.
pub(crate) fn message(message: &Message) -> String {
    message_line(message, false)
}

/// The same for a message whose body is that of its last edit.
pub(crate) fn edited(message: &Message) -> String {
    message_line(message, true)
}

/// A body as text, or else in base64.
fn body_fields(body: &[u8]) -> (Option<&str>, Option<String>) {
    use base64::Engine as _;
    match std::str::from_utf8(body) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(body))),
    }
}

fn message_line(message: &Message, edited: bool) -> String {
    let (body, body_base64) = body_fields(&message.body);
    let mentions = message.context.mentions.iter().map(|user| user.as_str()).collect();
    let (reply_to, redacted) = (message.reply_to().map(|target| target.0), message.is_redacted());
    let (seq, ts) = (message.position.0, rfc3339(message.timestamp_us));
    let from = message.user.as_str();
    let generation = message.generation.map(|generation| generation.to_string());
    line(&MessageLine { seq, from, ts, body, body_base64, reply_to, mentions, redacted, edited, generation })
}

/// Loss: `{"missed":{"from":7,"to":9}}`.
pub(crate) fn missed(from: u64, to: u64) -> String {
    line(&json!({ "missed": { "from": from, "to": to } }))
}

/// What else happens in a channel, for `--events`; `None` for what has a line of its own.
pub(crate) fn event(item: &Item) -> Option<String> {
    let event = match item {
        Item::Message(_) | Item::Missed { .. } => return None,
        Item::Tokens { position, generation, user, text } => json!({
            "event": "tokens", "seq": position.0, "user": user.as_str(), "generation": generation.to_string(),
            "text": String::from_utf8_lossy(text),
        }),
        Item::GenerationStarted { position, generation, user } => json!({
            "event": "generation_started", "seq": position.0, "user": user.as_str(),
            "generation": generation.to_string(),
        }),
        Item::GenerationEnded { position, generation, user, reason } => json!({
            "event": "generation_ended", "seq": position.0, "user": user.as_str(),
            "generation": generation.to_string(), "reason": reason,
        }),
        Item::Rewound { to } => json!({ "event": "rewound", "to": to.0 }),
        Item::Change(change) => return Some(self::change(change)),
        Item::Typing { user, on } => json!({ "event": "typing", "user": user.as_str(), "on": on }),
        // Told as who came and went.
        Item::Presence(_) => return None,
    };
    Some(line(&event))
}

/// What became of a message, of somebody's role, or of the channel: `{"event":"edit","seq":7,"user":"ada","ts":…,"target":3,
/// "body":"…"}`; `redact`, `react`, `unreact`, `member` and `info` are the others.
pub(crate) fn change(change: &Change) -> String {
    let mut fields = match &change.kind {
        ChangeKind::Edited { body, redacted, .. } => match body_fields(body) {
            (Some(text), _) => json!({ "event": "edit", "body": text, "redacted": redacted }),
            (None, base64) => json!({ "event": "edit", "body_base64": base64, "redacted": redacted }),
        },
        ChangeKind::Redacted { .. } => json!({ "event": "redact" }),
        ChangeKind::Reacted { emoji, .. } => json!({ "event": "react", "emoji": emoji }),
        ChangeKind::Unreacted { emoji, .. } => json!({ "event": "unreact", "emoji": emoji }),
        ChangeKind::Member { user, role } => {
            json!({ "event": "member", "member": user.as_str(), "role": role.map(MemberRole::as_str) })
        }
        ChangeKind::Info { topic } => json!({ "event": "info", "topic": topic }),
    };
    fields["seq"] = json!(change.position.0);
    fields["user"] = json!(change.user.as_str());
    fields["ts"] = json!(rfc3339(change.timestamp_us));
    if let Some(target) = change.target() {
        fields["target"] = json!(target.0);
    }
    line(&fields)
}

/// Who came and went: `{"event":"join"|"leave","user":…}`; whose state is another: `{"event":"presence",…}`.
pub(crate) fn people(change: &PeopleChange) -> String {
    line(&match change {
        PeopleChange::Joined(PresentUser { user, state, .. }) => {
            json!({ "event": "join", "user": user.as_str(), "state": state.as_str() })
        }
        PeopleChange::Changed(PresentUser { user, state, .. }) => {
            json!({ "event": "presence", "user": user.as_str(), "state": state.as_str() })
        }
        PeopleChange::Left(user) => json!({ "event": "leave", "user": user.as_str() }),
    })
}

/// How many are in a channel with too many people to name them: `{"event":"crowd","count":5000}`.
pub(crate) fn crowd(count: u32) -> String {
    line(&json!({ "event": "crowd", "count": count }))
}

/// Somebody in a channel: `{"user":"ada","state":"online","since":"RFC 3339"}`.
pub(crate) fn present(present: &PresentUser) -> String {
    let (user, state) = (present.user.as_str(), present.state.as_str());
    line(&json!({ "user": user, "state": state, "since": rfc3339(present.since_us) }))
}

/// A channel in a list.
pub(crate) fn summary(summary: &ChannelSummary) -> String {
    let ChannelSummary { channel, kind, topic, role, head, messages, read, unread, mentions, active_us } = summary;
    line(&json!({
        "channel": channel.as_str(), "kind": kind.as_str(), "topic": topic, "role": role.map(MemberRole::as_str),
        "head": head.0, "messages": messages, "read": read.0, "unread": unread, "mentions": mentions,
        "active": when(*active_us),
    }))
}

/// What there is to say about a channel.
pub(crate) fn report(report: &ChannelReport) -> String {
    let members = report.members.iter().map(
        |member| json!({ "user": member.user.as_str(), "role": member.role.as_str(), "since": when(member.since_us) }),
    );
    line(&json!({
        "channel": report.channel.as_str(), "kind": report.kind.as_str(), "topic": report.topic,
        "post": report.post.as_str(), "created": when(report.created_us), "first": report.first.0,
        "head": report.head.0, "messages": report.messages, "durability": report.durability.as_str(),
        "role": report.you.map(MemberRole::as_str), "members_total": report.members_total,
        "members": members.collect::<Vec<_>>(),
    }))
}

/// Who somebody is.
pub(crate) fn profile(report: &ProfileReport) -> String {
    let thalweg_client::ProfileText { display, about, status } = &report.profile;
    line(&json!({
        "user": report.user.as_str(), "display": display, "about": about, "status": status,
        "state": report.state.as_str(), "seen": when(report.seen_us),
    }))
}

/// A time, if it is known.
pub(crate) fn when(micros: u64) -> Option<String> {
    (micros != 0).then(|| rfc3339(micros))
}

#[derive(Serialize)]
struct AskedLine<'a> {
    id: String,
    model: &'a str,
}

/// The first line of an answer: `{"id":…,"model":…}`.
pub(crate) fn asked(generation: &Generation) -> String {
    line(&AskedLine { id: generation.id().to_string(), model: generation.model() })
}

#[derive(Serialize)]
struct TokenLine<'a> {
    index: u32,
    token: &'a str,
    #[serde(skip_serializing_if = "is_one")]
    count: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<LogprobObject>,
}

#[derive(Serialize)]
struct LogprobObject {
    token: String,
    id: u32,
    logprob: f32,
    top: Vec<ChanceObject>,
}

#[derive(Serialize)]
struct ChanceObject {
    token: String,
    id: u32,
    logprob: f32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

/// `{"index":0,"token":"…"}`; with a `count` if a busy node sent several tokens as one, and `logprobs` if they were asked
/// for: `[{"token":"…","id":1,"logprob":-0.5,"top":[…]}]`, where bytes that are no whole character are replaced.
pub(crate) fn token(piece: &Piece) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let chance = |c: &TokenChance| ChanceObject { token: text(&c.text), id: c.id, logprob: c.logprob };
    let logprob = |detail: &TokenDetail| LogprobObject {
        token: text(&detail.text),
        id: detail.id,
        logprob: detail.logprob,
        top: detail.top.iter().map(chance).collect(),
    };
    let logprobs = piece.details.iter().map(logprob).collect();
    line(&TokenLine { index: piece.index, token: &piece.text, count: piece.count, logprobs })
}

/// The tokens from `to` on are dropped, and come again: `{"rewound":{"to":n}}`.
pub(crate) fn rewound(to: u32) -> String {
    line(&json!({ "rewound": { "to": to } }))
}

#[derive(Serialize)]
struct FinishedLine<'a> {
    text: &'a str,
    finish_reason: &'static str,
    usage: UsageObject,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

#[derive(Serialize)]
struct UsageObject {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    cached_tokens: u32,
}

/// The last line of an answer: `{"text":…,"finish_reason":…,"usage":{…}}`.
pub(crate) fn finished(text: &str, finished: &Finished) -> String {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = finished.usage;
    let total_tokens = prompt_tokens + completion_tokens;
    let usage = UsageObject { prompt_tokens, completion_tokens, total_tokens, cached_tokens };
    line(&FinishedLine { text, finish_reason: finished.reason.as_str(), usage, message: &finished.message })
}

fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| Value::from(error.to_string()).to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use thalweg_client::{FinishReason, GenerationId, Name, Position};

    use super::*;

    fn said(body: &'static [u8]) -> Message {
        Message {
            position: Position(1),
            timestamp_us: 1_795_233_035_000_001,
            user: Name::new("ada").expect("valid"),
            generation: None,
            body: Bytes::from_static(body),
            key: 0,
            context: thalweg_client::Context::default(),
        }
    }

    #[test]
    fn messages_have_a_line_each() {
        let check = |body: &'static [u8], expected: &str| assert_eq!(message(&said(body)), expected);
        let head = r#"{"seq":1,"from":"ada","ts":"2026-11-21T03:50:35.000001Z","#;
        check(b"hi", &format!(r#"{head}"body":"hi"}}"#));
        check(b"", &format!(r#"{head}"body":""}}"#));
        check("a\"\n\u{e9}".as_bytes(), &format!(r#"{head}"body":"a\"\né"}}"#));
        check(b"\xff\x00", &format!(r#"{head}"body_base64":"/wA="}}"#));
        let mut reply = said(b"hi");
        reply.context.target = Position(3);
        reply.context.mentions = vec![Name::new("grace").expect("valid")];
        assert_eq!(message(&reply), format!(r#"{head}"body":"hi","reply_to":3,"mentions":["grace"]}}"#));
        assert_eq!(edited(&said(b"hi")), format!(r#"{head}"body":"hi","edited":true}}"#));
        assert_eq!(rewound(3), r#"{"rewound":{"to":3}}"#);
        assert_eq!(missed(7, 9), r#"{"missed":{"from":7,"to":9}}"#);
    }

    #[test]
    fn events_say_what_happened_and_messages_are_none() {
        let user = Name::new("ai/m").expect("valid");
        let started = Item::GenerationStarted { position: Position(3), generation: GenerationId(7), user };
        let line: Value = serde_json::from_str(&event(&started).expect("an event")).expect("JSON");
        assert_eq!((&line["event"], &line["seq"]), (&json!("generation_started"), &json!(3)));
        assert_eq!(line["generation"], "g-0000000000000007");
        assert_eq!(event(&Item::Message(said(b"hi"))), None);
        let user = Name::new("ada").expect("valid");
        let kind = ChangeKind::Reacted { target: Position(2), emoji: "👍".into() };
        let reacted = Change { position: Position(4), timestamp_us: 1, user: user.clone(), number: 3, kind };
        let line: Value = serde_json::from_str(&event(&Item::Change(reacted)).expect("an event")).expect("JSON");
        assert_eq!((&line["event"], &line["seq"], &line["target"]), (&json!("react"), &json!(4), &json!(2)));
        assert_eq!((&line["emoji"], &line["user"]), (&json!("👍"), &json!("ada")));
        assert_eq!(people(&PeopleChange::Left(user)), r#"{"event":"leave","user":"ada"}"#);
    }

    #[test]
    fn answers_have_tokens_and_an_end() {
        let piece = |count| Piece { index: 4, count, text: " sky".into(), details: Vec::new() };
        assert_eq!(token(&piece(1)), r#"{"index":4,"token":" sky"}"#);
        assert_eq!(token(&piece(3)), r#"{"index":4,"token":" sky","count":3}"#);
        let chance = TokenChance { id: 7, text: Bytes::from_static(b"\xc3"), logprob: -1.5 };
        let detail =
            TokenDetail { index: 4, id: 9, text: Bytes::from_static(b" sky"), logprob: -0.25, top: vec![chance] };
        let detailed = Piece { details: vec![detail], ..piece(1) };
        let logprobs = r#"[{"token":" sky","id":9,"logprob":-0.25,"top":[{"token":"�","id":7,"logprob":-1.5}]}]"#;
        assert_eq!(token(&detailed), format!(r#"{{"index":4,"token":" sky","logprobs":{logprobs}}}"#));
        let usage = Usage { prompt_tokens: 9, completion_tokens: 3, cached_tokens: 8 };
        let end = Finished { reason: FinishReason::Length, usage, message: String::new() };
        let expected = r#"{"text":"a","finish_reason":"length","usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"cached_tokens":8}}"#;
        assert_eq!(finished("a", &end), expected);
    }
}
