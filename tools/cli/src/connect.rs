//! How commands reach a node.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thalweg_client::{Builder, Client, ClientError, FirstContact, Trust};

use crate::failure::Failure;
use crate::paths;

/// How long a node may take to answer the first time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of every command that talks to a node.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct ConnectArgs {
    /// The node's address; without it, the node of the data directory
    #[arg(long, global = true, value_name = "HOST:PORT", env = "THALWEG_SERVER")]
    pub(crate) server: Option<String>,
    /// The signed token that says who you are; without it, the one in the data directory
    #[arg(long, global = true, value_name = "T", env = "THALWEG_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Data directory of a node on this machine: address, key and token are found there [default:
    /// $XDG_STATE_HOME/thalweg]
    #[arg(long, global = true, value_name = "DIR", env = "THALWEG_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Trust the key of a node that is met for the first time, without asking
    #[arg(long, global = true)]
    pub(crate) trust_first: bool,
    /// Trust nodes whose certificate was issued by an authority in this PEM file, and no others
    #[arg(long, global = true, value_name = "FILE", env = "THALWEG_CA", conflicts_with = "trust_first")]
    pub(crate) ca: Option<PathBuf>,
}

impl ConnectArgs {
    /// The data directory meant.
    pub(crate) fn data_directory(&self) -> PathBuf {
        paths::data_directory(self.data.clone())
    }

    /// A client for the command `name`, not connected yet.
    pub(crate) fn builder(&self, name: &str) -> Result<Builder, Failure> {
        let data = self.data_directory();
        let builder = Client::builder()
            .name(format!("thalweg-{name}/{}", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT);
        let Some(server) = &self.server else {
            let builder = builder.local(data);
            return Ok(self.token.clone().into_iter().fold(builder, Builder::token));
        };
        // A node that is both named and found is recognised by what it left here.
        let local = thalweg_client::discover(&data).ok();
        let found = local.as_ref().filter(|local| local.quic == *server);
        let trust = match (&self.ca, found) {
            (Some(ca), _) => Trust::authorities(ca)?,
            (None, Some(local)) => Trust::PinnedKey(local.key),
            (None, None) => self.first_use(),
        };
        let token = self.token.clone().or_else(|| found.map(|local| local.token.clone())).ok_or_else(|| {
            Failure::usage(format!(
                "no token for {server}: give one with --token or THALWEG_TOKEN (`thalweg admin token` on the node's machine \
                 makes one)"
            ))
        })?;
        Ok(builder.server(server).token(token).trust(trust))
    }

    fn first_use(&self) -> Trust {
        let trust_first = self.trust_first;
        let ask = move |contact: &FirstContact| trust_first || ask(contact);
        Trust::FirstUse { store: paths::known_nodes(), ask: Arc::new(ask) }
    }

    /// A client for the command `name`, which tries for `reconnect` to replace a connection that was lost. Whoever does not
    /// want to wait that long does not want to wait longer for the first one either.
    pub(crate) async fn connect(&self, name: &str, reconnect: Duration) -> Result<Client, Failure> {
        let builder = self.builder(name)?.reconnect(Some(reconnect)).connect_timeout(CONNECT_TIMEOUT.min(reconnect));
        builder.connect().await.map_err(|error| untrusted_hint(&error).unwrap_or_else(|| error.into()))
    }
}

/// What to do about a node that nobody vouched for.
fn untrusted_hint(error: &ClientError) -> Option<Failure> {
    let ClientError::Untrusted { reason, .. } = error else { return None };
    let first = reason.starts_with("it was never seen");
    first.then(|| {
        let text = format!("{error}; compare it with what `thalweg doctor` prints there, then use --trust-first");
        Failure::new(error.exit_code(), text)
    })
}

/// Asks the person at the terminal; no if there is none.
fn ask(contact: &FirstContact) -> bool {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return false;
    }
    eprintln!("{} is not known here. Its key is sha256:{}", contact.server, contact.key);
    eprint!("Trust it from now on? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Runs a command's asynchronous part on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("starting the runtime: {error}")))?;
    let result = runtime.block_on(future);
    // A thread that reads standard input cannot be stopped and is not waited for.
    runtime.shutdown_background();
    result
}

/// Shows the log of the command on standard error: warnings, or what `THALWEG_LOG` asks for.
pub(crate) fn log_to_stderr(json: bool, default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("THALWEG_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
}
