use bytes::Bytes;
use proptest::prelude::*;
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
    };
    Arc::new(Message::new(delivery, SessionId(1), Sequence(1)))
}

fn say(channel: &mut Channel, body: &str) {
    let position = channel.decide_position();
    channel.apply(message(position, body, None));
}

#[test]
fn settings_are_checked() {
    assert_eq!(Channel::decide_settings(0, 0), Ok(ChannelSettings::default()));
    let small = ChannelSettings { history_messages: 5, history_bytes: 100 };
    assert_eq!(Channel::decide_settings(5, 100), Ok(small));
    let reject = Channel::decide_settings(HISTORY_MESSAGES + 1, 0).expect_err("too many");
    assert!(reject.message.contains("history_messages"));
}

#[test]
fn positions_are_given_before_messages_are_seen() {
    let mut channel = Channel::new(ChannelSettings::default());
    let (one, two) = (channel.decide_position(), channel.decide_position());
    assert_eq!((one, two, channel.head(), channel.first()), (Position(1), Position(2), Position(0), Position(1)));
    channel.apply(message(one, "a", None));
    assert_eq!((channel.head(), channel.decide_position()), (Position(1), Position(3)));
}

#[test]
fn a_conversation_is_recent_and_names_people() {
    let mut channel = Channel::new(ChannelSettings::default());
    say(&mut channel, "hello");
    say(&mut channel, "@ai  who are you?");
    let position = channel.decide_position();
    channel.apply(message(position, "A model.", Some(GenerationId(1))));
    let lines: Vec<_> = channel.conversation().into_iter().map(|line| (line.role, line.content)).collect();
    let expected = [(Role::User, "ada: hello"), (Role::User, "ada: who are you?"), (Role::Assistant, "A model.")];
    assert_eq!(lines, expected.map(|(role, text)| (role, text.to_owned())));
    for n in 0..100 {
        say(&mut channel, &format!("line {n}"));
    }
    assert_eq!(channel.conversation().len(), CONVERSATION_MESSAGES);
    say(&mut channel, &"x".repeat(2 * CONVERSATION_BYTES));
    assert_eq!(channel.conversation().len(), 1, "the newest line is always there");
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
        let mut channel = Channel::new(ChannelSettings { history_messages, history_bytes });
        for size in &sizes {
            say(&mut channel, &"x".repeat(*size));
        }
        let kept = channel.read(Position(0));
        prop_assert_eq!(channel.head(), Position(sizes.len() as u64));
        prop_assert!(!kept.is_empty() && kept.len() <= history_messages as usize);
        let bytes: usize = kept.iter().map(|message| message.body.len()).sum();
        prop_assert!(kept.len() == 1 || bytes as u64 <= history_bytes);
        for (at, message) in kept.iter().enumerate() {
            prop_assert_eq!(message.position.0, channel.first().0 + at as u64);
        }
        prop_assert_eq!(kept.last().map(|message| message.position), Some(channel.head()));
        prop_assert!(channel.read(channel.head().next()).is_empty());
    }
}
