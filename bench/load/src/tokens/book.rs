//! What is counted: who asked when, and when the tokens came.

use std::time::Duration;

use crate::cli::TokensArgs;
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::report::{Row, round};

/// Suffixes of the rows of each group of readers: those of the tenant that is measured, and those of the other one.
const GROUPS: [&str; 2] = ["", "_other"];

/// Somebody who asks, one question after the other.
#[derive(Debug, Default, Clone)]
struct Asker {
    group: usize,
    asked_ns: u64,
    first_ns: Option<u64>,
    last_ns: u64,
    /// Tokens that came (over HTTP: pieces of text).
    got: u32,
    /// Most tokens that may come.
    length: u32,
    busy: bool,
    stall: Stall,
}

/// Whether a reader is one of those that stop.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stall {
    #[default]
    Never,
    /// It will stop.
    Due,
    /// It stopped at this token.
    Stopped,
    /// It reads again; it had got so many tokens when it went on.
    Resumed(u32),
}

/// Readers of one tenant that do not stall.
struct Group {
    first: Latencies,
    between: Latencies,
    tokens: u64,
    pieces: u64,
    finished: u64,
    stopped_early: u64,
    /// Tokens a second of each answer, first to last token.
    rates: Vec<f64>,
    last_ns: u64,
}

/// What a turn finds.
pub(super) enum Turn {
    /// All questions are answered.
    Over,
    /// These readers read again, from the token they stopped at.
    Resume(Vec<(usize, u32)>),
    /// There is nothing to do but wait.
    Wait,
}

/// See the module. Times are nanoseconds of one clock.
pub(super) struct Book {
    askers: Vec<Asker>,
    groups: [Group; 2],
    /// Questions that are left to ask.
    left: usize,
    stall: usize,
    stall_after: u32,
    patience: Duration,
    start_ns: u64,
    resumed: Latencies,
    stalled_tokens: u64,
    stalled_finished: usize,
    /// Time to the first token of the first question of all that was answered: what the others may share was not there.
    first_of_all_us: Option<f64>,
    /// When anybody got something, for patience.
    moved_ns: u64,
}

impl Book {
    /// The readers are numbered: first those that stall, then the others, last those of the other tenant.
    pub(super) fn new(args: &TokensArgs, start_ns: u64) -> Self {
        let group = |n: usize| usize::from(is_other(args, n));
        let stall = |n: usize| if n < args.stall { Stall::Due } else { Stall::Never };
        let asker = |n: usize| Asker { group: group(n), stall: stall(n), ..Asker::default() };
        Self {
            askers: (0..args.concurrency).map(asker).collect(),
            groups: [Group::new(), Group::new()],
            left: args.asks.unwrap_or(args.concurrency).max(args.concurrency),
            stall: args.stall,
            stall_after: args.stall_after,
            patience: args.patience,
            start_ns,
            resumed: Latencies::new(),
            stalled_tokens: 0,
            stalled_finished: 0,
            first_of_all_us: None,
            moved_ns: start_ns,
        }
    }

    /// Whether somebody who is done asks again.
    pub(super) fn has_more(&self) -> bool {
        self.left > 0
    }

    /// A question for at most `length` tokens left now.
    pub(super) fn asked(&mut self, asker: usize, length: u32, now_ns: u64) {
        self.left = self.left.saturating_sub(1);
        let Asker { group, stall, .. } = self.askers[asker];
        self.askers[asker] = Asker { group, stall, length, asked_ns: now_ns, busy: true, ..Asker::default() };
    }

    /// Whether an answer is awaited.
    pub(super) fn is_busy(&self, asker: usize) -> bool {
        self.askers[asker].busy
    }

    /// Whether a reader does not read now.
    pub(super) fn is_stopped(&self, asker: usize) -> bool {
        self.askers[asker].stall == Stall::Stopped
    }

    /// Tokens the current answer has so far.
    pub(super) fn got(&self, asker: usize) -> u32 {
        self.askers[asker].got
    }

    /// Tokens came; whether the reader stops reading now.
    pub(super) fn arrived(&mut self, asker: usize, count: u32, at_ns: u64) -> bool {
        self.moved_ns = at_ns;
        let asker = &mut self.askers[asker];
        let group = &mut self.groups[asker.group];
        asker.got += count;
        let steady = asker.stall == Stall::Never;
        match asker.first_ns {
            None => {
                asker.first_ns = Some(at_ns);
                let took_us = at_ns.saturating_sub(asker.asked_ns) as f64 / 1e3;
                self.first_of_all_us.get_or_insert(took_us);
                if steady {
                    group.first.record(asker.asked_ns, at_ns);
                }
            }
            Some(_) if count > 0 => {
                // Tokens that came together took their share of the time each.
                let each_ns = at_ns.saturating_sub(asker.last_ns) / u64::from(count);
                match asker.stall {
                    Stall::Never => group.between.record_many(each_ns, u64::from(count)),
                    Stall::Resumed(_) => self.resumed.record_many(each_ns, u64::from(count)),
                    Stall::Due | Stall::Stopped => {}
                }
            }
            Some(_) => {}
        }
        asker.last_ns = at_ns;
        if steady {
            group.last_ns = at_ns;
        }
        let stops = asker.stall == Stall::Due && asker.got >= self.stall_after;
        if stops {
            asker.stall = Stall::Stopped;
        }
        stops
    }

    /// An answer of so many tokens is complete.
    pub(super) fn ended(&mut self, asker: usize, tokens: u32) {
        let asker = &mut self.askers[asker];
        asker.busy = false;
        if asker.stall != Stall::Never {
            self.stalled_finished += 1;
            self.stalled_tokens += u64::from(tokens);
            return;
        }
        let group = &mut self.groups[asker.group];
        group.finished += 1;
        group.tokens += u64::from(tokens);
        group.pieces += u64::from(asker.got);
        group.stopped_early += u64::from(tokens < asker.length);
        if let Some(first_ns) = asker.first_ns
            && asker.last_ns > first_ns
            && tokens > 1
        {
            group.rates.push(f64::from(tokens - 1) * 1e9 / (asker.last_ns - first_ns) as f64);
        }
    }

    /// Once a turn.
    pub(super) fn turn(&mut self, now_ns: u64) -> Result<Turn, LoadError> {
        if self.askers.iter().all(|asker| !asker.busy) {
            return Ok(Turn::Over);
        }
        if self.askers.iter().all(|asker| !asker.busy || asker.stall == Stall::Stopped) {
            self.moved_ns = now_ns;
            let stopped = self.askers.iter_mut().enumerate().filter(|(_, asker)| asker.stall == Stall::Stopped);
            let resumed = stopped.map(|(n, asker)| {
                asker.stall = Stall::Resumed(asker.got);
                asker.last_ns = now_ns;
                (n, asker.got)
            });
            return Ok(Turn::Resume(resumed.collect()));
        }
        if now_ns.saturating_sub(self.moved_ns) > nanos(self.patience) {
            let got = self.groups.iter().map(|group| group.finished).sum::<u64>() + self.stalled_finished as u64;
            let wanted = got + self.askers.iter().filter(|asker| asker.busy).count() as u64 + self.left as u64;
            let seconds = self.patience.as_secs();
            return Err(LoadError::Incomplete { what: "answers (no token for a while)", got, wanted, seconds });
        }
        Ok(Turn::Wait)
    }

    /// The rows of all, with what the caller knows of the cost; `pieces`: what came were pieces of text, not tokens.
    pub(super) fn rows(&mut self, server_cpu: Option<f64>, own_cpu: f64, pieces: bool) -> Vec<Row> {
        let concurrency = self.askers.len();
        let mut rows = Vec::new();
        for (n, group) in self.groups.iter_mut().enumerate() {
            if n == 0 || group.first.count() > 0 {
                rows.extend(group.rows(GROUPS[n], self.start_ns, pieces));
            }
        }
        let first = rows.remove(0).with("concurrency", concurrency as u64);
        rows.insert(0, first.with_known("first_of_all_us", self.first_of_all_us));
        let between = rows.remove(1).with_known("server_cpu_s", server_cpu).with("generator_cpu_s", round(own_cpu));
        rows.insert(1, between);
        if self.stall > 0 {
            let held: Vec<u32> = self.askers.iter().filter_map(Asker::held).collect();
            let row = Row::new("stalled_reader_resumed", &self.resumed, 0.0)
                .with("stalled", self.stall as u64)
                .with("stopped_in_time", held.len() as u64)
                .with("tokens_when_resumed", held)
                .with("tokens_in_the_end", self.stalled_tokens)
                .with("complete", self.stalled_finished == self.stall);
            rows.push(row);
        }
        rows
    }
}

/// Whether a reader is one of the other tenant.
pub(super) fn is_other(args: &TokensArgs, asker: usize) -> bool {
    asker >= args.concurrency - args.other
}

impl Group {
    fn new() -> Self {
        Self {
            first: Latencies::new(),
            between: Latencies::new(),
            tokens: 0,
            pieces: 0,
            finished: 0,
            stopped_early: 0,
            rates: Vec::new(),
            last_ns: 0,
        }
    }

    fn rows(&mut self, suffix: &str, start_ns: u64, pieces: bool) -> [Row; 2] {
        let seconds = self.last_ns.saturating_sub(start_ns) as f64 / 1e9;
        self.rates.sort_by(f64::total_cmp);
        let median = self.rates.get(self.rates.len() / 2).copied();
        let each = self.tokens as f64 / self.pieces.max(1) as f64;
        let first = Row::new(format!("first_token{suffix}"), &self.first, seconds)
            .with("answers", self.finished)
            .with("answers_shorter_than_asked", self.stopped_early);
        let between = Row::new(format!("inter_token{suffix}"), &self.between, seconds)
            .with("tokens", self.tokens)
            .with("tokens_per_s", round(self.tokens as f64 / seconds.max(1e-9)))
            .with_known("tokens_per_s_each_min", self.rates.first().copied())
            .with_known("tokens_per_s_each_median", median)
            .with_known("tokens_per_piece", pieces.then_some(each));
        [first, between]
    }
}

impl Asker {
    /// Tokens a stalled reader had when it went on.
    fn held(&self) -> Option<u32> {
        match self.stall {
            Stall::Resumed(tokens) => Some(tokens),
            Stall::Never | Stall::Due | Stall::Stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        tokens: TokensArgs,
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn readers_that_stall_and_other_tenants_are_counted_apart() {
        let cli = Cli::parse_from(["tokens", "-c", "3", "--stall", "1", "--stall-after", "2", "--other", "1"]);
        let mut book = Book::new(&cli.tokens, 0);
        (0..3).for_each(|asker| book.asked(asker, 4, 0));
        assert!(!book.has_more());
        let check = |book: &mut Book, asker: usize, at_ms: u64, stops: bool| {
            assert_eq!(book.arrived(asker, 1, at_ms * MS), stops, "reader {asker} at {at_ms} ms");
        };
        check(&mut book, 0, 10, false);
        check(&mut book, 0, 20, true);
        assert!(book.is_stopped(0) && matches!(book.turn(20 * MS), Ok(Turn::Wait)));
        (1..=4).for_each(|n| check(&mut book, 1, 30 * n, false));
        (1..=3).for_each(|n| check(&mut book, 2, 50 * n, false));
        book.ended(1, 4);
        book.ended(2, 3);
        assert!(matches!(book.turn(200 * MS), Ok(Turn::Resume(readers)) if readers == [(0, 2)]));
        (0..2).for_each(|n| check(&mut book, 0, 210 + 10 * n, false));
        book.ended(0, 4);
        assert!(matches!(book.turn(220 * MS), Ok(Turn::Over)));
        let rows = book.rows(None, 0.0, true);
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let expected =
            ["first_token", "inter_token", "first_token_other", "inter_token_other", "stalled_reader_resumed"];
        assert_eq!(names, expected);
        assert_eq!(rows[1].extra["tokens"], 4, "of the steady reader of this tenant alone");
        assert_eq!((&rows[2].extra["answers_shorter_than_asked"], &rows[3].extra["tokens"]), (&1.into(), &3.into()));
        assert!((rows[0].p50_us - 30_000.0).abs() < 100.0 && rows[0].extra["first_of_all_us"] == 10_000.0);
        assert_eq!(rows[4].extra["tokens_when_resumed"], serde_json::json!([2]));
        assert_eq!(rows[4].extra["complete"], true);
    }

    #[test]
    fn patience_ends_a_run_that_stands_still() {
        let cli = Cli::parse_from(["tokens", "--patience", "1s", "--asks", "3"]);
        let mut book = Book::new(&cli.tokens, 0);
        book.asked(0, 4, 0);
        assert!(book.turn(900 * MS).is_ok());
        let error = book.turn(1_100 * MS).err().expect("a second has passed");
        assert!(matches!(error, LoadError::Incomplete { got: 0, wanted: 3, .. }), "{error}");
    }
}
