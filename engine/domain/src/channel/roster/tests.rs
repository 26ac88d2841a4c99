use thalweg_protocol::ids::SessionId;

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn person(user: &str) -> Principal {
    let allow = ["read:*", "write:*"].map(|text| text.parse().expect("valid"));
    Principal::new(name("acme"), name(user), SessionId(1), allow.into())
}

fn admin(user: &str) -> Principal {
    let allow = ["read:*", "write:*", "admin:*"].map(|text| text.parse().expect("valid"));
    Principal::new(name("acme"), name(user), SessionId(1), allow.into())
}

/// A channel of ada's with a member of each other role: mod, bob (member), rea (reader), inv (invited), ban (banned).
fn roster(kind: ChannelKind, post: PostRule) -> Roster {
    let mut roster = Roster::default();
    let about = ChannelAbout { kind, topic: "rivers".into(), post };
    Roster::decide_new(&about, &name("ada"), 7).iter().for_each(|fact| roster.set(fact));
    for (user, role) in [
        ("mod", MemberRole::Moderator),
        ("bob", MemberRole::Member),
        ("rea", MemberRole::Reader),
        ("inv", MemberRole::Invited),
        ("ban", MemberRole::Banned),
    ] {
        roster.set(&member_fact(&name(user), Some(role), &name("ada"), 8));
    }
    roster
}

#[test]
fn who_may_read_and_write() {
    let channel = name("general");
    let check = |kind, post, user: &str, read: bool, write: bool| {
        let (roster, person) = (roster(kind, post), person(user));
        assert_eq!(roster.may_read(&person, &channel).is_ok(), read, "{user} reads {kind:?}");
        assert_eq!(roster.may_write(&person, &channel).is_ok(), write, "{user} writes {kind:?} {post:?}");
    };
    use ChannelKind::{Direct, Open, Private};
    use PostRule::{Everyone, Members, Moderators};
    check(Open, Everyone, "eve", true, true);
    check(Open, Members, "eve", true, false);
    check(Open, Members, "bob", true, true);
    check(Open, Moderators, "bob", true, false);
    check(Open, Moderators, "mod", true, true);
    check(Open, Everyone, "rea", true, false);
    check(Open, Everyone, "inv", true, true);
    check(Open, Everyone, "ban", false, false);
    check(Private, Everyone, "eve", false, false);
    check(Private, Everyone, "inv", false, false);
    check(Private, Everyone, "rea", true, false);
    check(Private, Everyone, "bob", true, true);
    check(Private, Moderators, "ada", true, true);
    check(Direct, Everyone, "eve", false, false);
    let outsider = admin("root");
    assert!(roster(Private, Moderators).may_write(&outsider, &channel).is_ok(), "who administers may do everything");
    assert!(roster(Open, Everyone).may_read(&admin("ban"), &channel).is_ok());
}

#[test]
fn who_may_give_which_role_to_whom() {
    let channel = name("general");
    let check = |by: &str, user: &str, role: Option<MemberRole>, expected: Result<bool, RejectCode>| {
        let roster = roster(ChannelKind::Private, PostRule::Everyone);
        let got = roster.decide_member(&person(by), &channel, &name(user), role, 9);
        let got = got.map(|fact| fact.is_some()).map_err(|reject| reject.code);
        assert_eq!(got, expected, "{by} makes {user} {role:?}");
    };
    use MemberRole::{Banned, Invited, Member, Moderator, Owner, Reader};
    use RejectCode::{Forbidden, UserUnknown};
    check("bob", "new", Some(Invited), Ok(true));
    check("rea", "new", Some(Invited), Err(Forbidden));
    check("bob", "new", Some(Member), Err(Forbidden));
    check("eve", "new", Some(Invited), Err(Forbidden));
    check("mod", "new", Some(Reader), Ok(true));
    check("mod", "bob", None, Ok(true));
    check("mod", "bob", Some(Banned), Ok(true));
    check("mod", "bob", Some(Invited), Ok(false));
    check("mod", "ban", None, Ok(true));
    check("mod", "bob", Some(Moderator), Err(Forbidden));
    check("mod", "ada", Some(Banned), Err(Forbidden));
    check("mod", "nobody", None, Err(UserUnknown));
    check("mod", "bob", Some(Member), Ok(false));
    check("ada", "bob", Some(Owner), Ok(true));
    check("ada", "mod", None, Ok(true));
    check("ada", "ada", Some(Member), Err(Forbidden));
    let direct = roster(ChannelKind::Direct, PostRule::Everyone);
    assert!(direct.decide_member(&person("ada"), &channel, &name("new"), Some(Member), 9).is_err());
}

#[test]
fn joining_and_leaving() {
    let channel = name("general");
    let join = |kind, user: &str| {
        let fact = roster(kind, PostRule::Everyone).decide_join(&person(user), &channel, 9);
        fact.map(|fact| fact.is_some()).map_err(|reject| reject.code)
    };
    assert_eq!(join(ChannelKind::Open, "eve"), Ok(true));
    assert_eq!(join(ChannelKind::Open, "bob"), Ok(false));
    assert_eq!(join(ChannelKind::Open, "ban"), Err(RejectCode::Forbidden));
    assert_eq!(join(ChannelKind::Private, "inv"), Ok(true));
    assert_eq!(join(ChannelKind::Private, "eve"), Err(RejectCode::Forbidden));
    let leave = |kind, user: &str| {
        let fact = roster(kind, PostRule::Everyone).decide_leave(&person(user), &channel, 9);
        fact.map(|fact| fact.is_some()).map_err(|reject| reject.code)
    };
    assert_eq!(leave(ChannelKind::Open, "bob"), Ok(true));
    assert_eq!(leave(ChannelKind::Open, "eve"), Ok(false));
    assert_eq!(leave(ChannelKind::Private, "inv"), Ok(true), "an invitation is turned down");
    assert_eq!(leave(ChannelKind::Open, "ada"), Err(RejectCode::Forbidden), "somebody must own it");
    assert_eq!(leave(ChannelKind::Open, "ban"), Err(RejectCode::Forbidden), "a ban is not left");
    assert_eq!(leave(ChannelKind::Direct, "bob"), Err(RejectCode::Forbidden));
    let stranger = roster(ChannelKind::Direct, PostRule::Everyone).decide_join(&admin("root"), &channel, 9);
    assert_eq!(stranger.map_err(|reject| reject.code), Err(RejectCode::Forbidden), "a conversation stays whose it is");
    let fact = Roster::default().decide_join(&admin("root"), &channel, 9).expect("may").expect("new");
    let ChannelFact::Member { member: Some(member), .. } = fact else { panic!("a member") };
    assert_eq!(member.role, MemberRole::Owner, "a channel of older days gets an owner");
}

#[test]
fn what_a_channel_is_changes() {
    let channel = name("general");
    let change = |by: &str, topic: Option<&str>, kind, post| {
        let roster = roster(ChannelKind::Open, PostRule::Everyone);
        let fact = roster.decide_change(&person(by), &channel, topic.map(str::to_owned), kind, post, 9);
        fact.map(|fact| fact.is_some()).map_err(|reject| reject.code)
    };
    assert_eq!(change("mod", Some("lakes"), None, None), Ok(true));
    assert_eq!(change("mod", Some("rivers"), None, None), Ok(false));
    assert_eq!(change("bob", Some("lakes"), None, None), Err(RejectCode::Forbidden));
    assert_eq!(change("mod", None, Some(ChannelKind::Private), None), Err(RejectCode::Forbidden));
    assert_eq!(change("ada", None, Some(ChannelKind::Private), Some(PostRule::Members)), Ok(true));
    assert_eq!(change("ada", None, Some(ChannelKind::Direct), None), Err(RejectCode::ParameterInvalid));
    assert_eq!(change("ada", None, Some(ChannelKind::Document), None), Err(RejectCode::KindMismatch));
}

#[test]
fn what_somebody_may_do_to_a_document() {
    let document = name("plan");
    let check = |user: &str, post, permissions: &[&str], expected: Result<DocumentAccess, RejectCode>| {
        let permissions = permissions.iter().map(|text| text.parse().expect("valid")).collect();
        let principal = Principal { permissions, ..person(user) };
        let got = roster(ChannelKind::Document, post).document_access(&principal, &document);
        assert_eq!(got.map_err(|reject| reject.code), expected, "{user} with {:?}", principal.permissions);
    };
    let (read, comment, write) = ("read:*", "comment:plan", "write:p*");
    check("eve", PostRule::Everyone, &[read], Ok(DocumentAccess::Read));
    check("eve", PostRule::Everyone, &[read, comment], Ok(DocumentAccess::Comment));
    check("eve", PostRule::Everyone, &[read, write], Ok(DocumentAccess::Write));
    check("eve", PostRule::Everyone, &[read, "comment:other", "write:other"], Ok(DocumentAccess::Read));
    check("eve", PostRule::Members, &[read, write], Ok(DocumentAccess::Comment));
    check("bob", PostRule::Members, &[read, write], Ok(DocumentAccess::Write));
    check("rea", PostRule::Everyone, &[read, comment, write], Ok(DocumentAccess::Read));
    check("ban", PostRule::Everyone, &[read, comment, write], Err(RejectCode::Forbidden));
}

#[test]
fn whose_messages_may_be_changed() {
    let (channel, roster) = (name("general"), roster(ChannelKind::Private, PostRule::Everyone));
    let check = |by: &str, author: &str, redact: bool, good: bool| {
        let result = roster.may_amend(&person(by), &channel, &name(author), redact);
        assert_eq!(result.is_ok(), good, "{by} changes {author}'s, redact: {redact}");
    };
    check("bob", "bob", false, true);
    check("bob", "bob", true, true);
    check("bob", "ada", true, false);
    check("mod", "bob", true, true);
    check("mod", "bob", false, false);
    check("eve", "eve", true, false);
}

#[test]
fn members_are_mentioned_as_words() {
    let mut roster = roster(ChannelKind::Open, PostRule::Everyone);
    roster.set(&member_fact(&name("o.k."), Some(MemberRole::Member), &name("ada"), 9));
    let check = |body: &str, expected: &[&str]| {
        let got = roster.mentions(body.as_bytes());
        assert_eq!(got.iter().map(Name::as_str).collect::<Vec<_>>(), expected, "{body:?}");
    };
    check("hello @bob", &["bob"]);
    check("@bob, @ada: look! @bob", &["bob", "ada"]);
    check("@bob's and (@ada)", &[]);
    check("@bobby @nobody mail@bob", &[]);
    check("@o.k. @o.k.", &["o.k."]);
    check("@", &[]);
    check(&"@bob ".repeat(10_000), &["bob"]);
    assert_eq!(roster.mentions(b"\xff @bob"), [name("bob")]);
}

#[test]
fn what_was_read_is_counted() {
    let mut roster = roster(ChannelKind::Open, PostRule::Everyone);
    let bob = name("bob");
    let read = |roster: &mut Roster, position, number, head| {
        let fact = roster.decide_reading(&name("bob"), Position(position), number, Position(head));
        fact.iter().for_each(|fact| roster.set(fact));
        fact.is_some()
    };
    roster.note_mentions(std::slice::from_ref(&bob), Position(5));
    roster.note_mentions(std::slice::from_ref(&bob), Position(7));
    assert_eq!(roster.unread_mentions(&bob, Position(9)), 2);
    assert!(read(&mut roster, 5, 4, 9));
    assert_eq!((roster.unread_mentions(&bob, Position(9)), roster.reading(&bob, Position(9)).number), (1, 4));
    assert!(!read(&mut roster, 4, 3, 9), "nobody unreads");
    assert!(read(&mut roster, 99, 8, 9) && !read(&mut roster, 99, 8, 9), "nobody reads what is not written");
    assert_eq!(roster.reading(&bob, Position(2)), Reading::default(), "the channel began anew");
}

#[test]
fn a_direct_conversation_is_found_by_its_people() {
    let users = |named: &[&str]| direct_users(&name("ada"), named.iter().map(|user| name(user)).collect());
    let (two, same) = (users(&["bob"]).expect("two"), users(&["ada", "bob", "bob"]).expect("the same"));
    assert_eq!(two, same);
    // Golden: conversations on disk are found by these names.
    assert_eq!(direct_name(&two).as_str(), "dm/972517113d659b4d71fbd3383e035cb0");
    assert_ne!(direct_name(&two), direct_name(&users(&["bo", "b"]).expect("three")));
    assert!(users(&["ada"]).is_err() && users(&[]).is_err());
    let many: Vec<String> = (0..DIRECT_USERS_MAX).map(|n| format!("user-{n}")).collect();
    assert!(users(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    let mut roster = Roster::default();
    Roster::decide_direct(&two, &name("ada"), 7).iter().for_each(|fact| roster.set(fact));
    assert!(roster.is_direct_of(&two) && !roster.is_direct_of(&users(&["eve"]).expect("two")));
    assert!(check_name(&direct_name(&two)).is_err() && check_name(&name("dm")).is_ok());
}
