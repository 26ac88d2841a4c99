//! What a remote is asked: the body of a request to `/chat/completions`.

use serde_json::{Map, Value, json};
use thalweg_protocol::generation::{Constraint, Role, Sampling};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_worker::stage::Submit;

/// The body for a generation, or what the remote cannot do of it.
pub(crate) fn body(submit: &Submit, remote_name: &str) -> Result<String, Reject> {
    let wrong = |text: &str| Err(Reject::new(RejectCode::ParameterInvalid, text.to_owned()));
    if !submit.produced.is_empty() {
        return wrong("the model is run elsewhere, where an answer that was interrupted does not go on; ask again");
    }
    if submit.raw {
        return wrong("raw: the model is run elsewhere and takes conversations only; send messages");
    }
    let Sampling { temperature, top_p, frequency_penalty, presence_penalty, max_tokens, .. } = submit.sampling;
    let default = Sampling::default();
    let only_here = [
        ("top_k", submit.sampling.top_k != default.top_k),
        ("min_p", submit.sampling.min_p != default.min_p),
        ("repetition_penalty", submit.sampling.repetition_penalty != default.repetition_penalty),
    ];
    if let Some((field, _)) = only_here.iter().find(|(_, given)| *given) {
        return wrong(&format!("{field}: the model is run elsewhere, where this is not known; leave it out"));
    }
    let messages: Vec<Value> = submit
        .messages
        .iter()
        .map(|message| {
            // What a function gave is part of the conversation here; there it would have to name a call.
            let role = if message.role == Role::Tool { Role::User } else { message.role };
            json!({"role": role.as_str(), "content": message.content})
        })
        .collect();
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("model", json!(remote_name));
    put("messages", json!(messages));
    put("stream", json!(true));
    put("stream_options", json!({"include_usage": true}));
    put("max_tokens", json!(max_tokens));
    put("temperature", number(temperature));
    put("top_p", number(top_p));
    // Others read it as a signed number.
    put("seed", json!(submit.sampling.seed & i64::MAX as u64));
    if frequency_penalty != 0.0 {
        put("frequency_penalty", number(frequency_penalty));
    }
    if presence_penalty != 0.0 {
        put("presence_penalty", number(presence_penalty));
    }
    if !submit.sampling.stop.is_empty() {
        put("stop", json!(submit.sampling.stop));
    }
    if !submit.sampling.logit_bias.is_empty() {
        let biases = submit.sampling.logit_bias.iter().map(|(id, bias)| (id.to_string(), number(*bias)));
        put("logit_bias", Value::Object(biases.collect()));
    }
    if let Some(count) = submit.sampling.logprobs {
        put("logprobs", json!(true));
        put("top_logprobs", json!(count));
    }
    if let Some(format) = response_format(&submit.sampling.constraint)? {
        put("response_format", format);
    }
    Ok(Value::Object(body).to_string())
}

fn response_format(constraint: &Constraint) -> Result<Option<Value>, Reject> {
    let wrong = |text: String| Reject::new(RejectCode::ConstraintInvalid, text);
    match constraint {
        Constraint::None => Ok(None),
        Constraint::Json => Ok(Some(json!({"type": "json_object"}))),
        Constraint::JsonSchema(schema) => {
            let schema: Value =
                serde_json::from_str(schema).map_err(|error| wrong(format!("json_schema is no JSON: {error}")))?;
            let schema = json!({"name": "answer", "schema": schema, "strict": true});
            Ok(Some(json!({"type": "json_schema", "json_schema": schema})))
        }
        Constraint::Regex(_) | Constraint::Lark(_) => {
            let kind = constraint.as_str();
            Err(wrong(format!("{kind}: the model is run elsewhere and follows JSON and JSON schemas only")))
        }
    }
}

/// The number as it was written: 0.7 rather than 0.699999988079071.
fn number(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use thalweg_protocol::generation::{ChatMessage, Priority};
    use thalweg_protocol::ids::{GenerationId, Name};

    use super::*;

    fn submit() -> Submit {
        Submit {
            generation: GenerationId(1),
            tenant: Name::new("default").expect("a name"),
            model: None,
            messages: vec![
                ChatMessage { role: Role::System, content: "Be \"brief\".".into() },
                ChatMessage { role: Role::Tool, content: "4".into() },
            ],
            sampling: Sampling { max_tokens: 8, seed: u64::MAX, ..Sampling::default() },
            produced: Vec::new(),
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
            credit: 8,
            submitted: Instant::now(),
            traced: false,
        }
    }

    #[test]
    fn what_can_be_asked_is_asked_in_the_words_of_the_api() {
        let check = |change: &dyn Fn(&mut Submit), expected: Value| {
            let mut submit = submit();
            change(&mut submit);
            let body: Value = serde_json::from_str(&body(&submit, "there").expect("it can be asked")).expect("JSON");
            for (key, value) in expected.as_object().expect("an object") {
                assert_eq!(&body[key], value, "{key}");
            }
        };
        let messages = json!([{"role": "system", "content": "Be \"brief\"."}, {"role": "user", "content": "4"}]);
        check(
            &|_| {},
            json!({
                "model": "there", "messages": messages, "stream": true, "stream_options": {"include_usage": true},
                "max_tokens": 8, "temperature": 0.7, "top_p": 0.95, "seed": i64::MAX, "stop": null, "logprobs": null,
                "response_format": null, "logit_bias": null, "frequency_penalty": null,
            }),
        );
        check(
            &|submit| {
                let sampling = &mut submit.sampling;
                (sampling.frequency_penalty, sampling.presence_penalty) = (0.5, -0.1);
                (sampling.stop, sampling.logprobs) = (vec!["x".into()], Some(3));
                sampling.logit_bias = vec![(7, -1.5)];
            },
            json!({
                "frequency_penalty": 0.5, "presence_penalty": -0.1, "stop": ["x"], "logprobs": true, "top_logprobs": 3,
                "logit_bias": {"7": -1.5},
            }),
        );
        check(
            &|submit| submit.sampling.constraint = Constraint::Json,
            json!({"response_format": {"type": "json_object"}}),
        );
        let schema = json!({"name": "answer", "schema": {"type": "object"}, "strict": true});
        check(
            &|submit| submit.sampling.constraint = Constraint::JsonSchema("{\"type\":\"object\"}".into()),
            json!({"response_format": {"type": "json_schema", "json_schema": schema}}),
        );
    }

    #[test]
    fn what_a_remote_cannot_is_refused_by_name() {
        let check = |change: &dyn Fn(&mut Submit), code: RejectCode, part: &str| {
            let mut submit = submit();
            change(&mut submit);
            let reject = body(&submit, "there").expect_err("refused");
            assert_eq!(reject.code, code);
            assert!(reject.message.contains(part), "{reject}");
        };
        check(&|s| s.produced = vec![1], RejectCode::ParameterInvalid, "does not go on");
        check(&|s| s.raw = true, RejectCode::ParameterInvalid, "raw");
        check(&|s| s.sampling.top_k = 4, RejectCode::ParameterInvalid, "top_k");
        check(&|s| s.sampling.min_p = 0.1, RejectCode::ParameterInvalid, "min_p");
        check(&|s| s.sampling.repetition_penalty = 1.1, RejectCode::ParameterInvalid, "repetition_penalty");
        let constraint = |constraint: Constraint| move |s: &mut Submit| s.sampling.constraint = constraint.clone();
        check(&constraint(Constraint::Regex("a".into())), RejectCode::ConstraintInvalid, "regex");
        check(&constraint(Constraint::Lark("start: a".into())), RejectCode::ConstraintInvalid, "lark");
        check(&constraint(Constraint::JsonSchema("{".into())), RejectCode::ConstraintInvalid, "json_schema");
    }
}
