//! All segments of a log.

use std::sync::Arc;

use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelId, Partition, Position};

use super::SEGMENTS;
use super::reader::{Run, Segment};
use crate::error::LogError;

/// Stands for the end of a channel, wherever that is.
pub const END: Position = Position(u64::MAX);

/// The segments of a log, oldest first. Cheap to clone; whoever holds one goes on reading what it had when segments are
/// merged.
#[derive(Debug, Clone, Default)]
pub struct Shelf(pub Vec<Arc<Segment>>);

impl Shelf {
    /// Messages of one channel in `from..to`, all of which were written (or `to` is [`END`]), without a gap between them, beginning with the first at or after `from` that
    /// exists: as many as the bounds allow, but one at least if there is one. Fewer than the bounds allow say nothing about
    /// what follows: ask again from the position after the last.
    ///
    /// Costs, in each segment from the newest down to the one that holds `from`, the way down the index (of which the top
    /// is in memory) to one block, and the blocks of what is returned.
    ///
    /// # Errors
    /// [`LogError::Damaged`], if what is touched is, or if messages are missing that no merge dropped; or what the disk
    /// says.
    pub fn read(
        &self,
        partition: Partition,
        channel: ChannelId,
        from: Position,
        to: Position,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Message>>, LogError> {
        let from = from.max(Position(1));
        if from >= to {
            return Ok(Vec::new());
        }
        let mut cursors = Vec::new();
        for segment in self.0.iter().rev() {
            let mut cursor = segment.cursor(partition, channel, from)?;
            let found = cursor.key()?.filter(|key| (key.partition, key.channel) == (partition, channel));
            if let Some(key) = found {
                cursors.push((segment, cursor));
                if key.position == from {
                    break;
                }
            }
        }
        let mut run = Run::new(messages_max, bytes_max, to);
        for (segment, cursor) in cursors.iter_mut().rev() {
            if run.messages.is_empty()
                && let Some(key) = cursor.key()?
                && key.position > from
                && self.floor(partition, channel)?.is_none_or(|floor| floor < key.position.min(to))
            {
                let what = format!(
                    "partition {partition}, channel {channel}: messages {from} to {} are missing",
                    key.position.0 - 1
                );
                return Err(segment.blocks.damaged(cursor.offset(), what));
            }
            while run.take(segment, partition, channel, cursor)? {}
            // Another segment goes on only where this one came to its end of the channel.
            let more = cursor.key()?.is_some_and(|key| (key.partition, key.channel) == (partition, channel));
            if more {
                break;
            }
        }
        if cursors.is_empty() && to != END && self.floor(partition, channel)?.is_none_or(|floor| floor < to) {
            let newest = self.0.last().map_or(SEGMENTS.to_owned(), |segment| segment.name().path());
            let what = format!("partition {partition}, channel {channel}: messages {from} to {} are missing", to.0 - 1);
            return Err(LogError::Damaged { path: newest, offset: 0, what });
        }
        Ok(run.messages)
    }

    /// Below which position messages of a channel were dropped, by whichever merge.
    fn floor(&self, partition: Partition, channel: ChannelId) -> Result<Option<Position>, LogError> {
        let mut highest = None;
        for segment in &self.0 {
            highest = highest.max(segment.floor(partition, channel)?);
        }
        Ok(highest)
    }
}
