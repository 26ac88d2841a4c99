//! Making a document what it was: the least that has to be changed where that is cheap to find.

use std::collections::BTreeMap;
use std::sync::Arc;

use yrs::branch::{Branch, BranchPtr};
use yrs::types::Attrs;
use yrs::{Any, Array, ArrayPrelim, ArrayRef, Map, MapPrelim, MapRef, Out, ReadTxn, Text, TextPrelim, TextRef};
use yrs::{
    TransactionMut, WriteTxn, Xml, XmlElementPrelim, XmlElementRef, XmlFragment, XmlFragmentPrelim, XmlFragmentRef,
};
use yrs::{XmlTextPrelim, XmlTextRef};

use super::differ::{Step, steps};
use super::tree::{self, Formats, Node, Piece, piece_len};

/// What a document holds, to be restored.
pub(crate) fn read<T: ReadTxn>(txn: &T) -> BTreeMap<String, Node> {
    tree::read(txn)
}

/// Makes all roots what they were. A root that was not there yet is emptied.
pub(crate) fn restore(txn: &mut TransactionMut<'_>, old: &BTreeMap<String, Node>) {
    let now = tree::read(txn);
    let names: Vec<&String> = now.keys().chain(old.keys().filter(|name| !now.contains_key(*name))).collect();
    for name in names {
        let (now, old) = (now.get(name).unwrap_or(&Node::Unknown), old.get(name).unwrap_or(&Node::Unknown));
        if now != old {
            root(txn, name, now, old);
        }
    }
}

fn root(txn: &mut TransactionMut<'_>, name: &str, now: &Node, old: &Node) {
    // What is to be emptied is what it is now.
    let kind = if *old == Node::Unknown { now } else { old };
    let is_same_kind = std::mem::discriminant(now) == std::mem::discriminant(kind);
    if !is_same_kind && *now != Node::Unknown {
        root(txn, name, now, &Node::Unknown);
    }
    let (none, empty) = (Vec::new(), BTreeMap::new());
    match kind {
        Node::Text { .. } => {
            let text = branch(txn, name).map_or_else(|| txn.get_or_insert_text(name), TextRef::from);
            let pieces = if let Node::Text { pieces, .. } = old { pieces } else { &Vec::new() };
            set_text(txn, &text, pieces);
        }
        Node::Array(_) => {
            let array = branch(txn, name).map_or_else(|| txn.get_or_insert_array(name), ArrayRef::from);
            set_array(txn, &array, if let Node::Array(items) = old { items } else { &none });
        }
        Node::Fragment(_) => {
            let fragment = branch(txn, name).map_or_else(|| txn.get_or_insert_xml_fragment(name), XmlFragmentRef::from);
            set_children(txn, &fragment, if let Node::Fragment(items) = old { items } else { &none });
        }
        Node::Map(_) => {
            let map = branch(txn, name).map_or_else(|| txn.get_or_insert_map(name), MapRef::from);
            set_map(txn, &map, if let Node::Map(entries) = old { entries } else { &empty });
        }
        Node::Any(_) | Node::Element { .. } | Node::Unknown => {}
    }
}

fn branch(txn: &TransactionMut<'_>, name: &str) -> Option<BranchPtr> {
    yrs::BranchID::get_root(txn, name)
}

/// One unit of a text: a character, or what is embedded.
#[derive(Clone, Copy, PartialEq)]
enum Unit<'a> {
    Char(char),
    Embedded(&'a Node),
}

fn units(pieces: &[Piece]) -> Vec<Unit<'_>> {
    let mut units = Vec::new();
    for piece in pieces {
        match &piece.content {
            Node::Any(Any::String(text)) => units.extend(text.chars().map(Unit::Char)),
            other => units.push(Unit::Embedded(other)),
        }
    }
    units
}

fn units_len(units: &[Unit<'_>]) -> u32 {
    units.iter().map(|unit| if let Unit::Char(c) = unit { c.len_utf16() as u32 } else { 1 }).sum()
}

/// Makes a text what it was: first its characters, then their formats where these differ.
fn set_text<X: Text>(txn: &mut TransactionMut<'_>, text: &X, old: &[Piece]) {
    let now = tree::pieces(txn, text);
    let (have, want) = (units(&now), units(old));
    let mut at = 0;
    for step in steps(&have, &want) {
        match step {
            Step::Keep(range) => at += units_len(&have[range]),
            Step::Remove(range) => text.remove_range(txn, at, units_len(&have[range])),
            Step::Insert(range) => {
                for run in want[range].chunk_by(|a, b| matches!((a, b), (Unit::Char(_), Unit::Char(_)))) {
                    insert_units(txn, text, at, run);
                    at += units_len(run);
                }
            }
        }
    }
    set_formats(txn, text, old);
}

fn insert_units<X: Text>(txn: &mut TransactionMut<'_>, text: &X, at: u32, run: &[Unit<'_>]) {
    let Some(Unit::Embedded(node)) = run.first() else {
        let characters: String =
            run.iter().filter_map(|unit| if let Unit::Char(c) = unit { Some(*c) } else { None }).collect();
        text.insert(txn, at, &characters);
        return;
    };
    match node {
        Node::Any(any) => drop(text.insert_embed(txn, at, any.clone())),
        Node::Map(entries) => {
            let map = text.insert_embed(txn, at, MapPrelim::default());
            set_map(txn, &map, entries);
        }
        Node::Array(items) => {
            let array = text.insert_embed(txn, at, ArrayPrelim::default());
            set_array(txn, &array, items);
        }
        Node::Text { pieces, .. } => {
            let inner = text.insert_embed(txn, at, TextPrelim::new(""));
            set_text(txn, &inner, pieces);
        }
        Node::Element { tag, attributes, children } => {
            let element = text.insert_embed(txn, at, XmlElementPrelim::empty(tag.clone()));
            set_element(txn, &element, attributes, children);
        }
        // Nothing that editors embed: one unit stands for it, so that offsets stay right.
        Node::Fragment(_) | Node::Unknown => text.insert(txn, at, &super::EMBEDDED.to_string()),
    }
}

fn set_formats<X: Text>(txn: &mut TransactionMut<'_>, text: &X, old: &[Piece]) {
    let now = tree::pieces(txn, text);
    let (mut have, mut want) = (spans(&now), spans(old));
    let (mut at, mut changes) = (0u32, Vec::new());
    while let (Some((have_len, have_formats)), Some((want_len, want_formats))) = (have.last_mut(), want.last_mut()) {
        let common = (*have_len).min(*want_len);
        let keys = have_formats.keys().chain(want_formats.keys().filter(|key| !have_formats.contains_key(*key)));
        for key in keys {
            let (is, was) = (have_formats.get(key), want_formats.get(key));
            if is != was {
                changes.push((at, common, Arc::clone(key), was.cloned().unwrap_or(Any::Null)));
            }
        }
        at += common;
        *have_len -= common;
        *want_len -= common;
        if *have_len == 0 {
            have.pop();
        }
        if want.last().is_some_and(|(length, _)| *length == 0) {
            want.pop();
        }
    }
    for (at, length, key, value) in changes {
        text.format(txn, at, length, Attrs::from([(key, value)]));
    }
}

/// Lengths and formats, the first one last.
fn spans(pieces: &[Piece]) -> Vec<(u32, &Formats)> {
    pieces.iter().rev().map(|piece| (piece_len(&piece.content), &piece.formats)).collect()
}

fn set_map(txn: &mut TransactionMut<'_>, map: &MapRef, old: &BTreeMap<String, Node>) {
    let now: BTreeMap<String, Node> =
        map.iter(txn).map(|(key, value)| (key.to_owned(), tree::node(txn, value))).collect();
    for key in now.keys().filter(|key| !old.contains_key(*key)) {
        map.remove(txn, key);
    }
    for (key, want) in old {
        if now.get(key) == Some(want) || map.get(txn, key).is_some_and(|inner| set_inner(txn, inner, want)) {
            continue;
        }
        let key = key.as_str();
        match want {
            Node::Any(any) => drop(map.insert(txn, key, any.clone())),
            Node::Text { is_xml: false, pieces } => {
                let text = map.insert(txn, key, TextPrelim::new(""));
                set_text(txn, &text, pieces);
            }
            Node::Text { pieces, .. } => {
                let text: XmlTextRef = map.insert(txn, key, XmlTextPrelim::new(""));
                set_text(txn, &text, pieces);
            }
            Node::Array(items) => {
                let array = map.insert(txn, key, ArrayPrelim::default());
                set_array(txn, &array, items);
            }
            Node::Map(entries) => {
                let inner = map.insert(txn, key, MapPrelim::default());
                set_map(txn, &inner, entries);
            }
            Node::Element { tag, attributes, children } => {
                let element = map.insert(txn, key, XmlElementPrelim::empty(tag.clone()));
                set_element(txn, &element, attributes, children);
            }
            Node::Fragment(children) => {
                let fragment = map.insert(txn, key, XmlFragmentPrelim::default());
                set_children(txn, &fragment, children);
            }
            Node::Unknown => {}
        }
    }
}

/// Makes a value what it was without replacing it; tells whether that can be done.
fn set_inner(txn: &mut TransactionMut<'_>, inner: Out, want: &Node) -> bool {
    match (inner, want) {
        (Out::YText(text), Node::Text { is_xml: false, pieces }) => set_text(txn, &text, pieces),
        (Out::YXmlText(text), Node::Text { is_xml: true, pieces }) => set_text(txn, &text, pieces),
        (Out::YArray(array), Node::Array(items)) => set_array(txn, &array, items),
        (Out::YMap(map), Node::Map(entries)) => set_map(txn, &map, entries),
        (Out::YXmlFragment(fragment), Node::Fragment(children)) => set_children(txn, &fragment, children),
        (Out::YXmlElement(element), Node::Element { tag, attributes, children }) if element.try_tag() == Some(tag) => {
            set_element(txn, &element, attributes, children);
        }
        _ => return false,
    }
    true
}

/// What has elements in a row.
trait Row {
    fn items(&self, txn: &TransactionMut<'_>) -> Vec<Node>;
    fn item(&self, txn: &TransactionMut<'_>, at: u32) -> Option<Out>;
    fn remove(&self, txn: &mut TransactionMut<'_>, at: u32, count: u32);
    fn insert(&self, txn: &mut TransactionMut<'_>, at: u32, node: &Node);
}

fn as_array(branch: &Branch) -> ArrayRef {
    ArrayRef::from(BranchPtr::from(branch))
}

impl Row for ArrayRef {
    fn items(&self, txn: &TransactionMut<'_>) -> Vec<Node> {
        self.iter(txn).map(|value| tree::node(txn, value)).collect()
    }

    fn item(&self, txn: &TransactionMut<'_>, at: u32) -> Option<Out> {
        Array::get(self, txn, at)
    }

    fn remove(&self, txn: &mut TransactionMut<'_>, at: u32, count: u32) {
        self.remove_range(txn, at, count);
    }

    fn insert(&self, txn: &mut TransactionMut<'_>, at: u32, node: &Node) {
        match node {
            Node::Any(any) => drop(Array::insert(self, txn, at, any.clone())),
            Node::Text { is_xml: false, pieces } => {
                let text = Array::insert(self, txn, at, TextPrelim::new(""));
                set_text(txn, &text, pieces);
            }
            Node::Text { pieces, .. } => {
                let text: XmlTextRef = Array::insert(self, txn, at, XmlTextPrelim::new(""));
                set_text(txn, &text, pieces);
            }
            Node::Array(items) => {
                let array = Array::insert(self, txn, at, ArrayPrelim::default());
                set_array(txn, &array, items);
            }
            Node::Map(entries) => {
                let map = Array::insert(self, txn, at, MapPrelim::default());
                set_map(txn, &map, entries);
            }
            Node::Element { tag, attributes, children } => {
                let element = Array::insert(self, txn, at, XmlElementPrelim::empty(tag.clone()));
                set_element(txn, &element, attributes, children);
            }
            Node::Fragment(children) => {
                let fragment = Array::insert(self, txn, at, XmlFragmentPrelim::default());
                set_children(txn, &fragment, children);
            }
            Node::Unknown => drop(Array::insert(self, txn, at, Any::Null)),
        }
    }
}

fn set_array(txn: &mut TransactionMut<'_>, array: &ArrayRef, old: &[Node]) {
    if !tree::has_text(txn, array.as_ref()) {
        set_row(txn, array, old);
    }
}

fn set_children<X: XmlFragment>(txn: &mut TransactionMut<'_>, parent: &X, old: &[Node]) {
    set_array(txn, &as_array(parent.as_ref()), old);
}

/// Makes a row what it was. Where as many elements differ as before, each is made what it was, if it can be.
fn set_row(txn: &mut TransactionMut<'_>, row: &impl Row, old: &[Node]) {
    let now = row.items(txn);
    let mut at = 0u32;
    let mut steps = steps(&now, old).into_iter().peekable();
    while let Some(step) = steps.next() {
        match step {
            Step::Keep(range) => at += range.len() as u32,
            Step::Remove(range) => {
                let mut left = range.len() as u32;
                if let Some(Step::Insert(wanted)) = steps.next_if(|next| matches!(next, Step::Insert(_))) {
                    for want in &old[wanted] {
                        let inner = if left > 0 { row.item(txn, at) } else { None };
                        if inner.is_some_and(|inner| set_inner(txn, inner, want)) {
                            left -= 1;
                        } else {
                            row.insert(txn, at, want);
                        }
                        at += 1;
                    }
                }
                if left > 0 {
                    row.remove(txn, at, left);
                }
            }
            Step::Insert(range) => {
                for want in &old[range] {
                    row.insert(txn, at, want);
                    at += 1;
                }
            }
        }
    }
}

fn set_element(
    txn: &mut TransactionMut<'_>,
    element: &XmlElementRef,
    attributes: &BTreeMap<String, Node>,
    children: &[Node],
) {
    let now: BTreeMap<String, Node> =
        element.attributes(txn).map(|(key, value)| (key.to_owned(), tree::node(txn, value))).collect();
    for key in now.keys().filter(|key| !attributes.contains_key(*key)) {
        element.remove_attribute(txn, key);
    }
    for (key, want) in attributes {
        if now.get(key) != Some(want)
            && let Node::Any(any) = want
        {
            element.insert_attribute(txn, key.as_str(), any.clone());
        }
    }
    set_children(txn, element, children);
}
