//! The client's contract over real QUIC: what it repeats, what it resumes, what it refuses.

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scripted::{Node, Session, message, welcome, within};
use thalweg_client::{
    AskRequest, Client, ClientError, ConnectionState, FinishReason, From, GenerationId, Item, Part, Position, Reject,
    RejectCode, SubscribeOptions, Trust, Usage,
};
use thalweg_protocol::generation::TextHash;
use thalweg_protocol::op::{ClientOp, ServerOp};

fn published(position: u64) -> ServerOp {
    ServerOp::Published { position: Position(position), timestamp_us: position, duplicate: false }
}

/// The body, sequence and retry flag of a publish, with its request number.
async fn expect_publish(session: &mut Session) -> (u32, String, u64, bool) {
    match session.receive().await {
        (number, ClientOp::Publish(publish)) => {
            let body = String::from_utf8(publish.body.to_vec()).expect("text");
            (number, body, publish.sequence.0, publish.retry)
        }
        other => panic!("a publish was expected, not {other:?}"),
    }
}

async fn expect_subscribe(session: &mut Session) -> (u32, From) {
    match session.receive().await {
        (number, ClientOp::Subscribe(subscribe)) => (number, subscribe.from),
        other => panic!("a subscribe was expected, not {other:?}"),
    }
}

async fn connect(node: &Node) -> (Client, Session) {
    let (client, (session, _)) = tokio::join!(node.client().connect(), node.welcome(1));
    (client.expect("connected"), session)
}

#[tokio::test]
async fn unanswered_writes_are_repeated_in_order_in_the_same_session() {
    within(async {
        let node = Node::start();
        let (client, (mut session, first)) = tokio::join!(node.client().connect(), node.welcome(1));
        let client = client.expect("connected");
        let mut acks = Vec::new();
        for body in ["a", "b", "c"] {
            acks.push(client.publish_start("general", body).await.expect("sent"));
        }
        let (number, body, sequence, retry) = expect_publish(&mut session).await;
        assert_eq!((body.as_str(), sequence, retry), ("a", 1, false));
        session.send(number, &published(1)).await;
        assert_eq!(acks.remove(0).await.expect("published").position, Position(1));
        session.vanish().await;

        let (mut session, again) = node.welcome(1).await;
        assert_eq!(again.session, first.session);
        for (expected, position) in [("b", 2), ("c", 3)] {
            let (number, body, sequence, retry) = expect_publish(&mut session).await;
            assert_eq!((body.as_str(), sequence, retry), (expected, position, true));
            let op = ServerOp::Published { position: Position(position), timestamp_us: 1, duplicate: expected == "b" };
            session.send(number, &op).await;
        }
        let (b, c) = (acks.remove(0).await.expect("published"), acks.remove(0).await.expect("published"));
        assert!(b.duplicate && !c.duplicate);
        // What comes later continues the numbering.
        let ack = client.publish_start("general", "d").await.expect("sent");
        let (number, _, sequence, retry) = expect_publish(&mut session).await;
        assert_eq!((sequence, retry), (4, false));
        session.send(number, &published(4)).await;
        ack.await.expect("published");
    })
    .await;
}

#[tokio::test]
async fn a_reader_goes_on_after_the_last_item_it_took() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let options = SubscribeOptions { from: From::Start, ..Default::default() };
        let (subscription, number) = tokio::join!(client.subscribe("general", options), async {
            let (number, from) = expect_subscribe(&mut session).await;
            assert_eq!(from, From::Start);
            session.send(number, &ServerOp::Subscribed { next: Position(1), head: Position(4) }).await;
            number
        });
        let mut subscription = subscription.expect("subscribed");
        let lane = session.open().await;
        for position in 1..=4 {
            session.send_on(lane, number, &message(position)).await;
        }
        for expected in 1..=2 {
            assert_eq!(taken(&mut subscription).await, format!("m{expected}"));
        }
        session.vanish().await;

        let (mut session, _) = node.welcome(1).await;
        let lane = session.open().await;
        let (number, from) = loop {
            // Reports of credit may come before.
            if let (number, ClientOp::Subscribe(subscribe)) = session.receive().await {
                break (number, subscribe.from);
            }
        };
        assert_eq!(from, From::Position(Position(3)), "3 and 4 wait in the queue and were not taken");
        // The deliveries overtake the answer; 3 and 4 are here already.
        for position in 3..=5 {
            session.send_on(lane, number, &message(position)).await;
        }
        session.send(number, &ServerOp::Subscribed { next: Position(3), head: Position(5) }).await;
        for expected in 3..=5 {
            assert_eq!(taken(&mut subscription).await, format!("m{expected}"));
        }
    })
    .await;
}

async fn taken(subscription: &mut thalweg_client::Subscription) -> String {
    match subscription.next().await {
        Ok(Some(Item::Message(message))) => String::from_utf8(message.body.to_vec()).expect("text"),
        other => panic!("a message was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn a_delivery_may_overtake_the_answer_to_its_subscribe() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let lane = session.open().await;
        let subscribing = tokio::spawn(async move { client.subscribe("general", SubscribeOptions::default()).await });
        let (number, from) = expect_subscribe(&mut session).await;
        assert_eq!(from, From::End);
        session.send_on(lane, number, &message(7)).await;
        session.send(number, &ServerOp::Subscribed { next: Position(7), head: Position(6) }).await;
        let mut subscription = subscribing.await.expect("no panic").expect("subscribed");
        assert_eq!((subscription.first(), subscription.head()), (Position(7), Position(6)));
        assert_eq!(taken(&mut subscription).await, "m7");
    })
    .await;
}

#[tokio::test]
async fn a_node_that_lost_what_was_read_is_noticed() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let (subscription, number) = tokio::join!(client.subscribe("general", SubscribeOptions::default()), async {
            let (number, _) = expect_subscribe(&mut session).await;
            session.send(number, &ServerOp::Subscribed { next: Position(5), head: Position(4) }).await;
            number
        });
        let mut subscription = subscription.expect("subscribed");
        let lane = session.open().await;
        session.send_on(lane, number, &message(5)).await;
        assert_eq!(taken(&mut subscription).await, "m5");
        session.vanish().await;

        let (mut session, _) = node.welcome(2).await;
        let (number, from) = expect_subscribe(&mut session).await;
        assert_eq!(from, From::Position(Position(6)));
        let lane = session.open().await;
        session.send_on(lane, number, &message(1)).await;
        session.send(number, &ServerOp::Subscribed { next: Position(1), head: Position(0) }).await;
        assert_eq!(subscription.next().await.expect("alive"), Some(Item::Rewound { to: Position(0) }));
        assert_eq!(taken(&mut subscription).await, "m1");
        assert_eq!(client.welcome().epoch.0, 2);
    })
    .await;
}

#[tokio::test]
async fn credit_follows_what_the_application_takes() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let (subscription, number) = tokio::join!(client.subscribe("general", SubscribeOptions::default()), async {
            let (number, _) = expect_subscribe(&mut session).await;
            session.send(number, &ServerOp::Subscribed { next: Position(1), head: Position(0) }).await;
            number
        });
        let mut subscription = subscription.expect("subscribed");
        let lane = session.open().await;
        // A lead of 8 as welcomed: reports come after every 2, and none before something was taken.
        for position in 1..=3 {
            session.send_on(lane, number, &message(position)).await;
        }
        session.send_on(lane, number, &ServerOp::Missed { from: Position(4), to: Position(9) }).await;
        let (pinged, ()) = tokio::join!(client.ping(), async {
            let (number, op) = session.receive().await;
            let ClientOp::Ping { nonce } = op else { panic!("nothing was taken, but {op:?} came") };
            session.send(number, &ServerOp::Pong { nonce }).await;
        });
        pinged.expect("a pong");
        for _ in 1..=3 {
            taken(&mut subscription).await;
        }
        let missed = Item::Missed { from: Position(4), to: Position(9) };
        assert_eq!(subscription.next().await.expect("alive"), Some(missed));
        for expected in [2, 9] {
            let (_, op) = session.receive().await;
            let ClientOp::Consumed { subscription, position } = op else { panic!("credit was expected, not {op:?}") };
            assert_eq!((subscription.0, position.0), (number, expected));
        }
        drop(subscription);
        let (_, op) = session.receive().await;
        assert!(matches!(op, ClientOp::Unsubscribe { subscription } if subscription.0 == number), "{op:?}");
    })
    .await;
}

/// The question's number on the wire, once it came.
async fn expect_ask(session: &mut Session) -> u32 {
    match session.receive().await {
        (number, ClientOp::Ask(_)) => number,
        other => panic!("a question was expected, not {other:?}"),
    }
}

fn tokens(index: u32, text: &'static str) -> ServerOp {
    ServerOp::Tokens { index, count: 1, text: text.into(), details: Vec::new() }
}

#[tokio::test]
async fn an_answer_is_resumed_after_its_last_token() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let generation = GenerationId(0x00ff_0001_0000_0007);
        let asked = ServerOp::Asked { generation, model: "smollm2-135m".into() };
        let (answer, number) = tokio::join!(client.ask(AskRequest::prompt("hi")), async {
            let number = expect_ask(&mut session).await;
            session.send(number, &asked).await;
            number
        });
        let mut answer = answer.expect("asked");
        assert_eq!((answer.id(), answer.model()), (generation, "smollm2-135m"));
        let lane = session.open().await;
        session.send_on(lane, number, &asked).await;
        session.send_on(lane, number, &tokens(0, "He")).await;
        session.send_on(lane, number, &tokens(1, "llo")).await;
        let mut text = String::new();
        for _ in 0..2 {
            let part = answer.next().await.expect("alive").expect("not finished");
            let Part::Piece(piece) = part else { panic!("a piece was expected, not {part:?}") };
            text += &piece.text;
        }
        let (_, op) = session.receive().await;
        assert!(matches!(op, ClientOp::TokensConsumed { watch, index: 2 } if watch.0 == number), "{op:?}");
        session.vanish().await;

        let (mut session, _) = node.welcome(1).await;
        let (number, op) = session.receive().await;
        let ClientOp::Watch(watch) = op else { panic!("a watch was expected, not {op:?}") };
        assert_eq!((watch.generation, watch.from, watch.epoch.0), (generation, 2, 1));
        assert_eq!(watch.seen, Some(TextHash::of(b"Hello")));
        session.send(number, &asked).await;
        let lane = session.open().await;
        session.send_on(lane, number, &asked).await;
        session.send_on(lane, number, &tokens(2, "!")).await;
        let usage = Usage { prompt_tokens: 9, completion_tokens: 3, ..Usage::default() };
        let finished = ServerOp::Finished { reason: FinishReason::Stop, usage, message: String::new() };
        session.send_on(lane, number, &finished).await;
        let (rest, finished) = answer.finish().await.expect("finished");
        assert_eq!(text + rest.as_str(), "Hello!");
        assert_eq!((finished.reason, finished.usage), (FinishReason::Stop, usage));
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_node_that_restarts() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let early = client.publish_start("general", "early").await.expect("sent");
        let (number, ..) = expect_publish(&mut session).await;
        session.send(0, &ServerOp::ServerRestarting { reconnect_delay_ms: 1 }).await;
        let mut connection = client.connection();
        connection.wait_for(|state| matches!(state, ConnectionState::Leaving { .. })).await.expect("open");
        let late = client.publish_start("general", "late").await.expect("held");
        session.send(number, &ServerOp::Reject(Reject::new(RejectCode::Draining, "going"))).await;

        // The client has nothing more to wait for on the old connection and leaves by itself.
        let (mut session, _) = node.welcome(2).await;
        for (expected, retry) in [("early", false), ("late", false)] {
            let (number, body, _, was_retry) = expect_publish(&mut session).await;
            assert_eq!((body.as_str(), was_retry), (expected, retry), "a refused write was not carried out");
            session.send(number, &published(1)).await;
        }
        early.await.expect("published");
        late.await.expect("published");
    })
    .await;
}

#[tokio::test]
async fn another_key_is_refused_with_what_was_expected_and_found() {
    within(async {
        let (node, other) = (Node::start(), Node::start());
        let client = node.client().trust(Trust::PinnedKey(other.key));
        let accepting = async { node.endpoint.accept().await.expect("open").await };
        let (result, _) = tokio::join!(client.connect(), accepting);
        let error = result.expect_err("the wrong key");
        let text = error.to_string();
        assert!(matches!(error, ClientError::Untrusted { found, .. } if found == node.key), "{text}");
        assert!(text.contains(&other.key.to_string()) && text.contains(&node.key.to_string()), "{text}");
        assert_eq!(error.exit_code(), 4);
    })
    .await;
}

#[tokio::test]
async fn a_key_is_asked_for_once_and_remembered() {
    within(async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let node = Node::start();
        let asked = Arc::new(AtomicUsize::new(0));
        let client = |yes: bool| {
            let asked = asked.clone();
            let ask = Arc::new(move |contact: &thalweg_client::FirstContact| {
                asked.fetch_add(1, Ordering::Relaxed);
                assert!(contact.server.starts_with("127.0.0.1:"));
                yes
            });
            node.client().trust(Trust::FirstUse { store: directory.path().join("known_nodes"), ask })
        };
        // A handshake in vain shows the key; only the trusted one goes on to a hello.
        let look = || async { drop(node.endpoint.accept().await.expect("open").await) };
        let (refused, ()) = tokio::join!(client(false).connect(), look());
        assert!(matches!(refused, Err(ClientError::Untrusted { .. })), "{refused:?}");
        let (trusted, _) = tokio::join!(client(true).connect(), async {
            look().await;
            node.welcome(1).await
        });
        let trusted = trusted.expect("trusted");
        let (again, _) = tokio::join!(client(false).connect(), node.welcome(1));
        drop((trusted, again.expect("remembered")));
        assert_eq!(asked.load(Ordering::Relaxed), 2);

        // Another node at the same address is not the one that was trusted.
        let address = node.address;
        node.endpoint.close(0_u32.into(), b"");
        node.endpoint.wait_idle().await;
        let store = directory.path().join("known_nodes");
        let other = Node::start();
        let line =
            std::fs::read_to_string(&store).expect("written").replace(&address.to_string(), &other.address.to_string());
        std::fs::write(&store, line).expect("written");
        let trust = Trust::FirstUse { store: store.clone(), ask: Arc::new(|_| panic!("this is not a first contact")) };
        let (refused, _) = tokio::join!(other.client().trust(trust).connect(), async {
            drop(other.endpoint.accept().await.expect("open").await);
        });
        let text = refused.expect_err("another key").to_string();
        assert!(text.contains("remove line 1") && text.contains("known_nodes"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn refusals_of_a_hello_are_told_as_they_are() {
    within(async {
        for code in [RejectCode::VersionUnsupported, RejectCode::TokenExpired] {
            let node = Node::start();
            // Said on the lane, or only as the connection is closed: both are the node's word.
            for on_lane in [true, false] {
                let (result, session) = tokio::join!(node.client().connect(), async {
                    let (mut session, hello) = node.accept().await;
                    assert_eq!(hello.versions, (1, 1));
                    if on_lane {
                        session.send(0, &ServerOp::Reject(Reject::new(code, "because"))).await;
                    } else {
                        session.refuse(code, "because");
                    }
                    session
                });
                drop(session);
                match result {
                    Err(ClientError::Refused(reject)) => assert_eq!((reject.code, &*reject.message), (code, "because")),
                    other => panic!("a refusal was expected, not {other:?}"),
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_while_coming_back_is_final() {
    within(async {
        let node = Node::start();
        let (client, session) = connect(&node).await;
        let ack = client.publish_start("general", "a").await.expect("sent");
        session.vanish().await;
        let (session, _) = node.accept().await;
        session.refuse(RejectCode::TokenExpired, "expired");
        let error = ack.await.expect_err("refused");
        assert!(matches!(&error, ClientError::SignedOut(reject) if reject.code == RejectCode::TokenExpired), "{error}");
        let later = client.publish("general", "b").await;
        assert!(matches!(later, Err(ClientError::SignedOut(_) | ClientError::Closed)), "{later:?}");
    })
    .await;
}

#[tokio::test]
async fn a_node_that_stays_away_is_given_up() {
    within(async {
        for limit in [None, Some(Duration::from_millis(200))] {
            let node = Node::start();
            let (client, (session, _)) = tokio::join!(node.client().reconnect(limit).connect(), node.welcome(1));
            let client = client.expect("connected");
            let ack = client.publish_start("general", "a").await.expect("sent");
            session.vanish().await;
            node.endpoint.close(0_u32.into(), b"");
            drop(node);
            let error = ack.await.expect_err("nobody there");
            assert!(matches!(error, ClientError::Lost { .. }), "{error}");
            assert_eq!(error.exit_code(), 5);
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    within(async {
        let node = Node::start();
        let builder = node.client().connect_timeout(Duration::from_millis(300));
        node.endpoint.close(0_u32.into(), b"");
        let (endpoint, key) = (node.endpoint, node.key);
        drop((endpoint, key));
        let error = builder.connect().await.expect_err("nobody");
        assert_eq!(error.exit_code(), 3, "{error}");
        let nonsense = Client::builder().server("nowhere").connect().await.expect_err("no port");
        assert!(nonsense.to_string().contains("host:port"), "{nonsense}");
    })
    .await;
}

#[tokio::test]
async fn a_node_that_breaks_the_protocol_is_left() {
    within(async {
        let garbage: &[&[u8]] = &[&[0xff; 64], &[8, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]];
        for bytes in garbage {
            let node = Node::start();
            let (client, mut session) = connect(&node).await;
            let ack = client.publish_start("general", "a").await.expect("sent");
            expect_publish(&mut session).await;
            session.send_raw(bytes).await;
            let error = ack.await.expect_err("garbage");
            assert!(matches!(error, ClientError::Protocol(_)), "{error}");
            session.connection.closed().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_welcome_may_bring_the_next_frames_with_it() {
    within(async {
        let node = Node::start();
        let (client, _session) = tokio::join!(node.client().connect(), async {
            let (mut session, hello) = node.accept().await;
            let welcome = ServerOp::Welcome(welcome(&hello, 1)).encode();
            let restarting = ServerOp::ServerRestarting { reconnect_delay_ms: 60_000 }.encode();
            let mut bytes = Vec::new();
            for payload in [welcome, restarting] {
                bytes.extend_from_slice(&thalweg_protocol::frame::header(payload.len(), 0));
                bytes.extend_from_slice(&payload);
            }
            session.send_raw(&bytes).await;
            session
        });
        let client = client.expect("connected");
        let mut connection = client.connection();
        let left = |state: &ConnectionState| !matches!(state, ConnectionState::Connected { .. });
        connection.wait_for(left).await.expect("open");
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_under_way_is_bounded() {
    within(async {
        let node = Node::start();
        let (client, (mut session, _)) = tokio::join!(node.client().in_flight_max(2).connect(), node.welcome(1));
        let client = client.expect("connected");
        let first = client.publish_start("general", "1").await.expect("sent");
        let _second = client.publish_start("general", "2").await.expect("sent");
        let third = client.publish_start("general", "3");
        tokio::pin!(third);
        let (number, ..) = tokio::select! {
            biased;
            _ = &mut third => panic!("a third write was begun"),
            publish = expect_publish(&mut session) => publish,
        };
        session.send(number, &published(1)).await;
        first.await.expect("published");
        drop(third.await.expect("there is room now"));
        let invalid = client.publish_start("two words", "x").await;
        assert!(matches!(invalid, Err(ClientError::Invalid { .. })), "{invalid:?}");
    })
    .await;
}
