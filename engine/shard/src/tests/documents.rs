//! Documents at their owner: edits, openings, the past, permissions, what happens when something goes wrong.

mod awareness;
mod editing;
mod life;
mod past;
mod permissions;
mod readers;
mod writer;

use bytes::Bytes;
use thalweg_domain::document::Document;
use thalweg_protocol::chat::{ChannelAbout, ChannelKind, Post, PostKind};
use thalweg_protocol::document::{
    DocumentAccess, DocumentForm, DocumentNews, DocumentOp, OpenDocument, Operations, ReadForm,
};
use thalweg_protocol::ids::{Position, Request, Sequence, Subscription};
use thalweg_protocol::op::{ClientOp, CreateChannel, DeliveryKind, Publish, ServerOp};

use super::harness::{Client, Node, name};

/// Somebody with a copy of a document.
struct Editor {
    client: Client,
    document: String,
    copy: Document,
    sequence: u64,
}

/// What somebody who opens a document is told.
#[derive(Debug)]
struct Opened {
    subscription: Subscription,
    revision: u64,
    bytes: u64,
    access: DocumentAccess,
    made: bool,
}

impl Editor {
    /// Somebody who edits as a Yjs client of this id.
    fn new(client: Client, document: &str, id: u64) -> Self {
        Self { client, document: document.to_owned(), copy: Document::new(id), sequence: 0 }
    }

    /// An edit of the copy, to be sent.
    fn edit(&mut self, operations: Operations) -> ClientOp {
        let update = self.copy.edit(&operations).expect("the operations fit");
        self.update(update)
    }

    fn insert(&mut self, at: u32, text: &str) -> ClientOp {
        self.edit(Operations::new().retain(at).insert(text))
    }

    fn update(&mut self, update: Bytes) -> ClientOp {
        self.sequence += 1;
        write(&self.document, self.sequence, PostKind::Update, 0, update)
    }

    /// Opens the document and takes in what the copy lacks.
    fn open(&mut self, node: &mut Node) -> Opened {
        let state = if self.copy.bytes() > 2 { self.copy.state_vector() } else { Bytes::new() };
        let opened = open_with(node, self.client, &self.document, DocumentForm::Updates, state);
        self.hear(node);
        opened
    }

    /// Takes in what came since the last call; gives the revisions, and the kinds of what was no edit.
    fn hear(&mut self, node: &mut Node) -> Vec<String> {
        let mut heard = Vec::new();
        let mut state = Vec::new();
        for (_, op, _) in node.document_frames(self.client) {
            match op {
                ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Update => {
                    self.copy.replay(&delivery.body).expect("an update that the node took");
                    heard.push(delivery.position.to_string());
                }
                ServerOp::Delivery(delivery) => heard.push(format!("{} {:?}", delivery.position, delivery.kind)),
                ServerOp::Document(DocumentNews::State { bytes, total, .. }) => {
                    state.extend_from_slice(&bytes);
                    if state.len() as u64 == total {
                        self.copy.replay(&state).expect("a state that the node gave");
                        state.clear();
                    }
                }
                ServerOp::Document(DocumentNews::Awareness { .. }) => {}
                ServerOp::Ended(reject) => heard.push(format!("ended {}", reject.code)),
                other => panic!("unexpected {other:?}"),
            }
        }
        heard
    }
}

fn write(document: &str, sequence: u64, kind: PostKind, target: u64, body: Bytes) -> ClientOp {
    ClientOp::Publish(Publish {
        channel: name(document),
        sequence: Sequence(sequence),
        retry: false,
        make: true,
        body,
        key: 0,
        post: Post { kind, target: Position(target) },
    })
}

/// The same write once more.
fn again(op: &ClientOp) -> ClientOp {
    match op.clone() {
        ClientOp::Publish(publish) => ClientOp::Publish(Publish { retry: true, ..publish }),
        other => other,
    }
}

fn operations(document: &str, sequence: u64, revision: u64, operations: &Operations) -> ClientOp {
    write(document, sequence, PostKind::Operations, revision, operations.encode())
}

fn open_op(document: &str, form: DocumentForm, state: Bytes) -> ClientOp {
    let document = name(document);
    ClientOp::Document(DocumentOp::Open(OpenDocument { document, state, form, make: true, lead: 0, known: None }))
}

fn opened(request: Request, reply: Option<ServerOp>) -> Opened {
    match reply {
        Some(ServerOp::Document(DocumentNews::Opened { revision, bytes, access, made, .. })) => {
            Opened { subscription: Subscription(request.0), revision: revision.0, bytes, access, made }
        }
        other => panic!("expected an opened document, got {other:?}"),
    }
}

fn open_with(node: &mut Node, client: Client, document: &str, form: DocumentForm, state: Bytes) -> Opened {
    let request = node.request(client, open_op(document, form, state));
    let reply = node.reply(request);
    opened(request, reply)
}

fn create(document: &str) -> ClientOp {
    ClientOp::CreateChannel(CreateChannel {
        channel: name(document),
        history_messages: 0,
        history_bytes: 0,
        history_age_ms: 0,
        durability: None,
        about: ChannelAbout { kind: ChannelKind::Document, ..ChannelAbout::default() },
    })
}

fn read_op(document: &str, revision: u64, form: ReadForm, offset: u64) -> ClientOp {
    let revision = Position(revision);
    ClientOp::Document(DocumentOp::Read { document: name(document), revision, form, offset })
}

/// All of a document as it was at a revision, read in as many pieces as it takes.
fn read_as(node: &mut Node, client: Client, document: &str, revision: u64, form: ReadForm) -> (u64, Bytes) {
    let (mut at, mut whole) = (revision, Vec::new());
    loop {
        match node.call(client, read_op(document, at, form, whole.len() as u64)) {
            ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
                assert_eq!(offset, whole.len() as u64);
                whole.extend_from_slice(&bytes);
                at = revision.0;
                if whole.len() as u64 == total {
                    return (at, whole.into());
                }
            }
            other => panic!("expected a piece of a document, got {other:?}"),
        }
    }
}

fn text_at(node: &mut Node, client: Client, document: &str, revision: u64) -> String {
    let (_, text) = read_as(node, client, document, revision, ReadForm::Text);
    String::from_utf8(text.to_vec()).expect("UTF-8")
}

fn text_now(node: &mut Node, client: Client, document: &str) -> String {
    text_at(node, client, document, 0)
}

/// The revision that a write was given, and whether it is said to be none of its own.
fn published(reply: Option<ServerOp>) -> (u64, bool) {
    match reply {
        Some(ServerOp::Published { position, duplicate, .. }) => (position.0, duplicate),
        other => panic!("expected a revision, got {other:?}"),
    }
}

fn counted(node: &Node, count: impl Fn(&crate::Counters) -> u64) -> u64 {
    node.shards.iter().map(|shard| count(shard.counters())).sum()
}
