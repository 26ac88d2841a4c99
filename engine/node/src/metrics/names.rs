//! What each counter and gauge of a core is called outside, and what it means.
//!
//! A name begins with `thalweg_`, ends in its base unit if it has one, and is never used for something else later:
//! dashboards and alerts hang on it. What a core counts and is not listed here shows up in `thalweg_unlisted`, and a test
//! of the binary wants that to be empty.

/// Whose number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Each core's: a series per core.
    Core,
    /// The node's: one core says it for all.
    Node,
}

/// One number.
pub(super) struct Row {
    /// What cores call it.
    pub(super) key: &'static str,
    /// What it is called outside; a counter without its `_total`.
    pub(super) name: &'static str,
    pub(super) of: Of,
    pub(super) help: &'static str,
}

const fn core(key: &'static str, name: &'static str, help: &'static str) -> Row {
    Row { key, name, of: Of::Core, help }
}

const fn node(key: &'static str, name: &'static str, help: &'static str) -> Row {
    Row { key, name, of: Of::Node, help }
}

/// Numbers that only grow.
#[rustfmt::skip]
pub(super) const COUNTERS: &[Row] = &[
    core("published", "thalweg_messages_published", "Messages accepted by the core that owns their channel."),
    core("duplicates", "thalweg_messages_duplicate", "Writes that had been carried out before, and were answered from memory."),
    core("delivered", "thalweg_messages_delivered", "Records handed to readers."),
    core("delivered_bytes", "thalweg_messages_delivered_bytes", "Bytes of frames handed to readers."),
    core("missed", "thalweg_messages_missed", "Records that readers did not get: skipped by policy drop, or no longer kept."),
    core("slow_disconnected", "thalweg_slow_readers_ended", "Subscriptions ended for being slow, by policy disconnect."),
    core("closed_slow", "thalweg_sessions_closed_slow", "Connections closed since their client let too much pile up."),
    core("history_reads", "thalweg_history_reads", "Reads of history for readers that fell behind."),
    core("history_disk_reads", "thalweg_history_disk_reads", "Reads of history that had to go to the disk."),
    core("forwarded", "thalweg_requests_forwarded", "Requests handed to another core."),
    core("generations", "thalweg_generations_begun", "Generations begun."),
    core("generations_resumed", "thalweg_generations_resumed", "Generations that an earlier life of the node left unfinished and that go on."),
    core("tokens", "thalweg_tokens", "Tokens received from the inference stage."),
    core("web_sessions_opened", "thalweg_web_sessions_opened", "Sessions that came over HTTP, accepted or not."),
    core("hellos_accepted", "thalweg_sessions_opened", "Sessions opened."),
    core("hellos_refused", "thalweg_sessions_refused", "Connections whose hello was refused or did not come."),
    core("sessions_revoked", "thalweg_sessions_revoked", "Sessions ended since their access was revoked."),
    core("sessions_expired", "thalweg_sessions_expired", "Sessions ended at the expiry of their credential."),
    core("audit_lost", "thalweg_audit_events_lost", "Audit events lost, since the ring to the gate was full."),
    core("presence_frames", "thalweg_presence_frames_sent", "Frames that told readers who is in a channel."),
    core("presence_bytes", "thalweg_presence_sent_bytes", "Bytes of the frames that told readers who is in a channel."),
    core("updates", "thalweg_document_updates", "Edits of documents accepted by their owner."),
    core("updates_merged", "thalweg_document_updates_merged", "Edits of documents that share their message with an earlier one of the same turn."),
    core("updates_refused", "thalweg_document_updates_refused", "Edits of documents that were refused."),
    core("snapshots", "thalweg_document_snapshots", "Documents written as a whole."),
    core("documents_opened", "thalweg_documents_opened", "Documents read from the log into memory."),
    core("documents_evicted", "thalweg_documents_evicted", "Documents let go of since nobody used them."),
    core("documents_poisoned", "thalweg_documents_poisoned", "Documents that an edit broke in memory, and that were read anew."),
    core("reader_merges", "thalweg_document_reader_merges", "Edits of documents merged into one for readers who were behind."),
    core("reader_catch_ups", "thalweg_document_reader_catch_ups", "Readers so far behind a document that they got it anew."),
    core("awareness_frames", "thalweg_awareness_frames", "Frames that told readers of documents what others say of themselves."),
    core("awareness_dropped", "thalweg_awareness_dropped", "Updates of awareness that came too often or were not acceptable."),
    core("document_asks", "thalweg_document_asks", "Models asked to write in documents."),
    core("document_refreshes", "thalweg_document_refreshes", "Models that began anew since the text around their place had changed."),
    core("presence_skipped", "thalweg_presence_frames_skipped", "Frames of presence that readers got no room for, and a whole picture instead later."),
    core("presence_timeouts", "thalweg_presence_timeouts", "Sessions no longer present, since no heartbeat came."),
    core("typing_notices", "thalweg_typing_notices_sent", "Notices that somebody types."),
    core("typing_dropped", "thalweg_typing_notices_dropped", "Notices of typing that came too often, in too large a channel, or from who may not write."),
    core("datagrams_received", "thalweg_quic_datagrams_received", "QUIC datagrams received."),
    core("datagrams_ignored", "thalweg_quic_datagrams_ignored", "QUIC datagrams that belong to no connection."),
    core("batches_sent", "thalweg_quic_batches_sent", "Batches of QUIC datagrams made."),
    core("handshakes_started", "thalweg_quic_handshakes_started", "Connections begun: each costs a TLS handshake."),
    core("accepted", "thalweg_quic_links_opened", "Connections opened."),
    core("handshakes_failed", "thalweg_quic_handshakes_failed", "Handshakes that failed or were given up."),
    core("handshakes_timed_out", "thalweg_quic_handshakes_timed_out", "Handshakes that took too long."),
    core("retries_sent", "thalweg_quic_retries_sent", "Clients asked to prove their address first."),
    core("refused", "thalweg_quic_links_refused", "Clients turned away, since a limit on handshakes or connections was reached."),
    core("resets_sent", "thalweg_quic_resets_sent", "Stateless resets sent for connections that are not known any more."),
    core("answers_sent", "thalweg_quic_answers_sent", "Other answers to datagrams of no connection."),
    core("answers_dropped", "thalweg_quic_answers_dropped", "Answers to datagrams of no connection that were dropped, since too many waited."),
    core("frames_received", "thalweg_quic_frames_received", "Frames received."),
    core("frame_bytes_received", "thalweg_quic_frames_received_bytes", "Bytes of frames received, headers included."),
    core("frames_sent", "thalweg_quic_frames_sent", "Frames queued to be sent."),
    core("frame_bytes_sent", "thalweg_quic_frames_sent_bytes", "Bytes of frames queued to be sent, headers included."),
    core("frames_refused", "thalweg_quic_frames_refused", "Frames not queued, since too much was queued for their connection."),
    core("unreliable_received", "thalweg_quic_unreliable_received", "Unreliable datagrams received: heartbeats and typing."),
    core("unreliable_dropped", "thalweg_quic_unreliable_dropped", "Unreliable datagrams to or from clients that were not taken."),
    core("lanes_refused", "thalweg_quic_lanes_refused", "Lanes opened by clients beyond what they may open."),
    core("migrated", "thalweg_quic_migrations", "Clients whose address changed."),
    core("received_datagrams", "thalweg_udp_datagrams_received", "UDP datagrams received."),
    core("received_bytes", "thalweg_udp_received_bytes", "Bytes of UDP datagrams received."),
    core("received_batches", "thalweg_udp_batches_received", "Messages of the kernel that held received datagrams."),
    core("received_unusable", "thalweg_udp_unusable_received", "UDP messages that did not fit in a buffer or had no sender."),
    core("sent_datagrams", "thalweg_udp_datagrams_sent", "UDP datagrams handed to the kernel."),
    core("sent_bytes", "thalweg_udp_sent_bytes", "Bytes of UDP datagrams handed to the kernel."),
    core("sent_batches", "thalweg_udp_batches_sent", "Batches of datagrams handed to the kernel."),
    core("send_blocked", "thalweg_udp_sends_blocked", "Batches for which the kernel had no room at first."),
    core("send_failed", "thalweg_udp_sends_failed", "Batches that the kernel refused and that are gone."),
    core("system_calls", "thalweg_udp_system_calls", "System calls made for the socket."),
    core("ring_starved", "thalweg_udp_ring_starved", "Times the receive buffers of the socket's ring had run out (io-uring only)."),
    core("log_batches", "thalweg_log_batches", "Batches of the write-ahead log handed to the disk."),
    core("log_bytes", "thalweg_log_written_bytes", "Bytes of the write-ahead log handed to the disk."),
    core("log_records", "thalweg_log_records", "Records appended to the log."),
    core("log_files", "thalweg_log_files_filled", "Files of the write-ahead log that were filled."),
    core("log_reads", "thalweg_log_reads", "Reads of history given to the reader of the disk."),
    core("log_read_messages", "thalweg_log_read_messages", "Messages that these reads returned."),
    core("log_reads_failed", "thalweg_log_reads_failed", "Reads of history that failed: the disk is damaged, the log says where."),
    node("log_sealed", "thalweg_log_segments_sealed", "Files of the write-ahead log turned into segments."),
    node("log_sealed_bytes", "thalweg_log_sealed_bytes", "Bytes of the segments made of them."),
    node("log_merges", "thalweg_log_merges", "Merges of segments."),
    node("log_merged_bytes", "thalweg_log_merged_bytes", "Bytes of segments that merges wrote."),
    core("traces_sampled", "thalweg_traces_sampled", "Requests that are traced."),
    core("traces_crowded", "thalweg_traces_crowded", "Requests that were sampled and are not traced, since too many are."),
    core("trace_parents_unheeded", "thalweg_trace_parents_unheeded", "Requests not traced although their client is, since too many say so."),
    core("spans_recorded", "thalweg_spans_recorded", "Spans handed to the exporter."),
    core("spans_dropped", "thalweg_spans_dropped", "Spans the exporter had no room for."),
    node("spans_exported", "thalweg_spans_exported", "Spans a collector took."),
    node("spans_rejected", "thalweg_spans_rejected", "Spans a collector threw away."),
    node("spans_undelivered", "thalweg_spans_undelivered", "Spans no collector took, however often it was tried."),
    node("spans_overflowed", "thalweg_spans_overflowed", "Spans lost since the collector is too slow."),
    node("spans_orphaned", "thalweg_spans_orphaned", "Spans lost since that of their request was."),
    node("trace_requests", "thalweg_trace_batches", "Batches of spans sent to the collector."),
    node("trace_request_failures", "thalweg_trace_batch_failures", "Times a collector did not take a batch of spans."),
];

/// How QUIC connections ended: keys, and the label `by`.
pub(super) const CLOSED: &[(&str, &str)] = &[
    ("closed_by_peer", "peer"),
    ("closed_by_us", "node"),
    ("closed_by_reject", "reject"),
    ("closed_by_timeout", "timeout"),
    ("closed_by_reset", "reset"),
    ("closed_by_transport", "transport"),
];

/// Numbers that go up and down.
#[rustfmt::skip]
pub(super) const GAUGES: &[Row] = &[
    core("connections", "thalweg_quic_links", "QUIC connections open."),
    core("handshakes", "thalweg_quic_handshakes", "QUIC connections whose handshake is not finished."),
    core("users", "thalweg_users", "Users of whom the core keeps a profile or when they were seen."),
    core("usages", "thalweg_quota_usages", "Sessions, users and tenants whose use is counted against a quota."),
    core("users_present", "thalweg_users_present", "Users with a session that is present."),
    core("people_present", "thalweg_people_present", "People present, counted in each channel they are in."),
    core("channels_with_presence", "thalweg_channels_with_presence", "Channels in which somebody takes part in presence."),
    core("sessions", "thalweg_sessions", "Sessions open."),
    core("subscriptions", "thalweg_subscriptions", "Subscriptions of sessions on the core."),
    core("channels", "thalweg_channels", "Channels that the core owns."),
    core("channels_read", "thalweg_channels_read", "Channels with readers on the core."),
    core("generations_kept", "thalweg_generations_kept", "Generations that can be watched, running or finished."),
    core("generations_running", "thalweg_generations_running", "Generations that are not finished."),
    core("appends_pending", "thalweg_log_appends_pending", "Records appended and not durable yet."),
    core("resident_bytes", "thalweg_history_resident_bytes", "Bytes of messages of channels on disk that are in memory too."),
    core("disk_reads", "thalweg_history_disk_reads_pending", "Reads of history from the disk under way or waiting."),
    core("documents", "thalweg_documents", "Documents that the core owns; they are among its channels."),
    core("document_editors", "thalweg_document_editors", "Editors of documents that the core knows the awareness of."),
    core("documents_open", "thalweg_documents_open", "Documents that are in memory, or being read into it."),
    core("document_bytes", "thalweg_documents_open_bytes", "Bytes of the documents in memory, as they are encoded, about."),
    core("web_backlog", "thalweg_web_backlog", "News of web sessions for which the rings to the web stage had no room."),
    core("mesh_backlog", "thalweg_mesh_backlog", "Messages to other cores for which their rings had no room."),
    core("embeds_open", "thalweg_embeddings_open", "Requests for embeddings that are not answered."),
    core("inference_backlog", "thalweg_inference_backlog", "Commands to the inference stage for which its rings had no room."),
    core("log_pending_bytes", "thalweg_log_pending_bytes", "Bytes of the log gathered and not durable yet."),
    core("log_unarchived", "thalweg_log_unarchived_records", "Records that are in the write-ahead log only, not in a segment."),
    core("ring_buffers", "thalweg_udp_ring_buffers", "Receive buffers of the socket's ring (io-uring only)."),
    node("log_segments", "thalweg_log_segments", "Segments of the log."),
    node("log_segment_bytes", "thalweg_log_segments_bytes", "Bytes of the segments of the log."),
    core("traces_open", "thalweg_traces_open", "Requests that are traced and not answered."),
];

/// Where a turn of a core can be when it takes too long.
pub(super) const PLACES: &[&str] = &["receive", "timers", "requests", "rings", "shard", "fan_out", "send"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules_and_are_used_once() {
        let mut names = BTreeSet::new();
        for row in COUNTERS.iter().chain(GAUGES) {
            let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(row.name.starts_with("thalweg_") && row.name.chars().all(fine), "{}", row.name);
            assert!(!row.name.ends_with("_total"), "{}: that is added", row.name);
            assert!(row.help.ends_with('.') && row.help.starts_with(char::is_uppercase), "{}", row.name);
            assert!(row.key.contains("bytes") == row.name.ends_with("_bytes"), "{}: its unit comes last", row.name);
            assert!(names.insert(row.name), "{} stands twice", row.name);
        }
    }
}
