//! Reads the events of an answer: `chat.completion.chunk` objects, and `[DONE]`.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use thalweg_protocol::generation::{FinishReason, TokenChance, TokenDetail, Usage};
use thalweg_protocol::limits::LOGPROBS_MAX;

use crate::fault::Fault;
use crate::limits::REMOTE_TEXT_BYTES_MAX;

/// A piece of text: what counts as a token here. A remote that tells likelihoods tells which tokens there are; of another it
/// is not known how many tokens a piece has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// How likely it was, but for its index, which is the reader's to say.
    pub(crate) detail: Option<Box<TokenDetail>>,
}

/// What is known of an answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pieces: VecDeque<Piece>,
    text_bytes: usize,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Cost>,
    #[serde(default)]
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    logprobs: Option<Likelihoods>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Likelihoods {
    #[serde(default)]
    content: Option<Vec<Likelihood>>,
}

#[derive(Deserialize)]
struct Likelihood {
    token: String,
    logprob: f32,
    #[serde(default)]
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    top_logprobs: Vec<Likelihood>,
}

#[derive(Deserialize)]
struct Cost {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<CostDetails>,
}

#[derive(Deserialize)]
struct CostDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Answer {
    /// Takes the data of one event in.
    pub(crate) fn read(&mut self, data: &[u8]) -> Result<(), Fault> {
        if self.done {
            return Ok(());
        }
        if data == b"[DONE]" {
            self.done = true;
            return match self.reason {
                Some(_) => Ok(()),
                None => Err(Fault::Garbage("it says that it is done, but not why")),
            };
        }
        let chunk: Chunk = serde_json::from_slice(data)
            .map_err(|_| Fault::Garbage("an event that is no chunk of a chat completion"))?;
        if chunk.error.is_some() {
            return Err(Fault::FailedInside);
        }
        if let Some(cost) = chunk.usage {
            let tokens = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
            let cached = cost.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
            self.usage = Some(Usage {
                prompt_tokens: tokens(cost.prompt_tokens),
                completion_tokens: tokens(cost.completion_tokens),
                cached_tokens: tokens(cached),
            });
        }
        // One answer was asked for.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            self.take(choice)?;
        }
        Ok(())
    }

    fn take(&mut self, choice: Choice) -> Result<(), Fault> {
        if self.reason.is_some() {
            return Ok(());
        }
        if let Some(text) = choice.delta.and_then(|delta| delta.content).filter(|text| !text.is_empty()) {
            self.text_bytes += text.len();
            if self.text_bytes > REMOTE_TEXT_BYTES_MAX {
                return Err(Fault::EndlessText);
            }
            let likelihoods = choice.logprobs.and_then(|all| all.content).unwrap_or_default();
            self.split(text, likelihoods);
        }
        self.reason = match choice.finish_reason.as_deref() {
            None => None,
            Some("length") => Some(FinishReason::Length),
            Some("content_filter") => return Err(Fault::Filtered),
            Some(_) => Some(FinishReason::Stop),
        };
        Ok(())
    }

    /// A text as its tokens, if it is told what they are; else as one.
    fn split(&mut self, text: String, likelihoods: Vec<Likelihood>) {
        let whole = likelihoods.iter().map(|one| one.token.as_str()).eq([text.as_str()])
            || likelihoods.iter().map(|one| one.token.as_str()).collect::<String>() == text;
        if likelihoods.is_empty() || !whole || likelihoods.iter().any(|one| one.token.is_empty()) {
            return self.pieces.push_back(Piece { text, detail: None });
        }
        for mut one in likelihoods {
            let text = std::mem::take(&mut one.token);
            one.top_logprobs.truncate(LOGPROBS_MAX.into());
            // A remote's vocabulary is not known here: tokens have no numbers.
            let chance = |one: &Likelihood| TokenChance {
                id: 0,
                text: one.bytes.clone().map_or_else(|| Bytes::from(one.token.clone()), Bytes::from),
                logprob: one.logprob,
            };
            let top = one.top_logprobs.iter().map(chance).collect();
            let bytes = one.bytes.map_or_else(|| Bytes::from(text.clone()), Bytes::from);
            let detail = TokenDetail { index: 0, id: 0, text: bytes, logprob: one.logprob, top };
            self.pieces.push_back(Piece { text, detail: Some(Box::new(detail)) });
        }
    }

    /// Whether there is a piece to take.
    pub(crate) fn has_piece(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// The next piece.
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        self.pieces.pop_front()
    }

    /// Nothing more comes in; why it ended and what it cost, if it is whole. Some say no `[DONE]`.
    pub(crate) fn end(&mut self) -> Result<(FinishReason, Option<Usage>), Fault> {
        self.done = true;
        self.reason.map(|reason| (reason, self.usage)).ok_or(Fault::Cut)
    }

    /// Whether it is whole.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// What it cost, if that was said.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type End = Result<(FinishReason, Option<Usage>), Fault>;

    fn read(events: &[&str]) -> (Vec<String>, End) {
        let mut answer = Answer::default();
        let mut failed = None;
        for event in events {
            if let Err(fault) = answer.read(event.as_bytes()) {
                failed.get_or_insert(fault);
            }
        }
        let pieces = std::iter::from_fn(|| answer.next_piece()).map(|piece| piece.text).collect();
        (pieces, failed.map_or_else(|| answer.end(), Err))
    }

    fn delta(text: &str) -> String {
        json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}).to_string()
    }

    #[test]
    fn chunks_make_an_answer_or_a_fault() {
        let check = |events: &[&str], pieces: &[&str], end: Result<(FinishReason, Option<Usage>), Fault>| {
            let (got, ended) = read(events);
            assert_eq!((got, ended), (pieces.iter().map(|piece| (*piece).to_owned()).collect(), end), "{events:?}");
        };
        let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}"#;
        let stop = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        let length = r#"{"choices":[{"index":0,"delta":null,"finish_reason":"length"}]}"#;
        let cost = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        let usage = Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: 4 };
        let (a, b) = (delta("a"), delta("b"));
        check(&[role, &a, &b, stop, cost, "[DONE]"], &["a", "b"], Ok((FinishReason::Stop, Some(usage))));
        check(&[&a, length, "[DONE]"], &["a"], Ok((FinishReason::Length, None)));
        check(&[&a, stop], &["a"], Ok((FinishReason::Stop, None)));
        check(&[stop, &a, "[DONE]", "junk"], &[], Ok((FinishReason::Stop, None)));
        check(&[&a], &["a"], Err(Fault::Cut));
        check(&[], &[], Err(Fault::Cut));
        check(&[&a, "[DONE]"], &["a"], Err(Fault::Garbage("it says that it is done, but not why")));
        check(&[&a, r#"{"error":{"message":"out of memory"}}"#], &["a"], Err(Fault::FailedInside));
        check(&["<html>"], &[], Err(Fault::Garbage("an event that is no chunk of a chat completion")));
        check(&[r#"{"choices":[{"delta":{},"finish_reason":"content_filter"}]}"#], &[], Err(Fault::Filtered));
        check(&[r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#, stop], &[], Ok((FinishReason::Stop, None)));
        let huge = delta(&"x".repeat(REMOTE_TEXT_BYTES_MAX + 1));
        check(&[&huge], &[], Err(Fault::EndlessText));
    }

    #[test]
    fn likelihoods_say_which_tokens_there_are() {
        let one = |token: &str| {
            let top =
                json!([{"token": token, "logprob": -0.5, "bytes": token.as_bytes()}, {"token": "z", "logprob": -3}]);
            json!({"token": token, "logprob": -0.5, "bytes": token.as_bytes(), "top_logprobs": top})
        };
        let event = |text: &str, all: serde_json::Value| {
            json!({"choices": [{"delta": {"content": text}, "logprobs": {"content": all}}]}).to_string()
        };
        let mut answer = Answer::default();
        answer.read(event("a bc", json!([one("a"), one(" bc")])).as_bytes()).expect("read");
        answer.read(event("d", json!([one("else")])).as_bytes()).expect("read");
        let pieces: Vec<Piece> = std::iter::from_fn(|| answer.next_piece()).collect();
        assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<Vec<_>>(), ["a", " bc", "d"]);
        let detail = pieces[1].detail.as_ref().expect("told");
        assert_eq!((detail.text.as_ref(), detail.logprob, detail.top.len()), (&b" bc"[..], -0.5, 2));
        assert!(pieces[2].detail.is_none(), "what does not fit the text is not believed");
    }
}
