//! Loads documents of any server that speaks Yjs over WebSocket: N documents × M editors that type by schedule.
//!
//! Open loop: a keystroke's latency counts from when its schedule wanted it typed, to when each of the document's other
//! editors was sent an update that holds it, which the (client, clock) of its insertion tells. One thread over epoll.
//! Most editors only read whose edits they get; `--full` of each document apply them, and are compared in the end. What is
//! typed and how it is counted are `thalweg bench docs`' own files.

#[path = "../../../load/src/docs/book.rs"]
mod book;
mod load;
mod process;
mod protocol;
#[path = "../../../load/src/docs/scan.rs"]
mod scan;
mod socket;
#[path = "../../../load/src/docs/typing.rs"]
mod typing;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Map, Value, json};

use load::{Outcome, Plan};
use protocol::Protocol;

/// A rate is sustained if p99 stays below this.
const SUSTAINED_P99: Duration = Duration::from_secs(1);
/// And if so much of what was due in the time came in the time.
const SUSTAINED_SHARE: f64 = 0.97;
/// How late the generator itself may be before it, and not the server, is what is measured.
const OWN_LATE_P99: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(about = "Loads documents over WebSocket, open loop")]
struct Cli {
    /// Where, with {doc} for a document's name: ws://127.0.0.1:1234/{doc}
    #[arg(long)]
    url: String,
    /// Which of the two protocols
    #[arg(long, value_enum, default_value_t = Protocol::Yjs)]
    protocol: Protocol,
    /// The token, where the protocol has a message for it
    #[arg(long, default_value = "", hide_default_value = true)]
    token: String,
    /// Name of the row
    #[arg(long, default_value = "docs")]
    name: String,
    #[arg(long, default_value_t = 1)]
    documents: usize,
    /// Editors of each document
    #[arg(long, default_value_t = 50)]
    editors: usize,
    /// Keystrokes a second, of all editors of all documents together
    #[arg(long, default_value_t = 250.0)]
    rate: f64,
    /// Look for the highest rate that is sustained, from --rate on
    #[arg(long)]
    search: bool,
    /// Factor between the steps of a search
    #[arg(long, default_value_t = 1.5)]
    step: f64,
    /// Awareness updates a second of each editor
    #[arg(long, default_value_t = 0.0)]
    awareness: f64,
    /// Characters of a document in the beginning
    #[arg(long, default_value_t = 3_000)]
    page: usize,
    /// Editors of each document that apply all they get
    #[arg(long, default_value_t = 2)]
    full: usize,
    /// Seconds to measure
    #[arg(long, default_value_t = 8.0)]
    duration: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Seconds to wait for what is late
    #[arg(long, default_value_t = 5.0)]
    grace: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server's process, to report what it costs
    #[arg(long)]
    server_pid: Option<u32>,
}

fn main() -> ExitCode {
    raise_files();
    match work(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(cli: &Cli) -> Result<(), String> {
    if cli.documents == 0 || cli.editors < 2 || cli.rate <= 0.0 || cli.page == 0 || cli.step <= 1.01 {
        return Err("give at least one document, two editors, a page and a rate above 0, and a step above 1.01".into());
    }
    let plan = Plan {
        server: address(&cli.url)?,
        url: cli.url.clone(),
        protocol: cli.protocol,
        token: cli.token.clone(),
        documents: cli.documents,
        editors: cli.editors,
        full: cli.full.min(cli.editors),
        page: cli.page,
        rate: cli.rate,
        awareness: cli.awareness,
        warmup: Duration::from_secs_f64(cli.warmup),
        duration: Duration::from_secs_f64(cli.duration),
        grace: Duration::from_secs_f64(cli.grace),
        seed: cli.seed,
        server_pid: cli.server_pid,
    };
    if !cli.search {
        println!("{}", row(&cli.name, &plan, &load::run(&plan)?));
        return Ok(());
    }
    let (plan, outcome) = search(plan, cli.step)?;
    println!("{}", row(&cli.name, &plan, &outcome));
    Ok(())
}

/// Steps up until a rate is not sustained, then once into the gap.
fn search(mut plan: Plan, step: f64) -> Result<(Plan, Outcome), String> {
    let mut best: Option<(Plan, Outcome)> = None;
    let mut factor = step;
    for _ in 0..24 {
        let outcome = match load::run(&plan) {
            Ok(outcome) => outcome,
            // A server that breaks off under load did not sustain it.
            Err(error) if best.is_some() => {
                eprintln!("{:>10.0} ops/s: {error}", plan.rate);
                plan.rate = best.as_ref().map_or(plan.rate, |(best, _)| best.rate) * step.sqrt();
                if factor < step {
                    break;
                }
                factor = step.sqrt();
                continue;
            }
            Err(error) => return Err(error),
        };
        let sustained = sustains(&plan, &outcome);
        let (p99_ms, late_ms) = (millis(&outcome.latencies), millis(&outcome.late));
        let (share, verdict) = (share(&plan, &outcome), if sustained { "sustained" } else { "not sustained" });
        eprintln!(
            "{:>10.0} ops/s: p99 {p99_ms:.1} ms, sent late {late_ms:.1} ms, share {share:.3}: {verdict}",
            plan.rate
        );
        if sustained {
            let rate = plan.rate * factor;
            best = Some((plan.clone(), outcome));
            if factor < step {
                break;
            }
            plan.rate = rate;
        } else if let Some((best, _)) = &best {
            if factor < step {
                break;
            }
            factor = step.sqrt();
            plan.rate = best.rate * factor;
        } else {
            // Too fast from the beginning.
            plan.rate /= 2.0;
        }
        // Whatever a step left behind is to be over.
        std::thread::sleep(Duration::from_millis(300));
    }
    best.ok_or_else(|| "no rate was sustained".into())
}

fn millis(histogram: &hdrhistogram::Histogram<u64>) -> f64 {
    histogram.value_at_percentile(99.0) as f64 / 1e6
}

fn share(plan: &Plan, outcome: &Outcome) -> f64 {
    outcome.deliveries as f64 / (outcome.ops.max(1) * (plan.editors as u64 - 1)) as f64
}

fn sustains(plan: &Plan, outcome: &Outcome) -> bool {
    outcome.undelivered == 0
        && share(plan, outcome) >= SUSTAINED_SHARE
        && outcome.ops as f64 >= plan.rate * outcome.seconds * SUSTAINED_SHARE
        && millis(&outcome.latencies) < SUSTAINED_P99.as_secs_f64() * 1e3
}

fn row(name: &str, plan: &Plan, outcome: &Outcome) -> Value {
    let us = |ns: u64| (ns as f64 / 1e3 * 10.0).round() / 10.0;
    let at = |percent: f64| us(outcome.latencies.value_at_percentile(percent));
    let clients = (plan.documents * plan.editors) as f64;
    let per = |count: f64| (count / outcome.seconds / clients * 10.0).round() / 10.0;
    let mut row = Map::new();
    let mut put = |key: &str, value: Value| row.insert(key.to_owned(), value);
    put("name", json!(name));
    put("count", json!(outcome.latencies.len()));
    put("rate", json!((outcome.deliveries as f64 / outcome.seconds).round()));
    put("p50_us", json!(at(50.0)));
    put("p90_us", json!(at(90.0)));
    put("p99_us", json!(at(99.0)));
    put("p999_us", json!(at(99.9)));
    put("p9999_us", json!(at(99.99)));
    put("max_us", json!(us(outcome.latencies.max())));
    put("documents", json!(plan.documents));
    put("editors", json!(plan.editors));
    put("asked_ops_per_s", json!(plan.rate.round()));
    put("ops_per_s", json!((outcome.ops as f64 / outcome.seconds).round()));
    put("undelivered", json!(outcome.undelivered));
    put("gaps", json!(outcome.gaps));
    put("converged", json!(outcome.converged));
    if !outcome.converged {
        put("disagreement", json!(outcome.disagreement));
    }
    put("edits_per_frame", json!((outcome.deliveries as f64 / outcome.frames.max(1) as f64 * 100.0).round() / 100.0));
    put("in_bytes_per_client_s", json!(per(outcome.received_bytes as f64)));
    put("out_bytes_per_client_s", json!(per(outcome.sent_bytes as f64)));
    if !outcome.acks.is_empty() {
        put("ack_p50_us", json!(us(outcome.acks.value_at_percentile(50.0))));
        put("ack_p99_us", json!(us(outcome.acks.value_at_percentile(99.0))));
    }
    if let Some(cpu) = outcome.server_cpu_s {
        put("server_cpu_s", json!((cpu * 100.0).round() / 100.0));
        put("deliveries_per_cpu_s", json!((outcome.deliveries as f64 / cpu.max(0.01)).round()));
    }
    if let Some(bytes) = outcome.server_rss {
        put("server_rss_mib", json!(bytes >> 20));
    }
    put("generator_cpu_s", json!((outcome.own_cpu_s * 100.0).round() / 100.0));
    put("generator_cpu_share", json!((outcome.own_cpu_s / outcome.seconds * 100.0).round() / 100.0));
    put("sent_late_p99_us", json!(us(outcome.late.value_at_percentile(99.0))));
    let bound = Duration::from_nanos(outcome.late.value_at_percentile(99.0)) > OWN_LATE_P99;
    put("generator_bound", json!(bound));
    Value::Object(row)
}

/// The host and port of a URL.
fn address(url: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{url:?} is no address; give one like ws://127.0.0.1:1234/{{doc}}");
    let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
    let host = rest.split(['/', '?']).next().ok_or_else(wrong)?;
    host.to_socket_addrs().map_err(|error| format!("{host}: {error}"))?.next().ok_or_else(wrong)
}

/// Every editor is a descriptor.
fn raise_files() {
    // SAFETY: rlimit is two plain integers; both calls take a pointer to one that lives across them.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
