//! `thalweg-sim`: runs seeds, and says how to run the ones that fail again.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use thalweg_sim::{Faults, Options, simulate};

const USAGE: &str = "usage: thalweg-sim [--seeds N] [--from SEED] [--operations N] [--seed S [--trace]]

  --seeds N       how many seeds to run (100)
  --from SEED     the first of them (0)
  --operations N  things that clients do in each (400)
  --seed S        run only this one
  --trace         print what happens";

/// Seeds that are run twice, to see that the same seed gives the same run.
const TWICE: u64 = 5;
/// With this many seeds every kind of trouble must have happened.
const ALL_FAULTS_SEEDS: u64 = 100;

struct Arguments {
    from: u64,
    seeds: u64,
    options: Options,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments { from: 0, seeds: 100, options: Options::default() };
    while let Some(flag) = arguments.next() {
        let mut number = || {
            let text = arguments.next().ok_or_else(|| format!("{flag} needs a number"))?;
            text.parse::<u64>().map_err(|_| format!("{flag} needs a number, not {text:?}"))
        };
        match flag.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--from" => parsed.from = number()?,
            "--operations" => parsed.options.operations = number()?,
            "--seed" => (parsed.from, parsed.seeds) = (number()?, 1),
            "--trace" => parsed.options.print = true,
            _ => return Err(format!("there is no {flag}")),
        }
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> bool {
    let Arguments { from, seeds, options } = *arguments;
    let (mut faults, mut sound, mut events) = (Faults::default(), true, 0);
    for seed in from..from.saturating_add(seeds) {
        let report = simulate(seed, options);
        let mut violations = report.violations.clone();
        if seed - from < TWICE && !options.print && simulate(seed, options) != report {
            violations.push("the same seed gave another run".into());
        }
        if seeds == 1 {
            println!("seed {seed}: hash {:016x}, {} events, {} us", report.hash, report.events, report.us);
        }
        if !violations.is_empty() {
            sound = false;
            println!("seed {seed}: {} violations", violations.len());
            violations.iter().take(10).for_each(|violation| println!("  {violation}"));
            println!("replay: thalweg-sim --seed {seed} --operations {} --trace", options.operations);
        }
        events += report.events;
        faults.merge(&report.faults);
    }
    println!("{seeds} seeds, {events} events");
    for (name, count) in faults.named() {
        println!("{name:>22} {count}");
        if count == 0 && seeds >= ALL_FAULTS_SEEDS {
            println!("{name} never happened: the simulation does not test what it should");
            sound = false;
        }
    }
    sound
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(arguments) if run(&arguments) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
