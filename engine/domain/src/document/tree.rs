//! What a document holds, as plain values that can be compared, and in an order that is the same everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_protocol::document::utf16_len;
use yrs::branch::{Branch, BranchPtr};
use yrs::types::Attrs;
use yrs::types::text::YChange;
use yrs::{Any, Array, ArrayRef, Map, MapRef, Out, ReadTxn, Text, TextRef, Xml, XmlElementRef};

/// Formats or attributes, by name.
pub(crate) type Formats = BTreeMap<Arc<str>, Any>;

/// A value, and what is in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// A value as JSON has them, or bytes.
    Any(Any),
    /// A text; `is_xml`: one among XML elements.
    Text { is_xml: bool, pieces: Vec<Piece> },
    /// Values in a row.
    Array(Vec<Node>),
    /// Values by key.
    Map(BTreeMap<String, Node>),
    /// An XML element.
    Element { tag: Arc<str>, attributes: BTreeMap<String, Node>, children: Vec<Node> },
    /// XML elements in a row.
    Fragment(Vec<Node>),
    /// What nobody can tell, such as an empty root.
    Unknown,
}

/// A stretch of a text that has the same formats.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    /// Text; or, if it is not an [`Any::String`], something that is embedded.
    pub(crate) content: Node,
    pub(crate) formats: Formats,
}

/// All roots, by name.
pub(crate) fn read<T: ReadTxn>(txn: &T) -> BTreeMap<String, Node> {
    txn.root_refs().map(|(name, root)| (name.to_owned(), node(txn, root))).collect()
}

/// One value.
pub(crate) fn node<T: ReadTxn>(txn: &T, value: Out) -> Node {
    match value {
        Out::Any(any) => Node::Any(any),
        Out::YText(text) => text_or_else(txn, &text),
        Out::YXmlText(text) => Node::Text { is_xml: true, pieces: pieces(txn, &text) },
        Out::YArray(array) => Node::Array(items(txn, &array)),
        Out::YMap(map) => Node::Map(entries(txn, &map)),
        Out::YXmlFragment(fragment) => Node::Fragment(items(txn, &array_of(fragment.as_ref()))),
        Out::YXmlElement(element) => self::element(txn, &element),
        Out::UndefinedRef(branch) => guess(txn, branch),
        Out::YDoc(_) => Node::Unknown,
    }
}

fn array_of(branch: &Branch) -> ArrayRef {
    ArrayRef::from(BranchPtr::from(branch))
}

/// The root that the node itself takes for a text, whatever its editors take it for.
fn text_or_else<T: ReadTxn>(txn: &T, text: &TextRef) -> Node {
    let branch: &Branch = text.as_ref();
    let is_text = has_text(txn, branch) || (text.len(txn) == 0 && MapRef::from(BranchPtr::from(branch)).len(txn) == 0);
    match is_text {
        true => Node::Text { is_xml: false, pieces: pieces(txn, text) },
        false => guess(txn, BranchPtr::from(branch)),
    }
}

/// How long a piece of text is in UTF-16 code units; what is embedded counts as one.
pub(crate) fn piece_len(content: &Node) -> u32 {
    match content {
        Node::Any(Any::String(text)) => utf16_len(text),
        _ => 1,
    }
}

/// What a root is that nobody named the type of: what its content can only be.
fn guess<T: ReadTxn>(txn: &T, branch: BranchPtr) -> Node {
    if has_text(txn, &branch) {
        return Node::Text { is_xml: false, pieces: pieces(txn, &TextRef::from(branch)) };
    }
    let in_row = items(txn, &ArrayRef::from(branch));
    let by_key = entries(txn, &MapRef::from(branch));
    if in_row.is_empty() {
        return if by_key.is_empty() { Node::Unknown } else { Node::Map(by_key) };
    }
    match in_row.iter().all(|node| matches!(node, Node::Element { .. } | Node::Text { is_xml: true, .. })) {
        true => Node::Fragment(in_row),
        false => Node::Array(in_row),
    }
}

/// Whether there is text, or something embedded in text, in a row: values of an array are not among these chunks. The
/// library's iterators over rows never end on some texts.
pub(crate) fn has_text<T: ReadTxn>(txn: &T, branch: &Branch) -> bool {
    let chunks = TextRef::from(BranchPtr::from(branch)).diff(txn, YChange::identity);
    chunks.iter().any(|chunk| matches!(chunk.insert, Out::Any(_)))
}

fn items<T: ReadTxn>(txn: &T, array: &ArrayRef) -> Vec<Node> {
    let branch: &Branch = array.as_ref();
    if has_text(txn, branch) {
        return pieces(txn, &TextRef::from(BranchPtr::from(branch))).into_iter().map(|piece| piece.content).collect();
    }
    array.iter(txn).map(|value| node(txn, value)).collect()
}

fn entries<T: ReadTxn>(txn: &T, map: &MapRef) -> BTreeMap<String, Node> {
    map.iter(txn).map(|(key, value)| (key.to_owned(), node(txn, value))).collect()
}

fn element<T: ReadTxn>(txn: &T, element: &XmlElementRef) -> Node {
    Node::Element {
        tag: element.try_tag().cloned().unwrap_or_else(|| "UNDEFINED".into()),
        attributes: element.attributes(txn).map(|(key, value)| (key.to_owned(), node(txn, value))).collect(),
        children: items(txn, &array_of(element.as_ref())),
    }
}

/// The pieces of a text, those of equal formats as one.
pub(crate) fn pieces<T: ReadTxn, X: Text>(txn: &T, text: &X) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for chunk in text.diff(txn, YChange::identity) {
        let formats = chunk.attributes.map_or_else(Formats::new, |formats| sorted(*formats));
        let content = node(txn, chunk.insert);
        if let (Node::Any(Any::String(more)), Some(last)) = (&content, pieces.last_mut())
            && last.formats == formats
            && let Node::Any(Any::String(text)) = &mut last.content
        {
            *text = [&**text, more].concat().into();
            continue;
        }
        pieces.push(Piece { content, formats });
    }
    pieces
}

fn sorted(formats: Attrs) -> Formats {
    formats.into_iter().collect()
}
