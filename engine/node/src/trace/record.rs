//! What cores tell the exporter. Times are microseconds since the node's clocks began.

use thalweg_protocol::generation::FinishReason;
use thalweg_protocol::ids::Name;

/// The ids of a trace, as its root knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ids {
    /// The trace; not 0.
    pub(super) trace: u128,
    /// The client's span that the root belongs to; 0 if the trace begins here.
    pub(super) parent: u64,
    /// The root's own span; not 0.
    pub(super) root: u64,
}

/// Something that was measured of a request that is traced. A core puts `Begin` on its ring before anybody else learns of
/// the root.
#[derive(Debug)]
pub(super) enum Record {
    /// A request came.
    Begin { ids: Ids, name: &'static str, tenant: Name, core: u16, start_us: u64 },
    /// A part of what was done about it.
    Span { root: u64, name: &'static str, start_us: u64, end_us: u64 },
    /// What the inference stage did about it.
    Generation { root: u64, generation: Box<GenerationRecord> },
    /// It was answered, or will not be; `error` says why, if it was refused.
    End { root: u64, end_us: u64, error: Option<&'static str> },
}

impl Record {
    /// Spans that are lost if this is.
    pub(super) fn spans(&self) -> usize {
        match self {
            // The root becomes a span at its end.
            Self::Begin { .. } => 0,
            Self::Span { .. } | Self::End { .. } => 1,
            Self::Generation { generation, .. } => generation.spans(),
        }
    }
}

/// The moments of a generation. One that was not reached is none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GenerationRecord {
    /// The model that answered.
    pub(crate) model: Option<Name>,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Tokens of the answer.
    pub(crate) completion_tokens: u32,
    /// How it ended; none if it was refused.
    pub(crate) reason: Option<FinishReason>,
    /// Its core handed it to the stage.
    pub(crate) submitted_us: u64,
    /// The inference thread took it off the ring.
    pub(crate) taken_us: Option<u64>,
    /// Its prompt was tokenised.
    pub(crate) tokenised_us: Option<u64>,
    /// It got a slot.
    pub(crate) admitted_us: Option<u64>,
    /// The step with its first row began.
    pub(crate) first_row_us: Option<u64>,
    /// Its first token was drawn.
    pub(crate) first_token_us: Option<u64>,
    /// Its core took that token off the ring.
    pub(crate) first_received_us: Option<u64>,
    /// When it had no credit, or its core did not take its tokens, from and to.
    pub(crate) parks_us: Vec<(u64, u64)>,
    /// The stage was done with it.
    pub(crate) ended_us: u64,
    /// Its core heard so.
    pub(crate) received_us: u64,
}

impl GenerationRecord {
    /// Its parts: name, beginning and end. Parts that did not happen are left out.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let between = |name, from: Option<u64>, to: Option<u64>| Some((name, from?, to?));
        let prefill = self.first_row_us.or(self.admitted_us);
        let ended = Some(self.ended_us);
        let stages = [
            between("ring.inference", Some(self.submitted_us), self.taken_us),
            between("worker.tokenise", self.taken_us, self.tokenised_us),
            between("scheduler.queue", self.tokenised_us, prefill.or(self.tokenised_us.and(ended))),
            between("worker.prefill", prefill, self.first_token_us.or(ended)),
            between("worker.decode", self.first_token_us, ended),
            between("ring.inference", self.first_token_us, self.first_received_us),
        ];
        let parks = self.parks_us.iter().map(|&(from, to)| ("scheduler.park", from, to));
        stages.into_iter().flatten().chain(parks)
    }

    /// Spans that come of it: its own, and one a part.
    fn spans(&self) -> usize {
        1 + self.parts().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_from_the_moments_that_were_reached() {
        let none = GenerationRecord {
            model: None,
            prompt_tokens: 0,
            completion_tokens: 0,
            reason: None,
            submitted_us: 1,
            taken_us: None,
            tokenised_us: None,
            admitted_us: None,
            first_row_us: None,
            first_token_us: None,
            first_received_us: None,
            parks_us: Vec::new(),
            ended_us: 90,
            received_us: 95,
        };
        let check = |record: &GenerationRecord, expected: &[(&'static str, u64, u64)]| {
            assert_eq!(record.parts().collect::<Vec<_>>(), expected);
            assert_eq!(record.spans(), 1 + expected.len());
        };
        check(&none, &[]);
        let refused = GenerationRecord { taken_us: Some(2), ..none.clone() };
        check(&refused, &[("ring.inference", 1, 2)]);
        // Cancelled while it waited.
        let waited = GenerationRecord { tokenised_us: Some(5), ..refused };
        check(&waited, &[("ring.inference", 1, 2), ("worker.tokenise", 2, 5), ("scheduler.queue", 5, 90)]);
        let whole = GenerationRecord {
            admitted_us: Some(8),
            first_row_us: Some(9),
            first_token_us: Some(20),
            first_received_us: Some(21),
            parks_us: vec![(30, 40)],
            ..waited
        };
        check(
            &whole,
            &[
                ("ring.inference", 1, 2),
                ("worker.tokenise", 2, 5),
                ("scheduler.queue", 5, 9),
                ("worker.prefill", 9, 20),
                ("worker.decode", 20, 90),
                ("ring.inference", 20, 21),
                ("scheduler.park", 30, 40),
            ],
        );
    }
}
