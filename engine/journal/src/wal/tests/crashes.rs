//! Any history of a log, and any end of it.

use proptest::prelude::*;

use super::*;

/// What happens to a log.
#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    /// A record whose text holds the batch that was written last.
    AppendImage(usize),
    Write,
    Prepare {
        recycle: bool,
    },
    Close,
}

/// Which sectors of the last write come to the disk.
#[derive(Debug, Clone)]
enum Tear {
    Prefix(prop::sample::Index),
    Subset(Vec<bool>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..300_usize).prop_map(Step::Append),
        2 => (0..9_000_usize).prop_map(Step::Append),
        1 => (0..4_096_usize).prop_map(Step::AppendImage),
        6 => Just(Step::Write),
        3 => any::<bool>().prop_map(|recycle| Step::Prepare { recycle }),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..120)
}

fn tear() -> impl Strategy<Value = Tear> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Tear::Prefix),
        prop::collection::vec(any::<bool>(), 1..40).prop_map(Tear::Subset),
    ]
}

fn run(steps: Vec<Step>, file_blocks: u64) -> Bench {
    let mut bench = Bench::new(file_blocks * BLOCK);
    for step in steps {
        match step {
            Step::Append(bytes) => bench.append(text(bytes)),
            Step::AppendImage(before) => {
                let image = bench.image.slice(..bench.image.len().min(2 * LOG_BLOCK_BYTES));
                bench.append([&vec![b'-'; before], &image[..]].concat().into());
            }
            Step::Write => drop(bench.write()),
            Step::Prepare { recycle } => bench.prepare(recycle),
            Step::Close => bench.close(),
        }
    }
    bench
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// The node ends while a batch is written: what is read again is a prefix of what was appended that has all that was
    /// durable, whatever of the batch came to the disk and whatever the file held before.
    #[test]
    fn a_crash_loses_nothing_that_was_synced_and_makes_nothing_up(
        steps in steps(),
        file_blocks in 6..20_u64,
        tear in tear(),
    ) {
        let mut bench = run(steps, file_blocks);
        let (mut newest, mut in_flight) = (bench.durable, None);
        if let Some(write) = bench.wal.next_write() {
            let sectors = write.bytes.len() / SECTOR_BYTES;
            match &tear {
                Tear::Prefix(length) => {
                    let length = length.index(sectors + 1);
                    bench.put(&write, |sector| sector < length);
                }
                Tear::Subset(chosen) => bench.put(&write, |sector| chosen[sector % chosen.len()]),
            }
            in_flight = Some((write.generation, write.offset));
            newest = bench.wal.written(write.bytes);
        }
        let (records, scans) = read(&bench.disk).expect("a crash is no damage");
        let read_to = bench.archived + records.len() as u64;
        prop_assert!(read_to == bench.durable || read_to == newest, "{read_to} of {} or {newest}", bench.durable);
        prop_assert_eq!(&records[..], &bench.appended[bench.archived as usize..read_to as usize]);
        for scan in scans {
            if let End::Torn { offset, .. } = scan.end {
                prop_assert_eq!(in_flight, Some((scan.generation, offset)), "only what was under way is torn");
            }
        }
    }

    /// Anything at all is written over it: what is read, if it is, is a prefix of what was appended.
    #[test]
    fn whatever_happens_to_a_file_nothing_is_made_up(
        steps in steps(),
        file_blocks in 6..20_u64,
        pieces in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..200)), 1..5),
    ) {
        let bench = run(steps, file_blocks);
        for name in bench.disk.list("wal").expect("a disk without faults") {
            let disk = bench.disk.copy();
            let path = format!("wal/{name}");
            let file = disk.open(&path).expect("it is there");
            for (place, bytes) in &pieces {
                let at = place.index((bench.file_bytes - 200) as usize);
                file.write_at(at as u64, bytes).expect("a disk without faults");
            }
            let mut lsns = Vec::new();
            let mut visit = |raw: RawRecord<'_>| {
                let record = raw.decode()?;
                assert_eq!(record, bench.appended[record.lsn.0 as usize - 1]);
                lsns.push(record.lsn.0);
                Ok(())
            };
            let found = scan(&disk, &path, None, &mut visit);
            prop_assert!(lsns.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{lsns:?}");
            if let Ok(found) = found {
                prop_assert_eq!(found.records, lsns.len() as u64);
            }
            for block in 1..file_blocks {
                let _ = scan_from(&disk, &path, block * BLOCK, &mut |raw| raw.decode().map(drop));
            }
        }
    }

    /// One bit changes in what stands before the last batch that was synced: that is never taken for a crash.
    #[test]
    fn a_bit_that_changed_is_damage(
        steps in steps(),
        file_blocks in 6..20_u64,
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        tear in tear(),
    ) {
        let mut bench = run(steps, file_blocks);
        let Some(&(last_generation, last_offset)) = bench.synced.last() else { return Ok(()) };
        if let (Some(write), Tear::Subset(chosen)) = (bench.wal.next_write(), &tear) {
            bench.put(&write, |sector| chosen[sector % chosen.len()]);
        }
        // All bytes that it could be: those of closed files to their ends, and of the last to its last batch.
        let closed = bench.closed.iter().filter(|closed| closed.generation < last_generation);
        let mut ranges: Vec<(u64, u64)> = closed.map(|closed| (closed.generation, closed.end.offset)).collect();
        let is_there = bench.disk.contents(&wal_path(CORE, last_generation)).is_some();
        ranges.extend(is_there.then_some((last_generation, last_offset)));
        let total: u64 = ranges.iter().map(|(_, end)| end).sum();
        if total == 0 {
            return Ok(());
        }
        let mut at = place.index(total as usize) as u64;
        let mut ranges = ranges.into_iter();
        let generation = loop {
            let (generation, end) = ranges.next().expect("the place lies in one of them");
            if at < end {
                break generation;
            }
            at -= end;
        };
        flip(&bench.disk, &wal_path(CORE, generation), at, bit);
        let found = read(&bench.disk);
        let path = wal_path(CORE, generation);
        match found {
            Err(LogError::Damaged { path: named, offset, .. }) => {
                prop_assert_eq!(named, path);
                prop_assert!(offset <= at, "{} is named, {} was changed", offset, at);
            }
            found => prop_assert!(false, "{path}, {at}: {found:?}"),
        }
    }
}
