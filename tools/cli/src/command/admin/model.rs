//! `thalweg admin model`: load and unload models of a node that runs.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::access::{ask_within, put};
use crate::command::serve;
use crate::connect::ConnectArgs;
use crate::duration;
use crate::failure::Failure;
use crate::models::Store;
use crate::paths;
use crate::plain::{print, say, table};

/// Longest time to wait for a model to be read and packed.
const LOADING: Duration = Duration::from_secs(600);
/// What is waited for beyond the grace that a model gets.
const UNLOADING: Duration = Duration::from_secs(30);

/// Models of a node that runs: list, load, unload
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg admin model list
  thalweg admin model load smollm2-360m --class accurate --cost 3     one that was pulled on the node's machine
  thalweg admin model load /srv/models/mine.gguf --name mine
  thalweg admin model unload mine --grace 2m                          what is being answered may take two minutes";

#[derive(Debug, Subcommand)]
enum Command {
    /// List the models of the node: where they run, and what became of what they were asked
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Read a model's file and serve it; the file lies on the node's machine
    Load {
        /// A model that was pulled, or a file
        #[arg(value_name = "NAME|PATH")]
        model: String,
        /// The name requests give [default: its own, or its file's]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// What it is good for: fast, accurate, or a word of your own [default: standard]
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// What a token of it costs compared with the others
        #[arg(long, value_name = "N", default_value_t = 0)]
        cost: u32,
        /// Who answers in its place while it cannot
        #[arg(long, value_name = "NAME")]
        fallback: Option<String>,
        /// The node's answer as it is
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Serve a model no more, and let go of its memory
    Unload {
        /// Which
        name: String,
        /// How long what it answers at the moment may go on
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
        grace: Duration,
        /// The node's answer as it is
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::List { json, connect } => list(&connect, json),
        Command::Load { model, name, class, cost, fallback, json, connect } => {
            let source = serve::model(&model, &Store::new(paths::models()))?;
            let path = std::path::absolute(&source.path)
                .map_err(|error| Failure::failed(format!("{}: {error}", source.path.display())))?;
            let Some(path) = path.to_str() else {
                return Err(Failure::failed(format!("{}: the path is not UTF-8; rename it", path.display())));
            };
            let name = name.unwrap_or_else(|| source.name.to_string());
            let mut request = json!({ "command": "model-load", "name": name, "path": path, "cost": cost });
            put(&mut request, "class", class);
            put(&mut request, "fallback", fallback);
            let answer = ask_within(&connect, &request, LOADING)?;
            if json {
                return print(&answer.to_string());
            }
            say(&format!("{} is served; it took {} ms to load", text(&answer["model"]), answer["load_ms"]))
        }
        Command::Unload { name, grace, json, connect } => {
            let request = json!({ "command": "model-unload", "name": name, "grace_ms": grace.as_millis() as u64 });
            let answer = ask_within(&connect, &request, grace + UNLOADING)?;
            if json {
                return print(&answer.to_string());
            }
            match answer["ended"].as_u64().unwrap_or(0) {
                0 => say(&format!("{name} is served no more")),
                ended => say(&format!("{name} is served no more; {ended} under way were ended")),
            }
        }
    }
}

fn list(connect: &ConnectArgs, json: bool) -> Result<(), Failure> {
    let answer = ask_within(connect, &json!({ "command": "model-list" }), UNLOADING)?;
    let models = answer["models"].as_array().map_or(&[][..], Vec::as_slice);
    if json {
        return models.iter().try_for_each(|model| print(&model.to_string()));
    }
    let columns = [
        "model",
        "kind",
        "place",
        "class",
        "cost",
        "context_tokens",
        "state",
        "fallback",
        "asked",
        "running",
        "failed",
    ];
    let row = |model: &Value| columns.iter().map(|column| text(&model[column])).collect();
    let head =
        ["MODEL", "KIND", "PLACE", "CLASS", "COST", "CONTEXT", "STATE", "FALLBACK", "ASKED", "RUNNING", "FAILED"];
    table(&head, &models.iter().map(row).collect::<Vec<Vec<String>>>())
}

/// A field as it is shown.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
