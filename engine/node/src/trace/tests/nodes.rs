//! Whole nodes that are traced, from the client's request to what a collector has.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::Value;
use thalweg_client::{AskRequest, Client, From, Item, SubscribeOptions, TraceContext};
use thalweg_protocol::ids::Name;

use super::collector::{Collector, Manners, attribute};
use crate::Node;
use crate::config::{ModelSource, NodeConfig, TraceConfig};
use crate::identity::tests::TempDir;

fn config(data: &TempDir, endpoint: &str, ratio: f64) -> NodeConfig {
    let quic = SocketAddr::from(([127, 0, 0, 1], 0));
    let trace = TraceConfig { endpoint: Some(endpoint.to_owned()), ratio, ..TraceConfig::default() };
    NodeConfig { data: data.path().to_owned(), quic, cores: Some(2), trace, ..NodeConfig::default() }
}

/// Runs a node for as long as a client does something with it. Its spans are with the collector afterwards.
fn serve<T, F: Future<Output = T>>(config: NodeConfig, act: impl FnOnce(Client) -> F) -> T {
    let data = config.data.clone();
    let node = Node::start(config).expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async {
        let client = Client::builder().local(&data).make_channels(true).connect().await.expect("connects");
        let done = act(client.clone()).await;
        client.close().await;
        done
    });
    node.drain();
    node.wait().expect("drains");
    done
}

fn context(trace: u128) -> TraceContext {
    TraceContext { trace, span: 0xabc, flags: 1 }
}

/// The spans of one trace.
struct Trace(Vec<Span>);

impl Trace {
    fn only<'a>(&'a self, name: &'a str) -> &'a Span {
        let mut named = self.all(name);
        let found = named.next().unwrap_or_else(|| panic!("no {name} among {:?}", self.names()));
        assert!(named.next().is_none(), "one {name} among {:?}", self.names());
        found
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Span> {
        self.0.iter().filter(move |span| span.name == name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|span| span.name.as_str()).collect()
    }

    /// Checks that a span is a part of another one, and lies within its time.
    fn within(&self, span: &Span, parent: &Span) {
        assert_eq!(span.parent_span_id, parent.span_id, "{} is a part of {}", span.name, parent.name);
        let inside = parent.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano <= span.end_time_unix_nano
            && span.end_time_unix_nano <= parent.end_time_unix_nano;
        assert!(inside, "{} lies within {}", span.name, parent.name);
    }
}

fn by_trace(spans: Vec<Span>) -> BTreeMap<u128, Trace> {
    let mut traces = BTreeMap::<u128, Vec<Span>>::new();
    for span in spans {
        let id = <[u8; 16]>::try_from(&span.trace_id[..]).expect("16 bytes");
        traces.entry(u128::from_be_bytes(id)).or_default().push(span);
    }
    traces.into_iter().map(|(id, spans)| (id, Trace(spans))).collect()
}

#[test]
fn a_publish_is_one_trace_on_whichever_cores() {
    const ROOMS: u128 = 8;
    let (data, collector) = (TempDir::new(), Collector::start(Manners::Good));
    serve(config(&data, &collector.endpoint, 0.0), async |client| {
        let mut readers = Vec::new();
        for room in 1..=ROOMS {
            let name = format!("secret-room-{room}");
            let reader = client.subscribe(name.as_str(), SubscribeOptions { from: From::Start, ..Default::default() });
            readers.push(reader.await.expect("subscribes"));
            // Somebody else writes, so that the reader hears it.
            let other = Client::builder().local(data.path()).connect().await.expect("connects");
            other.with_trace(context(room)).publish(name.as_str(), "a secret body").await.expect("publishes");
            other.publish(name.as_str(), "not traced").await.expect("publishes");
            other.close().await;
        }
        for mut reader in readers {
            assert!(matches!(reader.next().await, Ok(Some(Item::Message(_)))));
        }
    });
    let traces = by_trace(collector.all());
    assert_eq!(traces.keys().copied().collect::<Vec<_>>(), (1..=ROOMS).collect::<Vec<_>>(), "nothing else is traced");
    for trace in traces.values() {
        let root = trace.only("publish");
        assert_eq!((root.kind(), root.parent_span_id.as_slice()), (SpanKind::Server, &0xabc_u64.to_be_bytes()[..]));
        assert_eq!(attribute(&root.attributes, "thalweg.tenant").as_deref(), Some("default"));
        trace.within(trace.only("shard.publish"), root);
        trace.within(trace.only("log.commit"), root);
        // Readers may get it before or after its writer is answered.
        assert_eq!(trace.only("fan_out").parent_span_id, root.span_id);
        let shown = format!("{:?}", trace.0);
        assert!(!shown.contains("secret"), "neither bodies nor channels are shown: {shown}");
    }
}

/// The model that the tests of the inference stage use, if it was pulled.
fn model() -> Option<PathBuf> {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("thalweg/models");
    let models = std::env::var_os("THALWEG_MODELS").map_or_else(cache, PathBuf::from);
    Some(models.join("smollm2-135m/model.gguf")).filter(|path| path.is_file())
}

#[test]
fn an_ask_is_one_trace_from_the_door_to_the_model_and_back() {
    let Some(path) = model() else { return println!("skipped: the model smollm2-135m was not pulled") };
    let (data, collector) = (TempDir::new(), Collector::start(Manners::Good));
    let models = vec![ModelSource { name: Name::new("smollm2-135m").expect("valid"), path }];
    let config = NodeConfig { models, ..config(&data, &collector.endpoint, 0.0) };
    let usage = serve(config, async |client| {
        let mut request = AskRequest::prompt("Name a secret colour.");
        request.sampling.max_tokens = 12;
        let mut answer = client.with_trace(context(7)).ask(request).await.expect("asks");
        while answer.next().await.expect("goes on").is_some() {}
        answer.finished().expect("it ended").usage
    });
    let traces = by_trace(collector.all());
    assert_eq!(traces.keys().copied().collect::<Vec<_>>(), [7]);
    let trace = &traces[&7];
    let (root, inference) = (trace.only("ask"), trace.only("inference"));
    assert_eq!(root.parent_span_id, 0xabc_u64.to_be_bytes());
    trace.within(inference, root);
    trace.within(trace.only("token.send"), root);
    for part in ["worker.tokenise", "scheduler.queue", "worker.prefill", "worker.decode"] {
        trace.within(trace.only(part), inference);
    }
    assert_eq!(trace.all("ring.inference").count(), 2, "there and back");
    trace.all("ring.inference").for_each(|ring| trace.within(ring, inference));
    let said = |key| attribute(&inference.attributes, key).expect(key);
    assert_eq!(said("gen_ai.usage.output_tokens"), usage.completion_tokens.to_string());
    assert_eq!(said("gen_ai.usage.input_tokens"), usage.prompt_tokens.to_string());
    assert_eq!(said("gen_ai.request.model"), "smollm2-135m");
    // One after the other, as the request went.
    let path = ["worker.tokenise", "scheduler.queue", "worker.prefill", "worker.decode"].map(|name| trace.only(name));
    assert!(path.windows(2).all(|pair| pair[0].end_time_unix_nano <= pair[1].start_time_unix_nano));
    let (drawn, sent) = (trace.only("worker.decode"), trace.only("token.send"));
    assert!(drawn.start_time_unix_nano <= sent.start_time_unix_nano, "what is sent is a token");
    assert!(!format!("{:?}", trace.0).contains("secret"), "prompts are not shown");
}

#[test]
fn a_collector_in_trouble_costs_spans_and_nothing_else() {
    const MESSAGES: usize = 2_000;
    let check = |endpoint: &str| {
        let data = TempDir::new();
        let counters = serve(config(&data, endpoint, 1.0), async |client| {
            let mut acks = Vec::new();
            for n in 0..MESSAGES {
                acks.push(client.publish_start("room", format!("message {n}")).await.expect("taken"));
            }
            for ack in acks {
                ack.await.expect("acknowledged");
            }
            let stats: Value = serde_json::from_slice(&client.stats().await.expect("answers")).expect("JSON");
            stats["counters"].clone()
        });
        let count = |name: &str| counters[name].as_u64().unwrap_or_else(|| panic!("{name} in {counters}"));
        assert!(count("traces_sampled") as usize >= MESSAGES, "{counters}");
        assert!(count("spans_recorded") + count("spans_dropped") >= 3 * MESSAGES as u64, "{counters}");
    };
    check("http://127.0.0.1:1");
    check(&Collector::start(Manners::Silent).endpoint);
    check(&Collector::start(Manners::Status { status: 500, first: usize::MAX }).endpoint);
}
