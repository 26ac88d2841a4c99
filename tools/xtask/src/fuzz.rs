//! Runs the fuzz targets of `tools/fuzz`, with the toolchain that builds everything else.
//!
//! What guides libFuzzer is a pass of LLVM's, which a stable compiler can be told to run: counters of the ways through the
//! code, and what was compared with what. What it cannot be told is to look for wrong use of memory; the decoders have no
//! unsafe code of their own.
//!
//! All of it is under `target/fuzz`: the build, which is kept apart since it is instrumented, the inputs that each run begins
//! with (`seeds`) and those that it finds worth keeping (`corpus`).

mod outcome;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::ci::{cargo, command, target};
use outcome::{Outcome, table};

/// How to call it.
pub const USAGE: &str = "\
cargo xtask fuzz [TARGET …] [--seconds N] [--input FILE …] [--list] [-- OPTION …]
    TARGET           one of those that --list names; all, if none is named
    --seconds N      for how long, in all: each target gets an equal share; 60 for each if left out
    --input FILE     do not search: run one target with this input, such as one that was found
    --list           say which targets there are, and what each is about
    OPTION           what libFuzzer understands, such as -max_len=1024 or -seed=7
";

/// How long a target runs, unless it is said.
const SECONDS_EACH: u64 = 60;
/// The memory that an input may take, in MiB: a decoder allocates no more than what it is given holds.
const MEMORY_MIB_MAX: u32 = 2_048;
/// Seconds after which an input is said to hang.
const HANG_S: u32 = 10;
/// Lines of a target's output that are repeated if it does not say what it found.
const LINES_REPEATED: usize = 20;

/// The flags of the instrumented build.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // More than one has the pass run over pieces that share counters.
    "-Ccodegen-units=1",
    "--cfg",
    "fuzzing",
];

/// The targets, and the longest input that is tried: such as reaches everything, and no longer, since long inputs are slow.
const TARGETS: [(&str, u32); 13] = [
    ("update", 16 << 10),
    ("edits", 4 << 10),
    ("operations", 4 << 10),
    ("awareness", 4 << 10),
    ("places", 1 << 10),
    ("state_section", 16 << 10),
    ("record", 16 << 10),
    ("wal_scan", 4 << 10),
    ("segment_block", 4 << 10),
    ("frame_splitter", 64 << 10),
    ("client_op", 16 << 10),
    ("server_op", 16 << 10),
    ("names", 1 << 10),
];

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    targets: Vec<(&'static str, u32)>,
    seconds: Option<u64>,
    inputs: Vec<PathBuf>,
    list: bool,
    options: Vec<String>,
}

impl Order {
    fn read(arguments: &[&str]) -> Result<Self> {
        let mut order = Self::default();
        let mut rest = arguments.iter();
        while let Some(&argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
            match argument {
                "--seconds" => {
                    let seconds = value()?.parse().ok().filter(|seconds| *seconds > 0);
                    order.seconds = Some(seconds.context("--seconds takes a whole number above 0")?);
                }
                "--input" => order.inputs.push(PathBuf::from(value()?)),
                "--list" => order.list = true,
                "--" => order.options = rest.by_ref().map(|option| (*option).to_owned()).collect(),
                option if option.starts_with('-') => bail!("{option} is no option\n{USAGE}"),
                name => {
                    let known = TARGETS.iter().find(|(target, _)| *target == name);
                    let all = TARGETS.map(|(target, _)| target).join(", ");
                    order.targets.push(*known.with_context(|| format!("{name} is no target; there are {all}"))?);
                }
            }
        }
        ensure!(order.inputs.is_empty() || order.targets.len() == 1, "an input belongs to one target: name it");
        if order.targets.is_empty() {
            order.targets = TARGETS.to_vec();
        }
        Ok(order)
    }

    /// How long each target runs. At least a second, since 0 means for ever to libFuzzer.
    fn share(&self) -> u64 {
        let count = self.targets.len() as u64;
        (self.seconds.unwrap_or(SECONDS_EACH * count) / count).max(1)
    }
}

/// Does what the arguments ask; says whether nothing was found.
///
/// # Errors
/// If the arguments are wrong, or the targets do not build or start.
pub fn run(root: &Path, arguments: &[&str]) -> Result<bool> {
    let order = Order::read(arguments)?;
    if order.list {
        return list(root).map(|()| true);
    }
    let inputs: Vec<PathBuf> = order.inputs.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
    let place = Place::build(root, &order.targets)?;
    if let ([(name, _)], false) = (&order.targets[..], inputs.is_empty()) {
        return place.run_inputs(name, &inputs, &order.options);
    }
    place.make_seeds()?;
    let mut outcomes = Vec::new();
    for &(name, bytes_max) in &order.targets {
        println!("\n==== {name}: {} s ====", order.share());
        outcomes.push(place.search(name, bytes_max, order.share(), &order.options)?);
    }
    print!("{}", table(&outcomes));
    Ok(outcomes.iter().all(|outcome| outcome.found.is_none()))
}

/// Prints the targets, each with what its file begins with.
fn list(root: &Path) -> Result<()> {
    for (name, bytes_max) in TARGETS {
        let path = root.join(format!("tools/fuzz/fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let about: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//! ")).collect();
        println!("{name:<15} {} (up to {bytes_max} bytes)", about.join("\n                "));
    }
    Ok(())
}

/// Where the targets are, and what belongs to them.
struct Place<'a> {
    root: &'a Path,
    /// `target/fuzz`.
    home: PathBuf,
    programs: PathBuf,
}

impl<'a> Place<'a> {
    /// Builds targets.
    fn build(root: &'a Path, targets: &[(&str, u32)]) -> Result<Self> {
        let home = target(root).join("fuzz");
        let triple = host(root)?;
        let folder = home.join("build");
        let mut build = cargo(root, &["build", "--release", "--manifest-path", "tools/fuzz/Cargo.toml"]);
        // With a target named, what runs while building is built apart from what runs then, and without the flags.
        build.args(["--target", &triple, "--target-dir"]).arg(&folder).args(["--bin", "seeds"]);
        for (name, _) in targets {
            build.args(["--bin", name]);
        }
        build.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
        let status = build.status().context("running cargo")?;
        ensure!(status.success(), "the fuzz targets do not build: {status}; they need a C++ compiler, such as g++");
        Ok(Self { root, programs: folder.join(triple).join("release"), home })
    }

    fn program(&self, name: &str) -> Command {
        command(self.root, self.programs.join(name))
    }

    fn make_seeds(&self) -> Result<()> {
        let status = self.program("seeds").arg(self.home.join("seeds")).status().context("running seeds")?;
        ensure!(status.success(), "the inputs to begin with could not be written: {status}");
        Ok(())
    }

    /// Runs a target with inputs, and says whether it took them.
    fn run_inputs(&self, name: &str, inputs: &[PathBuf], options: &[String]) -> Result<bool> {
        let mut program = self.program(name);
        program.env("THALWEG_FUZZ_SHOW", "1"); // some say what they make of it
        program.args([format!("-rss_limit_mb={MEMORY_MIB_MAX}"), format!("-timeout={HANG_S}")]);
        program.arg(format!("-artifact_prefix={}/", self.artifacts(name)?.display()));
        let status = program.args(options).args(inputs).status().with_context(|| format!("running {name}"))?;
        Ok(status.success())
    }

    /// Where what a target finds is put.
    fn artifacts(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join("tools/fuzz/artifacts").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    /// Lets a target search for so long. Its output passes through as it comes.
    fn search(&self, name: &'static str, bytes_max: u32, seconds: u64, options: &[String]) -> Result<Outcome> {
        let (corpus, seeds) = (self.home.join("corpus").join(name), self.home.join("seeds").join(name));
        fs::create_dir_all(&corpus).with_context(|| format!("making {}", corpus.display()))?;
        let mut program = self.program(name);
        program.args([format!("-max_total_time={seconds}"), format!("-max_len={bytes_max}")]);
        program.args([format!("-rss_limit_mb={MEMORY_MIB_MAX}"), format!("-timeout={HANG_S}")]);
        program.arg(format!("-artifact_prefix={}/", self.artifacts(name)?.display()));
        program.arg("-print_final_stats=1").args(options).arg(&corpus);
        if seeds.is_dir() {
            program.arg(seeds);
        }
        let mut child = program.stderr(Stdio::piped()).spawn().with_context(|| format!("running {name}"))?;
        let output = child.stderr.take().context("a target has no output")?;
        let mut outcome = Outcome::new(name, Duration::from_secs(seconds));
        let mut last = std::collections::VecDeque::new();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.with_context(|| format!("reading the output of {name}"))?;
            let line = String::from_utf8_lossy(&line).into_owned();
            eprintln!("{line}");
            outcome.read(&line);
            if last.len() == LINES_REPEATED {
                last.pop_front();
            }
            last.push_back(line);
        }
        let status = child.wait().with_context(|| format!("waiting for {name}"))?;
        if !status.success() && outcome.found.is_none() {
            bail!("{name} ended with {status} and names no input:\n{}", Vec::from(last).join("\n"));
        }
        Ok(outcome)
    }
}

/// The target triple of this machine.
fn host(root: &Path) -> Result<String> {
    let mut rustc = command(root, std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let said = rustc.arg("-vV").output().context("running rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let triple = said.lines().find_map(|line| line.strip_prefix("host: "));
    triple.map(str::to_owned).with_context(|| format!("rustc -vV names no host: {said}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn orders_are_read() {
        let check = |arguments: &[&str], targets: usize, share: u64| {
            let order = Order::read(arguments).expect("is an order");
            assert_eq!((order.targets.len(), order.share()), (targets, share), "{arguments:?}");
            order
        };
        check(&[], TARGETS.len(), SECONDS_EACH);
        check(&["update"], 1, SECONDS_EACH);
        check(&["update", "--seconds", "300"], 1, 300);
        check(&["--seconds", "300", "update", "edits"], 2, 150);
        check(&["--seconds", "5"], TARGETS.len(), 1);
        let order = check(&["names", "--", "-seed=7", "--input"], 1, SECONDS_EACH);
        assert_eq!(order.options, ["-seed=7", "--input"]);
        let order = check(&["names", "--input", "a", "--input", "b"], 1, SECONDS_EACH);
        assert_eq!(order.inputs, [Path::new("a"), Path::new("b")]);
        for (arguments, word) in [
            (&["updates"][..], "there are update, edits"),
            (&["--seconds"], "needs a value"),
            (&["--seconds", "0"], "above 0"),
            (&["--second", "9"], "no option"),
            (&["--input", "a"], "name it"),
        ] {
            let error = Order::read(arguments).expect_err("is no order").to_string();
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn every_target_is_known_built_and_described() {
        let root = crate::root();
        let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let files = fs::read_dir(root.join("tools/fuzz/fuzz_targets")).expect("is there");
        let name = |file: fs::DirEntry| file.path().file_stem().map(|name| name.to_string_lossy().into_owned());
        let files: BTreeSet<String> = files.filter_map(|file| name(file.expect("is readable"))).collect();
        assert_eq!(files, known);
        let manifest = fs::read_to_string(root.join("tools/fuzz/Cargo.toml")).expect("is there");
        let readme = fs::read_to_string(root.join("tools/fuzz/README.md")).expect("is there");
        for name in known {
            assert!(manifest.contains(&format!("\"fuzz_targets/{name}.rs\"")), "{name} is not in the manifest");
            assert!(readme.contains(&format!("| `{name}` |")), "{name} is not in the readme");
        }
    }
}
