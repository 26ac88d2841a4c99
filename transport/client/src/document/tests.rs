//! Properties of what documents are made of here, without a node.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate, Operation, Operations, Side, utf16_len};
use thalweg_protocol::ids::{GenerationId, Position};
use yrs::updates::decoder::Decode as _;

use super::Assembly;
use super::awareness::{Others, Own};
use super::positional::Positional;
use super::replica::{INSERTION_BYTES, Replica, anchor_json, anchor_of_json, chunks};

fn replica(client: u64, text: &str) -> Replica {
    let mut replica = Replica::new(client);
    replica.edit(&Operations::new().insert(text));
    replica
}

/// Takes in what another has.
fn fetch(to: &mut Replica, from: &Replica) {
    if let Some(update) = from.lacking(&to.state_vector()) {
        to.apply(&update, None).expect("an update");
    }
}

#[test]
fn texts_are_cut_between_characters() {
    let check =
        |text: &str, most: usize, expected: &[&str]| assert_eq!(chunks(text, most).collect::<Vec<_>>(), expected);
    check("", 4, &[]);
    check("abcdef", 4, &["abcd", "ef"]);
    check("a日b", 4, &["a日", "b"]);
    check("👍👍", 4, &["👍", "👍"]);
}

#[test]
fn a_paste_becomes_several_updates() {
    let mut replica = Replica::new(1);
    let text = "x".repeat(3 * INSERTION_BYTES + 1);
    let edited = replica.edit(&Operations::new().insert(text.clone()));
    assert_eq!(edited.updates.len(), 4);
    assert!(edited.updates.iter().all(|update| update.len() < INSERTION_BYTES + 64));
    assert_eq!(edited.operations, Operations::new().insert(text.clone()));
    replica.undo().expect("it can be taken back, as one");
    assert_eq!(replica.text(), "");
    replica.redo().expect("and done again");
    assert_eq!(replica.text(), text);
}

#[test]
fn own_edits_are_taken_back_and_those_of_others_stay() {
    let mut mine = replica(1, "The fox.");
    mine.separate();
    mine.edit(&Operations::new().retain(4).insert("quick "));
    let mut other = Replica::new(2);
    fetch(&mut other, &mine);
    other.edit(&Operations::new().retain(10).insert("brown "));
    fetch(&mut mine, &other);
    assert_eq!(mine.text(), "The quick brown fox.");
    let edited = mine.undo().expect("an own edit");
    assert_eq!(edited.operations, Operations::new().retain(4).delete(6));
    assert_eq!(mine.text(), "The brown fox.");
    assert!(mine.can_redo());
    mine.redo().expect("the same edit");
    assert_eq!(mine.text(), "The quick brown fox.");
    mine.undo();
    mine.undo();
    assert_eq!(mine.text(), "brown ");
    assert!(mine.undo().is_none() && !mine.can_undo());
    mine.redo();
    mine.redo();
    assert_eq!(mine.text(), "The quick brown fox.");
    fetch(&mut other, &mine);
    assert_eq!(other.text(), mine.text());
    mine.edit(&Operations::new().insert("!"));
    assert!(!mine.can_redo(), "a new edit ends what could be done again");
}

#[test]
fn a_models_edit_is_taken_back_as_one() {
    let generation = GenerationId(7);
    let mut mine = replica(1, "Old words here.");
    mine.separate();
    let mut model = Replica::new(2);
    fetch(&mut model, &mine);
    mine.asks(Position(3));
    mine.adopt(generation);
    // It takes the selection out, and writes in pieces; somebody writes in between.
    for (operations, by_model) in [
        (Operations::new().retain(4).delete(5), true),
        (Operations::new().retain(4).insert("new "), true),
        (Operations::new().insert("> "), false),
        (Operations::new().retain(10).insert("letters"), true),
    ] {
        if by_model {
            let edited = model.edit(&operations);
            for update in edited.updates {
                mine.apply(&update, Some(generation)).expect("an update");
            }
        } else {
            mine.edit(&operations);
            fetch(&mut model, &mine);
        }
    }
    assert_eq!(mine.text(), "> Old new letters here.");
    mine.undo();
    assert_eq!(mine.text(), "Old new letters here.", "the own edit after it comes first");
    assert_eq!(mine.undoes_generation(), Some(generation));
    mine.undo();
    assert_eq!(mine.text(), "Old words here.");
    mine.redo();
    assert_eq!(mine.text(), "Old new letters here.");
    assert!(mine.knows(generation));
    mine.undo_generation(generation).expect("by its name, whenever");
    assert_eq!(mine.text(), "Old words here.");
    mine.missed();
    assert!(!mine.knows(generation) && mine.undo_generation(generation).is_none());
}

/// What a model did between two states of a document.
fn piece(model: &mut Replica, operations: Operations) -> Bytes {
    let [update] = &model.edit(&operations).updates[..] else { panic!("one update") };
    update.clone()
}

#[test]
fn a_models_edit_that_was_not_all_seen_is_not_taken_back_in_part() {
    let generation = GenerationId(7);
    let check = |asks: bool, before: bool, between: bool, learns: bool| {
        let mut mine = replica(1, "My words.");
        let mut model = Replica::new(2);
        fetch(&mut model, &mine);
        if asks {
            mine.asks(Position(3));
        }
        let pieces = ["one ", "two ", "three "].map(|text| {
            let end = model.length();
            piece(&mut model, Operations::new().retain(end).insert(text))
        });
        // The connection is lost, and what came meanwhile comes without a name.
        let whole = yrs::merge_updates_v1(&pieces[..2]).expect("updates");
        for (at, piece) in pieces.iter().enumerate() {
            match at {
                0 if before => {
                    mine.missed();
                    mine.apply(&pieces[0], None).expect("an update");
                }
                1 if between => {
                    mine.missed();
                    mine.apply(&whole, None).expect("an update");
                }
                _ => drop(mine.apply(piece, Some(generation)).expect("an update")),
            }
            if at == 0 {
                mine.adopt(generation);
            }
        }
        assert_eq!(mine.text(), "My words.one two three ");
        assert_eq!(mine.knows(generation), asks && !before && !between);
        assert_eq!(mine.before(generation), Position(if asks { 3 } else { 0 }));
        if !mine.knows(generation) {
            assert!(mine.undo().is_none() && mine.undo_generation(generation).is_none());
            assert_eq!(mine.text(), "My words.one two three ", "neither a part of it, nor what was edited before");
            assert_eq!(mine.undoes_generation(), Some(generation), "it is still to be taken back");
        }
        if learns {
            for piece in &pieces {
                let update = yrs::Update::decode_v1(piece).expect("an update");
                mine.learn(generation, update.insertions(true), update.delete_set().clone());
            }
        }
        if mine.knows(generation) {
            mine.undo().expect("all of it");
            assert_eq!(mine.text(), "My words.", "{asks} {before} {between}");
        }
    };
    check(true, false, false, false);
    for (asks, before, between) in [(false, false, false), (true, true, false), (true, false, true), (true, true, true)]
    {
        check(asks, before, between, false);
        check(asks, before, between, true);
    }
}

#[test]
fn what_comes_late_of_a_models_edit_is_taken_back_as_well() {
    let generation = GenerationId(7);
    let mut mine = replica(1, "Old words.");
    mine.separate();
    mine.edit(&Operations::new().insert("> "));
    let mut model = Replica::new(2);
    fetch(&mut model, &mine);
    mine.asks(Position(3));
    mine.adopt(generation);
    for operations in [Operations::new().retain(2).delete(4), Operations::new().retain(2).insert("new ")] {
        let update = piece(&mut model, operations);
        assert!(mine.apply(&update, Some(generation)).expect("an update").late.is_none());
    }
    mine.undo().expect("what was seen of it");
    assert_eq!(mine.text(), "> Old words.");
    let update = piece(&mut model, Operations::new().retain(6).insert("and better "));
    let late = mine.apply(&update, Some(generation)).expect("an update").late.expect("it was taken back");
    let edited = mine.take_back(late).expect("a piece");
    assert_eq!((mine.text().as_str(), edited.updates.len()), ("> Old words.", 1));
    mine.redo().expect("all of it");
    assert_eq!(mine.text(), "> new and better words.");
    let update = piece(&mut model, Operations::new().retain(17).insert("x "));
    assert!(mine.apply(&update, Some(generation)).expect("an update").late.is_none(), "it is there again");
    mine.undo().expect("all of it");
    assert_eq!(mine.text(), "> Old words.");
    mine.undo().expect("the own edit before it");
    assert_eq!(mine.text(), "Old words.");
}

#[test]
fn characters_that_others_cut_in_two_are_told_whole() {
    let check = |text: &str, change: &dyn Fn(&mut Replica), expected: &str| {
        let mut mine = replica(1, text);
        let mut other = Replica::new(2);
        fetch(&mut other, &mine);
        change(&mut other);
        let update = other.lacking(&[]).expect("something");
        let told = mine.apply(&update, None).expect("an update").operations;
        assert_eq!(mine.text(), expected);
        assert_eq!(told.apply(text).expect("it fits"), expected);
    };
    check("a😀b", &|other| drop(other.edit(&Operations::new().retain(1).delete(1))), "a\u{fffd}b");
    check("a😀b", &|other| drop(other.edit(&Operations::new().retain(2).insert("Z"))), "a\u{fffd}Z\u{fffd}b");
    check("a😀b", &|other| drop(other.edit(&Operations::new().retain(3).insert("Z"))), "a😀Zb");
}

#[test]
fn places_stay_where_they_are() {
    let mut replica = replica(1, "one two");
    let check = |replica: &Replica, json: &serde_json::Value, expected: Option<u32>| {
        let anchor = anchor_of_json(json).expect("a place");
        assert_eq!(replica.offset(&anchor), expected, "{json}");
    };
    let (middle, end) = (anchor_json(&replica.anchor(4)), anchor_json(&replica.anchor(7)));
    assert_eq!(middle, json!({ "type": null, "tname": "content", "item": { "client": 1, "clock": 4 }, "assoc": 0 }));
    assert_eq!(end, json!({ "type": null, "tname": "content", "item": null, "assoc": 0 }));
    replica.edit(&Operations::new().insert("zero "));
    check(&replica, &middle, Some(9));
    check(&replica, &end, Some(12));
    check(&replica, &json!({ "tname": "content" }), Some(12));
    check(&replica, &json!({ "tname": "elsewhere" }), None);
    check(&replica, &json!({ "item": { "client": 5, "clock": 4 } }), None);
    for nonsense in [json!(null), json!({}), json!({ "item": { "client": -1, "clock": 4 } }), json!("x")] {
        assert_eq!(anchor_of_json(&nonsense), None, "{nonsense}");
    }
}

#[test]
fn who_is_there() {
    let replica = replica(1, "one two");
    let now = Instant::now();
    let entry = |client, clock, state: Option<serde_json::Value>| AwarenessUpdate {
        entries: vec![AwarenessEntry { client, clock, state: state.map(|state| state.to_string().into()) }],
    };
    let ada = json!({ "user": { "name": "ada", "color": "#fff" }, "cursor": { "anchor": anchor_json(&replica.anchor(1)), "head": anchor_json(&replica.anchor(3)) } });
    let mut others = Others::default();
    assert!(others.take(entry(5, 1, Some(ada.clone())), 1, now));
    assert!(!others.take(entry(5, 1, Some(json!({}))), 1, now), "nothing newer");
    assert!(!others.take(entry(5, 2, Some(ada.clone())), 1, now), "a renewal is no news");
    assert!(!others.take(entry(1, 1, Some(ada)), 1, now), "that is us");
    let list = others.list(&replica);
    assert_eq!((list[0].name.as_str(), list[0].colour.as_str(), list[0].cursor), ("ada", "#fff", Some((1, 3))));
    assert!(others.take(entry(5, 2, None), 1, now), "it went");
    assert!(others.list(&replica).is_empty());
    assert!(!others.take(entry(5, 1, Some(json!({}))), 1, now), "what it said before does not bring it back");
    assert!(others.take(entry(6, 1, Some(json!({ "cursor": 7 }))), 1, now));
    assert_eq!(others.list(&replica)[0].cursor, None);
    assert!(others.expire(now + Duration::from_secs(40)));

    let mut own = Own::new();
    assert_eq!(own.due(now), None);
    own.set(Some(json!({ "user": { "name": "me" } })));
    own.set_cursor(Some((replica.anchor(0), replica.anchor(2))));
    assert!(own.due(now).is_some());
    let said = AwarenessUpdate::decode(&own.say(1, now)).expect("an update");
    assert_eq!((said.entries[0].client, said.entries[0].clock), (1, 1));
    assert_eq!(own.due(now), Some(now + Duration::from_secs(10)), "it is renewed");
    own.set_cursor(None);
    assert_eq!(own.due(now), Some(now + Duration::from_millis(40)), "not too often");
    let said = AwarenessUpdate::decode(&own.farewell(1).expect("it was there")).expect("an update");
    assert_eq!((said.entries[0].clock, &said.entries[0].state), (2, &None));
    assert_eq!(own.farewell(1), None);
}

#[test]
fn a_state_is_put_together() {
    let mut assembly = Assembly::default();
    let part = |text: &'static str| Bytes::from_static(text.as_bytes());
    assert_eq!(assembly.take(0, 6, &part("abc")).expect("good"), None);
    // Begun anew, on another connection.
    assert_eq!(assembly.take(0, 6, &part("abc")).expect("good"), None);
    assert!(assembly.take(4, 6, &part("ef")).is_err(), "a hole");
    assert!(assembly.take(3, 6, &part("defg")).is_err(), "too long");
    assert_eq!(assembly.take(3, 6, &part("def")).expect("good"), Some(part("abcdef")));
    assert!(assembly.take(0, u64::MAX, &part("x")).is_err(), "nobody has that much room");
}

/// An edit that fits a text, from three numbers.
fn edit(text: &str, (at, deleted, inserted): (u16, u8, u8)) -> Operations {
    let length = utf16_len(text);
    let boundary = |wanted: u32| {
        let mut units = 0;
        for c in text.chars() {
            if units + c.len_utf16() as u32 > wanted {
                break;
            }
            units += c.len_utf16() as u32;
        }
        units
    };
    let from = boundary(u32::from(at) % (length + 1));
    let to = boundary((from + u32::from(deleted) % 6).min(length)).max(from);
    let texts = ["", "a", "bc", "👍", "日本", "\n", "defgh"];
    let insertion = texts[usize::from(inserted) % texts.len()];
    Operations::of([Operation::Retain(from), Operation::Insert(insertion.to_owned()), Operation::Delete(to - from)])
}

/// What a node does with positional operations: one order, each transformed over what it did not know.
#[derive(Default)]
struct Order {
    text: String,
    done: Vec<(usize, Operations)>,
}

impl Order {
    fn write(&mut self, writer: usize, revision: Position, operations: &Operations) {
        let mut operations = operations.clone();
        for (_, earlier) in &self.done[revision.0 as usize..] {
            operations = operations.transform(earlier, Side::Second);
        }
        self.text = operations.apply(&self.text).expect("it fits");
        self.done.push((writer, operations));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Edit(usize, (u16, u8, u8)),
    Send(usize),
    Receive(usize),
    /// Loses the connection, and reads the text anew.
    Reset(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0_usize..3;
    prop_oneof![
        4 => (who.clone(), any::<(u16, u8, u8)>()).prop_map(|(who, edit)| Step::Edit(who, edit)),
        2 => who.clone().prop_map(Step::Send),
        4 => who.clone().prop_map(Step::Receive),
        1 => who.prop_map(Step::Reset),
    ]
}

struct Editor {
    text: Positional,
    /// What others see of it, by what it was told.
    mirror: String,
    got: usize,
    /// Whether what it sent is in the order already.
    sent: bool,
}

impl Editor {
    fn receive(&mut self, me: usize, order: &Order) {
        let Some((writer, operations)) = order.done.get(self.got) else { return };
        self.got += 1;
        let revision = Position(self.got as u64);
        if *writer == me {
            self.text.accepted(revision);
            self.sent = false;
        } else {
            let here = self.text.remote(revision, operations).expect("it fits");
            self.mirror = here.apply(&self.mirror).expect("it fits");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn thin_editors_converge(steps in prop::collection::vec(step(), 0..120)) {
        let mut order = Order::default();
        let editor = || Editor { text: Positional::new(Position(0), ""), mirror: String::new(), got: 0, sent: false };
        let mut editors = [editor(), editor(), editor()];
        let send = |editor: &mut Editor, who: usize, order: &mut Order| {
            if let Some((revision, operations)) = editor.text.outgoing() {
                order.write(who, revision, &operations);
                editor.sent = true;
            }
        };
        for step in steps {
            match step {
                Step::Edit(who, numbers) => {
                    let editor = &mut editors[who];
                    let operations = edit(editor.text.text(), numbers);
                    editor.text.edit(&operations).expect("it fits");
                    editor.mirror = operations.apply(&editor.mirror).expect("it fits");
                }
                Step::Send(who) => send(&mut editors[who], who, &mut order),
                Step::Receive(who) => editors[who].receive(who, &order),
                Step::Reset(who) => {
                    let editor = &mut editors[who];
                    let accepted = std::mem::take(&mut editor.sent);
                    editor.got = order.done.len();
                    let here = editor.text.reset(Position(editor.got as u64), &order.text, accepted).expect("it fits");
                    editor.mirror = here.apply(&editor.mirror).expect("it fits");
                }
            }
            for editor in &editors {
                prop_assert_eq!(&editor.mirror, editor.text.text());
            }
        }
        while editors.iter().any(|editor| editor.text.is_waiting() || editor.got < order.done.len()) {
            for (who, editor) in editors.iter_mut().enumerate() {
                send(editor, who, &mut order);
                editor.receive(who, &order);
            }
        }
        for editor in &editors {
            prop_assert_eq!(editor.text.text(), &order.text);
        }
    }

    #[test]
    fn replicas_converge_and_say_what_changed(
        edits in prop::collection::vec((0_usize..3, any::<(u16, u8, u8)>(), 0_u8..8), 0..60)
    ) {
        let mut replicas = [Replica::new(1), Replica::new(2), Replica::new(3)];
        let mut mirrors = [String::new(), String::new(), String::new()];
        for (who, numbers, then) in edits {
            let operations = edit(&replicas[who].text(), numbers);
            let edited = match then {
                6 => replicas[who].undo(),
                7 => replicas[who].redo(),
                _ => Some(replicas[who].edit(&operations)),
            };
            if let Some(edited) = edited {
                mirrors[who] = edited.operations.apply(&mirrors[who]).expect("it fits");
            }
            if then < 3 {
                let (from, to) = (who, (who + 1) % 3);
                if let Some(update) = replicas[from].lacking(&replicas[to].state_vector()) {
                    let told = replicas[to].apply(&update, None).expect("an update");
                    mirrors[to] = told.operations.apply(&mirrors[to]).expect("it fits");
                }
            }
            for (replica, mirror) in replicas.iter().zip(&mirrors) {
                prop_assert_eq!(&replica.text(), mirror);
            }
        }
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
            // With what was taken out, which a state vector does not tell.
            let all = replicas[from].lacking(&[]).unwrap_or_else(|| Bytes::from_static(&[0, 0]));
            replicas[to].apply(&all, None).expect("an update");
        }
        prop_assert_eq!(replicas[0].text(), replicas[1].text());
        prop_assert_eq!(replicas[1].text(), replicas[2].text());
    }
}
