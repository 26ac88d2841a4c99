//! A core's end: which requests are traced, and what is said of them.

use std::collections::HashMap;
use std::sync::Arc;

use thalweg_protocol::chat::ChatOp;
use thalweg_protocol::document::DocumentOp;
use thalweg_protocol::ids::{Name, Request, Watch};
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::trace::TraceContext;
use thalweg_ring::{Bell, Producer};
use thalweg_shard::Span;

use super::counters::Counters;
use super::record::{GenerationRecord, Record};
use super::sampling::Sampler;
use crate::stats::CoreStats;

/// Requests that are traced and not answered, on one core; while there are so many, no other is sampled.
const OPEN_MAX: usize = 8_192;

/// Traces the requests of one core. One that is off costs a comparison.
///
/// Contract: [`begin`](Self::begin) for each request of a session; the root it gives goes along with the request. Then
/// everything the session is sent or loses ([`answered`](Self::answered), [`frame`](Self::frame), [`closed`](Self::closed)),
/// and [`turn_over`](Self::turn_over) when the datagrams of a turn are with the kernel: that is when a request ends. It never
/// waits; what finds no room is counted.
pub(crate) struct Tracer(Option<Box<Recorder>>);

/// A request that is traced.
struct Open {
    root: u64,
    /// Whether it asked a model: then it lasts until the last frame of the answer.
    asks: bool,
    /// How many frames of the answer were sent. The first says its name, the second has its first tokens.
    frames: u32,
}

struct Recorder {
    core: u16,
    sampler: Sampler,
    records: Producer<Record>,
    bell: Arc<Bell>,
    /// By link and request, which a watch is named after too.
    open: HashMap<(u64, u32), Open>,
    /// First tokens of answers that were given to the transport in this turn, and when.
    sending: Vec<(u64, u64)>,
    /// Roots that end with this turn, and why, if it is not that all was answered.
    ending: Vec<(u64, Option<&'static str>)>,
    /// Whether anything was put on the ring in this turn.
    pushed: bool,
    sampled: u64,
    recorded: u64,
    dropped: u64,
    /// Requests that were not sampled, as too many were already.
    crowded: u64,
    /// The exporter's counts, on the core that speaks for the node.
    exporter: Option<Arc<Counters>>,
}

impl Tracer {
    /// One that does nothing.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    pub(super) fn new(
        core: u16,
        ratio: f64,
        records: Producer<Record>,
        bell: Arc<Bell>,
        exporter: Option<Arc<Counters>>,
    ) -> Self {
        Self(Some(Box::new(Recorder {
            core,
            sampler: Sampler::new(ratio, rand::random()),
            records,
            bell,
            open: HashMap::new(),
            sending: Vec::new(),
            ending: Vec::new(),
            pushed: false,
            sampled: 0,
            recorded: 0,
            dropped: 0,
            crowded: 0,
            exporter,
        })))
    }

    /// A request came. Gives the root it goes on with, or 0 if it is not traced.
    pub(crate) fn begin(
        &mut self,
        now_us: u64,
        link: u64,
        request: Request,
        tenant: &Name,
        op: &ClientOp,
        context: Option<TraceContext>,
    ) -> u64 {
        let Some(recorder) = &mut self.0 else { return 0 };
        let Some(name) = name_of(op) else { return 0 };
        let asks = match op {
            ClientOp::Unwatch { watch } => {
                // A client does not want the rest of an answer.
                recorder.end((link, watch.0), Some("left"));
                false
            }
            op => matches!(op, ClientOp::Ask(_)),
        };
        recorder.begin(now_us, (link, request.0), tenant, name, asks, context)
    }

    /// A request was answered.
    pub(crate) fn answered(&mut self, link: u64, request: Request, op: &ServerOp) {
        let Some(recorder) = self.0.as_mut().filter(|recorder| !recorder.open.is_empty()) else { return };
        let error = if let ServerOp::Reject(reject) = op { Some(reject.code.as_str()) } else { None };
        let key = (link, request.0);
        if recorder.open.get(&key).is_some_and(|open| error.is_some() || !open.asks) {
            recorder.end(key, error);
        }
    }

    /// A frame of an answer was given to the transport.
    pub(crate) fn frame(&mut self, now_us: u64, link: u64, watch: Watch, last: bool) {
        let Some(recorder) = self.0.as_mut().filter(|recorder| !recorder.open.is_empty()) else { return };
        let key = (link, watch.0);
        let Some(open) = recorder.open.get_mut(&key) else { return };
        open.frames = open.frames.saturating_add(1);
        if open.frames == 2 && !last {
            recorder.sending.push((open.root, now_us));
        }
        if last {
            recorder.end(key, None);
        }
    }

    /// A connection is gone, and nobody waits for its answers.
    pub(crate) fn closed(&mut self, link: u64) {
        let Some(recorder) = self.0.as_mut().filter(|recorder| !recorder.open.is_empty()) else { return };
        let keys: Vec<_> = recorder.open.keys().filter(|(of, _)| *of == link).copied().collect();
        keys.into_iter().for_each(|key| recorder.end(key, Some("connection_closed")));
    }

    /// Takes what a shard measured.
    pub(crate) fn spans(&mut self, spans: impl Iterator<Item = Span>) {
        let Some(recorder) = &mut self.0 else { return spans.for_each(drop) };
        for Span { parent, name, start_us, end_us } in spans {
            recorder.push(Record::Span { root: parent, name, start_us, end_us });
        }
    }

    /// Takes what the inference stage did.
    pub(crate) fn generation(&mut self, root: u64, generation: Box<GenerationRecord>) {
        if let Some(recorder) = &mut self.0 {
            recorder.push(Record::Generation { root, generation });
        }
    }

    /// The datagrams of this turn are with the kernel.
    pub(crate) fn turn_over(&mut self, now_us: impl FnOnce() -> u64) {
        let Some(recorder) = &mut self.0 else { return };
        if !recorder.sending.is_empty() || !recorder.ending.is_empty() {
            let end_us = now_us();
            while let Some((root, start_us)) = recorder.sending.pop() {
                recorder.push(Record::Span { root, name: "token.send", start_us, end_us });
            }
            while let Some((root, error)) = recorder.ending.pop() {
                recorder.push(Record::End { root, end_us, error });
            }
        }
        // The exporter looks by itself, a few times a second; only a flood wakes it.
        if std::mem::take(&mut recorder.pushed) && recorder.records.free() < recorder.records.capacity() / 2 {
            recorder.bell.ring();
        }
    }

    pub(crate) fn count(&self, stats: &mut CoreStats) {
        let Some(recorder) = &self.0 else { return };
        let own = [
            ("traces_sampled", recorder.sampled),
            ("traces_crowded", recorder.crowded),
            ("trace_parents_unheeded", recorder.sampler.unheeded),
            ("spans_recorded", recorder.recorded),
            ("spans_dropped", recorder.dropped),
        ];
        stats.counters.extend(own);
        stats.counters.extend(recorder.exporter.iter().flat_map(|exporter| exporter.all()));
        stats.gauges.insert("traces_open", recorder.open.len() as u64);
    }
}

impl Recorder {
    fn begin(
        &mut self,
        now_us: u64,
        key: (u64, u32),
        tenant: &Name,
        name: &'static str,
        asks: bool,
        context: Option<TraceContext>,
    ) -> u64 {
        let Some(ids) = self.sampler.decide(now_us, context) else { return 0 };
        // A number that is used twice is the client's mistake, and the shard's to refuse.
        if self.open.len() >= OPEN_MAX || self.open.contains_key(&key) {
            self.crowded += 1;
            return 0;
        }
        let begin = Record::Begin { ids, name, tenant: tenant.clone(), core: self.core, start_us: now_us };
        if !self.push(begin) {
            self.crowded += 1;
            return 0;
        }
        self.sampled += 1;
        self.open.insert(key, Open { root: ids.root, asks, frames: 0 });
        ids.root
    }

    fn end(&mut self, key: (u64, u32), error: Option<&'static str>) {
        if let Some(Open { root, .. }) = self.open.remove(&key) {
            self.ending.push((root, error));
        }
    }

    fn push(&mut self, record: Record) -> bool {
        let spans = record.spans() as u64;
        let pushed = self.records.push(record).is_ok();
        *(if pushed { &mut self.recorded } else { &mut self.dropped }) += spans;
        self.pushed |= pushed;
        pushed
    }
}

/// What a request's span is named; none if it is no request but a report, which nobody answers.
fn name_of(op: &ClientOp) -> Option<&'static str> {
    Some(match op {
        ClientOp::Consumed { .. }
        | ClientOp::TokensConsumed { .. }
        | ClientOp::Hello(_)
        | ClientOp::Login(_)
        | ClientOp::Heartbeat
        | ClientOp::Typing { .. }
        | ClientOp::Document(DocumentOp::ShareAwareness { .. }) => return None,
        ClientOp::Document(DocumentOp::Open(_)) => "open_document",
        ClientOp::Document(DocumentOp::Read { .. }) => "read_document",
        ClientOp::Document(DocumentOp::Ask(_)) => "ask_in_document",
        ClientOp::CreateChannel(_) => "create_channel",
        ClientOp::Embed { .. } => "embed",
        ClientOp::Publish(_) => "publish",
        ClientOp::Subscribe(_) => "subscribe",
        ClientOp::Unsubscribe { .. } => "unsubscribe",
        ClientOp::Ask(_) => "ask",
        ClientOp::Watch(_) => "watch",
        ClientOp::Unwatch { .. } => "unwatch",
        ClientOp::Cancel { .. } => "cancel",
        ClientOp::Ping { .. } => "ping",
        ClientOp::Stats => "stats",
        ClientOp::Drain => "drain",
        ClientOp::DeleteChannel { .. } => "delete_channel",
        ClientOp::DeleteTenant => "delete_tenant",
        ClientOp::Checkpoint => "checkpoint",
        ClientOp::ReadHistory { .. } => "read_history",
        ClientOp::Manage { .. } => "manage",
        ClientOp::Chat(op) => chat_name_of(op),
    })
}

fn chat_name_of(op: &ChatOp) -> &'static str {
    match op {
        ChatOp::Join { .. } => "join",
        ChatOp::Leave { .. } => "leave",
        ChatOp::SetMember { .. } => "set_member",
        ChatOp::SetChannel { .. } => "set_channel",
        ChatOp::OpenDirect { .. } => "open_direct",
        ChatOp::AboutChannel { .. } => "about_channel",
        ChatOp::ListChannels { .. } => "list_channels",
        ChatOp::MarkRead { .. } => "mark_read",
        ChatOp::SetProfile(_) => "set_profile",
        ChatOp::GetProfile { .. } => "get_profile",
        ChatOp::SetPresence { .. } => "set_presence",
        ChatOp::WhoIsIn { .. } => "who_is_in",
        ChatOp::SearchHistory { .. } => "search_history",
    }
}
