//! Merging neighbouring segments.
//!
//! Which: sizes fall into tiers, each [`SEGMENT_MERGE_FANIN`] times the one below, and so many neighbours of one tier become
//! one of the next. A byte is so written once to the write-ahead log, once when it is sealed, and once a tier that it
//! passes: with files of 32 MiB and a fan-in of 8, a log of 2 GiB has passed two tiers, one of 1 TiB five. Each byte is
//! thus written 2 + log₈(size / 32 MiB) times, and a read looks into fewer than 8 segments of each tier.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use thalweg_domain::partition::PartitionState;
use thalweg_protocol::ids::{ChannelId, CoreId, Partition, Position};
use thalweg_protocol::limits::{LOG_FILE_BYTES, SEGMENT_MERGE_FANIN};

use super::block::Entry as Stored;
use super::cursor::Cursor;
use super::reader::{Cover, Segment};
use super::seal::{Keeps, publish_as, redact};
use super::writer::SegmentWriter;
use super::{Key, SEGMENTS, SegmentName};
use crate::disk::{Disk, DiskError};
use crate::error::LogError;

/// The first position of a channel that is still wanted, if it is known.
pub type Floors<'a> = dyn Fn(Partition, ChannelId) -> Option<Position> + 'a;

/// The largest segment of the lowest tier. Chosen such that sealed files, which are of about [`LOG_FILE_BYTES`], lie well
/// within one tier, and such that small ones, left by restarts and checkpoints, are not rewritten with large ones.
const TIER_BYTES: u64 = LOG_FILE_BYTES * 3 / 2 / (SEGMENT_MERGE_FANIN as u64).pow(3);

/// Neighbours beyond which they are merged although too few are of one tier: so that reads do not look into many.
const NEIGHBOURS_MAX: usize = 4 * SEGMENT_MERGE_FANIN;

const _: () = assert!(SEGMENT_MERGE_FANIN >= 2);

/// Which neighbours should be merged, given the sizes of all segments, oldest first; none if there is nothing to do.
pub fn merge_candidates(sizes: &[u64]) -> Option<Range<usize>> {
    let tiers: Vec<u32> = sizes.iter().map(|bytes| tier(*bytes)).collect();
    let highest = tiers.iter().copied().max()?;
    for tier in 0..=highest {
        let mut at = 0;
        while at < tiers.len() {
            let run = tiers[at..].iter().take_while(|other| **other <= tier).count();
            let alike = tiers[at..at + run].iter().filter(|other| **other == tier).count();
            if alike >= SEGMENT_MERGE_FANIN || run >= NEIGHBOURS_MAX {
                return Some(at..at + run.min(NEIGHBOURS_MAX));
            }
            at += run + 1;
        }
    }
    None
}

fn tier(bytes: u64) -> u32 {
    let mut tier = 0;
    let mut most = TIER_BYTES;
    while bytes > most {
        tier += 1;
        most = most.saturating_mul(SEGMENT_MERGE_FANIN as u64);
    }
    tier
}

/// Merges neighbours, oldest first, into one segment, and gives it its place beside them. [`remove_replaced`] takes them away
/// once nobody new will open them; recovery does if that was not done.
///
/// Left out are messages of channels that were deleted since, and those below the floor of their channel; texts that were taken
/// back in one of these; generations that ended so long before `now_us` that they expired. Streams: memory is needed for a few blocks of each, and for the states.
///
/// # Errors
/// [`LogError::Damaged`], [`LogError::Missing`], or what the disk says. What was begun is removed, unless the disk does not do
/// even that; then it is left behind, as `.new`, and recovery removes it.
///
/// # Panics
/// If there are none, or they are no neighbours.
pub fn merge(disk: &dyn Disk, parts: &[Arc<Segment>], floors: &Floors<'_>, now_us: u64) -> Result<Segment, LogError> {
    let neighbours = parts.windows(2).all(|pair| pair[0].range().1 + 1 == pair[1].range().0);
    assert!(neighbours && !parts.is_empty(), "only neighbours are merged");
    let name = SegmentName { first: parts[0].range().0, last: parts[parts.len() - 1].range().1 };
    write_merged(disk, name, parts, floors, now_us).and_then(|()| publish_as(disk, name)).inspect_err(|_| {
        // Whatever it was that failed: on a full disk, the room that this takes is the room that everybody lacks.
        let _ = disk.remove(&name.path_new());
    })
}

fn write_merged(
    disk: &dyn Disk,
    name: SegmentName,
    parts: &[Arc<Segment>],
    floors: &Floors<'_>,
    now_us: u64,
) -> Result<(), LogError> {
    let mut states = BTreeMap::new();
    let mut covers = BTreeMap::new();
    for part in parts {
        merge_states(&mut states, part)?;
        merge_covers(&mut covers, part)?;
    }
    states.values_mut().for_each(|state: &mut PartitionState| state.expire(now_us));
    let mut writer = SegmentWriter::create(disk, name)?;
    merge_entries(parts, &states, floors, &mut |entry| writer.push(entry))?;
    let covers: Vec<Cover> = covers.into_values().collect();
    writer.finish(&states, &covers)?;
    Ok(())
}

/// Removes segments that a merge replaced.
///
/// # Errors
/// What the disk says.
pub fn remove_replaced(disk: &dyn Disk, replaced: &[SegmentName]) -> Result<(), DiskError> {
    for name in replaced {
        disk.remove(&name.path())?;
    }
    disk.sync_dir(SEGMENTS)
}

/// Adds what the records of the next segment left behind.
pub(crate) fn merge_states(
    states: &mut BTreeMap<Partition, PartitionState>,
    segment: &Segment,
) -> Result<(), LogError> {
    for (partition, newer) in segment.states()? {
        let path = || segment.name().path();
        let state = states.entry(partition).or_default();
        state.merge(newer).map_err(|gap| LogError::Missing { partition, path: path(), gap })?;
    }
    Ok(())
}

/// Adds what the next segment covers, which must follow what the ones before it do.
pub(crate) fn merge_covers(covers: &mut BTreeMap<CoreId, Cover>, segment: &Segment) -> Result<(), LogError> {
    for newer in segment.covers() {
        match covers.entry(newer.core) {
            Entry::Vacant(place) => {
                place.insert(*newer);
            }
            Entry::Occupied(older) if older.get().to + 1 == newer.from => older.into_mut().to = newer.to,
            Entry::Occupied(older) => {
                let (Cover { core, from, .. }, before) = (newer, older.get().to);
                let what = format!("it goes on with log file {from} of core {core}; before it was file {before}");
                return Err(LogError::Damaged { path: segment.name().path(), offset: 0, what });
            }
        }
    }
    Ok(())
}

/// Gives the entries of all parts in order to `write`, without those that are not wanted.
fn merge_entries(
    parts: &[Arc<Segment>],
    states: &BTreeMap<Partition, PartitionState>,
    floors: &Floors<'_>,
    write: &mut dyn FnMut(&Stored) -> Result<(), DiskError>,
) -> Result<(), LogError> {
    let start = Key { partition: Partition(0), channel: ChannelId(0), position: Position(0) };
    let mut cursors = Vec::new();
    for part in parts {
        let mut cursor = Cursor::seek(part, start)?;
        let key = cursor.key()?;
        cursors.push((key, cursor));
    }
    let mut keeps = Keeps::new(states);
    loop {
        // Few parts: to look at each channel's beginning for the least is cheap, since an older part's messages of a
        // channel all come before a newer one's.
        let least = cursors.iter().filter_map(|(key, _)| *key).map(|key| (key.partition, key.channel)).min();
        let Some((partition, channel)) = least else { return Ok(()) };
        let kept = keeps.check(partition, channel);
        let mut channel_of =
            Channel { partition, channel, floor: floors(partition, channel), dropped: None, begun: false };
        channel_of.gather_floors(&mut cursors)?;
        for (key, cursor) in &mut cursors {
            while key.is_some_and(|key| (key.partition, key.channel) == (partition, channel)) {
                if let Some(entry) = cursor.next()?
                    && let Some(state) = kept
                {
                    match state.facts.redacted.is_empty() {
                        true => channel_of.put(&entry, write)?,
                        false => channel_of.put(&redact(&entry, &cursor.message(&entry)?, state), write)?,
                    }
                }
                *key = cursor.key()?;
            }
        }
        if kept.is_some() {
            channel_of.begin(write)?;
        }
    }
}

/// One channel in a merge.
struct Channel {
    partition: Partition,
    channel: ChannelId,
    floor: Option<Position>,
    /// Below which position messages are missing for a reason: by this merge, or by one before it.
    dropped: Option<Position>,
    begun: bool,
}

impl Channel {
    /// Takes the floors of the parts, which stand before all messages of the channel, and says what becomes of the floor
    /// before it is written.
    fn gather_floors(&mut self, cursors: &mut [(Option<Key>, Cursor<'_>)]) -> Result<(), LogError> {
        for (key, cursor) in cursors {
            let Some(first) = *key else { continue };
            if (first.partition, first.channel) != (self.partition, self.channel) {
                continue;
            }
            if first.position == Position(0) {
                self.dropped = self.dropped.max(cursor.next()?.and_then(|entry| entry.as_floor()));
                *key = cursor.key()?;
            }
            let goes_on = key.filter(|key| (key.partition, key.channel) == (self.partition, self.channel));
            if goes_on.is_some_and(|key| self.floor.is_some_and(|floor| key.position < floor)) {
                self.dropped = self.dropped.max(self.floor);
            }
        }
        Ok(())
    }

    fn put(
        &mut self,
        entry: &Stored,
        write: &mut dyn FnMut(&Stored) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        if self.floor.is_some_and(|floor| entry.key.position < floor) {
            return Ok(());
        }
        self.begin(write)?;
        write(entry)
    }

    /// Writes the floor, if there is one and it was not written.
    fn begin(&mut self, write: &mut dyn FnMut(&Stored) -> Result<(), DiskError>) -> Result<(), DiskError> {
        match self.dropped.filter(|_| !std::mem::replace(&mut self.begun, true)) {
            Some(floor) => write(&Stored::floor(self.partition, self.channel, floor)),
            None => Ok(()),
        }
    }
}
