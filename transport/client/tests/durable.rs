//! What the client makes of a node that comes back with what was durable: answers that go on or are rewound, sessions that
//! are forgotten, history, and a node next door that moves.

#[allow(dead_code, reason = "the other tests use the rest of it")]
mod scripted;

use std::time::Duration;

use bytes::Bytes;
use scripted::{Node, Session, message, within};
use thalweg_client::{
    AskRequest, ChannelAbout, ChannelKind, ChannelOptions, Client, ClientError, Durability, FinishReason, Generation,
    GenerationId, Item, KeyHash, Part, Position, PostRule, Reject, RejectCode, SubscribeOptions, Usage,
};
use thalweg_protocol::generation::TextHash;
use thalweg_protocol::op::{ClientOp, CreateChannel, ServerOp, WatchRequest};

const GENERATION: GenerationId = GenerationId(0x00ff_0001_0000_0007);

fn asked() -> ServerOp {
    ServerOp::Asked { generation: GENERATION, model: "smollm2-135m".into() }
}

fn tokens(index: u32, count: u32, text: &'static str) -> ServerOp {
    ServerOp::Tokens { index, count, text: text.into(), details: Vec::new() }
}

fn finished(tokens: u32) -> ServerOp {
    let usage = Usage { prompt_tokens: 9, completion_tokens: tokens, ..Usage::default() };
    ServerOp::Finished { reason: FinishReason::Stop, usage, message: String::new() }
}

async fn connect(node: &Node) -> (Client, Session) {
    let (client, (session, _)) = tokio::join!(node.client().connect(), node.welcome(1));
    (client.expect("connected"), session)
}

/// The next request to watch; reports of credit may come before.
async fn expect_watch(session: &mut Session) -> (u32, WatchRequest) {
    loop {
        match session.receive().await {
            (_, ClientOp::TokensConsumed { .. }) => {}
            (number, ClientOp::Watch(watch)) => return (number, watch),
            other => panic!("a watch was expected, not {other:?}"),
        }
    }
}

/// An answer of which the reader has these pieces, and whose node was killed then.
async fn interrupted(node: &Node, pieces: &[ServerOp]) -> Generation {
    let (client, mut session) = connect(node).await;
    let (answer, number) = tokio::join!(client.ask(AskRequest::prompt("hi")), async {
        let (number, _) = session.receive().await;
        session.send(number, &asked()).await;
        number
    });
    let mut answer = answer.expect("asked");
    let lane = session.open().await;
    for piece in pieces {
        session.send_on(lane, number, piece).await;
        assert!(matches!(answer.next().await.expect("alive"), Some(Part::Piece(_))));
    }
    session.vanish().await;
    answer
}

fn rewound(part: Option<Part>) -> u32 {
    match part {
        Some(Part::Rewound { to }) => to,
        other => panic!("a rewind was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn an_answer_is_rewound_to_what_was_durable_and_goes_on_from_there() {
    within(async {
        let node = Node::start();
        let mut answer = interrupted(&node, &[tokens(0, 1, "He"), tokens(1, 1, "llo"), tokens(2, 1, "?")]).await;
        let (mut session, _) = node.welcome(2).await;
        let (number, watch) = expect_watch(&mut session).await;
        assert_eq!((watch.from, watch.epoch.0, watch.seen), (3, 1, Some(TextHash::of(b"Hello?"))));
        session.send(number, &asked()).await;
        let lane = session.open().await;
        session.send_on(lane, number, &ServerOp::Rewound { to: 1 }).await;
        session.send_on(lane, number, &tokens(1, 1, "y")).await;
        assert_eq!(rewound(answer.next().await.expect("alive")), 1);
        assert!(matches!(answer.next().await.expect("alive"), Some(Part::Piece(piece)) if piece.text == "y"));
        session.vanish().await;

        // What it says of itself in the next life is what stands now.
        let (mut session, _) = node.welcome(3).await;
        let (number, watch) = expect_watch(&mut session).await;
        assert_eq!((watch.from, watch.epoch.0, watch.seen), (2, 2, Some(TextHash::of(b"Hey"))));
        session.send(number, &asked()).await;
        let lane = session.open().await;
        session.send_on(lane, number, &tokens(2, 1, "!")).await;
        session.send_on(lane, number, &finished(3)).await;
        let (rest, end) = answer.finish().await.expect("finished");
        assert_eq!((rest.as_str(), end.usage.completion_tokens), ("!", 3));
    })
    .await;
}

#[tokio::test]
async fn a_rewind_into_the_middle_of_a_piece_drops_all_of_it() {
    within(async {
        let node = Node::start();
        let mut answer = interrupted(&node, &[tokens(0, 1, "a"), tokens(1, 3, "bcd")]).await;
        let (mut session, _) = node.welcome(2).await;
        let (number, _) = expect_watch(&mut session).await;
        session.send(number, &asked()).await;
        let lane = session.open().await;
        session.send_on(lane, number, &ServerOp::Rewound { to: 3 }).await;
        session.send_on(lane, number, &tokens(3, 1, "x")).await;
        assert_eq!(rewound(answer.next().await.expect("alive")), 1);
        let unwatched = session.receive().await;
        assert!(matches!(unwatched, (_, ClientOp::Unwatch { watch }) if watch.0 == number), "{unwatched:?}");
        session.send(unwatched.0, &ServerOp::Done).await;
        let (number, watch) = expect_watch(&mut session).await;
        assert_eq!((watch.from, watch.epoch.0, watch.seen), (1, 2, Some(TextHash::of(b"a"))));
        session.send(number, &asked()).await;
        let lane = session.open().await;
        session.send_on(lane, number, &tokens(1, 2, "bc")).await;
        session.send_on(lane, number, &tokens(3, 1, "x")).await;
        session.send_on(lane, number, &finished(4)).await;
        assert_eq!(answer.finish().await.expect("finished").0.as_str(), "bcx");
    })
    .await;
}

#[tokio::test]
async fn another_process_says_what_it_has_of_an_answer() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        for (from, text, seen) in
            [(0, None, Some(TextHash::of(b""))), (2, Some("Hello"), Some(TextHash::of(b"Hello"))), (2, None, None)]
        {
            let (answer, (number, watch)) = tokio::join!(client.watch(GENERATION, from, text), async {
                let (number, watch) = expect_watch(&mut session).await;
                session.send(number, &asked()).await;
                (number, watch)
            });
            assert_eq!((watch.from, watch.epoch.0, watch.seen), (from, 0, seen));
            let lane = session.open().await;
            // Nobody knows whether what it has is right: it is told anew.
            if from > 0 {
                session.send_on(lane, number, &ServerOp::Rewound { to: 0 }).await;
            }
            session.send_on(lane, number, &tokens(0, 1, "Hey")).await;
            session.send_on(lane, number, &finished(1)).await;
            let (text, _) = answer.expect("watched").finish().await.expect("finished");
            assert_eq!((text.first(), text.as_str()), (0, "Hey"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_forgotten_session_is_told_as_what_it_means() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let ack = client.publish_start("general", "a").await.expect("sent");
        session.receive().await;
        session.vanish().await;
        let (mut session, _) = node.welcome(2).await;
        let (number, op) = session.receive().await;
        assert!(matches!(&op, ClientOp::Publish(publish) if publish.retry), "{op:?}");
        session.send(number, &ServerOp::Reject(Reject::new(RejectCode::SessionExpired, "too long ago"))).await;
        let error = ack.await.expect_err("nobody knows");
        assert!(matches!(&error, ClientError::SessionExpired(_)), "{error}");
        assert!(error.to_string().contains("not known") && error.exit_code() == 5, "{error}");
    })
    .await;
}

#[tokio::test]
async fn channels_are_made_read_and_deleted() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let options = ChannelOptions {
            keep_messages: 10,
            keep_bytes: 1 << 20,
            keep_age: Some(Duration::from_secs(60)),
            durability: Some(Durability::Disk),
            about: ChannelAbout { kind: ChannelKind::Private, topic: "work".into(), post: PostRule::Members },
        };
        let about = options.about.clone();
        let (created, ()) = tokio::join!(client.create_channel("general", options), async {
            let (number, op) = session.receive().await;
            let ClientOp::CreateChannel(create) = op else { panic!("{op:?}") };
            assert_eq!(create.about, about);
            let CreateChannel { history_messages, history_bytes, history_age_ms, durability, .. } = create;
            assert_eq!((history_messages, history_bytes, history_age_ms), (10, 1 << 20, 60_000));
            assert_eq!(durability, Some(Durability::Disk));
            session.send(number, &ServerOp::ChannelCreated { created: true }).await;
        });
        assert!(created.expect("made"));
        let (page, ()) = tokio::join!(client.read_history("general", Position(0), 2), async {
            let (number, op) = session.receive().await;
            assert!(matches!(op, ClientOp::ReadHistory { from: Position(0), limit: 2, .. }), "{op:?}");
            let deliveries = [message(3), message(4)].iter().map(ServerOp::encode).collect();
            let page = ServerOp::Page { first: Position(3), next: Position(5), head: Position(9), deliveries };
            session.send(number, &page).await;
        });
        let page = page.expect("read");
        assert_eq!((page.first, page.next, page.head), (Position(3), Position(5), Position(9)));
        let positions: Vec<_> = page.items.iter().map(|item| matches!(item, Item::Message(_))).collect();
        assert_eq!(positions, [true, true]);
        let (page, ()) = tokio::join!(client.read_history("general", Position(0), 2), async {
            let (number, _) = session.receive().await;
            let deliveries = vec![Bytes::from_static(b"garbage")];
            let page = ServerOp::Page { first: Position(3), next: Position(5), head: Position(9), deliveries };
            session.send(number, &page).await;
        });
        assert!(matches!(page, Err(ClientError::Protocol(_))), "{page:?}");
    })
    .await;
}

#[tokio::test]
async fn a_channel_that_is_gone_when_its_deletion_is_repeated_was_deleted() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let unknown = || ServerOp::Reject(Reject::new(RejectCode::ChannelUnknown, "no such channel"));
        let (deleted, ()) = tokio::join!(client.delete_channel("general"), async {
            let (number, _) = session.receive().await;
            session.send(number, &unknown()).await;
        });
        assert!(matches!(deleted, Err(ClientError::Refused(_))), "{deleted:?}");
        let (deleted, _session) = tokio::join!(client.delete_channel("general"), async {
            session.receive().await;
            session.vanish().await;
            let (mut session, _) = node.welcome(2).await;
            let (number, op) = session.receive().await;
            assert!(matches!(op, ClientOp::DeleteChannel { .. }), "{op:?}");
            session.send(number, &unknown()).await;
            session
        });
        deleted.expect("deleted");
    })
    .await;
}

/// Says in a data directory where the node is, as a node does.
fn announce(data: &std::path::Path, address: &str, key: KeyHash, epoch: u64) {
    let node = format!(r#"{{"quic":"{address}","http":null,"key_sha256":"{key}","pid":1,"epoch":{epoch}}}"#);
    std::fs::write(data.join("draft"), node).expect("written");
    std::fs::rename(data.join("draft"), data.join("node.json")).expect("renamed");
    std::fs::write(data.join("local.token"), "token").expect("written");
}

#[tokio::test]
async fn a_node_next_door_that_comes_back_elsewhere_is_found_at_once() {
    within(async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (gone, node) = (Node::start(), Node::start());
        // What a node that was killed left leads nowhere, until another one is started while the client tries.
        announce(directory.path(), "127.0.0.1:9", gone.key, 1);
        let builder = Client::builder().local(directory.path()).connect_timeout(Duration::from_secs(600));
        let (client, (mut session, _)) = tokio::join!(builder.connect(), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            announce(directory.path(), &node.address.to_string(), node.key, 2);
            node.welcome(2).await
        });
        let client = client.expect("connected");
        let (subscription, ()) = tokio::join!(client.subscribe("general", SubscribeOptions::default()), async {
            let (number, _) = session.receive().await;
            session.send(number, &ServerOp::Subscribed { next: Position(1), head: Position(0) }).await;
        });
        // A reader that asks nothing: only what the next life says of itself tells it that this one is over. Nothing was
        // said on the connection, which stays open.
        let next = Node::start();
        announce(directory.path(), &next.address.to_string(), next.key, 3);
        let (mut session, _) = next.welcome(3).await;
        let (number, op) = session.receive().await;
        assert!(matches!(op, ClientOp::Subscribe(_)), "{op:?}");
        let lane = session.open().await;
        session.send(number, &ServerOp::Subscribed { next: Position(1), head: Position(0) }).await;
        session.send_on(lane, number, &message(1)).await;
        let item = subscription.expect("subscribed").next().await.expect("alive");
        assert!(matches!(item, Some(Item::Message(_))), "{item:?}");
    })
    .await;
}
