use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use thalweg_domain::fact::{ChannelFact, ChannelInfo, Member, Reading, Snapshot, UserFact};
use thalweg_domain::generation::{Ending, Token};
use thalweg_domain::record::{ChannelSettings, GenerationRequest, Message, Posting};
use thalweg_protocol::chat::{ChannelKind, Context, MemberRole, PostRule, ProfileText};
use thalweg_protocol::generation::{ChatMessage, Constraint, FinishReason, OnDetach, Priority, Role, Sampling, Usage};
use thalweg_protocol::ids::{ChannelKey, Name, Position, Sequence, SessionId};
use thalweg_protocol::limits::TOPIC_BYTES_MAX;
use thalweg_protocol::op::{Delivery, DeliveryKind, Durability};

use super::*;
use crate::golden;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid name")
}

fn key() -> ChannelKey {
    ChannelKey { tenant: name("default"), channel: name("équipe") }
}

fn posting(body: Bytes, key_number: u32) -> Posting {
    let delivery = Delivery {
        position: Position(8),
        timestamp_us: 1_700_000_000_000_000,
        kind: DeliveryKind::Message,
        user: name("ada"),
        generation: Some(GenerationId(0x008f_0002_0000_0007)),
        body,
        key: key_number,
        context: Context::default(),
    };
    let session = SessionId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
    Posting { channel: key(), id: ChannelId(3), message: Arc::new(Message::new(delivery, session, Sequence(9))) }
}

fn request() -> GenerationRequest {
    let message = |role, content: &str| ChatMessage { role, content: content.into() };
    GenerationRequest {
        tenant: name("default"),
        user: name("ada"),
        model: name("smollm2-135m"),
        channel: Some((key(), ChannelId(3))),
        messages: vec![
            message(Role::System, "Be brief."),
            message(Role::User, "Why is the sky blue?"),
            message(Role::Assistant, ""),
        ],
        sampling: Sampling { stop: vec!["\n\n".into(), "é".into()], seed: 7, ..Sampling::default() },
        on_detach: OnDetach::Keep(5_000),
        raw: false,
        priority: Priority::Normal,
        deadline_ms: 0,
    }
}

/// A request that says everything there is to say.
fn full_request(constraint: Constraint, on_detach: OnDetach) -> GenerationRequest {
    let mut request = GenerationRequest { on_detach, raw: true, priority: Priority::High, deadline_ms: 9, ..request() };
    request.messages.push(ChatMessage { role: Role::Tool, content: "{}".into() });
    request.sampling = Sampling {
        min_p: 0.05,
        repetition_penalty: 1.1,
        frequency_penalty: -0.5,
        presence_penalty: 0.25,
        logit_bias: vec![(17, -100.0), (49_151, 1.5)],
        logprobs: Some(5),
        constraint,
        ..request.sampling
    };
    request
}

fn settings(durability: Durability) -> ChannelSettings {
    ChannelSettings { history_messages: 10, history_bytes: 1 << 40, history_age_us: 60_000_000, durability }
}

fn record(event: Event) -> Record {
    let (partition, lsn, epoch) = (Partition(143), Lsn(0x0102_0304_0506), Epoch(2));
    Record { partition, lsn, epoch, timestamp_us: 1_700_000_000_000_001, event }
}

fn tokens(posting: Option<Posting>) -> Event {
    let tokens = vec![Token { id: 5, bytes: 0 }, Token { id: 70_000, bytes: 3 }];
    let text = Bytes::from_static("aé".as_bytes());
    Event::GenerationTokens { generation: GenerationId(7), index: 12, tokens, text, posting }
}

fn finished(reason: FinishReason, posting: Option<Posting>) -> Event {
    let usage = Usage { prompt_tokens: 30, completion_tokens: 12, cached_tokens: 0 };
    let ending = Ending { reason, usage, message: "because".into() };
    Event::GenerationFinished { generation: GenerationId(7), ending, posting }
}

fn info() -> ChannelInfo {
    let (kind, post, by) = (ChannelKind::Private, PostRule::Moderators, name("ada"));
    ChannelInfo { kind, topic: "tides, mostly".into(), post, by, created_us: 1_700_000_000_000_000 }
}

fn member(role: Option<MemberRole>) -> ChannelFact {
    let member = role.map(|role| Member { role, since_us: 1_700_000_000_000_001, by: name("ada") });
    ChannelFact::Member { user: name("bob"), member }
}

fn profile() -> ProfileText {
    ProfileText { display: "Ada L.".into(), about: "Notes on the engine".into(), status: "✍".into() }
}

fn every_fact() -> Vec<ChannelFact> {
    let kinds = [ChannelKind::Open, ChannelKind::Direct].map(|kind| ChannelInfo { kind, ..info() });
    let rules = [PostRule::Everyone, PostRule::Members].map(|post| ChannelInfo { post, ..info() });
    let reading = Reading { position: Position(8), number: 3 };
    let mut facts: Vec<ChannelFact> = kinds.into_iter().chain(rules).map(ChannelFact::Info).collect();
    facts.extend(MemberRole::ALL.map(|role| member(Some(role))));
    facts
        .extend([ChannelFact::Reading { user: name("bob"), reading }, ChannelFact::Redacted { position: Position(7) }]);
    facts
}

/// A message with everything a message can have.
fn spoken() -> Posting {
    let delivery = Delivery {
        position: Position(9),
        timestamp_us: 1_700_000_000_000_000,
        kind: DeliveryKind::Message,
        user: name("ada"),
        generation: None,
        body: Bytes::from_static(b"@bob the tide is out"),
        key: 0,
        context: Context { target: Position(8), number: 4, mentions: vec![name("bob")], role: None, redacted: false },
    };
    Posting { message: Arc::new(Message::new(delivery, SessionId(5), Sequence(2))), ..posting(Bytes::new(), 0) }
}

/// One record of each shape. A new one comes at the end.
fn records() -> Vec<Record> {
    let started = |request: GenerationRequest, posting| Event::GenerationStarted {
        generation: GenerationId(7),
        request: request.into(),
        posting,
    };
    let made = |durability, facts| Event::ChannelCreated { channel: key(), settings: settings(durability), facts };
    let body = || posting(Bytes::from_static(b"\x00binary\xff"), 0);
    let bare = GenerationRequest { channel: None, messages: Vec::new(), on_detach: OnDetach::Cancel, ..request() };
    let events = vec![
        made(Durability::Memory, Vec::new()),
        made(Durability::Disk, Vec::new()),
        made(Durability::Replicated, Vec::new()),
        Event::ChannelDeleted { channel: key(), id: ChannelId(3) },
        Event::Published(body()),
        Event::Published(posting(Bytes::new(), 77)),
        started(request(), Some(body())),
        started(bare, None),
        tokens(Some(body())),
        tokens(None),
        finished(FinishReason::Stop, Some(body())),
        finished(FinishReason::Length, None),
        finished(FinishReason::Cancelled, None),
        finished(FinishReason::Failed, None),
        Event::GenerationDeleted { generation: GenerationId(7) },
        made(Durability::Disk, vec![ChannelFact::Info(info()), member(Some(MemberRole::Owner))]),
        Event::ChannelChanged { channel: key(), id: ChannelId(3), facts: every_fact(), posting: Some(body()) },
        Event::ChannelChanged { channel: key(), id: ChannelId(3), facts: vec![member(None)], posting: None },
        Event::ChannelChanged { channel: key(), id: ChannelId(3), facts: Vec::new(), posting: Some(spoken()) },
        Event::UserChanged {
            tenant: name("default"),
            user: name("ada"),
            facts: vec![
                UserFact::Forgotten,
                UserFact::Profile(profile()),
                UserFact::Seen { at_us: 1_700_000_000_000_002 },
            ],
        },
        started(full_request(Constraint::Json, OnDetach::Cancel), None),
        started(full_request(Constraint::JsonSchema("{}".into()), OnDetach::Keep(5)), Some(body())),
        started(full_request(Constraint::Regex("a+".into()), OnDetach::Cancel), None),
        started(full_request(Constraint::Lark("start: \"a\"".into()), OnDetach::Cancel), None),
        started(GenerationRequest { priority: Priority::Low, ..request() }, None),
        Event::GenerationFinished {
            generation: GenerationId(7),
            ending: Ending {
                reason: FinishReason::Length,
                usage: Usage { prompt_tokens: 30, completion_tokens: 12, cached_tokens: 24 },
                message: "because".into(),
            },
            posting: Some(body()),
        },
        made(Durability::Disk, vec![ChannelFact::Info(ChannelInfo { kind: ChannelKind::Document, ..info() })]),
        Event::ChannelChanged {
            channel: key(),
            id: ChannelId(3),
            facts: vec![ChannelFact::Snapshot(Snapshot { position: Position(8), parts: 1 })],
            posting: Some(body()),
        },
    ];
    events.into_iter().map(record).collect()
}

fn encoded(record: &Record) -> Bytes {
    let mut bytes = Vec::new();
    encode(record, &mut bytes);
    bytes.into()
}

#[test]
fn records_follow_each_other_and_are_read_again() {
    let mut bytes = vec![1, 2, 3];
    records().iter().for_each(|record| encode(record, &mut bytes));
    let (bytes, mut at) = (Bytes::from(bytes), 3);
    for record in records() {
        let (heading, end) = heading(&bytes, at).expect("a heading");
        assert_eq!((heading.partition, heading.lsn), (record.partition, record.lsn));
        assert_eq!((heading.epoch, heading.timestamp_us), (record.epoch, record.timestamp_us));
        let (again, next) = decode(&bytes, at).expect("a record");
        assert_eq!((again, next), (record, end));
        at = next;
    }
    assert_eq!(at, bytes.len());
    assert_eq!(decode(&bytes, at), Err(RecordError::Short { field: "length", at }));
    assert_eq!(decode(&bytes, usize::MAX), Err(RecordError::Short { field: "length", at: usize::MAX }));
}

#[test]
fn what_is_large_is_not_copied() {
    let bytes = encoded(&record(tokens(Some(posting(Bytes::from_static(b"a body"), 0)))));
    let inside = |part: &Bytes| bytes.as_ptr_range().contains(&part.as_ptr());
    let (record, _) = decode(&bytes, 0).expect("a record");
    let Event::GenerationTokens { text, posting: Some(posting), .. } = record.event else { panic!("another event") };
    assert!(inside(&text) && inside(&posting.message.payload) && inside(&posting.message.body));
    assert_eq!(posting.message.body, "a body");
}

#[test]
fn golden_bytes_of_version_1() {
    let lines: Vec<String> = records().iter().map(|record| golden::hex(&encoded(record))).collect();
    golden::check("record_v1.txt", &lines);
}

#[test]
fn damage_names_the_field() {
    let check = |event: Event, change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = encoded(&record(event)).to_vec();
        change(&mut bytes);
        let error = decode(&bytes.into(), 0).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    let deleted = || Event::GenerationDeleted { generation: GenerationId(7) };
    let created = || Event::ChannelCreated { channel: key(), settings: settings(Durability::Disk), facts: Vec::new() };
    let published = || Event::Published(posting(Bytes::from_static(b"a body"), 0));
    let length = |bytes: &mut Vec<u8>, by: i32| {
        let length = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) + by;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
    };
    check(deleted(), &|bytes| bytes.truncate(20), "record, at byte 4, reaches beyond the end");
    check(deleted(), &|bytes| length(bytes, -1), "generation, at byte 31, reaches beyond the end");
    check(deleted(), &|bytes| bytes.truncate(3), "length, at byte 0, reaches beyond the end");
    check(deleted(), &|bytes| bytes[2] = 0x20, "at most 1048576 are ever written");
    check(deleted(), &|bytes| bytes[4] = 0x27, "layout version is 2");
    check(deleted(), &|bytes| bytes[4] = 0x1b, "kind of event is 11");
    check(deleted(), &|bytes| bytes[4] = 0x10, "kind of event is 0");
    let longer = |bytes: &mut Vec<u8>| {
        bytes.push(0);
        length(bytes, 1);
    };
    check(deleted(), &longer, "1 bytes are left");
    check(created(), &|bytes| bytes[31] = 0, "tenant is empty");
    check(created(), &|bytes| bytes[31] = 255, "tenant, at byte 32, reaches beyond the end");
    check(created(), &|bytes| bytes[40] = 0xff, "channel is not valid UTF-8 after byte 0");
    check(created(), &|bytes| *bytes.last_mut().expect("not empty") = 3, "durability is 3");
    check(created(), &|bytes| bytes[4] = 0x18, "facts, at byte 68, reaches beyond the end");
    let no_facts = |bytes: &mut Vec<u8>| {
        bytes[4] = 0x18;
        bytes.extend([0; 4]);
        length(bytes, 4);
    };
    check(created(), &no_facts, "number of facts is 0");
    let changed = |facts| Event::ChannelChanged { channel: key(), id: ChannelId(3), facts, posting: None };
    let lost = || changed(vec![ChannelFact::Member { user: name("bob"), member: None }]);
    check(lost(), &|bytes| bytes[59] = 6, "fact of channel is 6");
    check(lost(), &|bytes| bytes[59] = 1, "role of member is 0");
    check(lost(), &|bytes| bytes[55] = 9, "facts, at byte 55, reaches beyond the end");
    let long = ChannelInfo { topic: "x".repeat(TOPIC_BYTES_MAX + 1), ..info() };
    check(changed(vec![ChannelFact::Info(long)]), &|_| (), "topic has 513 bytes; at most 512 are ever written");
    let user = |facts| Event::UserChanged { tenant: name("default"), user: name("bob"), facts };
    check(user(vec![UserFact::Forgotten]), &|bytes| *bytes.last_mut().expect("not empty") = 3, "fact of user is 3");
    check(published(), &|bytes| bytes[39] = 9, "position is 9, but payload makes it 8");
    check(published(), &|bytes| bytes[91] = 0xff, "payload: ");
    check(tokens(None), &|bytes| bytes[51] = 1, "length of text is 3, but tokens makes it 4");
    check(tokens(None), &|bytes| bytes[45] = 1, "tokens, at byte 43, reaches beyond the end");
    check(tokens(None), &|bytes| *bytes.last_mut().expect("not empty") = 2, "posting is 2");
    check(finished(FinishReason::Stop, None), &|bytes| bytes[39] = 4, "reason is 4");
    check(finished(FinishReason::Stop, None), &|bytes| bytes[39] = 0x80, "cached tokens, at byte");
    let started = |request: GenerationRequest| Event::GenerationStarted {
        generation: GenerationId(7),
        request: request.into(),
        posting: None,
    };
    let last = |bytes: &mut Vec<u8>, back: usize, value| {
        let at = bytes.len() - back;
        bytes[at] = value;
    };
    let cancelled = || started(GenerationRequest { on_detach: OnDetach::Cancel, ..request() });
    check(cancelled(), &|bytes| last(bytes, 2, 4), "on detach is 4");
    check(cancelled(), &|bytes| last(bytes, 2, 2), "min p, at byte");
    let json = || started(full_request(Constraint::Json, OnDetach::Cancel));
    check(json(), &|bytes| last(bytes, 6, 3), "priority is 3");
    check(json(), &|bytes| last(bytes, 7, 2), "raw is 2");
    check(json(), &|bytes| last(bytes, 8, 5), "constraint is 5");
    check(json(), &|bytes| last(bytes, 8, 4), "grammar, at byte");
    check(finished(FinishReason::Stop, None), &|bytes| bytes[54] = 0xff, "message is not valid UTF-8 after byte 2");
}

#[test]
#[should_panic(expected = "the text of tokens is theirs")]
fn what_could_not_be_read_is_not_written() {
    let tokens = vec![Token { id: 5, bytes: 3 }];
    let (generation, text) = (GenerationId(7), Bytes::from_static(b"ab"));
    encoded(&record(Event::GenerationTokens { generation, index: 0, tokens, text, posting: None }));
}

#[test]
#[should_panic(expected = "was decided on")]
fn what_is_too_large_is_not_written() {
    encoded(&record(Event::Published(posting(vec![0; LOG_RECORD_BYTES_MAX].into(), 0))));
}

prop_compose! {
    fn any_name()(text in "[a-zé日/_.-]{1,40}") -> Name { name(&text) }
}

prop_compose! {
    fn any_key()(tenant in any_name(), channel in any_name()) -> ChannelKey { ChannelKey { tenant, channel } }
}

prop_compose! {
    fn any_context()(
        numbers in any::<(u64, u64, bool)>(),
        mentions in prop::collection::vec(any_name(), 0..4),
        role in prop::option::of(any_role()),
    ) -> Context {
        let (target, number, redacted) = numbers;
        Context { target: Position(target), number, mentions, role, redacted }
    }
}

fn any_role() -> impl Strategy<Value = MemberRole> {
    prop::sample::select(MemberRole::ALL.to_vec())
}

prop_compose! {
    fn any_info()(
        kind in prop::sample::select(vec![ChannelKind::Open, ChannelKind::Private, ChannelKind::Direct, ChannelKind::Document]),
        post in prop::sample::select(vec![PostRule::Everyone, PostRule::Members, PostRule::Moderators]),
        topic in ".{0,40}",
        by in any_name(),
        created_us in any::<u64>(),
    ) -> ChannelInfo {
        ChannelInfo { kind, topic, post, by, created_us }
    }
}

fn any_channel_fact() -> impl Strategy<Value = ChannelFact> {
    let member = (any_role(), any::<u64>(), any_name()).prop_map(|(role, since_us, by)| Member { role, since_us, by });
    prop_oneof![
        any_info().prop_map(ChannelFact::Info),
        (any_name(), prop::option::of(member)).prop_map(|(user, member)| ChannelFact::Member { user, member }),
        (any_name(), any::<(u64, u64)>()).prop_map(|(user, (position, number))| {
            ChannelFact::Reading { user, reading: Reading { position: Position(position), number } }
        }),
        any::<u64>().prop_map(|position| ChannelFact::Redacted { position: Position(position) }),
        any::<(u64, u32)>()
            .prop_map(|(position, parts)| { ChannelFact::Snapshot(Snapshot { position: Position(position), parts }) }),
    ]
}

fn any_user_fact() -> impl Strategy<Value = UserFact> {
    prop_oneof![
        (".{0,10}", ".{0,40}", ".{0,20}").prop_map(|(display, about, status)| UserFact::Profile(ProfileText {
            display,
            about,
            status
        })),
        any::<u64>().prop_map(|at_us| UserFact::Seen { at_us }),
        Just(UserFact::Forgotten),
    ]
}

prop_compose! {
    fn any_posting()(
        channel in any_key(),
        numbers in any::<(u64, u64, u64, u128, u64, u32)>(),
        kind in prop::sample::select(vec![
            DeliveryKind::Message, DeliveryKind::Tokens, DeliveryKind::GenerationStarted, DeliveryKind::GenerationEnded,
            DeliveryKind::Edit, DeliveryKind::Redaction, DeliveryKind::Reaction, DeliveryKind::Unreaction,
            DeliveryKind::Membership, DeliveryKind::Info,
        ]),
        user in any_name(),
        generation in prop::option::of((1..u64::MAX).prop_map(GenerationId)),
        body in prop::collection::vec(any::<u8>(), 0..600),
        context in any_context(),
    ) -> Posting {
        let (id, position, timestamp_us, session, sequence, key) = numbers;
        let position = Position(position);
        let delivery = Delivery { position, timestamp_us, kind, user, generation, body: body.into(), key, context };
        let message = Message::new(delivery, SessionId(session), Sequence(sequence));
        Posting { channel, id: ChannelId(id), message: message.into() }
    }
}

prop_compose! {
    fn any_request()(
        names in (any_name(), any_name(), any_name()),
        channel in prop::option::of((any_key(), any::<u64>().prop_map(ChannelId))),
        messages in prop::collection::vec((0..4_usize, ".{0,40}"), 0..5),
        floats in (0.0_f32..2.0, 0.0_f32..1.0),
        more in prop::option::of(any_more()),
        numbers in any::<(u32, u64, u32)>(),
        stop in prop::collection::vec(".{0,9}", 0..4),
        keep in prop::option::of(any::<u64>()),
    ) -> GenerationRequest {
        let ((tenant, user, model), (temperature, top_p), (top_k, seed, max_tokens)) = (names, floats, numbers);
        let role = |number: usize| [Role::System, Role::User, Role::Assistant, Role::Tool][number];
        let messages = messages.into_iter().map(|(number, content)| ChatMessage { role: role(number), content });
        let (sampling, (raw, priority, deadline_ms)) = more.unwrap_or_default();
        let sampling = Sampling { temperature, top_p, top_k, seed, max_tokens, stop, ..sampling };
        let (messages, on_detach) = (messages.collect(), keep.map_or(OnDetach::Cancel, OnDetach::Keep));
        GenerationRequest { tenant, user, model, channel, messages, sampling, on_detach, raw, priority, deadline_ms }
    }
}

prop_compose! {
    /// What came later to a request.
    fn any_more()(
        numbers in (0.0_f32..1.0, 0.1_f32..2.0, -2.0_f32..2.0, -2.0_f32..2.0),
        logit_bias in prop::collection::vec((any::<u32>(), -100.0_f32..100.0), 0..5),
        logprobs in prop::option::of(0..=20_u8),
        constraint in prop_oneof![
            Just(Constraint::None),
            Just(Constraint::Json),
            ".{0,40}".prop_map(Constraint::JsonSchema),
            ".{0,40}".prop_map(Constraint::Regex),
            ".{0,40}".prop_map(Constraint::Lark),
        ],
        place in (any::<bool>(), prop::sample::select(Priority::ALL.to_vec()), any::<u32>()),
    ) -> (Sampling, (bool, Priority, u32)) {
        let (min_p, repetition_penalty, frequency_penalty, presence_penalty) = numbers;
        let more = Sampling {
            min_p, repetition_penalty, frequency_penalty, presence_penalty, logit_bias, logprobs, constraint,
            ..Sampling::default()
        };
        (more, place)
    }
}

prop_compose! {
    fn any_tokens()(
        numbers in any::<(u64, u32)>(),
        pieces in prop::collection::vec((any::<u32>(), ".{0,4}"), 0..20),
        posting in prop::option::of(any_posting()),
    ) -> Event {
        let text: String = pieces.iter().map(|(_, text)| text.as_str()).collect();
        let tokens = pieces.iter().map(|(id, text)| Token { id: *id, bytes: text.len() as u32 }).collect();
        Event::GenerationTokens { generation: GenerationId(numbers.0), index: numbers.1, tokens, text: text.into(), posting }
    }
}

prop_compose! {
    fn any_finished()(
        generation in any::<u64>().prop_map(GenerationId),
        reason in prop::sample::select(vec![
            FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled, FinishReason::Failed,
        ]),
        numbers in any::<(u32, u32, u32)>(),
        message in ".{0,40}",
        posting in prop::option::of(any_posting()),
    ) -> Event {
        let (prompt_tokens, completion_tokens, cached_tokens) = numbers;
        let usage = Usage { prompt_tokens, completion_tokens, cached_tokens };
        Event::GenerationFinished { generation, ending: Ending { reason, usage, message }, posting }
    }
}

prop_compose! {
    fn any_settings()(
        numbers in any::<(u32, u64, u64)>(),
        durability in prop::sample::select(vec![Durability::Memory, Durability::Disk, Durability::Replicated]),
    ) -> ChannelSettings {
        let (history_messages, history_bytes, history_age_us) = numbers;
        ChannelSettings { history_messages, history_bytes, history_age_us, durability }
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let generation = || any::<u64>().prop_map(GenerationId);
    prop_oneof![
        (any_key(), any_settings(), prop::collection::vec(any_channel_fact(), 0..4))
            .prop_map(|(channel, settings, facts)| Event::ChannelCreated { channel, settings, facts }),
        (any_key(), any::<u64>(), prop::collection::vec(any_channel_fact(), 0..4), prop::option::of(any_posting()))
            .prop_map(|(channel, id, facts, posting)| {
                Event::ChannelChanged { channel, id: ChannelId(id), facts, posting }
            }),
        (any_name(), any_name(), prop::collection::vec(any_user_fact(), 0..4))
            .prop_map(|(tenant, user, facts)| Event::UserChanged { tenant, user, facts }),
        (any_key(), any::<u64>().prop_map(ChannelId)).prop_map(|(channel, id)| Event::ChannelDeleted { channel, id }),
        any_posting().prop_map(Event::Published),
        (generation(), any_request(), prop::option::of(any_posting())).prop_map(|(generation, request, posting)| {
            Event::GenerationStarted { generation, request: request.into(), posting }
        }),
        any_tokens(),
        any_finished(),
        generation().prop_map(|generation| Event::GenerationDeleted { generation }),
    ]
}

prop_compose! {
    fn any_record()(numbers in any::<(u16, u64, u64, u64)>(), event in any_event()) -> Record {
        let (partition, lsn, epoch, timestamp_us) = numbers;
        Record { partition: Partition(partition), lsn: Lsn(lsn), epoch: Epoch(epoch), timestamp_us, event }
    }
}

proptest! {
    #[test]
    fn any_record_is_read_as_it_was_written(record in any_record(), before in prop::collection::vec(any::<u8>(), 0..9)) {
        let mut bytes = before.clone();
        encode(&record, &mut bytes);
        let bytes = Bytes::from(bytes);
        prop_assert_eq!(decode(&bytes, before.len()), Ok((record, bytes.len())));
        // And no shorter piece of it is a record.
        for end in before.len()..bytes.len() {
            prop_assert!(decode(&bytes.slice(..end), before.len()).is_err(), "cut at {}", end);
        }
    }

    #[test]
    fn a_damaged_record_is_refused_or_is_another(
        record in any_record(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&record).to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok((other, end)) = decode(&bytes.into(), 0) {
            // Compared as text, because a temperature may be NaN.
            let again = decode(&encoded(&other), 0).expect("what we write we can read");
            prop_assert_eq!(format!("{:?}", (other, end)), format!("{again:?}"));
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(kind in 1..11_u8, mut bytes in prop::collection::vec(any::<u8>(), 5..300)) {
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4] = VERSION << 4 | kind;
        let bytes = Bytes::from(bytes);
        if let Ok((_, end)) = decode(&bytes, 0) {
            prop_assert_eq!(end, bytes.len());
        }
    }
}
