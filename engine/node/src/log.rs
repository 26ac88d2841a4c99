//! The log behind a core: what makes an append durable.

use thalweg_domain::record::Record;
use thalweg_shard::Ticket;

/// What a core needs of its log.
///
/// Contract: [`append`](Self::append) any number of records, then [`commit`](Self::commit) once per turn; it begins to make
/// durable what was appended and says up to where everything is durable now. It never waits: a log whose storage is slow
/// gathers the next group while the last one syncs.
pub trait Log {
    /// Takes a record. Tickets come in order, without gaps.
    fn append(&mut self, ticket: Ticket, record: Record);

    /// Moves on, and gives the newest ticket up to which everything is as durable as was asked for, if it has moved.
    fn commit(&mut self) -> Option<Ticket>;
}

/// The log of a node whose data lives as long as its process. An append is as durable as it will get at once; the state of
/// the shard is all that is kept.
#[derive(Debug, Default)]
pub struct MemoryLog {
    appended: Ticket,
    committed: Ticket,
}

impl Log for MemoryLog {
    fn append(&mut self, ticket: Ticket, _record: Record) {
        debug_assert_eq!(ticket.0, self.appended.0 + 1, "tickets come in order, without gaps");
        self.appended = ticket;
    }

    fn commit(&mut self) -> Option<Ticket> {
        (self.committed < self.appended).then(|| {
            self.committed = self.appended;
            self.committed
        })
    }
}

#[cfg(test)]
mod tests {
    use thalweg_domain::record::Event;
    use thalweg_protocol::generation::{FinishReason, Usage};
    use thalweg_protocol::ids::{Epoch, GenerationId, Lsn, Partition};

    use super::*;

    #[test]
    fn a_commit_reports_each_ticket_once() {
        let (reason, usage) = (FinishReason::Stop, Usage::default());
        let event = Event::GenerationFinished { generation: GenerationId(1), reason, usage };
        let record = Record { partition: Partition(0), lsn: Lsn(1), epoch: Epoch(1), timestamp_us: 0, event };
        let mut log = MemoryLog::default();
        assert_eq!(log.commit(), None);
        log.append(Ticket(1), record.clone());
        log.append(Ticket(2), record);
        assert_eq!((log.commit(), log.commit()), (Some(Ticket(2)), None));
    }
}
