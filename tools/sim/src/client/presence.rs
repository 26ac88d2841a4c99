//! Who is there, as clients are told and as it is.

use std::collections::{BTreeMap, BTreeSet};

use thalweg_protocol::chat::{Presence, PresenceState, PresentUser};
use thalweg_protocol::ids::{Name, Subscription};
use thalweg_protocol::limits::PRESENCE_HEARTBEAT_MS;
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_shard::Link;

use crate::faults::Fault;
use crate::world::{Event, World};

/// An answer to who is in a channel, once everything is at rest.
pub(crate) struct PresenceAnswer {
    client: usize,
    channel: u32,
    /// Who was in it when it was asked.
    asked: BTreeSet<Name>,
    seen: BTreeSet<Name>,
}

/// Who is in a channel, as a reader was told.
pub(crate) type Picture = BTreeMap<Name, PresenceState>;

impl World {
    /// A client that takes part in presence says that it is there, if its datagram arrives.
    pub(crate) fn heartbeat(&mut self, client: usize) {
        // Those who observe go on for longer, and see the others go.
        let observer = self.clients[client].observer;
        if self.heartbeats_end_us.is_some_and(|(end, last)| self.now_us >= if observer { last } else { end }) {
            return;
        }
        let takes_part = self.clients[client].readers.values().any(|reader| reader.presence);
        if takes_part {
            self.say_by_datagram(client, ClientOp::Heartbeat);
        }
        let pause = PRESENCE_HEARTBEAT_MS * 1_000;
        let at = self.now_us + pause - self.below(pause / 20);
        self.at(at, Event::Heartbeat { client });
    }

    pub(super) fn type_something(&mut self, client: usize) {
        let readers = &self.clients[client].readers;
        let Some((&number, _)) = readers.iter().find(|(_, reader)| reader.presence && reader.accepted.0) else {
            return;
        };
        let on = self.chance(0.8);
        self.faults.count(Fault::Typed);
        self.say_by_datagram(client, ClientOp::Typing { subscription: Subscription(number), on });
    }

    /// Sends something that may be lost, and that what is sent later may overtake.
    fn say_by_datagram(&mut self, client: usize, op: ClientOp) {
        let Some(link) = self.clients[client].link else { return };
        let sure = self.settling;
        if !sure && self.chance(0.25) {
            return self.faults.count(Fault::DatagramLost);
        }
        self.within(2_000, Event::DatagramToNode { link, op });
    }

    /// A datagram of the node.
    pub(crate) fn datagram_to_client(&mut self, link: Link, number: u32, op: &ServerOp) {
        let Some(wire) = self.wires.get(&link).filter(|wire| wire.in_use) else { return };
        let client = wire.client;
        let ServerOp::TypingNotice { user, .. } = op else {
            return self.violation(format!("client {client}: {op:?} came as a datagram"));
        };
        self.faults.count(Fault::TypingSeen);
        // The subscription may have ended meanwhile.
        let Some(reader) = self.clients[client].readers.get(&number) else { return };
        if !reader.presence {
            self.violation(format!("client {client}: reader {number} is told that {user} types"));
        }
    }

    /// A reader is told who is there.
    pub(super) fn presence_news(&mut self, client: usize, number: u32, news: &Presence) {
        self.faults.count(Fault::PresenceTold);
        let Some(reader) = self.clients[client].readers.get_mut(&number) else { return };
        if !reader.presence {
            return self.violation(format!("client {client}: reader {number} is told who is there"));
        }
        let picture = match (news.full, &mut reader.picture) {
            (true, picture) => picture.insert(Picture::new()),
            (false, Some(picture)) => picture,
            (false, None) => {
                return self
                    .violation(format!("client {client}: reader {number} is told what changed, and not of what"));
            }
        };
        for PresentUser { user, state, .. } in &news.users {
            picture.insert(user.clone(), *state);
        }
        for user in &news.left {
            picture.remove(user);
        }
        let seen = picture.len();
        if !news.sampled && seen != news.count as usize {
            let text = format!("sees {seen} people where {} are", news.count);
            self.violation(format!("client {client}: reader {number} {text}: {news:?}"));
        }
    }

    /// Who takes part in presence in a channel.
    pub(super) fn present(&self, tenant: u8, channel: u32) -> BTreeSet<Name> {
        let in_it = |client: &usize| {
            let own = &self.clients[*client];
            let reads = own.readers.values().any(|r| r.channel == channel && r.presence && r.accepted.0);
            own.tenant == tenant && own.link.is_some() && reads
        };
        (0..self.clients.len()).filter(in_it).map(|client| self.user_name(client)).collect()
    }

    /// What clients were told when all was at rest is what was. The node may end a reader, and the reader hear of it after
    /// somebody else was told that it is gone: so it is judged when all has arrived, and nobody comes in between.
    pub(crate) fn judge_presence_answers(&mut self) {
        for PresenceAnswer { client, channel, asked, seen } in std::mem::take(&mut self.presence_answers) {
            let now = self.present(self.clients[client].tenant, channel);
            let stayed: BTreeSet<Name> = asked.intersection(&now).cloned().collect();
            if !seen.is_superset(&stayed) || !seen.is_subset(&asked) {
                let text = format!("{seen:?} are in {channel}, where {asked:?} were and {stayed:?} stayed");
                self.violation(format!("client {client}: {text}"));
            }
        }
    }

    /// Everybody's picture is what is: who takes part or, once the others are not heard of any more, who observes alone.
    pub(crate) fn judge_presence(&mut self, silent: bool) {
        if self.draining || self.broken {
            return;
        }
        let mut wrong = Vec::new();
        for (client, own) in self.clients.iter().enumerate() {
            for (number, reader) in own.readers.iter().filter(|(_, r)| r.presence && r.accepted.0 && own.link.is_some())
            {
                let expected = match silent {
                    true if own.observer => BTreeSet::from([self.user_name(client)]),
                    true => continue,
                    false => self.present(own.tenant, reader.channel),
                };
                let seen: BTreeSet<Name> = reader.picture.iter().flat_map(BTreeMap::keys).cloned().collect();
                if seen != expected {
                    let what = format!("of {} sees {seen:?} where {expected:?} are", reader.channel);
                    wrong.push(format!("client {client}: reader {number} {what}; silent: {silent}"));
                }
            }
        }
        self.faults.count(Fault::PresenceJudged);
        wrong.into_iter().for_each(|text| self.violation(text));
    }

    /// Who is in a channel, in answer to a question.
    pub(super) fn who_was_in(
        &mut self,
        client: usize,
        (channel, present): (u32, &BTreeSet<Name>),
        count: u32,
        users: &[PresentUser],
        complete: bool,
    ) {
        if !complete || users.len() != count as usize {
            return self
                .violation(format!("client {client}: {} of {count} people of {channel} are named", users.len()));
        }
        if self.asked_everything && !self.draining {
            let seen = users.iter().map(|user| user.user.clone()).collect();
            self.presence_answers.push(PresenceAnswer { client, channel, asked: present.clone(), seen });
        }
    }
}
