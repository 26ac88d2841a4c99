//! What `--json` prints: one object a line, fields in a fixed order.

use serde::Serialize;
use serde_json::{Value, json};
use thalweg_client::{Finished, Generation, Item, Message, Piece, Usage};

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
}

/// `{"seq":1,"from":"user","ts":"RFC 3339","body":"…"}`; `body_base64` instead where the body is not UTF-8.
pub(crate) fn message(message: &Message) -> String {
    use base64::Engine as _;
    let body = std::str::from_utf8(&message.body).ok();
    let body_base64 = match body {
        Some(_) => None,
        None => Some(base64::engine::general_purpose::STANDARD.encode(&message.body)),
    };
    let (seq, ts) = (message.position.0, rfc3339(message.timestamp_us));
    line(&MessageLine { seq, from: message.user.as_str(), ts, body, body_base64 })
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
    };
    Some(line(&event))
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
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

/// `{"index":0,"token":"…"}`; with a `count` if a busy node sent several tokens as one.
pub(crate) fn token(piece: &Piece) -> String {
    line(&TokenLine { index: piece.index, token: &piece.text, count: piece.count })
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
}

/// The last line of an answer: `{"text":…,"finish_reason":…,"usage":{…}}`.
pub(crate) fn finished(text: &str, finished: &Finished) -> String {
    let Usage { prompt_tokens, completion_tokens } = finished.usage;
    let usage = UsageObject { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
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
    }

    #[test]
    fn answers_have_tokens_and_an_end() {
        let piece = |count| Piece { index: 4, count, text: " sky".into() };
        assert_eq!(token(&piece(1)), r#"{"index":4,"token":" sky"}"#);
        assert_eq!(token(&piece(3)), r#"{"index":4,"token":" sky","count":3}"#);
        let usage = Usage { prompt_tokens: 9, completion_tokens: 3 };
        let end = Finished { reason: FinishReason::Length, usage, message: String::new() };
        let expected = r#"{"text":"a","finish_reason":"length","usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}"#;
        assert_eq!(finished("a", &end), expected);
    }
}
