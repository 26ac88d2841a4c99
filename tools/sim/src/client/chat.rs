//! What clients do beside writing and reading: they join and leave, invite and ban, edit, take back, react, mark what they
//! read, say who they are, and look for things.

use std::collections::BTreeSet;

use bytes::Bytes;
use thalweg_domain::channel::direct_name;
use thalweg_protocol::chat::{ChannelKind, ChatOp, MemberRole, Post, PostKind, ProfileText};
use thalweg_protocol::ids::{Name, Position, Sequence};
use thalweg_protocol::op::{ClientOp, Delivery, DeliveryKind, ServerOp};
use thalweg_shard::Link;
use thalweg_workload::auditor::people::{Deed, DeedId, Moment, Person};
use thalweg_workload::auditor::{BodyHash, ChannelIndex};

use super::Asked;
use super::channels::{DIRECT, Kind, content, kind};
use crate::faults::Fault;
use crate::world::World;

/// Messages of a channel that clients remember, to do something with.
const KNOWN_MAX: usize = 48;
/// Direct conversations of a run.
const DIRECTS_MAX: usize = 3;
/// How long a core may take to learn that a text was taken back, beside the way there, in microseconds.
const LATE_US: u64 = 5_000;

/// A message that somebody was shown.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    position: Position,
    /// How many messages there were with it.
    number: u64,
    /// Who wrote it; nobody, if a model did or it is something else than a message.
    author: Option<Name>,
}

/// What a question about people asked for.
#[derive(Debug)]
pub(super) enum ChatAsked {
    /// A change.
    Deed(DeedId),
    /// A direct conversation of the users of this number.
    Direct {
        channel: u32,
        deed: DeedId,
        since: Moment,
    },
    About {
        channel: u32,
        since: Moment,
    },
    List {
        all: bool,
        since: Moment,
    },
    Profile {
        user: u32,
        since: Moment,
    },
    /// Who is in a channel; who was when that was asked.
    WhoIsIn {
        channel: u32,
        present: BTreeSet<Name>,
    },
    /// A search; what was found so far, if all of it is to be found.
    Search {
        channel: u32,
        query: String,
        before: Position,
        since: Moment,
        found: Option<Vec<Position>>,
    },
}

/// What a delivery of a write is.
pub(super) fn delivery_kind(kind: PostKind) -> DeliveryKind {
    match kind {
        PostKind::Message => DeliveryKind::Message,
        PostKind::Edit => DeliveryKind::Edit,
        PostKind::Redact => DeliveryKind::Redaction,
        PostKind::React => DeliveryKind::Reaction,
        PostKind::Unreact => DeliveryKind::Unreaction,
        PostKind::Update | PostKind::Operations | PostKind::Restore => DeliveryKind::Update,
        PostKind::Version => DeliveryKind::Version,
    }
}

fn user_name(user: u32) -> Name {
    Name::new(&format!("user-{user}")).expect("a valid name")
}

/// The number of a user by name.
pub(super) fn user_number(name: &Name) -> Option<u32> {
    name.as_str().strip_prefix("user-")?.parse().ok()
}

impl World {
    pub(super) fn user_name(&self, client: usize) -> Name {
        user_name(self.clients[client].user)
    }

    /// The auditor's number of a user of a client's tenant.
    pub(super) fn person_of(&self, client: usize, user: u32) -> Person {
        Person(1_000 * u32::from(self.clients[client].tenant) + user)
    }

    pub(super) fn person(&self, client: usize) -> Person {
        self.person_of(client, self.clients[client].user)
    }

    /// A user of a client's tenant; sometimes one that nobody ever was.
    fn any_user(&mut self, client: usize) -> u32 {
        let tenant = self.clients[client].tenant;
        let mut users: Vec<u32> = self.clients.iter().filter(|c| c.tenant == tenant).map(|c| c.user).collect();
        users.push(9);
        users[self.below(users.len() as u64) as usize]
    }

    /// Does one thing of this module.
    pub(super) fn socialise(&mut self, client: usize) {
        match self.below(100) {
            0..14 => self.amend(client, PostKind::Edit),
            14..22 => self.amend(client, PostKind::Redact),
            22..32 => {
                self.amend(client, if self.now_us.is_multiple_of(3) { PostKind::Unreact } else { PostKind::React })
            }
            32..44 => self.mark_read(client),
            44..50 => self.list(client),
            50..55 => self.about_one(client),
            55..60 => self.set_profile(client),
            60..64 => self.ask_profile(client),
            64..70 => self.join_or_leave(client),
            70..80 => self.set_member(client),
            80..84 => self.set_channel(client),
            84..88 => self.open_direct(client),
            88..93 => self.search_some(client),
            93..95 => self.who_is_in(client),
            95..97 => self.set_presence(client),
            _ => self.type_something(client),
        }
    }

    /// To what a new message answers, and whom it mentions.
    pub(super) fn speak(&mut self, client: usize, channel: u32) -> (Post, String) {
        let kept = matches!(kind(channel), Kind::Disk | Kind::Club);
        let mut post = Post::default();
        if kept
            && self.chance(0.1)
            && let Some(known) = self.any_known(client, channel, |_| true)
        {
            post.target = known.position;
        }
        let name = if self.chance(0.15) { format!("@{} ", user_name(self.any_user(client))) } else { String::new() };
        (post, name)
    }

    fn any_known(&mut self, client: usize, channel: u32, fits: impl Fn(&Known) -> bool) -> Option<Known> {
        let known = self.known.get(&(self.clients[client].tenant, channel))?;
        let fitting: Vec<Known> = known.iter().filter(|known| fits(known)).cloned().collect();
        let at = self.pick(fitting.len())?;
        fitting.get(at).cloned()
    }

    /// Remembers a message that somebody was shown.
    pub(super) fn learn(&mut self, client: usize, channel: u32, delivery: &Delivery) {
        if !matches!(kind(channel), Kind::Disk | Kind::Club) {
            return;
        }
        let (position, number) = (delivery.position, delivery.context.number);
        let index = self.index_for(client, channel);
        let before = self.numbers.insert((index, position), number);
        if before.is_some_and(|before| before != number) {
            self.violation(format!("client {client}: {position} of {channel} is message {number}, and was {before:?}"));
        }
        let plain = delivery.kind == DeliveryKind::Message && delivery.generation.is_none();
        let author = (plain && !delivery.context.redacted).then(|| delivery.user.clone());
        let known = self.known.entry((self.clients[client].tenant, channel)).or_default();
        if known.iter().any(|known| known.position == position) {
            return;
        }
        known.push_back(Known { position, number, author });
        if known.len() > KNOWN_MAX {
            known.pop_front();
        }
    }

    /// Judges whether a client may be shown a message, and its text.
    pub(super) fn judge_text(&mut self, client: usize, channel: u32, since: Moment, delivery: &Delivery) {
        if !matches!(kind(channel), Kind::Disk | Kind::Club) {
            return;
        }
        let (index, position, context) = (self.index_for(client, channel), delivery.position, &delivery.context);
        let meant = if delivery.kind == DeliveryKind::Edit { context.target } else { position };
        if context.redacted {
            self.people.saw_no_text(index, meant);
            if !delivery.body.is_empty() {
                self.violation(format!("client {client}: {position} of {channel} was taken back and has a text"));
            }
        } else if matches!(delivery.kind, DeliveryKind::Message | DeliveryKind::Edit) {
            self.people.saw_text(index, meant, since);
        }
        if kind(channel) == Kind::Club && !self.clients[client].admin {
            let hash = content(delivery.kind, context.target, &delivery.user, &delivery.body);
            if let Some(&sent) = self.sent_at.get(&hash) {
                let who = self.person(client);
                self.people.shown(index, who, position, sent);
            }
        }
    }

    /// A text that was taken back is not handed to any connection, once every core must know that it was.
    pub(crate) fn judge_late_text(&mut self, link: Link, number: u32, payload: &Bytes) {
        if self.taken_back.is_empty() {
            return;
        }
        let Some(client) = self.wires.get(&link).map(|wire| wire.client) else { return };
        let Some(channel) = self.clients[client].readers.get(&number).map(|reader| reader.channel) else { return };
        if self.clients[client].link != Some(link) || !matches!(kind(channel), Kind::Disk | Kind::Club) {
            return;
        }
        let index = self.index_for(client, channel);
        let Ok(ServerOp::Delivery(delivery)) = ServerOp::decode(payload) else { return };
        let meant = if delivery.kind == DeliveryKind::Edit { delivery.context.target } else { delivery.position };
        let said = matches!(delivery.kind, DeliveryKind::Message | DeliveryKind::Edit) && !delivery.context.redacted;
        let Some(&since_us) = self.taken_back.get(&(index, meant)).filter(|_| said) else { return };
        if self.now_us > since_us + 2 * self.node.mesh_us + LATE_US {
            self.violation(format!("client {client}: {meant} of {channel} was taken back and is handed out again"));
        }
    }

    /// The text of a message was taken back, and its client knows.
    pub(super) fn note_taken_back(&mut self, index: ChannelIndex, target: Position) {
        let now_us = self.now_us;
        self.taken_back.entry((index, target)).or_insert(now_us);
    }

    /// A client that may not read a channel for certain must not be accepted as its reader.
    pub(super) fn judge_reader(&mut self, client: usize, channel: u32, since: Moment) {
        if kind(channel) == Kind::Club && !self.clients[client].admin {
            let (index, who) = (self.index_for(client, channel), self.person(client));
            self.people.shown(index, who, Position(0), since);
        }
    }

    /// A client was refused in a channel with members.
    pub(super) fn refused_in_club(&mut self, client: usize, channel: u32, since: Moment) {
        self.faults.count(Fault::StrangerRefused);
        let (index, who) = (self.index_for(client, channel), self.person(client));
        if self.clients[client].admin {
            return self.violation(format!("client {client}, who administers it, was refused in {channel}"));
        }
        self.people.refused_write(index, who, since);
    }

    /// Writes something about another message.
    fn amend(&mut self, client: usize, what: PostKind) {
        let channel = self.any_kept(client);
        let (own, admin) = (self.user_name(client), self.clients[client].admin);
        let index = self.index_for(client, channel);
        let fits = |known: &Known| match (what, &known.author) {
            (PostKind::Edit, author) => author.as_ref() == Some(&own),
            (PostKind::Redact, Some(author)) => admin || *author == own,
            (_, author) => author.is_some(),
        };
        let Some(Known { position: target, .. }) = self.any_known(client, channel, fits) else { return };
        if what == PostKind::Redact && !self.redactions.insert((index, target)) {
            return;
        }
        self.clients[client].sequences += 1;
        let (session, sequence) = (self.clients[client].session, self.clients[client].sequences);
        let (body, fault) = match what {
            PostKind::Redact => (String::new(), Fault::TookBack),
            PostKind::Edit => (format!("{} {sequence} edited", session.0), Fault::Edited),
            _ => (format!("r{:x}-{sequence}", session.0), Fault::Reacted),
        };
        self.faults.count(fault);
        let deed =
            (what == PostKind::Redact).then(|| self.people.begin(&Deed::Redact { room: index, position: target }));
        self.write(client, channel, Sequence(sequence), Bytes::from(body), Post { kind: what, target }, deed);
    }

    fn chat(&mut self, client: usize, op: ChatOp, asked: ChatAsked) {
        self.request(client, &ClientOp::Chat(op), Asked::Chat(asked));
    }

    /// Asks for a change.
    fn do_deed(&mut self, client: usize, deed: &Deed, op: ChatOp) {
        self.note(format_args!("client {client}: {deed:?}"));
        let deed = self.people.begin(deed);
        self.chat(client, op, ChatAsked::Deed(deed));
    }

    fn mark_read(&mut self, client: usize) {
        let channel = self.any_kept(client);
        let Some(Known { position, number, .. }) = self.any_known(client, channel, |_| true) else { return };
        self.faults.count(Fault::MarkedRead);
        let (room, who) = (self.index_for(client, channel), self.person(client));
        let op = ChatOp::MarkRead { channel: self.name_of(channel), position, number };
        self.do_deed(client, &Deed::Read { room, who, position }, op);
    }

    fn list(&mut self, client: usize) {
        let (all, since) = (self.chance(0.4), self.people.moment());
        self.list_channels(client, all, since);
    }

    fn list_channels(&mut self, client: usize, all: bool, since: Moment) {
        let op = ChatOp::ListChannels { after: String::new(), limit: 0, all };
        self.chat(client, op, ChatAsked::List { all, since });
    }

    fn about_one(&mut self, client: usize) {
        let channel = self.any_kept(client);
        self.about(client, channel);
    }

    fn about(&mut self, client: usize, channel: u32) {
        let since = self.people.moment();
        let op = ChatOp::AboutChannel { channel: self.name_of(channel) };
        self.chat(client, op, ChatAsked::About { channel, since });
    }

    fn set_profile(&mut self, client: usize) {
        let display = format!("p{}", self.fresh_number());
        let (who, profile) = (self.person(client), BodyHash::of(display.as_bytes()).0);
        let op = ChatOp::SetProfile(ProfileText { display, ..ProfileText::default() });
        self.faults.count(Fault::ProfileSet);
        self.do_deed(client, &Deed::SetProfile { who, profile }, op);
    }

    fn ask_profile(&mut self, client: usize) {
        let user = self.any_user(client);
        self.profile_of(client, user);
    }

    fn profile_of(&mut self, client: usize, user: u32) {
        let since = self.people.moment();
        self.chat(client, ChatOp::GetProfile { user: user_name(user) }, ChatAsked::Profile { user, since });
    }

    fn any_club(&mut self, client: usize) -> Option<u32> {
        // Those whose members change, mostly.
        let direct = self.chance(0.1);
        let clubs: Vec<u32> = self.clubs.iter().copied().filter(|&club| direct || club < DIRECT).collect();
        let at = self.pick(clubs.len()).filter(|_| self.clients[client].tenant == 0)?;
        Some(clubs[at])
    }

    fn join_or_leave(&mut self, client: usize) {
        let Some(channel) = self.any_club(client) else { return };
        if kind(channel) == Kind::Club && channel < DIRECT && self.chance(0.1) {
            return self.create(client, channel);
        }
        let (room, who, name) = (self.index_for(client, channel), self.person(client), self.name_of(channel));
        self.faults.count(Fault::Joined);
        if self.chance(0.7) {
            self.do_deed(client, &Deed::Join { room, who }, ChatOp::Join { channel: name });
        } else {
            self.do_deed(client, &Deed::Leave { room, who }, ChatOp::Leave { channel: name });
        }
    }

    fn set_member(&mut self, client: usize) {
        let Some(channel) = self.any_club(client) else { return };
        let user = self.any_user(client);
        let role = match self.below(8) {
            0 | 1 => None,
            2 => Some(MemberRole::Banned),
            3 => Some(MemberRole::Invited),
            4 => Some(MemberRole::Reader),
            5 => Some(MemberRole::Moderator),
            6 => Some(MemberRole::Owner),
            _ => Some(MemberRole::Member),
        };
        let (room, who) = (self.index_for(client, channel), self.person_of(client, user));
        let op = ChatOp::SetMember { channel: self.name_of(channel), user: user_name(user), role };
        self.faults.count(Fault::MemberSet);
        self.do_deed(client, &Deed::SetMember { room, who, role }, op);
    }

    fn set_channel(&mut self, client: usize) {
        let channel = self.any_kept(client);
        let (room, name) = (self.index_for(client, channel), self.name_of(channel));
        if kind(channel) == Kind::Club && self.chance(0.4) {
            let kind = if self.chance(0.7) { ChannelKind::Private } else { ChannelKind::Open };
            let op = ChatOp::SetChannel { channel: name, topic: None, kind: Some(kind), post: None };
            return self.do_deed(client, &Deed::SetKind { room, kind }, op);
        }
        let text = format!("topic {}", self.fresh_number());
        let topic = BodyHash::of(text.as_bytes()).0;
        let op = ChatOp::SetChannel { channel: name, topic: Some(text), kind: None, post: None };
        self.faults.count(Fault::TopicSet);
        self.do_deed(client, &Deed::SetTopic { room, topic }, op);
    }

    /// Opens a conversation of a few users of the first tenant.
    fn open_direct(&mut self, client: usize) {
        if self.clients[client].tenant > 0 {
            return;
        }
        let mut users = vec![self.clients[client].user];
        for _ in 0..=self.below(2) {
            users.push(self.any_user(client));
        }
        users.sort_unstable();
        users.dedup();
        if users.len() < 2 {
            return;
        }
        let channel = DIRECT + users.iter().map(|user| 1 << user).sum::<u32>();
        if self.directs.len() >= DIRECTS_MAX && !self.directs.contains_key(&channel) {
            return;
        }
        let room = self.index_for(client, channel);
        let persons = users.iter().map(|&user| self.person_of(client, user)).collect();
        let names: Vec<Name> = users.iter().map(|&user| user_name(user)).collect();
        // The name is the node's to give, but everybody can work it out, and try.
        self.directs.insert(channel, direct_name(&names.iter().cloned().collect()));
        if !self.clubs.contains(&channel) {
            self.clubs.push(channel);
        }
        self.faults.count(Fault::DirectOpened);
        let deed = self.people.begin(&Deed::OpenDirect { room, users: persons });
        let since = self.people.moment();
        self.chat(client, ChatOp::OpenDirect { users: names }, ChatAsked::Direct { channel, deed, since });
    }

    fn search_some(&mut self, client: usize) {
        let channel = self.any_kept(client);
        let query = if self.chance(0.5) { "edited".to_owned() } else { format!("{} ", 1 + self.below(6)) };
        let before = Position(if self.chance(0.5) { 0 } else { self.below(80) });
        self.search(client, channel, query, before, None);
    }

    pub(super) fn search(
        &mut self,
        client: usize,
        channel: u32,
        query: String,
        before: Position,
        found: Option<Vec<Position>>,
    ) {
        let (since, limit) = (self.people.moment(), self.below(12) as u32);
        let op = ChatOp::SearchHistory { channel: self.name_of(channel), query: query.clone(), before, limit };
        self.chat(client, op, ChatAsked::Search { channel, query, before, since, found });
    }

    fn who_is_in(&mut self, client: usize) {
        let channel = self.any_kept(client);
        self.ask_who_is_in(client, channel);
    }

    fn ask_who_is_in(&mut self, client: usize, channel: u32) {
        let present = self.present(self.clients[client].tenant, channel);
        let op = ChatOp::WhoIsIn { channel: self.name_of(channel) };
        self.chat(client, op, ChatAsked::WhoIsIn { channel, present });
    }

    fn set_presence(&mut self, client: usize) {
        let away = !self.clients[client].away;
        self.clients[client].away = away;
        self.request(client, &ClientOp::Chat(ChatOp::SetPresence { away }), Asked::Other);
    }

    /// What is asked when all has come to rest: everything that was ever acknowledged must be there.
    pub(crate) fn ask_everything(&mut self, client: usize) {
        if self.clients[client].link.is_none() {
            return;
        }
        self.note(format_args!("client {client} asks for everything"));
        for all in [false, true] {
            let since = self.people.moment();
            self.list_channels(client, all, since);
        }
        let mut kept: Vec<u32> = self.channels.iter().copied().filter(|&c| kind(c) == Kind::Disk).collect();
        if self.clients[client].tenant == 0 {
            kept.extend(&self.clubs);
        }
        for channel in kept {
            self.about(client, channel);
            self.ask_who_is_in(client, channel);
            if self.clients[client].admin && kind(channel) == Kind::Disk {
                self.search(client, channel, "edited".into(), Position(0), Some(Vec::new()));
            }
        }
        for user in 0..8 {
            self.profile_of(client, user);
        }
        if !self.clients[client].observer {
            self.asking = true;
            self.clients[client].sequences += 1;
            let (session, sequence) = (self.clients[client].session, Sequence(self.clients[client].sequences));
            let body = Bytes::from(format!("{} {sequence} the last word", session.0));
            let first = self.channels[0];
            self.write(client, first, sequence, body, Post::default(), None);
            self.asking = false;
        }
    }
}
