mod documents;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::chat::*;
use crate::generation::{ChatMessage, Constraint, OnDetach, Priority, Role, Sampling, TokenChance};
use crate::limits::{
    BODY_BYTES_MAX, CONSTRAINT_BYTES_MAX, EMBED_TEXTS_MAX, FRAME_BYTES_MAX, LOGIT_BIASES_MAX, LOGPROBS_MAX,
    NAME_BYTES_MAX, TOKEN_BYTES_MAX, TOKEN_DETAILS_MAX,
};
use crate::reject::RejectCode;
use crate::trace::TraceContext;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid name")
}

fn publish(body: Bytes) -> ClientOp {
    let (sequence, retry, make) = (Sequence(9), true, false);
    ClientOp::Publish(Publish { channel: name("general"), sequence, retry, make, body, key: 0, post: Post::default() })
}

fn ask() -> AskRequest {
    let message = |role, content: &str| ChatMessage { role, content: content.into() };
    AskRequest {
        model: Some(name("smollm2-135m")),
        messages: vec![message(Role::System, "Be brief."), message(Role::User, "Why is the sky blue?")],
        sampling: Sampling { stop: vec!["\n\n".into()], seed: 7, ..Sampling::default() },
        has_seed: true,
        on_detach: OnDetach::Keep(5_000),
        lead: 16,
        ..AskRequest::prompt("")
    }
}

/// A request with everything that can be said of sampling, kept to a constraint.
fn ask_in_full(constraint: Constraint, priority: Priority) -> ClientOp {
    let mut ask = ask();
    ask.messages.push(ChatMessage { role: Role::Tool, content: "{\"sky\":\"blue\"}".into() });
    ask.sampling = Sampling {
        min_p: 0.05,
        repetition_penalty: 1.1,
        frequency_penalty: -0.5,
        presence_penalty: 0.25,
        logit_bias: vec![(17, -100.0), (49_151, 1.5)],
        logprobs: Some(5),
        constraint,
        ..ask.sampling
    };
    (ask.raw, ask.priority, ask.deadline_ms) = (true, priority, 30_000);
    ClientOp::Ask(Box::new(ask))
}

/// What came with more of sampling, constraints and embeddings.
fn model_client_ops() -> Vec<ClientOp> {
    let schema = Constraint::JsonSchema("{\"type\":\"string\"}".into());
    vec![
        ask_in_full(Constraint::Json, Priority::Low),
        ask_in_full(schema, Priority::High),
        ask_in_full(Constraint::Regex("[a-z]+".into()), Priority::Normal),
        ask_in_full(Constraint::Lark("start: \"a\"".into()), Priority::Normal),
        ask_in_full(Constraint::None, Priority::Normal),
        ClientOp::Embed { model: Some(name("minilm-l6")), texts: vec!["a tide".into(), String::new()] },
        ClientOp::Embed { model: None, texts: vec!["Straße".into()] },
    ]
}

fn model_server_ops() -> Vec<ServerOp> {
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    let chance = |id, words, logprob| TokenChance { id, text: text(words), logprob };
    let detail = |index, top| TokenDetail { index, id: 5, text: Bytes::from_static(b"\xc3"), logprob: -0.25, top };
    let details = vec![
        detail(3, vec![chance(5, " the", -0.25), chance(9, "", -1.5), chance(11, "é", -2.0)]),
        detail(4, Vec::new()),
    ];
    vec![
        ServerOp::Tokens { index: 3, count: 2, text: text("é"), details },
        ServerOp::Finished {
            reason: FinishReason::Stop,
            usage: Usage { prompt_tokens: 30, completion_tokens: 12, cached_tokens: 24 },
            message: String::new(),
        },
        ServerOp::Embedded { model: name("minilm-l6"), dimensions: 2, vectors: vec![0.5, -0.25, 1.0, 0.0], tokens: 9 },
    ]
}

/// Every operation that goes to a node, in the order of the golden file's parts.
fn every_client_op() -> Vec<ClientOp> {
    let known = vec![documents::known_ops().0];
    [client_ops(), later_client_ops(), chat_client_ops(), model_client_ops(), documents::client_ops(), known].concat()
}

/// Every operation that a node sends.
fn every_server_op() -> Vec<ServerOp> {
    let known = vec![documents::known_ops().1];
    [server_ops(), later_server_ops(), chat_server_ops(), model_server_ops(), documents::server_ops(), known].concat()
}

fn client_ops() -> Vec<ClientOp> {
    let session = SessionId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
    let hello = Hello { versions: (1, 1), session, token: "a.b.c".into(), client: "test/1".into() };
    let subscribe =
        |from, policy| Subscribe { channel: name("équipe"), from, policy, lead: 5, make: true, presence: false };
    vec![
        ClientOp::Hello(hello),
        ClientOp::CreateChannel(create(0, None)),
        publish(Bytes::from_static(b"\x00binary\xff")),
        ClientOp::Subscribe(subscribe(From::Start, Policy::Replay)),
        ClientOp::Subscribe(subscribe(From::End, Policy::Drop)),
        ClientOp::Subscribe(subscribe(From::Position(Position(77)), Policy::Disconnect)),
        ClientOp::Unsubscribe { subscription: Subscription(3) },
        ClientOp::Consumed { subscription: Subscription(3), position: Position(u64::MAX) },
        ClientOp::Ask(Box::new(ask())),
        ClientOp::Watch(watch(Epoch(0), None)),
        ClientOp::TokensConsumed { watch: Watch(4), index: 13 },
        ClientOp::Unwatch { watch: Watch(4) },
        ClientOp::Cancel { generation: GenerationId(7) },
        ClientOp::Ping { nonce: 42 },
        ClientOp::Stats,
        ClientOp::Drain,
    ]
}

/// Operations, and fields of older ones, that came after the first golden file was written.
fn later_client_ops() -> Vec<ClientOp> {
    vec![
        ClientOp::CreateChannel(create(60_000, Some(Durability::Memory))),
        ClientOp::CreateChannel(create(60_000, Some(Durability::Disk))),
        ClientOp::CreateChannel(create(60_000, Some(Durability::Replicated))),
        ClientOp::Watch(watch(Epoch(3), Some(0))),
        ClientOp::DeleteChannel { channel: name("general") },
        ClientOp::DeleteTenant,
        ClientOp::Checkpoint,
        ClientOp::ReadHistory { channel: name("general"), from: Position(5), limit: 100 },
    ]
}

/// What came with membership, presence and the gatekeeper.
fn chat_client_ops() -> Vec<ClientOp> {
    let (channel, user) = (name("general"), name("bob"));
    let about = ChannelAbout { kind: ChannelKind::Private, topic: "rivers".into(), post: PostRule::Members };
    let mut private = create(0, None);
    private.about = about;
    let write = |kind, target| {
        let post = Post { kind, target: Position(target) };
        let (channel, body) = (name("general"), Bytes::from_static("👍".as_bytes()));
        ClientOp::Publish(Publish { channel, sequence: Sequence(3), retry: false, make: false, body, key: 0, post })
    };
    let subscribe = Subscribe {
        channel: name("general"),
        from: From::End,
        policy: Policy::Replay,
        lead: 0,
        make: true,
        presence: true,
    };
    let profile = ProfileText { display: "Bob".into(), about: "rows".into(), status: "at lunch".into() };
    let chat = [
        ChatOp::Join { channel: channel.clone() },
        ChatOp::Leave { channel: channel.clone() },
        ChatOp::SetMember { channel: channel.clone(), user: user.clone(), role: Some(MemberRole::Moderator) },
        ChatOp::SetMember { channel: channel.clone(), user: user.clone(), role: None },
        ChatOp::SetChannel { channel: channel.clone(), topic: Some(String::new()), kind: None, post: None },
        ChatOp::SetChannel {
            channel: channel.clone(),
            topic: None,
            kind: Some(ChannelKind::Open),
            post: Some(PostRule::Moderators),
        },
        ChatOp::OpenDirect { users: vec![user.clone(), name("eve")] },
        ChatOp::AboutChannel { channel: channel.clone() },
        ChatOp::ListChannels { after: "a".into(), limit: 20, all: true },
        ChatOp::MarkRead { channel: channel.clone(), position: Position(9), number: 7 },
        ChatOp::SetProfile(profile),
        ChatOp::GetProfile { user: user.clone() },
        ChatOp::SetPresence { away: true },
        ChatOp::SetPresence { away: false },
        ChatOp::WhoIsIn { channel: channel.clone() },
        ChatOp::SearchHistory { channel, query: "Straße".into(), before: Position(0), limit: 50 },
    ];
    let login = Login { tenant: name("default"), user, password: "correct horse".into() };
    let mut ops = vec![
        ClientOp::CreateChannel(private),
        write(PostKind::Message, 4),
        write(PostKind::Edit, 4),
        write(PostKind::Redact, 4),
        write(PostKind::React, 4),
        write(PostKind::Unreact, 4),
        ClientOp::Subscribe(subscribe),
    ];
    ops.extend(chat.map(ClientOp::Chat));
    ops.extend([
        ClientOp::Login(login),
        ClientOp::Manage { json: Bytes::from_static(b"{\"command\":\"reload\"}") },
        ClientOp::Heartbeat,
        ClientOp::Typing { subscription: Subscription(3), on: true },
    ]);
    ops
}

fn chat_server_ops() -> Vec<ServerOp> {
    let user = |user, state| PresentUser { user: name(user), state, since_us: 5 };
    let users = || vec![user("ada", PresenceState::Online), user("bob", PresenceState::Away)];
    let delivery = |kind, context| {
        ServerOp::Delivery(Delivery {
            position: Position(8),
            timestamp_us: 1,
            kind,
            user: name("ada"),
            generation: None,
            body: Bytes::from_static(b"hello"),
            key: 0,
            context,
        })
    };
    let target = |target| Context { target: Position(target), number: 3, ..Context::default() };
    let report = ChannelReport {
        channel: name("general"),
        kind: ChannelKind::Direct,
        topic: "rivers".into(),
        post: PostRule::Everyone,
        created_us: 1,
        first: Position(2),
        head: Position(9),
        messages: 5,
        durability: Durability::Disk,
        you: Some(MemberRole::Owner),
        members_total: 2,
        members: vec![MemberEntry { user: name("ada"), role: MemberRole::Banned, since_us: 7 }],
    };
    let summary = ChannelSummary {
        channel: name("general"),
        kind: ChannelKind::Private,
        topic: String::new(),
        role: None,
        head: Position(9),
        messages: 5,
        read: Position(3),
        unread: 2,
        mentions: 1,
        active_us: 11,
    };
    let profile = ProfileReport {
        user: name("ada"),
        profile: ProfileText { display: "Ada".into(), about: String::new(), status: "here".into() },
        state: PresenceState::Offline,
        seen_us: 4,
    };
    vec![
        delivery(DeliveryKind::Message, Context { mentions: vec![name("bob")], ..target(2) }),
        delivery(DeliveryKind::Message, Context { redacted: true, ..target(0) }),
        delivery(DeliveryKind::Edit, target(2)),
        delivery(DeliveryKind::Redaction, target(2)),
        delivery(DeliveryKind::Reaction, target(2)),
        delivery(DeliveryKind::Unreaction, target(2)),
        delivery(DeliveryKind::Membership, Context { role: Some(MemberRole::Invited), ..target(0) }),
        delivery(DeliveryKind::Info, target(0)),
        ServerOp::ChannelReport(Box::new(report)),
        ServerOp::ChannelList { channels: vec![summary], more: true },
        ServerOp::ProfileReport(Box::new(profile)),
        ServerOp::PresenceReport { count: 2, users: users(), complete: true },
        ServerOp::Presence(Presence { full: false, sampled: true, count: 9, users: users(), left: vec![name("eve")] }),
        ServerOp::TypingNotice { user: name("ada"), on: true },
        ServerOp::LoggedIn { token: "a.b.c".into(), expires_us: 5 },
        ServerOp::Managed { json: Bytes::from_static(b"{}") },
    ]
}

fn later_server_ops() -> Vec<ServerOp> {
    let deliveries = vec![Bytes::from_static(b"one"), Bytes::from_static(b"another")];
    vec![
        ServerOp::Deleted { channels: 3 },
        ServerOp::Page { first: Position(1), next: Position(7), head: Position(9), deliveries },
        ServerOp::Rewound { to: 5 },
    ]
}

fn create(history_age_ms: u64, durability: Option<Durability>) -> CreateChannel {
    let channel = name("general");
    CreateChannel {
        channel,
        history_messages: 10,
        history_bytes: 1 << 20,
        history_age_ms,
        durability,
        about: ChannelAbout::default(),
    }
}

fn watch(epoch: Epoch, seen: Option<u64>) -> WatchRequest {
    WatchRequest { generation: GenerationId(0xff00_0001_0000_0007), from: 12, lead: 64, epoch, seen }
}

fn server_ops() -> Vec<ServerOp> {
    let welcome = Welcome {
        version: 1,
        session: SessionId(5),
        epoch: Epoch(2),
        tenant: name("default"),
        user: name("ada"),
        server: "thalweg/0.1.0".into(),
        models: vec!["smollm2-135m".into()],
        frame_bytes_max: 1 << 20,
        body_bytes_max: 1 << 18,
        in_flight_max: 1024,
        lead_messages: 1000,
        lead_tokens: 64,
        token_expires_us: 0,
    };
    let delivery = |kind, generation| Delivery {
        position: Position(8),
        timestamp_us: 1_700_000_000_000_000,
        kind,
        user: name("ada"),
        generation,
        body: Bytes::from_static(b"hello"),
        key: 0,
        context: Context::default(),
    };
    let reject = Reject::new(RejectCode::Busy, "too much is waiting").retry_after_ms(250);
    let finished = |reason| ServerOp::Finished {
        reason,
        usage: Usage { prompt_tokens: 30, completion_tokens: 12, cached_tokens: 0 },
        message: "because".into(),
    };
    vec![
        ServerOp::Welcome(welcome),
        ServerOp::Reject(reject),
        ServerOp::Done,
        ServerOp::ChannelCreated { created: true },
        ServerOp::Published { position: Position(8), timestamp_us: 3, duplicate: true },
        ServerOp::Subscribed { next: Position(1), head: Position(8) },
        ServerOp::Delivery(delivery(DeliveryKind::Message, None)),
        ServerOp::Delivery(delivery(DeliveryKind::Tokens, Some(GenerationId(1)))),
        ServerOp::Delivery(delivery(DeliveryKind::GenerationStarted, Some(GenerationId(2)))),
        ServerOp::Delivery(delivery(DeliveryKind::GenerationEnded, Some(GenerationId(3)))),
        ServerOp::Missed { from: Position(7), to: Position(9) },
        ServerOp::Ended(Reject::new(RejectCode::SlowReader, "1,001 messages behind")),
        ServerOp::Asked { generation: GenerationId(9), model: "smollm2-135m".into() },
        ServerOp::Tokens { index: 3, count: 2, text: Bytes::from_static("é".as_bytes()), details: Vec::new() },
        finished(FinishReason::Stop),
        finished(FinishReason::Length),
        finished(FinishReason::Cancelled),
        finished(FinishReason::Failed),
        ServerOp::Pong { nonce: 42 },
        ServerOp::StatsReport { json: Bytes::from_static(b"{}") },
        ServerOp::ServerRestarting { reconnect_delay_ms: 1000 },
    ]
}

#[test]
fn every_operation_round_trips() {
    for op in every_client_op() {
        assert_eq!(ClientOp::decode(&op.encode()), Ok(op));
    }
    for op in every_server_op() {
        assert_eq!(ServerOp::decode(&op.encode()), Ok(op));
    }
}

#[test]
fn a_request_says_which_trace_it_is_part_of() {
    let trace = TraceContext { trace: u128::MAX - 5, span: 7, flags: 1 };
    let op = ClientOp::Ping { nonce: 1 };
    assert_eq!(ClientOp::decode_traced(&op.encode_traced(Some(trace))), Ok((op.clone(), Some(trace))));
    assert_eq!(ClientOp::decode_traced(&op.encode()), Ok((op.clone(), None)));
    let zero = TraceContext { trace: 0, ..trace };
    assert_eq!(ClientOp::decode_traced(&op.encode_traced(Some(zero))), Ok((op, None)), "names no trace");
}

#[test]
fn operations_of_the_other_direction_are_refused_by_code() {
    for op in every_server_op() {
        assert_eq!(ClientOp::decode(&op.encode()).map_err(|r| r.code), Err(RejectCode::OperationUnknown));
    }
    for op in every_client_op() {
        assert_eq!(ServerOp::decode(&op.encode()).map_err(|r| r.code), Err(RejectCode::OperationUnknown));
    }
}

/// Frames of version 1, byte for byte: what a client of today sends, a node of tomorrow must read. The file is written once
/// per operation; a line that changes means that the wire changed.
#[test]
fn golden_bytes_of_version_1() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/golden_v1.txt");
    let (client, server) = (client_ops(), server_ops());
    let (later_client, later_server) = (later_client_ops(), later_server_ops());
    let encoded = client.iter().map(ClientOp::encode).chain(server.iter().map(ServerOp::encode));
    let later = later_client.iter().map(ClientOp::encode).chain(later_server.iter().map(ServerOp::encode));
    let encoded = encoded.chain(later);
    let (chat_client, chat_server) = (chat_client_ops(), chat_server_ops());
    let encoded = encoded.chain(chat_client.iter().map(ClientOp::encode));
    let encoded = encoded.chain(chat_server.iter().map(ServerOp::encode));
    let (model_client, model_server) = (model_client_ops(), model_server_ops());
    let encoded = encoded.chain(model_client.iter().map(ClientOp::encode));
    let encoded = encoded.chain(model_server.iter().map(ServerOp::encode));
    let (document_client, document_server) = (documents::client_ops(), documents::server_ops());
    let encoded = encoded.chain(document_client.iter().map(ClientOp::encode));
    let encoded = encoded.chain(document_server.iter().map(ServerOp::encode));
    let (known_client, known_server) = documents::known_ops();
    let encoded = encoded.chain([known_client.encode(), known_server.encode()]);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let now: Vec<String> = encoded.map(|bytes| hex(&bytes)).collect();
    if std::env::var_os("THALWEG_BLESS").is_some() {
        std::fs::write(path, now.join("\n") + "\n").expect("golden file is writable");
    }
    let golden = std::fs::read_to_string(path).expect("golden file; THALWEG_BLESS=1 writes it");
    let golden: Vec<&str> = golden.lines().collect();
    assert_eq!(now.len(), golden.len(), "an operation was added: add it at the end with THALWEG_BLESS=1");
    for (at, (now, golden)) in now.iter().zip(&golden).enumerate() {
        assert_eq!(now, golden, "operation {at} is encoded differently than before");
    }
}

#[test]
fn what_is_beyond_a_limit_is_refused_and_named() {
    let check = |op: &ClientOp, code, word: &str| {
        let reject = ClientOp::decode(&op.encode()).expect_err("beyond a limit");
        assert_eq!(reject.code, code, "{reject}");
        assert!(reject.message.contains(word), "{reject} does not name {word}");
    };
    check(&publish(vec![0; BODY_BYTES_MAX + 1].into()), RejectCode::BodyTooLarge, "body");
    let mut zero = publish(Bytes::new());
    if let ClientOp::Publish(publish) = &mut zero {
        publish.sequence = Sequence(0);
    }
    check(&zero, RejectCode::ParameterInvalid, "sequence");
    let token = "x".repeat(TOKEN_BYTES_MAX + 1);
    let hello = Hello { versions: (1, 1), session: SessionId(1), token, client: String::new() };
    check(&ClientOp::Hello(hello), RejectCode::FrameInvalid, "token");
    let mut hot = ask();
    hot.sampling.temperature = 9.0;
    check(&ClientOp::Ask(Box::new(hot)), RejectCode::ParameterInvalid, "temperature");
    let long = Constraint::Regex("x".repeat(CONSTRAINT_BYTES_MAX + 1));
    check(&ask_in_full(long, Priority::Low), RejectCode::ParameterInvalid, "constraint has 65537 bytes");
    let mut biased = ask();
    biased.sampling.logit_bias = vec![(1, 0.5); LOGIT_BIASES_MAX + 1];
    check(&ClientOp::Ask(Box::new(biased)), RejectCode::ParameterInvalid, "logit_bias has 1025 tokens");
    let texts = |count| ClientOp::Embed { model: None, texts: vec!["a".into(); count] };
    check(&texts(0), RejectCode::ParameterInvalid, "texts has 0 entries");
    check(&texts(EMBED_TEXTS_MAX + 1), RejectCode::ParameterInvalid, "texts has 257 entries");
}

/// A name that [`Name`] would not let us build, put on the wire by a peer that does not use our code.
#[test]
fn names_of_a_hostile_peer_are_checked() {
    let payload = ClientOp::DeleteChannel { channel: name("aaaa") }.encode();
    let at = payload.windows(4).position(|w| w == b"aaaa").expect("the name is in the frame");
    for (bytes, code) in [(*b"a\x1bza", RejectCode::NameInvalid), (*b"a\xffza", RejectCode::FrameInvalid)] {
        let mut hostile = payload.to_vec();
        hostile[at..at + 4].copy_from_slice(&bytes);
        assert_eq!(ClientOp::decode(&hostile.into()).map_err(|r| r.code), Err(code));
    }
    assert!(Name::new(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The bounded runs of the fuzz targets `client_op` and `server_op`.
    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let bytes = Bytes::from(bytes);
        let _ = ClientOp::decode(&bytes);
        let _ = ServerOp::decode(&bytes);
    }

    #[test]
    fn a_damaged_frame_is_read_or_refused_and_never_grows(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
    ) {
        let frames: Vec<Bytes> = every_client_op().iter().map(ClientOp::encode)
            .chain(every_server_op().iter().map(ServerOp::encode)).collect();
        let mut bytes = frames[which.index(frames.len())].to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        let bytes = Bytes::from(bytes);
        if let Ok(op) = ClientOp::decode(&bytes) {
            // Shared tables can make a value larger than its frame, but never beyond the limits it was checked against.
            prop_assert!(op.encode().len() <= 2 * FRAME_BYTES_MAX);
        }
        let _ = ServerOp::decode(&bytes);
    }

    #[test]
    fn bodies_round_trip(body in prop::collection::vec(any::<u8>(), 0..2048)) {
        let op = publish(body.into());
        prop_assert_eq!(ClientOp::decode(&op.encode()), Ok(op));
    }

    #[test]
    fn what_is_said_of_sampling_round_trips(
        numbers in (0.0_f32..=1.0, 0.01_f32..=10.0, -2.0_f32..=2.0, -2.0_f32..=2.0),
        logit_bias in prop::collection::vec((any::<u32>(), -100.0_f32..=100.0), 0..20),
        logprobs in prop::option::of(0..=LOGPROBS_MAX),
        (kind, text) in (0_usize..5, ".{1,60}"),
        (raw, priority, deadline_ms) in (any::<bool>(), 0_usize..3, 0_u32..=3_600_000),
    ) {
        let (min_p, repetition_penalty, frequency_penalty, presence_penalty) = numbers;
        let constraint = match kind {
            0 => Constraint::None,
            1 => Constraint::Json,
            2 => Constraint::JsonSchema(text),
            3 => Constraint::Regex(text),
            _ => Constraint::Lark(text),
        };
        let sampling = Sampling {
            min_p, repetition_penalty, frequency_penalty, presence_penalty, logit_bias, logprobs, constraint,
            ..Sampling::default()
        };
        let op = AskRequest { sampling, raw, priority: Priority::ALL[priority], deadline_ms, ..ask() };
        let op = ClientOp::Ask(Box::new(op));
        prop_assert_eq!(ClientOp::decode(&op.encode()), Ok(op));
    }

    #[test]
    fn a_frame_full_of_likelihoods_round_trips(
        count in 0..=TOKEN_DETAILS_MAX,
        top in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..12), -50.0_f32..0.0), 0..=20),
    ) {
        let chance = |(id, text, logprob): (u32, Vec<u8>, f32)| TokenChance { id, text: text.into(), logprob };
        let top: Vec<TokenChance> = top.into_iter().map(chance).collect();
        let detail = |index| TokenDetail { index, id: 7, text: Bytes::from_static(b"a"), logprob: -1.0, top: top.clone() };
        let details = (0..count as u32).map(detail).collect();
        let op = ServerOp::Tokens { index: 0, count: count as u32, text: Bytes::new(), details };
        prop_assert_eq!(ServerOp::decode(&op.encode()), Ok(op));
    }

    #[test]
    fn embeddings_round_trip(
        vectors in prop::collection::vec(-1.0_f32..1.0, 0..400),
        texts in prop::collection::vec(".{0,40}", 1..20),
    ) {
        let op = ServerOp::Embedded { model: name("m"), dimensions: 1, vectors, tokens: 3 };
        prop_assert_eq!(ServerOp::decode(&op.encode()), Ok(op));
        let op = ClientOp::Embed { model: None, texts };
        prop_assert_eq!(ClientOp::decode(&op.encode()), Ok(op));
    }
}
