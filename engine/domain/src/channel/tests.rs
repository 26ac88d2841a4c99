use bytes::Bytes;
use proptest::prelude::*;
use thalweg_protocol::chat::{ChannelAbout, ChannelKind, Context};
use thalweg_protocol::ids::{GenerationId, Name, Sequence, SessionId};
use thalweg_protocol::op::Delivery;

use super::*;

fn message(position: Position, body: &str, generation: Option<GenerationId>) -> Arc<Message> {
    let delivery = Delivery {
        position,
        timestamp_us: 0,
        kind: DeliveryKind::Message,
        user: Name::new("ada").expect("valid"),
        generation,
        body: Bytes::copy_from_slice(body.as_bytes()),
        key: 0,
        context: Context::default(),
    };
    Arc::new(Message::new(delivery, SessionId(1), Sequence(1)))
}

fn say(channel: &mut Channel, body: &str) {
    let position = channel.decide_position();
    channel.apply(message(position, body, None));
}

fn memory() -> ChannelSettings {
    ChannelSettings::new(Durability::Memory)
}

#[test]
fn a_document_keeps_everything_on_disk() {
    let check = |history_messages, history_bytes, history_age_ms, durability, good: bool| {
        let create = CreateChannel {
            channel: Name::new("plan").expect("valid"),
            history_messages,
            history_bytes,
            history_age_ms,
            durability,
            about: ChannelAbout { kind: ChannelKind::Document, ..ChannelAbout::default() },
        };
        let settings = Channel::decide_settings(&create, Durability::Memory);
        assert_eq!(settings.is_ok(), good, "{create:?}");
        if let Ok(settings) = settings {
            assert_eq!(settings, Channel::document_settings());
        }
    };
    check(0, 0, 0, None, true);
    check(u32::MAX, HISTORY_BYTES_MAX, 0, Some(Durability::Disk), true);
    check(0, 0, 0, Some(Durability::Memory), false);
    check(0, 0, 0, Some(Durability::Replicated), false);
    check(1_000, 0, 0, None, false);
    check(0, 1 << 20, 0, None, false);
    check(0, 0, 60_000, None, false);
}

#[test]
fn the_nearest_snapshot_is_found() {
    let mut channel = Channel::new(ChannelId(1), Channel::document_settings());
    let snapshot = |position, parts| Snapshot { position: Position(position), parts };
    channel.note_snapshot(snapshot(5, 1));
    channel.note_snapshot(snapshot(9, 3));
    let check = |revision: u64, expected: Option<Snapshot>| {
        assert_eq!(channel.snapshot_at(Position(revision)), expected, "revision {revision}");
    };
    check(1, None);
    check(3, None);
    check(4, Some(snapshot(5, 1)));
    check(7, Some(snapshot(5, 1)));
    check(8, Some(snapshot(9, 3)));
    check(u64::MAX - 1, Some(snapshot(9, 3)));
}

#[test]
fn settings_are_checked() {
    let decide = |history_messages, history_bytes, history_age_ms, durability| {
        let channel = Name::new("general").expect("valid");
        let create = CreateChannel {
            channel,
            history_messages,
            history_bytes,
            history_age_ms,
            durability,
            about: ChannelAbout::default(),
        };
        Channel::decide_settings(&create, Durability::Disk)
    };
    assert_eq!(decide(0, 0, 0, None), Ok(ChannelSettings::new(Durability::Disk)));
    let durability = Durability::Memory;
    let small = ChannelSettings { history_messages: 5, history_bytes: 100, history_age_us: 7_000, durability };
    assert_eq!(decide(5, 100, 7, Some(durability)), Ok(small));
    assert!(decide(u32::MAX, 0, 0, Some(Durability::Disk)).is_ok());
    for (result, word) in [
        (decide(u32::MAX, 0, 0, Some(Durability::Memory)), "history_messages"),
        (decide(0, u64::MAX, 0, None), "history_bytes"),
        (decide(0, 0, u64::MAX, None), "history_age_ms"),
        (decide(0, 0, 0, Some(Durability::Replicated)), "stands alone"),
    ] {
        let reject = result.expect_err("too much");
        assert!(reject.message.contains(word), "{reject}");
    }
}

#[test]
fn what_was_evicted_is_on_disk() {
    let mut channel = Channel::new(ChannelId(1), ChannelSettings::new(Durability::Disk));
    (0..10).for_each(|n| say(&mut channel, &format!("line {n}")));
    channel.evict(Position(7));
    assert_eq!(channel.read(Position(2), 0), Kept::OnDisk { from: Position(2), to: Position(8) });
    assert_eq!(channel.conversation_on_disk(0), Some((Position(1), Position(8))));
    let Kept::AtHand(messages) = channel.read(Position(8), 0) else { panic!("at hand") };
    assert_eq!(messages.len(), 3);
    channel.evict(Position(9));
    assert_eq!(channel.conversation(&messages).len(), 3, "what is at hand and what was read do not overlap");
    channel.evict(Position(10));
    assert_eq!(channel.read(Position(10), 0), Kept::OnDisk { from: Position(10), to: Position(11) });
    let state = ChannelState { head: Position(10), bytes: 60, ..ChannelState::default() };
    let restored = Channel::restore(ChannelId(1), ChannelSettings::new(Durability::Disk), &state);
    assert_eq!((restored.first(0), restored.head()), (Position(1), Position(10)));
    assert_eq!(restored.read(Position(0), 0), Kept::OnDisk { from: Position(1), to: Position(11) });
}

#[test]
fn positions_are_given_before_messages_are_seen() {
    let mut channel = Channel::new(ChannelId(1), memory());
    let (one, two) = (channel.decide_position(), channel.decide_position());
    assert_eq!((one, two, channel.head(), channel.first(0)), (Position(1), Position(2), Position(0), Position(1)));
    channel.apply(message(one, "a", None));
    assert_eq!((channel.head(), channel.decide_position()), (Position(1), Position(3)));
}

#[test]
fn a_conversation_is_recent_and_names_people() {
    let mut channel = Channel::new(ChannelId(1), memory());
    say(&mut channel, "hello");
    say(&mut channel, "@ai  who are you?");
    let position = channel.decide_position();
    channel.apply(message(position, "A model.", Some(GenerationId(1))));
    let lines: Vec<_> = channel.conversation(&[]).into_iter().map(|line| (line.role, line.content)).collect();
    let expected = [(Role::User, "ada: hello"), (Role::User, "ada: who are you?"), (Role::Assistant, "A model.")];
    assert_eq!(lines, expected.map(|(role, text)| (role, text.to_owned())));
    for n in 0..100 {
        say(&mut channel, &format!("line {n}"));
    }
    assert_eq!(channel.conversation(&[]).len(), CONVERSATION_MESSAGES);
    say(&mut channel, &"x".repeat(2 * CONVERSATION_BYTES));
    assert_eq!(channel.conversation(&[]).len(), 1, "the newest line is always there");
}

#[test]
fn only_a_word_that_says_something_calls_a_model() {
    for (body, expected) in [
        ("@ai hi", true),
        ("@ai\nhi", true),
        ("@ai", false),
        ("@ai   ", false),
        ("@aix hi", false),
        ("hi @ai", false),
        ("", false),
    ] {
        assert_eq!(mentions_model(body.as_bytes()), expected, "{body:?}");
    }
}

proptest! {
    #[test]
    fn history_is_bounded_contiguous_and_read_back_whole(
        history_messages in 1_u32..20,
        history_bytes in 1_u64..200,
        sizes in prop::collection::vec(0_usize..40, 1..100),
    ) {
        let settings = ChannelSettings { history_messages, history_bytes, ..memory() };
        let mut channel = Channel::new(ChannelId(1), settings);
        for size in &sizes {
            say(&mut channel, &"x".repeat(*size));
        }
        let Kept::AtHand(kept) = channel.read(Position(0), 0) else { panic!("in memory") };
        prop_assert_eq!(channel.head(), Position(sizes.len() as u64));
        prop_assert!(!kept.is_empty() && kept.len() <= history_messages as usize);
        let bytes: usize = kept.iter().map(|message| message.body.len()).sum();
        prop_assert!(kept.len() == 1 || bytes as u64 <= history_bytes);
        for (at, message) in kept.iter().enumerate() {
            prop_assert_eq!(message.position.0, channel.first(0).0 + at as u64);
        }
        prop_assert_eq!(kept.last().map(|message| message.position), Some(channel.head()));
        prop_assert_eq!(channel.read(channel.head().next(), 0), Kept::AtHand(Vec::new()));
    }
}
