//! `thalweg bench` without the rest of `thalweg`: for a node elsewhere, or a plain QUIC echo.
//!
//! ```text
//! cargo run --release -p thalweg-load --example bench -- --server 127.0.0.1:4433 --token "$TOKEN" ping --json
//! ```

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use thalweg_load::cli::{BenchArgs, Target, run};

#[derive(Parser)]
struct Cli {
    /// Where the node listens for QUIC; `tokens --http` needs none
    #[arg(long, default_value = "127.0.0.1:4433")]
    server: SocketAddr,
    /// The signed token to show
    #[arg(long, default_value = "", hide_default_value = true)]
    token: String,
    #[command(flatten)]
    bench: BenchArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let target = Target { server: cli.server, server_key: None, token: cli.token, server_pid: None };
    match run(&cli.bench, target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
