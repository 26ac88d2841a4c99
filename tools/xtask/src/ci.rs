//! Everything the build machine runs, in order, in one profile, with a table of what each step took.

mod clients;
mod demo;
mod outcome;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use outcome::{Outcome, Report, TestTally};

/// Seeds of the simulation in one run: about a minute on two cores.
const SIMULATION_SEEDS: &str = "800";
/// Seconds of each kind of chaos in one run: two minutes in all.
const CHAOS_SECONDS: &str = "40";
/// Rounds of chaos; the time ends before.
const CHAOS_ROUNDS: &str = "10000";
/// The model that the demo, the tests and the chaos talk to.
const MODEL: &str = "smollm2-135m";
/// The model whose vectors tests compare with a reference.
const EMBEDDING_MODEL: &str = "minilm-l6";
/// Locked memory below which a core cannot make its rings, in KiB.
const LOCKED_MEMORY_KIB_MIN: u64 = 1024;

/// How much to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    Full,
    /// Without the simulation, the chaos and the demo.
    Quick,
}

/// What a step needs to have passed before it makes sense.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Build,
}

struct Step {
    name: &'static str,
    needs: Needs,
    in_quick: bool,
    run: fn(&Path) -> Result<Outcome>,
}

#[rustfmt::skip]
const STEPS: &[Step] = &[
    Step { name: "machine",    needs: Needs::Nothing, in_quick: true,  run: machine },
    Step { name: "format",     needs: Needs::Nothing, in_quick: true,  run: format },
    Step { name: "codegen",    needs: Needs::Nothing, in_quick: true,  run: codegen },
    Step { name: "tidy",       needs: Needs::Nothing, in_quick: true,  run: tidy },
    Step { name: "build",      needs: Needs::Nothing, in_quick: true,  run: build },
    Step { name: "client",     needs: Needs::Build,   in_quick: true,  run: client },
    Step { name: "clippy",     needs: Needs::Build,   in_quick: true,  run: clippy },
    Step { name: "models",     needs: Needs::Build,   in_quick: true,  run: models },
    Step { name: "tests",      needs: Needs::Build,   in_quick: true,  run: tests },
    Step { name: "clients",    needs: Needs::Build,   in_quick: true,  run: clients },
    Step { name: "simulation", needs: Needs::Build,   in_quick: false, run: simulation },
    Step { name: "chaos",      needs: Needs::Build,   in_quick: false, run: chaos },
    Step { name: "demo",       needs: Needs::Build,   in_quick: false, run: demo },
];

/// Runs the steps in `root` and prints the table; says whether all passed. A step that failed does not stop the others,
/// but without a build there is nothing to run.
pub fn run(root: &Path, extent: Extent) -> Result<bool> {
    let mut reports: Vec<Report> = Vec::new();
    let mut built = false;
    for step in STEPS {
        let report = |took, outcome| Report { name: step.name, took, outcome };
        if extent == Extent::Quick && !step.in_quick {
            reports.push(report(Duration::ZERO, Outcome::skipped("not part of --quick")));
            continue;
        }
        if step.needs == Needs::Build && !built {
            reports.push(report(Duration::ZERO, Outcome::failed("not run: the build failed")));
            continue;
        }
        println!("\n==== {} ====", step.name);
        let start = Instant::now();
        let outcome = (step.run)(root).unwrap_or_else(|error| Outcome::failed(format!("{error:#}")));
        built |= step.name == "build" && outcome.passed();
        if let Some(why) = outcome.failure() {
            println!("{} failed: {why}", step.name);
        }
        reports.push(report(start.elapsed(), outcome));
    }
    print!("{}", outcome::table(&reports));
    std::io::stdout().flush().context("writing the table")?;
    Ok(reports.iter().all(|report| report.outcome.failure().is_none()))
}

/// The target folder of cargo.
pub(crate) fn target(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A program of ours, as the build step left it.
fn built(root: &Path, program: &str) -> Result<PathBuf> {
    let path = target(root).join("ci").join(program);
    if !path.is_file() {
        bail!("{} is missing: is there a binary {program} in the workspace?", path.display());
    }
    Ok(path)
}

/// A command in `root`. What `cargo run` told us about xtask itself is taken out of its environment: build scripts watch
/// those variables, and would run again in each of ours and of a developer's builds.
pub(crate) fn command(root: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(&name);
        }
    }
    command.current_dir(root).stdin(Stdio::null());
    command
}

/// Cargo with arguments, in `root`.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut cargo = command(root, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments);
    cargo
}

fn status(command: &mut Command) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.status().with_context(|| format!("cannot run {program}"))
}

/// Runs a command, its output going where ours goes.
fn succeed(mut command: Command) -> Result<Outcome> {
    let status = status(&mut command)?;
    if status.success() { Ok(Outcome::passed_with("")) } else { bail!("ended with {status}") }
}

/// What must be there before anything else: programs of the distribution, components of the toolchain, locked memory.
fn machine(root: &Path) -> Result<Outcome> {
    const PROGRAMS: &[(&str, &str)] =
        &[("cc", "gcc"), ("git", "git"), ("python3", "python3"), ("node", "nodejs"), ("npm", "npm")];
    let runs = |program: &str, arguments: &[&str]| {
        let mut probe = command(root, program);
        probe.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !runs(program, &["--version"])).map(|(_, package)| *package).collect();
    if !runs("python3", &["-m", "pip", "--version"]) {
        missing.push("python3-pip");
    }
    if !runs("python3", &["-c", "import ensurepip, venv"]) {
        missing.push("python3-venv"); // in which the Python client is installed
    }
    if !runs("tmux", &["-V"]) {
        missing.push("tmux"); // in which the terminal client is tested
    }
    if !missing.is_empty() {
        install(root, &missing)?;
    }
    for component in ["fmt", "clippy"] {
        if !cargo(root, &[component, "--version"]).stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
            bail!("cargo {component} is missing: run `rustup component add rustfmt clippy`");
        }
    }
    Ok(Outcome::passed_with(locked_memory_warning().unwrap_or_default()))
}

/// Installs packages of the distribution where we may, else says how.
fn install(root: &Path, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let may = std::env::var_os("USER").is_some_and(|user| user == "root") || Path::new("/root").read_dir().is_ok();
    let apt = command(root, "apt-get").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !(may && apt) {
        bail!("missing: {list}; run `sudo apt-get install {list}`, or what your distribution calls them");
    }
    println!("installing {list}");
    let mut update = command(root, "apt-get");
    update.args(["update", "-q"]);
    let mut install = command(root, "apt-get");
    install.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    for mut step in [update, install] {
        let status = status(&mut step)?;
        if !status.success() {
            bail!("apt-get ended with {status}; install {list} by hand");
        }
    }
    Ok(())
}

fn locked_memory_warning() -> Option<String> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max locked memory"))?;
    let soft: u64 = line.split_whitespace().nth(3)?.parse().ok()?; // "unlimited" is no number, and enough
    (soft < LOCKED_MEMORY_KIB_MIN << 10).then(|| {
        format!("warning: only {} KiB may be locked, cores need {LOCKED_MEMORY_KIB_MIN}: `ulimit -l`", soft >> 10)
    })
}

fn format(root: &Path) -> Result<Outcome> {
    succeed(cargo(root, &["fmt", "--all", "--", "--check"])).context("run `cargo fmt --all`")
}

/// A machine that cannot fetch the schema's compiler can still test everything else, so that is no failure.
fn codegen(root: &Path) -> Result<Outcome> {
    match crate::codegen::check(root) {
        Ok(true) => Ok(Outcome::passed_with("")),
        Ok(false) => bail!("run `cargo xtask codegen` and commit it"),
        Err(error) => Ok(Outcome::skipped(format!("no compiler for the schema: {error:#}"))),
    }
}

fn tidy(root: &Path) -> Result<Outcome> {
    if crate::tidy::run(root, false)? { Ok(Outcome::passed_with("")) } else { bail!("see the list above") }
}

fn build(root: &Path) -> Result<Outcome> {
    succeed(cargo(root, &["build", "--profile", "ci", "--workspace", "--all-targets", "--locked"]))
}

/// The binary without the node: it must build, and must not need what only Linux has.
fn client(root: &Path) -> Result<Outcome> {
    const PACKAGE: [&str; 4] = ["-p", "thalweg", "--no-default-features", "--locked"];
    let mut tree = cargo(root, &["tree", "-e", "normal", "--prefix", "none"]);
    let tree = tree.args(PACKAGE).output().context("cannot run cargo tree")?;
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    if !tree.contains("thalweg-client") {
        bail!("cargo tree does not say what the client is made of");
    }
    for node_only in ["glommio", "io-uring", "thalweg-node", "thalweg-worker"] {
        if tree.lines().any(|line| line.split(' ').next() == Some(node_only)) {
            bail!("the client alone needs {node_only}; put what does so behind the feature `node` of tools/cli");
        }
    }
    let mut check = cargo(root, &["check", "--profile", "ci"]);
    check.args(PACKAGE);
    succeed(check)
}

fn clippy(root: &Path) -> Result<Outcome> {
    let arguments = ["clippy", "--profile", "ci", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    succeed(cargo(root, &arguments))
}

fn models(root: &Path) -> Result<Outcome> {
    let mut pull = command(root, built(root, "thalweg")?);
    pull.args(["models", "pull", MODEL]);
    succeed(pull)?;
    let mut pull = command(root, built(root, "thalweg")?);
    pull.args(["models", "pull", EMBEDDING_MODEL]);
    succeed(pull)
}

fn clients(root: &Path) -> Result<Outcome> {
    let commands = |program: &Path| command(root, program);
    clients::run(root, &target(root), &built(root, "thalweg")?, &commands, [MODEL, EMBEDDING_MODEL])
}

/// Runs all tests, documentation's examples too. Output passes through as it comes and is counted on its way.
fn tests(root: &Path) -> Result<Outcome> {
    let mut cargo = cargo(root, &["test", "--profile", "ci", "--workspace", "--locked", "--no-fail-fast"]);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut tally = TestTally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading the output of cargo test")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.read(&line);
    }
    let status = child.wait().context("waiting for cargo test")?;
    if status.success() && tally.binaries() == 0 {
        bail!("cargo test ran no tests");
    }
    Ok(Outcome::tests(tally, status))
}

fn simulation(root: &Path) -> Result<Outcome> {
    let mut simulation = command(root, built(root, "thalweg-sim")?);
    simulation.args(["--seeds", SIMULATION_SEEDS]);
    succeed(simulation)
}

/// Kills real nodes: as they are, with a disk that forgets, and while a model answers.
fn chaos(root: &Path) -> Result<Outcome> {
    for more in [&[][..], &["--discard"], &["--model", MODEL]] {
        let mut chaos = command(root, built(root, "thalweg-chaos")?);
        chaos.arg(built(root, "thalweg")?).args(["--rounds", CHAOS_ROUNDS, "--budget", CHAOS_SECONDS]).args(more);
        succeed(chaos)?;
    }
    // Who audits must notice when all is lost.
    let mut blind = command(root, built(root, "thalweg-chaos")?);
    blind.arg(built(root, "thalweg")?).args(["--rounds", "3", "--memory"]);
    let seen = blind.output().context("cannot run thalweg-chaos")?;
    let said = String::from_utf8_lossy(&seen.stdout);
    if seen.status.success() || !said.contains(" violations") {
        bail!("channels in memory lost nothing over kills, so the audit is blind: {said}");
    }
    Ok(Outcome::passed_with(""))
}

/// Builds the simulation and runs it with these arguments; says whether it found nothing.
pub fn run_simulation(root: &Path, arguments: &[&str]) -> Result<bool> {
    succeed(cargo(root, &["build", "--profile", "ci", "--package", "thalweg-sim"]))?;
    let mut simulation = command(root, built(root, "thalweg-sim")?);
    Ok(status(simulation.args(arguments))?.success())
}

/// Builds the node and what kills it, and runs that with these arguments; says whether nothing was lost.
pub fn run_chaos(root: &Path, arguments: &[&str]) -> Result<bool> {
    succeed(cargo(root, &["build", "--profile", "ci", "--package", "thalweg", "--package", "thalweg-chaos"]))?;
    let mut chaos = command(root, built(root, "thalweg-chaos")?);
    Ok(status(chaos.arg(built(root, "thalweg")?).args(arguments))?.success())
}

fn demo(root: &Path) -> Result<Outcome> {
    demo::run(command(root, built(root, "thalweg")?))
}
