use std::time::Duration;

use proptest::prelude::*;
use thalweg_protocol::chat::Context;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate, DocumentAccess, DocumentNews, DocumentOp};
use thalweg_protocol::ids::{ChannelId, Epoch, Position, SessionId};
use thalweg_protocol::limits::DOCUMENT_UPDATE_BYTES_MAX;
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, Welcome};

use super::*;
use crate::limits::{SOCKET_CREDIT_UPDATES, SOCKET_IN_FLIGHT_MAX, SOCKET_RETRIES_MAX};

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub(in super::super) fn welcome() -> ServerOp {
    ServerOp::Welcome(Welcome {
        version: 1,
        session: SessionId(7),
        epoch: Epoch(1),
        tenant: name("default"),
        user: name("ada"),
        server: String::new(),
        models: Vec::new(),
        frame_bytes_max: 1,
        body_bytes_max: 1,
        in_flight_max: 1,
        lead_messages: 1,
        lead_tokens: 1,
        token_expires_us: 0,
    })
}

pub(in super::super) fn opened(bytes: u64, access: DocumentAccess) -> ServerOp {
    let (revision, vector) = (Position(9), Bytes::from_static(&[1, 7, 3]));
    ServerOp::Document(DocumentNews::Opened { id: ChannelId(1), revision, bytes, access, made: false, vector })
}

pub(in super::super) fn update(position: u64, body: &'static [u8]) -> Bytes {
    let delivery = Delivery {
        position: Position(position),
        timestamp_us: 1,
        kind: DeliveryKind::Update,
        user: name("bob"),
        generation: None,
        body: Bytes::from_static(body),
        key: 0,
        context: Context::default(),
    };
    ServerOp::Delivery(delivery).encode()
}

/// A client, and what came of what happened to it.
struct Client {
    yjs: Yjs,
    asked: Vec<(Request, ClientOp)>,
    told: Vec<(ClientOp, ())>,
    sent: Vec<Vec<u8>>,
    closed: Option<Close>,
}

impl Client {
    /// One whose token was accepted.
    fn new() -> Self {
        let yjs = Yjs::new(name("notes/a"), "token".into());
        let mut client = Self { yjs, asked: Vec::new(), told: Vec::new(), sent: Vec::new(), closed: None };
        assert!(client.yjs.is_full(), "nothing is read before the token was checked");
        client.answer(Request(0), Ok(welcome()));
        client
    }

    /// One that has the document open.
    fn open(access: DocumentAccess) -> (Self, u32) {
        let mut client = Self::new();
        client.say(&[0, 0, 1, 0]);
        let (request, _) = client.asked.pop().expect("asked");
        client.answer(request, Ok(opened(0, access)));
        client.sent.clear();
        (client, request.0)
    }

    fn gather(&mut self) {
        while let Some(effect) = self.yjs.poll() {
            match effect {
                Effect::Ask { request, op, .. } => self.asked.push((request, op)),
                Effect::Tell { op, .. } => self.told.push((op, ())),
                Effect::Send(Message::Binary(bytes), taken) => {
                    self.sent.push(bytes.into());
                    if let Some(taken) = taken {
                        self.yjs.handle(Input::Taken(taken));
                    }
                }
                Effect::Close(close) => self.closed = self.closed.take().or(Some(close)),
                Effect::Open { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.yjs.handle(input);
        self.gather();
    }

    fn say(&mut self, message: &[u8]) {
        self.handle(Input::Message(Message::Binary(Bytes::copy_from_slice(message))));
    }

    fn answer(&mut self, request: Request, said: Result<ServerOp, Reject>) {
        self.handle(Input::Answered { session: 0, request, said });
    }

    fn answer_last(&mut self, said: Result<ServerOp, Reject>) {
        let (request, _) = self.asked.pop().expect("asked");
        self.answer(request, said);
    }

    fn frame(&mut self, subject: u32, payload: Bytes) {
        self.handle(Input::Frame { session: 0, subject, payload });
    }
}

/// A sync message.
fn sync(step: u64, bytes: &[u8]) -> Bytes {
    Writer::default().number(SYNC).number(step).bytes(bytes).finish()
}

fn published() -> ServerOp {
    ServerOp::Published { position: Position(10), timestamp_us: 1, duplicate: false }
}

#[test]
fn a_client_gets_what_it_lacks_and_is_asked_for_what_the_node_lacks() {
    let mut client = Client::new();
    client.say(&[0, 0, 3, 1, 5, 6]);
    let (request, op) = client.asked.pop().expect("asked");
    let ClientOp::Document(DocumentOp::Open(open)) = op else { panic!("{op:?}") };
    assert_eq!((open.document.as_str(), &open.state[..], open.make), ("notes/a", &[1, 5, 6][..], true));
    client.answer(request, Ok(opened(5, DocumentAccess::Write)));
    assert!(client.sent.is_empty(), "the state is not there yet");
    let part = |offset, bytes: &'static [u8]| {
        let bytes = Bytes::from_static(bytes);
        ServerOp::Document(DocumentNews::State { revision: Position(9), offset, total: 5, bytes }).encode()
    };
    client.frame(request.0, part(0, &[1, 2, 3]));
    assert!(client.sent.is_empty(), "nor the rest of it");
    client.frame(request.0, part(3, &[4, 5]));
    assert_eq!(client.sent, [vec![0, 1, 5, 1, 2, 3, 4, 5], vec![0, 0, 3, 1, 7, 3]]);
    client.frame(request.0, update(10, &[9, 9]));
    assert_eq!(client.sent.last(), Some(&vec![0, 2, 2, 9, 9]));
    // What it could not be sent one by one.
    client.frame(request.0, part(0, &[1, 2, 3]));
    client.frame(request.0, part(3, &[4, 5]));
    assert_eq!(client.sent.last(), Some(&vec![0, 2, 5, 1, 2, 3, 4, 5]));
}

#[test]
fn who_lacks_nothing_is_told_so_at_once() {
    let mut client = Client::new();
    client.say(&[0, 0, 1, 0]);
    client.answer_last(Ok(opened(0, DocumentAccess::Write)));
    assert_eq!(client.sent, [vec![0, 1, 2, 0, 0], vec![0, 0, 3, 1, 7, 3]]);
    // A client that begins again is told anew, and the old reading ends.
    client.say(&[0, 0, 1, 0]);
    let ops: Vec<_> = client.asked.iter().map(|(_, op)| std::mem::discriminant(op)).collect();
    assert_eq!(ops.len(), 2);
    assert!(matches!(client.asked[0].1, ClientOp::Unsubscribe { .. }));
}

#[test]
fn edits_are_written_and_nothing_is_not() {
    let (mut client, _) = Client::open(DocumentAccess::Write);
    client.say(&[0, 2, 3, 1, 2, 3]);
    let ClientOp::Publish(publish) = &client.asked[0].1 else { panic!("{:?}", client.asked) };
    assert_eq!((publish.channel.as_str(), &publish.body[..], publish.sequence.0), ("notes/a", &[1, 2, 3][..], 1));
    client.say(&[0, 1, 2, 0, 0]);
    assert_eq!(client.asked.len(), 1, "an answer of nothing is no edit");
    for _ in 0..SOCKET_IN_FLIGHT_MAX {
        client.say(&[0, 2, 3, 1, 2, 3]);
    }
    assert!(client.yjs.is_full());
    client.answer_last(Ok(published()));
    client.answer_last(Ok(published()));
    assert!(!client.yjs.is_full() && client.sent.is_empty(), "there are no answers");
}

#[test]
fn an_edit_that_could_not_be_kept_is_asked_for_again() {
    let (mut client, _) = Client::open(DocumentAccess::Write);
    for _ in 0..3 {
        client.say(&[0, 2, 3, 1, 2, 3]);
    }
    let asked: Vec<_> = client.asked.drain(..).map(|(request, _)| request).collect();
    client.answer(asked[0], Err(Reject::new(RejectCode::StorageFull, "full").retry_after_ms(1_000)));
    client.answer(asked[1], Err(Reject::new(RejectCode::UpdateIncomplete, "builds on it")));
    client.say(&[0, 2, 3, 1, 2, 3]);
    assert!(client.asked.is_empty(), "what comes meanwhile is contained in what is asked for");
    client.handle(Input::Tick(Duration::from_secs(2)));
    assert!(client.sent.is_empty(), "one is not answered");
    client.answer(asked[2], Err(Reject::new(RejectCode::UpdateIncomplete, "builds on it")));
    assert_eq!(client.sent, [vec![0, 0, 3, 1, 7, 3]], "another step 1");
    client.say(&[0, 1, 3, 7, 7, 7]);
    assert_eq!(client.asked.len(), 1);
    client.answer_last(Ok(published()));
    client.say(&[0, 2, 3, 1, 2, 3]);
    assert_eq!(client.asked.len(), 1, "and all goes on");
    assert!(client.closed.is_none());
}

#[test]
fn what_was_lost_is_asked_for_beyond_what_the_node_has_by_then() {
    let (mut client, subject) = Client::open(DocumentAccess::Write);
    let lost = || Err(Reject::new(RejectCode::UpdateIncomplete, "builds on another"));
    client.frame(subject, update(10, &[9, 9]));
    client.say(&[0, 2, 3, 1, 2, 3]);
    client.sent.clear();
    client.answer_last(lost());
    let (probe, op) = client.asked.pop().expect("the node is asked what it has");
    let ClientOp::Document(DocumentOp::Open(open)) = op else { panic!("{op:?}") };
    assert_eq!((&open.state[..], open.make), (&[1, 7, 3][..], false), "but only for what is new");
    assert!(client.sent.is_empty());
    // What the node says about it is told already.
    client.frame(probe.0, update(10, &[9, 9]));
    let (revision, vector) = (Position(10), Bytes::from_static(&[1, 7, 5]));
    let opened = DocumentNews::Opened {
        id: ChannelId(1),
        revision,
        bytes: 4,
        access: DocumentAccess::Write,
        made: false,
        vector,
    };
    client.answer(probe, Ok(ServerOp::Document(opened)));
    assert_eq!(client.sent, [vec![0, 0, 3, 1, 7, 5]]);
    let (_, op) = client.asked.pop().expect("asked");
    assert_eq!(op, ClientOp::Unsubscribe { subscription: thalweg_protocol::ids::Subscription(probe.0) });
    // Nothing happened since, so that it is asked for at once; and if the node cannot say, from what is known.
    client.say(&[0, 1, 3, 7, 7, 7]);
    client.answer_last(lost());
    client.handle(Input::Tick(Duration::from_secs(30)));
    assert_eq!(client.sent.len(), 2);
    client.say(&[0, 1, 3, 7, 7, 7]);
    client.answer_last(Ok(published()));
    client.say(&[0, 2, 3, 1, 2, 3]);
    client.answer_last(lost());
    client.answer_last(Err(Reject::new(RejectCode::LimitReached, "too many documents")));
    assert_eq!(client.sent.last(), Some(&vec![0, 0, 3, 1, 7, 5]));
    assert_eq!((client.sent.len(), &client.closed), (3, &None));
    // Whoever leaves meanwhile leaves that too.
    let (mut client, subject) = Client::open(DocumentAccess::Write);
    client.frame(subject, update(10, &[9, 9]));
    client.say(&[0, 2, 3, 1, 2, 3]);
    client.answer_last(lost());
    client.frame(subject, ServerOp::Ended(Reject::new(RejectCode::ChannelDeleted, "deleted")).encode());
    assert!(matches!(client.asked.last(), Some((_, ClientOp::Unsubscribe { .. }))), "{:?}", client.asked);
}

#[test]
fn what_was_lost_and_is_too_long_by_now_comes_with_the_next_socket() {
    let (mut client, _) = Client::open(DocumentAccess::Write);
    client.say(&[0, 2, 3, 1, 2, 3]);
    client.answer_last(Err(Reject::new(RejectCode::UpdateIncomplete, "builds on another")));
    client.say(&sync(STEP_2, &vec![1; DOCUMENT_UPDATE_BYTES_MAX + 1]));
    assert_eq!(client.closed.map(|close| close.code), Some(4503), "to come back helps");
}

#[test]
fn an_edit_keeps_no_more_memory_than_it_has() {
    let (mut client, _) = Client::open(DocumentAccess::Write);
    let mut message = vec![0, 2, 3, 1, 2, 3];
    message.resize(1 << 20, 0);
    let message = Bytes::from(message);
    client.handle(Input::Message(Message::Binary(message.clone())));
    let ClientOp::Publish(publish) = &client.asked[0].1 else { panic!("{:?}", client.asked) };
    assert_eq!(&publish.body[..], [1, 2, 3]);
    assert!(message.is_unique(), "what stands behind it is let go of");
}

#[test]
fn who_does_not_say_what_was_lost_is_parted_with() {
    let (mut client, _) = Client::open(DocumentAccess::Write);
    client.say(&[0, 2, 3, 1, 2, 3]);
    client.answer_last(Err(Reject::new(RejectCode::UpdateIncomplete, "builds on another")));
    assert_eq!(client.sent.len(), 1, "asked at once");
    client.handle(Input::Tick(Duration::from_secs(30)));
    assert_eq!(client.closed.map(|close| close.code), Some(4503));
    let (mut client, _) = Client::open(DocumentAccess::Write);
    let mut now = Duration::ZERO;
    client.say(&[0, 2, 3, 1, 2, 3]);
    for _ in 0..=SOCKET_RETRIES_MAX {
        client.answer_last(Err(Reject::new(RejectCode::StorageFull, "full")));
        now += Duration::from_secs(300);
        client.handle(Input::Tick(now));
        if client.closed.is_none() {
            client.say(&[0, 1, 3, 7, 7, 7]);
        }
    }
    assert_eq!(client.closed.map(|close| close.code), Some(4507));
}

#[test]
fn who_may_not_edit_is_told_and_goes_on_reading() {
    let (mut client, subject) = Client::open(DocumentAccess::Read);
    let forbidden = || Err(Reject::new(RejectCode::Forbidden, "no"));
    client.say(&[0, 1, 3, 0, 1, 1]);
    client.answer_last(forbidden());
    assert!(client.sent.is_empty(), "deletions that it was told of are no edit of its own");
    client.say(&[0, 2, 3, 1, 2, 3]);
    client.answer_last(forbidden());
    let denied = client.sent.pop().expect("told");
    assert_eq!(&denied[..2], &[2, 0]);
    assert!(std::str::from_utf8(&denied[3..]).expect("text").contains("no (forbidden)"));
    client.frame(subject, update(10, &[9]));
    assert_eq!((client.sent.len(), &client.closed), (1, &None));
}

#[test]
fn closings_say_why() {
    let check = |input: fn(u32) -> Input, code: u16, says: &str| {
        let (mut client, subject) = Client::open(DocumentAccess::Write);
        client.handle(input(subject));
        let close = client.closed.unwrap_or_else(|| panic!("not closed: {says}"));
        assert!(close.code == code && close.reason.contains(says), "{close:?}");
    };
    check(|_| Input::Message(Message::Binary(Bytes::from_static(&[0, 2, 9, 1]))), 4400, "frame_invalid");
    check(|_| Input::Message(Message::Binary(Bytes::new())), 4400, "frame_invalid");
    check(|_| Input::Message(Message::Binary(Bytes::from_static(&[77]))), 4400, "type 77");
    check(|_| Input::Message(Message::Text("{}".into())), 4400, "/ws speaks JSON");
    check(|_| Input::Message(Message::Binary(Bytes::from_static(&[1, 2, 1, 1]))), 4400, "awareness");
    check(
        |_| {
            let update = vec![1; DOCUMENT_UPDATE_BYTES_MAX + 1];
            Input::Message(Message::Binary(sync(UPDATE, &update)))
        },
        4413,
        "paste in pieces",
    );
    check(
        |_| Input::Message(Message::Binary(sync(STEP_2, &vec![1; DOCUMENT_UPDATE_BYTES_MAX + 1]))),
        4413,
        "reload, and paste them in pieces",
    );
    check(
        |subject| {
            let reject = Reject::new(RejectCode::ChannelDeleted, "the document was deleted");
            Input::Frame { session: 0, subject, payload: ServerOp::Ended(reject).encode() }
        },
        4410,
        "channel_deleted",
    );
    check(|_| Input::Closed { session: 0, reject: Reject::new(RejectCode::TokenRevoked, "r") }, 4401, "token_revoked");
    let mut client = Client::new();
    client.say(&[0, 0, 1, 0]);
    client.answer_last(Err(Reject::new(RejectCode::Forbidden, "not yours")));
    assert_eq!(&client.sent[0][..2], &[2, 0], "the protocol's own way to say so comes first");
    assert_eq!(client.closed.map(|close| close.code), Some(4403));
}

#[test]
fn awareness_is_shared_once_the_document_is_open_and_can_be_asked_for() {
    let entry = |client, state: Option<&'static [u8]>| AwarenessEntry {
        client,
        clock: 1,
        state: state.map(Bytes::from_static),
    };
    let of = |entries| AwarenessUpdate { entries }.encode();
    let mut client = Client::new();
    let own = of(vec![entry(7, Some(b"{}"))]);
    let message = Writer::default().number(AWARENESS).bytes(&own).finish();
    client.say(&message);
    assert!(client.asked.is_empty());
    client.say(&[0, 0, 1, 0]);
    client.answer_last(Ok(opened(0, DocumentAccess::Write)));
    let Some((_, ClientOp::Document(DocumentOp::ShareAwareness { subscription, update }))) = client.asked.pop() else {
        panic!("not shared")
    };
    assert_eq!(update, own);
    let others = of(vec![entry(8, Some(b"{\"a\":1}")), entry(9, Some(b"1"))]);
    client.frame(subscription.0, ServerOp::Document(DocumentNews::Awareness { update: others.clone() }).encode());
    let left = of(vec![entry(9, None)]);
    client.frame(subscription.0, ServerOp::Document(DocumentNews::Awareness { update: left }).encode());
    client.say(&[3]);
    let there = Writer::default().number(AWARENESS).bytes(&of(vec![entry(8, Some(b"{\"a\":1}"))])).finish();
    assert_eq!(client.sent.last().map(Vec::as_slice), Some(&there[..]));
    client.handle(Input::Quiet);
    assert_eq!(client.sent.last(), Some(&vec![1, 1, 0]), "nobody's awareness, so that the client hears something");
}

#[test]
fn credit_is_given_for_what_was_taken() {
    let (mut client, subject) = Client::open(DocumentAccess::Write);
    for position in 0..u64::from(SOCKET_CREDIT_UPDATES) + 1 {
        client.frame(subject, update(position + 10, &[1]));
        client.gather();
    }
    assert!(matches!(client.told[..], [(ClientOp::Consumed { .. }, ())]), "{:?}", client.told);
}

proptest! {
    #[test]
    fn garbage_never_panics(messages: Vec<Vec<u8>>, frame: Vec<u8>) {
        let (mut client, subject) = Client::open(DocumentAccess::Write);
        for message in messages {
            client.say(&message);
            let kind = message.first().copied().unwrap_or_default() % 4;
            client.say(&[&[kind][..], &message].concat());
        }
        client.frame(subject, frame.into());
    }
}
