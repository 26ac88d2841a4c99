//! What was put in comes out, however it is divided and merged.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use thalweg_domain::fact::{ChannelFact, ChannelFacts, Snapshot};
use thalweg_domain::partition::PartitionState;
use thalweg_domain::record::{Event, Message, Record};
use thalweg_protocol::ids::{ChannelId, CoreId, Partition, Position};
use thalweg_protocol::limits::{LOG_FILE_BYTES, SEGMENT_MERGE_FANIN};

use super::super::*;
use super::story::{Step, Story, as_redacted, states, write_wal};
use crate::disk::{Disk, MemoryDisk};
use crate::golden;
use crate::recovery::{Plan, recover};

/// Puts records into segments, cut into so many pieces.
fn sealed(disk: &MemoryDisk, story: &Story, cuts: &[usize]) -> Shelf {
    let mut edges = cuts.to_vec();
    edges.extend([0, story.records.len()]);
    edges.sort_unstable();
    let mut segments = Vec::new();
    for (at, edge) in edges.windows(2).enumerate() {
        let number = at as u64 + 1;
        let path = write_wal(disk, CoreId(0), number, &story.records[edge[0]..edge[1]]);
        let sealed = seal(disk, &path, number, None).expect("intact");
        assert_eq!((sealed.records, &sealed.torn), ((edge[1] - edge[0]) as u64, &None));
        segments.push(Arc::new(publish(disk, number).expect("intact")));
    }
    Shelf(segments)
}

fn merged_states(shelf: &Shelf) -> BTreeMap<Partition, PartitionState> {
    let mut states = BTreeMap::new();
    shelf.0.iter().for_each(|segment| merge_states(&mut states, segment).expect("no gap"));
    states
}

fn positions(shelf: &Shelf, of: (Partition, ChannelId), from: u64, to: u64, max: usize) -> Vec<u64> {
    let read = shelf.read(of.0, of.1, Position(from), Position(to), max, usize::MAX).expect("intact");
    read.iter().map(|message| message.position.0).collect()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), 0_u16..3_000), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn states_and_messages_survive_any_cut_and_any_merge(
        steps in steps(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        merges in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..4),
        floors in any::<bool>(),
    ) {
        let story = Story::tell(&steps);
        let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(story.records.len())).collect();
        let disk = MemoryDisk::default();
        let mut shelf = sealed(&disk, &story, &cuts);
        let live = story.messages();
        // Half of what a channel has when a merge happens goes; only that which the merge touches.
        let floor_of = |partition, channel| {
            floors.then(|| Position(live.get(&(partition, channel)).map_or(1, |all| all.len() as u64 / 2 + 1)))
        };
        for (one, other) in merges {
            let (one, other) = (one.index(shelf.0.len()), other.index(shelf.0.len()));
            let range = one.min(other)..=one.max(other);
            let replaced: Vec<SegmentName> = shelf.0[range.clone()].iter().map(|segment| segment.name()).collect();
            if replaced.len() > 1 {
                let merged = merge(&disk, &shelf.0[range.clone()], &floor_of, 0).expect("intact");
                shelf.0.splice(range, [Arc::new(merged)]);
                remove_replaced(&disk, &replaced).expect("no faults");
            }
        }
        prop_assert_eq!(merged_states(&shelf), story.states());
        for segment in &shelf.0 {
            segment.verify().expect("intact");
        }
        for (&of, messages) in &live {
            let first = floor_of(of.0, of.1).map_or(0, |floor| floor.0 as usize - 1);
            let mut read: Vec<Arc<Message>> = Vec::new();
            loop {
                let from = read.last().map_or(Position(first as u64 + 1), |message| message.position.next());
                let some = shelf.read(of.0, of.1, from, Position(u64::MAX), 7, 5_000).expect("intact");
                let bytes: usize = some.iter().map(|message| message.body.len()).sum();
                prop_assert!(some.len() <= 7 && (bytes <= 5_000 || some.len() == 1));
                if some.is_empty() {
                    break;
                }
                read.extend(some);
            }
            // What was taken back in the same piece, or one it was merged with, is gone; the rest of it may be there.
            let facts = &story.states()[&of.0].channels[&of.1].facts;
            let now = |message: &Arc<Message>| as_redacted(message, &facts.redacted);
            let (read, messages): (Vec<_>, Vec<_>) =
                (read.iter().map(now).collect(), messages[first.min(messages.len())..].iter().map(now).collect());
            prop_assert_eq!(read, messages);
            // Below the floor there may be a hole, but that is no error.
            shelf.read(of.0, of.1, Position(1), Position(u64::MAX), 1_000, usize::MAX).expect("intact");
        }
        let report = verify(&disk).expect("no faults");
        prop_assert_eq!(report.problems.len(), 1, "only the format file is missing: {:?}", report.problems);
    }

    #[test]
    fn a_state_is_read_as_it_was_written(steps in steps(), cut in any::<prop::sample::Index>()) {
        let story = Story::tell(&steps);
        for state in states(&story.records[..cut.index(story.records.len())]).into_values() {
            let mut bytes = Vec::new();
            encode_state(&state, &mut bytes);
            prop_assert_eq!(decode_state(&Bytes::from(bytes)), Ok(state));
        }
    }

    #[test]
    fn a_damaged_state_is_read_or_refused(
        steps in steps(),
        damage in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4),
        keep in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = decode_state(&Bytes::from(garbage));
        for state in Story::tell(&steps).states().into_values() {
            let mut bytes = Vec::new();
            encode_state(&state, &mut bytes);
            for (at, value) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            bytes.truncate(bytes.len() - keep.index(bytes.len()) / 2);
            if let Ok(state) = decode_state(&Bytes::from(bytes)) {
                let mut again = Vec::new();
                encode_state(&state, &mut again);
                prop_assert!(decode_state(&Bytes::from(again)).is_ok());
            }
        }
    }
}

#[test]
fn an_index_of_several_levels_leads_to_every_message() {
    // Messages that fill a block each: 1,093 of them need a second level.
    let story = Story::chatter(2_400, 17_000);
    let disk = MemoryDisk::default();
    let mut shelf = Shelf(Vec::new());
    for (at, records) in story.records.chunks(400).enumerate() {
        let number = at as u64 + 1;
        let path = write_wal(&disk, CoreId(0), number, records);
        seal(&disk, &path, number, None).expect("intact");
        shelf.0.push(Arc::new(publish(&disk, number).expect("intact")));
    }
    let merged = merge(&disk, &shelf.0, &|_, _| None, 0).expect("intact");
    assert_eq!(merged.root.as_ref().map(|(_, level)| *level), Some(1));
    assert_eq!(merged.verify().expect("intact").messages, 2_400);
    let shelf = Shelf(vec![Arc::new(merged)]);
    for of in story.messages().keys() {
        for position in 1..=1_200 {
            assert_eq!(positions(&shelf, *of, position, u64::MAX, 2).first(), Some(&position));
        }
        assert!(positions(&shelf, *of, 1_201, u64::MAX, 2).is_empty());
        assert_eq!(positions(&shelf, *of, 10, 13, 100), [10, 11, 12]);
    }
    assert_eq!(positions(&shelf, (Partition(9), ChannelId(1)), 1, u64::MAX, 2), Vec::<u64>::new());
}

#[test]
fn files_of_all_cores_are_recovered_and_their_number_does_not_matter() {
    let story = Story::chatter(1_000, 100);
    let disk = MemoryDisk::default();
    let (mut zero, mut one) = (Vec::new(), Vec::new());
    for record in &story.records {
        if record.partition == Partition(0) { zero.push(record.clone()) } else { one.push(record.clone()) }
    }
    recover(&disk, 1_000).expect("a new log");
    write_wal(&disk, CoreId(0), 1, &zero[..100]);
    write_wal(&disk, CoreId(0), 2, &zero[100..]);
    write_wal(&disk, CoreId(5), 1, &one);
    write_wal(&disk, CoreId(5), 2, &[]);
    let recovered = recover(&disk, 7).expect("intact");
    assert_eq!(recovered.partitions, 1_000, "what is stored counts, not what is asked for");
    assert_eq!(recovered.states, story.states());
    assert_eq!(recovered.next_generation, BTreeMap::from([(CoreId(0), 3), (CoreId(5), 3)]));
    assert_eq!((recovered.report.records, recovered.report.segments, recovered.free.len()), (1_002, 4, 4));
    // The next life has one core only. What was sealed is not sealed again.
    write_wal(&disk, CoreId(0), 3, &[]);
    let plan = Plan::read(&disk, 1_000).expect("intact");
    assert_eq!(plan.jobs().len(), 1);
    let again = recover(&disk, 1_000).expect("intact");
    assert_eq!((again.states, again.free.len()), (story.states(), 5));
    assert_eq!(verify(&disk).expect("no faults").problems, []);
}

#[test]
fn what_is_missing_is_named() {
    let story = Story::chatter(400, 100);
    let check = |remove: &[&str], expected: &str| {
        let disk = MemoryDisk::default();
        write_format_of(&disk);
        let shelf = sealed(&disk, &story, &[100, 200, 300]);
        assert_eq!(shelf.0.len(), 4);
        write_wal(&disk, CoreId(0), 5, &[]);
        write_wal(&disk, CoreId(0), 6, &[]);
        for path in remove {
            crate::disk::Disk::remove(&disk, path).expect("it is there");
        }
        let error = recover(&disk, 1_024).map(|_| ()).expect_err("something is missing").to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!verify(&disk).expect("no faults").problems.is_empty());
    };
    check(&["segments/000000000002-000000000002.seg"], "segments/000000000002-000000000002.seg is missing");
    check(&["segments/000000000001-000000000001.seg"], "segments/000000000001-000000000001.seg is missing");
    check(&["wal/000-000000000005.wal"], "wal/000-000000000005.wal is missing");
    check(&["format"], "format is missing");
}

fn write_format_of(disk: &MemoryDisk) {
    crate::recovery::listing::write_format(disk, 1_024).expect("no faults");
}

#[test]
fn a_format_that_is_newer_is_refused_by_name() {
    let disk = MemoryDisk::default();
    let put = |body: &str| {
        let text = format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes()));
        disk.create("format").and_then(|file| file.write_at(0, text.as_bytes())).expect("no faults");
        recover(&disk, 1_024).map(|recovered| recovered.partitions).map_err(|error| error.to_string())
    };
    assert_eq!(put("thalweg-log 1\npartitions 64\n"), Ok(64));
    let newer = put("thalweg-log 2\nshape round\n").expect_err("newer");
    assert!(newer.contains("format has format 2; this version reads up to 1"), "{newer}");
    assert!(put("thalweg-log 1\npartitions 0\n").is_err());

    let disk = MemoryDisk::default();
    sealed(&disk, &Story::chatter(1, 1), &[]);
    write_format_of(&disk);
    let path = SegmentName::of(1).path();
    let mut bytes = disk.contents(&path).expect("it is there");
    bytes[8] = 3;
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    disk.open(&path).and_then(|file| file.write_at(0, &bytes)).expect("no faults");
    let newer = recover(&disk, 1_024).map(|_| ()).expect_err("newer").to_string();
    assert!(newer.contains("-000000000001.seg has format 3; this version reads up to 2"), "{newer}");
}

/// The steps of the golden files. Those of format 1 know of nothing that came later.
fn golden_steps(with_facts: bool, count: u16) -> Vec<Step> {
    let what = |n: u16| {
        if with_facts {
            n * 7 % 64
        } else if (8..=10).contains(&(n * 7 % 16)) {
            15
        } else {
            n * 7 % 16
        }
    };
    (0..count).map(|n| (n as u8 % 2, what(n) as u8, (n / 3) as u8, n % 40)).collect()
}

/// What a state was before there were facts.
fn without_facts(mut state: PartitionState) -> PartitionState {
    for channel in state.channels.values_mut() {
        (channel.messages, channel.active_us) = (0, 0);
        (channel.mentioned, channel.facts) = (BTreeMap::new(), ChannelFacts::default());
    }
    PartitionState { users: BTreeMap::new(), ..state }
}

/// Changing what an existing state section means would lose data: these bytes must be read for ever.
#[test]
fn golden_bytes_of_states() {
    let mut states = Story::tell(&golden_steps(true, 240)).states();
    let old: Vec<Result<PartitionState, StateError>> =
        golden::read("states_v2.txt").iter().map(|line| decode_state(&Bytes::from(golden::unhex(line)))).collect();
    assert_eq!(old, states.values().cloned().map(Ok).collect::<Vec<_>>());
    for channel in
        states.values_mut().flat_map(|state| state.channels.values_mut()).filter(|channel| channel.head.0 > 3)
    {
        let snapshot = |position, parts| Snapshot { position: Position(position), parts };
        channel.facts.snapshots = vec![snapshot(1, 1), snapshot(2, 2)];
    }
    let encoded = |state: &PartitionState| {
        let mut bytes = Vec::new();
        encode_state(state, &mut bytes);
        bytes
    };
    let lines: Vec<String> = states.values().map(|state| golden::hex(&encoded(state))).collect();
    golden::check("states_v3.txt", &lines);
    let has_everything = |state: &PartitionState| {
        let facts = || state.channels.values().map(|channel| &channel.facts);
        let lists = facts().any(|facts| !facts.members.is_empty() && !facts.readings.is_empty());
        lists && facts().any(|facts| !facts.redacted.is_empty()) && !state.users.is_empty()
    };
    assert!(states.values().any(has_everything), "{states:?}");
    for state in states.values() {
        assert_eq!(decode_state(&Bytes::from(encoded(state))).as_ref(), Ok(state));
    }
    let old: Vec<Result<PartitionState, StateError>> =
        golden::read("states_v1.txt").iter().map(|line| decode_state(&Bytes::from(golden::unhex(line)))).collect();
    let expected = Story::tell(&golden_steps(false, 120)).states().into_values();
    assert_eq!(old, expected.map(|state| Ok(without_facts(state))).collect::<Vec<_>>());
}

/// A whole segment of format 1 is read, and goes on in merges.
#[test]
fn golden_bytes_of_a_segment_of_format_1() {
    let disk = MemoryDisk::default();
    write_format_of(&disk);
    let name = SegmentName::of(1);
    let bytes = golden::unhex(&golden::read("segment_v1.txt")[0]);
    disk.create(&name.path()).and_then(|file| file.write_at(0, &bytes)).expect("no faults");
    let segment = Arc::new(Segment::open(&disk, name).expect("read for ever"));
    segment.verify().expect("intact");
    let story = Story::tell(&golden_steps(false, 24));
    let states: BTreeMap<_, _> = story.states().into_iter().map(|(of, state)| (of, without_facts(state))).collect();
    assert_eq!(segment.states().expect("intact"), states);
    for (of, messages) in story.messages() {
        let all: Vec<u64> = messages.iter().map(|message| message.position.0).collect();
        assert_eq!(positions(&Shelf(vec![Arc::clone(&segment)]), of, 1, u64::MAX, 1_000), all);
    }
    // Records of today follow it.
    let (lsn, key) = (states[&Partition(0)].last.next(), story.records[0].clone());
    let channel = ChannelId(1);
    let Event::ChannelCreated { channel: named, .. } = key.event.clone() else { panic!("a channel comes first") };
    let facts = vec![ChannelFact::Redacted { position: Position(1) }];
    let event = Event::ChannelChanged { channel: named, id: channel, facts, posting: None };
    let path = write_wal(&disk, CoreId(0), 2, &[Record { lsn, event, ..key }]);
    seal(&disk, &path, 2, None).expect("intact");
    let newer = Arc::new(publish(&disk, 2).expect("intact"));
    let merged = merge(&disk, &[segment, newer], &|_, _| None, 0).expect("intact");
    assert!(merged.states().expect("intact")[&Partition(0)].channels[&channel].facts.redacted.contains(&Position(1)));
}

/// What was taken back is not only hidden: once its segment is merged with the one that says so, no disk holds it.
#[test]
fn a_merge_drops_texts_that_were_taken_back() {
    let disk = MemoryDisk::default();
    // A channel, three messages, and in a piece of its own that the second was taken back.
    let redaction = (0, 32 + 8, 1, 7);
    let story = Story::tell(&[(0, 0, 1, 0), (0, 15, 0, 900), (0, 15, 0, 901), (0, 15, 0, 902), redaction]);
    let secret = story.records[2].event.posting().expect("a message").message.body.clone();
    let shelf = sealed(&disk, &story, &[4]);
    let holds = |name: SegmentName| {
        let bytes = disk.contents(&name.path()).expect("it is there");
        bytes.windows(secret.len()).any(|window| window == secret)
    };
    assert!(holds(SegmentName::of(1)));
    let merged = merge(&disk, &shelf.0, &|_, _| None, 0).expect("intact");
    assert!(!holds(merged.name()));
    let read = merged.read(Partition(0), ChannelId(1), Position(1), Position(9), 9, usize::MAX).expect("intact");
    let texts: Vec<_> = read.iter().map(|message| (message.body.len(), message.context.redacted)).collect();
    assert_eq!(texts, [(900, false), (0, true), (902, false)]);
}

#[test]
fn neighbours_of_like_size_are_merged_and_each_byte_seldom() {
    // A year of sealed files, then restarts that leave small ones.
    let (mut sizes, mut appended, mut written) = (Vec::<u64>::new(), 0, 0);
    let mut most = 0;
    for n in 0..20_000_u64 {
        let bytes = if n % 5 == 4 { 3_000 } else { LOG_FILE_BYTES + n % 1_000_000 };
        sizes.push(bytes);
        appended += bytes;
        while let Some(range) = merge_candidates(&sizes) {
            assert!(range.len() >= 2 && range.end <= sizes.len());
            let merged: u64 = sizes[range.clone()].iter().sum();
            written += merged;
            sizes.splice(range, [merged]);
        }
        most = most.max(sizes.len());
    }
    // 16,000 files of 32 MiB are four tiers and a part.
    assert!(written < 5 * appended, "{} times", written / appended);
    assert!(most <= 6 * SEGMENT_MERGE_FANIN, "{most} segments");
    assert_eq!(merge_candidates(&[]), None);
    assert_eq!(merge_candidates(&[LOG_FILE_BYTES; SEGMENT_MERGE_FANIN - 1]), None);
    assert_eq!(merge_candidates(&[LOG_FILE_BYTES; SEGMENT_MERGE_FANIN]), Some(0..SEGMENT_MERGE_FANIN));
}
