use super::*;

const ROOM: ChannelIndex = ChannelIndex(1);
const ADA: Person = Person(1);
const BOB: Person = Person(2);

/// A private channel of Ada's.
fn private() -> People {
    let mut people = People::new();
    let made = people.begin(&Deed::Create { room: ROOM, by: ADA, kind: ChannelKind::Private });
    people.done(made);
    people
}

fn set(people: &mut People, role: Option<MemberRole>) -> DeedId {
    people.begin(&Deed::SetMember { room: ROOM, who: BOB, role })
}

#[test]
fn an_acknowledged_role_is_seen_and_no_other() {
    let mut people = private();
    let before = people.moment();
    let member = set(&mut people, Some(MemberRole::Member));
    people.saw_role(ROOM, BOB, None, before);
    people.saw_role(ROOM, BOB, Some(MemberRole::Member), before);
    people.done(member);
    let after = people.moment();
    people.saw_role(ROOM, BOB, Some(MemberRole::Member), after);
    assert_eq!(people.wrong, []);
    people.saw_role(ROOM, BOB, None, after);
    people.saw_role(ROOM, BOB, Some(MemberRole::Owner), after);
    assert_eq!(people.wrong_count, 2);
}

#[test]
fn nobody_reads_or_writes_after_an_acknowledged_ban() {
    let mut people = private();
    let member = set(&mut people, Some(MemberRole::Member));
    people.done(member);
    let then = people.moment();
    let ban = set(&mut people, Some(MemberRole::Banned));
    people.done(ban);
    let now = people.moment();
    people.shown(ROOM, BOB, Position(1), then);
    people.wrote(ROOM, BOB, then);
    people.refused_write(ROOM, BOB, now);
    assert_eq!(people.wrong, []);
    people.shown(ROOM, BOB, Position(2), now);
    people.wrote(ROOM, BOB, now);
    people.refused_write(ROOM, ADA, now);
    let expected = [
        Wrong::ShownToStranger { room: ROOM, who: BOB, position: Position(2) },
        Wrong::WrittenByStranger { room: ROOM, who: BOB },
        Wrong::RefusedToMember { room: ROOM, who: ADA },
    ];
    assert_eq!(people.wrong, expected);
}

#[test]
fn what_was_not_answered_may_be_or_not_and_what_was_refused_is_not() {
    let mut people = private();
    set(&mut people, Some(MemberRole::Reader));
    let refused = set(&mut people, Some(MemberRole::Moderator));
    people.refused(refused);
    let now = people.moment();
    people.saw_role(ROOM, BOB, None, now);
    people.saw_role(ROOM, BOB, Some(MemberRole::Reader), now);
    people.saw_role(ROOM, BOB, None, now);
    assert_eq!(people.wrong, []);
    people.saw_role(ROOM, BOB, Some(MemberRole::Moderator), now);
    assert_eq!(people.wrong_count, 1);
}

#[test]
fn an_invitation_takes_nothing_from_a_member_and_who_joins_stays_what_they_were() {
    let mut people = private();
    for role in [MemberRole::Moderator, MemberRole::Invited] {
        let deed = set(&mut people, Some(role));
        people.done(deed);
    }
    let joined = people.begin(&Deed::Join { room: ROOM, who: BOB });
    people.done(joined);
    let now = people.moment();
    people.saw_role(ROOM, BOB, Some(MemberRole::Moderator), now);
    assert_eq!(people.wrong, []);
    people.saw_role(ROOM, BOB, Some(MemberRole::Invited), now);
    assert_eq!(people.wrong_count, 1);
}

#[test]
fn read_marks_go_forwards_and_stand_where_they_were_put() {
    let mut people = private();
    for position in [5, 3] {
        let mark = people.begin(&Deed::Read { room: ROOM, who: BOB, position: Position(position) });
        people.done(mark);
    }
    let now = people.moment();
    people.saw_reading(ROOM, BOB, Position(5), now);
    assert_eq!(people.wrong, []);
    people.saw_reading(ROOM, BOB, Position(3), now);
    people.saw_reading(ROOM, BOB, Position(6), now);
    assert_eq!(people.wrong_count, 2);
}

#[test]
fn a_text_that_was_taken_back_stays_away_and_others_stay() {
    let mut people = private();
    let before = people.moment();
    let redaction = people.begin(&Deed::Redact { room: ROOM, position: Position(4) });
    people.saw_no_text(ROOM, Position(4));
    people.done(redaction);
    people.saw_text(ROOM, Position(4), before);
    assert_eq!(people.wrong, []);
    let now = people.moment();
    people.saw_text(ROOM, Position(4), now);
    people.saw_no_text(ROOM, Position(5));
    let expected =
        [Wrong::TextBack { room: ROOM, position: Position(4) }, Wrong::TextGone { room: ROOM, position: Position(5) }];
    assert_eq!(people.wrong, expected);
}

#[test]
fn topics_and_profiles_are_the_last_acknowledged_or_later() {
    let mut people = private();
    let first = people.begin(&Deed::SetTopic { room: ROOM, topic: 7 });
    people.done(first);
    people.begin(&Deed::SetTopic { room: ROOM, topic: 8 });
    let profile = people.begin(&Deed::SetProfile { who: BOB, profile: 1 });
    people.done(profile);
    let now = people.moment();
    people.saw_topic(ROOM, 7, now);
    people.saw_topic(ROOM, 8, now);
    people.saw_profile(BOB, 1, now);
    assert_eq!(people.wrong, []);
    people.saw_topic(ROOM, 0, now);
    people.saw_profile(BOB, 0, now);
    assert_eq!(people.wrong_count, 2);
}
