//! `thalweg-sim`: runs seeds, and says how to run the ones that fail again.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use thalweg_sim::{Faults, Options, Report, simulate};

const USAGE: &str =
    "usage: cargo xtask sim [--seeds N] [--from SEED] [--operations N] [--threads N] [--seed S [--trace]]

  --seeds N       how many seeds to run (100)
  --from SEED     the first of them (0)
  --operations N  things that clients do in each (2000)
  --threads N     how many seeds to run at a time (as many as there are CPUs)
  --seed S        run only this one
  --trace         print what happens";

/// Seeds that are run twice, to see that the same seed gives the same run.
const TWICE: u64 = 5;
/// With this many seeds every kind of trouble must have happened.
const ALL_FAULTS_SEEDS: u64 = 100;
/// Each run must see so many lives of the node end.
const CRASHES_MIN: u64 = 3;
/// Seeds that are described; of further ones only the number is said.
const DESCRIBED_MAX: usize = 20;

struct Arguments {
    from: u64,
    seeds: u64,
    threads: usize,
    options: Options,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parsed = Arguments { from: 0, seeds: 100, threads, options: Options::default() };
    while let Some(flag) = arguments.next() {
        let mut number = || {
            let text = arguments.next().ok_or_else(|| format!("{flag} needs a number"))?;
            text.parse::<u64>().map_err(|_| format!("{flag} needs a number, not {text:?}"))
        };
        match flag.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--from" => parsed.from = number()?,
            "--operations" => parsed.options.operations = number()?,
            "--threads" => parsed.threads = number()?.clamp(1, 1_024) as usize,
            "--seed" => (parsed.from, parsed.seeds) = (number()?, 1),
            "--trace" => parsed.options.print = true,
            _ => return Err(format!("there is no {flag}")),
        }
    }
    Ok(parsed)
}

/// What came of all seeds so far.
#[derive(Default)]
struct Sum {
    faults: Faults,
    events: u64,
    crashes: u64,
    failed: Vec<u64>,
}

/// Runs one seed, perhaps twice, and describes it if something is wrong.
fn run_one(arguments: &Arguments, seed: u64, sum: &Mutex<Sum>) {
    let options = arguments.options;
    let report = simulate(seed, options);
    let mut violations = report.violations.clone();
    if seed - arguments.from < TWICE && !options.print && simulate(seed, options) != report {
        violations.push("the same seed gave another run".into());
    }
    if report.crashes < CRASHES_MIN && options == Options::default() && violations.is_empty() {
        violations.push(format!("the node died {} times only", report.crashes));
    }
    let Report { hash, faults, events, us, crashes, .. } = report;
    let mut sum = sum.lock().expect("no thread panics while it holds the sum");
    if arguments.seeds == 1 {
        println!("seed {seed}: hash {hash:016x}, {events} events, {crashes} crashes, {us} us");
    }
    sum.faults.merge(&faults);
    sum.events += events;
    sum.crashes += crashes;
    if violations.is_empty() {
        return;
    }
    sum.failed.push(seed);
    if sum.failed.len() <= DESCRIBED_MAX {
        println!("seed {seed}: {} violations", violations.len());
        violations.iter().take(10).for_each(|violation| println!("  {violation}"));
        println!("replay: cargo xtask sim --seed {seed} --operations {} --trace", options.operations);
    }
}

fn run(arguments: &Arguments) -> bool {
    let (began, next, sum) = (Instant::now(), AtomicU64::new(0), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= arguments.seeds {
                        return;
                    }
                    run_one(arguments, arguments.from + n, &sum);
                }
            });
        }
    });
    let sum = sum.into_inner().expect("no thread panicked");
    let mut sound = sum.failed.is_empty();
    for (name, count) in sum.faults.named() {
        println!("{name:>22} {count}");
        if count == 0 && arguments.seeds >= ALL_FAULTS_SEEDS {
            println!("{name} never happened: the simulation does not test what it should");
            sound = false;
        }
    }
    let (seeds, seconds) = (arguments.seeds, began.elapsed().as_secs_f64());
    let Sum { events, crashes, failed, .. } = sum;
    println!("{seeds} seeds, {events} events, {crashes} crashes, {} failed, {seconds:.1} s", failed.len());
    sound
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match parse(std::env::args().skip(1)) {
        Ok(arguments) if run(&arguments) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
