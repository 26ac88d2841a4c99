//! Settings of a node: flags, environment variables and a file, in two steps.
//!
//! The first step ([`file`], [`effective`]) reads each value by itself, remembers where it came from, and finds all that is
//! wrong, not only the first. The second ([`checked`]) makes of them what the node takes, and looks at what does not go
//! together. Everything that is known of a setting stands in [`table`].

mod access;
pub(crate) mod checked;
pub(crate) mod effective;
mod file;
mod limits;
mod models;
pub(crate) mod problem;
pub(crate) mod show;
pub(crate) mod source;
mod table;
mod value;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use self::effective::{Effective, FlagValue, Override, merge};
use self::problem::{Origin, Problem, Severity, SourceText};
use crate::failure::Failure;
use crate::paths;

/// The file a node looks for in its data directory.
const FILE: &str = "thalweg.toml";
/// The file it looks for otherwise.
const SYSTEM_FILE: &str = "/etc/thalweg/thalweg.toml";
/// A longer file is no configuration, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What settings are made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs {
    /// What the command line says.
    pub(crate) overrides: Vec<Override>,
    /// The file it names; without, one is looked for.
    pub(crate) file: Option<PathBuf>,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Inputs {
    /// With the environment of this process.
    pub(crate) fn new(file: Option<PathBuf>, overrides: Vec<Override>) -> Self {
        Self { overrides, file, environment: std::env::vars_os().collect() }
    }

    /// The file that would be read.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        if let Some(path) = &self.file {
            return Some(path.clone());
        }
        [self.data().join(FILE), SYSTEM_FILE.into()].into_iter().find(|path| path.is_file())
    }

    /// The data directory, as far as it is known before a file was read.
    fn data(&self) -> PathBuf {
        let flag = self.overrides.iter().find(|given| given.setting == "node.data");
        if let Some(Override { value: FlagValue::Text(path), .. }) = flag {
            return path.into();
        }
        let variable = |wanted: &str| self.environment.iter().find(|(name, text)| name == wanted && !text.is_empty());
        let variable = ["THALWEG_NODE_DATA", "THALWEG_DATA"].into_iter().find_map(variable);
        paths::data_directory(variable.map(|(_, path)| path.into()))
    }
}

/// Settings that were read and can be used, each by itself.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// The file that was read, if there was one.
    pub(crate) file: Option<PathBuf>,
    pub(crate) effective: Effective,
    /// What is strange but can be used.
    pub(crate) warnings: Vec<Problem>,
}

/// Reads all settings.
///
/// # Errors
/// Everything that is wrong with them, warnings included.
pub(crate) fn load(inputs: &Inputs) -> Result<Loaded, Vec<Problem>> {
    let file = inputs.path();
    let mut problems = Vec::new();
    let entries = match &file {
        None => Vec::new(),
        Some(path) => match read(path) {
            Ok(source) => {
                let (entries, wrong) = file::read(&source);
                problems.extend(wrong);
                entries
            }
            Err(problem) => return Err(vec![*problem]),
        },
    };
    let effective = merge(&inputs.overrides, &inputs.environment, entries, &mut problems);
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(problems);
    }
    Ok(Loaded { file, effective, warnings: problems })
}

fn read(path: &Path) -> Result<SourceText, Box<Problem>> {
    let unreadable = |what: String| {
        let origin = Origin::File { path: path.into(), line: 1, column: 1 };
        Box::new(Problem::error(origin, what, "name a file that the node's user may read with --config FILE"))
    };
    let length =
        std::fs::metadata(path).map_err(|error| unreadable(format!("the file cannot be read: {error}")))?.len();
    if length > FILE_BYTES_MAX {
        return Err(unreadable(format!("the file has {length} bytes; a configuration has at most {FILE_BYTES_MAX}")));
    }
    let text =
        std::fs::read_to_string(path).map_err(|error| unreadable(format!("the file cannot be read: {error}")))?;
    Ok(SourceText::new(path.to_owned(), text))
}

/// The names of all settings, and their environment variables.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = (&'static str, String)> {
    table::SETTINGS.iter().map(|setting| (setting.name, setting.variable()))
}

/// What is wrong with a text, value by value.
#[cfg(test)]
pub(crate) fn problems_of(text: &str) -> Vec<Problem> {
    file::read(&SourceText::new("/etc/thalweg/thalweg.toml".into(), text.into())).1
}

/// All problems as a failure of the command line.
pub(crate) fn failure(problems: &[Problem]) -> Failure {
    let colours = std::io::stderr().is_terminal();
    let all: Vec<_> = problems.iter().map(|problem| problem.explain(colours)).collect();
    Failure::usage(format!("the settings cannot be used\n\n{}", all.join("\n").trim_end()))
}

/// Tells people what is strange.
pub(crate) fn warn(warnings: &[Problem]) {
    let mut out = std::io::stderr().lock();
    let colours = out.is_terminal();
    for warning in warnings {
        // There is nobody left to tell if this fails.
        let _ = writeln!(out, "{}", warning.explain(colours).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_found() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(FILE);
        let data = Override {
            setting: "node.data",
            flag: "--data",
            value: FlagValue::Text(directory.path().to_string_lossy().into_owned()),
        };
        let flags = Inputs { overrides: vec![data], ..Inputs::default() };
        let variable = ("THALWEG_DATA".into(), directory.path().into());
        let environment = Inputs { environment: vec![variable], ..Inputs::default() };
        for inputs in [&flags, &environment] {
            assert_ne!(inputs.path(), Some(path.clone()), "it is not there yet");
        }
        std::fs::write(&path, "[node]\ncores = 3\n").expect("written");
        for inputs in [&flags, &environment] {
            assert_eq!(inputs.path(), Some(path.clone()));
            let loaded = load(inputs).expect("it is sound");
            assert_eq!((loaded.file, loaded.effective.count("node.cores")), (Some(path.clone()), Some(3)));
        }
        let named = |file: &str| Inputs { file: Some(file.into()), ..Inputs::default() };
        let problems = load(&named("/nowhere/x.toml")).expect_err("there is none");
        assert!(problems[0].to_string().starts_with("/nowhere/x.toml:1:1: the file cannot be read"), "{problems:?}");
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        let problems = load(&flags).expect_err("not text");
        assert!(problems[0].what.contains("cannot be read"), "{problems:?}");
    }
}
