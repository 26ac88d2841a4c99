//! Whatever a few sessions do over a few cores, nobody misses a message.

use std::collections::BTreeMap;

use proptest::prelude::*;
use thalweg_protocol::ids::Subscription;
use thalweg_protocol::op::{From, Policy, ServerOp};

use super::harness::{Client, Node, publish};

const SESSIONS: usize = 4;
const CHANNELS: usize = 3;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Act {
    Publish {
        session: usize,
        channel: usize,
    },
    Subscribe {
        session: usize,
        channel: usize,
        lead: u32,
    },
    /// A reader reports everything it got.
    Consume {
        session: usize,
    },
    /// Whatever is under way arrives.
    Settle,
    Commit,
    Drain {
        session: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let session = 0..SESSIONS;
    prop_oneof![
        5 => (session.clone(), 0..CHANNELS).prop_map(|(session, channel)| Act::Publish { session, channel }),
        1 => (session.clone(), 0..CHANNELS, 1_u32..6)
            .prop_map(|(session, channel, lead)| Act::Subscribe { session, channel, lead }),
        2 => session.clone().prop_map(|session| Act::Consume { session }),
        1 => Just(Act::Settle),
        1 => Just(Act::Commit),
        1 => session.prop_map(|session| Act::Drain { session }),
    ]
}

/// What a subscription has got: positions and bodies.
type Got = Vec<(u64, String)>;

/// What the sessions should know, kept beside the node.
struct Model {
    node: Node,
    clients: Vec<Client>,
    channels: Vec<String>,
    written: u64,
    /// Which channel a subscription reads, and what it has got.
    subscriptions: BTreeMap<(usize, Subscription), (usize, Got)>,
}

impl Model {
    fn new(cores: u16) -> Self {
        let mut node = Node::new(cores);
        let clients = (0..SESSIONS).map(|n| node.open(n as u16 % cores, "ada", 1 + n as u128)).collect();
        let channels = (0..CHANNELS).map(|n| node.channel_on((n as u16 + 1) % cores, n)).collect();
        Self { node, clients, channels, written: 0, subscriptions: BTreeMap::new() }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Publish { session, channel } => {
                self.written += 1;
                let body = format!("{session}");
                self.node.send(self.clients[session], publish(&self.channels[channel], self.written, &body));
            }
            Act::Subscribe { session, channel, lead } => {
                let op = super::harness::subscribe(&self.channels[channel], From::Start, Policy::Replay, lead);
                let request = self.node.send(self.clients[session], op);
                self.subscriptions.insert((session, Subscription(request.0)), (channel, Vec::new()));
            }
            Act::Consume { session } => {
                self.consume(session);
            }
            Act::Settle => self.node.settle(),
            Act::Commit => self.node.commit(),
            Act::Drain { session } => {
                self.node.drain(self.clients[session]);
            }
        }
    }

    /// Reports what came; says whether something did.
    fn consume(&mut self, session: usize) -> bool {
        let delivered = self.node.deliveries(self.clients[session]);
        let any = !delivered.is_empty();
        for (subscription, op) in delivered {
            let ServerOp::Delivery(delivery) = op else { panic!("a reader with policy replay got {op:?}") };
            let (_, got) = self.subscriptions.get_mut(&(session, subscription)).expect("it subscribed");
            got.push((delivery.position.0, String::from_utf8_lossy(&delivery.body).into_owned()));
        }
        let last = self.subscriptions.iter().filter(|((of, _), _)| *of == session);
        let last: Vec<_> = last.filter_map(|(key, (_, got))| Some((key.1, got.last()?.0))).collect();
        for (subscription, position) in last {
            self.node.consumed(self.clients[session], subscription, position);
        }
        any
    }

    /// Everything that is under way arrives, and everybody reads to the end.
    fn finish(&mut self) {
        (self.node.late, self.node.clogged) = (false, false);
        self.node.commit();
        // Everybody has a turn before anybody is asked again.
        while (0..SESSIONS).filter(|&session| self.consume(session)).count() > 0 {}
    }
}

/// The entries of a channel as the log has them: position and writer.
fn logged(trace: &[String], channel: &str) -> Vec<(u64, String)> {
    let appends = trace.iter().filter(|line| line.contains("> Append") && line.contains("Published"));
    let appends = appends.filter(|line| line.contains(&format!("channel: {channel:?}")));
    let field = |line: &str, from: &str| {
        let at = line.find(from).expect("the field is there") + from.len();
        line[at..].split([')', '"']).next().expect("a value").to_owned()
    };
    appends
        .map(|line| (field(line, "position: Position(").parse().expect("a number"), field(line, "body: b\"")))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_replay_reader_gets_exactly_the_others_messages_in_order(
        cores in 1_u16..=3,
        late in any::<bool>(),
        clogged in any::<bool>(),
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut model = Model::new(cores);
        (model.node.late, model.node.clogged) = (late, clogged);
        for act in &acts {
            model.act(act);
        }
        model.finish();
        for ((session, subscription), (channel, got)) in &model.subscriptions {
            let mut expected = logged(&model.node.trace, &model.channels[*channel]);
            prop_assert!(expected.iter().map(|(position, _)| *position).eq(1..=expected.len() as u64));
            expected.retain(|(_, writer)| *writer != session.to_string());
            prop_assert_eq!(got, &expected, "session {}, subscription {}", session, subscription);
        }
        for shard in &model.node.shards {
            prop_assert!(shard.is_idle());
        }
        for client in model.clients.clone() {
            model.node.close(client);
        }
        for gauge in ["sessions", "subscriptions", "channels_read", "appends_pending"] {
            prop_assert_eq!(model.node.gauge(gauge), 0, "{}", gauge);
        }
    }
}
