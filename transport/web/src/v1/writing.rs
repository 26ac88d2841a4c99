//! Answers as clients of OpenAI's API read them: whole, or in chunks.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use thalweg_protocol::generation::{TokenChance, TokenDetail, Usage};

use super::choice::Piece;

/// Which build answers: what OpenAI calls a fingerprint.
const FINGERPRINT: &str = concat!("thalweg-", env!("CARGO_PKG_VERSION"));

/// Which endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// Writes the answers to one request.
pub(super) struct Writer {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
    /// Whether how likely tokens were is told.
    logprobs: bool,
    /// Whether each chunk has a field for the usage, which the last one fills.
    include_usage: bool,
    choices: Vec<State>,
}

/// What was written of an answer.
#[derive(Default)]
struct State {
    begun: bool,
    /// Characters of its text.
    characters: usize,
    /// The whole of it, unless it is a stream.
    text: String,
    details: Vec<Value>,
    calls: Vec<(String, String, String)>,
    reason: Option<&'static str>,
}

impl Writer {
    pub(super) fn new(
        endpoint: Endpoint,
        (model, generation): (String, u64),
        choices: usize,
        logprobs: bool,
        include_usage: bool,
    ) -> Self {
        let prefix = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let choices = (0..choices).map(|_| State::default()).collect();
        Self { endpoint, id: format!("{prefix}-{generation:016x}"), created, model, logprobs, include_usage, choices }
    }

    fn envelope(&self, chunk: bool, choices: Value) -> Map<String, Value> {
        let object = match (self.endpoint, chunk) {
            (Endpoint::Chat, true) => "chat.completion.chunk",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Completions, _) => "text_completion",
        };
        let fields = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.model)),
            ("system_fingerprint", json!(FINGERPRINT)),
            ("choices", choices),
        ];
        fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
    }

    /// A piece of an answer as a chunk.
    pub(super) fn chunk(&mut self, index: usize, piece: Piece) -> Value {
        let choice = match self.endpoint {
            Endpoint::Chat => self.chat_chunk(index, piece),
            Endpoint::Completions => self.text_chunk(index, piece),
        };
        let mut chunk = self.envelope(true, json!([choice]));
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk.into()
    }

    fn chat_chunk(&mut self, index: usize, piece: Piece) -> Value {
        let state = &mut self.choices[index];
        let mut delta = Map::new();
        let (mut logprobs, mut reason) = (Value::Null, None);
        if !std::mem::replace(&mut state.begun, true) {
            delta.insert("role".into(), json!("assistant"));
        }
        match piece {
            Piece::Text { text, details } => {
                delta.insert("content".into(), json!(text));
                if self.logprobs {
                    logprobs = json!({"content": details.iter().map(likelihood).collect::<Vec<_>>(), "refusal": null});
                }
            }
            Piece::Call { call, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                let call = json!({"index": call, "id": id, "type": "function", "function": function});
                delta.insert("tool_calls".into(), json!([call]));
            }
            Piece::Arguments { call, text } => {
                let call = json!({"index": call, "function": {"arguments": text}});
                delta.insert("tool_calls".into(), json!([call]));
            }
            Piece::Finish { reason: why } => reason = Some(why),
        }
        json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
    }

    fn text_chunk(&mut self, index: usize, piece: Piece) -> Value {
        let state = &mut self.choices[index];
        let (text, details, reason) = match piece {
            Piece::Text { text, details } => (text, details, None),
            Piece::Finish { reason } => (String::new(), Vec::new(), Some(reason)),
            // Completions call nothing.
            Piece::Call { .. } | Piece::Arguments { .. } => Default::default(),
        };
        let logprobs = if self.logprobs { columns(&details, &mut state.characters) } else { Value::Null };
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
    }

    /// The last chunk of a stream that tells what it cost.
    pub(super) fn usage_chunk(&self, usage: Usage) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.envelope(true, json!([]));
            chunk.insert("usage".into(), usage_of(usage));
            chunk.into()
        })
    }

    /// Takes a piece in, for an answer that is told as a whole.
    pub(super) fn gather(&mut self, index: usize, piece: Piece) {
        let state = &mut self.choices[index];
        match piece {
            Piece::Text { text, details } => {
                state.text.push_str(&text);
                if self.logprobs && self.endpoint == Endpoint::Chat {
                    state.details.extend(details.iter().map(likelihood));
                } else if self.logprobs {
                    state.details.push(columns(&details, &mut state.characters));
                }
            }
            Piece::Call { id, name, .. } => state.calls.push((id, name, String::new())),
            Piece::Arguments { call, text } => {
                if let Some((.., arguments)) = state.calls.get_mut(call) {
                    arguments.push_str(&text);
                }
            }
            Piece::Finish { reason } => state.reason = Some(reason),
        }
    }

    /// The answer as a whole.
    pub(super) fn whole(mut self, usage: Usage) -> Value {
        let states = std::mem::take(&mut self.choices);
        let write = |(index, state)| match self.endpoint {
            Endpoint::Chat => self.chat_choice(index, state),
            Endpoint::Completions => self.text_choice(index, state),
        };
        let choices: Vec<Value> = states.into_iter().enumerate().map(write).collect();
        let mut whole = self.envelope(false, choices.into());
        whole.insert("usage".into(), usage_of(usage));
        whole.into()
    }

    fn chat_choice(&self, index: usize, state: State) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), json!("assistant"));
        let content = if state.text.is_empty() && !state.calls.is_empty() { Value::Null } else { json!(state.text) };
        message.insert("content".into(), content);
        message.insert("refusal".into(), Value::Null);
        if !state.calls.is_empty() {
            let call = |(id, name, arguments): (String, String, String)| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
            message.insert("tool_calls".into(), state.calls.into_iter().map(call).collect::<Vec<_>>().into());
        }
        let logprobs = if self.logprobs { json!({"content": state.details, "refusal": null}) } else { Value::Null };
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": state.reason})
    }

    fn text_choice(&self, index: usize, state: State) -> Value {
        let logprobs = if self.logprobs { merged(state.details) } else { Value::Null };
        json!({"index": index, "text": state.text, "logprobs": logprobs, "finish_reason": state.reason})
    }
}

/// What a request cost.
fn usage_of(usage: Usage) -> Value {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    })
}

/// How likely a token was, and which ones stood beside it, as chat completions tell it.
fn likelihood(detail: &TokenDetail) -> Value {
    let one = |text: &[u8], logprob: f32| {
        let token = String::from_utf8_lossy(text);
        json!({"token": token, "logprob": finite(logprob), "bytes": text})
    };
    let top: Vec<Value> = detail.top.iter().map(|chance| one(&chance.text, chance.logprob)).collect();
    let mut told = one(&detail.text, detail.logprob);
    told["top_logprobs"] = top.into();
    told
}

/// The same as plain completions tell it: in columns, with where each token begins in the text, in characters.
fn columns(details: &[TokenDetail], characters: &mut usize) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top = |chances: &[TokenChance]| -> Map<String, Value> {
        chances.iter().map(|chance| (text(&chance.text), json!(finite(chance.logprob)))).collect()
    };
    let offset = |detail: &TokenDetail| {
        let at = *characters;
        *characters += text(&detail.text).chars().count();
        at
    };
    json!({
        "tokens": details.iter().map(|detail| text(&detail.text)).collect::<Vec<_>>(),
        "token_logprobs": details.iter().map(|detail| finite(detail.logprob)).collect::<Vec<_>>(),
        "top_logprobs": details.iter().map(|detail| top(&detail.top)).collect::<Vec<_>>(),
        "text_offset": details.iter().map(offset).collect::<Vec<_>>(),
    })
}

/// The columns of several pieces as those of one.
fn merged(parts: Vec<Value>) -> Value {
    let mut whole = columns(&[], &mut 0);
    for mut part in parts {
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            if let (Some(into), Some(from)) = (whole[name].as_array_mut(), part[name].as_array_mut()) {
                into.append(from);
            }
        }
    }
    whole
}

/// JSON has no infinity; a token that could not be drawn is as good as one that never is.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9_999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(text: &str) -> TokenDetail {
        let top = vec![TokenChance { id: 1, text: text.to_owned().into(), logprob: -0.5 }];
        TokenDetail { index: 0, id: 1, text: text.to_owned().into(), logprob: f32::NEG_INFINITY, top }
    }

    #[test]
    fn streams_are_told_in_chunks() {
        let mut writer = Writer::new(Endpoint::Chat, ("m".into(), 7), 1, true, true);
        let text = |text: &str| Piece::Text { text: text.into(), details: vec![detail(text)] };
        let first = writer.chunk(0, text("Hi"));
        assert_eq!(first["object"], "chat.completion.chunk");
        assert_eq!(first["id"], "chatcmpl-0000000000000007");
        assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": "Hi"}));
        assert_eq!(first["choices"][0]["logprobs"]["content"][0]["bytes"], json!([72, 105]));
        assert!(first["usage"].is_null() && first.get("usage").is_some());
        let call = writer.chunk(0, Piece::Call { call: 0, id: "call_1".into(), name: "f".into() });
        assert_eq!(call["choices"][0]["delta"]["tool_calls"][0]["function"], json!({"name": "f", "arguments": ""}));
        let last = writer.chunk(0, Piece::Finish { reason: "stop" });
        assert_eq!((&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]), (&json!({}), &json!("stop")));
        let usage = Usage { prompt_tokens: 3, completion_tokens: 4, cached_tokens: 2 };
        let usage = writer.usage_chunk(usage).expect("asked for");
        assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(7)));
    }

    #[test]
    fn whole_answers_are_gathered() {
        let mut writer = Writer::new(Endpoint::Completions, ("m".into(), 7), 1, true, false);
        for text in ["ä", "b"] {
            writer.gather(0, Piece::Text { text: text.into(), details: vec![detail(text)] });
        }
        writer.gather(0, Piece::Finish { reason: "length" });
        let whole = writer.whole(Usage::default());
        let choice = &whole["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("äb"), &json!("length")));
        assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1]));
        assert_eq!(choice["logprobs"]["token_logprobs"], json!([-9999.0, -9999.0]));

        let mut writer = Writer::new(Endpoint::Chat, ("m".into(), 7), 1, false, false);
        writer.gather(0, Piece::Call { call: 0, id: "call_1".into(), name: "f".into() });
        writer.gather(0, Piece::Arguments { call: 0, text: "{}".into() });
        writer.gather(0, Piece::Finish { reason: "tool_calls" });
        let message = &writer.whole(Usage::default())["choices"][0]["message"];
        assert!(message["content"].is_null());
        assert_eq!(message["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{}"}));
    }
}
