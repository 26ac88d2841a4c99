//! The official clients of OpenAI's API, a tester that reads the API's document, and stock editors of Yjs, against a node of
//! ours.
//!
//! They are installed once, in the versions that `tools/clients` names, into the target folder.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::outcome::Outcome;

/// Longer than the slowest machine takes to load a model.
const START_MAX: Duration = Duration::from_secs(120);
/// Longer than the slowest machine takes for the clients of one kind.
const RUN_MAX: Duration = Duration::from_secs(40 * 60);
/// Distance at which it is looked whether they are done.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What the tester does not hold us to: a document cannot say which models there are, or which schemas can be satisfied.
const NOT_HELD_TO: &str = "positive_data_acceptance";

/// Commands in the root of the repository.
pub(super) type Commands<'a> = &'a dyn Fn(&Path) -> Command;

/// Starts a node with the models that were pulled, and has all clients use it.
pub(super) fn run(
    root: &Path,
    target: &Path,
    thalweg: &Path,
    commands: Commands<'_>,
    models: [&str; 2],
) -> Result<Outcome> {
    let clients = Clients::install(root, target, commands)?;
    let node = Node::start(target, thalweg, commands, models)?;
    let with = |program: &Path| {
        let mut command = commands(program);
        command
            .env("OPENAI_BASE_URL", format!("http://{}/v1", node.http))
            .env("OPENAI_API_KEY", &node.token)
            .env("METRICS_URL", format!("http://{}/metrics", node.http))
            .env("EMBEDDING_MODEL", models[1])
            .env("NODE_MODULES", &clients.modules);
        command
    };
    let mut failed = Vec::new();
    let mut run = |name: &'static str, mut command: Command| -> Result<()> {
        let client = command.spawn().with_context(|| format!("cannot run {name}"))?;
        match ended(client, RUN_MAX).with_context(|| format!("waiting for {name}"))? {
            Some(status) if status.success() => {}
            Some(_) => failed.push(name.to_owned()),
            None => failed.push(format!("{name}, which did not end within {} s", RUN_MAX.as_secs())),
        }
        Ok(())
    };
    let mut python = with(&clients.python("python"));
    python.arg("tools/clients/openai_python.py");
    run("the Python client", python)?;
    let mut javascript = with(&clients.modules.join("node_modules/.bin/node"));
    javascript.arg("tools/clients/openai_node.mjs");
    run("the JavaScript client", javascript)?;
    let mut documents = with(&clients.python("python"));
    documents
        .arg("tools/clients/documents.py")
        .env("NODE_HTTP", &node.http)
        .env("NODE_TOKEN", &node.token)
        .env("NODE_DATA", &node.data)
        .env("NODE_PROGRAM", clients.modules.join("node_modules/.bin/node"))
        .env("THALWEG", thalweg);
    run("the editors of documents", documents)?;
    let mut tester = with(&clients.python("schemathesis"));
    tester
        .args(["--config-file", "tools/clients/schemathesis.toml", "run"])
        .arg(format!("http://{}/openapi.json", node.http))
        .args(["--url", &format!("http://{}", node.http), "--header", &format!("Authorization: Bearer {}", node.token)])
        .args(["--checks", "all", "--exclude-checks", NOT_HELD_TO, "--phases", "examples,coverage,fuzzing"])
        .args(["--suppress-health-check", "all", "--max-response-time", "60", "--no-color"])
        .env("SCHEMATHESIS_HOOKS", "tools/clients/schemathesis_hooks.py");
    run("the tester that reads the document", tester)?;
    if !failed.is_empty() {
        bail!("not content: {}", failed.join(", "));
    }
    Ok(Outcome::passed_with("openai (Python, JavaScript), y-websocket, hocuspocus, pycrdt, schemathesis"))
}

/// Where the clients are.
struct Clients {
    environment: PathBuf,
    modules: PathBuf,
}

impl Clients {
    /// Installs what is not there yet. A stamp says which versions are.
    fn install(root: &Path, target: &Path, commands: Commands<'_>) -> Result<Self> {
        let folder = target.join("clients");
        let clients = Self { environment: folder.join("venv"), modules: folder.join("node") };
        let wanted = ["requirements.txt", "package.json"].map(|name| root.join("tools/clients").join(name));
        let mut versions = String::new();
        for path in &wanted {
            versions += &std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        }
        let stamp = folder.join("installed");
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == versions) {
            return Ok(clients);
        }
        std::fs::create_dir_all(&clients.modules).with_context(|| format!("making {}", folder.display()))?;
        let mut environment = commands(Path::new("python3"));
        environment.args(["-m", "venv"]).arg(&clients.environment);
        installed(environment, "making a Python environment failed; install python3-venv")?;
        let mut pip = commands(&clients.python("pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(&wanted[0]);
        installed(pip, "the Python clients cannot be installed; is their registry reachable?")?;
        let package = clients.modules.join("package.json");
        std::fs::copy(&wanted[1], &package).with_context(|| format!("writing {}", package.display()))?;
        let mut npm = commands(Path::new("npm"));
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&clients.modules);
        installed(npm, "the JavaScript clients cannot be installed; is npm there, and their registry reachable?")?;
        std::fs::write(&stamp, versions).with_context(|| format!("writing {}", stamp.display()))?;
        Ok(clients)
    }

    /// A program of the Python environment.
    fn python(&self, program: &str) -> PathBuf {
        self.environment.join("bin").join(program)
    }
}

/// Waits for a client, and ends it if it takes too long; how it ended by itself. What it began has limits of its own.
fn ended(mut client: Child, most: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = client.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > most {
            client.kill()?;
            client.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn installed(mut command: Command, otherwise: &str) -> Result<()> {
    let status = command.status().with_context(|| otherwise.to_owned())?;
    if status.success() { Ok(()) } else { bail!("{otherwise} ({status})") }
}

/// A node of ours. Dropping it ends it.
struct Node {
    process: Child,
    data: PathBuf,
    http: String,
    token: String,
}

impl Node {
    fn start(target: &Path, thalweg: &Path, commands: Commands<'_>, models: [&str; 2]) -> Result<Self> {
        let data = target.join(format!("clients/node-{}", std::process::id()));
        let ours = |arguments: &[&str]| {
            let mut command = commands(thalweg);
            for name in ["THALWEG_SERVER", "THALWEG_TOKEN", "THALWEG_DATA"] {
                command.env_remove(name);
            }
            command.args(arguments).arg("--data").arg(&data);
            command
        };
        let mut serve = ours(&["serve", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        serve.args(models.iter().flat_map(|model| ["--model", model])).stdout(Stdio::piped());
        let mut process = serve.spawn().context("cannot run thalweg serve")?;
        let output = process.stdout.take().context("thalweg serve has no output")?;
        let mut node = Self { process, data: data.clone(), http: String::new(), token: String::new() };
        let (tell, told) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let http = line.split_whitespace().find_map(|word| word.strip_prefix("http=").map(str::to_owned));
                if let Some(http) = http.filter(|_| line.starts_with("ready ")) {
                    // Nobody listens any more if it took too long.
                    drop(tell.try_send(http));
                }
            }
        });
        node.http = told.recv_timeout(START_MAX).context("the node did not say that it is ready")?;
        let token = ours(&["admin", "token"]).output().context("cannot run thalweg admin token")?;
        node.token = String::from_utf8_lossy(&token.stdout).trim().to_owned();
        if node.token.is_empty() {
            bail!("thalweg admin token gave none: {}", String::from_utf8_lossy(&token.stderr).trim());
        }
        Ok(node)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself; what it left behind is of no use either way.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_end_is_ended() {
        let check = |program: &str, argument: &str, most: Duration, expected: Option<bool>| {
            let client = Command::new(program).arg(argument).spawn().expect("it runs");
            let status = ended(client, most).expect("it is waited for");
            assert_eq!(status.map(|status| status.success()), expected, "{program} {argument}");
        };
        check("true", "x", START_MAX, Some(true));
        check("false", "x", START_MAX, Some(false));
        check("sleep", "3600", Duration::ZERO, None);
    }
}
