//! `thalweg doc`: documents from scripts: reading, writing, comparing, restoring.

mod apply;
mod diffs;
mod log;
mod put;
mod watch;

use std::io::Write as _;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use thalweg_client::{ChannelKind, Client, Position, ReadForm, RecordKind, RejectCode};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};
use crate::lines::when;
use crate::plain::{print, say, table};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Read, write, compare and restore documents
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg doc put notes notes.md           make it, or edit it so that it reads like the file
  thalweg doc get notes                    print its text
  thalweg doc log notes                    what it was edited by, and when
  thalweg doc version notes draft          give the newest revision a name
  thalweg doc diff notes draft             what changed since then
  thalweg doc restore notes draft          make it read so again, by a new edit
  thalweg doc watch notes                  print edits as they come
  echo '[{\"insert\":\"hello\\n\"}]' | thalweg doc apply notes

A revision is a number that `thalweg doc log` shows, or the name of a version; there is none before 1, and where none is \
named, the newest is meant. `thalweg edit` is the editor.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a document
    Get {
        /// Its name
        document: String,
        /// As it was at this revision: a number, or the name of a version [default: now]
        #[arg(long, value_name = "REVISION")]
        revision: Option<String>,
        /// Its text; all of it as one Yjs update (version 1), in bytes; or all its roots as a JSON object
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    Put(put::Args),
    /// Print what a document was edited by
    Log(log::Args),
    /// Print how two revisions differ, as `diff -u` does
    Diff {
        /// The document
        document: String,
        /// The older revision: a number, or the name of a version
        a: String,
        /// The newer [default: now]
        b: Option<String>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Make a document read again as it did at a revision, by a new edit
    Restore {
        /// The document
        document: String,
        /// A number, or the name of a version
        revision: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Give a revision a name
    Version {
        /// The document
        document: String,
        /// The name; not a number, which is a revision
        name: String,
        /// Which revision [default: the newest]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        revision: Option<u64>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Edit by positional operations from standard input, a JSON array a line
    Apply(apply::Args),
    /// Print edits as they come
    Watch(watch::Args),
    /// List documents
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Delete a document with its past
    Rm {
        /// Its name
        document: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// How a document is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Its text
    Text,
    /// All of it as one Yjs update (version 1)
    Update,
    /// All its roots as a JSON object
    Json,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(carry_out(args.command))
}

async fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::Get { document, revision, format, connect } => {
            get(&connected(&connect).await?, &document, revision.as_deref(), format).await
        }
        Command::Put(args) => put::run(args).await,
        Command::Log(args) => log::run(args).await,
        Command::Diff { document, a, b, connect } => {
            diff(&connected(&connect).await?, &document, &a, b.as_deref()).await
        }
        Command::Restore { document, revision, connect } => {
            let client = connected(&connect).await?;
            let target = revision_of(&client, &document, &revision).await?;
            let published = client.restore_document(document.as_str(), target).await?;
            say(&format!("{document} reads as at revision {target} again; it is revision {}", published.position))
        }
        Command::Version { document, name, revision, connect } => {
            check_version(&document, &name)?;
            let client = connected(&connect).await?;
            let target = Position(revision.unwrap_or(0));
            client.name_version(document.as_str(), target, &name).await?;
            match revision {
                Some(revision) => say(&format!("revision {revision} of {document} is {name:?}")),
                None => say(&format!("the newest revision of {document} is {name:?}")),
            }
        }
        Command::Apply(args) => apply::run(args).await,
        Command::Watch(args) => watch::run(args).await,
        Command::List { json, connect } => list(&connected(&connect).await?, json).await,
        Command::Rm { document, connect } => {
            let client = connected(&connect).await?;
            let report = match client.about_channel(document.as_str()).await {
                Err(error) if error.reject().is_some_and(|reject| reject.code == RejectCode::ChannelUnknown) => {
                    return Err(Failure::new(exit::REFUSED, format!("there is no document {document}")));
                }
                report => report?,
            };
            if report.kind != ChannelKind::Document {
                let text = format!("{document} is no document; `thalweg channel delete {document}` deletes a channel");
                return Err(Failure::new(exit::REFUSED, text));
            }
            client.delete_channel(document.as_str()).await?;
            say(&format!("{document} deleted"))
        }
    }
}

async fn connected(connect: &ConnectArgs) -> Result<Client, Failure> {
    connect.connect("doc", PATIENCE).await
}

/// The revision that a number means; `None` if it is the name of a version.
fn number_of(text: &str) -> Option<Position> {
    text.parse().ok().map(Position)
}

/// Whether a version may have this name: one that reads as a number would never be found by it.
fn check_version(document: &str, name: &str) -> Result<(), Failure> {
    match number_of(name) {
        None => Ok(()),
        Some(number) => Err(Failure::usage(format!(
            "a version cannot be named {name:?}: where a version is named, a number means a revision, as in `thalweg doc \
             restore {document} {number}`; name it \"v{name}\", say"
        ))),
    }
}

/// The revision that is meant: a number, or the newest version of that name.
async fn revision_of(client: &Client, document: &str, text: &str) -> Result<Position, Failure> {
    match number_of(text) {
        Some(Position(0)) => {
            return Err(Failure::usage(format!(
                "there is no revision 0: revisions count from 1, and where none is named, the newest is meant; `thalweg doc \
                 log {document}` shows them"
            )));
        }
        Some(revision) => return Ok(revision),
        None => {}
    }
    let mut found = None;
    let mut pages = log::Pages::new(client, document);
    while let Some(page) = pages.next().await? {
        for record in page.records {
            if let RecordKind::Version { revision, name } = record.kind
                && name == text
            {
                found = Some(revision);
            }
        }
    }
    found.ok_or_else(|| {
        let text = format!("{document} has no version {text:?}; `thalweg doc log {document}` shows which there are");
        Failure::new(exit::REFUSED, text)
    })
}

async fn get(client: &Client, document: &str, revision: Option<&str>, format: Format) -> Result<(), Failure> {
    let revision = match revision {
        Some(text) => revision_of(client, document, text).await?,
        None => Position(0),
    };
    let form = match format {
        Format::Text => ReadForm::Text,
        Format::Update => ReadForm::State,
        Format::Json => ReadForm::Json,
    };
    let read = client.read_document(document, revision, form).await?;
    let mut out = std::io::stdout().lock();
    let written = out.write_all(&read.bytes).and_then(|()| match format {
        Format::Json => out.write_all(b"\n"),
        Format::Text | Format::Update => Ok(()),
    });
    written.and_then(|()| out.flush()).map_err(|error| output(&error))
}

async fn diff(client: &Client, document: &str, a: &str, b: Option<&str>) -> Result<(), Failure> {
    let from = revision_of(client, document, a).await?;
    let to = match b {
        Some(text) => revision_of(client, document, text).await?,
        None => Position(0),
    };
    let (from, before) = client.read_text(document, from).await?;
    let (to, after) = client.read_text(document, to).await?;
    let label = |revision: Position| format!("{document}\trevision {revision}");
    let text = diffs::unified((&label(from), &before), (&label(to), &after));
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| output(&error))
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let mut documents = client.channels(true).await?;
    documents.retain(|channel| channel.kind == ChannelKind::Document);
    if json {
        return documents.iter().try_for_each(|document| {
            let line = json!({
                "document": document.channel.as_str(), "revision": document.head.0, "edited": when(document.active_us),
                "role": document.role.map(thalweg_client::MemberRole::as_str), "topic": document.topic,
            });
            print(&line.to_string())
        });
    }
    let rows: Vec<Vec<String>> = documents
        .iter()
        .map(|document| {
            let edited = when(document.active_us).unwrap_or_else(|| "-".into());
            vec![document.channel.to_string(), document.head.to_string(), edited, document.topic.clone()]
        })
        .collect();
    table(&["DOCUMENT", "REVISION", "EDITED", "TOPIC"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_not_named_like_a_revision() {
        let check = |name: &str, number: Option<u64>| {
            assert_eq!(number_of(name), number.map(Position), "{name:?}");
            assert_eq!(check_version("notes", name).is_err(), number.is_some(), "{name:?}");
        };
        check("2024", Some(2024));
        check("007", Some(7));
        check("+5", Some(5));
        for name in ["draft", "v2024", "2024-11", " 2024", "-5", "1.0", "18446744073709551616"] {
            check(name, None);
        }
    }
}
