//! What can go wrong, counted, so that none of it silently stops happening.

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A kind of trouble that the simulation makes or provokes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])* $name,)* }

        /// Every kind, with its name in the report.
        pub const FAULTS: &[(Fault, &str)] = &[$((Fault::$name, $text),)*];
    };
}

faults! {
    /// A connection was cut by its client.
    Cut = "cut";
    /// A connection was cut within a frame.
    CutWithinFrame = "cut_within_frame";
    /// A client came back to another core.
    CameBackElsewhere = "came_back_elsewhere";
    /// A core took a session from an older connection.
    TakenOver = "taken_over";
    /// A write was sent again.
    Retried = "retried";
    /// A write that was sent again had been carried out before.
    Duplicate = "duplicate";
    /// A client withheld its credit.
    CreditWithheld = "credit_withheld";
    /// A transport stopped taking bytes.
    Stalled = "stalled";
    /// A session's queue was full.
    QueueFull = "queue_full";
    /// A reader was told that it missed something.
    Missed = "missed";
    /// A reader was ended for being slow.
    SlowReaderEnded = "slow_reader_ended";
    /// History was read for a reader.
    HistoryRead = "history_read";
    /// The log made several appends durable at once.
    Grouped = "grouped";
    /// A generation was watched from its middle.
    WatchedFromMiddle = "watched_from_middle";
    /// A watch was taken up again over another connection.
    WatchedAgain = "watched_again";
    /// A generation was cancelled.
    Cancelled = "cancelled";
    /// A generation failed.
    Failed = "failed";
    /// A generation was refused for want of room.
    Busy = "busy";
    /// A generation was refused for the length of its prompt.
    PromptTooLong = "prompt_too_long";
    /// A sequence was parked for want of credit.
    Parked = "parked";
    /// A parked sequence lost its slot.
    Evicted = "evicted";
    /// An outlet was blocked.
    OutletBlocked = "outlet_blocked";
    /// A model was asked in a channel.
    Mentioned = "mentioned";
    /// The node was drained.
    Drained = "drained";
    /// Something was refused because the node drains.
    DrainingRefused = "draining_refused";
}

/// How often each kind happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults([u64; FAULTS.len()]);

impl Default for Faults {
    fn default() -> Self {
        Self([0; FAULTS.len()])
    }
}

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault, count: u64) {
        self.0[fault as usize] += count;
    }

    pub(crate) fn count(&mut self, fault: Fault) {
        self.add(fault, 1);
    }

    /// How often this kind happened.
    pub fn get(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Name and count of each kind.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FAULTS.iter().map(|&(fault, name)| (name, self.get(fault)))
    }
}
