//! `thalweg admin config`: check, show and explain settings.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::PATIENCE;
use crate::config::checked::check;
use crate::config::effective::{FlagValue, Override};
use crate::config::problem::Severity;
use crate::config::{self, Inputs, show};
use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};

/// Check, show and explain settings
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg admin config example > thalweg.toml    every setting there is, with its default
  thalweg admin config check thalweg.toml        all that is wrong with it; exit code 2 if it cannot be used
  thalweg admin config show                      what would hold here, and who says so
  thalweg admin config show --running            what holds in the node that runs";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say all that is wrong with a file, as a compiler would
    Check {
        /// The file [default: the one that a node would read]
        file: Option<PathBuf>,
        /// The data directory of that node
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Print what holds, each value with where it comes from; the output is a file that could be read again
    Show {
        /// The file [default: the one that a node would read]
        #[arg(long, value_name = "FILE", conflicts_with = "running")]
        config: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Ask the node that runs
        #[arg(long)]
        running: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Print a file with every setting there is, each explained, with its default
    Example,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Check { file, data } => check_file(file, data),
        Command::Show { json, running: true, connect, .. } => block_on(show_running(connect, json)),
        Command::Show { config, json, connect, .. } => {
            let inputs = inputs(config, connect.data);
            let loaded = config::load(&inputs).map_err(|problems| config::failure(&problems))?;
            config::warn(&loaded.warnings);
            let text = if json {
                json!({ "file": loaded.file, "settings": show::json(&loaded.effective) }).to_string()
            } else {
                show::toml(&loaded.effective)
            };
            print(&text)
        }
        Command::Example => print(&show::example()),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{}", text.trim_end()).map_err(|error| output(&error))
}

fn inputs(file: Option<PathBuf>, data: Option<PathBuf>) -> Inputs {
    let data = data.map(|path| Override {
        setting: "node.data",
        flag: "--data",
        value: FlagValue::Text(path.to_string_lossy().into_owned()),
    });
    Inputs::new(file, data.into_iter().collect())
}

/// Prints problems on standard error, as a compiler does; what is well, on standard output.
fn check_file(file: Option<PathBuf>, data: Option<PathBuf>) -> Result<(), Failure> {
    let inputs = inputs(file, data);
    let loaded = config::load(&inputs);
    let checked = loaded.and_then(|loaded| {
        let checked = check(&loaded.effective);
        let said = |more: Vec<_>| [loaded.warnings.clone(), more].concat();
        match checked {
            Ok(checked) => Ok((loaded.file, said(checked.warnings))),
            Err(problems) => Err(said(problems)),
        }
    });
    let (file, problems) = match checked {
        Ok((file, warnings)) => (file, warnings),
        Err(problems) => (inputs.path(), problems),
    };
    config::warn(&problems);
    let shown = file.map_or("no file, so the defaults".into(), |file| file.display().to_string());
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => print(&format!("{shown}: sound")),
        (0, warnings) => print(&format!("{shown}: can be used; {warnings} warning{}", plural(warnings))),
        (errors, _) => Err(Failure::usage(format!("{shown}: {errors} error{}", plural(errors)))),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

async fn show_running(connect: ConnectArgs, json: bool) -> Result<(), Failure> {
    let client = connect.connect("admin", PATIENCE).await?;
    let asked = json!({ "command": "config" });
    let slow = || Failure::new(exit::UNREACHABLE, format!("the node did not answer within {PATIENCE:?}"));
    let answer = tokio::time::timeout(PATIENCE, client.manage(&asked)).await.map_err(|_| slow())??;
    client.close().await;
    let running = &answer["config"];
    if json {
        return print(&running.to_string());
    }
    let Some(settings) = running["settings"].as_object() else {
        return Err(Failure::failed(
            "the node does not know where its settings come from: it was not started by `serve`",
        ));
    };
    if let Some(file) = running["file"].as_str() {
        print(&format!("# {file}, as the node has it\n"))?;
    }
    print(&show::toml_of_json(settings))
}
