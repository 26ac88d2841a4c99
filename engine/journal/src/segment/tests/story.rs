//! Records that make sense together, and the write-ahead files they are in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::fact::{ChannelFact, ChannelInfo, Member, Reading, UserFact};
use thalweg_domain::generation::{Ending, Token};
use thalweg_domain::partition::PartitionState;
use thalweg_domain::record::{ChannelSettings, Event, GenerationRequest, Message, Posting, Record};
use thalweg_protocol::chat::{ChannelKind, Context, MemberRole, PostRule, ProfileText};
use thalweg_protocol::generation::{ChatMessage, FinishReason, OnDetach, Priority, Role, Sampling, Usage};
use thalweg_protocol::ids::{
    ChannelId, ChannelKey, CoreId, Epoch, GenerationId, Lsn, Name, Partition, Position, Sequence, SessionId,
};
use thalweg_protocol::op::{Delivery, DeliveryKind, Durability};

use crate::disk::Disk;
use crate::wal::{NewFile, Wal, prepare, wal_path};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn key(partition: Partition, id: u64) -> ChannelKey {
    ChannelKey { tenant: name("default"), channel: name(&format!("channel-{partition}-{id}")) }
}

/// One step of a story: which partition, what happens, to which, and how large it is.
pub(crate) type Step = (u8, u8, u8, u16);

/// What happened in a few partitions.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) records: Vec<Record>,
    partitions: BTreeMap<Partition, Plot>,
}

#[derive(Default)]
struct Plot {
    lsn: u64,
    heads: BTreeMap<ChannelId, u64>,
    tokens: BTreeMap<GenerationId, u32>,
    sequences: BTreeMap<u128, u64>,
}

impl Story {
    pub(crate) fn tell(steps: &[Step]) -> Self {
        let mut story = Self::default();
        for &(partition, what, which, size) in steps {
            let partition = Partition(u16::from(partition % 3) * 300);
            let plot = story.partitions.entry(partition).or_default();
            plot.lsn += 1;
            let event = plot.event(partition, what, usize::from(which), usize::from(size));
            let (lsn, epoch, timestamp_us) = (Lsn(plot.lsn), Epoch(1), plot.lsn * 1_000);
            story.records.push(Record { partition, lsn, epoch, timestamp_us, event });
        }
        story
    }

    /// Messages of two channels, in two partitions.
    pub(crate) fn chatter(messages: usize, size: u16) -> Self {
        let made = [(0, 0, 0, 0), (1, 0, 0, 0)];
        let said = (0..messages).map(|n| (n as u8 % 2, 15, (n % 7) as u8, size));
        Self::tell(&made.into_iter().chain(said).collect::<Vec<_>>())
    }

    /// What all records leave behind.
    pub(crate) fn states(&self) -> BTreeMap<Partition, PartitionState> {
        states(&self.records)
    }

    /// The messages of every channel that is not deleted.
    pub(crate) fn messages(&self) -> BTreeMap<(Partition, ChannelId), Vec<Arc<Message>>> {
        let mut channels: BTreeMap<_, Vec<Arc<Message>>> = BTreeMap::new();
        for Record { partition, lsn, event, .. } in &self.records {
            match event {
                Event::ChannelCreated { .. } => drop(channels.insert((*partition, ChannelId(lsn.0)), Vec::new())),
                Event::ChannelDeleted { id, .. } => drop(channels.remove(&(*partition, *id))),
                _ => {}
            }
            if let Some(posting) = event.posting() {
                channels.entry((*partition, posting.id)).or_default().push(Arc::clone(&posting.message));
            }
        }
        channels
    }
}

pub(crate) fn states(records: &[Record]) -> BTreeMap<Partition, PartitionState> {
    let mut states: BTreeMap<Partition, PartitionState> = BTreeMap::new();
    records.iter().for_each(|record| states.entry(record.partition).or_default().apply(record).expect("no gap"));
    states
}

impl Plot {
    fn event(&mut self, partition: Partition, what: u8, which: usize, size: usize) -> Event {
        let channel = self.heads.keys().copied().nth(which % self.heads.len().max(1));
        let generation = self.tokens.keys().copied().nth(which % self.tokens.len().max(1));
        match (what % 16, channel, generation) {
            (0, _, _) | (_, None, _) => {
                self.heads.insert(ChannelId(self.lsn), 0);
                let settings = ChannelSettings::new(Durability::Disk);
                let facts = if which.is_multiple_of(2) { vec![info(size), member(which, true)] } else { Vec::new() };
                Event::ChannelCreated { channel: key(partition, self.lsn), settings, facts }
            }
            (1, Some(id), _) => {
                self.heads.remove(&id);
                Event::ChannelDeleted { channel: key(partition, id.0), id }
            }
            (2, Some(id), _) => {
                let generation = GenerationId::new(partition, Epoch(1), self.lsn as u32);
                self.tokens.insert(generation, 0);
                let request = Arc::new(GenerationRequest {
                    tenant: name("default"),
                    user: name("ada"),
                    model: name("model"),
                    channel: Some((key(partition, id.0), id)),
                    messages: vec![ChatMessage { role: Role::User, content: "why?".repeat(size) }],
                    sampling: Sampling { stop: vec!["\n".into()], ..Sampling::default() },
                    raw: false,
                    priority: Priority::Normal,
                    deadline_ms: 0,
                    on_detach: if size.is_multiple_of(2) { OnDetach::Cancel } else { OnDetach::Keep(size as u64) },
                });
                let posting = Some(self.posting(partition, id, 0, size));
                Event::GenerationStarted { generation, request, posting }
            }
            (3..=5, Some(id), Some(generation)) => {
                let index = self.tokens[&generation];
                self.tokens.insert(generation, index + 2);
                let tokens = vec![Token { id: index, bytes: 1 }, Token { id: 7, bytes: 2 }];
                let posting = Some(self.posting(partition, id, 0, size));
                Event::GenerationTokens { generation, index, tokens, text: Bytes::from_static(b"abc"), posting }
            }
            (6, _, Some(generation)) => {
                self.tokens.remove(&generation);
                let usage = Usage { prompt_tokens: 5, completion_tokens: 7, cached_tokens: 0 };
                let ending = Ending { reason: FinishReason::Stop, usage, message: "so".into() };
                Event::GenerationFinished { generation, ending, posting: None }
            }
            (7, _, Some(generation)) => {
                self.tokens.remove(&generation);
                Event::GenerationDeleted { generation }
            }
            (8 | 9, Some(id), _) => {
                let head = self.heads[&id];
                let facts = match what % 64 / 16 {
                    0 => vec![member(which, which.is_multiple_of(3)), reading(which, head)],
                    1 => vec![info(size)],
                    _ if head > 0 => vec![ChannelFact::Redacted { position: Position(1 + which as u64 % head) }],
                    _ => Vec::new(),
                };
                let session = which as u128 % 2;
                let posting = which.is_multiple_of(2).then(|| self.posting(partition, id, session, size % 40));
                Event::ChannelChanged { channel: key(partition, id.0), id, facts, posting }
            }
            (10, _, _) => {
                let facts = match which % 3 {
                    0 => vec![UserFact::Forgotten],
                    1 => vec![UserFact::Profile(ProfileText { display: which.to_string(), ..ProfileText::default() })],
                    _ => vec![UserFact::Seen { at_us: self.lsn }],
                };
                Event::UserChanged { tenant: name("default"), user: name(&format!("user-{}", which % 5)), facts }
            }
            (_, Some(id), _) => Event::Published(self.posting(partition, id, 1 + which as u128 % 3, size)),
        }
    }

    fn posting(&mut self, partition: Partition, id: ChannelId, session: u128, size: usize) -> Posting {
        let head = self.heads.entry(id).or_default();
        *head += 1;
        let sequence = self.sequences.entry(session).or_default();
        *sequence += 1;
        // Some are edits of older ones, which are taken back with them.
        let (kind, target) = match self.lsn % 7 {
            0 if *head > 2 => (DeliveryKind::Edit, Position(*head / 2)),
            _ => (DeliveryKind::Message, Position(0)),
        };
        let mentions = if size.is_multiple_of(5) { vec![name("bob")] } else { Vec::new() };
        let context = Context { target, number: *head, mentions, ..Context::default() };
        let body: Vec<u8> = (0..size).map(|n| (n as u64 ^ self.lsn) as u8).collect();
        let delivery = Delivery {
            position: Position(*head),
            timestamp_us: self.lsn * 1_000,
            kind,
            user: name("ada"),
            generation: None,
            body: Bytes::from(body),
            key: 0,
            context,
        };
        let message = Arc::new(Message::new(delivery, SessionId(session), Sequence(*sequence)));
        Posting { channel: key(partition, id.0), id, message }
    }
}

fn info(size: usize) -> ChannelFact {
    let (kind, post, by) = (ChannelKind::Private, PostRule::Members, name("ada"));
    ChannelFact::Info(ChannelInfo { kind, topic: "x".repeat(size % 500), post, by, created_us: size as u64 })
}

fn member(which: usize, is: bool) -> ChannelFact {
    let member = Member { role: MemberRole::Member, since_us: which as u64, by: name("ada") };
    ChannelFact::Member { user: name(&format!("user-{}", which % 5)), member: is.then_some(member) }
}

fn reading(which: usize, head: u64) -> ChannelFact {
    let reading = Reading { position: Position(head), number: head };
    ChannelFact::Reading { user: name(&format!("user-{}", which % 5)), reading }
}

/// What a message is once its channel's redactions are known.
pub(crate) fn as_redacted(message: &Message, redacted: &BTreeSet<Position>) -> Message {
    let is_edit = message.kind == DeliveryKind::Edit && redacted.contains(&message.context.target);
    match is_edit || redacted.contains(&message.position) {
        true => message.redacted(),
        false => message.clone(),
    }
}

/// Writes records into one file of a core's write-ahead log and leaves it as a node does that is killed: with an empty
/// file after it, or without.
pub(crate) fn write_wal(disk: &dyn Disk, core: CoreId, generation: u64, records: &[Record]) -> String {
    let bytes = 8 << 20;
    let file = NewFile { core, generation, epoch: Epoch(1), salt: 0x1234_5678 ^ generation << 9, bytes };
    let mut wal = Wal::new(core, prepare(disk, file, None).expect("room"));
    for (ticket, record) in records.iter().enumerate() {
        wal.append(ticket as u64 + 1, record);
        if ticket % 50 == 49 || ticket + 1 == records.len() {
            while let Some(write) = wal.next_write() {
                let file = disk.open(&wal_path(core, write.generation)).expect("prepared");
                file.write_at(write.offset, &write.bytes).expect("room");
                wal.written(write.bytes);
            }
        }
    }
    wal_path(core, generation)
}
