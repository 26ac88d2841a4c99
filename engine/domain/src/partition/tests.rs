use bytes::Bytes;
use proptest::prelude::*;
use thalweg_protocol::chat::{Context, MemberRole, ProfileText};
use thalweg_protocol::generation::{ChatMessage, FinishReason, OnDetach, Priority, Role, Sampling, Usage};
use thalweg_protocol::ids::{Epoch, Name, Partition, Sequence, SessionId};
use thalweg_protocol::op::{Delivery, DeliveryKind};

use super::*;
use crate::fact::{Member, Reading, Snapshot, UserFact};
use crate::record::Message;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn key(n: u64) -> ChannelKey {
    ChannelKey { tenant: name("default"), channel: name(&format!("channel-{n}")) }
}

/// Makes records that make sense together from arbitrary numbers.
#[derive(Default)]
struct Story {
    records: Vec<Record>,
    heads: BTreeMap<ChannelId, u64>,
    tokens: BTreeMap<GenerationId, u32>,
    sequences: BTreeMap<u128, u64>,
}

impl Story {
    fn tell(steps: &[(u8, u8)]) -> Vec<Record> {
        let mut story = Self::default();
        for &(what, which) in steps {
            let event = story.event(what, usize::from(which));
            let lsn = Lsn(story.records.len() as u64 + 1);
            if matches!(event, Event::ChannelCreated { .. }) {
                story.heads.insert(ChannelId(lsn.0), 0);
            }
            let (partition, epoch, timestamp_us) = (Partition(3), Epoch(1), lsn.0 * 1_000);
            story.records.push(Record { partition, lsn, epoch, timestamp_us, event });
        }
        story.records
    }

    fn event(&mut self, what: u8, which: usize) -> Event {
        let channel = self.heads.keys().copied().nth(which % self.heads.len().max(1));
        let generation = self.tokens.keys().copied().nth(which % self.tokens.len().max(1));
        match (what % 16, channel, generation) {
            (0, _, _) | (_, None, _) => {
                let settings = ChannelSettings::new(Durability::Disk);
                Event::ChannelCreated {
                    channel: key(self.records.len() as u64),
                    settings,
                    facts: vec![member(which, true)],
                }
            }
            (1, Some(id), _) => {
                self.heads.remove(&id);
                Event::ChannelDeleted { channel: key(id.0), id }
            }
            (2, Some(id), _) => {
                let generation = GenerationId(self.records.len() as u64);
                self.tokens.insert(generation, 0);
                let messages = vec![ChatMessage { role: Role::User, content: "why?".into() }];
                let request = Arc::new(GenerationRequest {
                    tenant: name("default"),
                    user: name("ada"),
                    model: name("model"),
                    channel: Some((key(id.0), id)),
                    messages,
                    sampling: Sampling::default(),
                    on_detach: OnDetach::Cancel,
                    raw: false,
                    priority: Priority::Normal,
                    deadline_ms: 0,
                });
                Event::GenerationStarted { generation, request, posting: Some(self.posting(id, 0)) }
            }
            (3..=5, Some(id), Some(generation)) => {
                let index = self.tokens[&generation];
                self.tokens.insert(generation, index + 2);
                let tokens = vec![Token { id: index, bytes: 1 }, Token { id: 7, bytes: 2 }];
                let posting = Some(self.posting(id, 0));
                Event::GenerationTokens { generation, index, tokens, text: Bytes::from_static(b"abc"), posting }
            }
            (6, _, Some(generation)) => {
                self.tokens.remove(&generation);
                let ending = Ending { reason: FinishReason::Stop, usage: Usage::default(), message: String::new() };
                Event::GenerationFinished { generation, ending, posting: None }
            }
            (7, _, Some(generation)) => {
                self.tokens.remove(&generation);
                Event::GenerationDeleted { generation }
            }
            (8 | 9, Some(id), _) => {
                let mut facts = vec![member(which, which.is_multiple_of(3)), reading(which)];
                if which % 4 == 1 {
                    facts.push(ChannelFact::Snapshot(Snapshot {
                        position: Position(self.records.len() as u64),
                        parts: 2,
                    }));
                }
                let posting = which.is_multiple_of(2).then(|| self.posting(id, which as u128 % 2));
                Event::ChannelChanged { channel: key(id.0), id, facts, posting }
            }
            (10, _, _) => {
                let facts = match which % 3 {
                    0 => vec![UserFact::Forgotten],
                    1 => vec![UserFact::Profile(ProfileText { display: which.to_string(), ..ProfileText::default() })],
                    _ => vec![UserFact::Seen { at_us: self.records.len() as u64 + 1 }],
                };
                Event::UserChanged { tenant: name("default"), user: name(&format!("user-{}", which % 5)), facts }
            }
            (_, Some(id), _) => Event::Published(self.posting(id, 1 + which as u128 % 3)),
        }
    }

    fn posting(&mut self, id: ChannelId, session: u128) -> Posting {
        let head = self.heads.entry(id).or_default();
        *head += 100;
        let sequence = self.sequences.entry(session).or_default();
        *sequence += 1;
        let delivery = Delivery {
            position: Position(*head),
            timestamp_us: *head,
            kind: DeliveryKind::Message,
            user: name("ada"),
            generation: None,
            body: Bytes::from(vec![b'x'; *head as usize % 50]),
            key: 0,
            context: Context { number: 1, mentions: vec![name("bob")], ..Context::default() },
        };
        let message = Arc::new(Message::new(delivery, SessionId(session), Sequence(*sequence)));
        Posting { channel: key(id.0), id, message }
    }
}

fn member(which: usize, is: bool) -> ChannelFact {
    let member = Member { role: MemberRole::Member, since_us: which as u64, by: name("ada") };
    ChannelFact::Member { user: name(&format!("user-{}", which % 5)), member: is.then_some(member) }
}

fn reading(which: usize) -> ChannelFact {
    let reading = Reading { position: Position(which as u64), number: 1 };
    ChannelFact::Reading { user: name("ada"), reading }
}

fn replay(records: &[Record]) -> PartitionState {
    let mut state = PartitionState::default();
    records.iter().for_each(|record| state.apply(record).expect("no gap"));
    state
}

proptest! {
    /// Snapshot and tail equal the full log, wherever it is cut.
    #[test]
    fn states_of_pieces_merge_into_the_state_of_the_whole(
        steps in prop::collection::vec(any::<(u8, u8)>(), 1..200),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let records = Story::tell(&steps);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(records.len())).collect();
        cuts.extend([0, records.len()]);
        cuts.sort_unstable();
        let mut merged = PartitionState::default();
        for piece in cuts.windows(2) {
            merged.merge(replay(&records[piece[0]..piece[1]])).expect("no gap");
        }
        prop_assert_eq!(merged, replay(&records));
    }
}

#[test]
fn a_missing_piece_is_noticed() {
    let records = Story::tell(&[(0, 0), (9, 0), (9, 0), (9, 0)]);
    let mut state = replay(&records[..1]);
    let gap = Gap { expected: Lsn(2), found: Lsn(3) };
    assert_eq!((state.apply(&records[2]), state.clone().merge(replay(&records[2..]))), (Err(gap), Err(gap)));
    assert_eq!(state.merge(replay(&records[1..])), Ok(()));
}

#[test]
fn what_expired_is_dropped_but_an_end_without_its_beginning_is_kept() {
    let records = Story::tell(&[(0, 0), (2, 0), (3, 0), (6, 0)]);
    let now_us = 10_000 + GENERATION_KEEP_MS * 1_000;
    let (mut whole, mut tail) = (replay(&records), replay(&records[2..]));
    whole.expire(now_us);
    tail.expire(now_us);
    assert_eq!((whole.generations.len(), tail.generations.len()), (0, 1));
    let mut merged = replay(&records[..2]);
    merged.merge(tail).expect("no gap");
    merged.expire(now_us);
    assert_eq!(merged.generations.len(), 0);
}

#[test]
fn what_was_asked_for_is_kept_and_little_more() {
    let settings = |history_messages, history_bytes, history_age_us| ChannelSettings {
        history_messages,
        history_bytes,
        history_age_us,
        durability: Durability::Disk,
    };
    // A message of 10 bytes every second, 1,000 of them.
    let marks: Vec<Mark> = (1..=3)
        .map(|n| n * HISTORY_MARK_MESSAGES)
        .map(|n| Mark { position: Position(n), bytes: 10 * n, timestamp_us: n * 1_000_000 })
        .collect();
    let check = |settings: ChannelSettings, expected: u64| {
        let first = first_kept(&settings, Position(1_000), 10_000, marks.iter(), 1_000_000_000);
        assert_eq!(first, Position(expected), "{settings:?}");
    };
    check(settings(u32::MAX, u64::MAX, 0), 1);
    check(settings(8, u64::MAX, 0), 993);
    check(settings(u32::MAX, 3_000, 0), 2 * HISTORY_MARK_MESSAGES + 1);
    check(settings(u32::MAX, u64::MAX, 600_000_000), HISTORY_MARK_MESSAGES + 1);
    check(settings(0, 0, 1), 1_000);
    assert_eq!(first_kept(&settings(0, 0, 1), Position(0), 0, [].iter(), 5), Position(1), "an empty channel");
}
