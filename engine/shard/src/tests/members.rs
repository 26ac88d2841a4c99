//! Roles, private channels, direct conversations, and what becomes of messages that exist.

use std::collections::BTreeSet;

use thalweg_domain::quota::Limits;
use thalweg_protocol::chat::{
    ChannelAbout, ChannelKind, ChannelSummary, ChatOp, MemberRole, Post, PostKind, PostRule, ProfileText,
};
use thalweg_protocol::ids::Position;
use thalweg_protocol::op::{ClientOp, CreateChannel, Delivery, DeliveryKind, From, Publish, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Client, Node, create, name, publish, retry, subscribe};
use crate::Input;

fn chat(op: ChatOp) -> ClientOp {
    ClientOp::Chat(op)
}

fn private(channel: &str) -> ClientOp {
    let ClientOp::CreateChannel(create) = create(channel, 0, None) else { unreachable!("it creates") };
    let about = ChannelAbout { kind: ChannelKind::Private, ..ChannelAbout::default() };
    ClientOp::CreateChannel(CreateChannel { about, ..create })
}

fn set_member(channel: &str, user: &str, role: Option<MemberRole>) -> ClientOp {
    chat(ChatOp::SetMember { channel: name(channel), user: name(user), role })
}

fn join(channel: &str) -> ClientOp {
    chat(ChatOp::Join { channel: name(channel) })
}

fn post(channel: &str, sequence: u64, kind: PostKind, target: u64, body: &str) -> ClientOp {
    let ClientOp::Publish(publish) = publish(channel, sequence, body) else { unreachable!("it publishes") };
    ClientOp::Publish(Publish { post: Post { kind, target: Position(target) }, ..publish })
}

fn page(node: &mut Node, client: Client, channel: &str) -> Vec<Delivery> {
    let read = ClientOp::ReadHistory { channel: name(channel), from: Position(0), limit: 0 };
    match node.call(client, read) {
        ServerOp::Page { deliveries, .. } => deliveries.iter().map(|payload| delivery(payload.clone())).collect(),
        other => panic!("expected a page, got {other:?}"),
    }
}

fn delivery(payload: bytes::Bytes) -> Delivery {
    match ServerOp::decode(&payload) {
        Ok(ServerOp::Delivery(delivery)) => delivery,
        other => panic!("expected a delivery, got {other:?}"),
    }
}

fn search(node: &mut Node, client: Client, channel: &str, query: &str, before: u64, limit: u32) -> (Vec<u64>, u64) {
    let (channel, query, before) = (name(channel), query.to_owned(), Position(before));
    match node.call(client, chat(ChatOp::SearchHistory { channel, query, before, limit })) {
        ServerOp::Page { deliveries, next, .. } => {
            (deliveries.into_iter().map(|payload| delivery(payload).position.0).collect(), next.0)
        }
        other => panic!("expected a page, got {other:?}"),
    }
}

fn list(node: &mut Node, client: Client, all: bool) -> Vec<ChannelSummary> {
    match node.call(client, chat(ChatOp::ListChannels { after: String::new(), limit: 0, all })) {
        ServerOp::ChannelList { channels, more: false } => channels,
        other => panic!("expected a list, got {other:?}"),
    }
}

#[test]
fn a_private_channel_is_its_members() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let (ada, bob, eve) = (node.open(0, "ada", 1), node.open(cores - 1, "bob", 2), node.open(0, "eve", 3));
        assert_eq!(node.call(ada, private("secret")), ServerOp::ChannelCreated { created: true });
        node.publish(ada, "secret", 1, "between us");
        for op in [
            subscribe("secret", From::Start, Default::default(), 0),
            publish("secret", 1, "me too"),
            ClientOp::ReadHistory { channel: name("secret"), from: Position(0), limit: 0 },
            join("secret"),
            chat(ChatOp::AboutChannel { channel: name("secret") }),
            chat(ChatOp::WhoIsIn { channel: name("secret") }),
            chat(ChatOp::MarkRead { channel: name("secret"), position: Position(1), number: 1 }),
            chat(ChatOp::SearchHistory { channel: name("secret"), query: "us".into(), before: Position(0), limit: 0 }),
            set_member("secret", "eve", Some(MemberRole::Member)),
        ] {
            assert_eq!(node.refusal(eve, op), RejectCode::Forbidden);
        }
        assert!(list(&mut node, eve, true).is_empty(), "nobody else finds it");
        assert_eq!(node.call(ada, set_member("secret", "bob", Some(MemberRole::Invited))), ServerOp::Done);
        let early = subscribe("secret", From::Start, Default::default(), 0);
        assert_eq!(node.refusal(bob, early), RejectCode::Forbidden, "an invitation is not a membership");
        assert_eq!(node.call(bob, join("secret")), ServerOp::Done);
        node.subscribe(bob, "secret", From::Start);
        assert_eq!(node.heard(bob), ["1 ada: between us", "2 ada: bob", "3 bob: bob"]);
        node.publish(bob, "secret", 1, "thanks");

        assert_eq!(node.call(ada, set_member("secret", "bob", None)), ServerOp::Done);
        assert_eq!(node.heard(bob).last().map(String::as_str), Some("ended forbidden"));
        node.publish(ada, "secret", 2, "without bob");
        assert!(node.heard(bob).is_empty());
        assert_eq!(node.refusal(bob, publish("secret", 2, "hello?")), RejectCode::Forbidden);
        let objects: Vec<_> = node.audited.iter().filter(|event| event.refused.is_none()).map(|e| &*e.object).collect();
        assert_eq!(objects, ["secret", "secret bob invited", "secret bob member", "secret bob none"]);
    }
}

#[test]
fn what_people_are_in_a_channel_outlives_the_node() {
    let mut node = Node::new(2);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    node.call(ada, private("secret"));
    node.call(ada, set_member("secret", "bob", Some(MemberRole::Invited)));
    node.call(ada, set_member("secret", "eve", Some(MemberRole::Member)));
    node.call(ada, set_member("secret", "eve", None));
    node.call(bob, join("secret"));
    let topic = Some("rivers".to_owned());
    let change = ChatOp::SetChannel { channel: name("secret"), topic, kind: None, post: Some(PostRule::Moderators) };
    assert_eq!(node.call(ada, chat(change)), ServerOp::Done);
    node.publish(ada, "secret", 1, "hello @bob @eve");
    node.call(bob, chat(ChatOp::SetProfile(ProfileText { display: "Bob".into(), ..ProfileText::default() })));
    node.restart(3);
    let (bob, eve) = (node.open(0, "bob", 3), node.open(0, "eve", 4));
    let ServerOp::ChannelReport(report) = node.call(bob, chat(ChatOp::AboutChannel { channel: name("secret") })) else {
        panic!("a report")
    };
    let members: Vec<_> = report.members.iter().map(|member| (member.user.as_str(), member.role)).collect();
    assert_eq!(members, [("ada", MemberRole::Owner), ("bob", MemberRole::Member)]);
    let got = (report.kind, report.topic.as_str(), report.post, report.you, report.messages);
    assert_eq!(got, (ChannelKind::Private, "rivers", PostRule::Moderators, Some(MemberRole::Member), 1));
    assert_eq!(node.refusal(bob, publish("secret", 1, "may I?")), RejectCode::Forbidden);
    let early = subscribe("secret", From::Start, Default::default(), 0);
    assert_eq!(node.refusal(eve, early), RejectCode::Forbidden);
    let listed = list(&mut node, bob, false);
    assert_eq!((listed.len(), listed[0].unread, listed[0].mentions), (1, 1, 1));
    let head = listed[0].head;
    node.call(bob, chat(ChatOp::MarkRead { channel: name("secret"), position: head, number: 1 }));
    let ServerOp::ProfileReport(profile) = node.call(eve, chat(ChatOp::GetProfile { user: name("bob") })) else {
        panic!("a profile")
    };
    assert_eq!(profile.profile.display, "Bob");
    node.restart(1);
    let bob = node.open(0, "bob", 5);
    let listed = list(&mut node, bob, false);
    assert_eq!((listed[0].unread, listed[0].mentions, listed[0].read), (0, 0, head), "read on another device");
}

#[test]
fn a_direct_conversation_is_one_whoever_opens_it() {
    let mut node = Node::new(2);
    let (ada, bob, eve) = (node.open(0, "ada", 1), node.open(1, "bob", 2), node.open(1, "eve", 3));
    let open = |users: &[&str]| chat(ChatOp::OpenDirect { users: users.iter().map(|user| name(user)).collect() });
    let ServerOp::ChannelReport(first) = node.call(ada, open(&["bob"])) else { panic!("a report") };
    let ServerOp::ChannelReport(second) = node.call(bob, open(&["ada"])) else { panic!("a report") };
    assert_eq!((&first.channel, first.members_total), (&second.channel, 2));
    let channel = first.channel.as_str();
    node.subscribe(bob, channel, From::Start);
    node.publish(ada, channel, 1, "psst");
    assert_eq!(node.heard(bob), ["1 ada: psst"]);
    assert_eq!(node.refusal(eve, publish(channel, 1, "what?")), RejectCode::Forbidden);
    assert_eq!(node.refusal(ada, set_member(channel, "eve", Some(MemberRole::Invited))), RejectCode::Forbidden);
    assert_eq!(node.refusal(ada, open(&[])), RejectCode::ParameterInvalid);
    for op in
        [publish("dm/mine", 2, "x"), subscribe("dm/mine", From::End, Default::default(), 0), create("dm/x", 0, None)]
    {
        assert_eq!(node.refusal(ada, op), RejectCode::NameReserved);
    }
}

#[test]
fn messages_are_edited_taken_back_and_reacted_to() {
    let mut node = Node::new(2);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    let channel = node.channel_on(0, 0);
    node.publish(ada, &channel, 1, "helo");
    node.publish(ada, &channel, 2, "a secret");
    node.subscribe(bob, &channel, From::End);
    let write = |node: &mut Node, client, sequence, kind, target, body: &str| match node
        .call(client, post(&channel, sequence, kind, target, body))
    {
        ServerOp::Published { position, .. } => Ok(position.0),
        ServerOp::Reject(reject) => Err(reject.code),
        other => panic!("expected a position, got {other:?}"),
    };
    assert_eq!(write(&mut node, ada, 3, PostKind::Edit, 1, "hello"), Ok(3));
    assert_eq!(write(&mut node, bob, 1, PostKind::React, 1, "👍"), Ok(4));
    assert_eq!(write(&mut node, bob, 2, PostKind::Unreact, 1, "👍"), Ok(5));
    assert_eq!(write(&mut node, bob, 3, PostKind::Message, 1, "an answer"), Ok(6));
    assert_eq!(write(&mut node, ada, 4, PostKind::Redact, 2, "ignored"), Ok(7));
    for (client, sequence, kind, target, body, expected) in [
        (bob, 4, PostKind::Edit, 1, "mine", RejectCode::Forbidden),
        (bob, 5, PostKind::Redact, 1, "", RejectCode::Forbidden),
        (ada, 5, PostKind::Edit, 2, "again", RejectCode::MessageUnknown),
        (ada, 6, PostKind::Edit, 3, "an edit", RejectCode::MessageUnknown),
        (ada, 7, PostKind::Edit, 0, "nothing", RejectCode::MessageUnknown),
        (ada, 8, PostKind::React, 99, "👍", RejectCode::MessageUnknown),
        (ada, 9, PostKind::Message, 99, "to what?", RejectCode::MessageUnknown),
        (ada, 10, PostKind::React, 1, "two words", RejectCode::ParameterInvalid),
        (ada, 11, PostKind::React, 1, "", RejectCode::ParameterInvalid),
    ] {
        assert_eq!(write(&mut node, client, sequence, kind, target, body), Err(expected), "{kind:?} {target}");
    }
    assert_eq!(node.heard(bob), ["3 ada: hello", "7 ada: "]);
    let kept = page(&mut node, bob, &channel);
    assert_eq!((kept[1].body.len(), kept[1].context.redacted), (0, true), "what was taken back is not shown");
    assert_eq!((kept[5].context.target, kept[5].context.number), (Position(1), 3));
    assert_eq!(kept[6].kind, DeliveryKind::Redaction);
    // Nor is it to a late reader, from the tail, from memory or from disk.
    let late = node.open(1, "late", 9);
    node.subscribe(late, &channel, From::Start);
    assert_eq!(node.heard(late)[1], "2 ada: ");
    node.restart(1);
    let late = node.open(0, "late", 9);
    node.subscribe(late, &channel, From::Start);
    assert_eq!(node.heard(late)[..2], ["1 ada: helo", "2 ada: "]);
    assert_eq!(search(&mut node, late, &channel, "secret", 0, 0), (vec![], 0));
}

/// A message that is on disk only is read before it is changed, and what its author writes next waits for that.
#[test]
fn an_old_message_is_changed_in_the_order_of_its_authors_writes() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.publish(ada, "general", 1, "helo");
    node.restart(1);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(0, "bob", 2));
    node.subscribe(bob, "general", From::End);
    let edit = node.send(ada, post("general", 2, PostKind::Edit, 1, "hello"));
    let next = node.send(ada, publish("general", 3, "next"));
    let repeated = node.send(ada, retry("general", 3, "next"));
    let denied = node.send(bob, post("general", 1, PostKind::Redact, 1, ""));
    node.settle();
    for (request, expected) in [(edit, 2), (next, 3), (repeated, 3)] {
        let Some(ServerOp::Published { position, .. }) = node.reply(request) else { panic!("not written") };
        assert_eq!(position, Position(expected));
    }
    assert!(matches!(node.reply(denied), Some(ServerOp::Reject(reject)) if reject.code == RejectCode::Forbidden));
    assert_eq!(node.heard(bob), ["2 ada: hello", "3 ada: next"]);
    node.restart(1);
    node.rotten = true;
    let ada = node.open(0, "ada", 1);
    let edit = node.send(ada, post("general", 4, PostKind::Edit, 1, "hello"));
    let next = node.send(ada, publish("general", 5, "next"));
    node.settle();
    let code = |op| if let Some(ServerOp::Reject(reject)) = op { Some(reject.code) } else { None };
    assert_eq!(code(node.reply(edit)), Some(RejectCode::StorageDamaged));
    assert!(matches!(node.reply(next), Some(ServerOp::Published { .. })), "one that fails does not hold up the next");
}

#[test]
fn search_looks_through_everything_in_steps() {
    let mut node = Node::new(1);
    node.quiet = true;
    let ada = node.open(0, "ada", 1);
    for n in 1..=600 {
        node.publish(ada, "general", n, &format!("{} {n}", if n % 100 == 0 { "Straße" } else { "line" }));
    }
    let all = |node: &mut Node, client, limit| {
        let (mut found, mut before, mut steps) = (Vec::new(), 0, 0);
        loop {
            let (some, next) = search(node, client, "general", "STRASSE".replace("SS", "ß").as_str(), before, limit);
            found.extend(some);
            (before, steps) = (next, steps + 1);
            if next == 0 {
                return (found, steps);
            }
        }
    };
    let expected: Vec<u64> = (1..=6).rev().map(|n| n * 100).collect();
    assert_eq!(all(&mut node, ada, 0), (expected.clone(), 3));
    assert_eq!(all(&mut node, ada, 1).0, expected);
    node.restart(1);
    let ada = node.open(0, "ada", 1);
    assert_eq!(all(&mut node, ada, 0), (expected.clone(), 3), "from disk too");
    assert_eq!(all(&mut node, ada, 2).0, expected);
}

#[test]
fn lists_are_gathered_from_all_cores_in_the_order_of_names() {
    let mut node = Node::new(3);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    let stranger = node.open_as(2, "other", "ada", 3, &["read:*", "write:*"]);
    let channels: BTreeSet<String> = (0..40).map(|n| format!("channel-{n}")).collect();
    for channel in &channels {
        node.call(ada, create(channel, 0, None));
    }
    node.call(bob, join("channel-7"));
    node.call(stranger, private("channel-7"));
    let names = |listed: Vec<ChannelSummary>| listed.iter().map(|of| of.channel.to_string()).collect::<Vec<_>>();
    assert!(names(list(&mut node, ada, false)).iter().eq(channels.iter()));
    assert_eq!(names(list(&mut node, bob, false)), ["channel-7"]);
    assert!(names(list(&mut node, bob, true)).iter().eq(channels.iter()));
    assert_eq!(names(list(&mut node, stranger, true)), ["channel-7"], "of one's own tenant only");
    let (mut after, mut paged) = (String::new(), Vec::new());
    loop {
        let ServerOp::ChannelList { channels, more } =
            node.call(bob, chat(ChatOp::ListChannels { after: after.clone(), limit: 7, all: true }))
        else {
            panic!("a list")
        };
        paged.extend(names(channels));
        after = paged.last().cloned().expect("some");
        if !more {
            break;
        }
    }
    assert!(paged.iter().eq(channels.iter()));
}

#[test]
fn a_channel_that_becomes_private_parts_with_strangers() {
    let mut node = Node::new(2);
    let (ada, bob, eve) = (node.open(0, "ada", 1), node.open(1, "bob", 2), node.open(1, "eve", 3));
    node.call(ada, create("general", 0, None));
    node.call(bob, join("general"));
    node.subscribe(bob, "general", From::End);
    node.subscribe(eve, "general", From::End);
    let kind = Some(ChannelKind::Private);
    let change = ChatOp::SetChannel { channel: name("general"), topic: None, kind, post: None };
    assert_eq!(node.refusal(bob, chat(change.clone())), RejectCode::Forbidden);
    assert_eq!(node.call(ada, chat(change)), ServerOp::Done);
    assert_eq!(node.heard(eve).last().map(String::as_str), Some("ended forbidden"));
    node.publish(ada, "general", 1, "us");
    assert_eq!(node.heard(bob).last().map(String::as_str), Some("3 ada: us"));
    assert!(node.heard(eve).is_empty());
}

#[test]
fn what_was_decided_is_answered_when_it_is_durable() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.call(ada, create("general", 0, None));
    node.late = true;
    let invite = node.request(ada, set_member("general", "bob", Some(MemberRole::Moderator)));
    let again = node.request(ada, set_member("general", "bob", Some(MemberRole::Moderator)));
    let about = node.request(ada, chat(ChatOp::AboutChannel { channel: name("general") }));
    let listed = node.request(ada, chat(ChatOp::ListChannels { after: String::new(), limit: 0, all: false }));
    for request in [invite, again, about, listed] {
        assert_eq!(node.reply(request), None, "nothing shows what may be lost");
    }
    node.commit();
    for request in [invite, again, about, listed] {
        assert!(node.reply(request).is_some());
    }
}

#[test]
fn a_node_short_of_memory_sheds_in_order() {
    let mut node = Node::new(1);
    let ada = node.open(0, "ada", 1);
    node.feed(0, Input::Limits(std::sync::Arc::new(Limits::default())));
    let press = |node: &mut Node, level| node.feed(0, Input::Pressure { level });
    node.subscribe(ada, "general", From::End);
    for (level, reads, writes) in [(1, true, true), (2, false, true), (3, false, false), (0, true, true)] {
        press(&mut node, level);
        let read = node.call(ada, subscribe("general", From::End, Default::default(), 0));
        assert_eq!(matches!(read, ServerOp::Subscribed { .. }), reads, "a new reader at {level}: {read:?}");
        let write = node.call(ada, publish("general", u64::from(level) + 10 * u64::from(level == 0), "x"));
        assert_eq!(matches!(write, ServerOp::Published { .. }), writes, "a write at {level}: {write:?}");
    }
}
