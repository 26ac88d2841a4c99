use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::limits::{AWARENESS_CLIENTS_MAX, BODY_BYTES_MAX, OPERATIONS_MAX};
use crate::reject::RejectCode;

/// An edit that fits a text: pairs of how far to go, and what to do there.
fn fitting(text: &str, choices: &[(u8, u8, &'static str)]) -> Operations {
    let chars: Vec<u32> = text.chars().map(|c| c.len_utf16() as u32).collect();
    let (mut at, mut parts) = (0, Vec::new());
    for (kind, far, inserted) in choices {
        let stretch: u32 = chars.iter().skip(at).take(usize::from(*far)).sum();
        match kind % 3 {
            0 => parts.push(Operation::Insert((*inserted).to_owned())),
            1 => parts.push(Operation::Delete(stretch)),
            _ => parts.push(Operation::Retain(stretch)),
        }
        at += if kind % 3 == 0 { 0 } else { usize::from(*far) };
    }
    Operations::of(parts)
}

fn texts() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "é", "漢", "😀", "\n"]), 0..12).prop_map(|c| c.concat())
}

fn choices() -> impl Strategy<Value = Vec<(u8, u8, &'static str)>> {
    let words = prop::sample::select(vec!["x", "yz", "😀", "ü", ""]);
    prop::collection::vec((any::<u8>(), 0u8..5, words), 0..8)
}

fn is_canonical(operations: &Operations) -> bool {
    use Operation::{Delete, Insert, Retain};
    let parts = operations.parts();
    let no_empty = parts.iter().all(|part| match part {
        Retain(length) | Delete(length) => *length > 0,
        Insert(text) => !text.is_empty(),
    });
    let no_pairs = parts.windows(2).all(|pair| {
        let of_a_kind = std::mem::discriminant(&pair[0]) == std::mem::discriminant(&pair[1]);
        !of_a_kind
    });
    no_empty && no_pairs && !matches!(parts.last(), Some(Retain(_)))
}

#[test]
fn the_smallest_replacement() {
    let check = |before: &str, after: &str, expected: Operations| {
        let operations = Operations::between(before, after);
        assert_eq!(operations, expected, "{before:?} {after:?}");
        assert_eq!(operations.apply(before).expect("it fits"), after);
    };
    let o = Operations::new;
    check("", "", o());
    check("same", "same", o());
    check("", "new", o().insert("new"));
    check("old", "", o().delete(3));
    check("one two", "one big two", o().retain(4).insert("big "));
    check("aa", "aaa", o().retain(2).insert("a"));
    check("a👍b", "a👎b", o().retain(1).insert("👎").delete(2));
    check("日本", "日英本", o().retain(1).insert("英"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn two_edits_of_one_text_commute(text in texts(), one in choices(), other in choices()) {
        let (one, other) = (fitting(&text, &one), fitting(&text, &other));
        let (one_after, other_after) = (one.transform(&other, Side::Second), other.transform(&one, Side::First));
        let by_other = one_after.apply(&other.apply(&text).unwrap()).unwrap();
        let by_one = other_after.apply(&one.apply(&text).unwrap()).unwrap();
        prop_assert_eq!(by_one, by_other);
        prop_assert!(is_canonical(&one_after) && is_canonical(&other_after), "{:?} {:?}", one_after, other_after);
    }

    #[test]
    fn an_edit_composed_of_two_does_what_they_do(text in texts(), one in choices(), next in choices()) {
        let one = fitting(&text, &one);
        let between = one.apply(&text).unwrap();
        let next = fitting(&between, &next);
        let both = one.compose(&next);
        prop_assert_eq!(both.apply(&text).unwrap(), next.apply(&between).unwrap());
        prop_assert!(is_canonical(&both), "{:?}", both);
        prop_assert!(both.reach() <= u64::from(utf16_len(&text)));
    }

    #[test]
    fn transforming_over_a_composed_edit_is_transforming_over_both(
        text in texts(), mine in choices(), one in choices(), next in choices(),
    ) {
        let (mine, one) = (fitting(&text, &mine), fitting(&text, &one));
        let between = one.apply(&text).unwrap();
        let next = fitting(&between, &next);
        let after = next.apply(&between).unwrap();
        let apart = mine.transform(&one, Side::Second).transform(&next, Side::Second);
        let at_once = mine.transform(&one.compose(&next), Side::Second);
        prop_assert_eq!(apart.apply(&after).unwrap(), at_once.apply(&after).unwrap());
    }

    #[test]
    fn offsets_go_with_what_is_around_them(text in texts(), edit in choices(), at in 0usize..12) {
        let edit = fitting(&text, &edit);
        let offset: u32 = text.chars().take(at).map(|c| c.len_utf16() as u32).sum();
        // A mark typed there by somebody else ends where the offset does.
        let mark = Operations::new().retain(offset).insert("#");
        for (follows, side) in [(false, Side::First), (true, Side::Second)] {
            let marked = mark.transform(&edit, side).apply(&edit.apply(&text).unwrap()).unwrap();
            let found = utf16_len(marked.split('#').next().unwrap());
            prop_assert_eq!(edit.offset_after(offset, follows), found, "follows: {}", follows);
        }
    }

    #[test]
    fn edits_round_trip(text in texts(), edit in choices()) {
        let edit = fitting(&text, &edit);
        prop_assert!(is_canonical(&edit), "{:?}", edit);
        prop_assert_eq!(Operations::decode(&edit.encode()), Ok(edit));
    }

    #[test]
    fn bytes_of_a_peer_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), text in texts()) {
        if let Ok(edit) = Operations::decode(&bytes) {
            prop_assert!(is_canonical(&edit), "{:?}", edit);
            let _ = edit.apply(&text);
            let short = Operations::new().retain(1).insert("x");
            let _ = (edit.transform(&short, Side::First), short.transform(&edit, Side::Second));
            let _ = (edit.compose(&short), short.compose(&edit), edit.compose(&edit), edit.offset_after(7, true));
        }
        let bytes = Bytes::from(bytes);
        if let Ok(update) = AwarenessUpdate::decode(&bytes) {
            prop_assert_eq!(AwarenessUpdate::decode(&update.encode()), Ok(update));
        }
    }
}

#[test]
fn edits_are_kept_in_one_form() {
    use Operation::{Delete, Insert, Retain};
    let check = |parts: Vec<Operation>, expected: &[Operation]| {
        assert_eq!(Operations::of(parts).parts(), expected);
    };
    check(vec![Retain(0), Insert(String::new()), Delete(0)], &[]);
    check(vec![Retain(1), Retain(2), Insert("a".into()), Retain(5)], &[Retain(3), Insert("a".into())]);
    check(vec![Delete(1), Insert("a".into()), Delete(2), Insert("b".into())], &[Insert("ab".into()), Delete(3)]);
}

#[test]
fn what_does_not_fit_is_named() {
    let check = |operations: Operations, text: &str, word: &str| {
        let reject = operations.apply(text).expect_err("does not fit");
        assert_eq!(reject.code, RejectCode::OperationsInvalid);
        assert!(reject.message.contains(word), "{reject}");
    };
    check(Operations::new().retain(3).delete(2), "abcd", "1 code units beyond");
    check(Operations::new().retain(1).insert("x"), "😀", "middle of a character");
    check(Operations::new().delete(1), "😀", "middle of a character");
    let decode = |bytes: &[u8], word: &str| {
        let reject = Operations::decode(bytes).expect_err("is none");
        assert_eq!(reject.code, RejectCode::OperationsInvalid);
        assert!(reject.message.contains(word), "{reject}");
    };
    decode(&[0x80], "ends early");
    decode(&[3], "kind 3");
    decode(&[5 << 2 | 1, b'a'], "inserts 5 bytes and has 1");
    decode(&[1 << 2 | 1, 0xff], "UTF-8");
    decode(&[0xfc, 0xff, 0xff, 0xff, 0xff, 0x0f], "reaches");
    decode(&vec![4; OPERATIONS_MAX + 1], "more than");
    decode(&vec![4; BODY_BYTES_MAX + 1], "at most");
    let mut twice = vec![0xf0, 0xff, 0xff, 0xff, 0x3f];
    twice.extend_from_slice(&twice.clone());
    decode(&twice, "reaches");
}

#[test]
fn awareness_is_what_y_protocols_says() {
    // Written by y-protocols 1.0.6: client 3 at clock 2 with {"user":"ada"}, and client 300 at clock 1, who left.
    let mut bytes = vec![2, 3, 2, 14];
    bytes.extend_from_slice(b"{\"user\":\"ada\"}");
    bytes.extend_from_slice(&[0xac, 2, 1, 4]);
    bytes.extend_from_slice(b"null");
    let bytes = Bytes::from(bytes);
    let ada = AwarenessEntry { client: 3, clock: 2, state: Some(Bytes::from_static(b"{\"user\":\"ada\"}")) };
    let left = AwarenessEntry { client: 300, clock: 1, state: None };
    let update = AwarenessUpdate { entries: vec![ada, left] };
    assert_eq!(AwarenessUpdate::decode(&bytes), Ok(update.clone()));
    assert_eq!(update.encode(), bytes);
    let many = AwarenessUpdate {
        entries: vec![AwarenessEntry { client: 1, clock: 1, state: None }; AWARENESS_CLIENTS_MAX + 1],
    };
    for bad in [
        many.encode(),
        Bytes::from_static(&[1, 3]),
        Bytes::from_static(&[0, 0]),
        Bytes::from_static(b"\x01\x01\x01\x01\xff"),
    ] {
        assert_eq!(AwarenessUpdate::decode(&bad).expect_err("is none").code, RejectCode::UpdateInvalid);
    }
}
