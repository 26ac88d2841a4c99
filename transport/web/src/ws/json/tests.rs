//! Every message is held to the committed schema; so are the schema's own examples.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use thalweg_protocol::chat::Context;
use thalweg_protocol::document::{AwarenessEntry, DocumentAccess, DocumentOperations, Operations};
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{ChannelId, Epoch, GenerationId, SessionId};
use thalweg_protocol::op::{Delivery, Welcome};

use super::*;

/// What of JSON Schema (draft 2020-12) the committed one uses; anything else is an error of the test.
struct Schema(Value);

impl Schema {
    fn new() -> Self {
        Self(serde_json::from_str(super::super::SCHEMA).expect("the schema is JSON"))
    }

    fn check(&self, definition: &str, value: &Value) -> Result<(), String> {
        self.valid(&self.0["$defs"][definition], value)
    }

    fn valid(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let fields = schema.as_object().ok_or_else(|| format!("{schema} is no schema"))?;
        for (keyword, wanted) in fields {
            let fine = match keyword.as_str() {
                "$ref" => {
                    let name = wanted.as_str().and_then(|path| path.strip_prefix("#/$defs/")).expect("a definition");
                    assert!(self.0["$defs"].get(name).is_some(), "there is no {name}");
                    self.check(name, value)?;
                    true
                }
                "oneOf" => self.matches(wanted, value) == 1,
                "anyOf" => self.matches(wanted, value) > 0,
                "properties" | "required" | "additionalProperties" => {
                    self.has_fields(fields, keyword, value)?;
                    true
                }
                "items" => {
                    let mut items = value.as_array().into_iter().flatten();
                    items.try_for_each(|item| self.valid(wanted, item))?;
                    true
                }
                _ => is_plainly(keyword, wanted, value),
            };
            if !fine {
                return Err(format!("{value} is not {keyword} {wanted}"));
            }
        }
        Ok(())
    }

    fn has_fields(&self, schema: &serde_json::Map<String, Value>, keyword: &str, value: &Value) -> Result<(), String> {
        let none = serde_json::Map::new();
        let known = schema.get("properties").map_or(&none, |known| known.as_object().expect("an object"));
        match keyword {
            "properties" => known.iter().try_for_each(|(name, schema)| match value.get(name) {
                Some(found) => self.valid(schema, found).map_err(|error| format!("{name}: {error}")),
                None => Ok(()),
            }),
            "required" => {
                let mut names = schema["required"].as_array().expect("a list").iter();
                match names.find(|name| value.get(name.as_str().expect("a name")).is_none()) {
                    Some(missing) => Err(format!("{missing} is missing in {value}")),
                    None => Ok(()),
                }
            }
            _ => match value.as_object().and_then(|value| value.keys().find(|name| !known.contains_key(*name))) {
                Some(extra) => Err(format!("{extra} is not known in {value}")),
                None => Ok(()),
            },
        }
    }

    fn matches(&self, schemas: &Value, value: &Value) -> usize {
        schemas.as_array().expect("a list").iter().filter(|schema| self.valid(schema, value).is_ok()).count()
    }

    /// The examples of all messages whose definition begins so.
    fn examples(&self, prefix: &str) -> Vec<Value> {
        let definitions = self.0["$defs"].as_object().expect("an object").iter();
        let of = definitions.filter(|(name, _)| name.starts_with(prefix));
        of.flat_map(|(_, schema)| schema["examples"].as_array().expect("examples").clone()).collect()
    }
}

/// Keywords that look at nothing but the value.
fn is_plainly(keyword: &str, wanted: &Value, value: &Value) -> bool {
    let most = || wanted.as_u64().expect("a number") as usize;
    match keyword {
        "type" => match wanted.as_str().expect("a type") {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            other => panic!("type {other}"),
        },
        "const" => value == wanted,
        "enum" => wanted.as_array().expect("a list").contains(value),
        "minItems" => value.as_array().is_none_or(|items| items.len() >= most()),
        "minimum" => value.as_f64() >= wanted.as_f64(),
        "maximum" => value.as_f64() <= wanted.as_f64(),
        "exclusiveMinimum" => value.as_f64() > wanted.as_f64(),
        "minLength" => value.as_str().is_none_or(|text| text.len() >= most()),
        "maxLength" => value.as_str().is_none_or(|text| text.len() <= most()),
        "description" | "title" | "examples" | "contentEncoding" | "pattern" | "$schema" | "$defs" => true,
        other => panic!("keyword {other}"),
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// A client, and what it was told.
struct Client {
    json: Json,
    schema: Schema,
    asked: Vec<(Request, ClientOp)>,
    told: Vec<Value>,
    closed: Option<Close>,
}

impl Client {
    fn new() -> Self {
        let json = Json::new(Some("token".into()));
        let mut client = Self { json, schema: Schema::new(), asked: Vec::new(), told: Vec::new(), closed: None };
        client.gather();
        assert!(client.json.is_full(), "nothing is read before the token was checked");
        client.answer(Request(0), Ok(ServerOp::Welcome(welcome())));
        assert_eq!(client.told.pop().map(|said| said["type"].clone()), Some(json!("welcome")));
        client
    }

    fn gather(&mut self) {
        while let Some(effect) = self.json.poll() {
            match effect {
                Effect::Send(Message::Text(text), taken) => {
                    let message: Value = serde_json::from_str(&text).expect("JSON");
                    self.schema.check("server", &message).unwrap_or_else(|error| panic!("{text}: {error}"));
                    self.told.push(message);
                    if let Some(taken) = taken {
                        self.json.handle(Input::Taken(taken));
                    }
                }
                Effect::Ask { request, op, .. } => self.asked.push((request, op)),
                Effect::Tell { op, .. } => self.asked.push((Request(u32::MAX), op)),
                Effect::Close(close) => self.closed = Some(close),
                Effect::Open { .. } | Effect::Leave { .. } => {}
                Effect::Send(..) => panic!("not a text"),
            }
        }
    }

    fn say(&mut self, message: &Value) -> &mut Self {
        self.json.handle(Input::Message(Message::Text(message.to_string())));
        self.gather();
        self
    }

    fn answer(&mut self, request: Request, said: Result<ServerOp, Reject>) {
        self.json.handle(Input::Answered { session: SESSION, request, said });
        self.gather();
    }

    /// Says something, and has it answered.
    fn ask(&mut self, message: &Value, said: Result<ServerOp, Reject>) -> Value {
        self.say(message);
        let (request, _) = self.asked.pop().unwrap_or_else(|| panic!("{message} asks nothing: {:?}", self.told));
        self.answer(request, said);
        self.told.pop().expect("an answer")
    }

    /// Begins to read; gives the number that its core knows.
    fn read(&mut self, message: &Value, said: ServerOp) -> u32 {
        self.say(message);
        let (request, _) = self.asked.pop().unwrap_or_else(|| panic!("{message} asks nothing: {:?}", self.told));
        self.answer(request, Ok(said));
        self.told.clear();
        request.0
    }

    fn frame(&mut self, subject: u32, op: &ServerOp) -> Value {
        self.json.handle(Input::Frame { session: SESSION, subject, payload: op.encode() });
        self.gather();
        self.told.pop().unwrap_or(Value::Null)
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        session: SessionId(7),
        epoch: Epoch(1),
        tenant: name("default"),
        user: name("ada"),
        server: "thalweg/test".into(),
        models: vec!["m".into()],
        frame_bytes_max: 1,
        body_bytes_max: 1,
        in_flight_max: 1,
        lead_messages: 1,
        lead_tokens: 1,
        token_expires_us: 0,
    }
}

fn delivery(kind: DeliveryKind, body: &'static [u8]) -> Delivery {
    Delivery {
        position: Position(4),
        timestamp_us: 5,
        kind,
        user: name("bob"),
        generation: None,
        body: Bytes::from_static(body),
        key: 0,
        context: Context { target: Position(2), number: 3, mentions: vec![name("ada")], ..Context::default() },
    }
}

fn opened() -> ServerOp {
    let (revision, vector) = (Position(1), Bytes::from_static(&[0]));
    ServerOp::Document(DocumentNews::Opened {
        id: ChannelId(1),
        revision,
        bytes: 3,
        access: DocumentAccess::Write,
        made: true,
        vector,
    })
}

fn asked() -> ServerOp {
    ServerOp::Asked { generation: GenerationId(7), model: "m".into() }
}

#[test]
fn every_example_of_the_schema_is_right() {
    let schema = Schema::new();
    for example in schema.examples("server_") {
        schema.check("server", &example).unwrap_or_else(|error| panic!("{example}: {error}"));
    }
    let examples = schema.examples("client_");
    for &kind in &requests::TYPES {
        assert!(examples.iter().any(|example| example["type"] == kind), "{kind} has no example");
    }
    for example in &examples {
        schema.check("client", example).unwrap_or_else(|error| panic!("{example}: {error}"));
        if example["type"] == "hello" {
            let mut json = Json::new(None);
            json.handle(Input::Message(Message::Text(example.to_string())));
            assert!(matches!(json.poll(), Some(Effect::Open { .. })), "{example}");
            continue;
        }
        let mut client = Client::new();
        for (id, reading, said) in [
            (
                5,
                json!({"type": "subscribe", "channel": "a"}),
                ServerOp::Subscribed { next: Position(1), head: Position(0) },
            ),
            (10, json!({"type": "open", "document": "d"}), opened()),
            (20, json!({"type": "ask", "prompt": "p"}), asked()),
        ] {
            if example["id"] != id {
                let mut reading = reading;
                reading["id"] = json!(id);
                client.read(&reading, said);
            }
        }
        client.say(example);
        assert!(client.told.is_empty() && client.asked.len() == 1, "{example}: {:?}", client.told);
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_the_rest_goes_on() {
    let mut client = Client::new();
    let mut check = |text: &str, id: Option<u64>, code: &str, says: &str| {
        client.json.handle(Input::Message(Message::Text(text.to_owned())));
        client.gather();
        let told = client.told.pop().expect("an error");
        assert_eq!((&told["type"], &told["code"]), (&json!("error"), &json!(code)), "{text}: {told}");
        assert_eq!(told.get("id").and_then(Value::as_u64), id, "{text}: {told}");
        assert!(told["message"].as_str().expect("text").contains(says), "{text}: {told}");
        assert!(client.closed.is_none());
    };
    check("", None, "frame_invalid", "not JSON");
    check("[1]", None, "frame_invalid", "no JSON object");
    check("{\"type\":\"ping\"}", None, "parameter_invalid", "ping has no id");
    check("{\"id\":1}", Some(1), "parameter_invalid", "type is missing");
    check("{\"id\":-1,\"type\":\"ping\"}", None, "parameter_invalid", "id is no whole number");
    check("{\"id\":1,\"type\":\"dance\"}", Some(1), "operation_unknown", "\"dance\"; there are hello, ping");
    check("{\"id\":1,\"type\":\"hello\",\"token\":\"\"}", Some(1), "hello_expected", "a second hello");
    check("{\"id\":1,\"type\":\"ping\",\"x\":1}", Some(1), "parameter_invalid", "unknown field `x`");
    check("{\"id\":1,\"type\":\"subscribe\"}", Some(1), "parameter_invalid", "missing field `channel`");
    check("{\"id\":1,\"type\":\"subscribe\",\"channel\":\"a b\"}", Some(1), "name_invalid", "channel holds ' '");
    check("{\"id\":1,\"type\":\"publish\",\"channel\":\"a\"}", Some(1), "parameter_invalid", "neither text nor base64");
    check(
        "{\"id\":1,\"type\":\"edit\",\"document\":\"a\"}",
        Some(1),
        "parameter_invalid",
        "either update, or operations",
    );
    check("{\"id\":1,\"type\":\"edit\",\"document\":\"a\",\"update\":\"?\"}", Some(1), "parameter_invalid", "base64");
    check(
        "{\"id\":1,\"type\":\"edit\",\"document\":\"a\",\"revision\":1,\"operations\":[{\"retain\":-1}]}",
        Some(1),
        "parameter_invalid",
        "operations[0]",
    );
    check("{\"type\":\"credit\",\"subscription\":1,\"position\":1}", None, "subscription_invalid", "no subscription 1");
    check("{\"id\":1,\"type\":\"unwatch\",\"watch\":9}", Some(1), "subscription_invalid", "no watch 9");
    client.json.handle(Input::Message(Message::Binary(Bytes::from_static(&[0]))));
    client.gather();
    assert_eq!(client.told.pop().expect("an error")["code"], "frame_invalid");
    let answer = client.ask(&json!({"type": "ping", "id": 3}), Ok(ServerOp::Pong { nonce: 0 }));
    assert_eq!(answer, json!({"type": "pong", "id": 3}));
}

#[test]
fn answers_carry_the_number_of_their_request() {
    let mut client = Client::new();
    let write = json!({"type": "publish", "id": 40, "channel": "a", "text": "x"});
    let published = ServerOp::Published { position: Position(2), timestamp_us: 3, duplicate: false };
    let answer = client.ask(&write, Ok(published.clone()));
    assert_eq!((&answer["id"], &answer["position"], &answer["sequence"]), (&json!(40), &json!(2), &json!(1)));
    let mut repeated = write.clone();
    (repeated["sequence"], repeated["retry"]) = (json!(9), json!(true));
    assert_eq!(client.ask(&repeated, Ok(published.clone()))["sequence"], 9);
    assert_eq!(client.ask(&write, Ok(published))["sequence"], 10, "later numbers are higher");
    let reject = Reject::new(RejectCode::Busy, "later").retry_after_ms(5);
    let answer = client.ask(&write, Err(reject));
    assert_eq!(answer, json!({"type": "error", "id": 40, "code": "busy", "message": "later", "retry_after_ms": 5}));
    let page = ServerOp::Page {
        first: Position(1),
        next: Position(5),
        head: Position(4),
        deliveries: vec![ServerOp::Delivery(delivery(DeliveryKind::Message, &[0xff])).encode()],
    };
    let answer = client.ask(&json!({"type": "history", "id": 1, "channel": "a"}), Ok(page));
    assert_eq!(answer["messages"][0]["base64"], "/w==");
    for (message, said) in [
        (json!({"type": "create", "id": 1, "channel": "a"}), ServerOp::ChannelCreated { created: true }),
        (json!({"type": "delete", "id": 1, "channel": "a"}), ServerOp::Done),
        (json!({"type": "cancel", "id": 1, "generation": "g-0000000000000007"}), ServerOp::Done),
        (json!({"type": "write", "id": 1, "document": "a", "instruction": "i", "start": 0}), asked()),
    ] {
        assert_eq!(client.ask(&message, Ok(said))["id"], 1, "{message}");
    }
}

#[test]
fn who_names_a_session_numbers_what_must_not_be_done_twice() {
    let mut client = Client::new();
    let session = "s-0123456789abcdef0123456789abcdef";
    client.json = Json::new(None);
    client.say(&json!({"type": "hello", "id": 1, "token": "t", "session": session}));
    client.answer(Request(0), Ok(ServerOp::Welcome(welcome())));
    client.told.clear();
    let published = || Ok(ServerOp::Published { position: Position(2), timestamp_us: 3, duplicate: false });
    for write in [
        json!({"type": "publish", "id": 2, "channel": "a", "text": "x"}),
        json!({"type": "edit", "id": 2, "document": "d", "revision": 1, "operations": [{"insert": "x"}]}),
        json!({"type": "version", "id": 2, "document": "d", "name": "v"}),
        json!({"type": "restore", "id": 2, "document": "d", "revision": 1}),
    ] {
        client.say(&write);
        assert!(client.asked.is_empty(), "{write}");
        let told = client.told.pop().expect("an error");
        assert_eq!((&told["id"], &told["code"]), (&json!(2), &json!("parameter_invalid")), "{write}");
        assert!(told["message"].as_str().expect("text").contains("numbers what it writes"), "{told}");
        let mut numbered = write.clone();
        numbered["sequence"] = json!(7);
        assert_eq!(client.ask(&numbered, published())["sequence"], 7, "{write}");
    }
    // To repeat an update of Yjs changes nothing.
    let update = json!({"type": "edit", "id": 2, "document": "d", "update": "AAA="});
    assert_eq!(client.ask(&update, published())["type"], "published");
}

#[test]
fn numbers_of_writes_are_those_that_json_has() {
    let mut client = Client::new();
    let write = |sequence: u64| json!({"type": "publish", "id": 2, "channel": "a", "text": "x", "sequence": sequence});
    for sequence in [0, requests::SEQUENCE_MAX + 1, u64::MAX] {
        client.say(&write(sequence));
        assert_eq!(client.told.pop().expect("an error")["code"], "parameter_invalid", "{sequence}");
    }
    let published = ServerOp::Published { position: Position(2), timestamp_us: 3, duplicate: false };
    assert_eq!(client.ask(&write(requests::SEQUENCE_MAX), Ok(published))["sequence"], requests::SEQUENCE_MAX);
    client.say(&json!({"type": "publish", "id": 2, "channel": "a", "text": "x"}));
    assert_eq!(client.told.pop().expect("an error")["code"], "parameter_invalid", "there is none after it");
}

#[test]
fn opened_says_how_much_follows() {
    let mut client = Client::new();
    let answer = client.ask(&json!({"type": "open", "id": 10, "document": "d"}), Ok(opened()));
    assert_eq!((&answer["bytes"], &answer["revision"]), (&json!(3), &json!(1)));
}

#[test]
fn documents_are_read_in_parts_and_told_whole() {
    let mut client = Client::new();
    client.say(&json!({"type": "read", "id": 1, "document": "d", "form": "text"}));
    let part = |offset: u64, bytes: &'static str| {
        let (revision, bytes) = (Position(4), Bytes::from_static(bytes.as_bytes()));
        Ok(ServerOp::Document(DocumentNews::State { revision, offset, total: 10, bytes }))
    };
    let (request, _) = client.asked.pop().expect("asked");
    client.answer(request, part(0, "hello"));
    let (request, op) = client.asked.pop().expect("asked for more");
    let more = DocumentOp::Read { document: name("d"), revision: Position(4), form: ReadForm::Text, offset: 5 };
    assert_eq!(op, ClientOp::Document(more));
    client.answer(request, part(5, "world"));
    assert_eq!(client.told, [json!({"type": "document", "id": 1, "revision": 4, "text": "helloworld"})]);
}

#[test]
fn everything_that_is_told_is_in_the_schema() {
    let mut client = Client::new();
    let subscribed = ServerOp::Subscribed { next: Position(1), head: Position(0) };
    let channel = client.read(&json!({"type": "subscribe", "id": 5, "channel": "a"}), subscribed);
    let document = client.read(&json!({"type": "open", "id": 10, "document": "d"}), opened());
    let updates = client.read(&json!({"type": "open", "id": 11, "document": "d", "form": "updates"}), opened());
    let watch = client.read(&json!({"type": "ask", "id": 20, "prompt": "p"}), asked());
    assert!(client.json.is_counted(SESSION, channel) && !client.json.is_counted(SESSION, watch));
    for kind in [DeliveryKind::Message, DeliveryKind::Reaction, DeliveryKind::Tokens, DeliveryKind::Membership] {
        let told = client.frame(channel, &ServerOp::Delivery(delivery(kind, b"hi")));
        assert_eq!((&told["subscription"], &told["text"], &told["target"]), (&json!(5), &json!("hi"), &json!(2)));
    }
    assert_eq!(client.frame(channel, &ServerOp::Missed { from: Position(1), to: Position(2) })["to"], 2);
    let state = |bytes: &'static [u8], total| {
        let (revision, bytes) = (Position(3), Bytes::from_static(bytes));
        ServerOp::Document(DocumentNews::State { revision, offset: 0, total, bytes })
    };
    assert_eq!(client.frame(document, &state("é".as_bytes(), 2))["text"], "é");
    assert_eq!(client.frame(updates, &state(&[0, 0], 2))["update"], "AAA=");
    assert_eq!(client.frame(updates, &ServerOp::Delivery(delivery(DeliveryKind::Update, &[0, 0])))["first"], 2);
    assert_eq!(client.frame(document, &ServerOp::Delivery(delivery(DeliveryKind::Version, b"v")))["name"], "v");
    let operations = DocumentOperations {
        from: Position(4),
        to: Position(4),
        timestamp_us: 1,
        user: name("bob"),
        generation: Some(GenerationId(7)),
        own: None,
        operations: Operations::new().retain(1).insert("x").delete(2).encode(),
    };
    let told = client.frame(document, &ServerOp::Document(DocumentNews::Operations(operations)));
    assert_eq!(told["operations"], json!([{"retain": 1}, {"insert": "x"}, {"delete": 2}]));
    let entries = [Some(&b"{\"a\":1}"[..]), None, Some(b"not JSON")].into_iter().enumerate();
    let entries =
        entries.map(|(n, state)| AwarenessEntry { client: n as u64, clock: 1, state: state.map(Bytes::from_static) });
    let update = AwarenessUpdate { entries: entries.collect() }.encode();
    let told = client.frame(document, &ServerOp::Document(DocumentNews::Awareness { update }));
    assert_eq!(told["clients"].as_array().map(Vec::len), Some(2), "{told}");
    let tokens = ServerOp::Tokens { index: 0, count: 2, text: Bytes::from_static(b"ab"), details: Vec::new() };
    assert_eq!(client.frame(watch, &tokens)["text"], "ab");
    assert_eq!(client.frame(watch, &ServerOp::Rewound { to: 1 })["to"], 1);
    let finished = ServerOp::Finished { reason: FinishReason::Failed, usage: Usage::default(), message: "why".into() };
    assert_eq!(client.frame(watch, &finished)["message"], "why");
    assert_eq!(client.frame(watch, &tokens), Value::Null, "nothing follows the end");
    let told = client.frame(channel, &ServerOp::Ended(Reject::new(RejectCode::ChannelDeleted, "gone")));
    assert_eq!((&told["type"], &told["code"]), (&json!("ended"), &json!("channel_deleted")));
    client.answer(Request(0), Ok(ServerOp::ServerRestarting { reconnect_delay_ms: 5 }));
    client.json.handle(Input::Closed { session: SESSION, reject: Reject::new(RejectCode::Draining, "bye") });
    client.gather();
    assert_eq!(client.closed.map(|close| close.code), Some(1012));
}

#[test]
fn credit_is_given_for_what_was_taken() {
    let check = |credit: &str, expected: usize| {
        let mut client = Client::new();
        let subscribe = json!({"type": "subscribe", "id": 5, "channel": "a", "lead": 8, "credit": credit});
        let channel = client.read(&subscribe, ServerOp::Subscribed { next: Position(1), head: Position(0) });
        for _ in 0..8 {
            client.frame(channel, &ServerOp::Delivery(delivery(DeliveryKind::Message, b"")));
            client.gather();
        }
        assert_eq!(client.asked.len(), expected, "{credit}");
    };
    check("auto", 4);
    check("manual", 0);
}

#[test]
fn a_generation_with_a_large_lead_gets_credit_before_it_needs_it() {
    // The core lets it run ahead by this, whatever more was asked for.
    let check = |lead: u32, ahead: u32| {
        let mut client = Client::new();
        let watch = client.read(&json!({"type": "ask", "id": 20, "prompt": "p", "lead": lead}), asked());
        let tokens = ServerOp::Tokens { index: 0, count: ahead, text: Bytes::new(), details: Vec::new() };
        client.frame(watch, &tokens);
        client.gather();
        let credit = ClientOp::TokensConsumed { watch: Watch(watch), index: ahead };
        assert_eq!(client.asked.pop().map(|(_, op)| op), Some(credit), "{lead}");
        // Tokens that were taken back are counted anew.
        client.frame(watch, &ServerOp::Rewound { to: 0 });
        client.gather();
        client.asked.clear();
        client.frame(watch, &tokens);
        client.gather();
        assert_eq!(client.asked.len(), 1, "{lead}");
    };
    check(0, LEAD_TOKENS);
    check(1, 1);
    check(LEAD_TOKENS_MAX, LEAD_TOKENS_MAX);
    check(u32::MAX, LEAD_TOKENS_MAX);
}

proptest! {
    #[test]
    fn garbage_never_panics(text: String, kind in 0..requests::TYPES.len(), number: u64, flag: bool) {
        let mut client = Client::new();
        client.json.handle(Input::Message(Message::Text(text.clone())));
        client.gather();
        client.say(&json!({"type": requests::TYPES[kind], "id": number, "channel": text, "document": text, "text": text,
            "prompt": text, "revision": number, "subscription": number, "make": flag}));
        client.json.handle(Input::Frame { session: SESSION, subject: 1, payload: text.into_bytes().into() });
        client.gather();
    }
}
