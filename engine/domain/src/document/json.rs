//! Documents as JSON, with keys in order.

use std::collections::BTreeMap;
use std::fmt::{Arguments, Write};

use yrs::{Any, Number, ReadTxn};

use super::tree::{self, Node, Piece};

fn put(out: &mut String, text: Arguments<'_>) {
    out.write_fmt(text).expect("a string takes any text");
}

/// All roots as one object.
pub(crate) fn of<T: ReadTxn>(txn: &T) -> String {
    let mut out = String::new();
    object(&mut out, tree::read(txn).iter().map(|(name, node)| (&**name, node)), value);
    out
}

fn object<'a, V: 'a>(out: &mut String, entries: impl Iterator<Item = (&'a str, V)>, write: fn(&mut String, V)) {
    out.push('{');
    for (at, (key, entry)) in entries.enumerate() {
        if at > 0 {
            out.push(',');
        }
        quote(out, key);
        out.push(':');
        write(out, entry);
    }
    out.push('}');
}

fn list<V>(out: &mut String, values: impl Iterator<Item = V>, write: fn(&mut String, V)) {
    out.push('[');
    for (at, each) in values.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(out, each);
    }
    out.push(']');
}

fn value(out: &mut String, node: &Node) {
    match node {
        Node::Any(any) => plain(out, any),
        Node::Text { is_xml: false, pieces } => {
            let text = pieces.iter().map(|piece| match &piece.content {
                Node::Any(Any::String(text)) => text.to_string(),
                _ => super::EMBEDDED.to_string(),
            });
            quote(out, &text.collect::<String>());
        }
        Node::Array(nodes) => list(out, nodes.iter(), value),
        Node::Map(entries) => object(out, entries.iter().map(|(key, node)| (&**key, node)), value),
        Node::Text { .. } | Node::Element { .. } | Node::Fragment(_) => {
            let mut text = String::new();
            xml(&mut text, node);
            quote(out, &text);
        }
        Node::Unknown => out.push_str("null"),
    }
}

/// A value as JSON has them; bytes are a list of numbers.
fn plain(out: &mut String, any: &Any) {
    match any {
        Any::Null | Any::Undefined => out.push_str("null"),
        Any::Bool(true) => out.push_str("true"),
        Any::Bool(false) => out.push_str("false"),
        Any::Number(Number::Int(number)) => put(out, format_args!("{number}")),
        Any::Number(Number::Float(number)) if number.is_finite() => put(out, format_args!("{number}")),
        Any::Number(Number::Float(_)) => out.push_str("null"),
        Any::String(text) => quote(out, text),
        Any::Buffer(bytes) => list(out, bytes.iter(), |out, byte| put(out, format_args!("{byte}"))),
        Any::Array(values) => list(out, values.iter(), plain),
        Any::Map(entries) => {
            let sorted: BTreeMap<&String, &Any> = entries.iter().collect();
            object(out, sorted.into_iter().map(|(key, any)| (&**key, any)), plain);
        }
    }
}

/// XML as editors keep it. It is to be read, and not escaped: texts stand as they are.
fn xml(out: &mut String, node: &Node) {
    match node {
        Node::Element { tag, attributes, children } => {
            put(out, format_args!("<{tag}"));
            for (name, node) in attributes {
                put(out, format_args!(" {name}="));
                match node {
                    Node::Any(Any::String(text)) => quote(out, text),
                    other => {
                        let mut text = String::new();
                        value(&mut text, other);
                        quote(out, &text);
                    }
                }
            }
            out.push('>');
            children.iter().for_each(|child| xml(out, child));
            put(out, format_args!("</{tag}>"));
        }
        Node::Fragment(children) => children.iter().for_each(|child| xml(out, child)),
        Node::Text { pieces, .. } => pieces.iter().for_each(|piece| formatted(out, piece)),
        other => value(out, other),
    }
}

fn formatted(out: &mut String, piece: &Piece) {
    piece.formats.keys().for_each(|name| put(out, format_args!("<{name}>")));
    match &piece.content {
        Node::Any(Any::String(text)) => out.push_str(text),
        other => xml(out, other),
    }
    piece.formats.keys().rev().for_each(|name| put(out, format_args!("</{name}>")));
}

/// A text as JSON has it.
pub(crate) fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => put(out, format_args!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}
