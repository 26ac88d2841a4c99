//! What is written over a sealed segment: it is refused, or what is read is what was there.
#![no_main]

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_domain::record::{ChannelSettings, Event, Message, Posting, Record};
use thalweg_journal::segment::{Segment, SegmentName, Shelf, publish, seal};
use thalweg_journal::wal::{NewFile, Wal, prepare, wal_path};
use thalweg_journal::{Disk, disk::MemoryDisk};
use thalweg_protocol::ids::{
    ChannelId, ChannelKey, CoreId, Epoch, Lsn, Name, Partition, Position, Sequence, SessionId,
};
use thalweg_protocol::op::{Delivery, DeliveryKind, Durability};

const MESSAGES: u64 = 200;

fn event(lsn: u64) -> Event {
    let name = |text: &str| Name::new(text).expect("valid");
    let channel = ChannelKey { tenant: name("default"), channel: name("general") };
    if lsn == 1 {
        return Event::ChannelCreated { channel, settings: ChannelSettings::new(Durability::Disk), facts: Vec::new() };
    }
    let delivery = Delivery {
        position: Position(lsn - 1),
        timestamp_us: lsn,
        kind: DeliveryKind::Message,
        user: name("ada"),
        generation: None,
        body: Bytes::from(vec![lsn as u8; 300]),
        key: 0,
        context: Default::default(),
    };
    let message = Arc::new(Message::new(delivery, SessionId(1), Sequence(lsn)));
    Event::Published(Posting { channel, id: ChannelId(1), message })
}

/// A segment of a few blocks.
fn intact() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let disk = MemoryDisk::default();
        let file = NewFile { core: CoreId(0), generation: 1, epoch: Epoch(1), salt: 7, bytes: 1 << 20 };
        let mut wal = Wal::new(CoreId(0), prepare(&disk, file, None).expect("room"));
        for lsn in 1..=MESSAGES + 1 {
            let (partition, epoch) = (Partition(3), Epoch(1));
            wal.append(lsn, &Record { partition, lsn: Lsn(lsn), epoch, timestamp_us: lsn, event: event(lsn) });
        }
        let path = wal_path(CoreId(0), 1);
        while let Some(write) = wal.next_write() {
            disk.open(&path).and_then(|file| file.write_at(write.offset, &write.bytes)).expect("room");
            wal.written(write.bytes);
        }
        seal(&disk, &path, 1, None).expect("intact");
        publish(&disk, 1).expect("intact");
        disk.contents(&SegmentName::of(1).path()).expect("it is there")
    })
}

fuzz_target!(|input: (u32, &[u8])| {
    let (at, written) = input;
    let mut bytes = intact().to_vec();
    let at = at as usize % bytes.len();
    let end = bytes.len().min(at + written.len());
    bytes[at..end].copy_from_slice(&written[..end - at]);
    let disk = MemoryDisk::default();
    disk.create(&SegmentName::of(1).path()).and_then(|file| file.write_at(0, &bytes)).expect("room");
    let Ok(segment) = Segment::open(&disk, SegmentName::of(1)) else { return };
    assert_eq!(segment.verify().is_ok(), bytes == intact(), "any other byte is noticed");
    let _ = segment.states();
    let shelf = Shelf(vec![Arc::new(segment)]);
    if let Ok(read) = shelf.read(Partition(3), ChannelId(1), Position(1), Position(u64::MAX), 1_000, usize::MAX) {
        assert_eq!(read.len() as u64, MESSAGES);
        assert!(read.iter().all(|message| message.body.iter().all(|byte| *byte == message.timestamp_us as u8)));
    }
});
