//! Constraints: whatever the logits want, the text is what it has to be; and what cannot be followed is refused by name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use thalweg_protocol::generation::{ChatMessage, Constraint, FinishReason, Priority, Role, Sampling, TokenDetail};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::Bell;
use thalweg_worker::constraint::Grammars;
use thalweg_worker::sampling::Sampler;
use thalweg_worker::stage::{Command, CoreLink, Event, LoadedModel, ModelSource, Stage, Submit, start_loaded};

const END: u32 = 0;

/// A vocabulary of all bytes and some longer tokens, as models have them.
fn words() -> Vec<Box<[u8]>> {
    let bytes = (0..=u8::MAX).map(|byte| vec![byte].into_boxed_slice());
    let longer =
        ["\": \"", "\":", "{\"", "\"}", "\", \"", "true", "null", "12", " a", "ing", "é", "},", "]}", "\n  ", "name"];
    let longer = longer.map(|text| text.as_bytes().to_vec().into_boxed_slice());
    std::iter::once(Box::default()).chain(bytes).chain(longer).collect()
}

fn grammars() -> Grammars {
    Grammars::new(&words(), &[END]).expect("a vocabulary")
}

/// Numbers between 0 and 1, of a seed.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    }
}

/// A text that a model of random weights writes under a constraint, and the tokens of it.
fn write(grammars: &Grammars, constraint: &Constraint, seed: u64) -> (String, Vec<u32>) {
    let words = words();
    let mut follower = grammars.compile(constraint).expect("a constraint");
    let (mut random, mut sampler) = (random(seed), Sampler::default());
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed, ..Sampling::default() };
    let (mut text, mut tokens) = (Vec::new(), Vec::new());
    for position in 0..20_000 {
        let mut logits: Vec<f32> = words.iter().map(|_| random() * 3.0).collect();
        // What closes is likely, so that texts end.
        b"\"}],.".iter().for_each(|&byte| logits[byte as usize + 1] += 5.0);
        logits[END as usize] += 5.0;
        let allowed = follower.allowed().expect("the constraint is followed");
        let token = sampler.draw_among(&logits, &sampling, position, None, Some(allowed)).expect("a token");
        let complete = follower.push(token).expect("what is allowed can be taken");
        tokens.push(token);
        text.extend_from_slice(&words[token as usize]);
        if complete || token == END {
            return (String::from_utf8(text).expect("whole characters"), tokens);
        }
    }
    panic!("{constraint:?} did not end: {}", String::from_utf8_lossy(&text));
}

/// Whether a value is what a schema wants, as far as the schemas of these tests go.
fn satisfies(value: &Value, schema: &Value, root: &Value) -> bool {
    let Value::Object(schema) = schema else { return *schema == Value::Bool(true) };
    schema.iter().all(|(keyword, wanted)| match (keyword.as_str(), value) {
        ("$ref", _) => {
            let pointer = wanted.as_str().expect("a text").trim_start_matches('#');
            satisfies(value, root.pointer(pointer).expect("it is there"), root)
        }
        ("type", _) => match wanted.as_str().expect("a text") {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            other => panic!("type {other}"),
        },
        ("enum", _) => wanted.as_array().expect("a list").contains(value),
        ("const", _) => wanted == value,
        ("anyOf", _) => wanted.as_array().expect("a list").iter().any(|wanted| satisfies(value, wanted, root)),
        ("minimum", _) => value.as_f64() >= wanted.as_f64(),
        ("maximum", _) => value.as_f64() <= wanted.as_f64(),
        ("minLength", Value::String(text)) => text.chars().count() as u64 >= wanted.as_u64().expect("a number"),
        ("maxLength", Value::String(text)) => text.chars().count() as u64 <= wanted.as_u64().expect("a number"),
        ("minItems", Value::Array(items)) => items.len() as u64 >= wanted.as_u64().expect("a number"),
        ("maxItems", Value::Array(items)) => items.len() as u64 <= wanted.as_u64().expect("a number"),
        ("items", Value::Array(items)) => items.iter().all(|item| satisfies(item, wanted, root)),
        ("required", Value::Object(fields)) => {
            wanted.as_array().expect("a list").iter().all(|name| fields.contains_key(name.as_str().expect("a name")))
        }
        ("properties", Value::Object(fields)) => {
            fields.iter().all(|(name, field)| wanted.get(name).is_none_or(|wanted| satisfies(field, wanted, root)))
        }
        ("additionalProperties", Value::Object(fields)) => {
            assert_eq!(*wanted, Value::Bool(false));
            fields.keys().all(|name| schema["properties"].get(name).is_some())
        }
        ("$defs", _) => true,
        (keyword, value) => panic!("{keyword} of {value}"),
    })
}

#[test]
fn json_is_what_its_schema_wants_whatever_the_logits_want() {
    let grammars = grammars();
    let schemas = [
        r#"{"type":"object","properties":{"name":{"type":"string","maxLength":20},"age":{"type":"integer","minimum":0,"maximum":150}},"required":["name","age"],"additionalProperties":false}"#,
        r#"{"type":"array","items":{"enum":["red","green","blå"]},"minItems":2,"maxItems":6}"#,
        r#"{"anyOf":[{"type":"boolean"},{"const":"so\"me"},{"type":"number"}]}"#,
        r##"{"$defs":{"tree":{"type":"object","properties":{"value":{"type":"integer"},"left":{"$ref":"#/$defs/tree"},"right":{"$ref":"#/$defs/tree"}},"required":["value"],"additionalProperties":false}},"$ref":"#/$defs/tree"}"##,
        r#"{"type":"string","minLength":3,"maxLength":9}"#,
        r#"{"type":"object","properties":{"at":{"type":"string","maxLength":40},"tags":{"type":"array","items":{"type":"string","maxLength":8},"maxItems":4},"deep":{"type":"object","properties":{"x":{"type":"number"}},"required":["x"],"additionalProperties":false}},"required":["at","tags","deep"],"additionalProperties":false}"#,
        "true",
    ];
    for text in schemas {
        let schema: Value = serde_json::from_str(text).expect("a schema");
        for seed in 0..25 {
            let (written, _) = write(&grammars, &Constraint::JsonSchema(text.into()), seed);
            let value: Value =
                serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written:?} of {text}"));
            assert!(satisfies(&value, &schema, &schema), "{written} is not what {text} wants");
            assert!(!written.contains('\n'), "tokens spent on white space: {written:?}");
        }
    }
    let short =
        r#"{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],"additionalProperties":false}"#;
    for seed in 0..100 {
        let (written, tokens) = write(&grammars, &Constraint::JsonSchema(short.into()), seed);
        assert!(tokens.len() <= r#"{ "ok" : false }"#.len() + 1, "a space at most between two parts: {written:?}");
    }
    let sevens = Constraint::JsonSchema(r#"{"type":"integer","multipleOf":7}"#.into());
    for seed in 0..25 {
        // Of as many digits as the model likes: more than the numbers of this test's own parser have.
        let (written, _) = write(&grammars, &sevens, seed);
        let digits = written.strip_prefix('-').unwrap_or(&written);
        assert!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()), "{written}");
        let remainder = digits.bytes().fold(0, |left, digit| (left * 10 + u32::from(digit - b'0')) % 7);
        assert!(remainder == 0 && (digits == "0" || !digits.starts_with('0')), "{written}");
    }
    for seed in 0..25 {
        let (written, tokens) = write(&grammars, &Constraint::Json, seed);
        let value: Value = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written:?}"));
        assert!(value.is_object(), "{written}");
        assert_eq!((written, tokens), write(&grammars, &Constraint::Json, seed), "the same seed writes the same");
    }
}

#[test]
fn expressions_and_grammars_are_matched_as_a_whole() {
    let grammars = grammars();
    let date = |text: &str| {
        let digits = |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = text.split('-').collect();
        matches!(parts[..], [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2))
    };
    let sum = |text: &str| text.split(" + ").all(|part| part == "é" || part.trim_matches(['(', ')']).contains('é'));
    for seed in 0..25 {
        let (text, _) = write(&grammars, &Constraint::Regex("yes|no/maybe".into()), seed);
        assert!(text == "yes" || text == "no/maybe", "{text}");
        let (text, _) = write(&grammars, &Constraint::Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}".into()), seed);
        assert!(date(&text), "{text}");
        let grammar = "start: term (\" + \" term){0,3}\nterm: \"é\" | \"(\" start \")\"\n";
        let (text, _) = write(&grammars, &Constraint::Lark(grammar.into()), seed);
        assert!(sum(&text) && text.matches('(').count() == text.matches(')').count(), "{text}");
        let grammar = "start: \"<\" %json {\"enum\": [1, 2]} \">\" | \"!\" %json {\"const\": null} \"\\n\"\n";
        let (text, _) = write(&grammars, &Constraint::Lark(grammar.into()), seed);
        assert!(["<1>", "<2>", "!null\n"].contains(&text.as_str()), "{text:?}");
    }
}

/// A schema of so many objects inside of it, these.
fn fields(count: usize, each: &str) -> Constraint {
    let fields: Vec<String> = (0..count).map(|n| format!(r#""p{n}":{each}"#)).collect();
    Constraint::JsonSchema(format!(r#"{{"type":"object","properties":{{{}}}}}"#, fields.join(",")))
}

/// A schema of so many references, each to the next.
fn chain(count: usize) -> Constraint {
    let links: Vec<String> = (1..count).map(|n| format!(r##""d{n}":{{"$ref":"#/$defs/d{}"}}"##, n + 1)).collect();
    let last = format!(r#""d{count}":{{"type":"integer"}}"#);
    let links = links.iter().map(String::as_str).chain([last.as_str()]).collect::<Vec<_>>().join(",");
    Constraint::JsonSchema(format!(r##"{{"$defs":{{{links}}},"$ref":"#/$defs/d1"}}"##))
}

/// A grammar of so many lines, each rule naming the next.
fn rules(count: usize) -> Constraint {
    let rules: String = (1..count).map(|n| format!("r{n}: \"a\" r{} | \"b\"\n", n + 1)).collect();
    Constraint::Lark(format!("{}r{count}: \"c\"\n", rules.replacen("r1:", "start:", 1)))
}

/// A stack that overflows ends the process, so that nothing a request may ask for can be nested so deep: shown on half of
/// what threads have that follow constraints.
#[test]
fn what_is_nested_as_deep_as_it_may_be_does_not_exhaust_the_stack() {
    let deep = |levels: usize, inside: &str| {
        format!("{}{inside}{}", r#"{"type":"array","items":"#.repeat(levels), "}".repeat(levels))
    };
    let defs: Vec<String> = (0..8)
        .map(|n| format!(r##""d{n}":{}"##, deep(120, &format!(r##"{{"$ref":"#/$defs/d{}"}}"##, n + 1))))
        .collect();
    let nested = format!(r##"{{"$defs":{{{},"d8":{{"type":"integer"}}}},"$ref":"#/$defs/d0"}}"##, defs.join(","));
    let terminals = {
        let rules: String = (1..399).map(|n| format!("R{n}: \"a\" R{} | \"b\"\n", n + 1)).collect();
        Constraint::Lark(format!("start: R1\n{rules}R399: \"c\"\n"))
    };
    let all: Vec<String> = (0..9).map(|n| format!(r#"{{"type":"string","pattern":".*{n}.*"}}"#)).collect();
    let all = [
        chain(200),
        rules(400),
        terminals,
        Constraint::JsonSchema(nested),
        fields(998, "{}"),
        Constraint::JsonSchema(format!(r#"{{"allOf":[{}]}}"#, all.join(","))),
        Constraint::Lark(format!("start: A\nA: {}/b/", "/.*a.*/ & ".repeat(7))),
        Constraint::Regex("[a-z]?".repeat(3_000)),
    ];
    let follow = move || {
        let grammars = grammars();
        for constraint in all {
            let start = Instant::now();
            match grammars.compile(&constraint) {
                Ok(mut follower) => drop(follower.allowed().map(|_| ())),
                Err(reject) => assert_eq!(reject.code, RejectCode::ConstraintInvalid),
            }
            println!("{:?} for {}", start.elapsed(), &format!("{constraint:?}")[..40]);
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(follow).expect("a thread").join().expect("it ends");
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    let grammars = grammars();
    let check = |constraint: Constraint, expected: &str| {
        for _ in 0..2 {
            let reject = grammars.compile(&constraint).err().unwrap_or_else(|| panic!("{constraint:?} was compiled"));
            assert_eq!(reject.code, RejectCode::ConstraintInvalid);
            assert!(reject.message.contains(expected), "{reject} does not say {expected:?}");
        }
        assert!(grammars.is_known(&constraint), "the refusal is kept");
    };
    let schema = |text: &str| Constraint::JsonSchema(text.into());
    check(schema("{"), "it is not JSON: EOF");
    check(schema("[1]"), "it is [1]; a schema is an object or a boolean");
    check(schema("false"), "it is false, which no text satisfies");
    check(schema(r#"{"type":"integer","minimum":5,"maximum":3}"#), "minimum (5) is greater than maximum (3)");
    check(schema(r#"{"type":"object","properties":{"a":false},"required":["a"]}"#), "required property 'a'");
    check(schema(r#"{"not":{"type":"string"}}"#), "not");
    check(schema(r#"{"$ref":"http://example.com/x.json"}"#), "example.com");
    check(schema(r##"{"$ref":"#"}"##), "no text satisfies it");
    check(schema(r##"{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}"##), "no text");
    check(
        schema(r#"{"type":"object","properties":{"a/b":{"type":"integer","multipleOf":123456789}}}"#),
        "#/properties/a~1b/multipleOf is 123456789; its digits are at most 10000",
    );
    check(schema(r#"{"type":"array","items":[{"multipleOf":1e-9}]}"#), "#/items/0/multipleOf");
    let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    check(schema(&nested), "recursion limit");
    check(fields(1_000, r#"{"type":"string","pattern":"^a{1,9}b$"}"#), "more than 1000 objects");
    check(chain(201), "more than 200 references");
    let all: Vec<String> = (0..10).map(|n| format!(r#"{{"type":"string","pattern":".*{n}.*"}}"#)).collect();
    check(schema(&format!(r#"{{"allOf":[{}]}}"#, all.join(","))), "more than 8 schemas to be satisfied at once");
    check(rules(401), "more than 400 lines");
    check(Constraint::Lark(format!("start: A\nA: {}/b/", "/.*a.*/ & ".repeat(8))), "at once");
    check(Constraint::Regex("(a".into()), "regex");
    check(Constraint::Regex("[a&&b]".into()), "no text satisfies it");
    check(Constraint::Lark("start: nothing".into()), "unknown name");
    check(Constraint::Lark("start: %json { \"multipleOf\": 99999999 }".into()), "%json #/multipleOf is 99999999");
    check(Constraint::Lark("start: %json [1".into()), "no schema follows %json: EOF");
    check(Constraint::Lark("start: %json false".into()), "it is false");
    check(Constraint::Lark("start: \"a\n".into()), "lark");
    check(Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(9_000), ")".repeat(9_000))), "too deeply nested");
}

#[test]
fn compiled_constraints_are_kept_up_to_a_number() {
    let grammars = grammars();
    let numbered = |n: u32| Constraint::Regex(format!("a{n}"));
    (0..40).for_each(|n| assert!(grammars.compile(&numbered(n)).is_ok()));
    assert!(!grammars.is_known(&numbered(7)) && grammars.is_known(&numbered(8)), "the last 32");
    assert!(grammars.known(&numbered(8)).is_some_and(|known| known.is_ok()));
    assert!(grammars.compile(&numbered(40)).is_ok());
    assert!(grammars.is_known(&numbered(8)) && !grammars.is_known(&numbered(9)), "used least recently goes first");
    assert!(grammars.known(&numbered(9)).is_none());
}

/// What became of a generation.
#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    details: Vec<TokenDetail>,
    end: Option<Result<FinishReason, Reject>>,
    message: String,
}

/// The real model behind a stage.
struct Bench {
    _stage: Stage,
    link: CoreLink,
    bell: Arc<Bell>,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        let home = || std::path::PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
        let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, Into::into).join("thalweg/models");
        let models = std::env::var_os("THALWEG_MODELS").map_or_else(cache, Into::into);
        let path = models.join("smollm2-135m/model.gguf");
        assert!(path.is_file(), "{} is missing: run `thalweg models pull smollm2-135m` first", path.display());
        let name = Name::new("smollm2-135m").expect("a name");
        let loaded = LoadedModel::load(&ModelSource { name, path }).expect("the model loads");
        let bell = Bell::new().expect("an eventfd");
        let (stage, links) =
            start_loaded(vec![loaded], 1, &[], 256, Some(64 << 20), &[Arc::clone(&bell)]).expect("the stage starts");
        Self { _stage: stage, link: links.into_iter().next().expect("a link"), bell, next: 1 }
    }

    /// Asks `prompt` and takes the whole answer.
    fn ask(&mut self, prompt: &str, change: impl FnOnce(&mut Submit)) -> Answer {
        let mut submit = Submit {
            generation: GenerationId(self.next),
            tenant: Name::new("default").expect("a name"),
            model: None,
            messages: vec![ChatMessage { role: Role::User, content: prompt.into() }],
            sampling: Sampling { temperature: 0.8, seed: 7, max_tokens: 160, ..Sampling::default() },
            produced: Vec::new(),
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
            credit: u32::MAX,
            submitted: Instant::now(),
            traced: false,
        };
        change(&mut submit);
        self.next += 1;
        assert!(self.link.send(Command::Submit(Box::new(submit))).is_ok(), "the ring has room");
        let mut answer = Answer::default();
        while answer.end.is_none() {
            match self.link.receive() {
                Some(Event::Token { id, text, detail, .. }) => {
                    answer.ids.push(id);
                    answer.text += std::str::from_utf8(&text).expect("whole characters");
                    answer.details.extend(detail.map(|detail| *detail));
                }
                Some(Event::Finished { reason, message, .. }) => {
                    (answer.end, answer.message) = (Some(Ok(reason)), message);
                }
                Some(Event::Refused { reject, .. }) => answer.end = Some(Err(reject)),
                Some(_) => {}
                None => {
                    self.bell.prepare();
                    if self.link.is_empty() {
                        self.bell.wait(Some(Duration::from_secs(60)));
                        assert!(!self.link.is_empty(), "nothing happened for a minute: {answer:?}");
                    }
                    self.bell.awake();
                }
            }
        }
        answer
    }
}

const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":30},"age":{"type":"integer","minimum":0,"maximum":120},"likes":{"type":"array","items":{"type":"string","maxLength":20},"maxItems":3}},"required":["name","age","likes"],"additionalProperties":false}"#;

#[test]
fn the_model_follows_and_goes_on_in_the_middle() {
    let mut bench = Bench::new();
    let constrained = |submit: &mut Submit| submit.sampling.constraint = Constraint::JsonSchema(PERSON.into());
    let prompt = "Describe a person as JSON.";
    let schema: Value = serde_json::from_str(PERSON).expect("a schema");
    for seed in 0..6 {
        let answer = bench.ask(prompt, |submit| {
            constrained(submit);
            submit.sampling.seed = seed;
        });
        assert_eq!(answer.end, Some(Ok(FinishReason::Stop)), "{answer:?}");
        let value: Value = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {}", answer.text));
        assert!(satisfies(&value, &schema, &schema), "{}", answer.text);
    }
    // With penalties and stop strings beside, and cut anywhere.
    let full = |submit: &mut Submit| {
        constrained(submit);
        (submit.sampling.repetition_penalty, submit.sampling.frequency_penalty) = (1.1, 0.2);
    };
    let whole = bench.ask(prompt, full);
    assert_eq!(whole, bench.ask(prompt, full), "the same request gives the same answer");
    assert_eq!(whole.end, Some(Ok(FinishReason::Stop)), "{whole:?}");
    for cut in [1, whole.ids.len() / 2, whole.ids.len() - 1] {
        let rest = bench.ask(prompt, |submit| {
            full(submit);
            submit.produced = whole.ids[..cut].to_vec();
        });
        assert_eq!(rest.ids, whole.ids[cut..], "cut at {cut}");
        assert!(whole.text.ends_with(&rest.text) && rest.end == whole.end, "cut at {cut}: {rest:?}");
    }
    let over = bench.ask(prompt, |submit| {
        full(submit);
        submit.produced = whole.ids.clone();
    });
    assert_eq!((over.ids.len(), over.end), (0, Some(Ok(FinishReason::Stop))), "it was over");
    let strayed = bench.ask(prompt, |submit| {
        constrained(submit);
        submit.produced = vec![500, 500, 500];
    });
    assert_eq!(strayed.end, Some(Ok(FinishReason::Failed)));
    assert!(strayed.message.contains("json_schema"), "{strayed:?}");
}

#[test]
fn constraints_are_refused_and_others_go_on() {
    let mut bench = Bench::new();
    let refused = bench.ask("hi", |submit| submit.sampling.constraint = Constraint::JsonSchema("{".into()));
    let Some(Err(reject)) = refused.end else { panic!("it was not refused: {refused:?}") };
    assert_eq!(reject.code, RejectCode::ConstraintInvalid);
    let choice = bench.ask("Is water wet?", |submit| submit.sampling.constraint = Constraint::Regex("Yes|No".into()));
    assert!(choice.text == "Yes" || choice.text == "No", "{choice:?}");
    let short = bench.ask("Tell a story.", |submit| {
        submit.sampling.constraint = Constraint::Regex("[a-z ]+".into());
        submit.sampling.max_tokens = 5;
    });
    assert_eq!((short.end, short.ids.len()), (Some(Ok(FinishReason::Length)), 5));
    assert!(short.text.bytes().all(|byte| byte == b' ' || byte.is_ascii_lowercase()), "{}", short.text);
    let stopped = bench.ask("Describe a person as JSON.", |submit| {
        submit.sampling.constraint = Constraint::JsonSchema(PERSON.into());
        submit.sampling.stop = vec!["\"age\"".into()];
    });
    assert_eq!(stopped.end, Some(Ok(FinishReason::Stop)));
    assert!(stopped.text.starts_with('{') && !stopped.text.contains("age"), "{}", stopped.text);
}

#[test]
fn likelihoods_are_told_and_sum_to_no_more_than_one() {
    let mut bench = Bench::new();
    let answer = bench.ask("What is the capital of France?", |submit| {
        (submit.sampling.temperature, submit.sampling.logprobs, submit.sampling.max_tokens) = (0.0, Some(5), 12);
    });
    assert_eq!(answer.details.len(), answer.ids.len());
    for ((index, detail), &id) in answer.details.iter().enumerate().zip(&answer.ids) {
        assert_eq!((detail.index as usize, detail.id, detail.top.len()), (index, id, 5));
        let best = &detail.top[0];
        assert_eq!((best.id, best.logprob), (detail.id, detail.logprob), "the likeliest is taken");
        let sum: f32 = detail.top.iter().map(|chance| chance.logprob.exp()).sum();
        assert!(sum <= 1.000_1 && detail.top.windows(2).all(|two| two[0].logprob >= two[1].logprob), "{detail:?}");
    }
    let written: Vec<u8> = answer.details.iter().flat_map(|detail| detail.text.iter().copied()).collect();
    assert!(String::from_utf8_lossy(&written).starts_with(&answer.text), "{answer:?}");
    // Moved logits are drawn from, but what is told is what the model thought.
    let biased = bench.ask("What is the capital of France?", |submit| {
        (submit.sampling.temperature, submit.sampling.logprobs, submit.sampling.max_tokens) = (0.0, Some(1), 1);
        submit.sampling.logit_bias = vec![(answer.ids[0], -100.0)];
    });
    assert_ne!(biased.ids[0], answer.ids[0]);
    assert_eq!(biased.details[0].top[0].id, answer.ids[0]);
    assert!(biased.details[0].logprob < biased.details[0].top[0].logprob);
}

#[test]
fn raw_prompts_go_on_without_a_template() {
    let mut bench = Bench::new();
    let greedy = |submit: &mut Submit| (submit.sampling.temperature, submit.sampling.max_tokens) = (0.0, 8);
    let templated = bench.ask("The capital of France is", greedy);
    let raw = bench.ask("The capital of France is", |submit| {
        greedy(submit);
        submit.raw = true;
    });
    assert!(raw.text.contains("Paris") && raw.text != templated.text, "{raw:?}");
    let split = bench.ask("The capital", |submit| {
        greedy(submit);
        submit.raw = true;
        submit.messages.push(ChatMessage { role: Role::Tool, content: " of France is".into() });
    });
    assert_eq!(split.ids, raw.ids, "contents are put together");
    let nothing = bench.ask("", |submit| {
        greedy(submit);
        submit.raw = true;
    });
    assert!(!nothing.ids.is_empty(), "{nothing:?}");
}
