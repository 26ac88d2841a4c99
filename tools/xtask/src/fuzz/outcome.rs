//! What came of running targets, read from what libFuzzer prints, and the table of it.

use std::fmt::Write;
use std::time::Duration;

/// What came of running one target.
#[derive(Debug)]
pub(super) struct Outcome {
    name: &'static str,
    given: Duration,
    /// Inputs that were tried.
    runs: u64,
    /// Places in the code that were reached.
    coverage: u64,
    /// Inputs that are worth keeping, as each reaches something that none before it did.
    kept: u64,
    /// The file with the input that something is wrong with.
    pub(super) found: Option<String>,
}

impl Outcome {
    pub(super) fn new(name: &'static str, given: Duration) -> Self {
        Self { name, given, runs: 0, coverage: 0, kept: 0, found: None }
    }

    /// Takes in one line of libFuzzer's.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = runs.trim().parse().unwrap_or(self.runs);
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.found = Some(path.trim().to_owned());
        }
        // "#4096	pulse  cov: 310 ft: 512 corp: 71/1432b lim: 43 exec/s: 2048 rss: 41Mb"
        if line.starts_with('#') {
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                match word {
                    "cov:" => self.coverage = number(words.next()).unwrap_or(self.coverage),
                    "corp:" => self.kept = number(words.next()).unwrap_or(self.kept),
                    _ => {}
                }
            }
        }
    }
}

/// The number that a word begins with.
fn number(word: Option<&str>) -> Option<u64> {
    word?.split('/').next()?.parse().ok()
}

/// One line for each target, and how to see again what was found.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a String cannot fail");
    line(format!("\n{:<15}{:>8}{:>12}{:>9}{:>8}  found", "target", "time", "inputs", "places", "kept"));
    for Outcome { name, given, runs, coverage, kept, found } in outcomes {
        let found = found.as_deref().unwrap_or("nothing");
        line(format!("{name:<15}{:>6} s{runs:>12}{coverage:>9}{kept:>8}  {found}", given.as_secs()));
    }
    for Outcome { name, found, .. } in outcomes {
        if let Some(path) = found {
            line(format!("\nsee it again: cargo xtask fuzz {name} --input {path}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_prints_is_read() {
        let mut outcome = Outcome::new("update", Duration::from_secs(60));
        for line in [
            "INFO: Seed: 7",
            "#2\tINITED cov: 31 ft: 32 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#4096\tpulse  cov: 310 ft: 512 corp: 71/1432b lim: 43 exec/s: 2048 rss: 41Mb",
            "stat::number_of_executed_units: 5000",
        ] {
            outcome.read(line);
        }
        assert_eq!((outcome.runs, outcome.coverage, outcome.kept, &outcome.found), (5_000, 310, 71, &None));
        assert!(table(std::slice::from_ref(&outcome)).ends_with(" 310      71  nothing\n"));
        outcome.read("artifact_prefix='a/'; Test unit written to a/crash-7");
        let text = table(&[outcome]);
        assert!(text.ends_with("\nsee it again: cargo xtask fuzz update --input a/crash-7\n"), "{text}");
    }
}
