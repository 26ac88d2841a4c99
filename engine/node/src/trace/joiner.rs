//! Joins what cores measured to traces, and makes batches of spans.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::generation::FinishReason;
use thalweg_protocol::ids::Name;
use thalweg_ring::{Bell, Consumer};

use super::counters::Counters;
use super::otlp::{self, KeyValue, Resource, Span, Status};
use super::record::{GenerationRecord, Ids, Record};

/// Spans of one batch.
pub(super) const BATCH_SPANS: usize = 512;
/// A batch leaves when its oldest span has waited this long, full or not.
const BATCH_AGE: Duration = Duration::from_secs(1);
/// How often the rings are looked at while there is anything; a ring that is half full rings the bell.
const POLL: Duration = Duration::from_millis(100);
/// The same while there is nothing.
const POLL_IDLE: Duration = Duration::from_secs(1);
/// A root is remembered this long after its end, for what comes late, such as the last of a fan-out.
const LINGER: Duration = Duration::from_secs(10);
/// Roots remembered; while there are so many, no other begins. A root takes about 150 bytes.
const ROOTS_MAX: usize = 65_536;
/// Records kept for one more look at the rings, because their root was not seen yet.
const ORPHANS_MAX: usize = 4_096;

/// Spans on their way to the collector.
pub(super) struct Batch {
    pub(super) spans: usize,
    pub(super) bytes: Vec<u8>,
}

/// What is known of a root.
struct Root {
    ids: Ids,
    name: &'static str,
    tenant: Name,
    core: u16,
    start_us: u64,
    /// Where the node's clock began, in microseconds since 1970: taken once a trace, so that a step of the clock does not tear
    /// it apart.
    origin_us: u64,
}

/// See the module. It is a value that is called; its thread only waits between calls.
pub(super) struct Joiner {
    rings: Vec<Consumer<Record>>,
    queue: SyncSender<Batch>,
    counters: Arc<Counters>,
    resource: Resource,
    /// The moment the node's clocks count from.
    origin: Instant,
    roots: HashMap<u64, Root>,
    /// Roots that ended, and when, oldest first.
    ended: VecDeque<(Instant, u64)>,
    /// Records whose root was not seen yet.
    orphans: Vec<Record>,
    batch: Vec<Span>,
    batch_since: Instant,
    random: StdRng,
}

impl Joiner {
    pub(super) fn new(
        rings: Vec<Consumer<Record>>,
        queue: SyncSender<Batch>,
        counters: Arc<Counters>,
        service_name: &str,
        origin: Instant,
    ) -> Self {
        let mut random = StdRng::seed_from_u64(rand::random());
        Self {
            rings,
            queue,
            counters,
            resource: otlp::resource(service_name, random.random()),
            origin,
            roots: HashMap::new(),
            ended: VecDeque::new(),
            orphans: Vec::new(),
            batch: Vec::with_capacity(BATCH_SPANS),
            batch_since: Instant::now(),
            random,
        }
    }

    /// Runs until it is told to stop, or the cores are gone, and then hands over what is left.
    pub(super) fn run(mut self, bell: &Bell, closing: &AtomicBool) {
        loop {
            let closes = closing.load(Ordering::Acquire) || self.rings.iter().all(Consumer::is_abandoned);
            let worked = self.pass(Instant::now());
            if closes {
                // Once more, for those whose root came while the first look was taken.
                self.pass(Instant::now());
                return self.hand_over();
            }
            bell.prepare();
            if self.rings.iter().all(|ring| ring.len() < BATCH_SPANS) && !closing.load(Ordering::Acquire) {
                bell.wait(Some(if worked || !self.batch.is_empty() { POLL } else { POLL_IDLE }));
            }
            bell.awake();
        }
    }

    /// Looks at every ring once. Says whether there was anything.
    pub(super) fn pass(&mut self, now: Instant) -> bool {
        let waited = std::mem::take(&mut self.orphans);
        let mut taken = 0;
        for at in 0..self.rings.len() {
            // What comes meanwhile is for the next pass, so that no core keeps the others waiting.
            for _ in 0..self.rings[at].len() {
                let Some(record) = self.rings[at].pop() else { break };
                taken += 1;
                self.take(now, record);
            }
        }
        // The root of a record is on its ring before the record is on another one. So whoever has none now has none at all.
        for record in waited {
            if let Err(record) = self.join(now, record) {
                Counters::add(&self.counters.orphaned, record.spans());
            }
        }
        while let Some((_, root)) = self.ended.pop_front_if(|(at, _)| now.saturating_duration_since(*at) > LINGER) {
            self.roots.remove(&root);
        }
        if !self.batch.is_empty() && now.saturating_duration_since(self.batch_since) >= BATCH_AGE {
            self.hand_over();
        }
        taken > 0
    }

    fn take(&mut self, now: Instant, record: Record) {
        if let Err(record) = self.join(now, record) {
            if self.orphans.len() < ORPHANS_MAX {
                self.orphans.push(record);
            } else {
                Counters::add(&self.counters.orphaned, record.spans());
            }
        }
    }

    /// Makes spans of a record, or gives it back if its root is not known.
    fn join(&mut self, now: Instant, record: Record) -> Result<(), Record> {
        match record {
            Record::Begin { ids, name, tenant, core, start_us } => {
                if self.roots.len() < ROOTS_MAX {
                    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let origin_us = since.saturating_sub(now.saturating_duration_since(self.origin)).as_micros() as u64;
                    self.roots.insert(ids.root, Root { ids, name, tenant, core, start_us, origin_us });
                }
            }
            Record::Span { root, name, start_us, end_us } => {
                let Some(of) = self.roots.get(&root) else { return Err(record) };
                let id = self.random.random_range(1..=u64::MAX);
                let span = of.part(id, root, name, start_us, end_us, Vec::new());
                self.push(now, span);
            }
            Record::Generation { root, generation } => match self.roots.contains_key(&root) {
                true => self.generation(now, root, &generation),
                false => return Err(Record::Generation { root, generation }),
            },
            Record::End { root, end_us, error } => {
                let Some(of) = self.roots.get(&root) else { return Err(record) };
                let span = of.whole(end_us, error);
                self.ended.push_back((now, root));
                self.push(now, span);
            }
        }
        Ok(())
    }

    fn generation(&mut self, now: Instant, root: u64, generation: &GenerationRecord) {
        let Some(of) = self.roots.get(&root) else { return };
        let mut id = || self.random.random_range(1..=u64::MAX);
        let own = id();
        let (from, to) = (generation.submitted_us, generation.received_us);
        let whole = of.part(own, root, "inference", from, to, attributes(generation));
        let part = |(name, from, to)| of.part(id(), own, name, from, to, part_attributes(name, generation));
        let spans: Vec<_> = std::iter::once(whole).chain(generation.parts().map(part)).collect();
        spans.into_iter().for_each(|span| self.push(now, span));
    }

    fn push(&mut self, now: Instant, span: Span) {
        if self.batch.is_empty() {
            self.batch_since = now;
        }
        self.batch.push(span);
        if self.batch.len() >= BATCH_SPANS {
            self.hand_over();
        }
    }

    /// Gives the batch to the sender, or forgets it if the sender has too many.
    fn hand_over(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let spans = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH_SPANS));
        let batch = Batch { spans: spans.len(), bytes: otlp::encode(&self.resource, spans) };
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = self.queue.try_send(batch) {
            Counters::add(&self.counters.overflowed, batch.spans);
        }
    }
}

impl Root {
    fn unix_nano(&self, us: u64) -> u64 {
        (self.origin_us + us) * 1_000
    }

    /// A span of this trace below `parent`.
    fn part(&self, id: u64, parent: u64, name: &str, start_us: u64, end_us: u64, attributes: Vec<KeyValue>) -> Span {
        Span {
            trace_id: self.ids.trace.to_be_bytes().to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: parent.to_be_bytes().to_vec(),
            name: name.to_owned(),
            kind: otlp::KIND_INTERNAL,
            start_time_unix_nano: self.unix_nano(start_us),
            end_time_unix_nano: self.unix_nano(end_us.max(start_us)),
            attributes,
            status: None,
            flags: otlp::FLAG_SAMPLED | otlp::FLAG_KNOWS_REMOTE,
        }
    }

    /// The span of the request itself.
    fn whole(&self, end_us: u64, error: Option<&'static str>) -> Span {
        let mut attributes =
            vec![otlp::text("thalweg.tenant", self.tenant.as_str()), otlp::number("thalweg.core", self.core)];
        attributes.extend(error.map(|code| otlp::text("error.type", code)));
        let mut span = self.part(self.ids.root, self.ids.parent, self.name, self.start_us, end_us, attributes);
        span.kind = otlp::KIND_SERVER;
        match self.ids.parent {
            0 => span.parent_span_id.clear(),
            _ => span.flags |= otlp::FLAG_IS_REMOTE,
        }
        span.status = error.map(|code| Status { message: code.to_owned(), code: otlp::STATUS_ERROR });
        span
    }
}

/// What is said of a generation as a whole: names after OpenTelemetry's conventions for generative models.
fn attributes(generation: &GenerationRecord) -> Vec<KeyValue> {
    let reason = generation.reason.map_or("refused", |reason| match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Failed => "failed",
    });
    let model = generation.model.as_ref().map(|model| otlp::text("gen_ai.request.model", model.as_str()));
    let rest = [
        otlp::number("gen_ai.usage.input_tokens", generation.prompt_tokens),
        otlp::number("gen_ai.usage.output_tokens", generation.completion_tokens),
        otlp::text("thalweg.finish_reason", reason),
    ];
    model.into_iter().chain(rest).collect()
}

fn part_attributes(name: &str, generation: &GenerationRecord) -> Vec<KeyValue> {
    let tokens = match name {
        "worker.tokenise" | "worker.prefill" => generation.prompt_tokens,
        "worker.decode" => generation.completion_tokens,
        _ => return Vec::new(),
    };
    let model = generation.model.as_ref().map(|model| otlp::text("gen_ai.request.model", model.as_str()));
    model.into_iter().chain([otlp::number("thalweg.tokens", tokens)]).collect()
}
