//! The client's contract where documents are concerned: what it asks and sends, what it makes of what comes, and how edits
//! survive the loss of connections, of the node, and refusals.

#[allow(dead_code, reason = "the other tests use the rest of it")]
mod scripted;
#[path = "documents/thin.rs"]
mod thin;

use bytes::Bytes;
use scripted::{Node, Session, name, within};
use thalweg_client::yrs::updates::decoder::Decode as _;
use thalweg_client::yrs::updates::encoder::Encode as _;
use thalweg_client::yrs::{
    Doc, GetString as _, OffsetKind, ReadTxn as _, StateVector, Text as _, Transact as _, Update,
};
use thalweg_client::{
    Client, ClientError, Document, DocumentAccess, DocumentEvent, GenerationId, Operations, Position, PostKind,
    ReadForm, RecordKind, Reject, RejectCode,
};
use thalweg_protocol::chat::Context;
use thalweg_protocol::document::{
    AwarenessEntry, AwarenessUpdate, DocumentForm, DocumentNews, DocumentOp, OpenDocument,
};
use thalweg_protocol::ids::ChannelId;
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, Publish, ServerOp};

/// The document as the node has it.
struct Paper {
    doc: Doc,
    revision: u64,
    access: DocumentAccess,
}

impl Paper {
    fn new(text: &str) -> Self {
        let options = thalweg_client::yrs::Options { offset_kind: OffsetKind::Utf16, ..Default::default() };
        let paper = Self { doc: Doc::with_options(options), revision: 1, access: DocumentAccess::Write };
        paper.doc.get_or_insert_text("content").insert(&mut paper.doc.transact_mut(), 0, text);
        paper
    }

    fn text(&self) -> String {
        self.doc.get_or_insert_text("content").get_string(&self.doc.transact())
    }

    /// Somebody else puts a text in; gives the delivery.
    fn insert(&mut self, at: u32, text: &str, generation: Option<GenerationId>) -> ServerOp {
        let content = self.doc.get_or_insert_text("content");
        let mut transaction = self.doc.transact_mut();
        content.insert(&mut transaction, at, text);
        let body = transaction.encode_update_v1().into();
        drop(transaction);
        self.revision += 1;
        ServerOp::Delivery(Delivery {
            position: Position(self.revision),
            timestamp_us: self.revision,
            kind: DeliveryKind::Update,
            user: name("you"),
            generation,
            body,
            key: 0,
            context: Context::default(),
        })
    }

    fn take(&mut self, update: &[u8]) {
        let update = Update::decode_v1(update).expect("an update");
        self.doc.transact_mut().apply_update(update).expect("it fits");
        self.revision += 1;
    }

    /// What somebody with this state lacks.
    fn state(&self, vector: &[u8]) -> Bytes {
        let vector =
            if vector.is_empty() { StateVector::default() } else { StateVector::decode_v1(vector).expect("one") };
        self.doc.transact().encode_state_as_update_v1(&vector).into()
    }

    fn opened(&self, bytes: usize) -> ServerOp {
        ServerOp::Document(DocumentNews::Opened {
            id: ChannelId(1),
            revision: Position(self.revision),
            bytes: bytes as u64,
            access: self.access,
            made: false,
            vector: self.doc.transact().state_vector().encode_v1().into(),
        })
    }
}

async fn connect(node: &Node) -> (Client, Session) {
    let (client, (session, _)) = tokio::join!(node.client().connect(), node.welcome(1));
    (client.expect("connected"), session)
}

/// The next request to open; what needs no answer may come before.
async fn expect_open(session: &mut Session) -> (u32, OpenDocument) {
    loop {
        match session.receive().await {
            (0, _) | (_, ClientOp::Unsubscribe { .. }) => {}
            (number, ClientOp::Document(DocumentOp::Open(open))) => return (number, open),
            other => panic!("an opening was expected, not {other:?}"),
        }
    }
}

async fn expect_publish(session: &mut Session) -> (u32, Publish) {
    loop {
        match session.receive().await {
            (0, _) => {}
            (number, ClientOp::Publish(publish)) => return (number, publish),
            other => panic!("a publish was expected, not {other:?}"),
        }
    }
}

/// Answers an opening, and gives the state in parts on a lane of its own.
async fn serve(session: &mut Session, paper: &Paper) -> (usize, u32) {
    let (number, open) = expect_open(session).await;
    let state = paper.state(&open.state);
    session.send(number, &paper.opened(state.len())).await;
    let lane = session.open().await;
    let middle = state.len() / 2;
    for (offset, part) in [(0, state.slice(..middle)), (middle, state.slice(middle..))] {
        let (revision, total) = (Position(paper.revision), state.len() as u64);
        let news = DocumentNews::State { revision, offset: offset as u64, total, bytes: part };
        session.send_on(lane, number, &ServerOp::Document(news)).await;
    }
    (lane, number)
}

async fn open(node: &Node, paper: &Paper) -> (Document, Session, usize, u32) {
    let (client, mut session) = connect(node).await;
    let (document, (lane, number)) = tokio::join!(client.document("notes").open(), serve(&mut session, paper));
    (document.expect("opened"), session, lane, number)
}

fn published(position: u64) -> ServerOp {
    ServerOp::Published { position: Position(position), timestamp_us: position, duplicate: false }
}

/// The next event that is about the text.
async fn change(document: &mut Document) -> thalweg_client::TextChange {
    loop {
        if let DocumentEvent::Changed(change) = document.next().await.expect("no error").expect("an event") {
            return change;
        }
    }
}

#[tokio::test]
async fn a_document_is_read_edited_and_followed() {
    within(async {
        let node = Node::start();
        let mut paper = Paper::new("one two");
        let (mut document, mut session, lane, number) = open(&node, &paper).await;
        assert_eq!((document.text().as_str(), document.revision(), document.length()), ("one two", Position(1), 7));

        let ack = document.insert(0, "zero ").expect("it may be written");
        let second = document.insert(0, "- ").expect("it may be written");
        assert_eq!((document.text().as_str(), document.unacknowledged()), ("- zero one two", 2));
        let delivery = paper.insert(3, " and", Some(GenerationId(7)));
        session.send_on(lane, number, &delivery).await;
        let change = change(&mut document).await;
        assert_eq!(change.operations, Operations::new().retain(10).insert(" and"));
        assert_eq!((change.user, change.generation, change.revision.0), (Some(name("you")), Some(GenerationId(7)), 2));

        // The first goes at once, what was made meanwhile as the next, or both as one.
        let mut written = 0;
        while written < 2 {
            let (request, publish) = expect_publish(&mut session).await;
            assert_eq!((publish.post.kind, publish.channel.as_str(), publish.make), (PostKind::Update, "notes", false));
            paper.take(&publish.body);
            session.send(request, &published(paper.revision)).await;
            written = if paper.text().starts_with("- ") { 2 } else { 1 };
        }
        ack.await.expect("durable");
        let revision = second.await.expect("durable");
        assert_eq!(document.flush().await.expect("durable"), revision);
        assert_eq!(paper.text(), "- zero one and two");
        assert_eq!((document.text(), document.unacknowledged()), (paper.text(), 0));
        loop {
            if let DocumentEvent::Saved { revision: told } = document.next().await.expect("fine").expect("an event") {
                break assert_eq!(told, revision);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn edits_made_while_the_node_is_away_are_merged() {
    within(async {
        let node = Node::start();
        let mut paper = Paper::new("one");
        let (mut document, mut session, ..) = open(&node, &paper).await;
        let ack = document.insert(3, " two").expect("it may be written");
        let (_, first) = expect_publish(&mut session).await;
        // It was carried out, and the answer is lost.
        paper.take(&first.body);
        session.vanish().await;
        document.insert(7, " three").expect("it may be written");
        paper.insert(0, "zero ", None);
        let back = async {
            let (mut session, _) = node.welcome(1).await;
            // Openings come before writes.
            let (number, open) = expect_open(&mut session).await;
            assert!(!open.state.is_empty(), "it says what it has");
            let state = paper.state(&open.state);
            session.send(number, &paper.opened(state.len())).await;
            let lane = session.open().await;
            let news = DocumentNews::State {
                revision: Position(paper.revision),
                offset: 0,
                total: state.len() as u64,
                bytes: state,
            };
            session.send_on(lane, number, &ServerOp::Document(news)).await;
            let (request, again) = expect_publish(&mut session).await;
            assert!(again.retry && again.sequence == first.sequence && again.body == first.body);
            session
                .send(request, &ServerOp::Published { position: Position(2), timestamp_us: 1, duplicate: true })
                .await;
            let (request, rest) = expect_publish(&mut session).await;
            paper.take(&rest.body);
            session.send(request, &published(paper.revision)).await;
            session
        };
        let events = async {
            let (mut offline, mut online, mut text) = (false, false, None);
            while text.is_none() {
                match document.next().await.expect("fine").expect("an event") {
                    DocumentEvent::Offline { .. } => offline = true,
                    DocumentEvent::Online => online = true,
                    DocumentEvent::Changed(change) => text = Some(change.operations),
                    _ => {}
                }
            }
            assert!(offline && online);
            assert_eq!(text, Some(Operations::new().insert("zero ")));
            ack.await.expect("durable");
            document.flush().await.expect("durable");
        };
        let (_session, ()) = tokio::join!(back, events);
        assert_eq!((document.text(), paper.text()), ("zero one two three".into(), "zero one two three".into()));
    })
    .await;
}

#[tokio::test]
async fn an_edit_that_is_refused_is_taken_out_again() {
    within(async {
        let node = Node::start();
        let paper = Paper::new("one");
        let (mut document, mut session, ..) = open(&node, &paper).await;
        // Durable before the other is refused, and asked about after it.
        let mut paper = paper;
        let before = document.insert(3, "?").expect("it may be written");
        let (request, publish) = expect_publish(&mut session).await;
        paper.take(&publish.body);
        session.send(request, &published(paper.revision)).await;
        document.flush().await.expect("durable");
        let ack = document.insert(4, " too much").expect("it may be written");
        let (request, _) = expect_publish(&mut session).await;
        let reject = Reject::new(RejectCode::DocumentTooLarge, "a document holds 4 MiB");
        session.send(request, &ServerOp::Reject(reject)).await;
        assert!(matches!(ack.await, Err(ClientError::Refused(reject)) if reject.code == RejectCode::DocumentTooLarge));
        assert!(document.insert(0, "x").is_err(), "not before it was read anew");
        let client = document.client_id();
        let (events, (lane, number)) = tokio::join!(
            async {
                loop {
                    match document.next().await.expect("fine").expect("an event") {
                        DocumentEvent::Saved { .. } => {}
                        DocumentEvent::Refused { text, .. } => break assert_eq!(text, "one? too much"),
                        other => panic!("not {other:?}"),
                    }
                }
                change(&mut document).await.operations
            },
            serve(&mut session, &paper)
        );
        assert_eq!(events, Operations::new().retain(4).delete(9));
        assert_eq!(document.text(), "one?");
        assert_eq!(before.await.expect("it was durable"), Position(2));
        assert_ne!(document.client_id(), client, "what was refused can never come back");
        session.send_on(lane, number, &paper.insert(0, "> ", None)).await;
        assert_eq!(change(&mut document).await.operations, Operations::new().insert("> "));
        let ack = document.insert(6, "!").expect("it may be written again");
        let (request, publish) = expect_publish(&mut session).await;
        paper.take(&publish.body);
        session.send(request, &published(paper.revision)).await;
        ack.await.expect("durable");
        assert_eq!(paper.text(), "> one?!");
    })
    .await;
}

/// Waits until the client took in what it was sent on the command lane before: answers come in their order.
async fn settle(client: &Client, session: &mut Session) {
    let (read, ()) = tokio::join!(client.read_text("notes", Position(0)), async {
        let number = loop {
            if let (number, ClientOp::Document(DocumentOp::Read { .. })) = session.receive().await {
                break number;
            }
        };
        let news = DocumentNews::State { revision: Position(1), offset: 0, total: 1, bytes: "x".into() };
        session.send(number, &ServerOp::Document(news)).await;
    });
    read.expect("answered");
}

#[tokio::test]
async fn an_opening_from_before_a_refusal_does_not_empty_the_document() {
    within(async {
        let node = Node::start();
        let paper = Paper::new("one");
        let (mut document, session, ..) = open(&node, &paper).await;
        let client = document.client().clone();
        session.vanish().await;
        document.insert(3, " too much").expect("it is kept");
        // All of this is there before anything of it is looked at.
        let (mut session, _) = node.welcome(1).await;
        let (number, _) = expect_open(&mut session).await;
        session.send(number, &paper.opened(0)).await;
        let (request, _) = expect_publish(&mut session).await;
        session.send(request, &ServerOp::Reject(Reject::new(RejectCode::DocumentTooLarge, "it is full"))).await;
        settle(&client, &mut session).await;
        let (told, _) = tokio::join!(change(&mut document), serve(&mut session, &paper));
        assert_eq!(told.operations, Operations::new().retain(3).delete(9));
        assert_eq!(document.text(), "one");
    })
    .await;
}

#[tokio::test]
async fn edits_that_wait_outlive_a_backup_that_was_put_back() {
    within(async {
        let node = Node::start();
        let mut paper = Paper::new("one");
        let (mut document, mut session, ..) = open(&node, &paper).await;
        let backup = paper.state(&[]);
        let first = document.insert(3, " two").expect("it may be written");
        let (request, publish) = expect_publish(&mut session).await;
        paper.take(&publish.body);
        session.send(request, &published(paper.revision)).await;
        first.await.expect("durable");
        session.vanish().await;
        let second = document.insert(7, " three").expect("it is kept");
        // The node has the first no more, but as many edits of others.
        let mut paper = Paper::new("");
        paper.take(&backup);
        paper.insert(0, "zero ", None);
        let back = async {
            let (mut session, _) = node.welcome(2).await;
            while paper.text() != "zero one two three" {
                let (number, op) = session.receive().await;
                match op {
                    ClientOp::Document(DocumentOp::Open(open)) => {
                        let bytes = paper.state(&open.state);
                        session.send(number, &paper.opened(bytes.len())).await;
                        let lane = session.open().await;
                        let (revision, total) = (Position(paper.revision), bytes.len() as u64);
                        let news = DocumentNews::State { revision, offset: 0, total, bytes };
                        session.send_on(lane, number, &ServerOp::Document(news)).await;
                    }
                    ClientOp::Document(DocumentOp::Read { .. }) => {
                        let bytes = paper.state(&[]);
                        let (revision, total) = (Position(paper.revision), bytes.len() as u64);
                        let news = DocumentNews::State { revision, offset: 0, total, bytes };
                        session.send(number, &ServerOp::Document(news)).await;
                    }
                    ClientOp::Publish(publish) => {
                        let update = Update::decode_v1(&publish.body).expect("an update");
                        let has = paper.doc.transact().state_vector();
                        let lower = update.state_vector_lower();
                        let fits = lower.iter().all(|(client, clock)| has.get(client) >= *clock);
                        if fits {
                            paper.take(&publish.body);
                            session.send(number, &published(paper.revision)).await;
                        } else {
                            let reject = Reject::new(RejectCode::UpdateIncomplete, "it builds on what is not there");
                            session.send(number, &ServerOp::Reject(reject)).await;
                        }
                    }
                    _ => {}
                }
            }
            session
        };
        let events = async {
            while !document.text().starts_with("zero") {
                let event = document.next().await.expect("fine").expect("an event");
                assert!(!matches!(event, DocumentEvent::Refused { .. }), "{event:?}");
            }
        };
        let (_session, ()) = tokio::join!(back, events);
        second.await.expect("durable");
        assert_eq!((document.text().as_str(), document.unacknowledged()), ("zero one two three", 0));
    })
    .await;
}

#[tokio::test]
async fn an_edit_cuts_no_character_in_two() {
    within(async {
        let node = Node::start();
        let paper = Paper::new("a😀b");
        let (mut document, _session, ..) = open(&node, &paper).await;
        for operations in [Operations::new().retain(2).insert("x"), Operations::new().retain(1).delete(1)] {
            let refused = document.edit(&operations);
            assert!(
                matches!(refused, Err(ClientError::Refused(reject)) if reject.code == RejectCode::OperationsInvalid)
            );
        }
        assert_eq!((document.text().as_str(), document.unacknowledged()), ("a😀b", 0));
        drop(document.edit(&Operations::new().retain(1).insert("x").delete(2)).expect("it is whole"));
        assert_eq!(document.text(), "axb");
    })
    .await;
}

#[tokio::test]
async fn who_is_there_is_told_and_heard() {
    within(async {
        let node = Node::start();
        let paper = Paper::new("one two");
        let (mut document, mut session, lane, number) = open(&node, &paper).await;
        document.set_cursor(Some((0, 3)));
        let state = serde_json::json!({ "user": { "name": "grace" }, "cursor": null }).to_string();
        let entries = vec![AwarenessEntry { client: 9, clock: 1, state: Some(state.into()) }];
        let news = DocumentNews::Awareness { update: AwarenessUpdate { entries }.encode() };
        session.send_on(lane, number, &ServerOp::Document(news)).await;
        let told = async {
            loop {
                let (_, op) = session.receive().await;
                if let ClientOp::Document(DocumentOp::ShareAwareness { update, .. }) = op {
                    return AwarenessUpdate::decode(&update).expect("an update");
                }
            }
        };
        let heard = async {
            loop {
                match document.next().await.expect("fine").expect("an event") {
                    DocumentEvent::Others => break,
                    _ => continue,
                }
            }
            // Goes on telling.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), document.next()).await;
        };
        let (told, ()) = tokio::join!(told, heard);
        let entry = &told.entries[0];
        assert_eq!(entry.client, document.client_id());
        let state: serde_json::Value = serde_json::from_slice(entry.state.as_ref().expect("there")).expect("JSON");
        assert_eq!(state["user"]["name"], "me");
        assert_eq!(state["cursor"]["head"]["tname"], "content");
        assert_eq!(document.others()[0].name, "grace");
    })
    .await;
}

#[tokio::test]
async fn what_may_not_be_changed_and_what_ends() {
    within(async {
        let node = Node::start();
        let mut paper = Paper::new("one");
        paper.access = DocumentAccess::Read;
        let (mut document, mut session, lane, number) = open(&node, &paper).await;
        let forbidden = |result: Result<_, ClientError>| {
            matches!(result, Err(ClientError::Refused(reject)) if reject.code == RejectCode::Forbidden)
        };
        assert!(forbidden(document.insert(0, "x").map(drop)) && forbidden(document.undo().map(drop)));
        let ended = ServerOp::Ended(Reject::new(RejectCode::ChannelDeleted, "it was deleted"));
        session.send_on(lane, number, &ended).await;
        loop {
            match document.next().await {
                Ok(_) => {}
                Err(ClientError::Ended(reject)) => break assert_eq!(reject.code, RejectCode::ChannelDeleted),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(document.next().await.expect("it is over"), None);

        let client = document.client().clone();
        let (refused, ()) = tokio::join!(client.document("other").make(false).open(), async {
            let (number, open) = expect_open(&mut session).await;
            assert!(!open.make && open.form == DocumentForm::Updates);
            session.send(number, &ServerOp::Reject(Reject::new(RejectCode::ChannelUnknown, "no such document"))).await;
        });
        assert!(matches!(refused, Err(ClientError::Refused(reject)) if reject.code == RejectCode::ChannelUnknown));
    })
    .await;
}

#[tokio::test]
async fn the_past_is_read() {
    within(async {
        let node = Node::start();
        let (client, mut session) = connect(&node).await;
        let paper = Paper::new("one two");
        let (read, ()) = tokio::join!(client.read_document("notes", Position(3), ReadForm::Text), async {
            for (offset, part) in [(0_u64, "one "), (4, "two")] {
                let (number, op) = session.receive().await;
                let expected =
                    DocumentOp::Read { document: name("notes"), revision: Position(3), form: ReadForm::Text, offset };
                assert_eq!(op, ClientOp::Document(expected));
                let news = DocumentNews::State { revision: Position(3), offset, total: 7, bytes: part.into() };
                session.send(number, &ServerOp::Document(news)).await;
            }
        });
        let read = read.expect("read");
        assert_eq!((read.revision, &read.bytes[..]), (Position(3), &b"one two"[..]));

        let delivery = |position, kind, body: Bytes| {
            ServerOp::Delivery(Delivery {
                position: Position(position),
                timestamp_us: 1,
                kind,
                user: name("ada"),
                generation: None,
                body,
                key: 0,
                context: Context { target: Position(1), ..Context::default() },
            })
            .encode()
        };
        let (log, ()) = tokio::join!(client.document_log("notes", Position(0), 0), async {
            let (number, _) = session.receive().await;
            let deliveries = vec![
                delivery(1, DeliveryKind::Update, paper.state(&[])),
                delivery(2, DeliveryKind::Version, "draft".into()),
                delivery(3, DeliveryKind::Snapshot, Bytes::new()),
            ];
            let (first, next, head) = (Position(1), Position(4), Position(3));
            session.send(number, &ServerOp::Page { first, next, head, deliveries }).await;
        });
        let log = log.expect("read");
        let RecordKind::Edit(update) = &log.records[0].kind else { panic!("not {:?}", log.records[0]) };
        let mut replay = thalweg_client::Replay::default();
        assert_eq!(replay.apply(update).expect("an update"), Operations::new().insert("one two"));
        assert_eq!(log.records[1].kind, RecordKind::Version { revision: Position(1), name: "draft".into() });
        assert_eq!(log.records[2].kind, RecordKind::Other);
    })
    .await;
}
