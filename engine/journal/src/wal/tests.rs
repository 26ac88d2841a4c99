mod crashes;

use std::collections::VecDeque;

use bytes::Bytes;
use thalweg_domain::generation::Token;
use thalweg_domain::record::Event;
use thalweg_protocol::ids::{Epoch, GenerationId, Lsn, Partition};
use thalweg_protocol::limits::LOG_BLOCK_BYTES;

use super::*;
use crate::disk::{Disk, MemoryDisk};
use crate::error::LogError;
use crate::golden;

const CORE: CoreId = CoreId(3);
const BLOCK: u64 = LOG_BLOCK_BYTES as u64;
const SECTOR_BYTES: usize = 512;

/// The record with this ticket, which is its lsn as well.
fn record(ticket: u64, text: Bytes) -> Record {
    let tokens = vec![Token { id: 1, bytes: text.len() as u32 }];
    let event = Event::GenerationTokens { generation: GenerationId(1), index: 0, tokens, text, posting: None };
    Record { partition: Partition(7), lsn: Lsn(ticket), epoch: Epoch(1), timestamp_us: 5, event }
}

fn new_file(generation: u64, bytes: u64) -> NewFile {
    NewFile { core: CORE, generation, epoch: Epoch(1), salt: 0x9e37_79b9_7f4a_7c15 ^ generation << 7, bytes }
}

/// A log and its disk, and what should be on it.
struct Bench {
    disk: MemoryDisk,
    wal: Wal,
    file_bytes: u64,
    appended: Vec<Record>,
    durable: u64,
    /// Everything up to here was in files that were used again.
    archived: u64,
    closed: VecDeque<Closed>,
    /// Batches that were synced: generation, and offset.
    synced: Vec<(u64, u64)>,
    /// The bytes of the batch that was written last.
    image: Bytes,
}

impl Bench {
    fn new(file_bytes: u64) -> Self {
        let disk = MemoryDisk::default();
        let file = prepare(&disk, new_file(1, file_bytes), None).expect("a disk without faults");
        Self {
            disk,
            wal: Wal::new(CORE, file),
            file_bytes,
            appended: Vec::new(),
            durable: 0,
            archived: 0,
            closed: VecDeque::new(),
            synced: Vec::new(),
            image: Bytes::new(),
        }
    }

    fn append(&mut self, text: Bytes) {
        let record = record(self.appended.len() as u64 + 1, text);
        self.wal.append(record.lsn.0, &record);
        self.appended.push(record);
    }

    fn put(&self, write: &WalWrite, sector: impl Fn(usize) -> bool) {
        let file = self.disk.open(&wal_path(CORE, write.generation)).expect("a prepared file");
        for (number, bytes) in write.bytes.chunks(SECTOR_BYTES).enumerate().filter(|(number, _)| sector(*number)) {
            file.write_at(write.offset + (number * SECTOR_BYTES) as u64, bytes).expect("a disk without faults");
        }
    }

    /// Writes and syncs the next batch, if there is one.
    fn write(&mut self) -> bool {
        let Some(write) = self.wal.next_write() else { return false };
        assert!(write.bytes.len().is_multiple_of(LOG_BLOCK_BYTES) && write.offset.is_multiple_of(BLOCK));
        assert!(write.offset >= BLOCK && write.offset + write.bytes.len() as u64 <= self.file_bytes);
        assert_eq!(self.wal.next_write(), None, "one write is under way at a time");
        self.put(&write, |_| true);
        self.image = Bytes::copy_from_slice(&write.bytes);
        self.synced.push((write.generation, write.offset));
        self.durable = self.wal.written(write.bytes);
        self.closed.extend(std::iter::from_fn(|| self.wal.poll_closed()));
        true
    }

    fn close(&mut self) {
        self.wal.close();
        self.closed.extend(std::iter::from_fn(|| self.wal.poll_closed()));
    }

    /// Prepares the next file, if it is wanted, of the oldest closed one if that is wanted.
    fn prepare(&mut self, recycle: bool) {
        if !self.wal.wants_file() {
            return;
        }
        self.wal.file_wanted();
        assert!(!self.wal.wants_file());
        let old = if recycle { self.closed.pop_front() } else { None };
        let old = old.map(|closed| self.archive(closed));
        let file = new_file(self.wal.next_generation(), self.file_bytes);
        self.wal.file_ready(prepare(&self.disk, file, old.as_deref()).expect("a disk without faults"));
        self.closed.extend(std::iter::from_fn(|| self.wal.poll_closed()));
    }

    /// Reads a file that is closed, as sealing does, and gives its path.
    fn archive(&mut self, closed: Closed) -> String {
        let path = wal_path(CORE, closed.generation);
        let mut records = Vec::new();
        let scan = scan(&self.disk, &path, Some(closed.end), &mut |raw| {
            records.push(raw.decode()?);
            Ok(())
        });
        let scan = scan.expect("a disk without faults");
        assert_eq!((&scan.end, scan.intact), (&End::Clean, closed.end));
        assert_eq!(records, self.appended[self.archived as usize..closed.through as usize]);
        self.archived = closed.through;
        path
    }
}

/// Reads all files, as recovery does.
fn read(disk: &MemoryDisk) -> Result<(Vec<Record>, Vec<Scan>), LogError> {
    let (mut records, mut scans) = (Vec::new(), Vec::new());
    for name in disk.list("wal")? {
        let visit = &mut |raw: RawRecord<'_>| {
            let record = raw.decode()?;
            assert_eq!(raw.heading()?.lsn, record.lsn);
            records.push(record);
            Ok(())
        };
        let scan = scan(disk, &format!("wal/{name}"), None, visit)?;
        scan.check()?;
        scans.push(scan);
    }
    Ok((records, scans))
}

fn text(bytes: usize) -> Bytes {
    vec![b'x'; bytes].into()
}

fn flip(disk: &MemoryDisk, path: &str, offset: u64, bit: u8) {
    let file = disk.open(path).expect("a file that is there");
    let mut byte = [0];
    file.read_at(offset, &mut byte).expect("inside of the file");
    file.write_at(offset, &[byte[0] ^ 1 << bit]).expect("a disk without faults");
}

#[test]
fn what_comes_while_a_batch_is_written_goes_into_the_next() {
    let mut bench = Bench::new(1 << 20);
    assert_eq!(bench.wal.next_write(), None);
    bench.append(text(10));
    let first = bench.wal.next_write().expect("something was appended");
    assert_eq!((first.generation, first.offset, first.bytes.len()), (1, BLOCK, LOG_BLOCK_BYTES));
    bench.append(text(10));
    bench.append(text(5_000));
    assert_eq!(bench.wal.next_write(), None);
    bench.put(&first, |_| true);
    assert_eq!(bench.wal.written(first.bytes), 1);
    let second = bench.wal.next_write().expect("something was appended");
    assert_eq!((second.offset, second.bytes.len()), (2 * BLOCK, 2 * LOG_BLOCK_BYTES));
    bench.put(&second, |_| true);
    assert!(bench.wal.pending_bytes() > 5_000);
    assert_eq!(bench.wal.written(second.bytes), 3);
    assert_eq!((bench.wal.pending_bytes(), bench.wal.durable()), (0, 3));
    assert_eq!(bench.wal.next_write(), None);
    let (records, scans) = read(&bench.disk).expect("nothing is damaged");
    assert_eq!(records, bench.appended);
    assert_eq!((scans[0].batches, scans[0].records, &scans[0].end), (2, 3, &End::Clean));
}

#[test]
fn a_batch_has_a_limit_and_files_do_not_share_one() {
    // One batch of the largest size fits in the first file, and the next one does not.
    let mut bench = Bench::new(LOG_BATCH_BYTES_MAX as u64 + 2 * BLOCK);
    (0..9).for_each(|_| bench.append(text(1 << 20 >> 1)));
    let first = bench.wal.next_write().expect("something was appended");
    assert!(first.bytes.len() <= LOG_BATCH_BYTES_MAX && first.bytes.len() > LOG_BATCH_BYTES_MAX * 3 / 4);
    bench.put(&first, |_| true);
    assert_eq!(bench.wal.written(first.bytes), 7);
    assert_eq!(bench.wal.next_write(), None);
    assert!(bench.wal.is_out_of_room());
    // Everything goes on gathering, over several batches.
    (0..20).for_each(|_| bench.append(text(1 << 20 >> 1)));
    assert!(bench.wal.pending_bytes() > 22 << 19);
    while bench.wal.pending_bytes() > 0 {
        bench.prepare(false);
        assert!(bench.write());
    }
    assert_eq!(bench.durable, 29);
    assert_eq!(bench.closed.iter().map(|closed| closed.generation).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(bench.closed.iter().map(|closed| closed.through).collect::<Vec<_>>(), [7, 14, 21, 28]);
    assert_eq!(read(&bench.disk).expect("nothing is damaged").0, bench.appended);
}

#[test]
fn closing_goes_to_the_next_file_once_there_is_one() {
    let mut bench = Bench::new(1 << 20);
    bench.close();
    bench.prepare(false);
    assert_eq!(bench.wal.generation(), 1, "an empty file need not be closed");
    bench.append(text(10));
    bench.write();
    assert_eq!(bench.closed, []);
    bench.close();
    assert_eq!((bench.closed.len(), bench.closed[0].through, bench.wal.generation()), (1, 1, 2));
    // Without a spare the file goes on until there is one.
    bench.append(text(10));
    bench.write();
    bench.close();
    bench.append(text(10));
    bench.write();
    assert_eq!((bench.closed.len(), bench.wal.generation()), (1, 2));
    // While something is under way it still belongs to the file.
    bench.append(text(10));
    let write = bench.wal.next_write().expect("something was appended");
    bench.append(text(10));
    bench.prepare(false);
    assert_eq!((bench.closed.len(), write.generation), (1, 2));
    bench.put(&write, |_| true);
    assert_eq!(bench.wal.written(write.bytes), 4);
    let closed = bench.wal.poll_closed().expect("nothing is under way any more");
    assert_eq!((closed.generation, closed.through), (2, 4));
    bench.write();
    assert_eq!(bench.synced.last(), Some(&(3, BLOCK)));
    assert_eq!(read(&bench.disk).expect("nothing is damaged").0, bench.appended);
}

#[test]
fn names_of_files() {
    let check = |path: &str, expected| assert_eq!(parse_wal_path(path), expected, "{path}");
    assert_eq!(wal_path(CORE, 12), "wal/003-000000000012.wal");
    check("wal/003-000000000012.wal", Some((CORE, 12)));
    check("003-000000000012.wal", Some((CORE, 12)));
    check(&wal_path(CoreId(u16::MAX), u64::MAX), Some((CoreId(u16::MAX), u64::MAX)));
    for bad in ["", "wal/", "wal/003-000000000012.new", "3-12.wal", "wal/+03-000000000012.wal", "wal/003.wal"] {
        check(bad, None);
    }
}

#[test]
fn a_file_has_its_name_when_it_is_complete() {
    let disk = MemoryDisk::default();
    disk.create("wal/003-000000000002.new").expect("a disk without faults").write_at(0, &[1; 9]).expect("written");
    prepare(&disk, new_file(1, 8 * BLOCK), None).expect("a disk without faults");
    prepare(&disk, new_file(2, 8 * BLOCK), None).expect("a disk without faults");
    let file = prepare(&disk, new_file(3, 4 * BLOCK), Some(&wal_path(CORE, 1))).expect("a disk without faults");
    assert_eq!((file.generation, file.bytes), (3, 4 * BLOCK));
    assert_eq!(disk.list("wal").expect("listed"), ["003-000000000002.wal", "003-000000000003.wal"]);
    assert_eq!(disk.contents(&wal_path(CORE, 3)).expect("it is there").len() as u64, 4 * BLOCK);
    let (records, scans) = read(&disk).expect("nothing is damaged");
    assert_eq!((records.len(), scans.len()), (0, 2));
    assert_eq!((scans[1].generation, scans[1].epoch, &scans[1].end), (3, Epoch(1), &End::Clean));
    assert_eq!(scans[1].intact, FileEnd { offset: BLOCK, crc: file.header_crc });
}

/// A log of three files with two batches each.
fn three_files() -> Bench {
    let mut bench = Bench::new(16 * BLOCK);
    for _ in 0..3 {
        for _ in 0..2 {
            bench.append(text(100));
            bench.append(text(6_000));
            bench.write();
        }
        bench.prepare(false);
        bench.close();
    }
    assert_eq!((bench.durable, bench.closed.len()), (12, 3));
    bench
}

#[test]
fn damage_is_named() {
    let check = |path: &str, change: &dyn Fn(&MemoryDisk, &str), expected: &str| {
        let disk = three_files().disk.copy();
        change(&disk, path);
        let error = read(&disk).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.starts_with("wal/"), "{error:?} does not say {expected:?}");
    };
    let first = &wal_path(CORE, 1);
    let resize = |bytes| {
        move |disk: &MemoryDisk, path: &str| {
            disk.open(path).expect("it is there").allocate(bytes).expect("a disk without faults");
        }
    };
    check(first, &resize(100), "001.wal, offset 0: the file is shorter than its header;");
    check(first, &resize(BLOCK), "001.wal, offset 0: the file is shorter than its header says");
    check(first, &|disk, path| flip(disk, path, 0, 0), "does not begin as a write-ahead log does");
    check(first, &|disk, path| flip(disk, path, 12, 0), "offset 0: the header of the file does not match its checksum");
    check(first, &|disk, path| flip(disk, path, 4_000, 0), "offset 0: the header of the file does not match");
    check(first, &|disk, path| flip(disk, path, BLOCK + 60, 3), "offset 4096: the batch does not match its checksum");
    check(first, &|disk, path| flip(disk, path, BLOCK, 3), "the next at 12288, with record 3 of partition 7");
    check(first, &|disk, path| flip(disk, path, 3 * BLOCK, 3), "offset 12288: the batch does not match its checksum");
    check(first, &|disk, path| flip(disk, path, 3 * BLOCK, 3), "but the file was complete up to 20480");
    let exchange = |disk: &MemoryDisk, path: &str| disk.rename(&wal_path(CORE, 2), path).expect("renamed");
    check(first, &exchange, "the header of the file belongs to another file");
    let newer = |disk: &MemoryDisk, path: &str| {
        let mut block = disk.contents(path).expect("it is there")[..LOG_BLOCK_BYTES].to_vec();
        block[12] = 2;
        let crc = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        disk.open(path).expect("it is there").write_at(0, &block).expect("written");
    };
    check(first, &newer, "has format 2; this version reads up to 1");
}

#[test]
fn a_file_that_lost_its_end_is_damaged_if_another_followed() {
    let bench = three_files();
    let lose = |disk: &MemoryDisk, generation: u64, from: u64| {
        let file = disk.open(&wal_path(CORE, generation)).expect("it is there");
        file.write_at(from, &vec![0; (16 * BLOCK - from) as usize]).expect("a disk without faults");
    };
    let check = |generation: u64, from: u64, expected: Result<usize, u64>| {
        let disk = bench.disk.copy();
        lose(&disk, generation, from);
        match (read(&disk), expected) {
            (Ok((records, _)), Ok(expected)) => assert_eq!(records, bench.appended[..expected]),
            (Err(LogError::Damaged { offset, .. }), Err(expected)) => assert_eq!(offset, expected),
            (found, _) => panic!("{expected:?} was expected, not {found:?}"),
        }
    };
    check(1, 5 * BLOCK, Ok(12));
    check(1, 3 * BLOCK, Err(3 * BLOCK));
    check(2, BLOCK, Err(BLOCK));
    check(3, 5 * BLOCK, Ok(12));
    // Nothing followed the third file but one that is empty.
    check(3, 3 * BLOCK, Ok(10));
    check(3, BLOCK, Ok(8));

    // Whoever knows the end by itself does not depend on what followed.
    lose(&bench.disk, 3, 3 * BLOCK);
    let found = scan(&bench.disk, &wal_path(CORE, 3), Some(bench.closed[2].end), &mut |_| Ok(())).expect("read");
    let End::Damaged { offset, next, .. } = &found.end else { panic!("{found:?}") };
    assert_eq!((*offset, *next, found.records), (3 * BLOCK, None, 2));
}

/// Two logs whose files have the same generations and salts: a batch of the one is intact in the other, but follows none.
#[test]
fn a_batch_of_another_log_does_not_follow() {
    let bench = three_files();
    let mut other = Bench::new(16 * BLOCK);
    for letter in [b'a', b'b'] {
        other.append(vec![letter; 100].into());
        other.append(vec![letter; 6_000].into());
        other.write();
    }
    let path = wal_path(CORE, 1);
    let theirs = other.disk.contents(&path).expect("it is there");
    let check = |blocks: std::ops::Range<u64>, expected: u64, word: &str| {
        let disk = bench.disk.copy();
        let bytes = &theirs[(blocks.start * BLOCK) as usize..(blocks.end * BLOCK) as usize];
        disk.open(&path).expect("it is there").write_at(blocks.start * BLOCK, bytes).expect("a disk without faults");
        match read(&disk) {
            Err(LogError::Damaged { offset, what, .. }) if what.contains(word) => assert_eq!(offset, expected),
            found => panic!("{word:?} at {expected} was expected, not {found:?}"),
        }
    };
    check(1..3, 3 * BLOCK, "does not follow the one that is before it");
    check(3..5, 3 * BLOCK, "does not follow the one that is before it");
    check(1..5, 5 * BLOCK, "the file ends otherwise than it did");
}

#[test]
fn what_follows_damage_can_be_saved() {
    let mut bench = Bench::new(16 * BLOCK);
    for _ in 0..4 {
        bench.append(text(100));
        bench.write();
    }
    let path = wal_path(CORE, 1);
    flip(&bench.disk, &path, 2 * BLOCK + 99, 3);
    let mut records = Vec::new();
    let mut visit = |raw: RawRecord<'_>| {
        records.push(raw.decode()?);
        Ok(())
    };
    let damaged = scan(&bench.disk, &path, None, &mut visit).expect("a header");
    let End::Damaged { offset, next: Some(next), .. } = damaged.end else { panic!("{damaged:?}") };
    assert_eq!((offset, next), (2 * BLOCK, 3 * BLOCK));
    let rest = scan_from(&bench.disk, &path, next, &mut visit).expect("a header");
    assert_eq!((rest.batches, rest.end), (2, End::Clean));
    // And without the header of the file as well.
    flip(&bench.disk, &path, 41, 3);
    scan(&bench.disk, &path, None, &mut visit).expect_err("no header");
    let rest = scan_from(&bench.disk, &path, BLOCK, &mut visit).expect("a name");
    assert!(matches!(rest.end, End::Damaged { offset, next: Some(_), .. } if offset == 2 * BLOCK));
    assert_eq!((rest.core, rest.generation, rest.batches), (CORE, 1, 1));
    let lsns: Vec<u64> = records.iter().map(|record| record.lsn.0).collect();
    assert_eq!(lsns, [1, 3, 4, 1]);
}

/// A client that puts what looks like a batch into a message, at every place where it could stand, does not know the salt.
#[test]
fn a_message_that_looks_like_a_batch_is_none() {
    for (known, expected) in [(false, "torn"), (true, "damaged")] {
        let mut bench = Bench::new(16 * BLOCK);
        let salt = if known { new_file(1, 0).salt } else { 0 };
        // The records of a batch begin 56 bytes after its header, their text some 60 more.
        let mut body = vec![b'x'; 6 * LOG_BLOCK_BYTES];
        let mut encoded = Vec::new();
        record::encode(&record(1, text(0)), &mut encoded);
        let text_at = BATCH_HEADER_BYTES + encoded.len() - 1;
        for block in 1..6 {
            let at = block * LOG_BLOCK_BYTES - text_at;
            let offset = BLOCK + (block * LOG_BLOCK_BYTES) as u64;
            let forged = BatchHeader {
                generation: 1,
                salt,
                offset,
                core: CORE,
                records: 0,
                payload_bytes: 0,
                chain: 0,
                follows: 0,
            };
            let mut batch = vec![0; BATCH_HEADER_BYTES];
            forged.seal(&mut batch);
            body[at..at + LOG_BLOCK_BYTES].copy_from_slice(&batch);
        }
        bench.append(body.into());
        let write = bench.wal.next_write().expect("something was appended");
        bench.put(&write, |sector| sector != 3);
        let found = match read(&bench.disk) {
            Ok((_, scans)) if matches!(scans[0].end, End::Torn { offset: BLOCK, .. }) => "torn",
            Ok(_) => "clean",
            Err(_) => "damaged",
        };
        assert_eq!(found, expected);
    }
}

/// Two files that follow each other, a line for each block, without the zeros at its end.
#[test]
fn golden_bytes_of_version_1() {
    let mut bench = Bench::new(4 * BLOCK);
    for _ in 0..4 {
        bench.append(text(3));
        bench.append(text(2));
        bench.prepare(false);
        bench.write();
    }
    let bytes =
        [1, 2].map(|generation| bench.disk.contents(&wal_path(CORE, generation)).expect("it is there")).concat();
    let line = |block: &[u8]| {
        let length = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        golden::hex(&block[..length])
    };
    golden::check("wal_v1.txt", &bytes.chunks(LOG_BLOCK_BYTES).map(line).collect::<Vec<_>>());
}
