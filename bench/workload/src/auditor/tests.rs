//! Every violation is planted once and must be found; sound runs must not be accused.

use super::*;

const ALICE: SessionId = SessionId(1);
const BOB: SessionId = SessionId(2);
const CAROL: SessionId = SessionId(3);
const CHANNEL: ChannelIndex = ChannelIndex(0);
const READER: ReaderId = ReaderId(10);
const OTHER: ReaderId = ReaderId(11);
const WATCH: WatchId = WatchId(20);

fn body(n: u64) -> BodyHash {
    BodyHash::of(&n.to_le_bytes())
}

fn sent(session: SessionId, n: u64) -> Event {
    Event::Sent { session, sequence: Sequence(n), channel: CHANNEL, body: body(n) }
}

fn acked(session: SessionId, n: u64, position: u64) -> Event {
    Event::Acked { session, sequence: Sequence(n), position: Position(position) }
}

fn subscribed(reader: ReaderId, session: SessionId, next: u64) -> Event {
    Event::Subscribed { reader, session, channel: CHANNEL, next: Position(next) }
}

fn delivered(reader: ReaderId, position: u64, n: u64) -> Event {
    Event::Delivered { reader, position: Position(position), body: body(n) }
}

fn missed(from: u64, to: u64) -> Event {
    Event::Missed { reader: READER, from: Position(from), to: Position(to) }
}

/// Alice writes 1..=n, all acknowledged at positions 1..=n; Bob subscribed as `READER` from the first.
fn wrote(n: u64) -> Vec<Event> {
    let mut events = vec![subscribed(READER, BOB, 1)];
    events.extend((1..=n).flat_map(|i| [sent(ALICE, i), acked(ALICE, i, i)]));
    events
}

fn judge(events: &[Event], settled: bool) -> Vec<Violation> {
    let mut auditor = Auditor::new();
    events.iter().for_each(|&event| auditor.record(event));
    let (violations, count) = auditor.finish(settled);
    assert_eq!(violations.len() as u64, count);
    violations
}

fn check(name: &str, events: impl IntoIterator<Item = Event>, expected: &[Violation]) {
    let events: Vec<Event> = events.into_iter().collect();
    assert_eq!(judge(&events, true), expected, "{name}");
}

fn after(mut events: Vec<Event>, more: &[Event]) -> Vec<Event> {
    events.extend_from_slice(more);
    events
}

#[test]
fn sound_runs_are_not_accused() {
    let to_bob = |positions: &[u64]| positions.iter().map(|&p| delivered(READER, p, p)).collect::<Vec<_>>();
    check("everything in order", after(wrote(3), &to_bob(&[1, 2, 3])), &[]);
    check(
        "a missed range that was announced",
        after(wrote(4), &[delivered(READER, 1, 1), missed(2, 3), delivered(READER, 4, 4)]),
        &[],
    );
    check("all missed", after(wrote(4), &[missed(1, 4)]), &[]);
    check("ended early", after(wrote(4), &[delivered(READER, 1, 1), Event::Ended { reader: READER }]), &[]);
    let own = [subscribed(READER, ALICE, 1), sent(ALICE, 1), acked(ALICE, 1, 1), sent(BOB, 2), acked(BOB, 2, 2)];
    check("the hole is the reader's own write", after(own.to_vec(), &[delivered(READER, 2, 2)]), &[]);
    let lost_ack = [subscribed(READER, ALICE, 1), sent(ALICE, 1), sent(BOB, 2), acked(BOB, 2, 2)];
    check(
        "the hole is the reader's own write whose ack was lost",
        after(lost_ack.to_vec(), &[delivered(READER, 2, 2)]),
        &[],
    );
    check("sent but not acknowledged may be missing", [subscribed(READER, BOB, 1), sent(ALICE, 1)], &[]);
    check("acknowledged twice at one position", after(wrote(1), &[acked(ALICE, 1, 1), delivered(READER, 1, 1)]), &[]);
    check(
        "delivered before its ack",
        [subscribed(READER, BOB, 1), sent(ALICE, 1), delivered(READER, 1, 1), acked(ALICE, 1, 1)],
        &[],
    );
    let generated = Event::DeliveredGenerated { reader: READER, position: Position(1), body: body(99) };
    check("a model's record has no author", [subscribed(READER, BOB, 1), generated], &[]);
    let tokens = |index, count| Event::Tokens { watch: WATCH, index, count };
    let watched = Event::Watched { watch: WATCH, from: 3 };
    check(
        "tokens from the middle",
        [watched, tokens(3, 1), tokens(4, 6), Event::Finished { watch: WATCH, tokens: 10 }],
        &[],
    );
    check(
        "start no longer kept",
        [subscribed(READER, BOB, 5), missed(2, 4), sent(ALICE, 1), acked(ALICE, 1, 5), delivered(READER, 5, 1)],
        &[],
    );
}

#[test]
fn not_settled_means_what_has_not_come_is_not_lost() {
    assert_eq!(judge(&after(wrote(3), &[delivered(READER, 1, 1)]), false), []);
    let lost = |position| Violation::AckedLost {
        reader: READER,
        position: Position(position),
        session: ALICE,
        sequence: Sequence(position),
    };
    assert_eq!(judge(&after(wrote(3), &[delivered(READER, 1, 1)]), true), [lost(2), lost(3)]);
    // A hole is a hole, settled or not.
    assert_eq!(judge(&after(wrote(3), &[delivered(READER, 1, 1), delivered(READER, 3, 3)]), false), [lost(2)]);
}

#[test]
fn planted_violations_of_order_are_found() {
    let (two, three) = (Position(2), Position(3));
    let all = |order: &[u64]| after(wrote(3), &order.iter().map(|&p| delivered(READER, p, p)).collect::<Vec<_>>());
    check("doubled", all(&[1, 2, 2, 3]), &[Violation::Doubled { reader: READER, position: two }]);
    let out_of_order = Violation::OutOfOrder { reader: READER, position: two, last: three };
    let lost = Violation::AckedLost { reader: READER, position: two, session: ALICE, sequence: Sequence(2) };
    check("out of order is found, and the hole it left", all(&[1, 3, 2]), &[out_of_order, lost]);
    let told = [delivered(READER, 1, 1), missed(2, 3), delivered(READER, 2, 2)];
    check("delivered after it was said to be missed", after(wrote(3), &told), &[out_of_order]);
    let before = Violation::BeforeStart { reader: READER, position: two, next: three };
    check("before the start", [subscribed(READER, BOB, 3), sent(ALICE, 2), delivered(READER, 2, 2)], &[before]);
    let ended = [delivered(READER, 1, 1), Event::Ended { reader: READER }, delivered(READER, 2, 2)];
    check("after the end", after(wrote(2), &ended), &[Violation::AfterEnd { reader: READER, position: two }]);
    let invalid = |from, to| Violation::MissedInvalid { reader: READER, from: Position(from), to: Position(to) };
    check(
        "missed what was delivered",
        after(wrote(2), &[delivered(READER, 1, 1), delivered(READER, 2, 2), missed(2, 2)]),
        &[invalid(2, 2)],
    );
    check("missed nothing", after(wrote(1), &[delivered(READER, 1, 1), missed(3, 2)]), &[invalid(3, 2)]);
}

#[test]
fn planted_holes_are_found() {
    // Position 2 is nobody's: Alice's second write stands at 3.
    let events = [subscribed(READER, BOB, 1), sent(ALICE, 1), acked(ALICE, 1, 1), sent(ALICE, 2), acked(ALICE, 2, 3)];
    let got = [delivered(READER, 1, 1), delivered(READER, 3, 2)];
    let gap = Violation::Gap { reader: READER, from: Position(2), to: Position(2) };
    check("a hole nobody announced", after(events.to_vec(), &got), &[gap]);
    // What another reader saw at the hole was neither acknowledged nor written by the reader's session.
    let events = [subscribed(READER, BOB, 1), subscribed(OTHER, CAROL, 1), sent(ALICE, 1), sent(ALICE, 2)];
    let got = [delivered(OTHER, 1, 1), delivered(OTHER, 2, 2), delivered(READER, 2, 2)];
    let gap = Violation::Gap { reader: READER, from: Position(1), to: Position(1) };
    check("a hole another reader does not have", after(events.to_vec(), &got), &[gap]);
    let huge = [subscribed(READER, BOB, 1), sent(ALICE, 1), delivered(READER, u64::MAX, 1)];
    let gap = Violation::Gap { reader: READER, from: Position(1), to: Position(u64::MAX - 1) };
    check("an absurd position does not take forever", huge, &[gap]);
}

#[test]
fn planted_violations_of_identity_are_found() {
    let one = Position(1);
    let echo = [subscribed(READER, ALICE, 1), sent(ALICE, 1), acked(ALICE, 1, 1), delivered(READER, 1, 1)];
    check("echo", echo, &[Violation::Echo { reader: READER, position: one }]);
    check(
        "phantom",
        [subscribed(READER, BOB, 1), delivered(READER, 1, 7)],
        &[Violation::Phantom { reader: READER, position: one }],
    );
    let refused = Event::Refused { session: ALICE, sequence: Sequence(1) };
    let carried_out = Violation::RefusedDelivered { channel: CHANNEL, position: one };
    check(
        "refused, then read",
        [subscribed(READER, BOB, 1), sent(ALICE, 1), refused, delivered(READER, 1, 1)],
        &[carried_out],
    );
    check(
        "read, then refused",
        [subscribed(READER, BOB, 1), sent(ALICE, 1), delivered(READER, 1, 1), refused],
        &[carried_out],
    );
    let differs = Violation::BodyDiffers { channel: CHANNEL, position: one };
    let two_readers = [subscribed(READER, BOB, 1), subscribed(OTHER, CAROL, 1), sent(ALICE, 1), sent(ALICE, 2)];
    check(
        "two bodies at one position",
        after(two_readers.to_vec(), &[delivered(READER, 1, 1), delivered(OTHER, 1, 2)]),
        &[differs],
    );
    check(
        "another body than was acknowledged",
        after(wrote(1), &[sent(ALICE, 9), delivered(READER, 1, 9)]),
        &[differs],
    );
    let shared = Violation::PositionShared {
        channel: CHANNEL,
        position: one,
        first: (ALICE, Sequence(1)),
        second: (CAROL, Sequence(5)),
    };
    let events = [sent(ALICE, 1), acked(ALICE, 1, 1), sent(CAROL, 5), acked(CAROL, 5, 1)];
    check("two writes at one position", events, &[shared]);
    let twice = Violation::ExecutedTwice { channel: CHANNEL, first: one, second: Position(2) };
    check("one write at two positions", after(wrote(1), &[delivered(READER, 1, 1), delivered(READER, 2, 1)]), &[twice]);
    let moved = Violation::AckMoved { session: ALICE, sequence: Sequence(1), first: one, second: Position(2) };
    check("acknowledged at two positions", [sent(ALICE, 1), acked(ALICE, 1, 1), acked(ALICE, 1, 2)], &[moved]);
    let unsent = Violation::AckUnsent { session: ALICE, sequence: Sequence(1), position: one };
    check("acknowledged but never sent", [acked(ALICE, 1, 1)], &[unsent]);
    let reused = Violation::SequenceReused { session: ALICE, sequence: Sequence(1) };
    check("a workload that reuses numbers", [sent(ALICE, 1), sent(ALICE, 1)], &[reused]);
    check("an unknown reader", [missed(1, 1)], &[Violation::ReaderUnknown { reader: READER }]);
}

#[test]
fn planted_violations_of_tokens_are_found() {
    let watched = Event::Watched { watch: WATCH, from: 0 };
    let tokens = |index, count| Event::Tokens { watch: WATCH, index, count };
    let end = |tokens| Event::Finished { watch: WATCH, tokens };
    check(
        "gap",
        [watched, tokens(0, 2), tokens(3, 1), end(4)],
        &[Violation::TokensGap { watch: WATCH, expected: 2, index: 3 }],
    );
    check(
        "doubled",
        [watched, tokens(0, 2), tokens(1, 2), end(3)],
        &[Violation::TokensDoubled { watch: WATCH, expected: 2, index: 1 }],
    );
    check("after the end", [watched, end(0), tokens(0, 1)], &[Violation::TokensAfterEnd { watch: WATCH, index: 0 }]);
    check("two ends", [watched, end(0), end(0)], &[Violation::TokensAfterEnd { watch: WATCH, index: 0 }]);
    check(
        "missing at the end",
        [watched, tokens(0, 2), end(5)],
        &[Violation::TokensMissing { watch: WATCH, got: 2, announced: 5 }],
    );
    check("no end", [watched, tokens(0, 2)], &[Violation::GenerationUnfinished { watch: WATCH, got: 2 }]);
    check("unknown", [tokens(0, 1)], &[Violation::WatchUnknown { watch: WATCH }]);
}

#[test]
fn a_channel_may_begin_anew_with_what_was_not_answered() {
    let anew = ChannelIndex(1);
    let resent = |n| Event::Resent { session: ALICE, sequence: Sequence(n), channel: anew };
    let reads_anew = Event::Subscribed { reader: OTHER, session: BOB, channel: anew, next: Position(1) };
    // The first write was answered and is gone with its channel; the second was not, was read, and stands in both.
    let before = [subscribed(READER, BOB, 1), sent(ALICE, 1), acked(ALICE, 1, 1), delivered(READER, 1, 1)];
    let gone = [sent(ALICE, 2), delivered(READER, 2, 2), Event::Ended { reader: READER }, resent(2), reads_anew];
    let sound = after(after(before.to_vec(), &gone), &[acked(ALICE, 2, 1), delivered(OTHER, 1, 2)]);
    check("begun anew", sound, &[]);
    let lost = Violation::AckedLost { reader: OTHER, position: Position(1), session: ALICE, sequence: Sequence(2) };
    let events = after(after(before.to_vec(), &gone), &[acked(ALICE, 2, 1)]);
    check("what was answered after that is promised", events, &[lost]);
    let phantom = Violation::Phantom { reader: OTHER, position: Position(1) };
    let events = after(before.to_vec(), &[Event::Ended { reader: READER }, reads_anew, delivered(OTHER, 1, 1)]);
    check("what was answered before does not come back", events, &[phantom]);
    let unsent = Violation::ResentUnsent { session: ALICE, sequence: Sequence(3) };
    check("a workload that repeats what it never sent", [resent(3)], &[unsent]);
}

#[test]
fn what_is_read_from_history_is_what_was_written() {
    let read = |position, n| Event::Read { channel: CHANNEL, position: Position(position), body: body(n) };
    check("as written", after(wrote(2), &[delivered(READER, 1, 1), delivered(READER, 2, 2), read(2, 2)]), &[]);
    let differs = Violation::BodyDiffers { channel: CHANNEL, position: Position(2) };
    let events = after(wrote(2), &[delivered(READER, 1, 1), delivered(READER, 2, 2), read(2, 1)]);
    check("another body", events, &[differs]);
    let lost = Violation::Gap { reader: READER, from: Position(1), to: Position(1) };
    check("what history has is owed to readers", [subscribed(READER, BOB, 1), sent(ALICE, 1), read(1, 1)], &[lost]);
}

#[test]
fn tokens_fall_back_only_for_those_who_came_back() {
    let watched = Event::Watched { watch: WATCH, from: 0 };
    let tokens = |index, count| Event::Tokens { watch: WATCH, index, count };
    let (back, end) = (Event::Rewatched { watch: WATCH }, Event::Finished { watch: WATCH, tokens: 4 });
    let rewound = |to| Event::Rewound { watch: WATCH, to };
    check("rewound", [watched, tokens(0, 3), back, rewound(1), tokens(1, 3), end], &[]);
    check("not rewound", [watched, tokens(0, 3), back, tokens(3, 1), end], &[]);
    let invalid = |got, to| Violation::RewindInvalid { watch: WATCH, got, to };
    check("without having come back", [watched, tokens(0, 3), rewound(1), tokens(1, 3), end], &[invalid(3, 1)]);
    check("beyond", [watched, tokens(0, 3), back, rewound(4), end], &[invalid(3, 4)]);
    let doubled = Violation::TokensDoubled { watch: WATCH, expected: 3, index: 1 };
    check("without being told", [watched, tokens(0, 3), back, tokens(1, 3), end], &[doubled]);
}

#[test]
fn violations_are_bounded_and_counted() {
    let mut auditor = Auditor::new();
    for _ in 0..VIOLATIONS_MAX + 5 {
        auditor.record(Event::Tokens { watch: WATCH, index: 0, count: 1 });
    }
    let (kept, count) = auditor.finish(true);
    assert_eq!((kept.len(), count), (VIOLATIONS_MAX, VIOLATIONS_MAX as u64 + 5));
    assert!(kept[0].to_string().contains("watch 20"));
}
