//! Functions that a model may call: told to it in a system message, held to by a constraint, read from what it says.
//!
//! A call is `<tool_call>{"name": …, "arguments": …}</tool_call>`, the form that most small models were taught. Who must
//! call one writes nothing but the object; who may calls after any text, or not at all. Arguments follow the function's
//! schema either way.

use std::fmt::Write as _;

use serde_json::{Value, json};
use thalweg_protocol::generation::{ChatMessage, Constraint, Role};

use super::parameters::{Function, Tool, ToolCall, ToolChoice, ToolMode};
use crate::error::Refusal;
use crate::limits::{V1_TOOL_NAME_BYTES_MAX, V1_TOOLS_MAX};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

/// How functions may be called in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calling {
    /// Not at all.
    Off,
    /// After any text.
    May,
    /// The answer is a call.
    Must,
}

/// Tells the conversation about the functions, and constrains the answer; `constraint` is what the answer's text has to be.
pub(super) fn apply(
    tools: Vec<Tool>,
    choice: Option<ToolChoice>,
    messages: &mut Vec<ChatMessage>,
    constraint: &mut Constraint,
) -> Result<Calling, Refusal> {
    let functions = functions_of(tools)?;
    let (calling, named) = match choice {
        None if functions.is_empty() => (Calling::Off, None),
        None | Some(ToolChoice::Mode(ToolMode::Auto)) => (Calling::May, None),
        Some(ToolChoice::Mode(ToolMode::None)) => (Calling::Off, None),
        Some(ToolChoice::Mode(ToolMode::Required)) => (Calling::Must, None),
        Some(ToolChoice::Named { function, .. }) => (Calling::Must, Some(function.name)),
    };
    if functions.is_empty() {
        return match calling {
            Calling::Must => Err(Refusal::parameter("tool_choice", "tool_choice wants a call, but tools names none")),
            _ => Ok(Calling::Off),
        };
    }
    let callable: Vec<&Function> =
        functions.iter().filter(|function| named.as_ref().is_none_or(|named| *named == function.name)).collect();
    if callable.is_empty() {
        let text = format!("tool_choice names {:?}, which is not among the tools", named.unwrap_or_default());
        return Err(Refusal::parameter("tool_choice", text));
    }
    if calling != Calling::Off {
        describe(&callable, calling, messages);
    }
    match calling {
        Calling::Off => {}
        Calling::Must => *constraint = Constraint::JsonSchema(call_schema(&callable)?),
        Calling::May => *constraint = Constraint::Lark(grammar(&call_schema(&callable)?, constraint)?),
    }
    Ok(calling)
}

fn functions_of(tools: Vec<Tool>) -> Result<Vec<Function>, Refusal> {
    if tools.len() > V1_TOOLS_MAX {
        let text = format!("tools has {} functions; at most {V1_TOOLS_MAX}", tools.len());
        return Err(Refusal::parameter("tools", text));
    }
    let function_of = |(index, tool): (usize, Tool)| {
        let refuse = |field: &str, text: String| Err(Refusal::parameter(format!("tools[{index}].{field}"), text));
        if tool.kind != "function" {
            return refuse("type", format!("type is {:?}; only functions can be called", tool.kind));
        }
        let Some(function) = tool.function else { return refuse("function", "function is missing".into()) };
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.';
        if function.name.is_empty()
            || function.name.len() > V1_TOOL_NAME_BYTES_MAX
            || !function.name.bytes().all(is_plain)
        {
            let text = format!("name is 1 to {V1_TOOL_NAME_BYTES_MAX} of a-z, A-Z, 0-9, underscore, dash and dot");
            return refuse("function.name", text);
        }
        if function.parameters.as_ref().is_some_and(|parameters| !parameters.get().starts_with('{')) {
            return refuse("function.parameters", "parameters is no JSON Schema of an object".into());
        }
        Ok(function)
    };
    tools.into_iter().enumerate().map(function_of).collect()
}

fn parameters_of(function: &Function) -> &str {
    function.parameters.as_ref().map_or(r#"{"type":"object","properties":{}}"#, |parameters| parameters.get())
}

/// Tells the model what there is, in the system message.
fn describe(functions: &[&Function], calling: Calling, messages: &mut Vec<ChatMessage>) {
    let mut text = String::from("You can call these functions, given with JSON Schemas of their arguments:\n<tools>\n");
    for function in functions {
        let (name, about) = (json!(function.name), json!(function.description.as_deref().unwrap_or_default()));
        let parameters = parameters_of(function);
        let _ = writeln!(
            text,
            r#"{{"type": "function", "function": {{"name": {name}, "description": {about}, "parameters": {parameters}}}}}"#
        );
    }
    text.push_str("</tools>\n");
    text.push_str(match calling {
        Calling::Must => {
            "Answer with one call and nothing else, as a JSON object: {\"name\": <function>, \"arguments\": <object>}"
        }
        _ => {
            "To call one, write: <tool_call>\n{\"name\": <function>, \"arguments\": <object>}\n</tool_call>\nCall a \
             function only if that helps; its result comes in a message of the role tool."
        }
    });
    match messages.first_mut().filter(|first| first.role == Role::System) {
        Some(system) => {
            system.content.push_str("\n\n");
            system.content.push_str(&text);
        }
        None => messages.insert(0, ChatMessage { role: Role::System, content: text }),
    }
}

/// Writes calls of an earlier answer as the model wrote them.
pub(super) fn write_calls(content: &mut String, calls: &[ToolCall]) {
    for call in calls {
        if !content.is_empty() {
            content.push('\n');
        }
        let (name, arguments) = (json!(call.function.name), call.function.arguments.as_str());
        let arguments = if arguments.is_empty() { "{}" } else { arguments };
        let _ = write!(content, "{BEGIN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{END}");
    }
}

/// A schema of the object that is a call of one of the functions. Written as a text, so that fields keep their order.
fn call_schema(functions: &[&Function]) -> Result<String, Refusal> {
    let mut definitions = String::new();
    let mut calls = Vec::new();
    for (index, function) in functions.iter().enumerate() {
        let (name, parameters) = (json!(function.name), parameters_of(function));
        // References are from the root of the schema that they stand in, which is another one here.
        let arguments = if parameters.contains("\"$ref\"") {
            let mut schema: Value = serde_json::from_str(parameters).map_err(|error| {
                Refusal::parameter("tools", format!("the parameters of {} are no JSON: {error}", function.name))
            })?;
            move_references(&mut schema, &format!("#/$defs/arguments{index}"));
            let comma = if definitions.is_empty() { "" } else { "," };
            let _ = write!(definitions, "{comma}\"arguments{index}\":{schema}");
            format!("{{\"$ref\":\"#/$defs/arguments{index}\"}}")
        } else {
            parameters.to_owned()
        };
        calls.push(format!(
            "{{\"type\":\"object\",\"properties\":{{\"name\":{{\"const\":{name}}},\"arguments\":{arguments}}},\
             \"required\":[\"name\",\"arguments\"],\"additionalProperties\":false}}"
        ));
    }
    let definitions = if definitions.is_empty() { String::new() } else { format!("\"$defs\":{{{definitions}}},") };
    Ok(match &calls[..] {
        [only] => format!("{{{definitions}{}", &only[1..]),
        _ => format!("{{{definitions}\"anyOf\":[{}]}}", calls.join(",")),
    })
}

/// Makes references of a schema mean the same where the schema stands below `root`.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, root)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(reference) if name == "$ref" && reference.starts_with('#') => {
                        *reference = format!("{root}{}", &reference[1..]);
                    }
                    value => move_references(value, root),
                }
            }
        }
        _ => {}
    }
}

/// A grammar of an answer that may end with calls. The text before one is read lazily: it ends where a call begins.
fn grammar(call: &str, text: &Constraint) -> Result<String, Refusal> {
    let calls = |schema: &str| format!("call_body: \"\\n\" call_json \"\\n</tool_call>\"\ncall_json: %json {schema}\n");
    Ok(match text {
        Constraint::None => format!(
            "start: (call \"\\n\"?)* TEXT\ncall: call_begin call_body\ncall_begin[lazy]: TEXT \"{BEGIN}\"\n{}\
             TEXT: /(.|\\n)*/\n",
            calls(call)
        ),
        Constraint::Json => format!(
            "start: call | body\ncall: \"{BEGIN}\" call_body\nbody: %json {{\"type\":\"object\"}}\n{}",
            calls(call)
        ),
        Constraint::JsonSchema(schema) => {
            format!("start: call | body\ncall: \"{BEGIN}\" call_body\nbody: %json {schema}\n{}", calls(call))
        }
        Constraint::Regex(_) | Constraint::Lark(_) => {
            return Err(Refusal::parameter("tools", "tools cannot be called where the answer follows a grammar"));
        }
    })
}

/// What was read of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read {
    /// Text that is no call.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the newest call, which are JSON.
    Arguments(String),
}

/// Reads calls from an answer as it comes.
///
/// Contract: [`push`](Self::push) each piece of the answer in order, and [`finish`](Self::finish) when it is over; what they
/// give is to be told at once. Nothing is told twice, and nothing waits longer than until it is clear what it is.
#[derive(Debug)]
pub(super) struct CallReader {
    calling: Calling,
    state: State,
    /// What came and is not clear yet.
    held: String,
    /// Whether any call began.
    pub(super) called: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Text, or the beginning of a call.
    Text,
    /// A call, up to its arguments.
    Head,
    /// Its arguments: how deep in brackets, whether in a string, whether after a backslash.
    Arguments { depth: u32, string: bool, escaped: bool },
    /// What follows the arguments.
    Tail,
    /// Nothing more is read.
    Over,
}

impl CallReader {
    pub(super) fn new(calling: Calling) -> Self {
        let state = if calling == Calling::Must { State::Head } else { State::Text };
        Self { calling, state, held: String::new(), called: false }
    }

    /// Takes a piece of the answer.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Read> {
        let mut read = Vec::new();
        if self.calling == Calling::Off {
            read.push(Read::Text(piece.to_owned()));
            return read;
        }
        self.held.push_str(piece);
        while self.step(&mut read) {}
        read
    }

    /// The answer is over: what was held is text, or part of a call that was cut off.
    pub(super) fn finish(&mut self) -> Vec<Read> {
        let held = std::mem::take(&mut self.held);
        let text = self.state == State::Text || self.state == State::Head && !self.called;
        let text = if text { held } else { String::new() };
        // A model that was cut off within its first call has said nothing else.
        let cut_off = self.calling == Calling::Must;
        if text.trim().is_empty() || cut_off { Vec::new() } else { vec![Read::Text(text)] }
    }

    /// Reads on; whether there may be more.
    fn step(&mut self, read: &mut Vec<Read>) -> bool {
        match self.state {
            State::Text => self.text(read),
            State::Head => self.head(read),
            State::Arguments { depth, string, escaped } => self.arguments(depth, string, escaped, read),
            State::Tail => self.tail(),
            State::Over => {
                self.held.clear();
                false
            }
        }
    }

    fn text(&mut self, read: &mut Vec<Read>) -> bool {
        if let Some(at) = self.held.find(BEGIN) {
            let rest = self.held.split_off(at + BEGIN.len());
            let mut text = std::mem::replace(&mut self.held, rest);
            text.truncate(at);
            // White space between text and call, or between calls, is layout.
            text.truncate(text.trim_end().len());
            if !text.is_empty() {
                read.push(Read::Text(text));
            }
            self.state = State::Head;
            return true;
        }
        // What may be the beginning of a call, and white space that may precede one, is held.
        let begun = (1..BEGIN.len()).rev().find(|&n| self.held.ends_with(&BEGIN[..n])).unwrap_or(0);
        let sure = self.held[..self.held.len() - begun].trim_end().len();
        let rest = self.held.split_off(sure);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            read.push(Read::Text(text));
        }
        false
    }

    /// Reads `{"name": "…", "arguments":`. The constraint sees to it that nothing else comes.
    fn head(&mut self, read: &mut Vec<Read>) -> bool {
        const ARGUMENTS: &str = "\"arguments\"";
        let Some(at) = self.held.find(ARGUMENTS) else { return false };
        let after = &self.held[at + ARGUMENTS.len()..];
        let value = after.trim_start().strip_prefix(':').map(str::trim_start);
        let Some(value) = value.filter(|value| !value.is_empty()) else { return false };
        let name = self.held[..at].split('"').nth(3).unwrap_or_default().to_owned();
        self.held = value.to_owned();
        self.called = true;
        self.state = State::Arguments { depth: 0, string: false, escaped: false };
        read.push(Read::Call(name));
        true
    }

    fn arguments(&mut self, mut depth: u32, mut string: bool, mut escaped: bool, read: &mut Vec<Read>) -> bool {
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if string => escaped = true,
                b'"' => string = !string,
                b'{' | b'[' if !string => depth += 1,
                b'}' | b']' if !string => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let rest = end.map(|end| self.held.split_off(end));
        let text = std::mem::take(&mut self.held);
        if !text.is_empty() {
            read.push(Read::Arguments(text));
        }
        match rest {
            None => {
                self.state = State::Arguments { depth, string, escaped };
                false
            }
            Some(rest) => {
                self.held = rest;
                self.state = if self.calling == Calling::Must { State::Over } else { State::Tail };
                true
            }
        }
    }

    fn tail(&mut self) -> bool {
        let Some(at) = self.held.find(END) else { return false };
        self.held = self.held.split_off(at + END.len());
        self.state = State::Text;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an answer whole, and in pieces of each length; gives its text and its calls.
    fn check(calling: Calling, answer: &str, text: &str, calls: &[(&str, &str)]) {
        for length in 1..=answer.len().max(1) {
            let mut reader = CallReader::new(calling);
            let (mut found, mut found_calls) = (String::new(), Vec::<(String, String)>::new());
            let characters: Vec<char> = answer.chars().collect();
            let mut reads: Vec<Read> =
                characters.chunks(length).flat_map(|piece| reader.push(&piece.iter().collect::<String>())).collect();
            reads.extend(reader.finish());
            for read in reads {
                match read {
                    Read::Text(text) => found.push_str(&text),
                    Read::Call(name) => found_calls.push((name, String::new())),
                    Read::Arguments(more) => found_calls.last_mut().expect("a call first").1.push_str(&more),
                }
            }
            let found_calls: Vec<_> = found_calls.iter().map(|(name, args)| (name.as_str(), args.as_str())).collect();
            assert_eq!((found.as_str(), &found_calls[..]), (text, calls), "{answer:?} by {length}");
            assert_eq!(reader.called, !calls.is_empty());
        }
    }

    #[test]
    fn calls_are_read_as_they_come() {
        check(Calling::Off, "a <tool_call> b", "a <tool_call> b", &[]);
        check(Calling::May, "plain text, 1 < 2 <tool", "plain text, 1 < 2 <tool", &[]);
        check(Calling::May, "", "", &[]);
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1, {}]}}\n</tool_call>";
        let arguments = "{\"a\": \"}\\\"{\", \"b\": [1, {}]}";
        check(Calling::May, call, "", &[("f", arguments)]);
        check(Calling::May, &format!("Let me see.\n{call}"), "Let me see.", &[("f", arguments)]);
        check(Calling::May, &format!("{call}\n{call}"), "", &[("f", arguments), ("f", arguments)]);
        check(Calling::Must, "{\"name\":\"g-1\",\"arguments\":{}}", "", &[("g-1", "{}")]);
        check(Calling::Must, "{ \"name\" : \"g\" , \"arguments\" : { \"ü\": 1 } } ", "", &[("g", "{ \"ü\": 1 }")]);
        check(Calling::Must, "{\"name\":\"g\",\"arguments\":{\"cut\": \"of", "", &[("g", "{\"cut\": \"of")]);
        check(Calling::Must, "{\"name\":\"g", "", &[]);
    }

    fn tools(json: &str) -> Vec<Tool> {
        serde_json::from_str(json).expect("tools")
    }

    #[test]
    fn functions_become_a_message_and_a_constraint() {
        let check = |given: &str, choice: &str, expected: Result<(Calling, &str), &str>| {
            let mut messages = vec![ChatMessage { role: Role::User, content: "hi".into() }];
            let mut constraint = Constraint::None;
            let choice: Option<ToolChoice> = serde_json::from_str(choice).expect("a choice");
            let found = apply(tools(given), choice, &mut messages, &mut constraint);
            match (found, expected) {
                (Ok(calling), Ok((expected, says))) => {
                    assert_eq!(calling, expected, "{given}");
                    assert!(constraint.text().contains(says), "{constraint:?}");
                    assert_eq!(messages.len(), if calling == Calling::Off { 1 } else { 2 });
                }
                (Err(refusal), Err(says)) => assert!(refusal.message.contains(says), "{refusal:?}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        let one = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]"#;
        let two =
            r#"[{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]"#;
        check("[]", "null", Ok((Calling::Off, "")));
        check(one, "null", Ok((Calling::May, "%json {\"type\":\"object\",\"properties\":{\"name\":{\"const\":\"f\"}")));
        check(one, "\"none\"", Ok((Calling::Off, "")));
        check(one, "\"required\"", Ok((Calling::Must, "{\"type\":\"object\",\"properties\"")));
        check(two, "\"required\"", Ok((Calling::Must, "{\"anyOf\":[")));
        let named = r#"{"type": "function", "function": {"name": "g"}}"#;
        check(two, named, Ok((Calling::Must, "\"const\":\"g\"")));
        check(one, named, Err("\"g\", which is not among the tools"));
        check("[]", "\"required\"", Err("tools names none"));
        check(r#"[{"type": "retrieval"}]"#, "null", Err("only functions can be called"));
        check(r#"[{"type": "function", "function": {"name": "no spaces"}}]"#, "null", Err("underscore"));
    }

    #[test]
    fn references_mean_the_same_elsewhere() {
        let parameters = r##"{"$defs": {"x": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}"##;
        let given = format!(r#"[{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}]"#);
        let functions = functions_of(tools(&given)).expect("functions");
        let schema = call_schema(&functions.iter().collect::<Vec<_>>()).expect("a schema");
        let schema: Value = serde_json::from_str(&schema).expect("JSON");
        assert_eq!(schema["properties"]["arguments"]["$ref"], "#/$defs/arguments0");
        assert_eq!(schema["$defs"]["arguments0"]["properties"]["a"]["$ref"], "#/$defs/arguments0/$defs/x");
    }
}
