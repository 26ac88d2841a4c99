//! How commands reach a node.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thalweg_client::{Builder, Client, ClientError, FirstContact, LocalNode, Trust};

use crate::failure::Failure;
use crate::logins::{self, Login};
use crate::paths;

/// After how long a silence a connection is probed. People change networks, and somebody who only reads is deaf until then.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// How long a node may take to answer the first time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of every command that talks to a node.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct ConnectArgs {
    /// The node's address; without it, the node of the data directory
    #[arg(long, global = true, value_name = "HOST:PORT", env = "THALWEG_SERVER")]
    pub(crate) server: Option<String>,
    /// The signed token or the API key that says who you are; without it, that of `thalweg login`, or the one in the data
    /// directory
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
        let (builder, found) = self.address(name)?;
        if let Some(token) = &self.token {
            return Ok(builder.token(token));
        }
        // Whoever looks after the node of this machine does so as its owner, whoever they chat as.
        let login = if name == "admin" && found.is_some() { None } else { logins::load(&self.server_name())? };
        match (login, found, &self.server) {
            (Some(login), _, _) if login.has_ended() => {
                let server = self.server.as_ref().map_or(String::new(), |server| format!(" --server {server}"));
                let Login { tenant, user, .. } = login;
                let text = format!(
                    "the login of {user} ({tenant}) has ended; do `thalweg login{server} --tenant {tenant} --user {user}` \
                     again, or `thalweg logout{server}`"
                );
                Err(Failure::new(crate::failure::exit::REFUSED, text))
            }
            (Some(login), _, _) => Ok(builder.token(login.token)),
            (None, Some(local), Some(_)) => Ok(builder.token(local.token)),
            // The token of the data directory, read anew each time.
            (None, _, None) => Ok(builder),
            (None, None, Some(server)) => Err(Failure::usage(format!(
                "no token for {server}: do `thalweg login --server {server}`, or give one with --token or THALWEG_TOKEN \
                 (`thalweg admin token` on the node's machine makes one)"
            ))),
        }
    }

    /// A client of the node that is meant, which says nothing of who we are; and what the node left on this machine, if it
    /// runs here.
    pub(crate) fn address(&self, name: &str) -> Result<(Builder, Option<LocalNode>), Failure> {
        let data = self.data_directory();
        let builder = Client::builder()
            .name(format!("thalweg-{name}/{}", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT);
        let local = thalweg_client::discover(&data).ok();
        let Some(server) = &self.server else { return Ok((builder.local(data), local)) };
        let found = local.filter(|local| local.quic == *server);
        let trust = match (&self.ca, &found) {
            (Some(ca), _) => Trust::authorities(ca)?,
            // A node that is both named and found is recognised by what it left here.
            (None, Some(local)) => Trust::PinnedKey(local.key),
            (None, None) => self.first_use(),
        };
        Ok((builder.server(server).trust(trust), found))
    }

    /// What logins are kept under: the address, or the data directory.
    pub(crate) fn server_name(&self) -> String {
        self.server.clone().unwrap_or_else(|| self.data_directory().display().to_string())
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
        let builder = builder.keep_alive(KEEP_ALIVE);
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
