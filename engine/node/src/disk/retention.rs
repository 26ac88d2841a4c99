//! What of the messages on disk is still wanted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use thalweg_domain::partition::{ChannelState, PartitionState, first_kept};
use thalweg_journal::LogError;
use thalweg_journal::segment::{Segment, Shelf};
use thalweg_protocol::ids::{ChannelId, Partition, Position};

/// What was deleted is gone from the segments after about so long, even if nothing else makes them be merged. Counted from
/// when the segment with the deletion was written, so that it makes no difference how often the node is started again; a
/// merge that takes in the deletion and not what it deletes begins the time anew, at most once a tier.
pub(super) const DELETED_KEPT: Duration = Duration::from_secs(3600);

/// The channels of the node as the segments know them: all that is needed to say below which position their messages may
/// go. Built from the segments' states in the background, so that nothing at the start waits for it.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// Only their channels.
    partitions: BTreeMap<Partition, PartitionState>,
    /// The first number of the segment that saw a channel made, as it was when it was taken in.
    homes: BTreeMap<(Partition, ChannelId), u64>,
    /// The last segment that was taken in.
    seen: u64,
    /// Deletions that reach into other segments, by the last number of the segment that holds them.
    deleted: BTreeMap<u64, Reach>,
}

/// How far deletions reach.
#[derive(Debug, Clone, Copy)]
struct Reach {
    /// The number of the oldest segment with anything that they delete.
    first: u64,
    /// Since when, in microseconds since 1970.
    since_us: u64,
}

impl Retention {
    /// Takes in the segments that are new; `age` says how long ago one was written.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(super) fn catch_up(
        &mut self,
        shelf: &Shelf,
        now_us: u64,
        age: &dyn Fn(&Segment) -> Duration,
    ) -> Result<(), LogError> {
        for segment in &shelf.0 {
            let (first, last) = segment.range();
            if last <= self.seen {
                continue;
            }
            debug_assert!(first == self.seen + 1, "only what was taken in is merged");
            let since_us = now_us.saturating_sub(age(segment).as_micros() as u64);
            for (partition, state) in segment.states()? {
                let newer = channels_only(state);
                self.note_deletions(partition, &newer, (first, last), since_us);
                let path = || segment.name().path();
                let state = self.partitions.entry(partition).or_default();
                state.merge(newer).map_err(|gap| LogError::Missing { partition, path: path(), gap })?;
                state.expire(now_us);
            }
            self.seen = last;
        }
        Ok(())
    }

    fn note_deletions(
        &mut self,
        partition: Partition,
        newer: &PartitionState,
        (first, last): (u64, u64),
        since_us: u64,
    ) {
        for (id, channel) in &newer.channels {
            if channel.deleted {
                // One that no segment saw made, in a log that was salvaged, may be in any.
                let home = self.homes.remove(&(partition, *id)).unwrap_or(1);
                let reach = self.deleted.entry(last).or_insert(Reach { first: home, since_us });
                reach.first = reach.first.min(home);
            } else if channel.made.is_some() {
                self.homes.insert((partition, *id), first);
            }
        }
    }

    /// The segments that must be merged, because what was deleted has been on the disk for too long: from one that saw a
    /// channel made to the one that saw it deleted. What was merged meanwhile is no longer due.
    pub(super) fn overdue(&mut self, shelf: &Shelf, now_us: u64) -> Option<Range<usize>> {
        let ranges: Vec<_> = shelf.0.iter().map(|segment| segment.range()).collect();
        self.deleted.retain(|last, reach| !ranges.iter().any(|(from, to)| *from <= reach.first && last <= to));
        let kept_us = DELETED_KEPT.as_micros() as u64;
        let long_ago = |reach: &Reach| now_us.saturating_sub(reach.since_us) >= kept_us;
        let overdue = self.deleted.iter().filter(|(_, reach)| long_ago(reach));
        let mut overdue: Vec<_> = overdue.map(|(last, reach)| (reach.first, *last)).collect();
        overdue.sort_unstable();
        let (first, mut last) = *overdue.first()?;
        // Those that overlap are merged at once, not one after the other.
        for (from, to) in overdue {
            if from <= last {
                last = last.max(to);
            }
        }
        let begin = ranges.iter().position(|(_, to)| *to >= first)?;
        let end = ranges.iter().rposition(|(from, _)| *from <= last)?;
        Some(begin..end + 1)
    }

    /// Below which position each channel's messages may go.
    pub(super) fn floors(&self, now_us: u64) -> impl Fn(Partition, ChannelId) -> Option<Position> {
        move |partition, id| {
            let channel = self.partitions.get(&partition)?.channels.get(&id)?;
            let (_, settings) = channel.made.as_ref()?;
            let ChannelState { head, bytes, marks, .. } = channel;
            Some(first_kept(settings, *head, *bytes, marks.iter(), now_us))
        }
    }
}

/// The rest is not needed here and may be large.
fn channels_only(state: PartitionState) -> PartitionState {
    let PartitionState { first, last, channels, .. } = state;
    PartitionState { first, last, channels, ..PartitionState::default() }
}
