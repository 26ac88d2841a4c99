//! What of the messages on disk is still wanted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use thalweg_domain::partition::{ChannelState, PartitionState, first_kept};
use thalweg_journal::LogError;
use thalweg_journal::segment::Shelf;
use thalweg_protocol::ids::{ChannelId, Partition, Position};

/// What was deleted is gone from the disk after about so long, even if nothing else makes its segment be merged.
pub(super) const DELETED_KEPT: Duration = Duration::from_secs(3600);

/// The channels of the node as the segments know them: all that is needed to say below which position their messages may
/// go. Built from the segments' states in the background, so that nothing at the start waits for it.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// Only their channels.
    partitions: BTreeMap<Partition, PartitionState>,
    /// The last segment that was taken in.
    seen: u64,
    /// Since when there is a deletion that reaches into another segment.
    deleted_since: Option<Instant>,
}

impl Retention {
    /// Takes in the segments that are new.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(super) fn catch_up(&mut self, shelf: &Shelf, now: Instant) -> Result<(), LogError> {
        for segment in &shelf.0 {
            let (first, last) = segment.range();
            if last <= self.seen {
                continue;
            }
            debug_assert!(first == self.seen + 1, "only what was taken in is merged");
            for (partition, state) in segment.states()? {
                let newer = channels_only(state);
                if newer.channels.values().any(|channel| channel.deleted) {
                    self.deleted_since.get_or_insert(now);
                }
                let path = || segment.name().path();
                let merged = self.partitions.entry(partition).or_default().merge(newer);
                merged.map_err(|gap| LogError::Missing { partition, path: path(), gap })?;
            }
            self.seen = last;
        }
        Ok(())
    }

    /// Whether what was deleted has been on the disk for too long.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deleted_since.is_some_and(|since| now.duration_since(since) >= DELETED_KEPT)
    }

    /// All segments up to the last that was taken in were merged into one: nothing deleted is left in them.
    pub(super) fn all_merged(&mut self) {
        self.deleted_since = None;
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
