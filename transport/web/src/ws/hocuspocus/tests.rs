use std::time::Duration;

use proptest::prelude::*;
use thalweg_protocol::ids::Position;
use thalweg_protocol::op::ClientOp;

use super::super::yjs::tests::{opened, update, welcome};
use super::*;

/// A client, and what came of what happened to it.
#[derive(Default)]
struct Client {
    hocuspocus: Hocuspocus,
    opened: Vec<(u32, String)>,
    left: Vec<u32>,
    asked: Vec<(u32, Request, ClientOp)>,
    sent: Vec<Vec<u8>>,
    closed: Option<Close>,
}

impl Client {
    fn handle(&mut self, input: Input) {
        self.hocuspocus.handle(input);
        while let Some(effect) = self.hocuspocus.poll() {
            match effect {
                Effect::Open { session, token, .. } => self.opened.push((session, token)),
                Effect::Leave { session } => self.left.push(session),
                Effect::Ask { session, request, op } => self.asked.push((session, request, op)),
                Effect::Tell { .. } => {}
                Effect::Send(Message::Binary(bytes), _) => self.sent.push(bytes.into()),
                Effect::Send(..) => panic!("not bytes"),
                Effect::Close(close) => self.closed = self.closed.take().or(Some(close)),
            }
        }
    }

    fn say(&mut self, address: &str, rest: &[u8]) {
        let mut message: Vec<u8> = Writer::default().text(address).finish().into();
        message.extend_from_slice(rest);
        self.handle(Input::Message(Message::Binary(message.into())));
    }

    fn token(&mut self, address: &str, token: &str) {
        let rest = Writer::default().number(AUTH).number(TOKEN).text(token).text("4.8.0").finish();
        self.say(address, &rest);
    }

    fn answer_last(&mut self, said: Result<ServerOp, Reject>) -> u32 {
        let (session, request, _) = self.asked.pop().expect("asked");
        self.handle(Input::Answered { session, request, said });
        request.0
    }

    /// Authenticates and opens a document; gives its subscription.
    fn open(&mut self, address: &str, access: DocumentAccess) -> u32 {
        self.token(address, "t");
        if let Some((session, _)) = self.opened.last().cloned() {
            self.handle(Input::Answered { session, request: Request(0), said: Ok(welcome()) });
        }
        assert!(!self.hocuspocus.is_full());
        self.say(address, &[0, 0, 1, 0]);
        let subject = self.answer_last(Ok(opened(0, access)));
        self.sent.clear();
        subject
    }
}

fn addressed(address: &str, rest: &[u8]) -> Vec<u8> {
    let mut message: Vec<u8> = Writer::default().text(address).finish().into();
    message.extend_from_slice(rest);
    message
}

#[test]
fn a_document_is_authenticated_and_opened() {
    let check = |access, scope: &str| {
        let mut client = Client::default();
        client.token("a", "secret");
        assert_eq!(client.opened, [(1, "secret".to_owned())]);
        assert!(client.hocuspocus.is_full(), "nothing is read while the token is checked");
        client.handle(Input::Answered { session: 1, request: Request(0), said: Ok(welcome()) });
        client.say("a", &[0, 0, 1, 0]);
        client.answer_last(Ok(opened(0, access)));
        let authenticated = Writer::default().number(AUTH).number(AUTHENTICATED).text(scope).finish();
        let expected = [&authenticated[..], &[0, 1, 2, 0, 0], &[0, 0, 3, 1, 7, 3]];
        assert_eq!(client.sent, expected.map(|rest| addressed("a", rest)));
    };
    check(DocumentAccess::Write, "read-write");
    check(DocumentAccess::Comment, "read-write");
    check(DocumentAccess::Read, "readonly");
}

#[test]
fn a_provider_that_waits_to_be_authenticated_is() {
    let mut client = Client::default();
    client.token("a", "secret");
    assert!(!client.hocuspocus.is_in_a_hurry(), "its token is being checked");
    client.handle(Input::Answered { session: 1, request: Request(0), said: Ok(welcome()) });
    assert!(client.hocuspocus.is_in_a_hurry());
    client.handle(Input::Tick(Duration::from_millis(20)));
    let early = client.answer_last(Ok(opened(5, DocumentAccess::Read)));
    let authenticated = Writer::default().number(AUTH).number(AUTHENTICATED).text("readonly").finish();
    assert_eq!(client.sent, [addressed("a", &authenticated)]);
    assert!(!client.hocuspocus.is_in_a_hurry());
    client.handle(Input::Frame { session: 1, subject: early, payload: update(10, &[9]) });
    client.handle(Input::Tick(Duration::from_secs(1)));
    assert_eq!(client.sent.len(), 1, "it did not say what it has");
    client.sent.clear();
    client.say("a", &[0, 0, 1, 0]);
    assert!(client.asked.iter().any(|(_, _, op)| matches!(op, ClientOp::Unsubscribe { .. })));
    client.answer_last(Ok(opened(0, DocumentAccess::Read)));
    assert_eq!(
        client.sent,
        [addressed("a", &[0, 1, 2, 0, 0]), addressed("a", &[0, 0, 3, 1, 7, 3])],
        "told once who it is"
    );
    client.sent.clear();
    client.handle(Input::Frame { session: 1, subject: early, payload: update(11, &[9]) });
    assert!(client.sent.is_empty(), "what was opened early is closed");
}

#[test]
fn documents_share_a_session_unless_they_are_the_same() {
    let mut client = Client::default();
    client.open("a", DocumentAccess::Write);
    client.open("b", DocumentAccess::Write);
    assert_eq!(client.opened.len(), 1);
    let second = client.open("a\0x1", DocumentAccess::Write);
    assert_eq!(client.opened.len(), 2, "one session is not told what it did itself");
    client.handle(Input::Frame { session: 2, subject: second, payload: update(10, &[9]) });
    assert_eq!(client.sent, [addressed("a\0x1", &[0, 2, 1, 9])], "under the address of its own");
    client.token("c", "another");
    assert_eq!(client.opened.len(), 3, "another token, another session");
    client.say("a\0x1", &[7]);
    assert_eq!(client.left, [2], "the last document of a session closes it");
}

#[test]
fn an_edit_is_confirmed_once_it_is_durable() {
    let mut client = Client::default();
    client.open("a", DocumentAccess::Write);
    client.say("a", &[0, 2, 3, 1, 2, 3]);
    assert!(client.sent.is_empty());
    client.answer_last(Ok(ServerOp::Published { position: Position(1), timestamp_us: 1, duplicate: false }));
    assert_eq!(client.sent, [addressed("a", &[8, 1])]);
    client.sent.clear();
    client.say("a", &[0, 2, 3, 1, 2, 3]);
    client.answer_last(Err(Reject::new(RejectCode::Forbidden, "no")));
    assert_eq!(client.sent, [addressed("a", &[8, 0])]);
    client.sent.clear();
    // Two that were lost are confirmed with the answer that contains them.
    client.say("a", &[0, 2, 3, 1, 2, 3]);
    client.say("a", &[0, 2, 3, 1, 2, 3]);
    let asked: Vec<_> = client.asked.drain(..).collect();
    for (session, request, _) in asked {
        let said = Err(Reject::new(RejectCode::UpdateIncomplete, "builds on another"));
        client.handle(Input::Answered { session, request, said });
    }
    // An edit was made since the document was opened: the node says what it has now.
    assert!(client.sent.is_empty());
    client.answer_last(Ok(opened(0, DocumentAccess::Write)));
    assert_eq!(client.sent, [addressed("a", &[0, 0, 3, 1, 7, 3])], "asked for what the node lacks");
    client.sent.clear();
    client.say("a", &[0, 1, 3, 1, 2, 3]);
    client.answer_last(Ok(ServerOp::Published { position: Position(1), timestamp_us: 1, duplicate: false }));
    assert_eq!(client.sent, [addressed("a", &[8, 1]), addressed("a", &[8, 1])]);
}

#[test]
fn who_may_not_is_denied_and_the_others_go_on() {
    let denied = |client: &mut Client, address: &str, code: &str| {
        let message = client.sent.pop().expect("told");
        let head = addressed(address, &[2, 1]);
        assert!(message.starts_with(&head), "{message:?}");
        let reason = String::from_utf8_lossy(&message[head.len() + 1..]).into_owned();
        assert!(reason.contains(code), "{reason}");
        assert_eq!(client.closed, None);
    };
    let mut client = Client::default();
    let subject = client.open("good", DocumentAccess::Write);
    client.say("early", &[0, 0, 1, 0]);
    denied(&mut client, "early", "token_invalid");
    client.say("early", &[0, 0, 1, 0]);
    assert!(client.sent.is_empty(), "said once");
    client.token("a b", "t");
    denied(&mut client, "a b", "name_invalid");
    client.token("bad", "bad");
    client.handle(Input::Answered {
        session: 2,
        request: Request(0),
        said: Err(Reject::new(RejectCode::TokenInvalid, "not signed")),
    });
    denied(&mut client, "bad", "token_invalid");
    assert!(!client.hocuspocus.is_full());
    client.token("closed", "t");
    client.say("closed", &[0, 0, 1, 0]);
    client.answer_last(Err(Reject::new(RejectCode::Forbidden, "not yours")));
    denied(&mut client, "closed", "forbidden");
    client.handle(Input::Frame { session: 1, subject, payload: update(10, &[9]) });
    assert_eq!(client.sent, [addressed("good", &[0, 2, 1, 9])]);
}

#[test]
fn one_document_ends_and_the_others_go_on() {
    let mut client = Client::default();
    let a = client.open("a", DocumentAccess::Write);
    let b = client.open("b", DocumentAccess::Write);
    let ended = ServerOp::Ended(Reject::new(RejectCode::ChannelDeleted, "deleted")).encode();
    client.handle(Input::Frame { session: 1, subject: a, payload: ended });
    assert!(client.sent[0].starts_with(&addressed("a", &[7])) && client.closed.is_none());
    client.sent.clear();
    client.handle(Input::Frame { session: 1, subject: b, payload: update(10, &[9]) });
    assert_eq!(client.sent, [addressed("b", &[0, 2, 1, 9])]);
    client.sent.clear();
    client.say("b", &[0, 2, 3, 1, 2, 3]);
    client.answer_last(Err(Reject::new(RejectCode::UpdateInvalid, "nonsense")));
    assert!(client.sent[0].starts_with(&addressed("b", &[7])));
    // What may pass ends the socket: the provider comes back by itself then, and only then.
    client.open("c", DocumentAccess::Write);
    client.handle(Input::Closed { session: 2, reject: Reject::new(RejectCode::Draining, "bye") });
    assert_eq!(client.closed.map(|close| close.code), Some(1012));
}

#[test]
fn a_document_that_the_node_closed_is_silent_until_it_shows_a_token() {
    let mut client = Client::default();
    let subject = client.open("a", DocumentAccess::Write);
    let ended = ServerOp::Ended(Reject::new(RejectCode::ChannelDeleted, "deleted")).encode();
    client.handle(Input::Frame { session: 1, subject, payload: ended });
    assert!(client.sent.pop().expect("told").starts_with(&addressed("a", &[7])));
    client.say("a", &[0, 2, 3, 1, 2, 3]);
    client.say("a", &[1, 1, 0]);
    assert!(client.sent.is_empty() && client.closed.is_none(), "nobody is logged out: {:?}", client.sent);
    client.open("a", DocumentAccess::Write);
    client.say("a", &[0, 2, 3, 1, 2, 3]);
    assert!(matches!(client.asked.last(), Some((_, _, ClientOp::Publish(_)))), "it is open again");
    // One that the provider closes needs no notes, however many it closes.
    for number in 0..2 * SOCKET_DOCUMENTS_MAX {
        let address = format!("b{number}");
        client.token(&address, "t");
        client.say(&address, &[7]);
        client.asked.clear();
    }
    assert_eq!(client.closed, None);
}

#[test]
fn who_shows_no_token_costs_little_memory() {
    let mut client = Client::default();
    let limit = client.hocuspocus.message_bytes_max();
    let long = "x".repeat(SOCKET_ADDRESS_BYTES_MAX + 1);
    client.say(&long, &[0, 0, 1, 0]);
    assert!(client.sent.is_empty(), "it is passed over");
    client.token(&long, "t");
    assert!(String::from_utf8_lossy(&client.sent.pop().expect("told")).contains("name_invalid"));
    client.token("a", &"t".repeat(TOKEN_BYTES_MAX + 1));
    assert!(String::from_utf8_lossy(&client.sent.pop().expect("told")).contains("token is longer than"));
    assert!(client.opened.is_empty() && client.closed.is_none());
    assert!(client.hocuspocus.closed.iter().all(|address| address.len() <= SOCKET_ADDRESS_BYTES_MAX));
    for number in 0..2 * SOCKET_DOCUMENTS_MAX {
        client.say(&format!("a{number}"), &[0, 0, 1, 0]);
    }
    assert_eq!(client.closed.take().map(|close| close.code), Some(4529));
    let mut client = Client::default();
    client.open("a", DocumentAccess::Write);
    assert!(client.hocuspocus.message_bytes_max() > limit, "more is read of who is known");
}

#[test]
fn an_edit_that_is_too_long_closes_its_document_alone() {
    let mut client = Client::default();
    client.open("a", DocumentAccess::Write);
    let b = client.open("b", DocumentAccess::Write);
    for step in [1, 2] {
        let update = vec![1; thalweg_protocol::limits::DOCUMENT_UPDATE_BYTES_MAX + 1];
        let message = Writer::default().number(SYNC).number(step).bytes(&update).finish();
        client.say("a", &message);
        let told = client.sent.remove(0);
        assert!(told.starts_with(&addressed("a", &[7])), "{step}");
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(told.contains("body_too_large") && told.contains("in pieces"), "{told}");
        assert!(client.closed.is_none() && client.sent.is_empty());
        client.open("a", DocumentAccess::Write);
    }
    client.handle(Input::Frame { session: 1, subject: b, payload: update(10, &[9]) });
    assert_eq!(client.sent, [addressed("b", &[0, 2, 1, 9])]);
    // Nor is anybody logged out who sent it before the document was open.
    client.token("c", "t");
    client.say("c", &Writer::default().number(SYNC).number(2).bytes(&vec![1; (1 << 20) + 1]).finish());
    assert!(client.sent.last().expect("told").starts_with(&addressed("c", &[7])), "closed, and not denied");
}

#[test]
fn stateless_messages_are_refused_in_kind() {
    let mut client = Client::default();
    client.open("a", DocumentAccess::Write);
    let message = Writer::default().number(STATELESS).text("hello").finish();
    client.say("a", &message);
    assert!(String::from_utf8_lossy(&client.sent[0]).contains("operation_unknown"));
    client.handle(Input::Message(Message::Binary(Bytes::from_static(&[9]))));
    assert_eq!(client.sent[1], [10], "a ping");
    client.handle(Input::Quiet);
    assert_eq!(client.sent[2], addressed("a", &[1, 1, 0]));
}

proptest! {
    #[test]
    fn garbage_never_panics(messages: Vec<Vec<u8>>) {
        let mut client = Client::default();
        client.open("a", DocumentAccess::Write);
        for message in messages {
            client.say("a", &message);
            client.handle(Input::Message(Message::Binary(message.into())));
        }
    }
}
