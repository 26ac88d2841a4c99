//! What a scrape costs: on a core, and through HTTP from request to last byte.
//!
//! ```text
//! cargo run --release -p thalweg-micro --bin scrape [CORES…]
//! ```
//! For each number of cores a node starts on an empty directory, and is scraped 500 times, one after the other. Series grow
//! with cores, so more cores than CPUs are a way to have many series, not a way to measure cores. What a core measured is
//! what the node itself exposes: the stage `scrape` of `thalweg_stage_duration_seconds`, each core's part counted once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use thalweg_node::Node;
use thalweg_node::config::{HttpConfig, NodeConfig, WebConfig};

/// Scrapes of one node.
const SCRAPES: usize = 500;
/// Those that warm it up, and are not counted.
const WARM_UP: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cores: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let cores = if cores.is_empty() { vec![1, 2, 32, 120] } else { cores };
    println!("cores  series    bytes  core_mean_us  core_le_p99_us  http_p50_us  http_p99_us");
    for cores in cores {
        measure(cores)?;
    }
    Ok(())
}

fn measure(cores: usize) -> Result<(), Box<dyn std::error::Error>> {
    let data = std::env::temp_dir().join(format!("thalweg-scrape-{}-{cores}", std::process::id()));
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let http = HttpConfig { web: WebConfig { addr: local(0), ..WebConfig::default() }, optional: false };
    let config = NodeConfig {
        data: data.clone(),
        quic: local(0),
        http: Some(http),
        cores: Some(cores),
        // Many small nodes fit on a disk.
        log_file_bytes: 4 << 20,
        ..NodeConfig::default()
    };
    let node = Node::start(config)?;
    let addr = node.http_addr().ok_or("it serves no HTTP")?;
    let mut took: Vec<Duration> = Vec::with_capacity(SCRAPES);
    let mut text = String::new();
    for n in 0..WARM_UP + SCRAPES {
        let began = Instant::now();
        text = scrape(addr)?;
        if n >= WARM_UP {
            took.push(began.elapsed());
        }
    }
    took.sort_unstable();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let number = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse::<f64>().ok());
    let stage = |what: &str| number(&format!("thalweg_stage_duration_seconds_{what}{{stage=\"scrape\"}} "));
    let (sum, count) = (stage("sum").ok_or("no sum")?, stage("count").ok_or("no count")?);
    let below = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("thalweg_stage_duration_seconds_bucket{stage=\"scrape\",le=\"")?;
        let (le, count) = rest.split_once("\"} ")?;
        Some((le.parse::<f64>().ok()?, count.parse::<f64>().ok()?))
    });
    let p99_below = below.into_iter().find(|(_, below)| *below >= 0.99 * count).map_or(f64::INFINITY, |(le, _)| le);
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_micros();
    println!(
        "{cores:>5} {series:>7} {:>8} {:>13.0} {:>15.0} {:>12} {:>12}",
        text.len(),
        sum / count * 1e6,
        p99_below * 1e6,
        at(0.5),
        at(0.99)
    );
    node.drain();
    node.wait()?;
    std::fs::remove_dir_all(data)?;
    Ok(())
}

/// One scrape, as Prometheus makes it but for the connection, which is a new one.
fn scrape(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(answer)),
    }
}
