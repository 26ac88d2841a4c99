//! Updates that no editor makes: each is refused by name, and nothing happens.

use thalweg_protocol::document::{COMMENTS_ROOT, DocumentAccess, Operations, ROOT};
use thalweg_protocol::limits::DOCUMENT_UPDATE_BYTES_MAX;
use thalweg_protocol::reject::RejectCode;

use super::super::{Document, NODE_CLIENTS, merge};
use super::NODE;

/// Builds updates byte by byte.
#[derive(Debug, Default, Clone)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    fn number(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self
    }

    fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    fn text(mut self, text: &str) -> Self {
        self = self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn id(self, client: u64, clock: u64) -> Self {
        self.number(client).number(clock)
    }

    /// How many clients have structs.
    fn clients(self, count: u64) -> Self {
        self.number(count)
    }

    /// How many structs of which client follow, from which clock on.
    fn section(self, count: u64, client: u64, clock: u64) -> Self {
        self.number(count).number(client).number(clock)
    }

    /// A text in a root.
    fn text_in_root(self, root: &str, text: &str) -> Self {
        self.byte(4).number(1).text(root).text(text)
    }

    /// A text behind something.
    fn text_behind(self, client: u64, clock: u64, text: &str) -> Self {
        self.byte(0x84).id(client, clock).text(text)
    }

    /// A type (0: array) that belongs to another.
    fn type_in(self, client: u64, clock: u64) -> Self {
        self.byte(7).number(0).id(client, clock).byte(0)
    }

    /// Nothing is deleted.
    fn end(self) -> Vec<u8> {
        self.number(0).0
    }
}

fn update() -> Bytes {
    Bytes::default()
}

/// A document with "abcdef" by client 1 in its text, an array by it in root `list`, and a text of the node's.
fn document() -> Document {
    let mut document = Document::new(NODE);
    let list = update().clients(1).section(2, 1, 0).text_in_root(ROOT, "abcdef").byte(7).number(1).text("list").byte(0);
    document.replay(&list.end()).expect("is an update");
    document.edit(&Operations::new().insert("node ")).expect("fits");
    document
}

#[test]
fn what_is_wrong_is_named() {
    let mut document = document();
    let (state, text) = (document.state(), document.text());
    let mut check = |what: &str, bytes: Vec<u8>, code: RejectCode, word: &str| {
        let reject = document.check(&bytes).expect_err(what);
        assert_eq!(reject.code, code, "{what}: {reject}");
        assert!(reject.message.contains(word), "{what}: {reject}");
    };
    let one = |client| update().clients(1).section(1, client, 0);
    use RejectCode::{UpdateIncomplete as Incomplete, UpdateInvalid as Invalid};
    check("nothing", Vec::new(), Invalid, "ends early");
    check("cut off", vec![1, 1, 5, 0, 4, 1, 7], Invalid, "ends early");
    check("more than it says", vec![0, 0, 0], Invalid, "follows its end");
    check("a huge count of clients", update().clients(1 << 40).end(), Invalid, "ends early");
    check("a huge count of structs", update().clients(1).section(1 << 30, 9, 0).end(), Invalid, "ends early");
    check(
        "a client of 60 bits",
        update().clients(1).section(1, 1 << 60, 0).byte(0).number(1).end(),
        Invalid,
        "53 bits",
    );
    check("a client of a node", one(NODE_CLIENTS).text_in_root(ROOT, "x").end(), Invalid, "only nodes");
    check(
        "the node itself",
        update().clients(1).section(1, NODE, 5).text_behind(NODE, 4, "x").end(),
        Invalid,
        "only nodes",
    );
    check("a clock of 40 bits", update().clients(1).section(1, 9, 1 << 40).byte(0).number(1).end(), Invalid, "clock");
    check("a length of 40 bits", one(9).byte(0).number(1 << 40).end(), Invalid, "clock");
    check(
        "lengths that add up",
        update().clients(1).section(2, 9, 0).byte(0).number(1 << 29).byte(0).number(1 << 29).end(),
        Invalid,
        "clock",
    );
    check("a length of 0", one(9).byte(0).number(0).end(), Invalid, "length 0");
    check("an empty text", one(9).text_in_root(ROOT, "").end(), Invalid, "length 0");
    check("no structs", update().clients(1).section(0, 9, 0).end(), Invalid, "without parts");
    check("no values", one(9).byte(8).number(1).text("list").number(0).end(), Invalid, "length 0");
    let twice = update().clients(2).section(1, 9, 0).text_in_root(ROOT, "x").section(1, 9, 1).text_behind(9, 0, "y");
    check("a client twice", twice.end(), Invalid, "twice");
    check("kind 12", one(9).byte(12).number(1).text(ROOT).end(), Invalid, "no known kind");
    check("kind 20", one(9).byte(0x14).number(1).text(ROOT).text("x").end(), Invalid, "no known kind");
    check("a parent of kind 2", one(9).byte(4).number(2).text(ROOT).text("x").end(), Invalid, "parent");
    check("old JSON", one(9).byte(2).number(1).text("list").number(1).text("1").end(), Invalid, "older than 13");
    check(
        "a subdocument",
        one(9).byte(9).number(1).text("list").text("guid").byte(127).end(),
        Invalid,
        "document within",
    );
    check("a weak link", one(9).byte(7).number(1).text("list").byte(7).end(), Invalid, "weak link");
    check("an XML hook", one(9).byte(7).number(1).text("list").byte(5).text("").end(), Invalid, "XML hook");
    check("a type of kind 14", one(9).byte(7).number(1).text("list").byte(14).end(), Invalid, "type of no known kind");
    check(
        "bytes that are no text",
        one(9).byte(4).number(1).text(ROOT).number(2).byte(0xff).byte(0xfe).end(),
        Invalid,
        "UTF-8",
    );
    check(
        "a value of kind 3",
        one(9).byte(8).number(1).text("list").number(1).byte(3).end(),
        Invalid,
        "value of no known kind",
    );
    let deep = (0..100).fold(one(9).byte(8).number(1).text("list").number(1), |bytes, _| bytes.byte(117).number(1));
    check("values in values", deep.byte(127).end(), Invalid, "nested");
    check("a long name", one(9).text_in_root(&"r".repeat(5_000), "x").end(), Invalid, "name longer");
    let gaps = update().clients(1).section(3, 1, 0).byte(10).number(2).byte(10).number(2).byte(0).number(9);
    check("two gaps", gaps.end(), Invalid, "two gaps");
    let circle = update().clients(2).section(1, 8, 0).text_behind(9, 0, "x").section(1, 9, 0).text_behind(8, 0, "y");
    check("a circle", circle.end(), Invalid, "circle");
    check("itself", one(9).text_behind(9, 0, "x").end(), Incomplete, "client 9");
    check("a gap", update().clients(1).section(1, 1, 9).text_behind(1, 5, "x").end(), Incomplete, "from 7 on");
    let skip = update().clients(1).section(2, 1, 7).byte(10).number(2).text_behind(1, 5, "x");
    check("a gap that it names", skip.end(), Incomplete, "from 7 on");
    check("somebody unknown", one(9).text_behind(77, 3, "x").end(), Incomplete, "client 77");
    check("a parent unknown", one(9).type_in(77, 3).end(), Incomplete, "client 77");
    check("a parent that is a text", one(9).type_in(1, 2).end(), Invalid, "no type");
    let deletes = |start, length| update().clients(0).number(1).number(1).number(1).number(start).number(length).0;
    check("deletes what is to come", deletes(5, 3), Incomplete, "from 7 on");
    check(
        "deletes of somebody unknown",
        update().clients(0).number(1).number(77).number(1).number(0).number(1).0,
        Incomplete,
        "client 77",
    );
    check("deletes nothing", deletes(2, 0), Invalid, "length 0");
    let backwards = update().clients(0).number(1).number(1).number(2).number(3).number(1).number(1).number(1).0;
    check("deletes out of order", backwards, Invalid, "out of order");
    check("too long", vec![0; DOCUMENT_UPDATE_BYTES_MAX + 1], Invalid, "pieces");
    assert_eq!((document.state(), document.text()), (state, text));
}

#[test]
fn types_are_nested_to_a_depth() {
    let mut document = Document::new(NODE);
    let mut bytes = update().clients(1).section(90, 9, 0).byte(7).number(1).text("list").byte(0);
    for clock in 0..89 {
        bytes = bytes.type_in(9, clock);
    }
    let update_a = bytes.end();
    let checked = document.check(&update_a).expect("90 deep is allowed");
    document.apply(checked, &update_a, DocumentAccess::Write).expect("applies");
    let mut bytes = update().clients(1).section(20, 9, 90);
    for clock in 89..109 {
        bytes = bytes.type_in(9, clock);
    }
    let reject = document.check(&bytes.end()).expect_err("110 deep is not");
    assert!(reject.message.contains("nested"), "{reject}");
    assert!(document.json().contains("[[[[[["));
    // And the same once it was read from its own state.
    let mut opened = Document::open(NODE, &document.state()).expect("opens");
    let mut bytes = update().clients(1).section(20, 8, 0).type_in(9, 89);
    for clock in 0..19 {
        bytes = bytes.type_in(8, clock);
    }
    assert!(opened.check(&bytes.end()).expect_err("too deep").message.contains("nested"));
}

#[test]
fn crowds_at_one_place_are_refused() {
    let mut document = document();
    let mut bytes = update().clients(1).section(2_000, 9, 0);
    for _ in 0..2_000 {
        bytes = bytes.byte(4).number(1).text(ROOT).text("x");
    }
    let reject = document.check(&bytes.end()).expect_err("no editor inserts so");
    assert_eq!(reject.code, RejectCode::UpdateInvalid);
    assert!(reject.message.contains("one place"), "{reject}");
}

#[test]
fn many_clients_do_not_exhaust_the_stack() {
    let mut document = Document::new(NODE);
    let clients = 4_000u64;
    let mut bytes = update().clients(clients);
    for client in (1..=clients).rev() {
        bytes = bytes.section(1, client, 0);
        bytes = if client == 1 { bytes.text_in_root(ROOT, "x") } else { bytes.text_behind(client - 1, 0, "x") };
    }
    let bytes = bytes.end();
    let checked = document.check(&bytes).expect("each behind the one before");
    assert!(document.apply(checked, &bytes, DocumentAccess::Write).expect("applies").changed);
    assert_eq!(document.text().len(), 4_000);
    let again = Document::open(NODE, &document.state()).expect("opens");
    assert_eq!(again.text(), document.text());
}

#[test]
fn a_gap_over_what_is_known_is_no_gap() {
    let mut document = document();
    let bytes = update().clients(1).section(3, 1, 2).byte(10).number(4).byte(10 - 10).number(1).text_behind(1, 5, "!");
    let bytes = bytes.end();
    let checked = document.check(&bytes).expect("it jumps over what the document has");
    assert!(checked.is_news);
    let applied = document.apply(checked, &bytes, DocumentAccess::Write);
    assert!(applied.is_ok() && !document.is_poisoned(), "{applied:?}");
}

#[test]
fn text_where_no_text_belongs_is_read_to_its_end() {
    let mut document = Document::new(NODE);
    let bytes = update().clients(1).section(5, 9, 0);
    let bytes = bytes.byte(8).number(1).text("list").number(1).byte(125).byte(5);
    let bytes = bytes.byte(0x84).id(9, 0).text("\u{1f600}\u{1f600}");
    let bytes = bytes.byte(7).number(1).text("page").byte(4).byte(4).number(0).id(9, 5).text("\u{1f600}");
    let bytes = bytes.byte(4).number(1).text("page").text("\u{1f600}\u{1f600}").end();
    let checked = document.check(&bytes).expect("well formed, though nobody makes it");
    let old = Document::new(NODE);
    document.apply(checked, &bytes, DocumentAccess::Write).expect("applies");
    assert!(document.json().contains("\"page\""), "{}", document.json());
    let _ = document.restore(&old);
    assert!(Document::open(NODE, &document.state()).is_ok());
}

/// A document with "abc" by client 1 in its text, "de" by client 2 in its comments, and an entry of a map by client 3.
fn of_three() -> Document {
    let mut document = Document::new(NODE);
    let bytes = update().clients(3).section(1, 1, 0).text_in_root(ROOT, "abc").section(1, 2, 0);
    let bytes = bytes.text_in_root(COMMENTS_ROOT, "de").section(1, 3, 0);
    document
        .replay(&bytes.byte(0x28).number(1).text("map").text("key").number(1).byte(120).end())
        .expect("is an update");
    document
}

#[test]
fn what_is_known_in_part_is_where_it_was() {
    // The library puts the rest behind what it knows: a commenter's would be in the text.
    let mut document = of_three();
    let more = |client, root| update().clients(1).section(1, client, 0).text_in_root(root, "abcdef").end();
    for (client, root) in [(1, COMMENTS_ROOT), (2, ROOT), (1, "list")] {
        let reject = document.check(&more(client, root)).expect_err("is elsewhere");
        assert!(reject.message.contains("elsewhere than it says"), "{reject}");
    }
    for (client, root) in [(1, ROOT), (2, COMMENTS_ROOT)] {
        let (mut document, bytes) = (of_three(), more(client, root));
        let checked = document.check(&bytes).expect("is where it was");
        document.apply(checked, &bytes, DocumentAccess::Write).expect("applies");
        assert!(document.json().contains("cdef"), "{}", document.json());
    }
    let gone = update().clients(1).section(2, 1, 0).byte(0).number(4).text_in_root(ROOT, "x").end();
    assert!(document.check(&gone).expect_err("what is known is not gone").message.contains("elsewhere"));
}

#[test]
fn what_stands_between_two_places_is_refused() {
    let mut document = of_three();
    let mut check = |bytes: Bytes, word: &str| {
        let reject = document.check(&bytes.end()).expect_err(word);
        assert!(reject.message.contains(word), "{reject}");
    };
    let one = || update().clients(1).section(1, 9, 0);
    check(one().byte(0xc4).id(1, 2).id(2, 0).text("x"), "not in the same place");
    check(one().byte(0xc4).id(2, 1).id(1, 0).text("x"), "not in the same place");
    check(one().byte(0xc8).id(3, 0).id(1, 0).number(1).byte(120), "not in the same place");
    check(one().byte(0x48).id(3, 0).number(1).byte(120), "before the value of a key");
    check(one().byte(0x84).id(3, 0).text("x"), "text that is in no type");
    check(one().byte(0x24).number(1).text("map").text("other").text("x"), "text that is in no type");
}

#[test]
fn what_is_told_again_differently_is_not_passed_on() {
    // Merged with what it contradicts, it would win: by it, a commenter could write in the text.
    for lie in [update().text_in_root(ROOT, "xyz"), update().byte(0).number(3)] {
        let mut document = of_three();
        let before = document.state();
        let mut bytes = update().clients(2).section(1, 1, 0);
        bytes.0.extend(lie.0);
        let bytes = bytes.section(1, 9, 0).text_in_root(COMMENTS_ROOT, "why?").end();
        let checked = document.check(&bytes).expect("what is known is not looked at");
        let applied = document.apply(checked, &bytes, DocumentAccess::Comment).expect("it comments");
        assert_eq!(document.text(), "abc");
        let kept = applied.instead.expect("is not kept as it is");
        assert!(kept.len() < bytes.len(), "only what is new is kept");
        for order in [[before.clone(), kept.clone()], [kept, before]] {
            let merged = Document::open(NODE, &merge(&order).expect("merges")).expect("opens");
            assert_eq!(merged.json(), document.json());
        }
    }
    let mut document = of_three();
    let bytes = update().clients(1).section(1, 1, 3).text_behind(1, 2, "d").end();
    let checked = document.check(&bytes).expect("follows");
    let applied = document.apply(checked, &bytes, DocumentAccess::Write).expect("applies");
    assert_eq!(applied.instead, None, "what is only new is kept as it came");
}

#[test]
fn half_a_character_is_told_as_a_whole_one() {
    let told = |bytes: Vec<u8>, expected: Operations, text: &str| {
        let mut document = Document::new(NODE);
        let face = update().clients(1).section(1, 1, 0).text_in_root(ROOT, "a\u{1f600}c").end();
        document.replay(&face).expect("is an update");
        document.watch(true);
        let checked = document.check(&bytes).expect("is well formed");
        let applied = document.apply(checked, &bytes, DocumentAccess::Write).expect("applies");
        assert_eq!((applied.operations, document.text().as_str()), (Some(expected), text));
    };
    let deletes = |start, length| update().clients(0).number(1).number(1).number(1).number(start).number(length).0;
    let replaced = |by: &str| Operations::new().retain(1).insert(by).delete(2);
    told(deletes(2, 1), replaced("\u{fffd}"), "a\u{fffd}c");
    told(deletes(1, 1), replaced("\u{fffd}"), "a\u{fffd}c");
    told(deletes(1, 2), Operations::new().retain(1).delete(2), "ac");
    let between = update().clients(1).section(1, 9, 0).byte(0xc4).id(1, 1).id(1, 2).text("x").end();
    told(between, replaced("\u{fffd}x\u{fffd}"), "a\u{fffd}x\u{fffd}c");
    let format = update().clients(1).section(1, 9, 0).byte(0xc6).id(1, 1).id(1, 2).text("bold").text("true").end();
    told(format, replaced("\u{fffd}\u{fffd}"), "a\u{fffd}\u{fffd}c");
}
