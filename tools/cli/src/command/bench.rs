//! `thalweg bench`: measure a node. The benches themselves are the load generator's.

use std::net::ToSocketAddrs as _;

use thalweg_load::cli::{BenchArgs, Target};

use crate::connect::ConnectArgs;
use crate::failure::{Failure, exit};

/// Measure a node
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    bench: BenchArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg bench ping --closed
  thalweg bench fanout --subscribers 1000 --json
  thalweg bench connect --connections 10000 --hold 5m
  thalweg bench tokens -c 16";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let local = thalweg_client::discover(&args.connect.data_directory());
    let (server, found) = match (&args.connect.server, local) {
        (Some(server), local) => (server.clone(), local.ok().filter(|local| local.quic == *server)),
        (None, Ok(local)) => (local.quic.clone(), Some(local)),
        (None, Err(error)) => return Err(error.into()),
    };
    let addresses = server.to_socket_addrs().map_err(|error| error.to_string());
    let address = addresses.and_then(|mut all| all.next().ok_or_else(|| "the name has no address".into()));
    let address = address.map_err(|reason| Failure::new(exit::UNREACHABLE, format!("{server}: {reason}")))?;
    let token = args.connect.token.or_else(|| found.as_ref().map(|local| local.token.clone()));
    let token = token.ok_or_else(|| Failure::usage(format!("no token for {server}: give one with --token")))?;
    let server_key = found.as_ref().map(|local| local.key.0);
    if server_key.is_none() && !args.connect.trust_first {
        let text = format!("the key of {server} is not known here; --trust-first measures it nevertheless");
        return Err(Failure::new(exit::REFUSED, text));
    }
    let server_pid = found.map(|local| local.pid).filter(|&pid| pid != 0);
    let target = Target { server: address, server_key, token, server_pid };
    thalweg_load::cli::run(&args.bench, target).map_err(|error| Failure::new(error.exit_code(), error.to_string()))
}
