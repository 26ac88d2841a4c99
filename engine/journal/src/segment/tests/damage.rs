//! Whatever byte is wrong, it is noticed, and nothing wrong is ever served.

use proptest::prelude::*;
use thalweg_protocol::ids::{CoreId, Position};

use super::super::block::{BLOCK_HEADER_BYTES, HEADER_BYTES};
use super::super::footer::FOOTER_BYTES;
use super::super::*;
use super::story::{Story, write_wal};
use crate::disk::{Disk, MemoryDisk};

/// A segment of several blocks, and its bytes.
fn segment() -> (Story, Vec<u8>) {
    let story = Story::chatter(300, 250);
    let disk = MemoryDisk::default();
    let path = write_wal(&disk, CoreId(0), 1, &story.records);
    seal(&disk, &path, 1, None).expect("intact");
    publish(&disk, 1).expect("intact");
    let bytes = disk.contents(&SegmentName::of(1).path()).expect("it is there");
    (story, bytes)
}

/// Every access to a segment of these bytes: verify must refuse, the others refuse or give the truth.
fn check(story: &Story, bytes: &[u8], why: &str) {
    let disk = MemoryDisk::default();
    disk.create(&SegmentName::of(1).path()).and_then(|file| file.write_at(0, bytes)).expect("no faults");
    let Ok(segment) = Segment::open(&disk, SegmentName::of(1)) else { return };
    assert!(segment.verify().is_err(), "{why} was not noticed");
    if let Ok(states) = segment.states() {
        assert_eq!(states, story.states(), "{why}");
    }
    let shelf = Shelf(vec![segment.into()]);
    for ((partition, channel), messages) in story.messages() {
        if let Ok(read) = shelf.read(partition, channel, Position(1), Position(u64::MAX), 1_000, usize::MAX) {
            assert_eq!(read, messages, "{why}");
        }
    }
}

#[test]
fn every_flipped_byte_of_the_ends_is_noticed() {
    let (story, bytes) = segment();
    let ends = (0..HEADER_BYTES + BLOCK_HEADER_BYTES).chain(bytes.len() - FOOTER_BYTES - 200..bytes.len());
    for at in ends {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        check(&story, &bytes, &format!("a flipped byte at {at}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_flipped_byte_anywhere_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=u8::MAX) {
        let (story, mut bytes) = segment();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        check(&story, &bytes, &format!("a flipped byte at {at}"));
    }

    #[test]
    fn a_file_that_is_cut_or_longer_is_noticed(keep in any::<prop::sample::Index>(), more in 1_usize..5_000) {
        let (story, bytes) = segment();
        check(&story, &bytes[..keep.index(bytes.len())], "a cut file");
        check(&story, &[&bytes[..], &vec![0; more][..]].concat(), "a longer file");
    }

    #[test]
    fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let (story, bytes) = segment();
        check(&story, &garbage, "garbage");
        // Between ends that are intact.
        let mut between = bytes.clone();
        let at = HEADER_BYTES + garbage.len();
        between[at..at + garbage.len()].copy_from_slice(&garbage);
        if between != bytes {
            check(&story, &between, "garbage inside");
        }
    }
}

#[test]
fn all_problems_are_listed() {
    let (_, mut bytes) = segment();
    let disk = MemoryDisk::default();
    bytes[100] ^= 1;
    bytes[90_000] ^= 1;
    disk.create(&SegmentName::of(1).path()).and_then(|file| file.write_at(0, &bytes)).expect("no faults");
    crate::recovery::listing::write_format(&disk, 1_024).expect("no faults");
    let report = verify(&disk).expect("no faults");
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
    assert!(report.problems[0].to_string().starts_with("segments/000000000001-000000000001.seg, offset 16: "));
}

#[test]
fn a_block_that_strayed_is_noticed() {
    let (story, bytes) = segment();
    let block = |at: usize| {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().expect("four bytes")) as usize;
        at + BLOCK_HEADER_BYTES + length
    };
    // The first two blocks change places: each is intact in itself.
    let (first, second) = (HEADER_BYTES, block(HEADER_BYTES));
    let third = block(second);
    let mut swapped = bytes[..first].to_vec();
    for part in [&bytes[second..third], &bytes[first..second], &bytes[third..]] {
        swapped.extend_from_slice(part);
    }
    check(&story, &swapped, "two blocks that changed places");
    // Another segment's file under this one's name.
    let disk = MemoryDisk::default();
    disk.create(&SegmentName::of(2).path()).and_then(|file| file.write_at(0, &bytes)).expect("no faults");
    let error = Segment::open(&disk, SegmentName::of(2)).map(|_| ()).expect_err("another's").to_string();
    assert!(error.contains("the file is segment 000000000001-000000000001"), "{error}");
}
