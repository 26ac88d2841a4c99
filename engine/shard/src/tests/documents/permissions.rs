//! Who may do what to documents, and what is a document at all.

use thalweg_protocol::chat::{ChatOp, MemberRole};
use thalweg_protocol::op::Durability;
use thalweg_protocol::op::{From, Policy};
use thalweg_protocol::reject::RejectCode;

use super::super::harness::{publish, subscribe};
use super::*;

#[test]
fn what_a_token_says_is_what_may_be_done() {
    let mut node = Node::new(1);
    let mut ada = Editor::new(node.open(0, "ada", 1), "plan", 1);
    ada.open(&mut node);
    let edit = ada.insert(0, "text");
    node.call(ada.client, edit);
    let mut check = |permissions: &[&str], access: Option<DocumentAccess>| {
        let client = node.open_as(0, "acme", "eve", 9, permissions);
        let request = node.request(client, open_op("plan", DocumentForm::Updates, Bytes::new()));
        match (access, node.reply(request)) {
            (Some(access), reply) => assert_eq!(opened(request, reply).access, access, "{permissions:?}"),
            (None, Some(ServerOp::Reject(reject))) => assert_eq!(reject.code, RejectCode::Forbidden),
            (None, other) => panic!("{permissions:?}: {other:?}"),
        }
        let mut eve = Editor::new(client, "plan", 9);
        let may_write = access == Some(DocumentAccess::Write) || permissions.contains(&"write:*");
        let edit = eve.insert(0, "x");
        let expected = if may_write { None } else { Some(RejectCode::Forbidden) };
        let refused = match node.call(client, edit) {
            ServerOp::Reject(reject) => Some(reject.code),
            _ => None,
        };
        assert_eq!(refused, expected, "{permissions:?}");
        if !may_write {
            let insert = operations("plan", 50, 0, &Operations::new().insert("x"));
            assert_eq!(node.refusal(client, insert), RejectCode::Forbidden);
            let restore = write("plan", 51, PostKind::Restore, 1, Bytes::new());
            assert_eq!(node.refusal(client, restore), RejectCode::Forbidden);
        }
        node.close(client);
    };
    check(&["read:*"], Some(DocumentAccess::Read));
    check(&["read:*", "comment:plan"], Some(DocumentAccess::Comment));
    check(&["read:*", "comment:other"], Some(DocumentAccess::Read));
    check(&["comment:*"], None);
    check(&["read:other"], None);
    check(&["read:*", "write:*"], Some(DocumentAccess::Write));
}

#[test]
fn the_place_somebody_has_in_a_document_counts_too() {
    let mut node = Node::new(1);
    let owner = node.open(0, "ada", 1);
    node.call(owner, create("plan"));
    let mut check = |role: Option<MemberRole>, expected: Result<DocumentAccess, RejectCode>| {
        let set = ChatOp::SetMember { channel: name("plan"), user: name("bob"), role };
        assert_eq!(node.call(owner, ClientOp::Chat(set)), ServerOp::Done, "{role:?}");
        let bob = node.open(0, "bob", 2);
        let request = node.request(bob, open_op("plan", DocumentForm::Updates, Bytes::new()));
        let got = match node.reply(request) {
            Some(ServerOp::Reject(reject)) => Err(reject.code),
            reply => Ok(opened(request, reply).access),
        };
        assert_eq!(got, expected, "{role:?}");
        node.close(bob);
    };
    check(Some(MemberRole::Reader), Ok(DocumentAccess::Read));
    check(Some(MemberRole::Member), Ok(DocumentAccess::Write));
    check(Some(MemberRole::Banned), Err(RejectCode::Forbidden));
    check(None, Ok(DocumentAccess::Write));
}

#[test]
fn a_document_is_no_channel_and_a_channel_no_document() {
    let mut node = Node::in_memory(2);
    let ada = node.open(0, "ada", 1);
    assert_eq!(node.call(ada, create("plan")), ServerOp::ChannelCreated { created: true });
    assert_eq!(node.call(ada, create("plan")), ServerOp::ChannelCreated { created: false });
    node.publish(ada, "talk", 1, "hello");
    let mut check = |op: ClientOp, expected: RejectCode| assert_eq!(node.refusal(ada, op.clone()), expected, "{op:?}");
    check(subscribe("plan", From::Start, Policy::Replay, 0), RejectCode::KindMismatch);
    check(publish("plan", 10, "hello"), RejectCode::KindMismatch);
    check(open_op("talk", DocumentForm::Updates, Bytes::new()), RejectCode::KindMismatch);
    check(read_op("talk", 0, ReadForm::Text, 0), RejectCode::KindMismatch);
    let insert = Operations::new().insert("x");
    check(operations("talk", 11, 0, &insert), RejectCode::KindMismatch);
    check(write("talk", 12, PostKind::Update, 0, Bytes::from_static(&[0, 0])), RejectCode::KindMismatch);
    let in_memory = |op| match op {
        ClientOp::CreateChannel(create) => {
            ClientOp::CreateChannel(CreateChannel { durability: Some(Durability::Memory), ..create })
        }
        other => other,
    };
    check(in_memory(create("other")), RejectCode::ParameterInvalid);
    let kind = |kind| ChatOp::SetChannel { channel: name("plan"), topic: None, kind: Some(kind), post: None };
    check(ClientOp::Chat(kind(ChannelKind::Open)), RejectCode::KindMismatch);
    let reader = node.open_as(0, "acme", "eve", 5, &["read:*"]);
    assert_eq!(node.refusal(reader, open_op("none", DocumentForm::Updates, Bytes::new())), RejectCode::ChannelUnknown);
    let list = ClientOp::Chat(ChatOp::ListChannels { after: String::new(), limit: 0, all: true });
    let ServerOp::ChannelList { channels, .. } = node.call(reader, list) else { panic!("a list") };
    let kinds: Vec<_> = channels.iter().map(|channel| (channel.channel.as_str(), channel.kind)).collect();
    assert_eq!(kinds, [("plan", ChannelKind::Document), ("talk", ChannelKind::Open)]);
}
