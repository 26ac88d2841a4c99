//! What everybody saw: the auditor's book, and counts for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use thalweg_protocol::ids::Position;
use thalweg_workload::auditor::{Auditor, ChannelIndex, Event, ReaderId, WatchId};

/// Complaints that are kept.
const COMPLAINTS_MAX: usize = 100;

/// What happened how often.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    /// Acknowledged as done before: repeated over a crash, and recognised.
    pub(crate) duplicates: u64,
    /// Nobody knows whether they were carried out: the node says so.
    pub(crate) expired: u64,
    pub(crate) delivered: u64,
    pub(crate) missed: u64,
    pub(crate) pages: u64,
    pub(crate) readers: u64,
    pub(crate) reconnects: u64,
    pub(crate) answers: u64,
    pub(crate) tokens: u64,
    pub(crate) rewound: u64,
}

#[derive(Debug, Default)]
struct Book {
    auditor: Auditor,
    counts: Counts,
    complaints: Vec<String>,
    ids: u64,
    /// The newest acknowledged position of each channel.
    heads: BTreeMap<ChannelIndex, Position>,
    /// Where the readers that stay to the end are.
    cursors: BTreeMap<ReaderId, (ChannelIndex, Position)>,
    /// Readers that began and did not end.
    readers: BTreeSet<ReaderId>,
    /// Writes that were not answered yet.
    open: u64,
}

/// Shared by all who do and see something.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn with<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        change(&mut self.0.lock().expect("nothing panics under this lock"))
    }

    /// Takes down what happened.
    pub(crate) fn record(&self, event: Event) {
        self.with(|book| {
            let counts = &mut book.counts;
            match event {
                Event::Sent { .. } => {
                    counts.sent += 1;
                    book.open += 1;
                }
                Event::Delivered { reader, position, .. } => {
                    counts.delivered += 1;
                    if let Some((_, cursor)) = book.cursors.get_mut(&reader) {
                        *cursor = position;
                    }
                }
                Event::Missed { reader, to, .. } => {
                    counts.missed += 1;
                    if let Some((_, cursor)) = book.cursors.get_mut(&reader) {
                        *cursor = to;
                    }
                }
                Event::Subscribed { reader, .. } => {
                    counts.readers += 1;
                    book.readers.insert(reader);
                }
                Event::Watched { .. } => counts.answers += 1,
                Event::Tokens { count, .. } => counts.tokens += u64::from(count),
                Event::Rewound { .. } => counts.rewound += 1,
                _ => {}
            }
            book.auditor.record(event);
        });
    }

    /// Takes down that a write to `channel` was answered.
    pub(crate) fn acked(&self, event: Event, channel: ChannelIndex, position: Position, duplicate: bool) {
        self.with(|book| {
            book.counts.acked += 1;
            book.counts.duplicates += u64::from(duplicate);
            book.open -= 1;
            let head = book.heads.entry(channel).or_default();
            *head = (*head).max(position);
            book.auditor.record(event);
        });
    }

    /// Takes down that a reader went, if it ever began.
    pub(crate) fn left(&self, reader: ReaderId) {
        self.with(|book| {
            if book.readers.remove(&reader) {
                book.auditor.record(Event::Ended { reader });
            }
        });
    }

    /// Takes down that the node does not know whether it carried a write out.
    pub(crate) fn expired(&self) {
        self.with(|book| {
            book.counts.expired += 1;
            book.open -= 1;
        });
    }

    /// Counts something that the auditor does not need.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.with(|book| change(&mut book.counts));
    }

    /// Something is wrong that the auditor cannot see.
    pub(crate) fn complain(&self, what: String) {
        self.with(|book| {
            if book.complaints.len() < COMPLAINTS_MAX {
                book.complaints.push(what);
            }
        });
    }

    fn id(&self) -> u64 {
        self.with(|book| {
            book.ids += 1;
            book.ids
        })
    }

    /// A number for a subscription.
    pub(crate) fn reader(&self) -> ReaderId {
        ReaderId(self.id())
    }

    /// A number for somebody who watches an answer.
    pub(crate) fn watch(&self) -> WatchId {
        WatchId(self.id())
    }

    /// This reader stays to the end, and must get everything.
    pub(crate) fn stays(&self, reader: ReaderId, channel: ChannelIndex) {
        self.with(|book| {
            book.cursors.insert(reader, (channel, Position(0)));
        });
    }

    /// The newest acknowledged position of a channel.
    pub(crate) fn head(&self, channel: ChannelIndex) -> Position {
        self.with(|book| book.heads.get(&channel).copied().unwrap_or_default())
    }

    /// Writes that wait for their answer.
    pub(crate) fn open(&self) -> u64 {
        self.with(|book| book.open)
    }

    /// Whether those who stay to the end have got everything that was acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        self.with(|book| {
            let behind = |(channel, cursor): &(ChannelIndex, Position)| {
                book.heads.get(channel).is_some_and(|head| cursor < head)
            };
            book.open == 0 && !book.cursors.values().any(behind)
        })
    }

    /// What happened how often so far, and how much of it is wrong.
    pub(crate) fn standing(&self) -> (Counts, usize) {
        self.with(|book| (book.counts, book.auditor.violations().len() + book.complaints.len()))
    }

    /// Judges it all: everything that is wrong, as text.
    pub(crate) fn judge(&self, settled: bool) -> Vec<String> {
        let (auditor, mut complaints) =
            self.with(|book| (std::mem::take(&mut book.auditor), std::mem::take(&mut book.complaints)));
        let (violations, count) = auditor.finish(settled);
        complaints.extend(violations.iter().map(ToString::to_string));
        if count > violations.len() as u64 {
            complaints.push(format!("and {} more", count - violations.len() as u64));
        }
        complaints
    }
}
