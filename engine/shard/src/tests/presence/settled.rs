//! Whatever happens in whatever order: once all is quiet, each reader's picture is how things are.

use proptest::prelude::*;

use super::*;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Act {
    Join { client: usize, channel: usize },
    Leave { client: usize },
    Away { client: usize, away: bool },
    Speak { client: usize, channel: usize, bytes: usize },
    Reconnect { client: usize },
    Delete { channel: usize },
    Drain { client: usize },
    Clog { clogged: bool },
    Late { late: bool },
    Pass { ms: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    let (client, channel) = (0..CLIENTS, 0..CHANNELS);
    prop_oneof![
        5 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Act::Join { client, channel }),
        3 => client.clone().prop_map(|client| Act::Leave { client }),
        3 => (client.clone(), any::<bool>()).prop_map(|(client, away)| Act::Away { client, away }),
        2 => (client.clone(), channel.clone(), prop_oneof![Just(8), Just(SESSION_QUEUE_BYTES / 2)])
            .prop_map(|(client, channel, bytes)| Act::Speak { client, channel, bytes }),
        1 => client.clone().prop_map(|client| Act::Reconnect { client }),
        1 => channel.prop_map(|channel| Act::Delete { channel }),
        2 => client.prop_map(|client| Act::Drain { client }),
        1 => any::<bool>().prop_map(|clogged| Act::Clog { clogged }),
        1 => any::<bool>().prop_map(|late| Act::Late { late }),
        4 => prop_oneof![Just(10), Just(PRESENCE_TICK_MS), Just(5_000), Just(PRESENCE_TIMEOUT_MS)]
            .prop_map(|ms| Act::Pass { ms }),
    ]
}

/// A node, its clients, and the pictures they have.
struct Model {
    node: Node,
    clients: Vec<Client>,
    channels: Vec<String>,
    sequence: u64,
    /// Subscriptions that were asked for, and what they see.
    parts: BTreeMap<(usize, Subscription), (usize, Picture)>,
}

impl Model {
    fn new(cores: u16) -> Self {
        let mut node = Node::new(cores);
        node.quiet = true;
        let channels = (0..CHANNELS).map(|n| node.channel_on(n as u16 % cores, n)).collect();
        let mut model = Self { node, clients: Vec::new(), channels, sequence: 0, parts: BTreeMap::new() };
        model.clients = (0..CLIENTS).map(|n| model.open(n)).collect();
        model
    }

    /// Two sessions for each user, on different cores if there are.
    fn open(&mut self, n: usize) -> Client {
        let core = (n % self.node.shards.len()) as u16;
        let everything = &["read:*", "write:*", "admin:*"];
        self.node.open_as(core, "acme", &format!("user-{}", n / 2), 1 + n as u128, everything)
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Join { client, channel } => {
                let request = self.node.send(self.clients[client], take_part(&self.channels[channel]));
                self.parts.insert((client, Subscription(request.0)), (channel, Picture::default()));
            }
            Act::Leave { client } => {
                let part = self.parts.keys().find(|(of, _)| *of == client).copied();
                if let Some((_, subscription)) = part {
                    self.node.send(self.clients[client], leave(subscription));
                    self.parts.remove(&(client, subscription));
                }
            }
            Act::Away { client, away } => {
                self.node.send(self.clients[client], if away { AWAY } else { BACK });
            }
            Act::Speak { client, channel, bytes } => {
                self.sequence += 1;
                let op = publish(&self.channels[channel], self.sequence, &"x".repeat(bytes));
                self.node.send(self.clients[client], op);
            }
            Act::Reconnect { client } => {
                self.node.close(self.clients[client]);
                self.parts.retain(|(of, _), _| *of != client);
                self.clients[client] = self.open(client);
            }
            Act::Delete { channel } => {
                let channel = name(&self.channels[channel]);
                self.node.send(self.clients[0], ClientOp::DeleteChannel { channel });
            }
            Act::Drain { client } => {
                self.node.drain(self.clients[client]);
            }
            Act::Clog { clogged } => self.node.clogged = clogged,
            Act::Late { late } => self.node.late = late,
            Act::Pass { ms } => self.node.pass_ms(ms),
        }
    }

    fn look(&mut self) {
        for n in 0..CLIENTS {
            for (subscription, op) in self.node.deliveries(self.clients[n]) {
                match op {
                    ServerOp::Presence(news) => {
                        let (_, picture) = self.parts.entry((n, subscription)).or_default();
                        picture.take(&news);
                    }
                    ServerOp::Ended(_) => {
                        self.parts.remove(&(n, subscription));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Nothing is in the way any more, and everybody who is connected says so.
    fn calm_down(&mut self) {
        (self.node.late, self.node.clogged) = (false, false);
        self.node.commit();
        for client in self.clients.clone() {
            self.node.drain(client);
            self.node.request(client, ClientOp::Heartbeat);
        }
        for _ in 0..4 {
            tick(&mut self.node);
        }
        // A subscription that was refused, since its channel was about to go, is none.
        for part in self.parts.keys().copied().collect::<Vec<_>>() {
            let answer = self.node.reply(Request(part.1.0));
            if matches!(answer, Some(ServerOp::Reject(_))) {
                self.parts.remove(&part);
            }
        }
        self.look();
    }

    /// Checks that each picture is what the owner says.
    fn check(&mut self) {
        let witness = self.node.open_as(0, "acme", "witness", 1_000, &["read:*", "write:*"]);
        for (channel, key) in self.channels.clone().into_iter().enumerate() {
            self.node.call(witness, publish(&key, 1 + channel as u64 + self.sequence, "there is such a channel"));
            let of_channel = self.parts.iter().filter(|(_, (of, _))| *of == channel);
            let here: BTreeSet<String> = of_channel.clone().map(|((n, _), _)| format!("user-{}", n / 2)).collect();
            let pictures: Vec<_> = of_channel.map(|(_, (_, picture))| picture.clone()).collect();
            let (count, users, complete) = who(&mut self.node, witness, &key);
            let users: BTreeSet<_> = users.into_iter().collect();
            assert_eq!((&users, count as usize, complete), (&here, here.len(), true), "in {key}");
            for picture in &pictures {
                assert_eq!(picture, &pictures[0], "all readers see the same");
                assert_eq!(picture.people.keys().cloned().collect::<BTreeSet<_>>(), here);
                assert_eq!((picture.count as usize, picture.sampled), (here.len(), false));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn once_all_is_quiet_each_picture_is_how_things_are(
        cores in prop_oneof![Just(1_u16), Just(3)],
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut model = Model::new(cores);
        for act in &acts {
            model.act(act);
            model.look();
        }
        model.calm_down();
        model.check();
        for client in model.clients.clone() {
            model.node.close(client);
        }
        tick(&mut model.node);
        prop_assert_eq!(model.node.gauge("people_present"), 0);
        prop_assert_eq!(model.node.gauge("channels_with_presence"), 0);
        prop_assert_eq!(model.node.gauge("users_present"), 0);
    }
}
