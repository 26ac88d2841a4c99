//! What is wrong with settings: where, what, and what to write instead.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a value came from, or something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An option of the command line.
    Flag(&'static str),
    /// An environment variable.
    Variable(String),
    /// A place in a file. Lines and columns count from 1.
    File { path: Arc<Path>, line: usize, column: usize },
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::File { path, line, .. } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The settings cannot be used.
    Error,
    /// They can, but hardly mean what they say.
    Warning,
}

/// Something wrong with settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) origin: Origin,
    pub(crate) what: String,
    /// What to write, or to do.
    pub(crate) help: String,
    /// The line it is about and how many characters of it, if it may be shown.
    pub(crate) excerpt: Option<(String, usize)>,
}

impl Problem {
    pub(crate) fn error(origin: Origin, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Error, origin, what: what.into(), help: help.into(), excerpt: None }
    }

    pub(crate) fn warning(origin: Origin, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(origin, what, help) }
    }

    /// As a compiler says it: several lines, for people.
    pub(crate) fn explain(&self, colours: bool) -> String {
        let (word, colour) = match self.severity {
            Severity::Error => ("error", "\x1b[1;31m"),
            Severity::Warning => ("warning", "\x1b[1;33m"),
        };
        let (colour, bold, plain) = if colours { (colour, "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let mut text = format!("{colour}{word}{plain}{bold}: {}{plain}\n", self.what);
        match (&self.origin, &self.excerpt) {
            (Origin::File { path, line, column }, excerpt) => {
                let _ = writeln!(text, "  --> {}:{line}:{column}", path.display());
                if let Some((excerpt, width)) = excerpt {
                    let (margin, number) = (" ".repeat(line.to_string().len()), line);
                    let marks = format!("{}{}", " ".repeat(column - 1), "^".repeat((*width).max(1)));
                    let _ = writeln!(text, "{margin} |\n{number} | {excerpt}\n{margin} | {colour}{marks}{plain}");
                }
            }
            (Origin::Default, _) => {}
            (origin, _) => drop(writeln!(text, "  --> {origin}")),
        }
        if !self.help.is_empty() {
            let _ = writeln!(text, "  = {}", self.help);
        }
        text
    }
}

/// In one line, for logs.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}: ", path.display())?,
            Origin::Default => {}
            origin => write!(f, "{origin}: ")?,
        }
        f.write_str(&self.what)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "; {}", self.help) }
    }
}

/// A file's text, to find lines and columns in.
#[derive(Debug, Clone)]
pub(crate) struct SourceText {
    pub(crate) path: Arc<Path>,
    text: String,
}

impl SourceText {
    pub(crate) fn new(path: PathBuf, text: String) -> Self {
        Self { path: path.into(), text }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Where this offset is.
    pub(crate) fn origin(&self, offset: usize) -> Origin {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let begin = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let column = 1 + String::from_utf8_lossy(&before[begin..]).chars().count();
        Origin::File { path: Arc::clone(&self.path), line, column }
    }

    /// A problem about this piece of the file.
    pub(crate) fn problem(&self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) -> Problem {
        let mut problem = Problem::error(self.origin(span.start), what, help);
        problem.excerpt = self.excerpt(&span);
        problem
    }

    /// The line a piece begins in, and how many of its characters are meant. Nothing where secrets stand.
    fn excerpt(&self, span: &Range<usize>) -> Option<(String, usize)> {
        let start = span.start.min(self.text.len());
        let begin = self.text.get(..start)?.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text.get(begin..)?.lines().next()?;
        let section = self.text.get(..begin)?.lines().rev().find(|line| line.trim_start().starts_with('['));
        let secret = |text: &str| text.contains("headers");
        if secret(line) || section.is_some_and(secret) {
            return None;
        }
        let end = span.end.min(begin + line.len()).max(start);
        let width = self.text.get(start..end)?.chars().count();
        // What the terminal would act on is not shown to it.
        let shown: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some((shown, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_shown_where_they_are() {
        let source = SourceText::new("/n.toml".into(), "[quic]\n  é = 1\tx\n[trace.headers]\nkey = 3\n".into());
        let at = source.text().find('é').expect("there");
        let problem = source.problem(at..at + 2, "no such setting", "did you mean `e`?");
        let expected =
            "error: no such setting\n  --> /n.toml:2:3\n  |\n2 |   é = 1 x\n  |   ^\n  = did you mean `e`?\n";
        assert_eq!(problem.explain(false), expected);
        assert_eq!(problem.to_string(), "/n.toml:2:3: no such setting; did you mean `e`?");
        let secret = source.text().find("key").expect("there");
        assert!(!source.problem(secret..secret + 3, "x", "").explain(false).contains('3'), "secrets are not shown");
        let end = source.problem(999..1_000, "it ends too early", "");
        assert!(matches!(end.origin, Origin::File { line: 5, column: 1, .. }), "{end:?}");
        let elsewhere = Problem::warning(Origin::Variable("THALWEG_X".into()), "what", "");
        assert_eq!(elsewhere.explain(false), "warning: what\n  --> environment THALWEG_X\n");
        assert_eq!(elsewhere.to_string(), "environment THALWEG_X: what");
    }
}
