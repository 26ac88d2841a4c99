//! A stock echo over quinn and tokio, as its examples would have it: server and client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use thalweg_peers::{client_tls, latencies, row};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Sends back every byte of every bidirectional stream; prints `ready quic=ADDR`
    Serve {
        #[arg(long, default_value = "127.0.0.1:0")]
        quic: SocketAddr,
    },
    /// Measures round trips
    Ping {
        #[arg(long)]
        server: SocketAddr,
        /// Open loop at this many a second, from the intended time; closed loop without
        #[arg(long)]
        rate: Option<f64>,
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        /// Seconds
        #[arg(long, default_value_t = 10.0)]
        duration: f64,
        #[arg(long, default_value_t = 1.0)]
        warmup: f64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    match Cli::parse().what {
        What::Serve { quic } => serve(quic).await,
        What::Ping { server, rate, bytes, duration, warmup } => ping(server, rate, bytes, duration, warmup).await,
    }
}

async fn serve(address: SocketAddr) -> Outcome {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private.into())?;
    tls.alpn_protocols = vec![b"echo".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::server(config, address)?;
    println!("ready quic={}", endpoint.local_addr()?);
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
                        if send.write_chunk(chunk.bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    Ok(())
}

async fn ping(server: SocketAddr, rate: Option<f64>, bytes: usize, duration: f64, warmup: f64) -> Outcome {
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let tls = QuicClientConfig::try_from(client_tls(&[b"echo"]))?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    let connection = endpoint.connect(server, "localhost")?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let (message, mut answer, mut seen) = (vec![b'x'; bytes], vec![0; bytes], latencies());
    let start = Instant::now();
    let measured = Duration::from_secs_f64(warmup)..Duration::from_secs_f64(warmup + duration);
    let Some(rate) = rate else {
        while start.elapsed() < measured.end {
            let from = start.elapsed();
            send.write_all(&message).await?;
            receive.read_exact(&mut answer).await?;
            if measured.contains(&from) {
                seen.saturating_record((start.elapsed() - from).as_nanos() as u64);
            }
        }
        println!("{}", serde_json::Value::from(row("quinn_closed", &seen, duration)));
        return Ok(());
    };
    let intended = move |n: u64| Duration::from_secs_f64(n as f64 / rate);
    let total = (measured.end.as_secs_f64() * rate) as u64;
    let sender = tokio::spawn(async move {
        for n in 0..total {
            // tokio's timer counts whole milliseconds: the rest is spun away, or it would be charged to the server.
            let due = start + intended(n);
            if let Some(early) = due.checked_sub(Duration::from_millis(2)) {
                tokio::time::sleep_until(early.into()).await;
            }
            while Instant::now() < due {
                tokio::task::yield_now().await;
            }
            if send.write_all(&message).await.is_err() {
                return;
            }
        }
    });
    for n in 0..total {
        receive.read_exact(&mut answer).await?;
        if measured.contains(&intended(n)) {
            seen.saturating_record((start.elapsed().saturating_sub(intended(n))).as_nanos() as u64);
        }
    }
    sender.await?;
    println!("{}", serde_json::Value::from(row("quinn_open", &seen, duration)));
    Ok(())
}
