//! Who is there, as readers see it: whatever happens, once all is quiet each reader's picture is how things are.

mod settled;

use std::collections::{BTreeMap, BTreeSet};

use thalweg_protocol::chat::{ChatOp, MemberRole, Presence, PresenceState, PresentUser};
use thalweg_protocol::ids::{Position, Request, Subscription};
use thalweg_protocol::limits::{
    PRESENCE_LARGE, PRESENCE_LARGE_TICK_MS, PRESENCE_SAMPLE, PRESENCE_TICK_MS, PRESENCE_TIMEOUT_MS, PRESENT_LISTED,
    SESSION_QUEUE_BYTES, TYPING_DISTANCE_MS, TYPING_NOTICES_MAX,
};
use thalweg_protocol::op::{ClientOp, From, Policy, ServerOp, Subscribe};
use thalweg_protocol::reject::RejectCode;

use super::harness::{Client, Node, WALL_US, name, publish, subscribe};

const AWAY: ClientOp = ClientOp::Chat(ChatOp::SetPresence { away: true });
const BACK: ClientOp = ClientOp::Chat(ChatOp::SetPresence { away: false });

/// A subscription that takes part in presence.
fn take_part(channel: &str) -> ClientOp {
    ClientOp::Subscribe(Subscribe {
        channel: name(channel),
        from: From::End,
        policy: Policy::Replay,
        lead: 0,
        make: true,
        presence: true,
    })
}

fn leave(subscription: Subscription) -> ClientOp {
    ClientOp::Unsubscribe { subscription }
}

fn join(node: &mut Node, client: Client, channel: &str) -> Subscription {
    let request = node.request(client, take_part(channel));
    let reply = node.reply(request);
    assert!(matches!(reply, Some(ServerOp::Subscribed { .. })), "{channel}: {reply:?}");
    Subscription(request.0)
}

fn typing(node: &mut Node, client: Client, subscription: Subscription) {
    node.request(client, ClientOp::Typing { subscription, on: true });
}

/// Lets a tick of presence pass, with what follows from it.
fn tick(node: &mut Node) {
    node.pass_ms(PRESENCE_TICK_MS);
}

/// What one reader makes of what it is told, as a client would.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Picture {
    count: u32,
    sampled: bool,
    people: BTreeMap<String, PresenceState>,
}

impl Picture {
    fn take(&mut self, news: &Presence) {
        if news.full {
            self.people.clear();
        }
        (self.count, self.sampled) = (news.count, news.sampled);
        for PresentUser { user, state, .. } in &news.users {
            self.people.insert(user.to_string(), *state);
        }
        for user in &news.left {
            self.people.remove(user.as_str());
        }
    }

    fn line(&self) -> String {
        let person = |(user, state): (&String, &PresenceState)| match state {
            PresenceState::Online => user.clone(),
            other => format!("{user}:{}", other.as_str()),
        };
        self.people.iter().map(person).collect::<Vec<_>>().join(" ")
    }
}

/// The frames of presence that came for a subscription since the last call.
fn told(node: &mut Node, client: Client, subscription: Subscription) -> Vec<Presence> {
    let presence = |(of, op)| match op {
        ServerOp::Presence(presence) if of == subscription => Some(presence),
        _ => None,
    };
    node.deliveries(client).into_iter().filter_map(presence).collect()
}

fn see(node: &mut Node, client: Client, subscription: Subscription, picture: &mut Picture) -> String {
    told(node, client, subscription).iter().for_each(|news| picture.take(news));
    picture.line()
}

fn who(node: &mut Node, client: Client, channel: &str) -> (u32, Vec<String>, bool) {
    match node.call(client, ClientOp::Chat(ChatOp::WhoIsIn { channel: name(channel) })) {
        ServerOp::PresenceReport { count, users, complete } => {
            (count, users.iter().map(|user| user.user.to_string()).collect(), complete)
        }
        other => panic!("expected who is there, got {other:?}"),
    }
}

fn profile(node: &mut Node, client: Client, user: &str) -> (PresenceState, u64) {
    match node.call(client, ClientOp::Chat(ChatOp::GetProfile { user: name(user) })) {
        ServerOp::ProfileReport(report) => (report.state, report.seen_us),
        other => panic!("expected a profile, got {other:?}"),
    }
}

#[test]
fn readers_see_who_comes_goes_and_is_away() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let channel = node.channel_on(0, 0);
        let ada = node.open(0, "ada", 1);
        let bob = node.open(1 % cores, "bob", 2);
        let (mut by_ada, mut by_bob) = (Picture::default(), Picture::default());
        let ada_in = join(&mut node, ada, &channel);
        tick(&mut node);
        assert_eq!(see(&mut node, ada, ada_in, &mut by_ada), "ada", "one sees oneself, {cores} cores");
        let bob_in = join(&mut node, bob, &channel);
        tick(&mut node);
        assert_eq!(see(&mut node, bob, bob_in, &mut by_bob), "ada bob");
        let news = told(&mut node, ada, ada_in);
        assert_eq!(news.len(), 1, "{news:?}");
        assert!(!news[0].full && news[0].users.len() == 1, "who is up to date is told what is new: {news:?}");
        assert_eq!(news[0].users[0].since_us, WALL_US + PRESENCE_TICK_MS * 1_000);
        by_ada.take(&news[0]);
        assert_eq!(node.call(bob, AWAY), ServerOp::Done);
        tick(&mut node);
        assert_eq!(see(&mut node, ada, ada_in, &mut by_ada), "ada bob:away");
        assert_eq!(who(&mut node, ada, &channel), (2, vec!["ada".into(), "bob".into()], true));
        assert_eq!(profile(&mut node, ada, "bob").0, PresenceState::Away);
        assert_eq!(node.call(bob, leave(bob_in)), ServerOp::Done);
        tick(&mut node);
        assert_eq!(see(&mut node, ada, ada_in, &mut by_ada), "ada");
        assert_eq!(profile(&mut node, ada, "bob").0, PresenceState::Away, "still connected");
        node.close(bob);
        assert_eq!(profile(&mut node, ada, "bob"), (PresenceState::Offline, node.now.wall_us));
        node.close(ada);
        tick(&mut node);
        let gauges = ["people_present", "channels_with_presence", "users_present"];
        assert_eq!(gauges.map(|gauge| node.gauge(gauge)), [0; 3], "nothing stays behind");
    }
}

#[test]
fn a_user_is_there_as_long_as_one_session_is() {
    let mut node = Node::new(3);
    let channel = node.channel_on(0, 0);
    let eve = node.open(0, "eve", 9);
    let eve_in = join(&mut node, eve, &channel);
    let desk = node.open(1, "ada", 1);
    let phone = node.open(2, "ada", 2);
    let tablet = node.open(2, "ada", 3);
    let desk_in = join(&mut node, desk, &channel);
    let [_, tablet_in] = [phone, tablet].map(|client| join(&mut node, client, &channel));
    node.call(phone, AWAY);
    tick(&mut node);
    let mut picture = Picture::default();
    assert_eq!(see(&mut node, eve, eve_in, &mut picture), "ada eve");
    assert_eq!(picture.count, 2, "people are counted, not sessions");
    node.call(desk, leave(desk_in));
    tick(&mut node);
    assert!(told(&mut node, eve, eve_in).is_empty(), "she is still online at the tablet");
    node.call(tablet, leave(tablet_in));
    tick(&mut node);
    assert_eq!(see(&mut node, eve, eve_in, &mut picture), "ada:away eve");
    node.close(phone);
    tick(&mut node);
    assert_eq!(see(&mut node, eve, eve_in, &mut picture), "eve");
    assert_eq!(profile(&mut node, eve, "ada").0, PresenceState::Online, "the desk goes on");
    node.close(desk);
    node.close(tablet);
    assert_eq!(profile(&mut node, eve, "ada").0, PresenceState::Offline);
}

#[test]
fn who_takes_no_part_is_neither_seen_nor_told() {
    let mut node = Node::new(2);
    let channel = node.channel_on(1, 0);
    let (ada, bob) = (node.open(0, "ada", 1), node.open(1, "bob", 2));
    node.subscribe(ada, &channel, From::End);
    let bob_in = join(&mut node, bob, &channel);
    tick(&mut node);
    let mut picture = Picture::default();
    assert_eq!(see(&mut node, bob, bob_in, &mut picture), "bob");
    assert!(node.deliveries(ada).is_empty());
    assert_eq!(profile(&mut node, bob, "ada"), (PresenceState::Offline, 0), "she said nothing of presence");
    node.request(ada, ClientOp::Heartbeat);
    assert_eq!(profile(&mut node, bob, "ada").0, PresenceState::Online, "now she did");
}

#[test]
fn who_is_silent_counts_as_gone_until_heard_again() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let channel = node.channel_on(0, 0);
        let (ada, bob) = (node.open(1 % cores, "ada", 1), node.open(2 % cores, "bob", 2));
        let (mut by_ada, mut by_bob) = (Picture::default(), Picture::default());
        let (ada_in, bob_in) = (join(&mut node, ada, &channel), join(&mut node, bob, &channel));
        tick(&mut node);
        assert_eq!(see(&mut node, ada, ada_in, &mut by_ada), "ada bob");
        assert_eq!(see(&mut node, bob, bob_in, &mut by_bob), "ada bob");
        // Two of bob's heartbeats are lost, which is no absence; then he is heard no more.
        for ms in [PRESENCE_TIMEOUT_MS - 1_000, 2_000] {
            node.request(ada, ClientOp::Heartbeat);
            node.pass_ms(ms / 2);
            node.request(ada, ClientOp::Heartbeat);
            node.pass_ms(ms / 2);
            let expected = if ms > 2_000 { "ada bob" } else { "ada" };
            tick(&mut node);
            assert_eq!(see(&mut node, ada, ada_in, &mut by_ada), expected, "after {ms} ms");
        }
        assert_eq!(profile(&mut node, ada, "bob").0, PresenceState::Offline);
        assert!(told(&mut node, bob, bob_in).is_empty(), "who is gone is told nothing");
        node.call(ada, AWAY);
        tick(&mut node);
        // Anything he says brings him back, and he learns what he missed.
        node.request(bob, ClientOp::Consumed { subscription: bob_in, position: Position(0) });
        tick(&mut node);
        assert_eq!(see(&mut node, bob, bob_in, &mut by_bob), "ada:away bob");
        assert_eq!(see(&mut node, ada, ada_in, &mut by_ada), "ada:away bob");
        let timeouts: u64 = node.shards.iter().map(|shard| shard.counters().presence_timeouts).sum();
        assert_eq!(timeouts, 1);
    }
}

#[test]
fn a_reader_whose_queue_is_full_gets_a_whole_picture_later() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let channel = node.channel_on(0, 0);
        let slow = node.open(1 % cores, "slow", 1);
        let slow_in = join(&mut node, slow, &channel);
        tick(&mut node);
        let mut picture = Picture::default();
        assert_eq!(see(&mut node, slow, slow_in, &mut picture), "slow");
        node.clogged = true;
        let ada = node.open(0, "ada", 2);
        let body = "x".repeat(SESSION_QUEUE_BYTES / 4);
        for n in 1..=5 {
            node.publish(ada, &channel, n, &body);
        }
        let ada_in = join(&mut node, ada, &channel);
        tick(&mut node);
        node.call(ada, AWAY);
        tick(&mut node);
        assert!(told(&mut node, slow, slow_in).is_empty(), "there is no room for it");
        node.call(ada, leave(ada_in));
        tick(&mut node);
        join(&mut node, ada, &channel);
        node.drain(slow);
        tick(&mut node);
        let news = told(&mut node, slow, slow_in);
        assert!(news.len() == 1 && news[0].full, "one whole picture, and nothing of what it missed: {news:?}");
        picture.take(&news[0]);
        assert_eq!(picture.line(), "ada:away slow");
        let skipped: u64 = node.shards.iter().map(|shard| shard.counters().presence_skipped).sum();
        assert!(skipped >= 1, "{skipped}");
    }
}

#[test]
fn a_large_channel_is_told_by_a_sample_and_rarely() {
    let mut node = Node::in_memory(2);
    node.quiet = true;
    let channel = node.channel_on(1, 0);
    let first = node.open(0, "a-first", 1);
    let first_in = join(&mut node, first, &channel);
    let mut picture = Picture::default();
    let mut others = Vec::new();
    for n in 0..3 * PRESENCE_LARGE {
        let client = node.open((n % 2) as u16, &format!("user-{n:04}"), 100 + n as u128);
        others.push((client, join(&mut node, client, &channel)));
    }
    tick(&mut node);
    see(&mut node, first, first_in, &mut picture);
    assert_eq!((picture.count as usize, picture.people.len()), (3 * PRESENCE_LARGE + 1, PRESENCE_SAMPLE));
    assert!(picture.sampled);
    // Whatever happens within one long tick comes as one frame.
    for (client, subscription) in others.drain(..PRESENCE_LARGE) {
        node.request(client, leave(subscription));
        tick(&mut node);
    }
    let ticks = PRESENCE_LARGE as u64 * PRESENCE_TICK_MS / PRESENCE_LARGE_TICK_MS + 1;
    let news = told(&mut node, first, first_in);
    assert!(news.len() as u64 <= ticks, "{} frames in {ticks} ticks", news.len());
    let most = news.iter().map(|news| news.users.len().max(news.left.len())).max();
    assert!(most <= Some(PRESENCE_SAMPLE), "{most:?}");
    node.pass_ms(PRESENCE_LARGE_TICK_MS);
    news.iter().for_each(|news| picture.take(news));
    see(&mut node, first, first_in, &mut picture);
    assert_eq!((picture.count as usize, picture.people.len()), (2 * PRESENCE_LARGE + 1, PRESENCE_SAMPLE));
    let (count, users, complete) = who(&mut node, first, &channel);
    assert_eq!((count as usize, users.len(), complete), (2 * PRESENCE_LARGE + 1, 2 * PRESENCE_LARGE + 1, true));
    let there: BTreeSet<_> = users.into_iter().collect();
    assert!(picture.people.keys().all(|user| there.contains(user)), "nobody is shown who is gone");
    // When it is small again, everybody is named.
    for (client, subscription) in others.drain(5..) {
        node.request(client, leave(subscription));
    }
    for _ in 0..2 {
        node.pass_ms(PRESENCE_LARGE_TICK_MS);
    }
    see(&mut node, first, first_in, &mut picture);
    assert_eq!((picture.count, picture.people.len(), picture.sampled), (6, 6, false));
    const { assert!(3 * PRESENCE_LARGE < PRESENT_LISTED, "the list above is complete") };
}

#[test]
fn deleted_and_private_channels_are_left_by_all_who_must() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let channel = node.channel_on(0, 0);
        let admin = node.open_as(0, "acme", "root", 1, &["read:*", "write:*", "admin:*"]);
        let ada = node.open(1 % cores, "ada", 2);
        let admin_in = join(&mut node, admin, &channel);
        join(&mut node, ada, &channel);
        tick(&mut node);
        let mut picture = Picture::default();
        assert_eq!(see(&mut node, admin, admin_in, &mut picture), "ada root");
        let ban = ChatOp::SetMember { channel: name(&channel), user: name("ada"), role: Some(MemberRole::Banned) };
        assert_eq!(node.call(admin, ClientOp::Chat(ban)), ServerOp::Done);
        tick(&mut node);
        assert_eq!(see(&mut node, admin, admin_in, &mut picture), "root", "who is banned is gone");
        assert_eq!(node.refusal(ada, take_part(&channel)), RejectCode::Forbidden);
        let asks = ClientOp::Chat(ChatOp::WhoIsIn { channel: name(&channel) });
        assert_eq!(node.refusal(ada, asks), RejectCode::Forbidden);
        assert_eq!(node.call(admin, ClientOp::DeleteChannel { channel: name(&channel) }), ServerOp::Done);
        assert_eq!((node.gauge("people_present"), node.gauge("channels_with_presence")), (0, 0));
        // A new channel of that name begins with nobody in it.
        let bob = node.open(2 % cores, "bob", 3);
        let bob_in = join(&mut node, bob, &channel);
        tick(&mut node);
        assert_eq!(see(&mut node, bob, bob_in, &mut Picture::default()), "bob");
    }
}

#[test]
fn tenants_do_not_see_each_other() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let everything = &["read:*", "write:*", "admin:*"];
        let ours = node.open_as(0, "acme", "ada", 1, everything);
        let theirs = node.open_as(0, "other", "bob", 1, everything);
        let (ours_in, theirs_in) = (join(&mut node, ours, "room"), join(&mut node, theirs, "room"));
        typing(&mut node, theirs, theirs_in);
        tick(&mut node);
        assert_eq!(see(&mut node, ours, ours_in, &mut Picture::default()), "ada");
        assert_eq!(see(&mut node, theirs, theirs_in, &mut Picture::default()), "bob");
        assert_eq!(who(&mut node, ours, "room"), (1, vec!["ada".into()], true));
        assert_eq!(profile(&mut node, ours, "bob"), (PresenceState::Offline, 0));
        assert!(node.datagrams.is_empty());
    }
}

#[test]
fn typing_is_told_to_the_others_and_not_too_often() {
    for cores in [1, 3] {
        let mut node = Node::new(cores);
        let channel = node.channel_on(0, 0);
        let ada = node.open(0, "ada", 1);
        let (phone, bob) = (node.open(1 % cores, "ada", 2), node.open(2 % cores, "bob", 3));
        let mute = node.open_as(0, "acme", "mute", 4, &["read:*"]);
        let ada_in = join(&mut node, ada, &channel);
        let [phone_in, bob_in, mute_in] = [phone, bob, mute].map(|client| join(&mut node, client, &channel));
        let plain = node.subscribe(ada, &channel, From::End);
        typing(&mut node, ada, ada_in);
        let notice = |subscription| vec![(subscription, ServerOp::TypingNotice { user: name("ada"), on: true })];
        let told = std::mem::take(&mut node.datagrams);
        let expected = [(phone, phone_in), (bob, bob_in), (mute, mute_in)];
        assert_eq!(told, expected.map(|(client, subscription)| (client, notice(subscription))).into(), "{cores} cores");
        // Too soon, in a subscription that takes no part, in one that there is not, and by somebody who may not write.
        for (client, subscription) in [(ada, ada_in), (ada, plain), (bob, Subscription(999)), (mute, mute_in)] {
            typing(&mut node, client, subscription);
        }
        assert!(node.datagrams.is_empty(), "{:?}", node.datagrams);
        let dropped: u64 = node.shards.iter().map(|shard| shard.counters().typing_dropped).sum();
        assert_eq!(dropped, 4);
        node.pass_ms(TYPING_DISTANCE_MS);
        typing(&mut node, ada, ada_in);
        assert_eq!(node.datagrams.len(), 3);
        assert!(node.records.iter().all(|record| record.event.posting().is_none()), "typing is not logged");
    }
}

#[test]
fn typing_in_a_crowd_is_bounded() {
    let mut node = Node::in_memory(1);
    node.quiet = true;
    let people = PRESENCE_LARGE + 1;
    let clients: Vec<_> = (0..people).map(|n| node.open(0, &format!("user-{n}"), 1 + n as u128)).collect();
    let parts: Vec<_> = clients.iter().map(|&client| (client, join(&mut node, client, "room"))).collect();
    typing(&mut node, parts[0].0, parts[0].1);
    assert!(node.datagrams.is_empty(), "nobody is told in a large channel");
    node.close(parts[people - 1].0);
    node.pass_ms(TYPING_DISTANCE_MS);
    for &(client, part) in &parts[..people - 1] {
        typing(&mut node, client, part);
    }
    let told: usize = node.datagrams.values().map(Vec::len).sum();
    assert_eq!(told, TYPING_NOTICES_MAX as usize * (people - 2));
}

/// Presence is a small part of what 10,000 users in 1,000 channels get; here a tenth of that.
#[test]
fn presence_is_a_tenth_of_the_traffic_at_most() {
    const USERS: usize = 1_000;
    const CHANNELS: usize = 100;
    let mut node = Node::in_memory(1);
    node.quiet = true;
    let clients: Vec<_> = (0..USERS).map(|n| node.open(0, &format!("user-{n}"), 1 + n as u128)).collect();
    let mut parts: Vec<_> = Vec::new();
    for (n, &client) in clients.iter().enumerate() {
        parts.push(join(&mut node, client, &format!("channel-{}", n % CHANNELS)));
    }
    // A minute in which each channel gets a message a second, and somebody comes and goes every second.
    let (mut sequence, body) = (0, "a message of an ordinary length, as people write them");
    for second in 0..60 {
        for (n, &client) in clients.iter().enumerate().take(CHANNELS) {
            sequence += 1;
            node.publish(client, &format!("channel-{n}"), sequence, body);
        }
        let n = second * 7 % USERS;
        node.call(clients[n], leave(parts[n]));
        node.pass_ms(500);
        parts[n] = join(&mut node, clients[n], &format!("channel-{}", n % CHANNELS));
        node.pass_ms(500);
        for &client in &clients {
            node.deliveries(client);
            if second % 15 == 0 {
                node.request(client, ClientOp::Heartbeat);
            }
        }
    }
    let counters = node.shards[0].counters();
    let (presence, all) = (counters.presence_bytes, counters.delivered_bytes);
    assert!(presence * 10 <= all, "{presence} of {all} bytes are presence");
    assert!(counters.presence_frames > 120, "{}", counters.presence_frames);
}

const CLIENTS: usize = 6;
const CHANNELS: usize = 2;

#[test]
fn a_plain_subscription_is_no_part() {
    let mut node = Node::new(1);
    let client = node.open(0, "ada", 1);
    let request = node.request(client, subscribe("room", From::End, Policy::Replay, 0));
    assert!(matches!(node.reply(request), Some(ServerOp::Subscribed { .. })));
    tick(&mut node);
    assert_eq!((node.gauge("users_present"), node.gauge("people_present")), (0, 0));
}
