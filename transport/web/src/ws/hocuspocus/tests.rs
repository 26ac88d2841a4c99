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
