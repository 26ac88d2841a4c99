//! `thalweg-chaos`: kills a real node at random moments, starts it again, and says what was lost.
//!
//! Everything is seen from outside: the clients are the SDK's, and the auditor knows nothing but what they sent and got.
//! One life of the node is one round.
#![forbid(unsafe_code)]

mod crowd;
mod documents;
mod ledger;
mod node;
mod rounds;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str =
    "usage: thalweg-chaos PROGRAM [--rounds N] [--seed S] [--budget SECONDS] [--model NAME|PATH] [--cores N]
                     [--discard] [--memory] [--keep]

  PROGRAM              the binary thalweg
  --rounds N           how many lives of the node to end (200)
  --seed S             what is drawn: when to kill, how many cores, what is written (random)
  --budget SECONDS     end after so long, however many rounds that were
  --model NAME|PATH    also ask this model, and follow its answers over the crashes
  --cores N            the most cores a life has (3)
  --discard            the node forgets what it did not sync, as if the power had been lost
  --memory             the channels are in memory only: all is lost, and it must be noticed
  --keep               keep the data directory also if all is well";

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    pub(crate) rounds: u64,
    pub(crate) seed: u64,
    pub(crate) budget: Option<Duration>,
    pub(crate) model: Option<String>,
    pub(crate) cores_max: u64,
    pub(crate) discard: bool,
    pub(crate) memory: bool,
    pub(crate) keep: bool,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        program: PathBuf::new(),
        rounds: 200,
        seed: rand::random::<u32>().into(),
        budget: None,
        model: None,
        cores_max: 3,
        discard: false,
        memory: false,
        keep: false,
    };
    while let Some(argument) = arguments.next() {
        let mut text = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{argument} needs a number, not {text:?}"));
        match argument.as_str() {
            "--rounds" => options.rounds = number(text()?)?,
            "--seed" => options.seed = number(text()?)?,
            "--budget" => options.budget = Some(Duration::from_secs(number(text()?)?)),
            "--model" => options.model = Some(text()?),
            "--cores" => options.cores_max = number(text()?)?.max(1),
            "--discard" => options.discard = true,
            "--memory" => options.memory = true,
            "--keep" => options.keep = true,
            flag if flag.starts_with("--") => return Err(format!("there is no {flag}")),
            _ if options.program.as_os_str().is_empty() => options.program = argument.into(),
            _ => return Err(format!("{argument:?}: there is one program to run, not two")),
        }
    }
    if options.program.as_os_str().is_empty() {
        return Err("which program is to run?".into());
    }
    Ok(options)
}

impl Options {
    /// The command line that draws the same again. What real processes make of it differs in their times.
    pub(crate) fn replay(&self) -> String {
        let mut line = format!(
            "thalweg-chaos {} --rounds {} --seed {} --cores {}",
            self.program.display(),
            self.rounds,
            self.seed,
            self.cores_max
        );
        if let Some(model) = &self.model {
            line.push_str(&format!(" --model {model}"));
        }
        for (flag, given) in [(" --discard", self.discard), (" --memory", self.memory)] {
            line.push_str(if given { flag } else { "" });
        }
        line
    }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("thalweg-chaos: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(tokio::task::LocalSet::new().run_until(rounds::run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("replay: {}", options.replay());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("thalweg-chaos: {error}\nreplay: {}", options.replay());
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_taken_or_refused() {
        let check = |line: &str, expected: Result<&str, &str>| {
            let parsed = parse(line.split_whitespace().map(str::to_owned));
            match (parsed.map(|options| options.replay()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{line}: {found:?}"),
            }
        };
        check("t --seed 7", Ok("thalweg-chaos t --rounds 200 --seed 7 --cores 3"));
        let all = "t --rounds 5 --seed 7 --budget 9 --model m --cores 2 --memory --discard --keep";
        check(all, Ok("thalweg-chaos t --rounds 5 --seed 7 --cores 2 --model m --discard --memory"));
        check("", Err("which program"));
        check("t u", Err("not two"));
        check("t --rounds", Err("needs a value"));
        check("t --rounds x", Err("needs a number"));
        check("t --nonsense", Err("--nonsense"));
    }
}
