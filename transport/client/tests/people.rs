//! The client's contract where people are concerned: what it writes beside messages, whom it says to be there, how it logs
//! in, and how it takes being turned away.

#[allow(dead_code, reason = "the other tests use the rest of it")]
mod scripted;

use std::time::Duration;

use bytes::Bytes;
use scripted::{Node, Session, message, name, welcome, within};
use thalweg_client::{
    ChangeKind, ChannelChange, Client, ClientError, Item, MemberRole, Position, PostKind, PostOptions, Presence,
    PresenceState, PresentUser, Reject, RejectCode, SubscribeOptions, Subscription, TokenSource,
};
use thalweg_protocol::chat::{ChatOp, Context};
use thalweg_protocol::frame::header;
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, ServerOp};

async fn connect(node: &Node) -> (Client, Session) {
    let (client, (session, _)) = tokio::join!(node.client().connect(), node.welcome(1));
    (client.expect("connected"), session)
}

fn published(position: u64) -> ServerOp {
    ServerOp::Published { position: Position(position), timestamp_us: position, duplicate: false }
}

fn present(user: &str) -> PresentUser {
    PresentUser { user: name(user), state: PresenceState::Online, since_us: 1 }
}

fn report(full: bool, users: &[&str], left: &[&str]) -> Presence {
    let users: Vec<_> = users.iter().map(|user| present(user)).collect();
    let left = left.iter().map(|user| name(user)).collect();
    Presence { full, sampled: false, count: users.len() as u32, users, left }
}

/// A reader with presence, and its number.
async fn present_reader(client: &Client, session: &mut Session) -> (Subscription, u32) {
    let options = SubscribeOptions { presence: true, ..Default::default() };
    let (subscription, number) = tokio::join!(client.subscribe("general", options), subscribed(session, true));
    (subscription.expect("subscribed"), number)
}

async fn subscribed(session: &mut Session, presence: bool) -> u32 {
    let (number, op) = session.receive().await;
    let ClientOp::Subscribe(subscribe) = op else { panic!("a subscribe was expected, not {op:?}") };
    assert_eq!(subscribe.presence, presence);
    session.send(number, &ServerOp::Subscribed { next: Position(1), head: Position(0) }).await;
    number
}

fn datagram(subject: u32, payload: &[u8]) -> Bytes {
    [&header(payload.len(), subject)[..], payload].concat().into()
}

/// The next datagram of the client.
async fn sent(session: &Session) -> ClientOp {
    let datagram = session.connection.read_datagram().await.expect("an open connection");
    ClientOp::decode(&datagram.slice(8..)).expect("an operation")
}

#[tokio::test]
async fn every_kind_of_write_is_repeated_in_its_place() {
    within(async {
        let node = Node::start();
        let (client, session) = connect(&node).await;
        let writes = {
            let client = client.clone();
            tokio::spawn(async move {
                let reply = PostOptions { reply_to: Some(Position(7)) };
                // Polled in this order, which is the order in which they are written.
                tokio::join!(
                    client.publish_with("general", "a", reply),
                    client.edit("general", Position(1), "b"),
                    client.redact("general", Position(2)),
                    client.react("general", Position(3), "👍"),
                    client.unreact("general", Position(3), "👍"),
                )
            })
        };
        let expected = [
            (PostKind::Message, 7, "a", true),
            (PostKind::Edit, 1, "b", false),
            (PostKind::Redact, 2, "", false),
            (PostKind::React, 3, "👍", false),
            (PostKind::Unreact, 3, "👍", false),
        ];
        let mut session = session;
        for retry in [false, true] {
            for (at, (kind, target, body, make)) in expected.iter().enumerate() {
                let (number, op) = session.receive().await;
                let ClientOp::Publish(publish) = op else { panic!("a write was expected, not {op:?}") };
                assert_eq!((publish.post.kind, publish.post.target.0), (*kind, *target));
                assert_eq!((&publish.body[..], publish.retry), (body.as_bytes(), retry));
                assert_eq!(
                    (publish.sequence.0, publish.make),
                    (at as u64 + 1, *make && *kind == PostKind::Message && *target == 0)
                );
                if retry {
                    session.send(number, &published(at as u64 + 10)).await;
                }
            }
            if !retry {
                session.vanish().await;
                session = node.welcome(1).await.0;
            }
        }
        let (a, b, c, d, e) = writes.await.expect("no panic");
        let positions = [a, b, c, d, e].map(|written| written.expect("written").position.0);
        assert_eq!(positions, [10, 11, 12, 13, 14]);
        let long = client.react("general", Position(1), &"x".repeat(33)).await;
        assert!(matches!(long, Err(ClientError::Refused(reject)) if reject.code == RejectCode::BodyTooLarge));
    })
    .await;
}

#[tokio::test]
async fn changes_are_told_as_what_they_are() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let (subscription, number) =
            tokio::join!(client.subscribe("general", SubscribeOptions::default()), subscribed(&mut session, false));
        let mut subscription = subscription.expect("subscribed");
        let lane = session.open().await;
        let target = Position(1);
        let checks = [
            (
                DeliveryKind::Edit,
                "new",
                None,
                ChangeKind::Edited { target, body: "new".into(), mentions: Vec::new(), redacted: false },
            ),
            (DeliveryKind::Redaction, "", None, ChangeKind::Redacted { target }),
            (DeliveryKind::Reaction, "👍", None, ChangeKind::Reacted { target, emoji: "👍".into() }),
            (DeliveryKind::Unreaction, "👍", None, ChangeKind::Unreacted { target, emoji: "👍".into() }),
            (
                DeliveryKind::Membership,
                "grace",
                Some(MemberRole::Owner),
                ChangeKind::Member { user: name("grace"), role: Some(MemberRole::Owner) },
            ),
            (DeliveryKind::Info, "topic", None, ChangeKind::Info { topic: "topic".into() }),
        ];
        let delivery = |at: usize, kind, body: &'static str, role| {
            ServerOp::Delivery(Delivery {
                position: Position(at as u64 + 1),
                timestamp_us: 1,
                kind,
                user: name("ada"),
                generation: None,
                body: body.into(),
                key: 0,
                context: Context { target, number: 5, role, ..Context::default() },
            })
        };
        for (at, (kind, body, role, expected)) in checks.into_iter().enumerate() {
            session.send_on(lane, number, &delivery(at, kind, body, role)).await;
            let Ok(Some(Item::Change(change))) = subscription.next().await else { panic!("a change was expected") };
            assert_eq!((change.position.0, change.number, &change.kind), (at as u64 + 1, 5, &expected));
        }
        // Nobody has such a name.
        session.send_on(lane, number, &delivery(6, DeliveryKind::Membership, "two words", None)).await;
        let error = subscription.next().await.expect_err("nonsense");
        assert!(matches!(error, ClientError::Protocol(_)), "{error}");
    })
    .await;
}

#[tokio::test]
async fn people_are_told_beside_the_messages_and_again_after_a_reconnect() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let (mut subscription, number) = present_reader(&client, &mut session).await;
        let lane = session.open().await;
        // An application that takes nothing gets what it all comes to.
        session.send_on(lane, number, &ServerOp::Presence(report(true, &["ada", "bob"], &[]))).await;
        for at in 0..1_000_u32 {
            let user = format!("u{at}");
            session.send_on(lane, number, &ServerOp::Presence(report(false, &[&user], &[]))).await;
            session.send_on(lane, number, &ServerOp::Presence(report(false, &[], &[&user]))).await;
        }
        session.send_on(lane, number, &message(1)).await;
        client_has_read(&client, &mut session, lane, number).await;
        let Ok(Some(Item::Presence(seen))) = subscription.next().await else { panic!("who is there was expected") };
        let users: Vec<_> = seen.users.iter().map(|present| present.user.as_str()).collect();
        assert_eq!((seen.full, users), (true, vec!["ada", "bob"]));
        assert!(matches!(subscription.next().await, Ok(Some(Item::Message(_)))));
        session.vanish().await;

        let (mut session, _) = node.welcome(1).await;
        let number = loop {
            match session.receive().await {
                (number, ClientOp::Subscribe(subscribe)) => {
                    assert!(subscribe.presence);
                    break number;
                }
                (_, op) => assert!(matches!(op, ClientOp::Ping { .. } | ClientOp::Consumed { .. }), "{op:?}"),
            }
        };
        session.send(number, &ServerOp::Subscribed { next: Position(2), head: Position(1) }).await;
        let lane = session.open().await;
        session.send_on(lane, number, &ServerOp::Presence(report(true, &["bob"], &[]))).await;
        let Ok(Some(Item::Presence(seen))) = subscription.next().await else { panic!("who is there was expected") };
        assert_eq!((seen.full, seen.users.len()), (true, 1));
    })
    .await;
}

/// Returns when the client has read what was sent on the lane: a subscription of its own ends there.
async fn client_has_read(client: &Client, session: &mut Session, lane: usize, number: u32) {
    let (other, wire) =
        tokio::join!(client.subscribe("other", SubscribeOptions::default()), subscribed(session, false));
    let mut other = other.expect("subscribed");
    assert_ne!(wire, number);
    session.send_on(lane, wire, &message(1)).await;
    assert!(matches!(other.next().await, Ok(Some(Item::Message(_)))));
    drop(other);
    let (number, op) = session.receive().await;
    assert!(matches!(op, ClientOp::Unsubscribe { .. }), "{op:?}");
    session.send(number, &ServerOp::Done).await;
}

#[tokio::test]
async fn datagrams_carry_typing_and_hostile_ones_are_counted() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let (mut subscription, number) = present_reader(&client, &mut session).await;
        subscription.typing(true);
        // Too soon after the first, and dropped; the end of it is told.
        client.typing("general", true);
        client.typing("general", false);
        client.typing("elsewhere", true);
        for expected in [true, false] {
            let op = sent(&session).await;
            assert!(
                matches!(op, ClientOp::Typing { subscription, on } if subscription.0 == number && on == expected),
                "{op:?}"
            );
        }
        let notice = ServerOp::TypingNotice { user: name("bob"), on: true }.encode();
        let whole = datagram(number, &notice);
        let hostile = [
            Bytes::new(),
            Bytes::from_static(&[0xff; 64]),
            whole.slice(..whole.len() - 1),
            [&whole[..], b"more"].concat().into(),
            datagram(number + 1, &notice),
            datagram(number, &ServerOp::Done.encode()),
            datagram(number, &message(1).encode()),
        ];
        for datagram in &hostile {
            session.connection.send_datagram(datagram.clone()).expect("sent");
        }
        session.connection.send_datagram(whole).expect("sent");
        let typing = subscription.next().await.expect("alive");
        assert_eq!(typing, Some(Item::Typing { user: name("bob"), on: true }));
        assert_eq!(client.datagrams_ignored(), hostile.len() as u64);
    })
    .await;
}

#[tokio::test]
async fn whether_the_user_is_away_is_told_again_after_a_reconnect() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let (done, ()) = tokio::join!(client.set_presence(true), async {
            let (number, op) = session.receive().await;
            assert!(matches!(op, ClientOp::Chat(ChatOp::SetPresence { away: true })), "{op:?}");
            session.send(number, &ServerOp::Done).await;
        });
        done.expect("told");
        session.vanish().await;
        let (mut session, _) = node.welcome(2).await;
        let (number, op) = session.receive().await;
        assert!(matches!(op, ClientOp::Chat(ChatOp::SetPresence { away: true })), "{op:?}");
        session.send(number, &ServerOp::Done).await;
        drop(client);
    })
    .await;
}

#[tokio::test]
async fn a_password_gives_a_token_which_is_renewed_when_it_ends() {
    within(async {
        let node = Node::start();
        let login = |token: &'static str, expires_us| ServerOp::LoggedIn { token: token.into(), expires_us };
        let far = u64::MAX / 2;
        let builder = node.client().password("acme", "ada", "secret");
        assert!(!format!("{builder:?}").contains("secret"));
        let (client, session) = tokio::join!(builder.connect(), async {
            let (session, token) = logged_in(&node, &login("t1", far)).await;
            assert_eq!(token, "t1");
            session
        });
        let client = client.expect("connected");
        // A token that lasts is shown again.
        session.vanish().await;
        let (mut session, hello) = node.accept().await;
        assert_eq!(hello.token, "t1");
        session.send(0, &ServerOp::Welcome(welcome(&hello, 1))).await;
        let (pinged, ()) = tokio::join!(client.ping(), async {
            let (number, op) = session.receive().await;
            let ClientOp::Ping { nonce } = op else { panic!("a ping was expected, not {op:?}") };
            session.send(number, &ServerOp::Pong { nonce }).await;
        });
        pinged.expect("welcomed");
        // One that ended in the middle of the session is replaced by another, when the node does not take it any more.
        session.refuse(RejectCode::TokenExpired, "ended");
        let (mut session, hello) = node.accept().await;
        assert_eq!(hello.token, "t1");
        session.send(0, &ServerOp::Reject(Reject::new(RejectCode::TokenExpired, "ended"))).await;
        let (_session, token) = logged_in(&node, &login("t2", far)).await;
        assert_eq!(token, "t2");
        drop(client);

        let (refused, _session) = tokio::join!(node.client().password("acme", "ada", "wrong").connect(), async {
            let mut session = node.accept_silent().await;
            let (number, _) = session.receive().await;
            session.send(number, &ServerOp::Reject(Reject::new(RejectCode::LoginFailed, "no"))).await;
            session
        });
        assert!(matches!(refused, Err(ClientError::Refused(reject)) if reject.code == RejectCode::LoginFailed));
    })
    .await;
}

/// A connection on which a login is answered so, and then welcomed. Gives the token that was shown.
async fn logged_in(node: &Node, answer: &ServerOp) -> (Session, String) {
    let mut session = node.accept_silent().await;
    let (number, op) = session.receive().await;
    let ClientOp::Login(login) = op else { panic!("a login was expected, not {op:?}") };
    assert_eq!((login.tenant.as_str(), login.user.as_str(), login.password.as_str()), ("acme", "ada", "secret"));
    session.send(number, answer).await;
    let (_, op) = session.receive().await;
    let ClientOp::Hello(hello) = op else { panic!("a hello was expected, not {op:?}") };
    session.send(0, &ServerOp::Welcome(welcome(&hello, 1))).await;
    (session, hello.token)
}

#[tokio::test]
async fn who_is_signed_out_does_not_come_back() {
    within(async {
        for (code, renews, signed_out) in [
            (RejectCode::TokenExpired, false, true),
            (RejectCode::TokenRevoked, false, true),
            // What can be had anew is, when it ended; who was revoked stays out.
            (RejectCode::TokenExpired, true, false),
            (RejectCode::TokenRevoked, true, true),
        ] {
            let node = Node::start();
            let source = TokenSource::new(|| async { Ok::<_, String>("fresh".to_owned()) });
            let builder = if renews { node.client().token_source(source) } else { node.client() };
            let (client, (session, hello)) = tokio::join!(builder.connect(), node.welcome(1));
            let client = client.expect("connected");
            assert_eq!(hello.token, if renews { "fresh" } else { "token" });
            let ack = client.publish_start("general", "a").await.expect("sent");
            session.refuse(code, "because");
            if signed_out {
                let error = ack.await.expect_err("signed out");
                assert!(matches!(&error, ClientError::SignedOut(reject) if reject.code == code), "{error}");
                assert_eq!(error.exit_code(), 4);
            } else {
                let (mut session, _) = node.welcome(1).await;
                let (number, _) = session.receive().await;
                session.send(number, &published(1)).await;
                ack.await.expect("written");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_source_without_tokens_says_why() {
    within(async {
        let node = Node::start();
        let source = TokenSource::new(|| async { Err::<String, _>("the vault is closed".to_owned()) });
        let look = || async { node.endpoint.accept().await.expect("open").await.expect("a handshake") };
        let (result, _connection) = tokio::join!(node.client().token_source(source).connect(), look());
        let text = result.expect_err("no token").to_string();
        assert!(text.contains("the vault is closed"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn refusals_that_pass_are_told_or_tried_again() {
    within(async {
        let limited = ServerOp::Reject(Reject::new(RejectCode::RateLimited, "slowly").retry_after_ms(1));
        for retries in [false, true] {
            let node = Node::start();
            let builder = node.client().retry_refusals(retries);
            let (client, (mut session, _)) = tokio::join!(builder.connect(), node.welcome(1));
            let client = client.expect("connected");
            let (result, sequences) = tokio::join!(client.publish("general", "a"), async {
                let mut sequences = Vec::new();
                for answer in [&limited, &published(1)].iter().take(1 + usize::from(retries)) {
                    let (number, op) = session.receive().await;
                    let ClientOp::Publish(publish) = op else { panic!("a write was expected, not {op:?}") };
                    assert!(!publish.retry, "it was not done, and is another write");
                    sequences.push(publish.sequence.0);
                    session.send(number, answer).await;
                }
                sequences
            });
            match result {
                Ok(_) => assert_eq!((retries, sequences), (true, vec![1, 2])),
                Err(error) => {
                    assert!(!retries, "{error}");
                    assert_eq!(error.retry_after(), Some(Duration::from_millis(1)));
                }
            }
            // What was started is never tried again: others may be behind it.
            let ack = client.publish_start("general", "b").await.expect("sent");
            let (number, _) = session.receive().await;
            session.send(number, &limited).await;
            assert!(ack.await.expect_err("refused").retry_after().is_some());
        }
    })
    .await;
}

#[tokio::test]
async fn requests_about_people_have_their_answers() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let answers = tokio::spawn(async move {
            let mut ops = Vec::new();
            for answer in [
                ServerOp::Done,
                ServerOp::Done,
                ServerOp::Done,
                ServerOp::PresenceReport { count: 2, users: vec![present("ada")], complete: false },
                ServerOp::Managed { json: r#"{"ok":true}"#.into() },
                // Nothing in the newest stretch; what there is lies further back.
                ServerOp::Page { first: Position(1), next: Position(300), head: Position(600), deliveries: Vec::new() },
                ServerOp::Page {
                    first: Position(1),
                    next: Position(0),
                    head: Position(600),
                    deliveries: vec![message(9).encode()],
                },
            ] {
                let (number, op) = session.receive().await;
                session.send(number, &answer).await;
                ops.push(op);
            }
            (ops, session)
        });
        client.join("general").await.expect("done");
        client.set_member("general", "bob", Some(MemberRole::Invited)).await.expect("done");
        let change = ChannelChange { topic: Some("t".into()), ..ChannelChange::default() };
        client.set_channel("general", change).await.expect("done");
        let who = client.who_is_in("general").await.expect("told");
        assert_eq!((who.count, who.users.len(), who.complete), (2, 1, false));
        let managed = client.manage(&serde_json::json!({ "command": "reload" })).await.expect("managed");
        assert_eq!(managed["ok"], true);
        let mut search = client.search("general", "m9").expect("a name");
        let found = search.next().await.expect("found");
        assert!(matches!(found, Some(Item::Message(message)) if message.position == Position(9)));
        assert_eq!(search.next().await.expect("the end"), None);
        let (ops, _session) = answers.await.expect("no panic");
        assert!(matches!(&ops[1], ClientOp::Chat(ChatOp::SetMember { role: Some(MemberRole::Invited), .. })));
        assert!(matches!(&ops[4], ClientOp::Manage { json } if &json[..] == br#"{"command":"reload"}"#));
        let before = |op: &ClientOp| match op {
            ClientOp::Chat(ChatOp::SearchHistory { before, .. }) => before.0,
            other => panic!("a search was expected, not {other:?}"),
        };
        assert_eq!((before(&ops[5]), before(&ops[6])), (0, 300));
    })
    .await;
}
