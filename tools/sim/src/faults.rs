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
    /// The node's process ended at any moment.
    ProcessKilled = "process_killed";
    /// The node's machine lost its power.
    PowerLost = "power_lost";
    /// The power went in a write.
    CrashedInWrite = "crashed_in_write";
    /// The power went in a sync.
    CrashedInSync = "crashed_in_sync";
    /// The power went while a file was made, renamed or removed.
    CrashedInRename = "crashed_in_rename";
    /// The power went while the node recovered.
    CrashedInRecovery = "crashed_in_recovery";
    /// A write that was not synced was there after the power had gone.
    WriteKept = "write_kept";
    /// A write that was not synced was lost.
    WriteLost = "write_lost";
    /// A part of a write that was not synced was lost.
    WriteTorn = "write_torn";
    /// A file came back shorter than it was written.
    LengthLost = "length_lost";
    /// A name that was not made durable was lost.
    NameLost = "name_lost";
    /// The end of a log was cut off by recovery.
    TornTail = "torn_tail";
    /// The node started with another number of cores.
    CoresChanged = "cores_changed";
    /// The wall clock stepped.
    ClockStepped = "clock_stepped";
    /// The disk was full, and the node knew.
    DiskFull = "disk_full";
    /// The disk refused to let a file grow.
    WriteRefusedFull = "write_refused_full";
    /// A client was refused because the disk was full.
    FullRefused = "full_refused";
    /// The node did not start because the disk was full.
    FullRefusedStart = "full_refused_start";
    /// A sync failed.
    SyncFailed = "sync_failed";
    /// A bit flipped.
    Rotted = "bit_rotted";
    /// The node did not start for a flipped bit.
    RotRefused = "rot_refused_start";
    /// The node stopped for a flipped bit.
    RotStopped = "rot_stopped_node";
    /// A read was refused for a flipped bit.
    RotRefusedRead = "rot_refused_read";
    /// A file of the log was used again.
    Recycled = "file_recycled";
    /// A file of the log was sealed.
    Sealed = "file_sealed";
    /// Segments were merged.
    Merged = "segments_merged";
    /// Somebody asked for a checkpoint.
    Checkpointed = "checkpointed";
    /// Messages were read back from disk.
    ReadFromDisk = "read_from_disk";
    /// Messages were compared after a recovery.
    ReadBack = "messages_compared";
    /// A page of history was read.
    Paged = "history_paged";
    /// A subscription was taken up again from its cursor.
    SubscriptionResumed = "subscription_resumed";
    /// A reader was told that its channel was deleted.
    ReaderOfDeleted = "reader_of_deleted";
    /// A write was refused because its channel was being deleted.
    RefusedByDeletion = "refused_by_deletion";
    /// A generation went on after its last durable token.
    GenerationResumed = "generation_resumed";
    /// A watcher was rewound.
    Rewound = "rewound";
    /// A message was edited.
    Edited = "edited";
    /// A text was taken back.
    TookBack = "took_back";
    /// A message was shown without its text.
    ReadRedacted = "read_redacted";
    /// A write was refused because the message it meant is gone.
    MessageGone = "message_gone";
    /// Somebody reacted to a message.
    Reacted = "reacted";
    /// Somebody noted how far they had read.
    MarkedRead = "marked_read";
    /// Somebody joined or left a channel.
    Joined = "joined_or_left";
    /// Somebody was given or lost a role.
    MemberSet = "member_set";
    /// A channel got a topic.
    TopicSet = "topic_set";
    /// Somebody opened a direct conversation.
    DirectOpened = "direct_opened";
    /// Somebody said who they are.
    ProfileSet = "profile_set";
    /// A channel and its members were reported.
    Reported = "channel_reported";
    /// Channels were listed.
    Listed = "channels_listed";
    /// Messages were searched.
    Searched = "searched";
    /// Somebody without the right was refused.
    StrangerRefused = "stranger_refused";
    /// A reader lost the right, and with it its subscription.
    Expelled = "reader_expelled";
    /// Limits were set.
    Limited = "limited";
    /// Something was refused for want of allowance.
    RateRefused = "rate_refused";
    /// The node was short of memory.
    Pressed = "short_of_memory";
    /// Something was refused because the node was short of memory.
    PressureRefused = "pressure_refused";
    /// Nobody did anything for a while.
    Paused = "paused";
    /// A datagram was lost.
    DatagramLost = "datagram_lost";
    /// Somebody typed.
    Typed = "typed";
    /// Somebody was told that somebody typed.
    TypingSeen = "typing_seen";
    /// A reader was told who is there.
    PresenceTold = "presence_told";
    /// A session was not heard of for too long.
    PresenceTimeout = "presence_timeout";
    /// Everybody's picture of who is there was compared with who is.
    PresenceJudged = "presence_judged";
    /// A model failed, recovered, came or went.
    RoutesChanged = "routes_changed";
    /// A question named a model that is not there.
    ModelUnknown = "model_unknown";
    /// A question was refused because its models fail.
    ModelsDown = "models_down";
    /// The node was drained.
    Drained = "drained";
    /// Something was refused because the node drains.
    DrainingRefused = "draining_refused";
    /// An edit of a document was acknowledged.
    DocumentEdited = "document_edited";
    /// An edit of a document was sent again.
    EditRetried = "edit_retried";
    /// A reader of a document was sent several edits as one.
    EditsMerged = "edits_merged";
    /// A reader of a document was sent its state.
    StateTaken = "state_taken";
    /// Something was refused of a document for a reason that passes.
    DocumentRefused = "document_refused";
    /// A document was let go of.
    DocumentEvicted = "document_evicted";
    /// A document was written as a whole.
    DocumentSnapshot = "document_snapshot";
    /// A document was deleted.
    DocumentDeleted = "document_deleted";
    /// A document was made that has the name of one that was deleted.
    DocumentRemade = "document_remade";
    /// A reader was told that its document was deleted.
    DocumentReaderTold = "document_reader_told";
    /// Something was refused because there was no such document any more.
    DocumentGoneRefused = "document_gone_refused";
    /// A revision was given a name.
    VersionNamed = "version_named";
    /// A document was read as it was.
    RevisionRead = "revision_read";
    /// A document was read as it was before the node died.
    RevisionOutlived = "revision_outlived";
    /// A document was made what it was.
    Restored = "document_restored";
    /// An update was refused that was cut off.
    UpdateCutOff = "update_cut_off";
    /// An update was refused that was none.
    UpdateGarbage = "update_garbage";
    /// An update was refused that built on what was never sent.
    UpdateOrphan = "update_orphan";
    /// An update was refused for its size.
    UpdateTooLarge = "update_too_large";
    /// An update was refused that claimed to be the node's.
    UpdateOfNode = "update_of_node";
    /// A model was asked to write in a document.
    ModelAskedInDocument = "model_asked_to_write";
    /// A model wrote in a document.
    ModelWrote = "model_wrote";
    /// A model wrote anew what was selected.
    ModelRewrote = "model_rewrote";
    /// Somebody edited a document while a model wrote in it.
    EditedAroundModel = "edited_around_model";
    /// A model that wrote in a document began anew with another text around it.
    ModelRefreshed = "model_refreshed";
    /// A model that wrote in a document waited for its text to be durable.
    ModelHeldBack = "model_held_back";
    /// A model that wrote in a document was stopped.
    ModelStopped = "model_stopped";
    /// A model wrote in a document when the node died.
    ModelBrokenOff = "model_broken_off";
    /// A model ended whose document was deleted.
    ModelOfDeleted = "model_of_deleted";
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
