//! A file of the write-ahead log that is damaged anywhere: what is read of it is a prefix of what was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_domain::record::{Event, Record};
use thalweg_journal::disk::{Disk, MemoryDisk};
use thalweg_journal::wal::{NewFile, Wal, prepare, scan, scan_from, wal_path};
use thalweg_protocol::ids::{CoreId, Epoch, GenerationId, Lsn, Partition};
use thalweg_protocol::limits::LOG_BLOCK_BYTES;

const CORE: CoreId = CoreId(0);
const RECORDS: u64 = 12;
const FILE_BYTES: u64 = 8 * LOG_BLOCK_BYTES as u64;

/// A file with a batch of three records in each of four blocks.
fn written() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let file = NewFile { core: CORE, generation: 1, epoch: Epoch(1), salt: 0x5a17, bytes: FILE_BYTES };
    let mut wal = Wal::new(CORE, prepare(&disk, file, None).expect("a disk without faults"));
    let file = disk.open(&wal_path(CORE, 1)).expect("it was made");
    for lsn in 1..=RECORDS {
        let event = Event::GenerationDeleted { generation: GenerationId(lsn) };
        wal.append(lsn, &Record { partition: Partition(1), lsn: Lsn(lsn), epoch: Epoch(1), timestamp_us: 0, event });
        if lsn % 3 == 0 {
            let write = wal.next_write().expect("something was appended");
            file.write_at(write.offset, &write.bytes).expect("a disk without faults");
            wal.written(write.bytes);
        }
    }
    disk
}

fuzz_target!(|input: &[u8]| {
    let disk = written();
    let path = wal_path(CORE, 1);
    let file = disk.open(&path).expect("it was made");
    // Each piece: where (two bytes), how much, and what is written there.
    let mut rest = input;
    while let [low, high, length, more @ ..] = rest {
        let offset = u64::from(u16::from_le_bytes([*low, *high])) % FILE_BYTES;
        let length = usize::from(*length).min(more.len()).min((FILE_BYTES - offset) as usize);
        file.write_at(offset, &more[..length]).expect("a disk without faults");
        rest = &more[length..];
    }
    let mut read = 0;
    let found = scan(&disk, &path, None, &mut |raw| {
        read += 1;
        assert_eq!(raw.decode()?.lsn, Lsn(read), "records come as they were written");
        Ok(())
    });
    if let Ok(found) = found {
        assert_eq!(found.records, read);
        assert!(read == RECORDS || found.intact.offset < FILE_BYTES);
    }
    for block in 1..FILE_BYTES / LOG_BLOCK_BYTES as u64 {
        let _ = scan_from(&disk, &path, block * LOG_BLOCK_BYTES as u64, &mut |raw| raw.decode().map(drop));
    }
});
