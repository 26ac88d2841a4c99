//! From records to what a collector gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use thalweg_protocol::generation::FinishReason;
use thalweg_protocol::ids::Name;
use thalweg_ring::{Bell, Producer, ring};

use super::collector::{Collector, Manners, attribute};
use crate::trace::TraceConfig;
use crate::trace::config::Secret;
use crate::trace::counters::Counters;
use crate::trace::joiner::{BATCH_SPANS, Joiner};
use crate::trace::record::{GenerationRecord, Ids, Record};
use crate::trace::sender::Sender;

const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

fn begin(root: u64, parent: u64) -> Record {
    let ids = Ids { trace: TRACE, parent, root };
    Record::Begin { ids, name: "ask", tenant: name("acme"), core: 1, start_us: 10 }
}

fn span(root: u64) -> Record {
    Record::Span { root, name: "log.commit", start_us: 20, end_us: 30 }
}

fn generation() -> Box<GenerationRecord> {
    Box::new(GenerationRecord {
        model: Some(name("smollm2-135m")),
        prompt_tokens: 30,
        completion_tokens: 7,
        reason: Some(FinishReason::Stop),
        submitted_us: 20,
        taken_us: Some(21),
        tokenised_us: Some(25),
        admitted_us: Some(26),
        first_row_us: Some(27),
        first_token_us: Some(50),
        first_received_us: Some(51),
        parks_us: vec![(60, 70)],
        ended_us: 80,
        received_us: 81,
    })
}

/// A joiner whose rings the test fills, and a sender.
struct Bench {
    rings: Vec<Producer<Record>>,
    joiner: Option<Joiner>,
    counters: Arc<Counters>,
    closing: Arc<AtomicBool>,
    sender: Option<std::thread::JoinHandle<()>>,
}

impl Bench {
    fn new(endpoint: &str, change: impl FnOnce(&mut TraceConfig)) -> Self {
        let mut config = TraceConfig { endpoint: Some(endpoint.to_owned()), ..TraceConfig::default() };
        change(&mut config);
        let to = config.checked().expect("good").expect("on");
        let (rings, inboxes) = (0..2).map(|_| ring(4 * BATCH_SPANS)).unzip();
        let (queue, batches) = std::sync::mpsc::sync_channel(1);
        let (counters, closing) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
        let joiner = Joiner::new(inboxes, queue, Arc::clone(&counters), "under-test", Instant::now());
        let sender = Sender::new(to, batches, Arc::clone(&counters), Arc::clone(&closing));
        let sender = Some(std::thread::spawn(move || sender.run()));
        Self { rings, joiner: Some(joiner), counters, closing, sender }
    }

    fn push(&mut self, ring: usize, record: Record) {
        assert!(self.rings[ring].push(record).is_ok(), "the ring has room");
    }

    fn pass(&mut self) {
        self.joiner.as_mut().expect("it was not finished").pass(Instant::now());
    }

    /// Ends as a node does. Gives what was counted.
    fn finish(mut self, closing: bool) -> std::collections::BTreeMap<&'static str, u64> {
        self.closing.store(closing, Ordering::Release);
        let bell = Bell::new().expect("an eventfd");
        self.joiner.take().expect("once").run(&bell, &AtomicBool::new(true));
        self.sender.take().expect("once").join().expect("it ends when nobody makes batches");
        self.counters.all().into_iter().collect()
    }
}

#[test]
fn a_collector_gets_traces_that_nest() {
    let collector = Collector::start(Manners::Good);
    let mut bench = Bench::new(&collector.endpoint, |config| {
        config.headers.insert("x-api-key".into(), Secret::new("hush"));
    });
    bench.push(0, begin(7, 5));
    bench.push(1, span(7));
    bench.push(1, Record::Generation { root: 7, generation: generation() });
    bench.push(0, Record::End { root: 7, end_us: 90, error: Some("quota_exceeded") });
    // What comes late belongs to it as well.
    bench.pass();
    bench.push(1, span(7));
    let counts = bench.finish(false);
    assert_eq!((counts["spans_exported"], counts["spans_orphaned"]), (11, 0));
    let received = collector.next();
    assert_eq!((received.path.as_str(), received.headers["x-api-key"].as_str()), ("/v1/traces", "hush"));
    assert_eq!(received.headers["content-type"], "application/x-protobuf");
    let resource = received.request.resource_spans[0].resource.clone().expect("it says what it is");
    assert_eq!(attribute(&resource.attributes, "service.name").as_deref(), Some("under-test"));
    let spans: Vec<_> = super::collector::spans_of(received.request).collect();
    let of = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    assert!(spans.iter().all(|span| span.trace_id == TRACE.to_be_bytes() && span.span_id.len() == 8));
    let root = of("ask")[0];
    assert_eq!(
        (root.span_id.clone(), root.parent_span_id.clone()),
        (vec![0, 0, 0, 0, 0, 0, 0, 7], vec![0, 0, 0, 0, 0, 0, 0, 5])
    );
    assert_eq!((root.kind(), root.flags), (SpanKind::Server, 0x301));
    assert_eq!(root.end_time_unix_nano - root.start_time_unix_nano, 80_000);
    assert_eq!(root.status.as_ref().map(|status| status.code()), Some(StatusCode::Error));
    assert_eq!(attribute(&root.attributes, "error.type").as_deref(), Some("quota_exceeded"));
    assert_eq!(attribute(&root.attributes, "thalweg.tenant").as_deref(), Some("acme"));
    let inference = of("inference")[0];
    for child in of("log.commit").into_iter().chain([inference]) {
        assert_eq!((&child.parent_span_id, child.kind(), child.flags), (&root.span_id, SpanKind::Internal, 0x101));
    }
    assert_eq!(attribute(&inference.attributes, "gen_ai.usage.output_tokens").as_deref(), Some("7"));
    let parts = ["worker.tokenise", "scheduler.queue", "worker.prefill", "worker.decode", "scheduler.park"];
    for part in parts.into_iter().flat_map(of).chain(of("ring.inference")) {
        assert_eq!(part.parent_span_id, inference.span_id, "{}", part.name);
        assert!(inference.start_time_unix_nano <= part.start_time_unix_nano, "{}", part.name);
        assert!(part.end_time_unix_nano <= inference.end_time_unix_nano, "{}", part.name);
    }
    assert_eq!((of("ring.inference").len(), of("log.commit").len(), spans.len()), (2, 2, 11));
}

#[test]
fn records_wait_for_their_root_for_one_look() {
    let collector = Collector::start(Manners::Good);
    let mut bench = Bench::new(&collector.endpoint, |_| {});
    // The first ring was looked at before its root came, the second after.
    bench.push(1, span(7));
    bench.pass();
    bench.push(0, begin(7, 0));
    bench.pass();
    // Nobody ever heard of this one.
    bench.push(1, span(8));
    bench.pass();
    bench.pass();
    bench.push(0, begin(8, 0));
    bench.push(0, Record::End { root: 7, end_us: 90, error: None });
    let counts = bench.finish(false);
    assert_eq!((counts["spans_exported"], counts["spans_orphaned"]), (2, 1));
    let spans = collector.spans_until(|spans| spans.len() == 2);
    assert!(spans.iter().any(|span| span.name == "ask" && span.parent_span_id.is_empty() && span.status.is_none()));
}

#[test]
fn every_span_is_accounted_for_whatever_the_collector_does() {
    // Endpoint, configuration, whether the node goes; then what is taken, thrown away, lost; and requests that failed.
    let check = |endpoint: &str, timeout_ms: u64, closing: bool, spans: usize, expected: [u64; 4]| {
        let mut bench = Bench::new(endpoint, |config| config.timeout = Duration::from_millis(timeout_ms));
        bench.push(0, begin(7, 0));
        for _ in 0..spans {
            bench.push(0, span(7));
        }
        let counts = bench.finish(closing);
        let got = ["spans_exported", "spans_rejected", "spans_undelivered", "trace_request_failures"];
        assert_eq!(got.map(|name| counts[name]), expected, "{endpoint}, {timeout_ms} ms");
        assert_eq!(counts["spans_overflowed"] + expected[..3].iter().sum::<u64>(), spans as u64);
    };
    let start = Collector::start;
    check(&start(Manners::Good).endpoint, 10_000, false, 10, [10, 0, 0, 0]);
    check(&start(Manners::Partial(3)).endpoint, 10_000, false, 10, [7, 3, 0, 0]);
    // One that is not able to now is asked again, at once if it says so.
    check(&start(Manners::Status { status: 503, first: 2 }).endpoint, 10_000, false, 10, [10, 0, 0, 2]);
    check(&start(Manners::Status { status: 429, first: 1 }).endpoint, 10_000, false, 10, [10, 0, 0, 1]);
    check(&start(Manners::Status { status: 503, first: 99 }).endpoint, 10_000, false, 10, [0, 0, 10, 5]);
    // What it does not understand, it will not understand later.
    check(&start(Manners::Status { status: 400, first: 99 }).endpoint, 10_000, false, 10, [0, 0, 10, 1]);
    check(&start(Manners::Status { status: 500, first: 99 }).endpoint, 10_000, false, 10, [0, 0, 10, 1]);
    check(&start(Manners::Status { status: 307, first: 99 }).endpoint, 10_000, false, 10, [0, 0, 10, 1]);
    // A node that goes tries once.
    check(&start(Manners::Silent).endpoint, 50, true, 10, [0, 0, 10, 1]);
    check("http://127.0.0.1:1", 10_000, true, 10, [0, 0, 10, 1]);
}

#[test]
fn what_the_queue_has_no_room_for_is_counted() {
    // The sender waits for an answer that does not come, with one batch in hand and one in the queue.
    let mut bench =
        Bench::new(&Collector::start(Manners::Silent).endpoint, |config| config.timeout = Duration::from_millis(200));
    bench.push(0, begin(7, 0));
    for _ in 0..4 {
        for _ in 0..BATCH_SPANS {
            bench.push(0, span(7));
        }
        bench.pass();
    }
    let counts = bench.finish(true);
    let (lost, overflowed) = (counts["spans_undelivered"], counts["spans_overflowed"]);
    assert_eq!((lost + overflowed) as usize, 4 * BATCH_SPANS);
    assert!(overflowed as usize >= BATCH_SPANS, "{counts:?}");
}

#[test]
fn backing_off_is_given_up_when_the_node_goes() {
    let collector = Collector::start(Manners::Status { status: 502, first: 99 });
    let mut bench = Bench::new(&collector.endpoint, |_| {});
    bench.push(0, begin(7, 0));
    (0..BATCH_SPANS).for_each(|_| bench.push(0, span(7)));
    bench.pass();
    let sender = bench.sender.as_ref().expect("runs").thread().clone();
    let closing = Arc::clone(&bench.closing);
    let failures = Arc::clone(&bench.counters);
    while failures.failures.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    closing.store(true, Ordering::Release);
    sender.unpark();
    assert_eq!(bench.finish(true)["spans_undelivered"], BATCH_SPANS as u64);
}
