//! What is intact of a damaged log can be had.

use std::sync::Arc;

use proptest::prelude::*;
use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelId, CoreId, Partition, Position};

use super::super::*;
use super::story::{Story, write_wal};
use crate::disk::{Disk, MemoryDisk};
use crate::recovery::{Recovered, recover};

/// A log of three segments, the last two of which were merged, and two files of the write-ahead log.
fn log(story: &Story) -> MemoryDisk {
    let disk = MemoryDisk::default();
    recover(&disk, 1_024).expect("a new log");
    let mut pieces = story.records.chunks(story.records.len().div_ceil(5));
    for generation in 1..=3 {
        write_wal(&disk, CoreId(0), generation, pieces.next().expect("five pieces"));
    }
    let shelf = recover(&disk, 1_024).expect("intact").shelf;
    merge(&disk, &shelf.0[1..], &|_, _| None, 0).expect("intact");
    let old: Vec<SegmentName> = shelf.0[1..].iter().map(|segment| segment.name()).collect();
    remove_replaced(&disk, &old).expect("no faults");
    for generation in 4..=5 {
        write_wal(&disk, CoreId(0), generation, pieces.next().expect("five pieces"));
    }
    disk
}

fn paths(disk: &MemoryDisk) -> Vec<String> {
    let in_directory = |directory: &str| {
        let files = disk.list(directory).expect("no faults").into_iter();
        files.map(|file| format!("{directory}/{file}")).collect::<Vec<_>>()
    };
    [vec!["format".to_owned()], in_directory(SEGMENTS), in_directory(WAL_FILES)].concat()
}

/// All that can be read of a channel, hole or not.
fn all_of(recovered: &Recovered, of: (Partition, ChannelId)) -> Vec<Arc<Message>> {
    let mut all: Vec<Arc<Message>> = Vec::new();
    loop {
        let from = all.last().map_or(Position(1), |message| message.position.next());
        let some = recovered.shelf.read(of.0, of.1, from, Position(u64::MAX), 50, usize::MAX).expect("salvaged");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// Salvages, recovers from it, and says how many messages are still there. None may be another than it was.
fn check(story: &Story, disk: &MemoryDisk) -> (usize, Salvaged) {
    let (before, to) = (disk.copy(), MemoryDisk::default());
    let salvaged = salvage(disk, &to).expect("no faults");
    for path in paths(&before) {
        assert_eq!(before.contents(&path), disk.contents(&path), "the damaged log is left as it is");
    }
    assert_eq!(verify(&to).expect("no faults").problems, [], "{:?}", salvaged.lost);
    let recovered = recover(&to, 1_024).expect("salvaged");
    let mut kept = 0;
    for (of, messages) in story.messages() {
        let all = all_of(&recovered, of);
        kept += all.len();
        for message in all {
            assert_eq!(message, messages[message.position.0 as usize - 1]);
        }
    }
    // And life goes on.
    let next = recovered.next_generation.get(&CoreId(0)).copied().unwrap_or(1);
    write_wal(&to, CoreId(0), next, &[]);
    assert_eq!(recover(&to, 1_024).expect("salvaged").states, recovered.states);
    (kept, salvaged)
}

#[test]
fn of_an_intact_log_nothing_is_lost() {
    let story = Story::chatter(1_000, 200);
    let disk = log(&story);
    let (kept, salvaged) = check(&story, &disk);
    assert_eq!((kept, salvaged.copied, salvaged.rebuilt, salvaged.messages), (1_000, 2, 2, 1_000));
    assert_eq!(salvaged.lost, Vec::<String>::new());
}

#[test]
fn a_damaged_block_loses_its_own_messages_only() {
    let story = Story::chatter(1_000, 200);
    let disk = log(&story);
    let file = disk.open("segments/000000000002-000000000003.seg").expect("it is there");
    file.write_at(50_000, b"rot").expect("no faults");
    let (kept, salvaged) = check(&story, &disk);
    assert!((800..1_000).contains(&kept), "{kept}");
    let lost = salvaged.lost.join("\n");
    assert!(lost.contains("segments/000000000002-000000000003.seg, offset ") && lost.contains(": messages "), "{lost}");
}

#[test]
fn missing_files_lose_what_was_in_them() {
    let story = Story::chatter(1_000, 200);
    let check = |paths: &[&str], expected: &str| {
        let disk = log(&story);
        paths.iter().for_each(|path| disk.remove(path).expect("it is there"));
        let (kept, salvaged) = check(&story, &disk);
        let lost = salvaged.lost.join("\n");
        assert!(lost.contains(expected), "{paths:?}: {lost}");
        kept
    };
    let (first, second) = ("segments/000000000001-000000000001.seg", "segments/000000000002-000000000003.seg");
    assert_eq!(check(&[first], ""), 1_000, "the file it was made of is still there");
    assert_eq!(check(&[second], ""), 1_000, "the files it was made of are still there");
    assert_eq!(check(&[first, second], ""), 1_000);
    assert_eq!(check(&[first, "wal/000-000000000001.wal"], "its name and settings"), 801);
    assert_eq!(check(&[second, "wal/000-000000000003.wal"], ": records "), 799);
    assert_eq!(check(&["wal/000-000000000004.wal"], "files 4 to 4 of the log of core 0"), 799);
    assert_eq!(check(&["format"], "1024 partitions are assumed"), 1_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_is_damaged_the_rest_is_saved(
        damage in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index, u8)>(), 1..5),
        cut in any::<Option<(prop::sample::Index, prop::sample::Index)>>(),
    ) {
        let story = Story::chatter(400, 200);
        let disk = log(&story);
        let files = paths(&disk);
        for (file, at, value) in damage {
            let path = &files[file.index(files.len())];
            // Where there is something: most of a file of the write-ahead log is empty.
            let length = disk.contents(path).expect("it is there").len().min(60_000);
            disk.open(path).and_then(|file| file.write_at(at.index(length) as u64, &[value])).expect("no faults");
        }
        if let Some((file, keep)) = cut {
            let path = &files[file.index(files.len())];
            let contents = disk.contents(path).expect("it is there");
            let contents = &contents[..keep.index(contents.len())];
            disk.create(path).and_then(|file| file.write_at(0, contents)).expect("no faults");
        }
        check(&story, &disk);
    }
}
