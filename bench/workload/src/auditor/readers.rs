//! What one subscription got, and what it should have got.

use std::ops::Bound;

use thalweg_protocol::ids::{Position, SessionId};

use super::{Channel, ChannelIndex, ReaderId, Violation};

/// A subscription as its reader sees it.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) session: SessionId,
    pub(super) channel: ChannelIndex,
    /// Whether more is expected.
    pub(super) open: bool,
    /// Where it was said to start.
    next: Position,
    /// The newest position that was delivered or announced as missed; one before `next` at first.
    last: Position,
    /// Positions that were passed over: each range inclusive, in order.
    gaps: Vec<(Position, Position)>,
    /// Positions announced as missed: each range inclusive, in order.
    missed: Vec<(Position, Position)>,
}

fn within(ranges: &[(Position, Position)], position: Position) -> bool {
    let after = ranges.partition_point(|&(from, _)| from <= position);
    after.checked_sub(1).is_some_and(|at| position <= ranges[at].1)
}

/// The position after this one. Positions come from outside: an absurd one is judged, not a reason to panic.
fn after(position: Position) -> Position {
    Position(position.0.saturating_add(1))
}

impl Reader {
    pub(super) fn new(session: SessionId, channel: ChannelIndex, next: Position) -> Self {
        let last = Position(next.0.saturating_sub(1));
        Self { session, channel, open: true, next, last, gaps: Vec::new(), missed: Vec::new() }
    }

    /// Notes a delivered position.
    pub(super) fn take(&mut self, reader: ReaderId, position: Position) -> Option<Violation> {
        if !self.open {
            return Some(Violation::AfterEnd { reader, position });
        }
        if position < self.next {
            return Some(Violation::BeforeStart { reader, position, next: self.next });
        }
        if position <= self.last {
            let late = within(&self.gaps, position) || within(&self.missed, position);
            let last = self.last;
            return Some(match late {
                true => Violation::OutOfOrder { reader, position, last },
                false => Violation::Doubled { reader, position },
            });
        }
        self.pass_to(position);
        self.last = position;
        None
    }

    /// Notes a notice of missed positions.
    pub(super) fn miss(&mut self, reader: ReaderId, from: Position, to: Position) -> Option<Violation> {
        // A reader whose start is no longer kept is told so: such a notice may begin before `next`.
        if from > to || (from <= self.last && to >= self.next && self.last >= self.next) {
            return Some(Violation::MissedInvalid { reader, from, to });
        }
        if to <= self.last {
            return None;
        }
        self.pass_to(from);
        self.missed.push((from.max(after(self.last)), to));
        self.last = to;
        None
    }

    fn pass_to(&mut self, position: Position) {
        let expected = after(self.last);
        if position > expected {
            self.gaps.push((expected, Position(position.0 - 1)));
        }
    }

    /// What is wrong at the end. `unacked`: writes of the reader's own session that may stand at unknown positions.
    pub(super) fn judge(&self, id: ReaderId, channel: &Channel, unacked: u64, settled: bool) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut excuses = unacked;
        for &(from, to) in &self.gaps {
            self.judge_gap(id, channel, from, to, &mut excuses, &mut found);
        }
        if settled && self.open {
            // Behind the last position only what somebody knows of can be missing.
            for (&position, slot) in channel.slots.range((Bound::Excluded(self.last), Bound::Unbounded)) {
                let others = slot.author.filter(|author| author.0 != self.session);
                match others {
                    Some((session, sequence)) if slot.acked => {
                        found.push(Violation::AckedLost { reader: id, position, session, sequence });
                    }
                    Some(_) => found.push(Violation::Gap { reader: id, from: position, to: position }),
                    None if slot.author.is_none() => {
                        found.push(Violation::Gap { reader: id, from: position, to: position });
                    }
                    None => {}
                }
            }
        }
        found
    }

    fn judge_gap(
        &self,
        id: ReaderId,
        channel: &Channel,
        from: Position,
        to: Position,
        excuses: &mut u64,
        found: &mut Vec<Violation>,
    ) {
        let mut known = 0;
        for (&position, slot) in channel.slots.range(from..=to) {
            known += 1;
            match slot.author {
                Some((session, _)) if session == self.session => {}
                Some((session, sequence)) if slot.acked => {
                    found.push(Violation::AckedLost { reader: id, position, session, sequence });
                }
                _ => found.push(Violation::Gap { reader: id, from: position, to: position }),
            }
        }
        // Nobody knows what stands at the others: the session's own writes whose acknowledgement was lost, or a hole.
        let unknown = to.0 - from.0 + 1 - known;
        match excuses.checked_sub(unknown) {
            Some(left) => *excuses = left,
            None => found.push(Violation::Gap { reader: id, from, to }),
        }
    }
}
