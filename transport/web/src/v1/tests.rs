//! From bodies to what a core is asked, and from mistakes to what a client is told.

use std::collections::BTreeSet;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::Value;
use thalweg_protocol::generation::{AskRequest, Constraint, Priority, Role};

use super::chat::Plan;
use super::parameters::{ChatRequest, CompletionRequest, EmbeddingRequest};
use super::tools::Calling;
use super::{OPENAPI, chat, completions, intake};
use crate::error::Refusal;

fn chat_of(body: &str) -> Result<Plan, Refusal> {
    chat::plan(intake::parse(body.as_bytes())?)
}

fn completion_of(body: &str) -> Result<Plan, Refusal> {
    completions::plan(intake::parse(body.as_bytes())?)
}

/// A chat request with one message and these other fields.
fn with(fields: &str) -> String {
    format!(r#"{{"messages": [{{"role": "user", "content": "hi"}}]{fields}}}"#)
}

#[test]
fn every_knob_arrives() {
    let check = |fields: &str, holds: fn(&AskRequest) -> bool| {
        let plan = chat_of(&with(fields)).expect(fields);
        assert!(holds(&plan.asks[0]), "{fields}: {:?}", plan.asks[0]);
    };
    check("", |ask| ask.model.is_none() && !ask.has_seed && !ask.raw && ask.sampling.max_tokens == 512);
    check("", |ask| ask.sampling.temperature == 1.0 && ask.sampling.top_p == 1.0);
    check(r#", "model": "m""#, |ask| ask.model.as_ref().is_some_and(|model| model.as_str() == "m"));
    check(r#", "temperature": 0, "top_p": 0.5"#, |ask| ask.sampling.temperature == 0.0 && ask.sampling.top_p == 0.5);
    check(r#", "top_p": 0"#, |ask| ask.sampling.top_p > 0.0);
    check(r#", "top_k": -1, "min_p": 0.1"#, |ask| ask.sampling.top_k == 0 && ask.sampling.min_p == 0.1);
    check(r#", "seed": -1"#, |ask| ask.has_seed && ask.sampling.seed == u64::MAX);
    check(r#", "max_tokens": 5"#, |ask| ask.sampling.max_tokens == 5);
    check(r#", "max_tokens": 5, "max_completion_tokens": 6"#, |ask| ask.sampling.max_tokens == 6);
    check(r#", "stop": "a""#, |ask| ask.sampling.stop == ["a"]);
    check(r#", "stop": ["a", "", "b"]"#, |ask| ask.sampling.stop == ["a", "b"]);
    check(r#", "stop": null, "stream": null, "tools": null, "n": null"#, |ask| ask.sampling.stop.is_empty());
    check(r#", "logit_bias": {"7": -100}"#, |ask| ask.sampling.logit_bias == [(7, -100.0)]);
    check(r#", "repetition_penalty": 1.5"#, |ask| ask.sampling.repetition_penalty == 1.5);
    check(r#", "frequency_penalty": -2"#, |ask| ask.sampling.frequency_penalty == -2.0);
    check(r#", "presence_penalty": 2"#, |ask| ask.sampling.presence_penalty == 2.0);
    check(r#", "logprobs": true"#, |ask| ask.sampling.logprobs == Some(0));
    check(r#", "logprobs": true, "top_logprobs": 20"#, |ask| ask.sampling.logprobs == Some(20));
    check(r#", "response_format": {"type": "text"}"#, |ask| ask.sampling.constraint == Constraint::None);
    check(r#", "response_format": {"type": "json_object"}"#, |ask| ask.sampling.constraint == Constraint::Json);
    let schema =
        r#", "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"b": 1, "a": 2}}}"#;
    check(schema, |ask| ask.sampling.constraint == Constraint::JsonSchema(r#"{"b": 1, "a": 2}"#.into()));
    check(r#", "service_tier": "flex""#, |ask| ask.priority == Priority::Low);
    check(r#", "user": "u", "metadata": {"a": "b"}, "made_up": 5"#, |ask| ask.messages.len() == 1);
}

#[test]
fn messages_become_a_conversation() {
    let check = |messages: &str, expected: &[(Role, &str)]| {
        let plan = chat_of(&format!(r#"{{"messages": {messages}}}"#)).expect(messages);
        let found: Vec<_> = plan.asks[0].messages.iter().map(|m| (m.role, m.content.as_str())).collect();
        assert_eq!(found, expected, "{messages}");
    };
    check(
        r#"[{"role": "developer", "content": "be brief"}, {"role": "user", "content": [
            {"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"}]"#,
        &[(Role::System, "be brief"), (Role::User, "ab")],
    );
    check(
        r#"[{"role": "user", "content": "weather?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "w", "arguments": "{\"at\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "sun"}]"#,
        &[
            (Role::User, "weather?"),
            (Role::Assistant, "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"at\": 1}}\n</tool_call>"),
            (Role::Tool, "sun"),
        ],
    );
}

#[test]
fn several_answers_have_several_seeds() {
    let plan = chat_of(&with(r#", "n": 3, "seed": 5, "stream": true, "stream_options": {"include_usage": true}"#));
    let plan = plan.expect("fine");
    let seeds: Vec<_> = plan.asks.iter().map(|ask| ask.sampling.seed).collect();
    assert_eq!((seeds, plan.per_prompt, plan.stream, plan.include_usage), (vec![5, 6, 7], 3, true, true));
    let plan = completion_of(r#"{"prompt": ["a", "b"], "n": 2, "logprobs": 5}"#).expect("fine");
    let prompts: Vec<_> = plan.asks.iter().map(|ask| ask.messages[0].content.as_str()).collect();
    assert_eq!((prompts, plan.per_prompt), (vec!["a", "a", "b", "b"], 2));
    assert!(plan.asks.iter().all(|ask| ask.raw && ask.sampling.max_tokens == 16 && ask.sampling.logprobs == Some(5)));
}

#[test]
fn functions_are_told_and_held_to() {
    let tools = r#", "tools": [{"type": "function", "function": {"name": "f"}}]"#;
    let check = |choice: &str, calling: Calling, messages: usize| {
        let plan = chat_of(&with(&format!("{tools}{choice}"))).expect(choice);
        assert_eq!((plan.calling, plan.asks[0].messages.len()), (calling, messages), "{choice}");
    };
    check("", Calling::May, 2);
    check(r#", "tool_choice": "none""#, Calling::Off, 1);
    check(r#", "tool_choice": "required""#, Calling::Must, 2);
    check(r#", "tool_choice": {"type": "function", "function": {"name": "f"}}"#, Calling::Must, 2);
}

#[test]
fn mistakes_are_told_by_field_line_and_column() {
    let check = |result: Result<Plan, Refusal>, code: &str, param: Option<&str>, says: &str| {
        let refusal = result.err().unwrap_or_else(|| panic!("accepted, instead of {says:?}"));
        assert_eq!((refusal.status.as_u16(), refusal.code), (400, code), "{refusal:?}");
        assert_eq!(refusal.param.as_deref(), param, "{refusal:?}");
        assert!(refusal.message.contains(says), "{refusal:?}");
    };
    let field =
        |fields: &str, param: &str, says: &str| check(chat_of(&with(fields)), "parameter_invalid", Some(param), says);
    check(chat_of("{\"messages\": [}"), "json_invalid", None, "at line 1 column 15");
    check(chat_of("{\n\n oops"), "json_invalid", None, "at line 3 column");
    check(chat_of("{}"), "parameter_invalid", None, "missing field `messages`");
    check(chat_of(&(with("") + " x")), "json_invalid", None, "trailing characters");
    check(chat_of("[]"), "parameter_invalid", None, "invalid type: ");
    check(chat_of(r#"{"messages": []}"#), "parameter_invalid", Some("messages"), "at least one");
    let role = r#"{"messages": [{"role": "king", "content": "x"}]}"#;
    check(chat_of(role), "parameter_invalid", Some("messages[0].role"), "unknown variant `king`");
    let content = r#"{"messages": [{"role": "user"}]}"#;
    check(chat_of(content), "parameter_invalid", Some("messages[0].content"), "missing");
    let image = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}"#;
    check(chat_of(image), "parameter_invalid", Some("messages[0].content"), "\"image_url\"");
    field(r#", "temperature": "hot""#, "temperature", "invalid type: string");
    field(r#", "temperature": 3"#, "temperature", "between 0 and 2");
    field(r#", "n": 1000000"#, "n", "between 1 and 16");
    field(r#", "n": 0"#, "n", "between 1 and 16");
    field(r#", "max_tokens": 100000"#, "max_tokens", "between 1 and 8192");
    field(r#", "max_tokens": 99999999999"#, "max_tokens", "expected u32");
    field(r#", "stop": 5"#, "stop", "expected a string or an array of strings");
    field(r#", "stop": ["1","2","3","4","5","6","7","8","9"]"#, "stop", "at most 8");
    field(r#", "logit_bias": {"x": 1}"#, "logit_bias", "no number of a token");
    field(r#", "logit_bias": {"1": 101}"#, "logit_bias", "between -100 and 100");
    field(r#", "top_logprobs": 3"#, "top_logprobs", "needs logprobs");
    field(r#", "logprobs": true, "top_logprobs": 21"#, "top_logprobs", "at most 20");
    field(r#", "stream_options": {}"#, "stream_options", "set stream");
    field(r#", "response_format": {"type": "xml"}"#, "response_format.type", "unknown variant");
    field(r#", "response_format": {"type": "json_schema"}"#, "response_format.json_schema", "missing");
    let schema = r#", "response_format": {"type": "text", "json_schema": {"schema": [1]}}"#;
    field(schema, "response_format.json_schema", "no object");
    field(r#", "functions": []"#, "functions", "as tools");
    field(r#", "function_call": "auto""#, "function_call", "tool_choice");
    field(r#", "modalities": ["text", "audio"]"#, "modalities", "but for text");
    field(r#", "audio": {}"#, "audio", "text only");
    field(r#", "store": true"#, "store", "not kept");
    field(r#", "web_search_options": {}"#, "web_search_options", "searches nothing");
    field(r#", "tool_choice": "required""#, "tool_choice", "names none");
    field(r#", "tool_choice": "sometimes""#, "tool_choice", "expected none, auto, required");
    let completion = |body: &str, param: &str, says: &str| {
        check(completion_of(body), "parameter_invalid", Some(param), says);
    };
    completion(r#"{"prompt": ""}"#, "prompt", "empty");
    completion(r#"{"prompt": []}"#, "prompt", "empty");
    completion(r#"{"prompt": [1, 2]}"#, "prompt", "an array of strings");
    completion(r#"{"prompt": ["1","2","3","4","5","6","7","8","9"], "n": 2}"#, "prompt", "18 answers");
    completion(r#"{"prompt": "x", "echo": true}"#, "echo", "not supported");
    completion(r#"{"prompt": "x", "suffix": "y"}"#, "suffix", "not supported");
    completion(r#"{"prompt": "x", "best_of": 3}"#, "best_of", "not supported");
    completion(r#"{"prompt": "x", "logprobs": 6}"#, "logprobs", "at most 5");
}

/// Learns which fields a type reads, by letting it ask.
struct Fields(Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for &mut Fields {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("only asked"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0 = Some(fields);
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields_of<T: DeserializeOwned>() -> BTreeSet<&'static str> {
    let mut fields = Fields(None);
    drop(T::deserialize(&mut fields));
    fields.0.expect("it is a struct").iter().copied().collect()
}

#[test]
fn the_document_names_what_is_read() {
    let document: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
    let check = |schema: &str, mut read: BTreeSet<&'static str>, refused: &[&str]| {
        let named = &document["components"]["schemas"][schema]["properties"];
        let named: BTreeSet<_> = named.as_object().expect("properties").keys().map(String::as_str).collect();
        read.retain(|field| !refused.contains(field));
        assert_eq!(named, read, "{schema}");
    };
    let refused = ["functions", "function_call", "audio", "web_search_options"];
    check("ChatRequest", fields_of::<ChatRequest>(), &refused);
    check("CompletionRequest", fields_of::<CompletionRequest>(), &[]);
    check("EmbeddingRequest", fields_of::<EmbeddingRequest>(), &[]);
    check("Message", fields_of::<super::parameters::Message>(), &refused);
    check("ResponseFormat", fields_of::<super::parameters::ResponseFormat>(), &[]);
    let text = document["info"]["description"].as_str().expect("a text");
    assert!(refused.iter().all(|field| text.contains(field)), "{text}");
    for reference in OPENAPI.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().expect("a name");
        assert!(document["components"]["schemas"].get(name).is_some(), "{name} is not there");
    }
}
