//! How steps ended, and the table of them.

use std::fmt::Write;
use std::process::ExitStatus;
use std::time::Duration;

/// Lines of the tests' own output repeated before the table, so that the end of a long log still shows them.
const TEST_LINES_REPEATED: usize = 12;

/// How a step ended.
pub(super) enum Outcome {
    Passed(String),
    Skipped(String),
    Failed(String),
    Tests(TestTally, ExitStatus),
}

impl Outcome {
    /// It passed, with something worth saying, or nothing.
    pub(super) fn passed_with(note: impl Into<String>) -> Self {
        Self::Passed(note.into())
    }

    /// It was left out, and why.
    pub(super) fn skipped(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }

    /// It failed, and why.
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    /// The tests ran to their end.
    pub(super) fn tests(tally: TestTally, status: ExitStatus) -> Self {
        Self::Tests(tally, status)
    }

    pub(super) fn passed(&self) -> bool {
        match self {
            Self::Passed(_) => true,
            Self::Tests(_, status) => status.success(),
            Self::Skipped(_) | Self::Failed(_) => false,
        }
    }

    /// Why it failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Passed(_) | Self::Skipped(_) => None,
            Self::Failed(why) => Some(why.clone()),
            Self::Tests(_, status) if status.success() => None,
            Self::Tests(tally, status) => {
                let names =
                    if tally.broken.is_empty() { "no test named, see its output" } else { &tally.broken.join(", ") };
                Some(format!("cargo test ended with {status}; {}; failed: {names}", tally.summary()))
            }
        }
    }
}

/// What the tests printed, counted.
#[derive(Default)]
pub(super) struct TestTally {
    passed: u64,
    failed: u64,
    ignored: u64,
    binaries: u64,
    broken: Vec<String>,
    last: std::collections::VecDeque<String>,
}

impl TestTally {
    /// Takes in one line of `cargo test`.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.binaries += 1;
            // "ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s"
            for part in counts.split(['.', ';']).map(str::trim) {
                let Some((number, what)) = part.split_once(' ') else { continue };
                let Ok(number) = number.parse::<u64>() else { continue };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.broken.push(name.to_owned());
        }
        if !line.trim().is_empty() {
            if self.last.len() == TEST_LINES_REPEATED {
                self.last.pop_front();
            }
            self.last.push_back(line.to_owned());
        }
    }

    /// Test binaries (and sets of documentation examples) that reported.
    pub(super) fn binaries(&self) -> u64 {
        self.binaries
    }

    fn summary(&self) -> String {
        let Self { passed, failed, ignored, binaries, .. } = self;
        format!("{passed} passed, {failed} failed, {ignored} ignored in {binaries} binaries")
    }
}

/// A step that ended, or was left out.
pub(super) struct Report {
    /// The name of the step.
    pub(super) name: &'static str,
    /// How long it ran.
    pub(super) took: Duration,
    /// How it ended.
    pub(super) outcome: Outcome,
}

/// The end of the log: the last lines of the tests, the table, and one line that says it all.
pub(super) fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a String cannot fail");
    for report in reports {
        if let Outcome::Tests(tally, _) = &report.outcome {
            line("\n==== last lines of the tests ====".to_owned());
            tally.last.iter().for_each(|last| line(last.clone()));
        }
    }
    line(format!("\n{:<12}{:>9}  result", "step", "took"));
    for Report { name, took, outcome } in reports {
        let result = match outcome {
            Outcome::Passed(note) => format!("ok       {note}"),
            Outcome::Skipped(why) => format!("skipped  {why}"),
            Outcome::Tests(tally, status) if status.success() => format!("ok       {}", tally.summary()),
            failed => format!("FAILED   {}", failed.failure().unwrap_or_default().lines().next().unwrap_or_default()),
        };
        line(format!("{name:<12}{:>7.1} s  {}", took.as_secs_f64(), result.trim_end()));
    }
    let failed: Vec<&str> = reports.iter().filter(|r| r.outcome.failure().is_some()).map(|r| r.name).collect();
    let seconds = reports.iter().map(|report| report.took).sum::<Duration>().as_secs_f64();
    line(match failed[..] {
        [] => format!("\nci: all passed in {seconds:.0} s"),
        _ => format!("\nci: FAILED in {seconds:.0} s: {}", failed.join(", ")),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const OUTPUT: &str = "\nrunning 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\n\
        test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
        test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.20s\n";

    fn tally() -> TestTally {
        let mut tally = TestTally::default();
        OUTPUT.lines().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn tests_are_counted() {
        let tally = tally();
        assert_eq!(tally.summary(), "13 passed, 1 failed, 1 ignored in 2 binaries");
        assert_eq!(tally.broken, ["a::c"]);
        assert_eq!(tally.last.len(), 5);
    }

    #[test]
    fn the_table_ends_with_the_verdict() {
        let check = |outcome: Outcome, expected: &[&str]| {
            let report = Report { name: "tests", took: Duration::from_millis(1500), outcome };
            let text = table(&[report]);
            for part in expected {
                assert!(text.contains(part), "{part:?} is not in\n{text}");
            }
        };
        check(Outcome::passed_with(""), &["tests           1.5 s  ok\n", "\nci: all passed in 2 s\n"]);
        check(Outcome::skipped("why"), &["skipped  why\n", "ci: all passed"]);
        check(Outcome::failed("one\ntwo"), &["FAILED   one\n", "\nci: FAILED in 2 s: tests\n"]);
        check(
            Outcome::tests(tally(), ExitStatus::from_raw(0)),
            &["ok       13 passed", "3 filtered out", "all passed"],
        );
        check(Outcome::tests(tally(), ExitStatus::from_raw(101 << 8)), &["FAILED   cargo test", "failed: a::c"]);
    }
}
