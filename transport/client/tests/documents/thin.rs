//! Thin clients: the text of a document, edited by offsets.

use thalweg_client::TextSession;
use thalweg_protocol::document::DocumentOperations;
use thalweg_protocol::ids::Sequence;

use super::*;

fn operations(from: u64, to: u64, own: Option<Sequence>, operations: &Operations) -> ServerOp {
    let operations = if own.is_some() { Bytes::new() } else { operations.encode() };
    ServerOp::Document(DocumentNews::Operations(DocumentOperations {
        from: Position(from),
        to: Position(to),
        timestamp_us: 1,
        user: name("you"),
        generation: None,
        own,
        operations,
    }))
}

async fn open_text(node: &Node, text: &'static str) -> (TextSession, Session, usize, u32) {
    let (client, mut session) = connect(node).await;
    let (text, (lane, number)) = tokio::join!(client.document("notes").open_text(), serve_text(&mut session, 1, text));
    (text.expect("opened"), session, lane, number)
}

async fn serve_text(session: &mut Session, revision: u64, text: &'static str) -> (usize, u32) {
    let (number, open) = expect_open(session).await;
    assert!(open.form == DocumentForm::Operations && open.state.is_empty());
    let opened = DocumentNews::Opened {
        id: ChannelId(1),
        revision: Position(revision),
        bytes: text.len() as u64,
        access: DocumentAccess::Write,
        made: false,
        vector: Bytes::new(),
    };
    session.send(number, &ServerOp::Document(opened)).await;
    let lane = session.open().await;
    let total = text.len() as u64;
    let state = DocumentNews::State { revision: Position(revision), offset: 0, total, bytes: text.into() };
    session.send_on(lane, number, &ServerOp::Document(state)).await;
    (lane, number)
}

#[tokio::test]
async fn a_thin_client_goes_on_over_a_lost_connection() {
    within(async {
        let node = Node::start();
        let (mut text, mut session, lane, number) = open_text(&node, "one two").await;
        text.edit(&Operations::new().retain(3).insert("!")).expect("it fits");
        // Somebody was faster; then ours is in its place.
        let (revision, ()) = tokio::join!(text.flush(), async {
            let (request, publish) = expect_publish(&mut session).await;
            assert_eq!((publish.post.kind, publish.post.target), (PostKind::Operations, Position(1)));
            session.send_on(lane, number, &operations(2, 2, None, &Operations::new().insert("zero "))).await;
            session.send_on(lane, number, &operations(3, 3, Some(publish.sequence), &Operations::new())).await;
            session.send(request, &published(3)).await;
        });
        assert_eq!(revision.expect("durable"), Position(3));
        assert_eq!(text.text(), "zero one! two");

        // The answer is lost, and what it was made on is read anew: it is in it.
        text.edit(&Operations::new().insert("> ")).expect("it fits");
        let back = async {
            let (_, publish) = expect_publish(&mut session).await;
            session.vanish().await;
            let (mut session, _) = node.welcome(1).await;
            let (lane, number) = serve_text(&mut session, 5, "> zero one! two, three").await;
            let (request, again) = expect_publish(&mut session).await;
            assert!(again.retry && again.sequence == publish.sequence);
            session
                .send(request, &ServerOp::Published { position: Position(4), timestamp_us: 1, duplicate: true })
                .await;
            (session, lane, number)
        };
        let (revision, _back) = tokio::join!(text.flush(), back);
        revision.expect("durable");
        assert_eq!((text.text(), text.revision()), ("> zero one! two, three", Position(5)));
    })
    .await;
}

#[tokio::test]
async fn a_write_of_somebody_else_in_the_session_is_not_taken_for_ones_own() {
    within(async {
        let node = Node::start();
        let (mut text, mut session, lane, number) = open_text(&node, "one").await;
        // Another write of this session stands in the order before ours was sent.
        session.send_on(lane, number, &operations(2, 2, Some(Sequence(99)), &Operations::new())).await;
        text.edit(&Operations::new().retain(3).insert("!")).expect("it fits");
        let node_side = async {
            let mut written = None;
            loop {
                match session.receive().await {
                    (number, ClientOp::Publish(publish)) => {
                        // Before the other was heard of, or after.
                        written = Some((number, publish));
                    }
                    (number, ClientOp::Document(DocumentOp::Open(_))) => {
                        let opened = DocumentNews::Opened {
                            id: ChannelId(1),
                            revision: Position(2),
                            bytes: 8,
                            access: DocumentAccess::Write,
                            made: false,
                            vector: Bytes::new(),
                        };
                        session.send(number, &ServerOp::Document(opened)).await;
                        let lane = session.open().await;
                        let (revision, bytes) = (Position(2), Bytes::from_static(b"zero one"));
                        let state = DocumentNews::State { revision, offset: 0, total: 8, bytes };
                        session.send_on(lane, number, &ServerOp::Document(state)).await;
                        let (request, publish) = match written {
                            Some(written) => written,
                            None => expect_publish(&mut session).await,
                        };
                        session.send(request, &published(3)).await;
                        let own = operations(3, 3, Some(publish.sequence), &Operations::new());
                        session.send_on(lane, number, &own).await;
                        return session;
                    }
                    _ => {}
                }
            }
        };
        let (revision, _session) = tokio::join!(text.flush(), node_side);
        assert_eq!(revision.expect("durable"), Position(3), "not the other's");
        assert_eq!(text.text(), "zero one!");
    })
    .await;
}

#[tokio::test]
async fn an_edit_that_cuts_a_character_in_two_has_the_text_read_anew() {
    within(async {
        let node = Node::start();
        let (mut text, mut session, lane, number) = open_text(&node, "a😀b").await;
        session.send_on(lane, number, &operations(2, 2, None, &Operations::new().retain(1).delete(1))).await;
        let (told, _) = tokio::join!(text.next(), serve_text(&mut session, 2, "a\u{fffd}b"));
        let Some(DocumentEvent::Changed(change)) = told.expect("no error") else { panic!("a change is told") };
        assert_eq!(change.operations, Operations::new().retain(1).insert("\u{fffd}").delete(2));
        assert_eq!((text.text(), text.revision()), ("a\u{fffd}b", Position(2)));
    })
    .await;
}
